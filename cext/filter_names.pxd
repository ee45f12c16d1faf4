# Files and names for filters' own I/O (filter_names.pyx): opening, closing, renaming, linking, deleting.
#
# All of it is seen by the instances below `Instance` alone, may be called from any callback and any thread of the filter, and waits
# in place. After the instance's teardown the answer is STATUS_FLT_DELETING_OBJECT. filter_io.pxd has what is done with an open file.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from stackfs.cext.callback_data cimport (
    FILE_OBJECT, FLT_CALLBACK_DATA, FLT_INSTANCE, FLT_RELATED_OBJECTS, IO_STATUS_BLOCK, REQUESTOR, SET_FILE_PARAMETERS, node_t, statx_t)
from stackfs.cext.ntstatus cimport NTSTATUS

# IoStatus.Information of a create
cpdef enum CreateResult:
    FILE_SUPERSEDED = 0
    FILE_OPENED = 1
    FILE_CREATED = 2
    FILE_OVERWRITTEN = 3

ctypedef struct OBJECT_ATTRIBUTES:
    const char *ObjectName               # components divided by '/', from RootDirectory on; links are not followed
    size_t ObjectNameLength              # 0: RootDirectory itself, whatever kind of file it is
    const FILE_OBJECT *RootDirectory     # NULL: the volume's root
    const REQUESTOR *Requestor           # as whom (B4.5); NULL: the daemon

# Opening. IoStatusBlock (or NULL): Information says what happened (CreateResult). OpenFlags of FltOpenFile are POSIX: O_RDONLY,
# O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_DIRECTORY (with O_CREAT: make one), O_TMPFILE, O_DIRECT, O_SYNC; O_APPEND has no effect.
cdef NTSTATUS FltCreateFileEx(FLT_INSTANCE *Instance, FILE_OBJECT **FileObject, uint32_t DesiredAccess,
                              const OBJECT_ATTRIBUTES *ObjectAttributes, IO_STATUS_BLOCK *IoStatusBlock, uint32_t Mode,
                              uint32_t CreateDisposition, uint32_t CreateOptions) noexcept nogil
cdef NTSTATUS FltOpenFile(FLT_INSTANCE *Instance, FILE_OBJECT **FileObject, const OBJECT_ATTRIBUTES *ObjectAttributes,
                          uint32_t OpenFlags, uint32_t Mode, IO_STATUS_BLOCK *IoStatusBlock) noexcept nogil
cdef NTSTATUS FltClose(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject) noexcept nogil

# Names, by path. Flags of filter_rename: RENAME_NOREPLACE, RENAME_EXCHANGE.
cdef NTSTATUS filter_rename(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, const OBJECT_ATTRIBUTES *To,
                            uint32_t Flags) noexcept nogil
cdef NTSTATUS filter_link(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, const OBJECT_ATTRIBUTES *To) noexcept nogil
cdef NTSTATUS filter_delete(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, bint Directory) noexcept nogil
cdef NTSTATUS filter_symlink(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, const char *Target, uint32_t Length) noexcept nogil
cdef NTSTATUS filter_query(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, statx_t *Info) noexcept nogil
cdef NTSTATUS filter_read_link(FLT_INSTANCE *Instance, const OBJECT_ATTRIBUTES *What, char *Buffer, uint32_t Length,
                               uint32_t *LengthReturned) noexcept nogil

# The directory in which an operation's name lies, as a RootDirectory; Directory.Node is NULL: it has none (the root). Give it back.
cdef void operation_directory(const FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, FILE_OBJECT *Directory) noexcept nogil
cdef void directory_release(const FLT_RELATED_OBJECTS *FltObjects, FILE_OBJECT *Directory) noexcept nogil

cdef struct filter_file_t:               # what FILE_OBJECT.FilterFile points to; guarded by its users, the list by one mutex
    FILE_OBJECT *file                    # a handle of the volume's table, which no number leads to
    FLT_INSTANCE *instance
    filter_file_t *next
    filter_file_t *previous
    node_t *parent                       # with a reference: where it was opened by name, or NULL
    int64_t offset                       # CurrentByteOffset
    int64_t listed_to                    # directories: where FltQueryDirectoryFile goes on
    uint8_t looked_up                    # its node has one lookup of ours: it can lose its name and stay reachable
    uint8_t delete_on_close
    uint8_t name_length
    char name[256]                       # as this layer has it

cdef uint32_t filter_io_close_all(FLT_INSTANCE *instance) noexcept nogil     # at its teardown: what the filter left open
# Rename, link and disposition of a file that the filter has opened (FltSetInformationFile); entered.
cdef NTSTATUS change_own_name(FLT_INSTANCE *instance, FILE_OBJECT *file, const SET_FILE_PARAMETERS *p) noexcept nogil
