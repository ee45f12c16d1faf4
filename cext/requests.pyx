"""VFS requests as operations of the stack (docs/semantics.md, D).

Every request has a plan: the operations it consists of, in order. What Windows does by opening, setting, cleaning up
and closing is shown to the filters just so, under one request number, though the base makes one system call for it. A
step that fails ends the plan, but for the CLEANUP and CLOSE that an open which has succeeded is owed. An operation
nobody registered, and for which the base has nothing to do, costs nothing.

request_run() is called by one thread at a time and never waits where the request may not (nowait), nor ever for a
filter: it stops, and goes on after request_wait(), or when whoever was waited for says so (request_park()).
"""

from cpython.object cimport PyObject
from libc.errno cimport EBADF, EINVAL, EIO, ENOENT, ENOMEM, ENOTDIR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strncmp

from stackfs.cext.backing cimport backing_t
from stackfs.cext.includes.pthread cimport pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
from stackfs.cext.pending cimport (
    hold_is_completed, holds_cancel, holds_end_request, holds_interrupt, operation_park, operation_wait)
from stackfs.cext.threads cimport exchange_int, load_bits, load_int, load_uint, set_bits, store_int
from stackfs.cext.bypass cimport bypass_answer_t, bypass_open, bypass_possible, bypass_release
from stackfs.cext.callback_data cimport (
    DACL_SECURITY_INFORMATION, DELETE, FILE_APPEND_DATA, FILE_CREATE, FILE_DELETE_ON_CLOSE, FILE_DIRECTORY_FILE,
    FILE_NON_DIRECTORY_FILE, FILE_NO_INTERMEDIATE_BUFFERING, FILE_OPEN, FILE_OPEN_IF, FILE_OPEN_REPARSE_POINT, FILE_OVERWRITE,
    FILE_OVERWRITE_IF, FILE_READ_ATTRIBUTES, FILE_READ_DATA, FILE_READ_EA, FILE_WRITE_ATTRIBUTES, FILE_WRITE_DATA,
    FILE_WRITE_EA, FILE_WRITE_THROUGH, FLTFL_CALLBACK_DATA_FAST_IO_OPERATION, FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION,
    FLTFL_CALLBACK_DATA_GENERATED_IO, FLTFL_CALLBACK_DATA_SYSTEM_BUFFER, FLT_IO_PARAMETER_BLOCK, FO_COHERENT, FO_CREATED,
    FO_DIRECTORY, FO_FILE_OPEN_CANCELLED, FO_LOCKED, FO_OPENED, FO_SECTION, FO_SYNTHESISED, FO_UNREADABLE, FO_VOLUME_OPEN,
    FSCTL_DUPLICATE_EXTENTS_TO_FILE, FSCTL_GET_REPARSE_POINT, FSCTL_MANAGE_BYPASS_IO, FSCTL_STACKFS_POLL,
    FSCTL_SET_REPARSE_POINT, FSCTL_SET_ZERO_DATA, GROUP_SECURITY_INFORMATION, IRP_MJ_ACQUIRE_FOR_CC_FLUSH,
    IRP_MJ_ACQUIRE_FOR_MOD_WRITE, IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_CLEANUP, IRP_MJ_CLOSE,
    IRP_MJ_CREATE_MAILSLOT, IRP_MJ_CREATE_NAMED_PIPE, IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE, IRP_MJ_MDL_WRITE_COMPLETE,
    IRP_MJ_RELEASE_FOR_CC_FLUSH, IRP_MJ_RELEASE_FOR_MOD_WRITE, IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION,
    IRP_MJ_VOLUME_DISMOUNT, IRP_MJ_VOLUME_MOUNT, IRP_MJ_CREATE, IRP_MJ_DEVICE_CONTROL, IRP_MJ_DIRECTORY_CONTROL,
    IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_LOCK_CONTROL, IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_QUERY_EA,
    IRP_MJ_QUERY_INFORMATION, IRP_MJ_QUERY_OPEN, IRP_MJ_QUERY_SECURITY, IRP_MJ_QUERY_VOLUME_INFORMATION, IRP_MJ_READ,
    IRP_MJ_SET_EA, IRP_MJ_SET_INFORMATION, IRP_MJ_SET_SECURITY, IRP_MJ_WRITE, IRP_MN_LOCK, IRP_MN_QUERY_DIRECTORY,
    IRP_MN_QUERY_LOCK, IRP_MN_UNLOCK_ALL, IRP_MN_UNLOCK_ALL_BY_KEY, IRP_MN_UNLOCK_SINGLE, IRP_NOCACHE, IRP_PAGING_IO,
    LABEL_SECURITY_INFORMATION, OWNER_SECURITY_INFORMATION, PAGE_EXECUTE, PAGE_READONLY, PAGE_READWRITE,
    SyncTypeCreateSection, READ_CONTROL, REQUEST_FIRST, REQUEST_PRINCIPAL, WRITE_DAC, WRITE_OWNER, FileAllInformation,
    FileAllocationInformation, FileBasicInformation, FileDispositionInformation, FileEndOfFileInformation,
    FileLinkInformation, FileNetworkOpenInformation, FilePositionInformation, FileRenameInformation, FileRenameInformationEx)
from stackfs.cext.coherence cimport (
    coherence_covers, coherence_now, coherence_opened, coherence_passed, coherence_released, coherence_t, coherence_timeout)
from stackfs.cext.contexts cimport contexts_any, contexts_gone
from stackfs.cext.extents cimport extent_mode_known, extent_mode_zeroes
from stackfs.cext.file_flags cimport is_file_control, is_fsctl
from stackfs.cext.handles cimport handle_free, handle_get, handle_new, handle_publish, handle_put, handle_take
from stackfs.cext.inode_table cimport (
    ROOT_ID, name_holder, name_of, node_forget, node_get, node_hold, node_id, node_put, node_type)
from stackfs.cext.locks cimport (
    lock_enter, lock_interrupt, lock_leave, lock_park, lock_wait, locks_cancel, locks_drop, locks_held, locks_released,
    locks_retry)
from stackfs.cext.ntstatus cimport (
    NTSTATUS, NT_SUCCESS, STATUS_CANCELLED, STATUS_INVALID_DEVICE_REQUEST, STATUS_IO_DEVICE_ERROR, STATUS_NOT_IMPLEMENTED,
    STATUS_REPARSE, STATUS_SUCCESS, nt_to_errno)
