"""Ciphers, keys and names over OpenSSL's EVP (docs/encryption-format.md). No primitive is written here.

A file's keys carry a pool of EVP contexts that already have them, so that a block costs no key schedule: a thread takes
one out, and puts it back. They are freed, and so wiped by OpenSSL, with the keys. Nonces come from the random generator
in batches, a batch a thread; a child process begins a new one, so no nonce is used on both sides of a fork.

Large transfers are cut into chunks that the caller and up to three worker threads take in turn. The workers start with
the first such transfer, have no signals, need no GIL and touch nothing but the chunk; the caller waits for them.
"""

from libc.errno cimport EBADMSG, EINVAL, EIO, ENAMETOOLONG, ENOMEM, EOPNOTSUPP
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset
from posix.signal cimport sigset_t

from stackfs.cext.includes.pthread cimport (
    SIG_SETMASK, pthread_cond_broadcast, pthread_cond_t, pthread_cond_wait, pthread_create, pthread_detach,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, pthread_setname_np, pthread_sigmask, pthread_t, sigfillset)
from stackfs.filters.encryption._layout cimport BLOCK, BLOCK_HEAD, FIXED, OVERHEAD, SLOT, TAG, blocks_of
from stackfs.filters.encryption._openssl cimport (
    CRYPTO_memcmp, ERR_clear_error, EVP_CIPHER, EVP_CIPHER_CTX,
    EVP_CIPHER_CTX_copy, EVP_CIPHER_CTX_ctrl, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new,
    EVP_CIPHER_fetch, EVP_CTRL_AEAD_GET_TAG, EVP_CTRL_AEAD_SET_TAG, EVP_CipherFinal_ex, EVP_CipherInit_ex2, EVP_CipherUpdate,
    EVP_Digest, EVP_KDF, EVP_KDF_CTX, EVP_KDF_CTX_free, EVP_KDF_CTX_new, EVP_KDF_derive, EVP_KDF_fetch, EVP_MAC, EVP_MAC_CTX,
    EVP_MAC_CTX_dup, EVP_MAC_CTX_free, EVP_MAC_CTX_new, EVP_MAC_CTX_set_params, EVP_MAC_fetch, EVP_MAC_final, EVP_MAC_init,
    EVP_MAC_update, EVP_sha256, OPENSSL_cleanse, OSSL_PARAM, OSSL_PARAM_construct_end, OSSL_PARAM_construct_octet_string,
    OSSL_PARAM_construct_utf8_string, RAND_bytes)
from stackfs.filters.encryption._secrets cimport Secret, secret_free, secret_new

import os

cdef extern from *:
    """
    #include <pthread.h>
    #include <sched.h>
    #include <stdint.h>
    #include <string.h>
    #include <openssl/rand.h>

    /* A thread's nonces. The child of a fork has the parent's batch, and must not use it. */
    static unsigned nonce_epoch = 1;
    static __thread struct { unsigned epoch; unsigned used; uint8_t bytes[12 * 256]; } nonces;

    static pthread_mutex_t work_mutex = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t work_there = PTHREAD_COND_INITIALIZER;
    static pthread_cond_t work_done = PTHREAD_COND_INITIALIZER;
    static int workers_running, workers_waiting;
    static void *job_queue;                 /* of job_t, under work_mutex */

    static void after_fork(void)
    {
        nonce_epoch++;
        workers_running = workers_waiting = 0;
        job_queue = NULL;
        pthread_mutex_init(&work_mutex, NULL);
        pthread_cond_init(&work_there, NULL);
        pthread_cond_init(&work_done, NULL);
    }
    static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

    static int next_nonce(uint8_t *nonce)
    {
        if (nonces.epoch != nonce_epoch || nonces.used == sizeof(nonces.bytes)) {
            if (RAND_bytes(nonces.bytes, sizeof(nonces.bytes)) != 1)
                return 0;
            nonces.epoch = nonce_epoch;
            nonces.used = 0;
        }
        memcpy(nonce, nonces.bytes + nonces.used, 12);
        nonces.used += 12;
        return 1;
    }

    #define spin_lock(word)     while (__atomic_exchange_n((word), 1, __ATOMIC_ACQUIRE)) sched_yield()
    #define spin_unlock(word)   __atomic_store_n((word), 0, __ATOMIC_RELEASE)
    #define take_one(counter)   __atomic_fetch_add((counter), 1, __ATOMIC_ACQ_REL)
    #define seen(counter)       __atomic_load_n((counter), __ATOMIC_ACQUIRE)
    """
    pthread_mutex_t work_mutex
    pthread_cond_t work_there, work_done
    int workers_running, workers_waiting
    void *job_queue
    void watch_forks()
    bint next_nonce(uint8_t *nonce) nogil
    void spin_lock(int *word) nogil
    void spin_unlock(int *word) nogil
    int take_one(int *counter) nogil
    int seen(int *counter) nogil

cdef enum:
    POOL = 4
    SIV_KEY = 64
    CHUNK = 32                           # blocks that a processor takes at a time
    WORTH_SHARING = 96                   # blocks from which on waking another processor pays

cdef EVP_CIPHER *aes_gcm = NULL
cdef EVP_CIPHER *chacha = NULL
cdef EVP_CIPHER *aes_siv = NULL
cdef EVP_MAC_CTX *hmac_template = NULL
cdef EVP_KDF *hkdf = NULL
cdef int workers_wanted = 0


