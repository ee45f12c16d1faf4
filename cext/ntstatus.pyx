"""NTSTATUS values and the one table between them and errno (docs/semantics.md, "Statuses").

Inside the stack a status is an NTSTATUS. It becomes an errno once, when a lane answers the kernel; a failure of
the base becomes an NTSTATUS once, when the base has made its system call. ENOSYS never leaves: the kernel would
remember it for the whole mount and stop asking (it becomes EOPNOTSUPP).
"""

from libc cimport errno as e
from libc.stdint cimport uint32_t

from enum import IntEnum


cdef extern from "<errno.h>" nogil:
    enum: EDEADLK, ENODATA, EDQUOT, ESTALE, EOPNOTSUPP, EBADF, ECANCELED, ETIMEDOUT, EOVERFLOW, EUCLEAN, ENOSYS, EREMOTEIO


cdef struct row_t:
    NTSTATUS status
    int error
    int back                     # this row answers errno -> NTSTATUS (one row for each errno)
    const char *name

# The table. The first column is the NTSTATUS, the second what a program sees; `back` marks the row that
# translates the errno of a system call of the base.
cdef row_t TABLE[128]
cdef int rows = 0
cdef NTSTATUS BACK[136]          # errno -> NTSTATUS


cdef void add(NTSTATUS status, int error, int back, const char *name) noexcept:
    global rows
    TABLE[rows] = row_t(status, error, back, name)
    rows += 1


