/* The FUSE wire format, protocol 7.45: what the kernel writes into /dev/fuse and what it reads from it.
 *
 * Our own definitions, named as in linux/fuse.h: the installed header is often older than the running kernel, and
 * what a kernel offers is known only at INIT. Do not include both in one file. Numbers are in the host's byte order;
 * a message is fuse_in_header, the operation's fixed part, its names (each with its NUL), its data, its extensions.
 */

#ifndef STACKFS_FUSE_WIRE_H
#define STACKFS_FUSE_WIRE_H

#include <stdint.h>

#define FUSE_KERNEL_VERSION 7
#define FUSE_KERNEL_MINOR_VERSION 45
#define FUSE_ROOT_ID 1
#define FUSE_MIN_READ_BUFFER 8192

enum fuse_opcode {
    FUSE_LOOKUP = 1,
    FUSE_FORGET = 2,                    /* no answer */
    FUSE_GETATTR = 3,
    FUSE_SETATTR = 4,
    FUSE_READLINK = 5,
    FUSE_SYMLINK = 6,
    FUSE_MKNOD = 8,
    FUSE_MKDIR = 9,
    FUSE_UNLINK = 10,
    FUSE_RMDIR = 11,
    FUSE_RENAME = 12,
    FUSE_LINK = 13,
    FUSE_OPEN = 14,
    FUSE_READ = 15,
    FUSE_WRITE = 16,
    FUSE_STATFS = 17,
    FUSE_RELEASE = 18,
    FUSE_FSYNC = 20,
    FUSE_SETXATTR = 21,
    FUSE_GETXATTR = 22,
    FUSE_LISTXATTR = 23,
    FUSE_REMOVEXATTR = 24,
    FUSE_FLUSH = 25,
    FUSE_INIT = 26,
    FUSE_OPENDIR = 27,
    FUSE_READDIR = 28,
    FUSE_RELEASEDIR = 29,
    FUSE_FSYNCDIR = 30,
    FUSE_GETLK = 31,
    FUSE_SETLK = 32,
    FUSE_SETLKW = 33,
    FUSE_ACCESS = 34,
    FUSE_CREATE = 35,
    FUSE_INTERRUPT = 36,                /* no answer */
    FUSE_BMAP = 37,
    FUSE_DESTROY = 38,
    FUSE_IOCTL = 39,
    FUSE_POLL = 40,
    FUSE_NOTIFY_REPLY = 41,             /* no answer */
    FUSE_BATCH_FORGET = 42,             /* no answer */
    FUSE_FALLOCATE = 43,
    FUSE_READDIRPLUS = 44,
    FUSE_RENAME2 = 45,
    FUSE_LSEEK = 46,
    FUSE_COPY_FILE_RANGE = 47,
    FUSE_SETUPMAPPING = 48,
    FUSE_REMOVEMAPPING = 49,
    FUSE_SYNCFS = 50,
    FUSE_TMPFILE = 51,
    FUSE_STATX = 52,
    FUSE_COPY_FILE_RANGE_64 = 53,
};

enum fuse_notify_code {
    FUSE_NOTIFY_POLL = 1,
    FUSE_NOTIFY_INVAL_INODE = 2,
    FUSE_NOTIFY_INVAL_ENTRY = 3,
    FUSE_NOTIFY_INC_EPOCH = 8,          /* 7.44: every name, without a lock; no body */
};

/* INIT flags. Bits 32 and up travel in flags2, which counts only with FUSE_INIT_EXT. */
#define FUSE_ASYNC_READ             (1ULL << 0)
#define FUSE_POSIX_LOCKS            (1ULL << 1)
#define FUSE_ATOMIC_O_TRUNC         (1ULL << 3)
#define FUSE_EXPORT_SUPPORT         (1ULL << 4)
#define FUSE_BIG_WRITES             (1ULL << 5)
#define FUSE_DONT_MASK              (1ULL << 6)
#define FUSE_FLOCK_LOCKS            (1ULL << 10)
#define FUSE_AUTO_INVAL_DATA        (1ULL << 12)
#define FUSE_DO_READDIRPLUS         (1ULL << 13)
#define FUSE_READDIRPLUS_AUTO       (1ULL << 14)
#define FUSE_ASYNC_DIO              (1ULL << 15)
#define FUSE_WRITEBACK_CACHE        (1ULL << 16)
#define FUSE_PARALLEL_DIROPS        (1ULL << 18)
#define FUSE_POSIX_ACL              (1ULL << 20)
#define FUSE_MAX_PAGES              (1ULL << 22)
#define FUSE_CACHE_SYMLINKS         (1ULL << 23)
#define FUSE_HANDLE_KILLPRIV_V2     (1ULL << 28)
#define FUSE_SETXATTR_EXT           (1ULL << 29)
#define FUSE_INIT_EXT               (1ULL << 30)
#define FUSE_CREATE_SUPP_GROUP      (1ULL << 34)
#define FUSE_DIRECT_IO_ALLOW_MMAP   (1ULL << 36)
#define FUSE_PASSTHROUGH            (1ULL << 37)
#define FUSE_NO_EXPORT_SUPPORT      (1ULL << 38)

