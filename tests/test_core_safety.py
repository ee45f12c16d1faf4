"""What must hold in the core whoever does what: handles released while in use, deep and circular names, callbacks that
claim too much, requests that are dropped. One thread, no mount."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackfs.cext.callback_data import CallbackData, MajorFunction, PreopStatus
from stackfs.cext.python_requests import Request, VfsError, Volume
from stackfs.cext.stack import InstanceEntry

LOOKUP, GETATTR, READLINK, MKDIR, UNLINK, OPEN, READ, WRITE, STATFS, RELEASE = 1, 3, 5, 9, 10, 14, 15, 16, 17, 18
FSYNC, LISTXATTR, OPENDIR, RELEASEDIR, CREATE, READDIRPLUS = 20, 23, 27, 29, 35, 44
STATUS_ACCESS_DENIED = 0xC0000022


class Host:
    """Keeps what the stack tells about its callbacks."""

    def __init__(self) -> None:
        self.raised: list[BaseException] = []
        self.misused: list[int] = []

    def callback_raised(self, routine: str, major: int, path: str, error: BaseException) -> None:
        self.raised.append(error)

    def callback_misused(self, routine: str, major: int, path: str, status: int) -> None:
        self.misused.append(status)

    def error_limit_reached(self) -> None: ...


def attach(volume: Volume, altitude: str, *callbacks: tuple[str, Callable[..., Any] | None, Callable[..., Any] | None]
           ) -> Host:  # fmt: skip
    host = Host()
    registered = [(MajorFunction[f"IRP_MJ_{name}"], 0, pre, post) for name, pre, post in callbacks]
    volume.stack.insert(InstanceEntry(host, f"at {altitude}", altitude, "test", callbacks=registered))
    return host


def go_on(data: CallbackData, objects: Any) -> int:
    return PreopStatus.FLT_PREOP_SUCCESS_WITH_CALLBACK


def lookup(volume: Volume, name: bytes, parent: int = 1) -> int:
    return volume.request(LOOKUP, parent, name=name).do().nodeid


def opened(volume: Volume, name: bytes, flags: int = os.O_RDWR) -> int:
    return volume.request(OPEN, lookup(volume, name), flags=flags).do().fh


# ---- handles ----

def test_a_read_under_way_when_its_file_is_released_reads_that_file(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "other").write_bytes(b"other")
    fh = opened(core, b"mine")
    other = lookup(core, b"other")
    others: list[int] = []

    def release(data: CallbackData, objects: Any) -> int:
        if not others:
            core.request(RELEASE, fh=fh).do()
            others.extend(core.request(OPEN, other, flags=os.O_RDONLY).do().fh for _ in range(4))  # would get its fd
            assert data.path == "/mine"
        return PreopStatus.FLT_PREOP_SUCCESS_NO_CALLBACK

    host = attach(core, "1000", ("READ", release, None))
    read = core.request(READ, fh=fh, size=100).receiving(100).do()
    assert read.result() == b"mine"
    assert not host.raised
    assert core.open_files == 4


def test_a_handle_is_released_once(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    fh = opened(core, b"file")
    core.request(RELEASE, fh=fh).do()
    assert core.open_files == 0
    for opcode in (RELEASE, READ, FSYNC, READDIRPLUS):
        with pytest.raises(VfsError) as failure:
            core.request(opcode, fh=fh, size=1).receiving(10).do()
        assert failure.value.errno == errno.EBADF


def test_a_release_within_a_release_finds_nothing(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    fh = opened(core, b"file")
    errors: list[int] = []

    def again(data: CallbackData, objects: Any) -> int:
        request = core.request(RELEASE, fh=fh)
        request.run()
        errors.append(request.error)
        return PreopStatus.FLT_PREOP_SUCCESS_NO_CALLBACK

    attach(core, "1000", ("CLEANUP", again, None), ("CLOSE", again, None))
    core.request(RELEASE, fh=fh).do()
    assert errors == [errno.EBADF] * 2
    assert core.open_files == 0


class Entry:
    st_ino = 0


def test_two_listings_of_one_handle_do_not_share_what_was_read_ahead(core: Volume, tmp_path: Path) -> None:
    names = {b"%03d" % number for number in range(50)}
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    fh = core.request(OPENDIR).do().fh
    inner: list[bytes] = []
    outer: list[bytes] = []

    def emit(name: bytes, entry: Entry, following: int) -> bool:
        outer.append(name)
        if len(outer) == 10:
            nested = core.request(READDIRPLUS, fh=fh)
            nested.list_directory(lambda name, entry, following: inner.append(name) or True, Entry)
        return True

    core.request(READDIRPLUS, fh=fh).list_directory(emit, Entry)
    assert set(outer) == set(inner) == names | {b".", b".."}


def test_a_directory_released_while_it_is_listed(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"")
    fh = core.request(OPENDIR).do().fh
    seen: list[bytes] = []

    def emit(name: bytes, entry: Entry, following: int) -> bool:
        if not seen:
            core.request(RELEASEDIR, fh=fh).do()
        seen.append(name)
        return True

    core.request(READDIRPLUS, fh=fh).list_directory(emit, Entry)
    assert sorted(seen) == [b".", b"..", b"a", b"b"]


# ---- names ----

def test_a_tree_deeper_than_the_stack(tmp_path: Path) -> None:
    """Node descriptors are reopened by the way from the root; that must not need a stack as deep as the tree."""
    depth = 600
    volume = Volume(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), descriptor_limit=8)
    wrong: list[BaseException] = []

    def descend() -> None:
        try:
            node = 1
            for _ in range(depth):
                node = volume.request(MKDIR, node, name=b"d", mode=0o755).do().nodeid
            for number in range(20):                    # drives the deep descriptors out
                volume.request(OPENDIR, volume.request(MKDIR, name=b"%d" % number, mode=0o755).do().nodeid).do()
            deepest = volume.request(OPENDIR, node).do()
            assert deepest.fh
            volume.request(MKDIR, node, name=b"last", mode=0o755).do()
            assert volume.cached_descriptors <= 8 + 64
        except BaseException as error:
            wrong.append(error)

    before = threading.stack_size(256 * 1024)
    thread = threading.Thread(target=descend)
    thread.start()
    thread.join()
    threading.stack_size(before)
    volume.close()
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)
    assert not wrong, wrong


def test_names_that_lead_in_a_circle(tmp_path: Path) -> None:
    """Moved about beside the mount, two directories are each known as the other's child."""
    volume = Volume(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), descriptor_limit=1)
    (tmp_path / "a/b").mkdir(parents=True)
    a = lookup(volume, b"a")
    b = lookup(volume, b"b", a)
    os.rename(tmp_path / "a/b", tmp_path / "b")
    os.rename(tmp_path / "a", tmp_path / "b/a")
    assert lookup(volume, b"b") == b
    assert lookup(volume, b"a", b) == a
    os.rename(tmp_path / "b", tmp_path / "elsewhere")
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
        volume.request(OPENDIR, lookup(volume, b"%d" % number)).do()
    for node in (a, b):
        with pytest.raises(VfsError) as failure:
            volume.request(OPENDIR, node).do()
        assert failure.value.errno == errno.ESTALE
    volume.close()


