"""The device on a fake /dev/fuse: a SOCK_SEQPACKET pair, whose other end is the kernel; the lane's end is ours too."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stackfs import mounting
from stackfs.cext.device import Device
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry

LOOKUP, FORGET, GETATTR, SETATTR, SYMLINK, MKDIR, RENAME, LINK, OPEN = 1, 2, 3, 4, 6, 9, 12, 13, 14
READ, WRITE, STATFS, RELEASE, SETXATTR, GETXATTR, FLUSH, INIT, SETLKW = 15, 16, 17, 18, 21, 22, 25, 26, 33
INTERRUPT, DESTROY, IOCTL, BATCH_FORGET, READDIRPLUS, RENAME2, LSEEK = 36, 38, 39, 42, 44, 45, 46
BMAP, SETUPMAPPING, SYNCFS, TMPFILE, STATX, COPY_FILE_RANGE_64 = 37, 48, 50, 51, 52, 53
KERNEL_FLAGS, KERNEL_FLAGS2 = 0x73FFFFFB, 0x5FD
SETXATTR_EXT, INIT_EXT = 1 << 29, 1 << 30
EXPIRE_ONLY = 1
SECONDS = 5.0


def message(opcode: int, unique: int, nodeid: int = 1, body: bytes = b"", *, pid: int = 0, uid: int = 1000,
            gid: int = 1001, extensions: bytes = b"", length: int | None = None, extlen: int | None = None) -> bytes:
    size = 40 + len(body) + len(extensions)
    header = struct.pack("<IIQQIIIHH", size if length is None else length, opcode, unique, nodeid, uid, gid, pid,
                         len(extensions) // 8 if extlen is None else extlen, 0)
    return header + body + extensions


def init(flags: int = KERNEL_FLAGS, flags2: int = KERNEL_FLAGS2, major: int = 7, minor: int = 45) -> bytes:
    return message(INIT, 2, 0, struct.pack("<IIIII44x", major, minor, 131072, flags, flags2))


def answer(unique: int, body: bytes = b"", error: int = 0) -> bytes:
    return struct.pack("<IiQ", 16 + len(body), error, unique) + body


def readable(fd: int | socket.socket, seconds: float = SECONDS) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


@dataclass
class Wire:
    """A started device with the kernel's end and pyfuse3's end in our hands."""

    device: Device
    kernel: socket.socket
    lane: socket.socket

    def send(self, data: bytes) -> None:
        self.kernel.send(data)

    def answered(self) -> tuple[int, int, bytes]:
        """The next answer the kernel gets: unique, error, body."""
        assert readable(self.kernel), "no answer"
        data = self.kernel.recv(2 << 20)
        length, error, unique = struct.unpack_from("<IiQ", data)
        assert length == len(data)
        return unique, error, data[16:]

    def forwarded(self) -> bytes:
        assert readable(self.lane), "nothing forwarded"
        return self.lane.recv(2 << 20)

    def ask(self, data: bytes) -> tuple[int, bytes]:
        self.send(data)
        unique, error, body = self.answered()
        assert unique == struct.unpack_from("<Q", data, 8)[0]
        return error, body

    def handshake(self, data: bytes | None = None) -> bytes:
        error, body = self.ask(init() if data is None else data)
        assert error == 0
        opening = self.forwarded()
        assert readable(self.device.ready_fd)
        assert opening[4:8] == struct.pack("<I", INIT)
        self.lane.send(answer(struct.unpack_from("<Q", opening, 8)[0], b"\0" * 24))
        return body


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def assert_no_thread_left(before: int) -> None:
    """One that has been joined may still be listed for a moment."""
    end = time.monotonic() + 5
    while thread_count() > before and time.monotonic() < end:
        time.sleep(0.001)
    assert thread_count() == before


def volume(directory: Path) -> Volume:
    return Volume(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


def pair() -> tuple[socket.socket, socket.socket]:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (kernel, ours):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    return kernel, ours


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    before = thread_count()
    kernel, ours = pair()
    device = Device(ours.detach(), volume(tmp_path), lanes="irp")
    lane = socket.socket(fileno=device.detach_lane_fd())
    device.start()
    try:
        yield Wire(device, kernel, lane)
    finally:
        device.stop()
        lane.close()
        device.close()
        kernel.close()
    assert_no_thread_left(before)


@pytest.fixture
def live(wire: Wire) -> Wire:
    wire.handshake()
    return wire


# ---- INIT ----

def test_init_is_answered_by_the_device(wire: Wire) -> None:
    assert not readable(wire.device.ready_fd, 0)
    body = wire.handshake()
    major, minor, readahead, flags = struct.unpack_from("<IIII", body)
    background, congestion, max_write, granularity = struct.unpack_from("<HHII", body, 16)
    max_pages, alignment, flags2, depth, timeout = struct.unpack_from("<HHIIH", body, 28)
    assert (major, minor, readahead) == (7, 45, 131072)
    assert (background, congestion, granularity, alignment, depth, timeout) == (64, 48, 1, 0, 0, 0)
    assert max_write == wire.device.max_write == max_pages * 4096
    bits = {bit for bit in range(64) if (flags | flags2 << 32) >> bit & 1}
    assert bits == {0, 3, 5, 6, 12, 13, 15, 18, 20, 22, 23, 28, 29, 30, 34, 36, 38}
    assert wire.device.negotiated == flags | flags2 << 32
    assert wire.device.kernel_minor == 45


def test_libfuse_gets_an_init_of_our_making(wire: Wire) -> None:
    wire.ask(init())
    opening = wire.forwarded()
    major, minor, _, flags = struct.unpack_from("<IIII", opening, 40)
    assert (major, minor) == (7, 13)
    assert flags & (1 << 13 | 1 << 22) == 1 << 13 | 1 << 22
    assert flags & (SETXATTR_EXT | INIT_EXT | 1 << 4) == 0
    wire.lane.send(answer(struct.unpack_from("<Q", opening, 8)[0], b"\0" * 24))
    assert not readable(wire.kernel, 0.1), "libfuse's INIT answer must not reach the kernel"
    assert wire.device.head() is None


def test_what_the_kernel_does_not_offer_is_done_without(wire: Wire) -> None:
    body = wire.handshake(init(flags=1 << 13 | 1 << 22, flags2=KERNEL_FLAGS2, minor=36))
    assert struct.unpack_from("<I", body, 12)[0] == 1 << 13 | 1 << 22
    assert struct.unpack_from("<I", body, 32)[0] == 0, "flags2 counts only with INIT_EXT"
    assert struct.unpack_from("<I", body, 4)[0] == 36
    # No SETXATTR_EXT: the short form comes in and goes out.
    wire.send(message(SETXATTR, 4, 1, struct.pack("<II", 3, 1) + b"user.a\0abc"))
    out = wire.forwarded()
    assert out[40:] == struct.pack("<II", 3, 0) + b"user.a\0abc"
    head = wire.device.head()
    assert head is not None and head["arguments"] == {"size": 3, "flags": 1}


@pytest.mark.parametrize("data", [init(minor=30), init(major=6), init(flags=KERNEL_FLAGS & ~(1 << 13))])
def test_a_kernel_too_old_ends_the_connection(wire: Wire, data: bytes) -> None:
    assert wire.ask(data)[0] == -errno.EPROTO
    assert readable(wire.device.ended_fd)
    assert wire.device.error == errno.EPROTO
    assert not readable(wire.device.ready_fd, 0)


def test_a_newer_major_is_told_ours_and_asks_again(wire: Wire) -> None:
    error, body = wire.ask(init(major=8, minor=0))
    assert (error, struct.unpack_from("<I", body)[0]) == (0, 7)
    assert not readable(wire.device.ready_fd, 0)
    wire.handshake()


def test_nothing_is_forwarded_before_init(wire: Wire) -> None:
    assert wire.ask(message(LOOKUP, 4, 1, b"a\0"))[0] == -errno.EIO
    assert not readable(wire.lane, 0)


@pytest.mark.parametrize("lanes", ["auto", "irp"])
def test_where_the_stack_checks_the_kernel_is_asked_for_nothing_that_checks(tmp_path: Path, lanes: str) -> None:
    """POSIX_ACL would switch the kernel's own checks on; READDIRPLUS would look names up that nobody asked for."""
    posix_acl, readdirplus, readdirplus_auto, cache_symlinks = 1 << 20, 1 << 13, 1 << 14, 1 << 23
    checked = posix_acl | readdirplus | readdirplus_auto
    flags = []
    for number, stack_checks in enumerate((False, True)):
        directory = tmp_path / str(number)
        directory.mkdir()
        kernel, ours = pair()
        device = Device(ours.detach(), volume(directory), lanes=lanes, stack_checks=stack_checks, cache_symlinks=True)
        lane = socket.socket(fileno=device.detach_lane_fd())
        device.start()
        Wire(device, kernel, lane).handshake()
        flags.append(device.negotiated)
        device.stop()
        lane.close()
        device.close()
        kernel.close()
    assert flags[0] & posix_acl and flags[0] & readdirplus and flags[0] & cache_symlinks
    assert not flags[1] & checked and flags[1] | checked == flags[0] | checked


