"""Filter-initiated I/O under the DDI's names (docs/semantics.md, B4).

Parameters stand in the DDI's order, out-parameters are Out objects, and a routine answers the NTSTATUS that the DDI's
answers, as an unsigned number. An instance is what callbacks get as `FltObjects`; a file object, and a handle as well,
is a FilterFile, or `Data.file` inside a callback. What one page of the DDI calls a buffer with a structure in it is
here an object of a class named as that structure. The path in OBJECT_ATTRIBUTES begins at RootDirectory, or at the
volume's root; where the DDI has a security descriptor, the data of an operation in hand says as whose requestor
(IO_FORCE_ACCESS_CHECK). See stackfs/filter_io.py for the same in fewer words.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stackfs import api
from stackfs.cext import filter_file
from stackfs.cext.buffers import Mdl
from stackfs.cext.callback_data import CallbackData, DirectoryEntry
from stackfs.cext.filter_file import FileInformation, FileObject, FilterFile, GeneratedData
from stackfs.cext.filter_io import IoFlags
from stackfs.cext.filter_names import CreateResult
from stackfs.cext.pending import require_irql
from stackfs.cext.stack import InstanceEntry
from stackfs.ddi.object_attributes import OBJECT_ATTRIBUTES
from stackfs.ddi.out import Out

if TYPE_CHECKING:
    from stackfs.manager import Instance, LoadedFilter

__all__ = [
    "FILE_ALLOCATION_INFORMATION",
    "FILE_ATTRIBUTE_READONLY",
    "FILE_BASIC_INFORMATION",
    "FILE_CREATED",
    "FILE_DISPOSITION_INFORMATION",
    "FILE_END_OF_FILE_INFORMATION",
    "FILE_LINK_INFORMATION",
    "FILE_OPENED",
    "FILE_OVERWRITTEN",
    "FILE_RENAME_INFORMATION",
    "FILE_RENAME_REPLACE_IF_EXISTS",
    "FILE_SUPERSEDED",
    "FILE_USE_FILE_POINTER_POSITION",
    "FILE_WRITE_TO_END_OF_FILE",
    "FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET",
    "FLTFL_IO_OPERATION_NON_CACHED",
    "FLTFL_IO_OPERATION_PAGING",
    "FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING",
    "FLT_FLUSH_TYPE_DATA_SYNC_ONLY",
    "FLT_FLUSH_TYPE_FILE_DATA_ONLY",
    "FLT_FLUSH_TYPE_FLUSH_AND_PURGE",
    "FLT_FLUSH_TYPE_NO_SYNC",
    "IO_DRIVER_CREATE_CONTEXT",
    "IO_FORCE_ACCESS_CHECK",
    "IO_IGNORE_SHARE_ACCESS_CHECK",
    "IO_STATUS_BLOCK",
    "SECURITY_DESCRIPTOR",
    "SL_INDEX_SPECIFIED",
    "SL_RESTART_SCAN",
    "SL_RETURN_SINGLE_ENTRY",
    "FltAllocateCallbackData",
    "FltAllocateCallbackDataEx",
    "FltClose",
    "FltCreateFile",
    "FltCreateFileEx",
    "FltCreateFileEx2",
    "FltDeviceIoControlFile",
    "FltFlushBuffers",
    "FltFlushBuffers2",
    "FltFreeCallbackData",
    "FltFsControlFile",
    "FltIsDirectory",
    "FltOpenVolume",
    "FltPerformAsynchronousIo",
    "FltPerformSynchronousIo",
    "FltQueryDirectoryFile",
    "FltQueryDirectoryFileEx",
    "FltQueryEaFile",
    "FltQueryInformationByName",
    "FltQueryInformationFile",
    "FltQuerySecurityObject",
    "FltReadFile",
    "FltReadFileEx",
    "FltReuseCallbackData",
    "FltSetEaFile",
    "FltSetInformationFile",
    "FltSetSecurityObject",
    "FltWriteFile",
    "FltWriteFileEx",
]

FLTFL_IO_OPERATION_NON_CACHED = int(IoFlags.FLTFL_IO_OPERATION_NON_CACHED)
FLTFL_IO_OPERATION_PAGING = int(IoFlags.FLTFL_IO_OPERATION_PAGING)
FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET = int(IoFlags.FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET)
FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING = int(IoFlags.FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING)
FILE_SUPERSEDED = int(CreateResult.FILE_SUPERSEDED)
FILE_OPENED = int(CreateResult.FILE_OPENED)
FILE_CREATED = int(CreateResult.FILE_CREATED)
FILE_OVERWRITTEN = int(CreateResult.FILE_OVERWRITTEN)
IO_IGNORE_SHARE_ACCESS_CHECK = 0x0800
IO_FORCE_ACCESS_CHECK = 0x0001
FILE_ATTRIBUTE_READONLY = 0x1
FILE_USE_FILE_POINTER_POSITION = -2
FILE_WRITE_TO_END_OF_FILE = -1
FLT_FLUSH_TYPE_FLUSH_AND_PURGE = 1
FLT_FLUSH_TYPE_FILE_DATA_ONLY = 2
FLT_FLUSH_TYPE_NO_SYNC = 4
FLT_FLUSH_TYPE_DATA_SYNC_ONLY = 8
FILE_RENAME_REPLACE_IF_EXISTS = 0x1
SL_RESTART_SCAN = 0x1
SL_RETURN_SINGLE_ENTRY = 0x2
SL_INDEX_SPECIFIED = 0x4
QUERIES = frozenset({4, 5, 6, 7, 18, 34})
"""FILE_INFORMATION_CLASS numbers that FltQueryInformationFile answers, all with a FileInformation: FileBasic-,
FileStandard-, FileInternal-, FileEa-, FileAll- and FileNetworkOpenInformation."""

SYNCHRONOUS_PAGING = int(api.IRP_NOCACHE | api.IRP_PAGING_IO | api.IRP_SYNCHRONOUS_PAGING_IO)

NTSTATUS = int
APC_LEVEL = 1
ABOVE_EVERYTHING = "9" * 60
"""An altitude that no instance has: what is started below it goes to the top of a volume's stack."""

