"""Byte-range locks that a filter keeps itself (docs/semantics.md, B6.1 to B6.5), without a mount and on one."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Drive, needs_root
from stack_driver import OPEN, READ, RELEASE, WRITE, entry_of, error_of, lookup, opened

from stackfs import api
from stackfs.api import (
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    IRP_MJ_LOCK_CONTROL,
    IRP_MJ_READ,
    IRP_MJ_WRITE,
    STATUS_FILE_LOCK_CONFLICT,
)
from stackfs.cext.python_requests import VfsError, Volume
from stackfs.ddi import file_locks as ddi
from stackfs.ddi.file_locks import FILE_LOCK_INFO

FLUSH, GETLK, SETLK, SETLKW = 25, 31, 32, 33
SHARED, EXCLUSIVE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
LAST = 0x7FFFFFFFFFFFFFFF


class Keeper:
    """An instance that keeps the locks of `file`, and refuses what they forbid; a second one below sees what is
    left."""

    def __init__(self, core: Volume, complete: Any = None, unlock: Any = None) -> None:
        self.core = core
        made = ddi.FltAllocateFileLock(complete, unlock)
        assert made is not None
        self.lock = made
        self.below: list[int] = []
        self.returned: list[int] = []
        core.stack.insert(entry_of(
            (IRP_MJ_LOCK_CONTROL, self.locks, None), (IRP_MJ_READ, self.reads, None), (IRP_MJ_WRITE, self.writes, None),
            name="keeper", at="2"))  # fmt: skip
        core.stack.insert(entry_of((IRP_MJ_LOCK_CONTROL, self.see, None), name="below", at="1"))
        self.node = lookup(core, b"file")
        self.one = core.request(OPEN, self.node, flags=os.O_RDWR).do().fh
        self.two = core.request(OPEN, self.node, flags=os.O_RDWR).do().fh

    def locks(self, data: Any, objects: Any) -> int:
        self.returned.append(ddi.FltProcessFileLock(self.lock, data, "context"))
        return self.returned[-1]

    def reads(self, data: Any, objects: Any) -> int:
        may = ddi.FltCheckLockForReadAccess(self.lock, data)
        return FLT_PREOP_SUCCESS_NO_CALLBACK if may else data.complete(STATUS_FILE_LOCK_CONFLICT)

    def writes(self, data: Any, objects: Any) -> int:
        may = ddi.FltCheckLockForWriteAccess(self.lock, data)
        return FLT_PREOP_SUCCESS_NO_CALLBACK if may else data.complete(STATUS_FILE_LOCK_CONFLICT)

    def see(self, data: Any, objects: Any) -> int:
        self.below.append(data.minor)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def ask(self, opcode: int, fh: int, owner: int, kind: int, start: int = 0, end: int = LAST, **more: int) -> Any:
        return self.core.request(
            opcode, self.node, fh=fh, lock_owner=owner, lock_type=kind, offset=start, end=end, lock_pid=owner, **more
        )

    def set(self, fh: int, owner: int, kind: int, start: int = 0, end: int = LAST, **more: int) -> int:
        try:
            self.ask(SETLK, fh, owner, kind, start, end, **more).do()
        except VfsError as error:
            return error.errno or 0
        return 0

    def wait(self, fh: int, owner: int, kind: int, start: int = 0, end: int = LAST) -> Waiter:
        waiter = Waiter(self.ask(SETLKW, fh, owner, kind, start, end))
        finish = time.monotonic() + 10
        count = self.lock.waiting
        waiter.start()
        while self.lock.waiting == count and waiter.is_alive():
            assert time.monotonic() < finish
            time.sleep(0.001)
        return waiter

    def held(self) -> list[tuple[int, int, bool, int]]:
        return [(each.start, each.end, each.exclusive, each.owner) for each in self.lock]


class Waiter(threading.Thread):
    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request
        self.error: int | None = None

    def run(self) -> None:
        try:
            self.request.do()
            self.error = 0
        except VfsError as error:
            self.error = error.errno

    def ended(self) -> int | None:
        self.join(10)
        assert not self.is_alive()
        return self.error


@pytest.fixture
def keeper(core: Volume, place: Path) -> Keeper:
    return Keeper(core)


def test_b6_1_two_owners(keeper: Keeper) -> None:
    assert keeper.set(keeper.one, 1, EXCLUSIVE, 10, 19) == 0
    assert keeper.set(keeper.two, 2, SHARED, 19, 25) == errno.EAGAIN
    assert keeper.set(keeper.two, 2, SHARED, 20, 25) == 0
    assert keeper.set(keeper.one, 1, SHARED, 20, 30) == 0, "two share"
    assert keeper.set(keeper.one, 1, EXCLUSIVE, 20, 30) == errno.EAGAIN
    assert keeper.set(keeper.two, 2, EXCLUSIVE, 0, 9) == 0
    assert keeper.below == [], "nobody below sees any of it"
    assert keeper.set(keeper.one, 1, NONE, 0, 100) == 0
    assert keeper.held() == [(0, 9, True, 2), (20, 25, False, 2)]
    assert api.FLT_PREOP_COMPLETE in keeper.returned and len(set(keeper.returned)) == 1


def test_b6_2_one_owner_s_locks_replace_each_other(keeper: Keeper) -> None:
    assert keeper.set(keeper.one, 1, EXCLUSIVE, 0, 99) == 0
    assert keeper.set(keeper.one, 1, SHARED, 40, 59) == 0
    assert keeper.held() == [(0, 39, True, 1), (40, 59, False, 1), (60, 99, True, 1)]
    assert keeper.set(keeper.two, 2, SHARED, 45, 50) == 0
    assert keeper.set(keeper.one, 1, NONE, 30, 70) == 0
    assert keeper.held() == [(0, 29, True, 1), (45, 50, False, 2), (71, 99, True, 1)]
    assert keeper.set(keeper.one, 1, NONE) == 0, "what is not locked can be unlocked"


def test_b6_2_it_is_asked_who_is_in_the_way(keeper: Keeper) -> None:
    assert keeper.set(keeper.one, 7, EXCLUSIVE, 5, 9) == 0
    assert keeper.ask(GETLK, keeper.two, 2, SHARED).do().lock == (EXCLUSIVE, 5, 9, 7)
    assert keeper.ask(GETLK, keeper.two, 2, SHARED, 10).do().lock[0] == NONE
    assert keeper.ask(GETLK, keeper.one, 7, EXCLUSIVE).do().lock[0] == NONE, "its own"


def test_b6_3_the_one_who_waits_gets_it(keeper: Keeper) -> None:
    assert keeper.set(keeper.one, 1, EXCLUSIVE) == 0
    first, second = keeper.wait(keeper.two, 2, SHARED, 0, 4), keeper.wait(keeper.two, 3, SHARED, 0, 4)
    third = keeper.wait(keeper.two, 4, EXCLUSIVE, 0, 4)
    assert keeper.returned[-1] == api.FLT_PREOP_PENDING and keeper.lock.waiting == 3
    assert keeper.set(keeper.one, 1, NONE, 4) == 0, "not enough"
    assert keeper.lock.waiting == 3
    assert keeper.set(keeper.one, 1, NONE) == 0
    assert (first.ended(), second.ended(), keeper.lock.waiting) == (0, 0, 1)
    assert keeper.set(keeper.two, 2, NONE) == keeper.set(keeper.two, 3, NONE) == 0
    assert third.ended() == 0 and keeper.held() == [(0, 4, True, 4)]


def test_b6_3_a_signal_or_the_end_of_the_lock_ends_the_wait(keeper: Keeper) -> None:
    assert keeper.set(keeper.one, 1, EXCLUSIVE) == 0
    interrupted, ended = keeper.wait(keeper.two, 2, SHARED), keeper.wait(keeper.two, 3, SHARED)
    assert keeper.core.interrupt(interrupted.request.number)
    assert interrupted.ended() == errno.EINTR and keeper.lock.waiting == 1
    ddi.FltUninitializeFileLock(keeper.lock)
    assert ended.ended() == errno.EINVAL, "STATUS_RANGE_NOT_LOCKED"
    assert keeper.held() == [] and not ddi.FsRtlAreThereCurrentFileLocks(keeper.lock)


@pytest.mark.parametrize("how", ["close(2)", "the end of the open file"])
def test_b6_4_locks_end_with_what_they_are_held_by(keeper: Keeper, how: str) -> None:
    assert keeper.set(keeper.one, 1, EXCLUSIVE, 0, 4) == keeper.set(keeper.two, 2, EXCLUSIVE, 5, 9) == 0
    waiter = keeper.wait(keeper.two, 3, SHARED, 0, 4)
    if how == "close(2)":
        keeper.core.request(FLUSH, keeper.node, fh=keeper.one, lock_owner=1).do()
    else:
        keeper.core.request(RELEASE, keeper.node, fh=keeper.one).do()
    assert waiter.ended() == 0
    assert keeper.held() == [(0, 4, False, 3), (5, 9, True, 2)]


def test_b6_4_flock_is_another_kind(keeper: Keeper) -> None:
    assert keeper.set(keeper.one, 1, EXCLUSIVE) == 0
    assert keeper.set(keeper.two, 2, EXCLUSIVE, flags=1) == 0
    assert keeper.set(keeper.one, 3, SHARED, flags=1) == errno.EAGAIN


def test_b6_5_reads_and_writes(keeper: Keeper) -> None:
    def transfer(opcode: int, fh: int, owner: int, start: int, size: int, own: bool = True) -> int:
        return error_of(keeper.core, opcode, keeper.node, fh=fh, offset=start, size=size, buffer=bytearray(size),
                        lock_owner=owner, open_flags=2 if own else 0)  # fmt: skip

    assert keeper.set(keeper.one, 1, EXCLUSIVE, 4, 5) == keeper.set(keeper.one, 1, SHARED, 7, 7) == 0
    assert transfer(READ, keeper.two, 2, 4, 1) == transfer(READ, keeper.two, 2, 0, 10) == errno.EAGAIN
    assert transfer(READ, keeper.two, 2, 0, 4) == transfer(READ, keeper.two, 2, 6, 4) == 0, "what is shared can be read"
    assert transfer(READ, keeper.one, 1, 0, 10) == 0, "its owner"
    assert transfer(READ, keeper.two, 2, 0, 10, own=False) == 0, "pages are nobody's"
    assert transfer(WRITE, keeper.one, 1, 4, 2) == 0
    assert transfer(WRITE, keeper.one, 1, 7, 1) == errno.EAGAIN, "what is shared nobody writes"
    assert transfer(WRITE, keeper.two, 2, 5, 1) == errno.EAGAIN
    assert transfer(WRITE, keeper.two, 2, 8, 1) == 0
    assert keeper.set(keeper.one, 1, NONE) == 0
    assert transfer(WRITE, keeper.two, 2, 0, 8) == 0


def test_the_routines_of_the_filter_are_called(core: Volume, place: Path) -> None:
    told: list[Any] = []

    def complete(context: Any, data: Any) -> int | None:
        told.append((context, data.minor, data.status))
        return api.STATUS_ACCESS_DENIED if data.minor == api.IRP_MN_LOCK and data.range[0] == 5 else None

    keeper = Keeper(core, complete, lambda context, gone: told.append((context, gone)))
    assert keeper.set(keeper.one, 1, EXCLUSIVE, 0, 4) == 0
    assert keeper.set(keeper.one, 1, EXCLUSIVE, 5, 9) == errno.EACCES
    assert keeper.held() == [(0, 4, True, 1)], "what it refused has not been locked"
    assert ddi.FltGetNextFileLock(keeper.lock, True) == FILE_LOCK_INFO(0, 5, True, 1, *_file_of(keeper), 1, 4)
    assert ddi.FltGetNextFileLock(keeper.lock, False) is None
    told.clear()
    assert keeper.set(keeper.one, 1, NONE, 2, 3) == 0
    assert told[0][1].StartingByte == 0 and told[0][1].EndingByte == 4
    assert told[1] == ("context", api.IRP_MN_UNLOCK_SINGLE, 0)
    first, second = ddi.FltGetNextFileLock(keeper.lock, True), ddi.FltGetNextFileLock(keeper.lock, False)
    assert first is not None and second is not None and (first.EndingByte, second.StartingByte) == (1, 4)


def _file_of(keeper: Keeper) -> tuple[int]:
    return (next(iter(keeper.lock)).file,)


def test_what_is_no_lock_is_refused(core: Volume, place: Path) -> None:
    lock = ddi.FltAllocateFileLock()
    assert lock is not None
    core.stack.insert(entry_of((IRP_MJ_READ, lambda data, _: ddi.FltProcessFileLock(lock, data), None)))
    fh = opened(core, lookup(core, b"file"))
    assert error_of(core, READ, fh=fh, buffer=bytearray(4), size=4) == errno.EOPNOTSUPP, "INVALID_DEVICE_REQUEST"


KEEPS = '''MANIFEST = {"name": "keeps", "altitude": "370100", "group": "FSFilter Activity Monitor", "filter": "Keeps"}
from stackfs.api import *

class Locks(FileContext, FileLock):
    def __init__(self):
        FileContext.__init__(self)
        FileLock.__init__(self)

class Keeps(Filter):
    """Locks are kept here, and never reach the backing file."""

    contexts = (Locks,)
    operations = (Operation(IRP_MJ_LOCK_CONTROL, pre="lock"),)

    def lock(self, data, objects):
        return data.ensure_context(Locks).process(data)
'''


@needs_root
def test_b6_on_each_lane(drive: Callable[..., Drive], lanes: str, tmp_path: Path) -> None:
    (tmp_path / "keeps.py").write_text(KEEPS)
    made = drive(f"filterdir={tmp_path},filter=keeps,locks=stack")
    (made.mnt / "f").write_bytes(b"x" * 100)
    with (made.mnt / "f").open("r+b") as one, (made.mnt / "f").open("r+b") as two:
        ofd_set, ofd_wait = 37, 38
        take = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)
        fcntl.fcntl(one, ofd_set, take)
        with pytest.raises(BlockingIOError):
            fcntl.fcntl(two, ofd_set, take)
        with (made.src / "f").open("r+b") as beside:
            fcntl.fcntl(beside, ofd_set, take)
            fcntl.fcntl(beside, ofd_set, struct.pack("hhqqi4x", fcntl.F_UNLCK, 0, 0, 10, 0))
        waiter = threading.Thread(target=lambda: fcntl.fcntl(two, ofd_wait, take))
        waiter.start()
        time.sleep(0.1)
        assert waiter.is_alive()
        one.close()
        waiter.join(10)
        assert not waiter.is_alive()
