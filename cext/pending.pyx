"""Operations that a filter holds (docs/semantics.md A6.14 to A6.18, A8).

    pre returns PENDING ──► held ──► whoever walked it parks it ──► nobody's thread
                             │                                          │ FltCompletePended... in any thread
                             └── completed before that: it just goes on ▼
                                                              resume(op.request) in that thread

A filter may complete an operation from any thread, also before its callback has returned, also while a third one cancels
it. One mutex for each volume settles who comes first: a completion counts once; of a completion and a park the second
goes on with the walk; a cancel routine is taken out before it is called, so that it is called at most once, and never
after somebody took it away. INTERRUPT may come before there is anything to cancel: the device remembers it until the
request is answered, and whoever enters an operation here looks there, under the lock; whoever interrupts notes it there
first, and then looks here.

Nothing is called under the lock but the device's calls that do not write. What an operation that nobody holds pays is one
test at its end.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from stackfs.cext.callback_data cimport (
    FLTFL_CALLBACK_DATA_DRAINING_IO, FLTFL_CALLBACK_DATA_IRP_OPERATION, FLTFL_CALLBACK_DATA_POST_OPERATION, FLT_CALLBACK_DATA, FLT_INSTANCE,
    FLT_PREOP_COMPLETE, FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_PREOP_SUCCESS_WITH_CALLBACK, IRP_MJ_CREATE)
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.ntstatus cimport STATUS_CANCELLED, STATUS_NOT_SUPPORTED, STATUS_SUCCESS
from stackfs.cext.stack cimport POST_SYNCHRONISED
from stackfs.cext.threads cimport *
from stackfs.cext.unique_set cimport unique_add, unique_find, unique_remove
from stackfs.cext.verifier cimport verifier_on, verifier_too_high


cdef extern from *:
    """
    static __thread void *pending_innermost;
    static inline void *pending_set_innermost(void *frame) { void *was = pending_innermost; pending_innermost = frame; return was; }
    """
    void *pending_innermost              # callback_frame_t: the Python callback that this thread runs
    void *pending_set_innermost(void *frame) nogil


cdef holds_t *holds_new() noexcept nogil:
    cdef holds_t *holds = <holds_t *>calloc(1, sizeof(holds_t))
    if holds != NULL:
        pthread_mutex_init(&holds.lock, NULL)
        init_condition(&holds.changed)
    return holds


cdef void holds_free(holds_t *holds) noexcept nogil:
    if holds == NULL:
        return
    free(holds.early.slots)
    pthread_cond_destroy(&holds.changed)
    pthread_mutex_destroy(&holds.lock)
    free(holds)


cdef void holds_connect(holds_t *holds, const device_calls_t *device, void *connection) noexcept nogil:
    pthread_mutex_lock(&holds.lock)
    holds.device = device
    while holds.telling:
        pthread_cond_wait(&holds.changed, &holds.lock)
    holds.connection = connection
    pthread_mutex_unlock(&holds.lock)


# ---- entering and leaving ----

cdef inline bint goes_up(const operation_t *op) noexcept nogil:
    return op.data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION != 0


cdef inline int layer_of(const operation_t *op) noexcept nogil:
    """The layer whose callback runs, or ran last, and which of its two."""
    return op.bottom << 1 | 1 if goes_up(op) else (op.index - 1) << 1


cdef void enter_locked(holds_t *holds, operation_t *op) noexcept nogil:
    if op.held & HOLD_ENTERED:
        return
    op.held |= HOLD_ENTERED
    op.hold.instance = op.list.callbacks[layer_of(op) >> 1].instance
    op.hold.cancel = NULL
    op.hold.queue_context = NULL
    op.hold.next = NULL
    op.hold.previous = holds.last
    if holds.last != NULL:
        holds.last.hold.next = op
    else:
        holds.first = op
    holds.last = op
    holds.count += 1


cdef void leave_locked(holds_t *holds, operation_t *op) noexcept nogil:
    if not op.held & HOLD_ENTERED:
        return
    op.held &= ~HOLD_ENTERED
    if op.hold.previous != NULL:
        op.hold.previous.hold.next = op.hold.next
    else:
        holds.first = op.hold.next
    if op.hold.next != NULL:
        op.hold.next.hold.previous = op.hold.previous
    else:
        holds.last = op.hold.previous
    holds.count -= 1


cdef bint interrupted_locked(holds_t *holds, operation_t *op) noexcept nogil:
    """Sticky: it is asked for each operation that comes to be held."""
    cdef uint64_t unique = op.data.RequestNumber
    if not op.held & HOLD_CANCELLED and (unique_find(&holds.early, unique) or (
            holds.device != NULL and holds.device.interrupted(holds.connection, unique))):
        op.held |= HOLD_CANCELLED
    return op.held & HOLD_CANCELLED != 0


cdef cancel_function claim_locked(operation_t *op, void **context) noexcept nogil:
    """Cancelled: what is to be called for that, without the lock, by the one who claimed it. The operation is then the
    routine's, and may be gone unless the routine was what it was called for: only `context` is safe to touch."""
    cdef cancel_function cancel = NULL
    op.held |= HOLD_CANCELLED
    if op.held & HOLD_ENTERED and not op.held & HOLD_COMPLETED:
        cancel = op.hold.cancel
        context[0] = op.hold.cancel_context
        op.hold.cancel = NULL
    return cancel


