"""Oplocks for Python (docs/semantics.md A9): the face of an OPLOCK, for callback data and for opens without. The rules are in oplock.pyx.

Everything here is called with the GIL, and gives it up before it takes an oplock's lock: a claim, under that lock, takes the GIL.
What a record needs of Python is held in its context, with a reference, until `done` has been called.
"""

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from stackfs.cext.callback_data cimport (
    FILE_READ_DATA, FLT_CALLBACK_DATA, FLT_PREOP_COMPLETE, FLT_PREOP_PENDING, FLT_PREOP_SUCCESS_WITH_CALLBACK, CallbackData,
    oplock_open_t)
from stackfs.cext.file_object cimport FileReference
from stackfs.cext.holding cimport holding_raised, holding_report
from stackfs.cext.ntstatus cimport NT_SUCCESS, NTSTATUS, STATUS_PENDING, STATUS_SUCCESS
from stackfs.cext.oplock cimport (
    BEHIND_EVERY_BREAK, OPLOCK, OPLOCK_LISTS, OPLOCK_BREAK_ALL, OPLOCK_BREAK_TO_TWO, OPLOCK_FLAG_BACK_OUT_ATOMIC_OPLOCK,
    OPLOCK_LEVEL_CACHE_READ, OPLOCK_LEVEL_TWO, OPLOCK_OPEN, OPLOCK_OPEN_BREAK_H, OPLOCK_OPERATIONS, FltCurrentBatchOplock,
    FltCurrentOplock, FltCurrentOplockH, FltInitializeOplock, FltOplockIsFastIoPossible, FltOplockIsSharedRequest,
    FltUninitializeOplock, GRANULAR_BREAKS, break_operation, breaking_to, cancelled_by, check_operation, checked_t, fsctl_with,
    is_oplock_key, oplock_acknowledge, oplock_answer, oplock_break_t, oplock_cancel, oplock_check, oplock_close, oplock_end,
    oplock_list_t, oplock_lists, oplock_notify, oplock_open_break, oplock_operation_name, oplock_record_drop, oplock_record_new,
    oplock_record_t, oplock_request, oplock_request_t, oplock_reserve, oplock_same_key, oplock_state, oplock_t, oplock_unreserve)
from stackfs.cext.pending cimport APC_LEVEL, irql_require, operation_off_cancel, operation_on_cancel
from stackfs.cext.stack cimport operation_t
from stackfs.cext.threads cimport *


cdef class _Pended:
    """The data of a Python callback's operation that holds an oplock (routine None), or waits."""
    cdef CallbackData data
    cdef object routine
    cdef object prepost
    cdef object context


cdef void let_go(CallbackData data) noexcept:
    if data.cancellable:
        data.cancellable = False
        data.queue = None
        Py_DECREF(data)


cdef int claim_python(oplock_record_t *record, bint entering) noexcept nogil:
    with gil:
        return call_claim(record, entering)


cdef int call_claim(oplock_record_t *record, bint entering) noexcept:
    cdef _Pended held = <_Pended>record.context
    cdef CallbackData data = held.data
    if data.data is NULL:                # its callback has failed after all, and the operation went on without it
        return -1
    if not entering:
        if not operation_off_cancel(<operation_t *>data.data):
            return 0
        let_go(data)
        return 1
    if operation_on_cancel(<operation_t *>data.data, cancelled_by, record) != STATUS_SUCCESS:
        return 0
    add_int(&record.references, 1)
    Py_INCREF(data)                      # as whatever cancels it has; CallbackData.end() gives it back
    data.cancellable = True
    data.queue = held                    # it cannot be completed meanwhile
    return 1


cdef void done_python(oplock_record_t *record) noexcept nogil:
    with gil:
        call_done(record)


cdef void call_done(oplock_record_t *record) noexcept:
    cdef _Pended held = <_Pended>record.context
    cdef CallbackData data = held.data
    cdef FLT_CALLBACK_DATA *native
    Py_DECREF(held)
    let_go(data)
    native = data.data
    if native is NULL:
        return
    try:
        if held.routine is None:
            oplock_answer(record, native, record.status)
            data.complete_pended_pre(FLT_PREOP_COMPLETE)
        else:
            native.IoStatus.Status = record.status
            native.IoStatus.Information = 0
            held.routine(data, held.context)
    except BaseException as error:
        if data.data is NULL:            # it was completed; there is nothing to undo
            return
        holding_report(native, data.objects, "oplock", error)
        data.undo()
        data.end()
        with nogil:
            holding_raised(native)


