# The filter stack of one volume: callback lists by operation, and the walk down and up (docs/semantics.md, A1, A4, A6).
#
# Who may touch what: a callback list is immutable once published; FLT_VOLUME.lists changes only under
# FLT_VOLUME.lock (a spin lock held for a few instructions, never across a call). Each operation holds one
# reference on the list it walks, so the list's instances live until the last operation has let go.
# An operation_t belongs to one thread at a time: whoever runs or resumes it. While a filter holds it (pending.pxd) it is
# that filter's, but for operation_t.held and .hold, which holds_t.lock guards.

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from stackfs.cext.callback_data cimport (
    FILE_OBJECT, FILTER_ABI, FLT_CALLBACK_DATA, FLT_FILTER, FLT_INSTANCE, FLT_IO_PARAMETER_BLOCK, FLT_RELATED_OBJECTS, FLT_VOLUME,
    context_t, IO_STATUS_BLOCK, PFLT_POST_OPERATION_CALLBACK, PFLT_PRE_OPERATION_CALLBACK)
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.python_contexts cimport VolumeContexts
from stackfs.cext.python_names cimport InstanceNames
from stackfs.cext.threads cimport stackfs_spin_lock, stackfs_spin_unlock

cdef enum:
    MAJOR_FUNCTIONS = 256
    INLINE_LAYERS = 12
    # A native callback that makes no system call for which it matters who the thread is: it may then run with the
    # rights of the caller (impersonation.pxd), which spares two changes an operation. All others run as the daemon.
    CALLBACK_AS_ANYBODY = 0x80000000
    # A native callback that is not called while its instance is asleep (instance_sleep()): where no other instance has registered
    # the operation, it then costs what it costs when nobody has.
    CALLBACK_SLEEPS = 0x40000000

# What clears the way again, or closes, reaches the base whatever a filter does: CLEANUP and CLOSE, and each RELEASE_FOR_*.
cdef inline bint is_release(uint8_t major) noexcept nogil:
    return (major & ~0x10) == 2 or (major >= 0xfa and not major & 1)

# Operations that stand beside those a request consists of, and take place only where somebody registers them (D19).
cdef inline bint is_notice(int major) noexcept nogil:
    return major >= 0xfa or major == 0xf3 or major == 0x01 or major == 0x13

# Called in the thread of an operation that is about to take away bytes of a file which the instance has a section of (B2.8).
ctypedef int (*PFLT_SECTION_CONFLICT_NOTIFICATION_CALLBACK)(
    FLT_INSTANCE *Instance, void *SectionContext, FLT_CALLBACK_DATA *Data) noexcept nogil

# FLT_INSTANCE.Failed. A failed `fail` instance answers EIO, a failed `pass` one is passed by; so is one that is being torn
# down, by operations that have not come to it yet.
cdef enum:
    INSTANCE_FAILED = 1
    INSTANCE_LEAVING = 2

cdef struct FLT_FILTER:
    const char *Name                     # UTF-8, NUL-terminated
    PyObject *Object                     # the filter's Python object (borrowed from its owner)
    void *Contexts                       # filter_contexts_t * (contexts.pxd): what it has registered, or NULL

ctypedef struct callback_t:
    PFLT_PRE_OPERATION_CALLBACK pre      # NULL: none
    PFLT_POST_OPERATION_CALLBACK post
    FLT_INSTANCE *instance
    uint32_t flags                       # FLTFL_OPERATION_REGISTRATION_*, CALLBACK_AS_ANYBODY

cdef struct FLT_INSTANCE:
    FLT_RELATED_OBJECTS Related          # handed to every callback, FileObject filled in per operation
    const char *Name
    const char *Altitude                 # canonical: no needless zeros, at most one '.'
    PyObject *Object                     # the Python Instance (borrowed: it lives until its lists are unreferenced)
    PyObject *Entry                      # the InstanceEntry that owns this (borrowed)
    void *Context                        # a native filter's own, set in its instance set-up
    bint PassOnError                     # on_error = pass
    int Failed                           # atomic: INSTANCE_* bits
    uint32_t Errors                      # atomic
    int IoPending                        # atomic: I/O that its filter has started and that is under way (filter_io.pyx)
    int IoEnded                          # atomic: its filter starts no more
    PyObject *PythonPre[256]             # bound methods (borrowed from Object), or NULL
    PyObject *PythonPost[256]
    context_t *Contexts                  # the instance context (contexts.pyx guards these three)
    context_t *OwnedContexts[7]          # all of its contexts, by type
    int ContextsClosed                   # it is being torn down: none can be set any more
    callback_t *Verified                 # [256]: what it has registered, while the verifier encloses it (verifier.pyx); or NULL
    void *NameProvider                   # name_provider_t * (names.pxd), or NULL: names are the same above it as below
    int DataScan                         # atomic: FltRegisterForDataScan has been called
    int Asleep                           # atomic: its callbacks with CALLBACK_SLEEPS are not called; written under FLT_VOLUME.lock
    PFLT_SECTION_CONFLICT_NOTIFICATION_CALLBACK SectionConflict      # NULL: none, or Python's
    PyObject *PythonSectionConflict

