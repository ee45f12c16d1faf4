# The device: one FUSE connection, put together from its parts (device.pyx tells how).

from libc.stdint cimport int64_t, uint32_t, uint64_t
from stackfs.cext.python_requests cimport Volume
from stackfs.cext.requests cimport vfs_request_t

cdef struct device_t                     # the state its threads share (device.pyx)

cdef class Device:
    cdef device_t *state
    cdef readonly Volume volume          # kept alive: the threads work on its stack

    # The header of the message the IRP lane is handling now: the queue's first, taken off, owned by the caller
    # (request_free). NULL when the queue is empty or its first is not for this handler: the lane cannot be trusted
    # any more. nodeid 0: the handler does not know it. RENAME stands for RENAME2 too, FORGET for BATCH_FORGET, to which
    # (answerless) libfuse gives no answer.
    # name, name2 and buffer are NULL: the handler has them from pyfuse3.
    cdef vfs_request_t *device_pop(self, uint32_t opcode, uint64_t nodeid, int answerless) noexcept nogil

    # Queued for the notification thread; -errno when nothing was queued. Safe from any thread and from a callback.
    cdef int device_invalidate_inode(self, uint64_t nodeid, int64_t offset, int64_t length) noexcept nogil
    cdef int device_invalidate_entry(self, uint64_t parent, const char *name, uint32_t length) noexcept nogil