cdef const oplock_open_t *open_of(object what) except NULL:
    """Of an OplockOpen, a file object, or callback data: the open that the operation is about."""
    if isinstance(what, OplockOpen):
        return &(<OplockOpen>what).open
    if isinstance(what, CallbackData):
        return &(<CallbackData>what).live().Iopb.TargetFileObject.Oplock
    if isinstance(what, FileReference):
        return &(<FileReference>what).live().Oplock
    raise TypeError(f"neither an open nor what an operation is about: {type(what).__name__}")


cdef bytes key_of(object value):
    cdef bytes key = bytes(value)
    if len(key) not in (0, 16):
        raise ValueError(f"an oplock key has 16 bytes (or none: no key), not {len(key)}")
    return key.ljust(16, b"\0")


def set_oplock_keys(what, target=b"", parent=b""):
    """The oplock keys of an open (callback data, a file object, an OplockOpen): 16 bytes each, or b"" for none.

    Opens with equal target keys are one client's. The parent key stands for the target key where the oplock is the
    directory's (OPLOCK_FLAG_PARENT_OBJECT). To be set before the open is granted anything. ValueError: another length.
    """
    cdef oplock_open_t *open = <oplock_open_t *>open_of(what)
    cdef bytes target_key = key_of(target)
    cdef bytes parent_key = key_of(parent)
    memcpy(open.TargetKey, <const char *>target_key, 16)
    memcpy(open.ParentKey, <const char *>parent_key, 16)


def oplock_keys(what):
    """The two oplock keys of an open; b"" where it has none."""
    cdef const oplock_open_t *open = open_of(what)
    return ((<const char *>open.TargetKey)[:16] if is_oplock_key(open.TargetKey) else b"",
            (<const char *>open.ParentKey)[:16] if is_oplock_key(open.ParentKey) else b"")


def oplock_keys_equal(one, other):
    """FltOplockKeysEqual: two opens of one client: one open, or two with one key."""
    cdef const oplock_open_t *first = open_of(one)
    cdef const oplock_open_t *second = open_of(other)
    return oplock_same_key(first, first.TargetKey, second, second.TargetKey)


def is_shared_request(CallbackData data not None):
    """FltOplockIsSharedRequest: an FSCTL that asks for level 2, R or RH."""
    return FltOplockIsSharedRequest(data.live())


cdef class OplockOpen:
    """An open that belongs to no file object, with its keys (see set_oplock_keys)."""

    def __init__(self, target=b"", parent=b""):
        set_oplock_keys(self, target, parent)

    @property
    def number(self):
        """What Oplock.held() and waiting() call it."""
        return <uintptr_t>&self.open


cdef class OplockRequest:
    """Somebody who holds an oplock, or waits: `done(request)` is called once, in the thread that ends it; `status`,
    `new_level` and `acknowledge` then say how."""
    def __dealloc__(self):
        if self.record is not NULL:
            oplock_record_drop(self.record)

    @property
    def pended(self):
        """It holds an oplock that is not broken, or waits."""
        return self.record.pended != 0

    @property
    def status(self):
        """An unsigned NTSTATUS; 0 also while it is pended."""
        return <uint32_t>self.record.status

    @property
    def level(self):
        """OPLOCK_LEVEL_* bits of what it held; 0: it waited."""
        return self.record.level

    @property
    def new_level(self):
        """What it was broken to, or switched to."""
        return self.record.new_level

    @property
    def acknowledge(self):
        """The break has to be acknowledged."""
        return self.record.acknowledge != 0

    def cancel(self):
        """It gives up what it holds, or waits no more: `done`, with STATUS_CANCELLED. Nothing, once it was told something else."""
        cdef oplock_record_t *record = self.record
        add_int(&record.references, 1)
        with nogil:
            oplock_cancel(record)


cdef void done_request(oplock_record_t *record) noexcept nogil:
    with gil:
        call_on_done(record)


cdef void call_on_done(oplock_record_t *record) noexcept:
    cdef OplockRequest request = <OplockRequest>record.context
    Py_DECREF(request)
    if request.on_done is not None:
        request.on_done(request)


