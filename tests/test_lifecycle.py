"""The life of filters and instances (docs/semantics.md A2, A3), through the DDI's own routines and the manager's."""

from __future__ import annotations

import os
import threading
import types
from typing import Any

import pytest
import trio
from conftest import STACKFS, run
from filter_bench import PLAIN, TRACES, Bench, on_trio, refused
from stack_driver import FSYNC, RELEASE, error_of, lookup, opened

from stackfs import api, daemon, listings, manager, teardown
from stackfs.api import (
    STATUS_DRIVER_FAILED_PRIOR_UNLOAD,
    STATUS_FAILED_DRIVER_ENTRY,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_DO_NOT_ATTACH,
    STATUS_FLT_DO_NOT_DETACH,
    STATUS_FLT_DUPLICATE_ENTRY,
    STATUS_FLT_FILTER_NOT_FOUND,
    STATUS_FLT_FILTER_NOT_READY,
    STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
    STATUS_FLT_INSTANCE_NAME_COLLISION,
    STATUS_FLT_INSTANCE_NOT_FOUND,
    STATUS_FLT_INVALID_CONTEXT_REGISTRATION,
    STATUS_FLT_NOT_INITIALIZED,
    STATUS_FLT_VOLUME_NOT_FOUND,
    STATUS_IMAGE_ALREADY_LOADED,
    STATUS_INVALID_PARAMETER,
    STATUS_NO_MORE_ENTRIES,
    STATUS_NOT_SUPPORTED,
    STATUS_POSSIBLE_DEADLOCK,
    STATUS_SUCCESS,
)
from stackfs.errors import StackfsError
from stackfs.filter_objects import FilterState
from stackfs.filterlib import INSTANCE_NAME_MAX_CHARS
from stackfs.fltkernel import (
    FltAttachVolume,
    FltAttachVolumeAtAltitude,
    FltCompareInstanceAltitudes,
    FltDetachVolume,
    FltEnumerateFilters,
    FltEnumerateInstances,
    FltEnumerateVolumes,
    FltGetBottomInstance,
    FltGetFilterFromInstance,
    FltGetFilterFromName,
    FltGetLowerInstance,
    FltGetTopInstance,
    FltGetUpperInstance,
    FltGetVolumeFromInstance,
    FltGetVolumeFromName,
    FltGetVolumeInstanceFromName,
    FltLoadFilter,
    FltObjectDereference,
    FltObjectReference,
    FltStartFiltering,
    FltUnloadFilter,
    Out,
)
from stackfs.options import InstanceSpec

STATUS_BUFFER_TOO_SMALL = 0xC0000023
STATUS_OBJECT_NAME_NOT_FOUND = 0xC0000034
STATUS_INVALID_IMAGE_FORMAT = 0xC000007B

in_thread = trio.to_thread.run_sync

DRIVER = """
trace = []
gFilter = Out()

def PreFlush(Data, FltObjects, CompletionContext):
    CompletionContext.value = FltObjects.Instance.name
    trace.append(("pre", FltObjects.Filter.name, FltObjects.Volume.name))
    return FLT_PREOP_SUCCESS_WITH_CALLBACK

def PostFlush(Data, FltObjects, CompletionContext, Flags):
    trace.append(("post", CompletionContext, Flags))
    return FLT_POSTOP_FINISHED_PROCESSING

def Unload(Flags):
    trace.append(("unload", Flags))
    FltUnregisterFilter(gFilter.value)
    trace.append(("unregistered",))
    return STATUS_SUCCESS

def Setup(FltObjects, Flags, VolumeDeviceType, VolumeFilesystemType):
    trace.append(("setup", FltObjects.Instance.name, Flags, VolumeDeviceType, VolumeFilesystemType))
    return STATUS_SUCCESS

def Query(FltObjects, Flags):
    return STATUS_SUCCESS

def Start(FltObjects, Reason):
    trace.append(("start", Reason))

def Complete(FltObjects, Reason):
    trace.append(("complete", Reason))

Registration = FLT_REGISTRATION(
    OperationRegistration=[
        FLT_OPERATION_REGISTRATION(IRP_MJ_FLUSH_BUFFERS, 0, PreFlush, PostFlush),
        FLT_OPERATION_REGISTRATION(IRP_MJ_OPERATION_END),
        FLT_OPERATION_REGISTRATION(IRP_MJ_POWER, 0, PreFlush),
    ],
    FilterUnloadCallback=Unload, InstanceSetupCallback=Setup, InstanceQueryTeardownCallback=Query,
    InstanceTeardownStartCallback=Start, InstanceTeardownCompleteCallback=Complete,
)
"""
ENTRY = """
def DriverEntry(DriverObject, RegistryPath):
    trace.append(("entry", RegistryPath))
    status = FltRegisterFilter(DriverObject, Registration, gFilter)
    if not is_success(status):
        return status
    status = FltStartFiltering(gFilter.value)
    if not is_success(status):
        FltUnregisterFilter(gFilter.value)
    return status
"""


def flush(bench: Bench, volume: Any) -> None:
    fh = opened(volume.core, lookup(volume.core, b"file"), os.O_RDWR)
    volume.core.request(FSYNC, fh=fh).do()
    assert error_of(volume.core, RELEASE, fh=fh) == 0


