"""Changes of the backing directory made beside the mount, by whatever program, are noticed (-o coherence=lease).

    data      A file that is open on the mount, or was, has a read lease (fcntl(2), F_SETLEASE) through a descriptor of its
              own. Whoever is about to open it for writing, or to truncate it, makes the kernel signal us, and waits; we have
              the kernel forget the file's pages, and only then let go of the lease. Without a lease, while anybody has the
              file open for writing or where none can be had, nothing the page cache gets stays in it: a READ or WRITE is
              followed by a notice that drops its pages (coherence_passed), and attributes are believed for no time at all.
    names     A directory in which something was looked up is watched (fanotify(7), by file handle), and with it the names in
              it and the attributes of what they lead to. That is told us afterwards. What this process does itself is not
              told the kernel, which has asked for it.

A notice and an answer that was begun before the change may cross. For pages and attributes the kernel sorts that out
(pages under way are locked, attributes have a version); for names, and for inodes that the kernel does not know yet, it
does not: an answer that took longer than SETTLE gets no long time-out, and each event is told again after AGAIN and LATER.

One thread takes signals, events and time. Leases send their signal to that thread alone (F_OWNER_TID), which takes it by
signalfd(2); every thread of the core blocks all signals, so nobody else ever sees one. SIGIO instead of it means that the
kernel had no room for more: then each lease is asked for.

Concurrency: `mutex` guards leases, watches and counters. System calls that cannot wait (fcntl(2), close(2) of a lease's
descriptor) are made under it, so that a signal always finds its lease; the inode table's mutex and the volume's are taken
under it, never the other way round. node_t.leased is read without it: it changes before the notice that its change calls
for is queued. Listeners are called under `calling` alone.
"""

cimport cython
from libc.errno cimport EACCES, EAGAIN, EMFILE, ENODEV, ENOSPC, EPERM, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close, getpid, read

from cpython.object cimport PyObject

from stackfs.cext.backing cimport backing_t
from stackfs.cext.callback_data cimport FILE_OBJECT, FO_COHERENT, statx_t
from stackfs.cext.connection cimport connection_t
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.inode_table cimport (
    descriptors_shed, inode_table_t, make_id, name_holder, node_close, node_get, node_hold, node_id, node_lookups, node_open,
    node_pin, node_put, node_stray, node_t, node_watched)