cdef struct operation_t

ctypedef struct callback_list_t:
    long references                      # atomic: 1 for being published, 1 for whoever holds it without walking it
    long walkers                         # operations that walk it; under FLT_VOLUME.lock
    operation_t *operations              # those that walk it, newest first; under FLT_VOLUME.lock
    uint32_t count
    int awaits                           # some callback is `async def`: never offered as fast I/O, and not to the device lane
    callback_t callbacks[0]              # highest altitude first

# layer_t.post_owed; 0: none is
cdef enum:
    POST_OWED = 1
    POST_SYNCHRONISED = 2                # in the thread of the pre (FLT_PREOP_SYNCHRONIZE)
    POST_REISSUED = 3                    # being called, and has sent the operation down again

ctypedef struct layer_t:
    void *context
    FLT_IO_PARAMETER_BLOCK *parameters   # what this layer received, saved when it changed them; NULL: unchanged
    uint8_t post_owed                    # POST_..., or 0

ctypedef enum operation_state_t:
    OPERATION_GOING_DOWN
    OPERATION_AT_BASE
    OPERATION_GOING_UP
    OPERATION_DONE
    OPERATION_PENDED_PRE                 # a pre callback returned FLT_PREOP_PENDING
    OPERATION_PENDED_POST                # a post callback returned FLT_POSTOP_MORE_PROCESSING_REQUIRED

cdef struct holds_t                      # pending.pxd
ctypedef void (*wait_function)(operation_t *op, bint surely) noexcept nogil
ctypedef void (*cancel_function)(operation_t *op, void *context) noexcept nogil
ctypedef void (*resume_function)(void *request) noexcept nogil

ctypedef struct hold_t:                  # pending.pyx's part; meaningless until op.held says something
    operation_t *next                    # of those that are held, by volume
    operation_t *previous
    const FLT_INSTANCE *instance         # whose callback holds it, or is about to
    FLT_RELATED_OBJECTS related          # for a Python callback's data, which then outlives the callback
    IO_STATUS_BLOCK before               # as the callback found it
    int layer                            # whose completion it is: two may not complete one hold
    int status                           # FLT_PREOP_*, as the completion said
    void *context                        # the completion context that came with it
    cancel_function cancel               # called once, by whoever cancels; NULL: cancelling only marks it
    void *cancel_context
    void *queue_context                  # where its cancel-safe queue notes that it is there (cancel_safe_queue.pxd), or NULL
    PyObject *face                       # queued by Python: its CallbackData (cancel_safe_queue.pyx)
    resume_function resume               # goes on with op.request, in the thread that completes

cdef struct operation_t:
    FLT_CALLBACK_DATA data               # first: a callback's Data is the operation
    FLT_VOLUME *volume
    callback_list_t *list
    FLT_IO_PARAMETER_BLOCK current       # as the next layer receives them
    operation_state_t state
    int index                            # next layer down, or last layer gone up through
    int bottom                           # the walk went down to here: count, or the layer that completed it
    int would_block                      # base: stop instead of blocking; set again by base to say that it did
    int base_done                        # the base carried the operation out successfully
    int begins_again                     # 1: a filter said DISALLOW_FASTIO or DISALLOW_FSFILTER_IO: as an IRP; 2: on the list there is now
    const FLT_INSTANCE *failed_by        # the instance whose post failed an operation that the base had carried out
    void *request                        # the vfs_request_t it is part of (requests.pxd), or NULL
    wait_function announce_wait          # see about_to_wait(); NULL: whoever runs it may wait as long as it likes
    PyObject *buffer_owner               # the Python object behind the request's buffer (borrowed), or NULL
    int buffer_read_only
    int held                             # HOLD_* bits (pending.pxd)
    int owner_busy                       # atomic: whoever runs it is changing what a drain reads (drain.pxd has the protocol)
    int drained_by                       # atomic: the drain that reads it, and that its owner waits for; 0: none
    PyObject *keep                       # a list that keeps alive what Python callbacks put into the parameters, or NULL
    FLT_IO_PARAMETER_BLOCK *passed_down  # on the way up: what the last layer that had changed something passed down (buffers.pyx),
    int passed_down_by                   # and which one that is
    void *mdls                           # those FltLockUserBuffer made
    void *system_buffer                  # the manager's own, once a filter has swapped it
    FLT_INSTANCE *retargeted             # a filter has sent it to another volume: the base's part is done there (retarget.pyx)
    void *status_wanted                  # who asked what comes of it below (operation_status.pyx), or NULL
    layer_t *layers
    # Not zeroed by operation_begin():
    FLT_IO_PARAMETER_BLOCK shown         # the copy a callback sees and may change (data.Iopb): of `current`, before each
    layer_t inline_layers[12]
    hold_t hold
    operation_t *next                    # of list.operations
    operation_t **at                     # what points to this one
    operation_t *next_drained            # of those that one drain has taken