# ---- DriverEntry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mandatory", [False, True])
def test_a_driver_from_entry_to_unload(bench: Bench, mandatory: bool) -> None:
    """A2.13: registered, started, attached, called as the DDI says, unloaded; and again, at the same altitude."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop_driver(DRIVER + ENTRY)
        bench.drop(PLAIN % "pass", name="g", altitude="380000")
        volume = bench.volume()
        await bench.manager.load("g")
        for _ in range(2):
            (instance,) = await bench.manager.load("f")
            trace = bench.module().trace
            flush(bench, volume)
            assert [each.name for each in volume.instances] == ["g", "f"]
            loaded = bench.manager.filter("f")
            await bench.manager.unload("f", mandatory)
            reason = (
                api.FLTFL_INSTANCE_TEARDOWN_MANDATORY_FILTER_UNLOAD
                if mandatory
                else api.FLTFL_INSTANCE_TEARDOWN_FILTER_UNLOAD
            )
            assert trace == [
                ("entry", r"\Registry\Machine\System\CurrentControlSet\Services\f"),
                ("setup", "f", api.FLTFL_INSTANCE_SETUP_AUTOMATIC_ATTACHMENT, 8, 0),
                ("pre", "f", "v"),
                ("post", "f", 0),
                ("unload", int(mandatory)),
                ("start", reason),
                ("complete", reason),
                ("unregistered",),
            ]
            assert loaded.state is FilterState.GONE and instance not in volume.instances
            assert "f" not in bench.manager.loaded

    test(bench)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("    return STATUS_ACCESS_DENIED", "it returned STATUS_ACCESS_DENIED"),
        ("    1 / 0", "ZeroDivisionError"),
        ("    raise SystemExit", "SystemExit"),
        ("    return STATUS_SUCCESS", "without having registered"),
        ("    FltRegisterFilter(DriverObject, Registration, gFilter)\n    return STATUS_UNSUCCESSFUL", "UNSUCCESSFUL"),
        ("    FltRegisterFilter(DriverObject, Registration, gFilter)\n    FltStartFiltering(gFilter.value)\n"
         "    FltAttachVolume(gFilter.value, bench_volume())\n    1 / 0", "ZeroDivisionError"),
        ("    FltRegisterFilter(DriverObject, Registration, gFilter)\n    FltUnregisterFilter(gFilter.value)",
         "without having registered"),
        ("    Registration.Version = 0x0100\n    return FltRegisterFilter(DriverObject, Registration, gFilter)",
         "Version"),
        ("    Registration.GenerateFileNameCallback = PreFlush\n"
         "    return FltRegisterFilter(DriverObject, Registration, gFilter)", "a name provider needs"),
        ("    del Registration.OperationRegistration[1]\n"
         "    return FltRegisterFilter(DriverObject, Registration, gFilter)", "IRP_MJ_POWER cannot be registered"),
    ],
)  # fmt: skip
@pytest.mark.verifier_errors("^a reference on volume 'v' was not dropped")
def test_a_driver_entry_that_fails(bench: Bench, entry: str, words: str) -> None:
    """A2.13: what it did is undone, its unload callback is not called, and it may be loaded when it is mended."""

    @on_trio
    async def test(bench: Bench) -> None:
        volume = bench.volume()
        kept = "import sys\nkept = sys.__dict__.setdefault('stackfs_kept', [])\nkept[:] = [trace]\n"
        found = ("def bench_volume():\n    found = Out()\n"
                 "    assert FltGetVolumeFromName(gFilter.value, 'v', found) == 0\n"
                 "    return found.value\n")  # fmt: skip
        bench.drop_driver(DRIVER + kept + found + "def DriverEntry(DriverObject, RegistryPath):\n" + entry + "\n")
        async with refused(STATUS_FAILED_DRIVER_ENTRY, words):
            await bench.manager.load("f")
        import sys

        (trace,) = vars(sys).pop("stackfs_kept")
        assert not [each for each in trace if each[0] == "unload"]
        assert [each[0] for each in trace] in ([], ["setup", "start", "complete"])
        assert not bench.manager.loaded and not volume.instances and "stackfs_filter_f" not in sys.modules
        bench.drop_driver(DRIVER + ENTRY)
        assert len(await bench.manager.load("f")) == 1

    test(bench)


def test_the_statuses_of_registering_and_starting(bench: Bench) -> None:
    """A2.13, A2.14, A3.4: not ready before the start, one start, one registration."""
    entry = """
seen = []
def DriverEntry(DriverObject, RegistryPath):
    volume = Out()
    seen.append(FltRegisterFilter(DriverObject, Registration, gFilter))
    seen.append(FltRegisterFilter(DriverObject, Registration, Out()))
    seen.append(FltGetVolumeFromName(gFilter.value, "v", volume))
    seen.append(FltAttachVolume(gFilter.value, volume.value))
    seen.append(FltStartFiltering(gFilter.value))
    seen.append(FltAttachVolume(gFilter.value, volume.value, "own"))
    seen.append(FltAttachVolumeAtAltitude(gFilter.value, volume.value, "380000", "own"))
    seen.append(FltAttachVolumeAtAltitude(gFilter.value, volume.value, "0380000.0"))
    seen.append(FltUnloadFilter("f"))
    seen.append(FltStartFiltering(gFilter.value))
    FltObjectDereference(volume.value)
"""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop_driver(DRIVER + entry)
        volume = bench.volume()
        assert [each.name for each in await bench.manager.load("f")] == []  # its altitude is the own one's
        assert bench.module().seen == [
            STATUS_SUCCESS,
            STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
            STATUS_SUCCESS,
            STATUS_FLT_FILTER_NOT_READY,
            STATUS_SUCCESS,
            STATUS_SUCCESS,
            STATUS_FLT_INSTANCE_NAME_COLLISION,
            STATUS_SUCCESS,
            STATUS_FLT_FILTER_NOT_READY,
            STATUS_INVALID_PARAMETER,
        ]
        assert [each.name for each in volume.instances] == ["f - 0380000.0", "own"]

    test(bench)


def test_registrations_with_statuses_of_their_own(bench: Bench) -> None:
    """A2.13, B2.2: contexts that cannot be, an operation that is there twice; then one that can be is the first."""
    entry = """
seen = []
def DriverEntry(DriverObject, RegistryPath):
    read = FLT_OPERATION_REGISTRATION(IRP_MJ_READ, 0, PreFlush)
    end = FLT_OPERATION_REGISTRATION(IRP_MJ_OPERATION_END)
    for contexts, operations in (
        ([FLT_CONTEXT_REGISTRATION(3, 0, None, 8)], []),
        ([FLT_CONTEXT_REGISTRATION(FLT_STREAM_CONTEXT, 0, None, 8)], [read, read]),
        ([FLT_CONTEXT_REGISTRATION(FLT_STREAM_CONTEXT, 0, None, 8)], [read, end, read]),
    ):
        registration = FLT_REGISTRATION(ContextRegistration=contexts, OperationRegistration=operations)
        seen.append(FltRegisterFilter(DriverObject, registration, gFilter))
    return seen[-1]