# ---- callbacks ----

def test_a_failed_open_is_closed_below(core: Volume, tmp_path: Path) -> None:
    """For an OPEN as for a CREATE: who saw it opened sees it closed."""
    (tmp_path / "file").write_bytes(b"")
    seen: list[str] = []

    def note(data: CallbackData, objects: Any) -> int:
        seen.append(MajorFunction(data.major).name.removeprefix("IRP_MJ_"))
        return PreopStatus.FLT_PREOP_SUCCESS_NO_CALLBACK

    def refuse(data: CallbackData, objects: Any, context: Any, flags: int) -> None:
        data.status = STATUS_ACCESS_DENIED

    attach(core, "2000", ("CREATE", go_on, refuse), ("CLEANUP", note, None))
    attach(core, "1000", ("CREATE", note, None), ("CLEANUP", note, None), ("CLOSE", note, None))
    for make in (lambda: core.request(OPEN, lookup(core, b"file"), flags=os.O_RDONLY),
                 lambda: core.request(OPENDIR, 1),
                 lambda: core.request(CREATE, name=b"new", mode=0o644, flags=os.O_RDWR)):
        seen.clear()
        with pytest.raises(VfsError) as failure:
            make().do()
        assert failure.value.errno == errno.EACCES
        assert seen == ["CREATE", "CLEANUP", "CLOSE"]
    assert core.open_files == 0


