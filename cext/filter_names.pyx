"""Files and names for filters' own I/O (docs/semantics.md, B4): opening, closing, and what changes names.

These are the requests of requests.pyx, begun below the instance that starts them: what lower filters see of an open or a rename
is what they see of a program's. Names are walked component by component from the volume's root or a directory's node, by the
base's own rules: none leads outside, no link is followed.

Threads: the list of open files has a mutex, a leaf. A file's record belongs to whoever uses the file, who sees to it that it is
not closed meanwhile; once the instance has ended, to filter_io_close_all().
"""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from stackfs.cext.backing cimport backing_t
from stackfs.cext.callback_data cimport (
    FILE_APPEND_DATA, FILE_CREATE, FILE_DELETE_ON_CLOSE, FILE_DIRECTORY_FILE, FILE_NON_DIRECTORY_FILE,
    FILE_NO_INTERMEDIATE_BUFFERING, FILE_OPEN_IF, FILE_OVERWRITE, FILE_OVERWRITE_IF, FILE_READ_DATA, FILE_SUPERSEDE,
    FILE_WRITE_DATA, FILE_WRITE_THROUGH, FO_DIRECTORY, FO_SYNTHESISED, IRP_MJ_QUERY_INFORMATION, FileAllInformation,
    FLT_VOLUME, FileDispositionInformation, FileLinkInformation)
from stackfs.cext.generated_io cimport begin_io, enter, finish_io, leave, new_request, run
from stackfs.cext.handles cimport handle_t
from stackfs.cext.includes.pthread cimport pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
from stackfs.cext.inode_table cimport inode_table_t, name_of, node_forget, node_get, node_hold, node_id, node_put, node_type
from stackfs.cext.locks cimport locks_drop
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, STATUS_FILE_IS_A_DIRECTORY, STATUS_FLT_DELETING_OBJECT, STATUS_FLT_INTERNAL_ERROR,
    STATUS_FLT_INVALID_NAME_REQUEST, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_HANDLE, STATUS_INVALID_PARAMETER,
    STATUS_IO_REPARSE_TAG_NOT_HANDLED, STATUS_NAME_TOO_LONG, STATUS_NOT_A_DIRECTORY, STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_NAME_INVALID, STATUS_OBJECT_NAME_NOT_FOUND, STATUS_OBJECT_PATH_NOT_FOUND, STATUS_SUCCESS,
    STATUS_VOLUME_DISMOUNTED)
