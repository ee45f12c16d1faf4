"""Filter-initiated I/O (docs/semantics.md B4): what a filter does itself, below its own instance."""

from __future__ import annotations

import errno
import gc
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Drive, needs_root
from stack_driver import (
    CREATE,
    OPEN,
    OPENDIR,
    READ,
    RELEASE,
    SYMLINK,
    UNLINK,
    WRITE,
    Host,
    descriptors,
    entry_of,
    error_of,
    go_on,
    lookup,
    names_of,
    opened,
    read,
)

from stackfs import api
from stackfs.api import (
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    IRP_MJ_CLEANUP,
    IRP_MJ_CLOSE,
    IRP_MJ_CREATE,
    IRP_MJ_DIRECTORY_CONTROL,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_QUERY_INFORMATION,
    IRP_MJ_QUERY_OPEN,
    IRP_MJ_READ,
    IRP_MJ_SET_EA,
    IRP_MJ_SET_INFORMATION,
    IRP_MJ_WRITE,
    status_of,
)
from stackfs.cext import filter_file
from stackfs.cext.python_requests import Volume
from stackfs.filter_io import FilterIo
from stackfs.manager import FilterManager

READS_AND_WRITES = os.O_RDWR | os.O_CREAT


class Peer(Host, FilterIo):
    """An instance by hand that can do I/O of its own."""


def attach(
    core: Volume, *callbacks: tuple[int, Callable[..., Any] | None, Callable[..., Any] | None],
    name: str = "f", at: str = "1",
) -> Peer:
    peer = Peer()
    peer.entry = entry_of(*callbacks, name=name, at=at, host=peer)
    core.stack.introduce(peer.entry)
    core.stack.insert(peer.entry)
    return peer


@pytest.fixture
def peer(core: Volume, place: Path) -> Peer:
    """An instance over `place` that registers nothing."""
    return attach(core)


def recorder(log: list[tuple[Any, ...]], who: str, *majors: int) -> list[tuple[int, Any, Any]]:
    def pre(data: Any, objects: object) -> int:
        log.append((who, data.major, data.name))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    return [(major, pre, None) for major in majors]


def status_from(act: Callable[..., Any], *arguments: Any, **keywords: Any) -> int:
    with pytest.raises(OSError) as raised:
        act(*arguments, **keywords)
    return status_of(raised.value)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_b4_1_read_write_and_what_belongs_to_it(peer: Peer, place: Path) -> None:
    with peer.open("file", os.O_RDWR) as file:
        assert file.read(2, 3) == b"234"
        assert file.read(8, 100) == b"89"
        assert file.read(100, 1) == b""
        assert file.write(3, b"xyz") == 3
        room = bytearray(4)
        assert file.read_into(2, room) == 4
        assert bytes(room) == b"2xyz"
        assert file.write(-1, b"end") == 3, "-1 appends"
        assert file.stat().size == 13
        file.truncate(5)
        file.flush()
        file.flush(data_only=True)
        file.set_times(atime_ns=1_500_000_000, mtime_ns=2_000_000_001)
        file.set_security(mode=0o640)
        info = file.stat()
        assert (info.size, info.atime_ns, info.mtime_ns) == (5, 1_500_000_000, 2_000_000_001)
        assert info.mode == stat.S_IFREG | 0o640
    assert (place / "file").read_bytes() == b"012xy"
    assert (place / "file").stat().st_mtime_ns == 2_000_000_001
    with pytest.raises(ValueError, match="closed"):
        file.read(0, 1)
    file.close()
    assert descriptors(place) == 0


def test_b4_1_a_file_has_a_position_of_its_own(peer: Peer) -> None:
    with peer.open("/file") as file:
        assert file.read(None, 3) == b"012"
        assert file.read(8, 2) == b"89", "an explicit offset"
        assert file.read(None, 3) == b"345", "does not move the position"
        file.read(1, 1, flags=0)
        assert file.read(None, 2) == b"23", "but where it is told to"


def test_b4_1_space_holes_and_zeroes(peer: Peer, place: Path) -> None:
    with peer.open("holes", READS_AND_WRITES) as file:
        file.write(1 << 20, b"x" * 4096)
        assert file.seek_data(0) == 1 << 20
        assert file.seek_hole(1 << 20) == (1 << 20) + 4096
        with pytest.raises(OSError) as nowhere:
            file.seek_data(2 << 20)
        assert nowhere.value.errno == errno.ENXIO
        file.allocate(0, 65536)
        file.punch(1 << 20, 4096)
        assert file.read(1 << 20, 8) == bytes(8)
        assert file.stat().size == (1 << 20) + 4096
    assert (place / "holes").stat().st_blocks * 512 >= 65536


@pytest.mark.parametrize(
    ("there", "flags", "outcome"),
    [
        (True, os.O_RDWR, 1),
        (False, os.O_RDWR, api.STATUS_OBJECT_NAME_NOT_FOUND),
        (True, os.O_RDWR | os.O_CREAT, 1),
        (False, os.O_RDWR | os.O_CREAT, 2),
        (True, os.O_RDWR | os.O_CREAT | os.O_EXCL, api.STATUS_OBJECT_NAME_COLLISION),
        (False, os.O_RDWR | os.O_CREAT | os.O_EXCL, 2),
        (True, os.O_RDWR | os.O_TRUNC, 3),
        (True, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 3),
        (True, os.O_RDONLY | os.O_DIRECTORY, api.STATUS_NOT_A_DIRECTORY),
    ],
)
def test_b4_3_what_an_open_did(peer: Peer, place: Path, there: bool, flags: int, outcome: int) -> None:
    if there:
        (place / "new").write_bytes(b"old")
    if outcome > 3:
        assert status_from(peer.open, "new", flags) == outcome
        return
    with peer.open("new", flags, 0o640) as file:
        assert file.information == outcome
        assert file.read(0, 9) == (b"" if outcome != 1 else b"old")
    assert (place / "new").stat().st_size == (3 if outcome == 1 else 0)
    if outcome == 2:
        assert (place / "new").stat().st_mode == stat.S_IFREG | 0o640, "no umask"


