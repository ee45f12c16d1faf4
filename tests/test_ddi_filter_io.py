"""stackfs/ddi/filter_io.py: the routines under the DDI's names give its statuses and out-parameters."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from stack_driver import Host, entry_of

from stackfs import api
from stackfs.cext.python_requests import Volume
from stackfs.ddi import filter_io as ddi
from stackfs.ddi.filter_io import IO_STATUS_BLOCK
from stackfs.ddi.object_attributes import OBJECT_ATTRIBUTES
from stackfs.ddi.out import Out
from stackfs.filter_io import FilterIo
from stackfs.manager import FilterManager

READ, WRITE, BOTH = api.FILE_READ_DATA, api.FILE_WRITE_DATA, api.FILE_READ_DATA | api.FILE_WRITE_DATA


class Peer(Host, FilterIo):
    """An instance by hand."""


@pytest.fixture
def peer(core: Volume, place: Path) -> Any:
    peer = Peer()
    peer.entry = entry_of(host=peer)
    core.stack.introduce(peer.entry)
    core.stack.insert(peer.entry)
    return peer


def create(
    peer: Any, name: str, access: int = BOTH, disposition: int = api.FILE_OPEN, options: int = 0, **more: Any
) -> Any:
    """The status, the handle (or None), and the status block."""
    handle, block = Out[Any](), IO_STATUS_BLOCK()
    status = ddi.FltCreateFile(
        None, peer, handle, access, OBJECT_ATTRIBUTES(name), block, None, 0, 0, disposition, options, None, 0, **more
    )  # fmt: skip
    return status, getattr(handle, "value", None), block


@pytest.mark.parametrize(("disposition", "there", "information"), [
    (api.FILE_SUPERSEDE, True, ddi.FILE_SUPERSEDED), (api.FILE_SUPERSEDE, False, ddi.FILE_CREATED),
    (api.FILE_OPEN, True, ddi.FILE_OPENED), (api.FILE_OPEN, False, None),
    (api.FILE_CREATE, True, None), (api.FILE_CREATE, False, ddi.FILE_CREATED),
    (api.FILE_OPEN_IF, True, ddi.FILE_OPENED), (api.FILE_OPEN_IF, False, ddi.FILE_CREATED),
    (api.FILE_OVERWRITE, True, ddi.FILE_OVERWRITTEN), (api.FILE_OVERWRITE, False, None),
    (api.FILE_OVERWRITE_IF, True, ddi.FILE_OVERWRITTEN), (api.FILE_OVERWRITE_IF, False, ddi.FILE_CREATED),
])  # fmt: skip
def test_every_disposition(peer: Any, place: Path, disposition: int, there: bool, information: int | None) -> None:
    if there:
        (place / "x").write_bytes(b"before")
    status, handle, block = create(peer, "x", BOTH, disposition)
    if information is None:
        assert status == (api.STATUS_OBJECT_NAME_COLLISION if there else api.STATUS_OBJECT_NAME_NOT_FOUND)
        assert handle is None and (block.Status, block.Information) == (status, 0)
        return
    assert (status, block.Status, block.Information) == (0, 0, information)
    assert (place / "x").read_bytes() == (b"before" if information == ddi.FILE_OPENED else b"")
    assert ddi.FltClose(handle) == 0
    assert ddi.FltClose(handle) == api.STATUS_INVALID_HANDLE


def test_create_options(peer: Any, place: Path) -> None:
    assert create(peer, "folder", READ, options=api.FILE_NON_DIRECTORY_FILE)[0] == api.STATUS_FILE_IS_A_DIRECTORY
    assert create(peer, "file", READ, options=api.FILE_DIRECTORY_FILE)[0] == api.STATUS_NOT_A_DIRECTORY
    both = api.FILE_DIRECTORY_FILE | api.FILE_NON_DIRECTORY_FILE
    assert create(peer, "file", READ, options=both)[0] == api.STATUS_INVALID_PARAMETER
    assert create(peer, "file", READ, 6)[0] == api.STATUS_INVALID_PARAMETER
    status, handle, _ = create(peer, "new folder", READ, api.FILE_CREATE, api.FILE_DIRECTORY_FILE)
    assert status == 0 and (place / "new folder").is_dir()
    ddi.FltClose(handle)
    status, handle, _ = create(peer, "gone", BOTH, api.FILE_CREATE, api.FILE_DELETE_ON_CLOSE)
    assert (place / "gone").exists()
    ddi.FltClose(handle)
    assert not (place / "gone").exists()
    handle = Out[Any]()
    readonly = ddi.FILE_ATTRIBUTE_READONLY
    assert ddi.FltCreateFile(None, peer, handle, BOTH, OBJECT_ATTRIBUTES("made"), None, 4096, readonly, 0,
                             api.FILE_CREATE, 0, {"user.x": b"y"}, 1) == 0  # fmt: skip
    assert (place / "made").stat().st_mode & 0o777 == 0o400 and (place / "made").stat().st_blocks >= 8
    assert os.getxattr(place / "made", "user.x") == b"y"
    ddi.FltClose(handle.value)
    file = Out[Any]()
    assert ddi.FltCreateFileEx(None, peer, handle, file, READ, OBJECT_ATTRIBUTES("file")) == 0
    assert file.value is handle.value and file.value.read(0, 2) == b"01"
    ddi.FltClose(handle.value)
    assert create(peer, "file", READ, Flags=ddi.IO_FORCE_ACCESS_CHECK)[0] == api.STATUS_INVALID_PARAMETER, "as whom?"


def test_share_access_means_nothing(peer: Any) -> None:
    """B4.9: not even that nobody may share."""
    handles = []
    for flags in (0, ddi.IO_IGNORE_SHARE_ACCESS_CHECK):
        status, handle, _ = create(peer, "file", BOTH, Flags=flags)         # ShareAccess is 0
        assert status == 0
        handles.append(handle)
    for handle in handles:
        assert ddi.FltClose(handle) == 0


def test_read_and_write(peer: Any, place: Path) -> None:
    _, file, _ = create(peer, "file")
    moved, room = Out[int](), bytearray(10)
    assert ddi.FltReadFile(peer, file, None, 4, room, 0, moved) == 0 and moved.value == 4
    assert ddi.FltReadFile(peer, file, None, 4, room, 0, moved) == 0 and room[:4] == b"4567"
    keep = ddi.FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET
    assert ddi.FltReadFile(peer, file, 1, 1, room, keep, moved) == 0
    assert ddi.FltReadFile(peer, file, ddi.FILE_USE_FILE_POINTER_POSITION, 9, room, 0, moved) == 0
    assert (moved.value, room[:2]) == (2, b"89")
    assert ddi.FltWriteFile(peer, file, ddi.FILE_WRITE_TO_END_OF_FILE, 3, b"end!", 0, moved) == 0 and moved.value == 3
    assert ddi.FltWriteFile(peer, file, 0, 9, b"short") == api.STATUS_INVALID_PARAMETER, "longer than the buffer"
    assert ddi.FltFlushBuffers(peer, file) == 0
    assert ddi.FltFlushBuffers2(peer, file, ddi.FLT_FLUSH_TYPE_FILE_DATA_ONLY) == 0
    assert (place / "file").read_bytes() == b"0123456789end"
    done = threading.Event()
    told: list[Any] = []

    def routine(data: Any, context: Any) -> None:
        told.append((data.status, data.information, context))
        done.set()

    room[:] = bytes(10)
    assert ddi.FltReadFile(peer, file, 2, 4, room, 0, None, routine, "context") == api.STATUS_PENDING
    assert done.wait(20)
    assert told == [(0, 4, "context")] and room[:5] == b"2345\0"
    ddi.FltClose(file)
    _, readable, _ = create(peer, "file", READ)
    assert ddi.FltWriteFile(peer, readable, 0, 1, b"x") == api.STATUS_INVALID_HANDLE


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("flags", "expected"), [
    (0, 0),
    (ddi.FLTFL_IO_OPERATION_NON_CACHED, api.IRP_NOCACHE),
    (ddi.FLTFL_IO_OPERATION_PAGING, api.IRP_PAGING_IO | api.IRP_NOCACHE),
    (ddi.FLTFL_IO_OPERATION_PAGING | ddi.FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING, None),
])  # fmt: skip
def test_how_the_data_move_is_told_to_lower_filters(
    core: Volume, peer: Any, asynchronous: bool, flags: int, expected: int | None
) -> None:
    """B4.6"""
    seen: list[int] = []

    def pre(data: Any, objects: object) -> int:
        seen.append(data.irp_flags)
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_READ, pre, None), (api.IRP_MJ_WRITE, pre, None), name="lower", at="0.5"))
    if expected is None:
        expected = api.IRP_PAGING_IO | api.IRP_NOCACHE | api.IRP_SYNCHRONOUS_PAGING_IO
    if not asynchronous:
        expected |= api.IRP_SYNCHRONOUS_API
    with peer.open("file", os.O_RDWR) as file:
        done = threading.Semaphore(0)
        routine = (lambda data, context: done.release()) if asynchronous else None
        for move in (ddi.FltReadFile, ddi.FltWriteFile):
            status = move(peer, file, 0, 4, bytearray(4), flags, None, routine)
            assert status == (api.STATUS_PENDING if asynchronous else 0)
            assert not asynchronous or done.acquire(timeout=20)
    assert seen == [expected, expected]


def test_kinds_of_flushing(core: Volume, peer: Any) -> None:
    """B4.1: NO_SYNC asks nobody, the others are FLUSH_BUFFERS, of data alone or of everything."""
    seen: list[bool] = []

    def pre(data: Any, objects: object) -> int:
        seen.append(data.data_only)
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_FLUSH_BUFFERS, pre, None), name="lower", at="0.5"))
    with peer.open("file", os.O_RDWR) as file:
        for kind in (ddi.FLT_FLUSH_TYPE_FLUSH_AND_PURGE, ddi.FLT_FLUSH_TYPE_FILE_DATA_ONLY,
                     ddi.FLT_FLUSH_TYPE_DATA_SYNC_ONLY, ddi.FLT_FLUSH_TYPE_NO_SYNC):  # fmt: skip
            assert ddi.FltFlushBuffers2(peer, file, kind) == 0
        assert ddi.FltFlushBuffers(peer, file) == 0
    assert seen == [False, True, True, False]


def test_a_lower_filter_answers_controls(core: Volume, peer: Any) -> None:
    """B4.1: each as the operation that it is."""
    asked: list[Any] = []

    def pre(data: Any, objects: object) -> Any:
        asked.append((data.major, data.control_code, data.input))
        data.buffer[:4] = b"told"
        return data.complete(0, 4)

    majors = (api.IRP_MJ_FILE_SYSTEM_CONTROL, api.IRP_MJ_DEVICE_CONTROL)
    core.stack.insert(entry_of(*[(major, pre, None) for major in majors], name="lower", at="0.5"))
    with peer.open("file") as file:
        for control in (ddi.FltFsControlFile, ddi.FltDeviceIoControlFile):
            room, got = bytearray(8), Out[int]()
            assert control(peer, file, 0x7777, b"question", 8, room, 8, got) == 0
            assert (bytes(room), got.value) == (b"told" + bytes(4), 4)
    assert asked == [(major, 0x7777, b"question") for major in majors]


def test_query_and_set_information(peer: Any, place: Path) -> None:
    _, file, _ = create(peer, "file")
    info, length = Out[Any](), Out[int]()
    assert ddi.FltQueryInformationFile(peer, file, info, 104, api.FileAllInformation, length) == 0
    assert (info.value.size, length.value) == (10, 104)
    assert ddi.FltQueryInformationFile(peer, file, info, 0, 99) == api.STATUS_INVALID_PARAMETER
    block = IO_STATUS_BLOCK()
    folder_name = OBJECT_ATTRIBUTES("folder")
    assert ddi.FltQueryInformationByName(None, peer, folder_name, block, info, 0, api.FileBasicInformation) == 0
    assert info.value.mode & 0o170000 == 0o040000

    def put(kind: int, what: Any) -> int:
        return ddi.FltSetInformationFile(peer, file, what, 0, kind)

    assert put(api.FileEndOfFileInformation, ddi.FILE_END_OF_FILE_INFORMATION(4)) == 0
    assert put(api.FileAllocationInformation, ddi.FILE_ALLOCATION_INFORMATION(1 << 16)) == 0
    assert put(api.FileBasicInformation, ddi.FILE_BASIC_INFORMATION(LastWriteTime=7)) == 0
    assert put(api.FileEndOfFileInformation, ddi.FILE_BASIC_INFORMATION()) == api.STATUS_INVALID_PARAMETER
    assert put(99, None) == api.STATUS_INVALID_PARAMETER
    (place / "taken").write_bytes(b"taken")
    assert put(api.FileRenameInformation, ddi.FILE_RENAME_INFORMATION("taken")) == api.STATUS_OBJECT_NAME_COLLISION
    assert put(api.FileLinkInformation, ddi.FILE_LINK_INFORMATION("second")) == 0
    root = Out[Any]()
    assert ddi.FltOpenVolume(peer, root) == 0
    folder = peer.open("folder", os.O_DIRECTORY)
    assert put(api.FileRenameInformation, ddi.FILE_RENAME_INFORMATION("moved", folder)) == 0
    replace = ddi.FILE_RENAME_INFORMATION("taken", root.value, ddi.FILE_RENAME_REPLACE_IF_EXISTS)
    assert put(api.FileRenameInformationEx, replace) == 0
    assert (place / "taken").read_bytes() == b"0123" and os.listdir(place / "folder") == []
    assert put(api.FileDispositionInformation, ddi.FILE_DISPOSITION_INFORMATION(False)) == 0
    assert put(api.FileDispositionInformation, ddi.FILE_DISPOSITION_INFORMATION()) == 0
    assert sorted(os.listdir(place)) == ["folder", "second"]
    assert (place / "second").stat().st_mtime_ns == 7


def test_listings(peer: Any, place: Path) -> None:
    for name in ("a.txt", "b.txt", "c.bin"):
        (place / "folder" / name).touch()
    folder = peer.open("folder", os.O_DIRECTORY)
    entries, count = Out[Any](), Out[int]()

    def query(**more: Any) -> int:
        return ddi.FltQueryDirectoryFile(peer, folder, entries, 4096, 1, LengthReturned=count, **more)

    assert query() == 0 and count.value == 5
    assert query() == api.STATUS_NO_MORE_FILES and entries.value == []
    assert query(FileName="*.txt", RestartScan=True) == 0
    assert sorted(entry.name for entry in entries.value) == [b"a.txt", b"b.txt"]
    assert query(FileName="*.none", RestartScan=True) == api.STATUS_NO_SUCH_FILE
    names = []
    restart = True
    while query(ReturnSingleEntry=True, RestartScan=restart) == 0:
        restart = False
        names += [entry.name for entry in entries.value]
    assert sorted(names) == [b".", b"..", b"a.txt", b"b.txt", b"c.bin"]


def test_attributes_security_and_controls(peer: Any, place: Path) -> None:
    _, file, _ = create(peer, "file")
    eas, length = Out[Any](), Out[int]()
    assert ddi.FltSetEaFile(peer, file, {"user.a": b"1", "user.b": b"22"}) == 0
    assert ddi.FltQueryEaFile(peer, file, eas, 0, LengthReturned=length) == 0
    assert (eas.value, length.value) == ({"user.a": b"1", "user.b": b"22"}, 3)
    assert ddi.FltSetEaFile(peer, file, {"user.a": b""}) == 0
    assert ddi.FltQueryEaFile(peer, file, eas, 0, EaList=["user.a"]) == api.STATUS_NO_EAS_ON_FILE
    descriptor = Out[Any]()
    assert ddi.FltSetSecurityObject(peer, file, api.DACL_SECURITY_INFORMATION, ddi.SECURITY_DESCRIPTOR(0o604)) == 0
    assert ddi.FltQuerySecurityObject(peer, file, api.DACL_SECURITY_INFORMATION, descriptor) == 0
    assert descriptor.value == ddi.SECURITY_DESCRIPTOR(0o604, os.geteuid(), os.getegid())
    assert ddi.FltFsControlFile(peer, file, 0x7777) == api.STATUS_INVALID_DEVICE_REQUEST
    assert ddi.FltDeviceIoControlFile(peer, file, 0x7777) == api.STATUS_INVALID_DEVICE_REQUEST
    flags, got = bytearray(8), Out[int]()
    assert ddi.FltFsControlFile(peer, file, 0x80086601, None, 0, flags, 8, got) == 0, "FS_IOC_GETFLAGS"
    assert got.value in (4, 8)
    punched = (0).to_bytes(8, "little") + (4).to_bytes(8, "little")
    assert ddi.FltFsControlFile(peer, file, api.FSCTL_SET_ZERO_DATA, punched, 16) == 0
    assert ddi.FltFsControlFile(peer, file, api.FSCTL_SET_ZERO_DATA, punched, 8) == api.STATUS_INVALID_PARAMETER
    assert (place / "file").read_bytes() == b"\0\0\0\x00456789"


@pytest.mark.verifier_errors("callback data was used after")
def test_callback_data_by_hand(peer: Any) -> None:
    _, file, _ = create(peer, "file")
    data = Out[Any]()
    assert ddi.FltAllocateCallbackData(peer, file, data) == 0
    made, room, done = data.value, bytearray(3), threading.Event()
    made.major, made.buffer, made.offset = api.IRP_MJ_READ, room, 7
    ddi.FltPerformSynchronousIo(made)
    assert (made.status, made.information, room) == (0, 3, b"789")
    ddi.FltReuseCallbackData(made)
    assert made.information == 0
    made.major, made.buffer, made.offset = api.IRP_MJ_READ, room, 0
    assert ddi.FltPerformAsynchronousIo(made, lambda data, context: context.set(), done) == api.STATUS_PENDING
    assert done.wait(20)
    assert room == b"012"
    ddi.FltFreeCallbackData(made)
    with pytest.raises(ReferenceError):
        made.perform()
    assert ddi.FltAllocateCallbackDataEx(peer, file, 0, data) == 0
    assert data.value is not made and data.value.is_generated


TOP = '''MANIFEST = {"name": "top", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Top"}
from stackfs.api import *

class Top(Filter):
    operations = (Operation(IRP_MJ_CREATE, pre="pre"),)

    def __init__(self, options):
        super().__init__(options)
        self.seen = []

    def pre(self, data, objects):
        self.seen.append((data.path, data.is_generated))
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


def test_b4_12_without_an_instance_it_begins_at_the_top(tmp_path: Path) -> None:
    import trio

    (tmp_path / "filters").mkdir()
    (tmp_path / "volume").mkdir()
    (tmp_path / "filters/top.py").write_text(TOP)
    manager = FilterManager([str(tmp_path / "filters")])
    core = Volume(os.open(tmp_path / "volume", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    volume = manager.add_volume("v", "/mnt/v", str(tmp_path / "volume"), core)

    async def main() -> None:
        await manager.load("top")
        loaded: Any = manager.filter("top")
        handle = Out[Any]()
        for name, status in (("/mnt/v/new", 0), ("v/new", 0), ("/mnt/w/new", api.STATUS_OBJECT_PATH_NOT_FOUND)):
            found = ddi.FltCreateFile(
                loaded, None, handle, BOTH, OBJECT_ATTRIBUTES(name), None, None, 0, 0, api.FILE_OPEN_IF)  # fmt: skip
            assert found == status, name
            if status == 0:
                ddi.FltClose(handle.value)
        assert ("/new", True) in loaded.object.seen
        await manager.remove_volume(volume)

    trio.run(main)
    assert (tmp_path / "volume/new").exists()