from stackfs.cext.requests cimport put_handle, request_free, vfs_request_t
from stackfs.cext.threads cimport load_bits


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <sys/stat.h>
    """
    int O_ACCMODE, O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_DIRECTORY, O_DIRECT, O_DSYNC, O_TMPFILE
    unsigned S_IFLNK, S_IFDIR

cdef enum:
    LOOKUP = 1
    READLINK = 5
    SYMLINK = 6
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    LINK = 13
    OPEN = 14
    RELEASE = 18
    OPENDIR = 27
    RELEASEDIR = 29
    CREATE = 35
    RENAME2 = 45
    TMPFILE = 51

    OPEN_TRIES = 8                       # a name that comes and goes meanwhile is looked at again


cdef inline backing_t *backing_of(const FLT_INSTANCE *instance) noexcept nogil:
    return <backing_t *>instance.Related.Volume.backing


# --- names ----------------------------------------------------------------------------------------------------------

cdef NTSTATUS look_up(FLT_INSTANCE *instance, const REQUESTOR *who, node_t *directory, const char *name, uint16_t length,
                      node_t **found, statx_t *info) noexcept nogil:
    """What stands under a name: found holds a reference and one lookup (let_go)."""
    cdef NTSTATUS status
    cdef vfs_request_t *request = new_request(instance, LOOKUP, who)
    found[0] = NULL
    if request is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    request.nodeid = node_id(directory)
    request.name = name
    request.name_length = length
    status = run(request)
    if NT_SUCCESS(status):
        found[0] = node_get(backing_of(instance).nodes, request.out_nodeid)
        if found[0] is NULL:
            status = STATUS_FLT_INTERNAL_ERROR
        elif info is not NULL:
            info[0] = request.info
    request_free(request)
    return status


cdef void let_go(FLT_INSTANCE *instance, node_t *node) noexcept nogil:
    cdef inode_table_t *nodes = backing_of(instance).nodes
    node_forget(nodes, node_id(node), 1)
    node_put(nodes, node)


cdef NTSTATUS check_component(const char *name, size_t length) noexcept nogil:
    cdef size_t i
    if length > 255:
        return STATUS_NAME_TOO_LONG
    if name[0] == c'.' and (length == 1 or (length == 2 and name[1] == c'.')):
        return STATUS_OBJECT_NAME_INVALID
    for i in range(length):
        if name[i] == 0:
            return STATUS_OBJECT_NAME_INVALID
    return STATUS_SUCCESS


cdef NTSTATUS walk(FLT_INSTANCE *instance, const OBJECT_ATTRIBUTES *what, bint all_of_it, node_t **directory, const char **last,
                   uint16_t *last_length) noexcept nogil:
    """The directory that a path ends in (a reference; the caller puts it) and its last component, or length 0: the path, or with
    all_of_it all of it, has been walked, and `directory` is what it leads to."""
    cdef inode_table_t *nodes = backing_of(instance).nodes
    cdef const char *path = what.ObjectName
    cdef size_t length = what.ObjectNameLength
    cdef size_t at = 0, end, rest
    cdef node_t *current = nodes.root if what.RootDirectory is NULL else what.RootDirectory.Node
    cdef node_t *found
    cdef NTSTATUS status
    last_length[0] = 0
    if current is NULL:
        return STATUS_INVALID_HANDLE
    node_hold(nodes, current)
    while True:
        while at < length and path[at] == c'/':
            at += 1
        if at == length:
            directory[0] = current
            return STATUS_SUCCESS
        end = at
        while end < length and path[end] != c'/':
            end += 1
        rest = end
        while rest < length and path[rest] == c'/':
            rest += 1
        status = check_component(path + at, end - at)
        if status == STATUS_SUCCESS and node_type(current) != S_IFDIR:
            status = STATUS_IO_REPARSE_TAG_NOT_HANDLED if node_type(current) == S_IFLNK else STATUS_NOT_A_DIRECTORY
        if status == STATUS_SUCCESS:
            if rest == length and not all_of_it:
                last[0] = path + at
                last_length[0] = <uint16_t>(end - at)
                directory[0] = current
                return STATUS_SUCCESS
            status = look_up(instance, what.Requestor, current, path + at, <uint16_t>(end - at), &found, NULL)
            if status == STATUS_OBJECT_NAME_NOT_FOUND and rest < length:
                status = STATUS_OBJECT_PATH_NOT_FOUND
        if status != STATUS_SUCCESS:
            node_put(nodes, current)
            return status
        node_forget(nodes, node_id(found), 1)        # the reference is enough to walk on
        node_put(nodes, current)
        current = found
        at = end


cdef void operation_directory(const FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, FILE_OBJECT *Directory) noexcept nogil:
    cdef inode_table_t *nodes = <inode_table_t *>FltObjects.Volume.nodes
    cdef const FILE_OBJECT *file = FltObjects.FileObject
    cdef char name[256]
    memset(Directory, 0, cython.sizeof(FILE_OBJECT))
    Directory.fd = -1
    Directory.Flags = FO_SYNTHESISED | FO_DIRECTORY
    if file is NULL:
        return
    if file.Directory is not NULL and Data.Iopb.FileName.Length:
        Directory.Node = file.Directory
    elif file.NameDirectory is not NULL:
        Directory.Node = file.NameDirectory
    if Directory.Node is not NULL:
        node_hold(nodes, Directory.Node)
    elif file.Node is not NULL:
        name_of(nodes, file.Node, 0, name, &Directory.Node)


cdef void directory_release(const FLT_RELATED_OBJECTS *FltObjects, FILE_OBJECT *Directory) noexcept nogil:
    if Directory.Node is not NULL:
        node_put(<inode_table_t *>FltObjects.Volume.nodes, Directory.Node)
        Directory.Node = NULL


# --- open and close -------------------------------------------------------------------------------------------------

cdef pthread_mutex_t files_mutex
cdef filter_file_t *first_file = NULL
pthread_mutex_init(&files_mutex, NULL)


cdef void list_file(filter_file_t *record) noexcept nogil:
    global first_file
    record.instance.Related.Volume.close_files = close_files_of
    pthread_mutex_lock(&files_mutex)
    record.next = first_file
    if first_file is not NULL:
        first_file.previous = record
    first_file = record
    pthread_mutex_unlock(&files_mutex)


cdef void unlist_file(filter_file_t *record) noexcept nogil:
    global first_file
    pthread_mutex_lock(&files_mutex)
    if record.previous is not NULL:
        record.previous.next = record.next
    else:
        first_file = record.next
    if record.next is not NULL:
        record.next.previous = record.previous
    pthread_mutex_unlock(&files_mutex)


cdef NTSTATUS open_by(FLT_INSTANCE *instance, const REQUESTOR *who, uint32_t opcode, node_t *node, const char *name, uint16_t length,
                      uint32_t flags, uint32_t mode, filter_file_t *record) noexcept nogil:
    """OPEN, OPENDIR of a node; CREATE of a name, TMPFILE, in a directory: record.file."""
    cdef NTSTATUS status
    cdef vfs_request_t *request = new_request(instance, opcode, who)
    if request is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    request.nodeid = node_id(node)
    request.name = name
    request.name_length = length
    request.arguments.flags = flags
    request.arguments.mode = mode & 0o7777
    status = run(request)
    if NT_SUCCESS(status):
        record.file = &request.handle.file
        record.file.FilterFile = record
        record.looked_up = opcode == CREATE or opcode == TMPFILE
        request.handle = NULL
    request_free(request)
    return status


cdef NTSTATUS make_directory(FLT_INSTANCE *instance, const REQUESTOR *who, node_t *directory, const char *name, uint16_t length,
                             uint32_t mode) noexcept nogil:
    cdef NTSTATUS status
    cdef vfs_request_t *request = new_request(instance, MKDIR, who)
    if request is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    request.nodeid = node_id(directory)
    request.name = name
    request.name_length = length
    request.arguments.mode = mode & 0o7777
    status = run(request)
    if NT_SUCCESS(status):
        node_forget(backing_of(instance).nodes, request.out_nodeid, 1)
    request_free(request)
    return status


cdef NTSTATUS open_node(FLT_INSTANCE *instance, const REQUESTOR *who, node_t *node, uint32_t flags, filter_file_t *record) noexcept nogil:
    """What is there, whatever it is."""
    cdef uint16_t type = node_type(node)
    flags &= ~<uint32_t>(O_CREAT | O_EXCL)
    if type == S_IFLNK:
        return STATUS_IO_REPARSE_TAG_NOT_HANDLED
    if type == S_IFDIR:
        if flags & <uint32_t>O_ACCMODE != <uint32_t>O_RDONLY or flags & <uint32_t>O_TRUNC:
            return STATUS_FILE_IS_A_DIRECTORY
        return open_by(instance, who, OPENDIR, node, NULL, 0, flags, 0, record)
    if flags & <uint32_t>O_DIRECTORY:
        return STATUS_NOT_A_DIRECTORY
    return open_by(instance, who, OPEN, node, NULL, 0, flags, 0, record)


cdef NTSTATUS open_name(FLT_INSTANCE *instance, const REQUESTOR *who, node_t *directory, const char *name, uint16_t length,
                        uint32_t flags, uint32_t mode, filter_file_t *record, uint64_t *information) noexcept nogil:
    cdef NTSTATUS status = STATUS_SUCCESS
    cdef node_t *node
    cdef bint made = False
    cdef int _tries
    for _tries in range(OPEN_TRIES):
        if made or not (flags & <uint32_t>O_CREAT and flags & <uint32_t>O_EXCL):
            status = look_up(instance, who, directory, name, length, &node, NULL)
            if NT_SUCCESS(status):
                status = open_node(instance, who, node, flags, record)
                if NT_SUCCESS(status):
                    record.looked_up = 1     # the lookup stays with the file
                    node_put(backing_of(instance).nodes, node)
                    information[0] = FILE_CREATED if made else (FILE_OVERWRITTEN if flags & <uint32_t>O_TRUNC else FILE_OPENED)
                    return status
                let_go(instance, node)
                if status == STATUS_OBJECT_NAME_NOT_FOUND or status == STATUS_VOLUME_DISMOUNTED:
                    continue                 # ENOENT, ESTALE: it is gone by now
                return status
            if status != STATUS_OBJECT_NAME_NOT_FOUND or not flags & <uint32_t>O_CREAT:
                return status
        if flags & <uint32_t>O_DIRECTORY:
            status = make_directory(instance, who, directory, name, length, mode)
            if NT_SUCCESS(status):
                made = True
                continue
        else:
            status = open_by(instance, who, CREATE, directory, name, length, flags, mode, record)
            if NT_SUCCESS(status):
                information[0] = FILE_CREATED
                return status
        if flags & <uint32_t>O_EXCL or not (status == STATUS_OBJECT_NAME_COLLISION or status == STATUS_VOLUME_DISMOUNTED):
            return status
        # EEXIST, ESTALE: somebody was faster, and it can be opened.
    return STATUS_OBJECT_NAME_NOT_FOUND if NT_SUCCESS(status) else status


cdef NTSTATUS open_file(FLT_INSTANCE *instance, const OBJECT_ATTRIBUTES *what, uint32_t flags, uint32_t mode,
                        FILE_OBJECT **opened, uint64_t *information) noexcept nogil:
    cdef inode_table_t *nodes = backing_of(instance).nodes
    cdef bint unnamed = flags & <uint32_t>O_TMPFILE == <uint32_t>O_TMPFILE
    cdef node_t *directory = NULL
    cdef const char *name = NULL
    cdef uint16_t length = 0
    cdef filter_file_t *record
    cdef NTSTATUS status
    opened[0] = NULL
    information[0] = FILE_OPENED
    status = walk(instance, what, unnamed, &directory, &name, &length)
    if status != STATUS_SUCCESS:
        return status
    record = <filter_file_t *>calloc(1, cython.sizeof(filter_file_t))
    if record is NULL:
        node_put(nodes, directory)
        return STATUS_INSUFFICIENT_RESOURCES
    record.instance = instance
    if unnamed:
        status = open_by(instance, what.Requestor, TMPFILE, directory, NULL, 0, flags, mode, record)
        information[0] = FILE_CREATED
    elif length:
        status = open_name(instance, what.Requestor, directory, name, length, flags, mode, record, information)
    elif flags & <uint32_t>O_CREAT and flags & <uint32_t>O_EXCL:
        status = STATUS_OBJECT_NAME_COLLISION
    else:
        status = open_node(instance, what.Requestor, directory, flags, record)
        if flags & <uint32_t>O_TRUNC:
            information[0] = FILE_OVERWRITTEN
    if not NT_SUCCESS(status):
        node_put(nodes, directory)
        free(record)
        return status
    if length:
        memcpy(record.name, name, length)
        record.name_length = <uint8_t>length
        record.parent = directory            # takes the reference over
    else:
        node_put(nodes, directory)
    list_file(record)
    opened[0] = record.file
    return STATUS_SUCCESS


cdef NTSTATUS FltOpenFile(FLT_INSTANCE *Instance, FILE_OBJECT **FileObject, const OBJECT_ATTRIBUTES *ObjectAttributes,
                          uint32_t OpenFlags, uint32_t Mode, IO_STATUS_BLOCK *IoStatusBlock) noexcept nogil:
    cdef uint64_t information = 0
    cdef NTSTATUS status = STATUS_FLT_DELETING_OBJECT
    FileObject[0] = NULL
    if enter(Instance):
        status = open_file(Instance, ObjectAttributes, OpenFlags, Mode, FileObject, &information)
        leave(Instance)
    if IoStatusBlock is not NULL:
        IoStatusBlock.Status = status
        IoStatusBlock.Information = information if NT_SUCCESS(status) else 0
    return status


cdef NTSTATUS FltCreateFileEx(FLT_INSTANCE *Instance, FILE_OBJECT **FileObject, uint32_t DesiredAccess,
                              const OBJECT_ATTRIBUTES *ObjectAttributes, IO_STATUS_BLOCK *IoStatusBlock, uint32_t Mode,
                              uint32_t CreateDisposition, uint32_t CreateOptions) noexcept nogil:
    cdef bint reads = DesiredAccess & FILE_READ_DATA != 0
    cdef bint writes = DesiredAccess & (FILE_WRITE_DATA | FILE_APPEND_DATA) != 0
    cdef uint32_t flags = <uint32_t>(O_RDWR if reads and writes else (O_WRONLY if writes else O_RDONLY))
    cdef IO_STATUS_BLOCK result
    FileObject[0] = NULL
    result.Status = STATUS_INVALID_PARAMETER
    result.Information = 0
    if CreateDisposition <= FILE_OVERWRITE_IF and not (CreateOptions & FILE_DIRECTORY_FILE and CreateOptions & FILE_NON_DIRECTORY_FILE):
        if CreateDisposition == FILE_CREATE:
            flags |= <uint32_t>(O_CREAT | O_EXCL)
        elif CreateDisposition == FILE_OPEN_IF:
            flags |= <uint32_t>O_CREAT
        elif CreateDisposition == FILE_OVERWRITE_IF or CreateDisposition == FILE_SUPERSEDE:
            flags |= <uint32_t>(O_CREAT | O_TRUNC)
        elif CreateDisposition == FILE_OVERWRITE:
            flags |= <uint32_t>O_TRUNC
        if CreateOptions & FILE_DIRECTORY_FILE:
            flags = (flags & ~<uint32_t>O_ACCMODE) | <uint32_t>O_DIRECTORY       # a directory is written by its names
        if CreateOptions & FILE_WRITE_THROUGH:
            flags |= <uint32_t>O_DSYNC
        if CreateOptions & FILE_NO_INTERMEDIATE_BUFFERING:
            flags |= <uint32_t>O_DIRECT
        FltOpenFile(Instance, FileObject, ObjectAttributes, flags, Mode, &result)
    if NT_SUCCESS(result.Status) and CreateOptions & FILE_NON_DIRECTORY_FILE and node_type(FileObject[0].Node) == S_IFDIR:
        FltClose(Instance, FileObject[0])
        FileObject[0] = NULL
        result.Status = STATUS_FILE_IS_A_DIRECTORY
        result.Information = 0
    if NT_SUCCESS(result.Status):
        (<filter_file_t *>FileObject[0].FilterFile).delete_on_close = CreateOptions & FILE_DELETE_ON_CLOSE != 0
        if CreateDisposition == FILE_SUPERSEDE and result.Information == FILE_OVERWRITTEN:
            result.Information = FILE_SUPERSEDED
    if IoStatusBlock is not NULL:
        IoStatusBlock[0] = result
    return result.Status


cdef void close_file(filter_file_t *record) noexcept nogil:
    """CLEANUP and CLOSE below, then everything it held."""
    cdef FLT_INSTANCE *instance = record.instance
    cdef backing_t *backing = backing_of(instance)
    cdef FILE_OBJECT *file = record.file
    cdef node_t *node = file.Node
    cdef vfs_request_t *request = new_request(instance, RELEASEDIR if load_bits(&file.Flags) & FO_DIRECTORY else RELEASE, NULL)
    unlist_file(record)
    node_hold(backing.nodes, node)
    if request is not NULL:
        request.target = file
        run(request)
        request_free(request)
    if record.delete_on_close and record.parent is not NULL:
        delete_name(instance, record)
    locks_drop(backing.locks, node, file.fh, False)
    file.FilterFile = NULL
    put_handle(backing, <handle_t *>file)
    if record.looked_up:
        node_forget(backing.nodes, node_id(node), 1)
    node_put(backing.nodes, node)
    if record.parent is not NULL:
        node_put(backing.nodes, record.parent)
    free(record)


cdef NTSTATUS FltClose(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject) noexcept nogil:
    cdef NTSTATUS status = STATUS_INVALID_HANDLE
    if not enter(Instance):
        return STATUS_FLT_DELETING_OBJECT
    if FileObject.FilterFile is not NULL and (<filter_file_t *>FileObject.FilterFile).instance is Instance:
        close_file(<filter_file_t *>FileObject.FilterFile)
        status = STATUS_SUCCESS
    leave(Instance)
    return status


cdef uint32_t filter_io_close_all(FLT_INSTANCE *instance) noexcept nogil:
    """After IoEnded, with IoPending 0: what the filter left open. How many files."""
    cdef uint32_t count = 0
    cdef filter_file_t *record
    while True:
        pthread_mutex_lock(&files_mutex)
        record = first_file
        while record is not NULL and record.instance is not instance:
            record = record.next
        pthread_mutex_unlock(&files_mutex)
        if record is NULL:
            return count
        close_file(record)
        count += 1


cdef void close_files_of(FLT_VOLUME *volume) noexcept nogil:
    """The volume ends, without its instances having been torn down: what any of them left open."""
    cdef filter_file_t *record
    while True:
        pthread_mutex_lock(&files_mutex)
        record = first_file
        while record is not NULL and record.instance.Related.Volume is not volume:
            record = record.next
        pthread_mutex_unlock(&files_mutex)
        if record is NULL:
            return
        close_file(record)


# --- changing names ----------------------------------------------------------------------------------------------------

cdef NTSTATUS by_names(FLT_INSTANCE *instance, const REQUESTOR *who, uint32_t opcode, node_t *directory, const char *name, uint16_t length,
                       node_t *to_directory, const char *to, uint16_t to_length, uint32_t flags) noexcept nogil:
    """UNLINK, RMDIR, SYMLINK (`to`: its target), RENAME2."""
    cdef NTSTATUS status
    cdef vfs_request_t *request = new_request(instance, opcode, who)
    if request is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    request.nodeid = node_id(directory)
    request.name = name
    request.name_length = length
    request.name2 = to
    request.name2_length = to_length
    request.arguments.flags = flags
    if to_directory is not NULL:
        request.arguments.nodeid2 = node_id(to_directory)
    status = run(request)
    if NT_SUCCESS(status) and opcode == SYMLINK:
        node_forget(backing_of(instance).nodes, request.out_nodeid, 1)
    request_free(request)
    return status


cdef NTSTATUS link_node(FLT_INSTANCE *instance, const REQUESTOR *who, node_t *node, node_t *directory, const char *name,
                        uint16_t length) noexcept nogil:
    cdef NTSTATUS status
    cdef vfs_request_t *request = new_request(instance, LINK, who)
    if request is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    request.nodeid = node_id(directory)
    request.arguments.nodeid2 = node_id(node)
    request.name2 = name
    request.name2_length = length
    status = run(request)
    if NT_SUCCESS(status):
        node_forget(backing_of(instance).nodes, request.out_nodeid, 1)
    request_free(request)
    return status


cdef NTSTATUS still_named(FLT_INSTANCE *instance, const filter_file_t *record) noexcept nogil:
    """Does the name that the file was opened by still lead to it?"""
    cdef node_t *found
    cdef NTSTATUS status = look_up(instance, NULL, record.parent, record.name, record.name_length, &found, NULL)
    if NT_SUCCESS(status):
        if found is not record.file.Node:
            status = STATUS_OBJECT_NAME_NOT_FOUND
        let_go(instance, found)
    return status


cdef NTSTATUS delete_name(FLT_INSTANCE *instance, const filter_file_t *record) noexcept nogil:
    cdef NTSTATUS status = still_named(instance, record)
    if NT_SUCCESS(status):
        status = by_names(instance, NULL, RMDIR if load_bits(&record.file.Flags) & FO_DIRECTORY else UNLINK, record.parent, record.name,
                          record.name_length, NULL, NULL, 0, 0)
    return status


cdef NTSTATUS change_own_name(FLT_INSTANCE *instance, FILE_OBJECT *file, const SET_FILE_PARAMETERS *p) noexcept nogil:
    cdef filter_file_t *record = <filter_file_t *>file.FilterFile
    cdef node_t *directory
    cdef NTSTATUS status
    if record is NULL:
        return STATUS_FLT_INVALID_NAME_REQUEST
    directory = p.TargetDirectory if p.TargetDirectory is not NULL else record.parent
    if p.FileInformationClass != FileDispositionInformation:
        if directory is NULL or p.TargetName.Length == 0:
            return STATUS_INVALID_PARAMETER
        status = check_component(p.TargetName.Buffer, p.TargetName.Length)
        if status != STATUS_SUCCESS:
            return status
    if p.FileInformationClass == FileLinkInformation:
        return link_node(instance, NULL, file.Node, directory, p.TargetName.Buffer, p.TargetName.Length)
    if record.parent is NULL:
        return STATUS_FLT_INVALID_NAME_REQUEST           # it was not opened by a name
    if p.FileInformationClass == FileDispositionInformation:
        return delete_name(instance, record)
    status = still_named(instance, record)
    if NT_SUCCESS(status):
        status = by_names(instance, NULL, RENAME2, record.parent, record.name, record.name_length, directory, p.TargetName.Buffer,
                          p.TargetName.Length, p.Flags)
    if NT_SUCCESS(status):
        node_hold(backing_of(instance).nodes, directory)
        node_put(backing_of(instance).nodes, record.parent)
        record.parent = directory
        memcpy(record.name, p.TargetName.Buffer, p.TargetName.Length)
        record.name_length = <uint8_t>p.TargetName.Length
    return status


cdef NTSTATUS rename_path(FLT_INSTANCE *instance, const OBJECT_ATTRIBUTES *what, const OBJECT_ATTRIBUTES *to,
                          uint32_t flags) noexcept nogil:
    cdef inode_table_t *nodes = backing_of(instance).nodes
    cdef node_t *directory
    cdef node_t *to_directory
    cdef const char *name = NULL
    cdef const char *to_name = NULL
    cdef uint16_t length, to_length
    cdef NTSTATUS status = walk(instance, what, False, &directory, &name, &length)
    if status != STATUS_SUCCESS:
        return status
    status = walk(instance, to, False, &to_directory, &to_name, &to_length)
    if status == STATUS_SUCCESS:
        status = STATUS_INVALID_PARAMETER
        if length and to_length:
            status = by_names(instance, what.Requestor, RENAME2, directory, name, length, to_directory, to_name, to_length, flags)
        node_put(nodes, to_directory)
    node_put(nodes, directory)
    return status


cdef NTSTATUS filter_rename(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, const OBJECT_ATTRIBUTES *To,
                            uint32_t Flags) noexcept nogil:
    cdef NTSTATUS status = STATUS_FLT_DELETING_OBJECT
    if enter(Instance):
        status = rename_path(Instance, What, To, Flags)
        leave(Instance)
    return status


cdef NTSTATUS filter_link(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, const OBJECT_ATTRIBUTES *To) noexcept nogil:
    cdef node_t *node
    cdef node_t *directory
    cdef const char *name = NULL
    cdef uint16_t length
    cdef NTSTATUS status
    if not enter(Instance):
        return STATUS_FLT_DELETING_OBJECT
    status = walk(Instance, What, True, &node, &name, &length)
    if status == STATUS_SUCCESS:
        status = walk(Instance, To, False, &directory, &name, &length)
        if status == STATUS_SUCCESS:
            status = link_node(Instance, What.Requestor, node, directory, name, length) if length else STATUS_OBJECT_NAME_COLLISION
            node_put(backing_of(Instance).nodes, directory)
        node_put(backing_of(Instance).nodes, node)
    leave(Instance)
    return status


cdef NTSTATUS by_one_name(FLT_INSTANCE *instance, const OBJECT_ATTRIBUTES *what, uint32_t opcode, const char *target,
                          uint32_t target_length) noexcept nogil:
    cdef node_t *directory
    cdef const char *name = NULL
    cdef uint16_t length
    cdef NTSTATUS status
    if not enter(instance):
        return STATUS_FLT_DELETING_OBJECT
    status = walk(instance, what, False, &directory, &name, &length)
    if status == STATUS_SUCCESS:
        status = STATUS_INVALID_PARAMETER
        if length and target_length <= 4096:
            status = by_names(instance, what.Requestor, opcode, directory, name, length, NULL, target, <uint16_t>target_length, 0)
        node_put(backing_of(instance).nodes, directory)
    leave(instance)
    return status


cdef NTSTATUS filter_delete(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, bint Directory) noexcept nogil:
    return by_one_name(Instance, What, RMDIR if Directory else UNLINK, NULL, 0)


cdef NTSTATUS filter_symlink(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, const char *Target, uint32_t Length) noexcept nogil:
    return by_one_name(Instance, What, SYMLINK, Target, Length)


cdef NTSTATUS filter_query(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, statx_t *Info) noexcept nogil:
    cdef node_t *directory
    cdef node_t *found
    cdef const char *name = NULL
    cdef uint16_t length
    cdef FILE_OBJECT itself
    cdef vfs_request_t *request = NULL
    cdef NTSTATUS status
    if not enter(Instance):
        return STATUS_FLT_DELETING_OBJECT
    status = walk(Instance, What, False, &directory, &name, &length)
    if status == STATUS_SUCCESS:
        if length:
            status = look_up(Instance, What.Requestor, directory, name, length, &found, Info)
            if NT_SUCCESS(status):
                let_go(Instance, found)
        else:
            memset(&itself, 0, sizeof(itself))
            itself.fd = -1
            itself.Node = directory
            itself.Flags = FO_SYNTHESISED
            status = begin_io(Instance, &itself, IRP_MJ_QUERY_INFORMATION, &request)
            if status == STATUS_SUCCESS:
                request.operation.current.Parameters.QueryFile.FileInformationClass = FileAllInformation
                request.operation.current.Parameters.QueryFile.Length = sizeof(statx_t)
                request.operation.current.Parameters.QueryFile.Info = Info
                status = finish_io(request, NULL)
        node_put(backing_of(Instance).nodes, directory)
    leave(Instance)
    return status


cdef NTSTATUS filter_read_link(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, char *Buffer, uint32_t Length,
                               uint32_t *LengthReturned) noexcept nogil:
    cdef node_t *node
    cdef const char *name = NULL
    cdef uint16_t length
    cdef vfs_request_t *request
    cdef NTSTATUS status
    LengthReturned[0] = 0
    if not enter(Instance):
        return STATUS_FLT_DELETING_OBJECT
    status = walk(Instance, What, True, &node, &name, &length)
    if status == STATUS_SUCCESS:
        request = new_request(Instance, READLINK, What.Requestor)
        status = STATUS_INSUFFICIENT_RESOURCES
        if request is not NULL:
            request.nodeid = node_id(node)
            request.buffer = Buffer
            request.buffer_length = Length
            request.operation.buffer_read_only = 0
            status = run(request)
            if NT_SUCCESS(status):
                LengthReturned[0] = <uint32_t>request.length
            request_free(request)
        node_put(backing_of(Instance).nodes, node)
    leave(Instance)
    return status
