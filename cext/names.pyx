"""File name information (docs/semantics.md, B1): the name of a file as one layer of the stack sees it.

answer() is the one way to a name: find the name provider that is nearest below whoever asks, look into the cache, ask the
provider (who will ask further down) or the inode table, normalize, cache. What a program has not opened yet, and what goes by
a name in a directory, is named by the directory's name and the name that the operation has at the asking layer; that is never
cached, for it may not exist, or not any more.

Nothing here waits for the disk. Providers are asked without a lock, in the thread of whoever asks, and while they are being
asked their callback list is held, so that a detach waits for them.
"""

from libc.errno cimport ENAMETOOLONG
from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memset

from stackfs.cext.callback_data cimport (
    FILE_NAME, FILE_OBJECT, FLT_CALLBACK_DATA, FLT_INSTANCE, FLT_RELATED_OBJECTS, FLTFL_CALLBACK_DATA_POST_OPERATION, FO_CLOSED,
    IRP_MJ_CLOSE, IRP_MJ_CREATE, IRP_MJ_QUERY_OPEN, IRP_PAGING_IO, node_t)
from stackfs.cext.contexts cimport has_stream
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.inode_table cimport (
    inode_table_t, name_cache_find, name_cache_purge, name_cache_store, name_of, name_version_t, node_name, node_put)
from stackfs.cext.ntstatus cimport (
    NTSTATUS, NT_SUCCESS, STATUS_FLT_INVALID_NAME_REQUEST, STATUS_FLT_NAME_CACHE_MISS, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER, STATUS_NAME_TOO_LONG, STATUS_NO_SUCH_FILE, STATUS_OBJECT_NAME_INVALID,
    STATUS_OBJECT_NAME_NOT_FOUND, STATUS_REPARSE, STATUS_SUCCESS, STATUS_UNSUCCESSFUL)
from stackfs.cext.pending cimport APC_LEVEL, PASSIVE_LEVEL, irql_set
from stackfs.cext.stack cimport (
    FLT_INSTANCE, FLT_VOLUME, NAME_PROVIDERS, callback_list_t, compare_altitudes, list_hold, list_release)
from stackfs.cext.threads cimport load_bits
from stackfs.cext.verifier cimport verifier_level, verifier_on


cdef enum:
    # FILE_OBJECT.Flags of one that stands for what nobody has open, while a provider is asked about it: it has a name, and
    # nothing else.
    FO_NAMED = 0x40000000


cdef struct question_t:
    FLT_VOLUME *volume
    const FLT_INSTANCE *asker            # names are asked for as they are below it
    FILE_OBJECT *file
    FLT_CALLBACK_DATA *data              # NULL: none at hand
    node_t *node                         # whose name
    const node_t *directory              # by which of its names, or NULL
    const char *link
    uint16_t link_length
    const char *last                     # a name in that node, a directory; length 0: the node itself
    uint16_t last_length
    uint32_t options
    bint destination
    bint anywhere                        # also where a filter may not ask


# --- the pieces of a name -------------------------------------------------------------------------------------------------

cdef void split(const char *path, size_t length, FILE_NAME *extension, FILE_NAME *final, FILE_NAME *parent) noexcept nogil:
    """A path, or a single component, in its parts; parent ends with the last '/'."""
    cdef size_t at = length
    cdef size_t dot = length
    while at > 0 and path[at - 1] != c'/':
        at -= 1
    set_part(parent, path, at)
    set_part(final, path + at, length - at)
    while dot > at and path[dot - 1] != c'.':
        dot -= 1
    set_part(extension, path + dot, length - dot if dot > at else 0)


