"""Buffers and callback data (docs/semantics.md A4, A5, A6.19, A6.20): swapping, MDLs, reissuing, opens taken back."""

from __future__ import annotations

import errno
import gc
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Drive, needs_root, run
from stack_driver import (
    CREATE,
    FSYNC,
    GETXATTR,
    MKDIR,
    OPEN,
    OPENDIR,
    RELEASE,
    SETXATTR,
    SYMLINK,
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
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE,
    IRP_MJ_CLEANUP,
    IRP_MJ_CLOSE,
    IRP_MJ_CREATE,
    IRP_MJ_DEVICE_CONTROL,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_QUERY_EA,
    IRP_MJ_READ,
    IRP_MJ_SET_EA,
    IRP_MJ_WRITE,
    STATUS_SUCCESS,
)
from stackfs.cext.buffers import Mdl, mdl_of, set_mdl, swapped_mdl_of
from stackfs.cext.python_requests import Volume
from stackfs.ddi import buffers as ddi
from stackfs.ddi import callback_data as ddi_data
from stackfs.ddi.out import Out
from stackfs.filter_io import FilterIo


class Peer(Host, FilterIo):
    """An instance by hand that can do I/O of its own."""


def attach(core: Volume, *callbacks: Any, at: str = "1") -> Any:
    entry = entry_of(*callbacks, name=f"f{at}", at=at)
    core.stack.insert(entry)
    return entry


def xor(data: Any) -> bytes:
    return bytes(byte ^ 0x5A for byte in bytes(data))


class Room(bytearray):
    """A buffer whose end can be watched."""


class Swapper:
    """Stores every byte turned: a buffer of its own in pre, copied in post."""

    def __init__(self) -> None:
        self.wrong: list[Any] = []
        self.rooms: list[weakref.ref[Room]] = []

    def pre_read(self, data: Any, objects: object) -> Any:
        room = Room(data.length)
        self.rooms.append(weakref.ref(room))
        data.buffer = room
        data.set_dirty()
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, (room, data.length)

    def post_read(self, data: Any, objects: object, context: Any, flags: int) -> None:
        room, length = context
        if data.length != length or bytes(data.buffer) != b"?" * length:
            self.wrong.append(("its own buffer in post_read", bytes(data.buffer)))
        data.buffer[: data.information] = xor(room[: data.information])

    def pre_write(self, data: Any, objects: object) -> Any:
        plain = bytes(data.buffer)
        data.buffer = xor(plain)
        data.set_dirty()
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, plain

    def post_write(self, data: Any, objects: object, plain: bytes, flags: int) -> None:
        if bytes(data.buffer) != plain:
            self.wrong.append(("its own buffer in post_write", bytes(data.buffer)))

    @property
    def callbacks(self) -> list[Any]:
        return [(IRP_MJ_READ, self.pre_read, self.post_read), (IRP_MJ_WRITE, self.pre_write, self.post_write)]


def ask(core: Volume, fh: int, size: int, offset: int) -> bytes:
    """A read into a buffer full of question marks."""
    buffer = bytearray(b"?" * size)
    done = core.request(15, fh=fh, buffer=buffer, size=size, offset=offset).do()
    return bytes(buffer[: done.length])


def test_a5_swapped_buffers_to_the_letter(core: Volume, place: Path) -> None:
    swapper, seen = Swapper(), []

    def below(data: Any, objects: object) -> int:
        seen.append((data.major, bytes(data.buffer)))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def above(data: Any, objects: object, context: Any, flags: int) -> None:
        seen.append(("above", bytes(data.buffer[: data.information])))

    attach(core, *swapper.callbacks, at="2")
    attach(core, (IRP_MJ_WRITE, below, None), at="1")
    attach(core, (IRP_MJ_READ, go_on, above), at="3")
    fh = core.request(CREATE, name=b"turned", flags=os.O_RDWR, mode=0o600).do().fh
    model = bytearray()
    for at, new in ((0, b"first"), (3, b"SECOND"), (20, b"behind a hole"), (21, b"x"), (0, b"")):
        kept = bytes(new)
        core.request(WRITE, fh=fh, buffer=kept, size=len(kept), offset=at).do()
        assert kept == new, "the caller's buffer is untouched"
        if len(model) < at and new:
            model.extend(xor(bytes(at - len(model))))        # a hole reads as zeros turned
        model[at : at + len(new)] = new
    assert ask(core, fh, 100, 0) == bytes(model)
    assert ask(core, fh, 4, 19) == bytes(model[19:23])
    assert (place / "turned").read_bytes() == xor(model)
    assert (IRP_MJ_WRITE, xor(b"SECOND")) in seen and ("above", bytes(model)) in seen
    assert swapper.wrong == []
    gc.collect()
    assert all(room() is None for room in swapper.rooms), "freed after the operation"


