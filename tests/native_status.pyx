# A native instance for tests: it asks what comes of each CREATE, and finds routines by name.

from libc.stdint cimport uint32_t, uintptr_t

from stackfs.cext.callback_data cimport (
    FILTER_ABI, FLT_CALLBACK_DATA, FLT_IO_PARAMETER_BLOCK, FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_RELATED_OBJECTS, IRP_MJ_CREATE)
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.operation_status cimport FltRequestOperationStatusCallback
from stackfs.cext.routines cimport FltGetRoutineAddress
from stackfs.cext.stack cimport NativeOperations

cdef uint32_t seen[16]
cdef int count = 0


cdef void tell(const FLT_RELATED_OBJECTS *objects, const FLT_IO_PARAMETER_BLOCK *iopb, NTSTATUS status, void *context) noexcept nogil:
    global count
    if count < 16 and context is &count:
        seen[count] = iopb.MajorFunction
        seen[count + 1] = <uint32_t>status
        count += 2


cdef int pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    FltRequestOperationStatusCallback(data, tell, &count)
    return FLT_PREOP_SUCCESS_NO_CALLBACK


def told():
    return [(seen[i], seen[i + 1]) for i in range(0, count, 2)]


def abi():
    return FILTER_ABI


def address(name):
    cdef bytes text = name.encode()
    return <uintptr_t>FltGetRoutineAddress(text)


def operations(int abi):
    """abi: what it says that it was compiled for; 0: the truth."""
    cdef NativeOperations table = NativeOperations()
    table.set(IRP_MJ_CREATE, pre, NULL, 0)
    if abi:
        table.abi = abi
    return table
