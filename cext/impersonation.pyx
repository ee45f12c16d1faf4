"""Whose rights a thread's system calls have: the daemon's own, or a caller's (-o permissions=stack).

With permissions=stack nobody has checked a request before it reaches the base, so the base makes its system calls as
the caller: with the caller's fsuid, fsgid, supplementary groups and capabilities. The backing filesystem then applies
its own rules (modes, ACLs, sticky directories, set-id bits), and there is no second implementation of any of them here.

The kernel names a request's fsuid and fsgid. Groups and capabilities come from /proc/TID/status, and are believed for
BELIEVED nanoseconds: a thread that changes its groups is seen with the old ones no longer than that, and one that
changes its user or group is seen at once, for these are the key. A thread that is gone has no groups, and no
capabilities. Capabilities count only for uid 0 and in the daemon's own user namespace: a process that has made itself
a namespace shows all of them, and owns nothing by it. Another user never has any, even where a program gives him some.

The raw system calls are used: on Linux credentials belong to a thread, and libc would change all of them. setfsuid()
from 0 to another user takes CAP_CHOWN, CAP_MKNOD, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID and
CAP_LINUX_IMMUTABLE out of the effective set, and gives them back when it returns to 0 (capabilities(7)); where the
process has switched that off, capset() does it. Every change is verified: a thread that could not become the caller
does nothing for him.

Concurrency: what a thread wears is its own (thread-local). A caller_t never changes once made and is counted; the table
of them is guarded by one mutex, which is not held across a system call.
"""

cimport cython
from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, strtoul, strtoull
from libc.string cimport memcmp, strstr
from posix.time cimport clock_gettime, timespec

