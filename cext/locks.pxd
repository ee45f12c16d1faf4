# Locks of files: whose they are, who waits for them (locks.pyx).
#
# The backing filesystem's own locks are the truth: for each (file, owner) that has locks here there is one open file
# description of the backing file, and its OFD locks are the owner's. A flock(2) lock is the handle's descriptor's. The
# table only knows which descriptors these are, which ranges were granted to whom (for F_GETLK's process id and for finding
# deadlocks), and who may wait. One mutex guards it and is never held across a system call or a call to a waiter.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from stackfs.cext.callback_data cimport FILE_OBJECT, LOCK_PARAMETERS, lock_range_t, node_t
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t

cdef struct range_t:
    lock_range_t range
    range_t *next

cdef struct lock_owner_t:
    const node_t *node                   # lives: the handle that it came by holds it until RELEASE, which drops this
    uint64_t owner
    uint64_t fh
    int fd                               # -1: not opened yet
    uint32_t users
    uint8_t dropped                      # out of the table: the last user closes fd
    range_t *ranges
    lock_owner_t *next

cdef struct lock_wait_t
ctypedef void (*woken_function)(lock_wait_t *waiting) noexcept nogil

cdef struct lock_wait_t:                 # part of a request (vfs_request_t.waiting)
    # set by the base
    int wanted                           # the request waits for a lock: request_run() has returned 0
    const node_t *node
    uint64_t owner
    lock_range_t range
    uint8_t flock
    uint8_t lease                        # not for a lock: an open waits for somebody's lease to be broken (coherence.pyx)
    uint8_t foreign                      # nobody here has it: its release cannot be seen, only tried
    uint64_t generation                  # what had been released when it was tried
    # set by who parks it
    woken_function woken                 # called once for each time it was parked, by any thread; NULL: lock_wait() waits
    void *context
    # the table's
    uint64_t unique
    int entered                          # in the table, from before the first try to the end of the request
    int parked
    int cancelled                        # the next try gives EINTR
    int restart                          # its callback list may be an old one, for which a detach waits
    int error                            # the next try gives this
    lock_wait_t *next
    lock_wait_t *previous
    lock_wait_t *chain                   # woken together with it

cdef enum:
    LOCK_OWNER_BUCKETS = 256
    LOCK_RETRY = 100                     # milliseconds between two tries for a lock that somebody beside the mount has

cdef struct lock_table_t:
    pthread_mutex_t mutex
    pthread_cond_t changed
    lock_owner_t *owners[256]
    uint32_t owner_count                 # atomic for readers
    uint64_t generation                  # atomic: counts releases
    lock_wait_t *first                   # entered
    lock_wait_t *last
    uint32_t parked_count                # atomic for readers

cdef lock_table_t *locks_new() noexcept nogil
cdef void locks_free(lock_table_t *table) noexcept nogil

# The owner's entry for a file, in use until lock_owner_put(); NULL: there is none (make == False), or no memory.
cdef lock_owner_t *lock_owner_get(lock_table_t *table, const node_t *node, uint64_t owner, uint64_t fh, bint make) noexcept nogil
cdef void lock_owner_put(lock_table_t *table, lock_owner_t *entry) noexcept nogil
cdef void lock_owner_opened(lock_table_t *table, lock_owner_t *entry, int fd) noexcept nogil     # somebody faster's stays
cdef bint locks_held(lock_table_t *table, const node_t *node, uint64_t owner) noexcept nogil

# 0 or a negative errno; -EAGAIN: somebody else has it. None of these waits.
cdef int lock_set(lock_table_t *table, lock_owner_t *entry, const lock_range_t *what) noexcept nogil
cdef int lock_query(lock_table_t *table, int fd, const node_t *node, uint64_t owner, lock_range_t *what) noexcept nogil
cdef int lock_file(lock_table_t *table, const FILE_OBJECT *file, uint32_t type) noexcept nogil
# Everything of an owner (by_owner), or what came by a handle: at close(2), at RELEASE.
cdef void locks_drop(lock_table_t *table, const node_t *node, uint64_t key, bint by_owner) noexcept nogil
cdef void locks_released(lock_table_t *table, const node_t *node) noexcept nogil        # a descriptor with a flock was closed

cdef bint lock_range_of(const LOCK_PARAMETERS *p, uint32_t type, lock_range_t *what) noexcept nogil     # False: not a range

# Waiting. Who may wait is entered before it first tries, so that an INTERRUPT finds it at any time (once is enough).
# lock_park(): 1: waiting.woken will be called, and until then the request is not to be touched. 0: try again now.
cdef void lock_enter(lock_table_t *table, lock_wait_t *waiting, uint64_t unique) noexcept nogil
cdef void lock_leave(lock_table_t *table, lock_wait_t *waiting) noexcept nogil          # not entered: nothing
cdef uint64_t locks_generation(lock_table_t *table) noexcept nogil
cdef int lock_park(lock_table_t *table, lock_wait_t *waiting) noexcept nogil
cdef void lock_wait(lock_table_t *table, lock_wait_t *waiting) noexcept nogil           # in place, at most LOCK_RETRY
cdef bint lock_interrupt(lock_table_t *table, uint64_t unique) noexcept nogil           # False: no such request is entered
cdef void locks_cancel(lock_table_t *table) noexcept nogil                              # as an INTERRUPT of each
cdef void locks_restart(lock_table_t *table) noexcept nogil                             # all try again, with .restart set
cdef uint32_t locks_retry_leases(lock_table_t *table) noexcept nogil                    # wakes those that wait for a lease; how many
cdef uint32_t locks_retry(lock_table_t *table) noexcept nogil   # wakes those that wait for a foreign lock; how many are parked