def test_max_write_follows_the_policy(tmp_path: Path) -> None:
    kernel, ours = pair()
    device = Device(ours.detach(), volume(tmp_path), max_write=100_000, stack_checks=True)
    assert device.max_write == 98_304
    device.close()
    kernel.close()


# ---- forwarding ----

def test_a_request_crosses_and_its_answer_comes_back(live: Wire) -> None:
    request = message(LOOKUP, 4, 7, b"name\0", pid=1)
    live.send(request)
    assert live.forwarded() == request
    head = live.device.head()
    assert head is not None
    assert {**head, "arguments": None} == {
        "operation": "LOOKUP", "opcode": LOOKUP, "nodeid": 7, "unique": 4, "tid": 1, "uid": 1000, "gid": 1001,
        "group": -1, "arguments": None,
    }
    assert live.device.in_flight == 1
    assert not live.device.discard(LOOKUP, 8), "another node"
    assert not live.device.discard(GETATTR, 7), "another operation"
    assert live.device.discard(LOOKUP, 7)
    assert live.device.head() is None and live.device.headers == 0
    live.lane.send(answer(4, b"x" * 128))
    assert live.answered() == (4, 0, b"x" * 128)
    assert live.device.in_flight == 0
    assert live.device.counters() == {"irp": {"LOOKUP": 1}, "device": {}, "refused": {}}


