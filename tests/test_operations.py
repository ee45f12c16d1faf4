"""The operations that pyfuse3 has no handler for, driven through the stack and the base without a mount.

Each answer is compared with what the same system call gives on a plain directory beside the volume's.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import fallocate

from stackfs.cext.callback_data import (
    FileInformationClass,
    FsControlCode,
    LockMinorFunction,
    MajorFunction,
    PreopStatus,
)
from stackfs.cext.ntstatus import from_errno
from stackfs.cext.python_requests import VfsError, Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.cext.wire import decode

LOOKUP, LINK, OPEN, READ, WRITE, RELEASE, FLUSH, OPENDIR, RELEASEDIR, CREATE = 1, 13, 14, 15, 16, 18, 25, 27, 29, 35
GETATTR, GETLK, SETLK, SETLKW, IOCTL, FALLOCATE, LSEEK, COPY, TMPFILE, COPY_64 = 3, 31, 32, 33, 39, 43, 46, 47, 51, 53

KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820
TCGETS = 0x5401
NODUMP, IMMUTABLE = 0x40, 0x10
LAST = 0x7FFFFFFFFFFFFFFF
ROOT = 1


class Files:
    """Files of the volume by handle, and their doubles in a plain directory by descriptor."""

    def __init__(self, core: Volume, volume: Path, plain: Path) -> None:
        self.core, self.volume, self.plain = core, volume, plain
        self.opened: list[tuple[int, int]] = []

    def request(self, opcode: int, nodeid: int = ROOT, **arguments: Any) -> Any:
        return self.core.request(opcode, nodeid, **arguments).do()

    def errno(self, opcode: int, nodeid: int = ROOT, **arguments: Any) -> str:
        """The name of the errno it fails with, or "done"."""
        try:
            self.request(opcode, nodeid, **arguments)
        except VfsError as error:
            return errno.errorcode[error.errno or 0]
        return "done"

    def node(self, name: str) -> int:
        found: int = self.request(LOOKUP, name=name.encode()).nodeid
        return found

    def open(self, name: str, flags: int = os.O_RDWR, content: bytes | None = None, **who: int) -> tuple[int, int, int]:
        """(nodeid, handle, descriptor of the double)."""
        if content is not None:
            (self.volume / name).write_bytes(content)
            (self.plain / name).write_bytes(content)
        node = self.node(name)
        fh = self.request(OPEN, node, flags=flags, **who).fh
        fd = os.open(self.plain / name, flags)
        self.opened.append((fh, fd))
        return node, fh, fd

    def close(self) -> None:
        for fh, fd in self.opened:
            self.request(RELEASE, fh=fh)
            os.close(fd)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    volume, plain = tmp_path / "volume", tmp_path / "plain"
    volume.mkdir()
    plain.mkdir()
    core = Volume(os.open(volume, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    made = Files(core, volume, plain)
    yield made
    made.close()
    assert core.open_files == 0
    core.close()


def attempt(act: Any, *arguments: Any) -> Any:
    try:
        return act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Recorder:
    """An instance that notes what it sees, and answers what it is told."""

    def __init__(self, core: Volume, majors: list[int], answer: Any = None, altitude: str = "100") -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.done: list[tuple[int, int]] = []
        self.troubles: list[object] = []
        self.answer = answer
        callbacks = [(major, 0, self.pre, self.post) for major in majors]
        self.core = core
        self.entry = InstanceEntry(self, f"recorder {altitude}", altitude, "recorder", callbacks)
        core.stack.insert(self.entry)

    def pre(self, data: Any, _objects: object) -> Any:
        detail: Any = None
        if data.major in (MajorFunction.IRP_MJ_SET_INFORMATION, MajorFunction.IRP_MJ_QUERY_INFORMATION):
            detail = data.information_class
        elif data.major in (MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL, MajorFunction.IRP_MJ_DEVICE_CONTROL):
            detail = data.control_code
        elif data.major == MajorFunction.IRP_MJ_LOCK_CONTROL:
            detail = data.minor
        self.seen.append((data.major, detail, data.request, data.is_fast_io))
        if self.answer is not None:
            answered = self.answer(data)
            if answered is not None:
                return answered
        return PreopStatus.FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(self, data: Any, _objects: object, _context: object, _flags: int) -> None:
        self.done.append((data.major, data.status))

    def callback_raised(self, *what: object) -> None:
        self.troubles.append(what)

    callback_misused = callback_raised

    def error_limit_reached(self) -> None: ...


# ---- LSEEK ----------------------------------------------------------------------------------------------------------


def test_data_and_holes_are_where_the_backing_file_has_them(files: Files) -> None:
    (files.volume / "f").touch()
    (files.plain / "f").touch()
    _, fh, fd = files.open("f")
    for path in (files.volume / "f", files.plain / "f"):
        with path.open("r+b") as file:
            file.write(b"x" * 8192)
            file.seek(1 << 20)
            file.write(b"y" * 100)
    size = (1 << 20) + 100
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        for offset in (0, 1, 8191, 8192, 20000, 1 << 20, size - 1, size, size + 1, 1 << 40):
            wanted = attempt(os.lseek, fd, offset, whence)
            try:
                got: Any = files.request(LSEEK, fh=fh, offset=offset, flags=whence).length
            except VfsError as error:
                got = errno.errorcode[error.errno or 0]
            assert got == wanted, (whence, offset)
    assert files.errno(LSEEK, fh=fh, offset=0, flags=os.SEEK_END) == "EINVAL"
    assert files.errno(LSEEK, fh=12345, offset=0, flags=os.SEEK_DATA) == "EBADF"


# ---- FALLOCATE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, PUNCH | KEEP_SIZE, ZERO, ZERO | KEEP_SIZE])
@pytest.mark.parametrize("offset, length", [(4096, 8192), (100, 5000), (60000, 10000), (100000, 4096)])
def test_allocating_and_zeroing(files: Files, mode: int, offset: int, length: int) -> None:
    content = bytes(range(256)) * 256
    _, fh, fd = files.open("f", content=content)
    files.request(FALLOCATE, fh=fh, offset=offset, size=length, mode=mode)
    fallocate(fd, mode, offset, length)
    assert (files.volume / "f").read_bytes() == (files.plain / "f").read_bytes()
    ours, theirs = (files.volume / "f").stat(), os.fstat(fd)
    assert (ours.st_size, ours.st_blocks) == (theirs.st_size, theirs.st_blocks)


def test_what_fallocate_refuses(files: Files) -> None:
    _, fh, fd = files.open("f", content=b"x" * 10000)
    for mode in (COLLAPSE, INSERT, UNSHARE, PUNCH, PUNCH | ZERO | KEEP_SIZE, 0x400):
        assert files.errno(FALLOCATE, fh=fh, offset=0, size=4096, mode=mode) == "ENOTSUP"
    for offset, length in ((0, 0), (-1, 10), (0, -1)):
        wanted = attempt(fallocate, fd, 0, offset, length)
        assert files.errno(FALLOCATE, fh=fh, offset=offset % 2**64, size=length % 2**64, mode=0) == wanted
    _, reading, _ = files.open("f", flags=os.O_RDONLY)
    assert files.errno(FALLOCATE, fh=reading, offset=0, size=1, mode=0) == "EBADF"
    assert (files.volume / "f").read_bytes() == b"x" * 10000


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("mode", [0, PUNCH | KEEP_SIZE, ZERO])
def test_changing_content_takes_the_set_id_bits_of_others(files: Files, mode: int) -> None:
    _, fh, _ = files.open("f", content=b"x" * 10000)
    for uid, left in ((0, 0o6755), (1000, 0o755)):
        os.chmod(files.volume / "f", 0o6755)
        files.request(FALLOCATE, fh=fh, offset=0, size=20000, mode=mode, uid=uid, gid=uid)
        assert stat.S_IMODE((files.volume / "f").stat().st_mode) == left


def test_allocation_is_set_information_and_zeroing_a_control(files: Files) -> None:
    _, fh, _ = files.open("f", content=b"x" * 10000)
    recorder = Recorder(
        files.core,
        [MajorFunction.IRP_MJ_SET_INFORMATION, MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL],
        answer=lambda data: ranges.append(data.range),
    )
    ranges: list[tuple[int, int]] = []
    for mode in (0, KEEP_SIZE, PUNCH | KEEP_SIZE, ZERO):
        files.request(FALLOCATE, fh=fh, offset=10, size=20, mode=mode)
    allocation, zero = FileInformationClass.FileAllocationInformation, FsControlCode.FSCTL_SET_ZERO_DATA
    assert [(seen[0], seen[1], seen[3]) for seen in recorder.seen] == [
        (MajorFunction.IRP_MJ_SET_INFORMATION, allocation, False),
        (MajorFunction.IRP_MJ_SET_INFORMATION, allocation, False),
        (MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL, zero, False),
        (MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL, zero, False),
    ]
    assert ranges == [(10, 20)] * 4
    assert recorder.troubles == []


def test_a_filter_moves_the_range_that_is_zeroed(files: Files) -> None:
    _, fh, _ = files.open("f", content=b"x" * 100)

    def shift(data: Any) -> None:
        data.range = (data.range[0] + 50, data.range[1])
        data.set_dirty()

    Recorder(files.core, [MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL], answer=shift)
    files.request(FALLOCATE, fh=fh, offset=0, size=10, mode=ZERO)
    assert (files.volume / "f").read_bytes() == b"x" * 50 + bytes(10) + b"x" * 40


# ---- COPY_FILE_RANGE ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [COPY, COPY_64])
@pytest.mark.parametrize("offset, target, length", [(0, 0, 70000), (4096, 8192, 4096), (11, 7, 12345), (69990, 0, 100)])
def test_copying_inside_the_volume(files: Files, opcode: int, offset: int, target: int, length: int) -> None:
    source, fh, fd = files.open("from", content=os.urandom(1) * 30000 + os.urandom(40000))
    (files.plain / "from").write_bytes((files.volume / "from").read_bytes())
    node, to, double = files.open("to", content=b"-" * 10000)
    arguments = {"fh": fh, "offset": offset, "nodeid2": node, "fh2": to, "offset2": target, "size": length}
    done = files.request(opcode, source, **arguments)
    assert done.length == os.copy_file_range(fd, double, length, offset, target)
    assert (files.volume / "to").read_bytes() == (files.plain / "to").read_bytes()


def test_what_copying_refuses(files: Files) -> None:
    source, fh, _ = files.open("from", content=b"x" * 100)
    node, to, _ = files.open("to", flags=os.O_RDONLY, content=b"")
    assert files.errno(COPY_64, source, fh=fh, nodeid2=node, fh2=to, size=10) == "EBADF"
    node, to, _ = files.open("to")
    assert files.errno(COPY_64, source, fh=fh, nodeid2=node, fh2=to, size=10, flags=1) == "EINVAL"
    assert files.errno(COPY_64, source, fh=fh, nodeid2=node, fh2=999, size=10) == "EBADF"
    assert files.errno(COPY_64, source, fh=999, nodeid2=node, fh2=to, size=10) == "EBADF"
    overlapping = files.errno(COPY_64, source, fh=fh, nodeid2=source, fh2=fh, offset=0, offset2=5, size=50)
    assert overlapping == "EINVAL"


@pytest.mark.parametrize("majors", [[MajorFunction.IRP_MJ_READ], [MajorFunction.IRP_MJ_WRITE]])
def test_no_copy_escapes_a_filter_of_data(files: Files, majors: list[int]) -> None:
    """With an instance on READ or WRITE the caller falls back, unless the instance saw the control and passed it."""
    source, fh, _ = files.open("from", content=b"x" * 100)
    node, to, _ = files.open("to", content=b"")
    arguments = {"fh": fh, "nodeid2": node, "fh2": to, "size": 100}
    watcher = Recorder(files.core, [MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL], altitude="300")
    filtering = Recorder(files.core, majors)
    assert files.errno(COPY_64, source, **arguments) == "ENOTSUP"
    assert (files.volume / "to").read_bytes() == b""
    assert watcher.done == [(MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL, from_errno(errno.EOPNOTSUPP))]
    files.core.stack.remove(filtering.entry)
    knowing = Recorder(files.core, [*majors, MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL], altitude="200")
    assert files.request(COPY_64, source, **arguments).length == 100
    files.core.stack.remove(knowing.entry)
    Recorder(
        files.core,
        [*majors, MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL],
        answer=lambda data: data.complete(from_errno(errno.EXDEV)),
        altitude="250",
    )
    assert files.errno(COPY_64, source, **arguments) == "EXDEV"


def test_a_post_callback_alone_does_not_pass_a_copy(files: Files) -> None:
    source, fh, _ = files.open("from", content=b"x" * 100)
    node, to, _ = files.open("to", content=b"")
    callbacks: list[Any] = [
        (MajorFunction.IRP_MJ_READ, 0, lambda _data, _objects: PreopStatus.FLT_PREOP_SUCCESS_NO_CALLBACK, None),
        (MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL, 0, None, lambda *_: None),
    ]
    files.core.stack.insert(InstanceEntry(object(), "half", "100", "half", callbacks))
    assert files.errno(COPY_64, source, fh=fh, nodeid2=node, fh2=to, size=100) == "ENOTSUP"


# ---- TMPFILE --------------------------------------------------------------------------------------------------------


def test_a_file_without_a_name_and_its_link(files: Files) -> None:
    made = files.request(TMPFILE, name=b"/", flags=os.O_RDWR, mode=stat.S_IFREG | 0o640, umask=0o022)
    fd = os.open(files.plain, os.O_TMPFILE | os.O_RDWR, 0o640)
    assert list(files.volume.iterdir()) == []
    assert made.stat[0] == os.fstat(fd).st_mode
    assert made.stat[2] == 0
    assert files.request(GETATTR, made.nodeid).stat[2] == 0
    files.request(WRITE, made.nodeid, fh=made.fh, buffer=b"hello", size=5)
    linked = files.request(LINK, ROOT, nodeid2=made.nodeid, name2=b"named")
    assert linked.nodeid == made.nodeid
    assert linked.stat[2] == 1
    assert (files.volume / "named").read_bytes() == b"hello"
    files.request(RELEASE, made.nodeid, fh=made.fh)
    assert files.node("named") == made.nodeid
    os.close(fd)


def test_a_file_without_a_name_is_gone_when_forgotten(files: Files) -> None:
    before = files.core.known_inodes
    made = files.request(TMPFILE, name=b"/", flags=os.O_RDWR | os.O_EXCL, mode=stat.S_IFREG | 0o600)
    assert files.errno(LINK, ROOT, nodeid2=made.nodeid, name2=b"named") == "ENOENT"      # O_EXCL: never to be linked
    files.request(RELEASE, made.nodeid, fh=made.fh)
    files.core.forget(made.nodeid, 1)
    assert files.core.known_inodes == before
    assert list(files.volume.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_without_a_name_belongs_to_the_caller(files: Files) -> None:
    made = files.request(TMPFILE, name=b"/", flags=os.O_RDWR, mode=stat.S_IFREG | 0o600, uid=1234, gid=2345)
    assert made.stat[3:5] == (1234, 2345)
    files.request(RELEASE, made.nodeid, fh=made.fh)


def test_a_file_without_a_name_next_to_one_that_has_that_name(files: Files) -> None:
    """Its path is made up; a real file of that name keeps its own."""
    made = files.request(TMPFILE, name=b"/", flags=os.O_RDWR, mode=stat.S_IFREG | 0o600)
    name = f"#{made.stat[1]}"
    (files.volume / name).write_bytes(b"real")
    paths: list[str] = []
    recorder = Recorder(files.core, [MajorFunction.IRP_MJ_QUERY_INFORMATION, MajorFunction.IRP_MJ_NETWORK_QUERY_OPEN],
                        answer=lambda data: paths.append(data.path))
    node = files.node(name)
    assert node != made.nodeid
    files.request(GETATTR, made.nodeid, fh=made.fh, flags=1)
    files.request(GETATTR, node)
    assert paths == [f"/{name} (deleted)", f"/{name}"]
    assert recorder.troubles == []
    files.request(RELEASE, made.nodeid, fh=made.fh)


def test_creation_without_a_name_is_a_create(files: Files) -> None:
    options: list[tuple[int, int, bytes]] = []
    recorder = Recorder(files.core, [MajorFunction.IRP_MJ_CREATE],
                        answer=lambda data: options.append((data.create_options, data.create_disposition, data.name)))
    made = files.request(TMPFILE, name=b"/", flags=os.O_RDWR, mode=stat.S_IFREG | 0o600)
    assert options == [(0x1000 | 0x40, 2, b"")]
    files.request(RELEASE, made.nodeid, fh=made.fh)
    recorder.answer = lambda data: data.complete(from_errno(errno.EACCES))
    assert files.errno(TMPFILE, name=b"/", flags=os.O_RDWR, mode=stat.S_IFREG | 0o600) == "EACCES"
    assert recorder.troubles == []


# ---- IOCTL ----------------------------------------------------------------------------------------------------------


def ioctl(files: Files, fh: int, command: int, given: bytes = b"", room: int = 0, **who: int) -> Any:
    buffer = bytearray(room)
    try:
        to = buffer if room else None
        done = files.request(IOCTL, fh=fh, command=command, input=given, size=room, buffer=to, **who)
    except VfsError as error:
        return errno.errorcode[error.errno or 0]
    return bytes(buffer[: done.length])


def plain_ioctl(fd: int, command: int, given: bytes) -> Any:
    return attempt(fcntl.ioctl, fd, command, given)


def test_inode_flags_of_files_and_directories(files: Files) -> None:
    _, fh, fd = files.open("f", content=b"x")
    before = ioctl(files, fh, GETFLAGS, room=4)
    assert before == plain_ioctl(fd, GETFLAGS, bytes(4))
    changed = struct.pack("I", struct.unpack("I", before)[0] | NODUMP)
    assert ioctl(files, fh, SETFLAGS, changed) == b""
    with (files.volume / "f").open() as file:
        assert fcntl.ioctl(file, GETFLAGS, bytes(4)) == changed
    assert ioctl(files, fh, FSGETXATTR, room=28) == _without_project(fd, changed)
    attributes = ioctl(files, fh, FSGETXATTR, room=28)
    assert ioctl(files, fh, FSSETXATTR, struct.pack("I", 0) + attributes[4:]) == b""
    assert ioctl(files, fh, GETFLAGS, room=4) == before
    directory = files.request(OPENDIR, ROOT).fh
    with_flags = os.open(files.volume, os.O_RDONLY)
    assert ioctl(files, directory, GETFLAGS, room=4) == fcntl.ioctl(with_flags, GETFLAGS, bytes(4))
    os.close(with_flags)
    files.request(RELEASEDIR, ROOT, fh=directory)


def _without_project(fd: int, flags: bytes) -> Any:
    assert plain_ioctl(fd, SETFLAGS, flags) == flags
    return plain_ioctl(fd, FSGETXATTR, bytes(28))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_whose_flags_one_may_set(files: Files) -> None:
    _, fh, _ = files.open("f", content=b"x")
    flags = struct.unpack("I", ioctl(files, fh, GETFLAGS, room=4))[0]
    os.chown(files.volume / "f", 1000, 1000)
    assert ioctl(files, fh, SETFLAGS, struct.pack("I", flags | NODUMP), uid=1000, gid=1000) == b""
    assert ioctl(files, fh, SETFLAGS, struct.pack("I", flags), uid=2000, gid=2000) in ("EPERM", "EACCES")
    assert ioctl(files, fh, SETFLAGS, struct.pack("I", flags | IMMUTABLE), uid=1000, gid=1000) == "EPERM"
    assert ioctl(files, fh, GETFLAGS, room=4) == struct.pack("I", flags | NODUMP)


def test_other_controls_are_not_for_files(files: Files) -> None:
    _, fh, _ = files.open("f", content=b"x")
    for command in (TCGETS, 0x80087601, 0x66FF, 0xC008F501):
        assert ioctl(files, fh, command, b"12345678", 8) == "ENOTTY"
    assert ioctl(files, fh, GETFLAGS, room=0) == "EINVAL"
    assert ioctl(files, fh, SETFLAGS, b"12") == "EINVAL"
    assert ioctl(files, fh, FSGETXATTR, room=8) == "EINVAL"
    assert ioctl(files, 999, GETFLAGS, room=4) == "EBADF"


def test_a_filter_answers_a_control_of_its_own(files: Files) -> None:
    """The door for FSCTLs: what the base does not know a filter may complete, by whichever major it comes."""
    _, fh, _ = files.open("f", content=b"x")
    got: list[bytes] = []

    def answer(data: Any) -> Any:
        got.append(data.input)
        if data.control_code not in (0xC008F501, 0xC0085401):
            return None
        data.buffer[:3] = b"yes"
        return data.complete(0, 3)

    recorder = Recorder(
        files.core, [MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL, MajorFunction.IRP_MJ_DEVICE_CONTROL], answer=answer
    )
    assert ioctl(files, fh, 0xC008F501, b"question", 8) == b"yes"
    assert ioctl(files, fh, 0xC0085401, b"question", 8) == b"yes"
    assert ioctl(files, fh, TCGETS, b"", 8) == "ENOTTY"
    assert got == [b"question", b"question", b""]
    control, device = MajorFunction.IRP_MJ_FILE_SYSTEM_CONTROL, MajorFunction.IRP_MJ_DEVICE_CONTROL
    assert [(seen[0], seen[1], seen[3]) for seen in recorder.seen] == [
        (control, 0xC008F501, False),
        (device, 0xC0085401, True),
        (device, TCGETS, True),
    ]
    assert recorder.troubles == []


# ---- locks ----------------------------------------------------------------------------------------------------------


def lock(
    files: Files, fh: int, owner: int, kind: int, start: int = 0, end: int = LAST, *, wait: bool = False, **more: int
) -> str:
    opcode = SETLKW if wait else SETLK
    return files.errno(opcode, fh=fh, lock_owner=owner, lock_type=kind, offset=start, end=end, lock_pid=owner, **more)


def query(files: Files, fh: int, owner: int, kind: int, start: int = 0, end: int = LAST) -> tuple[int, int, int, int]:
    found: tuple[int, int, int, int] = files.request(
        GETLK, fh=fh, lock_owner=owner, lock_type=kind, offset=start, end=end, lock_pid=owner
    ).lock
    return found


READ_LOCK, WRITE_LOCK, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def test_locks_of_two_owners(files: Files) -> None:
    _, one, _ = files.open("f", content=b"x" * 100)
    _, two, _ = files.open("f")
    assert lock(files, one, 1, WRITE_LOCK, 10, 19) == "done"
    assert lock(files, two, 2, WRITE_LOCK, 0, 9) == "done"
    assert lock(files, two, 2, READ_LOCK, 15, 30) == "EAGAIN"
    assert query(files, two, 2, READ_LOCK, 15, 30) == (WRITE_LOCK, 10, 19, 1)
    assert query(files, two, 1, READ_LOCK, 15, 30)[0] == UNLOCK
    assert lock(files, one, 1, UNLOCK, 12, 15) == "done"         # a hole in the middle
    assert lock(files, two, 2, WRITE_LOCK, 12, 15) == "done"
    assert query(files, two, 2, READ_LOCK, 0, LAST) == (WRITE_LOCK, 10, 11, 1)
    assert query(files, two, 2, READ_LOCK, 16, LAST) == (WRITE_LOCK, 16, 19, 1)
    assert lock(files, one, 1, READ_LOCK, 16, 19) == "done"      # downgraded
    assert lock(files, two, 2, READ_LOCK, 16, LAST) == "done"
    assert lock(files, one, 1, WRITE_LOCK, 16, 19) == "EAGAIN"
    assert lock(files, two, 2, UNLOCK) == "done"
    assert lock(files, one, 1, WRITE_LOCK) == "done"
    assert query(files, two, 2, READ_LOCK, 1000, 1000) == (WRITE_LOCK, 0, LAST, 1)


def test_ranges_that_are_none(files: Files) -> None:
    _, fh, _ = files.open("f", content=b"")
    for start, end in ((10, 9), (10, 5), (1 << 63, (1 << 63) + 5), (0, 1 << 63)):
        assert lock(files, fh, 1, WRITE_LOCK, start, end) == "EINVAL"
    assert lock(files, fh, 1, WRITE_LOCK, LAST, LAST) == "done"
    assert lock(files, 999, 1, WRITE_LOCK) == "EBADF"


def test_close_ends_the_locks_of_that_owner_and_release_those_of_the_open_file(files: Files) -> None:
    _, one, _ = files.open("f", content=b"x")
    node = files.node("f")
    two = files.request(OPEN, node, flags=os.O_RDWR).fh
    assert lock(files, one, 1, WRITE_LOCK, 0, 0) == "done"
    assert lock(files, two, 7, WRITE_LOCK, 5, 5) == "done"       # as an OFD lock: its owner never flushes
    files.core.request(FLUSH, fh=two, lock_owner=3).do()
    assert query(files, one, 9, READ_LOCK)[3] == 1
    files.core.request(FLUSH, fh=two, lock_owner=1).do()         # any descriptor of the file: that is POSIX
    assert query(files, one, 9, READ_LOCK)[3] == 7
    files.request(RELEASE, node, fh=two)
    assert query(files, one, 9, READ_LOCK)[0] == UNLOCK


def test_flock_is_of_the_open_file(files: Files) -> None:
    node, one, _ = files.open("f", content=b"x")
    two = files.request(OPEN, node, flags=os.O_RDONLY).fh
    assert lock(files, one, 1, WRITE_LOCK, flags=1) == "done"
    assert lock(files, two, 2, READ_LOCK, flags=1) == "EAGAIN"
    assert lock(files, two, 2, READ_LOCK) == "done"              # the two kinds do not see each other
    assert lock(files, one, 1, READ_LOCK, flags=1) == "done"
    assert lock(files, two, 2, READ_LOCK, flags=1) == "done"
    assert lock(files, one, 1, WRITE_LOCK, flags=1) == "EAGAIN"
    files.request(RELEASE, node, fh=two, open_flags=2, lock_owner=2)
    assert lock(files, one, 1, WRITE_LOCK, flags=1) == "done"
    with (files.volume / "f").open() as beside:
        assert attempt(fcntl.flock, beside, fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"


HOLDER = """
import fcntl, struct, sys
file = open(sys.argv[1], "r+b")
if sys.argv[2] == "flock":
    fcntl.flock(file, fcntl.LOCK_EX)
