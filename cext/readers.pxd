# The device's readers: threads that read /dev/fuse, serve what they can and forward the rest (readers.pyx).

from libc.stdint cimport int64_t, uint32_t, uint64_t
from stackfs.cext.anticipation cimport anticipation_t
from stackfs.cext.connection cimport connection_t
from stackfs.cext.includes.pthread cimport pthread_mutex_t, pthread_t
from stackfs.cext.irp_link cimport irp_link_t
from stackfs.cext.lock_waits cimport lock_waits_t
from stackfs.cext.requests cimport vfs_request_t
from stackfs.cext.stack cimport FLT_VOLUME
from stackfs.cext.turns cimport turns_t
from stackfs.cext.wire cimport WIRE_OPCODES, wire_limits_t, wire_settings_t

cdef enum:
    READERS = 32
    FOREIGN_THREADS = 64                 # a power of two

cdef struct reader_t:
    readers_t *readers
    char *buffer                         # the message
    char *answer
    vfs_request_t *request               # used again and again; NULL: it went to the IRP lane
    int given                            # its request may have to wait: another thread has been seen to
    uint32_t served                      # messages
    int64_t called_at                    # when its request came to a callback that may take long (monotonic ns); 0: to none
    anticipation_t anticipation
    pthread_t thread
    int ended                            # atomic

cdef struct foreign_t:                   # a thread that was seen not to be one of this process
    uint32_t tid
    int64_t until                        # CLOCK_MONOTONIC_COARSE, nanoseconds

cdef struct readers_t:
    # settings, final before the first thread starts
    connection_t *connection
    irp_link_t *link
    lock_waits_t *lock_waits
    FLT_VOLUME *volume
    int serve_all                        # lanes=auto: forward only what a filter refused as fast I/O
    int process
    int ready_event
    int deadlock_event
    uint32_t buffer_size
    uint32_t answer_size
    wire_settings_t settings             # written by the reader that handles INIT
    wire_limits_t limits
    # threads (start_lock)
    pthread_mutex_t start_lock
    reader_t threads[READERS]
    int count                            # also read atomically
    turns_t turns
    int stopping                         # atomic
    foreign_t foreign[FOREIGN_THREADS]   # atomic fields; a race costs one system call
    # counters, atomic
    uint64_t forwarded[64]
    uint64_t served[64]
    uint64_t refused[64]
    uint64_t malformed
    uint64_t deadlocks
    uint64_t last_deadlock               # opcode << 32 | thread id

cdef void readers_init(readers_t *readers, connection_t *connection, irp_link_t *link, lock_waits_t *lock_waits) noexcept nogil
cdef int readers_start(readers_t *readers) noexcept nogil                  # 0, or an errno
cdef void readers_stop(readers_t *readers) noexcept nogil                  # ends and joins them; never with the GIL
cdef void readers_free(readers_t *readers) noexcept nogil
