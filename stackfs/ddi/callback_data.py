"""Callback data under the DDI's names (docs/semantics.md, A4, A6): flags, the dirty mark, reissuing, reparsing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stackfs import api
from stackfs.cext.callback_data import CallbackData
from stackfs.cext.filter_file import FileObject
from stackfs.cext.reparse import replace_name

if TYPE_CHECKING:
    from stackfs.manager import Instance

__all__ = [
    "FLTFL_CALLBACK_DATA_REISSUE_MASK",
    "FLT_IS_FASTIO_OPERATION",
    "FLT_IS_FS_FILTER_OPERATION",
    "FLT_IS_IRP_OPERATION",
    "FLT_IS_REISSUED_IO",
    "FLT_IS_SYSTEM_BUFFER",
    "IO_REPARSE",
    "FltCancelFileOpen",
    "FltClearCallbackDataDirty",
    "FltIsCallbackDataDirty",
    "FltReissueSynchronousIo",
    "FltSetCallbackDataDirty",
    "IoReplaceFileObjectName",
]

FLTFL_CALLBACK_DATA_REISSUE_MASK = 0xFFFF
"""The flags of an operation that it keeps when it is sent down again (A6.19): its kind, and SYSTEM_BUFFER."""
IO_REPARSE = 0


def FLT_IS_IRP_OPERATION(Data: CallbackData) -> bool:
    """An ordinary operation; exactly one of the first three is true."""
    return Data.is_irp


def FLT_IS_FASTIO_OPERATION(Data: CallbackData) -> bool:
    """Offered as fast I/O."""
    return Data.is_fast_io


def FLT_IS_FS_FILTER_OPERATION(Data: CallbackData) -> bool:
    """QUERY_OPEN, section and flush notifications."""
    return Data.is_fs_filter


def FLT_IS_REISSUED_IO(Data: CallbackData) -> bool:
    """A filter above has sent it down again."""
    return bool(Data.flags & api.FLTFL_CALLBACK_DATA_REISSUED_IO)


def FLT_IS_SYSTEM_BUFFER(Data: CallbackData) -> bool:
    """The buffer is the manager's own: of extended attributes and of controls."""
    return bool(Data.flags & api.FLTFL_CALLBACK_DATA_SYSTEM_BUFFER)


def FltSetCallbackDataDirty(Data: CallbackData) -> None:
    """The changes made to the parameters count."""
    Data.set_dirty()


def FltClearCallbackDataDirty(Data: CallbackData) -> None:
    """Takes back this callback's own FltSetCallbackDataDirty."""
    Data.clear_dirty()


def FltIsCallbackDataDirty(Data: CallbackData) -> bool:
    """Has this callback marked it?"""
    return Data.is_dirty


def FltReissueSynchronousIo(InitiatingInstance: Instance, CallbackData: CallbackData) -> None:
    """In the post callback of a CREATE, or of what the pre callback has synchronised: done again below. The outcome
    stands in IoStatus. RuntimeError: it is not legal here."""
    if not CallbackData.reissue():
        raise RuntimeError("FltReissueSynchronousIo outside the post callback of a synchronised operation")


def FltCancelFileOpen(Instance: Instance, FileObject: FileObject) -> None:
    """In the post callback of a CREATE that succeeded, of its `Data.file`: CLEANUP and CLOSE below. Then the callback
    sets the status that the program gets. RuntimeError: it is not legal here."""
    data = FileObject.data
    if data is None or not data.cancel_open():
        raise RuntimeError("FltCancelFileOpen outside the post callback of a successful CREATE")


def IoReplaceFileObjectName(FileObject: FileObject, NewFileName: str | bytes, FileNameLength: int | None = None) -> int:
    """In the pre callback of a CREATE or QUERY_OPEN, of its `Data.file`: the path, from the volume's root, that it goes
    on by. The callback then completes it with STATUS_REPARSE and Information IO_REPARSE. STATUS_INVALID_PARAMETER:
    elsewhere."""
    data = FileObject.data
    if data is None:
        return int(api.STATUS_INVALID_PARAMETER)
    return replace_name(data, NewFileName if FileNameLength is None else NewFileName[:FileNameLength])