@pytest.mark.parametrize(
    ("opcode", "body", "arguments"),
    [
        (GETATTR, struct.pack("<IIQ", 1, 0, 9), {"flags": 1, "fh": 9}),
        (OPEN, struct.pack("<II", 0o1001, 1), {"flags": 0o1001, "open_flags": 1}),
        (READ, struct.pack("<QQIIQII", 9, 8192, 4096, 2, 77, 0o40000, 0),
         {"fh": 9, "offset": 8192, "size": 4096, "open_flags": 2, "lock_owner": 77, "flags": 0o40000}),
        (WRITE, struct.pack("<QQIIQII", 9, 5, 3, 4, 77, 1, 0) + b"abc",
         {"fh": 9, "offset": 5, "size": 3, "open_flags": 4, "lock_owner": 77, "flags": 1}),
        (RELEASE, struct.pack("<QIIQ", 9, 2, 1, 77), {"fh": 9, "flags": 2, "open_flags": 1, "lock_owner": 77}),
        (FLUSH, struct.pack("<QIIQ", 9, 0, 0, 77), {"fh": 9, "lock_owner": 77}),
        (RENAME, struct.pack("<Q", 5) + b"a\0b\0", {"nodeid2": 5}),
        (RENAME2, struct.pack("<QII", 5, 2, 0) + b"a\0b\0", {"nodeid2": 5, "flags": 2}),
        (LINK, struct.pack("<Q", 5) + b"a\0", {"nodeid2": 5}),
        (SYMLINK, b"a\0" + b"t" * 4095 + b"\0", {}),
        (MKDIR, struct.pack("<II", 0o755, 0o22) + b"a\0", {"mode": 0o755, "umask": 0o22}),
        (GETXATTR, struct.pack("<II", 64, 0) + b"user.a\0", {"size": 64}),
        (READDIRPLUS, struct.pack("<QQIIQII", 9, 3, 4096, 0, 0, 0, 0), {"fh": 9, "offset": 3, "size": 4096}),
        (STATFS, b"", {}),
        (FORGET, struct.pack("<Q", 3), {"size": 3}),
    ],
)
def test_what_pyfuse3_hides_is_in_the_header(live: Wire, opcode: int, body: bytes, arguments: dict[str, int]) -> None:
    live.send(message(opcode, 4, 7, body))
    assert live.forwarded()[40:] == body
    head = live.device.head()
    assert head is not None and head["arguments"] == arguments
    assert live.device.discard({RENAME2: RENAME}.get(opcode, opcode), 7), "one handler for both renames"


def test_setattr_fields(live: Wire) -> None:
    body = struct.pack("<IIQQQQQQIIIIIIII", 0x8FF, 0, 9, 100, 77, 2**64 - 5, 2, 3, 4, 5, 6, 0o644, 0, 10, 11, 0)
    live.send(message(SETATTR, 4, 7, body))
    live.forwarded()
    head = live.device.head()
    assert head is not None and head["arguments"] == {
        "valid": 0x8FF, "fh": 9, "size": 100, "lock_owner": 77, "atime": -5, "mtime": 2, "ctime": 3,
        "atimensec": 4, "mtimensec": 5, "ctimensec": 6, "mode": 0o644, "uid": 10, "gid": 11,
    }


