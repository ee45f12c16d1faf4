"""The device's waiting locks: requests that wait without a thread, and the one thread that goes on with them.

    reader ── request_run() stops ──► lock_waits_take() ──► parked in the lock table (locks.pyx)
                                                                │ released, interrupted, time for another try
    /dev/fuse ◄── answer ◄── request_run() ◄── the thread ◄── queue

A SETLKW may wait for days, and any number of them may: none holds a thread. Whoever releases a lock may be deep inside a
walk of the stack, so it only puts the request into a queue. The thread, which starts with the first lock that has to wait,
tries again and answers; it also looks every LOCK_RETRY milliseconds whether a lock that is held beside the mount is free,
as long as somebody waits for one.

A request belongs to the thread from lock_waits_take() on, and to nobody else; while it is parked, to the lock table.
`lock` is a leaf, never held across a call to the stack.
"""

from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from stackfs.cext.connection cimport answer_error, is_open
from stackfs.cext.locks cimport LOCK_RETRY, lock_wait_t
from stackfs.cext.requests cimport (
    request_abandon, request_free, request_park, request_run, vfs_request_t, volume_cancel_locks, volume_interrupt,
    volume_retry_locks)
from stackfs.cext.threads cimport *

cdef extern from "<errno.h>" nogil:
    int ENOLCK

cdef enum:
    SECOND = 1000000000


cdef void lock_waits_init(lock_waits_t *waits, connection_t *connection) noexcept nogil:
    waits.connection = connection
    pthread_mutex_init(&waits.lock, NULL)
    init_condition(&waits.changed)


cdef void lock_waits_free(lock_waits_t *waits) noexcept nogil:
    pthread_cond_destroy(&waits.changed)
    pthread_mutex_destroy(&waits.lock)


cdef void lock_waits_stop(lock_waits_t *waits) noexcept nogil:
    if not waits.has_thread:
        return
    volume_cancel_locks(waits.volume)
    pthread_mutex_lock(&waits.lock)
    waits.stop = 1
    pthread_cond_broadcast(&waits.changed)
    pthread_mutex_unlock(&waits.lock)
    pthread_join(waits.thread, NULL)
    waits.has_thread = 0


cdef void lock_waits_take(lock_waits_t *waits, vfs_request_t *request) noexcept nogil:
    request.name = NULL                                 # the message does not outlive this call
    request.name2 = NULL
    request.buffer = NULL
    pthread_mutex_lock(&waits.lock)
    if not waits.has_thread:
        waits.has_thread = start_thread(&waits.thread, waits_main, waits) == 0
    waits.count += waits.has_thread
    pthread_mutex_unlock(&waits.lock)
    if waits.has_thread:
        if not park(waits, request):
            go_on(waits, request)
        return
    request_abandon(request)
    answer_error(waits.connection, request.unique, ENOLCK)
    request_free(request)


cdef int lock_waits_interrupt(lock_waits_t *waits, uint64_t unique) noexcept nogil:
    """In this order: who may wait for a lock is in the lock table before it is among the open ones, and after."""
    if not is_open(waits.connection, unique):
        return 1
    volume_interrupt(waits.volume, unique)
    return 0


cdef bint park(lock_waits_t *waits, vfs_request_t *request) noexcept nogil:
    """True: it is the lock table's now. False: it is worth another try."""
    request.waiting.woken = woken
    request.waiting.context = waits
    if not request_park(request):
        return False
    pthread_mutex_lock(&waits.lock)
    if not waits.retry:
        waits.retry = 1
        pthread_cond_broadcast(&waits.changed)
    pthread_mutex_unlock(&waits.lock)
    return True


cdef void go_on(lock_waits_t *waits, vfs_request_t *request) noexcept nogil:
    while not request_run(request):
        if park(waits, request):
            return
    answer_error(waits.connection, request.unique, request.error)
    request_free(request)
    pthread_mutex_lock(&waits.lock)
    waits.count -= 1
    pthread_cond_broadcast(&waits.changed)
    pthread_mutex_unlock(&waits.lock)


cdef void woken(lock_wait_t *waiting) noexcept nogil:
    cdef lock_waits_t *waits = <lock_waits_t *>waiting.context
    cdef vfs_request_t *request = request_of(waiting)
    request.next = NULL
    pthread_mutex_lock(&waits.lock)
    if waits.last == NULL:
        waits.first = request
    else:
        waits.last.next = request
    waits.last = request
    pthread_cond_broadcast(&waits.changed)
    pthread_mutex_unlock(&waits.lock)


cdef inline vfs_request_t *request_of(lock_wait_t *waiting) noexcept nogil:
    return <vfs_request_t *>(<char *>waiting - <size_t>&(<vfs_request_t *>NULL).waiting)


cdef void later(timespec *when) noexcept nogil:
    clock_gettime(CLOCK_MONOTONIC, when)
    when.tv_nsec += LOCK_RETRY * 1000000
    if when.tv_nsec >= SECOND:
        when.tv_nsec -= SECOND
        when.tv_sec += 1


cdef void *waits_main(void *argument) noexcept nogil:
    cdef lock_waits_t *waits = <lock_waits_t *>argument
    cdef vfs_request_t *request
    cdef timespec next_try
    cdef int waiting
    pthread_setname_np(pthread_self(), "stackfs-locks")
    python_attach()
    later(&next_try)
    pthread_mutex_lock(&waits.lock)
    while not (waits.stop and waits.count == 0):
        request = waits.first
        if request != NULL:
            waits.first = request.next
            if waits.first == NULL:
                waits.last = NULL
            pthread_mutex_unlock(&waits.lock)
            go_on(waits, request)
            pthread_mutex_lock(&waits.lock)
        elif not waits.retry:
            pthread_cond_wait(&waits.changed, &waits.lock)
            later(&next_try)
        elif pthread_cond_timedwait(&waits.changed, &waits.lock, &next_try):
            waits.retry = 0                             # who parks from here on sets it again
            pthread_mutex_unlock(&waits.lock)
            waiting = volume_retry_locks(waits.volume) != 0
            later(&next_try)
            pthread_mutex_lock(&waits.lock)
            waits.retry |= waiting
    pthread_mutex_unlock(&waits.lock)
    python_detach()
    return NULL