FltAsyncCallback = Callable[[CallbackData, Any], Any]


@dataclass
class IO_STATUS_BLOCK:
    """What an operation came to."""

    Status: int = 0
    Information: int = 0


@dataclass
class FILE_BASIC_INFORMATION:
    """Times in nanoseconds since 1970; None: as it is."""

    LastAccessTime: int | None = None
    LastWriteTime: int | None = None


@dataclass
class FILE_END_OF_FILE_INFORMATION:
    EndOfFile: int


@dataclass
class FILE_ALLOCATION_INFORMATION:
    """Bytes from the beginning that shall have space; the size stays."""

    AllocationSize: int


@dataclass
class FILE_DISPOSITION_INFORMATION:
    DeleteFile: bool = True


@dataclass
class FILE_RENAME_INFORMATION:
    """One component, in RootDirectory, or in the directory the file is in."""

    FileName: str | bytes
    RootDirectory: FileObject | None = None
    Flags: int = 0
    """FILE_RENAME_REPLACE_IF_EXISTS, as if it were ReplaceIfExists of the older class."""


@dataclass
class FILE_LINK_INFORMATION:
    """One component, in RootDirectory, or in the directory the file is in."""

    FileName: str | bytes
    RootDirectory: FileObject | None = None


@dataclass
class IO_DRIVER_CREATE_CONTEXT:
    """What FltCreateFileEx2 takes beside. ExtraCreateParameter and TxnParameters have to be None: neither is on Linux.
    SiloContext and DeviceObjectHint mean nothing."""

    Size: int = 0
    ExtraCreateParameter: Any = None
    DeviceObjectHint: Any = None
    TxnParameters: Any = None
    SiloContext: Any = None


@dataclass
class SECURITY_DESCRIPTOR:
    """Owner, group and permission bits: which of them count is said beside it (OWNER_SECURITY_INFORMATION, ...)."""

    Mode: int = 0
    Uid: int = 0
    Gid: int = 0


def run(what: Callable[[], Any]) -> NTSTATUS:
    """The status of what raises an OSError when it fails."""
    try:
        what()
    except OSError as error:
        return api.status_of(error)
    except ValueError:  # a name with a NUL in it, a file of another volume, a length that is none
        return int(api.STATUS_INVALID_PARAMETER)
    return int(api.STATUS_SUCCESS)