def test_b4_4_paths_never_lead_outside(peer: Peer, place: Path) -> None:
    outside = place.parent / "outside"
    outside.write_bytes(b"secret")
    (place / "way").symlink_to(place.parent)
    (place / "straight").symlink_to(outside)
    for path in ("../outside", "folder/../../outside", "/../outside", "folder/./x", "..", "folder/.."):
        assert status_from(peer.open, path) == api.STATUS_OBJECT_NAME_INVALID, path
        assert status_from(peer.stat, path) == api.STATUS_OBJECT_NAME_INVALID, path
    assert status_from(peer.open, "way/outside") == api.STATUS_IO_REPARSE_TAG_NOT_HANDLED
    assert status_from(peer.open, "straight") == api.STATUS_IO_REPARSE_TAG_NOT_HANDLED
    over = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
    assert status_from(peer.open, "straight", over) == api.STATUS_IO_REPARSE_TAG_NOT_HANDLED
    assert status_from(peer.rename, "file", "../moved") == api.STATUS_OBJECT_NAME_INVALID
    assert status_from(peer.open, "x" * 256) == api.STATUS_NAME_TOO_LONG
    assert status_from(peer.open, b"a\0b") == api.STATUS_OBJECT_NAME_INVALID
    assert status_from(peer.open, "file/below") == api.STATUS_NOT_A_DIRECTORY
    assert status_from(peer.open, "none/file") == api.STATUS_OBJECT_PATH_NOT_FOUND
    assert outside.read_bytes() == b"secret"
    assert stat.S_ISLNK(peer.stat("straight").mode), "attributes of the link itself"
    assert peer.readlink("straight") == os.fsencode(outside)


def test_b4_4_slashes_and_the_root_itself(peer: Peer, place: Path) -> None:
    (place / "folder" / "in").write_bytes(b"in")
    for path in ("folder/in", "/folder/in", "//folder///in", b"folder/in"):
        with peer.open(path) as file:
            assert file.read(0, 9) == b"in"
    for path in ("", "/", "folder/"):
        with peer.open(path, os.O_DIRECTORY) as directory:
            assert directory.is_directory
    assert peer.stat("").inode == place.stat().st_ino


def test_b4_9_names_by_path(peer: Peer, place: Path) -> None:
    peer.mkdir("made", 0o750)
    assert (place / "made").stat().st_mode == stat.S_IFDIR | 0o750
    assert status_from(peer.mkdir, "made") == api.STATUS_OBJECT_NAME_COLLISION
    peer.rename("file", "made/moved")
    peer.link("made/moved", "second")
    peer.symlink("anywhere", "made/pointer")
    assert os.readlink(place / "made/pointer") == "anywhere"
    assert sorted(peer.listdir("made")) == [b"moved", b"pointer"]
    assert (place / "second").read_bytes() == b"0123456789"
    assert status_from(peer.rename, "second", "made/moved", 1) == api.STATUS_OBJECT_NAME_COLLISION
    peer.unlink("second")
    assert status_from(peer.rmdir, "made") == api.STATUS_DIRECTORY_NOT_EMPTY
    peer.unlink("made/moved")
    peer.unlink("made/pointer")
    peer.rmdir("made")
    assert sorted(os.listdir(place)) == ["folder"]


def test_b4_9_an_open_file_changes_its_own_name(peer: Peer, place: Path) -> None:
    with peer.open("file", os.O_RDWR) as file, peer.open("folder", os.O_DIRECTORY) as folder:
        file.rename("other")
        file.rename("there", directory=folder)
        assert (place / "folder/there").exists()
        file.link("back", directory=peer.open(""))
        (place / "folder/kept").write_bytes(b"kept")
        assert status_from(file.rename, "kept", flags=1) == api.STATUS_OBJECT_NAME_COLLISION
        file.delete()
        assert os.listdir(place / "folder") == ["kept"]
        assert file.read(0, 4) == b"0123", "open, without that name"
        file.set_times(mtime_ns=5)
        assert status_from(file.delete) == api.STATUS_OBJECT_NAME_NOT_FOUND
        for wrong in ("", "..", "a/b", "x" * 256):
            assert status_from(file.link, wrong) in (
                api.STATUS_INVALID_PARAMETER, api.STATUS_OBJECT_NAME_INVALID, api.STATUS_NAME_TOO_LONG)  # fmt: skip
    assert (place / "back").read_bytes() == b"0123456789"


def test_b4_9_a_name_that_leads_elsewhere_by_now_is_left_alone(peer: Peer, place: Path) -> None:
    with peer.open("file", os.O_RDWR) as file:
        (place / "file").rename(place / "gone")
        (place / "file").write_bytes(b"somebody else's")
        assert status_from(file.delete) == api.STATUS_OBJECT_NAME_NOT_FOUND
        assert status_from(file.rename, "x") == api.STATUS_OBJECT_NAME_NOT_FOUND
    assert sorted(os.listdir(place)) == ["file", "folder", "gone"]


def test_b4_9_a_file_without_a_name_gets_one(peer: Peer, place: Path) -> None:
    with peer.open("folder", os.O_DIRECTORY) as folder, peer.open("folder", os.O_TMPFILE | os.O_RDWR) as file:
        file.write(0, b"whole")
        file.flush()
        assert os.listdir(place / "folder") == []
        file.set_security(mode=0o444)
        file.link("ready", directory=folder)
        assert status_from(file.rename, "x", directory=folder) == api.STATUS_FLT_INVALID_NAME_REQUEST
        assert status_from(file.delete) == api.STATUS_FLT_INVALID_NAME_REQUEST
    assert (place / "folder/ready").read_bytes() == b"whole"


