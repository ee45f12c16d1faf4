"""Torn requests: each kind of request that the kernel sends, cut at every length and with every bit flipped.

Whatever arrives is answered with an error, carried out as what it then says, or ends the connection; the device never
crashes, never stops answering and never answers what nobody asked. `make sanitize` runs this under AddressSanitizer.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_device import answer, init, message, pair, readable, volume

from stackfs.cext import wire
from stackfs.cext.callback_data import PreopStatus
from stackfs.cext.device import Device
from stackfs.cext.python_requests import Request, Volume
from stackfs.cext.stack import InstanceEntry

READERS_OF_DATA = {"READ", "GETXATTR", "LISTXATTR", "READLINK"}
FORGET, INIT, DESTROY, BATCH_FORGET, READDIRPLUS, STATX = 2, 26, 38, 42, 44, 52
FH = 1 << 32 | 1
GROUPS = struct.pack("<IIII", 16, 32, 1, 1000)


def setattr_body(valid: int) -> bytes:
    return struct.pack("<IIQQQQQQIIIIIIII", valid, 0, FH, 100, 0, 1, 2, 3, 4, 5, 6, 0o100644, 0, 1000, 1000, 0)


# name: (opcode, body, extensions). The nodes 1 (the root) and FILE, and the handles FH and FH + 1, exist.
FILE = "file"
FALLOCATE = 43
BODIES: dict[str, tuple[int, bytes, bytes]] = {
    "LOOKUP": (1, b"file\0", b""),
    "FORGET": (2, struct.pack("<Q", 1), b""),
    "GETATTR": (3, struct.pack("<IIQ", 1, 0, FH), b""),
    "SETATTR": (4, setattr_body(0x40 | 8 | 1), b""),
    "SETATTR by node": (4, setattr_body(0x10 | 0x20 | 2 | 4), b""),
    "READLINK": (5, b"", b""),
    "SYMLINK": (6, b"new\0target\0", GROUPS),
    "MKNOD": (8, struct.pack("<IIII", 0o100644, 0, 0o22, 0) + b"node\0", GROUPS),
    "MKDIR": (9, struct.pack("<II", 0o755, 0o22) + b"made\0", GROUPS),
    "UNLINK": (10, b"gone\0", b""),
    "RMDIR": (11, b"gone\0", b""),
    "RENAME": (12, struct.pack("<Q", 1) + b"one\0two\0", b""),
    "LINK": (13, struct.pack("<Q", 1) + b"linked\0", b""),
    "OPEN": (14, struct.pack("<II", os.O_RDWR, 1), b""),
    "READ": (15, struct.pack("<QQIIQII", FH, 0, 4096, 2, 7, os.O_RDWR, 0), b""),
    "WRITE": (16, struct.pack("<QQIIQII", FH, 0, 12, 4, 7, os.O_RDWR, 0) + b"twelve bytes", b""),
    "STATFS": (17, b"", b""),
    "RELEASE": (18, struct.pack("<QIIQ", FH + 50, os.O_RDWR, 0, 7), b""),
    "FSYNC": (20, struct.pack("<QII", FH + 50, 1, 0), b""),
    "SETXATTR": (21, struct.pack("<IIII", 5, 0, 1, 0) + b"user.x\0value", b""),
    "GETXATTR": (22, struct.pack("<II", 100, 0) + b"user.x\0", b""),
    "LISTXATTR": (23, struct.pack("<II", 0, 0), b""),
    "REMOVEXATTR": (24, b"user.x\0", b""),
    "FLUSH": (25, struct.pack("<QIIQ", FH, 0, 0, 7), b""),
    "INIT": (26, struct.pack("<IIIII44x", 7, 45, 131072, 0x73FFFFFB, 0x5FD), b""),
    "OPENDIR": (27, struct.pack("<II", os.O_RDONLY, 0), b""),
    "READDIR": (28, struct.pack("<QQIIQII", FH + 1, 0, 4096, 0, 0, 0, 0), b""),
    "RELEASEDIR": (29, struct.pack("<QIIQ", FH + 50, 0, 0, 0), b""),
    "FSYNCDIR": (30, struct.pack("<QII", FH + 50, 0, 0), b""),
    "GETLK": (31, struct.pack("<QQQQIIII", FH, 1, 0, 10, 1, 1, 0, 0), b""),
    "SETLK": (32, struct.pack("<QQQQIIII", FH, 1, 0, 10, 1, 1, 0, 0), b""),
    "SETLKW": (33, struct.pack("<QQQQIIII", FH, 1, 0, 10, 1, 1, 0, 0), b""),
    "ACCESS": (34, struct.pack("<II", 4, 0), b""),
    "CREATE": (35, struct.pack("<IIII", os.O_RDWR | os.O_CREAT, 0o100644, 0o22, 0) + b"created\0", GROUPS),
    "INTERRUPT": (36, struct.pack("<Q", 4), b""),
    "BMAP": (37, struct.pack("<QII", 0, 4096, 0), b""),
    "IOCTL": (39, struct.pack("<QIIQII", FH, 0, 0x40086602, 0, 4, 0) + struct.pack("<I", 0), b""),
    "POLL": (40, struct.pack("<QQII", FH, 1, 0, 1), b""),
    "NOTIFY_REPLY": (41, bytes(32), b""),
    "BATCH_FORGET": (42, struct.pack("<II", 2, 0) + struct.pack("<QQQQ", 98, 1, 99, 1), b""),
    "FALLOCATE": (43, struct.pack("<QQQII", FH, 0, 100, 0, 0), b""),
    "READDIRPLUS": (44, struct.pack("<QQIIQII", FH + 1, 0, 4096, 0, 0, 0, 0), b""),
    "RENAME2": (45, struct.pack("<QII", 1, 1, 0) + b"one\0two\0", b""),
    "LSEEK": (46, struct.pack("<QQII", FH, 0, 3, 0), b""),
    "COPY_FILE_RANGE": (47, struct.pack("<QQQQQQQ", FH, 0, 1, FH, 100, 10, 0), b""),
    "SYNCFS": (50, struct.pack("<Q", 0), b""),
    "TMPFILE": (51, struct.pack("<IIII", os.O_RDWR, 0o100600, 0, 0) + b"/\0", GROUPS),
    "COPY_FILE_RANGE_64": (53, struct.pack("<QQQQQQQ", FH, 0, 1, FH, 100, 10, 0), b""),
    "STATX": (52, struct.pack("<IIQII", 1, 0, FH, 0, 0xFFF), b""),
}
BY_NAME = {"LOOKUP", "SYMLINK", "MKNOD", "MKDIR", "UNLINK", "RMDIR", "RENAME", "LINK", "CREATE", "RENAME2", "OPENDIR"}


def whole(name: str, unique: int = 4, node: int = 2) -> bytes:
    opcode, body, extensions = BODIES[name]
    return message(opcode, unique, 1 if name in BY_NAME else node, body, extensions=extensions)


def torn(data: bytes) -> Iterator[bytes]:
    """Cut at every length, with and without a header that says so; then every bit flipped."""
    for length in range(len(data)):
        yield data[:length]
        if length >= 4:
            yield struct.pack("<I", length) + data[4:length]
    for bit in range(len(data) * 8):
        if data[4:8] == struct.pack("<I", FALLOCATE) and (40 + 16) * 8 + 24 <= bit < (40 + 24) * 8:
            continue  # a length that would fill the disk: allocating is what it is for
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("setxattr_ext", [True, False])
def test_decoding(name: str, setxattr_ext: bool) -> None:
    """Refused, or what was decoded lies inside the message."""
    data = whole(name)
    fields = wire.decode(data, setxattr_ext)
    assert fields["operation"] == name.split(" ")[0]
    for one in torn(data):
        try:
            fields = wire.decode(one, setxattr_ext)
        except ValueError:
            continue
        assert len(one) == struct.unpack_from("<I", one)[0] >= 40
        for key in ("name", "name2"):
            if key in fields:
                assert isinstance(fields[key], bytes)
                assert fields[key] + b"\0" in one[40:]
        if fields["operation"] == "WRITE":
            assert fields.get("size", 0) <= len(one) - 80  # type: ignore[operator]


def test_every_operation_is_torn() -> None:
    known = {wire.operation_name(opcode) for opcode in range(64)} - {f"OPCODE_{opcode}" for opcode in range(64)}
    untorn = known - {name.split(" ")[0] for name in BODIES}
    assert untorn <= {"DESTROY", "SETUPMAPPING", "REMOVEMAPPING"}


class Lane(threading.Thread):
    """pyfuse3's part: takes each message's header and runs the request with what libfuse would hand over."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.socket = socket.socket(fileno=device.detach_lane_fd())
        self.wrong: list[BaseException] = []

    def run(self) -> None:
        try:
            while data := self.socket.recv(2 << 20):
                opcode, unique, nodeid = struct.unpack_from("<IQQ", data, 4)
                if opcode == INIT:
                    self.socket.send(answer(unique, bytes(24)))
                    continue
                request = self.device.take(opcode, nodeid)
                assert request is not None
                if opcode not in (FORGET, BATCH_FORGET):
                    self.socket.send(answer(unique, error=-self.carry_out(request, data)))
        except ConnectionError:
            pass                                        # the device has ended
        except BaseException as error:
            self.wrong.append(error)
            self.socket.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def carry_out(request: Request, data: bytes) -> int:
        fields = wire.decode(data, setxattr_ext=False)
        name, name2, operation = fields.get("name"), fields.get("name2"), fields["operation"]
        if operation in ("FLUSH", "POLL"):
            request.run()
            return request.error
        if operation == "READDIRPLUS":
            request.list_directory(lambda name, entry, following: True, type("Entry", (), {}))
            return request.error
        if operation == "LINK":
            request.named(b"", name2)
        elif name is not None:
            request.named(name, name2)
        if operation == "WRITE":
            request.sending(data[80:])
        elif operation == "SETXATTR":
            request.sending(data[48 + len(name) + 1:])  # type: ignore[arg-type]
        elif operation == "STATFS":
            request.for_statistics()
        elif operation in READERS_OF_DATA:
            request.receiving(max(4096, fields.get("size", 0)))
        while not request.run():
            request.wait()
        return request.error


