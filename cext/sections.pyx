"""Sections for data scans (docs/semantics.md, B2.8): creating, reading and closing them, and who is told of conflicts.

Windows maps the file. A mapping of the backing file would show a filter what lies below all layers instead of what lies below
itself, and a file that is cut short under one raises SIGBUS. So a section here is the file, opened once more below the instance, and
a view of it is a copy of what was read.

What is created is found by its context, and by its file's node when an operation conflicts; both searches go through one list, under
the mutex (sections.pxd), which is a leaf. An open section counts in FLT_VOLUME.sections: the base tests that, and asks here only
where it is not 0.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

from stackfs.cext.callback_data cimport (
    CallbackData, FILE_OBJECT, FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION, FLTFL_CALLBACK_DATA_GENERATED_IO, FLT_IO_PARAMETER_BLOCK,
    FLT_RELATED_OBJECTS, FLT_VOLUME, IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_CREATE, IRP_MJ_FILE_SYSTEM_CONTROL,
    IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_SET_INFORMATION, PAGE_READONLY, SyncTypeCreateSection, callback_data_new,
    statx_t)
from stackfs.cext.contexts cimport (
    FLT_SECTION_CONTEXT, FLT_SET_CONTEXT_KEEP_IF_EXISTS, FltDeleteContext, FltReferenceContext, FltReleaseContext, context_of,
    has_stream, memory_of, set_context)
from stackfs.cext.file_object cimport FileReference
from stackfs.cext.filter_file cimport FileObject as FileBelow
from stackfs.cext.filter_io cimport (
    FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, FLTFL_IO_OPERATION_PAGING, FltQueryInformationFile, FltReadFile)
from stackfs.cext.filter_names cimport OBJECT_ATTRIBUTES, FltClose, FltOpenFile
from stackfs.cext.generated_io cimport enter, leave, new_request, run_in_place
from stackfs.cext.impersonation cimport step_aside, step_back
from stackfs.cext.includes.pthread cimport pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
from stackfs.cext.inode_table cimport node_type
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, NTSTATUS, STATUS_END_OF_FILE, STATUS_FLT_DELETING_OBJECT, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_FILE_FOR_SECTION,
    STATUS_INVALID_PARAMETER, STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED, STATUS_SECTION_PROTECTION, STATUS_SECTION_TOO_BIG, STATUS_SUCCESS)
from stackfs.cext.python_contexts cimport Context, context_new, registration_of
from stackfs.cext.requests cimport request_free, vfs_request_t
from stackfs.cext.stack cimport (
    InstanceEntry, operation_begin, operation_end, operation_listed, operation_only_below, operation_t, report_exception)
from stackfs.cext.threads cimport add_int, load_int, store_int

from stackfs.cext.filter_file import error_of


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <sys/stat.h>
    """
    int O_RDONLY
    unsigned S_IFREG

cdef enum:
    STANDARD_RIGHTS = 0x1F0000           # of DesiredAccess: mean nothing here
    PIECE = 1 << 20                      # bytes read at once

cdef pthread_mutex_t mutex
pthread_mutex_init(&mutex, NULL)
cdef section_t *first = NULL


# --- who uses a section, and its end -----------------------------------------------------------------------------------

cdef void unreference(section_t *section) noexcept nogil:
    cdef bint last
    pthread_mutex_lock(&mutex)
    section.references -= 1
    last = section.references == 0
    pthread_mutex_unlock(&mutex)
    if last:
        free(section)


cdef void end(section_t *section) noexcept nogil:
    """Nobody uses it any more, and nobody can: it was taken off the list."""
    cdef FLT_INSTANCE *instance = section.instance
    FltClose(instance, section.file)         # where the instance has ended already: closed with what it left open
    FltReleaseContext(section.context)
    unreference(section)


cdef bint use(section_t *section) noexcept nogil:
    """False: it is closed. Else stop_using()."""
    cdef bint is_open
    pthread_mutex_lock(&mutex)
    is_open = section.open
    section.users += is_open
    pthread_mutex_unlock(&mutex)
    return is_open


cdef void stop_using(section_t *section) noexcept nogil:
    cdef bint last
    pthread_mutex_lock(&mutex)
    section.users -= 1
    last = section.users == 0 and not section.open
    pthread_mutex_unlock(&mutex)
    if last:
        end(section)