cdef FLT_FILE_NAME_INFORMATION *make(const question_t *q, const FLT_INSTANCE *provider, uint32_t format, const char *path,
                                     size_t length) noexcept nogil:
    """path: from the volume's root; FLT_FILE_NAME_SHORT: one component."""
    cdef size_t prefix = 0 if format == FLT_FILE_NAME_SHORT else q.volume.NameLength
    cdef size_t link = q.link_length if q.last_length == 0 else 0
    cdef FLT_FILE_NAME_INFORMATION *made
    cdef char *name
    if prefix + length > 0xFFFF:
        return NULL
    made = <FLT_FILE_NAME_INFORMATION *>malloc(sizeof(FLT_FILE_NAME_INFORMATION) + prefix + length + link)
    if made is NULL:
        return NULL
    memset(made, 0, sizeof(FLT_FILE_NAME_INFORMATION))
    name = <char *>(made + 1)
    if prefix:
        memcpy(name, q.volume.Name, prefix)
    memcpy(name + prefix, path, length)
    made.Size = sizeof(FLT_FILE_NAME_INFORMATION)
    made.Format = format
    set_part(&made.Name, name, prefix + length)
    if format != FLT_FILE_NAME_SHORT:
        set_part(&made.Volume, name, prefix)
        split(name + prefix, length, &made.Extension, &made.FinalComponent, &made.ParentDir)
        made.NamesParsed = FLTFL_FILE_NAME_PARSED_FINAL_COMPONENT | FLTFL_FILE_NAME_PARSED_EXTENSION | \
            FLTFL_FILE_NAME_PARSED_STREAM | FLTFL_FILE_NAME_PARSED_PARENT_DIR
    made.references = 1
    made.provider = provider
    made.directory = q.directory
    made.link = name + prefix + length
    made.link_length = <uint16_t>link
    if link:
        memcpy(made.link, q.link, link)
    return made


cdef bint is_short(const FILE_NAME *name) noexcept nogil:
    """Could it be its own 8.3 name: one to eight characters, at most one '.', at most three behind it?"""
    cdef int i
    cdef int dot = -1
    cdef char c
    for i in range(name.Length):
        c = name.Buffer[i]
        if c == c'.':
            if dot >= 0 or i == 0:
                return False
            dot = i
        elif not (c'0' <= c <= c'9' or c'A' <= c <= c'Z' or c'a' <= c <= c'z' or memchr(b"$%'-_@~`!(){}^#&", c, 16) is not NULL):
            return False
    if dot < 0:
        return 1 <= name.Length <= 8
    return dot <= 8 and 1 <= name.Length - dot - 1 <= 3


# --- asking -----------------------------------------------------------------------------------------------------------------

cdef bint is_safe(const question_t *q) noexcept nogil:
    """Windows cannot ask the file system for a name in these places; a filter may not rely on it here either."""
    cdef const FLT_CALLBACK_DATA *data = q.data
    cdef const FILE_OBJECT *file = q.file
    if q.anywhere:
        return True
    if file is not NULL and load_bits(&file.Flags) & FO_CLOSED:
        return False
    if data is NULL:
        return True
    return not data.Iopb.IrpFlags & IRP_PAGING_IO and not (
        data.Iopb.MajorFunction == IRP_MJ_CLOSE and data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION)


cdef inline bint before_create(const FLT_CALLBACK_DATA *data) noexcept nogil:
    return data is not NULL and not data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION and (
        data.Iopb.MajorFunction == IRP_MJ_CREATE or data.Iopb.MajorFunction == IRP_MJ_QUERY_OPEN)


cdef bint known_options(uint32_t options) noexcept nogil:
    cdef uint32_t format = options & FLT_VALID_FILE_NAME_FORMATS
    cdef uint32_t method = options & FLT_VALID_FILE_NAME_QUERY_METHODS
    return FLT_FILE_NAME_NORMALIZED <= format <= FLT_FILE_NAME_SHORT and \
        FLT_FILE_NAME_QUERY_DEFAULT <= method <= FLT_FILE_NAME_QUERY_ALWAYS_ALLOW_CACHE_LOOKUP and method & 0xFF == 0 and \
        not options & ~<uint32_t>(FLT_VALID_FILE_NAME_FORMATS | FLT_VALID_FILE_NAME_QUERY_METHODS
                                  | FLT_FILE_NAME_REQUEST_FROM_CURRENT_PROVIDER | FLT_FILE_NAME_DO_NOT_CACHE
                                  | FLT_FILE_NAME_ALLOW_QUERY_ON_REPARSE)