cdef class Oplock:
    """The oplock of one stream (A9): what filters keep in a stream context, initialised. See oplock.pyi."""

    def __cinit__(self):
        FltInitializeOplock(&self.oplock)
        if self.oplock is NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef oplock_t *oplock = self.oplock
        self.oplock = NULL
        if oplock is not NULL:
            with nogil:
                oplock_end(oplock)

    def initialize(self):
        """FltInitializeOplock: a new one is as this makes it."""
        irql_require(APC_LEVEL, "FltInitializeOplock")
        if self.oplock is NULL:
            FltInitializeOplock(&self.oplock)

    def uninitialize(self):
        """FltUninitializeOplock: all that hold it, or wait, end with STATUS_CANCELLED; from now on nothing is granted."""
        cdef OPLOCK *oplock = &self.oplock
        irql_require(APC_LEVEL, "FltUninitializeOplock")
        with nogil:
            FltUninitializeOplock(oplock)

    cdef oplock_t *live(self) except NULL:
        if self.oplock is NULL:
            raise ReferenceError("the oplock has been uninitialised")
        return self.oplock

    # ---- callback data

    def fsctl(self, CallbackData data not None, uint32_t open_count=0, uint32_t flags=0):
        """FltOplockFsctrlEx: `return oplock.fsctl(data, open_count)`."""
        cdef FLT_CALLBACK_DATA *native = data.live()
        cdef _Pended held = _Pended.__new__(_Pended)
        cdef checked_t how
        cdef int status
        irql_require(APC_LEVEL, "FltOplockFsctrl")
        refuse_cancellable(data)
        held.data = data
        how = checked_t(native, done_python, claim_python, <void *>held, NULL, NULL, NULL, NULL)
        Py_INCREF(held)
        with nogil:
            status = fsctl_with(self.oplock, open_count, flags, &how)
        if status != FLT_PREOP_PENDING:
            Py_DECREF(held)
        return status

    def check(self, CallbackData data not None, routine=None, context=None, prepost=None, uint32_t flags=0):
        """FltCheckOplockEx: an FLT_PREOP_* status."""
        if oplock_state(self.oplock) == 0 and not flags & OPLOCK_FLAG_BACK_OUT_ATOMIC_OPLOCK:
            return <int>FLT_PREOP_SUCCESS_WITH_CALLBACK
        return self.check_as(data, -1, routine, context, prepost, flags)

    def break_handle(self, CallbackData data not None, routine=None, context=None, prepost=None, uint32_t flags=0):
        """FltOplockBreakH: after a sharing violation; then the sharing is checked once more."""
        return self.check_as(data, OPLOCK_OPEN_BREAK_H, routine, context, prepost, flags)

    def break_to_none(self, CallbackData data not None, routine=None, context=None, prepost=None, uint32_t flags=0):
        """FltOplockBreakToNoneEx: whatever keys there are."""
        return self.check_as(data, OPLOCK_BREAK_ALL, routine, context, prepost, flags)

    def check_as(self, CallbackData data not None, int operation, routine, context, prepost, uint32_t flags):
        """As the row of the table: OPLOCK_OPEN_BREAK_H or OPLOCK_BREAK_ALL; -1: as what the operation is."""
        cdef FLT_CALLBACK_DATA *native = data.live()
        cdef _Pended held = _Pended.__new__(_Pended)
        cdef checked_t how
        cdef int status
        irql_require(APC_LEVEL, "FltCheckOplock")
        held.data = data
        held.context = context
        held.routine = Oplock.go_on if routine is None and (<operation_t *>native).would_block else routine
        how = checked_t(native, done_python, claim_python, <void *>held, NULL, NULL, NULL, NULL)
        if held.routine is not None:
            refuse_cancellable(data)
            how.routine = <void *>held
        if prepost is not None:
            held.prepost = prepost
            how.prepost = call_prepost
            how.prepost_context = <void *>held
        Py_INCREF(held)
        with nogil:
            status = check_operation(self.oplock, flags, &how) if operation < 0 else \
                break_operation(self.oplock, operation, flags, &how)
        if status != FLT_PREOP_PENDING:
            Py_DECREF(held)
        return status

    @staticmethod
    def go_on(CallbackData data not None, context=None):
        """A wait routine: the operation goes on, or ends with STATUS_CANCELLED."""
        data.complete_pended_pre(
            FLT_PREOP_SUCCESS_WITH_CALLBACK if NT_SUCCESS(<NTSTATUS><uint32_t>data.status) else FLT_PREOP_COMPLETE)

    # ---- opens without callback data

    cdef OplockRequest new_request(self, opener, on_done):
        cdef OplockRequest request = OplockRequest.__new__(OplockRequest)
        request.record = oplock_record_new(self.live(), open_of(opener), done_request, NULL, <void *>request)
        if request.record is NULL:
            raise MemoryError
        request.opener = opener
        request.on_done = on_done
        Py_INCREF(request)
        add_int(&request.record.references, 1)               # the package's
        return request

    cdef tuple settled(self, OplockRequest request, NTSTATUS status):
        """What was asked for has been answered; if not by waiting, the request is over."""
        if status == STATUS_PENDING:
            return <uint32_t>status, request
        oplock_record_drop(request.record)
        Py_DECREF(request)
        return <uint32_t>status, request

    def request(self, opener, uint32_t level, done=None, *, bint directory=False, bint synchronous=False, bint deleted=False,
                bint others_open=False, bint all_keys_match=False, bint byte_range_locks=False):
        """2.1.5.18: (unsigned NTSTATUS, OplockRequest). STATUS_PENDING: it is held."""
        cdef OplockRequest request = self.new_request(opener, done)
        cdef oplock_request_t how
        cdef oplock_t *oplock = self.oplock
        cdef oplock_record_t *record = request.record
        cdef NTSTATUS status
        how = oplock_request_t(directory, synchronous, deleted, others_open, all_keys_match, byte_range_locks)
        with nogil:
            status = oplock_request(oplock, record, level, &how)
        return self.settled(request, status)

    def acknowledge(self, opener, int how, uint32_t level=0, done=None, *, bint deleted=False):
        """2.1.5.19, how: OPLOCK_ACK*: (unsigned NTSTATUS, OplockRequest). STATUS_PENDING: an oplock is held again.
        STATUS_CANNOT_GRANT_REQUESTED_OPLOCK: request.new_level is what there is, to be acknowledged once more."""
        cdef OplockRequest request = self.new_request(opener, done)
        cdef oplock_t *oplock = self.oplock
        cdef oplock_record_t *record = request.record
        cdef NTSTATUS status
        with nogil:
            status = oplock_acknowledge(oplock, record, how, level, deleted)
        return self.settled(request, status)

    def operate(self, opener, int operation, done=None, *, uint32_t access=FILE_READ_DATA, uint32_t share=7, uint32_t options=0x1000000,
                bint if_oplocked=False, bint ignore_keys=False, bint requiring=False):
        """2.1.4.12: (unsigned NTSTATUS, OplockRequest). STATUS_SUCCESS: go on; STATUS_PENDING: wait for `done`;
        STATUS_OPLOCK_BREAK_IN_PROGRESS; STATUS_CANNOT_BREAK_OPLOCK. OPLOCK_OPEN takes access, share and options into account."""
        cdef OplockRequest request
        cdef oplock_t *oplock = self.live()
        cdef oplock_break_t what
        cdef oplock_record_t *record
        cdef NTSTATUS status
        if not 0 <= operation < OPLOCK_OPERATIONS:
            raise ValueError(f"no operation that breaks oplocks: {operation}")
        if operation == OPLOCK_OPEN:
            what = oplock_open_break(open_of(opener), access, share, options)
        else:
            memset(&what, 0, sizeof(what))
            what.open = open_of(opener)
            what.operation = <uint8_t>operation
        what.if_oplocked |= if_oplocked
        what.ignore_keys = ignore_keys
        what.requiring |= requiring
        request = self.new_request(opener, done)
        record = request.record
        with nogil:
            status = oplock_check(oplock, &what, record)
        return self.settled(request, status)

    def notify(self, opener, done=None):
        """FSCTL_OPLOCK_BREAK_NOTIFY: STATUS_PENDING while a break is not settled."""
        cdef OplockRequest request = self.new_request(opener, done)
        cdef oplock_t *oplock = self.oplock
        cdef oplock_record_t *record = request.record
        cdef NTSTATUS status
        with nogil:
            status = oplock_notify(oplock, record)
        return self.settled(request, status)

    def close(self, opener):
        """The open's handle is closed: what it holds ends, and what it was to acknowledge is."""
        cdef oplock_t *oplock = self.live()
        cdef const oplock_open_t *open = open_of(opener)
        with nogil:
            oplock_close(oplock, open)

    def reserve(self, opener):
        """For the open that will ask for an oplock next (A9.25). False: it is reserved already."""
        cdef oplock_t *oplock = self.live()
        cdef const oplock_open_t *open = open_of(opener)
        cdef bint reserved
        with nogil:
            reserved = oplock_reserve(oplock, open)
        return reserved

    def unreserve(self, opener):
        """It will not ask."""
        cdef oplock_t *oplock = self.live()
        cdef const oplock_open_t *open = open_of(opener)
        with nogil:
            oplock_unreserve(oplock, open)

    # ---- what there is

    @property
    def state(self):
        """OplockLevel and OplockState bits; 0: nobody holds it."""
        return oplock_state(self.oplock)

    @property
    def is_current(self):
        """FltCurrentOplock."""
        return FltCurrentOplock(&self.oplock)

    @property
    def is_current_h(self):
        """FltCurrentOplockH."""
        return FltCurrentOplockH(&self.oplock)

    @property
    def is_current_batch(self):
        """FltCurrentBatchOplock: a batch or a filter oplock."""
        return FltCurrentBatchOplock(&self.oplock)

    @property
    def fast_io_possible(self):
        """FltOplockIsFastIoPossible."""
        return FltOplockIsFastIoPossible(&self.oplock)

    def held(self):
        """Who holds it: (open, level, breaking to or None, seconds) for each; `open` is a number for an open's lifetime, the
        seconds count from the grant, or from the break."""
        return snapshot(self.live(), False)

    def waiting(self):
        """Who waits: (open, the operation's name, seconds) for each, the first to go on first."""
        return snapshot(self.live(), True)


