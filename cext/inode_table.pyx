"""The inode table: what the kernel knows of the backing directory's inodes.

The kernel knows an inode by a number (nodeid) that we give it at LOOKUP and that it hands back at FORGET. Programs see
the same number as st_ino (pyfuse3 has one field for both), so it is the backing inode's own. A node is what stands
behind it: the identity of the backing inode (device, inode number, birth time), how often the kernel looked it up, and
the names it was reached by. A node costs no descriptor: when one is needed it is opened
through the parent's, checked against the identity, and kept in an LRU. A node that loses its last known name keeps
its descriptor from then on, because nothing else leads to it any more.

Birth times tell a reused inode number from the inode that had it before: the node then becomes the new inode's, with
another generation, by which the kernel notices that what it knew under that number is gone.

One mutex guards everything in inode_table_t and all fields of node_t and name_t, and is never held across a system
call. Functions take and release it themselves; those named *_locked expect it held.
"""

cimport cython
from libc.errno cimport EACCES, EAGAIN, EMFILE, ENAMETOOLONG, ENOENT, ENOMEM, ESTALE, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from stackfs.cext.stack cimport FLT_VOLUME  # no-cython-lint: completes the struct
from libc.string cimport memcmp, memcpy, memmove, memset

from stackfs.cext.callback_data cimport (
    FILE_OBJECT, FLT_FILE_NAME_INFORMATION, FLT_INSTANCE, context_t, statx_t)
from stackfs.cext.contexts cimport contexts_any, contexts_gone, contexts_move
from stackfs.cext.impersonation cimport step_aside, step_back
from stackfs.cext.names cimport name_information_hold, name_information_put


cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <sys/sysmacros.h>
    #include <unistd.h>
    /* The type is read without the mutex: it changes only when a number is reused. */
    #define stackfs_type(at)             __atomic_load_n(at, __ATOMIC_RELAXED)
    #define stackfs_set_type(at, value)  __atomic_store_n(at, value, __ATOMIC_RELAXED)
    """
    uint16_t stackfs_type(const uint16_t *at) nogil
    void stackfs_set_type(uint16_t *at, uint16_t value) nogil
    int O_PATH, O_NOFOLLOW, O_CLOEXEC, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW
    unsigned STATX_BTIME, STATX_INO, STATX_TYPE, S_IFDIR
    int openat(int directory, const char *path, int flags, ...) nogil
    int close(int fd) nogil
    int statx(int directory, const char *path, int flags, unsigned mask, statx_t *buffer) nogil
    uint64_t makedev(unsigned major, unsigned minor) nogil

cdef enum:
    SLAB = 1024                          # nodes allocated at a time
    EVICT_AT_ONCE = 16
    OTHER_WAYS = 64
    CACHED_NAMES = 8                     # file name informations kept for a node


# --- hashing ------------------------------------------------------------------------------------------------------

cdef inline uint64_t mix(uint64_t value) noexcept nogil:
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return value ^ (value >> 31)


cdef uint64_t make_id(uint32_t root_device, uint32_t device, uint64_t inode) noexcept nogil:
    if device == root_device and inode > ROOT_ID and not inode >> 63:
        return inode
    return mix(mix(inode) ^ device) | <uint64_t>1 << 63


cdef inline uint64_t hash_name(const node_t *parent, const char *name, uint16_t length) noexcept nogil:
    cdef uint64_t h = <uint64_t>0xCBF29CE484222325 ^ mix(parent.id)
    cdef uint16_t i
    for i in range(length):
        h = (h ^ <uint8_t>name[i]) * <uint64_t>0x100000001B3
    return h ^ (h >> 31)


cdef void grow_inodes_locked(inode_table_t *table) noexcept nogil:
    cdef uint64_t size = (table.inode_mask + 1) * 2
    cdef uint64_t i, bucket
    cdef node_t *node
    cdef node_t *following
    cdef node_t **buckets = <node_t **>calloc(size, cython.sizeof(void_pointer))
    if buckets is NULL:
        return                           # longer chains, nothing worse
    for i in range(table.inode_mask + 1):
        node = table.inodes[i]
        while node is not NULL:
            following = node.next_in_bucket
            bucket = mix(node.id) & (size - 1)
            node.next_in_bucket = buckets[bucket]
            buckets[bucket] = node
            node = following
    free(table.inodes)
    table.inodes = buckets
    table.inode_mask = size - 1


cdef void grow_names_locked(inode_table_t *table) noexcept nogil:
    cdef uint64_t size = (table.name_mask + 1) * 2
    cdef uint64_t i, bucket
    cdef name_t *name
    cdef name_t *following
    cdef name_t **buckets = <name_t **>calloc(size, cython.sizeof(void_pointer))
    if buckets is NULL:
        return
    for i in range(table.name_mask + 1):
        name = table.names[i]
        while name is not NULL:
            following = name.next_in_bucket
            bucket = hash_name(name.parent, name.bytes, name.length) & (size - 1)
            name.next_in_bucket = buckets[bucket]
            buckets[bucket] = name
            name = following
    free(table.names)
    table.names = buckets
    table.name_mask = size - 1

ctypedef void *void_pointer


# --- nodes --------------------------------------------------------------------------------------------------------

cdef inode_table_t *table_new(int root_fd, const identity_t *root, uint32_t descriptor_limit) noexcept nogil:
    cdef inode_table_t *table = <inode_table_t *>calloc(1, cython.sizeof(inode_table_t))
    if table is NULL:
        return NULL
    pthread_mutex_init(&table.mutex, NULL)
    table.inode_mask = 1023
    table.name_mask = 1023
    table.inodes = <node_t **>calloc(1024, cython.sizeof(void_pointer))
    table.names = <name_t **>calloc(1024, cython.sizeof(void_pointer))
    table.descriptor_limit = descriptor_limit
    table.device = root.device
    if table.inodes is not NULL and table.names is not NULL:
        table.root = node_new_locked(table, root, ROOT_ID)
    if table.root is NULL:
        free(table.inodes)
        free(table.names)
        free(table)
        return NULL
    table.root.references = 1            # the root is never forgotten
    table.root.fd = root_fd
    table.root.pinned = 1
    return table


cdef void table_free(inode_table_t *table) noexcept nogil:
    cdef uint32_t i
    cdef node_t *node
    cdef name_t *name
    for i in range(table.slots):
        node = &table.slabs[i // SLAB][i % SLAB]
        if not node.live:
            continue
        if contexts_any(&node.contexts):
            contexts_gone(&node.contexts)
        drop_cached_names_locked(node)
        while node.names is not NULL:
            name = node.names
            node.names = name.next
            free(name)
        if node.fd >= 0:
            close(node.fd)
    for i in range(table.slab_count):
        free(table.slabs[i])
    free(table.slabs)
    free(table.inodes)
    free(table.names)
    pthread_mutex_destroy(&table.mutex)
    free(table)


cdef node_t *node_new_locked(inode_table_t *table, const identity_t *what, uint64_t nodeid) noexcept nogil:
    cdef node_t *node
    cdef node_t **slabs
    cdef uint64_t bucket
    if table.free_slots is not NULL:
        node = table.free_slots
        table.free_slots = node.next_in_bucket
    else:
        if table.slots == table.slab_count * SLAB:
            slabs = <node_t **>realloc(table.slabs, (table.slab_count + 1) * cython.sizeof(void_pointer))
            if slabs is NULL:
                return NULL
            table.slabs = slabs
            slabs[table.slab_count] = <node_t *>calloc(SLAB, cython.sizeof(node_t))
            if slabs[table.slab_count] is NULL:
                return NULL
            table.slab_count += 1
        node = &table.slabs[table.slots // SLAB][table.slots % SLAB]
        table.slots += 1
    memset(node, 0, cython.sizeof(node_t))
    node.id = nodeid
    node.live = 1
    node.fd = -1
    node.device = what.device
    node.inode = what.inode
    node.birth = what.birth
    node.type = what.type
    bucket = mix(nodeid) & table.inode_mask
    node.next_in_bucket = table.inodes[bucket]
    table.inodes[bucket] = node
    table.node_count += 1
    if table.node_count > table.inode_mask:
        grow_inodes_locked(table)
    return node


cdef void unhash_node_locked(inode_table_t *table, node_t *node) noexcept nogil:
    cdef node_t **link = &table.inodes[mix(node.id) & table.inode_mask]
    while link[0] is not NULL:
        if link[0] == node:
            link[0] = node.next_in_bucket
            table.node_count -= 1
            return
        link = &link[0].next_in_bucket


cdef node_t *release_locked(inode_table_t *table, node_t *node) noexcept nogil:
    """Frees the node, and every parent that only it kept alive, when nothing holds them. Returns a chain (by `older`) of
    freed nodes whose descriptors and contexts are still to go by close_chain(), after the mutex was released."""
    cdef node_t *closing = NULL
    cdef node_t *parent
    cdef name_t *name
    while node is not NULL and node.live and node.lookups == 0 and node.references == 0:
        parent = NULL
        unhash_node_locked(table, node)
        while node.names is not NULL:
            name = node.names
            node.names = name.next
            if not node.deleted:
                unhash_name_locked(table, name)
            name.parent.references -= 1
            if name.parent.lookups == 0 and name.parent.references == 0:
                if parent is not NULL and parent is not name.parent:
                    closing = join_chains(closing, release_locked(table, parent))
                parent = name.parent
            free(name)
        unlink_lru_locked(table, node)
        drop_cached_names_locked(node)
        node.live = 0
        if node.fd >= 0 or contexts_any(&node.contexts):
            node.older = closing
            closing = node
        else:
            node.next_in_bucket = table.free_slots
            table.free_slots = node
        node = parent
    return closing


cdef node_t *join_chains(node_t *first, node_t *second) noexcept nogil:
    cdef node_t *last = second
    if second is NULL:
        return first
    while last.older is not NULL:
        last = last.older
    last.older = first
    return second


cdef void close_chain(inode_table_t *table, node_t *closing) noexcept nogil:
    """Closes the descriptors of freed nodes and lets their contexts go, then gives their slots back."""
    cdef node_t *node = closing
    cdef node_t *following
    if closing is NULL:
        return
    while node is not NULL:
        if node.watch is not NULL:
            table.unwatch(table.unwatch_context, node)
        if node.fd >= 0:
            close(node.fd)
            node.fd = -1
        if contexts_any(&node.contexts):
            contexts_gone(&node.contexts)
        node = node.older
    pthread_mutex_lock(&table.mutex)
    while closing is not NULL:
        following = closing.older
        closing.older = NULL
        closing.next_in_bucket = table.free_slots
        table.free_slots = closing
        closing = following
    pthread_mutex_unlock(&table.mutex)


cdef node_t *by_id_locked(inode_table_t *table, uint64_t nodeid) noexcept nogil:
    cdef node_t *node = table.inodes[mix(nodeid) & table.inode_mask]
    while node is not NULL and node.id != nodeid:
        node = node.next_in_bucket
    return node


cdef node_t *node_get(inode_table_t *table, uint64_t nodeid) noexcept nogil:
    cdef node_t *node
    pthread_mutex_lock(&table.mutex)
    node = by_id_locked(table, nodeid)
    if node is not NULL:
        node.references += 1
    pthread_mutex_unlock(&table.mutex)
    return node


cdef void node_hold(inode_table_t *table, node_t *node) noexcept nogil:
    pthread_mutex_lock(&table.mutex)
    node.references += 1
    pthread_mutex_unlock(&table.mutex)


cdef void node_put(inode_table_t *table, node_t *node) noexcept nogil:
    cdef node_t *closing = NULL
    pthread_mutex_lock(&table.mutex)
    node.references -= 1
    if node.references == 0 and node.lookups == 0:
        closing = release_locked(table, node)
    pthread_mutex_unlock(&table.mutex)
    close_chain(table, closing)


cdef uint64_t node_id(const node_t *node) noexcept nogil:
    return node.id


cdef uint16_t node_type(const node_t *node) noexcept nogil:
    return stackfs_type(&node.type)


cdef uint64_t generation_of(const identity_t *what) noexcept nogil:
    return (what.birth ^ what.birth >> 31) & 0x7FFFFFFF


cdef bint is_locked(const node_t *node, const identity_t *what) noexcept nogil:
    return node.inode == what.inode and node.device == what.device and node.type == what.type and node.birth == what.birth


cdef bint node_is(inode_table_t *table, const node_t *node, const identity_t *what) noexcept nogil:
    cdef bint same
    pthread_mutex_lock(&table.mutex)
    same = is_locked(node, what)
    pthread_mutex_unlock(&table.mutex)
    return same


cdef node_t *node_found(inode_table_t *table, const identity_t *what, node_t *parent, const char *name, uint16_t length,
                        const uint32_t *changes, int *error) noexcept nogil:
    cdef node_t *node
    cdef node_t *former_parent = NULL
    cdef node_t *closing = NULL
    cdef context_t *contexts = NULL      # the old inode's
    cdef uint64_t nodeid = make_id(table.device, what.device, what.inode)
    cdef int fd = -1
    error[0] = 0
    pthread_mutex_lock(&table.mutex)
    node = by_id_locked(table, nodeid)
    if changes is not NULL and changes[0] != table.changes[hash_name(parent, name, length) % NAME_CHANGES]:
        error[0] = EAGAIN
    elif node is not NULL and (node.inode != what.inode or node.device != what.device):
        error[0] = ESTALE
    elif node is not NULL and not is_locked(node, what):
        # The number was reused, so nothing of the old inode is left; or `what` is the old one, found before and told late.
        if node.fd_users or node.pinned:
            error[0] = ESTALE            # the late one: an inode with an open descriptor keeps its number
        else:
            fd = node.fd                 # of whichever it is: who opens it again finds out
            node.fd = -1
            unlink_lru_locked(table, node)
            closing = strip_names_locked(table, node)
            if contexts_any(&node.contexts):
                contexts_move(&node.contexts, &contexts)
            node.birth = what.birth
            stackfs_set_type(&node.type, what.type)
    if error[0] == 0 and node is NULL:
        node = node_new_locked(table, what, nodeid)
        if node is NULL:
            error[0] = ENOMEM
    if error[0] == 0:
        node.lookups += 1
        node.strayed = 0
        former_parent = add_name_locked(table, node, parent, name, length)
    pthread_mutex_unlock(&table.mutex)
    if fd >= 0:
        close(fd)
    close_chain(table, closing)
    if contexts is not NULL:
        contexts_gone(&contexts)
    if former_parent is not NULL:
        node_put(table, former_parent)
    return node if error[0] == 0 else NULL


cdef node_t *strip_names_locked(inode_table_t *table, node_t *node) noexcept nogil:
    """Its names lead to it no more. Returns a chain for close_chain(), as release_locked() does."""
    cdef node_t *closing = NULL
    cdef node_t *parent
    while node.names is not NULL and not node.deleted:
        parent = node.names.parent
        parent.references += 1           # the name's own may be the last
        remove_name_locked(table, node, parent, node.names.bytes, node.names.length)
        parent.references -= 1
        closing = join_chains(closing, release_locked(table, parent))
    return closing


cdef uint32_t name_changes(inode_table_t *table, const node_t *parent, const char *name, uint16_t length) noexcept nogil:
    cdef uint32_t changes
    pthread_mutex_lock(&table.mutex)
    changes = table.changes[hash_name(parent, name, length) % NAME_CHANGES]
    pthread_mutex_unlock(&table.mutex)
    return changes


cdef node_t *node_unnamed(inode_table_t *table, const identity_t *what, node_t *directory, int fd) noexcept nogil:
    cdef node_t *node
    cdef node_t *closing = NULL
    cdef context_t *contexts = NULL
    cdef name_t *name
    cdef uint64_t nodeid = make_id(table.device, what.device, what.inode)
    pthread_mutex_lock(&table.mutex)
    node = by_id_locked(table, nodeid)
    if node is not NULL and node.inode == what.inode and node.device == what.device and node.fd < 0:
        closing = strip_names_locked(table, node)                # the number was reused
        if contexts_any(&node.contexts):
            contexts_move(&node.contexts, &contexts)
        node.birth = what.birth
        stackfs_set_type(&node.type, what.type)
    elif node is not NULL:
        node = NULL
    else:
        node = node_new_locked(table, what, nodeid)
    if node is not NULL:
        node.lookups += 1
        node.deleted = 1
        node.pinned = 1
        node.fd = fd
        fd = -1
        if node.names is NULL:           # of the reused one the last name is kept
            name = <name_t *>malloc(owner_offset(20) + cython.sizeof(void_pointer))
            if name is not NULL:
                memset(name, 0, cython.sizeof(name_t))
                name.parent = directory
                name.length = <uint16_t>snprintf(name.bytes, 21, b"#%llu", <unsigned long long>what.inode % <unsigned long long>10**18)
                (<node_t **>(<char *>name + owner_offset(name.length)))[0] = node
                directory.references += 1
                node.names = name
    pthread_mutex_unlock(&table.mutex)
    if fd >= 0:
        close(fd)
    close_chain(table, closing)
    if contexts is not NULL:
        contexts_gone(&contexts)
    return node


cdef void node_forget(inode_table_t *table, uint64_t nodeid, uint64_t lookups) noexcept nogil:
    cdef node_t *node
    cdef node_t *closing = NULL
    pthread_mutex_lock(&table.mutex)
    node = by_id_locked(table, nodeid)
    if node is not NULL and node is not table.root:
        node.lookups -= min(lookups, node.lookups)
        closing = release_locked(table, node)
    pthread_mutex_unlock(&table.mutex)
    close_chain(table, closing)


# --- descriptors --------------------------------------------------------------------------------------------------

cdef void unlink_lru_locked(inode_table_t *table, node_t *node) noexcept nogil:
    if node.newer is NULL and node.older is NULL and table.newest is not node:
        return
    if node.newer is not NULL:
        node.newer.older = node.older
    else:
        table.newest = node.older
    if node.older is not NULL:
        node.older.newer = node.newer
    else:
        table.oldest = node.newer
    node.newer = NULL
    node.older = NULL
    table.descriptors -= 1


cdef void push_lru_locked(inode_table_t *table, node_t *node) noexcept nogil:
    node.newer = NULL
    node.older = table.newest
    if table.newest is not NULL:
        table.newest.newer = node
    else:
        table.oldest = node
    table.newest = node
    table.descriptors += 1


cdef int evict_locked(inode_table_t *table, uint32_t limit, int *victims) noexcept nogil:
    """Takes up to EVICT_AT_ONCE descriptors that nobody uses out of the LRU; the caller closes them."""
    cdef int count = 0
    cdef node_t *node = table.oldest
    cdef node_t *newer
    while node is not NULL and table.descriptors > limit and count < EVICT_AT_ONCE:
        newer = node.newer
        if node.fd_users == 0:
            victims[count] = node.fd
            node.fd = -1
            count += 1
            unlink_lru_locked(table, node)
        node = newer
    return count


cdef int descriptors_shed(inode_table_t *table) noexcept nogil:
    cdef int victims[EVICT_AT_ONCE]
    cdef int count, i
    pthread_mutex_lock(&table.mutex)
    count = evict_locked(table, 0, victims)
    pthread_mutex_unlock(&table.mutex)
    for i in range(count):
        close(victims[i])
    return count


cdef inline int use_locked(inode_table_t *table, node_t *node) noexcept nogil:
    """The descriptor of a node that has one, from now on in use."""
    node.fd_users += 1
    if not node.pinned and table.newest is not node:
        unlink_lru_locked(table, node)
        push_lru_locked(table, node)
    return node.fd


cdef int node_open(inode_table_t *table, node_t *node) noexcept nogil:
    cdef int ways = OTHER_WAYS
    cdef int fd = -1
    pthread_mutex_lock(&table.mutex)
    if node.fd >= 0:
        fd = use_locked(table, node)
    pthread_mutex_unlock(&table.mutex)
    return fd if fd >= 0 else climb(table, node, &ways)


cdef int climb(inode_table_t *table, node_t *node, int *ways) noexcept nogil:
    """Up by the names reached last to the first directory whose descriptor is open, and down again, opening each. Not by
    recursion: how deep a tree is, its users decide. ways: how many other names may yet be tried on the whole."""
    cdef node_t *near[16]                # from the node upwards, each with a reference
    cdef node_t **path = &near[0]
    cdef node_t **longer
    cdef node_t *above = node
    cdef node_t *mark = node             # Brent's: names changed beside the mount may lead round in a circle
    cdef uint32_t count = 0, capacity = 16, turn = 16
    cdef uint32_t i
    cdef int fd = -ESTALE
    cdef int child_fd
    pthread_mutex_lock(&table.mutex)
    while above.fd < 0 and not above.deleted and above.names is not NULL:
        if count == capacity:
            longer = <node_t **>realloc(NULL if path is &near[0] else path, 2 * capacity * cython.sizeof(void_pointer))
            if longer is NULL:
                fd = -ENOMEM
                break
            if path is &near[0]:
                memcpy(longer, path, capacity * cython.sizeof(void_pointer))
            path = longer
            capacity *= 2
        above.references += 1
        path[count] = above
        count += 1
        above = above.names.parent
        if above is mark:
            break
        if count == turn:
            mark = above
            turn *= 2
    above.references += 1
    if above.fd >= 0:
        fd = use_locked(table, above)
    pthread_mutex_unlock(&table.mutex)
    for i in range(count):
        child_fd = fd
        if fd >= 0:
            child_fd = open_below(table, path[count - 1 - i], above, fd)
            node_close(table, above)
        if child_fd < 0:
            child_fd = by_other_name(table, path[count - 1 - i], above, ways, child_fd)
        node_put(table, above)
        above = path[count - 1 - i]
        fd = child_fd
    node_put(table, above)               # the node itself, which the caller holds
    if path is not &near[0]:
        free(path)
    return fd


cdef int by_other_name(inode_table_t *table, node_t *node, const node_t *tried, int *ways, int error) noexcept nogil:
    """Opens a node by one of its names in other directories than the one tried. error: what that one gave."""
    cdef char name[256]
    cdef node_t *parent
    cdef int index = 0
    cdef int parent_fd, fd
    while ways[0] > 0 and name_of(table, node, index, name, &parent):
        index += 1
        if parent is tried:
            node_put(table, parent)
            continue
        ways[0] -= 1
        pthread_mutex_lock(&table.mutex)
        parent_fd = use_locked(table, parent) if parent.fd >= 0 else -1
        pthread_mutex_unlock(&table.mutex)
        if parent_fd < 0:
            parent_fd = climb(table, parent, ways)
        if parent_fd >= 0:
            fd = open_below(table, node, parent, parent_fd)
            node_close(table, parent)
            if fd >= 0:
                node_put(table, parent)
                return fd
            error = fd
        node_put(table, parent)
    return error


cdef int open_path(inode_table_t *table, int parent_fd, const char *name) noexcept nogil:
    """A descriptor or a negative errno."""
    cdef int fd
    while True:
        fd = openat(parent_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        if fd >= 0:
            return fd
        if errno != EMFILE or descriptors_shed(table) == 0:
            return -errno


cdef int open_below(inode_table_t *table, node_t *node, const node_t *parent, int parent_fd) noexcept nogil:
    """Opens a node by its names in a directory, if one of them still leads to it. In use from then on."""
    cdef char text[256]
    cdef name_t *name
    cdef int fd, skip, i
    cdef int at = 0
    cdef int error = -ESTALE
    cdef int victims[EVICT_AT_ONCE]
    cdef int count = 0
    cdef statx_t found
    cdef identity_t what
    while True:
        skip = at
        pthread_mutex_lock(&table.mutex)
        name = NULL if node.deleted else node.names
        while name is not NULL and (name.parent is not parent or skip > 0):
            skip -= name.parent is parent
            name = name.next
        if name is not NULL:
            memcpy(text, name.bytes, name.length + 1)
        pthread_mutex_unlock(&table.mutex)
        if name is NULL:
            return error
        at += 1
        fd = open_path(table, parent_fd, text)
        if fd == -EACCES and step_aside():           # our own need, not the caller's: it grants nothing
            fd = open_path(table, parent_fd, text)
            step_back()
        if fd < 0:
            error = -ESTALE if fd == -ENOENT else fd     # ENOENT: taken away beside the mount
            continue
        if statx(fd, b"", AT_EMPTY_PATH, STATX_INO | STATX_TYPE | STATX_BTIME, &found) == 0:
            identify(&found, &what)
            pthread_mutex_lock(&table.mutex)
            if is_locked(node, &what):
                break
            pthread_mutex_unlock(&table.mutex)
        close(fd)
        error = -ESTALE
    if node.fd >= 0:                     # somebody else was faster
        victims[0] = fd
        count = 1
        fd = use_locked(table, node)
    else:
        node.fd = fd
        node.fd_users += 1
        push_lru_locked(table, node)
        count = evict_locked(table, table.descriptor_limit, victims)
    pthread_mutex_unlock(&table.mutex)
    for i in range(count):
        close(victims[i])
    return fd


cdef void node_close(inode_table_t *table, node_t *node) noexcept nogil:
    pthread_mutex_lock(&table.mutex)
    node.fd_users -= 1
    pthread_mutex_unlock(&table.mutex)


cdef void node_pin(inode_table_t *table, node_t *node) noexcept nogil:
    pthread_mutex_lock(&table.mutex)
    if not node.pinned:
        node.pinned = 1
        unlink_lru_locked(table, node)
    pthread_mutex_unlock(&table.mutex)


cdef bint node_watched(inode_table_t *table, const node_t *node) noexcept nogil:
    """Of a directory its own watch tells; of anything else that of the directory it was looked up in last."""
    cdef bint watched = node.watch is not NULL
    if stackfs_type(&node.type) != S_IFDIR:
        pthread_mutex_lock(&table.mutex)
        watched = node.names is not NULL and not node.deleted and not node.strayed and node.names.parent.watch is not NULL
        pthread_mutex_unlock(&table.mutex)
    return watched


cdef void node_stray(inode_table_t *table, node_t *node) noexcept nogil:
    pthread_mutex_lock(&table.mutex)
    node.strayed = 1
    pthread_mutex_unlock(&table.mutex)


cdef uint64_t node_lookups(inode_table_t *table, const node_t *node) noexcept nogil:
    cdef uint64_t lookups
    pthread_mutex_lock(&table.mutex)
    lookups = node.lookups
    pthread_mutex_unlock(&table.mutex)
    return lookups


cdef void identify(const statx_t *found, identity_t *what) noexcept nogil:
    what.device = <uint32_t>makedev(found.stx_dev_major, found.stx_dev_minor)
    what.inode = found.stx_ino
    what.birth = 0
    if found.stx_mask & STATX_BTIME:
        what.birth = <uint64_t>found.stx_btime.tv_sec * 1000000000 + found.stx_btime.tv_nsec
    what.type = found.stx_mode & 0xF000


# --- names --------------------------------------------------------------------------------------------------------

cdef void unhash_name_locked(inode_table_t *table, name_t *name) noexcept nogil:
    cdef name_t **link = &table.names[hash_name(name.parent, name.bytes, name.length) & table.name_mask]
    while link[0] is not NULL:
        if link[0] == name:
            link[0] = name.next_in_bucket
            table.name_count -= 1
            return
        link = &link[0].next_in_bucket


cdef name_t *find_name_locked(node_t *node, const node_t *parent, const char *bytes, uint16_t length) noexcept nogil:
    cdef name_t *name = node.names
    while name is not NULL:
        if name.parent == parent and name.length == length and memcmp(name.bytes, bytes, length) == 0:
            return name
        name = name.next
    return NULL


cdef node_t *holder_locked(inode_table_t *table, const node_t *parent, const char *bytes, uint16_t length) noexcept nogil:
    """The node that goes by (parent, name), or NULL. Only for the rare operations: it looks through the bucket's nodes."""
    cdef name_t *name = table.names[hash_name(parent, bytes, length) & table.name_mask]
    while name is not NULL:
        if name.parent == parent and name.length == length and memcmp(name.bytes, bytes, length) == 0:
            return owner_of(name)
        name = name.next_in_bucket
    return NULL