from stackfs.cext.reparse cimport reparse_free, request_reparse
from stackfs.cext.stack cimport (
    OPERATION_AT_BASE, OPERATION_GOING_DOWN, OPERATION_GOING_UP, OPERATION_PENDED_POST, OPERATION_PENDED_PRE, is_release,
    list_release, operation_base, operation_begin, operation_end, operation_listed, operation_only_below, operation_resume,
    operation_run, operation_take_list, resume_function)


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <unistd.h>
    static inline uint64_t stackfs_next(uint64_t *counter) { return __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED); }
    static inline int stackfs_flag(int *what) { return __atomic_load_n(what, __ATOMIC_RELAXED); }
    """
    uint64_t stackfs_next(uint64_t *counter) nogil
    int stackfs_flag(int *what) nogil
    int O_ACCMODE, O_RDONLY, O_WRONLY, O_RDWR, O_APPEND, O_CREAT, O_EXCL, O_TRUNC, O_DIRECT, O_SYNC, O_DSYNC, O_DIRECTORY
    int AT_REMOVEDIR, EOPNOTSUPP, ENOTTY, F_UNLCK, F_WRLCK
    unsigned S_IFMT, S_IFDIR, S_IFLNK, S_IFREG, S_IFIFO, S_IFSOCK
    int dup(int fd) nogil
    int close(int fd) nogil

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *text, size_t most)

# Requests as FUSE numbers them.
cdef enum:
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26                            # the device answers it itself; here: a volume is mounted
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    DESTROY = 38                         # a volume is dismounted
    IOCTL = 39
    POLL = 40
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53

    FUSE_GETATTR_FH = 1
    FUSE_READ_LOCKOWNER = 2
    FS_FULL_SIZE = 7                     # FileFsFullSizeInformation: of what statvfs(3) gives
    FUSE_WRITE_CACHE = 1
    FUSE_RELEASE_FLOCK_UNLOCK = 2
    FUSE_LK_FLOCK = 1
    FATTR_MODE = 1
    FATTR_UID = 2
    FATTR_GID = 4
    FATTR_SIZE = 8
    FATTR_ATIME = 16
    FATTR_MTIME = 32
    FATTR_FH = 64
    FATTR_ATIME_NOW = 128
    FATTR_MTIME_NOW = 256
    FATTR_KILL_SUIDGID = 2048
    FATTR_TIMES = 16 | 32 | 128 | 256
    FMODE_EXEC = 0x20                    # the kernel's mark on the open of an execve(2)
    FILE_DEVICE_DISK_FILE_SYSTEM = 8
    FOPEN_DIRECT_IO = 1
    FOPEN_KEEP_CACHE = 2
    FOPEN_NOFLUSH = 32
    FOPEN_PARALLEL_DIRECT_WRITES = 64


# --- plans --------------------------------------------------------------------------------------------------------
# (major, principal, detail). The principal operation of a SETATTR depends on what it sets.

cdef enum:
    STEP_NOTICE = 0xFFFFFFFE             # of an is_notice() operation that is not what was asked for

cdef step_t PLANS[64][8]
cdef step_t NOTICED[64][8]               # the same while somebody registers an is_notice() operation (FLT_VOLUME.notices)

cdef void put(step_t *to, list steps):
    cdef int i
    cdef int at = 0
    for major, principal, detail in steps:
        to[at] = step_t(major, principal, detail)
        at += 1
    for i in range(at, 8):
        to[i] = step_t(0, 0, STEP_END)


cdef void plan(int opcode, list steps, tuple before=(), tuple after=()):
    notice = <uint32_t>STEP_NOTICE
    put(&PLANS[opcode][0], steps)
    put(&NOTICED[opcode][0], [(major, 0, notice) for major in before] + steps + [(major, 0, notice) for major in after])

for _opcode in range(64):
    plan(_opcode, [])

plan(LOOKUP, [(IRP_MJ_QUERY_OPEN, 1, 0)])
plan(ACCESS, [(IRP_MJ_QUERY_OPEN, 1, 0)])
plan(GETATTR, [(IRP_MJ_NETWORK_QUERY_OPEN, 1, FileNetworkOpenInformation)])
plan(STATX, [(IRP_MJ_NETWORK_QUERY_OPEN, 1, FileNetworkOpenInformation)])
plan(SETATTR, [(IRP_MJ_CREATE, 0, 0), (IRP_MJ_SET_SECURITY, 0, 0),
               (IRP_MJ_SET_INFORMATION, 0, FileEndOfFileInformation), (IRP_MJ_SET_INFORMATION, 0, FileBasicInformation),
               (IRP_MJ_QUERY_INFORMATION, 0, FileAllInformation), (IRP_MJ_CLEANUP, 0, 0), (IRP_MJ_CLOSE, 0, 0)])
plan(READLINK, [(IRP_MJ_CREATE, 0, 0), (IRP_MJ_FILE_SYSTEM_CONTROL, 1, FSCTL_GET_REPARSE_POINT),
                (IRP_MJ_CLEANUP, 0, 0), (IRP_MJ_CLOSE, 0, 0)])
plan(SYMLINK, [(IRP_MJ_CREATE, 0, 0), (IRP_MJ_FILE_SYSTEM_CONTROL, 1, FSCTL_SET_REPARSE_POINT),
               (IRP_MJ_QUERY_INFORMATION, 0, FileAllInformation), (IRP_MJ_CLEANUP, 0, 0), (IRP_MJ_CLOSE, 0, 0)])
for _opcode, _before in ((MKNOD, (IRP_MJ_CREATE_NAMED_PIPE, IRP_MJ_CREATE_MAILSLOT)), (MKDIR, ())):
    plan(_opcode, [(IRP_MJ_CREATE, 1, 0), (IRP_MJ_QUERY_INFORMATION, 0, FileAllInformation),
                   (IRP_MJ_CLEANUP, 0, 0), (IRP_MJ_CLOSE, 0, 0)], _before)
for _opcode, _what in ((UNLINK, FileDispositionInformation), (RMDIR, FileDispositionInformation),
                       (RENAME, FileRenameInformation), (RENAME2, FileRenameInformationEx)):
    plan(_opcode, [(IRP_MJ_CREATE, 0, 0), (IRP_MJ_SET_INFORMATION, 1, _what), (IRP_MJ_CLEANUP, 0, 0), (IRP_MJ_CLOSE, 0, 0)])
plan(LINK, [(IRP_MJ_CREATE, 0, 0), (IRP_MJ_SET_INFORMATION, 1, FileLinkInformation),
            (IRP_MJ_QUERY_INFORMATION, 0, FileAllInformation), (IRP_MJ_CLEANUP, 0, 0), (IRP_MJ_CLOSE, 0, 0)])
plan(OPEN, [(IRP_MJ_CREATE, 1, 0), (IRP_MJ_FILE_SYSTEM_CONTROL, 0, FSCTL_MANAGE_BYPASS_IO)])
plan(OPENDIR, [(IRP_MJ_CREATE, 1, 0)])
plan(CREATE, [(IRP_MJ_CREATE, 1, 0), (IRP_MJ_QUERY_INFORMATION, 0, FileAllInformation),
              (IRP_MJ_FILE_SYSTEM_CONTROL, 0, FSCTL_MANAGE_BYPASS_IO)])
plan(TMPFILE, [(IRP_MJ_CREATE, 1, 0), (IRP_MJ_QUERY_INFORMATION, 0, FileAllInformation),
               (IRP_MJ_FILE_SYSTEM_CONTROL, 0, FSCTL_MANAGE_BYPASS_IO)])
plan(READ, [(IRP_MJ_READ, 1, 0)], (
    IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE, IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION))
plan(WRITE, [(IRP_MJ_WRITE, 1, 0)], (
    IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE, IRP_MJ_ACQUIRE_FOR_MOD_WRITE), (IRP_MJ_RELEASE_FOR_MOD_WRITE,))
plan(INIT, [(IRP_MJ_VOLUME_MOUNT, 1, 0)])
plan(DESTROY, [(IRP_MJ_VOLUME_DISMOUNT, 1, 0)])
plan(STATFS, [(IRP_MJ_QUERY_VOLUME_INFORMATION, 1, 0)])
plan(RELEASE, [(IRP_MJ_LOCK_CONTROL, 0, IRP_MN_UNLOCK_ALL), (IRP_MJ_CLEANUP, 1, 0), (IRP_MJ_CLOSE, 0, 0)])
plan(FLUSH, [(IRP_MJ_LOCK_CONTROL, 0, IRP_MN_UNLOCK_ALL_BY_KEY)])
plan(LSEEK, [(IRP_MJ_QUERY_INFORMATION, 1, FilePositionInformation)])
# One of the two, as the mode says; the kind of control, as the number says.
plan(FALLOCATE, [(IRP_MJ_SET_INFORMATION, 1, FileAllocationInformation), (IRP_MJ_FILE_SYSTEM_CONTROL, 1, FSCTL_SET_ZERO_DATA)])
plan(IOCTL, [(IRP_MJ_FILE_SYSTEM_CONTROL, 1, 0), (IRP_MJ_DEVICE_CONTROL, 1, 0)])
plan(POLL, [(IRP_MJ_FILE_SYSTEM_CONTROL, 1, FSCTL_STACKFS_POLL)])
plan(COPY_FILE_RANGE, [(IRP_MJ_FILE_SYSTEM_CONTROL, 1, FSCTL_DUPLICATE_EXTENTS_TO_FILE)])
plan(COPY_FILE_RANGE_64, [(IRP_MJ_FILE_SYSTEM_CONTROL, 1, FSCTL_DUPLICATE_EXTENTS_TO_FILE)])
plan(GETLK, [(IRP_MJ_LOCK_CONTROL, 1, IRP_MN_QUERY_LOCK)], (IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE,))
plan(SETLK, [(IRP_MJ_LOCK_CONTROL, 1, IRP_MN_LOCK)], (IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE,))       # or IRP_MN_UNLOCK_SINGLE
plan(SETLKW, [(IRP_MJ_LOCK_CONTROL, 1, IRP_MN_LOCK)])
plan(RELEASEDIR, [(IRP_MJ_CLEANUP, 1, 0), (IRP_MJ_CLOSE, 0, 0)])
plan(FSYNC, [(IRP_MJ_FLUSH_BUFFERS, 1, 0)], (IRP_MJ_ACQUIRE_FOR_CC_FLUSH,), (IRP_MJ_RELEASE_FOR_CC_FLUSH,))
plan(FSYNCDIR, [(IRP_MJ_FLUSH_BUFFERS, 1, 0)])
plan(READDIR, [(IRP_MJ_DIRECTORY_CONTROL, 1, 0)])
plan(READDIRPLUS, [(IRP_MJ_DIRECTORY_CONTROL, 1, 0)])
for _opcode, _major in ((GETXATTR, IRP_MJ_QUERY_EA), (LISTXATTR, IRP_MJ_QUERY_EA),
                        (SETXATTR, IRP_MJ_SET_EA), (REMOVEXATTR, IRP_MJ_SET_EA)):
    plan(_opcode, [(IRP_MJ_CREATE, 0, 0), (_major, 1, 0), (IRP_MJ_CLEANUP, 0, 0), (IRP_MJ_CLOSE, 0, 0)])


# What an open that has failed behind its CREATE still owes those who have seen it.
cdef step_t CLOSING[3]
CLOSING[0] = step_t(IRP_MJ_CLEANUP, 0, 0)
CLOSING[1] = step_t(IRP_MJ_CLOSE, 0, 0)
CLOSING[2] = step_t(0, 0, STEP_END)

# What LOOKUP, ACCESS, GETATTR and STATX become when their query-open is refused as fast I/O.
cdef step_t SLOW_QUERY[5]
SLOW_QUERY[0] = step_t(IRP_MJ_CREATE, 0, 0)
SLOW_QUERY[1] = step_t(IRP_MJ_QUERY_INFORMATION, 1, FileNetworkOpenInformation)
SLOW_QUERY[2] = step_t(IRP_MJ_CLEANUP, 0, 0)
SLOW_QUERY[3] = step_t(IRP_MJ_CLOSE, 0, 0)
SLOW_QUERY[4] = step_t(0, 0, STEP_END)


# --- requests and their pool --------------------------------------------------------------------------------------

cdef enum:
    POOLED = 64

cdef pthread_mutex_t pool_mutex
cdef vfs_request_t *pool = NULL
cdef int pool_count = 0
pthread_mutex_init(&pool_mutex, NULL)


cdef vfs_request_t *request_new(FLT_VOLUME *volume) noexcept nogil:
    global pool, pool_count
    cdef vfs_request_t *request
    pthread_mutex_lock(&pool_mutex)
    request = pool
    if request is not NULL:
        pool = request.next
        pool_count -= 1
    pthread_mutex_unlock(&pool_mutex)
    if request is NULL:
        request = <vfs_request_t *>malloc(sizeof(vfs_request_t))
        if request is NULL:
            return NULL
    request_reset(request, volume)
    return request


cdef void request_reset(vfs_request_t *request, FLT_VOLUME *volume) noexcept nogil:
    memset(request, 0, sizeof(vfs_request_t) - sizeof(request.operation))
    request.operation.state = OPERATION_GOING_DOWN
    request.operation.list = NULL
    request.operation.keep = NULL
    request.operation.buffer_owner = NULL
    request.operation.buffer_read_only = 0
    request.volume = volume
    request.who.group = -1


cdef void request_leave_reader(vfs_request_t *request) noexcept nogil:
    request.announce_wait = request.operation.announce_wait = NULL
    request.reader = NULL


cdef void request_free(vfs_request_t *request) noexcept nogil:
    global pool, pool_count
    if request.message is not NULL or request.answer is not NULL or request.listing is not NULL:
        free(request.message)
        free(request.answer)
        free(request.listing)
    pthread_mutex_lock(&pool_mutex)
    if pool_count < POOLED:
        request.next = pool
        pool = request
        pool_count += 1
        request = NULL
    pthread_mutex_unlock(&pool_mutex)
    free(request)


# --- preparing and finishing --------------------------------------------------------------------------------------

cdef inline backing_t *backing_of(const vfs_request_t *request) noexcept nogil:
    return <backing_t *>request.volume.backing


cdef int by_handle(vfs_request_t *request) noexcept nogil:
    """The request goes by an open file. A RELEASE ends its number at once: it can be released once."""
    if request.initiator is not NULL:
        request.file = request.target
        return 0
    if request.opcode == RELEASE or request.opcode == RELEASEDIR:
        request.handle = handle_take(backing_of(request).handles, request.arguments.fh)
    else:
        request.handle = handle_get(backing_of(request).handles, request.arguments.fh)
    if request.handle is NULL:
        return EBADF
    request.file = &request.handle.file
    return 0


cdef int by_node(vfs_request_t *request) noexcept nogil:
    """The request goes by inode."""
    request.node = node_get(backing_of(request).nodes, request.nodeid)
    if request.node is NULL:
        return ENOENT
    request.synthesised.Node = request.node
    return 0


cdef int by_volume(vfs_request_t *request) noexcept nogil:
    """What no program asked for: about the volume, or, injected, about a file."""
    if request.opcode == INJECTED:
        if request.injected[0].principal == 0:
            return 0                     # nothing at all
        request.plan = request.injected
        if request.arguments.fh:
            return by_handle(request)
        if request.nodeid != ROOT_ID:
            return by_node(request)
    request.node = request.synthesised.Node = node_get(backing_of(request).nodes, ROOT_ID)
    request.synthesised.Flags |= FO_VOLUME_OPEN | FO_DIRECTORY
    return 0 if request.node is not NULL else ENOENT


cdef int by_name(vfs_request_t *request) noexcept nogil:
    """The request goes by a name in a directory."""
    request.directory = node_get(backing_of(request).nodes, request.nodeid)
    if request.directory is NULL:
        return ENOENT
    if node_type(request.directory) != S_IFDIR:
        return ENOTDIR
    request.synthesised.Directory = request.directory
    return 0


cdef int new_handle(vfs_request_t *request) noexcept nogil:
    request.handle = handle_new(backing_of(request).handles)
    if request.handle is NULL:
        return ENOMEM
    request.file = &request.handle.file
    request.file.OpenFlags = request.arguments.flags
    return 0


cdef void remember_name(vfs_request_t *request, FILE_OBJECT *file) noexcept nogil:
    """An open file, or a link's source, keeps the name it was reached by: its inode may have, or get, several."""
    cdef char name[256]
    cdef node_t *parent
    cdef uint16_t length = name_of(backing_of(request).nodes, file.Node, 0, name, &parent)
    if length == 0:
        return
    file.Name = <char *>malloc(length)
    if file.Name is NULL:
        node_put(backing_of(request).nodes, parent)
        return
    memcpy(file.Name, name, length)
    file.NameLength = length
    file.NameDirectory = parent          # its reference is dropped with the file object


