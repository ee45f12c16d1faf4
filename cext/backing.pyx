"""The base of the stack: the backing directory (docs/semantics.md, D).

Every name is one component, looked up under a directory's descriptor with no link followed, so no name leads outside.
What goes by inode uses an O_PATH descriptor from the inode table, through /proc/self/fd where the system call takes
none. With permissions=kernel the kernel has checked permissions above (default_permissions), and only what is created
for a caller is created with that caller's credentials (credentials.pyx). With permissions=stack (backing.checks) nobody
has: backing_perform() takes the caller's rights first (impersonation.pyx), and every system call that can refuse
something is refused as it would be to the caller himself. What the daemon needs for itself it does by its own.

backing_perform() runs without the GIL on any thread, takes no lock of its own and holds none across a system call.
Where it would have to wait for the disk and the operation may not (op.would_block == 1), it does nothing and says so.
"""

cimport cython
from libc.errno cimport (
    EACCES, EAGAIN, EBADF, EBUSY, EEXIST, EINTR, EINVAL, EIO, EMFILE, ENAMETOOLONG, ENOENT, ENOMEM, ENOSYS, ENXIO, EPERM, errno)
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove, strcmp, strlen, strncmp

from stackfs.cext.bypass cimport bypass_free, bypass_new
from stackfs.cext.callback_data cimport (
    CONTROL_PARAMETERS, DACL_SECURITY_INFORMATION, DIRECTORY_PARAMETERS, EA_PARAMETERS, FILE_DELETE_ON_CLOSE,
    FILE_DIRECTORY_FILE, FILE_NAME, FILE_OBJECT, FILE_OPEN, FILE_OPEN_REPARSE_POINT, FLTFL_CALLBACK_DATA_GENERATED_IO,
    FLT_IO_PARAMETER_BLOCK,
    FO_CLOSED, FO_CREATED, FO_DIRECTORY, FO_SYNTHESISED, FO_UNREADABLE, FO_VOLUME_OPEN, FSCTL_DELETE_REPARSE_POINT,
    FSCTL_DISMOUNT_VOLUME, FSCTL_DUPLICATE_EXTENTS_TO_FILE, FSCTL_GET_REPARSE_POINT, FSCTL_LOCK_VOLUME,
    FSCTL_MANAGE_BYPASS_IO, FSCTL_SET_REPARSE_POINT, FSCTL_SET_ZERO_DATA, FSCTL_STACKFS_POLL, FSCTL_UNLOCK_VOLUME,
    GROUP_SECURITY_INFORMATION, IRP_MJ_CLEANUP, IRP_MJ_CLOSE, IRP_MJ_CREATE, IRP_MJ_DEVICE_CONTROL,
    IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_LOCK_CONTROL,
    IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_PNP, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_INFORMATION, IRP_MJ_QUERY_OPEN,
    IRP_MJ_QUERY_SECURITY, IRP_MJ_QUERY_VOLUME_INFORMATION, IRP_MJ_READ, IRP_MJ_SET_EA, IRP_MJ_SET_INFORMATION,
    IRP_MJ_SET_SECURITY, IRP_MJ_SHUTDOWN, IRP_MJ_VOLUME_DISMOUNT, IRP_MJ_VOLUME_MOUNT, IRP_MJ_WRITE, IRP_MN_LOCK,
    IRP_MN_NOTIFY_CHANGE_DIRECTORY, IRP_MN_QUERY_LOCK, IRP_MN_UNLOCK_ALL, IRP_MN_UNLOCK_ALL_BY_KEY,
    LABEL_SECURITY_INFORMATION, LOCK_PARAMETERS, OWNER_SECURITY_INFORMATION,
    READ_WRITE_PARAMETERS, REQUESTOR, SECURITY_PARAMETERS, SET_FILE_PARAMETERS, FileAllocationInformation,
    FileBasicInformation, FileDispositionInformation, FileEndOfFileInformation, FileLinkInformation,
    FilePositionInformation, lock_range_t, node_t, statx_t)
from stackfs.cext.coherence cimport (
    coherence_free, coherence_open_waits, coherence_own_open, coherence_own_opened, coherence_t, coherence_watch)
from stackfs.cext.credentials cimport add_group, assume, credentials_t, drop_fsetid, restore
from stackfs.cext.extents cimport extent_allocate, extent_copy, extent_mode_zeroes, extent_seek
from stackfs.cext.file_flags cimport file_flags, is_file_flags
from stackfs.cext.handles cimport handle_t, handles_free, handles_new
from stackfs.cext.impersonation cimport (
    finish_impersonating, impersonate, revert_to_self, step_aside, step_back)
from stackfs.cext.includes.fuse_wire cimport FUSE_ACCESS, FUSE_LOOKUP, FUSE_POLL
from stackfs.cext.inode_table cimport (
    descriptors_shed, generation_of, identify, identity_t, make_id, name_changes, name_holder, name_moved, name_pin,
    name_removed, name_unless_open, name_unpin, names_linked, node_close, node_found, node_is, node_open, node_put, node_type,
    node_unnamed, table_free, table_new)
from stackfs.cext.locks cimport (
    lock_enter, lock_file, lock_owner_get, lock_owner_opened, lock_owner_put, lock_owner_t, lock_query, lock_range_of, lock_set,
    lock_wait_t, locks_drop, locks_free, locks_generation, locks_new)
