# VFS requests as operations of the stack (docs/semantics.md, D): the one place that knows which IRP_MJ_* operations
# a request consists of. Every lane fills a vfs_request_t, runs it, and encodes its answer.

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from stackfs.cext.backing cimport backing_t
from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_INSTANCE, FLT_VOLUME, REQUESTOR, lock_range_t, node_t, statx_t
from stackfs.cext.handles cimport handle_t
from stackfs.cext.includes.pthread cimport pthread_t
from stackfs.cext.locks cimport lock_wait_t, woken_function
from stackfs.cext.stack cimport Stack, callback_list_t, operation_t, resume_function, wait_function

ctypedef struct fuse_in_t:               # the request's fixed part, decoded from the wire (only the fields its opcode has)
    uint64_t fh
    uint64_t lock_owner
    uint64_t offset
    uint64_t nodeid2                     # rename, link: new directory / old node
    uint64_t size                        # read, readdir, write, getxattr, listxattr, setattr's size; fallocate, copy: length; ioctl: room
    uint32_t flags                       # open flags; rename flags; setxattr flags; statx flags; getattr flags; fsync flags; release flags
    uint32_t open_flags                  # FUSE_OPEN_KILL_SUIDGID; write_flags; read_flags; setxattr_flags (FUSE_SETXATTR_ACL_KILL_SGID)
    uint32_t mode                        # create, mkdir, mknod, setattr, access mask; fallocate's mode
    uint32_t umask
    uint32_t rdev
    uint32_t valid                       # setattr: FATTR_*; statx: mask
    uint32_t uid, gid
    int64_t atime, mtime, ctime
    uint32_t atimensec, mtimensec, ctimensec
    uint32_t events                      # poll
    uint64_t fh2                         # copy_file_range: the target's (fh, offset: the source's)
    uint64_t offset2
    uint64_t end                         # locks: the last byte of the range that begins at offset
    uint32_t lock_type                   # F_RDLCK, F_WRLCK, F_UNLCK
    uint32_t lock_pid
    uint32_t command                     # ioctl

ctypedef struct step_t:                  # one operation of a request
    uint8_t major
    uint8_t principal                    # it is what the request asked for
    uint32_t detail                      # information class, control code, ...: told apart by (opcode, major, detail)

cdef enum:
    INJECTED = 0                         # opcode: no VFS request, an operation by hand (Volume.inject())
    STEP_END = 0xFFFFFFFF                # detail of the step behind the last one

cdef struct vfs_request_t:
    FLT_VOLUME *volume
    vfs_request_t *next                  # header queue
    # in
    uint64_t unique
    uint64_t nodeid
    uint32_t opcode
    int within_listing                   # the lookup of one name of a listing: part of the READDIRPLUS
    void *listing                        # a READDIR's or READDIRPLUS' listing_t while it is under way (listing.pyx)
    vfs_request_t *inner                 # and the lookup in it that stopped
    vfs_request_t *outer                 # inner: the listing
    char *message                        # held by a filter: the memory that name, buffer and so on lie in,
    char *answer                         # and what the answer will be written from (waits.pyx); freed with it
    pthread_t loop                       # Request.park(): the thread it was called by
    int resumed                          # Request.wait(), under holds_t.lock: it may go on; 2: the request is done
    int nowait                           # stop instead of blocking (the IRP lane's loop)
    int on_device                        # run by a device thread: what a filter refuses as fast I/O goes on elsewhere
    wait_function announce_wait          # for each of its operations (stack.about_to_wait); NULL: it may wait
    void *reader                         # whose announce_wait() it is
    int fast_io_refused                  # some filter has: offered as an IRP from then on
    REQUESTOR who
    fuse_in_t arguments
    const char *name                     # valid until the request is done
    const char *name2                    # rename, link: new name; symlink: target
    uint16_t name_length
    uint16_t name2_length
    void *buffer                         # read, write, getxattr, listxattr, setxattr, readdir, readlink, statfs; ioctl: what it gives
    uint32_t buffer_length
    const void *input                    # ioctl: what it takes
    uint32_t input_length
    # out
    int error                            # positive errno, 0: done
    uint64_t length                      # bytes in buffer
    uint64_t out_nodeid                  # entry: what the kernel shall know it by (a lookup was counted)
    uint64_t out_generation
    uint64_t out_fh
    uint32_t out_open_flags              # FOPEN_*
    int32_t out_backing_id               # with FOPEN_PASSTHROUGH
    statx_t info                         # entry and attributes
    lock_range_t lock                    # getlk: the lock in the way; type F_UNLCK: none
    double entry_timeout, attr_timeout   # seconds
    # coherence=lease (coherence.pyx)
    int64_t begun                        # CLOCK_MONOTONIC, nanoseconds: nothing that it answers with is older
    uint32_t leased                      # node_t.leased then
    int covered                          # later changes of what it answers with will be noticed
    # what the base found
    node_t *found                        # entry: one lookup is counted for it until the request is done
    int info_known                       # info holds what the base has just seen: no need to ask again
    # the engine's own (requests.pyx)
    const step_t *plan
    int step
    int started                          # operations begun so far
    int resumable                        # the current step's operation has begun and stopped
    int closing                          # the plan closes what a failed open has left open below failed_by
    int opened                           # the plan's CREATE has succeeded: CLEANUP and CLOSE are owed
    int bypass_vetoed                    # a filter does not want this open bypassed
    int failed                           # NTSTATUS of the step that failed
    int64_t listed                       # DIRECTORY_CONTROL: bytes of entries that the base gave last,
    int64_t listed_to                    # and the offset that the directory goes on at behind them
    FILE_OBJECT *file
    FILE_OBJECT synthesised
    handle_t *handle                     # the handle the request goes by, or the one it opens
    handle_t *source                     # copy_file_range: where from
    step_t injected[2]                   # opcode 0: the operation that it consists of, and its end (Volume.inject())
    int acquired                         # an ACQUIRE_FOR_* has succeeded: its RELEASE_FOR_* is owed
    lock_wait_t waiting                  # a SETLKW whose lock somebody else has
    node_t *node                         # the node it goes by, with a reference
    node_t *directory
    node_t *directory2
    const FLT_INSTANCE *initiator        # the filter that started it (filter_io.pyx): seen by lower instances only; NULL: a program did
    char *reparse                        # where a filter has sent it, from the root on, and how long that is (reparse.pyx)
    char *reparsed                       # the path before, in which its name lies
    uint32_t reparse_length
    int reparses                         # how often, what was looked up on the way included
    FILE_OBJECT *target                  # by handle, where a filter started it: the file object, which lives until it is done
    const FLT_INSTANCE *failed_by        # the instance whose post failed the CREATE that the base had carried out
    callback_list_t *failed_list         # the CREATE's, kept so that failed_by lives until the file is closed below it
    operation_t operation

