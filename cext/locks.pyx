"""Locks of files: whose they are, who waits for them.

The backing filesystem arbitrates. A POSIX lock's owner (a process' table of open files) and an OFD lock's owner (an open
file) look alike on the wire: a number. Each gets, for each file it locks, an open file description of its own, whose OFD
locks conflict with everybody else's, also with those of programs beside the mount. Closing that description releases all.

No system call here waits. Whoever cannot have a lock and wants to wait is parked: when something is released through this
table, those parked on that file try again. A release beside the mount shows nowhere, so those for whom nobody here is in
the way try again every LOCK_RETRY milliseconds (a thread that sleeps in fcntl(2) for each of them could be ended only by
a signal, and a few dozen would use up the pool). Lost wake-ups cannot be: a waiter is parked only if nothing was
released since before it tried.

The ranges remembered here are what was granted; two threads of one owner that lock and unlock the same bytes at the same
time may leave them inexact, which costs at most a wrong process id in F_GETLK or an extra try.
"""

cimport cython
from libc.errno cimport EACCES, EAGAIN, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.time cimport CLOCK_MONOTONIC, timespec

from stackfs.cext.callback_data cimport FILE_OBJECT, FO_LOCKED, LOCK_PARAMETERS, lock_range_t, node_t
from stackfs.cext.includes.pthread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_timedwait, pthread_condattr_destroy,
    pthread_condattr_init, pthread_condattr_setclock, pthread_condattr_t, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock)
