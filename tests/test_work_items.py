"""Work items, completion when it is safe, `async def` callbacks, and what a teardown does about what is held
(docs/semantics.md A3.11, A6.18, A7)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from stack_driver import READ, Host, entry_of, go_on, lookup, opened

from stackfs import api, work_items
from stackfs.api import (
    FLT_POSTOP_FINISHED_PROCESSING,
    FLT_POSTOP_MORE_PROCESSING_REQUIRED,
    FLT_PREOP_PENDING,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_READ,
    STATUS_ACCESS_DENIED,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_NOT_SAFE_TO_POST_OPERATION,
    STATUS_SUCCESS,
)
from stackfs.cext.pending import current_irql
from stackfs.cext.python_requests import Request, Volume
from stackfs.cext.python_requests import Volume as CoreVolume
from stackfs.fltkernel import (
    CriticalWorkQueue,
    DelayedWorkQueue,
    ExInitializeWorkItem,
    ExQueueWorkItem,
    FltAllocateDeferredIoWorkItem,
    FltAllocateGenericWorkItem,
    FltCompletePendedPostOperation,
    FltDoCompletionProcessingWhenSafe,
    FltFreeDeferredIoWorkItem,
    FltFreeGenericWorkItem,
    FltQueueDeferredIoWorkItem,
    FltQueueGenericWorkItem,
    Out,
)
from stackfs.manager import FilterManager, running

FSYNC = 20
SECONDS = 5.0
Data = Any


class Holder(Host):
    """An instance with a rundown reference, as the manager's has."""

    name = "holder"

    def __init__(self) -> None:
        from stackfs.rundown import Rundown

        super().__init__()
        self.rundown = Rundown()


def flush(core: Volume, fh: int) -> int:
    request = core.request(FSYNC, fh=fh)
    while not request.run():
        request.wait()
    return request.error


# ---- deferred -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue_type", [DelayedWorkQueue, CriticalWorkQueue])
def test_a_deferred_work_item_completes_its_operation_in_a_thread_of_its_queue(
    core: Volume, place: Path, queue_type: int
) -> None:
    item = FltAllocateDeferredIoWorkItem()
    seen: list[object] = []

    def routine(which: object, data: Data, context: object) -> None:
        seen.extend((which is item, context, data.path, threading.current_thread().name, current_irql()))
        FltFreeDeferredIoWorkItem(item)
        data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)

    def pre(data: Data, objects: object) -> int:
        assert FltQueueDeferredIoWorkItem(item, data, routine, queue_type, "context") == STATUS_SUCCESS
        return FLT_PREOP_PENDING

    fh = opened(core, lookup(core, b"file"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre, None), host=Holder()))
    assert flush(core, fh) == flush(core, fh) == 0
    name = "stackfs-work" if queue_type == DelayedWorkQueue else "stackfs-critical"
    assert seen == [True, "context", "/file", name, 0] * 2


def test_what_must_not_wait_for_a_thread_is_not_posted(core: Volume, place: Path) -> None:
    statuses: list[int] = []
    host = Holder()

    def pre(data: Data, objects: object) -> int:
        item = FltAllocateDeferredIoWorkItem()
        statuses.append(FltQueueDeferredIoWorkItem(item, data, print))
        FltFreeDeferredIoWorkItem(item)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_READ, pre, None), (IRP_MJ_FLUSH_BUFFERS, pre, None), host=host))
    fh = opened(core, lookup(core, b"file"))
    for open_flags in (0, 2):                    # the page cache's, and fast I/O
        core.request(READ, fh=fh, buffer=bytearray(4), size=4, open_flags=open_flags).do()
    host.rundown.run_down()
    assert flush(core, fh) == 0
    assert statuses == [STATUS_FLT_NOT_SAFE_TO_POST_OPERATION] * 2 + [STATUS_FLT_DELETING_OBJECT] and host.told == []


def test_a_deferred_routine_that_raises_fails_its_operation(core: Volume, place: Path) -> None:
    host = Holder()

    def pre(data: Data, objects: object) -> int:
        work_items.DeferredIoWorkItem().queue(data, lambda *_: 1 // 0)
        return FLT_PREOP_PENDING

    fh = opened(core, lookup(core, b"file"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre, None), host=host))
    assert flush(core, fh) == errno.EIO
    assert host.told == [("raised", "pre", IRP_MJ_FLUSH_BUFFERS, "/file", ZeroDivisionError)]