ctypedef void (*base_function)(operation_t *op) noexcept nogil
ctypedef void (*call_post_function)(operation_t *op, int layer) noexcept nogil                 # drain.pxd
ctypedef void (*volume_function)(FLT_VOLUME *volume) noexcept nogil
ctypedef void (*conflict_function)(operation_t *op) noexcept nogil
ctypedef bint (*target_function)(const operation_t *op, const FLT_INSTANCE *instance) noexcept nogil

cdef struct FLT_VOLUME:
    int lock                             # spin: guards the pointers in lists and taking a reference on what they point to
    callback_list_t *lists[256]          # NULL: nobody registered
    uint8_t asleep[256]                  # atomic, written under the lock: all of the list's callbacks are asleep
    uint64_t next_request                # atomic
    base_function base
    base_function other_base             # of an operation that a filter has sent to another volume (retarget.pyx), and whether it may
    target_function target_is_legal
    void *nodes                          # inode_table_t* (inode_table.pxd)
    void *backing                        # backing_t* (backing.pxd)
    holds_t *holds
    volume_function close_files          # those that filters have opened here (filter_names.pyx), at the volume's end; NULL: never any
    int sections                         # atomic: sections for data scans that are open here (sections.pyx)
    conflict_function section_conflict   # tells their filters of an operation, in its thread
    volume_function close_sections       # at the volume's end; both NULL: never any
    PyObject *Object                     # the Python Volume (borrowed)
    double entry_timeout, attr_timeout   # seconds, while every instance's answers are cacheable
    int direct_io                        # cache=strict: no page cache above the stack
    int locks                            # locks=stack: file locks are requests, and each close(2) has to reach us
    int keep_cache                       # exclusive: an open need not throw away what the page cache holds
    int writeback                        # writes stay in the page cache until it writes them back
    int filters_names_or_data            # some instance's answers are not cacheable: entry and attribute time-outs are 0
    int awaits                           # how many published lists have `awaits`
    int notices                          # how many published lists are of an is_notice() operation
    context_t *Contexts                  # volume contexts (contexts.pyx guards both)
    int ContextsClosed                   # the volume ends
    const char *Name                     # what names begin with (names.pyx); NULL: nothing
    uint16_t NameLength

cdef extern from *:
    """
    #define stackfs_hold_list(callbacks) ((void)__atomic_add_fetch(&(callbacks)->references, 1, __ATOMIC_ACQ_REL))
    #define list_release(callbacks)      ((void)__atomic_add_fetch(&(callbacks)->references, -1, __ATOMIC_ACQ_REL))
    """
    void stackfs_hold_list(callback_list_t *callbacks) nogil
    void list_release(callback_list_t *callbacks) nogil

# <0, 0, >0, as numbers, digit by digit: digits with at most one '.'; zeros before and behind mean nothing (A1.3).
cdef inline int compare_altitudes(const char *a, const char *b) noexcept nogil:
    cdef size_t whole_a = 0, whole_b = 0
    cdef char digit_a, digit_b
    while a[0] == c'0':
        a += 1
    while b[0] == c'0':
        b += 1
    while a[whole_a] != 0 and a[whole_a] != c'.':
        whole_a += 1
    while b[whole_b] != 0 and b[whole_b] != c'.':
        whole_b += 1
    if whole_a != whole_b:
        return 1 if whole_a > whole_b else -1
    while a[0] != 0 or b[0] != 0:        # equally many whole digits; the shorter fraction goes on with zeros
        digit_a = c'0' if a[0] == 0 or a[0] == c'.' else a[0]
        digit_b = c'0' if b[0] == 0 or b[0] == c'.' else b[0]
        if digit_a != digit_b:
            return 1 if digit_a > digit_b else -1
        a += a[0] != 0
        b += b[0] != 0
    return 0

# The instances that provide names (names.pyx) are published as a list of their own, at the index of no operation.
cdef enum:
    NAME_PROVIDERS = 0x40

