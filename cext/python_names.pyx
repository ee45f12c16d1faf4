"""Names for Python: providers whose callbacks are Python's, and file name information as objects (docs/semantics.md, B1).

Everything that has a Python object in its hands runs under the GIL; names are asked for without it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy

from stackfs.cext.callback_data cimport (
    CallbackData, FILE_NAME, FILE_OBJECT, FLT_CALLBACK_DATA, FLT_INSTANCE, FileLinkInformation, FileRenameInformation,
    FileRenameInformationEx, IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION)
from stackfs.cext.file_object cimport FileReference, file_reference_new
from stackfs.cext.names cimport (
    FLT_FILE_NAME_INFORMATION, FLT_NAME_CONTROL, FltCheckAndGrowNameControl, FltGetDestinationFileNameInformation,
    FltGetFileNameInformation, FltGetFileNameInformationUnsafe, FltParseFileName, FltPurgeFileNameInformationCache,
    PFLT_GENERATE_FILE_NAME, PFLT_NORMALIZE_CONTEXT_CLEANUP, PFLT_NORMALIZE_NAME_COMPONENT_EX, name_below,
    name_information_hold, name_information_put, name_provider_t, path_of, set_part)
from stackfs.cext.ntstatus cimport (
    NTSTATUS, STATUS_INVALID_PARAMETER, STATUS_NAME_TOO_LONG, STATUS_SUCCESS, STATUS_UNSUCCESSFUL)
from stackfs.cext.pending cimport APC_LEVEL, irql_require
from stackfs.cext.python_contexts cimport InstanceContexts
from stackfs.cext.stack cimport FLT_INSTANCE  # no-cython-lint: completes the struct

from os import fsdecode, fsencode

from stackfs.cext.ntstatus import NtStatusError


# --- providers in Python ------------------------------------------------------------------------------------------------------

cdef NTSTATUS put_name(FLT_NAME_CONTROL *control, bytes name) noexcept:
    cdef NTSTATUS status = FltCheckAndGrowNameControl(control, <uint32_t>min(len(name), 0x10000))
    if status != STATUS_SUCCESS:
        return STATUS_NAME_TOO_LONG
    if name:
        memcpy(control.Buffer, PyBytes_AS_STRING(name), <size_t>len(name))
    control.Length = <uint32_t>len(name)
    return STATUS_SUCCESS


cdef NTSTATUS report(FLT_INSTANCE *instance, str routine, str path, error) noexcept:
    try:
        if isinstance(error, NtStatusError):
            return <NTSTATUS><uint32_t>error.status
        (<object>instance.Object).callback_raised(routine, IRP_MJ_CREATE, path, error)
    except BaseException:
        pass
    return STATUS_UNSUCCESSFUL


cdef NTSTATUS python_generate(FLT_INSTANCE *instance, FILE_OBJECT *file, FLT_CALLBACK_DATA *data, uint32_t options, bint *cache,
                              FLT_NAME_CONTROL *control) noexcept nogil:
    """Asks for the name as it is below the provider, and has Python make the one above of it."""
    cdef FLT_FILE_NAME_INFORMATION *below
    cdef NTSTATUS status = name_below(instance, file, options, &below)
    if status != STATUS_SUCCESS:
        return status
    with gil:
        status = call_generate(instance, below, cache, control)
    name_information_put(below)
    return status


cdef NTSTATUS call_generate(FLT_INSTANCE *instance, FLT_FILE_NAME_INFORMATION *below, bint *cache, FLT_NAME_CONTROL *control) noexcept:
    cdef NameProvider provider = <NameProvider>(<name_provider_t *>instance.NameProvider).python
    cdef FileNameInformation information = given(below)
    cdef FILE_NAME part
    cdef bytes name
    name_information_hold(below)
    path_of(below, &part)
    name = PyBytes_FromStringAndSize(part.Buffer, part.Length)
    try:
        answered = provider.generate(information, <object>instance.Object)
        if isinstance(answered, tuple):
            answered, may_cache = answered
            cache[0] = bool(may_cache)
        if answered is not None:
            name = fsencode(answered)
        return put_name(control, name)
    except BaseException as error:
        return report(instance, "generate_file_name", fsdecode(name), error)


cdef NTSTATUS python_generate_raw(FLT_INSTANCE *instance, FILE_OBJECT *file, FLT_CALLBACK_DATA *data, uint32_t options,
                                  bint *cache, FLT_NAME_CONTROL *control) noexcept nogil:
    with gil:
        return call_generate_raw(instance, file, options, cache, control)


cdef NTSTATUS call_generate_raw(FLT_INSTANCE *instance, FILE_OBJECT *file, uint32_t options, bint *cache,
                                FLT_NAME_CONTROL *control) noexcept:
    cdef NameProvider provider = <NameProvider>(<name_provider_t *>instance.NameProvider).python
    cdef FileReference face = file_reference_new(file)
    try:
        status, name, may_cache = provider.generate(<object>instance.Object, face, options)
        cache[0] = bool(may_cache)
        if status:
            return <NTSTATUS><uint32_t>status
        return put_name(control, name)
    except BaseException as error:
        return report(instance, "generate_file_name", "", error)
    finally:
        face.pointer = NULL


cdef NTSTATUS python_normalize(FLT_INSTANCE *instance, FILE_OBJECT *file, const FILE_NAME *parent, uint16_t volume,
                               const FILE_NAME *component, FLT_NAME_CONTROL *control, uint32_t flags, void **context) noexcept nogil:
    with gil:
        return call_normalize(instance, parent, volume, component, control, flags, context)


cdef NTSTATUS call_normalize(FLT_INSTANCE *instance, const FILE_NAME *parent, uint16_t volume, const FILE_NAME *component,
                             FLT_NAME_CONTROL *control, uint32_t flags, void **context) noexcept:
    cdef NameProvider provider = <NameProvider>(<name_provider_t *>instance.NameProvider).python
    cdef bytes name = PyBytes_FromStringAndSize(component.Buffer, component.Length)
    kept = None if context[0] is NULL else <object>context[0]
    try:
        answered = provider.normalize(
            fsdecode(PyBytes_FromStringAndSize(parent.Buffer + volume, parent.Length - volume)), fsdecode(name), flags, kept,
            <object>instance.Object)
        if isinstance(answered, tuple):
            answered, fresh = answered
            if fresh is not kept:
                if context[0] is not NULL:
                    Py_DECREF(kept)
                    context[0] = NULL
                if fresh is not None:
                    Py_INCREF(fresh)
                    context[0] = <void *>fresh
        if answered is not None:
            name = fsencode(answered)
        return put_name(control, name)
    except BaseException as error:
        return report(instance, "normalize_name_component", fsdecode(name), error)


cdef void python_normalize_cleanup(FLT_INSTANCE *instance, void **context) noexcept nogil:
    with gil:
        call_cleanup(instance, context)


cdef void call_cleanup(FLT_INSTANCE *instance, void **context) noexcept:
    cdef NameProvider provider = <NameProvider>(<name_provider_t *>instance.NameProvider).python
    kept = <object>context[0]
    Py_DECREF(kept)
    context[0] = NULL
    try:
        if provider.cleanup is not None:
            provider.cleanup(kept)
    except BaseException as error:
        report(instance, "normalize_context_cleanup", "", error)


cdef class NameProvider:
    """An instance's callbacks as a name provider (B1.8).

    generate(information, instance): FileNameInformation of the file as it is named below; the path from the volume's root as it
    is shown above (str or bytes; None: the same), or (path, False) for one that is not to be cached.
    normalize(parent, component, flags, context, instance): a component's real name in that directory, or (name, context), which
    the next component of the same name is given; cleanup(context): after the last one.
    raw: generate(instance, file object, options) asks for the name below itself; it answers (NTSTATUS, path in bytes, cache it?).
    """

    def __init__(self, generate=None, normalize=None, cleanup=None, *, bint raw=False):
        if generate is not None:
            self.provider.GenerateFileName = python_generate
            if raw:
                self.provider.GenerateFileName = python_generate_raw
            if normalize is not None:
                self.provider.NormalizeNameComponentEx = python_normalize
            self.provider.NormalizeContextCleanup = python_normalize_cleanup
        elif normalize is not None or cleanup is not None:
            raise ValueError("what normalizes names has to generate them")
        self.generate = generate
        self.normalize = normalize
        self.cleanup = cleanup
        self.provider.python = <PyObject *>self

    cdef void set_native(self, PFLT_GENERATE_FILE_NAME generate, PFLT_NORMALIZE_NAME_COMPONENT_EX normalize,
                         PFLT_NORMALIZE_CONTEXT_CLEANUP cleanup) noexcept:
        self.provider.GenerateFileName = generate
        self.provider.NormalizeNameComponentEx = normalize
        self.provider.NormalizeContextCleanup = cleanup


# --- names for Python -----------------------------------------------------------------------------------------------------

cdef FileNameInformation given(FLT_FILE_NAME_INFORMATION *native):
    """Takes the caller's reference over."""
    cdef FileNameInformation face = FileNameInformation.__new__(FileNameInformation)
    face.native = native
    face.held = 1
    return face