def test_setxattr_is_shortened_for_libfuse(live: Wire) -> None:
    live.send(message(SETXATTR, 4, 7, struct.pack("<IIII", 3, 2, 1, 0) + b"user.a\0abc"))
    out = live.forwarded()
    assert struct.unpack_from("<IIQQ", out) == (len(out), SETXATTR, 4, 7)
    assert out[40:] == struct.pack("<II", 3, 0) + b"user.a\0abc"
    head = live.device.head()
    assert head is not None and head["arguments"] == {"size": 3, "flags": 2, "open_flags": 1}


def test_the_supplementary_group_is_found_behind_an_odd_name(live: Wire) -> None:
    groups = struct.pack("<IIII", 16, 32, 1, 4711)
    context = struct.pack("<II", 8, 0)
    live.send(message(MKDIR, 4, 7, struct.pack("<II", 0o755, 0) + b"abc\0", extensions=context + groups))
    live.forwarded()
    head = live.device.head()
    assert head is not None and head["group"] == 4711


def test_forgets_have_no_answer_and_long_batches_are_split(live: Wire) -> None:
    nodes = [(n, n + 1) for n in range(2, 5002)]
    body = struct.pack("<II", len(nodes), 0) + b"".join(struct.pack("<QQ", *node) for node in nodes)
    live.send(message(BATCH_FORGET, 4, 0, body))
    seen: list[tuple[int, int]] = []
    while len(seen) < len(nodes):
        part = live.forwarded()
        length, opcode, _, _ = struct.unpack_from("<IIQQ", part)
        count = struct.unpack_from("<I", part, 40)[0]
        assert length == len(part) == 48 + 16 * count and opcode == BATCH_FORGET
        seen += [struct.unpack_from("<QQ", part, 48 + 16 * n) for n in range(count)]
        assert live.device.discard(FORGET), "pyfuse3 has one handler for both"
    assert seen == nodes
    assert live.device.head() is None and live.device.in_flight == 0
    assert not readable(live.kernel, 0)


def test_a_full_socket_blocks_no_reader_and_headers_stay_with_their_messages(live: Wire) -> None:
    size = live.device.max_write
    body = struct.pack("<QQIIQII", 9, 0, size, 0, 0, 0, 0) + b"d" * size
    for n in range(20):
        live.send(message(WRITE, 100 + 2 * n, 7, body))
        live.send(message(LOOKUP, 101 + 2 * n, 7, b"a\0"))
    assert live.ask(message(STATX, 4, 99, struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF)))[0] == -errno.ENOENT
    assert live.device.waiting > 0
    came = set()
    for _ in range(40):
        out = live.forwarded()
        head = live.device.head()
        assert head is not None
        assert struct.unpack_from("<Q", out, 8)[0] == head["unique"], "each header is its message's"
        came.add(head["unique"])
        assert live.device.discard(head["opcode"], 7)
    assert came == set(range(100, 140))
    end = time.monotonic() + 5
    while live.device.waiting and time.monotonic() < end:            # the forwarder counts down after it has sent
        time.sleep(0.001)
    assert live.device.waiting == 0


def test_answers_come_through_whole(live: Wire) -> None:
    size = live.device.max_write
    live.send(message(READ, 4, 7, struct.pack("<QQIIQII", 9, 0, size, 0, 0, 0, 0)))
    live.forwarded()
    live.lane.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    data = os.urandom(size)
    live.lane.send(answer(4, data))
    assert live.answered() == (4, 0, data)


def test_enosys_never_reaches_the_kernel(live: Wire) -> None:
    live.send(message(GETATTR, 4, 7, bytes(16)))
    live.forwarded()
    live.lane.send(answer(4, error=-errno.ENOSYS))
    assert live.answered()[1] == -errno.EOPNOTSUPP


def test_an_answer_nobody_asked_for_is_dropped(live: Wire) -> None:
    live.lane.send(answer(1234, b"x"))
    live.lane.send(b"short")
    live.send(message(GETATTR, 4, 7, bytes(16)))
    live.forwarded()
    live.lane.send(answer(4))
    live.lane.send(answer(4))
    assert live.answered()[0] == 4
    assert not readable(live.kernel, 0.1)


def test_a_dead_lane_answers_eio(live: Wire) -> None:
    live.lane.close()
    assert live.ask(message(GETATTR, 4, 7, bytes(16)))[0] == -errno.EIO
    assert live.device.lane_gone and live.device.headers == 0
    live.send(message(FORGET, 6, 7, bytes(8)))
    assert live.ask(message(LOOKUP, 8, 7, b"a\0"))[0] == -errno.EIO


# ---- what the device does itself ----

def test_statx_runs_the_stack_here(live: Wire) -> None:
    assert live.ask(message(STATX, 4, 99, struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF)))[0] == -errno.ENOENT
    assert not readable(live.lane, 0)
    assert live.device.counters()["device"] == {"STATX": 1}


