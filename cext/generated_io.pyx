"""Operations that a filter starts itself (docs/semantics.md, B4): the machinery under filter_io.pyx.

An operation on a file object is one operation of the stack, filled in by hand and walked below the instance that starts it:
perform(). It carries FLTFL_CALLBACK_DATA_GENERATED_IO and is never fast I/O. Nothing here can wait for the operation in hand:
no lock is held across the walk or a system call, and the base works on the backing directory, never through the mount.

Threads: FLT_INSTANCE.IoPending counts what is under way; after IoEnded nothing begins, and once IoPending is 0 whoever tears the
instance down owns what is left. What is done asynchronously runs in up to ASYNC_THREADS threads, which come when there is
something to do and go when there has been nothing for a while; their queue has a mutex, a leaf.
"""

cimport cython
from cpython.object cimport PyObject
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from stackfs.cext.backing cimport backing_t
from stackfs.cext.callback_data cimport (
    FLTFL_CALLBACK_DATA_GENERATED_IO, FLTFL_CALLBACK_DATA_IRP_OPERATION, FLT_IO_PARAMETER_BLOCK, FLT_VOLUME, FO_LOCKED,
    FSCTL_SET_REPARSE_POINT, IRP_MJ_DEVICE_CONTROL, IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_LOCK_CONTROL, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_INFORMATION, IRP_MJ_QUERY_SECURITY, IRP_MJ_QUERY_VOLUME_INFORMATION,
    IRP_MJ_READ, IRP_MJ_SET_EA, IRP_MJ_SET_INFORMATION, IRP_MJ_SET_SECURITY, IRP_MJ_SET_VOLUME_INFORMATION,
    IRP_MJ_WRITE, IRP_MN_LOCK, IRP_SYNCHRONOUS_API,
    LABEL_SECURITY_INFORMATION, REQUEST_FIRST, REQUEST_PRINCIPAL, FileAllocationInformation, FileBasicInformation,
    FileDispositionInformation, FileEndOfFileInformation, FileLinkInformation, FilePositionInformation, FileRenameInformation,
    FileRenameInformationEx)
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.includes.pthread cimport (
    pthread_cond_signal, pthread_cond_t, pthread_cond_timedwait, pthread_detach, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_t, pthread_mutex_unlock, pthread_t)
from stackfs.cext.inode_table cimport node_forget, node_id, node_type
from stackfs.cext.locks cimport lock_enter, lock_leave, lock_wait
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, STATUS_FLT_DELETING_OBJECT, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_HANDLE, STATUS_INVALID_PARAMETER,
    STATUS_IO_DEVICE_ERROR, STATUS_PENDING, STATUS_SUCCESS, errno_to_nt)
from stackfs.cext.requests cimport request_free, request_new, request_run, request_wait
from stackfs.cext.pending cimport PASSIVE_LEVEL, operation_wait
from stackfs.cext.stack cimport (
    OPERATION_PENDED_POST, OPERATION_PENDED_PRE, about_to_wait, operation_begin, operation_end, operation_only_below, operation_resume,
    operation_run, operation_t, wait_function)
from stackfs.cext.threads cimport add_int, init_condition, load_int, python_attach, python_detach, set_bits, start_thread
from stackfs.cext.verifier cimport verifier_level, verifier_on


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    static inline uint64_t stackfs_next(uint64_t *counter) { return __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED); }
    static __thread struct served { void *announce, *reader; } served;
    """
    struct served_t "served":
        void *announce
        void *reader
    served_t served                      # this thread's
    uint64_t stackfs_next(uint64_t *counter) nogil
    int O_APPEND

cdef extern from "<sys/stat.h>" nogil:
    unsigned S_IFLNK

# What audits show of an operation: the VFS request that it would come with.
cdef enum:
    GETATTR = 3
    SETATTR = 4
    READ = 15
    WRITE = 16
    STATFS = 17
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    READDIR = 28
    SETLK = 32
    IOCTL = 39
    FALLOCATE = 43
    LSEEK = 46

    ASYNC_THREADS = 4
    ASYNC_IDLE = 2                       # seconds after which a thread without work ends


# --- beginning and ending -----------------------------------------------------------------------------------------

cdef bint enter(FLT_INSTANCE *instance) noexcept nogil:
    """False: the instance starts no more, or was never on a volume."""
    if verifier_on:
        verifier_level(PASSIVE_LEVEL, b"I/O of a filter's own")
    add_int(&instance.IoPending, 1)
    if load_int(&instance.IoEnded) or instance.Related.Volume is NULL or instance.Related.Volume.backing is NULL:
        add_int(&instance.IoPending, -1)
        return False
    return True


cdef void leave(FLT_INSTANCE *instance) noexcept nogil:
    add_int(&instance.IoPending, -1)


cdef vfs_request_t *new_request(FLT_INSTANCE *instance, uint32_t opcode, const REQUESTOR *who) noexcept nogil:
    cdef vfs_request_t *request = request_new(instance.Related.Volume)
    if request is not NULL:
        request.opcode = opcode
        request.initiator = instance
        request.announce_wait = <wait_function>served.announce
        request.reader = served.reader
        if who is not NULL:
            request.who = who[0]
    return request


cdef void waits_are_announced(wait_function announce, void *reader) noexcept nogil:
    served.announce = <void *>announce
    served.reader = reader


cdef NTSTATUS run(vfs_request_t *request) noexcept nogil:
    """The whole request, below its initiator. The thread has the daemon's rights, before and after."""
    revert_to_self()
    while request_run(request) == 0:
        request_wait(request)
    revert_to_self()
    return request.failed if request.failed else errno_to_nt(request.error)


