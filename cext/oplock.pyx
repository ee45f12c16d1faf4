"""Opportunistic locks (docs/semantics.md A9): the state machine, as tables to be held against [MS-FSA], and the routines of the DDI.

    request ──► granted: a record in one of the lists, its FSCTL pended
                   │
    an operation that does not go with it: `done` completes the FSCTL: broken, to what, is an acknowledgement owed
                   │                                 │
             the operation waits                acknowledged, or closed
                   └──────────◄──────────────────────┘   waiters go on, in the order they came

Tables, in the order of the specification's sections: what an operation breaks (2.1.4.12); how an exclusive oplock of the older
kinds, an exclusive granular one, and shared ones give way (2.1.4.12); the state of shared ones (2.1.4.13); what is granted beside
what (2.1.5.18); how the older kinds are acknowledged (2.1.5.19). Where sources disagree, or are silent, a named constant or a
remark here says what holds, and A9 why.

One mutex for each oplock guards its lists and state. Under it nothing is called but what claims an operation from whoever
cancels it (pending.pyx; its mutex is a leaf below this one; a Python operation's claim takes the GIL, so nobody waits for the
mutex with the GIL held). Who has to be told is collected there, and told when the mutex is free again.
Whoever has a record is found in chains by open and by key, so that what one holder does costs the same beside 100,000 others; only
a break has to go through all whom it concerns.
A record lives while somebody may still come for it: its list, whoever is about to tell it, whoever may cancel it, each with a
reference; and it keeps its oplock alive, so that an oplock may end while a cancel is on its way.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from stackfs.cext.callback_data cimport (
    FILE_COMPLETE_IF_OPLOCKED, FILE_OPEN_REQUIRING_OPLOCK, FILE_OVERWRITE, FILE_OVERWRITE_IF, FILE_READ_ATTRIBUTES,
    FILE_RESERVE_OPFILTER, FILE_SUPERSEDE, FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION, FLTFL_CALLBACK_DATA_IRP_OPERATION,
    FLT_IO_PARAMETER_BLOCK, FLT_PREOP_COMPLETE, FLT_PREOP_DISALLOW_FASTIO, FLT_PREOP_PENDING,
    FLT_PREOP_SUCCESS_WITH_CALLBACK, FO_DIRECTORY, FSCTL_DUPLICATE_EXTENTS_TO_FILE, FSCTL_OPBATCH_ACK_CLOSE_PENDING,
    FSCTL_OPLOCK_BREAK_ACKNOWLEDGE, FSCTL_OPLOCK_BREAK_ACK_NO_2, FSCTL_OPLOCK_BREAK_NOTIFY, FSCTL_REQUEST_BATCH_OPLOCK,
    FSCTL_REQUEST_FILTER_OPLOCK, FSCTL_REQUEST_OPLOCK, FSCTL_REQUEST_OPLOCK_LEVEL_1, FSCTL_REQUEST_OPLOCK_LEVEL_2,
    FSCTL_SET_ZERO_DATA, IRP_MJ_CLEANUP, IRP_MJ_CREATE, IRP_MJ_DEVICE_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL,
    IRP_MJ_FLUSH_BUFFERS, IRP_MJ_LOCK_CONTROL, IRP_MJ_READ, IRP_MJ_SET_INFORMATION, IRP_MJ_SET_SECURITY, IRP_MJ_WRITE,
    IRP_MN_LOCK, IRP_PAGING_IO, FileAllocationInformation, FileDispositionInformation, FileDispositionInformationEx,
    FileEndOfFileInformation, FileLinkInformation, FileLinkInformationEx, FileRenameInformation, FileRenameInformationEx,
    FileShortNameInformation, FileValidDataLengthInformation)
from stackfs.cext.inode_table cimport node_t  # no-cython-lint: completes the struct
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, STATUS_BUFFER_TOO_SMALL, STATUS_CANCELLED, STATUS_CANNOT_BREAK_OPLOCK, STATUS_CANNOT_GRANT_REQUESTED_OPLOCK,
    STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_OPLOCK_PROTOCOL, STATUS_INVALID_PARAMETER, STATUS_OPLOCK_BREAK_IN_PROGRESS,
    STATUS_OPLOCK_HANDLE_CLOSED, STATUS_OPLOCK_NOT_GRANTED, STATUS_OPLOCK_SWITCHED_TO_NEW_HANDLE, STATUS_PENDING, STATUS_SUCCESS)
from stackfs.cext.pending cimport FltCompletePendedPreOperation, operation_off_cancel, operation_on_cancel
from stackfs.cext.stack cimport about_to_wait
from stackfs.cext.threads cimport *


# ==== the tables ======================================================================================================

cdef extern from *:
    """
    enum { NONE = 0, R = 1, H = 2, RH = 3, W = 4, RW = 5, RWH = 7 };

    /* Decisions (A9). */
    #define FLUSH_LOSES        W     /* A9.14: only MS-FSA names flushes; who flushes wants what the holder has not written yet */
    #define SET_SECURITY_LOSES H     /* A9.14: likewise; a holder that keeps handles would go by rights that are no more */
    #define LOCK_LOSES         RW    /* A9.12: RWH is waited for, as MS-FSA has it; the driver kit's "Handle request" is RH */
    #define VALID_LENGTH_BREAKS 1    /* A9.21: MS-FSA checks it and lists no case; the driver kit breaks it like a size */
    #define STAT_OLDER         (FILE_READ_ATTRIBUTES_ | FILE_WRITE_ATTRIBUTES_ | SYNCHRONIZE_)
    #define STAT_GRANULAR      (STAT_OLDER | READ_CONTROL_)      /* A9.13: the newest text; only beside granular oplocks */
    #define FILTER_READS       (STAT_GRANULAR | FILE_READ_DATA_ | FILE_READ_EA_ | FILE_EXECUTE_)     /* A9.15 */
    #define FILE_READ_DATA_ 0x1
    #define FILE_READ_EA_ 0x8
    #define FILE_EXECUTE_ 0x20
    #define FILE_READ_ATTRIBUTES_ 0x80
    #define FILE_WRITE_ATTRIBUTES_ 0x100
    #define READ_CONTROL_ 0x20000
    #define SYNCHRONIZE_ 0x100000

    /* 2.1.4.12: what an operation breaks. Level 2, level 1, batch and filter oplocks: to what; granular ones: what they lose.
     * The same key is spared, but for level 2. Rows in the order of OplockOperation. */
    enum { KEEP, TO_TWO, TO_NONE };
    typedef struct { const char *name; unsigned char level_two, level_one, batch, filter, lost; } oplock_breaks_t;
    static const oplock_breaks_t OPLOCK_BREAKS[] = {
        /*                             level 2  level 1  batch    filter   granular             section         */
        {"OPEN",                       KEEP,    TO_TWO,  TO_TWO,  TO_NONE, W},               /* 2.1.5.1; filter: A9.15 */
        {"OPEN_OVERWRITE",             TO_NONE, TO_NONE, TO_NONE, TO_NONE, RW},              /* SUPERSEDE, OVERWRITE, OVERWRITE_IF */
        {"OPEN_RESERVE",               TO_NONE, TO_NONE, TO_NONE, TO_NONE, RW},              /* FILE_RESERVE_OPFILTER: A9.16 */
        {"OPEN_BREAK_H",               KEEP,    KEEP,    KEEP,    KEEP,    H},               /* 2.1.5.1.2: a sharing violation */
        {"READ",                       KEEP,    TO_TWO,  TO_TWO,  KEEP,    W},               /* 2.1.5.3 */
        {"FLUSH_DATA",                 KEEP,    TO_TWO,  TO_TWO,  KEEP,    FLUSH_LOSES},     /* 2.1.5.7 */
        {"LOCK_CONTROL",               TO_NONE, TO_NONE, TO_NONE, KEEP,    LOCK_LOSES},      /* 2.1.5.8 */
        {"WRITE",                      TO_NONE, TO_NONE, TO_NONE, TO_NONE, RW},              /* 2.1.5.4 */
        {"SET_SIZE",                   TO_NONE, TO_NONE, TO_NONE, TO_NONE, RW},              /* 2.1.5.15: end of file, allocation */
        {"ZERO_DATA",                  TO_NONE, TO_NONE, TO_NONE, TO_NONE, RW},              /* 2.1.5.10 */
        {"RENAME",                     KEEP,    KEEP,    TO_NONE, TO_NONE, H},               /* 2.1.5.15: rename, link, short name */
        {"DELETE",                     KEEP,    KEEP,    KEEP,    KEEP,    H},               /* 2.1.5.15: disposition */
        {"SET_SECURITY",               KEEP,    KEEP,    KEEP,    KEEP,    SET_SECURITY_LOSES},      /* 2.1.5.17 */
        {"PARENT_OBJECT",              KEEP,    KEEP,    KEEP,    KEEP,    RW},              /* a child changed: the directory's oplock */
        {"BREAK_TO_NONE",              TO_NONE, TO_NONE, TO_NONE, TO_NONE, RWH},             /* FltOplockBreakToNone */
    };

    /* 2.1.4.12: an exclusive oplock of the older kinds gives way; its owner is told once, at the first break. The operation waits. */
    enum { HELD, BREAKING_TO_TWO, BREAKING_TO_NONE, BREAKING_TO_TWO_TO_NONE };
    static const unsigned char OLDER[4][2] = {
        /*                                 TO_TWO                    TO_NONE                 */
        /* held                       */ {BREAKING_TO_TWO,         BREAKING_TO_NONE},
        /* breaking to two            */ {BREAKING_TO_TWO,         BREAKING_TO_TWO_TO_NONE},
        /* breaking to none           */ {BREAKING_TO_NONE,        BREAKING_TO_NONE},
        /* breaking to two, then none */ {BREAKING_TO_TWO_TO_NONE, BREAKING_TO_TWO_TO_NONE},
    };

    /* 2.1.4.12: an exclusive granular oplock: what it breaks to, by what it loses. The owner is told when it was not broken before.
     * The operation waits, but where the oplock has nothing of what it would lose. */
    enum { UNTOUCHED = 8 };
    static const unsigned char GRANULAR[8][4] = {
        /* loses                        W     H          R|W   R|W|H */
        /* RW                     */ {R,    UNTOUCHED, NONE, NONE},
        /* RW breaking to R       */ {R,    UNTOUCHED, NONE, NONE},
        /* RW breaking to none    */ {NONE, UNTOUCHED, NONE, NONE},
        /* RWH                    */ {RH,   RW,        NONE, NONE},
        /* RWH breaking to RW     */ {R,    RW,        NONE, NONE},
        /* RWH breaking to RH     */ {RH,   R,         NONE, NONE},
        /* RWH breaking to R      */ {R,    R,         NONE, NONE},
        /* RWH breaking to none   */ {NONE, NONE,      NONE, NONE},
    };

    /* 2.1.4.12: shared granular oplocks, each by itself. */
    enum { WAITS = 1, LOSES_H = 2, LOSES_ALL = 4, OWED = 8 };        /* OWED: an acknowledgement */
    static const unsigned char SHARED[4][4] = {
        /* loses                     W  H                       R|W               R|W|H */
        /* R                   */ {0, 0,                      LOSES_ALL,        LOSES_ALL},
        /* RH                  */ {0, LOSES_H | OWED | WAITS, LOSES_ALL | OWED, LOSES_ALL | OWED | WAITS},
        /* RH breaking to R    */ {0, WAITS,                  LOSES_ALL,        LOSES_ALL | WAITS},
        /* RH breaking to none */ {0, WAITS,                  0,                WAITS},
    };

    /* 2.1.5.18: what is granted beside what there is. */
    enum { NO, YES, OWN, SWITCH, JOIN };
    enum { AT_NONE, AT_TWO, AT_TWO_R, AT_R, AT_MIXED, AT_RH, AT_RH_BREAKING, AT_RW, AT_RWH, AT_OTHER };
    /* OWN: the level 2 oplocks, all of the one open there is, end. SWITCH: all there are have this key, and end with
     * SWITCHED_TO_NEW_HANDLE. JOIN: one of the same key is switched (an R does not take the place of an RH: no).
     * RH breaking: nothing but RH that break. Other: an exclusive oplock of the older kinds, or a granular one that breaks. */
    static const unsigned char GRANTS[6][10] = {
        /*                  none  2    2+R   R       R+RH  RH      RH breaking  RW      RWH     other */
        /* level 1, batch,
           filter     */ {YES,  OWN,  NO,   NO,     NO,   NO,     NO,          NO,     NO,     NO},
        /* level 2    */ {JOIN, JOIN, JOIN, JOIN,   NO,   NO,     NO,          NO,     NO,     NO},
        /* R          */ {JOIN, JOIN, JOIN, JOIN,   JOIN, JOIN,   JOIN,        NO,     NO,     NO},
        /* RH         */ {JOIN, NO,   NO,   JOIN,   JOIN, JOIN,   JOIN,        NO,     NO,     NO},
        /* RW         */ {YES,  NO,   NO,   SWITCH, NO,   NO,     NO,          SWITCH, NO,     NO},
        /* RWH        */ {YES,  NO,   NO,   SWITCH, NO,   SWITCH, NO,          SWITCH, SWITCH, NO},
    };

    /* 2.1.5.19: how a break of the older kinds is acknowledged. Not broken: an error of the holder's. */
    enum { ERROR_, SETTLED, KEEPS_TWO, TOLD_NONE, BY_CLOSING };
    static const unsigned char ACKNOWLEDGED[4][4] = {
        /*                                 ACKNOWLEDGE  ACK_NO_2    CLOSE_PENDING of level 1, of batch and filter */
        /* held                       */ {ERROR_,      ERROR_,     ERROR_,    ERROR_},
        /* breaking to two            */ {KEEPS_TWO,   SETTLED,    SETTLED,   BY_CLOSING},
        /* breaking to none           */ {SETTLED,     SETTLED,    SETTLED,   BY_CLOSING},
        /* breaking to two, then none */ {TOLD_NONE,   TOLD_NONE,  SETTLED,   BY_CLOSING},
    };
    """
    enum:
        R, H, RH, W, RW, RWH
        VALID_LENGTH_BREAKS, STAT_OLDER, STAT_GRANULAR, FILTER_READS
        KEEP, TO_TWO, TO_NONE
        HELD, BREAKING_TO_TWO, BREAKING_TO_NONE, BREAKING_TO_TWO_TO_NONE
        UNTOUCHED
        WAITS, LOSES_H, LOSES_ALL, OWED
        NO, YES, OWN, SWITCH, JOIN
        AT_NONE, AT_TWO, AT_TWO_R, AT_R, AT_MIXED, AT_RH, AT_RH_BREAKING, AT_RW, AT_RWH, AT_OTHER
        ERROR_, SETTLED, KEEPS_TWO, TOLD_NONE, BY_CLOSING
    ctypedef struct oplock_breaks_t:
        const char *name
        uint8_t level_two, level_one, batch, filter, lost
    const oplock_breaks_t OPLOCK_BREAKS[15]
    const uint8_t OLDER[4][2]
    const uint8_t GRANULAR[8][4]
    const uint8_t SHARED[4][4]
    const uint8_t GRANTS[6][10]
    const uint8_t ACKNOWLEDGED[4][4]

cdef enum:
    OLDER_EXCLUSIVE = OPLOCK_LEVEL_ONE | OPLOCK_LEVEL_BATCH | OPLOCK_LEVEL_FILTER
    OLDER_KINDS = OLDER_EXCLUSIVE | OPLOCK_LEVEL_TWO
    OLDER_BREAKS = OPLOCK_BREAK_TO_TWO | OPLOCK_BREAK_TO_NONE | OPLOCK_BREAK_TO_TWO_TO_NONE
    BREAKS = 2                           # check_locked(), beside WAITS and BEHIND_RESERVATION: somebody has to be told
    LONG_CHAIN = 8                       # records in a chain, on an average
    ENTER = 1                            # oplock_claim_function: what for
    CLAIM = 0

cdef extern from *:
    """
    #define SCATTERS 0x9E3779B97F4A7C15ull
    """
    const uint64_t SCATTERS

ctypedef struct due_t:                   # who has to be told, once the lock is free
    oplock_record_t *first
    oplock_record_t *last


# ==== records =========================================================================================================

cdef oplock_record_t *oplock_record_new(oplock_t *oplock, const oplock_open_t *open, oplock_done_function done,
                                        oplock_claim_function claim, void *context) noexcept nogil:
    cdef oplock_record_t *record = <oplock_record_t *>calloc(1, sizeof(oplock_record_t))
    if record == NULL:
        return NULL
    record.oplock = oplock
    add_int(&oplock.references, 1)
    record.references = 1
    record.open = open
    memcpy(record.key, open.TargetKey, sizeof(record.key))
    record.done = done
    record.claim = claim
    record.context = context
    record.since = monotonic_time()
    return record


cdef void oplock_record_drop(oplock_record_t *record) noexcept nogil:
    cdef oplock_t *oplock = record.oplock
    if add_int(&record.references, -1) == 0:
        free(record)
        oplock_put(oplock)


cdef void oplock_put(oplock_t *oplock) noexcept nogil:
    if add_int(&oplock.references, -1) == 0:
        pthread_mutex_destroy(&oplock.lock)
        if oplock.chains != oplock.few:
            free(oplock.chains)
        free(oplock)


# Chains: one by open for every record in a list, one by key for those whose key is asked for, each in the order of link().

cdef inline oplock_record_t **chain_of_open(const oplock_t *oplock, const oplock_open_t *open) noexcept nogil:
    return &oplock.chains[<uint64_t><uintptr_t>open * SCATTERS >> 40 & (oplock.size - 1)]


cdef inline oplock_record_t **chain_of_key(const oplock_t *oplock, const uint8_t *key) noexcept nogil:
    cdef uint64_t halves[2]
    memcpy(halves, key, 16)
    return &oplock.chains[oplock.size + ((halves[0] ^ halves[1] * SCATTERS) * SCATTERS >> 40 & (oplock.size - 1))]


cdef inline bint has_key_chain(const oplock_record_t *record) noexcept nogil:
    return is_oplock_key(record.key) and record.list is not &record.oplock.level_two and record.list is not &record.oplock.waiting


cdef void chain(oplock_record_t *record) noexcept nogil:
    cdef oplock_record_t **at = chain_of_open(record.oplock, record.open)
    while at[0] != NULL:
        at = &at[0].next_of_open
    at[0] = record
    record.next_of_open = NULL
    if has_key_chain(record):
        at = chain_of_key(record.oplock, record.key)
        while at[0] != NULL:
            at = &at[0].next_of_key
        at[0] = record
        record.next_of_key = NULL


cdef void unchain(oplock_record_t *record) noexcept nogil:
    cdef oplock_record_t **at = chain_of_open(record.oplock, record.open)
    while at[0] != record:
        at = &at[0].next_of_open
    at[0] = record.next_of_open
    if has_key_chain(record):
        at = chain_of_key(record.oplock, record.key)
        while at[0] != record:
            at = &at[0].next_of_key
        at[0] = record.next_of_key


cdef bint resize_chains(oplock_t *oplock, uint32_t size) noexcept nogil:
    """False: there is no memory, and they stay as they are."""
    cdef oplock_record_t **before = oplock.chains
    cdef oplock_list_t *lists[OPLOCK_LISTS]
    cdef oplock_record_t *each
    cdef int i
    if size == 1:
        memset(oplock.few, 0, sizeof(oplock.few))
        oplock.chains = oplock.few
    else:
        oplock.chains = <oplock_record_t **>calloc(2 * size, sizeof(oplock_record_t *))
        if oplock.chains == NULL:
            oplock.chains = before
            return False
    oplock.size = size
    if before != oplock.few:
        free(before)
    oplock_lists(oplock, lists)
    for i in range(OPLOCK_LISTS):
        each = lists[i].first
        while each != NULL:
            chain(each)
            each = each.next
    return True


cdef oplock_record_t *oplock_record_of(const oplock_t *oplock, const oplock_open_t *open, const oplock_list_t *records,
                                       const oplock_record_t *after) noexcept nogil:
    cdef oplock_record_t *each = after.next_of_open if after != NULL else chain_of_open(oplock, open)[0]
    while each != NULL and (each.open != open or each.list is not records):
        each = each.next_of_open
    return each


cdef void link(oplock_list_t *records, oplock_record_t *record) noexcept nogil:
    """At the end; the reference becomes the list's."""
    record.list = records
    record.next = NULL
    record.previous = records.last
    if records.last != NULL:
        records.last.next = record
    else:
        records.first = record
    records.last = record
    if records is &record.oplock.breaking:
        record.oplock.breaking_count += 1
        record.oplock.to_read += record.to_read
    elif records is &record.oplock.waiting:
        record.oplock.waiting_count += 1
    record.oplock.records += 1
    if record.oplock.records <= record.oplock.size * LONG_CHAIN or not resize_chains(record.oplock, record.oplock.size * LONG_CHAIN):
        chain(record)


