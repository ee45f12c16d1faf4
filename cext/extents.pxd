# Extents of open files: data and holes, space, copies inside the backing filesystem (extents.pyx).

from libc.stdint cimport int64_t, uint32_t, uint64_t

# Bytes, an offset, or a negative errno.
cdef int64_t extent_seek(int fd, int64_t offset, uint32_t whence) noexcept nogil
cdef int64_t extent_allocate(int fd, uint32_t mode, int64_t offset, int64_t length) noexcept nogil
# reflink: 1 until a backing filesystem has said that it cannot.
cdef int64_t extent_copy(int source, int64_t source_offset, int fd, int64_t offset, uint64_t length, int *reflink) noexcept nogil
cdef bint extent_mode_known(uint32_t mode) noexcept nogil
cdef bint extent_mode_zeroes(uint32_t mode) noexcept nogil
