"""Cancel-safe queues (docs/semantics.md A8)."""

from typing import Any

from stackfs.cext.callback_data import CallbackData

class QueueContext:
    """Names one insertion: `queue.insert(data, context)`, then `queue.remove(context)`."""

    @property
    def queued(self) -> bool:
        """Is it still in the queue?"""

class CancelSafeQueue:
    """Operations that a filter holds; each is removed or cancelled, never both (semantics A8). Enabled from the start.

    The callbacks of the DDI are its methods, to be overridden: insert_io, remove_io, peek_next_io, acquire, release and
    complete_canceled_io. As they are: first in, first out, under a lock of its own, and what is cancelled is completed
    with STATUS_CANCELLED. The queue's lock is held around the first three, and around nothing else.
    """

    instance: Any
    items: list[CallbackData]
    def __init__(self, instance: Any = None) -> None: ...
    def insert_io(self, data: CallbackData, insert_context: Any) -> int | None:
        """Takes it into the queue. A failure status (or an exception) keeps it out, and is insert()'s answer."""
    def remove_io(self, data: CallbackData) -> None:
        """Takes it out."""
    def peek_next_io(self, data: CallbackData | None, peek_context: Any) -> CallbackData | None:
        """The one behind `data`, the first for None; None: there is none."""
    def acquire(self) -> None:
        """Takes the queue's lock."""
    def release(self) -> None:
        """Gives it back."""
    def complete_canceled_io(self, data: CallbackData) -> None:
        """It was cancelled, and is out of the queue: complete it. The queue's lock is free."""
    def insert(self, data: CallbackData, context: QueueContext | None = None, insert_context: Any = None) -> int:
        """FltCbdqInsertIo: an unsigned NTSTATUS. Then, on success, `return FLT_PREOP_PENDING`.

        STATUS_FLT_CBDQ_DISABLED; STATUS_NOT_SUPPORTED: it is no IRP; or what insert_io answered (what it raised is
        raised). An operation that is cancelled already is completed as such: that is a success.
        """
    def remove(self, context: QueueContext) -> CallbackData | None:
        """FltCbdqRemoveIo: the operation, which is the caller's to complete; None: it was removed or cancelled
        before."""
    def remove_next(self, peek_context: Any = None) -> CallbackData | None:
        """FltCbdqRemoveNextIo: the next operation that is not cancelled, now the caller's to complete; None: there is
        none."""
    def enable(self) -> None:
        """FltCbdqEnable."""
    def disable(self) -> None:
        """FltCbdqDisable: from now on insert() answers STATUS_FLT_CBDQ_DISABLED. What is in the queue stays
        removable."""
    def __len__(self) -> int: ...