from stackfs.cext.locks cimport locks_retry_leases
from stackfs.cext.notices cimport volume_forget_data, volume_forget_name
from stackfs.cext.notifiers cimport notices_queued, notices_settled
from stackfs.cext.pending cimport holds_t
from stackfs.cext.python_requests cimport Volume
from stackfs.cext.stack cimport FLT_VOLUME
from stackfs.cext.threads cimport *

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <poll.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/fanotify.h>
    #include <sys/signalfd.h>
    #include <sys/stat.h>
    #include <sys/sysmacros.h>
    #include <sys/syscall.h>
    #include <sys/vfs.h>
    #include <unistd.h>

    #define LEASE_SIGNAL (SIGRTMIN + 7)
    #ifndef FAN_REPORT_DIR_FID
    #define FAN_REPORT_DIR_FID 0x400
    #define FAN_REPORT_NAME 0x800
    #endif
    #ifndef FAN_UNLIMITED_QUEUE
    #define FAN_UNLIMITED_QUEUE 0x10
    #define FAN_UNLIMITED_MARKS 0x20
    #endif
    #define NAMED_DIRECTORY 2            /* FAN_EVENT_INFO_TYPE_DFID_NAME: <linux/fanotify.h> of older systems lacks it */
    #define HANDLE_IS_FID 0x200          /* AT_HANDLE_FID, Linux 6.5: also where it could not be opened by the handle */
    #define WATCHED_EVENTS (FAN_ATTRIB | FAN_MODIFY | FAN_CLOSE_WRITE | FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO \\
                            | FAN_ONDIR | FAN_EVENT_ON_CHILD)
    #define NAME_EVENTS (FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO)

    /* What the lease is on; its signal goes to that thread. An errno. */
    static inline int stackfs_lease(int fd, int thread)
    {
        struct f_owner_ex owner = {F_OWNER_TID, thread};
        if (fcntl(fd, F_SETSIG, LEASE_SIGNAL) != 0 || fcntl(fd, F_SETOWN_EX, &owner) != 0) return errno;
        return fcntl(fd, F_SETLEASE, F_RDLCK) == 0 ? 0 : errno;
    }
    static inline void stackfs_unlease(int fd) { (void)fcntl(fd, F_SETLEASE, F_UNLCK); }
    static inline int stackfs_lease_breaks(int fd) { return fcntl(fd, F_GETLEASE) != F_RDLCK; }

    static inline int stackfs_lease_signals(void)
    {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, LEASE_SIGNAL);
        sigaddset(&set, SIGIO);
        return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    }
    /* The descriptor whose lease breaks; -1: none any more; -2: all of them are to be asked. */
    static inline int stackfs_next_break(int signals)
    {
        struct signalfd_siginfo info;
        if (read(signals, &info, sizeof(info)) != sizeof(info)) return -1;
        return info.ssi_signo == (unsigned)LEASE_SIGNAL ? info.ssi_fd : -2;
    }
    static inline int stackfs_notify_new(void)
    {
        unsigned flags = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DIR_FID | FAN_REPORT_NAME;
        int fd = fanotify_init(flags | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS, O_RDONLY | O_CLOEXEC);
        return fd >= 0 ? fd : fanotify_init(flags, O_RDONLY | O_CLOEXEC);
    }
    static inline int stackfs_mark(int notify, int directory, int add)
    {
        return fanotify_mark(notify, (add ? FAN_MARK_ADD : FAN_MARK_REMOVE) | FAN_MARK_ONLYDIR, WATCHED_EVENTS, directory, ".");
    }
    /* Others change these filesystems from elsewhere, and no event tells of it. */
    static inline int stackfs_is_remote(const struct statfs *about)
    {
        switch ((unsigned)about->f_type) {
        case 0x6969u: case 0xFF534D42u: case 0xFE534D42u: case 0x517Bu: case 0x65735546u: case 0x01021997u: case 0x00C36400u:
        case 0x5346414Fu: case 0x73757245u: case 0x6B414653u: case 0x0BD00BD0u: case 0x01161970u: case 0x7461636Fu:
            return 1;
        }
        return 0;
    }
    struct watch_key { fsid_t fsid; int type; unsigned length; unsigned char bytes[128]; };
    /* An errno; `remote` is one that has no number. */
    static inline int stackfs_watch_key(int directory, struct watch_key *key)
    {
        struct { struct file_handle head; unsigned char room[128]; } handle;
        struct statfs about;
        int mount;
        memset(key, 0, sizeof(*key));
        if (fstatfs(directory, &about) != 0) return errno;
        if (stackfs_is_remote(&about)) return EREMOTE;
        handle.head.handle_bytes = sizeof(handle.room);
        if (name_to_handle_at(directory, "", &handle.head, &mount, AT_EMPTY_PATH | HANDLE_IS_FID) != 0) {
            handle.head.handle_bytes = sizeof(handle.room);
            if (errno != EINVAL || name_to_handle_at(directory, "", &handle.head, &mount, AT_EMPTY_PATH) != 0) return errno;
        }
        key->fsid = about.f_fsid;
        key->type = handle.head.handle_type;
        key->length = handle.head.handle_bytes;
        memcpy(key->bytes, handle.head.f_handle, key->length);
        return 0;
    }
    static inline unsigned stackfs_hash_key(const struct watch_key *key)
    {
        unsigned hash = 2166136261u;
        const unsigned char *at = (const unsigned char *)key;
        size_t i, length = offsetof(struct watch_key, bytes) + key->length;
        for (i = 0; i < length; i++) hash = (hash ^ at[i]) * 16777619u;
        return hash ^ hash >> 15;
    }
    typedef struct {
        unsigned long long mask;
        int pid, overflow;
        struct watch_key key;
        const char *name;
        size_t name_length;
    } noticed_t;
    /* The event at `at`, of `left` bytes; what it takes of them, 0: no more. */
    static inline size_t stackfs_event(const char *at, size_t left, noticed_t *noticed)
    {
        const struct fanotify_event_metadata *event = (const struct fanotify_event_metadata *)at;
        size_t offset;
        memset(noticed, 0, sizeof(*noticed));
        if (left < FAN_EVENT_METADATA_LEN || event->event_len < FAN_EVENT_METADATA_LEN || event->event_len > left) return 0;
        noticed->mask = event->mask;
        noticed->pid = event->pid;
        noticed->overflow = (event->mask & FAN_Q_OVERFLOW) != 0;
        for (offset = event->metadata_len; offset + 4 <= event->event_len;) {
            const unsigned char *info = (const unsigned char *)at + offset;
            unsigned short length;
            unsigned bytes;
            memcpy(&length, info + 2, 2);
            if (length < 4 || offset + length > event->event_len) break;
            if (info[0] == NAMED_DIRECTORY && length >= 20) {
                memcpy(&noticed->key.fsid, info + 4, 8);
                memcpy(&bytes, info + 12, 4);
                memcpy(&noticed->key.type, info + 16, 4);
                if (bytes <= 128 && 20 + bytes < length) {
                    noticed->key.length = bytes;
                    memcpy(noticed->key.bytes, info + 20, bytes);
                    noticed->name = (const char *)info + 20 + bytes;
                    noticed->name_length = strnlen(noticed->name, length - 20 - bytes);
                }
            }
            offset += length;
        }
        return event->event_len;
    }
    static inline unsigned stackfs_key_length(const struct watch_key *key) { return offsetof(struct watch_key, bytes) + key->length; }
    """
    int EREMOTE
    ctypedef struct watch_key_t "struct watch_key":
        unsigned length
    ctypedef struct noticed_t:
        uint64_t mask
        int pid, overflow
        watch_key_t key
        const char *name
        size_t name_length
    ctypedef struct pollfd_t "struct pollfd":
        int fd
        short events, revents
    int stackfs_lease(int fd, int thread) nogil
    void stackfs_unlease(int fd) nogil
    int stackfs_lease_breaks(int fd) nogil
    int stackfs_lease_signals() nogil
    int stackfs_next_break(int signals) nogil
    int stackfs_notify_new() nogil
    int stackfs_mark(int notify, int directory, int add) nogil
    int stackfs_watch_key(int directory, watch_key_t *key) nogil
    unsigned stackfs_hash_key(const watch_key_t *key) nogil
    unsigned stackfs_key_length(const watch_key_t *key) nogil
    size_t stackfs_event(const char *at, size_t left, noticed_t *noticed) nogil
    uint64_t NAME_EVENTS, FAN_MOVED_FROM, FAN_MOVED_TO, FAN_DELETE, FAN_MODIFY, FAN_CLOSE_WRITE, FAN_ATTRIB
    short POLLIN
    int poll(pollfd_t *fds, unsigned long count, int timeout) nogil
    int open(const char *path, int flags) nogil
    int O_RDONLY, O_NONBLOCK, O_CLOEXEC, O_NOCTTY, O_ACCMODE, O_WRONLY, AT_SYMLINK_NOFOLLOW
    int statx(int directory, const char *path, int flags, unsigned mask, statx_t *buffer) nogil
    unsigned STATX_INO
    uint32_t makedev(unsigned major, unsigned minor) nogil
    int gettid() nogil

cdef enum:
    MILLISECOND = 1000000                # nanoseconds, as the rest
    FIRST_TRY = 2 * MILLISECOND          # after a lease was broken: whoever has broken it may be done already
    LONGEST_TRY = 250 * MILLISECOND      # between two tries for a lease on a file that somebody writes
    OPEN_RETRY = 1                       # milliseconds: how often an open looks whether its lease is broken
    OPEN_ROUNDS = 50                     # so often without finding one: nobody waits
    OWN_OPEN = 50 * MILLISECOND          # a break so soon after it is its own
    SETTLE = 50 * MILLISECOND
    AGAIN = 90 * MILLISECOND
    LATER = 2000 * MILLISECOND
    SETTLING = 65536                     # events that are told again; more: everything is forgotten
    SWEEP = 1000 * MILLISECOND
    FLUSH = 5 * MILLISECOND              # the kernel takes longer for pages that are being read: looked at again and again
    UNWATCHABLE = 2                      # node_t.strayed of a directory
    EVENTS = 65536                       # bytes of events read at a time
    PROC_PATH = 32

cdef struct lease_t:
    node_t *node                         # with a reference
    lease_t *newer
    lease_t *older
    int fd
    int held
    int breaking                         # 1: it has begun; 2: listeners were asked; 3: the kernel was told
    int asked                            # listeners that have not settled it
    int own                              # it breaks for an open of ours
    uint32_t opens
    uint32_t readers                     # of those, the ones that may read
    uint32_t writers
    int64_t next_try                     # 0: none
    int64_t delay
    int64_t own_until
    int64_t since                        # it breaks
    uint64_t told                        # so many notices, and the kernel has forgotten

cdef struct watch_t:
    watch_key_t key
    node_t *node                         # none: it has the watch, and takes it along
    watch_t *next

ctypedef lease_t *lease_pointer
ctypedef watch_t *watch_pointer


cdef inline coherence_t *coherence_of(FLT_VOLUME *volume) noexcept nogil:
    return NULL if volume.backing is NULL else <coherence_t *>(<backing_t *>volume.backing).coherence


cdef inline inode_table_t *nodes_of(coherence_t *coherence) noexcept nogil:
    return <inode_table_t *>coherence.volume.nodes


cdef int64_t coherence_now() noexcept nogil:
    return monotonic_time()


cdef inline void wake(coherence_t *coherence) noexcept nogil:
    eventfd_write(coherence.wake_event, 1)


# --- life ---------------------------------------------------------------------------------------------------------

cdef coherence_t *coherence_new(FLT_VOLUME *volume) noexcept nogil:
    cdef coherence_t *coherence = <coherence_t *>calloc(1, cython.sizeof(coherence_t))
    if coherence is NULL:
        return NULL
    coherence.volume = volume
    coherence.signals = coherence.notify = -1
    pthread_mutex_init(&coherence.mutex, NULL)
    pthread_mutex_init(&coherence.calling, NULL)
    coherence.wake_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    coherence.overflow_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    coherence.watch_mask = 1023
    coherence.watches = <watch_t **>calloc(coherence.watch_mask + 1, cython.sizeof(watch_pointer))
    if coherence.wake_event < 0 or coherence.overflow_event < 0 or coherence.watches is NULL:
        coherence_free(coherence)
        return NULL
    return coherence


cdef settling_t *take_first(settling_queue_t *queue) noexcept nogil:
    cdef settling_t *first = queue.first
    queue.first = first.next
    if queue.first is NULL:
        queue.last = NULL
    return first


cdef void append(settling_queue_t *queue, settling_t *settling) noexcept nogil:
    settling.next = NULL
    if queue.last is NULL:
        queue.first = settling
    else:
        queue.last.next = settling
    queue.last = settling


cdef void close_fd(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
    fd[0] = -1


cdef void coherence_free(coherence_t *coherence) noexcept nogil:
    """With the volume, whose nodes go right after."""
    cdef lease_t *lease
    cdef watch_t *watch
    cdef uint32_t i
    cdef int passes
    while coherence.newest is not NULL:
        lease = coherence.newest
        coherence.newest = lease.older
        lease.node.lease = NULL
        close_fd(&lease.fd)
        free(lease)
    i = 0
    while coherence.watches is not NULL and i <= coherence.watch_mask:
        while coherence.watches[i] is not NULL:
            watch = coherence.watches[i]
            coherence.watches[i] = watch.next
            watch.node.watch = NULL
            free(watch)
        i += 1
    for passes in range(2):
        while coherence.settling[passes].first is not NULL:
            free(take_first(&coherence.settling[passes]))
    close_fd(&coherence.notify)
    close_fd(&coherence.signals)
    close_fd(&coherence.wake_event)
    close_fd(&coherence.overflow_event)
    free(coherence.watches)
    free(coherence.by_fd)
    pthread_mutex_destroy(&coherence.mutex)
    pthread_mutex_destroy(&coherence.calling)
    free(coherence)


# --- leases -------------------------------------------------------------------------------------------------------

cdef void unlink_locked(coherence_t *coherence, lease_t *lease) noexcept nogil:
    if lease.newer is not NULL:
        lease.newer.older = lease.older
    elif coherence.newest is lease:
        coherence.newest = lease.older
    if lease.older is not NULL:
        lease.older.newer = lease.newer
    elif coherence.oldest is lease:
        coherence.oldest = lease.newer
    lease.newer = lease.older = NULL


cdef void push_locked(coherence_t *coherence, lease_t *lease) noexcept nogil:
    lease.newer = NULL
    lease.older = coherence.newest
    if coherence.newest is not NULL:
        coherence.newest.newer = lease
    else:
        coherence.oldest = lease
    coherence.newest = lease


cdef void let_go_locked(coherence_t *coherence, lease_t *lease) noexcept nogil:
    if lease.held:
        lease.held = 0
        coherence.held -= 1
        stackfs_unlease(lease.fd)
    store_uint(&lease.node.leased, 0)


cdef node_t *drop_locked(coherence_t *coherence, lease_t *lease) noexcept nogil:
    """Nobody has the file open. Returns its node, whose reference is the caller's to give back without the mutex."""
    cdef node_t *node = lease.node
    let_go_locked(coherence, lease)
    if lease.fd >= 0:
        coherence.by_fd[lease.fd] = NULL
        close(lease.fd)
    unlink_locked(coherence, lease)
    coherence.lease_count -= 1
    node.lease = NULL
    free(lease)
    return node


