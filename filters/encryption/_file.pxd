# One encrypted file: its header, its map and its blocks, as plain bytes for who is above and stored bytes for who is below
# (docs/encryption-format.md, "A file"). Without the GIL, on any thread; every function takes the file's own lock: reads go on
# beside each other, changes one at a time. The lock is held across the I/O of a change, so that nobody sees half of one, but
# not across the sync of a seal. Who calls these may therefore wait for the disk.
#
# What is below is reached through file_io_t. Functions answer 0 or a number of bytes, or a negative errno: -EBADMSG what is
# stored is damaged or was changed (callers say EIO), -EOPNOTSUPP a version, suite or feature that this release does not know,
# or what file_io_t answered.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from stackfs.filters.encryption._cipher cimport file_keys_t, volume_keys_t

cdef struct encrypted_file_t

ctypedef struct file_io_t:
    void *who                            # handed to each of these, which answer 0 or a negative errno
    # bytes read: fewer only at the end of the file
    int64_t (*read)(void *who, uint64_t offset, void *data, size_t length) noexcept nogil
    int (*write)(void *who, uint64_t offset, const void *data, size_t length) noexcept nogil   # all of it, or an error
    int (*sync)(void *who) noexcept nogil            # fdatasync
    int (*resize)(void *who, uint64_t size) noexcept nogil
    int (*punch)(void *who, uint64_t offset, uint64_t length) noexcept nogil      # the file's size stays

cdef encrypted_file_t *file_new(const volume_keys_t *volume, const file_io_t *io) noexcept nogil     # NULL: no memory
cdef void file_free(encrypted_file_t *file) noexcept nogil       # wipes its keys; seals nothing

# One of these two first, once. file_create: the stored file is empty; `suite` is the volume's. file_open: `stored` is the
# stored file's size. Both know the plain size then.
cdef int file_create(encrypted_file_t *file, uint8_t suite) noexcept nogil
cdef int file_open(encrypted_file_t *file, uint64_t stored) noexcept nogil

cdef uint64_t file_size(encrypted_file_t *file) noexcept nogil
cdef uint64_t file_stored_size(encrypted_file_t *file) noexcept nogil            # what the stored file's is, or will be
cdef const uint8_t *file_id(encrypted_file_t *file) noexcept nogil               # 16 bytes
cdef bint file_unsealed(encrypted_file_t *file) noexcept nogil                   # changes are not sealed, or the seal is open
# False: recovery, or what a change that failed has left to do, comes before the next seal, with syncs of its own.
cdef bint file_settled(encrypted_file_t *file) noexcept nogil

# Bytes read: fewer only at the end of the file. An error anywhere in the range is the answer for all of it.
cdef int64_t file_read(encrypted_file_t *file, uint64_t offset, size_t length, void *data) noexcept nogil
# Bytes written: fewer than `length` if an error came after some. -EFBIG.
cdef int64_t file_write(encrypted_file_t *file, uint64_t offset, size_t length, const void *data) noexcept nogil
# At the file's end, which `offset` tells.
cdef int64_t file_append(encrypted_file_t *file, size_t length, const void *data, uint64_t *offset) noexcept nogil
cdef int file_resize(encrypted_file_t *file, uint64_t size) noexcept nogil
# Zeros from `offset` on, whole blocks as holes, not beyond the end of the file.
cdef int file_punch(encrypted_file_t *file, uint64_t offset, uint64_t length) noexcept nogil
# SEEK_DATA (`hole` False) or SEEK_HOLE from `offset`; -ENXIO
cdef int64_t file_seek(encrypted_file_t *file, uint64_t offset, bint hole) noexcept nogil

# fsync: everything written before is on the disk, and sealed. `clean`: nobody has it open for writing any more.
cdef int file_seal(encrypted_file_t *file, bint clean) noexcept nogil

# How to reach a stored file by its descriptor, which stays the caller's.
cdef void descriptor_io(int fd, file_io_t *io) noexcept nogil

cdef class EncryptedFile:
    """One file, for Python (see _file.pyi)."""
    cdef encrypted_file_t *file
    cdef object volume
    cdef object below
