"""Who has what open, who holds what, and what he is to be told (_oplocks.pxd).

    request ──► oplock_request(): a record, `done` is owed ──► broken: `done` notes the break with the open file, and wakes who polls
                                                                  │
                     acknowledge ◄── read break ◄── poll(2) ◄─────┘

Opens are counted before they are checked, and a request that needs to be alone looks once more when it has been granted: of an
open and a request that meet, either the open sees the oplock, or the request sees the open and gives it back. Writes and other
changes are checked a second time when they are done, so that nobody is granted anything beside one that is under way without
hearing of it.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen
from posix.time cimport timespec

from stackfs.cext.callback_data cimport (
    DELETE, FILE_APPEND_DATA, FILE_EXECUTE, FILE_READ_DATA, FILE_WRITE_DATA, FLT_VOLUME, FO_CREATED, FO_SYNTHESISED)
from stackfs.cext.contexts cimport (
    FLT_CONTEXT_REGISTRATION, FLT_SET_CONTEXT_KEEP_IF_EXISTS, FLT_STREAM_CONTEXT, FltAllocateContext, FltDeleteContext,
    FltGetStreamContext, FltReferenceContext, FltReleaseContext, FltSetStreamContext, NonPagedPool, contexts_any)
from stackfs.cext.filter_names cimport FltClose
from stackfs.cext.includes.pthread cimport (
    pthread_cond_broadcast, pthread_cond_timedwait, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock)
from stackfs.cext.inode_table cimport inode_table_t, node_put, node_type
from stackfs.cext.notices cimport volume_wake_poll
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, STATUS_CANNOT_GRANT_REQUESTED_OPLOCK, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_OPLOCK_PROTOCOL, STATUS_OPLOCK_HANDLE_CLOSED, STATUS_OPLOCK_NOT_GRANTED,
    STATUS_OPLOCK_SWITCHED_TO_NEW_HANDLE, STATUS_PENDING, STATUS_SUCCESS)
from stackfs.cext.oplock cimport (
    GRANULAR_BREAKS, OPLOCK_ACK_GRANULAR, OPLOCK_BREAK_TO_TWO, OPLOCK_LEVEL_BATCH, OPLOCK_LEVEL_CACHE_READ,
    OPLOCK_LEVEL_CACHE_WRITE, OPLOCK_LEVEL_ONE, OPLOCK_LEVEL_TWO, OPLOCK_LISTS,
    FltInitializeOplock, FltUninitializeOplock, breaking_to, is_oplock_key, oplock_acknowledge, oplock_close,
    oplock_list_t, oplock_lists, oplock_move, oplock_record_drop, oplock_record_new, oplock_record_of, oplock_request, oplock_request_t,
    oplock_state, oplock_t)
from stackfs.cext.paths cimport layer_path
from stackfs.cext.stack cimport instance_pointer, instance_sleep, operation_t
from stackfs.cext.threads cimport add_int, init_condition, load_bits, load_int, monotonic_deadline, monotonic_time
from stackfs.cext.python_contexts cimport NativeContexts
from stackfs.filters.oplock._beside cimport beside_begin, beside_end

cdef extern from *:
    """
    #include <errno.h>
    #include <signal.h>
    #include <sys/stat.h>
    #define oplock_load(at)         __atomic_load_n(at, __ATOMIC_ACQUIRE)
    #define oplock_store(at, value) __atomic_store_n(at, value, __ATOMIC_RELEASE)
    #define oplock_fence()          __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #define SCATTERS 0x9E3779B97F4A7C15ull
    static inline int is_gone(unsigned pid) { return pid != 0 && kill((int)pid, 0) != 0 && errno == ESRCH; }
    """
    OPLOCK oplock_load(OPLOCK *at) nogil
    void oplock_store(OPLOCK *at, OPLOCK value) nogil
    void oplock_fence() nogil
    bint is_gone(uint32_t pid) nogil
    const uint64_t SCATTERS
    unsigned S_IFDIR

cdef enum:
    READS = FILE_READ_DATA | FILE_EXECUTE
    WRITES = FILE_WRITE_DATA | FILE_APPEND_DATA
    LOOK_EVERY = 100_000_000             # nanoseconds, while there is something that time ends
    LONG_CHAIN = 8                       # opens in a chain, on an average


# ---- streams ---------------------------------------------------------------------------------------------------------------

cdef void activate(mounted_t *mounted, int by, int directories, int created) noexcept nogil:
    """While nothing is there, the callbacks that only look are not called at all."""
    cdef int before
    pthread_mutex_lock(&mounted.mutex)
    before = mounted.active
    add_int(&mounted.active, by)
    add_int(&mounted.directories, directories)
    add_int(&mounted.created_count, created)
    if (before == 0) != (mounted.active == 0):
        instance_sleep(mounted.instance, mounted.active == 0)
    if by > 0:
        pthread_cond_broadcast(&mounted.changed)
    pthread_mutex_unlock(&mounted.mutex)


cdef void stands_for(node_t *node, FILE_OBJECT *file) noexcept nogil:
    memset(file, 0, sizeof(FILE_OBJECT))
    file.fd = -1
    file.Flags = FO_SYNTHESISED | FO_CREATED
    file.Node = node


cdef stream_t *stream_make(mounted_t *mounted, node_t *node, FILE_OBJECT *file) noexcept nogil:
    """NULL: somebody else has, or there is no memory."""
    cdef stream_t *stream = NULL
    cdef stream_t *there = NULL
    cdef bint listed = False
    if not NT_SUCCESS(FltAllocateContext(mounted.instance.Related.Filter, FLT_STREAM_CONTEXT, sizeof(stream_t), NonPagedPool,
                                         <void **>&stream)):
        return NULL
    stream.mounted = mounted
    stream.node = node
    stream.directory = node_type(node) == S_IFDIR
    stream.chains = &stream.few
    stream.chain_count = 1
    pthread_mutex_init(&stream.mutex, NULL)
    pthread_mutex_lock(&stream.mutex)        # nobody finds it before it is listed
    pthread_mutex_lock(&mounted.mutex)
    if not mounted.ends and NT_SUCCESS(FltSetStreamContext(
            mounted.instance, file, FLT_SET_CONTEXT_KEEP_IF_EXISTS, stream, <void **>&there)):
        listed = True
        stream.next = mounted.streams
        if mounted.streams != NULL:
            mounted.streams.previous = stream
        mounted.streams = stream
    stream.dead = not listed
    pthread_mutex_unlock(&mounted.mutex)
    pthread_mutex_unlock(&stream.mutex)
    if there != NULL:
        FltReleaseContext(there)
    if not listed:
        FltReleaseContext(stream)
        return NULL
    return stream


cdef stream_t *stream_get(mounted_t *mounted, node_t *node, bint make) noexcept nogil:
    cdef FILE_OBJECT file
    cdef stream_t *stream = NULL
    cdef bint dead
    cdef int _tries
    if node == NULL or not make and not contexts_any(&node.contexts):
        return NULL
    stands_for(node, &file)
    for _tries in range(1000):
        if NT_SUCCESS(FltGetStreamContext(mounted.instance, &file, <void **>&stream)):
            pthread_mutex_lock(&stream.mutex)
            dead = stream.dead
            pthread_mutex_unlock(&stream.mutex)
            if not dead:
                return stream
            FltDeleteContext(stream)         # as whoever let it die is about to
            FltReleaseContext(stream)
            continue
        if not make:
            return NULL
        stream = stream_make(mounted, node, &file)
        if stream != NULL:
            return stream
        if mounted.ends:
            return NULL
    return NULL


cdef void stream_put(stream_t *stream) noexcept nogil:
    FltReleaseContext(stream)


cdef void unlist_locked(stream_t *stream) noexcept nogil:
    """Under stream.mutex, or where nobody else knows it any more."""
    cdef mounted_t *mounted = stream.mounted
    stream.dead = 1
    pthread_mutex_lock(&mounted.mutex)
    if stream.previous != NULL:
        stream.previous.next = stream.next
    elif mounted.streams == stream:
        mounted.streams = stream.next
    if stream.next != NULL:
        stream.next.previous = stream.previous
    stream.next = stream.previous = NULL
    pthread_mutex_unlock(&mounted.mutex)


cdef void stream_let_go(stream_t *stream) noexcept nogil:
    cdef bint goes
    pthread_mutex_lock(&stream.mutex)
    goes = stream.open_count == 0 and stream.opens == NULL and not stream.requesting and not stream.active and not stream.dead
    if goes:
        unlist_locked(stream)
    pthread_mutex_unlock(&stream.mutex)
    if goes:
        FltDeleteContext(stream)
    FltReleaseContext(stream)


cdef void stream_gone(void *context, uint16_t type) noexcept nogil:
    cdef stream_t *stream = <stream_t *>context
    if stream.mounted == NULL:
        return
    if not stream.dead:
        unlist_locked(stream)
    FltUninitializeOplock(&stream.oplock)
    pthread_mutex_destroy(&stream.mutex)
    if stream.chains != &stream.few:
        free(stream.chains)


cdef void stream_activate(stream_t *stream) noexcept nogil:
    cdef bint first
    cdef OPLOCK made = NULL
    pthread_mutex_lock(&stream.mutex)
    stream.requesting += 1
    first = not stream.active
    stream.active = 1
    if first:
        activate(stream.mounted, 1, stream.directory, 0)
    if stream.oplock == NULL:
        FltInitializeOplock(&made)
        oplock_store(&stream.oplock, made)
    pthread_mutex_unlock(&stream.mutex)


cdef inline bint restricts(const stream_t *stream) noexcept nogil:
    """Somebody has it open who lets others not do everything."""
    return stream.shared_read < stream.sharers or stream.shared_write < stream.sharers or stream.shared_delete < stream.sharers


cdef void settle(stream_t *stream, uint32_t requests) noexcept nogil:
    pthread_mutex_lock(&stream.mutex)
    stream.requesting -= requests
    if stream.active and not stream.requesting and not restricts(stream) and oplock_state(oplock_load(&stream.oplock)) == 0:
        stream.active = 0
        activate(stream.mounted, -1, -<int>stream.directory, 0)
    pthread_mutex_unlock(&stream.mutex)


cdef void stream_settle(stream_t *stream) noexcept nogil:
    settle(stream, 0)


cdef void stream_asked(stream_t *stream) noexcept nogil:
    settle(stream, 1)


# ---- sharing ---------------------------------------------------------------------------------------------------------------

cdef bint share_enter(stream_t *stream, uint32_t access, uint32_t share) noexcept nogil:
    """As IoCheckShareAccess()."""
    cdef bint reads = access & READS != 0
    cdef bint writes = access & WRITES != 0
    cdef bint deletes = access & DELETE != 0
    if not reads and not writes and not deletes:
        return True
    if (reads and stream.shared_read < stream.sharers) or (writes and stream.shared_write < stream.sharers) or \
            (deletes and stream.shared_delete < stream.sharers):
        return False
    if (stream.readers and not share & STACKFS_SHARE_READ) or (stream.writers and not share & STACKFS_SHARE_WRITE) or \
            (stream.deleters and not share & STACKFS_SHARE_DELETE):
        return False
    stream.sharers += 1
    stream.readers += reads
    stream.writers += writes
    stream.deleters += deletes
    stream.shared_read += share & STACKFS_SHARE_READ != 0
    stream.shared_write += share & STACKFS_SHARE_WRITE != 0
    stream.shared_delete += share & STACKFS_SHARE_DELETE != 0
    return True


cdef inline void one_less(uint32_t *count, bint counted) noexcept nogil:
    if counted and count[0]:
        count[0] -= 1


cdef void share_leave(stream_t *stream, uint32_t access, uint32_t share) noexcept nogil:
    """What was opened before the filter was attached has not been counted."""
    cdef bint reads = access & READS != 0
    cdef bint writes = access & WRITES != 0
    cdef bint deletes = access & DELETE != 0
    if not stream.sharers or (not reads and not writes and not deletes):
        return
    stream.sharers -= 1
    one_less(&stream.readers, reads)
    one_less(&stream.writers, writes)
    one_less(&stream.deleters, deletes)
    one_less(&stream.shared_read, share & STACKFS_SHARE_READ != 0)
    one_less(&stream.shared_write, share & STACKFS_SHARE_WRITE != 0)
    one_less(&stream.shared_delete, share & STACKFS_SHARE_DELETE != 0)


# ---- opens that have asked for something -----------------------------------------------------------------------------------

cdef inline open_t **chain_of(stream_t *stream, const oplock_open_t *identity) noexcept nogil:
    return &stream.chains[<uint64_t><uintptr_t>identity * SCATTERS >> 40 & (stream.chain_count - 1)]


cdef void chain(open_t *open) noexcept nogil:
    cdef open_t **at = chain_of(open.stream, open.identity)
    open.next_in_chain = at[0]
    at[0] = open


cdef void unchain(open_t *open) noexcept nogil:
    cdef open_t **at = chain_of(open.stream, open.identity)
    while at[0] != open:
        at = &at[0].next_in_chain
    at[0] = open.next_in_chain


cdef void lengthen_chains(stream_t *stream) noexcept nogil:
    """Without memory they stay as they are."""
    cdef open_t **more = <open_t **>calloc(stream.chain_count * LONG_CHAIN, sizeof(open_t *))
    cdef open_t *each = stream.opens
    if more == NULL:
        return
    if stream.chains != &stream.few:
        free(stream.chains)
    stream.chains = more
    stream.chain_count *= LONG_CHAIN
    while each != NULL:
        chain(each)
        each = each.next


cdef open_t *open_new(stream_t *stream, oplock_open_t *identity) noexcept nogil:
    cdef open_t *open = <open_t *>calloc(1, sizeof(open_t))
    if open == NULL:
        return NULL
    FltReferenceContext(stream)
    open.stream = stream
    open.references = 1
    if stream.listed >= stream.chain_count * LONG_CHAIN:
        lengthen_chains(stream)
    stream.listed += 1
    open.next = stream.opens
    if stream.opens != NULL:
        stream.opens.previous = open
    stream.opens = open
    open.identity = identity
    chain(open)
    return open


cdef open_t *open_of(stream_t *stream, FILE_OBJECT *file, bint make) noexcept nogil:
    cdef open_t *open = chain_of(stream, &file.Oplock)[0]
    while open != NULL and open.identity != &file.Oplock:
        open = open.next_in_chain
    return open_new(stream, &file.Oplock) if open == NULL and make else open


cdef void open_unlist(open_t *open) noexcept nogil:
    cdef stream_t *stream = open.stream
    if open.previous != NULL:
        open.previous.next = open.next
    elif stream.opens == open:
        stream.opens = open.next
    else:
        return                           # it is in no list any more
    if open.next != NULL:
        open.next.previous = open.previous
    open.next = open.previous = NULL
    stream.listed -= 1
    unchain(open)


cdef void open_put(open_t *open) noexcept nogil:
    cdef stream_t *stream
    if add_int(&open.references, -1) == 0:
        stream = open.stream
        free(open)
        stream_put(stream)


cdef FLT_VOLUME *volume_of(const stream_t *stream) noexcept nogil:
    return stream.mounted.instance.Related.Volume


cdef inline bint newer(uint32_t one, uint32_t other) noexcept nogil:
    return <int>(one - other) > 0


cdef void told(oplock_record_t *record) noexcept nogil:
    """The package's: what the open file holds was broken, switched, closed or cancelled."""
    cdef open_t *open = <open_t *>record.context
    cdef stream_t *stream = open.stream
    cdef uint32_t generation = <uint32_t><uintptr_t>record.routine_context
    cdef uint64_t handle = 0
    pthread_mutex_lock(&stream.mutex)
    if not newer(open.generation, generation) and not open.quiet:
        open.generation = generation
        open.unread = 1
        open.old_level = record.level
        open.new_level = record.new_level
        open.flags = STACKFS_OPLOCK_ACK_REQUIRED if record.acknowledge else 0
        if record.status == STATUS_OPLOCK_SWITCHED_TO_NEW_HANDLE:
            open.flags = STACKFS_OPLOCK_SWITCHED
        elif not NT_SUCCESS(record.status) or record.status == STATUS_OPLOCK_HANDLE_CLOSED:
            open.flags = STACKFS_OPLOCK_TAKEN
        handle = open.poll_handle
    pthread_mutex_unlock(&stream.mutex)
    if handle:
        volume_wake_poll(volume_of(stream), handle)
    open_put(open)


