"""Answers as the kernel takes them: a request's results, in the layouts of fuse_wire.h.

Data that a request reads goes straight to where the answer holds it, behind the header: nothing is copied. Lengths that
a filter has given are held to what the caller asked for. Pure functions over one request and one buffer: any thread,
without the GIL.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from stackfs.cext.callback_data cimport statx_t, statx_timestamp
from stackfs.cext.includes.fuse_wire cimport *
from stackfs.cext.listing cimport listing_run, listing_t

cdef extern from "<sys/sysmacros.h>" nogil:
    uint64_t makedev(unsigned major, unsigned minor)

cdef extern from "<sys/stat.h>" nogil:
    unsigned S_IFMT, S_IFDIR

cdef extern from "<sys/statvfs.h>" nogil:
    struct c_statvfs "statvfs":
        unsigned long f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_namemax

cdef enum:
    HEADER = sizeof(fuse_out_header)
    PATH_MAX = 4096


cdef void answer_prepare(vfs_request_t *request, char *buffer) noexcept nogil:
    cdef uint32_t opcode = request.opcode
    if opcode == FUSE_READ or opcode == FUSE_GETXATTR or opcode == FUSE_LISTXATTR:
        request.buffer_length = <uint32_t>request.arguments.size        # no more than max_write (wire_check)
        if request.buffer_length:
            request.buffer = buffer + HEADER
    elif opcode == FUSE_READLINK:
        request.buffer = buffer + HEADER
        request.buffer_length = PATH_MAX
    elif opcode == FUSE_IOCTL:
        request.buffer_length = <uint32_t>request.arguments.size        # no more than max_write (wire_check)
        if request.buffer_length:
            request.buffer = buffer + HEADER + sizeof(fuse_ioctl_out)
    elif opcode == FUSE_STATFS:
        request.buffer = buffer + HEADER + sizeof(fuse_kstatfs)
        request.buffer_length = sizeof(c_statvfs)


# ---- parts of answers ----

cdef uint64_t whole_seconds(double seconds) noexcept nogil:
    return <uint64_t>seconds if seconds > 0 else 0


cdef uint32_t nanoseconds_of(double seconds) noexcept nogil:
    return <uint32_t>((seconds - <double>whole_seconds(seconds)) * 1e9) if seconds > 0 else 0


cdef void put_attributes(const statx_t *info, fuse_attr *to) noexcept nogil:
    to.ino = info.stx_ino
    to.size = info.stx_size
    to.blocks = info.stx_blocks
    to.atime = <uint64_t>info.stx_atime.tv_sec
    to.mtime = <uint64_t>info.stx_mtime.tv_sec
    to.ctime = <uint64_t>info.stx_ctime.tv_sec
    to.atimensec = info.stx_atime.tv_nsec
    to.mtimensec = info.stx_mtime.tv_nsec
    to.ctimensec = info.stx_ctime.tv_nsec
    to.mode = info.stx_mode
    to.nlink = info.stx_nlink
    to.uid = info.stx_uid
    to.gid = info.stx_gid
    to.rdev = <uint32_t>makedev(info.stx_rdev_major, info.stx_rdev_minor)      # its low half is new_encode_dev's
    to.blksize = info.stx_blksize
    to.flags = 0


cdef void put_entry(const vfs_request_t *request, fuse_entry_out *to) noexcept nogil:
    to.nodeid = request.out_nodeid
    to.generation = request.out_generation
    to.entry_valid = whole_seconds(request.entry_timeout)
    to.entry_valid_nsec = nanoseconds_of(request.entry_timeout)
    to.attr_valid = whole_seconds(request.attr_timeout)
    to.attr_valid_nsec = nanoseconds_of(request.attr_timeout)
    put_attributes(&request.info, &to.attr)


cdef void put_open(const vfs_request_t *request, fuse_open_out *to) noexcept nogil:
    to.fh = request.out_fh
    to.open_flags = request.out_open_flags
    to.backing_id = request.out_backing_id


cdef void put_time(fuse_sx_time *to, const statx_timestamp *when) noexcept nogil:
    to.tv_sec = when.tv_sec
    to.tv_nsec = when.tv_nsec


cdef void put_statx(const vfs_request_t *request, fuse_statx_out *to) noexcept nogil:
    cdef const statx_t *info = &request.info
    memset(to, 0, sizeof(to[0]))
    to.attr_valid = whole_seconds(request.attr_timeout)
    to.attr_valid_nsec = nanoseconds_of(request.attr_timeout)
    to.stat.mask = info.stx_mask
    to.stat.blksize = info.stx_blksize
    to.stat.attributes = info.stx_attributes
    to.stat.attributes_mask = info.stx_attributes_mask
    to.stat.nlink = info.stx_nlink
    to.stat.uid = info.stx_uid
    to.stat.gid = info.stx_gid
    to.stat.mode = info.stx_mode
    to.stat.ino = info.stx_ino
    to.stat.size = info.stx_size
    to.stat.blocks = info.stx_blocks
    put_time(&to.stat.atime, &info.stx_atime)
    put_time(&to.stat.btime, &info.stx_btime)
    put_time(&to.stat.ctime, &info.stx_ctime)
    put_time(&to.stat.mtime, &info.stx_mtime)
    to.stat.rdev_major = info.stx_rdev_major
    to.stat.rdev_minor = info.stx_rdev_minor
    to.stat.dev_major = info.stx_dev_major
    to.stat.dev_minor = info.stx_dev_minor


cdef void put_statistics(const c_statvfs *of, fuse_kstatfs *to) noexcept nogil:
    memset(to, 0, sizeof(to[0]))
    to.blocks = of.f_blocks
    to.bfree = of.f_bfree
    to.bavail = of.f_bavail
    to.files = of.f_files
    to.ffree = of.f_ffree
    to.bsize = <uint32_t>of.f_bsize
    to.frsize = <uint32_t>of.f_frsize
    to.namelen = <uint32_t>of.f_namemax


# ---- whole answers ----

cdef size_t answer_encode(const vfs_request_t *request, char *buffer) noexcept nogil:
    cdef fuse_out_header *header = <fuse_out_header *>buffer
    header.unique = request.unique
    header.error = -request.error
    header.len = HEADER + (0 if request.error else <uint32_t>put_body(request, buffer + HEADER))
    return header.len


cdef size_t put_body(const vfs_request_t *request, char *body) noexcept nogil:
    """The part behind the header; its length."""
    cdef uint32_t opcode = request.opcode
    cdef uint64_t length = min(request.length, <uint64_t>request.buffer_length)
    cdef c_statvfs statistics
    if opcode == FUSE_READ or opcode == FUSE_READLINK:
        return length
    if opcode == FUSE_LOOKUP or opcode == FUSE_MKNOD or opcode == FUSE_MKDIR or opcode == FUSE_SYMLINK or opcode == FUSE_LINK:
        put_entry(request, <fuse_entry_out *>body)
        return sizeof(fuse_entry_out)
    if opcode == FUSE_GETATTR or opcode == FUSE_SETATTR:
        memset(body, 0, sizeof(fuse_attr_out) - sizeof(fuse_attr))
        (<fuse_attr_out *>body).attr_valid = whole_seconds(request.attr_timeout)
        (<fuse_attr_out *>body).attr_valid_nsec = nanoseconds_of(request.attr_timeout)
        put_attributes(&request.info, &(<fuse_attr_out *>body).attr)
        return sizeof(fuse_attr_out)
    if opcode == FUSE_OPEN or opcode == FUSE_OPENDIR:
        put_open(request, <fuse_open_out *>body)
        return sizeof(fuse_open_out)
    if opcode == FUSE_CREATE or opcode == FUSE_TMPFILE:
        put_entry(request, <fuse_entry_out *>body)
        put_open(request, <fuse_open_out *>(body + sizeof(fuse_entry_out)))
        return sizeof(fuse_entry_out) + sizeof(fuse_open_out)
    if opcode == FUSE_WRITE or opcode == FUSE_COPY_FILE_RANGE:
        memset(body, 0, sizeof(fuse_write_out))
        (<fuse_write_out *>body).size = <uint32_t>request.length
        return sizeof(fuse_write_out)
    if opcode == FUSE_GETXATTR or opcode == FUSE_LISTXATTR:
        if request.buffer_length:
            return length
        memset(body, 0, sizeof(fuse_getxattr_out))
        (<fuse_getxattr_out *>body).size = <uint32_t>request.length
        return sizeof(fuse_getxattr_out)
    if opcode == FUSE_LSEEK:
        (<fuse_lseek_out *>body).offset = request.length
        return sizeof(fuse_lseek_out)
    if opcode == FUSE_COPY_FILE_RANGE_64:
        (<fuse_copy_file_range_out *>body).bytes_copied = request.length
        return sizeof(fuse_copy_file_range_out)
    if opcode == FUSE_GETLK:
        memcpy(body, &request.lock, sizeof(fuse_lk_out))
        return sizeof(fuse_lk_out)
    if opcode == FUSE_IOCTL:             # the data stands behind it already
        memset(body, 0, sizeof(fuse_ioctl_out))
        return sizeof(fuse_ioctl_out) + length
    if opcode == FUSE_STATX:
        put_statx(request, <fuse_statx_out *>body)
        return sizeof(fuse_statx_out)
    if opcode == FUSE_STATFS:
        memcpy(&statistics, request.buffer, sizeof(statistics))
        put_statistics(&statistics, <fuse_kstatfs *>body)
        return sizeof(fuse_kstatfs)
    if opcode == FUSE_POLL:
        memset(body, 0, sizeof(fuse_poll_out))
        (<fuse_poll_out *>body).revents = <uint32_t>request.length
        return sizeof(fuse_poll_out)
    return 0


# ---- directories ----

cdef struct packed_listing_t:
    listing_t listing                    # first: the listing is the packed one
    char *at
    char *end
    size_t before                        # bytes of each entry before its name


cdef size_t padded(size_t length) noexcept nogil:
    return (length + 7) & ~<size_t>7


cdef bint has_room(listing_t *listing, size_t name_length) noexcept nogil:
    cdef packed_listing_t *packed = <packed_listing_t *>listing
    return packed.before + padded(name_length) <= <size_t>(packed.end - packed.at)


cdef bint pack(listing_t *listing, const char *name, size_t length, uint64_t inode, uint8_t type, int64_t following,
               const vfs_request_t *found) noexcept nogil:
    cdef packed_listing_t *packed = <packed_listing_t *>listing
    cdef fuse_dirent *entry = <fuse_dirent *>(packed.at + packed.before - sizeof(fuse_dirent))
    if packed.at + packed.before + padded(length) > packed.end:
        return False
    memset(packed.at, 0, packed.before)
    entry.ino = inode
    entry.type = type
    if found is not NULL:
        put_entry(found, <fuse_entry_out *>packed.at)
        entry.ino = found.info.stx_ino
        entry.type = (found.info.stx_mode & S_IFMT) >> 12
    elif listing.plus:                   # "." and "..": shown only, the kernel counts no lookup of a nodeid 0
        (<fuse_entry_out *>packed.at).attr.ino = inode
        (<fuse_entry_out *>packed.at).attr.mode = S_IFDIR
    entry.off = <uint64_t>following
    entry.namelen = <uint32_t>length
    packed.at += packed.before
    memset(packed.at + padded(length) - 8, 0, 8)
    memcpy(packed.at, name, length)
    packed.at += padded(length)
    return True


cdef packed_listing_t *begin_listing(vfs_request_t *request, char *buffer) noexcept nogil:
    cdef packed_listing_t *packed = <packed_listing_t *>calloc(1, sizeof(packed_listing_t))
    if packed is NULL:
        return NULL
    packed.listing.has_room = has_room
    packed.listing.add = pack
    packed.listing.plus = request.opcode == FUSE_READDIRPLUS
    packed.before = sizeof(fuse_dirent) + (sizeof(fuse_entry_out) if packed.listing.plus else 0)
    packed.at = buffer + HEADER
    packed.end = packed.at + request.arguments.size
    request.listing = packed
    return packed


cdef int answer_listing(vfs_request_t *request, char *buffer, size_t *length) noexcept nogil:
    """An error shows only while nothing has been listed: the entries there are go out first, and the next call finds it."""
    cdef fuse_out_header *header = <fuse_out_header *>buffer
    cdef packed_listing_t *packed = <packed_listing_t *>request.listing
    cdef size_t listed = 0
    if packed is NULL:
        packed = begin_listing(request, buffer)
    if packed is NULL:
        request.error = ENOMEM
    elif not listing_run(request, &packed.listing):
        return 0
    else:
        listed = <size_t>(packed.at - buffer) - HEADER
    free(packed)
    request.listing = NULL
    header.unique = request.unique
    header.error = -request.error if listed == 0 else 0
    length[0] = header.len = <uint32_t>(HEADER + listed)
    return 1