cdef void unlink(oplock_record_t *record) noexcept nogil:
    """The list's reference becomes the caller's."""
    cdef oplock_list_t *records = record.list
    unchain(record)
    if records is &record.oplock.breaking:
        record.oplock.breaking_count -= 1
        record.oplock.to_read -= record.to_read
    elif records is &record.oplock.waiting:
        record.oplock.waiting_count -= 1
    if record.previous != NULL:
        record.previous.next = record.next
    else:
        records.first = record.next
    if record.next != NULL:
        record.next.previous = record.previous
    else:
        records.last = record.previous
    record.list = NULL
    record.oplock.records -= 1
    if record.oplock.records == 0 and record.oplock.size > 1:
        resize_chains(record.oplock, 1)


cdef void take_out(oplock_record_t *record) noexcept nogil:
    unlink(record)
    oplock_record_drop(record)


cdef bint enter(oplock_record_t *record) noexcept nogil:
    """From here on it can be cancelled. False: it is cancelled already."""
    record.pended = 1
    if record.claim == NULL:
        return True
    if record.claim(record, ENTER) == 1:
        return True
    record.pended = 0
    return False


cdef bint tell(oplock_record_t *record, NTSTATUS status, uint32_t new_level, bint acknowledge, due_t *due) noexcept nogil:
    """Its owner hears of it, unless somebody cancels it just now: that one will come for what is left. False: its owner is gone
    without a word (a callback that failed after it had asked): nobody would acknowledge."""
    cdef int claimed
    if not record.pended:
        return True
    claimed = 1 if record.claim == NULL else record.claim(record, CLAIM)
    if claimed < 0:
        return False
    record.pended = 0
    if claimed == 0:
        return True
    if record.claim == NULL:
        add_int(&record.references, 1)
    record.status = status
    record.new_level = <uint8_t>new_level
    record.acknowledge = acknowledge
    record.next_due = NULL
    if due.last != NULL:
        due.last.next_due = record
    else:
        due.first = record
    due.last = record
    return True


