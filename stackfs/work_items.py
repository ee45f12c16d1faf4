"""Work items: what a filter has done later, in another thread, at PASSIVE_LEVEL (docs/semantics.md A7).

    deferred     for one operation that the filter holds from then on; refused where it must not wait for a thread
    generic      for a filter or an instance, which cannot go before the routine has returned (stackfs/rundown.py)
    unprotected  ExQueueWorkItem: nothing keeps the filter from going before the routine has run

There is a queue for what may take its time (delayed) and one for what others wait for (critical), each served by a few
threads, which are started when they are first needed and never end. A routine that raises is reported as a callback
that does, and fails or passes its operation accordingly.

Any thread. An item is its owner's; a queue's lock is a leaf, held for a few lines.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import structlog

from stackfs import verifier
from stackfs.cext.callback_data import DataFlags, IrpFlags
from stackfs.cext.ntstatus import NtStatus
from stackfs.rundown import Rundown

if TYPE_CHECKING:
    from stackfs.cext.callback_data import CallbackData

log = structlog.get_logger("stackfs.work")

STATUS_SUCCESS: Final = 0
HOLDER: Final = "work item"
"""What a teardown that waits for a generic work item says it waits for."""


class WorkQueueType(IntEnum):
    """WORK_QUEUE_TYPE."""

    CriticalWorkQueue = 0
    DelayedWorkQueue = 1


THREADS: Final = {WorkQueueType.CriticalWorkQueue: 2, WorkQueueType.DelayedWorkQueue: 4}
"""How many threads serve each queue at most."""


class _Queue:
    def __init__(self, kind: WorkQueueType) -> None:
        self.kind = kind
        self._changed = threading.Condition()
        self._work: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0

    def put(self, work: Callable[[], None]) -> None:
        with self._changed:
            self._work.append(work)
            if self._idle >= len(self._work) or self._threads == THREADS[self.kind]:
                self._changed.notify()
                return
            self._threads += 1
        name = "stackfs-work" if self.kind is WorkQueueType.DelayedWorkQueue else "stackfs-critical"
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._work:
                    self._changed.wait()
                self._idle -= 1
                work = self._work.popleft()
            work()
            del work  # what it refers to is not kept until the next one comes


_queues: Final = {kind: _Queue(kind) for kind in WorkQueueType}


def _put(queue_type: int, work: Callable[[], None]) -> None:
    _queues[WorkQueueType(queue_type)].put(work)


class DeferredIoWorkItem:
    """FltAllocateDeferredIoWorkItem: a piece of work for one operation at a time."""

    def __init__(self) -> None:
        self._queued = False

    def queue(
        self,
        data: CallbackData,
        routine: Callable[[DeferredIoWorkItem, CallbackData, Any], object],
        queue_type: int = WorkQueueType.DelayedWorkQueue,
        context: Any = None,
    ) -> int:
        """FltQueueDeferredIoWorkItem, in a callback, which then returns FLT_PREOP_PENDING or
        FLT_POSTOP_MORE_PROCESSING_REQUIRED: routine(item, data, context) runs in a thread of that queue, perhaps
        before the callback has returned, and completes the operation. The item may be queued again in the routine.

        STATUS_FLT_NOT_SAFE_TO_POST_OPERATION: it is no IRP, or paging I/O, which the kernel waits for with pages
        locked; STATUS_FLT_DELETING_OBJECT: the instance is going. RuntimeError: the item is in a queue.
        """
        if self._queued:
            raise RuntimeError("the work item is in a queue")
        if not data.flags & DataFlags.FLTFL_CALLBACK_DATA_IRP_OPERATION or data.irp_flags & IrpFlags.IRP_PAGING_IO:
            return int(NtStatus.STATUS_FLT_NOT_SAFE_TO_POST_OPERATION)
        rundown: Rundown | None = getattr(data.instance, "rundown", None)
        if rundown is not None and rundown.ending:  # what it holds already keeps the instance: no reference is needed
            return int(NtStatus.STATUS_FLT_DELETING_OBJECT)
        self._queued = True
        _put(queue_type, lambda: self._work(data, routine, context))
        return STATUS_SUCCESS

    def free(self) -> None:
        """FltFreeDeferredIoWorkItem. RuntimeError: the item is in a queue."""
        if self._queued:
            raise RuntimeError("a work item that is in a queue cannot be freed")

    def _work(
        self,
        data: CallbackData,
        routine: Callable[[DeferredIoWorkItem, CallbackData, Any], object],
        context: Any,
    ) -> None:
        self._queued = False
        try:
            routine(self, data, context)
        except BaseException as error:
            try:
                data.end_async(None, error)
            except ReferenceError:  # it was completed, or its callback did not keep it
                log.error("a deferred work item raised", error=f"{type(error).__name__}: {error}")


class GenericWorkItem:
    """FltAllocateGenericWorkItem: a piece of work that belongs to no operation."""

    def __init__(self) -> None:
        self._queued = False

    def queue(
        self,
        owner: Any,
        routine: Callable[[GenericWorkItem, Any, Any], object],
        queue_type: int = WorkQueueType.DelayedWorkQueue,
        context: Any = None,
    ) -> int:
        """FltQueueGenericWorkItem: routine(item, owner, context). `owner`, an Instance or the LoadedFilter
        (`objects.filter`), is not torn down or unloaded before the routine has returned. The item may be queued again
        in the routine.

        STATUS_FLT_DELETING_OBJECT: the owner is going. RuntimeError: the item is in a queue.
        """
        if self._queued:
            raise RuntimeError("the work item is in a queue")
        if not owner.rundown.acquire(HOLDER):
            return int(NtStatus.STATUS_FLT_DELETING_OBJECT)
        self._queued = True
        _put(queue_type, lambda: self._work(owner, routine, context))
        return STATUS_SUCCESS

    def free(self) -> None:
        """FltFreeGenericWorkItem. RuntimeError: the item is in a queue."""
        if self._queued:
            raise RuntimeError("a work item that is in a queue cannot be freed")

    def _work(self, owner: Any, routine: Callable[[GenericWorkItem, Any, Any], object], context: Any) -> None:
        self._queued = False
        try:
            routine(self, owner, context)
        except BaseException as error:
            log.error("a generic work item raised", owner=owner.name, error=f"{type(error).__name__}: {error}")
        finally:
            owner.rundown.release(HOLDER)


class WorkQueueItem:
    """WORK_QUEUE_ITEM, for ExQueueWorkItem."""

    def __init__(self, routine: Callable[[Any], object], parameter: Any = None) -> None:
        """ExInitializeWorkItem."""
        self.routine = routine
        self.parameter = parameter

    def queue(self, queue_type: int = WorkQueueType.DelayedWorkQueue) -> None:
        """ExQueueWorkItem: routine(parameter). Nothing waits for it: the filter may have been unloaded by then."""
        ticket = object()  # the item may be queued again while it runs
        verifier.acquired(ticket, "a work item that is queued or runs", "ExQueueWorkItem")
        _put(queue_type, lambda: self._work(ticket))

    def _work(self, ticket: object) -> None:
        try:
            self.routine(self.parameter)
        except BaseException as error:
            log.error("a work item raised", error=f"{type(error).__name__}: {error}")
        finally:
            verifier.given_back(ticket)


def complete_when_safe(
    data: CallbackData,
    objects: Any,
    context: Any,
    flags: int,
    safe_post: Callable[[CallbackData, Any, Any, int], int | None],
) -> int | None:
    """FltDoCompletionProcessingWhenSafe, in the post callback of an IRP: what the callback returns, safe_post()
    having run, or going to run in a thread that completes the operation. None: it cannot (paging I/O, or the instance
    is going); the callback must clean up without it. ValueError: not an IRP's post, or a draining one."""
    if not data.flags & DataFlags.FLTFL_CALLBACK_DATA_POST_OPERATION or flags & 1 or not data.is_irp:
        raise ValueError("only for the post callback of an IRP that is not drained")
    if data.irql <= 1:
        answer = safe_post(data, objects, context, flags)
        return 0 if answer is None else answer

    def routine(_item: DeferredIoWorkItem, held: CallbackData, _context: Any) -> None:
        answer = safe_post(held, objects, context, flags)
        if answer in (None, 0):
            held.complete_pended_post()
        elif answer != 1:
            raise ValueError(f"a safe post callback cannot return {answer!r}")

    if DeferredIoWorkItem().queue(data, routine) != STATUS_SUCCESS:
        return None
    return 1
