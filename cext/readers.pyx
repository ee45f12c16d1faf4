"""The device's readers: threads that read /dev/fuse, serve what they can, and forward the rest to the IRP lane.

    /dev/fuse ──read──► reader ──► stack ──► base ──► answer ──write──► /dev/fuse         (the device lane)
                          └──────► irp_link                                             (the IRP lane)

A reader that has read a request serves it to its end, answers, and reads again. No thread changes, no queue, no GIL but
around a Python callback. How many read at once, and who reads while a request waits (a cold read, an fsync, a callback
that takes its time), is turns.pyx's to say. Only when all of READERS wait does the next request wait for the first of them.

Concurrency: a reader owns its buffers and its request. `start_lock` guards the starting of threads. What several threads
read and one writes goes through atomic loads. Signals are blocked, but for WAKE_SIGNAL, whose empty handler ends a
read(2) when the readers shall stop.
"""

from libc.errno cimport (
    EAGAIN, ECONNABORTED, EINTR, EIO, ENODEV, ENOENT, ENOMEM, ENOTTY, EOPNOTSUPP, EPROTO, errno)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.time cimport clock_gettime, nanosleep, timespec
from posix.unistd cimport read

from stackfs.cext.anticipation cimport anticipate, anticipation_init, anticipation_served, device_has_message, processors, works_alone
from stackfs.cext.answers cimport ANSWER_SCRATCH, answer_encode, answer_listing, answer_prepare
from stackfs.cext.backing cimport backing_t
from stackfs.cext.connection cimport admit, answer_error, connection_end, take_open, write_answer, write_error
from stackfs.cext.includes.fuse_wire cimport *
from stackfs.cext.generated_io cimport waits_are_announced
from stackfs.cext.impersonation cimport keep_impersonating, revert_to_self
from stackfs.cext.inode_table cimport inode_table_t, node_forget
from stackfs.cext.irp_link cimport LANE_INIT_UNIQUE, link_forward
from stackfs.cext.requests cimport (
    REQUEST_TO_IRP_LANE, request_abandon, request_expect_interrupt, request_free, request_is_held, request_leave_reader,
    request_new, request_reset, request_run, request_wait, vfs_request_t, volume_awaits)
from stackfs.cext.stack cimport operation_t
from stackfs.cext.threads cimport *
from stackfs.cext.turns cimport turn_at_risk, turn_given, turn_next, turn_sees, turn_taken, turn_took, turns_free, turns_init, turns_stop
from stackfs.cext.waits cimport waits_interrupt, waits_t, waits_take
from stackfs.cext.wire cimport *

cdef extern from "<errno.h>" nogil:
    int EDEADLK

cdef extern from "<time.h>" nogil:
    int CLOCK_MONOTONIC_COARSE

cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t length, int flags)

cdef extern from *:
    """
    #include <pthread.h>
    #include <signal.h>
    #include <string.h>

    #define WAKE_SIGNAL SIGUSR2
    static void readers_no_op(int number) { (void)number; }

    /* Without SA_RESTART: a read(2) that waits returns EINTR. */
    static void readers_prepare_signal(void)
    {
        struct sigaction action;
        memset(&action, 0, sizeof(action));
        action.sa_handler = readers_no_op;
        sigaction(WAKE_SIGNAL, &action, NULL);
    }

    static void readers_admit_signal(void)
    {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, WAKE_SIGNAL);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    }

    static void readers_wake(pthread_t thread) { pthread_kill(thread, WAKE_SIGNAL); }

    #define load_relaxed(at)         __atomic_load_n(at, __ATOMIC_RELAXED)
    #define store_relaxed(at, value) __atomic_store_n(at, value, __ATOMIC_RELAXED)
    """
    void readers_prepare_signal() nogil
    void readers_admit_signal() nogil
    void readers_wake(pthread_t thread) nogil
    uint32_t load_tid "load_relaxed"(uint32_t *at) nogil
    int64_t load_time "load_relaxed"(int64_t *at) nogil
    void store_tid "store_relaxed"(uint32_t *at, uint32_t value) nogil
    void store_time "store_relaxed"(int64_t *at, int64_t value) nogil

