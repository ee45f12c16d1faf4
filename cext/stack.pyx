"""The filter stack of one volume: callback lists by operation, and the walk down and up (docs/semantics.md, A1, A4, A6).

The walk is operation_run(). It goes down the callback list, highest altitude first, shows each pre callback a copy of
the parameters as they have become, reaches the base, and goes up in exactly reverse order. A layer's changes count
when it set DIRTY and returned what is legal; what it received itself is put back before its post callback runs, so
that a filter's pre and post always see the same parameters. The walk never waits: where the base would block, or a filter
keeps the operation, it stops, leaves everything in operation_t, and is resumed by whoever did the waiting, or by the
thread that completes what was kept (pending.pyx).

Who may touch what: callback lists are immutable once published. FLT_VOLUME.lists is read and replaced under
FLT_VOLUME.lock, a spin lock held for a few instructions. Under it an operation is entered into its list's own list of
operations, which holds it as a reference does; a replaced list is freed when it has neither, and until then its instances
live. An operation_t belongs to one thread at a time, but for what a drain reads of it (drain.pxd). Stack and
InstanceEntry are used under the GIL, by the thread that manages the volume, Stack.drain() by any.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from stackfs.cext.buffers cimport mdls_free, passed_down_release, system_buffer_swapped, take_back
from stackfs.cext.callback_data cimport (
    CallbackData, FILTER_ABI, FLTFL_CALLBACK_DATA_DIRTY, FLTFL_CALLBACK_DATA_DRAINING_IO, FLTFL_CALLBACK_DATA_FAST_IO_OPERATION,
    FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION, FLTFL_CALLBACK_DATA_IRP_OPERATION, FLTFL_CALLBACK_DATA_POST_OPERATION,
    FLTFL_CALLBACK_DATA_SYSTEM_BUFFER,
    FLTFL_OPERATION_REGISTRATION_SKIP_CACHED_IO, FLTFL_OPERATION_REGISTRATION_SKIP_NON_CACHED_NON_PAGING_IO,
    FLTFL_OPERATION_REGISTRATION_SKIP_NON_DASD_IO, FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO,
    FLTFL_POST_OPERATION_DRAINING,
    FLT_POSTOP_DISALLOW_FSFILTER_IO, FLT_POSTOP_FINISHED_PROCESSING, FLT_POSTOP_MORE_PROCESSING_REQUIRED,
    FLT_PREOP_COMPLETE, FLT_PREOP_DISALLOW_FASTIO, FLT_PREOP_DISALLOW_FSFILTER_IO, FLT_PREOP_PENDING,
    FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_PREOP_SYNCHRONIZE, FLT_RELATED_OBJECTS,
    FO_VOLUME_OPEN, IO_STATUS_BLOCK, IRP_MJ_CREATE, IRP_MJ_DEVICE_CHANGE,
    IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE, IRP_MJ_PNP, IRP_MJ_POWER, IRP_MJ_QUERY_OPEN, IRP_MJ_READ,
    IRP_MJ_VOLUME_DISMOUNT, IRP_MJ_WRITE,
    IRP_NOCACHE, IRP_PAGING_IO, callback_data_new)
from stackfs.cext.drain cimport (
    all_threads_see, come_to, drain_list, owner_enter, owner_leave, position_of)
from stackfs.cext.contexts cimport volume_contexts_close
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.inode_table cimport inode_table_t, name_cache_purge
from stackfs.cext.paths cimport operation_path
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, STATUS_FLT_DISALLOW_FAST_IO, STATUS_FLT_INTERNAL_ERROR, STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST,
    STATUS_FLT_POST_OPERATION_CLEANUP, STATUS_IO_DEVICE_ERROR, STATUS_PENDING, STATUS_REPARSE, STATUS_SUCCESS)
from stackfs.cext.operation_status cimport tell_status
from stackfs.cext.pending cimport (
    HOLD_CANCELLED, HOLD_RAISED, PASSIVE_LEVEL, callback_enter, callback_frame_t, callback_leave, hold_forget, hold_taken_over,
    holds_free, holds_new, holds_on_list, operation_hold, operation_irql)
from stackfs.cext.threads cimport add_int, load_bits, monotonic_time, stackfs_spin_lock, stackfs_spin_unlock
from stackfs.cext.verifier cimport (
    verified_post, verified_pre, verifier_complains, verifier_encloses, verifier_on, verify_completed_pre)
from stackfs.cext.python_contexts cimport FilterContexts, VolumeContexts
from stackfs.cext.python_names cimport InstanceNames, NameProvider

from inspect import iscoroutinefunction
from os import fsdecode


cdef extern from *:
    """
    static inline long stackfs_add(long *what, long by) { return __atomic_add_fetch(what, by, __ATOMIC_ACQ_REL); }
    static inline long stackfs_load(long *what) { return __atomic_load_n(what, __ATOMIC_ACQUIRE); }
    #define stackfs_load_list(at)        __atomic_load_n(at, __ATOMIC_RELAXED)
    #define stackfs_store_list(at, list) __atomic_store_n(at, list, __ATOMIC_RELAXED)
    static inline int stackfs_flag(int *what) { return __atomic_load_n(what, __ATOMIC_RELAXED); }
    #define stackfs_set_flag(what, value) __atomic_store_n(what, value, __ATOMIC_RELAXED)
    static inline void stackfs_raise_flag(int *what, int bit) { __atomic_fetch_or(what, bit, __ATOMIC_RELEASE); }
    static inline unsigned stackfs_count(unsigned *what) { return __atomic_add_fetch(what, 1, __ATOMIC_RELAXED); }
    """
    long stackfs_add(long *what, long by) nogil
    long stackfs_load(long *what) nogil
    callback_list_t *stackfs_load_list(callback_list_t **at) nogil
    uint8_t stackfs_load_byte "stackfs_load_list"(uint8_t *at) nogil
    void stackfs_store_byte "stackfs_store_list"(uint8_t *at, uint8_t value) nogil
    void stackfs_store_list(callback_list_t **at, callback_list_t *callbacks) nogil
    int stackfs_flag(int *what) nogil
    void stackfs_set_flag(int *what, int value) nogil
    void stackfs_raise_flag(int *what, int bit) nogil
    unsigned stackfs_count(uint32_t *what) nogil


# A filter's callbacks may raise this often before its instance is marked failed (on_error = fail) or detached (pass).
ERROR_LIMIT = 100
cdef uint32_t error_limit = ERROR_LIMIT

# What the Python callbacks return for one that raised, and was reported; from them it is nothing else.
cdef enum:
    RAISED = HOLD_RAISED
    ILLEGAL_TARGET = -0x5AFD             # what is reported of a pre callback that has set a TargetInstance it may not (A4.8)
    PATH_ROOM = 4608


# --- the walk -----------------------------------------------------------------------------------------------------

cdef inline void join(operation_t *op, callback_list_t *callbacks) noexcept nogil:
    """Under the volume's lock: a place among the operations that walk the list, which keeps it."""
    callbacks.walkers += 1
    op.next = callbacks.operations
    op.at = &callbacks.operations
    if op.next is not NULL:
        op.next.at = &op.next
    callbacks.operations = op


