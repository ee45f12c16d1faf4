# Callback data: what one operation looks like to a filter (docs/semantics.md, A4).
#
# The C structs are the truth; CallbackData is their Python face. Fields named as in the DDI keep its meaning;
# POSIX fields stand where Windows has none. A filter changes fields of Data.Iopb (and then calls
# FltSetCallbackDataDirty) or Data.IoStatus; everything else is read only for it.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from stackfs.cext.ntstatus cimport NTSTATUS

# IRP_MJ_*: an operation's index is the code as an unsigned byte (QUERY_OPEN, -7, is 0xF9).
cpdef enum MajorFunction:
    IRP_MJ_CREATE = 0x00
    IRP_MJ_CREATE_NAMED_PIPE = 0x01
    IRP_MJ_CLOSE = 0x02
    IRP_MJ_READ = 0x03
    IRP_MJ_WRITE = 0x04
    IRP_MJ_QUERY_INFORMATION = 0x05
    IRP_MJ_SET_INFORMATION = 0x06
    IRP_MJ_QUERY_EA = 0x07
    IRP_MJ_SET_EA = 0x08
    IRP_MJ_FLUSH_BUFFERS = 0x09
    IRP_MJ_QUERY_VOLUME_INFORMATION = 0x0a
    IRP_MJ_SET_VOLUME_INFORMATION = 0x0b
    IRP_MJ_DIRECTORY_CONTROL = 0x0c
    IRP_MJ_FILE_SYSTEM_CONTROL = 0x0d
    IRP_MJ_DEVICE_CONTROL = 0x0e
    IRP_MJ_INTERNAL_DEVICE_CONTROL = 0x0f
    IRP_MJ_SHUTDOWN = 0x10
    IRP_MJ_LOCK_CONTROL = 0x11
    IRP_MJ_CLEANUP = 0x12
    IRP_MJ_CREATE_MAILSLOT = 0x13
    IRP_MJ_QUERY_SECURITY = 0x14
    IRP_MJ_SET_SECURITY = 0x15
    IRP_MJ_POWER = 0x16                 # cannot be registered
    IRP_MJ_SYSTEM_CONTROL = 0x17
    IRP_MJ_DEVICE_CHANGE = 0x18         # cannot be registered
    IRP_MJ_QUERY_QUOTA = 0x19
    IRP_MJ_SET_QUOTA = 0x1a
    IRP_MJ_PNP = 0x1b
    IRP_MJ_VOLUME_DISMOUNT = 0xec
    IRP_MJ_VOLUME_MOUNT = 0xed
    IRP_MJ_MDL_WRITE_COMPLETE = 0xee
    IRP_MJ_PREPARE_MDL_WRITE = 0xef
    IRP_MJ_MDL_READ_COMPLETE = 0xf0
    IRP_MJ_MDL_READ = 0xf1
    IRP_MJ_NETWORK_QUERY_OPEN = 0xf2
    IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE = 0xf3
    IRP_MJ_QUERY_OPEN = 0xf9
    IRP_MJ_RELEASE_FOR_CC_FLUSH = 0xfa
    IRP_MJ_ACQUIRE_FOR_CC_FLUSH = 0xfb
    IRP_MJ_RELEASE_FOR_MOD_WRITE = 0xfc
    IRP_MJ_ACQUIRE_FOR_MOD_WRITE = 0xfd
    IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION = 0xfe
    IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION = 0xff

# Version of the interface for native filters, which compile it in (NativeOperations.set); stackfs.api has the same number.
cdef enum:
    FILTER_ABI = 1

# FLT_CALLBACK_DATA.Flags
cpdef enum DataFlags:
    FLTFL_CALLBACK_DATA_IRP_OPERATION = 0x00000001
    FLTFL_CALLBACK_DATA_FAST_IO_OPERATION = 0x00000002
    FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION = 0x00000004
    FLTFL_CALLBACK_DATA_SYSTEM_BUFFER = 0x00000008
    FLTFL_CALLBACK_DATA_GENERATED_IO = 0x00010000
    FLTFL_CALLBACK_DATA_REISSUED_IO = 0x00020000
    FLTFL_CALLBACK_DATA_DRAINING_IO = 0x00040000
    FLTFL_CALLBACK_DATA_POST_OPERATION = 0x00080000
    FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER = 0x00100000
    FLTFL_CALLBACK_DATA_DIRTY = 0x80000000

