"""Cancel-safe queues (docs/semantics.md A8), driven without a mount: exactly one of removal and cancellation wins."""

from __future__ import annotations

import errno
import queue
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from native_build import build
from stack_driver import Host, entry_of, lookup, opened

from stackfs.api import (
    FLT_PREOP_PENDING,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_QUERY_OPEN,
    STATUS_CANCELLED,
    STATUS_FLT_CBDQ_DISABLED,
    STATUS_NOT_SUPPORTED,
    STATUS_SUCCESS,
)
from stackfs.cext.cancel_safe_queue import CancelSafeQueue, QueueContext
from stackfs.cext.python_requests import Request, Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.fltkernel import (
    FLT_CALLBACK_DATA_QUEUE,
    FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT,
    FltCbdqDisable,
    FltCbdqEnable,
    FltCbdqInitialize,
    FltCbdqInsertIo,
    FltCbdqRemoveIo,
    FltCbdqRemoveNextIo,
    FltCompletePendedPreOperation,
)

FSYNC = 20
SECONDS = 5.0
Data = Any


class Queued:
    """An instance that queues every FLUSH_BUFFERS, and requests for it."""

    def __init__(self, core: Volume, cbdq: CancelSafeQueue | None = None, host: Host | None = None) -> None:
        self.core = core
        self.queue = CancelSafeQueue(host) if cbdq is None else cbdq
        self.fh = opened(core, lookup(core, b"file"))
        self.statuses: list[int] = []
        self.contexts: list[QueueContext] = []
        core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, self.pre, None), host=host))

    def pre(self, data: Data, objects: object) -> int:
        context = QueueContext()
        self.contexts.append(context)
        status = self.queue.insert(data, context)
        self.statuses.append(status)
        return FLT_PREOP_PENDING if status == STATUS_SUCCESS else int(data.complete(status))

    def ask(self) -> tuple[Request, threading.Event]:
        request = self.core.request(FSYNC, fh=self.fh)
        woken = threading.Event()
        if request.run() or not request.park(woken.set):
            woken.set()
        return request, woken


def let(data: Data) -> None:
    data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)


def outcome(asked: tuple[Request, threading.Event]) -> int:
    request, woken = asked
    assert woken.wait(SECONDS) and request.run()
    return request.error


def test_first_in_first_out_and_by_context(core: Volume, place: Path) -> None:
    queued = Queued(core)
    asked = [queued.ask() for _ in range(3)]
    numbers = [request.number for request, _ in asked]
    assert len(queued.queue) == 3 and all(context.queued for context in queued.contexts)
    first = queued.queue.remove_next()
    assert first is not None and first.request_number == numbers[0]
    last = queued.queue.remove(queued.contexts[2])
    assert last is not None and last.request_number == numbers[2] and queued.queue.remove(queued.contexts[2]) is None
    assert [context.queued for context in queued.contexts] == [False, True, False]
    let(last)
    assert outcome(asked[2]) == 0 and not asked[0][1].is_set()
    let(first)
    second = queued.queue.remove_next()
    assert second is not None
    let(second)
    assert [outcome(each) for each in asked] == [0, 0, 0] and queued.queue.remove_next() is None


def test_a_cancel_takes_it_out_and_completes_it(core: Volume, place: Path) -> None:
    queued = Queued(core)
    asked = [queued.ask() for _ in range(3)]
    assert core.interrupt(asked[1][0].number)
    assert outcome(asked[1]) == errno.EINTR and len(queued.queue) == 2
    assert queued.queue.remove(queued.contexts[1]) is None and not queued.contexts[1].queued
    for _ in range(2):
        data = queued.queue.remove_next()
        assert data is not None
        assert data.set_cancel_completion(print) == STATUS_SUCCESS  # nothing of the queue is left
        let(data)
    assert [outcome(asked[0]), outcome(asked[2])] == [0, 0]


def test_what_was_cancelled_before_is_completed_at_once(core: Volume, place: Path) -> None:
    queued = Queued(core)
    insert = queued.pre

    def pre(data: Data, objects: object) -> int:
        core.interrupt(data.request_number)
        return insert(data, objects)

    core.stack.remove(core.stack.entries[0])
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre, None)))
    assert outcome(queued.ask()) == errno.EINTR
    assert queued.statuses == [STATUS_SUCCESS] and len(queued.queue) == 0


