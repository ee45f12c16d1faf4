"""The Filter Manager (docs/semantics.md A1 to A3), without a mount: loading, attaching, and how an instance goes."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import weakref
from collections.abc import Awaitable, Callable

import pytest
import trio
from filter_bench import PLAIN, TRACES, Bench, on_trio, refused
from stack_driver import FSYNC, RELEASE, error_of, lookup, opened, read

from stackfs import api, listings, teardown
from stackfs.api import (
    STATUS_ACCESS_DENIED,
    STATUS_FAILED_DRIVER_ENTRY,
    STATUS_FLT_DO_NOT_ATTACH,
    STATUS_FLT_DO_NOT_DETACH,
    STATUS_FLT_FILTER_NOT_FOUND,
    STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
    STATUS_FLT_INSTANCE_NAME_COLLISION,
    STATUS_FLT_INSTANCE_NOT_FOUND,
    STATUS_FLT_VOLUME_NOT_FOUND,
    STATUS_IMAGE_ALREADY_LOADED,
    STATUS_INVALID_PARAMETER,
    STATUS_UNSUCCESSFUL,
)
from stackfs.cext.stack import ERROR_LIMIT
from stackfs.errors import FltError, StackfsError
from stackfs.manager import Volume
from stackfs.options import InstanceSpec

# ---- how an instance goes -------------------------------------------------------------------------------------------


async def gone(bench: Bench, volume: Volume, how: str) -> None:
    if how == "detach":
        await bench.manager.detach("f", volume)
    elif how == "unload":
        await bench.manager.unload("f")
    elif how == "stop":
        await bench.manager.unload("f", mandatory=True)
    else:
        await bench.manager.remove_volume(volume)


@pytest.mark.parametrize(
    ("how", "asked", "reason"),
    [
        ("detach", ("query", "f"), api.FLTFL_INSTANCE_TEARDOWN_MANUAL),
        ("unload", ("unload", 0), api.FLTFL_INSTANCE_TEARDOWN_FILTER_UNLOAD),
        ("stop", ("unload", 1), api.FLTFL_INSTANCE_TEARDOWN_MANDATORY_FILTER_UNLOAD),
        ("dismount", None, api.FLTFL_INSTANCE_TEARDOWN_VOLUME_DISMOUNT),
    ],
)
def test_the_order_in_which_an_instance_goes(
    bench: Bench, how: str, asked: tuple[object, ...] | None, reason: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3.9, with an operation under way: asked, out of the lists, start, the operation ends, complete, gone."""
    monkeypatch.setattr(teardown, "DRAIN_AFTER", 60)

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(TRACES)
        volume = bench.volume()
        await bench.manager.load("f")
        core, trace = volume.core, bench.trace()
        assert trace == [("setup", "f", api.FLTFL_INSTANCE_SETUP_AUTOMATIC_ATTACHMENT)]
        context = weakref.ref(volume.instances[0])
        fh = opened(core, lookup(core, b"file"), os.O_RDWR)
        under_way = core.request(FSYNC, fh=fh, nowait=True)
        assert not under_way.run()
        trace.clear()
        done = trio.Event()

        async def go() -> None:
            await gone(bench, volume, how)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            while len(trace) < (2 if asked else 1):
                await trio.sleep(0.001)
            await trio.sleep(0.02)
            begun = [*([asked] if asked else []), ("start", "f", reason)]
            assert trace == begun and not done.is_set()
            core.request(FSYNC, fh=fh).do()  # a new one: it passes the instance by
            assert trace == begun
            under_way.wait()
            assert under_way.run() and under_way.error == 0
            if how != "dismount":
                assert error_of(core, RELEASE, fh=fh) == 0
            await done.wait()
        assert trace == [*begun, ("post", "f"), ("complete", "f", reason)]
        assert volume.instances == []
        del under_way
        gc.collect()
        assert context() is None
        assert ("f" in bench.manager.loaded) == (how in ("detach", "dismount"))

    test(bench)