def test_an_item_in_a_queue_is_neither_queued_again_nor_freed(core: Volume, place: Path) -> None:
    item, owner = FltAllocateGenericWorkItem(), Holder()
    go, done = threading.Event(), threading.Event()
    blockers = [work_items.WorkQueueItem(lambda _: go.wait(SECONDS)) for _ in range(4)]
    for blocker in blockers:
        ExQueueWorkItem(blocker)
    assert FltQueueGenericWorkItem(item, owner, lambda *_: done.set()) == STATUS_SUCCESS
    with pytest.raises(RuntimeError, match="in a queue"):
        FltQueueGenericWorkItem(item, owner, print)
    with pytest.raises(RuntimeError, match="cannot be freed"):
        FltFreeGenericWorkItem(item)
    assert owner.rundown.holders() == ["work item"]
    go.set()
    assert done.wait(SECONDS)


# ---- generic, unprotected -------------------------------------------------------------------------------------------


def test_a_generic_work_item_holds_its_owner_and_may_queue_itself_again() -> None:
    owner, item = Holder(), FltAllocateGenericWorkItem()
    turns: list[tuple[bool, object]] = []
    done = threading.Event()

    def routine(which: object, whose: object, context: int) -> None:
        turns.append((whose is owner and which is item and owner.rundown.held, context))
        if context:
            assert FltQueueGenericWorkItem(item, owner, routine, CriticalWorkQueue, context - 1) == STATUS_SUCCESS
        else:
            FltFreeGenericWorkItem(item)
            done.set()

    assert FltQueueGenericWorkItem(item, owner, routine, DelayedWorkQueue, 2) == STATUS_SUCCESS
    assert done.wait(SECONDS) and turns == [(True, 2), (True, 1), (True, 0)]
    end = time.monotonic() + SECONDS
    while owner.rundown.held and time.monotonic() < end:
        time.sleep(0.001)
    owner.rundown.run_down()
    assert not owner.rundown.held
    assert FltQueueGenericWorkItem(item, owner, routine, DelayedWorkQueue, 0) == STATUS_FLT_DELETING_OBJECT


def test_a_generic_routine_that_raises_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """A7.6; and its owner is not held any longer."""
    owner = Holder()
    assert FltQueueGenericWorkItem(FltAllocateGenericWorkItem(), owner, lambda *_: 1 // 0) == STATUS_SUCCESS
    end = time.monotonic() + SECONDS
    while owner.rundown.held and time.monotonic() < end:
        time.sleep(0.001)
    assert not owner.rundown.held and "ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(("queue_type", "threads"), [(DelayedWorkQueue, 4), (CriticalWorkQueue, 2)])
def test_so_many_threads_serve_a_queue(queue_type: int, threads: int) -> None:
    """A7.5: as many run at once, and one more waits for one of them; the other queue does not."""
    go = threading.Event()
    running: list[str] = []
    over = threading.Semaphore(0)

    def routine(_: object) -> None:
        running.append(threading.current_thread().name)
        go.wait(SECONDS)
        over.release()

    for _ in range(threads + 1):
        ExQueueWorkItem(ExInitializeWorkItem(routine), queue_type)
    end = time.monotonic() + SECONDS
    while len(running) < threads and time.monotonic() < end:
        time.sleep(0.001)
    passing = threading.Event()
    ExQueueWorkItem(ExInitializeWorkItem(lambda _: passing.set()), 1 - queue_type)
    assert passing.wait(SECONDS) and len(running) == threads and len(set(running)) == 1
    go.set()
    assert all(over.acquire(timeout=SECONDS) for _ in range(threads + 1)) and len(running) == threads + 1


def test_an_unprotected_work_item_runs_with_its_parameter() -> None:
    got: list[object] = []
    done = threading.Event()
    ExQueueWorkItem(ExInitializeWorkItem(lambda parameter: (got.append(parameter), done.set()), "parameter"))
    assert done.wait(SECONDS) and got == ["parameter"]


# ---- completion when it is safe -------------------------------------------------------------------------------------


@pytest.mark.parametrize("synchronised", [False, True])
def test_completion_processing_when_safe(core: Volume, place: Path, synchronised: bool) -> None:
    seen: list[tuple[int, int, object]] = []
    returned: list[tuple[bool, int]] = []

    def safe(data: Data, objects: object, context: object, flags: int) -> int:
        seen.append((threading.get_ident(), data.irql, context))
        data.status = STATUS_ACCESS_DENIED
        return FLT_POSTOP_FINISHED_PROCESSING

    def pre(data: Data, objects: object) -> tuple[int, str]:
        return (api.FLT_PREOP_SYNCHRONIZE if synchronised else FLT_PREOP_SUCCESS_WITH_CALLBACK), "context"

    def post(data: Data, objects: object, context: object, flags: int) -> int:
        out: Out[int] = Out()
        done = FltDoCompletionProcessingWhenSafe(data, objects, context, flags, safe, out)
        returned.append((done, out.value))
        return out.value

    fh = opened(core, lookup(core, b"file"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre, post), host=Holder()))
    assert flush(core, fh) == errno.EACCES
    expected = FLT_POSTOP_FINISHED_PROCESSING if synchronised else FLT_POSTOP_MORE_PROCESSING_REQUIRED
    assert returned == [(True, expected)]
    assert [each[1:] for each in seen] == [(0, "context")]
    assert (seen[0][0] == threading.get_ident()) == synchronised


