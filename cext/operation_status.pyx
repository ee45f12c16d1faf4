"""What comes of an operation below, for who asked in its pre callback (docs/semantics.md, A6.22).

The requests of one operation are a list in operation_t.status_wanted, the newest first. It is its owner's: who runs the operation
adds to it and takes from it; a drain only looks whether there is one (an operation with a request is waited for, drain.pyx).
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from stackfs.cext.callback_data cimport (
    CallbackData, FLTFL_CALLBACK_DATA_IRP_OPERATION, FLTFL_CALLBACK_DATA_POST_OPERATION, FLT_INSTANCE,
    IRP_MJ_CLOSE, IRP_MJ_DEVICE_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL)
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.ntstatus cimport STATUS_FLT_DELETING_OBJECT, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_PARAMETER, STATUS_SUCCESS
from stackfs.cext.stack cimport INSTANCE_LEAVING, report_exception
from stackfs.cext.threads cimport load_int

from collections import namedtuple


cdef extern from *:
    """
    static inline void stackfs_want(void **where, void *what) { __atomic_store_n(where, what, __ATOMIC_RELEASE); }
    """
    void stackfs_want(void **where, void *what) nogil

cdef struct wanted_t:
    wanted_t *next
    int layer
    PFLT_GET_OPERATION_STATUS_CALLBACK routine       # NULL: a Python one
    void *context                                    # (routine, context), with a reference, where it is


IoParameterBlock = namedtuple("IoParameterBlock", "IrpFlags MajorFunction MinorFunction OperationFlags ControlCode")
IoParameterBlock.__doc__ = "IopbSnapshot: the operation's parameters as they were, as far as they say which operation it is."


cdef NTSTATUS want(FLT_CALLBACK_DATA *data, PFLT_GET_OPERATION_STATUS_CALLBACK routine, void *context) noexcept nogil:
    cdef operation_t *op = <operation_t *>data
    cdef wanted_t *wanted
    if data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION or not data.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION or \
            op.current.MajorFunction == IRP_MJ_CLOSE or op.list is NULL:
        return STATUS_INVALID_PARAMETER
    if load_int(&op.list.callbacks[op.index - 1].instance.Failed) & INSTANCE_LEAVING:
        return STATUS_FLT_DELETING_OBJECT
    wanted = <wanted_t *>malloc(sizeof(wanted_t))
    if wanted is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    wanted.layer = op.index - 1
    wanted.routine = routine
    wanted.context = context
    wanted.next = <wanted_t *>op.status_wanted
    stackfs_want(&op.status_wanted, wanted)
    return STATUS_SUCCESS


cdef NTSTATUS FltRequestOperationStatusCallback(
        FLT_CALLBACK_DATA *Data, PFLT_GET_OPERATION_STATUS_CALLBACK CallbackRoutine, void *RequesterContext) noexcept nogil:
    return STATUS_INVALID_PARAMETER if CallbackRoutine is NULL else want(Data, CallbackRoutine, RequesterContext)


cdef void tell_status(operation_t *op, NTSTATUS status, int bottom, bint final) noexcept nogil:
    cdef wanted_t *wanted = <wanted_t *>op.status_wanted
    cdef wanted_t *kept = NULL
    cdef wanted_t *one
    revert_to_self()
    while wanted is not NULL:
        one = wanted
        wanted = one.next
        if one.layer < bottom:
            tell(op, one, status)
        elif not final:                  # what asked holds it: it has not been below yet
            one.next = kept
            kept = one
            continue
        forget(one)
    stackfs_want(&op.status_wanted, kept)


cdef void tell(operation_t *op, const wanted_t *one, NTSTATUS status) noexcept nogil:
    cdef FLT_INSTANCE *instance = op.list.callbacks[one.layer].instance
    cdef FLT_RELATED_OBJECTS related = instance.Related
    cdef FLT_IO_PARAMETER_BLOCK snapshot = op.current
    related.FileObject = op.current.TargetFileObject
    snapshot.TargetInstance = instance
    if one.routine is not NULL:
        one.routine(&related, &snapshot, status, one.context)
        return
    with gil:
        call(op, instance, <object><PyObject *>one.context, &snapshot, <uint32_t>status)


cdef void call(operation_t *op, FLT_INSTANCE *instance, tuple wanted, const FLT_IO_PARAMETER_BLOCK *p, uint32_t status):
    routine, context = wanted
    cdef uint8_t major = p.MajorFunction
    cdef uint32_t code = 0
    if major == IRP_MJ_FILE_SYSTEM_CONTROL or major == IRP_MJ_DEVICE_CONTROL:
        code = p.Parameters.Control.ControlCode
    try:
        routine(<object>instance.Object, IoParameterBlock(p.IrpFlags, major, p.MinorFunction, p.OperationFlags, code), status, context)
    except BaseException as error:
        report_exception(instance, op, "operation status", error)


cdef void forget(wanted_t *one) noexcept nogil:
    if one.routine is NULL:
        with gil:
            Py_DECREF(<object><PyObject *>one.context)
    free(one)


def request_status(CallbackData data not None, routine not None, context=None) -> int:
    """data.request_operation_status()"""
    cdef tuple wanted = (routine, context)
    cdef NTSTATUS status = want(data.live(), NULL, <void *>wanted)
    if status == STATUS_SUCCESS:
        Py_INCREF(wanted)                # until it has been told
    return <uint32_t>status
