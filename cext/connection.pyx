"""The writing end of one FUSE connection: answers and notifications to /dev/fuse, and which requests await an answer.

Each request that wants an answer is in `open` (under open_lock) from its reading to its answer; whoever takes it out
answers it, so that no request is answered twice, and refuse_all() can answer all that are left. Those for which an
INTERRUPT has come are in `interrupted` until then: who comes to hold one later, or to wait, looks there.

Notifications are written by a thread of their own: the kernel makes most of them wait for locks that unanswered requests
hold. Those that never wait (whoever polls looks again, attributes) may be written where they arise, and then overtake.
(What nobody can help: killed by SIGKILL while such a notification waits, this process cannot end, /dev/fuse stays open,
and callers hang until the mount is aborted, as root by `umount -f`. Names go by invalidate_all_entries where the kernel
has it, attributes by a negative offset: neither takes a lock.)

Any thread, without the GIL. open_lock and notify_lock are leaves and never held across a system call.
"""

from libc.errno cimport ECONNABORTED, EINTR, EIO, ENODEV, ENOENT, ENOMEM, EPERM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.time cimport timespec
from posix.unistd cimport write

from stackfs.cext.includes.fuse_wire cimport fuse_out_header
from stackfs.cext.message_queue cimport queue_append, queue_clear, queue_take, queued_new, queued_t
from stackfs.cext.threads cimport *
from stackfs.cext.unique_set cimport unique_add, unique_find, unique_remove, unique_set_t


cdef void connection_init(connection_t *connection) noexcept nogil:
    connection.fd = connection.ended_event = -1
    pthread_mutex_init(&connection.open_lock, NULL)
    pthread_mutex_init(&connection.notify_lock, NULL)
    init_condition(&connection.notify_changed)


cdef int connection_start(connection_t *connection) noexcept nogil:
    cdef int error = start_thread(&connection.notifier, notifier_main, connection)
    connection.has_notifier = not error
    return error


cdef void connection_stop_notifier(connection_t *connection) noexcept nogil:
    pthread_mutex_lock(&connection.notify_lock)
    connection.notify_stop = 1
    queue_clear(&connection.notices)
    pthread_cond_broadcast(&connection.notify_changed)
    pthread_mutex_unlock(&connection.notify_lock)
    if connection.has_notifier:
        pthread_join(connection.notifier, NULL)
    connection.has_notifier = 0


cdef void connection_free(connection_t *connection) noexcept nogil:
    queue_clear(&connection.notices)
    free(connection.open.slots)
    free(connection.interrupted.slots)
    pthread_mutex_destroy(&connection.open_lock)
    pthread_mutex_destroy(&connection.notify_lock)
    pthread_cond_destroy(&connection.notify_changed)


cdef void connection_end(connection_t *connection, int error) noexcept nogil:
    if exchange_int(&connection.ending, 1):
        return
    connection.error = error
    store_int(&connection.ended, 1)
    eventfd_write(connection.ended_event, 1)


# ---- answers ----

cdef int admit(connection_t *connection, uint64_t unique) noexcept nogil:
    cdef int error = 0
    pthread_mutex_lock(&connection.open_lock)
    if connection.refusing:
        error = ECONNABORTED
    elif unique_add(&connection.open, unique) < 0:
        error = ENOMEM
    pthread_mutex_unlock(&connection.open_lock)
    return error


cdef int note_interrupt(connection_t *connection, uint64_t unique) noexcept nogil:
    cdef int found
    pthread_mutex_lock(&connection.open_lock)
    found = unique_find(&connection.open, unique)
    if found:
        unique_add(&connection.interrupted, unique)     # without memory for it, only what waits now is interrupted
    pthread_mutex_unlock(&connection.open_lock)
    return found


cdef int was_interrupted(void *connection, uint64_t unique) noexcept nogil:
    cdef connection_t *to = <connection_t *>connection
    cdef int found
    pthread_mutex_lock(&to.open_lock)
    found = unique_find(&to.interrupted, unique)
    pthread_mutex_unlock(&to.open_lock)
    return found


cdef int take_open(connection_t *connection, uint64_t unique) noexcept nogil:
    cdef int mine
    pthread_mutex_lock(&connection.open_lock)
    mine = unique_remove(&connection.open, unique)
    if connection.interrupted.count:
        unique_remove(&connection.interrupted, unique)
    pthread_mutex_unlock(&connection.open_lock)
    return mine


cdef void write_error(connection_t *connection, uint64_t unique, int error) noexcept nogil:
    cdef fuse_out_header header
    header.len = sizeof(header)
    header.error = -error
    header.unique = unique
    while write(connection.fd, &header, sizeof(header)) < 0 and errno == EINTR:
        pass


