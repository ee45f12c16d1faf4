# File name information (docs/semantics.md, B1): the name of a file as one layer of the stack sees it.
#
# A name is the volume's name and the path from its root: "drive/a/b". It comes from the inode table; an instance that shows
# other names above itself than lie below (a name provider) is asked on the way. Information is immutable, shared, and counted:
# getting gives one reference, FltReferenceFileNameInformation one more, each release takes one away. Only memory depends on it.
#
# The cache hangs on the inode table's nodes and is guarded by its mutex (inode_table.pyx), under which information is freed at
# most. No lock is held while a provider is asked.

from cpython.object cimport PyObject
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from stackfs.cext.callback_data cimport (
    FILE_NAME, FILE_OBJECT, FLT_CALLBACK_DATA, FLT_FILE_NAME_INFORMATION, FLT_INSTANCE, FLT_RELATED_OBJECTS, node_t)
from stackfs.cext.ntstatus cimport NTSTATUS

# FLT_FILE_NAME_OPTIONS: one format, one query method, flags
cpdef enum FileNameOptions:
    FLT_FILE_NAME_NORMALIZED = 0x1
    FLT_FILE_NAME_OPENED = 0x2
    FLT_FILE_NAME_SHORT = 0x3
    FLT_VALID_FILE_NAME_FORMATS = 0xFF
    FLT_FILE_NAME_QUERY_DEFAULT = 0x100
    FLT_FILE_NAME_QUERY_CACHE_ONLY = 0x200
    FLT_FILE_NAME_QUERY_FILESYSTEM_ONLY = 0x300
    FLT_FILE_NAME_QUERY_ALWAYS_ALLOW_CACHE_LOOKUP = 0x400
    FLT_VALID_FILE_NAME_QUERY_METHODS = 0xFF00
    FLT_FILE_NAME_REQUEST_FROM_CURRENT_PROVIDER = 0x1000000
    FLT_FILE_NAME_DO_NOT_CACHE = 0x2000000
    FLT_FILE_NAME_ALLOW_QUERY_ON_REPARSE = 0x4000000

cpdef enum NamesParsed:
    FLTFL_FILE_NAME_PARSED_FINAL_COMPONENT = 1
    FLTFL_FILE_NAME_PARSED_EXTENSION = 2
    FLTFL_FILE_NAME_PARSED_STREAM = 4
    FLTFL_FILE_NAME_PARSED_PARENT_DIR = 8

cpdef enum NormalizeFlags:
    FLTFL_NORMALIZE_NAME_CASE_SENSITIVE = 1
    FLTFL_NORMALIZE_NAME_DESTINATION_FILE_NAME = 2

cdef enum:
    SL_OPEN_TARGET_DIRECTORY = 4         # OperationFlags of CREATE
    LONGEST_NAME = 4608

cdef struct FLT_FILE_NAME_INFORMATION:
    uint16_t Size
    uint16_t NamesParsed
    uint32_t Format
    FILE_NAME Name                       # all of it; FLT_FILE_NAME_SHORT: the last component alone, and nothing else
    FILE_NAME Volume
    FILE_NAME Share                      # empty: volumes are not remote
    FILE_NAME Extension                  # behind the last '.' of the final component
    FILE_NAME Stream                     # empty: a file has one stream
    FILE_NAME FinalComponent
    FILE_NAME ParentDir                  # from '/' to '/'
    # the manager's own
    long references                      # atomic
    uint64_t path_changes                # the inode table's, when it was cached
    FLT_FILE_NAME_INFORMATION *next      # in the cache of one node
    const FLT_INSTANCE *provider         # who made it; NULL: the inode table
    const node_t *directory              # the name it was asked for by, if any: compared, never followed
    char *link
    uint16_t link_length

ctypedef struct FLT_NAME_CONTROL:        # a name that grows
    char *Buffer
    uint32_t Length
    uint32_t MaximumLength

# Callbacks of a name provider. FileName: path from the volume's root, as it is shown above Instance.
ctypedef NTSTATUS (*PFLT_GENERATE_FILE_NAME)(
    FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, FLT_CALLBACK_DATA *CallbackData, uint32_t NameOptions,
    bint *CacheFileNameInformation, FLT_NAME_CONTROL *FileName) noexcept nogil
# Component: as it was given; ExpandComponentName: as it is called in ParentDirectory. STATUS_NO_SUCH_FILE: there is none.
ctypedef NTSTATUS (*PFLT_NORMALIZE_NAME_COMPONENT_EX)(
    FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, const FILE_NAME *ParentDirectory, uint16_t VolumeNameLength,
    const FILE_NAME *Component, FLT_NAME_CONTROL *ExpandComponentName, uint32_t Flags, void **NormalizationContext) noexcept nogil