cdef bint take_off_locked(section_t *section) noexcept nogil:
    """From now on it is closed. True: nobody uses it."""
    global first
    if section.next is not NULL:
        section.next.previous = section.previous
    if section.previous is not NULL:
        section.previous.next = section.next
    else:
        first = section.next
    section.open = 0
    add_int(&section.instance.Related.Volume.sections, -1)
    return section.users == 0


cdef void close(section_t *section, bint unused) noexcept nogil:
    FltDeleteContext(section.context)
    if unused:
        end(section)


cdef uint32_t close_each(const FLT_INSTANCE *instance, const FLT_VOLUME *volume) noexcept nogil:
    """All of an instance's, or of a volume's. How many."""
    cdef section_t *section
    cdef uint32_t count = 0
    cdef bint unused
    while True:
        pthread_mutex_lock(&mutex)
        section = first
        while section is not NULL and section.instance is not instance and section.instance.Related.Volume is not volume:
            section = section.next
        unused = section is not NULL and take_off_locked(section)
        pthread_mutex_unlock(&mutex)
        if section is NULL:
            return count
        count += 1
        close(section, unused)


cdef void close_on_volume(FLT_VOLUME *volume) noexcept nogil:
    close_each(NULL, volume)


# --- creating ----------------------------------------------------------------------------------------------------------

cdef NTSTATUS FltRegisterForDataScan(FLT_INSTANCE *Instance) noexcept nogil:
    if not enter(Instance):
        return STATUS_FLT_DELETING_OBJECT
    store_int(&Instance.DataScan, 1)
    leave(Instance)
    return STATUS_SUCCESS


cdef NTSTATUS synchronise(vfs_request_t *request, uint8_t major, FILE_OBJECT *file) noexcept nogil:
    """ACQUIRE or RELEASE_FOR_SECTION_SYNCHRONIZATION below the instance."""
    cdef operation_t *op = &request.operation
    cdef NTSTATUS status
    if not operation_listed(request.volume, major):
        return STATUS_SUCCESS
    operation_begin(op, request.volume, major)
    op.request = request
    op.announce_wait = request.announce_wait
    op.data.Flags = FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION | FLTFL_CALLBACK_DATA_GENERATED_IO
    op.data.RequestorMode = 0
    op.data.Thread = &request.who
    op.data.RequestNumber = request.unique
    op.current.TargetFileObject = file
    if major == IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION:
        op.current.Parameters.AcquireForSectionSynchronization.SyncType = SyncTypeCreateSection
        op.current.Parameters.AcquireForSectionSynchronization.PageProtection = PAGE_READONLY
    operation_only_below(op, request.initiator)
    run_in_place(op)
    status = op.data.IoStatus.Status
    operation_end(op)
    return status


cdef NTSTATUS measure(FLT_INSTANCE *instance, FILE_OBJECT *file, int64_t *size) noexcept nogil:
    """The file's size below the instance, while filters there keep it as it is."""
    cdef vfs_request_t *request = new_request(instance, 0, NULL)
    cdef statx_t info
    cdef NTSTATUS status
    if request is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    status = synchronise(request, IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION, file)
    if NT_SUCCESS(status):
        status = FltQueryInformationFile(instance, file, &info)
        synchronise(request, IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION, file)
    request_free(request)
    if NT_SUCCESS(status):
        size[0] = <int64_t>info.stx_size
    return status


cdef NTSTATUS fits(int64_t size, const int64_t *wanted, int64_t *chosen) noexcept nogil:
    chosen[0] = size
    if wanted is not NULL and wanted[0]:
        if wanted[0] < 0:
            return STATUS_INVALID_PARAMETER
        if wanted[0] > size:
            return STATUS_SECTION_TOO_BIG
        chosen[0] = wanted[0]
    return STATUS_SUCCESS if size else STATUS_END_OF_FILE


cdef NTSTATUS open_below(FLT_INSTANCE *instance, FILE_OBJECT *file, const int64_t *wanted, section_t *section) noexcept nogil:
    cdef OBJECT_ATTRIBUTES attributes = OBJECT_ATTRIBUTES(b"", 0, file, NULL)
    cdef int64_t size = 0
    cdef NTSTATUS status = FltOpenFile(instance, &section.file, &attributes, <uint32_t>O_RDONLY, 0, NULL)
    if not NT_SUCCESS(status):
        return status
    status = measure(instance, section.file, &size)
    if NT_SUCCESS(status):
        status = fits(size, wanted, &section.size)
    if not NT_SUCCESS(status):
        FltClose(instance, section.file)
    section.node = section.file.Node if NT_SUCCESS(status) else NULL
    return status


