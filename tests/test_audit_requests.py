"""What audit records of each request: driven without a mount, through the same stack and callbacks."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stack_driver import entry_of

from stackfs.api import (
    DELETE,
    FLT_PREOP_DISALLOW_FASTIO,
    FLT_PREOP_DISALLOW_FSFILTER_IO,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    IRP_MJ_CREATE,
    IRP_MJ_NETWORK_QUERY_OPEN,
    IRP_MJ_QUERY_INFORMATION,
    IRP_MJ_QUERY_OPEN,
    IRP_MJ_READ,
    IRP_MJ_WRITE,
    STATUS_ACCESS_DENIED,
)
from stackfs.benchmarks.request_cost import time_reads
from stackfs.cext.python_requests import VfsError, Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.filters.audit import _callbacks, records, trail
from stackfs.filters.audit import verify as verifying

MODE, SIZE, MTIME, FH = 1, 8, 32, 64  # FATTR_*
RENAME_EXCHANGE = 2
ME = {"tid": threading.get_native_id(), "uid": 1234, "gid": 5678}
OP = {name: number for number, name in records.OPERATIONS.items()}


class Audited:
    """A volume with audit attached, and what its trail has."""

    def __init__(self, volume: Volume, top: Path, watch: str = "all", **settings: Any) -> None:
        self.volume = volume
        self.opened = trail.open_trail(str(top / "trail"), str(top / "key"), trail.Settings(sync=False, **settings))
        mask = records.watch_mask(watch)
        self.entry = InstanceEntry(
            self, "audit", "385200", "audit", native=_callbacks.operations(records.watched_majors(mask))
        )
        self.watch = _callbacks.Watch(self.entry, self.opened.trail, mask)
        volume.stack.insert(self.entry)
        self.top = top

    def __call__(self, operation: str, nodeid: int = 1, **arguments: Any) -> Any:
        return self.volume.request(OP[operation], nodeid, **ME, **arguments).do()

    def end(self) -> list[records.Record]:
        """Detaches; the records of the requests."""
        if self.entry in self.volume.stack.entries:
            self.volume.stack.remove(self.entry)
            while not self.volume.stack.drained():
                time.sleep(0.001)
            self.watch.release()
            assert self.opened.close()
        return [each for each in records.read_trail(str(self.top / "trail")) if each.kind == records.REQUEST]


@pytest.fixture
def audited(core: Volume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    made = Audited(core, tmp_path_factory.mktemp("audited"))
    yield made
    made.end()


def brief(each: records.Record) -> tuple[object, ...]:
    fields = each.fields
    return (each.operation, each.path.decode(), fields["other"].decode(), fields["offset"], fields["length"],
            each.status_name)  # fmt: skip


def test_one_record_for_each_kind_of_request(audited: Audited) -> None:
    """All of docs/semantics.md D, in order; what fails in the first of its operations counts once as well."""
    do = audited
    expected: list[tuple[object, ...]] = []

    def did(operation: str, path: str, other: str = "", offset: int = -1, length: int = 0, outcome: str = "") -> None:
        expected.append((operation, path, other, offset, length, outcome))

    directory = do("mkdir", name=b"d", mode=stat.S_IFDIR | 0o755).nodeid
    did("mkdir", "/d")
    created = do("create", directory, name=b"f", flags=os.O_RDWR, mode=0o644)
    did("create", "/d/f")
    file, fh = created.nodeid, created.fh
    do("write", file, fh=fh, offset=3, size=5, buffer=b"hello")
    did("write", "/d/f", offset=3, length=5)
    do("read", file, fh=fh, offset=2, size=100, buffer=bytearray(100))
    did("read", "/d/f", offset=2, length=100)
    do("fsync", file, fh=fh)
    did("fsync", "/d/f")
    do("getattr", file)
    did("getattr", "/d/f")
    do("getattr", file, flags=1, fh=fh)
    did("getattr", "/d/f")
    do("statx", file)
    did("statx", "/d/f")
    do("setattr", file, valid=MODE, mode=stat.S_IFREG | 0o600)
    did("setattr", "/d/f")
    do("setattr", file, valid=SIZE, size=77)
    did("setattr", "/d/f", length=77)
    do("setattr", file, valid=MODE | SIZE | MTIME | FH, mode=stat.S_IFREG | 0o644, size=7, mtime=5, fh=fh)
    did("setattr", "/d/f")
    do("access", file, mode=os.R_OK)
    did("access", "/d/f")
    do("lookup", directory, name=b"f")
    did("lookup", "/d/f")
    with pytest.raises(VfsError):
        do("lookup", directory, name=b"none")
    did("lookup", "/d/none", outcome="ENOENT")
    do("symlink", directory, name=b"s", name2=b"target")
    did("symlink", "/d/s")
    link = do("lookup", directory, name=b"s").nodeid
    did("lookup", "/d/s")
    do("readlink", link, buffer=bytearray(100))
    did("readlink", "/d/s")
    do("mknod", directory, name=b"p", mode=stat.S_IFIFO | 0o600)
    did("mknod", "/d/p")
    do("link", 1, name=b"", nodeid2=file, name2=b"hard")
    did("link", "/d/f", "/hard")
    do("setxattr", file, name=b"user.a", buffer=b"1")
    did("setxattr", "/d/f")
    do("getxattr", file, name=b"user.a", buffer=bytearray(10))
    did("getxattr", "/d/f")
    do("listxattr", file, buffer=bytearray(100))
    did("listxattr", "/d/f")
    do("removexattr", file, name=b"user.a")
    did("removexattr", "/d/f")
    do("rename", directory, name=b"p", nodeid2=1, name2=b"q")
    did("rename", "/d/p", "/q")
    do("rename2", directory, name=b"s", nodeid2=1, name2=b"q", flags=RENAME_EXCHANGE)
    did("rename", "/d/s", "/q")
    with pytest.raises(VfsError):
        do("rmdir", name=b"d")
    did("rmdir", "/d", outcome="ENOTEMPTY")
    with pytest.raises(VfsError):
        do("unlink", directory, name=b"none")
    did("unlink", "/d/none", outcome="ENOENT")
    audited.volume.request(OP["statfs"], **ME).for_statistics().do()
    did("statfs", "/")
    opened = do("opendir", directory).fh
    did("opendir", "/d")
    names: list[bytes] = []
    listing = audited.volume.request(OP["readdirplus"], directory, fh=opened, **ME)
    listing.list_directory(lambda name, entry, following: names.append(name) or True, SimpleNamespace)
    assert sorted(names) == [b".", b"..", b"f", b"s"]
    did("readdir", "/d")
    do("fsyncdir", directory, fh=opened)
    did("fsyncdir", "/d")
    do("releasedir", directory, fh=opened)
    did("releasedir", "/d")
    do("unlink", name=b"q")
    did("unlink", "/q")
    do("release", file, fh=fh)
    did("release", "/d/f")
    again = do("open", file, flags=os.O_RDONLY).fh
    did("open", "/d/f")
    do("release", file, fh=again)
    did("release", "/d/f")

    found = audited.end()
    shown = [brief(each) for each in found]
    hard = {"/hard": "/d/f"}  # a file's last name is whichever of the two it was reached by
    assert [(a, hard.get(str(b), b), *rest) for a, b, *rest in shown] == [tuple(each) for each in expected]
    for number, each in enumerate(found):
        fields = each.fields
        assert {name: fields[name] for name in ME} == ME and fields["pid"] == os.getpid()
        assert fields["comm"] == Path("/proc/thread-self/comm").read_bytes().strip()
        assert abs(each.time - time.time_ns()) < 60e9 and fields["duration"] < 60e9
        assert each.flags == 0 and (number == 0 or each.sequence > found[number - 1].sequence)
        assert (fields["errno"] != 0) == (each.status_name != "") == (fields["status"] < 0)
    assert len({each.fields["request"] for each in found}) == len(found)
    moved = {each.operation: each.fields["information"] for each in found if each.operation in ("read", "write")}
    assert moved == {"read": 6, "write": 5}
    assert next(each for each in found if each.operation == "create").fields["argument"] & os.O_CREAT


def test_paths_after_renames_and_without_a_name(audited: Audited) -> None:
    directory = audited("mkdir", name=b"a", mode=stat.S_IFDIR | 0o755).nodeid
    created = audited("create", directory, name=b"f", flags=os.O_RDWR, mode=0o644)

    def read() -> None:
        audited("read", created.nodeid, fh=created.fh, size=1, buffer=bytearray(1))

    read()
    audited("rename", name=b"a", nodeid2=1, name2=b"b")
    read()
    audited("rename", directory, name=b"f", nodeid2=1, name2=b"g (deleted)")
    read()
    audited("unlink", name=b"g (deleted)")
    read()
    audited("release", created.nodeid, fh=created.fh)
    found = [(each.path, each.flags) for each in audited.end() if each.operation in ("read", "release")]
    gone = records.PATH_DELETED
    assert found == [(b"/a/f", 0), (b"/b/f", 0), (b"/g (deleted)", 0), (b"/g (deleted)", gone), (b"/g (deleted)", gone)]


def test_a_path_too_long_for_a_record_is_its_last_part(audited: Audited) -> None:
    node = 1
    for _ in range(17):
        node = audited("mkdir", node, name=b"n" * 250, mode=stat.S_IFDIR | 0o755).nodeid
    audited("lookup", 1, name=b"n" * 250)
    last = [each for each in audited.end() if each.operation == "mkdir"][-1]
    assert (last.path, last.flags) == (b"n" * 250, records.PATH_PARTIAL)


@pytest.mark.parametrize(
    ("watch", "seen"),
    [
        ("all", ["create", "write", "release", "open", "release", "unlink"]),
        ("data", ["create", "write", "release", "open", "release"]),
        ("changes", ["create", "write", "open", "unlink"]),
        ("names", ["create", "unlink"]),
        ("write", ["write"]),
        ("all -write -release", ["create", "open", "unlink"]),
    ],
)
def test_only_what_is_watched(
    core: Volume, tmp_path_factory: pytest.TempPathFactory, watch: str, seen: list[str]
) -> None:
    audited = Audited(core, tmp_path_factory.mktemp("audited"), watch)
    created = audited("create", name=b"f", flags=os.O_WRONLY, mode=0o644)
    audited("write", created.nodeid, fh=created.fh, size=1, buffer=b"x")
    audited("release", created.nodeid, fh=created.fh)
    truncating = audited("open", created.nodeid, flags=os.O_WRONLY | os.O_TRUNC)
    audited("release", created.nodeid, fh=truncating.fh)
    audited("unlink", name=b"f")
    assert [each.operation for each in audited.end()] == seen


def test_what_no_filter_sees_cannot_be_watched() -> None:
    for name in ("flush", "forget", "poll", "syncfs"):
        with pytest.raises(ValueError, match="no filter sees"):
            records.watch_mask(name)
    for name in ("getlk", "setlk", "setlkw"):
        with pytest.raises(ValueError, match="not recorded"):
            records.watch_mask(name)
    assert not records.watch_mask("all") & (1 << OP["setlk"] | 1 << OP["flush"])


def requests_of_every_kind(do: Audited) -> None:
    """Successes and failures, by path and by handle, refused by the base and by the filter below."""

    def attempt(operation: str, nodeid: int = 1, **arguments: Any) -> None:
        with contextlib.suppress(VfsError):
            do(operation, nodeid, **arguments)

    directory = do("mkdir", name=b"d", mode=stat.S_IFDIR | 0o755).nodeid
    made = do("create", directory, name=b"f", flags=os.O_RDWR, mode=0o644)
    file, fh = made.nodeid, made.fh
    for size in (5, 50):
        do("write", file, fh=fh, offset=size, size=size, buffer=b"x" * size)
    do("read", file, fh=fh, size=100, buffer=bytearray(100))
    do("fsync", file, fh=fh)
    for operation in ("getattr", "statx"):
        do(operation, file)
        do(operation, file, flags=1, fh=fh)
    for valid in (MODE, SIZE, MTIME, MODE | SIZE | MTIME, 0):
        do("setattr", file, valid=valid, mode=stat.S_IFREG | 0o600, size=77, mtime=5)
        do("setattr", file, valid=valid | FH, mode=stat.S_IFREG | 0o644, size=70, mtime=5, fh=fh)
    do("access", file, mode=os.R_OK)
    for name in (b"f", b"none"):
        attempt("lookup", directory, name=name)
        attempt("open", file, flags=os.O_RDONLY | os.O_DIRECTORY)
        attempt("mkdir", directory, name=name, mode=stat.S_IFDIR | 0o755)
    do("symlink", directory, name=b"s", name2=b"target")
    link = do("lookup", directory, name=b"s").nodeid
    do("readlink", link, buffer=bytearray(100))
    do("mknod", directory, name=b"p", mode=stat.S_IFIFO | 0o600)
    do("link", 1, name=b"", nodeid2=file, name2=b"hard")
    attempt("link", 1, name=b"", nodeid2=directory, name2=b"no")
    for name in (b"user.a", b"security.a"):
        attempt("setxattr", file, name=name, buffer=b"1")
        attempt("getxattr", file, name=name, buffer=bytearray(10))
        attempt("removexattr", file, name=name)
        attempt("removexattr", file, name=name)
    do("listxattr", file, buffer=bytearray(100))
    do("rename", directory, name=b"p", nodeid2=1, name2=b"q")
    do("rename2", directory, name=b"s", nodeid2=1, name2=b"q", flags=RENAME_EXCHANGE)
    for operation, name in (("rmdir", b"d"), ("unlink", b"none"), ("unlink", b"q"), ("unlink", b"guarded"),
                            ("rename", b"guarded")):  # fmt: skip
        attempt(operation, name=name, nodeid2=1, name2=b"r")
    do.volume.request(OP["statfs"], **ME).for_statistics().do()
    opened = do("opendir", directory).fh
    listing = do.volume.request(OP["readdirplus"], directory, fh=opened, **ME)
    listing.list_directory(lambda name, entry, following: True, SimpleNamespace)
    do("fsyncdir", directory, fh=opened)
    do("releasedir", directory, fh=opened)
    unnamed = do("tmpfile", name=b"/", flags=os.O_RDWR, mode=stat.S_IFREG | 0o600).fh
    do("lseek", file, fh=fh, offset=1, flags=os.SEEK_DATA)
    attempt("lseek", file, fh=fh, offset=1 << 40, flags=os.SEEK_DATA)
    for mode in (0, 3):
        do("fallocate", file, fh=fh, offset=0, size=4096, mode=mode)
    for copy in ("copy_file_range", "copy_file_range_64"):
        attempt(copy, file, fh=fh, offset=0, nodeid2=file, fh2=unnamed, offset2=0, size=10)
    for command in (0x80086601, 0x5401):
        attempt("ioctl", file, fh=fh, command=command, size=4, buffer=bytearray(4))
    truncating = do("open", file, flags=os.O_WRONLY | os.O_TRUNC).fh
    for each in (fh, unnamed, truncating):
        do("release", file, fh=each)


NAMES = sorted(set(records.NAMES) - set(records.SAME_NAME) - records.NO_OPERATION - records.NOT_RECORDED)


@pytest.mark.parametrize("slowly", [False, True], ids=["fast", "slow"])
def test_watching_one_request_records_what_watching_all_does(tmp_path: Path, slowly: bool) -> None:
    """What an instance registers follows from what it watches (A2.6), and nothing is missed by that: neither where a
    filter below refuses an operation that comes before the one that stands for the request, nor where queries are
    refused as fast I/O and come again in the long way."""

    def guard(data: Any, objects: object) -> int:
        if data.major == IRP_MJ_CREATE:
            guarded = data.desired_access & DELETE and data.name == b"guarded"
            return int(data.complete(STATUS_ACCESS_DENIED)) if guarded else FLT_PREOP_SUCCESS_NO_CALLBACK
        if not slowly or not (data.is_fast_io or data.major == IRP_MJ_QUERY_OPEN):
            return FLT_PREOP_SUCCESS_NO_CALLBACK
        return FLT_PREOP_DISALLOW_FSFILTER_IO if data.major == IRP_MJ_QUERY_OPEN else FLT_PREOP_DISALLOW_FASTIO

    majors = (IRP_MJ_CREATE, IRP_MJ_QUERY_OPEN, IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_QUERY_INFORMATION)

    def trail_of(watch: str) -> list[tuple[object, ...]]:
        top = tmp_path / watch.replace(" ", "")
        (top / "volume").mkdir(parents=True)
        (top / "volume" / "guarded").write_bytes(b"x")
        volume = Volume(os.open(top / "volume", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        audited = Audited(volume, top, watch)
        volume.stack.insert(entry_of(*((major, guard, None) for major in majors), name="guard", at="1"))
        requests_of_every_kind(audited)
        found = audited.end()
        volume.close()
        return [shown(each) for each in found]

    def shown(each: records.Record) -> tuple[object, ...]:
        """All of it that is the same each time: not the number of a file without a name, nor whether a copy was made,
        which an instance on READ may prevent (D14)."""
        operation, path, other, offset, length, outcome = brief(each)
        outcome = "" if operation == "copy_file_range" else outcome
        path = re.sub(r"#\d+", "#", str(path))
        return operation, path, other, offset, length, outcome, each.fields["argument"], each.flags

    everything = trail_of("all")
    assert {str(each[0]) for each in everything} == set(NAMES)
    for name in NAMES:
        found = trail_of(name)
        expected = [each for each in everything if each[0] == name]
        if name in ("lookup", "open"):
            assert len(expected) > 2
        assert found == expected, name


def test_a_trail_without_data_registers_neither_reads_nor_writes() -> None:
    for watch in ("names", "create unlink", "setattr", "all -read -write"):
        assert not {IRP_MJ_READ, IRP_MJ_WRITE} & set(records.watched_majors(records.watch_mask(watch))), watch
    assert records.watched_majors(records.watch_mask("read")) == [IRP_MJ_READ]
    assert IRP_MJ_WRITE in records.watched_majors(records.watch_mask("changes"))


def test_a_copy_that_audit_has_seen_is_made(audited: Audited) -> None:
    """Semantics D14: audit registers READ and WRITE, and lets the control pass that stands for both."""
    one = audited("create", name=b"one", flags=os.O_RDWR, mode=0o644)
    two = audited("create", name=b"two", flags=os.O_RDWR, mode=0o644)
    audited("write", one.nodeid, fh=one.fh, size=5, buffer=b"hello")
    copied = audited("copy_file_range_64", one.nodeid, fh=one.fh, nodeid2=two.nodeid, fh2=two.fh, size=5)
    assert copied.length == 5


def test_sixteen_threads_at_once(core: Volume, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Callbacks on sixteen threads without the GIL, through a small ring: each request has its record, whole and in
    its thread's order."""
    nodes = {}
    for number in range(16):
        created = core.request(OP["create"], name=b"f%d" % number, flags=os.O_RDWR, mode=0o644).do()
        nodes[f"/f{number}"] = created.fh
    audited = Audited(core, tmp_path_factory.mktemp("audited"), ring_size=65536, segment_size=1 << 20)
    count = 3000
    time_reads(core, list(nodes.values()), count)
    found: dict[str, list[int]] = {}
    threads = set()
    for each in audited.end():
        assert (each.operation, each.fields["pid"], each.status_name) == ("read", os.getpid(), "")
        assert each.fields["comm"] == Path("/proc/self/comm").read_bytes().strip()
        found.setdefault(each.path.decode(), []).append(each.fields["offset"])
        threads.add(each.fields["tid"])
    assert found == {path: list(range(count)) for path in nodes}
    assert len(threads) == 16
    key = records.KeyFile.parse((audited.top / "key").read_text())
    report = verifying.verify(str(audited.top / "trail"), key)
    assert (report.exit_code, report.lost, report.refused) == (0, 0, 0)