else:
    fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(files: Files) -> Iterator[Any]:
    """Starts a program beside the mount that holds a lock of the backing file until it is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(kind: str) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, "-c", HOLDER, files.volume / "f", kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(program)
        assert program.stdout is not None and program.stdout.readline() == "locked\n"
        return program

    yield start
    for program in started:
        program.communicate("")


def test_locks_beside_the_mount_count(files: Files, holder: Any) -> None:
    _, fh, _ = files.open("f", content=b"x" * 100)
    program = holder("posix")
    assert lock(files, fh, 1, WRITE_LOCK, 0, 4) == "done"
    assert lock(files, fh, 1, READ_LOCK, 0, 5) == "EAGAIN"
    assert query(files, fh, 1, READ_LOCK) == (WRITE_LOCK, 5, 14, program.pid)
    with (files.volume / "f").open("r+b") as beside:
        assert attempt(fcntl.lockf, beside, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2) == "EAGAIN"


class Waiter(threading.Thread):
    """A SETLKW in a thread: what it ended with, and when."""

    def __init__(self, files: Files, **arguments: Any) -> None:
        super().__init__()
        self.request = files.core.request(SETLKW, ROOT, **arguments)
        self.answer = ""
        self.core = files.core
        self.start()

    def run(self) -> None:
        try:
            self.request.do()
            self.answer = "done"
        except VfsError as error:
            self.answer = errno.errorcode[error.errno or 0]

    def until_parked(self) -> None:
        """It waits once its number is known and it has not ended."""
        end = time.monotonic() + 10
        while not self.request.waits_for_lock:
            assert time.monotonic() < end and self.is_alive()
            time.sleep(0.001)

    def ended(self, seconds: float = 10) -> str:
        self.join(seconds)
        assert not self.is_alive()
        return self.answer


def arguments_of(fh: int, owner: int, kind: int, flags: int = 0) -> dict[str, Any]:
    return {"fh": fh, "lock_owner": owner, "lock_type": kind, "end": LAST, "lock_pid": owner, "flags": flags}


@pytest.mark.parametrize("flags", [0, 1])
def test_a_waiting_lock_is_granted_when_it_is_released(files: Files, flags: int) -> None:
    _, one, _ = files.open("f", content=b"x")
    _, two, _ = files.open("f")
    assert lock(files, one, 1, WRITE_LOCK, flags=flags) == "done"
    waiter = Waiter(files, **arguments_of(two, 2, WRITE_LOCK, flags=flags))
    waiter.until_parked()
    time.sleep(0.05)
    assert waiter.is_alive()
    assert lock(files, one, 1, UNLOCK, flags=flags) == "done"
    assert waiter.ended() == "done"
    assert lock(files, one, 1, READ_LOCK, flags=flags) == "EAGAIN"


@pytest.mark.parametrize("how", ["flush", "release", "downgrade"])
def test_other_ways_to_release(files: Files, how: str) -> None:
    node, two, _ = files.open("f", content=b"x")
    one = files.request(OPEN, node, flags=os.O_RDWR).fh
    assert lock(files, one, 1, WRITE_LOCK) == "done"
    waiter = Waiter(files, **arguments_of(two, 2, READ_LOCK))
    waiter.until_parked()
    if how == "flush":
        files.request(FLUSH, fh=one, lock_owner=1)
    elif how == "downgrade":
        assert lock(files, one, 1, READ_LOCK) == "done"
    if how == "release":
        files.request(RELEASE, node, fh=one)
        assert waiter.ended() == "done"
    else:
        assert waiter.ended() == "done"
        files.request(RELEASE, node, fh=one)


def test_a_waiting_lock_is_interrupted(files: Files) -> None:
    _, one, _ = files.open("f", content=b"x")
    _, two, _ = files.open("f")
    assert lock(files, one, 1, WRITE_LOCK) == "done"
    waiter = Waiter(files, **arguments_of(two, 2, WRITE_LOCK))
    waiter.until_parked()
    end = time.monotonic() + 5
    while not files.core.interrupt(waiter.request.number):
        assert time.monotonic() < end
    assert waiter.ended() == "EINTR"
    assert not files.core.interrupt(waiter.request.number)
    assert lock(files, one, 1, UNLOCK) == "done"
    assert query(files, one, 1, WRITE_LOCK)[0] == UNLOCK         # it does not come by the lock afterwards


@pytest.mark.parametrize("kind", ["posix", "flock"])
def test_a_release_beside_the_mount_is_noticed(files: Files, holder: Any, kind: str) -> None:
    _, fh, _ = files.open("f", content=b"x" * 100)
    program = holder(kind)
    waiter = Waiter(files, **arguments_of(fh, 1, WRITE_LOCK, flags=int(kind == "flock")))
    waiter.until_parked()
    time.sleep(0.15)
    assert waiter.is_alive()
    program.communicate("")
    assert waiter.ended() == "done"


def test_a_waiting_lock_needs_no_thread(files: Files) -> None:
    """A hundred of them, parked; each is woken by the release and tries again."""
    _, one, _ = files.open("f", content=b"x")
    _, two, _ = files.open("f")
    assert lock(files, one, 1, WRITE_LOCK) == "done"
    before = threading.active_count()
    woken: list[int] = []
    requests = [files.core.request(SETLKW, **arguments_of(two, 10 + i, READ_LOCK)) for i in range(100)]
    for i, request in enumerate(requests):
        assert not request.run()
        assert request.waits_for_lock
        assert request.park(functools.partial(woken.append, i))
    assert threading.active_count() == before
    assert files.core.retry_locks() == 100       # nobody outside is in the way: none tries again
    assert woken == []
    assert files.core.interrupt(requests[50].number)
    assert woken == [50]
    assert requests[50].run() and requests[50].error == errno.EINTR
    assert lock(files, one, 1, UNLOCK) == "done"
    assert sorted(woken[1:]) == [i for i in range(100) if i != 50]
    for i, request in enumerate(requests):
        assert i == 50 or (request.run() and request.error == 0)
    assert lock(files, one, 1, WRITE_LOCK) == "EAGAIN"


def test_a_release_between_trying_and_parking_is_not_lost(files: Files) -> None:
    _, one, _ = files.open("f", content=b"x")
    _, two, _ = files.open("f")
    assert lock(files, one, 1, WRITE_LOCK) == "done"
    request = files.core.request(SETLKW, **arguments_of(two, 2, WRITE_LOCK))
    assert not request.run()
    assert lock(files, one, 1, UNLOCK) == "done"
    assert not request.park(lambda: None)
    assert request.run() and request.error == 0


def test_a_deadlock_is_found(files: Files) -> None:
    _, one, _ = files.open("f", content=b"x")
    _, two, _ = files.open("g", content=b"x")
    assert lock(files, one, 1, WRITE_LOCK) == "done"
    assert lock(files, two, 2, WRITE_LOCK) == "done"
    waiter = Waiter(files, **arguments_of(two, 1, WRITE_LOCK))
    waiter.until_parked()
    end = time.monotonic() + 5
    while lock(files, one, 2, WRITE_LOCK, wait=True) != errno.errorcode[errno.EDEADLK]:
        assert time.monotonic() < end
    assert lock(files, two, 2, UNLOCK) == "done"
    assert waiter.ended() == "done"


def test_locks_are_operations_that_a_filter_can_refuse(files: Files) -> None:
    node, fh, _ = files.open("f", content=b"x")
    recorder = Recorder(files.core, [MajorFunction.IRP_MJ_LOCK_CONTROL])
    other = files.request(OPEN, node, flags=os.O_RDWR).fh
    assert lock(files, other, 1, WRITE_LOCK, 3, 7, wait=True) == "done"
    assert query(files, fh, 2, READ_LOCK)[3] == 1
    assert lock(files, other, 1, UNLOCK, 4, 4) == "done"
    files.request(FLUSH, fh=other, lock_owner=1)
    files.request(RELEASE, node, fh=other)
    files.request(FLUSH, fh=fh, lock_owner=2)                    # nothing was locked by this one
    minor = LockMinorFunction
    assert [(seen[1], seen[2], seen[3]) for seen in recorder.seen] == [
        (minor.IRP_MN_LOCK, "setlkw", False),
        (minor.IRP_MN_QUERY_LOCK, "getlk", True),
        (minor.IRP_MN_UNLOCK_SINGLE, "setlk", True),
        (minor.IRP_MN_UNLOCK_ALL_BY_KEY, "flush", True),
        (minor.IRP_MN_UNLOCK_ALL, "release", True),
    ]
    recorder.answer = lambda data: data.complete(from_errno(errno.EACCES))
    assert lock(files, fh, 1, WRITE_LOCK) == "EACCES"
    assert recorder.troubles == []


def test_no_filter_keeps_a_lock_alive(files: Files) -> None:
    """Closing ends the locks, whatever a filter answers to that."""
    _, one, _ = files.open("f", content=b"x")
    assert lock(files, one, 1, WRITE_LOCK) == "done"
    recorder = Recorder(
        files.core, [MajorFunction.IRP_MJ_LOCK_CONTROL], answer=lambda data: data.complete(from_errno(errno.EIO))
    )
    files.request(FLUSH, fh=one, lock_owner=1)
    files.core.stack.remove(recorder.entry)
    assert lock(files, one, 2, WRITE_LOCK) == "done"


# ---- the wire -------------------------------------------------------------------------------------------------------


def message(opcode: int, body: bytes) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 77, 1, 1000, 1001, 42, 0, 0) + body


WIRE: dict[int, tuple[bytes, dict[str, Any]]] = {
    LSEEK: (struct.pack("<QQII", 5, 1 << 33, 3, 0), {"fh": 5, "offset": 1 << 33, "flags": 3}),
    FALLOCATE: (struct.pack("<QQQII", 5, 6, 7, 3, 0), {"fh": 5, "offset": 6, "size": 7, "mode": 3}),
    COPY_64: (
        struct.pack("<7Q", 1, 2, 3, 4, 5, 1 << 40, 0),
        {"fh": 1, "offset": 2, "nodeid2": 3, "fh2": 4, "offset2": 5, "size": 1 << 40},
    ),
    SETLKW: (
        struct.pack("<4Q4I", 1, 2, 3, 4, 1, 99, 1, 0),
        {"fh": 1, "lock_owner": 2, "offset": 3, "end": 4, "lock_type": 1, "lock_pid": 99, "flags": 1},
    ),
    IOCTL: (
        struct.pack("<QIIQII", 9, 16, GETFLAGS, 0xDEAD, 3, 4) + b"abc",
        {"fh": 9, "flags": 16, "command": GETFLAGS, "size": 4},
    ),
    TMPFILE: (
        struct.pack("<4I", os.O_RDWR, 0o100600, 0o22, 0) + b"/\0",
        {"flags": os.O_RDWR, "mode": 0o100600, "umask": 0o22, "name": b"/"},
    ),
}
WIRE[COPY] = WIRE[COPY_64]
WIRE[GETLK] = WIRE[SETLK] = WIRE[SETLKW]


@pytest.mark.parametrize("opcode", sorted(WIRE))
def test_what_the_kernel_sends(opcode: int) -> None:
    body, wanted = WIRE[opcode]
    got = decode(message(opcode, body))
    rest = {"operation", "unique", "nodeid", "tid", "uid", "gid", "group"}
    assert {name: value for name, value in got.items() if name not in rest} == wanted
    for length in range(len(body)):
        with pytest.raises(ValueError):
            decode(message(opcode, body[:length]))


def test_more_than_was_negotiated_is_not_answered() -> None:
    with pytest.raises(ValueError):
        decode(message(IOCTL, struct.pack("<QIIQII", 9, 0, GETFLAGS, 0, 0, (1 << 20) + 1)))