cdef void operation_join_list(operation_t *op, callback_list_t *callbacks) noexcept nogil:
    stackfs_spin_lock(&op.volume.lock)
    join(op, callbacks)
    stackfs_spin_unlock(&op.volume.lock)
    op.list = callbacks


cdef void operation_begin(operation_t *op, FLT_VOLUME *volume, uint8_t major) noexcept nogil:
    cdef callback_list_t *callbacks
    memset(op, 0, <char *>&op.shown - <char *>op)
    op.volume = volume
    op.data.Iopb = &op.shown
    op.data.Flags = <uint32_t>FLTFL_CALLBACK_DATA_IRP_OPERATION
    op.data.RequestorMode = 1
    op.current.MajorFunction = major
    op.layers = op.inline_layers
    if stackfs_load_list(&volume.lists[major]) is NULL or stackfs_load_byte(&volume.asleep[major]):
        return
    stackfs_spin_lock(&volume.lock)
    callbacks = volume.lists[major]
    if callbacks is not NULL:
        join(op, callbacks)
    stackfs_spin_unlock(&volume.lock)
    op.list = callbacks
    if callbacks is not NULL and callbacks.count > INLINE_LAYERS:
        op.layers = <layer_t *>malloc(callbacks.count * cython.sizeof(layer_t))
        if op.layers is NULL:
            leave(op)
            op.layers = op.inline_layers
            if not always_goes_on(op):
                op.data.IoStatus.Status = STATUS_FLT_INTERNAL_ERROR
                op.state = OPERATION_DONE


cdef bint all_asleep(callback_list_t *callbacks) noexcept nogil:
    cdef uint32_t i
    if callbacks is NULL:
        return False
    for i in range(callbacks.count):
        if not callbacks.callbacks[i].flags & CALLBACK_SLEEPS or not callbacks.callbacks[i].instance.Asleep:
            return False
    return True


cdef void instance_sleep(FLT_INSTANCE *instance, bint asleep) noexcept nogil:
    cdef FLT_VOLUME *volume = instance.Related.Volume
    cdef int major
    stackfs_spin_lock(&volume.lock)
    stackfs_set_flag(&instance.Asleep, asleep)
    for major in range(MAJOR_FUNCTIONS):
        stackfs_store_byte(&volume.asleep[major], all_asleep(volume.lists[major]))
    stackfs_spin_unlock(&volume.lock)


cdef inline void unlink(operation_t *op) noexcept nogil:
    """Under the volume's lock."""
    op.at[0] = op.next
    if op.next is not NULL:
        op.next.at = op.at
    op.list.walkers -= 1


cdef void leave(operation_t *op) noexcept nogil:
    stackfs_spin_lock(&op.volume.lock)
    unlink(op)
    stackfs_spin_unlock(&op.volume.lock)
    op.list = NULL


cdef callback_list_t *operation_take_list(operation_t *op) noexcept nogil:
    cdef callback_list_t *callbacks = op.list
    stackfs_spin_lock(&op.volume.lock)
    stackfs_hold_list(callbacks)
    unlink(op)
    stackfs_spin_unlock(&op.volume.lock)
    op.list = NULL
    return callbacks


cdef void operation_end(operation_t *op) noexcept nogil:
    if <uintptr_t>op.passed_down | <uintptr_t>op.mdls:
        end_buffers(op)
    if op.list is not NULL:
        leave(op)
    if op.layers is not op.inline_layers:
        free(op.layers)
        op.layers = op.inline_layers
    if <uintptr_t>op.keep | <uintptr_t>op.held:
        end_keeping(op)


cdef void end_buffers(operation_t *op) noexcept nogil:
    if op.passed_down is not NULL:
        passed_down_release(op)
    if op.mdls is not NULL:
        mdls_free(op)


cdef void end_keeping(operation_t *op) noexcept nogil:
    if op.held:
        hold_forget(op)
    if op.keep is not NULL:
        revert_to_self()                 # whatever is freed may run Python
        with gil:
            Py_XDECREF(op.keep)
        op.keep = NULL


cdef bint operation_listed(FLT_VOLUME *volume, int major) noexcept nogil:
    return stackfs_load_list(&volume.lists[major]) is not NULL


cdef inline bint skipped(const operation_t *op, const callback_t *callback) noexcept nogil:
    """The SKIP_* flags of the registration (semantics A2)."""
    cdef uint32_t flags = callback.flags & ~<uint32_t>CALLBACK_AS_ANYBODY
    cdef bint transfer = op.current.MajorFunction == IRP_MJ_READ or op.current.MajorFunction == IRP_MJ_WRITE
    if flags == 0:
        return False
    if flags & CALLBACK_SLEEPS and stackfs_flag(&callback.instance.Asleep):
        return True
    if flags & FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO and op.current.IrpFlags & IRP_PAGING_IO:
        return True
    if flags & FLTFL_OPERATION_REGISTRATION_SKIP_CACHED_IO:
        if op.data.Flags & FLTFL_CALLBACK_DATA_FAST_IO_OPERATION or (
                transfer and not op.current.IrpFlags & IRP_NOCACHE):
            return True
    if flags & FLTFL_OPERATION_REGISTRATION_SKIP_NON_DASD_IO:
        if op.current.TargetFileObject is NULL or not (
                load_bits(&op.current.TargetFileObject.Flags) & FO_VOLUME_OPEN):
            return True
    if flags & FLTFL_OPERATION_REGISTRATION_SKIP_NON_CACHED_NON_PAGING_IO and transfer:
        if op.current.IrpFlags & IRP_NOCACHE and not op.current.IrpFlags & IRP_PAGING_IO:
            return True
    return False


cdef inline bint always_goes_on(const operation_t *op) noexcept nogil:
    """It reaches the base whatever a callback does: a handle is never leaked, nor what was acquired."""
    return is_release(op.current.MajorFunction)


cdef bint save_parameters(layer_t *layer, const FLT_IO_PARAMETER_BLOCK *current) noexcept nogil:
    layer.parameters = <FLT_IO_PARAMETER_BLOCK *>malloc(cython.sizeof(FLT_IO_PARAMETER_BLOCK))
    if layer.parameters is NULL:
        return False
    layer.parameters[0] = current[0]
    return True


cdef inline void fail(operation_t *op) noexcept nogil:
    op.data.IoStatus.Status = STATUS_IO_DEVICE_ERROR
    op.data.IoStatus.Information = 0


cdef inline void refuse_made_up(operation_t *op) noexcept nogil:
    """Nobody but the base can open a file or make an inode known: a success without it is an I/O error (A6.5)."""
    if NT_SUCCESS(op.data.IoStatus.Status) and not op.base_done and op.data.IoStatus.Status != STATUS_REPARSE and (
            op.current.MajorFunction == IRP_MJ_CREATE or op.current.MajorFunction == IRP_MJ_QUERY_OPEN):
        fail(op)