ROOT_STATX = struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF)
IRP_MJ_NETWORK_QUERY_OPEN = 0xF2


class Host:
    """What the stack asks of an instance's owner."""

    def callback_raised(self, *_: object) -> None:
        pytest.fail("a callback raised")

    callback_misused = error_limit_reached = callback_raised


def attach(live: Wire, callback: Callable[[Any, Any], int]) -> None:
    entry = InstanceEntry(Host(), "test", "1", "test", [(IRP_MJ_NETWORK_QUERY_OPEN, 0, callback, None)])
    live.device.volume.stack.insert(entry)


def test_a_callback_that_takes_its_time_holds_only_its_own_thread(live: Wire) -> None:
    """More threads start, one of them reads, and forwarding goes on meanwhile."""
    inside, go_on = threading.Semaphore(0), threading.Event()

    def slow(data: Any, objects: Any) -> int:
        inside.release()
        assert go_on.wait(SECONDS)
        return 1

    attach(live, slow)
    for n in range(5):
        live.send(message(STATX, 10 + 2 * n, 1, ROOT_STATX))
        assert inside.acquire(timeout=SECONDS)
    live.send(message(LOOKUP, 4, 7, b"a\0"))
    assert live.forwarded()
    assert 6 <= live.device.threads <= 8, "one for each callback that waits, and one that reads"
    go_on.set()
    assert {live.answered()[0] for _ in range(5)} == {10 + 2 * n for n in range(5)}


def test_when_every_thread_is_busy_the_first_that_is_done_reads_on(live: Wire) -> None:
    go_on = threading.Event()

    def slow(data: Any, objects: Any) -> int:
        assert go_on.wait(SECONDS)
        return 1

    attach(live, slow)
    for n in range(40):
        live.send(message(STATX, 10 + 2 * n, 1, ROOT_STATX))
    deadline = time.monotonic() + SECONDS
    while live.device.threads < 32 and time.monotonic() < deadline:
        time.sleep(0.001)
    go_on.set()
    assert {live.answered()[0] for _ in range(40)} == {10 + 2 * n for n in range(40)}
    assert live.device.threads == 32


def test_a_thread_keeps_its_python_state(live: Wire) -> None:
    """threading.local of a callback lives from one request to the next."""
    local, made = threading.local(), []

    def callback(data: Any, objects: Any) -> int:
        if not hasattr(local, "mine"):
            local.mine = True
            made.append(threading.get_ident())
        return 1

    attach(live, callback)
    for n in range(200):
        assert live.ask(message(STATX, 10 + 2 * n, 1, ROOT_STATX))[0] == 0
    assert len(made) <= live.device.threads


def test_statx_tells_the_birth_time(live: Wire) -> None:
    error, body = live.ask(message(STATX, 4, 1, ROOT_STATX))
    valid, _, mask = struct.unpack_from("<QI20xI", body)
    assert error == 0 and len(body) == 288 and valid == 1 and mask & 0xFFF == 0xFFF


@pytest.mark.parametrize(
    ("opcode", "error"),
    [(BMAP, errno.EOPNOTSUPP), (SYNCFS, errno.EOPNOTSUPP), (SETUPMAPPING, errno.EOPNOTSUPP),
     (7, errno.EOPNOTSUPP), (54, errno.EOPNOTSUPP), (4096, errno.EOPNOTSUPP), (0xFFFFFFFF, errno.EOPNOTSUPP)],
)
def test_what_nobody_serves_is_refused_but_not_enosys(live: Wire, opcode: int, error: int) -> None:
    assert live.ask(message(opcode, 4, 7, bytes(48)))[0] == -error
    assert not readable(live.lane, 0)


def test_a_request_of_this_process_is_refused(live: Wire) -> None:
    assert live.ask(message(LOOKUP, 4, 7, b"a\0", pid=threading.get_native_id()))[0] == -errno.EDEADLK
    assert live.device.deadlocks == 1
    assert live.device.last_deadlock == ("LOOKUP", threading.get_native_id())
    assert readable(live.device.deadlock_fd)
    live.send(message(RELEASE, 6, 7, bytes(24), pid=threading.get_native_id()))
    assert live.forwarded(), "the end of what was begun always goes on"
    assert live.device.discard(RELEASE)


# ---- bytes the kernel would not send ----