cdef oplock_record_t *record_for(open_t *open, uint32_t *generation) noexcept nogil:
    cdef stream_t *stream = open.stream
    cdef oplock_record_t *record
    if stream.oplock == NULL:
        return NULL
    record = oplock_record_new(stream.oplock, open.identity, told, NULL, open)
    if record == NULL:
        return NULL
    add_int(&open.references, 1)
    pthread_mutex_lock(&stream.mutex)
    generation[0] = open.generation + 1
    record.routine_context = <void *><uintptr_t>generation[0]
    pthread_mutex_unlock(&stream.mutex)
    return record


cdef void settled(open_t *open, uint32_t generation) noexcept nogil:
    """What was told before is done with. The break of what this has granted may have come already, and is not."""
    pthread_mutex_lock(&open.stream.mutex)
    if newer(generation, open.generation):
        open.generation = generation
        open.unread = 0
    pthread_mutex_unlock(&open.stream.mutex)


cdef void who_else(open_t *open, bint alone, oplock_request_t *how) noexcept nogil:
    """Is the file open more than once, and, if it wants to be alone, are all of these one client?"""
    cdef stream_t *stream = open.stream
    cdef const uint8_t *key = <const uint8_t *>open.identity.TargetKey
    cdef uint32_t count
    cdef uint32_t same = 1
    cdef open_t *each = NULL
    pthread_mutex_lock(&stream.mutex)
    # What was opened before the filter came, the volume has counted.
    count = max(stream.open_count, load_bits(&stream.node.backed_opens) + load_bits(&stream.node.plain_opens))
    if open.created:
        count = stream.open_count
    how.others_open = count > 1
    if alone and how.others_open and is_oplock_key(key):
        each = stream.opens
    while each != NULL:
        same += each != open and memcmp(each.identity.TargetKey, key, 16) == 0
        each = each.next
    how.all_keys_match = same >= count
    how.byte_range_locks = stream.locked
    pthread_mutex_unlock(&stream.mutex)


