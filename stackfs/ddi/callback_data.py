"""Callback data under the DDI's names (docs/semantics.md, A4, A6): flags, the dirty mark, reissuing, reparsing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stackfs import api
from stackfs.cext.callback_data import CallbackData
from stackfs.cext.filter_file import FileObject
from stackfs.cext.pending import require_irql
from stackfs.cext.reparse import replace_name
from stackfs.ddi.out import Out

if TYPE_CHECKING:
    from stackfs.manager import Instance

__all__ = [
    "FLTFL_CALLBACK_DATA_REISSUE_MASK",
    "FLT_IS_FASTIO_OPERATION",
    "FLT_IS_FS_FILTER_OPERATION",
    "FLT_IS_IRP_OPERATION",
    "FLT_IS_REISSUED_IO",
    "FLT_IS_SYSTEM_BUFFER",
    "FS_BPIO_OP_DISABLE",
    "FS_BPIO_OP_ENABLE",
    "FS_BPIO_OP_QUERY",
    "IO_REPARSE",
    "PEPROCESS",
    "SUPPORTED_FS_FEATURES_BYPASS_IO",
    "FltCancelFileOpen",
    "FltClearCallbackDataDirty",
    "FltGetRequestorProcess",
    "FltGetRequestorProcessId",
    "FltGetRequestorProcessIdEx",
    "FltGetRequestorSessionId",
    "FltIsCallbackDataDirty",
    "FltIsOperationSynchronous",
    "FltReissueSynchronousIo",
    "FltRequestOperationStatusCallback",
    "FltSetCallbackDataDirty",
    "FltVetoBypassIo",
    "IoReplaceFileObjectName",
    "PsGetProcessId",
]

FLTFL_CALLBACK_DATA_REISSUE_MASK = 0xFFFF
"""The flags of an operation that it keeps when it is sent down again (A6.19): its kind, and SYSTEM_BUFFER."""
IO_REPARSE = 0
FS_BPIO_OP_ENABLE = 1
FS_BPIO_OP_DISABLE = 2
FS_BPIO_OP_QUERY = 3
SUPPORTED_FS_FEATURES_BYPASS_IO = 0x8
APC_LEVEL = 1


@dataclass(frozen=True)
class PEPROCESS:
    """A process, by its id and the thread group's command name at the time it was asked for."""

    pid: int
    comm: str


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


# ---- who asks, and how -----------------------------------------------------------------------------------------------

def FltGetRequestorProcess(CallbackData: CallbackData) -> PEPROCESS | None:
    """Whose request it is. None: the kernel itself (pages that it writes back), or the process is gone."""
    pid = CallbackData.pid
    return PEPROCESS(pid, CallbackData.comm) if pid else None


def FltGetRequestorProcessId(CallbackData: CallbackData) -> int:
    """0: the kernel itself, or the process is gone."""
    return CallbackData.pid


def FltGetRequestorProcessIdEx(CallbackData: CallbackData) -> int:
    """The same: a process id and a handle of it are one number here."""
    return CallbackData.pid


def PsGetProcessId(Process: PEPROCESS) -> int:
    return Process.pid


def FltGetRequestorSessionId(CallbackData: CallbackData, SessionId: Out[int]) -> int:
    """getsid(2)'s number. STATUS_UNSUCCESSFUL, and 0xFFFFFFFF: the kernel itself, or the process is gone."""
    require_irql(APC_LEVEL, "FltGetRequestorSessionId")
    found = CallbackData.session_id
    SessionId.value = 0xFFFFFFFF if found is None else found
    return int(api.STATUS_UNSUCCESSFUL if found is None else api.STATUS_SUCCESS)


def FltIsOperationSynchronous(CallbackData: CallbackData) -> bool:
    """Does whoever asked wait for the outcome? (A6.23)"""
    return CallbackData.is_synchronous


def FltRequestOperationStatusCallback(
    Data: CallbackData, CallbackRoutine: Callable[[Any, Any, int, Any], object] | None, RequesterContext: Any = None
) -> int:
    """In a pre callback: CallbackRoutine(FltObjects, IopbSnapshot, OperationStatus, RequesterContext) is called once,
    when the operation has been below (A6.22). STATUS_INVALID_PARAMETER: elsewhere, without a routine, for what is no
    IRP, or a CLOSE; STATUS_FLT_DELETING_OBJECT."""
    require_irql(APC_LEVEL, "FltRequestOperationStatusCallback")
    if CallbackRoutine is None:
        return int(api.STATUS_INVALID_PARAMETER)
    return Data.request_operation_status(CallbackRoutine, RequesterContext)


def FltVetoBypassIo(CallbackData: CallbackData, FltObjects: Any, OperationStatus: int, FailureReason: str) -> int:
    """In the pre callback of FSCTL_MANAGE_BYPASS_IO, which then returns FLT_PREOP_COMPLETE: this open is not bypassed,
    and `stackfs status` says why. STATUS_INVALID_PARAMETER: another operation, its way up, or OperationStatus is a
    success."""
    require_irql(APC_LEVEL, "FltVetoBypassIo")
    if api.is_success(OperationStatus) or CallbackData.flags & api.FLTFL_CALLBACK_DATA_POST_OPERATION:
        return int(api.STATUS_INVALID_PARAMETER)
    try:
        CallbackData.veto_bypass(FailureReason, OperationStatus)
    except AttributeError:
        return int(api.STATUS_INVALID_PARAMETER)
    return int(api.STATUS_SUCCESS)
