# Reparse points of regular files and directories: a tag and its data, kept with the file (reparse_point.pyx; docs/semantics.md, B5.3).

from stackfs.cext.callback_data cimport CONTROL_PARAMETERS
from stackfs.cext.ntstatus cimport NTSTATUS

cdef enum:
    LARGEST_REPARSE_POINT = 16384        # MAXIMUM_REPARSE_DATA_BUFFER_SIZE

# FSCTL_SET_, GET_ and DELETE_REPARSE_POINT on the descriptor of an open file; information: bytes put into OutputBuffer.
cdef NTSTATUS reparse_point_control(int fd, const CONTROL_PARAMETERS *p, size_t *information) noexcept nogil