cdef bint open_has_two(open_t *open) noexcept nogil:
    cdef oplock_t *oplock = oplock_load(&open.stream.oplock)
    cdef bint has
    if oplock == NULL:
        return False
    pthread_mutex_lock(&oplock.lock)
    has = oplock_record_of(oplock, open.identity, &oplock.level_two, NULL) != NULL
    pthread_mutex_unlock(&oplock.lock)
    return has


cdef NTSTATUS open_request(open_t *open, uint32_t level) noexcept nogil:
    cdef stream_t *stream = open.stream
    cdef oplock_record_t *record
    cdef oplock_request_t how
    cdef uint32_t generation
    cdef bint alone = level & OPLOCK_LEVEL_CACHE_WRITE != 0 or level > OPLOCK_LEVEL_TWO
    cdef NTSTATUS status = STATUS_INSUFFICIENT_RESOURCES
    if stream.mounted.ends:
        return STATUS_OPLOCK_NOT_GRANTED
    if level == OPLOCK_LEVEL_TWO and open_has_two(open):
        return STATUS_SUCCESS            # one is enough: it is told once
    stream_activate(stream)
    record = record_for(open, &generation)
    if record != NULL:
        memset(&how, 0, sizeof(how))
        how.directory = stream.directory
        how.deleted = stream.node.deleted
        who_else(open, alone, &how)
        status = oplock_request(stream.oplock, record, level, &how)
        if status == STATUS_PENDING:
            settled(open, generation)
            status = STATUS_SUCCESS
            oplock_fence()
            if alone:
                who_else(open, True, &how)
                if how.others_open and (not level & OPLOCK_LEVEL_CACHE_WRITE or not how.all_keys_match):
                    open_release(open)       # one was opened meanwhile
                    status = STATUS_OPLOCK_NOT_GRANTED
        else:
            oplock_record_drop(record)
            open_put(open)
            if status == STATUS_SUCCESS:
                settled(open, generation)
    stream_asked(stream)
    return status