cdef NTSTATUS create(FLT_INSTANCE *instance, FILE_OBJECT *file, PFLT_CONTEXT context, const int64_t *wanted,
                     section_t **created) noexcept nogil:
    global first
    cdef FLT_VOLUME *volume = instance.Related.Volume
    cdef section_t *section
    cdef NTSTATUS status
    if not has_stream(file):
        return STATUS_NOT_SUPPORTED
    if node_type(file.Node) != S_IFREG:
        return STATUS_INVALID_FILE_FOR_SECTION
    section = <section_t *>calloc(1, cython.sizeof(section_t))
    if section is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    status = set_context(volume, instance, file, FLT_SECTION_CONTEXT, FLT_SET_CONTEXT_KEEP_IF_EXISTS, context, NULL)
    if status == STATUS_SUCCESS:
        status = open_below(instance, file, wanted, section)
        if status != STATUS_SUCCESS:
            FltDeleteContext(context)
    if status != STATUS_SUCCESS:
        free(section)
        return status
    FltReferenceContext(context)
    context_of(context).sectioned = 1
    section.instance = instance
    section.context = context
    section.open = section.references = 1
    volume.section_conflict = tell
    volume.close_sections = close_on_volume
    pthread_mutex_lock(&mutex)
    section.next = first
    if first is not NULL:
        first.previous = section
    first = section
    pthread_mutex_unlock(&mutex)
    add_int(&volume.sections, 1)
    created[0] = section
    return STATUS_SUCCESS


cdef NTSTATUS FltCreateSectionForDataScan(
        FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, PFLT_CONTEXT SectionContext, uint32_t DesiredAccess,
        const int64_t *MaximumSize, uint32_t SectionPageProtection, uint32_t AllocationAttributes, uint32_t Flags,
        section_t **SectionObject, int64_t *SectionFileSize) noexcept nogil:
    cdef NTSTATUS status
    SectionObject[0] = NULL
    if not enter(Instance):
        return STATUS_FLT_DELETING_OBJECT
    if not load_int(&Instance.DataScan) or FileObject is NULL or SectionContext is NULL or Flags or \
            AllocationAttributes & ~<uint32_t>SEC_COMMIT:
        status = STATUS_INVALID_PARAMETER
    elif SectionPageProtection != PAGE_READONLY or DesiredAccess & ~<uint32_t>(SECTION_QUERY | SECTION_MAP_READ | STANDARD_RIGHTS):
        status = STATUS_SECTION_PROTECTION
    else:
        status = create(Instance, FileObject, SectionContext, MaximumSize, SectionObject)
    if status == STATUS_SUCCESS and SectionFileSize is not NULL:
        SectionFileSize[0] = SectionObject[0].size
    leave(Instance)
    return status


cdef NTSTATUS FltCloseSectionForDataScan(PFLT_CONTEXT SectionContext) noexcept nogil:
    cdef section_t *section
    cdef bint unused
    if SectionContext is NULL or not context_of(SectionContext).sectioned:
        return STATUS_INVALID_PARAMETER
    pthread_mutex_lock(&mutex)
    section = first
    while section is not NULL and section.context is not SectionContext:
        section = section.next
    unused = section is not NULL and take_off_locked(section)
    pthread_mutex_unlock(&mutex)
    if section is NULL:
        return STATUS_NOT_FOUND
    close(section, unused)
    return STATUS_SUCCESS


cdef NTSTATUS section_read(section_t *section, int64_t offset, uint32_t length, void *buffer, uint32_t *got) noexcept nogil:
    cdef uint32_t flags = FLTFL_IO_OPERATION_PAGING | FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET
    cdef NTSTATUS status = STATUS_SUCCESS
    cdef uint32_t piece, moved
    cdef int64_t at
    got[0] = 0
    if offset < 0:
        return STATUS_INVALID_PARAMETER
    if not use(section):
        return STATUS_NOT_FOUND
    length = 0 if offset >= section.size else <uint32_t>min(<int64_t>length, section.size - offset)
    while got[0] < length:
        piece = min(length - got[0], <uint32_t>PIECE)
        at = offset + got[0]
        status = FltReadFile(section.instance, section.file, &at, piece, <char *>buffer + got[0], flags, &moved, NULL, NULL)
        if not NT_SUCCESS(status):
            break
        got[0] += moved
        if moved < piece:                    # the file has become shorter
            break
    stop_using(section)
    return status


