"""VFS requests as operations of the stack (docs/semantics.md, D).

Every request has a plan: the operations it consists of, in order. What Windows does by opening, setting, cleaning up
and closing is shown to the filters just so, under one request number, though the base makes one system call for it. A
step that fails ends the plan, but for the CLEANUP and CLOSE that an open which has succeeded is owed. An operation
nobody registered, and for which the base has nothing to do, costs nothing.

request_run() is called by one thread at a time and never waits where the request may not (nowait), nor ever for a
filter: it stops, and goes on after request_wait(), or when whoever was waited for says so (request_park()). Volume, and
Request, the Python face for the IRP lane and for driving the stack without a mount, are used under the GIL.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.errno cimport EBADF, EINVAL, EIO, ENOENT, ENOMEM, ENOTDIR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strncmp

from stackfs.cext.backing cimport backing_free, backing_new, backing_perform, backing_refuse, backing_t
from stackfs.cext.includes.pthread cimport pthread_cond_broadcast, pthread_cond_wait, pthread_self
from stackfs.cext.includes.pthread cimport pthread_mutex_lock as mutex_lock, pthread_mutex_unlock as mutex_unlock
from stackfs.cext.pending cimport (
    hold_is_completed, holds_cancel, holds_count, holds_end_request, holds_interrupt, holds_leave, holds_settle, holds_t,
    operation_park, operation_wait)
from stackfs.cext.threads cimport exchange_int, load_bits, load_int, load_uint, set_bits, store_int
from stackfs.cext.bypass cimport bypass_answer_t, bypass_open, bypass_possible, bypass_release, bypass_t
from stackfs.cext.callback_data cimport (
    DACL_SECURITY_INFORMATION, DELETE, FILE_APPEND_DATA, FILE_CREATE, FILE_DELETE_ON_CLOSE, FILE_DIRECTORY_FILE,
    FILE_NON_DIRECTORY_FILE, FILE_NO_INTERMEDIATE_BUFFERING, FILE_OPEN, FILE_OPEN_IF, FILE_OPEN_REPARSE_POINT,
    FILE_OVERWRITE, FILE_OVERWRITE_IF, FILE_READ_ATTRIBUTES, FILE_READ_DATA, FILE_READ_EA, FILE_WRITE_ATTRIBUTES,
    FILE_WRITE_DATA, FILE_WRITE_EA, FILE_WRITE_THROUGH, FLTFL_CALLBACK_DATA_FAST_IO_OPERATION,
    FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION, FLTFL_CALLBACK_DATA_GENERATED_IO,
    FLTFL_CALLBACK_DATA_SYSTEM_BUFFER, FLT_IO_PARAMETER_BLOCK, FO_COHERENT, FO_CREATED, FO_DIRECTORY,
    FO_FILE_OPEN_CANCELLED, FO_LOCKED, FO_OPENED, FO_SECTION,
    FO_SYNTHESISED, FO_UNREADABLE, FO_VOLUME_OPEN, FSCTL_DISMOUNT_VOLUME, FSCTL_DUPLICATE_EXTENTS_TO_FILE,
    FSCTL_GET_REPARSE_POINT, FSCTL_LOCK_VOLUME, FSCTL_MANAGE_BYPASS_IO, FSCTL_STACKFS_POLL, FSCTL_UNLOCK_VOLUME,
    FSCTL_SET_REPARSE_POINT, FSCTL_SET_ZERO_DATA, GROUP_SECURITY_INFORMATION,
    IRP_MJ_ACQUIRE_FOR_CC_FLUSH, IRP_MJ_ACQUIRE_FOR_MOD_WRITE, IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_CLEANUP,
    IRP_MJ_CLOSE, IRP_MJ_CREATE_MAILSLOT, IRP_MJ_CREATE_NAMED_PIPE, IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE,
    IRP_MJ_INTERNAL_DEVICE_CONTROL, IRP_MJ_MDL_READ, IRP_MJ_MDL_READ_COMPLETE, IRP_MJ_MDL_WRITE_COMPLETE, IRP_MJ_PNP,
    IRP_MJ_PREPARE_MDL_WRITE, IRP_MJ_QUERY_QUOTA, IRP_MJ_RELEASE_FOR_CC_FLUSH, IRP_MJ_RELEASE_FOR_MOD_WRITE,
    IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_SET_QUOTA, IRP_MJ_SET_VOLUME_INFORMATION, IRP_MJ_SHUTDOWN,
    IRP_MJ_SYSTEM_CONTROL, IRP_MJ_VOLUME_DISMOUNT, IRP_MJ_VOLUME_MOUNT,
    IRP_MJ_CREATE, IRP_MJ_DEVICE_CONTROL, IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_LOCK_CONTROL, IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_INFORMATION, IRP_MJ_QUERY_OPEN,
    IRP_MJ_QUERY_SECURITY, IRP_MJ_QUERY_VOLUME_INFORMATION, IRP_MJ_READ, IRP_MJ_SET_EA, IRP_MJ_SET_INFORMATION,
    IRP_MJ_SET_SECURITY, IRP_MJ_WRITE, IRP_MN_LOCK, IRP_MN_QUERY_DIRECTORY, IRP_MN_QUERY_LOCK, IRP_MN_UNLOCK_ALL, IRP_MN_UNLOCK_ALL_BY_KEY,
    IRP_MN_UNLOCK_SINGLE, IRP_NOCACHE, IRP_PAGING_IO, LABEL_SECURITY_INFORMATION, OWNER_SECURITY_INFORMATION,
    PAGE_EXECUTE, PAGE_READONLY, PAGE_READWRITE, SyncTypeCreateSection,
    READ_CONTROL, REQUEST_FIRST, REQUEST_PRINCIPAL, WRITE_DAC, WRITE_OWNER, FileAllInformation,
    FileAllocationInformation, FileBasicInformation, FileDispositionInformation, FileEndOfFileInformation,
    FileLinkInformation, FileNetworkOpenInformation, FilePositionInformation, FileRenameInformation,
    FileRenameInformationEx, lock_range_t, statx_timestamp)
from stackfs.cext.coherence cimport (
    coherence_covers, coherence_now, coherence_opened, coherence_passed, coherence_released, coherence_stop, coherence_t,
    coherence_timeout)
from stackfs.cext.contexts cimport contexts_any, contexts_gone
from stackfs.cext.extents cimport extent_mode_known, extent_mode_zeroes
from stackfs.cext.file_flags cimport is_file_control, is_fsctl
from stackfs.cext.listing cimport listing_run, listing_t
from stackfs.cext.handles cimport handle_free, handle_get, handle_new, handle_publish, handle_put, handle_take
from stackfs.cext.inode_table cimport (
    ROOT_ID, inode_table_t, name_holder, name_of, name_t, node_close, node_forget, node_get, node_hold, node_id, node_open, node_put,
    node_type)
from stackfs.cext.locks cimport (
    lock_enter, lock_interrupt, lock_leave, lock_park, lock_wait, lock_wait_t, locks_cancel, locks_drop, locks_held,
    locks_released, locks_restart, locks_retry)
from stackfs.cext.ntstatus cimport (
    NTSTATUS, NT_SUCCESS, STATUS_CANCELLED, STATUS_INVALID_DEVICE_REQUEST, STATUS_IO_DEVICE_ERROR, STATUS_NOT_IMPLEMENTED,
    STATUS_REPARSE, STATUS_SUCCESS, nt_to_errno)
from stackfs.cext.notices cimport volume_wake_poll
from stackfs.cext.reparse cimport reparse_free, request_reparse
from stackfs.cext.retarget cimport retarget_is_legal, retarget_run
from stackfs.cext.stack cimport (
    OPERATION_AT_BASE, OPERATION_GOING_DOWN, OPERATION_GOING_UP, OPERATION_PENDED_POST, OPERATION_PENDED_PRE, InstanceEntry,
    Stack, is_release, list_release, operation_base, operation_begin, operation_end, operation_listed, operation_only_below,
    operation_resume, operation_run, operation_take_list, resume_function)

from stackfs.cext.callback_data import major_name


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <sys/statfs.h>
    #include <sys/statvfs.h>
    #include <sys/sysmacros.h>
    #include <unistd.h>
    static inline uint64_t stackfs_next(uint64_t *counter) { return __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED); }
    static inline int stackfs_flag(int *what) { return __atomic_load_n(what, __ATOMIC_RELAXED); }
    """
    uint64_t stackfs_next(uint64_t *counter) nogil
    int stackfs_flag(int *what) nogil
    int O_ACCMODE, O_RDONLY, O_WRONLY, O_RDWR, O_APPEND, O_CREAT, O_EXCL, O_TRUNC, O_DIRECT, O_SYNC, O_DSYNC, O_DIRECTORY
    int AT_REMOVEDIR, EOPNOTSUPP, ENOTTY, F_UNLCK, F_WRLCK
    unsigned S_IFMT, S_IFDIR, S_IFLNK, S_IFREG, S_IFIFO, S_IFSOCK
    ctypedef struct c_fsid "fsid_t":
        pass
    struct c_statfs "statfs":
        long f_type, f_flags
        c_fsid f_fsid
    int fstatfs(int fd, c_statfs *result) nogil
    int ST_RDONLY
    struct c_statvfs "statvfs":
        unsigned long f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_namemax
    uint64_t makedev(unsigned major, unsigned minor) nogil
    int dup(int fd) nogil
    int close(int fd) nogil

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *text, size_t most)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_equal(pthread_t one, pthread_t other)