cdef object text(const FILE_NAME *part):
    return fsdecode(PyBytes_FromStringAndSize(part.Buffer, part.Length)) if part.Length else ""


cdef class FileNameInformation:
    """The name of a file, as one layer of the stack sees it (B1). Immutable; bytes that are no UTF-8 become surrogate escapes.

    It may be kept as long as one likes. Routines under their DDI names count references; when the last one is released it is
    dead, and using it raises ReferenceError.
    """

    def __init__(self):
        raise TypeError("file name information comes from callback data, or from an instance")

    def __dealloc__(self):
        while self.held > 0:
            self.held -= 1
            name_information_put(self.native)

    cdef FLT_FILE_NAME_INFORMATION *live(self) except NULL:
        if self.native is NULL:
            raise ReferenceError("file name information used after it was released")
        return self.native

    @property
    def name(self):
        """All of it, "drive/a/b.txt"; with FLT_FILE_NAME_SHORT the final component alone."""
        return text(&self.live().Name)

    @property
    def volume(self):
        """The volume's name, "drive": what stands in front of the path."""
        return text(&self.live().Volume)

    @property
    def path(self):
        """The path from the volume's root, "/a/b.txt"."""
        cdef FILE_NAME part
        path_of(self.live(), &part)
        return text(&part)

    @property
    def share(self):
        """Always empty: volumes are not remote."""
        return text(&self.live().Share)

    @property
    def parent_dir(self):
        """ "/a/": from the first to the last slash of the path."""
        return text(&self.live().ParentDir)

    @property
    def final_component(self):
        """ "b.txt"; empty for the root."""
        return text(&self.live().FinalComponent)

    @property
    def extension(self):
        """ "txt": behind the last dot of the final component."""
        return text(&self.live().Extension)

    @property
    def stream(self):
        """Always empty: a file has one stream here."""
        return text(&self.live().Stream)

    @property
    def format(self):
        """FLT_FILE_NAME_NORMALIZED, FLT_FILE_NAME_OPENED or FLT_FILE_NAME_SHORT."""
        return self.live().Format

    @property
    def names_parsed(self):
        """FLTFL_FILE_NAME_PARSED_* bits: which parts there are."""
        return self.live().NamesParsed

    @property
    def references(self):
        """Those of the manager's cache and of all who asked; 0: released."""
        return 0 if self.native is NULL else self.native.references

    def reference(self):
        """FltReferenceFileNameInformation."""
        name_information_hold(self.live())
        self.held += 1

    def release(self):
        """FltReleaseFileNameInformation: with the last reference that was given, it is dead."""
        cdef FLT_FILE_NAME_INFORMATION *native = self.live()
        self.held -= 1
        if self.held == 0:
            self.native = NULL
        name_information_put(native)

    def __str__(self):
        return self.name

    def __repr__(self):
        return "<FileNameInformation, released>" if self.native is NULL else f"<FileNameInformation {self.name!r}>"