cdef void write_answer(connection_t *connection, const char *data, size_t length) noexcept nogil:
    """ENOENT: the kernel does not wait for it any more. An answer the kernel does not accept (too long for the caller's
    buffer, an error number it does not know) would leave the caller waiting for ever: it gets EIO instead."""
    cdef int error
    while write(connection.fd, data, length) < 0:
        error = errno
        if error == EINTR:
            continue
        if error != ENOENT and error != ENODEV and error != ECONNABORTED and error != EPERM:
            write_error(connection, (<const fuse_out_header *>data).unique, EIO)
        return


cdef void answer_error(connection_t *connection, uint64_t unique, int error) noexcept nogil:
    if take_open(connection, unique):
        write_error(connection, unique, error)


cdef void refuse_all(connection_t *connection) noexcept nogil:
    cdef unique_set_t left
    cdef uint32_t i
    pthread_mutex_lock(&connection.open_lock)
    store_int(&connection.refusing, 1)
    left = connection.open
    memset(&connection.open, 0, sizeof(unique_set_t))
    free(connection.interrupted.slots)
    memset(&connection.interrupted, 0, sizeof(unique_set_t))
    pthread_mutex_unlock(&connection.open_lock)
    for i in range(left.capacity):
        if left.slots[i]:
            write_error(connection, left.slots[i], ECONNABORTED)
    free(left.slots)


# ---- notifications ----

cdef int queue_notice(connection_t *connection, const char *data, uint32_t length) noexcept nogil:
    cdef queued_t *entry = queued_new(data, length)
    if entry == NULL:
        return -ENOMEM
    pthread_mutex_lock(&connection.notify_lock)
    if connection.notify_stop or load_int(&connection.ended):
        pthread_mutex_unlock(&connection.notify_lock)
        free(entry)
        return -ENODEV
    queue_append(&connection.notices, entry)
    connection.notices_queued += 1
    pthread_cond_broadcast(&connection.notify_changed)
    pthread_mutex_unlock(&connection.notify_lock)
    return 0


cdef uint64_t notices_queued(connection_t *connection) noexcept nogil:
    cdef uint64_t count
    pthread_mutex_lock(&connection.notify_lock)
    count = connection.notices_queued
    pthread_mutex_unlock(&connection.notify_lock)
    return count


cdef bint notices_settled(connection_t *connection, uint64_t target, int64_t limit) noexcept nogil:
    cdef timespec until
    cdef int64_t end
    cdef bint settled
    if limit >= 0:
        end = monotonic_time() + limit
        until.tv_sec = end // 1000000000
        until.tv_nsec = end % 1000000000
    pthread_mutex_lock(&connection.notify_lock)
    while connection.notices_written < target and not connection.notify_stop and connection.has_notifier:
        if limit < 0:
            pthread_cond_wait(&connection.notify_changed, &connection.notify_lock)
        elif pthread_cond_timedwait(&connection.notify_changed, &connection.notify_lock, &until):
            break
    settled = connection.notices_written >= target
    pthread_mutex_unlock(&connection.notify_lock)
    return settled


cdef int notify_kernel(void *connection, const char *data, uint32_t length) noexcept nogil:
    return queue_notice(<connection_t *>connection, data, length)


cdef void write_notice(connection_t *connection, const char *data, uint32_t length) noexcept nogil:
    """ENOENT: the kernel does not have it cached. Any other error ends with the connection."""
    while write(connection.fd, data, length) < 0 and errno == EINTR:
        pass


cdef int tell_kernel(void *connection, const char *data, uint32_t length) noexcept nogil:
    cdef connection_t *to = <connection_t *>connection
    if load_int(&to.ended):
        return -ENODEV
    write_notice(to, data, length)
    return 0


cdef device_calls_t calls
calls.interrupted = was_interrupted
calls.queue = notify_kernel
calls.tell = tell_kernel


cdef const device_calls_t *connection_calls() noexcept nogil:
    return &calls


cdef void *notifier_main(void *argument) noexcept nogil:
    cdef connection_t *connection = <connection_t *>argument
    cdef queued_t *entry
    pthread_setname_np(pthread_self(), "stackfs-notify")
    pthread_mutex_lock(&connection.notify_lock)
    while not connection.notify_stop:
        entry = queue_take(&connection.notices)
        if entry == NULL:
            pthread_cond_wait(&connection.notify_changed, &connection.notify_lock)
            continue
        pthread_mutex_unlock(&connection.notify_lock)
        write_notice(connection, <const char *>(entry + 1), entry.length)
        free(entry)
        pthread_mutex_lock(&connection.notify_lock)
        connection.notices_written += 1
        pthread_cond_broadcast(&connection.notify_changed)
    pthread_cond_broadcast(&connection.notify_changed)
    pthread_mutex_unlock(&connection.notify_lock)
    return NULL
