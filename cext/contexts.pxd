# Contexts: what a filter keeps with a volume, an instance, a file, a stream, an open file or a section
# (docs/semantics.md, B2).
#
# Explicit reference counts: allocating gives one, setting adds one, getting adds one, each release takes one away; whoever
# takes away the last one runs the cleanup callback, without any lock, with the daemon's rights. Nothing is left to the
# garbage collector.
#
# One mutex, process-wide and a leaf, guards which context is linked to what: the lists that hang on FLT_VOLUME,
# FLT_INSTANCE, node_t and FILE_OBJECT, and the lists by owner. It is held for a few instructions; no callback runs, nothing
# is allocated, and the GIL is never taken under it. Counts are atomic.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_FILTER, FLT_INSTANCE, FLT_RELATED_OBJECTS, FLT_VOLUME, context_t
from stackfs.cext.ntstatus cimport NTSTATUS

cpdef enum ContextType:
    FLT_VOLUME_CONTEXT = 0x1
    FLT_INSTANCE_CONTEXT = 0x2
    FLT_FILE_CONTEXT = 0x4
    FLT_STREAM_CONTEXT = 0x8
    FLT_STREAMHANDLE_CONTEXT = 0x10
    FLT_TRANSACTION_CONTEXT = 0x20       # there are no transactions here: none can be allocated
    FLT_SECTION_CONTEXT = 0x40
    FLT_ALL_CONTEXTS = 0x7F

cpdef enum ContextRegistrationFlags:
    FLTFL_CONTEXT_REGISTRATION_NO_EXACT_SIZE_MATCH = 1

cpdef enum ContextSize:
    FLT_VARIABLE_SIZED_CONTEXTS = 0xFFFF

cpdef enum SetContextOperation:
    FLT_SET_CONTEXT_REPLACE_IF_EXISTS = 0
    FLT_SET_CONTEXT_KEEP_IF_EXISTS = 1

cpdef enum PoolType:
    NonPagedPool = 0
    PagedPool = 1
    NonPagedPoolNx = 512

cdef enum:
    CONTEXT_TYPES = 7
    CONTEXT_DEFINITIONS = CONTEXT_TYPES * 4      # of each type three fixed sizes and a variable one

ctypedef void *PFLT_CONTEXT              # the filter's own part: as many bytes as it asked for, zeroed

ctypedef void (*PFLT_CONTEXT_CLEANUP_CALLBACK)(PFLT_CONTEXT Context, uint16_t ContextType) noexcept nogil
ctypedef void *(*PFLT_CONTEXT_ALLOCATE_CALLBACK)(int PoolType, size_t Size, uint16_t ContextType) noexcept nogil
ctypedef void (*PFLT_CONTEXT_FREE_CALLBACK)(void *Pool, uint16_t ContextType) noexcept nogil

ctypedef struct FLT_CONTEXT_REGISTRATION:
    uint16_t ContextType
    uint16_t Flags
    PFLT_CONTEXT_CLEANUP_CALLBACK ContextCleanupCallback         # NULL: none
    size_t Size                          # bytes, or FLT_VARIABLE_SIZED_CONTEXTS
    uint32_t PoolTag
    PFLT_CONTEXT_ALLOCATE_CALLBACK ContextAllocateCallback       # of Size bytes, the manager's part included; NULL: the manager's
    PFLT_CONTEXT_FREE_CALLBACK ContextFreeCallback

ctypedef struct FLT_RELATED_CONTEXTS:
    PFLT_CONTEXT VolumeContext
    PFLT_CONTEXT InstanceContext
    PFLT_CONTEXT FileContext
    PFLT_CONTEXT StreamContext
    PFLT_CONTEXT StreamHandleContext
    PFLT_CONTEXT TransactionContext

ctypedef struct FLT_RELATED_CONTEXTS_EX:
    PFLT_CONTEXT VolumeContext
    PFLT_CONTEXT InstanceContext
    PFLT_CONTEXT FileContext
    PFLT_CONTEXT StreamContext
    PFLT_CONTEXT StreamHandleContext
    PFLT_CONTEXT TransactionContext
    PFLT_CONTEXT SectionContext

cdef struct filter_contexts_t