def ended(block: IO_STATUS_BLOCK | None, status: NTSTATUS, information: int = 0) -> NTSTATUS:
    if block is not None:
        block.Status, block.Information = status, information
    return status


def _top_of(filter: LoadedFilter | None, path: str) -> tuple[InstanceEntry, str] | None:
    """No instance: the name begins with a volume's mountpoint or name, and the top of that volume's stack is meant."""
    name = path
    volumes = {instance.volume for instance in filter.instances} if filter is not None else set()
    known = [(place, each) for each in volumes for place in (each.mountpoint, each.name) if place]
    for place, volume in sorted(known, key=lambda pair: len(pair[0]), reverse=True):
        if name == place or name.startswith(place.rstrip("/") + "/"):
            entry = InstanceEntry(volume, "top", ABOVE_EVERYTHING, filter.name if filter is not None else "")
            volume.core.stack.introduce(entry)
            return entry, name[len(place) :]
    return None


def FltCreateFileEx(
    Filter: LoadedFilter | None,
    Instance: Instance | None,
    FileHandle: Out[FilterFile],
    FileObject: Out[FilterFile] | None,
    DesiredAccess: int,
    ObjectAttributes: OBJECT_ATTRIBUTES,
    IoStatusBlock: IO_STATUS_BLOCK | None = None,
    AllocationSize: int | None = None,
    FileAttributes: int = 0,
    ShareAccess: int = 0,
    CreateDisposition: int = int(api.FILE_OPEN),
    CreateOptions: int = 0,
    EaBuffer: dict[str, bytes] | None = None,
    EaLength: int = 0,
    Flags: int = 0,
) -> NTSTATUS:
    """Opens or makes a file below Instance. Instance None: from the top of the stack, by a name that begins with the
    volume's mountpoint or name; the filter's own callbacks see that.

    FileAttributes: FILE_ATTRIBUTE_READONLY makes a file without write permission. ShareAccess means nothing on Linux.
    """
    path = ObjectAttributes.ObjectName or ""
    if Instance is None:
        top = _top_of(Filter, path)
        if top is None:
            return ended(IoStatusBlock, int(api.STATUS_OBJECT_PATH_NOT_FOUND))
        entry, path = top
    else:
        entry = Instance.entry
    requestor = ObjectAttributes.SecurityDescriptor if Flags & IO_FORCE_ACCESS_CHECK else None
    if Flags & IO_FORCE_ACCESS_CHECK and requestor is None:
        return ended(IoStatusBlock, int(api.STATUS_INVALID_PARAMETER))
    mode = (0o700 if CreateOptions & api.FILE_DIRECTORY_FILE else 0o600) & (
        ~0o222 if FileAttributes & FILE_ATTRIBUTE_READONLY else ~0
    )

    def create() -> None:
        file = filter_file.create_below(
            entry, path, DesiredAccess, CreateDisposition, CreateOptions, mode,
            directory=ObjectAttributes.RootDirectory, requestor=requestor,
        )  # fmt: skip
        try:
            if file.information == FILE_CREATED:
                if AllocationSize:
                    file.allocate(0, AllocationSize, keep_size=True)
                for name, value in (EaBuffer or {}).items():
                    file.set_ea(name, value)
        except BaseException:
            file.close()
            raise
        FileHandle.value = file

    status = run(create)
    if not api.is_success(status):
        return ended(IoStatusBlock, status)
    if FileObject is not None:
        FileObject.value = FileHandle.value
    return ended(IoStatusBlock, status, FileHandle.value.information)


def FltCreateFileEx2(
    Filter: LoadedFilter | None,
    Instance: Instance | None,
    FileHandle: Out[FilterFile],
    FileObject: Out[FilterFile] | None,
    DesiredAccess: int,
    ObjectAttributes: OBJECT_ATTRIBUTES,
    IoStatusBlock: IO_STATUS_BLOCK | None = None,
    AllocationSize: int | None = None,
    FileAttributes: int = 0,
    ShareAccess: int = 0,
    CreateDisposition: int = int(api.FILE_OPEN),
    CreateOptions: int = 0,
    EaBuffer: dict[str, bytes] | None = None,
    EaLength: int = 0,
    Flags: int = 0,
    DriverContext: IO_DRIVER_CREATE_CONTEXT | None = None,
) -> NTSTATUS:
    """FltCreateFileEx with a driver's context. STATUS_NOT_SUPPORTED: it has extra create parameters, or a
    transaction."""
    if DriverContext is not None and (
        DriverContext.ExtraCreateParameter is not None or DriverContext.TxnParameters is not None
    ):
        return ended(IoStatusBlock, int(api.STATUS_NOT_SUPPORTED))
    return FltCreateFileEx(
        Filter, Instance, FileHandle, FileObject, DesiredAccess, ObjectAttributes, IoStatusBlock, AllocationSize,
        FileAttributes, ShareAccess, CreateDisposition, CreateOptions, EaBuffer, EaLength, Flags,
    )  # fmt: skip