cdef inline node_t *owner_of(name_t *name) noexcept nogil:
    # Behind the bytes, aligned, stands the node that the name belongs to.
    return (<node_t **>(<char *>name + owner_offset(name.length)))[0]


cdef inline size_t owner_offset(uint16_t length) noexcept nogil:
    return (cython.sizeof(name_t) + length + 1 + 7) & ~<size_t>7


cdef node_t *add_name_locked(inode_table_t *table, node_t *node, node_t *parent, const char *bytes, uint16_t length) noexcept nogil:
    """(parent, name) now leads to the node; it becomes its first name. Whoever had the name before has it no more.
    Returns a node to node_put() after the mutex was released, or NULL."""
    cdef node_t *former_parent = NULL
    cdef name_t *name
    cdef name_t **link = &node.names
    cdef node_t *before
    cdef uint64_t bucket
    if node is table.root or parent is NULL:
        return NULL
    if not node.deleted:
        while link[0] is not NULL:
            name = link[0]
            if name.parent == parent and name.length == length and memcmp(name.bytes, bytes, length) == 0:
                if link is not &node.names:
                    names_changed_locked(table, node)
                link[0] = name.next
                name.next = node.names
                node.names = name
                return NULL
            link = &name.next
    names_changed_locked(table, node)
    before = holder_locked(table, parent, bytes, length)
    if before is not NULL:
        remove_name_locked(table, before, parent, bytes, length)
    if node.deleted:                     # it has a name again
        name = node.names
        node.names = NULL
        node.deleted = 0
        if name is not NULL:
            former_parent = name.parent
            free(name)
    name = <name_t *>malloc(owner_offset(length) + cython.sizeof(void_pointer))
    if name is NULL:
        return former_parent             # cannot be reopened by this name: ESTALE makes the kernel look it up again
    name.parent = parent
    name.length = length
    memcpy(name.bytes, bytes, length)
    name.bytes[length] = 0
    (<node_t **>(<char *>name + owner_offset(length)))[0] = node
    parent.references += 1
    name.next = node.names
    node.names = name
    bucket = hash_name(parent, bytes, length) & table.name_mask
    name.next_in_bucket = table.names[bucket]
    table.names[bucket] = name
    table.name_count += 1
    if table.name_count > table.name_mask:
        grow_names_locked(table)
    return former_parent


