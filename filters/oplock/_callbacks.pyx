"""The filter's callbacks (semantics A9.8): what is checked, what waits, and the FSCTLs that programs send as ioctl(2).

While nobody holds an oplock, READ and the lookups do not come here at all, and the others look at one number. What has to wait is
pended by the package, and goes on in the thread of whoever acknowledges. Every callback runs on any thread, without the GIL.
"""

from libc.errno cimport EACCES, EAGAIN, EBADF, EEXIST, EISDIR, ENOMEM, EROFS
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset, strlen

from stackfs.cext.callback_data cimport (
    DELETE, FILE_APPEND_DATA, FILE_CREATE, FILE_EXECUTE, FILE_OBJECT, FILE_OPEN, FILE_OPEN_REQUIRING_OPLOCK,
    FILE_OVERWRITE, FILE_OVERWRITE_IF, FILE_READ_DATA, FILE_RESERVE_OPFILTER, FILE_SUPERSEDE, FILE_WRITE_DATA,
    FLTFL_CALLBACK_DATA_IRP_OPERATION, FLT_CALLBACK_DATA, FLT_IO_PARAMETER_BLOCK, FLT_POSTOP_FINISHED_PROCESSING,
    FLT_PREOP_COMPLETE, FLT_PREOP_PENDING, FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_PREOP_SYNCHRONIZE,
    FLT_RELATED_OBJECTS, FO_DIRECTORY, FO_SYNTHESISED,
    FSCTL_STACKFS_POLL, FltSetCallbackDataDirty, IRP_MJ_CLEANUP, IRP_MJ_CREATE, IRP_MJ_FILE_SYSTEM_CONTROL,
    IRP_MJ_FLUSH_BUFFERS, IRP_MJ_LOCK_CONTROL, IRP_MJ_QUERY_OPEN, IRP_MJ_READ, IRP_MJ_SET_INFORMATION, IRP_MJ_SET_SECURITY,
    IRP_MJ_WRITE, IRP_MN_LOCK, REQUESTOR, FileDispositionInformation, FileLinkInformation, FileRenameInformation,
    FileRenameInformationEx, node_t, statx_t)
from stackfs.cext.contexts cimport FltReferenceContext
from stackfs.cext.filter_io cimport FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, FltWriteFile
from stackfs.cext.filter_names cimport FILE_CREATED, FILE_OPENED, FILE_OVERWRITTEN, FltClose, FltOpenFile, OBJECT_ATTRIBUTES, filter_query
from stackfs.cext.impersonation cimport impersonate, revert_to_self
from stackfs.cext.includes.fuse_wire cimport (
    FUSE_CREATE, FUSE_IOCTL, FUSE_LOOKUP, FUSE_MKDIR, FUSE_MKNOD, FUSE_POLL, FUSE_SYMLINK)
from stackfs.cext.includes.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from stackfs.cext.inode_table cimport (
    identify, identity_t, inode_table_t, make_id, node_below, node_close, node_get, node_hold, node_open, node_put,
    node_type)
from stackfs.cext.notices cimport volume_forget_attributes, volume_forget_data
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, NTSTATUS, STATUS_ACCESS_DENIED, STATUS_BUFFER_TOO_SMALL, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_PARAMETER,
    STATUS_INVALID_OPLOCK_PROTOCOL, STATUS_OBJECT_NAME_COLLISION, STATUS_OBJECT_NAME_NOT_FOUND, STATUS_OPLOCK_BREAK_IN_PROGRESS,
    STATUS_OPLOCK_NOT_GRANTED, STATUS_SHARING_VIOLATION, STATUS_SUCCESS, errno_to_nt)
from stackfs.cext.oplock cimport (
    OPLOCK_OPEN_BREAK_H, OPLOCK_PARENT, FltCheckOplockEx, FltCurrentBatchOplock,
    FltCurrentOplockH, FltOplockBreakH, oplock_break_t, oplock_check, oplock_check_open, oplock_open_break,
    oplock_operation_breaks, oplock_reserve, oplock_state)