cdef void flush(due_t *due) noexcept nogil:
    cdef oplock_record_t *record = due.first
    cdef oplock_record_t *following
    while record != NULL:
        following = record.next_due
        record.done(record)
        oplock_record_drop(record)
        record = following


# ==== keys (2.1.4.12.2) ===============================================================================================

cdef oplock_open_t NOBODY
memset(&NOBODY, 0, sizeof(NOBODY))


cdef bint is_oplock_key(const uint8_t *key) noexcept nogil:
    return memcmp(key, NOBODY.TargetKey, 16) != 0


cdef bint spares(const oplock_break_t *what, const oplock_open_t *open, const uint8_t *its_key) noexcept nogil:
    """The operation comes from whom the oplock belongs to. An open without a key is nobody's but its own (A9.17)."""
    cdef const uint8_t *key
    if what.ignore_keys or what.open == NULL:
        return False
    if what.open == open:
        return True
    key = <const uint8_t *>what.open.TargetKey
    if what.operation == OPLOCK_PARENT:
        key = <const uint8_t *>what.open.ParentKey
    return is_oplock_key(key) and memcmp(key, its_key, 16) == 0


cdef inline bint spares_record(const oplock_break_t *what, const oplock_record_t *record) noexcept nogil:
    return spares(what, record.open, record.key)


cdef bint oplock_same_key(const oplock_open_t *one, const uint8_t *its_key, const oplock_open_t *other,
                          const uint8_t *other_key) noexcept nogil:
    return one == other or (is_oplock_key(its_key) and memcmp(its_key, other_key, 16) == 0)


cdef inline bint same_key(const oplock_record_t *one, const oplock_record_t *other) noexcept nogil:
    return oplock_same_key(one.open, one.key, other.open, other.key)


cdef const char *oplock_operation_name(int operation) noexcept nogil:
    return OPLOCK_BREAKS[operation].name


# ==== the state =======================================================================================================

cdef inline void set_state(oplock_t *oplock, uint32_t state) noexcept nogil:
    store_uint(&oplock.state, state & ~<uint32_t>OPLOCK_RESERVED | (OPLOCK_RESERVED if oplock.reserved != NULL else 0))


cdef void recompute(oplock_t *oplock) noexcept nogil:
    """2.1.4.13: the state of shared oplocks follows from the lists."""
    cdef bint handles = oplock.handle.first != NULL
    cdef uint32_t breaks = 0
    if oplock.to_read:
        breaks |= OPLOCK_BREAK_TO_READ
    if oplock.breaking_count > oplock.to_read:
        breaks |= OPLOCK_BREAK_TO_NO_CACHING
    if oplock.read.first != NULL:
        if handles or breaks:
            set_state(oplock, RH | OPLOCK_MIXED)
        else:
            set_state(oplock, R | (OPLOCK_LEVEL_TWO if oplock.level_two.first != NULL else 0))
    elif handles:
        set_state(oplock, RH)
    elif breaks:
        set_state(oplock, RH | (0 if breaks == (OPLOCK_BREAK_TO_READ | OPLOCK_BREAK_TO_NO_CACHING) else breaks))
    else:
        set_state(oplock, OPLOCK_LEVEL_TWO if oplock.level_two.first != NULL else 0)


cdef inline int older_phase(uint32_t state) noexcept nogil:
    if state & OPLOCK_BREAK_TO_TWO:
        return BREAKING_TO_TWO
    if state & OPLOCK_BREAK_TO_NONE:
        return BREAKING_TO_NONE
    return BREAKING_TO_TWO_TO_NONE if state & OPLOCK_BREAK_TO_TWO_TO_NONE else HELD


cdef void exclusive_gone(oplock_t *oplock, due_t *due) noexcept nogil:
    """The exclusive oplock is no more, whoever had it: those who waited go on."""
    take_out(oplock.exclusive.first)
    set_state(oplock, 0)
    release_all(oplock, due)


# ==== breaking (2.1.4.12) =============================================================================================

cdef int check_locked(oplock_t *oplock, const oplock_break_t *what, bint apply, due_t *due) noexcept nogil:
    """WAITS, BREAKS: what the operation does to the oplock; 0: nothing. apply: it is done; else only looked at."""
    cdef const oplock_breaks_t *row = &OPLOCK_BREAKS[what.operation]
    cdef oplock_record_t *owner = oplock.exclusive.first
    cdef oplock_record_t *each
    cdef oplock_record_t *following
    cdef int result = 0
    if what.stat_only == 2 or (what.stat_only == 1 and not oplock.state & OLDER_KINDS):
        return 0
    if oplock.reserved != NULL and what.operation != OPLOCK_PARENT and not spares(what, oplock.reserved, oplock.reserved_key):
        return WAITS | BEHIND_RESERVATION
    if owner != NULL:
        if spares_record(what, owner):
            return 0
        return older_gives_way(oplock, owner, what, row, apply, due) if owner.level & OLDER_EXCLUSIVE else \
            granular_gives_way(oplock, owner, row.lost, apply, due)
    each = oplock.level_two.first
    while each != NULL and row.level_two == TO_NONE:         # the same key as well
        following = each.next
        result |= BREAKS
        if not apply:
            break
        tell(each, STATUS_SUCCESS, OPLOCK_LEVEL_NONE, False, due)
        take_out(each)
        each = following
    result |= shared_give_way(oplock, &oplock.read, what, row.lost, apply, due)
    result |= shared_give_way(oplock, &oplock.breaking, what, row.lost, apply, due)
    result |= shared_give_way(oplock, &oplock.handle, what, row.lost, apply, due)
    if apply and result:
        recompute(oplock)
    return result


