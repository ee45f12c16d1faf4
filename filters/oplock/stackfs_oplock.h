/* Opportunistic locks for programs on a stackfs drive with the filter `oplock` (docs/oplocks.md).
 *
 * ioctl(2) on the open file, STACKFS_OPLOCK_CREATE on the open directory. All numbers are the machine's own byte order; what
 * is reserved has to be zero. An oplock belongs to the open file, not to the descriptor or the process: it ends with the
 * last close(2), so also with the process.
 *
 *     request     ETXTBSY: not granted
 *     poll(2)     POLLPRI: there is a break to be read (regular files; not for directories)
 *     read break  EAGAIN: there is none
 *     acknowledge EPROTO: there is nothing to acknowledge; EBUSY: that is too much, read the break again
 *     write       EPROTO: this open file holds no oplock that lets it keep data back
 *     create      EBUSY: sharing violation; ETXTBSY: FILE_OPEN_REQUIRING_OPLOCK, and it would have to be broken, or was not granted
 *
 * This header needs nothing but Linux' own, may be copied, and is in the public domain.
 */
#ifndef STACKFS_OPLOCK_HEADER
#define STACKFS_OPLOCK_HEADER

#include <linux/ioctl.h>
#include <linux/types.h>

/* Levels: what the holder may cache. R, RH, RW and RWH, or one of the older four. */
#define STACKFS_OPLOCK_NONE    0x00
#define STACKFS_OPLOCK_R       0x01    /* reads */
#define STACKFS_OPLOCK_H       0x02    /* the open file: it need not be closed when its user is done */
#define STACKFS_OPLOCK_W       0x04    /* writes */
#define STACKFS_OPLOCK_TWO     0x10
#define STACKFS_OPLOCK_ONE     0x20
#define STACKFS_OPLOCK_BATCH   0x40
#define STACKFS_OPLOCK_FILTER  0x80

/* Opens with one key (not all zeros) are one client: they do not break each other's oplocks. */
#define STACKFS_OPLOCK_KEY_SIZE 16

struct stackfs_oplock_request {
    __u32 level;
    __u32 reserved;
    __u8 key[STACKFS_OPLOCK_KEY_SIZE];
    __u8 parent_key[STACKFS_OPLOCK_KEY_SIZE];   /* takes the place of key where the oplock is the directory's */
};

/* flags of a break */
#define STACKFS_OPLOCK_ACK_REQUIRED 1           /* somebody waits, or will */
#define STACKFS_OPLOCK_SWITCHED     2           /* another open with this key has it now */
#define STACKFS_OPLOCK_TAKEN        4           /* it was not acknowledged in time, or the filter has left the drive */

struct stackfs_oplock_break {
    __u32 old_level;
    __u32 new_level;
    __u32 flags;
    __u32 reserved;
};

/* how a break is acknowledged */
#define STACKFS_OPLOCK_ACK            0         /* an older level: what the break has left */
#define STACKFS_OPLOCK_ACK_NO_2       1         /* an older level: nothing, not even level 2 */
#define STACKFS_OPLOCK_CLOSE_PENDING  2         /* batch and filter: the file is closed next; until then others wait */
#define STACKFS_OPLOCK_ACK_LEVEL      3         /* R to RWH: this level, 0 for nothing */
#define STACKFS_OPLOCK_ACK_ON_CLOSE   4         /* R to RWH: as CLOSE_PENDING */

struct stackfs_oplock_acknowledge {
    __u32 how;
    __u32 level;                                /* in: ACK_LEVEL; out: what is held now */
    __u32 reserved[2];
};

/* flags of a state */
#define STACKFS_OPLOCK_BREAKING 1               /* an acknowledgement is owed */
#define STACKFS_OPLOCK_UNREAD   2               /* a break can be read */