# --- one operation, made by hand ---------------------------------------------------------------------------------------

cdef uint32_t request_of(const FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    """The VFS request that an operation would come with: what audits show."""
    cdef uint8_t major = p.MajorFunction
    if major == IRP_MJ_READ:
        return READ
    if major == IRP_MJ_WRITE:
        return WRITE
    if major == IRP_MJ_QUERY_INFORMATION:
        return LSEEK if p.Parameters.QueryFile.FileInformationClass == FilePositionInformation else GETATTR
    if major == IRP_MJ_SET_INFORMATION:
        return FALLOCATE if p.Parameters.SetFile.FileInformationClass == FileAllocationInformation else SETATTR
    if major == IRP_MJ_QUERY_EA or major == IRP_MJ_QUERY_SECURITY:
        return GETXATTR
    if major == IRP_MJ_SET_EA:
        return SETXATTR
    if major == IRP_MJ_SET_SECURITY:
        return SETXATTR if p.Parameters.Ea.SecurityInformation & LABEL_SECURITY_INFORMATION else SETATTR
    if major == IRP_MJ_FLUSH_BUFFERS:
        return FSYNC
    if major == IRP_MJ_DIRECTORY_CONTROL:
        return READDIR
    if major == IRP_MJ_QUERY_VOLUME_INFORMATION:
        return STATFS
    if major == IRP_MJ_LOCK_CONTROL:
        return SETLK
    return IOCTL


cdef NTSTATUS well_formed(const FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    """Is this something that the base can carry out, whoever has filled it in?"""
    cdef uint8_t major = p.MajorFunction
    cdef const FILE_OBJECT *file = p.TargetFileObject
    cdef uint32_t which
    if file is NULL:
        return STATUS_INVALID_PARAMETER
    if major == IRP_MJ_SET_INFORMATION:
        which = p.Parameters.SetFile.FileInformationClass
        if which == FileRenameInformation or which == FileRenameInformationEx:
            return STATUS_SUCCESS if file.Directory is not NULL and p.Parameters.SetFile.TargetDirectory is not NULL \
                else STATUS_INVALID_PARAMETER
        if which == FileDispositionInformation:
            return STATUS_SUCCESS if file.Directory is not NULL else STATUS_INVALID_PARAMETER
        if which == FileLinkInformation and p.Parameters.SetFile.TargetDirectory is NULL:
            return STATUS_INVALID_PARAMETER
        if which != FileLinkInformation and which != FileEndOfFileInformation and which != FileBasicInformation and \
                which != FileAllocationInformation:
            return STATUS_INVALID_PARAMETER
    elif major == IRP_MJ_QUERY_INFORMATION:
        if p.Parameters.QueryFile.FileInformationClass != FilePositionInformation and p.Parameters.QueryFile.Info is NULL:
            return STATUS_INVALID_PARAMETER
    elif major == IRP_MJ_SET_EA or (
            major == IRP_MJ_SET_SECURITY and p.Parameters.Ea.SecurityInformation & LABEL_SECURITY_INFORMATION):
        if p.Parameters.Ea.EaName is NULL:
            return STATUS_INVALID_PARAMETER
    elif major == IRP_MJ_QUERY_SECURITY:
        if not p.Parameters.Ea.SecurityInformation & LABEL_SECURITY_INFORMATION:
            return STATUS_INVALID_PARAMETER
    elif major == IRP_MJ_FILE_SYSTEM_CONTROL:
        if p.Parameters.Control.ControlCode == <uint32_t>FSCTL_SET_REPARSE_POINT and (
                file.Node is NULL or node_type(file.Node) == S_IFLNK):
            return STATUS_INVALID_PARAMETER          # a link is made by filter_io.filter_symlink()
    elif major != IRP_MJ_READ and major != IRP_MJ_WRITE and major != IRP_MJ_QUERY_EA and major != IRP_MJ_SET_SECURITY and \
            major != IRP_MJ_FLUSH_BUFFERS and major != IRP_MJ_DIRECTORY_CONTROL and major != IRP_MJ_LOCK_CONTROL and \
            major != IRP_MJ_QUERY_VOLUME_INFORMATION and major != IRP_MJ_SET_VOLUME_INFORMATION and major != IRP_MJ_DEVICE_CONTROL:
        return STATUS_INVALID_PARAMETER
    return STATUS_SUCCESS if file.Node is not NULL else STATUS_INVALID_HANDLE      # not open yet, or not any more


cdef uint64_t most_of(const FLT_IO_PARAMETER_BLOCK *p) noexcept nogil:
    """The most bytes that a success can have moved."""
    if p.MajorFunction == IRP_MJ_READ or p.MajorFunction == IRP_MJ_WRITE:
        return p.Parameters.Read.Length
    if p.MajorFunction == IRP_MJ_DIRECTORY_CONTROL:
        return p.Parameters.Directory.Length
    if (p.MajorFunction == IRP_MJ_QUERY_EA or p.MajorFunction == IRP_MJ_QUERY_SECURITY) and p.Parameters.Ea.Length:
        return p.Parameters.Ea.Length
    if (p.MajorFunction == IRP_MJ_FILE_SYSTEM_CONTROL or p.MajorFunction == IRP_MJ_DEVICE_CONTROL) and \
            p.Parameters.Control.OutputBuffer is not NULL:
        return p.Parameters.Control.OutputBufferLength
    return <uint64_t>-1


cdef NTSTATUS perform(vfs_request_t *request, bint synchronous) noexcept nogil:
    """The operation in request.operation.current, below the initiator. IoStatus, and the parameters, stay to be looked at."""
    cdef operation_t *op = &request.operation
    cdef FLT_VOLUME *volume = request.volume
    cdef FLT_IO_PARAMETER_BLOCK parameters = op.current
    cdef PyObject *owner = op.buffer_owner
    cdef int read_only = op.buffer_read_only
    cdef uint32_t opcode = request_of(&parameters)
    cdef NTSTATUS status = well_formed(&parameters)
    if status != STATUS_SUCCESS:
        op.data.IoStatus.Status = status
        op.data.IoStatus.Information = 0
        return status
    request.opcode = opcode
    request.unique = stackfs_next(&volume.next_request) | <uint64_t>1 << 63
    request.info_known = 0
    if parameters.MajorFunction == IRP_MJ_WRITE and parameters.Parameters.Write.ByteOffset == -1:
        request.arguments.flags = <uint32_t>O_APPEND          # unless a filter below gives it an offset
        request.arguments.offset = <uint64_t>-1
    else:
        request.arguments.flags = 0
    operation_begin(op, volume, parameters.MajorFunction)
    op.current = parameters
    if synchronous:
        op.current.IrpFlags |= IRP_SYNCHRONOUS_API
    op.buffer_owner = owner
    op.buffer_read_only = read_only
    op.request = request
    if synchronous:
        op.announce_wait = <wait_function>served.announce
        request.reader = served.reader
    op.data.Flags = <uint32_t>FLTFL_CALLBACK_DATA_IRP_OPERATION | FLTFL_CALLBACK_DATA_GENERATED_IO
    op.data.RequestorMode = 0
    op.data.Thread = &request.who
    op.data.RequestNumber = request.unique
    op.data.RequestOpcode = opcode
    op.data.RequestFlags = REQUEST_PRINCIPAL | REQUEST_FIRST
    if parameters.MajorFunction == IRP_MJ_LOCK_CONTROL and not parameters.Parameters.Lock.FailImmediately:
        lock_enter((<backing_t *>volume.backing).locks, &request.waiting, request.unique)
    revert_to_self()
    operation_only_below(op, request.initiator)
    run_in_place(op)
    operation_end(op)
    revert_to_self()
    lock_leave((<backing_t *>volume.backing).locks, &request.waiting)
    if request.found is not NULL:            # a link's new name: nobody asked for its node
        node_forget((<backing_t *>volume.backing).nodes, node_id(request.found), 1)
        request.found = NULL
    op.current = parameters
    op.data.Iopb = &op.current
    if parameters.MajorFunction == IRP_MJ_LOCK_CONTROL and parameters.MinorFunction == IRP_MN_LOCK and \
            NT_SUCCESS(op.data.IoStatus.Status):
        set_bits(&parameters.TargetFileObject.Flags, FO_LOCKED)
    if NT_SUCCESS(op.data.IoStatus.Status) and op.data.IoStatus.Information > most_of(&parameters):
        op.data.IoStatus.Status = STATUS_IO_DEVICE_ERROR
        op.data.IoStatus.Information = 0
    return op.data.IoStatus.Status


cdef void run_in_place(operation_t *op) noexcept nogil:
    while operation_run(op) == 0:
        await_operation(op)


cdef void await_operation(operation_t *op) noexcept nogil:
    """It has stopped: because a filter below holds it, or because somebody else has the lock that it wants."""
    cdef vfs_request_t *request = <vfs_request_t *>op.request
    if op.state == OPERATION_PENDED_PRE or op.state == OPERATION_PENDED_POST:
        operation_wait(op)
        operation_resume(op)
    else:
        about_to_wait(op)
        lock_wait((<backing_t *>op.volume.backing).locks, &request.waiting)
        request.waiting.wanted = 0
        op.would_block = 0


cdef void clear_operation(vfs_request_t *request, FILE_OBJECT *file) noexcept nogil:
    cdef operation_t *op = &request.operation
    memset(&op.data, 0, cython.sizeof(FLT_CALLBACK_DATA))
    memset(&op.current, 0, cython.sizeof(FLT_IO_PARAMETER_BLOCK))
    op.data.Iopb = &op.current
    op.data.Flags = <uint32_t>FLTFL_CALLBACK_DATA_IRP_OPERATION | FLTFL_CALLBACK_DATA_GENERATED_IO
    op.data.Thread = &request.who
    op.request = request
    op.buffer_owner = NULL
    op.buffer_read_only = 0
    op.mdls = op.passed_down = NULL
    op.current.TargetFileObject = file
    op.current.TargetInstance = <FLT_INSTANCE *>request.initiator


cdef NTSTATUS FltAllocateCallbackData(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject,
                                      FLT_CALLBACK_DATA **RetNewCallbackData) noexcept nogil:
    cdef vfs_request_t *request
    RetNewCallbackData[0] = NULL
    if not enter(Instance):
        return STATUS_FLT_DELETING_OBJECT
    request = new_request(Instance, 0, NULL)
    leave(Instance)
    if request is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    clear_operation(request, FileObject)
    RetNewCallbackData[0] = &request.operation.data
    return STATUS_SUCCESS


cdef inline vfs_request_t *owner_of(FLT_CALLBACK_DATA *data) noexcept nogil:
    return <vfs_request_t *>(<operation_t *>data).request


cdef void FltPerformSynchronousIo(FLT_CALLBACK_DATA *CallbackData) noexcept nogil:
    cdef vfs_request_t *request = owner_of(CallbackData)
    cdef FLT_INSTANCE *instance = <FLT_INSTANCE *>request.initiator
    if not enter(instance):
        CallbackData.IoStatus.Status = STATUS_FLT_DELETING_OBJECT
        CallbackData.IoStatus.Information = 0
        return
    perform(request, True)
    leave(instance)


cdef void FltReuseCallbackData(FLT_CALLBACK_DATA *CallbackData) noexcept nogil:
    clear_operation(owner_of(CallbackData), CallbackData.Iopb.TargetFileObject)


cdef void FltFreeCallbackData(FLT_CALLBACK_DATA *CallbackData) noexcept nogil:
    request_free(owner_of(CallbackData))


cdef NTSTATUS begin_io(FLT_INSTANCE *instance, FILE_OBJECT *file, uint8_t major, vfs_request_t **request) noexcept nogil:
    """STATUS_SUCCESS: entered, and the parameters are to be filled; finish_io() leaves."""
    if not enter(instance):
        return STATUS_FLT_DELETING_OBJECT
    request[0] = new_request(instance, 0, NULL)
    if request[0] is NULL:
        leave(instance)
        return STATUS_INSUFFICIENT_RESOURCES
    clear_operation(request[0], file)
    request[0].operation.current.MajorFunction = major
    return STATUS_SUCCESS


cdef NTSTATUS finish_io(vfs_request_t *request, uint32_t *information) noexcept nogil:
    cdef FLT_INSTANCE *instance = <FLT_INSTANCE *>request.initiator
    cdef NTSTATUS status = perform(request, True)
    if information is not NULL:
        information[0] = <uint32_t>request.operation.data.IoStatus.Information if NT_SUCCESS(status) else 0
    request_free(request)
    leave(instance)
    return status


# --- asynchronous ------------------------------------------------------------------------------------------------------

cdef struct job_t:
    job_t *next
    vfs_request_t *request
    PFLT_COMPLETED_ASYNC_IO_CALLBACK callback
    void *context
    int frees                            # the request is ours: FltReadFile, FltWriteFile

cdef pthread_mutex_t jobs_mutex
cdef pthread_cond_t jobs_there
cdef job_t *first_job = NULL
cdef job_t *last_job = NULL
cdef int workers = 0
cdef int idle_workers = 0
cdef int queued = 0
pthread_mutex_init(&jobs_mutex, NULL)
init_condition(&jobs_there)


cdef void take_first() noexcept nogil:
    """Out of the queue; the mutex is held."""
    global first_job, last_job, queued
    first_job = first_job.next
    if first_job is NULL:
        last_job = NULL
    queued -= 1


cdef job_t *next_job() noexcept nogil:
    """NULL: there has been none for a while, and the thread is counted no more."""
    global workers, idle_workers
    cdef timespec until
    cdef job_t *job
    cdef int error = 0
    pthread_mutex_lock(&jobs_mutex)
    if first_job is NULL:
        clock_gettime(CLOCK_MONOTONIC, &until)
        until.tv_sec += ASYNC_IDLE
        idle_workers += 1
        while first_job is NULL and error != ETIMEDOUT:
            error = pthread_cond_timedwait(&jobs_there, &jobs_mutex, &until)
        idle_workers -= 1
    job = first_job
    if job is not NULL:
        take_first()
    else:
        workers -= 1
    pthread_mutex_unlock(&jobs_mutex)
    return job


cdef void carry_out(job_t *job) noexcept nogil:
    cdef FLT_INSTANCE *instance = <FLT_INSTANCE *>job.request.initiator
    perform(job.request, False)
    job.callback(&job.request.operation.data, job.context)
    if job.frees:
        request_free(job.request)
    free(job)
    leave(instance)


cdef void *work(void *_argument) noexcept nogil:
    cdef job_t *job
    python_attach()
    while True:
        job = next_job()
        if job is NULL:
            break
        carry_out(job)
    python_detach()
    return NULL


cdef void submit(job_t *job) noexcept nogil:
    global first_job, last_job, workers, queued
    cdef pthread_t thread
    cdef bint starts
    pthread_mutex_lock(&jobs_mutex)
    job.next = NULL
    if last_job is not NULL:
        last_job.next = job
    else:
        first_job = job
    last_job = job
    queued += 1
    starts = queued > idle_workers and workers < ASYNC_THREADS
    workers += starts
    pthread_cond_signal(&jobs_there)
    pthread_mutex_unlock(&jobs_mutex)
    if not starts:
        return
    if start_thread(&thread, work, NULL) == 0:
        pthread_detach(thread)
        return
    while True:                              # no thread can be had: it is done here, and so is what others relied on it for
        pthread_mutex_lock(&jobs_mutex)
        job = first_job
        if job is NULL:
            workers -= 1
        else:
            take_first()
        pthread_mutex_unlock(&jobs_mutex)
        if job is NULL:
            return
        carry_out(job)


cdef NTSTATUS start_io(vfs_request_t *request, PFLT_COMPLETED_ASYNC_IO_CALLBACK callback, void *context, bint frees) noexcept nogil:
    """The instance has been entered; it is left when the callback has returned, or now, where nothing was started."""
    cdef FLT_INSTANCE *instance = <FLT_INSTANCE *>request.initiator
    cdef NTSTATUS status = well_formed(&request.operation.current)
    cdef job_t *job = NULL
    if status == STATUS_SUCCESS:
        status = STATUS_INSUFFICIENT_RESOURCES
        job = <job_t *>malloc(cython.sizeof(job_t))
    if job is not NULL:
        job.request = request
        job.callback = callback
        job.context = context
        job.frees = frees
        submit(job)
        return STATUS_PENDING
    if frees:
        request_free(request)
    leave(instance)
    return status


cdef NTSTATUS FltPerformAsynchronousIo(FLT_CALLBACK_DATA *CallbackData, PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine,
                                       void *CallbackContext) noexcept nogil:
    cdef vfs_request_t *request = owner_of(CallbackData)
    if CallbackRoutine is NULL:
        return STATUS_INVALID_PARAMETER
    if not enter(<FLT_INSTANCE *>request.initiator):
        return STATUS_FLT_DELETING_OBJECT
    return start_io(request, CallbackRoutine, CallbackContext, False)
