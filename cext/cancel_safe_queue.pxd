# Cancel-safe queues: operations that a filter holds in a queue of its own, each removed or cancelled, never both
# (cancel_safe_queue.pyx; docs/semantics.md A8).

from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_INSTANCE
from stackfs.cext.ntstatus cimport NTSTATUS

cdef struct FLT_CALLBACK_DATA_QUEUE

# The filter's own. The queue's lock, which Acquire takes, is held around the first three and around nothing else.
ctypedef NTSTATUS (*PFLT_CALLBACK_DATA_QUEUE_INSERT_IO)(FLT_CALLBACK_DATA_QUEUE *Cbdq, FLT_CALLBACK_DATA *Cbd,
                                                        void *InsertContext) noexcept nogil
ctypedef void (*PFLT_CALLBACK_DATA_QUEUE_REMOVE_IO)(FLT_CALLBACK_DATA_QUEUE *Cbdq, FLT_CALLBACK_DATA *Cbd) noexcept nogil
# Cbd NULL: the first one; else the one behind it; NULL: there is none.
ctypedef FLT_CALLBACK_DATA *(*PFLT_CALLBACK_DATA_QUEUE_PEEK_NEXT_IO)(FLT_CALLBACK_DATA_QUEUE *Cbdq, FLT_CALLBACK_DATA *Cbd,
                                                                     void *PeekContext) noexcept nogil
ctypedef void (*PFLT_CALLBACK_DATA_QUEUE_ACQUIRE)(FLT_CALLBACK_DATA_QUEUE *Cbdq) noexcept nogil
ctypedef void (*PFLT_CALLBACK_DATA_QUEUE_RELEASE)(FLT_CALLBACK_DATA_QUEUE *Cbdq) noexcept nogil
# Completes it: FltCompletePendedPreOperation(Cbd, FLT_PREOP_COMPLETE, NULL), with STATUS_CANCELLED.
ctypedef void (*PFLT_CALLBACK_DATA_QUEUE_COMPLETE_CANCELED_IO)(FLT_CALLBACK_DATA_QUEUE *Cbdq,
                                                               FLT_CALLBACK_DATA *Cbd) noexcept nogil

ctypedef struct FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT:      # names one insertion, for FltCbdqRemoveIo
    FLT_CALLBACK_DATA *Cbd                               # NULL: it is in the queue no more

cdef struct FLT_CALLBACK_DATA_QUEUE:
    FLT_INSTANCE *Instance
    PFLT_CALLBACK_DATA_QUEUE_INSERT_IO InsertIo
    PFLT_CALLBACK_DATA_QUEUE_REMOVE_IO RemoveIo
    PFLT_CALLBACK_DATA_QUEUE_PEEK_NEXT_IO PeekNextIo
    PFLT_CALLBACK_DATA_QUEUE_ACQUIRE Acquire
    PFLT_CALLBACK_DATA_QUEUE_RELEASE Release
    PFLT_CALLBACK_DATA_QUEUE_COMPLETE_CANCELED_IO CompleteCanceledIo
    int Enabled                                          # under the queue's lock
    void *Context                                        # the filter's own

cdef void FltCbdqInitialize(
    FLT_INSTANCE *Instance, FLT_CALLBACK_DATA_QUEUE *Cbdq, PFLT_CALLBACK_DATA_QUEUE_INSERT_IO CbdqInsertIo,
    PFLT_CALLBACK_DATA_QUEUE_REMOVE_IO CbdqRemoveIo, PFLT_CALLBACK_DATA_QUEUE_PEEK_NEXT_IO CbdqPeekNextIo,
    PFLT_CALLBACK_DATA_QUEUE_ACQUIRE CbdqAcquire, PFLT_CALLBACK_DATA_QUEUE_RELEASE CbdqRelease,
    PFLT_CALLBACK_DATA_QUEUE_COMPLETE_CANCELED_IO CbdqCompleteCanceledIo) noexcept nogil
cdef void FltCbdqEnable(FLT_CALLBACK_DATA_QUEUE *Cbdq) noexcept nogil
cdef void FltCbdqDisable(FLT_CALLBACK_DATA_QUEUE *Cbdq) noexcept nogil
# Before the pre callback returns FLT_PREOP_PENDING. STATUS_FLT_CBDQ_DISABLED, STATUS_NOT_SUPPORTED (no IRP), or what InsertIo
# answered: it is not in the queue. Context may be NULL; it lives as long as the operation is in the queue.
cdef NTSTATUS FltCbdqInsertIo(FLT_CALLBACK_DATA_QUEUE *Cbdq, FLT_CALLBACK_DATA *Cbd,
                              FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT *Context, void *InsertContext) noexcept nogil
# Theirs is the operation from now on; NULL: it was removed or cancelled before, or there is none.
cdef FLT_CALLBACK_DATA *FltCbdqRemoveIo(FLT_CALLBACK_DATA_QUEUE *Cbdq, FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT *Context) noexcept nogil
cdef FLT_CALLBACK_DATA *FltCbdqRemoveNextIo(FLT_CALLBACK_DATA_QUEUE *Cbdq, void *PeekContext) noexcept nogil

cdef class CancelSafeQueue:
    """A cancel-safe queue of CallbackData; its callbacks are its methods (see cancel_safe_queue.pyi)."""
    cdef FLT_CALLBACK_DATA_QUEUE queue
    cdef readonly object instance
    cdef readonly list items             # in the order they came, unless a subclass keeps them elsewhere
    cdef object lock
    cdef object raised                   # by a callback, for whoever called the method that called it
    cdef raise_what_raised(self)
    cdef taken(self, FLT_CALLBACK_DATA *data)

cdef class QueueContext:
    """Names one insertion, for CancelSafeQueue.remove()."""
    cdef FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT context
