"""The verifier (semantics A11): what it finds, whom and which place it names, and that it finds nothing else.

Most tests drive the stack without a mount; the last ones mount. Each takes its reports itself; one that it did not
take would fail it (conftest.verifier_reports).
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from conftest import STACKFS, Drive, run
from filter_bench import Bench, on_trio
from stack_driver import FSYNC, READ, RELEASE, Host, answering, entry_of, error_of, go_on, lookup, opened

from stackfs import verifier
from stackfs.api import (
    FLT_POSTOP_DISALLOW_FSFILTER_IO,
    FLT_POSTOP_MORE_PROCESSING_REQUIRED,
    FLT_PREOP_DISALLOW_FASTIO,
    FLT_PREOP_DISALLOW_FSFILTER_IO,
    FLT_PREOP_PENDING,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE,
    IRP_MJ_CLEANUP,
    IRP_MJ_CREATE,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_READ,
    STATUS_ACCESS_DENIED,
)
from stackfs.cext.python_requests import Volume
from stackfs.ddi.buffers import FltDecodeParameters, FltGetSwappedBufferMdlAddress, IoAllocateMdl
from stackfs.ddi.out import Out

STATUS_PENDING = 0x103
READ_BY_PROGRAM = 2
"""In a READ's flags: it names a lock owner, so it is a program's own, and fast I/O."""
NO_CALLBACK = FLT_PREOP_SUCCESS_NO_CALLBACK


def found() -> list[verifier.Report]:
    return verifier.take()


def read(core: Volume, fh: int) -> None:
    core.request(READ, fh=fh, buffer=bytearray(4), size=4, open_flags=READ_BY_PROGRAM).do()


def only() -> verifier.Report:
    reports = found()
    assert len(reports) == 1, reports
    return reports[0]


def here(routine: Callable[..., Any], words: str) -> str:
    """FILE:LINE of the line of a function that holds these words."""
    lines, first = inspect.getsourcelines(routine)
    (at,) = (number for number, line in enumerate(lines) if words in line)
    return f"{__file__}:{first + at}"


def do(core: Volume) -> None:
    """Every operation that the tables below are about, whatever becomes of it."""
    fh = 0
    try:
        fh = opened(core, lookup(core, b"file"))
        error_of(core, READ, fh=fh, buffer=bytearray(4), size=4, open_flags=READ_BY_PROGRAM)
        error_of(core, FSYNC, fh=fh)
    except OSError:
        pass
    if fh:
        core.request(RELEASE, fh=fh).do()


# ---- statuses -------------------------------------------------------------------------------------------------------


def failing(data: Any, *_: Any) -> Any:
    return data.complete(STATUS_ACCESS_DENIED)


def never_ending(data: Any, *_: Any) -> Any:
    return data.complete(STATUS_PENDING)


@pytest.mark.parametrize(
    ("major", "pre", "words"),
    [
        (IRP_MJ_READ, answering(FLT_PREOP_SUCCESS_WITH_CALLBACK), "has registered none"),
        (IRP_MJ_READ, answering(FLT_PREOP_SYNCHRONIZE), "has registered none"),
        (IRP_MJ_READ, answering((NO_CALLBACK, "context")), "a completion context goes with"),
        (IRP_MJ_READ, answering(FLT_PREOP_PENDING), "FLT_PREOP_PENDING of what is no IRP"),
        (IRP_MJ_FLUSH_BUFFERS, answering(FLT_PREOP_DISALLOW_FASTIO), "not offered as fast I/O"),
        (IRP_MJ_READ, answering(FLT_PREOP_DISALLOW_FSFILTER_IO), "no QUERY_OPEN"),
        (IRP_MJ_READ, never_ending, "with STATUS_PENDING"),
        (IRP_MJ_CLEANUP, failing, "cannot be failed"),
        (IRP_MJ_READ, answering(99), "no status of a pre callback"),
    ],
)
@pytest.mark.parametrize("passes", [False, True])
def test_return_statuses_of_pre(core: Volume, place: Path, major: int, pre: Any, words: str, passes: bool) -> None:
    core.stack.insert(entry_of((major, pre, None), name="wrong", passes=passes))
    do(core)
    report = only()
    assert words in report.what
    assert (report.filter, report.instance, report.routine) == ("wrong", "wrong", "pre")
    assert report.operation.startswith("IRP_MJ_") and report.path == "/file"
    assert re.match(r"/.*/tests/(test_verifier|stack_driver)\.py:\d+$", report.place), report.place


def test_what_must_not_be_synchronised(core: Volume, place: Path) -> None:
    core.stack.insert(entry_of((IRP_MJ_CREATE, answering(FLT_PREOP_SYNCHRONIZE), go_on),
                               (IRP_MJ_FLUSH_BUFFERS, answering(FLT_PREOP_SYNCHRONIZE), lambda *_: None)))  # fmt: skip
    do(core)
    assert "of a CREATE" in only().what


def post_failing(data: Any, *_: Any) -> None:
    data.status = STATUS_ACCESS_DENIED


def post_pending(data: Any, *_: Any) -> None:
    data.status = STATUS_PENDING


@pytest.mark.parametrize(
    ("major", "post", "words"),
    [
        (IRP_MJ_READ, answering(FLT_POSTOP_MORE_PROCESSING_REQUIRED), "no IRP"),
        (IRP_MJ_READ, answering(FLT_POSTOP_DISALLOW_FSFILTER_IO), "no QUERY_OPEN"),
        (IRP_MJ_FLUSH_BUFFERS, answering(7), "no status of a post callback"),
        (IRP_MJ_CLEANUP, post_failing, "cannot be failed"),
        (IRP_MJ_READ, post_pending, "STATUS_PENDING"),
    ],
)
def test_return_statuses_of_post(core: Volume, place: Path, major: int, post: Any, words: str) -> None:
    core.stack.insert(entry_of((major, go_on, post), name="wrong"))
    do(core)
    report = only()
    assert words in report.what and (report.filter, report.routine) == ("wrong", "post")


def test_completing_what_was_pended_is_held_to_the_same_rules(core: Volume, place: Path) -> None:
    def pre(data: Any, objects: Any) -> int:
        data.complete_pended_pre(FLT_PREOP_SUCCESS_WITH_CALLBACK)
        return FLT_PREOP_PENDING

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre, None), name="wrong"))
    do(core)
    assert "has registered none" in only().what


def test_what_keeps_the_rules_is_not_reported(core: Volume, place: Path) -> None:
    def pre(data: Any, objects: Any) -> Any:
        assert data.path == "/file"
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, "context"

    core.stack.insert(entry_of((IRP_MJ_READ, pre, lambda *_: None), (IRP_MJ_FLUSH_BUFFERS, pre, lambda *_: 0),
                               (IRP_MJ_CREATE, pre, lambda *_: None),
                               (IRP_MJ_CLEANUP, answering(NO_CALLBACK), None)))  # fmt: skip
    do(core)
    assert found() == []


def test_off_it_sees_nothing(core: Volume, place: Path) -> None:
    verifier.enable(False)
    try:
        core.stack.insert(entry_of((IRP_MJ_READ, answering(99), None)))
        do(core)
        assert found() == []
    finally:
        verifier.enable(True)


def test_the_log_says_the_same_a_hundred_times(core: Volume, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = verifier.count()
    core.stack.insert(entry_of((IRP_MJ_READ, answering((NO_CALLBACK, 1)), None), name="loud"))
    fh = opened(core, lookup(core, b"file"))
    for _ in range(150):
        read(core, fh)
    assert verifier.count() == before + 150 and len(found()) == 150
    assert capfd.readouterr().out.count("FILTER VERIFIER ERROR: ") == 100
    assert verifier.summary()["errors"] == verifier.count()


# ---- buffers --------------------------------------------------------------------------------------------------------


def swap(data: Any, dirty: bool = True) -> None:
    data.buffer = bytearray(data.length)
    if dirty:
        data.set_dirty()


def described_by(data: Any, mdl: Any) -> None:
    field: Out[Any] = Out()
    FltDecodeParameters(data, field, None, None, None)
    field.value.value = mdl


def no_dirty(data: Any, objects: Any) -> int:
    swap(data, dirty=False)
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


def no_post(data: Any, objects: Any) -> int:
    swap(data)
    return NO_CALLBACK


def fast_mdl(data: Any, objects: Any) -> int:
    swap(data)
    described_by(data, IoAllocateMdl(bytearray(data.length), data.length))
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


def other_mdl(data: Any, objects: Any) -> int:
    if data.is_fast_io:
        return FLT_PREOP_DISALLOW_FASTIO
    return fast_mdl(data, objects)


def asks_early(data: Any, objects: Any) -> int:
    assert FltGetSwappedBufferMdlAddress(data) is None
    return NO_CALLBACK


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        (no_dirty, "did not mark the data dirty"),
        (no_post, "its post is not called"),
        (fast_mdl, "MdlAddress is not NULL"),
        (other_mdl, "MdlAddress describes another one"),
        (asks_early, "in the swapper's own post callback alone"),
    ],
)
def test_buffers_swapped_against_the_rules(core: Volume, place: Path, pre: Any, words: str) -> None:
    core.stack.insert(entry_of((IRP_MJ_READ, pre, lambda *_: None), name="wrong"))
    do(core)
    report = only()
    assert words in report.what and report.filter == "wrong" and report.operation == "IRP_MJ_READ"
    assert report.place == here(pre, "def ")


# ---- levels, dead data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["name_information", "open"])
def test_calls_at_too_high_a_level(core: Volume, place: Path, what: str) -> None:
    host = Host()

    def post(data: Any, objects: Any, context: Any, flags: int) -> None:
        assert data.path == "/file"              # no routine of the DDI: it may be asked at any level
        if what == "name_information":
            data.name_information()
        else:
            data.file.stat()

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, go_on, post), (IRP_MJ_READ, go_on, post), host=host, name="high"))
    fh = opened(core, lookup(core, b"file"))
    read(core, fh)  # fast I/O comes up where it went down
    assert found() == [] and host.told == []
    assert error_of(core, FSYNC, fh=fh) != 0
    report = only()
    assert "at level 2" in report.what and report.filter == "high"
    assert report.place == here(post, "data." + ("file.stat" if what == "open" else what))
    assert [each[:3] for each in host.told] == [("raised", "post", IRP_MJ_FLUSH_BUFFERS)]


def test_dead_callback_data(core: Volume, place: Path) -> None:
    kept: list[Any] = []

    def pre(data: Any, objects: Any) -> int:
        kept.append(data)
        return NO_CALLBACK

    def use() -> None:
        with pytest.raises(ReferenceError):
            kept[0].length  # noqa: B018

    core.stack.insert(entry_of((IRP_MJ_READ, pre, None), name="late"))
    read(core, opened(core, lookup(core, b"file")))
    use()
    report = only()
    assert "after its callback had returned" in report.what
    assert (report.filter, report.routine, report.operation) == ("late", "pre", "IRP_MJ_READ")
    assert report.place == here(use, "kept[0]")


def test_completing_second_is_no_mistake(core: Volume, place: Path) -> None:
    kept: list[Any] = []

    def pre(data: Any, objects: Any) -> int:
        kept.append(data)
        data.complete_pended_pre(NO_CALLBACK)
        return FLT_PREOP_PENDING

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre, None)))
    do(core)
    with pytest.raises(ReferenceError):
        kept[0].complete_pended_pre(NO_CALLBACK)
    assert found() == []
    with pytest.raises(ReferenceError):
        kept[0].path  # noqa: B018
    assert "after the operation was completed" in only().what


def test_letting_go_of_what_is_held(core: Volume, place: Path) -> None:
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, answering(FLT_PREOP_PENDING), None), name="careless"))
    do(core)
    report = only()
    assert "let go of its data" in report.what and report.filter == "careless"


# ---- what is not given back -----------------------------------------------------------------------------------------

LEAKS = """
import threading