cdef const FLT_INSTANCE *nearest_provider(const callback_list_t *providers, const FLT_INSTANCE *asker, bint itself) noexcept nogil:
    """The highest one below the asker, or, if it wants so, the asker itself. Lists are ordered from high to low."""
    cdef uint32_t i
    cdef bint below = False
    for i in range(providers.count):
        if providers.callbacks[i].instance is asker:
            if itself:
                return asker
            below = True
        elif below or compare_altitudes(providers.callbacks[i].instance.Altitude, asker.Altitude) < 0:
            return providers.callbacks[i].instance
    return NULL


cdef NTSTATUS answer(question_t *q, FLT_FILE_NAME_INFORMATION **found) noexcept nogil:
    cdef callback_list_t *providers
    cdef const FLT_INSTANCE *provider = NULL
    cdef uint32_t format = q.options & FLT_VALID_FILE_NAME_FORMATS
    cdef FLT_FILE_NAME_INFORMATION *whole
    cdef NTSTATUS status
    if verifier_on:
        verifier_level(APC_LEVEL, b"getting a file's name")
    found[0] = NULL
    if not known_options(q.options):
        return STATUS_INVALID_PARAMETER
    if q.node is NULL:
        return STATUS_FLT_INVALID_NAME_REQUEST
    if format == FLT_FILE_NAME_SHORT:
        if before_create(q.data):
            return STATUS_FLT_INVALID_NAME_REQUEST
        q.options = (q.options & ~<uint32_t>FLT_VALID_FILE_NAME_FORMATS) | FLT_FILE_NAME_OPENED
        status = answer(q, &whole)
        if status == STATUS_SUCCESS:
            found[0] = NULL
            if is_short(&whole.FinalComponent):
                found[0] = make(q, NULL, FLT_FILE_NAME_SHORT, whole.FinalComponent.Buffer, whole.FinalComponent.Length)
                status = STATUS_SUCCESS if found[0] is not NULL else STATUS_INSUFFICIENT_RESOURCES
            else:
                status = STATUS_OBJECT_NAME_NOT_FOUND
            name_information_put(whole)
        return status
    providers = list_hold(q.volume, NAME_PROVIDERS)
    if providers is not NULL:
        provider = nearest_provider(providers, q.asker, q.options & FLT_FILE_NAME_REQUEST_FROM_CURRENT_PROVIDER != 0)
    status = answer_by(q, provider, found)
    if providers is not NULL:
        list_release(providers)
    return status


cdef NTSTATUS answer_by(question_t *q, const FLT_INSTANCE *provider, FLT_FILE_NAME_INFORMATION **found) noexcept nogil:
    cdef inode_table_t *nodes = <inode_table_t *>q.volume.nodes
    cdef uint32_t format = q.options & FLT_VALID_FILE_NAME_FORMATS
    cdef uint32_t method = q.options & FLT_VALID_FILE_NAME_QUERY_METHODS
    cdef bint safe = is_safe(q)
    cdef char path[LONGEST_NAME]
    cdef name_version_t version
    cdef bint caches = not q.options & FLT_FILE_NAME_DO_NOT_CACHE
    cdef NTSTATUS status = STATUS_SUCCESS
    cdef int length
    if q.last_length:
        return answer_in_directory(q, provider, found)
    if method != FLT_FILE_NAME_QUERY_FILESYSTEM_ONLY and (safe or method != FLT_FILE_NAME_QUERY_DEFAULT):
        found[0] = name_cache_find(nodes, q.node, provider, format, q.directory, q.link, q.link_length)
        if found[0] is not NULL:
            return STATUS_SUCCESS
    if method == FLT_FILE_NAME_QUERY_CACHE_ONLY:
        return STATUS_FLT_NAME_CACHE_MISS
    if not safe:
        return STATUS_FLT_INVALID_NAME_REQUEST
    length = node_name(nodes, q.node, q.directory, q.link, q.link_length, path, LONGEST_NAME, &version)
    if length < 0:
        return STATUS_NAME_TOO_LONG
    if provider is not NULL:
        status = ask_provider(q, provider, path, &length, &caches)
    if status != STATUS_SUCCESS:
        return status
    found[0] = make(q, provider, format, path, <size_t>length)
    if found[0] is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    if caches:
        name_cache_store(nodes, q.node, found[0], &version)
    return STATUS_SUCCESS


