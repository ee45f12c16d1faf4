"""The device's link to the IRP lane: pyfuse3 behind a socket pair.

    readers ── header queue + send() ──────────────► recv ─► handler pops its header
      └─ socket full: a copy ─► forwarder ─────────►             │
    /dev/fuse ◄── the loop, before it waits; else the relay ◄── answer

Why so: pyfuse3 gives its handlers too little (no thread id, no flags, no request for read and write) and knows too few
operations; behind a socket pair it need not change. A SOCK_SEQPACKET pair keeps message boundaries as /dev/fuse does.

Concurrency
- No thread here ever takes the GIL. In particular the relay does not: pyfuse3 holds the GIL in a blocking writev to the
  socket that the relay empties.
- Order: a header enters the queue and its message enters the socket under one forward_lock, so that both have one
  order; once a message had to wait, all later ones wait behind it. A message that waits is a copy; nobody ever blocks
  in send(). Only when WAITING_LIMIT bytes wait does the one who forwards wait too: then the kernel keeps the rest.
- Answers: the lane's loop carries them itself when it is about to wait, which saves a change of threads; the relay
  thread looks every RELAY_TICK whether it still does.
- Lock order: forward_lock before header_lock; relay_lock alone. None is held across a system call that can block.
"""

from libc.errno cimport (EAGAIN, ECONNRESET, EINTR, EIO, ENOBUFS, ENOMEM, ENOSYS, ENOTCONN, EOPNOTSUPP, EPIPE, errno)
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.time cimport nanosleep, timespec
from posix.unistd cimport close

