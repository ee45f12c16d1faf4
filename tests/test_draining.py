"""Draining (docs/semantics.md A3.9 to A3.12): what is under way when an instance leaves."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import trio
from filter_bench import Bench, on_trio
from stack_driver import FSYNC, RELEASE, error_of, lookup, opened, read

from stackfs import api, teardown

in_thread = trio.to_thread.run_sync


def flush(volume: Any) -> None:
    fh = opened(volume.core, lookup(volume.core, b"file"), os.O_RDWR)
    volume.core.request(FSYNC, fh=fh).do()
    assert error_of(volume.core, RELEASE, fh=fh) == 0


DRAINS = '''
import threading, weakref

class Context:
    pass

class Dropped(Filter):
    """Writes down what it sees of FLUSH_BUFFERS, and can be made to wait in its pre or post."""

    operations = (Operation(IRP_MJ_FLUSH_BUFFERS, pre="pre", post="post"),)

    def __init__(self, options):
        super().__init__(options)
        self.trace, self.contexts = [], []
        self.wait_in, self.inside, self.go = None, threading.Event(), threading.Event()
        self.answer = FLT_PREOP_SUCCESS_WITH_CALLBACK

    def waits(self, where):
        if self.wait_in == where:
            self.inside.set()
            assert self.go.wait(20)

    def instance_setup(self, instance, flags):
        instance.at_end(lambda: self.trace.append(("contexts gone",)))
        return STATUS_SUCCESS

    def instance_query_teardown(self, instance, flags):
        self.trace.append(("query",))
        return STATUS_SUCCESS

    def instance_teardown_start(self, instance, reason):
        self.trace.append(("start",))

    def instance_teardown_complete(self, instance, reason):
        self.trace.append(("complete",))

    def pre(self, data, objects):
        self.trace.append(("pre",))
        self.waits("pre")
        context = Context()
        self.contexts.append(weakref.ref(context))
        if self.answer == "changes":
            data.set_dirty()
            return FLT_PREOP_SUCCESS_WITH_CALLBACK, context
        return (self.answer, context) if self.answer == FLT_PREOP_SUCCESS_WITH_CALLBACK else self.answer

    def post(self, data, objects, context, flags):
        assert isinstance(context, Context)
        assert bool(data.flags & FLTFL_CALLBACK_DATA_DRAINING_IO) == bool(flags & FLTFL_POST_OPERATION_DRAINING)
        assert data.major == IRP_MJ_FLUSH_BUFFERS and data.path == "/file"
        self.trace.append(("post", flags, data.status))
        self.waits("post")
        data.status = STATUS_ACCESS_DENIED if flags else data.status
'''
CLEANUP = 0xC01C0009


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not end by itself is drained without waiting."""
    monkeypatch.setattr(teardown, "DRAIN_AFTER", 0.0)


async def two_filters(bench: Bench) -> tuple[Any, Any, Any]:
    """`f` at 370500 above `low` at 360500; the volume's core and the two filters."""
    bench.drop(DRAINS)
    bench.drop(DRAINS, name="low", altitude="360500")
    volume = bench.volume()
    await bench.manager.load("f")
    await bench.manager.load("low")
    return volume, bench.manager.filter("f").object, bench.manager.filter("low").object


async def started(nursery: trio.Nursery, routine: Any, *arguments: Any) -> trio.Event:
    done = trio.Event()

    async def run() -> None:
        await routine(*arguments)
        done.set()

    nursery.start_soon(run)
    await trio.sleep(0.03)
    return done


@pytest.mark.parametrize("how", ["detach", "unload", "stop", "dismount"])
def test_drained_while_the_base_takes_long(bench: Bench, at_once: None, how: str) -> None:
    """A3.9, A3.10: query, start, the post early on a copy, complete, contexts, gone; the operation goes on below."""

    @on_trio
    async def test(bench: Bench) -> None:
        volume, f, low = await two_filters(bench)
        instance = volume.instances[0]
        core = volume.core
        fh = opened(core, lookup(core, b"file"), os.O_RDWR)
        under_way = core.request(FSYNC, fh=fh, nowait=True)
        assert not under_way.run()
        if how == "detach":
            await bench.manager.detach("f", volume)
        elif how == "dismount":
            await teardown.tear_down([instance], api.FLTFL_INSTANCE_TEARDOWN_VOLUME_DISMOUNT)
        else:
            await bench.manager.unload("f", mandatory=how == "stop")
        asked = [("query",)] if how == "detach" else []
        assert f.trace == [("pre",), *asked, ("start",), ("post", 1, CLEANUP), ("complete",), ("contexts gone",)]
        assert instance.gone.is_set() and [each() for each in f.contexts] == [None]
        assert low.trace == [("pre",)]
        under_way.wait()
        assert under_way.run() and under_way.error == 0  # nothing that the drained post did has reached it
        assert low.trace == [("pre",), ("post", 0, 0)]
        assert f.trace[-1] == ("contexts gone",)
        assert error_of(core, RELEASE, fh=fh) == 0
        assert core.stack.drained()

    test(bench)