cdef int older_gives_way(oplock_t *oplock, oplock_record_t *owner, const oplock_break_t *what, const oplock_breaks_t *row,
                         bint apply, due_t *due) noexcept nogil:
    cdef int how = row.filter
    cdef int phase = older_phase(oplock.state)
    cdef int following
    if owner.level == OPLOCK_LEVEL_ONE:
        how = row.level_one
    elif owner.level == OPLOCK_LEVEL_BATCH:
        how = row.batch
    elif what.operation == OPLOCK_OPEN and what.spares_filter:
        how = KEEP
    if how == KEEP:
        return 0
    if not apply:
        return WAITS | BREAKS
    following = OLDER[phase][how == TO_NONE]
    if phase == HELD and not tell(owner, STATUS_SUCCESS, OPLOCK_LEVEL_TWO if how == TO_TWO else OPLOCK_LEVEL_NONE, True, due):
        exclusive_gone(oplock, due)
        return 0
    if phase == HELD:
        owner.broken = monotonic_time()
    set_state(oplock, oplock.state & ~<uint32_t>OLDER_BREAKS | (
        OPLOCK_BREAK_TO_TWO if following == BREAKING_TO_TWO else
        OPLOCK_BREAK_TO_NONE if following == BREAKING_TO_NONE else OPLOCK_BREAK_TO_TWO_TO_NONE))
    return WAITS | BREAKS


cdef inline int column(uint32_t lost) noexcept nogil:
    return 0 if lost == W else 1 if lost == H else 2 if lost == RW else 3


cdef int granular_gives_way(oplock_t *oplock, oplock_record_t *owner, uint32_t lost, bint apply, due_t *due) noexcept nogil:
    cdef uint32_t state = oplock.state
    cdef uint32_t to = breaking_to(state)
    cdef int phase                       # the row of GRANULAR
    if owner.level == RW:
        phase = 0 if not state & GRANULAR_BREAKS else 1 if to == R else 2
    else:
        phase = 3 if not state & GRANULAR_BREAKS else 4 if to == RW else 5 if to == RH else 6 if to == R else 7
    to = GRANULAR[phase][column(lost)]
    if to == UNTOUCHED:
        return 0
    if not apply:
        return WAITS | BREAKS
    if not state & GRANULAR_BREAKS:
        if not tell(owner, STATUS_SUCCESS, to, True, due):
            exclusive_gone(oplock, due)
            return 0
        owner.broken = monotonic_time()
    set_state(oplock, owner.level | OPLOCK_EXCLUSIVE | (to << BREAK_SHIFT if to else <uint32_t>OPLOCK_BREAK_TO_NO_CACHING))
    return WAITS | BREAKS


cdef int shared_give_way(oplock_t *oplock, oplock_list_t *records, const oplock_break_t *what, uint32_t lost, bint apply,
                         due_t *due) noexcept nogil:
    cdef oplock_record_t *each = records.first
    cdef oplock_record_t *following
    cdef int where = column(lost)
    cdef int result = 0
    cdef int cell
    while each != NULL:
        if records is &oplock.breaking and (not oplock.to_read or not SHARED[2][where] & LOSES_ALL) and \
                result & WAITS == SHARED[2][where] & WAITS:
            break                        # none of the others has anything to lose, and one is enough to wait for
        following = each.next
        cell = SHARED[0 if records is &oplock.read else 1 if records is &oplock.handle else 2 if each.to_read else 3][where]
        if cell == 0 and records is not &oplock.breaking:
            break
        if cell and not spares_record(what, each):
            if cell & (LOSES_H | LOSES_ALL):
                result |= BREAKS
            if not apply or shared_loses(oplock, each, cell, due):
                result |= cell & WAITS
            if not apply:
                break                    # it is the same with each of them
        each = following
    return result


cdef bint shared_loses(oplock_t *oplock, oplock_record_t *each, int cell, due_t *due) noexcept nogil:
    """False: nothing of it is left that could be waited for."""
    if each.list is &oplock.breaking:
        if cell & LOSES_ALL:
            oplock.to_read -= each.to_read
            each.to_read = 0
        return True
    if not tell(each, STATUS_SUCCESS, R if cell & LOSES_H else OPLOCK_LEVEL_NONE, cell & OWED != 0, due) or not cell & OWED:
        take_out(each)
        return False
    unlink(each)
    each.to_read = cell & LOSES_H != 0
    each.broken = monotonic_time()
    link(&oplock.breaking, each)
    return True


# ==== waiting (2.1.4.12.1) ============================================================================================

cdef void release(oplock_record_t *waiting, due_t *due) noexcept nogil:
    tell(waiting, STATUS_SUCCESS, OPLOCK_LEVEL_NONE, False, due)
    take_out(waiting)


cdef void release_all(oplock_t *oplock, due_t *due) noexcept nogil:
    cdef oplock_record_t *waiting = oplock.waiting.first
    cdef oplock_record_t *following
    while waiting != NULL:
        following = waiting.next
        if waiting.behind != BEHIND_RESERVATION:
            release(waiting, due)
        waiting = following


cdef void release_behind_breaks(oplock_t *oplock, due_t *due) noexcept nogil:
    """Of those who wait for RH oplocks to break: whom none of another key is left."""
    cdef oplock_record_t *waiting = oplock.waiting.first
    cdef oplock_record_t *following
    cdef oplock_record_t *each
    while waiting != NULL:
        following = waiting.next
        each = oplock.breaking.first
        while each != NULL and spares_record(&waiting.what, each):
            each = each.next
        if each == NULL and waiting.behind != BEHIND_RESERVATION:
            release(waiting, due)
        waiting = following


cdef bint somebody_waits(const oplock_t *oplock) noexcept nogil:
    cdef const oplock_record_t *each = oplock.waiting.first
    while each != NULL and each.behind != BEHIND_BREAKS:
        each = each.next
    return each != NULL


cdef NTSTATUS oplock_check(oplock_t *oplock, const oplock_break_t *what, oplock_record_t *record) noexcept nogil:
    cdef NTSTATUS status = STATUS_SUCCESS
    cdef due_t due
    cdef int result
    due.first = due.last = NULL
    pthread_mutex_lock(&oplock.lock)
    if what.requiring and check_locked(oplock, what, False, NULL):
        status = STATUS_CANNOT_BREAK_OPLOCK
    elif record == NULL and not what.if_oplocked and check_locked(oplock, what, False, NULL) & WAITS:
        status = STATUS_PENDING
    else:
        result = check_locked(oplock, what, True, &due)
        if result & WAITS:
            status = STATUS_PENDING
            if what.if_oplocked:
                status = STATUS_OPLOCK_BREAK_IN_PROGRESS
            elif not enter(record):
                status = STATUS_CANCELLED
            else:
                record.what = what[0]
                record.behind = result & BEHIND_RESERVATION
                link(&oplock.waiting, record)
    pthread_mutex_unlock(&oplock.lock)
    flush(&due)
    return status


cdef NTSTATUS oplock_notify(oplock_t *oplock, oplock_record_t *record) noexcept nogil:
    """FSCTL_OPLOCK_BREAK_NOTIFY: STATUS_SUCCESS, or, while a break is not settled, STATUS_PENDING."""
    cdef NTSTATUS status = STATUS_SUCCESS
    pthread_mutex_lock(&oplock.lock)
    if oplock.state & (OLDER_BREAKS | GRANULAR_BREAKS) or oplock.breaking.first != NULL:
        record.behind = BEHIND_EVERY_BREAK
        record.what.open = record.open
        status = STATUS_PENDING
        if enter(record):
            link(&oplock.waiting, record)
        else:
            status = STATUS_CANCELLED
    pthread_mutex_unlock(&oplock.lock)
    return status


# ==== reservations: FILE_OPEN_REQUIRING_OPLOCK, FILE_RESERVE_OPFILTER (A9.25) =========================================

cdef bint oplock_reserve(oplock_t *oplock, const oplock_open_t *open) noexcept nogil:
    cdef bint reserved
    pthread_mutex_lock(&oplock.lock)
    reserved = oplock.reserved == NULL
    if reserved:
        oplock.reserved = open
        memcpy(oplock.reserved_key, open.TargetKey, sizeof(oplock.reserved_key))
        set_state(oplock, oplock.state)
    pthread_mutex_unlock(&oplock.lock)
    return reserved


cdef void unreserve_locked(oplock_t *oplock, const oplock_open_t *open, due_t *due) noexcept nogil:
    """Those who wait for it are looked at once more, in their order: they go on, or wait for what is held now."""
    cdef oplock_record_t *waiting = oplock.waiting.first
    cdef oplock_record_t *last = oplock.waiting.last
    cdef oplock_record_t *following
    cdef int result
    if oplock.reserved == NULL or oplock.reserved != open:
        return
    oplock.reserved = NULL
    set_state(oplock, oplock.state)
    while waiting != NULL:
        following = waiting.next if waiting is not last else NULL
        if waiting.behind == BEHIND_RESERVATION:
            waiting.behind = BEHIND_BREAKS
            unlink(waiting)
            result = check_locked(oplock, &waiting.what, True, due)
            link(&oplock.waiting, waiting)
            if not result & WAITS:
                release(waiting, due)
        waiting = following


cdef void oplock_unreserve(oplock_t *oplock, const oplock_open_t *open) noexcept nogil:
    cdef due_t due
    due.first = due.last = NULL
    pthread_mutex_lock(&oplock.lock)
    unreserve_locked(oplock, open, &due)
    pthread_mutex_unlock(&oplock.lock)
    flush(&due)


# ==== requests (2.1.5.18) =============================================================================================

