# A native instance for tests: C callbacks that show Python what a C filter sees, and do to the data what Python says.
# (A real native filter takes no lock and calls no Python; this one has nothing else to do.)

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uintptr_t

from stackfs.cext.callback_data cimport (
    FLT_CALLBACK_DATA, FLT_RELATED_OBJECTS, IRP_MJ_READ, PFLT_POST_OPERATION_CALLBACK, PFLT_PRE_OPERATION_CALLBACK,
    FltIsCallbackDataDirty, FltSetCallbackDataDirty)
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.stack cimport NativeOperations, instance_pointer


cdef object seen(const FLT_CALLBACK_DATA *data):
    cdef bint reads = data.Iopb.MajorFunction == IRP_MJ_READ
    return (data.Iopb.MajorFunction,
            PyBytes_FromStringAndSize(data.Iopb.FileName.Buffer, data.Iopb.FileName.Length),
            data.Iopb.Parameters.Read.ByteOffset if reads else 0, data.Iopb.Parameters.Read.Length if reads else 0,
            <uint32_t>data.IoStatus.Status, data.IoStatus.Information, FltIsCallbackDataDirty(data))


cdef int pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    with gil:
        return call_pre(data, <object>objects.Instance.Context, context)


cdef int call_pre(FLT_CALLBACK_DATA *data, object host, void **context) noexcept:
    cdef bytes name
    act = host.native_pre(seen(data))
    if act.io is not None:
        data.IoStatus.Status = <NTSTATUS><uint32_t>act.io[0]
        data.IoStatus.Information = act.io[1]
    if act.rename is not None:
        data.Iopb.MajorFunction = 0x1b              # must be put back, whether dirty or not
        data.Iopb.TargetFileObject = NULL
        if data.Iopb.FileName.Length:
            name = act.rename
            host.kept.append(name)
            data.Iopb.FileName.Buffer = PyBytes_AS_STRING(name)
            data.Iopb.FileName.Length = len(name)
        else:
            data.Iopb.Parameters.Read.ByteOffset += host.moves
            data.Iopb.Parameters.Read.Length -= 1 if data.Iopb.Parameters.Read.Length and host.moves else 0
    if hasattr(act, "operation_flags"):
        data.Iopb.OperationFlags = act.operation_flags
    if act.dirty:
        FltSetCallbackDataDirty(data)
    if act.context is not None:
        context[0] = <void *><uintptr_t>act.context
    return act.status


cdef int post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    with gil:
        return call_post(data, <object>objects.Instance.Context, context, flags)


cdef int call_post(FLT_CALLBACK_DATA *data, object host, void *context, uint32_t flags) noexcept:
    act = host.native_post(seen(data), <uintptr_t>context or None, flags)
    if act.io is not None:
        data.IoStatus.Status = <NTSTATUS><uint32_t>act.io[0]
        data.IoStatus.Information = act.io[1]
    if act.dirty:
        FltSetCallbackDataDirty(data)
    return act.status


def operations(registered):
    """registered: {major: (pre, post)}, whether there is such a callback."""
    cdef NativeOperations table = NativeOperations()
    cdef PFLT_PRE_OPERATION_CALLBACK before
    cdef PFLT_POST_OPERATION_CALLBACK after
    for major, (has_pre, has_post) in registered.items():
        before = NULL
        after = NULL
        if has_pre:
            before = pre
        if has_post:
            after = post
        table.set(major, before, after, 0)
    return table


def bind(entry, host):
    """`host` (which must outlive the instance) is asked by its callbacks."""
    instance_pointer(entry).Context = <void *><PyObject *>host
