"""Frames and legacy filters (docs/semantics.md A1.8, A1.11): where they come to lie, what they see, what is shown."""

from __future__ import annotations

import os
from typing import Any

import pytest
from filter_bench import Bench, on_trio, refused
from stack_driver import FSYNC, RELEASE, lookup, opened

from stackfs import listings
from stackfs.api import (
    STATUS_FLT_FILTER_NOT_FOUND,
    STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
    STATUS_INVALID_PARAMETER,
)
from stackfs.cli import tables
from stackfs.control import FilterRow, InstanceRow
from stackfs.ddi.filters import FltEnumerateFilters
from stackfs.ddi.instances import FltEnumerateInstances, FltGetBottomInstance
from stackfs.ddi.out import Out
from stackfs.frames import BetweenLegacyFilters, DeviceStack, Frame, Legacy, just_above

# ---- the layers -----------------------------------------------------------------------------------------------------


def test_without_a_legacy_filter_there_is_frame_0() -> None:
    stack = DeviceStack()
    assert [stack.frame_of(altitude).number for altitude in ("1", "429999.9", "370000")] == [0, 0, 0]
    assert stack.layers == [Frame(0)]


def test_a_legacy_filter_ends_the_frame_below() -> None:
    stack = DeviceStack()
    legacy = stack.add_legacy("old", "0328000.0", "260000")
    assert stack.frame_of("328000").number == stack.frame_of("1").number == 0
    assert stack.frame_of("328000.1").number == stack.frame_of("409999").number == 1
    assert stack.layers == [Frame(0, "328000"), Legacy("old", legacy.place), Frame(1)]


def test_it_lies_above_what_was_there_before() -> None:
    stack = DeviceStack()
    stack.add_legacy("old", "328000", "385000.5")
    assert [stack.frame_of(altitude).number for altitude in ("328001", "385000.5", "385000.6")] == [0, 0, 1]


def test_frames_and_legacy_filters_in_turn() -> None:
    stack = DeviceStack()
    stack.add_legacy("one", "200000", None)
    stack.frame_of("300000")
    stack.add_legacy("two", "250000", "300000")
    stack.frame_of("400000")
    numbers = [stack.frame_of(altitude).number for altitude in ("1", "200001", "300000", "300001", "429999")]
    assert numbers == [0, 1, 1, 2, 2]
    assert [type(layer).__name__ for layer in stack.layers] == ["Frame", "Legacy", "Frame", "Legacy", "Frame"]


def test_nothing_attaches_between_two_legacy_filters() -> None:
    stack = DeviceStack()
    one = stack.add_legacy("one", "200000", None)
    two = stack.add_legacy("two", "300000", None)
    for altitude in (one.place, two.place):
        with pytest.raises(BetweenLegacyFilters, match="'one' and 'two'"):
            stack.frame_of(altitude)
    assert stack.frame_of("200001").number == stack.frame_of("300001").number == 1
    assert stack.frame_of("200000").number == 0
    assert just_above("1.50") == "1.5" + "0" * 40 + "1"


# ---- in a volume ----------------------------------------------------------------------------------------------------

HEAD = "import builtins\nseen = vars(builtins).setdefault('stackfs_seen', [])\n"
LEGACY = HEAD + '''
class Dropped(LegacyFilter):
    def dispatch(self, data, instance):
        seen.append(("down", instance.name, data.major))
        return data.complete(STATUS_ACCESS_DENIED)

    def completed(self, data, instance):
        seen.append(("up", instance.name, data.major))
        return 77
'''
MINI = HEAD + '''
class Dropped(Filter):
    operations = (Operation(IRP_MJ_FLUSH_BUFFERS, pre="pre", post="post"),)

    def pre(self, data, objects):
        seen.append(("pre", objects.name))
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(self, data, objects, context, flags):
        seen.append(("post", objects.name))
'''
FLUSH = 9


def flushed(volume: Any) -> list[Any]:
    """What filters saw of one FLUSH_BUFFERS."""
    import builtins

    core = volume.core
    seen: list[Any] = vars(builtins)["stackfs_seen"]
    fh = opened(core, lookup(core, b"file"), os.O_RDWR)
    seen.clear()
    core.request(FSYNC, fh=fh).do()
    found = [each[:2] for each in seen if len(each) == 2 or each[2] == FLUSH]
    core.request(RELEASE, fh=fh).do()
    return found


@pytest.fixture(autouse=True)
def forget_what_was_seen() -> Any:
    import builtins

    yield
    vars(builtins).pop("stackfs_seen", None)


