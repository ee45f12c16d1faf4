# distutils: libraries = crypto
"""The audit trail's writing side: ring, writer thread, keys and files (docs/audit.md is the format).

A callback reserves room in its pre-operation and fills it in its post-operation. What is reserved is credit: `used`
counts promised bytes, and a record takes its place in the ring only when it is committed, so an operation that stays
pending for an hour holds up no other one's record. The ring is full when no credit is left; then the callback waits here,
without the GIL, for the writer, which needs neither the GIL nor the drive.

The writer takes records out of the ring in batches, numbers and authenticates them, appends them to the segment and, at
least every flush_interval while there are new ones, seals: a SEAL record, the head, a new key. Errors of the log's disk
are tried again until they go away (the ring then fills, and `full` decides); only a closing trail gives up, and one
whose files were taken away, since they never come back: it refuses what it would have to record.

A commit takes no lock. It takes its place by adding to `head`, copies the record there and then, last, its length; the
writer goes no further than to a length of zero, and leaves zeros behind itself before it gives the room back. Nobody
waits for a slow committer but the records after it. That the place is free is what the reservation has paid for: a
commit's sizes never add up to more than the credit that was taken before them, and credit comes back only for bytes
that the writer has cleared (`used` and `head` order all that: every access of theirs is an atomic read and write).

Who sleeps sets its flag and then looks once more (asleep and head, waiters and used, sequentially consistent); who has
something for him changes that first and then looks at the flag. trail.mutex is for sleeping and waking only, and for
what says to stop. Keys live in one page that is locked into memory and left out of core dumps.
"""

from libc.errno cimport EINTR, EIO, ENOENT, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.signal cimport sigset_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close, fsync, ftruncate, pread, pwrite, usleep, write

import os


cdef extern from *:
    """
    #define OPENSSL_SUPPRESS_DEPRECATED     /* SHA256_CTX is deprecated, and the one state that lives where we say */
    #include <openssl/sha.h>
    #include <openssl/crypto.h>
    #include <openssl/rand.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <sys/mman.h>
    #include <fcntl.h>

    #include <sys/stat.h>

    static inline int credit_take(uint64_t *used, uint64_t amount, uint64_t limit)
    {
        uint64_t seen = __atomic_load_n(used, __ATOMIC_SEQ_CST);
        do {
            if (seen + amount > limit)
                return 0;
        } while (!__atomic_compare_exchange_n(used, &seen, seen + amount, 1, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
        return 1;
    }
    #define credit_give(used, amount)   __atomic_sub_fetch((used), (amount), __ATOMIC_SEQ_CST)
    #define counter_add(value, amount)  __atomic_add_fetch((value), (amount), __ATOMIC_SEQ_CST)
    #define counter_get(value)          __atomic_load_n((value), __ATOMIC_SEQ_CST)
    #define counter_take(value)         __atomic_exchange_n((value), 0, __ATOMIC_SEQ_CST)
    #define place_take(head, size)      __atomic_fetch_add((head), (size), __ATOMIC_SEQ_CST)
    #define length_publish(at, value)   __atomic_store_n((at), (value), __ATOMIC_RELEASE)
    #define length_see(at)              __atomic_load_n((at), __ATOMIC_ACQUIRE)
    #define flag_get(flag)              __atomic_load_n((flag), __ATOMIC_SEQ_CST)
    #define flag_set(flag, value)       __atomic_store_n((flag), (value), __ATOMIC_SEQ_CST)
    static inline void counter_first(uint64_t *value, uint64_t now)
    {
        uint64_t none = 0;
        __atomic_compare_exchange_n(value, &none, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    }
    static inline int is_unlinked(int fd)
    {
        struct stat info;
        return fstat(fd, &info) == 0 && info.st_nlink == 0;
    }
    """
    ctypedef struct SHA256_CTX:
        pass
    int SHA256_Init(SHA256_CTX *c) nogil
    int SHA256_Update(SHA256_CTX *c, const void *data, size_t length) nogil
    int SHA256_Final(unsigned char *md, SHA256_CTX *c) nogil
    void OPENSSL_cleanse(void *p, size_t n) nogil
    int CRYPTO_memcmp(const void *a, const void *b, size_t n) nogil
    int RAND_bytes(unsigned char *p, int n) nogil
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *m, void *attributes) nogil
    int pthread_mutex_destroy(pthread_mutex_t *m) nogil
    int pthread_mutex_lock(pthread_mutex_t *m) nogil
    int pthread_mutex_unlock(pthread_mutex_t *m) nogil
    int pthread_condattr_init(pthread_condattr_t *a) nogil
    int pthread_condattr_setclock(pthread_condattr_t *a, int clock) nogil
    int pthread_condattr_destroy(pthread_condattr_t *a) nogil
    int pthread_cond_init(pthread_cond_t *c, pthread_condattr_t *a) nogil
    int pthread_cond_destroy(pthread_cond_t *c) nogil
    int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m) nogil
    int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const timespec *t) nogil
    int pthread_cond_signal(pthread_cond_t *c) nogil
    int pthread_cond_broadcast(pthread_cond_t *c) nogil
    int pthread_create(pthread_t *t, void *attributes, void *(*start)(void *) noexcept nogil, void *argument) nogil
    int pthread_join(pthread_t t, void **result) nogil
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old) nogil
    int pthread_setname_np(pthread_t t, const char *name) nogil
    int sigfillset(sigset_t *set) nogil
    int SIG_SETMASK
    void *mmap(void *address, size_t length, int prot, int flags, int fd, long offset) nogil
    int munmap(void *address, size_t length) nogil
    int mlock(const void *address, size_t length) nogil
    int madvise(void *address, size_t length, int advice) nogil
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_DONTDUMP
    void *MAP_FAILED
    int openat(int directory, const char *name, int flags, ...) nogil
    int renameat(int old_directory, const char *old, int new_directory, const char *new) nogil
    int fdatasync(int fd) nogil
    int snprintf(char *buffer, size_t size, const char *format, ...) nogil
    int O_WRONLY, O_RDWR, O_RDONLY, O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_NOFOLLOW, O_CLOEXEC
    int credit_take(uint64_t *used, uint64_t amount, uint64_t limit) nogil
    uint64_t credit_give(uint64_t *used, uint64_t amount) nogil
    uint64_t counter_add(uint64_t *value, uint64_t amount) nogil
    uint64_t counter_get(uint64_t *value) nogil
    uint64_t counter_take(uint64_t *value) nogil
    void counter_first(uint64_t *value, uint64_t now) nogil
    uint64_t place_take(uint64_t *head, uint64_t size) nogil
    void length_publish(uint32_t *at, uint32_t value) nogil
    uint32_t length_see(uint32_t *at) nogil
    int flag_get(int *flag) nogil
    void flag_set(int *flag, int value) nogil
    bint is_unlinked(int fd) nogil


