# Ciphers, keys and names of the encrypted volume (docs/encryption-format.md), over OpenSSL's EVP. Everything here runs
# without the GIL on any thread; nothing waits, and nothing touches a file. Functions answer 0 or a negative errno:
# -EBADMSG what was read is not authentic, -ENOMEM, -EIO OpenSSL failed.

from libc.stdint cimport uint8_t, uint16_t, uint64_t

cdef enum:
    SUITE_AES_GCM = 1
    SUITE_CHACHA20_POLY1305 = 2
    SUITE_AES_SIV = 3

cdef enum:
    MAC = 32
    IV = 16                              # of a directory; ids of files and of the volume are as long
    DIRECTORY_FILE = 96
    NAME_ROOM = 256                      # a name or stored name, with a zero byte behind it
    LONG_NAME = 272                      # the most that a .name file has
    TARGET_LONGEST = 3039                # plain target of a symbolic link
    TARGET_ROOM = 4096
    VALUE_OVERHEAD = 33                  # what a stored attribute value is longer

# In secret memory (_secrets.pxd)
ctypedef struct volume_keys_t:
    uint8_t master[32]
    uint8_t volume[32]
    uint8_t directories[32]
    uint8_t names[64]
    uint8_t values[64]
    uint8_t id[16]                       # the volume's
    void *names_keyed[2]                 # contexts that have the names' key, to be copied: for decrypting, for encrypting

ctypedef struct file_keys_t:
    uint8_t block[64]
    uint8_t map[32]
    uint8_t suite
    int busy                             # atomic: a spin lock over the two pools
    int idle[2]                          # how many contexts each pool has
    void *pools[2][4]                    # for decrypting, for encrypting: OpenSSL's contexts, already keyed

ctypedef struct bytes_t:
    const void *data
    size_t length

ctypedef struct block_t:                 # what became of a block that was to be decrypted
    uint64_t generation
    uint16_t length                      # plain bytes that its slot has; the rest of the 4,096 is zeros
    uint8_t state                        # BLOCK_*
    uint8_t tag[16]

cdef enum:
    BLOCK_ABSENT = 0                     # its slot is all zeros, or not there
    BLOCK_AUTHENTIC = 1
    BLOCK_DAMAGED = 2

cdef int random_bytes(void *where, size_t length) noexcept nogil
cdef int derive_volume_keys(volume_keys_t *keys) noexcept nogil              # from .master and .id
# `fixed`: the 64 bytes of a header before its seals; -EOPNOTSUPP: a suite that is none
cdef int derive_file_keys(const volume_keys_t *volume, const uint8_t *fixed, file_keys_t *keys) noexcept nogil
cdef void forget_file_keys(file_keys_t *keys) noexcept nogil     # frees and wipes; nobody may be using them

cdef int hmac_of(const uint8_t *key, size_t key_length, const bytes_t *parts, int count, uint8_t *mac) noexcept nogil
cdef int siv_encrypt(const uint8_t *key, const bytes_t *associated, int count,
                     const uint8_t *plain, size_t length, uint8_t *sealed) noexcept nogil          # sealed: length + 16
cdef int siv_decrypt(const uint8_t *key, const bytes_t *associated, int count,
                     const uint8_t *sealed, size_t length, uint8_t *plain) noexcept nogil          # plain: length - 16
cdef bint same(const void *a, const void *b, size_t length) noexcept nogil  # in constant time
cdef bint all_zero(const void *data, size_t length) noexcept nogil

# `length` plain bytes from the start of block `first` into slots that lie side by side; a last block may be short. `tags`
# gets 16 bytes a block. Many blocks are done on several processors. Uses no more of `slots` than stored bytes.
cdef int blocks_encrypt(const file_keys_t *keys, uint64_t first, uint64_t generation, const uint8_t *plain, size_t length,
                        uint8_t *slots, uint8_t *tags) noexcept nogil
# `count` blocks out of `stored` bytes of slots that lie side by side; the last slot may be cut off, or missing. `plain` gets
# 4,096 bytes a block, zeros for what is not authentic, and `found` a block_t a block. Answers 0, whatever the blocks are.
# `last`: the number of the file's last block, behind whose text nothing is looked at; other slots must be zero there.
cdef int blocks_decrypt(const file_keys_t *keys, uint64_t first, size_t count, uint64_t last, const uint8_t *slots, size_t stored,
                        uint8_t *plain, block_t *found) noexcept nogil

# Names. `iv` is the directory's. `stored` and `name` have NAME_ROOM bytes and get a zero byte at their end; the answer is
# their length, or -EINVAL (no name: empty, too long, a slash, "." ...), -EBADMSG (not a name of this directory).
# A long name's ciphertext goes into `text` (LONG_NAME bytes), its length into text_length; 0: the name is not long.
cdef int name_encrypt(const volume_keys_t *keys, const uint8_t *iv, const char *name, size_t length, char *stored,
                      uint8_t *text, size_t *text_length) noexcept nogil
cdef int name_decrypt(const volume_keys_t *keys, const uint8_t *iv, const char *stored, size_t length, char *name) noexcept nogil
cdef bint name_is_long(const char *stored, size_t length) noexcept nogil    # the name itself, not its .name file
cdef int name_decrypt_long(const volume_keys_t *keys, const uint8_t *iv, const char *stored, size_t length,
                           const uint8_t *text, size_t text_length, char *name) noexcept nogil

# Directory files. A place is the parent's IV and the stored name; the root's are the volume's id and an empty name.
# `second` NULL: one place.
ctypedef struct place_t:
    const uint8_t *parent
    const char *stored
    size_t length

cdef int directory_build(const volume_keys_t *keys, const uint8_t *iv, const place_t *first, const place_t *second,
                         uint8_t *file) noexcept nogil
cdef int directory_check(const volume_keys_t *keys, const uint8_t *file, size_t length, const place_t *place, uint8_t *iv) noexcept nogil

# Targets and values. target_encrypt: -ENAMETOOLONG; both answer the length, and put a zero byte behind it (TARGET_ROOM).
cdef int target_encrypt(const volume_keys_t *keys, const char *target, size_t length, char *stored) noexcept nogil
cdef int target_decrypt(const volume_keys_t *keys, const char *stored, size_t length, char *target) noexcept nogil
# `owner`: the file's id or the directory's IV. Lengths: stored = plain + VALUE_OVERHEAD.
cdef int value_encrypt(const volume_keys_t *keys, const uint8_t *owner, const char *name, size_t name_length,
                       const uint8_t *value, size_t length, uint8_t *stored) noexcept nogil
cdef int value_decrypt(const volume_keys_t *keys, const uint8_t *owner, const char *name, size_t name_length,
                       const uint8_t *stored, size_t length, uint8_t *value) noexcept nogil

cdef class VolumeKeys:
    """The keys of an unlocked volume (see _cipher.pyi)."""
    cdef volume_keys_t *keys

cdef class Blocks:
    """The blocks of one file (see _cipher.pyi)."""
    cdef file_keys_t *keys