cdef void remove_name_locked(inode_table_t *table, node_t *node, node_t *parent, const char *bytes, uint16_t length) noexcept nogil:
    cdef name_t **link = &node.names
    cdef name_t *name
    if node.deleted:
        return
    while link[0] is not NULL:
        name = link[0]
        if name.parent == parent and name.length == length and memcmp(name.bytes, bytes, length) == 0:
            unhash_name_locked(table, name)
            names_changed_locked(table, node)
            if node.names == name and name.next is NULL:
                node.deleted = 1         # the last name stays, out of the name table, for paths
                return
            link[0] = name.next
            parent.references -= 1       # never the last one: the caller holds the parent
            free(name)
            return
        link = &name.next


cdef node_t *name_pin(inode_table_t *table, node_t *parent, const char *name, uint16_t length) noexcept nogil:
    cdef node_t *node
    pthread_mutex_lock(&table.mutex)
    node = holder_locked(table, parent, name, length)
    if node is NULL or node.names is NULL or node.names.next is not NULL or node.pinned or node.lookups == 0:
        pthread_mutex_unlock(&table.mutex)
        return NULL
    node.references += 1
    pthread_mutex_unlock(&table.mutex)
    if node_open(table, node) < 0:
        node_put(table, node)
        return NULL
    return node


