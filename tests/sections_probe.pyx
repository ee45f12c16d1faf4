# A native filter that scans what is read, for tests: it keeps a section open until something conflicts with it.

from libc.stdint cimport int64_t, uint32_t

from stackfs.cext.callback_data cimport (
    FLT_CALLBACK_DATA, FLT_INSTANCE, FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_RELATED_OBJECTS, IRP_MJ_READ, PAGE_READONLY)
from stackfs.cext.contexts cimport (
    FLT_CONTEXT_REGISTRATION, FLT_SECTION_CONTEXT, FltAllocateContext, FltReleaseContext, NonPagedPool, PFLT_CONTEXT)
from stackfs.cext.ntstatus cimport NTSTATUS, STATUS_SUCCESS
from stackfs.cext.python_contexts cimport FilterContexts, NativeContexts
from stackfs.cext.sections cimport (
    FltCloseSectionForDataScan, FltCreateSectionForDataScan, FltRegisterForDataScan, SECTION_MAP_READ, SEC_COMMIT, section_read,
    section_t)
from stackfs.cext.stack cimport InstanceEntry, NativeOperations

from stackfs.cext.python_contexts import FilterContexts as _FilterContexts
from stackfs.cext.stack import InstanceEntry as _InstanceEntry

cdef NTSTATUS failed = STATUS_SUCCESS
cdef int64_t size = 0
cdef long total = 0
cdef long conflicts = 0


cdef int pre_read(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **_context) noexcept nogil:
    global failed, size, total
    cdef PFLT_CONTEXT context
    cdef section_t *section
    cdef unsigned char buffer[64]
    cdef uint32_t got = 0
    cdef uint32_t i
    failed = FltAllocateContext(objects.Filter, FLT_SECTION_CONTEXT, 8, NonPagedPool, &context)
    if failed == STATUS_SUCCESS:
        failed = FltCreateSectionForDataScan(objects.Instance, objects.FileObject, context, SECTION_MAP_READ, NULL, PAGE_READONLY,
                                             SEC_COMMIT, 0, &section, &size)
        if failed == STATUS_SUCCESS:
            failed = section_read(section, 0, sizeof(buffer), buffer, &got)
        FltReleaseContext(context)
    for i in range(got):
        total += buffer[i]
    return FLT_PREOP_SUCCESS_NO_CALLBACK


cdef int conflict(FLT_INSTANCE *instance, void *context, FLT_CALLBACK_DATA *data) noexcept nogil:
    global conflicts
    conflicts += 1
    return FltCloseSectionForDataScan(context)


class Host:
    pass


def instance():
    cdef NativeOperations native = NativeOperations()
    cdef NativeContexts contexts = NativeContexts()
    cdef FLT_CONTEXT_REGISTRATION row = FLT_CONTEXT_REGISTRATION(FLT_SECTION_CONTEXT, 0, NULL, 8, 0, NULL, NULL)
    contexts.add(&row)
    native.set(IRP_MJ_READ, pre_read, NULL, 0)
    native.section_conflict = conflict
    return _InstanceEntry(Host(), "probe", "300", "probe", native=native, contexts=_FilterContexts((), contexts))


def register(InstanceEntry entry):
    return FltRegisterForDataScan(&entry.instance)


def numbers():
    return failed, size, total, conflicts