cdef vfs_request_t *request_new(FLT_VOLUME *volume) noexcept nogil        # from a pool, zeroed; NULL: no memory
cdef void request_free(vfs_request_t *request) noexcept nogil
cdef void request_leave_reader(vfs_request_t *request) noexcept nogil    # it goes on elsewhere, where it may wait
cdef void request_reset(vfs_request_t *request, FLT_VOLUME *volume) noexcept nogil    # as new, for one that was done
cdef enum:
    REQUEST_TO_IRP_LANE = -1
    POLL_ALWAYS_READY = 0x145            # POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM
# 1: answered (error and the out fields are set). 0: stopped because the base would block (nowait): call request_wait()
# in a thread that may block, without the GIL, then request_run() again where it was first called; or request_abandon(),
# which ends it there as cancelled. REQUEST_TO_IRP_LANE (on_device): a filter refused fast I/O: clear on_device and call
# request_run() again on the IRP lane.
# It may also have stopped because a filter holds it (request_is_held()), on every lane, or because somebody else has the
# lock that a SETLKW wants (request.waiting.wanted). Then no thread has to wait: request_park().
cdef int request_run(vfs_request_t *request) noexcept nogil
cdef void request_wait(vfs_request_t *request) noexcept nogil
cdef bint request_is_held(vfs_request_t *request) noexcept nogil
# Set request.waiting.woken and .context. 1: until one of the two is called, once, from any thread, the request is not to be
# touched. woken(&request.waiting), when the lock may be free: request_run() again, but not there, which may be deep inside a
# walk. resumed(request), when the filter has completed it: request_run() again right there, since an operation goes on in
# the thread that completes it; then holds_leave() (pending.pxd). A listing's inner lookup is handed over as `request`
# too: request_outermost(). 0: request_run() again now.
# (request_wait() waits in place: for a lock at most LOCK_RETRY, for a filter as long as it takes; then request_run() again.)
cdef int request_park(vfs_request_t *request, resume_function resumed) noexcept nogil
cdef inline vfs_request_t *request_outermost(void *request) noexcept nogil:
    return <vfs_request_t *>request if (<vfs_request_t *>request).outer is NULL else (<vfs_request_t *>request).outer
# A callback of it is `async def`: it is for the IRP lane, if that knows it at all.
cdef bint volume_awaits(FLT_VOLUME *volume, uint32_t opcode) noexcept nogil
# A SETLK or SETLKW that is about to run: from here on an INTERRUPT finds it, however early. request_run() does it too, but a
# device that lets others read INTERRUPTs meanwhile must have done it before it says that it has the request.
cdef void request_expect_interrupt(vfs_request_t *request) noexcept nogil
cdef void request_abandon(vfs_request_t *request) noexcept nogil          # it will not be run (again); then request_free()
# INTERRUPT: 1: that request may wait for a lock, or is held: it is woken, and its next try answers EINTR, or its filter is told.
# 0: there is no such request (yet: see holds_t.interrupted).
cdef int volume_interrupt(FLT_VOLUME *volume, uint64_t unique) noexcept nogil
cdef void volume_cancel_locks(FLT_VOLUME *volume) noexcept nogil          # the same for every one
# To be called every LOCK_RETRY milliseconds while it says that somebody waits: releases beside the mount show nowhere else.
cdef uint32_t volume_retry_locks(FLT_VOLUME *volume) noexcept nogil
# One user of an open file less; the last one closes its descriptor and gives back what it holds.
cdef void put_handle(backing_t *backing, handle_t *handle) noexcept nogil