def FltCreateFile(
    Filter: LoadedFilter | None,
    Instance: Instance | None,
    FileHandle: Out[FilterFile],
    DesiredAccess: int,
    ObjectAttributes: OBJECT_ATTRIBUTES,
    IoStatusBlock: IO_STATUS_BLOCK | None = None,
    AllocationSize: int | None = None,
    FileAttributes: int = 0,
    ShareAccess: int = 0,
    CreateDisposition: int = int(api.FILE_OPEN),
    CreateOptions: int = 0,
    EaBuffer: dict[str, bytes] | None = None,
    EaLength: int = 0,
    Flags: int = 0,
) -> NTSTATUS:
    """FltCreateFileEx without the file object."""
    return FltCreateFileEx(
        Filter, Instance, FileHandle, None, DesiredAccess, ObjectAttributes, IoStatusBlock, AllocationSize,
        FileAttributes, ShareAccess, CreateDisposition, CreateOptions, EaBuffer, EaLength, Flags,
    )  # fmt: skip


def FltOpenVolume(
    Instance: Instance, VolumeHandle: Out[FilterFile], VolumeFileObject: Out[FilterFile] | None = None
) -> NTSTATUS:
    """The volume's root directory, opened below Instance."""
    status = run(lambda: setattr(VolumeHandle, "value", Instance.open("", os.O_RDONLY | os.O_DIRECTORY)))
    if VolumeFileObject is not None and api.is_success(status):
        VolumeFileObject.value = VolumeHandle.value
    return status


def FltClose(FileHandle: FilterFile) -> NTSTATUS:
    """CLEANUP and CLOSE. STATUS_INVALID_HANDLE: it is closed."""
    if FileHandle.closed:
        return int(api.STATUS_INVALID_HANDLE)
    FileHandle.close()
    return int(api.STATUS_SUCCESS)


def _transfer(
    instance: Instance,
    file: FileObject,
    major: int,
    offset: int | None,
    length: int,
    buffer: Any,
    flags: int,
    moved: Out[int] | None,
    routine: FltAsyncCallback | None,
    context: Any,
    key: int = 0,
) -> NTSTATUS:
    if offset == FILE_USE_FILE_POINTER_POSITION:
        offset = None
    part = memoryview(buffer)[:length]
    if len(part) < length:
        return int(api.STATUS_INVALID_PARAMETER)
    done: list[int] = []
    if routine is None:

        def transfer() -> None:
            move = file.read_into if major == api.IRP_MJ_READ else file.write
            done.append(move(offset, part, flags=flags, key=key))

        status = run(transfer)
        if moved is not None:
            moved.value = done[0] if done else 0
        return status
    data: Out[GeneratedData] = Out()
    status = FltAllocateCallbackData(instance, file, data)
    if not api.is_success(status):
        return status
    made = data.value
    made.major = major
    made.buffer = part
    made.offset = 0 if offset is None else offset
    made.key = key
    made.irp_flags = (
        (api.IRP_NOCACHE if flags & FLTFL_IO_OPERATION_NON_CACHED else 0)
        | (api.IRP_NOCACHE | api.IRP_PAGING_IO if flags & FLTFL_IO_OPERATION_PAGING else 0)
        | (SYNCHRONOUS_PAGING if flags & FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING else 0)
    )
    callback = routine

    def completed(ended: GeneratedData) -> None:
        try:
            callback(ended, context)
        finally:
            ended.free()

    if offset is None or not isinstance(file, FilterFile):
        made.free()
        return int(api.STATUS_INVALID_PARAMETER)
    status = made.start(completed)
    if status != api.STATUS_PENDING:
        made.free()
    return status


