# What the filter keeps: of a volume, of each file that is open, of each open file that has asked for something, of each open
# that a program has made by STACKFS_IOC_OPLOCK_CREATE and not taken over yet.
#
# The rules are the package's (cext/oplock.pyx); a granted request is one record of it, and nothing else: no IRP of the program's
# lies about. Nobody holding anything is one atomic number, mounted_t.active, which callbacks look at first.
#
# Locks, in this order: stream_t.mutex, mounted_t.mutex, an oplock's own. All are held for a few instructions; what lets waiters
# go on (oplock_request, _acknowledge, _close, _check) is called with none of them.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_CALLBACK_DATA, FLT_INSTANCE, node_t, oplock_open_t
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.oplock cimport OPLOCK, oplock_break_t, oplock_record_t

cdef extern from "stackfs_oplock.h":
    enum:
        STACKFS_OPLOCK_ACK_REQUIRED, STACKFS_OPLOCK_SWITCHED, STACKFS_OPLOCK_TAKEN
        STACKFS_OPLOCK_BREAKING, STACKFS_OPLOCK_UNREAD
        STACKFS_OPLOCK_ACK_ON_CLOSE
        STACKFS_OPLOCK_WRITE_SIZE
        STACKFS_SHARE_READ, STACKFS_SHARE_WRITE, STACKFS_SHARE_DELETE
        STACKFS_ONCE_SIZE
    unsigned int STACKFS_IOC_OPLOCK_REQUEST, STACKFS_IOC_OPLOCK_READ_BREAK, STACKFS_IOC_OPLOCK_ACKNOWLEDGE
    unsigned int STACKFS_IOC_OPLOCK_STATE, STACKFS_IOC_OPLOCK_WRITE, STACKFS_IOC_OPLOCK_RELEASE, STACKFS_IOC_OPLOCK_CREATE
    struct stackfs_oplock_request:
        uint32_t level
        uint32_t reserved
        uint8_t key[16]
        uint8_t parent_key[16]
    struct stackfs_oplock_break:
        uint32_t old_level
        uint32_t new_level
        uint32_t flags
        uint32_t reserved
    struct stackfs_oplock_acknowledge:
        uint32_t how
        uint32_t level
        uint32_t reserved[2]
    struct stackfs_oplock_state:
        uint32_t level
        uint32_t breaking_to
        uint32_t flags
        uint32_t waiting
        uint32_t holders
        uint32_t reserved[3]
    struct stackfs_oplock_write:
        uint64_t offset
        uint32_t length
        uint32_t reserved
        uint8_t data[16352]
    struct stackfs_oplock_create:
        uint32_t desired_access
        uint32_t share_access
        uint32_t disposition
        uint32_t options
        uint32_t mode
        uint32_t level
        uint8_t key[16]
        uint8_t parent_key[16]
        uint32_t result
        uint32_t flags
        char name[256]
        char once[48]

cdef enum:
    ALL_SHARED = 7                       # what a plain open(2) lets others do

ctypedef struct mounted_t:
    FLT_INSTANCE *instance
    int64_t break_timeout                # nanoseconds; 0: for ever
    int64_t lapse                        # nanoseconds: how long a one-time name is good
    bint read_only
    int active                           # atomic: streams with an oplock, and opens that wait to be taken over
    int directories                      # atomic: those of directories
    int created_count                    # atomic: opens that wait to be taken over
    pthread_mutex_t mutex                # guards what follows, and writing the three above
    pthread_cond_t changed
    stream_t *streams                    # all there are
    created_t *created
    bint ends                            # nothing is granted any more, and watch() is to return

cdef struct stream_t:                    # a stream context: there while the file is open
    mounted_t *mounted
    node_t *node
    stream_t *next                       # of mounted.streams, under its mutex
    stream_t *previous
    pthread_mutex_t mutex                # guards what follows
    OPLOCK oplock                        # atomic; NULL: nobody has asked yet
    open_t *opens                        # those that have asked for something, each with a reference
    open_t **chains                      # these by identity; `few` while there are few of them
    open_t *few
    uint32_t chain_count                 # a power of two
    uint32_t listed                      # how many opens there are
    uint32_t open_count                  # open files, and opens under way
    uint32_t sharers                     # of these, those that count for sharing, as IoCheckShareAccess() does:
    uint32_t readers, writers, deleters
    uint32_t shared_read, shared_write, shared_delete
    uint32_t requesting                  # requests under way
    uint8_t active                       # counted in mounted.active
    uint8_t dead                         # being taken away: get another
    uint8_t directory
    uint8_t locked                       # bytes have been locked since it was opened

