"""What CallbackData needs of the walk (stack.pyx) and of what holds operations (pending.pyx): thin, see there."""

from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_RELATED_OBJECTS
from stackfs.cext.pending cimport (
    HOLD_RAISED, FltCancelIo, FltIsIoCanceled, irql_get, operation_complete, operation_off_cancel,
    operation_on_cancel)
from stackfs.cext.stack cimport operation_keep, operation_t, report_exception, report_forgotten

ctypedef void (*cancelled_function)(void *context) noexcept nogil

cdef cancelled_function call = NULL      # there is one


cdef void holding_complete(FLT_CALLBACK_DATA *data, int status, void *context) noexcept nogil:
    operation_complete(<operation_t *>data, status, context)


cdef void holding_raised(FLT_CALLBACK_DATA *data) noexcept nogil:
    operation_complete(<operation_t *>data, HOLD_RAISED, NULL)


cdef int holding_on_cancel(FLT_CALLBACK_DATA *data, cancelled_function cancelled, void *context) noexcept nogil:
    global call
    call = cancelled
    return operation_on_cancel(<operation_t *>data, call_cancelled, context)


cdef void call_cancelled(operation_t *op, void *context) noexcept nogil:
    """The operation may be gone by now: the context is not."""
    call(context)


cdef bint holding_off_cancel(FLT_CALLBACK_DATA *data) noexcept nogil:
    cdef operation_t *op = <operation_t *>data
    if not operation_off_cancel(op):
        return False
    if op.hold.queue_context is not NULL:
        (<FLT_CALLBACK_DATA **>op.hold.queue_context)[0] = NULL
        op.hold.queue_context = NULL
    return True


cdef bint holding_is_cancelled(FLT_CALLBACK_DATA *data) noexcept nogil:
    return FltIsIoCanceled(data)


cdef bint holding_cancel(FLT_CALLBACK_DATA *data) noexcept nogil:
    return FltCancelIo(data)


cdef int holding_irql() noexcept nogil:
    return irql_get()


cdef bint holding_has_post(const FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects) noexcept:
    return objects.Instance.PythonPost[data.Iopb.MajorFunction] is not NULL


cdef object holding_instance(const FLT_RELATED_OBJECTS *objects):
    return <object>objects.Instance.Object


cdef void holding_keep(FLT_CALLBACK_DATA *data, list things):
    operation_keep(<operation_t *>data, things)


cdef void holding_forgotten(FLT_CALLBACK_DATA *data):
    report_forgotten(<operation_t *>data)


cdef void holding_report(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, str routine, error):
    report_exception(objects.Instance, <operation_t *>data, routine, error)