# Requests as FUSE numbers them.
cdef enum:
    INJECTED = 0                         # no VFS request: an operation by hand
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
    STEP_END = 0xFFFFFFFF                # detail of the step behind the last one
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
    if flags & <uint32_t>O_ACCMODE == <uint32_t>O_RDONLY and not request.volume.locks:
        request.out_open_flags |= FOPEN_NOFLUSH                      # nothing of it can be kept back, no lock ends


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
            if request.error == 0:
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


# --- the Python faces ---------------------------------------------------------------------------------------------

INJECTABLE = frozenset({
    IRP_MJ_SET_VOLUME_INFORMATION, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_INTERNAL_DEVICE_CONTROL, IRP_MJ_SHUTDOWN,
    IRP_MJ_SYSTEM_CONTROL, IRP_MJ_QUERY_QUOTA, IRP_MJ_SET_QUOTA, IRP_MJ_PNP, IRP_MJ_VOLUME_DISMOUNT, IRP_MJ_VOLUME_MOUNT,
    IRP_MJ_MDL_WRITE_COMPLETE, IRP_MJ_PREPARE_MDL_WRITE, IRP_MJ_MDL_READ_COMPLETE, IRP_MJ_MDL_READ,
    IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE, IRP_MJ_RELEASE_FOR_CC_FLUSH, IRP_MJ_ACQUIRE_FOR_CC_FLUSH, IRP_MJ_RELEASE_FOR_MOD_WRITE,
    IRP_MJ_ACQUIRE_FOR_MOD_WRITE, IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION})
