"""The files of a mounted volume: opened when they are needed, sealed when they have been left alone for a moment.

A file is read by whatever the program has opened; what changes it goes by a file object of the filter's own, opened below
at the first change, which stays until the file is sealed. Nobody has to wait for that: a file that was changed and that
nobody has open any more goes to a thread of the filter's, which seals what has been due for a while, many files with one
sync of the volume. What is opened for a change before that simply goes on in the generation that it was in.

Sealing is none of the program's changes: the times of the file stay what they were.
"""

from libc.errno cimport EBADMSG, EIO, ENOMEM, EOPNOTSUPP
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.time cimport timespec

from stackfs.cext.callback_data cimport (
    DACL_SECURITY_INFORMATION, FO_CREATED, FO_SYNTHESISED, FSCTL_SET_ZERO_DATA, SECURITY_PARAMETERS, SET_FILE_PARAMETERS,
    FileBasicInformation, FileEndOfFileInformation, statx_t)
from stackfs.cext.contexts cimport (
    FLT_CONTEXT_REGISTRATION, FLT_SET_CONTEXT_KEEP_IF_EXISTS, FLT_STREAM_CONTEXT, FltAllocateContext, FltGetStreamContext,
    FltReferenceContext, FltReleaseContext, FltSetStreamContext, NonPagedPool)
from stackfs.cext.filter_io cimport (
    FILE_ZERO_DATA_INFORMATION, FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, FltFlushBuffers, FltFsControlFile,
    FltQueryInformationFile, FltReadFile, FltSetInformationFile, FltSetSecurityObject, FltWriteFile, filter_flush_volume)
from stackfs.cext.filter_names cimport FltClose, FltOpenFile, OBJECT_ATTRIBUTES
from stackfs.cext.includes.pthread cimport (
    pthread_cond_broadcast, pthread_cond_timedwait, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock, pthread_self, pthread_setname_np)
from stackfs.cext.ntstatus cimport NT_SUCCESS, STATUS_ACCESS_DENIED, nt_to_errno
from stackfs.cext.stack cimport instance_pointer
from stackfs.cext.threads cimport count_one, init_condition, load_count, monotonic_deadline, monotonic_time
from stackfs.filters.encryption._file cimport (
    file_create, file_free, file_io_t, file_new, file_open, file_seal, file_settled, file_size, file_unsealed)

import threading

cdef extern from *:
    """
    #include <fcntl.h>
    #include <time.h>
    static __thread void *read_by;       /* FILE_OBJECT: what this thread's callback reads the file by */
    static __thread int already_synced;  /* the sealing thread has synced the volume */
    static __thread int sync_all;        /* fsync(2), not fdatasync(2) */
    static inline void a_moment(void) { struct timespec one = {0, 1000000}; nanosleep(&one, NULL); }
    """
    void *read_by
    int already_synced
    int sync_all
    void a_moment() nogil
    int O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE

cdef enum:
    DUE_AFTER = 1_000_000_000            # nanoseconds for which a changed file is left alone before it is sealed
    DUE_MOST = 256                       # so many wait at most before they are sealed earlier
    BATCH = 512
    MAP_FREE = 98304                     # files up to here have no nodes: sealing one writes nothing but the seal
    FATTR_ATIME = 16
    FATTR_MTIME = 32
    NEW_TRIES = 100                      # milliseconds that a file of no bytes has to get a header


# Errors -----------------------------------------------------------------------------------------------------------------

cdef int error_of(NTSTATUS status) noexcept nogil:
    return 0 if NT_SUCCESS(status) else -nt_to_errno(status)


cdef NTSTATUS status_of(mounted_t *mounted, int error) noexcept nogil:
    if error == -EBADMSG:
        count_one(&mounted.damaged)
        return errno_to_nt(EIO)
    return errno_to_nt(-error)


# I/O of a file ------------------------------------------------------------------------------------------------------------

cdef void stands_for(node_t *node, FILE_OBJECT *file) noexcept nogil:
    memset(file, 0, sizeof(FILE_OBJECT))
    file.fd = -1
    file.Flags = FO_SYNTHESISED | FO_CREATED
    file.Node = node