cpdef enum IrpFlags:
    IRP_NOCACHE = 0x1
    IRP_PAGING_IO = 0x2
    IRP_SYNCHRONOUS_API = 0x4
    IRP_SYNCHRONOUS_PAGING_IO = 0x40

# FLT_PREOP_CALLBACK_STATUS and FLT_POSTOP_CALLBACK_STATUS (A6)
cpdef enum PreopStatus:
    FLT_PREOP_SUCCESS_WITH_CALLBACK = 0
    FLT_PREOP_SUCCESS_NO_CALLBACK = 1
    FLT_PREOP_PENDING = 2
    FLT_PREOP_DISALLOW_FASTIO = 3
    FLT_PREOP_COMPLETE = 4
    FLT_PREOP_SYNCHRONIZE = 5
    FLT_PREOP_DISALLOW_FSFILTER_IO = 6

cpdef enum PostopStatus:
    FLT_POSTOP_FINISHED_PROCESSING = 0
    FLT_POSTOP_MORE_PROCESSING_REQUIRED = 1
    FLT_POSTOP_DISALLOW_FSFILTER_IO = 2

cpdef enum PostFlags:
    FLTFL_POST_OPERATION_DRAINING = 1

# FLT_OPERATION_REGISTRATION.Flags (A2)
cpdef enum OperationFlags:
    FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO = 1
    FLTFL_OPERATION_REGISTRATION_SKIP_CACHED_IO = 2
    FLTFL_OPERATION_REGISTRATION_SKIP_NON_DASD_IO = 4
    FLTFL_OPERATION_REGISTRATION_SKIP_NON_CACHED_NON_PAGING_IO = 8

# Create.DesiredAccess, Create.Options (disposition in the high byte, options below)
cpdef enum AccessMask:
    FILE_READ_DATA = 0x1
    FILE_WRITE_DATA = 0x2
    FILE_APPEND_DATA = 0x4
    FILE_READ_EA = 0x8
    FILE_WRITE_EA = 0x10
    FILE_EXECUTE = 0x20
    FILE_DELETE_CHILD = 0x40
    FILE_READ_ATTRIBUTES = 0x80
    FILE_WRITE_ATTRIBUTES = 0x100
    DELETE = 0x10000
    READ_CONTROL = 0x20000
    WRITE_DAC = 0x40000
    WRITE_OWNER = 0x80000
    SYNCHRONIZE = 0x100000

cpdef enum CreateDisposition:
    FILE_SUPERSEDE = 0
    FILE_OPEN = 1
    FILE_CREATE = 2
    FILE_OPEN_IF = 3
    FILE_OVERWRITE = 4
    FILE_OVERWRITE_IF = 5

cpdef enum CreateOptions:
    FILE_DIRECTORY_FILE = 0x1
    FILE_WRITE_THROUGH = 0x2
    FILE_NO_INTERMEDIATE_BUFFERING = 0x8
    FILE_NON_DIRECTORY_FILE = 0x40
    FILE_COMPLETE_IF_OPLOCKED = 0x100   # these three: oplocks (A9)
    FILE_DELETE_ON_CLOSE = 0x1000       # O_TMPFILE: a file without a name
    FILE_OPEN_REQUIRING_OPLOCK = 0x10000
    FILE_RESERVE_OPFILTER = 0x100000
    FILE_OPEN_REPARSE_POINT = 0x200000