def test_disabled_it_takes_nothing_and_gives_what_it_has(core: Volume, place: Path) -> None:
    queued = Queued(core)
    asked = queued.ask()
    queued.queue.disable()
    assert outcome(queued.ask()) == errno.EIO and queued.statuses == [STATUS_SUCCESS, STATUS_FLT_CBDQ_DISABLED]
    data = queued.queue.remove_next()
    assert data is not None
    let(data)
    assert outcome(asked) == 0
    queued.queue.enable()
    again = queued.ask()
    core.interrupt(again[0].number)
    assert outcome(again) == errno.EINTR


def test_the_filters_own_insert_may_refuse_or_raise(core: Volume, place: Path) -> None:
    class Full(CancelSafeQueue):
        def insert_io(self, data: Data, insert_context: object) -> int:
            if len(self.items) == 1:
                raise KeyError("full")
            super().insert_io(data, insert_context)
            return STATUS_SUCCESS

    host = Host()
    queued = Queued(core, Full(host), host)
    asked = queued.ask()
    assert outcome(queued.ask()) == errno.EIO
    assert host.told == [("raised", "pre", IRP_MJ_FLUSH_BUFFERS, "/file", KeyError)] and core.held() == 1
    core.interrupt(asked[0].number)
    assert outcome(asked) == errno.EINTR


def test_only_irps_and_only_removed_ones_are_completed(core: Volume, place: Path) -> None:
    cbdq, seen = CancelSafeQueue(), []

    def pre(data: Data, objects: object) -> int:
        seen.append(cbdq.insert(data))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_QUERY_OPEN, pre, None), name="a", at="9"))
    queued = Queued(core)
    assert seen == [STATUS_NOT_SUPPORTED] and len(cbdq) == 0
    asked = queued.ask()
    data = queued.queue.items[0]
    with pytest.raises(ValueError, match="removed first"):
        let(data)
    with pytest.raises(ValueError, match="cancel-safe queue"):
        data.set_cancel_completion(print)
    removed = queued.queue.remove_next()
    assert removed is data
    let(data)
    assert outcome(asked) == 0


@pytest.mark.verifier_errors("let go of its data")
def test_a_completion_of_the_cancelled_that_raises_fails_the_operation(core: Volume, place: Path) -> None:
    class Raising(CancelSafeQueue):
        def complete_canceled_io(self, data: Data) -> None:
            raise KeyError("no")

    host = Host()
    queued = Queued(core, Raising(host), host)
    asked = queued.ask()
    core.interrupt(asked[0].number)
    assert outcome(asked) == errno.EIO
    assert [each[1] for each in host.told] == ["cancel-safe queue", "pre"]


