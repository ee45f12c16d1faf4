# STATUS_REPARSE: an operation that goes on under another name (reparse.pyx).

from libc.stdint cimport uint32_t
from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.requests cimport vfs_request_t

cdef enum:
    MAXIMUM_REPARSES = 64

# In the pre callback of a CREATE or QUERY_OPEN: the name, from the volume's root, that the operation goes on by; it then completes it
# with STATUS_REPARSE. STATUS_INVALID_PARAMETER: of another operation; STATUS_INSUFFICIENT_RESOURCES; STATUS_NAME_TOO_LONG.
cdef NTSTATUS IoReplaceFileObjectName(FLT_CALLBACK_DATA *Data, const char *NewFileName, uint32_t FileNameLength) noexcept nogil
# For requests.pyx: the request is to begin again, about what that name leads to. STATUS_SUCCESS, or why it cannot.
cdef NTSTATUS request_reparse(vfs_request_t *request) noexcept nogil
cdef void reparse_free(vfs_request_t *request) noexcept nogil
