"""Inode flags and project ids (chattr, lsattr): the FS_IOC_* controls of files.

FS_IOC_GETFLAGS and FS_IOC_SETFLAGS carry 32 bits, though their numbers say a long. Setting is done as the caller, so
that the backing filesystem refuses whoever does not own the file. What only CAP_LINUX_IMMUTABLE may change is refused
here to everybody but root: the kernel above has asked for that capability, but an old one hands the request on as it is.
"""

from libc.errno cimport EINVAL, EPERM, errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memset

from stackfs.cext.callback_data cimport CONTROL_PARAMETERS, REQUESTOR
from stackfs.cext.credentials cimport assume, credentials_t, restore


cdef extern from *:
    """
    #include <linux/fs.h>
    #include <sys/ioctl.h>
    static inline unsigned stackfs_ioctl_type(unsigned command) { return _IOC_TYPE(command); }
    """
    unsigned long FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
    unsigned long FS_IOC32_GETFLAGS, FS_IOC32_SETFLAGS
    uint32_t FS_IMMUTABLE_FL, FS_APPEND_FL, FS_XFLAG_IMMUTABLE, FS_XFLAG_APPEND
    struct fsxattr:
        uint32_t fsx_xflags
    unsigned stackfs_ioctl_type(unsigned command) nogil
    int ioctl(int fd, unsigned long command, ...) nogil

cdef enum:
    FILE_DEVICE_FILE_SYSTEM = 9          # what the FSCTL_ numbers of Windows begin with
    STACKFS_CONTROLS = 0xF5              # _IOC_TYPE of numbers that are stackfs' own; nobody else's in ioctl-number.rst


cdef bint is_file_control(uint32_t command) noexcept nogil:
    cdef unsigned type = stackfs_ioctl_type(command)
    return type == c'f' or type == c'X' or type == STACKFS_CONTROLS or is_fsctl(command)


cdef bint is_fsctl(uint32_t command) noexcept nogil:
    return command >> 16 == FILE_DEVICE_FILE_SYSTEM


cdef bint gets(uint32_t command) noexcept nogil:
    return command == <uint32_t>FS_IOC_GETFLAGS or command == <uint32_t>FS_IOC32_GETFLAGS


cdef bint sets(uint32_t command) noexcept nogil:
    return command == <uint32_t>FS_IOC_SETFLAGS or command == <uint32_t>FS_IOC32_SETFLAGS


cdef bint is_file_flags(uint32_t command) noexcept nogil:
    return gets(command) or sets(command) or command == <uint32_t>FS_IOC_FSGETXATTR or command == <uint32_t>FS_IOC_FSSETXATTR


cdef int64_t file_flags(int fd, const REQUESTOR *who, const CONTROL_PARAMETERS *p) noexcept nogil:
    cdef uint32_t command = p.ControlCode
    cdef int word = 0
    cdef fsxattr attributes
    cdef credentials_t credentials
    cdef int result
    memset(&attributes, 0, sizeof(attributes))
    if gets(command):
        if p.OutputBufferLength < 4:
            return -EINVAL
        if ioctl(fd, FS_IOC_GETFLAGS, &word) != 0:
            return -errno
        memcpy(p.OutputBuffer, &word, 4)
        return 4
    if command == <uint32_t>FS_IOC_FSGETXATTR:
        if p.OutputBufferLength < sizeof(attributes):
            return -EINVAL
        if ioctl(fd, FS_IOC_FSGETXATTR, &attributes) != 0:
            return -errno
        memcpy(p.OutputBuffer, &attributes, sizeof(attributes))
        return sizeof(attributes)
    if p.InputBufferLength < (4 if sets(command) else sizeof(attributes)):
        return -EINVAL
    if sets(command):
        memcpy(&word, p.InputBuffer, 4)
    else:
        memcpy(&attributes, p.InputBuffer, sizeof(attributes))
    if who.uid != 0:
        result = keeps_protection(fd, sets(command), <uint32_t>word, attributes.fsx_xflags)
        if result != 0:
            return result
    assume(&credentials, who, 0)
    if sets(command):
        result = ioctl(fd, FS_IOC_SETFLAGS, &word)
    else:
        result = ioctl(fd, FS_IOC_FSSETXATTR, &attributes)
    result = 0 if result == 0 else -errno
    restore(&credentials)
    return result


cdef int keeps_protection(int fd, bint as_flags, uint32_t flags, uint32_t xflags) noexcept nogil:
    """0, or a negative errno: the immutable or the append-only flag would change."""
    cdef int word = 0
    cdef fsxattr attributes
    if as_flags:
        if ioctl(fd, FS_IOC_GETFLAGS, &word) != 0:
            return -errno
        return -EPERM if (<uint32_t>word ^ flags) & (FS_IMMUTABLE_FL | FS_APPEND_FL) else 0
    if ioctl(fd, FS_IOC_FSGETXATTR, &attributes) != 0:
        return -errno
    return -EPERM if (attributes.fsx_xflags ^ xflags) & (FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND) else 0