def test_under_the_names_of_the_ddi(core: Volume, place: Path) -> None:
    """cancelSafe's shape: a list, a lock, and callbacks."""
    items: list[Data] = []
    lock = threading.Lock()
    held: list[bool] = []

    def insert(cbdq: object, data: Data, context: object) -> int:
        held.append(lock.locked())
        items.append((data, context))
        return STATUS_SUCCESS

    def remove(cbdq: object, data: Data) -> None:
        held.append(lock.locked())
        items[:] = [each for each in items if each[0] is not data]

    def peek(cbdq: object, data: Data | None, wanted: object) -> Data | None:
        held.append(lock.locked())
        at = 0 if data is None else [each[0] for each in items].index(data) + 1
        return next((each[0] for each in items[at:] if wanted in (None, each[1])), None)

    def cancelled(cbdq: object, data: Data) -> None:
        held.append(not lock.locked())
        FltCompletePendedPreOperation(data, data.complete(STATUS_CANCELLED), None)

    cbdq = FLT_CALLBACK_DATA_QUEUE()
    assert FltCbdqInitialize(None, cbdq, insert, remove, peek, lambda _: lock.acquire(), lambda _: lock.release(),
                             cancelled) == STATUS_SUCCESS  # fmt: skip
    fh = opened(core, lookup(core, b"file"))
    contexts = [FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT() for _ in range(4)]
    names = iter(zip(contexts, "abab", strict=True))

    statuses: list[int] = []

    def pre(data: Data, objects: object) -> int:
        context, name = next(names, (FLT_CALLBACK_DATA_QUEUE_IO_CONTEXT(), "b"))
        statuses.append(FltCbdqInsertIo(cbdq, data, context, name))
        return FLT_PREOP_PENDING if statuses[-1] == STATUS_SUCCESS else int(data.complete(statuses[-1]))

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre, None)))
    requests = [core.request(FSYNC, fh=fh) for _ in range(4)]
    assert not any(request.run() for request in requests)
    events = [threading.Event() for _ in requests]
    assert all(request.park(event.set) for request, event in zip(requests, events, strict=True))
    FltCbdqDisable(cbdq)
    refused = core.request(FSYNC, fh=fh)
    assert refused.run() and refused.error == errno.EIO
    assert statuses == [STATUS_SUCCESS] * 4 + [STATUS_FLT_CBDQ_DISABLED]
    FltCbdqEnable(cbdq)
    last = core.request(FSYNC, fh=fh)
    assert not last.run() and statuses[-1] == STATUS_SUCCESS
    core.interrupt(last.number)
    assert last.run() and last.error == errno.EINTR
    second = FltCbdqRemoveNextIo(cbdq, "b")
    assert second is not None and second.request_number == requests[1].number
    FltCompletePendedPreOperation(second, FLT_PREOP_SUCCESS_NO_CALLBACK, None)
    third = FltCbdqRemoveIo(cbdq, contexts[2])
    assert third is not None and FltCbdqRemoveIo(cbdq, contexts[2]) is None
    FltCompletePendedPreOperation(third, FLT_PREOP_SUCCESS_NO_CALLBACK, None)
    core.interrupt(requests[0].number)
    core.interrupt(requests[3].number)
    assert all(event.wait(SECONDS) for event in events) and all(request.run() for request in requests)
    assert [request.error for request in requests] == [errno.EINTR, 0, 0, errno.EINTR]
    assert items == [] and held and all(held) and not lock.locked()


def test_exactly_one_wins_under_any_interleaving(core: Volume, place: Path) -> None:
    """Askers, removers by order and by context, and cancellers, on one queue; each operation ends once."""
    queued = Queued(core)
    stop = threading.Event()
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    contexts: queue.SimpleQueue[QueueContext] = queue.SimpleQueue()
    removed: list[int] = []
    cancelled: list[int] = []
    errors: dict[int, int] = {}
    wrong: list[BaseException] = []

    class Counting(CancelSafeQueue):
        def complete_canceled_io(self, data: Data) -> None:
            cancelled.append(data.request_number)
            super().complete_canceled_io(data)

    cbdq = Counting()

    def pre(data: Data, objects: object) -> int:
        context = QueueContext()
        numbers.put(data.request_number)
        status = cbdq.insert(data, context)
        contexts.put(context)
        return FLT_PREOP_PENDING if status == STATUS_SUCCESS else int(data.complete(status))

    core.stack.remove(core.stack.entries[0])
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre, None)))

    def guarded(routine: Any) -> Any:
        def run() -> None:
            try:
                routine()
            except BaseException as error:
                wrong.append(error)

        return run

    def ask() -> None:
        for _ in range(400):
            asked = core.request(FSYNC, fh=queued.fh)
            woken = threading.Event()
            if not asked.run() and asked.park(woken.set):
                assert woken.wait(SECONDS)
            assert asked.run() and asked.number not in errors
            errors[asked.number] = asked.error

    def finish(data: Data | None) -> None:
        if data is not None:
            removed.append(data.request_number)
            let(data)

    def remove_next() -> None:
        while not stop.is_set():
            finish(cbdq.remove_next())
            time.sleep(0)

    def remove() -> None:
        pick = random.Random(1)
        while not stop.is_set():
            try:
                context = contexts.get(timeout=0.01)
            except queue.Empty:
                continue
            if pick.random() < 0.3:
                finish(cbdq.remove(context))

    def cancel() -> None:
        pick = random.Random(2)
        while not stop.is_set():
            try:
                number = numbers.get(timeout=0.01)
            except queue.Empty:
                continue
            if pick.random() < 0.5:
                core.interrupt(number)

    helpers = [threading.Thread(target=guarded(each)) for each in (remove_next, remove, cancel, cancel)]
    askers = [threading.Thread(target=guarded(ask)) for _ in range(4)]
    for thread in helpers + askers:
        thread.start()
    for thread in askers:
        thread.join()
    stop.set()
    for thread in helpers:
        thread.join()
    assert wrong == []
    assert len(errors) == 1600 and len(cbdq) == 0 and core.held() == core.resuming == 0
    assert len(removed) == len(set(removed)) and len(cancelled) == len(set(cancelled))
    assert set(removed) | set(cancelled) == set(errors) and not set(removed) & set(cancelled)
    assert all(errors[number] == 0 for number in removed) and all(errors[number] == errno.EINTR for number in cancelled)
    assert removed and cancelled


