"""Notifications of changes in directories, under the DDI's names (docs/semantics.md, B6).

A PNOTIFY_SYNC is a stackfs.directory_changes.DirectoryChanges, which holds the list as well: NotifyList is accepted,
and means nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from stackfs.cext.callback_data import CallbackData
from stackfs.cext.pending import require_irql
from stackfs.ddi.out import Out
from stackfs.directory_changes import (
    FILE_ACTION_ADDED,
    FILE_ACTION_MODIFIED,
    FILE_ACTION_REMOVED,
    FILE_ACTION_RENAMED_NEW_NAME,
    FILE_ACTION_RENAMED_OLD_NAME,
    FILE_NOTIFY_CHANGE_ATTRIBUTES,
    FILE_NOTIFY_CHANGE_CREATION,
    FILE_NOTIFY_CHANGE_DIR_NAME,
    FILE_NOTIFY_CHANGE_EA,
    FILE_NOTIFY_CHANGE_FILE_NAME,
    FILE_NOTIFY_CHANGE_LAST_ACCESS,
    FILE_NOTIFY_CHANGE_LAST_WRITE,
    FILE_NOTIFY_CHANGE_NAME,
    FILE_NOTIFY_CHANGE_SECURITY,
    FILE_NOTIFY_CHANGE_SIZE,
    FILE_NOTIFY_INFORMATION,
    FILE_NOTIFY_VALID_MASK,
    DirectoryChanges,
)

__all__ = [
    "FILE_ACTION_ADDED",
    "FILE_ACTION_MODIFIED",
    "FILE_ACTION_REMOVED",
    "FILE_ACTION_RENAMED_NEW_NAME",
    "FILE_ACTION_RENAMED_OLD_NAME",
    "FILE_NOTIFY_CHANGE_ATTRIBUTES",
    "FILE_NOTIFY_CHANGE_CREATION",
    "FILE_NOTIFY_CHANGE_DIR_NAME",
    "FILE_NOTIFY_CHANGE_EA",
    "FILE_NOTIFY_CHANGE_FILE_NAME",
    "FILE_NOTIFY_CHANGE_LAST_ACCESS",
    "FILE_NOTIFY_CHANGE_LAST_WRITE",
    "FILE_NOTIFY_CHANGE_NAME",
    "FILE_NOTIFY_CHANGE_SECURITY",
    "FILE_NOTIFY_CHANGE_SIZE",
    "FILE_NOTIFY_INFORMATION",
    "FILE_NOTIFY_VALID_MASK",
    "FltNotifyFilterChangeDirectory",
    "FsRtlNotifyCleanup",
    "FsRtlNotifyFilterReportChange",
    "FsRtlNotifyInitializeSync",
    "FsRtlNotifyUninitializeSync",
]

APC_LEVEL = 1


def FsRtlNotifyInitializeSync(NotifySync: Out[DirectoryChanges]) -> None:
    """A new one, with nobody waiting."""
    NotifySync.value = DirectoryChanges()


def FsRtlNotifyUninitializeSync(NotifySync: Out[DirectoryChanges]) -> None:
    """Who waits gets STATUS_NOTIFY_CLEANUP."""
    NotifySync.value.close()


def FltNotifyFilterChangeDirectory(
    NotifySync: DirectoryChanges,
    NotifyList: list[Any] | None,
    FsContext: Any,
    FullDirectoryName: str | bytes,
    WatchTree: bool,
    IgnoreBuffer: bool,
    CompletionFilter: int,
    NotifyCallbackData: CallbackData | None,
    TraverseCallback: Callable[[Any, Any, Any], bool] | None = None,
    SubjectContext: Any = None,
    FilterCallback: Callable[[Any, Any], bool] | None = None,
) -> None:
    """NotifyCallbackData waits for a change; its pre callback then returns FLT_PREOP_PENDING, whatever became of it.
    None: the directory is about to be deleted, and who watches it gets STATUS_DELETE_PENDING.

    FsContext: whose watch it is, an open file's as a rule. CompletionFilter: FILE_NOTIFY_CHANGE_*. IgnoreBuffer: the
    answer is STATUS_NOTIFY_ENUM_DIR, without names. TraverseCallback(FsContext, TargetContext, SubjectContext) says
    whether a watch of a tree may see into the directory of a change, FilterCallback(FsContext, FilterContext) whether a
    change is one to tell of.
    """
    require_irql(APC_LEVEL, "FltNotifyFilterChangeDirectory")
    if NotifyCallbackData is None:
        NotifySync.deleted(FullDirectoryName)
        return
    NotifySync.wait(
        NotifyCallbackData, FsContext, FullDirectoryName, tree=WatchTree, told_by_name=not IgnoreBuffer,
        wanted=CompletionFilter, traverse=TraverseCallback, subject=SubjectContext, chosen=FilterCallback,
    )  # fmt: skip


def FsRtlNotifyFilterReportChange(
    NotifySync: DirectoryChanges,
    NotifyList: list[Any] | None,
    FullTargetName: str | bytes,
    TargetNameOffset: int,
    StreamName: str | bytes | None,
    NormalizedParentName: str | bytes | None,
    FilterMatch: int,
    Action: int,
    TargetContext: Any = None,
    FilterContext: Any = None,
) -> None:
    """Something has changed. NormalizedParentName: the directory's name as watches have it, where FullTargetName is
    another one; TargetNameOffset: bytes of FullTargetName in front of the final component. StreamName means nothing: a
    file has one stream."""
    name = os.fsencode(FullTargetName)
    if NormalizedParentName is not None:
        name = os.fsencode(NormalizedParentName).rstrip(b"/") + b"/" + name[TargetNameOffset:].lstrip(b"/")
    NotifySync.report(name, Action, FilterMatch, target=TargetContext, filter_context=FilterContext)


def FsRtlNotifyCleanup(NotifySync: DirectoryChanges, NotifyList: list[Any] | None, FsContext: Any) -> None:
    """In the CLEANUP of what FsContext stands for: who waits with it gets STATUS_NOTIFY_CLEANUP."""
    NotifySync.cleanup(FsContext)