cdef NTSTATUS open_acknowledge(open_t *open, uint32_t how, uint32_t *level) noexcept nogil:
    """level: what is held then."""
    cdef stream_t *stream = open.stream
    cdef oplock_record_t *record
    cdef uint32_t generation
    cdef uint32_t wanted = level[0]
    cdef uint64_t handle = 0
    cdef NTSTATUS status
    level[0] = 0
    if oplock_state(oplock_load(&stream.oplock)) == 0:
        return STATUS_INVALID_OPLOCK_PROTOCOL
    stream_activate(stream)
    record = record_for(open, &generation)
    if record == NULL:
        stream_asked(stream)
        return STATUS_INSUFFICIENT_RESOURCES
    status = oplock_acknowledge(stream.oplock, record, <int>how, wanted, stream.node.deleted)
    if status == STATUS_PENDING:
        settled(open, generation)
        level[0] = wanted if how == OPLOCK_ACK_GRANULAR else <uint32_t>OPLOCK_LEVEL_TWO
        status = STATUS_SUCCESS
    else:
        if status == STATUS_CANNOT_GRANT_REQUESTED_OPLOCK:
            pthread_mutex_lock(&stream.mutex)
            if not newer(open.generation, generation):
                open.unread = 1
                open.old_level = <uint8_t>record.level
                open.new_level = <uint8_t>record.new_level
                open.flags = STACKFS_OPLOCK_ACK_REQUIRED
                handle = open.poll_handle
            pthread_mutex_unlock(&stream.mutex)
            if handle:
                volume_wake_poll(volume_of(stream), handle)
        elif NT_SUCCESS(status) or status == STATUS_OPLOCK_NOT_GRANTED:
            settled(open, generation)
        oplock_record_drop(record)
        open_put(open)
    stream_asked(stream)
    return status


