"""Many threads in one stack, without a mount: random operations over one small tree while instances come and go.

What is asserted is what must hold whatever the order was: no request fails in a way that none of the others explains,
and when every handle is released and every lookup given back, nothing is left: no handle, no inode but the root, no
descriptor, no list that is still walked. `make sanitize` runs this under the sanitizers, for longer
(STACKFS_STRESS_SECONDS).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import stat
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_device import init, message, pair, readable

from stackfs.cext.callback_data import CallbackData, MajorFunction, PreopStatus
from stackfs.cext.device import Device
from stackfs.cext.python_requests import Request, VfsError, Volume
from stackfs.cext.stack import InstanceEntry

LOOKUP, GETATTR, SETATTR, READLINK, SYMLINK, MKDIR, UNLINK, RMDIR, LINK = 1, 3, 4, 5, 6, 9, 10, 11, 13
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, SETXATTR, GETXATTR, LISTXATTR = 14, 15, 16, 17, 18, 20, 21, 22, 23
OPENDIR, RELEASEDIR, CREATE, READDIRPLUS, RENAME2, STATX = 27, 29, 35, 44, 45, 52
FATTR_SIZE, FATTR_MODE = 8, 1

SECONDS = float(os.environ.get("STACKFS_STRESS_SECONDS", "1.5"))
THREADS = 8
NAMES = [b"a", b"b", b"c", b"d", b"e", b"f"]
MAJORS = [MajorFunction[f"IRP_MJ_{name}"] for name in (
    "CREATE", "CLEANUP", "CLOSE", "READ", "WRITE", "QUERY_INFORMATION", "SET_INFORMATION", "DIRECTORY_CONTROL",
    "NETWORK_QUERY_OPEN", "QUERY_OPEN")]  # fmt: skip
STATUS_ACCESS_DENIED = 0xC0000022
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ESTALE, errno.EBADF, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY,
            errno.EINVAL, errno.ENODATA, errno.EACCES, errno.EIO, errno.ELOOP, errno.EPERM, errno.EMLINK, errno.EBUSY,
            errno.ENXIO, errno.EXDEV, errno.EOPNOTSUPP}


def descriptors() -> int:
    """Open descriptors, but for those by which the core keeps the names of requesting threads."""
    open_now = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            open_now += not os.readlink(f"/proc/self/fd/{fd}").endswith("/comm")
    return open_now


class Entry:
    """Stands for a pyfuse3.EntryAttributes."""

    st_ino = 0


class OnPurposeError(Exception):
    pass


class Host:
    """What an InstanceEntry asks for; its callbacks look at everything, and now and then refuse or raise."""

    def __init__(self, seed: int, failures: list[BaseException]) -> None:
        self.random = random.Random(seed)
        self.failures = failures
        self.held: list[CallbackData] = []
        self.views: list[memoryview] = []

    def callback_raised(self, routine: str, major: int, path: str, error: BaseException) -> None:
        if not isinstance(error, OnPurposeError):
            self.failures.append(error)

    def callback_misused(self, routine: str, major: int, path: str, status: int) -> None: ...
    def error_limit_reached(self) -> None: ...

    def look(self, data: CallbackData) -> None:
        if data.irql == 0:
            assert data.path.startswith("/") or data.path == "" or "(deleted)" in data.path
        assert isinstance(data.name, bytes)
        assert data.pid == (os.getpid() if data.tid else 0)
        if (view := data.buffer) is not None:
            self.views.append(view)
        self.held.append(data)
        del self.held[:-8], self.views[:-8]
        for one in self.held[:-1]:
            with contextlib.suppress(ReferenceError):
                assert one.major in MAJORS

    def pre(self, data: CallbackData, objects: Any) -> Any:
        self.look(data)
        chance = self.random.random()
        if chance < 0.01:
            raise OnPurposeError
        if chance < 0.02:
            return data.complete(STATUS_ACCESS_DENIED)
        if chance < 0.03:
            return 99
        if chance < 0.2 and data.major == MajorFunction.IRP_MJ_WRITE and data.buffer is not None:
            data.buffer = bytes(data.buffer)
            data.set_dirty()
        if chance < 0.4:
            return PreopStatus.FLT_PREOP_SUCCESS_NO_CALLBACK
        return PreopStatus.FLT_PREOP_SUCCESS_WITH_CALLBACK, object()

    def post(self, data: CallbackData, objects: Any, context: object, flags: int) -> None:
        self.look(data)
        if data.major == MajorFunction.IRP_MJ_DIRECTORY_CONTROL and data.status == 0:
            data.entries = data.entries
        if self.random.random() < 0.01:
            data.status = STATUS_ACCESS_DENIED


class Shared:
    """What the threads do together."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.handles: list[tuple[int, bool]] = []
        self.lookups: list[int] = []
        self.failures: list[BaseException] = []
        self.end = time.monotonic() + SECONDS
        self.errors: dict[int, int] = {}
        self.done = 0