def test_a_thread_that_goes_by_another_name(audited: Audited) -> None:
    """The name in a record is at most a millisecond old, and never older than a pause of the thread."""

    def rename(name: bytes) -> None:
        Path(f"/proc/self/task/{ME['tid']}/comm").write_bytes(name)

    before = Path("/proc/thread-self/comm").read_bytes().strip()
    try:
        for number in range(20):
            audited("getattr")
            rename(b"name%d" % number)
            time.sleep(0.002)
            audited("getattr")
    finally:
        rename(before)
    names = [each.fields["comm"] for each in audited.end()]
    assert names[1::2] == [b"name%d" % number for number in range(20)]


def test_refused_requests_reach_nothing(core: Volume, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What cannot be recorded is not done (full = refuse, and a trail that was taken away); a release is."""
    audited = Audited(core, tmp_path_factory.mktemp("audited"), full="refuse", flush_interval=0.02)
    created = audited("create", name=b"f", flags=os.O_RDWR, mode=0o644)
    for each in (audited.top / "trail").iterdir():
        each.unlink()
    (audited.top / "trail").rmdir()
    assert audited.opened.trail.next_trouble() == errno.ENOENT
    for operation, arguments in (("mkdir", {"name": b"d", "mode": stat.S_IFDIR}), ("unlink", {"name": b"f"})):
        with pytest.raises(VfsError) as caught:
            audited(operation, **arguments)
        assert caught.value.errno == errno.ENOSPC
    audited("release", created.nodeid, fh=created.fh)
    assert core.open_files == 0
    core.stack.remove(audited.entry)
    assert core.stack.drained()
    audited.watch.release()
    assert not audited.opened.close()
    core.request(OP["lookup"], name=b"f").do()
    with pytest.raises(VfsError):
        core.request(OP["lookup"], name=b"d").do()