"""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop_driver(DRIVER + entry)
        await bench.manager.load("f")
        assert bench.module().seen == [
            STATUS_FLT_INVALID_CONTEXT_REGISTRATION,
            STATUS_FLT_DUPLICATE_ENTRY,
            STATUS_SUCCESS,
        ]

    test(bench)


def test_a_driver_that_starts_filtering_later(bench: Bench) -> None:
    """A2.14: registered and not started, it is loaded and has no instances; its automatic ones come with the start."""

    @on_trio
    async def test(bench: Bench) -> None:
        register = "return FltRegisterFilter(DriverObject, Registration, gFilter)\n"
        bench.drop_driver(DRIVER + "def DriverEntry(DriverObject, RegistryPath):\n    " + register)
        volume = bench.volume()
        assert await bench.manager.load("f") == []
        (row,) = listings.filters(bench.manager)
        assert (row["state"], row["instances"]) == ("Registered", 0)
        async with refused(STATUS_FLT_FILTER_NOT_READY, "has not started filtering"):
            await bench.manager.attach("f", volume)
        loaded = bench.manager.filter("f")
        assert await in_thread(FltStartFiltering, loaded) == STATUS_SUCCESS
        with trio.fail_after(5):
            while not volume.instances:
                await trio.sleep(0.001)
        assert FltStartFiltering(loaded) == STATUS_INVALID_PARAMETER
        await bench.manager.unload("f")

    test(bench)


def driver_with(fields: str, head: str = "") -> str:
    """A driver that registers the operations of DRIVER and nothing else but what `fields` say."""
    body = DRIVER[: DRIVER.index("    FilterUnloadCallback=")] + f"    {fields}\n)\n"
    return body.replace("Registration = ", f"{head}\nRegistration = ", 1) + ENTRY


def test_callbacks_of_a_registration_may_be_left_out(bench: Bench) -> None:
    """A2.8, A3.2, A3.6: without them it is always attached, never detached by hand, never unloaded."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop_driver(driver_with(""))
        volume = bench.volume()
        assert len(await bench.manager.load("f")) == 1
        loaded = bench.manager.filter("f")
        flush(bench, volume)
        assert [each[0] for each in bench.module().trace] == ["entry", "pre", "post"]
        assert await in_thread(FltDetachVolume, loaded, volume) == STATUS_FLT_DO_NOT_DETACH
        assert await in_thread(FltUnloadFilter, "f") == STATUS_FLT_DO_NOT_DETACH

    test(bench)


def test_the_query_teardown_of_a_registration(bench: Bench) -> None:
    """A3.6: it is asked about this instance, and what it answers is the detach's status."""
    head = """
def Query(FltObjects, Flags):
    trace.append(("query", FltObjects.Instance.name, Flags))
    return STATUS_FLT_DO_NOT_DETACH if len(trace) < 3 else STATUS_SUCCESS
"""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop_driver(driver_with("InstanceQueryTeardownCallback=Query", head))
        volume = bench.volume()
        await bench.manager.load("f")
        loaded = bench.manager.filter("f")
        answers = [await in_thread(FltDetachVolume, loaded, volume) for _ in range(3)]
        assert answers == [STATUS_FLT_DO_NOT_DETACH, STATUS_SUCCESS, STATUS_FLT_INSTANCE_NOT_FOUND]
        assert bench.module().trace[1:] == [("query", "f", 0)] * 2

    test(bench)


def test_what_a_registration_says_and_nothing_here_asks(bench: Bench) -> None:
    """A2.9, A2.13: any Size; the flags of pipes, DAX and small systems; a callback for transactions."""
    fields = ("Size=12345, FilterUnloadCallback=Unload, TransactionNotificationCallback=Unload, "
              "Flags=FLTFL_REGISTRATION_SUPPORT_NPFS_MSFS | FLTFL_REGISTRATION_SUPPORT_DAX_VOLUME"
              " | FLTFL_REGISTRATION_SUPPORT_WCOS")  # fmt: skip

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop_driver(driver_with(fields))
        volume = bench.volume()
        assert len(await bench.manager.load("f")) == 1
        flush(bench, volume)
        trace = bench.module().trace
        await bench.manager.unload("f", mandatory=True)
        assert [each[0] for each in trace] == ["entry", "pre", "post", "unload", "unregistered"]

    test(bench)


def test_an_operation_that_this_release_does_not_know(bench: Bench) -> None:
    """A2.18: it may be registered, and never comes; what is known is called all the same."""

    @on_trio
    async def test(bench: Bench) -> None:
        rows = "(Operation(0x7B, pre='pre', post='post'), Operation(IRP_MJ_FLUSH_BUFFERS, pre='pre'))"
        pre = "def pre(self, data, objects):\n        self.seen.append(data.major)\n        return 1"
        bench.drop(PLAIN % f"operations = {rows}\n    seen = []\n    {pre}\n    def post(self, *_): 1 / 0\n")
        volume = bench.volume()
        await bench.manager.load("f")
        flush(bench, volume)
        assert bench.manager.filter("f").object.seen == [api.IRP_MJ_FLUSH_BUFFERS]  # type: ignore[attr-defined]

    test(bench)


def test_callbacks_may_come_before_the_load_has_returned(bench: Bench) -> None:
    """A2.4: one instance sees operations while another is still being set up."""

    @on_trio
    async def test(bench: Bench) -> None:
        body = TRACES.replace(
            "        instance.context = {\"mine\"}\n",
            "        instance.context = {\"mine\"}\n"
            "        if instance.volume.name == \"two\":\n"
            "            self.asked.set()\n"
            "            assert self.answer.wait(20)\n",
        )
        events = "    import threading\n    asked, answer = threading.Event(), threading.Event()\n\n    def __init__"
        bench.drop(body.replace("    def __init__", events, 1))
        one = bench.volume("one")
        bench.volume("two")
        loaded = trio.Event()

        async def load() -> None:
            await bench.manager.load("f")
            loaded.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            while "f" not in bench.manager.loaded:
                await trio.sleep(0.001)
            waits: Any = bench.manager.filter("f").object
            await in_thread(waits.asked.wait)
            flush(bench, one)
            assert [each[0] for each in bench.trace()] == ["setup", "pre", "post"] and not loaded.is_set()
            waits.answer.set()
        assert loaded.is_set() and bench.trace()[-1][0] == "setup"

    test(bench)


