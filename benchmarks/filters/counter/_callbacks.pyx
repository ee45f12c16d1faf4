"""counter's callbacks: two atomic additions for an operation. Any thread may run them; none takes the GIL."""

from libc.stdint cimport uint32_t, uint64_t

from stackfs.cext.callback_data cimport (
    FLT_CALLBACK_DATA, FLT_POSTOP_FINISHED_PROCESSING, FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_RELATED_OBJECTS,
    IRP_MJ_CLEANUP, IRP_MJ_CLOSE, IRP_MJ_CREATE, IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL,
    IRP_MJ_FLUSH_BUFFERS, IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_INFORMATION, IRP_MJ_QUERY_OPEN,
    IRP_MJ_QUERY_SECURITY, IRP_MJ_QUERY_VOLUME_INFORMATION, IRP_MJ_READ, IRP_MJ_SET_EA, IRP_MJ_SET_INFORMATION,
    IRP_MJ_SET_SECURITY, IRP_MJ_WRITE)
from stackfs.cext.ntstatus cimport NT_SUCCESS
from stackfs.cext.stack cimport NativeOperations, instance_pointer

cdef extern from *:
    """
    #define count_one(at) ((void)__atomic_fetch_add(at, 1, __ATOMIC_RELAXED))
    #define count_of(at)  __atomic_load_n(at, __ATOMIC_RELAXED)
    """
    void count_one(uint64_t *at) noexcept nogil
    uint64_t count_of(const uint64_t *at) noexcept nogil

cdef struct counts_t:
    uint64_t seen[256]                   # by major function
    uint64_t ended
    uint64_t failed


cdef int pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef counts_t *counts = <counts_t *>objects.Instance.Context
    count_one(&counts.seen[data.Iopb.MajorFunction])
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef int post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef counts_t *counts = <counts_t *>objects.Instance.Context
    count_one(&counts.ended if NT_SUCCESS(data.IoStatus.Status) else &counts.failed)
    return FLT_POSTOP_FINISHED_PROCESSING


cdef class Counts:
    """What one instance has counted."""
    cdef counts_t counts                 # zero, as every new object
    cdef object entry                    # the instance that points here

    def __init__(self, entry not None):
        self.entry = entry
        instance_pointer(entry).Context = &self.counts

    def release(self):
        instance_pointer(self.entry).Context = NULL

    def seen(self, int major):
        return count_of(&self.counts.seen[major & 255])

    def ended(self):
        return count_of(&self.counts.ended)

    def failed(self):
        return count_of(&self.counts.failed)


def operations():
    cdef NativeOperations table = NativeOperations()
    cdef int major
    for major in (IRP_MJ_CREATE, IRP_MJ_CLEANUP, IRP_MJ_CLOSE, IRP_MJ_READ, IRP_MJ_WRITE, IRP_MJ_QUERY_INFORMATION,
                  IRP_MJ_SET_INFORMATION, IRP_MJ_QUERY_EA, IRP_MJ_SET_EA, IRP_MJ_FLUSH_BUFFERS,
                  IRP_MJ_QUERY_VOLUME_INFORMATION, IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL,
                  IRP_MJ_QUERY_SECURITY, IRP_MJ_SET_SECURITY, IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_QUERY_OPEN):
        table.set(major, pre, post, 0)
    return table
