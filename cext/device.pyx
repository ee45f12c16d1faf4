"""The device: one FUSE connection, put together from its parts.

    /dev/fuse ◄──► readers.pyx      threads that read, serve (the device lane), refuse, and forward
              ◄──  connection.pyx   answers and notifications
                   waits.pyx        what waits for a lock or a filter, and who goes on with it
                   irp_link.pyx     the socket pair to pyfuse3 and the header queue (the IRP lane)

This module sets them up, starts and ends them in the right order, and is their Python face. device.pyi tells how it is
used. Device's methods are called with the GIL, by the trio thread unless their docstring says otherwise.

The end: refuse_all() answers what is unanswered; the notifier is joined while the readers still refuse what comes, for it
may wait in the kernel for just that; then the readers, what waits for locks, and the forwarder; the relay last, after
pyfuse3 has gone.
"""

from libc.errno cimport EINVAL, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.fcntl cimport F_GETFL, F_SETFL, O_NONBLOCK, fcntl
from posix.unistd cimport _SC_PAGESIZE, close, getpid, sysconf

from stackfs.cext.backing cimport backing_t
from stackfs.cext.connection cimport (
    connection_calls, connection_end, connection_free, connection_init, connection_t, queue_notice, refuse_all, tell_kernel)
from stackfs.cext.includes.fuse_wire cimport *
from stackfs.cext.irp_link cimport (
    SOCKET_OVERHEAD, irp_link_t, link_close, link_free, link_init, link_let_go, link_pair, link_pop, link_relay_now,
    link_start, link_stop_forwarder)
from stackfs.cext.notices cimport notice_entry, notice_inode
from stackfs.cext.notifiers cimport notices_flush, notifiers_start, notifiers_stop
from stackfs.cext.pending cimport holds_connect
from stackfs.cext.readers cimport readers_free, readers_init, readers_start, readers_stop, readers_t
from stackfs.cext.python_requests cimport Volume, request_adopt
from stackfs.cext.requests cimport request_free, vfs_request_t
from stackfs.cext.threads cimport *
from stackfs.cext.waits cimport waits_free, waits_init, waits_settle, waits_stop, waits_t
from stackfs.cext.wire cimport WIRE_OPCODES

import os


from stackfs.cext.wire import operation_name

cdef enum:
    LARGEST_WRITE = 1 << 20              # the kernel's own limit, fs.fuse.max_pages_limit = 256 pages
    SMALLEST_WRITE = 1 << 16             # a getxattr's answer must fit

cdef struct device_t:
    connection_t connection
    irp_link_t link
    waits_t waits
    readers_t readers
    int started, stopped, closed


cdef device_t *device_new() noexcept nogil:
    cdef device_t *device = <device_t *>calloc(1, sizeof(device_t))
    if device == NULL:
        return NULL
    connection_init(&device.connection)
    link_init(&device.link, &device.connection)
    waits_init(&device.waits, &device.connection)
    readers_init(&device.readers, &device.connection, &device.link, &device.waits)
    return device


cdef int device_start(device_t *device) noexcept nogil:
    """0, or an errno; device_stop and device_close join those that did start."""
    cdef int error = link_start(&device.link)
    if not error:
        error = notifiers_start(&device.connection.notifiers, device.connection.fd)
    if not error:
        error = readers_start(&device.readers)
    return error


cdef void device_stop(device_t *device) noexcept nogil:
    refuse_all(&device.connection)
    link_let_go(&device.link)
    notifiers_stop(&device.connection.notifiers)
    readers_stop(&device.readers)
    waits_stop(&device.waits)
    link_stop_forwarder(&device.link)