from stackfs.cext.reparse_point cimport reparse_point_control
from stackfs.cext.ntstatus cimport NT_SUCCESS, STATUS_INVALID_DEVICE_REQUEST, STATUS_SUCCESS, errno_to_nt
from stackfs.cext.pending cimport FltIsIoCanceled
from stackfs.cext.process cimport requestor_in_group
from stackfs.cext.requests cimport POLL_ALWAYS_READY, vfs_request_t
from stackfs.cext.stack cimport about_to_wait, is_notice, operation_hidden_from, operation_t
from stackfs.cext.threads cimport exchange_int, load_bits, load_int, set_bits, store_int


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #define VOLUME_MARK ".stackfs-filters"       /* stackfs/mark.py */
    #define VOLUME_MARK_LENGTH (sizeof(VOLUME_MARK) - 1)
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <linux/magic.h>
    #include <sys/statfs.h>
    #include <sys/statvfs.h>
    #include <sys/syscall.h>
    #include <sys/sysmacros.h>
    #include <sys/uio.h>
    #include <sys/xattr.h>
    #include <unistd.h>
    #include <errno.h>
    /* faccessat2(2), of Linux 5.8: access(2) and faccessat(2) ask for the real user, who is the daemon's. */
    #ifndef SYS_faccessat2
    #define SYS_faccessat2 439
    #endif
    static inline int stackfs_access(int fd, int mode) {
        return (int)syscall(SYS_faccessat2, fd, "", mode, AT_EMPTY_PATH | AT_EACCESS);
    }
    /* Of a caller's flags: what an open by inode goes by. Never O_CREAT, O_TMPFILE, O_PATH, O_DIRECT, O_ASYNC. */
    #define OPENS_WITH (O_ACCMODE | O_APPEND | O_TRUNC | O_NONBLOCK | O_SYNC | O_DSYNC | O_NOATIME | O_DIRECTORY | O_LARGEFILE)
    static inline long stackfs_getdents(int fd, void *buffer, size_t size) {
        return syscall(SYS_getdents64, fd, buffer, size);
    }
    static inline ssize_t stackfs_read_cached(int fd, void *buffer, size_t size, off_t offset) {
        struct iovec vector = {buffer, size};
        return preadv2(fd, &vector, 1, offset, RWF_NOWAIT);
    }
    /* Such a filesystem does not know RWF_NOWAIT, and never waits. */
    static inline int stackfs_in_memory(int fd) {
        struct statfs about;
        return fstatfs(fd, &about) == 0 && (about.f_type == TMPFS_MAGIC || about.f_type == RAMFS_MAGIC);
    }
    /* These have no `flush`: a disk or quota that is full is told by write(2) or fsync(2). Network filesystems tell it at
       close(2), and what lies on others (FUSE, overlayfs) may have to pass it on. */
    static inline int stackfs_close_tells(int fd) {
        struct statfs about;
        if (fstatfs(fd, &about) != 0) return 1;
        switch ((unsigned)about.f_type) {
        case EXT4_SUPER_MAGIC: case XFS_SUPER_MAGIC: case BTRFS_SUPER_MAGIC: case F2FS_SUPER_MAGIC: case TMPFS_MAGIC: case RAMFS_MAGIC:
            return 0;
        }
        return 1;
    }
    static inline ssize_t stackfs_append(int fd, const void *buffer, size_t size) {
        struct iovec vector = {(void *)buffer, size};
        return pwritev2(fd, &vector, 1, 0, RWF_APPEND);
    }
    /* The kernel's FUSE client sends a device number as new_encode_dev packs it. */
    static inline dev_t stackfs_device(unsigned packed) {
        return makedev((packed >> 8) & 0xfff, (packed & 0xff) | ((packed >> 12) & 0xfff00));
    }
    """
    int O_PATH, O_NOFOLLOW, O_CLOEXEC, O_DIRECTORY, O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE, O_CREAT, O_EXCL, O_TRUNC, O_DIRECT
    int OPENS_WITH
    int O_NONBLOCK, O_SYNC, O_DSYNC, O_NOCTTY, O_APPEND, O_TMPFILE
    int F_GETFL
    int AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_FDCWD, AT_REMOVEDIR, UTIME_OMIT, UTIME_NOW
    unsigned STATX_BASIC_STATS, STATX_BTIME
    unsigned S_IFMT, S_IFLNK, S_IFIFO, S_IFSOCK, S_IFDIR, S_IFREG, S_ISUID, S_ISGID, S_IXGRP
    int RENAME_EXCHANGE, RENAME_WHITEOUT, SEEK_SET, EOPNOTSUPP, ESTALE, ENODATA, ENOLCK, F_RDLCK, F_WRLCK, F_UNLCK
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    struct c_statvfs "statvfs":
        pass
    const char *VOLUME_MARK
    size_t VOLUME_MARK_LENGTH
    bint stackfs_in_memory(int fd) nogil
    bint stackfs_close_tells(int fd) nogil
    int openat(int directory, const char *path, int flags, ...) nogil
    int open(const char *path, int flags, ...) nogil
    int close(int fd) nogil
    int fcntl(int fd, int command) nogil
    int statx(int directory, const char *path, int flags, unsigned mask, statx_t *buffer) nogil
    int mkdirat(int directory, const char *path, unsigned mode) nogil
    int mknodat(int directory, const char *path, unsigned mode, unsigned long device) nogil
    int symlinkat(const char *target, int directory, const char *path) nogil
    int linkat(int old_directory, const char *old, int directory, const char *path, int flags) nogil
    int unlinkat(int directory, const char *path, int flags) nogil
    int renameat2(int old_directory, const char *old, int directory, const char *path, unsigned flags) nogil
    ssize_t readlinkat(int directory, const char *path, char *buffer, size_t size) nogil
    ssize_t pread(int fd, void *buffer, size_t size, int64_t offset) nogil
    ssize_t pwrite(int fd, const void *buffer, size_t size, int64_t offset) nogil
    int ftruncate(int fd, int64_t size) nogil
    int fsync(int fd) nogil
    int fdatasync(int fd) nogil
    int syncfs(int fd) nogil
    int utimensat(int directory, const char *path, const timespec *times, int flags) nogil
    int fchownat(int directory, const char *path, unsigned uid, unsigned gid, int flags) nogil
    int chmod(const char *path, unsigned mode) nogil
    int64_t lseek(int fd, int64_t offset, int whence) nogil
    int fstatvfs(int fd, c_statvfs *buffer) nogil
    ssize_t getxattr(const char *path, const char *name, void *value, size_t size) nogil
    ssize_t listxattr(const char *path, char *list, size_t size) nogil
    int setxattr(const char *path, const char *name, const void *value, size_t size, int flags) nogil
    int removexattr(const char *path, const char *name) nogil
    int stackfs_access(int fd, int mode) nogil
    long stackfs_getdents(int fd, void *buffer, size_t size) nogil
    ssize_t stackfs_read_cached(int fd, void *buffer, size_t size, int64_t offset) nogil
    ssize_t stackfs_append(int fd, const void *buffer, size_t size) nogil
    unsigned long stackfs_device(unsigned packed) nogil
    uint32_t makedev(unsigned major, unsigned minor) nogil

cdef enum:
    FMODE_EXEC = 0x20                    # the kernel's mark on the open of an execve(2); open(2) lets nobody else set it
    FUSE_WRITE_CACHE = 1
    FUSE_WRITE_KILL_SUIDGID = 4
    FUSE_SETXATTR_ACL_KILL_SGID = 1
    FATTR_KILL_SUIDGID = 1 << 11
    FATTR_ATIME = 1 << 4
    FATTR_MTIME = 1 << 5
    FATTR_ATIME_NOW = 1 << 7
    FATTR_MTIME_NOW = 1 << 8
    MAY_EXECUTE = 1                      # X_OK, W_OK, R_OK
    MAY_WRITE = 2
    MAY_READ = 4
    PROC_PATH = 32                       # "/proc/self/fd/2147483647"
    NO_SUCH_CONTROL = -100000            # no errno: a control code that the base does not know
    STATUS_IS_SET = -100001              # nor this: IoStatus says what came of it
    LOOKUP_TRIES = 8


cdef backing_t *backing_new(int root_fd, uint32_t descriptor_limit, int checks) noexcept nogil:
    cdef backing_t *backing = <backing_t *>calloc(1, cython.sizeof(backing_t))
    cdef statx_t found
    cdef identity_t what
    if backing is NULL:
        return NULL
    if statx(root_fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &found) != 0:
        free(backing)
        return NULL
    identify(&found, &what)
    backing.device = what.device
    backing.close_tells = stackfs_close_tells(root_fd)
    backing.checks = checks
    backing.special = BACKING_CHECKS if checks else 0
    backing.bypass = bypass_new()
    backing.handles = handles_new()
    backing.locks = locks_new()
    backing.reflink = 1
    if backing.bypass is not NULL and backing.handles is not NULL and backing.locks is not NULL:
        backing.nodes = table_new(root_fd, &what, descriptor_limit)
    if backing.nodes is NULL:
        if backing.handles is not NULL:
            handles_free(backing.handles)
        if backing.bypass is not NULL:
            bypass_free(backing.bypass)
        if backing.locks is not NULL:
            locks_free(backing.locks)
        free(backing)
        return NULL
    return backing


cdef void backing_free(backing_t *backing) noexcept nogil:
    locks_free(backing.locks)
    handles_free(backing.handles)
    if backing.coherence is not NULL:
        coherence_free(<coherence_t *>backing.coherence)
    table_free(backing.nodes)
    bypass_free(backing.bypass)
    free(backing)


# --- attributes ---------------------------------------------------------------------------------------------------

cdef void present(const backing_t *backing, statx_t *info) noexcept nogil:
    """Inode numbers of other filesystems inside the backing directory are told apart from the root's."""
    cdef uint32_t device = makedev(info.stx_dev_major, info.stx_dev_minor)
    if device != backing.device:
        info.stx_ino = make_id(backing.device, device, info.stx_ino)


cdef int stat_node(backing_t *backing, node_t *node, statx_t *info) noexcept nogil:
    cdef char name[256]
    cdef node_t *parent
    cdef identity_t what
    cdef int fd, result
    if node_type(node) != S_IFDIR:
        # One system call by the parent's descriptor, if the name still leads to this inode.
        if name_unless_open(backing.nodes, node, name, &parent):
            fd = node_open(backing.nodes, parent)
            result = -1
            if fd >= 0:
                result = statx(fd, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, info)
                node_close(backing.nodes, parent)
            node_put(backing.nodes, parent)
            if result == 0:
                identify(info, &what)
                if node_is(backing.nodes, node, &what):
                    present(backing, info)
                    return 0
    fd = node_open(backing.nodes, node)
    if fd < 0:
        return fd
    result = 0
    if statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, info) != 0:
        result = -errno
    node_close(backing.nodes, node)
    if result == 0:
        present(backing, info)
    return result


cdef int stat_file(backing_t *backing, const FILE_OBJECT *file, statx_t *info) noexcept nogil:
    if file.fd >= 0:
        if statx(file.fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, info) != 0:
            return -errno
        present(backing, info)
        return 0
    if file.Node is NULL:
        return -EBADF
    return stat_node(backing, file.Node, info)


cdef int may_access(backing_t *backing, node_t *node, int mode) noexcept nogil:
    """R_OK, W_OK, X_OK: for whom this thread is."""
    cdef int fd = node_open(backing.nodes, node)
    cdef int result = 0
    if fd < 0:
        return fd
    if stackfs_access(fd, mode & 7) != 0:
        result = -errno if errno != ENOSYS else -EACCES
    node_close(backing.nodes, node)
    return result