def test_b4_9_deleted_on_close(peer: Peer, place: Path) -> None:
    with peer.open("short", READS_AND_WRITES) as file:
        file.delete_on_close()
        assert (place / "short").exists()
    assert not (place / "short").exists()


def test_b4_extended_attributes_and_the_volume(peer: Peer, place: Path) -> None:
    with peer.open("file", os.O_RDWR) as file:
        file.set_ea("user.colour", b"green")
        assert file.get_ea("user.colour") == b"green" == os.getxattr(place / "file", "user.colour")
        assert b"user.colour" in file.list_eas()
        assert status_from(file.set_ea, "user.colour", b"", flags=os.XATTR_CREATE) == api.STATUS_OBJECT_NAME_COLLISION
        file.remove_ea(b"user.colour")
        assert status_from(file.get_ea, "user.colour") == api.STATUS_NO_EAS_ON_FILE
    assert peer.statvfs()[0] == os.statvfs(place).f_bsize


def test_b4_a_listing_in_pieces_and_from_the_beginning_again(peer: Peer, place: Path) -> None:
    names = {b"n%03d" % number for number in range(300)}
    for name in names:
        (place / "folder" / name.decode()).touch()
    with peer.open("folder", os.O_DIRECTORY) as folder:
        got: list[bytes] = []
        while piece := folder.next_entries(size=1024):
            got += [entry.name for entry in piece]
        assert sorted(got) == sorted(names | {b".", b".."}), "each once"
        first = folder.next_entries(restart=True, single=True)
        second = folder.next_entries(single=True)
        assert len(first) == len(second) == 1 and first != second
        assert {entry.name for entry in folder.entries()} == names
    assert descriptors(place) == 0


# ---- who sees it ----------------------------------------------------------------------------------------------------

EVERYTHING = (
    IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_WRITE, IRP_MJ_CLEANUP, IRP_MJ_CLOSE, IRP_MJ_QUERY_OPEN, IRP_MJ_QUERY_INFORMATION,
    IRP_MJ_SET_INFORMATION, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_SET_EA,
)  # fmt: skip


def test_b4_1_only_lower_instances_see_it_and_as_an_irp(core: Volume, place: Path) -> None:
    log: list[tuple[Any, ...]] = []

    def watch(who: str) -> list[tuple[int, Any, Any]]:
        def pre(data: Any, objects: object) -> int:
            log.append((who, data.major, data.is_irp, data.is_generated, data.flags & 0x2, data.tid, data.uid))
            return FLT_PREOP_SUCCESS_NO_CALLBACK

        return [(major, pre, None) for major in EVERYTHING]

    attach(core, *watch("above"), name="a", at="3")
    middle = attach(core, *watch("itself"), name="b", at="2")
    attach(core, *watch("below"), name="c", at="1")
    with middle.open("folder/new", READS_AND_WRITES) as file:
        file.write(0, b"x")
        file.read(0, 1)
        file.flush()
        file.truncate(0)
        file.stat()
        file.set_ea("user.x", b"y")
        file.rename("newer")
    middle.listdir("folder")
    assert {line[0] for line in log} == {"below"}
    assert {line[2:] for line in log} == {(True, True, 0, 0, 0)}
    assert {line[1] for line in log} == set(EVERYTHING) - {IRP_MJ_QUERY_OPEN}, "a lookup takes the slow path"
    log.clear()
    core.request(OPEN, lookup(core, b"file")).do()
    assert {line[0] for line in log} == {"above", "itself", "below"}
    assert not any(line[3] for line in log)


def test_b4_1_how_it_moves_is_told(core: Volume, place: Path) -> None:
    """A4.3: IRP_SYNCHRONOUS_API where the filter waits; the paging bits as the caller's flags say."""
    seen: list[int] = []

    def pre(data: Any, objects: object) -> int:
        seen.append(data.irp_flags)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    peer = attach(core, name="a", at="2")
    attach(core, (IRP_MJ_READ, pre, None), name="b", at="1")
    with peer.open("file") as file:
        for flags in (4, 4 | api.FLTFL_IO_OPERATION_NON_CACHED, 4 | api.FLTFL_IO_OPERATION_PAGING,
                      4 | api.FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING):  # fmt: skip
            file.read(0, 10, flags=flags)
        done = Waiter()
        file.start_read(0, 10, done)
        done.wait()
    waits, paging = api.IRP_SYNCHRONOUS_API, api.IRP_PAGING_IO | api.IRP_NOCACHE
    assert seen == [waits, waits | api.IRP_NOCACHE, waits | paging,
                    waits | paging | api.IRP_SYNCHRONOUS_PAGING_IO, 0]  # fmt: skip


def test_b4_1_a_lower_filter_refuses_changes_and_answers(core: Volume, place: Path) -> None:
    def refuse(data: Any, objects: object) -> Any:
        if data.name == b"forbidden":
            return data.complete(api.STATUS_VIRUS_INFECTED)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def shout(data: Any, objects: object, context: Any, flags: int) -> None:
        data.buffer[: data.information] = bytes(data.buffer[: data.information]).upper()

    (place / "forbidden").touch()
    (place / "lower").write_bytes(b"lower")
    upper = attach(core, name="u", at="2")
    attach(core, (IRP_MJ_CREATE, refuse, None), (IRP_MJ_READ, go_on, shout), name="l", at="1")
    assert status_from(upper.open, "forbidden") == api.STATUS_VIRUS_INFECTED
    with upper.open("lower") as file:
        assert file.read(0, 9) == b"LOWER"


def test_b4_1_a_lower_callback_that_raises_is_its_own_trouble(core: Volume, place: Path) -> None:
    def bad(data: Any, objects: object) -> int:
        raise RuntimeError("no")

    upper = attach(core, name="u", at="2")
    lower = attach(core, (IRP_MJ_WRITE, bad, None), name="l", at="1")
    with upper.open("file", os.O_RDWR) as file:
        assert status_from(file.write, 0, b"x") == api.STATUS_IO_DEVICE_ERROR
    assert [line[0] for line in lower.told] == ["raised"] and upper.told == []