@pytest.mark.parametrize(
    "data",
    [
        message(GETATTR, 4, 7, bytes(16), length=40),
        message(GETATTR, 4, 7, bytes(16), length=4000),
        message(GETATTR, 4, 7, bytes(8)),
        message(LOOKUP, 4, 7, b""),
        message(LOOKUP, 4, 7, b"\0"),
        message(LOOKUP, 4, 7, b"no end"),
        message(RENAME, 4, 7, struct.pack("<Q", 5) + b"a\0no end"),
        message(SYMLINK, 4, 7, b"a\0" + b"t" * 5000 + b"\0"),
        message(WRITE, 4, 7, struct.pack("<QQIIQII", 9, 5, 4, 0, 0, 0, 0) + b"abc"),
        message(WRITE, 4, 7, struct.pack("<QQIIQII", 9, 5, 0xFFFFFFFF, 0, 0, 0, 0) + b"abc"),
        message(READ, 4, 7, struct.pack("<QQIIQII", 9, 5, 0x7FFFFFFF, 0, 0, 0, 0)),
        message(SETXATTR, 4, 7, struct.pack("<IIII", 9, 0, 0, 0) + b"user.a\0abc"),
        message(GETXATTR, 4, 7, struct.pack("<II", 0x7FFFFFFF, 0) + b"user.a\0"),
        message(MKDIR, 4, 7, bytes(8) + b"a\0", extlen=100),
        message(MKDIR, 4, 7, bytes(8) + b"abc\0", extensions=struct.pack("<IIII", 4, 32, 1, 5)),
        message(MKDIR, 4, 7, bytes(8) + b"abc\0", extensions=struct.pack("<IIII", 4000, 32, 1, 5)),
    ],
)
def test_malformed_messages_get_eio(live: Wire, data: bytes) -> None:
    assert live.ask(data)[0] == -errno.EIO
    assert not readable(live.lane, 0)
    assert live.device.malformed == 1
    live.send(message(STATFS, 6))
    assert live.forwarded()


@pytest.mark.parametrize(
    "data",
    [b"x", bytes(39), message(FORGET, 4, 7, b""),
     message(BATCH_FORGET, 4, 0, struct.pack("<II", 0x10000001, 0) + bytes(16))],
)
def test_malformed_messages_without_an_answer_are_dropped(live: Wire, data: bytes) -> None:
    live.send(data)
    live.send(message(STATFS, 6))
    assert struct.unpack_from("<I", live.forwarded(), 4)[0] == STATFS
    end = time.monotonic() + SECONDS
    while not live.device.malformed and time.monotonic() < end:       # by another reader, perhaps a later one
        time.sleep(0.001)
    assert live.device.malformed == 1
    assert not readable(live.kernel, 0)


def test_random_bytes_harm_nothing(live: Wire) -> None:
    seed = random.Random(4)
    for n in range(3000):
        body = bytes(seed.choices(range(256), weights=[40] + [1] * 255, k=seed.randrange(120)))
        opcode = seed.choice([*range(25), *range(27, 38), *range(39, 60)])
        extlen = seed.choice([0, 0, 0, 2, 9])
        live.send(message(opcode, 2 * n + 10, seed.randrange(9), body, extlen=extlen))
        while readable(live.kernel, 0):
            assert live.answered()[1] != -errno.ENOSYS
        while readable(live.lane, 0):
            live.forwarded()
    time.sleep(0.05)
    while (head := live.device.head()) is not None:
        assert live.device.discard(head["opcode"])


# ---- notifications ----

def test_notifications_are_written_in_order(live: Wire) -> None:
    """Those of one inode, and those of names."""
    for length in range(20):
        live.device.invalidate_inode(7, 0, length)
        live.device.invalidate_entry(1, b"name%d" % length)
    assert live.device.flush_notifications(SECONDS)
    written = [live.answered() for _ in range(40)]
    assert [each for each in written if each[1] == 2] == [(0, 2, struct.pack("<Qqq", 7, 0, n)) for n in range(20)]
    names = [b"name%d" % n for n in range(20)]
    assert [each for each in written if each[1] == 3] == [
        (0, 3, struct.pack("<QII", 1, len(name), EXPIRE_ONLY) + name + b"\0") for name in names]  # fmt: skip
    with pytest.raises(ValueError):
        live.device.invalidate_entry(1, b"")
    with pytest.raises(ValueError):
        live.device.invalidate_entry(1, b"n" * 256)
    live.device.invalidate_entry(1, b"n" * 255)
    assert live.answered()[2].endswith(b"n\0")


def test_all_names_at_once(live: Wire) -> None:
    assert live.device.invalidate_all_entries()
    assert live.answered() == (0, 8, b"")


def test_all_names_at_once_needs_a_new_kernel(wire: Wire) -> None:
    wire.handshake(init(minor=43))
    assert not wire.device.invalidate_all_entries()
    assert not readable(wire.kernel, 0.1)