cdef NTSTATUS answer_in_directory(const question_t *q, const FLT_INSTANCE *provider, FLT_FILE_NAME_INFORMATION **found) noexcept nogil:
    """A name in a directory: the directory's, as the provider shows it, and the operation's own."""
    cdef question_t above = q[0]
    cdef FLT_FILE_NAME_INFORMATION *directory
    cdef FILE_NAME part
    cdef char path[LONGEST_NAME]
    cdef NTSTATUS status
    cdef int length
    if q.options & FLT_VALID_FILE_NAME_QUERY_METHODS == FLT_FILE_NAME_QUERY_CACHE_ONLY:
        return STATUS_FLT_NAME_CACHE_MISS
    if not is_safe(q):
        return STATUS_FLT_INVALID_NAME_REQUEST
    above.file = NULL                    # what a provider is asked about is the directory, which nobody has opened
    above.data = NULL
    above.directory = NULL
    above.link = NULL
    above.link_length = 0
    above.last_length = 0
    status = answer_by(&above, provider, &directory)
    if status != STATUS_SUCCESS:
        return status
    path_of(directory, &part)
    length = part.Length
    if length + 1 + q.last_length >= LONGEST_NAME:
        name_information_put(directory)
        return STATUS_NAME_TOO_LONG
    memcpy(path, part.Buffer, part.Length)
    name_information_put(directory)
    if path[length - 1] != c'/':
        path[length] = c'/'
        length += 1
    memcpy(path + length, q.last, q.last_length)
    if q.options & FLT_VALID_FILE_NAME_FORMATS == FLT_FILE_NAME_NORMALIZED and provider is not NULL:
        status = normalize(q, provider, path, length, length + q.last_length, True, &length)
    else:
        length += q.last_length
    if status != STATUS_SUCCESS:
        return status
    found[0] = make(q, provider, q.options & FLT_VALID_FILE_NAME_FORMATS, path, <size_t>length)
    return STATUS_SUCCESS if found[0] is not NULL else STATUS_INSUFFICIENT_RESOURCES


cdef NTSTATUS ask_provider(const question_t *q, const FLT_INSTANCE *provider, char *path, int *length, bint *caches) noexcept nogil:
    """path: LONGEST_NAME bytes, which get the name as it is above the provider."""
    cdef const name_provider_t *callbacks = <const name_provider_t *>provider.NameProvider
    cdef FLT_CALLBACK_DATA data
    cdef FLT_NAME_CONTROL control
    cdef FILE_OBJECT named
    cdef FILE_OBJECT *file = q.file
    cdef bint cache = True
    cdef NTSTATUS status
    memset(&control, 0, sizeof(control))
    if q.data is not NULL:
        data = q.data[0]
    if not has_stream(file):             # not open yet, or never going to be
        memset(&named, 0, sizeof(named))
        named.Node = q.node
        named.fd = -1
        named.Flags = FO_NAMED
        file = &named
    revert_to_self()
    status = callbacks.GenerateFileName(
        <FLT_INSTANCE *>provider, file, &data if q.data is not NULL else NULL, q.options, &cache, &control)
    if status == STATUS_SUCCESS:
        if control.Length == 0 or control.Buffer[0] != c'/' or memchr(control.Buffer, 0, control.Length) is not NULL:
            status = STATUS_OBJECT_NAME_INVALID
        elif control.Length >= LONGEST_NAME:
            status = STATUS_NAME_TOO_LONG
        else:
            memcpy(path, control.Buffer, control.Length)
            length[0] = <int>control.Length
    free(control.Buffer)
    if not cache:
        caches[0] = False
    if status == STATUS_SUCCESS and q.options & FLT_VALID_FILE_NAME_FORMATS == FLT_FILE_NAME_NORMALIZED:
        status = normalize(q, provider, path, 1, length[0], False, length)
    return STATUS_UNSUCCESSFUL if NT_SUCCESS(status) and status != STATUS_SUCCESS else status