def test_b4_3_what_a_lower_filter_holds_is_waited_for(core: Volume, place: Path) -> None:
    """Opens, reads and what is reissued: each goes on when somebody else completes what is held, down and up."""
    held: list[Any] = []
    there = threading.Event()

    def hold(data: Any, objects: object) -> int:
        held.append(lambda: data.complete_pended_pre(int(api.FLT_PREOP_SUCCESS_WITH_CALLBACK)))
        there.set()
        return int(api.FLT_PREOP_PENDING)

    def hold_up(data: Any, objects: object, context: Any, flags: int) -> int:
        held.append(data.complete_pended_post)
        there.set()
        return int(api.FLT_POSTOP_MORE_PROCESSING_REQUIRED)

    def release() -> None:
        while there.wait(20):
            there.clear()
            while held:
                held.pop(0)()
            if done.is_set():
                return

    upper = attach(core, name="u", at="2")
    attach(core, (IRP_MJ_CREATE, hold, hold_up), (IRP_MJ_READ, hold, hold_up), name="l", at="1")
    done = threading.Event()
    helper = threading.Thread(target=release)
    helper.start()
    try:
        with upper.open("file") as file:
            assert file.read(2, 3) == b"234"
            waiter = Waiter()
            file.start_read(0, 2, waiter)
            assert waiter.wait() == (0, b"01")
    finally:
        done.set()
        there.set()
        helper.join(20)
    assert not helper.is_alive() and held == []


def test_b4_9_a_lower_filter_with_other_names(core: Volume, place: Path) -> None:
    """Names are parameters of each layer: what is opened, renamed and deleted goes by this layer's name."""

    def turn(name: bytes) -> bytes:
        return name[::-1]

    def names(data: Any, objects: object) -> int:
        if data.name:
            data.name = turn(data.name)
        if data.major == IRP_MJ_SET_INFORMATION and data.information_class in (10, 65, 11):
            data.target_name = turn(data.target_name)
        data.set_dirty()
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def entries(data: Any, objects: object, context: Any, flags: int) -> None:
        data.entries = [entry._replace(name=turn(entry.name)) for entry in data.entries]

    (place / "redlof").mkdir()
    upper = attach(core, name="u", at="2")
    attach(core, *[(major, names, None) for major in (IRP_MJ_CREATE, IRP_MJ_QUERY_OPEN, IRP_MJ_SET_INFORMATION)],
           (IRP_MJ_DIRECTORY_CONTROL, go_on, entries), name="l", at="1")  # fmt: skip
    with upper.open("folder/abc", READS_AND_WRITES) as file:
        file.write(0, b"content")
        assert os.listdir(place / "redlof") == ["cba"]
        file.rename("xyz")
        assert os.listdir(place / "redlof") == ["zyx"]
    assert upper.listdir("folder") == [b"xyz"]
    with upper.open("folder/xyz") as file:
        assert file.read(0, 9) == b"content"
    upper.link("folder/xyz", "top")
    assert (place / "pot").exists()
    upper.unlink("folder/xyz")
    upper.rmdir("folder")
    assert sorted(os.listdir(place)) == ["file", "folder", "pot"]


# ---- within callbacks -----------------------------------------------------------------------------------------------


def test_b4_6_the_file_in_hand(core: Volume, place: Path) -> None:
    """Above the swap programs see upper case; the filter itself, and what is below it, sees what is stored."""
    seen: list[Any] = []

    def post_create(data: Any, objects: Peer, context: Any, flags: int) -> None:
        if not data.is_generated and data.file.nodeid and not data.file.is_directory:
            seen.append(data.file.read(0, 4) if data.request == "open" else None)

    def post_read(data: Any, objects: Peer, context: Any, flags: int) -> None:
        data.buffer[: data.information] = bytes(data.buffer[: data.information]).upper()
        seen.append((data.file.read(0, 3), data.file.stat().size))

    def pre_write(data: Any, objects: Peer) -> int:
        data.file.write(0, b"[")
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    (place / "file").write_bytes(b"abcdef")
    reading = (IRP_MJ_READ, lambda *_: api.FLT_PREOP_SYNCHRONIZE, post_read)      # its post does I/O
    attach(core, (IRP_MJ_CREATE, go_on, post_create), reading, (IRP_MJ_WRITE, pre_write, None))
    fh = opened(core, lookup(core, b"file"), os.O_RDWR)
    assert read(core, fh) == b"ABCDEF"
    core.request(WRITE, fh=fh, buffer=b"xx", size=2, offset=2).do()
    assert (place / "file").read_bytes() == b"[bxxef"
    assert seen == [b"abcd", (b"abc", 6)]
    core.request(RELEASE, fh=fh).do()


@pytest.mark.verifier_errors("was used after its callback")
def test_b4_6_the_file_in_hand_dies_with_its_callback(core: Volume, place: Path) -> None:
    kept: list[Any] = []

    def pre(data: Any, objects: Peer) -> int:
        kept.extend([data.file, data.directory, data.file.reopen(os.O_RDWR)])
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    peer = attach(core, (IRP_MJ_READ, pre, None))
    fh = opened(core, lookup(core, b"file"), os.O_RDONLY)
    read(core, fh)
    file, directory, again = kept
    with pytest.raises(ReferenceError):
        file.read(0, 1)
    with pytest.raises(ReferenceError):
        file.reopen()
    core.request(RELEASE, fh=fh).do()
    assert again.write(0, b"z") == 1, "a file of its own, with other rights than the program's"
    assert directory.open("file").read(0, 2) == b"z1"
    again.close()
    assert peer.told == []
    kept.clear()


