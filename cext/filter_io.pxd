# I/O that a filter starts itself (docs/semantics.md, B4), for native filters, without the GIL.
#
# Everything here is seen by the instances below `Instance` alone, as IRPs with FLTFL_CALLBACK_DATA_GENERATED_IO, and may be
# called from any callback and from any thread of the filter: the base works beside the mount, and no lock is held meanwhile.
# All wait in place, but where a callback routine is given. After the instance's teardown they answer STATUS_FLT_DELETING_OBJECT.
#
# A file object is the filter's own (FltCreateFileEx) or, inside a callback, the operation's: FltObjects.FileObject. One that is
# synthesised has no descriptor: its attributes, times and EAs can be had, its data cannot; open it again (RootDirectory, no name).
# It has to be a file object of the instance's own volume.

from libc.stdint cimport int64_t, uint32_t
from stackfs.cext.buffers cimport MDL
from stackfs.cext.callback_data cimport (
    FILE_OBJECT, FLT_INSTANCE, SECURITY_PARAMETERS, SET_FILE_PARAMETERS, statx_t)
from stackfs.cext.generated_io cimport PFLT_COMPLETED_ASYNC_IO_CALLBACK
from stackfs.cext.ntstatus cimport NTSTATUS

# InputBuffer of FSCTL_SET_ZERO_DATA: a hole is punched, the size stays.
ctypedef struct FILE_ZERO_DATA_INFORMATION:
    int64_t FileOffset
    int64_t BeyondFinalZero

# FltReadFile, FltWriteFile: Flags
cpdef enum IoFlags:
    FLTFL_IO_OPERATION_NON_CACHED = 1
    FLTFL_IO_OPERATION_PAGING = 2
    FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET = 4
    FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING = 8

# Data. ByteOffset NULL: the file object's own offset (files of the filter's own). A write at -1 appends.
# CallbackRoutine: STATUS_PENDING, and Buffer must live until it is called.
cdef NTSTATUS FltReadFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const int64_t *ByteOffset, uint32_t Length, void *Buffer,
                          uint32_t Flags, uint32_t *BytesRead, PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine,
                          void *CallbackContext) noexcept nogil
cdef NTSTATUS FltWriteFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const int64_t *ByteOffset, uint32_t Length,
                           const void *Buffer, uint32_t Flags, uint32_t *BytesWritten,
                           PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine, void *CallbackContext) noexcept nogil
# The same with a key of byte-range locks, for filters below that keep such; Buffer NULL: what the MDL describes.
cdef NTSTATUS FltReadFileEx(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const int64_t *ByteOffset, uint32_t Length, void *Buffer,
                            uint32_t Flags, uint32_t *BytesRead, PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine,
                            void *CallbackContext, const uint32_t *Key, const MDL *Mdl) noexcept nogil
cdef NTSTATUS FltWriteFileEx(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const int64_t *ByteOffset, uint32_t Length,
                             const void *Buffer, uint32_t Flags, uint32_t *BytesWritten,
                             PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine, void *CallbackContext, const uint32_t *Key,
                             const MDL *Mdl) noexcept nogil
cdef NTSTATUS FltFlushBuffers(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, bint DataOnly) noexcept nogil

# Everything of the volume that has been written, by whomever: FLUSH_BUFFERS of the volume itself.
cdef NTSTATUS filter_flush_volume(FLT_INSTANCE *Instance) noexcept nogil

# Attributes. SetInformation: FileInformationClass and what belongs to it; for FileRenameInformation(Ex), FileLinkInformation and
# FileDispositionInformation the file has to be one that the filter has opened by name. TargetDirectory NULL: the directory it is in.
cdef NTSTATUS FltQueryInformationFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, statx_t *Info) noexcept nogil
cdef NTSTATUS FltSetInformationFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject,
                                    const SET_FILE_PARAMETERS *Information) noexcept nogil
cdef NTSTATUS FltQueryEaFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const char *EaName, void *Buffer, uint32_t Length,
                             uint32_t *LengthReturned) noexcept nogil        # EaName NULL: their names; Buffer NULL: how long
cdef NTSTATUS FltSetEaFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const char *EaName, const void *Buffer,
                           uint32_t Length, uint32_t Flags, bint Remove) noexcept nogil
cdef NTSTATUS FltQuerySecurityObject(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, SECURITY_PARAMETERS *Security) noexcept nogil
cdef NTSTATUS FltSetSecurityObject(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject,
                                   const SECURITY_PARAMETERS *Security) noexcept nogil
cdef NTSTATUS FltQueryVolumeInformation(FLT_INSTANCE *Instance, void *Buffer, uint32_t Length) noexcept nogil       # struct statvfs

cdef NTSTATUS FltSetVolumeInformation(FLT_INSTANCE *Instance, const void *FsInformation, uint32_t Length,
                                      uint32_t FsInformationClass) noexcept nogil

# Where data (Whence SEEK_DATA) or a hole (SEEK_HOLE) begins, from Offset on; STATUS of ENXIO: nowhere.
cdef NTSTATUS filter_seek(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, int64_t Offset, uint32_t Whence, int64_t *Found) noexcept nogil

# Buffer: linux_dirent64 records. STATUS_NO_MORE_FILES at the end. The directory is one that the filter has opened.
cdef NTSTATUS FltQueryDirectoryFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, void *Buffer, uint32_t Length,
                                    bint RestartScan, uint32_t *LengthReturned) noexcept nogil
cdef NTSTATUS FltFsControlFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, uint32_t FsControlCode, const void *InputBuffer,
                               uint32_t InputBufferLength, void *OutputBuffer, uint32_t OutputBufferLength,
                               uint32_t *LengthReturned) noexcept nogil
cdef NTSTATUS FltDeviceIoControlFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, uint32_t IoControlCode, const void *InputBuffer,
                                     uint32_t InputBufferLength, void *OutputBuffer, uint32_t OutputBufferLength,
                                     uint32_t *LengthReturned) noexcept nogil