cdef int open_below(mounted_t *mounted, node_t *node, uint32_t flags, FILE_OBJECT **opened) noexcept nogil:
    """The daemon may be any user: where the file's owner himself is refused, he gives himself the right for this moment."""
    cdef FILE_OBJECT file
    cdef OBJECT_ATTRIBUTES what
    cdef SECURITY_PARAMETERS security
    cdef statx_t info
    cdef NTSTATUS status
    stands_for(node, &file)
    memset(&what, 0, sizeof(what))
    what.RootDirectory = &file
    status = FltOpenFile(mounted.instance, opened, &what, flags, 0, NULL)
    if status == STATUS_ACCESS_DENIED and NT_SUCCESS(FltQueryInformationFile(mounted.instance, &file, &info)):
        memset(&security, 0, sizeof(security))
        security.SecurityInformation = DACL_SECURITY_INFORMATION
        security.Mode = (info.stx_mode & 0o7777) | 0o600
        if NT_SUCCESS(FltSetSecurityObject(mounted.instance, &file, &security)):
            status = FltOpenFile(mounted.instance, opened, &what, flags, 0, NULL)
            security.Mode = info.stx_mode & 0o7777
            FltSetSecurityObject(mounted.instance, &file, &security)
    return error_of(status)


cdef int64_t stream_read(void *who, uint64_t offset, void *data, size_t length) noexcept nogil:
    cdef stream_t *stream = <stream_t *>who
    cdef FILE_OBJECT *file = stream.own if stream.own != NULL else <FILE_OBJECT *>read_by
    cdef int64_t at
    cdef size_t done = 0
    cdef uint32_t got = 0
    cdef NTSTATUS status
    while done < length:
        at = <int64_t>(offset + done)
        status = FltReadFile(stream.mounted.instance, file, &at, <uint32_t>min(length - done, <size_t>0x40000000), <char *>data + done,
                             FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, &got, NULL, NULL)
        if not NT_SUCCESS(status):
            return error_of(status)
        if got == 0:
            break
        done += got
    return <int64_t>done


cdef int stream_write(void *who, uint64_t offset, const void *data, size_t length) noexcept nogil:
    cdef stream_t *stream = <stream_t *>who
    cdef int64_t at
    cdef size_t done = 0
    cdef uint32_t put = 0
    cdef NTSTATUS status
    while done < length:
        at = <int64_t>(offset + done)
        status = FltWriteFile(stream.mounted.instance, stream.own, &at, <uint32_t>min(length - done, <size_t>0x40000000),
                              <const char *>data + done, FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, &put, NULL, NULL)
        if not NT_SUCCESS(status):
            return error_of(status)
        if put == 0:
            return -EIO
        done += put
    return 0


cdef int stream_sync(void *who) noexcept nogil:
    cdef stream_t *stream = <stream_t *>who
    if already_synced:
        return 0
    return error_of(FltFlushBuffers(stream.mounted.instance, stream.own, not sync_all))


cdef int stream_resize(void *who, uint64_t size) noexcept nogil:
    cdef stream_t *stream = <stream_t *>who
    cdef SET_FILE_PARAMETERS set
    memset(&set, 0, sizeof(set))
    set.FileInformationClass = FileEndOfFileInformation
    set.EndOfFile = <int64_t>size
    return error_of(FltSetInformationFile(stream.mounted.instance, stream.own, &set))


cdef int stream_punch(void *who, uint64_t offset, uint64_t length) noexcept nogil:
    cdef stream_t *stream = <stream_t *>who
    cdef FILE_ZERO_DATA_INFORMATION range
    cdef uint8_t zeros[4096]
    cdef uint32_t none = 0
    cdef size_t piece
    cdef int error
    range.FileOffset = <int64_t>offset
    range.BeyondFinalZero = <int64_t>(offset + length)
    error = error_of(FltFsControlFile(stream.mounted.instance, stream.own, FSCTL_SET_ZERO_DATA, &range, sizeof(range), NULL, 0, &none))
    if error != -EOPNOTSUPP:
        return error
    memset(zeros, 0, sizeof(zeros))                  # a file system without holes
    error = 0
    while length and error == 0:
        piece = <size_t>min(length, <uint64_t>sizeof(zeros))
        error = stream_write(who, offset, zeros, piece)
        offset += piece
        length -= piece
    return error