cdef NTSTATUS normalize(const question_t *q, const FLT_INSTANCE *provider, char *path, int start, int end, bint may_lack,
                        int *length) noexcept nogil:
    """Has the provider say each component's real name, from `start` on, from left to right. may_lack: there need not be one."""
    cdef const name_provider_t *callbacks = <const name_provider_t *>provider.NameProvider
    cdef FLT_NAME_CONTROL control
    cdef FILE_NAME parent, component
    cdef char whole[LONGEST_NAME + 1024]
    cdef char rest[LONGEST_NAME]
    cdef uint16_t volume = q.volume.NameLength
    cdef void *context = NULL
    cdef NTSTATUS status = STATUS_SUCCESS
    cdef int stop
    length[0] = end
    if callbacks.NormalizeNameComponentEx is NULL:
        return STATUS_SUCCESS
    memset(&control, 0, sizeof(control))
    while start < end and status == STATUS_SUCCESS:
        stop = start
        while stop < end and path[stop] != c'/':
            stop += 1
        if volume:
            memcpy(whole, q.volume.Name, volume)
        memcpy(whole + volume, path, start)
        set_part(&parent, whole, <size_t>(volume + start))
        set_part(&component, path + start, <size_t>(stop - start))
        control.Length = 0
        revert_to_self()
        status = callbacks.NormalizeNameComponentEx(
            <FLT_INSTANCE *>provider, q.file, &parent, volume, &component, &control,
            FLTFL_NORMALIZE_NAME_CASE_SENSITIVE | (FLTFL_NORMALIZE_NAME_DESTINATION_FILE_NAME if q.destination else 0), &context)
        if status == STATUS_NO_SUCH_FILE and may_lack:
            status = STATUS_SUCCESS
        elif status == STATUS_SUCCESS:
            if control.Length == 0 or memchr(control.Buffer, c'/', control.Length) is not NULL or \
                    memchr(control.Buffer, 0, control.Length) is not NULL:
                status = STATUS_OBJECT_NAME_INVALID
            elif start + <int>control.Length + end - stop >= LONGEST_NAME:
                status = STATUS_NAME_TOO_LONG
            else:
                memcpy(rest, path + stop, <size_t>(end - stop))
                memcpy(path + start, control.Buffer, control.Length)
                memcpy(path + start + control.Length, rest, <size_t>(end - stop))
                end += start + <int>control.Length - stop
                stop = start + <int>control.Length
        start = stop + 1
    if context is not NULL and callbacks.NormalizeContextCleanup is not NULL:
        callbacks.NormalizeContextCleanup(<FLT_INSTANCE *>provider, &context)
    free(control.Buffer)
    length[0] = end
    return status


cdef void by_file(question_t *q, FILE_OBJECT *file) noexcept nogil:
    q.file = file
    q.node = file.Node
    q.directory = file.NameDirectory
    q.link = file.Name
    q.link_length = file.NameLength if file.Name is not NULL else 0


cdef void by_operation(question_t *q, FLT_CALLBACK_DATA *data, FILE_OBJECT *file) noexcept nogil:
    q.data = data
    by_file(q, file)
    if file.Directory is not NULL and data.Iopb.FileName.Length:
        q.node = file.Directory
        q.directory = NULL
        q.link_length = 0
        q.last = data.Iopb.FileName.Buffer
        q.last_length = data.Iopb.FileName.Length


cdef NTSTATUS FltGetFileNameInformation(
        FLT_CALLBACK_DATA *Data, uint32_t NameOptions, FLT_FILE_NAME_INFORMATION **FileNameInformation) noexcept nogil:
    cdef FILE_OBJECT *file = Data.Iopb.TargetFileObject
    cdef question_t q
    FileNameInformation[0] = NULL
    memset(&q, 0, sizeof(q))
    if file is NULL or Data.Iopb.TargetInstance is NULL:
        return STATUS_FLT_INVALID_NAME_REQUEST
    q.asker = Data.Iopb.TargetInstance
    q.volume = Data.Iopb.TargetInstance.Related.Volume
    q.options = NameOptions
    by_operation(&q, Data, file)
    if Data.Iopb.MajorFunction == IRP_MJ_CREATE and Data.Iopb.OperationFlags & SL_OPEN_TARGET_DIRECTORY:
        q.last_length = 0
    if Data.Iopb.MajorFunction == IRP_MJ_CREATE and Data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION and \
            Data.IoStatus.Status == STATUS_REPARSE and not NameOptions & FLT_FILE_NAME_ALLOW_QUERY_ON_REPARSE:
        return STATUS_FLT_INVALID_NAME_REQUEST
    return answer(&q, FileNameInformation)


