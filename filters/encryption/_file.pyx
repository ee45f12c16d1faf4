"""One encrypted file: header, map and blocks (docs/encryption-format.md; "rule N" is one of its "What a writer does").

Locks, in this order: `sealing` (one change of the seal at a time, held across its sync), `lock` (read-write: reads share
it, changes have it alone), `map` (the nodes in memory; held while a node is read, so that nobody reads it twice). In the
middle of a seal `lock` is not held: what is written meanwhile belongs to the next generation.

The map in memory is what the file is now; the seal on disk is what it was when it was sealed. Nodes are read when they
are needed, and the oldest that are as on disk are given back beyond NODES_KEPT. A node that the last seal has changed
stays, since it alone knows which of its places the seal before uses.

A file that was left open is read leniently (docs, "What a reader accepts") until it is recovered (rule 7), which the first
change does. Everything else is strict: the map, or nothing.
"""

from libc.errno cimport EBADMSG, EFBIG, EINTR, EIO, ENOMEM, ENXIO, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, intptr_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport ftruncate, pread, pwrite

from stackfs.cext.includes.pthread cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock)
from stackfs.filters.encryption._cipher cimport (
    BLOCK_ABSENT, BLOCK_AUTHENTIC, BLOCK_DAMAGED, MAC, VolumeKeys, all_zero, block_t, blocks_decrypt, blocks_encrypt, bytes_t,
    derive_file_keys, file_keys_t, forget_file_keys, hmac_of, random_bytes, same, volume_keys_t)
from stackfs.filters.encryption._layout cimport (
    BLOCK, BLOCK_HEAD, FANOUT, FIXED, HEADER, NODE, NODE_PLACES, OVERHEAD, PLACES, SEAL, SLOT, TAG, TOP, blocks_of, levels_for,
    node_offset, plain_size, run_of, slot_offset, stored_size)
from stackfs.filters.encryption._secrets cimport secret_free, secret_new

import os

cdef extern from *:
    """
    #include <fcntl.h>
    #include <pthread.h>
    #include <unistd.h>
    """
    ctypedef struct pthread_rwlock_t:
        pass
    int pthread_rwlock_init(pthread_rwlock_t *lock, void *attributes) nogil
    int pthread_rwlock_destroy(pthread_rwlock_t *lock) nogil
    int pthread_rwlock_rdlock(pthread_rwlock_t *lock) nogil
    int pthread_rwlock_wrlock(pthread_rwlock_t *lock) nogil
    int pthread_rwlock_unlock(pthread_rwlock_t *lock) nogil
    int fdatasync(int fd) nogil
    int fallocate(int fd, int mode, long offset, long length) nogil
    int FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE

cdef enum:
    NODES_KEPT = 1024                    # nodes of a file in memory: 4 MiB for 1 GiB of it
    NODES_CHANGED = 4096                 # from so many changed ones on the file is sealed
    BUCKETS = 512
    NOWHERE = 255                        # a node without a place on disk: all zeros
    RUN = 256                            # most slots in one transfer
    SMALL = 4                            # slots of a transfer that takes no buffer from the pool
    BUFFERS = 8
    SEAL_OPEN = 1

cdef enum:                               # what fsck finds a block to be (EncryptedFile.examine)
    EXAMINED_GOOD = 0
    EXAMINED_HOLE = 1
    EXAMINED_NO_MAP = 2                  # the part of the map that has it is damaged
    EXAMINED_GONE = 3                    # zeros where the map has a block
    EXAMINED_DAMAGED = 4                 # not authentic in this place
    EXAMINED_OTHER = 5                   # authentic, and not the version that the map has
    EXAMINED_LENGTH = 6                  # the last block, and not as long as the size says

cdef uint64_t LARGEST = (<uint64_t>1 << 62)

cdef struct node_t:
    node_t *next                         # in its bucket
    uint64_t index
    uint64_t used                        # when; the file's clock
    uint64_t changed_in                  # generation of the seal that brought it to `place`; 0: not in this session
    uint8_t level
    uint8_t place                        # where the last seal has it
    uint8_t before                       # where the seal before that has it, if that one's is changed_in
    uint8_t going                        # where the seal under way puts it
    bint dirty                           # not as the last seal has it
    bint settling                        # the seal under way has it as it was when `going` was written
    uint8_t entries[4096]

cdef struct encrypted_file_t:
    const volume_keys_t *volume
    file_io_t io
    file_keys_t *keys
    pthread_mutex_t sealing
    pthread_rwlock_t lock
    pthread_mutex_t map
    uint64_t size                        # plain
    uint64_t sealed                      # generation of the last seal
    uint64_t working                     # ... in which blocks are written
    bint ready                           # blocks may be written: the seal on disk is open, and nothing is lenient
    bint lenient
    bint one_seal                        # one of the header's seals may be damaged: fsck alone
    bint rebuilds                        # a node that is damaged is made anew from its blocks: fsck alone, if it was told to
    bint unfinished                      # a change that failed: finish() is due, and until then rule 5's "until then" holds
    uint64_t holes_begin, holes_end      # unfinished: among these blocks are holes whose bytes are still there
    bint clean                           # the last seal is
    bint changed                         # since the nodes of the last seal were settled
    uint64_t clock
    uint64_t nodes, dirty_nodes
    node_t **buckets                     # BUCKETS, or NULL while there are no nodes
    int levels                           # of `top`
    uint8_t top[384]
    uint8_t header[1024]                 # as on disk


# Buffers of 1 MiB of slots ---------------------------------------------------------------------------------------------

cdef extern from *:
    """
    static pthread_mutex_t buffers_mutex = PTHREAD_MUTEX_INITIALIZER;
    """
    pthread_mutex_t buffers_mutex

cdef struct buffer_t:
    buffer_t *next
    block_t found[256]
    uint8_t tags[4096]
    uint8_t plain[4096]
    uint8_t slots[1057792]

cdef buffer_t *free_buffers = NULL
cdef int buffers_kept = 0


cdef buffer_t *buffer_take() noexcept nogil:
    global free_buffers, buffers_kept
    cdef buffer_t *buffer
    pthread_mutex_lock(&buffers_mutex)
    buffer = free_buffers
    if buffer != NULL:
        free_buffers = buffer.next
        buffers_kept -= 1
    pthread_mutex_unlock(&buffers_mutex)
    return buffer if buffer != NULL else <buffer_t *>malloc(sizeof(buffer_t))


cdef void buffer_give(buffer_t *buffer) noexcept nogil:
    global free_buffers, buffers_kept
    pthread_mutex_lock(&buffers_mutex)
    if buffers_kept < BUFFERS:
        buffer.next = free_buffers
        free_buffers = buffer
        buffers_kept += 1
        buffer = NULL
    pthread_mutex_unlock(&buffers_mutex)
    free(buffer)


# The map ---------------------------------------------------------------------------------------------------------------