cdef int found_below(backing_t *backing, vfs_request_t *request, int directory_fd, node_t *directory, const FILE_NAME *name,
                     const char *terminated, int opened_fd) noexcept nogil:
    """What stands under (directory, name), or behind opened_fd, becomes the request's entry: one lookup is counted."""
    cdef identity_t what
    cdef uint32_t changes = 0
    cdef int result, tries
    if backing.coherence is not NULL:
        request.covered = coherence_watch(<coherence_t *>backing.coherence, directory, directory_fd)
    for tries in range(LOOKUP_TRIES):
        if opened_fd >= 0:
            result = statx(opened_fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &request.info)
        else:
            changes = name_changes(backing.nodes, directory, name.Buffer, name.Length)
            result = statx(directory_fd, terminated, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &request.info)
        if result != 0:
            return -errno
        identify(&request.info, &what)
        # A name that was taken away meanwhile must not come back into the table: look again. In the end it is taken as found.
        request.found = node_found(backing.nodes, &what, directory, name.Buffer, name.Length,
                                   NULL if opened_fd >= 0 or tries == LOOKUP_TRIES - 1 else &changes, &result)
        if result != EAGAIN:
            break
    if result != 0:
        return -result
    present(backing, &request.info)
    request.out_generation = generation_of(&what)
    request.info_known = 1
    return 0


cdef int terminate(const FILE_NAME *name, char *buffer) noexcept nogil:
    """One component, NUL-terminated, into buffer[256]. Whatever is not one component of a path is refused."""
    cdef uint16_t i
    if name.Length == 0 or name.Length > 255:
        return -ENAMETOOLONG if name.Length else -ENOENT
    for i in range(name.Length):
        if name.Buffer[i] == 0 or name.Buffer[i] == c'/':
            return -EINVAL
    if name.Buffer[0] == c'.' and (name.Length == 1 or (name.Length == 2 and name.Buffer[1] == c'.')):
        return -EINVAL
    memcpy(buffer, name.Buffer, name.Length)
    buffer[name.Length] = 0
    return 0


cdef int component(backing_t *backing, const node_t *directory, const FILE_NAME *name, char *buffer, int mark_answer) noexcept nogil:
    """The same, but for the volume's mark, of which nobody is to know: what is asked of it gets `mark_answer`."""
    if is_mark(backing, directory, name.Buffer, name.Length):
        return mark_answer
    return terminate(name, buffer)


cdef inline bint is_mark(backing_t *backing, const node_t *directory, const char *name, size_t length) noexcept nogil:
    return length == VOLUME_MARK_LENGTH and directory is backing.nodes.root and memcmp(name, VOLUME_MARK, length) == 0


cdef int may_connect(backing_t *backing, vfs_request_t *request) noexcept nogil:
    """The kernel opens a FIFO, and connects to a socket, without a request that could be refused: only who may do
    anything to one may so much as find it. Its owner could give himself the right."""
    cdef unsigned type = request.info.stx_mode & S_IFMT
    if (type != S_IFIFO and type != S_IFSOCK) or request.info.stx_uid == request.who.uid or request.within_listing:
        return 0
    return may_access(backing, request.found, MAY_WRITE if type == S_IFSOCK else MAY_READ | MAY_WRITE)


cdef int look_up(backing_t *backing, vfs_request_t *request, const FLT_IO_PARAMETER_BLOCK *p, FILE_OBJECT *file) noexcept nogil:
    """The inode under FileName in Directory becomes the request's entry."""
    cdef char name[256]
    cdef int result = component(backing, file.Directory, &p.FileName, name, -ENOENT)
    cdef int fd
    if result < 0:
        return result
    fd = node_open(backing.nodes, file.Directory)
    if fd < 0:
        return fd
    result = found_below(backing, request, fd, file.Directory, &p.FileName, name, -1)
    node_close(backing.nodes, file.Directory)
    if result == 0 and backing.checks:
        result = may_connect(backing, request)
    return result


# --- create -------------------------------------------------------------------------------------------------------

cdef inline int flags_for_base(const operation_t *op, int flags) noexcept nogil:
    """With write-back the page cache reads what a write leaves of a page, also through a descriptor only for writing."""
    if op.volume.writeback and flags & O_ACCMODE == O_WRONLY:
        return (flags & ~O_ACCMODE) | O_RDWR
    return flags


cdef int open_node(backing_t *backing, node_t *node, int flags) noexcept nogil:
    """Opens the very inode, never by a name that may have changed hands. A descriptor or a negative errno.

    Without O_APPEND: each write says whether it appends (perform_write). Only a file that may be nothing but appended to
    (chattr +a) is opened with it."""
    cdef char path[PROC_PATH]
    cdef int fd = node_open(backing.nodes, node)
    cdef int opened, error
    if fd < 0:
        return fd
    snprintf(path, PROC_PATH, b"/proc/self/fd/%d", fd)
    flags = (flags & OPENS_WITH) | O_CLOEXEC | O_NOCTTY
    if backing.coherence is not NULL:    # -EAGAIN: somebody has a lease on it, and was told to give it up
        flags |= O_NONBLOCK
        if flags & (O_ACCMODE | O_TRUNC):
            coherence_own_open(<coherence_t *>backing.coherence, node)
    while True:
        opened = open(path, flags & ~O_APPEND)
        error = errno
        if opened < 0 and error == EPERM and flags & O_APPEND:
            opened = open(path, flags)
            error = errno
        if opened >= 0 or error != EMFILE or descriptors_shed(backing.nodes) == 0:
            break
    if opened < 0:
        opened = -error
    if backing.coherence is not NULL and flags & (O_ACCMODE | O_TRUNC) and opened != -EAGAIN:
        coherence_own_opened(<coherence_t *>backing.coherence, node)
    node_close(backing.nodes, node)
    return opened


cdef int wait_for_lease(backing_t *backing, vfs_request_t *request, operation_t *op, node_t *node) noexcept nogil:
    """An open got -EAGAIN: it waits until the lease is broken, without a thread, as for a lock. What the operation is to return."""
    cdef lock_wait_t *waiting = &request.waiting
    lock_enter(backing.locks, waiting, request.unique)   # found there by an INTERRUPT from here on; and was there one before?
    if load_int(&waiting.cancelled) or FltIsIoCanceled(&op.data):
        return -EINTR
    if waiting.error:
        return -waiting.error
    waiting.node = node
    waiting.lease = 1
    waiting.generation = locks_generation(backing.locks)
    waiting.wanted = 1
    op.would_block = 2
    coherence_open_waits(<coherence_t *>backing.coherence)
    return 0


cdef int open_to_execute(backing_t *backing, node_t *node, int flags) noexcept nogil:
    """execve(2): the caller needs the right to execute, not to read. It is the kernel that reads."""
    cdef int result = may_access(backing, node, MAY_EXECUTE)
    cdef bint aside
    if result < 0:
        return result
    aside = step_aside()
    result = open_node(backing, node, flags)
    if aside:
        step_back()
    return result


cdef int create_under(backing_t *backing, vfs_request_t *request, operation_t *op, const FLT_IO_PARAMETER_BLOCK *p,
                      FILE_OBJECT *file) noexcept nogil:
    """mkdir, mknod and create: by name under a directory, as the caller."""
    cdef char name[256]
    cdef credentials_t credentials
    cdef uint32_t options = p.Parameters.Create.Options
    cdef uint32_t mode
    cdef int result = component(backing, file.Directory, &p.FileName, name, -EPERM)
    cdef int directory_fd, fd = -1
    cdef REQUESTOR who
    cdef statx_t info
    if result < 0:
        return result
    directory_fd = node_open(backing.nodes, file.Directory)
    if directory_fd < 0:
        return directory_fd
    who = op.data.Thread[0]
    if who.uid != 0 and who.group < 0 and p.Parameters.Create.Mode & S_ISGID and not options & FILE_DIRECTORY_FILE:
        # A kernel before 6.3 does not name the group by which a set-group-ID file may get its directory's group.
        if statx(directory_fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, &info) == 0 and info.stx_mode & S_ISGID and \
                requestor_in_group(&who, info.stx_gid):
            who.group = info.stx_gid
    mode = p.Parameters.Create.Mode & ~assume(&credentials, &who, p.Parameters.Create.Umask)
    if options & FILE_DIRECTORY_FILE:
        result = mkdirat(directory_fd, name, mode & 0o7777)
    elif file.Flags & FO_SYNTHESISED:
        result = mknodat(directory_fd, name, mode, stackfs_device(p.Parameters.Create.Device))
    else:
        # Never an existing file: its permissions were not checked. ESTALE makes the kernel look it up and open it.
        while True:
            fd = openat(directory_fd, name,
                        (flags_for_base(op, <int>p.Parameters.Create.OpenFlags) & OPENS_WITH & ~(O_TRUNC | O_APPEND))
                        | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, mode & 0o7777)
            if fd >= 0 or errno != EMFILE or descriptors_shed(backing.nodes) == 0:
                break
        result = 0 if fd >= 0 else -1
    result = 0 if result == 0 else -errno
    restore(&credentials)
    if result == -EEXIST and fd < 0 and not file.Flags & FO_SYNTHESISED and not p.Parameters.Create.OpenFlags & O_EXCL:
        result = -ESTALE
    if result == 0:
        result = found_below(backing, request, directory_fd, file.Directory, &p.FileName, name, fd)
        if result < 0 and fd >= 0:
            close(fd)
            fd = -1
    node_close(backing.nodes, file.Directory)
    if result == 0:
        file.fd = fd
        file.Node = request.found
    return result


