"""The verifier's part in the core (docs/semantics.md, A11): the return statuses, completion contexts and buffers of callbacks, and
the level that routines are called at.

A callback that breaks a rule is treated as it is without the verifier (A6.13 above all): this tells of it, and changes nothing, with
one exception: a Python routine that is called at too high a level raises.

Everything but the enclosed callbacks is called under the GIL. The thread's current instance is the one whose callback it is in.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc

from stackfs.cext.buffers cimport FltDecodeParameters, MDL
from stackfs.cext.callback_data cimport (
    FLTFL_CALLBACK_DATA_DIRTY, FLTFL_CALLBACK_DATA_DRAINING_IO, FLTFL_CALLBACK_DATA_FAST_IO_OPERATION,
    FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION, FLTFL_CALLBACK_DATA_IRP_OPERATION, FLTFL_CALLBACK_DATA_POST_OPERATION,
    FLTFL_CALLBACK_DATA_SYSTEM_BUFFER, FLT_IO_PARAMETER_BLOCK, FLT_POSTOP_DISALLOW_FSFILTER_IO,
    FLT_POSTOP_FINISHED_PROCESSING, FLT_POSTOP_MORE_PROCESSING_REQUIRED, FLT_PREOP_COMPLETE, FLT_PREOP_DISALLOW_FASTIO,
    FLT_PREOP_DISALLOW_FSFILTER_IO, FLT_PREOP_PENDING, FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE, IO_STATUS_BLOCK, IRP_MJ_CLEANUP, IRP_MJ_CLOSE, IRP_MJ_CREATE, IRP_MJ_DIRECTORY_CONTROL,
    IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_LOCK_CONTROL, IRP_MJ_QUERY_OPEN, IRP_MN_LOCK)
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.paths cimport operation_path
from stackfs.cext.ntstatus cimport NT_SUCCESS, STATUS_FLT_DISALLOW_FAST_IO, STATUS_PENDING, STATUS_SUCCESS
from stackfs.cext.pending cimport (
    HOLD_RAISED, PASSIVE_LEVEL, callback_enter, callback_frame_t, callback_leave, irql_get, operation_irql)
from stackfs.cext.stack cimport FLT_FILTER  # no-cython-lint: completes the struct
from stackfs.cext.stack cimport FLT_INSTANCE, MAJOR_FUNCTIONS, NAME_PROVIDERS, callback_t, operation_t

from os import fsdecode


cdef extern from *:
    """
    static __thread const void *verified_instance;
    static inline const void *verified_enter(const void *instance) {
        const void *before = verified_instance; verified_instance = instance; return before; }
    """
    const void *verified_instance        # this thread's
    const void *verified_enter(const void *instance) nogil

cdef enum:
    PATH_ROOM = 4608
    IRP_MN_NOTIFY_CHANGE_DIRECTORY = 2

cdef int verifier_on = 0
cdef object watcher = None


# --- what is wrong -----------------------------------------------------------------------------------------------------

cdef bint cannot_fail(const operation_t *op) noexcept nogil:
    return op.current.MajorFunction == IRP_MJ_CLEANUP or op.current.MajorFunction == IRP_MJ_CLOSE


cdef bint may_be_held(const operation_t *op) noexcept nogil:
    return op.data.Flags & (FLTFL_CALLBACK_DATA_IRP_OPERATION | FLTFL_CALLBACK_DATA_DRAINING_IO) == \
        FLTFL_CALLBACK_DATA_IRP_OPERATION


cdef bint is_query_open(const operation_t *op) noexcept nogil:
    return op.current.MajorFunction == IRP_MJ_QUERY_OPEN and op.data.Flags & FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION


cdef bint is_oplock_control(uint32_t code) noexcept nogil:
    """FSCTL_REQUEST_OPLOCK_LEVEL_1 and _2, ..._BATCH_OPLOCK, ..._FILTER_OPLOCK, FSCTL_REQUEST_OPLOCK."""
    return code == 0x90000 or code == 0x90004 or code == 0x90008 or code == 0x9005C or code == 0x90240


cdef const char *wrong_synchronisation(const operation_t *op) noexcept nogil:
    """FLT_PREOP_SYNCHRONIZE of what others may have to end while this thread would wait for it."""
    if not op.data.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION:
        return NULL                          # as SUCCESS_WITH_CALLBACK
    if op.current.MajorFunction == IRP_MJ_CREATE:
        return b"FLT_PREOP_SYNCHRONIZE of a CREATE, which is synchronised already"
    if op.current.MajorFunction == IRP_MJ_LOCK_CONTROL and op.current.MinorFunction == IRP_MN_LOCK and \
            not op.current.Parameters.Lock.FailImmediately:
        return b"FLT_PREOP_SYNCHRONIZE of a lock that may have to wait"
    if op.current.MajorFunction == IRP_MJ_DIRECTORY_CONTROL and op.current.MinorFunction == IRP_MN_NOTIFY_CHANGE_DIRECTORY:
        return b"FLT_PREOP_SYNCHRONIZE of a NOTIFY_CHANGE_DIRECTORY, which waits for a change"
    if op.current.MajorFunction == IRP_MJ_FILE_SYSTEM_CONTROL and is_oplock_control(op.current.Parameters.Control.ControlCode):
        return b"FLT_PREOP_SYNCHRONIZE of an oplock request, which ends when the oplock is broken"
    return NULL


cdef const char *wrong_buffer(operation_t *op, bint post_comes) noexcept nogil:
    """The rules of swapping (A5.3). op.current: what the callback received, op.shown: what it has made of it."""
    cdef FLT_CALLBACK_DATA received = op.data
    cdef void **mdl
    cdef void **mdl_before
    cdef void **buffer
    cdef void **before
    cdef uint32_t *length
    cdef const MDL *describes
    if op.shown.MajorFunction != op.current.MajorFunction:
        return b"it changed MajorFunction"
    if op.shown.TargetFileObject is not op.current.TargetFileObject and op.shown.TargetInstance is op.current.TargetInstance:
        return b"it changed TargetFileObject, and not TargetInstance"
    received.Iopb = &op.current
    if FltDecodeParameters(&received, &mdl_before, &before, NULL, NULL) != STATUS_SUCCESS or \
            FltDecodeParameters(&op.data, &mdl, &buffer, &length, NULL) != STATUS_SUCCESS:
        return NULL
    describes = <const MDL *>mdl[0]
    if buffer[0] is before[0]:
        if describes is not NULL and describes is not <const MDL *>mdl_before[0] and describes.StartVa is not buffer[0]:
            return b"MdlAddress does not describe the buffer"
        return NULL
    if not op.data.Flags & <uint32_t>FLTFL_CALLBACK_DATA_DIRTY:
        return b"it swapped the buffer, and did not mark the data dirty: the swap does not count"
    if not post_comes:
        return b"it swapped the buffer, and its post is not called: nobody copies and frees"
    if describes is NULL:
        return NULL
    if op.data.Flags & (FLTFL_CALLBACK_DATA_SYSTEM_BUFFER | FLTFL_CALLBACK_DATA_FAST_IO_OPERATION):
        return b"it swapped the buffer, and MdlAddress is not NULL, as it has to be for a system buffer and for fast I/O"
    if describes is <const MDL *>mdl_before[0]:
        return b"it swapped the buffer, and left the MDL of the old one"
    if describes.StartVa is not buffer[0] or describes.ByteCount < length[0]:
        return b"it swapped the buffer, and MdlAddress describes another one"
    return NULL


cdef const char *wrong_pre(operation_t *op, const callback_t *callback, int status, const void *context) noexcept nogil:
    """The rule that a pre callback's return breaks (A6.1 to A6.9), or NULL."""
    cdef bint owed = status == FLT_PREOP_SUCCESS_WITH_CALLBACK or status == FLT_PREOP_SYNCHRONIZE
    cdef const char *wrong
    if owed and callback.post is NULL:
        return b"it asked for its post callback, and has registered none"
    if not owed and context is not NULL:
        return b"a completion context goes with FLT_PREOP_SUCCESS_WITH_CALLBACK and FLT_PREOP_SYNCHRONIZE alone"
    if status == FLT_PREOP_SYNCHRONIZE:
        wrong = wrong_synchronisation(op)
        if wrong is not NULL:
            return wrong
    if owed or status == FLT_PREOP_SUCCESS_NO_CALLBACK:
        return wrong_buffer(op, owed)
    if status == FLT_PREOP_PENDING:
        if may_be_held(op):
            return NULL
        return b"FLT_PREOP_PENDING of what is no IRP"
    if status == FLT_PREOP_DISALLOW_FASTIO:
        if op.data.Flags & FLTFL_CALLBACK_DATA_FAST_IO_OPERATION:
            return NULL
        return b"FLT_PREOP_DISALLOW_FASTIO of what was not offered as fast I/O"
    if status == FLT_PREOP_DISALLOW_FSFILTER_IO:
        if is_query_open(op):
            return NULL
        return b"FLT_PREOP_DISALLOW_FSFILTER_IO of what is no QUERY_OPEN"
    if status != FLT_PREOP_COMPLETE:
        return b"it returned what is no status of a pre callback"
    if op.data.IoStatus.Status == STATUS_PENDING:
        return b"it completed the operation with STATUS_PENDING"
    if op.data.IoStatus.Status == STATUS_FLT_DISALLOW_FAST_IO:
        return b"it completed the operation with STATUS_FLT_DISALLOW_FAST_IO"
    if cannot_fail(op) and not NT_SUCCESS(op.data.IoStatus.Status):
        return b"it failed a CLEANUP or CLOSE, which cannot be failed"
    return NULL