cdef void open_release(open_t *open) noexcept nogil:
    cdef stream_t *stream = open.stream
    if oplock_load(&stream.oplock) == NULL:
        return
    pthread_mutex_lock(&stream.mutex)
    open.quiet = 1
    pthread_mutex_unlock(&stream.mutex)
    oplock_close(stream.oplock, open.identity)
    pthread_mutex_lock(&stream.mutex)
    open.quiet = 0
    open.unread = 0
    open.generation += 1
    pthread_mutex_unlock(&stream.mutex)
    stream_settle(stream)


cdef bint open_read_break(open_t *open, stackfs_oplock_break *told) noexcept nogil:
    cdef bint there
    memset(told, 0, sizeof(told[0]))
    pthread_mutex_lock(&open.stream.mutex)
    there = open.unread
    if there:
        told.old_level = open.old_level
        told.new_level = open.new_level
        told.flags = open.flags
        open.unread = 0
    pthread_mutex_unlock(&open.stream.mutex)
    return there


cdef uint32_t broken_to(uint32_t state, const oplock_record_t *record, bint among_breaking) noexcept nogil:
    """What it was broken to, as far as its holder's acknowledgement is concerned."""
    if among_breaking:
        return OPLOCK_LEVEL_CACHE_READ if record.to_read else 0
    if state & GRANULAR_BREAKS:
        return breaking_to(state) & 7
    return OPLOCK_LEVEL_TWO if state & OPLOCK_BREAK_TO_TWO else 0


cdef void open_state(open_t *open, stackfs_oplock_state *state) noexcept nogil:
    cdef stream_t *stream = open.stream
    cdef oplock_t *oplock = oplock_load(&stream.oplock)
    cdef oplock_list_t *lists[OPLOCK_LISTS]
    cdef oplock_record_t *each
    cdef int i
    memset(state, 0, sizeof(state[0]))
    if oplock != NULL:
        oplock_lists(oplock, lists)
        pthread_mutex_lock(&oplock.lock)
        state.waiting = oplock.waiting_count
        state.holders = oplock.records - oplock.waiting_count
        for i in range(OPLOCK_LISTS - 1):
            each = oplock_record_of(oplock, open.identity, lists[i], NULL)
            while each != NULL:
                state.level = each.level
                if each.broken:
                    state.flags |= STACKFS_OPLOCK_BREAKING
                    state.breaking_to = broken_to(oplock.state, each, i == OPLOCK_LISTS - 2)
                each = oplock_record_of(oplock, open.identity, lists[i], each)
        pthread_mutex_unlock(&oplock.lock)
    pthread_mutex_lock(&stream.mutex)
    if open.unread:
        state.flags |= STACKFS_OPLOCK_UNREAD
    pthread_mutex_unlock(&stream.mutex)


cdef bint open_may_keep_back(open_t *open) noexcept nogil:
    cdef oplock_t *oplock = oplock_load(&open.stream.oplock)
    cdef bint may = False
    if oplock == NULL:
        return False
    pthread_mutex_lock(&oplock.lock)
    if oplock.exclusive.first != NULL and oplock.exclusive.first.open == open.identity:
        may = oplock.exclusive.first.level & (OPLOCK_LEVEL_CACHE_WRITE | OPLOCK_LEVEL_ONE | OPLOCK_LEVEL_BATCH) != 0
    pthread_mutex_unlock(&oplock.lock)
    return may