def test_a_dismount_waits_for_what_was_drained(bench: Bench, at_once: None) -> None:
    """The instance is gone, the operation still uses the base."""

    @on_trio
    async def test(bench: Bench) -> None:
        volume, f, _ = await two_filters(bench)
        core = volume.core
        fh = opened(core, lookup(core, b"file"), os.O_RDWR)
        under_way = core.request(FSYNC, fh=fh, nowait=True)
        assert not under_way.run()
        async with trio.open_nursery() as nursery:
            done = await started(nursery, bench.manager.remove_volume, volume)
            while f.trace[-1] != ("contexts gone",):
                await trio.sleep(0.001)
            await trio.sleep(0.02)
            assert ("post", 1, CLEANUP) in f.trace and not done.is_set()
            under_way.wait()
            assert under_way.run() and under_way.error == 0
        assert done.is_set()

    test(bench)


def test_what_ends_by_itself_is_not_drained(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "DRAIN_AFTER", 60)

    @on_trio
    async def test(bench: Bench) -> None:
        volume, f, _ = await two_filters(bench)
        core = volume.core
        fh = opened(core, lookup(core, b"file"), os.O_RDWR)
        under_way = core.request(FSYNC, fh=fh, nowait=True)
        assert not under_way.run()
        async with trio.open_nursery() as nursery:
            done = await started(nursery, bench.manager.detach, "f", volume)
            assert f.trace[-1] == ("start",) and not done.is_set()
            under_way.wait()
            assert under_way.run() and under_way.error == 0
        assert f.trace[-3:] == [("post", 0, 0), ("complete",), ("contexts gone",)]
        core.request(RELEASE, fh=fh).do()

    test(bench)


def test_drained_while_a_filter_below_holds_it(bench: Bench, at_once: None) -> None:
    """The filter below waits in its pre; above, the instance is gone before it goes on."""

    @on_trio
    async def test(bench: Bench) -> None:
        volume, f, low = await two_filters(bench)
        low.wait_in = "pre"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, flush, volume)
            await in_thread(low.inside.wait)
            await bench.manager.detach("f", volume)
            assert f.trace == [("pre",), ("query",), ("start",), ("post", 1, CLEANUP), ("complete",),
                               ("contexts gone",)]  # fmt: skip
            low.go.set()
        assert low.trace == [("pre",), ("post", 0, 0)] and len(f.trace) == 6

    test(bench)


def test_passed_by_while_a_filter_above_holds_it(bench: Bench, at_once: None) -> None:
    """A3.12: an operation that has not come to the instance does not hold it, and never comes to it."""

    @on_trio
    async def test(bench: Bench) -> None:
        volume, f, low = await two_filters(bench)
        f.wait_in = "pre"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, flush, volume)
            await in_thread(f.inside.wait)
            await bench.manager.unload("low")
            assert low.trace == [("start",), ("complete",), ("contexts gone",)]
            f.go.set()
        assert f.trace == [("pre",), ("post", 0, 0)] and len(low.trace) == 3

    test(bench)


@pytest.mark.parametrize("where", ["pre", "post"])
def test_a_callback_of_its_own_is_waited_for(bench: Bench, at_once: None, where: str) -> None:
    """A3.11."""

    @on_trio
    async def test(bench: Bench) -> None:
        volume, f, _ = await two_filters(bench)
        f.wait_in = where
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, flush, volume)
            await in_thread(f.inside.wait)
            done = await started(nursery, bench.manager.detach, "f", volume)
            assert f.trace[-1] == ("start",) and not done.is_set()
            f.go.set()
        assert f.trace[-2:] == [("complete",), ("contexts gone",)]
        assert [each for each in f.trace if each[0] == "post"] in ([("post", 0, 0)], [("post", 1, CLEANUP)])

    test(bench)


def test_changed_parameters_are_waited_for(bench: Bench, at_once: None) -> None:
    """A3.11: it gets its post with what it received, when the operation has come up."""

    @on_trio
    async def test(bench: Bench) -> None:
        volume, f, low = await two_filters(bench)
        f.answer, low.wait_in = "changes", "pre"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, flush, volume)
            await in_thread(low.inside.wait)
            done = await started(nursery, bench.manager.detach, "f", volume)
            assert f.trace[-1] == ("start",) and not done.is_set()
            low.go.set()
        assert f.trace[-3:] == [("post", 0, 0), ("complete",), ("contexts gone",)]

    test(bench)