cdef bint refuses_fast_io(const operation_t *op, int pre_status) noexcept nogil:
    """Is this status of a pre callback a legal refusal of the operation as fast I/O (A6.4, A6.7)?"""
    if pre_status == FLT_PREOP_DISALLOW_FASTIO:
        return op.data.Flags & FLTFL_CALLBACK_DATA_FAST_IO_OPERATION != 0
    return pre_status == FLT_PREOP_DISALLOW_FSFILTER_IO and op.current.MajorFunction == IRP_MJ_QUERY_OPEN and (
        op.data.Flags & FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION != 0)


cdef void refuse_fast_io(operation_t *op) noexcept nogil:
    """What the post callbacks above see; whoever runs the operation starts it again as an IRP, whatever they say."""
    op.begins_again = 1
    op.data.IoStatus.Status = STATUS_FLT_DISALLOW_FAST_IO
    op.data.IoStatus.Information = 0


cdef inline void show(operation_t *op, FLT_INSTANCE *instance) noexcept nogil:
    """The parameters as they have become, for one callback. Not by assignment: that would copy them twice."""
    memcpy(&op.shown, &op.current, cython.sizeof(FLT_IO_PARAMETER_BLOCK))
    op.shown.TargetInstance = instance


cdef inline bint may_be_held(const operation_t *op) noexcept nogil:
    """Only an IRP can be (A6.9), and not what is drained."""
    return op.data.Flags & (FLTFL_CALLBACK_DATA_IRP_OPERATION | FLTFL_CALLBACK_DATA_DRAINING_IO) == \
        FLTFL_CALLBACK_DATA_IRP_OPERATION


cdef inline operation_state_t without_memory(operation_t *op) noexcept nogil:
    op.data.IoStatus.Status = STATUS_FLT_INTERNAL_ERROR
    op.bottom = op.index                        # its own post still has its context to free
    return OPERATION_AT_BASE if always_goes_on(op) else OPERATION_GOING_UP


cdef inline operation_state_t let_pass(operation_t *op, const callback_t *callback, layer_t *layer, int status) noexcept nogil:
    """A pre callback lets it go on: what it is owed, and what it has changed. What comes next, as of end_here()."""
    layer.post_owed = 0
    if status != FLT_PREOP_SUCCESS_NO_CALLBACK and callback.post is not NULL:
        layer.post_owed = <uint8_t>(POST_OWED + (status == FLT_PREOP_SYNCHRONIZE))
    if op.data.Flags & <uint32_t>FLTFL_CALLBACK_DATA_DIRTY:
        return take_over(op, callback, layer)
    return OPERATION_GOING_DOWN


cdef operation_state_t take_over(operation_t *op, const callback_t *callback, layer_t *layer) noexcept nogil:
    """What a pre callback has changed counts from here on."""
    cdef bint retargets = op.shown.TargetInstance is not callback.instance
    if retargets and (op.volume.target_is_legal is NULL or not op.volume.target_is_legal(op, callback.instance)):
        revert_to_self()
        with gil:
            report_misuse(callback, op, "pre", ILLEGAL_TARGET)
        if callback.instance.PassOnError or always_goes_on(op):
            return OPERATION_GOING_DOWN
        fail(op)
        op.bottom = op.index                    # its own post still has its context to free
        return OPERATION_GOING_UP
    owner_enter(op)
    if not save_parameters(layer, &op.current):
        owner_leave(op)
        return without_memory(op)
    op.shown.MajorFunction = op.current.MajorFunction
    if retargets:
        op.retargeted = op.shown.TargetInstance
    else:
        op.shown.TargetFileObject = op.current.TargetFileObject
    op.current = op.shown
    owner_leave(op)
    if op.data.Flags & FLTFL_CALLBACK_DATA_SYSTEM_BUFFER:
        system_buffer_swapped(op, layer.parameters)
    if retargets:
        op.bottom = op.index
        return OPERATION_AT_BASE
    return OPERATION_GOING_DOWN


cdef operation_state_t end_here(operation_t *op, const callback_t *callback, int status,
                                const IO_STATUS_BLOCK *before) noexcept nogil:
    """A pre callback does not simply let it go on. What comes next: OPERATION_GOING_DOWN, if it goes on all the same."""
    cdef bint pends = status == FLT_PREOP_PENDING
    if pends and may_be_held(op):
        op.hold.before = before[0]
        if op.status_wanted is not NULL:
            tell_status(op, STATUS_PENDING, op.index - 1, False)
        return OPERATION_PENDED_PRE if operation_hold(op) else completed_pre(op)
    if op.held:
        hold_forget(op)
    if status == FLT_PREOP_COMPLETE:
        if always_goes_on(op):                  # hidden from the layers below; the base does its part (F2)
            op.data.IoStatus.Status = STATUS_SUCCESS
            op.bottom = op.index - 1
            return OPERATION_AT_BASE
        if op.data.IoStatus.Status != STATUS_PENDING and op.data.IoStatus.Status != STATUS_FLT_DISALLOW_FAST_IO:
            refuse_made_up(op)
            op.bottom = op.index - 1
            return OPERATION_GOING_UP
    if refuses_fast_io(op, status):
        refuse_fast_io(op)
        op.bottom = op.index - 1
        return OPERATION_GOING_UP
    if status != RAISED or not (callback.pre is python_pre or callback.pre is python_async_pre or callback.pre is verified_pre):
        revert_to_self()
        with gil:
            report_misuse(callback, op, "pre", status)
    if callback.instance.PassOnError or always_goes_on(op):
        op.data.IoStatus = before[0]
        return OPERATION_GOING_DOWN
    fail(op)
    if pends:
        op.data.IoStatus.Status = STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST
    op.bottom = op.index - 1
    return OPERATION_GOING_UP


cdef operation_state_t completed_pre(operation_t *op) noexcept nogil:
    """What FltCompletePendedPreOperation said counts as if the callback had returned it."""
    cdef const callback_t *callback = &op.list.callbacks[op.index - 1]
    cdef layer_t *layer = &op.layers[op.index - 1]
    cdef IO_STATUS_BLOCK before = op.hold.before
    cdef int status = hold_taken_over(op, &layer.context)
    if verifier_on:
        verify_completed_pre(&op.data, status, layer.context)
    if status == FLT_PREOP_SUCCESS_WITH_CALLBACK or status == FLT_PREOP_SUCCESS_NO_CALLBACK:
        return let_pass(op, callback, layer, status)
    return end_here(op, callback, status, &before)


cdef inline void end_post(operation_t *op, const callback_t *callback, const IO_STATUS_BLOCK *before) noexcept nogil:
    """Whatever a post callback did: what it must not do is undone."""
    if always_goes_on(op):
        op.data.IoStatus.Status = STATUS_SUCCESS
    elif NT_SUCCESS(before.Status) and op.base_done and not NT_SUCCESS(op.data.IoStatus.Status):
        if op.layers[op.bottom].post_owed != POST_REISSUED:      # else the reissue has said who fails it
            op.failed_by = callback.instance
    else:
        refuse_made_up(op)