class Torn:
    """A device, the kernel's end of it, and a lane; begins anew when a message has ended the connection."""

    def __init__(self, backing: Path) -> None:
        self.backing = backing
        self.lanes = "auto"
        self.connections = 0
        self.device: Device | None = None

    def begin(self) -> None:
        self.connections += 1
        self.kernel, ours = pair()
        self.volume = volume(self.backing)
        self.device = Device(ours.detach(), self.volume, lanes=self.lanes)
        self.lane = Lane(self.device)
        self.lane.start()
        self.device.start()
        self.unique = 5 << 40                           # no flip of one bit makes a torn request's of it
        self.kernel.send(init())
        assert readable(self.device.ready_fd)
        self.kernel.recv(1 << 20)
        file = self.volume.request(1, name=b"file").do().nodeid
        assert self.volume.request(14, file, flags=os.O_RDWR).do().fh == FH
        assert self.volume.request(27, 1).do().fh == FH + 1
        self.file = file

    def end(self) -> None:
        if self.device is None:
            return
        self.device.stop()
        self.lane.socket.shutdown(socket.SHUT_RDWR)
        self.lane.join()
        self.lane.socket.close()
        self.device.close()
        self.kernel.close()
        assert not self.lane.wrong, self.lane.wrong
        self.volume.close()
        self.device = None

    def feed(self, data: bytes) -> None:
        if self.device is None:
            self.begin()
        self.kernel.send(data)

    def check(self) -> None:
        """It still answers; or the connection has ended in order."""
        assert self.device is not None
        self.unique += 2
        self.kernel.send(message(STATX, self.unique, 1, struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF)))
        while True:
            ready, _, _ = select.select([self.kernel, self.device.ended_fd], [], [], 10)
            assert ready, "the device answers no more"
            if self.kernel in ready:
                length, error, unique = struct.unpack_from("<IiQ", self.kernel.recv(2 << 20))
                assert length >= 16
                assert -4096 < error <= 0, "an answer, not a notification"
                if unique == self.unique:
                    assert error == 0
                    return
            elif self.device.ended:
                assert self.device.error == 0
                self.end()
                return


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Torn]:
    torn = Torn(tmp_path)
    yield torn
    torn.end()


