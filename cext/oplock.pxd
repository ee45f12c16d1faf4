# Opportunistic locks: who may cache what of a file, and who has to wait until a cache is given up (oplock.pyx; A9).
#
# An OPLOCK belongs to a stream: a filter keeps it in its stream context. What may break it is checked in the pre callbacks of
# CREATE, READ, WRITE, FLUSH_BUFFERS, LOCK_CONTROL, FILE_SYSTEM_CONTROL, SET_INFORMATION, SET_SECURITY and CLEANUP. While nobody
# holds it a check is one atomic load. What is said to the oplock from several threads at once is put in order by its own lock,
# under which nothing is called; the filter sees to it that no open passes between the count that it gives to a request and
# that request. Holders and waiters are told in the thread that breaks or acknowledges, with no lock of this module held: hold
# none of your own that they need.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_CALLBACK_DATA, oplock_open_t
from stackfs.cext.includes.pthread cimport pthread_mutex_t
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.stack cimport operation_t

# What is held, or asked for. The first three are REQUEST_OPLOCK_INPUT_BUFFER's, and come as R, RH, RW or RWH.
cpdef enum OplockLevel:
    OPLOCK_LEVEL_NONE = 0
    OPLOCK_LEVEL_CACHE_READ = 0x1
    OPLOCK_LEVEL_CACHE_HANDLE = 0x2
    OPLOCK_LEVEL_CACHE_WRITE = 0x4
    OPLOCK_LEVEL_TWO = 0x10
    OPLOCK_LEVEL_ONE = 0x20
    OPLOCK_LEVEL_BATCH = 0x40
    OPLOCK_LEVEL_FILTER = 0x80

# The state of an oplock: what is held, as above, with these.
cpdef enum OplockState:
    OPLOCK_EXCLUSIVE = 0x100             # by one client alone
    OPLOCK_MIXED = 0x200                 # R by some, RH by others
    OPLOCK_RESERVED = 0x800              # for an open that has to ask for it next (oplock_reserve)
    OPLOCK_BREAK_TO_READ = 0x1000        # broken, and not acknowledged yet
    OPLOCK_BREAK_TO_HANDLE = 0x2000
    OPLOCK_BREAK_TO_WRITE = 0x4000
    OPLOCK_BREAK_TO_NO_CACHING = 0x8000
    OPLOCK_BREAK_TO_TWO = 0x10000
    OPLOCK_BREAK_TO_NONE = 0x20000
    OPLOCK_BREAK_TO_TWO_TO_NONE = 0x40000    # was to level 2, and its owner knows no more than that

# What breaks oplocks: the rows of the table.
cpdef enum OplockOperation:
    OPLOCK_OPEN = 0
    OPLOCK_OPEN_OVERWRITE
    OPLOCK_OPEN_RESERVE
    OPLOCK_OPEN_BREAK_H
    OPLOCK_READ
    OPLOCK_FLUSH
    OPLOCK_LOCK
    OPLOCK_WRITE
    OPLOCK_SET_SIZE
    OPLOCK_ZERO_DATA
    OPLOCK_RENAME
    OPLOCK_DELETE
    OPLOCK_SET_SECURITY
    OPLOCK_PARENT
    OPLOCK_BREAK_ALL
    OPLOCK_OPERATIONS                    # how many there are

# How a break is acknowledged.
cpdef enum OplockAcknowledgement:
    OPLOCK_ACKNOWLEDGE = 0               # FSCTL_OPLOCK_BREAK_ACKNOWLEDGE: to what it was broken to
    OPLOCK_ACK_NO_2                      # FSCTL_OPLOCK_BREAK_ACK_NO_2: not even level 2
    OPLOCK_ACK_CLOSE_PENDING             # FSCTL_OPBATCH_ACK_CLOSE_PENDING: by closing
    OPLOCK_ACK_GRANULAR                  # FSCTL_REQUEST_OPLOCK with REQUEST_OPLOCK_INPUT_FLAG_ACK
    OPLOCK_ACK_GRANULAR_ON_CLOSE         # and REQUEST_OPLOCK_INPUT_FLAG_COMPLETE_ACK_ON_CLOSE

