# Sections for data scans (docs/semantics.md, B2.8), for native filters, without the GIL.
#
# An instance says in its set-up that it scans (FltRegisterForDataScan), and then creates a section of an open file, with a section
# context that it has allocated. A section reads what the layers below the instance give, in pieces, into memory of the caller's:
# nothing is mapped, so that a file which is cut short meanwhile makes a read short and faults nobody. The instance's section
# conflict callback (stack.NativeOperations.section_conflict) is called in the thread of an operation that is about to take bytes of
# the file away, which goes on when it returns; FltCloseSectionForDataScan may be called there, as in any callback and thread.
#
# One mutex, a leaf, guards which sections there are, and who uses each; it is not held across a call.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t
from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_INSTANCE, node_t
from stackfs.cext.contexts cimport PFLT_CONTEXT
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.stack cimport InstanceEntry

cpdef enum SectionAccess:
    SECTION_QUERY = 1
    SECTION_MAP_WRITE = 2
    SECTION_MAP_READ = 4
    SECTION_MAP_EXECUTE = 8

cpdef enum SectionAttributes:
    SEC_COMMIT = 0x8000000

cdef struct section_t:
    section_t *next                      # of all there are
    section_t *previous
    FLT_INSTANCE *instance
    FILE_OBJECT *file                    # opened below the instance, for this alone
    node_t *node                         # the file's, which lives as long as that is open
    PFLT_CONTEXT context                 # with a reference
    int64_t size                         # bytes: as it was created
    int users                            # who reads it, or is told of a conflict: the file is closed when they have left
    int open
    int references                       # on this structure: the one of being open, and its Python face's

cdef NTSTATUS FltRegisterForDataScan(FLT_INSTANCE *Instance) noexcept nogil
# SectionFileSize may be NULL. The section is the caller's until it is closed, by its context. DesiredAccess and page protection:
# reading alone (STATUS_SECTION_PROTECTION). MaximumSize: NULL or 0: as large as the file; not larger (STATUS_SECTION_TOO_BIG).
# STATUS_END_OF_FILE: the file is empty. STATUS_INVALID_FILE_FOR_SECTION: it has no bytes. STATUS_NOT_SUPPORTED: it is not open.
# STATUS_FLT_CONTEXT_ALREADY_DEFINED: the instance has a section of that stream. STATUS_FLT_CONTEXT_ALREADY_LINKED,
# STATUS_FLT_DELETING_OBJECT, STATUS_INVALID_PARAMETER; or why the file cannot be opened, or a filter below does not let it be read.
cdef NTSTATUS FltCreateSectionForDataScan(
    FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT SectionContext, uint32_t DesiredAccess, const int64_t *MaximumSize,
    uint32_t SectionPageProtection, uint32_t AllocationAttributes, uint32_t Flags, section_t **SectionObject,
    int64_t *SectionFileSize) noexcept nogil
# STATUS_NOT_FOUND: it is closed already. STATUS_INVALID_PARAMETER: nothing was created with that context.
cdef NTSTATUS FltCloseSectionForDataScan(PFLT_CONTEXT SectionContext) noexcept nogil
# Bytes of an open section, as paging I/O below the instance; fewer only where the section, or by now the file, ends.
cdef NTSTATUS section_read(section_t *section, int64_t offset, uint32_t length, void *buffer, uint32_t *got) noexcept nogil

cdef class Section:
    cdef section_t *section              # with a reference
    cdef InstanceEntry entry             # keeps the instance
    cdef readonly object context         # what it was created with
