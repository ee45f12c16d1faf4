"""The device: reads /dev/fuse, forwards to the IRP lane, serves what the lane cannot.

                      readers (1 to 16)                        the lane: trio, pyfuse3
    /dev/fuse ──read──► leader ── header queue + send() ──────────────► recv ─► handler pops its header
        ▲                 │  └─ socket full: a copy ─► forwarder ─────►            │
        │                 └─ STATX: stack ─► answer                                │
        ├─── relay_now() by the loop, before it waits; else the relay ◄── answer ◄─┘
        └─── notifier ◄── invalidations

Why so: pyfuse3 gives its handlers too little (no thread id, no flags, no request for read and write) and knows too few
operations; behind a socket pair it need not change. A SOCK_SEQPACKET pair keeps message boundaries as /dev/fuse does.

Concurrency
- No thread here holds the GIL, but a reader may take it inside the stack, around a Python callback. In particular the
  relay never does: pyfuse3 holds the GIL in a blocking writev to the socket that the relay empties.
- Answers: the lane's loop carries them itself when it is about to wait, which saves a change of threads; the relay
  thread looks every RELAY_TICK whether it still does.
- Leader and followers: one reader at a time reads. It keeps the lead while it only forwards and refuses, and gives it
  away before it runs the stack; if no other reader is idle it starts one. The lead is `leader` under lead_lock.
- Order: a header enters the queue and its message enters the socket under one forward_lock, so that both have one
  order; once a message had to wait, all later ones wait behind it. A message that waits is a copy; no reader ever
  blocks in send(). Only when WAITING_LIMIT bytes wait does the leader wait too: then the kernel keeps the rest.
- Each request that wants an answer is in `open` (under open_lock) from its reading to its answer; whoever takes it out
  answers it, so that no request is answered twice, and abort() can answer all that are left.
- Notifications are written by a thread of their own: the kernel makes them wait for locks that unanswered requests
  hold. stop() therefore first answers everything, with readers still refusing what comes, and only then joins it.
  (What stop() cannot help: killed by SIGKILL while such a notification waits, this process cannot end, /dev/fuse stays
  open, and callers hang until the mount is aborted, as root by `umount -f`. Names go by invalidate_all_entries where
  the kernel has it, attributes by a negative offset: neither takes a lock.)
- INTERRUPT is not acted on: the caller waits until the operation ends, and every operation here ends by itself.
- Lock order: forward_lock before header_lock; lead_lock, open_lock and notify_lock are taken alone. None is held
  across a system call that can block.
- What only one thread writes is read by others through atomic loads; settings are final before the first thread
  starts, those of INIT before the first message is forwarded.
"""

from libc.errno cimport (EAGAIN, ECONNABORTED, ECONNRESET, EINTR, EINVAL, EIO, ENOBUFS, ENODEV, ENOENT,
                         ENOMEM, ENOSYS, ENOTCONN, ENOTTY, EOPNOTSUPP, EPERM, EPIPE, EPROTO, errno)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.fcntl cimport F_GETFL, F_SETFL, O_NONBLOCK, fcntl
from posix.signal cimport sigset_t
from posix.time cimport CLOCK_MONOTONIC, nanosleep, timespec
from posix.unistd cimport _SC_PAGESIZE, close, getpid, read, sysconf, write

from stackfs.cext.includes.fuse_wire cimport *
from stackfs.cext.includes.pthread cimport *
from stackfs.cext.requests cimport Volume, request_adopt, request_free, request_new, request_run, vfs_request_t
from stackfs.cext.stack cimport FLT_VOLUME
from stackfs.cext.unique_set cimport unique_add, unique_remove, unique_set_t
from stackfs.cext.wire cimport *

import os
import time

from stackfs.cext.wire import operation_name

cdef extern from "<errno.h>" nogil:
    int EDEADLK

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN, POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef extern from "<sys/socket.h>" nogil:
    int AF_UNIX, SOCK_SEQPACKET, SOCK_CLOEXEC, SOL_SOCKET, SO_SNDBUF, SO_SNDBUFFORCE
    int MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, SHUT_RDWR
    int socketpair(int domain, int kind, int protocol, int *pair)
    int setsockopt(int fd, int level, int name, const void *value, uint32_t length)
    int getsockopt(int fd, int level, int name, void *value, uint32_t *length)
    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)
    int shutdown(int fd, int how)

cdef extern from *:
    """
    #define load_int(at)            __atomic_load_n(at, __ATOMIC_ACQUIRE)
    #define load_count(at)          __atomic_load_n(at, __ATOMIC_RELAXED)
    #define store_int(at, value)    __atomic_store_n(at, value, __ATOMIC_RELEASE)
    #define count_one(at)           ((void)__atomic_fetch_add(at, 1, __ATOMIC_RELAXED))

    /* `with gil` in a thread that Python did not start makes a new thread state every time: threading.local and
     * contextvars of a callback would not live from one request to the next. So a reader takes one before it first
     * runs the stack, and keeps it, without the GIL, until it ends. */
    static __thread PyThreadState *kept_thread_state;
    static __thread PyGILState_STATE kept_gil_state;

    static void python_attach(void)
    {
        if (kept_thread_state == NULL) {
            kept_gil_state = PyGILState_Ensure();
            kept_thread_state = PyEval_SaveThread();
        }
    }

    static void python_detach(void)
    {
        if (kept_thread_state != NULL) {
            PyEval_RestoreThread(kept_thread_state);
            kept_thread_state = NULL;
            PyGILState_Release(kept_gil_state);
        }
    }
    """
    int load_int(int *at) nogil
    uint64_t load_count(uint64_t *at) nogil
    void store_int(int *at, int value) nogil
    void count_one(uint64_t *at) nogil
    void python_attach() nogil
    void python_detach() nogil