cdef bint register_locked(coherence_t *coherence, lease_t *lease, int fd) noexcept nogil:
    cdef lease_t **larger
    cdef int size = coherence.by_fd_size if coherence.by_fd_size else 1024
    while size <= fd:
        size *= 2
    if size != coherence.by_fd_size:
        larger = <lease_t **>realloc(coherence.by_fd, size * cython.sizeof(lease_pointer))
        if larger is NULL:
            return False
        memset(larger + coherence.by_fd_size, 0, (size - coherence.by_fd_size) * cython.sizeof(lease_pointer))
        coherence.by_fd = larger
        coherence.by_fd_size = size
    coherence.by_fd[fd] = lease
    lease.fd = fd
    return True


cdef int open_to_lease(coherence_t *coherence, node_t *node) noexcept nogil:
    """A descriptor for reading, or -1. Never waits: somebody's write lease refuses it."""
    cdef char path[PROC_PATH]
    cdef int fd = node_open(nodes_of(coherence), node)
    cdef int opened
    if fd < 0:
        return -1
    snprintf(path, PROC_PATH, b"/proc/self/fd/%d", fd)
    opened = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)
    if opened < 0 and errno == EMFILE and descriptors_shed(nodes_of(coherence)):
        opened = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)
    node_close(nodes_of(coherence), node)
    return opened


