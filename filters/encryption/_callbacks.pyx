"""The filter's callbacks (semantics A4, A5, D): names, sizes, links' targets, attributes and data on their way down and up.

Names are changed in every operation that has one, so that filters below see stored names and nothing else, and put right
again in listings. What is done with a regular file's data, READ, WRITE, its size, its space, fsync, seeking for holes, is
completed in the pre callback: blocks do not lie one to one where the plain bytes do, a write may need the rest of a block, and
the map between the blocks changes with each write. So the filter does the I/O itself, below, by _file.pyx, and programs'
reads and writes are seen below as reads and writes of ciphertext that a filter has started. Sizes need no I/O: the plain
size follows from the stored one.

Every callback runs on any thread, without the GIL. A pre callback that has changed something hands a passing_t to its
post callback; nobody else sees it.
"""

from libc.errno cimport EBADMSG, EINVAL, EIO, ENOENT, ENOMEM, EPERM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, strlen, strncmp

from stackfs.cext.buffers cimport MDL
from stackfs.cext.callback_data cimport (
    DACL_SECURITY_INFORMATION, FILE_DELETE_ON_CLOSE, FILE_DIRECTORY_FILE, FILE_NAME, FILE_OBJECT, FILE_OPEN, FILE_OPEN_IF,
    FILE_OPEN_REPARSE_POINT, FILE_OVERWRITE, FLT_CALLBACK_DATA, FLT_IO_PARAMETER_BLOCK, FLT_POSTOP_FINISHED_PROCESSING,
    FLT_PREOP_COMPLETE, FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_PREOP_SYNCHRONIZE,
    FLT_RELATED_OBJECTS, FSCTL_DUPLICATE_EXTENTS_TO_FILE, FSCTL_GET_REPARSE_POINT, FSCTL_SET_REPARSE_POINT, FSCTL_SET_ZERO_DATA,
    FltSetCallbackDataDirty, IRP_MJ_CLEANUP, IRP_MJ_CLOSE, IRP_MJ_CREATE, IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL,
    IRP_MJ_FLUSH_BUFFERS, IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_INFORMATION, IRP_MJ_QUERY_OPEN, IRP_MJ_READ,
    IRP_MJ_SET_EA, IRP_MJ_SET_INFORMATION, IRP_MJ_WRITE, IRP_MN_QUERY_DIRECTORY, IRP_PAGING_IO, SECURITY_PARAMETERS,
    SET_FILE_PARAMETERS, FileAllocationInformation, FileDispositionInformation, FileEndOfFileInformation, FileLinkInformation,
    FilePositionInformation, FileRenameInformation, FileRenameInformationEx, node_t, statx_t)
from stackfs.cext.filter_io cimport FltQueryInformationFile, FltSetInformationFile, FltSetSecurityObject
from stackfs.cext.filter_names cimport OBJECT_ATTRIBUTES, filter_delete
from stackfs.cext.inode_table cimport LAST_NAME, inode_table_t, name_holder, name_of, node_hold, node_put, node_type
from stackfs.cext.names cimport FLT_NAME_CONTROL, FltCheckAndGrowNameControl, LONGEST_NAME, name_provider_t
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, NTSTATUS, STATUS_NAME_TOO_LONG, STATUS_NOT_SUPPORTED, STATUS_OBJECT_NAME_NOT_FOUND, STATUS_SUCCESS, errno_to_nt)
from stackfs.cext.stack cimport FLT_INSTANCE, FLT_VOLUME, NativeOperations  # no-cython-lint: completes the struct
from stackfs.filters.encryption._cipher cimport (
    TARGET_ROOM, VALUE_OVERHEAD, target_decrypt, target_encrypt, value_decrypt, value_encrypt)
from stackfs.filters.encryption._directories cimport (
    directory_iv, directory_leaves, directory_made, directory_moved, directory_moves, directory_put_back, long_name_begin,
    long_name_end, node_called, passing_name, show_entries, show_path, store_name, stored_name_t)
from stackfs.filters.encryption._file cimport (
    file_append, file_id, file_punch, file_read, file_resize, file_seek, file_size, file_write)