# ---- the walk's side ----

cdef bint operation_hold(operation_t *op) noexcept nogil:
    cdef holds_t *holds = op.volume.holds
    cdef cancel_function cancel = NULL
    cdef void *context
    pthread_mutex_lock(&holds.lock)
    if op.held & HOLD_COMPLETED and op.hold.layer == layer_of(op):
        pthread_mutex_unlock(&holds.lock)
        return False
    enter_locked(holds, op)
    op.hold.instance = op.list.callbacks[layer_of(op) >> 1].instance
    op.held = (op.held | HOLD_HELD) & ~HOLD_COMPLETED
    if interrupted_locked(holds, op):
        cancel = claim_locked(op, &context)
    pthread_mutex_unlock(&holds.lock)
    if cancel != NULL:
        cancel(op, context)
    return True


cdef bint hold_is_completed(operation_t *op) noexcept nogil:
    cdef holds_t *holds = op.volume.holds
    cdef bint completed
    pthread_mutex_lock(&holds.lock)
    completed = op.held & HOLD_COMPLETED != 0
    pthread_mutex_unlock(&holds.lock)
    return completed


cdef int hold_taken_over(operation_t *op, void **context) noexcept nogil:
    cdef holds_t *holds = op.volume.holds
    cdef int status
    pthread_mutex_lock(&holds.lock)
    leave_locked(holds, op)
    op.held &= HOLD_CANCELLED
    status = op.hold.status
    if context != NULL:
        context[0] = op.hold.context
    pthread_mutex_unlock(&holds.lock)
    return status


cdef void hold_forget(operation_t *op) noexcept nogil:
    cdef holds_t *holds = op.volume.holds
    pthread_mutex_lock(&holds.lock)
    leave_locked(holds, op)
    op.held &= HOLD_CANCELLED
    pthread_mutex_unlock(&holds.lock)


cdef uint32_t holds_on_list(holds_t *holds, const callback_list_t *callbacks) noexcept nogil:
    cdef uint32_t count = 0
    cdef operation_t *op
    pthread_mutex_lock(&holds.lock)
    op = holds.first
    while op != NULL:
        count += op.list == callbacks and op.held & HOLD_PARKED != 0
        op = op.hold.next
    pthread_mutex_unlock(&holds.lock)
    return count


cdef bint operation_park(operation_t *op, resume_function resume) noexcept nogil:
    cdef holds_t *holds = op.volume.holds
    cdef bint parked
    pthread_mutex_lock(&holds.lock)
    parked = not op.held & HOLD_COMPLETED
    if parked:
        op.held |= HOLD_PARKED
        op.hold.resume = resume
        holds.stopped += 1
    pthread_mutex_unlock(&holds.lock)
    return parked


cdef void holds_leave(holds_t *holds) noexcept nogil:
    pthread_mutex_lock(&holds.lock)
    holds.stopped -= 1
    pthread_cond_broadcast(&holds.changed)
    pthread_mutex_unlock(&holds.lock)


cdef void operation_wait(operation_t *op) noexcept nogil:
    cdef holds_t *holds = op.volume.holds
    pthread_mutex_lock(&holds.lock)
    while not op.held & HOLD_COMPLETED:
        pthread_cond_wait(&holds.changed, &holds.lock)
    pthread_mutex_unlock(&holds.lock)


cdef void holds_settle(holds_t *holds) noexcept nogil:
    pthread_mutex_lock(&holds.lock)
    while holds.stopped:
        pthread_cond_wait(&holds.changed, &holds.lock)
    pthread_mutex_unlock(&holds.lock)