cdef void completed_post(operation_t *op, const callback_t *callback) noexcept nogil:
    if hold_taken_over(op, NULL) != RAISED:
        return
    if callback.instance.PassOnError:
        op.data.IoStatus = op.hold.before
    else:
        fail(op)


cdef bint go_on_up(operation_t *op, const callback_t *callback, int status, const IO_STATUS_BLOCK *before) noexcept nogil:
    """A post callback has not simply finished. False: it keeps the operation."""
    if status == FLT_POSTOP_MORE_PROCESSING_REQUIRED and may_be_held(op):
        op.hold.before = before[0]
        if operation_hold(op):
            return False
        completed_post(op, callback)
        return True
    if op.held:
        hold_forget(op)
    if status == FLT_POSTOP_DISALLOW_FSFILTER_IO and refuses_fast_io(op, FLT_PREOP_DISALLOW_FSFILTER_IO):
        refuse_fast_io(op)
        return True
    if status != RAISED or not (callback.post is python_post or callback.post is python_async_post or callback.post is verified_post):
        revert_to_self()
        with gil:
            report_misuse(callback, op, "post", status)
    if callback.instance.PassOnError:
        op.data.IoStatus = before[0]
        return True
    fail(op)
    if status == FLT_POSTOP_MORE_PROCESSING_REQUIRED:
        op.data.IoStatus.Status = STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST
    return True


cdef bint walk_up(operation_t *op) noexcept nogil:
    """Calls the post callbacks that are owed, lowest first. False: that of the layer `bottom` keeps the operation."""
    cdef const callback_t *callback
    cdef layer_t *layer
    cdef FLT_RELATED_OBJECTS related
    cdef IO_STATUS_BLOCK before
    cdef int status
    op.data.Flags |= <uint32_t>FLTFL_CALLBACK_DATA_POST_OPERATION
    while op.bottom > 0:
        op.bottom -= 1
        callback = &op.list.callbacks[op.bottom]
        layer = &op.layers[op.bottom]
        if layer.parameters is not NULL:
            take_back(op, layer)
        if not layer.post_owed:
            continue
        related = callback.instance.Related
        related.FileObject = op.current.TargetFileObject
        show(op, callback.instance)
        if not callback.flags & <uint32_t>CALLBACK_AS_ANYBODY:
            revert_to_self()
        op.data.Flags &= ~<uint32_t>FLTFL_CALLBACK_DATA_DIRTY
        before = op.data.IoStatus
        status = callback.post(&op.data, &related, layer.context, 0)
        if status != FLT_POSTOP_FINISHED_PROCESSING and not go_on_up(op, callback, status, &before):
            return False
        end_post(op, callback, &before)
    return True


cdef void drain_post(operation_t *op, int layer) noexcept nogil:
    """Calls a layer's post callback early, on a copy: the operation goes on without it (A3.10)."""
    cdef const callback_t *callback = &op.list.callbacks[layer]
    cdef FLT_RELATED_OBJECTS related = callback.instance.Related
    cdef int index = op.index
    cdef int i, status
    cdef operation_t copy
    op.layers[layer].post_owed = 0
    memset(&copy, 0, <char *>copy.inline_layers - <char *>&copy)
    copy.data = op.data
    copy.volume = op.volume
    copy.held = op.held & HOLD_CANCELLED
    copy.list = op.list
    copy.request = op.request
    copy.buffer_owner = op.buffer_owner
    copy.buffer_read_only = op.buffer_read_only
    copy.keep = op.keep
    copy.layers = copy.inline_layers
    copy.state = OPERATION_GOING_UP
    copy.current = op.current
    for i in range(layer + 1, index):                    # as the layer received them: the first below that kept its own
        if op.layers[i].parameters is not NULL:
            copy.current = op.layers[i].parameters[0]
            break
    copy.shown = copy.current
    copy.shown.TargetInstance = callback.instance
    copy.data.Iopb = &copy.shown
    copy.data.Flags &= ~<uint32_t>FLTFL_CALLBACK_DATA_DIRTY
    copy.data.Flags |= <uint32_t>FLTFL_CALLBACK_DATA_DRAINING_IO | <uint32_t>FLTFL_CALLBACK_DATA_POST_OPERATION
    copy.data.IoStatus.Status = STATUS_FLT_POST_OPERATION_CLEANUP
    copy.data.IoStatus.Information = 0
    related.FileObject = copy.current.TargetFileObject
    revert_to_self()
    status = callback.post(&copy.data, &related, op.layers[layer].context, FLTFL_POST_OPERATION_DRAINING)
    if status != FLT_POSTOP_FINISHED_PROCESSING and (
            status != RAISED or callback.post is not python_post and callback.post is not verified_post):
        with gil:
            report_misuse(callback, &copy, "post", status)


cdef inline void set_state(operation_t *op, operation_state_t state) noexcept nogil:
    """What was done to the layers before is seen by whoever sees the new state."""
    come_to(<int *>&op.state, <int>state)


cdef operation_state_t go_up(operation_t *op) noexcept nogil:
    """The way up, where nobody may drain it."""
    cdef bint done
    if op.list is NULL:
        return OPERATION_DONE
    owner_enter(op)
    done = walk_up(op)
    owner_leave(op)
    return OPERATION_DONE if done else OPERATION_PENDED_POST


cdef int operation_run(operation_t *op) noexcept nogil:
    """The way down is here, and not in a function of its own: the compiler would not put it in."""
    cdef const callback_t *callback
    cdef FLT_INSTANCE *instance
    cdef layer_t *layer
    cdef FLT_RELATED_OBJECTS related
    cdef IO_STATUS_BLOCK before
    cdef int status
    cdef operation_state_t state = OPERATION_GOING_DOWN
    if op.state == OPERATION_GOING_DOWN:
        while op.list is not NULL and op.index < <int>op.list.count:
            callback = &op.list.callbacks[op.index]
            instance = callback.instance
            layer = &op.layers[op.index]
            layer.context = NULL
            layer.parameters = NULL
            layer.post_owed = 0
            come_to(&op.index, op.index + 1)
            if skipped(op, callback):
                continue
            if stackfs_flag(&instance.Failed):
                if stackfs_flag(&instance.Failed) & INSTANCE_LEAVING or instance.PassOnError or always_goes_on(op):
                    continue
                fail(op)
                op.bottom = op.index - 1
                state = OPERATION_GOING_UP
                break
            if callback.pre is NULL:
                layer.post_owed = POST_OWED
                continue
            related = instance.Related
            related.FileObject = op.current.TargetFileObject
            show(op, instance)
            op.data.Flags &= ~<uint32_t>FLTFL_CALLBACK_DATA_DIRTY
            if not callback.flags & <uint32_t>CALLBACK_AS_ANYBODY:
                revert_to_self()
            before = op.data.IoStatus
            status = callback.pre(&op.data, &related, &layer.context)
            if status == FLT_PREOP_SUCCESS_WITH_CALLBACK or status == FLT_PREOP_SUCCESS_NO_CALLBACK or \
                    status == FLT_PREOP_SYNCHRONIZE:
                state = let_pass(op, callback, layer, status)
            else:
                state = end_here(op, callback, status, &before)
            if state != OPERATION_GOING_DOWN:
                break
        else:
            op.bottom = op.index
            state = OPERATION_AT_BASE
        set_state(op, state)
    if op.state == OPERATION_AT_BASE:
        if op.retargeted is NULL:
            op.volume.base(op)
        else:
            op.volume.other_base(op)
        if op.would_block == 2:
            return 0
        set_state(op, OPERATION_GOING_UP)
    if op.state == OPERATION_GOING_UP:
        if op.status_wanted is not NULL:
            tell_status(op, op.data.IoStatus.Status, op.bottom, True)
        set_state(op, go_up(op))
    return op.state == OPERATION_DONE