cdef void close_fd(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
    fd[0] = -1


cdef void device_close(device_t *device) noexcept nogil:
    """After device_stop, or before start. What filters hold has to be let go by now: their answers go nowhere, but it is
    from here that they are not written."""
    link_close(&device.link)
    if device.started:
        waits_settle(&device.waits)
        holds_connect(device.waits.volume.holds, NULL, NULL)
    if device.readers.volume != NULL and device.readers.volume.backing != NULL:
        store_int(&(<backing_t *>device.readers.volume.backing).bypass.device, -1)
    close_fd(&device.connection.fd)
    close_fd(&device.connection.ended_event)
    close_fd(&device.readers.ready_event)
    close_fd(&device.readers.deadlock_event)


cdef void device_free(device_t *device) noexcept nogil:
    link_free(&device.link)
    connection_free(&device.connection)
    readers_free(&device.readers)
    waits_free(&device.waits)
    free(device)


cdef object raise_errno(int error, str what):
    raise OSError(error, f"{what}: {os.strerror(error)}")


cdef class Device:
    """One FUSE connection. Owns the fd from the constructor on (see device.pyi for start and end)."""

    def __cinit__(self, int fd, Volume volume not None, *, str lanes="auto", uint32_t max_write=0, bint stack_checks=False,
                  bint cache_symlinks=True, bint direct_io_allow_mmap=True, bint passthrough=False,
                  bint stack_locks=False, bint writeback=False):
        cdef device_t *device = device_new()
        cdef readers_t *readers
        cdef uint32_t page = <uint32_t>sysconf(_SC_PAGESIZE)
        cdef uint64_t wanted
        cdef int buffer
        if device == NULL:
            raise MemoryError()
        self.state = device
        self.volume = volume
        if lanes not in ("auto", "irp"):
            raise ValueError(f"lanes is 'auto' or 'irp', not {lanes!r}")
        if fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) < 0:
            raise_errno(errno, "the FUSE device")
        readers = &device.readers
        readers.volume = device.waits.volume = &volume.stack.volume
        readers.serve_all = lanes == "auto"
        buffer = link_pair(&device.link)
        if buffer < 0:
            raise_errno(-buffer, "socket pair to the IRP lane")
        if buffer < <int>(SMALLEST_WRITE + page + SOCKET_OVERHEAD):
            raise_errno(ENOBUFS, f"net.core.wmem_max allows {buffer} bytes; set it to 212992 or more")
        readers.settings.max_write = min(<uint32_t>LARGEST_WRITE, device.link.message_max - page) // page * page
        if max_write:
            readers.settings.max_write = min(readers.settings.max_write,
                                             max(max_write // page * page, <uint32_t>SMALLEST_WRITE))
        readers.limits.max_write = readers.settings.max_write
        readers.settings.page_size = page
        readers.buffer_size = device.link.answer_max = readers.settings.max_write + page
        wanted = (FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_AUTO_INVAL_DATA
                  | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES
                  | FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT | FUSE_INIT_EXT | FUSE_CREATE_SUPP_GROUP
                  | FUSE_NO_EXPORT_SUPPORT)
        if not stack_checks:
            # POSIX_ACL brings the kernel's own permission checks along. READDIRPLUS looks up every name for the
            # kernel's caches, which believe nothing while the stack checks.
            wanted |= FUSE_POSIX_ACL | FUSE_DO_READDIRPLUS
            if readers.serve_all:
                wanted |= FUSE_READDIRPLUS_AUTO         # pyfuse3 has no handler for the plain READDIR that it brings
        if cache_symlinks:
            wanted |= FUSE_CACHE_SYMLINKS
        if direct_io_allow_mmap:
            wanted |= FUSE_DIRECT_IO_ALLOW_MMAP
        volume.stack.volume.locks = stack_locks
        if stack_locks:
            wanted |= FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS
        if writeback:
            wanted |= FUSE_WRITEBACK_CACHE
        elif passthrough and readers.serve_all:           # pyfuse3 cannot give an open a backing id
            wanted |= FUSE_PASSTHROUGH
        readers.settings.wanted = wanted
        readers.ready_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        readers.deadlock_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        device.connection.ended_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if min(readers.ready_event, readers.deadlock_event, device.connection.ended_event) < 0:
            raise_errno(errno, "eventfd")
        device.connection.fd = fd                       # last: when the constructor fails, the fd is still the caller's

    def __dealloc__(self):
        if self.state != NULL:
            with nogil:
                if self.state.started and not self.state.stopped:
                    device_stop(self.state)
                if not self.state.closed:
                    device_close(self.state)
                device_free(self.state)

    # ---- for Cython ----

    cdef vfs_request_t *device_pop(self, uint32_t opcode, uint64_t nodeid, int answerless) noexcept nogil:
        return link_pop(&self.state.link, opcode, nodeid, answerless)

    cdef int device_invalidate_inode(self, uint64_t nodeid, int64_t offset, int64_t length) noexcept nogil:
        return notice_inode(queue_notice, &self.state.connection, nodeid, offset, length)

    cdef int device_invalidate_entry(self, uint64_t parent, const char *name, uint32_t length) noexcept nogil:
        return notice_entry(queue_notice, &self.state.connection, parent, name, length)

    # ---- the lane ----

    @property
    def lane_fd(self):
        return self.state.link.peer

    def detach_lane_fd(self):
        cdef int fd = self.state.link.peer
        if fd < 0:
            raise ValueError("the lane's end of the socket pair was handed over before")
        self.state.link.peer = -1
        return fd

    def take(self, uint32_t opcode, uint64_t nodeid=0):
        cdef vfs_request_t *request = self.device_pop(opcode, nodeid, 0)
        return None if request == NULL else request_adopt(request, self.volume)

    def relay_now(self, timeout=None):
        cdef irp_link_t *link = &self.state.link
        if link.taken or link.lane_buffer == NULL:
            with nogil:
                link_relay_now(link)
        else:
            count_one(&link.relayed)

    def head(self):
        cdef device_t *device = self.state
        cdef vfs_request_t *request
        cdef vfs_request_t copy
        with nogil:
            pthread_mutex_lock(&device.link.header_lock)
            request = device.link.head
            if request != NULL:
                copy = request[0]
            pthread_mutex_unlock(&device.link.header_lock)
        if request == NULL:
            return None
        fields = {"operation": operation_name(copy.opcode), "opcode": copy.opcode, "nodeid": copy.nodeid,
                  "unique": copy.unique, "tid": copy.who.tid, "uid": copy.who.uid, "gid": copy.who.gid,
                  "group": copy.who.group}
        arguments: dict = copy.arguments
        fields["arguments"] = {name: value for name, value in arguments.items() if value}
        return fields

    def discard(self, uint32_t opcode, uint64_t nodeid=0):
        cdef vfs_request_t *request = self.device_pop(opcode, nodeid, 1)
        if request == NULL:
            return False
        request_free(request)
        return True

    # ---- life ----

    def start(self):
        cdef device_t *device = self.state
        cdef int error
        if device.started or device.closed:
            raise RuntimeError("a Device starts once")
        holds_connect(self.volume.stack.volume.holds, connection_calls(), &device.connection)
        device.readers.process = getpid()               # here, not earlier: the daemon may fork before
        device.started = 1
        error = device_start(device)
        if error:
            self.stop()
            raise_errno(error, "device threads")

    def abort(self):
        if self.state.started and not self.state.stopped:
            with nogil:
                refuse_all(&self.state.connection)      # readers go on, to refuse what comes
                link_let_go(&self.state.link)
                connection_end(&self.state.connection, 0)

    def stop(self):
        if self.state.started and not self.state.stopped:
            self.state.stopped = 1
            with nogil:
                device_stop(self.state)

    def close(self):
        self.stop()
        if not self.state.closed:
            self.state.closed = 1
            with nogil:
                device_close(self.state)

    @property
    def ready_fd(self):
        return self.state.readers.ready_event

    @property
    def ended_fd(self):
        return self.state.connection.ended_event

    @property
    def deadlock_fd(self):
        return self.state.readers.deadlock_event

    # ---- notifications ----

    def invalidate_inode(self, uint64_t nodeid, int64_t offset=0, int64_t length=0):
        if self.device_invalidate_inode(nodeid, offset, length) == -ENOMEM:
            raise MemoryError()

    def invalidate_entry(self, uint64_t parent, bytes name not None):
        cdef int error = self.device_invalidate_entry(parent, name, <uint32_t>len(name))
        if error == -ENOMEM:
            raise MemoryError()
        if error == -EINVAL:
            raise ValueError("a name has 1 to 255 bytes")

    def invalidate_all_entries(self):
        cdef fuse_out_header notice
        if load_uint(&self.state.readers.settings.kernel_minor) < 44:
            return False
        notice.len = sizeof(notice)
        notice.error = FUSE_NOTIFY_INC_EPOCH
        notice.unique = 0
        tell_kernel(&self.state.connection, <const char *>&notice, sizeof(notice))
        return True

    def flush_notifications(self, timeout=None):
        cdef connection_t *connection = &self.state.connection
        cdef int64_t limit = -1 if timeout is None else <int64_t>(<double>timeout * 1e9)
        cdef bint settled
        with nogil:
            settled = notices_flush(&connection.notifiers, limit)
        return bool(settled)

    # ---- what it is and what it did ----

    @property
    def max_write(self):
        return self.state.readers.settings.max_write

    @property
    def message_max(self):
        return self.state.link.message_max

    @property
    def negotiated(self):
        return load_long(&self.state.readers.settings.negotiated)

    @property
    def kernel_minor(self):
        return load_uint(&self.state.readers.settings.kernel_minor)

    @property
    def error(self):
        return self.state.connection.error if load_int(&self.state.connection.ended) else 0

    @property
    def ended(self):
        return bool(load_int(&self.state.connection.ended))

    @property
    def lane_gone(self):
        return bool(load_int(&self.state.link.lane_gone))

    @property
    def in_flight(self):
        pthread_mutex_lock(&self.state.connection.open_lock)
        count = self.state.connection.open.count
        pthread_mutex_unlock(&self.state.connection.open_lock)
        return count

    @property
    def headers(self):
        pthread_mutex_lock(&self.state.link.header_lock)
        count = self.state.link.headers
        pthread_mutex_unlock(&self.state.link.header_lock)
        return count

    @property
    def waiting(self):
        pthread_mutex_lock(&self.state.link.forward_lock)
        count = self.state.link.waiting.count
        pthread_mutex_unlock(&self.state.link.forward_lock)
        return count

    @property
    def threads(self):
        return load_int(&self.state.readers.count)

    @property
    def deadlocks(self):
        return load_count(&self.state.readers.deadlocks)

    @property
    def last_deadlock(self):
        cdef uint64_t last = load_count(&self.state.readers.last_deadlock)
        return (operation_name(last >> 32), last & 0xFFFFFFFF) if last else ("", 0)

    @property
    def malformed(self):
        return load_count(&self.state.readers.malformed)

    def counters(self):
        cdef readers_t *readers = &self.state.readers
        cdef int i
        lanes = {"irp": {}, "device": {}, "refused": {}}
        for i in range(WIRE_OPCODES):
            for lane, count in (("irp", load_count(&readers.forwarded[i])), ("device", load_count(&readers.served[i])),
                                ("refused", load_count(&readers.refused[i]))):
                if count:
                    lanes[lane][operation_name(i) if i else "OTHER"] = count
        return lanes
