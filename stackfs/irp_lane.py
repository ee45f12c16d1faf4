"""The IRP lane: pyfuse3's handlers, each one VFS request through the stack. The one module that imports pyfuse3.

pyfuse3 reads from our socket pair, not from /dev/fuse. What it does not tell its handlers (who asks, open and write
flags, a setattr's bits) waits in the device's header queue, in the order of the messages: each handler takes the head
before its first await. A head that is not this handler's means that the order is lost for good; the lane then ends, and
the mount with it, rather than mix up two users' requests.

Handlers run on the trio loop. Metadata, and data that is in the page cache, is served in place; what has to wait for
the disk (fsync, a cold read, a synchronous write) waits in a worker thread, without the GIL; what a filter holds
waits as a task, and goes on in the thread that completes it, which then wakes the task to answer. Whatever happens, a
handler answers with FUSEError and nothing else: another exception would end pyfuse3's loop.
"""

from __future__ import annotations

import errno
import functools
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
import structlog
import trio

from stackfs.cext.python_requests import Done

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from stackfs.async_callbacks import AsyncCallbacks
    from stackfs.cext.device import Device
    from stackfs.cext.python_requests import Request, Volume

log = structlog.get_logger("stackfs.irp")

T = TypeVar("T")

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR = 1, 2, 3, 4, 5, 6, 8, 9
UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 10, 11, 12, 13, 14, 15, 16, 17, 18
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH = 20, 21, 22, 23, 24, 25
OPENDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE, POLL, READDIRPLUS = 27, 29, 30, 34, 35, 40, 44

PATH_MAX = 4096

MAX_TASKS = 10_000
"""Requests that may be under way at once: waiting ones must never keep out the one that would release them."""

WORKERS = 16
"""Threads that may wait for the disk at once."""

ASKING_WORKERS = 32
"""Requests that may be with filters that wait for programs at once; as many as the device has threads."""


class LaneError(Exception):
    """The header queue and pyfuse3's messages do not match any more."""


class _Relay(trio.abc.Instrument):
    """Carries the answers on before the loop waits: a thread less between pyfuse3 and the kernel."""

    def __init__(self, device: Device) -> None:
        self.before_io_wait = device.relay_now  # type: ignore[method-assign]


