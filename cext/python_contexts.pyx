"""Contexts for Python: registering them, the Context objects, and how callback data and instances give them (semantics B2).

A Python filter's context is a native one (contexts.pyx) whose memory is the pointer to a Context, which then has one Python
reference for as long as the native one lives. Everything here is called with the GIL; cleanup callbacks too.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.limits cimport INT_MAX
from libc.stdint cimport uint16_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy, memset

from stackfs.cext.callback_data cimport FILE_OBJECT
from stackfs.cext.contexts cimport (
    CONTEXT_DEFINITIONS, CONTEXT_TYPES, FLTFL_CONTEXT_REGISTRATION_NO_EXACT_SIZE_MATCH, FLT_CONTEXT_REGISTRATION,
    FLT_SECTION_CONTEXT, FLT_SET_CONTEXT_KEEP_IF_EXISTS, FLT_SET_CONTEXT_REPLACE_IF_EXISTS, FLT_VARIABLE_SIZED_CONTEXTS,
    FLT_VOLUME_CONTEXT,
    FltDeleteContext, FltReferenceContext, FltReleaseContext, NonPagedPool, PFLT_CONTEXT, context_choose, context_make,
    context_linked, context_of, context_t, delete_context, filter_contexts_close, filter_contexts_put, filter_contexts_t, get_context,
    has_stream, index_of, instance_contexts_close, instance_contexts_delete, load_signed, memory_of, set_context,
    volume_contexts_close)
from stackfs.cext.file_object cimport FileReference
from stackfs.cext.ntstatus cimport (
    NTSTATUS, STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND, STATUS_FLT_CONTEXT_ALREADY_DEFINED, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_BUFFER_SIZE, STATUS_INVALID_PARAMETER, STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED, STATUS_SUCCESS)
from stackfs.cext.pending cimport APC_LEVEL, irql_require
from stackfs.cext.stack cimport FLT_FILTER, FLT_INSTANCE, FLT_VOLUME  # no-cython-lint: complete the structs
from stackfs.cext.verifier cimport verifier_on, verifier_watcher

from stackfs.cext.ntstatus import NtStatusError


cdef enum:
    FIXED_SIZES = 3
    LARGEST = 0xFFFF

cdef object type_class = type            # `type` is a context's type below


TYPE_NAMES = {
    1: "volume", 2: "instance", 4: "file", 8: "stream", 16: "stream handle", 32: "transaction", 64: "section",
}


cdef str type_name(uint16_t type):
    return TYPE_NAMES.get(type, str(type))


cdef void end_python(context_t *context) noexcept:
    """A Python context's last reference has gone."""
    cdef Context face = <Context>(<PyObject **>memory_of(context))[0]
    cdef tuple definition = <tuple>context.filter.python[context.definition]
    if definition[2] is not None:
        try:
            definition[2](face, context.type)
        except BaseException as error:
            tell(context.filter, context.type, error)
    if definition[4] is not None:
        try:
            definition[4](face.held, context.type)
        except BaseException as error:
            tell(context.filter, context.type, error)
    face.native = NULL
    face.held = None
    if verifier_on:
        forget(face)
    Py_DECREF(face)


cdef void forget(Context face) noexcept:
    """It has gone, and is nobody's any more."""
    try:
        verifier_watcher().given_back(face)
    except BaseException:
        pass


cdef void tell(filter_contexts_t *filter, uint16_t type, error) noexcept:
    """A cleanup callback raised: it is told, and changes nothing."""
    try:
        if filter.report is not NULL:
            (<object>filter.report)(type_name(type), error)
    except BaseException:
        pass


cdef class NativeContexts:
    """A native filter's registration of contexts; its Cython code fills it with add()."""

    def __cinit__(self):
        self.definitions = []

    cdef int add(self, const FLT_CONTEXT_REGISTRATION *definition) except -1:
        self.definitions.append(PyBytes_FromStringAndSize(<const char *>definition, sizeof(FLT_CONTEXT_REGISTRATION)))
        return 0


