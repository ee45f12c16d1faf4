"""Buffers of operations: MDLs, and what a filter may know of those it swapped (docs/semantics.md, A5).

Here an MDL only describes memory: nothing has to be mapped or pinned, for a request's memory is the daemon's own. What it is for
stays: one way to the bytes that is good in any thread, and the rule whose it is and when it goes.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from stackfs.cext.callback_data cimport (
    CallbackData, FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER, FLTFL_CALLBACK_DATA_POST_OPERATION, FLT_PARAMETERS,
    IRP_MJ_DEVICE_CONTROL, IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_INTERNAL_DEVICE_CONTROL,
    IRP_MJ_QUERY_EA, IRP_MJ_QUERY_SECURITY, IRP_MJ_READ, IRP_MJ_SET_EA, IRP_MJ_SET_SECURITY, IRP_MJ_WRITE,
    LABEL_SECURITY_INFORMATION, FltSetCallbackDataDirty)
from stackfs.cext.ntstatus cimport STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_PARAMETER, STATUS_SUCCESS
from stackfs.cext.verifier cimport verifier_complains, verifier_on


cdef MDL *IoAllocateMdl(void *VirtualAddress, uint32_t Length) noexcept nogil:
    cdef MDL *mdl = <MDL *>malloc(cython.sizeof(MDL))
    if mdl is not NULL:
        mdl.Next = NULL
        mdl.StartVa = VirtualAddress
        mdl.ByteCount = Length
        mdl.MdlFlags = 0
    return mdl


cdef void IoFreeMdl(MDL *Mdl) noexcept nogil:
    free(Mdl)


cdef bint fields(FLT_IO_PARAMETER_BLOCK *p, void ***mdl, void ***buffer, uint32_t **length, uint32_t *access) noexcept nogil:
    """The table of FltDecodeParameters. False: this operation has no buffer."""
    cdef uint8_t major = p.MajorFunction
    cdef FLT_PARAMETERS *q = &p.Parameters
    if major == IRP_MJ_READ or major == IRP_MJ_WRITE:
        mdl[0] = &q.Read.MdlAddress
        buffer[0] = &q.Read.Buffer
        length[0] = &q.Read.Length
        access[0] = IoWriteAccess if major == IRP_MJ_READ else IoReadAccess      # to the buffer, which a read writes
    elif major == IRP_MJ_DIRECTORY_CONTROL:
        mdl[0] = &q.Directory.MdlAddress
        buffer[0] = &q.Directory.Buffer
        length[0] = &q.Directory.Length
        access[0] = IoWriteAccess
    elif major == IRP_MJ_QUERY_EA or major == IRP_MJ_SET_EA or (
            (major == IRP_MJ_QUERY_SECURITY or major == IRP_MJ_SET_SECURITY)
            and q.Ea.SecurityInformation & LABEL_SECURITY_INFORMATION):
        mdl[0] = &q.Ea.MdlAddress
        buffer[0] = &q.Ea.Buffer
        length[0] = &q.Ea.Length
        access[0] = IoWriteAccess if major == IRP_MJ_QUERY_EA or major == IRP_MJ_QUERY_SECURITY else IoReadAccess
    elif major == IRP_MJ_FILE_SYSTEM_CONTROL or major == IRP_MJ_DEVICE_CONTROL or major == IRP_MJ_INTERNAL_DEVICE_CONTROL:
        mdl[0] = &q.Control.MdlAddress
        buffer[0] = &q.Control.OutputBuffer
        length[0] = &q.Control.OutputBufferLength
        access[0] = IoModifyAccess
    else:
        return False
    return True


cdef NTSTATUS FltDecodeParameters(FLT_CALLBACK_DATA *Data, void ***MdlAddressPointer, void ***Buffer, uint32_t **Length,
                                  uint32_t *DesiredAccess) noexcept nogil:
    cdef void **mdl
    cdef void **buffer
    cdef uint32_t *length
    cdef uint32_t access
    if not fields(Data.Iopb, &mdl, &buffer, &length, &access):
        return STATUS_INVALID_PARAMETER
    if MdlAddressPointer is not NULL:
        MdlAddressPointer[0] = mdl
    if Buffer is not NULL:
        Buffer[0] = buffer
    if Length is not NULL:
        Length[0] = length
    if DesiredAccess is not NULL:
        DesiredAccess[0] = access
    return STATUS_SUCCESS


cdef NTSTATUS FltLockUserBuffer(FLT_CALLBACK_DATA *Data) noexcept nogil:
    cdef operation_t *op = <operation_t *>Data
    cdef void **mdl
    cdef void **buffer
    cdef uint32_t *length
    cdef uint32_t access
    cdef MDL *made
    if not fields(Data.Iopb, &mdl, &buffer, &length, &access) or buffer[0] is NULL:
        return STATUS_INVALID_PARAMETER
    if mdl[0] is not NULL:
        return STATUS_SUCCESS
    made = <MDL *>op.mdls
    while made is not NULL and not (made.StartVa is buffer[0] and made.ByteCount >= length[0]):
        made = made.Next
    if made is not NULL:
        mdl[0] = made
        if not Data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
            FltSetCallbackDataDirty(Data)
        return STATUS_SUCCESS
    made = IoAllocateMdl(buffer[0], length[0])
    if made is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    made.Next = <MDL *>op.mdls
    op.mdls = made
    mdl[0] = made
    if not Data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
        FltSetCallbackDataDirty(Data)
    return STATUS_SUCCESS


cdef MDL *swapped_mdl(operation_t *op, bint take) noexcept nogil:
    """What describes the buffer that the layer whose post runs has swapped in: its own MDL, or one made below."""
    cdef FLT_IO_PARAMETER_BLOCK *below = op.passed_down
    cdef void **mdl
    cdef void **buffer
    cdef void **received_mdl
    cdef void **received
    cdef uint32_t *length
    cdef uint32_t access
    cdef MDL **link = <MDL **>&op.mdls
    cdef MDL *found
    if below is NULL or op.passed_down_by != op.bottom or not op.data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
        return NULL
    if not fields(below, &mdl, &buffer, &length, &access) or not fields(&op.current, &received_mdl, &received, &length, &access):
        return NULL
    if buffer[0] == received[0]:
        return NULL                      # it has swapped none
    while link[0] is not NULL and link[0].StartVa is not buffer[0]:
        link = &link[0].Next
    found = link[0]
    if found is not NULL:
        if take:
            link[0] = found.Next
            found.Next = NULL
        return found
    found = <MDL *>mdl[0]
    if take:
        mdl[0] = NULL
    return found


cdef MDL *FltGetSwappedBufferMdlAddress(FLT_CALLBACK_DATA *Data) noexcept nogil:
    return swapped_mdl(<operation_t *>Data, False)


cdef MDL *FltRetainSwappedBufferMdlAddress(FLT_CALLBACK_DATA *Data) noexcept nogil:
    return swapped_mdl(<operation_t *>Data, True)


cdef bint is_own(const operation_t *op, const MDL *mdl) noexcept nogil:
    cdef const MDL *own = <const MDL *>op.mdls
    while own is not NULL and own is not mdl:
        own = own.Next
    return own is not NULL


cdef void take_back(operation_t *op, layer_t *layer) noexcept nogil:
    cdef FLT_IO_PARAMETER_BLOCK passed = op.current
    if op.passed_down is not NULL:
        passed_down_release(op)
    op.current = layer.parameters[0]
    layer.parameters[0] = passed
    op.passed_down = layer.parameters
    op.passed_down_by = op.bottom
    layer.parameters = NULL
    if op.data.Flags & FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER:
        system_buffer_restored(op)


cdef void passed_down_release(operation_t *op) noexcept nogil:
    """op.current is what the layer had received that passed it down."""
    cdef void **mdl
    cdef void **buffer
    cdef void **received_mdl
    cdef uint32_t *length
    cdef uint32_t access
    if fields(op.passed_down, &mdl, &buffer, &length, &access) and fields(&op.current, &received_mdl, &buffer, &length, &access) and \
            mdl[0] is not NULL and mdl[0] is not received_mdl[0] and not is_own(op, <const MDL *>mdl[0]):
        IoFreeMdl(<MDL *>mdl[0])
    free(op.passed_down)
    op.passed_down = NULL


cdef void mdls_free(operation_t *op) noexcept nogil:
    cdef MDL *following
    cdef MDL *mdl = <MDL *>op.mdls
    while mdl is not NULL:
        following = mdl.Next
        IoFreeMdl(mdl)
        mdl = following
    op.mdls = NULL


cdef void system_buffer_swapped(operation_t *op, FLT_IO_PARAMETER_BLOCK *received) noexcept nogil:
    cdef void **mdl
    cdef void **before
    cdef void **now
    cdef uint32_t *length
    cdef uint32_t access
    if not fields(received, &mdl, &before, &length, &access) or not fields(&op.current, &mdl, &now, &length, &access) or \
            before[0] is now[0]:
        return
    if op.system_buffer is NULL:
        op.system_buffer = before[0]
    op.data.Flags |= FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER


cdef void system_buffer_restored(operation_t *op) noexcept nogil:
    cdef void **mdl
    cdef void **now
    cdef uint32_t *length
    cdef uint32_t access
    if fields(&op.current, &mdl, &now, &length, &access) and now[0] is op.system_buffer:
        op.data.Flags &= ~<uint32_t>FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER


# --- the Python face ------------------------------------------------------------------------------------------------------

cdef class Mdl:
    """Describes memory: a buffer of the filter's own (IoAllocateMdl), or an operation's, as long as its callback runs."""
    cdef MDL *mdl
    cdef bint owned
    cdef CallbackData data               # the operation that it describes the buffer of, or None
    cdef bint writable
    cdef Py_buffer held

    def __init__(self, buffer not None):
        PyObject_GetBuffer(buffer, &self.held, PyBUF_SIMPLE)
        self.writable = not self.held.readonly
        self.mdl = IoAllocateMdl(self.held.buf, <uint32_t>self.held.len)
        if self.mdl is NULL:
            raise MemoryError()
        self.owned = True

    def __dealloc__(self):
        if self.owned:
            IoFreeMdl(self.mdl)
        PyBuffer_Release(&self.held)

    @property
    def byte_count(self) -> int:
        """MmGetMdlByteCount."""
        return self.live().ByteCount

    cdef MDL *live(self) except NULL:
        if self.data is not None:
            self.data.live()
        if self.mdl is NULL:
            raise ReferenceError("an MDL that is somebody else's by now")
        return self.mdl

    def address(self) -> memoryview:
        """MmGetSystemAddressForMdlSafe: the memory, as a memoryview."""
        cdef MDL *mdl = self.live()
        if self.data is not None:
            return self.data.view(mdl.StartVa, mdl.ByteCount, self.writable)
        return memoryview(<object>self.held.obj)[:mdl.ByteCount]

    def free(self):
        """IoFreeMdl: of one's own, or one that was retained."""
        self.live()
        if self.owned:
            IoFreeMdl(self.mdl)
        self.owned = False
        self.mdl = NULL