cdef enum:
    PAGE = 4096
    MAC_SIZE = 32
    HEAD_SIZE = 152
    SLOT_SIZE = 512
    OUT_SIZE = 512 * 1024
    GIVE_BACK = 64 * 1024                # credit is given back, and waiters woken, at least this often
    FORMAT = 1
    KIND_SEGMENT = 1
    KIND_REQUEST = 2
    KIND_SEAL = 3
    KIND_LOST = 4
    HEAD_SEALED = 0
    HEAD_CLOSED = 1
    HEAD_OPENED = 2
    FULL_WAIT = 0
    FULL_REFUSE = 1
    FULL_COUNT = 2
    TRIES_WHEN_CLOSING = 20

cdef int64_t BATCH = 10_000_000          # ns that the writer lets records gather before it takes them
cdef int64_t RETRY = 100_000_000         # ns between two tries

cdef enum step_t:                        # what the writer does on disk, each tried again until it succeeds
    STEP_WRITE
    STEP_SYNC
    STEP_HEAD
    STEP_STATE
    STEP_SEGMENT

cdef struct mac_key_t:                   # HMAC-SHA256 with the key's two blocks already hashed
    SHA256_CTX inner
    SHA256_CTX outer

cdef struct secrets_t:
    uint8_t key[32]                      # of the epoch
    mac_key_t records
    mac_key_t heads
    uint8_t slots[1024]                  # the state file, being read or written
    uint8_t block[64]
    char text[256]                       # the key file, being written

cdef struct header_t:
    uint32_t length
    uint8_t kind
    uint8_t format
    uint16_t flags
    uint64_t sequence
    uint64_t time

cdef struct trail_t:
    # What every callback reads and nobody writes but rarely
    uint8_t *ring
    uint64_t capacity                    # a power of two
    int full
    int gone                             # atomic: the trail's directory or segment was removed: refuse
    int asleep                           # atomic: the writer wants to be woken by the next commit
    int urgent                           # atomic: ... and is not to let more gather
    uint64_t waiters                     # atomic
    char _line0[64]
    uint64_t used                        # atomic: bytes promised or not yet taken out
    char _line1[64]
    uint64_t head                        # atomic: bytes whose place is taken
    char _line2[64]
    uint64_t lost, refused, since        # atomic, since the last LOST record; `since` is its first one's time
    uint64_t all_lost, all_refused       # atomic
    # Sleeping and waking
    pthread_mutex_t mutex
    pthread_cond_t data                  # the writer waits for records, or to be told something
    pthread_cond_t space                 # callbacks wait for credit, flush() for its seal
    pthread_cond_t trouble               # next_trouble() waits for `error` to change
    int stop
    int draining                         # the instance is being torn down
    int give_up                          # waiting callbacks pass: the trail closes and cannot be written
    int running
    int ended                            # the writer is done: no seal will come any more
    int told                             # the `error` that next_trouble() has told
    int error                            # atomic: errno of what cannot be written now; 0: all is well
    int64_t patience                     # ns of an error after which a full ring refuses instead of waiting
    int64_t failing_since                # while there is an error: when it came (monotonic ns)
    uint64_t flush_wanted, flush_done    # flush(): tickets
    pthread_t thread
    # the writer's
    uint64_t tail                        # bytes taken out
    int directory
    int segment
    int state
    int sync
    int insist                           # errors are tried again
    int abandoned
    uint64_t segment_number
    uint64_t segment_end
    uint64_t segment_size
    int64_t flush_interval
    int64_t sealed_at
    uint64_t sequence                    # of the last record
    uint64_t sealed                      # of the last seal
    uint64_t unsealed                    # records since
    uint64_t epoch
    uint8_t mac[32]
    uint8_t id[16]
    uint8_t *out
    uint64_t out_fill, out_done
    uint8_t head_bytes[152]
    const char *segment_text
    uint16_t segment_text_length
    secrets_t *secrets


# Time ------------------------------------------------------------------------------------------------------------------

cdef inline int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef int wait_until(trail_t *t, pthread_cond_t *condition, int64_t deadline) noexcept nogil:
    """Waits with the mutex held until signalled or `deadline` (monotonic ns); not 0 when it has passed."""
    cdef timespec limit
    limit.tv_sec = deadline // 1_000_000_000
    limit.tv_nsec = deadline % 1_000_000_000
    return pthread_cond_timedwait(condition, &t.mutex, &limit)


# Keys ------------------------------------------------------------------------------------------------------------------