cdef int prepare() except -1:
    """Once, when the module is imported."""
    global aes_gcm, chacha, aes_siv, hmac_template, hkdf, workers_wanted
    cdef EVP_MAC *mac = EVP_MAC_fetch(NULL, b"HMAC", NULL)
    cdef OSSL_PARAM[2] parameters
    aes_gcm = EVP_CIPHER_fetch(NULL, b"AES-256-GCM", NULL)
    chacha = EVP_CIPHER_fetch(NULL, b"ChaCha20-Poly1305", NULL)
    aes_siv = EVP_CIPHER_fetch(NULL, b"AES-256-SIV", NULL)
    hkdf = EVP_KDF_fetch(NULL, b"HKDF", NULL)
    if mac != NULL:
        hmac_template = EVP_MAC_CTX_new(mac)
    if aes_gcm == NULL or chacha == NULL or aes_siv == NULL or hkdf == NULL or hmac_template == NULL:
        raise ImportError("OpenSSL's libcrypto lacks AES-256-GCM, ChaCha20-Poly1305, AES-256-SIV, HMAC or HKDF")
    parameters[0] = OSSL_PARAM_construct_utf8_string(b"digest", <char *>b"SHA256", 0)
    parameters[1] = OSSL_PARAM_construct_end()
    if EVP_MAC_CTX_set_params(hmac_template, parameters) != 1:
        raise ImportError("OpenSSL's libcrypto has no HMAC-SHA256")
    workers_wanted = min(len(os.sched_getaffinity(0)) - 1, 3)
    watch_forks()
    return 0


# Small things ----------------------------------------------------------------------------------------------------------

cdef int random_bytes(void *where, size_t length) noexcept nogil:
    return 0 if RAND_bytes(<unsigned char *>where, <int>length) == 1 else -EIO


cdef bint same(const void *a, const void *b, size_t length) noexcept nogil:
    return CRYPTO_memcmp(a, b, length) == 0


cdef bint all_zero(const void *data, size_t length) noexcept nogil:
    cdef const uint8_t *bytes = <const uint8_t *>data
    return length == 0 or (bytes[0] == 0 and memcmp(bytes, bytes + 1, length - 1) == 0)


cdef int failed() noexcept nogil:
    ERR_clear_error()
    return -EIO


cdef int hmac_of(const uint8_t *key, size_t key_length, const bytes_t *parts, int count, uint8_t *mac) noexcept nogil:
    cdef EVP_MAC_CTX *ctx = EVP_MAC_CTX_dup(hmac_template)
    cdef size_t length = 0
    cdef int i
    cdef bint good
    if ctx == NULL:
        return -ENOMEM
    good = EVP_MAC_init(ctx, key, key_length, NULL) == 1
    for i in range(count):
        good = good and EVP_MAC_update(ctx, <const unsigned char *>parts[i].data, parts[i].length) == 1
    good = good and EVP_MAC_final(ctx, mac, &length, MAC) == 1
    EVP_MAC_CTX_free(ctx)
    return 0 if good else failed()


cdef int hkdf_of(const uint8_t *key, size_t key_length, const void *salt, size_t salt_length, const void *info, size_t info_length,
                 uint8_t *out, size_t length) noexcept nogil:
    cdef EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(hkdf)
    cdef OSSL_PARAM[5] parameters
    cdef bint good
    if ctx == NULL:
        return -ENOMEM
    parameters[0] = OSSL_PARAM_construct_utf8_string(b"digest", <char *>b"SHA256", 0)
    parameters[1] = OSSL_PARAM_construct_octet_string(b"key", <void *>key, key_length)
    parameters[2] = OSSL_PARAM_construct_octet_string(b"salt", <void *>salt, salt_length)
    parameters[3] = OSSL_PARAM_construct_octet_string(b"info", <void *>info, info_length)
    parameters[4] = OSSL_PARAM_construct_end()
    good = EVP_KDF_derive(ctx, out, length, parameters) == 1
    EVP_KDF_CTX_free(ctx)
    return 0 if good else failed()


cdef int siv(const uint8_t *key, const bytes_t *associated, int count, const uint8_t *data, size_t length, uint8_t *tag, uint8_t *out,
             bint encrypt) noexcept nogil:
    """AES-256-SIV with the synthetic IV in `tag`; -EBADMSG: not authentic."""
    cdef EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new()
    cdef int answer
    if ctx == NULL:
        return -ENOMEM
    answer = siv_in(ctx, key, associated, count, data, length, tag, out, encrypt)
    EVP_CIPHER_CTX_free(ctx)
    return answer


cdef int siv_keyed(const EVP_CIPHER_CTX *keyed, const bytes_t *associated, int count, const uint8_t *data, size_t length,
                   uint8_t *tag, uint8_t *out, bint encrypt) noexcept nogil:
    """The same with a copy of a context that has the key, which costs less than the key does."""
    cdef EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new()
    cdef int answer
    if ctx == NULL:
        return -ENOMEM
    answer = siv_in(ctx, NULL, associated, count, data, length, tag, out, encrypt) if EVP_CIPHER_CTX_copy(ctx, keyed) == 1 else failed()
    EVP_CIPHER_CTX_free(ctx)
    return answer


cdef int siv_in(EVP_CIPHER_CTX *ctx, const uint8_t *key, const bytes_t *associated, int count, const uint8_t *data, size_t length,
                uint8_t *tag, uint8_t *out, bint encrypt) noexcept nogil:
    """... in a new context, which has the key already if `key` is NULL."""
    cdef int i, made
    cdef bint good = key == NULL or EVP_CipherInit_ex2(ctx, aes_siv, key, NULL, encrypt, NULL) == 1
    if not encrypt:
        good = good and EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG, tag) == 1
    for i in range(count):
        good = good and EVP_CipherUpdate(ctx, NULL, &made, <const unsigned char *>associated[i].data, <int>associated[i].length) == 1
    if not good:
        return failed()
    if EVP_CipherUpdate(ctx, out, &made, data, <int>length) != 1 or EVP_CipherFinal_ex(ctx, out, &made) != 1:
        ERR_clear_error()
        if not encrypt:
            OPENSSL_cleanse(out, length)
        return -EIO if encrypt else -EBADMSG
    if encrypt and EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, tag) != 1:
        return failed()
    return 0


