# FltRequestOperationStatusCallback: what comes of an operation below (operation_status.pyx; docs/semantics.md, A6.22).

from libc.stdint cimport uint32_t
from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_IO_PARAMETER_BLOCK, FLT_RELATED_OBJECTS
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.stack cimport operation_t

# OperationStatus: STATUS_PENDING where a filter below holds the operation, else what came from below. Called once.
ctypedef void (*PFLT_GET_OPERATION_STATUS_CALLBACK)(
    const FLT_RELATED_OBJECTS *FltObjects, const FLT_IO_PARAMETER_BLOCK *IopbSnapshot, NTSTATUS OperationStatus,
    void *RequesterContext) noexcept nogil

# In a pre callback, of an IRP that is no CLOSE: else STATUS_INVALID_PARAMETER.
cdef NTSTATUS FltRequestOperationStatusCallback(
    FLT_CALLBACK_DATA *Data, PFLT_GET_OPERATION_STATUS_CALLBACK CallbackRoutine, void *RequesterContext) noexcept nogil

# The walk's part: tells those above `bottom`, and forgets them; final: forgets the others as well, for whom nothing has been below.
cdef void tell_status(operation_t *op, NTSTATUS status, int bottom, bint final) noexcept nogil