@pytest.mark.parametrize("filtered", [False, True], ids=["bare", "filtered"])
@pytest.mark.parametrize("lanes", ["auto", "irp"])
@pytest.mark.parametrize("name", BODIES)
def test_a_device(kernel: Torn, tmp_path: Path, name: str, lanes: str, filtered: bool) -> None:
    (tmp_path / "file").write_bytes(b"content")
    kernel.lanes = lanes
    kernel.begin()
    assert kernel.device is not None
    if filtered:
        attach(kernel.volume)
    data = whole(name, node=kernel.file)
    for number, one in enumerate(torn(data)):
        if len(one) == 0:
            continue                                    # the end, on a socket
        kernel.feed(one)
        if number % 16 == 0:
            kernel.check()
    if kernel.device is not None:
        kernel.check()
    assert kernel.connections < 10


class Host:
    def callback_raised(self, routine: str, major: int, path: str, error: BaseException) -> None: ...
    def callback_misused(self, routine: str, major: int, path: str, status: int) -> None: ...
    def error_limit_reached(self) -> None: ...


def attach(volume: Volume) -> None:
    def pre(data: Any, objects: Any) -> int:
        repr(data), data.name, data.buffer
        return PreopStatus.FLT_PREOP_SUCCESS_WITH_CALLBACK

    majors = [number for number in range(256) if number not in (0x16, 0x18)]
    callbacks = [(major, 0, pre, lambda data, objects, context, flags: None) for major in majors]
    volume.stack.insert(InstanceEntry(Host(), "torn", "1000", "torn", callbacks=callbacks))
