# A native filter for tests that keeps one oplock for all files of its volume: it checks it in READ, WRITE and CLEANUP, and grants it
# by FSCTL. Its callbacks never take the GIL.

from libc.stdint cimport uint32_t

from stackfs.cext.callback_data cimport (
    FLT_CALLBACK_DATA, FLT_RELATED_OBJECTS, IRP_MJ_CLEANUP, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_READ, IRP_MJ_WRITE)
from stackfs.cext.oplock cimport (
    OPLOCK, FltCheckOplock, FltCurrentBatchOplock, FltCurrentOplock, FltCurrentOplockH, FltInitializeOplock, FltOplockBreakToNone,
    FltOplockFsctrl, FltOplockIsFastIoPossible, FltOplockIsSharedRequest, FltUninitializeOplock, oplock_go_on)
from stackfs.cext.stack cimport NativeOperations

cdef OPLOCK oplock
cdef int in_place = 0
cdef int last_shared = 0
FltInitializeOplock(&oplock)


cdef int check(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    if in_place:
        return FltCheckOplock(&oplock, data, NULL, NULL, NULL)
    return FltCheckOplock(&oplock, data, NULL, oplock_go_on, NULL)


cdef int break_all(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    return FltOplockBreakToNone(&oplock, data, NULL, oplock_go_on, NULL)


cdef int control(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    global last_shared
    last_shared = FltOplockIsSharedRequest(data)
    return FltOplockFsctrl(&oplock, data, 0 if last_shared else 1)


cdef int nothing(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    return 0


def operations(bint wait_in_place):
    """READ, WRITE and CLEANUP are checked, FLUSH_BUFFERS breaks everything."""
    global in_place
    in_place = wait_in_place
    cdef NativeOperations table = NativeOperations()
    table.set(IRP_MJ_READ, check, nothing, 0)
    table.set(IRP_MJ_WRITE, check, nothing, 0)
    table.set(IRP_MJ_CLEANUP, check, nothing, 0)
    table.set(IRP_MJ_FLUSH_BUFFERS, break_all, nothing, 0)
    table.set(IRP_MJ_FILE_SYSTEM_CONTROL, control, nothing, 0)
    return table


def current():
    """(any, H, batch, fast I/O possible, the last request was a shared one)"""
    return (FltCurrentOplock(&oplock), FltCurrentOplockH(&oplock), FltCurrentBatchOplock(&oplock),
            FltOplockIsFastIoPossible(&oplock), bool(last_shared))


def end():
    with nogil:
        FltUninitializeOplock(&oplock)
    FltInitializeOplock(&oplock)
