# Whose turn it is to read the device (turns.pyx).

from libc.stdint cimport int64_t, uint64_t
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t

cdef struct parked_t:                    # on the stack of the thread that is parked
    pthread_cond_t changed               # it is called, shall look on, or shall stop
    bint called                          # counted in `reading`, off the list, and is to read
    parked_t *below                      # who was parked before it

cdef struct turns_t:
    int reading                          # atomic: threads that wait for a message, or are about to
    int wanted                           # atomic: how many shall
    int needed                           # atomic: how many would have been enough of late
    int most                             # constant: so many at once are worth it, where messages queue up
    int busy                             # atomic: so many are of late, of those `most`
    int waiting                          # atomic: requests under way that may have to wait
    uint64_t taken                       # atomic: messages
    int unwatched                        # atomic: nothing came for a while, and the one that looks on sleeps until something does
    int slow                             # atomic: requests with callbacks that shall give their turn away beforehand
    int parked                           # under lock, also read atomically
    char _line[64]
    pthread_mutex_t lock
    parked_t *top                        # who was parked last: its cache is the warmest, so it is called first
    int watched                          # one of the parked looks on
    int idle                             # looks that saw nothing happen
    int stopping

cdef void turns_init(turns_t *turns, int most) noexcept nogil
cdef void turns_free(turns_t *turns) noexcept nogil
cdef void turns_stop(turns_t *turns) noexcept nogil            # parked threads come back, now and from now on

# The caller has a message. True: nobody reads any more, and nobody could be called: start one more thread.
cdef bint turn_taken(turns_t *turns) noexcept nogil
# The caller's request may have to wait: somebody else shall read. True: there is nobody: start one more thread. Once a request.
cdef bint turn_given(turns_t *turns) noexcept nogil
# The caller's request is about to call what may take long: is it to give its turn away first?
cdef bint turn_at_risk(turns_t *turns) noexcept nogil
# The call, and what followed, took so many nanoseconds.
cdef void turn_took(turns_t *turns, int64_t time) noexcept nogil
# The caller has served a message, and looked whether there is another already. True: start one more thread.
cdef bint turn_sees(turns_t *turns, bint more) noexcept nogil
# The caller's request is done (given: it had given its turn away). Returns when the caller is to read again; False: never.
cdef bint turn_next(turns_t *turns, bint given) noexcept nogil