cdef int siv_encrypt(const uint8_t *key, const bytes_t *associated, int count, const uint8_t *plain, size_t length,
                     uint8_t *sealed) noexcept nogil:
    return siv(key, associated, count, plain, length, sealed, sealed + TAG, True)


cdef int siv_decrypt(const uint8_t *key, const bytes_t *associated, int count, const uint8_t *sealed, size_t length,
                     uint8_t *plain) noexcept nogil:
    if length <= TAG:
        return -EBADMSG
    return siv(key, associated, count, sealed + TAG, length - TAG, <uint8_t *>sealed, plain, False)


# Keys ------------------------------------------------------------------------------------------------------------------

cdef EVP_CIPHER_CTX *keyed_context(const EVP_CIPHER *cipher, const uint8_t *key, bint encrypt) noexcept nogil:
    """A new one; NULL: no memory."""
    cdef EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new()
    if ctx != NULL and EVP_CipherInit_ex2(ctx, cipher, key, NULL, encrypt, NULL) != 1:
        EVP_CIPHER_CTX_free(ctx)
        ERR_clear_error()
        return NULL
    return ctx


cdef int derive_volume_keys(volume_keys_t *keys) noexcept nogil:
    cdef int error = hkdf_of(keys.master, 32, keys.id, IV, b"stackfs encryption 1 volume", 27, keys.volume, 32)
    cdef int encrypt
    error = error or hkdf_of(keys.master, 32, keys.id, IV, b"stackfs encryption 1 names", 26, keys.names, 64)
    error = error or hkdf_of(keys.master, 32, keys.id, IV, b"stackfs encryption 1 values", 27, keys.values, 64)
    for encrypt in range(2):
        if error == 0:
            keys.names_keyed[encrypt] = keyed_context(aes_siv, keys.names, encrypt)
            error = 0 if keys.names_keyed[encrypt] != NULL else -ENOMEM
    return error or hkdf_of(keys.master, 32, keys.id, IV, b"stackfs encryption 1 directories", 32, keys.directories, 32)


cdef int derive_file_keys(const volume_keys_t *volume, const uint8_t *fixed, file_keys_t *keys) noexcept nogil:
    cdef uint8_t info[25 + 32]
    cdef uint8_t *derived = <uint8_t *>secret_new()
    cdef int error
    if derived == NULL:
        return -ENOMEM
    memset(keys, 0, sizeof(file_keys_t))
    keys.suite = fixed[9]
    if not SUITE_AES_GCM <= keys.suite <= SUITE_AES_SIV:
        secret_free(derived)
        return -EOPNOTSUPP
    memcpy(info, b"stackfs encryption 1 file", 25)
    memcpy(info + 25, fixed, 32)
    error = hkdf_of(volume.master, 32, fixed + 32, 32, info, sizeof(info), derived, 96)
    memcpy(keys.block, derived, 64)
    memcpy(keys.map, derived + 64, 32)
    secret_free(derived)
    return error


cdef void forget_file_keys(file_keys_t *keys) noexcept nogil:
    cdef int which, i
    for which in range(2):
        for i in range(keys.idle[which]):
            EVP_CIPHER_CTX_free(<EVP_CIPHER_CTX *>keys.pools[which][i])
    OPENSSL_cleanse(keys, sizeof(file_keys_t))


cdef EVP_CIPHER_CTX *context_take(const file_keys_t *const_keys, bint encrypt) noexcept nogil:
    """A context that has the file's key, from the pool or a new one; NULL: no memory."""
    cdef file_keys_t *keys = <file_keys_t *>const_keys
    cdef EVP_CIPHER_CTX *ctx = NULL
    cdef EVP_CIPHER *cipher = aes_gcm if keys.suite == SUITE_AES_GCM else chacha if keys.suite == SUITE_CHACHA20_POLY1305 else aes_siv
    spin_lock(&keys.busy)
    if keys.idle[encrypt]:
        keys.idle[encrypt] -= 1
        ctx = <EVP_CIPHER_CTX *>keys.pools[encrypt][keys.idle[encrypt]]
    spin_unlock(&keys.busy)
    return ctx if ctx != NULL else keyed_context(cipher, keys.block, encrypt)


cdef void context_give(const file_keys_t *const_keys, bint encrypt, EVP_CIPHER_CTX *ctx) noexcept nogil:
    cdef file_keys_t *keys = <file_keys_t *>const_keys
    spin_lock(&keys.busy)
    if keys.idle[encrypt] < POOL:
        keys.pools[encrypt][keys.idle[encrypt]] = ctx
        keys.idle[encrypt] += 1
        ctx = NULL
    spin_unlock(&keys.busy)
    if ctx != NULL:
        EVP_CIPHER_CTX_free(ctx)


# Blocks ----------------------------------------------------------------------------------------------------------------

cdef inline void put(uint8_t *at, uint64_t value, int bytes) noexcept nogil:
    cdef int i
    for i in range(bytes):
        at[i] = value >> 8 * i & 0xFF


cdef inline uint64_t get(const uint8_t *at, int bytes) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(bytes):
        value |= <uint64_t>at[i] << 8 * i
    return value