cdef FileNameInformation name_information(FLT_CALLBACK_DATA *data, uint32_t options):
    cdef FLT_FILE_NAME_INFORMATION *found
    cdef NTSTATUS status
    with nogil:
        status = FltGetFileNameInformation(data, options, &found)
    if status != STATUS_SUCCESS:
        raise NtStatusError(<uint32_t>status, "the name cannot be had here")
    return given(found)


cdef NTSTATUS destination(FLT_CALLBACK_DATA *data, uint32_t options, FLT_FILE_NAME_INFORMATION **found) noexcept nogil:
    cdef uint32_t which = data.Iopb.Parameters.SetFile.FileInformationClass
    if data.Iopb.MajorFunction != IRP_MJ_SET_INFORMATION or (
            which != FileRenameInformation and which != FileRenameInformationEx and which != FileLinkInformation):
        found[0] = NULL
        return STATUS_INVALID_PARAMETER
    return FltGetDestinationFileNameInformation(
        data.Iopb.TargetInstance, data.Iopb.TargetFileObject, data.Iopb.Parameters.SetFile.TargetDirectory,
        data.Iopb.Parameters.SetFile.TargetName.Buffer, data.Iopb.Parameters.SetFile.TargetName.Length, options, found)


cdef FileNameInformation destination_name_information(FLT_CALLBACK_DATA *data, uint32_t options):
    cdef FLT_FILE_NAME_INFORMATION *found
    cdef NTSTATUS status
    with nogil:
        status = destination(data, options, &found)
    if status != STATUS_SUCCESS:
        raise NtStatusError(<uint32_t>status, "the new name cannot be had here")
    return given(found)


