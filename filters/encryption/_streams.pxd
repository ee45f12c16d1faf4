# What the filter keeps of a mounted volume and of each of its files and directories: a stream, which is a stream context.
#
# `mounted_t` lives from the instance's set-up to the end of its teardown. A stream_t belongs to its node and lives while
# somebody has a reference on it. Locks, in this order: stream_t.mutex, held across the opening and the sealing of a file but
# never across a callback's own waiting; mounted_t.mutex, a leaf, for the lists. An encrypted_file_t has locks of its own.
# Functions answer 0 or a number of bytes, or a negative errno.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_INSTANCE, REQUESTOR, node_t
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t
from stackfs.cext.ntstatus cimport NTSTATUS, errno_to_nt
from stackfs.cext.python_contexts cimport NativeContexts
from stackfs.filters.encryption._cipher cimport VolumeKeys, volume_keys_t
from stackfs.filters.encryption._file cimport encrypted_file_t

cdef enum:
    LONG_NAMES = 256

cdef struct long_name_t:                 # a stored long name, which is a hash, and what it is the hash of
    char stored[64]                      # NUL-terminated; empty: none
    char plain[256]
    uint16_t length

cdef struct mounted_t:
    const volume_keys_t *keys
    FLT_INSTANCE *instance
    uint8_t suite                        # of new files
    bint plain_names
    uint64_t foreign                     # atomic: names in listings that are none of the volume's
    uint64_t damaged                     # atomic: refused, because what is stored is damaged or was changed
    pthread_mutex_t mutex                # guards what follows
    pthread_cond_t changed
    stream_t *streams                    # those with an open file
    stream_t *first_due                  # those that wait to be sealed, the oldest first; each with a reference
    stream_t *last_due
    uint32_t due
    bint ends                            # seal_loop() is to return
    long_name_t *long_names              # [LONG_NAMES], by hash: those used last

cdef struct stream_t:
    mounted_t *mounted
    node_t *node
    pthread_mutex_t mutex                # guards what follows
    bint known_iv                        # a directory's, in iv
    uint8_t iv[16]
    encrypted_file_t *file               # NULL: not open
    FILE_OBJECT *own                     # for changes, and for everything once it is there; opened by the filter
    uint32_t users                       # who uses `file` just now
    uint32_t handles                     # open files of it above
    bint waits                           # is on the list of those to be sealed
    bint synced                          # everything of it is on the disk: nothing has changed since the sealing thread saw to it
    uint64_t changes                     # atomic: how often it was changed,
    uint64_t sealed_changes              # and how often it had been when it was last sealed
    int64_t due_at
    stream_t *next
    stream_t *previous
    stream_t *next_due

# How a file is reached in one callback: begin, use stream.file, end.
ctypedef struct use_t:
    stream_t *stream
    FILE_OBJECT *opened                  # only to read, because nobody had it open for that
    FILE_OBJECT *before                  # what this thread read by

cdef enum Purpose:
    READING
    CHANGING
    MAKING                               # it is a new file, of no bytes

# `at`: the file object, open or not, whose node it is about.
cdef int use_begin(use_t *use, mounted_t *mounted, FILE_OBJECT *at, Purpose purpose) noexcept nogil
cdef void use_end(use_t *use) noexcept nogil
# What fsync(2) asks of a file: 1, it has been done; 0: nothing of it was to be sealed, the layers below do it.
cdef int stream_flush(mounted_t *mounted, FILE_OBJECT *at, bint data_only) noexcept nogil
# A program (or a filter above) has opened a file, or closed it.
cdef int stream_opened(mounted_t *mounted, FILE_OBJECT *at) noexcept nogil
cdef void stream_closed(mounted_t *mounted, FILE_OBJECT *at) noexcept nogil
# With a reference, which FltReleaseContext() gives back; NULL: no memory, or the instance is gone.
cdef stream_t *stream_of(mounted_t *mounted, node_t *node) noexcept nogil

# A file object that stands for a node: to open it by, to ask and change its attributes.
cdef void stands_for(node_t *node, FILE_OBJECT *file) noexcept nogil
# Opens a node below. `flags` are POSIX.
cdef int open_below(mounted_t *mounted, node_t *node, uint32_t flags, FILE_OBJECT **opened) noexcept nogil
cdef int error_of(NTSTATUS status) noexcept nogil          # a negative errno, or 0
cdef NTSTATUS status_of(mounted_t *mounted, int error) noexcept nogil      # what a program is told; error: negative, or 0

cdef class Mounted:
    """A mounted volume (see _streams.pyi)."""
    cdef mounted_t mounted
    cdef readonly VolumeKeys keys
    cdef object entry
    cdef object thread
