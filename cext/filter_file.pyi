"""Filters' own I/O as Python sees it (docs/semantics.md, B4)."""

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from stackfs.cext.callback_data import CallbackData, DirectoryEntry
from stackfs.cext.file_object import FileReference
from stackfs.cext.stack import InstanceEntry

_Path = str | bytes | os.PathLike[Any]

class FileInformation(NamedTuple):
    """What statx gives; size in bytes, blocks of 512 bytes, times in nanoseconds since 1970."""

    mode: int
    inode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int

class ReparsePoint(NamedTuple):
    """What a file is tagged with (semantics B5.3)."""

    tag: int
    data: bytes = ...
    guid: bytes | None = ...
    """Of whose tag it is; None: bit 31 of the tag is set."""

def set_volume_information_below(entry: InstanceEntry, which: int, information: bytes) -> None:
    """FltSetVolumeInformation: SET_VOLUME_INFORMATION below; the base knows none."""
def error_of(status: int, what: Any = None) -> OSError:
    """The OSError for a status: errno by the table of A10.4, the status itself in its attribute `status`."""

class FileObject(FileReference):
    """A file that I/O below this instance can be done on. Offsets, sizes: bytes. Raises OSError, with `status`."""

    data: CallbackData | None
    """The operation whose file it is, and with which it dies; None: it lives by itself."""
    def read(self, offset: int | None, size: int, *, flags: int = 4, key: int = 0) -> bytes:
        """Up to `size` bytes at `offset` (None: the file's own position); fewer at its end.

        flags: FLTFL_IO_OPERATION_* bits; DO_NOT_UPDATE_BYTE_OFFSET, the default, leaves the position where it is. key:
        of byte-range locks that a filter below keeps.
        """
    def read_into(self, offset: int | None, buffer: Any, *, flags: int = 4, key: int = 0) -> int:
        """The same, into a writable buffer. How many bytes."""
    def write(self, offset: int | None, data: Any, *, flags: int = 4, key: int = 0) -> int:
        """Writes bytes at `offset` (None: the file's own position; -1: at the end). How many were written: fewer only
        where the disk is full, or a limit is met."""
    def flush(self, *, data_only: bool = False) -> None:
        """fsync(2), or fdatasync(2)."""
    def seek_data(self, offset: int) -> int:
        """Where data begins, from `offset` on; OSError ENXIO: nowhere."""
    def seek_hole(self, offset: int) -> int:
        """Where a hole, or the end of the file, begins."""
    def stat(self) -> FileInformation:
        """Its attributes."""
    def truncate(self, size: int) -> None:
        """Sets the size (FileEndOfFileInformation)."""
    def allocate(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        """Reserves space (FileAllocationInformation), as fallocate(2)."""
    def punch(self, offset: int, length: int) -> None:
        """Makes a hole (FSCTL_SET_ZERO_DATA); the size stays."""
    def set_times(self, *, atime_ns: int | None = None, mtime_ns: int | None = None) -> None:
        """Nanoseconds since 1970 (FileBasicInformation); None: as it is."""
    def set_security(self, *, mode: int | None = None, uid: int | None = None, gid: int | None = None) -> None:
        """Permission bits, owner, group; None: as it is."""
    def get_ea(self, name: str | bytes) -> bytes:
        """An extended attribute's value, by its full name ("user.colour")."""
    def list_eas(self) -> list[bytes]:
        """Their full names, as bytes."""
    def set_ea(self, name: str | bytes, value: bytes, *, flags: int = 0) -> None:
        """flags: os.XATTR_CREATE, os.XATTR_REPLACE."""
    def remove_ea(self, name: str | bytes) -> None:
        """Takes an extended attribute away."""
    def control(self, code: int, input: bytes = b"", output_size: int = 0, *, device: bool = False) -> bytes:
        """FltFsControlFile, with device=True FltDeviceIoControlFile: what came back."""
    def get_reparse_point(self) -> ReparsePoint | None:
        """FSCTL_GET_REPARSE_POINT, of an open file or directory, or a symbolic link (whose data is the target): its
        ReparsePoint; None: it has none."""
    def set_reparse_point(self, tag: int, data: bytes = b"", *, guid: bytes | None = None) -> None:
        """FltTagFile: FSCTL_SET_REPARSE_POINT. guid: 16 bytes, of whose tag it is; None for a tag with bit 31 set."""
    def remove_reparse_point(self, tag: int, *, guid: bytes | None = None) -> None:
        """FltUntagFile: FSCTL_DELETE_REPARSE_POINT. It must be tagged so."""
    def entries(self) -> list[DirectoryEntry]:
        """A directory's names, as the layer below shows them: a list of DirectoryEntry, without "." and ".."."""
    def reopen(self, flags: int = 0) -> FilterFile:
        """The same file, opened again for the filter: with other rights than the program's, and for longer."""
    def open(
        self, path: _Path, flags: int = 0, mode: int = 0o600, *, requestor: CallbackData | None = None
    ) -> FilterFile:
        """A FilterFile: a path from this directory on. See the instance's open()."""
    @property
    def is_directory(self) -> bool:
        """Is it a directory?"""
    @property
    def owner(self) -> Any:
        """The instance below which I/O on it goes: what callbacks know as `objects`."""
    @property
    def nodeid(self) -> int:
        """A number for the inode, the same for every file object of it; 0: it is not open yet."""

class FilterFile(FileObject):
    """A file that a filter has opened below itself. Close it: `with objects.open(...) as file`."""

    path: str | bytes | os.PathLike[Any]
    """As it was given to open()."""
    information: int
    """What opening it did: FILE_OPENED 1, FILE_CREATED 2, FILE_OVERWRITTEN 3, FILE_SUPERSEDED 0."""
    def next_entries(self, *, restart: bool = False, single: bool = False, size: int = 32768) -> list[DirectoryEntry]:
        """FltQueryDirectoryFile: the directory's next entries, "." and ".." among them; [] at its end.

        size: bytes of room for their records (a name takes at most 280). single: one alone.
        """
    def close(self) -> None:
        """CLEANUP and CLOSE below. Twice is no harm; I/O under way ends first."""
    @property
    def closed(self) -> bool:
        """Was it closed?"""
    def __enter__(self) -> FilterFile: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...
    def entries(self) -> list[DirectoryEntry]:
        """A directory's names, as the layer below shows them: a list of DirectoryEntry, without "." and ".."."""
    def rename(self, name: str | bytes, *, directory: FileObject | None = None, flags: int = 0) -> None:
        """Gives it another name in its directory, or in another one. flags: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2."""
    def link(self, name: str | bytes, *, directory: FileObject | None = None) -> None:
        """One more name. A file opened with O_TMPFILE gets its first by this, in `directory`."""
    def delete(self) -> None:
        """Takes the name away that it was opened by (FileDispositionInformation), if that still leads to it."""
    def delete_on_close(self) -> None:
        """The same when it is closed (FILE_DELETE_ON_CLOSE)."""
    def start_read(self, offset: int, size: int, done: Callable[[int, bytes], Any], *, flags: int = 0) -> None:
        """Reads in another thread, which then calls done(status, bytes)."""
    def start_write(self, offset: int, data: Any, done: Callable[[int, int], Any], *, flags: int = 0) -> None:
        """Writes in another thread, which then calls done(status, bytes written). `data` must not change until then."""

class GeneratedData(CallbackData):
    """An operation that a filter makes by hand (FltAllocateCallbackData): set `major` and its parameters, perform() it.

    READ, WRITE (`buffer`, `offset`, `irp_flags`), FLUSH_BUFFERS, QUERY_INFORMATION (then `size`, `mode`),
    SET_INFORMATION (`information_class`, `end_of_file`, `range`), DIRECTORY_CONTROL with IRP_MN_NOTIFY_CHANGE_DIRECTORY
    (`minor`, `completion_filter`, `buffer`). After perform(): `status` and `information`.
    """

    @property
    def major(self) -> int:
        """The operation: an IRP_MJ_* number. Set it first: it clears the parameters."""
    @major.setter
    def major(self, value: int) -> None: ...
    @property
    def minor(self) -> int:
        """DIRECTORY_CONTROL: IRP_MN_QUERY_DIRECTORY or IRP_MN_NOTIFY_CHANGE_DIRECTORY."""
    @minor.setter
    def minor(self, value: int) -> None: ...
    @property
    def key(self) -> int:
        """READ, WRITE: the key of byte-range locks."""
    @key.setter
    def key(self, value: int) -> None: ...
    @property
    def completion_filter(self) -> int:
        """IRP_MN_NOTIFY_CHANGE_DIRECTORY: the changes wanted, FILE_NOTIFY_CHANGE_* bits."""
    @completion_filter.setter
    def completion_filter(self, value: int) -> None: ...
    @property
    def irp_flags(self) -> int:
        """IRP_NOCACHE, IRP_PAGING_IO, ... bits."""
    @irp_flags.setter
    def irp_flags(self, value: int) -> None: ...
    @property
    def information_class(self) -> int:
        """QUERY_INFORMATION, SET_INFORMATION: which information. To be set for SET_INFORMATION."""
    @information_class.setter
    def information_class(self, value: int) -> None: ...
    def perform(self) -> int:
        """FltPerformSynchronousIo: the status, as an unsigned NTSTATUS; nothing is raised."""
    def start(self, done: Callable[[GeneratedData], Any]) -> int:
        """FltPerformAsynchronousIo: STATUS_PENDING, and a thread of the manager calls done(self) when it is over."""
    def reuse(self) -> None:
        """FltReuseCallbackData: as it was when it was allocated."""
    def free(self) -> None:
        """FltFreeCallbackData. What it holds is let go; using it after that raises ReferenceError."""

def file_of(data: CallbackData) -> FileObject | None:
    """data.file"""

def directory_of(data: CallbackData) -> FileObject | None:
    """data.directory"""

def open_below(
    entry: InstanceEntry,
    path: _Path,
    flags: int = 0,
    mode: int = 0o600,
    *,
    directory: FileObject | None = None,
    requestor: CallbackData | None = None,
) -> FilterFile:
    """Instance.open()"""

def create_below(
    entry: InstanceEntry,
    path: _Path,
    desired_access: int,
    disposition: int,
    options: int = 0,
    mode: int = 0o600,
    *,
    directory: FileObject | None = None,
    requestor: CallbackData | None = None,
) -> FilterFile:
    """The same by desired access, create disposition and create options (FltCreateFileEx)."""

def rename_below(
    entry: InstanceEntry,
    old: _Path,
    new: _Path,
    flags: int = 0,
    *,
    directory: FileObject | None = None,
    new_directory: FileObject | None = None,
    requestor: CallbackData | None = None,
) -> None:
    """Instance.rename()"""

def link_below(
    entry: InstanceEntry,
    old: _Path,
    new: _Path,
    *,
    directory: FileObject | None = None,
    new_directory: FileObject | None = None,
    requestor: CallbackData | None = None,
) -> None:
    """Instance.link()"""

def delete_below(
    entry: InstanceEntry,
    path: _Path,
    is_directory: bool = False,
    *,
    directory: FileObject | None = None,
    requestor: CallbackData | None = None,
) -> None:
    """Instance.unlink(), Instance.rmdir()"""

def symlink_below(
    entry: InstanceEntry,
    target: _Path,
    path: _Path,
    *,
    directory: FileObject | None = None,
    requestor: CallbackData | None = None,
) -> None:
    """Instance.symlink()"""

def readlink_below(
    entry: InstanceEntry,
    path: _Path,
    *,
    directory: FileObject | None = None,
    requestor: CallbackData | None = None,
) -> bytes:
    """Instance.readlink()"""

def stat_below(
    entry: InstanceEntry,
    path: _Path,
    *,
    directory: FileObject | None = None,
    requestor: CallbackData | None = None,
) -> FileInformation:
    """Instance.stat()"""

def statvfs_below(entry: InstanceEntry) -> tuple[int, ...]:
    """Instance.statvfs()"""

def allocate_below(entry: InstanceEntry, file: FileObject) -> GeneratedData:
    """FltAllocateCallbackData"""

def io_pending(entry: InstanceEntry) -> bool:
    """Is I/O under way that the instance has started?"""

def end_io(entry: InstanceEntry) -> None:
    """The instance starts nothing more: everything answers STATUS_FLT_DELETING_OBJECT from now on."""

def close_left_open(entry: InstanceEntry) -> int:
    """After end_io(), when nothing is pending: closes what the filter left open. How many files."""
