"""The calling thread's filesystem credentials: what is created for a caller belongs to that caller.

The raw system calls are used, not libc's wrappers: on Linux credentials belong to a thread, and libc would change all
of them. A thread that calls assume() gets a file-system context of its own first (unshare(CLONE_FS)), so that its
umask is nobody else's; it keeps the process's working directory and root as they were. Where that is forbidden (seccomp)
the umask is left alone and the mode is given without its bits.

Without root nothing is changed but the umask: everything belongs to the user who mounted.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from stackfs.cext.callback_data cimport REQUESTOR
from stackfs.cext.impersonation cimport impersonating


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <linux/capability.h>
    #include <sched.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include <stdint.h>

    static __thread int stackfs_own_fs;

    static int stackfs_unshare_fs(void) {
        if (!stackfs_own_fs && unshare(CLONE_FS) == 0) stackfs_own_fs = 1;
        return stackfs_own_fs;
    }
    static int stackfs_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable) {
        struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct data[2];
        if (syscall(SYS_capget, &head, data) != 0) return -1;
        *effective = data[0].effective | (uint64_t)data[1].effective << 32;
        *permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
        *inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
        return 0;
    }
    static void stackfs_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
        struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct data[2] = {
            {(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
            {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)}};
        (void)!syscall(SYS_capset, &head, data);
    }
    static void stackfs_setgroups(int count, unsigned group) { (void)!syscall(SYS_setgroups, (long)count, &group); }
    static void stackfs_setfsid(unsigned uid, unsigned gid, int uid_first) {
        if (uid_first) syscall(SYS_setfsuid, (unsigned long)uid);
        syscall(SYS_setfsgid, (unsigned long)gid);
        if (!uid_first) syscall(SYS_setfsuid, (unsigned long)uid);
    }
    static __thread int stackfs_groups_dropped;
    static void stackfs_drop_groups(void) {
        if (!stackfs_groups_dropped && syscall(SYS_setgroups, 0L, (void *)0) == 0) stackfs_groups_dropped = 1;
    }
    static void stackfs_setfsgid(unsigned gid) { syscall(SYS_setfsgid, (unsigned long)gid); }
    #define CAP_BIT(c) ((uint64_t)1 << (c))
    #define STACKFS_OVERRIDES (CAP_BIT(CAP_DAC_OVERRIDE) | CAP_BIT(CAP_DAC_READ_SEARCH))
    #define STACKFS_MKNOD CAP_BIT(CAP_MKNOD)
    #define STACKFS_FSETID CAP_BIT(CAP_FSETID)
    """
    int stackfs_unshare_fs() nogil
    int stackfs_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable) nogil
    void stackfs_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable) nogil
    void stackfs_setgroups(int count, unsigned group) nogil
    void stackfs_drop_groups() nogil
    void stackfs_setfsgid(unsigned gid) nogil
    void stackfs_setfsid(unsigned uid, unsigned gid, int uid_first) nogil
    uint64_t STACKFS_OVERRIDES
    uint64_t STACKFS_FSETID

cdef extern from "<sys/stat.h>" nogil:
    uint32_t umask(uint32_t mask)

cdef extern from "<unistd.h>" nogil:
    uint32_t geteuid()


cdef enum:
    NOBODYS_GROUP = 0xFFFFFFFE           # a valid number that no file has

# The capability sets of this process, read once: nobody here changes them but for the length of one system call.
cdef uint64_t effective_set = 0
cdef uint64_t permitted_set = 0
cdef uint64_t inheritable_set = 0
stackfs_capget(&effective_set, &permitted_set, &inheritable_set)
cdef bint is_root = geteuid() == 0


cdef bint privileged() noexcept nogil:
    return is_root


cdef uint32_t assume(credentials_t *saved, const REQUESTOR *who, uint32_t mask) noexcept nogil:
    cdef uint32_t left = 0
    saved.own_umask = stackfs_unshare_fs()
    if saved.own_umask:
        saved.umask = umask(mask)
    else:
        left = mask                      # the umask is every thread's: nobody may change it
    saved.without_fsetid = 0
    saved.assumed = 1
    if not is_root or (who.uid == 0 and who.gid == 0) or impersonating():
        return left
    saved.assumed = 2
    if who.group >= 0:
        stackfs_setgroups(1, <unsigned>who.group)
    else:
        stackfs_setgroups(0, 0)
    stackfs_setfsid(who.uid, who.gid, 0)
    if who.uid != 0:                     # the kernel took the file capabilities away with the uid: give back what overrides
        stackfs_capset((effective_set & ~<uint64_t>0x1F) | (effective_set & STACKFS_OVERRIDES), permitted_set, inheritable_set)
    return left


cdef void drop_fsetid(credentials_t *saved, int64_t group) noexcept nogil:
    saved.assumed = 0
    saved.changed_groups = 0
    saved.without_fsetid = is_root and not impersonating()     # whoever has to lose it has it no more
    if not saved.without_fsetid:
        return
    stackfs_capset(effective_set & ~STACKFS_FSETID, permitted_set, inheritable_set)
    if group > 0:
        saved.changed_groups = 1
        stackfs_setfsgid(<unsigned>group)
    elif group < 0:                      # root's own groups must not count as the caller's
        saved.changed_groups = 1
        stackfs_drop_groups()
        stackfs_setfsgid(NOBODYS_GROUP)


cdef void add_group(credentials_t *saved, uint32_t group) noexcept nogil:
    if saved.without_fsetid:
        saved.changed_groups = 2
        stackfs_setgroups(1, group)


cdef void restore(credentials_t *saved) noexcept nogil:
    if saved.without_fsetid:
        if saved.changed_groups:
            stackfs_setfsgid(0)
        if saved.changed_groups == 2:
            stackfs_setgroups(0, 0)
        stackfs_capset(effective_set, permitted_set, inheritable_set)
        saved.without_fsetid = 0
    if saved.assumed and saved.own_umask:
        umask(saved.umask)
    if saved.assumed == 2:
        stackfs_setfsid(0, 0, 1)
        stackfs_setgroups(0, 0)
        stackfs_capset(effective_set, permitted_set, inheritable_set)
    saved.assumed = 0
