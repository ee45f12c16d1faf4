# What a post callback may do to its operation besides changing IoStatus: send it down again, or take an open back (reissue.pyx).

from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_INSTANCE
from stackfs.cext.ntstatus cimport NTSTATUS

# Both are for the post callback of Instance itself, and answer STATUS_INVALID_PARAMETER where they are not legal: nothing is done
# then. FltReissueSynchronousIo: of a CREATE, or of what the pre callback has synchronised; the outcome stands in IoStatus.
# FltCancelFileOpen: of a CREATE that has succeeded; the callback then sets the status that the program gets.
cdef NTSTATUS FltReissueSynchronousIo(FLT_INSTANCE *InitiatingInstance, FLT_CALLBACK_DATA *Data) noexcept nogil
cdef NTSTATUS FltCancelFileOpen(FLT_INSTANCE *Instance, FLT_CALLBACK_DATA *Data) noexcept nogil