def FltReadFile(
    InitiatingInstance: Instance,
    FileObject: FileObject,
    ByteOffset: int | None,
    Length: int,
    Buffer: Any,
    Flags: int = 0,
    BytesRead: Out[int] | None = None,
    CallbackRoutine: FltAsyncCallback | None = None,
    CallbackContext: Any = None,
) -> NTSTATUS:
    """Reads into a writable buffer. ByteOffset None: the file object's own (synchronous only).

    CallbackRoutine(CallbackData, CallbackContext) is called by another thread: STATUS_PENDING. The file object is then
    one that the filter has opened.
    """
    return _transfer(
        InitiatingInstance, FileObject, int(api.IRP_MJ_READ), ByteOffset, Length, Buffer, Flags, BytesRead,
        CallbackRoutine, CallbackContext,
    )  # fmt: skip


def FltWriteFile(
    InitiatingInstance: Instance,
    FileObject: FileObject,
    ByteOffset: int | None,
    Length: int,
    Buffer: Any,
    Flags: int = 0,
    BytesWritten: Out[int] | None = None,
    CallbackRoutine: FltAsyncCallback | None = None,
    CallbackContext: Any = None,
) -> NTSTATUS:
    """Writes; FILE_WRITE_TO_END_OF_FILE as ByteOffset appends. As FltReadFile for the rest."""
    return _transfer(
        InitiatingInstance, FileObject, int(api.IRP_MJ_WRITE), ByteOffset, Length, Buffer, Flags, BytesWritten,
        CallbackRoutine, CallbackContext,
    )  # fmt: skip


def FltReadFileEx(
    InitiatingInstance: Instance,
    FileObject: FileObject,
    ByteOffset: int | None,
    Length: int,
    Buffer: Any,
    Flags: int = 0,
    BytesRead: Out[int] | None = None,
    CallbackRoutine: FltAsyncCallback | None = None,
    CallbackContext: Any = None,
    Key: int | None = None,
    Mdl: Mdl | None = None,
) -> NTSTATUS:
    """FltReadFile with the key of byte-range locks, for filters below that keep such (`data.key`). Buffer None: what
    Mdl describes; STATUS_INVALID_PARAMETER: that is None too, or shorter than Length."""
    room = Buffer if Buffer is not None else b"" if Mdl is None else Mdl.address()
    return _transfer(
        InitiatingInstance, FileObject, int(api.IRP_MJ_READ), ByteOffset, Length, room, Flags, BytesRead,
        CallbackRoutine, CallbackContext, Key or 0,
    )  # fmt: skip


def FltWriteFileEx(
    InitiatingInstance: Instance,
    FileObject: FileObject,
    ByteOffset: int | None,
    Length: int,
    Buffer: Any,
    Flags: int = 0,
    BytesWritten: Out[int] | None = None,
    CallbackRoutine: FltAsyncCallback | None = None,
    CallbackContext: Any = None,
    Key: int | None = None,
    Mdl: Mdl | None = None,
) -> NTSTATUS:
    """FltWriteFile, as FltReadFileEx is FltReadFile."""
    room = Buffer if Buffer is not None else b"" if Mdl is None else Mdl.address()
    return _transfer(
        InitiatingInstance, FileObject, int(api.IRP_MJ_WRITE), ByteOffset, Length, room, Flags, BytesWritten,
        CallbackRoutine, CallbackContext, Key or 0,
    )  # fmt: skip


def FltFlushBuffers(Instance: Instance, FileObject: FileObject) -> NTSTATUS:
    """fsync(2)."""
    return run(FileObject.flush)


def FltFlushBuffers2(
    Instance: Instance, FileObject: FileObject, FlushType: int, CallbackData: CallbackData | None = None
) -> NTSTATUS:
    """FLT_FLUSH_TYPE_FILE_DATA_ONLY and ..._DATA_SYNC_ONLY: fdatasync(2); ..._NO_SYNC: nothing has to be done, for the
    base keeps nothing back that only a flush would write."""
    if FlushType & FLT_FLUSH_TYPE_NO_SYNC:
        return int(api.STATUS_SUCCESS)
    only = bool(FlushType & (FLT_FLUSH_TYPE_FILE_DATA_ONLY | FLT_FLUSH_TYPE_DATA_SYNC_ONLY))
    return run(lambda: FileObject.flush(data_only=only))


