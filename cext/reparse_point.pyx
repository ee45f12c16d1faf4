"""Reparse points of regular files and directories: a tag and its data, kept with the file (docs/semantics.md, B5.3).

Linux knows one kind of reparse point, the symbolic link, which the kernel follows by itself. What a filter tags otherwise is a file
like any other, with the tag in an extended attribute: the buffer of FSCTL_SET_REPARSE_POINT as it was given. Any thread, on a
descriptor that the caller keeps open.
"""

from libc.errno cimport ENODATA, errno
from libc.stdint cimport uint16_t, uint32_t
from libc.stddef cimport size_t
from libc.string cimport memcmp, memcpy

from stackfs.cext.callback_data cimport FSCTL_GET_REPARSE_POINT, FSCTL_SET_REPARSE_POINT
from stackfs.cext.ntstatus cimport (
    STATUS_BUFFER_OVERFLOW, STATUS_BUFFER_TOO_SMALL, STATUS_IO_REPARSE_DATA_INVALID, STATUS_IO_REPARSE_TAG_INVALID,
    STATUS_IO_REPARSE_TAG_MISMATCH, STATUS_NOT_A_REPARSE_POINT, STATUS_SUCCESS, errno_to_nt)

cdef extern from "<sys/xattr.h>" nogil:
    ssize_t fgetxattr(int fd, const char *name, void *value, size_t size)
    int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)
    int fremovexattr(int fd, const char *name)

cdef enum:
    HEADER = 8                           # ReparseTag u32, ReparseDataLength u16, Reserved u16
    GUID_HEADER = 24                     # and the GUID of whose tag it is, unless that is Microsoft's own
    RESERVED_TAGS = 2                    # 0, 1 and 2 are none

cdef const char *ATTRIBUTE = b"user.stackfs.reparse"


cdef inline uint32_t header_of(const char *buffer) noexcept nogil:
    """Where the data begin."""
    return HEADER if buffer[3] & 0x80 else GUID_HEADER


cdef NTSTATUS well_formed(const char *buffer, uint32_t length, bint with_data) noexcept nogil:
    cdef uint32_t tag
    cdef uint16_t data
    if buffer is NULL or length < HEADER or length > LARGEST_REPARSE_POINT:
        return STATUS_IO_REPARSE_DATA_INVALID
    memcpy(&tag, buffer, 4)
    memcpy(&data, buffer + 4, 2)
    if tag <= RESERVED_TAGS:
        return STATUS_IO_REPARSE_TAG_INVALID
    if length < header_of(buffer) or length != header_of(buffer) + data or (data and not with_data):
        return STATUS_IO_REPARSE_DATA_INVALID
    return STATUS_SUCCESS


cdef NTSTATUS failure() noexcept nogil:
    return STATUS_NOT_A_REPARSE_POINT if errno == ENODATA else errno_to_nt(errno)


cdef NTSTATUS same_tag(int fd, const char *buffer) noexcept nogil:
    """Is what stands there of this tag and GUID? STATUS_NOT_A_REPARSE_POINT: nothing does."""
    cdef char there[LARGEST_REPARSE_POINT]
    cdef ssize_t got = fgetxattr(fd, ATTRIBUTE, there, LARGEST_REPARSE_POINT)
    if got < 0:
        return failure()
    if got < HEADER or got < <ssize_t>header_of(there):
        return STATUS_IO_REPARSE_DATA_INVALID
    if memcmp(there, buffer, 4) != 0 or memcmp(there + HEADER, buffer + HEADER, header_of(buffer) - HEADER) != 0:
        return STATUS_IO_REPARSE_TAG_MISMATCH
    return STATUS_SUCCESS


cdef NTSTATUS get(int fd, const CONTROL_PARAMETERS *p, size_t *information) noexcept nogil:
    """As much as there is room for; STATUS_BUFFER_OVERFLOW: that is not all of it."""
    cdef char there[LARGEST_REPARSE_POINT]
    cdef ssize_t got = fgetxattr(fd, ATTRIBUTE, there, LARGEST_REPARSE_POINT)
    cdef NTSTATUS status
    if got < 0:
        return failure()
    status = well_formed(there, <uint32_t>got, True)
    if status != STATUS_SUCCESS:
        return status
    if p.OutputBuffer is NULL or p.OutputBufferLength < header_of(there):
        return STATUS_BUFFER_TOO_SMALL
    information[0] = min(<size_t>got, <size_t>p.OutputBufferLength)
    memcpy(p.OutputBuffer, there, information[0])
    return STATUS_SUCCESS if information[0] == <size_t>got else STATUS_BUFFER_OVERFLOW


cdef NTSTATUS reparse_point_control(int fd, const CONTROL_PARAMETERS *p, size_t *information) noexcept nogil:
    cdef const char *buffer = <const char *>p.InputBuffer
    cdef NTSTATUS status
    information[0] = 0
    if p.ControlCode == <uint32_t>FSCTL_GET_REPARSE_POINT:
        return get(fd, p, information)
    status = well_formed(buffer, p.InputBufferLength, p.ControlCode == <uint32_t>FSCTL_SET_REPARSE_POINT)
    if status != STATUS_SUCCESS:
        return status
    status = same_tag(fd, buffer)
    if p.ControlCode == <uint32_t>FSCTL_SET_REPARSE_POINT:
        if status != STATUS_SUCCESS and status != STATUS_NOT_A_REPARSE_POINT:
            return status
        return STATUS_SUCCESS if fsetxattr(fd, ATTRIBUTE, buffer, p.InputBufferLength, 0) == 0 else errno_to_nt(errno)
    if status != STATUS_SUCCESS:
        return status
    return STATUS_SUCCESS if fremovexattr(fd, ATTRIBUTE) == 0 else failure()
