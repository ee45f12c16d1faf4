"""Cancel-safe queues under their DDI names (docs/semantics.md A8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stackfs.cext.callback_data import CallbackData
from stackfs.cext.cancel_safe_queue import CancelSafeQueue, QueueContext

__all__ = [
    "FLT_CALLBACK_DATA_QUEUE",
    "FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT",
    "FltCbdqDisable",
    "FltCbdqEnable",
    "FltCbdqInitialize",
    "FltCbdqInsertIo",
    "FltCbdqRemoveIo",
    "FltCbdqRemoveNextIo",
]

FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT = QueueContext


class FLT_CALLBACK_DATA_QUEUE(CancelSafeQueue):
    """A queue whose callbacks FltCbdqInitialize() gives; each gets the queue as its first argument."""

    def initialize(self, instance: Any, callbacks: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(instance)
        self._insert, self._remove, self._peek, self._acquire, self._release, self._complete = callbacks

    def insert_io(self, data: CallbackData, insert_context: Any) -> int | None:
        answer: int | None = self._insert(self, data, insert_context)
        return answer

    def remove_io(self, data: CallbackData) -> None:
        self._remove(self, data)

    def peek_next_io(self, data: CallbackData | None, peek_context: Any) -> CallbackData | None:
        found: CallbackData | None = self._peek(self, data, peek_context)
        return found

    def acquire(self) -> None:
        self._acquire(self)

    def release(self) -> None:
        self._release(self)

    def complete_canceled_io(self, data: CallbackData) -> None:
        self._complete(self, data)


def FltCbdqInitialize(
    Instance: Any,
    Cbdq: FLT_CALLBACK_DATA_QUEUE,
    CbdqInsertIo: Callable[[FLT_CALLBACK_DATA_QUEUE, CallbackData, Any], int | None],
    CbdqRemoveIo: Callable[[FLT_CALLBACK_DATA_QUEUE, CallbackData], object],
    CbdqPeekNextIo: Callable[[FLT_CALLBACK_DATA_QUEUE, CallbackData | None, Any], CallbackData | None],
    CbdqAcquire: Callable[[FLT_CALLBACK_DATA_QUEUE], object],
    CbdqRelease: Callable[[FLT_CALLBACK_DATA_QUEUE], object],
    CbdqCompleteCanceledIo: Callable[[FLT_CALLBACK_DATA_QUEUE, CallbackData], object],
) -> int:
    """Enabled from here on. Acquire and Release are called around the three before them, and around nothing else."""
    Cbdq.initialize(
        Instance, (CbdqInsertIo, CbdqRemoveIo, CbdqPeekNextIo, CbdqAcquire, CbdqRelease, CbdqCompleteCanceledIo)
    )
    return 0


def FltCbdqEnable(Cbdq: CancelSafeQueue) -> None:
    """CancelSafeQueue.enable."""
    Cbdq.enable()


def FltCbdqDisable(Cbdq: CancelSafeQueue) -> None:
    """CancelSafeQueue.disable."""
    Cbdq.disable()


def FltCbdqInsertIo(
    Cbdq: CancelSafeQueue,
    Cbd: CallbackData,
    Context: QueueContext | None = None,
    InsertContext: Any = None,
) -> int:
    """CancelSafeQueue.insert."""
    return Cbdq.insert(Cbd, Context, InsertContext)


def FltCbdqRemoveIo(Cbdq: CancelSafeQueue, Context: QueueContext) -> CallbackData | None:
    """CancelSafeQueue.remove."""
    return Cbdq.remove(Context)


def FltCbdqRemoveNextIo(Cbdq: CancelSafeQueue, PeekContext: Any = None) -> CallbackData | None:
    """CancelSafeQueue.remove_next."""
    return Cbdq.remove_next(PeekContext)