class OfStream(StreamContext):
    pass


class Dropped(Filter):
    operations = (Operation(IRP_MJ_READ, pre="pre"),)
    contexts = (OfStream,)

    def pre(self, data, objects):
        %s
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def filter_unload(self, flags):
        return STATUS_SUCCESS
"""
AT_DETACH = {
    "context": ("data.ensure_context(OfStream).reference()  # here", "a stream context"),
    "file": ("self.file = objects.open('file')  # here", "the file 'file'"),
    "name": ("self.out = k.Out(); k.FltGetFileNameInformation(data, 0x101, self.out)  # here",
             "the file name information 'v/file'"),
    "callback data": ("self.out = k.Out(); k.FltAllocateCallbackData(objects, data.file.reopen(), self.out)  # here",
                      "callback data"),
}  # fmt: skip
AT_UNLOAD = {
    "deferred": ("self.item = k.FltAllocateDeferredIoWorkItem()  # here", "a deferred work item"),
    "generic": ("self.item = k.FltAllocateGenericWorkItem()  # here", "a generic work item"),
    "volume": ("k.FltObjectReference(objects.volume)  # here", "a reference on volume 'v'"),
    "queued": ("self.wait = threading.Event(); "
               "k.ExQueueWorkItem(k.ExInitializeWorkItem(lambda _: self.wait.wait()))  # here",
               "a work item that is queued or runs"),
}  # fmt: skip


def read_once(volume: Any) -> None:
    fh = opened(volume.core, lookup(volume.core, b"file"))
    read(volume.core, fh)
    volume.core.request(RELEASE, fh=fh).do()


def place_in(bench: Bench) -> str:
    path = bench.top / "filters" / "f.py"
    (number,) = (at for at, line in enumerate(path.read_text().splitlines(), 1) if "# here" in line)
    return f"{path}:{number}"


@pytest.mark.parametrize("what", AT_DETACH)
def test_what_an_instance_leaves_behind(bench: Bench, what: str) -> None:
    line, words = AT_DETACH[what]

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop("import stackfs.fltkernel as k\n" + LEAKS % line)
        volume = bench.volume()
        await bench.manager.load("f")
        await trio.to_thread.run_sync(read_once, volume)
        assert found() == []
        await bench.manager.detach("f", volume)
        reports = [each for each in found() if "the file b''" not in each.what and "the file ''" not in each.what]
        assert [each.filter for each in reports] == ["f"], reports
        assert words in reports[0].what and "end of its instance" in reports[0].what
        assert reports[0].instance == "f" and reports[0].place == place_in(bench)
        if what == "context":  # it lives on, and the unload would wait for it
            gone = bench.manager.filter("f").contexts
            assert gone is not None and gone.outstanding == {"stream": 1}

    import stackfs.contexts

    before, stackfs.contexts.UNREGISTER_WAIT = stackfs.contexts.UNREGISTER_WAIT, 0.01
    try:
        test(bench)
    finally:
        stackfs.contexts.UNREGISTER_WAIT = before
    found()


@pytest.mark.parametrize("what", AT_UNLOAD)
def test_what_a_filter_leaves_behind(bench: Bench, what: str) -> None:
    line, words = AT_UNLOAD[what]

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop("import stackfs.fltkernel as k\n" + LEAKS % line)
        volume = bench.volume()
        await bench.manager.load("f")
        await trio.to_thread.run_sync(read_once, volume)
        mine: Any = bench.manager.filter("f").object
        await bench.manager.unload("f")
        report = only()
        assert words in report.what and report.filter == "f" and report.place == place_in(bench)
        if what == "volume":
            volume.rundown.release_one("Flt")
        if what == "queued":
            mine.wait.set()

    test(bench)


def test_references_that_keep_a_filter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import stackfs.teardown

    monkeypatch.setattr(stackfs.teardown, "PATIENCE", 0.05)

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop("import stackfs.fltkernel as k\n" + LEAKS % "k.FltObjectReference(objects.filter)  # here")
        volume = bench.volume()
        await bench.manager.load("f")
        await trio.to_thread.run_sync(read_once, volume)
        loaded = bench.manager.filter("f")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.manager.unload, "f")
            while not verifier._reports:
                await trio.sleep(0.01)
            report = only()
            assert "keeps a filter from being unloaded" in report.what and report.routine == "FltObjectReference"
            assert report.place == place_in(bench) and report.filter == "f"
            loaded.rundown.release_one("Flt")

    test(bench)


def test_a_filter_that_gives_everything_back(bench: Bench) -> None:
    body = """
        context = data.ensure_context(OfStream)
        context.reference()
        context.release()
        with objects.open("file") as file:
            file.read(0, 1)
        out = k.Out()
        k.FltGetFileNameInformation(data, 0x101, out)
        k.FltReferenceFileNameInformation(out.value)
        k.FltReleaseFileNameInformation(out.value)
        k.FltReleaseFileNameInformation(out.value)
        self.name = data.name_information()
        item = k.FltAllocateGenericWorkItem()
        k.FltQueueGenericWorkItem(item, objects, lambda item, *_: k.FltFreeGenericWorkItem(item))
        k.FltObjectReference(objects.volume)
        k.FltObjectDereference(objects.volume)