def test_b4_6_what_has_no_descriptor_has_no_data(core: Volume, place: Path) -> None:
    seen: dict[str, Any] = {}

    def pre_create(data: Any, objects: Peer) -> int:
        if data.request == "create":
            seen["not yet"] = (data.file.nodeid, status_from(data.file.stat), status_from(data.file.read, 0, 1))
            seen["directory"] = sorted(objects.listdir(directory=data.directory))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def pre_set(data: Any, objects: Peer) -> int:
        seen["set"] = (data.request, data.file.stat().size if data.file.nodeid else None)
        if data.request == "setattr":
            seen["read"] = status_from(data.file.read, 0, 4)
            with data.file.reopen() as file:
                seen["reopened"] = file.read(0, 4)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    attach(core, (IRP_MJ_CREATE, pre_create, None), (IRP_MJ_SET_INFORMATION, pre_set, None))
    core.request(CREATE, name=b"new", flags=os.O_RDWR, mode=0o600).do()
    assert seen["not yet"] == (0, api.STATUS_INVALID_HANDLE, api.STATUS_INVALID_HANDLE)
    assert seen["directory"] == [b"file", b"folder"]
    core.request(4, lookup(core, b"file"), valid=8, size=5).do()
    assert (seen["set"], seen["read"], seen["reopened"]) == (("setattr", 10), api.STATUS_INVALID_HANDLE, b"0123")


def test_b4_3_a_side_file_in_each_directory(core: Volume, place: Path) -> None:
    """Every operation with a name finds the directory that the name lies in; the side file is not seen from above."""
    side = b".count"

    def count(objects: Peer, directory: Any) -> None:
        with objects.open(side, READS_AND_WRITES, directory=directory) as file:
            number = int(file.read(0, 20) or b"0")
            file.write(0, b"%d" % (number + 1))

    def pre_create(data: Any, objects: Peer) -> Any:
        if data.name == side:
            return data.complete(api.STATUS_OBJECT_NAME_NOT_FOUND)
        if data.wants_write and data.directory is not None:
            count(objects, data.directory)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def hide(data: Any, objects: Peer, context: Any, flags: int) -> None:
        data.entries = [entry for entry in data.entries if entry.name != side]

    def pre_lookup(data: Any, objects: Peer) -> Any:
        return data.complete(api.STATUS_OBJECT_NAME_NOT_FOUND) if data.name == side else FLT_PREOP_SUCCESS_NO_CALLBACK

    attach(core, (IRP_MJ_CREATE, pre_create, None), (IRP_MJ_QUERY_OPEN, pre_lookup, None),
           (IRP_MJ_DIRECTORY_CONTROL, go_on, hide))  # fmt: skip
    folder = lookup(core, b"folder")
    for name in (b"a", b"b", b"c"):
        core.request(CREATE, folder, name=name, flags=os.O_RDWR, mode=0o600).do()
    core.request(UNLINK, folder, name=b"c").do()
    core.request(OPEN, lookup(core, b"file"), flags=os.O_RDWR).do()
    core.request(SYMLINK, name=b"link", name2=b"x").do()
    assert (place / "folder/.count").read_bytes() == b"4"
    assert (place / ".count").read_bytes() == b"2"
    assert error_of(core, 1, folder, name=side) == errno.ENOENT
    listing = core.request(OPENDIR, folder).do().fh
    assert names_of(core, listing) == {b".", b"..", b"a", b"b"}


def test_b4_2_whole_blocks_around_a_partial_write(core: Volume, place: Path) -> None:
    """Read, change, write: 16-byte blocks stored with every byte turned, as an encrypting filter does it."""
    block = 16

    def turn(data: bytes) -> bytes:
        return bytes(byte ^ 0x5A for byte in data)

    def pre_write(data: Any, objects: Peer) -> Any:
        new, at = bytes(data.buffer), data.offset
        start, end = at // block * block, -(-(at + len(new)) // block) * block
        with data.file.reopen(os.O_RDWR) as file:
            size = file.stat().size
            old = bytearray(turn(file.read(start, end - start)).ljust(end - start, b"\0"))
            old[at - start : at - start + len(new)] = new
            stop = max(size, at + len(new))
            file.write(start, turn(bytes(old[: max(0, min(end, stop) - start)])))
        return data.complete(api.STATUS_SUCCESS, len(new))

    def post_read(data: Any, objects: Peer, context: Any, flags: int) -> None:
        data.buffer[: data.information] = turn(bytes(data.buffer[: data.information]))

    attach(core, (IRP_MJ_WRITE, pre_write, None), (IRP_MJ_READ, go_on, post_read))
    made = core.request(CREATE, name=b"turned", flags=os.O_WRONLY, mode=0o600).do()
    model = bytearray()
    for at, new in ((0, b"a" * 40), (5, b"bcd"), (15, b"ef"), (38, b"tail"), (42, b"!")):
        core.request(WRITE, fh=made.fh, buffer=new, size=len(new), offset=at).do()
        model[at : at + len(new)] = new
    fh = opened(core, lookup(core, b"turned"))
    assert read(core, fh, 100) == bytes(model)
    assert turn((place / "turned").read_bytes()) == bytes(model)


def test_b4_3_many_threads_with_nested_reads(core: Volume, place: Path) -> None:
    """Each READ reads below itself, below which a second filter does the same: no deadlock, no file left open."""
    payload = bytes(range(256)) * 64
    (place / "file").write_bytes(payload)
    wrong: list[Any] = []

    def nested(data: Any, objects: Peer) -> int:
        offset, length = data.offset, data.length
        if data.file.read(offset, length) != payload[offset : offset + length]:
            wrong.append(offset)
        with objects.open("file") as own:
            own.read(offset, 1)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    peers = [attach(core, (IRP_MJ_READ, nested, None), name=name, at=name) for name in ("1", "2")]
    node = lookup(core, b"file")

    def work() -> None:
        fh = opened(core, node)
        for number in range(25):
            assert read(core, fh, 100, number * 131) == payload[number * 131 : number * 131 + 100]
        core.request(RELEASE, fh=fh).do()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == [] and [peer.told for peer in peers] == [[], []]
    assert descriptors(place) == 0
    assert core.open_files == 0


