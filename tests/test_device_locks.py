"""What the device serves itself because pyfuse3 has no handler for it, and locks that wait, on a fake /dev/fuse."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import close_tells
from test_device import (
    COPY_FILE_RANGE_64,
    INTERRUPT,
    IOCTL,
    LOOKUP,
    LSEEK,
    OPEN,
    RELEASE,
    SECONDS,
    SETLKW,
    TMPFILE,
    Wire,
    answer,
    assert_no_thread_left,
    message,
    pair,
    readable,
    thread_count,
)

from stackfs.cext.callback_data import MajorFunction, PreopStatus
from stackfs.cext.device import Device
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry

GETLK, SETLK, FALLOCATE, COPY_FILE_RANGE = 31, 32, 43, 47
READ_LOCK, WRITE_LOCK, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
LAST = 0x7FFFFFFFFFFFFFFF
GETFLAGS, TCGETS = 0x80086601, 0x5401
POSIX_LOCKS, FLOCK_LOCKS, NOFLUSH = 1 << 1, 1 << 10, 32
STATUS_CANCELLED = 0xC0000120


class Locking:
    """A started device over a directory with a file, which is open under `fh`; and a second time under `other`."""

    def __init__(self, directory: Path, lanes: str, stack_locks: bool = True) -> None:
        self.path = directory / "file"
        self.path.write_bytes(b"x" * 100)
        self.core = Volume(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        kernel, ours = pair()
        device = Device(ours.detach(), self.core, lanes=lanes, stack_locks=stack_locks)
        lane = device.detach_lane_fd()
        device.start()
        self.wire = Wire(device, kernel, socket.socket(fileno=lane))
        self.wire.handshake()
        self.node = self.core.request(LOOKUP, name=b"file").do().nodeid
        self.fh = self.open()
        self.other = self.open()
        self.unique = 100

    def open(self) -> int:
        fh: int = self.core.request(OPEN, self.node, flags=os.O_RDWR).do().fh
        return fh

    def lock(self, opcode: int, fh: int, owner: int, kind: int, *, end: int = LAST, flags: int = 0) -> int:
        """Sends it; its number."""
        self.unique += 2
        body = struct.pack("<4Q4I", fh, owner, 0, end, kind, owner, flags, 0)
        self.wire.send(message(opcode, self.unique, self.node, body))
        return self.unique

    def now(self, opcode: int, fh: int, owner: int, kind: int, **more: int) -> int:
        """Its answer's error."""
        number = self.lock(opcode, fh, owner, kind, **more)
        unique, error, _ = self.wire.answered()
        assert unique == number
        return error

    def interrupt(self, unique: int) -> None:
        self.wire.send(message(INTERRUPT, unique | 1, 0, struct.pack("<Q", unique)))

    def until_in_flight(self, count: int) -> None:
        end = time.monotonic() + SECONDS
        while self.wire.device.in_flight != count:
            assert time.monotonic() < end
            time.sleep(0.001)

    def end(self) -> None:
        self.wire.device.stop()
        self.wire.lane.close()
        self.wire.device.close()
        self.wire.kernel.close()


@pytest.fixture
def locking(tmp_path: Path, lanes: str) -> Iterator[Locking]:
    before = thread_count()
    made = Locking(tmp_path, lanes)
    yield made
    made.end()
    assert_no_thread_left(before)
    for fh in (made.fh, made.other):
        made.core.request(RELEASE, fh=fh).do()
    assert made.core.open_files == 0


# ---- served in place, on each lane ---------------------------------------------------------------------------------