from stackfs.cext.connection cimport answer_error, queue_notice, take_open, write_answer, write_error
from stackfs.cext.includes.fuse_wire cimport fuse_out_header
from stackfs.cext.message_queue cimport queue_append, queue_clear, queue_take, queued_new, queued_t
from stackfs.cext.requests cimport request_free
from stackfs.cext.threads cimport *
from stackfs.cext.wire cimport wire_same_handler

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
    /* Sequentially consistent: who forwards counts and then looks whether the relay sleeps; the relay goes to sleep and then
     * looks whether anything is counted. */
    #define add_one(at)             ((void)__atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST))
    #define take_one(at)            ((void)__atomic_fetch_sub(at, 1, __ATOMIC_SEQ_CST))
    #define counted(at)             __atomic_load_n(at, __ATOMIC_SEQ_CST)
    #define is_asleep(at)           __atomic_load_n(at, __ATOMIC_SEQ_CST)
    """
    void add_one(uint64_t *at) nogil
    void take_one(uint64_t *at) nogil
    uint64_t counted(uint64_t *at) nogil
    int is_asleep(int *at) nogil

cdef enum:
    LANE_BUFFER = 2 << 20                # SO_SNDBUF asked for; the kernel doubles it where it may
    WAITING_LIMIT = 128 << 20            # bytes
    RELAY_TICK = 2000000                 # nanoseconds
    RELAY_QUIET_TICKS = 25               # then the relay sleeps until there is something to answer


# ---- life ----

cdef void link_init(irp_link_t *link, connection_t *connection) noexcept nogil:
    link.connection = connection
    link.lane = link.peer = link.stop_event = -1
    pthread_mutex_init(&link.forward_lock, NULL)
    pthread_mutex_init(&link.header_lock, NULL)
    pthread_mutex_init(&link.relay_lock, NULL)
    init_condition(&link.relay_changed)
    init_condition(&link.forward_changed)
    init_condition(&link.forward_room)


cdef uint32_t enlarge(int fd) noexcept nogil:
    """Give a socket the largest send buffer allowed; returns its size."""
    cdef int wanted = LANE_BUFFER
    cdef int got = 0
    cdef uint32_t length = sizeof(int)
    if setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &wanted, sizeof(int)) < 0:
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof(int))
    getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &got, &length)
    return <uint32_t>got


cdef int link_pair(irp_link_t *link) noexcept nogil:
    cdef int pair[2]
    cdef uint32_t buffer
    if socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0:
        return -errno
    link.lane = pair[0]
    link.peer = pair[1]
    link.stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if link.stop_event < 0:
        return -errno
    buffer = min(enlarge(pair[0]), enlarge(pair[1]))
    link.message_max = buffer - SOCKET_OVERHEAD
    return <int>buffer


cdef int link_start(irp_link_t *link) noexcept nogil:
    cdef int error = start_thread(&link.relay, relay_main, link)
    link.has_relay = not error
    if not error:
        error = start_thread(&link.forwarder, forwarder_main, link)
        link.has_forwarder = not error
    return error


cdef void link_let_go(irp_link_t *link) noexcept nogil:
    pthread_mutex_lock(&link.forward_lock)
    pthread_cond_broadcast(&link.forward_room)
    pthread_mutex_unlock(&link.forward_lock)


cdef void link_stop_forwarder(irp_link_t *link) noexcept nogil:
    pthread_mutex_lock(&link.forward_lock)
    link.forward_stop = 1
    pthread_cond_broadcast(&link.forward_changed)
    pthread_cond_broadcast(&link.forward_room)
    pthread_mutex_unlock(&link.forward_lock)
    eventfd_write(link.stop_event, 1)
    if link.has_forwarder:
        pthread_join(link.forwarder, NULL)
    link.has_forwarder = 0


cdef void close_fd(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
    fd[0] = -1


cdef void link_close(irp_link_t *link) noexcept nogil:
    if link.has_relay:
        shutdown(link.lane, SHUT_RDWR)
        store_int(&link.relay_stop, 1)
        wake_relay(link)
        pthread_join(link.relay, NULL)
        link.has_relay = 0
    close_fd(&link.peer)
    close_fd(&link.lane)
    close_fd(&link.stop_event)


cdef void link_free(irp_link_t *link) noexcept nogil:
    cdef vfs_request_t *request = link.head
    cdef vfs_request_t *following
    while request != NULL:
        following = request.next
        request_free(request)
        request = following
    queue_clear(&link.waiting)
    free(link.lane_buffer)
    pthread_mutex_destroy(&link.forward_lock)
    pthread_mutex_destroy(&link.header_lock)
    pthread_mutex_destroy(&link.relay_lock)
    pthread_cond_destroy(&link.relay_changed)
    pthread_cond_destroy(&link.forward_changed)
    pthread_cond_destroy(&link.forward_room)


# ---- to the lane ----

cdef void push_header(irp_link_t *link, vfs_request_t *request) noexcept nogil:
    request.next = NULL
    pthread_mutex_lock(&link.header_lock)
    if link.tail == NULL:
        link.head = request
    else:
        link.tail.next = request
    link.tail = request
    link.headers += 1
    pthread_mutex_unlock(&link.header_lock)


cdef void take_back_header(irp_link_t *link, vfs_request_t *request) noexcept nogil:
    """Undo push_header: its message could not be sent, so no handler looks for it, and it is still the last."""
    cdef vfs_request_t *before
    pthread_mutex_lock(&link.header_lock)
    if link.head == request:
        link.head = NULL
        link.tail = NULL
    else:
        before = link.head
        while before.next != request:
            before = before.next
        before.next = NULL
        link.tail = before
    link.headers -= 1
    pthread_mutex_unlock(&link.header_lock)
    request_free(request)


cdef vfs_request_t *link_pop(irp_link_t *link, uint32_t opcode, uint64_t nodeid, int answerless) noexcept nogil:
    cdef vfs_request_t *request
    pthread_mutex_lock(&link.header_lock)
    request = link.head
    if request != NULL and wire_same_handler(request.opcode, opcode) and (not nodeid or request.nodeid == nodeid):
        link.head = request.next
        if link.head == NULL:
            link.tail = NULL
        link.headers -= 1
        request.next = NULL
        if not answerless:
            add_one(&link.taken)
    else:
        request = NULL
    pthread_mutex_unlock(&link.header_lock)
    return request


cdef int lane_is_full(int error) noexcept nogil:
    return error == EAGAIN or error == ENOBUFS or error == ENOMEM or error == EINTR


cdef int link_forward(irp_link_t *link, vfs_request_t *request, const char *data, uint32_t length,
                      int answerless) noexcept nogil:
    cdef queued_t *entry
    cdef int error = 0
    if length > link.message_max:
        request_free(request)
        return EIO
    pthread_mutex_lock(&link.forward_lock)
    while (link.waiting.bytes > WAITING_LIMIT and not link.lane_gone and not link.forward_stop
           and not load_int(&link.connection.refusing)):
        pthread_cond_wait(&link.forward_room, &link.forward_lock)
    if link.lane_gone:
        pthread_mutex_unlock(&link.forward_lock)
        request_free(request)
        return EIO
    if not answerless:
        add_one(&link.unanswered)
    push_header(link, request)
    if link.waiting.first == NULL:
        if send(link.lane, data, length, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0:
            pthread_mutex_unlock(&link.forward_lock)
            if is_asleep(&link.relay_asleep):
                wake_relay(link)
            return 0
        error = errno
    if error == 0 or lane_is_full(error):
        entry = queued_new(data, length)
        if entry != NULL:
            entry.unique = request.unique
            entry.answerless = answerless
            queue_append(&link.waiting, entry)
            pthread_cond_signal(&link.forward_changed)
            pthread_mutex_unlock(&link.forward_lock)
            if is_asleep(&link.relay_asleep):
                wake_relay(link)
            return 0
        error = ENOMEM
    else:
        if error == EPIPE or error == ECONNRESET or error == ENOTCONN:
            store_int(&link.lane_gone, 1)
        error = EIO
    take_back_header(link, request)
    if not answerless:
        take_one(&link.unanswered)
    pthread_mutex_unlock(&link.forward_lock)
    return error


cdef void *forwarder_main(void *argument) noexcept nogil:
    """Sends the messages that had to wait, in order. An entry stays first until it is sent: later ones wait for it."""
    cdef irp_link_t *link = <irp_link_t *>argument
    cdef queued_t *entry
    cdef pollfd fds[2]
    cdef int error
    pthread_setname_np(pthread_self(), "stackfs-fwd")
    fds[0].fd = link.lane
    fds[0].events = <short>POLLOUT
    fds[1].fd = link.stop_event
    fds[1].events = <short>POLLIN
    pthread_mutex_lock(&link.forward_lock)
    while not link.forward_stop:
        entry = link.waiting.first
        if entry == NULL:
            pthread_cond_wait(&link.forward_changed, &link.forward_lock)
            continue
        pthread_mutex_unlock(&link.forward_lock)
        error = 0
        if send(link.lane, entry + 1, entry.length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            error = errno
            if error == EAGAIN:
                poll(fds, 2, -1)
            elif lane_is_full(error):
                poll(&fds[1], 1, 10)                    # the kernel lacks memory, and no poll tells when that ends
        pthread_mutex_lock(&link.forward_lock)
        if error and lane_is_full(error):
            continue
        if error:
            store_int(&link.lane_gone, 1)               # its header stays: no handler will look for it
        queue_take(&link.waiting)
        if link.lane_gone and not entry.answerless:
            take_one(&link.unanswered)
            answer_error(link.connection, entry.unique, EIO)
        free(entry)
        pthread_cond_broadcast(&link.forward_room)
    pthread_mutex_unlock(&link.forward_lock)
    return NULL


# ---- from the lane ----

cdef int all_answered(irp_link_t *link) noexcept nogil:
    return counted(&link.unanswered) == 0


cdef int nothing_due(irp_link_t *link) noexcept nogil:
    """No handler has a request, so nothing lies in the socket; unless libfuse has answered one that it did not hand on."""
    return counted(&link.taken) == 0


cdef void relay_answer(irp_link_t *link, char *buffer, ssize_t length) noexcept nogil:
    """One message of libfuse's: an answer for the kernel, most often."""
    cdef fuse_out_header *header = <fuse_out_header *>buffer
    cdef size_t size = link.answer_max
    if <size_t>length < sizeof(fuse_out_header):
        return
    if header.unique == 0:
        if <size_t>length <= size:
            queue_notice(link.connection, buffer, <uint32_t>length)
        return
    if header.unique == LANE_INIT_UNIQUE:
        return
    if not nothing_due(link):
        take_one(&link.taken)
    if not take_open(link.connection, header.unique):
        return                                          # aborted meanwhile
    take_one(&link.unanswered)
    if <size_t>length > size:
        write_error(link.connection, header.unique, EIO)
    else:
        if header.error == -ENOSYS:
            header.error = -EOPNOTSUPP                  # the kernel would never send this operation again
        write_answer(link.connection, buffer, <size_t>length)


