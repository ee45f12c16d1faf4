"""audit's callbacks: one record for each request that is watched, written without the GIL.

The pre callback of an operation reserves the room that its record may need, so that the post callback can neither fail
nor wait. A request may consist of several operations (semantics D); its record is written by the operation that stands
for it (REQUEST_PRINCIPAL), or by an earlier one that failed and so ended it. The completion context is the time at
which the operation came, in monotonic nanoseconds.

Any thread may run these callbacks. A watch is read only while its instance is attached.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from stackfs.cext.callback_data cimport (
    FLTFL_POST_OPERATION_DRAINING,
    FLT_CALLBACK_DATA, FLT_POSTOP_FINISHED_PROCESSING, FLT_PREOP_COMPLETE, FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_RELATED_OBJECTS, FileEndOfFileInformation, FileLinkInformation, FileRenameInformation,
    FileRenameInformationEx, IRP_MJ_CLEANUP, IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_SET_INFORMATION, IRP_MJ_SET_SECURITY,
    IRP_MJ_WRITE, REQUEST_PRINCIPAL)
from stackfs.cext.inode_table cimport inode_table_t  # no-cython-lint: completes node_t
from stackfs.cext.ntstatus cimport NT_SUCCESS, STATUS_DISK_FULL, STATUS_FLT_DISALLOW_FAST_IO, nt_to_errno
from stackfs.cext.paths cimport operation_path, target_path
from stackfs.cext.process cimport requestor_recently
from stackfs.cext.stack cimport (
    CALLBACK_AS_ANYBODY, MAJOR_FUNCTIONS, NativeOperations, about_to_wait, instance_pointer, operation_t)
from stackfs.filters.audit._trail cimport (
    BOUND_ONE, BOUND_TWO, RECORD_DRAINED, RECORD_KERNEL, RECORD_OTHER_PARTIAL, RECORD_PATH_DELETED, RECORD_PATH_PARTIAL,
    REQUEST_FIXED, TEXT_ROOM, TRAIL_FULL, TRAIL_PASSED, TRAIL_REFUSED, Trail, request_record_t, trail_cancel, trail_commit, trail_reserve)

cdef extern from *:
    """
    #include <fcntl.h>
    """
    int O_TRUNC

cdef enum:
    OPCODE_OPEN = 14
    DELETED_LENGTH = 10                  # " (deleted)", behind the last path of a file without a name
    TRUNCATING = 63


cdef inline uint64_t now(int clock) noexcept nogil:
    cdef timespec time
    clock_gettime(clock, &time)
    return <uint64_t>time.tv_sec * <uint64_t>1000000000 + <uint64_t>time.tv_nsec


cdef bint watched(const watch_t *watch, const FLT_CALLBACK_DATA *data) noexcept nogil:
    cdef uint32_t opcode = data.RequestOpcode
    if opcode < TRUNCATING and watch.mask >> opcode & 1:
        return True
    return opcode == OPCODE_OPEN and watch.mask >> TRUNCATING and data.Iopb.MajorFunction == IRP_MJ_CREATE and \
        data.Iopb.Parameters.Create.OpenFlags & <uint32_t>O_TRUNC


cdef bint may_end_its_request(const FLT_CALLBACK_DATA *data) noexcept nogil:
    """Not the principal operation, but one that comes before it and ends the request when it fails."""
    cdef uint8_t major = data.Iopb.MajorFunction
    return major == IRP_MJ_CREATE or major == IRP_MJ_SET_SECURITY or major == IRP_MJ_SET_INFORMATION


cdef bint has_second_path(const FLT_CALLBACK_DATA *data) noexcept nogil:
    cdef uint32_t which = data.Iopb.Parameters.SetFile.FileInformationClass
    return data.Iopb.MajorFunction == IRP_MJ_SET_INFORMATION and (
        which == FileRenameInformation or which == FileRenameInformationEx or which == FileLinkInformation)


cdef int pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef watch_t *watch = <watch_t *>objects.Instance.Context
    cdef uint32_t bound
    cdef int room
    if not watched(watch, data) or not (data.RequestFlags & REQUEST_PRINCIPAL or may_end_its_request(data)):
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    bound = BOUND_TWO if has_second_path(data) else BOUND_ONE
    room = trail_reserve(watch.trail, bound, data.Iopb.MajorFunction == IRP_MJ_CLEANUP, False)
    if room == TRAIL_FULL:
        about_to_wait(<operation_t *>data)
        room = trail_reserve(watch.trail, bound, data.Iopb.MajorFunction == IRP_MJ_CLEANUP, True)
    if room == TRAIL_PASSED:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    if room == TRAIL_REFUSED:
        data.IoStatus.Status = STATUS_DISK_FULL
        data.IoStatus.Information = 0
        return FLT_PREOP_COMPLETE
    context[0] = <void *><uintptr_t>now(CLOCK_MONOTONIC)
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef int post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef watch_t *watch = <watch_t *>objects.Instance.Context
    cdef bint two = has_second_path(data)
    cdef uint32_t bound = BOUND_TWO if two else BOUND_ONE
    cdef char room[BOUND_TWO + 8]
    cdef request_record_t *record = <request_record_t *>room
    cdef char *text = room + REQUEST_FIXED
    cdef uint64_t ended
    cdef int length
    if data.IoStatus.Status == STATUS_FLT_DISALLOW_FAST_IO or (     # it comes again, as an IRP
            not data.RequestFlags & REQUEST_PRINCIPAL and NT_SUCCESS(data.IoStatus.Status)):
        trail_cancel(watch.trail, bound)
        return FLT_POSTOP_FINISHED_PROCESSING
    memset(record, 0, REQUEST_FIXED)
    ended = now(CLOCK_MONOTONIC)
    record.duration = ended - <uint64_t><uintptr_t>context
    record.time = now(CLOCK_REALTIME) - record.duration
    record.request = data.RequestNumber
    record.opcode = data.RequestOpcode
    record.major = data.Iopb.MajorFunction
    record.status = data.IoStatus.Status
    record.error = <uint32_t>nt_to_errno(data.IoStatus.Status)
    record.information = data.IoStatus.Information
    record.tid = data.Thread.tid
    record.uid = data.Thread.uid
    record.gid = data.Thread.gid
    record.pid = requestor_recently(data.Thread, record.comm, <int64_t>ended)
    record.offset = -1
    if flags & FLTFL_POST_OPERATION_DRAINING:
        record.flags |= RECORD_DRAINED
    if record.major == IRP_MJ_READ or record.major == IRP_MJ_WRITE:
        record.offset = data.Iopb.Parameters.Read.ByteOffset
        record.size = data.Iopb.Parameters.Read.Length
    elif record.major == IRP_MJ_CREATE:
        record.argument = data.Iopb.Parameters.Create.OpenFlags
    elif record.major == IRP_MJ_SET_INFORMATION and \
            data.Iopb.Parameters.SetFile.FileInformationClass == FileEndOfFileInformation:
        record.size = <uint64_t>data.Iopb.Parameters.SetFile.EndOfFile
    if not data.RequestorMode:
        record.flags |= RECORD_KERNEL
    length = operation_path(data, objects, text, TEXT_ROOM)
    if length < 0:                       # longer than a path may be: its last component
        length = min(<int>data.Iopb.FileName.Length, <int>TEXT_ROOM)
        memcpy(text, data.Iopb.FileName.Buffer, length)
        record.flags |= RECORD_PATH_PARTIAL
    elif data.Iopb.FileName.Length == 0 and length > DELETED_LENGTH and objects.FileObject.Node.deleted and \
            memcmp(text + length - DELETED_LENGTH, b" (deleted)", DELETED_LENGTH) == 0:
        length -= DELETED_LENGTH         # a flag says it, so that no name can pretend it
        record.flags |= RECORD_PATH_DELETED
    record.path_length = <unsigned short>length
    if two:
        record.other_length = <unsigned short>second_path(data, objects, text + length, record)
    trail_commit(watch.trail, record, bound)
    return FLT_POSTOP_FINISHED_PROCESSING


cdef int second_path(const FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, char *text,
                     request_record_t *record) noexcept nogil:
    """A rename's or link's new path; its length."""
    cdef int length = target_path(data, objects, text, TEXT_ROOM)
    if length >= 0:
        return length
    record.flags |= RECORD_OTHER_PARTIAL         # longer than a path may be: its last component
    length = min(<int>data.Iopb.Parameters.SetFile.TargetName.Length, <int>TEXT_ROOM)
    memcpy(text, data.Iopb.Parameters.SetFile.TargetName.Buffer, length)
    return length


cdef class Watch:
    """Ties one instance to its trail."""

    def __init__(self, entry not None, Trail trail not None, uint64_t mask):
        self.trail = trail
        self.entry = entry
        self.watch.trail = trail.trail
        self.watch.mask = mask
        instance_pointer(entry).Context = &self.watch

    def release(self):
        instance_pointer(self.entry).Context = NULL
        self.trail = None


def operations(list majors not None):
    """See _callbacks.pyi."""
    cdef NativeOperations table = NativeOperations()
    cdef int major
    for major in majors:
        if not 0 <= major < MAJOR_FUNCTIONS:
            raise ValueError(f"{major:#x} is no operation")
        table.set(major, pre, post, <uint32_t>CALLBACK_AS_ANYBODY)
    return table
