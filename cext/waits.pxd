# The device's waiting requests: those that wait for a lock or a filter without a thread (waits.pyx).

from libc.stdint cimport uint64_t
from stackfs.cext.connection cimport connection_t
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from stackfs.cext.requests cimport vfs_request_t
from stackfs.cext.stack cimport FLT_VOLUME

cdef struct waits_t:
    connection_t *connection
    FLT_VOLUME *volume
    pthread_mutex_t lock
    pthread_cond_t changed
    vfs_request_t *first                 # worth another try, by `next`
    vfs_request_t *last
    int count                            # requests that are here, parked or not
    int waiting                          # those of them that are parked for a lock, or in the queue
    int retry                            # somebody may have parked since locks beside the mount were last tried
    int stop
    int has_thread
    pthread_t thread

cdef void waits_init(waits_t *waits, connection_t *connection) noexcept nogil
cdef void waits_free(waits_t *waits) noexcept nogil
# A request that stopped for a lock or a filter. Owns it, and answers it once it is done; what it works on is in
# request.message and request.answer, unless it needs neither.
cdef void waits_take(waits_t *waits, vfs_request_t *request) noexcept nogil
# INTERRUPT of a request: 1: to be sent again, since it may still be on its way.
cdef int waits_interrupt(waits_t *waits, uint64_t unique) noexcept nogil
# Nobody hands any over any more: cancels what waits, and ends the thread.
cdef void waits_stop(waits_t *waits) noexcept nogil
# Waits until nothing is left that a filter holds, or a thread that completed it carries on.
cdef void waits_settle(waits_t *waits) noexcept nogil