# ---- native filters -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build("native_queue", tmp_path_factory.mktemp("native"))


@pytest.mark.verifier_errors("no status of a pre callback")
@pytest.mark.parametrize("how", ["completed", "failed", "cancelled", "cancelled before"])
def test_a_native_filter_holds_with_a_cancel_completion(core: Volume, place: Path, native: Any, how: str) -> None:
    host = Host()
    fh = opened(core, lookup(core, b"file"))
    if how == "cancelled before":
        def pre(data: Data, objects: object) -> int:
            core.interrupt(data.request_number)
            return FLT_PREOP_SUCCESS_NO_CALLBACK

        core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre, None), name="above", at="9"))
    core.stack.insert(InstanceEntry(host, "native", "2", "native", native=native.operations(False)))
    request = core.request(FSYNC, fh=fh)
    if how == "cancelled before":
        assert request.run() and request.error == errno.EINTR
        return
    assert not request.run() and request.is_held
    woken = threading.Event()
    assert request.park(woken.set)
    if how == "cancelled":
        assert core.interrupt(request.number)
    else:
        assert native.release_single(FLT_PREOP_SUCCESS_WITH_CALLBACK if how == "completed" else 99)
    assert woken.is_set() and request.run()
    assert request.error == {"completed": 0, "failed": errno.EIO, "cancelled": errno.EINTR}[how]
    assert [each[:2] for each in host.told] == ([("misused", "pre")] if how == "failed" else [])


def test_exactly_one_wins_in_a_native_queue(core: Volume, place: Path, native: Any) -> None:
    """Threads that never take the GIL remove and complete what two others cancel."""
    core.stack.insert(InstanceEntry(Host(), "native", "2", "native", native=native.operations(True)))
    fh = opened(core, lookup(core, b"file"))
    numbers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    errors: list[int] = []
    wrong: list[BaseException] = []
    before = native.counts()
    servers = [threading.Thread(target=native.serve) for _ in range(2)]

    def see(data: Data, objects: object) -> int:
        numbers.put(data.request_number)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, see, None), name="above", at="9"))

    def ask() -> None:
        try:
            for _ in range(600):
                request = core.request(FSYNC, fh=fh)
                while not request.run():
                    request.wait()
                errors.append(request.error)
        except BaseException as error:
            wrong.append(error)

    def cancel() -> None:
        while (number := numbers.get()) is not None:
            core.interrupt(number)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    cancellers = [threading.Thread(target=cancel) for _ in range(2)]
    for thread in askers + cancellers + servers:
        thread.start()
    for thread in askers:
        thread.join()
    for _ in cancellers:
        numbers.put(None)
    for thread in cancellers:
        thread.join()
    native.finish()
    for thread in servers:
        thread.join()
    removed, cancelled, left = (now - then for now, then in zip(native.counts(), before, strict=True))
    assert wrong == [] and left == 0 and core.held() == core.resuming == 0
    assert len(errors) == 2400 == removed + cancelled
    assert errors.count(0) == removed and errors.count(errno.EINTR) == cancelled