cdef void try_later_locked(coherence_t *coherence, lease_t *lease, int64_t now) noexcept nogil:
    lease.next_try = now + lease.delay
    lease.delay = min(<int64_t>LONGEST_TRY, lease.delay * 2)
    if coherence.next_try == 0 or lease.next_try < coherence.next_try:
        coherence.next_try = lease.next_try
        wake(coherence)                  # it may be about to sleep for longer


cdef void try_locked(coherence_t *coherence, lease_t *lease, int64_t now) noexcept nogil:
    """A lease, if it can be had. While we have the file open for writing ourselves it cannot."""
    cdef int thread = load_int(&coherence.thread_id)
    cdef int error
    lease.next_try = 0
    if thread == 0 or lease.held or lease.breaking or lease.fd < 0 or lease.writers or lease.opens == 0:
        return
    error = stackfs_lease(lease.fd, thread)
    if error == 0:
        coherence.epoch += 1
        if coherence.epoch == 0:
            coherence.epoch = 1
        coherence.held += 1
        lease.held = 1
        lease.delay = FIRST_TRY
        store_uint(&lease.node.leased, coherence.epoch)
    elif error == EAGAIN:
        try_later_locked(coherence, lease, now)
    elif error == EACCES or error == EPERM:
        coherence.refused += 1           # somebody else's file, and we are not root; asked again at the next open
    else:
        coherence.unsupported += 1


cdef node_t *make_room_locked(coherence_t *coherence) noexcept nogil:
    """The file that nobody has had open for longest keeps its lease no more. What the page cache has of it goes at its next open."""
    cdef lease_t *lease = coherence.oldest
    if coherence.lease_count < coherence.lease_limit:
        return NULL
    while lease is not NULL and (lease.opens or lease.breaking or load_uint(&lease.node.plain_opens)):
        lease = lease.newer              # opened when there was no room: the page cache has what that open reads, too
    if lease is NULL:
        return NULL
    coherence.evicted += 1
    return drop_locked(coherence, lease)


cdef bint coherence_opened(coherence_t *coherence, FILE_OBJECT *file) noexcept nogil:
    cdef node_t *node = file.Node
    cdef node_t *evicted = NULL
    cdef lease_t *lease
    cdef uint32_t mode = file.OpenFlags & <uint32_t>O_ACCMODE
    cdef bint held = False
    cdef bint leased = False
    cdef bint had = False
    cdef int fd = -1
    if load_int(&coherence.thread_id) == 0:
        return False
    revert_to_self()                     # a lease is the file owner's, or root's
    if load_uint(&node.leased) == 0:
        fd = open_to_lease(coherence, node)
    node_hold(nodes_of(coherence), node)
    pthread_mutex_lock(&coherence.mutex)
    lease = <lease_t *>node.lease
    if lease is NULL:
        evicted = make_room_locked(coherence)
        if coherence.lease_count < coherence.lease_limit:
            lease = <lease_t *>calloc(1, cython.sizeof(lease_t))
    else:
        had = True
        unlink_locked(coherence, lease)
    if lease is not NULL:
        if not had:
            lease.node = node
            lease.fd = -1
            coherence.lease_count += 1
            node.lease = lease
        push_locked(coherence, lease)
        set_bits(&file.Flags, FO_COHERENT)
        lease.opens += 1
        lease.readers += mode != <uint32_t>O_WRONLY
        lease.writers += mode != <uint32_t>O_RDONLY
        held = lease.held and not lease.breaking         # before this open, too
        if lease.fd < 0 and fd >= 0 and register_locked(coherence, lease, fd):
            fd = -1
        if not lease.held:
            lease.delay = FIRST_TRY
            try_locked(coherence, lease, monotonic_time())
        leased = lease.held and not lease.breaking
    pthread_mutex_unlock(&coherence.mutex)
    if fd >= 0:
        close(fd)
    if had or lease is NULL:
        node_put(nodes_of(coherence), node)
    if evicted is not NULL:
        node_put(nodes_of(coherence), evicted)
    if not leased:
        volume_forget_data(coherence.volume, node, -1, 0)
    return held


cdef void coherence_released(coherence_t *coherence, node_t *node, uint32_t flags) noexcept nogil:
    cdef node_t *gone = NULL
    cdef lease_t *lease
    cdef uint32_t mode = flags & <uint32_t>O_ACCMODE
    pthread_mutex_lock(&coherence.mutex)
    lease = <lease_t *>node.lease
    if lease is not NULL:
        lease.opens -= 1
        lease.readers -= mode != <uint32_t>O_WRONLY
        lease.writers -= mode != <uint32_t>O_RDONLY
        if lease.opens == 0 and not lease.held and not lease.breaking:
            gone = drop_locked(coherence, lease)
        elif not lease.held and not lease.writers:
            lease.delay = FIRST_TRY
            try_locked(coherence, lease, monotonic_time())
    pthread_mutex_unlock(&coherence.mutex)
    if gone is not NULL:
        node_put(nodes_of(coherence), gone)


cdef void try_soon(coherence_t *coherence, node_t *node, int64_t now) noexcept nogil:
    """Somebody who could write the file has closed it."""
    cdef lease_t *lease
    pthread_mutex_lock(&coherence.mutex)
    lease = <lease_t *>node.lease
    if lease is not NULL and lease.next_try:
        lease.delay = FIRST_TRY
        try_locked(coherence, lease, now)
    pthread_mutex_unlock(&coherence.mutex)


cdef void coherence_passed(coherence_t *coherence, node_t *node, uint32_t before, int64_t offset, int64_t length) noexcept nogil:
    cdef lease_t *lease
    cdef bint wanted
    if before and load_uint(&node.leased) == before:
        return
    pthread_mutex_lock(&coherence.mutex)
    lease = <lease_t *>node.lease        # not all opens need be counted there: some came when there was no room
    wanted = lease is NULL or lease.readers or lease.opens < load_uint(&node.plain_opens)
    pthread_mutex_unlock(&coherence.mutex)
    if wanted:                           # else nobody could read what is kept, and who opens it to read finds nothing kept
        volume_forget_data(coherence.volume, node, offset, length)


cdef void coherence_own_open(coherence_t *coherence, node_t *node) noexcept nogil:
    cdef lease_t *lease
    if load_uint(&node.leased) == 0:
        return
    pthread_mutex_lock(&coherence.mutex)
    lease = <lease_t *>node.lease
    if lease is not NULL:
        lease.own_until = monotonic_time() + OWN_OPEN
    pthread_mutex_unlock(&coherence.mutex)