cpdef enum FileInformationClass:
    FileBasicInformation = 4            # set: times
    FileRenameInformation = 10
    FileLinkInformation = 11
    FileDispositionInformation = 13     # unlink, rmdir
    FilePositionInformation = 14        # query: where data or a hole begins (SEEK_DATA, SEEK_HOLE)
    FileAllInformation = 18             # query: everything statx gives
    FileAllocationInformation = 19      # fallocate, plain and keep-size
    FileEndOfFileInformation = 20       # truncate
    FileNetworkOpenInformation = 34
    FileValidDataLengthInformation = 39
    FileShortNameInformation = 40
    FileDispositionInformationEx = 64
    FileRenameInformationEx = 65        # with NOREPLACE or EXCHANGE
    FileLinkInformationEx = 72

cpdef enum FsControlCode:
    FSCTL_REQUEST_OPLOCK_LEVEL_1 = 0x90000      # oplocks: oplock.pxd, A9
    FSCTL_REQUEST_OPLOCK_LEVEL_2 = 0x90004
    FSCTL_REQUEST_BATCH_OPLOCK = 0x90008
    FSCTL_OPLOCK_BREAK_ACKNOWLEDGE = 0x9000C
    FSCTL_OPBATCH_ACK_CLOSE_PENDING = 0x90010
    FSCTL_OPLOCK_BREAK_NOTIFY = 0x90014
    FSCTL_OPLOCK_BREAK_ACK_NO_2 = 0x90050
    FSCTL_REQUEST_FILTER_OPLOCK = 0x9005C
    FSCTL_REQUEST_OPLOCK = 0x90240
    FSCTL_SET_REPARSE_POINT = 0x900A4   # symlink
    FSCTL_GET_REPARSE_POINT = 0x900A8   # readlink
    FSCTL_DELETE_REPARSE_POINT = 0x900AC
    FSCTL_SET_ZERO_DATA = 0x980C8       # fallocate: punch a hole, zero a range
    FSCTL_DUPLICATE_EXTENTS_TO_FILE = 0x98344   # copy_file_range; sent to the target
    FSCTL_MANAGE_BYPASS_IO = 0x90448    # may this open be bypassed? Completing it with an error vetoes that
    FSCTL_LOCK_VOLUME = 0x90018         # these three of the volume, injected (D20)
    FSCTL_UNLOCK_VOLUME = 0x9001C
    FSCTL_DISMOUNT_VOLUME = 0x90020
    FSCTL_STACKFS_POLL = 0x92004        # poll(2), select(2), epoll(7) of an open file (D22); of an ioctl(2), RequestOpcode is not POLL's

# MinorFunction of DIRECTORY_CONTROL
cpdef enum DirectoryMinorFunction:
    IRP_MN_QUERY_DIRECTORY = 1
    IRP_MN_NOTIFY_CHANGE_DIRECTORY = 2

# MinorFunction of LOCK_CONTROL
cpdef enum LockMinorFunction:
    IRP_MN_LOCK = 1
    IRP_MN_UNLOCK_SINGLE = 2
    IRP_MN_UNLOCK_ALL = 3               # the file object's: at RELEASE
    IRP_MN_UNLOCK_ALL_BY_KEY = 4        # one owner's: at close(2)
    IRP_MN_QUERY_LOCK = 0x80            # F_GETLK; Windows has none

# MinorFunction of PNP
cpdef enum PnpMinorFunction:
    IRP_MN_QUERY_REMOVE_DEVICE = 1
    IRP_MN_REMOVE_DEVICE = 2
    IRP_MN_CANCEL_REMOVE_DEVICE = 3
    IRP_MN_SURPRISE_REMOVAL = 0x17

# AcquireForSectionSynchronization
cpdef enum SectionSyncType:
    SyncTypeOther = 0
    SyncTypeCreateSection = 1

cpdef enum PageProtection:
    PAGE_READONLY = 2
    PAGE_READWRITE = 4
    PAGE_EXECUTE = 0x10

# QuerySecurity/SetSecurity.SecurityInformation
cpdef enum SecurityInformation:
    OWNER_SECURITY_INFORMATION = 1
    GROUP_SECURITY_INFORMATION = 2
    DACL_SECURITY_INFORMATION = 4       # mode bits, or the ACL in the xattr EaName
    LABEL_SECURITY_INFORMATION = 0x10   # security.* and trusted.* xattrs