# ---- the filter's side ----

cdef bint operation_complete(operation_t *op, int status, void *context) noexcept nogil:
    """False: it had been completed before."""
    cdef holds_t *holds = op.volume.holds
    cdef int layer = layer_of(op)
    cdef resume_function resume = NULL
    pthread_mutex_lock(&holds.lock)
    if op.held & HOLD_COMPLETED and op.hold.layer == layer:
        pthread_mutex_unlock(&holds.lock)
        return False
    op.hold.layer = layer
    op.hold.status = status
    op.hold.context = context
    op.held |= HOLD_COMPLETED
    if op.held & HOLD_PARKED:
        leave_locked(holds, op)
        resume = op.hold.resume
    else:
        pthread_cond_broadcast(&holds.changed)
    pthread_mutex_unlock(&holds.lock)
    if resume != NULL:
        resume(op.request)
        revert_to_self()                 # a device thread keeps the rights of the one it last served
    return True


cdef void FltCompletePendedPreOperation(FLT_CALLBACK_DATA *Data, int CallbackStatus, void *Context) noexcept nogil:
    if CallbackStatus != FLT_PREOP_SUCCESS_WITH_CALLBACK and CallbackStatus != FLT_PREOP_SUCCESS_NO_CALLBACK and \
            CallbackStatus != FLT_PREOP_COMPLETE:
        CallbackStatus = -1              # reported by the walk as what it is
    operation_complete(<operation_t *>Data, CallbackStatus, Context)


cdef void FltCompletePendedPostOperation(FLT_CALLBACK_DATA *Data) noexcept nogil:
    operation_complete(<operation_t *>Data, 0, NULL)


# ---- cancelling ----

cdef NTSTATUS operation_on_cancel(operation_t *op, cancel_function cancel, void *context) noexcept nogil:
    cdef holds_t *holds = op.volume.holds
    cdef NTSTATUS status = STATUS_SUCCESS
    if not op.data.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION:
        return STATUS_NOT_SUPPORTED
    pthread_mutex_lock(&holds.lock)
    if interrupted_locked(holds, op):
        status = STATUS_CANCELLED
    else:
        enter_locked(holds, op)
        op.hold.cancel_context = context
        op.hold.cancel = cancel
    pthread_mutex_unlock(&holds.lock)
    return status


cdef bint operation_off_cancel(operation_t *op) noexcept nogil:
    cdef holds_t *holds = op.volume.holds
    cdef bint there = False
    pthread_mutex_lock(&holds.lock)
    if op.held & HOLD_ENTERED:
        there = op.hold.cancel != NULL
        op.hold.cancel = NULL
    pthread_mutex_unlock(&holds.lock)
    return there


cdef uint32_t holds_cancel(holds_t *holds, uint64_t unique, const FLT_INSTANCE *instance) noexcept nogil:
    cdef uint32_t found = 0
    cdef operation_t *op
    cdef cancel_function cancel
    cdef void *context
    pthread_mutex_lock(&holds.lock)
    op = holds.first
    while op != NULL:
        if (unique == 0 or op.data.RequestNumber == unique) and (instance == NULL or op.hold.instance == instance):
            found += not op.held & HOLD_CANCELLED
            cancel = claim_locked(op, &context)
            if cancel != NULL:
                pthread_mutex_unlock(&holds.lock)
                cancel(op, context)
                pthread_mutex_lock(&holds.lock)
                op = holds.first         # the list may be another one by now; what was claimed is not called again
                continue
        op = op.hold.next
    pthread_mutex_unlock(&holds.lock)
    return found


cdef uint32_t holds_count(holds_t *holds, const FLT_INSTANCE *instance) noexcept nogil:
    cdef uint32_t count = 0
    cdef operation_t *op
    pthread_mutex_lock(&holds.lock)
    op = holds.first
    while op != NULL:
        count += instance == NULL or op.hold.instance == instance
        op = op.hold.next
    pthread_mutex_unlock(&holds.lock)
    return count


cdef bint holds_interrupt(holds_t *holds, uint64_t unique) noexcept nogil:
    if unique == 0:
        return False
    pthread_mutex_lock(&holds.lock)
    unique_add(&holds.early, unique)
    pthread_mutex_unlock(&holds.lock)
    return holds_cancel(holds, unique, NULL) != 0