struct stackfs_oplock_state {
    __u32 level;                                /* of this open file; while it breaks, what it was */
    __u32 breaking_to;
    __u32 flags;
    __u32 waiting;                              /* operations that wait for any oplock of the file */
    __u32 holders;                              /* open files that hold one of it */
    __u32 reserved[3];
};

#define STACKFS_OPLOCK_WRITE_SIZE 16352

struct stackfs_oplock_write {
    __u64 offset;
    __u32 length;                               /* all of it is written, or the ioctl fails */
    __u32 reserved;
    __u8 data[STACKFS_OPLOCK_WRITE_SIZE];
};

/* desired_access */
#define STACKFS_FILE_READ_DATA        0x0001
#define STACKFS_FILE_WRITE_DATA       0x0002
#define STACKFS_FILE_APPEND_DATA      0x0004
#define STACKFS_FILE_EXECUTE          0x0020
#define STACKFS_FILE_READ_ATTRIBUTES  0x0080
#define STACKFS_FILE_WRITE_ATTRIBUTES 0x0100
#define STACKFS_DELETE                0x10000
#define STACKFS_READ_CONTROL          0x20000
#define STACKFS_SYNCHRONIZE           0x100000

/* share_access: what others may have the file open for */
#define STACKFS_SHARE_READ   1
#define STACKFS_SHARE_WRITE  2
#define STACKFS_SHARE_DELETE 4

/* disposition */
#define STACKFS_SUPERSEDE    0                  /* as OVERWRITE_IF */
#define STACKFS_OPEN         1
#define STACKFS_CREATE       2
#define STACKFS_OPEN_IF      3
#define STACKFS_OVERWRITE    4
#define STACKFS_OVERWRITE_IF 5

/* options */
#define STACKFS_COMPLETE_IF_OPLOCKED  0x100     /* a break begins, and is not waited for */
#define STACKFS_OPEN_REQUIRING_OPLOCK 0x10000
#define STACKFS_RESERVE_OPFILTER      0x100000

/* result */
#define STACKFS_OPENED      1
#define STACKFS_CREATED     2
#define STACKFS_OVERWRITTEN 3

#define STACKFS_ONCE_SIZE 48

struct stackfs_oplock_create {
    __u32 desired_access;
    __u32 share_access;
    __u32 disposition;
    __u32 options;
    __u32 mode;                                 /* of a new file; the umask is the caller's business */
    __u32 level;                                /* in: the oplock that is wanted, or 0; out: what was granted */
    __u8 key[STACKFS_OPLOCK_KEY_SIZE];
    __u8 parent_key[STACKFS_OPLOCK_KEY_SIZE];
    __u32 result;                               /* out */
    __u32 flags;                                /* out: 1: COMPLETE_IF_OPLOCKED, and a break is under way */
    char name[256];                             /* a name in the directory, ended by a zero */
    char once[STACKFS_ONCE_SIZE];               /* out: openat(2) this name, without O_CREAT, to take the open over */
};

#define STACKFS_IOC 0xF5
#define STACKFS_IOC_OPLOCK_REQUEST     _IOW(STACKFS_IOC, 0x10, struct stackfs_oplock_request)
#define STACKFS_IOC_OPLOCK_READ_BREAK  _IOR(STACKFS_IOC, 0x11, struct stackfs_oplock_break)
#define STACKFS_IOC_OPLOCK_ACKNOWLEDGE _IOWR(STACKFS_IOC, 0x12, struct stackfs_oplock_acknowledge)
#define STACKFS_IOC_OPLOCK_STATE       _IOR(STACKFS_IOC, 0x13, struct stackfs_oplock_state)
#define STACKFS_IOC_OPLOCK_WRITE       _IOW(STACKFS_IOC, 0x14, struct stackfs_oplock_write)
#define STACKFS_IOC_OPLOCK_RELEASE     _IO(STACKFS_IOC, 0x15)
#define STACKFS_IOC_OPLOCK_CREATE      _IOWR(STACKFS_IOC, 0x16, struct stackfs_oplock_create)

#endif
