"""Oplocks in a filter (docs/semantics.md A9), driven without a mount: FSCTLs that stay pended, operations that wait."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from native_build import build
from stack_driver import READ, RELEASE, UNLINK, WRITE, Host, entry_of, go_on, lookup

from stackfs import api, fltkernel
from stackfs.api import Oplock, set_oplock_keys
from stackfs.cext.python_requests import Request, Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.fltkernel import REQUEST_OPLOCK_INPUT_BUFFER, REQUEST_OPLOCK_OUTPUT_BUFFER

OPEN, FSYNC, OPENDIR, IOCTL = 14, 20, 27, 39
SECONDS = 5.0
Data = Any
R, H, W = api.OPLOCK_LEVEL_CACHE_READ, api.OPLOCK_LEVEL_CACHE_HANDLE, api.OPLOCK_LEVEL_CACHE_WRITE
RH, RW, RWH = R | H, R | W, R | H | W
KEY = b"k" * 16
CHECKED = (
    api.IRP_MJ_READ, api.IRP_MJ_WRITE, api.IRP_MJ_FLUSH_BUFFERS, api.IRP_MJ_LOCK_CONTROL, api.IRP_MJ_SET_INFORMATION,
    api.IRP_MJ_SET_SECURITY, api.IRP_MJ_CLEANUP,
)  # fmt: skip


OUTCOMES: dict[int, tuple[int, int]] = {}
"""Status and information of each FSCTL that has ended, by its request's number."""


def outcome(data: Data, objects: object, context: object, flags: int) -> None:
    OUTCOMES[data.request_number] = data.status, data.information


def nothing(data: Data, objects: object, context: object, flags: int) -> None:
    """The post that an operation is owed which FltCheckOplock lets go on."""


class Asked:
    """A request under way."""

    def __init__(self, request: Request, buffer: bytearray | None = None) -> None:
        self.request = request
        self.buffer = buffer
        self.woken = threading.Event()
        if request.run() or not request.is_held or not request.park(self.woken.set):
            self.woken.set()

    @property
    def waits(self) -> bool:
        return not self.woken.is_set()

    @property
    def status(self) -> int:
        return OUTCOMES[self.request.number][0]

    @property
    def information(self) -> int:
        return OUTCOMES[self.request.number][1]

    def ended(self) -> int:
        """Its errno, or 0."""
        assert self.woken.wait(SECONDS)
        while not self.request.run():  # at the base, which a loop leaves to a worker
            self.request.wait()
        return self.request.error

    def broken(self) -> tuple[int, int, bool]:
        """Of a granted FSCTL_REQUEST_OPLOCK: original and new level, is an acknowledgement owed."""
        assert self.ended() == 0 and self.buffer is not None and self.request.length == 24
        version, length, original, new, flags, _, _ = REQUEST_OPLOCK_OUTPUT_BUFFER.unpack(self.buffer)
        assert (version, length) == (1, 24)
        return original, new, bool(flags & api.REQUEST_OPLOCK_OUTPUT_FLAG_ACK_REQUIRED)


MADE: list[Locking] = []


@pytest.fixture(autouse=True)
def ended(core: Volume) -> Iterator[None]:
    """Nobody is left holding anything of `core`, which is closed then."""
    yield
    for each in MADE:
        each.oplock.uninitialize()
    MADE.clear()