# FltCheckOplockEx, FltOplockBreakH, FltOplockBreakToNoneEx: Flags
cpdef enum OplockFlags:
    OPLOCK_FLAG_COMPLETE_IF_OPLOCKED = 0x1       # a break begins, and the operation goes on: STATUS_OPLOCK_BREAK_IN_PROGRESS
    OPLOCK_FLAG_OPLOCK_KEY_CHECK_ONLY = 0x2      # nothing is broken
    OPLOCK_FLAG_BACK_OUT_ATOMIC_OPLOCK = 0x4     # the CREATE has failed: what FltOplockFsctrl reserved for it is given back
    OPLOCK_FLAG_IGNORE_OPLOCK_KEYS = 0x8
    OPLOCK_FLAG_PARENT_OBJECT = 0x10             # the oplock is the directory's of what the operation is about

cpdef enum OplockFsctrlFlags:
    OPLOCK_FSCTRL_FLAG_ALL_KEYS_MATCH = 0x1      # FltOplockFsctrlEx: all opens there are have the key of this one

cpdef enum OplockInputFlags:
    REQUEST_OPLOCK_INPUT_FLAG_REQUEST = 0x1
    REQUEST_OPLOCK_INPUT_FLAG_ACK = 0x2
    REQUEST_OPLOCK_INPUT_FLAG_COMPLETE_ACK_ON_CLOSE = 0x4

cpdef enum OplockOutput:
    REQUEST_OPLOCK_CURRENT_VERSION = 1
    REQUEST_OPLOCK_OUTPUT_FLAG_ACK_REQUIRED = 1
    FILE_OPLOCK_BROKEN_TO_LEVEL_2 = 7            # IoStatus.Information of the older requests, once broken
    FILE_OPLOCK_BROKEN_TO_NONE = 8
    FILE_OPBATCH_BREAK_UNDERWAY = 9              # of a CREATE that COMPLETE_IF_OPLOCKED met a sharing violation

ctypedef struct REQUEST_OPLOCK_INPUT_BUFFER:
    unsigned short StructureVersion
    unsigned short StructureLength
    uint32_t RequestedOplockLevel
    uint32_t Flags

ctypedef struct REQUEST_OPLOCK_OUTPUT_BUFFER:
    unsigned short StructureVersion
    unsigned short StructureLength
    uint32_t OriginalOplockLevel
    uint32_t NewOplockLevel
    uint32_t Flags
    uint32_t AccessMode
    unsigned short ShareMode

cdef struct oplock_t
cdef struct oplock_record_t
ctypedef oplock_t *OPLOCK                # opaque to filters

# Broken, switched, closed or cancelled; or, of one that waits, let go (STATUS_SUCCESS) or cancelled. Called once, with no lock.
ctypedef void (*oplock_done_function)(oplock_record_t *record) noexcept nogil
# Called under the oplock's lock: 1: `done` may be called; 0: somebody who cancels it will; -1: nobody is left to be told.
# `enter`: from now on whoever cancels the operation calls oplock_cancel(), with a reference of its own; 0: it is cancelled already.
ctypedef int (*oplock_claim_function)(oplock_record_t *record, bint enter) noexcept nogil

ctypedef struct oplock_break_t:          # one operation, as oplocks see it
    const oplock_open_t *open
    uint8_t operation                    # OplockOperation
    uint8_t stat_only                    # an open for attributes alone: 1: as granular oplocks have it, 2: as all have it
    uint8_t spares_filter                # an open that reads and lets read
    uint8_t ignore_keys
    uint8_t if_oplocked                  # OPLOCK_FLAG_COMPLETE_IF_OPLOCKED
    uint8_t requiring                    # FILE_OPEN_REQUIRING_OPLOCK

