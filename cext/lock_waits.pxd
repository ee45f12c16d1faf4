# The device's waiting locks: requests that wait without a thread, and the one thread that goes on with them (lock_waits.pyx).

from libc.stdint cimport uint64_t
from stackfs.cext.connection cimport connection_t
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from stackfs.cext.requests cimport vfs_request_t
from stackfs.cext.stack cimport FLT_VOLUME

cdef struct lock_waits_t:
    connection_t *connection
    FLT_VOLUME *volume
    pthread_mutex_t lock
    pthread_cond_t changed
    vfs_request_t *first                 # worth another try, by `next`
    vfs_request_t *last
    int count                            # requests that are here, parked or not
    int retry                            # somebody may have parked since locks beside the mount were last tried
    int stop
    int has_thread
    pthread_t thread

cdef void lock_waits_init(lock_waits_t *waits, connection_t *connection) noexcept nogil
cdef void lock_waits_free(lock_waits_t *waits) noexcept nogil
# A request that stopped for a lock (request_run() == 0). Owns it, and answers it once it is done.
cdef void lock_waits_take(lock_waits_t *waits, vfs_request_t *request) noexcept nogil
# INTERRUPT of a request: 1: to be sent again, since it may still be on its way.
cdef int lock_waits_interrupt(lock_waits_t *waits, uint64_t unique) noexcept nogil
# Nobody hands any over any more: ends those that wait, and the thread.
cdef void lock_waits_stop(lock_waits_t *waits) noexcept nogil