/* fuse_open_out.open_flags */
#define FOPEN_DIRECT_IO             (1U << 0)
#define FOPEN_KEEP_CACHE            (1U << 1)
#define FOPEN_NONSEEKABLE           (1U << 2)
#define FOPEN_CACHE_DIR             (1U << 3)
#define FOPEN_STREAM                (1U << 4)
#define FOPEN_NOFLUSH               (1U << 5)
#define FOPEN_PARALLEL_DIRECT_WRITES (1U << 6)
#define FOPEN_PASSTHROUGH           (1U << 7)

/* fuse_setattr_in.valid */
#define FATTR_MODE                  (1U << 0)
#define FATTR_UID                   (1U << 1)
#define FATTR_GID                   (1U << 2)
#define FATTR_SIZE                  (1U << 3)
#define FATTR_ATIME                 (1U << 4)
#define FATTR_MTIME                 (1U << 5)
#define FATTR_FH                    (1U << 6)
#define FATTR_ATIME_NOW             (1U << 7)
#define FATTR_MTIME_NOW             (1U << 8)
#define FATTR_LOCKOWNER             (1U << 9)
#define FATTR_CTIME                 (1U << 10)
#define FATTR_KILL_SUIDGID          (1U << 11)

#define FUSE_GETATTR_FH             (1U << 0)       /* getattr_flags: fh counts */
#define FUSE_OPEN_KILL_SUIDGID      (1U << 0)       /* fuse_open_in.open_flags */
#define FUSE_READ_LOCKOWNER         (1U << 1)       /* read_flags */
#define FUSE_WRITE_CACHE            (1U << 0)       /* write_flags: from the page cache, fh is a guess */
#define FUSE_WRITE_LOCKOWNER        (1U << 1)
#define FUSE_WRITE_KILL_SUIDGID     (1U << 2)
#define FUSE_RELEASE_FLUSH          (1U << 0)       /* release_flags */
#define FUSE_RELEASE_FLOCK_UNLOCK   (1U << 1)
#define FUSE_FSYNC_FDATASYNC        (1U << 0)       /* fsync_flags */
#define FUSE_SETXATTR_ACL_KILL_SGID (1U << 0)       /* setxattr_flags */
#define FUSE_POLL_SCHEDULE_NOTIFY   (1U << 0)       /* fuse_poll_in.flags */

struct fuse_in_header {
    uint32_t len;
    uint32_t opcode;
    uint64_t unique;
    uint64_t nodeid;
    uint32_t uid;
    uint32_t gid;
    uint32_t pid;                       /* a thread id */
    uint16_t total_extlen;              /* extensions at the message's end, in units of 8 bytes */
    uint16_t padding;
};

struct fuse_out_header {
    uint32_t len;
    int32_t error;                      /* a negative errno; in a notification (unique 0): fuse_notify_code */
    uint64_t unique;
};

struct fuse_ext_header {
    uint32_t size;                      /* with this header */
    uint32_t type;                      /* up to 31: security contexts, the number of them */
};
#define FUSE_EXT_GROUPS 32              /* after the header: u32 count, count group ids */

struct fuse_init_in {
    uint32_t major;
    uint32_t minor;
    uint32_t max_readahead;
    uint32_t flags;
    uint32_t flags2;
    uint32_t unused[11];
};
#define FUSE_COMPAT_INIT_IN_SIZE 16     /* before 7.36 */

struct fuse_init_out {
    uint32_t major;
    uint32_t minor;
    uint32_t max_readahead;
    uint32_t flags;
    uint16_t max_background;
    uint16_t congestion_threshold;
    uint32_t max_write;
    uint32_t time_gran;
    uint16_t max_pages;
    uint16_t map_alignment;
    uint32_t flags2;
    uint32_t max_stack_depth;
    uint16_t request_timeout;
    uint16_t unused[11];
};

struct fuse_forget_in { uint64_t nlookup; };
struct fuse_forget_one { uint64_t nodeid; uint64_t nlookup; };
struct fuse_batch_forget_in { uint32_t count; uint32_t dummy; };
struct fuse_getattr_in { uint32_t getattr_flags; uint32_t dummy; uint64_t fh; };
struct fuse_mknod_in { uint32_t mode; uint32_t rdev; uint32_t umask; uint32_t padding; };
struct fuse_mkdir_in { uint32_t mode; uint32_t umask; };
struct fuse_rename_in { uint64_t newdir; };
struct fuse_rename2_in { uint64_t newdir; uint32_t flags; uint32_t padding; };
struct fuse_link_in { uint64_t oldnodeid; };