from stackfs.filters.encryption._layout cimport plain_size, slot_offset
from stackfs.filters.encryption._streams cimport (
    CHANGING, MAKING, READING, error_of, mounted_t, stands_for, status_of, stream_closed, stream_flush, stream_opened,
    use_begin, use_end, use_t)

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <linux/fs.h>
    #include <sys/stat.h>
    #include <unistd.h>
    """
    int O_TRUNC, O_ACCMODE, O_RDONLY
    unsigned S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_ISUID, S_ISGID, S_IXGRP
    unsigned RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT
    unsigned FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, FALLOC_FL_UNSHARE_RANGE
    int SEEK_HOLE

cdef enum:
    MKDIR = 9                            # a request, as FUSE numbers it
    TARGET_LEAST = 43                    # characters of a stored target: 32 bytes

cdef struct passing_t:                   # from a pre callback to its post callback
    stored_name_t name
    stored_name_t other                  # the new name; the name under which a directory passes
    void *buffer
    bint name_made, other_made           # a long name's file was written for this
    uint8_t makes                        # MAKES_*
    bint truncates
    bint leaves                          # a directory that is to go is under `other`
    bint source_moves, target_moves      # directories' files have two places
    uint32_t missing                     # mode bits that a new directory is to lose again
    uint32_t owner_length
    uint8_t owner[16]
    node_t *source                       # of a rename, with references
    node_t *target

cdef enum:
    MAKES_NOTHING
    MAKES_DIRECTORY
    MAKES_FILE
    MAKES_OTHER


# Pieces ---------------------------------------------------------------------------------------------------------------------

cdef inline mounted_t *mounted_of(const FLT_RELATED_OBJECTS *objects) noexcept nogil:
    return <mounted_t *>objects.Instance.Context


cdef inline inode_table_t *nodes_of(const mounted_t *mounted) noexcept nogil:
    return <inode_table_t *>mounted.instance.Related.Volume.nodes


cdef inline bint is_file(const FILE_OBJECT *file) noexcept nogil:
    return file != NULL and file.Node != NULL and node_type(file.Node) == S_IFREG


cdef inline int complete(FLT_CALLBACK_DATA *data, NTSTATUS status, uint64_t information) noexcept nogil:
    data.IoStatus.Status = status
    data.IoStatus.Information = information
    return FLT_PREOP_COMPLETE


cdef inline int refuse(FLT_CALLBACK_DATA *data, mounted_t *mounted, passing_t *passing, int error) noexcept nogil:
    let_go(mounted, passing)
    return complete(data, status_of(mounted, error), 0)


cdef void let_go(mounted_t *mounted, passing_t *passing) noexcept nogil:
    if passing == NULL:
        return
    if passing.source != NULL:
        node_put(nodes_of(mounted), passing.source)
    if passing.target != NULL:
        node_put(nodes_of(mounted), passing.target)
    free(passing.buffer)
    free(passing)


cdef inline bint has_name(const FLT_CALLBACK_DATA *data, const FILE_OBJECT *file) noexcept nogil:
    return data.Iopb.FileName.Length != 0 and file != NULL and file.Directory != NULL


cdef int name_below(FLT_CALLBACK_DATA *data, mounted_t *mounted, const FILE_OBJECT *file, passing_t **passing) noexcept nogil:
    """The operation's name as the layers below have it; none: passing stays NULL."""
    cdef int error
    passing[0] = NULL
    if not has_name(data, file):
        return 0
    passing[0] = <passing_t *>calloc(1, sizeof(passing_t))
    if passing[0] == NULL:
        return -ENOMEM
    error = store_name(mounted, file.Directory, &data.Iopb.FileName, &passing[0].name)
    if error:
        return error
    put_name(data, &passing[0].name)
    return 0


cdef void put_name(FLT_CALLBACK_DATA *data, const stored_name_t *name) noexcept nogil:
    data.Iopb.FileName.Buffer = <char *>name.name
    data.Iopb.FileName.Length = name.length
    FltSetCallbackDataDirty(data)


cdef void put_sizes(statx_t *info) noexcept nogil:
    cdef int64_t size
    if (info.stx_mode & S_IFMT) == S_IFREG:
        size = plain_size(info.stx_size)
        info.stx_size = <uint64_t>size if size > 0 else 0
    elif (info.stx_mode & S_IFMT) == S_IFLNK and info.stx_size >= TARGET_LEAST:
        info.stx_size = info.stx_size * 3 // 4 - 32


cdef void without_set_id(mounted_t *mounted, const FLT_CALLBACK_DATA *data, FILE_OBJECT *file) noexcept nogil:
    """Somebody who is not root changes the file: it runs as nobody else any more (HANDLE_KILLPRIV_V2)."""
    cdef SECURITY_PARAMETERS security
    cdef FILE_OBJECT itself
    cdef statx_t info
    if data.Thread == NULL or data.Thread.uid == 0 or data.Iopb.IrpFlags & IRP_PAGING_IO:
        return
    stands_for(file.Node, &itself)
    if not NT_SUCCESS(FltQueryInformationFile(mounted.instance, &itself, &info)) or not info.stx_mode & (S_ISUID | S_ISGID):
        return
    security.SecurityInformation = DACL_SECURITY_INFORMATION
    security.KillSetId = 1
    security.Mode = security.Uid = security.Gid = 0
    FltSetSecurityObject(mounted.instance, &itself, &security)


cdef void remove_below(mounted_t *mounted, node_t *directory, const stored_name_t *name, bint is_directory) noexcept nogil:
    cdef FILE_OBJECT root
    cdef OBJECT_ATTRIBUTES what
    stands_for(directory, &root)
    what.ObjectName = name.name
    what.RootDirectory, what.ObjectNameLength, what.Requestor = &root, name.length, NULL
    filter_delete(mounted.instance, &what, is_directory)


# Whatever has a name, or asks for attributes --------------------------------------------------------------------------------------