cdef NTSTATUS FltGetFileNameInformationUnsafe(
        FILE_OBJECT *FileObject, FLT_INSTANCE *Instance, uint32_t NameOptions,
        FLT_FILE_NAME_INFORMATION **FileNameInformation) noexcept nogil:
    cdef question_t q
    FileNameInformation[0] = NULL
    memset(&q, 0, sizeof(q))
    if Instance is NULL or FileObject is NULL:
        return STATUS_INVALID_PARAMETER
    if not has_stream(FileObject) and not load_bits(&FileObject.Flags) & FO_NAMED:       # it must be open
        return STATUS_FLT_INVALID_NAME_REQUEST
    q.asker = Instance
    q.volume = Instance.Related.Volume
    q.options = NameOptions
    by_file(&q, FileObject)
    return answer(&q, FileNameInformation)


cdef NTSTATUS FltGetDestinationFileNameInformation(
        FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, node_t *RootDirectory, const char *FileName, uint16_t FileNameLength,
        uint32_t NameOptions, FLT_FILE_NAME_INFORMATION **RetFileNameInformation) noexcept nogil:
    cdef inode_table_t *nodes
    cdef node_t *parent = NULL
    cdef char name[256]
    cdef question_t q
    cdef NTSTATUS status
    RetFileNameInformation[0] = NULL
    if Instance is NULL or FileObject is NULL or FileName is NULL or FileNameLength == 0 or FileNameLength > 255 or \
            memchr(FileName, c'/', FileNameLength) is not NULL or memchr(FileName, 0, FileNameLength) is not NULL or \
            NameOptions & FLT_VALID_FILE_NAME_FORMATS == FLT_FILE_NAME_SHORT:
        return STATUS_INVALID_PARAMETER
    memset(&q, 0, sizeof(q))
    q.asker = Instance
    q.volume = Instance.Related.Volume
    q.options = NameOptions
    q.destination = True
    q.file = FileObject
    nodes = <inode_table_t *>q.volume.nodes
    if RootDirectory is NULL:
        RootDirectory = FileObject.Directory if FileObject.Directory is not NULL else FileObject.NameDirectory
    if RootDirectory is NULL and FileObject.Node is not NULL:
        name_of(nodes, FileObject.Node, 0, name, &parent)
        RootDirectory = parent
    q.node = RootDirectory
    q.last = FileName
    q.last_length = FileNameLength
    status = answer(&q, RetFileNameInformation)
    if parent is not NULL:
        node_put(nodes, parent)
    return status


cdef NTSTATUS FltGetTunneledName(
        FLT_CALLBACK_DATA *Data, FLT_FILE_NAME_INFORMATION *FileNameInformation,
        FLT_FILE_NAME_INFORMATION **RetTunneledFileNameInformation) noexcept nogil:
    """Names are not tunneled here: the one that was asked for before the operation is the one that it got."""
    RetTunneledFileNameInformation[0] = NULL
    return STATUS_SUCCESS


cdef NTSTATUS FltParseFileNameInformation(FLT_FILE_NAME_INFORMATION *FileNameInformation) noexcept nogil:
    """The parts are there from the beginning."""
    return STATUS_INVALID_PARAMETER if FileNameInformation.Format == FLT_FILE_NAME_SHORT else STATUS_SUCCESS


cdef NTSTATUS FltParseFileName(
        const FILE_NAME *FileName, FILE_NAME *Extension, FILE_NAME *Stream, FILE_NAME *FinalComponent) noexcept nogil:
    cdef FILE_NAME extension, final, parent
    split(FileName.Buffer, FileName.Length, &extension, &final, &parent)
    if Extension is not NULL:
        Extension[0] = extension
    if Stream is not NULL:
        set_part(Stream, FileName.Buffer + FileName.Length, 0)
    if FinalComponent is not NULL:
        FinalComponent[0] = final
    return STATUS_SUCCESS


