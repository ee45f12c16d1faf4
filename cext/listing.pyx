"""Listing a directory, READDIR and READDIRPLUS, through the stack.

Names come by DIRECTORY_CONTROL, in linux_dirent64 records that are read ahead into a buffer kept with the handle, so
that a small answer does not read the directory again. With READDIRPLUS each name's attributes come by a QUERY_OPEN of
its own, under the listing's request number; a name that is gone by then, or refused, is left out.

The records may have passed through a filter: nothing in them is trusted. A listing takes what was read ahead out of the
handle and gives it back when it is done: a second one of the same handle reads anew. It runs without the GIL, and stops
where a filter holds one of its operations: all it knows is in listing_t, and in request.inner, the lookup that stopped.
"""

from libc.errno cimport EBADF, EIO, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memchr, memcpy

from stackfs.cext.backing cimport backing_t
from stackfs.cext.handles cimport ahead_give, ahead_t, ahead_take, handle_get
from stackfs.cext.inode_table cimport node_forget, node_id
from stackfs.cext.requests cimport put_handle, request_free, request_new, request_run

cdef enum:
    BUFFER = 32768                       # bytes read ahead for a handle
    RECORD_HEAD = 19                     # d_ino 8, d_off 8, d_reclen 2, d_type 1; then the name and a NUL
    FUSE_LOOKUP = 1

cdef enum went_t:
    STOPPED = 0
    ENDED = 1
    WENT_ON = 2


cdef int listing_run(vfs_request_t *request, listing_t *listing) noexcept nogil:
    cdef backing_t *backing = <backing_t *>request.volume.backing
    if listing.handle is NULL:
        listing.request = request
        listing.handle = handle_get(backing.handles, request.arguments.fh)
        if listing.handle is NULL:
            request.error = EBADF
            return 1
        ahead_take(backing.handles, listing.handle, &listing.ahead)
        if not prepare(request, listing):
            request.error = ENOMEM
        elif list_handle(request, listing) == STOPPED:
            return 0
    elif list_handle(request, listing) == STOPPED:
        return 0
    ahead_give(backing.handles, listing.handle, &listing.ahead)
    put_handle(backing, listing.handle)
    listing.handle = NULL
    return 1


cdef bint prepare(vfs_request_t *request, listing_t *listing) noexcept nogil:
    """False: no memory."""
    cdef ahead_t *ahead = &listing.ahead
    listing.offset = <int64_t>request.arguments.offset
    if ahead.entries is NULL:
        ahead.entries = <char *>malloc(BUFFER)
        if ahead.entries is NULL:
            return False
        ahead.length = ahead.at = 0
    if listing.offset == 0 or ahead.offset != listing.offset:
        ahead.length = ahead.at = 0
    return True


cdef went_t list_handle(vfs_request_t *request, listing_t *listing) noexcept nogil:
    cdef ahead_t *ahead = &listing.ahead
    cdef int64_t following
    cdef uint64_t inode
    cdef uint16_t record
    cdef const char *start
    cdef const char *end
    cdef went_t went
    while True:
        if ahead.at + RECORD_HEAD >= ahead.length:
            went = read_ahead(request, listing)
            if went != WENT_ON:
                return went
        while ahead.at + RECORD_HEAD < ahead.length:
            start = ahead.entries + ahead.at
            memcpy(&inode, start, 8)
            memcpy(&following, start + 8, 8)
            memcpy(&record, start + 16, 2)
            if record <= RECORD_HEAD or ahead.at + record > ahead.length:
                request.error = EIO
                return ENDED
            end = <const char *>memchr(start + RECORD_HEAD, 0, record - RECORD_HEAD)
            if end is NULL:
                request.error = EIO
                return ENDED
            ahead.offset = listing.offset
            went = list_name(request, listing, start + RECORD_HEAD, <size_t>(end - start - RECORD_HEAD), inode,
                             <uint8_t>start[18], following)
            if went != WENT_ON:
                return went
            ahead.at += record
            listing.offset = following
            ahead.offset = following


cdef went_t read_ahead(vfs_request_t *request, listing_t *listing) noexcept nogil:
    """One DIRECTORY_CONTROL through the stack, or more while filters hide all that the base gives: the directory goes on
    behind that, and so does the offset. ENDED: the directory ends here, or request.error."""
    cdef ahead_t *ahead = &listing.ahead
    while True:
        if not request.resumable:
            ahead.length = ahead.at = 0
            request.arguments.offset = <uint64_t>listing.offset
            request.buffer = ahead.entries
            request.buffer_length = BUFFER
            request.plan = NULL
            request.step = request.started = 0
            request.listed = 0
        if request_run(request) == 0:
            return STOPPED
        request.within_listing = 1       # reading on is part of the same request
        if request.error:
            return ENDED
        if request.length:
            ahead.length = <uint32_t>min(request.length, <uint64_t>BUFFER)
            return WENT_ON
        if request.listed == 0:
            return ENDED
        listing.offset = request.listed_to


cdef went_t list_name(vfs_request_t *request, listing_t *listing, const char *name, size_t length, uint64_t inode,
                      uint8_t type, int64_t following) noexcept nogil:
    cdef backing_t *backing = <backing_t *>request.volume.backing
    cdef vfs_request_t *lookup = request.inner
    cdef bint taken = True
    if lookup is NULL:
        if length == 0 or length > 255:
            return WENT_ON
        if not listing.has_room(listing, length):
            return ENDED
        if not listing.plus or (name[0] == c'.' and (length == 1 or (length == 2 and name[1] == c'.'))):
            return WENT_ON if listing.add(listing, name, length, inode, type, following, NULL) else ENDED
        lookup = request_new(request.volume)
        if lookup is NULL:
            request.error = ENOMEM
            return ENDED
        lookup.opcode = FUSE_LOOKUP
        lookup.within_listing = 1
        lookup.unique = request.unique
        lookup.nodeid = node_id(listing.handle.file.Node)
        lookup.who = request.who
        lookup.name = name
        lookup.name_length = <uint16_t>length
        lookup.outer = request
    request.inner = lookup
    if request_run(lookup) == 0:
        return STOPPED
    request.inner = NULL
    if lookup.error == 0:
        taken = listing.has_room(listing, length) and listing.add(
            listing, name, length, inode, type, following, lookup)
        if not taken:
            node_forget(backing.nodes, lookup.out_nodeid, 1)
    request_free(lookup)
    return WENT_ON if taken else ENDED