def test_a_safe_post_may_keep_the_operation_itself(core: Volume, place: Path) -> None:
    kept: list[Data] = []

    def safe(data: Data, *_: object) -> int:
        kept.append(data)
        threading.Timer(0.01, lambda: FltCompletePendedPostOperation(kept.pop())).start()
        return FLT_POSTOP_MORE_PROCESSING_REQUIRED

    def post(data: Data, objects: object, context: object, flags: int) -> int:
        out: Out[int] = Out()
        assert FltDoCompletionProcessingWhenSafe(data, objects, context, flags, safe, out)
        return out.value

    fh = opened(core, lookup(core, b"file"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, go_on, post), host=Holder()))
    assert flush(core, fh) == 0 and kept == []


def test_paging_io_cannot_be_posted(core: Volume, place: Path) -> None:
    returned: list[tuple[bool, int]] = []

    def post(data: Data, objects: object, context: object, flags: int) -> int:
        out: Out[int] = Out()
        returned.append((FltDoCompletionProcessingWhenSafe(data, objects, context, flags, print, out), out.value))
        return out.value

    core.stack.insert(entry_of((IRP_MJ_READ, go_on, post), host=Holder()))
    fh = opened(core, lookup(core, b"file"))
    core.request(READ, fh=fh, buffer=bytearray(4), size=4).do()
    assert returned == [(False, FLT_POSTOP_FINISHED_PROCESSING)]


@pytest.mark.parametrize("where", ["in pre", "fast I/O", "draining"])
def test_completion_when_safe_is_for_the_posts_of_irps(core: Volume, place: Path, where: str) -> None:
    """A7.7: anywhere else it is a mistake of the filter, and the safe post is not called."""
    raised: list[str] = []
    called: list[object] = []

    def complete(data: Data, flags: int) -> None:
        with pytest.raises(ValueError, match="post callback of an IRP") as caught:
            FltDoCompletionProcessingWhenSafe(data, None, None, flags, called.append, Out())
        raised.append(str(caught.value))

    def pre(data: Data, objects: object) -> int:
        if where == "in pre":
            complete(data, 0)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(data: Data, objects: object, context: object, flags: int) -> None:
        if where != "in pre":
            complete(data, api.FLTFL_POST_OPERATION_DRAINING if where == "draining" else flags)

    host = Holder()
    core.stack.insert(entry_of((IRP_MJ_READ, pre, post), host=host))
    fh = opened(core, lookup(core, b"file"))
    open_flags = 2 if where == "fast I/O" else 0
    core.request(READ, fh=fh, buffer=bytearray(4), size=4, open_flags=open_flags).do()
    assert len(raised) == 1 and called == [] and host.told == []


# ---- with the manager: async callbacks, teardown --------------------------------------------------------------------