def FltQueryInformationFile(
    Instance: Instance,
    FileObject: FileObject,
    FileInformation: Out[FileInformation],
    Length: int,
    FileInformationClass: int,
    LengthReturned: Out[int] | None = None,
) -> NTSTATUS:
    """A FileInformation, for each class in QUERIES; STATUS_INVALID_PARAMETER for others. Length means nothing here."""
    if FileInformationClass not in QUERIES:
        return int(api.STATUS_INVALID_PARAMETER)
    status = run(lambda: setattr(FileInformation, "value", FileObject.stat()))
    if LengthReturned is not None:
        LengthReturned.value = Length if api.is_success(status) else 0
    return status


def FltQueryInformationByName(
    Filter: LoadedFilter | None,
    Instance: Instance,
    ObjectAttributes: OBJECT_ATTRIBUTES,
    IoStatusBlock: IO_STATUS_BLOCK | None,
    FileInformation: Out[FileInformation],
    Length: int,
    FileInformationClass: int,
    DriverContext: object = None,
) -> NTSTATUS:
    """The same without opening the file; of a symbolic link, the link's."""
    if FileInformationClass not in QUERIES:
        return ended(IoStatusBlock, int(api.STATUS_INVALID_PARAMETER))

    def query() -> None:
        FileInformation.value = Instance.stat(
            ObjectAttributes.ObjectName or "", directory=ObjectAttributes.RootDirectory,
            requestor=ObjectAttributes.SecurityDescriptor,
        )  # fmt: skip

    return ended(IoStatusBlock, run(query))


def FltSetInformationFile(
    Instance: Instance, FileObject: FileObject, FileInformation: Any, Length: int, FileInformationClass: int
) -> NTSTATUS:
    """FileInformation: an object of the class that FileInformationClass names. Rename, link and disposition: of a file
    that the filter has opened by a name. Deleting takes the name away at once; DeleteFile False does nothing."""
    what = FileInformation
    table: dict[int, tuple[type[Any], Callable[[], Any]]] = {
        int(api.FileBasicInformation): (
            FILE_BASIC_INFORMATION,
            lambda: FileObject.set_times(atime_ns=what.LastAccessTime, mtime_ns=what.LastWriteTime),
        ),
        int(api.FileEndOfFileInformation): (FILE_END_OF_FILE_INFORMATION, lambda: FileObject.truncate(what.EndOfFile)),
        int(api.FileAllocationInformation): (
            FILE_ALLOCATION_INFORMATION,
            lambda: FileObject.allocate(0, what.AllocationSize, keep_size=True),
        ),
    }
    if isinstance(FileObject, FilterFile):
        own = FileObject
        table |= {
            int(api.FileRenameInformation): (FILE_RENAME_INFORMATION, lambda: _rename(own, what)),
            int(api.FileRenameInformationEx): (FILE_RENAME_INFORMATION, lambda: _rename(own, what)),
            int(api.FileLinkInformation): (
                FILE_LINK_INFORMATION,
                lambda: own.link(what.FileName, directory=what.RootDirectory),
            ),
            int(api.FileDispositionInformation): (
                FILE_DISPOSITION_INFORMATION,
                lambda: own.delete() if what.DeleteFile else None,
            ),
        }
    kind, act = table.get(FileInformationClass, (type(None), lambda: None))
    if not isinstance(what, kind) or kind is type(None):
        return int(api.STATUS_INVALID_PARAMETER)
    return run(act)


def _rename(file: FilterFile, what: FILE_RENAME_INFORMATION) -> None:
    replace = what.Flags & FILE_RENAME_REPLACE_IF_EXISTS
    file.rename(what.FileName, directory=what.RootDirectory, flags=0 if replace else 1)


