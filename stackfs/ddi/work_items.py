"""Work items under their DDI names (docs/semantics.md A7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stackfs import verifier
from stackfs.cext.callback_data import CallbackData
from stackfs.work_items import DeferredIoWorkItem, GenericWorkItem, WorkQueueItem, WorkQueueType

__all__ = [
    "CriticalWorkQueue",
    "DelayedWorkQueue",
    "ExInitializeWorkItem",
    "ExQueueWorkItem",
    "FltAllocateDeferredIoWorkItem",
    "FltAllocateGenericWorkItem",
    "FltFreeDeferredIoWorkItem",
    "FltFreeGenericWorkItem",
    "FltQueueDeferredIoWorkItem",
    "FltQueueGenericWorkItem",
]

CriticalWorkQueue = int(WorkQueueType.CriticalWorkQueue)
DelayedWorkQueue = int(WorkQueueType.DelayedWorkQueue)


def FltAllocateDeferredIoWorkItem() -> DeferredIoWorkItem:
    """A work item for one operation at a time."""
    item = DeferredIoWorkItem()
    verifier.acquired(item, "a deferred work item", "FltAllocateDeferredIoWorkItem")
    return item


def FltFreeDeferredIoWorkItem(FltWorkItem: DeferredIoWorkItem) -> None:
    """DeferredIoWorkItem.free."""
    FltWorkItem.free()
    verifier.given_back(FltWorkItem)


def FltQueueDeferredIoWorkItem(
    FltWorkItem: DeferredIoWorkItem,
    Data: CallbackData,
    WorkerRoutine: Callable[[DeferredIoWorkItem, CallbackData, Any], object],
    QueueType: int = DelayedWorkQueue,
    Context: Any = None,
) -> int:
    """DeferredIoWorkItem.queue."""
    return FltWorkItem.queue(Data, WorkerRoutine, QueueType, Context)


def FltAllocateGenericWorkItem() -> GenericWorkItem:
    """A work item that belongs to no operation."""
    item = GenericWorkItem()
    verifier.acquired(item, "a generic work item", "FltAllocateGenericWorkItem")
    return item


def FltFreeGenericWorkItem(FltWorkItem: GenericWorkItem) -> None:
    """GenericWorkItem.free."""
    FltWorkItem.free()
    verifier.given_back(FltWorkItem)


def FltQueueGenericWorkItem(
    FltWorkItem: GenericWorkItem,
    FltObject: Any,
    WorkerRoutine: Callable[[GenericWorkItem, Any, Any], object],
    QueueType: int = DelayedWorkQueue,
    Context: Any = None,
) -> int:
    """GenericWorkItem.queue."""
    return FltWorkItem.queue(FltObject, WorkerRoutine, QueueType, Context)


def ExInitializeWorkItem(Routine: Callable[[Any], object], Parameter: Any = None) -> WorkQueueItem:
    """A WORK_QUEUE_ITEM."""
    return WorkQueueItem(Routine, Parameter)


def ExQueueWorkItem(WorkItem: WorkQueueItem, QueueType: int = DelayedWorkQueue) -> None:
    """WorkQueueItem.queue: without protection against the unload of the filter."""
    WorkItem.queue(QueueType)