from stackfs.cext.pending cimport FltCompletePendedPreOperation
from stackfs.cext.process cimport requestor_pid
from stackfs.cext.requests cimport POLL_ALWAYS_READY
from stackfs.cext.stack cimport CALLBACK_SLEEPS, NativeOperations
from stackfs.cext.threads cimport add_int, load_bits, load_int
from stackfs.filters.oplock._oplocks cimport *

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <sys/random.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include <linux/fs.h>
    #ifndef AT_EMPTY_PATH
    #define AT_EMPTY_PATH 0x1000
    #endif
    /* With the thread's credentials of the moment. 0, or an errno. */
    static inline int may_access(int fd, int mode) {
        return syscall(SYS_faccessat2, fd, "", mode, AT_EMPTY_PATH | AT_EACCESS) == 0 ? 0 : errno;
    }
    static inline int random_bytes(void *to, size_t size) { return getrandom(to, size, 0) == (ssize_t)size; }
    """
    int O_ACCMODE, O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC
    int R_OK, W_OK, X_OK
    unsigned S_IFDIR, S_IFREG
    uint32_t POLLPRI
    unsigned RENAME_EXCHANGE
    int may_access(int fd, int mode) nogil
    bint random_bytes(void *to, size_t size) nogil
    uint32_t geteuid() nogil

cdef extern from *:
    """
    static const char ONCE[] = ".stackfs-open-";         /* a one-time name: this, and 32 hexadecimal digits */
    static const char DIGITS[] = "0123456789abcdef";
    """
    const char *ONCE
    const char *DIGITS

cdef enum:
    ONCE_PREFIX = 14
    ONCE_DIGITS = 32
    TRIES = 8                            # a name that comes and goes meanwhile is looked at again

cdef enum:                               # change_name(): what has been waited for
    NOTHING_YET
    DELETE_OPENED
    DELETE_SHARED
    NAME_CHECKED
    BELOW_TOLD
    TARGET_CHECKED


# ---- pieces ----------------------------------------------------------------------------------------------------------------

cdef inline mounted_t *mounted_of(const FLT_CALLBACK_DATA *data) noexcept nogil:
    return <mounted_t *>data.Iopb.TargetInstance.Context


cdef inline inode_table_t *nodes_of(const mounted_t *mounted) noexcept nogil:
    return <inode_table_t *>mounted.instance.Related.Volume.nodes


cdef inline int complete(FLT_CALLBACK_DATA *data, NTSTATUS status, uint64_t information) noexcept nogil:
    data.IoStatus.Status = status
    data.IoStatus.Information = information
    return FLT_PREOP_COMPLETE


cdef inline bint by_program(const FILE_OBJECT *file) noexcept nogil:
    """An open file, and not what a request by path is made of."""
    return not load_bits(&file.Flags) & FO_SYNTHESISED


cdef uint32_t access_of(uint32_t flags) noexcept nogil:
    """What an open(2) counts for."""
    cdef uint32_t mode = flags & <uint32_t>O_ACCMODE
    return (0 if mode == <uint32_t>O_WRONLY else FILE_READ_DATA) | (0 if mode == <uint32_t>O_RDONLY else FILE_WRITE_DATA)


# ---- what is only checked ----------------------------------------------------------------------------------------------------

cdef void go_on(FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    FltCompletePendedPreOperation(data, FLT_PREOP_SUCCESS_NO_CALLBACK if NT_SUCCESS(data.IoStatus.Status) else FLT_PREOP_COMPLETE, NULL)


cdef int check(FLT_CALLBACK_DATA *data, node_t *node) noexcept nogil:
    cdef stream_t *stream = stream_get(mounted_of(data), node, False)
    cdef int result
    if stream == NULL:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    result = FltCheckOplockEx(&stream.oplock, data, 0, NULL, go_on, NULL)
    stream_put(stream)
    return FLT_PREOP_SUCCESS_NO_CALLBACK if result == FLT_PREOP_SUCCESS_WITH_CALLBACK else result


cdef int pre_look(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    return FLT_PREOP_SUCCESS_NO_CALLBACK if load_int(&mounted_of(data).active) == 0 else check(data, objects.FileObject.Node)


cdef int pre_lock(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    """From the first lock on no shared oplock is granted, until nobody has the file open."""
    cdef stream_t *stream
    if data.Iopb.MinorFunction != IRP_MN_LOCK or data.Iopb.Parameters.Lock.Flock:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    stream = stream_get(mounted_of(data), objects.FileObject.Node, False)
    if stream == NULL:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    pthread_mutex_lock(&stream.mutex)
    stream.locked = 1
    pthread_mutex_unlock(&stream.mutex)
    stream_put(stream)
    return pre_look(data, objects, context)


# ---- what changes a file -----------------------------------------------------------------------------------------------------
# It is checked, and once more when it is done: what was granted while it was under way is broken, and nobody waits for that.

cdef struct changing_t:                  # from pre to post, which may come at DISPATCH_LEVEL (A6.12)
    stream_t *stream                     # with references, or NULL
    stream_t *directories[2]             # whose names change, if anybody caches them


cdef void changing_end(changing_t *changing) noexcept nogil:
    cdef int i
    if changing == NULL:
        return
    if changing.stream != NULL:
        stream_put(changing.stream)
    for i in range(2):
        if changing.directories[i] != NULL:
            stream_put(changing.directories[i])
    free(changing)


cdef inline int unasked(const FLT_CALLBACK_DATA *data) noexcept nogil:
    """Nobody holds anything of it: post may have to look for what was granted meanwhile."""
    return FLT_PREOP_SYNCHRONIZE if data.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION else FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef void change_again(FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    if NT_SUCCESS(data.IoStatus.Status):
        FltCompletePendedPreOperation(data, FLT_PREOP_SUCCESS_WITH_CALLBACK, context)
    else:
        changing_end(<changing_t *>context)
        FltCompletePendedPreOperation(data, FLT_PREOP_COMPLETE, NULL)


cdef int pre_change(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef changing_t *changing
    cdef stream_t *stream = NULL
    cdef oplock_break_t what
    cdef int result
    if not oplock_operation_breaks(data, &what):
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    if load_int(&mounted_of(data).active):
        stream = stream_get(mounted_of(data), objects.FileObject.Node, False)
    if stream == NULL:
        return unasked(data)
    changing = <changing_t *>calloc(1, sizeof(changing_t))
    if changing == NULL:
        stream_put(stream)
        return complete(data, STATUS_INSUFFICIENT_RESOURCES, 0)
    changing.stream = stream
    result = FltCheckOplockEx(&stream.oplock, data, 0, changing, change_again, NULL)
    if result == FLT_PREOP_SUCCESS_WITH_CALLBACK:
        context[0] = changing
    elif result != FLT_PREOP_PENDING:
        changing_end(changing)
    return result


cdef void changed(stream_t *stream, const oplock_break_t *what) noexcept nogil:
    cdef oplock_break_t again = what[0]
    if oplock_state(stream.oplock):
        again.if_oplocked = 1
        oplock_check(stream.oplock, &again, NULL)


cdef int post_change(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef changing_t *changing = <changing_t *>context
    cdef stream_t *stream
    cdef oplock_break_t what
    if not flags and NT_SUCCESS(data.IoStatus.Status) and load_int(&mounted_of(data).active) and oplock_operation_breaks(data, &what):
        stream = changing.stream if changing != NULL else stream_get(mounted_of(data), objects.FileObject.Node, False)
        if stream != NULL:
            changed(stream, &what)
            if changing == NULL:
                stream_put(stream)
    changing_end(changing)
    return FLT_POSTOP_FINISHED_PROCESSING


# ---- names: what is removed, renamed, linked -------------------------------------------------------------------------------

cdef bint is_rename(uint32_t which) noexcept nogil:
    return which == FileRenameInformation or which == FileRenameInformationEx


cdef node_t *target_of(mounted_t *mounted, const FLT_CALLBACK_DATA *data) noexcept nogil:
    """The file that a rename replaces, or changes places with: a reference, or NULL."""
    cdef FILE_OBJECT directory
    cdef OBJECT_ATTRIBUTES what
    cdef identity_t identity
    cdef statx_t info
    cdef inode_table_t *nodes = nodes_of(mounted)
    memset(&directory, 0, sizeof(directory))
    directory.fd = -1
    directory.Flags = FO_SYNTHESISED | FO_DIRECTORY
    directory.Node = data.Iopb.Parameters.SetFile.TargetDirectory
    memset(&what, 0, sizeof(what))
    what.RootDirectory = &directory
    what.ObjectName = data.Iopb.Parameters.SetFile.TargetName.Buffer
    what.ObjectNameLength = data.Iopb.Parameters.SetFile.TargetName.Length
    if directory.Node == NULL or not NT_SUCCESS(filter_query(mounted.instance, &what, &info)):
        return NULL
    identify(&info, &identity)
    return node_get(nodes, make_id(nodes.device, identity.device, identity.inode))


cdef bint excluded(stream_t *stream) noexcept nogil:
    """Somebody has it open and lets nobody delete it."""
    cdef bint enters
    pthread_mutex_lock(&stream.mutex)
    enters = share_enter(stream, DELETE, ALL_SHARED)
    if enters:
        share_leave(stream, DELETE, ALL_SHARED)
    pthread_mutex_unlock(&stream.mutex)
    return not enters


cdef struct naming_t:                    # SET_INFORMATION of a name
    changing_t changing                  # first: post is given this
    mounted_t *mounted
    int stage                            # what has been waited for
    node_t *directories[2]               # that get another name: the renamed one, and the one it changes places with; or NULL
    stream_t **below                     # files in them whose holders have been told and have to answer, each with a reference
    uint32_t below_count, below_room
    uint32_t below_waited                # of these, so many have been waited for


cdef void naming_end(naming_t *naming) noexcept nogil:
    cdef uint32_t i
    if naming == NULL:
        return
    for i in range(naming.below_count):
        stream_put(naming.below[i])
    free(naming.below)
    if naming.directories[1] != NULL:
        node_put(nodes_of(naming.mounted), naming.directories[1])
    changing_end(&naming.changing)


cdef int change_own_name(FLT_CALLBACK_DATA *data, stream_t *stream, naming_t *naming) noexcept nogil:
    cdef oplock_break_t what
    cdef int result
    if naming.stage < DELETE_OPENED:
        naming.stage = DELETE_OPENED
        what = oplock_open_break(&data.Iopb.TargetFileObject.Oplock, DELETE, ALL_SHARED, <uint32_t>FILE_OPEN << 24)
        result = oplock_check_open(&stream.oplock, data, &what, naming, change_name_again)
        if result != FLT_PREOP_SUCCESS_WITH_CALLBACK:
            return result
    if naming.stage < DELETE_SHARED:
        naming.stage = DELETE_SHARED
        if excluded(stream):
            result = FltOplockBreakH(&stream.oplock, data, 0, naming, change_name_again, NULL)
            if result != FLT_PREOP_SUCCESS_WITH_CALLBACK:
                return result
    if excluded(stream):
        return complete(data, STATUS_SHARING_VIOLATION, 0)
    naming.stage = NAME_CHECKED
    return FltCheckOplockEx(&stream.oplock, data, 0, naming, change_name_again, NULL)


cdef bint keep_below(naming_t *naming, stream_t *stream) noexcept nogil:
    """Takes the caller's reference. False: no memory."""
    cdef stream_t **more
    if naming.below_count == naming.below_room:
        more = <stream_t **>realloc(naming.below, (naming.below_room * 2 + 16) * sizeof(stream_t *))
        if more == NULL:
            return False
        naming.below = more
        naming.below_room = naming.below_room * 2 + 16
    naming.below[naming.below_count] = stream
    naming.below_count += 1
    return True