cdef int prepare(vfs_request_t *request) noexcept nogil:
    """Finds what the request is about. A positive errno, or 0."""
    cdef uint32_t opcode = request.opcode
    cdef int error = 0
    request.synthesised.fd = -1
    request.synthesised.Flags = FO_SYNTHESISED
    request.file = &request.synthesised
    request.plan = &PLANS[opcode if opcode < 64 else 0][0]
    if load_int(&request.volume.notices):
        request.plan = &NOTICED[opcode if opcode < 64 else 0][0]
    if opcode == INJECTED or opcode == INIT or opcode == DESTROY:
        return by_volume(request)
    if request.initiator is not NULL:
        request.fast_io_refused = 1          # what a filter starts is an IRP (B4.2)
        if opcode == LOOKUP:
            request.plan = SLOW_QUERY
    if opcode == LOOKUP or opcode == UNLINK or opcode == RMDIR or opcode == SYMLINK or opcode == MKNOD or opcode == MKDIR:
        return by_name(request)
    if opcode == READ or opcode == WRITE or opcode == FSYNC or opcode == FSYNCDIR or opcode == RELEASE or \
            opcode == RELEASEDIR or opcode == READDIR or opcode == READDIRPLUS or opcode == FLUSH or opcode == LSEEK or \
            opcode == FALLOCATE or opcode == IOCTL or opcode == POLL or opcode == GETLK or opcode == SETLK or opcode == SETLKW:
        if opcode == SETLK or opcode == SETLKW:
            request_expect_interrupt(request)
        return by_handle(request) if opcode != FALLOCATE or extent_mode_known(request.arguments.mode) else EOPNOTSUPP
    if opcode == COPY_FILE_RANGE or opcode == COPY_FILE_RANGE_64:
        request.source = handle_get(backing_of(request).handles, request.arguments.fh)
        request.arguments.fh = request.arguments.fh2       # the request goes by its target
        if opcode == COPY_FILE_RANGE:    # its answer has 32 bits
            request.arguments.size = min(request.arguments.size, <uint64_t>0x7FFFF000)
        error = by_handle(request)
        if error == 0 and request.arguments.flags:
            return EINVAL
        return error if error or request.source is not NULL else EBADF
    if opcode == RENAME or opcode == RENAME2 or opcode == LINK:
        if opcode == LINK:               # nodeid: the new directory; nodeid2: the inode that gets one more name
            request.directory2 = node_get(backing_of(request).nodes, request.nodeid)
            request.node = node_get(backing_of(request).nodes, request.arguments.nodeid2)
            request.synthesised.Node = request.node
            if request.node is NULL or request.directory2 is NULL:
                return ENOENT
            remember_name(request, &request.synthesised)
            return 0
        error = by_name(request)
        request.directory2 = node_get(backing_of(request).nodes, request.arguments.nodeid2)
        return error if error or request.directory2 is not NULL else ENOENT
    if opcode == CREATE or opcode == TMPFILE:
        error = new_handle(request)
        if error == 0:
            request.directory = node_get(backing_of(request).nodes, request.nodeid)
            if request.directory is NULL:
                return ENOENT
            request.file.Directory = request.directory
        return error
    if opcode == OPEN or opcode == OPENDIR:
        error = new_handle(request)
        if error == 0:
            error = by_node(request)
        if error == 0:
            request.file.Node = request.node
            if opcode == OPENDIR:
                request.file.Flags = FO_DIRECTORY
        return error
    if (opcode == GETATTR and request.arguments.flags & FUSE_GETATTR_FH) or (
            opcode == STATX and request.arguments.flags & FUSE_GETATTR_FH) or (
            opcode == SETATTR and request.arguments.valid & FATTR_FH):
        error = by_handle(request)
        if error == 0:
            return 0
    return by_node(request)


cdef bint by_path(const vfs_request_t *request) noexcept nogil:
    """True: the plan's CREATE, CLEANUP and CLOSE are synthesised around it."""
    return request.file is &request.synthesised


cdef uint32_t access_of(uint32_t flags) noexcept nogil:
    cdef uint32_t mode = flags & <uint32_t>O_ACCMODE
    cdef uint32_t access = FILE_READ_ATTRIBUTES
    if mode == <uint32_t>O_RDONLY or mode == <uint32_t>O_RDWR:
        access |= FILE_READ_DATA
    if mode == <uint32_t>O_WRONLY or mode == <uint32_t>O_RDWR:
        access |= FILE_APPEND_DATA if flags & <uint32_t>O_APPEND else FILE_WRITE_DATA | FILE_APPEND_DATA
    return access


