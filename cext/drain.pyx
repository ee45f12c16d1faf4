"""Draining: which operations still use an instance that leaves, and which give its post up early (docs/semantics.md, A3.10).

drain.pxd has the protocol between those who walk operations and those who drain. Under FLT_VOLUME.lock an operation
cannot leave its list. A drain looks and takes under it, and calls without it: what it has taken cannot end either, since
its owner waits before the way up.
"""

from libc.stdint cimport uint32_t
from stackfs.cext.callback_data cimport FLT_INSTANCE, FLT_VOLUME
from stackfs.cext.stack cimport (
    OPERATION_DONE, OPERATION_GOING_DOWN, OPERATION_GOING_UP, OPERATION_PENDED_POST, OPERATION_PENDED_PRE,
    call_post_function, callback_list_t, operation_t)
from stackfs.cext.threads cimport stackfs_spin_lock, stackfs_spin_unlock

cdef extern from *:
    """
    #include <linux/membarrier.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static int stackfs_membarriers(void) {
        return syscall(__NR_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
    }
    static void stackfs_all_threads_see(void) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        syscall(__NR_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    static inline int stackfs_take(int *what, int value) {
        int nobody = 0;
        return __atomic_compare_exchange_n(what, &nobody, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static inline void *stackfs_wanted(void **what) { return __atomic_load_n(what, __ATOMIC_ACQUIRE); }
    static int stackfs_drains;
    static inline int stackfs_new_drain(void) { return __atomic_add_fetch(&stackfs_drains, 1, __ATOMIC_RELAXED) | 1 << 30; }
    """
    int stackfs_membarriers() nogil
    void stackfs_all_threads_see() nogil
    bint stackfs_take(int *what, int value) nogil
    int stackfs_new_drain() nogil
    void *stackfs_wanted(void **what) nogil

cdef bint can_drain = stackfs_membarriers()

ctypedef enum use_t:
    USE_NONE
    USE_OWED                             # its post is owed, and nothing else binds it
    USE_BOUND                            # its callback runs or has pended it, what it changed is on its way, or its status is wanted


cdef void all_threads_see() noexcept nogil:
    if can_drain:
        stackfs_all_threads_see()


cdef int position_of(const callback_list_t *callbacks, const FLT_INSTANCE *instance) noexcept nogil:
    """Its layer in this list; -1: it is not on it."""
    cdef uint32_t i
    for i in range(callbacks.count):
        if callbacks.callbacks[i].instance is instance:
            return <int>i
    return -1


cdef use_t use_of(operation_t *op, int layer) noexcept nogil:
    """What an operation still has to do with a layer whose instance leaves. Under FLT_VOLUME.lock, or having taken it."""
    cdef int index = stackfs_acquire(&op.index)
    cdef int state = stackfs_acquire(&op.state)
    cdef bint owed
    if index <= layer:
        return USE_NONE if can_drain else USE_BOUND
    if state == OPERATION_DONE:
        return USE_NONE
    if (state == OPERATION_GOING_DOWN or state == OPERATION_PENDED_PRE) and index == layer + 1:
        return USE_BOUND
    owed = op.layers[layer].post_owed != 0
    if (state == OPERATION_GOING_UP or state == OPERATION_PENDED_POST) and op.bottom <= layer:
        return USE_BOUND if owed and op.bottom == layer else USE_NONE
    if op.layers[layer].parameters is not NULL or stackfs_wanted(&op.status_wanted) is not NULL:
        return USE_BOUND
    return USE_OWED if owed else USE_NONE


cdef long drain_list(FLT_VOLUME *volume, callback_list_t *callbacks, const FLT_INSTANCE *instance,
                     call_post_function call_post) noexcept nogil:
    cdef int drain = stackfs_new_drain()
    cdef int layer = position_of(callbacks, instance)
    cdef operation_t *op
    cdef operation_t *taken = NULL
    cdef long users = 0, wanted = 0
    cdef use_t use
    stackfs_spin_lock(&volume.lock)
    op = callbacks.operations
    while op is not NULL:
        use = use_of(op, layer)
        users += use != USE_NONE
        if call_post is not NULL and can_drain and use == USE_OWED and stackfs_take(&op.drained_by, drain):
            wanted += 1
        op = op.next
    stackfs_spin_unlock(&volume.lock)
    if wanted == 0:
        return users
    all_threads_see()
    users = 0
    stackfs_spin_lock(&volume.lock)
    op = callbacks.operations
    while op is not NULL:
        use = use_of(op, layer)
        users += use != USE_NONE
        if stackfs_acquire(&op.drained_by) == drain:
            if use == USE_OWED and not stackfs_acquire(&op.owner_busy):
                op.next_drained = taken
                taken = op
            else:
                stackfs_release(&op.drained_by, 0)
        op = op.next
    stackfs_spin_unlock(&volume.lock)
    while taken is not NULL:
        op = taken
        taken = op.next_drained
        call_post(op, layer)
        users -= 1
        stackfs_release(&op.drained_by, 0)
    return users
