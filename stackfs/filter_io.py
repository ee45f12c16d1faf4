"""What a filter does itself, below its own instance (docs/semantics.md, B4): the part of Instance that opens files and
changes names. What comes back are FilterFile objects (stackfs.cext.filter_file).

Lower instances see it, the instance itself and those above do not, and it goes by the backing directory, never by the
mount: a callback may use all of this on whatever its operation is about. It waits in the callback's own thread.

A path is a string or bytes, its components divided by "/", from the volume's root on, or from `directory` (data.file,
data.directory, or a directory that the filter has opened). "." and ".." are refused, symbolic links are not followed.
`requestor=data` does it as whoever asked for that operation, else the daemon does it (B4.5). What fails raises an
OSError with the NTSTATUS in `error.status`; stackfs.api.status_of(error) gives one for any OSError.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stackfs.cext import filter_file, sections
from stackfs.cext.filter_file import FileInformation, FileObject, FilterFile, error_of
from stackfs.cext.ntstatus import NtStatus

if TYPE_CHECKING:
    from stackfs.cext.callback_data import CallbackData
    from stackfs.cext.python_contexts import SectionContext
    from stackfs.cext.sections import Section
    from stackfs.cext.stack import InstanceEntry

STATUS_END_OF_FILE = int(NtStatus.STATUS_END_OF_FILE)
Path = str | bytes | os.PathLike[Any]


class FilterIo:
    """Mixed into Instance: callbacks have it as `objects`."""

    entry: InstanceEntry

    def open(
        self,
        path: Path,
        flags: int = os.O_RDONLY,
        mode: int = 0o600,
        *,
        directory: FileObject | None = None,
        requestor: CallbackData | None = None,
    ) -> FilterFile:
        """FltCreateFile: opens, or with O_CREAT makes, a file or directory; `with objects.open(...) as file`.

        flags: os.O_RDONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_DIRECTORY (with O_CREAT it makes one), O_TMPFILE,
        O_DIRECT, O_SYNC. mode: permission bits of what is made; no umask is applied.
        """
        return filter_file.open_below(self.entry, path, flags, mode, directory=directory, requestor=requestor)

    def stat(
        self, path: Path, *, directory: FileObject | None = None, requestor: CallbackData | None = None
    ) -> FileInformation:
        """Attributes of what stands there; of a symbolic link, the link's."""
        return filter_file.stat_below(self.entry, path, directory=directory, requestor=requestor)

    def statvfs(self) -> tuple[int, ...]:
        """FltQueryVolumeInformation: bsize, frsize, blocks, bfree, bavail, files, ffree, favail, namemax."""
        return filter_file.statvfs_below(self.entry)

    def listdir(
        self, path: Path = "", *, directory: FileObject | None = None, requestor: CallbackData | None = None
    ) -> list[bytes]:
        """The names in a directory, as the layer below shows them."""
        with self.open(path, os.O_RDONLY | os.O_DIRECTORY, directory=directory, requestor=requestor) as opened:
            return [entry.name for entry in opened.entries()]

    def mkdir(
        self,
        path: Path,
        mode: int = 0o700,
        *,
        directory: FileObject | None = None,
        requestor: CallbackData | None = None,
    ) -> None:
        """Makes a directory."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CREAT | os.O_EXCL
        self.open(path, flags, mode, directory=directory, requestor=requestor).close()

    def unlink(
        self, path: Path, *, directory: FileObject | None = None, requestor: CallbackData | None = None
    ) -> None:
        """Takes a name away."""
        filter_file.delete_below(self.entry, path, False, directory=directory, requestor=requestor)

    def rmdir(self, path: Path, *, directory: FileObject | None = None, requestor: CallbackData | None = None) -> None:
        """Takes an empty directory away."""
        filter_file.delete_below(self.entry, path, True, directory=directory, requestor=requestor)

    def rename(
        self,
        old: Path,
        new: Path,
        flags: int = 0,
        *,
        directory: FileObject | None = None,
        new_directory: FileObject | None = None,
        requestor: CallbackData | None = None,
    ) -> None:
        """Renames. flags: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2. new_directory: `directory` where it is not given."""
        filter_file.rename_below(
            self.entry, old, new, flags, directory=directory, new_directory=new_directory, requestor=requestor
        )

    def link(
        self,
        old: Path,
        new: Path,
        *,
        directory: FileObject | None = None,
        new_directory: FileObject | None = None,
        requestor: CallbackData | None = None,
    ) -> None:
        """One more name for a file."""
        filter_file.link_below(
            self.entry, old, new, directory=directory, new_directory=new_directory, requestor=requestor
        )

    def symlink(
        self,
        target: Path,
        path: Path,
        *,
        directory: FileObject | None = None,
        requestor: CallbackData | None = None,
    ) -> None:
        """Makes a symbolic link."""
        filter_file.symlink_below(self.entry, target, path, directory=directory, requestor=requestor)

    def readlink(
        self, path: Path, *, directory: FileObject | None = None, requestor: CallbackData | None = None
    ) -> bytes:
        """Where a symbolic link points to."""
        return filter_file.readlink_below(self.entry, path, directory=directory, requestor=requestor)

    # Sections (B2.8)

    def register_for_data_scan(self) -> None:
        """FltRegisterForDataScan, in instance_setup: the instance is going to create sections."""
        status = sections.register_for_data_scan(self.entry)
        if status:
            raise error_of(status)

    def create_section(self, file: CallbackData | FileObject, context: SectionContext) -> Section | None:
        """FltCreateSectionForDataScan: a section of a file, to scan its data; None: it is empty.

        file: the operation's (`data`), from a CREATE that has succeeded to its CLOSE, or one the filter has opened.
        Close it: `with objects.create_section(data, Scan()) as section`. `context` is set for that long; the filter's
        section_notification() is called with it when an operation is about to take bytes of the file away. OSError: the
        instance has a section of this file already, has not registered for scanning, or may not read it.
        """
        status, section = sections.create_section(self.entry, file, context)
        if status == STATUS_END_OF_FILE:
            return None
        if section is None:
            raise error_of(status)
        return section

    @property
    def open_sections(self) -> list[SectionContext | None]:
        """The contexts of this instance's open sections (a native filter's: None each)."""
        return sections.open_sections(self.entry)