cdef enum:
    FORGETS_IN_A_MESSAGE = 2048          # one handler call: keeps the loop's longest step short
    LOOK_EVERY = 16                      # messages
    LARGE = 65536                        # bytes of a transfer
    FOREIGN_FOR = 100000000              # nanoseconds; no thread id is given out again so soon


# ---- life ----

cdef void readers_init(readers_t *readers, connection_t *connection, irp_link_t *link, waits_t *waits) noexcept nogil:
    readers.connection = connection
    readers.link = link
    readers.waits = waits
    readers.ready_event = readers.deadlock_event = -1
    pthread_mutex_init(&readers.start_lock, NULL)
    turns_init(&readers.turns, max(1, processors() - 1))        # one is left for those who call


cdef int readers_start(readers_t *readers) noexcept nogil:
    readers.answer_size = readers.settings.max_write + ANSWER_SCRATCH
    readers_prepare_signal()
    return start_reader(readers)


cdef int start_reader(readers_t *readers) noexcept nogil:
    """One more. 0, or an errno: those there are go on without it."""
    cdef reader_t *reader
    cdef int error = EAGAIN
    revert_to_self()                     # a new thread has the rights of the one that starts it
    pthread_mutex_lock(&readers.start_lock)
    if readers.count < READERS and not load_int(&readers.stopping):
        reader = &readers.threads[readers.count]
        reader.readers = readers
        if reader.buffer == NULL:
            reader.buffer = <char *>malloc(readers.buffer_size)
        if reader.answer == NULL:
            reader.answer = <char *>malloc(readers.answer_size)
        error = ENOMEM
        if reader.buffer != NULL and reader.answer != NULL:
            add_int(&readers.turns.reading, 1)          # on its behalf: nobody shall start another meanwhile
            error = start_thread(&reader.thread, reader_main, reader)
            if error:
                add_int(&readers.turns.reading, -1)
            else:
                store_int(&readers.count, readers.count + 1)
    pthread_mutex_unlock(&readers.start_lock)
    return error


cdef void readers_stop(readers_t *readers) noexcept nogil:
    cdef timespec pause
    cdef int i
    pause.tv_sec = 0
    pause.tv_nsec = 1000000
    pthread_mutex_lock(&readers.start_lock)
    store_int(&readers.stopping, 1)                     # no more threads from here on
    pthread_mutex_unlock(&readers.start_lock)
    turns_stop(&readers.turns)
    for i in range(readers.count):
        # Again and again: the signal is lost on a thread that has looked at `stopping` and not yet begun to read.
        while not load_int(&readers.threads[i].ended):
            readers_wake(readers.threads[i].thread)
            nanosleep(&pause, NULL)
        pthread_join(readers.threads[i].thread, NULL)
    readers.count = 0


cdef void readers_free(readers_t *readers) noexcept nogil:
    cdef int i
    for i in range(READERS):
        free(readers.threads[i].buffer)
        free(readers.threads[i].answer)
        if readers.threads[i].request != NULL:
            request_free(readers.threads[i].request)
    pthread_mutex_destroy(&readers.start_lock)
    turns_free(&readers.turns)


# ---- reading ----

cdef void *reader_main(void *argument) noexcept nogil:
    cdef reader_t *reader = <reader_t *>argument
    cdef readers_t *readers = reader.readers
    cdef wire_message_t message
    cdef ssize_t length
    pthread_setname_np(pthread_self(), "stackfs-read")
    readers_admit_signal()
    keep_impersonating()
    waits_are_announced(announced, reader)
    anticipation_init(&reader.anticipation)
    while True:
        if load_int(&readers.turns.reading) == 1:       # where others sleep, one of them is woken anyway
            anticipate(&reader.anticipation, readers.connection.fd)
        length = read_message(readers, reader.buffer)
        if length <= 0:
            break
        if turn_taken(&readers.turns):
            start_reader(readers)
        reader.given = 0
        reader.called_at = 0
        handle(reader, <size_t>length, &message)
        reader.served += 1
        if reader.served % LOOK_EVERY == 0 and turn_sees(&readers.turns, device_has_message(readers.connection.fd)):
            start_reader(readers)
        if reader.called_at:
            turn_took(&readers.turns, monotonic_time() - reader.called_at)
        if not turn_next(&readers.turns, reader.given):
            break
    revert_to_self()
    python_detach()
    store_int(&reader.ended, 1)
    return NULL