add(STATUS_SUCCESS, 0, 1, "STATUS_SUCCESS")
add(STATUS_TIMEOUT, e.ETIMEDOUT, 0, "STATUS_TIMEOUT")
add(STATUS_PENDING, 0, 0, "STATUS_PENDING")
add(STATUS_REPARSE, 0, 0, "STATUS_REPARSE")
add(STATUS_OPLOCK_BREAK_IN_PROGRESS, 0, 0, "STATUS_OPLOCK_BREAK_IN_PROGRESS")
add(STATUS_FLT_IO_COMPLETE, 0, 0, "STATUS_FLT_IO_COMPLETE")
add(STATUS_BUFFER_OVERFLOW, e.ERANGE, 0, "STATUS_BUFFER_OVERFLOW")
add(STATUS_NO_MORE_FILES, 0, 0, "STATUS_NO_MORE_FILES")
add(STATUS_NO_MORE_ENTRIES, 0, 0, "STATUS_NO_MORE_ENTRIES")
add(STATUS_UNSUCCESSFUL, e.EIO, 0, "STATUS_UNSUCCESSFUL")
add(STATUS_NOT_IMPLEMENTED, EOPNOTSUPP, 0, "STATUS_NOT_IMPLEMENTED")
add(STATUS_ACCESS_VIOLATION, e.EFAULT, 1, "STATUS_ACCESS_VIOLATION")
add(STATUS_INVALID_HANDLE, e.EBADF, 1, "STATUS_INVALID_HANDLE")
add(STATUS_INVALID_PARAMETER, e.EINVAL, 1, "STATUS_INVALID_PARAMETER")
add(STATUS_NO_SUCH_DEVICE, e.ENODEV, 1, "STATUS_NO_SUCH_DEVICE")
add(STATUS_NO_SUCH_FILE, e.ENOENT, 0, "STATUS_NO_SUCH_FILE")
add(STATUS_INVALID_DEVICE_REQUEST, EOPNOTSUPP, 0, "STATUS_INVALID_DEVICE_REQUEST")
add(STATUS_END_OF_FILE, 0, 0, "STATUS_END_OF_FILE")
add(STATUS_NO_MEMORY, e.ENOMEM, 1, "STATUS_NO_MEMORY")
add(STATUS_ACCESS_DENIED, e.EACCES, 1, "STATUS_ACCESS_DENIED")
add(STATUS_BUFFER_TOO_SMALL, e.ERANGE, 1, "STATUS_BUFFER_TOO_SMALL")
add(STATUS_OBJECT_NAME_INVALID, e.EINVAL, 0, "STATUS_OBJECT_NAME_INVALID")
add(STATUS_OBJECT_NAME_NOT_FOUND, e.ENOENT, 1, "STATUS_OBJECT_NAME_NOT_FOUND")
add(STATUS_OBJECT_NAME_COLLISION, e.EEXIST, 1, "STATUS_OBJECT_NAME_COLLISION")
add(STATUS_OBJECT_PATH_NOT_FOUND, e.ENOENT, 0, "STATUS_OBJECT_PATH_NOT_FOUND")
add(STATUS_SHARING_VIOLATION, e.EBUSY, 0, "STATUS_SHARING_VIOLATION")
add(STATUS_QUOTA_EXCEEDED, EDQUOT, 1, "STATUS_QUOTA_EXCEEDED")
add(STATUS_EA_TOO_LARGE, e.E2BIG, 1, "STATUS_EA_TOO_LARGE")
add(STATUS_NONEXISTENT_EA_ENTRY, ENODATA, 0, "STATUS_NONEXISTENT_EA_ENTRY")
add(STATUS_NO_EAS_ON_FILE, ENODATA, 1, "STATUS_NO_EAS_ON_FILE")
add(STATUS_FILE_LOCK_CONFLICT, e.EAGAIN, 1, "STATUS_FILE_LOCK_CONFLICT")
add(STATUS_LOCK_NOT_GRANTED, e.EAGAIN, 0, "STATUS_LOCK_NOT_GRANTED")
add(STATUS_DELETE_PENDING, e.EBUSY, 0, "STATUS_DELETE_PENDING")
add(STATUS_PRIVILEGE_NOT_HELD, e.EPERM, 1, "STATUS_PRIVILEGE_NOT_HELD")
add(STATUS_DISK_FULL, e.ENOSPC, 1, "STATUS_DISK_FULL")
add(STATUS_INTEGER_OVERFLOW, EOVERFLOW, 1, "STATUS_INTEGER_OVERFLOW")
add(STATUS_INSUFFICIENT_RESOURCES, e.ENOMEM, 0, "STATUS_INSUFFICIENT_RESOURCES")
add(STATUS_MEDIA_WRITE_PROTECTED, e.EROFS, 1, "STATUS_MEDIA_WRITE_PROTECTED")
add(STATUS_DEVICE_NOT_READY, e.EIO, 0, "STATUS_DEVICE_NOT_READY")
add(STATUS_PIPE_NOT_AVAILABLE, e.EPIPE, 1, "STATUS_PIPE_NOT_AVAILABLE")
add(STATUS_IO_TIMEOUT, e.EIO, 0, "STATUS_IO_TIMEOUT")
add(STATUS_FILE_IS_A_DIRECTORY, e.EISDIR, 1, "STATUS_FILE_IS_A_DIRECTORY")
add(STATUS_NOT_SUPPORTED, EOPNOTSUPP, 1, "STATUS_NOT_SUPPORTED")
add(STATUS_NOT_SAME_DEVICE, e.EXDEV, 1, "STATUS_NOT_SAME_DEVICE")
add(STATUS_OPLOCK_NOT_GRANTED, e.ETXTBSY, 1, "STATUS_OPLOCK_NOT_GRANTED")
add(STATUS_DIRECTORY_NOT_EMPTY, e.ENOTEMPTY, 1, "STATUS_DIRECTORY_NOT_EMPTY")
add(STATUS_FILE_CORRUPT_ERROR, EUCLEAN, 1, "STATUS_FILE_CORRUPT_ERROR")
add(STATUS_NOT_A_DIRECTORY, e.ENOTDIR, 1, "STATUS_NOT_A_DIRECTORY")
add(STATUS_NAME_TOO_LONG, e.ENAMETOOLONG, 1, "STATUS_NAME_TOO_LONG")
add(STATUS_TOO_MANY_OPENED_FILES, e.EMFILE, 1, "STATUS_TOO_MANY_OPENED_FILES")
add(STATUS_CANCELLED, e.EINTR, 1, "STATUS_CANCELLED")
add(STATUS_CANNOT_DELETE, e.EBUSY, 0, "STATUS_CANNOT_DELETE")
add(STATUS_FILE_DELETED, e.EIO, 0, "STATUS_FILE_DELETED")
add(STATUS_FILE_CLOSED, e.EBADF, 0, "STATUS_FILE_CLOSED")
add(STATUS_IO_DEVICE_ERROR, e.EIO, 1, "STATUS_IO_DEVICE_ERROR")
add(STATUS_POSSIBLE_DEADLOCK, EDEADLK, 1, "STATUS_POSSIBLE_DEADLOCK")
add(STATUS_INVALID_BUFFER_SIZE, e.EINVAL, 0, "STATUS_INVALID_BUFFER_SIZE")
add(STATUS_NOT_FOUND, e.ENOENT, 0, "STATUS_NOT_FOUND")
add(STATUS_RETRY, e.EAGAIN, 0, "STATUS_RETRY")
add(STATUS_PATH_NOT_COVERED, EREMOTEIO, 1, "STATUS_PATH_NOT_COVERED")
add(STATUS_TOO_MANY_LINKS, e.EMLINK, 1, "STATUS_TOO_MANY_LINKS")
add(STATUS_VOLUME_DISMOUNTED, ESTALE, 1, "STATUS_VOLUME_DISMOUNTED")
add(STATUS_IO_REPARSE_TAG_NOT_HANDLED, e.ELOOP, 1, "STATUS_IO_REPARSE_TAG_NOT_HANDLED")
add(STATUS_REPARSE_POINT_NOT_RESOLVED, e.ELOOP, 0, "STATUS_REPARSE_POINT_NOT_RESOLVED")
add(STATUS_CANNOT_BREAK_OPLOCK, e.ETXTBSY, 0, "STATUS_CANNOT_BREAK_OPLOCK")
add(STATUS_FILE_TOO_LARGE, e.EFBIG, 1, "STATUS_FILE_TOO_LARGE")
add(STATUS_VIRUS_INFECTED, e.EACCES, 0, "STATUS_VIRUS_INFECTED")
add(STATUS_DEVICE_BUSY, e.EBUSY, 1, "STATUS_DEVICE_BUSY")
add(STATUS_FAILED_DRIVER_ENTRY, e.EIO, 0, "STATUS_FAILED_DRIVER_ENTRY")
add(STATUS_DRIVER_FAILED_PRIOR_UNLOAD, e.EIO, 0, "STATUS_DRIVER_FAILED_PRIOR_UNLOAD")
add(STATUS_FLT_NO_HANDLER_DEFINED, e.EINVAL, 0, "STATUS_FLT_NO_HANDLER_DEFINED")
add(STATUS_FLT_CONTEXT_ALREADY_DEFINED, e.EEXIST, 0, "STATUS_FLT_CONTEXT_ALREADY_DEFINED")
add(STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST, e.EIO, 0, "STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST")
add(STATUS_FLT_DISALLOW_FAST_IO, e.EIO, 0, "STATUS_FLT_DISALLOW_FAST_IO")
add(STATUS_FLT_INVALID_NAME_REQUEST, e.EINVAL, 0, "STATUS_FLT_INVALID_NAME_REQUEST")
add(STATUS_FLT_NOT_INITIALIZED, e.EIO, 0, "STATUS_FLT_NOT_INITIALIZED")
add(STATUS_FLT_FILTER_NOT_READY, e.EIO, 0, "STATUS_FLT_FILTER_NOT_READY")
add(STATUS_FLT_POST_OPERATION_CLEANUP, e.EIO, 0, "STATUS_FLT_POST_OPERATION_CLEANUP")
add(STATUS_FLT_INTERNAL_ERROR, e.EIO, 0, "STATUS_FLT_INTERNAL_ERROR")
add(STATUS_FLT_DELETING_OBJECT, e.EIO, 0, "STATUS_FLT_DELETING_OBJECT")
add(STATUS_FLT_MUST_BE_NONPAGED_POOL, e.EINVAL, 0, "STATUS_FLT_MUST_BE_NONPAGED_POOL")
add(STATUS_FLT_DUPLICATE_ENTRY, e.EEXIST, 0, "STATUS_FLT_DUPLICATE_ENTRY")
add(STATUS_FLT_DO_NOT_ATTACH, e.EIO, 0, "STATUS_FLT_DO_NOT_ATTACH")
add(STATUS_FLT_DO_NOT_DETACH, e.EBUSY, 0, "STATUS_FLT_DO_NOT_DETACH")
add(STATUS_FLT_INSTANCE_ALTITUDE_COLLISION, e.EEXIST, 0, "STATUS_FLT_INSTANCE_ALTITUDE_COLLISION")
add(STATUS_FLT_INSTANCE_NAME_COLLISION, e.EEXIST, 0, "STATUS_FLT_INSTANCE_NAME_COLLISION")
add(STATUS_FLT_FILTER_NOT_FOUND, e.ENOENT, 0, "STATUS_FLT_FILTER_NOT_FOUND")
add(STATUS_FLT_VOLUME_NOT_FOUND, e.ENOENT, 0, "STATUS_FLT_VOLUME_NOT_FOUND")
add(STATUS_FLT_INSTANCE_NOT_FOUND, e.ENOENT, 0, "STATUS_FLT_INSTANCE_NOT_FOUND")
add(STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND, e.EINVAL, 0, "STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND")
add(STATUS_FLT_INVALID_CONTEXT_REGISTRATION, e.EINVAL, 0, "STATUS_FLT_INVALID_CONTEXT_REGISTRATION")
add(STATUS_FLT_NAME_CACHE_MISS, e.EIO, 0, "STATUS_FLT_NAME_CACHE_MISS")
add(STATUS_FLT_CONTEXT_ALREADY_LINKED, e.EEXIST, 0, "STATUS_FLT_CONTEXT_ALREADY_LINKED")
add(STATUS_IMAGE_ALREADY_LOADED, e.EEXIST, 0, "STATUS_IMAGE_ALREADY_LOADED")
add(STATUS_INVALID_IMAGE_FORMAT, e.ENOEXEC, 1, "STATUS_INVALID_IMAGE_FORMAT")
assert rows <= 128