cdef void operation_resume(operation_t *op) noexcept nogil:
    """What was held has been completed: the walk stands behind the callback that held it."""
    if op.state == OPERATION_PENDED_PRE:
        set_state(op, completed_pre(op))
    else:
        completed_post(op, &op.list.callbacks[op.bottom])
        end_post(op, &op.list.callbacks[op.bottom], &op.hold.before)
        set_state(op, OPERATION_GOING_UP)


cdef bint operation_hidden_from(operation_t *op, uint8_t major) noexcept nogil:
    cdef FLT_VOLUME *volume = op.volume
    cdef callback_list_t *callbacks
    cdef uint32_t i, j
    cdef bint hidden = False
    if not operation_listed(volume, major):
        return False
    callbacks = list_hold(volume, major)
    if callbacks is NULL:
        return False
    for i in range(callbacks.count):
        j = 0
        while op.list is not NULL and j < op.list.count and not (
                op.list.callbacks[j].instance is callbacks.callbacks[i].instance
                and op.list.callbacks[j].pre is not NULL
                and op.list.callbacks[j].flags & ~<uint32_t>(CALLBACK_AS_ANYBODY | CALLBACK_SLEEPS) == 0):
            j += 1
        if op.list is NULL or j == op.list.count:
            hidden = True
            break
    list_release(callbacks)
    return hidden


cdef void operation_base(operation_t *op) noexcept nogil:
    """The base's part alone, waiting as long as it takes; then operation_run() goes on with the post callbacks."""
    op.would_block = 0
    op.volume.base(op)
    set_state(op, OPERATION_GOING_UP)


cdef void operation_only_below(operation_t *op, const FLT_INSTANCE *above) noexcept nogil:
    if op.list is not NULL and above is not NULL and op.state == OPERATION_GOING_DOWN:
        while op.index < <int>op.list.count and compare_altitudes(
                op.list.callbacks[op.index].instance.Altitude, above.Altitude) >= 0:
            op.layers[op.index].post_owed = 0
            op.layers[op.index].parameters = NULL
            op.index += 1


# --- Python callbacks: C callbacks that take the GIL -----------------------------------------------------------------

cdef str path_of(operation_t *op, const FLT_INSTANCE *instance):
    """As the layer received it: what its callback put into the parameters need not live any more."""
    cdef bytes buffer
    cdef FLT_RELATED_OBJECTS related = instance.Related
    cdef int length
    if op.volume.nodes is NULL:
        return ""
    op.shown = op.current
    related.FileObject = op.current.TargetFileObject
    buffer = PyBytes_FromStringAndSize(NULL, PATH_ROOM)
    length = operation_path(&op.data, &related, PyBytes_AS_STRING(buffer), PATH_ROOM)
    return fsdecode(buffer[:length]) if length > 0 else ""


cdef void report_misuse(const callback_t *callback, operation_t *op, str routine, int status):
    cdef FLT_INSTANCE *instance = callback.instance
    try:
        (<object>instance.Object).callback_misused(routine, op.current.MajorFunction, path_of(op, instance), status)
    except BaseException:
        pass
    count_error(instance)


cdef void count_error(FLT_INSTANCE *instance):
    if stackfs_count(&instance.Errors) == error_limit:
        stackfs_raise_flag(&instance.Failed, INSTANCE_FAILED)
        try:
            (<object>instance.Object).error_limit_reached()
        except BaseException:
            pass


cdef void report_exception(FLT_INSTANCE *instance, operation_t *op, str routine, error):
    try:
        (<object>instance.Object).callback_raised(routine, op.current.MajorFunction, path_of(op, instance), error)
    except BaseException:
        pass
    count_error(instance)


cdef void report_forgotten(operation_t *op):
    cdef bint post = op.data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION != 0
    cdef FLT_INSTANCE *instance = op.list.callbacks[op.bottom if post else op.index - 1].instance
    cdef str routine = "post" if post else "pre"
    cdef bytes what = b"it kept the operation, and let go of its data without completing it"
    if verifier_on:
        verifier_complains(&op.data, instance, routine.encode(), what)
    report_exception(instance, op, routine, RuntimeError(what.decode()))


cdef inline CallbackData face_of(operation_t *op, const FLT_RELATED_OBJECTS *related):
    return callback_data_new(
        &op.data, related, None if op.buffer_owner is NULL else <object>op.buffer_owner,
        None if op.keep is NULL else <object>op.keep, not op.buffer_read_only)


cdef int python_pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void **context) noexcept nogil:
    cdef operation_t *op = <operation_t *>data
    about_to_call(op)
    with gil:
        try:
            return call_python_pre(op, related, context)
        except BaseException:            # no memory for the call itself: the callback has seen nothing, so nothing passes
            data.Flags &= ~<uint32_t>FLTFL_CALLBACK_DATA_DIRTY
            data.IoStatus.Status = STATUS_IO_DEVICE_ERROR
            data.IoStatus.Information = 0
            return FLT_PREOP_COMPLETE


cdef int call_python_pre(operation_t *op, const FLT_RELATED_OBJECTS *related, void **context) except? -1:
    cdef FLT_INSTANCE *instance = related.Instance
    cdef CallbackData face = face_of(op, related)
    cdef callback_frame_t frame
    cdef int status
    callback_enter(&frame, op, PASSIVE_LEVEL)
    try:
        try:
            answer = (<object>instance.PythonPre[op.current.MajorFunction])(face, <object>instance.Object)
            if type(answer) is tuple:
                status, completion_context = answer
            else:
                status = answer
                completion_context = None
        except BaseException as error:
            report_exception(instance, op, "pre", error)
            face.undo()
            return RAISED
        if status == FLT_PREOP_PENDING and may_be_held(op):
            if completion_context is not None:
                give_context(op, instance, status, completion_context, context)
            face.hold(&op.hold.related)
            return status
        if face.data is NULL:            # completed, as if it had been pended
            return -1
        if op.data.Flags & <uint32_t>FLTFL_CALLBACK_DATA_DIRTY and face.kept is not None:
            operation_keep(op, face.kept)
        if completion_context is not None:
            give_context(op, instance, status, completion_context, context)
        if status == FLT_PREOP_SUCCESS_WITH_CALLBACK or status == FLT_PREOP_SUCCESS_NO_CALLBACK or \
                status == FLT_PREOP_SYNCHRONIZE or status == FLT_PREOP_COMPLETE:
            face.commit()
        else:
            face.undo()
        return -1 if status == RAISED else status
    finally:
        callback_leave(&frame)
        if not face.pended:
            face.end()