def test_a_notification_from_libfuse_takes_the_same_way(live: Wire) -> None:
    live.lane.send(answer(0, struct.pack("<Q", 5), error=1))
    assert live.answered() == (0, 1, struct.pack("<Q", 5))


def test_flush_with_nothing_queued_returns(live: Wire) -> None:
    assert live.device.flush_notifications()


# ---- the end ----

def test_the_kernels_end_closed_is_the_end(live: Wire) -> None:
    live.kernel.close()
    assert readable(live.device.ended_fd)
    assert live.device.ended and live.device.error == 0


def test_destroy_is_the_end(live: Wire) -> None:
    assert live.ask(message(DESTROY, 4))[0] == 0
    assert readable(live.device.ended_fd)


def test_abort_answers_everything_once(live: Wire) -> None:
    for n in range(300):
        live.send(message(LOOKUP, 4 + 2 * n, 7, b"a\0"))
    while live.device.in_flight < 300:
        time.sleep(0.001)
    live.device.abort()
    got = dict(live.answered()[:2] for _ in range(300))
    assert got == {4 + 2 * n: -errno.ECONNABORTED for n in range(300)}
    live.lane.send(answer(4))
    assert live.ask(message(LOOKUP, 4000, 7, b"a\0"))[0] == -errno.ECONNABORTED
    assert not readable(live.kernel, 0.1), "a late answer is dropped"
    assert readable(live.device.ended_fd, 0)
    assert live.device.in_flight == 0


def test_stop_and_close_may_be_repeated(tmp_path: Path) -> None:
    before = thread_count()
    kernel, ours = pair()
    device = Device(ours.detach(), volume(tmp_path), lanes="irp")
    device.start()
    with pytest.raises(RuntimeError):
        device.start()
    device.stop()
    device.stop()
    device.close()
    device.close()
    assert_no_thread_left(before)
    assert device.lane_fd == -1
    assert kernel.recv(10) == b""
    kernel.close()
    with pytest.raises(RuntimeError):
        device.start()


def test_a_device_that_was_never_started_or_closed_leaves_nothing(tmp_path: Path) -> None:
    fds, before = len(os.listdir("/proc/self/fd")), thread_count()
    for started in (False, True):
        kernel, ours = pair()
        device = Device(ours.detach(), volume(tmp_path), lanes="irp")
        if started:
            device.start()
        del device
        kernel.close()
    assert_no_thread_left(before)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_the_lanes_end_is_handed_over_once(tmp_path: Path) -> None:
    kernel, ours = pair()
    device = Device(ours.detach(), volume(tmp_path), lanes="irp")
    fd = device.detach_lane_fd()
    with pytest.raises(ValueError):
        device.detach_lane_fd()
    device.close()
    os.close(fd)
    kernel.close()


def test_a_bad_descriptor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Device(100_000, volume(tmp_path))


def test_many_callers_while_the_lane_answers(live: Wire) -> None:
    """Every request is answered once and with its own number, whatever thread read it."""
    total = 4000
    stop = threading.Event()

    def lane() -> None:
        while not stop.is_set():
            if readable(live.lane, 0.05):
                data = live.lane.recv(2 << 20)
                opcode, unique, nodeid = struct.unpack_from("<IQQ", data, 4)
                head = live.device.head()
                assert head is not None and head["unique"] == unique
                assert live.device.discard(opcode, nodeid)
                live.lane.send(answer(unique, struct.pack("<Q", unique)))

    thread = threading.Thread(target=lane)
    thread.start()
    seen: dict[int, Any] = {}
    sent = 0
    while len(seen) < total:
        while sent < total and sent - len(seen) < 64:
            kind = sent % 3
            unique = 4 + 2 * sent
            live.send(message(STATX, unique, 99, struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF)) if kind == 0
                      else message(LOOKUP, unique, 7, b"a\0") if kind == 1 else message(GETATTR, unique, 8, bytes(16)))
            sent += 1
        unique, error, body = live.answered()
        assert unique not in seen
        seen[unique] = error
        if error == 0:
            assert body == struct.pack("<Q", unique)
    stop.set()
    thread.join()
    assert live.device.in_flight == 0 and live.device.headers == 0
    assert 1 <= live.device.threads <= 16


# ---- the real kernel ----

