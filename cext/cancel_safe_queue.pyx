"""Cancel-safe queues (docs/semantics.md A8).

The queue and its lock are the filter's; what is here decides who gets an operation. To be in the queue is to have
`cbdq_cancel` as what cancels it (pending.pyx). Whoever takes that away, under the mutex there, has won: a removal then
takes the operation out and owns it; a cancel takes it out and has it completed as cancelled. A removal that finds it
taken leaves the operation where it is, since the one who cancels is on his way to the queue's lock.

    INTERRUPT ── takes cbdq_cancel ──► Acquire ─ RemoveIo ─ Release ─► CompleteCanceledIo
    a worker  ── Acquire ─ PeekNextIo ─ takes cbdq_cancel? ─ RemoveIo ─ Release ─► completes it itself
                               ▲              │ no: the next one
                               └──────────────┘

Lock order: the queue's lock before holds_t.lock, which is a leaf. CompleteCanceledIo is called with neither.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t
from libc.string cimport memset

from stackfs.cext.callback_data cimport (
    CallbackData, FLTFL_CALLBACK_DATA_IRP_OPERATION, FLT_CALLBACK_DATA, FLT_INSTANCE)
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, STATUS_CANCELLED, STATUS_FLT_CBDQ_DISABLED, STATUS_NOT_SUPPORTED, STATUS_SUCCESS, STATUS_UNSUCCESSFUL)
from stackfs.cext.pending cimport APC_LEVEL, irql_require, operation_off_cancel, operation_on_cancel
from stackfs.cext.stack cimport operation_t

from threading import Lock


cdef void FltCbdqInitialize(
        FLT_INSTANCE *Instance, FLT_CALLBACK_DATA_QUEUE *Cbdq, PFLT_CALLBACK_DATA_QUEUE_INSERT_IO CbdqInsertIo,
        PFLT_CALLBACK_DATA_QUEUE_REMOVE_IO CbdqRemoveIo, PFLT_CALLBACK_DATA_QUEUE_PEEK_NEXT_IO CbdqPeekNextIo,
        PFLT_CALLBACK_DATA_QUEUE_ACQUIRE CbdqAcquire, PFLT_CALLBACK_DATA_QUEUE_RELEASE CbdqRelease,
        PFLT_CALLBACK_DATA_QUEUE_COMPLETE_CANCELED_IO CbdqCompleteCanceledIo) noexcept nogil:
    memset(Cbdq, 0, sizeof(FLT_CALLBACK_DATA_QUEUE))
    Cbdq.Instance = Instance
    Cbdq.InsertIo = CbdqInsertIo
    Cbdq.RemoveIo = CbdqRemoveIo
    Cbdq.PeekNextIo = CbdqPeekNextIo
    Cbdq.Acquire = CbdqAcquire
    Cbdq.Release = CbdqRelease
    Cbdq.CompleteCanceledIo = CbdqCompleteCanceledIo
    Cbdq.Enabled = 1


cdef void FltCbdqEnable(FLT_CALLBACK_DATA_QUEUE *Cbdq) noexcept nogil:
    Cbdq.Acquire(Cbdq)
    Cbdq.Enabled = 1
    Cbdq.Release(Cbdq)


cdef void FltCbdqDisable(FLT_CALLBACK_DATA_QUEUE *Cbdq) noexcept nogil:
    Cbdq.Acquire(Cbdq)
    Cbdq.Enabled = 0
    Cbdq.Release(Cbdq)


cdef void forget_context(operation_t *op) noexcept nogil:
    """Under the queue's lock: it is not in the queue any more."""
    if op.hold.queue_context != NULL:
        (<FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT *>op.hold.queue_context).Cbd = NULL
        op.hold.queue_context = NULL