cdef void coherence_own_opened(coherence_t *coherence, node_t *node) noexcept nogil:
    cdef lease_t *lease
    pthread_mutex_lock(&coherence.mutex)
    lease = <lease_t *>node.lease
    if lease is not NULL:
        lease.own_until = 0
    pthread_mutex_unlock(&coherence.mutex)


cdef void coherence_open_waits(coherence_t *coherence) noexcept nogil:
    if exchange_int(&coherence.opens_waiting, OPEN_ROUNDS) == 0:
        wake(coherence)


# --- breaks -------------------------------------------------------------------------------------------------------

cdef bint tell(coherence_t *coherence, node_t *node, int what, const char *name, uint32_t length, int *asked) noexcept nogil:
    """All listeners. asked: how many of them will settle it later; raised beforehand, since one may do so at once."""
    cdef int i
    cdef bint later
    pthread_mutex_lock(&coherence.calling)
    for i in range(FOREIGN_FUNCTIONS):
        if coherence.listeners[i].function is not NULL:
            if asked is not NULL:
                add_int(asked, 1)
            later = coherence.listeners[i].function(coherence.listeners[i].context, coherence.volume, node, what, name, length)
            if asked is not NULL and not later:
                add_int(asked, -1)
    pthread_mutex_unlock(&coherence.calling)
    return asked is not NULL and load_int(asked) > 0


cdef void begin_break_locked(coherence_t *coherence, lease_t *lease, int64_t now) noexcept nogil:
    """From here on nothing of the file stays in the page cache, but for what is there already."""
    if lease is NULL or not lease.held or lease.breaking:
        return
    lease.breaking = 1
    lease.own = now < lease.own_until
    lease.since = now
    lease.asked = 0
    coherence.breaks += 1
    coherence.breaking += 1
    store_uint(&lease.node.leased, 0)


cdef void settle_breaks(coherence_t *coherence, int64_t now) noexcept nogil:
    """Each in its turn: ask the listeners; have the kernel forget; wait until it has; let go."""
    cdef lease_t *lease
    cdef node_t *gone
    cdef connection_t *connection = <connection_t *>coherence.connection
    cdef uint64_t nodeid = 0, told = 0
    cdef bint own
    if coherence.breaking == 0:
        return
    while True:
        pthread_mutex_lock(&coherence.mutex)
        lease = coherence.newest
        while lease is not NULL and lease.breaking != 1:
            lease = lease.older
        own = lease is not NULL and lease.own
        if lease is not NULL:
            lease.breaking = 2
        pthread_mutex_unlock(&coherence.mutex)
        if lease is NULL:                # a lease that breaks is not dropped by anybody else
            break
        if not own:
            tell(coherence, lease.node, FOREIGN_DATA, NULL, 0, &lease.asked)
    pthread_mutex_lock(&coherence.mutex)
    lease = coherence.newest
    while lease is not NULL:
        if lease.breaking == 2 and (load_int(&lease.asked) <= 0 or now - lease.since > <int64_t>FOREIGN_LIMIT * 1000 * MILLISECOND):
            lease.breaking = 3
            volume_forget_data(coherence.volume, lease.node, 0, 0)
            lease.told = 0 if connection is NULL else notices_queued(&connection.notifiers, node_id(lease.node))
        if lease.breaking == 3:
            nodeid, told = node_id(lease.node), lease.told
        lease = lease.older
    pthread_mutex_unlock(&coherence.mutex)
    if connection is not NULL and nodeid:
        notices_settled(&connection.notifiers, nodeid, told, FLUSH)
    while True:
        gone = NULL
        pthread_mutex_lock(&coherence.mutex)
        lease = coherence.newest
        while lease is not NULL and not (lease.breaking == 3 and (
                connection is NULL or notices_settled(&connection.notifiers, node_id(lease.node), lease.told, 0))):
            lease = lease.older
        if lease is not NULL:
            lease.breaking = 0
            coherence.breaking -= 1
            let_go_locked(coherence, lease)
            if lease.opens == 0:
                gone = drop_locked(coherence, lease)
            else:
                lease.delay = FIRST_TRY
                try_later_locked(coherence, lease, now)
        pthread_mutex_unlock(&coherence.mutex)
        if lease is NULL:
            break
        if gone is not NULL:
            node_put(nodes_of(coherence), gone)
    locks_retry_leases((<backing_t *>coherence.volume.backing).locks)


cdef void take_signals(coherence_t *coherence, int64_t now) noexcept nogil:
    cdef lease_t *lease
    cdef int fd = stackfs_next_break(coherence.signals)
    while fd != -1:
        pthread_mutex_lock(&coherence.mutex)
        if fd >= 0 and fd < coherence.by_fd_size:
            begin_break_locked(coherence, coherence.by_fd[fd], now)
        elif fd == -2:
            lease = coherence.newest
            while lease is not NULL:
                if lease.held and stackfs_lease_breaks(lease.fd):
                    begin_break_locked(coherence, lease, now)
                lease = lease.older
        pthread_mutex_unlock(&coherence.mutex)
        fd = stackfs_next_break(coherence.signals)


cdef void retry_leases(coherence_t *coherence, int64_t now) noexcept nogil:
    cdef lease_t *lease
    pthread_mutex_lock(&coherence.mutex)
    lease = NULL
    if coherence.next_try and coherence.next_try <= now:
        coherence.next_try = 0
        lease = coherence.newest
    while lease is not NULL:
        if lease.next_try and lease.next_try <= now:
            try_locked(coherence, lease, now)
        elif lease.next_try and (coherence.next_try == 0 or lease.next_try < coherence.next_try):
            coherence.next_try = lease.next_try
        lease = lease.older
    pthread_mutex_unlock(&coherence.mutex)


cdef void sweep(coherence_t *coherence) noexcept nogil:
    """The kernel has forgotten a file: there is nothing left to keep right."""
    cdef lease_t *lease
    cdef lease_t *older
    cdef node_t *gone
    while True:
        gone = NULL
        pthread_mutex_lock(&coherence.mutex)
        lease = coherence.oldest
        while lease is not NULL and gone is NULL:
            older = lease.newer
            if lease.opens == 0 and not lease.breaking and node_lookups(nodes_of(coherence), lease.node) == 0:
                gone = drop_locked(coherence, lease)
            lease = older
        pthread_mutex_unlock(&coherence.mutex)
        if gone is NULL:
            break
        node_put(nodes_of(coherence), gone)