cdef ssize_t read_message(readers_t *readers, char *buffer) noexcept nogil:
    """The next message; 0: there will be none."""
    cdef ssize_t length
    cdef int error
    while not load_int(&readers.stopping):
        length = read(readers.connection.fd, buffer, readers.buffer_size)
        if length > 0:
            return length
        error = errno if length < 0 else ENODEV
        if error == ENODEV or error == ECONNABORTED:
            connection_end(readers.connection, 0)
            return 0
        if error != EINTR and error != ENOENT and error != EAGAIN:      # ENOENT: it was withdrawn as we read it
            connection_end(readers.connection, error)
            return 0
    return 0


cdef void announced(operation_t *op, bint surely) noexcept nogil:
    """announce_wait() of the operations of a request that a reader serves."""
    cdef reader_t *reader = <reader_t *>(<vfs_request_t *>op.request).reader
    if not surely and not reader.called_at:
        reader.called_at = monotonic_time()
    if surely or turn_at_risk(&reader.readers.turns):
        give_turn(reader)


cdef void give_turn(reader_t *reader) noexcept nogil:
    if not reader.given:
        reader.given = 1
        if turn_given(&reader.readers.turns):
            start_reader(reader.readers)


cdef void initialise(readers_t *readers, wire_message_t *message) noexcept nogil:
    """INIT: open libfuse's session with one of our own making, then answer the kernel."""
    cdef wire_init_answer_t answer
    cdef wire_init_request_t opening
    cdef wire_settings_t settings
    cdef uint64_t unique = message.header.unique
    if load_long(&readers.settings.negotiated):         # the kernel does not do this
        write_error(readers.connection, unique, EIO)
        return
    settings = readers.settings
    if not wire_init_answer(message, &settings, &answer):
        write_error(readers.connection, unique, EPROTO)
        connection_end(readers.connection, EPROTO)
        return
    if settings.negotiated:
        readers.limits.setxattr_ext = (settings.negotiated & FUSE_SETXATTR_EXT) != 0
        wire_init_for_libfuse(message, LANE_INIT_UNIQUE, &opening)
        if send(readers.link.lane, &opening, sizeof(opening), MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            write_error(readers.connection, unique, EIO)
            connection_end(readers.connection, EIO)
            return
        if settings.negotiated & FUSE_PASSTHROUGH:
            store_int(&(<backing_t *>readers.volume.backing).bypass.device, readers.connection.fd)
        store_uint(&readers.settings.kernel_minor, settings.kernel_minor)
        store_long(&readers.settings.negotiated, settings.negotiated)       # last: requests are served from here on
    write_answer(readers.connection, <const char *>&answer, answer.header.len)
    if settings.negotiated:
        eventfd_write(readers.ready_event, 1)


cdef int refused_as_own(readers_t *readers, wire_message_t *message) noexcept nogil:
    """A request of this process, made by a callback or a task, would wait for the thread that waits for it.

    The kernel is asked whose the thread is; the answer "another's" is kept for a moment.
    """
    cdef fuse_in_header *header = message.header
    cdef foreign_t *known = &readers.foreign[header.pid & (FOREIGN_THREADS - 1)]
    cdef timespec now
    cdef int64_t time
    if header.pid == 0:
        return 0
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    time = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
    if load_tid(&known.tid) == header.pid and load_time(&known.until) > time:
        return 0
    if tgkill(readers.process, <int>header.pid, 0) != 0:
        store_tid(&known.tid, 0)
        store_time(&known.until, time + FOREIGN_FOR)
        store_tid(&known.tid, header.pid)
        return 0
    store_count(&readers.last_deadlock, <uint64_t>header.opcode << 32 | header.pid)
    count_one(&readers.deadlocks)
    eventfd_write(readers.deadlock_event, 1)
    return 1


cdef void handle(reader_t *reader, size_t length, wire_message_t *message) noexcept nogil:
    """Answer, serve, forward, refuse or ignore a message."""
    cdef readers_t *readers = reader.readers
    cdef fuse_in_header *header = <fuse_in_header *>reader.buffer
    cdef int error = wire_check(reader.buffer, length, &readers.limits, message)
    cdef const wire_rule_t *rule = message.rule
    cdef uint32_t index
    if length < sizeof(fuse_in_header):
        count_one(&readers.malformed)
        return
    index = header.opcode if header.opcode < WIRE_OPCODES else 0
    if error:
        count_one(&readers.malformed)
        if header.unique and (rule == NULL or not rule.answerless):
            write_error(readers.connection, header.unique, error)
        return
    if rule != NULL and rule.treatment == WIRE_INIT:
        initialise(readers, message)
        return
    if rule != NULL and rule.treatment == WIRE_DESTROY:
        write_error(readers.connection, header.unique, 0)
        connection_end(readers.connection, 0)
        return
    if rule != NULL and rule.treatment == WIRE_IGNORE:
        count_one(&readers.served[index])
        return
    if rule != NULL and rule.treatment == WIRE_INTERRUPT:
        count_one(&readers.served[index])
        if readers.settings.negotiated and waits_interrupt(readers.waits, (<fuse_interrupt_in *>message.body).unique):
            write_error(readers.connection, header.unique, EAGAIN)
        return
    if rule == NULL or rule.treatment == WIRE_REFUSE:
        error = ENOTTY if header.opcode == FUSE_IOCTL else EOPNOTSUPP
    elif not load_long(&readers.settings.negotiated):
        error = EIO
    elif not rule.cleanup and refused_as_own(readers, message):
        error = EDEADLK
    elif rule.answerless:
        error = ECONNABORTED if load_int(&readers.connection.refusing) else 0
    elif header.opcode == FUSE_SETLK or header.opcode == FUSE_SETLKW:
        error = admit_lock(reader, message)
    else:
        error = admit(readers.connection, header.unique)
    if error:
        count_one(&readers.refused[index])
        if rule == NULL or not rule.answerless:
            write_error(readers.connection, header.unique, error)
        return
    if rule.treatment == WIRE_SERVE or (readers.serve_all and not (
            load_int(&readers.volume.awaits) and volume_awaits(readers.volume, header.opcode))):
        serve(reader, message, index)
        return
    count_one(&readers.forwarded[index])
    if header.opcode == FUSE_BATCH_FORGET:
        forward_forgets(readers, message)
    else:
        forward_message(readers, message, NULL)


# ---- the device lane ----

cdef bint begin(reader_t *reader, wire_message_t *message) noexcept nogil:
    """The reader's request is the message's. False: no memory."""
    cdef readers_t *readers = reader.readers
    if reader.request != NULL:
        request_reset(reader.request, readers.volume)
    else:
        reader.request = request_new(readers.volume)
        if reader.request == NULL:
            return False
    wire_decode(message, readers.limits.setxattr_ext, reader.request)
    reader.request.on_device = 1
    reader.request.reader = reader
    reader.request.announce_wait = announced
    return True


cdef int admit_lock(reader_t *reader, wire_message_t *message) noexcept nogil:
    """As admit(). Another thread may read the INTERRUPT of a request that this one has just read: it must find it either
    not admitted or where it can be told to give up."""
    cdef int error = ENOMEM
    if begin(reader, message):
        request_expect_interrupt(reader.request)
        error = admit(reader.readers.connection, message.header.unique)
        if error:
            request_abandon(reader.request)
    return error


cdef bint takes_long(const vfs_request_t *request) noexcept nogil:
    """Even if it need not wait: it keeps a processor busy for longer than it takes to wake another thread."""
    cdef uint32_t opcode = request.opcode
    if opcode == FUSE_READ or opcode == FUSE_WRITE:
        return request.arguments.size >= LARGE
    return opcode == FUSE_READDIRPLUS or opcode == FUSE_READDIR


cdef void serve(reader_t *reader, wire_message_t *message, uint32_t index) noexcept nogil:
    """Run the request in this thread and answer it; or hand it on, when a filter refuses it as fast I/O."""
    cdef readers_t *readers = reader.readers
    cdef uint32_t opcode = message.header.opcode
    cdef vfs_request_t *request
    cdef size_t length
    cdef int done
    if opcode == FUSE_FORGET or opcode == FUSE_BATCH_FORGET:
        count_one(&readers.served[index])
        forget(readers, message)
        return
    if opcode != FUSE_SETLK and opcode != FUSE_SETLKW and not begin(reader, message):      # those have begun
        answer_error(readers.connection, message.header.unique, ENOMEM)
        return
    request = reader.request
    anticipation_served(&reader.anticipation, request.who.tid)
    python_attach()
    if takes_long(request) and not works_alone(&reader.anticipation):
        give_turn(reader)
    if opcode == FUSE_WRITE or opcode == FUSE_SETXATTR:
        request.buffer = <void *>wire_data(message, readers.limits.setxattr_ext)
        request.buffer_length = <uint32_t>request.arguments.size
    else:
        answer_prepare(request, reader.answer)
    done = run(reader, request, &length)
    if done == REQUEST_TO_IRP_LANE:
        request_leave_reader(request)
        reader.request = NULL
        count_one(&readers.forwarded[index])
        forward_message(readers, message, request)
        return
    count_one(&readers.served[index])
    if not done and ((not request_is_held(request) and not request.waiting.lease) or hand_over(reader, request)):
        request_leave_reader(request)
        reader.request = NULL
        waits_take(readers.waits, request)
        return
    while not done:                                     # no memory to let it wait elsewhere
        request_wait(request)
        done = run(reader, request, &length)
    if take_open(readers.connection, request.unique):
        write_answer(readers.connection, reader.answer, length)


cdef inline int run(reader_t *reader, vfs_request_t *request, size_t *length) noexcept nogil:
    """As request_run(). Done: the answer is in reader.answer."""
    cdef uint32_t opcode = request.opcode
    cdef int done
    if opcode == FUSE_READDIRPLUS or opcode == FUSE_READDIR:
        return answer_listing(request, reader.answer, length)
    done = request_run(request)
    if done == 1:
        length[0] = answer_encode(request, reader.answer)
    return done


cdef bint hand_over(reader_t *reader, vfs_request_t *request) noexcept nogil:
    """A filter holds it: the buffers it works on go with it. False: no memory for others."""
    cdef char *buffer = <char *>malloc(reader.readers.buffer_size)
    cdef char *answer = <char *>malloc(reader.readers.answer_size)
    if buffer == NULL or answer == NULL:
        free(buffer)
        free(answer)
        return False
    request.message = reader.buffer
    request.answer = reader.answer
    reader.buffer = buffer
    reader.answer = answer
    return True


cdef void forget(readers_t *readers, wire_message_t *message) noexcept nogil:
    cdef inode_table_t *nodes = (<backing_t *>readers.volume.backing).nodes
    cdef fuse_batch_forget_in *batch = <fuse_batch_forget_in *>message.body
    cdef fuse_forget_one *one = <fuse_forget_one *>(batch + 1)
    cdef uint32_t i
    if message.header.opcode == FUSE_FORGET:
        node_forget(nodes, message.header.nodeid, (<fuse_forget_in *>message.body).nlookup)
        return
    for i in range(batch.count):
        node_forget(nodes, one[i].nodeid, one[i].nlookup)


# ---- to the IRP lane ----

cdef void forward_message(readers_t *readers, wire_message_t *message, vfs_request_t *request) noexcept nogil:
    """request: already begun, or NULL."""
    cdef int answerless = message.rule.answerless
    cdef uint64_t unique = message.header.unique
    cdef uint32_t length
    cdef const char *data
    cdef int error = ENOMEM
    if request == NULL:
        request = request_new(readers.volume)
        if request != NULL:
            wire_decode(message, readers.limits.setxattr_ext, request)
    if request != NULL:
        request.on_device = 0
        request.nowait = 1
        request.name = NULL                             # the message does not outlive this call
        request.name2 = NULL
        request.name_length = request.name2_length = 0
        request.buffer = NULL
        request.buffer_length = 0
        data = wire_for_libfuse(message, readers.limits.setxattr_ext, &length)
        error = link_forward(readers.link, request, data, length, answerless)
    if error and not answerless:
        answer_error(readers.connection, unique, error)


cdef void forward_forgets(readers_t *readers, wire_message_t *message) noexcept nogil:
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
        forward_message(readers, &part, NULL)
        start += count * sizeof(fuse_forget_one)        # the next header overwrites nodes that have been sent
        left -= count
