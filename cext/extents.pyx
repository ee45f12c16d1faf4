"""Extents of open files: where data and holes lie, reserving and zeroing space, copying inside the backing filesystem.

System calls on descriptors the caller holds; no state, any thread.
"""

from libc.errno cimport EINTR, EINVAL, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from stackfs.cext.threads cimport load_int, store_int


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <linux/fs.h>
    #include <sys/ioctl.h>
    #include <unistd.h>
    """
    int SEEK_DATA, SEEK_HOLE, EOPNOTSUPP, ENOTTY, EXDEV
    uint32_t FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
    unsigned long FICLONERANGE
    struct file_clone_range:
        int64_t src_fd
        uint64_t src_offset
        uint64_t src_length
        uint64_t dest_offset
    int64_t lseek(int fd, int64_t offset, int whence) nogil
    int fallocate(int fd, int mode, int64_t offset, int64_t length) nogil
    int ioctl(int fd, unsigned long command, ...) nogil
    ssize_t copy_file_range(int source, int64_t *source_offset, int fd, int64_t *offset, size_t length, unsigned flags) nogil

cdef enum:
    COPY_AT_ONCE = 128 << 20             # a short copy is legal, and the program can be interrupted between two


cdef int64_t extent_seek(int fd, int64_t offset, uint32_t whence) noexcept nogil:
    """The descriptor's own position moves, and nobody uses it: reads and writes of files name their offset."""
    cdef int64_t found
    if whence != <uint32_t>SEEK_DATA and whence != <uint32_t>SEEK_HOLE:
        return -EINVAL
    found = lseek(fd, offset, <int>whence)
    return found if found >= 0 else -errno


cdef bint extent_mode_known(uint32_t mode) noexcept nogil:
    return mode == 0 or mode == FALLOC_FL_KEEP_SIZE or extent_mode_zeroes(mode)


cdef bint extent_mode_zeroes(uint32_t mode) noexcept nogil:
    return mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) or mode & ~FALLOC_FL_KEEP_SIZE == FALLOC_FL_ZERO_RANGE


cdef int64_t extent_allocate(int fd, uint32_t mode, int64_t offset, int64_t length) noexcept nogil:
    while fallocate(fd, <int>mode, offset, length) != 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int64_t extent_copy(int source, int64_t source_offset, int fd, int64_t offset, uint64_t length, int *reflink) noexcept nogil:
    cdef file_clone_range clone
    cdef ssize_t copied
    if load_int(reflink) and length:            # a length of 0 would mean "to the end"
        clone.src_fd = source
        clone.src_offset = <uint64_t>source_offset
        clone.src_length = length
        clone.dest_offset = <uint64_t>offset
        if ioctl(fd, FICLONERANGE, &clone) == 0:
            return <int64_t>length
        if errno == EOPNOTSUPP or errno == ENOTTY:
            store_int(reflink, 0)
        # Otherwise (ends that are not on block boundaries, ...) copy_file_range(2) shares what it can.
    while True:
        copied = copy_file_range(source, &source_offset, fd, &offset, min(length, <uint64_t>COPY_AT_ONCE), 0)
        if copied >= 0:
            return copied
        if errno != EINTR:
            return -errno
