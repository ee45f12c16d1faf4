"""Whose turn it is to read the device: as few threads as will do, and always one that can.

The kernel wakes the thread that has waited longest in read(2), so with several of them each request goes to another one,
on a cold cache and often on another processor. One thread that reads, serves and reads again is both faster and cheaper,
as long as what it serves does not wait. So

    - a request that has to wait (turn_given: a cold read, an fsync, a large transfer) first sees to it that another thread
      reads. As many threads then read as there have of late been such requests at once, and one
      more: where they are common nobody has to be called;
    - one that calls what may wait (a Python callback) does so too, while such calls have of late taken LONG;
    - whoever is done, and finds that enough others read, parks; who parked last is called first;
    - one of the parked looks on, every LOOK nanoseconds while messages come: where nobody reads and nothing has moved
      since it last looked, a request has waited that had not said so, and it reads itself.

Concurrency: any thread, without the GIL. `lock` is a leaf, never held across a system call but a condition's own.
`reading` counts who reads or is on the way there; who calls a parked thread counts on its behalf. A message counts in
`taken` before `unwatched` is looked at, and `unwatched` is set before `taken` is looked at again (both sequentially
consistent), so one of the two sees the other.
"""

from libc.stdint cimport int64_t, uint64_t
from posix.time cimport timespec

from stackfs.cext.threads cimport *

cdef extern from *:
    """
    #define count_taken(at) __atomic_add_fetch(at, 1, __ATOMIC_SEQ_CST)
    #define see_taken(at)   __atomic_load_n(at, __ATOMIC_SEQ_CST)
    #define see_flag(at)    __atomic_load_n(at, __ATOMIC_SEQ_CST)
    """
    uint64_t count_taken(uint64_t *at) nogil
    uint64_t see_taken(uint64_t *at) nogil
    int see_flag(int *at) nogil

cdef enum:
    LOOK = 2000000                       # nanoseconds
    IDLE_LOOKS = 5                       # so many looks without a message, and the one that looks on sleeps
    LONG = 100000                        # nanoseconds
    SLOW_FOR = 64                        # calls that take less, and one that took longer is forgotten
    WINDOW = 256                         # messages after which what was needed is reckoned anew; a power of two


cdef void turns_init(turns_t *turns, int most) noexcept nogil:
    turns.most = most
    turns.wanted = turns.needed = turns.busy = 1
    turns.top = NULL
    pthread_mutex_init(&turns.lock, NULL)


cdef void turns_free(turns_t *turns) noexcept nogil:
    pthread_mutex_destroy(&turns.lock)


cdef void turns_stop(turns_t *turns) noexcept nogil:
    cdef parked_t *parked
    pthread_mutex_lock(&turns.lock)
    turns.stopping = 1
    parked = turns.top
    while parked != NULL:
        pthread_cond_signal(&parked.changed)
        parked = parked.below
    pthread_mutex_unlock(&turns.lock)


cdef bint turn_taken(turns_t *turns) noexcept nogil:
    cdef bint last = add_int(&turns.reading, -1) == 0
    if count_taken(&turns.taken) % WINDOW == 0:
        store_int(&turns.wanted, max(exchange_int(&turns.needed, load_int(&turns.waiting) + 1), load_int(&turns.busy)))
    if see_flag(&turns.unwatched):
        watch_again(turns)
    return last and load_int(&turns.parked) == 0


cdef void watch_again(turns_t *turns) noexcept nogil:
    pthread_mutex_lock(&turns.lock)
    if turns.unwatched:
        store_int(&turns.unwatched, 0)
        turns.idle = 0
        if turns.top != NULL:
            pthread_cond_signal(&turns.top.changed)
    pthread_mutex_unlock(&turns.lock)


cdef bint turn_given(turns_t *turns) noexcept nogil:
    cdef int enough = add_int(&turns.waiting, 1) + 1
    if enough > load_int(&turns.needed):                # two at once may count as one: the next will count
        store_int(&turns.needed, enough)
    if enough > load_int(&turns.wanted):
        store_int(&turns.wanted, enough)
    return nobody_can_read(turns)