cdef int pre_query(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef passing_t *passing
    cdef FILE_OBJECT *file = objects.FileObject
    cdef FILE_OBJECT itself
    cdef use_t use
    cdef int64_t found
    cdef int error
    if data.Iopb.MajorFunction == IRP_MJ_QUERY_INFORMATION and \
            data.Iopb.Parameters.QueryFile.FileInformationClass == FilePositionInformation:
        if not is_file(file):
            return FLT_PREOP_SUCCESS_NO_CALLBACK
        error = use_begin(&use, mounted, file, READING)
        if error:
            return complete(data, status_of(mounted, error), 0)
        found = file_seek(use.stream.file, <uint64_t>data.Iopb.Parameters.QueryFile.Offset,
                          data.Iopb.Parameters.QueryFile.Whence == <uint32_t>SEEK_HOLE)
        use_end(&use)
        return complete(data, status_of(mounted, <int>found if found < 0 else 0), <uint64_t>found if found > 0 else 0)
    if data.RequestOpcode == MKDIR and data.Iopb.MajorFunction == IRP_MJ_QUERY_INFORMATION and file.Node != NULL:
        stands_for(file.Node, &itself)               # what the base has seen was before its file was in it
        return complete(data, FltQueryInformationFile(mounted.instance, &itself, data.Iopb.Parameters.QueryFile.Info), 0)
    error = name_below(data, mounted, file, &passing)
    if error:
        return refuse(data, mounted, passing, -ENOENT if error == -EPERM else error)
    context[0] = passing
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef int post_query(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    if NT_SUCCESS(data.IoStatus.Status) and not flags and data.Iopb.Parameters.QueryFile.Info != NULL:
        put_sizes(data.Iopb.Parameters.QueryFile.Info)
    let_go(mounted_of(objects), <passing_t *>context)
    return FLT_POSTOP_FINISHED_PROCESSING


cdef int pre_close(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef passing_t *passing
    if data.Iopb.MajorFunction == IRP_MJ_CLEANUP and is_file(objects.FileObject) and objects.FileObject.fd >= 0:
        stream_closed(mounted, objects.FileObject)
    if name_below(data, mounted, objects.FileObject, &passing):
        let_go(mounted, passing)                     # it goes on all the same
        data.Iopb.FileName.Length = 0
        FltSetCallbackDataDirty(data)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    if passing == NULL:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    context[0] = passing
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef int post_free(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    let_go(mounted_of(objects), <passing_t *>context)
    return FLT_POSTOP_FINISHED_PROCESSING


# CREATE -----------------------------------------------------------------------------------------------------------------------

cdef int pre_create(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef FILE_OBJECT *file = objects.FileObject
    cdef FLT_IO_PARAMETER_BLOCK *p = data.Iopb
    cdef uint32_t options = p.Parameters.Create.Options
    cdef uint32_t disposition = options >> 24
    cdef passing_t *passing
    cdef int error = name_below(data, mounted, file, &passing)
    if error:
        return refuse(data, mounted, passing, -ENOENT if error == -EPERM and disposition == FILE_OPEN else error)
    if passing == NULL:
        passing = <passing_t *>calloc(1, sizeof(passing_t))
        if passing == NULL:
            return complete(data, errno_to_nt(ENOMEM), 0)
    if options & FILE_DELETE_ON_CLOSE:
        passing.makes = MAKES_FILE
    elif has_name(data, file) and file.Node == NULL and disposition != FILE_OPEN and not options & FILE_OPEN_REPARSE_POINT:
        if options & FILE_DIRECTORY_FILE:
            passing.makes = MAKES_DIRECTORY
        else:
            passing.makes = MAKES_FILE if (p.Parameters.Create.Mode & S_IFMT) == S_IFREG else MAKES_OTHER
        error = long_name_begin(mounted, file.Directory, &passing.name, &passing.name_made)
        if error == 0 and passing.makes == MAKES_DIRECTORY and not mounted.plain_names:
            error = passing_name(&passing.other)
            put_name(data, &passing.other)
            passing.missing = 0o700 & ~(p.Parameters.Create.Mode & ~p.Parameters.Create.Umask)
            p.Parameters.Create.Mode |= 0o700        # until its file is in it
            p.Parameters.Create.Umask &= ~<uint32_t>0o700
        if error:
            return refuse(data, mounted, passing, error)
    elif p.Parameters.Create.OpenFlags & <uint32_t>O_TRUNC:
        passing.truncates = True
        p.Parameters.Create.OpenFlags &= ~<uint32_t>O_TRUNC
        p.Parameters.Create.Options = (options & 0xFFFFFF) | <uint32_t>(
            FILE_OPEN if disposition == FILE_OVERWRITE else FILE_OPEN_IF) << 24
        FltSetCallbackDataDirty(data)
    context[0] = passing
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef int opened(mounted_t *mounted, FLT_CALLBACK_DATA *data, FILE_OBJECT *file, passing_t *passing) noexcept nogil:
    """What is left to do with what has been opened or made. An error takes back what was made."""
    cdef use_t use
    cdef bint counted = False
    cdef int error = 0
    if passing.makes == MAKES_DIRECTORY:
        if mounted.plain_names:
            return 0
        return directory_made(mounted, file.Directory, &passing.other, &passing.name, file.Node, passing.missing)
    if not is_file(file):
        return 0
    if file.fd >= 0:
        error = stream_opened(mounted, file)
        counted = error == 0
    if error == 0 and (passing.makes == MAKES_FILE or passing.truncates):
        if passing.truncates:
            without_set_id(mounted, data, file)
        error = use_begin(&use, mounted, file, MAKING if passing.makes == MAKES_FILE else CHANGING)
        if error == 0:
            if passing.truncates:
                error = file_resize(use.stream.file, 0)
            use_end(&use)
    if error and counted:
        stream_closed(mounted, file)
    if error and passing.makes == MAKES_FILE and passing.name.length:
        remove_below(mounted, file.Directory, &passing.name, False)
    return error


cdef int post_create(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef passing_t *passing = <passing_t *>context
    cdef FILE_OBJECT *file = objects.FileObject
    cdef int error
    if not flags:
        error = opened(mounted, data, file, passing) if NT_SUCCESS(data.IoStatus.Status) else 0
        if error:
            data.IoStatus.Status = status_of(mounted, error)
            data.IoStatus.Information = 0
        if passing.name_made and not NT_SUCCESS(data.IoStatus.Status):
            long_name_end(mounted, file.Directory, &passing.name)
    let_go(mounted, passing)
    return FLT_POSTOP_FINISHED_PROCESSING


# Data -------------------------------------------------------------------------------------------------------------------------

cdef inline void *buffer_of(const FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    return p.Parameters.Read.Buffer if p.Parameters.Read.MdlAddress == NULL else (<MDL *>p.Parameters.Read.MdlAddress).StartVa


cdef int pre_read(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef use_t use
    cdef int64_t got
    if not is_file(objects.FileObject):
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    if data.Iopb.Parameters.Read.ByteOffset < 0:
        return complete(data, errno_to_nt(EINVAL), 0)
    got = use_begin(&use, mounted, objects.FileObject, READING)
    if got == 0:
        got = file_read(use.stream.file, <uint64_t>data.Iopb.Parameters.Read.ByteOffset, data.Iopb.Parameters.Read.Length,
                        buffer_of(data.Iopb))
        use_end(&use)
    if got < 0:
        return complete(data, status_of(mounted, <int>got), 0)
    return complete(data, STATUS_SUCCESS, <uint64_t>got)


cdef int pre_write(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef uint32_t length = data.Iopb.Parameters.Write.Length
    cdef uint64_t offset = 0
    cdef use_t use
    cdef int64_t put
    if not is_file(objects.FileObject):
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    if data.Iopb.Parameters.Write.ByteOffset < -1:
        return complete(data, errno_to_nt(EINVAL), 0)
    without_set_id(mounted, data, objects.FileObject)
    put = use_begin(&use, mounted, objects.FileObject, CHANGING)
    if put == 0:
        if data.Iopb.Parameters.Write.ByteOffset < 0:
            put = file_append(use.stream.file, length, buffer_of(data.Iopb), &offset)
        else:
            put = file_write(use.stream.file, <uint64_t>data.Iopb.Parameters.Write.ByteOffset, length, buffer_of(data.Iopb))
        use_end(&use)
    if 0 <= put < length and data.Iopb.IrpFlags & IRP_PAGING_IO:
        put = -EIO                                   # the kernel does not look how much of a page was written back
    if put < 0:
        return complete(data, status_of(mounted, <int>put), 0)
    return complete(data, STATUS_SUCCESS, <uint64_t>put)


cdef int pre_flush(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef int done
    if not is_file(objects.FileObject):
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    done = stream_flush(mounted, objects.FileObject, data.Iopb.Parameters.Flush.DataOnly != 0)
    if done == 0:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    return complete(data, status_of(mounted, done if done < 0 else 0), 0)


cdef int resize(mounted_t *mounted, FLT_CALLBACK_DATA *data, FILE_OBJECT *file, uint64_t size, bint only_grow) noexcept nogil:
    cdef use_t use
    cdef int error
    without_set_id(mounted, data, file)
    error = use_begin(&use, mounted, file, CHANGING)
    if error:
        return error
    if not only_grow or size > file_size(use.stream.file):
        error = file_resize(use.stream.file, size)
    use_end(&use)
    return error


cdef int allocate(mounted_t *mounted, FLT_CALLBACK_DATA *data, FILE_OBJECT *file) noexcept nogil:
    """The room that the stored blocks will take; the file grows by its size alone, and its holes stay holes."""
    cdef SET_FILE_PARAMETERS room = data.Iopb.Parameters.SetFile
    cdef uint64_t offset = <uint64_t>room.AllocationOffset
    cdef uint64_t end = offset + <uint64_t>room.AllocationLength
    cdef use_t use
    cdef int error = 0
    if room.AllocationOffset < 0 or room.AllocationLength <= 0:
        return -EINVAL
    if not room.Flags & FALLOC_FL_KEEP_SIZE:
        error = resize(mounted, data, file, end, True)
    if error:
        return error
    error = use_begin(&use, mounted, file, CHANGING)
    if error:
        return error
    room.Flags = FALLOC_FL_KEEP_SIZE
    room.AllocationOffset = <int64_t>slot_offset(offset // 4096)
    room.AllocationLength = <int64_t>slot_offset((end + 4095) // 4096) - room.AllocationOffset
    error = error_of(FltSetInformationFile(mounted.instance, use.stream.own, &room))
    use_end(&use)
    return error


cdef int zero(mounted_t *mounted, FLT_CALLBACK_DATA *data, FILE_OBJECT *file) noexcept nogil:
    cdef uint32_t mode = data.Iopb.Parameters.Control.Flags
    cdef int64_t offset = data.Iopb.Parameters.Control.FileOffset
    cdef int64_t length = data.Iopb.Parameters.Control.ByteCount
    cdef use_t use
    cdef int error
    if offset < 0 or length <= 0:
        return -EINVAL
    without_set_id(mounted, data, file)
    error = use_begin(&use, mounted, file, CHANGING)
    if error:
        return error
    error = file_punch(use.stream.file, <uint64_t>offset, <uint64_t>length)
    if error == 0 and not mode & FALLOC_FL_KEEP_SIZE and <uint64_t>(offset + length) > file_size(use.stream.file):
        error = file_resize(use.stream.file, <uint64_t>(offset + length))
    use_end(&use)
    return error


# SET_INFORMATION ----------------------------------------------------------------------------------------------------------------

cdef int removes(FLT_CALLBACK_DATA *data, mounted_t *mounted, FILE_OBJECT *file, passing_t *passing) noexcept nogil:
    """UNLINK and RMDIR. A directory is taken out of the way first."""
    cdef uint16_t type = 0
    cdef int error = 0
    passing.source = node_called(mounted, file.Directory, &passing.name, &type)
    if type != S_IFDIR or data.Iopb.Parameters.SetFile.Flags == 0 or mounted.plain_names:
        return 0
    error = passing_name(&passing.other)
    error = error or directory_leaves(mounted, file.Directory, &passing.name, passing.source, &passing.other)
    if error == 0:
        passing.leaves = True
        put_name(data, &passing.other)
    return error


cdef int renames(FLT_CALLBACK_DATA *data, mounted_t *mounted, FILE_OBJECT *file, passing_t *passing) noexcept nogil:
    """The new name, and what has to be done before directories change places."""
    cdef SET_FILE_PARAMETERS *p = &data.Iopb.Parameters.SetFile
    cdef bint exchange = p.Flags & RENAME_EXCHANGE != 0
    cdef uint16_t type = 0, target_type = 0
    cdef stored_name_t aside
    cdef int error = store_name(mounted, p.TargetDirectory, &p.TargetName, &passing.other)
    if error:
        return error
    if p.Flags & RENAME_WHITEOUT:
        return -EINVAL
    p.TargetName.Buffer = passing.other.name
    p.TargetName.Length = passing.other.length
    FltSetCallbackDataDirty(data)
    if not exchange:
        error = long_name_begin(mounted, p.TargetDirectory, &passing.other, &passing.other_made)
    if error or mounted.plain_names:
        return error
    passing.source = node_called(mounted, file.Directory, &passing.name, &type)
    passing.target = node_called(mounted, p.TargetDirectory, &passing.other, &target_type)
    if passing.source == passing.target:
        return 0
    if type == S_IFDIR:
        if target_type == S_IFDIR and not exchange and not p.Flags & RENAME_NOREPLACE:
            error = passing_name(&aside)
            error = error or directory_leaves(mounted, p.TargetDirectory, &passing.other, passing.target, &aside)
            if error:
                return error
            passing.buffer = malloc(sizeof(stored_name_t))
            if passing.buffer == NULL:
                directory_put_back(mounted, p.TargetDirectory, &passing.other, passing.target, &aside)
                return -ENOMEM
            memcpy(passing.buffer, &aside, sizeof(aside))
            passing.leaves = True
        error = directory_moves(mounted, passing.source, file.Directory, &passing.name, p.TargetDirectory, &passing.other)
        passing.source_moves = True
    if error == 0 and exchange and target_type == S_IFDIR:
        error = directory_moves(mounted, passing.target, p.TargetDirectory, &passing.other, file.Directory, &passing.name)
        passing.target_moves = True
    return error


cdef void renamed(mounted_t *mounted, FILE_OBJECT *file, node_t *to, bint exchange, bint good, passing_t *passing) noexcept nogil:
    """Afterwards, whatever came of it."""
    cdef const stored_name_t *aside = <const stored_name_t *>passing.buffer
    cdef int error = 0
    if passing.source_moves:
        error = directory_moved(mounted, passing.source, to if good else file.Directory, &passing.other if good else &passing.name,
                                file.Directory if good else to)
    if passing.target_moves:
        error = directory_moved(mounted, passing.target, file.Directory if good else to,
                                &passing.name if good else &passing.other, to if good else file.Directory) or error
    if passing.leaves and aside != NULL:
        if good:
            remove_below(mounted, to, aside, True)
        else:
            directory_put_back(mounted, to, &passing.other, passing.target, aside)
    if good and not exchange and passing.source is not passing.target:
        long_name_end(mounted, file.Directory, &passing.name)
    elif not good and passing.other_made:
        long_name_end(mounted, to, &passing.other)


cdef int pre_set_information(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef FILE_OBJECT *file = objects.FileObject
    cdef SET_FILE_PARAMETERS *p = &data.Iopb.Parameters.SetFile
    cdef uint32_t which = p.FileInformationClass
    cdef passing_t *passing = NULL
    cdef int error
    if which == FileEndOfFileInformation or which == FileAllocationInformation:
        if not is_file(file):
            return FLT_PREOP_SUCCESS_NO_CALLBACK
        if which == FileAllocationInformation:
            error = allocate(mounted, data, file)
        else:
            error = resize(mounted, data, file, <uint64_t>p.EndOfFile, False) if p.EndOfFile >= 0 else -EINVAL
        return complete(data, status_of(mounted, error), 0)
    error = name_below(data, mounted, file, &passing)
    if error == 0 and passing == NULL:
        if which != FileLinkInformation:
            return FLT_PREOP_SUCCESS_NO_CALLBACK
        passing = <passing_t *>calloc(1, sizeof(passing_t))
        error = 0 if passing != NULL else -ENOMEM
    if error == 0 and which == FileDispositionInformation:
        error = removes(data, mounted, file, passing)
    elif error == 0 and which == FileLinkInformation:
        error = store_name(mounted, p.TargetDirectory, &p.TargetName, &passing.other)
        error = error or long_name_begin(mounted, p.TargetDirectory, &passing.other, &passing.other_made)
        if error == 0:
            p.TargetName.Buffer = passing.other.name
            p.TargetName.Length = passing.other.length
            FltSetCallbackDataDirty(data)
    elif error == 0 and (which == FileRenameInformation or which == FileRenameInformationEx):
        error = renames(data, mounted, file, passing)
        if error and passing != NULL:
            renamed(mounted, file, p.TargetDirectory, False, False, passing)
    if error:
        return refuse(data, mounted, passing, error)
    context[0] = passing
    return FLT_PREOP_SYNCHRONIZE


cdef int post_set_information(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef FILE_OBJECT *file = objects.FileObject
    cdef passing_t *passing = <passing_t *>context
    cdef SET_FILE_PARAMETERS *p = &data.Iopb.Parameters.SetFile
    cdef bint good = NT_SUCCESS(data.IoStatus.Status)
    if flags:
        pass                                         # nothing that is drained has been changed
    elif p.FileInformationClass == FileDispositionInformation:
        if passing.leaves and not good:
            directory_put_back(mounted, file.Directory, &passing.name, passing.source, &passing.other)
        elif good:
            long_name_end(mounted, file.Directory, &passing.name)
    elif p.FileInformationClass == FileLinkInformation:
        if not good and passing.other_made:
            long_name_end(mounted, p.TargetDirectory, &passing.other)
    elif p.FileInformationClass == FileRenameInformation or p.FileInformationClass == FileRenameInformationEx:
        renamed(mounted, file, p.TargetDirectory, p.Flags & RENAME_EXCHANGE != 0, good, passing)
    let_go(mounted, passing)
    return FLT_POSTOP_FINISHED_PROCESSING


# Controls, and what symbolic links lead to -----------------------------------------------------------------------------------------

cdef int pre_control(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef FILE_OBJECT *file = objects.FileObject
    cdef FLT_IO_PARAMETER_BLOCK *p = data.Iopb
    cdef uint32_t code = p.Parameters.Control.ControlCode
    cdef passing_t *passing = NULL
    cdef int error
    if code == <uint32_t>FSCTL_DUPLICATE_EXTENTS_TO_FILE:
        return complete(data, STATUS_NOT_SUPPORTED, 0)           # the stored bytes are another file's: the caller reads and writes
    if code == <uint32_t>FSCTL_SET_ZERO_DATA and is_file(file):
        return complete(data, status_of(mounted, zero(mounted, data, file)), 0)
    if code == <uint32_t>FSCTL_GET_REPARSE_POINT and file.Node != NULL and node_type(file.Node) == S_IFLNK:
        passing = <passing_t *>calloc(1, sizeof(passing_t))
        if passing != NULL:
            passing.buffer = malloc(TARGET_ROOM)
        if passing == NULL or passing.buffer == NULL:
            return refuse(data, mounted, passing, -ENOMEM)
        p.Parameters.Control.OutputBuffer = passing.buffer
        p.Parameters.Control.OutputBufferLength = TARGET_ROOM - 1
    elif code == <uint32_t>FSCTL_SET_REPARSE_POINT and has_name(data, file) and (
            file.Node == NULL or node_type(file.Node) == S_IFLNK):
        error = name_below(data, mounted, file, &passing)
        if error == 0:
            passing.buffer = malloc(TARGET_ROOM)
            error = -ENOMEM if passing.buffer == NULL else target_encrypt(
                mounted.keys, <const char *>p.Parameters.Control.InputBuffer, p.Parameters.Control.InputBufferLength,
                <char *>passing.buffer)
            if error >= 0:
                p.Parameters.Control.InputBuffer = passing.buffer
                p.Parameters.Control.InputBufferLength = <uint32_t>error
                error = long_name_begin(mounted, file.Directory, &passing.name, &passing.name_made)
        if error < 0:
            return refuse(data, mounted, passing, error)
    else:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    FltSetCallbackDataDirty(data)
    context[0] = passing
    return FLT_PREOP_SYNCHRONIZE


cdef int post_control(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef passing_t *passing = <passing_t *>context
    cdef bint good = NT_SUCCESS(data.IoStatus.Status)
    cdef char plain[4096]
    cdef int length
    if data.Iopb.Parameters.Control.ControlCode == <uint32_t>FSCTL_GET_REPARSE_POINT:
        if good and not flags:
            length = target_decrypt(mounted.keys, <const char *>passing.buffer, data.IoStatus.Information, plain)
            if length < 0:
                data.IoStatus.Status = status_of(mounted, length)
                data.IoStatus.Information = 0
            else:
                length = min(length, <int>data.Iopb.Parameters.Control.OutputBufferLength)
                memcpy(data.Iopb.Parameters.Control.OutputBuffer, plain, length)
                data.IoStatus.Information = <uint64_t>length
    elif not good and not flags and passing.name_made:
        long_name_end(mounted, objects.FileObject.Directory, &passing.name)
    let_go(mounted, passing)
    return FLT_POSTOP_FINISHED_PROCESSING


# Listings ------------------------------------------------------------------------------------------------------------------------

cdef int pre_list(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    return FLT_PREOP_SYNCHRONIZE if data.Iopb.MinorFunction == IRP_MN_QUERY_DIRECTORY else FLT_PREOP_SUCCESS_NO_CALLBACK


cdef int post_list(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef int64_t length
    if NT_SUCCESS(data.IoStatus.Status) and not flags and data.IoStatus.Information:
        length = show_entries(mounted, objects.FileObject.Node, <char *>data.Iopb.Parameters.Directory.Buffer,
                              <int64_t>data.IoStatus.Information, data.Iopb.Parameters.Directory.Length)
        if length < 0:
            data.IoStatus.Status = status_of(mounted, <int>length)
            length = 0
        data.IoStatus.Information = <uint64_t>length
    return FLT_POSTOP_FINISHED_PROCESSING


# Attributes with names ---------------------------------------------------------------------------------------------------------------

cdef int owner_of(mounted_t *mounted, FILE_OBJECT *file, uint8_t *owner) noexcept nogil:
    cdef use_t use
    cdef int error
    if node_type(file.Node) == S_IFDIR:
        return directory_iv(mounted, file.Node, owner)
    error = use_begin(&use, mounted, file, READING)
    if error == 0:
        memcpy(owner, file_id(use.stream.file), 16)
        use_end(&use)
    return error


cdef int pre_ea(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef FILE_OBJECT *file = objects.FileObject
    cdef FLT_IO_PARAMETER_BLOCK *p = data.Iopb
    cdef const char *name = p.Parameters.Ea.EaName
    cdef uint32_t length = p.Parameters.Ea.Length
    cdef bint sets = p.MajorFunction == IRP_MJ_SET_EA
    cdef passing_t *passing
    cdef int error
    if name == NULL or strncmp(name, b"user.", 5) != 0 or (sets and p.Parameters.Ea.Remove) or file.Node == NULL or (
            node_type(file.Node) != S_IFREG and node_type(file.Node) != S_IFDIR):
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    passing = <passing_t *>calloc(1, sizeof(passing_t))
    if passing == NULL:
        return complete(data, errno_to_nt(ENOMEM), 0)
    error = owner_of(mounted, file, passing.owner)
    if error == 0 and (sets or length):
        passing.buffer = malloc(length + VALUE_OVERHEAD)
        if passing.buffer == NULL:
            error = -ENOMEM
        elif sets:
            error = value_encrypt(mounted.keys, passing.owner, name, strlen(name), <const uint8_t *>p.Parameters.Ea.Buffer, length,
                                  <uint8_t *>passing.buffer)
        p.Parameters.Ea.Buffer = passing.buffer
        p.Parameters.Ea.MdlAddress = NULL
        p.Parameters.Ea.Length = length + VALUE_OVERHEAD
        FltSetCallbackDataDirty(data)
    if error < 0:
        return refuse(data, mounted, passing, error)
    context[0] = passing
    return FLT_PREOP_SYNCHRONIZE


cdef int post_ea(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(objects)
    cdef passing_t *passing = <passing_t *>context
    cdef const char *name = data.Iopb.Parameters.Ea.EaName
    cdef uint64_t length = data.IoStatus.Information
    cdef int error = 0
    if data.Iopb.MajorFunction == IRP_MJ_QUERY_EA and NT_SUCCESS(data.IoStatus.Status) and not flags:
        if length < VALUE_OVERHEAD:
            error = -EBADMSG
        elif passing.buffer != NULL:
            error = value_decrypt(mounted.keys, passing.owner, name, strlen(name), <const uint8_t *>passing.buffer, length,
                                  <uint8_t *>data.Iopb.Parameters.Ea.Buffer)
        data.IoStatus.Information = length - VALUE_OVERHEAD if error >= 0 else 0
        if error < 0:
            data.IoStatus.Status = status_of(mounted, error)
    let_go(mounted, passing)
    return FLT_POSTOP_FINISHED_PROCESSING


# Names for the filters above ---------------------------------------------------------------------------------------------------------

cdef bint is_name_of(mounted_t *mounted, const FILE_OBJECT *file, const stored_name_t *stored) noexcept nogil:
    cdef node_t *holder = name_holder(nodes_of(mounted), file.NameDirectory, stored.name, stored.length)
    if holder != NULL:
        node_put(nodes_of(mounted), holder)
    return holder is file.Node


cdef bint opened_by(mounted_t *mounted, const FILE_OBJECT *file, stored_name_t *stored) noexcept nogil:
    """Is the name that it goes by still one of its names? As it is stored. A program opened it by a plain one, the manager itself by a
    stored one."""
    cdef FILE_NAME name
    if file.Name == NULL or file.NameDirectory == NULL or file.NameLength > 255:
        return False
    memcpy(stored.name, file.Name, file.NameLength)
    stored.length = file.NameLength
    if is_name_of(mounted, file, stored):
        return True
    name.Buffer, name.Length = file.Name, file.NameLength
    return store_name(mounted, file.NameDirectory, &name, stored) == 0 and is_name_of(mounted, file, stored)


cdef NTSTATUS generate_name(FLT_INSTANCE *instance, FILE_OBJECT *file, FLT_CALLBACK_DATA *data, uint32_t options, bint *cache,
                            FLT_NAME_CONTROL *shown) noexcept nogil:
    """Of the names of this layer, which are the stored ones: providers below are not asked."""
    cdef mounted_t *mounted = <mounted_t *>instance.Context
    cdef inode_table_t *nodes = nodes_of(mounted)
    cdef node_t *directory = NULL
    cdef char path[LONGEST_NAME]
    cdef stored_name_t stored
    cdef int at = LONGEST_NAME - 1
    cdef NTSTATUS status
    path[at] = c'/'
    if file.Node is not nodes.root:
        if opened_by(mounted, file, &stored):
            directory = file.NameDirectory
            node_hold(nodes, directory)
        else:
            stored.length = name_of(nodes, file.Node, LAST_NAME, stored.name, &directory)
        if directory == NULL:
            return STATUS_OBJECT_NAME_NOT_FOUND
        at = show_path(mounted, directory, stored.name, stored.length, path, LONGEST_NAME)
        node_put(nodes, directory)
        if at < 0:
            return STATUS_NAME_TOO_LONG
    status = FltCheckAndGrowNameControl(shown, LONGEST_NAME - at)
    if status == STATUS_SUCCESS:
        memcpy(shown.Buffer, path + at, LONGEST_NAME - at)
        shown.Length = LONGEST_NAME - at
    return status


cdef name_provider_t names
names.GenerateFileName = generate_name
names.NormalizeNameComponentEx = NULL
names.NormalizeContextCleanup = NULL
names.python = NULL


def operations():
    cdef NativeOperations table = NativeOperations()
    table.name_provider = &names
    table.set(IRP_MJ_CREATE, pre_create, post_create, 0)
    for major in (IRP_MJ_QUERY_OPEN, IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_QUERY_INFORMATION):
        table.set(major, pre_query, post_query, 0)
    table.set(IRP_MJ_CLEANUP, pre_close, post_free, 0)
    table.set(IRP_MJ_CLOSE, pre_close, post_free, 0)
    table.set(IRP_MJ_READ, pre_read, NULL, 0)
    table.set(IRP_MJ_WRITE, pre_write, NULL, 0)
    table.set(IRP_MJ_FLUSH_BUFFERS, pre_flush, NULL, 0)
    table.set(IRP_MJ_SET_INFORMATION, pre_set_information, post_set_information, 0)
    table.set(IRP_MJ_FILE_SYSTEM_CONTROL, pre_control, post_control, 0)
    table.set(IRP_MJ_DIRECTORY_CONTROL, pre_list, post_list, 0)
    table.set(IRP_MJ_QUERY_EA, pre_ea, post_ea, 0)
    table.set(IRP_MJ_SET_EA, pre_ea, post_ea, 0)
    return table