cdef void give_context(operation_t *op, FLT_INSTANCE *instance, int status, object given, void **context):
    """The completion context, where one is allowed and somebody gets it; elsewhere it is forgotten (A6.3)."""
    if status == FLT_PREOP_SUCCESS_WITH_CALLBACK or status == FLT_PREOP_SYNCHRONIZE:
        if instance.PythonPost[op.current.MajorFunction] is not NULL:
            Py_INCREF(given)
            context[0] = <void *>given
    elif verifier_on:
        verifier_complains(&op.data, instance, b"pre",
                           b"a completion context goes with FLT_PREOP_SUCCESS_WITH_CALLBACK and FLT_PREOP_SYNCHRONIZE alone")


cdef int python_async_pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void **context) noexcept nogil:
    about_to_call(<operation_t *>data)
    with gil:
        try:
            return call_python_async(<operation_t *>data, related, "pre", None)
        except BaseException:            # as above
            data.IoStatus.Status = STATUS_IO_DEVICE_ERROR
            data.IoStatus.Information = 0
            return FLT_PREOP_COMPLETE


cdef int call_python_async(operation_t *op, const FLT_RELATED_OBJECTS *related, str routine, tuple arguments) except? -1:
    """Keeps the operation until the coroutine has returned, which the instance's owner runs on its loop."""
    cdef FLT_INSTANCE *instance = related.Instance
    cdef CallbackData face = face_of(op, related)
    cdef PyObject *callback = instance.PythonPre[op.current.MajorFunction]
    coroutine = None
    if arguments is not None:
        callback = instance.PythonPost[op.current.MajorFunction]
    face.hold(&op.hold.related)
    try:
        coroutine = (<object>callback)(face, <object>instance.Object, *(arguments or ()))
        (<object>instance.Object).run_async(coroutine, face)
    except BaseException as error:
        face.pended = False
        if coroutine is not None:
            coroutine.close()
        report_exception(instance, op, routine, error)
        face.end()
        return RAISED
    return <int>FLT_PREOP_PENDING if arguments is None else <int>FLT_POSTOP_MORE_PROCESSING_REQUIRED


cdef int python_post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void *context, uint32_t flags) noexcept nogil:
    about_to_call(<operation_t *>data)
    with gil:
        try:
            return call_python_post(<operation_t *>data, related, context, flags)
        except BaseException:            # as above
            data.IoStatus.Status = STATUS_IO_DEVICE_ERROR
            data.IoStatus.Information = 0
            return FLT_POSTOP_FINISHED_PROCESSING


cdef inline object taken_context(void *context):
    """The completion context; it is the post callback's from now on."""
    if context is NULL:
        return None
    taken = <object>context
    Py_DECREF(taken)
    return taken


cdef int call_python_post(operation_t *op, const FLT_RELATED_OBJECTS *related, void *context, uint32_t flags) except? -1:
    cdef FLT_INSTANCE *instance = related.Instance
    cdef CallbackData face = face_of(op, related)
    cdef callback_frame_t frame
    cdef int status
    completion_context = taken_context(context)
    callback_enter(&frame, op, operation_irql(op))
    try:
        try:
            answer = (<object>instance.PythonPost[op.current.MajorFunction])(
                face, <object>instance.Object, completion_context, flags)
            status = FLT_POSTOP_FINISHED_PROCESSING if answer is None else answer
        except BaseException as error:
            report_exception(instance, op, "post", error)
            face.undo()
            return RAISED
        if status == FLT_POSTOP_MORE_PROCESSING_REQUIRED and may_be_held(op):
            face.hold(&op.hold.related)
            return status
        if face.data is NULL:
            return -1
        if status == FLT_POSTOP_FINISHED_PROCESSING:
            face.commit()
        else:
            face.undo()
        return -1 if status == RAISED else status
    finally:
        callback_leave(&frame)
        if not face.pended:
            face.end()


cdef int python_async_post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void *context,
                           uint32_t flags) noexcept nogil:
    about_to_call(<operation_t *>data)
    with gil:
        try:
            return call_python_async(<operation_t *>data, related, "post", (taken_context(context), flags))
        except BaseException:            # as above
            data.IoStatus.Status = STATUS_IO_DEVICE_ERROR
            data.IoStatus.Information = 0
            return FLT_POSTOP_FINISHED_PROCESSING


cdef void operation_keep(operation_t *op, list things):
    cdef list kept
    if op.keep is NULL:
        kept = []
        Py_INCREF(kept)
        op.keep = <PyObject *>kept
    (<list>op.keep).extend(things)


# --- instances and lists ----------------------------------------------------------------------------------------------

cdef class NativeOperations:
    """A native filter's registration table; its Cython code fills it with set()."""

    def registered(self):
        """The IRP_MJ_* numbers registered."""
        return [major for major in range(MAJOR_FUNCTIONS)
                if self.operations[major].pre is not NULL or self.operations[major].post is not NULL]