cdef const char *wrong_post(operation_t *op, int status, const IO_STATUS_BLOCK *before) noexcept nogil:
    """The rule that a post callback's return breaks (A6.2, A6.6, A6.9), or NULL."""
    if status == FLT_POSTOP_MORE_PROCESSING_REQUIRED:
        if op.data.Flags & FLTFL_CALLBACK_DATA_DRAINING_IO:
            return b"FLT_POSTOP_MORE_PROCESSING_REQUIRED of what is drained"
        if may_be_held(op):
            return NULL
        return b"FLT_POSTOP_MORE_PROCESSING_REQUIRED of what is no IRP"
    if status == FLT_POSTOP_DISALLOW_FSFILTER_IO:
        if is_query_open(op):
            return NULL
        return b"FLT_POSTOP_DISALLOW_FSFILTER_IO of what is no QUERY_OPEN"
    if status != FLT_POSTOP_FINISHED_PROCESSING:
        return b"it returned what is no status of a post callback"
    if op.data.IoStatus.Status == before.Status:
        return NULL
    if op.data.IoStatus.Status == STATUS_PENDING:
        return b"it set STATUS_PENDING in its post callback"
    if cannot_fail(op) and not NT_SUCCESS(op.data.IoStatus.Status):
        return b"it failed a CLEANUP or CLOSE, which cannot be failed"
    return NULL