def test_a_filter_that_cannot_be_loaded_leaves_the_others_at_work(bench: Bench) -> None:
    """A2.3: the volume goes on, with the instances it had."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(TRACES)
        bench.drop(PLAIN % "def __init__(self, options): raise SystemExit", name="g", altitude="380000")
        bench.drop("5 +\n", name="h", altitude="380001")
        volume = bench.volume()
        await bench.manager.load("f")
        for name, status in (("g", STATUS_FAILED_DRIVER_ENTRY), ("h", STATUS_INVALID_IMAGE_FORMAT)):
            async with refused(status, f"{name}.py"):
                await bench.manager.load(name)
        flush(bench, volume)
        assert [each[0] for each in bench.trace()] == ["setup", "pre", "post"]
        assert [each.name for each in volume.instances] == ["f"] and list(bench.manager.loaded) == ["f"]

    test(bench)


# ---- loading and unloading by name ----------------------------------------------------------------------------------


def test_load_and_unload_by_the_ddi(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(PLAIN % "pass")
        bench.drop(PLAIN % "def filter_unload(self, flags): return STATUS_FLT_DO_NOT_DETACH", name="g")
        bench.drop("5 +\n", name="broken")
        bench.drop(PLAIN % "def __init__(self, options): 1 / 0", name="raises")
        loads = [await in_thread(FltLoadFilter, name) for name in ("f", "f", "none", "broken", "raises", "g")]
        assert loads == [
            STATUS_SUCCESS,
            STATUS_IMAGE_ALREADY_LOADED,
            STATUS_OBJECT_NAME_NOT_FOUND,
            STATUS_INVALID_IMAGE_FORMAT,
            STATUS_FAILED_DRIVER_ENTRY,
            STATUS_SUCCESS,
        ]
        unloads = [await in_thread(FltUnloadFilter, name) for name in ("f", "f", "g")]
        assert unloads == [STATUS_SUCCESS, STATUS_FLT_FILTER_NOT_FOUND, STATUS_FLT_DO_NOT_DETACH]
        assert FltLoadFilter("f") == STATUS_POSSIBLE_DEADLOCK  # the manager's own thread
        assert manager.current() is bench.manager

    test(bench)
    assert FltLoadFilter("f") == FltUnloadFilter("f") == STATUS_FLT_NOT_INITIALIZED


def test_a_filter_that_does_not_support_being_stopped(bench: Bench) -> None:
    """A2.9: refused before its callback is called; an unload asks it."""

    @on_trio
    async def test(bench: Bench) -> None:
        flags = "flags = FLTFL_REGISTRATION_DO_NOT_SUPPORT_SERVICE_STOP\n    "
        bench.drop(TRACES.replace("operations =", flags + "operations =", 1))
        await bench.manager.load("f")
        async with refused(STATUS_NOT_SUPPORTED, "does not support being stopped"):
            await bench.manager.unload("f", mandatory=True)
        trace = bench.trace()
        assert trace == []
        await bench.manager.unload("f")
        assert trace == [("unload", 0)]
        bench.drop(PLAIN % "flags = 0x10", name="g")
        async with refused(STATUS_INVALID_IMAGE_FORMAT, "Dropped.flags"):
            await bench.manager.load("g")

    test(bench)


def test_a_filter_does_not_unload_itself(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        body = "def filter_unload(self, flags):\n        self.seen.append(FltUnloadFilter('f'))\n"
        bench.drop("from stackfs.fltkernel import FltUnloadFilter\n" + PLAIN % ("seen = []\n    " + body))
        await bench.manager.load("f")
        seen = bench.manager.filter("f").object.seen  # type: ignore[attr-defined]
        await bench.manager.unload("f")
        assert seen == [STATUS_FLT_DELETING_OBJECT]

    test(bench)


# ---- references -----------------------------------------------------------------------------------------------------


@pytest.mark.verifier_errors("keeps a filter from being unloaded")
def test_an_unload_waits_for_references(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A2.16: it names who holds them; meanwhile all else about the filter is DELETING_OBJECT, and the rest goes on."""
    monkeypatch.setattr(teardown, "PATIENCE", 0.01)

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(TRACES)
        bench.drop(PLAIN % "pass", name="g", altitude="380000")
        volume = bench.volume()
        (instance,) = await bench.manager.load("f")
        loaded, trace = bench.manager.filter("f"), bench.trace()
        assert FltObjectReference(loaded) == FltObjectReference(instance) == STATUS_SUCCESS
        loaded.reference("a work item")
        ended: list[str] = []
        loaded.at_end(lambda: ended.append("filter"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.manager.unload, "f")
            while loaded.state is not FilterState.UNLOADING or volume.unsettled or volume.instances:
                await trio.sleep(0.001)
            assert trace[-1] == ("complete", "f", api.FLTFL_INSTANCE_TEARDOWN_FILTER_UNLOAD)
            assert FltObjectReference(loaded) == FltObjectReference(instance) == STATUS_FLT_DELETING_OBJECT
            (row,) = listings.filters(bench.manager)
            assert row["state"] == "Unloading"
            one, other, item = sorted(row["held_by"])
            assert one.startswith(f"FltObjectReference in {__file__}:") and item == "reference: a work item"
            assert other.endswith("(of instance 'f' on volume 'v')")
            async with refused(STATUS_DRIVER_FAILED_PRIOR_UNLOAD, "it waits for"):
                await bench.manager.load("f")
            async with refused(STATUS_FLT_DELETING_OBJECT, "it waits for"):
                await bench.manager.unload("f")
            async with refused(STATUS_FLT_DELETING_OBJECT):
                await bench.manager.attach("f", volume)
            assert await in_thread(FltAttachVolume, loaded, volume) == STATUS_FLT_DELETING_OBJECT
            assert FltStartFiltering(loaded) == STATUS_INVALID_PARAMETER
            await bench.manager.load("g")
            assert [each.name for each in volume.instances] == ["g"]
            await trio.sleep(0.03)
            assert loaded.state is FilterState.UNLOADING
            loaded.dereference("a work item")
            await in_thread(FltObjectDereference, loaded)
            await trio.sleep(0.01)
            assert loaded.state is FilterState.UNLOADING and not ended
            FltObjectDereference(instance)
        assert loaded.state is FilterState.GONE and ended == ["filter"]
        for each in (loaded, instance):
            with pytest.raises(ValueError, match="no reference"):
                FltObjectDereference(each)
        await bench.manager.load("f")

    test(bench)


def test_an_unload_that_waits_does_not_keep_the_process(bench: Bench) -> None:
    """A reference that is never dropped, and an unload callback that never returns: the manager ends all the same."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(PLAIN % "pass")
        waits = "import threading\n    go = threading.Event()\n    def filter_unload(self, flags): self.go.wait()"
        bench.drop(PLAIN % waits, name="g", altitude="380000")
        bench.volume()
        await bench.manager.load("f")
        await bench.manager.load("g")
        loaded, waiting = bench.manager.filter("f"), bench.manager.filter("g").object
        assert FltObjectReference(loaded) == STATUS_SUCCESS
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.manager.unload, "f")
            nursery.start_soon(bench.manager.unload, "g")
            while loaded.instances or loaded.state is not FilterState.UNLOADING:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        waiting.go.set()  # type: ignore[attr-defined]
        assert loaded.state is FilterState.UNLOADING

    test(bench)


def test_an_unload_goes_on_though_nobody_waits(bench: Bench) -> None:
    """Whoever asked may give up: the unload ends when what it waits for does."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(PLAIN % "pass")
        bench.volume()
        await bench.manager.load("f")
        loaded = bench.manager.filter("f")
        loaded.reference("a work item")
        with trio.move_on_after(0.05) as limit:
            await bench.manager.unload("f")
        assert limit.cancelled_caught and loaded.state is FilterState.UNLOADING
        loaded.dereference("a work item")
        with trio.fail_after(5):
            await loaded.gone.wait()
        await bench.manager.load("f")

    test(bench)


def test_a_command_says_what_it_waits_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "STUCK_AFTER", 0.02)

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(WAITS % "instance_teardown_start")
        volume = bench.volume()
        await bench.manager.load("f")
        loaded = bench.manager.filter("f")
        served: Any = types.SimpleNamespace(manager=bench.manager)
        async with refused(STATUS_FLT_DELETING_OBJECT, "goes by itself when it can"):
            await daemon.Mounted._verb_detach(served, "f", volume.name)
        loaded.object.answer.set()  # type: ignore[attr-defined]
        loaded.reference("a work item")
        async with refused(STATUS_FLT_DELETING_OBJECT, "it waits for reference: a work item"):
            await daemon.Mounted._verb_unload(served, "f")
        loaded.dereference("a work item")
        await loaded.gone.wait()
        assert volume.instances == volume.unsettled == []

    test(bench)