class Locking:
    """An instance that keeps one oplock for `file`, as a filter would in its stream context."""

    def __init__(self, core: Volume, routine: Any = Oplock.go_on) -> None:
        self.core = core
        self.oplock = Oplock()
        self.routine = routine
        self.count = 0
        """FltOplockFsctrl's OpenCount."""
        self.flags = 0
        self.check_flags = 0
        self.keys: dict[int, bytes] = {}
        """By requestor's tid, what its opens get."""
        self.statuses: list[int] = []
        self.host = Host()
        self.nodeid = lookup(core, b"file")
        rows: list[tuple[int, Any, Any]] = [(major, self.pre, nothing) for major in CHECKED]
        rows += [(api.IRP_MJ_CREATE, self.pre_create, nothing), (api.IRP_MJ_FILE_SYSTEM_CONTROL, self.control, nothing)]
        self.entry: InstanceEntry = entry_of(*rows, host=self.host)
        core.stack.insert(self.entry)
        core.stack.insert(entry_of((api.IRP_MJ_FILE_SYSTEM_CONTROL, go_on, outcome), name="above", at="9"))
        MADE.append(self)

    def pre_create(self, data: Data, objects: object) -> int:
        if data.tid in self.keys:
            set_oplock_keys(data, self.keys[data.tid])
        return self.pre(data, objects)

    def pre(self, data: Data, objects: object) -> int:
        status = self.oplock.check(data, self.routine, flags=self.check_flags)
        self.statuses.append(status)
        return status

    def control(self, data: Data, objects: object) -> int:
        return self.oplock.fsctl(data, self.count, self.flags)

    def instead(self, *rows: tuple[int, Any, Any]) -> InstanceEntry:
        """An instance with these callbacks takes its place."""
        self.core.stack.remove(self.entry)
        self.entry = entry_of(*rows, host=self.host)
        self.core.stack.insert(self.entry)
        return self.entry

    def open(self, flags: int = os.O_RDWR, tid: int = 0) -> int:
        return self.core.request(OPEN, self.nodeid, flags=flags, tid=tid).do().fh

    def open_somehow(self, tid: int) -> int:
        """However long others would not let it: it is cancelled, and tried again."""
        while True:
            opening = Asked(self.core.request(OPEN, self.nodeid, flags=os.O_RDWR, tid=tid))
            if opening.waits and not opening.woken.wait(0.01):
                self.core.interrupt(opening.request.number)
            if opening.ended() == 0:
                return opening.request.fh

    def ask(self, opcode: int, fh: int = 0, **arguments: Any) -> Asked:
        buffer = bytearray(arguments.get("size", 0)) or None
        if opcode == WRITE:
            buffer = bytearray(b"new")
            arguments |= {"size": 3}
        if opcode in (READ, WRITE):
            arguments.setdefault("open_flags", 2)  # a program's own, not the page cache's
        return Asked(self.core.request(opcode, fh=fh, buffer=buffer, **arguments), buffer)

    def fsctl(self, fh: int, code: int, given: bytes = b"", room: int = 0) -> Asked:
        buffer = bytearray(room) if room else None
        return Asked(self.core.request(IOCTL, fh=fh, command=code, input=given, size=room, buffer=buffer), buffer)

    def request(self, fh: int, level: int, flags: int = api.REQUEST_OPLOCK_INPUT_FLAG_REQUEST, room: int = 24) -> Asked:
        return self.fsctl(fh, api.FSCTL_REQUEST_OPLOCK, REQUEST_OPLOCK_INPUT_BUFFER.pack(1, 12, level, flags), room)

    def acknowledge(self, fh: int, level: int) -> Asked:
        return self.request(fh, level, api.REQUEST_OPLOCK_INPUT_FLAG_ACK)