# --- enclosed callbacks -------------------------------------------------------------------------------------------------

cdef int verified_pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void **context) noexcept nogil:
    cdef operation_t *op = <operation_t *>data
    cdef FLT_INSTANCE *instance = related.Instance
    cdef const callback_t *callback = &instance.Verified[op.current.MajorFunction]
    cdef const void *outer = verified_enter(instance)
    cdef callback_frame_t frame
    cdef const char *wrong
    cdef int status
    callback_enter(&frame, op, PASSIVE_LEVEL)
    status = callback.pre(data, related, context)
    callback_leave(&frame)
    verified_enter(outer)
    if status == HOLD_RAISED:
        if instance.PythonPre[op.current.MajorFunction] is not NULL:
            return status                    # it raised, and was reported
        status = -1
    wrong = wrong_pre(op, callback, status, context[0])
    if wrong is not NULL:
        verifier_complains(data, instance, b"pre", wrong)
    return status


cdef int verified_post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void *context, uint32_t flags) noexcept nogil:
    cdef operation_t *op = <operation_t *>data
    cdef FLT_INSTANCE *instance = related.Instance
    cdef IO_STATUS_BLOCK before = data.IoStatus
    cdef const void *outer = verified_enter(instance)
    cdef callback_frame_t frame
    cdef const char *wrong
    cdef int status
    callback_enter(&frame, op, operation_irql(op))
    status = instance.Verified[op.current.MajorFunction].post(data, related, context, flags)
    callback_leave(&frame)
    verified_enter(outer)
    if status == HOLD_RAISED:
        if instance.PythonPost[op.current.MajorFunction] is not NULL:
            return status
        status = -1
    wrong = wrong_post(op, status, &before)
    if wrong is not NULL:
        verifier_complains(data, instance, b"post", wrong)
    return status


cdef bint verifier_encloses(FLT_INSTANCE *instance, void *registered) noexcept:
    cdef callback_t *operations = <callback_t *>registered
    cdef int major
    instance.Verified = <callback_t *>calloc(MAJOR_FUNCTIONS, sizeof(callback_t))
    if instance.Verified is NULL:
        return False
    for major in range(MAJOR_FUNCTIONS):
        if operations[major].instance is NULL or major == NAME_PROVIDERS:
            continue
        instance.Verified[major] = operations[major]
        if operations[major].pre is not NULL:
            operations[major].pre = verified_pre
        if operations[major].post is not NULL:
            operations[major].post = verified_post
    return True