cdef inline bint is_cached_level(uint32_t level) noexcept nogil:
    return level == R or level == RH or level == RW or level == RWH


cdef inline bint is_shared(uint32_t level) noexcept nogil:
    return level == OPLOCK_LEVEL_TWO or level == R or level == RH


cdef int place_of(const oplock_t *oplock) noexcept nogil:
    """The column of GRANTS."""
    if oplock.exclusive.first != NULL:
        if oplock.state & (OLDER_EXCLUSIVE | GRANULAR_BREAKS):
            return AT_OTHER
        return AT_RW if oplock.exclusive.first.level == RW else AT_RWH
    if oplock.read.first != NULL:
        if oplock.handle.first != NULL or oplock.breaking.first != NULL:
            return AT_MIXED
        return AT_TWO_R if oplock.level_two.first != NULL else AT_R
    if oplock.breaking.first != NULL:
        return AT_RH_BREAKING
    if oplock.handle.first != NULL:
        return AT_RH
    return AT_TWO if oplock.level_two.first != NULL else AT_NONE


cdef bint all_have_key_of(const oplock_record_t *record, const oplock_list_t *records) noexcept nogil:
    cdef const oplock_record_t *each = records.first
    while each != NULL and same_key(each, record):
        each = each.next
    return each == NULL


cdef oplock_record_t *one_with_key_of(const oplock_record_t *record, const oplock_list_t *records) noexcept nogil:
    cdef oplock_record_t *each = oplock_record_of(record.oplock, record.open, records, NULL)
    if each == NULL and is_oplock_key(record.key):
        each = chain_of_key(record.oplock, record.key)[0]
        while each != NULL and (each.list is not records or not same_key(each, record)):
            each = each.next_of_key
    return each


cdef void switch_over(const oplock_record_t *record, oplock_list_t *records, uint32_t level, due_t *due) noexcept nogil:
    """Those with the key of the new one end: the client has another handle for it now."""
    cdef oplock_record_t *each = one_with_key_of(record, records)
    while each != NULL:
        tell(each, STATUS_OPLOCK_SWITCHED_TO_NEW_HANDLE, level, False, due)
        take_out(each)
        each = one_with_key_of(record, records)


cdef void hold(oplock_t *oplock, oplock_record_t *record, uint32_t level) noexcept nogil:
    record.level = <uint8_t>level
    record.since = monotonic_time()
    record.broken = 0
    if level == OPLOCK_LEVEL_TWO:
        link(&oplock.level_two, record)
    elif level == R:
        link(&oplock.read, record)
    elif level == RH:
        link(&oplock.handle, record)
    else:
        link(&oplock.exclusive, record)
        set_state(oplock, level | OPLOCK_EXCLUSIVE)
        return
    recompute(oplock)


cdef NTSTATUS request_locked(oplock_t *oplock, oplock_record_t *record, uint32_t level, const oplock_request_t *how,
                             due_t *due) noexcept nogil:
    cdef int verdict
    cdef int row
    cdef oplock_record_t *each
    if how.directory and level != OPLOCK_LEVEL_NONE and level != R and level != RH:
        return STATUS_INVALID_PARAMETER
    if level == OPLOCK_LEVEL_NONE:
        return STATUS_SUCCESS
    if not is_cached_level(level) and level != OPLOCK_LEVEL_TWO and level != OPLOCK_LEVEL_ONE and level != OPLOCK_LEVEL_BATCH and \
            level != OPLOCK_LEVEL_FILTER:
        return STATUS_INVALID_PARAMETER
    row = 1 if level == OPLOCK_LEVEL_TWO else 2 if level == R else 3 if level == RH else 4 if level == RW else 5 if level == RWH else 0
    if oplock.reserved != NULL and oplock.reserved != record.open:
        return STATUS_OPLOCK_NOT_GRANTED
    if how.synchronous or (how.deleted and is_cached_level(level) and level & H):
        return STATUS_OPLOCK_NOT_GRANTED
    if is_shared(level):
        if how.byte_range_locks:
            return STATUS_OPLOCK_NOT_GRANTED
    elif how.others_open and (row == 0 or not how.all_keys_match):       # A9.18: in every state
        return STATUS_OPLOCK_NOT_GRANTED
    verdict = GRANTS[row][place_of(oplock)]
    if verdict == NO:
        return STATUS_OPLOCK_NOT_GRANTED
    if verdict == SWITCH and not (all_have_key_of(record, &oplock.read) and all_have_key_of(record, &oplock.handle)
                                  and all_have_key_of(record, &oplock.exclusive)):
        return STATUS_OPLOCK_NOT_GRANTED
    if verdict == JOIN and level != RH and (
            one_with_key_of(record, &oplock.handle) != NULL or one_with_key_of(record, &oplock.breaking) != NULL):
        return STATUS_OPLOCK_NOT_GRANTED
    if not enter(record):
        return STATUS_CANCELLED
    if verdict == OWN:
        while oplock.level_two.first != NULL:
            each = oplock.level_two.first
            tell(each, STATUS_SUCCESS, OPLOCK_LEVEL_NONE, False, due)
            take_out(each)
    elif verdict == SWITCH or verdict == JOIN:
        switch_over(record, &oplock.read, level if level != OPLOCK_LEVEL_TWO else R, due)
        switch_over(record, &oplock.handle, level, due)
        switch_over(record, &oplock.exclusive, level, due)
    hold(oplock, record, level)
    return STATUS_PENDING


cdef NTSTATUS oplock_request(oplock_t *oplock, oplock_record_t *record, uint32_t level, const oplock_request_t *how) noexcept nogil:
    cdef NTSTATUS status
    cdef due_t due
    due.first = due.last = NULL
    pthread_mutex_lock(&oplock.lock)
    status = request_locked(oplock, record, level, how, &due)
    unreserve_locked(oplock, record.open, &due)              # it has asked: others go on, or break it
    pthread_mutex_unlock(&oplock.lock)
    flush(&due)
    return status


# ==== acknowledgements (2.1.5.19) =====================================================================================

cdef NTSTATUS acknowledge_older(oplock_t *oplock, oplock_record_t *record, int how, due_t *due) noexcept nogil:
    cdef oplock_record_t *owner = oplock.exclusive.first
    cdef int cell
    cdef bint entered = True
    if owner == NULL or owner.open != record.open or owner.closing:
        return STATUS_INVALID_OPLOCK_PROTOCOL
    cell = ACKNOWLEDGED[older_phase(oplock.state)][
        0 if how == OPLOCK_ACKNOWLEDGE else 1 if how == OPLOCK_ACK_NO_2 else 2 if owner.level == OPLOCK_LEVEL_ONE else 3]
    if cell == ERROR_:
        return STATUS_INVALID_OPLOCK_PROTOCOL
    if cell == BY_CLOSING:
        owner.closing = 1
        return STATUS_SUCCESS
    if cell == KEEPS_TWO:
        entered = enter(record)
    take_out(owner)
    set_state(oplock, 0)
    release_all(oplock, due)
    if cell == KEEPS_TWO:
        if not entered:
            return STATUS_CANCELLED
        hold(oplock, record, OPLOCK_LEVEL_TWO)
        return STATUS_PENDING
    if cell == TOLD_NONE:                # level 2, granted and broken at once
        record.broken = monotonic_time()
    return STATUS_SUCCESS


cdef NTSTATUS ask_again(oplock_record_t *record, uint32_t original, uint32_t broken_to) noexcept nogil:
    """Too much was asked for: the break stands, and is to be acknowledged once more."""
    record.level = <uint8_t>original
    record.new_level = <uint8_t>broken_to
    record.acknowledge = 1
    return STATUS_CANNOT_GRANT_REQUESTED_OPLOCK


cdef NTSTATUS acknowledge_granular(oplock_t *oplock, oplock_record_t *record, uint32_t level, bint on_close, bint deleted,
                                   due_t *due) noexcept nogil:
    cdef oplock_record_t *owner = oplock.exclusive.first
    cdef bint entered = True
    cdef uint32_t to
    if level != OPLOCK_LEVEL_NONE and not is_cached_level(level):
        return STATUS_INVALID_PARAMETER
    if owner != NULL:
        if not oplock.state & GRANULAR_BREAKS or owner.open != record.open or owner.closing:
            return STATUS_INVALID_OPLOCK_PROTOCOL
        to = breaking_to(oplock.state)
    else:
        owner = oplock_record_of(oplock, record.open, &oplock.breaking, NULL)
        while owner != NULL and owner.closing:
            owner = oplock_record_of(oplock, record.open, &oplock.breaking, owner)
        if owner == NULL:
            return STATUS_INVALID_OPLOCK_PROTOCOL
        to = R if owner.to_read else OPLOCK_LEVEL_NONE
    if on_close:
        owner.closing = 1
        return STATUS_SUCCESS
    if owner.list is &oplock.exclusive:
        if level & ~to and somebody_waits(oplock):           # A9.19
            return ask_again(record, owner.level, to)
        if deleted and level & H:
            return ask_again(record, owner.level, level & ~<uint32_t>H)
    else:
        # Of RH: an H is given back even to one whose break was waited for: it keeps no data back.
        if somebody_waits(oplock) and (level & W or (level and to == OPLOCK_LEVEL_NONE)):
            return ask_again(record, owner.level, to)
        if level & W and (oplock.read.first != NULL or oplock.handle.first != NULL or owner.next != NULL
                          or owner.previous != NULL or (deleted and level & H)):        # A9.19: alone
            return ask_again(record, owner.level, to)
    if level and not (deleted and level & H):
        entered = enter(record)
    if owner.list is &oplock.exclusive:
        exclusive_gone(oplock, due)
    else:
        take_out(owner)
        release_behind_breaks(oplock, due)
        recompute(oplock)
    if level == OPLOCK_LEVEL_NONE:
        return STATUS_SUCCESS
    if deleted and level & H:
        return STATUS_OPLOCK_NOT_GRANTED
    if not entered:
        return STATUS_CANCELLED
    hold(oplock, record, level)
    return STATUS_PENDING