class Caller(threading.Thread):
    def __init__(self, shared: Shared, seed: int) -> None:
        super().__init__()
        self.shared = shared
        self.volume = shared.volume
        self.random = random.Random(seed)

    def run(self) -> None:
        steps = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
        try:
            while time.monotonic() < self.shared.end and not self.shared.failures:
                self.shared.done += 1
                try:
                    self.random.choice(steps)()
                except VfsError as error:
                    self.shared.errors[error.errno] = self.shared.errors.get(error.errno, 0) + 1
                    assert error.errno in EXPECTED, error
        except BaseException as error:  # the main thread raises it
            self.shared.failures.append(error)

    def ask(self, opcode: int, nodeid: int = 1, *, room: int = 0, **arguments: Any) -> Request:
        request = self.volume.request(opcode, nodeid, uid=0, tid=threading.get_native_id(), **arguments)
        if room:
            request.receiving(room)
        return request.do()

    def entry(self, request: Request) -> int:
        self.shared.lookups.append(request.nodeid)
        return request.nodeid

    def name(self) -> bytes:
        return self.random.choice(NAMES)

    def node(self) -> int:
        """Some inode: the root, or one that somebody has looked up."""
        nodes = self.shared.lookups[-50:]
        return self.random.choice(nodes) if nodes and self.random.random() < 0.7 else 1

    def handle(self) -> tuple[int, bool]:
        return self.random.choice([*self.shared.handles, ((1 << 32) + 1, False)])

    def do_lookup(self) -> None:
        self.entry(self.ask(LOOKUP, self.node(), name=self.name()))

    def do_forget(self) -> None:
        for _ in range(self.random.randrange(8)):
            with contextlib.suppress(IndexError):
                self.volume.forget(self.shared.lookups.pop(int(self.random.random() * len(self.shared.lookups))), 1)

    def do_getattr(self) -> None:
        request = self.ask(GETATTR, self.node())
        assert stat.S_IFMT(request.stat[0]) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)

    def do_getattr_by_handle(self) -> None:
        self.ask(GETATTR, self.node(), flags=1, fh=self.handle()[0])

    def do_truncate(self) -> None:
        self.ask(SETATTR, self.node(), valid=FATTR_SIZE, size=self.random.randrange(10000))

    def do_chmod(self) -> None:
        self.ask(SETATTR, self.node(), valid=FATTR_MODE, mode=0o755)

    def do_mkdir(self) -> None:
        self.entry(self.ask(MKDIR, self.node(), name=self.name(), mode=0o755))

    def do_symlink(self) -> None:
        self.entry(self.ask(SYMLINK, self.node(), name=self.name(), name2=b"/nowhere"))

    def do_readlink(self) -> None:
        self.ask(READLINK, self.node(), room=4096)

    def do_unlink(self) -> None:
        self.ask(UNLINK, self.node(), name=self.name())

    def do_rmdir(self) -> None:
        self.ask(RMDIR, self.node(), name=self.name())

    def do_rename(self) -> None:
        self.ask(RENAME2, self.node(), name=self.name(), nodeid2=self.node(), name2=self.name(),
                 flags=self.random.choice((0, 0, 1, 2)))

    def do_link(self) -> None:
        self.entry(self.ask(LINK, self.node(), name=b"", nodeid2=self.node(), name2=self.name()))

    def do_create(self) -> None:
        request = self.ask(CREATE, self.node(), name=self.name(), mode=0o644, flags=os.O_RDWR)
        self.entry(request)
        self.shared.handles.append((request.fh, False))

    def do_open(self) -> None:
        self.shared.handles.append((self.ask(OPEN, self.node(), flags=os.O_RDWR).fh, False))

    def do_opendir(self) -> None:
        self.shared.handles.append((self.ask(OPENDIR, self.node()).fh, True))

    def do_release(self) -> None:
        """Now and then what another thread is just using, or releases as well."""
        if len(self.shared.handles) < 10:
            return
        fh, directory = self.handle()
        with contextlib.suppress(ValueError):
            self.shared.handles.remove((fh, directory))
            self.ask(RELEASEDIR if directory else RELEASE, fh=fh)
        if self.random.random() < 0.2:
            self.ask(RELEASE, fh=fh)

    def do_read(self) -> None:
        self.ask(READ, fh=self.handle()[0], size=4096, offset=self.random.randrange(8192), room=4096).result()

    def do_write(self) -> None:
        self.ask(WRITE, fh=self.handle()[0], size=2000, offset=self.random.randrange(8192), buffer=b"x" * 2000)

    def do_fsync(self) -> None:
        if self.random.random() < 0.02:
            self.ask(FSYNC, fh=self.handle()[0])

    def do_list(self) -> None:
        fh, _ = next((one for one in reversed(self.shared.handles) if one[1]), (1, True))
        room = self.random.randrange(12)

        def emit(name: bytes, entry: Entry, following: int) -> bool:
            nonlocal room
            room -= 1
            if room < 0:
                return False
            if name not in (b".", b".."):
                self.shared.lookups.append(entry.st_ino)
            return True

        request = self.volume.request(READDIRPLUS, fh=fh, offset=0, tid=threading.get_native_id())
        request.list_directory(emit, Entry)
        assert request.error == 0 or request.error in EXPECTED, os.strerror(request.error)

    def do_xattr(self) -> None:
        node = self.node()
        self.ask(SETXATTR, node, name=b"user.x", buffer=b"value")
        assert self.ask(GETXATTR, node, name=b"user.x", room=100).result() == b"value"
        self.ask(LISTXATTR, node, room=1000).result()

    def do_statfs(self) -> None:
        request = self.volume.request(STATFS, tid=threading.get_native_id()).for_statistics().do()
        assert request.statistics()[0] > 0

    def do_known(self) -> None:
        if self.random.random() < 0.05:
            opened, others, names = self.volume.known()
            assert not set(opened) & set(others)
            assert all(name in NAMES for _, name in names)


