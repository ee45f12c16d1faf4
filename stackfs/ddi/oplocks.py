"""Oplocks under their DDI names (docs/semantics.md A9).

An OPLOCK is what a filter keeps in a stream context; a routine that takes CallbackData is called in a pre callback, and
its answer is what that returns. A FileObject is callback data (the file object that the operation is about), a file
object, or an OplockOpen. Level APC_LEVEL at most.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from stackfs import api
from stackfs.cext import python_oplock
from stackfs.cext.callback_data import CallbackData
from stackfs.cext.file_object import FileReference as _FileObject
from stackfs.cext.python_oplock import Oplock, OplockOpen

__all__ = [
    "OPLOCK",
    "REQUEST_OPLOCK_INPUT_BUFFER",
    "REQUEST_OPLOCK_OUTPUT_BUFFER",
    "FltCheckOplock",
    "FltCheckOplockEx",
    "FltCurrentBatchOplock",
    "FltCurrentOplock",
    "FltCurrentOplockH",
    "FltInitializeOplock",
    "FltOplockBreakH",
    "FltOplockBreakToNone",
    "FltOplockBreakToNoneEx",
    "FltOplockFsctrl",
    "FltOplockFsctrlEx",
    "FltOplockIsFastIoPossible",
    "FltOplockIsSharedRequest",
    "FltOplockKeysEqual",
    "FltUninitializeOplock",
    "FsRtlInitializeOplock",
    "FsRtlOplockFsctrl",
    "FsRtlUninitializeOplock",
]

OPLOCK = Oplock
REQUEST_OPLOCK_INPUT_BUFFER: Final = struct.Struct("<HHII")
"""StructureVersion (1), StructureLength (12), RequestedOplockLevel, Flags."""
REQUEST_OPLOCK_OUTPUT_BUFFER: Final = struct.Struct("<HHIIIIHxx")
"""StructureVersion, StructureLength (24), OriginalOplockLevel, NewOplockLevel, Flags, AccessMode and ShareMode (0)."""

_Routine = Callable[[CallbackData, Any], object]
_Open = CallbackData | _FileObject | OplockOpen


def FltInitializeOplock(Oplock: OPLOCK) -> None:
    """Oplock.initialize."""
    Oplock.initialize()


def FltUninitializeOplock(Oplock: OPLOCK) -> None:
    """Oplock.uninitialize."""
    Oplock.uninitialize()


def FltOplockFsctrl(Oplock: OPLOCK, CallbackData: CallbackData, OpenCount: int) -> int:
    """Oplock.fsctl."""
    return Oplock.fsctl(CallbackData, OpenCount)


def FltOplockFsctrlEx(Oplock: OPLOCK, CallbackData: CallbackData, OpenCount: int, Flags: int) -> int:
    """Oplock.fsctl."""
    return Oplock.fsctl(CallbackData, OpenCount, Flags)


def FltCheckOplock(
    Oplock: OPLOCK,
    CallbackData: CallbackData,
    Context: Any = None,
    WaitCompletionRoutine: _Routine | None = None,
    PrePostCallbackDataRoutine: _Routine | None = None,
) -> int:
    """Oplock.check."""
    return Oplock.check(CallbackData, WaitCompletionRoutine, Context, PrePostCallbackDataRoutine)


def FltCheckOplockEx(
    Oplock: OPLOCK,
    CallbackData: CallbackData,
    Flags: int,
    Context: Any = None,
    WaitCompletionRoutine: _Routine | None = None,
    PrePostCallbackDataRoutine: _Routine | None = None,
) -> int:
    """Oplock.check."""
    return Oplock.check(CallbackData, WaitCompletionRoutine, Context, PrePostCallbackDataRoutine, Flags)


def FltOplockBreakH(
    Oplock: OPLOCK,
    CallbackData: CallbackData,
    Flags: int,
    Context: Any = None,
    WaitCompletionRoutine: _Routine | None = None,
    PrePostCallbackDataRoutine: _Routine | None = None,
) -> int:
    """Oplock.break_handle."""
    return Oplock.break_handle(CallbackData, WaitCompletionRoutine, Context, PrePostCallbackDataRoutine, Flags)


def FltOplockBreakToNone(
    Oplock: OPLOCK,
    CallbackData: CallbackData,
    Context: Any = None,
    WaitCompletionRoutine: _Routine | None = None,
    PrePostCallbackDataRoutine: _Routine | None = None,
) -> int:
    """Oplock.break_to_none."""
    return Oplock.break_to_none(CallbackData, WaitCompletionRoutine, Context, PrePostCallbackDataRoutine)


def FltOplockBreakToNoneEx(
    Oplock: OPLOCK,
    CallbackData: CallbackData,
    Flags: int,
    Context: Any = None,
    WaitCompletionRoutine: _Routine | None = None,
    PrePostCallbackDataRoutine: _Routine | None = None,
) -> int:
    """Oplock.break_to_none."""
    return Oplock.break_to_none(CallbackData, WaitCompletionRoutine, Context, PrePostCallbackDataRoutine, Flags)


def FltCurrentBatchOplock(Oplock: OPLOCK) -> bool:
    """A batch or a filter oplock is held, or breaks."""
    return Oplock.is_current_batch


def FltCurrentOplock(Oplock: OPLOCK) -> bool:
    """Any is held, or breaks."""
    return Oplock.is_current


def FltCurrentOplockH(Oplock: OPLOCK) -> bool:
    """RH or RWH is held, or breaks."""
    return Oplock.is_current_h


def FltOplockIsFastIoPossible(Oplock: OPLOCK) -> bool:
    """None is held, or an exclusive one that does not break."""
    return Oplock.fast_io_possible


def FltOplockIsSharedRequest(CallbackData: CallbackData) -> bool:
    """An FSCTL that asks for level 2, R or RH."""
    return python_oplock.is_shared_request(CallbackData)


def FltOplockKeysEqual(Fo1: _Open | None, Fo2: _Open | None) -> bool:
    """One open, or two with one key; never of None."""
    return Fo1 is not None and Fo2 is not None and python_oplock.oplock_keys_equal(Fo1, Fo2)


def FsRtlInitializeOplock(Oplock: OPLOCK) -> None:
    """FltInitializeOplock."""
    Oplock.initialize()


def FsRtlUninitializeOplock(Oplock: OPLOCK) -> None:
    """FltUninitializeOplock."""
    Oplock.uninitialize()


def FsRtlOplockFsctrl(Oplock: OPLOCK, Irp: CallbackData, OpenCount: int) -> int:
    """FltOplockFsctrl, by its NTSTATUS: STATUS_PENDING is FLT_PREOP_PENDING."""
    if Oplock.fsctl(Irp, OpenCount) == api.FLT_PREOP_PENDING:
        return api.STATUS_PENDING
    return Irp.status