# A list with a reference, given back with list_release(); NULL: nobody.
cdef inline callback_list_t *list_hold(FLT_VOLUME *volume, int index) noexcept nogil:
    cdef callback_list_t *callbacks
    stackfs_spin_lock(&volume.lock)
    callbacks = volume.lists[index]
    if callbacks is not NULL:
        stackfs_hold_list(callbacks)
    stackfs_spin_unlock(&volume.lock)
    return callbacks

# The walk. run() returns 1 when the operation is done. 0: it stopped. Either at the base (OPERATION_AT_BASE), because that
# would block: then call operation_base() in a thread that may wait, and run() again in the first one. Or because a filter
# holds it (OPERATION_PENDED_*): once it has been completed (pending.pxd), operation_resume(), then run().
cdef void operation_begin(operation_t *op, FLT_VOLUME *volume, uint8_t major) noexcept nogil   # zeroes op; then fill op.current
cdef int operation_run(operation_t *op) noexcept nogil
cdef void operation_base(operation_t *op) noexcept nogil
cdef void operation_resume(operation_t *op) noexcept nogil
cdef void operation_only_below(operation_t *op, const FLT_INSTANCE *above) noexcept nogil      # begun: only instances lower than `above`
# True: an instance that registers `major` does not see this operation go down (it did not register it, or only its post).
cdef bint operation_hidden_from(operation_t *op, uint8_t major) noexcept nogil
# Before anything that waits: for a filter, for the disk. Whoever runs the operation then sees to it that others can do what it
# would have done next. about_to_call(): before a callback that may wait, or take long.
cdef inline void about_to_wait(operation_t *op) noexcept nogil:
    if op.announce_wait is not NULL:
        op.announce_wait(op, True)
cdef inline void about_to_call(operation_t *op) noexcept nogil:
    if op.announce_wait is not NULL:
        op.announce_wait(op, False)
# Operations that begin from now on come, or do not come, to its callbacks with CALLBACK_SLEEPS. For an instance that is attached,
# from any thread; what has begun before goes on as it began.
cdef void instance_sleep(FLT_INSTANCE *instance, bint asleep) noexcept nogil
cdef void operation_end(operation_t *op) noexcept nogil                                        # drops the list reference
cdef callback_list_t *operation_take_list(operation_t *op) noexcept nogil                      # its reference is the caller's now; not NULL
cdef void operation_join_list(operation_t *op, callback_list_t *callbacks) noexcept nogil         # walks the list of one that has it
cdef bint operation_listed(FLT_VOLUME *volume, int major) noexcept nogil                       # did anybody register it, just now

cdef class Stack(VolumeContexts):
    """The stack of one volume: publishes callback lists (see stack.pyi)."""
    cdef FLT_VOLUME volume
    cdef readonly list entries           # InstanceEntry, highest altitude first
    cdef list retired                    # replaced lists, until unreferenced
    cdef list held                       # what FLT_VOLUME points to, kept alive
    cdef int names_differ(self) except -1
    cdef publish_for(self, InstanceEntry entry)
    cdef callback_list_t *exchange(self, int major, callback_list_t *new) noexcept

cdef class InstanceEntry(InstanceNames):
    """Owns one FLT_INSTANCE and keeps alive what it points to."""
    cdef FLT_INSTANCE instance
    cdef FLT_FILTER filter
    cdef callback_t operations[256]      # instance NULL: not registered
    cdef set awaiting                    # operations with an `async def` callback
    cdef readonly object object          # stackfs' Instance
    cdef readonly bytes name
    cdef readonly bytes altitude
    cdef readonly bytes filter_name
    cdef list kept
    cdef bint awaits(self, int major, callback) except -1

cdef class NativeOperations:
    """A native filter's registration table: (major, flags, pre, post), filled by the filter's own Cython code."""
    cdef callback_t operations[256]
    cdef PFLT_SECTION_CONFLICT_NOTIFICATION_CALLBACK section_conflict    # or NULL
    cdef void *name_provider             # name_provider_t * (names.pxd), which outlives this, or NULL
    cdef int abi                         # what the filter was compiled with: set() is part of the filter's own code
    cdef inline void set(self, int major, PFLT_PRE_OPERATION_CALLBACK pre, PFLT_POST_OPERATION_CALLBACK post,
                         uint32_t flags) noexcept:
        self.abi = FILTER_ABI
        self.operations[major] = callback_t(pre, post, NULL, flags)

cdef void operation_keep(operation_t *op, list things)          # alive until it ends: what a Python callback put into it
cdef void report_forgotten(operation_t *op)                      # a Python callback's data went away while it held op
cdef void report_exception(FLT_INSTANCE *instance, operation_t *op, str routine, error)
cdef FLT_INSTANCE *instance_pointer(object entry) except NULL    # an InstanceEntry's struct, for a native filter's set-up