def test_a_driver_and_its_inf_on_a_mount(drive: Any, tmp_path: Any) -> None:
    """A file with a DriverEntry, its INF as Windows has it, and the commands."""
    from test_inf import NULL

    (tmp_path / "any.py").write_text(
        "from stackfs.api import *\nfrom stackfs.fltkernel import *\n" + DRIVER.replace("trace.append", "print") + ENTRY
    )
    (tmp_path / "any.inf").write_text(NULL, encoding="utf-16")
    one = drive(f"filterdir={tmp_path}")
    one.fltmc("load", "quiet", "-v", one.name)
    assert one.fltmc("instances", "-v", one.name).stdout.splitlines()[2:] == []  # Flags 1
    one.fltmc("attach", "quiet", one.name)
    (row,) = one.fltmc("instances", "-v", one.name).stdout.splitlines()[2:]
    assert row.split()[:5] == ["quiet", str(one.mnt), "370020.5", "Quiet", "Instance"]
    (one.mnt / "file").write_text("x")
    descriptor = os.open(one.mnt / "file", os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)
    run(STACKFS, "stop", "quiet", "-v", one.name)
    assert one.fltmc("instances", "-v", one.name).stdout.splitlines()[2:] == []
    one.fltmc("load", "quiet", "-v", one.name)


def test_work_under_way_holds_up_a_teardown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A2.16: what is no mere reference ends before teardown-complete; all are told before any is waited for (A3.9)."""
    monkeypatch.setattr(teardown, "PATIENCE", 0.01)

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(TRACES, fields='"instances": [{"name": "low", "altitude": "360001"}]')
        bench.volume()
        _, low = await bench.manager.load("f")
        trace = bench.trace()
        assert low.rundown.acquire("work item")
        low.reference("of a test")
        trace.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.manager.unload, "f")
            while len(trace) < 4:
                await trio.sleep(0.001)
            reason = api.FLTFL_INSTANCE_TEARDOWN_FILTER_UNLOAD
            first = [("unload", 0), ("start", "f", reason), ("start", "low", reason), ("complete", "f", reason)]
            await trio.sleep(0.03)
            assert trace == first and not low.rundown.acquire("work item")
            low.rundown.release("work item")
            await low.gone.wait()
            assert trace == [*first, ("complete", "low", reason)] and "f" in bench.manager.loaded
            low.dereference("of a test")
        assert "f" not in bench.manager.loaded

    test(bench)


@pytest.mark.verifier_errors("was not dropped before the end of the volume")
def test_references_do_not_hold_up_a_detach_or_a_dismount(bench: Bench) -> None:
    """A2.16: an instance is torn down at once, and freed when nobody holds it; a volume is dismounted."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(PLAIN % "pass")
        volume = bench.volume()
        (instance,) = await bench.manager.load("f")
        assert FltObjectReference(instance) == FltObjectReference(volume) == STATUS_SUCCESS
        await bench.manager.detach("f", volume)
        assert FltObjectReference(instance) == STATUS_FLT_DELETING_OBJECT
        assert bench.manager.filter("f").held_by() == [*instance.rundown.holders()[:0],
                                                       f"{instance.rundown.holders()[0]} (of {instance})"]  # fmt: skip
        FltObjectDereference(instance)
        await bench.manager.unload("f")
        await bench.manager.remove_volume(volume)
        assert FltObjectReference(volume) == STATUS_FLT_DELETING_OBJECT

    test(bench)