from stackfs.cext.callback_data cimport REQUESTOR
from stackfs.cext.includes.pthread cimport (
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <linux/capability.h>
    #include <linux/securebits.h>
    #include <stdint.h>
    #include <sys/prctl.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #define BIT(capability) ((uint64_t)1 << (capability))
    /* What setfsuid() takes away and gives back (capabilities(7)), and what it needs itself. */
    #define FILE_CAPABILITIES (BIT(CAP_CHOWN) | BIT(CAP_MKNOD) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_DAC_READ_SEARCH) \
        | BIT(CAP_FOWNER) | BIT(CAP_FSETID) | BIT(CAP_LINUX_IMMUTABLE) | BIT(CAP_MAC_OVERRIDE))
    #define SWITCHING (BIT(CAP_SETUID) | BIT(CAP_SETGID))

    static int raw_setgroups(int count, const uint32_t *groups) { return (int)syscall(SYS_setgroups, (long)count, groups); }
    static int raw_getgroups(int count, uint32_t *groups) { return (int)syscall(SYS_getgroups, (long)count, groups); }
    /* They report no error, only who it was before; -1 is nobody's number and changes nothing. */
    static int raw_setfsuid(uint32_t uid)
    {
        syscall(SYS_setfsuid, (unsigned long)uid);
        return (uint32_t)syscall(SYS_setfsuid, (unsigned long)(uint32_t)-1) == uid ? 0 : -1;
    }
    static int raw_setfsgid(uint32_t gid)
    {
        syscall(SYS_setfsgid, (unsigned long)gid);
        return (uint32_t)syscall(SYS_setfsgid, (unsigned long)(uint32_t)-1) == gid ? 0 : -1;
    }
    static void raw_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable)
    {
        struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct data[2] = {{0, 0, 0}, {0, 0, 0}};
        syscall(SYS_capget, &head, data);
        *effective = data[0].effective | (uint64_t)data[1].effective << 32;
        *permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
        *inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
    }
    static int raw_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable)
    {
        struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct data[2] = {
            {(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
            {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)}};
        return (int)syscall(SYS_capset, &head, data);
    }
    static int keeps_capabilities(void)
    {
        int bits = prctl(PR_GET_SECUREBITS);
        return bits < 0 || bits & SECBIT_NO_SETUID_FIXUP;
    }
    static int same_user_namespace(unsigned tid)
    {
        char path[48];
        struct stat ours, theirs;
        snprintf(path, sizeof(path), "/proc/%u/ns/user", tid);
        return stat("/proc/self/ns/user", &ours) == 0 && stat(path, &theirs) == 0
            && ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev;
    }

    /* Asked at each callback, and so without the call that finds a module's variables of a thread. */
    static __thread __attribute__((tls_model("initial-exec"))) struct worn {
        void *caller;                   /* caller_t; NULL: the daemon's own rights */
        void *aside;                    /* to step back to */
        int keeps;
    } worn;
    """
    uint64_t FILE_CAPABILITIES, SWITCHING
    int raw_setgroups(int count, const uint32_t *groups) nogil
    int raw_getgroups(int count, uint32_t *groups) nogil
    int raw_setfsuid(uint32_t uid) nogil
    int raw_setfsgid(uint32_t gid) nogil
    void raw_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable) nogil
    int raw_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable) nogil
    int keeps_capabilities() nogil
    bint same_user_namespace(unsigned tid) nogil
    struct worn_t "worn":
        void *caller
        void *aside
        int keeps
    worn_t worn

cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_CLOEXEC
    int open(const char *path, int flags, ...)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t pread(int fd, void *buffer, size_t size, int64_t offset)
    uint32_t geteuid()
    uint32_t getegid()

cdef extern from "<time.h>" nogil:
    int CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE

cdef extern from *:
    """
    #define count_up(at)   ((void)__atomic_fetch_add(at, 1, __ATOMIC_RELAXED))
    #define count_down(at) __atomic_sub_fetch(at, 1, __ATOMIC_ACQ_REL)
    """
    void count_up(int *at) nogil
    int count_down(int *at) nogil

cdef enum:
    CALLERS = 256                        # a power of two
    BELIEVED = 20000000                  # nanoseconds: what /proc said of a thread's groups and capabilities
    STATUS = 4096                        # bytes; a status with more groups than fit is read into LONG_STATUS
    LONG_STATUS = 1 << 20                # GROUPS of up to 11 digits and blanks each
    GROUPS = 65536                       # NGROUPS_MAX

cdef struct caller_t:                    # immutable
    int references                       # atomic
    uint32_t tid, uid, gid
    int64_t until                        # CLOCK_MONOTONIC_COARSE
    uint64_t capabilities                # of FILE_CAPABILITIES; uid 0 only
    uint32_t count
    uint32_t groups[0]

cdef pthread_mutex_t mutex
cdef caller_t *callers[CALLERS]
pthread_mutex_init(&mutex, NULL)

# The process's own, read once: nobody changes them but for the length of one request, and in one thread.
cdef uint64_t effective_set = 0
cdef uint64_t permitted_set = 0
cdef uint64_t inheritable_set = 0
cdef bint is_root = geteuid() == 0
cdef uint32_t own_gid = getegid()
cdef uint32_t own_groups[64]
cdef int own_count = raw_getgroups(64, own_groups)
raw_capget(&effective_set, &permitted_set, &inheritable_set)
if own_count < 0:
    own_count = 0                        # more than that; root needs none
# setfsuid() alone does not leave exactly the right capabilities.
cdef bint by_capset = keeps_capabilities() or (effective_set ^ permitted_set) & FILE_CAPABILITIES != 0


# --- callers --------------------------------------------------------------------------------------------------------

cdef inline int64_t now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC_COARSE, &time)
    return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec


cdef void drop(caller_t *caller) noexcept nogil:
    if caller is not NULL and count_down(&caller.references) == 0:
        free(caller)


cdef bint has_group(const caller_t *caller, int64_t group) noexcept nogil:
    """Also True when no group is asked for."""
    cdef uint32_t i
    if group < 0 or caller.gid == <uint32_t>group:
        return True
    for i in range(caller.count):
        if caller.groups[i] == <uint32_t>group:
            return True
    return False


cdef caller_t *caller_of(const REQUESTOR *who) noexcept nogil:
    """Counted; NULL: no memory."""
    cdef caller_t **place = &callers[who.tid & (CALLERS - 1)]
    cdef caller_t *found
    cdef caller_t *former
    pthread_mutex_lock(&mutex)
    found = place[0]
    if found is not NULL and found.tid == who.tid and found.uid == who.uid and found.gid == who.gid and \
            found.until > now() and has_group(found, who.group):
        count_up(&found.references)
        pthread_mutex_unlock(&mutex)
        return found
    pthread_mutex_unlock(&mutex)
    found = ask_for(who)
    if found is not NULL:
        count_up(&found.references)
        pthread_mutex_lock(&mutex)
        former = place[0]
        place[0] = found
        pthread_mutex_unlock(&mutex)
        drop(former)
    return found


cdef caller_t *ask_for(const REQUESTOR *who) noexcept nogil:
    """What /proc says of the thread now."""
    cdef char text[STATUS]
    cdef char *more
    cdef caller_t *caller
    cdef bint aside = step_aside()       # /proc may hide others' processes from the caller worn so far
    cdef ssize_t length = read_status(who.tid, text, STATUS)
    if length == STATUS - 1:
        more = <char *>malloc(LONG_STATUS)
        if more is NULL:
            caller = NULL
        else:
            length = read_status(who.tid, more, LONG_STATUS)
            caller = caller_from(who, more, length)
            free(more)
    else:
        caller = caller_from(who, text, length)
    if aside:
        step_back()
    return caller


cdef ssize_t read_status(uint32_t tid, char *text, size_t size) noexcept nogil:
    """NUL-terminated. 0: the thread is gone, or its number means nothing here."""
    cdef char path[40]
    cdef ssize_t length
    cdef int fd
    text[0] = 0
    if tid == 0:
        return 0
    snprintf(path, sizeof(path), b"/proc/%u/status", tid)
    fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return 0
    length = pread(fd, text, size - 1, 0)
    close(fd)
    if length < 0:
        length = 0
    text[length] = 0
    return length


cdef caller_t *caller_from(const REQUESTOR *who, const char *text, ssize_t length) noexcept nogil:
    cdef const char *line = strstr(text, b"\nGroups:")
    cdef const char *at
    cdef char *end
    cdef caller_t *caller
    cdef uint32_t count = 0
    cdef uint32_t group
    if line is not NULL:
        line += 8
        at = line
        while at[0] != 0 and at[0] != c'\n':         # as many numbers as there are beginnings of one
            if at[0] >= c'0' and at[0] <= c'9' and not ((at - 1)[0] >= c'0' and (at - 1)[0] <= c'9'):
                count += 1
            at += 1
    caller = <caller_t *>malloc(cython.sizeof(caller_t) + (count + 1) * cython.sizeof(uint32_t))
    if caller is NULL:
        return NULL
    caller.references = 1
    caller.tid = who.tid
    caller.uid = who.uid
    caller.gid = who.gid
    caller.until = now() + BELIEVED
    caller.capabilities = 0
    caller.count = 0
    while caller.count < count:
        group = <uint32_t>strtoul(line, &end, 10)
        line = end
        caller.groups[caller.count] = group
        caller.count += 1
    if not has_group(caller, who.group) and caller.count < GROUPS:     # the kernel named it for this very request
        caller.groups[caller.count] = <uint32_t>who.group
        caller.count += 1
    if who.uid == 0 and who.tid == 0:
        caller.capabilities = FILE_CAPABILITIES      # the kernel's own request
    elif who.uid == 0:
        line = strstr(text, b"\nCapEff:")
        if line is not NULL:
            caller.capabilities = strtoull(line + 8, NULL, 16) & FILE_CAPABILITIES
            if caller.capabilities and not same_user_namespace(who.tid):
                caller.capabilities = 0
    return caller


cdef bint is_self(const caller_t *caller) noexcept nogil:
    """Root with all that the daemon has: no other rights than ours."""
    return caller.uid == 0 and (effective_set & FILE_CAPABILITIES) & ~caller.capabilities == 0


# --- the thread's rights --------------------------------------------------------------------------------------------

cdef bint same_groups(const caller_t *a, const caller_t *b) noexcept nogil:
    return a.count == b.count and memcmp(a.groups, b.groups, a.count * cython.sizeof(uint32_t)) == 0


cdef int wear(const caller_t *caller, const caller_t *before) noexcept nogil:
    """From what the thread has (before; NULL: its own) to the caller's. 0, or -1: partly done."""
    cdef bint all_of_it = before is NULL
    cdef uint64_t wanted = effective_set & ~FILE_CAPABILITIES
    if caller.uid == 0:
        wanted |= effective_set & caller.capabilities
    # Before the user changes, for that needs no capability that setfsuid() takes away; and never more than the caller's
    # groups while it is the caller.
    if (all_of_it or not same_groups(caller, before)) and raw_setgroups(<int>caller.count, caller.groups) != 0:
        return -1
    if (all_of_it or caller.gid != before.gid) and raw_setfsgid(caller.gid) != 0:
        return -1
    if (all_of_it or caller.uid != before.uid) and raw_setfsuid(caller.uid) != 0:
        return -1
    if by_capset or caller.uid == 0:
        return raw_capset(wanted, permitted_set, inheritable_set)
    return 0


cdef void take_off(bint by_capset) noexcept nogil:
    """None of these can be refused; the kernel may be short of memory for the moment."""
    while raw_setfsuid(0) != 0 or raw_setfsgid(own_gid) != 0 or raw_setgroups(own_count, own_groups) != 0:
        pass
    if by_capset:
        raw_capset(effective_set, permitted_set, inheritable_set)


cdef int impersonate(const REQUESTOR *who) noexcept nogil:
    cdef caller_t *caller
    cdef caller_t *before = <caller_t *>worn.caller
    if not is_root:
        return 0
    if who.uid == 0 and who.tid == 0:                # the kernel's own
        revert_to_self()
        return 0
    caller = caller_of(who)
    if caller is NULL:
        revert_to_self()
        return -ENOMEM
    if caller is before:
        drop(caller)
        return 0
    if is_self(caller):
        drop(caller)
        revert_to_self()
        return 0
    if before is not NULL and caller.uid == before.uid and caller.gid == before.gid and \
            caller.capabilities == before.capabilities and same_groups(caller, before):
        worn.caller = caller                         # the same rights, learned anew
        drop(before)
        return 0
    if wear(caller, before) != 0:
        take_off(True)
        worn.caller = NULL
        drop(before)
        drop(caller)
        return -EIO
    worn.caller = caller
    drop(before)
    return 0


cdef void revert_to_self() noexcept nogil:
    cdef caller_t *before = <caller_t *>worn.caller
    if before is NULL:
        return
    take_off(by_capset or before.uid == 0)
    worn.caller = NULL
    drop(before)


cdef bint impersonating() noexcept nogil:
    return worn.caller is not NULL


cdef bint step_aside() noexcept nogil:
    if worn.caller is NULL:
        return False
    take_off(by_capset or (<caller_t *>worn.caller).uid == 0)
    worn.aside = worn.caller
    worn.caller = NULL
    return True


cdef void step_back() noexcept nogil:
    cdef caller_t *caller = <caller_t *>worn.aside
    worn.aside = NULL
    while wear(caller, NULL) != 0:                   # it has worn this before: only memory can be short
        pass
    worn.caller = caller


cdef void finish_impersonating() noexcept nogil:
    if not worn.keeps:
        revert_to_self()


cdef void keep_impersonating() noexcept nogil:
    worn.keeps = 1


# --- for Python -----------------------------------------------------------------------------------------------------

def unavailable() -> str:
    if is_root and effective_set & SWITCHING != SWITCHING:
        return "root lacks CAP_SETUID or CAP_SETGID here (in a container: --cap-add SETUID --cap-add SETGID)"
    return ""


def time_switch(uint32_t uid, long rounds=20000) -> float:
    cdef REQUESTOR who
    cdef timespec start, end
    cdef long _i
    who.tid = 0
    who.uid = who.gid = uid
    who.group = -1
    with nogil:
        clock_gettime(CLOCK_MONOTONIC, &start)
        for _i in range(rounds):
            impersonate(&who)
            revert_to_self()
        clock_gettime(CLOCK_MONOTONIC, &end)
    return ((end.tv_sec - start.tv_sec) * 1e9 + end.tv_nsec - start.tv_nsec) / rounds