cdef int encrypt_one(EVP_CIPHER_CTX *ctx, const file_keys_t *keys, uint64_t block, uint64_t generation, const uint8_t *plain,
                     int length, uint8_t *slot) noexcept nogil:
    cdef uint8_t bound[16]
    cdef bytes_t[2] associated
    cdef uint8_t *tag = slot + BLOCK_HEAD + length
    cdef int made
    put(bound, block, 8)
    put(bound + 8, generation, 6)
    put(bound + 14, length, 2)
    memcpy(slot, bound + 8, 8)
    if not next_nonce(slot + 8):
        return failed()
    if keys.suite == SUITE_AES_SIV:
        associated[0].data, associated[0].length = bound, 16
        associated[1].data, associated[1].length = slot + 8, 12
        return siv_keyed(ctx, associated, 2, plain, length, tag, slot + BLOCK_HEAD, True)
    if EVP_CipherInit_ex2(ctx, NULL, NULL, slot + 8, -1, NULL) != 1 or EVP_CipherUpdate(ctx, NULL, &made, bound, 16) != 1 or \
            EVP_CipherUpdate(ctx, slot + BLOCK_HEAD, &made, plain, length) != 1 or \
            EVP_CipherFinal_ex(ctx, slot + BLOCK_HEAD + length, &made) != 1 or \
            EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, tag) != 1:
        return failed()
    return 0


cdef int decrypt_one(EVP_CIPHER_CTX *ctx, const file_keys_t *keys, uint64_t block, const uint8_t *slot, int length,
                     uint8_t *plain) noexcept nogil:
    cdef uint8_t bound[16]
    cdef bytes_t[2] associated
    cdef uint8_t *tag = <uint8_t *>slot + BLOCK_HEAD + length
    cdef int made
    put(bound, block, 8)
    memcpy(bound + 8, slot, 8)
    if keys.suite == SUITE_AES_SIV:
        associated[0].data, associated[0].length = bound, 16
        associated[1].data, associated[1].length = slot + 8, 12
        return siv_keyed(ctx, associated, 2, slot + BLOCK_HEAD, length, tag, plain, False)
    if EVP_CipherInit_ex2(ctx, NULL, NULL, slot + 8, -1, NULL) != 1 or \
            EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG, tag) != 1 or EVP_CipherUpdate(ctx, NULL, &made, bound, 16) != 1 or \
            EVP_CipherUpdate(ctx, plain, &made, slot + BLOCK_HEAD, length) != 1:
        return failed()
    if EVP_CipherFinal_ex(ctx, plain + length, &made) != 1:
        ERR_clear_error()
        return -EBADMSG
    return 0


cdef int open_one(EVP_CIPHER_CTX *ctx, const file_keys_t *keys, uint64_t block, bint last, const uint8_t *slot, size_t stored,
                  uint8_t *plain, block_t *found) noexcept nogil:
    """One slot, of which `stored` bytes are there."""
    cdef int length, error
    memset(found, 0, sizeof(block_t))
    if all_zero(slot, stored):
        memset(plain, 0, BLOCK)
        return 0
    found.state = BLOCK_DAMAGED
    if stored > OVERHEAD:
        found.generation = get(slot, 6)
        length = <int>get(slot + 6, 2)
        if 1 <= length <= BLOCK and <size_t>length + OVERHEAD <= stored and \
                (last or all_zero(slot + OVERHEAD + length, stored - OVERHEAD - length)):
            error = decrypt_one(ctx, keys, block, slot, length, plain)
            if error == 0:
                found.state = BLOCK_AUTHENTIC
                found.length = length
                memcpy(found.tag, slot + BLOCK_HEAD + length, TAG)
                memset(plain + length, 0, BLOCK - length)
                return 0
            if error != -EBADMSG:
                OPENSSL_cleanse(plain, BLOCK)
                return error
    OPENSSL_cleanse(plain, BLOCK)
    return 0


cdef struct job_t:
    bint encrypt
    const file_keys_t *keys
    uint64_t first
    size_t count
    uint64_t generation                  # encrypting
    const uint8_t *plain_in
    size_t length
    uint8_t *slots_out
    uint8_t *tags
    uint64_t last                        # decrypting
    const uint8_t *slots_in
    size_t stored
    uint8_t *plain_out
    block_t *found
    # shared by who works on it
    int next_chunk                       # atomic
    int chunks
    int error
    int helpers                          # workers that are on it; under work_mutex
    job_t *queued                        # the next in the queue; under work_mutex


cdef int work_range(job_t *job, EVP_CIPHER_CTX *ctx, size_t begin, size_t end) noexcept nogil:
    cdef size_t i, size, at
    cdef int error
    for i in range(begin, end):
        if job.encrypt:
            size = min(<size_t>BLOCK, job.length - i * BLOCK)
            error = encrypt_one(ctx, job.keys, job.first + i, job.generation, job.plain_in + i * BLOCK, <int>size,
                                job.slots_out + i * SLOT)
            while error == 0 and all_zero(job.slots_out + i * SLOT + BLOCK_HEAD + size, TAG):
                error = encrypt_one(ctx, job.keys, job.first + i, job.generation, job.plain_in + i * BLOCK, <int>size,
                                    job.slots_out + i * SLOT)
            if error == 0:
                memcpy(job.tags + i * TAG, job.slots_out + i * SLOT + BLOCK_HEAD + size, TAG)
        else:
            at = i * SLOT
            size = 0 if at >= job.stored else min(<size_t>SLOT, job.stored - at)
            error = open_one(ctx, job.keys, job.first + i, job.first + i == job.last, job.slots_in + at, size,
                             job.plain_out + i * BLOCK, &job.found[i])
        if error:
            return error
    return 0


cdef void work_on(job_t *job) noexcept nogil:
    """Takes chunks until none is left."""
    cdef EVP_CIPHER_CTX *ctx = context_take(job.keys, job.encrypt)
    cdef int chunk, error = 0
    while True:
        chunk = take_one(&job.next_chunk)
        if chunk >= job.chunks:
            break
        error = -ENOMEM if ctx == NULL else work_range(job, ctx, <size_t>chunk * CHUNK, min(job.count, <size_t>(chunk + 1) * CHUNK))
        if error:
            job.error = error
    if ctx != NULL:
        context_give(job.keys, job.encrypt, ctx)


