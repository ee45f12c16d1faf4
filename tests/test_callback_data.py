"""Callback data (docs/semantics.md A4): when it dies, whose memory it shows, each layer's own names and listings."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stack_driver import (
    CREATE,
    GETATTR,
    GETXATTR,
    LOOKUP,
    MKDIR,
    OPENDIR,
    READ,
    READDIRPLUS,
    RELEASE,
    RELEASEDIR,
    RMDIR,
    SETXATTR,
    SYMLINK,
    UNLINK,
    WRITE,
    Entry,
    entry_of,
    error_of,
    go_on,
    listed,
    lookup,
    names_of,
    opened,
    read,
)

from stackfs import api
from stackfs.api import (
    FLT_PREOP_COMPLETE,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
)
from stackfs.cext.python_requests import Volume
from stackfs.ddi.callback_data import (
    FLT_IS_FASTIO_OPERATION,
    FLT_IS_FS_FILTER_OPERATION,
    FLT_IS_IRP_OPERATION,
    FltClearCallbackDataDirty,
    FltIsCallbackDataDirty,
    FltSetCallbackDataDirty,
)

# ---- data that outlives its callback, and data that lies ------------------------------------------------------------


def attributes(data: Any) -> list[str]:
    return [name for name in dir(type(data)) if not name.startswith("_") and not callable(getattr(type(data), name))]


@pytest.mark.verifier_errors("callback data was used after")
def test_callback_data_is_dead_when_its_callback_has_returned(core: Volume, place: Path) -> None:
    kept: list[Any] = []

    def callback(data: Any, *_: Any) -> int:
        kept.append(data)
        return 0

    core.stack.insert(entry_of((api.IRP_MJ_READ, callback, callback)))
    assert read(core, opened(core, lookup(core, b"file"))) == b"0123456789"
    assert len(kept) == 2
    for data in kept:
        assert "returned" in repr(data)
        for name in attributes(data):
            with pytest.raises(ReferenceError):
                getattr(data, name)
        for name, value in [("status", 0), ("information", 0), ("name", b"x"), ("offset", 0), ("length", 0),
                            ("buffer", b"x"), ("size", 0), ("entries", []), ("end_of_file", 0)]:  # fmt: skip
            with pytest.raises(ReferenceError):
                setattr(data, name, value)
        for call in (data.set_dirty, data.clear_dirty, lambda data=data: data.complete(0)):
            with pytest.raises(ReferenceError):
                call()


def test_memoryviews_are_dead_too_with_all_that_was_made_of_them(core: Volume, place: Path) -> None:
    views: list[memoryview] = []

    def callback(data: Any, *_: Any) -> int:
        view = data.buffer
        part = view[2:]
        views.extend([view, part, view.cast("c"), memoryview(view), view[1:][1:].toreadonly()])
        assert bytes(part) == bytes(view)[2:]
        return 0

    core.stack.insert(entry_of((api.IRP_MJ_READ, callback, callback)))
    fh = opened(core, lookup(core, b"file"))
    for _ in range(50):
        assert read(core, fh) == b"0123456789"
    assert len(views) == 500
    for view in views:
        for use in (bytes, len, lambda each: each[0], lambda each: each.tobytes(), memoryview):
            with pytest.raises(ValueError, match="released"):
                use(view)


JUNK = b"\xee" * 3


def scribble() -> None:
    """Gives freed memory of the sizes used here to somebody else."""
    junk = [bytearray(b"\xee" * size) for size in (8, 20, 40, 100, 4096, 32768, 32800) for _ in range(300)]
    del junk


@pytest.mark.verifier_errors("its post is not called")
def test_a_raw_buffer_held_longer_reads_memory_that_still_lives(core: Volume, place: Path) -> None:
    """Whoever holds the memory itself (a NumPy array; here, a scanner of re) never reads freed memory."""
    held: list[tuple[int, bytes, Any, Any]] = []

    def hold(data: Any, *_: Any) -> int:
        view = data.buffer
        if view is not None:
            content = bytes(view)
            same, junk = re.compile(re.escape(content)), re.compile(JUNK)
            held.append((data.major, content, same.scanner(view), junk.scanner(view)))
        return 0

    majors = (api.IRP_MJ_READ, api.IRP_MJ_WRITE, api.IRP_MJ_DIRECTORY_CONTROL, api.IRP_MJ_FILE_SYSTEM_CONTROL,
              api.IRP_MJ_QUERY_EA, api.IRP_MJ_SET_EA)  # fmt: skip
    core.stack.insert(entry_of(*[(major, hold, hold) for major in majors], name="holds", at="1"))

    def swap(data: Any, objects: object) -> int:
        text = bytes([*b"swapped by one ", *b"above"])
        data.buffer = bytearray(text) if data.major == api.IRP_MJ_READ else text
        data.set_dirty()
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    swaps = entry_of(*[(major, swap, None) for major in (api.IRP_MJ_READ, api.IRP_MJ_WRITE)], name="swaps", at="2")
    node = lookup(core, b"file")
    fh = opened(core, node, os.O_RDWR)
    for turn in range(2):
        read(core, fh, 8)
        core.request(WRITE, fh=fh, size=7, buffer=bytes([*b"written"])).do()
        core.request(SETXATTR, node, name=b"user.a", buffer=bytes([*b"attribute"])).do()
        core.request(GETXATTR, node, name=b"user.a", buffer=bytearray(9)).do()
        core.request(SYMLINK, 1, name=b"link%d" % turn, name2=bytes([*b"target of a link"])).do()
        directory = core.request(OPENDIR, 1).do().fh
        assert b"file" in names_of(core, directory)
        core.request(RELEASEDIR, fh=directory).do()
        core.stack.insert(swaps)
        assert error_of(core, READ, fh=fh, size=8, buffer=bytearray(8)) == errno.EIO  # 20 bytes, and nobody cuts them
        assert error_of(core, WRITE, fh=fh, size=7, buffer=bytes(7)) == errno.EIO
        core.stack.remove(swaps)
        assert core.stack.drained()
        scribble()
    assert {major for major, *_ in held} == set(majors)
    for major, content, same, junk in held:
        # What is not filled yet may hold anything.
        assert JUNK in content or junk.search() is None, api.major_name(major)
        if major not in (api.IRP_MJ_READ, api.IRP_MJ_QUERY_EA):  # those are filled after the pre callback
            assert same.match() is not None, api.major_name(major)


def test_what_a_program_sends_cannot_be_written_to(core: Volume, place: Path) -> None:
    """The data of a write or setxattr, and a link's target, are the program's: before and after."""
    tried: list[tuple[int, bool]] = []

    def callback(data: Any, *_: Any) -> int:
        if data.buffer is not None:
            tried.append((data.major, data.buffer.readonly))
        return 0

    node = lookup(core, b"file")
    fh = opened(core, node, os.O_RDWR)
    majors = (api.IRP_MJ_WRITE, api.IRP_MJ_SET_EA, api.IRP_MJ_FILE_SYSTEM_CONTROL)
    core.stack.insert(entry_of(*[(major, callback, callback) for major in majors]))
    core.request(WRITE, fh=fh, size=3, buffer=b"abc").do()
    core.request(SETXATTR, node, name=b"user.a", buffer=b"value").do()
    core.request(SYMLINK, 1, name=b"link", name2=b"target").do()
    assert tried == [(major, True) for major in majors for _ in range(2)]


def test_a_post_changes_what_was_read_in_place(core: Volume, place: Path) -> None:
    def post(data: Any, objects: object, context: object, flags: int) -> None:
        view = data.buffer
        view[: data.information] = bytes(view[: data.information]).translate(bytes(range(1, 256)) + b"\0")

    core.stack.insert(entry_of((api.IRP_MJ_READ, go_on, post)))
    assert read(core, opened(core, lookup(core, b"file")), 4, 2) == b"3456"


def test_a_swapped_buffer_is_seen_below_and_the_own_one_in_post(core: Volume, place: Path) -> None:
    """A5 and A4.4: below everybody works on the swapped one; its own post, and the program, on the original."""
    own = bytearray(20)
    seen: list[Any] = []

    def swap(data: Any, objects: object) -> Any:
        data.buffer = own
        data.set_dirty()
        assert data.length == 20
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, own

    def copy(data: Any, objects: object, context: bytearray, flags: int) -> None:
        assert data.length == 4 and data.information == 10 and bytes(context[:10]) == b"0123456789"
        data.buffer[:] = bytes(context[6:10])
        data.information = 4

    def below(data: Any, *_: Any) -> int:
        seen.append((data.length, bytes(data.buffer)[:10]))
        return 0

    core.stack.insert(entry_of((api.IRP_MJ_READ, swap, copy), name="swaps", at="2"))
    core.stack.insert(entry_of((api.IRP_MJ_READ, below, below), name="below", at="1"))
    assert read(core, opened(core, lookup(core, b"file")), 4) == b"6789"
    assert seen == [(20, bytes(10)), (20, b"0123456789")]


@pytest.mark.parametrize("where", ["pre", "post"])
@pytest.mark.parametrize("claim", [11, 1 << 20, 1 << 62])
def test_more_bytes_than_there_is_room_for_are_an_error_and_not_memory(
    core: Volume, place: Path, where: str, claim: int
) -> None:
    def lie(data: Any, *_: Any) -> int:
        data.status, data.information = 0, claim
        return FLT_PREOP_COMPLETE if where == "pre" else 0

    os.setxattr(place / "file", "user.a", b"value")
    node = lookup(core, b"file")
    fh = opened(core, node, os.O_RDWR)
    majors = (api.IRP_MJ_READ, api.IRP_MJ_WRITE, api.IRP_MJ_QUERY_EA, api.IRP_MJ_DIRECTORY_CONTROL)
    core.stack.insert(entry_of(*[(major, lie, None) if where == "pre" else (major, None, lie) for major in majors]))
    ten = {"size": 10, "buffer": bytearray(10)}
    assert error_of(core, READ, fh=fh, **ten) == errno.EIO
    assert error_of(core, WRITE, fh=fh, size=10, buffer=bytes(10)) == errno.EIO
    assert error_of(core, GETXATTR, node, name=b"user.a", **ten) == errno.EIO
    if claim > 32768:
        request = core.request(READDIRPLUS, fh=core.request(OPENDIR, 1).do().fh)
        request.list_directory(lambda *_: True, Entry)
        assert request.error == errno.EIO


def test_attributes_that_a_filter_makes_up_do_not_harm_the_inode(core: Volume, place: Path) -> None:
    """A file whose type changes the kernel gives up for good; so the request fails instead."""
    node = lookup(core, b"file")
    entry = entry_of((api.IRP_MJ_NETWORK_QUERY_OPEN, lambda data, _: data.complete(0), None))
    core.stack.insert(entry)
    assert error_of(core, GETATTR, node) == errno.EIO
    core.stack.remove(entry)
    assert error_of(core, GETATTR, node) == 0


# ---- what may be changed, and what counts ---------------------------------------------------------------------------


def test_a_change_counts_only_where_it_is_marked(core: Volume, place: Path) -> None:
    """A4.5: not unmarked, not when the mark was taken back; nobody below sees a mark, or takes it back."""
    seen: list[tuple[bytes, bool]] = []

    def unmarked(data: Any, objects: object) -> int:
        data.name = b"other"
        assert not FltIsCallbackDataDirty(data)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def taken_back(data: Any, objects: object) -> int:
        data.name = b"other"
        FltSetCallbackDataDirty(data)
        assert FltIsCallbackDataDirty(data)
        FltClearCallbackDataDirty(data)
        assert not FltIsCallbackDataDirty(data)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def marked(data: Any, objects: object) -> int:
        data.name = b"folder"
        FltSetCallbackDataDirty(data)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def watch(data: Any, *_: Any) -> int:
        seen.append((data.name, FltIsCallbackDataDirty(data)))
        FltClearCallbackDataDirty(data)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    for at, pre in (("5", unmarked), ("4", taken_back), ("3", watch), ("2", marked), ("1", watch)):
        core.stack.insert(entry_of((api.IRP_MJ_QUERY_OPEN, pre, watch), name=f"f{at}", at=at))
    assert lookup(core, b"file") == lookup(core, b"folder")
    up = [(b"folder", False), (b"file", False), (b"file", False), (b"file", False), (b"file", False)]
    assert seen[:7] == [(b"file", False), (b"folder", False), *up]


def test_an_outcome_counts_without_a_mark(core: Volume, place: Path) -> None:
    """A4.6: what a post puts into IoStatus, and what a pre completes with; what it changes besides does not."""

    def post(data: Any, objects: object, context: object, flags: int) -> None:
        data.status = api.STATUS_VIRUS_INFECTED

    fh = opened(core, lookup(core, b"file"))
    entry = entry_of((api.IRP_MJ_READ, None, post))
    core.stack.insert(entry)
    assert error_of(core, READ, fh=fh, size=1, buffer=bytearray(1)) == errno.EACCES
    core.stack.remove(entry)
    core.stack.insert(entry_of((api.IRP_MJ_READ, lambda data, _: data.complete(api.STATUS_DISK_FULL), None)))
    assert error_of(core, READ, fh=fh, size=1, buffer=bytearray(1)) == errno.ENOSPC


def test_what_no_callback_changes(core: Volume, place: Path) -> None:
    """A4.1, A4.3, A4.7: the function, the flags, the requestor and the request's number are there to be read."""
    fixed = ("major", "minor", "flags", "irp_flags", "is_irp", "is_fast_io", "is_fs_filter", "is_generated", "tid",
             "pid", "uid", "gid", "comm", "request", "request_number", "principal", "file", "file_object", "directory",
             "path", "instance")  # fmt: skip
    seen: list[dict[str, Any]] = []

    def callback(data: Any, *_: Any) -> int:
        for name in fixed:
            with pytest.raises(AttributeError):
                setattr(data, name, 5)
        seen.append({name: getattr(data, name) for name in ("major", "tid", "uid", "gid", "request", "request_number")})
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_QUERY_OPEN, callback, callback)))
    request = core.request(LOOKUP, name=b"file", tid=4242, uid=7, gid=8)
    request.do()
    one = {"major": api.IRP_MJ_QUERY_OPEN, "tid": 4242, "uid": 7, "gid": 8, "request": "lookup",
           "request_number": request.number}  # fmt: skip
    assert seen == [one, one] and request.number > 0