struct fuse_setattr_in {
    uint32_t valid;
    uint32_t padding;
    uint64_t fh;
    uint64_t size;
    uint64_t lock_owner;
    uint64_t atime;
    uint64_t mtime;
    uint64_t ctime;
    uint32_t atimensec;
    uint32_t mtimensec;
    uint32_t ctimensec;
    uint32_t mode;
    uint32_t unused4;
    uint32_t uid;
    uint32_t gid;
    uint32_t unused5;
};

struct fuse_open_in { uint32_t flags; uint32_t open_flags; };
struct fuse_create_in { uint32_t flags; uint32_t mode; uint32_t umask; uint32_t open_flags; };
struct fuse_release_in { uint64_t fh; uint32_t flags; uint32_t release_flags; uint64_t lock_owner; };
struct fuse_flush_in { uint64_t fh; uint32_t unused; uint32_t padding; uint64_t lock_owner; };

struct fuse_read_in {                   /* READDIR and READDIRPLUS as well */
    uint64_t fh;
    uint64_t offset;
    uint32_t size;
    uint32_t read_flags;
    uint64_t lock_owner;
    uint32_t flags;
    uint32_t padding;
};

struct fuse_write_in {
    uint64_t fh;
    uint64_t offset;
    uint32_t size;
    uint32_t write_flags;
    uint64_t lock_owner;
    uint32_t flags;
    uint32_t padding;
};

struct fuse_fsync_in { uint64_t fh; uint32_t fsync_flags; uint32_t padding; };
struct fuse_setxattr_in { uint32_t size; uint32_t flags; uint32_t setxattr_flags; uint32_t padding; };
#define FUSE_COMPAT_SETXATTR_IN_SIZE 8  /* without FUSE_SETXATTR_EXT */
struct fuse_getxattr_in { uint32_t size; uint32_t padding; };
struct fuse_access_in { uint32_t mask; uint32_t padding; };
struct fuse_interrupt_in { uint64_t unique; };
struct fuse_poll_in { uint64_t fh; uint64_t kh; uint32_t flags; uint32_t events; };

struct fuse_statx_in {
    uint32_t getattr_flags;
    uint32_t reserved;
    uint64_t fh;
    uint32_t sx_flags;
    uint32_t sx_mask;
};

/* Operations that libfuse 3.14 leaves out. */
struct fuse_lseek_in { uint64_t fh; uint64_t offset; uint32_t whence; uint32_t padding; };
struct fuse_lseek_out { uint64_t offset; };
struct fuse_fallocate_in { uint64_t fh; uint64_t offset; uint64_t length; uint32_t mode; uint32_t padding; };

struct fuse_copy_file_range_in {        /* the header's nodeid is the source's */
    uint64_t fh_in;
    uint64_t off_in;
    uint64_t nodeid_out;
    uint64_t fh_out;
    uint64_t off_out;
    uint64_t len;
    uint64_t flags;
};
struct fuse_copy_file_range_out { uint64_t bytes_copied; };     /* of the 64-bit form; the other answers a fuse_write_out */

struct fuse_file_lock { uint64_t start; uint64_t end; uint32_t type; uint32_t pid; };    /* end: its last byte */
struct fuse_lk_in { uint64_t fh; uint64_t owner; struct fuse_file_lock lk; uint32_t lk_flags; uint32_t padding; };
struct fuse_lk_out { struct fuse_file_lock lk; };
#define FUSE_LK_FLOCK               (1U << 0)       /* lk_flags */

struct fuse_ioctl_in {                  /* in_size bytes follow; out_size bytes at most are to be answered */
    uint64_t fh;
    uint32_t flags;
    uint32_t cmd;
    uint64_t arg;                       /* a pointer in the caller: of no use here */
    uint32_t in_size;
    uint32_t out_size;
};
struct fuse_ioctl_out { int32_t result; uint32_t flags; uint32_t in_iovs; uint32_t out_iovs; };
#define FUSE_IOCTL_DIR              (1U << 4)       /* fuse_ioctl_in.flags */

struct fuse_sx_time { int64_t tv_sec; uint32_t tv_nsec; int32_t reserved; };

struct fuse_statx {
    uint32_t mask;
    uint32_t blksize;
    uint64_t attributes;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint16_t mode;
    uint16_t spare0;
    uint64_t ino;
    uint64_t size;
    uint64_t blocks;
    uint64_t attributes_mask;
    struct fuse_sx_time atime;
    struct fuse_sx_time btime;
    struct fuse_sx_time ctime;
    struct fuse_sx_time mtime;
    uint32_t rdev_major;
    uint32_t rdev_minor;
    uint32_t dev_major;
    uint32_t dev_minor;
    uint64_t spare2[14];
};

