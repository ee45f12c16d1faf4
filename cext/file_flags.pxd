# Inode flags and project ids (chattr, lsattr, xfs_io): the FS_IOC_* controls of files (file_flags.pyx).

from libc.stdint cimport int64_t, uint32_t
from stackfs.cext.callback_data cimport CONTROL_PARAMETERS, REQUESTOR

cdef bint is_file_control(uint32_t command) noexcept nogil       # a filesystem's, or stackfs' own: FILE_SYSTEM_CONTROL
cdef bint is_fsctl(uint32_t command) noexcept nogil              # an FSCTL_ number of Windows
cdef bint is_file_flags(uint32_t command) noexcept nogil         # one of those that the base carries out
# Bytes put into OutputBuffer, or a negative errno. fd: open for reading or writing, or a directory.
cdef int64_t file_flags(int fd, const REQUESTOR *who, const CONTROL_PARAMETERS *p) noexcept nogil