cdef int create_unnamed(backing_t *backing, vfs_request_t *request, operation_t *op, const FLT_IO_PARAMETER_BLOCK *p,
                        FILE_OBJECT *file) noexcept nogil:
    """O_TMPFILE: a file in a directory, but under no name, as the caller."""
    cdef char path[PROC_PATH]
    cdef credentials_t credentials
    cdef identity_t what
    cdef uint32_t mode
    cdef int directory_fd = node_open(backing.nodes, file.Directory)
    cdef int fd, result
    cdef int held = -1
    if directory_fd < 0:
        return directory_fd
    mode = p.Parameters.Create.Mode & ~assume(&credentials, op.data.Thread, p.Parameters.Create.Umask)
    fd = openat(directory_fd, b".",
                (flags_for_base(op, <int>p.Parameters.Create.OpenFlags) & ~(O_DIRECT | O_CREAT | O_TRUNC | O_APPEND))
                | O_TMPFILE | O_CLOEXEC, mode & 0o7777)
    result = 0 if fd >= 0 else -errno
    restore(&credentials)
    node_close(backing.nodes, file.Directory)
    if result < 0:
        return result
    if statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &request.info) == 0:
        snprintf(path, PROC_PATH, b"/proc/self/fd/%d", fd)
        held = open(path, O_PATH | O_CLOEXEC)
        result = -errno if held < 0 else 0
    else:
        result = -errno
    if result == 0:
        identify(&request.info, &what)
        present(backing, &request.info)
        request.found = node_unnamed(backing.nodes, &what, file.Directory, held)
        if request.found is NULL:
            result = -ENOMEM
    if result < 0:
        close(fd)
        return result
    request.out_generation = generation_of(&what)
    request.info_known = 1
    file.fd = fd
    file.Node = request.found
    return 0


cdef inline void tell_sections(operation_t *op) noexcept nogil:
    """Bytes of the file are about to go: filters that have a section of it hear of that first (B2.8)."""
    if load_int(&op.volume.sections):
        op.volume.section_conflict(op)


cdef int perform_create(backing_t *backing, vfs_request_t *request, operation_t *op, FLT_IO_PARAMETER_BLOCK *p,
                        FILE_OBJECT *file) noexcept nogil:
    cdef uint32_t options = p.Parameters.Create.Options
    cdef int fd
    cdef int flags
    cdef bint kill
    cdef credentials_t credentials
    if options & FILE_DELETE_ON_CLOSE:
        return create_unnamed(backing, request, op, p, file)
    if file.Directory is not NULL and file.Node is NULL and options >> 24 != FILE_OPEN and not options & FILE_OPEN_REPARSE_POINT:
        return create_under(backing, request, op, p, file)
    if file.Flags & FO_SYNTHESISED and request.opcode == FUSE_LOOKUP:
        fd = look_up(backing, request, p, file)
        if fd == 0:
            file.Node = request.found
        return fd
    if file.Flags & FO_SYNTHESISED:      # the open around a by-path request: no system call of its own
        if file.Node is NULL and file.Directory is not NULL:
            request.node = file.Node = name_holder(backing.nodes, file.Directory, p.FileName.Buffer, p.FileName.Length)
        return 0
    # The kernel opens pipes, sockets and devices itself; here a pipe would wait for its other end.
    if node_type(file.Node) != S_IFREG and node_type(file.Node) != S_IFDIR and node_type(file.Node) != S_IFLNK:
        return -ENXIO
    flags = <int>p.Parameters.Create.OpenFlags
    if file.Flags & FO_DIRECTORY:
        flags = O_RDONLY | O_DIRECTORY
    if flags & O_TRUNC:
        tell_sections(op)
    if backing.checks and flags & FMODE_EXEC and flags & O_ACCMODE == O_RDONLY and not file.Flags & FO_DIRECTORY:
        fd = open_to_execute(backing, file.Node, flags)
    elif request.arguments.open_flags & 1 and flags & O_TRUNC:     # FUSE_OPEN_KILL_SUIDGID
        fd = node_open(backing.nodes, file.Node)
        if fd < 0:
            return fd
        kill = kills_set_id(op.data.Thread, fd, &credentials)
        node_close(backing.nodes, file.Node)
        fd = open_node(backing, file.Node, flags_for_base(op, flags))
        if kill:
            restore(&credentials)
    else:
        fd = open_node(backing, file.Node, flags_for_base(op, flags))
    if fd == -EACCES and flags_for_base(op, flags) != flags:
        fd = open_node(backing, file.Node, flags)
        file.Flags |= FO_UNREADABLE
    if fd == -EAGAIN and backing.coherence is not NULL:
        return wait_for_lease(backing, request, op, file.Node)
    if fd < 0:
        return fd
    file.fd = fd
    return 0


# --- data ---------------------------------------------------------------------------------------------------------

cdef int64_t perform_read(operation_t *op, const READ_WRITE_PARAMETERS *p, const FILE_OBJECT *file) noexcept nogil:
    cdef ssize_t got
    cdef uint64_t total = 0
    cdef statx_t info
    cdef bint waits = True
    if op.would_block == 1 or op.announce_wait is not NULL:
        got = stackfs_read_cached(file.fd, p.Buffer, p.Length, p.ByteOffset)
        if got == <ssize_t>p.Length:
            return got
        if got >= 0:                     # the end of the file, or of what is cached
            if statx(file.fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, &info) == 0 and \
                    p.ByteOffset + got >= <int64_t>info.stx_size:
                return got
        elif errno == EOPNOTSUPP:
            waits = not stackfs_in_memory(file.fd)
        elif errno != EAGAIN:
            return -errno
        if waits:
            if op.would_block == 1:
                op.would_block = 2
                return 0
            about_to_wait(op)
    while total < p.Length:
        got = pread(file.fd, <char *>p.Buffer + total, p.Length - total, p.ByteOffset + <int64_t>total)
        if got < 0:
            if errno == EINTR:
                continue
            return -errno if total == 0 else <int64_t>total
        if got == 0:
            break
        total += <uint64_t>got
    return <int64_t>total


cdef bint kills_set_id(const REQUESTOR *who, int fd, credentials_t *credentials) noexcept nogil:
    """The caller is about to change the file's content, or owner, and is not root. True: the set-id bits that this change
    costs on a local filesystem will be cleared by the backing one, until restore(). False: there are none, nothing changed."""
    cdef statx_t info
    if statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, &info) != 0:
        drop_fsetid(credentials, -1)
        return True
    if info.stx_mode & S_IFMT == S_IFDIR or not info.stx_mode & (S_ISUID | S_ISGID):
        return False
    drop_fsetid(credentials, info.stx_gid if keeps_set_group_id(who, &info) else -1)
    return True


cdef bint keeps_set_group_id(const REQUESTOR *who, const statx_t *info) noexcept nogil:
    """A set-group-ID bit without group execution makes no program run as the group: whoever is in the group leaves it."""
    return info.stx_mode & (S_ISGID | S_IXGRP) == S_ISGID and (who.uid == 0 or requestor_in_group(who, info.stx_gid))