from stackfs.cext.threads cimport load_bits, load_int, monotonic_deadline, store_int


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <sys/file.h>
    #include <unistd.h>
    #include <string.h>
    #include <stdint.h>
    /* end: the last byte of the range; everything up to the largest offset is "to the end". */
    static int stackfs_ofd(int fd, int command, struct flock *lock, short type, uint64_t start, uint64_t end) {
        memset(lock, 0, sizeof *lock);
        lock->l_type = type;
        lock->l_whence = SEEK_SET;
        lock->l_start = (off_t)start;
        lock->l_len = end >= INT64_MAX ? 0 : (off_t)(end - start + 1);
        return fcntl(fd, command, lock);
    }
    static inline uint64_t stackfs_get(uint64_t *what) { return __atomic_load_n(what, __ATOMIC_SEQ_CST); }
    static inline void stackfs_raise(uint64_t *what) { __atomic_add_fetch(what, 1, __ATOMIC_SEQ_CST); }
    static inline uint32_t stackfs_get32(uint32_t *what) { return __atomic_load_n(what, __ATOMIC_SEQ_CST); }
    static inline void stackfs_set32(uint32_t *what, uint32_t value) { __atomic_store_n(what, value, __ATOMIC_SEQ_CST); }
    """
    struct c_flock "flock":
        short l_type
        int64_t l_start
        int64_t l_len
        int l_pid
    int EDEADLK, F_OFD_SETLK, F_OFD_GETLK, F_RDLCK, F_WRLCK, F_UNLCK, LOCK_SH, LOCK_EX, LOCK_UN, LOCK_NB
    int stackfs_ofd(int fd, int command, c_flock *lock, short type, uint64_t start, uint64_t end) nogil
    int flock(int fd, int operation) nogil
    int close(int fd) nogil
    uint64_t stackfs_get(uint64_t *what) nogil
    void stackfs_raise(uint64_t *what) nogil
    uint32_t stackfs_get32(uint32_t *what) nogil
    void stackfs_set32(uint32_t *what, uint32_t value) nogil

cdef enum:
    DEADLOCK_STEPS = 10                  # as far as Linux looks
    SECOND = 1000000000

cdef uint64_t LAST_BYTE = 0x7FFFFFFFFFFFFFFF


cdef lock_table_t *locks_new() noexcept nogil:
    cdef lock_table_t *table = <lock_table_t *>calloc(1, cython.sizeof(lock_table_t))
    cdef pthread_condattr_t attributes
    if table is not NULL:
        pthread_mutex_init(&table.mutex, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&table.changed, &attributes)
        pthread_condattr_destroy(&attributes)
    return table


cdef void locks_free(lock_table_t *table) noexcept nogil:
    cdef int i
    cdef lock_owner_t *entry
    for i in range(LOCK_OWNER_BUCKETS):
        while table.owners[i] is not NULL:
            entry = table.owners[i]
            table.owners[i] = entry.next
            close_owner(entry)
    pthread_cond_destroy(&table.changed)
    pthread_mutex_destroy(&table.mutex)
    free(table)


cdef bint lock_range_of(const LOCK_PARAMETERS *p, uint32_t type, lock_range_t *what) noexcept nogil:
    if p.ByteOffset < 0 or p.Length == 0 or p.Length - 1 > LAST_BYTE - <uint64_t>p.ByteOffset:
        return False
    what.start = <uint64_t>p.ByteOffset
    what.end = what.start + (p.Length - 1)
    what.type = type
    what.pid = p.ProcessId
    return True


# --- owners -------------------------------------------------------------------------------------------------------

cdef inline lock_owner_t **bucket_of(lock_table_t *table, const node_t *node) noexcept nogil:
    cdef uint64_t at = <uint64_t>node >> 4
    return &table.owners[(at ^ at >> 8) % LOCK_OWNER_BUCKETS]


cdef void close_owner(lock_owner_t *entry) noexcept nogil:
    cdef range_t *granted
    if entry.fd >= 0:
        close(entry.fd)
    while entry.ranges is not NULL:
        granted = entry.ranges
        entry.ranges = granted.next
        free(granted)
    free(entry)


cdef lock_owner_t *lock_owner_get(lock_table_t *table, const node_t *node, uint64_t owner, uint64_t fh, bint make) noexcept nogil:
    cdef lock_owner_t **bucket = bucket_of(table, node)
    cdef lock_owner_t *entry
    pthread_mutex_lock(&table.mutex)
    entry = bucket[0]
    while entry is not NULL and (entry.node is not node or entry.owner != owner):
        entry = entry.next
    if entry is NULL and make:
        entry = <lock_owner_t *>calloc(1, cython.sizeof(lock_owner_t))
        if entry is not NULL:
            entry.node = node
            entry.owner = owner
            entry.fh = fh
            entry.fd = -1
            entry.next = bucket[0]
            bucket[0] = entry
            stackfs_set32(&table.owner_count, table.owner_count + 1)
    if entry is not NULL:
        entry.users += 1
    pthread_mutex_unlock(&table.mutex)
    return entry


cdef void lock_owner_put(lock_table_t *table, lock_owner_t *entry) noexcept nogil:
    cdef const node_t *node = entry.node
    cdef bint last
    pthread_mutex_lock(&table.mutex)
    entry.users -= 1
    last = entry.users == 0 and entry.dropped
    pthread_mutex_unlock(&table.mutex)
    if last:
        close_owner(entry)
        locks_released(table, node)


cdef void lock_owner_opened(lock_table_t *table, lock_owner_t *entry, int fd) noexcept nogil:
    pthread_mutex_lock(&table.mutex)
    if entry.fd < 0:
        entry.fd = fd
        fd = -1
    pthread_mutex_unlock(&table.mutex)
    if fd >= 0:
        close(fd)


cdef bint locks_held(lock_table_t *table, const node_t *node, uint64_t owner) noexcept nogil:
    cdef lock_owner_t *entry
    if stackfs_get32(&table.owner_count) == 0:
        return False
    pthread_mutex_lock(&table.mutex)
    entry = bucket_of(table, node)[0]
    while entry is not NULL and (entry.node is not node or entry.owner != owner):
        entry = entry.next
    pthread_mutex_unlock(&table.mutex)
    return entry is not NULL


cdef void locks_drop(lock_table_t *table, const node_t *node, uint64_t key, bint by_owner) noexcept nogil:
    cdef lock_owner_t *closing = NULL
    cdef lock_owner_t **link
    cdef lock_owner_t *entry
    cdef bint found = False
    if stackfs_get32(&table.owner_count) == 0:
        return
    pthread_mutex_lock(&table.mutex)
    link = bucket_of(table, node)
    while link[0] is not NULL:
        entry = link[0]
        if entry.node is node and (entry.owner if by_owner else entry.fh) == key:
            link[0] = entry.next
            entry.dropped = 1
            stackfs_set32(&table.owner_count, table.owner_count - 1)
            found = True
            if entry.users == 0:
                entry.next = closing
                closing = entry
        else:
            link = &entry.next
    pthread_mutex_unlock(&table.mutex)
    while closing is not NULL:
        entry = closing
        closing = entry.next
        close_owner(entry)
    if found:
        locks_released(table, node)


# --- ranges granted -----------------------------------------------------------------------------------------------

cdef bint remember_locked(lock_owner_t *entry, const lock_range_t *what) noexcept nogil:
    """The range becomes the owner's as said; what it had of it before is replaced. Had it any? Ranges of one type that
    touch each other are one, as they are below, where F_GETLK shows them so."""
    cdef bint replaced = False
    cdef lock_range_t whole = what[0]
    cdef range_t **link = &entry.ranges
    cdef range_t *had
    cdef range_t *rest
    cdef bint overlaps
    while link[0] is not NULL:
        had = link[0]
        overlaps = had.range.end >= what.start and had.range.start <= what.end
        replaced = replaced or overlaps
        if had.range.type == what.type and (
                overlaps or had.range.end + 1 == what.start or had.range.start == what.end + 1):
            whole.start = min(whole.start, had.range.start)
            whole.end = max(whole.end, had.range.end)
            link[0] = had.next
            free(had)
            continue
        if not overlaps:
            link = &had.next
            continue
        if had.range.start < what.start and had.range.end > what.end:      # what is left has two parts
            rest = <range_t *>malloc(cython.sizeof(range_t))
            if rest is not NULL:
                rest.range = had.range
                rest.range.start = what.end + 1
                rest.next = had.next
                had.next = rest
            had.range.end = what.start - 1
            break
        if had.range.start < what.start:
            had.range.end = what.start - 1
            link = &had.next
        elif had.range.end > what.end:
            had.range.start = what.end + 1
            link = &had.next
        else:
            link[0] = had.next
            free(had)
    if what.type == <uint32_t>F_UNLCK:
        return replaced
    had = <range_t *>malloc(cython.sizeof(range_t))
    if had is not NULL:
        had.range = whole
        had.next = entry.ranges
        entry.ranges = had
    return replaced


cdef lock_owner_t *in_the_way_locked(lock_table_t *table, const node_t *node, uint64_t owner, const lock_range_t *wanted,
                                     lock_range_t *found) noexcept nogil:
    """Another owner here with a conflicting range, the first such range in the file; or NULL."""
    cdef lock_owner_t *entry = bucket_of(table, node)[0]
    cdef lock_owner_t *blocker = NULL
    cdef range_t *granted
    while entry is not NULL:
        granted = entry.ranges if entry.node is node and entry.owner != owner else NULL
        while granted is not NULL:
            if granted.range.start <= wanted.end and granted.range.end >= wanted.start and (
                    granted.range.type == <uint32_t>F_WRLCK or wanted.type == <uint32_t>F_WRLCK):
                if blocker is NULL or granted.range.start < found.start:
                    blocker = entry
                    found[0] = granted.range
            granted = granted.next
        entry = entry.next
    return blocker


cdef int lock_set(lock_table_t *table, lock_owner_t *entry, const lock_range_t *what) noexcept nogil:
    cdef c_flock lock
    cdef bint replaced
    if stackfs_ofd(entry.fd, F_OFD_SETLK, &lock, <short>what.type, what.start, what.end) != 0:
        return -EAGAIN if errno == EACCES else -errno
    pthread_mutex_lock(&table.mutex)
    replaced = remember_locked(entry, what)
    pthread_mutex_unlock(&table.mutex)
    if what.type == <uint32_t>F_UNLCK or (replaced and what.type == <uint32_t>F_RDLCK):     # perhaps a write lock before
        locks_released(table, entry.node)
    return 0


cdef int lock_query(lock_table_t *table, int fd, const node_t *node, uint64_t owner, lock_range_t *what) noexcept nogil:
    cdef c_flock lock
    cdef lock_range_t found
    cdef lock_owner_t *blocker
    if stackfs_ofd(fd, F_OFD_GETLK, &lock, <short>what.type, what.start, what.end) != 0:
        return -errno
    if lock.l_type == F_UNLCK:
        what.type = <uint32_t>F_UNLCK
        what.pid = 0
        return 0
    if lock.l_pid < 0:                   # an open file description's: probably one of ours
        pthread_mutex_lock(&table.mutex)
        blocker = in_the_way_locked(table, node, owner, what, &found)
        pthread_mutex_unlock(&table.mutex)
        if blocker is not NULL:
            what[0] = found
            return 0
    what.type = <uint32_t>lock.l_type
    what.start = <uint64_t>lock.l_start
    what.end = LAST_BYTE if lock.l_len == 0 else <uint64_t>(lock.l_start + lock.l_len - 1)
    what.pid = <uint32_t>lock.l_pid if lock.l_pid > 0 else 0
    return 0


cdef int lock_file(lock_table_t *table, const FILE_OBJECT *file, uint32_t type) noexcept nogil:
    cdef int operation = LOCK_UN
    cdef int result
    if type == <uint32_t>F_RDLCK:
        operation = LOCK_SH
    elif type == <uint32_t>F_WRLCK:
        operation = LOCK_EX
    result = 0 if flock(file.fd, operation | LOCK_NB) == 0 else -errno
    # A conversion gives the old lock up even if the new one cannot be had.
    if type != <uint32_t>F_WRLCK or (result != 0 and load_bits(&file.Flags) & FO_LOCKED):
        locks_released(table, file.Node)
    return result


# --- waiting --------------------------------------------------------------------------------------------------------

cdef uint64_t locks_generation(lock_table_t *table) noexcept nogil:
    return stackfs_get(&table.generation)


cdef void enter_locked(lock_table_t *table, lock_wait_t *waiting, uint64_t unique) noexcept nogil:
    waiting.unique = unique
    waiting.entered = 1
    waiting.next = NULL
    waiting.previous = table.last
    if table.last is not NULL:
        table.last.next = waiting
    else:
        table.first = waiting
    table.last = waiting


cdef void lock_enter(lock_table_t *table, lock_wait_t *waiting, uint64_t unique) noexcept nogil:
    if waiting.entered:
        return
    pthread_mutex_lock(&table.mutex)
    enter_locked(table, waiting, unique)
    pthread_mutex_unlock(&table.mutex)


cdef void lock_leave(lock_table_t *table, lock_wait_t *waiting) noexcept nogil:
    if not waiting.entered:
        return
    pthread_mutex_lock(&table.mutex)
    unpark_locked(table, waiting)
    if waiting.previous is not NULL:
        waiting.previous.next = waiting.next
    else:
        table.first = waiting.next
    if waiting.next is not NULL:
        waiting.next.previous = waiting.previous
    else:
        table.last = waiting.previous
    waiting.entered = 0
    pthread_mutex_unlock(&table.mutex)


cdef void unpark_locked(lock_table_t *table, lock_wait_t *waiting) noexcept nogil:
    if waiting.parked:
        waiting.parked = 0
        stackfs_set32(&table.parked_count, table.parked_count - 1)


cdef void wake_locked(lock_table_t *table, lock_wait_t *waiting, lock_wait_t ***end) noexcept nogil:
    """Parked no more; at the end of the chain of those to call, if it has somebody to call."""
    unpark_locked(table, waiting)
    if waiting.woken is not NULL:
        waiting.chain = NULL
        end[0][0] = waiting
        end[0] = &waiting.chain


cdef void call_woken(lock_wait_t *waiting) noexcept nogil:
    """Whoever is called may run the request at once: it is not touched afterwards."""
    cdef lock_wait_t *following
    while waiting is not NULL:
        following = waiting.chain
        waiting.woken(waiting)
        waiting = following


cdef uint32_t wake(lock_table_t *table, const node_t *node, bint foreign_only, bint cancel, bint restart, bint leases=False) noexcept nogil:
    """How many were parked. node NULL: of every file. cancel, restart: set in all that are entered, parked or not."""
    cdef lock_wait_t *chain = NULL
    cdef lock_wait_t **end = &chain
    cdef lock_wait_t *waiting
    cdef uint32_t count = 0
    pthread_mutex_lock(&table.mutex)
    waiting = table.first
    while waiting is not NULL:
        if cancel:
            store_int(&waiting.cancelled, 1)
        if restart:
            store_int(&waiting.restart, 1)
        if waiting.parked and (node is NULL or waiting.node is node) and (waiting.foreign or not foreign_only) and \
                (waiting.lease or not leases):
            wake_locked(table, waiting, &end)
            count += 1
        waiting = waiting.next
    pthread_cond_broadcast(&table.changed)
    pthread_mutex_unlock(&table.mutex)
    call_woken(chain)
    return count


cdef void locks_released(lock_table_t *table, const node_t *node) noexcept nogil:
    stackfs_raise(&table.generation)
    if stackfs_get32(&table.parked_count):
        wake(table, node, False, False, False)
    # A waiter that is about to park takes the mutex after this and sees the new generation; one that has parked is counted.


cdef uint32_t locks_retry(lock_table_t *table) noexcept nogil:
    if stackfs_get32(&table.parked_count) == 0:
        return 0
    wake(table, NULL, True, False, False)
    return stackfs_get32(&table.parked_count)


cdef uint32_t locks_retry_leases(lock_table_t *table) noexcept nogil:
    return wake(table, NULL, False, False, False, True) if stackfs_get32(&table.parked_count) else 0


cdef void locks_cancel(lock_table_t *table) noexcept nogil:
    wake(table, NULL, False, True, False)


cdef void locks_restart(lock_table_t *table) noexcept nogil:
    wake(table, NULL, False, False, True)


cdef lock_wait_t *waiting_owner_locked(lock_table_t *table, uint64_t owner) noexcept nogil:
    cdef lock_wait_t *waiting = table.first
    while waiting is not NULL and (not waiting.parked or waiting.flock or waiting.owner != owner):
        waiting = waiting.next
    return waiting


cdef bint deadlocks_locked(lock_table_t *table, const lock_wait_t *waiting) noexcept nogil:
    """Does the owner in the way wait for one that waits for ... this one?"""
    cdef const lock_wait_t *at = waiting
    cdef lock_owner_t *blocker
    cdef lock_range_t found
    cdef int _step
    for _step in range(DEADLOCK_STEPS):
        blocker = in_the_way_locked(table, at.node, at.owner, &at.range, &found)
        if blocker is NULL:
            return False
        if blocker.owner == waiting.owner:
            return True
        at = waiting_owner_locked(table, blocker.owner)
        if at is NULL:
            return False
    return False


cdef int lock_park(lock_table_t *table, lock_wait_t *waiting) noexcept nogil:
    cdef lock_range_t found
    pthread_mutex_lock(&table.mutex)
    if not waiting.entered:              # a SETLK that a filter lets wait
        enter_locked(table, waiting, waiting.unique)
    # Counted first, then compared: locks_released() counts first, then looks for the parked.
    stackfs_set32(&table.parked_count, table.parked_count + 1)
    if load_int(&waiting.cancelled) or load_int(&waiting.restart) or stackfs_get(&table.generation) != waiting.generation:
        stackfs_set32(&table.parked_count, table.parked_count - 1)
        pthread_mutex_unlock(&table.mutex)
        return 0
    if not waiting.flock and not waiting.lease and deadlocks_locked(table, waiting):
        stackfs_set32(&table.parked_count, table.parked_count - 1)
        waiting.error = EDEADLK
        pthread_mutex_unlock(&table.mutex)
        return 0
    # Who holds a flock is not remembered here: those that want one try again as for a foreign lock.
    waiting.foreign = waiting.flock or waiting.lease or in_the_way_locked(
        table, waiting.node, waiting.owner, &waiting.range, &found) is NULL
    waiting.parked = 1
    pthread_mutex_unlock(&table.mutex)
    return 1


cdef void lock_wait(lock_table_t *table, lock_wait_t *waiting) noexcept nogil:
    cdef timespec until
    monotonic_deadline(&until, LOCK_RETRY * 1000000)
    waiting.woken = NULL
    if not lock_park(table, waiting):
        return
    pthread_mutex_lock(&table.mutex)
    while waiting.parked:
        if pthread_cond_timedwait(&table.changed, &table.mutex, &until) != 0:
            break
    unpark_locked(table, waiting)
    pthread_mutex_unlock(&table.mutex)


cdef bint lock_interrupt(lock_table_t *table, uint64_t unique) noexcept nogil:
    cdef lock_wait_t *chain = NULL
    cdef lock_wait_t **end = &chain
    cdef lock_wait_t *waiting
    cdef bint found
    pthread_mutex_lock(&table.mutex)
    waiting = table.first
    while waiting is not NULL and waiting.unique != unique:
        waiting = waiting.next
    found = waiting is not NULL
    if found:
        store_int(&waiting.cancelled, 1)
        if waiting.parked:
            wake_locked(table, waiting, &end)
            pthread_cond_broadcast(&table.changed)
    pthread_mutex_unlock(&table.mutex)
    call_woken(chain)
    return found