@pytest.mark.parametrize("opcode", [LOOKUP, GETATTR, READ, CREATE])
def test_the_kind_of_an_operation_and_its_way(core: Volume, place: Path, opcode: int) -> None:
    """A4.2: exactly one of IRP, fast I/O and FS-filter; POST_OPERATION on the way up and only there."""
    kinds = {LOOKUP: (FLT_IS_FS_FILTER_OPERATION, api.FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION),
             GETATTR: (FLT_IS_FASTIO_OPERATION, api.FLTFL_CALLBACK_DATA_FAST_IO_OPERATION),
             READ: (FLT_IS_FASTIO_OPERATION, api.FLTFL_CALLBACK_DATA_FAST_IO_OPERATION),
             CREATE: (FLT_IS_IRP_OPERATION, api.FLTFL_CALLBACK_DATA_IRP_OPERATION)}  # fmt: skip
    major = {LOOKUP: api.IRP_MJ_QUERY_OPEN, GETATTR: api.IRP_MJ_NETWORK_QUERY_OPEN, READ: api.IRP_MJ_READ,
             CREATE: api.IRP_MJ_CREATE}[opcode]  # fmt: skip
    asked = (FLT_IS_IRP_OPERATION, FLT_IS_FASTIO_OPERATION, FLT_IS_FS_FILTER_OPERATION)
    seen: list[Any] = []

    def callback(data: Any, *_: Any) -> int:
        seen.append(([each for each in asked if each(data)], data.flags))
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    node = lookup(core, b"file")
    fh = opened(core, node)
    core.stack.insert(entry_of((major, callback, callback)))
    arguments: dict[int, dict[str, Any]] = {
        LOOKUP: {"name": b"file"}, GETATTR: {"nodeid": node},
        CREATE: {"name": b"new", "mode": 0o600, "flags": os.O_RDWR},
        READ: {"fh": fh, "size": 1, "buffer": bytearray(1), "open_flags": 2},
    }  # fmt: skip
    more = dict(arguments[opcode])
    core.request(opcode, more.pop("nodeid", 1), **more).do()
    routine, flag = kinds[opcode]
    assert seen == [([routine], flag), ([routine], flag | api.FLTFL_CALLBACK_DATA_POST_OPERATION)]