cdef enum:
    READERS = 16
    LANE_BUFFER = 2 << 20                # SO_SNDBUF asked for; the kernel doubles it where it may
    LARGEST_WRITE = 1 << 20              # the kernel's own limit, fs.fuse.max_pages_limit = 256 pages
    SMALLEST_WRITE = 1 << 16             # a getxattr's answer must fit
    WAITING_LIMIT = 128 << 20            # bytes
    FORGETS_IN_A_MESSAGE = 2048          # one handler call: keeps the loop's longest step short
    LANE_INIT_UNIQUE = 1                 # odd, as no request's: libfuse's answer to our INIT
    RELAY_TICK = 2000000                 # nanoseconds
    RELAY_QUIET_TICKS = 25               # then the relay sleeps until there is something to answer
    SOCKET_OVERHEAD = 32                 # of SO_SNDBUF, not usable by a message

cdef struct queued_t:                    # a message that waits; its bytes follow
    queued_t *next
    uint64_t unique
    uint32_t length
    int answerless

cdef struct queue_t:
    queued_t *first
    queued_t *last
    uint64_t count
    uint64_t bytes

cdef struct inode_notice_t:
    fuse_out_header header
    fuse_notify_inval_inode_out body

cdef struct entry_notice_t:
    fuse_out_header header
    fuse_notify_inval_entry_out body
    char name[256]

cdef struct reader_t:
    device_t *device
    char *buffer
    pthread_t thread

cdef struct device_t:
    # settings
    FLT_VOLUME *volume
    int fd
    int lane                             # our end of the pair
    int peer                             # pyfuse3's end; -1: handed over
    int process
    int stop_event
    int ready_event
    int ended_event
    int deadlock_event
    uint32_t message_max
    uint32_t buffer_size
    wire_settings_t settings             # written by the reader that handles INIT
    wire_limits_t limits
    # the lead (lead_lock)
    pthread_mutex_t lead_lock
    pthread_cond_t lead_free
    int leader
    int idle
    int stopping                         # also read atomically
    int threads
    reader_t readers[READERS]
    int ended                            # atomic
    int error
    # requests without an answer (open_lock)
    pthread_mutex_t open_lock
    unique_set_t open
    int refusing                         # written under open_lock, also read atomically
    # to the lane (forward_lock; headers: header_lock)
    pthread_mutex_t forward_lock
    pthread_cond_t forward_changed       # something waits, or the forwarder shall end
    pthread_cond_t forward_room          # less waits, or nobody shall wait any more
    queue_t waiting
    int forward_stop
    int lane_gone
    pthread_mutex_t header_lock
    vfs_request_t *head
    vfs_request_t *tail
    uint64_t headers
    # notifications (notify_lock)
    pthread_mutex_t notify_lock
    pthread_cond_t notify_changed
    queue_t notices
    uint64_t notices_queued
    uint64_t notices_written
    int notify_stop
    # threads besides the readers
    pthread_t forwarder
    pthread_t notifier
    pthread_t relay
    pthread_mutex_t relay_lock
    pthread_cond_t relay_changed
    int relay_asleep, relay_stop         # atomic
    uint64_t relayed                     # atomic: how often the lane's loop carried its answers itself
    char *lane_buffer                    # the lane's loop's own, for that
    int has_forwarder, has_notifier, has_relay
    int started, stopped, closed
    # counters, atomic
    uint64_t forwarded[WIRE_OPCODES]
    uint64_t served[WIRE_OPCODES]
    uint64_t refused[WIRE_OPCODES]
    uint64_t malformed
    uint64_t deadlocks
    uint64_t last_deadlock               # opcode << 32 | thread id


# ---- queues of waiting messages (the caller holds the queue's lock) ----

cdef queued_t *queued_new(const char *data, uint32_t length) noexcept nogil:
    cdef queued_t *entry = <queued_t *>malloc(sizeof(queued_t) + length)
    if entry == NULL:
        return NULL
    memset(entry, 0, sizeof(queued_t))
    entry.length = length
    memcpy(entry + 1, data, length)
    return entry


cdef void queue_append(queue_t *queue, queued_t *entry) noexcept nogil:
    if queue.last == NULL:
        queue.first = entry
    else:
        queue.last.next = entry
    queue.last = entry
    queue.count += 1
    queue.bytes += entry.length


cdef queued_t *queue_take(queue_t *queue) noexcept nogil:
    cdef queued_t *entry = queue.first
    if entry == NULL:
        return NULL
    queue.first = entry.next
    if queue.first == NULL:
        queue.last = NULL
    queue.count -= 1
    queue.bytes -= entry.length
    return entry


cdef void queue_clear(queue_t *queue) noexcept nogil:
    cdef queued_t *entry = queue_take(queue)
    while entry != NULL:
        free(entry)
        entry = queue_take(queue)


# ---- answers ----

cdef void write_error(device_t *device, uint64_t unique, int error) noexcept nogil:
    cdef fuse_out_header header
    header.len = sizeof(header)
    header.error = -error
    header.unique = unique
    while write(device.fd, &header, sizeof(header)) < 0 and errno == EINTR:
        pass


cdef void write_answer(device_t *device, const char *data, size_t length) noexcept nogil:
    """Write an answer whose request was just taken out of `open`.

    ENOENT: the kernel does not wait for it any more. An answer the kernel does not accept (too long for the caller's
    buffer, an error number it does not know) would leave the caller waiting for ever: it gets EIO instead.
    """
    cdef int error
    while write(device.fd, data, length) < 0:
        error = errno
        if error == EINTR:
            continue
        if error != ENOENT and error != ENODEV and error != ECONNABORTED and error != EPERM:
            write_error(device, (<const fuse_out_header *>data).unique, EIO)
        return


cdef int take_open(device_t *device, uint64_t unique) noexcept nogil:
    """1: the caller is the one who answers."""
    cdef int mine
    pthread_mutex_lock(&device.open_lock)
    mine = unique_remove(&device.open, unique)
    pthread_mutex_unlock(&device.open_lock)
    return mine