# Streams ------------------------------------------------------------------------------------------------------------------

cdef stream_t *stream_of(mounted_t *mounted, node_t *node) noexcept nogil:
    cdef FILE_OBJECT file
    cdef stream_t *stream = NULL
    cdef stream_t *there = NULL
    cdef NTSTATUS status
    stands_for(node, &file)
    if NT_SUCCESS(FltGetStreamContext(mounted.instance, &file, <void **>&stream)):
        return stream
    if not NT_SUCCESS(FltAllocateContext(mounted.instance.Related.Filter, FLT_STREAM_CONTEXT, sizeof(stream_t), NonPagedPool,
                                         <void **>&stream)):
        return NULL
    stream.mounted = mounted
    stream.node = node
    pthread_mutex_init(&stream.mutex, NULL)
    status = FltSetStreamContext(mounted.instance, &file, FLT_SET_CONTEXT_KEEP_IF_EXISTS, stream, <void **>&there)
    if NT_SUCCESS(status):
        return stream
    FltReleaseContext(stream)
    return there


cdef void stream_gone(void *context, unsigned short type) noexcept nogil:
    """Nobody has it any more; a file that is open would have a reference."""
    cdef stream_t *stream = <stream_t *>context
    if stream.mounted != NULL:
        if stream.file != NULL:
            forget(stream)
            file_free(stream.file)
        pthread_mutex_destroy(&stream.mutex)


cdef void remember(stream_t *stream) noexcept nogil:
    cdef mounted_t *mounted = stream.mounted
    pthread_mutex_lock(&mounted.mutex)
    stream.previous = NULL
    stream.next = mounted.streams
    if stream.next != NULL:
        stream.next.previous = stream
    mounted.streams = stream
    pthread_mutex_unlock(&mounted.mutex)


cdef void forget(stream_t *stream) noexcept nogil:
    cdef mounted_t *mounted = stream.mounted
    pthread_mutex_lock(&mounted.mutex)
    if stream.previous != NULL:
        stream.previous.next = stream.next
    else:
        mounted.streams = stream.next
    if stream.next != NULL:
        stream.next.previous = stream.previous
    pthread_mutex_unlock(&mounted.mutex)


cdef int open_file(stream_t *stream, FILE_OBJECT *by, bint new) noexcept nogil:
    """Under stream.mutex."""
    cdef mounted_t *mounted = stream.mounted
    cdef file_io_t io
    cdef encrypted_file_t *file
    cdef statx_t info
    cdef int error = 0, tries
    io.who = stream
    io.read, io.write, io.sync, io.resize, io.punch = stream_read, stream_write, stream_sync, stream_resize, stream_punch
    file = file_new(mounted.keys, &io)
    if file == NULL:
        return -ENOMEM
    if new:
        error = file_create(file, mounted.suite)
    else:
        for tries in range(NEW_TRIES):               # of no bytes: whoever has just made it is about to write its header
            error = error_of(FltQueryInformationFile(mounted.instance, by, &info))
            if error or info.stx_size or tries == NEW_TRIES - 1:
                break
            a_moment()
        error = error or file_open(file, info.stx_size)
        if error == -EOPNOTSUPP:                     # of a later release, or changed: which of the two cannot be told
            error = -EBADMSG
    if error:
        file_free(file)
        return error
    stream.file = file
    remember(stream)
    return 0


