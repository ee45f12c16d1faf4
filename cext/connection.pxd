# The writing end of one FUSE connection: answers, notifications, and what awaits an answer (connection.pyx).

from libc.stdint cimport uint32_t, uint64_t
from stackfs.cext.includes.pthread cimport pthread_mutex_t
from stackfs.cext.notifiers cimport notifiers_t
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
    notifiers_t notifiers

cdef void connection_init(connection_t *connection) noexcept nogil
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
# For notices.pyx; `connection` is a connection_t*. Queued; written at once: a kind that the kernel does not make wait. -ENOMEM,
# or -ENODEV after the end.
cdef int queue_notice(void *connection, const char *data, uint32_t length) noexcept nogil
cdef int tell_kernel(void *connection, const char *data, uint32_t length) noexcept nogil
# What a volume asks of its device (pending.pxd).
cdef const device_calls_t *connection_calls() noexcept nogil