cdef struct open_t:
    open_t *next                         # of stream.opens
    open_t *previous
    open_t *next_in_chain
    stream_t *stream                     # with a reference
    oplock_open_t *identity              # its file object's, or that of a created_t until that is taken over
    uint64_t poll_handle                 # 0: nobody has polled
    int references                       # atomic: the list's, and one for each record that is to be told something
    uint32_t pid                         # 0: not known yet
    uint32_t generation                  # of what was asked for last; a break of something older is no news
    uint32_t access                      # of one that was created: what it counts for; else 0
    uint8_t share
    uint8_t unread                       # there is a break to be read, and this is it:
    uint8_t old_level
    uint8_t new_level
    uint8_t flags
    uint8_t quiet                        # it ends what it holds by itself
    uint8_t created                      # not taken over yet

cdef struct created_t:
    created_t *next                      # of mounted.created
    open_t *open                         # with a reference
    oplock_open_t identity               # who it is until it is taken over
    FILE_OBJECT *opened                  # the file, opened below
    node_t *directory                    # with a reference
    uint32_t pid
    int64_t until                        # monotonic nanoseconds
    uint8_t looked_up                    # its owner has looked the one-time name up,
    uint8_t busy                         # and is opening it
    uint8_t name_length
    char once[48]
    char name[256]

# With a reference; NULL: there is none (or, with `make`, no memory, or the instance goes).
cdef stream_t *stream_get(mounted_t *mounted, node_t *node, bint make) noexcept nogil
cdef void stream_put(stream_t *stream) noexcept nogil
cdef void stream_let_go(stream_t *stream) noexcept nogil             # stream_put(), and it goes if nobody has the file open
# It is about to have an oplock, or a share mode; asked: it has, or not. settle: look whether it still has.
cdef void stream_activate(stream_t *stream) noexcept nogil
cdef void stream_asked(stream_t *stream) noexcept nogil
cdef void stream_settle(stream_t *stream) noexcept nogil
# Sharing, under stream.mutex. enter: False: a sharing violation, and nothing was counted.
cdef bint share_enter(stream_t *stream, uint32_t access, uint32_t share) noexcept nogil
cdef void share_leave(stream_t *stream, uint32_t access, uint32_t share) noexcept nogil

cdef open_t *open_of(stream_t *stream, FILE_OBJECT *file, bint make) noexcept nogil        # under stream.mutex; no reference
cdef open_t *open_new(stream_t *stream, oplock_open_t *identity) noexcept nogil            # likewise, one reference: the list's
cdef void open_unlist(open_t *open) noexcept nogil                                         # likewise; the list's is the caller's
cdef void open_put(open_t *open) noexcept nogil

# An open file, or one that was created, asks for a level. STATUS_SUCCESS: it has it.
cdef NTSTATUS open_request(open_t *open, uint32_t level) noexcept nogil
cdef NTSTATUS open_acknowledge(open_t *open, uint32_t how, uint32_t *level) noexcept nogil
cdef void open_release(open_t *open) noexcept nogil                  # gives up what it holds
cdef void open_state(open_t *open, stackfs_oplock_state *state) noexcept nogil
cdef bint open_read_break(open_t *open, stackfs_oplock_break *told) noexcept nogil
cdef bint open_may_keep_back(open_t *open) noexcept nogil            # it holds, or has to acknowledge, what lets it keep writes back
# CLEANUP of an open file; access 0: that of its own record.
cdef void file_closed(mounted_t *mounted, FILE_OBJECT *file, uint32_t access) noexcept nogil

# An open that waits to be taken over: listed; found by name, or by its file; ended without having been.
cdef void created_add(mounted_t *mounted, created_t *created) noexcept nogil
cdef bint created_named(mounted_t *mounted, const node_t *directory, const char *once, uint32_t length, uint32_t pid, char *name,
                        uint32_t *name_length) noexcept nogil
cdef created_t *created_take(mounted_t *mounted, const node_t *node, uint32_t pid) noexcept nogil      # it is busy then
cdef void created_taken(mounted_t *mounted, created_t *created, FILE_OBJECT *file) noexcept nogil      # file NULL: the open failed
cdef void created_give_up(mounted_t *mounted, created_t *created) noexcept nogil       # by whoever has it busy

# With a reference; that of `after` is given back. One that has left its list meanwhile begins it again. NULL: no more.
cdef stream_t *next_active(mounted_t *mounted, stream_t *after, bint any_of_them) noexcept nogil

cdef class Mounted:
    """The filter on one volume (see _oplocks.pyi)."""
    cdef mounted_t mounted
    cdef object entry
    cdef bytes path(self, stream_t *stream)