ATTRIBUTES = struct.pack("<QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)


class Lane(threading.Thread):
    """libfuse's part: knows the root and one directory in it, "here", with long time-outs."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.socket = socket.socket(fileno=device.detach_lane_fd())
        self.seen: list[str] = []

    def run(self) -> None:
        while data := self.socket.recv(2 << 20):
            opcode, unique, nodeid = struct.unpack_from("<IQQ", data, 4)
            if opcode == INIT:
                self.socket.send(answer(unique, bytes(24)))
                continue
            head = self.device.head()
            assert head is not None and head["unique"] == unique and self.device.discard(opcode, nodeid)
            self.seen.append(head["operation"])
            if opcode == LOOKUP and data[40:] == b"here\0":
                self.socket.send(answer(unique, struct.pack("<QQQQII", 2, 0, 300, 300, 0, 0) + ATTRIBUTES))
            elif opcode == GETATTR:
                self.socket.send(answer(unique, struct.pack("<QII", 300, 0, 0) + ATTRIBUTES))
            elif opcode not in (FORGET, BATCH_FORGET):
                self.socket.send(answer(unique, error=-errno.ENOENT))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A program that touches the mount: never this process, whose requests are refused."""
    return subprocess.run(["timeout", "-s", "KILL", "10", *command], capture_output=True, text=True, check=False)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Device, Lane]]:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("mounting needs root and /dev/fuse")
    mountpoint, backing = tmp_path / "mountpoint", tmp_path / "backing"
    mountpoint.mkdir()
    backing.mkdir()
    fd = mounting.mount(str(mountpoint), mounting.MountSettings(source="test"))
    device = Device(fd, volume(backing), lanes="irp")
    lane = Lane(device)
    lane.start()
    device.start()
    try:
        assert readable(device.ready_fd)
        yield mountpoint, device, lane
    finally:
        if mounting.find_mount(str(mountpoint)) is not None:
            mounting.unmount(str(mountpoint), force=True)
        device.stop()
        lane.socket.shutdown(socket.SHUT_RDWR)
        lane.join()
        lane.socket.close()
        device.close()


def test_a_real_mount_begins_and_ends(mounted: tuple[Path, Device, Lane]) -> None:
    mountpoint, device, lane = mounted
    assert device.negotiated and device.kernel_minor >= 31
    assert run("stat", "-c", "%F", f"{mountpoint}/here").stdout == "directory\n"
    assert run("stat", f"{mountpoint}/gone").returncode == 1
    assert "LOOKUP" in lane.seen
    with pytest.raises(OSError) as refused:
        os.listdir(mountpoint)
    assert refused.value.errno == errno.EDEADLK and device.deadlocks == 1
    mounting.unmount(str(mountpoint))
    assert readable(device.ended_fd)
    assert device.error == 0 and device.in_flight == 0


def test_birth_time_comes_from_the_device(mounted: tuple[Path, Device, Lane]) -> None:
    mountpoint, device, _ = mounted
    if device.kernel_minor < 39:
        pytest.skip("the kernel has no STATX")
    backing = mountpoint.parent / "backing"
    assert run("stat", "-c", "%W %i", str(mountpoint)).stdout == run("stat", "-c", "%W %i", str(backing)).stdout
    assert device.counters()["device"]["STATX"] == 1


def test_names_are_dropped(mounted: tuple[Path, Device, Lane]) -> None:
    """They are looked up again, and a working directory among them stays one."""
    mountpoint, device, lane = mounted
    here = mountpoint / "here"
    inside = subprocess.Popen(["timeout", "-s", "KILL", "20", "sh", "-c", f"cd {here} && echo in && exec cat"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert inside.stdin is not None and inside.stdout is not None

    def lookups() -> int:
        run("stat", str(here))
        assert os.readlink(f"/proc/{children[0]}/cwd") == str(here)
        return lane.seen.count("LOOKUP")

    try:
        assert inside.stdout.readline() == b"in\n"
        children = Path(f"/proc/{inside.pid}/task/{inside.pid}/children").read_text().split()
        known = lookups()
        assert lookups() == known
        device.invalidate_entry(1, b"here")
        device.invalidate_entry(1, b"unknown")
        assert device.flush_notifications(SECONDS)
        assert lookups() == known + 1
        if device.invalidate_all_entries():
            assert device.flush_notifications(SECONDS)
            assert os.readlink(f"/proc/{children[0]}/cwd") == str(here)
            assert lookups() == known + 2
    finally:
        inside.stdin.close()
        inside.stdout.close()
        inside.wait()


def test_closing_the_device_frees_its_callers(mounted: tuple[Path, Device, Lane]) -> None:
    """The lane does not answer any more: abort() ends the caller, and the mount can be taken away."""
    mountpoint, device, lane = mounted
    lane.socket.shutdown(socket.SHUT_RD)
    child = subprocess.Popen(["timeout", "-s", "KILL", "10", "stat", f"{mountpoint}/stuck"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + SECONDS
    while not device.in_flight and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    device.abort()
    _, said = child.communicate(timeout=SECONDS)
    assert child.returncode == 1 and said
    assert readable(device.ended_fd)
    mounting.unmount(str(mountpoint), lazy=True)