cdef void mac_key_set(mac_key_t *key, const uint8_t *secret, uint8_t *block) noexcept nogil:
    cdef int i
    memset(block, 0x36, 64)
    for i in range(32):
        block[i] ^= secret[i]
    SHA256_Init(&key.inner)
    SHA256_Update(&key.inner, block, 64)
    for i in range(64):
        block[i] ^= 0x36 ^ 0x5c
    SHA256_Init(&key.outer)
    SHA256_Update(&key.outer, block, 64)
    OPENSSL_cleanse(block, 64)


cdef void mac_of(const mac_key_t *key, const void *first, size_t first_size, const void *second, size_t second_size,
                 uint8_t *result) noexcept nogil:
    cdef SHA256_CTX work = key.inner
    cdef uint8_t digest[32]
    SHA256_Update(&work, first, first_size)
    SHA256_Update(&work, second, second_size)
    SHA256_Final(digest, &work)
    work = key.outer
    SHA256_Update(&work, digest, 32)
    SHA256_Final(result, &work)
    OPENSSL_cleanse(&work, sizeof(work))


cdef void derive(secrets_t *s, const char *label, size_t size, uint8_t *result) noexcept nogil:
    """HMAC-SHA256(key of the epoch, label). `result` may be the key itself."""
    mac_key_set(&s.records, s.key, s.block)
    mac_of(&s.records, label, size, label, 0, result)


cdef void use_key(secrets_t *s) noexcept nogil:
    """The keys for records and heads, from the epoch's."""
    cdef uint8_t *derived = s.slots                  # free but while the state file is read or written
    derive(s, b"stackfs audit 1 head", 20, derived)
    derive(s, b"stackfs audit 1 record", 22, derived + 32)
    mac_key_set(&s.heads, derived, s.block)
    mac_key_set(&s.records, derived + 32, s.block)
    OPENSSL_cleanse(derived, 64)


cdef void ratchet(trail_t *t) noexcept nogil:
    derive(t.secrets, b"stackfs audit 1 next epoch", 26, t.secrets.key)
    use_key(t.secrets)
    t.epoch += 1


# Files (each step may be repeated; 0 or a negative errno) --------------------------------------------------------------

cdef int write_all(int fd, const uint8_t *data, size_t size) noexcept nogil:
    cdef ssize_t n
    cdef size_t done = 0
    while done < size:
        n = write(fd, data + done, size - done)
        if n < 0:
            if errno == EINTR:
                continue
            return -errno
        done += n
    return 0


cdef int step_write(trail_t *t) noexcept nogil:
    cdef ssize_t n
    while t.out_done < t.out_fill:
        n = write(t.segment, t.out + t.out_done, t.out_fill - t.out_done)
        if n < 0:
            if errno == EINTR:
                continue
            return -errno
        t.out_done += n
    t.segment_end += t.out_fill
    t.out_fill = 0
    t.out_done = 0
    return 0


cdef int step_sync(trail_t *t) noexcept nogil:
    if t.sync and fdatasync(t.segment) < 0:
        return -errno
    return -ENOENT if is_unlinked(t.segment) else 0


cdef int step_head(trail_t *t) noexcept nogil:
    cdef int result
    cdef int fd = openat(t.directory, b"head.new", O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0o600)
    if fd < 0:
        return -errno
    result = write_all(fd, t.head_bytes, HEAD_SIZE)
    if result == 0 and t.sync and fdatasync(fd) < 0:
        result = -errno
    close(fd)
    if result == 0 and renameat(t.directory, b"head.new", t.directory, b"head") < 0:
        result = -errno
    if result == 0 and t.sync and fsync(t.directory) < 0:
        result = -errno
    return result


cdef int step_state(trail_t *t) noexcept nogil:
    """The epoch's key into its slot; then the key before is overwritten where it lay."""
    cdef secrets_t *s = t.secrets
    cdef uint8_t *slot = s.slots
    cdef SHA256_CTX work
    cdef uint32_t version[2]
    cdef ssize_t n
    cdef int result = 0
    memset(slot, 0, SLOT_SIZE)
    version[0] = FORMAT
    version[1] = 0
    memcpy(slot, b"SFASTAT1", 8)
    memcpy(slot + 8, version, 8)
    memcpy(slot + 16, t.id, 16)
    memcpy(slot + 32, &t.epoch, 8)
    memcpy(slot + 40, s.key, 32)
    SHA256_Init(&work)
    SHA256_Update(&work, slot, 72)
    SHA256_Final(slot + 72, &work)
    OPENSSL_cleanse(&work, sizeof(work))
    n = pwrite(t.state, slot, SLOT_SIZE, <long>(t.epoch % 2) * SLOT_SIZE)
    if n != SLOT_SIZE:
        result = -errno if n < 0 else -EIO
    elif t.sync and fdatasync(t.state) < 0:
        result = -errno
    OPENSSL_cleanse(slot, SLOT_SIZE)
    if result:
        return result
    n = pwrite(t.state, slot, SLOT_SIZE, <long>((t.epoch + 1) % 2) * SLOT_SIZE)
    if n != SLOT_SIZE:
        return -errno if n < 0 else -EIO
    return 0


