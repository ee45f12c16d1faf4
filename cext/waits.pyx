"""The device's waiting requests: those that wait for a lock or a filter without a thread.

    reader ── request_run() stops ──► waits_take() ──► parked in the lock table (locks.pyx)
                                          │                   │ released, interrupted, time for another try
    /dev/fuse ◄── answer ◄── request_run() ◄── the thread ◄── queue
                                          │
                                          └──────────► parked with the filter that holds it (pending.pyx)
                                                              │ completed, in whatever thread
    /dev/fuse ◄── answer ◄── request_run() ◄──────────────────┘ goes on right there

A SETLKW may wait for days, a filter may hold what it likes, and any number of requests may wait: none holds a thread.
Whoever releases a lock may be deep inside a walk of the stack, so it only puts the request into a queue. The thread, which
starts with the first lock that has to wait, tries again and answers; it also looks every LOCK_RETRY milliseconds whether a
lock that is held beside the mount is free, as long as somebody waits for one. What a filter held goes on in the thread
that completes it, as on every lane.

A request belongs to whoever carries it on from waits_take() on, and to nobody else; while it is parked, to the lock table
or the filter. `lock` is a leaf, never held across a call to the stack.
"""

from libc.stdint cimport uint64_t
from posix.time cimport timespec

from stackfs.cext.answers cimport answer_encode, answer_listing
from stackfs.cext.connection cimport answer_error, note_interrupt, take_open, write_answer
from stackfs.cext.locks cimport LOCK_RETRY, lock_wait_t
from stackfs.cext.pending cimport holds_cancel, holds_leave, holds_t
from stackfs.cext.requests cimport (
    request_abandon, request_free, request_is_held, request_outermost, request_park, request_run, vfs_request_t,
    volume_cancel_locks, volume_interrupt, volume_retry_locks)
from stackfs.cext.threads cimport *

cdef extern from "<errno.h>" nogil:
    int ENOLCK

cdef void waits_init(waits_t *waits, connection_t *connection) noexcept nogil:
    waits.connection = connection
    pthread_mutex_init(&waits.lock, NULL)
    init_condition(&waits.changed)


cdef void waits_free(waits_t *waits) noexcept nogil:
    pthread_cond_destroy(&waits.changed)
    pthread_mutex_destroy(&waits.lock)


cdef void waits_stop(waits_t *waits) noexcept nogil:
    """What filters hold is only cancelled: some let go of it no sooner than they are torn down."""
    holds_cancel(waits.volume.holds, 0, NULL)
    if not waits.has_thread:
        return
    volume_cancel_locks(waits.volume)
    pthread_mutex_lock(&waits.lock)
    waits.stop = 1
    pthread_cond_broadcast(&waits.changed)
    pthread_mutex_unlock(&waits.lock)
    pthread_join(waits.thread, NULL)
    waits.has_thread = 0


cdef void waits_settle(waits_t *waits) noexcept nogil:
    pthread_mutex_lock(&waits.lock)
    while waits.count:
        pthread_cond_wait(&waits.changed, &waits.lock)
    pthread_mutex_unlock(&waits.lock)


cdef void waits_take(waits_t *waits, vfs_request_t *request) noexcept nogil:
    if request.message == NULL:
        request.name = request.name2 = NULL             # the message does not outlive this call
        request.buffer = NULL
    pthread_mutex_lock(&waits.lock)
    waits.count += 1
    pthread_mutex_unlock(&waits.lock)
    if not park(waits, request):
        carry_on(waits, request)


cdef int waits_interrupt(waits_t *waits, uint64_t unique) noexcept nogil:
    """In this order: who may wait for a lock is in the lock table before it is among the open ones, and after; who comes
    to be held looks among the open ones after he can be found."""
    if not note_interrupt(waits.connection, unique):
        return 1
    volume_interrupt(waits.volume, unique)
    return 0