# ---- as whom --------------------------------------------------------------------------------------------------------


@needs_root
def test_b4_5_as_the_daemon_or_as_the_requestor(place: Path) -> None:
    place.chmod(0o777)
    (place / "file").chmod(0o600)
    (place / "folder").chmod(0o755)
    core = Volume(os.open(place, os.O_PATH | os.O_DIRECTORY), entry_timeout=0, attr_timeout=0, check_permissions=True)
    seen: dict[str, Any] = {}

    def pre(data: Any, objects: Peer) -> int:
        if data.name == b"asked":
            seen["daemon"] = objects.open("file").read(0, 2)
            seen["user"] = status_from(objects.open, "file", requestor=data)
            seen["again"] = objects.open("file").read(0, 2)
            objects.open("mine", READS_AND_WRITES, 0o640, requestor=data).close()
            objects.open("daemons", READS_AND_WRITES, 0o640).close()
            seen["folder"] = status_from(objects.mkdir, "folder/below", requestor=data)
            lines = Path("/proc/thread-self/status").read_text().splitlines()
            seen["fsuid"] = [line for line in lines if "Uid" in line]
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    attach(core, (IRP_MJ_QUERY_OPEN, pre, None))
    assert error_of(core, 1, name=b"asked", uid=12345, gid=12345) == errno.ENOENT
    assert seen["daemon"] == seen["again"] == b"01"
    assert seen["user"] == api.STATUS_ACCESS_DENIED == seen["folder"]
    assert ((place / "mine").stat().st_uid, (place / "daemons").stat().st_uid) == (12345, os.geteuid())
    assert seen["fsuid"] == ["Uid:\t0\t0\t0\t0"], "the callback goes on with the daemon's rights"
    core.close()


@needs_root
def test_b4_5_what_is_made_for_a_requestor_is_his_also_without_checks(core: Volume, place: Path) -> None:
    def pre(data: Any, objects: Peer) -> int:
        objects.open("his", READS_AND_WRITES | os.O_EXCL, requestor=data).close()
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    attach(core, (IRP_MJ_QUERY_OPEN, pre, None))
    core.request(1, name=b"file", uid=4321, gid=1234).do()
    assert ((place / "his").stat().st_uid, (place / "his").stat().st_gid) == (4321, 1234)


# ---- asynchronous ---------------------------------------------------------------------------------------------------