cdef class FilterContexts:
    """What one filter has registered (B2.2). `registrations`: classes of contexts (a subclass of StreamContext, say), or
    (context type, flags, size, cleanup, allocate, free), the last three callables or None. `native`: a NativeContexts.

    `report(kind, error)` is called when a cleanup or free callback raised. ValueError: what is wrong with them.
    """

    def __cinit__(self, registrations=(), NativeContexts native=None, report=None):
        cdef bytes row
        self.filter = <filter_contexts_t *>calloc(1, sizeof(filter_contexts_t))
        if self.filter is NULL:
            raise MemoryError()
        self.filter.references = 1
        self.filter.end = end_python
        self.filter.face = <PyObject *>self
        if report is not None:
            Py_INCREF(report)
            self.filter.report = <PyObject *>report
        for registration in registrations:
            self.add_python(registration)
        if native is not None:
            for row in native.definitions:
                self.check(<FLT_CONTEXT_REGISTRATION *>PyBytes_AS_STRING(row), (
                    (<FLT_CONTEXT_REGISTRATION *>PyBytes_AS_STRING(row)).ContextAllocateCallback is not NULL,
                    (<FLT_CONTEXT_REGISTRATION *>PyBytes_AS_STRING(row)).ContextFreeCallback is not NULL), True)
                memcpy(&self.filter.definitions[self.filter.count], PyBytes_AS_STRING(row), sizeof(FLT_CONTEXT_REGISTRATION))
                self.filter.count += 1

    def __dealloc__(self):
        if self.filter is not NULL:
            self.filter.face = NULL
            filter_contexts_put(self.filter)

    cdef int add_python(self, registration) except -1:
        cdef FLT_CONTEXT_REGISTRATION row
        cdef tuple kept
        cdef int i
        memset(&row, 0, sizeof(row))
        if isinstance(registration, type):
            if not issubclass(registration, Context):
                raise ValueError(f"{registration!r} is not a class of contexts")
            for i in range(self.filter.count):
                if self.kind(i) is registration:
                    raise ValueError(f"{registration.__name__} is registered twice")
            context_type = getattr(registration, "context_type", None)
            flags, size, allocate, release = 0, 0, None, None
            cleanup = _call_cleanup
        else:
            context_type, flags, size, cleanup, allocate, release = registration
        for name, value in (("context type", context_type), ("flags", flags), ("size", size)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
                raise ValueError(f"{name}: {value!r} is not a number from 0 to {LARGEST}")
        row.ContextType = context_type
        row.Flags = flags
        row.Size = size
        kept = (row.ContextType, registration if isinstance(registration, type) else None, cleanup, allocate, release)
        if not isinstance(registration, type):
            self.check(&row, (allocate is not None, release is not None), False)
        elif index_of(row.ContextType) < 0:
            raise ValueError(f"{registration.__name__}: context_type: {context_type!r} is not one of FLT_*_CONTEXT")
        elif self.filter.count == CONTEXT_DEFINITIONS:
            raise ValueError("too many kinds of contexts")
        self.filter.definitions[self.filter.count] = row
        Py_INCREF(kept)
        self.filter.python[self.filter.count] = <PyObject *>kept
        self.filter.python_allocates[self.filter.count] = allocate is not None
        self.filter.count += 1
        return 0

    cdef int check(self, const FLT_CONTEXT_REGISTRATION *row, tuple callbacks, bint native) except -1:
        """The rules of FLT_CONTEXT_REGISTRATION (STATUS_FLT_INVALID_CONTEXT_REGISTRATION)."""
        cdef const FLT_CONTEXT_REGISTRATION *other
        cdef int fixed = 0
        cdef int i
        if index_of(row.ContextType) < 0:
            raise ValueError(f"context type: {row.ContextType:#x} is not one of FLT_*_CONTEXT")
        what = f"{type_name(row.ContextType)} contexts"
        if row.Flags & ~FLTFL_CONTEXT_REGISTRATION_NO_EXACT_SIZE_MATCH:
            raise ValueError(f"{what}: flags: {row.Flags:#x} has bits that are no registration flag")
        if row.Size > LARGEST:
            raise ValueError(f"{what}: size: {row.Size} is more than {LARGEST}")
        if callbacks[0] != callbacks[1]:
            raise ValueError(f"{what}: an allocate callback and a free callback go together")
        if self.filter.count == CONTEXT_DEFINITIONS:
            raise ValueError("too many kinds of contexts")
        for i in range(self.filter.count):
            other = &self.filter.definitions[i]
            if other.ContextType != row.ContextType:
                continue
            if (self.filter.python[i] is NULL) != native:
                raise ValueError(f"{what}: registered for C and for Python")
            if self.kind(i) is not None:
                continue
            if callbacks[0] or other.ContextAllocateCallback is not NULL or self.filter.python_allocates[i]:
                raise ValueError(f"{what}: one with an allocate callback is the only one of its type")
            if other.Size == row.Size:
                raise ValueError(f"{what}: size {row.Size} is registered twice")
            fixed += other.Size != FLT_VARIABLE_SIZED_CONTEXTS
        if row.Size != FLT_VARIABLE_SIZED_CONTEXTS and fixed == FIXED_SIZES:
            raise ValueError(f"{what}: at most {FIXED_SIZES} fixed sizes can be registered")
        return 0

    cdef object kind(self, int i):
        return None if self.filter.python[i] is NULL else (<tuple>self.filter.python[i])[1]

    cdef int index(self, kind) except -1:
        """Which definition a class is."""
        cdef int i
        for i in range(self.filter.count):
            if self.kind(i) is kind:
                return i
        raise TypeError(f"{kind!r} is not a class of contexts that the filter has registered")

    def allocate(self, context_type, size, pool):
        """FltAllocateContext: (NTSTATUS, Context or None). The context has one reference, the caller's."""
        cdef int chosen
        cdef NTSTATUS status
        if not 0 <= context_type <= LARGEST or size < 0 or not 0 <= pool <= LARGEST:
            return <uint32_t>STATUS_INVALID_PARAMETER, None
        if size > LARGEST:
            return <uint32_t>STATUS_INVALID_BUFFER_SIZE, None
        status = context_choose(self.filter, context_type, size, pool, &chosen)
        if status == STATUS_SUCCESS and self.filter.python[chosen] is NULL:
            status = STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND     # a native one
        if status != STATUS_SUCCESS:
            return <uint32_t>status, None
        return self.made(chosen, context_type, size, pool, None)

    cdef tuple made(self, int chosen, uint16_t type, size_t size, int pool, Context face):
        cdef context_t *context
        cdef NTSTATUS status
        cdef tuple definition = <tuple>self.filter.python[chosen]
        memory = None
        if face is None:
            face = (definition[1] or Context)()
        if face.native is not NULL:
            raise ValueError("a context is allocated once")
        if definition[3] is not None:
            memory = definition[3](pool, size, type)
            if memory is None:
                return <uint32_t>STATUS_INSUFFICIENT_RESOURCES, None
        elif definition[1] is None:
            memory = bytearray(size)
        status = context_make(self.filter, chosen, type, size, pool, &context)
        if status != STATUS_SUCCESS:
            if definition[3] is not None:
                definition[4](memory, type)
            return <uint32_t>status, None
        face.held = memory
        face.native = context
        Py_INCREF(face)
        (<PyObject **>memory_of(context))[0] = <PyObject *>face
        if verifier_on:
            verifier_watcher().acquired(face, f"a {type_name(type)} context", "FltAllocateContext", owner=self.identity)
        return <uint32_t>status, face

    def close(self) -> int:
        """The filter is being unregistered: its volume contexts go, and none is made any more (A2). How many contexts of all
        types are still referenced by somebody."""
        with nogil:
            filter_contexts_close(self.filter)
        return sum(self.outstanding.values())

    @property
    def identity(self):
        """A number that no other registration has, as long as one of its contexts is there."""
        return <uintptr_t>self.filter

    @property
    def outstanding(self):
        """Contexts that have not gone, by kind ("stream"); those with none are left out."""
        cdef dict found = {}
        cdef int i
        for i in range(CONTEXT_TYPES):
            if load_signed(&self.filter.outstanding[i]):
                found[type_name(<uint16_t>(1 << i))] = load_signed(&self.filter.outstanding[i])
        return found


def _call_cleanup(context, context_type):
    """The cleanup callback of a registered class."""
    context.cleanup()


cdef class Context:
    """Something a filter keeps with an object, for as long as the object lives (B2).

    A class of contexts derives from VolumeContext, InstanceContext, FileContext, StreamContext or StreamHandleContext and is
    named in the filter's `contexts`; what it has for attributes is its own affair. cleanup() is called once, when the last
    reference has gone, on whatever thread that happens. A context that FltAllocateContext made by size has `memory`.
    """

    def cleanup(self):
        """Called when the context goes: give back what it holds. Here: nothing."""

    cdef context_t *live(self) except NULL:
        if self.native is NULL:
            raise ReferenceError("the context has gone, or was never allocated")
        return self.native

    @property
    def memory(self):
        """A bytearray of the size asked for, or what the allocate callback gave; None: neither."""
        return self.held

    @property
    def context_type(self):
        """FLT_STREAM_CONTEXT, ...; 0: not allocated yet, or gone."""
        return 0 if self.native is NULL else self.native.type

    @property
    def references(self):
        """How many there are, the one of being set included; 0: not allocated yet, or gone."""
        return 0 if self.native is NULL else load_signed(&self.native.references)

    @property
    def is_set(self):
        """It is linked to an object."""
        return self.native is not NULL and context_linked(self.native)

    def reference(self):
        """FltReferenceContext: one reference more, to be given back with release()."""
        FltReferenceContext(memory_of(self.live()))

    def release(self):
        """FltReleaseContext: one reference less; the last one makes the context go."""
        FltReleaseContext(memory_of(self.live()))    # with the GIL: a release too many, by another thread, must not overtake it

    def delete(self):
        """FltDeleteContext: off its object; it goes when the last reference does."""
        FltDeleteContext(memory_of(self.live()))


class VolumeContext(Context):
    """One for each filter and volume; goes when the volume ends, or the filter is unloaded."""

    context_type = 0x1


class InstanceContext(Context):
    """One for each instance; goes at the end of its teardown."""

    context_type = 0x2


class FileContext(Context):
    """One for each instance and file (inode, with all its names); goes when nobody knows the file any more."""

    context_type = 0x4


class StreamContext(Context):
    """One for each instance and stream of bytes. A file has one stream here, so it lives as long as a FileContext."""

    context_type = 0x8


class StreamHandleContext(Context):
    """One for each instance and open file; goes after its CLOSE."""

    context_type = 0x10


class SectionContext(Context):
    """One for each instance and section for a data scan; set by what creates the section, it goes with that (B2.8)."""

    context_type = 0x40


cdef raise_status(NTSTATUS status, str what):
    raise NtStatusError(<uint32_t>status, what)


cdef Context face_of(PFLT_CONTEXT memory):
    """The Python context, or None for a native one, which is released."""
    if not context_of(memory).python:
        FltReleaseContext(memory)
        return None
    return <Context>(<PyObject **>memory)[0]


cdef uint16_t type_of(kind) except 0:
    cdef uint16_t type = getattr(kind, "context_type", 0) if isinstance(kind, type_class) else 0
    if type == 0:
        raise TypeError(f"{kind!r} is not a class of contexts")
    return type


cdef FilterContexts registration_of(FLT_INSTANCE *instance):
    cdef filter_contexts_t *filter = <filter_contexts_t *>instance.Related.Filter.Contexts
    if filter is NULL or filter.face is NULL:
        raise TypeError("the filter has registered no contexts")
    return <FilterContexts>filter.face


cdef int assign(FLT_INSTANCE *instance, Context context) except -1:
    """From now on it is that instance's affair. Of a volume's context it stays the filter's."""
    if verifier_on and context is not None and context.native is not NULL and context.native.type != FLT_VOLUME_CONTEXT:
        verifier_watcher().assigned(
            context, instance.Related.Filter.Name.decode("utf-8", "surrogateescape"), <object>instance.Object)
    return 0


cdef Context context_get(FLT_INSTANCE *instance, FILE_OBJECT *file, kind):
    cdef PFLT_CONTEXT found
    cdef NTSTATUS status
    irql_require(APC_LEVEL, "getting a context")
    status = get_context(instance.Related.Filter, instance.Related.Volume, instance, file, type_of(kind), &found)
    if status == STATUS_SUCCESS:
        return face_of(found)
    if status == STATUS_NOT_FOUND:
        return None
    raise_status(status, f"no {type_name(type_of(kind))} context can be had here")


cdef Context context_ensure(FLT_INSTANCE *instance, FILE_OBJECT *file, kind):
    cdef Context context = context_get(instance, file, kind)
    cdef Context other
    while context is None:
        context = kind()
        other = set_and_keep(instance, file, context, FLT_SET_CONTEXT_KEEP_IF_EXISTS)
        if other is not None:            # somebody was faster
            context.release()
            context = other
    return context


cdef int context_new(FilterContexts registration, uint16_t type, Context context) except -1:
    """Allocates one of a registered class, with one reference."""
    made, _ = registration.made(registration.index(type_class(context)), type, 0, NonPagedPool, context)
    if made:
        raise_status(<NTSTATUS><uint32_t>made, f"a {type_name(type)} context cannot be made")
    return 0


cdef Context set_and_keep(FLT_INSTANCE *instance, FILE_OBJECT *file, Context context, int operation):
    """Allocates the context if it is new, and sets it; the caller then has one reference more. Returns the one that is, or
    was, there, with a reference; None: there is none."""
    cdef FilterContexts registration = registration_of(instance)
    cdef uint16_t type = type_of(type_class(context))
    cdef PFLT_CONTEXT old
    cdef NTSTATUS status
    if type == FLT_SECTION_CONTEXT:
        raise_status(STATUS_NOT_SUPPORTED, "a section's context is set by what creates the section")
    irql_require(APC_LEVEL, "setting a context")
    if context.native is NULL:
        context_new(registration, type, context)
    else:
        FltReferenceContext(memory_of(context.native))
    status = set_context(instance.Related.Volume, instance, file, type, operation, memory_of(context.native), &old)
    if status != STATUS_SUCCESS and status != STATUS_FLT_CONTEXT_ALREADY_DEFINED:
        context.release()
        raise_status(status, f"the {type_name(type)} context cannot be set")
    assign(instance, context)
    return None if old is NULL else face_of(old)


cdef Context context_set(FLT_INSTANCE *instance, FILE_OBJECT *file, Context context, bint replace):
    cdef Context old = set_and_keep(
        instance, file, context, FLT_SET_CONTEXT_REPLACE_IF_EXISTS if replace else FLT_SET_CONTEXT_KEEP_IF_EXISTS)
    context.release()                    # the link's reference stays; one that was not set has gone
    return old


cdef bint context_delete(FLT_INSTANCE *instance, FILE_OBJECT *file, kind) except -1:
    cdef NTSTATUS status
    cdef uint16_t type = type_of(kind)
    with nogil:
        status = delete_context(instance.Related.Filter, instance.Related.Volume, instance, file, type, NULL)
    if status != STATUS_SUCCESS and status != STATUS_NOT_FOUND:
        raise_status(status, f"no {type_name(type)} context can be had here")
    return status == STATUS_SUCCESS


# --- the contexts of an instance and of a volume, for Python ------------------------------------------------------------------

cdef FILE_OBJECT *pointer_of(FileReference file) except? NULL:
    return NULL if file is None else file.live()


cdef PFLT_CONTEXT memory_or_null(Context context) noexcept:
    return NULL if context is None or context.native is NULL else memory_of(context.native)


cdef class InstanceContexts:
    """The contexts of an instance. get_context() and the three with it are for kinds that hang on the instance itself, or on
    its volume; callback data has the same for all kinds. They return what is not referenced: it is there as long as it is set.
    """

    def __dealloc__(self):
        if self.owner is not NULL:
            instance_contexts_delete(self.owner, INT_MAX)

    def get_context(self, kind):
        """The instance's, or its volume's, context of this class; None: there is none."""
        cdef Context context = context_get(self.owner, NULL, kind)
        if context is not None:
            context.release()
        return context

    def ensure_context(self, kind):
        """The same; one is made, kind(), and set if there is none."""
        cdef Context context = context_ensure(self.owner, NULL, kind)
        context.release()
        return context

    def set_context(self, Context context not None, *, bint replace=False):
        """Set it. If there is one it stays, or with `replace` goes; returns the one that was there, or None."""
        cdef Context old = context_set(self.owner, NULL, context, replace)
        if old is not None:
            old.release()
        return old

    def delete_context(self, kind):
        """Take it off. False: there was none."""
        return context_delete(self.owner, NULL, kind)

    def close_contexts(self):
        """Teardown has started: none can be set any more (STATUS_FLT_DELETING_OBJECT)."""
        instance_contexts_close(self.owner)

    def delete_contexts(self, int most) -> int:
        """The end of the teardown: up to `most` contexts go, in the order of A3. How many it found: call it until 0."""
        cdef FLT_INSTANCE *owner = self.owner
        cdef int found
        with nogil:
            found = instance_contexts_delete(owner, most)
        return found

    # As the DDI has them. Each answers an unsigned NTSTATUS, and a context with one reference, the caller's, or None.

    def flt_set_context(self, context_type, FileReference file, operation, Context context, bint wants_old):
        """FltSetInstanceContext, FltSetFileContext, ...: (NTSTATUS, the context that is or was there)."""
        cdef PFLT_CONTEXT old = NULL
        cdef FLT_INSTANCE *instance = self.owner
        cdef NTSTATUS status
        irql_require(APC_LEVEL, "setting a context")
        status = set_context(
            instance.Related.Volume, instance, pointer_of(file), context_type, operation, memory_or_null(context),
            &old if wants_old else NULL)
        if status == STATUS_SUCCESS:
            assign(instance, context)
        return <uint32_t>status, None if old is NULL else face_of(old)

    def flt_get_context(self, context_type, FileReference file):
        """FltGetInstanceContext, ...: (NTSTATUS, context)."""
        cdef PFLT_CONTEXT found = NULL
        cdef FLT_INSTANCE *instance = self.owner
        cdef NTSTATUS status
        irql_require(APC_LEVEL, "getting a context")
        status = get_context(
            instance.Related.Filter, instance.Related.Volume, instance, pointer_of(file), context_type, &found)
        return <uint32_t>status, None if found is NULL else face_of(found)

    def flt_delete_context(self, context_type, FileReference file, bint wants_old):
        """FltDeleteInstanceContext, ...: (NTSTATUS, the context that was there)."""
        cdef PFLT_CONTEXT old = NULL
        cdef FLT_INSTANCE *instance = self.owner
        cdef NTSTATUS status = delete_context(
            instance.Related.Filter, instance.Related.Volume, instance, pointer_of(file), context_type,
            &old if wants_old else NULL)
        return <uint32_t>status, None if old is NULL else face_of(old)


cdef class VolumeContexts:
    """The contexts of a volume, as the DDI has them. Each answers an unsigned NTSTATUS, and a context with one reference, the
    caller's, or None."""

    def flt_set_volume_context(self, operation, Context context, bint wants_old):
        """FltSetVolumeContext: (NTSTATUS, the context that is or was there)."""
        cdef PFLT_CONTEXT old = NULL
        cdef NTSTATUS status = set_context(
            self.owner, NULL, NULL, FLT_VOLUME_CONTEXT, operation, memory_or_null(context), &old if wants_old else NULL)
        return <uint32_t>status, None if old is NULL else face_of(old)

    def flt_get_volume_context(self, FilterContexts registration not None):
        """FltGetVolumeContext: (NTSTATUS, context)."""
        cdef FLT_FILTER named
        cdef PFLT_CONTEXT found = NULL
        cdef NTSTATUS status
        named.Contexts = registration.filter
        status = get_context(&named, self.owner, NULL, NULL, FLT_VOLUME_CONTEXT, &found)
        return <uint32_t>status, None if found is NULL else face_of(found)

    def flt_delete_volume_context(self, FilterContexts registration not None, bint wants_old):
        """FltDeleteVolumeContext: (NTSTATUS, the context that was there)."""
        cdef FLT_FILTER named
        cdef PFLT_CONTEXT old = NULL
        cdef NTSTATUS status
        named.Contexts = registration.filter
        status = delete_context(&named, self.owner, NULL, NULL, FLT_VOLUME_CONTEXT, &old if wants_old else NULL)
        return <uint32_t>status, None if old is NULL else face_of(old)

    def close_contexts(self):
        """The volume ends: its contexts go, and none can be set any more."""
        cdef FLT_VOLUME *owner = self.owner
        with nogil:
            volume_contexts_close(owner)


def supports_contexts(FileReference file not None):
    """FltSupportsStreamContexts and the others: from a CREATE that succeeded to the CLOSE."""
    return has_stream(file.live())