cdef void answer_error(device_t *device, uint64_t unique, int error) noexcept nogil:
    if take_open(device, unique):
        write_error(device, unique, error)


cdef void abort_requests(device_t *device) noexcept nogil:
    """Answer all that is unanswered, and from now on refuse."""
    cdef unique_set_t left
    cdef uint32_t i
    pthread_mutex_lock(&device.open_lock)
    store_int(&device.refusing, 1)
    left = device.open
    memset(&device.open, 0, sizeof(unique_set_t))
    pthread_mutex_unlock(&device.open_lock)
    for i in range(left.capacity):
        if left.slots[i]:
            write_error(device, left.slots[i], ECONNABORTED)
    free(left.slots)
    pthread_mutex_lock(&device.forward_lock)
    pthread_cond_broadcast(&device.forward_room)
    pthread_mutex_unlock(&device.forward_lock)


# ---- the end of the connection ----

cdef void stop_readers(device_t *device) noexcept nogil:
    pthread_mutex_lock(&device.lead_lock)
    store_int(&device.stopping, 1)
    pthread_cond_broadcast(&device.lead_free)
    pthread_mutex_unlock(&device.lead_lock)
    eventfd_write(device.stop_event, 1)


cdef void connection_ended(device_t *device, int error) noexcept nogil:
    """error 0: unmounted or aborted. The kernel has failed all requests by then; the other threads wait for stop()."""
    device.error = error
    store_int(&device.ended, 1)
    stop_readers(device)
    eventfd_write(device.ended_event, 1)


# ---- to the lane ----

cdef void push_header(device_t *device, vfs_request_t *request) noexcept nogil:
    request.next = NULL
    pthread_mutex_lock(&device.header_lock)
    if device.tail == NULL:
        device.head = request
    else:
        device.tail.next = request
    device.tail = request
    device.headers += 1
    pthread_mutex_unlock(&device.header_lock)


cdef void take_back_header(device_t *device, vfs_request_t *request) noexcept nogil:
    """Undo push_header: its message could not be sent, so no handler looks for it, and it is still the last."""
    cdef vfs_request_t *before
    pthread_mutex_lock(&device.header_lock)
    if device.head == request:
        device.head = NULL
        device.tail = NULL
    else:
        before = device.head
        while before.next != request:
            before = before.next
        before.next = NULL
        device.tail = before
    device.headers -= 1
    pthread_mutex_unlock(&device.header_lock)
    request_free(request)


cdef int lane_is_full(int error) noexcept nogil:
    return error == EAGAIN or error == ENOBUFS or error == ENOMEM or error == EINTR