cdef NTSTATUS FltPurgeFileNameInformationCache(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject) noexcept nogil:
    name_cache_purge(<inode_table_t *>Instance.Related.Volume.nodes, NULL if FileObject is NULL else FileObject.Node)
    return STATUS_SUCCESS


cdef NTSTATUS FltCheckAndGrowNameControl(FLT_NAME_CONTROL *NameCtrl, uint32_t NewSize) noexcept nogil:
    cdef char *larger
    if NewSize <= NameCtrl.MaximumLength:
        return STATUS_SUCCESS
    if NewSize > 0xFFFF:
        return STATUS_INSUFFICIENT_RESOURCES
    larger = <char *>realloc(NameCtrl.Buffer, NewSize)
    if larger is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    NameCtrl.Buffer = larger
    NameCtrl.MaximumLength = NewSize
    return STATUS_SUCCESS


cdef NTSTATUS name_below(FLT_INSTANCE *instance, FILE_OBJECT *file, uint32_t options, FLT_FILE_NAME_INFORMATION **below) noexcept nogil:
    cdef question_t q
    memset(&q, 0, sizeof(q))
    q.asker = instance
    q.volume = instance.Related.Volume
    q.options = FLT_FILE_NAME_OPENED | (options & ~<uint32_t>(
        FLT_VALID_FILE_NAME_FORMATS | FLT_FILE_NAME_REQUEST_FROM_CURRENT_PROVIDER))
    by_file(&q, file)
    return answer(&q, below)


# --- for paths.pyx -----------------------------------------------------------------------------------------------------------

cdef int shown_path(question_t *q, char *buffer, size_t size) noexcept nogil:
    """As the nearest provider below the asker shows it; 0: there is none, or it does not say."""
    cdef callback_list_t *providers
    cdef const FLT_INSTANCE *provider
    cdef FLT_FILE_NAME_INFORMATION *found = NULL
    cdef FILE_NAME path
    cdef NTSTATUS status
    cdef int length = 0
    cdef int level
    if q.asker is NULL or q.volume.lists[NAME_PROVIDERS] is NULL or q.node is NULL:     # a hint; the list is held below
        return 0
    providers = list_hold(q.volume, NAME_PROVIDERS)
    if providers is NULL:
        return 0
    provider = nearest_provider(providers, q.asker, False)
    if provider is not NULL:
        q.options = FLT_FILE_NAME_OPENED | FLT_FILE_NAME_QUERY_DEFAULT
        q.anywhere = True
        level = irql_set(PASSIVE_LEVEL)              # it is the manager who asks
        status = answer_by(q, provider, &found)
        irql_set(level)
        if status == STATUS_SUCCESS:
            path_of(found, &path)
            length = path.Length if <size_t>path.Length < size else -ENAMETOOLONG
            if length > 0:
                memcpy(buffer, path.Buffer, path.Length)
                buffer[length] = 0
            name_information_put(found)
    list_release(providers)
    return length


cdef int provided_path(const FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, bint target, char *buffer,
                       size_t size) noexcept nogil:
    cdef question_t q
    memset(&q, 0, sizeof(q))
    q.asker = FltObjects.Instance
    q.volume = FltObjects.Volume
    if target:
        q.file = FltObjects.FileObject
        q.destination = True
        q.node = Data.Iopb.Parameters.SetFile.TargetDirectory
        q.last = Data.Iopb.Parameters.SetFile.TargetName.Buffer
        q.last_length = Data.Iopb.Parameters.SetFile.TargetName.Length
    else:
        by_operation(&q, <FLT_CALLBACK_DATA *>Data, FltObjects.FileObject)
    return shown_path(&q, buffer, size)


cdef int provided_node_path(FLT_INSTANCE *instance, node_t *node, char *buffer, size_t size) noexcept nogil:
    cdef question_t q
    memset(&q, 0, sizeof(q))
    q.asker = instance
    q.volume = instance.Related.Volume
    q.node = node
    return shown_path(&q, buffer, size)