ctypedef struct oplock_list_t:
    oplock_record_t *first
    oplock_record_t *last

cdef enum oplock_behind_t:
    BEHIND_BREAKS = 0
    BEHIND_RESERVATION = 4               # it is looked at again after that
    BEHIND_EVERY_BREAK = 8               # FSCTL_OPLOCK_BREAK_NOTIFY: nothing waits for it

cdef struct oplock_record_t:             # somebody who holds an oplock, or waits
    oplock_record_t *next                # in its list
    oplock_record_t *previous
    oplock_list_t *list                  # NULL: in none; under the oplock's lock, as all of this but what its owner gave
    oplock_t *oplock                     # with a reference
    oplock_record_t *next_of_open        # in its chain of oplock_t.chains
    oplock_record_t *next_of_key
    const oplock_open_t *open            # who it is; the open itself may be gone
    uint8_t key[16]
    oplock_done_function done
    oplock_claim_function claim          # NULL: nothing but the oplock itself ends it
    void *context                        # these four: its owner's
    void *routine
    void *routine_context
    int references
    NTSTATUS status                      # done: this, new_level, and `acknowledge`
    uint8_t level                        # OplockLevel; 0: one that waits
    uint8_t new_level
    uint8_t pended                       # `done` is still owed
    uint8_t to_read                      # among those that break: to R, not to nothing
    uint8_t closing                      # acknowledged by closing, which has not happened yet
    uint8_t behind                       # what it waits for: oplock_behind_t
    uint8_t granular                     # asked for by FSCTL_REQUEST_OPLOCK
    uint8_t acknowledge                  # done: it has to be acknowledged
    oplock_break_t what                  # one that waits: for what
    int64_t since                        # monotonic, nanoseconds: held, or waiting
    int64_t broken                       # 0: not
    oplock_record_t *next_due

cdef struct oplock_t:
    uint32_t state                       # atomic; written under the lock; 0: nobody holds it, and nobody waits
    int references
    pthread_mutex_t lock
    oplock_list_t exclusive              # level 1, batch, filter, RW, RWH: one, also while it breaks
    oplock_list_t level_two
    oplock_list_t read                   # R
    oplock_list_t handle                 # RH
    oplock_list_t breaking               # RH, broken and not acknowledged
    oplock_list_t waiting
    uint32_t breaking_count
    uint32_t to_read                     # of these: to R
    uint32_t waiting_count
    uint32_t records                     # in all lists
    uint32_t size                        # of each half of chains: a power of two
    oplock_record_t **chains             # records by open, then holders by key; `few` while there are few of them
    oplock_record_t *few[2]
    const oplock_open_t *reserved
    uint8_t reserved_key[16]

cdef enum:
    OPLOCK_LISTS = 6

# All who are there; those who wait come last.
cdef inline void oplock_lists(oplock_t *oplock, oplock_list_t **lists) noexcept nogil:
    lists[0] = &oplock.exclusive
    lists[1] = &oplock.level_two
    lists[2] = &oplock.read
    lists[3] = &oplock.handle
    lists[4] = &oplock.breaking
    lists[5] = &oplock.waiting

ctypedef struct oplock_request_t:
    uint8_t directory
    uint8_t synchronous                  # a handle that waits for each of its operations
    uint8_t deleted                      # the file has no name any more
    uint8_t others_open                  # more than this one handle
    uint8_t all_keys_match
    uint8_t byte_range_locks

# --- the package itself: from any thread, on behalf of any open
cdef oplock_record_t *oplock_record_new(oplock_t *oplock, const oplock_open_t *open, oplock_done_function done,
                                        oplock_claim_function claim, void *context) noexcept nogil        # NULL: no memory