def test_the_context_is_let_go_with_the_instance(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(TRACES)
        volume = bench.volume()
        (instance,) = await bench.manager.load("f")
        await bench.manager.detach("f", volume)
        assert instance.context is None

    test(bench)


@pytest.mark.parametrize(
    "does", ["raise SystemExit", "raise ValueError", "raise StackfsError('no')", "return 'text'", "return 0xC0000001"]
)
def test_teardown_cannot_be_refused(bench: Bench, does: str) -> None:
    """Whatever the notifications do: the instance goes, the filter goes, and may be loaded again."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(
            f"class Dropped(Filter):\n    def instance_teardown_start(self, instance, reason): {does}\n"
            f"    def instance_teardown_complete(self, instance, reason): {does}\n"
            f"    def filter_unload(self, flags): {does}\n"
        )
        volume = bench.volume()
        await bench.manager.load("f")
        await bench.manager.detach("f", volume)
        assert volume.instances == [] and bench.manager.filter("f").instances == []
        await bench.manager.attach("f", volume)
        await bench.manager.unload("f", mandatory=True)
        assert volume.instances == [] and not bench.manager.loaded
        await bench.manager.load("f")
        assert len(volume.instances) == 1

    test(bench)


def test_a_pass_filter_that_errs_too_often_is_torn_down(bench: Bench) -> None:
    """A6.13: with the reason INTERNAL_ERROR; the filter stays loaded, its other instances attached."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(TRACES.replace('self.tell("pre", objects.name)', "1 / 0"), fields='"on_error": "pass"')
        one, two = bench.volume("one"), bench.volume("two")
        await bench.manager.load("f")
        core = one.core
        fh = opened(core, lookup(core, b"file"), os.O_RDWR)
        for _ in range(ERROR_LIMIT):
            assert one.instances
            core.request(FSYNC, fh=fh).do()
        with trio.fail_after(5):
            while one.instances or one.unsettled:
                await trio.sleep(0.001)
        reason = api.FLTFL_INSTANCE_TEARDOWN_INTERNAL_ERROR
        assert bench.trace()[-2:] == [("start", "f", reason), ("complete", "f", reason)]
        assert len(two.instances) == 1 and not two.instances[0].failed
        assert [row["volume"] for row in listings.instances(bench.manager)] == ["two"]

    test(bench)


# ---- who is asked ---------------------------------------------------------------------------------------------------


def test_defaults_agree(bench: Bench) -> None:
    """A filter written on stackfs/api.py: set up, detached and unloaded without a word (A2.10, A3.6)."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(PLAIN % "pass")
        volume = bench.volume()
        assert [each.name for each in await bench.manager.load("f")] == ["f"]
        await bench.manager.detach("f", volume)
        await bench.manager.attach("f", volume)
        await bench.manager.unload("f")
        assert volume.instances == [] and not bench.manager.loaded

    test(bench)


def test_without_the_callbacks(bench: Bench) -> None:
    """None instead of a callback: never unloaded, never detached by hand, always attached (A2.8, A3.2, A3.6, F4)."""

    @on_trio
    async def test(bench: Bench) -> None:
        names = ("filter_unload", "instance_setup", "instance_query_teardown", "instance_teardown_start",
                 "instance_teardown_complete")  # fmt: skip
        bench.drop(PLAIN % "\n    ".join(f"{name} = None" for name in names))
        volume = bench.volume()
        assert len(await bench.manager.load("f")) == 1
        async with refused(STATUS_FLT_DO_NOT_DETACH, "refuses to be detached"):
            await bench.manager.detach("f", volume)
        for mandatory in (False, True):
            async with refused(STATUS_FLT_DO_NOT_DETACH, "no unload callback"):
                await bench.manager.unload("f", mandatory)
        assert len(volume.instances) == 1
        await bench.manager.remove_volume(volume)  # a dismount does not ask
        assert not bench.manager.filter("f").instances

    test(bench)


@pytest.mark.parametrize(
    ("does", "status"),
    [
        ("return STATUS_FLT_DO_NOT_DETACH", STATUS_FLT_DO_NOT_DETACH),
        ("return STATUS_ACCESS_DENIED", STATUS_ACCESS_DENIED),
        ("raise ValueError", STATUS_UNSUCCESSFUL),
        ("raise SystemExit", STATUS_UNSUCCESSFUL),
        ("return 'text'", STATUS_UNSUCCESSFUL),
    ],
)
def test_a_refusal(bench: Bench, does: str, status: int) -> None:
    """What is asked may refuse, with its own status; a mandatory unload goes on, and nothing is half done."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(
            f"class Dropped(Filter):\n    def instance_query_teardown(self, instance, flags): {does}\n"
            f"    def filter_unload(self, flags): {does}\n"
        )
        volume = bench.volume()
        await bench.manager.load("f")
        async with refused(status):
            await bench.manager.detach("f", volume)
        async with refused(status):
            await bench.manager.unload("f")
        assert len(volume.instances) == 1 and volume.core.stack.entries
        await bench.manager.unload("f", mandatory=True)
        assert not volume.instances and not volume.core.stack.entries

    test(bench)