cdef void *worker(void *nothing) noexcept nogil:
    global job_queue, workers_waiting
    cdef job_t *job
    pthread_mutex_lock(&work_mutex)
    while True:
        while job_queue == NULL:
            workers_waiting += 1
            pthread_cond_wait(&work_there, &work_mutex)
            workers_waiting -= 1
        job = <job_t *>job_queue
        if seen(&job.next_chunk) >= job.chunks:             # nothing is left to take; its caller waits for who works on it
            job_queue = job.queued
            continue
        job.helpers += 1
        pthread_mutex_unlock(&work_mutex)
        work_on(job)
        pthread_mutex_lock(&work_mutex)
        job.helpers -= 1
        if job.helpers == 0:
            pthread_cond_broadcast(&work_done)
    return NULL


cdef void start_workers() noexcept nogil:
    """Under work_mutex."""
    global workers_running
    cdef pthread_t thread
    cdef sigset_t all_signals, before
    sigfillset(&all_signals)
    while workers_running < workers_wanted:
        pthread_sigmask(SIG_SETMASK, &all_signals, &before)
        if pthread_create(&thread, NULL, worker, NULL) == 0:
            pthread_setname_np(thread, b"encryption")
            pthread_detach(thread)
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        workers_running += 1                         # one that does not start is not asked for again