cdef int break_below(FLT_CALLBACK_DATA *data, naming_t *naming, bint answers) noexcept nogil:
    """Tells whoever keeps a file open in the directories that get another name. answers: keeps those that have to answer. An
    errno."""
    cdef inode_table_t *nodes = nodes_of(naming.mounted)
    cdef stream_t *stream
    cdef oplock_break_t what
    oplock_operation_breaks(data, &what)
    what.if_oplocked = 1
    stream = next_active(naming.mounted, NULL, False)
    while stream != NULL:
        if oplock_state(stream.oplock) and (
                (naming.directories[0] != NULL and node_below(nodes, stream.node, naming.directories[0])) or
                (naming.directories[1] != NULL and node_below(nodes, stream.node, naming.directories[1]))):
            if oplock_check(stream.oplock, &what, NULL) == STATUS_OPLOCK_BREAK_IN_PROGRESS and answers:
                FltReferenceContext(stream)
                if not keep_below(naming, stream):
                    stream_put(stream)
                    stream_put(stream)
                    return ENOMEM
        stream = next_active(naming.mounted, stream, False)
    return 0


cdef int change_names_below(FLT_CALLBACK_DATA *data, naming_t *naming) noexcept nogil:
    """A directory is renamed, or changes places with something: whoever keeps a file below it open has it by another name then.
    All are told before one is waited for; who comes meanwhile is told in post, and not waited for."""
    cdef FILE_OBJECT *file = data.Iopb.TargetFileObject
    cdef stream_t *stream
    cdef node_t *target
    cdef int result
    if naming.stage < BELOW_TOLD:
        naming.stage = BELOW_TOLD
        if node_type(file.Node) == S_IFDIR:
            naming.directories[0] = file.Node
        if data.Iopb.Parameters.SetFile.Flags & RENAME_EXCHANGE:
            target = target_of(naming.mounted, data)
            if target != NULL and node_type(target) == S_IFDIR:
                naming.directories[1] = target
            elif target != NULL:
                node_put(nodes_of(naming.mounted), target)
        if naming.directories[0] == NULL and naming.directories[1] == NULL:
            return FLT_PREOP_SUCCESS_WITH_CALLBACK
        if break_below(data, naming, True):
            return complete(data, STATUS_INSUFFICIENT_RESOURCES, 0)
    while naming.below_waited < naming.below_count:
        stream = naming.below[naming.below_waited]
        naming.below_waited += 1
        result = FltCheckOplockEx(&stream.oplock, data, 0, naming, change_name_again, NULL)
        if result != FLT_PREOP_SUCCESS_WITH_CALLBACK:
            return result
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef int change_name(FLT_CALLBACK_DATA *data, naming_t *naming) noexcept nogil:
    """A file that loses its name was opened for that, so writes that are kept back are written first, and sharing is looked at
    (A9.8). Then the name itself; then those of files below; then the file that the new name had. PENDING: `naming` is somebody
    else's."""
    cdef mounted_t *mounted = mounted_of(data)
    cdef FILE_OBJECT *file = data.Iopb.TargetFileObject
    cdef uint32_t which = data.Iopb.Parameters.SetFile.FileInformationClass
    cdef stream_t *stream
    cdef node_t *node
    cdef int result = FLT_PREOP_SUCCESS_WITH_CALLBACK
    if naming.stage < NAME_CHECKED and naming.changing.stream != NULL:
        if which == FileLinkInformation:
            naming.stage = NAME_CHECKED
            result = FltCheckOplockEx(&naming.changing.stream.oplock, data, 0, naming, change_name_again, NULL)
        else:
            result = change_own_name(data, naming.changing.stream, naming)
    if result != FLT_PREOP_SUCCESS_WITH_CALLBACK or naming.stage == TARGET_CHECKED or not is_rename(which):
        return result
    if naming.stage <= BELOW_TOLD:
        result = change_names_below(data, naming)
        if result != FLT_PREOP_SUCCESS_WITH_CALLBACK:
            return result
    naming.stage = TARGET_CHECKED
    node = target_of(mounted, data)
    if node == NULL:
        return result
    stream = stream_get(mounted, node, False) if node != file.Node else NULL
    if stream != NULL:
        result = FltOplockBreakH(&stream.oplock, data, 0, naming, change_name_again, NULL)
        stream_put(stream)
    node_put(nodes_of(mounted), node)
    return result