cdef void file_closed(mounted_t *mounted, FILE_OBJECT *file, uint32_t access) noexcept nogil:
    """First it is not open any more, then whoever waited goes on."""
    cdef stream_t *stream = stream_get(mounted, file.Node, False)
    cdef open_t *open
    cdef uint32_t share = ALL_SHARED
    if stream == NULL:
        return
    pthread_mutex_lock(&stream.mutex)
    open = open_of(stream, file, False)
    if open != NULL:
        open.quiet = 1
        if open.access:
            access = open.access
            share = open.share
    if not stream.directory:
        stream.open_count -= stream.open_count != 0
        share_leave(stream, access, share)
        if stream.open_count == 0:
            stream.locked = 0
    pthread_mutex_unlock(&stream.mutex)
    if oplock_state(oplock_load(&stream.oplock)) != 0:
        oplock_close(stream.oplock, &file.Oplock)
    if open != NULL:
        pthread_mutex_lock(&stream.mutex)
        open_unlist(open)
        pthread_mutex_unlock(&stream.mutex)
        open_put(open)
    stream_settle(stream)
    stream_let_go(stream)


# ---- opens that wait to be taken over --------------------------------------------------------------------------------------

cdef void created_add(mounted_t *mounted, created_t *created) noexcept nogil:
    created.until = monotonic_time() + mounted.lapse
    pthread_mutex_lock(&mounted.mutex)
    created.next = mounted.created
    mounted.created = created
    pthread_mutex_unlock(&mounted.mutex)
    activate(mounted, 1, 0, 1)


cdef bint created_named(mounted_t *mounted, const node_t *directory, const char *once, uint32_t length, uint32_t pid, char *name,
                        uint32_t *name_length) noexcept nogil:
    cdef created_t *each
    cdef bint found = False
    pthread_mutex_lock(&mounted.mutex)
    each = mounted.created
    while each != NULL and not found:
        if each.directory == directory and each.pid == pid and strlen(each.once) == length and memcmp(each.once, once, length) == 0:
            memcpy(name, each.name, each.name_length)
            name_length[0] = each.name_length
            each.looked_up = 1
            found = True
        each = each.next
    pthread_mutex_unlock(&mounted.mutex)
    return found


cdef created_t *created_take(mounted_t *mounted, const node_t *node, uint32_t pid) noexcept nogil:
    cdef created_t *each
    pthread_mutex_lock(&mounted.mutex)
    each = mounted.created
    while each != NULL and not (each.open.stream.node == node and each.pid == pid and each.looked_up and not each.busy):
        each = each.next
    if each != NULL:
        each.busy = 1
    pthread_mutex_unlock(&mounted.mutex)
    return each


cdef void unlist_created_locked(mounted_t *mounted, created_t *created) noexcept nogil:
    cdef created_t **at = &mounted.created
    while at[0] != created:
        at = &at[0].next
    at[0] = created.next


cdef void created_free(mounted_t *mounted, created_t *created) noexcept nogil:
    """It is in no list any more, and nobody goes by its identity."""
    if created.opened != NULL:
        FltClose(mounted.instance, created.opened)
    node_put(<inode_table_t *>mounted.instance.Related.Volume.nodes, created.directory)
    free(created)


cdef void created_taken(mounted_t *mounted, created_t *created, FILE_OBJECT *file) noexcept nogil:
    cdef open_t *open = created.open
    cdef stream_t *stream = open.stream
    if file == NULL:
        pthread_mutex_lock(&mounted.mutex)
        created.busy = 0
        pthread_mutex_unlock(&mounted.mutex)
        return
    pthread_mutex_lock(&stream.mutex)
    if stream.oplock != NULL:
        oplock_move(stream.oplock, &created.identity, &file.Oplock)
    unchain(open)
    open.identity = &file.Oplock
    open.created = 0
    chain(open)
    pthread_mutex_unlock(&stream.mutex)
    pthread_mutex_lock(&mounted.mutex)
    unlist_created_locked(mounted, created)
    pthread_mutex_unlock(&mounted.mutex)
    created_free(mounted, created)
    open_put(open)
    activate(mounted, -1, 0, -1)


cdef void created_end(mounted_t *mounted, created_t *created) noexcept nogil:
    """In no list any more: what it holds, and counts for, is given back."""
    cdef open_t *open = created.open
    cdef stream_t *stream = open.stream
    pthread_mutex_lock(&stream.mutex)
    open.quiet = 1
    stream.open_count -= stream.open_count != 0
    share_leave(stream, open.access, open.share)
    pthread_mutex_unlock(&stream.mutex)
    if oplock_load(&stream.oplock) != NULL:
        oplock_close(stream.oplock, &created.identity)
    pthread_mutex_lock(&stream.mutex)
    open_unlist(open)
    pthread_mutex_unlock(&stream.mutex)
    FltReferenceContext(stream)
    open_put(open)                           # the list's, and the created one's
    open_put(open)
    created_free(mounted, created)
    stream_settle(stream)
    stream_let_go(stream)
    activate(mounted, -1, 0, -1)


cdef void created_give_up(mounted_t *mounted, created_t *created) noexcept nogil:
    pthread_mutex_lock(&mounted.mutex)
    unlist_created_locked(mounted, created)
    pthread_mutex_unlock(&mounted.mutex)
    created_end(mounted, created)


# ---- time ------------------------------------------------------------------------------------------------------------------