cdef bint turn_sees(turns_t *turns, bint more) noexcept nogil:
    cdef int busy = load_int(&turns.busy)
    if not more:
        if busy > 1:
            store_int(&turns.busy, busy - 1)
        return False
    if busy < turns.most:
        busy += 1
        store_int(&turns.busy, busy)
    if busy > load_int(&turns.wanted):
        store_int(&turns.wanted, busy)
    return busy > 1 and nobody_can_read(turns)


cdef bint turn_at_risk(turns_t *turns) noexcept nogil:
    return load_int(&turns.slow) > 0


cdef void turn_took(turns_t *turns, int64_t time) noexcept nogil:
    cdef int slow = load_int(&turns.slow)
    if time > LONG:
        store_int(&turns.slow, SLOW_FOR)
    elif slow:
        store_int(&turns.slow, slow - 1)                # two at once may count as one


cdef bint nobody_can_read(turns_t *turns) noexcept nogil:
    """Calls a parked thread where nobody reads. True: there is none."""
    cdef bint nobody = False
    if load_int(&turns.reading) > 0:
        return False
    pthread_mutex_lock(&turns.lock)
    if load_int(&turns.reading) == 0:
        nobody = not call_one(turns)
    pthread_mutex_unlock(&turns.lock)
    return nobody


cdef bint call_one(turns_t *turns) noexcept nogil:
    """Under lock. False: nobody is parked."""
    cdef parked_t *parked = turns.top
    if parked == NULL:
        return False
    unpark(turns, parked)
    parked.called = True
    add_int(&turns.reading, 1)
    pthread_cond_signal(&parked.changed)
    return True


cdef void unpark(turns_t *turns, parked_t *parked) noexcept nogil:
    """Under lock: off the list."""
    cdef parked_t **place = &turns.top
    while place[0] != parked:
        place = &place[0].below
    place[0] = parked.below
    store_int(&turns.parked, turns.parked - 1)


cdef bint turn_next(turns_t *turns, bint given) noexcept nogil:
    cdef parked_t me
    cdef bint watched = False
    if given:
        add_int(&turns.waiting, -1)
    if load_int(&turns.reading) < load_int(&turns.wanted):
        add_int(&turns.reading, 1)
        return True
    init_condition(&me.changed)
    me.called = False
    pthread_mutex_lock(&turns.lock)
    me.below = turns.top
    turns.top = &me
    store_int(&turns.parked, turns.parked + 1)
    while not me.called and not turns.stopping:
        if turns.watched or turns.unwatched:
            pthread_cond_wait(&me.changed, &turns.lock)
        else:
            watched = True
            look_on(turns, &me)
    if not me.called:
        unpark(turns, &me)
    elif watched and turns.top != NULL:
        pthread_cond_signal(&turns.top.changed)         # somebody else looks on
    pthread_mutex_unlock(&turns.lock)
    pthread_cond_destroy(&me.changed)
    return me.called


cdef void look_on(turns_t *turns, parked_t *me) noexcept nogil:
    """Under lock: wait, then look whether messages are still taken by somebody."""
    cdef uint64_t before = see_taken(&turns.taken)
    cdef timespec until
    monotonic_deadline(&until, LOOK)
    turns.watched = 1
    pthread_cond_timedwait(&me.changed, &turns.lock, &until)
    turns.watched = 0
    if me.called or turns.stopping:
        return
    if see_taken(&turns.taken) != before:
        turns.idle = 0
    elif load_int(&turns.reading) == 0:
        call_one(turns)                                 # whose cache is the warmest; this one looks on
    else:
        turns.idle += 1
        if turns.idle >= IDLE_LOOKS:
            store_int(&turns.unwatched, 1)
            if see_taken(&turns.taken) != before:       # it may have been too late to be seen there
                store_int(&turns.unwatched, 0)
                turns.idle = 0