class Operations:
    """pyfuse3's handlers. The arguments that the header has already are ignored.

    Not a subclass of pyfuse3.Operations: a handler here need not be a coroutine, and none is left to a default.
    """

    enable_writeback_cache = False
    enable_acl = False  # INIT is answered by the device, which asks for ACLs
    supports_dot_lookup = False

    def __init__(self, device: Device, volume: Volume, async_callbacks: AsyncCallbacks) -> None:
        self.device = device
        self.volume = volume
        self.async_callbacks = async_callbacks
        self.broken: LaneError | None = None
        self.on_broken = trio.Event()
        self.callbacks_wait: Callable[[], bool] = lambda: False
        """Is a filter attached that may wait for a program? Its callbacks then never run on the loop."""
        self._workers = trio.CapacityLimiter(WORKERS)
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._asking_workers = trio.CapacityLimiter(ASKING_WORKERS)

    def init(self) -> None:
        """libfuse has got its INIT."""

    def _take(self, opcode: int, nodeid: int = 0) -> Request:
        request = self.device.take(opcode, nodeid)
        if request is None:
            if self.broken is None:
                self.broken = LaneError(
                    f"the request for opcode {opcode}, node {nodeid} met the header {self.device.head()}"
                )
                log.critical("the IRP lane has lost the order of requests and ends", reason=str(self.broken))
                self.on_broken.set()
            raise pyfuse3.FUSEError(errno.EIO)
        return request

    def _finish(self, request: Request, answer: Callable[[Request], T]) -> Awaitable[T]:
        """Run a request and answer with what `answer` makes of it; FUSEError when it failed.

        Most requests end in place: they then cost no coroutine. One that has to wait goes on in a worker thread.
        """
        if self.callbacks_wait():
            return self._run_in_thread(request, answer)
        if self.volume.awaits:
            return self._run_async(request, answer)
        if not request.run():
            return self._wait(request, answer)
        return Done(self._outcome(request, answer))

    def _outcome(self, request: Request, answer: Callable[[Request], T]) -> T:
        if request.error:
            raise pyfuse3.FUSEError(request.error)
        return answer(request)

    async def _run_async(self, request: Request, answer: Callable[[Request], T]) -> T:
        """Where some callback is `async def`: it runs in this task, and costs a turn of the loop only when it waits."""
        while not self.async_callbacks.walk(request.unique, request.run):
            await self._until_ready(request)
        return self._outcome(request, answer)

    async def _run_in_thread(self, request: Request, answer: Callable[[Request], T]) -> T:
        """All callbacks in worker threads, where they may wait for a program."""
        while True:
            with trio.CancelScope(shield=True):
                done = await trio.to_thread.run_sync(request.run, limiter=self._asking_workers)
            if done:
                return self._outcome(request, answer)
            await self._until_ready(request)

    async def _wait(self, request: Request, answer: Callable[[Request], T]) -> T:
        await self._until_ready(request)
        return await self._run_async(request, answer)

    async def _until_ready(self, request: Request) -> None:
        """What run() stopped at. Shielded, where a thread uses the request's memory until it is done."""
        if (rest := self.async_callbacks.rest(request.unique)) is not None:
            await rest
        elif request.is_held or request.waits_for_lock:
            woken = trio.Event()
            if request.park(functools.partial(self._wake, woken)):
                await woken.wait()
        else:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(request.wait, limiter=self._workers)

    def _wake(self, woken: trio.Event) -> None:
        """By whatever thread has carried the request on."""
        if threading.get_ident() == self._thread:
            woken.set()
        else:
            self._token.run_sync_soon(woken.set)

    # --- names ----------------------------------------------------------------------------------------------------

    def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Awaitable[pyfuse3.EntryAttributes]:
        return self._finish(self._take(LOOKUP, parent_inode).named(name), _entry)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        if not self.device.discard(FORGET):
            self._take(FORGET)  # says what is wrong
        for inode, lookups in inode_list:
            self.volume.forget(inode, lookups)

    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int,
              ctx: Any) -> Awaitable[pyfuse3.EntryAttributes]:  # fmt: skip
        return self._finish(self._take(MKNOD, parent_inode).named(name), _entry)

    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> Awaitable[pyfuse3.EntryAttributes]:
        return self._finish(self._take(MKDIR, parent_inode).named(name), _entry)

    def symlink(self, parent_inode: int, name: bytes, target: bytes,
                ctx: Any) -> Awaitable[pyfuse3.EntryAttributes]:  # fmt: skip
        return self._finish(self._take(SYMLINK, parent_inode).named(name, target), _entry)

    def link(self, inode: int, new_parent_inode: int, new_name: bytes,
             ctx: Any) -> Awaitable[pyfuse3.EntryAttributes]:  # fmt: skip
        return self._finish(self._take(LINK, new_parent_inode).named(b"", new_name), _entry)

    def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> Awaitable[None]:
        return self._finish(self._take(UNLINK, parent_inode).named(name), _nothing)

    def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> Awaitable[None]:
        return self._finish(self._take(RMDIR, parent_inode).named(name), _nothing)

    def rename(self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes,
               flags: int, ctx: Any) -> Awaitable[None]:  # fmt: skip
        return self._finish(self._take(RENAME, parent_inode_old).named(name_old, name_new), _nothing)

    def readlink(self, inode: int, ctx: Any) -> Awaitable[bytes]:
        return self._finish(self._take(READLINK, inode).receiving(PATH_MAX), _result)

    # --- attributes -------------------------------------------------------------------------------------------------

    def getattr(self, inode: int, ctx: Any = None) -> Awaitable[pyfuse3.EntryAttributes]:
        return self._finish(self._take(GETATTR, inode), _attributes)

    def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None,
                ctx: Any) -> Awaitable[pyfuse3.EntryAttributes]:  # fmt: skip
        return self._finish(self._take(SETATTR, inode), _attributes)

    def access(self, inode: int, mode: int, ctx: Any) -> Awaitable[bool]:
        return self._finish(self._take(ACCESS, inode), _true)

    def statfs(self, ctx: Any) -> Awaitable[pyfuse3.StatvfsData]:
        return self._finish(self._take(STATFS).for_statistics(), _statistics)

    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> Awaitable[None]:
        return self._finish(self._take(SETXATTR, inode).named(name).sending(value), _nothing)

    def getxattr(self, inode: int, name: bytes, ctx: Any) -> Awaitable[bytes]:
        return self._finish(self._take(GETXATTR, inode).named(name).receiving_as_asked(), _value)

    def listxattr(self, inode: int, ctx: Any) -> Awaitable[list[bytes]]:
        return self._finish(self._take(LISTXATTR, inode).receiving_as_asked(), _names)

    def removexattr(self, inode: int, name: bytes, ctx: Any) -> Awaitable[None]:
        return self._finish(self._take(REMOVEXATTR, inode).named(name), _nothing)

    # --- open files ---------------------------------------------------------------------------------------------------

    def open(self, inode: int, flags: int, ctx: Any) -> Awaitable[pyfuse3.FileInfo]:
        return self._finish(self._take(OPEN, inode), self._file_info)

    def create(self, parent_inode: int, name: bytes, mode: int, flags: int,
               ctx: Any) -> Awaitable[tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]]:  # fmt: skip
        return self._finish(
            self._take(CREATE, parent_inode).named(name), lambda made: (self._file_info(made), _entry(made))
        )

    def _file_info(self, request: Request) -> pyfuse3.FileInfo:
        """Unless told otherwise pyfuse3 would have the kernel keep a file's pages from one open to the next."""
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(request.fh), direct_io=request.direct_io, keep_cache=request.keep_cache
        )

    def read(self, fh: int, off: int, size: int) -> Awaitable[bytes]:
        return self._finish(self._take(READ).receiving(size), _result)

    def write(self, fh: int, off: int, buf: bytes) -> Awaitable[int]:
        return self._finish(self._take(WRITE).sending(buf), _length)

    def flush(self, fh: int) -> Awaitable[None]:
        return self._finish(self._take(FLUSH), _nothing)

    def fsync(self, fh: int, datasync: bool) -> Awaitable[None]:
        return self._finish(self._take(FSYNC), _nothing)

    def release(self, fh: int) -> Awaitable[None]:
        return self._finish(self._take(RELEASE), _nothing)

    def opendir(self, inode: int, ctx: Any) -> Awaitable[int]:
        return self._finish(self._take(OPENDIR, inode), _handle)

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        request = self._take(READDIRPLUS)
        if not self.async_callbacks.walk(
            request.unique,
            lambda: request.list_directory(
                lambda name, entry, following: pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), entry, following),
                pyfuse3.EntryAttributes,
            ),
        ):
            await self._wait(request, _nothing)
        self._outcome(request, _nothing)

    def fsyncdir(self, fh: int, datasync: bool) -> Awaitable[None]:
        return self._finish(self._take(FSYNCDIR), _nothing)

    def releasedir(self, fh: int) -> Awaitable[None]:
        return self._finish(self._take(RELEASEDIR), _nothing)

    def poll(self, inode: int, fh: int, poll_handle: Any, ctx: Any) -> Awaitable[int]:
        """pyfuse3's handle is not used: what wakes whoever polls is written by the device (notices.pyx)."""
        return self._finish(self._take(POLL), _length)


