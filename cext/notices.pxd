# What the kernel is told without having asked: that something it caches may be another now, and that whoever polls a file shall
# look again (notices.pyx).
#
# Any thread, also inside a callback, without a lock. The kernel makes some notices wait for what unanswered requests hold:
# these are queued, and written by threads of the device (notifiers.pyx). Where that is not said, it knows when the call
# returns. All of them return 0 or a negative errno: -ENODEV: there is no mount, -ENOMEM, -EINVAL: a name that is none.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from stackfs.cext.callback_data cimport FLT_VOLUME, node_t
from stackfs.cext.pending cimport notify_function

# For filters.
# Handle: Parameters.Control.FileOffset of an FSCTL_STACKFS_POLL. Its open file may be gone.
cdef int volume_wake_poll(FLT_VOLUME *Volume, uint64_t Handle) noexcept nogil
# The attributes of an inode that somebody has open.
cdef int volume_forget_attributes(FLT_VOLUME *Volume, const node_t *Node) noexcept nogil
# Queued: the attributes of an inode, and of its pages those of the range (Length 0: to the end; Offset -1: none).
cdef int volume_forget_data(FLT_VOLUME *Volume, const node_t *Node, int64_t Offset, int64_t Length) noexcept nogil
# Queued: a name is looked up again before it is used again.
cdef int volume_forget_name(FLT_VOLUME *Volume, const node_t *Directory, const char *Name, uint32_t Length) noexcept nogil

# For the device, which has them written itself.
cdef int notice_inode(notify_function notify, void *to, uint64_t nodeid, int64_t offset, int64_t length) noexcept nogil
cdef int notice_entry(notify_function notify, void *to, uint64_t parent, const char *name, uint32_t length) noexcept nogil