class Kernel(threading.Thread):
    """Sends requests to a device over the same volume: its threads run the stack without the GIL."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared
        self.kernel, ours = pair()
        self.device = Device(ours.detach(), shared.volume)
        self.lane = socket.socket(fileno=self.device.detach_lane_fd())
        self.random = random.Random(1)
        self.answers = 0

    def run(self) -> None:
        try:
            self.device.start()
            self.kernel.send(init())
            assert readable(self.kernel)
            self.kernel.recv(1 << 16)
            asked = 0
            while time.monotonic() < self.shared.end and not self.shared.failures:
                if asked - self.answers < 32:
                    asked += 1
                    node = self.random.choice([1, *self.shared.lookups[-50:]])
                    fh = self.random.choice([0, *(one[0] for one in self.shared.handles[-50:])])
                    body = struct.pack("<IIQII", fh != 0, 0, fh, 0, 0xFFF)
                    self.kernel.send(message(STATX, 2 + 2 * asked, node, body))
                while readable(self.kernel, 5 if asked - self.answers == 32 else 0):
                    self.kernel.recv(1 << 16)
                    self.answers += 1
            while self.answers < asked:
                assert readable(self.kernel)
                self.kernel.recv(1 << 16)
                self.answers += 1
        except BaseException as error:
            self.shared.failures.append(error)
        finally:
            self.device.stop()
            self.device.close()
            self.lane.close()
            self.kernel.close()


def manage(shared: Shared, seed: int) -> None:
    """Instances come and go."""
    chance = random.Random(seed)
    stack = shared.volume.stack
    entries: list[InstanceEntry] = []
    while time.monotonic() < shared.end and not shared.failures:
        if entries and chance.random() < 0.5:
            entry = entries.pop(chance.randrange(len(entries)))
            stack.remove(entry)
            del entry
        elif len(entries) < 14:
            host = Host(chance.randrange(1 << 30), shared.failures)
            majors = chance.sample(MAJORS, chance.randrange(1, len(MAJORS)))
            altitude = f"{chance.randrange(1, 400000)}.{chance.randrange(1, 99)}1"
            callbacks = [(major, 0, host.pre, host.post) for major in majors]
            entry = InstanceEntry(host, f"i{chance.random()}", altitude, "stress", callbacks=callbacks,
                                  pass_on_error=chance.random() < 0.5)
            with contextlib.suppress(ValueError):
                stack.insert(entry)
                entries.append(entry)
            del host, entry
        stack.drained()
        time.sleep(0.002)
    for entry in entries:
        stack.remove(entry)


@pytest.mark.timeout(60 + 10 * SECONDS)
@pytest.mark.parametrize("descriptor_limit", [3, 4096])
@pytest.mark.verifier_errors("callback data was used after", "no status of a pre callback", "its post is not called",
                             "it failed a CLEANUP or CLOSE")
def test_many_threads_leave_nothing_behind(tmp_path: Path, often_switched: None, descriptor_limit: int) -> None:
    before = descriptors()
    volume = Volume(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), descriptor_limit=descriptor_limit)
    shared = Shared(volume)
    callers: list[Any] = [Kernel(shared), *(Caller(shared, seed) for seed in range(THREADS))]
    for caller in callers:
        caller.start()
    manage(shared, 99)
    for caller in callers:
        caller.join()
    if shared.failures:
        raise shared.failures[0]
    assert shared.done > 20 * SECONDS
    assert callers[0].answers > 5 * SECONDS
    del callers
    for fh, directory in shared.handles:
        volume.request(RELEASEDIR if directory else RELEASE, fh=fh).do()
    for nodeid in shared.lookups:
        volume.forget(nodeid, 1)
    assert volume.stack.drained()
    assert volume.open_files == 0
    assert volume.known_inodes == 1
    assert volume.cached_descriptors == 0
    volume.close()
    assert descriptors() == before
