"""The writing end of one FUSE connection: answers and notifications to /dev/fuse, and which requests await an answer.

Each request that wants an answer is in `open` (under open_lock) from its reading to its answer; whoever takes it out
answers it, so that no request is answered twice, and refuse_all() can answer all that are left. Those for which an
INTERRUPT has come are in `interrupted` until then: who comes to hold one later, or to wait, looks there.

Notifications that the kernel may make wait have threads of their own (notifiers.pyx). Those that never wait (whoever polls
looks again, attributes, everything looked up) may be written where they arise, and then overtake.
(What nobody can help: killed by SIGKILL while such a notification waits, this process cannot end, /dev/fuse stays open,
and callers hang until the mount is aborted, as root by `umount -f`. Names go by invalidate_all_entries where the kernel
has it, attributes by a negative offset: neither takes a lock.)

Any thread, without the GIL. open_lock is a leaf and never held across a system call.
"""

from libc.errno cimport ECONNABORTED, EINTR, EIO, ENODEV, ENOENT, ENOMEM, EPERM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.unistd cimport write

from stackfs.cext.includes.fuse_wire cimport fuse_out_header
from stackfs.cext.notifiers cimport notice_queue, notice_write, notifiers_free, notifiers_init
from stackfs.cext.threads cimport *
from stackfs.cext.unique_set cimport unique_add, unique_find, unique_remove, unique_set_t


cdef void connection_init(connection_t *connection) noexcept nogil:
    connection.fd = connection.ended_event = -1
    pthread_mutex_init(&connection.open_lock, NULL)
    notifiers_init(&connection.notifiers)


cdef void connection_free(connection_t *connection) noexcept nogil:
    notifiers_free(&connection.notifiers)
    free(connection.open.slots)
    free(connection.interrupted.slots)
    pthread_mutex_destroy(&connection.open_lock)


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

cdef int queue_notice(void *connection, const char *data, uint32_t length) noexcept nogil:
    cdef connection_t *to = <connection_t *>connection
    return -ENODEV if load_int(&to.ended) else notice_queue(&to.notifiers, data, length)


cdef int tell_kernel(void *connection, const char *data, uint32_t length) noexcept nogil:
    cdef connection_t *to = <connection_t *>connection
    if load_int(&to.ended):
        return -ENODEV
    notice_write(to.fd, data, length)
    return 0


cdef device_calls_t calls
calls.interrupted = was_interrupted
calls.queue = queue_notice
calls.tell = tell_kernel


cdef const device_calls_t *connection_calls() noexcept nogil:
    return &calls
