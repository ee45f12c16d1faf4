"""What the kernel is told without having asked (notifications).

A filter knows its volume, and the volume the device it is mounted by, if it is: the connection stands in the volume's holds_t.
It is used under that lock, or counted there while it writes, so that a device that ends is let go of first.
"""

from libc.errno cimport EINVAL, ENODEV
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from stackfs.cext.includes.fuse_wire cimport (
    FUSE_EXPIRE_ONLY, FUSE_NOTIFY_INVAL_ENTRY, FUSE_NOTIFY_INVAL_INODE, FUSE_NOTIFY_POLL, fuse_notify_inval_entry_out,
    fuse_notify_inval_inode_out, fuse_notify_poll_wakeup_out, fuse_out_header)
from stackfs.cext.includes.pthread cimport pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock
from stackfs.cext.inode_table cimport node_id
from stackfs.cext.pending cimport device_calls_t, holds_t
from stackfs.cext.stack cimport FLT_VOLUME

cdef struct inode_notice_t:
    fuse_out_header header
    fuse_notify_inval_inode_out body

cdef struct poll_notice_t:
    fuse_out_header header
    fuse_notify_poll_wakeup_out body

cdef struct entry_notice_t:
    fuse_out_header header
    fuse_notify_inval_entry_out body
    char name[256]


cdef int notice_inode(notify_function notify, void *to, uint64_t nodeid, int64_t offset, int64_t length) noexcept nogil:
    cdef inode_notice_t notice
    memset(&notice, 0, sizeof(notice))
    notice.header.len = sizeof(notice)
    notice.header.error = FUSE_NOTIFY_INVAL_INODE
    notice.body.ino = nodeid
    notice.body.off = offset
    notice.body.len = length
    return notify(to, <const char *>&notice, sizeof(notice))


cdef int notice_entry(notify_function notify, void *to, uint64_t parent, const char *name, uint32_t length) noexcept nogil:
    cdef entry_notice_t notice
    if length == 0 or length > 255:
        return -EINVAL
    memset(&notice, 0, sizeof(notice))
    notice.header.len = <uint32_t>(sizeof(fuse_out_header) + sizeof(fuse_notify_inval_entry_out)) + length + 1
    notice.header.error = FUSE_NOTIFY_INVAL_ENTRY
    notice.body.parent = parent
    notice.body.namelen = length
    notice.body.flags = FUSE_EXPIRE_ONLY
    memcpy(notice.name, name, length)
    return notify(to, <const char *>&notice, notice.header.len)


cdef int queued_for(void *volume, const char *data, uint32_t length) noexcept nogil:
    """Of a kind that the kernel may make wait."""
    cdef holds_t *holds = (<FLT_VOLUME *>volume).holds
    cdef int error = -ENODEV
    pthread_mutex_lock(&holds.lock)
    if holds.device is not NULL:
        error = holds.device.queue(holds.connection, data, length)
    pthread_mutex_unlock(&holds.lock)
    return error


cdef int told_at_once(void *volume, const char *data, uint32_t length) noexcept nogil:
    """Of a kind that the kernel does not make wait."""
    cdef holds_t *holds = (<FLT_VOLUME *>volume).holds
    cdef const device_calls_t *device
    cdef void *connection
    cdef int error
    pthread_mutex_lock(&holds.lock)
    device = holds.device
    connection = holds.connection
    if device is NULL:
        pthread_mutex_unlock(&holds.lock)
        return -ENODEV
    holds.telling += 1
    pthread_mutex_unlock(&holds.lock)
    error = device.tell(connection, data, length)
    pthread_mutex_lock(&holds.lock)
    holds.telling -= 1
    if holds.telling == 0 and holds.device is NULL:
        pthread_cond_broadcast(&holds.changed)
    pthread_mutex_unlock(&holds.lock)
    return error


cdef int volume_wake_poll(FLT_VOLUME *Volume, uint64_t Handle) noexcept nogil:
    cdef poll_notice_t notice
    memset(&notice, 0, sizeof(notice))
    notice.header.len = sizeof(notice)
    notice.header.error = FUSE_NOTIFY_POLL
    notice.body.kh = Handle
    return told_at_once(Volume, <const char *>&notice, sizeof(notice))


cdef int volume_forget_attributes(FLT_VOLUME *Volume, const node_t *Node) noexcept nogil:
    return notice_inode(told_at_once, Volume, node_id(Node), -1, 0)


cdef int volume_forget_data(FLT_VOLUME *Volume, const node_t *Node, int64_t Offset, int64_t Length) noexcept nogil:
    return notice_inode(queued_for, Volume, node_id(Node), Offset, Length)


cdef int volume_forget_name(FLT_VOLUME *Volume, const node_t *Directory, const char *Name, uint32_t Length) noexcept nogil:
    return notice_entry(queued_for, Volume, node_id(Directory), Name, Length)