def test_a_read_waits_until_the_writer_has_acknowledged(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    held = locking.request(own, RWH)
    assert held.waits and locking.oplock.state == RWH | api.OPLOCK_EXCLUSIVE
    mine = locking.ask(READ, own, size=4)
    assert mine.ended() == 0 and bytes(mine.buffer or b"") == b"0123"
    readers = [locking.ask(READ, other, size=4) for _ in range(3)]
    assert all(each.waits for each in readers) and held.broken() == (RWH, RH, True)
    written = locking.ask(WRITE, own, offset=0)
    assert written.ended() == 0
    assert [name for _, name, _ in locking.oplock.waiting()] == ["READ"] * 3
    granted = locking.acknowledge(own, RH)
    assert [each.ended() for each in readers] == [0, 0, 0] and bytes(readers[0].buffer or b"") == b"new3"
    assert granted.waits and locking.oplock.state == RH
    changed = locking.ask(WRITE, other, offset=0)
    assert changed.ended() == 0 and granted.broken() == (RH, 0, True)  # RH does not hold a write up
    assert locking.acknowledge(own, 0).ended() == 0 and locking.oplock.state == 0
    assert locking.host.told == []


@pytest.mark.parametrize("nowait", [False, True])
def test_waiters_go_on_in_order_on_each_lane(core: Volume, place: Path, nowait: bool) -> None:
    """nowait: as the trio loop runs it."""
    locking = Locking(core)
    order: list[int] = []

    def routine(data: Data, number: int) -> None:
        order.append(data.request_number)
        Oplock.go_on(data)

    own, other = locking.open(), locking.open()
    locking.routine = routine
    held = locking.fsctl(own, api.FSCTL_REQUEST_OPLOCK_LEVEL_1)
    waiting = [locking.ask(opcode, other, nowait=nowait, size=1) for opcode in (READ, FSYNC, READ)]
    assert held.ended() == 0 and held.information == api.FILE_OPLOCK_BROKEN_TO_LEVEL_2
    two = locking.fsctl(own, api.FSCTL_OPLOCK_BREAK_ACKNOWLEDGE)
    assert [each.ended() for each in waiting] == [0, 0, 0] and order == [each.request.number for each in waiting]
    assert two.waits and locking.oplock.state == api.OPLOCK_LEVEL_TWO
    assert locking.ask(WRITE, own).ended() == 0  # level 2 is not spared by its own key
    assert two.ended() == 0 and two.information == api.FILE_OPLOCK_BROKEN_TO_NONE


def test_closing_acknowledges(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    held = locking.request(own, RW)
    waits = locking.ask(WRITE, other)
    assert held.broken() == (RW, 0, True) and waits.waits
    assert locking.acknowledge(other, 0).ended() == errno.EPROTO
    core.request(RELEASE, fh=own).do()
    assert waits.ended() == 0 and locking.oplock.state == 0
    held = locking.request(other, R)
    core.request(RELEASE, fh=other).do()
    assert held.broken() == (R, 0, False) and held.status == api.STATUS_OPLOCK_HANDLE_CLOSED


def test_a_cancelled_waiter_and_a_cancelled_holder(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    held = locking.request(own, RW)
    waits = locking.ask(READ, other, size=1)
    assert core.interrupt(waits.request.number) and waits.ended() == errno.EINTR
    assert held.broken() == (RW, R, True)  # the break stands
    held = locking.acknowledge(own, RW)  # nobody waits any more: it may be had back
    assert held.waits and core.interrupt(held.request.number)
    assert held.ended() == errno.EINTR and locking.oplock.state == 0


def test_what_was_cancelled_before_does_not_wait(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    locking.request(own, RW)

    def pre(data: Data, objects: object) -> int:
        core.interrupt(data.request_number)
        return locking.oplock.check(data, Oplock.go_on)

    locking.instead((api.IRP_MJ_FLUSH_BUFFERS, pre, nothing))
    assert locking.ask(FSYNC, other).ended() == errno.EINTR
    assert locking.oplock.waiting() == [] and locking.oplock.state & api.OPLOCK_BREAK_TO_READ


def test_waiting_in_place(core: Volume, place: Path) -> None:
    locking = Locking(core, routine=None)
    own, other = locking.open(), locking.open()
    held = locking.request(own, RW)
    ended: list[int] = []
    thread = threading.Thread(target=lambda: ended.append(locking.ask(FSYNC, other).ended()))
    thread.start()
    assert held.broken() == (RW, R, True) and not ended
    until(lambda: bool(locking.oplock.waiting()))
    assert locking.acknowledge(own, 0).ended() == 0
    thread.join(SECONDS)
    assert ended == [0] and locking.statuses[-1] == api.FLT_PREOP_SUCCESS_WITH_CALLBACK
    locking.request(own, RW)
    cancelled: list[Asked] = []
    request = core.request(FSYNC, fh=other)
    thread = threading.Thread(target=lambda: cancelled.append(Asked(request)))
    thread.start()
    until(lambda: bool(locking.oplock.waiting()))
    assert core.interrupt(request.number)
    thread.join(SECONDS)
    assert cancelled[0].ended() == errno.EINTR


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_nobody_waits_in_place_on_the_loop(core: Volume, place: Path) -> None:
    locking = Locking(core, routine=None)
    own, other = locking.open(), locking.open()
    locking.request(own, RW)
    waits = locking.ask(FSYNC, other, nowait=True)
    assert waits.waits
    core.request(RELEASE, fh=own).do()
    assert waits.ended() == 0


def test_who_shares_the_key_does_not_break(core: Volume, place: Path) -> None:
    locking = Locking(core)
    locking.keys = {7: KEY}
    own, second, other = locking.open(tid=7), locking.open(tid=7), locking.open(tid=8)
    held = locking.request(own, RWH)
    assert locking.ask(WRITE, second).ended() == 0 and held.waits
    locking.count = 3
    assert locking.request(second, RWH).ended() == errno.ETXTBSY  # others have it open
    locking.flags = api.OPLOCK_FSCTRL_FLAG_ALL_KEYS_MATCH
    switched = locking.request(second, RWH)
    assert switched.waits and held.broken() == (RWH, RWH, False)
    assert held.status == api.STATUS_OPLOCK_SWITCHED_TO_NEW_HANDLE
    assert locking.ask(READ, other, size=1).waits and switched.broken() == (RWH, RH, True)


def test_an_open_breaks_and_a_stat_does_not(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own = locking.open()
    held = locking.request(own, RWH)
    assert core.request(3, locking.nodeid).do().error == 0 and held.waits
    opening = Asked(core.request(OPEN, locking.nodeid, flags=os.O_RDONLY))
    assert opening.waits and held.broken() == (RWH, RH, True)
    locking.acknowledge(own, RH)
    assert opening.ended() == 0
    removing = Asked(core.request(UNLINK, 1, name=b"file"))
    assert removing.waits and (place / "file").exists()
    assert locking.acknowledge(own, 0).ended() == 0
    assert removing.ended() == 0 and not (place / "file").exists()
    assert locking.request(own, RH).ended() == errno.ETXTBSY  # deleted: no H
    assert locking.request(own, RW).waits


def test_flags(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    held = locking.request(own, RW)
    locking.check_flags = api.OPLOCK_FLAG_OPLOCK_KEY_CHECK_ONLY
    assert locking.ask(READ, other, size=1).ended() == 0 and held.waits
    locking.check_flags = api.OPLOCK_FLAG_COMPLETE_IF_OPLOCKED
    seen: list[int] = []

    def pre(data: Data, objects: object) -> int:
        status = Locking.pre(locking, data, objects)
        seen.append(data.status)
        return status

    locking.instead(
        (api.IRP_MJ_FLUSH_BUFFERS, pre, nothing), (api.IRP_MJ_FILE_SYSTEM_CONTROL, locking.control, nothing)
    )
    assert locking.ask(FSYNC, other).ended() == 0 and held.broken() == (RW, R, True)
    assert seen == [api.STATUS_OPLOCK_BREAK_IN_PROGRESS]
    told = locking.fsctl(other, api.FSCTL_OPLOCK_BREAK_NOTIFY)
    assert told.waits and locking.acknowledge(own, RW).waits  # who only wants to hear of it holds nothing up
    assert told.ended() == 0 and locking.fsctl(other, api.FSCTL_OPLOCK_BREAK_NOTIFY).ended() == 0
    locking.check_flags = api.OPLOCK_FLAG_IGNORE_OPLOCK_KEYS
    assert locking.ask(FSYNC, own).waits


def test_directories(core: Volume, place: Path) -> None:
    locking = Locking(core)
    fh = core.request(OPENDIR, lookup(core, b"folder"), flags=os.O_RDONLY).do().fh
    for level in (RW, RWH):
        assert locking.request(fh, level).ended() == errno.EINVAL
    assert locking.fsctl(fh, api.FSCTL_REQUEST_OPLOCK_LEVEL_2).ended() == errno.EINVAL
    assert locking.request(fh, RH).waits


def test_reservations(core: Volume, place: Path) -> None:
    """FILE_OPEN_REQUIRING_OPLOCK: others wait from the open on until the oplock is asked for, and then break it."""
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    reserved: list[int] = []

    def requiring(data: Data, objects: object) -> int:
        data.create_options |= api.FILE_OPEN_REQUIRING_OPLOCK
        status = locking.oplock.check(data, Oplock.go_on)
        if status == api.FLT_PREOP_SUCCESS_WITH_CALLBACK and not reserved:
            reserved.append(locking.oplock.fsctl(data))
            assert data.status == 0
        return status

    original = locking.entry
    making = locking.instead((api.IRP_MJ_CREATE, requiring, nothing))
    mine = core.request(OPEN, locking.nodeid, flags=os.O_RDWR).do().fh
    assert reserved == [api.FLT_PREOP_COMPLETE] and locking.oplock.state == api.OPLOCK_RESERVED
    assert not locking.oplock.is_current and not locking.oplock.fast_io_possible
    again = Asked(core.request(OPEN, locking.nodeid, flags=os.O_RDWR))
    assert again.ended() == errno.ETXTBSY  # STATUS_CANNOT_BREAK_OPLOCK
    core.stack.remove(making)
    core.stack.insert(original)
    waits = locking.ask(READ, other, size=1)
    assert waits.waits and locking.request(own, R).ended() == errno.ETXTBSY
    held = locking.request(mine, RW)
    assert held.broken() == (RW, R, True) and waits.waits
    assert locking.acknowledge(mine, R).waits and waits.ended() == 0


def test_bad_input_is_refused_and_changes_nothing(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own = locking.open()
    pack = REQUEST_OPLOCK_INPUT_BUFFER.pack
    ask = api.FSCTL_REQUEST_OPLOCK
    assert locking.fsctl(own, ask, pack(1, 12, R, 1)[:11], 24).ended() == errno.ERANGE
    assert locking.request(own, R, room=23).ended() == errno.ERANGE
    for bad in ((2, 12, R, 1), (1, 11, R, 1), (1, 12, 8, 1), (1, 12, R, 0), (1, 12, R, 3), (1, 12, R, 5)):
        assert locking.fsctl(own, ask, pack(*bad), 24).ended() == errno.EINVAL
    for level in (H, W, H | W):
        assert locking.request(own, level).ended() == errno.EINVAL
    assert locking.request(own, 0).ended() == 0
    assert locking.fsctl(own, 0x90FFC).ended() == errno.EINVAL
    for name in ("OPLOCK_BREAK_ACKNOWLEDGE", "OPLOCK_BREAK_ACK_NO_2", "OPBATCH_ACK_CLOSE_PENDING"):
        code = getattr(api, f"FSCTL_{name}")
        assert locking.fsctl(own, code).ended() == errno.EPROTO
    assert locking.acknowledge(own, R).ended() == errno.EPROTO
    assert locking.oplock.state == 0 and locking.host.told == []


def test_asking_for_too_much(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    held = locking.request(own, RWH)
    waits = locking.ask(WRITE, other)
    assert held.broken() == (RWH, 0, True)
    refused = locking.acknowledge(own, R)
    assert refused.ended() == errno.EBUSY and refused.status == api.STATUS_CANNOT_GRANT_REQUESTED_OPLOCK
    assert waits.waits and locking.acknowledge(own, 0).ended() == 0 and waits.ended() == 0


def test_a_callback_that_fails_after_it_has_asked(core: Volume, place: Path) -> None:
    """Nobody is left to be told, or to acknowledge: nobody waits for it."""
    locking = Locking(core)
    own, other = locking.open(), locking.open()

    def control(data: Data, objects: object) -> int:
        assert locking.oplock.fsctl(data, 0) == api.FLT_PREOP_PENDING
        raise KeyError("no")

    locking.instead(
        (api.IRP_MJ_FILE_SYSTEM_CONTROL, control, nothing), (api.IRP_MJ_FLUSH_BUFFERS, locking.pre, nothing)
    )
    for level in (RW, RH, R):
        assert locking.request(own, level).ended() == errno.EIO
        assert locking.oplock.operate(api.OplockOpen(), api.OPLOCK_BREAK_ALL)[0] == api.STATUS_SUCCESS
        assert locking.ask(FSYNC, other).ended() == 0
        assert locking.oplock.held() == []
    assert [each[0] for each in locking.host.told] == ["raised"] * 3


def test_a_wait_routine_that_raises(core: Volume, place: Path) -> None:
    locking = Locking(core, routine=lambda data, context: 1 // 0)
    own, other = locking.open(), locking.open()
    locking.request(own, RW)
    waits = locking.ask(FSYNC, other)
    core.request(RELEASE, fh=own).do()
    assert waits.ended() == errno.EIO and locking.host.told[0][:2] == ("raised", "oplock")


def test_under_the_names_of_the_ddi(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    oplock = fltkernel.OPLOCK()
    seen: list[Any] = []

    def control(data: Data, objects: object) -> int:
        seen.append(fltkernel.FltOplockIsSharedRequest(data))
        return fltkernel.FltOplockFsctrlEx(oplock, data, 1, 0)

    def rtl(data: Data, objects: object) -> int:
        status = fltkernel.FsRtlOplockFsctrl(oplock, data, 1)
        seen.append(status)
        return api.FLT_PREOP_PENDING if status == api.STATUS_PENDING else api.FLT_PREOP_COMPLETE

    def sync(data: Data, objects: object) -> int:
        seen.append(fltkernel.FltOplockKeysEqual(data, data) and not fltkernel.FltOplockKeysEqual(data, None))
        return fltkernel.FltCheckOplock(oplock, data, "context", routine, before)

    def before(data: Data, context: str) -> None:
        seen.append(("before", context))

    def routine(data: Data, context: str) -> None:
        seen.append((data.status, context))
        Oplock.go_on(data)

    locking.instead((api.IRP_MJ_FILE_SYSTEM_CONTROL, control, nothing), (api.IRP_MJ_FLUSH_BUFFERS, sync, nothing))
    assert not fltkernel.FltCurrentOplock(oplock) and fltkernel.FltOplockIsFastIoPossible(oplock)
    held = locking.request(own, RWH)
    assert fltkernel.FltCurrentOplock(oplock) and fltkernel.FltCurrentOplockH(oplock)
    assert not fltkernel.FltCurrentBatchOplock(oplock) and fltkernel.FltOplockIsFastIoPossible(oplock)
    waits = locking.ask(FSYNC, other)
    assert waits.waits and not fltkernel.FltOplockIsFastIoPossible(oplock) and held.broken() == (RWH, RH, True)
    assert locking.acknowledge(own, 0).ended() == 0 and waits.ended() == 0
    assert seen == [False, True, ("before", "context"), False, (0, "context")]
    locking.instead((api.IRP_MJ_FILE_SYSTEM_CONTROL, rtl, nothing))
    batch = locking.fsctl(own, api.FSCTL_REQUEST_BATCH_OPLOCK)
    assert batch.waits and fltkernel.FltCurrentBatchOplock(oplock) and seen[-1] == api.STATUS_PENDING
    assert locking.fsctl(other, api.FSCTL_REQUEST_OPLOCK_LEVEL_2).ended() == errno.ETXTBSY
    fltkernel.FltUninitializeOplock(oplock)
    assert batch.ended() == errno.EINTR and not fltkernel.FltCurrentOplock(oplock)
    fltkernel.FltInitializeOplock(oplock)
    assert locking.fsctl(own, api.FSCTL_REQUEST_FILTER_OPLOCK).waits
    fltkernel.FsRtlUninitializeOplock(oplock)


def test_breaks_that_a_filter_makes(core: Volume, place: Path) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()

    def to_none(oplock: Oplock, data: Data, flags: int, *rest: Any) -> int:
        return fltkernel.FltOplockBreakToNone(oplock, data, *rest)

    kinds = [fltkernel.FltOplockBreakH, to_none, fltkernel.FltOplockBreakToNoneEx]
    chosen: list[Any] = []

    def sync(data: Data, objects: object) -> Any:
        return chosen[-1](locking.oplock, data, 0, None, Oplock.go_on)

    locking.instead(
        (api.IRP_MJ_FLUSH_BUFFERS, sync, nothing), (api.IRP_MJ_FILE_SYSTEM_CONTROL, locking.control, nothing)
    )
    for kind, to in zip(kinds, (RW, 0, 0), strict=True):
        chosen.append(kind)
        held = locking.request(own, RWH)
        waits = locking.ask(FSYNC, other)
        assert waits.waits and held.broken() == (RWH, to, True)
        assert locking.acknowledge(own, 0).ended() == 0 and waits.ended() == 0


def test_requests_of_many_threads(core: Volume, place: Path, often_switched: None) -> None:
    """Grants, breaks, late and wrong acknowledgements, cancels and closes at random: each request ends, once."""
    locking = Locking(core)
    locking.keys = {7: KEY}
    failed: list[BaseException] = []

    def client(seed: int) -> None:
        dice = random.Random(seed)
        asked: list[Asked] = []
        try:
            fh = locking.open_somehow(dice.choice([7, 8]))
            for _ in range(250):
                what = dice.randrange(8)
                if what == 0:
                    core.request(RELEASE, fh=fh).do()
                    fh = locking.open_somehow(dice.choice([7, 8]))
                elif what < 4:
                    level = dice.choice([R, RH, RW, RWH])
                    asked.append(dice.choice([locking.request, locking.acknowledge])(fh, level))
                elif what == 4:
                    asked.append(locking.acknowledge(fh, 0))
                else:
                    asked.append(locking.ask(dice.choice([READ, WRITE, FSYNC]), fh, size=1))
                if dice.random() < 0.5:
                    core.interrupt(dice.choice(asked).request.number if asked else 0)
            for each in asked:
                core.interrupt(each.request.number)
            assert all(each.ended() in (0, *REFUSALS) for each in asked)
            core.request(RELEASE, fh=fh).do()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == [] and not any(thread.is_alive() for thread in threads)
    assert locking.oplock.state == 0 and locking.oplock.held() == [] and locking.oplock.waiting() == []
    assert locking.host.told == [] and core.held() == 0


REFUSALS = (errno.EINTR, errno.ETXTBSY, errno.EPROTO, errno.EBUSY)


# ---- native ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build("native_oplock", tmp_path_factory.mktemp("native"))


def test_a_native_filter(core: Volume, place: Path, native: Any) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    core.stack.remove(locking.entry)
    core.stack.insert(InstanceEntry(Host(), "n", "2", "n", native=native.operations(False)))
    assert native.current() == (False, False, False, True, False)
    held = locking.fsctl(own, api.FSCTL_REQUEST_BATCH_OPLOCK)
    assert native.current() == (True, False, True, True, False)
    assert locking.ask(READ, own, size=1).ended() == 0
    readers = [locking.ask(READ, other, size=1) for _ in range(2)]
    assert held.ended() == 0 and held.information == api.FILE_OPLOCK_BROKEN_TO_LEVEL_2
    assert core.interrupt(readers[0].request.number) and readers[0].ended() == errno.EINTR
    two = locking.fsctl(own, api.FSCTL_OPLOCK_BREAK_ACKNOWLEDGE)
    assert readers[1].ended() == 0 and two.waits
    assert core.interrupt(two.request.number) and two.ended() == errno.EINTR
    held = locking.request(own, RH)
    assert native.current() == (True, True, False, False, True)
    waits = locking.ask(FSYNC, other)
    assert held.broken() == (RH, 0, True) and waits.waits
    core.request(RELEASE, fh=own).do()
    assert waits.ended() == 0 and native.current()[0] is False
    held = locking.request(other, RWH)
    native.end()
    assert held.ended() == errno.EINTR


def test_a_native_filter_that_waits_in_place(core: Volume, place: Path, native: Any) -> None:
    locking = Locking(core)
    own, other = locking.open(), locking.open()
    core.stack.remove(locking.entry)
    core.stack.insert(InstanceEntry(Host(), "n", "2", "n", native=native.operations(True)))
    held = locking.request(own, RWH)
    ended: list[int] = []
    thread = threading.Thread(target=lambda: ended.append(locking.ask(READ, other, size=1).ended()))
    thread.start()
    assert held.broken() == (RWH, RH, True)
    core.request(RELEASE, fh=own).do()
    thread.join(SECONDS)
    assert ended == [0]
    native.end()