cdef NTSTATUS oplock_acknowledge(oplock_t *oplock, oplock_record_t *record, int how, uint32_t level, bint deleted) noexcept nogil:
    cdef NTSTATUS status
    cdef due_t due
    due.first = due.last = NULL
    pthread_mutex_lock(&oplock.lock)
    if how == OPLOCK_ACK_GRANULAR or how == OPLOCK_ACK_GRANULAR_ON_CLOSE:
        status = acknowledge_granular(oplock, record, level, how == OPLOCK_ACK_GRANULAR_ON_CLOSE, deleted, &due)
    else:
        status = acknowledge_older(oplock, record, how, &due)
    pthread_mutex_unlock(&oplock.lock)
    flush(&due)
    return status


# ==== the end of a holder: its handle is closed (2.1.4.12, CLOSE), its request cancelled, the oplock uninitialised =====

cdef void close_all(oplock_t *oplock, oplock_list_t *records, const oplock_open_t *open, NTSTATUS status, due_t *due) noexcept nogil:
    cdef oplock_record_t *each = oplock_record_of(oplock, open, records, NULL)
    while each != NULL:
        tell(each, status, OPLOCK_LEVEL_NONE, False, due)            # but for what is broken: that was told before
        take_out(each)
        each = oplock_record_of(oplock, open, records, NULL)


cdef void oplock_close(oplock_t *oplock, const oplock_open_t *open) noexcept nogil:
    cdef oplock_record_t *owner
    cdef due_t due
    due.first = due.last = NULL
    pthread_mutex_lock(&oplock.lock)
    unreserve_locked(oplock, open, &due)
    close_all(oplock, &oplock.level_two, open, STATUS_SUCCESS, &due)
    close_all(oplock, &oplock.read, open, STATUS_OPLOCK_HANDLE_CLOSED, &due)
    close_all(oplock, &oplock.handle, open, STATUS_OPLOCK_HANDLE_CLOSED, &due)
    close_all(oplock, &oplock.breaking, open, STATUS_OPLOCK_HANDLE_CLOSED, &due)
    owner = oplock.exclusive.first
    if owner == NULL:
        recompute(oplock)
        release_behind_breaks(oplock, &due)
    elif owner.open == open:
        tell(owner, STATUS_SUCCESS if owner.level & OLDER_EXCLUSIVE else STATUS_OPLOCK_HANDLE_CLOSED, OPLOCK_LEVEL_NONE, False, &due)
        exclusive_gone(oplock, &due)
    pthread_mutex_unlock(&oplock.lock)
    flush(&due)


cdef void oplock_move(oplock_t *oplock, const oplock_open_t *open, const oplock_open_t *to) noexcept nogil:
    cdef oplock_list_t *lists[OPLOCK_LISTS]
    cdef oplock_record_t *each
    cdef int i
    oplock_lists(oplock, lists)
    pthread_mutex_lock(&oplock.lock)
    for i in range(OPLOCK_LISTS):
        each = oplock_record_of(oplock, open, lists[i], NULL)
        while each != NULL:
            unchain(each)
            each.open = to
            chain(each)
            each = oplock_record_of(oplock, open, lists[i], NULL)
    if oplock.reserved == open:
        oplock.reserved = to
    pthread_mutex_unlock(&oplock.lock)


cdef void oplock_cancel(oplock_record_t *record) noexcept nogil:
    """By whoever holds the reference of the one that may cancel it, which is given back here."""
    cdef oplock_t *oplock = record.oplock
    cdef oplock_list_t *records
    cdef due_t due
    due.first = due.last = NULL
    pthread_mutex_lock(&oplock.lock)
    if record.claim == NULL and not record.pended:           # told before
        pthread_mutex_unlock(&oplock.lock)
        oplock_record_drop(record)
        return
    record.pended = 0
    record.status = STATUS_CANCELLED
    record.new_level = OPLOCK_LEVEL_NONE
    record.acknowledge = 0
    record.next_due = NULL
    due.first = due.last = record
    records = record.list
    if records is &oplock.exclusive:
        exclusive_gone(oplock, &due)
    elif records != NULL:
        take_out(record)
        if records is not &oplock.waiting:
            recompute(oplock)
        if records is &oplock.breaking:
            release_behind_breaks(oplock, &due)
    pthread_mutex_unlock(&oplock.lock)
    flush(&due)


cdef oplock_t *oplock_new() noexcept nogil:
    cdef oplock_t *oplock = <oplock_t *>calloc(1, sizeof(oplock_t))
    if oplock != NULL:
        oplock.references = 1
        oplock.size = 1
        oplock.chains = oplock.few
        pthread_mutex_init(&oplock.lock, NULL)
    return oplock


cdef void oplock_end(oplock_t *oplock) noexcept nogil:
    cdef oplock_list_t *lists[OPLOCK_LISTS]
    cdef oplock_record_t *each
    cdef due_t due
    cdef int i
    due.first = due.last = NULL
    oplock_lists(oplock, lists)
    pthread_mutex_lock(&oplock.lock)
    for i in range(OPLOCK_LISTS):
        while lists[i].first != NULL:
            each = lists[i].first
            tell(each, STATUS_CANCELLED, OPLOCK_LEVEL_NONE, False, &due)
            take_out(each)
    oplock.reserved = NULL
    set_state(oplock, 0)
    pthread_mutex_unlock(&oplock.lock)
    flush(&due)
    oplock_put(oplock)


cdef oplock_break_t oplock_open_break(const oplock_open_t *open, uint32_t access, uint32_t share, uint32_t options) noexcept nogil:
    """share: FILE_SHARE_*; options: disposition << 24 | create options."""
    cdef oplock_break_t what
    cdef uint32_t disposition = options >> 24
    memset(&what, 0, sizeof(what))
    what.open = open
    what.operation = OPLOCK_OPEN
    if options & FILE_RESERVE_OPFILTER:
        what.operation = OPLOCK_OPEN_RESERVE
    else:
        if disposition == FILE_SUPERSEDE or disposition == FILE_OVERWRITE or disposition == FILE_OVERWRITE_IF:
            what.operation = OPLOCK_OPEN_OVERWRITE
        what.stat_only = 2 if not access & ~<uint32_t>STAT_OLDER else not access & ~<uint32_t>STAT_GRANULAR
    what.spares_filter = not access & ~<uint32_t>FILTER_READS and share & 1
    what.if_oplocked = options & FILE_COMPLETE_IF_OPLOCKED != 0
    what.requiring = options & FILE_OPEN_REQUIRING_OPLOCK != 0
    return what


# ==== the operations of the stack =====================================================================================

cdef inline operation_t *operation_of(const oplock_record_t *record) noexcept nogil:
    return <operation_t *>record.context


cdef void cancelled_by(operation_t *op, void *context) noexcept nogil:
    oplock_cancel(<oplock_record_t *>context)


cdef int claim_native(oplock_record_t *record, bint entering) noexcept nogil:
    if not entering:
        return operation_off_cancel(operation_of(record))
    if operation_on_cancel(operation_of(record), cancelled_by, record) != STATUS_SUCCESS:
        return 0
    add_int(&record.references, 1)
    return 1


cdef void oplock_answer(const oplock_record_t *record, FLT_CALLBACK_DATA *data, NTSTATUS status) noexcept nogil:
    """What an FSCTL ends with that has held an oplock, or asked for too much."""
    cdef REQUEST_OPLOCK_OUTPUT_BUFFER output
    data.IoStatus.Status = status
    data.IoStatus.Information = 0
    if status == STATUS_CANCELLED or record.behind == BEHIND_EVERY_BREAK:
        return
    if not record.granular:
        data.IoStatus.Information = FILE_OPLOCK_BROKEN_TO_LEVEL_2 if record.new_level == OPLOCK_LEVEL_TWO else FILE_OPLOCK_BROKEN_TO_NONE
        return
    memset(&output, 0, sizeof(output))
    output.StructureVersion = REQUEST_OPLOCK_CURRENT_VERSION
    output.StructureLength = sizeof(output)
    output.OriginalOplockLevel = record.level
    output.NewOplockLevel = record.new_level
    output.Flags = REQUEST_OPLOCK_OUTPUT_FLAG_ACK_REQUIRED if record.acknowledge else 0
    memcpy(data.Iopb.Parameters.Control.OutputBuffer, &output, sizeof(output))
    data.IoStatus.Information = sizeof(output)


cdef void done_holding(oplock_record_t *record) noexcept nogil:
    cdef FLT_CALLBACK_DATA *data = &operation_of(record).data
    oplock_answer(record, data, record.status)
    FltCompletePendedPreOperation(data, FLT_PREOP_COMPLETE, NULL)


cdef void done_waiting(oplock_record_t *record) noexcept nogil:
    cdef FLT_CALLBACK_DATA *data = &operation_of(record).data
    data.IoStatus.Status = record.status
    data.IoStatus.Information = 0
    (<PFLTOPLOCK_WAIT_COMPLETE_ROUTINE>record.routine)(data, record.routine_context)


cdef void oplock_go_on(FLT_CALLBACK_DATA *CallbackData, void *Context) noexcept nogil:
    FltCompletePendedPreOperation(
        CallbackData, FLT_PREOP_SUCCESS_WITH_CALLBACK if NT_SUCCESS(CallbackData.IoStatus.Status) else FLT_PREOP_COMPLETE, NULL)


