# The inode table: what the kernel knows of the backing directory's inodes.
#
# A node is keyed by (device, inode number), which give its nodeid, and has a generation made from its birth time; it
# knows the names (parent, name) it was reached by, so that a descriptor can be opened again and a path rebuilt.
# One mutex guards the whole table and is never held across a system call. A node lives while lookups + references > 0.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from stackfs.cext.callback_data cimport (
    FILE_OBJECT, FLT_FILE_NAME_INFORMATION, FLT_INSTANCE, context_t, node_t, statx_t)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef struct name_t:
    node_t *parent                       # holds a reference
    name_t *next                         # further names of the same node
    name_t *next_in_bucket
    uint16_t length
    char bytes[0]

cdef struct node_t:
    uint64_t id                          # nodeid; also the inode number that programs see, but for the root's
    uint64_t inode
    uint64_t birth                       # nanoseconds; 0: the backing filesystem does not tell
    uint64_t lookups                     # what the kernel holds
    node_t *next_in_bucket
    node_t *newer                        # LRU of cached descriptors
    node_t *older
    name_t *names                        # the one reached last comes first
    context_t *contexts                  # file, stream and section contexts (contexts.pyx guards them)
    FLT_FILE_NAME_INFORMATION *cached_names      # each with a reference; valid while path_changes is the table's
    uint32_t device                      # makedev
    uint32_t references                  # what we hold: operations, handles, names of children
    int fd                               # O_PATH descriptor, or -1
    int32_t backing_id                   # passthrough: the id of its backed opens, or 0 (bypass.pyx guards these three)
    uint32_t backed_opens
    uint32_t plain_opens                 # open regular files without one
    uint16_t fd_users                    # > 0: not to be closed
    uint16_t type                        # st_mode & S_IFMT
    uint8_t live
    uint8_t deleted                      # its last known name is gone; `names` holds that name, outside the name table
    uint8_t pinned                       # its descriptor is kept until it is forgotten: it has no name to reopen it by, or is watched
    uint8_t strayed                      # renamed beside the mount, and not looked up since
    uint32_t name_changes                # how often its own names changed, or which of them comes first
    uint32_t leased                      # atomic: which lease we have on it; 0: none (coherence.pyx has this and the two below)
    void *lease                          # lease_t*
    void *watch                          # watch_t*; of a directory

cdef struct inode_table_t:
    pthread_mutex_t mutex
    node_t **slabs
    uint32_t slab_count
    uint32_t slots                       # ever used
    node_t *free_slots
    node_t **inodes                      # buckets by nodeid
    uint64_t inode_mask
    name_t **names                       # buckets by (parent, name)
    uint64_t name_mask
    uint64_t node_count
    uint64_t name_count
    node_t *newest
    node_t *oldest
    uint32_t descriptors
    uint32_t descriptor_limit
    node_t *root
    uint32_t device                      # the root's
    void (*unwatch)(void *context, node_t *node) noexcept nogil    # a watched directory is forgotten; its descriptor is still open
    void *unwatch_context
    uint32_t changes[64]                 # by hash of (parent, name): how often names were taken away
    uint64_t path_changes                # how often a directory got or lost a name: paths below it are others then

cdef enum:
    ROOT_ID = 1
    NAME_CHANGES = 64

cdef struct name_version_t:              # a path was this one while both were so
    uint64_t path_changes
    uint32_t name_changes

cdef struct identity_t:                  # what a node is known by
    uint32_t device
    uint64_t inode
    uint64_t birth
    uint16_t type

cdef inode_table_t *table_new(int root_fd, const identity_t *root, uint32_t descriptor_limit) noexcept nogil   # owns root_fd
cdef void table_free(inode_table_t *table) noexcept nogil

cdef node_t *node_get(inode_table_t *table, uint64_t nodeid) noexcept nogil          # +1 reference, NULL: no such node
cdef void node_hold(inode_table_t *table, node_t *node) noexcept nogil               # +1 reference
cdef void node_put(inode_table_t *table, node_t *node) noexcept nogil                # -1 reference
cdef uint64_t node_id(const node_t *node) noexcept nogil
cdef uint16_t node_type(const node_t *node) noexcept nogil                           # st_mode & S_IFMT
cdef uint64_t generation_of(const identity_t *what) noexcept nogil
# The nodeid of an inode, and the inode number that programs see: the backing inode's own number on the root's device, a
# number with the top bit set elsewhere.
cdef uint64_t make_id(uint32_t root_device, uint32_t device, uint64_t inode) noexcept nogil

# The node of what was found under (parent, name); counts one lookup for the kernel and holds no reference. NULL, with an
# errno: ENOMEM; EAGAIN: the name was taken away since name_changes() gave `changes`, look again (NULL: do not care);
# ESTALE: what was found is not there any more, or two inodes of different devices share an id (one chance in 2^63).
cdef node_t *node_found(inode_table_t *table, const identity_t *what, node_t *parent, const char *name, uint16_t length,
                        const uint32_t *changes, int *error) noexcept nogil