def test_answers_as_the_kernel_takes_them(locking: Locking) -> None:
    def ask(opcode: int, body: bytes) -> tuple[int, bytes]:
        locking.unique += 2
        nodeid = 1 if opcode == TMPFILE else locking.node
        return locking.wire.ask(message(opcode, locking.unique, nodeid, body, uid=os.getuid(), gid=os.getgid()))

    fh, other = locking.fh, locking.other
    assert ask(LSEEK, struct.pack("<QQII", fh, 5, os.SEEK_HOLE, 0)) == (0, struct.pack("<Q", 100))
    assert ask(FALLOCATE, struct.pack("<QQQII", fh, 0, 200, 0, 0)) == (0, b"")
    assert locking.path.stat().st_size == 200
    copy = struct.pack("<7Q", fh, 0, locking.node, other, 100, 50, 0)
    assert ask(COPY_FILE_RANGE_64, copy) == (0, struct.pack("<Q", 50))
    assert ask(COPY_FILE_RANGE, copy) == (0, struct.pack("<II", 50, 0))
    assert locking.path.read_bytes() == b"x" * 150 + bytes(50)
    assert ask(IOCTL, struct.pack("<QIIQII", fh, 0, TCGETS, 0, 0, 0)) == (-errno.ENOTTY, b"")
    error, body = ask(IOCTL, struct.pack("<QIIQII", fh, 0, GETFLAGS, 0, 0, 4))
    assert error in (0, -errno.ENOTTY) and len(body) == (20 if error == 0 else 0)      # tmpfs may have no flags
    assert body[:16] == bytes(len(body[:16]))
    lock = struct.pack("<4Q4I", fh, 1, 3, 7, WRITE_LOCK, 42, 0, 0)
    assert ask(SETLK, lock) == (0, b"")
    lock = struct.pack("<4Q4I", other, 2, 0, LAST, READ_LOCK, 43, 0, 0)
    assert ask(GETLK, lock) == (0, struct.pack("<QQII", 3, 7, WRITE_LOCK, 42))
    error, body = ask(TMPFILE, struct.pack("<4I", os.O_RDWR, 0o100600, 0, 0) + b"/\0")
    assert error == 0 and len(body) == 128 + 16
    assert not readable(locking.wire.lane, 0)
    locking.core.request(RELEASE, fh=struct.unpack_from("<Q", body, 128)[0]).do()


@pytest.mark.parametrize("opcode", [GETLK, SETLK, SETLKW, IOCTL, FALLOCATE, LSEEK, COPY_FILE_RANGE, COPY_FILE_RANGE_64])
def test_a_handle_that_is_none(locking: Locking, opcode: int) -> None:
    assert locking.wire.ask(message(opcode, 4, locking.node, b"\xff" * 16 + bytes(40)))[0] == -errno.EBADF
    assert locking.wire.device.in_flight == 0