cdef void holds_end_request(holds_t *holds, uint64_t unique) noexcept nogil:
    if load_uint(&holds.early.count) == 0:
        return
    pthread_mutex_lock(&holds.lock)
    unique_remove(&holds.early, unique)
    pthread_mutex_unlock(&holds.lock)


cdef void call_routine(operation_t *op, void *context) noexcept nogil:
    (<PFLT_COMPLETE_CANCELED_CALLBACK>context)(&op.data)


cdef NTSTATUS FltSetCancelCompletion(FLT_CALLBACK_DATA *Data, PFLT_COMPLETE_CANCELED_CALLBACK CanceledCallback) noexcept nogil:
    return operation_on_cancel(<operation_t *>Data, call_routine, <void *>CanceledCallback)


cdef NTSTATUS FltClearCancelCompletion(FLT_CALLBACK_DATA *Data) noexcept nogil:
    return STATUS_SUCCESS if operation_off_cancel(<operation_t *>Data) else STATUS_CANCELLED


cdef bint FltIsIoCanceled(FLT_CALLBACK_DATA *Data) noexcept nogil:
    cdef operation_t *op = <operation_t *>Data
    cdef bint cancelled
    pthread_mutex_lock(&op.volume.holds.lock)
    cancelled = interrupted_locked(op.volume.holds, op)
    pthread_mutex_unlock(&op.volume.holds.lock)
    return cancelled


cdef bint FltCancelIo(FLT_CALLBACK_DATA *Data) noexcept nogil:
    cdef operation_t *op = <operation_t *>Data
    cdef cancel_function cancel
    cdef void *context = NULL
    pthread_mutex_lock(&op.volume.holds.lock)
    cancel = claim_locked(op, &context)
    pthread_mutex_unlock(&op.volume.holds.lock)
    if cancel != NULL:
        cancel(op, context)
    return cancel != NULL


# ---- levels ----

cdef int operation_irql(const operation_t *op) noexcept nogil:
    """A post of an IRP may come in any thread, at DISPATCH_LEVEL, but for CREATE, what was synchronised and what is drained
    (A6.12)."""
    cdef uint32_t kind = op.data.Flags & (FLTFL_CALLBACK_DATA_IRP_OPERATION | FLTFL_CALLBACK_DATA_DRAINING_IO)
    if not goes_up(op) or kind != FLTFL_CALLBACK_DATA_IRP_OPERATION or \
            op.current.MajorFunction == IRP_MJ_CREATE or op.layers[op.bottom].post_owed >= POST_SYNCHRONISED:
        return PASSIVE_LEVEL
    return DISPATCH_LEVEL


cdef void callback_enter(callback_frame_t *frame, operation_t *op, int level) noexcept nogil:
    frame.op = op
    frame.irql = level
    frame.outer = <callback_frame_t *>pending_set_innermost(frame)


cdef void callback_leave(callback_frame_t *frame) noexcept nogil:
    pending_set_innermost(frame.outer)


cdef int irql_set(int level) noexcept nogil:
    cdef callback_frame_t *frame = <callback_frame_t *>pending_innermost
    cdef int before
    if frame is NULL:
        return PASSIVE_LEVEL
    before = frame.irql
    frame.irql = level
    return before


cdef int irql_get() noexcept nogil:
    return PASSIVE_LEVEL if pending_innermost is NULL else (<callback_frame_t *>pending_innermost).irql


cdef int irql_require(int level, str routine) except -1:
    if verifier_on and irql_get() > level:
        verifier_too_high(irql_get(), level, routine)
    return 0


def current_irql() -> int:
    """KeGetCurrentIrql: the level of the calling thread. DISPATCH_LEVEL (2) in posts that may come at it, else 0."""
    return irql_get()


def interrupted_requestors():
    """None: this thread runs no callback of the stack. Else the thread ids of the programs whose operations its
    callbacks are about, the one in hand and those around it, as far as an INTERRUPT, or a cancel, has come for them."""
    cdef callback_frame_t *frame = <callback_frame_t *>pending_innermost
    if frame is NULL:
        return None
    cdef list found = []
    while frame is not NULL:
        if frame.op.data.Thread.tid and FltIsIoCanceled(&frame.op.data):
            found.append(frame.op.data.Thread.tid)
        frame = frame.outer
    return found


def require_irql(int level, str routine not None) -> None:
    """Says that `routine` may be called at `level` at most. RuntimeError, while the verifier is on, when it is higher."""
    irql_require(level, routine)
