"""Buffers of operations: MDLs, and what a filter may know of those it swapped (docs/semantics.md, A5).

Here an MDL only describes memory: nothing has to be mapped or pinned, for a request's memory is the daemon's own. What it is for
stays: one way to the bytes that is good in any thread, and the rule whose it is and when it goes.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from stackfs.cext.callback_data cimport (
    FLTFL_CALLBACK_DATA_FAST_IO_OPERATION, FLTFL_CALLBACK_DATA_POST_OPERATION, FLT_PARAMETERS, IRP_MJ_DEVICE_CONTROL,
    IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_INTERNAL_DEVICE_CONTROL, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_SECURITY,
    IRP_MJ_READ, IRP_MJ_SET_EA, IRP_MJ_SET_SECURITY, IRP_MJ_WRITE, LABEL_SECURITY_INFORMATION, FltSetCallbackDataDirty)
from stackfs.cext.ntstatus cimport STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_PARAMETER, STATUS_SUCCESS


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


cdef NTSTATUS FltDecodeParameters(FLT_CALLBACK_DATA *CallbackData, void ***MdlAddressPointer, void ***Buffer, uint32_t **Length,
                                  uint32_t *DesiredAccess) noexcept nogil:
    cdef void **mdl
    cdef void **buffer
    cdef uint32_t *length
    cdef uint32_t access
    if not fields(CallbackData.Iopb, &mdl, &buffer, &length, &access):
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


cdef NTSTATUS FltLockUserBuffer(FLT_CALLBACK_DATA *CallbackData) noexcept nogil:
    cdef operation_t *op = <operation_t *>CallbackData
    cdef void **mdl
    cdef void **buffer
    cdef uint32_t *length
    cdef uint32_t access
    cdef MDL *made
    if not fields(CallbackData.Iopb, &mdl, &buffer, &length, &access) or buffer[0] is NULL:
        return STATUS_INVALID_PARAMETER
    if mdl[0] is not NULL:
        return STATUS_SUCCESS
    made = IoAllocateMdl(buffer[0], length[0])
    if made is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    made.Next = <MDL *>op.mdls
    op.mdls = made
    mdl[0] = made
    if not CallbackData.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
        FltSetCallbackDataDirty(CallbackData)
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
    if below is NULL or not op.data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
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


cdef MDL *FltGetSwappedBufferMdlAddress(FLT_CALLBACK_DATA *CallbackData) noexcept nogil:
    return swapped_mdl(<operation_t *>CallbackData, False)


cdef MDL *FltRetainSwappedBufferMdlAddress(FLT_CALLBACK_DATA *CallbackData) noexcept nogil:
    return swapped_mdl(<operation_t *>CallbackData, True)


cdef bint is_own(const operation_t *op, const MDL *mdl) noexcept nogil:
    cdef const MDL *own = <const MDL *>op.mdls
    while own is not NULL and own is not mdl:
        own = own.Next
    return own is not NULL


cdef void passed_down_release(operation_t *op) noexcept nogil:
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