"""

    @on_trio
    async def test(bench: Bench) -> None:
        bench.drop("import stackfs.fltkernel as k\n" + LEAKS % body)
        volume = bench.volume()
        await bench.manager.load("f")
        await trio.to_thread.run_sync(read_once, volume)
        await bench.manager.unload("f")
        assert found() == []

    test(bench)


# ---- mounted --------------------------------------------------------------------------------------------------------


def test_on_a_mount(drive: Any, tmp_path: Path, lanes: str) -> None:
    """The log, and stackfs status, of a filter that breaks the rules; and that programs do not notice."""
    filters = tmp_path / "filters"
    filters.mkdir()
    (filters / "wrong.py").write_text(
        'MANIFEST = {"name": "wrong", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Wrong"}\n'
        "from stackfs.api import *\n\n\nclass Wrong(Filter):\n"
        '    operations = (Operation(IRP_MJ_FLUSH_BUFFERS, pre="pre"),)\n\n'
        "    def pre(self, data, objects):\n        return FLT_PREOP_SUCCESS_NO_CALLBACK, 'a context'\n"
    )
    for on in (True, False) if lanes == "auto" else (True,):
        made: Drive = drive(mount=False)
        made.verifier = on
        made.expected_log = [r'event="FILTER VERIFIER ERROR: a completion context']
        made.mount(f"lanes={lanes}", f"filterdir={filters}", "filter=wrong")
        run("python3", "-c", f"import os; f = os.open('{made.mnt}/x', 66); os.write(f, b'x'); os.fsync(f)")
        volumes = json.loads(run(STACKFS, "status", "--json").stdout)["volumes"]
        (status,) = [each["status"]["verifier"] for each in volumes if each["mountpoint"] == str(made.mnt)]
        lines = [line for line in made.log.read_text().splitlines() if "FILTER VERIFIER ERROR" in line]
        assert (status["on"], status["errors"], len(lines)) == (on, int(on), int(on))
        for line in lines:
            assert "level=error" in line and "filter=wrong" in line and "operation=IRP_MJ_FLUSH_BUFFERS" in line
            assert "path=/x" in line and f"place={filters / 'wrong.py'}:8" in line
        assert len(status["last"]) == len(lines)
        made.umount()


def test_a_detach_ends_reads_that_hold_pages(drive: Any, tmp_path: Path) -> None:
    """A3.11: before a filter of data leaves, the kernel writes its pages back, and waits for those that are being read.
    A read that the filter holds is cancelled then, not when the kernel has given up."""
    filters = tmp_path / "filters"
    filters.mkdir()
    (filters / "holds.py").write_text(
        'MANIFEST = {"name": "holds", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Holds"}\n'
        "from stackfs.api import *\n\n\nclass Holds(Filter):\n"
        '    operations = (Operation(IRP_MJ_READ, pre="pre"),)\n\n'
        "    def pre(self, data, objects):\n        data.set_cancel_completion(self.cancelled)\n"
        "        self.kept = data\n        return FLT_PREOP_PENDING\n\n"
        "    def cancelled(self, data):\n        data.complete_pended_pre(data.complete(STATUS_CANCELLED))\n"
    )
    made: Drive = drive(f"filterdir={filters}", "filter=holds")
    (made.src / "file").write_bytes(b"0123456789")
    reader = subprocess.Popen(["cat", made.mnt / "file"], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        time.sleep(0.3)
        before = time.monotonic()
        made.fltmc("detach", "holds", str(made.mnt))
        assert time.monotonic() - before < 10
        output, _ = reader.communicate(timeout=20)
        assert output == b"0123456789" or b"rror" in output
    finally:
        reader.kill()
        reader.wait()