def FltQueryDirectoryFile(
    Instance: Instance,
    FileObject: FilterFile,
    FileInformation: Out[list[DirectoryEntry]],
    Length: int,
    FileInformationClass: int,
    ReturnSingleEntry: bool = False,
    FileName: str | None = None,
    RestartScan: bool = False,
    LengthReturned: Out[int] | None = None,
) -> NTSTATUS:
    """The next entries, at most Length bytes of them; STATUS_NO_MORE_FILES at the end. FileName: only names that match
    it, as a shell would; STATUS_NO_SUCH_FILE when a scan from the beginning finds none."""
    FileInformation.value = []

    def query() -> None:
        restart = RestartScan
        while True:
            found = FileObject.next_entries(restart=restart, single=ReturnSingleEntry, size=Length)
            restart = False
            if FileName is not None:
                matching = [each for each in found if fnmatch.fnmatchcase(os.fsdecode(each.name), FileName)]
            else:
                matching = found
            if matching or not found:
                FileInformation.value = matching
                return

    status = run(query)
    count = len(FileInformation.value)
    if LengthReturned is not None:
        LengthReturned.value = count
    if api.is_success(status) and not count:
        return int(api.STATUS_NO_SUCH_FILE if RestartScan and FileName is not None else api.STATUS_NO_MORE_FILES)
    return status


def FltQueryDirectoryFileEx(
    Instance: Instance,
    FileObject: FilterFile,
    FileInformation: Out[list[DirectoryEntry]],
    Length: int,
    FileInformationClass: int,
    QueryFlags: int = 0,
    FileName: str | None = None,
    LengthReturned: Out[int] | None = None,
) -> NTSTATUS:
    """FltQueryDirectoryFile with flags: SL_RESTART_SCAN, SL_RETURN_SINGLE_ENTRY. STATUS_INVALID_PARAMETER: another
    one."""
    if QueryFlags & ~(SL_RESTART_SCAN | SL_RETURN_SINGLE_ENTRY):
        return int(api.STATUS_INVALID_PARAMETER)
    return FltQueryDirectoryFile(
        Instance, FileObject, FileInformation, Length, FileInformationClass, bool(QueryFlags & SL_RETURN_SINGLE_ENTRY),
        FileName, bool(QueryFlags & SL_RESTART_SCAN), LengthReturned,
    )  # fmt: skip


def FltIsDirectory(FileObject: FileObject, Instance: Instance, IsDirectory: Out[bool]) -> NTSTATUS:
    """Of a file that is open, or whose inode is known. STATUS_INVALID_HANDLE: it is closed, or is not open yet."""
    require_irql(APC_LEVEL, "FltIsDirectory")
    if not FileObject.alive or FileObject.nodeid == 0:
        return int(api.STATUS_INVALID_HANDLE)
    IsDirectory.value = FileObject.is_directory
    return int(api.STATUS_SUCCESS)


def FltQueryEaFile(
    Instance: Instance,
    FileObject: FileObject,
    ReturnedEaData: Out[dict[str, bytes]],
    Length: int,
    ReturnSingleEntry: bool = False,
    EaList: list[str] | None = None,
    EaListLength: int = 0,
    EaIndex: int | None = None,
    RestartScan: bool = True,
    LengthReturned: Out[int] | None = None,
) -> NTSTATUS:
    """Extended attributes by their full names ("user.colour"): those of EaList, or all that begin with "user."."""

    def query() -> None:
        names = EaList
        if names is None:
            names = [os.fsdecode(name) for name in FileObject.list_eas() if name.startswith(b"user.")]
        names = names[(EaIndex or 1) - 1 :][: 1 if ReturnSingleEntry else None]
        ReturnedEaData.value = {name: FileObject.get_ea(name) for name in names}

    status = run(query)
    if LengthReturned is not None:
        LengthReturned.value = sum(map(len, ReturnedEaData.value.values())) if api.is_success(status) else 0
    return status


def FltSetEaFile(Instance: Instance, FileObject: FileObject, EaBuffer: dict[str, bytes], Length: int = 0) -> NTSTATUS:
    """Sets each; an empty value takes the attribute away. Where one fails, those before it stay set."""

    def change() -> None:
        for name, value in EaBuffer.items():
            if value:
                FileObject.set_ea(name, value)
            else:
                FileObject.remove_ea(name)

    return run(change)


def FltQuerySecurityObject(
    Instance: Instance,
    FileObject: FileObject,
    SecurityInformation: int,
    SecurityDescriptor: Out[SECURITY_DESCRIPTOR],
    Length: int = 0,
    LengthNeeded: Out[int] | None = None,
) -> NTSTATUS:
    """Owner, group and permission bits. ACLs and labels are attributes with names: FltQueryEaFile."""

    def query() -> None:
        info = FileObject.stat()
        SecurityDescriptor.value = SECURITY_DESCRIPTOR(info.mode & 0o7777, info.uid, info.gid)

    status = run(query)
    if LengthNeeded is not None:
        LengthNeeded.value = 0
    return status