# --- names and attributes -----------------------------------------------------------------------------------------

cdef watch_t **bucket_locked(coherence_t *coherence, const watch_key_t *key) noexcept nogil:
    return &coherence.watches[stackfs_hash_key(key) & coherence.watch_mask]


cdef watch_t *find_locked(coherence_t *coherence, const watch_key_t *key) noexcept nogil:
    cdef watch_t *watch = bucket_locked(coherence, key)[0]
    while watch is not NULL and (watch.key.length != key.length or memcmp(&watch.key, key, stackfs_key_length(key)) != 0):
        watch = watch.next
    return watch


cdef bint coherence_watch(coherence_t *coherence, node_t *directory, int fd) noexcept nogil:
    cdef watch_key_t key
    cdef watch_t *watch
    cdef bint free_to_watch, watched
    cdef int error
    if directory.watch is not NULL:
        return True
    if coherence.notify < 0 or load_int(&coherence.thread_id) == 0 or coherence.long_timeout <= coherence.short_timeout or \
            directory.strayed == UNWATCHABLE:
        return False
    error = stackfs_watch_key(fd, &key)
    watch = NULL if error else <watch_t *>calloc(1, cython.sizeof(watch_t))
    pthread_mutex_lock(&coherence.mutex)
    # An inode has one mark: who is forgotten takes it off under the same lock, with its entry (unwatch).
    free_to_watch = watch is not NULL and directory.watch is NULL and find_locked(coherence, &key) is NULL
    if free_to_watch and coherence.watch_count >= coherence.watch_limit:
        error = ENOSPC
    elif free_to_watch and stackfs_mark(coherence.notify, fd, 1) != 0:
        error = errno
    if watch is NULL or error:
        directory.strayed = UNWATCHABLE  # until it is looked up again
        coherence.unwatched += 1
        coherence.watch_error = error
    elif free_to_watch:
        watch.key = key
        watch.node = directory
        watch.next = bucket_locked(coherence, &key)[0]
        bucket_locked(coherence, &key)[0] = watch
        coherence.watch_count += 1
        node_pin(nodes_of(coherence), directory)
        directory.watch = watch
        watch = NULL
    watched = directory.watch is not NULL
    pthread_mutex_unlock(&coherence.mutex)
    free(watch)
    return watched


cdef void unwatch(void *context, node_t *node) noexcept nogil:
    """By the inode table, of a directory that the kernel has forgotten."""
    cdef coherence_t *coherence = <coherence_t *>context
    cdef watch_t *watch
    cdef watch_t **link
    pthread_mutex_lock(&coherence.mutex)
    if node.fd >= 0 and coherence.notify >= 0:
        stackfs_mark(coherence.notify, node.fd, 0)
    watch = <watch_t *>node.watch
    link = bucket_locked(coherence, &watch.key)
    while link[0] is not watch:
        link = &link[0].next
    link[0] = watch.next
    coherence.watch_count -= 1
    node.watch = NULL
    pthread_mutex_unlock(&coherence.mutex)
    free(watch)


cdef bint coherence_covers(coherence_t *coherence, node_t *node) noexcept nogil:
    return node_watched(nodes_of(coherence), node)


cdef double coherence_timeout(coherence_t *coherence, bint covered, int64_t begun) noexcept nogil:
    return coherence.long_timeout if covered and monotonic_time() - begun < SETTLE else coherence.short_timeout


cdef void keep_settling(coherence_t *coherence, uint64_t directory, uint64_t child, const char *name, uint32_t length,
                        int64_t now) noexcept nogil:
    """The event is told again. One that follows its like takes its place: it has just been told."""
    cdef settling_t *settling = coherence.settling[0].last
    if settling is not NULL and settling.directory == directory and settling.child == child and settling.length == length and \
            memcmp(settling.name, name, length) == 0:
        settling.due = now + AGAIN
        return
    settling = NULL
    if coherence.settling_count < SETTLING:
        settling = <settling_t *>malloc(cython.sizeof(settling_t))
    if settling is NULL:
        eventfd_write(coherence.overflow_event, 1)
        return
    settling.due = now + AGAIN
    settling.directory = directory
    settling.child = child
    settling.length = <uint8_t>length
    memcpy(settling.name, name, length)
    append(&coherence.settling[0], settling)
    coherence.settling_count += 1


cdef void forget_attributes(coherence_t *coherence, uint64_t nodeid) noexcept nogil:
    cdef node_t *node = node_get(nodes_of(coherence), nodeid)
    if node is not NULL:
        volume_forget_data(coherence.volume, node, -1, 0)
        node_put(nodes_of(coherence), node)


cdef void forget_name(coherence_t *coherence, node_t *directory, const char *name, uint32_t length) noexcept nogil:
    """If the kernel may have it: a name that leads to nothing is not cached."""
    cdef node_t *node = name_holder(nodes_of(coherence), directory, name, <uint16_t>length)
    if node is not NULL:
        volume_forget_name(coherence.volume, directory, name, length)
        volume_forget_data(coherence.volume, node, -1, 0)
        node_put(nodes_of(coherence), node)


cdef uint64_t now_under(coherence_t *coherence, node_t *directory, const char *name) noexcept nogil:
    """The nodeid that what stands under that name now has, or would have; 0: nothing does."""
    cdef statx_t info
    cdef uint64_t nodeid = 0
    cdef int fd = node_open(nodes_of(coherence), directory)
    if fd < 0:
        return 0
    if statx(fd, name, AT_SYMLINK_NOFOLLOW, STATX_INO, &info) == 0:
        nodeid = make_id(nodes_of(coherence).device, makedev(info.stx_dev_major, info.stx_dev_minor), info.stx_ino)
    node_close(nodes_of(coherence), directory)
    return nodeid