cdef void name_unpin(inode_table_t *table, node_t *pinned) noexcept nogil:
    if pinned is not NULL:
        node_close(table, pinned)
        node_put(table, pinned)


cdef void keep_pin(inode_table_t *table, node_t *pinned) noexcept nogil:
    """The name is gone: the descriptor stays with the node until it is forgotten."""
    if pinned is NULL:
        return
    pthread_mutex_lock(&table.mutex)
    if not pinned.pinned:
        pinned.pinned = 1
        unlink_lru_locked(table, pinned)
    pinned.fd_users -= 1
    pthread_mutex_unlock(&table.mutex)
    node_put(table, pinned)


cdef void name_removed(inode_table_t *table, node_t *parent, const char *name, uint16_t length, node_t *pinned) noexcept nogil:
    cdef node_t *node
    pthread_mutex_lock(&table.mutex)
    table.changes[hash_name(parent, name, length) % NAME_CHANGES] += 1
    node = holder_locked(table, parent, name, length)
    if node is not NULL:
        remove_name_locked(table, node, parent, name, length)
    pthread_mutex_unlock(&table.mutex)
    keep_pin(table, pinned)


cdef void name_moved(inode_table_t *table, node_t *parent, const char *name, uint16_t length,
                     node_t *new_parent, const char *new_name, uint16_t new_length, bint exchange, bint linked,
                     node_t *pinned) noexcept nogil:
    cdef node_t *moved
    cdef node_t *target
    cdef node_t *former_parents[2]
    former_parents[0] = former_parents[1] = NULL
    pthread_mutex_lock(&table.mutex)
    table.changes[hash_name(parent, name, length) % NAME_CHANGES] += 1
    table.changes[hash_name(new_parent, new_name, new_length) % NAME_CHANGES] += 1
    moved = holder_locked(table, parent, name, length)
    target = holder_locked(table, new_parent, new_name, new_length)
    if moved is target and moved is not NULL and not linked and not exchange:
        remove_name_locked(table, moved, parent, name, length)       # a lookup has found it by its new name already
    elif moved is not target:
        if target is not NULL:
            remove_name_locked(table, target, new_parent, new_name, new_length)
        if moved is not NULL:
            remove_name_locked(table, moved, parent, name, length)
            former_parents[0] = add_name_locked(table, moved, new_parent, new_name, new_length)
        if exchange and target is not NULL:
            former_parents[1] = add_name_locked(table, target, parent, name, length)
    pthread_mutex_unlock(&table.mutex)
    if former_parents[0] is not NULL:
        node_put(table, former_parents[0])
    if former_parents[1] is not NULL:
        node_put(table, former_parents[1])
    if exchange:
        name_unpin(table, pinned)
    else:
        keep_pin(table, pinned)


