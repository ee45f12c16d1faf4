# Names for Python: providers whose callbacks are Python's, and file name information as objects (docs/semantics.md, B1).
# Everything here is used under the GIL.

from stackfs.cext.names cimport (
    FLT_FILE_NAME_INFORMATION, PFLT_GENERATE_FILE_NAME, PFLT_NORMALIZE_CONTEXT_CLEANUP, PFLT_NORMALIZE_NAME_COMPONENT_EX,
    name_provider_t)
from stackfs.cext.python_contexts cimport InstanceContexts

cdef class NameProvider:
    """An instance's callbacks as a name provider."""
    cdef name_provider_t provider
    cdef object generate
    cdef object normalize
    cdef object cleanup
    cdef void set_native(self, PFLT_GENERATE_FILE_NAME generate, PFLT_NORMALIZE_NAME_COMPONENT_EX normalize,
                         PFLT_NORMALIZE_CONTEXT_CLEANUP cleanup) noexcept

cdef class FileNameInformation:
    """FLT_FILE_NAME_INFORMATION for Python."""
    cdef FLT_FILE_NAME_INFORMATION *native       # NULL: released
    cdef long held                       # references of the Python caller
    cdef FLT_FILE_NAME_INFORMATION *live(self) except NULL

cdef class InstanceNames(InstanceContexts):
    """Names asked for by an instance; what stack.InstanceEntry is made on."""