cdef void take_event(coherence_t *coherence, const noticed_t *noticed, int64_t now) noexcept nogil:
    cdef inode_table_t *nodes = nodes_of(coherence)
    cdef watch_t *watch
    cdef uint64_t directory_id = 0, child_id
    cdef node_t *directory
    cdef node_t *child
    cdef uint32_t length = <uint32_t>noticed.name_length
    cdef bint of_names = noticed.mask & NAME_EVENTS != 0
    cdef int what
    pthread_mutex_lock(&coherence.mutex)
    coherence.events += 1
    watch = find_locked(coherence, &noticed.key)
    if watch is not NULL:
        directory_id = node_id(watch.node)
    pthread_mutex_unlock(&coherence.mutex)
    if directory_id == 0 or length > 255:
        return
    directory = node_get(nodes, directory_id)
    if directory is NULL:
        return
    if of_names or length == 0 or (length == 1 and noticed.name[0] == c'.'):
        volume_forget_data(coherence.volume, directory, -1, 0)
    if length and not (length == 1 and noticed.name[0] == c'.'):
        child_id = now_under(coherence, directory, noticed.name)
        child = name_holder(nodes, directory, noticed.name, <uint16_t>length)
        if of_names:
            if child is not NULL:
                volume_forget_name(coherence.volume, directory, noticed.name, length)
                if noticed.mask & (FAN_MOVED_FROM | FAN_DELETE) and node_id(child) != child_id:
                    node_stray(nodes, child)
            tell(coherence, directory, FOREIGN_NAME, noticed.name, length, NULL)
        if child is not NULL:
            volume_forget_data(coherence.volume, child, -1, 0)
            if child_id == 0:
                child_id = node_id(child)
            node_put(nodes, child)
        child = node_get(nodes, child_id) if child_id else NULL
        if child is not NULL:
            if noticed.mask & FAN_MOVED_TO:
                node_stray(nodes, child)
            if noticed.mask & FAN_CLOSE_WRITE:
                try_soon(coherence, child, now)
            # A lease is not broken by open(O_RDONLY | O_TRUNC).
            volume_forget_data(coherence.volume, child, 0 if noticed.mask & FAN_MODIFY and load_uint(&child.leased) else -1, 0)
            if noticed.mask & (FAN_MODIFY | FAN_CLOSE_WRITE | FAN_ATTRIB):
                what = FOREIGN_WRITTEN if noticed.mask & (FAN_MODIFY | FAN_CLOSE_WRITE) else FOREIGN_ATTRIBUTES
                tell(coherence, child, what, NULL, 0, NULL)
            node_put(nodes, child)
        keep_settling(coherence, directory_id, child_id, noticed.name, length, now)
    else:
        tell(coherence, directory, FOREIGN_ATTRIBUTES, NULL, 0, NULL)
        keep_settling(coherence, directory_id, 0, noticed.name, 0, now)
    node_put(nodes, directory)


cdef void take_events(coherence_t *coherence, char *buffer, int64_t now) noexcept nogil:
    cdef noticed_t noticed
    cdef int own = getpid()
    cdef ssize_t got = read(coherence.notify, buffer, EVENTS)
    cdef size_t at = 0, taken = 1
    while got > 0 and taken:
        taken = stackfs_event(buffer + at, <size_t>got - at, &noticed)
        at += taken
        if noticed.overflow:
            pthread_mutex_lock(&coherence.mutex)
            coherence.overflows += 1
            pthread_mutex_unlock(&coherence.mutex)
            tell(coherence, NULL, FOREIGN_ALL, NULL, 0, NULL)
            eventfd_write(coherence.overflow_event, 1)
        elif taken and noticed.pid != own and noticed.name is not NULL:
            take_event(coherence, &noticed, now)


cdef void settle_events(coherence_t *coherence, int64_t now) noexcept nogil:
    cdef settling_t *settling
    cdef node_t *directory
    cdef int passes
    for passes in range(2):
        while coherence.settling[passes].first is not NULL and coherence.settling[passes].first.due <= now:
            settling = take_first(&coherence.settling[passes])
            directory = node_get(nodes_of(coherence), settling.directory)
            if directory is not NULL:
                volume_forget_data(coherence.volume, directory, -1, 0)
                if settling.length:
                    forget_name(coherence, directory, settling.name, settling.length)
                node_put(nodes_of(coherence), directory)
            if settling.child:
                forget_attributes(coherence, settling.child)
            if passes == 0:
                settling.due = now + LATER
                append(&coherence.settling[1], settling)
            else:
                coherence.settling_count -= 1
                free(settling)


# --- the thread ---------------------------------------------------------------------------------------------------