cdef int64_t perform_write(operation_t *op, const READ_WRITE_PARAMETERS *p, const FILE_OBJECT *file, uint32_t flags,
                           bint appends, bint kill) noexcept nogil:
    """flags: the wire's. appends: the program's descriptor says O_APPEND now; where a filter has moved the write, its
    offset counts. Pages of a shared mapping come with any descriptor of the file and never append."""
    cdef ssize_t put
    cdef uint64_t total = 0
    cdef int error = 0
    cdef credentials_t credentials
    if flags & FUSE_WRITE_CACHE:
        appends = False
        if fcntl(file.fd, F_GETFL) & O_APPEND:       # see open_node()
            return -EPERM
    if file.OpenFlags & <uint32_t>(O_SYNC | O_DSYNC):
        if op.would_block == 1:
            op.would_block = 2
            return 0
        about_to_wait(op)
    if kill:
        kill = kills_set_id(op.data.Thread, file.fd, &credentials)
    while total < p.Length:
        if appends:
            put = stackfs_append(file.fd, <const char *>p.Buffer + total, p.Length - total)
        else:
            put = pwrite(file.fd, <const char *>p.Buffer + total, p.Length - total, p.ByteOffset + <int64_t>total)
        if put < 0:
            if errno == EINTR:
                continue
            error = errno
            break
        if put == 0:
            error = EIO
            break
        total += <uint64_t>put
    if kill:
        restore(&credentials)
    if error and (total == 0 or flags & FUSE_WRITE_CACHE):           # the kernel does not look how much of a page was written back
        return -error
    return <int64_t>total


# --- set information ------------------------------------------------------------------------------------------------

cdef int truncate_file(backing_t *backing, const REQUESTOR *who, FILE_OBJECT *file, int64_t size, bint kill) noexcept nogil:
    cdef int fd = file.fd
    cdef int result = 0
    cdef credentials_t credentials
    if fd < 0 or file.OpenFlags & <uint32_t>O_ACCMODE == <uint32_t>O_RDONLY:
        fd = open_node(backing, file.Node, O_WRONLY | O_NONBLOCK)
        if fd < 0:
            return fd
    if kill:
        kill = kills_set_id(who, fd, &credentials)
    if ftruncate(fd, size) != 0:
        result = -errno
    if kill:
        restore(&credentials)
    if fd != file.fd:
        close(fd)
    return result


cdef int set_times(backing_t *backing, FILE_OBJECT *file, const SET_FILE_PARAMETERS *p) noexcept nogil:
    cdef timespec times[2]
    cdef int fd, result = 0
    times[0].tv_sec = p.atime_sec
    times[0].tv_nsec = p.atime_nsec
    times[1].tv_sec = p.mtime_sec
    times[1].tv_nsec = p.mtime_nsec
    if p.Flags & FATTR_ATIME_NOW:
        times[0].tv_nsec = UTIME_NOW
    elif not p.Flags & FATTR_ATIME:
        times[0].tv_nsec = UTIME_OMIT
    if p.Flags & FATTR_MTIME_NOW:
        times[1].tv_nsec = UTIME_NOW
    elif not p.Flags & FATTR_MTIME:
        times[1].tv_nsec = UTIME_OMIT
    fd = node_open(backing.nodes, file.Node)
    if fd < 0:
        return fd
    if utimensat(fd, b"", times, AT_EMPTY_PATH) != 0:
        result = -errno
    node_close(backing.nodes, file.Node)
    return result


cdef int remove_name(backing_t *backing, FILE_OBJECT *file, const FILE_NAME *name, int flags) noexcept nogil:
    cdef char terminated[256]
    cdef int result = component(backing, file.Directory, name, terminated, -ENOENT)
    cdef int fd
    cdef node_t *pinned
    if result < 0:
        return result
    fd = node_open(backing.nodes, file.Directory)
    if fd < 0:
        return fd
    pinned = name_pin(backing.nodes, file.Directory, name.Buffer, name.Length)
    if unlinkat(fd, terminated, flags) == 0:
        name_removed(backing.nodes, file.Directory, name.Buffer, name.Length, pinned)
    else:
        result = -errno
        name_unpin(backing.nodes, pinned)
    node_close(backing.nodes, file.Directory)
    return result


cdef int rename_name(backing_t *backing, const REQUESTOR *who, FILE_OBJECT *file, const FILE_NAME *name,
                     const SET_FILE_PARAMETERS *p) noexcept nogil:
    cdef char old[256]
    cdef char new[256]
    cdef int result = component(backing, file.Directory, name, old, -ENOENT)
    cdef int old_fd, new_fd
    cdef bint exchange = p.Flags & <uint32_t>RENAME_EXCHANGE != 0
    cdef bint linked
    cdef bint makes = p.Flags & <uint32_t>RENAME_WHITEOUT != 0       # a new inode takes the old name: the caller's
    cdef credentials_t credentials
    cdef node_t *pinned
    if result == 0:
        result = component(backing, p.TargetDirectory, &p.TargetName, new, -EPERM)
    if result < 0:
        return result
    old_fd = node_open(backing.nodes, file.Directory)
    if old_fd < 0:
        return old_fd
    new_fd = node_open(backing.nodes, p.TargetDirectory)
    if new_fd < 0:
        node_close(backing.nodes, file.Directory)
        return new_fd
    pinned = name_pin(backing.nodes, p.TargetDirectory, p.TargetName.Buffer, p.TargetName.Length)
    linked = names_linked(backing.nodes, file.Directory, name.Buffer, name.Length,
                          p.TargetDirectory, p.TargetName.Buffer, p.TargetName.Length)
    if makes:
        assume(&credentials, who, 0)
    result = renameat2(old_fd, old, new_fd, new, p.Flags)
    if result != 0:
        result = -errno
    if makes:
        restore(&credentials)
    if result == 0:
        name_moved(backing.nodes, file.Directory, name.Buffer, name.Length,
                   p.TargetDirectory, p.TargetName.Buffer, p.TargetName.Length, exchange, linked, pinned)
    else:
        name_unpin(backing.nodes, pinned)
    node_close(backing.nodes, p.TargetDirectory)
    node_close(backing.nodes, file.Directory)
    return result


cdef int link_name(backing_t *backing, vfs_request_t *request, FILE_OBJECT *file, const SET_FILE_PARAMETERS *p) noexcept nogil:
    cdef char name[256]
    cdef char path[PROC_PATH]
    cdef int result = component(backing, p.TargetDirectory, &p.TargetName, name, -EPERM)
    cdef int fd, directory_fd
    if result < 0:
        return result
    fd = node_open(backing.nodes, file.Node)
    if fd < 0:
        return fd
    directory_fd = node_open(backing.nodes, p.TargetDirectory)
    if directory_fd < 0:
        node_close(backing.nodes, file.Node)
        return directory_fd
    if linkat(fd, b"", directory_fd, name, AT_EMPTY_PATH) != 0:
        if errno == ENOENT or errno == EPERM:        # AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH
            snprintf(path, PROC_PATH, b"/proc/self/fd/%d", fd)
            if linkat(AT_FDCWD, path, directory_fd, name, AT_SYMLINK_FOLLOW) != 0:
                result = -errno
        else:
            result = -errno
    if result == 0:
        result = found_below(backing, request, directory_fd, p.TargetDirectory, &p.TargetName, name, -1)
    node_close(backing.nodes, p.TargetDirectory)
    node_close(backing.nodes, file.Node)
    return result


cdef int set_security(backing_t *backing, const REQUESTOR *who, FILE_OBJECT *file, const SECURITY_PARAMETERS *p) noexcept nogil:
    """chown, then chmod: the other way round chown would take the set-id bits away again."""
    cdef char path[PROC_PATH]
    cdef statx_t info
    cdef unsigned mode
    cdef credentials_t credentials
    cdef bint kill
    cdef int result = 0
    cdef int fd = node_open(backing.nodes, file.Node)
    if fd < 0:
        return fd
    if p.SecurityInformation & (OWNER_SECURITY_INFORMATION | GROUP_SECURITY_INFORMATION):
        kill = who.uid != 0 and kills_set_id(who, fd, &credentials)
        if kill and p.SecurityInformation & GROUP_SECURITY_INFORMATION and requestor_in_group(who, p.Gid):
            add_group(&credentials, p.Gid)
        if fchownat(fd, b"", p.Uid if p.SecurityInformation & OWNER_SECURITY_INFORMATION else <unsigned>-1,
                    p.Gid if p.SecurityInformation & GROUP_SECURITY_INFORMATION else <unsigned>-1, AT_EMPTY_PATH) != 0:
            result = -errno
        if kill:
            restore(&credentials)
    if result == 0 and p.SecurityInformation & DACL_SECURITY_INFORMATION:
        mode = p.Mode & 0o7777
        if p.KillSetId:
            if statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, &info) != 0:
                result = -errno
            mode = without_set_id(who, &info)
        if result == 0 and not (p.KillSetId and mode == (info.stx_mode & 0o7777)):
            snprintf(path, PROC_PATH, b"/proc/self/fd/%d", fd)
            if chmod(path, mode) != 0:
                result = -errno
    node_close(backing.nodes, file.Node)
    return result