cdef void cbdq_cancel(operation_t *op, void *queue) noexcept nogil:
    cdef FLT_CALLBACK_DATA_QUEUE *cbdq = <FLT_CALLBACK_DATA_QUEUE *>queue
    cbdq.Acquire(cbdq)
    forget_context(op)
    cbdq.RemoveIo(cbdq, &op.data)
    cbdq.Release(cbdq)
    cbdq.CompleteCanceledIo(cbdq, &op.data)


cdef NTSTATUS FltCbdqInsertIo(FLT_CALLBACK_DATA_QUEUE *Cbdq, FLT_CALLBACK_DATA *Cbd,
                              FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT *Context, void *InsertContext) noexcept nogil:
    cdef operation_t *op = <operation_t *>Cbd
    cdef NTSTATUS status
    if not Cbd.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION:
        return STATUS_NOT_SUPPORTED
    Cbdq.Acquire(Cbdq)
    if not Cbdq.Enabled:
        Cbdq.Release(Cbdq)
        return STATUS_FLT_CBDQ_DISABLED
    status = Cbdq.InsertIo(Cbdq, Cbd, InsertContext)
    if not NT_SUCCESS(status):
        Cbdq.Release(Cbdq)
        return status
    status = operation_on_cancel(op, cbdq_cancel, Cbdq)
    if status == STATUS_SUCCESS:
        op.hold.queue_context = Context  # under the queue's lock, which whoever cancels now waits for
        if Context != NULL:
            Context.Cbd = Cbd
        Cbdq.Release(Cbdq)
        return STATUS_SUCCESS
    Cbdq.RemoveIo(Cbdq, Cbd)
    Cbdq.Release(Cbdq)
    Cbdq.CompleteCanceledIo(Cbdq, Cbd)   # as if it had been cancelled a moment later: the callback returns PENDING
    return STATUS_SUCCESS


cdef FLT_CALLBACK_DATA *FltCbdqRemoveIo(FLT_CALLBACK_DATA_QUEUE *Cbdq, FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT *Context) noexcept nogil:
    cdef FLT_CALLBACK_DATA *data
    Cbdq.Acquire(Cbdq)
    data = Context.Cbd
    if data != NULL:
        if operation_off_cancel(<operation_t *>data):
            forget_context(<operation_t *>data)
            Cbdq.RemoveIo(Cbdq, data)
        else:
            data = NULL
    Cbdq.Release(Cbdq)
    return data


cdef FLT_CALLBACK_DATA *FltCbdqRemoveNextIo(FLT_CALLBACK_DATA_QUEUE *Cbdq, void *PeekContext) noexcept nogil:
    cdef FLT_CALLBACK_DATA *data
    Cbdq.Acquire(Cbdq)
    data = Cbdq.PeekNextIo(Cbdq, NULL, PeekContext)
    while data != NULL and not operation_off_cancel(<operation_t *>data):
        data = Cbdq.PeekNextIo(Cbdq, data, PeekContext)
    if data != NULL:
        forget_context(<operation_t *>data)
        Cbdq.RemoveIo(Cbdq, data)
    Cbdq.Release(Cbdq)
    return data


# ---- the Python face: the same queue, with callbacks that take the GIL and call its methods ----

cdef class QueueContext:
    """Names one insertion: `queue.insert(data, context)`, then `queue.remove(context)`."""

    @property
    def queued(self):
        """Is it still in the queue?"""
        return self.context.Cbd != NULL


cdef inline CallbackData face_of(FLT_CALLBACK_DATA *data):
    return <CallbackData>(<operation_t *>data).hold.face