cdef struct context_t:                   # stands before the filter's own part: a multiple of 16 bytes, as malloc aligns
    long references                      # atomic
    filter_contexts_t *filter
    int definition                       # which registration it was made by
    uint16_t type
    uint16_t size                        # bytes of the filter's own part
    uint8_t python                       # the filter's own part is a PyObject *: the Context it belongs to
    uint8_t sectioned                    # a section has been created with it (sections.pyx)
    void *owner                          # what it is found by: FLT_INSTANCE *, or of a volume context the filter
    context_t **list                     # the object's list it is linked to, or NULL
    context_t *next                      # on that list
    context_t **owner_list               # the same context on its owner's list
    context_t *owner_next
    context_t *owner_previous

cdef struct filter_contexts_t:           # what one filter has registered; lives until its last context has gone
    long references                      # atomic: one for being registered, one for each context
    PyObject *face                       # the FilterContexts (borrowed), or NULL: it has gone
    int closed                           # under the mutex: no context is made any more
    int count
    FLT_CONTEXT_REGISTRATION definitions[28]
    PyObject *python[28]                 # a definition of Python's (a tuple, owned), or NULL
    uint8_t python_allocates[28]         # it has an allocate callback
    void (*end)(context_t *context) noexcept         # Python's: the context's cleanup; called with the GIL
    PyObject *report                     # called when a cleanup callback of Python's raised (owned), or NULL
    context_t *volumes                   # the owner's list of volume contexts
    long outstanding[7]                  # atomic: contexts that have not gone, by type

# --- the DDI's routines. All of them may be called by any thread that holds what it names (an operation holds its file
# object, node and instance). None may be called with a lock held that a cleanup callback could want.

cdef NTSTATUS FltAllocateContext(
    FLT_FILTER *Filter, uint16_t ContextType, size_t ContextSize, int PoolType, PFLT_CONTEXT *ReturnedContext) noexcept nogil
cdef NTSTATUS FltSetVolumeContext(
    FLT_VOLUME *Volume, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil
cdef NTSTATUS FltSetInstanceContext(
    FLT_INSTANCE *Instance, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil
cdef NTSTATUS FltSetFileContext(
    FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil
cdef NTSTATUS FltSetStreamContext(
    FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil
cdef NTSTATUS FltSetStreamHandleContext(
    FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil
cdef NTSTATUS FltGetVolumeContext(FLT_FILTER *Filter, FLT_VOLUME *Volume, PFLT_CONTEXT *Context) noexcept nogil
cdef NTSTATUS FltGetInstanceContext(FLT_INSTANCE *Instance, PFLT_CONTEXT *Context) noexcept nogil
cdef NTSTATUS FltGetFileContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *Context) noexcept nogil
cdef NTSTATUS FltGetStreamContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *Context) noexcept nogil
cdef NTSTATUS FltGetStreamHandleContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *Context) noexcept nogil
cdef NTSTATUS FltGetSectionContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *Context) noexcept nogil
cdef NTSTATUS FltDeleteVolumeContext(FLT_FILTER *Filter, FLT_VOLUME *Volume, PFLT_CONTEXT *OldContext) noexcept nogil
cdef NTSTATUS FltDeleteInstanceContext(FLT_INSTANCE *Instance, PFLT_CONTEXT *OldContext) noexcept nogil
cdef NTSTATUS FltDeleteFileContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *OldContext) noexcept nogil
cdef NTSTATUS FltDeleteStreamContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *OldContext) noexcept nogil
cdef NTSTATUS FltDeleteStreamHandleContext(
    FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *OldContext) noexcept nogil
cdef void FltDeleteContext(PFLT_CONTEXT Context) noexcept nogil
cdef void FltReferenceContext(PFLT_CONTEXT Context) noexcept nogil
cdef void FltReleaseContext(PFLT_CONTEXT Context) noexcept nogil
cdef void FltGetContexts(
    const FLT_RELATED_OBJECTS *FltObjects, uint16_t DesiredContexts, FLT_RELATED_CONTEXTS *Contexts) noexcept nogil
cdef NTSTATUS FltGetContextsEx(
    const FLT_RELATED_OBJECTS *FltObjects, uint16_t DesiredContexts, size_t ContextsSize, FLT_RELATED_CONTEXTS_EX *Contexts) noexcept nogil