cdef int forward(device_t *device, vfs_request_t *request, const char *data, uint32_t length,
                 int answerless) noexcept nogil:
    """Queue the header and send the message, or let it wait. Owns the request. 0, or the errno to answer with."""
    cdef queued_t *entry
    cdef int error = 0
    pthread_mutex_lock(&device.forward_lock)
    while (device.waiting.bytes > WAITING_LIMIT and not device.lane_gone
           and not load_int(&device.refusing) and not load_int(&device.stopping)):
        pthread_cond_wait(&device.forward_room, &device.forward_lock)
    if device.lane_gone:
        pthread_mutex_unlock(&device.forward_lock)
        request_free(request)
        return EIO
    push_header(device, request)
    if device.waiting.first == NULL:
        if send(device.lane, data, length, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0:
            pthread_mutex_unlock(&device.forward_lock)
            if load_int(&device.relay_asleep):
                wake_relay(device)
            return 0
        error = errno
    if error == 0 or lane_is_full(error):
        entry = queued_new(data, length)
        if entry != NULL:
            entry.unique = request.unique
            entry.answerless = answerless
            queue_append(&device.waiting, entry)
            pthread_cond_signal(&device.forward_changed)
            pthread_mutex_unlock(&device.forward_lock)
            if load_int(&device.relay_asleep):
                wake_relay(device)
            return 0
        error = ENOMEM
    else:
        if error == EPIPE or error == ECONNRESET or error == ENOTCONN:
            device.lane_gone = 1
        error = EIO
    take_back_header(device, request)
    pthread_mutex_unlock(&device.forward_lock)
    return error


cdef void forward_message(device_t *device, wire_message_t *message) noexcept nogil:
    cdef fuse_in_header *header = message.header
    cdef vfs_request_t *request = request_new(device.volume)
    cdef int answerless = message.rule.answerless
    cdef uint64_t unique = header.unique
    cdef uint32_t length
    cdef const char *data
    cdef int error = ENOMEM
    if request != NULL:
        wire_decode(message, device.limits.setxattr_ext, request)
        request.nowait = 1
        request.name = NULL                             # the message does not outlive this call
        request.name2 = NULL
        data = wire_for_libfuse(message, device.limits.setxattr_ext, &length)
        error = EIO
        if length <= device.message_max:
            error = forward(device, request, data, length, answerless)
        else:
            request_free(request)
    if error and not answerless:
        answer_error(device, unique, error)


cdef void forward_forgets(device_t *device, wire_message_t *message) noexcept nogil:
    """A BATCH_FORGET can hold as many nodes as fit into our buffer: in parts, each with a header of its own."""
    cdef fuse_batch_forget_in *batch = <fuse_batch_forget_in *>message.body
    cdef uint32_t left = batch.count
    cdef char *start = <char *>message.header
    cdef size_t fixed = sizeof(fuse_in_header) + sizeof(fuse_batch_forget_in)
    cdef wire_message_t part = message[0]
    cdef fuse_in_header header = message.header[0]
    cdef uint32_t count
    while left:
        count = min(left, <uint32_t>FORGETS_IN_A_MESSAGE)
        part.header = <fuse_in_header *>start
        part.header[0] = header
        part.length = <uint32_t>(fixed + count * sizeof(fuse_forget_one))
        part.header.len = part.length
        part.header.total_extlen = 0
        part.body = start + sizeof(fuse_in_header)
        (<fuse_batch_forget_in *>part.body).count = count
        forward_message(device, &part)
        start += count * sizeof(fuse_forget_one)        # the next header overwrites nodes that have been sent
        left -= count


cdef void *forwarder_main(void *argument) noexcept nogil:
    """Sends the messages that had to wait, in order. An entry stays first until it is sent: later ones wait for it."""
    cdef device_t *device = <device_t *>argument
    cdef queued_t *entry
    cdef pollfd fds[2]
    cdef int error
    pthread_setname_np(pthread_self(), "stackfs-fwd")
    fds[0].fd = device.lane
    fds[0].events = <short>POLLOUT
    fds[1].fd = device.stop_event
    fds[1].events = <short>POLLIN
    pthread_mutex_lock(&device.forward_lock)
    while not device.forward_stop:
        entry = device.waiting.first
        if entry == NULL:
            pthread_cond_wait(&device.forward_changed, &device.forward_lock)
            continue
        pthread_mutex_unlock(&device.forward_lock)
        error = 0
        if send(device.lane, entry + 1, entry.length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            error = errno
            if error == EAGAIN:
                poll(fds, 2, -1)
            elif lane_is_full(error):
                poll(&fds[1], 1, 10)                    # the kernel lacks memory, and no poll tells when that ends
        pthread_mutex_lock(&device.forward_lock)
        if error and lane_is_full(error):
            continue
        if error:
            device.lane_gone = 1                        # its header stays: no handler will look for it
        queue_take(&device.waiting)
        if device.lane_gone and not entry.answerless:
            answer_error(device, entry.unique, EIO)
        free(entry)
        pthread_cond_broadcast(&device.forward_room)
    pthread_mutex_unlock(&device.forward_lock)
    return NULL


# ---- from the lane ----

cdef void relay_answer(device_t *device, char *buffer, size_t size, ssize_t length) noexcept nogil:
    """One message of libfuse's: an answer for the kernel, most often."""
    cdef fuse_out_header *header = <fuse_out_header *>buffer
    if <size_t>length < sizeof(fuse_out_header):
        return
    if header.unique == 0:
        if <size_t>length <= size:
            queue_notice(device, buffer, <uint32_t>length)
    elif header.unique == LANE_INIT_UNIQUE:
        pass
    elif not take_open(device, header.unique):
        pass                                            # aborted meanwhile
    elif <size_t>length > size:
        write_error(device, header.unique, EIO)
    else:
        if header.error == -ENOSYS:
            header.error = -EOPNOTSUPP                  # the kernel would never send this operation again
        write_answer(device, buffer, <size_t>length)


cdef int nothing_open(device_t *device) noexcept nogil:
    cdef int nothing
    pthread_mutex_lock(&device.open_lock)
    nothing = device.open.count == 0
    pthread_mutex_unlock(&device.open_lock)
    return nothing


cdef int relay_all(device_t *device, char *buffer) noexcept nogil:
    """Carry to the kernel whatever libfuse has answered. 0: the lane's end is closed. Never waits."""
    cdef size_t size = device.buffer_size
    cdef ssize_t length
    while True:
        length = recv(device.lane, buffer, size, MSG_TRUNC | MSG_DONTWAIT)
        if length > 0:
            relay_answer(device, buffer, size, length)
            if nothing_open(device):
                return 1                                # that was the last one
        elif length == 0:
            pthread_mutex_lock(&device.forward_lock)
            device.lane_gone = 1
            pthread_cond_broadcast(&device.forward_room)
            pthread_mutex_unlock(&device.forward_lock)
            return 0
        elif errno != EINTR:
            return errno == EAGAIN


cdef void *relay_main(void *argument) noexcept nogil:
    """Stands in for the lane's loop, which carries its answers itself (relay_now) whenever it is about to wait: takes
    over when the loop has not come to that for a tick, because a callback keeps it or because libfuse waits, with the
    GIL, for room in the socket. Sleeps while nothing is unanswered. Must never need the GIL: see the docstring."""
    cdef device_t *device = <device_t *>argument
    cdef char *buffer = <char *>malloc(device.buffer_size)
    cdef timespec tick
    cdef uint64_t seen
    cdef int alive = buffer != NULL
    cdef int quiet = 0                                  # ticks in a row with nothing unanswered
    tick.tv_sec = 0
    tick.tv_nsec = RELAY_TICK
    pthread_setname_np(pthread_self(), "stackfs-relay")
    while alive:
        seen = load_count(&device.relayed)
        nanosleep(&tick, NULL)
        if load_count(&device.relayed) == seen or load_int(&device.relay_stop):
            alive = relay_all(device, buffer)
        quiet = quiet + 1 if nothing_open(device) else 0
        if quiet > RELAY_QUIET_TICKS:
            pthread_mutex_lock(&device.relay_lock)
            store_int(&device.relay_asleep, 1)
            while nothing_open(device) and alive and not load_int(&device.relay_stop):
                pthread_cond_wait(&device.relay_changed, &device.relay_lock)
            store_int(&device.relay_asleep, 0)
            pthread_mutex_unlock(&device.relay_lock)
            quiet = 0
        if load_int(&device.relay_stop):
            relay_all(device, buffer)
            break
    free(buffer)
    return NULL


cdef void wake_relay(device_t *device) noexcept nogil:
    pthread_mutex_lock(&device.relay_lock)
    pthread_cond_signal(&device.relay_changed)
    pthread_mutex_unlock(&device.relay_lock)


# ---- notifications ----

cdef int queue_notice(device_t *device, const char *data, uint32_t length) noexcept nogil:
    cdef queued_t *entry = queued_new(data, length)
    if entry == NULL:
        return -ENOMEM
    pthread_mutex_lock(&device.notify_lock)
    if device.notify_stop or load_int(&device.ended):
        pthread_mutex_unlock(&device.notify_lock)
        free(entry)
        return -ENODEV
    queue_append(&device.notices, entry)
    device.notices_queued += 1
    pthread_cond_broadcast(&device.notify_changed)
    pthread_mutex_unlock(&device.notify_lock)
    return 0


cdef void *notifier_main(void *argument) noexcept nogil:
    cdef device_t *device = <device_t *>argument
    cdef queued_t *entry
    pthread_setname_np(pthread_self(), "stackfs-notify")
    pthread_mutex_lock(&device.notify_lock)
    while not device.notify_stop:
        entry = queue_take(&device.notices)
        if entry == NULL:
            pthread_cond_wait(&device.notify_changed, &device.notify_lock)
            continue
        pthread_mutex_unlock(&device.notify_lock)
        # ENOENT: the kernel does not have it cached. Any other error ends with the connection.
        while write(device.fd, entry + 1, entry.length) < 0 and errno == EINTR:
            pass
        free(entry)
        pthread_mutex_lock(&device.notify_lock)
        device.notices_written += 1
        pthread_cond_broadcast(&device.notify_changed)
    pthread_cond_broadcast(&device.notify_changed)
    pthread_mutex_unlock(&device.notify_lock)
    return NULL


# ---- reading ----

cdef ssize_t read_message(device_t *device, char *buffer) noexcept nogil:
    """The next message; 0: there will be none. Reads first: under load that saves a poll for each message."""
    cdef pollfd fds[2]
    cdef ssize_t length
    cdef int error
    while not load_int(&device.stopping):
        length = read(device.fd, buffer, device.buffer_size)
        if length > 0:
            return length
        error = errno if length < 0 else ENODEV
        if error == EAGAIN:
            fds[0].fd = device.fd
            fds[0].events = <short>POLLIN
            fds[1].fd = device.stop_event
            fds[1].events = <short>POLLIN
            poll(fds, 2, -1)
        elif error == ENODEV or error == ECONNABORTED:
            connection_ended(device, 0)
        elif error != EINTR and error != ENOENT:        # ENOENT: the request was withdrawn as we read it
            connection_ended(device, error)
    return 0


cdef void initialise(device_t *device, wire_message_t *message) noexcept nogil:
    """INIT: open libfuse's session with one of our own making, then answer the kernel."""
    cdef wire_init_answer_t answer
    cdef wire_init_request_t opening
    cdef uint64_t unique = message.header.unique
    if device.settings.negotiated:                      # the kernel does not do this
        write_error(device, unique, EIO)
        return
    if not wire_init_answer(message, &device.settings, &answer):
        write_error(device, unique, EPROTO)
        connection_ended(device, EPROTO)
        return
    if device.settings.negotiated:
        device.limits.setxattr_ext = (device.settings.negotiated & FUSE_SETXATTR_EXT) != 0
        wire_init_for_libfuse(message, LANE_INIT_UNIQUE, &opening)
        if send(device.lane, &opening, sizeof(opening), MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            write_error(device, unique, EIO)
            connection_ended(device, EIO)
            return
    write_answer(device, <const char *>&answer, answer.header.len)
    if device.settings.negotiated:
        eventfd_write(device.ready_event, 1)


cdef int refused_as_own(device_t *device, wire_message_t *message) noexcept nogil:
    """A request of this process, made by a callback or a task, would wait for the thread that waits for it."""
    cdef fuse_in_header *header = message.header
    if header.pid == 0 or tgkill(device.process, <int>header.pid, 0) != 0:
        return 0
    device.last_deadlock = <uint64_t>header.opcode << 32 | header.pid
    count_one(&device.deadlocks)
    eventfd_write(device.deadlock_event, 1)
    return 1


cdef int admit(device_t *device, uint64_t unique) noexcept nogil:
    """Enter the request among those that will be answered: 0, or why it cannot be."""
    cdef int error = 0
    pthread_mutex_lock(&device.open_lock)
    if device.refusing:
        error = ECONNABORTED
    elif unique_add(&device.open, unique) < 0:
        error = ENOMEM
    pthread_mutex_unlock(&device.open_lock)
    return error


cdef int handle(device_t *device, char *buffer, size_t length, wire_message_t *message) noexcept nogil:
    """Forward, refuse or ignore a message; 1: the stack is to be run for it, in this thread."""
    cdef fuse_in_header *header = <fuse_in_header *>buffer
    cdef int error = wire_check(buffer, length, &device.limits, message)
    cdef const wire_rule_t *rule = message.rule
    cdef uint32_t index
    if length < sizeof(fuse_in_header):
        count_one(&device.malformed)
        return 0
    index = header.opcode if header.opcode < WIRE_OPCODES else 0
    if error:
        count_one(&device.malformed)
        if header.unique and (rule == NULL or not rule.answerless):
            write_error(device, header.unique, error)
        return 0
    if rule != NULL and rule.treatment == WIRE_INIT:
        initialise(device, message)
        return 0
    if rule != NULL and rule.treatment == WIRE_DESTROY:
        write_error(device, header.unique, 0)
        connection_ended(device, 0)
        return 0
    if rule != NULL and rule.treatment == WIRE_IGNORE:
        count_one(&device.served[index])
        return 0
    if rule == NULL or rule.treatment == WIRE_REFUSE:
        error = ENOTTY if header.opcode == FUSE_IOCTL else EOPNOTSUPP
    elif not device.settings.negotiated:
        error = EIO
    elif not rule.cleanup and refused_as_own(device, message):
        error = EDEADLK
    elif rule.answerless:
        error = ECONNABORTED if load_int(&device.refusing) else 0
    else:
        error = admit(device, header.unique)
    if error:
        count_one(&device.refused[index])
        if rule == NULL or not rule.answerless:
            write_error(device, header.unique, error)
        return 0
    if rule.treatment == WIRE_SERVE:
        return 1
    count_one(&device.forwarded[index])
    if header.opcode == FUSE_BATCH_FORGET:
        forward_forgets(device, message)
    else:
        forward_message(device, message)
    return 0


cdef void serve(device_t *device, wire_message_t *message) noexcept nogil:
    """Run the stack for a request in this thread, which may block, and answer it. STATX is the only one so far."""
    cdef wire_statx_answer_t answer
    cdef vfs_request_t *request = request_new(device.volume)
    count_one(&device.served[message.header.opcode])
    if request == NULL:
        answer_error(device, message.header.unique, ENOMEM)
        return
    python_attach()
    wire_decode(message, device.limits.setxattr_ext, request)
    request_run(request)
    wire_statx_answer(request, &answer)
    if take_open(device, request.unique):
        write_answer(device, <const char *>&answer, answer.header.len)
    request_free(request)


# ---- leader and followers ----

cdef int start_reader(device_t *device) noexcept nogil:
    """With lead_lock held. 0, or an errno: the readers there are go on without one more."""
    cdef reader_t *reader
    cdef int error
    if device.threads == READERS or device.stopping:
        return EAGAIN
    reader = &device.readers[device.threads]
    reader.device = device
    reader.buffer = <char *>malloc(device.buffer_size)
    if reader.buffer == NULL:
        return ENOMEM
    error = start_thread(&reader.thread, reader_main, reader)
    if error:
        free(reader.buffer)
        reader.buffer = NULL
        return error
    store_int(&device.threads, device.threads + 1)
    return 0


cdef int take_lead(device_t *device) noexcept nogil:
    """Wait for the lead. 0: the end has come."""
    cdef int mine
    pthread_mutex_lock(&device.lead_lock)
    while device.leader and not device.stopping:
        device.idle += 1
        pthread_cond_wait(&device.lead_free, &device.lead_lock)
        device.idle -= 1
    mine = not device.stopping
    if mine:
        device.leader = 1
    pthread_mutex_unlock(&device.lead_lock)
    return mine


cdef void give_lead(device_t *device) noexcept nogil:
    """See to it that another thread reads; if there can be none, the first reader that is done will."""
    pthread_mutex_lock(&device.lead_lock)
    device.leader = 0
    if device.idle:
        pthread_cond_signal(&device.lead_free)
    else:
        start_reader(device)
    pthread_mutex_unlock(&device.lead_lock)


cdef void *reader_main(void *argument) noexcept nogil:
    cdef reader_t *reader = <reader_t *>argument
    cdef device_t *device = reader.device
    cdef wire_message_t message
    cdef ssize_t length
    pthread_setname_np(pthread_self(), "stackfs-read")
    while take_lead(device):
        while True:
            length = read_message(device, reader.buffer)
            if length <= 0 or handle(device, reader.buffer, <size_t>length, &message):
                break
        if length <= 0:
            break
        give_lead(device)
        serve(device, &message)
    python_detach()
    return NULL


# ---- setting up ----

cdef int start_thread(pthread_t *thread, void *(*main)(void *) noexcept nogil, void *argument) noexcept nogil:
    """A thread that blocks every signal: signals are the main thread's."""
    cdef sigset_t all_signals, before
    cdef int error
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &before)
    error = pthread_create(thread, NULL, main, argument)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return error


cdef uint32_t enlarge(int fd) noexcept nogil:
    """Give a socket the largest send buffer allowed; returns its size."""
    cdef int wanted = LANE_BUFFER
    cdef int got = 0
    cdef uint32_t length = sizeof(int)
    if setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &wanted, sizeof(int)) < 0:
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof(int))
    getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &got, &length)
    return <uint32_t>got