def test_a5_two_swappers_each_sees_its_own(core: Volume, place: Path) -> None:
    """Turned twice is as it was; each one's post has the buffer that its pre has received."""
    order: list[Any] = []

    def make(name: str) -> list[Any]:
        def pre(data: Any, objects: object) -> Any:
            room = bytearray(b"-" * data.length)
            order.append((name, bytes(data.buffer[:1])))
            data.buffer = room
            data.set_dirty()
            return FLT_PREOP_SUCCESS_WITH_CALLBACK, room

        def post(data: Any, objects: object, room: bytearray, flags: int) -> None:
            order.append((name, bytes(data.buffer[:1])))
            data.buffer[: data.information] = xor(room[: data.information])

        return [(IRP_MJ_READ, pre, post)]

    attach(core, *make("upper"), at="2")
    attach(core, *make("lower"), at="1")
    fh = opened(core, lookup(core, b"file"))
    assert ask(core, fh, 10, 0) == b"0123456789"
    assert order == [("upper", b"?"), ("lower", b"-"), ("lower", b"-"), ("upper", b"?")]


def test_a5_values_of_extended_attributes_are_swapped_too(core: Volume, place: Path) -> None:
    """And FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER says so below the swap, and nowhere else."""
    flags: dict[str, Any] = {}
    system, new = api.FLTFL_CALLBACK_DATA_SYSTEM_BUFFER, api.FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER

    def note(name: str) -> list[Any]:
        def pre(data: Any, objects: object) -> int:
            flags[f"{name} pre"] = data.flags & (system | new)
            return FLT_PREOP_SUCCESS_WITH_CALLBACK

        def post(data: Any, objects: object, context: Any, bits: int) -> None:
            flags[f"{name} post"] = data.flags & (system | new)

        return [(IRP_MJ_SET_EA, pre, post), (IRP_MJ_QUERY_EA, pre, post)]

    def pre_set(data: Any, objects: object) -> int:
        data.buffer = xor(data.buffer)
        data.set_dirty()
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post_set(data: Any, objects: object, context: Any, bits: int) -> None:
        flags["swapper post"] = data.flags & (system | new), bytes(data.buffer)

    def post_query(data: Any, objects: object, context: Any, bits: int) -> None:
        if data.length:
            data.buffer[: data.information] = xor(data.buffer[: data.information])

    attach(core, *note("above"), at="3")
    attach(core, (IRP_MJ_SET_EA, pre_set, post_set), (IRP_MJ_QUERY_EA, go_on, post_query), at="2")
    attach(core, *note("below"), at="1")
    node = lookup(core, b"file")
    core.request(SETXATTR, node, name=b"user.x", buffer=b"value").do()
    assert flags == {
        "above pre": system, "below pre": system | new, "below post": system | new,
        "swapper post": (system, b"value"), "above post": system,
    }  # fmt: skip
    assert os.getxattr(place / "file", "user.x") == xor(b"value")
    assert core.request(GETXATTR, node, name=b"user.x").receiving(100).do().result() == b"value"