MANIFEST = (
    'MANIFEST = {"name": "held", "altitude": "385100", "group": "FSFilter Activity Monitor", "filter": "Held"%s}\n'
)
ASYNC = MANIFEST + '''
import threading
import trio
from stackfs.api import *

class Held(Filter):
    operations = (Operation(IRP_MJ_FLUSH_BUFFERS, pre="pre", post="post"),)

    def __init__(self, options):
        super().__init__(options)
        self.trace, self.go, self.posts = [], trio.Event(), trio.Event()
        self.posts.set()

    async def pre(self, data, objects):
        self.trace.append("pre")
        if data.gid == 77:
            return data.complete(STATUS_ACCESS_DENIED)
        try:
            if data.gid != 78:
                await self.go.wait()
        except trio.Cancelled:
            self.trace.append("cancelled")
            raise
        if data.gid == 79:
            raise KeyError("no")
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, data.gid

    async def post(self, data, objects, context, flags):
        await self.posts.wait()
        self.trace.append(("post", context))
'''


class Bench:
    def __init__(self, manager: FilterManager, core: CoreVolume, filters: Path) -> None:
        self.manager = manager
        self.core = core
        self.volume = manager.add_volume("v", "", "", core)
        self.filters = filters
        self.fh = opened(core, lookup(core, b"file"))

    async def load(self, source: str) -> Any:
        (self.filters / "held.py").write_text(source)
        await self.manager.load("held")
        return self.manager.loaded["held"].object

    async def flush(self, gid: int = 0, number: list[int] | None = None) -> int:
        """As a handler of the IRP lane does."""
        request = self.core.request(FSYNC, fh=self.fh, gid=gid, nowait=True)
        token = trio.lowlevel.current_trio_token()
        while not request.run():
            if number is not None:
                number.append(request.number)
            if request.is_held:
                woken = trio.Event()
                if request.park(lambda woken=woken: token.run_sync_soon(woken.set)):  # type: ignore[misc]
                    await woken.wait()
            else:
                await trio.to_thread.run_sync(request.wait)
        return request.error


