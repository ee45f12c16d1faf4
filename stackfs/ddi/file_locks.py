"""Byte-range locks that a filter keeps itself, under the DDI's names (docs/semantics.md, B6).

A PFILE_LOCK is a stackfs.file_locks.FileLock, a PFILE_LOCK_INFO a FILE_LOCK_INFO. The FsRtl names are the same routines
for those who know them; an IRP is callback data here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stackfs.cext.callback_data import CallbackData
from stackfs.cext.pending import require_irql
from stackfs.file_locks import FileLock, LockedRange

__all__ = [
    "FILE_LOCK",
    "FILE_LOCK_INFO",
    "FltAllocateFileLock",
    "FltCheckLockForReadAccess",
    "FltCheckLockForWriteAccess",
    "FltFreeFileLock",
    "FltGetNextFileLock",
    "FltInitializeFileLock",
    "FltProcessFileLock",
    "FltUninitializeFileLock",
    "FsRtlAllocateFileLock",
    "FsRtlAreThereCurrentFileLocks",
    "FsRtlCheckLockForReadAccess",
    "FsRtlCheckLockForWriteAccess",
    "FsRtlFreeFileLock",
    "FsRtlGetNextFileLock",
    "FsRtlInitializeFileLock",
    "FsRtlProcessFileLock",
    "FsRtlUninitializeFileLock",
]

APC_LEVEL = 1
FILE_LOCK = FileLock


@dataclass(frozen=True)
class FILE_LOCK_INFO:
    """A lock that is held. Key: its owner (data.lock_owner), FileObject: the open file that it came by, as a number."""

    StartingByte: int
    Length: int
    ExclusiveLock: bool
    Key: int
    FileObject: int
    ProcessId: int
    EndingByte: int


def _info(held: LockedRange) -> FILE_LOCK_INFO:
    return FILE_LOCK_INFO(held.start, held.length, held.exclusive, held.owner, held.file, held.pid, held.end)


def FltAllocateFileLock(
    CompleteLockCallbackDataRoutine: Callable[[Any, CallbackData], int | None] | None = None,
    UnlockRoutine: Callable[[Any, FILE_LOCK_INFO], object] | None = None,
) -> FileLock | None:
    """A new, empty one. CompleteLockCallbackDataRoutine(Context, CallbackData) is called before an operation is
    completed, and may answer another status; UnlockRoutine(Context, FileLockInfo) for each range that is given up."""
    require_irql(APC_LEVEL, "FltAllocateFileLock")
    routine = UnlockRoutine
    told = None if routine is None else lambda context, held: routine(context, _info(held))
    return FileLock(CompleteLockCallbackDataRoutine, told)


def FltInitializeFileLock(FileLock: FileLock) -> None:
    """As it was when it was made: no lock held, nobody waiting."""
    require_irql(APC_LEVEL, "FltInitializeFileLock")
    FileLock.close()


def FltUninitializeFileLock(FileLock: FileLock) -> None:
    """Gives up what is held; who waits gets STATUS_RANGE_NOT_LOCKED."""
    require_irql(APC_LEVEL, "FltUninitializeFileLock")
    FileLock.close()


def FltFreeFileLock(FileLock: FileLock) -> None:
    """The same; it must not be used after that."""
    require_irql(APC_LEVEL, "FltFreeFileLock")
    FileLock.close()


def FltProcessFileLock(FileLock: FileLock, CallbackData: CallbackData, Context: Any = None) -> int:
    """In the pre callback of a LOCK_CONTROL, which then returns what this answers: FLT_PREOP_COMPLETE,
    FLT_PREOP_PENDING while it waits, or FLT_PREOP_DISALLOW_FASTIO of one that would have to wait and is no IRP.
    IoStatus: STATUS_SUCCESS, STATUS_LOCK_NOT_GRANTED, STATUS_INVALID_LOCK_RANGE, STATUS_CANCELLED;
    STATUS_INVALID_DEVICE_REQUEST of another operation."""
    require_irql(APC_LEVEL, "FltProcessFileLock")
    return FileLock.process(CallbackData, Context)


def FltCheckLockForReadAccess(FileLock: FileLock, CallbackData: CallbackData) -> bool:
    """May this READ have its bytes? False: the filter completes it with STATUS_FILE_LOCK_CONFLICT."""
    require_irql(APC_LEVEL, "FltCheckLockForReadAccess")
    return FileLock.may_read(CallbackData)


def FltCheckLockForWriteAccess(FileLock: FileLock, CallbackData: CallbackData) -> bool:
    """May this WRITE have its bytes? False: the filter completes it with STATUS_FILE_LOCK_CONFLICT."""
    require_irql(APC_LEVEL, "FltCheckLockForWriteAccess")
    return FileLock.may_write(CallbackData)


def FltGetNextFileLock(FileLock: FileLock, Restart: bool) -> FILE_LOCK_INFO | None:
    """One lock after the other, by where they begin; None at the end."""
    require_irql(APC_LEVEL, "FltGetNextFileLock")
    held = FileLock.next_range(Restart)
    return None if held is None else _info(held)


def FsRtlAreThereCurrentFileLocks(FileLock: FileLock) -> bool:
    """Is any lock held?"""
    return any(True for _ in FileLock)


FsRtlAllocateFileLock = FltAllocateFileLock
FsRtlInitializeFileLock = FltInitializeFileLock
FsRtlUninitializeFileLock = FltUninitializeFileLock
FsRtlFreeFileLock = FltFreeFileLock
FsRtlProcessFileLock = FltProcessFileLock
FsRtlCheckLockForReadAccess = FltCheckLockForReadAccess
FsRtlCheckLockForWriteAccess = FltCheckLockForWriteAccess
FsRtlGetNextFileLock = FltGetNextFileLock