cdef void fill_back() noexcept:
    cdef int i
    for i in range(136):
        BACK[i] = STATUS_IO_DEVICE_ERROR                     # what has no row of its own is an I/O error
    for i in range(rows):
        if TABLE[i].back:
            BACK[TABLE[i].error] = TABLE[i].status
    BACK[ENOSYS] = STATUS_NOT_SUPPORTED

fill_back()


cdef int nt_to_errno(NTSTATUS status) noexcept nogil:
    cdef int i
    if status == STATUS_SUCCESS:
        return 0
    for i in range(rows):
        if TABLE[i].status == status:
            return TABLE[i].error
    if (status & ~0xFFF) == STATUS_ERRNO_BASE:
        return status & 0xFFF
    return 0 if NT_SUCCESS(status) else e.EIO


cdef NTSTATUS errno_to_nt(int error) noexcept nogil:
    cdef NTSTATUS status
    if error == 0:
        return STATUS_SUCCESS
    if error < 0 or error >= 136:
        return STATUS_IO_DEVICE_ERROR
    status = BACK[error]
    if status == STATUS_IO_DEVICE_ERROR and error != e.EIO:
        status = STATUS_ERRNO_BASE | error
    return status


NtStatus = IntEnum("NtStatus", {TABLE[i].name.decode(): <uint32_t>TABLE[i].status for i in range(rows)}, module=__name__)