cdef int init_condition(pthread_cond_t *condition) noexcept nogil:
    cdef pthread_condattr_t attributes
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(condition, &attributes)
    return pthread_condattr_destroy(&attributes)


cdef device_t *device_new() noexcept nogil:
    cdef device_t *device = <device_t *>calloc(1, sizeof(device_t))
    if device == NULL:
        return NULL
    device.fd = device.lane = device.peer = -1
    device.stop_event = device.ready_event = device.ended_event = device.deadlock_event = -1
    pthread_mutex_init(&device.lead_lock, NULL)
    pthread_mutex_init(&device.open_lock, NULL)
    pthread_mutex_init(&device.forward_lock, NULL)
    pthread_mutex_init(&device.header_lock, NULL)
    pthread_mutex_init(&device.notify_lock, NULL)
    pthread_mutex_init(&device.relay_lock, NULL)
    init_condition(&device.relay_changed)
    init_condition(&device.lead_free)
    init_condition(&device.forward_changed)
    init_condition(&device.forward_room)
    init_condition(&device.notify_changed)
    return device


cdef int start_threads(device_t *device) noexcept nogil:
    """0, or an errno; device_stop and device_close join those that did start."""
    cdef int error = start_thread(&device.relay, relay_main, device)
    device.has_relay = not error
    if not error:
        error = start_thread(&device.forwarder, forwarder_main, device)
        device.has_forwarder = not error
    if not error:
        error = start_thread(&device.notifier, notifier_main, device)
        device.has_notifier = not error
    if not error:
        pthread_mutex_lock(&device.lead_lock)
        error = start_reader(device)
        if not error:
            start_reader(device)                        # one to read, one to take over
        pthread_mutex_unlock(&device.lead_lock)
    return error