ctypedef void (*PFLT_NORMALIZE_CONTEXT_CLEANUP)(FLT_INSTANCE *Instance, void **NormalizationContext) noexcept nogil

ctypedef struct name_provider_t:
    PFLT_GENERATE_FILE_NAME GenerateFileName
    PFLT_NORMALIZE_NAME_COMPONENT_EX NormalizeNameComponentEx    # NULL: components are what they are
    PFLT_NORMALIZE_CONTEXT_CLEANUP NormalizeContextCleanup
    PyObject *python                     # the NameProvider (borrowed), when the callbacks are Python's

# --- the DDI's routines. Data: in the callback that it was given to.
cdef NTSTATUS FltGetFileNameInformation(
    FLT_CALLBACK_DATA *Data, uint32_t NameOptions, FLT_FILE_NAME_INFORMATION **FileNameInformation) noexcept nogil
# FileObject: open. Instance: whose layer's names; not NULL, as it has the volume.
cdef NTSTATUS FltGetFileNameInformationUnsafe(
    FILE_OBJECT *FileObject, FLT_INSTANCE *Instance, uint32_t NameOptions,
    FLT_FILE_NAME_INFORMATION **FileNameInformation) noexcept nogil
# RootDirectory: Parameters.SetFile.TargetDirectory; NULL: the directory that FileObject is in.
cdef NTSTATUS FltGetDestinationFileNameInformation(
    FLT_INSTANCE *Instance, FILE_OBJECT *FileObject, node_t *RootDirectory, const char *FileName, uint16_t FileNameLength,
    uint32_t NameOptions, FLT_FILE_NAME_INFORMATION **RetFileNameInformation) noexcept nogil
cdef NTSTATUS FltGetTunneledName(
    FLT_CALLBACK_DATA *Data, FLT_FILE_NAME_INFORMATION *FileNameInformation,
    FLT_FILE_NAME_INFORMATION **RetTunneledFileNameInformation) noexcept nogil
cdef NTSTATUS FltParseFileNameInformation(FLT_FILE_NAME_INFORMATION *FileNameInformation) noexcept nogil
cdef NTSTATUS FltParseFileName(const FILE_NAME *FileName, FILE_NAME *Extension, FILE_NAME *Stream, FILE_NAME *FinalComponent) noexcept nogil
cdef NTSTATUS FltPurgeFileNameInformationCache(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject) noexcept nogil
cdef NTSTATUS FltCheckAndGrowNameControl(FLT_NAME_CONTROL *NameCtrl, uint32_t NewSize) noexcept nogil

cdef extern from *:
    """
    #define stackfs_count_name(what, by) __atomic_add_fetch(what, by, __ATOMIC_ACQ_REL)
    """
    long stackfs_count_name(long *what, long by) nogil

cdef inline void name_information_hold(FLT_FILE_NAME_INFORMATION *information) noexcept nogil:
    stackfs_count_name(&information.references, 1)

cdef inline void name_information_put(FLT_FILE_NAME_INFORMATION *information) noexcept nogil:
    if stackfs_count_name(&information.references, -1) == 0:
        free(information)

cdef inline void FltReferenceFileNameInformation(FLT_FILE_NAME_INFORMATION *information) noexcept nogil:
    name_information_hold(information)

cdef inline void FltReleaseFileNameInformation(FLT_FILE_NAME_INFORMATION *information) noexcept nogil:
    name_information_put(information)

# --- for paths.pyx
# What an operation is about, or its target, as the nearest provider below FltObjects.Instance shows it, at any level; 0: there is none,
# or it does not say. -ENAMETOOLONG.
cdef int provided_path(const FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, bint target, char *buffer,
                       size_t size) noexcept nogil

cdef int provided_node_path(FLT_INSTANCE *instance, node_t *node, char *buffer, size_t size) noexcept nogil      # the same of a node

# --- for python_names.pyx
# What a provider's callback begins with: the name as it is below the instance.
cdef NTSTATUS name_below(FLT_INSTANCE *instance, FILE_OBJECT *file, uint32_t options, FLT_FILE_NAME_INFORMATION **below) noexcept nogil

cdef inline void set_part(FILE_NAME *part, const char *start, size_t length) noexcept nogil:
    part.Buffer = start
    part.Length = <uint16_t>length

cdef inline void path_of(const FLT_FILE_NAME_INFORMATION *information, FILE_NAME *path) noexcept nogil:
    set_part(path, information.Name.Buffer + information.Volume.Length, information.Name.Length - information.Volume.Length)
