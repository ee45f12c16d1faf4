# Operations that a filter holds: pended in their pre or post callback, completed or cancelled from any thread (pending.pyx).
# Native filters call the routines named Flt...; Python filters have them as methods of CallbackData.

from libc.stdint cimport uint32_t, uint64_t
from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_INSTANCE, FLT_VOLUME
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.stack cimport callback_list_t, cancel_function, holds_t, operation_t, resume_function
from stackfs.cext.unique_set cimport unique_set_t

# operation_t.held, under holds_t.lock
cdef enum:
    HOLD_ENTERED = 1                     # among holds_t's, where a cancel finds it
    HOLD_HELD = 2                        # its callback has returned FLT_PREOP_PENDING or FLT_POSTOP_MORE_PROCESSING_REQUIRED
    HOLD_COMPLETED = 4                   # its filter has completed it
    HOLD_PARKED = 8                      # whoever walked it has let go: the one that completes it goes on
    HOLD_CANCELLED = 16                  # an INTERRUPT or FltCancelIo has come

    HOLD_RAISED = -0x5AFE                # a completion's status: the callback raised, and was reported

    PASSIVE_LEVEL = 0
    APC_LEVEL = 1
    DISPATCH_LEVEL = 2

# A Python callback that a thread runs: innermost first, on the thread's stack, from callback_enter() to callback_leave().
cdef struct callback_frame_t:
    operation_t *op
    int irql
    callback_frame_t *outer

ctypedef int (*notify_function)(void *context, const char *data, uint32_t length) noexcept nogil       # notices.pyx

# What a volume asks of the device it is mounted by (connection.pyx).
cdef struct device_calls_t:
    int (*interrupted)(void *connection, uint64_t unique) noexcept nogil       # has an INTERRUPT come for it?
    notify_function queue                # a notification that the kernel may make wait
    notify_function tell                 # one that it does not: it is written now

cdef struct holds_t:
    pthread_mutex_t lock                 # a leaf, but for `device`, whose calls may take one more
    pthread_cond_t changed               # something was completed, or has gone on to its end
    operation_t *first                   # entered, by hold.next
    operation_t *last
    uint32_t count
    uint32_t stopped                     # parked, or gone on with and not yet at an end
    const device_calls_t *device         # NULL: none
    void *connection                     # for its calls
    uint32_t telling                     # how many threads are in device.tell, without the lock
    unique_set_t early                   # interrupted before they were held: requests made by hand

cdef holds_t *holds_new() noexcept nogil
cdef void holds_free(holds_t *holds) noexcept nogil
# NULL: no more, and nobody is in one of its calls.
cdef void holds_connect(holds_t *holds, const device_calls_t *device, void *connection) noexcept nogil

# The walk's side. operation_hold(): a callback keeps it; False: it has been completed already.
cdef bint operation_hold(operation_t *op) noexcept nogil
cdef bint hold_is_completed(operation_t *op) noexcept nogil
cdef int hold_taken_over(operation_t *op, void **context) noexcept nogil       # completed: its status; it is the walk's again
cdef void hold_forget(operation_t *op) noexcept nogil                          # nobody holds it after all
cdef uint32_t holds_on_list(holds_t *holds, const callback_list_t *callbacks) noexcept nogil   # how many of its operations are held

# Who walked it, and has nothing more to do with it, lets go: True: resume(op.request) will be called once, by the thread
# that completes it; it ends with holds_leave(), its last use of the volume. False: it has been completed: go on.
cdef bint operation_park(operation_t *op, resume_function resume) noexcept nogil
cdef void holds_leave(holds_t *holds) noexcept nogil
cdef void operation_wait(operation_t *op) noexcept nogil                       # in place, until it has been completed
cdef void holds_settle(holds_t *holds) noexcept nogil                          # in place, until nothing parked is left

# Cancelling. unique 0: of all requests; instance NULL: of all instances. How many there were.
cdef uint32_t holds_cancel(holds_t *holds, uint64_t unique, const FLT_INSTANCE *instance) noexcept nogil
cdef uint32_t holds_count(holds_t *holds, const FLT_INSTANCE *instance) noexcept nogil
cdef bint holds_interrupt(holds_t *holds, uint64_t unique) noexcept nogil      # of a request made by hand, also before it is held
cdef void holds_end_request(holds_t *holds, uint64_t unique) noexcept nogil
cdef NTSTATUS operation_on_cancel(operation_t *op, cancel_function cancel, void *context) noexcept nogil
cdef bint operation_off_cancel(operation_t *op) noexcept nogil                 # False: it is being cancelled, or nothing was set

cdef bint operation_complete(operation_t *op, int status, void *context) noexcept nogil        # status as its callback would return it
cdef int operation_irql(const operation_t *op) noexcept nogil                  # the level its callback runs at (A6.12)
cdef void callback_enter(callback_frame_t *frame, operation_t *op, int level) noexcept nogil
cdef void callback_leave(callback_frame_t *frame) noexcept nogil
cdef int irql_set(int level) noexcept nogil                                    # of the callback that this thread runs; what it was
cdef int irql_get() noexcept nogil                                             # of this thread
cdef int irql_require(int level, str routine) except -1                        # RuntimeError, with the verifier: it is higher

# --- for filters (A6, A8): the data of an IRP, from its callback on until the filter has completed it
ctypedef void (*PFLT_COMPLETE_CANCELED_CALLBACK)(FLT_CALLBACK_DATA *Data) noexcept nogil

# CallbackStatus: FLT_PREOP_SUCCESS_WITH_CALLBACK, ..._NO_CALLBACK or FLT_PREOP_COMPLETE; anything else fails the operation.
cdef void FltCompletePendedPreOperation(FLT_CALLBACK_DATA *Data, int CallbackStatus, void *Context) noexcept nogil
cdef void FltCompletePendedPostOperation(FLT_CALLBACK_DATA *Data) noexcept nogil
# STATUS_CANCELLED: it has been cancelled already, and the routine will not be called. STATUS_NOT_SUPPORTED: it is no IRP.
cdef NTSTATUS FltSetCancelCompletion(FLT_CALLBACK_DATA *Data, PFLT_COMPLETE_CANCELED_CALLBACK CanceledCallback) noexcept nogil
# STATUS_CANCELLED: the routine has been called, or is about to be: the operation is the routine's.
cdef NTSTATUS FltClearCancelCompletion(FLT_CALLBACK_DATA *Data) noexcept nogil
cdef bint FltIsIoCanceled(FLT_CALLBACK_DATA *Data) noexcept nogil
cdef bint FltCancelIo(FLT_CALLBACK_DATA *Data) noexcept nogil                  # False: nobody has said how