@pytest.mark.parametrize("mode", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
@pytest.mark.parametrize("stack_locks", [True, False])
def test_close_reaches_us_where_it_ends_locks(tmp_path: Path, stack_locks: bool, mode: int) -> None:
    """Or where the backing filesystem may have something to tell."""
    made = Locking(tmp_path, "auto", stack_locks)
    assert (made.wire.device.negotiated & (POSIX_LOCKS | FLOCK_LOCKS) != 0) == stack_locks
    error, body = made.wire.ask(message(OPEN, 4, made.node, struct.pack("<II", mode, 0), uid=0, gid=0))
    assert error == 0
    fh, flags = struct.unpack_from("<QI", body)
    assert (flags & NOFLUSH == 0) == (stack_locks or (mode != os.O_RDONLY and close_tells(tmp_path)))
    made.core.request(RELEASE, fh=fh).do()
    made.end()


# ---- waiting -------------------------------------------------------------------------------------------------------


def test_a_hundred_waiting_locks_hold_no_thread(locking: Locking) -> None:
    """There are 32 at most; with all of them waiting nobody would read the next request."""
    assert locking.now(SETLKW, locking.fh, 1, WRITE_LOCK) == 0
    waiting = {locking.lock(SETLKW, locking.other, 10 + i, READ_LOCK) for i in range(100)}
    locking.until_in_flight(100)
    assert not readable(locking.wire.kernel, 0.3)
    assert locking.now(SETLK, locking.other, 200, READ_LOCK) == -errno.EAGAIN
    released = locking.lock(SETLK, locking.fh, 1, UNLOCK)
    answers = [locking.wire.answered() for _ in range(101)]
    assert {unique for unique, _, _ in answers} == waiting | {released}
    assert {(error, body) for _, error, body in answers} == {(0, b"")}
    assert locking.now(SETLK, locking.fh, 1, WRITE_LOCK) == -errno.EAGAIN


@pytest.mark.parametrize("flags", [0, 1])
def test_an_interrupt_ends_a_waiting_lock(locking: Locking, flags: int) -> None:
    assert locking.now(SETLKW, locking.fh, 1, WRITE_LOCK, flags=flags) == 0
    one = locking.lock(SETLKW, locking.other, 2, WRITE_LOCK, flags=flags)
    two = locking.lock(SETLKW, locking.other, 3, WRITE_LOCK, flags=flags)
    locking.until_in_flight(2)
    locking.interrupt(one)
    assert locking.wire.answered() == (one, -errno.EINTR, b"")
    locking.interrupt(two)
    assert locking.wire.answered() == (two, -errno.EINTR, b"")
    assert locking.now(SETLK, locking.fh, 1, UNLOCK, flags=flags) == 0
    assert locking.now(SETLK, locking.fh, 1, WRITE_LOCK, flags=flags) == 0, "who was interrupted has not got it"


def test_an_interrupt_is_never_lost(locking: Locking) -> None:
    """Whenever it comes: before another thread has begun with the request, while it tries, parks, or is woken."""
    assert locking.now(SETLKW, locking.fh, 1, WRITE_LOCK) == 0
    for _ in range(300):
        number = locking.lock(SETLKW, locking.other, 2, WRITE_LOCK)
        locking.interrupt(number)
        while True:
            unique, error, _ = locking.wire.answered()
            if unique == number:
                break
            assert (unique, error) == (number | 1, -errno.EAGAIN)        # it was not there yet: sent again
            locking.interrupt(number)
        assert error == -errno.EINTR


def test_an_interrupt_of_what_is_not_a_lock(tmp_path: Path) -> None:
    made = Locking(tmp_path, "irp")
    made.wire.send(message(LOOKUP, 4, 1, b"name\0"))
    assert made.wire.forwarded()
    made.interrupt(4)                                        # under way: it ends by itself
    assert not readable(made.wire.kernel, 0.1) and not readable(made.wire.lane, 0)
    assert made.wire.device.discard(LOOKUP)
    made.wire.lane.send(answer(4))
    assert made.wire.answered() == (4, 0, b"")
    made.interrupt(4)                                        # unknown: perhaps still on its way. The kernel knows
    assert made.wire.answered() == (5, -errno.EAGAIN, b"")
    made.end()


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
(fcntl.flock if sys.argv[2] == "1" else fcntl.lockf)(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("flags", [0, 1])
def test_a_lock_beside_the_mount_is_tried_again(locking: Locking, flags: int) -> None:
    command = [sys.executable, "-c", HOLDER, str(locking.path), str(flags)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "locked\n"
        number = locking.lock(SETLKW, locking.other, 2, WRITE_LOCK, flags=flags)
        assert not readable(locking.wire.kernel, 0.3)
        program.communicate("")
    assert locking.wire.answered() == (number, 0, b"")


def test_the_end_of_the_device_lets_go_of_those_that_wait(locking: Locking) -> None:
    """Answered once, and nothing of them is left: the fixture releases the files."""
    assert locking.now(SETLKW, locking.fh, 1, WRITE_LOCK) == 0
    numbers = {locking.lock(SETLKW, locking.other, 10 + i, WRITE_LOCK) for i in range(5)}
    locking.until_in_flight(5)
    locking.wire.device.stop()
    answers = [locking.wire.answered() for _ in range(5)]
    assert {unique for unique, _, _ in answers} == numbers
    assert {error for _, error, _ in answers} == {-errno.ECONNABORTED}
    assert not readable(locking.wire.kernel, 0.05)


class Watcher:
    """An instance on LOCK_CONTROL that notes what it sees."""

    def __init__(self, core: Volume) -> None:
        self.seen: list[str] = []
        self.ends: list[int] = []
        self.core = core
        callbacks: list[Any] = [(MajorFunction.IRP_MJ_LOCK_CONTROL, 0, self.pre, self.post)]
        self.entry = InstanceEntry(self, "watcher", "100", "watcher", callbacks)
        core.stack.insert(self.entry)

    def pre(self, data: Any, _objects: object) -> Any:
        self.seen.append(data.request)
        return PreopStatus.FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(self, data: Any, _objects: object, _context: object, _flags: int) -> None:
        self.ends.append(data.status & 0xFFFFFFFF)

    def callback_raised(self, *what: object) -> None:
        self.seen.append(f"raised: {what}")

    callback_misused: Callable[..., None] = callback_raised

    def error_limit_reached(self) -> None: ...


def test_an_instance_comes_and_goes_while_a_lock_waits(locking: Locking) -> None:
    """A detach does not wait for a lock that waits. Who leaves sees it end; who is there afterwards sees it begin."""
    assert locking.now(SETLKW, locking.fh, 1, WRITE_LOCK) == 0
    number = locking.lock(SETLKW, locking.other, 2, WRITE_LOCK)
    locking.until_in_flight(1)
    watcher = Watcher(locking.core)
    locking.core.restart_waiting_locks()
    end = time.monotonic() + SECONDS
    while not watcher.seen:
        assert time.monotonic() < end
        time.sleep(0.001)
    locking.core.stack.remove(watcher.entry)
    locking.core.restart_waiting_locks()
    while not locking.core.stack.drained():
        assert time.monotonic() < end
        time.sleep(0.001)
    assert (watcher.seen, watcher.ends) == (["setlkw"], [STATUS_CANCELLED])
    assert not readable(locking.wire.kernel, 0.2)
    released = locking.lock(SETLK, locking.fh, 1, UNLOCK)
    assert {locking.wire.answered(), locking.wire.answered()} == {(released, 0, b""), (number, 0, b"")}