cdef unsigned without_set_id(const REQUESTOR *who, const statx_t *info) noexcept nogil:
    cdef unsigned mode = info.stx_mode & 0o7777
    if info.stx_mode & S_IFMT == S_IFDIR:
        return mode
    mode &= ~S_ISUID
    if not keeps_set_group_id(who, info):
        mode &= ~S_ISGID
    return mode


# --- extended attributes --------------------------------------------------------------------------------------------

cdef int64_t perform_ea(backing_t *backing, vfs_request_t *request, const EA_PARAMETERS *p, FILE_OBJECT *file, bint query) noexcept nogil:
    """By the inode's descriptor. What /proc/self/fd leads to is that inode itself: a symbolic link there is not followed."""
    cdef char path[PROC_PATH]
    cdef int64_t result
    cdef statx_t info
    cdef int fd = node_open(backing.nodes, file.Node)
    if fd < 0:
        return fd
    snprintf(path, PROC_PATH, b"/proc/self/fd/%d", fd)
    if query and p.EaName is NULL:
        result = listxattr(path, <char *>p.Buffer, p.Length)
    elif query:
        result = getxattr(path, p.EaName, p.Buffer, p.Length)
    elif p.Remove:
        result = removexattr(path, p.EaName)
    else:
        result = setxattr(path, p.EaName, p.Buffer, p.Length, <int>p.Flags)
        if result == 0 and request.arguments.open_flags & FUSE_SETXATTR_ACL_KILL_SGID:
            if statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, &info) == 0 and info.stx_mode & S_ISGID:
                chmod(path, info.stx_mode & 0o7777 & ~S_ISGID)
    if result < 0:
        result = -errno
    elif query and p.EaName is NULL and p.Length and request.who.uid != 0:
        result = without_trusted(<char *>p.Buffer, result)
    node_close(backing.nodes, file.Node)
    return result


cdef int64_t without_trusted(char *names, int64_t length) noexcept nogil:
    """Takes trusted.* out of a list: only root may know of them."""
    cdef int64_t at = 0, size
    while at < length:
        size = <int64_t>strlen(names + at) + 1
        if strncmp(names + at, b"trusted.", 8) == 0:
            memmove(names + at, names + at + size, length - at - size)
            length -= size
        else:
            at += size
    return length


# --- the rest ---------------------------------------------------------------------------------------------------------

cdef int64_t read_directory(vfs_request_t *request, const DIRECTORY_PARAMETERS *p, handle_t *handle) noexcept nogil:
    cdef int64_t got = 0
    if exchange_int(&handle.reading, 1):
        return -EBUSY                    # not the kernel's doing: it reads one handle by one request at a time
    if handle.position != p.Offset:
        if lseek(handle.file.fd, p.Offset, SEEK_SET) < 0:
            got = -errno
        else:
            handle.position = p.Offset
    while got == 0:
        got = stackfs_getdents(handle.file.fd, p.Buffer, p.Length)
        if got < 0:
            got = -errno
            handle.position = -1
        elif got == 0:
            break
        else:                            # the last record's d_off is where the descriptor stands now
            handle.position = last_offset(<const char *>p.Buffer, got)
            if handle.file.Node is (<backing_t *>request.volume.backing).nodes.root:
                got = without_mark(<char *>p.Buffer, got)
    if got >= 0:
        request.listed = got
        request.listed_to = handle.position
    store_int(&handle.reading, 0)
    return got


cdef int64_t without_mark(char *records, int64_t length) noexcept nogil:
    """The records but for that of the volume's mark; their length."""
    cdef uint16_t record
    cdef int64_t at = 0
    while at + 19 <= length:
        memcpy(&record, records + at + 16, 2)
        if record == 0:
            break
        if strcmp(records + at + 19, VOLUME_MARK) == 0:
            memmove(records + at, records + at + record, length - at - record)
            return length - record
        at += record
    return length


cdef int64_t last_offset(const char *records, long length) noexcept nogil:
    cdef int64_t offset = 0
    cdef uint16_t record
    cdef long at = 0
    while at + 19 <= length:
        memcpy(&offset, records + at + 8, 8)
        memcpy(&record, records + at + 16, 2)
        if record == 0:
            break
        at += record
    return offset


# --- extents ----------------------------------------------------------------------------------------------------------

cdef int64_t allocate(operation_t *op, FILE_OBJECT *file, uint32_t mode, int64_t offset, int64_t length) noexcept nogil:
    cdef credentials_t credentials
    cdef bint kill
    cdef int64_t result
    if op.would_block == 1:              # zeroing and reserving may wait for the disk
        op.would_block = 2
        return 0
    about_to_wait(op)
    if extent_mode_zeroes(mode):
        tell_sections(op)
    kill = op.data.Thread.uid != 0 and kills_set_id(op.data.Thread, file.fd, &credentials)
    result = extent_allocate(file.fd, mode, offset, length)
    if kill:
        restore(&credentials)
    return result


cdef int64_t duplicate(backing_t *backing, operation_t *op, const CONTROL_PARAMETERS *p, FILE_OBJECT *file) noexcept nogil:
    """copy_file_range. Below an instance that filters data the bytes in the backing file are not what programs see, and
    the copy would escape it: then only if each such instance was shown this operation and let it pass (D14)."""
    cdef credentials_t credentials
    cdef bint kill
    cdef int64_t result
    if file.fd < 0 or p.SourceFile is NULL or p.SourceFile.fd < 0:
        return -EBADF
    if operation_hidden_from(op, IRP_MJ_READ) or operation_hidden_from(op, IRP_MJ_WRITE):
        return -EOPNOTSUPP
    if op.would_block == 1:
        op.would_block = 2
        return 0
    about_to_wait(op)
    tell_sections(op)
    kill = op.data.Thread.uid != 0 and kills_set_id(op.data.Thread, file.fd, &credentials)
    result = extent_copy(p.SourceFile.fd, p.SourceFileOffset, file.fd, p.FileOffset, <uint64_t>p.ByteCount, &backing.reflink)
    if kill:
        restore(&credentials)
    return result


# --- locks ------------------------------------------------------------------------------------------------------------

cdef int64_t perform_lock(backing_t *backing, vfs_request_t *request, operation_t *op, FLT_IO_PARAMETER_BLOCK *p,
                          FILE_OBJECT *file) noexcept nogil:
    """Never waits. A lock that somebody else has, and that may be waited for: op.would_block = 2 and waiting.wanted."""
    cdef lock_wait_t *waiting = &request.waiting
    cdef const LOCK_PARAMETERS *lock = &p.Parameters.Lock
    cdef uint8_t minor = p.MinorFunction
    cdef lock_range_t wanted
    cdef lock_owner_t *entry
    cdef uint64_t generation
    cdef uint32_t type = <uint32_t>F_UNLCK
    cdef int result
    if minor == IRP_MN_UNLOCK_ALL_BY_KEY:
        locks_drop(backing.locks, file.Node, lock.LockOwner, True)
        return 0
    if minor == IRP_MN_UNLOCK_ALL:
        locks_drop(backing.locks, file.Node, file.fh, False)
        return 0
    if file.fd < 0:
        return -EBADF
    if minor == IRP_MN_LOCK or minor == IRP_MN_QUERY_LOCK:
        type = <uint32_t>(F_WRLCK if lock.ExclusiveLock else F_RDLCK)
    if not lock_range_of(lock, type, &wanted):
        return -EINVAL
    if minor == IRP_MN_QUERY_LOCK:
        return query_lock(backing, lock, file, &wanted)
    if load_int(&waiting.cancelled):
        return -EINTR
    if waiting.error:
        return -waiting.error
    while True:
        generation = locks_generation(backing.locks)
        if lock.Flock:
            result = lock_file(backing.locks, file, type)
        else:
            entry = lock_owner_get(backing.locks, file.Node, lock.LockOwner, file.fh, minor == IRP_MN_LOCK)
            if entry is NULL:
                return -ENOLCK if minor == IRP_MN_LOCK else 0
            result = 0
            if entry.fd < 0:
                result = open_for_locks(backing, file.Node)
                if result == -EAGAIN and backing.coherence is not NULL:
                    lock_owner_put(backing.locks, entry)
                    return wait_for_lease(backing, request, op, file.Node)
                if result >= 0:
                    lock_owner_opened(backing.locks, entry, result)
                    result = 0
            if result == 0:
                result = lock_set(backing.locks, entry, &wanted)
            lock_owner_put(backing.locks, entry)
        if result != -EAGAIN or lock.FailImmediately or minor != IRP_MN_LOCK:
            return result
        if generation == locks_generation(backing.locks):
            break
    waiting.node = file.Node
    waiting.owner = lock.LockOwner
    waiting.range = wanted
    waiting.lease = 0
    waiting.flock = lock.Flock
    if not waiting.entered:
        waiting.unique = request.unique
    waiting.generation = generation
    waiting.wanted = 1
    op.would_block = 2
    return 0


