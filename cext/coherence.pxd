# Changes of the backing directory made beside the mount: leases for data, fanotify for names and attributes (coherence.pyx).
#
# One for each volume with coherence=lease, owned by its backing_t; elsewhere backing_t.coherence is NULL and nothing of this
# is called. Without start (Coherence.start()) no lease is taken and no directory watched.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_VOLUME, node_t
from stackfs.cext.includes.pthread cimport pthread_mutex_t, pthread_t

# What has been noticed. DATA: somebody beside the mount is about to write the file, or to truncate it, and waits until every
# function below has returned, or has settled. WRITTEN: somebody has, and nobody could be asked. ATTRIBUTES: owner, mode, times,
# links, extended attributes. NAME: a name in this directory is another's now, or nobody's. ALL: anything may be so; Node is NULL.
cdef enum:
    FOREIGN_DATA = 1
    FOREIGN_WRITTEN = 2
    FOREIGN_ATTRIBUTES = 3
    FOREIGN_NAME = 4
    FOREIGN_ALL = 5

# For filters that keep something about files, such as oplocks: called by the coherence thread, which holds no lock and must
# not be kept. Node lives during the call. Of FOREIGN_DATA: False: settled; True: it will be, by coherence_settled(), within
# FOREIGN_LIMIT: until then the writer waits. Name: of FOREIGN_NAME, `Length` bytes; else NULL.
ctypedef bint (*foreign_function)(
    void *context, FLT_VOLUME *Volume, node_t *Node, int What, const char *Name, uint32_t Length) noexcept nogil

cdef enum:
    FOREIGN_FUNCTIONS = 8
    FOREIGN_LIMIT = 30                   # seconds; the kernel waits for fs.lease-break-time, 45 by default

# 0, -ENODEV: the volume has no coherence, -ENOSPC: as many as there may be. After coherence_off_change() it is not called any
# more, and is not being called.
cdef int coherence_on_change(FLT_VOLUME *volume, foreign_function function, void *context) noexcept nogil
cdef void coherence_off_change(FLT_VOLUME *volume, foreign_function function, void *context) noexcept nogil
cdef void coherence_settled(FLT_VOLUME *volume, const node_t *node) noexcept nogil

cdef struct lease_t                      # a file that is open, or was, and may be cached (coherence.pyx)
cdef struct watch_t                      # a directory that is watched

cdef struct listener_t:
    foreign_function function
    void *context

cdef struct settling_t:                  # an event that is told the kernel again
    int64_t due                          # nanoseconds
    uint64_t directory
    uint64_t child                       # 0: none known
    uint8_t length                       # of the name; 0: attributes alone
    char name[255]
    settling_t *next

cdef struct settling_queue_t:
    settling_t *first
    settling_t *last

cdef struct coherence_t:
    FLT_VOLUME *volume
    void *connection                     # connection_t*; NULL: not mounted
    pthread_mutex_t mutex                # guards what follows, with system calls on descriptors that never wait
    lease_t *newest                      # by their last open
    lease_t *oldest
    lease_t **by_fd
    int by_fd_size
    uint32_t lease_count                 # entries, each with a descriptor
    uint32_t lease_limit
    uint32_t held                        # of those, leases that we have,
    uint32_t breaking                    # and that somebody waits for us to let go of
    uint32_t epoch
    watch_t **watches                    # buckets by file handle
    uint32_t watch_mask
    uint32_t watch_count
    uint32_t watch_limit
    uint32_t unwatched                   # directories that could not be watched
    int watch_error                      # why the last of them could not
    uint64_t breaks, refused, unsupported, events, overflows, evicted
    listener_t listeners[8]
    # the thread
    pthread_mutex_t calling              # held around listeners
    pthread_t thread
    int has_thread
    int thread_id                        # atomic; 0: no leases
    int stopping                         # atomic
    int wake_event
    int signals                          # signalfd
    int notify                           # fanotify; -1: names and attributes are not watched
    int overflow_event                   # eventfd: everything has to be forgotten
    int opens_waiting                    # atomic: looks that are still to be taken for opens that wait for a lease
    int64_t next_try
    int64_t next_sweep
    settling_queue_t settling[2]         # once, and once more
    uint32_t settling_count
    double long_timeout, short_timeout   # seconds

cdef void coherence_stop(coherence_t *coherence) noexcept nogil        # its thread ends, leases go; before the volume does
cdef void coherence_free(coherence_t *coherence) noexcept nogil
# A regular file was opened, and is not bypassed. True: what the page cache has of it is right.
cdef bint coherence_opened(coherence_t *coherence, FILE_OBJECT *file) noexcept nogil
cdef void coherence_released(coherence_t *coherence, node_t *node, uint32_t flags) noexcept nogil     # its descriptor is closed
# Of a READ or WRITE that began while node.leased was `before`: what the page cache gets by it may be old soon.
cdef void coherence_passed(coherence_t *coherence, node_t *node, uint32_t before, int64_t offset, int64_t length) noexcept nogil
# We are about to open it for writing ourselves: the break that follows is nobody else's. And: it has to wait for a lease.
cdef void coherence_own_open(coherence_t *coherence, node_t *node) noexcept nogil
cdef void coherence_own_opened(coherence_t *coherence, node_t *node) noexcept nogil   # and are done with it; not: it has to wait
cdef void coherence_open_waits(coherence_t *coherence) noexcept nogil
# Before something is looked up in a directory. True: its changes will be noticed from here on.
cdef bint coherence_watch(coherence_t *coherence, node_t *directory, int fd) noexcept nogil
cdef bint coherence_covers(coherence_t *coherence, node_t *node) noexcept nogil       # the same of a node's attributes
cdef int64_t coherence_now() noexcept nogil
# Time-outs of an answer about `node` that was begun at `begun`, in seconds.
cdef double coherence_timeout(coherence_t *coherence, bint covered, int64_t begun) noexcept nogil
