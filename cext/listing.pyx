"""Listing a directory, READDIR and READDIRPLUS, through the stack.

Names come by DIRECTORY_CONTROL, in linux_dirent64 records that are read ahead into a buffer kept with the handle, so
that a small answer does not read the directory again. With READDIRPLUS each name's attributes come by a QUERY_OPEN of
its own, under the listing's request number; a name that is gone by then, or refused, is left out.

The records may have passed through a filter: nothing in them is trusted. The kernel sends one listing at a time for a
handle; it runs without the GIL.
"""

from libc.errno cimport EBADF, EIO, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memchr, memcpy

from stackfs.cext.backing cimport backing_t
from stackfs.cext.handles cimport handle_get, handle_put, handle_t
from stackfs.cext.inode_table cimport node_forget, node_id
from stackfs.cext.requests cimport request_free, request_new, request_run

cdef enum:
    BUFFER = 32768                       # bytes read ahead for a handle
    RECORD_HEAD = 19                     # d_ino 8, d_off 8, d_reclen 2, d_type 1; then the name and a NUL
    FUSE_LOOKUP = 1


cdef void listing_run(vfs_request_t *request, listing_t *listing) noexcept nogil:
    cdef backing_t *backing = <backing_t *>request.volume.backing
    cdef handle_t *handle = handle_get(backing.handles, request.arguments.fh)
    listing.request = request
    if handle is NULL:
        request.error = EBADF
        return
    list_handle(request, listing, handle)
    handle_put(backing.handles, handle)


cdef void list_handle(vfs_request_t *request, listing_t *listing, handle_t *handle) noexcept nogil:
    cdef int64_t offset = <int64_t>request.arguments.offset
    cdef int64_t following
    cdef uint64_t inode
    cdef uint16_t record
    cdef const char *start
    cdef const char *end
    if handle.entries is NULL:
        handle.entries = <char *>malloc(BUFFER)
        if handle.entries is NULL:
            request.error = ENOMEM
            return
        handle.entries_length = handle.entries_at = 0
    if offset == 0 or handle.entries_offset != offset:
        handle.entries_length = handle.entries_at = 0
    while True:
        if handle.entries_at + RECORD_HEAD >= handle.entries_length:
            if not read_ahead(request, handle, &offset):
                return
        while handle.entries_at + RECORD_HEAD < handle.entries_length:
            start = handle.entries + handle.entries_at
            memcpy(&inode, start, 8)
            memcpy(&following, start + 8, 8)
            memcpy(&record, start + 16, 2)
            if record <= RECORD_HEAD or handle.entries_at + record > handle.entries_length:
                request.error = EIO
                return
            end = <const char *>memchr(start + RECORD_HEAD, 0, record - RECORD_HEAD)
            if end is NULL:
                request.error = EIO
                return
            handle.entries_offset = offset
            if not list_name(request, listing, handle, start + RECORD_HEAD, <size_t>(end - start - RECORD_HEAD), inode,
                             <uint8_t>start[18], following):
                return
            handle.entries_at += record
            offset = following
            handle.entries_offset = offset


cdef bint read_ahead(vfs_request_t *request, handle_t *handle, int64_t *offset) noexcept nogil:
    """One DIRECTORY_CONTROL through the stack, or more while filters hide all that the base gives: the directory goes on
    behind that, and so does offset. False: the directory ends here, or request.error."""
    handle.entries_length = handle.entries_at = 0
    while True:
        request.arguments.offset = <uint64_t>offset[0]
        request.buffer = handle.entries
        request.buffer_length = BUFFER
        request.plan = NULL
        request.step = request.started = 0
        handle.listed = 0
        request_run(request)
        request.within_listing = 1       # reading on is part of the same request
        if request.error:
            return False
        if request.length:
            handle.entries_length = <uint32_t>min(request.length, <uint64_t>BUFFER)
            return True
        if handle.listed == 0:
            return False
        offset[0] = handle.position


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