def test_a_legacy_filter_between_two_frames(bench: Bench) -> None:
    """It sees every operation and passes each on; those above lie in frame 1, later ones below in frame 0."""

    @on_trio
    async def test(bench: Bench) -> None:
        manager = bench.manager
        for name, altitude in (("low", "361000"), ("mid", "370000"), ("high", "385000")):
            bench.drop(MINI, name=name, altitude=altitude)
        bench.drop(LEGACY, name="old", altitude="375000")
        volume = bench.volume()
        await manager.load("mid")
        await manager.load("old")
        await manager.load("high")
        await manager.load("low")
        down = [("pre", "high"), ("down", "old"), ("pre", "mid"), ("pre", "low")]
        up = [("post", "low"), ("post", "mid"), ("up", "old"), ("post", "high")]
        assert flushed(volume) == down + up
        rows = listings.filters(manager)
        assert [(row["name"], row["frame"]) for row in rows] == [
            ("high", 1), ("old", "<Legacy>"), ("mid", 0), ("low", 0)]  # fmt: skip
        rows = listings.instances(manager)
        assert [(row["name"], row["frame"]) for row in rows] == [("high", 1), ("mid", 0), ("low", 0)]
        for _ in range(2):
            await manager.unload("high")
            await manager.load("high")
        await manager.attach("low", volume, altitude="375000.5")
        async with refused(STATUS_FLT_INSTANCE_ALTITUDE_COLLISION):
            await manager.attach("low", volume, "other", "375000.5")
        rows = listings.instances(manager)
        assert [(row["altitude"], row["frame"]) for row in rows][:2] == [("385000", 1), ("375000.5", 1)]
        assert flushed(volume)[:3] == [("pre", "high"), ("pre", "low - 375000.5"), ("down", "old")]

    test(bench)


def test_the_manager_does_not_manage_it(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        manager = bench.manager
        bench.drop(LEGACY, name="old", altitude="375000")
        bench.drop(MINI, name="mini", altitude="361000")
        volume = bench.volume()
        await manager.load("mini")
        await manager.load("old")
        for what in (manager.unload("old"), manager.unload("old", True), manager.detach("old", volume),
                     manager.attach("old", volume)):  # fmt: skip
            async with refused(STATUS_FLT_FILTER_NOT_FOUND, "legacy filter"):
                await what
        count, found = Out[int](), Out[Any]()
        filters: list[Any] = []
        instances: list[Any] = []
        assert FltEnumerateFilters(filters, 9, count) == FltEnumerateInstances(volume, None, instances, 9, count) == 0
        assert [each.name for each in (*filters, *instances)] == ["mini", "mini"]
        assert FltGetBottomInstance(volume, found) == 0 and found.value.name == "mini"
        for each in (*filters, *instances, found.value):
            each.rundown.release_one("Flt")
        assert ("down", "old") in flushed(volume)
        other = bench.volume("w")
        assert other.legacies == []
        await manager.remove_volume(volume)
        assert volume.legacies == [] and volume.core.stack.entries == []

    test(bench)


def test_between_two_legacy_filters(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        manager = bench.manager
        for name, altitude in (("one", "365000"), ("two", "375000")):
            bench.drop(LEGACY, name=name, altitude=altitude)
        bench.drop(MINI, name="mini", altitude="370000")
        volume = bench.volume()
        await manager.load("one")
        await manager.load("two")
        await manager.load("mini")  # there is no frame between the two: it lies above both
        assert flushed(volume)[:3] == [("pre", "mini"), ("down", "two"), ("down", "one")]
        place = manager.loaded["two"].legacy.place  # type: ignore[union-attr]
        async with refused(STATUS_INVALID_PARAMETER, "between the legacy filters 'one' and 'two'"):
            await manager.attach("mini", volume, "between", place[:-1] + "05")

    test(bench)


def test_at_mount(bench: Bench) -> None:
    """A mount that names a legacy filter loads it by its start type, as any other; its place follows from that."""

    @on_trio
    async def test(bench: Bench) -> None:
        from stackfs.options import InstanceSpec

        bench.drop(LEGACY, name="old", altitude="365000", fields='"start": "boot"')
        bench.drop(MINI, name="mini", altitude="370000")
        volume = bench.volume()
        specs = [InstanceSpec("mini", "mini", "370000"), InstanceSpec("old", "old", "365000")]
        await bench.manager.attach_configured(volume, specs, 5)
        assert flushed(volume)[:2] == [("pre", "mini"), ("down", "old")]
        assert [row["frame"] for row in listings.filters(bench.manager)] == [1, "<Legacy>"]

    test(bench)


def test_how_fltmc_shows_them() -> None:
    rows = [FilterRow("high", 1, "385000", 1), FilterRow("old", 1, "375000", "<Legacy>")]
    assert tables.filters(rows).splitlines()[2:] == [
        "high                                    1       385000         1",
        "old                                             375000      <Legacy>",
    ]
    line = tables.instances([InstanceRow("high", "/mnt", "385000", "top", 1)]).splitlines()[2]
    assert line.split()[:5] == ["high", "/mnt", "385000", "top", "1"]