def _of_operation(CallbackData data not None, uint32_t options):
    irql_require(APC_LEVEL, "getting a file's name")
    return name_information(data.live(), options)


def _of_destination(CallbackData data not None, uint32_t options):
    irql_require(APC_LEVEL, "getting a file's name")
    return destination_name_information(data.live(), options)


cdef class InstanceNames(InstanceContexts):
    """Names asked for by an instance. Each routine answers an unsigned NTSTATUS, and information or None."""

    def flt_get_name(self, FileReference file not None, uint32_t options):
        """FltGetFileNameInformationUnsafe: (NTSTATUS, FileNameInformation)."""
        cdef FLT_FILE_NAME_INFORMATION *found
        cdef FILE_OBJECT *pointer = file.live()
        cdef FLT_INSTANCE *instance = self.owner
        cdef NTSTATUS status
        irql_require(APC_LEVEL, "getting a file's name")
        with nogil:
            status = FltGetFileNameInformationUnsafe(pointer, instance, options, &found)
        return <uint32_t>status, None if found is NULL else given(found)

    def flt_get_destination_name(self, FileReference file not None, bytes name not None, uint32_t options):
        """FltGetDestinationFileNameInformation, in the directory that the file is in: (NTSTATUS, FileNameInformation)."""
        cdef FLT_FILE_NAME_INFORMATION *found
        cdef FILE_OBJECT *pointer = file.live()
        cdef FLT_INSTANCE *instance = self.owner
        cdef const char *bytes_of = PyBytes_AS_STRING(name)
        cdef uint16_t length = <uint16_t>min(len(name), 0xFFFF)
        cdef NTSTATUS status
        with nogil:
            status = FltGetDestinationFileNameInformation(instance, pointer, NULL, bytes_of, length, options, &found)
        return <uint32_t>status, None if found is NULL else given(found)

    def flt_purge_names(self, FileReference file):
        """FltPurgeFileNameInformationCache: of the file, or (None) of the whole volume. NTSTATUS."""
        return <uint32_t>FltPurgeFileNameInformationCache(self.owner, NULL if file is None else file.live())


def parse_file_name(name) -> tuple:
    """FltParseFileName: (extension, stream, final component) of a path or a component, as str."""
    cdef FILE_NAME whole, extension, stream, final
    cdef bytes encoded = fsencode(name)
    if len(encoded) > 0xFFFF:
        raise ValueError("a name is at most 65,535 bytes")
    set_part(&whole, PyBytes_AS_STRING(encoded), <size_t>len(encoded))
    FltParseFileName(&whole, &extension, &stream, &final)
    return text(&extension), text(&stream), text(&final)