@pytest.mark.parametrize(
    ("does", "status"),
    [
        ("return STATUS_FLT_DO_NOT_ATTACH", STATUS_FLT_DO_NOT_ATTACH),
        ("return STATUS_ACCESS_DENIED", STATUS_ACCESS_DENIED),
        ("return 0x80000005", 0x80000005),  # a warning
        ("raise SystemExit", STATUS_UNSUCCESSFUL),
        ("raise StackfsError('not here')", None),
    ],
)
def test_an_instance_that_does_not_set_up(bench: Bench, does: str, status: int | None) -> None:
    """A3.2: a load goes on without it; an attach that asked for it fails with its status, or in the filter's words."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(f"class Dropped(Filter):\n    def instance_setup(self, instance, flags): {does}\n")
        volume = bench.volume()
        assert await bench.manager.load("f") == []
        if status is None:
            with pytest.raises(StackfsError, match="not here"):
                await bench.manager.attach("f", volume)
        else:
            async with refused(status, "does not attach"):
                await bench.manager.attach("f", volume)
        assert volume.instances == [] and volume.core.stack.entries == []
        await bench.manager.unload("f")

    test(bench)


# ---- loading, attaching, and what is wrong with it ------------------------------------------------------------------


def test_loading(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        manager = bench.manager
        async with refused(0xC0000034, "nosuch"):
            await manager.load("nosuch")
        bench.drop(PLAIN % "operations = (Operation(IRP_MJ_POWER, pre='pre'),)")
        async with refused(0xC000007B, "IRP_MJ_POWER cannot be registered"):
            await manager.load("f")
        for error in ("ValueError('no')", "SystemExit"):
            bench.drop(PLAIN % f"def __init__(self, options): raise {error}")
            async with refused(STATUS_FAILED_DRIVER_ENTRY, error.split("(")[0]):
                await manager.load("f")
            assert not manager.loaded
        bench.drop(PLAIN % "pass", fields='"start": "disabled"')
        async with refused(0xC0000001, "disabled"):
            await manager.load("f")
        bench.drop(PLAIN % "pass")
        await manager.load("f")
        async with refused(STATUS_IMAGE_ALREADY_LOADED, "loaded already"):
            await manager.load("f")
        async with refused(STATUS_FLT_FILTER_NOT_FOUND, "not loaded"):
            await manager.unload("other")
        await manager.unload("f")
        await manager.load("f")

    test(bench)


def test_attaching(bench: Bench) -> None:
    """A3.4 and A3.7; names and altitudes are unique on a volume, whichever filters have them, and free on another."""

    @on_trio
    async def test(bench: Bench) -> None:
        manager = bench.manager
        one, two = bench.volume("one"), bench.volume("two")
        further = '"instances": [{"name": "top", "altitude": "385000.5", "attach": "manual"}], "attach": "manual"'
        bench.drop(PLAIN % "pass", fields=further)
        bench.drop(PLAIN % "pass", name="g", altitude="370501", fields='"attach": "manual"')
        assert await manager.load("f") == await manager.load("g") == []
        with pytest.raises(FltError) as caught:
            manager.volume("three")
        assert caught.value.status == STATUS_FLT_VOLUME_NOT_FOUND
        async with refused(STATUS_FLT_FILTER_NOT_FOUND):
            await manager.attach("h", one)
        assert (await manager.attach("f", one)).altitude == "370500"
        assert (await manager.attach("f", one, "top")).altitude == "385000.5"
        async with refused(STATUS_FLT_INSTANCE_NAME_COLLISION, "'f'"):
            await manager.attach("f", one)
        async with refused(STATUS_FLT_INSTANCE_NAME_COLLISION, "'top'"):
            await manager.attach("g", one, "top")
        for same in ("385000.5", "0385000.50", "385000.500000000000000000000000000000"):
            async with refused(STATUS_FLT_INSTANCE_ALTITUDE_COLLISION, "taken on volume 'one' by 'top'"):
                await manager.attach("g", one, "other", same)
        near = "385000.500000000000000000000000000001"
        assert (await manager.attach("g", one, altitude=near)).name == f"g - {near}"
        async with refused(STATUS_INVALID_PARAMETER, "outside 360000-389999"):
            await manager.attach("g", one, altitude="320000")
        async with refused(STATUS_INVALID_PARAMETER, "is not an altitude"):
            await manager.attach("g", one, altitude="high")
        assert (await manager.attach("g", two, "top", "385000.5")).volume is two
        names = [f"g - {near}", "top", "f"]
        assert [each.name for each in one.instances] == names
        assert [each.name.decode() for each in one.core.stack.entries] == names

    test(bench)


def test_an_altitude_outside_its_group_with_a_reason(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(PLAIN % "pass", altitude="1", fields='"altitude_reason": "below all others"')
        volume = bench.volume()
        await bench.manager.load("f")
        assert (await bench.manager.attach("f", volume, altitude="999999")).altitude == "999999"

    test(bench)


def test_detaching(bench: Bench) -> None:
    """Without a name: the filter's highest instance on that volume."""

    @on_trio
    async def test(bench: Bench) -> None:
        manager = bench.manager
        volume, empty = bench.volume("v"), bench.volume("empty")
        bench.drop(PLAIN % "pass")
        bench.drop(PLAIN % "pass", name="g", altitude="385500")
        await manager.load("f")
        await manager.load("g")
        await manager.attach("f", volume, "low", "360001")
        await manager.attach("f", volume, "high", "385000")
        for name in ("high", "f", "low"):
            assert (await manager.detach("f", volume)).name == name
        async with refused(STATUS_FLT_INSTANCE_NOT_FOUND):
            await manager.detach("f", volume)
        async with refused(STATUS_FLT_INSTANCE_NOT_FOUND):
            await manager.detach("f", volume, "g")  # another filter's
        assert [each.name for each in volume.instances] == ["g"]
        assert len(empty.instances) == 2

    test(bench)