cdef int use_begin(use_t *use, mounted_t *mounted, FILE_OBJECT *at, Purpose purpose) noexcept nogil:
    cdef stream_t *stream = stream_of(mounted, at.Node)
    cdef int error = 0
    use.stream = stream
    use.opened = NULL
    use.before = <FILE_OBJECT *>read_by
    if stream == NULL:
        return -ENOMEM
    pthread_mutex_lock(&stream.mutex)
    if purpose != READING:
        stream.synced = False
        if stream.own == NULL:
            error = open_below(mounted, at.Node, O_RDWR, &stream.own)
    elif stream.own == NULL and (at.fd < 0 or at.OpenFlags & <uint32_t>O_ACCMODE == <uint32_t>O_WRONLY):
        error = open_below(mounted, at.Node, O_RDONLY, &use.opened)
    set_reader(at if use.opened == NULL else use.opened)
    if error == 0 and stream.file == NULL:
        error = open_file(stream, <FILE_OBJECT *>read_by if stream.own == NULL else stream.own, purpose == MAKING)
    stream.users += 1
    pthread_mutex_unlock(&stream.mutex)
    if error:
        use_end(use)
        use.stream = NULL
    elif purpose != READING:
        count_one(&stream.changes)
    return error


cdef inline void set_reader(FILE_OBJECT *file) noexcept nogil:
    global read_by
    read_by = file


cdef void use_end(use_t *use) noexcept nogil:
    cdef stream_t *stream = use.stream
    set_reader(use.before)
    if stream == NULL:
        return
    if use.opened != NULL:
        FltClose(stream.mounted.instance, use.opened)
    pthread_mutex_lock(&stream.mutex)
    stream.users -= 1
    let_rest(stream)
    FltReleaseContext(stream)


cdef void let_rest(stream_t *stream) noexcept nogil:
    """Nobody may need its file any more: then it is closed, or has to be sealed first. Gives stream.mutex back."""
    cdef mounted_t *mounted = stream.mounted
    cdef encrypted_file_t *file = NULL
    cdef FILE_OBJECT *own = NULL
    if stream.users == 0 and stream.handles == 0 and not stream.waits:
        if stream.file != NULL and stream.own != NULL and file_unsealed(stream.file):
            stream.waits = True
            stream.due_at = monotonic_time() + DUE_AFTER
            FltReferenceContext(stream)
            pthread_mutex_lock(&mounted.mutex)
            stream.next_due = NULL
            if mounted.last_due != NULL:
                mounted.last_due.next_due = stream
            else:
                mounted.first_due = stream
            mounted.last_due = stream
            mounted.due += 1
            if mounted.due == 1 or mounted.due == DUE_MOST:
                pthread_cond_broadcast(&mounted.changed)
            pthread_mutex_unlock(&mounted.mutex)
        else:
            file, own = stream.file, stream.own
            stream.file, stream.own = NULL, NULL
            if file != NULL:
                forget(stream)
    pthread_mutex_unlock(&stream.mutex)
    file_free(file)
    if own != NULL:
        FltClose(mounted.instance, own)


cdef int stream_opened(mounted_t *mounted, FILE_OBJECT *at) noexcept nogil:
    cdef stream_t *stream = stream_of(mounted, at.Node)
    if stream == NULL:
        return -ENOMEM
    pthread_mutex_lock(&stream.mutex)
    stream.handles += 1
    pthread_mutex_unlock(&stream.mutex)
    FltReleaseContext(stream)
    return 0


cdef void stream_closed(mounted_t *mounted, FILE_OBJECT *at) noexcept nogil:
    cdef stream_t *stream = stream_of(mounted, at.Node)
    if stream == NULL:
        return
    pthread_mutex_lock(&stream.mutex)
    if stream.handles:
        stream.handles -= 1
    let_rest(stream)
    FltReleaseContext(stream)


# Sealing -------------------------------------------------------------------------------------------------------------------