@pytest.mark.verifier_errors("callback data was used after")
def test_a5_lock_user_buffer_and_the_mdl_of_a_swapped_buffer(core: Volume, place: Path) -> None:
    seen: dict[str, Any] = {}

    def pre_upper(data: Any, objects: object) -> Any:
        room = bytearray(data.length)
        data.buffer = room
        data.set_dirty()
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, room

    def post_upper(data: Any, objects: object, room: bytearray, flags: int) -> None:
        mdl = ddi.FltGetSwappedBufferMdlAddress(data)
        assert mdl is not None
        view = ddi.MmGetSystemAddressForMdlSafe(mdl)
        assert view is not None
        seen["swapped"] = bytes(view) == bytes(room), mdl.byte_count
        data.buffer[: data.information] = view[: data.information]
        kept = ddi.FltRetainSwappedBufferMdlAddress(data)
        seen["gone"] = ddi.FltGetSwappedBufferMdlAddress(data)
        assert kept is not None
        ddi.IoFreeMdl(kept)

    def pre_lower(data: Any, objects: object) -> int:
        seen["before"] = mdl_of(data)
        seen["status"] = ddi.FltLockUserBuffer(data), data.is_dirty
        ddi.FltLockUserBuffer(data)
        mdl = mdl_of(data)
        assert mdl is not None
        seen["length"] = ddi.MmGetMdlByteCount(mdl)
        seen["mdl"] = mdl
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post_lower(data: Any, objects: object, context: Any, flags: int) -> None:
        seen["its own post"] = mdl_of(data), swapped_mdl_of(data)

    def lowest(data: Any, objects: object) -> int:
        mdl = mdl_of(data)
        seen["handed down"] = mdl is not None and mdl.byte_count
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    attach(core, (IRP_MJ_READ, go_on, lambda data, *_: seen.update(highest=swapped_mdl_of(data))), at="4")
    attach(core, (IRP_MJ_READ, pre_upper, post_upper), at="3")
    attach(core, (IRP_MJ_READ, pre_lower, post_lower), at="2")
    attach(core, (IRP_MJ_READ, lowest, None), at="1")
    fh = opened(core, lookup(core, b"file"))
    assert read(core, fh) == b"0123456789"
    with pytest.raises(ReferenceError):
        seen.pop("mdl").address()
    assert seen == {
        "before": None, "status": (STATUS_SUCCESS, True), "length": 10, "handed down": 10, "its own post": (None, None),
        "swapped": (True, 10), "gone": None, "highest": None,
    }  # fmt: skip


def test_a5_an_mdl_of_the_swappers_own_is_the_managers(core: Volume, place: Path) -> None:
    seen: list[Any] = []

    def pre(data: Any, objects: object) -> Any:
        room = bytearray(b"." * data.length)
        mdl = Mdl(room)
        data.buffer = room
        set_mdl(data, mdl)
        data.set_dirty()
        with pytest.raises(ReferenceError):
            mdl.free()
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, room

    def post(data: Any, objects: object, room: bytearray, flags: int) -> None:
        mdl = swapped_mdl_of(data)
        assert mdl is not None and mdl_of(data) is None
        data.buffer[:] = mdl.address()

    def below(data: Any, objects: object) -> int:
        mdl = mdl_of(data)
        assert mdl is not None
        seen.append((mdl.byte_count, bytes(mdl.address())))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    host = attach(core, (IRP_MJ_READ, pre, post), at="2").object
    attach(core, (IRP_MJ_READ, below, None), at="1")
    assert read(core, opened(core, lookup(core, b"file"))) == b"0123456789"
    assert seen == [(10, b"." * 10)] and host.told == []


def test_a5_what_can_be_locked(core: Volume, place: Path) -> None:
    """Only what has a buffer; twice is once; in a post nothing becomes dirty. No MDL is no address."""
    seen: dict[str, Any] = {}

    def pre(data: Any, objects: object) -> int:
        seen[data.request] = [ddi.FltLockUserBuffer(data), data.is_dirty, mdl_of(data) is not None]
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        seen[data.request] += [ddi.FltLockUserBuffer(data), data.is_dirty]
        mdl = mdl_of(data)
        if mdl is not None:
            assert bytes(ddi.MmGetSystemAddressForMdlSafe(mdl)) == bytes(data.buffer)  # type: ignore[arg-type]
            assert ddi.FltLockUserBuffer(data) == STATUS_SUCCESS
            seen[data.request] += [ddi.MmGetMdlByteCount(mdl)]

    majors = (IRP_MJ_READ, IRP_MJ_WRITE, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_QUERY_EA, IRP_MJ_CREATE)
    attach(core, *[(major, pre, post) for major in majors])
    os.setxattr(place / "file", "user.x", b"value")
    node = lookup(core, b"file")
    fh = opened(core, node, os.O_RDWR)
    read(core, fh, 7)
    core.request(WRITE, fh=fh, buffer=b"xy", size=2, offset=1).do()
    core.request(FSYNC, fh=fh).do()
    refused = api.STATUS_INVALID_PARAMETER
    assert seen == {
        "open": [refused, False, False, refused, False], "fsync": [refused, False, False, refused, False],
        "read": [0, True, True, 0, False, 7], "write": [0, True, True, 0, False, 2],
    }  # fmt: skip
    assert ddi.MmGetSystemAddressForMdlSafe(None) is None