# --- conflicts ---------------------------------------------------------------------------------------------------------

cdef bint conflicts(const operation_t *op, const section_t *section) noexcept nogil:
    """Does the operation take away, or replace beneath everybody, bytes that the section has?"""
    cdef const FLT_IO_PARAMETER_BLOCK *p = &op.current
    if section.node is not p.TargetFileObject.Node:
        return False
    if p.MajorFunction == IRP_MJ_SET_INFORMATION:
        return p.Parameters.SetFile.EndOfFile < section.size
    if p.MajorFunction == IRP_MJ_FILE_SYSTEM_CONTROL:
        return p.Parameters.Control.FileOffset < section.size
    return p.MajorFunction == IRP_MJ_CREATE          # which throws away what was there


cdef void tell(operation_t *op) noexcept nogil:
    """The base asks, before it does what may conflict. No lock is held while a filter is told."""
    cdef section_t **found = NULL
    cdef section_t *section
    cdef uint32_t count = 0
    cdef uint32_t room, i
    cdef bint aside
    pthread_mutex_lock(&mutex)
    section = first
    while section is not NULL:
        count += conflicts(op, section)
        section = section.next
    pthread_mutex_unlock(&mutex)
    if count == 0:
        return
    room = count
    count = 0
    found = <section_t **>malloc(room * sizeof(section_t *))
    if found is NULL:
        return                               # a section's reads are short then; nobody comes to harm
    pthread_mutex_lock(&mutex)
    section = first
    while section is not NULL and count < room:
        if conflicts(op, section) and enter(section.instance):
            section.users += 1
            found[count] = section
            count += 1
        section = section.next
    pthread_mutex_unlock(&mutex)
    aside = step_aside()
    for i in range(count):
        tell_one(op, found[i])
    if aside:
        step_back()
    free(found)


cdef void tell_one(operation_t *op, section_t *section) noexcept nogil:
    cdef FLT_INSTANCE *instance = section.instance
    op.shown = op.current
    op.shown.TargetInstance = instance
    if instance.SectionConflict is not NULL:
        instance.SectionConflict(instance, section.context, &op.data)
    elif instance.PythonSectionConflict is not NULL and context_of(section.context).python:
        with gil:
            tell_python(op, instance, <Context>(<PyObject **>section.context)[0])
    stop_using(section)
    leave(instance)


cdef void tell_python(operation_t *op, FLT_INSTANCE *instance, Context context) noexcept:
    cdef FLT_RELATED_OBJECTS related = instance.Related
    cdef CallbackData data
    related.FileObject = op.current.TargetFileObject
    try:
        data = callback_data_new(&op.data, &related, None, None, False)
        try:
            (<object>instance.PythonSectionConflict)(<object>instance.Object, context, data)
        finally:
            data.undo()
            data.end()
    except BaseException as error:
        report_exception(instance, op, "section notification", error)


# --- for Python ----------------------------------------------------------------------------------------------------------

cdef int check(NTSTATUS status) except -1:
    if not NT_SUCCESS(status):
        raise error_of(<uint32_t>status)
    return 0


cdef class Section:
    """A section of a file, to scan its data (B2.8). Offsets and sizes are bytes. Close it: `with objects.create_section(...)`.

    Reads give what the layers below the instance give. OSError, with `status`: a filter below, or the disk, fails one.
    """

    def __init__(self):
        raise TypeError("a Section comes from an instance's create_section()")

    def __dealloc__(self):
        if self.section is not NULL:
            unreference(self.section)

    def read(self, int64_t offset, Py_ssize_t size) -> bytes:
        """Up to `size` bytes; fewer where the section ends, or where the file ends by now."""
        cdef bytes buffer
        cdef char *start
        cdef uint32_t got = 0
        cdef NTSTATUS status
        if not 0 <= size <= 0x7FFFF000:
            raise ValueError("not a length of a read")
        size = <Py_ssize_t>min(<int64_t>size, max(<int64_t>0, self.section.size - offset))
        buffer = PyBytes_FromStringAndSize(NULL, size)
        start = PyBytes_AS_STRING(buffer)
        with nogil:
            status = section_read(self.section, offset, <uint32_t>size, start, &got)
        if status == STATUS_NOT_FOUND:
            raise ValueError("the section is closed")
        check(status)
        return buffer if got == <uint32_t>size else buffer[:got]

    def view(self, int64_t offset=0, length=None) -> memoryview:
        """The same as a memoryview, to the section's end where no length is given: a copy of the bytes as they are now, so that
        nothing which becomes of the file, or of the section, can hurt whoever looks at it."""
        return memoryview(self.read(offset, max(0, self.section.size - offset) if length is None else length))

    @property
    def size(self) -> int:
        """As it was created."""
        return self.section.size

    @property
    def closed(self) -> bool:
        """Was it closed?"""
        return not self.section.open

    def close(self):
        """FltCloseSectionForDataScan. Twice is no harm; reads under way end first."""
        cdef Context context = self.context
        cdef PFLT_CONTEXT memory
        if not self.section.open:
            return
        memory = memory_of(context.live())
        FltReferenceContext(memory)          # another thread may close it just now
        with nogil:
            FltCloseSectionForDataScan(memory)
            FltReleaseContext(memory)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()