class NtStatusError(Exception):
    """What a routine of the manager answered a Python filter: `status` is an unsigned NTSTATUS, the text says why."""

    def __init__(self, status, reason):
        super().__init__(status, reason)

    @property
    def status(self):
        return self.args[0]

    def __str__(self):
        return f"{self.args[1]} ({status_name(self.status)})"


def to_errno(unsigned int status) -> int:
    """The errno a program sees for an NTSTATUS; 0 for success and information. Never ENOSYS."""
    return nt_to_errno(<NTSTATUS>status)


def from_errno(int error) -> int:
    """The NTSTATUS (unsigned) of a positive errno; 0 gives STATUS_SUCCESS."""
    return <uint32_t>errno_to_nt(error)


def is_success(unsigned int status) -> bool:
    """NT_SUCCESS: success and information values."""
    return <NTSTATUS>status >= 0


def status_name(unsigned int status) -> str:
    """The status' name, "errno 71 (EPROTO)"-like for a carried errno, else the number in hex."""
    import errno as names
    try:
        return NtStatus(status).name
    except ValueError:
        if (status & 0xFFFFF000) == 0xE0E00000:
            return f"errno {status & 0xFFF} ({names.errorcode.get(status & 0xFFF, '?')})"
        return f"{status:#010x}"


def table() -> list:
    """The table: (status, name, errno, used for errno -> NTSTATUS), in order."""
    return [(<uint32_t>TABLE[i].status, TABLE[i].name.decode(), TABLE[i].error, bool(TABLE[i].back)) for i in range(rows)]
