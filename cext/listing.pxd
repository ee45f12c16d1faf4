# Listing a directory, READDIR and READDIRPLUS, through the stack (listing.pyx).

from libc.stdint cimport int64_t, uint8_t, uint64_t
from stackfs.cext.handles cimport ahead_t, handle_t
from stackfs.cext.requests cimport vfs_request_t

cdef struct listing_t:               # what a lane does with the entries; it embeds this, zeroed, in memory that stays where it is
    const vfs_request_t *request         # the one that lists; set by listing_run
    bint (*has_room)(listing_t *listing, size_t name_length) noexcept nogil
    # Takes one entry: its name (not NUL-terminated), inode number, DT_* type, the offset that follows it, and, with
    # `plus`, its attributes: NULL for "." and "..". False: there was no room after all, or the lane wants no more.
    bint (*add)(listing_t *listing, const char *name, size_t length, uint64_t inode, uint8_t type, int64_t following,
                const vfs_request_t *found) noexcept nogil
    bint plus
    # listing_run's own
    handle_t *handle
    ahead_t ahead
    int64_t offset                       # of the next entry

# Runs a READDIR or READDIRPLUS request until add() says False, the directory ends, or request.error is set. 0: it stopped,
# because a filter holds it or one of its lookups (requests.pxd); then again with the same listing. 1: done.
cdef int listing_run(vfs_request_t *request, listing_t *listing) noexcept nogil
