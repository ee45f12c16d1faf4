"""Who asks: process id and command name of a requesting thread, found only when somebody wants to know.

The kernel names the thread (tid). Its process id and command name come from /proc/TID, through a small cache of open
descriptors of /proc/TID/comm: such a descriptor belongs to that very thread, so a read of it gives the name of now
(an exec changes it), and fails with ESRCH once the thread is gone, even when its number has been given to another.

Any thread may call these functions, without the GIL. One mutex guards the cache; it is not held across a system call:
an entry in use is pinned instead.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport atoi
from libc.string cimport memset, strstr

from stackfs.cext.callback_data cimport REQUESTOR
from stackfs.cext.impersonation cimport step_aside, step_back


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
    ENTRIES = 256

cdef struct entry_t:
    uint32_t tid
    uint32_t pid
    int fd                               # of /proc/TID/comm; -1: free
    int users
    uint64_t used                        # clock of the last use

cdef pthread_mutex_t mutex
cdef entry_t cache[ENTRIES]
cdef uint64_t clock = 0
pthread_mutex_init(&mutex, NULL)
for _i in range(ENTRIES):
    cache[_i].fd = -1


cdef int open_proc(const char *path) noexcept nogil:
    """/proc may hide others' processes from the caller whose rights this thread has."""
    cdef int fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0 and step_aside():
        fd = open(path, O_RDONLY | O_CLOEXEC)
        step_back()
    return fd


cdef uint32_t read_pid(uint32_t tid) noexcept nogil:
    """Tgid of /proc/TID/status."""
    cdef char path[40]
    cdef char text[512]
    cdef ssize_t length
    cdef char *line
    cdef int fd
    snprintf(path, sizeof(path), b"/proc/%u/status", tid)
    fd = open_proc(path)
    if fd < 0:
        return 0
    length = pread(fd, text, sizeof(text) - 1, 0)
    close(fd)
    if length <= 0:
        return 0
    text[length] = 0
    line = strstr(text, b"\nTgid:")
    return 0 if line is NULL else <uint32_t>atoi(line + 6)


cdef entry_t *acquire(uint32_t tid) noexcept nogil:
    """The pinned entry of a thread; NULL: not cached."""
    global clock
    cdef int i
    cdef entry_t *found = NULL
    pthread_mutex_lock(&mutex)
    clock += 1
    for i in range(tid % ENTRIES, tid % ENTRIES + 4):
        if cache[i % ENTRIES].fd >= 0 and cache[i % ENTRIES].tid == tid:
            found = &cache[i % ENTRIES]
            found.users += 1
            found.used = clock
            break
    pthread_mutex_unlock(&mutex)
    return found


cdef void release(entry_t *entry, bint gone) noexcept nogil:
    cdef int fd = -1
    pthread_mutex_lock(&mutex)
    entry.users -= 1
    if gone and entry.users == 0:
        fd = entry.fd
        entry.fd = -1
    pthread_mutex_unlock(&mutex)
    if fd >= 0:
        close(fd)


cdef entry_t *enter(uint32_t tid) noexcept nogil:
    """Opens the thread's comm and caches it in the least used of its four places; NULL: the thread is gone, or no place."""
    cdef char path[40]
    cdef int fd, i, victim_fd = -1
    cdef uint32_t pid
    cdef entry_t *place = NULL
    cdef entry_t *candidate
    snprintf(path, sizeof(path), b"/proc/%u/comm", tid)
    fd = open_proc(path)
    if fd < 0:
        return NULL
    pid = read_pid(tid)
    pthread_mutex_lock(&mutex)
    for i in range(tid % ENTRIES, tid % ENTRIES + 4):
        candidate = &cache[i % ENTRIES]
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
        place.used = clock
    pthread_mutex_unlock(&mutex)
    close(victim_fd if place is not NULL else fd)
    return place


cdef uint32_t requestor_comm(const REQUESTOR *who, char *comm) noexcept nogil:
    cdef entry_t *entry
    cdef ssize_t length
    cdef uint32_t pid
    cdef int _attempt
    memset(comm, 0, COMM_LENGTH)
    if who.tid == 0:
        return 0
    for _attempt in range(2):
        entry = acquire(who.tid)
        if entry is NULL:
            entry = enter(who.tid)
        if entry is NULL:
            return read_pid(who.tid)
        length = pread(entry.fd, comm, COMM_LENGTH, 0)
        pid = entry.pid
        release(entry, length <= 0)
        if length > 0:
            comm[length - 1] = 0         # the newline
            return pid
    return 0


cdef uint32_t requestor_pid(const REQUESTOR *who) noexcept nogil:
    cdef char comm[COMM_LENGTH]
    return requestor_comm(who, comm)


def describe(uint32_t tid) -> tuple:
    """(process id, command name) of a thread; (0, b"") when it is gone."""
    cdef REQUESTOR who
    cdef char comm[COMM_LENGTH]
    cdef uint32_t pid
    who.tid = tid
    with nogil:
        pid = requestor_comm(&who, comm)
    return pid, <bytes>comm
