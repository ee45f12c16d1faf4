"""Pending, completion and cancellation under their DDI names (docs/semantics.md A6.14 to A6.18, A7, A8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stackfs import work_items
from stackfs.cext.callback_data import CallbackData, PostopStatus
from stackfs.cext.pending import current_irql
from stackfs.ddi.out import Out

__all__ = [
    "APC_LEVEL",
    "DISPATCH_LEVEL",
    "PASSIVE_LEVEL",
    "FltCancelIo",
    "FltClearCancelCompletion",
    "FltCompletePendedPostOperation",
    "FltCompletePendedPreOperation",
    "FltDoCompletionProcessingWhenSafe",
    "FltIsIoCanceled",
    "FltSetCancelCompletion",
    "KeGetCurrentIrql",
]

PASSIVE_LEVEL = 0
APC_LEVEL = 1
DISPATCH_LEVEL = 2


def FltCompletePendedPreOperation(CallbackData: CallbackData, CallbackStatus: int, Context: Any = None) -> None:
    """CallbackData.complete_pended_pre."""
    CallbackData.complete_pended_pre(CallbackStatus, Context)


def FltCompletePendedPostOperation(CallbackData: CallbackData) -> None:
    """CallbackData.complete_pended_post."""
    CallbackData.complete_pended_post()


def FltDoCompletionProcessingWhenSafe(
    Data: CallbackData,
    FltObjects: Any,
    CompletionContext: Any,
    Flags: int,
    SafePostCallback: Callable[[CallbackData, Any, Any, int], int | None],
    RetPostOperationStatus: Out[int],
) -> bool:
    """work_items.complete_when_safe. False: it cannot be posted; the callback returns
    FLT_POSTOP_FINISHED_PROCESSING."""
    status = work_items.complete_when_safe(Data, FltObjects, CompletionContext, Flags, SafePostCallback)
    RetPostOperationStatus.value = int(PostopStatus.FLT_POSTOP_FINISHED_PROCESSING) if status is None else status
    return status is not None


def FltSetCancelCompletion(CallbackData: CallbackData, CanceledCallback: Callable[[CallbackData], object]) -> int:
    """CallbackData.set_cancel_completion."""
    return CallbackData.set_cancel_completion(CanceledCallback)


def FltClearCancelCompletion(CallbackData: CallbackData) -> int:
    """CallbackData.clear_cancel_completion."""
    return CallbackData.clear_cancel_completion()


def FltIsIoCanceled(CallbackData: CallbackData) -> bool:
    """CallbackData.is_canceled."""
    return CallbackData.is_canceled


def FltCancelIo(CallbackData: CallbackData) -> bool:
    """CallbackData.cancel."""
    return CallbackData.cancel()


def KeGetCurrentIrql() -> int:
    """PASSIVE_LEVEL, or DISPATCH_LEVEL in a post callback that may come in any thread (A6.12)."""
    return current_irql()