cdef bint names_linked(inode_table_t *table, const node_t *parent, const char *name, uint16_t length,
                       const node_t *new_parent, const char *new_name, uint16_t new_length) noexcept nogil:
    cdef node_t *node
    cdef bint linked
    pthread_mutex_lock(&table.mutex)
    node = holder_locked(table, parent, name, length)
    linked = node is not NULL and node is holder_locked(table, new_parent, new_name, new_length)
    pthread_mutex_unlock(&table.mutex)
    return linked


cdef node_t *name_holder(inode_table_t *table, const node_t *parent, const char *name, uint16_t length) noexcept nogil:
    cdef node_t *node
    pthread_mutex_lock(&table.mutex)
    node = holder_locked(table, parent, name, length)
    if node is not NULL:
        node.references += 1
    pthread_mutex_unlock(&table.mutex)
    return node


cdef uint16_t name_of(inode_table_t *table, node_t *node, int index, char *buffer, node_t **parent) noexcept nogil:
    cdef uint16_t length
    pthread_mutex_lock(&table.mutex)
    length = name_of_locked(node, index, buffer, parent)
    pthread_mutex_unlock(&table.mutex)
    return length


cdef uint16_t name_unless_open(inode_table_t *table, node_t *node, char *buffer, node_t **parent) noexcept nogil:
    cdef uint16_t length = 0
    parent[0] = NULL
    pthread_mutex_lock(&table.mutex)
    if node.fd < 0:
        length = name_of_locked(node, 0, buffer, parent)
    pthread_mutex_unlock(&table.mutex)
    return length