cdef extern from "<sys/stat.h>" nogil:
    struct statx_timestamp "statx_timestamp":
        int64_t tv_sec
        uint32_t tv_nsec
    struct statx_t "statx":
        uint32_t stx_mask
        uint32_t stx_blksize
        uint64_t stx_attributes
        uint32_t stx_nlink
        uint32_t stx_uid
        uint32_t stx_gid
        uint16_t stx_mode
        uint64_t stx_ino
        uint64_t stx_size
        uint64_t stx_blocks
        uint64_t stx_attributes_mask
        statx_timestamp stx_atime, stx_btime, stx_ctime, stx_mtime
        uint32_t stx_rdev_major, stx_rdev_minor, stx_dev_major, stx_dev_minor

cdef struct node_t                       # inode_table.pxd
cdef struct context_t                    # contexts.pxd
cdef struct FLT_FILE_NAME_INFORMATION    # names.pxd
cdef struct FLT_VOLUME                   # stack.pxd
cdef struct FLT_FILTER
cdef struct FLT_INSTANCE

# FILE_OBJECT.Flags
cdef enum:
    FO_SYNTHESISED = 1                   # no handle: the open, cleanup and close around a by-path request
    FO_DIRECTORY = 2
    FO_VOLUME_OPEN = 4                   # the volume itself (SKIP_NON_DASD_IO spares nothing else)
    FO_OPENED = 8                        # the base has it open (fd, or the synthesised open has succeeded)
    FO_COUNTED = 16                      # its inode counts it among its open files (bypass.pyx, with the two below)
    FO_ON_BACKING_ID = 32                # the kernel maps the backing file for it, and reads and writes it unless DIRECT_IO
    FO_BYPASSED = 64                     # no filter sees its mappings, nor, unless it appends, its reads and writes
    FO_LOCKED = 128                      # a lock was taken through it: CLEANUP is preceded by an UNLOCK_ALL
    FO_UNREADABLE = 256                  # the base could not open it for reading, which writing back may need
    FO_CREATED = 512                     # its CREATE has succeeded: there is a stream, which can have contexts,
    FO_CLOSED = 1024                     # until its CLOSE
    FO_FILE_OPEN_CANCELLED = 2048        # FltCancelFileOpen has closed it below
    FO_COHERENT = 8192                   # its inode counts it among those that a lease is for (coherence.pyx)
    FO_SECTION = 4096                    # the kernel has read pages of it, or of a mapping: filters have been told (D19)

ctypedef struct oplock_open_t:           # an open as oplocks know it (oplock.pxd): its address is who it is
    uint8_t TargetKey[16]                # equal keys: one client, whose opens do not break each other's oplocks; zeros: none
    uint8_t ParentKey[16]                # the same for the oplock of its directory

ctypedef struct FILE_OBJECT:
    node_t *Node                         # what is open; NULL before a create by name has succeeded
    node_t *Directory                    # where Iopb.FileName is looked up; NULL for an open by node
    int fd                               # -1 when synthesised
    uint32_t Flags
    uint32_t OpenFlags                   # POSIX open flags, as the caller gave them
    uint64_t fh                          # handle number given to the kernel; 0 when synthesised
    node_t *NameDirectory                # handles: the name it was opened by, at the top of the stack
    char *Name
    uint16_t NameLength
    context_t *Contexts                  # stream handle contexts (contexts.pyx)
    void *FilterFile                     # a filter has opened it: its record (filter_io.pyx); NULL: a program has
    oplock_open_t Oplock

ctypedef struct FILE_NAME:               # one component: any bytes but '/' and NUL, 1 to 255, at this layer
    const char *Buffer                   # not NUL-terminated
    uint16_t Length