@pytest.mark.verifier_errors("did not mark the data dirty")
def test_a5_an_unmarked_swap_is_forgotten(core: Volume, place: Path) -> None:
    """The base works on the program's own buffer, and the post sees that one."""
    other = bytearray(b"-" * 10)
    seen: list[bytes] = []

    def pre(data: Any, objects: object) -> int:
        data.buffer = other
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        seen.append(bytes(data.buffer))

    attach(core, (IRP_MJ_READ, pre, post))
    assert read(core, opened(core, lookup(core, b"file"))) == b"0123456789"
    assert seen == [b"0123456789"] and other == b"-" * 10


def test_a5_only_a_pre_swaps(core: Volume, place: Path) -> None:
    """And only where there is a buffer to swap; a listing is changed by its entries."""
    refused: list[str] = []

    def pre(data: Any, objects: object) -> int:
        with pytest.raises(AttributeError):
            data.buffer = bytearray(data.length)
        refused.append(data.request)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        with pytest.raises(AttributeError, match="in the pre callback"):
            data.buffer = bytearray(data.length)
        refused.append(data.request)

    attach(core, (IRP_MJ_READ, None, post), *[(major, pre, None) for major in
                                               (IRP_MJ_FLUSH_BUFFERS, api.IRP_MJ_DIRECTORY_CONTROL)])  # fmt: skip
    fh = opened(core, lookup(core, b"file"), os.O_RDWR)
    assert read(core, fh) == b"0123456789"
    core.request(FSYNC, fh=fh).do()
    assert b"file" in names_of(core, core.request(OPENDIR, 1).do().fh)
    assert refused[:2] == ["read", "fsync"] and "readdirplus" in refused


@pytest.mark.verifier_errors("its post is not called")
def test_a4_decode_parameters(core: Volume, place: Path) -> None:
    seen: dict[str, Any] = {}

    def pre(data: Any, objects: object) -> Any:
        mdl, buffer, length, access = Out[Any](), Out[Any](), Out[Any](), Out[int]()
        status = ddi.FltDecodeParameters(data, mdl, buffer, length, access)
        seen[data.request] = status or (access.value, length.value.value, mdl.value.value)
        if data.request == "write":
            buffer.value.value = b"0000"
            length.value.value = 2
            data.set_dirty()
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    majors = (IRP_MJ_READ, IRP_MJ_WRITE, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_SET_EA, IRP_MJ_DEVICE_CONTROL,
              api.IRP_MJ_FILE_SYSTEM_CONTROL)  # fmt: skip
    attach(core, *[(major, pre, None) for major in majors])
    node = lookup(core, b"file")
    fh = opened(core, node, os.O_RDWR)
    read(core, fh, 7)
    core.request(WRITE, fh=fh, buffer=b"xy", size=2, offset=1).do()
    core.request(FSYNC, fh=fh).do()
    core.request(SETXATTR, node, name=b"user.x", buffer=b"value").do()
    core.request(SYMLINK, name=b"link", name2=b"target").do()
    assert seen == {
        "symlink": (ddi.IoModifyAccess, 6, None),
        "read": (ddi.IoWriteAccess, 7, None),
        "write": (ddi.IoReadAccess, 2, None),
        "fsync": api.STATUS_INVALID_PARAMETER,
        "setxattr": (ddi.IoReadAccess, 5, None),
    }
    assert (place / "file").read_bytes() == b"0003456789", "the fields are the parameters themselves"


# ---- sent down again ------------------------------------------------------------------------------------------------


