"""Who asks: process id and command name of a requesting thread, found only when somebody wants to know.

The kernel names the thread (tid). Its process id and command name come from /proc/TID, through a small cache of open
descriptors of /proc/TID/comm: such a descriptor belongs to that very thread, so a read of it gives the name of now
(an exec changes it), and fails with ESRCH once the thread is gone, even when its number has been given to another.

A read of it costs a microsecond, so what was read is kept as well, for whoever is content with the name of a moment
ago (requestor_recently): for COMM_AGE at most, and only while the thread is asked about again and again. A thread
that paused for COMM_PAUSE may have become another program meanwhile, and is read anew.

Any thread may call these functions, without the GIL. A thread's entry lies in one of the four places of its set; a mutex
guards each set, and is not held across a system call: an entry in use is pinned instead.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport atoi
from libc.string cimport memcpy, memset, strstr
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from stackfs.cext.callback_data cimport REQUESTOR


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_CLOEXEC
    int open(const char *path, int flags, ...)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t pread(int fd, void *buffer, size_t size, long offset)


cdef enum:
    SETS = 64
    WAYS = 4

cdef struct entry_t:
    uint32_t tid
    uint32_t pid
    int fd                               # of /proc/TID/comm; -1: free
    int users
    int64_t used                         # when it was last asked for (monotonic ns)
    int64_t read_at                      # when `comm` was read, 0: not yet
    char comm[COMM_LENGTH]

cdef struct set_t:
    pthread_mutex_t mutex
    entry_t entries[WAYS]

cdef set_t cache[SETS]
for _i in range(SETS):
    pthread_mutex_init(&cache[_i].mutex, NULL)
    for _j in range(WAYS):
        cache[_i].entries[_j].fd = -1


cdef inline int64_t monotonic() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t>time.tv_sec * <int64_t>1_000_000_000 + time.tv_nsec


cdef uint32_t read_pid(uint32_t tid) noexcept nogil:
    """Tgid of /proc/TID/status."""
    cdef char path[40]
    cdef char text[512]
    cdef ssize_t length
    cdef char *line
    cdef int fd
    snprintf(path, sizeof(path), b"/proc/%u/status", tid)
    fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return 0
    length = pread(fd, text, sizeof(text) - 1, 0)
    close(fd)
    if length <= 0:
        return 0
    text[length] = 0
    line = strstr(text, b"\nTgid:")
    return 0 if line is NULL else <uint32_t>atoi(line + 6)


cdef entry_t *acquire(set_t *group, uint32_t tid, int64_t now) noexcept nogil:
    """The pinned entry of a thread; NULL: not cached."""
    cdef int i
    cdef entry_t *found = NULL
    pthread_mutex_lock(&group.mutex)
    for i in range(WAYS):
        if group.entries[i].tid == tid and group.entries[i].fd >= 0:
            found = &group.entries[i]
            found.users += 1
            found.used = now
            break
    pthread_mutex_unlock(&group.mutex)
    return found


cdef void release(set_t *group, entry_t *entry, const char *comm, int64_t read_at) noexcept nogil:
    """Unpins it; comm: what was read at that time, NULL: the thread is gone."""
    cdef int fd = -1
    pthread_mutex_lock(&group.mutex)
    entry.users -= 1
    if comm is not NULL:
        memcpy(entry.comm, comm, COMM_LENGTH)
        entry.read_at = read_at
    else:
        entry.read_at = 0
        if entry.users == 0:
            fd = entry.fd
            entry.fd = -1
    pthread_mutex_unlock(&group.mutex)
    if fd >= 0:
        close(fd)


cdef entry_t *enter(set_t *group, uint32_t tid, int64_t now) noexcept nogil:
    """Opens the thread's comm and caches it in its set's least used place; NULL: the thread is gone, or no place."""
    cdef char path[40]
    cdef int fd, i
    cdef int victim_fd = -1
    cdef uint32_t pid
    cdef entry_t *place = NULL
    cdef entry_t *candidate
    snprintf(path, sizeof(path), b"/proc/%u/comm", tid)
    fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return NULL
    pid = read_pid(tid)
    pthread_mutex_lock(&group.mutex)
    for i in range(WAYS):
        candidate = &group.entries[i]
        if candidate.users == 0 and (place is NULL or candidate.fd < 0 or (place.fd >= 0 and candidate.used < place.used)):
            place = candidate
            if candidate.fd < 0:
                break
    if place is not NULL:
        victim_fd = place.fd
        place.tid = tid
        place.pid = pid
        place.fd = fd
        place.users = 1
        place.used = now
        place.read_at = 0
    pthread_mutex_unlock(&group.mutex)
    if place is NULL:
        close(fd)
    elif victim_fd >= 0:
        close(victim_fd)
    return place


cdef uint32_t requestor_comm(const REQUESTOR *who, char *comm) noexcept nogil:
    cdef set_t *group = &cache[who.tid % SETS]
    cdef entry_t *entry
    cdef ssize_t length
    cdef uint32_t pid
    cdef int64_t now
    cdef int _attempt
    memset(comm, 0, COMM_LENGTH)
    if who.tid == 0:
        return 0
    now = monotonic()
    for _attempt in range(2):
        entry = acquire(group, who.tid, now)
        if entry is NULL:
            entry = enter(group, who.tid, now)
        if entry is NULL:
            return read_pid(who.tid)
        length = pread(entry.fd, comm, COMM_LENGTH, 0)
        pid = entry.pid
        if length > 0:
            comm[length - 1] = 0         # the newline
            release(group, entry, comm, now)
            return pid
        release(group, entry, NULL, 0)
    return 0


cdef uint32_t requestor_recently(const REQUESTOR *who, char *comm, int64_t now) noexcept nogil:
    cdef set_t *group = &cache[who.tid % SETS]
    cdef entry_t *entry
    cdef uint32_t pid
    cdef int i
    pthread_mutex_lock(&group.mutex)
    for i in range(WAYS):
        entry = &group.entries[i]
        if entry.tid == who.tid and entry.fd >= 0 and now - entry.used <= COMM_PAUSE and now - entry.read_at <= COMM_AGE:
            entry.used = now
            memcpy(comm, entry.comm, COMM_LENGTH)
            pid = entry.pid
            pthread_mutex_unlock(&group.mutex)
            return pid
    pthread_mutex_unlock(&group.mutex)
    return requestor_comm(who, comm)


cdef uint32_t requestor_pid(const REQUESTOR *who) noexcept nogil:
    cdef char comm[COMM_LENGTH]
    return requestor_comm(who, comm)


cdef bint lists_group(int fd, uint32_t gid) noexcept nogil:
    """Does the line "Groups:" of a /proc/TID/status hold that number? A line may be long: a thread has up to 65,536 groups."""
    cdef const char *label = b"\nGroups:"
    cdef char text[4096]
    cdef long offset = 0
    cdef ssize_t length, i
    cdef int matched = 0
    cdef uint64_t number = 0
    cdef bint digits = False
    while True:
        length = pread(fd, text, sizeof(text), offset)
        if length <= 0:
            return False
        offset += length
        for i in range(length):
            if matched < 8:
                matched = matched + 1 if text[i] == label[matched] else (1 if text[i] == c'\n' else 0)
            elif c'0' <= text[i] <= c'9':
                number = number * 10 + (text[i] - c'0')
                digits = True
            else:
                if digits and number == gid:
                    return True
                if text[i] == c'\n':
                    return False
                number = 0
                digits = False


cdef bint requestor_in_group(const REQUESTOR *who, uint32_t gid) noexcept nogil:
    cdef char path[40]
    cdef int fd
    cdef bint found
    if who.gid == gid or who.group == <int64_t>gid:
        return True
    if who.tid == 0:
        return False
    snprintf(path, sizeof(path), b"/proc/%u/status", who.tid)
    fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return False
    found = lists_group(fd, gid)
    close(fd)
    return found


def describe(uint32_t tid) -> tuple:
    """(process id, command name) of a thread; (0, b"") when it is gone."""
    cdef REQUESTOR who
    cdef char comm[COMM_LENGTH]
    cdef uint32_t pid
    who.tid = tid
    with nogil:
        pid = requestor_comm(&who, comm)
    return pid, <bytes>comm