cdef void FltReleaseContexts(FLT_RELATED_CONTEXTS *Contexts) noexcept nogil
cdef void FltReleaseContextsEx(size_t ContextsSize, FLT_RELATED_CONTEXTS_EX *Contexts) noexcept nogil
cdef bint FltSupportsFileContexts(const FILE_OBJECT *FileObject) noexcept nogil
cdef bint FltSupportsFileContextsEx(const FILE_OBJECT *FileObject, const FLT_INSTANCE *Instance) noexcept nogil
cdef bint FltSupportsStreamContexts(const FILE_OBJECT *FileObject) noexcept nogil
cdef bint FltSupportsStreamHandleContexts(const FILE_OBJECT *FileObject) noexcept nogil

cdef extern from *:
    """
    /* A list's head is looked at without the mutex by whoever is its object's last user. */
    #define contexts_any(list)      (__atomic_load_n(list, __ATOMIC_ACQUIRE) != NULL)
    #define add_long(what, by)      __atomic_add_fetch(what, by, __ATOMIC_ACQ_REL)
    #define load_signed(what)       __atomic_load_n(what, __ATOMIC_ACQUIRE)
    """
    bint contexts_any(context_t **list) nogil
    long add_long(long *what, long by) nogil
    long load_signed(long *what) nogil

# --- for the core.
# An object goes: its contexts are unlinked, stream before file, and the links' references released. Only by whoever is the
# object's last user, and without locks.
cdef void contexts_gone(context_t **list) noexcept nogil
# An inode gives its node to another inode: its contexts hang on `to` instead, which is empty, until contexts_gone(to). May be
# called under the inode table's mutex.
cdef void contexts_move(context_t **list, context_t **to) noexcept nogil
# An instance is being torn down: no context of it can be set any more.
cdef void instance_contexts_close(FLT_INSTANCE *instance) noexcept nogil
# Unlinks up to `most` of its contexts, in the order of A3: stream handle, section, stream, file, instance. How many it found.
cdef int instance_contexts_delete(FLT_INSTANCE *instance, int most) noexcept nogil
# A volume ends: its contexts go, and none can be set any more.
cdef void volume_contexts_close(FLT_VOLUME *volume) noexcept nogil

# A filter is being unregistered: its volume contexts go, and none is made any more.
cdef void filter_contexts_close(filter_contexts_t *filter) noexcept nogil
cdef void filter_contexts_put(filter_contexts_t *filter) noexcept nogil

# --- for python_contexts.pyx: the routines above, by type. volume and filter: of a volume context alone; file: of those that need it.
cdef NTSTATUS context_choose(filter_contexts_t *filter, uint16_t type, size_t size, int pool, int *chosen) noexcept nogil
cdef NTSTATUS context_make(
    filter_contexts_t *filter, int chosen, uint16_t type, size_t size, int pool, context_t **made) noexcept nogil
cdef NTSTATUS set_context(FLT_VOLUME *volume, FLT_INSTANCE *instance, FILE_OBJECT *file, uint16_t type, int operation,
                          PFLT_CONTEXT new, PFLT_CONTEXT *old) noexcept nogil
cdef NTSTATUS get_context(FLT_FILTER *filter, FLT_VOLUME *volume, FLT_INSTANCE *instance, FILE_OBJECT *file, uint16_t type,
                          PFLT_CONTEXT *found) noexcept nogil
cdef NTSTATUS delete_context(FLT_FILTER *filter, FLT_VOLUME *volume, FLT_INSTANCE *instance, FILE_OBJECT *file, uint16_t type,
                             PFLT_CONTEXT *old) noexcept nogil
cdef bint context_linked(const context_t *context) noexcept nogil
cdef bint has_stream(const FILE_OBJECT *file) noexcept nogil         # from a CREATE that succeeded to its CLOSE

cdef inline PFLT_CONTEXT memory_of(context_t *context) noexcept nogil:
    return context + 1

cdef inline context_t *context_of(PFLT_CONTEXT memory) noexcept nogil:
    return <context_t *>memory - 1

cdef inline int index_of(uint16_t type) noexcept nogil:      # 0 to 6; -1: not one type
    cdef int index
    for index in range(CONTEXT_TYPES):
        if type == 1 << index:
            return index
    return -1