def test_no_post_owed_is_not_waited_for(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        volume, f, low = await two_filters(bench)
        f.answer, low.wait_in = api.FLT_PREOP_SUCCESS_NO_CALLBACK, "pre"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, flush, volume)
            await in_thread(low.inside.wait)
            await bench.manager.detach("f", volume)
            assert f.trace == [("pre",), ("query",), ("start",), ("complete",), ("contexts gone",)]
            low.go.set()

    test(bench)


def test_two_that_leave_the_same_operation(bench: Bench, at_once: None) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        volume, f, low = await two_filters(bench)
        core = volume.core
        fh = opened(core, lookup(core, b"file"), os.O_RDWR)
        many = [core.request(FSYNC, fh=fh, nowait=True) for _ in range(20)]
        assert not any(each.run() for each in many)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.manager.unload, "f")
            nursery.start_soon(bench.manager.detach, "low", volume)
        for each in (f, low):
            assert each.trace.count(("post", 1, CLEANUP)) == 20
            assert [context() for context in each.contexts] == [None] * 20
        for one in many:
            one.wait()
            assert one.run() and one.error == 0
        assert f.trace[-1] == low.trace[-1] == ("contexts gone",)
        core.request(RELEASE, fh=fh).do()

    test(bench)


@pytest.mark.verifier_errors("of what is drained", "no status of a post")
def test_a_drained_post_that_errs(bench: Bench, at_once: None) -> None:
    """What it raises or answers is counted against the instance, and harms neither the operation nor the teardown."""

    @on_trio
    async def test(bench: Bench) -> None:
        for does in ("1 / 0", "return FLT_POSTOP_MORE_PROCESSING_REQUIRED", "return 77"):
            bench.drop(DRAINS.replace('        assert isinstance(context, Context)\n', f"        {does}\n"))
            volume = bench.volume(f"v{len(does)}")
            await bench.manager.load("f")
            core, entry = volume.core, volume.instances[0].entry
            fh = opened(core, lookup(core, b"file"), os.O_RDWR)
            under_way = core.request(FSYNC, fh=fh, nowait=True)
            assert not under_way.run()
            await bench.manager.unload("f")
            assert entry.errors == 1
            under_way.wait()
            assert under_way.run() and under_way.error == 0
            core.request(RELEASE, fh=fh).do()
            await bench.manager.remove_volume(volume)

    test(bench)


BUSY = '''
class Dropped(Filter):
    """Every post is called exactly once, drained or not, and none behind teardown-complete."""

    operations = tuple(Operation(major, pre="pre", post="post")
                       for major in (IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_CLEANUP, IRP_MJ_CLOSE))

    def __init__(self, options):
        super().__init__(options)
        self.wrong, self.drained, self.begun = [], 0, 0

    def instance_setup(self, instance, flags):
        instance.context = set()
        return STATUS_SUCCESS

    def instance_teardown_complete(self, instance, reason):
        if instance.context:
            self.wrong.append("a post is still owed")
        instance.context = None

    def pre(self, data, objects):
        self.begun += 1
        token = object()
        if objects.context is None:
            self.wrong.append("a pre after teardown-complete")
        else:
            objects.context.add(token)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, token

    def post(self, data, objects, context, flags):
        self.drained += flags
        if objects.context is None or context not in objects.context:
            self.wrong.append("a post twice, or after teardown-complete")
        else:
            objects.context.discard(context)
'''


def test_draining_under_load(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads read while two filters come and go, drained at once: every post once, and no operation lost."""
    monkeypatch.setattr(teardown, "DRAIN_AFTER", 0.0)
    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(BUSY)
        bench.drop(BUSY, name="low", altitude="360500")
        volume = bench.volume()
        core = volume.core
        await bench.manager.load("f")
        await bench.manager.load("low")
        filters = [bench.manager.filter(name).object for name in ("f", "low")]
        end, wrong = threading.Event(), []
        node = lookup(core, b"file")

        def work() -> None:
            while not end.is_set():
                fh = opened(core, node)
                if read(core, fh) != b"0123456789" or error_of(core, RELEASE, fh=fh):
                    wrong.append("lost")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(100):
                name = ("f", "low")[turn % 2]
                await bench.manager.detach(name, volume)
                await bench.manager.attach(name, volume)
        finally:
            end.set()
            await in_thread(lambda: [thread.join() for thread in threads])
        assert not wrong and core.open_files == 0
        for each in filters:
            assert each.wrong == [] and each.begun > 0  # type: ignore[attr-defined]

    test(bench)