def test_a6_19_reissued_below_with_what_was_changed(core: Volume, place: Path) -> None:
    seen: list[Any] = []
    told: list[Any] = []

    def pre(data: Any, objects: object) -> Any:
        return FLT_PREOP_SYNCHRONIZE

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        told.append((data.status, data.information))
        if data.status == api.STATUS_DEVICE_NOT_READY:
            data.offset = 4
            ddi_data.FltSetCallbackDataDirty(data)
            ddi_data.FltReissueSynchronousIo(objects, data)  # type: ignore[arg-type]
            told.append((data.status, data.information, data.offset))

    def below(data: Any, objects: object) -> Any:
        seen.append((data.offset, ddi_data.FLT_IS_REISSUED_IO(data)))
        if ddi_data.FLT_IS_REISSUED_IO(data):
            return FLT_PREOP_SUCCESS_WITH_CALLBACK
        return data.complete(api.STATUS_DEVICE_NOT_READY)

    def above(data: Any, objects: object, context: Any, flags: int) -> None:
        told.append(("above", data.status, ddi_data.FLT_IS_REISSUED_IO(data)))

    attach(core, (IRP_MJ_READ, go_on, above), at="3")
    attach(core, (IRP_MJ_READ, pre, post), at="2")
    attach(core, (IRP_MJ_READ, below, lambda *_: told.append("below")), at="1")
    assert read(core, opened(core, lookup(core, b"file")), 3) == b"456"
    assert seen == [(0, False), (4, True)]
    assert told == [(api.STATUS_DEVICE_NOT_READY, 0), "below", (0, 3, 4), ("above", 0, False)]


def test_a6_19_what_stays_of_the_flags(core: Volume, place: Path) -> None:
    """A4.2: those of FLTFL_CALLBACK_DATA_REISSUE_MASK, the kind and the buffer's; REISSUED_IO is new."""
    seen: list[int] = []
    mask = ddi_data.FLTFL_CALLBACK_DATA_REISSUE_MASK

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        seen.append(data.flags)
        assert data.reissue()

    def below(data: Any, objects: object) -> int:
        seen.append(data.flags)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    attach(core, (IRP_MJ_QUERY_EA, lambda *_: FLT_PREOP_SYNCHRONIZE, post), at="2")
    attach(core, (IRP_MJ_QUERY_EA, below, None), at="1")
    os.setxattr(place / "file", "user.x", b"value")
    node = lookup(core, b"file")
    assert core.request(GETXATTR, node, name=b"user.x").receiving(100).do().result() == b"value"
    first, before, again = seen
    kept = api.FLTFL_CALLBACK_DATA_IRP_OPERATION | api.FLTFL_CALLBACK_DATA_SYSTEM_BUFFER
    assert mask == 0xFFFF and first == before & mask == again & mask == kept
    assert again & ~mask == api.FLTFL_CALLBACK_DATA_REISSUED_IO
    assert before & ~mask == api.FLTFL_CALLBACK_DATA_POST_OPERATION


def test_a6_19_a_create_with_another_name(core: Volume, place: Path) -> None:
    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        if data.status == api.STATUS_OBJECT_NAME_COLLISION:
            data.name = data.name + b" (2)"
            data.set_dirty()
            assert data.reissue()

    attach(core, (IRP_MJ_CREATE, go_on, post))
    node = core.request(MKDIR, name=b"folder", mode=0o700).do().nodeid
    assert (place / "folder (2)").is_dir()
    core.request(CREATE, node, name=b"in it", flags=os.O_RDWR, mode=0o600).do()
    assert (place / "folder (2)" / "in it").exists()


def test_a6_19_only_where_it_is_legal(core: Volume, place: Path) -> None:
    answers: list[Any] = []

    def pre(data: Any, objects: object) -> Any:
        answers.append(data.reissue())
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        answers.append(data.reissue())
        with pytest.raises(RuntimeError):
            ddi_data.FltReissueSynchronousIo(objects, data)  # type: ignore[arg-type]

    attach(core, (IRP_MJ_READ, pre, post), (IRP_MJ_CLEANUP, go_on, post), (IRP_MJ_CREATE, go_on, post))
    fh = opened(core, lookup(core, b"file"))
    assert read(core, fh) == b"0123456789"
    core.request(RELEASE, fh=fh).do()
    assert answers and not any(answers)


# ---- taken back -----------------------------------------------------------------------------------------------------


def watch(trace: list[Any], *majors: int) -> list[Any]:
    def pre(data: Any, objects: object) -> int:
        trace.append((data.major, data.name))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    return [(major, pre, None) for major in majors]


