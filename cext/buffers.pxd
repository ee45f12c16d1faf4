# Buffers of operations: MDLs, and what a filter may know of those it swapped (docs/semantics.md, A5).
#
# An MDL describes memory. One that a filter allocates and puts into its parameters with a swapped buffer is the manager's from then
# on: it is freed when the filter's post callback has returned, unless FltRetainSwappedBufferMdlAddress took it back. One that
# FltLockUserBuffer made lives as long as its operation. All of this belongs to the thread that runs the callback.

from libc.stdint cimport uint32_t
from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_IO_PARAMETER_BLOCK
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.stack cimport layer_t, operation_t

cpdef enum LockOperation:
    IoReadAccess = 0
    IoWriteAccess = 1
    IoModifyAccess = 2

cdef struct MDL:
    MDL *Next                            # of the operation's own ones
    void *StartVa
    uint32_t ByteCount
    uint32_t MdlFlags                    # 0

cdef MDL *IoAllocateMdl(void *VirtualAddress, uint32_t Length) noexcept nogil       # NULL: no memory
cdef void IoFreeMdl(MDL *Mdl) noexcept nogil
# The address that the memory has here; NULL, which a filter answers with STATUS_INSUFFICIENT_RESOURCES: of no MDL at all.
cdef inline void *MmGetSystemAddressForMdlSafe(MDL *Mdl, uint32_t Priority) noexcept nogil:
    return NULL if Mdl is NULL else Mdl.StartVa
cdef inline uint32_t MmGetMdlByteCount(const MDL *Mdl) noexcept nogil:
    return Mdl.ByteCount

# Where the parameters' fields are: the MDL, the buffer, its length; each pointer may be NULL where it is not wanted.
# STATUS_INVALID_PARAMETER: an operation without a buffer. Length is NULL where the operation has none of its own.
cdef NTSTATUS FltDecodeParameters(FLT_CALLBACK_DATA *Data, void ***MdlAddressPointer, void ***Buffer, uint32_t **Length,
                                  uint32_t *DesiredAccess) noexcept nogil
cdef NTSTATUS FltLockUserBuffer(FLT_CALLBACK_DATA *Data) noexcept nogil
cdef MDL *FltGetSwappedBufferMdlAddress(FLT_CALLBACK_DATA *Data) noexcept nogil
cdef MDL *FltRetainSwappedBufferMdlAddress(FLT_CALLBACK_DATA *Data) noexcept nogil

# For the walk. On the way down, of operations with a system buffer: FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER. On the way up: what a layer
# received stands again, and what it had passed down is kept, until the next one or the end. At the end: that, with the MDL which it
# had swapped in, and the operation's own MDLs are let go of.
cdef void system_buffer_swapped(operation_t *op, FLT_IO_PARAMETER_BLOCK *received) noexcept nogil
cdef void take_back(operation_t *op, layer_t *layer) noexcept nogil
cdef void passed_down_release(operation_t *op) noexcept nogil
cdef void mdls_free(operation_t *op) noexcept nogil