cdef int open_for_locks(backing_t *backing, node_t *node) noexcept nogil:
    """A write lock needs a descriptor open for writing. Where the file cannot be written nobody has one to lock it with."""
    cdef int fd = open_node(backing, node, O_RDWR | O_NONBLOCK)
    if fd < 0 and fd != -EAGAIN:
        fd = open_node(backing, node, O_RDONLY | O_NONBLOCK)
    if fd < 0 and fd != -EAGAIN:
        fd = open_node(backing, node, O_WRONLY | O_NONBLOCK)
    return fd


cdef int query_lock(backing_t *backing, const LOCK_PARAMETERS *lock, const FILE_OBJECT *file, const lock_range_t *wanted) noexcept nogil:
    cdef lock_owner_t *entry = lock_owner_get(backing.locks, file.Node, lock.LockOwner, file.fh, False)
    cdef int result
    lock.Found[0] = wanted[0]
    result = lock_query(backing.locks, file.fd if entry is NULL or entry.fd < 0 else entry.fd, file.Node, lock.LockOwner, lock.Found)
    if entry is not NULL:
        lock_owner_put(backing.locks, entry)
    return result


cdef bint is_reparse_point_control(const FLT_IO_PARAMETER_BLOCK *p, const FILE_OBJECT *file) noexcept nogil:
    """Of a file or directory that is there. The others make, and read, symbolic links."""
    cdef uint32_t code = p.Parameters.Control.ControlCode
    return (code == <uint32_t>FSCTL_SET_REPARSE_POINT or code == <uint32_t>FSCTL_GET_REPARSE_POINT
            or code == <uint32_t>FSCTL_DELETE_REPARSE_POINT) and \
        file.Node is not NULL and node_type(file.Node) != S_IFLNK


cdef int64_t perform_control(backing_t *backing, vfs_request_t *request, operation_t *op, FLT_IO_PARAMETER_BLOCK *p,
                             FILE_OBJECT *file) noexcept nogil:
    cdef char name[256]
    cdef char target[4097]
    cdef credentials_t credentials
    cdef int fd
    cdef int64_t result
    if is_reparse_point_control(p, file):
        if file.fd < 0:
            return -EBADF
        op.data.IoStatus.Status = reparse_point_control(file.fd, &p.Parameters.Control, <size_t *>&op.data.IoStatus.Information)
        return STATUS_IS_SET
    if p.Parameters.Control.ControlCode == FSCTL_GET_REPARSE_POINT:
        fd = node_open(backing.nodes, file.Node)
        if fd < 0:
            return fd
        result = readlinkat(fd, b"", <char *>p.Parameters.Control.OutputBuffer, p.Parameters.Control.OutputBufferLength)
        if result < 0:
            result = -errno
        node_close(backing.nodes, file.Node)
        return result
    if p.Parameters.Control.ControlCode == FSCTL_DUPLICATE_EXTENTS_TO_FILE:
        return duplicate(backing, op, &p.Parameters.Control, file)
    if p.Parameters.Control.ControlCode == FSCTL_SET_ZERO_DATA:
        request.info_known = 0
        return -EBADF if file.fd < 0 else allocate(
            op, file, p.Parameters.Control.Flags, p.Parameters.Control.FileOffset, p.Parameters.Control.ByteCount)
    if load_bits(&file.Flags) & FO_VOLUME_OPEN:
        return control_volume(backing, p.Parameters.Control.ControlCode)
    if is_file_flags(p.Parameters.Control.ControlCode):
        return -EBADF if file.fd < 0 else file_flags(file.fd, op.data.Thread, &p.Parameters.Control)
    if p.Parameters.Control.ControlCode == FSCTL_STACKFS_POLL and op.data.RequestOpcode == FUSE_POLL:
        return POLL_ALWAYS_READY
    if p.Parameters.Control.ControlCode == FSCTL_MANAGE_BYPASS_IO:
        return 0                         # what stands in the way is asked where the open is answered (bypass.pyx)
    if p.Parameters.Control.ControlCode != FSCTL_SET_REPARSE_POINT:
        return NO_SUCH_CONTROL
    result = component(backing, file.Directory, &p.FileName, name, -EPERM)
    if result < 0:
        return result
    if p.Parameters.Control.InputBufferLength > 4096:
        return -ENAMETOOLONG
    memcpy(target, p.Parameters.Control.InputBuffer, p.Parameters.Control.InputBufferLength)
    target[p.Parameters.Control.InputBufferLength] = 0
    fd = node_open(backing.nodes, file.Directory)
    if fd < 0:
        return fd
    assume(&credentials, op.data.Thread, 0)
    result = 0 if symlinkat(target, fd, name) == 0 else -errno
    restore(&credentials)
    if result == 0:
        result = found_below(backing, request, fd, file.Directory, &p.FileName, name, -1)
        if result == 0:
            file.Node = request.found
    node_close(backing.nodes, file.Directory)
    return result


cdef int64_t control_volume(backing_t *backing, uint32_t code) noexcept nogil:
    """What is injected for filters to see (D20); nothing is kept locked, and the volume goes on."""
    if code == FSCTL_LOCK_VOLUME:
        return -EACCES if backing.handles.open_count else 0
    return 0 if code == FSCTL_UNLOCK_VOLUME or code == FSCTL_DISMOUNT_VOLUME else NO_SUCH_CONTROL


cdef int64_t perform_notice(uint8_t major) noexcept nogil:
    """What filters are told, and nothing is to be done for (D19, D20); NO_SUCH_CONTROL: what there is nothing for here."""
    if is_notice(major) or major == IRP_MJ_VOLUME_MOUNT or major == IRP_MJ_VOLUME_DISMOUNT or major == IRP_MJ_SHUTDOWN or \
            major == IRP_MJ_PNP:
        return 0
    return NO_SUCH_CONTROL


cdef int64_t query(backing_t *backing, vfs_request_t *request, FLT_IO_PARAMETER_BLOCK *p, FILE_OBJECT *file) noexcept nogil:
    """Attributes: of a name (LOOKUP: the inode becomes the request's entry), of a node, of an open file."""
    cdef statx_t *info = p.Parameters.QueryFile.Info
    cdef int result
    if p.Parameters.QueryFile.FileInformationClass == FilePositionInformation:
        return -EBADF if file.fd < 0 else extent_seek(file.fd, p.Parameters.QueryFile.Offset, p.Parameters.QueryFile.Whence)
    if p.FileName.Length and file.Directory is not NULL and p.MajorFunction == IRP_MJ_QUERY_OPEN:
        return look_up(backing, request, p, file)
    if request.opcode == FUSE_ACCESS:
        result = may_access(backing, file.Node, <int>request.arguments.mode)
        if result < 0:
            return result
    if request.info_known and info == &request.info:
        return 0
    return stat_file(backing, file, info)


cdef int take_rights(vfs_request_t *request, const operation_t *op) noexcept nogil:
    """Whose rights this operation needs: the caller's, unless it is known to need others, or none. A negative errno, or 0."""
    cdef const FLT_IO_PARAMETER_BLOCK *p = &op.current
    cdef uint8_t major = p.MajorFunction
    if major == IRP_MJ_READ or major == IRP_MJ_FLUSH_BUFFERS or major == IRP_MJ_CLEANUP or major == IRP_MJ_CLOSE or \
            major == IRP_MJ_DIRECTORY_CONTROL or major == IRP_MJ_QUERY_VOLUME_INFORMATION:
        return 0                         # nothing is asked of whoever has the file open
    if is_notice(major):
        return 0                         # nothing is done
    if major == IRP_MJ_FILE_SYSTEM_CONTROL and p.Parameters.Control.ControlCode != FSCTL_SET_REPARSE_POINT:
        return 0                         # nor of whoever has reached a symbolic link, or has opened a file
    if (major == IRP_MJ_NETWORK_QUERY_OPEN or major == IRP_MJ_QUERY_INFORMATION) and request.opcode != FUSE_ACCESS:
        return 0                         # nor of whoever has reached it
    if request.within_listing:
        revert_to_self()                 # the kernel's own reading ahead: it believes the answer for no time at all
        return 0
    if major == IRP_MJ_SET_SECURITY and p.Parameters.Security.SecurityInformation == DACL_SECURITY_INFORMATION and \
            p.Parameters.Security.KillSetId:
        revert_to_self()                 # the kernel takes set-id bits off what somebody may write who may not chmod it
        return 0
    return impersonate(op.data.Thread)