struct fuse_statx_out {
    uint64_t attr_valid;
    uint32_t attr_valid_nsec;
    uint32_t flags;
    uint64_t spare[2];
    struct fuse_statx stat;
};

/* Answers. */
struct fuse_attr {
    uint64_t ino;
    uint64_t size;
    uint64_t blocks;
    uint64_t atime;
    uint64_t mtime;
    uint64_t ctime;
    uint32_t atimensec;
    uint32_t mtimensec;
    uint32_t ctimensec;
    uint32_t mode;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint32_t rdev;
    uint32_t blksize;
    uint32_t flags;
};

struct fuse_entry_out {
    uint64_t nodeid;
    uint64_t generation;
    uint64_t entry_valid;
    uint64_t attr_valid;
    uint32_t entry_valid_nsec;
    uint32_t attr_valid_nsec;
    struct fuse_attr attr;
};

struct fuse_attr_out { uint64_t attr_valid; uint32_t attr_valid_nsec; uint32_t dummy; struct fuse_attr attr; };
struct fuse_open_out { uint64_t fh; uint32_t open_flags; int32_t backing_id; };
struct fuse_write_out { uint32_t size; uint32_t padding; };
struct fuse_getxattr_out { uint32_t size; uint32_t padding; };
struct fuse_poll_out { uint32_t revents; uint32_t padding; };
struct fuse_notify_poll_wakeup_out { uint64_t kh; };

struct fuse_kstatfs {
    uint64_t blocks;
    uint64_t bfree;
    uint64_t bavail;
    uint64_t files;
    uint64_t ffree;
    uint32_t bsize;
    uint32_t namelen;
    uint32_t frsize;
    uint32_t padding;
    uint32_t spare[6];
};

/* The name follows, without a NUL, padded to eight bytes. READDIRPLUS: a fuse_entry_out comes before it. */
struct fuse_dirent { uint64_t ino; uint64_t off; uint32_t namelen; uint32_t type; };

/* Passthrough: ioctl(2) on /dev/fuse. A backing id is above 0. */
struct fuse_backing_map { int32_t fd; uint32_t flags; uint64_t padding; };
#define FUSE_DEV_IOC_BACKING_OPEN  _IOW(229, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

struct fuse_notify_inval_inode_out { uint64_t ino; int64_t off; int64_t len; };
/* The name is looked up again at its next use; a directory that is somebody's working directory stays what it is. */
#define FUSE_EXPIRE_ONLY 1u
struct fuse_notify_inval_entry_out { uint64_t parent; uint32_t namelen; uint32_t flags; };

_Static_assert(sizeof(struct fuse_in_header) == 40, "fuse_in_header");
_Static_assert(sizeof(struct fuse_out_header) == 16, "fuse_out_header");
_Static_assert(sizeof(struct fuse_init_in) == 64, "fuse_init_in");
_Static_assert(sizeof(struct fuse_init_out) == 64, "fuse_init_out");
_Static_assert(sizeof(struct fuse_setattr_in) == 88, "fuse_setattr_in");
_Static_assert(sizeof(struct fuse_read_in) == 40, "fuse_read_in");
_Static_assert(sizeof(struct fuse_write_in) == 40, "fuse_write_in");
_Static_assert(sizeof(struct fuse_statx_in) == 24, "fuse_statx_in");
_Static_assert(sizeof(struct fuse_lseek_in) == 24, "fuse_lseek_in");
_Static_assert(sizeof(struct fuse_fallocate_in) == 32, "fuse_fallocate_in");
_Static_assert(sizeof(struct fuse_copy_file_range_in) == 56, "fuse_copy_file_range_in");
_Static_assert(sizeof(struct fuse_lk_in) == 48, "fuse_lk_in");
_Static_assert(sizeof(struct fuse_lk_out) == 24, "fuse_lk_out");
_Static_assert(sizeof(struct fuse_ioctl_in) == 32, "fuse_ioctl_in");
_Static_assert(sizeof(struct fuse_ioctl_out) == 16, "fuse_ioctl_out");
_Static_assert(sizeof(struct fuse_statx) == 256, "fuse_statx");
_Static_assert(sizeof(struct fuse_statx_out) == 288, "fuse_statx_out");
_Static_assert(sizeof(struct fuse_attr) == 88, "fuse_attr");
_Static_assert(sizeof(struct fuse_entry_out) == 128, "fuse_entry_out");
_Static_assert(sizeof(struct fuse_attr_out) == 104, "fuse_attr_out");
_Static_assert(sizeof(struct fuse_open_out) == 16, "fuse_open_out");
_Static_assert(sizeof(struct fuse_kstatfs) == 80, "fuse_kstatfs");
_Static_assert(sizeof(struct fuse_dirent) == 24, "fuse_dirent");

#endif