cdef int seal_quietly(stream_t *stream, bint clean) noexcept nogil:
    """The file's seal; its times stay as they are, unless somebody changes the file meanwhile."""
    cdef FLT_INSTANCE *instance = stream.mounted.instance
    cdef SET_FILE_PARAMETERS set
    cdef statx_t info
    cdef uint64_t changes = load_count(&stream.changes)
    cdef bint known = NT_SUCCESS(FltQueryInformationFile(instance, stream.own, &info))
    cdef int error
    if known and info.stx_nlink == 0 and clean:
        return 0                                     # nobody will ever open it again
    error = file_seal(stream.file, clean)
    if error:
        return error
    stream.sealed_changes = changes
    if known and load_count(&stream.changes) == changes:
        memset(&set, 0, sizeof(set))
        set.FileInformationClass = FileBasicInformation
        set.Flags = FATTR_ATIME | FATTR_MTIME
        set.atime_sec, set.atime_nsec = info.stx_atime.tv_sec, info.stx_atime.tv_nsec
        set.mtime_sec, set.mtime_nsec = info.stx_mtime.tv_sec, info.stx_mtime.tv_nsec
        FltSetInformationFile(instance, stream.own, &set)
    return 0


cdef int stream_flush(mounted_t *mounted, FILE_OBJECT *at, bint data_only) noexcept nogil:
    global sync_all
    cdef stream_t *stream = stream_of(mounted, at.Node)
    cdef int done = 0
    if stream == NULL:
        return -ENOMEM
    pthread_mutex_lock(&stream.mutex)
    if stream.file == NULL or stream.own == NULL or stream.sealed_changes == load_count(&stream.changes):
        pthread_mutex_unlock(&stream.mutex)
        FltReleaseContext(stream)
        return 0
    stream.users += 1
    pthread_mutex_unlock(&stream.mutex)
    sync_all = not data_only
    done = seal_quietly(stream, False)
    sync_all = 0
    pthread_mutex_lock(&stream.mutex)
    stream.users -= 1
    let_rest(stream)
    FltReleaseContext(stream)
    return done if done else 1


cdef uint32_t take_due(mounted_t *mounted, stream_t **batch, bint all_of_them) noexcept nogil:
    """Those whose time has come, off the list; under mounted.mutex."""
    cdef int64_t now = monotonic_time()
    cdef stream_t *stream
    cdef uint32_t count = 0
    while mounted.first_due != NULL and count < BATCH:
        stream = mounted.first_due
        if not all_of_them and stream.due_at > now and mounted.due < DUE_MOST and count == 0:
            break
        mounted.first_due = stream.next_due
        if mounted.first_due == NULL:
            mounted.last_due = NULL
        mounted.due -= 1
        batch[count] = stream
        count += 1
    return count


cdef void seal_batch(mounted_t *mounted, stream_t **batch, uint32_t count) noexcept nogil:
    global already_synced
    cdef stream_t *stream
    cdef uint32_t i
    cdef bint synced
    for i in range(count):
        pthread_mutex_lock(&batch[i].mutex)
        batch[i].synced = batch[i].users == 0        # who is in the middle of a change may write after the sync
        pthread_mutex_unlock(&batch[i].mutex)
    synced = NT_SUCCESS(filter_flush_volume(mounted.instance))
    for i in range(count):
        stream = batch[i]
        pthread_mutex_lock(&stream.mutex)
        stream.waits = False
        if stream.synced and synced and stream.handles == 0 and stream.file != NULL and stream.own != NULL:
            already_synced = file_size(stream.file) <= MAP_FREE and file_settled(stream.file)
            if seal_quietly(stream, True):           # stays open, and is read through when it is next written to
                count_one(&mounted.damaged)
            already_synced = 0
            close_sealed(stream)
        elif mounted.ends and not synced:            # the disk fails: nothing is waited for; it is read through next time
            count_one(&mounted.damaged)
            close_sealed(stream)
        else:
            let_rest(stream)
        FltReleaseContext(stream)


cdef void close_sealed(stream_t *stream) noexcept nogil:
    """Sealed, or not to be sealed: closed, if nobody uses it. Gives stream.mutex back."""
    cdef encrypted_file_t *file = NULL
    cdef FILE_OBJECT *own = NULL
    if stream.users == 0 and stream.handles == 0:
        file, own = stream.file, stream.own
        stream.file, stream.own = NULL, NULL
        forget(stream)
    pthread_mutex_unlock(&stream.mutex)
    file_free(file)
    if own != NULL:
        FltClose(stream.mounted.instance, own)


