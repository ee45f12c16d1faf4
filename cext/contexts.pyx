"""Contexts: what a filter keeps with a volume, an instance, a file, a stream, an open file or a section (semantics B2).

A context is memory with a reference count in front of it. A native filter's part is bytes; a Python filter's part is the
pointer to a Context, which then has one Python reference for as long as the context lives. What a context is linked to is
a list that hangs on the object (FLT_VOLUME, FLT_INSTANCE, node_t, FILE_OBJECT), with one entry for each filter or instance
and type; it is on a second list of its owner, the instance (or, of a volume's, the filter), by which a teardown finds it.

A link holds one reference. Objects let go of their contexts when their last user lets go of them: a stream when its node
is forgotten and closed, an open file after its CLOSE, an instance at the end of its teardown. Whoever takes the last
reference away runs the cleanup callback, whatever thread that is, with the daemon's rights and no lock.

The mutex guards all links, and `closed` of filters, instances and volumes. It is a leaf: under it nothing is called,
allocated or freed, and the GIL is not taken, so that it may be locked with the GIL held, or the inode table's mutex.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_RELATED_OBJECTS, FO_CLOSED, FO_CREATED
from stackfs.cext.impersonation cimport step_aside, step_back
from stackfs.cext.includes.pthread cimport pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
from stackfs.cext.inode_table cimport node_t  # no-cython-lint: completes the struct
from stackfs.cext.ntstatus cimport (
    NTSTATUS, STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND, STATUS_FLT_CONTEXT_ALREADY_DEFINED, STATUS_FLT_CONTEXT_ALREADY_LINKED,
    STATUS_FLT_DELETING_OBJECT, STATUS_FLT_MUST_BE_NONPAGED_POOL, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_BUFFER_SIZE,
    STATUS_INVALID_PARAMETER, STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED, STATUS_SUCCESS)
from stackfs.cext.pending cimport APC_LEVEL
from stackfs.cext.stack cimport FLT_FILTER, FLT_INSTANCE, FLT_VOLUME  # no-cython-lint: complete the structs
from stackfs.cext.threads cimport load_bits
from stackfs.cext.verifier cimport verifier_level, verifier_on


cdef extern from *:
    """
    #define store_link(at, value)   __atomic_store_n(at, value, __ATOMIC_RELEASE)
    """
    void store_link(context_t **at, context_t *value) nogil

cdef enum:
    LARGEST = 0xFFFF

assert sizeof(context_t) % 16 == 0

cdef pthread_mutex_t mutex
pthread_mutex_init(&mutex, NULL)

# The order in which an instance's contexts go (A3).
cdef uint16_t TEARDOWN_ORDER[5]
TEARDOWN_ORDER[:] = [FLT_STREAMHANDLE_CONTEXT, FLT_SECTION_CONTEXT, FLT_STREAM_CONTEXT, FLT_FILE_CONTEXT, FLT_INSTANCE_CONTEXT]


# --- links: functions named *_locked expect the mutex held ---------------------------------------------------------------

cdef context_t *find_locked(context_t **list, const void *owner, uint16_t type) noexcept nogil:
    cdef context_t *context = list[0]
    while context is not NULL and not (context.owner == owner and context.type == type):
        context = context.next
    # A context released once too often is on its way out though it is linked.
    return context if context is not NULL and load_signed(&context.references) > 0 else NULL


cdef void link_locked(context_t *context, context_t **list, void *owner, context_t **owner_list) noexcept nogil:
    context.owner = owner
    context.list = list
    context.next = list[0]
    store_link(list, context)
    context.owner_list = owner_list
    context.owner_previous = NULL
    context.owner_next = owner_list[0]
    if owner_list[0] is not NULL:
        owner_list[0].owner_previous = context
    owner_list[0] = context


cdef void unlink_locked(context_t *context) noexcept nogil:
    cdef context_t **link = context.list
    while link[0] is not context:
        link = &link[0].next
    store_link(link, context.next)
    if context.owner_previous is not NULL:
        context.owner_previous.owner_next = context.owner_next
    else:
        context.owner_list[0] = context.owner_next
    if context.owner_next is not NULL:
        context.owner_next.owner_previous = context.owner_previous
    context.list = NULL
    context.owner = NULL


# --- the end of a context -----------------------------------------------------------------------------------------------

cdef void filter_contexts_put(filter_contexts_t *filter) noexcept nogil:
    cdef int i
    if add_long(&filter.references, -1) > 0:
        return
    with gil:
        for i in range(filter.count):
            Py_XDECREF(filter.python[i])
        Py_XDECREF(filter.report)
    free(filter)


cdef void end(context_t *context) noexcept nogil:
    """The last reference has gone."""
    cdef filter_contexts_t *filter = context.filter
    cdef FLT_CONTEXT_REGISTRATION *definition = &filter.definitions[context.definition]
    cdef uint16_t type = context.type
    cdef bint aside = step_aside()       # the base may let go of an object in the middle of what it does for a caller
    if context.list is not NULL:         # released once more than it was referenced
        pthread_mutex_lock(&mutex)
        if context.list is not NULL:
            unlink_locked(context)
        pthread_mutex_unlock(&mutex)
    if context.python:
        with gil:
            filter.end(context)
        free(context)
    else:
        if definition.ContextCleanupCallback is not NULL:
            definition.ContextCleanupCallback(memory_of(context), type)
        if definition.ContextFreeCallback is not NULL:
            definition.ContextFreeCallback(context, type)
        else:
            free(context)
    add_long(&filter.outstanding[index_of(type)], -1)
    filter_contexts_put(filter)
    if aside:
        step_back()


cdef void contexts_gone(context_t **list) noexcept nogil:
    cdef context_t *context
    while True:
        pthread_mutex_lock(&mutex)
        context = list[0]
        while context is not NULL and context.type == FLT_FILE_CONTEXT and context.next is not NULL:
            context = context.next       # the file goes when its last stream has gone
        if context is not NULL:
            unlink_locked(context)
        pthread_mutex_unlock(&mutex)
        if context is NULL:
            return
        FltReleaseContext(memory_of(context))


cdef void contexts_move(context_t **list, context_t **to) noexcept nogil:
    cdef context_t *context
    pthread_mutex_lock(&mutex)
    context = list[0]
    store_link(to, context)
    store_link(list, NULL)
    while context is not NULL:
        context.list = to
        context = context.next
    pthread_mutex_unlock(&mutex)


cdef void instance_contexts_close(FLT_INSTANCE *instance) noexcept nogil:
    pthread_mutex_lock(&mutex)
    instance.ContextsClosed = 1
    pthread_mutex_unlock(&mutex)


cdef int instance_contexts_delete(FLT_INSTANCE *instance, int most) noexcept nogil:
    cdef context_t *context
    cdef int found = 0
    cdef int i
    instance_contexts_close(instance)
    for i in range(5):
        while found < most:
            pthread_mutex_lock(&mutex)
            context = instance.OwnedContexts[index_of(TEARDOWN_ORDER[i])]
            if context is not NULL:
                unlink_locked(context)
            pthread_mutex_unlock(&mutex)
            if context is NULL:
                break
            found += 1
            FltReleaseContext(memory_of(context))
    return found


cdef bint context_linked(const context_t *context) noexcept nogil:
    cdef bint linked
    pthread_mutex_lock(&mutex)
    linked = context.list is not NULL
    pthread_mutex_unlock(&mutex)
    return linked


cdef void filter_contexts_close(filter_contexts_t *filter) noexcept nogil:
    cdef context_t *context
    while True:
        pthread_mutex_lock(&mutex)
        filter.closed = 1
        context = filter.volumes
        if context is not NULL:
            unlink_locked(context)
        pthread_mutex_unlock(&mutex)
        if context is NULL:
            return
        FltReleaseContext(memory_of(context))


cdef void volume_contexts_close(FLT_VOLUME *volume) noexcept nogil:
    pthread_mutex_lock(&mutex)
    volume.ContextsClosed = 1
    pthread_mutex_unlock(&mutex)
    contexts_gone(&volume.Contexts)


# --- allocating -----------------------------------------------------------------------------------------------------------

cdef NTSTATUS context_choose(filter_contexts_t *filter, uint16_t type, size_t size, int pool, int *chosen) noexcept nogil:
    """The definition that FltAllocateContext goes by: one with an allocate callback, whatever the size; else the fixed size
    asked for, else the smallest larger one that says NO_EXACT_SIZE_MATCH, else the variable one."""
    cdef const FLT_CONTEXT_REGISTRATION *definition
    cdef size_t best = LARGEST + 1
    cdef size_t fits
    cdef int i
    chosen[0] = -1
    if index_of(type) < 0 or (pool != NonPagedPool and pool != PagedPool and pool != NonPagedPoolNx):
        return STATUS_INVALID_PARAMETER
    if type == FLT_TRANSACTION_CONTEXT:
        return STATUS_NOT_SUPPORTED
    if size > LARGEST:
        return STATUS_INVALID_BUFFER_SIZE
    if type == FLT_VOLUME_CONTEXT and pool == PagedPool:
        return STATUS_FLT_MUST_BE_NONPAGED_POOL
    for i in range(filter.count if filter is not NULL else 0):
        definition = &filter.definitions[i]
        if definition.ContextType != type:
            continue
        if definition.ContextAllocateCallback is not NULL or filter.python_allocates[i]:
            chosen[0] = i
            return STATUS_SUCCESS
        if definition.Size == FLT_VARIABLE_SIZED_CONTEXTS:
            fits = LARGEST               # after every fixed size
        elif definition.Size == size:
            fits = 0
        elif definition.Size > size and definition.Flags & FLTFL_CONTEXT_REGISTRATION_NO_EXACT_SIZE_MATCH:
            fits = definition.Size
        else:
            continue
        if fits < best:
            best = fits
            chosen[0] = i
    return STATUS_SUCCESS if chosen[0] >= 0 else STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND


cdef NTSTATUS context_make(filter_contexts_t *filter, int chosen, uint16_t type, size_t size, int pool, context_t **made) noexcept nogil:
    """A context with one reference."""
    cdef const FLT_CONTEXT_REGISTRATION *definition = &filter.definitions[chosen]
    cdef bint python = filter.python[chosen] is not NULL
    cdef size_t own = sizeof(PyObject *) if python else size
    cdef context_t *context
    cdef int closed
    if not python and definition.ContextAllocateCallback is NULL and definition.Size != FLT_VARIABLE_SIZED_CONTEXTS:
        own = definition.Size
    pthread_mutex_lock(&mutex)
    closed = filter.closed
    if not closed:
        add_long(&filter.references, 1)
        add_long(&filter.outstanding[index_of(type)], 1)
    pthread_mutex_unlock(&mutex)
    if closed:
        return STATUS_FLT_DELETING_OBJECT
    if definition.ContextAllocateCallback is not NULL:
        context = <context_t *>definition.ContextAllocateCallback(pool, sizeof(context_t) + own, type)
        if context is not NULL:
            memset(context, 0, sizeof(context_t) + own)
    else:
        context = <context_t *>calloc(1, sizeof(context_t) + own)
    if context is NULL:
        add_long(&filter.outstanding[index_of(type)], -1)
        filter_contexts_put(filter)
        return STATUS_INSUFFICIENT_RESOURCES
    context.references = 1
    context.filter = filter
    context.definition = chosen
    context.type = type
    context.size = <uint16_t>size
    context.python = python
    made[0] = context
    return STATUS_SUCCESS


cdef NTSTATUS FltAllocateContext(
        FLT_FILTER *Filter, uint16_t ContextType, size_t ContextSize, int PoolType, PFLT_CONTEXT *ReturnedContext) noexcept nogil:
    cdef filter_contexts_t *filter = <filter_contexts_t *>Filter.Contexts
    cdef context_t *context
    cdef int chosen
    cdef NTSTATUS status = context_choose(filter, ContextType, ContextSize, PoolType, &chosen)
    ReturnedContext[0] = NULL
    if status == STATUS_SUCCESS and filter.python[chosen] is not NULL:
        status = STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND         # Python's
    if status == STATUS_SUCCESS:
        status = context_make(filter, chosen, ContextType, ContextSize, PoolType, &context)
    if status == STATUS_SUCCESS:
        ReturnedContext[0] = memory_of(context)
    return status


# --- setting, getting, deleting ---------------------------------------------------------------------------------------------

cdef struct place_t:                     # where a context of one type goes
    context_t **list
    void *owner
    context_t **owner_list
    const int *closed                    # the two that may be going
    const int *closed_too
    filter_contexts_t *filter

cdef int never = 0


cdef bint has_stream(const FILE_OBJECT *file) noexcept nogil:
    """From a CREATE that succeeded to its CLOSE."""
    return file is not NULL and file.Node is not NULL and load_bits(&file.Flags) & (FO_CREATED | FO_CLOSED) == FO_CREATED


cdef NTSTATUS find_place(FLT_FILTER *filter, FLT_VOLUME *volume, FLT_INSTANCE *instance, FILE_OBJECT *file, uint16_t type,
                         place_t *place) noexcept nogil:
    if type == FLT_VOLUME_CONTEXT:
        if volume is NULL or filter is NULL:
            return STATUS_INVALID_PARAMETER
        place.filter = <filter_contexts_t *>filter.Contexts
        place.list = &volume.Contexts
        place.owner = place.filter
        place.closed = &volume.ContextsClosed
        place.closed_too = &never
        if place.filter is not NULL:
            place.owner_list = &place.filter.volumes
            place.closed_too = &place.filter.closed
        return STATUS_SUCCESS
    if type == FLT_TRANSACTION_CONTEXT:
        return STATUS_NOT_SUPPORTED
    if index_of(type) < 0 or instance is NULL:
        return STATUS_INVALID_PARAMETER
    place.filter = <filter_contexts_t *>instance.Related.Filter.Contexts
    place.owner = instance
    place.owner_list = &instance.OwnedContexts[index_of(type)]
    place.closed = &instance.ContextsClosed
    place.closed_too = &never
    if type == FLT_INSTANCE_CONTEXT:
        place.list = &instance.Contexts
        return STATUS_SUCCESS
    if not has_stream(file):
        return STATUS_NOT_SUPPORTED
    place.list = &file.Contexts if type == FLT_STREAMHANDLE_CONTEXT else &file.Node.contexts
    return STATUS_SUCCESS


cdef NTSTATUS set_at(place_t *place, uint16_t type, int operation, PFLT_CONTEXT new, PFLT_CONTEXT *old) noexcept nogil:
    cdef context_t *context
    cdef context_t *existing = NULL
    cdef NTSTATUS status = STATUS_SUCCESS
    if old is not NULL:
        old[0] = NULL
    if new is NULL or (operation != FLT_SET_CONTEXT_REPLACE_IF_EXISTS and operation != FLT_SET_CONTEXT_KEEP_IF_EXISTS):
        return STATUS_INVALID_PARAMETER
    context = context_of(new)
    if context.type != type or context.filter is not place.filter:
        return STATUS_INVALID_PARAMETER
    pthread_mutex_lock(&mutex)
    if place.closed[0] or place.closed_too[0]:
        status = STATUS_FLT_DELETING_OBJECT
    elif context.list is not NULL:
        status = STATUS_FLT_CONTEXT_ALREADY_LINKED
    else:
        existing = find_locked(place.list, place.owner, type)
        if existing is not NULL and operation == FLT_SET_CONTEXT_KEEP_IF_EXISTS:
            status = STATUS_FLT_CONTEXT_ALREADY_DEFINED
            if old is not NULL:
                add_long(&existing.references, 1)
        else:
            if existing is not NULL:
                unlink_locked(existing)
            link_locked(context, place.list, place.owner, place.owner_list)
            add_long(&context.references, 1)
    pthread_mutex_unlock(&mutex)
    if existing is not NULL:
        if old is not NULL:
            old[0] = memory_of(existing)
        elif status == STATUS_SUCCESS:
            FltReleaseContext(memory_of(existing))
    return status


cdef NTSTATUS get_at(place_t *place, uint16_t type, PFLT_CONTEXT *found) noexcept nogil:
    cdef context_t *context
    if not contexts_any(place.list):
        return STATUS_NOT_FOUND
    pthread_mutex_lock(&mutex)
    context = find_locked(place.list, place.owner, type)
    if context is not NULL:
        add_long(&context.references, 1)
    pthread_mutex_unlock(&mutex)
    if context is NULL:
        return STATUS_NOT_FOUND
    found[0] = memory_of(context)
    return STATUS_SUCCESS


cdef NTSTATUS delete_at(place_t *place, uint16_t type, PFLT_CONTEXT *old) noexcept nogil:
    cdef context_t *context
    pthread_mutex_lock(&mutex)
    context = find_locked(place.list, place.owner, type)
    if context is not NULL:
        unlink_locked(context)
    pthread_mutex_unlock(&mutex)
    if context is NULL:
        return STATUS_NOT_FOUND
    if old is not NULL:
        old[0] = memory_of(context)
    else:
        FltReleaseContext(memory_of(context))
    return STATUS_SUCCESS


cdef NTSTATUS set_context(FLT_VOLUME *volume, FLT_INSTANCE *instance, FILE_OBJECT *file, uint16_t type, int operation,
                          PFLT_CONTEXT new, PFLT_CONTEXT *old) noexcept nogil:
    cdef place_t place
    cdef FLT_FILTER named                # a volume's context says itself which filter's it is
    cdef NTSTATUS status
    if verifier_on:
        verifier_level(APC_LEVEL, b"setting a context")
    if old is not NULL:
        old[0] = NULL
    if new is NULL:
        return STATUS_INVALID_PARAMETER
    named.Contexts = context_of(new).filter
    status = find_place(&named, volume, instance, file, type, &place)
    return status if status != STATUS_SUCCESS else set_at(&place, type, operation, new, old)


cdef NTSTATUS get_context(FLT_FILTER *filter, FLT_VOLUME *volume, FLT_INSTANCE *instance, FILE_OBJECT *file, uint16_t type,
                          PFLT_CONTEXT *found) noexcept nogil:
    cdef place_t place
    cdef NTSTATUS status = find_place(filter, volume, instance, file, type, &place)
    if verifier_on:
        verifier_level(APC_LEVEL, b"getting a context")
    found[0] = NULL
    return status if status != STATUS_SUCCESS else get_at(&place, type, found)


cdef NTSTATUS delete_context(FLT_FILTER *filter, FLT_VOLUME *volume, FLT_INSTANCE *instance, FILE_OBJECT *file, uint16_t type,
                             PFLT_CONTEXT *old) noexcept nogil:
    cdef place_t place
    cdef NTSTATUS status = find_place(filter, volume, instance, file, type, &place)
    if old is not NULL:
        old[0] = NULL
    return status if status != STATUS_SUCCESS else delete_at(&place, type, old)


cdef NTSTATUS FltSetVolumeContext(
        FLT_VOLUME *Volume, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil:
    return set_context(Volume, NULL, NULL, FLT_VOLUME_CONTEXT, Operation, NewContext, OldContext)


cdef NTSTATUS FltSetInstanceContext(
        FLT_INSTANCE *Instance, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil:
    return set_context(NULL, Instance, NULL, FLT_INSTANCE_CONTEXT, Operation, NewContext, OldContext)


cdef NTSTATUS FltSetFileContext(
        FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil:
    return set_context(NULL, Instance, FileObject, FLT_FILE_CONTEXT, Operation, NewContext, OldContext)


cdef NTSTATUS FltSetStreamContext(
        FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil:
    return set_context(NULL, Instance, FileObject, FLT_STREAM_CONTEXT, Operation, NewContext, OldContext)


cdef NTSTATUS FltSetStreamHandleContext(
        FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, int Operation, PFLT_CONTEXT NewContext, PFLT_CONTEXT *OldContext) noexcept nogil:
    return set_context(NULL, Instance, FileObject, FLT_STREAMHANDLE_CONTEXT, Operation, NewContext, OldContext)


cdef NTSTATUS FltGetVolumeContext(FLT_FILTER *Filter, FLT_VOLUME *Volume, PFLT_CONTEXT *Context) noexcept nogil:
    return get_context(Filter, Volume, NULL, NULL, FLT_VOLUME_CONTEXT, Context)


cdef NTSTATUS FltGetInstanceContext(FLT_INSTANCE *Instance, PFLT_CONTEXT *Context) noexcept nogil:
    return get_context(NULL, NULL, Instance, NULL, FLT_INSTANCE_CONTEXT, Context)


cdef NTSTATUS FltGetFileContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *Context) noexcept nogil:
    return get_context(NULL, NULL, Instance, FileObject, FLT_FILE_CONTEXT, Context)


cdef NTSTATUS FltGetStreamContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *Context) noexcept nogil:
    return get_context(NULL, NULL, Instance, FileObject, FLT_STREAM_CONTEXT, Context)


cdef NTSTATUS FltGetStreamHandleContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *Context) noexcept nogil:
    return get_context(NULL, NULL, Instance, FileObject, FLT_STREAMHANDLE_CONTEXT, Context)


cdef NTSTATUS FltGetSectionContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *Context) noexcept nogil:
    return get_context(NULL, NULL, Instance, FileObject, FLT_SECTION_CONTEXT, Context)


cdef NTSTATUS FltDeleteVolumeContext(FLT_FILTER *Filter, FLT_VOLUME *Volume, PFLT_CONTEXT *OldContext) noexcept nogil:
    return delete_context(Filter, Volume, NULL, NULL, FLT_VOLUME_CONTEXT, OldContext)


cdef NTSTATUS FltDeleteInstanceContext(FLT_INSTANCE *Instance, PFLT_CONTEXT *OldContext) noexcept nogil:
    return delete_context(NULL, NULL, Instance, NULL, FLT_INSTANCE_CONTEXT, OldContext)


cdef NTSTATUS FltDeleteFileContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *OldContext) noexcept nogil:
    return delete_context(NULL, NULL, Instance, FileObject, FLT_FILE_CONTEXT, OldContext)


cdef NTSTATUS FltDeleteStreamContext(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *OldContext) noexcept nogil:
    return delete_context(NULL, NULL, Instance, FileObject, FLT_STREAM_CONTEXT, OldContext)


cdef NTSTATUS FltDeleteStreamHandleContext(
        FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT *OldContext) noexcept nogil:
    return delete_context(NULL, NULL, Instance, FileObject, FLT_STREAMHANDLE_CONTEXT, OldContext)


cdef void FltDeleteContext(PFLT_CONTEXT Context) noexcept nogil:
    cdef context_t *context = context_of(Context)
    cdef bint linked
    pthread_mutex_lock(&mutex)
    linked = context.list is not NULL
    if linked:
        unlink_locked(context)
    pthread_mutex_unlock(&mutex)
    if linked:
        FltReleaseContext(Context)


cdef void FltReferenceContext(PFLT_CONTEXT Context) noexcept nogil:
    add_long(&context_of(Context).references, 1)


cdef void FltReleaseContext(PFLT_CONTEXT Context) noexcept nogil:
    if add_long(&context_of(Context).references, -1) == 0:
        end(context_of(Context))


cdef void FltGetContexts(
        const FLT_RELATED_OBJECTS *FltObjects, uint16_t DesiredContexts, FLT_RELATED_CONTEXTS *Contexts) noexcept nogil:
    cdef PFLT_CONTEXT *member = &Contexts.VolumeContext
    cdef int i
    for i in range(6):
        member[i] = NULL
        if DesiredContexts & 1 << i:
            get_context(FltObjects.Filter, FltObjects.Volume, FltObjects.Instance, FltObjects.FileObject, <uint16_t>(1 << i),
                        &member[i])


cdef NTSTATUS FltGetContextsEx(
        const FLT_RELATED_OBJECTS *FltObjects, uint16_t DesiredContexts, size_t ContextsSize,
        FLT_RELATED_CONTEXTS_EX *Contexts) noexcept nogil:
    if ContextsSize != sizeof(FLT_RELATED_CONTEXTS_EX) or DesiredContexts & ~<uint16_t>FLT_ALL_CONTEXTS:
        return STATUS_INVALID_PARAMETER
    FltGetContexts(FltObjects, DesiredContexts, <FLT_RELATED_CONTEXTS *>Contexts)
    Contexts.SectionContext = NULL
    if DesiredContexts & FLT_SECTION_CONTEXT:
        FltGetSectionContext(FltObjects.Instance, FltObjects.FileObject, &Contexts.SectionContext)
    return STATUS_SUCCESS


cdef void release_members(PFLT_CONTEXT *member, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        if member[i] is not NULL:
            FltReleaseContext(member[i])
            member[i] = NULL


cdef void FltReleaseContexts(FLT_RELATED_CONTEXTS *Contexts) noexcept nogil:
    release_members(&Contexts.VolumeContext, 6)


cdef void FltReleaseContextsEx(size_t ContextsSize, FLT_RELATED_CONTEXTS_EX *Contexts) noexcept nogil:
    if ContextsSize == sizeof(FLT_RELATED_CONTEXTS_EX):
        release_members(&Contexts.VolumeContext, 7)


cdef bint FltSupportsFileContexts(const FILE_OBJECT *FileObject) noexcept nogil:
    return has_stream(FileObject)


cdef bint FltSupportsFileContextsEx(const FILE_OBJECT *FileObject, const FLT_INSTANCE *Instance) noexcept nogil:
    return has_stream(FileObject)


cdef bint FltSupportsStreamContexts(const FILE_OBJECT *FileObject) noexcept nogil:
    return has_stream(FileObject)


cdef bint FltSupportsStreamHandleContexts(const FILE_OBJECT *FileObject) noexcept nogil:
    return has_stream(FileObject)