cdef inline void put64(uint8_t *at, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        at[i] = value >> 8 * i & 0xFF


cdef inline uint64_t get64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(8):
        value |= <uint64_t>at[i] << 8 * i
    return value


cdef inline node_t **bucket_of(encrypted_file_t *file, int level, uint64_t index) noexcept nogil:
    return &file.buckets[(index * 7 + <uint64_t>level) % BUCKETS]


cdef node_t *node_known(encrypted_file_t *file, int level, uint64_t index) noexcept nogil:
    cdef node_t *node = NULL if file.buckets == NULL else bucket_of(file, level, index)[0]
    while node != NULL and (node.level != level or node.index != index):
        node = node.next
    return node


cdef int node_add(encrypted_file_t *file, node_t *node) noexcept nogil:
    cdef node_t **place
    if file.buckets == NULL:
        file.buckets = <node_t **>calloc(BUCKETS, sizeof(node_t *))
        if file.buckets == NULL:
            return -ENOMEM
    place = bucket_of(file, node.level, node.index)
    node.used = file.clock
    node.next = place[0]
    place[0] = node
    file.nodes += 1
    return 0


cdef int node_entry(encrypted_file_t *file, int level, uint64_t index, const uint8_t *entries, uint8_t *entry) noexcept nogil:
    """What stands for a node in its parent."""
    cdef uint8_t mac[32]
    cdef uint8_t what[16]
    cdef bytes_t[2] parts
    cdef int error
    if all_zero(entries, NODE):
        memset(entry, 0, TAG)
        return 0
    memcpy(what, b"node", 4)
    put64(what + 4, <uint64_t>level)                 # and three zero bytes, which the next line puts right
    put64(what + 8, index)
    parts[0].data, parts[0].length = what, 16
    parts[1].data, parts[1].length = entries, NODE
    error = hmac_of(file.keys.map, 32, parts, 2, mac)
    memcpy(entry, mac, TAG)
    return error


cdef void nodes_give_back(encrypted_file_t *file) noexcept nogil:
    """Frees about a quarter of the nodes: those not used for longest that are as on disk. Under `map`."""
    cdef node_t **place
    cdef node_t *node
    cdef uint64_t limit = file.clock - file.nodes // 4 * 3 if file.clock > file.nodes // 4 * 3 else 0
    cdef int i
    for i in range(BUCKETS):
        place = &file.buckets[i]
        while place[0] != NULL:
            node = place[0]
            if node.used < limit and not node.dirty and not node.settling and (node.changed_in < file.sealed or node.changed_in == 0):
                place[0] = node.next
                free(node)
                file.nodes -= 1
            else:
                place = &node.next


cdef int node_find(encrypted_file_t *file, int level, uint64_t index, bint sure, node_t **found) noexcept nogil:
    """The node, read and checked if it is not in memory. NULL in `found`: it is all zeros, if not `sure` it has to be there.

    Under `map`.
    """
    cdef node_t *node = node_known(file, level, index)
    cdef node_t *parent = NULL
    cdef uint8_t *entry
    cdef uint8_t mac[16]
    cdef uint8_t *places
    cdef int64_t got
    cdef int i, error
    file.clock += 1
    if node != NULL:
        node.used = file.clock
        found[0] = node
        return 0
    found[0] = NULL
    if level == file.levels:
        entry = file.top + index * TAG
    else:
        error = node_find(file, level + 1, index // FANOUT, sure, &parent)
        if error or parent == NULL:
            return error
        entry = parent.entries + index % FANOUT * TAG
    if not sure and all_zero(entry, TAG):
        return 0
    node = <node_t *>calloc(1, sizeof(node_t))
    if node == NULL:
        return -ENOMEM
    node.level, node.index, node.place, node.before = level, index, NOWHERE, NOWHERE
    if not all_zero(entry, TAG):
        places = <uint8_t *>malloc(NODE_PLACES)
        got = -ENOMEM if places == NULL else file.io.read(file.io.who, node_offset(level, index), places, NODE_PLACES)
        error = <int>got if got < 0 else -EBADMSG
        if got >= 0:
            memset(places + got, 0, NODE_PLACES - got)
            for i in range(PLACES):
                error = node_entry(file, level, index, places + i * NODE, mac)
                if error:
                    break
                if same(mac, entry, TAG):
                    memcpy(node.entries, places + i * NODE, NODE)
                    node.place = i
                    break
                error = -EBADMSG
        free(places)
        if error == -EBADMSG and file.rebuilds:
            error = node_rebuild(file, node)
        if error:
            free(node)
            return error
    if file.nodes >= NODES_KEPT and file.nodes % 64 == 0:
        nodes_give_back(file)
    error = node_add(file, node)
    if error:
        free(node)
        return error
    found[0] = node
    return 0


cdef int node_rebuild(encrypted_file_t *file, node_t *node) noexcept nogil:
    """A node from what its blocks say of themselves: tags of those that are authentic, holes where zeros are, and where
    something else is an entry that nothing fits. Of a higher level: all nodes below it, which the next seal enters in it.

    Under `map`. Nothing here proves that a block is the last version of itself."""
    cdef buffer_t *buffer = NULL
    cdef uint8_t *plain = NULL
    cdef node_t *child
    cdef uint64_t blocks = blocks_of(file.size)
    cdef uint64_t block = node.index << 8 * node.level
    cdef uint64_t end = min(blocks, (node.index + 1) << 8 * node.level)
    cdef uint64_t step = <uint64_t>1 << 8 * (node.level - 1)
    cdef uint8_t *entry
    cdef size_t many, i
    cdef int64_t got
    cdef int error = 0
    memset(node.entries, 0, NODE)
    node_changes(file, node)
    if node.level > 1:
        while block < end and error == 0:
            child = <node_t *>calloc(1, sizeof(node_t))
            if child == NULL:
                return -ENOMEM
            child.level, child.index, child.place, child.before = node.level - 1, block // step, NOWHERE, NOWHERE
            error = node_rebuild(file, child)
            error = error or node_add(file, child)
            if error:
                free(child)
            block += step
        return error
    buffer = buffer_take()
    plain = <uint8_t *>malloc(RUN * BLOCK)
    if buffer == NULL or plain == NULL:
        error = -ENOMEM
    while block < end and error == 0:
        many = <size_t>min(end - block, run_of(block))
        got = file.io.read(file.io.who, slot_offset(block), buffer.slots, many * SLOT)
        error = <int>got if got < 0 else blocks_decrypt(file.keys, block, many, blocks - 1, buffer.slots, got, plain, buffer.found)
        for i in range(many if error == 0 else 0):
            entry = node.entries + (block + i) % FANOUT * TAG
            if buffer.found[i].state == BLOCK_AUTHENTIC and buffer.found[i].generation <= file.sealed + 2:
                memcpy(entry, buffer.found[i].tag, TAG)
            elif buffer.found[i].state != BLOCK_ABSENT:
                memset(entry, 255, TAG)
        block += many
    free(plain)
    if buffer != NULL:
        buffer_give(buffer)
    return error


cdef int map_get(encrypted_file_t *file, uint64_t first, size_t count, uint8_t *tags) noexcept nogil:
    """The entries of blocks that lie side by side, or zeros beyond the map."""
    cdef node_t *node
    cdef size_t many
    cdef int error = 0
    pthread_mutex_lock(&file.map)
    while count and error == 0:
        if file.levels == 0:
            many = 0 if first >= TOP else min(count, <size_t>(TOP - first))
            memcpy(tags, file.top + first * TAG, many * TAG)
            memset(tags + many * TAG, 0, (count - many) * TAG)
            break
        many = min(count, <size_t>(FANOUT - first % FANOUT))
        if first >= <uint64_t>TOP << 8 * file.levels:
            memset(tags, 0, many * TAG)
        else:
            error = node_find(file, 1, first // FANOUT, False, &node)
            if error == 0 and node != NULL:
                memcpy(tags, node.entries + first % FANOUT * TAG, many * TAG)
            else:
                memset(tags, 0, many * TAG)
        first += many
        count -= many
        tags += many * TAG
    pthread_mutex_unlock(&file.map)
    return error


cdef void node_changes(encrypted_file_t *file, node_t *node) noexcept nogil:
    if not node.dirty:
        node.dirty = True
        file.dirty_nodes += 1


cdef int map_grow(encrypted_file_t *file, uint64_t blocks) noexcept nogil:
    """As many levels as `blocks` need: what the top has moves into a node of index 0."""
    cdef int wanted = levels_for(blocks)
    cdef node_t *node
    while file.levels < wanted:
        node = <node_t *>calloc(1, sizeof(node_t))
        if node == NULL:
            return -ENOMEM
        node.level, node.place, node.before = file.levels + 1, NOWHERE, NOWHERE
        memcpy(node.entries, file.top, TOP * TAG)
        if node_add(file, node):
            free(node)
            return -ENOMEM
        memset(file.top, 0, TOP * TAG)
        file.levels += 1
        node_changes(file, node)
    return 0


cdef int map_set(encrypted_file_t *file, uint64_t first, size_t count, const uint8_t *tags) noexcept nogil:
    """New entries; `tags` NULL: holes. `lock` is held alone, and the map is large enough."""
    cdef node_t *node
    cdef size_t many
    cdef int error = 0
    pthread_mutex_lock(&file.map)
    file.changed = True
    while count and error == 0:
        if file.levels == 0:
            if tags == NULL:
                memset(file.top + first * TAG, 0, count * TAG)
            else:
                memcpy(file.top + first * TAG, tags, count * TAG)
            break
        many = min(count, <size_t>(FANOUT - first % FANOUT))
        error = node_find(file, 1, first // FANOUT, tags != NULL, &node)
        if error == 0 and node != NULL:
            if tags == NULL:
                memset(node.entries + first % FANOUT * TAG, 0, many * TAG)
            else:
                memcpy(node.entries + first % FANOUT * TAG, tags, many * TAG)
            node_changes(file, node)
        first += many
        count -= many
        if tags != NULL:
            tags += many * TAG
    pthread_mutex_unlock(&file.map)
    return error


cdef void map_forget(encrypted_file_t *file) noexcept nogil:
    cdef node_t *node
    cdef int i
    if file.buckets == NULL:
        return
    for i in range(BUCKETS):
        while file.buckets[i] != NULL:
            node = file.buckets[i]
            file.buckets[i] = node.next
            free(node)
    free(file.buckets)
    file.buckets = NULL
    file.nodes = file.dirty_nodes = 0


cdef int map_cut(encrypted_file_t *file, uint64_t blocks) noexcept nogil:
    """The map of a file that has shrunk to `blocks`: holes behind them, and as few levels as they need."""
    cdef int wanted = levels_for(blocks)
    cdef int level, i, error = 0
    cdef uint64_t kept
    cdef node_t **place
    cdef node_t *node
    pthread_mutex_lock(&file.map)
    file.changed = True
    if blocks == 0:
        map_forget(file)
        memset(file.top, 0, TOP * TAG)
        file.levels = 0
        pthread_mutex_unlock(&file.map)
        return 0
    # The nodes on the way to the last block lose what is behind it; those wholly behind it are forgotten.
    for level in range(1, file.levels + 1):
        kept = ((blocks - 1) >> 8 * (level - 1)) + 1             # entries of this level's nodes
        error = node_find(file, level, (kept - 1) // FANOUT, False, &node)
        if error:
            break
        if node != NULL and not all_zero(node.entries + ((kept - 1) % FANOUT + 1) * TAG, (FANOUT - (kept - 1) % FANOUT - 1) * TAG):
            memset(node.entries + ((kept - 1) % FANOUT + 1) * TAG, 0, (FANOUT - (kept - 1) % FANOUT - 1) * TAG)
            node_changes(file, node)
    if error == 0:
        while file.levels > wanted and error == 0:
            error = node_find(file, file.levels, 0, False, &node)
            if error == 0:
                memset(file.top, 0, TOP * TAG)
                if node != NULL:
                    memcpy(file.top, node.entries, TOP * TAG)
                file.levels -= 1
        kept = ((blocks - 1) >> 8 * file.levels) + 1
        memset(file.top + kept * TAG, 0, (TOP - kept) * TAG)
        for i in range(BUCKETS if file.buckets != NULL else 0):
            place = &file.buckets[i]
            while place[0] != NULL:
                node = place[0]
                if node.level > file.levels or node.index > (blocks - 1) >> 8 * node.level:
                    place[0] = node.next
                    file.nodes -= 1
                    file.dirty_nodes -= node.dirty
                    free(node)
                else:
                    place = &node.next
    pthread_mutex_unlock(&file.map)
    return error


# Seals -----------------------------------------------------------------------------------------------------------------

cdef int seal_mac(encrypted_file_t *file, const uint8_t *fixed, const uint8_t *seal, uint8_t *mac) noexcept nogil:
    cdef bytes_t[3] parts
    parts[0].data, parts[0].length = b"seal", 4
    parts[1].data, parts[1].length = fixed, FIXED
    parts[2].data, parts[2].length = seal, SEAL - MAC
    return hmac_of(file.keys.map, 32, parts, 3, mac)


cdef int seal_build(encrypted_file_t *file, uint64_t generation, uint64_t size, bint clean, const uint8_t *top) noexcept nogil:
    """Into file.header."""
    cdef uint8_t *seal = file.header + FIXED + (generation & 1) * SEAL
    memset(seal, 0, SEAL)
    put64(seal, generation)
    put64(seal + 8, size)
    seal[16] = 0 if clean else SEAL_OPEN
    memcpy(seal + 32, top, TOP * TAG)
    return seal_mac(file, file.header, seal, seal + SEAL - MAC)


cdef int seal_write(encrypted_file_t *file, uint64_t generation, uint64_t size, bint clean, const uint8_t *top) noexcept nogil:
    cdef uint64_t offset = FIXED + (generation & 1) * SEAL
    cdef int error = seal_build(file, generation, size, clean, top)
    if error == 0:
        error = file.io.write(file.io.who, offset, file.header + offset, SEAL)
    if error == 0:
        file.sealed = generation
        file.clean = clean
        if file.working <= generation:
            file.working = generation + 1
    return error


cdef int settle(encrypted_file_t *file) noexcept nogil:
    """Writes the changed nodes into free places, children first, and brings `top` up to date. Under `lock`, alone."""
    cdef node_t *node
    cdef node_t *parent
    cdef uint8_t entry[16]
    cdef int level, i, place, error = 0
    pthread_mutex_lock(&file.map)
    for level in range(1, file.levels + 1 if file.dirty_nodes else 1):
        for i in range(BUCKETS):
            node = file.buckets[i]
            while node != NULL and error == 0:
                if node.level == level and node.dirty:
                    error = node_entry(file, level, node.index, node.entries, entry)
                    node.going = NOWHERE
                    if error == 0 and not all_zero(entry, TAG):
                        for place in range(PLACES):
                            if place != node.place and not (node.changed_in == file.sealed and place == node.before):
                                node.going = place
                                break
                        error = file.io.write(file.io.who, node_offset(level, node.index) + node.going * NODE, node.entries, NODE)
                    if error == 0 and level == file.levels:
                        memcpy(file.top + node.index * TAG, entry, TAG)
                    elif error == 0:
                        error = node_find(file, level + 1, node.index // FANOUT, True, &parent)
                        if error == 0:
                            memcpy(parent.entries + node.index % FANOUT * TAG, entry, TAG)
                            node_changes(file, parent)
                    if error == 0:
                        node.dirty = False
                        file.dirty_nodes -= 1
                        node.settling = True
                node = node.next
    pthread_mutex_unlock(&file.map)
    return error


cdef void settled(encrypted_file_t *file, bint good) noexcept nogil:
    """The seal that the nodes were settled for is written, or will not be."""
    cdef node_t *node
    cdef int i
    pthread_mutex_lock(&file.map)
    for i in range(BUCKETS if file.buckets != NULL else 0):
        node = file.buckets[i]
        while node != NULL:
            if node.settling:
                node.settling = False
                if good:
                    node.before = node.place
                    node.place = node.going
                    node.changed_in = file.sealed
                else:
                    node_changes(file, node)
            node = node.next
    if not good:
        file.changed = True
    pthread_mutex_unlock(&file.map)


cdef int seal(encrypted_file_t *file, uint64_t generation, bint clean, bint apart) noexcept nogil:
    """Rule 3. Under `sealing` and `lock`, alone; `apart`: lets go of `lock` while it syncs."""
    cdef uint8_t top[384]
    cdef uint64_t size = file.size
    cdef int error = 0
    if file.levels > levels_for(blocks_of(size)):    # a write that failed had made room for more
        error = map_cut(file, blocks_of(size))
    error = error or settle(file)
    if error == 0:
        memcpy(top, file.top, sizeof(top))
        file.changed = False
        file.working = generation + 1
        if apart:
            pthread_rwlock_unlock(&file.lock)
            error = file.io.sync(file.io.who)
            pthread_rwlock_wrlock(&file.lock)
        elif size:
            error = file.io.sync(file.io.who)
        if error == 0:
            error = seal_write(file, generation, size, clean and not file.changed and not file.unfinished, top)
    settled(file, error == 0)
    if error == 0:
        file.ready = not file.clean and not file.unfinished
    return error


# Opening ---------------------------------------------------------------------------------------------------------------

cdef encrypted_file_t *file_new(const volume_keys_t *volume, const file_io_t *io) noexcept nogil:
    cdef encrypted_file_t *file = <encrypted_file_t *>calloc(1, sizeof(encrypted_file_t))
    if file == NULL:
        return NULL
    file.keys = <file_keys_t *>secret_new()
    if file.keys == NULL:
        free(file)
        return NULL
    file.volume = volume
    file.io = io[0]
    pthread_mutex_init(&file.sealing, NULL)
    pthread_rwlock_init(&file.lock, NULL)
    pthread_mutex_init(&file.map, NULL)
    return file


cdef void file_free(encrypted_file_t *file) noexcept nogil:
    if file == NULL:
        return
    map_forget(file)
    forget_file_keys(file.keys)
    secret_free(file.keys)
    pthread_mutex_destroy(&file.sealing)
    pthread_rwlock_destroy(&file.lock)
    pthread_mutex_destroy(&file.map)
    free(file)


cdef int header_new(encrypted_file_t *file, uint8_t suite, const uint8_t *known_id) noexcept nogil:
    """A new file's header, with a new salt, into file.header; and its keys."""
    cdef uint8_t top[384]
    cdef int error
    memset(top, 0, sizeof(top))
    memset(file.header, 0, HEADER)
    memcpy(file.header, b"SFENCRF1\x01", 9)
    file.header[9] = suite
    error = random_bytes(file.header + 16, 48)
    if known_id != NULL:
        memcpy(file.header + 16, known_id, 16)
    forget_file_keys(file.keys)
    error = error or derive_file_keys(file.volume, file.header, file.keys)
    error = error or seal_build(file, 1, 0, False, top)
    return error or seal_build(file, 2, 0, False, top)


cdef int file_create(encrypted_file_t *file, uint8_t suite) noexcept nogil:
    cdef int error = header_new(file, suite, NULL)
    error = error or file.io.write(file.io.who, 0, file.header, HEADER)
    if error == 0:
        file.sealed, file.working, file.ready, file.changed = 2, 3, True, True
    return error


cdef int seal_check(encrypted_file_t *file, int place) noexcept nogil:
    cdef const uint8_t *seal = file.header + FIXED + place * SEAL
    cdef uint8_t mac[32]
    cdef uint64_t blocks
    cdef int error = seal_mac(file, file.header, seal, mac)
    if error:
        return error
    if not same(mac, seal + SEAL - MAC, MAC) or get64(seal) & 1 != <uint64_t>place or get64(seal) == 0 or get64(seal + 8) > LARGEST:
        return -EBADMSG
    if seal[16] > SEAL_OPEN or not all_zero(seal + 17, 15):
        return -EOPNOTSUPP
    blocks = blocks_of(get64(seal + 8))
    return 0 if blocks <= <uint64_t>TOP << 8 * levels_for(blocks) else -EBADMSG


cdef int file_open(encrypted_file_t *file, uint64_t stored) noexcept nogil:
    cdef const uint8_t *seal
    cdef int64_t got
    cdef int error, other
    if stored < HEADER:
        return -EBADMSG
    got = file.io.read(file.io.who, 0, file.header, HEADER)
    if got < 0:
        return <int>got
    if got < HEADER or memcmp(file.header, b"SFENCRF1", 8) != 0 or not all_zero(file.header + HEADER - FIXED, FIXED):
        return -EBADMSG
    if file.header[8] != 1 or not all_zero(file.header + 10, 6):
        return -EOPNOTSUPP
    error = derive_file_keys(file.volume, file.header, file.keys)
    if error:
        return error
    error = seal_check(file, 0)
    other = seal_check(file, 1)
    if (error or other) and not (file.one_seal and (error == 0 or other == 0)):
        return error or other
    seal = file.header + FIXED
    if error or (other == 0 and get64(seal + SEAL) > get64(seal)):
        seal += SEAL
    file.sealed = get64(seal)
    file.working = file.sealed + 1
    file.size = get64(seal + 8)
    file.clean = seal[16] == 0
    file.lenient = not file.clean
    file.levels = levels_for(blocks_of(file.size))
    memcpy(file.top, seal + 32, TOP * TAG)
    if stored < stored_size(file.size) or (file.clean and stored != stored_size(file.size)):
        return -EBADMSG
    return size_found(file, stored) if file.lenient else 0


cdef int size_found(encrypted_file_t *file, uint64_t stored) noexcept nogil:
    """The size of a file that was left open: where the last slot ends that counts (docs, "What a reader accepts")."""
    cdef buffer_t *buffer = buffer_take()
    cdef uint64_t known = blocks_of(file.size)
    cdef uint64_t block = blocks_of(<uint64_t>plain_size(stored))
    cdef uint64_t begin, end
    cdef int64_t got
    cdef int error = 0
    if buffer == NULL:
        return -ENOMEM
    while block > 0 and block >= known and error == 0:
        block -= 1
        begin = slot_offset(block)
        got = file.io.read(file.io.who, begin, buffer.slots, SLOT)
        if got < 0:
            error = <int>got
            break
        if all_zero(buffer.slots, got):
            continue
        error = blocks_decrypt(file.keys, block, 1, block, buffer.slots, got, buffer.plain, buffer.found)
        if error:
            break
        if buffer.found[0].state == BLOCK_AUTHENTIC and buffer.found[0].generation <= file.sealed:
            continue
        if buffer.found[0].state == BLOCK_AUTHENTIC:
            end = block * BLOCK + buffer.found[0].length
        else:
            end = block * BLOCK + (<uint64_t>got - OVERHEAD if got > OVERHEAD else 1)
        if end > file.size:
            file.size = end
        break
    buffer_give(buffer)
    return error


# Reading ---------------------------------------------------------------------------------------------------------------

cdef int judge(encrypted_file_t *file, uint64_t block, const block_t *found, const uint8_t *entry, uint8_t *plain) noexcept nogil:
    """Whether a block is what it should be; makes it zeros where it is a hole."""
    cdef uint64_t last = blocks_of(file.size) - 1
    cdef uint64_t tail = file.size - last * BLOCK
    cdef bint hole = all_zero(entry, TAG)
    if found.state == BLOCK_ABSENT:
        return 0 if hole and (block != last or file.lenient or file.unfinished) else -EBADMSG
    if found.state == BLOCK_DAMAGED:
        return -EBADMSG
    if not same(found.tag, entry, TAG):
        if hole and (file.unfinished or (file.lenient and found.generation <= file.sealed)):
            memset(plain, 0, BLOCK)                  # punched, and its bytes are still there
            return 0
        if not file.lenient or not file.sealed < found.generation <= file.sealed + 2:
            return -EBADMSG
    if block == last and (found.length < tail or (found.length > tail and not (file.lenient or file.unfinished))):
        return -EBADMSG
    return 0


cdef int blocks_read(encrypted_file_t *file, uint64_t first, size_t count, uint8_t *plain, buffer_t *buffer, uint8_t *slots,
                     block_t *found, uint8_t *tags) noexcept nogil:
    """Whole blocks whose slots lie side by side, all of them before the end of the file."""
    cdef int64_t got = file.io.read(file.io.who, slot_offset(first), slots, count * SLOT)
    cdef size_t i
    cdef int error
    if got < 0:
        return <int>got
    error = blocks_decrypt(file.keys, first, count, blocks_of(file.size) - 1, slots, got, plain, found)
    error = error or map_get(file, first, count, tags)
    for i in range(count):
        if error:
            break
        error = judge(file, first + i, &found[i], tags + i * TAG, plain + i * BLOCK)
    if error:
        memset(plain, 0, count * BLOCK)
    return error


cdef int block_read(encrypted_file_t *file, uint64_t block, uint8_t *plain) noexcept nogil:
    """One block, zeros if it is a hole or beyond the end. 4,096 bytes."""
    cdef uint8_t slot[4132]
    cdef block_t found
    cdef uint8_t tag[16]
    if block >= blocks_of(file.size):
        memset(plain, 0, BLOCK)
        return 0
    return blocks_read(file, block, 1, plain, NULL, slot, &found, tag)


cdef int64_t read_range(encrypted_file_t *file, uint64_t offset, size_t length, uint8_t *data) noexcept nogil:
    cdef uint8_t plain[4096]
    cdef uint8_t slots[4 * 4132]
    cdef block_t[4] found
    cdef uint8_t tags[4 * 16]
    cdef buffer_t *buffer = NULL
    cdef size_t done = 0, many, blocks
    cdef uint64_t block, at
    cdef int error = 0
    if offset >= file.size:
        return 0
    length = min(length, <size_t>(file.size - offset))
    while done < length and error == 0:
        block = (offset + done) // BLOCK
        at = (offset + done) % BLOCK
        blocks = (length - done) // BLOCK
        if at or blocks == 0:
            error = block_read(file, block, plain)
            many = min(<size_t>(BLOCK - at), length - done)
            memcpy(data + done, plain + at, many)
        else:
            blocks = min(blocks, <size_t>run_of(block))
            if blocks <= SMALL:
                error = blocks_read(file, block, blocks, data + done, NULL, slots, found, tags)
            else:
                if buffer == NULL:
                    buffer = buffer_take()
                    if buffer == NULL:
                        return -ENOMEM
                blocks = min(blocks, <size_t>RUN)
                error = blocks_read(file, block, blocks, data + done, buffer, buffer.slots, buffer.found, buffer.tags)
            many = blocks * BLOCK
        done += many
    if buffer != NULL:
        buffer_give(buffer)
    if error:
        memset(data, 0, length)
        return error
    return <int64_t>length


cdef int64_t file_read(encrypted_file_t *file, uint64_t offset, size_t length, void *data) noexcept nogil:
    cdef int64_t answer
    pthread_rwlock_rdlock(&file.lock)
    answer = read_range(file, offset, length, <uint8_t *>data)
    pthread_rwlock_unlock(&file.lock)
    return answer


cdef int64_t blocks_examine(encrypted_file_t *file, uint64_t first, size_t count, uint8_t *verdicts) noexcept nogil:
    """For fsck: what each block is, as far as one transfer goes. How many blocks, or an error."""
    cdef buffer_t *buffer = NULL
    cdef uint8_t *plain = NULL
    cdef uint64_t blocks = blocks_of(file.size)
    cdef int64_t got
    cdef size_t i
    cdef int error, map_error
    if first >= blocks or count == 0:
        return 0
    count = min(min(count, <size_t>RUN), min(<size_t>run_of(first), <size_t>(blocks - first)))
    buffer = buffer_take()
    plain = <uint8_t *>malloc(count * BLOCK)
    error = -ENOMEM if buffer == NULL or plain == NULL else 0
    if error == 0:
        got = file.io.read(file.io.who, slot_offset(first), buffer.slots, count * SLOT)
        error = <int>got if got < 0 else blocks_decrypt(file.keys, first, count, blocks - 1, buffer.slots, got, plain, buffer.found)
    if error == 0:
        map_error = map_get(file, first, count, buffer.tags)
        error = map_error if map_error != -EBADMSG else 0
    if error == 0:
        for i in range(count):
            if map_error:
                verdicts[i] = EXAMINED_NO_MAP
            elif judge(file, first + i, &buffer.found[i], buffer.tags + i * TAG, plain + i * BLOCK) == 0:
                verdicts[i] = EXAMINED_HOLE if buffer.found[i].state == BLOCK_ABSENT else EXAMINED_GOOD
            elif buffer.found[i].state == BLOCK_ABSENT:
                verdicts[i] = EXAMINED_GONE
            elif buffer.found[i].state == BLOCK_DAMAGED:
                verdicts[i] = EXAMINED_DAMAGED
            elif not same(buffer.found[i].tag, buffer.tags + i * TAG, TAG):
                verdicts[i] = EXAMINED_OTHER
            else:
                verdicts[i] = EXAMINED_LENGTH
    free(plain)
    if buffer != NULL:
        buffer_give(buffer)
    return error if error else <int64_t>count


cdef int seal_again(encrypted_file_t *file) noexcept nogil:
    """For fsck: both seals anew, as the one that is authentic says."""
    cdef int error
    pthread_mutex_lock(&file.sealing)
    pthread_rwlock_wrlock(&file.lock)
    error = make_ready(file)
    error = error or seal(file, file.sealed + 1, True, False)
    error = error or file.io.sync(file.io.who)
    pthread_rwlock_unlock(&file.lock)
    pthread_mutex_unlock(&file.sealing)
    return error


cdef int rebuild_map(encrypted_file_t *file) noexcept nogil:
    """For fsck: the parts of the map that are damaged, from the blocks themselves; sealed, clean."""
    cdef uint8_t tag[16]
    cdef uint64_t block = 0
    cdef int error
    pthread_mutex_lock(&file.sealing)
    pthread_rwlock_wrlock(&file.lock)
    file.rebuilds = True
    error = make_ready(file)
    while block < blocks_of(file.size) and error == 0:
        error = map_get(file, block, 1, tag)
        block += FANOUT
    file.changed = True
    error = error or seal(file, file.sealed + 1, False, False)
    error = error or file.io.sync(file.io.who)
    file.rebuilds = False
    error = error or seal(file, file.sealed + 1, True, False)
    error = error or file.io.sync(file.io.who)
    pthread_rwlock_unlock(&file.lock)
    pthread_mutex_unlock(&file.sealing)
    return error


# Changing --------------------------------------------------------------------------------------------------------------

cdef int blocks_write(encrypted_file_t *file, uint64_t first, size_t count, size_t stored, const uint8_t *slots,
                      const uint8_t *tags) noexcept nogil:
    """Encrypted blocks into their slots, which lie side by side, and their tags into the map."""
    cdef int error
    cdef uint64_t offset = slot_offset(first)
    cdef uint8_t back[16]
    cdef size_t i, length
    pthread_mutex_lock(&file.map)
    error = map_grow(file, first + count)
    pthread_mutex_unlock(&file.map)
    error = error or file.io.write(file.io.who, offset, slots, stored)
    if error == 0:
        return map_set(file, first, count, tags)
    for i in range(count):                           # which of them are written? Each is the old one or the new one, or damaged
        length = <size_t>slots[i * SLOT + 6] | <size_t>slots[i * SLOT + 7] << 8
        if file.io.read(file.io.who, offset + i * SLOT + BLOCK_HEAD + length, back, TAG) == TAG and same(back, tags + i * TAG, TAG):
            map_set(file, first + i, 1, tags + i * TAG)      # if that fails, reading it does
            if first * BLOCK + i * BLOCK + length > file.size:
                file.size = (first + i) * BLOCK + length
        elif first + i < blocks_of(file.size) and map_get(file, first + i, 1, back) == 0 and all_zero(back, TAG) and \
                file.io.punch(file.io.who, offset + i * SLOT, SLOT) != 0:
            hole_is_due(file, first + i, 1)
    if offset + stored > stored_size(file.size) and file.io.resize(file.io.who, stored_size(file.size)) != 0:
        is_unfinished(file)                          # nothing of a block that came to nothing may stay behind the end
    return error


cdef void is_unfinished(encrypted_file_t *file) noexcept nogil:
    file.unfinished = True
    file.ready = False


cdef void is_finished(encrypted_file_t *file) noexcept nogil:
    file.unfinished = False
    file.ready = True
    file.holes_begin = file.holes_end = 0


cdef void hole_is_due(encrypted_file_t *file, uint64_t first, uint64_t count) noexcept nogil:
    is_unfinished(file)
    if file.holes_begin == file.holes_end:
        file.holes_begin, file.holes_end = first, first + count
    else:
        file.holes_begin = min(file.holes_begin, first)
        file.holes_end = max(file.holes_end, first + count)


cdef int finish(encrypted_file_t *file) noexcept nogil:
    """What a change that failed has left to do. Under `sealing` and `lock`, alone."""
    cdef uint8_t tag[16]
    cdef uint64_t block
    cdef int error = seal(file, file.sealed + 1, False, False)
    error = error or file.io.sync(file.io.who)
    for block in range(file.holes_begin, min(file.holes_end, blocks_of(file.size))):
        error = error or map_get(file, block, 1, tag)
        if error:
            break
        if all_zero(tag, TAG):
            error = file.io.punch(file.io.who, slot_offset(block), SLOT)
    return error or shorten(file)


cdef int block_write(encrypted_file_t *file, uint64_t block, const uint8_t *before, const uint8_t *plain, size_t length,
                     size_t stored) noexcept nogil:
    """One block, of `length` bytes, and zeros as far as `stored` bytes of its slot.

    If that fails, perhaps because the disk is full, the block is written again as it was: `before`, or NULL, of which nothing
    was to stay."""
    cdef uint8_t slot[4132]
    cdef uint8_t tag[16]
    cdef uint64_t size = file.size
    cdef int error
    memset(slot, 0, SLOT)
    error = blocks_encrypt(file.keys, block, file.working, plain, length, slot, tag)
    error = error or blocks_write(file, block, 1, max(length + OVERHEAD, stored), slot, tag)
    if error == 0 or before == NULL or file.size > size:     # the file has grown: all of the block is there
        return error
    if block >= blocks_of(size) or map_get(file, block, 1, tag) != 0 or all_zero(tag, TAG):
        return error                                 # there was nothing, or a hole
    length = <size_t>min(<uint64_t>BLOCK, size - block * BLOCK)
    if blocks_encrypt(file.keys, block, file.working, before, length, slot, tag) == 0 and \
            file.io.write(file.io.who, slot_offset(block), slot, length + OVERHEAD) == 0:
        map_set(file, block, 1, tag)
    return error


cdef int make_ready(encrypted_file_t *file) noexcept nogil:
    """Rules 2, 7 and 8: before the first change of a file that was opened. Under `sealing` and `lock`, alone."""
    cdef uint8_t identity[16]
    cdef int error
    if file.ready:
        return 0
    if file.lenient:
        return recover(file)
    if file.unfinished:
        return finish(file)
    if file.size == 0:
        memcpy(identity, file.header + 16, 16)
        error = header_new(file, file.header[9], identity)
        error = error or file.io.write(file.io.who, 0, file.header, HEADER)
        if error == 0:
            file.sealed, file.working, file.clean = 2, 3, False
    else:
        error = seal_write(file, file.sealed + 1, file.size, False, file.top)
    error = error or file.io.sync(file.io.who)
    file.ready = error == 0
    return error


cdef int recover(encrypted_file_t *file) noexcept nogil:
    """Rule 7."""
    cdef buffer_t *buffer = buffer_take()
    cdef uint64_t blocks = blocks_of(file.size)
    cdef uint64_t block = 0
    cdef const uint8_t *slot
    cdef size_t count, i, length
    cdef int64_t got
    cdef block_t *found
    cdef int error = -ENOMEM if buffer == NULL else file.io.sync(file.io.who)
    while block < blocks and error == 0:
        count = min(min(<size_t>run_of(block), <size_t>RUN), <size_t>(blocks - block))
        got = file.io.read(file.io.who, slot_offset(block), buffer.slots, count * SLOT)
        error = <int>got if got < 0 else map_get(file, block, count, buffer.tags)
        if error == 0:
            memset(buffer.slots + got, 0, count * SLOT - got)
        for i in range(count):
            if error:
                break
            slot = buffer.slots + i * SLOT
            length = <size_t>slot[6] | <size_t>slot[7] << 8
            if all_zero(slot, BLOCK_HEAD) or (1 <= length <= BLOCK and
                                              same(slot + BLOCK_HEAD + length, buffer.tags + i * TAG, TAG)):
                continue
            found = &buffer.found[i]
            error = blocks_decrypt(file.keys, block + i, 1, blocks - 1, slot, min(<size_t>SLOT, <size_t>(count * SLOT - i * SLOT)),
                                   buffer.plain, found)
            if error or found.state != BLOCK_AUTHENTIC:
                continue
            if file.sealed < found.generation <= file.sealed + 2:
                pthread_mutex_lock(&file.map)
                error = map_grow(file, blocks)
                pthread_mutex_unlock(&file.map)
                error = error or map_set(file, block + i, 1, found.tag)
            elif all_zero(buffer.tags + i * TAG, TAG) and found.generation <= file.sealed:
                error = file.io.punch(file.io.who, slot_offset(block + i), SLOT)
        block += count
    if buffer != NULL:
        buffer_give(buffer)
    pthread_mutex_lock(&file.map)
    error = error or map_grow(file, blocks)
    pthread_mutex_unlock(&file.map)
    file.changed = True
    error = error or seal(file, file.sealed + 3, False, False)
    error = error or file.io.sync(file.io.who)       # the seal before is too old for what is written from here on
    if error:
        return error
    file.lenient = False
    is_unfinished(file)
    return shorten(file)


cdef int shorten(encrypted_file_t *file) noexcept nogil:
    """After the seal of rule 5, and the end of what is unfinished: the last block as long as the size says, and the stored
    file too.

    The cut goes through what that block was before: it must not be the first to reach the disk. Nor may what lay behind
    the block in its slot be left, should the file grow and only the cut be forgotten: so the block is followed by zeros."""
    cdef uint8_t plain[4096]
    cdef uint8_t slot[4132]
    cdef uint64_t last
    cdef int64_t stored
    cdef size_t length
    cdef int error = 0
    if file.size:
        last = blocks_of(file.size) - 1
        length = <size_t>(file.size - last * BLOCK)
        error = block_read(file, last, plain)
        if error == -EBADMSG:
            error = 0                                # stays what it is: damaged
        elif error == 0 and not last_fits(file, last):
            stored = file.io.read(file.io.who, slot_offset(last), slot, SLOT)
            if stored < 0:
                return <int>stored
            error = block_write(file, last, plain, plain, length, <size_t>stored)
            error = error or file.io.sync(file.io.who)
    error = error or file.io.resize(file.io.who, stored_size(file.size))
    if error == 0:
        is_finished(file)
    return error


cdef bint last_fits(encrypted_file_t *file, uint64_t last) noexcept nogil:
    cdef uint8_t head[20]
    if file.io.read(file.io.who, slot_offset(last), head, BLOCK_HEAD) != BLOCK_HEAD:
        return False
    return (<uint64_t>head[6] | <uint64_t>head[7] << 8) == file.size - last * BLOCK


cdef int change_begins(encrypted_file_t *file) noexcept nogil:
    """Takes `lock` alone, with the file ready to be written; after an error nothing is held."""
    cdef int error
    pthread_rwlock_wrlock(&file.lock)
    while not file.ready:
        pthread_rwlock_unlock(&file.lock)
        pthread_mutex_lock(&file.sealing)
        pthread_rwlock_wrlock(&file.lock)
        error = make_ready(file)
        pthread_mutex_unlock(&file.sealing)
        if error:
            pthread_rwlock_unlock(&file.lock)
            return error
    return 0


cdef int64_t write_range(encrypted_file_t *file, uint64_t offset, size_t length, const uint8_t *data) noexcept nogil:
    cdef uint8_t plain[4096]
    cdef uint8_t before[4096]
    cdef uint8_t slots[4 * 4132]
    cdef uint8_t tags[4 * 16]
    cdef buffer_t *buffer = NULL
    cdef size_t done = 0, many, blocks, used
    cdef uint64_t block, at, ends
    cdef bint stays
    cdef int error = 0
    while done < length:
        block = (offset + done) // BLOCK
        at = (offset + done) % BLOCK
        blocks = (length - done) // BLOCK
        if at or blocks == 0:                        # a part of a block: with the rest of it
            many = min(<size_t>(BLOCK - at), length - done)
            ends = max(file.size, offset + done + many)
            used = <size_t>min(<uint64_t>BLOCK, ends - block * BLOCK)
            stays = at or many < used
            if stays:
                error = block_read(file, block, plain)
            if error:
                break
            memcpy(before, plain, BLOCK)
            memcpy(plain + at, data + done, many)
            error = block_write(file, block, before if stays else NULL, plain, used, 0)
        else:
            blocks = min(blocks, <size_t>run_of(block))
            if blocks <= SMALL:
                error = blocks_encrypt(file.keys, block, file.working, data + done, blocks * BLOCK, slots, tags)
                error = error or blocks_write(file, block, blocks, blocks * SLOT, slots, tags)
            else:
                if buffer == NULL:
                    buffer = buffer_take()
                    if buffer == NULL:
                        error = -ENOMEM
                        break
                blocks = min(blocks, <size_t>RUN)
                error = blocks_encrypt(file.keys, block, file.working, data + done, blocks * BLOCK, buffer.slots, buffer.tags)
                error = error or blocks_write(file, block, blocks, blocks * SLOT, buffer.slots, buffer.tags)
            many = blocks * BLOCK
        if error:
            break
        done += many
        file.size = max(file.size, offset + done)
    if buffer != NULL:
        buffer_give(buffer)
    return <int64_t>done if done else error


cdef int64_t file_write(encrypted_file_t *file, uint64_t offset, size_t length, const void *data) noexcept nogil:
    cdef int64_t answer
    if length == 0:
        return 0
    if offset + length > LARGEST or offset + length < offset:
        return -EFBIG
    answer = change_begins(file)
    if answer < 0:
        return answer
    answer = write_range(file, offset, length, <const uint8_t *>data)
    return ends_with(file, answer)


cdef int64_t file_append(encrypted_file_t *file, size_t length, const void *data, uint64_t *offset) noexcept nogil:
    cdef int64_t answer
    if length == 0:
        return 0
    answer = change_begins(file)
    if answer < 0:
        return answer
    offset[0] = file.size
    answer = -EFBIG if file.size + length > LARGEST else write_range(file, file.size, length, <const uint8_t *>data)
    return ends_with(file, answer)


cdef int64_t ends_with(encrypted_file_t *file, int64_t answer) noexcept nogil:
    """Gives `lock` back; seals a file of which very much has changed."""
    cdef bint much = file.dirty_nodes > NODES_CHANGED
    cdef int error
    pthread_rwlock_unlock(&file.lock)
    if much and answer >= 0:
        error = file_seal(file, False)
        if error:
            return error
    return answer


cdef int file_resize(encrypted_file_t *file, uint64_t size) noexcept nogil:
    cdef int error
    if size > LARGEST:
        return -EFBIG
    pthread_mutex_lock(&file.sealing)
    pthread_rwlock_wrlock(&file.lock)
    error = resize(file, size)
    pthread_rwlock_unlock(&file.lock)
    pthread_mutex_unlock(&file.sealing)
    return error


cdef int resize(encrypted_file_t *file, uint64_t size) noexcept nogil:
    cdef uint8_t plain[4096]
    cdef uint64_t last
    cdef int error = 0
    if size == file.size and not file.unfinished:
        return 0
    if size == 0 and not file.lenient:               # needs not be made ready first: its seal vouches for nothing
        error = map_cut(file, 0)
        file.size = 0
        is_unfinished(file)
        return error or finish(file)
    error = make_ready(file)
    if error or size == file.size:
        return error
    if size > file.size:                             # rule 4
        last = blocks_of(size) - 1
        error = block_read(file, last, plain)
        if error:
            return error
        error = block_write(file, last, plain, plain, size - last * BLOCK, 0)
        if error == 0:
            file.size = size
        return error
    error = long_enough(file, size)
    error = error or map_cut(file, blocks_of(size))
    if error:
        return error
    file.size = size
    is_unfinished(file)
    return finish(file)


cdef int long_enough(encrypted_file_t *file, uint64_t size) noexcept nogil:
    """Before a file shrinks: the block that will be its last may have been left short when the file grew beyond it."""
    cdef uint8_t plain[4096]
    cdef uint8_t head[20]
    cdef uint8_t tag[16]
    cdef uint64_t last = blocks_of(size) - 1
    cdef uint64_t tail = size - last * BLOCK
    cdef int error = 0
    if size:
        error = map_get(file, last, 1, tag)
    if size == 0 or error or all_zero(tag, TAG):
        return error
    if file.io.read(file.io.who, slot_offset(last), head, BLOCK_HEAD) == BLOCK_HEAD and \
            (<uint64_t>head[6] | <uint64_t>head[7] << 8) >= tail:
        return 0
    error = block_read(file, last, plain)
    if error == -EBADMSG:
        return 0                                     # stays what it is: damaged
    return error or block_write(file, last, plain, plain, tail, 0)


cdef int file_punch(encrypted_file_t *file, uint64_t offset, uint64_t length) noexcept nogil:
    cdef int error
    pthread_mutex_lock(&file.sealing)
    pthread_rwlock_wrlock(&file.lock)
    error = make_ready(file)
    error = error or punch(file, offset, length)
    pthread_rwlock_unlock(&file.lock)
    pthread_mutex_unlock(&file.sealing)
    return error


cdef int zero_part(encrypted_file_t *file, uint64_t offset, uint64_t end) noexcept nogil:
    """Zeros within one block."""
    cdef uint8_t plain[4096]
    cdef uint8_t before[4096]
    cdef uint64_t block = offset // BLOCK
    cdef uint8_t tag[16]
    cdef int error
    if offset >= end:
        return 0
    error = map_get(file, block, 1, tag)
    if error or all_zero(tag, TAG):
        return error
    error = block_read(file, block, plain)
    if error:
        return error
    memcpy(before, plain, BLOCK)
    memset(plain + offset % BLOCK, 0, end - offset)
    return block_write(file, block, before, plain, min(<uint64_t>BLOCK, file.size - block * BLOCK), 0)


cdef int punch(encrypted_file_t *file, uint64_t offset, uint64_t length) noexcept nogil:
    cdef uint64_t end, first, behind, last, block, many
    cdef int error
    if offset >= file.size or length == 0:
        return 0
    end = file.size if length > file.size - offset else offset + length
    last = blocks_of(file.size) - 1                  # stays a block
    first = blocks_of(offset)
    behind = min(end // BLOCK, last)
    if first >= behind:
        many = min(end, (offset // BLOCK + 1) * BLOCK)
        error = zero_part(file, offset, many)
        return error or zero_part(file, many, end)
    error = zero_part(file, offset, first * BLOCK)
    error = error or zero_part(file, behind * BLOCK, end)
    if error:
        return error
    hole_is_due(file, first, behind - first)
    block = first
    while block < behind and error == 0:
        many = min(behind - block, <uint64_t>1 << 20)
        error = map_set(file, block, many, NULL)
        block += many
    error = error or seal(file, file.sealed + 1, False, False)
    error = error or file.io.sync(file.io.who)
    block = first
    while block < behind and error == 0:
        many = min(behind - block, run_of(block))
        error = file.io.punch(file.io.who, slot_offset(block), many * SLOT)
        block += many
    if error == 0:
        is_finished(file)
    return error


cdef int file_seal(encrypted_file_t *file, bint clean) noexcept nogil:
    cdef int error = 0
    pthread_mutex_lock(&file.sealing)
    pthread_rwlock_wrlock(&file.lock)
    if file.lenient:                                 # nothing of ours to seal: what was left behind is to be on the disk
        error = recover(file) if clean else file.io.sync(file.io.who)
    elif file.unfinished:
        error = finish(file)
    if error == 0 and not file.lenient and (file.changed or (clean and not file.clean)):
        error = seal(file, file.sealed + 1, clean, True)
    pthread_rwlock_unlock(&file.lock)
    pthread_mutex_unlock(&file.sealing)
    return error


# Asking ----------------------------------------------------------------------------------------------------------------

cdef uint64_t file_size(encrypted_file_t *file) noexcept nogil:
    cdef uint64_t size
    pthread_rwlock_rdlock(&file.lock)
    size = file.size
    pthread_rwlock_unlock(&file.lock)
    return size


cdef uint64_t file_stored_size(encrypted_file_t *file) noexcept nogil:
    return stored_size(file_size(file))


cdef const uint8_t *file_id(encrypted_file_t *file) noexcept nogil:
    return file.header + 16


cdef bint file_unsealed(encrypted_file_t *file) noexcept nogil:
    cdef bint unsealed
    pthread_rwlock_rdlock(&file.lock)
    unsealed = file.changed or not file.clean or file.unfinished
    pthread_rwlock_unlock(&file.lock)
    return unsealed


cdef bint file_settled(encrypted_file_t *file) noexcept nogil:
    cdef bint settled
    pthread_rwlock_rdlock(&file.lock)
    settled = not file.lenient and not file.unfinished
    pthread_rwlock_unlock(&file.lock)
    return settled


cdef uint64_t hole_of_nodes(encrypted_file_t *file, uint64_t block) noexcept nogil:
    """The first block behind the largest node of zeros that has this one; 0: there is none."""
    cdef node_t *node
    cdef int level
    cdef uint64_t behind = 0
    pthread_mutex_lock(&file.map)
    for level in range(1, file.levels + 1):
        if node_find(file, level, block >> 8 * level, False, &node) != 0 or node != NULL:
            break
        behind = ((block >> 8 * level) + 1) << 8 * level
    pthread_mutex_unlock(&file.map)
    return behind


cdef int block_is_hole(encrypted_file_t *file, uint64_t block) noexcept nogil:
    """1: a hole, 0: data, or an error."""
    cdef uint8_t tag[16]
    cdef uint8_t head[8]
    cdef int64_t got
    cdef int error = map_get(file, block, 1, tag)
    if error:
        return error
    if not all_zero(tag, TAG):
        return 0
    if file.lenient:
        got = file.io.read(file.io.who, slot_offset(block), head, 8)
        if got < 0:
            return <int>got
        return got == 0 or (get64(head) << 16 >> 16) <= file.sealed
    return 1


cdef int64_t seek(encrypted_file_t *file, uint64_t offset, bint hole) noexcept nogil:
    cdef uint64_t block = offset // BLOCK
    cdef uint64_t behind = blocks_of(file.size)
    cdef uint64_t skip
    cdef int is_hole
    if offset >= file.size:
        return -ENXIO
    while block < behind:
        is_hole = block_is_hole(file, block)
        if is_hole < 0:
            return is_hole
        if is_hole == hole:
            return max(offset, block * BLOCK)
        skip = 0 if hole or file.lenient else hole_of_nodes(file, block)
        block = skip if skip > block else block + 1
    return <int64_t>file.size if hole else -ENXIO


cdef int64_t file_seek(encrypted_file_t *file, uint64_t offset, bint hole) noexcept nogil:
    cdef int64_t answer
    pthread_rwlock_rdlock(&file.lock)
    answer = seek(file, offset, hole)
    pthread_rwlock_unlock(&file.lock)
    return answer


# A file by its descriptor ----------------------------------------------------------------------------------------------

cdef int64_t descriptor_read(void *who, uint64_t offset, void *data, size_t length) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t n
    while done < length:
        n = pread(<int><intptr_t>who, <char *>data + done, length - done, offset + done)
        if n == 0:
            break
        if n > 0:
            done += n
        elif errno != EINTR:
            return -errno
    return done


cdef int descriptor_write(void *who, uint64_t offset, const void *data, size_t length) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t n
    while done < length:
        n = pwrite(<int><intptr_t>who, <const char *>data + done, length - done, offset + done)
        if n > 0:
            done += n
        elif n == 0:
            return -EIO
        elif errno != EINTR:
            return -errno
    return 0


cdef int descriptor_sync(void *who) noexcept nogil:
    return -errno if fdatasync(<int><intptr_t>who) else 0


cdef int descriptor_resize(void *who, uint64_t size) noexcept nogil:
    return -errno if ftruncate(<int><intptr_t>who, size) else 0


cdef int descriptor_punch(void *who, uint64_t offset, uint64_t length) noexcept nogil:
    return -errno if fallocate(<int><intptr_t>who, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) else 0


cdef void descriptor_io(int fd, file_io_t *io) noexcept nogil:
    io.who = <void *><intptr_t>fd
    io.read, io.write, io.sync, io.resize, io.punch = \
        descriptor_read, descriptor_write, descriptor_sync, descriptor_resize, descriptor_punch


# ... and by an object of Python's

cdef int told(object error) noexcept:
    return -<int>(error.errno or EIO) if isinstance(error, OSError) else -EIO


cdef int64_t object_read(void *who, uint64_t offset, void *data, size_t length) noexcept with gil:
    cdef bytes got
    try:
        got = (<object>who).read(offset, length)
        if <size_t>len(got) > length:
            return -EIO
        memcpy(data, <const char *>got, len(got))
        return len(got)
    except BaseException as error:
        return told(error)


cdef int object_write(void *who, uint64_t offset, const void *data, size_t length) noexcept with gil:
    try:
        (<object>who).write(offset, (<const char *>data)[:length])
        return 0
    except BaseException as error:
        return told(error)


cdef int object_sync(void *who) noexcept with gil:
    try:
        (<object>who).sync()
        return 0
    except BaseException as error:
        return told(error)


cdef int object_resize(void *who, uint64_t size) noexcept with gil:
    try:
        (<object>who).resize(size)
        return 0
    except BaseException as error:
        return told(error)


cdef int object_punch(void *who, uint64_t offset, uint64_t length) noexcept with gil:
    try:
        (<object>who).punch(offset, length)
        return 0
    except BaseException as error:
        return told(error)


# Python ----------------------------------------------------------------------------------------------------------------

cdef int64_t raised(int64_t answer) except -1:
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))
    return answer


cdef class EncryptedFile:
    def __cinit__(self, VolumeKeys volume, below, *, int suite=0, stored=None, bint one_seal=False):
        cdef file_io_t io
        cdef int error
        cdef uint64_t length
        self.volume = volume
        self.below = below
        if isinstance(below, int):
            descriptor_io(below, &io)
        else:
            io.who = <void *>below
            io.read, io.write, io.sync, io.resize, io.punch = object_read, object_write, object_sync, object_resize, object_punch
        self.file = file_new(volume.keys, &io)
        if self.file == NULL:
            raise MemoryError
        self.file.one_seal = one_seal
        length = 0 if suite else os.fstat(below).st_size if stored is None else stored
        with nogil:
            error = file_create(self.file, suite) if suite else file_open(self.file, length)
        raised(error)

    def __dealloc__(self):
        file_free(self.file)

    @property
    def size(self):
        return file_size(self.file)

    @property
    def stored_size(self):
        return file_stored_size(self.file)

    @property
    def id(self):
        return (<const char *>file_id(self.file))[:16]

    @property
    def unsealed(self):
        return file_unsealed(self.file)

    @property
    def generation(self):
        return self.file.sealed

    def read(self, uint64_t offset, size_t length):
        cdef uint64_t size = file_size(self.file)
        data = bytearray(0 if offset >= size else min(length, size - offset))
        cdef char *room = data
        cdef int64_t got
        length = len(data)
        with nogil:
            got = file_read(self.file, offset, length, room)
        return bytes(data[:raised(got)])

    def write(self, uint64_t offset, const uint8_t[::1] data):
        cdef int64_t done
        cdef size_t length = len(data)
        if length == 0:
            return 0
        with nogil:
            done = file_write(self.file, offset, length, &data[0])
        return raised(done)

    def append(self, const uint8_t[::1] data):
        cdef int64_t done
        cdef uint64_t offset = 0
        cdef size_t length = len(data)
        if length == 0:
            return self.size
        with nogil:
            done = file_append(self.file, length, &data[0], &offset)
        raised(done)
        return offset

    def resize(self, uint64_t size):
        cdef int error
        with nogil:
            error = file_resize(self.file, size)
        raised(error)

    def punch(self, uint64_t offset, uint64_t length):
        cdef int error
        with nogil:
            error = file_punch(self.file, offset, length)
        raised(error)

    def seek(self, uint64_t offset, bint hole):
        cdef int64_t found
        with nogil:
            found = file_seek(self.file, offset, hole)
        return raised(found)

    def seal(self, bint clean=False):
        cdef int error
        with nogil:
            error = file_seal(self.file, clean)
        raised(error)

    def examine(self, uint64_t first, size_t count):
        cdef uint8_t[256] verdicts
        cdef int64_t got
        with nogil:
            got = blocks_examine(self.file, first, count, verdicts)
        return (<const char *>verdicts)[:raised(got)]

    def rebuild_map(self):
        cdef int error
        with nogil:
            error = rebuild_map(self.file)
        raised(error)

    def seal_again(self):
        cdef int error
        with nogil:
            error = seal_again(self.file)
        raised(error)


def sizes(uint64_t plain):
    """For tests: the stored size of a plain one, and back."""
    return stored_size(plain), plain_size(stored_size(plain))


def plain_size_of(uint64_t stored):
    return plain_size(stored)


def slot_offset_of(uint64_t block):
    return slot_offset(block)


def node_offset_of(int level, uint64_t index):
    return node_offset(level, index)