# ---- names and listings ---------------------------------------------------------------------------------------------


class Prefixed:
    """Shows every name without the prefix that it has in the backing directory."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.names: list[tuple[str, bytes]] = []

    def pre(self, data: Any, objects: object) -> int:
        if data.name:
            self.names.append(("pre", data.name))
            data.name = self.prefix + data.name
        if data.major == api.IRP_MJ_SET_INFORMATION and data.information_class == api.FileRenameInformationEx:
            data.target_name = self.prefix + data.target_name
        data.set_dirty()
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(self, data: Any, objects: object, context: object, flags: int) -> None:
        if data.name:
            self.names.append(("post", data.name))
        if data.major == api.IRP_MJ_DIRECTORY_CONTROL:
            data.entries = [
                each._replace(name=each.name[len(self.prefix) :]) if each.name not in (b".", b"..") else each
                for each in data.entries
            ]

    def rows(self) -> list[tuple[int, Callable[..., Any], Callable[..., Any]]]:
        majors = (api.IRP_MJ_CREATE, api.IRP_MJ_QUERY_OPEN, api.IRP_MJ_SET_INFORMATION, api.IRP_MJ_DIRECTORY_CONTROL,
                  api.IRP_MJ_QUERY_INFORMATION, api.IRP_MJ_CLEANUP, api.IRP_MJ_CLOSE,
                  api.IRP_MJ_FILE_SYSTEM_CONTROL)  # fmt: skip
        return [(major, self.pre, self.post) for major in majors]


def test_each_layer_has_its_own_names_and_the_inode_table_the_lowest(core: Volume, tmp_path: Path) -> None:
    """Two layers, each with a prefix of its own: through making, finding, listing, renaming and removing."""
    upper, lower = Prefixed(b"u."), Prefixed(b"l.")
    core.stack.insert(entry_of(*upper.rows(), name="upper", at="2"))
    core.stack.insert(entry_of(*lower.rows(), name="lower", at="1"))
    core.request(MKDIR, 1, name=b"d", mode=0o755).do()
    fh = core.request(CREATE, 1, name=b"f", mode=0o644, flags=os.O_RDWR).do().fh
    core.request(SYMLINK, 1, name=b"s", name2=b"target").do()
    assert sorted(os.listdir(tmp_path)) == ["l.u.d", "l.u.f", "l.u.s"]
    assert set(upper.names) == {(where, name) for where in ("pre", "post") for name in (b"d", b"f", b"s")}
    assert set(lower.names) == {(where, name) for where in ("pre", "post") for name in (b"u.d", b"u.f", b"u.s")}
    assert error_of(core, LOOKUP, name=b"f") == 0 and error_of(core, LOOKUP, name=b"l.u.f") == errno.ENOENT
    directory = core.request(OPENDIR, 1).do().fh
    assert names_of(core, directory) == {b".", b"..", b"d", b"f", b"s"}
    assert {name for _, name in core.known()[2]} == {b"", b"l.u.d", b"l.u.f", b"l.u.s"} - {b""}
    core.request(45, 1, name=b"f", nodeid2=1, name2=b"g").do()
    core.request(UNLINK, 1, name=b"s").do()
    core.request(RMDIR, 1, name=b"d").do()
    assert os.listdir(tmp_path) == ["l.u.g"]
    assert error_of(core, RELEASE, fh=fh) == 0


@pytest.mark.parametrize("at_once", [1 << 30, 7])
def test_hiding_names_does_not_end_the_listing(core: Volume, tmp_path: Path, at_once: int) -> None:
    """However many of one reading are hidden: the directory goes on behind them."""
    for number in range(1500):
        (tmp_path / f"hidden-{number:04}-{'x' * 40}").touch()
    for number in range(3):
        (tmp_path / f"shown-{number}").touch()
    shown = {b".", b"..", b"shown-0", b"shown-1", b"shown-2"}
    calls = [0, 0]

    def post(data: Any, objects: object, context: object, flags: int) -> None:
        calls[0] += 1
        kept = [each for each in data.entries if each.name in shown]
        calls[1] += not kept
        data.entries = kept

    core.stack.insert(entry_of((api.IRP_MJ_DIRECTORY_CONTROL, None, post)))
    fh = core.request(OPENDIR, 1).do().fh
    names = listed(core, fh, at_once)
    assert sorted(names) == sorted(shown)
    assert calls[0] > 3 and calls[1] > 1, "the directory is too small for this test"