cdef void oplock_record_drop(oplock_record_t *record) noexcept nogil
# STATUS_PENDING: the record holds the oplock, until `done`. Anything else: it does not, and is the caller's still.
cdef NTSTATUS oplock_request(oplock_t *oplock, oplock_record_t *record, uint32_t level, const oplock_request_t *how) noexcept nogil
cdef NTSTATUS oplock_acknowledge(oplock_t *oplock, oplock_record_t *record, int how, uint32_t level, bint deleted) noexcept nogil
# STATUS_SUCCESS: go on; STATUS_PENDING: the record waits, until `done`; STATUS_OPLOCK_BREAK_IN_PROGRESS; STATUS_CANNOT_BREAK_OPLOCK.
# record NULL: it cannot wait: STATUS_PENDING then says that it would have to, and nothing has been done.
cdef NTSTATUS oplock_check(oplock_t *oplock, const oplock_break_t *what, oplock_record_t *record) noexcept nogil
cdef NTSTATUS oplock_notify(oplock_t *oplock, oplock_record_t *record) noexcept nogil
cdef void oplock_close(oplock_t *oplock, const oplock_open_t *open) noexcept nogil
cdef bint oplock_reserve(oplock_t *oplock, const oplock_open_t *open) noexcept nogil
cdef void oplock_unreserve(oplock_t *oplock, const oplock_open_t *open) noexcept nogil
# Another open takes the place of this one, with its keys: what it holds, has to acknowledge and has reserved is the other's.
cdef void oplock_move(oplock_t *oplock, const oplock_open_t *open, const oplock_open_t *to) noexcept nogil
cdef void oplock_cancel(oplock_record_t *record) noexcept nogil                # it gives up what it holds, or waits no more
# Under oplock.lock: what this open has in a list, after that one (NULL: from the beginning).
cdef oplock_record_t *oplock_record_of(const oplock_t *oplock, const oplock_open_t *open, const oplock_list_t *records,
                                       const oplock_record_t *after) noexcept nogil
cdef oplock_t *oplock_new() noexcept nogil
cdef void oplock_end(oplock_t *oplock) noexcept nogil                          # all are cancelled; it goes with the last record
cdef oplock_break_t oplock_open_break(const oplock_open_t *open, uint32_t access, uint32_t share, uint32_t options) noexcept nogil

# --- for filters (A9). Any thread, APC_LEVEL at most. They return FLT_PREOP_*; IoStatus says why COMPLETE.
ctypedef void (*PFLTOPLOCK_WAIT_COMPLETE_ROUTINE)(FLT_CALLBACK_DATA *CallbackData, void *Context) noexcept nogil
ctypedef void (*PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE)(FLT_CALLBACK_DATA *CallbackData, void *Context) noexcept nogil

cdef void FltInitializeOplock(OPLOCK *Oplock) noexcept nogil
cdef void FltUninitializeOplock(OPLOCK *Oplock) noexcept nogil
cdef int FltOplockFsctrl(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t OpenCount) noexcept nogil
cdef int FltOplockFsctrlEx(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t OpenCount, uint32_t Flags) noexcept nogil
cdef int FltCheckOplockEx(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t Flags, void *Context,
                          PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine,
                          PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE PrePostCallbackDataRoutine) noexcept nogil
cdef int FltOplockBreakH(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t Flags, void *Context,
                         PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine,
                         PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE PrePostCallbackDataRoutine) noexcept nogil
cdef int FltOplockBreakToNoneEx(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t Flags, void *Context,
                                PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine,
                                PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE PrePostCallbackDataRoutine) noexcept nogil
cdef bint FltOplockIsSharedRequest(const FLT_CALLBACK_DATA *CallbackData) noexcept nogil
cdef bint FltOplockKeysEqual(const FILE_OBJECT *Fo1, const FILE_OBJECT *Fo2) noexcept nogil
# What an operation is in the table. False: nothing that oplocks have to do with.
cdef bint oplock_operation_breaks(const FLT_CALLBACK_DATA *data, oplock_break_t *what) noexcept nogil
# FltCheckOplock for an open that the operation makes by itself: an FSCTL that opens a file. The operation is an IRP, and pends.
cdef int oplock_check_open(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, oplock_break_t *What, void *Context,
                           PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine) noexcept nogil