cdef int run(job_t *job) noexcept nogil:
    global job_queue
    cdef job_t *before
    cdef bint shared = job.count >= WORTH_SHARING and workers_wanted > 0
    job.chunks = <int>((job.count + CHUNK - 1) // CHUNK)
    if shared:
        pthread_mutex_lock(&work_mutex)
        if workers_running < workers_wanted:
            start_workers()
        job.queued = <job_t *>job_queue
        job_queue = job
        if workers_waiting:
            pthread_cond_broadcast(&work_there)
        pthread_mutex_unlock(&work_mutex)
    work_on(job)
    if shared:
        pthread_mutex_lock(&work_mutex)
        before = <job_t *>job_queue
        if before == job:
            job_queue = job.queued
        else:
            while before != NULL and before.queued != job:
                before = before.queued
            if before != NULL:
                before.queued = job.queued
        while job.helpers:
            pthread_cond_wait(&work_done, &work_mutex)
        pthread_mutex_unlock(&work_mutex)
    return job.error


cdef int blocks_encrypt(const file_keys_t *keys, uint64_t first, uint64_t generation, const uint8_t *plain, size_t length,
                        uint8_t *slots, uint8_t *tags) noexcept nogil:
    cdef job_t job
    memset(&job, 0, sizeof(job_t))
    job.encrypt = True
    job.keys, job.first, job.generation, job.plain_in, job.length = keys, first, generation, plain, length
    job.slots_out, job.tags, job.count = slots, tags, blocks_of(length)
    return run(&job)


cdef int blocks_decrypt(const file_keys_t *keys, uint64_t first, size_t count, uint64_t last, const uint8_t *slots, size_t stored,
                        uint8_t *plain, block_t *found) noexcept nogil:
    cdef job_t job
    memset(&job, 0, sizeof(job_t))
    job.keys, job.first, job.count, job.last, job.slots_in, job.stored = keys, first, count, last, slots, stored
    job.plain_out, job.found = plain, found
    return run(&job)


# Base64 ----------------------------------------------------------------------------------------------------------------

cdef const char *ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
cdef signed char[256] DIGITS


cdef size_t base64_length(size_t length) noexcept nogil:
    return (length * 4 + 2) // 3


cdef size_t base64_encode(const uint8_t *data, size_t length, char *text) noexcept nogil:
    """Writes base64_length(length) characters and a zero byte."""
    cdef size_t i, out = 0
    cdef unsigned int held = 0, bits = 0
    for i in range(length):
        held = (held << 8 | data[i]) & 0xFFFF
        bits += 8
        while bits >= 6:
            bits -= 6
            text[out] = ALPHABET[held >> bits & 63]
            out += 1
    if bits:
        text[out] = ALPHABET[held << (6 - bits) & 63]
        out += 1
    text[out] = 0
    return out


cdef int base64_decode(const char *text, size_t length, uint8_t *data) noexcept nogil:
    """Writes length * 3 // 4 bytes; -EBADMSG: not the one way in which these bytes are written."""
    cdef size_t i, out = 0
    cdef unsigned int held = 0, bits = 0
    cdef int digit
    for i in range(length):
        digit = DIGITS[<uint8_t>text[i]]
        if digit < 0:
            return -EBADMSG
        held = (held << 6 | <unsigned int>digit) & 0xFFFF
        bits += 6
        if bits >= 8:
            bits -= 8
            data[out] = held >> bits & 0xFF
            out += 1
    return -EBADMSG if bits == 6 or held & ((1 << bits) - 1) else <int>out


# Names -----------------------------------------------------------------------------------------------------------------

cdef const char *LONG = b".stackfs-long-"

cdef enum:
    LONG_PREFIX = 14
    LONG_LENGTH = 14 + 32                # with the Base64 of 24 bytes
    LONG_HASHED = 24
    NAME_LONGEST = 255
    SHORT_LONGEST = 160


cdef bint is_name(const char *name, size_t length) noexcept nogil:
    if length == 0 or length > NAME_LONGEST or memchr(name, c'/', length) != NULL or memchr(name, 0, length) != NULL:
        return False
    return not (name[0] == c'.' and (length == 1 or (length == 2 and name[1] == c'.')))


cdef int name_cipher(const volume_keys_t *keys, const uint8_t *iv, const char *name, size_t length, uint8_t *text) noexcept nogil:
    """The ciphertext of a name; its length."""
    cdef uint8_t padded[256]
    cdef size_t size = (length + 15) // 16 * 16
    cdef bytes_t associated
    cdef int error
    memset(padded, 0, sizeof(padded))
    memcpy(padded, name, length)
    associated.data, associated.length = iv, IV
    error = siv_keyed(<EVP_CIPHER_CTX *>keys.names_keyed[True], &associated, 1, padded, size, text, text + TAG, True)
    return error or <int>(size + TAG)


cdef int long_name_of(const uint8_t *text, size_t length, char *stored) noexcept nogil:
    cdef uint8_t hashed[4 + 272]
    cdef uint8_t digest[32]
    memcpy(hashed, b"long", 4)
    memcpy(hashed + 4, text, length)
    if EVP_Digest(hashed, 4 + length, digest, NULL, EVP_sha256(), NULL) != 1:
        return failed()
    memcpy(stored, LONG, LONG_PREFIX)
    return <int>(LONG_PREFIX + base64_encode(digest, LONG_HASHED, stored + LONG_PREFIX))


cdef int name_encrypt(const volume_keys_t *keys, const uint8_t *iv, const char *name, size_t length, char *stored, uint8_t *text,
                      size_t *text_length) noexcept nogil:
    cdef int size
    text_length[0] = 0
    if not is_name(name, length):
        return -EINVAL
    size = name_cipher(keys, iv, name, length, text)
    if size < 0:
        return size
    if length <= SHORT_LONGEST:
        return <int>base64_encode(text, size, stored)
    text_length[0] = size
    return long_name_of(text, size, stored)


cdef int name_decipher(const volume_keys_t *keys, const uint8_t *iv, const uint8_t *text, size_t length, bint is_long,
                       char *name) noexcept nogil:
    """The name, filled with zeros to its 256 bytes; its length. -EBADMSG."""
    cdef bytes_t associated
    cdef size_t size, padded = length - TAG
    cdef int error
    if length < 2 * TAG or length > LONG_NAME or length % 16:
        return -EBADMSG
    associated.data, associated.length = iv, IV
    memset(name, 0, NAME_ROOM)
    error = siv_keyed(<EVP_CIPHER_CTX *>keys.names_keyed[False], &associated, 1, text + TAG, length - TAG, <uint8_t *>text,
                      <uint8_t *>name, False)
    if error:
        return error
    size = padded
    while size and name[size - 1] == 0:
        size -= 1
    if not is_name(name, size) or (size + 15) // 16 * 16 != padded or (size > SHORT_LONGEST) != is_long:
        memset(name, 0, NAME_ROOM)
        return -EBADMSG
    return <int>size


cdef int name_decrypt(const volume_keys_t *keys, const uint8_t *iv, const char *stored, size_t length, char *name) noexcept nogil:
    cdef uint8_t text[192]
    cdef int size
    if length > NAME_LONGEST:
        return -EBADMSG
    size = base64_decode(stored, length, text)
    return size if size < 0 else name_decipher(keys, iv, text, size, False, name)


cdef bint name_is_long(const char *stored, size_t length) noexcept nogil:
    return length == LONG_LENGTH and memcmp(stored, LONG, LONG_PREFIX) == 0


cdef int name_decrypt_long(const volume_keys_t *keys, const uint8_t *iv, const char *stored, size_t length, const uint8_t *text,
                           size_t text_length, char *name) noexcept nogil:
    cdef char wanted[64]
    if not name_is_long(stored, length) or text_length > LONG_NAME or long_name_of(text, text_length, wanted) != LONG_LENGTH or \
            memcmp(wanted, stored, LONG_LENGTH) != 0:
        return -EBADMSG
    return name_decipher(keys, iv, text, text_length, True, name)


# Directory files -------------------------------------------------------------------------------------------------------

cdef int place_mac(const volume_keys_t *keys, const uint8_t *file, const place_t *place, uint8_t *mac) noexcept nogil:
    cdef bytes_t[3] parts
    parts[0].data, parts[0].length = file, 32
    parts[1].data, parts[1].length = place.parent, IV
    parts[2].data, parts[2].length = place.stored, place.length
    return hmac_of(keys.directories, 32, parts, 3, mac)


cdef int directory_build(const volume_keys_t *keys, const uint8_t *iv, const place_t *first, const place_t *second,
                         uint8_t *file) noexcept nogil:
    cdef int error
    memset(file, 0, DIRECTORY_FILE)
    memcpy(file, b"SFENCRD1\x01", 9)
    memcpy(file + 16, iv, IV)
    error = place_mac(keys, file, first, file + 32)
    if error == 0 and second != NULL:
        error = place_mac(keys, file, second, file + 64)
    return error


cdef int directory_check(const volume_keys_t *keys, const uint8_t *file, size_t length, const place_t *place, uint8_t *iv) noexcept nogil:
    cdef uint8_t mac[MAC]
    cdef int error
    if length != DIRECTORY_FILE or memcmp(file, b"SFENCRD1", 8) != 0:
        return -EBADMSG
    error = place_mac(keys, file, place, mac)
    if error:
        return error
    if not (same(mac, file + 32, MAC) or same(mac, file + 64, MAC)):
        return -EBADMSG
    if file[8] != 1 or not all_zero(file + 9, 7):    # authentic: from a later release
        return -EOPNOTSUPP
    memcpy(iv, file + 16, IV)
    return 0


# Targets and values ----------------------------------------------------------------------------------------------------

cdef int target_encrypt(const volume_keys_t *keys, const char *target, size_t length, char *stored) noexcept nogil:
    cdef uint8_t data[IV + 16 + 3039]
    cdef bytes_t[2] associated
    cdef int error
    if length == 0 or length > TARGET_LONGEST:
        return -ENAMETOOLONG if length else -EINVAL
    error = random_bytes(data, IV)
    associated[0].data, associated[0].length = b"link", 4
    associated[1].data, associated[1].length = data, IV
    error = error or siv_encrypt(keys.values, associated, 2, <const uint8_t *>target, length, data + IV)
    return error or <int>base64_encode(data, IV + TAG + length, stored)


cdef int target_decrypt(const volume_keys_t *keys, const char *stored, size_t length, char *target) noexcept nogil:
    cdef uint8_t data[3072]
    cdef bytes_t[2] associated
    cdef int size, error
    if length >= TARGET_ROOM:
        return -EBADMSG
    size = base64_decode(stored, length, data)
    if size <= IV + TAG or size > IV + TAG + TARGET_LONGEST:
        return -EBADMSG
    associated[0].data, associated[0].length = b"link", 4
    associated[1].data, associated[1].length = data, IV
    error = siv_decrypt(keys.values, associated, 2, data + IV, size - IV, <uint8_t *>target)
    if error:
        return error
    size -= IV + TAG
    target[size] = 0
    return -EBADMSG if memchr(target, 0, size) != NULL else size


cdef void value_bound(bytes_t *associated, const uint8_t *owner, const char *name, size_t name_length, const uint8_t *nonce) noexcept nogil:
    associated[0].data, associated[0].length = b"attribute", 9
    associated[1].data, associated[1].length = name, name_length
    associated[2].data, associated[2].length = owner, IV
    associated[3].data, associated[3].length = nonce, IV


cdef int value_encrypt(const volume_keys_t *keys, const uint8_t *owner, const char *name, size_t name_length, const uint8_t *value,
                       size_t length, uint8_t *stored) noexcept nogil:
    cdef bytes_t[4] associated
    cdef uint8_t *at = stored + IV + TAG
    cdef int error = random_bytes(stored, IV)
    if error:
        return error
    value_bound(associated, owner, name, name_length, stored)
    at[0] = 1                                        # so that there is something to encrypt
    memcpy(at + 1, value, length)
    return siv(keys.values, associated, 4, at, length + 1, stored + IV, at, True)


cdef int value_decrypt(const volume_keys_t *keys, const uint8_t *owner, const char *name, size_t name_length, const uint8_t *stored,
                       size_t length, uint8_t *value) noexcept nogil:
    cdef bytes_t[4] associated
    cdef uint8_t *plain
    cdef int error
    if length < VALUE_OVERHEAD:
        return -EBADMSG
    plain = <uint8_t *>malloc(length)
    if plain == NULL:
        return -ENOMEM
    value_bound(associated, owner, name, name_length, stored)
    error = siv(keys.values, associated, 4, stored + IV + TAG, length - IV - TAG, <uint8_t *>stored + IV, plain, False)
    if error == 0 and plain[0] != 1:
        error = -EBADMSG
    if error == 0:
        memcpy(value, plain + 1, length - VALUE_OVERHEAD)
    OPENSSL_cleanse(plain, length)
    free(plain)
    return error


# Python ----------------------------------------------------------------------------------------------------------------

cdef int raised(int error) except -1:
    """OSError for a negative errno."""
    if error < 0:
        raise OSError(-error, os.strerror(-error))
    return error


cdef class VolumeKeys:
    def __cinit__(self, Secret master, const uint8_t[::1] volume_id):
        if master.length != 32 or len(volume_id) != IV:
            raise ValueError("a master key has 32 bytes, and a volume's id 16")
        self.keys = <volume_keys_t *>secret_new()
        if self.keys == NULL:
            raise MemoryError
        memcpy(self.keys.master, master.data, 32)
        memcpy(self.keys.id, &volume_id[0], IV)
        raised(derive_volume_keys(self.keys))

    def __dealloc__(self):
        cdef int encrypt
        if self.keys != NULL:
            for encrypt in range(2):
                EVP_CIPHER_CTX_free(<EVP_CIPHER_CTX *>self.keys.names_keyed[encrypt])
        secret_free(self.keys)

    @property
    def id(self):
        return (<char *>self.keys.id)[:IV]

    def authenticate(self, const uint8_t[::1] data):
        cdef uint8_t mac[MAC]
        cdef bytes_t part
        part.data, part.length = &data[0], len(data)
        raised(hmac_of(self.keys.volume, 32, &part, 1, mac))
        return (<char *>mac)[:MAC]

    def encrypt_name(self, const uint8_t[::1] iv, bytes name):
        cdef char[256] stored
        cdef uint8_t[272] text
        cdef size_t text_length
        cdef int length = raised(name_encrypt(self.keys, iv_of(iv), name, len(name), stored, text, &text_length))
        return stored[:length], (<char *>text)[:text_length]

    def decrypt_name(self, const uint8_t[::1] iv, bytes stored, bytes text=b""):
        cdef char[256] name
        cdef int length
        if name_is_long(stored, len(stored)):
            length = name_decrypt_long(self.keys, iv_of(iv), stored, len(stored), text, len(text), name)
        else:
            length = name_decrypt(self.keys, iv_of(iv), stored, len(stored), name)
        raised(length)
        return name[:length]

    def build_directory(self, const uint8_t[::1] iv, tuple first, tuple second=None):
        cdef uint8_t[96] file
        cdef place_t one, other
        place_of(first, &one)
        if second is not None:
            place_of(second, &other)
        raised(directory_build(self.keys, iv_of(iv), &one, NULL if second is None else &other, file))
        return (<char *>file)[:DIRECTORY_FILE]

    def check_directory(self, bytes file, tuple place):
        cdef uint8_t[16] iv
        cdef place_t one
        place_of(place, &one)
        raised(directory_check(self.keys, <const uint8_t *><const char *>file, len(file), &one, iv))
        return (<char *>iv)[:IV]

    def encrypt_target(self, bytes target):
        cdef char[4096] stored
        cdef int length = raised(target_encrypt(self.keys, target, len(target), stored))
        return stored[:length]

    def decrypt_target(self, bytes stored):
        cdef char[4096] target
        cdef int length = raised(target_decrypt(self.keys, stored, len(stored), target))
        return target[:length]

    def encrypt_value(self, const uint8_t[::1] owner, bytes name, bytes value):
        stored = bytearray(len(value) + VALUE_OVERHEAD)
        raised(value_encrypt(self.keys, iv_of(owner), name, len(name), <const uint8_t *><const char *>value, len(value),
                             <uint8_t *><char *>stored))
        return bytes(stored)

    def decrypt_value(self, const uint8_t[::1] owner, bytes name, bytes stored):
        value = bytearray(max(len(stored) - VALUE_OVERHEAD, 0))
        raised(value_decrypt(self.keys, iv_of(owner), name, len(name), <const uint8_t *><const char *>stored, len(stored),
                             <uint8_t *><char *>value))
        return bytes(value)


cdef const uint8_t *iv_of(const uint8_t[::1] iv) except NULL:
    if len(iv) != IV:
        raise ValueError("an IV or id has 16 bytes")
    return &iv[0]


cdef int place_of(tuple given, place_t *place) except -1:
    """From (parent's IV, stored name), which the caller keeps."""
    parent, stored = given
    if len(parent) != IV:
        raise ValueError("an IV or id has 16 bytes")
    place.parent = <const uint8_t *><const char *>parent
    place.stored = stored
    place.length = len(stored)
    return 0


def wrap(Secret key, associated, Secret secret):
    sealed = bytearray(secret.length + TAG)
    with_key(key, associated, secret.data, secret.length, <uint8_t *><char *>sealed, True)
    return bytes(sealed)


def unwrap(Secret key, associated, bytes sealed):
    if len(sealed) <= TAG:
        raise OSError(EBADMSG, os.strerror(EBADMSG))
    cdef Secret secret = Secret(len(sealed) - TAG)
    with_key(key, associated, <const uint8_t *><const char *>sealed, len(sealed), secret.data, False)
    return secret


cdef int with_key(Secret key, list associated, const uint8_t *data, size_t length, uint8_t *out, bint encrypt) except -1:
    cdef bytes_t[4] parts
    cdef int i
    if key.length != SIV_KEY or not 1 <= len(associated) <= 4 or not all(associated):
        raise ValueError("a wrapping key has 64 bytes, and one to four associated data that are not empty")
    for i, part in enumerate(associated):
        parts[i].data = <const char *>(<bytes>part)
        parts[i].length = len(part)
    return raised((siv_encrypt if encrypt else siv_decrypt)(key.data, parts, len(associated), data, length, out))


def hkdf_sha256(key, bytes salt, bytes info, Py_ssize_t length):
    cdef Secret derived = Secret(length)
    cdef const uint8_t[::1] view = key
    raised(hkdf_of(&view[0], len(view), <const char *>salt, len(salt), <const char *>info, len(info), derived.data, length))
    return derived


cdef class Blocks:
    def __cinit__(self, VolumeKeys volume, const uint8_t[::1] fixed):
        self.keys = <file_keys_t *>secret_new()
        if self.keys == NULL:
            raise MemoryError
        if len(fixed) != FIXED:
            raise ValueError("the fixed part of a header has 64 bytes")
        raised(derive_file_keys(volume.keys, &fixed[0], self.keys))

    def __dealloc__(self):
        if self.keys != NULL:
            forget_file_keys(self.keys)
            secret_free(self.keys)

    def encrypt(self, uint64_t first, uint64_t generation, const uint8_t[::1] plain, uint8_t[::1] slots):
        cdef size_t length = len(plain)
        cdef uint64_t count = blocks_of(length)
        if count == 0 or <size_t>len(slots) < length + count * OVERHEAD:
            raise ValueError("there is nothing to encrypt, or no room for it")
        tags = bytearray(count * TAG)
        cdef uint8_t[::1] room = tags
        cdef int error
        with nogil:
            error = blocks_encrypt(self.keys, first, generation, &plain[0], length, &slots[0], &room[0])
        raised(error)
        return bytes(tags)

    def decrypt(self, uint64_t first, uint64_t last, const uint8_t[::1] slots, uint8_t[::1] plain):
        cdef size_t count = len(plain) // BLOCK
        cdef int error
        if count == 0 or len(plain) % BLOCK or len(slots) == 0:
            raise ValueError("plain text is decrypted in whole blocks")
        cdef block_t *found = <block_t *>malloc(count * sizeof(block_t))
        if found == NULL:
            raise MemoryError
        try:
            with nogil:
                error = blocks_decrypt(self.keys, first, count, last, &slots[0], len(slots), &plain[0], found)
            raised(error)
            return [(found[i].state, found[i].generation, found[i].length, (<char *>found[i].tag)[:TAG]) for i in range(count)]
        finally:
            free(found)

    def repeat(self, bint encrypts, uint8_t[::1] plain, uint8_t[::1] slots, long calls):
        cdef size_t length = len(plain)
        cdef size_t count = length // BLOCK
        cdef int error = 0
        if count == 0 or length % BLOCK or <size_t>len(slots) < count * SLOT:
            raise ValueError("whole blocks, and slots for all of them")
        cdef uint8_t *tags = <uint8_t *>malloc(count * TAG)
        cdef block_t *found = <block_t *>malloc(count * sizeof(block_t))
        with nogil:
            for _ in range(calls if tags != NULL and found != NULL else 0):
                if encrypts:
                    error = blocks_encrypt(self.keys, 0, 1, &plain[0], length, &slots[0], tags)
                else:
                    error = blocks_decrypt(self.keys, 0, count, count, &slots[0], count * SLOT, &plain[0], found)
                if error:
                    break
        if tags == NULL or found == NULL:
            error = -ENOMEM
        free(tags)
        free(found)
        raised(error)


memset(DIGITS, -1, sizeof(DIGITS))
for _number in range(64):
    DIGITS[<uint8_t>ALPHABET[_number]] = _number
prepare()