cdef class InstanceEntry(InstanceNames):
    """One instance as the stack has it: names, error mode and callbacks.

    `object` is asked for callback_raised(routine, major, path, error), callback_misused(routine, major, path, status)
    and error_limit_reached(); with `async def` callbacks also for run_async(coroutine, data), which sees to it that the
    coroutine runs, on whatever thread, and tells data.end_async() its end. It is also what callbacks get as `objects`.
    `callbacks`: (major, flags, pre, post) with Python callables or None, and/or a NativeOperations.
    `section_conflict(objects, context, data)`: told of what conflicts with its sections (sections.pyx).
    """

    def __cinit__(self, *arguments, **keywords):
        self.owner = &self.instance

    def __init__(self, object instance not None, str name not None, str altitude not None, str filter_name not None,
                 callbacks=(), NativeOperations native=None, bint pass_on_error=False, FilterContexts contexts=None,
                 NameProvider names=None, section_conflict=None):
        cdef int major
        cdef callback_t *operation
        self.object = instance
        self.name = name.encode("utf-8", "surrogateescape")
        self.altitude = altitude.encode("ascii")
        self.filter_name = filter_name.encode("utf-8", "surrogateescape")
        self.kept = [native]
        self.awaiting = set()
        self.filter.Name = self.filter_name
        self.filter.Object = <PyObject *>self.object
        self.instance.Name = self.name
        self.instance.Altitude = self.altitude
        self.instance.Object = <PyObject *>self.object
        self.instance.Entry = <PyObject *>self
        self.instance.PassOnError = pass_on_error
        self.instance.Related.Filter = &self.filter
        self.instance.Related.Instance = &self.instance
        if contexts is not None:
            self.registration = contexts
            self.filter.Contexts = contexts.filter
        if names is not None:
            self.kept.append(names)
            self.instance.NameProvider = &names.provider
            self.operations[NAME_PROVIDERS].instance = &self.instance
        if section_conflict is not None:
            self.kept.append(section_conflict)
            self.instance.PythonSectionConflict = <PyObject *>section_conflict
        if native is not None:
            # What another release calls an operation is never called (A2.18): the lists have no index for it.
            if native.abi not in (0, FILTER_ABI):
                raise ValueError(f"it was compiled for version {native.abi} of the interface, and this release has {FILTER_ABI}: "
                                 "build the filter again")
            self.instance.SectionConflict = native.section_conflict
            if native.name_provider is not NULL:
                self.instance.NameProvider = native.name_provider
                self.operations[NAME_PROVIDERS].instance = &self.instance
            for major in range(MAJOR_FUNCTIONS):
                if is_known(major) and (
                        native.operations[major].pre is not NULL or native.operations[major].post is not NULL):
                    self.operations[major] = native.operations[major]
                    self.operations[major].instance = &self.instance
        for major, flags, pre, post in callbacks:
            if not 0 <= major < MAJOR_FUNCTIONS or major == IRP_MJ_POWER or major == IRP_MJ_DEVICE_CHANGE:
                raise ValueError(f"operation {major:#x} cannot be registered")
            if not is_known(major):                  # a later release's: it is never called (A2.18)
                continue
            operation = &self.operations[major]
            if operation.instance is not NULL:
                raise ValueError(f"operation {major:#x} is registered twice")
            operation.instance = &self.instance
            operation.flags = flags
            if pre is not None:
                self.kept.append(pre)
                self.instance.PythonPre[major] = <PyObject *>pre
                operation.pre = python_async_pre if self.awaits(major, pre) else python_pre
            if post is not None:
                self.kept.append(post)
                self.instance.PythonPost[major] = <PyObject *>post
                operation.post = python_async_post if self.awaits(major, post) else python_post
        if verifier_on and self.instance.Verified is NULL and not verifier_encloses(&self.instance, self.operations):
            raise MemoryError()

    def __dealloc__(self):
        free(self.instance.Verified)

    cdef bint awaits(self, int major, callback) except -1:
        """Is it an `async def`? Then the operation has to be one that can be held."""
        if not iscoroutinefunction(callback):
            return False
        if not may_be_irp(major):
            raise ValueError(f"operation {major:#x} cannot be held, so its callbacks cannot be async")
        self.awaiting.add(major)
        return True

    @property
    def registered(self):
        """The IRP_MJ_* numbers this instance registers, ascending."""
        return [major for major in range(MAJOR_FUNCTIONS)
                if self.operations[major].instance is not NULL and major != NAME_PROVIDERS]

    @property
    def failed(self):
        """True once its callbacks have raised too often: the operations it registers answer EIO (or pass it by)."""
        return stackfs_flag(&self.instance.Failed) & INSTANCE_FAILED != 0

    @property
    def errors(self):
        """How often its callbacks raised or returned what is not legal."""
        return self.instance.Errors

    def mark_failed(self):
        """Treat the instance as failed from now on."""
        stackfs_raise_flag(&self.instance.Failed, INSTANCE_FAILED)


cdef bint is_known(int major) noexcept:
    """Is it an operation of this release?"""
    return major <= IRP_MJ_PNP or IRP_MJ_VOLUME_DISMOUNT <= major <= IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE or major >= IRP_MJ_QUERY_OPEN


def may_be_irp(int major) -> bool:
    """Can the operation be an IRP, which a callback may hold (A6.9)? The others have codes below zero on Windows."""
    return major < IRP_MJ_VOLUME_DISMOUNT


cdef FLT_INSTANCE *instance_pointer(object entry) except NULL:
    return &(<InstanceEntry?>entry).instance


cdef class _Retired:
    """A replaced list, and the instances it points to, until nobody walks it any more."""
    cdef FLT_VOLUME *volume
    cdef callback_list_t *callbacks
    cdef list entries
    cdef bint providers                  # of names: whoever asks one holds the list, and walks no operation

    cdef long users(self):
        """Operations that walk it, and others that hold it."""
        cdef long users
        stackfs_spin_lock(&self.volume.lock)
        users = stackfs_load(&self.callbacks.references) + self.callbacks.walkers
        stackfs_spin_unlock(&self.volume.lock)
        return users

    cdef bint has(self, const FLT_INSTANCE *instance):
        return self.callbacks is not NULL and position_of(self.callbacks, instance) >= 0

    cdef bint settled(self):
        if self.callbacks is NULL:
            return True
        if self.users() > 0:
            return False
        free(self.callbacks)
        self.callbacks = NULL
        return True

    cdef bint only_held(self, holds_t *holds):
        """Nobody walks it, but for operations that filters hold."""
        return self.users() <= <long>holds_on_list(holds, self.callbacks)

    def __dealloc__(self):
        if self.callbacks is not NULL and stackfs_load(&self.callbacks.references) + self.callbacks.walkers <= 0:
            free(self.callbacks)         # the volume may be gone, and with it whoever could walk it