def test_time_outs_follow_what_is_attached(bench: Bench) -> None:
    """D10: zero while something that sees lookups does not declare its answers cacheable."""

    @on_trio
    async def test(bench: Bench) -> None:
        body = PLAIN % "operations = (Operation(IRP_MJ_QUERY_OPEN, pre='pre'),)\n    def pre(self, *_): return 1"
        bench.drop(body)
        bench.drop(body, name="g", altitude="370501", fields='"answers": "cacheable"')
        volume = bench.volume()
        await bench.manager.load("g")
        assert not volume.core.stack.names_or_data_filtered
        await bench.manager.load("f")
        assert volume.core.stack.names_or_data_filtered
        await bench.manager.unload("f")
        assert not volume.core.stack.names_or_data_filtered

    test(bench)


BY_OPTION = '''
class Dropped(Filter):
    """Which operation an instance sees is an option."""

    operations = (Operation(IRP_MJ_CLEANUP, pre="pre"),)

    def operations_for(self, options):
        if options["major"] == 5:
            raise StackfsError("5 is never seen")
        return (Operation(options["major"], pre="pre"),) if options["major"] else self.operations, None

    def pre(self, data, objects):
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


def test_an_instance_registers_what_its_options_say(bench: Bench) -> None:
    """A2.6: each instance of a filter for itself; one whose options do not do is not attached, and nothing changes."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(BY_OPTION, fields='"options": {"major": {"type": "int", "default": 3, "doc": "What it sees."}}')
        volume = bench.volume()

        async def attach(number: int, major: int) -> None:
            spec = InstanceSpec("f", f"i{number}", f"37050{number}", {"major": major})
            await bench.manager.attach_configured(volume, [spec], 0)

        await attach(1, api.IRP_MJ_WRITE)
        await attach(2, api.IRP_MJ_FLUSH_BUFFERS)
        await attach(3, 0)
        registered = {each.name: each.entry.registered for each in volume.instances}
        assert registered == {"i1": [api.IRP_MJ_WRITE], "i2": [api.IRP_MJ_FLUSH_BUFFERS], "i3": [api.IRP_MJ_CLEANUP]}
        assert {each.name for each in volume.instances if each.blocks_bypass} == {"i1"}
        with pytest.raises(StackfsError, match="5 is never seen"):
            await attach(4, 5)
        async with refused(STATUS_INVALID_PARAMETER, "cannot be registered"):
            await attach(4, api.IRP_MJ_POWER)
        assert len(volume.instances) == 3
        await bench.manager.detach("f", volume, "i1")
        assert not volume.core.stack.registered(api.IRP_MJ_WRITE)

    test(bench)


def test_dirty_pages_are_written_before_and_forgotten_after(bench: Bench) -> None:
    """D9: an instance on data comes and goes in this order; one that sees none of it moves no page."""

    @on_trio
    async def test(bench: Bench) -> None:
        body = PLAIN % "operations = (Operation(IRP_MJ_{}, pre='pre'),)\n    def pre(self, *_): return 1"
        bench.drop(body.format("WRITE"))
        bench.drop(body.format("FLUSH_BUFFERS"), name="g", altitude="370501")
        volume = bench.volume()
        steps: list[tuple[str, bool]] = []

        def step(name: str) -> Callable[[], Awaitable[None]]:
            async def take() -> None:
                steps.append((name, volume.core.stack.registered(api.IRP_MJ_WRITE)))

            return take

        volume.write_back, volume.invalidate = step("written"), step("forgotten")
        await bench.manager.load("f")
        await bench.manager.load("g")
        assert steps == [("written", False), ("forgotten", True)]
        await bench.manager.detach("f", volume)
        await bench.manager.unload("g")
        assert steps[2:] == [("written", True), ("forgotten", False)]

    test(bench)


# ---- under load -----------------------------------------------------------------------------------------------------

BUSY = '''
class Dropped(Filter):
    """Counts what it begins and what it ends."""

    operations = tuple(Operation(major, pre="pre", post="post")
                       for major in (IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_CLEANUP, IRP_MJ_CLOSE))

    def __init__(self, options):
        super().__init__(options)
        self.begun = []
        self.wrong = []

    def instance_setup(self, instance, flags):
        instance.context = [0, False]
        return STATUS_SUCCESS

    def instance_teardown_complete(self, instance, reason):
        self.begun.append(instance.context[0])
        instance.context[1] = True

    def pre(self, data, objects):
        context = objects.context
        if context is None or context[1]:
            self.wrong.append("a callback after teardown-complete")
        else:
            context[0] += 1
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, context

    def post(self, data, objects, context, flags):
        if context is None or context is not objects.context or context[1]:
            self.wrong.append("a post after teardown-complete")