def test_what_is_to_be_done_at_the_end(bench: Bench) -> None:
    """A3.9: behind teardown-complete, last given first, whatever one of them does; also where a set-up was refused."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(TRACES)
        volume = bench.volume()
        (instance,) = await bench.manager.load("f")
        trace = bench.trace()
        instance.at_end(lambda: trace.append(("first",)))
        instance.at_end(lambda: 1 / 0)
        instance.at_end(lambda: trace.append(("second",)))
        volume.at_end(lambda: trace.append(("volume",)))
        await bench.manager.remove_volume(volume)
        assert trace[-4:] == [("complete", "f", 8), ("second",), ("first",), ("volume",)]
        body = ("def instance_setup(self, instance, flags):\n        instance.at_end(lambda: self.ended.append(1))\n"
                "        return STATUS_FLT_DO_NOT_ATTACH\n")  # fmt: skip
        bench.drop(PLAIN % ("ended = []\n    " + body), name="g", altitude="380000")
        bench.volume("w")
        assert await bench.manager.load("g") == []
        assert bench.manager.filter("g").object.ended == [1]  # type: ignore[attr-defined]
        assert bench.manager.filter("g").instances == []

    test(bench)


# ---- attaching and detaching ----------------------------------------------------------------------------------------


def test_attach_and_detach_by_the_ddi(bench: Bench) -> None:
    """A3.4, A3.6, A3.7, and what is returned is referenced."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(PLAIN % "pass", fields='"attach": "manual"')
        bench.drop(PLAIN % "instance_query_teardown = None", name="g", altitude="380000", fields='"attach": "manual"')
        volume = bench.volume()
        await bench.manager.load("f")
        await bench.manager.load("g")
        f, g = bench.manager.filter("f"), bench.manager.filter("g")
        returned: Out[Any] = Out()
        assert await in_thread(FltAttachVolume, f, volume, None, returned) == STATUS_SUCCESS
        assert (returned.value.name, returned.value.rundown.held) == ("f", True)
        FltObjectDereference(returned.value)
        assert await in_thread(FltAttachVolume, f, volume) == STATUS_FLT_INSTANCE_NAME_COLLISION
        assert await in_thread(FltAttachVolume, g, volume, "f") == STATUS_FLT_INSTANCE_NAME_COLLISION
        assert await in_thread(FltAttachVolumeAtAltitude, g, volume, "370500") == STATUS_FLT_INSTANCE_ALTITUDE_COLLISION
        assert await in_thread(FltAttachVolumeAtAltitude, g, volume, "1") == STATUS_INVALID_PARAMETER
        assert await in_thread(FltAttachVolumeAtAltitude, f, volume, "385000.5") == STATUS_SUCCESS
        assert await in_thread(FltAttachVolume, g, volume) == STATUS_SUCCESS
        assert [each.name for each in volume.instances] == ["f - 385000.5", "g", "f"]
        assert await in_thread(FltDetachVolume, g, volume) == STATUS_FLT_DO_NOT_DETACH  # it has no callback for it
        assert await in_thread(FltDetachVolume, f, volume, "g") == STATUS_FLT_INSTANCE_NOT_FOUND
        assert [await in_thread(FltDetachVolume, f, volume) for _ in range(3)] == [
            STATUS_SUCCESS,
            STATUS_SUCCESS,
            STATUS_FLT_INSTANCE_NOT_FOUND,
        ]
        assert [each.name for each in volume.instances] == ["g"]

    test(bench)


def test_the_longest_name_of_an_instance(bench: Bench) -> None:
    """A3.7: the name that an attach at an altitude makes is cut to INSTANCE_NAME_MAX_CHARS; the altitude is not."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(PLAIN % "pass", fields='"attach": "manual"')
        volume = bench.volume()
        await bench.manager.load("f")
        altitude = "370000." + "1" * 400
        assert await in_thread(FltAttachVolumeAtAltitude, bench.manager.filter("f"), volume, altitude) == STATUS_SUCCESS
        (instance,) = volume.instances
        assert instance.name == f"f - {altitude}"[:INSTANCE_NAME_MAX_CHARS] and len(instance.name) == 255
        assert instance.altitude == altitude

    test(bench)


def test_who_is_where(bench: Bench) -> None:
    """Neighbours and listings, each object referenced."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(PLAIN % "pass")
        bench.drop(PLAIN % "pass", name="g", altitude="380000")
        one, two = bench.volume("one"), bench.volume("two")
        await bench.manager.load("f")
        await bench.manager.load("g")
        await bench.manager.attach("f", one, "low", "360000")
        top, found = one.instances[0], Out[Any]()

        def got(status: int) -> Any:
            assert status == STATUS_SUCCESS
            FltObjectDereference(found.value)
            return found.value

        assert got(FltGetTopInstance(one, found)) is top
        assert got(FltGetLowerInstance(top, found)) is one.instances[1]
        assert got(FltGetBottomInstance(one, found)) is one.instances[2]
        assert got(FltGetUpperInstance(one.instances[2], found)) is one.instances[1]
        assert FltGetUpperInstance(top, found) == STATUS_NO_MORE_ENTRIES
        assert FltGetLowerInstance(one.instances[2], found) == STATUS_NO_MORE_ENTRIES
        f = bench.manager.filter("f")
        assert got(FltGetFilterFromName("f", found)) is f
        assert FltGetFilterFromName("h", found) == STATUS_FLT_FILTER_NOT_FOUND
        assert got(FltGetVolumeFromName(f, "two", found)) is two
        assert FltGetVolumeFromName(f, "three", found) == STATUS_FLT_VOLUME_NOT_FOUND
        assert got(FltGetVolumeInstanceFromName(f, one, None, found)).name == "f"
        assert got(FltGetVolumeInstanceFromName(None, one, "g", found)) is top
        assert FltGetVolumeInstanceFromName(f, one, "g", found) == STATUS_FLT_INSTANCE_NOT_FOUND
        assert got(FltGetFilterFromInstance(one.instances[2], found)) is f
        assert got(FltGetVolumeFromInstance(one.instances[2], found)) is one
        assert FltCompareInstanceAltitudes(top, one.instances[1]) == 1
        assert FltCompareInstanceAltitudes(one.instances[1], two.instances[1]) == 0
        for routine, names in (
            (lambda *room: FltEnumerateFilters(*room), ["g", "f"]),
            (lambda *room: FltEnumerateVolumes(f, *room), ["one", "two"]),
            (lambda *room: FltEnumerateInstances(one, None, *room), ["g", "f", "low"]),
            (lambda *room: FltEnumerateInstances(None, f, *room), ["f", "low", "f"]),
        ):
            room: list[Any] = []
            count = Out[int]()
            assert routine(room, len(names) - 1, count) == STATUS_BUFFER_TOO_SMALL and room == []
            assert routine(None, 0, count) == STATUS_BUFFER_TOO_SMALL and count.value == len(names)
            assert routine(room, len(names), count) == STATUS_SUCCESS
            assert [each.name for each in room] == names and count.value == len(names)
            for each in room:
                FltObjectDereference(each)
        assert not f.rundown.held and not top.rundown.held and not one.rundown.held

    test(bench)


