"""Threads that write notifications to /dev/fuse.

The kernel makes the writer wait: for a directory's lock, to forget a name in it, while somebody lists it or looks something up
there; for pages that are being read, to forget them. Requests that nobody has answered hold both, and those may be in the hands
of a filter, or of a person. So nobody who serves requests writes such a notification; and names and inodes have threads of
their own, so that neither waits for the other. Three share the inodes by their numbers: what is told of one file waits for
reads of that file, and of a third of the others.

What is queued to one notifier is written in its order. Any thread, without the GIL.
"""

from libc.errno cimport EINTR, ENODEV, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from posix.time cimport timespec
from posix.unistd cimport write

from stackfs.cext.includes.fuse_wire cimport FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out, fuse_out_header
from stackfs.cext.message_queue cimport queue_append, queue_clear, queue_take, queued_new, queued_t
from stackfs.cext.threads cimport *

cdef enum:
    NOTIFIERS = 4
    FOR_INODES = NOTIFIERS - 1


cdef void notifiers_init(notifiers_t *notifiers) noexcept nogil:
    cdef int i
    for i in range(NOTIFIERS):
        pthread_mutex_init(&notifiers.each[i].lock, NULL)
        init_condition(&notifiers.each[i].changed)


cdef int notifiers_start(notifiers_t *notifiers, int fd) noexcept nogil:
    cdef int i, error
    for i in range(NOTIFIERS):
        notifiers.each[i].fd = fd
        error = start_thread(&notifiers.each[i].thread, notifier_main, &notifiers.each[i])
        if error:
            return error
        notifiers.each[i].has_thread = 1
    return 0


cdef void notifiers_stop(notifiers_t *notifiers) noexcept nogil:
    cdef notifier_t *notifier
    cdef int i
    for i in range(NOTIFIERS):
        notifier = &notifiers.each[i]
        pthread_mutex_lock(&notifier.lock)
        notifier.stop = 1
        queue_clear(&notifier.queue)
        pthread_cond_broadcast(&notifier.changed)
        pthread_mutex_unlock(&notifier.lock)
    for i in range(NOTIFIERS):
        if notifiers.each[i].has_thread:
            pthread_join(notifiers.each[i].thread, NULL)
        notifiers.each[i].has_thread = 0


cdef void notifiers_free(notifiers_t *notifiers) noexcept nogil:
    cdef int i
    for i in range(NOTIFIERS):
        queue_clear(&notifiers.each[i].queue)
        pthread_mutex_destroy(&notifiers.each[i].lock)
        pthread_cond_destroy(&notifiers.each[i].changed)


cdef inline notifier_t *of_inode(notifiers_t *notifiers, uint64_t nodeid) noexcept nogil:
    return &notifiers.each[1 + nodeid % FOR_INODES]


cdef notifier_t *of_message(notifiers_t *notifiers, const char *data, uint32_t length) noexcept nogil:
    if length >= sizeof(fuse_out_header) + sizeof(uint64_t) and (<const fuse_out_header *>data).error == <int>FUSE_NOTIFY_INVAL_INODE:
        return of_inode(notifiers, (<const fuse_notify_inval_inode_out *>(data + sizeof(fuse_out_header))).ino)
    return &notifiers.each[0]


cdef int notice_queue(notifiers_t *notifiers, const char *data, uint32_t length) noexcept nogil:
    cdef notifier_t *notifier = of_message(notifiers, data, length)
    cdef queued_t *entry = queued_new(data, length)
    if entry == NULL:
        return -ENOMEM
    pthread_mutex_lock(&notifier.lock)
    if notifier.stop:
        pthread_mutex_unlock(&notifier.lock)
        free(entry)
        return -ENODEV
    queue_append(&notifier.queue, entry)
    notifier.queued += 1
    pthread_cond_broadcast(&notifier.changed)
    pthread_mutex_unlock(&notifier.lock)
    return 0


cdef void notice_write(int fd, const char *data, uint32_t length) noexcept nogil:
    """ENOENT: the kernel does not have it cached. Any other error ends with the connection."""
    while write(fd, data, length) < 0 and errno == EINTR:
        pass


cdef void *notifier_main(void *argument) noexcept nogil:
    cdef notifier_t *notifier = <notifier_t *>argument
    cdef queued_t *entry
    pthread_setname_np(pthread_self(), "stackfs-notify")
    pthread_mutex_lock(&notifier.lock)
    while not notifier.stop:
        entry = queue_take(&notifier.queue)
        if entry == NULL:
            pthread_cond_wait(&notifier.changed, &notifier.lock)
            continue
        pthread_mutex_unlock(&notifier.lock)
        notice_write(notifier.fd, <const char *>(entry + 1), entry.length)
        free(entry)
        pthread_mutex_lock(&notifier.lock)
        notifier.written += 1
        pthread_cond_broadcast(&notifier.changed)
    pthread_cond_broadcast(&notifier.changed)
    pthread_mutex_unlock(&notifier.lock)
    return NULL


# ---- whether they are written ----

cdef void deadline(timespec *until, int64_t limit) noexcept nogil:
    cdef int64_t end = monotonic_time() + limit
    until.tv_sec = end // 1000000000
    until.tv_nsec = end % 1000000000


cdef uint64_t queued_by_now(notifier_t *notifier) noexcept nogil:
    cdef uint64_t count
    pthread_mutex_lock(&notifier.lock)
    count = notifier.queued
    pthread_mutex_unlock(&notifier.lock)
    return count


cdef int settled(notifier_t *notifier, uint64_t target, const timespec *until) noexcept nogil:
    """1: written; -1: it has been stopped, and they never will be; 0: not in time. until NULL: however long."""
    cdef int answer
    pthread_mutex_lock(&notifier.lock)
    while notifier.written < target and not notifier.stop and notifier.has_thread:
        if until == NULL:
            pthread_cond_wait(&notifier.changed, &notifier.lock)
        elif pthread_cond_timedwait(&notifier.changed, &notifier.lock, until):
            break
    answer = 1 if notifier.written >= target else -notifier.stop
    pthread_mutex_unlock(&notifier.lock)
    return answer


cdef uint64_t notices_queued(notifiers_t *notifiers, uint64_t nodeid) noexcept nogil:
    return queued_by_now(of_inode(notifiers, nodeid))


cdef bint notices_settled(notifiers_t *notifiers, uint64_t nodeid, uint64_t target, int64_t limit) noexcept nogil:
    cdef timespec until
    if limit >= 0:
        deadline(&until, limit)
    return settled(of_inode(notifiers, nodeid), target, NULL if limit < 0 else &until) != 0


cdef bint notices_flush(notifiers_t *notifiers, int64_t limit) noexcept nogil:
    cdef uint64_t[4] targets
    cdef timespec until
    cdef int i
    for i in range(NOTIFIERS):
        targets[i] = queued_by_now(&notifiers.each[i])
    if limit >= 0:
        deadline(&until, limit)
    for i in range(NOTIFIERS):
        if settled(&notifiers.each[i], targets[i], NULL if limit < 0 else &until) != 1:
            return False
    return True
