# A native filter with contexts, for tests: what it keeps is C structures, and its callbacks take no lock of Python's.

from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport free, malloc

from stackfs.cext.callback_data cimport (
    FLT_CALLBACK_DATA, FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_RELATED_OBJECTS, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_READ)
from stackfs.cext.contexts cimport (
    FLT_ALL_CONTEXTS, FLT_CONTEXT_REGISTRATION, FLT_FILE_CONTEXT, FLT_RELATED_CONTEXTS_EX, FLT_SET_CONTEXT_KEEP_IF_EXISTS,
    FLT_STREAMHANDLE_CONTEXT, FLT_STREAM_CONTEXT, FLT_VOLUME_CONTEXT, FltAllocateContext, FltGetContextsEx, FltGetStreamContext,
    FltReleaseContext, FltReleaseContextsEx, FltSetFileContext, FltSetStreamContext, FltSetStreamHandleContext,
    FltSetVolumeContext, NonPagedPool, PFLT_CONTEXT)
from stackfs.cext.ntstatus cimport NTSTATUS, STATUS_SUCCESS
from stackfs.cext.python_contexts cimport NativeContexts
from stackfs.cext.stack cimport NativeOperations


cdef extern from *:
    """
    static long failed, reads, made, gone, pools, related;
    #define count(what, by) __atomic_add_fetch(&what, by, __ATOMIC_RELAXED)
    #define count_at(what)  __atomic_add_fetch(what, 1, __ATOMIC_RELAXED)
    """
    long failed, reads, made, gone, pools, related
    long count(long what, long by) nogil
    long count_at(long *what) nogil

cdef struct stream_t:
    long reads


cdef NTSTATUS keep(const FLT_RELATED_OBJECTS *objects, uint16_t type, size_t size) noexcept nogil:
    cdef PFLT_CONTEXT context
    cdef NTSTATUS status = FltAllocateContext(objects.Filter, type, size, NonPagedPool, &context)
    if status != STATUS_SUCCESS:
        return status
    if type == FLT_STREAM_CONTEXT:
        FltSetStreamContext(objects.Instance, objects.FileObject, FLT_SET_CONTEXT_KEEP_IF_EXISTS, context, NULL)
    elif type == FLT_FILE_CONTEXT:
        FltSetFileContext(objects.Instance, objects.FileObject, FLT_SET_CONTEXT_KEEP_IF_EXISTS, context, NULL)
    elif type == FLT_STREAMHANDLE_CONTEXT:
        count(made, 1)
        status = FltSetStreamHandleContext(objects.Instance, objects.FileObject, FLT_SET_CONTEXT_KEEP_IF_EXISTS, context, NULL)
    else:
        FltSetVolumeContext(objects.Volume, FLT_SET_CONTEXT_KEEP_IF_EXISTS, context, NULL)
    FltReleaseContext(context)
    return status


cdef int pre_read(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef PFLT_CONTEXT stream
    if keep(objects, FLT_STREAM_CONTEXT, sizeof(stream_t)) != STATUS_SUCCESS or keep(objects, FLT_FILE_CONTEXT, 1) != STATUS_SUCCESS \
            or keep(objects, FLT_STREAMHANDLE_CONTEXT, 5) != STATUS_SUCCESS or keep(objects, FLT_VOLUME_CONTEXT, 0) != STATUS_SUCCESS:
        count(failed, 1)
    if FltGetStreamContext(objects.Instance, objects.FileObject, &stream) == STATUS_SUCCESS:
        count_at(&(<stream_t *>stream).reads)
        FltReleaseContext(stream)
    return FLT_PREOP_SUCCESS_NO_CALLBACK


cdef int pre_flush(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef FLT_RELATED_CONTEXTS_EX found
    if FltGetContextsEx(objects, FLT_ALL_CONTEXTS, sizeof(found), &found) == STATUS_SUCCESS and \
            found.VolumeContext is not NULL and found.StreamContext is not NULL and found.FileContext is not NULL and \
            found.StreamHandleContext is not NULL and found.InstanceContext is NULL and found.SectionContext is NULL:
        count(related, 1)
    FltReleaseContextsEx(sizeof(found), &found)
    return FLT_PREOP_SUCCESS_NO_CALLBACK


cdef void stream_gone(PFLT_CONTEXT context, uint16_t type) noexcept nogil:
    count(reads, (<stream_t *>context).reads)


cdef void handle_gone(PFLT_CONTEXT context, uint16_t type) noexcept nogil:
    count(gone, 1)


cdef void *allocate(int pool, size_t size, uint16_t type) noexcept nogil:
    count(pools, 1)
    return malloc(size)


cdef void give_back(void *memory, uint16_t type) noexcept nogil:
    count(pools, -1)
    free(memory)


def operations():
    cdef NativeOperations table = NativeOperations()
    table.set(IRP_MJ_READ, pre_read, NULL, 0)
    table.set(IRP_MJ_FLUSH_BUFFERS, pre_flush, NULL, 0)
    return table


def contexts():
    cdef NativeContexts table = NativeContexts()
    cdef FLT_CONTEXT_REGISTRATION row
    row = FLT_CONTEXT_REGISTRATION(FLT_STREAM_CONTEXT, 0, stream_gone, sizeof(stream_t), 0, NULL, NULL)
    table.add(&row)
    row = FLT_CONTEXT_REGISTRATION(FLT_FILE_CONTEXT, 0, NULL, 0, 0, allocate, give_back)
    table.add(&row)
    row = FLT_CONTEXT_REGISTRATION(FLT_STREAMHANDLE_CONTEXT, 1, handle_gone, 8, 0, NULL, NULL)
    table.add(&row)
    row = FLT_CONTEXT_REGISTRATION(FLT_VOLUME_CONTEXT, 0, NULL, 0, 0, NULL, NULL)
    table.add(&row)
    return table


def counts():
    return {"failed": failed, "reads": reads, "handles made": made, "handles gone": gone, "pools": pools, "related": related}