def FltSetSecurityObject(
    Instance: Instance, FileObject: FileObject, SecurityInformation: int, SecurityDescriptor: SECURITY_DESCRIPTOR
) -> NTSTATUS:
    """What SecurityInformation names: DACL_ (Mode), OWNER_, GROUP_SECURITY_INFORMATION."""
    return run(
        lambda: FileObject.set_security(
            mode=SecurityDescriptor.Mode if SecurityInformation & api.DACL_SECURITY_INFORMATION else None,
            uid=SecurityDescriptor.Uid if SecurityInformation & api.OWNER_SECURITY_INFORMATION else None,
            gid=SecurityDescriptor.Gid if SecurityInformation & api.GROUP_SECURITY_INFORMATION else None,
        )
    )


def _control(
    file: FileObject, code: int, given: bytes | None, given_length: int, out: Any, out_length: int,
    got: Out[int] | None, device: bool,
) -> NTSTATUS:  # fmt: skip
    def control() -> None:
        answer = file.control(code, (given or b"")[:given_length], out_length if out is not None else 0, device=device)
        if out is not None:
            memoryview(out).cast("B")[: len(answer)] = answer
        if got is not None:
            got.value = len(answer)

    if got is not None:
        got.value = 0
    return run(control)


def FltFsControlFile(
    Instance: Instance,
    FileObject: FileObject,
    FsControlCode: int,
    InputBuffer: bytes | None = None,
    InputBufferLength: int = 0,
    OutputBuffer: Any = None,
    OutputBufferLength: int = 0,
    LengthReturned: Out[int] | None = None,
) -> NTSTATUS:
    """A file system control; OutputBuffer is a writable buffer."""
    return _control(FileObject, FsControlCode, InputBuffer, InputBufferLength, OutputBuffer, OutputBufferLength,
                    LengthReturned, False)  # fmt: skip


def FltDeviceIoControlFile(
    Instance: Instance,
    FileObject: FileObject,
    IoControlCode: int,
    InputBuffer: bytes | None = None,
    InputBufferLength: int = 0,
    OutputBuffer: Any = None,
    OutputBufferLength: int = 0,
    LengthReturned: Out[int] | None = None,
) -> NTSTATUS:
    """A device control; the base knows none (STATUS_INVALID_DEVICE_REQUEST), a filter below may."""
    return _control(FileObject, IoControlCode, InputBuffer, InputBufferLength, OutputBuffer, OutputBufferLength,
                    LengthReturned, True)  # fmt: skip


def FltAllocateCallbackData(
    Instance: Instance, FileObject: FileObject, RetNewCallbackData: Out[GeneratedData]
) -> NTSTATUS:
    """Callback data to be filled by hand: see GeneratedData."""
    entry = Instance.entry
    return run(lambda: setattr(RetNewCallbackData, "value", filter_file.allocate_below(entry, FileObject)))


def FltAllocateCallbackDataEx(
    Instance: Instance, FileObject: FileObject, Flags: int, RetNewCallbackData: Out[GeneratedData]
) -> NTSTATUS:
    """The same; everything that it may need is allocated at once in any case."""
    return FltAllocateCallbackData(Instance, FileObject, RetNewCallbackData)


def FltPerformSynchronousIo(CallbackData: GeneratedData) -> None:
    """What came of it stands in `status` and `information`."""
    CallbackData.perform()


def FltPerformAsynchronousIo(
    CallbackData: GeneratedData, CallbackRoutine: FltAsyncCallback, CallbackContext: Any = None
) -> NTSTATUS:
    """STATUS_PENDING; another thread calls CallbackRoutine(CallbackData, CallbackContext), which frees the data."""
    return CallbackData.start(lambda ended: CallbackRoutine(ended, CallbackContext))


def FltReuseCallbackData(CallbackData: GeneratedData) -> None:
    """As it was when it was allocated."""
    CallbackData.reuse()


def FltFreeCallbackData(CallbackData: GeneratedData) -> None:
    """It must not be used after that."""
    CallbackData.free()