def test_the_instance_that_failed_an_open_may_be_gone_before_it_is_closed(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    node = lookup(core, b"file")
    done: list[bool] = []

    def refuse(data: CallbackData, objects: Any, context: Any, flags: int) -> None:
        data.status = STATUS_ACCESS_DENIED
        core.stack.remove(next(one for one in core.stack.entries if one.altitude == b"2000"))

    def below(data: CallbackData, objects: Any) -> int:
        done.append(core.stack.drained())
        return PreopStatus.FLT_PREOP_SUCCESS_NO_CALLBACK

    attach(core, "1000", ("CLEANUP", below, None))
    attach(core, "2000", ("CREATE", go_on, refuse))
    with pytest.raises(VfsError):
        core.request(OPEN, node, flags=os.O_RDONLY).do()
    assert done == [False]
    assert core.stack.drained()


@pytest.mark.verifier_errors("no status of a pre callback")
def test_changes_of_a_callback_that_returns_nonsense_do_not_count(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    fh = opened(core, b"file")
    seen: list[int] = []

    def nonsense(data: CallbackData, objects: Any) -> int:
        data.offset = 5
        data.set_dirty()
        return 77

    def above(data: CallbackData, objects: Any, context: Any, flags: int) -> None:
        seen.append(data.offset)

    attach(core, "2000", ("READ", go_on, above))
    host = attach(core, "1000", ("READ", nonsense, None))
    with pytest.raises(VfsError):
        core.request(READ, fh=fh, size=10).receiving(10).do()
    assert host.misused == [77]
    assert seen == [0]


def test_what_a_callback_claims_is_never_more_than_there_is(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    os.symlink("target", tmp_path / "link")
    fh = opened(core, b"file")
    directory = core.request(OPENDIR).do().fh
    found: list[Any] = []

    def claim(data: CallbackData, objects: Any, context: Any, flags: int) -> None:
        data.information = 1 << 40
        if data.major == MajorFunction.IRP_MJ_DIRECTORY_CONTROL:
            found.extend(data.entries)

    attach(core, "1000", *[(name, go_on, claim) for name in ("READ", "DIRECTORY_CONTROL", "FILE_SYSTEM_CONTROL")])
    for request in (core.request(READ, fh=fh, size=8).receiving(8),
                    core.request(READLINK, lookup(core, b"link")).receiving(50)):
        request.run()
        assert (request.error, request.length) == (errno.EIO, 0)
    names: list[bytes] = []
    request = core.request(READDIRPLUS, fh=directory)
    request.list_directory(lambda name, entry, following: names.append(name) or len(names) < 20, Entry)
    assert {b"file", b"link"} <= {entry.name for entry in found}
    assert request.error == errno.EIO
    assert not names


def test_a_transfer_is_as_long_as_its_buffer(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    fh = opened(core, b"file")
    for opcode, buffer in ((WRITE, b"four"), (READ, bytearray(2))):
        with pytest.raises(ValueError, match="shorter"):
            core.request(opcode, fh=fh, size=1 << 20, buffer=buffer).run()
    assert (tmp_path / "file").read_bytes() == b""
    with pytest.raises(VfsError) as failure:
        core.request(STATFS, buffer=bytearray(8)).do()
    assert failure.value.errno == errno.EINVAL


def test_the_size_of_a_list_is_asked_without_room_for_it(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.setxattr(tmp_path / "file", "user.name", b"value")
    request = core.request(LISTXATTR, lookup(core, b"file"), uid=1000).receiving(0).do()
    assert request.length == len("user.name") + 1


# ---- requests and volumes ----

def test_a_request_dropped_while_it_waits_holds_nothing(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    fh = opened(core, b"file")
    posts: list[int] = []

    def post(data: CallbackData, objects: Any, context: Any, flags: int) -> None:
        posts.append(data.status)

    attach(core, "1000", ("FLUSH_BUFFERS", go_on, post))
    request = core.request(FSYNC, fh=fh, nowait=True)
    assert not request.run()
    del request
    assert posts == [0xC0000120]                        # STATUS_CANCELLED
    core.request(RELEASE, fh=fh).do()
    core.stack.remove(core.stack.entries[0])
    assert core.stack.drained()
    assert core.open_files == 0


def test_a_request_runs_in_one_thread_at_a_time(core: Volume, tmp_path: Path) -> None:
    errors: list[BaseException] = []
    running: list[Request] = []

    def again(data: CallbackData, objects: Any) -> int:
        try:
            running[0].run()
        except RuntimeError as error:
            errors.append(error)
        return PreopStatus.FLT_PREOP_SUCCESS_NO_CALLBACK

    attach(core, "1000", ("NETWORK_QUERY_OPEN", again, None))
    running.append(core.request(GETATTR))
    running[0].do()
    assert len(errors) == 1
    with pytest.raises(RuntimeError):
        running[0].wait()


def test_a_closed_volume_says_so(tmp_path: Path) -> None:
    volume = Volume(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    request = volume.request(GETATTR)
    volume.close()
    volume.close()
    for use in (lambda: volume.open_files, lambda: volume.known_inodes, lambda: volume.cached_descriptors,
                volume.known, lambda: volume.forget(1, 1), lambda: volume.request(GETATTR), request.run):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_known_names_and_inodes(core: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "open").write_bytes(b"")
    one = lookup(core, b"file")
    two = lookup(core, b"open")
    core.request(OPEN, two, flags=os.O_RDONLY).do()
    files, others, names = core.known()
    assert files == [two]
    assert others == [one]
    assert sorted(names) == [(1, b"file"), (1, b"open")]
