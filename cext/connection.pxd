# The writing end of one FUSE connection: answers, notifications, and what awaits an answer (connection.pyx).

from libc.stdint cimport int64_t, uint32_t, uint64_t
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from stackfs.cext.message_queue cimport queue_t
from stackfs.cext.pending cimport device_calls_t
from stackfs.cext.unique_set cimport unique_set_t

cdef struct connection_t:
    int fd                               # /dev/fuse
    int ended_event                      # eventfd: readable once it has ended
    int ending                           # atomic: whoever sets it says why
    int ended                            # atomic
    int error                            # why, an errno; final before `ended`
    # requests without an answer (open_lock)
    pthread_mutex_t open_lock
    unique_set_t open
    unique_set_t interrupted             # of those, the ones for which an INTERRUPT has come
    int refusing                         # written under open_lock, also read atomically
    # notifications (notify_lock)
    pthread_mutex_t notify_lock
    pthread_cond_t notify_changed
    queue_t notices
    uint64_t notices_queued
    uint64_t notices_written
    int notify_stop
    pthread_t notifier
    int has_notifier

cdef void connection_init(connection_t *connection) noexcept nogil
cdef int connection_start(connection_t *connection) noexcept nogil              # the notifier; 0, or an errno
cdef void connection_stop_notifier(connection_t *connection) noexcept nogil     # joins it; what is queued is dropped
cdef void connection_free(connection_t *connection) noexcept nogil              # memory, not descriptors
# error 0: unmounted or aborted. The first one counts. Whoever waits for ended_event is told.
cdef void connection_end(connection_t *connection, int error) noexcept nogil

# Enter a request among those that will be answered: 0, or the errno to answer with.
cdef int admit(connection_t *connection, uint64_t unique) noexcept nogil
# INTERRUPT: remembered until the request is answered. 0: no such request awaits an answer (yet).
cdef int note_interrupt(connection_t *connection, uint64_t unique) noexcept nogil
# 1: the caller is the one who answers.
cdef int take_open(connection_t *connection, uint64_t unique) noexcept nogil
# Write an answer whose request was taken out, or was never admitted.
cdef void write_error(connection_t *connection, uint64_t unique, int error) noexcept nogil
cdef void write_answer(connection_t *connection, const char *data, size_t length) noexcept nogil
cdef void answer_error(connection_t *connection, uint64_t unique, int error) noexcept nogil     # take_open, write_error
# Answer all that is unanswered with ECONNABORTED, and from now on refuse.
cdef void refuse_all(connection_t *connection) noexcept nogil
# Queued for the notifier; -ENOMEM, or -ENODEV after the end.
cdef int queue_notice(connection_t *connection, const char *data, uint32_t length) noexcept nogil
cdef int notify_kernel(void *connection, const char *data, uint32_t length) noexcept nogil        # the same, for notices.pyx
# What a volume asks of its device (pending.pxd); `connection` is a connection_t*.
cdef const device_calls_t *connection_calls() noexcept nogil
# How many have been queued; and, until so many are written: False: not within so many nanoseconds (-1: however long), or never.
cdef uint64_t notices_queued(connection_t *connection) noexcept nogil
cdef bint notices_settled(connection_t *connection, uint64_t target, int64_t limit) noexcept nogil
