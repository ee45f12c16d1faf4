# The FUSE wire format for Cython: fuse_wire.h, declared. The structs and numbers are explained there.

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

cdef extern from "fuse_wire.h" nogil:
    enum:
        FUSE_LOOKUP
        FUSE_FORGET
        FUSE_GETATTR
        FUSE_SETATTR
        FUSE_READLINK
        FUSE_SYMLINK
        FUSE_MKNOD
        FUSE_MKDIR
        FUSE_UNLINK
        FUSE_RMDIR
        FUSE_RENAME
        FUSE_LINK
        FUSE_OPEN
        FUSE_READ
        FUSE_WRITE
        FUSE_STATFS
        FUSE_RELEASE
        FUSE_FSYNC
        FUSE_SETXATTR
        FUSE_GETXATTR
        FUSE_LISTXATTR
        FUSE_REMOVEXATTR
        FUSE_FLUSH
        FUSE_INIT
        FUSE_OPENDIR
        FUSE_READDIR
        FUSE_RELEASEDIR
        FUSE_FSYNCDIR
        FUSE_GETLK
        FUSE_SETLK
        FUSE_SETLKW
        FUSE_ACCESS
        FUSE_CREATE
        FUSE_INTERRUPT
        FUSE_BMAP
        FUSE_DESTROY
        FUSE_IOCTL
        FUSE_POLL
        FUSE_NOTIFY_REPLY
        FUSE_BATCH_FORGET
        FUSE_FALLOCATE
        FUSE_READDIRPLUS
        FUSE_RENAME2
        FUSE_LSEEK
        FUSE_COPY_FILE_RANGE
        FUSE_SETUPMAPPING
        FUSE_REMOVEMAPPING
        FUSE_SYNCFS
        FUSE_TMPFILE
        FUSE_STATX
        FUSE_COPY_FILE_RANGE_64
        FUSE_NOTIFY_POLL
        FUSE_NOTIFY_INVAL_INODE
        FUSE_NOTIFY_INVAL_ENTRY
        FUSE_NOTIFY_INC_EPOCH

    const uint64_t FUSE_ASYNC_READ
    const uint64_t FUSE_POSIX_LOCKS
    const uint64_t FUSE_ATOMIC_O_TRUNC
    const uint64_t FUSE_EXPORT_SUPPORT
    const uint64_t FUSE_BIG_WRITES
    const uint64_t FUSE_DONT_MASK
    const uint64_t FUSE_FLOCK_LOCKS
    const uint64_t FUSE_AUTO_INVAL_DATA
    const uint64_t FUSE_DO_READDIRPLUS
    const uint64_t FUSE_READDIRPLUS_AUTO
    const uint64_t FUSE_ASYNC_DIO
    const uint64_t FUSE_WRITEBACK_CACHE
    const uint64_t FUSE_PARALLEL_DIROPS
    const uint64_t FUSE_POSIX_ACL
    const uint64_t FUSE_MAX_PAGES
    const uint64_t FUSE_CACHE_SYMLINKS
    const uint64_t FUSE_HANDLE_KILLPRIV_V2
    const uint64_t FUSE_SETXATTR_EXT
    const uint64_t FUSE_INIT_EXT
    const uint64_t FUSE_CREATE_SUPP_GROUP
    const uint64_t FUSE_DIRECT_IO_ALLOW_MMAP
    const uint64_t FUSE_PASSTHROUGH
    const uint64_t FUSE_NO_EXPORT_SUPPORT

    const uint32_t FUSE_KERNEL_VERSION
    const uint32_t FUSE_KERNEL_MINOR_VERSION
    const uint32_t FUSE_ROOT_ID
    const uint32_t FUSE_MIN_READ_BUFFER
    const uint32_t FOPEN_DIRECT_IO
    const uint32_t FOPEN_KEEP_CACHE
    const uint32_t FOPEN_NONSEEKABLE
    const uint32_t FOPEN_CACHE_DIR
    const uint32_t FOPEN_STREAM
    const uint32_t FOPEN_NOFLUSH
    const uint32_t FOPEN_PARALLEL_DIRECT_WRITES
    const uint32_t FOPEN_PASSTHROUGH
    const uint32_t FATTR_MODE
    const uint32_t FATTR_UID
    const uint32_t FATTR_GID
    const uint32_t FATTR_SIZE
    const uint32_t FATTR_ATIME
    const uint32_t FATTR_MTIME
    const uint32_t FATTR_FH
    const uint32_t FATTR_ATIME_NOW
    const uint32_t FATTR_MTIME_NOW
    const uint32_t FATTR_LOCKOWNER
    const uint32_t FATTR_CTIME
    const uint32_t FATTR_KILL_SUIDGID
    const uint32_t FUSE_GETATTR_FH
    const uint32_t FUSE_OPEN_KILL_SUIDGID
    const uint32_t FUSE_READ_LOCKOWNER
    const uint32_t FUSE_WRITE_CACHE
    const uint32_t FUSE_WRITE_LOCKOWNER
    const uint32_t FUSE_WRITE_KILL_SUIDGID
    const uint32_t FUSE_RELEASE_FLUSH
    const uint32_t FUSE_RELEASE_FLOCK_UNLOCK
    const uint32_t FUSE_FSYNC_FDATASYNC
    const uint32_t FUSE_SETXATTR_ACL_KILL_SGID
    const uint32_t FUSE_POLL_SCHEDULE_NOTIFY
    const uint32_t FUSE_EXT_GROUPS
    const uint32_t FUSE_LK_FLOCK
    const uint32_t FUSE_IOCTL_DIR
    const uint32_t FUSE_COMPAT_INIT_IN_SIZE
    const uint32_t FUSE_COMPAT_SETXATTR_IN_SIZE

    struct fuse_in_header:
        uint32_t len
        uint32_t opcode
        uint64_t unique
        uint64_t nodeid
        uint32_t uid
        uint32_t gid
        uint32_t pid
        uint16_t total_extlen

    struct fuse_out_header:
        uint32_t len
        int32_t error
        uint64_t unique

    struct fuse_ext_header:
        uint32_t size
        uint32_t type

    struct fuse_init_in:
        uint32_t major
        uint32_t minor
        uint32_t max_readahead
        uint32_t flags
        uint32_t flags2

    struct fuse_init_out:
        uint32_t major
        uint32_t minor
        uint32_t max_readahead
        uint32_t flags
        uint16_t max_background
        uint16_t congestion_threshold
        uint32_t max_write
        uint32_t time_gran
        uint16_t max_pages
        uint16_t map_alignment
        uint32_t flags2
        uint32_t max_stack_depth
        uint16_t request_timeout

    struct fuse_forget_in:
        uint64_t nlookup

    struct fuse_forget_one:
        uint64_t nodeid
        uint64_t nlookup

    struct fuse_batch_forget_in:
        uint32_t count

    struct fuse_getattr_in:
        uint32_t getattr_flags
        uint64_t fh

    struct fuse_mknod_in:
        uint32_t mode
        uint32_t rdev
        uint32_t umask

    struct fuse_mkdir_in:
        uint32_t mode
        uint32_t umask

    struct fuse_rename_in:
        uint64_t newdir

    struct fuse_rename2_in:
        uint64_t newdir
        uint32_t flags

    struct fuse_link_in:
        uint64_t oldnodeid

    struct fuse_setattr_in:
        uint32_t valid
        uint64_t fh
        uint64_t size
        uint64_t lock_owner
        uint64_t atime
        uint64_t mtime
        uint64_t ctime
        uint32_t atimensec
        uint32_t mtimensec
        uint32_t ctimensec
        uint32_t mode
        uint32_t uid
        uint32_t gid

    struct fuse_open_in:
        uint32_t flags
        uint32_t open_flags

    struct fuse_create_in:
        uint32_t flags
        uint32_t mode
        uint32_t umask
        uint32_t open_flags

    struct fuse_release_in:
        uint64_t fh
        uint32_t flags
        uint32_t release_flags
        uint64_t lock_owner

    struct fuse_flush_in:
        uint64_t fh
        uint64_t lock_owner

    struct fuse_read_in:
        uint64_t fh
        uint64_t offset
        uint32_t size
        uint32_t read_flags
        uint64_t lock_owner
        uint32_t flags

    struct fuse_write_in:
        uint64_t fh
        uint64_t offset
        uint32_t size
        uint32_t write_flags
        uint64_t lock_owner
        uint32_t flags

    struct fuse_fsync_in:
        uint64_t fh
        uint32_t fsync_flags

    struct fuse_setxattr_in:
        uint32_t size
        uint32_t flags
        uint32_t setxattr_flags

    struct fuse_getxattr_in:
        uint32_t size

    struct fuse_access_in:
        uint32_t mask

    struct fuse_interrupt_in:
        uint64_t unique

    struct fuse_poll_in:
        uint64_t fh
        uint64_t kh
        uint32_t flags
        uint32_t events

    struct fuse_statx_in:
        uint32_t getattr_flags
        uint64_t fh
        uint32_t sx_flags
        uint32_t sx_mask

    struct fuse_lseek_in:
        uint64_t fh
        uint64_t offset
        uint32_t whence

    struct fuse_lseek_out:
        uint64_t offset

    struct fuse_fallocate_in:
        uint64_t fh
        uint64_t offset
        uint64_t length
        uint32_t mode

    struct fuse_copy_file_range_in:
        uint64_t fh_in
        uint64_t off_in
        uint64_t nodeid_out
        uint64_t fh_out
        uint64_t off_out
        uint64_t len
        uint64_t flags

    struct fuse_copy_file_range_out:
        uint64_t bytes_copied

    struct fuse_file_lock:
        uint64_t start
        uint64_t end
        uint32_t type
        uint32_t pid

    struct fuse_lk_in:
        uint64_t fh
        uint64_t owner
        fuse_file_lock lk
        uint32_t lk_flags

    struct fuse_lk_out:
        fuse_file_lock lk

    struct fuse_ioctl_in:
        uint64_t fh
        uint32_t flags
        uint32_t cmd
        uint64_t arg
        uint32_t in_size
        uint32_t out_size

    struct fuse_ioctl_out:
        int32_t result
        uint32_t flags
        uint32_t in_iovs
        uint32_t out_iovs

    struct fuse_sx_time:
        int64_t tv_sec
        uint32_t tv_nsec

    struct fuse_statx:
        uint32_t mask
        uint32_t blksize
        uint64_t attributes
        uint32_t nlink
        uint32_t uid
        uint32_t gid
        uint16_t mode
        uint64_t ino
        uint64_t size
        uint64_t blocks
        uint64_t attributes_mask
        fuse_sx_time atime
        fuse_sx_time btime
        fuse_sx_time ctime
        fuse_sx_time mtime
        uint32_t rdev_major
        uint32_t rdev_minor
        uint32_t dev_major
        uint32_t dev_minor

    struct fuse_statx_out:
        uint64_t attr_valid
        uint32_t attr_valid_nsec
        uint32_t flags
        fuse_statx stat

    struct fuse_attr:
        uint64_t ino
        uint64_t size
        uint64_t blocks
        uint64_t atime
        uint64_t mtime
        uint64_t ctime
        uint32_t atimensec
        uint32_t mtimensec
        uint32_t ctimensec
        uint32_t mode
        uint32_t nlink
        uint32_t uid
        uint32_t gid
        uint32_t rdev
        uint32_t blksize
        uint32_t flags

    struct fuse_entry_out:
        uint64_t nodeid
        uint64_t generation
        uint64_t entry_valid
        uint64_t attr_valid
        uint32_t entry_valid_nsec
        uint32_t attr_valid_nsec
        fuse_attr attr

    struct fuse_attr_out:
        uint64_t attr_valid
        uint32_t attr_valid_nsec
        fuse_attr attr

    struct fuse_open_out:
        uint64_t fh
        uint32_t open_flags
        int32_t backing_id

    struct fuse_write_out:
        uint32_t size

    struct fuse_getxattr_out:
        uint32_t size

    struct fuse_notify_poll_wakeup_out:
        uint64_t kh

    struct fuse_poll_out:
        uint32_t revents

    struct fuse_kstatfs:
        uint64_t blocks
        uint64_t bfree
        uint64_t bavail
        uint64_t files
        uint64_t ffree
        uint32_t bsize
        uint32_t namelen
        uint32_t frsize

    struct fuse_dirent:
        uint64_t ino
        uint64_t off
        uint32_t namelen
        uint32_t type

    struct fuse_backing_map:
        int32_t fd
        uint32_t flags
    unsigned long FUSE_DEV_IOC_BACKING_OPEN
    unsigned long FUSE_DEV_IOC_BACKING_CLOSE

    struct fuse_notify_inval_inode_out:
        uint64_t ino
        int64_t off
        int64_t len

    uint32_t FUSE_EXPIRE_ONLY
    struct fuse_notify_inval_entry_out:
        uint64_t parent
        uint32_t namelen
        uint32_t flags