'''


@pytest.mark.long
def test_attaching_and_detaching_a_thousand_times_while_operations_run(bench: Bench) -> None:
    """No operation is lost or fails, and none meets an instance that has been torn down."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(BUSY)
        bench.drop(BUSY, name="g", altitude="370501")
        volume = bench.volume()
        core = volume.core
        await bench.manager.load("f")
        await bench.manager.load("g")
        objects = [bench.manager.filter(name).object for name in ("f", "g")]
        end, wrong, done = threading.Event(), [], [0, 0, 0]
        node = lookup(core, b"file")

        def work(who: int) -> None:
            while not end.is_set():
                fh = opened(core, node)
                if read(core, fh) != b"0123456789" or error_of(core, RELEASE, fh=fh):
                    wrong.append("lost")
                done[who] += 1

        threads = [threading.Thread(target=work, args=(who,)) for who in range(3)]
        for thread in threads:
            thread.start()
        try:
            for turn in itertools.count():
                if turn >= 1000 and turn % 2 == 0 and min(done) > 10:
                    break
                name = "fg"[turn % 2]
                await bench.manager.detach(name, volume)
                await bench.manager.attach(name, volume)
        finally:
            end.set()
            for thread in threads:
                thread.join()
        assert not wrong
        for each in objects:
            assert each.wrong == [] and len(each.begun) >= 500  # type: ignore[attr-defined]
        assert sum(sum(each.begun) for each in objects) > 0  # type: ignore[attr-defined]
        assert core.open_files == 0 and core.stack.drained()

    test(bench)
