# A native instance for tests: C callbacks that show Python what a C filter sees, and do to the data what Python says.
# (A real native filter takes no lock and calls no Python; this one has nothing else to do.)

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

from stackfs.cext.callback_data cimport (
    FLT_CALLBACK_DATA, FLT_INSTANCE, FLT_RELATED_OBJECTS, PFLT_POST_OPERATION_CALLBACK,
    PFLT_PRE_OPERATION_CALLBACK, FltIsCallbackDataDirty, FltSetCallbackDataDirty)
from stackfs.cext.ntstatus cimport NTSTATUS, STATUS_SUCCESS
from stackfs.cext.pending cimport (
    FltCancelIo, FltClearCancelCompletion, FltCompletePendedPostOperation, FltCompletePendedPreOperation, FltIsIoCanceled,
    FltSetCancelCompletion)
from stackfs.cext.reissue cimport FltCancelFileOpen, FltReissueSynchronousIo
from stackfs.cext.stack cimport NativeOperations, instance_pointer

routines = {}       # cancel completions, by the address of the data


cdef class Data:
    """What of CallbackData the tests use, over the C structure."""
    cdef FLT_CALLBACK_DATA *data
    cdef FLT_INSTANCE *instance
    cdef list kept

    @property
    def address(self):
        return <uintptr_t>self.data

    @property
    def major(self):
        return self.data.Iopb.MajorFunction

    @property
    def flags(self):
        return self.data.Flags & ~<uint32_t>0x80000000

    @property
    def request_number(self):
        return self.data.RequestNumber

    @property
    def is_dirty(self):
        return bool(FltIsCallbackDataDirty(self.data))

    @property
    def is_canceled(self):
        return bool(FltIsIoCanceled(self.data))

    @property
    def name(self):
        return PyBytes_FromStringAndSize(self.data.Iopb.FileName.Buffer, self.data.Iopb.FileName.Length)

    @name.setter
    def name(self, bytes value):
        self.kept.append(value)
        self.data.Iopb.FileName.Buffer = PyBytes_AS_STRING(value)
        self.data.Iopb.FileName.Length = len(value)

    @property
    def offset(self):
        return self.data.Iopb.Parameters.Read.ByteOffset

    @offset.setter
    def offset(self, value):
        self.data.Iopb.Parameters.Read.ByteOffset = value

    @property
    def length(self):
        return self.data.Iopb.Parameters.Read.Length

    @length.setter
    def length(self, value):
        self.data.Iopb.Parameters.Read.Length = value

    @property
    def operation_flags(self):
        return self.data.Iopb.OperationFlags

    @operation_flags.setter
    def operation_flags(self, value):
        self.data.Iopb.OperationFlags = value

    @property
    def status(self):
        return <uint32_t>self.data.IoStatus.Status

    @status.setter
    def status(self, value):
        self.data.IoStatus.Status = <NTSTATUS><uint32_t>value

    @property
    def information(self):
        return self.data.IoStatus.Information

    @information.setter
    def information(self, value):
        self.data.IoStatus.Information = value

    def set_dirty(self):
        FltSetCallbackDataDirty(self.data)

    def spoil(self):
        """What no filter may do: the function, and the file it is about."""
        self.data.Iopb.MajorFunction = 0x1b
        self.data.Iopb.TargetFileObject = NULL

    def complete_pended_pre(self, int status, context=None):
        cdef void *given = <void *><uintptr_t>(context or 0)
        with nogil:
            FltCompletePendedPreOperation(self.data, status, given)

    def complete_pended_post(self):
        with nogil:
            FltCompletePendedPostOperation(self.data)

    def set_cancel_completion(self, routine):
        routines[self.address] = routine, self
        status = FltSetCancelCompletion(self.data, cancelled)
        if status != STATUS_SUCCESS:
            del routines[self.address]
        return <uint32_t>status

    def clear_cancel_completion(self):
        status = FltClearCancelCompletion(self.data)
        routines.pop(self.address, None)
        return <uint32_t>status

    def cancel(self):
        cdef bint done
        with nogil:
            done = FltCancelIo(self.data)
        return bool(done)

    def reissue(self):
        cdef NTSTATUS status
        with nogil:
            status = FltReissueSynchronousIo(self.instance, self.data)
        return status == STATUS_SUCCESS

    def cancel_open(self):
        cdef NTSTATUS status
        with nogil:
            status = FltCancelFileOpen(self.instance, self.data)
        return status == STATUS_SUCCESS


cdef Data face(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects):
    made = Data()
    made.data = data
    made.instance = objects.Instance
    made.kept = (<object>objects.Instance.Context).kept
    return made


cdef void cancelled(FLT_CALLBACK_DATA *data) noexcept nogil:
    with gil:
        call_cancelled(data)


cdef int call_cancelled(FLT_CALLBACK_DATA *data) noexcept:
    routine, given = routines.pop(<uintptr_t>data)
    routine(given)
    return 0


cdef int pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    with gil:
        return call_pre(data, objects, context)


cdef int call_pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept:
    host = <object>objects.Instance.Context
    try:
        answer = host.pre(face(data, objects), host)
    except BaseException as error:
        host.broken(error)
        return 99
    if isinstance(answer, tuple):
        answer, value = answer
        context[0] = <void *><uintptr_t>value
    return answer


cdef int post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    with gil:
        return call_post(data, objects, context, flags)


cdef int call_post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept:
    host = <object>objects.Instance.Context
    try:
        return host.post(face(data, objects), host, <uintptr_t>context or None, flags)
    except BaseException as error:
        host.broken(error)
        return 99


def operations(registered, uint32_t flags=0):
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
        table.set(major, before, after, flags)
    return table


def bind(entry, host):
    """`host` (which must outlive the instance) is asked by its callbacks: pre(), post(), and what went wrong in them goes to
    broken(). What they put into the data stays in its list `kept`."""
    instance_pointer(entry).Context = <void *><PyObject *>host