@pytest.mark.parametrize("creates", [False, True])
def test_a6_20_an_open_is_cancelled(core: Volume, place: Path, creates: bool) -> None:
    trace: list[Any] = []

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        assert data.cancel_open()
        assert not data.cancel_open(), "once"
        data.status, data.information = api.STATUS_VIRUS_INFECTED, 0

    attach(core, *watch(trace, IRP_MJ_CLEANUP, IRP_MJ_CLOSE), at="3")
    attach(core, (IRP_MJ_CREATE, go_on, post), (IRP_MJ_CLEANUP, lambda *_: trace.append("itself") or 1, None), at="2")
    attach(core, *watch(trace, IRP_MJ_CREATE, IRP_MJ_CLEANUP, IRP_MJ_CLOSE), at="1")
    node = lookup(core, b"file")
    known = core.known_inodes
    if creates:
        assert error_of(core, CREATE, name=b"new", flags=os.O_RDWR, mode=0o600) == errno.EACCES
    else:
        assert error_of(core, OPEN, node, flags=os.O_RDWR) == errno.EACCES
    assert [major for major, _ in trace] == [IRP_MJ_CREATE, IRP_MJ_CLEANUP, IRP_MJ_CLOSE]
    assert (core.known_inodes, core.open_files, descriptors(place)) == (known, 0, 0)
    assert (place / "new").exists() is creates, "what was made stays"


def test_a6_20_taken_back_and_called_a_success_is_an_error(core: Volume, place: Path) -> None:
    attach(core, (IRP_MJ_CREATE, go_on, lambda data, *_: data.cancel_open() and None))
    assert error_of(core, OPEN, lookup(core, b"file"), flags=os.O_RDONLY) == errno.EIO
    assert core.open_files == 0


def test_a6_20_taken_back_and_opened_again(core: Volume, place: Path) -> None:
    """As a scanner does it: look at the file, clean it, open it anew."""

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        assert not data.reissue(), "not while it is open"
        ddi_data.FltCancelFileOpen(objects, data.file)  # type: ignore[arg-type]
        (place / "file").write_bytes(b"cleaned")
        assert data.reissue() and data.status == STATUS_SUCCESS

    attach(core, (IRP_MJ_CREATE, go_on, post))
    fh = opened(core, lookup(core, b"file"))
    assert read(core, fh) == b"cleaned"
    core.request(RELEASE, fh=fh).do()
    assert core.open_files == 0


# ---- on a mount -----------------------------------------------------------------------------------------------------

TURNS = '''MANIFEST = {"name": "turns", "altitude": "141500", "group": "FSFilter Encryption", "filter": "Turns",
            "answers": "cacheable"}
from stackfs.api import *

TABLE = bytes(byte ^ 0x5A for byte in range(256))

class Turns(Filter):
    """Stores every byte turned, by buffers of its own."""

    operations = (
        Operation(IRP_MJ_READ, pre="pre_read", post="post_read"),
        Operation(IRP_MJ_WRITE, pre="pre_write", post="post_write"),
    )

    def pre_read(self, data, objects):
        room = bytearray(data.length)
        data.buffer = room
        data.set_dirty()
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, room

    def post_read(self, data, objects, room, flags):
        data.buffer[:data.information] = room[:data.information].translate(TABLE)

    def pre_write(self, data, objects):
        data.buffer = bytes(data.buffer).translate(TABLE)
        data.set_dirty()
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post_write(self, data, objects, context, flags):
        pass
'''


@needs_root
@pytest.mark.parametrize("cache", ["normal", "strict"])
def test_a5_a_swap_buffer_filter_on_each_lane(
    drive: Callable[..., Drive], lanes: str, tmp_path: Path, cache: str
) -> None:
    (tmp_path / "turns.py").write_text(TURNS)
    made = drive(f"filterdir={tmp_path},filter=turns,cache={cache}")
    model = bytearray(os.urandom(300_000))
    path = made.mnt / "file"
    path.write_bytes(model)
    with open(path, "r+b", buffering=0) as file:
        parts = ((5, b"short"), (4090, b"over the edge of a page"), (131_070, os.urandom(9000)), (299_990, b"y" * 50))
        for at, new in parts:
            file.seek(at)
            file.write(new)
            model[at : at + len(new)] = new
    assert path.read_bytes() == bytes(model)
    assert (made.src / "file").read_bytes() == xor(model)


BAD_BUFFER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDWR)
for call in (libc.pread, libc.pwrite):
    for address in (ctypes.c_void_p(8), ctypes.c_char_p(b"0123456789")):
        done = call(fd, address, ctypes.c_size_t(10), ctypes.c_long(0))
        print(done, ctypes.get_errno() if done < 0 else 0)