cdef bint next_lapsed(mounted_t *mounted, int64_t now, bint all_of_them) noexcept nogil:
    cdef created_t *each
    pthread_mutex_lock(&mounted.mutex)
    each = mounted.created
    while each != NULL and (each.busy or not (all_of_them or now > each.until or is_gone(each.pid))):
        each = each.next
    if each != NULL:
        unlist_created_locked(mounted, each)
    pthread_mutex_unlock(&mounted.mutex)
    if each != NULL:
        created_end(mounted, each)
    return each != NULL


cdef bint take_overdue(stream_t *stream, int64_t before) noexcept nogil:
    """The oplock of one holder who was told before that moment and has not answered is taken from him."""
    cdef oplock_t *oplock = oplock_load(&stream.oplock)
    cdef oplock_record_t *found = NULL
    cdef const oplock_open_t *who = NULL
    cdef open_t *open = NULL
    cdef uint64_t handle = 0
    if oplock == NULL:
        return False
    pthread_mutex_lock(&stream.mutex)
    pthread_mutex_lock(&oplock.lock)
    found = oplock.exclusive.first
    if found == NULL or not found.broken or found.broken > before:
        found = oplock.breaking.first    # the one that has been told first
        if found != NULL and found.broken > before:
            found = NULL
    if found != NULL:
        open = <open_t *>found.context
        who = found.open
        add_int(&open.references, 1)
        open.unread = 1
        open.old_level = <uint8_t>found.level
        open.new_level = 0
        open.flags = STACKFS_OPLOCK_TAKEN
        handle = open.poll_handle
    pthread_mutex_unlock(&oplock.lock)
    pthread_mutex_unlock(&stream.mutex)
    if found == NULL:
        return False
    oplock_close(oplock, who)
    if handle:
        volume_wake_poll(volume_of(stream), handle)
    open_put(open)
    stream_settle(stream)
    return True


cdef stream_t *next_active(mounted_t *mounted, stream_t *after, bint any_of_them) noexcept nogil:
    cdef stream_t *stream
    pthread_mutex_lock(&mounted.mutex)
    stream = mounted.streams if after == NULL or after.dead else after.next
    while stream != NULL and not stream.active and not any_of_them:
        stream = stream.next
    if stream != NULL:
        FltReferenceContext(stream)
    pthread_mutex_unlock(&mounted.mutex)
    if after != NULL:
        stream_put(after)
    return stream


cdef void look(mounted_t *mounted) noexcept nogil:
    cdef stream_t *stream
    cdef int64_t now = monotonic_time()
    while load_int(&mounted.created_count) and next_lapsed(mounted, now, False):
        pass
    if mounted.break_timeout:
        stream = next_active(mounted, NULL, False)
        while stream != NULL:
            while take_overdue(stream, now - mounted.break_timeout):
                pass
            stream = next_active(mounted, stream, False)


cdef const oplock_open_t *a_holder(oplock_t *oplock) noexcept nogil:
    """NULL: nobody holds it."""
    cdef oplock_list_t *lists[OPLOCK_LISTS]
    cdef oplock_record_t *found = NULL
    cdef const oplock_open_t *who = NULL
    cdef int i
    if oplock == NULL:
        return NULL
    oplock_lists(oplock, lists)
    pthread_mutex_lock(&oplock.lock)
    for i in range(OPLOCK_LISTS - 1):
        found = lists[i].first if found == NULL else found
    who = found.open if found != NULL else NULL
    pthread_mutex_unlock(&oplock.lock)
    return who


cdef bint watches(mounted_t *mounted) noexcept nogil:
    return mounted.created != NULL or (mounted.break_timeout and mounted.active)


# ---- the instance ----------------------------------------------------------------------------------------------------------

cdef struct row_t:                       # one line of a listing
    int kind                             # OPLOCK_LISTS - 1: it waits
    uint32_t level, new_level, pid, tid, opcode
    int64_t since, broken
    uint8_t created


cdef int rows_of(stream_t *stream, row_t *rows, int most) noexcept nogil:
    """How many there are."""
    cdef oplock_t *oplock = oplock_load(&stream.oplock)
    cdef oplock_list_t *lists[OPLOCK_LISTS]
    cdef oplock_record_t *each
    cdef operation_t *op
    cdef int count = 0
    cdef int i
    if oplock == NULL:
        return 0
    oplock_lists(oplock, lists)
    pthread_mutex_lock(&stream.mutex)
    pthread_mutex_lock(&oplock.lock)
    for i in range(OPLOCK_LISTS):
        each = lists[i].first
        while each != NULL:
            if count < most:
                memset(&rows[count], 0, sizeof(row_t))
                rows[count].kind = i
                rows[count].since = each.since
                if i == OPLOCK_LISTS - 1 and each.claim == NULL:
                    pass                 # somebody beside the mount (_beside.pyx)
                elif i == OPLOCK_LISTS - 1:
                    op = <operation_t *>each.context
                    rows[count].tid = op.data.Thread.tid
                    rows[count].opcode = op.data.RequestOpcode
                else:
                    rows[count].level = each.level
                    rows[count].broken = each.broken
                    rows[count].pid = (<open_t *>each.context).pid
                    rows[count].created = (<open_t *>each.context).created != 0
                    if each.broken:
                        rows[count].new_level = broken_to(oplock.state, each, i == OPLOCK_LISTS - 2)
            count += 1
            each = each.next
    pthread_mutex_unlock(&oplock.lock)
    pthread_mutex_unlock(&stream.mutex)
    return count