ctypedef struct CREATE_PARAMETERS:
    uint32_t DesiredAccess
    uint32_t Options                     # disposition << 24 | create options
    uint32_t Mode                        # st_mode of what is created, type bits included
    uint32_t OpenFlags                   # POSIX
    uint32_t Umask
    uint32_t Device                      # mknod: rdev as the kernel encodes it for FUSE (new_encode_dev)

ctypedef struct READ_WRITE_PARAMETERS:
    uint32_t Length
    uint32_t Key
    int64_t ByteOffset
    void *Buffer
    void *MdlAddress
    uint64_t LockOwner

ctypedef struct QUERY_FILE_PARAMETERS:   # QUERY_OPEN, NETWORK_QUERY_OPEN, QUERY_INFORMATION
    uint32_t Length
    uint32_t FileInformationClass
    statx_t *Info                        # filled below; a post may change it; NULL for FilePositionInformation
    int64_t Offset                       # FilePositionInformation: from where; IoStatus.Information: what was found
    uint32_t Whence                      # SEEK_DATA, SEEK_HOLE

ctypedef struct SET_FILE_PARAMETERS:
    uint32_t FileInformationClass
    uint32_t Flags                       # rename: RENAME_NOREPLACE, RENAME_EXCHANGE; basic: FATTR_* bits; disposition: AT_REMOVEDIR
    int64_t EndOfFile
    int64_t AllocationOffset             # FileAllocationInformation: the range; Flags: 0 or FALLOC_FL_KEEP_SIZE
    int64_t AllocationLength
    int64_t atime_sec, mtime_sec
    uint32_t atime_nsec, mtime_nsec
    node_t *TargetDirectory              # rename, link
    FILE_NAME TargetName

ctypedef struct EA_PARAMETERS:           # QUERY_EA, SET_EA; QUERY_SECURITY and SET_SECURITY of an xattr
    uint32_t SecurityInformation
    uint32_t Flags                       # XATTR_CREATE, XATTR_REPLACE
    const char *EaName                   # NUL-terminated; NULL: list (query), remove never has NULL
    void *Buffer                         # NULL with Length 0: ask for the size (query)
    uint32_t Length
    uint32_t Remove                      # SET_EA: remove EaName
    void *MdlAddress

ctypedef struct SECURITY_PARAMETERS:     # SET_SECURITY of mode and owner
    uint32_t SecurityInformation
    uint32_t Mode
    uint32_t Uid
    uint32_t Gid
    # Clear set-user-ID, and set-group-ID unless a member of the group asks and the group may not execute (no Mode then).
    uint32_t KillSetId

ctypedef struct DIRECTORY_PARAMETERS:    # QUERY_DIRECTORY; NOTIFY_CHANGE_DIRECTORY, which only filters send
    uint32_t Length                      # of Buffer
    uint32_t CompletionFilter            # NOTIFY_CHANGE_DIRECTORY: FILE_NOTIFY_CHANGE_* bits; OperationFlags: SL_WATCH_TREE
    int64_t Offset                       # d_off to go on from; 0: from the beginning
    void *Buffer                         # linux_dirent64 records; IoStatus.Information: bytes
    void *MdlAddress

ctypedef struct CONTROL_PARAMETERS:      # FILE_SYSTEM_CONTROL, DEVICE_CONTROL; what is injected (D20)
    uint32_t ControlCode
    uint32_t InputBufferLength
    uint32_t OutputBufferLength
    uint32_t Flags                       # SET_ZERO_DATA: FALLOC_FL_*; POLL: the events asked for (POLLIN, ...)
    const void *InputBuffer
    void *OutputBuffer
    int64_t FileOffset                   # SET_ZERO_DATA, DUPLICATE_EXTENTS: the range in the target; POLL: the handle to wake it by
    int64_t ByteCount
    int64_t SourceFileOffset             # DUPLICATE_EXTENTS
    FILE_OBJECT *SourceFile
    void *MdlAddress                     # of OutputBuffer

ctypedef struct lock_range_t:            # as struct fuse_file_lock
    uint64_t start
    uint64_t end                         # the last byte
    uint32_t type                        # F_RDLCK, F_WRLCK, F_UNLCK
    uint32_t pid                         # 0: not a process that uses this volume, or not known