# A wait routine: the operation goes on, or ends if it was cancelled.
cdef void oplock_go_on(FLT_CALLBACK_DATA *CallbackData, void *Context) noexcept nogil

cdef extern from *:
    """
    #define oplock_state(oplock) ((oplock) == NULL ? 0u : __atomic_load_n(&(oplock)->state, __ATOMIC_ACQUIRE))
    """
    uint32_t oplock_state(const oplock_t *oplock) nogil

cdef inline int FltCheckOplock(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, void *Context,
                               PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine,
                               PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE PrePostCallbackDataRoutine) noexcept nogil:
    if oplock_state(Oplock[0]) == 0:
        return 0                         # FLT_PREOP_SUCCESS_WITH_CALLBACK
    return FltCheckOplockEx(Oplock, CallbackData, 0, Context, WaitCompletionRoutine, PrePostCallbackDataRoutine)

cdef inline int FltOplockBreakToNone(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, void *Context,
                                     PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine,
                                     PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE PrePostCallbackDataRoutine) noexcept nogil:
    return FltOplockBreakToNoneEx(Oplock, CallbackData, 0, Context, WaitCompletionRoutine, PrePostCallbackDataRoutine)

cdef inline bint FltCurrentOplock(OPLOCK *Oplock) noexcept nogil:
    return oplock_state(Oplock[0]) & ~<uint32_t>OPLOCK_RESERVED != 0

cdef inline bint FltCurrentOplockH(OPLOCK *Oplock) noexcept nogil:
    return oplock_state(Oplock[0]) & OPLOCK_LEVEL_CACHE_HANDLE != 0

cdef inline bint FltCurrentBatchOplock(OPLOCK *Oplock) noexcept nogil:
    return oplock_state(Oplock[0]) & (OPLOCK_LEVEL_BATCH | OPLOCK_LEVEL_FILTER) != 0

cdef bint FltOplockIsFastIoPossible(OPLOCK *Oplock) noexcept nogil

# --- for python_oplock.pyx
ctypedef struct checked_t:               # one call of the routines that check, for native filters and for Python ones
    FLT_CALLBACK_DATA *data
    oplock_done_function done
    oplock_claim_function claim
    void *context                        # the record's
    void *routine                        # NULL: it waits in place
    void *routine_context
    PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE prepost
    void *prepost_context

cdef enum:
    GRANULAR_BREAKS = OPLOCK_BREAK_TO_READ | OPLOCK_BREAK_TO_HANDLE | OPLOCK_BREAK_TO_WRITE | OPLOCK_BREAK_TO_NO_CACHING
    BREAK_SHIFT = 12                     # a cached level to its BREAK_TO bit

cdef inline uint32_t breaking_to(uint32_t state) noexcept nogil:
    return state >> BREAK_SHIFT & 7

cdef int fsctl_with(oplock_t *oplock, uint32_t open_count, uint32_t flags, const checked_t *how) noexcept nogil
cdef int check_operation(oplock_t *oplock, uint32_t flags, const checked_t *how) noexcept nogil
cdef int break_operation(oplock_t *oplock, int operation, uint32_t flags, const checked_t *how) noexcept nogil
cdef void oplock_answer(const oplock_record_t *record, FLT_CALLBACK_DATA *data, NTSTATUS status) noexcept nogil
cdef void cancelled_by(operation_t *op, void *context) noexcept nogil
cdef bint is_oplock_key(const uint8_t *key) noexcept nogil
cdef bint oplock_same_key(const oplock_open_t *one, const uint8_t *its_key, const oplock_open_t *other,
                          const uint8_t *other_key) noexcept nogil
cdef const char *oplock_operation_name(int operation) noexcept nogil