cdef class Mounted:
    """The filter on one volume."""

    def __init__(self, entry not None, double break_timeout, double lapse, bint read_only):
        cdef mounted_t *mounted = &self.mounted
        self.entry = entry
        mounted.instance = instance_pointer(entry)
        if mounted.instance.Related.Volume.writeback:
            raise ValueError("with writeback the kernel keeps writes back, and they would break nothing in time")
        mounted.break_timeout = <int64_t>(break_timeout * 1e9)
        mounted.lapse = <int64_t>(lapse * 1e9)
        mounted.read_only = read_only
        pthread_mutex_init(&mounted.mutex, NULL)
        init_condition(&mounted.changed)
        instance_sleep(mounted.instance, True)
        mounted.instance.Context = mounted
        with nogil:                      # it waits for what tells listeners, some of which may want the interpreter
            beside_begin(mounted)

    def watch(self):
        """Ends what time ends, until stop(). A thread of its own."""
        cdef mounted_t *mounted = &self.mounted
        cdef timespec when
        with nogil:
            pthread_mutex_lock(&mounted.mutex)
            while not mounted.ends:
                if not watches(mounted):
                    pthread_cond_wait(&mounted.changed, &mounted.mutex)
                    continue
                monotonic_deadline(&when, LOOK_EVERY)
                pthread_cond_timedwait(&mounted.changed, &mounted.mutex, &when)
                if mounted.ends:
                    break
                pthread_mutex_unlock(&mounted.mutex)
                look(mounted)
                pthread_mutex_lock(&mounted.mutex)
            pthread_mutex_unlock(&mounted.mutex)

    def stop(self):
        """Nothing is granted any more; what is held is taken, and whoever waits goes on. watch() returns."""
        cdef mounted_t *mounted = &self.mounted
        cdef stream_t *stream
        cdef const oplock_open_t *who
        with nogil:
            beside_end(mounted)
            pthread_mutex_lock(&mounted.mutex)
            mounted.ends = 1
            pthread_cond_broadcast(&mounted.changed)
            pthread_mutex_unlock(&mounted.mutex)
            while next_lapsed(mounted, 0, True):
                pass
            stream = next_active(mounted, NULL, False)
            while stream != NULL:
                who = a_holder(oplock_load(&stream.oplock))
                if who != NULL:
                    oplock_close(stream.oplock, who)
                    continue
                stream_settle(stream)
                stream = next_active(mounted, stream, False)

    def end(self):
        """No callback runs any more: what is left of open files is let go."""
        cdef mounted_t *mounted = &self.mounted
        cdef stream_t *stream
        cdef open_t *open
        with nogil:
            stream = next_active(mounted, NULL, True)
            while stream != NULL:
                pthread_mutex_lock(&stream.mutex)
                open = stream.opens
                if open != NULL:
                    open_unlist(open)
                pthread_mutex_unlock(&stream.mutex)
                if open != NULL:
                    open_put(open)
                    continue
                stream = next_active(mounted, stream, True)
            mounted.instance.Context = NULL

    def rows(self):
        """What there is: a tuple for each file: (path, rows). A row: (waits, level, breaking to, pid, tid, opcode,
        nanoseconds since, nanoseconds since it was broken, not taken over yet)."""
        cdef mounted_t *mounted = &self.mounted
        cdef stream_t *stream
        cdef row_t *rows
        cdef int count, most = 64
        cdef int i
        cdef int64_t now = monotonic_time()
        cdef list files = []
        cdef list lines
        with nogil:
            stream = next_active(mounted, NULL, False)
        while stream != NULL:
            while True:
                rows = <row_t *>malloc(most * sizeof(row_t))
                if rows == NULL:
                    with nogil:
                        stream_put(stream)
                    raise MemoryError()
                with nogil:
                    count = rows_of(stream, rows, most)
                if count <= most:
                    break
                most = count * 2
                free(rows)
            lines = [(rows[i].kind == OPLOCK_LISTS - 1, rows[i].level, rows[i].new_level, rows[i].pid, rows[i].tid, rows[i].opcode,
                      now - rows[i].since, now - rows[i].broken if rows[i].broken else 0, bool(rows[i].created))
                     for i in range(count)]
            free(rows)
            if lines:
                files.append((self.path(stream), lines))
            with nogil:
                stream = next_active(mounted, stream, False)
        return files

    cdef bytes path(self, stream_t *stream):
        """As programs see it."""
        cdef char text[4608]
        cdef int length
        with nogil:
            length = layer_path(self.mounted.instance, stream.node, text, sizeof(text))
        return text[:length] if length > 0 else b""

    @property
    def active(self):
        """How many files have an oplock, or an open that waits to be taken over."""
        return load_int(&self.mounted.active)


def contexts():
    """The filter's registration of contexts."""
    cdef NativeContexts native = NativeContexts()
    cdef FLT_CONTEXT_REGISTRATION row
    memset(&row, 0, sizeof(row))
    row.ContextType = FLT_STREAM_CONTEXT
    row.Size = sizeof(stream_t)
    row.ContextCleanupCallback = stream_gone
    native.add(&row)
    return native