cdef void verify_completed_pre(FLT_CALLBACK_DATA *data, int status, void *context) noexcept nogil:
    cdef operation_t *op = <operation_t *>data
    cdef FLT_INSTANCE *instance = op.list.callbacks[op.index - 1].instance
    cdef const char *wrong
    if instance.Verified is NULL or status == HOLD_RAISED:
        return
    wrong = wrong_pre(op, &instance.Verified[op.current.MajorFunction], status, context)
    if wrong is not NULL:
        verifier_complains(data, instance, b"pre", wrong)


# --- telling ------------------------------------------------------------------------------------------------------------

cdef void verifier_complains(FLT_CALLBACK_DATA *data, const FLT_INSTANCE *instance, const char *routine, const char *what) noexcept nogil:
    revert_to_self()
    with gil:
        tell(<operation_t *>data, instance, routine, what)


cdef str path_of(operation_t *op, const FLT_INSTANCE *instance):
    """As the layer received it; nothing of the operation is touched."""
    cdef FLT_CALLBACK_DATA data = op.data
    cdef FLT_IO_PARAMETER_BLOCK received = op.current
    cdef FLT_RELATED_OBJECTS related = instance.Related
    cdef bytes buffer
    cdef int length
    if op.volume.nodes is NULL:
        return ""
    data.Iopb = &received
    related.FileObject = received.TargetFileObject
    buffer = PyBytes_FromStringAndSize(NULL, PATH_ROOM)
    length = operation_path(&data, &related, PyBytes_AS_STRING(buffer), PATH_ROOM)
    return fsdecode(buffer[:length]) if length > 0 else ""


cdef str text(const char *name):
    return "" if name is NULL else name.decode("utf-8", "surrogateescape")


cdef object python_routine(const FLT_INSTANCE *instance, uint8_t major, bint post):
    """The filter's method, if it is Python's."""
    cdef PyObject *method = instance.PythonPost[major] if post else instance.PythonPre[major]
    return None if method is NULL else <object>method


cdef void tell(operation_t *op, const FLT_INSTANCE *instance, const char *routine, const char *what) noexcept:
    cdef uint8_t major = op.current.MajorFunction
    if watcher is None:
        return
    try:
        watcher.complain(
            text(what), text(instance.Related.Filter.Name), text(instance.Name), text(routine), major,
            path_of(op, instance), python_routine(instance, major, text(routine) == "post"))
    except BaseException:
        pass


cdef void tell_level(const FLT_INSTANCE *instance, int level, int most, str routine) noexcept:
    if watcher is None:
        return
    try:
        watcher.complain_of_call(
            f"{routine} was called at level {level}, and may be at {most} at most",
            "" if instance is NULL else text(instance.Related.Filter.Name), "" if instance is NULL else text(instance.Name), routine)
    except BaseException:
        pass


cdef void verifier_level(int level, const char *routine) noexcept nogil:
    if irql_get() <= level:
        return
    revert_to_self()
    with gil:
        tell_level(<const FLT_INSTANCE *>verified_instance, irql_get(), level, text(routine))


cdef int verifier_too_high(int level, int most, str routine) except -1:
    tell_level(<const FLT_INSTANCE *>verified_instance, level, most, routine)
    raise RuntimeError(f"{routine} was called at level {level}, and may be at {most} at most (A6.12)")


cdef tuple verifier_whose(const FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, bint completed):
    if related is NULL:
        return None
    return (text(related.Filter.Name), text(related.Instance.Name),
            "post" if data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION else "pre", data.Iopb.MajorFunction, completed)


cdef int verifier_dead(object whose, bint completing) except -1:
    """Dead data have been used. Who completes an operation may find that somebody else was faster: that is no mistake."""
    if watcher is None or type(whose) is not tuple or (completing and whose[4]):
        return 0
    what = "callback data was used after the operation was completed" if whose[4] else \
        "callback data was used after its callback had returned"
    watcher.complain_of_call(what, whose[0], whose[1], whose[2], whose[3])
    return 0


cdef object verifier_watcher():
    return watcher


# --- for stackfs/verifier.py ------------------------------------------------------------------------------------------------

def set_watcher(new) -> None:
    """Who is told what is found, and what filters acquire; None: the verifier is off. Instances that are there stay as they are."""
    global verifier_on, watcher
    watcher = new
    verifier_on = new is not None


def current_instance():
    """(filter, instance's object) of the callback that this thread is in; None: in none, or the verifier was off when the
    instance was made."""
    cdef const FLT_INSTANCE *instance = <const FLT_INSTANCE *>verified_instance
    if instance is NULL:
        return None
    return text(instance.Related.Filter.Name), <object>instance.Object
