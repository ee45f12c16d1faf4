"""Reparse points under the DDI's names (docs/semantics.md, B5.3): tagging a file, and what a tagged file says.

A GUID is a uuid.UUID, or its 16 bytes. TagData of callback data is `data.reparse_point`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from stackfs import api
from stackfs.cext.filter_file import FileObject
from stackfs.cext.pending import require_irql
from stackfs.ddi.filter_io import run

if TYPE_CHECKING:
    from stackfs.manager import Instance

__all__ = [
    "IO_REPARSE_TAG_HSM",
    "IO_REPARSE_TAG_MOUNT_POINT",
    "IO_REPARSE_TAG_RESERVED_ONE",
    "IO_REPARSE_TAG_RESERVED_ZERO",
    "IO_REPARSE_TAG_SYMLINK",
    "MAXIMUM_REPARSE_DATA_BUFFER_SIZE",
    "FltTagFile",
    "FltTagFileEx",
    "FltUntagFile",
]

PASSIVE_LEVEL = 0
NTSTATUS = int
IO_REPARSE_TAG_RESERVED_ZERO = 0
IO_REPARSE_TAG_RESERVED_ONE = 1
IO_REPARSE_TAG_MOUNT_POINT = 0xA0000003
IO_REPARSE_TAG_HSM = 0xC0000004
IO_REPARSE_TAG_SYMLINK = 0xA000000C
MAXIMUM_REPARSE_DATA_BUFFER_SIZE = 16384


def _guid(tag: int, guid: UUID | bytes | None) -> bytes | None:
    """Those of tags with bit 31 set count for nothing, as there."""
    if tag >> 31 or guid is None:
        return None
    return guid.bytes_le if isinstance(guid, UUID) else bytes(guid)


def FltTagFile(
    InitiatingInstance: Instance,
    FileObject: FileObject,
    FileTag: int,
    Guid: UUID | bytes | None,
    DataBuffer: bytes | None,
    DataBufferLength: int,
) -> NTSTATUS:
    """FSCTL_SET_REPARSE_POINT below, of an open file or directory. A file that is tagged so already gets the new data.
    STATUS_INVALID_PARAMETER: DataBufferLength is more than there is; STATUS_IO_REPARSE_TAG_INVALID: a reserved tag, or
    one with bit 31 clear without its GUID; STATUS_IO_REPARSE_TAG_MISMATCH: it is tagged otherwise;
    STATUS_IO_REPARSE_DATA_INVALID: more than MAXIMUM_REPARSE_DATA_BUFFER_SIZE in all."""
    require_irql(PASSIVE_LEVEL, "FltTagFile")
    if DataBufferLength > len(DataBuffer or b""):
        return int(api.STATUS_INVALID_PARAMETER)
    data = bytes(DataBuffer or b"")[:DataBufferLength]
    return run(lambda: FileObject.set_reparse_point(FileTag, data, guid=_guid(FileTag, Guid)))


def FltTagFileEx(
    InitiatingInstance: Instance,
    FileObject: FileObject,
    FileTag: int,
    Guid: UUID | bytes | None,
    DataBuffer: bytes | None,
    DataBufferLength: int,
    ExistingFileTag: int = 0,
    ExistingGuid: UUID | bytes | None = None,
    Flags: int = 0,
) -> NTSTATUS:
    """FltTagFile in place of an existing tag (0: as FltTagFile), which has to be there: STATUS_NOT_A_REPARSE_POINT,
    STATUS_IO_REPARSE_TAG_MISMATCH. Between the two steps the file is not tagged; where the second fails, the first is
    undone. Flags must be 0."""
    require_irql(PASSIVE_LEVEL, "FltTagFileEx")
    if Flags or DataBufferLength > len(DataBuffer or b""):
        return int(api.STATUS_INVALID_PARAMETER)
    if not ExistingFileTag:
        return FltTagFile(InitiatingInstance, FileObject, FileTag, Guid, DataBuffer, DataBufferLength)
    data = bytes(DataBuffer or b"")[:DataBufferLength]

    def exchange() -> None:
        before = FileObject.get_reparse_point()
        existing = _guid(ExistingFileTag, ExistingGuid)
        FileObject.remove_reparse_point(ExistingFileTag, guid=existing)
        try:
            FileObject.set_reparse_point(FileTag, data, guid=_guid(FileTag, Guid))
        except BaseException:
            if before is not None:
                FileObject.set_reparse_point(before.tag, before.data, guid=before.guid)
            raise

    return run(exchange)


def FltUntagFile(
    InitiatingInstance: Instance, FileObject: FileObject, FileTag: int, Guid: UUID | bytes | None
) -> NTSTATUS:
    """FSCTL_DELETE_REPARSE_POINT below. STATUS_NOT_A_REPARSE_POINT, STATUS_IO_REPARSE_TAG_MISMATCH."""
    require_irql(PASSIVE_LEVEL, "FltUntagFile")
    return run(lambda: FileObject.remove_reparse_point(FileTag, guid=_guid(FileTag, Guid)))
