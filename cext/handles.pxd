# Open files: the handles the kernel holds (fh), each a FILE_OBJECT with its descriptor.
#
# One mutex guards the table and is never held across a system call. A handle is found by its number from handle_publish()
# until handle_take(), and lives, its descriptor open, until nobody uses it any more: a transfer under way when its file is
# released ends on that file and on no other.
#
# The kernel reads a directory by one request at a time for each handle. Two at once are no harm: what was read ahead
# belongs to whoever has taken it out of the handle, and the descriptor's position to whoever has set `reading`.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from stackfs.cext.callback_data cimport FILE_OBJECT

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef struct ahead_t:                     # directory: linux_dirent64 records read ahead
    char *entries                        # NULL: none
    uint32_t length
    uint32_t at                          # next record to give out
    int64_t offset                       # d_off at which that record is to be had

cdef struct handle_t:
    FILE_OBJECT file                     # first: a handle's FILE_OBJECT is the handle
    uint32_t references
    uint32_t slot
    uint32_t generation
    int open                             # found by its number
    handle_t *next_free
    ahead_t ahead
    int reading                          # atomic: 1 while the descriptor's position is somebody's
    int64_t position                     # where the descriptor stands

cdef struct handle_table_t:
    pthread_mutex_t mutex
    handle_t **handles
    uint32_t count
    uint32_t capacity
    handle_t *free
    uint64_t open_count

cdef handle_table_t *handles_new() noexcept nogil
cdef void handles_free(handle_table_t *table) noexcept nogil                  # closes every descriptor
cdef handle_t *handle_new(handle_table_t *table) noexcept nogil               # one reference, file.fd = -1, file.fh set; NULL: no memory
cdef handle_t *handle_get(handle_table_t *table, uint64_t fh) noexcept nogil  # +1 reference; NULL: no such handle
# The number leads to it no more: +1 reference, and the one that handle_new() gave is the caller's too; NULL: no such handle.
cdef handle_t *handle_take(handle_table_t *table, uint64_t fh) noexcept nogil
cdef void handle_publish(handle_table_t *table, handle_t *handle) noexcept nogil
# -1. True: that was the last one; the caller gives back what file holds, then calls handle_free().
cdef bint handle_put(handle_table_t *table, handle_t *handle) noexcept nogil
cdef void handle_free(handle_table_t *table, handle_t *handle) noexcept nogil

cdef void ahead_take(handle_table_t *table, handle_t *handle, ahead_t *ahead) noexcept nogil
cdef void ahead_give(handle_table_t *table, handle_t *handle, ahead_t *ahead) noexcept nogil
