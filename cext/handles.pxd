# Open files: the handles the kernel holds (fh), each a FILE_OBJECT with its descriptor.
#
# One mutex guards the table and is never held across a system call. A handle lives while it is open or in use; its
# directory buffer is touched only by the request that reads the directory (the kernel sends one at a time per handle).

from libc.stdint cimport int64_t, uint32_t, uint64_t
from stackfs.cext.callback_data cimport FILE_OBJECT

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef struct handle_t:
    FILE_OBJECT file                     # first: a handle's FILE_OBJECT is the handle
    uint32_t references
    uint32_t slot
    uint32_t generation
    handle_t *next_free
    char *entries                        # directory: linux_dirent64 records read ahead
    uint32_t entries_length
    uint32_t entries_at                  # next record to give out
    int64_t entries_offset               # d_off at which that record is to be had
    int64_t position                     # where the descriptor stands
    int64_t listed                       # bytes of entries that the base gave last

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
cdef void handle_put(handle_table_t *table, handle_t *handle) noexcept nogil  # -1; the last one frees it (its descriptor must be closed)