cdef void device_stop(device_t *device) noexcept nogil:
    """The order matters: readers refuse what still comes while the notifier is joined, for it may wait for that."""
    cdef int i
    abort_requests(device)
    pthread_mutex_lock(&device.notify_lock)
    device.notify_stop = 1
    queue_clear(&device.notices)
    pthread_cond_broadcast(&device.notify_changed)
    pthread_mutex_unlock(&device.notify_lock)
    if device.has_notifier:
        pthread_join(device.notifier, NULL)
    stop_readers(device)
    pthread_mutex_lock(&device.forward_lock)
    device.forward_stop = 1
    pthread_cond_broadcast(&device.forward_changed)
    pthread_cond_broadcast(&device.forward_room)
    pthread_mutex_unlock(&device.forward_lock)
    for i in range(device.threads):
        pthread_join(device.readers[i].thread, NULL)
    if device.has_forwarder:
        pthread_join(device.forwarder, NULL)


cdef void close_fd(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
    fd[0] = -1


cdef void device_close(device_t *device) noexcept nogil:
    """After device_stop, or before start: end the relay, close what is open."""
    if device.has_relay:
        shutdown(device.lane, SHUT_RDWR)
        store_int(&device.relay_stop, 1)
        wake_relay(device)
        pthread_join(device.relay, NULL)
    close_fd(&device.peer)
    close_fd(&device.lane)
    close_fd(&device.fd)
    close_fd(&device.stop_event)
    close_fd(&device.ready_event)
    close_fd(&device.ended_event)
    close_fd(&device.deadlock_event)


cdef void device_free(device_t *device) noexcept nogil:
    cdef vfs_request_t *request = device.head
    cdef vfs_request_t *following
    cdef int i
    while request != NULL:
        following = request.next
        request_free(request)
        request = following
    queue_clear(&device.waiting)
    queue_clear(&device.notices)
    free(device.open.slots)
    free(device.lane_buffer)
    for i in range(READERS):
        free(device.readers[i].buffer)
    pthread_mutex_destroy(&device.lead_lock)
    pthread_mutex_destroy(&device.open_lock)
    pthread_mutex_destroy(&device.forward_lock)
    pthread_mutex_destroy(&device.header_lock)
    pthread_mutex_destroy(&device.notify_lock)
    pthread_mutex_destroy(&device.relay_lock)
    pthread_cond_destroy(&device.relay_changed)
    pthread_cond_destroy(&device.lead_free)
    pthread_cond_destroy(&device.forward_changed)
    pthread_cond_destroy(&device.forward_room)
    pthread_cond_destroy(&device.notify_changed)
    free(device)


cdef object raise_errno(int error, str what):
    raise OSError(error, f"{what}: {os.strerror(error)}")


cdef class Device:
    """One FUSE connection. Owns the fd from the constructor on (see device.pyi for start and end)."""

    def __cinit__(self, int fd, Volume volume not None, *, uint32_t max_write=0, bint posix_acl=True,
                  bint cache_symlinks=True, bint direct_io_allow_mmap=True):
        cdef device_t *device = device_new()
        cdef int pair[2]
        cdef uint32_t buffer, page = <uint32_t>sysconf(_SC_PAGESIZE)
        cdef uint64_t wanted
        if device == NULL:
            raise MemoryError()
        self.state = device
        self.volume = volume
        device.volume = &volume.stack.volume
        if fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0:
            raise_errno(errno, "the FUSE device")
        if socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0:
            raise_errno(errno, "socket pair to the IRP lane")
        device.lane = pair[0]
        device.peer = pair[1]
        buffer = min(enlarge(pair[0]), enlarge(pair[1]))
        if buffer < SMALLEST_WRITE + page + SOCKET_OVERHEAD:
            raise_errno(ENOBUFS, f"net.core.wmem_max allows {buffer} bytes; set it to 212992 or more")
        device.settings.max_write = min(<uint32_t>LARGEST_WRITE, buffer - SOCKET_OVERHEAD - page) // page * page
        if max_write:
            device.settings.max_write = min(device.settings.max_write,
                                            max(max_write // page * page, <uint32_t>SMALLEST_WRITE))
        device.limits.max_write = device.settings.max_write
        device.settings.page_size = page
        device.buffer_size = device.settings.max_write + page
        device.message_max = buffer - SOCKET_OVERHEAD
        wanted = (FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_AUTO_INVAL_DATA
                  | FUSE_DO_READDIRPLUS | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES
                  | FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT | FUSE_INIT_EXT | FUSE_CREATE_SUPP_GROUP
                  | FUSE_NO_EXPORT_SUPPORT)
        if posix_acl:
            wanted |= FUSE_POSIX_ACL
        if cache_symlinks:
            wanted |= FUSE_CACHE_SYMLINKS
        if direct_io_allow_mmap:
            wanted |= FUSE_DIRECT_IO_ALLOW_MMAP
        device.settings.wanted = wanted
        device.stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        device.ready_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        device.ended_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        device.deadlock_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if min(device.stop_event, device.ready_event, device.ended_event, device.deadlock_event) < 0:
            raise_errno(errno, "eventfd")
        device.fd = fd                                  # last: when the constructor fails, the fd is still the caller's

    def __dealloc__(self):
        if self.state != NULL:
            with nogil:
                if self.state.started and not self.state.stopped:
                    device_stop(self.state)
                if not self.state.closed:
                    device_close(self.state)
                device_free(self.state)

    # ---- for Cython ----

    cdef vfs_request_t *device_pop(self, uint32_t opcode, uint64_t nodeid) noexcept nogil:
        cdef device_t *device = self.state
        cdef vfs_request_t *request
        pthread_mutex_lock(&device.header_lock)
        request = device.head
        if request != NULL and wire_same_handler(request.opcode, opcode) and (not nodeid or request.nodeid == nodeid):
            device.head = request.next
            if device.head == NULL:
                device.tail = NULL
            device.headers -= 1
            request.next = NULL
        else:
            request = NULL
        pthread_mutex_unlock(&device.header_lock)
        return request

    cdef int device_invalidate_inode(self, uint64_t nodeid, int64_t offset, int64_t length) noexcept nogil:
        cdef inode_notice_t notice
        notice.header.len = sizeof(notice)
        notice.header.error = FUSE_NOTIFY_INVAL_INODE
        notice.header.unique = 0
        notice.body.ino = nodeid
        notice.body.off = offset
        notice.body.len = length
        return queue_notice(self.state, <const char *>&notice, sizeof(notice))

    cdef int device_invalidate_entry(self, uint64_t parent, const char *name, uint32_t length) noexcept nogil:
        cdef entry_notice_t notice
        if length == 0 or length > 255:
            return -EINVAL
        memset(&notice, 0, sizeof(notice))
        notice.header.len = <uint32_t>(sizeof(fuse_out_header) + sizeof(fuse_notify_inval_entry_out)) + length + 1
        notice.header.error = FUSE_NOTIFY_INVAL_ENTRY
        notice.body.parent = parent
        notice.body.namelen = length
        notice.body.flags = FUSE_EXPIRE_ONLY
        memcpy(notice.name, name, length)
        return queue_notice(self.state, <const char *>&notice, notice.header.len)

    # ---- the lane ----

    @property
    def lane_fd(self):
        return self.state.peer

    def detach_lane_fd(self):
        cdef int fd = self.state.peer
        if fd < 0:
            raise ValueError("the lane's end of the socket pair was handed over before")
        self.state.peer = -1
        return fd

    def take(self, uint32_t opcode, uint64_t nodeid=0):
        cdef vfs_request_t *request = self.device_pop(opcode, nodeid)
        return None if request == NULL else request_adopt(request, self.volume)

    def relay_now(self):
        cdef device_t *device = self.state
        if device.lane_buffer == NULL:
            device.lane_buffer = <char *>malloc(device.buffer_size)
            if device.lane_buffer == NULL:
                return                                  # the relay thread does it
        count_one(&device.relayed)
        if not nothing_open(device):
            with nogil:
                relay_all(device, device.lane_buffer)

    def head(self):
        cdef device_t *device = self.state
        cdef vfs_request_t *request
        cdef vfs_request_t copy
        with nogil:
            pthread_mutex_lock(&device.header_lock)
            request = device.head
            if request != NULL:
                copy = request[0]
            pthread_mutex_unlock(&device.header_lock)
        if request == NULL:
            return None
        fields = {"operation": operation_name(copy.opcode), "opcode": copy.opcode, "nodeid": copy.nodeid,
                  "unique": copy.unique, "tid": copy.who.tid, "uid": copy.who.uid, "gid": copy.who.gid,
                  "group": copy.who.group}
        arguments: dict = copy.arguments
        fields["arguments"] = {name: value for name, value in arguments.items() if value}
        return fields

    def discard(self, uint32_t opcode, uint64_t nodeid=0):
        cdef vfs_request_t *request = self.device_pop(opcode, nodeid)
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
        device.process = getpid()                       # here, not earlier: the daemon may fork before
        device.started = 1
        error = start_threads(device)
        if error:
            self.stop()
            raise_errno(error, "device threads")

    def abort(self):
        if self.state.started and not self.state.stopped:
            with nogil:
                abort_requests(self.state)
                store_int(&self.state.ended, 1)         # readers go on, to refuse what comes
                eventfd_write(self.state.ended_event, 1)

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
        return self.state.ready_event

    @property
    def ended_fd(self):
        return self.state.ended_event

    @property
    def deadlock_fd(self):
        return self.state.deadlock_event

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
        if self.state.settings.kernel_minor < 44:
            return False
        notice.len = sizeof(notice)
        notice.error = FUSE_NOTIFY_INC_EPOCH
        notice.unique = 0
        if queue_notice(self.state, <const char *>&notice, sizeof(notice)) == -ENOMEM:
            raise MemoryError()
        return True

    def flush_notifications(self, timeout=None):
        cdef device_t *device = self.state
        cdef timespec until
        cdef double end = 0
        cdef bint forever = timeout is None
        cdef uint64_t target
        cdef int written
        if not forever:
            end = time.monotonic() + <double>timeout
            until.tv_sec = <long>end
            until.tv_nsec = <long>((end - until.tv_sec) * 1e9)
        with nogil:
            pthread_mutex_lock(&device.notify_lock)
            target = device.notices_queued
            while device.notices_written < target and not device.notify_stop and device.started:
                if forever:
                    pthread_cond_wait(&device.notify_changed, &device.notify_lock)
                elif pthread_cond_timedwait(&device.notify_changed, &device.notify_lock, &until):
                    break
            written = device.notices_written >= target
            pthread_mutex_unlock(&device.notify_lock)
        return bool(written)

    # ---- what it is and what it did ----

    @property
    def max_write(self):
        return self.state.settings.max_write

    @property
    def message_max(self):
        return self.state.message_max

    @property
    def negotiated(self):
        return self.state.settings.negotiated

    @property
    def kernel_minor(self):
        return self.state.settings.kernel_minor

    @property
    def error(self):
        return self.state.error if load_int(&self.state.ended) else 0

    @property
    def ended(self):
        return bool(load_int(&self.state.ended))

    @property
    def lane_gone(self):
        return bool(load_int(&self.state.lane_gone))

    @property
    def in_flight(self):
        pthread_mutex_lock(&self.state.open_lock)
        count = self.state.open.count
        pthread_mutex_unlock(&self.state.open_lock)
        return count

    @property
    def headers(self):
        pthread_mutex_lock(&self.state.header_lock)
        count = self.state.headers
        pthread_mutex_unlock(&self.state.header_lock)
        return count

    @property
    def waiting(self):
        pthread_mutex_lock(&self.state.forward_lock)
        count = self.state.waiting.count
        pthread_mutex_unlock(&self.state.forward_lock)
        return count

    @property
    def threads(self):
        return load_int(&self.state.threads)

    @property
    def deadlocks(self):
        return load_count(&self.state.deadlocks)

    @property
    def last_deadlock(self):
        cdef uint64_t last = load_count(&self.state.last_deadlock)
        return (operation_name(last >> 32), last & 0xFFFFFFFF) if last else ("", 0)

    @property
    def malformed(self):
        return load_count(&self.state.malformed)

    def counters(self):
        cdef device_t *device = self.state
        cdef int i
        lanes = {"irp": {}, "device": {}, "refused": {}}
        for i in range(WIRE_OPCODES):
            for lane, count in (("irp", device.forwarded[i]), ("device", device.served[i]),
                                ("refused", device.refused[i])):
                if count:
                    lanes[lane][operation_name(i) if i else "OTHER"] = count
        return lanes
