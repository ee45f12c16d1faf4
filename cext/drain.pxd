# Draining (docs/semantics.md, A3.10): taking the post callbacks of an instance that leaves out of operations that others
# still hold, early (drain.pyx).
#
# The operations of a list are found through the list. One that has not come to the instance yet will pass it by: it
# stores its index, and then looks at INSTANCE_LEAVING. One that is owed the instance's post is not touched by its owner
# in what a drain reads, except in two places: where the owner goes up, and where it changes the parameters that go down.
# There it says owner_busy, and then looks at drained_by; the drain says drained_by, and then looks at owner_busy. So one of
# the two always sees the other: a drain leaves a busy operation alone, an owner waits until the drain has let go.
#
# "And then" has to hold between processors, which on the owner's side would cost every operation a fence. membarrier(2)
# makes each thread of the process run one instead, when a drain asks for it; the owner's side needs to keep the
# compiler from reordering, and nothing else. Where the kernel does not have it, nothing is drained early, and an
# instance waits until no operation is on a list that has it.
#
# Under FLT_VOLUME.lock an operation of a list cannot end. A drain looks and takes under it, and calls without it: what it
# has taken cannot end either, since its owner waits before the way up.

from stackfs.cext.callback_data cimport FLT_INSTANCE, FLT_VOLUME
from stackfs.cext.stack cimport call_post_function, callback_list_t, operation_t

cdef extern from *:
    """
    #include <time.h>
    #define stackfs_come_to(at, value) \
        do { __atomic_store_n(at, value, __ATOMIC_RELEASE); __atomic_signal_fence(__ATOMIC_SEQ_CST); } while (0)
    #define stackfs_release(at, value) __atomic_store_n(at, value, __ATOMIC_RELEASE)
    static inline int stackfs_acquire(const void *what) { return __atomic_load_n((const int *)what, __ATOMIC_ACQUIRE); }
    static inline void stackfs_drain_pause(void) { struct timespec t = {0, 50000}; nanosleep(&t, NULL); }
    """
    void stackfs_come_to(int *at, int value) nogil
    void stackfs_release(int *at, int value) nogil
    int stackfs_acquire(const void *what) nogil
    void stackfs_drain_pause() nogil

# The owner's side: come_to() stores an index, or owner_busy, before what is looked at next.
cdef inline void come_to(int *at, int value) noexcept nogil:
    stackfs_come_to(at, value)

cdef inline void owner_enter(operation_t *op) noexcept nogil:
    stackfs_come_to(&op.owner_busy, 1)
    while stackfs_acquire(&op.drained_by):
        stackfs_drain_pause()

cdef inline void owner_leave(operation_t *op) noexcept nogil:
    stackfs_release(&op.owner_busy, 0)

# The drain's side. call_post() is given an operation that is owed the post of this layer, and calls it on a copy.
cdef void all_threads_see() noexcept nogil                                                     # what this thread has stored
cdef int position_of(const callback_list_t *callbacks, const FLT_INSTANCE *instance) noexcept nogil        # its layer, or -1
# How many of a list's operations use the instance; call_post not NULL: after those that can be drained have been.
cdef long drain_list(FLT_VOLUME *volume, callback_list_t *callbacks, const FLT_INSTANCE *instance,
                     call_post_function call_post) noexcept nogil