cdef void change_name_again(FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    cdef naming_t *naming = <naming_t *>context
    cdef int result = FLT_PREOP_COMPLETE
    if NT_SUCCESS(data.IoStatus.Status):
        result = change_name(data, naming)
    if result == FLT_PREOP_PENDING:
        return
    if result != FLT_PREOP_SUCCESS_WITH_CALLBACK:
        naming_end(naming)
        naming = NULL
    FltCompletePendedPreOperation(data, result, naming)


cdef stream_t *cached_directory(mounted_t *mounted, node_t *directory) noexcept nogil:
    return stream_get(mounted, directory, False) if load_int(&mounted.directories) else NULL


cdef int pre_set_information(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(data)
    cdef uint32_t which = data.Iopb.Parameters.SetFile.FileInformationClass
    cdef naming_t *naming
    cdef int result
    if not is_rename(which) and which != FileDispositionInformation and which != FileLinkInformation:
        return pre_change(data, objects, context)
    if load_int(&mounted.active) == 0:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    naming = <naming_t *>calloc(1, sizeof(naming_t))
    if naming == NULL:
        return complete(data, STATUS_INSUFFICIENT_RESOURCES, 0)
    naming.mounted = mounted
    naming.changing.stream = stream_get(mounted, objects.FileObject.Node, False)
    if which != FileLinkInformation:
        naming.changing.directories[0] = cached_directory(mounted, objects.FileObject.Directory)
    if which != FileDispositionInformation:
        naming.changing.directories[1] = cached_directory(mounted, data.Iopb.Parameters.SetFile.TargetDirectory)
    result = change_name(data, naming)
    if result == FLT_PREOP_SUCCESS_WITH_CALLBACK:
        context[0] = naming
    elif result != FLT_PREOP_PENDING:
        naming_end(naming)
    return result


cdef void child_changed(stream_t *directory, const FILE_OBJECT *file) noexcept nogil:
    """A name in that directory is new, gone, or another's: who caches the directory is told. Nobody waits."""
    cdef oplock_break_t what
    if directory == NULL:
        return
    memset(&what, 0, sizeof(what))
    what.operation = OPLOCK_PARENT
    what.open = &file.Oplock
    changed(directory, &what)


cdef int post_set_information(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef uint32_t which = data.Iopb.Parameters.SetFile.FileInformationClass
    cdef naming_t *naming = <naming_t *>context
    cdef int i
    if not is_rename(which) and which != FileDispositionInformation and which != FileLinkInformation:
        return post_change(data, objects, context, flags)
    if not flags and NT_SUCCESS(data.IoStatus.Status):
        for i in range(2):
            child_changed(naming.changing.directories[i], objects.FileObject)
        if naming.directories[0] != NULL or naming.directories[1] != NULL:
            break_below(data, naming, False)
    naming_end(naming)
    return FLT_POSTOP_FINISHED_PROCESSING


# ---- opens -------------------------------------------------------------------------------------------------------------------

cdef struct opening_t:                   # an open on its way
    stream_t *stream                     # with a reference; NULL: a file that is not there yet
    created_t *taken                     # it takes this one over
    oplock_break_t what
    uint32_t access, share
    bint counted                         # in stream.open_count,
    bint sharing                         # and for sharing
    bint h_broken                        # FltOplockBreakH has been called
    bint overwrites
    bint another_name                    # a one-time name has been put in place of the file's: name
    # of STACKFS_IOC_OPLOCK_CREATE:
    bint by_control
    created_t *made
    FILE_OBJECT *opened                  # the file as it is, opened below
    stackfs_oplock_create asked
    char name[256]


cdef void opening_end(mounted_t *mounted, opening_t *opening, bint opened) noexcept nogil:
    """opened: what it counts for, its file object counts for from now on."""
    cdef stream_t *stream = opening.stream
    if stream != NULL:
        if not opened:
            pthread_mutex_lock(&stream.mutex)
            if opening.counted:
                stream.open_count -= stream.open_count != 0
            if opening.sharing:
                share_leave(stream, opening.access, opening.share)
            pthread_mutex_unlock(&stream.mutex)
        stream_let_go(stream)
    if opening.opened != NULL:
        FltClose(mounted.instance, opening.opened)
    free(opening.made)
    free(opening)


cdef void opening_counts(opening_t *opening) noexcept nogil:
    """Before it is checked: whoever asks to be alone from now on sees it."""
    pthread_mutex_lock(&opening.stream.mutex)
    opening.stream.open_count += 1
    opening.counted = 1
    pthread_mutex_unlock(&opening.stream.mutex)


cdef bint shares(opening_t *opening) noexcept nogil:
    if not opening.sharing:
        pthread_mutex_lock(&opening.stream.mutex)
        opening.sharing = share_enter(opening.stream, opening.access, opening.share)
        pthread_mutex_unlock(&opening.stream.mutex)
    return opening.sharing or not opening.access & (FILE_READ_DATA | FILE_WRITE_DATA | FILE_APPEND_DATA | FILE_EXECUTE | DELETE)


cdef int open_step(FLT_CALLBACK_DATA *data, opening_t *opening) noexcept nogil:
    """A batch oplock, sharing, the oplock (A9.8). PENDING: `opening` is somebody else's."""
    cdef stream_t *stream = opening.stream
    cdef oplock_break_t handles
    cdef int result
    if FltCurrentBatchOplock(&stream.oplock):
        result = oplock_check_open(&stream.oplock, data, &opening.what, opening, open_again)
        if result != FLT_PREOP_SUCCESS_WITH_CALLBACK:
            return result
    if not shares(opening):
        if FltCurrentOplockH(&stream.oplock) and not opening.h_broken:
            opening.h_broken = 1
            handles = opening.what
            handles.operation = OPLOCK_OPEN_BREAK_H
            handles.stat_only = handles.spares_filter = 0
            result = oplock_check_open(&stream.oplock, data, &handles, opening, open_again)
            if result != FLT_PREOP_SUCCESS_WITH_CALLBACK:
                return result
        if not shares(opening):
            return complete(data, STATUS_SHARING_VIOLATION, 0)
    return oplock_check_open(&stream.oplock, data, &opening.what, opening, open_again)


cdef void open_again(FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    """What it waited for is settled, or it was cancelled."""
    cdef opening_t *opening = <opening_t *>context
    cdef mounted_t *mounted = mounted_of(data)
    cdef int result = FLT_PREOP_COMPLETE
    if NT_SUCCESS(data.IoStatus.Status):
        result = open_step(data, opening)
    if result == FLT_PREOP_PENDING:
        return
    if opening.by_control:
        if result != FLT_PREOP_COMPLETE:
            result = control_open(data, opening)
            if result == FLT_PREOP_PENDING:
                return
        else:
            opening_end(mounted, opening, False)
        FltCompletePendedPreOperation(data, FLT_PREOP_COMPLETE, NULL)
        return
    if result == FLT_PREOP_COMPLETE:
        opening_end(mounted, opening, False)
        opening = NULL
    FltCompletePendedPreOperation(data, result, opening)


cdef bint is_once(const FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    return p.FileName.Length == ONCE_PREFIX + ONCE_DIGITS and memcmp(p.FileName.Buffer, ONCE, ONCE_PREFIX) == 0


cdef bint find_once(mounted_t *mounted, FLT_CALLBACK_DATA *data, char *name) noexcept nogil:
    """A one-time name is looked up by the one it was given to: the file's own takes its place below."""
    cdef uint32_t length = 0
    if data.RequestOpcode != <uint32_t>FUSE_LOOKUP or not created_named(
            mounted, data.Iopb.TargetFileObject.Directory, data.Iopb.FileName.Buffer, data.Iopb.FileName.Length,
            requestor_pid(data.Thread), name, &length):
        return False
    data.Iopb.FileName.Buffer = name
    data.Iopb.FileName.Length = <unsigned short>length
    FltSetCallbackDataDirty(data)
    return True


cdef int pre_query_open(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(data)
    cdef char *name
    if load_int(&mounted.created_count) == 0 or not is_once(data.Iopb):
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    name = <char *>malloc(256)
    if name == NULL or not find_once(mounted, data, name):
        free(name)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    context[0] = name
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef int post_query_open(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    free(context)
    return FLT_POSTOP_FINISHED_PROCESSING


cdef int pre_create(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(data)
    cdef FLT_IO_PARAMETER_BLOCK *p = data.Iopb
    cdef FILE_OBJECT *file = objects.FileObject
    cdef bint counts = by_program(file) and not load_bits(&file.Flags) & FO_DIRECTORY
    cdef uint32_t disposition = p.Parameters.Create.Options >> 24
    cdef opening_t *opening
    cdef int result
    if not counts and load_int(&mounted.active) == 0:
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    opening = <opening_t *>calloc(1, sizeof(opening_t))
    if opening == NULL:
        return complete(data, STATUS_INSUFFICIENT_RESOURCES, 0)
    opening.what = oplock_open_break(&file.Oplock, p.Parameters.Create.DesiredAccess, ALL_SHARED, p.Parameters.Create.Options)
    opening.access = access_of(p.Parameters.Create.OpenFlags) if counts else p.Parameters.Create.DesiredAccess
    opening.share = ALL_SHARED
    opening.overwrites = disposition == FILE_OVERWRITE or disposition == FILE_OVERWRITE_IF
    if file.Node == NULL:
        # By name: a new file, or one that a request by path is about to open, which change_name() checks.
        if load_int(&mounted.created_count) and is_once(p):
            find_once(mounted, data, opening.name)
        context[0] = opening
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    if counts and load_int(&mounted.created_count):
        opening.taken = created_take(mounted, file.Node, requestor_pid(data.Thread))
        if opening.taken != NULL:
            if opening.access & ~opening.taken.open.access & (FILE_READ_DATA | FILE_WRITE_DATA):
                created_taken(mounted, opening.taken, NULL)
                opening_end(mounted, opening, False)
                return complete(data, STATUS_ACCESS_DENIED, 0)
            file.Oplock = opening.taken.identity
            context[0] = opening
            return FLT_PREOP_SUCCESS_WITH_CALLBACK
    opening.stream = stream_get(mounted, file.Node, counts)
    if opening.stream == NULL:
        context[0] = opening
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    if counts:
        opening_counts(opening)
    result = open_step(data, opening)
    if result == FLT_PREOP_COMPLETE:
        opening_end(mounted, opening, False)
    elif result == FLT_PREOP_SUCCESS_WITH_CALLBACK:
        context[0] = opening
    return result


cdef void directory_changed(mounted_t *mounted, const FILE_OBJECT *file, node_t *directory) noexcept nogil:
    cdef stream_t *stream = cached_directory(mounted, directory)
    if stream != NULL:
        child_changed(stream, file)
        stream_put(stream)


cdef bint makes_a_name(uint32_t request) noexcept nogil:
    return request == <uint32_t>FUSE_CREATE or request == <uint32_t>FUSE_MKDIR or request == <uint32_t>FUSE_MKNOD or \
        request == <uint32_t>FUSE_SYMLINK


cdef int post_create(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(data)
    cdef opening_t *opening = <opening_t *>context
    cdef FILE_OBJECT *file = objects.FileObject
    cdef bint succeeded = not flags and NT_SUCCESS(data.IoStatus.Status)
    cdef bint counts = by_program(file) and not load_bits(&file.Flags) & FO_DIRECTORY
    cdef stream_t *stream
    if opening == NULL:
        return FLT_POSTOP_FINISHED_PROCESSING
    if opening.taken != NULL:
        created_taken(mounted, opening.taken, file if succeeded else NULL)
        if succeeded and opening.overwrites:
            opening.stream = stream_get(mounted, file.Node, False)
            opening.what.open = &file.Oplock
    elif succeeded and counts and opening.stream == NULL and file.Node != NULL:
        stream = stream_get(mounted, file.Node, True)
        if stream != NULL:               # it is new, or somebody was faster and made it: then he hears of this one
            opening.stream = stream
            opening_counts(opening)
            pthread_mutex_lock(&stream.mutex)
            opening.sharing = share_enter(stream, opening.access, opening.share)
            pthread_mutex_unlock(&stream.mutex)
            changed(stream, &opening.what)
    if succeeded and load_int(&mounted.active):
        if opening.stream != NULL and opening.overwrites:
            changed(opening.stream, &opening.what)
        if file.Directory != NULL and makes_a_name(data.RequestOpcode):
            directory_changed(mounted, file, file.Directory)
    opening_end(mounted, opening, succeeded and counts)
    return FLT_POSTOP_FINISHED_PROCESSING


cdef int pre_cleanup(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    if by_program(objects.FileObject):
        file_closed(mounted_of(data), objects.FileObject, access_of(objects.FileObject.OpenFlags))
    return FLT_PREOP_SUCCESS_NO_CALLBACK


# ---- STACKFS_IOC_OPLOCK_CREATE ---------------------------------------------------------------------------------------------

cdef int refuse_access(mounted_t *mounted, const REQUESTOR *who, node_t *node, int mode) noexcept nogil:
    """As whoever asks: the kernel has not checked what he asks for. 0, or an errno."""
    cdef int fd
    cdef int error
    if geteuid() != 0 and geteuid() != who.uid:
        return EACCES
    fd = node_open(nodes_of(mounted), node)
    if fd < 0:
        return -fd
    error = -impersonate(who)
    if error == 0:
        error = may_access(fd, mode)
    revert_to_self()
    node_close(nodes_of(mounted), node)
    return error


cdef NTSTATUS control_check(mounted_t *mounted, const stackfs_oplock_create *asked) noexcept nogil:
    cdef size_t length = 0
    while length < sizeof(asked.name) and asked.name[length]:
        if asked.name[length] == c'/':
            return STATUS_INVALID_PARAMETER
        length += 1
    if length == 0 or length > 255 or (asked.name[0] == c'.' and (length == 1 or (length == 2 and asked.name[1] == c'.'))):
        return STATUS_INVALID_PARAMETER
    if asked.share_access & ~<uint32_t>ALL_SHARED or asked.disposition > FILE_OVERWRITE_IF or asked.mode & ~<uint32_t>0o7777 or \
            asked.options & ~<uint32_t>(0x100 | FILE_OPEN_REQUIRING_OPLOCK | FILE_RESERVE_OPFILTER) or asked.level > 0xFF or \
            asked.desired_access == 0:
        return STATUS_INVALID_PARAMETER
    if mounted.read_only and (asked.disposition != FILE_OPEN or asked.desired_access & (FILE_WRITE_DATA | FILE_APPEND_DATA)):
        return errno_to_nt(EROFS)
    return STATUS_SUCCESS


cdef void control_attributes(const FLT_CALLBACK_DATA *data, stackfs_oplock_create *asked, OBJECT_ATTRIBUTES *what) noexcept nogil:
    memset(what, 0, sizeof(what[0]))
    what.RootDirectory = data.Iopb.TargetFileObject
    what.ObjectName = asked.name
    what.ObjectNameLength = strlen(asked.name)
    what.Requestor = data.Thread


cdef bint creates(uint32_t disposition) noexcept nogil:
    return disposition != FILE_OPEN and disposition != FILE_OVERWRITE


cdef bint overwrites(uint32_t disposition) noexcept nogil:
    return disposition == FILE_SUPERSEDE or disposition == FILE_OVERWRITE or disposition == FILE_OVERWRITE_IF


cdef NTSTATUS control_find(mounted_t *mounted, FLT_CALLBACK_DATA *data, opening_t *opening) noexcept nogil:
    """Opens the file as it is, or makes it. opening.opened, and whether it is new in asked.result."""
    cdef stackfs_oplock_create *asked = &opening.asked
    cdef OBJECT_ATTRIBUTES what
    cdef statx_t info
    cdef NTSTATUS status
    cdef int error
    cdef int _tries
    cdef int mode = (R_OK if asked.desired_access & FILE_READ_DATA else 0) | (X_OK if asked.desired_access & FILE_EXECUTE else 0) | (
        W_OK if asked.desired_access & (FILE_WRITE_DATA | FILE_APPEND_DATA) or overwrites(asked.disposition) else 0)
    control_attributes(data, asked, &what)
    what.Requestor = NULL
    for _tries in range(TRIES):
        status = filter_query(mounted.instance, &what, &info)
        if NT_SUCCESS(status):
            if asked.disposition == FILE_CREATE:
                return errno_to_nt(EEXIST)
            if info.stx_mode & 0o170000 != S_IFREG:
                return errno_to_nt(EISDIR) if info.stx_mode & 0o170000 == 0o040000 else STATUS_INVALID_PARAMETER
            status = FltOpenFile(mounted.instance, &opening.opened, &what, <uint32_t>O_RDONLY, 0, NULL)
            if status == STATUS_OBJECT_NAME_NOT_FOUND:
                continue
            if NT_SUCCESS(status):
                error = refuse_access(mounted, data.Thread, opening.opened.Node, mode)
                if error == 0 and asked.desired_access & DELETE:
                    error = refuse_access(mounted, data.Thread, data.Iopb.TargetFileObject.Node, W_OK | X_OK)
                if error:
                    return errno_to_nt(error)
                asked.result = FILE_OVERWRITTEN if overwrites(asked.disposition) else FILE_OPENED
            return status
        if status != STATUS_OBJECT_NAME_NOT_FOUND or not creates(asked.disposition):
            return status
        error = refuse_access(mounted, data.Thread, data.Iopb.TargetFileObject.Node, W_OK | X_OK)
        if error:
            return errno_to_nt(error)
        what.Requestor = data.Thread
        status = FltOpenFile(mounted.instance, &opening.opened, &what, <uint32_t>(O_RDWR | O_CREAT | O_EXCL), asked.mode, NULL)
        what.Requestor = NULL
        if status != STATUS_OBJECT_NAME_COLLISION:
            asked.result = FILE_CREATED
            return status
    return STATUS_OBJECT_NAME_COLLISION


cdef int control_create(FLT_CALLBACK_DATA *data) noexcept nogil:
    cdef mounted_t *mounted = mounted_of(data)
    cdef FLT_IO_PARAMETER_BLOCK *p = data.Iopb
    cdef opening_t *opening
    cdef NTSTATUS status
    cdef int result
    if not load_bits(&p.TargetFileObject.Flags) & FO_DIRECTORY or p.TargetFileObject.Node == NULL:
        return complete(data, STATUS_INVALID_PARAMETER, 0)
    opening = <opening_t *>calloc(1, sizeof(opening_t))
    if opening == NULL:
        return complete(data, STATUS_INSUFFICIENT_RESOURCES, 0)
    opening.by_control = 1
    memcpy(&opening.asked, p.Parameters.Control.InputBuffer, sizeof(stackfs_oplock_create))
    status = control_check(mounted, &opening.asked)
    if status == STATUS_SUCCESS:
        opening.made = <created_t *>calloc(1, sizeof(created_t))
        status = STATUS_INSUFFICIENT_RESOURCES if opening.made == NULL else control_find(mounted, data, opening)
    if NT_SUCCESS(status):
        opening.stream = stream_get(mounted, opening.opened.Node, True)
        if opening.stream == NULL:
            status = STATUS_INSUFFICIENT_RESOURCES
    if not NT_SUCCESS(status):
        opening_end(mounted, opening, False)
        return complete(data, status, 0)
    memcpy(opening.made.identity.TargetKey, opening.asked.key, 16)
    memcpy(opening.made.identity.ParentKey, opening.asked.parent_key, 16)
    opening.access = opening.asked.desired_access
    opening.share = opening.asked.share_access
    opening.what = oplock_open_break(&opening.made.identity, opening.access, opening.share,
                                     opening.asked.options | opening.asked.disposition << 24)
    opening_counts(opening)
    result = open_step(data, opening)
    if result == FLT_PREOP_PENDING:
        return result
    if result == FLT_PREOP_COMPLETE:
        opening_end(mounted, opening, False)
        return result
    return control_open(data, opening)


cdef void forget(mounted_t *mounted, const node_t *node, int64_t offset, int64_t length) noexcept nogil:
    """What the kernel keeps of a file that was changed below: its attributes at once, before whoever waits for the change
    goes on (the next read then sees that size or time are others, and drops the pages); its pages when reads that wait for the
    same allow it."""
    volume_forget_attributes(mounted.instance.Related.Volume, node)
    volume_forget_data(mounted.instance.Related.Volume, node, offset, length)


cdef int control_open(FLT_CALLBACK_DATA *data, opening_t *opening) noexcept nogil:
    """Nothing stands in the way any more: it is opened, and has its oplock. FLT_PREOP_COMPLETE."""
    cdef mounted_t *mounted = mounted_of(data)
    cdef stackfs_oplock_create *asked = &opening.asked
    cdef created_t *made = opening.made
    cdef stream_t *stream = opening.stream
    cdef OBJECT_ATTRIBUTES what
    cdef FILE_OBJECT *truncated = NULL
    cdef open_t *open
    cdef uint8_t digits[16]
    cdef uint32_t granted = 0
    cdef NTSTATUS status = STATUS_SUCCESS
    cdef int i
    asked.flags = data.IoStatus.Status == STATUS_OPLOCK_BREAK_IN_PROGRESS
    if asked.result == <uint32_t>FILE_OVERWRITTEN:
        memset(&what, 0, sizeof(what))
        what.RootDirectory = opening.opened
        status = FltOpenFile(mounted.instance, &truncated, &what, <uint32_t>(O_WRONLY | O_TRUNC), 0, NULL)
        if NT_SUCCESS(status):
            FltClose(mounted.instance, truncated)
            forget(mounted, stream.node, 0, 0)
    if NT_SUCCESS(status) and not random_bytes(digits, sizeof(digits)):
        status = STATUS_INSUFFICIENT_RESOURCES
    if not NT_SUCCESS(status):
        opening_end(mounted, opening, False)
        return complete(data, status, 0)
    made.pid = requestor_pid(data.Thread)
    pthread_mutex_lock(&stream.mutex)
    open = open_new(stream, &made.identity)
    if open != NULL:
        open.references += 1             # the created one's
        open.created = 1
        open.access = opening.access
        open.share = <uint8_t>opening.share
        open.pid = made.pid
    pthread_mutex_unlock(&stream.mutex)
    if open == NULL:
        opening_end(mounted, opening, False)
        return complete(data, STATUS_INSUFFICIENT_RESOURCES, 0)
    made.open = open
    made.opened = opening.opened
    made.directory = data.Iopb.TargetFileObject.Node
    node_hold(nodes_of(mounted), made.directory)
    made.name_length = <uint8_t>strlen(asked.name)
    memcpy(made.name, asked.name, made.name_length)
    memcpy(made.once, ONCE, ONCE_PREFIX)
    for i in range(ONCE_DIGITS):
        made.once[ONCE_PREFIX + i] = DIGITS[digits[i >> 1] >> (4 if i & 1 else 0) & 15]
    opening.opened = NULL
    opening.made = NULL
    if asked.result == <uint32_t>FILE_CREATED:
        directory_changed(mounted, data.Iopb.TargetFileObject, made.directory)
    made.busy = 1
    created_add(mounted, made)
    stream_activate(stream)
    if asked.options & FILE_RESERVE_OPFILTER and not asked.level:
        status = STATUS_SUCCESS if oplock_reserve(stream.oplock, &made.identity) else STATUS_OPLOCK_NOT_GRANTED
    elif asked.level:
        status = open_request(open, asked.level)
        if NT_SUCCESS(status):
            granted = asked.level
        elif status == STATUS_OPLOCK_NOT_GRANTED and not asked.options & FILE_OPEN_REQUIRING_OPLOCK:
            status = STATUS_SUCCESS
    stream_asked(stream)
    if not NT_SUCCESS(status):
        created_give_up(mounted, made)
        opening_end(mounted, opening, True)
        return complete(data, status, 0)
    asked.level = granted
    memcpy(asked.once, made.once, STACKFS_ONCE_SIZE)
    created_taken(mounted, made, NULL)
    memcpy(data.Iopb.Parameters.Control.OutputBuffer, asked, sizeof(stackfs_oplock_create))
    opening_end(mounted, opening, True)
    return complete(data, STATUS_SUCCESS, sizeof(stackfs_oplock_create))


# ---- the other ioctls ------------------------------------------------------------------------------------------------------

cdef open_t *asking(FLT_CALLBACK_DATA *data, bint make) noexcept nogil:
    """With a reference. NULL: it has asked for nothing yet (or, with `make`, no memory)."""
    cdef FILE_OBJECT *file = data.Iopb.TargetFileObject
    cdef stream_t *stream = stream_get(mounted_of(data), file.Node, make)
    cdef open_t *open
    if stream == NULL:
        return NULL
    pthread_mutex_lock(&stream.mutex)
    open = open_of(stream, file, make)
    if open != NULL:
        add_int(&open.references, 1)
    pthread_mutex_unlock(&stream.mutex)
    stream_put(stream)
    if open != NULL and open.pid == 0:
        open.pid = requestor_pid(data.Thread)
    return open


cdef int control_poll(FLT_CALLBACK_DATA *data) noexcept nogil:
    cdef open_t *open
    cdef uint32_t ready = POLL_ALWAYS_READY
    if not data.Iopb.Parameters.Control.Flags & POLLPRI:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    open = asking(data, True)
    if open == NULL:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    pthread_mutex_lock(&open.stream.mutex)
    open.poll_handle = <uint64_t>data.Iopb.Parameters.Control.FileOffset
    if open.unread:
        ready |= POLLPRI
    pthread_mutex_unlock(&open.stream.mutex)
    open_put(open)
    return complete(data, STATUS_SUCCESS, ready & (data.Iopb.Parameters.Control.Flags | 0x18))


cdef NTSTATUS control_request(FLT_CALLBACK_DATA *data, open_t *open) noexcept nogil:
    cdef stackfs_oplock_request asked
    cdef stackfs_oplock_state state
    cdef FILE_OBJECT *file = data.Iopb.TargetFileObject
    memcpy(&asked, data.Iopb.Parameters.Control.InputBuffer, sizeof(asked))
    if asked.reserved or asked.level > 0xFF:
        return STATUS_INVALID_PARAMETER
    if memcmp(file.Oplock.TargetKey, asked.key, 16) or memcmp(file.Oplock.ParentKey, asked.parent_key, 16):
        open_state(open, &state)
        if state.level:                  # whoever holds something has his key
            return STATUS_INVALID_PARAMETER
        pthread_mutex_lock(&open.stream.mutex)
        memcpy(file.Oplock.TargetKey, asked.key, 16)
        memcpy(file.Oplock.ParentKey, asked.parent_key, 16)
        pthread_mutex_unlock(&open.stream.mutex)
    return open_request(open, asked.level)


cdef NTSTATUS control_write(FLT_CALLBACK_DATA *data, open_t *open) noexcept nogil:
    """By this file, below: the kernel's locks are not asked for. What the page cache has of it is forgotten."""
    cdef const stackfs_oplock_write *asked = <const stackfs_oplock_write *>data.Iopb.Parameters.Control.InputBuffer
    cdef FILE_OBJECT *file = data.Iopb.TargetFileObject
    cdef mounted_t *mounted = mounted_of(data)
    cdef int64_t offset
    cdef uint32_t done = 0
    cdef uint32_t put
    cdef NTSTATUS status
    if asked.length > STACKFS_OPLOCK_WRITE_SIZE or asked.reserved or \
            asked.offset > <uint64_t>0x7FFFFFFFFFFFFFFF - STACKFS_OPLOCK_WRITE_SIZE:
        return STATUS_INVALID_PARAMETER
    if file.OpenFlags & <uint32_t>O_ACCMODE == <uint32_t>O_RDONLY:
        return errno_to_nt(EBADF)
    if not open_may_keep_back(open):
        return STATUS_INVALID_OPLOCK_PROTOCOL
    while done < asked.length:
        offset = <int64_t>(asked.offset + done)
        put = 0
        status = FltWriteFile(mounted.instance, file, &offset, asked.length - done, asked.data + done,
                              FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, &put, NULL, NULL)
        if not NT_SUCCESS(status):
            return status
        if put == 0:
            return STATUS_INSUFFICIENT_RESOURCES
        done += put
    forget(mounted, file.Node, <int64_t>asked.offset, asked.length)
    return STATUS_SUCCESS


cdef uint32_t size_of(uint32_t code) noexcept nogil:
    """What goes in, or out, of it; 1: nothing does; 0: it is none of ours."""
    if code == STACKFS_IOC_OPLOCK_REQUEST:
        return sizeof(stackfs_oplock_request)
    if code == STACKFS_IOC_OPLOCK_READ_BREAK:
        return sizeof(stackfs_oplock_break)
    if code == STACKFS_IOC_OPLOCK_ACKNOWLEDGE:
        return sizeof(stackfs_oplock_acknowledge)
    if code == STACKFS_IOC_OPLOCK_STATE:
        return sizeof(stackfs_oplock_state)
    if code == STACKFS_IOC_OPLOCK_WRITE:
        return sizeof(stackfs_oplock_write)
    if code == STACKFS_IOC_OPLOCK_CREATE:
        return sizeof(stackfs_oplock_create)
    return code == STACKFS_IOC_OPLOCK_RELEASE


cdef bint lengths_are_right(const FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    """What the number says, the kernel has copied; a filter above may send what it likes."""
    cdef uint32_t code = p.Parameters.Control.ControlCode
    cdef uint32_t size = size_of(code)
    cdef uint32_t direction = code >> 30
    return (not direction & 1 or (p.Parameters.Control.InputBufferLength >= size and p.Parameters.Control.InputBuffer != NULL)) and (
        not direction & 2 or (p.Parameters.Control.OutputBufferLength >= size and p.Parameters.Control.OutputBuffer != NULL))


cdef int control(FLT_CALLBACK_DATA *data) noexcept nogil:
    cdef FLT_IO_PARAMETER_BLOCK *p = data.Iopb
    cdef uint32_t code = p.Parameters.Control.ControlCode
    cdef open_t *open
    cdef stackfs_oplock_break told
    cdef stackfs_oplock_acknowledge acknowledged
    cdef stackfs_oplock_state state
    cdef uint64_t information = 0
    cdef NTSTATUS status = STATUS_SUCCESS
    if not lengths_are_right(p):
        return complete(data, STATUS_BUFFER_TOO_SMALL, 0)
    if not by_program(p.TargetFileObject) or p.TargetFileObject.Node == NULL:
        return complete(data, STATUS_INVALID_PARAMETER, 0)
    if code == STACKFS_IOC_OPLOCK_CREATE:
        return control_create(data)
    open = asking(data, code == STACKFS_IOC_OPLOCK_REQUEST or code == STACKFS_IOC_OPLOCK_STATE)
    if open == NULL:
        if code == STACKFS_IOC_OPLOCK_READ_BREAK:
            status = errno_to_nt(EAGAIN)
        elif code == STACKFS_IOC_OPLOCK_REQUEST or code == STACKFS_IOC_OPLOCK_STATE:
            status = STATUS_INSUFFICIENT_RESOURCES
        elif code != STACKFS_IOC_OPLOCK_RELEASE:
            status = STATUS_INVALID_OPLOCK_PROTOCOL
        return complete(data, status, 0)
    if code == STACKFS_IOC_OPLOCK_REQUEST:
        status = control_request(data, open)
    elif code == STACKFS_IOC_OPLOCK_READ_BREAK:
        if open_read_break(open, &told):
            memcpy(p.Parameters.Control.OutputBuffer, &told, sizeof(told))
            information = sizeof(told)
        else:
            status = errno_to_nt(EAGAIN)
    elif code == STACKFS_IOC_OPLOCK_ACKNOWLEDGE:
        memcpy(&acknowledged, p.Parameters.Control.InputBuffer, sizeof(acknowledged))
        if acknowledged.how > STACKFS_OPLOCK_ACK_ON_CLOSE or acknowledged.level > 0xFF or acknowledged.reserved[0] or \
                acknowledged.reserved[1]:
            status = STATUS_INVALID_PARAMETER
        else:
            status = open_acknowledge(open, acknowledged.how, &acknowledged.level)
        if NT_SUCCESS(status):
            memcpy(p.Parameters.Control.OutputBuffer, &acknowledged, sizeof(acknowledged))
            information = sizeof(acknowledged)
    elif code == STACKFS_IOC_OPLOCK_STATE:
        open_state(open, &state)
        memcpy(p.Parameters.Control.OutputBuffer, &state, sizeof(state))
        information = sizeof(state)
    elif code == STACKFS_IOC_OPLOCK_WRITE:
        status = control_write(data, open)
    else:
        open_release(open)
    open_put(open)
    return complete(data, status, information)


cdef int pre_control(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    if data.RequestOpcode == <uint32_t>FUSE_POLL and data.Iopb.Parameters.Control.ControlCode == <uint32_t>FSCTL_STACKFS_POLL:
        return control_poll(data)
    if data.RequestOpcode == <uint32_t>FUSE_IOCTL and size_of(data.Iopb.Parameters.Control.ControlCode):
        return control(data)
    return pre_change(data, objects, context)


def operations():
    """The filter's registration."""
    cdef NativeOperations table = NativeOperations()
    table.set(IRP_MJ_CREATE, pre_create, post_create, 0)
    table.set(IRP_MJ_CLEANUP, pre_cleanup, NULL, 0)
    table.set(IRP_MJ_READ, pre_look, NULL, <uint32_t>CALLBACK_SLEEPS)
    table.set(IRP_MJ_WRITE, pre_change, post_change, 0)
    table.set(IRP_MJ_FLUSH_BUFFERS, pre_look, NULL, 0)
    table.set(IRP_MJ_LOCK_CONTROL, pre_lock, NULL, 0)
    table.set(IRP_MJ_SET_INFORMATION, pre_set_information, post_set_information, 0)
    table.set(IRP_MJ_SET_SECURITY, pre_look, NULL, 0)
    table.set(IRP_MJ_FILE_SYSTEM_CONTROL, pre_control, post_change, 0)
    table.set(IRP_MJ_QUERY_OPEN, pre_query_open, post_query_open, <uint32_t>CALLBACK_SLEEPS)
    return table