ctypedef struct wait_t:                  # a thread that waits in place
    pthread_mutex_t mutex
    pthread_cond_t changed
    int done
    NTSTATUS status


cdef void done_in_place(oplock_record_t *record) noexcept nogil:
    cdef wait_t *wait = <wait_t *>record.routine_context
    pthread_mutex_lock(&wait.mutex)
    wait.status = record.status
    wait.done = 1
    pthread_cond_signal(&wait.changed)
    pthread_mutex_unlock(&wait.mutex)


cdef NTSTATUS wait_in_place(oplock_t *oplock, const oplock_break_t *what, operation_t *op) noexcept nogil:
    cdef oplock_record_t *record = oplock_record_new(oplock, what.open, done_in_place, claim_native, op)
    cdef wait_t wait
    cdef NTSTATUS status
    if record == NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    wait.done = 0
    pthread_mutex_init(&wait.mutex, NULL)
    init_condition(&wait.changed)
    record.routine_context = &wait
    status = oplock_check(oplock, what, record)
    if status == STATUS_PENDING:
        about_to_wait(op)
        pthread_mutex_lock(&wait.mutex)
        while not wait.done:
            pthread_cond_wait(&wait.changed, &wait.mutex)
        status = wait.status
        pthread_mutex_unlock(&wait.mutex)
    else:
        oplock_record_drop(record)
    pthread_cond_destroy(&wait.changed)
    pthread_mutex_destroy(&wait.mutex)
    return status


cdef bint oplock_operation_breaks(const FLT_CALLBACK_DATA *data, oplock_break_t *what) noexcept nogil:
    """What the operation is in the table. False: nothing that oplocks have to do with. Paging I/O is not (A9.22): it is the page
    cache's, and who uses that was checked before."""
    cdef const FLT_IO_PARAMETER_BLOCK *p = data.Iopb
    cdef uint8_t major = p.MajorFunction
    cdef uint32_t which
    memset(what, 0, sizeof(oplock_break_t))
    what.open = &p.TargetFileObject.Oplock
    if major == IRP_MJ_CREATE:
        what[0] = oplock_open_break(what.open, p.Parameters.Create.DesiredAccess, 7, p.Parameters.Create.Options)
    elif major == IRP_MJ_READ or major == IRP_MJ_WRITE:
        if p.IrpFlags & IRP_PAGING_IO:
            return False
        what.operation = OPLOCK_READ if major == IRP_MJ_READ else OPLOCK_WRITE
    elif major == IRP_MJ_FLUSH_BUFFERS:
        what.operation = OPLOCK_FLUSH
    elif major == IRP_MJ_LOCK_CONTROL:
        if p.MinorFunction != IRP_MN_LOCK or p.Parameters.Lock.Flock:
            return False
        what.operation = OPLOCK_LOCK
    elif major == IRP_MJ_FILE_SYSTEM_CONTROL:
        if p.Parameters.Control.ControlCode == <uint32_t>FSCTL_SET_ZERO_DATA:
            what.operation = OPLOCK_ZERO_DATA
        elif p.Parameters.Control.ControlCode == <uint32_t>FSCTL_DUPLICATE_EXTENTS_TO_FILE:
            what.operation = OPLOCK_WRITE
        else:
            return False
    elif major == IRP_MJ_SET_SECURITY:
        what.operation = OPLOCK_SET_SECURITY
    elif major == IRP_MJ_SET_INFORMATION:
        which = p.Parameters.SetFile.FileInformationClass
        if which == FileEndOfFileInformation or which == FileAllocationInformation or (
                VALID_LENGTH_BREAKS and which == FileValidDataLengthInformation):
            what.operation = OPLOCK_SET_SIZE
        elif which == FileRenameInformation or which == FileRenameInformationEx or which == FileLinkInformation or \
                which == FileLinkInformationEx or which == FileShortNameInformation:
            what.operation = OPLOCK_RENAME
        elif which == FileDispositionInformation or which == FileDispositionInformationEx:
            what.operation = OPLOCK_DELETE
        else:
            return False
    else:
        return False
    return True


cdef int check_with(oplock_t *oplock, oplock_break_t *what, uint32_t flags, const checked_t *how) noexcept nogil:
    """FLT_PREOP_*. PENDING: the data are somebody else's now."""
    cdef FLT_CALLBACK_DATA *data = how.data
    cdef operation_t *op = <operation_t *>data
    cdef oplock_record_t *record
    cdef NTSTATUS status
    if flags & OPLOCK_FLAG_COMPLETE_IF_OPLOCKED:
        what.if_oplocked = 1
    if flags & OPLOCK_FLAG_IGNORE_OPLOCK_KEYS:
        what.ignore_keys = 1
    status = oplock_check(oplock, what, NULL)                # what need not wait ends here
    if status == STATUS_PENDING and not data.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION:
        # Only an IRP can wait: fast I/O comes again as one, and a query-open as a CREATE.
        return FLT_PREOP_SUCCESS_WITH_CALLBACK if data.Flags & FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION else FLT_PREOP_DISALLOW_FASTIO
    if status == STATUS_PENDING and how.routine == NULL:
        status = wait_in_place(oplock, what, op)
    elif status == STATUS_PENDING:
        if how.prepost != NULL:
            how.prepost(data, how.prepost_context)
        record = oplock_record_new(oplock, what.open, how.done, how.claim, how.context)
        status = STATUS_INSUFFICIENT_RESOURCES
        if record != NULL:
            record.routine = how.routine
            record.routine_context = how.routine_context
            status = oplock_check(oplock, what, record)
            if status == STATUS_PENDING:
                return FLT_PREOP_PENDING
            oplock_record_drop(record)
    if status == STATUS_SUCCESS:
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    data.IoStatus.Status = status
    data.IoStatus.Information = 0
    return FLT_PREOP_SUCCESS_WITH_CALLBACK if NT_SUCCESS(status) else FLT_PREOP_COMPLETE


cdef int check_operation(oplock_t *oplock, uint32_t flags, const checked_t *how) noexcept nogil:
    """FltCheckOplockEx."""
    cdef FLT_CALLBACK_DATA *data = how.data
    cdef oplock_break_t what
    if flags & OPLOCK_FLAG_BACK_OUT_ATOMIC_OPLOCK and oplock != NULL:
        oplock_unreserve(oplock, &data.Iopb.TargetFileObject.Oplock)
    if oplock_state(oplock) == 0 or flags & (OPLOCK_FLAG_OPLOCK_KEY_CHECK_ONLY | OPLOCK_FLAG_BACK_OUT_ATOMIC_OPLOCK):
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    if data.Iopb.MajorFunction == IRP_MJ_CLEANUP and not flags & OPLOCK_FLAG_PARENT_OBJECT:
        oplock_close(oplock, &data.Iopb.TargetFileObject.Oplock)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    if not oplock_operation_breaks(data, &what) and not flags & OPLOCK_FLAG_PARENT_OBJECT:
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    if flags & OPLOCK_FLAG_PARENT_OBJECT:
        what.operation = OPLOCK_PARENT
        what.stat_only = what.requiring = 0
    return check_with(oplock, &what, flags, how)


cdef int break_operation(oplock_t *oplock, int operation, uint32_t flags, const checked_t *how) noexcept nogil:
    """FltOplockBreakH, FltOplockBreakToNone."""
    cdef oplock_break_t what
    if oplock_state(oplock) == 0:
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    oplock_operation_breaks(how.data, &what)
    what.open = &how.data.Iopb.TargetFileObject.Oplock
    what.operation = <uint8_t>operation
    what.stat_only = what.spares_filter = 0
    if operation == OPLOCK_BREAK_ALL:
        flags |= OPLOCK_FLAG_IGNORE_OPLOCK_KEYS
    return check_with(oplock, &what, flags, how)


cdef NTSTATUS read_request(const FLT_CALLBACK_DATA *data, uint32_t *level, int *acknowledgement) noexcept nogil:
    """What an FSCTL asks for. acknowledgement: OplockAcknowledgement, or -1: it is a request."""
    cdef uint32_t code = data.Iopb.Parameters.Control.ControlCode
    cdef REQUEST_OPLOCK_INPUT_BUFFER given
    level[0] = OPLOCK_LEVEL_NONE
    acknowledgement[0] = -1
    if code == FSCTL_REQUEST_OPLOCK_LEVEL_1:
        level[0] = OPLOCK_LEVEL_ONE
    elif code == FSCTL_REQUEST_OPLOCK_LEVEL_2:
        level[0] = OPLOCK_LEVEL_TWO
    elif code == FSCTL_REQUEST_BATCH_OPLOCK:
        level[0] = OPLOCK_LEVEL_BATCH
    elif code == FSCTL_REQUEST_FILTER_OPLOCK:
        level[0] = OPLOCK_LEVEL_FILTER
    elif code == FSCTL_OPLOCK_BREAK_ACKNOWLEDGE:
        acknowledgement[0] = OPLOCK_ACKNOWLEDGE
    elif code == FSCTL_OPLOCK_BREAK_ACK_NO_2:
        acknowledgement[0] = OPLOCK_ACK_NO_2
    elif code == FSCTL_OPBATCH_ACK_CLOSE_PENDING:
        acknowledgement[0] = OPLOCK_ACK_CLOSE_PENDING
    elif code == FSCTL_REQUEST_OPLOCK:
        if data.Iopb.Parameters.Control.InputBufferLength < sizeof(given) or \
                data.Iopb.Parameters.Control.OutputBufferLength < sizeof(REQUEST_OPLOCK_OUTPUT_BUFFER):
            return STATUS_BUFFER_TOO_SMALL
        memcpy(&given, data.Iopb.Parameters.Control.InputBuffer, sizeof(given))
        if given.StructureVersion != REQUEST_OPLOCK_CURRENT_VERSION or given.StructureLength < sizeof(given):
            return STATUS_INVALID_PARAMETER
        level[0] = given.RequestedOplockLevel
        if level[0] & ~<uint32_t>RWH:
            return STATUS_INVALID_PARAMETER
        if given.Flags == REQUEST_OPLOCK_INPUT_FLAG_ACK:
            acknowledgement[0] = OPLOCK_ACK_GRANULAR
        elif given.Flags == (REQUEST_OPLOCK_INPUT_FLAG_ACK | REQUEST_OPLOCK_INPUT_FLAG_COMPLETE_ACK_ON_CLOSE):
            acknowledgement[0] = OPLOCK_ACK_GRANULAR_ON_CLOSE
        elif given.Flags != REQUEST_OPLOCK_INPUT_FLAG_REQUEST:
            return STATUS_INVALID_PARAMETER
    elif code != FSCTL_OPLOCK_BREAK_NOTIFY:
        return STATUS_INVALID_PARAMETER
    return STATUS_SUCCESS