cdef uint32_t disposition_of(uint32_t flags) noexcept nogil:
    if flags & <uint32_t>O_CREAT:
        if flags & <uint32_t>O_EXCL:
            return FILE_CREATE
        return FILE_OVERWRITE_IF if flags & <uint32_t>O_TRUNC else FILE_OPEN_IF
    return FILE_OVERWRITE if flags & <uint32_t>O_TRUNC else FILE_OPEN


cdef void fill_create(vfs_request_t *request, FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    cdef uint32_t opcode = request.opcode
    cdef uint32_t flags = request.arguments.flags
    p.Parameters.Create.Mode = request.arguments.mode
    p.Parameters.Create.Umask = request.arguments.umask
    if opcode == OPEN or opcode == OPENDIR or opcode == CREATE or opcode == TMPFILE:
        if opcode == TMPFILE:
            flags &= ~<uint32_t>(O_CREAT | O_TRUNC)
            p.Parameters.Create.Mode = (p.Parameters.Create.Mode & 0o7777) | S_IFREG
        elif opcode == CREATE:
            flags |= <uint32_t>O_CREAT
            p.Parameters.Create.Mode = (p.Parameters.Create.Mode & 0o7777) | S_IFREG
        elif opcode == OPENDIR:
            flags &= ~<uint32_t>(O_CREAT | O_EXCL | O_TRUNC)
        p.Parameters.Create.OpenFlags = flags
        p.Parameters.Create.DesiredAccess = access_of(flags)
        p.Parameters.Create.Options = (<uint32_t>FILE_CREATE if opcode == TMPFILE else disposition_of(flags)) << 24 | (
            FILE_DELETE_ON_CLOSE if opcode == TMPFILE else 0) | (
            FILE_DIRECTORY_FILE if opcode == OPENDIR else FILE_NON_DIRECTORY_FILE) | (
            FILE_NO_INTERMEDIATE_BUFFERING if flags & <uint32_t>O_DIRECT else 0) | (
            FILE_WRITE_THROUGH if flags & <uint32_t>(O_SYNC | O_DSYNC) else 0)
        return
    p.Parameters.Create.Options = FILE_OPEN << 24
    p.Parameters.Create.DesiredAccess = FILE_READ_ATTRIBUTES
    if opcode == MKDIR or opcode == MKNOD or opcode == SYMLINK:
        p.Parameters.Create.Device = request.arguments.rdev
        p.Parameters.Create.Options = <uint32_t>FILE_CREATE << 24
        p.Parameters.Create.DesiredAccess = FILE_WRITE_ATTRIBUTES | FILE_READ_ATTRIBUTES
        if opcode == MKDIR:
            p.Parameters.Create.Options |= FILE_DIRECTORY_FILE
            p.Parameters.Create.Mode = (p.Parameters.Create.Mode & 0o7777) | S_IFDIR
        else:
            p.Parameters.Create.Options |= FILE_NON_DIRECTORY_FILE
        if opcode == SYMLINK:
            p.Parameters.Create.Options |= FILE_OPEN_REPARSE_POINT
            p.Parameters.Create.Mode = S_IFLNK | 0o777
    elif opcode == UNLINK or opcode == RMDIR or opcode == RENAME or opcode == RENAME2:
        p.Parameters.Create.DesiredAccess = DELETE
        if opcode == RMDIR:
            p.Parameters.Create.Options |= FILE_DIRECTORY_FILE
        elif opcode == UNLINK:
            p.Parameters.Create.Options |= FILE_NON_DIRECTORY_FILE | FILE_OPEN_REPARSE_POINT
    elif opcode == LINK:
        p.Parameters.Create.DesiredAccess = FILE_WRITE_ATTRIBUTES
    elif opcode == SETATTR:
        p.Parameters.Create.DesiredAccess = 0
        if request.arguments.valid & (FATTR_MODE | FATTR_KILL_SUIDGID):
            p.Parameters.Create.DesiredAccess |= WRITE_DAC
        if request.arguments.valid & (FATTR_UID | FATTR_GID):
            p.Parameters.Create.DesiredAccess |= WRITE_OWNER
        if request.arguments.valid & FATTR_SIZE:
            p.Parameters.Create.DesiredAccess |= FILE_WRITE_DATA
        if request.arguments.valid & FATTR_TIMES:
            p.Parameters.Create.DesiredAccess |= FILE_WRITE_ATTRIBUTES
    elif opcode == SETXATTR or opcode == REMOVEXATTR:
        p.Parameters.Create.DesiredAccess = FILE_WRITE_EA if is_user_attribute(request) else WRITE_DAC
    elif opcode == GETXATTR or opcode == LISTXATTR:
        p.Parameters.Create.DesiredAccess = FILE_READ_EA if is_user_attribute(request) else READ_CONTROL
    elif opcode == READLINK:
        p.Parameters.Create.Options |= FILE_OPEN_REPARSE_POINT


cdef bint is_user_attribute(const vfs_request_t *request) noexcept nogil:
    return request.name is NULL or strncmp(request.name, b"user.", 5) == 0


cdef bint applies(vfs_request_t *request, const step_t *which) noexcept nogil:
    """Does this step of the plan concern this request?"""
    cdef uint32_t valid = request.arguments.valid
    if request.closing:
        return True
    if request.opcode == SETATTR:
        if which.major == IRP_MJ_SET_SECURITY:
            return valid & (FATTR_MODE | FATTR_UID | FATTR_GID) or (valid & FATTR_KILL_SUIDGID and not valid & FATTR_SIZE)
        if which.major == IRP_MJ_SET_INFORMATION:
            return valid & (FATTR_SIZE if which.detail == FileEndOfFileInformation else FATTR_TIMES)
    if request.opcode == RELEASE or request.opcode == RELEASEDIR:
        return which.major != IRP_MJ_LOCK_CONTROL or load_bits(&request.file.Flags) & FO_LOCKED != 0
    if request.opcode == FLUSH:
        return load_bits(&request.file.Flags) & FO_LOCKED or locks_held(
            backing_of(request).locks, request.file.Node, request.arguments.lock_owner)
    if request.opcode == FALLOCATE:
        return (which.major == IRP_MJ_FILE_SYSTEM_CONTROL) == extent_mode_zeroes(request.arguments.mode)
    if request.opcode == IOCTL:
        return (which.major == IRP_MJ_FILE_SYSTEM_CONTROL) == is_file_control(request.arguments.command)
    if request.opcode == POLL and not operation_listed(request.volume, which.major):
        request.length = POLL_ALWAYS_READY
        return False
    if which.detail == FSCTL_MANAGE_BYPASS_IO and which.major == IRP_MJ_FILE_SYSTEM_CONTROL:
        return request.volume.lists[which.major] is not NULL and may_be_bypassed(request)
    if which.major == IRP_MJ_QUERY_INFORMATION and request.initiator is not NULL and request.opcode != LOOKUP:
        return False                         # the attributes that the kernel is told with an entry
    if which.major == IRP_MJ_CREATE:
        if not by_path(request):
            return (request.opcode == OPEN or request.opcode == OPENDIR or request.opcode == CREATE
                    or request.opcode == TMPFILE)
        # Nothing for the base to do, and nobody else wants to know: as if it had been done.
        if not operation_listed(request.volume, IRP_MJ_CREATE) and request.opcode != MKDIR and request.opcode != MKNOD and \
                request.opcode != LOOKUP:
            request.opened = 1
            request.synthesised.Flags |= FO_CREATED
            if request.directory is not NULL and operation_listed(request.volume, IRP_MJ_SET_INFORMATION):
                request.node = request.synthesised.Node = name_holder(
                    backing_of(request).nodes, request.directory, request.name, request.name_length)
            return False
    if which.major == IRP_MJ_CLEANUP or which.major == IRP_MJ_CLOSE:
        return request.opened and by_path(request) and operation_listed(request.volume, which.major)
    if which.detail == STEP_NOTICE:
        return notice_applies(request, which.major)
    return True


cdef bint notice_applies(vfs_request_t *request, uint8_t major) noexcept nogil:
    """Is this what the operation is there for, and does anybody register it?"""
    cdef uint32_t flags = request.arguments.open_flags
    cdef bint wanted = operation_listed(request.volume, major)
    cdef bint given_back
    if major == IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE:
        if not wanted or request.fast_io_refused:
            return False
        if request.opcode == READ:
            return flags & FUSE_READ_LOCKOWNER and not request.file.OpenFlags & <uint32_t>O_DIRECT and \
                not list_awaits(request.volume, IRP_MJ_READ)
        if request.opcode == WRITE:
            return not flags & FUSE_WRITE_CACHE and not request.file.OpenFlags & <uint32_t>O_DIRECT and \
                not list_awaits(request.volume, IRP_MJ_WRITE)
        return not list_awaits(request.volume, IRP_MJ_LOCK_CONTROL)
    if major == IRP_MJ_CREATE_NAMED_PIPE or major == IRP_MJ_CREATE_MAILSLOT:
        return wanted and request.arguments.mode & S_IFMT == (S_IFIFO if major == IRP_MJ_CREATE_NAMED_PIPE else S_IFSOCK)
    if is_release(major):
        given_back = request.acquired
        request.acquired = 0
        if given_back and major == IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION:
            set_bits(&request.file.Flags, FO_SECTION)
        return given_back and wanted
    if major == IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION:
        if flags & FUSE_READ_LOCKOWNER or load_bits(&request.file.Flags) & FO_SECTION:
            return False
    elif major == IRP_MJ_ACQUIRE_FOR_MOD_WRITE:
        if not flags & FUSE_WRITE_CACHE:
            return False
    request.acquired = not wanted        # else once it has succeeded
    return wanted


cdef bint may_be_bypassed(const vfs_request_t *request) noexcept nogil:
    """An open that only a filter's veto can still keep from being bypassed."""
    return request.on_device and request.file.Node is not NULL and node_type(request.file.Node) == S_IFREG and \
        bypass_possible(backing_of(request).bypass)


cdef bint principal(const vfs_request_t *request, const step_t *which) noexcept nogil:
    cdef uint32_t valid = request.arguments.valid
    if request.opcode != SETATTR:
        return which.principal
    if valid & FATTR_TIMES:              # the last thing it sets
        return which.major == IRP_MJ_SET_INFORMATION and which.detail == FileBasicInformation
    if valid & FATTR_SIZE:
        return which.major == IRP_MJ_SET_INFORMATION and which.detail == FileEndOfFileInformation
    if valid & (FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_KILL_SUIDGID):
        return which.major == IRP_MJ_SET_SECURITY
    return which.major == IRP_MJ_QUERY_INFORMATION


cdef bint offered_as_fast(const vfs_request_t *request, uint8_t major) noexcept nogil:
    """READ and WRITE aside: what may have to wait (SETLKW), and what Windows has no fast entry for (LSEEK), is an IRP."""
    if major == IRP_MJ_QUERY_INFORMATION:
        return request.opcode == GETATTR or request.opcode == STATX
    return major == IRP_MJ_DEVICE_CONTROL or (major == IRP_MJ_LOCK_CONTROL and request.opcode != SETLKW)


cdef bint list_awaits(FLT_VOLUME *volume, uint8_t major) noexcept nogil:
    """The list may be replaced at any moment, so it is looked at with a reference, as an operation does."""
    cdef operation_t op
    cdef bint found
    if not operation_listed(volume, major):
        return False
    operation_begin(&op, volume, major)
    found = awaits(&op)
    operation_end(&op)
    return found


cdef inline bint awaits(const operation_t *op) noexcept nogil:
    """Some callback will keep the operation, which only an IRP's may: no first attempt as fast I/O."""
    return op.list is not NULL and op.list.awaits


cdef bint volume_awaits(FLT_VOLUME *volume, uint32_t opcode) noexcept nogil:
    cdef const step_t *which = &NOTICED[opcode if opcode < 64 else 0][0]
    while which.detail != STEP_END:
        if list_awaits(volume, which.major):
            return True
        which += 1
    if opcode == GETXATTR or opcode == LISTXATTR:
        return list_awaits(volume, IRP_MJ_QUERY_SECURITY)
    if opcode == SETXATTR or opcode == REMOVEXATTR:
        return list_awaits(volume, IRP_MJ_SET_SECURITY)
    return (opcode == GETATTR or opcode == STATX) and list_awaits(volume, IRP_MJ_QUERY_INFORMATION)


cdef void begin(vfs_request_t *request, const step_t *which) noexcept nogil:
    """Starts the operation of a step: its kind, its target, its parameters."""
    cdef operation_t *op = &request.operation
    cdef FLT_IO_PARAMETER_BLOCK *p = &op.current
    cdef uint8_t major = which.major
    cdef uint32_t valid = request.arguments.valid
    cdef PyObject *owner = op.buffer_owner
    cdef int read_only = op.buffer_read_only
    if (request.opcode == GETATTR or request.opcode == STATX) and not by_path(request):
        major = IRP_MJ_QUERY_INFORMATION
    if major == IRP_MJ_QUERY_EA and not is_user_attribute(request):
        major = IRP_MJ_QUERY_SECURITY
    elif major == IRP_MJ_SET_EA and not is_user_attribute(request):
        major = IRP_MJ_SET_SECURITY
    operation_begin(op, request.volume, major)
    op.request = request
    op.buffer_owner = owner
    op.buffer_read_only = read_only
    op.would_block = request.nowait
    if request.initiator is not NULL:
        operation_only_below(op, request.initiator)
        op.data.Flags |= FLTFL_CALLBACK_DATA_GENERATED_IO
        op.data.RequestorMode = 0
    op.announce_wait = request.announce_wait
    op.data.Thread = &request.who
    op.data.RequestNumber = request.unique
    op.data.RequestOpcode = READDIRPLUS if request.within_listing else request.opcode
    op.data.RequestFlags = REQUEST_PRINCIPAL if principal(request, which) and not request.within_listing else 0
    if request.started == 1:
        op.data.RequestFlags |= REQUEST_FIRST
    if major == IRP_MJ_QUERY_OPEN:
        op.data.Flags = FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION
    elif major == IRP_MJ_NETWORK_QUERY_OPEN or (
            not request.fast_io_refused and offered_as_fast(request, major) and not awaits(op)):
        op.data.Flags = FLTFL_CALLBACK_DATA_FAST_IO_OPERATION
    p.TargetFileObject = request.file
    if request.directory is not NULL and request.opcode != TMPFILE:
        p.FileName.Buffer = request.name
        p.FileName.Length = request.name_length
    if major == IRP_MJ_READ or major == IRP_MJ_WRITE:
        p.Parameters.Read.Length = <uint32_t>request.arguments.size
        p.Parameters.Read.ByteOffset = <int64_t>request.arguments.offset
        p.Parameters.Read.Buffer = request.buffer
        p.Parameters.Read.LockOwner = request.arguments.lock_owner
        # FUSE_READ_LOCKOWNER and FUSE_WRITE_LOCKOWNER are one bit: a caller's own transfer. Without it the page cache
        # fills itself (reads), or writes back (writes that say so).
        if major == IRP_MJ_READ and not request.arguments.open_flags & FUSE_READ_LOCKOWNER:
            p.IrpFlags = IRP_PAGING_IO | IRP_NOCACHE
        elif major == IRP_MJ_WRITE and request.arguments.open_flags & FUSE_WRITE_CACHE:
            p.IrpFlags = IRP_PAGING_IO | IRP_NOCACHE
        elif request.file.OpenFlags & <uint32_t>O_DIRECT:
            p.IrpFlags = IRP_NOCACHE
        elif not request.fast_io_refused and not awaits(op):
            op.data.Flags = FLTFL_CALLBACK_DATA_FAST_IO_OPERATION
    elif major == IRP_MJ_QUERY_OPEN or major == IRP_MJ_NETWORK_QUERY_OPEN or major == IRP_MJ_QUERY_INFORMATION:
        p.Parameters.QueryFile.Info = &request.info
        p.Parameters.QueryFile.Length = sizeof(statx_t)
        p.Parameters.QueryFile.FileInformationClass = which.detail
        if which.detail == FilePositionInformation:
            p.Parameters.QueryFile.Info = NULL
            p.Parameters.QueryFile.Length = 0
            p.Parameters.QueryFile.Offset = <int64_t>request.arguments.offset
            p.Parameters.QueryFile.Whence = request.arguments.flags
    elif major == IRP_MJ_CREATE:
        fill_create(request, p)
    elif major == IRP_MJ_SET_INFORMATION:
        p.Parameters.SetFile.FileInformationClass = which.detail
        if which.detail == FileEndOfFileInformation:
            p.Parameters.SetFile.EndOfFile = <int64_t>request.arguments.size
            p.Parameters.SetFile.Flags = valid & FATTR_KILL_SUIDGID
        elif which.detail == FileBasicInformation:
            p.Parameters.SetFile.Flags = valid & FATTR_TIMES
            p.Parameters.SetFile.atime_sec = request.arguments.atime
            p.Parameters.SetFile.atime_nsec = request.arguments.atimensec
            p.Parameters.SetFile.mtime_sec = request.arguments.mtime
            p.Parameters.SetFile.mtime_nsec = request.arguments.mtimensec
        elif which.detail == FileAllocationInformation:
            p.Parameters.SetFile.Flags = request.arguments.mode
            p.Parameters.SetFile.AllocationOffset = <int64_t>request.arguments.offset
            p.Parameters.SetFile.AllocationLength = <int64_t>request.arguments.size
        elif which.detail == FileDispositionInformation:
            p.Parameters.SetFile.Flags = AT_REMOVEDIR if request.opcode == RMDIR else 0
        else:
            p.Parameters.SetFile.Flags = request.arguments.flags
            p.Parameters.SetFile.TargetDirectory = request.directory2
            p.Parameters.SetFile.TargetName.Buffer = request.name2
            p.Parameters.SetFile.TargetName.Length = request.name2_length
    elif major == IRP_MJ_SET_SECURITY and request.opcode == SETATTR:
        p.Parameters.Security.SecurityInformation = (OWNER_SECURITY_INFORMATION if valid & FATTR_UID else 0) | (
            GROUP_SECURITY_INFORMATION if valid & FATTR_GID else 0) | (
            DACL_SECURITY_INFORMATION if valid & (FATTR_MODE | FATTR_KILL_SUIDGID) else 0)
        p.Parameters.Security.Mode = request.arguments.mode
        p.Parameters.Security.KillSetId = not valid & FATTR_MODE
        p.Parameters.Security.Uid = request.arguments.uid
        p.Parameters.Security.Gid = request.arguments.gid
    elif request.opcode == SETXATTR or request.opcode == GETXATTR or request.opcode == LISTXATTR or request.opcode == REMOVEXATTR:
        if major != IRP_MJ_CLEANUP and major != IRP_MJ_CLOSE:
            if major == IRP_MJ_QUERY_SECURITY or major == IRP_MJ_SET_SECURITY:
                p.Parameters.Ea.SecurityInformation = LABEL_SECURITY_INFORMATION
            p.Parameters.Ea.EaName = request.name
            p.Parameters.Ea.Buffer = request.buffer
            p.Parameters.Ea.Length = request.buffer_length
            p.Parameters.Ea.Flags = request.arguments.flags
            p.Parameters.Ea.Remove = request.opcode == REMOVEXATTR
            op.data.Flags |= FLTFL_CALLBACK_DATA_SYSTEM_BUFFER
    elif major == IRP_MJ_FLUSH_BUFFERS:
        p.Parameters.Flush.DataOnly = request.arguments.flags & 1
    elif major == IRP_MJ_DIRECTORY_CONTROL:
        p.MinorFunction = IRP_MN_QUERY_DIRECTORY
        p.Parameters.Directory.Buffer = request.buffer
        p.Parameters.Directory.Length = request.buffer_length
        p.Parameters.Directory.Offset = <int64_t>request.arguments.offset
    elif major == IRP_MJ_QUERY_VOLUME_INFORMATION:
        p.Parameters.Volume.Buffer = request.buffer
        p.Parameters.Volume.Length = request.buffer_length
        p.Parameters.Volume.FsInformationClass = FS_FULL_SIZE
    elif major == IRP_MJ_LOCK_CONTROL:
        fill_lock(request, which, p)
    elif which.detail == STEP_NOTICE or request.opcode == INJECTED or request.opcode == INIT or request.opcode == DESTROY:
        fill_notice(request, op, p)
    elif request.opcode == IOCTL:
        fill_control(request, p)
        if not op.data.Flags & FLTFL_CALLBACK_DATA_FAST_IO_OPERATION:
            op.data.Flags |= FLTFL_CALLBACK_DATA_SYSTEM_BUFFER
    elif request.opcode == POLL:
        p.Parameters.Control.ControlCode = which.detail
        p.Parameters.Control.Flags = request.arguments.events
        p.Parameters.Control.FileOffset = <int64_t>request.arguments.offset
    elif which.detail == FSCTL_SET_ZERO_DATA and major == IRP_MJ_FILE_SYSTEM_CONTROL:
        p.Parameters.Control.ControlCode = which.detail
        p.Parameters.Control.Flags = request.arguments.mode
        p.Parameters.Control.FileOffset = <int64_t>request.arguments.offset
        p.Parameters.Control.ByteCount = <int64_t>request.arguments.size
    elif which.detail == FSCTL_DUPLICATE_EXTENTS_TO_FILE and major == IRP_MJ_FILE_SYSTEM_CONTROL:
        p.Parameters.Control.ControlCode = which.detail
        p.Parameters.Control.SourceFile = &request.source.file
        p.Parameters.Control.SourceFileOffset = <int64_t>request.arguments.offset
        p.Parameters.Control.FileOffset = <int64_t>request.arguments.offset2
        p.Parameters.Control.ByteCount = <int64_t>request.arguments.size
    elif major == IRP_MJ_FILE_SYSTEM_CONTROL:
        p.Parameters.Control.ControlCode = which.detail
        if which.detail == FSCTL_SET_REPARSE_POINT:
            p.Parameters.Control.InputBuffer = <void *>request.name2
            p.Parameters.Control.InputBufferLength = request.name2_length
        else:
            p.Parameters.Control.OutputBuffer = request.buffer
            p.Parameters.Control.OutputBufferLength = request.buffer_length


cdef void fill_control(const vfs_request_t *request, FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    p.Parameters.Control.ControlCode = request.arguments.command
    p.Parameters.Control.InputBuffer = request.input
    p.Parameters.Control.InputBufferLength = request.input_length
    p.Parameters.Control.OutputBuffer = request.buffer
    p.Parameters.Control.OutputBufferLength = request.buffer_length


cdef void fill_notice(vfs_request_t *request, operation_t *op, FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    """What stands beside a request's own operations, and what is injected."""
    cdef uint8_t major = p.MajorFunction
    if major >= IRP_MJ_RELEASE_FOR_CC_FLUSH:
        op.data.Flags = FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION
    elif major >= IRP_MJ_MDL_WRITE_COMPLETE:
        op.data.Flags = FLTFL_CALLBACK_DATA_FAST_IO_OPERATION
    if request.opcode == INJECTED:
        p.MinorFunction = <uint8_t>request.arguments.flags
    if major == IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION:
        p.Parameters.AcquireForSectionSynchronization.SyncType = SyncTypeCreateSection
        p.Parameters.AcquireForSectionSynchronization.PageProtection = page_protection(request.file.OpenFlags)
    elif major == IRP_MJ_ACQUIRE_FOR_MOD_WRITE or major == IRP_MJ_RELEASE_FOR_MOD_WRITE:
        p.Parameters.AcquireForModifiedPageWriter.EndingOffset = <int64_t>(request.arguments.offset + request.arguments.size)
    elif major == IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE:
        p.Parameters.FastIoCheckIfPossible.FileOffset = <int64_t>request.arguments.offset
        p.Parameters.FastIoCheckIfPossible.LockOwner = request.arguments.lock_owner
        p.Parameters.FastIoCheckIfPossible.CheckForReadOperation = request.opcode != WRITE
        p.Parameters.FastIoCheckIfPossible.Length = request.arguments.size
        if request.opcode == GETLK or request.opcode == SETLK:
            p.Parameters.FastIoCheckIfPossible.Length = request.arguments.end - request.arguments.offset + 1
            p.Parameters.FastIoCheckIfPossible.CheckForReadOperation = request.arguments.lock_type != <uint32_t>F_WRLCK
    elif major == IRP_MJ_CREATE_NAMED_PIPE or major == IRP_MJ_CREATE_MAILSLOT:
        fill_create(request, p)
    elif major == IRP_MJ_VOLUME_MOUNT:
        p.Parameters.MountVolume.DeviceType = FILE_DEVICE_DISK_FILE_SYSTEM
    elif request.opcode == INJECTED:
        fill_control(request, p)


cdef uint32_t page_protection(uint32_t flags) noexcept nogil:
    if flags & FMODE_EXEC:
        return PAGE_EXECUTE
    return PAGE_READONLY if flags & <uint32_t>O_ACCMODE == <uint32_t>O_RDONLY else PAGE_READWRITE


cdef void fill_lock(vfs_request_t *request, const step_t *which, FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    cdef uint64_t last = 0x7FFFFFFFFFFFFFFF
    cdef uint32_t type = request.arguments.lock_type
    p.MinorFunction = <uint8_t>which.detail
    p.Parameters.Lock.LockOwner = request.arguments.lock_owner
    p.Parameters.Lock.Length = last + 1
    if which.detail == IRP_MN_UNLOCK_ALL or which.detail == IRP_MN_UNLOCK_ALL_BY_KEY:
        return
    if which.detail == IRP_MN_LOCK and type == <uint32_t>F_UNLCK:
        p.MinorFunction = IRP_MN_UNLOCK_SINGLE
    p.Parameters.Lock.Flock = request.arguments.flags & FUSE_LK_FLOCK
    p.Parameters.Lock.ProcessId = request.arguments.lock_pid
    p.Parameters.Lock.ExclusiveLock = type == <uint32_t>F_WRLCK
    p.Parameters.Lock.FailImmediately = request.opcode != SETLKW
    p.Parameters.Lock.Found = &request.lock
    if not p.Parameters.Lock.Flock:
        p.Parameters.Lock.ByteOffset = <int64_t>request.arguments.offset
        p.Parameters.Lock.Length = request.arguments.end - request.arguments.offset + 1


cdef void settle(vfs_request_t *request, const step_t *which) noexcept nogil:
    """Takes in the outcome of a step's operation."""
    cdef operation_t *op = &request.operation
    cdef NTSTATUS status = op.data.IoStatus.Status
    cdef bint opens = which.major == IRP_MJ_CREATE
    if which.detail == STEP_NOTICE:
        settle_notice(request, which.major, status)
        operation_end(op)
        return
    if opens and op.base_done and not request.file.Flags & FO_FILE_OPEN_CANCELLED:
        request.opened = 1               # even when a post failed it afterwards: it is closed below
    if which.major == IRP_MJ_LOCK_CONTROL and NT_SUCCESS(status) and op.current.MinorFunction == IRP_MN_LOCK:
        set_bits(&request.file.Flags, FO_LOCKED)
    if which.detail == FSCTL_MANAGE_BYPASS_IO and which.major == IRP_MJ_FILE_SYSTEM_CONTROL:
        request.bypass_vetoed = not NT_SUCCESS(status)           # the open itself stands
        operation_end(op)
        return
    if not NT_SUCCESS(status):
        # Locks end with what they are held by, whatever a filter says to that: finish() sees to it.
        if request.failed == 0 and not (which.major == IRP_MJ_LOCK_CONTROL and not which.principal):
            request.failed = status
            if opens:
                request.failed_by = op.failed_by
                if not op.base_done:
                    request.opened = 0
    elif opens and request.file.Flags & FO_FILE_OPEN_CANCELLED:
        request.failed = STATUS_IO_DEVICE_ERROR      # taken back, and then called a success
    elif not believable(request, which.major):
        request.failed = STATUS_IO_DEVICE_ERROR
    elif principal(request, which):
        request.length = 0 if tells_no_length(request) else op.data.IoStatus.Information
    if request.failed_by is not NULL and request.failed_list is NULL:
        request.failed_list = operation_take_list(op)
    operation_end(op)


cdef inline bint tells_no_length(const vfs_request_t *request) noexcept nogil:
    """An FSCTL_ of Windows without an output buffer: Information is what it defines (to which level an oplock was broken)."""
    return request.opcode == IOCTL and request.buffer_length == 0 and is_fsctl(request.arguments.command)


cdef void settle_notice(vfs_request_t *request, uint8_t major, NTSTATUS status) noexcept nogil:
    if major == IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE:
        if not NT_SUCCESS(status):
            request.fast_io_refused = 1
    elif is_release(major):
        pass                             # nobody can refuse it
    elif not NT_SUCCESS(status):
        request.failed = status
    elif major != IRP_MJ_CREATE_NAMED_PIPE and major != IRP_MJ_CREATE_MAILSLOT:
        request.acquired = 1


cdef bint believable(const vfs_request_t *request, uint8_t major) noexcept nogil:
    """A success that a filter made or changed: more bytes than there is room for would be read from elsewhere, and
    an inode that changed its type the kernel would give up for good."""
    cdef uint64_t information = request.operation.data.IoStatus.Information
    cdef const node_t *node = request.found if request.found is not NULL else request.file.Node
    if request.opcode == LSEEK:
        return <int64_t>information >= 0
    if request.opcode == POLL:
        return information <= 0xFFFF
    if request.opcode == COPY_FILE_RANGE or request.opcode == COPY_FILE_RANGE_64:
        return information <= request.arguments.size
    if request.opcode == IOCTL or request.opcode == INJECTED:
        return information <= request.buffer_length or tells_no_length(request)
    if major == IRP_MJ_QUERY_OPEN or major == IRP_MJ_NETWORK_QUERY_OPEN or major == IRP_MJ_QUERY_INFORMATION:
        return node is NULL or (request.info.stx_mode & S_IFMT) == node_type(node)
    if major == IRP_MJ_WRITE:
        return information <= request.arguments.size
    if major == IRP_MJ_READ or major == IRP_MJ_DIRECTORY_CONTROL or request.opcode == READLINK:
        return information <= request.buffer_length
    if major == IRP_MJ_QUERY_EA or major == IRP_MJ_QUERY_SECURITY:
        return request.buffer_length == 0 or information <= request.buffer_length      # 0: how long is it?
    return True


cdef bint restart_as_irp(vfs_request_t *request) noexcept nogil:
    """A filter refused a step as fast I/O: it starts again as an IRP. True: on another lane (DESIGN of lanes: docs/device.md)."""
    cdef operation_t *op = &request.operation
    cdef uint8_t major = op.current.MajorFunction
    operation_end(op)
    request.fast_io_refused = 1
    if request.found is not NULL:            # the refusal came after the base had looked: it will look again
        node_forget(backing_of(request).nodes, node_id(request.found), 1)
        request.found = NULL
    request.info_known = 0
    if major == IRP_MJ_QUERY_OPEN or major == IRP_MJ_NETWORK_QUERY_OPEN:
        request.plan = SLOW_QUERY
        request.step = 0
    # What pyfuse3 has no handler for is done again in place: libfuse would answer ENOSYS, and the kernel would not ask again.
    return request.on_device and major != IRP_MJ_QUERY_OPEN and request.opcode != STATX and request.opcode != IOCTL and \
        request.opcode != GETLK and request.opcode != SETLK


cdef void close_below(vfs_request_t *request) noexcept nogil:
    """An open that has failed though its CREATE reached the base: CLEANUP and CLOSE follow, for the instances below
    the one whose post failed the CREATE, or, if something later failed, for all."""
    request.plan = CLOSING
    request.step = 0
    request.closing = 1
    request.opened = 0


cdef void put_handle(backing_t *backing, handle_t *handle) noexcept nogil:
    """One user less. The last one closes the descriptor and gives back what the open file holds."""
    if not handle_put(backing.handles, handle):
        return
    if contexts_any(&handle.file.Contexts):
        contexts_gone(&handle.file.Contexts)
    if handle.file.fd >= 0:
        close(handle.file.fd)
        handle.file.fd = -1
        if load_bits(&handle.file.Flags) & FO_LOCKED:
            locks_released(backing.locks, handle.file.Node)          # a flock(2) lock ends with its descriptor
        if load_bits(&handle.file.Flags) & FO_COHERENT:
            coherence_released(<coherence_t *>backing.coherence, handle.file.Node, handle.file.OpenFlags)
    if handle.file.Node is not NULL:
        bypass_release(backing.bypass, &handle.file)
        if load_bits(&handle.file.Flags) & FO_OPENED:
            node_put(backing.nodes, handle.file.Node)
    if handle.file.NameDirectory is not NULL:
        node_put(backing.nodes, handle.file.NameDirectory)
    handle.file.Node = NULL
    handle.file.NameDirectory = NULL
    handle_free(backing.handles, handle)


cdef inline bint close_tells(const backing_t *backing, const node_t *node) noexcept nogil:
    """May close(2) of the backing file have an error to report?"""
    return backing.close_tells or node.device != backing.device


cdef void choose_mode(vfs_request_t *request, backing_t *backing) noexcept nogil:
    """How the kernel shall treat an open file: bypassed, past the page cache, or through it."""
    cdef bypass_answer_t mode
    cdef uint32_t flags = request.arguments.flags
    cdef bint keep = request.volume.keep_cache
    if node_type(request.file.Node) == S_IFREG:
        bypass_open(backing.bypass, request.file, request.on_device and not request.bypass_vetoed, &mode)
        request.out_open_flags = mode.open_flags
        request.out_backing_id = mode.backing_id
        if backing.coherence is not NULL and not request.out_open_flags:
            keep = coherence_opened(<coherence_t *>backing.coherence, request.file)
    if not request.out_open_flags and (request.volume.direct_io or flags & <uint32_t>O_DIRECT
                                       or request.file.Flags & FO_UNREADABLE):
        request.out_open_flags = FOPEN_DIRECT_IO
    if not request.out_open_flags and keep:
        request.out_open_flags = FOPEN_KEEP_CACHE
    if request.out_open_flags & FOPEN_DIRECT_IO:
        request.out_open_flags |= FOPEN_PARALLEL_DIRECT_WRITES       # the backing file's own lock orders them
    if not request.volume.locks and (flags & <uint32_t>O_ACCMODE == <uint32_t>O_RDONLY or (
            not request.volume.writeback and not close_tells(backing, request.file.Node))):
        request.out_open_flags |= FOPEN_NOFLUSH                      # no lock ends at its close(2), and nothing can come of it


cdef bint is_bypassed(node_t *node) noexcept nogil:
    return node is not NULL and load_int(<int *>&node.backed_opens) != 0


cdef node_t *subject(const vfs_request_t *request) noexcept nogil:
    """What the attributes that it answers with are of, or what it reads or writes; NULL: nothing."""
    if request.found is not NULL:
        return request.found
    if request.node is not NULL:
        return request.node
    return request.file.Node if request.handle is not NULL and request.file is not NULL else NULL


cdef void note_coherence(vfs_request_t *request, coherence_t *coherence) noexcept nogil:
    """Before it asks for anything that the kernel may keep."""
    cdef node_t *node = subject(request)
    request.begun = coherence_now()
    if node is not NULL:
        request.leased = load_uint(&node.leased)
        request.covered = coherence_covers(coherence, node)


cdef void believe(vfs_request_t *request, coherence_t *coherence) noexcept nogil:
    """How long the kernel may keep what it is answered: for long what will be noticed when it changes."""
    cdef node_t *node = subject(request)
    request.entry_timeout = request.attr_timeout = coherence_timeout(coherence, request.covered, request.begun)
    if node is NULL:
        return
    if node_type(node) == S_IFDIR:
        if not coherence_covers(coherence, node):
            request.attr_timeout = coherence.short_timeout
    elif request.info.stx_nlink > 1:
        request.attr_timeout = coherence.short_timeout           # by another name, in a directory that nobody watches
    if load_uint(&node.leased) == 0 and load_int(<int *>&node.plain_opens):
        request.attr_timeout = 0             # it may be written by somebody who need not ask; the kernel then looks before it reads


cdef int finish(vfs_request_t *request) noexcept nogil:
    """Answers: error or results; gives back what was held."""
    cdef backing_t *backing = backing_of(request)
    cdef uint32_t opcode = request.opcode
    cdef bint opens = opcode == OPEN or opcode == OPENDIR or opcode == CREATE or opcode == TMPFILE
    lock_leave(backing.locks, &request.waiting)
    if request.failed_list is not NULL:
        list_release(request.failed_list)
        request.failed_list = NULL
    if request.unique >> 63 and not request.within_listing:
        holds_end_request(request.volume.holds, request.unique)
    if request.failed and request.error == 0:
        request.error = nt_to_errno(request.failed)
        if opcode == IOCTL and (request.failed == STATUS_INVALID_DEVICE_REQUEST or request.failed == STATUS_NOT_IMPLEMENTED):
            request.error = ENOTTY
        if request.error == 0:
            request.error = EIO
    if request.found is not NULL:
        if request.error:
            node_forget(backing.nodes, node_id(request.found), 1)
        else:
            request.out_nodeid = node_id(request.found)
    if stackfs_flag(&request.volume.filters_names_or_data):
        request.entry_timeout = request.attr_timeout = 0
    else:
        request.entry_timeout = request.volume.entry_timeout
        request.attr_timeout = request.volume.attr_timeout
        if backing.coherence is not NULL:
            believe(request, <coherence_t *>backing.coherence)
        if is_bypassed(request.found if request.found is not NULL else request.node):
            request.attr_timeout = 0             # the kernel does not notice what a store through a mapping changes
    if opens and request.handle is not NULL:
        if request.error:
            put_handle(backing, request.handle)
        else:
            node_hold(backing.nodes, request.file.Node)
            request.file.Flags |= FO_OPENED
            request.file.Directory = NULL
            if opcode == OPEN:
                remember_name(request, request.file)
            if request.initiator is not NULL:    # its own: no number leads to it, and it takes the handle from here
                request.plan = NULL
                drop_nodes(request)
                return 1
            request.out_fh = request.file.fh
            if opcode != OPENDIR:
                choose_mode(request, backing)
                if opcode != OPEN and load_bits(&request.file.Flags) & FO_COHERENT and load_uint(&request.file.Node.leased) == 0:
                    request.attr_timeout = 0
            handle_publish(backing.handles, request.handle)
        request.handle = NULL
    elif request.handle is not NULL:
        if opcode == RELEASE or opcode == RELEASEDIR:
            locks_drop(backing.locks, request.file.Node, request.file.fh, False)
            put_handle(backing, request.handle)
        elif (opcode == READ or opcode == WRITE) and backing.coherence is not NULL and request.initiator is NULL:
            coherence_passed(<coherence_t *>backing.coherence, request.file.Node, request.leased,
                             <int64_t>request.arguments.offset, <int64_t>request.arguments.size)
        elif opcode == FLUSH:
            locks_drop(backing.locks, request.file.Node, request.arguments.lock_owner, True)
            if request.error == 0 and close_tells(backing, request.file.Node):
                request.error = flush_below(request.file.fd)
        put_handle(backing, request.handle)
        request.handle = NULL
    if request.source is not NULL:
        put_handle(backing, request.source)
        request.source = NULL
    if contexts_any(&request.synthesised.Contexts):
        contexts_gone(&request.synthesised.Contexts)
    if request.synthesised.Name is not NULL:
        free(request.synthesised.Name)
        node_put(backing.nodes, request.synthesised.NameDirectory)
        request.synthesised.Name = NULL
    drop_nodes(request)
    request.plan = NULL
    return 1


cdef void drop_nodes(vfs_request_t *request) noexcept nogil:
    cdef backing_t *backing = backing_of(request)
    if request.reparse is not NULL or request.reparsed is not NULL:
        reparse_free(request)
    if request.node is not NULL:
        node_put(backing.nodes, request.node)
        request.node = NULL
    if request.directory is not NULL:
        node_put(backing.nodes, request.directory)
        request.directory = NULL
    if request.directory2 is not NULL:
        node_put(backing.nodes, request.directory2)
        request.directory2 = NULL


cdef void leave_old_list(vfs_request_t *request) noexcept nogil:
    """A lock that waits holds its callback list, and a detach waits until nobody does: the operation ends, cancelled, for
    those who have seen it, and begins again with the list that there is now, unless that is the same one."""
    cdef operation_t *op = &request.operation
    if op.list is not request.volume.lists[op.current.MajorFunction]:
        cancel_operation(op)
        op.begins_again = 2


cdef bint sent_elsewhere(vfs_request_t *request, const step_t *which) noexcept nogil:
    """A filter has completed a CREATE or QUERY_OPEN with STATUS_REPARSE (A6.21). True: the plan begins again, or has failed."""
    cdef NTSTATUS status
    if request.operation.base_done or request.failed or not (which.major == IRP_MJ_CREATE or which.major == IRP_MJ_QUERY_OPEN):
        return False
    operation_end(&request.operation)
    status = request_reparse(request)
    if status != STATUS_SUCCESS:
        request.failed = status
    request.step = 0 if status == STATUS_SUCCESS else request.step + 1
    return True


cdef void cancel_operation(operation_t *op) noexcept nogil:
    """What stopped before the base does not reach it: the post callbacks that are owed are called."""
    op.data.IoStatus.Status = STATUS_CANCELLED
    op.data.IoStatus.Information = 0
    op.state = OPERATION_GOING_UP


cdef bint is_held(const operation_t *op) noexcept nogil:
    return op.state == OPERATION_PENDED_PRE or op.state == OPERATION_PENDED_POST


cdef bint request_is_held(vfs_request_t *request) noexcept nogil:
    return is_held(&request.operation if request.inner is NULL else &request.inner.operation)


cdef bint go_on(vfs_request_t *request) noexcept nogil:
    """What stopped before may run again. False: the filter that holds it has not completed it yet."""
    request.operation.would_block = request.nowait
    if is_held(&request.operation):
        if not hold_is_completed(&request.operation):
            return False
        operation_resume(&request.operation)
    elif request.waiting.wanted:             # for a lock: try again
        request.waiting.wanted = 0
        if exchange_int(&request.waiting.restart, 0):
            leave_old_list(request)
    return True


cdef int request_run(vfs_request_t *request) noexcept nogil:
    cdef const step_t *which
    if request.plan is NULL:
        if request.unique == 0:
            request.unique = stackfs_next(&request.volume.next_request) | <uint64_t>1 << 63
        request.error = prepare(request)
        if request.error:
            return finish(request)
        if backing_of(request).coherence is not NULL:
            note_coherence(request, <coherence_t *>backing_of(request).coherence)
    while True:
        which = &request.plan[request.step]
        if not request.resumable:
            if request.failed and request.opened and (request.failed_by is not NULL or not by_path(request)):
                close_below(request)
                which = request.plan
            if which.detail == STEP_END:
                return finish(request)
            if (request.failed and not is_release(which.major)) or not applies(request, which):
                request.step += 1
                continue
            request.started += 1
            begin(request, which)
            if request.closing:
                operation_only_below(&request.operation, request.failed_by)
            request.resumable = 1
        elif not go_on(request):
            return 0
        if operation_run(&request.operation) == 0:
            return 0
        request.resumable = 0
        if request.operation.data.IoStatus.Status == STATUS_REPARSE and sent_elsewhere(request, which):
            continue
        if request.operation.begins_again and request.opcode != INJECTED:      # which has no other way
            if request.operation.begins_again == 2:
                operation_end(&request.operation)
            elif restart_as_irp(request):
                return REQUEST_TO_IRP_LANE
            continue
        settle(request, which)
        request.step += 1


cdef void request_wait(vfs_request_t *request) noexcept nogil:
    if request_is_held(request):
        operation_wait(&request.operation if request.inner is NULL else &request.inner.operation)
    elif request.waiting.wanted:
        lock_wait(backing_of(request).locks, &request.waiting)
    else:
        operation_base(&request.operation)


cdef int request_park(vfs_request_t *request, resume_function resumed) noexcept nogil:
    if request_is_held(request):
        return operation_park(&request.operation if request.inner is NULL else &request.inner.operation, resumed)
    return lock_park(backing_of(request).locks, &request.waiting)


cdef int volume_interrupt(FLT_VOLUME *volume, uint64_t unique) noexcept nogil:
    cdef bint waits = lock_interrupt((<backing_t *>volume.backing).locks, unique)
    cdef bint held
    if unique >> 63:                     # made by hand: nobody else remembers that it was interrupted
        held = holds_interrupt(volume.holds, unique)
    else:
        held = holds_cancel(volume.holds, unique, NULL) != 0
    return waits or held


cdef void volume_cancel_locks(FLT_VOLUME *volume) noexcept nogil:
    locks_cancel((<backing_t *>volume.backing).locks)


cdef uint32_t volume_retry_locks(FLT_VOLUME *volume) noexcept nogil:
    return locks_retry((<backing_t *>volume.backing).locks)


cdef void request_abandon(vfs_request_t *request) noexcept nogil:
    """Ends a request that stopped before the base: the post callbacks that are owed are called, and what it holds is
    given back, above all its callback list, which a detach waits for."""
    request.nowait = 0
    lock_leave(backing_of(request).locks, &request.waiting)
    if not request.resumable:
        return
    store_int(&request.waiting.restart, 0)
    if request.operation.state == OPERATION_AT_BASE:
        cancel_operation(&request.operation)
    while request_run(request) == 0:     # a post callback holds it
        request_wait(request)


cdef void request_expect_interrupt(vfs_request_t *request) noexcept nogil:
    lock_enter(backing_of(request).locks, &request.waiting, request.unique)


cdef int flush_below(int fd) noexcept nogil:
    """At each close(2): lets the backing filesystem report what it kept back (network filesystems do)."""
    cdef int copy = dup(fd)
    return errno if copy >= 0 and close(copy) != 0 else 0