cdef NTSTATUS python_insert(FLT_CALLBACK_DATA_QUEUE *cbdq, FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    with gil:
        return call_insert(<CancelSafeQueue>cbdq.Context, data, context)


cdef NTSTATUS call_insert(CancelSafeQueue queue, FLT_CALLBACK_DATA *data, void *context) noexcept:
    try:
        answer = queue.insert_io(face_of(data), None if context == NULL else <object>context)
        return <NTSTATUS><uint32_t>(0 if answer is None else answer)
    except BaseException as error:
        queue.raised = error
        return STATUS_UNSUCCESSFUL


cdef void python_remove(FLT_CALLBACK_DATA_QUEUE *cbdq, FLT_CALLBACK_DATA *data) noexcept nogil:
    with gil:
        call_remove(<CancelSafeQueue>cbdq.Context, data)


cdef void call_remove(CancelSafeQueue queue, FLT_CALLBACK_DATA *data) noexcept:
    cdef CallbackData face = face_of(data)
    try:
        queue.remove_io(face)
    except BaseException as error:
        report(queue, face, error)


cdef FLT_CALLBACK_DATA *python_peek(FLT_CALLBACK_DATA_QUEUE *cbdq, FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    with gil:
        return call_peek(<CancelSafeQueue>cbdq.Context, data, context)


cdef FLT_CALLBACK_DATA *call_peek(CancelSafeQueue queue, FLT_CALLBACK_DATA *data, void *context) noexcept:
    """One that was completed although it is in the queue is passed by: there is nothing left of it to give away."""
    cdef CallbackData found = None if data == NULL else face_of(data)
    try:
        while True:
            found = queue.peek_next_io(found, None if context == NULL else <object>context)
            if found is None:
                return NULL
            if found.data != NULL and found.queue is queue:
                return found.data
    except BaseException as error:
        queue.raised = error
        return NULL


cdef void python_acquire(FLT_CALLBACK_DATA_QUEUE *cbdq) noexcept nogil:
    with gil:
        call_plain(<CancelSafeQueue>cbdq.Context, True)


cdef void python_release(FLT_CALLBACK_DATA_QUEUE *cbdq) noexcept nogil:
    with gil:
        call_plain(<CancelSafeQueue>cbdq.Context, False)


cdef void call_plain(CancelSafeQueue queue, bint acquire) noexcept:
    try:
        if acquire:
            queue.acquire()
        else:
            queue.release()
    except BaseException as error:
        queue.raised = error


cdef void python_canceled(FLT_CALLBACK_DATA_QUEUE *cbdq, FLT_CALLBACK_DATA *data) noexcept nogil:
    with gil:
        call_canceled(<CancelSafeQueue>cbdq.Context, data)


cdef void call_canceled(CancelSafeQueue queue, FLT_CALLBACK_DATA *data) noexcept:
    """The operation is the routine's. One that raises leaves it to nobody: its data, once forgotten, fails it."""
    cdef CallbackData face = face_of(data)
    let_go(face)
    try:
        queue.complete_canceled_io(face)
    except BaseException as error:
        report(queue, face, error)


cdef void let_go(CallbackData face) noexcept:
    """It is in no queue any more. The caller has a reference of his own."""
    face.cancellable = False
    face.queue = face.on_cancel = None
    Py_DECREF(face)


cdef void report(CancelSafeQueue queue, CallbackData face, error) noexcept:
    try:
        queue.instance.callback_raised("cancel-safe queue", face.major if face.data != NULL else -1,
                                       face.path if face.data != NULL else "", error)
    except BaseException:
        pass


cdef class CancelSafeQueue:
    """Operations that a filter holds; each is removed or cancelled, never both (semantics A8). Enabled from the start.

    The callbacks of the DDI are its methods, to be overridden: insert_io, remove_io, peek_next_io, acquire, release and
    complete_canceled_io. As they are: first in, first out, under a lock of its own, and what is cancelled is completed
    with STATUS_CANCELLED.
    """

    def __init__(self, instance=None):
        irql_require(APC_LEVEL, "FltCbdqInitialize")
        self.instance = instance
        self.items = []
        self.lock = Lock()
        FltCbdqInitialize(NULL, &self.queue, python_insert, python_remove, python_peek, python_acquire, python_release,
                          python_canceled)
        self.queue.Context = <void *><PyObject *>self

    # The filter's own.

    def insert_io(self, data, insert_context):
        """Takes it into the queue. A failure status (or an exception) keeps it out, and is insert()'s answer."""
        self.items.append(data)

    def remove_io(self, data):
        """Takes it out."""
        self.items.remove(data)

    def peek_next_io(self, data, peek_context):
        """The one behind `data`, the first for None; None: there is none."""
        cdef int at = 0 if data is None else self.items.index(data) + 1
        return self.items[at] if at < len(self.items) else None

    def acquire(self):
        """Takes the queue's lock."""
        self.lock.acquire()

    def release(self):
        """Gives it back."""
        self.lock.release()

    def complete_canceled_io(self, data):
        """It was cancelled, and is out of the queue: complete it. The queue's lock is free."""
        data.complete_pended_pre(data.complete(<uint32_t>STATUS_CANCELLED))

    # The manager's.

    cdef raise_what_raised(self):
        raised = self.raised
        self.raised = None
        if raised is not None:
            raise raised

    def insert(self, CallbackData data not None, QueueContext context=None, insert_context=None):
        """FltCbdqInsertIo: an unsigned NTSTATUS. Then, on success, `return FLT_PREOP_PENDING`.

        STATUS_FLT_CBDQ_DISABLED; STATUS_NOT_SUPPORTED: it is no IRP; or what insert_io answered (what it raised is
        raised). An operation that is cancelled already is completed as such: that is a success.
        """
        cdef FLT_CALLBACK_DATA *cbd = data.live()
        cdef FLT_CALLBACK_DATA_QUEUE *queue = &self.queue
        cdef FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT *named = NULL if context is None else &context.context
        cdef void *given = NULL if insert_context is None else <void *>insert_context
        cdef NTSTATUS status
        if data.cancellable:
            raise ValueError("the operation has a cancel completion, or is in a cancel-safe queue")
        Py_INCREF(data)                  # the queue's, until it is removed or cancelled
        data.cancellable = True
        data.queue = self
        data.on_cancel = context         # keeps it
        (<operation_t *>cbd).hold.face = <PyObject *>data
        with nogil:
            status = FltCbdqInsertIo(queue, cbd, named, given)
        if not NT_SUCCESS(status):
            let_go(data)
            self.raise_what_raised()
        return <uint32_t>status

    def remove(self, QueueContext context not None):
        """FltCbdqRemoveIo: the operation, which is the caller's to complete; None: it was removed or cancelled before."""
        cdef FLT_CALLBACK_DATA_QUEUE *queue = &self.queue
        cdef FLT_CALLBACK_DATA *data
        with nogil:
            data = FltCbdqRemoveIo(queue, &context.context)
        return self.taken(data)

    def remove_next(self, peek_context=None):
        """FltCbdqRemoveNextIo: the next operation that is not cancelled, now the caller's to complete; None: there is none."""
        cdef FLT_CALLBACK_DATA_QUEUE *queue = &self.queue
        cdef FLT_CALLBACK_DATA *data
        cdef void *given = NULL if peek_context is None else <void *>peek_context
        with nogil:
            data = FltCbdqRemoveNextIo(queue, given)
        return self.taken(data)

    cdef taken(self, FLT_CALLBACK_DATA *data):
        cdef CallbackData face
        if data == NULL:
            self.raise_what_raised()
            return None
        face = face_of(data)
        let_go(face)
        return face

    def enable(self):
        """FltCbdqEnable."""
        cdef FLT_CALLBACK_DATA_QUEUE *queue = &self.queue
        with nogil:
            FltCbdqEnable(queue)

    def disable(self):
        """FltCbdqDisable: from now on insert() answers STATUS_FLT_CBDQ_DISABLED. What is in the queue stays removable."""
        cdef FLT_CALLBACK_DATA_QUEUE *queue = &self.queue
        with nogil:
            FltCbdqDisable(queue)

    def __len__(self):
        return len(self.items)
