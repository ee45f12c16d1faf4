"""The filter stack rule by rule (docs/semantics.md A1, A2, A3.5, A6, F2), driven without a mount."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stack_model as model
from hypothesis import given
from hypothesis import strategies as st
from stack_driver import (
    CREATE,
    FSYNC,
    GETATTR,
    LOOKUP,
    MKDIR,
    OPEN,
    OPENDIR,
    READ,
    RELEASE,
    UNLINK,
    WRITE,
    Bare,
    Host,
    answering,
    entry_of,
    error_of,
    go_on,
    lookup,
    names_of,
    opened,
    raising,
    read,
)

from stackfs import altitude, api
from stackfs.api import (
    FLT_PREOP_COMPLETE,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    STATUS_ACCESS_DENIED,
)
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import ERROR_LIMIT, InstanceEntry

# ---- order, lists, altitudes ----------------------------------------------------------------------------------------


def test_posts_run_in_exactly_reverse_order_through_more_layers_than_fit_in_an_operation(core: Volume) -> None:
    trace: list[str] = []

    def pair(at: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def pre(data: Any, objects: object) -> Any:
            trace.append(f"down {at}")
            data.name = b"n%d" % at
            data.set_dirty()
            return FLT_PREOP_SUCCESS_WITH_CALLBACK, at

        def post(data: Any, objects: object, context: int, flags: int) -> None:
            trace.append(f"up {context}")
            assert data.name == (b"n%d" % (at + 1) if at < 40 else b"asked")

        return pre, post

    for at in range(1, 41):
        core.stack.insert(entry_of((api.IRP_MJ_QUERY_OPEN, *pair(at)), name=f"i{at}", at=str(at)))
    assert error_of(core, LOOKUP, name=b"asked") == errno.ENOENT
    assert trace == [f"down {at}" for at in range(40, 0, -1)] + [f"up {at}" for at in range(1, 41)]


@given(st.lists(st.from_regex(r"[0-9]{1,30}(\.[0-9]{0,30})?", fullmatch=True), min_size=2, max_size=6))
def test_altitudes_of_any_precision_order_the_stack_as_numbers(texts: list[str]) -> None:
    stack = Volume(os.open("/", os.O_PATH)).stack
    expected: dict[altitude.AltitudeKey, str] = {}
    for number, text in enumerate(texts):
        key = altitude.sort_key(text)
        if key in expected:
            with pytest.raises(ValueError, match="is taken by"):
                stack.insert(entry_of(name=str(number), at=text))
        else:
            stack.insert(entry_of(name=str(number), at=text))
            expected[key] = text
    ordered = [expected[key] for key in sorted(expected, reverse=True)]
    assert [each.altitude.decode() for each in stack.entries] == ordered


def test_the_list_of_an_operation_nobody_registered_stays_the_same_object(core: Volume) -> None:
    """Neither an operation that nobody registered nor one that others did is touched by an instance that does not."""
    rows = [(major, go_on, None) for major in (api.IRP_MJ_CREATE, api.IRP_MJ_WRITE)]
    core.stack.insert(entry_of(*rows, name="first", at="2"))
    before = [core.stack.list_identity(major) for major in range(256)]
    assert [major for major in range(256) if before[major]] == [api.IRP_MJ_CREATE, api.IRP_MJ_WRITE]
    second = entry_of((api.IRP_MJ_READ, go_on, None), (api.IRP_MJ_WRITE, go_on, None), name="second", at="1")
    core.stack.insert(second)
    after = [core.stack.list_identity(major) for major in range(256)]
    changed = [major for major in range(256) if before[major] != after[major]]
    assert changed == [api.IRP_MJ_READ, api.IRP_MJ_WRITE]
    assert after[api.IRP_MJ_CREATE] == before[api.IRP_MJ_CREATE] != 0
    assert not core.stack.registered(api.IRP_MJ_CLOSE) and after[api.IRP_MJ_CLOSE] == 0
    core.stack.remove(second)
    assert core.stack.drained()
    assert core.stack.list_identity(api.IRP_MJ_READ) == 0


@pytest.mark.parametrize("major", [api.IRP_MJ_POWER, api.IRP_MJ_DEVICE_CHANGE, -1, 256])
def test_what_cannot_be_registered(major: int) -> None:
    with pytest.raises(ValueError, match="cannot be registered"):
        entry_of((major, go_on, None))


def test_one_operation_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        entry_of((api.IRP_MJ_READ, go_on, None), (api.IRP_MJ_READ, None, go_on))


# ---- SKIP flags -----------------------------------------------------------------------------------------------------


PAGING, CACHED, DASD, NON_CACHED = (
    api.FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO,
    api.FLTFL_OPERATION_REGISTRATION_SKIP_CACHED_IO,
    api.FLTFL_OPERATION_REGISTRATION_SKIP_NON_DASD_IO,
    api.FLTFL_OPERATION_REGISTRATION_SKIP_NON_CACHED_NON_PAGING_IO,
)
OWN, WRITE_BACK = 2, 1  # FUSE's read_flags, write_flags: a program's own transfer; the page cache's


@pytest.mark.parametrize(
    ("what", "skipped_by"),
    [
        ("own read", {CACHED, DASD}),
        ("page fill", {PAGING, DASD}),
        ("direct read", {DASD, NON_CACHED}),
        ("own write", {CACHED, DASD}),
        ("write-back", {PAGING, DASD}),
        ("direct write", {DASD, NON_CACHED}),
        ("getattr", {CACHED, DASD}),  # offered as fast I/O
        ("lookup", {DASD}),
        ("open", {DASD}),
        ("cleanup", {DASD}),
    ],
)
def test_skip_flags(core: Volume, place: Path, what: str, skipped_by: set[int]) -> None:
    node = lookup(core, b"file")
    fh, direct = opened(core, node, os.O_RDWR), opened(core, node, os.O_RDWR | os.O_DIRECT)
    one = {"size": 1, "buffer": bytearray(1)}
    requests: dict[str, tuple[int, int, dict[str, Any]]] = {
        "own read": (READ, 1, {**one, "fh": fh, "open_flags": OWN}),
        "page fill": (READ, 1, {**one, "fh": fh}),
        "direct read": (READ, 1, {**one, "fh": direct, "open_flags": OWN}),
        "own write": (WRITE, 1, {**one, "fh": fh, "buffer": b"x"}),
        "write-back": (WRITE, 1, {**one, "fh": fh, "buffer": b"x", "open_flags": WRITE_BACK}),
        "direct write": (WRITE, 1, {**one, "fh": direct, "buffer": b"x"}),
        "getattr": (GETATTR, node, {}),
        "lookup": (LOOKUP, 1, {"name": b"file"}),
        "open": (OPEN, node, {}),
        "cleanup": (RELEASE, 1, {"fh": fh}),
    }
    opcode, nodeid, arguments = requests[what]
    seen: list[tuple[int, str]] = []
    for flags in range(16):

        def pre(data: Any, objects: object, flags: int = flags) -> int:
            seen.append((flags, "pre"))
            return FLT_PREOP_SUCCESS_WITH_CALLBACK

        def post(data: Any, objects: object, context: object, _: int, flags: int = flags) -> None:
            seen.append((flags, "post"))

        rows = [(major, pre, post) for major in {*model.MAJORS, api.IRP_MJ_WRITE} if major != api.IRP_MJ_CLOSE]
        core.stack.insert(entry_of(*rows, name=f"i{flags}", at=str(flags + 1), flags=flags))
    core.request(opcode, nodeid, **arguments).do()
    expected = [flags for flags in range(16) if not any(flags & each for each in skipped_by)]
    assert seen == [(flags, "pre") for flags in reversed(expected)] + [(flags, "post") for flags in expected]


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [False, True])
@pytest.mark.parametrize("where", ["pre", "post"])
@pytest.mark.parametrize(
    "callback",
    [
        *[raising(kind) for kind in (ValueError, Bare, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration)],
        answering("0"),
        answering((0, 1, 2)),
        answering(()),
        answering(1 << 70),
        answering(7),
        answering(-1),
        answering(2),
    ],
    ids=["ValueError", "Bare", "KeyboardInterrupt", "SystemExit", "GeneratorExit", "StopIteration", "text", "three",
         "nothing", "huge", "7", "-1", "pending"],
)  # fmt: skip
@pytest.mark.verifier_errors(
    "FLT_POSTOP_DISALLOW_FSFILTER_IO of what is no QUERY_OPEN",
    "let go of its data",
    "no status of a post callback",
    "no status of a pre callback",
)
def test_a_callback_that_errs_fails_its_operation_or_lets_it_by(
    core: Volume, place: Path, callback: Callable[..., Any], where: str, passes: bool
) -> None:
    host = Host()
    fh = opened(core, lookup(core, b"file"))
    above: list[int] = []

    def see(data: Any, *_: Any) -> None:
        above.append(data.status)

    core.stack.insert(entry_of((api.IRP_MJ_READ, go_on, see), name="above", at="2"))
    rows = (api.IRP_MJ_READ, callback, None) if where == "pre" else (api.IRP_MJ_READ, None, callback)
    entry = entry_of(rows, name="errs", host=host, passes=passes)
    core.stack.insert(entry)
    if passes:
        assert read(core, fh) == b"0123456789"
        assert above == [0]
    else:
        assert error_of(core, READ, fh=fh, size=1, buffer=bytearray(1)) == errno.EIO
        assert above == [api.STATUS_IO_DEVICE_ERROR]
    (told,) = host.told
    assert told[1:4] == (where, api.IRP_MJ_READ, "/file")  # which filter is the host's own knowledge
    assert entry.errors == 1 and not entry.failed
    assert lookup(core, b"folder")


@pytest.mark.parametrize("answer", [None, FLT_PREOP_COMPLETE])
@pytest.mark.verifier_errors("it completed the operation with STATUS_PENDING")
def test_a_pre_that_answers_nothing_or_completes_without_an_outcome(core: Volume, place: Path, answer: Any) -> None:
    """None is no pre status. COMPLETE with STATUS_PENDING, or STATUS_FLT_DISALLOW_FAST_IO, is no outcome (A6.5)."""

    def pre(data: Any, objects: object) -> Any:
        data.status = api.STATUS_PENDING
        return answer

    host = Host()
    core.stack.insert(entry_of((api.IRP_MJ_QUERY_OPEN, pre, None), host=host))
    assert error_of(core, LOOKUP, name=b"file") == errno.EIO
    assert len(host.told) == 1


@pytest.mark.verifier_errors("no status of a pre callback")
def test_what_a_callback_that_errs_had_changed_does_not_count(core: Volume, place: Path) -> None:
    """A6.13: names, offsets, outcomes, sizes and listings are as if it had not been called."""
    (place / "other").write_bytes(b"elsewhere")
    node, fh = lookup(core, b"file"), opened(core, lookup(core, b"file"))
    listing = core.request(OPENDIR, 1).do().fh

    def pre(data: Any, objects: object) -> int:
        if data.name:
            data.name = b"other"
        if data.major == api.IRP_MJ_READ:
            data.offset = 5
        data.status, data.information = STATUS_ACCESS_DENIED, 77
        data.set_dirty()
        raise ValueError

    def bad(data: Any, objects: object) -> int:
        if data.name:
            data.name = b"other"
        if data.major == api.IRP_MJ_READ:
            data.offset = 5
        data.set_dirty()
        return 99

    def post(data: Any, objects: object, context: object, flags: int) -> None:
        data.status, data.information = STATUS_ACCESS_DENIED, 77
        if data.major == api.IRP_MJ_NETWORK_QUERY_OPEN:
            data.size = 12345
        if data.major == api.IRP_MJ_DIRECTORY_CONTROL:
            data.status = 0
            data.entries = data.entries[:1]
            assert len(data.entries) == 1
        raise ValueError

    majors = (api.IRP_MJ_QUERY_OPEN, api.IRP_MJ_READ, api.IRP_MJ_NETWORK_QUERY_OPEN, api.IRP_MJ_DIRECTORY_CONTROL)
    core.stack.insert(entry_of(*[(major, pre, None) for major in majors], name="raises", at="3", passes=True))
    core.stack.insert(entry_of(*[(major, bad, None) for major in majors], name="bad", at="2", passes=True))
    core.stack.insert(entry_of(*[(major, None, post) for major in majors], name="post", at="1", passes=True))
    assert lookup(core, b"file") == node
    assert read(core, fh) == b"0123456789"
    assert core.request(GETATTR, node).do().stat[6] == 10
    assert names_of(core, listing) == {b".", b"..", b"file", b"folder", b"other"}


@pytest.mark.parametrize("passes", [False, True])
def test_after_a_hundred_errors(core: Volume, place: Path, passes: bool) -> None:
    """A6.13: `fail` stays and refuses what it registered, `pass` is passed by; both say once that it was too much."""
    host, calls = Host(), [0]

    def errs(data: Any, objects: object) -> int:
        calls[0] += 1
        raise ValueError

    node = lookup(core, b"file")
    fh = opened(core, node)
    entry = entry_of((api.IRP_MJ_READ, errs, None), (api.IRP_MJ_CLEANUP, errs, None), (api.IRP_MJ_CLOSE, errs, None),
                     host=host, passes=passes)  # fmt: skip
    core.stack.insert(entry)
    for number in range(ERROR_LIMIT + 20):
        assert entry.failed == (number >= ERROR_LIMIT)
        assert error_of(core, READ, fh=fh, size=1, buffer=bytearray(1)) == (0 if passes else errno.EIO)
    assert calls == [ERROR_LIMIT] and host.told.count(("limit",)) == 1 and entry.errors == ERROR_LIMIT
    assert error_of(core, GETATTR, node) == 0 and error_of(core, LOOKUP, name=b"folder") == 0
    assert error_of(core, RELEASE, fh=fh) == 0 and core.open_files == 0
    assert calls == [ERROR_LIMIT]


# ---- CLEANUP, CLOSE, and opens that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [False, True])
@pytest.mark.parametrize(
    "does", [raising(Bare), answering(99), lambda data, *_: data.complete(STATUS_ACCESS_DENIED)], ids=["r", "99", "c"]
)
@pytest.mark.verifier_errors("it failed a CLEANUP or CLOSE", "no status of a pre callback")
def test_cleanup_and_close_always_reach_the_base(
    core: Volume, place: Path, does: Callable[..., Any], passes: bool
) -> None:
    """And the program sees success. A COMPLETE hides them from the layers below (F2); an error does not."""
    node = lookup(core, b"file")
    fh = opened(core, node)
    below: list[int] = []
    above: list[tuple[int, int]] = []

    def see(data: Any, *_: Any) -> int:
        below.append(data.major)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def result(data: Any, objects: object, context: object, flags: int) -> None:
        above.append((data.major, data.status))
        data.status = STATUS_ACCESS_DENIED

    both = (api.IRP_MJ_CLEANUP, api.IRP_MJ_CLOSE)
    core.stack.insert(entry_of(*[(major, go_on, result) for major in both], name="above", at="3"))
    core.stack.insert(entry_of(*[(major, does, raising(Bare)) for major in both], name="does", at="2", passes=passes))
    core.stack.insert(entry_of(*[(major, see, None) for major in both], name="below", at="1"))
    descriptors = len(os.listdir("/proc/self/fd"))
    assert error_of(core, RELEASE, fh=fh) == 0
    assert core.open_files == 0 and len(os.listdir("/proc/self/fd")) == descriptors - 1
    completes = does(FakeComplete(), None) == FLT_PREOP_COMPLETE if does.__name__ == "<lambda>" else False
    assert below == ([] if completes else list(both))
    assert above == [(major, 0) for major in both]


class FakeComplete:
    def complete(self, status: int) -> int:
        return FLT_PREOP_COMPLETE


@pytest.mark.parametrize("how", ["status", "raises"])
@pytest.mark.parametrize(
    ("opcode", "arguments"),
    [
        (OPEN, {}),
        (OPENDIR, {}),
        (CREATE, {"name": b"new", "mode": 0o644, "flags": os.O_RDWR}),
        (MKDIR, {"name": b"new", "mode": 0o755}),
        (UNLINK, {"name": b"file"}),
    ],
    ids=["open", "opendir", "create", "mkdir", "unlink"],
)
def test_a_create_that_fails_after_the_fact_is_closed_below_the_one_who_failed_it(
    core: Volume, place: Path, opcode: int, arguments: dict[str, Any], how: str
) -> None:
    """A6.10. The layers above it saw it fail, and get no CLEANUP; nothing stays open; what was made stays."""
    trace: list[tuple[str, int, int]] = []

    def watcher(name: str) -> list[tuple[int, Callable[..., Any], Callable[..., Any]]]:
        def pre(data: Any, objects: object) -> int:
            return FLT_PREOP_SUCCESS_WITH_CALLBACK

        def post(data: Any, objects: object, context: object, flags: int) -> None:
            trace.append((name, data.major, data.status))

        return [(major, pre, post) for major in (api.IRP_MJ_CREATE, api.IRP_MJ_CLEANUP, api.IRP_MJ_CLOSE)]

    def fails(data: Any, objects: object, context: object, flags: int) -> None:
        if data.major == api.IRP_MJ_CREATE:
            if how == "raises":
                raise ValueError
            data.status = STATUS_ACCESS_DENIED
        trace.append(("fails", data.major, data.status))

    nodeid = lookup(core, b"file") if opcode == OPEN else 1
    known, descriptors = core.known_inodes, len(os.listdir("/proc/self/fd"))
    core.stack.insert(entry_of(*watcher("above"), name="above", at="3"))
    rows = [(major, go_on, fails) for major in (api.IRP_MJ_CREATE, api.IRP_MJ_CLEANUP, api.IRP_MJ_CLOSE)]
    core.stack.insert(entry_of(*rows, name="fails", at="2"))
    core.stack.insert(entry_of(*watcher("below"), name="below", at="1"))
    status = api.STATUS_IO_DEVICE_ERROR if how == "raises" else STATUS_ACCESS_DENIED
    number = errno.EIO if how == "raises" else errno.EACCES
    assert error_of(core, opcode, nodeid, **arguments) == number
    trace = [step for step in trace if step[0] != "fails" or step[1] != api.IRP_MJ_CREATE]
    assert trace == [
        ("below", api.IRP_MJ_CREATE, 0),
        ("above", api.IRP_MJ_CREATE, status),
        ("below", api.IRP_MJ_CLEANUP, 0),
        ("below", api.IRP_MJ_CLOSE, 0),
    ]
    assert core.open_files == 0 and core.known_inodes == known
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # an O_PATH descriptor may be kept for reuse
    assert (place / "new").exists() == (opcode in (CREATE, MKDIR))
    assert (place / "file").exists()


def test_an_open_whose_query_fails_is_closed_for_all(core: Volume, place: Path) -> None:
    """D3: the CREATE of a creat(2) has succeeded, so CLEANUP and CLOSE follow, though no handle reaches the program."""
    trace: list[int] = []

    def see(data: Any, *_: Any) -> int:
        trace.append(data.major)
        if data.major == api.IRP_MJ_QUERY_INFORMATION:
            return int(data.complete(STATUS_ACCESS_DENIED))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    order = [api.IRP_MJ_CREATE, api.IRP_MJ_QUERY_INFORMATION, api.IRP_MJ_CLEANUP, api.IRP_MJ_CLOSE]
    core.stack.insert(entry_of(*[(major, see, None) for major in order]))
    assert error_of(core, CREATE, name=b"new", mode=0o644, flags=os.O_RDWR) == errno.EACCES
    assert trace == order and core.open_files == 0


@pytest.mark.parametrize("opcode", [OPEN, CREATE, LOOKUP, MKDIR])
@pytest.mark.parametrize("where", ["pre", "post"])
def test_nobody_but_the_base_makes_an_inode(core: Volume, place: Path, opcode: int, where: str) -> None:
    """A6.5; the layers above see the error and not the success that was claimed."""
    nodeid = lookup(core, b"file") if opcode == OPEN else 1
    name = {} if opcode == OPEN else {"name": b"absent"}
    above: list[int] = []

    def see(data: Any, *_: Any) -> None:
        above.append(data.status)

    def claim(data: Any, *_: Any) -> int:
        data.status = 0
        return FLT_PREOP_COMPLETE if where == "pre" else api.FLT_POSTOP_FINISHED_PROCESSING

    majors = (api.IRP_MJ_CREATE, api.IRP_MJ_QUERY_OPEN)
    core.stack.insert(entry_of(*[(major, go_on, see) for major in majors], name="above", at="3"))
    rows = [(major, claim, None) if where == "pre" else (major, go_on, claim) for major in majors]
    core.stack.insert(entry_of(*rows, name="claims", at="2"))
    refuse = [(major, lambda data, _: data.complete(STATUS_ACCESS_DENIED), None) for major in majors]
    core.stack.insert(entry_of(*refuse, name="refuses", at="1"))
    assert error_of(core, opcode, nodeid, mode=0o644, flags=os.O_RDWR, **name) == errno.EIO
    assert above == [api.STATUS_IO_DEVICE_ERROR] and core.open_files == 0
    assert not (place / "absent").exists()


def test_handles_older_and_younger_than_an_instance(core: Volume, place: Path) -> None:
    """A3.5: it sees the CLEANUP of a CREATE it never saw; once out, it does not see the CLOSE of one it saw."""
    trace: list[int] = []

    def see(data: Any, *_: Any) -> int:
        trace.append(data.major)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    node = lookup(core, b"file")
    old = opened(core, node)
    majors = (api.IRP_MJ_CREATE, api.IRP_MJ_READ, api.IRP_MJ_CLEANUP, api.IRP_MJ_CLOSE)
    entry = entry_of(*[(major, see, None) for major in majors])
    core.stack.insert(entry)
    young = opened(core, node)
    assert read(core, old) == read(core, young) == b"0123456789"
    assert error_of(core, RELEASE, fh=old) == 0
    assert trace == [api.IRP_MJ_CREATE, api.IRP_MJ_READ, api.IRP_MJ_READ, api.IRP_MJ_CLEANUP, api.IRP_MJ_CLOSE]
    trace.clear()
    core.stack.remove(entry)
    assert core.stack.drained()
    assert read(core, young) == b"0123456789" and error_of(core, RELEASE, fh=young) == 0
    core.forget(node, 1)
    assert not trace and core.open_files == 0 and core.known_inodes == 1


def test_forget_reaches_the_base_whatever_is_attached(core: Volume, place: Path) -> None:
    core.stack.insert(entry_of(*[(major, raising(Bare), raising(Bare)) for major in (1, 2, 3, 18)]))
    node = lookup(core, b"file")
    assert core.known_inodes == 2
    core.forget(node, 1)
    assert core.known_inodes == 1
    assert error_of(core, GETATTR, node) == errno.ENOENT


# ---- an operation under way -----------------------------------------------------------------------------------------


def test_an_operation_that_stopped_at_the_base_goes_up_the_list_it_came_down(core: Volume, place: Path) -> None:
    """Its state lies in the operation: another thread may carry it on, and its instances live until it has ended."""
    trace: list[tuple[str, object]] = []

    def pair(name: str) -> tuple[int, Callable[..., Any], Callable[..., Any]]:
        def pre(data: Any, objects: object) -> Any:
            trace.append((name, "pre"))
            return FLT_PREOP_SUCCESS_WITH_CALLBACK, [name]

        def post(data: Any, objects: object, context: object, flags: int) -> None:
            trace.append((name, context))

        return api.IRP_MJ_FLUSH_BUFFERS, pre, post

    fh = opened(core, lookup(core, b"file"), os.O_RDWR)
    old, gone = entry_of(pair("old"), name="old", at="1"), entry_of(pair("gone"), name="gone", at="2")
    core.stack.insert(old)
    core.stack.insert(gone)
    request = core.request(FSYNC, fh=fh, nowait=True)
    assert not request.run()
    assert trace == [("gone", "pre"), ("old", "pre")]
    core.stack.remove(gone)
    core.stack.insert(entry_of(pair("new"), name="new", at="3"))
    assert not core.stack.drained()
    still = weakref.ref(gone.object)
    del gone
    assert still() is not None

    def carry_on() -> None:
        request.wait()
        assert request.run()

    thread = threading.Thread(target=carry_on)
    thread.start()
    thread.join()
    assert request.error == 0 and trace[2:] == [("old", ["old"]), ("gone", ["gone"])]
    assert core.stack.drained()
    assert still() is None
    trace.clear()
    core.request(FSYNC, fh=fh).do()
    assert trace == [("new", "pre"), ("old", "pre"), ("old", ["old"]), ("new", ["new"])]


def test_a_request_that_is_given_up_at_the_base_lets_its_list_go(core: Volume, place: Path) -> None:
    """Its posts are called, as cancelled, and a detach does not wait for ever."""
    trace: list[tuple[object, int]] = []

    def pre(data: Any, objects: object) -> Any:
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, "context"

    def post(data: Any, objects: object, context: object, flags: int) -> None:
        trace.append((context, data.status))

    fh = opened(core, lookup(core, b"file"), os.O_RDWR)
    entry = entry_of((api.IRP_MJ_FLUSH_BUFFERS, pre, post))
    core.stack.insert(entry)
    request = core.request(FSYNC, fh=fh, nowait=True)
    assert not request.run()
    core.stack.remove(entry)
    assert not core.stack.drained()
    del request
    assert trace == [("context", api.STATUS_CANCELLED)] and core.stack.drained()
    assert error_of(core, RELEASE, fh=fh) == 0 and core.open_files == 0


# ---- threads --------------------------------------------------------------------------------------------------------


def test_instances_come_and_go_while_operations_run(core: Volume, place: Path) -> None:
    """No operation is lost, none sees a post without its pre, and in the end nothing is left of a replaced list."""
    node = lookup(core, b"file")
    end = threading.Event()
    wrong: list[str] = []
    counted = [0, 0, 0]

    def pre(data: Any, objects: object) -> Any:
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, objects

    def post(data: Any, objects: object, context: object, flags: int) -> None:
        if context is not objects:
            wrong.append("a post without its pre")

    def work(who: int) -> None:
        while not end.is_set():
            fh = opened(core, node)
            if read(core, fh) != b"0123456789" or error_of(core, RELEASE, fh=fh):
                wrong.append("an operation was lost")
            counted[who] += 1

    threads = [threading.Thread(target=work, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    majors = (api.IRP_MJ_CREATE, api.IRP_MJ_READ, api.IRP_MJ_CLEANUP, api.IRP_MJ_CLOSE)
    entries: list[InstanceEntry] = []
    try:
        for turn in itertools.count():
            if turn >= 2000 and min(counted) > 50:
                break
            time.sleep(0)  # lets the others run
            entry = entry_of(*[(major, pre, post) for major in majors], name=f"i{turn}", at=str(turn % 97 + 1))
            core.stack.insert(entry)
            entries.append(entry)
            if len(entries) > 5:
                core.stack.remove(entries.pop(turn % 5))
            core.stack.drained()
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert core.stack.drained() and core.open_files == 0
