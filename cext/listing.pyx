"""Listing a directory, READDIR and READDIRPLUS, through the stack.

Names come by DIRECTORY_CONTROL, in linux_dirent64 records that are read ahead into a buffer kept with the handle, so
that a small answer does not read the directory again. With READDIRPLUS each name's attributes come by a QUERY_OPEN of
its own, under the listing's request number; a name that is gone by then, or refused, is left out.

The records may have passed through a filter: nothing in them is trusted. A listing takes what was read ahead out of the
handle and gives it back when it is done: a second one of the same handle reads anew. It runs without the GIL.
"""

from libc.errno cimport EBADF, EIO, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memchr, memcpy

from stackfs.cext.backing cimport backing_t
from stackfs.cext.handles cimport ahead_give, ahead_t, ahead_take, handle_get, handle_t
from stackfs.cext.inode_table cimport node_forget, node_id
from stackfs.cext.requests cimport put_handle, request_free, request_new, request_run

cdef enum:
    BUFFER = 32768                       # bytes read ahead for a handle
    RECORD_HEAD = 19                     # d_ino 8, d_off 8, d_reclen 2, d_type 1; then the name and a NUL
    FUSE_LOOKUP = 1


cdef void listing_run(vfs_request_t *request, listing_t *listing) noexcept nogil:
    cdef backing_t *backing = <backing_t *>request.volume.backing
    cdef handle_t *handle = handle_get(backing.handles, request.arguments.fh)
    cdef ahead_t ahead
    listing.request = request
    if handle is NULL:
        request.error = EBADF
        return
    ahead_take(backing.handles, handle, &ahead)
    list_handle(request, listing, handle, &ahead)
    ahead_give(backing.handles, handle, &ahead)
    put_handle(backing, handle)


cdef void list_handle(vfs_request_t *request, listing_t *listing, handle_t *handle, ahead_t *ahead) noexcept nogil:
    cdef int64_t offset = <int64_t>request.arguments.offset
    cdef int64_t following
    cdef uint64_t inode
    cdef uint16_t record
    cdef const char *start
    cdef const char *end
    if ahead.entries is NULL:
        ahead.entries = <char *>malloc(BUFFER)
        if ahead.entries is NULL:
            request.error = ENOMEM
            return
        ahead.length = ahead.at = 0
    if offset == 0 or ahead.offset != offset:
        ahead.length = ahead.at = 0
    while True:
        if ahead.at + RECORD_HEAD >= ahead.length:
            if not read_ahead(request, ahead, &offset):
                return
        while ahead.at + RECORD_HEAD < ahead.length:
            start = ahead.entries + ahead.at
            memcpy(&inode, start, 8)
            memcpy(&following, start + 8, 8)
            memcpy(&record, start + 16, 2)
            if record <= RECORD_HEAD or ahead.at + record > ahead.length:
                request.error = EIO
                return
            end = <const char *>memchr(start + RECORD_HEAD, 0, record - RECORD_HEAD)
            if end is NULL:
                request.error = EIO
                return
            ahead.offset = offset
            if not list_name(request, listing, handle, start + RECORD_HEAD, <size_t>(end - start - RECORD_HEAD), inode,
                             <uint8_t>start[18], following):
                return
            ahead.at += record
            offset = following
            ahead.offset = offset


cdef bint read_ahead(vfs_request_t *request, ahead_t *ahead, int64_t *offset) noexcept nogil:
    """One DIRECTORY_CONTROL through the stack, or more while filters hide all that the base gives: the directory goes on
    behind that, and so does offset. False: the directory ends here, or request.error."""
    ahead.length = ahead.at = 0
    while True:
        request.arguments.offset = <uint64_t>offset[0]
        request.buffer = ahead.entries
        request.buffer_length = BUFFER
        request.plan = NULL
        request.step = request.started = 0
        request.listed = 0
        request_run(request)
        request.within_listing = 1       # reading on is part of the same request
        if request.error:
            return False
        if request.length:
            ahead.length = <uint32_t>min(request.length, <uint64_t>BUFFER)
            return True
        if request.listed == 0:
            return False
        offset[0] = request.listed_to


cdef bint list_name(vfs_request_t *request, listing_t *listing, handle_t *handle, const char *name, size_t length,
                    uint64_t inode, uint8_t type, int64_t following) noexcept nogil:
    """True: go on."""
    cdef backing_t *backing = <backing_t *>request.volume.backing
    cdef vfs_request_t *lookup
    cdef bint taken
    if length == 0 or length > 255:
        return True
    if not listing.has_room(listing, length):
        return False
    if not listing.plus or (name[0] == c'.' and (length == 1 or (length == 2 and name[1] == c'.'))):
        return listing.add(listing, name, length, inode, type, following, NULL)
    lookup = request_new(request.volume)
    if lookup is NULL:
        request.error = ENOMEM
        return False
    lookup.opcode = FUSE_LOOKUP
    lookup.within_listing = 1
    lookup.unique = request.unique
    lookup.nodeid = node_id(handle.file.Node)
    lookup.who = request.who
    lookup.name = name
    lookup.name_length = <uint16_t>length
    request_run(lookup)
    taken = True
    if lookup.error == 0:
        taken = listing.add(listing, name, length, inode, type, following, lookup)
        if not taken:
            node_forget(backing.nodes, lookup.out_nodeid, 1)
    request_free(lookup)
    return taken