ctypedef struct LOCK_PARAMETERS:         # LOCK_CONTROL
    int64_t ByteOffset
    uint64_t Length                      # 2^63 - ByteOffset: to the end, wherever that will be
    uint64_t LockOwner                   # Key, 64 bits of it: whose the lock is
    uint32_t ProcessId
    uint8_t FailImmediately
    uint8_t ExclusiveLock
    uint8_t Flock                        # of the open file, not of bytes (flock(2)); the two kinds do not see each other
    lock_range_t *Found                  # QUERY_LOCK: filled below; a post may change it

ctypedef struct VOLUME_PARAMETERS:       # QUERY_VOLUME_INFORMATION; SET_VOLUME_INFORMATION, which only filters send
    void *Buffer                         # query: struct statvfs; set: what FsInformationClass names
    uint32_t Length
    uint32_t FsInformationClass

ctypedef struct FLUSH_PARAMETERS:        # FLUSH_BUFFERS
    uint32_t DataOnly

ctypedef struct SECTION_PARAMETERS:      # ACQUIRE_FOR_SECTION_SYNCHRONIZATION
    uint32_t SyncType
    uint32_t PageProtection              # what whoever has the file open may do with a mapping of it

ctypedef struct MODIFIED_PAGE_PARAMETERS:    # ACQUIRE_FOR_MOD_WRITE, RELEASE_FOR_MOD_WRITE
    int64_t EndingOffset                 # of the pages that are written back

ctypedef struct FAST_IO_CHECK_PARAMETERS:    # FAST_IO_CHECK_IF_POSSIBLE
    int64_t FileOffset
    uint64_t Length
    uint64_t LockOwner
    uint8_t CheckForReadOperation
    uint8_t Wait

ctypedef struct MOUNT_PARAMETERS:        # VOLUME_MOUNT
    uint32_t DeviceType

ctypedef union FLT_PARAMETERS:
    CREATE_PARAMETERS Create
    READ_WRITE_PARAMETERS Read
    READ_WRITE_PARAMETERS Write
    QUERY_FILE_PARAMETERS QueryFile
    SET_FILE_PARAMETERS SetFile
    EA_PARAMETERS Ea
    SECURITY_PARAMETERS Security
    DIRECTORY_PARAMETERS Directory
    CONTROL_PARAMETERS Control
    VOLUME_PARAMETERS Volume
    FLUSH_PARAMETERS Flush
    LOCK_PARAMETERS Lock
    SECTION_PARAMETERS AcquireForSectionSynchronization
    MODIFIED_PAGE_PARAMETERS AcquireForModifiedPageWriter
    FAST_IO_CHECK_PARAMETERS FastIoCheckIfPossible
    MOUNT_PARAMETERS MountVolume

ctypedef struct FLT_IO_PARAMETER_BLOCK:
    uint32_t IrpFlags
    uint8_t MajorFunction
    uint8_t MinorFunction
    uint8_t OperationFlags
    uint8_t Reserved
    FILE_OBJECT *TargetFileObject
    FLT_INSTANCE *TargetInstance
    FILE_NAME FileName                   # the target's name in TargetFileObject.Directory, at this layer; Length 0: by node
    FLT_PARAMETERS Parameters

ctypedef struct IO_STATUS_BLOCK:
    NTSTATUS Status
    uint64_t Information                 # bytes moved, or what the operation defines

ctypedef struct REQUESTOR:               # whom the request is from; pid is found by requestor_pid() (process.pxd) when asked
    uint32_t tid                         # thread id; 0: the kernel itself (write-back)
    uint32_t uid
    uint32_t gid
    int64_t group                        # the one supplementary group the kernel named, or -1

# REQUEST.. flags in FLT_CALLBACK_DATA.RequestFlags
cdef enum:
    REQUEST_PRINCIPAL = 1                # this operation is what the request asked for (the SET_INFORMATION of an unlink)
    REQUEST_FIRST = 2                    # the first operation of its request