class Waiter:
    """What a completion callback is told, and on which thread."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.got: tuple[Any, ...] = ()
        self.thread: int | None = None

    def __call__(self, *what: Any) -> None:
        self.got = what
        self.thread = threading.get_ident()
        self.event.set()

    def wait(self) -> tuple[Any, ...]:
        assert self.event.wait(20)
        return self.got


def test_b4_7_reads_and_writes_with_a_callback(peer: Peer, place: Path) -> None:
    with peer.open("file", os.O_RDWR) as file:
        done, written, failed = Waiter(), Waiter(), Waiter()
        file.start_read(2, 4, done)
        assert done.wait() == (0, b"2345") and done.thread != threading.get_ident()
        file.start_write(0, b"AB", written)
        assert written.wait() == (0, 2)
        with peer.open("file", os.O_RDONLY) as readable:
            readable.start_write(0, b"AB", failed)
            assert failed.wait() == (api.STATUS_INVALID_HANDLE, 0)
        many = [Waiter() for _ in range(50)]
        for number, waiter in enumerate(many):
            file.start_read(number % 10, 1, waiter)
        assert [waiter.wait()[1] for waiter in many] == [b"AB23456789"[number % 10 :][:1] for number in range(50)]
    assert (place / "file").read_bytes() == b"AB23456789"


def test_b4_7_a_file_closed_meanwhile_stays_open_until_it_is_done(core: Volume, place: Path) -> None:
    hold, held = threading.Event(), threading.Event()

    def slow(data: Any, objects: object) -> int:
        held.set()
        hold.wait(20)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    upper = attach(core, name="u", at="2")
    attach(core, (IRP_MJ_READ, slow, None), name="l", at="1")
    file, done = upper.open("file"), Waiter()
    file.start_read(0, 4, done)
    assert held.wait(20)
    assert filter_file.io_pending(upper.entry)
    file.close()
    assert file.closed and descriptors(place) == 1
    hold.set()
    assert done.wait() == (0, b"0123")
    end = time.monotonic() + 20
    while filter_file.io_pending(upper.entry) or descriptors(place):
        assert time.monotonic() < end
        time.sleep(0.001)


def test_b4_7_a_completion_that_raises_is_reported(peer: Peer) -> None:
    told = threading.Event()

    def raised(*what: Any) -> None:
        peer.told.append(what)
        told.set()

    peer.callback_raised = raised  # type: ignore[method-assign]

    def bad(status: int, data: bytes) -> None:
        raise RuntimeError("no")

    with peer.open("file") as file:
        file.start_read(0, 1, bad)
        assert told.wait(20)
    assert peer.told[0][0] == "completion"


# ---- callback data by hand ------------------------------------------------------------------------------------------


@pytest.mark.verifier_errors("was used after its callback")
def test_b4_10_callback_data_by_hand(peer: Peer, place: Path) -> None:
    with peer.open("file", os.O_RDWR) as file:
        data = filter_file.allocate_below(peer.entry, file)
        assert data.is_generated and data.is_irp
        data.major = IRP_MJ_WRITE
        data.buffer, data.offset = b"xyz", 4
        assert data.perform() == 0 and data.information == 3
        data.reuse()
        assert data.information == 0
        room = bytearray(6)
        data.major = IRP_MJ_READ
        data.buffer, data.offset = room, 2
        assert data.perform() == 0 and (data.information, bytes(room)) == (6, b"23xyz7")
        data.major = IRP_MJ_SET_INFORMATION
        data.information_class, data.end_of_file = 20, 3
        assert data.perform() == 0
        data.major = IRP_MJ_QUERY_INFORMATION
        assert data.perform() == 0 and data.size == 3
        data.major = IRP_MJ_FLUSH_BUFFERS
        assert data.perform() == 0
        for wrong in (IRP_MJ_CREATE, IRP_MJ_CLOSE, IRP_MJ_CLEANUP, IRP_MJ_QUERY_OPEN):
            data.major = wrong
            assert data.perform() == api.STATUS_INVALID_PARAMETER
        done = Waiter()
        data.major = IRP_MJ_READ
        data.buffer, data.offset = room, 0
        assert data.start(done) == api.STATUS_PENDING
        assert done.wait() == (data,) and data.information == 3
        data.free()
        with pytest.raises(ReferenceError):
            data.perform()
    assert (place / "file").read_bytes() == b"23x"[:0] + b"012"


def test_b4_10_one_that_is_forgotten_is_freed(peer: Peer) -> None:
    file = peer.open("file")
    data = filter_file.allocate_below(peer.entry, file)
    file.close()
    data.major = IRP_MJ_FLUSH_BUFFERS
    with pytest.raises(ValueError, match="closed"):
        data.perform()
    del data
    gc.collect()


# ---- the end of an instance -----------------------------------------------------------------------------------------

LEAKY = '''MANIFEST = {"name": "leaky", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Leaky"}
import os, threading
from stackfs.api import *

class Leaky(Filter):
    operations = ()
    refuses = False

    def instance_setup(self, instance, flags):
        self.header = instance.open("header", os.O_RDWR | os.O_CREAT)       # set-up may use the volume already
        self.header.write(0, b"set up")
        return STATUS_FLT_DO_NOT_ATTACH if self.refuses else STATUS_SUCCESS

    def instance_teardown_start(self, instance, reason):
        self.started = threading.Event()
        self.header.start_read(0, 6, lambda status, data: self.started.set())

    def instance_teardown_complete(self, instance, reason):
        self.complete = (self.started.is_set(), self.header.read(0, 6))
'''


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.verifier_errors("^the file 'header' was not given back")
def test_b4_8_what_is_left_open_is_closed_at_teardown(tmp_path: Path, refuses: bool, capsys: Any) -> None:
    import trio

    from stackfs.errors import FltError

    (tmp_path / "filters").mkdir()
    (tmp_path / "volume").mkdir()
    (tmp_path / "filters/leaky.py").write_text(LEAKY.replace("refuses = False", f"refuses = {refuses}"))
    manager = FilterManager([str(tmp_path / "filters")])
    core = Volume(os.open(tmp_path / "volume", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    volume = manager.add_volume("v", "", str(tmp_path / "volume"), core)
    found: dict[str, Any] = {}

    async def main() -> None:
        await manager.load("leaky")
        filter_object: Any = manager.filter("leaky").object
        if refuses:
            with pytest.raises(FltError):
                await manager.attach("leaky", volume)
        else:
            assert descriptors(tmp_path / "volume") == 1
            await manager.detach("leaky", volume)
            found["complete"] = filter_object.complete
        found["left"] = descriptors(tmp_path / "volume")
        found["status"] = status_from(filter_object.header.read, 0, 1)
        filter_object.header.close()
        await manager.remove_volume(volume)

    trio.run(main)
    assert found["left"] == 0 and found["status"] == api.STATUS_FLT_DELETING_OBJECT
    if not refuses:
        assert found["complete"] == (True, b"set up"), "its reads ended before, and it may still use its files"
    assert (tmp_path / "volume/header").read_bytes() == b"set up"
    assert "files left open" in capsys.readouterr().out or not refuses


BUSY = '''MANIFEST = {"name": "busy", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Busy"}
import os
from stackfs.api import *

class Busy(Filter):
    """Keeps the files it opens for itself until its teardown, and reads from them in other threads too."""

    operations = (Operation(IRP_MJ_READ, pre="pre_read", post="post_read"),)

    def pre_read(self, data, objects):
        return FLT_PREOP_SYNCHRONIZE

    def instance_setup(self, instance, flags):
        instance.context = {}
        return STATUS_SUCCESS

    def post_read(self, data, objects, context, flags):
        mine = objects.context.setdefault(data.tid, None) or data.file.reopen()
        objects.context[data.tid] = mine
        assert mine.read(0, 4) == data.file.read(0, 4) == b"0123"
        mine.start_read(0, 4, self.done)

    def done(self, status, data):
        assert (status, data) == (STATUS_SUCCESS, b"0123")

    def instance_teardown_complete(self, instance, reason):
        for mine in instance.context.values():
            mine.close()
'''


def test_b4_8_coming_and_going_under_load(tmp_path: Path, capsys: Any) -> None:
    import trio

    (tmp_path / "filters").mkdir()
    (tmp_path / "volume").mkdir()
    (tmp_path / "filters/busy.py").write_text(BUSY)
    (tmp_path / "volume/file").write_bytes(b"0123456789")
    manager = FilterManager([str(tmp_path / "filters")])
    core = Volume(os.open(tmp_path / "volume", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    volume = manager.add_volume("v", "", str(tmp_path / "volume"), core)
    stop, wrong = threading.Event(), []

    def work(number: int) -> None:
        fh = opened(core, lookup(core, b"file"))
        while not stop.is_set():
            buffer = bytearray(10)
            core.request(READ, fh=fh, buffer=buffer, size=10, tid=number).do()
            if buffer != b"0123456789":
                wrong.append(bytes(buffer))
        core.request(RELEASE, fh=fh).do()

    async def main() -> None:
        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
        for thread in threads:
            thread.start()
        try:
            await manager.load("busy")
            for _ in range(15):
                await trio.sleep(0.01)
                await manager.detach("busy", volume)
                await manager.attach("busy", volume)
            await manager.unload("busy")
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert not wrong and descriptors(tmp_path / "volume") == 0
        await manager.remove_volume(volume)

    trio.run(main)
    assert "event=" not in capsys.readouterr().out.replace("event=attached", "")


@pytest.mark.verifier_errors("was not given back")
def test_b4_8_files_outlive_neither_the_volume_nor_harm_it(place: Path) -> None:
    core = Volume(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    peer = attach(core)
    file, directory = peer.open("file"), peer.open("", os.O_DIRECTORY)
    core.close()
    assert status_from(file.read, 0, 1) == api.STATUS_FLT_DELETING_OBJECT
    assert status_from(peer.open, "file") == api.STATUS_FLT_DELETING_OBJECT
    file.close()
    del file, directory, peer, core
    gc.collect()
    assert descriptors(place) == 0


def test_b4_8_a_forgotten_file_is_closed(peer: Peer, place: Path) -> None:
    file: Any = peer.open("file")
    assert descriptors(place) == 1
    del file
    gc.collect()
    assert descriptors(place) == 0


def test_b4_directories_of_another_volume_are_refused(peer: Peer, place: Path, tmp_path_factory: Any) -> None:
    other = Volume(os.open(tmp_path_factory.mktemp("other"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    stranger = attach(other)
    with pytest.raises(ValueError, match="another volume"), stranger.open("", os.O_DIRECTORY) as directory:
        peer.open("file", directory=directory)
    other.close()


# ---- on a mount -----------------------------------------------------------------------------------------------------

COUNTS = '''MANIFEST = {"name": "counts", "altitude": "370500", "group": "FSFilter Activity Monitor",
            "filter": "Counts"}
import os
from stackfs.api import *

SIDE = b".count"

class Counts(Filter):
    """Keeps in each directory a file with the number of names made there, which nobody sees through the mount."""

    operations = (
        Operation(IRP_MJ_CREATE, pre="pre_name", post="post_create"),
        Operation(IRP_MJ_QUERY_OPEN, pre="pre_name"),
        Operation(IRP_MJ_DIRECTORY_CONTROL, pre="pre_list", post="post_list"),
        Operation(IRP_MJ_READ, pre="pre_list", post="post_read"),
    )

    def pre_name(self, data, objects):
        if data.name == SIDE:
            return data.complete(STATUS_OBJECT_NAME_NOT_FOUND)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK if data.major == IRP_MJ_CREATE else FLT_PREOP_SUCCESS_NO_CALLBACK

    def post_create(self, data, objects, context, flags):
        if data.status == STATUS_SUCCESS and data.create_disposition != FILE_OPEN and data.name:
            with objects.open(SIDE, os.O_RDWR | os.O_CREAT, directory=data.directory) as side:
                side.write(0, b"%d" % (int(side.read(0, 20) or b"0") + 1))

    def pre_list(self, data, objects):
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post_list(self, data, objects, context, flags):
        data.entries = [entry for entry in data.entries if entry.name != SIDE]

    def post_read(self, data, objects, context, flags):
        if data.path.endswith("/counter"):
            count = objects.open(SIDE, directory=data.directory).read(0, 20)
            text = count[data.offset:][:data.length]
            data.buffer[:len(text)] = text
            data.information = len(text)
'''


REWRITES = '''MANIFEST = {"name": "rewrites", "altitude": "370500", "group": "FSFilter Activity Monitor",
            "filter": "Rewrites"}
import os
from stackfs.api import *

class Rewrites(Filter):
    """An fsync(2) puts something else into the file."""

    operations = (Operation(IRP_MJ_FLUSH_BUFFERS, pre="pre_flush"),)

    def pre_flush(self, data, objects):
        with data.file.reopen(os.O_RDWR) as file:
            file.write(0, b"new")
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


@needs_root
@pytest.mark.parametrize(("cache", "seen"), [("normal", b"old"), ("strict", b"new")])
def test_b4_11_the_kernel_is_not_told(drive: Callable[..., Drive], tmp_path: Path, cache: str, seen: bytes) -> None:
    (tmp_path / "rewrites.py").write_text(REWRITES)
    made = drive(f"filterdir={tmp_path},filter=rewrites,bypass=off,cache={cache}")
    (made.src / "file").write_bytes(b"old")
    with open(made.mnt / "file", "r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 3, 0) == b"old"
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 3, 0) == seen
    assert (made.src / "file").read_bytes() == b"new"


@needs_root
def test_b4_a_side_file_per_directory_on_each_lane(drive: Callable[..., Drive], lanes: str, tmp_path: Path) -> None:
    """Its callbacks work where the kernel holds the directory's lock: creat, mkdir, symlink, many at once."""
    (tmp_path / "counts.py").write_text(COUNTS)
    made = drive(f"filterdir={tmp_path},filter=counts,cache=strict")
    for folder in ("one", "two"):
        (made.mnt / folder).mkdir()

    def fill(part: int) -> None:
        for number in range(10):
            (made.mnt / "one" / f"f{part}-{number}").write_bytes(b"x")
            (made.mnt / "two" / f"d{part}-{number}").mkdir()

    threads = [threading.Thread(target=fill, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (made.mnt / "two" / "counter").write_bytes(b"longer than that")
    assert (made.src / "one/.count").exists() and (made.src / "two/.count").exists()
    assert int((made.src / "two/.count").read_bytes()) == 31
    assert sorted(os.listdir(made.mnt)) == ["one", "two"]
    assert not (made.mnt / "one/.count").exists()
    assert (made.mnt / "two" / "counter").read_bytes() == b"31"
    made.umount()