cdef void call_prepost(FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    with gil:
        prepost_of(<_Pended>context)


cdef void prepost_of(_Pended held) noexcept:
    try:
        held.prepost(held.data, held.context)
    except BaseException as error:
        if held.data.data is not NULL:
            holding_report(held.data.data, held.data.objects, "oplock", error)


cdef int refuse_cancellable(CallbackData data) except -1:
    if data.cancellable:
        raise ValueError("the operation has a cancel completion, or is in a cancel-safe queue")
    return 0


cdef list snapshot(oplock_t *oplock, bint waiting):
    """Copied under the lock, which is taken without the GIL."""
    cdef oplock_record_t *copied
    cdef oplock_record_t *each
    cdef oplock_list_t *lists[OPLOCK_LISTS]
    cdef int count = 0
    cdef int room = 64
    cdef int i
    cdef int64_t now = monotonic_time()
    cdef uint32_t state
    oplock_lists(oplock, lists)
    while True:
        copied = <oplock_record_t *>calloc(room, sizeof(oplock_record_t))
        if copied is NULL:
            raise MemoryError
        with nogil:
            pthread_mutex_lock(&oplock.lock)
            state = oplock.state
            count = 0
            for i in range(OPLOCK_LISTS - 1 if waiting else 0, OPLOCK_LISTS if waiting else OPLOCK_LISTS - 1):
                each = lists[i].first
                while each != NULL:
                    if count < room:
                        copied[count] = each[0]
                    count += 1
                    each = each.next
            pthread_mutex_unlock(&oplock.lock)
        if count <= room:
            break
        free(copied)
        room = count + 64
    found = []
    for i in range(count):
        each = &copied[i]
        if waiting:
            name = "OPLOCK_BREAK_NOTIFY" if each.behind == BEHIND_EVERY_BREAK else oplock_operation_name(each.what.operation).decode()
            found.append((<uintptr_t>each.open, name, (now - each.since) / 1e9))
            continue
        to = None
        if each.list is &oplock.breaking:
            to = <int>OPLOCK_LEVEL_CACHE_READ if each.to_read else 0
        elif each.list is &oplock.exclusive and each.broken:
            to = breaking_to(state) if state & GRANULAR_BREAKS else \
                <uint32_t>OPLOCK_LEVEL_TWO if state & OPLOCK_BREAK_TO_TWO else 0
        found.append((<uintptr_t>each.open, each.level, to, (now - (each.broken or each.since)) / 1e9))
    free(copied)
    return found