cdef int relay_all(irp_link_t *link, char *buffer) noexcept nogil:
    """Carry to the kernel whatever libfuse has answered. 0: the lane's end is closed. Never waits."""
    cdef ssize_t length
    while True:
        length = recv(link.lane, buffer, link.answer_max, MSG_TRUNC | MSG_DONTWAIT)
        if length > 0:
            relay_answer(link, buffer, length)
            if nothing_due(link):
                return 1                                # that was the last one
        elif length == 0:
            pthread_mutex_lock(&link.forward_lock)
            store_int(&link.lane_gone, 1)
            pthread_cond_broadcast(&link.forward_room)
            pthread_mutex_unlock(&link.forward_lock)
            return 0
        elif errno != EINTR:
            return errno == EAGAIN


cdef void link_relay_now(irp_link_t *link) noexcept nogil:
    if link.lane_buffer == NULL:
        link.lane_buffer = <char *>malloc(link.answer_max)
        if link.lane_buffer == NULL:
            return                                      # the relay thread does it
    count_one(&link.relayed)
    if not nothing_due(link):
        relay_all(link, link.lane_buffer)


cdef void *relay_main(void *argument) noexcept nogil:
    """Stands in for the lane's loop, which carries its answers itself (link_relay_now) whenever it is about to wait:
    takes over when the loop has not come to that for a tick, because a callback keeps it or because libfuse waits, with
    the GIL, for room in the socket. Sleeps while nothing is unanswered. Must never need the GIL: see the docstring."""
    cdef irp_link_t *link = <irp_link_t *>argument
    cdef char *buffer = <char *>malloc(link.answer_max)
    cdef timespec tick
    cdef uint64_t seen
    cdef int alive = buffer != NULL
    cdef int quiet = 0                                  # ticks in a row with nothing unanswered
    tick.tv_sec = 0
    tick.tv_nsec = RELAY_TICK
    pthread_setname_np(pthread_self(), "stackfs-relay")
    while alive:
        seen = load_count(&link.relayed)
        nanosleep(&tick, NULL)
        if load_count(&link.relayed) == seen or load_int(&link.relay_stop):
            alive = relay_all(link, buffer)
        quiet = quiet + 1 if all_answered(link) else 0
        if quiet > RELAY_QUIET_TICKS:
            pthread_mutex_lock(&link.relay_lock)
            store_int(&link.relay_asleep, 1)
            while all_answered(link) and alive and not load_int(&link.relay_stop):
                pthread_cond_wait(&link.relay_changed, &link.relay_lock)
            store_int(&link.relay_asleep, 0)
            pthread_mutex_unlock(&link.relay_lock)
            quiet = 0
        if load_int(&link.relay_stop):
            relay_all(link, buffer)
            break
    free(buffer)
    return NULL


cdef void wake_relay(irp_link_t *link) noexcept nogil:
    pthread_mutex_lock(&link.relay_lock)
    pthread_cond_signal(&link.relay_changed)
    pthread_mutex_unlock(&link.relay_lock)