cdef class Stack(VolumeContexts):
    """The stack of one volume. Give it a base and a table of inodes before operations run (see requests.Volume)."""

    def __cinit__(self):
        memset(&self.volume, 0, cython.sizeof(FLT_VOLUME))
        self.volume.holds = holds_new()
        if self.volume.holds is NULL:
            raise MemoryError()
        self.volume.Object = <PyObject *>self
        self.owner = &self.volume
        self.entries = []
        self.retired = []
        self.held = []

    def __dealloc__(self):
        cdef int major
        volume_contexts_close(&self.volume)
        for major in range(MAJOR_FUNCTIONS):
            free(self.volume.lists[major])
        holds_free(self.volume.holds)

    def introduce(self, InstanceEntry entry not None):
        """The instance is to be of this volume: what its set-up does (I/O, a volume context) goes there. It sees nothing yet."""
        entry.instance.Related.Volume = &self.volume

    def insert(self, InstanceEntry entry not None):
        """Publish an instance: operations that begin from now on see it. Name and altitude must be free."""
        cdef InstanceEntry other
        cdef int position = 0
        for other in self.entries:
            if other.name == entry.name:
                raise ValueError(f"instance name {entry.name.decode()!r} is taken")
            if compare_altitudes(other.instance.Altitude, entry.instance.Altitude) == 0:
                raise ValueError(f"altitude {entry.altitude.decode()} is taken by {other.name.decode()!r}")
            if compare_altitudes(other.instance.Altitude, entry.instance.Altitude) > 0:
                position += 1
        entry.instance.Related.Volume = &self.volume
        stackfs_set_flag(&entry.instance.Failed, entry.instance.Failed & INSTANCE_FAILED)
        self.entries.insert(position, entry)
        try:
            self.publish_for(entry)
        except BaseException:
            self.entries.remove(entry)
            raise
        if entry.instance.NameProvider is not NULL:
            self.names_differ()

    def remove(self, InstanceEntry entry not None):
        """Take an instance out: operations that begin from now on do not see it, nor do those that have not come to it.
        Others still use it: wait until drain() says that none does."""
        cdef int position = self.entries.index(entry)
        self.entries.remove(entry)
        try:
            self.publish_for(entry)
        except BaseException:
            self.entries.insert(position, entry)
            raise
        if entry.instance.NameProvider is not NULL:
            self.names_differ()
        stackfs_raise_flag(&entry.instance.Failed, INSTANCE_LEAVING)
        with nogil:
            all_threads_see()

    def drain(self, InstanceEntry leaving not None, bint early=False) -> int:
        """How many operations still use an instance that has been removed. early: what it is owed the post of, and what
        it has not changed, is given to its post callback now, as drained (A3.10), and not counted. Any thread."""
        cdef list retired = []
        cdef _Retired one
        cdef long users = 0
        cdef call_post_function call_post
        for one in self.retired:
            if one.has(&leaving.instance):
                stackfs_add(&one.callbacks.references, 1)    # another thread may look whether it is settled
                retired.append(one)
        try:
            for one in retired:
                call_post = NULL
                if early and not one.callbacks.awaits:   # an `async def` post has to hold what it is given
                    call_post = drain_post
                with nogil:
                    users += drain_list(&self.volume, one.callbacks, &leaving.instance, call_post)
        finally:
            for one in retired:
                stackfs_add(&one.callbacks.references, -1)
        return users

    cdef int names_differ(self) except -1:
        """What is cached of names was made by other providers."""
        if self.volume.nodes is not NULL:
            name_cache_purge(<inode_table_t *>self.volume.nodes, NULL)
        return 0

    @property
    def name(self):
        """The volume's name, as it stands in front of every path in file name information (bytes)."""
        return b"" if self.volume.Name is NULL else <bytes>self.volume.Name[:self.volume.NameLength]

    @name.setter
    def name(self, bytes value not None):
        if len(value) > 1024:
            raise ValueError("a volume's name is at most 1,024 bytes")
        self.held.append(value)
        self.volume.NameLength = <uint16_t>len(value)
        self.volume.Name = PyBytes_AS_STRING(value)

    cdef publish_for(self, InstanceEntry entry):
        """All of its operations' lists, or, where memory runs out, none."""
        cdef callback_list_t *new[MAJOR_FUNCTIONS]
        cdef InstanceEntry other
        cdef int major, i
        cdef uint32_t count
        cdef list majors = [major for major in range(MAJOR_FUNCTIONS) if entry.operations[major].instance is not NULL]
        cdef list retired = [_Retired.__new__(_Retired) for _ in majors]
        memset(new, 0, sizeof(new))
        for major in majors:
            count = 0
            for other in self.entries:
                count += other.operations[major].instance is not NULL
            if count == 0:
                continue
            new[major] = <callback_list_t *>malloc(cython.sizeof(callback_list_t) + count * cython.sizeof(callback_t))
            if new[major] is NULL:
                for i in range(MAJOR_FUNCTIONS):
                    free(new[i])
                raise MemoryError()
            new[major].references = 1
            new[major].walkers = 0
            new[major].operations = NULL
            new[major].count = 0
            new[major].awaits = 0
            for other in self.entries:
                if other.operations[major].instance is not NULL:
                    new[major].awaits |= major in other.awaiting
                    new[major].callbacks[new[major].count] = other.operations[major]
                    new[major].count += 1
        for one in retired:
            (<_Retired>one).entries = [*self.entries, entry]
        self.retired.extend(retired)
        for major, one in zip(majors, retired):
            (<_Retired>one).providers = major == NAME_PROVIDERS
            (<_Retired>one).volume = &self.volume
            (<_Retired>one).callbacks = self.exchange(major, new[<int>major])

    cdef callback_list_t *exchange(self, int major, callback_list_t *new) noexcept:
        """Publishes a list; the one before, or NULL."""
        cdef callback_list_t *old
        if new is not NULL and new.awaits:
            add_int(&self.volume.awaits, 1)
        if new is not NULL and is_notice(major):
            add_int(&self.volume.notices, 1)
        stackfs_spin_lock(&self.volume.lock)
        old = self.volume.lists[major]
        stackfs_store_list(&self.volume.lists[major], new)
        stackfs_store_byte(&self.volume.asleep[major], all_asleep(new))
        stackfs_spin_unlock(&self.volume.lock)
        if old is not NULL:
            if old.awaits:
                add_int(&self.volume.awaits, -1)
            if is_notice(major):
                add_int(&self.volume.notices, -1)
            list_release(old)
        return old

    def drained(self) -> bool:
        """True when no operation walks a replaced list any more, but for operations that filters hold."""
        if self.settled:
            return True
        for retired in self.retired:
            if not (<_Retired>retired).only_held(self.volume.holds):
                return False
        return True

    @property
    def settled(self) -> bool:
        """True when no replaced list is left at all, whoever holds its operations."""
        self.retired = [retired for retired in self.retired if not (<_Retired>retired).settled()]
        return not self.retired

    def registered(self, int major) -> bool:
        """Does any instance register this operation?"""
        return self.volume.lists[major] is not NULL

    def list_identity(self, int major) -> int:
        """A number that changes when the operation's callback list is replaced; 0: nobody registered."""
        return <uintptr_t>self.volume.lists[major]

    @property
    def names_or_data_filtered(self):
        """True: entry and attribute time-outs are zero, because an instance's answers are not cacheable."""
        return stackfs_flag(&self.volume.filters_names_or_data) != 0

    @names_or_data_filtered.setter
    def names_or_data_filtered(self, bint value):
        stackfs_set_flag(&self.volume.filters_names_or_data, value)


# --- measuring ----------------------------------------------------------------------------------------------------------

cdef int empty_pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void **context) noexcept nogil:
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef int empty_post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void *context, uint32_t flags) noexcept nogil:
    return FLT_POSTOP_FINISHED_PROCESSING


cdef void empty_base(operation_t *op) noexcept nogil:
    op.base_done = 1


def time_native_pair(long operations=1_000_000, int pairs=1) -> float:
    """Nanoseconds for one operation through `pairs` native pre and post pairs, base excluded, driven without a mount."""
    cdef Stack stack = Stack()
    cdef NativeOperations native = NativeOperations()
    cdef operation_t op
    cdef int64_t start, end
    cdef long i, _i
    native.set(IRP_MJ_READ, empty_pre, empty_post, 0)
    for i in range(pairs):
        stack.insert(InstanceEntry(stack, f"timed {i}", str(i + 1), "timed", native=native))
    stack.volume.base = empty_base
    with nogil:
        start = monotonic_time()
        for _i in range(operations):
            operation_begin(&op, &stack.volume, IRP_MJ_READ)
            operation_run(&op)
            operation_end(&op)
        end = monotonic_time()
    for entry in list(stack.entries):
        stack.remove(entry)
    stack.drained()
    return <double>(end - start) / operations