cdef int step_segment(trail_t *t) noexcept nogil:
    """Opens the segment after the last one, new."""
    cdef char name[32]
    snprintf(name, sizeof(name), b"%08llu.audit", <unsigned long long>(t.segment_number + 1))
    cdef int fd = openat(t.directory, name, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    if fd < 0:
        return -errno
    if t.segment >= 0:
        close(t.segment)
    t.segment = fd
    t.segment_number += 1
    t.segment_end = 0
    return 0


cdef int take_step(trail_t *t, step_t step) noexcept nogil:
    if step == STEP_WRITE:
        return step_write(t)
    if step == STEP_SYNC:
        return step_sync(t)
    if step == STEP_HEAD:
        return step_head(t)
    if step == STEP_STATE:
        return step_state(t)
    return step_segment(t)


cdef void set_error_locked(trail_t *t, int error) noexcept nogil:
    if flag_get(&t.error) != error:
        if error == 0 or flag_get(&t.error) == 0:
            t.failing_since = clock_ns(CLOCK_MONOTONIC)
        flag_set(&t.error, error)
        pthread_cond_broadcast(&t.trouble)


cdef int do_step(trail_t *t, step_t step) noexcept nogil:
    """The step, again until it succeeds; a closing trail gives up after two seconds. 0, or a negative errno."""
    cdef int result
    cdef int tries = 0
    while True:
        if t.abandoned:
            return -EIO
        result = take_step(t, step)
        if result == 0:
            if t.error:
                pthread_mutex_lock(&t.mutex)
                set_error_locked(t, 0)
                pthread_mutex_unlock(&t.mutex)
            return 0
        if not t.insist:
            return result
        if is_unlinked(t.directory) or (t.segment >= 0 and is_unlinked(t.segment)):
            flag_set(&t.gone, 1)         # they do not come back
        pthread_mutex_lock(&t.mutex)
        set_error_locked(t, -result)
        if t.stop:
            tries += 1
            t.abandoned = t.gone or tries >= TRIES_WHEN_CLOSING
        if t.draining:
            t.give_up = 1
        if t.give_up or t.gone:
            t.flush_done = t.flush_wanted
            pthread_cond_broadcast(&t.space)
        if not t.abandoned:
            wait_until(t, &t.data, clock_ns(CLOCK_MONOTONIC) + RETRY)
        pthread_mutex_unlock(&t.mutex)


# Records ---------------------------------------------------------------------------------------------------------------

cdef void put(trail_t *t, uint32_t size) noexcept nogil:
    """Numbers and authenticates the record of `size` bytes (a multiple of 8) that lies at the end of `out`."""
    cdef uint8_t *record = t.out + t.out_fill
    cdef header_t *header = <header_t *>record
    t.sequence += 1
    header.length = size + MAC_SIZE
    header.sequence = t.sequence
    mac_of(&t.secrets.records, t.mac, MAC_SIZE, record, size, record + size)
    memcpy(t.mac, record + size, MAC_SIZE)
    t.out_fill += size + MAC_SIZE
    t.unsealed += 1


cdef uint8_t *begin_record(trail_t *t, uint8_t kind, uint32_t size) noexcept nogil:
    """Room for a record of ours of `size` bytes, zeroed, its header filled in. make_room() leaves room for them."""
    cdef uint8_t *record = t.out + t.out_fill
    cdef header_t *header = <header_t *>record
    memset(record, 0, size)
    header.kind = kind
    header.format = FORMAT
    header.time = clock_ns(CLOCK_REALTIME)
    return record


cdef int make_room(trail_t *t, uint64_t size) noexcept nogil:
    """Writes `out` when `size` more bytes, and the writer's own records after them, would not fit."""
    if t.out_fill + size + 2 * PAGE > OUT_SIZE:
        return do_step(t, STEP_WRITE)
    return 0


cdef void fill_head(trail_t *t, uint32_t kind) noexcept nogil:
    cdef uint8_t *h = t.head_bytes
    cdef uint32_t words[2]
    cdef uint64_t numbers[5]
    words[0] = FORMAT
    words[1] = kind
    numbers[0] = t.epoch
    numbers[1] = t.sequence
    numbers[2] = t.segment_number
    numbers[3] = t.segment_end
    numbers[4] = clock_ns(CLOCK_REALTIME)
    memset(h, 0, HEAD_SIZE)
    memcpy(h, b"SFAHEAD1", 8)
    memcpy(h + 8, words, 8)
    memcpy(h + 16, t.id, 16)
    memcpy(h + 32, numbers, 40)
    memcpy(h + 72, t.mac, 32)
    mac_of(&t.secrets.heads, h, 120, h, 0, h + 120)


cdef int seal(trail_t *t, uint32_t kind) noexcept nogil:
    """Seals what was written: SEAL record, disk, head, next key, state. In this order; verify relies on it."""
    cdef uint8_t *record
    cdef uint64_t count = t.unsealed
    cdef uint32_t closed = kind == HEAD_CLOSED
    cdef int result
    if count == 0 and not closed:
        return 0
    record = begin_record(t, KIND_SEAL, 48)
    memcpy(record + 24, &t.epoch, 8)
    memcpy(record + 32, &count, 8)
    memcpy(record + 40, &closed, 4)
    put(t, 48)
    result = do_step(t, STEP_WRITE)
    if result == 0:
        result = do_step(t, STEP_SYNC)
    if result == 0:
        fill_head(t, kind)
        result = do_step(t, STEP_HEAD)
    if result == 0:
        ratchet(t)
        result = do_step(t, STEP_STATE)
    t.unsealed = 0
    t.sealed = t.sequence
    t.sealed_at = clock_ns(CLOCK_MONOTONIC)
    return result


cdef int new_segment(trail_t *t) noexcept nogil:
    """Begins a segment; what came before must have been sealed, so that every segment begins an epoch."""
    cdef uint8_t *record
    cdef uint32_t size = (96 + t.segment_text_length + 7) & ~7
    cdef int result = do_step(t, STEP_SEGMENT)
    if result:
        return result
    memcpy(t.out + t.out_fill, b"SFAUDIT1", 8)
    t.out_fill += 8
    record = begin_record(t, KIND_SEGMENT, size)
    memcpy(record + 24, &t.segment_number, 8)
    memcpy(record + 32, &t.epoch, 8)
    memcpy(record + 40, t.id, 16)
    memcpy(record + 56, t.mac, 32)
    memcpy(record + 88, &t.segment_text_length, 2)
    memcpy(record + 96, t.segment_text, t.segment_text_length)
    put(t, size)
    return 0


cdef int rotate_if_full(trail_t *t, uint64_t size) noexcept nogil:
    cdef int result
    if t.segment_end + t.out_fill + size <= t.segment_size or t.segment_end + t.out_fill < 2 * PAGE:
        return 0
    result = seal(t, HEAD_SEALED)
    if result == 0:
        result = new_segment(t)
    return result


# The ring --------------------------------------------------------------------------------------------------------------

cdef inline uint64_t limit_of(const trail_t *t, bint must_pass) noexcept nogil:
    """Refusing keeps an eighth back for what must not be refused."""
    return t.capacity - (t.capacity // 8 if t.full == FULL_REFUSE and not must_pass else 0)


cdef bint waits_in_vain_locked(const trail_t *t) noexcept nogil:
    return t.gone or (t.error and clock_ns(CLOCK_MONOTONIC) - t.failing_since > t.patience)


cdef int reserve_slowly(trail_t *t, uint32_t bound, bint must_pass) noexcept nogil:
    cdef int result = TRAIL_PASSED
    cdef bint refuse = t.full == FULL_REFUSE or (t.full == FULL_WAIT and flag_get(&t.gone))
    if t.full == FULL_WAIT and not refuse:
        pthread_mutex_lock(&t.mutex)
        counter_add(&t.waiters, 1)
        while not t.give_up:
            if credit_take(&t.used, bound, t.capacity):
                result = TRAIL_RESERVED
                break
            if waits_in_vain_locked(t):
                refuse = True
                break
            flag_set(&t.urgent, 1)
            pthread_cond_signal(&t.data)
            wait_until(t, &t.space, clock_ns(CLOCK_MONOTONIC) + 10 * RETRY)
        credit_give(&t.waiters, 1)
        pthread_mutex_unlock(&t.mutex)
        if result == TRAIL_RESERVED:
            return result
    counter_first(&t.since, clock_ns(CLOCK_REALTIME))
    if refuse and not must_pass:
        counter_add(&t.refused, 1)
        counter_add(&t.all_refused, 1)
        return TRAIL_REFUSED
    counter_add(&t.lost, 1)
    counter_add(&t.all_lost, 1)
    return TRAIL_PASSED


cdef int trail_reserve(trail_t *trail, uint32_t bound, bint must_pass, bint may_wait) noexcept nogil:
    if not flag_get(&trail.gone) and credit_take(&trail.used, bound, limit_of(trail, must_pass)):
        return TRAIL_RESERVED
    if not may_wait and trail.full == FULL_WAIT:
        return TRAIL_FULL
    return reserve_slowly(trail, bound, must_pass)


cdef uint64_t give_back(trail_t *t, uint64_t amount) noexcept nogil:
    """What is promised after it."""
    cdef uint64_t used = credit_give(&t.used, amount)
    if counter_get(&t.waiters):
        pthread_mutex_lock(&t.mutex)
        pthread_cond_broadcast(&t.space)
        pthread_mutex_unlock(&t.mutex)
    return used


cdef void wake_writer(trail_t *t, bint urgent) noexcept nogil:
    pthread_mutex_lock(&t.mutex)
    if urgent:
        flag_set(&t.urgent, 1)
    flag_set(&t.asleep, 0)
    pthread_cond_signal(&t.data)
    pthread_mutex_unlock(&t.mutex)


cdef void trail_cancel(trail_t *trail, uint32_t bound) noexcept nogil:
    give_back(trail, bound)


cdef void trail_commit(trail_t *trail, request_record_t *record, uint32_t bound) noexcept nogil:
    cdef uint32_t plain = REQUEST_FIXED + record.path_length + record.other_length
    cdef uint32_t size = (plain + 7) & ~7
    cdef uint64_t position, first, used
    memset(<uint8_t *>record + plain, 0, size - plain)
    record.length = 0                                # as it lies there until it is whole
    record.kind = KIND_REQUEST
    record.format = FORMAT
    position = place_take(&trail.head, size) & (trail.capacity - 1)
    first = min(<uint64_t>size, trail.capacity - position)
    memcpy(trail.ring + position + 4, <uint8_t *>record + 4, first - 4)
    if first < size:
        memcpy(trail.ring, <uint8_t *>record + first, size - first)
    length_publish(<uint32_t *>(trail.ring + position), size)      # the writer adds the MAC's
    used = give_back(trail, bound - size)
    if flag_get(&trail.asleep):
        wake_writer(trail, False)
    if used > trail.capacity // 2 and not flag_get(&trail.urgent):
        wake_writer(trail, True)


# The writer ------------------------------------------------------------------------------------------------------------

cdef inline bint idle_locked(trail_t *t) noexcept nogil:
    return counter_get(&t.head) == t.tail and not t.stop and t.flush_wanted == t.flush_done and not counter_get(&t.since)


cdef void wait_for_records(trail_t *t) noexcept nogil:
    """Until there is something to do, with the mutex held; then a little longer, so that records come in batches."""
    cdef int64_t deadline
    while idle_locked(t):
        flag_set(&t.asleep, 1)
        if not idle_locked(t):           # somebody came before he could see the flag
            break
        if t.unsealed:
            if wait_until(t, &t.data, t.sealed_at + t.flush_interval) != 0:
                break
        else:
            pthread_cond_wait(&t.data, &t.mutex)
    flag_set(&t.asleep, 0)
    deadline = clock_ns(CLOCK_MONOTONIC) + BATCH
    while counter_get(&t.head) != t.tail and not t.stop and not flag_get(&t.urgent) and t.flush_wanted == t.flush_done:
        if wait_until(t, &t.data, deadline) != 0:
            break
    flag_set(&t.urgent, 0)


cdef int take_out(trail_t *t, uint64_t target) noexcept nogil:
    """Records from tail to `target`, or to the first that is not whole yet, into `out` and to disk, giving their room back."""
    cdef uint64_t position, first
    cdef uint64_t taken = 0
    cdef uint32_t size
    cdef int result = 0
    while t.tail != target and result == 0:
        position = t.tail & (t.capacity - 1)
        size = length_see(<uint32_t *>(t.ring + position))
        if size == 0:
            break
        result = rotate_if_full(t, size + MAC_SIZE)
        if result == 0:
            result = make_room(t, size + MAC_SIZE)
        if result:
            break
        first = min(<uint64_t>size, t.capacity - position)
        memcpy(t.out + t.out_fill, t.ring + position, first)
        memset(t.ring + position, 0, first)
        if first < size:
            memcpy(t.out + t.out_fill + first, t.ring, size - first)
            memset(t.ring, 0, size - first)
        put(t, size)
        t.tail += size
        taken += size
        if taken >= GIVE_BACK:
            give_back(t, taken)
            taken = 0
    if taken:
        give_back(t, taken)
    return result


cdef int put_lost(trail_t *t) noexcept nogil:
    cdef uint64_t values[3]
    cdef uint8_t *record
    cdef int result
    if counter_get(&t.lost) == 0 and counter_get(&t.refused) == 0:
        return 0
    values[0] = counter_take(&t.lost)
    values[1] = counter_take(&t.refused)
    values[2] = counter_take(&t.since) or <uint64_t>clock_ns(CLOCK_REALTIME)
    result = make_room(t, 96)
    if result == 0:
        record = begin_record(t, KIND_LOST, 48)
        memcpy(record + 24, values, 24)
        put(t, 48)
    return result


cdef void *writer(void *argument) noexcept nogil:
    cdef trail_t *t = <trail_t *>argument
    cdef uint64_t target, ticket
    cdef bint stopping
    while True:
        pthread_mutex_lock(&t.mutex)
        wait_for_records(t)
        target = counter_get(&t.head)
        stopping = t.stop
        ticket = t.flush_wanted
        pthread_mutex_unlock(&t.mutex)
        take_out(t, target)
        put_lost(t)
        do_step(t, STEP_WRITE)
        if t.tail != target:             # somebody is in the middle of a commit
            ticket = t.flush_done
            usleep(50)
        if stopping and counter_get(&t.head) == t.tail or t.abandoned:
            break
        if ticket != t.flush_done or clock_ns(CLOCK_MONOTONIC) >= t.sealed_at + t.flush_interval:
            seal(t, HEAD_SEALED)
        if ticket != t.flush_done:
            pthread_mutex_lock(&t.mutex)
            t.flush_done = ticket
            pthread_cond_broadcast(&t.space)
            pthread_mutex_unlock(&t.mutex)
    seal(t, HEAD_CLOSED)
    pthread_mutex_lock(&t.mutex)
    t.give_up = 1
    t.ended = 1
    t.flush_done = t.flush_wanted
    pthread_cond_broadcast(&t.space)
    pthread_mutex_unlock(&t.mutex)
    return NULL


# Life ------------------------------------------------------------------------------------------------------------------

cdef trail_t *trail_new(uint64_t capacity) noexcept nogil:
    cdef pthread_condattr_t attributes
    cdef void *page
    cdef trail_t *t = <trail_t *>calloc(1, sizeof(trail_t))
    if t == NULL:
        return NULL
    t.directory = t.segment = t.state = -1
    t.capacity = capacity
    t.ring = <uint8_t *>calloc(1, capacity)
    t.out = <uint8_t *>malloc(OUT_SIZE)
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    t.secrets = NULL if page == MAP_FAILED else <secrets_t *>page
    pthread_mutex_init(&t.mutex, NULL)
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(&t.data, &attributes)
    pthread_cond_init(&t.space, &attributes)
    pthread_cond_init(&t.trouble, &attributes)
    pthread_condattr_destroy(&attributes)
    if t.ring == NULL or t.out == NULL or t.secrets == NULL:
        trail_free(t)
        return NULL
    mlock(t.secrets, PAGE)                           # where the limit allows it: swap may be encrypted, or absent
    madvise(t.secrets, PAGE, MADV_DONTDUMP)
    return t


cdef void trail_forget_keys(trail_t *t) noexcept nogil:
    OPENSSL_cleanse(t.secrets, PAGE)


cdef void trail_close_files(trail_t *t) noexcept nogil:
    if t.segment >= 0:
        close(t.segment)
        t.segment = -1
    if t.state >= 0:
        close(t.state)
        t.state = -1


cdef void trail_free(trail_t *t) noexcept nogil:
    if t.secrets != NULL:
        trail_forget_keys(t)
        munmap(t.secrets, PAGE)
    trail_close_files(t)
    pthread_mutex_destroy(&t.mutex)
    pthread_cond_destroy(&t.data)
    pthread_cond_destroy(&t.space)
    pthread_cond_destroy(&t.trouble)
    free(t.ring)
    free(t.out)
    free(t)


cdef object check(int result, str what):
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


cdef class Trail:
    """See _trail.pyi."""

    def __cinit__(self, int directory, *, uint64_t ring_size=1 << 22, str full="wait", uint64_t segment_size=64 << 20,
                  double flush_interval=1.0, bint sync=True, bytes segment_text=b"", double patience=30.0):
        cdef uint64_t capacity = 32768
        while capacity < ring_size:
            capacity *= 2
        if len(segment_text) > 2048:
            raise ValueError("segment_text is too long")
        self.trail = trail_new(capacity)
        if self.trail == NULL:
            raise MemoryError
        self.segment_text = segment_text
        self.trail.segment_text = self.segment_text
        self.trail.segment_text_length = <uint16_t>len(segment_text)
        self.trail.directory = directory
        self.trail.full = {"wait": FULL_WAIT, "refuse": FULL_REFUSE, "count": FULL_COUNT}[full]
        self.trail.segment_size = segment_size
        self.trail.flush_interval = <int64_t>(flush_interval * 1e9)
        self.trail.patience = <int64_t>(patience * 1e9)
        self.trail.sync = sync

    def __dealloc__(self):
        if self.trail != NULL:
            with nogil:
                self.stop()
                trail_free(self.trail)

    # Setting up: one thread, before start()

    def generate(self, int key_file):
        cdef trail_t *t = self.trail
        cdef secrets_t *s = t.secrets
        cdef const char *digits = b"0123456789abcdef"
        cdef int i, result
        cdef int at
        if RAND_bytes(t.id, 16) != 1 or RAND_bytes(s.key, 32) != 1:
            raise OSError(EIO, "no random numbers for the key")
        at = snprintf(s.text, sizeof(s.text), b"stackfs audit key 1\ntrail ")
        for i in range(16):
            s.text[at] = digits[t.id[i] >> 4]
            s.text[at + 1] = digits[t.id[i] & 15]
            at += 2
        at += snprintf(s.text + at, 16, b"\nkey ")
        for i in range(32):
            s.text[at] = digits[s.key[i] >> 4]
            s.text[at + 1] = digits[s.key[i] & 15]
            at += 2
        s.text[at] = c"\n"
        at += 1
        result = write_all(key_file, <const uint8_t *>s.text, at)
        if result == 0 and fsync(key_file) < 0:
            result = -errno
        OPENSSL_cleanse(s.text, sizeof(s.text))
        check(result, "key file")
        t.epoch = 0
        use_key(s)

    def load_state(self):
        cdef trail_t *t = self.trail
        cdef secrets_t *s = t.secrets
        cdef uint8_t *slot
        cdef uint8_t digest[32]
        cdef SHA256_CTX work
        cdef uint64_t epoch = 0
        cdef uint64_t best = 0
        cdef int i
        cdef int found = 0
        self.open_state(False)
        if pread(t.state, s.slots, 1024, 0) != 1024:
            OPENSSL_cleanse(s.slots, 1024)
            raise ValueError("the state file is too short")
        for i in range(2):
            slot = s.slots + i * SLOT_SIZE
            if memcmp(slot, b"SFASTAT1", 8) != 0:
                continue
            SHA256_Init(&work)
            SHA256_Update(&work, slot, 72)
            SHA256_Final(digest, &work)
            memcpy(&epoch, slot + 32, 8)
            if memcmp(digest, slot + 72, 32) != 0 or epoch % 2 != <uint64_t>i:
                continue
            if not found or epoch > best:
                best = epoch
                memcpy(s.key, slot + 40, 32)
                memcpy(t.id, slot + 16, 16)
            found += 1
        OPENSSL_cleanse(s.slots, 1024)
        OPENSSL_cleanse(&work, sizeof(work))
        if not found:
            raise ValueError("the state file holds no key")
        t.epoch = best
        use_key(s)
        return best, t.id[:16]

    cdef object open_state(self, bint create):
        cdef trail_t *t = self.trail
        cdef int flags = O_RDWR | O_NOFOLLOW | O_CLOEXEC
        if t.state >= 0:
            return
        t.state = openat(t.directory, b"state", flags | O_CREAT if create else flags, 0o600)
        if t.state < 0:
            check(-errno, "state")
        if create and ftruncate(t.state, 1024) < 0:
            check(-errno, "state")

    def advance(self):
        ratchet(self.trail)

    def place(self, uint64_t sequence, bytes digest not None, uint64_t segment, uint64_t end):
        if len(digest) != MAC_SIZE:
            raise ValueError("a digest has 32 bytes")
        self.trail.sequence = sequence
        self.trail.sealed = sequence
        self.trail.segment_number = segment
        self.trail.segment_end = end
        memcpy(self.trail.mac, <const char *>digest, MAC_SIZE)

    def accept(self, const uint8_t[::1] record, bint is_seal):
        cdef trail_t *t = self.trail
        cdef uint8_t mac[32]
        cdef size_t size
        if record.shape[0] < 24 + MAC_SIZE:
            return False
        size = record.shape[0] - MAC_SIZE
        mac_of(&t.secrets.records, t.mac, MAC_SIZE, &record[0], size, mac)
        if CRYPTO_memcmp(mac, &record[size], MAC_SIZE) != 0:
            return False
        t.sequence += 1
        memcpy(t.mac, mac, MAC_SIZE)
        if is_seal:
            ratchet(t)
        return True

    def start(self, list own_records not None):
        cdef trail_t *t = self.trail
        cdef bytes record
        cdef uint8_t *at
        cdef sigset_t everything, before
        cdef char name[32]
        cdef int result
        if t.running or t.stop:
            raise ValueError("a trail is started once")
        self.open_state(True)
        check(take_step(t, STEP_STATE), "state")
        fill_head(t, HEAD_OPENED)
        check(take_step(t, STEP_HEAD), "head")
        if t.segment_number and t.segment_end < t.segment_size:
            snprintf(name, sizeof(name), b"%08llu.audit", <unsigned long long>t.segment_number)
            t.segment = openat(t.directory, name, O_WRONLY | O_APPEND | O_NOFOLLOW | O_CLOEXEC)
            if t.segment < 0:
                check(-errno, "segment")
        else:
            check(new_segment(t), "segment")
        for kind, body in own_records:
            record = body + bytes((8 - len(body) % 8) % 8)
            if len(record) > PAGE:
                raise ValueError("a record is too long")
            check(make_room(t, 24 + len(record) + MAC_SIZE), "trail")
            at = begin_record(t, kind, 24 + <uint32_t>len(record))
            memcpy(at + 24, <const char *>record, len(record))
            put(t, 24 + <uint32_t>len(record))
        check(seal(t, HEAD_SEALED), "trail")
        t.insist = 1
        sigfillset(&everything)
        pthread_sigmask(SIG_SETMASK, &everything, &before)
        result = pthread_create(&t.thread, NULL, writer, t)
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        check(-result, "writer thread")
        t.running = 1
        pthread_setname_np(t.thread, b"audit-writer")

    # While it runs: any thread

    def append(self, uint32_t opcode, *, bytes path=b"", bytes other=b"", int32_t status=0, uint32_t error=0,
               int64_t offset=-1, uint64_t size=0, uint64_t information=0, uint32_t pid=0, uint32_t tid=0, uint32_t uid=0,
               uint32_t gid=0, bytes comm=b"", uint16_t major=0, uint64_t time=0, uint64_t duration=0, uint16_t flags=0,
               uint64_t request=0, uint32_t argument=0, bint must_pass=False):
        cdef trail_t *t = self.trail
        cdef uint32_t bound = (REQUEST_FIXED + <uint32_t>len(path) + <uint32_t>len(other) + 7) & ~7
        cdef uint8_t *memory
        cdef request_record_t *record
        cdef int result
        if len(path) > TEXT_ROOM or len(other) > TEXT_ROOM:
            raise ValueError("a path is too long")
        if not t.running:
            raise ValueError("the trail is not open")
        with nogil:
            result = trail_reserve(t, bound, must_pass, True)
        if result != TRAIL_RESERVED:
            return False
        memory = <uint8_t *>calloc(1, bound)
        if memory == NULL:
            trail_cancel(t, bound)
            raise MemoryError
        record = <request_record_t *>memory
        record.flags = flags
        record.time = time or clock_ns(CLOCK_REALTIME)
        record.duration = duration
        record.offset = offset
        record.size = size
        record.information = information
        record.request = request
        record.status = status
        record.opcode = opcode
        record.pid = pid
        record.tid = tid
        record.uid = uid
        record.gid = gid
        record.argument = argument
        record.error = error
        record.path_length = <uint16_t>len(path)
        record.other_length = <uint16_t>len(other)
        record.major = major
        memcpy(record.comm, <const char *>comm, min(len(comm), 15))
        memcpy(memory + REQUEST_FIXED, <const char *>path, len(path))
        memcpy(memory + REQUEST_FIXED + len(path), <const char *>other, len(other))
        with nogil:
            trail_commit(t, record, bound)
        free(memory)
        return True

    def flush(self):
        cdef trail_t *t = self.trail
        cdef uint64_t ticket
        if not t.running:
            return
        with nogil:
            pthread_mutex_lock(&t.mutex)
            t.flush_wanted += 1
            ticket = t.flush_wanted
            pthread_cond_signal(&t.data)
            while t.flush_done < ticket and not t.ended:
                pthread_cond_wait(&t.space, &t.mutex)
            pthread_mutex_unlock(&t.mutex)

    def drain(self):
        cdef trail_t *t = self.trail
        with nogil:
            pthread_mutex_lock(&t.mutex)
            t.draining = 1
            if flag_get(&t.error):
                t.give_up = 1
                pthread_cond_broadcast(&t.space)
            pthread_mutex_unlock(&t.mutex)

    def next_trouble(self):
        cdef trail_t *t = self.trail
        cdef int error
        cdef bint ended
        with nogil:
            pthread_mutex_lock(&t.mutex)
            while t.told == flag_get(&t.error) and not t.stop:
                pthread_cond_wait(&t.trouble, &t.mutex)
            error = flag_get(&t.error)
            ended = t.told == error
            t.told = error
            pthread_mutex_unlock(&t.mutex)
        return None if ended else error

    cdef void stop(self) noexcept nogil:
        cdef trail_t *t = self.trail
        if not t.running:
            return
        pthread_mutex_lock(&t.mutex)
        t.stop = 1
        pthread_cond_broadcast(&t.data)
        pthread_cond_broadcast(&t.trouble)
        pthread_mutex_unlock(&t.mutex)
        pthread_join(t.thread, NULL)
        t.running = 0

    def close(self):
        cdef trail_t *t = self.trail
        with nogil:
            self.stop()
            trail_forget_keys(t)
            trail_close_files(t)
        return not t.abandoned and not t.error

    @property
    def id(self):
        return self.trail.id[:16]

    @property
    def sequence(self):
        return self.trail.sequence

    @property
    def sealed(self):
        return self.trail.sealed

    @property
    def epoch(self):
        return self.trail.epoch

    @property
    def lost(self):
        return counter_get(&self.trail.all_lost)

    @property
    def refused(self):
        return counter_get(&self.trail.all_refused)

    @property
    def waiting(self):
        return counter_get(&self.trail.waiters)

    @property
    def error(self):
        return flag_get(&self.trail.error)

    @property
    def gone(self):
        return flag_get(&self.trail.gone) != 0