cdef uint32_t name_changes(inode_table_t *table, const node_t *parent, const char *name, uint16_t length) noexcept nogil
# The same for a file that was made without a name (O_TMPFILE) in that directory. Keeps fd (O_PATH) as its descriptor; takes
# it over also when there is no memory. Its path is "/directory/#inode (deleted)", as the kernel shows it, until it is linked.
cdef node_t *node_unnamed(inode_table_t *table, const identity_t *what, node_t *directory, int fd) noexcept nogil
cdef void node_forget(inode_table_t *table, uint64_t nodeid, uint64_t lookups) noexcept nogil
cdef bint node_is(inode_table_t *table, const node_t *node, const identity_t *what) noexcept nogil
cdef void identify(const statx_t *found, identity_t *what) noexcept nogil

# An O_PATH descriptor of the node, good until node_close(); or a negative errno (-ESTALE: none of its names leads to it).
cdef int node_open(inode_table_t *table, node_t *node) noexcept nogil
cdef void node_close(inode_table_t *table, node_t *node) noexcept nogil
# From now on its descriptor, which must be in use, is kept until it is forgotten.
cdef void node_pin(inode_table_t *table, node_t *node) noexcept nogil
cdef bint node_watched(inode_table_t *table, const node_t *node) noexcept nogil      # would changes of its attributes be noticed?
cdef void node_stray(inode_table_t *table, node_t *node) noexcept nogil              # not before it was looked up again
cdef uint64_t node_lookups(inode_table_t *table, const node_t *node) noexcept nogil
# Out of descriptors: closes a few that nobody uses. How many.
cdef int descriptors_shed(inode_table_t *table) noexcept nogil

# Names. A node about to lose its last known name gets its descriptor pinned first: pass what name_pin() returned to
# name_removed() or name_unpin(). name_moved() is for renames (exchange: both names change places; linked: both names led
# to one inode before, as names_linked() said, and rename(2) then does nothing).
cdef node_t *name_pin(inode_table_t *table, node_t *parent, const char *name, uint16_t length) noexcept nogil
cdef void name_unpin(inode_table_t *table, node_t *pinned) noexcept nogil
cdef void name_removed(inode_table_t *table, node_t *parent, const char *name, uint16_t length, node_t *pinned) noexcept nogil
cdef void name_moved(inode_table_t *table, node_t *parent, const char *name, uint16_t length,
                     node_t *new_parent, const char *new_name, uint16_t new_length, bint exchange, bint linked,
                     node_t *pinned) noexcept nogil
cdef bint names_linked(inode_table_t *table, const node_t *parent, const char *name, uint16_t length,
                       const node_t *new_parent, const char *new_name, uint16_t new_length) noexcept nogil
# The node that goes by (parent, name), with a reference; NULL: the kernel does not know it by that name.
cdef node_t *name_holder(inode_table_t *table, const node_t *parent, const char *name, uint16_t length) noexcept nogil
# Copies one name of the node: buffer[256]; returns its length and the parent with a reference, or 0 and NULL. LAST_NAME: the one it was
# reached by last, which it may have lost.
cdef enum:
    LAST_NAME = -1
cdef uint16_t name_of(inode_table_t *table, node_t *node, int index, char *buffer, node_t **parent) noexcept nogil
# The same, its first name, when no descriptor of it is open.
cdef uint16_t name_unless_open(inode_table_t *table, node_t *node, char *buffer, node_t **parent) noexcept nogil
# Whether one of the node's names lies in that directory, at any depth.
cdef bint node_below(inode_table_t *table, const node_t *node, const node_t *directory) noexcept nogil

# Path from the volume's root, "/a/b", NUL-terminated, as the base names it; a deleted node's last path is followed by
# " (deleted)". Returns its length, or -ENAMETOOLONG (the buffer then holds "").
cdef int node_path(inode_table_t *table, const node_t *node, char *buffer, size_t size) noexcept nogil
# The same by one of its names, if it goes by that (directory NULL: the one reached last), and without the mark: a deleted
# node's path is the one it had last. changes: what it was found under, for name_cache_store().
cdef int node_name(inode_table_t *table, const node_t *node, const node_t *directory, const char *name, uint16_t length,
                   char *buffer, size_t size, name_version_t *changes) noexcept nogil
# The cache of file name informations, by (provider, format, name it was opened by). find(): with a reference, or NULL.
# store(): keeps one more reference, unless names have changed since. purge(): node NULL: all of the volume.
cdef FLT_FILE_NAME_INFORMATION *name_cache_find(
    inode_table_t *table, node_t *node, const FLT_INSTANCE *provider, uint32_t format, const node_t *directory, const char *name,
    uint16_t length) noexcept nogil
cdef void name_cache_store(
    inode_table_t *table, node_t *node, FLT_FILE_NAME_INFORMATION *information, const name_version_t *changes) noexcept nogil
cdef void name_cache_purge(inode_table_t *table, node_t *node) noexcept nogil
# The path of a file object: the open file's name, or the node's.
cdef int file_path(inode_table_t *table, const FILE_OBJECT *file, char *buffer, size_t size) noexcept nogil