def test_who_may_attach_an_instance(bench: Bench) -> None:
    """A3.13."""

    @on_trio
    async def test(bench: Bench) -> None:
        rows = ", ".join(
            f'{{"name": "{kind}", "altitude": "36000{index}", "attach": "{kind}"}}'
            for index, kind in enumerate(("automatic", "manual", "automatic-only", "never"))
        )
        bench.drop(PLAIN % "pass", fields=f'"attach": "never", "instances": [{rows}]')
        volume = bench.volume()
        await bench.manager.load("f")
        assert [each.name for each in volume.instances] == ["automatic-only", "automatic"]
        for name in ("automatic-only", "never", None):
            async with refused(STATUS_FLT_DO_NOT_ATTACH, "cannot be attached by a command"):
                await bench.manager.attach("f", volume, name)
        await bench.manager.attach("f", volume, "manual")
        await bench.manager.attach("f", volume, altitude="365000")

    test(bench)


def test_the_order_of_a_mount(bench: Bench) -> None:
    """A1.6, A2.2: filters are loaded by start type, instances set up by their filters' default instances."""

    @on_trio
    async def test(bench: Bench) -> None:
        seen_by_all = "import builtins\nseen = vars(builtins).setdefault('stackfs_seen', [])\n"
        setup = "def instance_setup(self, instance, flags): seen.append((instance.name, flags))"
        body = seen_by_all + "seen.append('import ' + __name__[-1])\n" + PLAIN % setup
        bench.drop(body, name="a", altitude="370000", fields='"start": "demand"')
        bench.drop(body, name="b", altitude="361000", fields='"start": "boot"')
        bench.drop(body, name="c", altitude="380000", fields='"start": "auto"')
        volume = bench.volume()
        specs = [InstanceSpec("a", "a", "370000"), InstanceSpec("a", "a low", "360001"),
                 InstanceSpec("b", "b", "361000"), InstanceSpec("b", "b high", "385000"),
                 InstanceSpec("c", "c", "380000")]  # fmt: skip
        import builtins

        try:
            await bench.manager.attach_configured(volume, specs, 5)
        finally:
            seen = vars(builtins).pop("stackfs_seen")
        assert seen == ["import b", "import c", "import a",
                        *((name, 5) for name in ("c", "a", "a low", "b high", "b"))]  # fmt: skip
        assert [each.name for each in volume.instances] == ["b high", "c", "a", "b", "a low"]

    test(bench)


# ---- what takes long holds up nothing else --------------------------------------------------------------------------

WAITS = """
import threading
class Dropped(Filter):
    asked, answer = threading.Event(), threading.Event()

    def wait(self):
        self.asked.set()
        assert self.answer.wait(20)
        return STATUS_SUCCESS

    def %s(self, instance, flags):
        return self.wait()
"""