cdef object face_of(CallbackData data, MDL *mdl, bint owned):
    cdef Mdl face
    cdef void **field
    cdef void **buffer
    cdef uint32_t *length
    cdef uint32_t access = IoReadAccess
    if mdl is NULL:
        return None
    fields(data.data.Iopb, &field, &buffer, &length, &access)
    face = Mdl.__new__(Mdl)
    face.mdl = mdl
    face.owned = owned
    face.data = data
    face.writable = data.writable and access != IoReadAccess
    return face


def decode_parameters(CallbackData data not None):
    """FltDecodeParameters: the access that the operation needs to its buffer (LockOperation), or None: it has no buffer."""
    cdef uint32_t access = 0
    if FltDecodeParameters(data.live(), NULL, NULL, NULL, &access) != STATUS_SUCCESS:
        return None
    return access


def mdl_of(CallbackData data not None):
    """The MDL in the operation's parameters, or None."""
    cdef void **field
    if FltDecodeParameters(data.live(), &field, NULL, NULL, NULL) != STATUS_SUCCESS:
        return None
    return face_of(data, <MDL *>field[0], False)


def set_mdl(CallbackData data not None, Mdl mdl):
    """Puts an MDL beside a swapped buffer, in a pre callback; it is the manager's from then on. None: there shall be none."""
    cdef void **field = NULL
    cdef MDL *pointer = NULL
    if FltDecodeParameters(data.live(), &field, NULL, NULL, NULL) != STATUS_SUCCESS:
        data.refuse("an MDL")
    if data.data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
        raise AttributeError("a buffer is swapped in the pre callback")
    if mdl is not None:
        pointer = mdl.live()
        if not mdl.owned:
            raise ValueError("that MDL is not the filter's own")
        data.keep(mdl)                   # the memory
        mdl.owned = False
        mdl.mdl = NULL
    field[0] = pointer


def lock_user_buffer(CallbackData data not None) -> int:
    """FltLockUserBuffer: the status."""
    return <uint32_t>FltLockUserBuffer(data.live())


def swapped_mdl_of(CallbackData data not None, bint retain=False):
    """FltGetSwappedBufferMdlAddress, FltRetainSwappedBufferMdlAddress: in the swapper's own post callback, else None."""
    if verifier_on and not data.live().Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
        verifier_complains(data.data, data.objects.Instance, b"pre",
                           b"the swapped buffer's MDL is there in the swapper's own post callback alone")
    if retain:
        return face_of(data, FltRetainSwappedBufferMdlAddress(data.live()), True)
    return face_of(data, FltGetSwappedBufferMdlAddress(data.live()), False)