cdef int until_next(coherence_t *coherence, int64_t now) noexcept nogil:
    """Milliseconds."""
    cdef int64_t due = coherence.next_sweep
    cdef int passes
    if load_int(&coherence.opens_waiting) or coherence.breaking:
        return OPEN_RETRY
    pthread_mutex_lock(&coherence.mutex)
    if coherence.next_try and coherence.next_try < due:
        due = coherence.next_try
    pthread_mutex_unlock(&coherence.mutex)
    for passes in range(2):
        if coherence.settling[passes].first is not NULL and coherence.settling[passes].first.due < due:
            due = coherence.settling[passes].first.due
    return <int>max(<int64_t>0, (due - now + MILLISECOND - 1) // MILLISECOND)


cdef void let_go_of_all(coherence_t *coherence) noexcept nogil:
    cdef lease_t *lease
    pthread_mutex_lock(&coherence.mutex)
    lease = coherence.newest
    while lease is not NULL:
        let_go_locked(coherence, lease)
        lease.breaking = 0
        lease = lease.older
    pthread_mutex_unlock(&coherence.mutex)


cdef void *coherence_main(void *argument) noexcept nogil:
    cdef coherence_t *coherence = <coherence_t *>argument
    cdef pollfd_t fds[3]
    cdef uint64_t count
    cdef int64_t now
    cdef char *buffer = <char *>malloc(EVENTS)
    pthread_setname_np(pthread_self(), "stackfs-notice")
    python_attach()
    memset(fds, 0, sizeof(fds))
    fds[0].fd = coherence.wake_event
    fds[1].fd = coherence.signals
    fds[2].fd = coherence.notify if buffer is not NULL else -1
    fds[0].events = fds[1].events = fds[2].events = POLLIN
    coherence.next_sweep = monotonic_time() + SWEEP
    store_int(&coherence.thread_id, gettid())
    while not load_int(&coherence.stopping):
        poll(fds, 3, until_next(coherence, monotonic_time()))
        now = monotonic_time()
        if fds[0].revents:
            read(coherence.wake_event, &count, 8)
        take_signals(coherence, now)
        settle_breaks(coherence, now)
        if load_int(&coherence.opens_waiting) and not locks_retry_leases((<backing_t *>coherence.volume.backing).locks):
            add_int(&coherence.opens_waiting, -1)
        if fds[2].revents:
            take_events(coherence, buffer, now)
        settle_events(coherence, now)
        retry_leases(coherence, now)
        if coherence.next_sweep <= now:
            coherence.next_sweep = now + SWEEP
            sweep(coherence)
    store_int(&coherence.thread_id, 0)
    let_go_of_all(coherence)
    free(buffer)
    python_detach()
    return NULL


# --- listeners ----------------------------------------------------------------------------------------------------

cdef int coherence_on_change(FLT_VOLUME *volume, foreign_function function, void *context) noexcept nogil:
    cdef coherence_t *coherence = coherence_of(volume)
    cdef int i, error = -ENOSPC
    if coherence is NULL:
        return -ENODEV
    pthread_mutex_lock(&coherence.calling)
    for i in range(FOREIGN_FUNCTIONS):
        if error and coherence.listeners[i].function is NULL:
            coherence.listeners[i].context = context
            coherence.listeners[i].function = function
            error = 0
    pthread_mutex_unlock(&coherence.calling)
    return error


cdef void coherence_off_change(FLT_VOLUME *volume, foreign_function function, void *context) noexcept nogil:
    cdef coherence_t *coherence = coherence_of(volume)
    cdef int i
    if coherence is NULL:
        return
    pthread_mutex_lock(&coherence.calling)
    for i in range(FOREIGN_FUNCTIONS):
        if coherence.listeners[i].function is function and coherence.listeners[i].context is context:
            coherence.listeners[i].function = NULL
    pthread_mutex_unlock(&coherence.calling)


cdef void coherence_settled(FLT_VOLUME *volume, const node_t *node) noexcept nogil:
    cdef coherence_t *coherence = coherence_of(volume)
    cdef lease_t *lease
    if coherence is NULL:
        return
    pthread_mutex_lock(&coherence.mutex)
    lease = <lease_t *>node.lease
    if lease is not NULL:
        add_int(&lease.asked, -1)
    pthread_mutex_unlock(&coherence.mutex)
    wake(coherence)


# --- the Python face ----------------------------------------------------------------------------------------------

cdef bint call_python(void *context, FLT_VOLUME *volume, node_t *node, int what, const char *name, uint32_t length) noexcept with gil:
    try:
        return bool((<object><PyObject *>context)(
            0 if node is NULL else node_id(node), what, None if name is NULL else <bytes>name[:length]))
    except BaseException as error:
        import structlog
        structlog.get_logger("stackfs.coherence").error("a listener fails", error=f"{type(error).__name__}: {error}")
        return False


cdef void coherence_stop(coherence_t *coherence) noexcept nogil:
    if coherence.has_thread:
        store_int(&coherence.stopping, 1)
        wake(coherence)
        pthread_join(coherence.thread, NULL)
        coherence.has_thread = 0
        coherence.connection = NULL


cdef class Coherence:
    """See coherence.pyi."""

    cdef Volume volume
    cdef coherence_t *state              # the backing_t's, and so the volume's
    cdef list listeners

    def __init__(self, Volume volume not None, *, double long_timeout, double short_timeout, bint names=True,
                 unsigned lease_limit=4096, unsigned watch_limit=16384):
        cdef backing_t *backing = volume.open_backing()
        if backing.coherence is not NULL:
            raise ValueError("the volume has it already")
        self.state = coherence_new(&volume.stack.volume)
        if self.state is NULL:
            raise MemoryError()
        self.volume = volume
        self.listeners = []
        self.state.long_timeout = long_timeout
        self.state.short_timeout = short_timeout
        self.state.lease_limit = lease_limit
        self.state.watch_limit = watch_limit
        self.state.signals = stackfs_lease_signals()
        if self.state.signals < 0:
            coherence_free(self.state)
            raise OSError(errno, f"signalfd: {os.strerror(errno)}")
        if names:
            self.state.notify = stackfs_notify_new()
            if self.state.notify < 0:
                self.state.watch_error = errno
        backing.nodes.unwatch = unwatch
        backing.nodes.unwatch_context = self.state
        backing.coherence = self.state

    cdef coherence_t *live(self) except NULL:
        if self.volume.open_backing().coherence is NULL:
            raise ValueError("the volume is closed")
        return self.state

    def start(self):
        cdef coherence_t *coherence = self.live()
        cdef holds_t *holds = coherence.volume.holds
        cdef int error
        if coherence.has_thread or coherence.stopping:
            raise RuntimeError("it starts once")
        coherence.connection = holds.connection
        error = start_thread(&coherence.thread, coherence_main, coherence)
        if error:
            raise OSError(error, f"coherence thread: {os.strerror(error)}")
        coherence.has_thread = 1

    def stop(self):
        cdef coherence_t *coherence = self.live()
        with nogil:
            coherence_stop(coherence)

    @property
    def overflow_fd(self):
        return self.live().overflow_event

    @property
    def names_watched(self):
        return self.live().notify >= 0

    def counters(self):
        cdef coherence_t *coherence = self.live()
        pthread_mutex_lock(&coherence.mutex)
        found = {
            "leases": coherence.held, "files": coherence.lease_count, "breaks": coherence.breaks, "evicted": coherence.evicted,
            "refused": coherence.refused, "unsupported": coherence.unsupported, "watched_directories": coherence.watch_count,
            "unwatched_directories": coherence.unwatched, "watch_error": coherence.watch_error, "events": coherence.events,
            "overflows": coherence.overflows}
        pthread_mutex_unlock(&coherence.mutex)
        return found

    def on_change(self, listener):
        cdef coherence_t *coherence = self.live()
        cdef int error
        with nogil:
            error = coherence_on_change(coherence.volume, call_python, <PyObject *>listener)
        if error:
            raise OSError(-error, "too many listeners")
        self.listeners.append(listener)

    def off_change(self, listener):
        cdef coherence_t *coherence = self.live()
        cdef PyObject *held
        cdef int place
        if load_int(&coherence.thread_id) == gettid():
            raise RuntimeError("a listener takes nobody off: it would wait for itself")
        place = self.listeners.index(listener)           # equal to it, as one bound method is to another of the same
        held = <PyObject *>self.listeners[place]
        with nogil:
            coherence_off_change(coherence.volume, call_python, held)
        del self.listeners[place]

    def settled(self, uint64_t nodeid):
        cdef coherence_t *coherence = self.live()
        cdef node_t *node = node_get(nodes_of(coherence), nodeid)
        if node is not NULL:
            with nogil:
                coherence_settled(coherence.volume, node)
                node_put(nodes_of(coherence), node)
