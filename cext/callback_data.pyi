"""Callback data: the Python face of one operation (docs/semantics.md, A4)."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

from stackfs.cext.filter_file import FileObject, FilterFile, ReparsePoint
from stackfs.cext.python_contexts import Context
from stackfs.cext.python_names import FileNameInformation

_Kind = TypeVar("_Kind", bound=Context)

class MajorFunction(IntEnum):
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
    IRP_MJ_POWER = 0x16
    IRP_MJ_SYSTEM_CONTROL = 0x17
    IRP_MJ_DEVICE_CHANGE = 0x18
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

class DataFlags(IntEnum):
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

class IrpFlags(IntEnum):
    IRP_NOCACHE = 0x1
    IRP_PAGING_IO = 0x2
    IRP_SYNCHRONOUS_API = 0x4
    IRP_SYNCHRONOUS_PAGING_IO = 0x40

class PreopStatus(IntEnum):
    FLT_PREOP_SUCCESS_WITH_CALLBACK = 0
    FLT_PREOP_SUCCESS_NO_CALLBACK = 1
    FLT_PREOP_PENDING = 2
    FLT_PREOP_DISALLOW_FASTIO = 3
    FLT_PREOP_COMPLETE = 4
    FLT_PREOP_SYNCHRONIZE = 5
    FLT_PREOP_DISALLOW_FSFILTER_IO = 6

class PostopStatus(IntEnum):
    FLT_POSTOP_FINISHED_PROCESSING = 0
    FLT_POSTOP_MORE_PROCESSING_REQUIRED = 1
    FLT_POSTOP_DISALLOW_FSFILTER_IO = 2

class PostFlags(IntEnum):
    FLTFL_POST_OPERATION_DRAINING = 1

class OperationFlags(IntEnum):
    FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO = 1
    FLTFL_OPERATION_REGISTRATION_SKIP_CACHED_IO = 2
    FLTFL_OPERATION_REGISTRATION_SKIP_NON_DASD_IO = 4
    FLTFL_OPERATION_REGISTRATION_SKIP_NON_CACHED_NON_PAGING_IO = 8

class AccessMask(IntEnum):
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

class CreateDisposition(IntEnum):
    FILE_SUPERSEDE = 0
    FILE_OPEN = 1
    FILE_CREATE = 2
    FILE_OPEN_IF = 3
    FILE_OVERWRITE = 4
    FILE_OVERWRITE_IF = 5

class CreateOptions(IntEnum):
    FILE_DIRECTORY_FILE = 0x1
    FILE_WRITE_THROUGH = 0x2
    FILE_NO_INTERMEDIATE_BUFFERING = 0x8
    FILE_NON_DIRECTORY_FILE = 0x40
    FILE_COMPLETE_IF_OPLOCKED = 0x100
    FILE_DELETE_ON_CLOSE = 0x1000
    FILE_OPEN_REQUIRING_OPLOCK = 0x10000
    FILE_RESERVE_OPFILTER = 0x100000
    FILE_OPEN_REPARSE_POINT = 0x200000

class FileInformationClass(IntEnum):
    FileBasicInformation = 4
    FileRenameInformation = 10
    FileLinkInformation = 11
    FileDispositionInformation = 13
    FilePositionInformation = 14
    FileAllInformation = 18
    FileAllocationInformation = 19
    FileEndOfFileInformation = 20
    FileNetworkOpenInformation = 34
    FileValidDataLengthInformation = 39
    FileShortNameInformation = 40
    FileDispositionInformationEx = 64
    FileRenameInformationEx = 65
    FileLinkInformationEx = 72

class FsControlCode(IntEnum):
    FSCTL_REQUEST_OPLOCK_LEVEL_1 = 0x90000
    FSCTL_REQUEST_OPLOCK_LEVEL_2 = 0x90004
    FSCTL_REQUEST_BATCH_OPLOCK = 0x90008
    FSCTL_OPLOCK_BREAK_ACKNOWLEDGE = 0x9000C
    FSCTL_OPBATCH_ACK_CLOSE_PENDING = 0x90010
    FSCTL_OPLOCK_BREAK_NOTIFY = 0x90014
    FSCTL_OPLOCK_BREAK_ACK_NO_2 = 0x90050
    FSCTL_REQUEST_FILTER_OPLOCK = 0x9005C
    FSCTL_REQUEST_OPLOCK = 0x90240
    FSCTL_SET_REPARSE_POINT = 0x900A4
    FSCTL_GET_REPARSE_POINT = 0x900A8
    FSCTL_DELETE_REPARSE_POINT = 0x900AC
    FSCTL_SET_ZERO_DATA = 0x980C8
    FSCTL_DUPLICATE_EXTENTS_TO_FILE = 0x98344
    FSCTL_MANAGE_BYPASS_IO = 0x90448
    FSCTL_LOCK_VOLUME = 0x90018
    FSCTL_UNLOCK_VOLUME = 0x9001C
    FSCTL_DISMOUNT_VOLUME = 0x90020
    FSCTL_STACKFS_POLL = 0x92004

class DirectoryMinorFunction(IntEnum):
    IRP_MN_QUERY_DIRECTORY = 1
    IRP_MN_NOTIFY_CHANGE_DIRECTORY = 2

class LockMinorFunction(IntEnum):
    IRP_MN_LOCK = 1
    IRP_MN_UNLOCK_SINGLE = 2
    IRP_MN_UNLOCK_ALL = 3
    IRP_MN_UNLOCK_ALL_BY_KEY = 4
    IRP_MN_QUERY_LOCK = 0x80

class PnpMinorFunction(IntEnum):
    IRP_MN_QUERY_REMOVE_DEVICE = 1
    IRP_MN_REMOVE_DEVICE = 2
    IRP_MN_CANCEL_REMOVE_DEVICE = 3
    IRP_MN_SURPRISE_REMOVAL = 0x17

class SectionSyncType(IntEnum):
    SyncTypeOther = 0
    SyncTypeCreateSection = 1

class PageProtection(IntEnum):
    PAGE_READONLY = 2
    PAGE_READWRITE = 4
    PAGE_EXECUTE = 0x10

class SecurityInformation(IntEnum):
    OWNER_SECURITY_INFORMATION = 1
    GROUP_SECURITY_INFORMATION = 2
    DACL_SECURITY_INFORMATION = 4
    LABEL_SECURITY_INFORMATION = 0x10

REQUEST_NAMES: dict[int, str]
"""FUSE's request numbers, by the names that logs and the audit trail use."""
MAJOR_NAMES: dict[int, str]

