"""Notifications of changes in directories, which a filter gives (docs/semantics.md, B6.6 to B6.9)."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Drive, needs_root
from stack_driver import OPENDIR, RELEASEDIR, UNLINK, entry_of, go_on, lookup

from stackfs import api
from stackfs.api import IRP_MJ_CLEANUP, IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_SET_INFORMATION
from stackfs.cext import filter_file
from stackfs.cext.python_requests import VfsError, Volume
from stackfs.ddi import directory_changes as ddi
from stackfs.ddi import filter_io
from stackfs.ddi.directory_changes import FILE_ACTION_ADDED, FILE_ACTION_REMOVED, FILE_NOTIFY_CHANGE_FILE_NAME
from stackfs.ddi.out import Out
from stackfs.directory_changes import MOST, DirectoryChanges, pack, unpack

IOCTL = 39
WAIT = 0xC000F510 | 200 << 16
"""_IOWR(0xF5, 0x10, char[200])"""


class Teller:
    """An instance: an ioctl on an open directory waits for a change."""

    def __init__(self, core: Volume, **settings: Any) -> None:
        self.core = core
        made: Out[DirectoryChanges] = Out()
        ddi.FsRtlNotifyInitializeSync(made)
        self.sync = made.value
        self.settings = {"WatchTree": False, "IgnoreBuffer": False, "CompletionFilter": 0xFFF} | settings
        core.stack.insert(entry_of(
            (IRP_MJ_FILE_SYSTEM_CONTROL, self.control, None), (IRP_MJ_SET_INFORMATION, go_on, self.renamed),
            (IRP_MJ_CLEANUP, self.cleanup, None)))  # fmt: skip
        self.node = lookup(core, b"folder")
        self.fh = core.request(OPENDIR, self.node).do().fh

    def control(self, data: Any, objects: Any) -> int:
        if data.control_code != WAIT:
            return api.FLT_PREOP_SUCCESS_NO_CALLBACK
        s = self.settings
        ddi.FltNotifyFilterChangeDirectory(
            self.sync, None, data.file.identity, data.path, s["WatchTree"], s["IgnoreBuffer"], s["CompletionFilter"],
            data, s.get("TraverseCallback"), "subject", s.get("FilterCallback"),
        )  # fmt: skip
        return api.FLT_PREOP_PENDING

    def renamed(self, data: Any, *_: Any) -> None:
        if data.information_class == api.FileDispositionInformation:
            self.report(data.path.removesuffix(" (deleted)"), FILE_ACTION_REMOVED)

    def cleanup(self, data: Any, objects: Any) -> int:
        ddi.FsRtlNotifyCleanup(self.sync, None, data.file.identity)
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    def report(self, path: str, action: int, match: int = FILE_NOTIFY_CHANGE_FILE_NAME) -> None:
        ddi.FsRtlNotifyFilterReportChange(self.sync, None, path, 0, None, None, match, action, "target", "filter")

    def wait(self, room: int = 200) -> Waiter:
        waiter = Waiter(self.core, self.fh, room)
        before = self.sync.waiting
        waiter.start()
        finish = time.monotonic() + 10
        while self.sync.waiting == before and waiter.is_alive():
            assert time.monotonic() < finish
            time.sleep(0.001)
        return waiter


class Waiter(threading.Thread):
    def __init__(self, core: Volume, fh: int, room: int) -> None:
        super().__init__()
        self.buffer = bytearray(room)
        self.request = core.request(IOCTL, fh=fh, command=WAIT, input=b"", size=room, buffer=self.buffer)
        self.error = -1
        self.length = 0

    def run(self) -> None:
        try:
            self.length = self.request.do().length
            self.error = 0
        except VfsError as error:
            self.error = error.errno or 0

    def ended(self) -> tuple[int, list[tuple[int, bytes]]]:
        self.join(10)
        assert not self.is_alive()
        return self.error, unpack(bytes(self.buffer[: self.length])) if self.length else []


def test_b6_6_a_change_in_the_directory(core: Volume, place: Path) -> None:
    teller = Teller(core)
    (place / "folder/x").touch()
    (place / "y").touch()
    waiter = teller.wait()
    core.request(UNLINK, name=b"y").do()
    teller.report("/folder/deeper/z", FILE_ACTION_ADDED)
    teller.report("/folderish", FILE_ACTION_ADDED)
    assert teller.sync.waiting == 1, "none of its concern"
    core.request(UNLINK, teller.node, name=b"x").do()
    assert waiter.ended() == (0, [(FILE_ACTION_REMOVED, b"x")])


def test_b6_6_a_tree_and_only_what_was_asked_for(core: Volume, place: Path) -> None:
    teller = Teller(core, WatchTree=True, CompletionFilter=FILE_NOTIFY_CHANGE_FILE_NAME)
    waiter = teller.wait()
    teller.report("/folder/a", FILE_ACTION_ADDED, ddi.FILE_NOTIFY_CHANGE_SIZE)
    assert teller.sync.waiting == 1
    teller.report("/folder/a/b", FILE_ACTION_ADDED)
    assert waiter.ended() == (0, [(FILE_ACTION_ADDED, b"a/b")])


def test_b6_7_what_changes_between_two_waits_is_kept(core: Volume, place: Path) -> None:
    teller = Teller(core)
    teller.report("/folder/early", FILE_ACTION_ADDED)
    first = teller.wait()
    teller.report("/folder/one", FILE_ACTION_ADDED)
    assert first.ended() == (0, [(FILE_ACTION_ADDED, b"one")])
    teller.report("/folder/two", FILE_ACTION_ADDED)
    teller.report("/folder/three\udcff", FILE_ACTION_REMOVED)
    assert teller.wait().ended() == (0, [(FILE_ACTION_ADDED, b"two"), (FILE_ACTION_REMOVED, b"three\xff")])


@pytest.mark.parametrize("why", ["no room", "no names wanted", "too many"])
def test_b6_7_who_is_not_told_has_to_look_himself(core: Volume, place: Path, why: str) -> None:
    teller = Teller(core, IgnoreBuffer=why == "no names wanted")
    first = teller.wait(20 if why == "no room" else 200)
    if why != "too many":
        teller.report("/folder/a rather long name", FILE_ACTION_ADDED)
        assert first.ended() == (0, []), "STATUS_NOTIFY_ENUM_DIR"
        return
    teller.report("/folder/x", FILE_ACTION_ADDED)
    assert first.ended()[1]
    for number in range(MOST // 200):
        teller.report(f"/folder/{number:0200}", FILE_ACTION_ADDED)
    assert teller.wait().ended() == (0, [])
    last = teller.wait()
    teller.report("/folder/x", FILE_ACTION_ADDED)
    assert last.ended() == (0, [(FILE_ACTION_ADDED, b"x")]), "and then it goes on"


def test_b6_8_how_a_wait_ends_without_a_change(core: Volume, place: Path) -> None:
    teller = Teller(core)
    interrupted = teller.wait()
    assert core.interrupt(interrupted.request.number)
    assert interrupted.ended()[0] == errno.EINTR and teller.sync.waiting == 0
    deleted = teller.wait()
    ddi.FltNotifyFilterChangeDirectory(teller.sync, None, None, "/folder", False, False, 0, None)
    assert deleted.ended()[0] == errno.EBUSY, "STATUS_DELETE_PENDING"
    closed = teller.wait()
    core.request(RELEASEDIR, teller.node, fh=teller.fh).do()
    assert closed.ended() == (0, []), "STATUS_NOTIFY_CLEANUP"
    made: Out[DirectoryChanges] = Out()
    made.value = teller.sync
    ddi.FsRtlNotifyUninitializeSync(made)


def test_b6_9_the_filter_is_asked(core: Volume, place: Path) -> None:
    asked: list[Any] = []
    answers = {"traverse": False, "filter": True}

    def traverse(context: Any, target: Any, subject: Any) -> bool:
        asked.append((target, subject))
        return answers["traverse"]

    def chosen(context: Any, filter_context: Any) -> bool:
        asked.append(filter_context)
        return answers["filter"]

    teller = Teller(core, WatchTree=True, TraverseCallback=traverse, FilterCallback=chosen)
    waiter = teller.wait()
    teller.report("/folder/a/b", FILE_ACTION_ADDED)
    answers.update(traverse=True, filter=False)
    teller.report("/folder/a/b", FILE_ACTION_ADDED)
    assert teller.sync.waiting == 1 and asked == ["filter", ("target", "subject"), "filter"]
    answers.update(filter=True)
    teller.report("/folder/a/c", FILE_ACTION_ADDED)
    assert waiter.ended()[1] == [(FILE_ACTION_ADDED, b"a/c")]


def test_b6_6_a_filter_above_waits(core: Volume, place: Path) -> None:
    """IRP_MN_NOTIFY_CHANGE_DIRECTORY, as a filter makes it by hand; whoever keeps no watches passes it on to the
    base."""
    sync = DirectoryChanges()
    seen: list[Any] = []

    def pre(data: Any, objects: Any) -> int:
        if data.minor != api.IRP_MN_NOTIFY_CHANGE_DIRECTORY:
            return api.FLT_PREOP_SUCCESS_NO_CALLBACK
        seen.append(data.completion_filter)
        return sync.wait(data, "above", data.path, wanted=data.completion_filter)

    above = entry_of(name="above", at="2")
    core.stack.introduce(above)
    core.stack.insert(above)
    below = entry_of((IRP_MJ_DIRECTORY_CONTROL, pre, None), name="below", at="1")
    core.stack.insert(below)
    with filter_file.open_below(above, "folder", os.O_RDONLY | os.O_DIRECTORY) as directory:
        made = filter_file.allocate_below(above, directory)
        room, done = bytearray(100), threading.Event()

        def ask() -> None:
            made.major, made.minor = IRP_MJ_DIRECTORY_CONTROL, api.IRP_MN_NOTIFY_CHANGE_DIRECTORY
            made.completion_filter, made.buffer = FILE_NOTIFY_CHANGE_FILE_NAME, room

        ask()
        assert made.start(lambda _: done.set()) == api.STATUS_PENDING
        while not sync.waiting:
            time.sleep(0.001)
        sync.report("/folder/new", FILE_ACTION_ADDED, FILE_NOTIFY_CHANGE_FILE_NAME)
        assert done.wait(10) and made.status == 0 and seen == [FILE_NOTIFY_CHANGE_FILE_NAME]
        assert unpack(bytes(room[: made.information])) == [(FILE_ACTION_ADDED, b"new")]
        core.stack.remove(below)
        ask()
        assert made.perform() == api.STATUS_INVALID_DEVICE_REQUEST, "the base keeps no watches: inotify(7) does"
        made.free()


def test_records_are_checked() -> None:
    changes = [(1, b"a"), (5, b"longer name"), (2, b"")]
    assert unpack(pack(changes)) == changes
    for bad in (b"", b"\0" * 11, pack(changes)[:-1][:20], b"\4\0\0\0" + pack([(1, b"abcd")])[4:]):
        with pytest.raises(ValueError, match="record"):
            unpack(bad)
    assert filter_io.SL_RESTART_SCAN == 1


TELLS = '''MANIFEST = {"name": "tells", "altitude": "370100", "group": "FSFilter Activity Monitor", "filter": "Tells"}
from stackfs.api import *
from stackfs.directory_changes import FILE_ACTION_ADDED, FILE_NOTIFY_CHANGE_FILE_NAME

class Tells(Filter):
    """ioctl(open directory, 0xF510) waits until a file is made in it."""

    operations = (Operation(IRP_MJ_FILE_SYSTEM_CONTROL, pre="control"), Operation(IRP_MJ_CREATE, post="created"),
                  Operation(IRP_MJ_CLEANUP, pre="cleanup"))

    def instance_setup(self, instance, flags):
        instance.context = DirectoryChanges()
        return STATUS_SUCCESS

    def control(self, data, objects):
        if data.control_code & 0xFFFF != 0xF510:
            return FLT_PREOP_SUCCESS_NO_CALLBACK
        return objects.context.wait(data, data.file.identity, data.path)

    def created(self, data, objects, context, flags):
        if data.status == STATUS_SUCCESS and data.create_disposition != FILE_OPEN:
            objects.context.report(data.path, FILE_ACTION_ADDED, FILE_NOTIFY_CHANGE_FILE_NAME)

    def cleanup(self, data, objects):
        objects.context.cleanup(data.file.identity)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


@needs_root
def test_b6_a_program_waits_on_each_lane(drive: Callable[..., Drive], lanes: str, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "tells.py").write_text(TELLS)
    made = drive(f"filterdir={tmp_path},filter=tells")
    (made.mnt / "folder").mkdir()
    directory = os.open(made.mnt / "folder", os.O_RDONLY | os.O_DIRECTORY)
    buffer = bytearray(200)
    waiter = threading.Thread(target=lambda: fcntl.ioctl(directory, WAIT, buffer))
    waiter.start()
    time.sleep(0.2)
    assert waiter.is_alive()
    (made.mnt / "folder/new file").touch()
    waiter.join(10)
    assert not waiter.is_alive()
    os.close(directory)
    assert unpack(bytes(buffer)) == [(FILE_ACTION_ADDED, b"new file")]
