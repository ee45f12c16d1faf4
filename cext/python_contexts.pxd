# Contexts for Python: registering them, the Context objects, and how callback data and instances give them (semantics B2).
# Everything here is called with the GIL, which guards what is Python's; the rest is guarded as contexts.pxd says.

from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_INSTANCE, FLT_VOLUME
from libc.stdint cimport uint16_t
from stackfs.cext.contexts cimport FLT_CONTEXT_REGISTRATION, context_t, filter_contexts_t

cdef class NativeContexts:
    """A native filter's registration of contexts; its Cython code fills it with add()."""
    cdef list definitions                # bytes of FLT_CONTEXT_REGISTRATION
    cdef int add(self, const FLT_CONTEXT_REGISTRATION *definition) except -1

cdef class FilterContexts:
    """What one filter has registered."""
    cdef filter_contexts_t *filter
    cdef int add_python(self, registration) except -1
    cdef int check(self, const FLT_CONTEXT_REGISTRATION *row, tuple callbacks, bint native) except -1
    cdef object kind(self, int i)
    cdef int index(self, kind) except -1
    cdef tuple made(self, int chosen, uint16_t type, size_t size, int pool, Context face)

cdef class Context:
    """One context of a Python filter."""
    cdef context_t *native               # NULL: not allocated yet, or gone
    cdef object held                     # its memory
    cdef object __weakref__
    cdef context_t *live(self) except NULL

cdef class InstanceContexts:
    """The contexts of an instance; what stack.InstanceEntry is made on."""
    cdef FLT_INSTANCE *owner             # set by who derives from it, before anything else
    cdef FilterContexts registration     # kept alive; None: the filter has registered none

cdef class VolumeContexts:
    """The contexts of a volume; what stack.Stack is made on."""
    cdef FLT_VOLUME *owner

# On what a callback is about: `kind` is a class of contexts that the filter registered. They raise NtStatusError.
cdef Context context_get(FLT_INSTANCE *instance, FILE_OBJECT *file, kind)                    # +1, or None
cdef Context context_ensure(FLT_INSTANCE *instance, FILE_OBJECT *file, kind)                 # +1
cdef Context context_set(FLT_INSTANCE *instance, FILE_OBJECT *file, Context context, bint replace)  # the one before, +1, or None
cdef bint context_delete(FLT_INSTANCE *instance, FILE_OBJECT *file, kind) except -1
# One that has not been allocated yet gets memory, and one reference.
cdef int context_new(FilterContexts registration, uint16_t type, Context context) except -1
cdef FilterContexts registration_of(FLT_INSTANCE *instance)