cdef uint16_t name_of_locked(node_t *node, int index, char *buffer, node_t **parent) noexcept nogil:
    cdef name_t *name
    cdef uint16_t length = 0
    parent[0] = NULL
    if not node.deleted or index == LAST_NAME:
        name = node.names
        while name is not NULL and index > 0:
            name = name.next
            index -= 1
        if name is not NULL:
            length = name.length
            memcpy(buffer, name.bytes, length + 1)
            parent[0] = name.parent
            name.parent.references += 1
    return length


cdef bint node_below(inode_table_t *table, const node_t *node, const node_t *directory) noexcept nogil:
    """Directories that are moved beside the mount may lie in each other here: no way is longer than there are nodes."""
    cdef const name_t *name
    cdef const node_t *above
    cdef bint below = False
    cdef uint64_t steps
    pthread_mutex_lock(&table.mutex)
    name = NULL if node.deleted else node.names
    while name is not NULL and not below:
        above = name.parent
        steps = table.node_count
        while above is not NULL and above is not directory and steps:
            above = NULL if above.names is NULL else above.names.parent
            steps -= 1
        below = above is directory
        name = name.next
    pthread_mutex_unlock(&table.mutex)
    return below


# --- paths --------------------------------------------------------------------------------------------------------

cdef int climb_locked(inode_table_t *table, const node_t *node, const name_t *first, char *buffer, size_t size,
                      bint marks) noexcept nogil:
    """Writes the path right to left from the end of the buffer; returns where it begins, or -1 when it is too long."""
    cdef size_t at = size - 1
    cdef const name_t *name = first
    cdef bint deleted = marks and node.deleted
    if size < 2:
        return -1
    buffer[at] = 0
    if deleted:
        if size < 11:
            return -1
        at -= 10
        memcpy(buffer + at, b" (deleted)", 10)
    if node is table.root:
        at -= 1
        buffer[at] = c'/'
        return <int>at
    while name is not NULL:
        if at < <size_t>name.length + 1:
            return -1
        at -= name.length
        memcpy(buffer + at, name.bytes, name.length)
        at -= 1
        buffer[at] = c'/'
        if name.parent is table.root:
            break
        name = name.parent.names
    return <int>at