ctypedef struct FLT_CALLBACK_DATA:
    uint32_t Flags
    uint32_t RequestFlags
    FLT_IO_PARAMETER_BLOCK *Iopb
    IO_STATUS_BLOCK IoStatus
    const REQUESTOR *Thread
    uint64_t RequestNumber               # one number for all operations of one VFS request
    uint32_t RequestOpcode               # the VFS request, as FUSE numbers it (requests.pxd)
    uint32_t RequestorMode               # 1: a program (UserMode); 0: stackfs or a filter (KernelMode)
    void *FilterContext[2]

ctypedef struct FLT_RELATED_OBJECTS:
    FLT_FILTER *Filter
    FLT_VOLUME *Volume
    FLT_INSTANCE *Instance
    FILE_OBJECT *FileObject

ctypedef int (*PFLT_PRE_OPERATION_CALLBACK)(FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects,
                                            void **CompletionContext) noexcept nogil
ctypedef int (*PFLT_POST_OPERATION_CALLBACK)(FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects,
                                             void *CompletionContext, uint32_t Flags) noexcept nogil

cdef class CallbackData:
    """The Python face of one operation, alive while the callback it was given to runs, or until its filter completes it."""
    cdef FLT_CALLBACK_DATA *data         # NULL once the callback has returned, or the operation has been completed
    cdef const FLT_RELATED_OBJECTS *objects
    cdef object owner                    # whose memory the request's buffer is (Python), or None; once dead: whose data it was (verifier)
    cdef list carried                    # what callbacks above have put into the parameters, or None
    cdef bint writable                   # may `buffer` be written in place
    cdef list views                      # memoryviews given out
    cdef list copies                     # stand-ins for memory that belongs to no Python object
    cdef list kept                       # what the callback put into the parameters (new names and buffers)
    cdef bytes new_entries               # a listing that counts when the callback returns
    cdef list borrowed                   # contexts, each with a reference until the callback returns
    cdef bint size_changed
    cdef uint64_t old_size
    cdef bint pended                     # it outlives its callback
    cdef bint cancellable                # what cancels it holds a reference on this
    cdef object on_cancel                # called with this then
    cdef object queue                    # the cancel-safe queue it is in, or None
    cdef void hold(self, FLT_RELATED_OBJECTS *lasting)
    cdef FLT_CALLBACK_DATA *finish(self, bint post) except NULL
    cdef FLT_CALLBACK_DATA *live(self) except NULL
    cdef int dead(self, bint completing) except -1
    cdef void commit(self)               # the callback has returned what is legal: what it made counts
    cdef void undo(self)                 # it has not
    cdef void end(self)
    cdef object view(self, void *start, Py_ssize_t length, bint writable)
    cdef object stand_in(self, void *start, Py_ssize_t length, bint writable)
    cdef object keep(self, object thing)
    cdef object borrow(self, object context)
    cdef int refuse(self, str what) except -1
    cdef lock_range_t *lock_query(self) except NULL
    cdef FLT_CALLBACK_DATA *live_poll(self) except NULL

cdef list unpack_entries(const char *buffer, uint64_t length)            # linux_dirent64 records as DirectoryEntry

cdef CallbackData callback_data_new(
    FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, object owner, list carried, bint writable)

cdef inline void FltSetCallbackDataDirty(FLT_CALLBACK_DATA *Data) noexcept nogil:
    Data.Flags |= <uint32_t>FLTFL_CALLBACK_DATA_DIRTY

cdef inline void FltClearCallbackDataDirty(FLT_CALLBACK_DATA *Data) noexcept nogil:
    Data.Flags &= ~<uint32_t>FLTFL_CALLBACK_DATA_DIRTY

cdef inline bint FltIsCallbackDataDirty(const FLT_CALLBACK_DATA *Data) noexcept nogil:
    return (Data.Flags & <uint32_t>FLTFL_CALLBACK_DATA_DIRTY) != 0