cdef NTSTATUS reserve_for(oplock_t *oplock, const FLT_CALLBACK_DATA *data, uint32_t open_count) noexcept nogil:
    """FltOplockFsctrl in a CREATE."""
    cdef const FLT_IO_PARAMETER_BLOCK *p = data.Iopb
    cdef bint reserved
    if p.Parameters.Create.Options & FILE_OPEN_REQUIRING_OPLOCK:
        reserved = oplock_reserve(oplock, &p.TargetFileObject.Oplock)
        return STATUS_SUCCESS if reserved else STATUS_CANNOT_BREAK_OPLOCK
    if not p.Parameters.Create.Options & FILE_RESERVE_OPFILTER:
        return STATUS_INVALID_PARAMETER
    if open_count != 1 or p.Parameters.Create.DesiredAccess != FILE_READ_ATTRIBUTES or oplock_state(oplock) != 0:
        return STATUS_OPLOCK_NOT_GRANTED
    reserved = oplock_reserve(oplock, &p.TargetFileObject.Oplock)
    return STATUS_SUCCESS if reserved else STATUS_OPLOCK_NOT_GRANTED


cdef int fsctl_with(oplock_t *oplock, uint32_t open_count, uint32_t flags, const checked_t *how) noexcept nogil:
    """FltOplockFsctrlEx: FLT_PREOP_PENDING or FLT_PREOP_COMPLETE. PENDING: the data are somebody else's now."""
    cdef FLT_CALLBACK_DATA *data = how.data
    cdef FLT_IO_PARAMETER_BLOCK *p = data.Iopb
    cdef oplock_record_t *record = NULL
    cdef oplock_request_t asked
    cdef uint32_t level
    cdef int acknowledgement
    cdef NTSTATUS status = STATUS_SUCCESS
    cdef bint control = p.MajorFunction == IRP_MJ_FILE_SYSTEM_CONTROL or p.MajorFunction == IRP_MJ_DEVICE_CONTROL
    data.IoStatus.Information = 0
    if not data.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION or not (control or p.MajorFunction == IRP_MJ_CREATE):
        status = STATUS_INVALID_PARAMETER
    elif oplock == NULL:
        status = STATUS_INSUFFICIENT_RESOURCES
    elif not control:
        status = reserve_for(oplock, data, open_count)
    else:
        status = read_request(data, &level, &acknowledgement)
        if status == STATUS_SUCCESS:
            record = oplock_record_new(oplock, &p.TargetFileObject.Oplock, how.done, how.claim, how.context)
            if record == NULL:
                status = STATUS_INSUFFICIENT_RESOURCES
    if record != NULL:
        record.granular = p.Parameters.Control.ControlCode == <uint32_t>FSCTL_REQUEST_OPLOCK
        memset(&asked, 0, sizeof(asked))
        asked.directory = load_bits(&p.TargetFileObject.Flags) & FO_DIRECTORY != 0
        asked.deleted = p.TargetFileObject.Node != NULL and p.TargetFileObject.Node.deleted
        asked.others_open = open_count > 1
        asked.byte_range_locks = open_count != 0
        asked.all_keys_match = flags & OPLOCK_FSCTRL_FLAG_ALL_KEYS_MATCH != 0
        if p.Parameters.Control.ControlCode == <uint32_t>FSCTL_OPLOCK_BREAK_NOTIFY:
            status = oplock_notify(oplock, record)
        elif acknowledgement >= 0:
            status = oplock_acknowledge(oplock, record, acknowledgement, level, asked.deleted)
        else:
            status = oplock_request(oplock, record, level, &asked)
        if status == STATUS_PENDING:
            return FLT_PREOP_PENDING
        if status == STATUS_CANNOT_GRANT_REQUESTED_OPLOCK:
            oplock_answer(record, data, status)
        elif record.broken:
            data.IoStatus.Information = FILE_OPLOCK_BROKEN_TO_NONE
        oplock_record_drop(record)
    data.IoStatus.Status = status
    return FLT_PREOP_COMPLETE


cdef void FltInitializeOplock(OPLOCK *Oplock) noexcept nogil:
    """Without memory for it nothing will be granted."""
    Oplock[0] = oplock_new()


cdef void FltUninitializeOplock(OPLOCK *Oplock) noexcept nogil:
    cdef oplock_t *oplock = Oplock[0]
    Oplock[0] = NULL
    if oplock != NULL:
        oplock_end(oplock)


cdef inline checked_t natively(FLT_CALLBACK_DATA *data, void *context, PFLTOPLOCK_WAIT_COMPLETE_ROUTINE routine,
                               PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE prepost) noexcept nogil:
    """On the trio loop (would_block) nobody waits in place: the operation goes on by itself."""
    cdef operation_t *op = <operation_t *>data
    if routine == NULL and op.would_block:
        routine = oplock_go_on
    return checked_t(data, done_waiting, claim_native, op, <void *>routine, context, prepost, context)


cdef int FltOplockFsctrl(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t OpenCount) noexcept nogil:
    return FltOplockFsctrlEx(Oplock, CallbackData, OpenCount, 0)


cdef int FltOplockFsctrlEx(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t OpenCount, uint32_t Flags) noexcept nogil:
    cdef checked_t how = checked_t(CallbackData, done_holding, claim_native, CallbackData, NULL, NULL, NULL, NULL)
    return fsctl_with(Oplock[0], OpenCount, Flags, &how)


cdef int FltCheckOplockEx(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t Flags, void *Context,
                          PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine,
                          PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE PrePostCallbackDataRoutine) noexcept nogil:
    cdef checked_t how = natively(CallbackData, Context, WaitCompletionRoutine, PrePostCallbackDataRoutine)
    return check_operation(Oplock[0], Flags, &how)


cdef int oplock_check_open(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, oplock_break_t *What, void *Context,
                           PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine) noexcept nogil:
    cdef checked_t how = natively(CallbackData, Context, WaitCompletionRoutine, NULL)
    if oplock_state(Oplock[0]) == 0:
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    return check_with(Oplock[0], What, 0, &how)


cdef int FltOplockBreakH(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t Flags, void *Context,
                         PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine,
                         PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE PrePostCallbackDataRoutine) noexcept nogil:
    cdef checked_t how = natively(CallbackData, Context, WaitCompletionRoutine, PrePostCallbackDataRoutine)
    return break_operation(Oplock[0], OPLOCK_OPEN_BREAK_H, Flags, &how)


cdef int FltOplockBreakToNoneEx(OPLOCK *Oplock, FLT_CALLBACK_DATA *CallbackData, uint32_t Flags, void *Context,
                                PFLTOPLOCK_WAIT_COMPLETE_ROUTINE WaitCompletionRoutine,
                                PFLTOPLOCK_PREPOST_CALLBACKDATA_ROUTINE PrePostCallbackDataRoutine) noexcept nogil:
    cdef checked_t how = natively(CallbackData, Context, WaitCompletionRoutine, PrePostCallbackDataRoutine)
    return break_operation(Oplock[0], OPLOCK_BREAK_ALL, Flags, &how)


cdef bint FltOplockIsFastIoPossible(OPLOCK *Oplock) noexcept nogil:
    cdef uint32_t state = oplock_state(Oplock[0])
    return state == 0 or (state & OPLOCK_EXCLUSIVE and not state & (OLDER_BREAKS | GRANULAR_BREAKS | OPLOCK_RESERVED))


cdef bint FltOplockIsSharedRequest(const FLT_CALLBACK_DATA *CallbackData) noexcept nogil:
    cdef uint32_t level
    cdef int acknowledgement
    if CallbackData.Iopb.MajorFunction != IRP_MJ_FILE_SYSTEM_CONTROL and CallbackData.Iopb.MajorFunction != IRP_MJ_DEVICE_CONTROL:
        return False
    return read_request(CallbackData, &level, &acknowledgement) == STATUS_SUCCESS and acknowledgement < 0 and is_shared(level)


cdef bint FltOplockKeysEqual(const FILE_OBJECT *Fo1, const FILE_OBJECT *Fo2) noexcept nogil:
    if Fo1 == NULL or Fo2 == NULL:
        return False
    return oplock_same_key(&Fo1.Oplock, Fo1.Oplock.TargetKey, &Fo2.Oplock, Fo2.Oplock.TargetKey)