cdef int settle(char *buffer, size_t size, int start) noexcept nogil:
    if start < 0:
        if size:
            buffer[0] = 0
        return -ENAMETOOLONG
    memmove(buffer, buffer + start, size - start)
    return <int>(size - 1 - start)


cdef int node_path(inode_table_t *table, const node_t *node, char *buffer, size_t size) noexcept nogil:
    cdef int start
    pthread_mutex_lock(&table.mutex)
    start = climb_locked(table, node, node.names, buffer, size, True)
    pthread_mutex_unlock(&table.mutex)
    return settle(buffer, size, start)


cdef int node_name(inode_table_t *table, const node_t *node, const node_t *directory, const char *name, uint16_t length,
                   char *buffer, size_t size, name_version_t *changes) noexcept nogil:
    cdef const name_t *first
    cdef int start
    pthread_mutex_lock(&table.mutex)
    changes.path_changes = table.path_changes
    changes.name_changes = node.name_changes
    first = node.names
    if directory is not NULL and not node.deleted and first is not NULL and first.next is not NULL:
        first = find_name_locked(<node_t *>node, directory, name, length)
        if first is NULL:
            first = node.names
    start = climb_locked(table, node, first, buffer, size, False)
    pthread_mutex_unlock(&table.mutex)
    return settle(buffer, size, start)


# --- the cache of file name informations ------------------------------------------------------------------------------

cdef void drop_cached_names_locked(node_t *node) noexcept nogil:
    cdef FLT_FILE_NAME_INFORMATION *information
    while node.cached_names is not NULL:
        information = node.cached_names
        node.cached_names = information.next
        name_information_put(information)        # frees memory at most


cdef void names_changed_locked(inode_table_t *table, node_t *node) noexcept nogil:
    """What the cache has of the node, and, when it is a directory, of everything below it, is not true any more."""
    drop_cached_names_locked(node)
    node.name_changes += 1
    if node.type == 0o040000 and node.names is not NULL:
        table.path_changes += 1


cdef FLT_FILE_NAME_INFORMATION *name_cache_find(
        inode_table_t *table, node_t *node, const FLT_INSTANCE *provider, uint32_t format, const node_t *directory, const char *name,
        uint16_t length) noexcept nogil:
    cdef FLT_FILE_NAME_INFORMATION *information
    pthread_mutex_lock(&table.mutex)
    if node.cached_names is not NULL and node.cached_names.path_changes != table.path_changes:
        drop_cached_names_locked(node)
    information = node.cached_names
    while information is not NULL and not (
            information.provider == provider and information.Format == format and information.directory == directory
            and information.link_length == length and (length == 0 or memcmp(information.link, name, length) == 0)):
        information = information.next
    if information is not NULL:
        name_information_hold(information)
    pthread_mutex_unlock(&table.mutex)
    return information


cdef void name_cache_store(
        inode_table_t *table, node_t *node, FLT_FILE_NAME_INFORMATION *information, const name_version_t *changes) noexcept nogil:
    cdef FLT_FILE_NAME_INFORMATION *other
    cdef int count = 0
    pthread_mutex_lock(&table.mutex)
    if changes.path_changes == table.path_changes and changes.name_changes == node.name_changes:
        if node.cached_names is not NULL and node.cached_names.path_changes != table.path_changes:
            drop_cached_names_locked(node)
        other = node.cached_names
        while other is not NULL:
            count += 1
            other = other.next
        if count >= CACHED_NAMES:
            drop_cached_names_locked(node)
        information.path_changes = table.path_changes
        information.next = node.cached_names
        node.cached_names = information
        name_information_hold(information)
    pthread_mutex_unlock(&table.mutex)


cdef void name_cache_purge(inode_table_t *table, node_t *node) noexcept nogil:
    pthread_mutex_lock(&table.mutex)
    if node is NULL:
        table.path_changes += 1
    else:
        drop_cached_names_locked(node)
        node.name_changes += 1
    pthread_mutex_unlock(&table.mutex)


cdef int file_path(inode_table_t *table, const FILE_OBJECT *file, char *buffer, size_t size) noexcept nogil:
    cdef const node_t *node = file.Node
    cdef const name_t *first
    cdef int start
    pthread_mutex_lock(&table.mutex)
    first = node.names
    if file.Name is not NULL and not node.deleted and first is not NULL and first.next is not NULL:
        first = find_name_locked(<node_t *>node, file.NameDirectory, file.Name, file.NameLength)
        if first is NULL:
            first = node.names
    start = climb_locked(table, node, first, buffer, size, True)
    pthread_mutex_unlock(&table.mutex)
    return settle(buffer, size, start)