class DirectoryEntry(NamedTuple):
    """One name of a listing: name (bytes), inode number, d_type (DT_*), d_off to go on behind it."""

    name: bytes
    inode: int
    type: int
    offset: int

def major_name(major: int) -> str:
    """ "IRP_MJ_READ" for 3; the number for what is none."""

class CallbackData:
    """One operation, as a callback sees it. Sizes are bytes, times nanoseconds; see docs/semantics.md A4.

    Alive until the callback it was given to returns: later use raises ReferenceError, and every memoryview taken from
    it raises ValueError. A parameter that the operation does not have raises AttributeError.
    """

    @property
    def major(self) -> int:
        """The operation: an IRP_MJ_* number."""
    @property
    def minor(self) -> int:
        """minor"""
    @property
    def flags(self) -> int:
        """FLTFL_CALLBACK_DATA_* bits."""
    @property
    def irp_flags(self) -> int:
        """IRP_NOCACHE, IRP_PAGING_IO, ... bits."""
    @property
    def is_irp(self) -> bool:
        """is_irp"""
    @property
    def is_fast_io(self) -> bool:
        """is_fast_io"""
    @property
    def is_fs_filter(self) -> bool:
        """is_fs_filter"""
    @property
    def request(self) -> str:
        """The VFS request this operation belongs to, by name ("unlink")."""
    @property
    def request_number(self) -> int:
        """One number for all operations of one VFS request."""
    @property
    def principal(self) -> bool:
        """True for the operation that its request asked for (the SET_INFORMATION of an unlink)."""
    @property
    def tid(self) -> int:
        """Thread id of the requestor; 0: the kernel itself."""
    @property
    def pid(self) -> int:
        """Process id of the requestor (FltGetRequestorProcessId); 0: the kernel itself, or the process is gone."""
    @property
    def uid(self) -> int:
        """uid"""
    @property
    def gid(self) -> int:
        """gid"""
    @property
    def comm(self) -> str:
        """Command name of the requesting thread."""
    @property
    def path(self) -> str:
        """Path from the volume's root ("/a/b"); a deleted file's last name is followed by " (deleted)"."""
    @property
    def file(self) -> FileObject | None:
        """The file that the operation is about, for I/O below this instance (B4), and for routines that take a file
        object; alive as long as this is. None: there is none."""
    @property
    def directory(self) -> FileObject | None:
        """The directory that the operation's name lies in (of an open file: the one it was opened in); it stays good
        after the callback. None: it has none, being the root."""
    @property
    def is_generated(self) -> bool:
        """A filter above has started it (FLTFL_CALLBACK_DATA_GENERATED_IO)."""
    @property
    def name(self) -> bytes:
        """The name looked up in its directory, as this layer has it (bytes); b"" when the operation goes by handle."""
    @name.setter
    def name(self, value: Any) -> None: ...
    @property
    def target_name(self) -> bytes:
        """Rename and link: the new name (bytes)."""
    @target_name.setter
    def target_name(self, value: Any) -> None: ...
    @property
    def desired_access(self) -> int:
        """CREATE: FILE_READ_DATA, FILE_WRITE_DATA, DELETE, ... bits."""
    @property
    def create_options(self) -> int:
        """CREATE: FILE_DIRECTORY_FILE, ... bits. Those for oplocks may be changed: FILE_COMPLETE_IF_OPLOCKED,
        FILE_OPEN_REQUIRING_OPLOCK and FILE_RESERVE_OPFILTER. ValueError: others would be."""
    @create_options.setter
    def create_options(self, value: int) -> None: ...
    @property
    def create_disposition(self) -> int:
        """CREATE: FILE_OPEN, FILE_CREATE, FILE_OPEN_IF, FILE_OVERWRITE or FILE_OVERWRITE_IF."""
    @property
    def open_flags(self) -> int:
        """CREATE: the caller's O_* flags."""
    @property
    def wants_write(self) -> bool:
        """CREATE: would this open change anything: write, append, truncate, create, delete, or change attributes?"""
    @property
    def offset(self) -> int:
        """READ, WRITE: byte offset in the file; DIRECTORY_CONTROL: position to go on from."""
    @offset.setter
    def offset(self, value: int) -> None: ...
    @property
    def length(self) -> int:
        """READ, WRITE: bytes asked for; elsewhere: size of the buffer."""
    @length.setter
    def length(self, value: int) -> None: ...
    @property
    def buffer(self) -> Any:
        """The operation's buffer as a memoryview; None when it has none. After a read: `information` bytes are data."""
    @buffer.setter
    def buffer(self, value: Any) -> None: ...
    @property
    def information_class(self) -> int:
        """QUERY_INFORMATION, SET_INFORMATION: which information, as FILE_INFORMATION_CLASS numbers it."""
    @property
    def end_of_file(self) -> int:
        """SET_INFORMATION of FileEndOfFileInformation: the new size."""
    @end_of_file.setter
    def end_of_file(self, value: int) -> None: ...
    @property
    def size(self) -> int:
        """After a query: the file's size as the layer below gives it. A post callback may set another."""
    @size.setter
    def size(self, value: int) -> None: ...
    @property
    def mode(self) -> int:
        """CREATE: st_mode of what is made; after a query: the file's st_mode; SET_SECURITY: the new mode."""
    @property
    def security_information(self) -> int:
        """QUERY_SECURITY, SET_SECURITY: OWNER_, GROUP_, DACL_, LABEL_SECURITY_INFORMATION bits."""
    @property
    def entries(self) -> list[DirectoryEntry]:
        """DIRECTORY_CONTROL, post: the names listed, as a list of DirectoryEntry. A post callback may set another list
        (at most as long in bytes as the buffer; keep the offsets, they are how the listing goes on)."""
    @entries.setter
    def entries(self, value: Any) -> None: ...
    @property
    def ea_name(self) -> bytes | None:
        """QUERY_EA, SET_EA and the security operations of an xattr: its full name (bytes), None for a list."""
    @property
    def data_only(self) -> bool:
        """FLUSH_BUFFERS: fdatasync(2), not fsync(2)."""
    @property
    def control_code(self) -> int:
        """FILE_SYSTEM_CONTROL, DEVICE_CONTROL, and what is injected with buffers (D20): its number."""
    @property
    def poll_events(self) -> int:
        """FSCTL_STACKFS_POLL: the events asked for (select.POLLIN, ...). Who completes it, or sees it completed, gives
        those that there are as `information`."""
    @property
    def poll_handle(self) -> int:
        """FSCTL_STACKFS_POLL: what Volume.wake_poll() takes. A number for an open file's lifetime."""
    @property
    def input(self) -> bytes:
        """FILE_SYSTEM_CONTROL, DEVICE_CONTROL: what the caller passed in, copied."""
    @property
    def range(self) -> tuple[int, int]:
        """(offset, length) of what is locked (LOCK_CONTROL), reserved (FileAllocationInformation), zeroed
        (FSCTL_SET_ZERO_DATA), copied to (FSCTL_DUPLICATE_EXTENTS_TO_FILE) or asked about
        (FAST_IO_CHECK_IF_POSSIBLE). A pre callback may set another."""
    @range.setter
    def range(self, value: tuple[int, int]) -> None: ...
    @property
    def source_offset(self) -> int:
        """FSCTL_DUPLICATE_EXTENTS_TO_FILE: where the copied bytes begin in the source."""
    @property
    def exclusive(self) -> bool:
        """LOCK_CONTROL: a write lock."""
    @property
    def fail_immediately(self) -> bool:
        """LOCK_CONTROL: the caller does not want to wait."""
    @property
    def lock_owner(self) -> int:
        """LOCK_CONTROL, READ, WRITE, FAST_IO_CHECK_IF_POSSIBLE: whose locks they are, as a number; 0: none named."""
    @property
    def check_for_read(self) -> bool:
        """FAST_IO_CHECK_IF_POSSIBLE: for a read, or a shared lock; `range` says of which bytes."""
    @property
    def page_protection(self) -> int:
        """ACQUIRE_FOR_SECTION_SYNCHRONIZATION: what a mapping may be used for (PAGE_READONLY, ...)."""
    @property
    def ending_offset(self) -> int:
        """ACQUIRE_FOR_MOD_WRITE, RELEASE_FOR_MOD_WRITE: where the pages end that are written back, in bytes."""
    @property
    def status(self) -> int:
        """IoStatus.Status as an unsigned NTSTATUS. A post callback may set it; so may a pre callback that completes."""
    @status.setter
    def status(self, value: int) -> None: ...
    @property
    def information(self) -> int:
        """IoStatus.Information: bytes moved, or what the operation defines."""
    @information.setter
    def information(self, value: int) -> None: ...
    @property
    def is_dirty(self) -> bool:
        """is_dirty"""
    def complete_pended_pre(self, status: int, context: Any = None) -> None:
        """FltCompletePendedPreOperation: an operation whose pre callback returned FLT_PREOP_PENDING, or is about to,
        goes on, in this thread, as if the callback had returned `status`: FLT_PREOP_SUCCESS_WITH_CALLBACK (with a
        completion context), ..._NO_CALLBACK, or FLT_PREOP_COMPLETE:
        `data.complete_pended_pre(data.complete(STATUS_CANCELLED))`.

        ReferenceError: somebody has completed it. ValueError: another status, or not the data of a pre callback's IRP.
        """
    def complete_pended_post(self) -> None:
        """FltCompletePendedPostOperation: an operation whose post callback returned
        FLT_POSTOP_MORE_PROCESSING_REQUIRED, or is about to, goes on up, in this thread. ReferenceError: somebody has
        completed it."""
    def end_async(self, answer: Any, error: BaseException | None = None) -> None:
        """What an `async def` callback returned, or the exception it raised: the operation goes on (see
        InstanceEntry)."""
    @property
    def instance(self) -> Any:
        """The instance whose callback got it: what callbacks know as `objects`."""
    @property
    def irql(self) -> int:
        """The level here and now (A6.12): DISPATCH_LEVEL (2) in a post that may come in any thread, else
        PASSIVE_LEVEL (0)."""
    @property
    def is_canceled(self) -> bool:
        """FltIsIoCanceled: an INTERRUPT (a signal to the program), or cancel(), has come for it."""
    def set_cancel_completion(self, routine: Callable[[CallbackData], object]) -> int:
        """FltSetCancelCompletion: `routine(data)` is called once when the operation is cancelled, in whatever thread;
        the operation is then the routine's to complete. To be called before the callback returns FLT_PREOP_PENDING.

        STATUS_SUCCESS; STATUS_CANCELLED: it has been cancelled already, and the routine will not be called;
        STATUS_NOT_SUPPORTED: it is no IRP. ValueError: something else cancels it already.
        """
    def clear_cancel_completion(self) -> int:
        """FltClearCancelCompletion. STATUS_CANCELLED: the routine has been called, or is about to be: the operation
        is its."""
    def cancel(self) -> bool:
        """FltCancelIo: as the program's INTERRUPT. False: nobody has said how; it is only marked (is_canceled)."""
    def name_information(self, options: int = 0x101) -> FileNameInformation:
        """FltGetFileNameInformation: the file's name, with its parts, as it is called below this instance (B1).
        options: FLT_FILE_NAME_* (the default: NORMALIZED, QUERY_DEFAULT).

        NtStatusError: STATUS_FLT_INVALID_NAME_REQUEST (paging I/O, after CLOSE, a short name before CREATE),
        STATUS_FLT_NAME_CACHE_MISS, STATUS_OBJECT_NAME_NOT_FOUND (there is no short name), what a name provider answers.
        """
    def destination_name_information(self, options: int = 0x101) -> FileNameInformation:
        """FltGetDestinationFileNameInformation: what a rename or link is about to call the file (B1.7)."""
    def get_context(self, kind: type[_Kind]) -> _Kind | None:
        """The instance's context of this class: of the open file, the stream, the file, the instance or the volume, as
        the class says (B2). It has a reference until the callback returns; `context.reference()` to keep it longer.

        NtStatusError: STATUS_NOT_SUPPORTED, before a CREATE has succeeded and after CLOSE.
        """
    def ensure_context(self, kind: type[_Kind]) -> _Kind:
        """The same; one is made, kind(), and set if there is none. When two do so at once, both get the one that came
        first. NtStatusError: STATUS_NOT_SUPPORTED, STATUS_FLT_DELETING_OBJECT once the instance's teardown began."""
    def set_context(self, context: _Kind, *, replace: bool = False) -> _Kind | None:
        """Set it where its class says. If there is one already it stays, or with `replace` goes; returns the one that
        was there. What was not set goes when nobody else has a reference. NtStatusError: as ensure_context(), and
        STATUS_FLT_CONTEXT_ALREADY_LINKED."""
    def delete_context(self, kind: type[Context]) -> bool:
        """Take the instance's context of this class off; it goes when nobody has a reference. False: there was none."""
    @property
    def session_id(self) -> int | None:
        """The requestor's session (FltGetRequestorSessionId), as getsid(2) numbers it; None: the kernel itself, or
        gone."""
    @property
    def is_synchronous(self) -> bool:
        """FltIsOperationSynchronous: does whoever asked wait for the outcome? (semantics A6.23)"""
    @property
    def key(self) -> int:
        """READ, WRITE: the key of byte-range locks that a filter gave with its own transfer (FltReadFileEx); else
        0."""
    @property
    def fs_information_class(self) -> int:
        """QUERY_VOLUME_INFORMATION, SET_VOLUME_INFORMATION: which, as FS_INFORMATION_CLASS numbers it."""
    @property
    def completion_filter(self) -> int:
        """DIRECTORY_CONTROL, IRP_MN_NOTIFY_CHANGE_DIRECTORY: the changes wanted, FILE_NOTIFY_CHANGE_* bits."""
    @property
    def reparse_point(self) -> ReparsePoint | None:
        """TagData (semantics B5.3), of a file that is open or, in the post of a CREATE that succeeded, just opened;
        None: it has none."""
    @property
    def is_flock(self) -> bool:
        """LOCK_CONTROL: of the open file as a whole (flock(2)), not of bytes."""
    @property
    def found_lock(self) -> tuple[int, int, bool, int] | None:
        """LOCK_CONTROL, IRP_MN_QUERY_LOCK: (offset, length, exclusive, process id) of a lock in the way, or None. Who
        completes the query, or sees it completed, may set it."""
    @found_lock.setter
    def found_lock(self, value: tuple[int, int, bool, int] | None) -> None: ...
    @property
    def lock_pid(self) -> int:
        """LOCK_CONTROL: the process id that F_GETLK shall show for it."""
    def request_operation_status(self, routine: Callable[..., Any], context: Any = None) -> int:
        """FltRequestOperationStatusCallback, in a pre callback: routine(objects, iopb, status, context) is called once,
        when the operation has been below: with its status, or STATUS_PENDING where a filter there holds it. iopb:
        stackfs.cext.operation_status.IoParameterBlock.

        STATUS_SUCCESS; STATUS_INVALID_PARAMETER: no pre callback, no IRP, or a CLOSE; STATUS_FLT_DELETING_OBJECT.
        """
    def veto_bypass(self, reason: str, status: int = ...) -> int:
        """FltVetoBypassIo: `return data.veto_bypass("why")` in the pre callback of an FSCTL_MANAGE_BYPASS_IO.
        The open stands, its reads and writes come to the stack, `stackfs status` says why. Elsewhere ValueError."""
    def complete(self, status: int, information: int = 0) -> int:
        """Set the outcome; `return data.complete(STATUS_ACCESS_DENIED)` ends the operation (FLT_PREOP_COMPLETE)."""
    def set_target(self, instance: Any, file: FilterFile) -> None:
        """TargetInstance and TargetFileObject (A4.8), in the pre callback of an operation on an open file: it goes on
        on another volume, below this filter's instance there at the same altitude, on a file which that one has opened.
        """
    def reparse(self, path: Any) -> int:
        """STATUS_REPARSE (A6.21): `return data.reparse("/a/b")` in the pre callback of a CREATE or QUERY_OPEN. The
        request begins again, at the top of the stack, about what that path leads to, from the volume's root on."""
    def reissue(self) -> bool:
        """FltReissueSynchronousIo, in the post callback of a CREATE or of what the pre callback has synchronised: done
        again below, with the parameters as they were, or as this callback changed them and set_dirty(). False: not
        legal here."""
    def cancel_open(self) -> bool:
        """FltCancelFileOpen, in the post callback of a CREATE that succeeded; then set `status`. False: not legal."""
    def set_dirty(self) -> None:
        """FltSetCallbackDataDirty: the changes made to the parameters count."""
    def clear_dirty(self) -> None:
        """FltClearCallbackDataDirty: takes back this callback's own set_dirty()."""