def register_for_data_scan(InstanceEntry entry not None):
    """FltRegisterForDataScan: an unsigned NTSTATUS."""
    return <uint32_t>FltRegisterForDataScan(&entry.instance)


def create_section(InstanceEntry entry not None, file, Context context, uint32_t access=SECTION_QUERY | SECTION_MAP_READ,
                   int64_t maximum_size=0, uint32_t protection=PAGE_READONLY, uint32_t attributes=SEC_COMMIT, uint32_t flags=0):
    """FltCreateSectionForDataScan: (unsigned NTSTATUS, Section or None). `file`: callback data, a file that the filter has opened, or
    a file object. A context that was not allocated yet is, and its one reference is the section's."""
    cdef FLT_INSTANCE *instance = &entry.instance
    cdef Section made = Section.__new__(Section)
    cdef FILE_OBJECT *pointer = NULL
    cdef PFLT_CONTEXT memory = NULL
    cdef bint fresh = context is not None and context.native is NULL
    cdef NTSTATUS status
    if isinstance(file, CallbackData):
        (<CallbackData>file).live()
        pointer = (<CallbackData>file).objects.FileObject
    elif isinstance(file, FileBelow):
        pointer = (<FileBelow>file).enter()
    elif file is not None:
        pointer = (<FileReference?>file).live()
    try:
        if fresh:
            context_new(registration_of(instance), FLT_SECTION_CONTEXT, context)
        if context is not None:
            memory = memory_of(context.live())
        with nogil:
            status = FltCreateSectionForDataScan(
                instance, pointer, memory, access, &maximum_size, protection, attributes, flags, &made.section, NULL)
            if made.section is not NULL:
                pthread_mutex_lock(&mutex)
                made.section.references += 1
                pthread_mutex_unlock(&mutex)
        if fresh:
            context.release()
    finally:
        if isinstance(file, FileBelow):
            (<FileBelow>file).leave()
    if made.section is NULL:
        return <uint32_t>status, None
    made.entry = entry
    made.context = context
    return <uint32_t>status, made


def close_section(Context context):
    """FltCloseSectionForDataScan: an unsigned NTSTATUS."""
    cdef PFLT_CONTEXT memory
    cdef NTSTATUS status
    if context is None:
        return <uint32_t>STATUS_INVALID_PARAMETER
    memory = memory_of(context.live())
    FltReferenceContext(memory)              # another thread may close it just now
    with nogil:
        status = FltCloseSectionForDataScan(memory)
        FltReleaseContext(memory)
    return <uint32_t>status


def open_sections(InstanceEntry entry not None):
    """The contexts of the instance's sections that are open, newest first (a native filter's: None)."""
    cdef section_t *section
    cdef list found = []
    cdef PyObject *context
    cdef uint32_t natives = 0
    cdef uint32_t count = 0
    cdef PyObject *faces[256]
    pthread_mutex_lock(&mutex)
    section = first
    while section is not NULL:
        if section.instance is &entry.instance:
            context = (<PyObject **>section.context)[0] if context_of(section.context).python else NULL
            if context is not NULL and count < 256:
                faces[count] = context       # lives: the GIL is held, and so is its reference
                count += 1
            else:
                natives += 1
        section = section.next
    pthread_mutex_unlock(&mutex)
    for i in range(count):
        found.append(<object>faces[i])
    return found + [None] * natives


def close_left_open(InstanceEntry entry not None) -> int:
    """When nothing of the instance is under way any more: closes the sections that its filter left open. How many."""
    cdef FLT_INSTANCE *instance = &entry.instance
    cdef uint32_t count
    with nogil:
        count = close_each(instance, NULL)
    return count