def test_a_set_up_that_takes_long(bench: Bench) -> None:
    """Its name and altitude are taken; others attach, detach and list; the filter's unload waits for it."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(WAITS % "instance_setup", fields='"attach": "manual"')
        bench.drop(PLAIN % "pass", name="g", altitude="380000")
        volume = bench.volume()
        await bench.manager.load("f")
        waits: Any = bench.manager.filter("f").object

        async def attached() -> None:
            async with refused(STATUS_FLT_DELETING_OBJECT, "is being unloaded"):
                await bench.manager.attach("f", volume)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attached)
            await in_thread(waits.asked.wait)
            assert [(row["name"], row["status"]) for row in listings.instances(bench.manager)] == [("f", "Setting up")]
            await bench.manager.load("g")
            async with refused(STATUS_FLT_INSTANCE_NAME_COLLISION):
                await bench.manager.attach("g", volume, "f", "385000")
            async with refused(STATUS_FLT_INSTANCE_ALTITUDE_COLLISION):
                await bench.manager.attach("g", volume, "other", "370500")
            await bench.manager.detach("g", volume)
            nursery.start_soon(bench.manager.unload, "f")
            while bench.manager.filter("f").state is not FilterState.UNLOADING:
                await trio.sleep(0.001)
            assert len(bench.manager.filter("f").instances) == 1
            waits.answer.set()
        assert not bench.manager.loaded.keys() - {"g"} and not volume.unsettled

    test(bench)


def test_a_teardown_that_takes_long(bench: Bench) -> None:
    """A second detach is DELETING_OBJECT, its name stays taken until it is gone, an unload waits for it."""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(WAITS % "instance_teardown_start")
        bench.drop(PLAIN % "pass", name="g", altitude="380000")
        volume = bench.volume()
        await bench.manager.load("f")
        waits: Any = bench.manager.filter("f").object
        unloaded = trio.Event()

        async def unload() -> None:
            await bench.manager.unload("f")
            unloaded.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.manager.detach, "f", volume)
            await in_thread(waits.asked.wait)
            async with refused(STATUS_FLT_DELETING_OBJECT, "is being torn down already"):
                await bench.manager.detach("f", volume)
            async with refused(STATUS_FLT_INSTANCE_ALTITUDE_COLLISION, "which is still being torn down"):
                await bench.manager.attach("f", volume, "again")
            await bench.manager.load("g")
            nursery.start_soon(unload)
            await trio.sleep(0.01)
            assert not unloaded.is_set()
            (_, row) = listings.instances(bench.manager)
            assert (row["name"], row["status"]) == ("f", "Detaching")
            waits.answer.set()
        assert unloaded.is_set() and [each.name for each in volume.instances] == ["g"]

    test(bench)


def test_a_filters_own_routines_run_beside_the_loop(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop(TRACES.replace("self.trace.append(what)", "self.trace.append((what[0], threading.get_ident()))")
                   .replace("class Dropped", "import threading\nclass Dropped"))  # fmt: skip
        volume = bench.volume()
        await bench.manager.load("f")
        trace = bench.trace()
        await bench.manager.detach("f", volume)
        await bench.manager.unload("f")
        assert [what for what, _ in trace] == ["setup", "query", "start", "complete", "unload"]
        assert threading.get_ident() not in {thread for _, thread in trace}

    test(bench)


# ---- further volumes ------------------------------------------------------------------------------------------------


def test_a_further_volume(bench: Bench) -> None:
    """A3.15: its automatic instances are set up, highest default instance first; then its root is opened."""

    @on_trio
    async def test(bench: Bench) -> None:
        body = TRACES.replace("IRP_MJ_FLUSH_BUFFERS", "IRP_MJ_CREATE").replace(
            "self.trace = []", "import builtins; self.trace = vars(builtins).setdefault('stackfs_trace', [])"
        )
        bench.drop(body)
        bench.drop(body, name="g", altitude="380000")
        bench.drop(PLAIN % "pass", name="h", altitude="360001", fields='"attach": "manual"')
        try:
            for name in "fgh":
                await bench.manager.load(name)
            source = bench.top / "second"
            source.mkdir()
            volume = await bench.manager.open_volume("second", str(source))
            trace = bench.trace()
            flags = api.FLTFL_INSTANCE_SETUP_AUTOMATIC_ATTACHMENT | api.FLTFL_INSTANCE_SETUP_NEWLY_MOUNTED_VOLUME
            assert trace == [("setup", "g", flags), ("setup", "f", flags),
                             ("pre", "g"), ("pre", "f"), ("post", "f"), ("post", "g")]  # fmt: skip
            assert bench.manager.volume("second") is volume and volume.core.open_files == 0
            (row,) = listings.volumes(bench.manager)
            assert (row["dos_name"], row["volume_name"], row["status"]) == ("", "second", "Not mounted")
            await bench.manager.attach("h", volume)
            await bench.manager.remove_volume(volume)
            assert [each for each in trace if each[0] == "complete"] == [("complete", "g", 8), ("complete", "f", 8)]
        finally:
            import builtins

            vars(builtins).pop("stackfs_trace", None)

    test(bench)


def test_a_further_volume_that_cannot_be_held(bench: Bench) -> None:
    @on_trio
    async def test(bench: Bench) -> None:
        pre = "def pre(self, data, objects): return data.complete(STATUS_ACCESS_DENIED)"
        bench.drop(PLAIN % f"operations = (Operation(IRP_MJ_CREATE, pre='pre'),)\n    {pre}")
        await bench.manager.load("f")
        source = bench.top / "second"
        with pytest.raises(StackfsError, match="No such file"):
            await bench.manager.open_volume("second", str(source))
        source.mkdir()
        with pytest.raises(StackfsError, match=r"do not let the root of .*second be opened: Permission denied"):
            await bench.manager.open_volume("second", str(source))
        assert bench.manager.volumes == [] and bench.manager.filter("f").instances == []
        await bench.manager.unload("f")
        await bench.manager.open_volume("second", str(source))
        with pytest.raises(StackfsError, match="is there already"):
            await bench.manager.open_volume("second", str(source))

    test(bench)


def test_a_volume_whose_mount_is_gone(drive: Any, tmp_path: Any) -> None:
    """A3.2: open files keep it; what attaches to it is told so, and fltmc shows it."""
    (tmp_path / "told.py").write_text(
        'MANIFEST = {"name": "told", "altitude": "370500", "group": "FSFilter Activity Monitor"}\n'
        "from stackfs.api import Filter\n"
        "class Told(Filter):\n"
        "    def instance_setup(self, instance, flags):\n"
        "        with open(instance.volume.source + '/told', 'a') as file: file.write(f'{flags:#x} ')\n"
    )
    one = drive(f"filterdir={tmp_path}")
    (one.src / "file").write_text("x")
    one.fltmc("load", "told", "-v", one.name)
    one.fltmc("detach", "told", one.name)
    with open(one.mnt / "file") as kept:
        run("umount", "-l", one.mnt)
        one.fltmc("attach", "told", one.name)
        assert (one.src / "told").read_text() == "0x1 0xa "
        volumes = one.fltmc("volumes", check=False).stdout.splitlines()
        (row,) = [line for line in volumes if one.name in line.split()]
        assert row.split()[-1] == "Detached"
        (row,) = [line for line in one.fltmc("instances", "-v", one.name).stdout.splitlines() if "told" in line]
        assert row.split()[-1] == "Detached"
        assert kept.read() == "x"
    one.wait_gone()


def test_a_mount_with_a_further_volume(drive: Any, tmp_path: Any) -> None:
    """One process, two volumes: fltmc lists both, and attaches and detaches on either by name."""
    one = drive(mount=False)
    second = one.src.parent / f"{one.name}-second"
    second.mkdir()
    toml = one.src.parent / "two.toml"
    toml.write_text(
        f'[volume]\nname = "{one.name}"\nsource = "{one.src}"\nmountpoint = "{one.mnt}"\n'
        f'[[further_volume]]\nname = "{second.name}"\nsource = "{second}"\n'
        f'[[instance]]\nfilter = "passthrough"\n[[instance]]\nfilter = "passthrough"\nvolume = "{second.name}"\n'
    )
    run(STACKFS, "mount", toml)
    one.note_pid()
    for name, shown in ((one.name, str(one.mnt)), (second.name, second.name)):
        (row,) = one.fltmc("instances", "-v", name).stdout.splitlines()[2:]
        assert row.split()[:2] == ["passthrough", shown]
    volumes = one.fltmc("volumes", check=False).stdout.splitlines()
    assert [line.split()[-2:] for line in volumes if second.name in line] == [["Not", "mounted"]]
    one.fltmc("detach", "passthrough", second.name)
    assert one.fltmc("instances", "-v", second.name).stdout.splitlines()[2:] == []
    one.fltmc("attach", "passthrough", second.name, "-a", "370030.5")
    assert one.fltmc("instances", "-v", second.name).stdout.count("370030.5") == 2
    (one.src / "file").write_text("x")
    assert (one.mnt / "file").read_text() == "x"
