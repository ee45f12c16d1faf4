"""What a filter does with files itself (docs/semantics.md, B4): data, attributes, listings, controls.

Each routine is one operation of the stack below the instance, by generated_io.pyx. Without the GIL, on any thread; a file's own
record (its offset, its place in a listing) belongs to whoever uses the file.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, strncmp

from stackfs.cext.backing cimport backing_t
from stackfs.cext.callback_data cimport (
    FLT_IO_PARAMETER_BLOCK, FO_DIRECTORY, FO_SYNTHESISED, FO_VOLUME_OPEN, FSCTL_SET_ZERO_DATA, IRP_MJ_DEVICE_CONTROL,
    IRP_MJ_DIRECTORY_CONTROL,
    IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_INFORMATION, IRP_MJ_QUERY_SECURITY,
    IRP_MJ_QUERY_VOLUME_INFORMATION, IRP_MJ_READ, IRP_MJ_SET_EA, IRP_MJ_SET_INFORMATION, IRP_MJ_SET_SECURITY, IRP_MJ_SET_VOLUME_INFORMATION,
    IRP_MJ_WRITE,
    IRP_MN_QUERY_DIRECTORY, IRP_NOCACHE, IRP_PAGING_IO, IRP_SYNCHRONOUS_PAGING_IO, LABEL_SECURITY_INFORMATION, FileAllInformation,
    FileDispositionInformation, FileLinkInformation, FilePositionInformation, FileRenameInformation, FileRenameInformationEx)
from stackfs.cext.filter_names cimport change_own_name, filter_file_t
from stackfs.cext.generated_io cimport begin_io, enter, finish_io, leave, perform, start_io
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, STATUS_FLT_DELETING_OBJECT, STATUS_INVALID_PARAMETER, STATUS_NO_MORE_FILES, STATUS_SUCCESS)
from stackfs.cext.requests cimport request_free, vfs_request_t
from stackfs.cext.threads cimport load_bits


cdef enum:
    FALLOC_FL_KEEP_SIZE = 1
    FALLOC_FL_PUNCH_HOLE = 2
    FS_FULL_SIZE = 7                     # FileFsFullSizeInformation: of what statvfs(3) gives


cdef inline backing_t *backing_of(const FLT_INSTANCE *instance) noexcept nogil:
    return <backing_t *>instance.Related.Volume.backing


cdef NTSTATUS transfer(FLT_INSTANCE *instance, FILE_OBJECT *file, uint8_t major, const int64_t *offset, uint32_t length, void *buffer,
                       uint32_t flags, uint32_t key, uint32_t *moved, PFLT_COMPLETED_ASYNC_IO_CALLBACK callback,
                       void *context) noexcept nogil:
    """Entered before anything of the file is looked at: once the instance has ended it may have been closed behind its owner."""
    cdef NTSTATUS status
    if not enter(instance):
        return STATUS_FLT_DELETING_OBJECT
    status = transfer_entered(instance, file, major, offset, length, buffer, flags, key, moved, callback, context)
    leave(instance)
    return status


cdef NTSTATUS transfer_entered(FLT_INSTANCE *instance, FILE_OBJECT *file, uint8_t major, const int64_t *offset, uint32_t length,
                               void *buffer, uint32_t flags, uint32_t key, uint32_t *moved, PFLT_COMPLETED_ASYNC_IO_CALLBACK callback,
                               void *context) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef filter_file_t *own = <filter_file_t *>file.FilterFile
    cdef FLT_IO_PARAMETER_BLOCK *p
    cdef uint32_t done = 0
    cdef int64_t at
    cdef NTSTATUS status
    if moved is not NULL:
        moved[0] = 0
    if offset is NULL and own is NULL:
        return STATUS_INVALID_PARAMETER      # a program's offset is the kernel's
    at = own.offset if offset is NULL else offset[0]
    if at < 0 and not (at == -1 and major == IRP_MJ_WRITE):
        return STATUS_INVALID_PARAMETER
    status = begin_io(instance, file, major, &request)
    if status != STATUS_SUCCESS:
        return status
    p = &request.operation.current
    p.Parameters.Read.Buffer = buffer
    p.Parameters.Read.Length = length
    p.Parameters.Read.ByteOffset = at
    p.Parameters.Read.Key = key
    if flags & FLTFL_IO_OPERATION_NON_CACHED:
        p.IrpFlags |= IRP_NOCACHE
    if flags & FLTFL_IO_OPERATION_PAGING:
        p.IrpFlags |= IRP_PAGING_IO | IRP_NOCACHE
    if flags & FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING:
        p.IrpFlags |= IRP_SYNCHRONOUS_PAGING_IO | IRP_PAGING_IO | IRP_NOCACHE
    request.operation.buffer_read_only = major == IRP_MJ_WRITE
    if callback is not NULL:
        return start_io(request, callback, context, True)
    status = finish_io(request, &done)
    if moved is not NULL:
        moved[0] = done
    if NT_SUCCESS(status) and own is not NULL and at >= 0 and not flags & FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET:
        own.offset = at + done
    return status


cdef NTSTATUS FltReadFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const int64_t *ByteOffset, uint32_t Length, void *Buffer,
                          uint32_t Flags, uint32_t *BytesRead, PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine,
                          void *CallbackContext) noexcept nogil:
    return transfer(Instance, FileObject, IRP_MJ_READ, ByteOffset, Length, Buffer, Flags, 0, BytesRead, CallbackRoutine, CallbackContext)


cdef NTSTATUS FltReadFileEx(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const int64_t *ByteOffset, uint32_t Length, void *Buffer,
                            uint32_t Flags, uint32_t *BytesRead, PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine,
                            void *CallbackContext, const uint32_t *Key, const MDL *Mdl) noexcept nogil:
    if Buffer is NULL and Mdl is not NULL:
        if Length > Mdl.ByteCount:
            return STATUS_INVALID_PARAMETER
        Buffer = Mdl.StartVa
    return transfer(Instance, FileObject, IRP_MJ_READ, ByteOffset, Length, Buffer, Flags, 0 if Key is NULL else Key[0], BytesRead,
                    CallbackRoutine, CallbackContext)


cdef NTSTATUS FltWriteFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const int64_t *ByteOffset, uint32_t Length,
                           const void *Buffer, uint32_t Flags, uint32_t *BytesWritten,
                           PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine, void *CallbackContext) noexcept nogil:
    return transfer(Instance, FileObject, IRP_MJ_WRITE, ByteOffset, Length, <void *>Buffer, Flags, 0, BytesWritten, CallbackRoutine,
                    CallbackContext)


cdef NTSTATUS FltWriteFileEx(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const int64_t *ByteOffset, uint32_t Length,
                             const void *Buffer, uint32_t Flags, uint32_t *BytesWritten,
                             PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine, void *CallbackContext, const uint32_t *Key,
                             const MDL *Mdl) noexcept nogil:
    if Buffer is NULL and Mdl is not NULL:
        if Length > Mdl.ByteCount:
            return STATUS_INVALID_PARAMETER
        Buffer = Mdl.StartVa
    return transfer(Instance, FileObject, IRP_MJ_WRITE, ByteOffset, Length, <void *>Buffer, Flags, 0 if Key is NULL else Key[0],
                    BytesWritten, CallbackRoutine, CallbackContext)


cdef NTSTATUS FltFlushBuffers(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, bint DataOnly) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef NTSTATUS status = begin_io(Instance, FileObject, IRP_MJ_FLUSH_BUFFERS, &request)
    if status != STATUS_SUCCESS:
        return status
    request.operation.current.Parameters.Flush.DataOnly = DataOnly
    return finish_io(request, NULL)


cdef NTSTATUS filter_flush_volume(FLT_INSTANCE *Instance) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef NTSTATUS status = begin_io(Instance, NULL, IRP_MJ_FLUSH_BUFFERS, &request)
    if status != STATUS_SUCCESS:
        return status
    volume_itself(request, Instance)
    return finish_io(request, NULL)


cdef void volume_itself(vfs_request_t *request, const FLT_INSTANCE *instance) noexcept nogil:
    request.synthesised.fd = -1
    request.synthesised.Flags = FO_SYNTHESISED | FO_DIRECTORY | FO_VOLUME_OPEN
    request.synthesised.Node = backing_of(instance).nodes.root
    request.operation.current.TargetFileObject = &request.synthesised


cdef NTSTATUS FltQueryInformationFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, statx_t *Info) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef NTSTATUS status = begin_io(Instance, FileObject, IRP_MJ_QUERY_INFORMATION, &request)
    if status != STATUS_SUCCESS:
        return status
    request.operation.current.Parameters.QueryFile.FileInformationClass = FileAllInformation
    request.operation.current.Parameters.QueryFile.Length = sizeof(statx_t)
    request.operation.current.Parameters.QueryFile.Info = Info
    return finish_io(request, NULL)


cdef NTSTATUS FltSetInformationFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject,
                                    const SET_FILE_PARAMETERS *Information) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef uint32_t which = Information.FileInformationClass
    cdef NTSTATUS status
    if which == FileRenameInformation or which == FileRenameInformationEx or which == FileLinkInformation or \
            which == FileDispositionInformation:
        if not enter(Instance):
            return STATUS_FLT_DELETING_OBJECT
        status = change_own_name(Instance, FileObject, Information)
        leave(Instance)
        return status
    status = begin_io(Instance, FileObject, IRP_MJ_SET_INFORMATION, &request)
    if status != STATUS_SUCCESS:
        return status
    request.operation.current.Parameters.SetFile = Information[0]
    return finish_io(request, NULL)


cdef NTSTATUS filter_seek(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, int64_t Offset, uint32_t Whence, int64_t *Found) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef NTSTATUS status = begin_io(Instance, FileObject, IRP_MJ_QUERY_INFORMATION, &request)
    if status != STATUS_SUCCESS:
        return status
    request.operation.current.Parameters.QueryFile.FileInformationClass = FilePositionInformation
    request.operation.current.Parameters.QueryFile.Offset = Offset
    request.operation.current.Parameters.QueryFile.Whence = Whence
    status = perform(request, True)
    Found[0] = <int64_t>request.operation.data.IoStatus.Information
    request_free(request)
    leave(Instance)
    return status


cdef bint is_user_attribute(const char *name) noexcept nogil:
    return name is NULL or strncmp(name, b"user.", 5) == 0


cdef NTSTATUS FltQueryEaFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const char *EaName, void *Buffer, uint32_t Length,
                             uint32_t *LengthReturned) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef bint user = is_user_attribute(EaName)
    cdef NTSTATUS status = begin_io(Instance, FileObject, IRP_MJ_QUERY_EA if user else IRP_MJ_QUERY_SECURITY, &request)
    if status != STATUS_SUCCESS:
        return status
    request.operation.current.Parameters.Ea.SecurityInformation = 0 if user else LABEL_SECURITY_INFORMATION
    request.operation.current.Parameters.Ea.EaName = EaName
    request.operation.current.Parameters.Ea.Buffer = Buffer
    request.operation.current.Parameters.Ea.Length = Length
    return finish_io(request, LengthReturned)


cdef NTSTATUS FltSetEaFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const char *EaName, const void *Buffer,
                           uint32_t Length, uint32_t Flags, bint Remove) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef bint user = is_user_attribute(EaName)
    cdef NTSTATUS status = begin_io(Instance, FileObject, IRP_MJ_SET_EA if user else IRP_MJ_SET_SECURITY, &request)
    if status != STATUS_SUCCESS:
        return status
    request.operation.buffer_read_only = 1
    request.operation.current.Parameters.Ea.SecurityInformation = 0 if user else LABEL_SECURITY_INFORMATION
    request.operation.current.Parameters.Ea.EaName = EaName
    request.operation.current.Parameters.Ea.Buffer = <void *>Buffer
    request.operation.current.Parameters.Ea.Length = Length
    request.operation.current.Parameters.Ea.Flags = Flags
    request.operation.current.Parameters.Ea.Remove = Remove
    return finish_io(request, NULL)


cdef NTSTATUS FltQuerySecurityObject(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, SECURITY_PARAMETERS *Security) noexcept nogil:
    """Owner, group and mode stand with the attributes (D6): a query of those."""
    cdef statx_t info
    cdef NTSTATUS status = FltQueryInformationFile(Instance, FileObject, &info)
    if NT_SUCCESS(status):
        Security.Uid = info.stx_uid
        Security.Gid = info.stx_gid
        Security.Mode = info.stx_mode & 0o7777
    return status


cdef NTSTATUS FltSetSecurityObject(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject,
                                   const SECURITY_PARAMETERS *Security) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef NTSTATUS status
    if Security.SecurityInformation & LABEL_SECURITY_INFORMATION:
        return STATUS_INVALID_PARAMETER      # those are attributes with names: FltSetEaFile
    status = begin_io(Instance, FileObject, IRP_MJ_SET_SECURITY, &request)
    if status != STATUS_SUCCESS:
        return status
    request.operation.current.Parameters.Security = Security[0]
    return finish_io(request, NULL)


cdef NTSTATUS FltQueryVolumeInformation(FLT_INSTANCE *Instance, void *Buffer, uint32_t Length) noexcept nogil:
    return volume_information(Instance, IRP_MJ_QUERY_VOLUME_INFORMATION, Buffer, Length, FS_FULL_SIZE)


cdef NTSTATUS FltSetVolumeInformation(FLT_INSTANCE *Instance, const void *FsInformation, uint32_t Length,
                                      uint32_t FsInformationClass) noexcept nogil:
    return volume_information(Instance, IRP_MJ_SET_VOLUME_INFORMATION, <void *>FsInformation, Length, FsInformationClass)


cdef NTSTATUS volume_information(FLT_INSTANCE *Instance, uint8_t major, void *Buffer, uint32_t Length, uint32_t which) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef NTSTATUS status = begin_io(Instance, NULL, major, &request)
    if status != STATUS_SUCCESS:
        return status
    volume_itself(request, Instance)
    request.operation.current.Parameters.Volume.Buffer = Buffer
    request.operation.current.Parameters.Volume.Length = Length
    request.operation.current.Parameters.Volume.FsInformationClass = which
    return finish_io(request, NULL)


cdef NTSTATUS FltQueryDirectoryFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, void *Buffer, uint32_t Length,
                                    bint RestartScan, uint32_t *LengthReturned) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef filter_file_t *own = <filter_file_t *>FileObject.FilterFile
    cdef uint32_t got = 0
    cdef int64_t base_got, base_to
    cdef NTSTATUS status
    LengthReturned[0] = 0
    if own is NULL or not load_bits(&FileObject.Flags) & FO_DIRECTORY:
        return STATUS_INVALID_PARAMETER
    if RestartScan:
        own.listed_to = 0
    while True:
        status = begin_io(Instance, FileObject, IRP_MJ_DIRECTORY_CONTROL, &request)
        if status != STATUS_SUCCESS:
            return status
        request.operation.current.MinorFunction = IRP_MN_QUERY_DIRECTORY
        request.operation.current.Parameters.Directory.Buffer = Buffer
        request.operation.current.Parameters.Directory.Length = Length
        request.operation.current.Parameters.Directory.Offset = own.listed_to
        request.listed = 0
        status = perform(request, True)
        base_got = request.listed
        base_to = request.listed_to
        got = <uint32_t>request.operation.data.IoStatus.Information
        request_free(request)
        leave(Instance)
        if not NT_SUCCESS(status):
            return status
        if got:
            # As the entries say, for a filter below may keep some for later; the base's own position where it made nonsense.
            own.listed_to = last_offset(<const char *>Buffer, got, base_to)
            LengthReturned[0] = got
            return STATUS_SUCCESS
        if base_got == 0:
            return STATUS_NO_MORE_FILES
        own.listed_to = base_to              # filters below hide all of these


cdef int64_t last_offset(const char *records, uint32_t length, int64_t otherwise) noexcept nogil:
    cdef int64_t offset = otherwise
    cdef uint16_t size
    cdef uint32_t at = 0
    while at + 19 <= length:
        memcpy(&size, records + at + 16, 2)
        if size < 20 or at + size > length:
            break
        memcpy(&offset, records + at + 8, 8)
        at += size
    return offset


cdef NTSTATUS control(FLT_INSTANCE *instance, FILE_OBJECT *file, uint8_t major, uint32_t code, const void *input, uint32_t input_length,
                      void *output, uint32_t output_length, uint32_t *returned) noexcept nogil:
    cdef vfs_request_t *request = NULL
    cdef const FILE_ZERO_DATA_INFORMATION *range
    cdef NTSTATUS status = begin_io(instance, file, major, &request)
    if status != STATUS_SUCCESS:
        return status
    request.operation.current.Parameters.Control.ControlCode = code
    request.operation.current.Parameters.Control.InputBuffer = input
    request.operation.current.Parameters.Control.InputBufferLength = input_length
    request.operation.current.Parameters.Control.OutputBuffer = output
    request.operation.current.Parameters.Control.OutputBufferLength = output_length
    if major == IRP_MJ_FILE_SYSTEM_CONTROL and code == <uint32_t>FSCTL_SET_ZERO_DATA:
        range = <const FILE_ZERO_DATA_INFORMATION *>input
        if input_length < sizeof(FILE_ZERO_DATA_INFORMATION) or range.FileOffset < 0 or range.BeyondFinalZero < range.FileOffset:
            request_free(request)
            leave(instance)
            return STATUS_INVALID_PARAMETER
        request.operation.current.Parameters.Control.Flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        request.operation.current.Parameters.Control.FileOffset = range.FileOffset
        request.operation.current.Parameters.Control.ByteCount = range.BeyondFinalZero - range.FileOffset
    return finish_io(request, returned)


cdef NTSTATUS FltFsControlFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, uint32_t FsControlCode, const void *InputBuffer,
                               uint32_t InputBufferLength, void *OutputBuffer, uint32_t OutputBufferLength,
                               uint32_t *LengthReturned) noexcept nogil:
    return control(Instance, FileObject, IRP_MJ_FILE_SYSTEM_CONTROL, FsControlCode, InputBuffer, InputBufferLength, OutputBuffer,
                   OutputBufferLength, LengthReturned)


cdef NTSTATUS FltDeviceIoControlFile(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, uint32_t IoControlCode, const void *InputBuffer,
                                     uint32_t InputBufferLength, void *OutputBuffer, uint32_t OutputBufferLength,
                                     uint32_t *LengthReturned) noexcept nogil:
    return control(Instance, FileObject, IRP_MJ_DEVICE_CONTROL, IoControlCode, InputBuffer, InputBufferLength, OutputBuffer,
                   OutputBufferLength, LengthReturned)