# --- answers: what pyfuse3 takes ----------------------------------------------------------------------------------

def _nothing(request: Request) -> None:
    return None


def _true(request: Request) -> bool:
    return True


def _entry(request: Request) -> pyfuse3.EntryAttributes:
    return request.fill_entry(pyfuse3.EntryAttributes())


def _attributes(request: Request) -> pyfuse3.EntryAttributes:
    return request.fill_attributes(pyfuse3.EntryAttributes())


def _result(request: Request) -> bytes:
    return request.result()


def _length(request: Request) -> int:
    return request.length


def _handle(request: Request) -> int:
    return request.fh


# pyfuse3 answers with the length alone where no room was given: of something as long, then.


def _value(request: Request) -> bytes:
    return request.result() or bytes(request.length)


def _names(request: Request) -> list[bytes]:
    return _value(request).split(b"\0")[:-1]


def _statistics(request: Request) -> pyfuse3.StatvfsData:
    data = pyfuse3.StatvfsData()
    (data.f_bsize, data.f_frsize, data.f_blocks, data.f_bfree, data.f_bavail,
     data.f_files, data.f_ffree, data.f_favail, data.f_namemax) = request.statistics()  # fmt: skip
    return data


def start(device: Device, volume: Volume, async_callbacks: AsyncCallbacks) -> Operations:
    """Give pyfuse3 its end of the device's socket pair. Before device.start(); run() then serves."""
    operations = Operations(device, volume, async_callbacks)
    handlers: Any = operations
    pyfuse3.init(handlers, f"/dev/fd/{device.detach_lane_fd()}", set())
    return operations


async def run(device: Device) -> None:
    """pyfuse3's loop, until terminate()."""
    relay = _Relay(device)
    trio.lowlevel.add_instrument(relay)
    try:
        await pyfuse3.main(min_tasks=1, max_tasks=MAX_TASKS)
    finally:
        trio.lowlevel.remove_instrument(relay)


def terminate() -> None:
    """End run() once the handlers under way have answered. On the trio thread."""
    pyfuse3.terminate()


def close() -> None:
    """Free pyfuse3's session and its end of the socket pair. After device.stop(), before device.close()."""
    pyfuse3.close(unmount=False)