"""What Volume.inject() makes: what no VFS request brings, or not as something that it asks for."""
cdef object VOLUME_CONTROLS = (FSCTL_LOCK_VOLUME, FSCTL_UNLOCK_VOLUME, FSCTL_DISMOUNT_VOLUME)


class VfsError(OSError):
    """A request that failed: errno is what a program would see."""


cdef class Volume:
    """A backing directory with a filter stack over it, mounted or not.

    root_fd: an O_PATH descriptor of the backing directory, owned from here on. Time-outs are seconds, and count while
    every instance's answers are cacheable (Stack.names_or_data_filtered). direct_io: no page cache above the stack.
    keep_cache: nothing else changes the backing directory, so an open leaves the page cache as it is. writeback: writes
    stay in it until it writes them back.
    check_permissions (as root): the base acts with each caller's rights; time-outs have to be 0 then.
    """

    def __init__(self, int root_fd, *, double entry_timeout=1.0, double attr_timeout=1.0, bint direct_io=False,
                 bint keep_cache=False, bint writeback=False, unsigned descriptor_limit=4096,
                 bint check_permissions=False):
        cdef backing_t *backing
        self.stack = Stack()
        with nogil:
            backing = backing_new(root_fd, descriptor_limit, check_permissions)
        if backing is NULL:
            raise OSError(errno, "cannot use the backing directory")
        self.stack.volume.backing = backing
        self.stack.volume.nodes = backing.nodes
        self.stack.volume.base = backing_perform
        self.stack.volume.other_base = retarget_run
        self.stack.volume.target_is_legal = retarget_is_legal
        self.stack.volume.entry_timeout = entry_timeout
        self.stack.volume.attr_timeout = attr_timeout
        self.stack.volume.direct_io = direct_io
        self.stack.volume.keep_cache = keep_cache
        self.stack.volume.writeback = writeback

    def close(self):
        """Close every descriptor. No operation may be under way, none may be held, and none may begin."""
        cdef backing_t *backing = <backing_t *>self.stack.volume.backing
        if backing is not NULL:
            if self.stack.volume.holds.count:
                raise RuntimeError("filters hold operations of this volume")
            if backing.coherence is not NULL:
                with nogil:
                    coherence_stop(<coherence_t *>backing.coherence)
            if self.stack.volume.close_sections is not NULL:
                with nogil:
                    self.stack.volume.close_sections(&self.stack.volume)
            if self.stack.volume.close_files is not NULL:
                with nogil:
                    self.stack.volume.close_files(&self.stack.volume)
            with nogil:
                holds_settle(self.stack.volume.holds)
            self.stack.volume.backing = NULL
            self.stack.volume.nodes = NULL
            self.stack.close_contexts()
            with nogil:
                backing_free(backing)

    def __dealloc__(self):
        if self.stack is not None:
            self.close()

    cdef backing_t *open_backing(self) except NULL:
        if self.stack.volume.backing is NULL:
            raise ValueError("the volume is closed")
        return <backing_t *>self.stack.volume.backing

    @property
    def open_files(self):
        """Handles the kernel holds."""
        return self.open_backing().handles.open_count

    @property
    def filesystem(self):
        """The backing filesystem: (type as statfs(2) numbers it, its id, read only?, inode of the backing directory)."""
        cdef backing_t *backing = self.open_backing()
        cdef c_statfs result
        cdef int fd = node_open(backing.nodes, backing.nodes.root)
        cdef int failed = fd
        if fd >= 0:
            failed = -errno if fstatfs(fd, &result) != 0 else 0
            node_close(backing.nodes, backing.nodes.root)
        if failed:
            raise OSError(-failed, "cannot look at the backing directory")
        return (result.f_type & 0xFFFFFFFF, (<char *>&result.f_fsid)[:8], result.f_flags & ST_RDONLY != 0,
                backing.nodes.root.inode)

    @property
    def known_inodes(self):
        """Inodes the kernel knows, the root included."""
        return self.open_backing().nodes.node_count

    @property
    def cached_descriptors(self):
        """O_PATH descriptors kept for reuse."""
        return self.open_backing().nodes.descriptors

    @property
    def awaits(self):
        """Is some callback of an attached instance `async def`?"""
        return stackfs_flag(&self.stack.volume.awaits) != 0

    @property
    def bypassed_opens(self):
        """Open files whose reads and writes no filter sees."""
        return self.open_backing().bypass.bypassed

    def allow_bypass(self, bint allowed, *, bint unless_bypassed=False):
        """May opens that begin now be bypassed? Returns how many are; with unless_bypassed, and some are, nothing is changed."""
        cdef bypass_t *bypass = self.open_backing().bypass
        cdef uint64_t bypassed
        pthread_mutex_lock(<pthread_mutex_t *>&bypass.mutex)
        bypassed = bypass.bypassed
        if not (unless_bypassed and bypassed):
            store_int(&bypass.allowed, allowed)
        pthread_mutex_unlock(<pthread_mutex_t *>&bypass.mutex)
        return bypassed

    def refuse(self, bint refuse):
        """Whether the base answers EIO to all but closing and filters' own I/O: a filter that the volume needs is gone, or failed."""
        backing_refuse(self.open_backing(), refuse)

    def bypass_state(self):
        """The bypass lane: negotiated, allowed, refused (the errno with which the kernel did), bypassed, granted, vetoed, veto."""
        cdef bypass_t *bypass = self.open_backing().bypass
        cdef bypass_t copy
        pthread_mutex_lock(<pthread_mutex_t *>&bypass.mutex)
        copy = bypass[0]
        pthread_mutex_unlock(<pthread_mutex_t *>&bypass.mutex)
        return {"negotiated": copy.device >= 0, "allowed": bool(copy.allowed), "refused": copy.refused,
                "bypassed": copy.bypassed, "granted": copy.granted, "vetoed": copy.vetoed,
                "veto": (<bytes>copy.veto).decode("utf-8", "replace")}

    def forget(self, uint64_t nodeid, uint64_t lookups):
        """The kernel gives back that many lookups of a node."""
        cdef inode_table_t *nodes = self.open_backing().nodes
        with nogil:
            node_forget(nodes, nodeid, lookups)

    def wake_poll(self, uint64_t handle):
        """Whoever polls the file of that poll_handle looks again. False: the volume is not mounted, or out of memory."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        cdef int error
        with nogil:
            error = volume_wake_poll(volume, handle)
        return error == 0

    def interrupt(self, uint64_t number) -> bool:
        """INTERRUPT of the request with that number. True: it may wait for a lock, and its next try ends it with EINTR; or a
        filter holds it, and has been told. One made by hand is remembered as interrupted until it is done."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        cdef int found
        with nogil:
            found = volume_interrupt(volume, number)
        return found != 0

    def retry_locks(self) -> int:
        """Those who wait for locks that are held beside the mount try again. How many still wait. Call it every 0.1 s."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        cdef uint32_t count
        with nogil:
            count = volume_retry_locks(volume)
        return count

    def restart_waiting_locks(self):
        """Those who wait for locks take the callback lists that there are now, and let go of older ones."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        with nogil:
            locks_restart((<backing_t *>volume.backing).locks)

    def cancel_held(self, InstanceEntry entry=None) -> int:
        """Cancels what an instance holds (None: what any of them does), as by an INTERRUPT of each. How many it holds then."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        cdef FLT_INSTANCE *instance = NULL if entry is None else &entry.instance
        cdef uint32_t count
        with nogil:
            holds_cancel(volume.holds, 0, instance)
            count = holds_count(volume.holds, instance)
        return count

    def held(self, InstanceEntry entry=None) -> int:
        """How many operations an instance holds, or is about to (None: any of them)."""
        return holds_count(self.stack.volume.holds, NULL if entry is None else &entry.instance)

    @property
    def resuming(self):
        """How many requests filters hold, or threads that have completed them still carry to their end."""
        return self.stack.volume.holds.stopped

    def known(self):
        """What the kernel may have cached: (nodeids with open files, other nodeids, [(parent nodeid, name), ...])."""
        cdef backing_t *backing = self.open_backing()
        cdef snapshot_t taken
        cdef set opened = set()
        cdef list others = []
        cdef list names = []
        cdef uint64_t number
        cdef uint16_t length
        cdef size_t at = 0
        memset(&taken, 0, sizeof(taken))
        with nogil:
            take_snapshot(backing, &taken)
        try:
            if taken.failed:
                raise MemoryError()
            while at < taken.size:       # 'h' nodeid | 'n' nodeid | 'p' parent's nodeid, length, name
                memcpy(&number, taken.bytes + at + 1, 8)
                if taken.bytes[at] == c'h':
                    opened.add(number)
                elif taken.bytes[at] == c'n':
                    if number not in opened:
                        others.append(number)
                else:
                    memcpy(&length, taken.bytes + at + 9, 2)
                    names.append((number, PyBytes_FromStringAndSize(taken.bytes + at + 11, length)))
                    at += <size_t>2 + length
                at += 9
        finally:
            free(taken.bytes)
        return list(opened), others, names

    def inject(self, int major, uint64_t nodeid=ROOT_ID, *, uint64_t fh=0, uint8_t minor=0, uint32_t code=0, bytes input=b"",
               Py_ssize_t output_size=0):
        """A Request of one operation that no VFS request brings by itself (D20), about an open file, a node, or, with the root's
        nodeid, the volume. minor: its minor function. code, input, output_size: for what has buffers. ValueError: another one."""
        cdef Request request
        if major not in INJECTABLE:
            raise ValueError(f"{major_name(major)} comes with a request of a program: make that")
        if major == IRP_MJ_FILE_SYSTEM_CONTROL and code not in VOLUME_CONTROLS:
            raise ValueError(f"control code {code:#x} is not one of the volume's")
        request = self.request(INJECTED, nodeid, input=input, fh=fh, flags=minor, command=code)
        request.pointer.injected[0] = step_t(<uint8_t>major, 1, 0)
        request.pointer.injected[1] = step_t(0, 0, STEP_END)
        if output_size:
            request.allocate(output_size)
        return request

    def request(self, uint32_t opcode, uint64_t nodeid=ROOT_ID, *, bytes name=None, bytes name2=None, buffer=None, bytes input=None,
                uint32_t uid=0, uint32_t gid=0, uint32_t tid=0, bint nowait=False, **arguments):
        """A request made by hand (tests, and the daemon's own): see Request for what it answers.

        arguments: fields of fuse_in_t (fh, offset, size, flags, mode, umask, rdev, valid, nodeid2, ...).
        """
        self.open_backing()
        cdef vfs_request_t *pointer = request_new(&self.stack.volume)
        if pointer is NULL:
            raise MemoryError()
        pointer.nodeid = nodeid
        pointer.opcode = opcode
        pointer.who.uid = uid
        pointer.who.gid = gid
        pointer.who.tid = tid
        pointer.nowait = nowait
        cdef Request request = Request.__new__(Request)
        request.pointer = pointer
        request.volume = self
        if name is not None:
            request.set_name(name)
        if name2 is not None:
            request.set_name2(name2)
        if buffer is not None:
            request.set_buffer(buffer, not isinstance(buffer, bytes))
        if input is not None:
            request.input = input
            pointer.input = PyBytes_AS_STRING(input)
            pointer.input_length = <uint32_t>len(input)
        for key, value in arguments.items():
            set_argument(&pointer.arguments, key, value)
        return request


cdef int set_argument(fuse_in_t *arguments, str key, value) except -1:
    if key == "fh":
        arguments.fh = value
    elif key == "lock_owner":
        arguments.lock_owner = value
    elif key == "offset":
        arguments.offset = value
    elif key == "nodeid2":
        arguments.nodeid2 = value
    elif key == "size":
        arguments.size = value
    elif key == "flags":
        arguments.flags = value
    elif key == "open_flags":
        arguments.open_flags = value
    elif key == "mode":
        arguments.mode = value
    elif key == "umask":
        arguments.umask = value
    elif key == "rdev":
        arguments.rdev = value
    elif key == "fh2":
        arguments.fh2 = value
    elif key == "offset2":
        arguments.offset2 = value
    elif key == "end":
        arguments.end = value
    elif key == "lock_type":
        arguments.lock_type = value
    elif key == "lock_pid":
        arguments.lock_pid = value
    elif key == "events":
        arguments.events = value
    elif key == "command":
        arguments.command = value
    elif key == "valid":
        arguments.valid = value
    elif key == "uid":
        arguments.uid = value
    elif key == "gid":
        arguments.gid = value
    elif key == "atime":
        arguments.atime = value // 1000000000
        arguments.atimensec = value % 1000000000
    elif key == "mtime":
        arguments.mtime = value // 1000000000
        arguments.mtimensec = value % 1000000000
    else:
        raise TypeError(f"a request has no argument {key!r}")
    return 0


# What known() answers, copied under the tables' mutexes: no Python object is made under a mutex, since making one may run
# Python code, which may wait for the same mutex.
cdef struct snapshot_t:
    char *bytes
    size_t size
    size_t room
    int failed


cdef void note(snapshot_t *taken, char kind, uint64_t number, const char *name, uint16_t length) noexcept nogil:
    cdef char *larger
    cdef size_t wanted = taken.size + 11 + length
    if wanted > taken.room:
        larger = <char *>realloc(taken.bytes, wanted * 2 + 4096)
        if larger is NULL:
            taken.failed = 1
            return
        taken.bytes = larger
        taken.room = wanted * 2 + 4096
    taken.bytes[taken.size] = kind
    memcpy(taken.bytes + taken.size + 1, &number, 8)
    taken.size += 9
    if name is not NULL:
        memcpy(taken.bytes + taken.size, &length, 2)
        memcpy(taken.bytes + taken.size + 2, name, length)
        taken.size += 2 + length


cdef void take_snapshot(backing_t *backing, snapshot_t *taken) noexcept nogil:
    cdef inode_table_t *nodes = backing.nodes
    cdef handle_t *handle
    cdef node_t *node
    cdef name_t *name
    cdef uint32_t i
    pthread_mutex_lock(<pthread_mutex_t *>&backing.handles.mutex)
    for i in range(backing.handles.count):
        handle = backing.handles.handles[i]
        if handle.open:
            note(taken, c'h', handle.file.Node.id, NULL, 0)
    pthread_mutex_unlock(<pthread_mutex_t *>&backing.handles.mutex)
    pthread_mutex_lock(<pthread_mutex_t *>&nodes.mutex)
    for i in range(nodes.slots):
        node = &nodes.slabs[i // 1024][i % 1024]
        if not node.live or node.lookups == 0:
            continue
        note(taken, c'n', node.id, NULL, 0)
        name = NULL if node.deleted else node.names
        while name is not NULL:
            note(taken, c'p', name.parent.id, name.bytes, name.length)
            name = name.next
    pthread_mutex_unlock(<pthread_mutex_t *>&nodes.mutex)


@cython.freelist(64)
@cython.no_gc_clear
cdef class Request:
    """One VFS request on the IRP lane, or made by hand. run() until it says True, then read the answer.

    The names and buffers given must not change until it is done. Sizes are bytes, times nanoseconds.
    """

    def __init__(self):
        raise TypeError("a Request comes from the device or from Volume.request()")

    def __dealloc__(self):
        if self.pointer is not NULL:
            if self.volume is not None and self.volume.stack.volume.backing is not NULL:
                if request_is_held(self.pointer) and leave_to_filter(self):
                    return
                if self.pointer.resumable:
                    with nogil:          # given up while it waited for the base
                        request_abandon(self.pointer)
            if self.pointer.listing is not NULL:
                forget_listing(<python_listing_t *>self.pointer.listing)
            request_free(self.pointer)
        if self.held:
            PyBuffer_Release(&self.view)

    cdef int set_name(self, bytes name) except -1:
        if len(name) > 65535:
            raise ValueError("a name is at most 65,535 bytes")
        self.name = name
        self.pointer.name = PyBytes_AS_STRING(name)
        self.pointer.name_length = <uint16_t>len(name)
        return 0

    cdef int set_name2(self, bytes name) except -1:
        if len(name) > 65535:
            raise ValueError("a name is at most 65,535 bytes")
        self.name2 = name
        self.pointer.name2 = PyBytes_AS_STRING(name)
        self.pointer.name2_length = <uint16_t>len(name)
        return 0

    cdef int set_buffer(self, object buffer, bint writable) except -1:
        if self.held:
            self.held = False
            PyBuffer_Release(&self.view)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.held = True
        self.buffer = buffer
        self.pointer.buffer = self.view.buf
        self.pointer.buffer_length = <uint32_t>self.view.len
        self.pointer.operation.buffer_owner = <PyObject *>buffer
        self.pointer.operation.buffer_read_only = not writable
        return 0

    cdef bytes allocate(self, Py_ssize_t size):
        """A bytes object of this length that the request fills; result() cuts it to what was filled."""
        cdef bytes buffer = PyBytes_FromStringAndSize(NULL, size)
        self.buffer = buffer
        self.pointer.buffer = PyBytes_AS_STRING(buffer)
        self.pointer.buffer_length = <uint32_t>size
        self.pointer.operation.buffer_owner = <PyObject *>buffer
        self.pointer.operation.buffer_read_only = False
        return buffer

    # Setting up, for handlers: what pyfuse3 passes and the header does not hold.

    def named(self, bytes name not None, bytes name2=None):
        """The name (and the second one: a rename's or link's new name, a symlink's target). Returns self."""
        self.set_name(name)
        if name2 is not None:
            self.set_name2(name2)
        return self

    def sending(self, buffer):
        """The data of a write or setxattr. Returns self."""
        self.set_buffer(buffer, False)
        return self

    def receiving(self, Py_ssize_t size):
        """Make room for what a read, readlink, getxattr or listxattr gives. Returns self."""
        self.allocate(size)
        return self

    def receiving_as_asked(self):
        """Make room for as much as the request asks for: an attribute's value, or the names of all. Returns self."""
        self.allocate(<Py_ssize_t>self.pointer.arguments.size)
        return self

    # Running

    cdef int enter(self) except -1:
        """Before the GIL is given back; the other end of it is `busy = False`."""
        self.volume.open_backing()
        if self.busy or self.parked:
            raise RuntimeError("a request is run by one thread at a time")
        self.busy = True
        return 0

    cdef int outcome(self) except -1:
        """Raises what a listing's callback raised."""
        cdef python_listing_t *listing = <python_listing_t *>self.pointer.listing
        if self.finished and listing is not NULL and listing.raised is not NULL:
            raised = <object>listing.raised
            forget_listing(listing)
            if raised:
                raise raised[0]
        return 0

    def run(self) -> bool:
        """True: done. False: it has to wait, for the base, a lock or a filter: call wait() in a thread that may, then run()
        again; or, where it needs no thread, park()."""
        cdef int done
        cdef vfs_request_t *pointer = self.pointer
        if self.finished:
            self.outcome()
            return True
        if (pointer.opcode == READ or pointer.opcode == WRITE) and pointer.arguments.size > pointer.buffer_length:
            raise ValueError("the buffer is shorter than the transfer")
        self.enter()
        with nogil:
            done = run_on(pointer)
        self.busy = False
        self.finished = done != 0
        self.outcome()
        return self.finished

    def wait(self):
        """The waiting part, without the GIL. Only after run() said False. What a filter holds is waited for as long as it
        takes; whoever completes it has then carried it on as far as that went."""
        cdef vfs_request_t *pointer = self.pointer
        cdef holds_t *holds = self.volume.stack.volume.holds
        if self.finished or not (pointer.resumable or pointer.inner is not NULL):
            raise RuntimeError("the request does not wait")
        self.enter()
        if request_is_held(pointer):
            pointer.resumed = 0
            with nogil:
                if request_park(pointer, resumed_in_place):
                    mutex_lock(&holds.lock)
                    while not pointer.resumed:
                        pthread_cond_wait(&holds.changed, &holds.lock)
                    mutex_unlock(&holds.lock)
            self.finished = pointer.resumed == 2
        else:
            with nogil:
                request_wait(pointer)
        self.busy = False

    def do(self):
        """Run to the end, waiting in place; raise VfsError when it failed. Returns self."""
        while not self.run():
            self.wait()
        if self.pointer.error:
            import os
            raise VfsError(self.pointer.error, os.strerror(self.pointer.error))
        return self

    @property
    def waits_for_lock(self) -> bool:
        """run() said False because somebody else has the lock: park(), which needs no thread, serves as well as wait()."""
        return self.pointer.waiting.wanted != 0

    @property
    def is_held(self) -> bool:
        """run() said False because a filter holds it: park() serves as well as wait()."""
        return not self.finished and request_is_held(self.pointer)

    def park(self, woken) -> bool:
        """True: woken() will be called once, by any thread, when it is worth while to run() again; whoever completes what a
        filter holds has then carried it on as far as that went without waiting. False: run() again now."""
        cdef vfs_request_t *pointer = self.pointer
        cdef int parked
        self.enter()
        self.busy = False
        pointer.waiting.woken = call_python
        pointer.waiting.context = <PyObject *>self
        self.woken = woken
        pointer.loop = pthread_self()
        self.parked = True
        Py_INCREF(self)                  # whoever wakes it gives it back
        with nogil:
            parked = request_park(pointer, resumed_parked)
        if not parked:
            self.parked = False
            self.woken = None
            Py_DECREF(self)
        return parked != 0

    # Answers

    @property
    def lock(self):
        """GETLK: (type, first byte, last byte, process id) of a lock in the way; type F_UNLCK: none."""
        cdef lock_range_t *lock = &self.pointer.lock
        return lock.type, lock.start, lock.end, lock.pid

    @property
    def error(self):
        """A positive errno; 0: it succeeded."""
        return self.pointer.error

    @property
    def status(self):
        """The NTSTATUS (unsigned) of the operation that failed; 0: none has."""
        return <uint32_t>self.pointer.failed

    @property
    def opcode(self):
        return self.pointer.opcode

    @property
    def number(self):
        """The request's number, as callbacks see it."""
        return self.pointer.unique

    @property
    def nodeid(self):
        """An entry's nodeid; one lookup of it is now the kernel's (or the caller's: Volume.forget)."""
        return self.pointer.out_nodeid

    @property
    def unique(self):
        """The request's number, as its filters see it."""
        return self.pointer.unique

    @property
    def fh(self):
        """An open's handle number."""
        return self.pointer.out_fh

    @property
    def keep_cache(self):
        return (self.pointer.out_open_flags & FOPEN_KEEP_CACHE) != 0

    @property
    def direct_io(self):
        return (self.pointer.out_open_flags & FOPEN_DIRECT_IO) != 0

    @property
    def length(self):
        """Bytes read, written, or needed."""
        return self.pointer.length

    def result(self) -> bytes:
        """What was read into the buffer that receiving() made."""
        cdef bytes buffer = self.buffer
        if <uint64_t>len(buffer) == self.pointer.length:
            return buffer
        return PyBytes_FromStringAndSize(<char *>self.pointer.buffer, <Py_ssize_t>min(self.pointer.length,
                                                                                      <uint64_t>len(buffer)))

    @property
    def stat(self):
        """The attributes as an os.stat_result-like tuple: mode, ino, nlink, uid, gid, rdev, size, blocks, blksize,
        atime_ns, mtime_ns, ctime_ns, btime_ns."""
        cdef statx_t *info = &self.pointer.info
        return (info.stx_mode, info.stx_ino, info.stx_nlink, info.stx_uid, info.stx_gid, device_of(info), info.stx_size,
                info.stx_blocks, info.stx_blksize, nanoseconds(&info.stx_atime), nanoseconds(&info.stx_mtime),
                nanoseconds(&info.stx_ctime), nanoseconds(&info.stx_btime))

    def fill_attributes(self, entry):
        """Sets the attributes of a pyfuse3.EntryAttributes. Returns it."""
        fill(&self.pointer.info, self.pointer.attr_timeout, entry)
        return entry

    def fill_entry(self, entry):
        """The same, with what makes it a directory entry. Returns it."""
        fill(&self.pointer.info, self.pointer.attr_timeout, entry)
        entry.st_ino = self.pointer.out_nodeid
        entry.generation = self.pointer.out_generation
        entry.entry_timeout = self.pointer.entry_timeout
        return entry

    def list_directory(self, emit, make_entry):
        """READDIRPLUS: calls emit(name, entry, next offset) until it says False or the directory ends.

        make_entry() gives an EntryAttributes to fill. Answers as run(), which goes on with it.
        """
        cdef python_listing_t *listing
        self.enter()
        self.busy = False
        if self.pointer.listing is not NULL:
            raise RuntimeError("a request lists once")
        listing = <python_listing_t *>calloc(1, sizeof(python_listing_t))
        if listing is NULL:
            raise MemoryError()
        self.pointer.listing = listing
        listing.listing.has_room = python_has_room
        listing.listing.add = python_add
        listing.listing.plus = True
        for thing in (emit, make_entry, []):
            Py_INCREF(thing)
            if listing.emit is NULL:
                listing.emit = <PyObject *>thing
            elif listing.make_entry is NULL:
                listing.make_entry = <PyObject *>thing
            else:
                listing.raised = <PyObject *>thing
        return self.run()

    def statistics(self):
        """STATFS: bsize, frsize, blocks, bfree, bavail, files, ffree, favail, namemax."""
        cdef c_statvfs *result = <c_statvfs *>self.pointer.buffer
        if self.pointer.buffer_length < sizeof(c_statvfs):
            raise ValueError("call for_statistics() first")
        return (result.f_bsize, result.f_frsize, result.f_blocks, result.f_bfree, result.f_bavail,
                result.f_files, result.f_ffree, result.f_favail, result.f_namemax)

    def for_statistics(self):
        """Make room for statistics(). Returns self."""
        self.allocate(sizeof(c_statvfs))
        return self


cdef void call_python(lock_wait_t *waiting) noexcept nogil:
    with gil:
        wake_python(<PyObject *>waiting.context)


cdef void wake_python(PyObject *context) noexcept:
    cdef Request request = <Request>context
    woken = request.woken
    request.woken = None
    request.parked = False
    Py_DECREF(request)
    try:
        woken()
    except BaseException:
        pass                             # the loop it would have told is gone


cdef int run_on(vfs_request_t *pointer) noexcept nogil:
    """request_run(), or the listing it is."""
    if pointer.listing is not NULL:
        return listing_run(pointer, <listing_t *>pointer.listing)
    return request_run(pointer)


cdef int carry_on(vfs_request_t *pointer, resume_function resumed) noexcept nogil:
    """In the thread that completed it: 1: done. 0: it waits, for the base or a lock. -1: a filter holds it again, and it is
    not to be touched any more."""
    while run_on(pointer) == 0:
        if not request_is_held(pointer):
            return 0
        if request_park(pointer, resumed):
            return -1
    return 1


cdef void resumed_parked(void *at) noexcept nogil:
    """A loop that must not wait for the base waits only where its own thread completed it."""
    cdef vfs_request_t *pointer = request_outermost(at)
    cdef holds_t *holds = pointer.volume.holds
    cdef PyObject *request = <PyObject *>pointer.waiting.context
    cdef int nowait = pointer.nowait
    cdef int done
    pointer.nowait = nowait and pthread_equal(pointer.loop, pthread_self())
    done = carry_on(pointer, resumed_parked)
    if done < 0:
        holds_leave(holds)
        return
    pointer.nowait = nowait
    with gil:
        (<Request>request).finished = done
        holds_leave(holds)
        wake_python(request)


cdef void resumed_in_place(void *at) noexcept nogil:
    cdef vfs_request_t *pointer = request_outermost(at)
    cdef holds_t *holds = pointer.volume.holds
    cdef int done = carry_on(pointer, resumed_in_place)
    mutex_lock(&holds.lock)
    holds.stopped -= 1
    if done >= 0:
        pointer.resumed = 1 + done
    pthread_cond_broadcast(&holds.changed)
    mutex_unlock(&holds.lock)


cdef bint leave_to_filter(Request request):
    """Nobody is left that waits for it, but a filter still holds it: the memory it works on lives until it is done.
    False: it has just been completed."""
    cdef list kept = [request.volume, request.name, request.name2, request.buffer, request.input]
    if request.held:
        kept.append(memoryview(request.buffer))          # a bytearray's memory stays where it is
    if request.pointer.listing is not NULL:              # nobody to give entries to
        (<listing_t *>request.pointer.listing).has_room = no_room
    request.pointer.waiting.context = <PyObject *>kept
    Py_INCREF(kept)
    if not request_park(request.pointer, resumed_alone):
        Py_DECREF(kept)
        return False
    if request.held:
        PyBuffer_Release(&request.view)
    return True


cdef void resumed_alone(void *at) noexcept nogil:
    cdef vfs_request_t *pointer = request_outermost(at)
    cdef holds_t *holds = pointer.volume.holds
    cdef PyObject *kept = <PyObject *>pointer.waiting.context
    cdef int done
    pointer.nowait = 0
    done = carry_on(pointer, resumed_alone)
    if done < 0:
        holds_leave(holds)
        return
    if not done:
        request_abandon(pointer)         # it waits for a lock that nobody wants any more
    with gil:
        if pointer.listing is not NULL:
            forget_listing(<python_listing_t *>pointer.listing)
        request_free(pointer)
        holds_leave(holds)
        Py_DECREF(<object>kept)


cdef bint no_room(listing_t *listing, size_t name_length) noexcept nogil:
    return False


cdef void forget_listing(python_listing_t *listing) noexcept:
    Py_XDECREF(listing.emit)
    Py_XDECREF(listing.make_entry)
    Py_XDECREF(listing.raised)
    listing.emit = listing.make_entry = listing.raised = NULL


@cython.freelist(16)
cdef class Done:
    """An awaitable that has its value already: `await Done(value)` never gives the loop back."""
    cdef object value

    def __init__(self, value):
        self.value = value

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration(self.value)


cdef struct python_listing_t:
    listing_t listing                    # first: the listing is the Python one
    PyObject *emit
    PyObject *make_entry
    PyObject *raised                     # a list: what emit or make_entry raised


cdef bint python_has_room(listing_t *listing, size_t name_length) noexcept nogil:
    return True


cdef bint python_add(listing_t *listing, const char *name, size_t length, uint64_t inode, uint8_t type, int64_t following,
                     const vfs_request_t *found) noexcept nogil:
    with gil:
        return emit_entry(<python_listing_t *>listing, name, length, inode, following, found)


cdef bint emit_entry(python_listing_t *listing, const char *name, size_t length, uint64_t inode, int64_t following,
                     const vfs_request_t *found) noexcept:
    try:
        entry = (<object>listing.make_entry)()
        if found is NULL:
            entry.st_ino = inode             # shown only: the kernel counts no lookup of "." and ".."
            entry.st_mode = S_IFDIR
        else:
            fill(&found.info, found.attr_timeout, entry)
            entry.st_ino = found.out_nodeid
            entry.generation = found.out_generation
            entry.entry_timeout = found.entry_timeout
        return (<object>listing.emit)(PyBytes_FromStringAndSize(name, <Py_ssize_t>length), entry, following)
    except BaseException as error:
        (<list>listing.raised).append(error)
        return False


cdef inline object nanoseconds(const statx_timestamp *when):
    return <int64_t>when.tv_sec * <int64_t>1000000000 + when.tv_nsec


cdef inline uint64_t device_of(const statx_t *info) noexcept:
    return makedev(info.stx_rdev_major, info.stx_rdev_minor)


cdef int fill(const statx_t *info, double attr_timeout, entry) except -1:
    entry.st_ino = info.stx_ino
    entry.attr_timeout = attr_timeout
    entry.st_mode = info.stx_mode
    entry.st_nlink = info.stx_nlink
    entry.st_uid = info.stx_uid
    entry.st_gid = info.stx_gid
    entry.st_rdev = device_of(info)
    entry.st_size = info.stx_size
    entry.st_blksize = info.stx_blksize
    entry.st_blocks = info.stx_blocks
    entry.st_atime_ns = nanoseconds(&info.stx_atime)
    entry.st_mtime_ns = nanoseconds(&info.stx_mtime)
    entry.st_ctime_ns = nanoseconds(&info.stx_ctime)
    return 0


cdef Request request_adopt(vfs_request_t *pointer, Volume volume):
    cdef Request request = Request.__new__(Request)
    request.pointer = pointer
    request.volume = volume
    return request