cdef bint park(waits_t *waits, vfs_request_t *request) noexcept nogil:
    """True: it is the lock table's now, or the filter's, or has been given up. False: it is worth another try."""
    cdef bint held = request_is_held(request)
    cdef bint ready = True
    request.waiting.woken = woken
    request.waiting.context = waits
    if not held:
        pthread_mutex_lock(&waits.lock)
        if not waits.has_thread and not waits.stop:
            waits.has_thread = start_thread(&waits.thread, waits_main, waits) == 0
        ready = waits.has_thread and not waits.stop
        waits.waiting += ready
        pthread_mutex_unlock(&waits.lock)
    if not ready:
        request_abandon(request)
        request.error = ENOLCK
        end(waits, request)
        return True
    if request_park(request, completed):
        if not held:
            retry_soon(waits)
        return True
    if not held:
        pthread_mutex_lock(&waits.lock)
        waits.waiting -= 1
        pthread_mutex_unlock(&waits.lock)
    return False


cdef void retry_soon(waits_t *waits) noexcept nogil:
    pthread_mutex_lock(&waits.lock)
    if not waits.retry:
        waits.retry = 1
        pthread_cond_broadcast(&waits.changed)
    pthread_mutex_unlock(&waits.lock)


cdef void carry_on(waits_t *waits, vfs_request_t *request) noexcept nogil:
    """Until it is done and answered, or waits again."""
    cdef bint lists = request.listing != NULL
    cdef size_t length = 0
    cdef int done = 0
    while done != 1:
        if lists:
            done = answer_listing(request, request.answer, &length)
        else:
            done = request_run(request)      # refused as fast I/O, it is run again right here
        if done == 0 and park(waits, request):
            return
    if request.answer != NULL:
        if not lists:
            length = answer_encode(request, request.answer)
        if take_open(waits.connection, request.unique):
            write_answer(waits.connection, request.answer, length)
    end(waits, request)


cdef void end(waits_t *waits, vfs_request_t *request) noexcept nogil:
    answer_error(waits.connection, request.unique, request.error)       # unless it has been answered
    request_free(request)
    pthread_mutex_lock(&waits.lock)
    waits.count -= 1
    pthread_cond_broadcast(&waits.changed)
    pthread_mutex_unlock(&waits.lock)


cdef void completed(void *at) noexcept nogil:
    """By the filter that held it. The volume lives until holds_leave(), this until its request has ended."""
    cdef vfs_request_t *request = request_outermost(at)
    cdef waits_t *waits = <waits_t *>request.waiting.context
    cdef holds_t *holds = request.volume.holds
    carry_on(waits, request)
    holds_leave(holds)


cdef void woken(lock_wait_t *waiting) noexcept nogil:
    cdef waits_t *waits = <waits_t *>waiting.context
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


cdef void *waits_main(void *argument) noexcept nogil:
    cdef waits_t *waits = <waits_t *>argument
    cdef vfs_request_t *request
    cdef timespec next_try
    cdef int waiting
    pthread_setname_np(pthread_self(), "stackfs-locks")
    python_attach()
    monotonic_deadline(&next_try, LOCK_RETRY * 1000000)
    pthread_mutex_lock(&waits.lock)
    while not (waits.stop and not waits.waiting):
        request = waits.first
        if request != NULL:
            waits.first = request.next
            if waits.first == NULL:
                waits.last = NULL
            waits.waiting -= 1
            pthread_mutex_unlock(&waits.lock)
            carry_on(waits, request)
            pthread_mutex_lock(&waits.lock)
        elif not waits.retry:
            pthread_cond_wait(&waits.changed, &waits.lock)
            monotonic_deadline(&next_try, LOCK_RETRY * 1000000)
        elif pthread_cond_timedwait(&waits.changed, &waits.lock, &next_try):
            waits.retry = 0                             # who parks from here on sets it again
            pthread_mutex_unlock(&waits.lock)
            waiting = volume_retry_locks(waits.volume) != 0
            monotonic_deadline(&next_try, LOCK_RETRY * 1000000)
            pthread_mutex_lock(&waits.lock)
            waits.retry |= waiting
    pthread_mutex_unlock(&waits.lock)
    python_detach()
    return NULL