@contextlib.asynccontextmanager
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    backing, filters = tmp_path / "backing", tmp_path / "filters"
    backing.mkdir()
    filters.mkdir(mode=0o700)
    (backing / "file").write_bytes(b"0123456789")
    core = CoreVolume(os.open(backing, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    async with running(FilterManager([str(filters)])) as manager:
        made = Bench(manager, core, filters)
        yield made


def in_trio(scenario: Callable[[Bench], Awaitable[None]], tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with bench(tmp_path) as made:
                await scenario(made)

    trio.run(main)


def test_an_async_callback_holds_its_operation_and_goes_on_when_it_returns(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        held = await bench.load(ASYNC % "")
        errors: list[int] = []

        async def ask(gid: int) -> None:
            errors.append(await bench.flush(gid))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 5)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert held.trace == ["pre"] and errors == [] and bench.core.held() == 1
            assert await bench.flush(77) == errno.EACCES and await bench.flush(78) == 0
            held.go.set()
        assert errors == [0] and held.trace == ["pre", "pre", "pre", ("post", 78), ("post", 5)]
        thread_errors = await trio.to_thread.run_sync(lambda: [flush(bench.core, bench.fh) for _ in range(3)])
        assert thread_errors == [0, 0, 0]        # called on another thread, it runs on the loop's all the same

    in_trio(scenario, tmp_path)


def test_cancellation_reaches_the_callback_of_that_operation_alone(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        held = await bench.load(ASYNC % "")
        errors: dict[int, int] = {}
        numbers: list[list[int]] = [[], []]

        async def ask(which: int) -> None:
            errors[which] = await bench.flush(which, numbers[which])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 0)
            nursery.start_soon(ask, 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert bench.core.interrupt(numbers[1][0])
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert errors == {1: errno.EINTR} and held.trace == ["pre", "pre", "cancelled"]
            held.posts = trio.Event()
            held.go.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert bench.core.interrupt(numbers[0][0])       # in its post: what was to be done there is not done
        assert errors == {0: errno.EINTR, 1: errno.EINTR}

    in_trio(scenario, tmp_path)


def test_an_async_callback_that_raises(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        held = await bench.load(ASYNC % "")
        held.go.set()
        assert await bench.flush(79) == errno.EIO
        await bench.manager.unload("held")
        held = await bench.load(ASYNC % ', "on_error": "pass"')
        held.go.set()
        assert await bench.flush(79) == 0

    in_trio(scenario, tmp_path)


def test_a_read_with_an_async_callback_is_never_offered_as_fast_io(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        held = await bench.load(ASYNC.replace("IRP_MJ_FLUSH_BUFFERS", "IRP_MJ_READ").replace(
            'self.trace.append("pre")', "self.trace.append((data.is_irp, data.is_fast_io))") % "")  # fmt: skip
        held.go.set()
        read: Callable[[], Request] = bench.core.request(
            READ, fh=bench.fh, buffer=bytearray(4), size=4, open_flags=2).do  # fmt: skip
        await trio.to_thread.run_sync(read)
        assert held.trace == [(True, False), ("post", 0)]

    in_trio(scenario, tmp_path)


def test_only_what_can_be_an_irp_has_async_callbacks(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        from stackfs.errors import StackfsError

        with pytest.raises(StackfsError, match="IRP_MJ_QUERY_OPEN cannot be held"):
            await bench.load(ASYNC.replace("IRP_MJ_FLUSH_BUFFERS", "IRP_MJ_QUERY_OPEN") % "")

    in_trio(scenario, tmp_path)


def test_a_teardown_cancels_what_the_instance_holds(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        held = await bench.load(ASYNC % "")
        errors: list[int] = []

        async def ask() -> None:
            errors.append(await bench.flush())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await bench.manager.unload("held")
        assert errors == [errno.EINTR] * 3 and held.trace == ["pre"] * 3 + ["cancelled"] * 3

    in_trio(scenario, tmp_path)


STUBBORN = MANIFEST % "" + '''
import threading
from stackfs.api import *
from stackfs.work_items import GenericWorkItem

class Held(Filter):
    operations = (Operation(IRP_MJ_FLUSH_BUFFERS, pre="pre"),)

    def __init__(self, options):
        super().__init__(options)
        self.held, self.trace, self.go = [], [], threading.Event()

    def pre(self, data, objects):
        self.held.append(data)
        return FLT_PREOP_PENDING

    def work(self, owner):
        return GenericWorkItem().queue(owner, lambda *_: (self.go.wait(10), self.trace.append("work")))

    def instance_teardown_start(self, instance, reason):
        self.trace.append("start")

    def instance_teardown_complete(self, instance, reason):
        self.trace.append("complete")
'''


@pytest.mark.verifier_errors("does not complete them when it is torn down")
def test_a_teardown_waits_for_what_is_not_let_go_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stackfs.teardown.PATIENCE", 0.05)

    async def scenario(bench: Bench) -> None:
        held = await bench.load(STUBBORN)
        errors: list[int] = []

        async def ask() -> None:
            errors.append(await bench.flush())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(bench.manager.unload, "held")
            try:
                await trio.sleep(0.3)
                assert held.trace == ["start"] and errors == []
                assert "a teardown waits for operations that are held" in capsys.readouterr().out
            finally:
                held.held.pop().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
        assert errors == [0] and held.trace == ["start", "complete"]

    in_trio(scenario, tmp_path)


@pytest.mark.parametrize("owner", ["instance", "filter"])
def test_an_unload_waits_for_generic_work_items(tmp_path: Path, owner: str) -> None:
    async def scenario(bench: Bench) -> None:
        held = await bench.load(STUBBORN)
        loaded = bench.manager.loaded["held"]
        instance = loaded.instances[0]
        assert held.work(instance if owner == "instance" else loaded) == STATUS_SUCCESS
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.manager.unload, "held")
            await trio.sleep(0.1)
            assert "work" not in held.trace and "held" in bench.manager.loaded
            assert held.work(instance) == STATUS_FLT_DELETING_OBJECT == held.work(loaded)
            held.go.set()
        assert held.trace.index("work") < (held.trace.index("complete") if owner == "instance" else 3)
        assert bench.manager.loaded == {}

    in_trio(scenario, tmp_path)


def test_an_unload_does_not_wait_for_an_unprotected_work_item(tmp_path: Path) -> None:
    """A7.4: the filter is gone when its routine runs."""

    async def scenario(bench: Bench) -> None:
        await bench.load(STUBBORN)
        go, done = threading.Event(), threading.Event()
        there: list[bool] = []

        def routine(_: object) -> None:
            go.wait(SECONDS)
            there.append("held" in bench.manager.loaded)
            done.set()

        ExQueueWorkItem(ExInitializeWorkItem(routine))
        with trio.fail_after(3):
            await bench.manager.unload("held")
        go.set()
        assert await trio.to_thread.run_sync(done.wait, SECONDS) and there == [False]

    in_trio(scenario, tmp_path)


QUEUES = MANIFEST % "" + '''
from stackfs.api import *

class Held(Filter):
    operations = (Operation(IRP_MJ_FLUSH_BUFFERS, pre="pre"),)

    def instance_setup(self, instance, flags):
        self.queue = CancelSafeQueue(instance)
        self.statuses, self.empties = [], False
        return STATUS_SUCCESS

    def pre(self, data, objects):
        self.statuses.append(self.queue.insert(data))
        return FLT_PREOP_PENDING if self.statuses[-1] == STATUS_SUCCESS else data.complete(STATUS_ACCESS_DENIED)

    def instance_teardown_start(self, instance, reason):
        if self.empties:
            self.queue.disable()
            while (data := self.queue.remove_next()) is not None:
                data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
'''


@pytest.mark.parametrize("empties", [True, False])
def test_a_teardown_empties_a_cancel_safe_queue(tmp_path: Path, empties: bool) -> None:
    """A8.9: the filter by itself, each operation as it likes; what it leaves there is cancelled."""

    async def scenario(bench: Bench) -> None:
        held = await bench.load(QUEUES)
        held.empties = empties
        errors: list[int] = []

        async def ask() -> None:
            errors.append(await bench.flush())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert errors == [] and len(held.queue) == 3
            await bench.manager.unload("held")
        assert errors == [0 if empties else errno.EINTR] * 3 and len(held.queue) == 0

    in_trio(scenario, tmp_path)


def test_what_held_up_an_attach_and_a_dismount(tmp_path: Path) -> None:
    """An attach does not wait for what is held. A dismount tells all instances before it waits for any."""

    async def scenario(bench: Bench) -> None:
        held = await bench.load(STUBBORN)
        errors: list[int] = []

        async def ask() -> None:
            errors.append(await bench.flush())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
            try:
                with trio.fail_after(2):
                    await bench.manager.attach("held", bench.volume, "second", "385200")
                nursery.start_soon(bench.manager.remove_volume, bench.volume)
                await trio.sleep(0.1)
                assert held.trace == ["start", "start", "complete"] and errors == []      # one of them holds nothing
            finally:
                held.held.pop().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
        assert errors == [0] and held.trace == ["start", "start", "complete", "complete"]

    in_trio(scenario, tmp_path)


# ---- mounted --------------------------------------------------------------------------------------------------------

GATE = '''
MANIFEST = {"name": "gate", "altitude": "385100", "group": "FSFilter Activity Monitor", "filter": "Gate"}
import os
import threading
import time
import trio
from stackfs.api import *

class Gate(Filter):
    """Holds every read of a file named held* until there is a file "go" beside the mount."""

    operations = (Operation(IRP_MJ_READ, pre="pre"),)

    def is_open(self, objects):
        return os.path.exists(os.path.join(objects.volume.source, "go"))

    %s
'''
IN_A_THREAD = '''def pre(self, data, objects):
        if not data.path.startswith("/held"):
            return FLT_PREOP_SUCCESS_NO_CALLBACK
        if data.is_fast_io:
            return FLT_PREOP_DISALLOW_FASTIO
        if data.set_cancel_completion(lambda data: data.complete_pended_pre(data.complete(STATUS_CANCELLED))):
            return data.complete(STATUS_CANCELLED)
        threading.Thread(target=self.wait, args=(data, objects), daemon=True).start()
        return FLT_PREOP_PENDING

    def wait(self, data, objects):
        while not self.is_open(objects):
            time.sleep(0.01)
        if data.clear_cancel_completion() == STATUS_SUCCESS:
            data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
'''
ON_THE_LOOP = '''async def pre(self, data, objects):
        if data.path.startswith("/held"):
            while not self.is_open(objects):
                await trio.sleep(0.01)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


@pytest.mark.parametrize(("how", "cache"), [("thread", "strict"), ("async", "normal")])
def test_reads_are_held_released_and_interrupted_on_a_mount(
    drive: Callable[..., Any], lanes: str, how: str, cache: str, tmp_path: Path
) -> None:
    filters = tmp_path / "filters"
    filters.mkdir(mode=0o700)
    (filters / "gate.py").write_text(GATE % (IN_A_THREAD if how == "thread" else ON_THE_LOOP))
    mounted = drive(f"filterdir={filters},filter=gate,cache={cache}", mount=False)
    for name in ("held", "held too", "free"):
        (mounted.src / name).write_text(name)
    mounted.mount(f"filterdir={filters},filter=gate,cache={cache}")
    source = "import sys; sys.stdout.write(open(sys.argv[1]).read())"

    def reader(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", source, str(mounted.mnt / name)], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True, cwd="/")  # fmt: skip

    first, second = reader("held"), reader("held too")
    try:
        assert reader("free").communicate(timeout=20)[0] == "free"
        time.sleep(0.3)
        assert first.poll() is None and second.poll() is None
        second.send_signal(signal.SIGKILL)
        assert second.wait(20) == -signal.SIGKILL
        (mounted.src / "go").touch()
        assert first.communicate(timeout=20)[0] == "held"
        assert reader("held too").communicate(timeout=20)[0] == "held too"
        mounted.fltmc("unload", "gate")
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]


STEPS = '''
MANIFEST = {"name": "steps", "altitude": "370501", "group": "FSFilter Activity Monitor", "filter": "Steps"}

import trio
from stackfs.api import *

class Steps(Filter):
    """Awaits as the name of the file says, and answers READ with the names of the tasks it ran in."""

    operations = (Operation(IRP_MJ_READ, pre="pre"),)

    async def pre(self, data, objects):
        name = data.path.lstrip("/")
        task = trio.lowlevel.current_task()
        try:
            await self.steps(name)
        except trio.Cancelled:
            if name == "cleans up":
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.01)
                open(objects.volume.source + "/cleaned", "w").close()
            raise
        return FLT_PREOP_SUCCESS_NO_CALLBACK if task is trio.lowlevel.current_task() else STATUS_UNSUCCESSFUL

    async def steps(self, name):
        if name == "raises at once":
            raise ValueError(name)
        if name == "gives up":
            with trio.move_on_after(0.02) as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught
        if name == "raises later":
            await trio.sleep(0.01)
            raise ValueError(name)
        if name == "awaits others":
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(trio.sleep, number / 100)
        if name == "sleeps":
            await trio.sleep(0.3)
        if name == "cleans up":
            await trio.sleep_forever()
'''
READS = "import os, sys; sys.stdout.write(os.read(os.open(sys.argv[1], os.O_RDONLY), 100).decode())"


def test_an_async_callback_may_await_whatever_it_likes(
    drive: Callable[..., Any], lanes: str, tmp_path: Path
) -> None:
    filters = tmp_path / "filters"
    filters.mkdir(mode=0o700)
    (filters / "steps.py").write_text(STEPS)
    mounted = drive(f"filterdir={filters},filter=steps,cache=strict", mount=False)
    good = ("returns", "gives up", "awaits others", "sleeps")
    for name in (*good, "raises at once", "raises later", "cleans up"):
        (mounted.src / name).write_text(name)
    mounted.mount(f"filterdir={filters},filter=steps,cache=strict,lanes={lanes}")
    mounted.expected_log.append("a callback raised")

    def reader(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-I", "-c", READS, str(mounted.mnt / name)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, cwd="/")  # fmt: skip

    for name in good:
        assert reader(name).communicate(timeout=20)[0] == name
    for name in ("raises at once", "raises later"):
        assert "Errno 5" in reader(name).communicate(timeout=20)[1], name
    begun = time.monotonic()
    sleepers = [reader("sleeps") for _ in range(12)]
    assert [each.communicate(timeout=20)[0] for each in sleepers] == ["sleeps"] * 12
    taken = time.monotonic() - begun
    waiting = reader("cleans up")
    time.sleep(0.5)
    waiting.send_signal(signal.SIGTERM)                  # not SIGINT: in the background it may be ignored
    assert waiting.communicate(timeout=20) == ("", "") and waiting.returncode == -signal.SIGTERM
    assert (mounted.src / "cleaned").exists() and reader("returns").communicate(timeout=20)[0] == "returns"
    assert taken < 12 * 0.3, "one waited for the other"