cdef void seal_loop(mounted_t *mounted) noexcept nogil:
    cdef stream_t *batch[512]
    cdef uint32_t count
    cdef timespec until
    while True:
        pthread_mutex_lock(&mounted.mutex)
        count = 0
        while not mounted.ends and count == 0:
            if mounted.first_due == NULL:
                pthread_cond_wait(&mounted.changed, &mounted.mutex)
            count = take_due(mounted, batch, False)
            if count == 0 and not mounted.ends:
                monotonic_deadline(&until, 250_000_000)
                pthread_cond_timedwait(&mounted.changed, &mounted.mutex, &until)
        pthread_mutex_unlock(&mounted.mutex)
        if count == 0:
            return
        seal_batch(mounted, batch, count)


cdef void seal_all(mounted_t *mounted) noexcept nogil:
    """At the end: nobody uses a file any more, though some may be open. What was left is sealed and closed."""
    cdef stream_t *batch[512]
    cdef uint32_t count
    cdef stream_t *stream
    cdef encrypted_file_t *file
    cdef FILE_OBJECT *own
    while True:
        pthread_mutex_lock(&mounted.mutex)
        count = take_due(mounted, batch, True)
        pthread_mutex_unlock(&mounted.mutex)
        if count == 0:
            break
        seal_batch(mounted, batch, count)
    while True:
        pthread_mutex_lock(&mounted.mutex)
        stream = mounted.streams
        if stream != NULL:
            FltReferenceContext(stream)
        pthread_mutex_unlock(&mounted.mutex)
        if stream == NULL:
            return
        pthread_mutex_lock(&stream.mutex)
        if stream.own != NULL and file_unsealed(stream.file) and seal_quietly(stream, True):
            count_one(&mounted.damaged)
        file, own = stream.file, stream.own
        stream.file, stream.own = NULL, NULL
        forget(stream)
        pthread_mutex_unlock(&stream.mutex)
        file_free(file)
        if own != NULL:
            FltClose(mounted.instance, own)
        FltReleaseContext(stream)


cdef class Mounted:
    def __cinit__(self, entry not None, VolumeKeys keys not None, *, int suite, bint plain_names):
        self.keys = keys
        self.entry = entry
        self.mounted.keys = keys.keys
        self.mounted.instance = instance_pointer(entry)
        self.mounted.suite = suite
        self.mounted.plain_names = plain_names
        self.mounted.long_names = <long_name_t *>calloc(LONG_NAMES, sizeof(long_name_t))
        if self.mounted.long_names == NULL:
            raise MemoryError()
        pthread_mutex_init(&self.mounted.mutex, NULL)
        init_condition(&self.mounted.changed)

    def __dealloc__(self):
        free(self.mounted.long_names)

    def start(self):
        self.mounted.instance.Context = &self.mounted
        self.thread = threading.Thread(target=self._run, name="encryption-seal", daemon=True)
        self.thread.start()

    def _run(self):
        with nogil:
            pthread_setname_np(pthread_self(), "stackfs-seal")
            seal_loop(&self.mounted)

    def end(self):
        pthread_mutex_lock(&self.mounted.mutex)
        self.mounted.ends = True
        pthread_cond_broadcast(&self.mounted.changed)
        pthread_mutex_unlock(&self.mounted.mutex)
        if self.thread is not None:
            self.thread.join()
            self.thread = None
            with nogil:
                seal_all(&self.mounted)

    @property
    def foreign(self):
        return load_count(&self.mounted.foreign)

    @property
    def damaged(self):
        return load_count(&self.mounted.damaged)


def contexts():
    cdef NativeContexts native = NativeContexts()
    cdef FLT_CONTEXT_REGISTRATION row
    memset(&row, 0, sizeof(row))
    row.ContextType = FLT_STREAM_CONTEXT
    row.Size = sizeof(stream_t)
    row.ContextCleanupCallback = stream_gone
    native.add(&row)
    return native