cdef void backing_refuse(backing_t *backing, bint refuse) noexcept nogil:
    store_int(&backing.special, (BACKING_CHECKS if backing.checks else 0) | (BACKING_REFUSES if refuse else 0))


cdef void backing_perform(operation_t *op) noexcept nogil:
    cdef backing_t *backing = <backing_t *>op.volume.backing
    cdef int result
    if not backing.special:
        perform(op)
        return
    if load_int(&backing.special) & BACKING_REFUSES and op.current.MajorFunction != IRP_MJ_CLEANUP and \
            op.current.MajorFunction != IRP_MJ_CLOSE and not op.data.Flags & FLTFL_CALLBACK_DATA_GENERATED_IO:
        op.data.IoStatus.Status = errno_to_nt(EIO)
        op.data.IoStatus.Information = 0
        return
    if not backing.checks:
        perform(op)
        return
    result = take_rights(<vfs_request_t *>op.request, op)
    if result == 0:
        perform(op)
    else:
        op.data.IoStatus.Status = errno_to_nt(-result)
        op.data.IoStatus.Information = 0
    finish_impersonating()


cdef void perform(operation_t *op) noexcept nogil:
    cdef backing_t *backing = <backing_t *>op.volume.backing
    cdef vfs_request_t *request = <vfs_request_t *>op.request
    cdef FLT_IO_PARAMETER_BLOCK *p = &op.current
    cdef FILE_OBJECT *file = p.TargetFileObject
    cdef uint8_t major = p.MajorFunction
    cdef int64_t result = -EOPNOTSUPP
    if major == IRP_MJ_READ:
        result = -EBADF if file.fd < 0 else perform_read(op, &p.Parameters.Read, file)
    elif major == IRP_MJ_WRITE:
        result = -EBADF if file.fd < 0 else perform_write(
            op, &p.Parameters.Write, file, request.arguments.open_flags,
            request.arguments.flags & <uint32_t>O_APPEND and p.Parameters.Write.ByteOffset == <int64_t>request.arguments.offset,
            request.arguments.open_flags & FUSE_WRITE_KILL_SUIDGID)
    elif major == IRP_MJ_QUERY_OPEN or major == IRP_MJ_NETWORK_QUERY_OPEN or major == IRP_MJ_QUERY_INFORMATION:
        result = query(backing, request, p, file)
    elif major == IRP_MJ_CREATE:
        result = perform_create(backing, request, op, p, file)
    elif major == IRP_MJ_CLEANUP:
        result = 0
    elif major == IRP_MJ_CLOSE:
        result = 0                       # the descriptor is closed by the handle's last user (requests.put_handle)
    elif major == IRP_MJ_DIRECTORY_CONTROL and p.MinorFunction == IRP_MN_NOTIFY_CHANGE_DIRECTORY:
        result = NO_SUCH_CONTROL         # who watches the backing directory itself has inotify(7)
    elif major == IRP_MJ_DIRECTORY_CONTROL:
        result = -EBADF if file.fd < 0 else read_directory(request, &p.Parameters.Directory, <handle_t *>file)
    elif major == IRP_MJ_SET_INFORMATION:
        request.info_known = 0
        if p.Parameters.SetFile.FileInformationClass == FileEndOfFileInformation:
            about_to_wait(op)
            tell_sections(op)
            result = truncate_file(backing, op.data.Thread, file, p.Parameters.SetFile.EndOfFile,
                                   p.Parameters.SetFile.Flags & FATTR_KILL_SUIDGID)
            if result == -EAGAIN and backing.coherence is not NULL:
                result = wait_for_lease(backing, request, op, file.Node)
        elif p.Parameters.SetFile.FileInformationClass == FileAllocationInformation:
            result = -EBADF if file.fd < 0 else allocate(op, file, p.Parameters.SetFile.Flags,
                                                         p.Parameters.SetFile.AllocationOffset, p.Parameters.SetFile.AllocationLength)
        elif p.Parameters.SetFile.FileInformationClass == FileBasicInformation:
            result = set_times(backing, file, &p.Parameters.SetFile)
        elif p.Parameters.SetFile.FileInformationClass == FileDispositionInformation:
            result = remove_name(backing, file, &p.FileName, <int>p.Parameters.SetFile.Flags)
        elif p.Parameters.SetFile.FileInformationClass == FileLinkInformation:
            result = link_name(backing, request, file, &p.Parameters.SetFile)
        else:
            result = rename_name(backing, op.data.Thread, file, &p.FileName, &p.Parameters.SetFile)
    elif major == IRP_MJ_SET_SECURITY and not p.Parameters.Security.SecurityInformation & LABEL_SECURITY_INFORMATION:
        request.info_known = 0
        result = set_security(backing, op.data.Thread, file, &p.Parameters.Security)
    elif major == IRP_MJ_QUERY_EA or major == IRP_MJ_QUERY_SECURITY:
        result = perform_ea(backing, request, &p.Parameters.Ea, file, True)
    elif major == IRP_MJ_SET_EA or major == IRP_MJ_SET_SECURITY:
        result = perform_ea(backing, request, &p.Parameters.Ea, file, False)
    elif major == IRP_MJ_FLUSH_BUFFERS:
        if op.would_block == 1:
            op.would_block = 2
            return
        about_to_wait(op)
        if load_bits(&file.Flags) & FO_VOLUME_OPEN:
            result = flush_volume(backing)
        else:
            result = fdatasync(file.fd) if p.Parameters.Flush.DataOnly else fsync(file.fd)
            if result < 0:
                result = -errno
    elif major == IRP_MJ_QUERY_VOLUME_INFORMATION:
        result = query_volume(backing, p)
    elif major == IRP_MJ_FILE_SYSTEM_CONTROL:
        result = perform_control(backing, request, op, p, file)
    elif major == IRP_MJ_DEVICE_CONTROL:
        result = NO_SUCH_CONTROL
    elif major == IRP_MJ_LOCK_CONTROL:
        result = perform_lock(backing, request, op, p, file)
    else:
        result = perform_notice(major)
    if op.would_block == 2:
        return
    if result == STATUS_IS_SET:
        op.base_done = NT_SUCCESS(op.data.IoStatus.Status)
    elif result == NO_SUCH_CONTROL:
        op.data.IoStatus.Status = STATUS_INVALID_DEVICE_REQUEST
        op.data.IoStatus.Information = 0
    elif result < 0:
        op.data.IoStatus.Status = errno_to_nt(<int>-result)
        op.data.IoStatus.Information = 0
    else:
        op.data.IoStatus.Status = STATUS_SUCCESS
        op.data.IoStatus.Information = <uint64_t>result
        op.base_done = 1
        if major == IRP_MJ_CREATE:
            set_bits(&file.Flags, FO_CREATED)
        elif major == IRP_MJ_CLOSE:
            set_bits(&file.Flags, FO_CLOSED)


cdef int flush_volume(backing_t *backing) noexcept nogil:
    """Everything of the backing file system, by whomever it was written."""
    cdef int result = 0
    cdef int root = node_open(backing.nodes, backing.nodes.root)
    cdef int fd
    if root < 0:
        return root
    fd = openat(root, b".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if fd < 0 or syncfs(fd) != 0:
        result = -errno
    if fd >= 0:
        close(fd)
    node_close(backing.nodes, backing.nodes.root)
    return result


cdef int query_volume(backing_t *backing, FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    cdef int fd, result
    if p.Parameters.Volume.Length < sizeof(c_statvfs):
        return -EINVAL
    fd = node_open(backing.nodes, p.TargetFileObject.Node)
    if fd < 0:
        return fd
    result = 0 if fstatvfs(fd, <c_statvfs *>p.Parameters.Volume.Buffer) == 0 else -errno
    node_close(backing.nodes, p.TargetFileObject.Node)
    return result
