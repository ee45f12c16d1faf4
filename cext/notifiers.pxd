# The threads that write what the kernel may make wait: notifications of names, and of an inode's pages (notifiers.pyx).

from libc.stdint cimport int64_t, uint32_t, uint64_t
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from stackfs.cext.message_queue cimport queue_t

cdef struct notifier_t:
    int fd                               # /dev/fuse
    pthread_mutex_t lock                 # guards what follows; a leaf, never held across a system call
    pthread_cond_t changed
    queue_t queue
    uint64_t queued
    uint64_t written
    int stop
    int has_thread
    pthread_t thread

cdef struct notifiers_t:
    notifier_t each[4]                   # the first has the names; inodes are shared out among the others

cdef void notifiers_init(notifiers_t *notifiers) noexcept nogil
cdef int notifiers_start(notifiers_t *notifiers, int fd) noexcept nogil         # 0, or an errno
cdef void notifiers_stop(notifiers_t *notifiers) noexcept nogil                 # joins them; what is queued is dropped
cdef void notifiers_free(notifiers_t *notifiers) noexcept nogil

# A whole message, queued: 0, -ENOMEM, or -ENODEV: they have been stopped.
cdef int notice_queue(notifiers_t *notifiers, const char *data, uint32_t length) noexcept nogil
# A whole message, written at once by the caller: for kinds that the kernel does not make wait.
cdef void notice_write(int fd, const char *data, uint32_t length) noexcept nogil

# How many of an inode's notifier have been queued; and, until so many are written, or never will be: False: not within so
# many nanoseconds (-1: however long).
cdef uint64_t notices_queued(notifiers_t *notifiers, uint64_t nodeid) noexcept nogil
cdef bint notices_settled(notifiers_t *notifiers, uint64_t nodeid, uint64_t target, int64_t limit) noexcept nogil
# Until all that has been queued by now is written. False: not in time, or stopped before.
cdef bint notices_flush(notifiers_t *notifiers, int64_t limit) noexcept nogil