"""


@needs_root
def test_a5_memory_that_a_program_does_not_have(drive: Callable[..., Drive], lanes: str, tmp_path: Path) -> None:
    """Is the kernel's to find: the filters' buffers are the daemon's own, and an operation never fails for it."""
    (tmp_path / "turns.py").write_text(TURNS)
    made = drive(f"filterdir={tmp_path},filter=turns,cache=strict")
    (made.mnt / "file").write_bytes(b"9876543210")
    lines = run(sys.executable, "-I", "-c", BAD_BUFFER, made.mnt / "file").stdout.splitlines()
    bad = f"-1 {errno.EFAULT}"
    assert [lines[0], lines[2]] == [bad, bad] and [lines[1], lines[3]] == ["10 0", "10 0"]


# ---- another volume -------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(core: Volume, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two volumes; the second one has a file `other`."""
    second = tmp_path_factory.mktemp("second")
    (second / "other").write_bytes(b"abcdefghij")
    volume = Volume(os.open(second, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    yield core, volume, second
    volume.close()


def mirror(volume: Volume, *callbacks: Any, at: str = "2", name: str = "mirror", passes: bool = False) -> Any:
    peer = Peer()
    peer.entry = entry_of(*callbacks, name=name, at=at, host=peer, passes=passes)
    volume.stack.introduce(peer.entry)
    volume.stack.insert(peer.entry)
    return peer


def test_a4_8_reads_and_writes_go_to_another_volume(pair: Any) -> None:
    core, volume, second = pair
    seen: list[Any] = []
    there = mirror(volume)
    file = there.open("other", os.O_RDWR)

    def pre(data: Any, objects: object) -> Any:
        data.set_target(there, file)
        data.set_dirty()
        return FLT_PREOP_SYNCHRONIZE

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        seen.append(("post", data.status, data.information, data.path))

    def lower(name: str) -> list[Any]:
        def look(data: Any, objects: object) -> int:
            seen.append((name, data.path, data.is_generated))
            return FLT_PREOP_SUCCESS_NO_CALLBACK

        return [(IRP_MJ_READ, look, None)]

    here = mirror(core, (IRP_MJ_READ, pre, post), (IRP_MJ_WRITE, pre, lambda *_: None))
    attach(core, *lower("lower here"), at="1")
    attach(volume, *lower("lower there"), at="1")
    attach(volume, *lower("higher there"), at="3")
    fh = opened(core, lookup(core, b"file"), os.O_RDWR)
    assert read(core, fh, 4, 2) == b"cdef"
    core.request(WRITE, fh=fh, buffer=b"XY", size=2, offset=0).do()
    assert (second / "other").read_bytes() == b"XYcdefghij"
    assert seen == [("lower there", "/other", False), ("post", 0, 4, "/file")]
    assert here.told == there.told == []
    file.close()
    core.request(RELEASE, fh=fh).do()


@pytest.mark.parametrize("wrong", ["altitude", "filter", "file", "operation"])
@pytest.mark.parametrize("passes", [False, True])
def test_a4_8_any_other_target_is_refused(pair: Any, wrong: str, passes: bool) -> None:
    core, volume, _second = pair
    there = mirror(volume, at="3" if wrong == "altitude" else "2", name="other" if wrong == "filter" else "mirror")
    stranger = mirror(volume, at="7", name="stranger")
    contexts: list[Any] = []

    def pre(data: Any, objects: Any) -> Any:
        data.set_target(there, (stranger if wrong == "file" else there).open("other"))
        data.set_dirty()
        return (FLT_PREOP_SUCCESS_WITH_CALLBACK if wrong == "operation" else FLT_PREOP_SYNCHRONIZE), "context"

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        contexts.append((context, data.path))

    major = IRP_MJ_CREATE if wrong == "operation" else IRP_MJ_READ
    node = lookup(core, b"file")
    fh = opened(core, node)
    here = mirror(core, (major, pre, post), passes=passes, name="mirror")
    if wrong == "operation":
        failed = error_of(core, OPEN, node, flags=os.O_RDONLY)
    else:
        failed = error_of(core, 15, fh=fh, buffer=bytearray(3), size=3)
    assert failed == (0 if passes else errno.EIO)
    assert [line[0] for line in here.told] == ["misused"]
    assert contexts == [("context", "/file")], "its own post frees its context"
