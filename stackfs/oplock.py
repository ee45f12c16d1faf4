"""Oplocks for programs on a drive that gives them (docs/oplocks.md): a file may be cached until a break is told.

    with request_oplock(fd, "RWH") as lock:             # or: async with, in trio; then what waits is awaited
        broken = lock.wait_break()                      # somebody else wants the file
        lock.write(what_was_kept_back, offset)
        lock.acknowledge()                              # keeps what the break has left; he goes on

Levels are written "R", "RH", "RW", "RWH", or "2", "1", "batch", "filter"; "" is none. Keys are 16 bytes: opens with one
key are one client's. Everything that goes wrong is an OplockError, an OSError whose message is one line.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple

LEVELS: Final = {"": 0, "R": 1, "RH": 3, "RW": 5, "RWH": 7, "2": 0x10, "1": 0x20, "batch": 0x40, "filter": 0x80}
NAMES: Final = {number: name for name, number in LEVELS.items()}
DISPOSITIONS: Final = {"supersede": 0, "open": 1, "create": 2, "open_if": 3, "overwrite": 4, "overwrite_if": 5}
RESULTS: Final = {1: "opened", 2: "created", 3: "overwritten"}

READ_DATA: Final = 0x1
WRITE_DATA: Final = 0x2
DELETE: Final = 0x10000
SHARE_READ: Final = 1
SHARE_WRITE: Final = 2
SHARE_DELETE: Final = 4
COMPLETE_IF_OPLOCKED: Final = 0x100
OPEN_REQUIRING_OPLOCK: Final = 0x10000
RESERVE_OPFILTER: Final = 0x100000

REQUEST: Final = struct.Struct("II16s16s")
BREAK: Final = struct.Struct("IIII")
ACKNOWLEDGE: Final = struct.Struct("IIII")
STATE: Final = struct.Struct("8I")
WRITE_SIZE: Final = 16352
WRITE: Final = struct.Struct(f"QII{WRITE_SIZE}s")
CREATE: Final = struct.Struct("6I16s16sII256s48s")


def _number(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0xF5 << 8 | number


IOC_REQUEST: Final = _number(1, 0x10, REQUEST.size)
IOC_READ_BREAK: Final = _number(2, 0x11, BREAK.size)
IOC_ACKNOWLEDGE: Final = _number(3, 0x12, ACKNOWLEDGE.size)
IOC_STATE: Final = _number(2, 0x13, STATE.size)
IOC_WRITE: Final = _number(1, 0x14, WRITE.size)
IOC_RELEASE: Final = _number(0, 0x15, 0)
IOC_CREATE: Final = _number(3, 0x16, CREATE.size)

_ACK, _ACK_NO_2, _CLOSE_PENDING, _ACK_LEVEL, _ACK_ON_CLOSE = range(5)
_LOOK_EVERY = 0.05
"""Seconds between two looks at a directory's oplock, of which poll(2) does not tell."""
PATIENCE: Final = 0.1
"""Seconds for which a request that is refused is made again: the kernel tells of another's close(2) a moment later."""


# ---- what goes wrong -------------------------------------------------------------------------------------------------


class OplockError(OSError):
    """What an oplock's ioctl answered. str() is one line."""

    def __str__(self) -> str:
        return str(self.strerror)


class NoOplocks(OplockError):
    """The file is on no drive that gives oplocks."""


class NotGranted(OplockError):
    """Somebody else has the file open, or an oplock that does not go with this one."""


class NothingToAcknowledge(OplockError):
    """No break of this oplock is under way (any more): it was never broken, or has been taken."""


class TooMuch(OplockError):
    """More was asked for than the break leaves: it has to be read, and acknowledged, again."""


class SharingViolation(OplockError):
    """Somebody has the file open in a way that does not go with this one."""


def _ioctl(fd: int, number: int, data: bytes, meanings: dict[int, tuple[type[OplockError], str]]) -> bytes:
    buffer = bytearray(data)
    try:
        fcntl.ioctl(fd, number, buffer, True)
    except OSError as error:
        code = error.errno or errno.EIO
        kind, words = {
            errno.ENOTTY: (NoOplocks, "the file is on no drive with oplocks (stackfs mount ... -o filter=oplock)"),
            errno.EOPNOTSUPP: (NoOplocks, "the file is on no drive with oplocks (stackfs mount ... -o filter=oplock)"),
            **meanings,
        }.get(code, (OplockError, os.strerror(code)))
        raise kind(code, words) from None
    return bytes(buffer)


def level_number(level: str) -> int:
    """ValueError: it is none."""
    number = LEVELS.get(level)
    if number is None:
        raise ValueError(f"{level!r} is no oplock level: {', '.join(repr(name) for name in LEVELS)}")
    return number


# ---- breaks ----------------------------------------------------------------------------------------------------------


class Break(NamedTuple):
    """What has become of an oplock."""

    old_level: str
    new_level: str
    acknowledge: bool
    """Somebody waits, or will, until this is acknowledged."""
    switched: bool = False
    """Another open with this key has the oplock now."""
    taken: bool = False
    """It was not acknowledged in time, or the drive gives no oplocks any more. What was kept back is late."""


class State(NamedTuple):
    """An open file's oplock, and what there is of the file's."""

    level: str
    breaking_to: str | None
    """None: it does not break."""
    unread: bool
    """A break can be read."""
    waiting: int
    """Operations that wait for any oplock of the file."""
    holders: int


def read_break(fd: int) -> Break | None:
    """The break that has come; None: none has (since the last was read)."""
    try:
        old, new, flags, _ = BREAK.unpack(_ioctl(fd, IOC_READ_BREAK, bytes(BREAK.size), {}))
    except OplockError as error:
        if error.errno == errno.EAGAIN:
            return None
        raise
    return Break(NAMES[old], NAMES[new], bool(flags & 1), bool(flags & 2), bool(flags & 4))


def state(fd: int) -> State:
    level, breaking_to, flags, waiting, holders, *_ = STATE.unpack(_ioctl(fd, IOC_STATE, bytes(STATE.size), {}))
    return State(NAMES[level], NAMES[breaking_to] if flags & 1 else None, bool(flags & 2), waiting, holders)


# ---- holding ---------------------------------------------------------------------------------------------------------


class _Lock:
    def __init__(self, fd: int, level: str) -> None:
        self.fd = fd
        self.level = level
        """What is held, as far as is known: a break that was read, or acknowledged, changes it."""
        self.broken: Break | None = None
        """A break that was read and is owed an acknowledgement."""

    def _read(self) -> Break | None:
        told = read_break(self.fd)
        if told is not None:
            self.level = told.new_level
            self.broken = told if told.acknowledge else None
        return told

    def state(self) -> State:
        return state(self.fd)

    def acknowledge(self, level: str | None = None, *, close_pending: bool = False) -> str:
        """Answer a break; what is held then. level: other than the break has left ("" for nothing). close_pending: the
        file is about to be closed, and others wait until it is. NothingToAcknowledge; TooMuch: the break is there once
        more."""
        older = self.broken is not None and LEVELS[self.broken.old_level] >= LEVELS["2"]
        wanted = level if level is not None else self.broken.new_level if self.broken is not None else ""
        number = level_number(wanted)
        if older:
            how = _CLOSE_PENDING if close_pending else _ACK_NO_2 if level == "" else _ACK
        else:
            how = _ACK_ON_CLOSE if close_pending else _ACK_LEVEL
        answer = _ioctl(self.fd, IOC_ACKNOWLEDGE, ACKNOWLEDGE.pack(how, number, 0, 0), {
            errno.EPROTO: (NothingToAcknowledge, "no break of this oplock is under way"),
            errno.EBUSY: (TooMuch, "more was asked for than the break leaves; it has to be acknowledged again"),
            errno.ETXTBSY: (NotGranted, "the break is settled, but the level was not granted"),
        })  # fmt: skip
        self.level = NAMES[ACKNOWLEDGE.unpack(answer)[1]]
        self.broken = None
        return self.level

    def release(self) -> None:
        """Give up what is held; whoever waits goes on."""
        self.level, self.broken = "", None
        _ioctl(self.fd, IOC_RELEASE, b"", {})

    def _write(self, data: bytes, offset: int) -> None:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), WRITE_SIZE):
            piece = bytes(view[at : at + WRITE_SIZE])
            _ioctl(self.fd, IOC_WRITE, WRITE.pack(offset + at, len(piece), 0, piece), {
                errno.EPROTO: (NothingToAcknowledge, "no oplock is held that lets writes be kept back"),
            })  # fmt: skip

    def _wait(self, timeout: float | None) -> Break | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        directory = stat.S_ISDIR(os.fstat(self.fd).st_mode)
        poll = select.poll()
        poll.register(self.fd, select.POLLPRI)
        while True:
            told = self._read()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if told is not None or left == 0.0:
                return told
            if directory:
                time.sleep(_LOOK_EVERY if left is None else min(left, _LOOK_EVERY))
            else:
                poll.poll(None if left is None else left * 1000)


class Oplock(_Lock):
    """An oplock that is held."""

    def wait_break(self, timeout: float | None = None) -> Break | None:
        """The next break; None: none in so many seconds."""
        return self._wait(timeout)

    def write(self, data: bytes, offset: int) -> None:
        """Write what was kept back. Not by write(2): the kernel may hold the file's lock for whoever waits.
        NothingToAcknowledge: no oplock is held that lets writes be kept back."""
        self._write(data, offset)


class AsyncOplock(_Lock):
    """An oplock that is held, for trio."""

    async def wait_break(self) -> Break:
        """The next break; cancelling it loses none."""
        import trio

        if stat.S_ISDIR(os.fstat(self.fd).st_mode):
            while (told := self._read()) is None:
                await trio.sleep(_LOOK_EVERY)
            return told
        with select.epoll() as waits:
            waits.register(self.fd, select.EPOLLPRI)
            while (told := self._read()) is None:
                await trio.lowlevel.wait_readable(waits.fileno())
        return told

    async def write(self, data: bytes, offset: int) -> None:
        """As Oplock.write(), in a thread."""
        import trio

        await trio.to_thread.run_sync(self._write, data, offset)


class Request:
    """What request_oplock() gives: for `with` or `async with`, which make the request. Leaving gives the oplock up."""

    def __init__(self, fd: int, level: str, ask: Callable[[], None] | None, patience: float = 0.0) -> None:
        self._fd = fd
        self._level = level
        self._ask = ask
        self._patience = patience
        self._lock: _Lock | None = None

    def _tries(self) -> bool:
        """False: not granted, and perhaps soon."""
        if self._ask is None:
            return True
        try:
            self._ask()
        except NotGranted:
            if self._patience <= 0:
                raise
            self._patience -= _LOOK_EVERY / 5
            return False
        return True

    def __enter__(self) -> Oplock:
        while not self._tries():
            time.sleep(_LOOK_EVERY / 5)
        self._lock = lock = Oplock(self._fd, self._level)
        return lock

    async def __aenter__(self) -> AsyncOplock:
        import trio

        while not self._tries():
            await trio.sleep(_LOOK_EVERY / 5)
        self._lock = lock = AsyncOplock(self._fd, self._level)
        return lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._lock is not None:
            try:
                self._lock.release()
            except OSError:
                if kind is None:
                    raise

    async def __aexit__(self, *how: Any) -> None:
        self.__exit__(*how)


def request_oplock(
    fd: int, level: str, *, key: bytes = b"", parent_key: bytes = b"", patience: float = PATIENCE
) -> Request:
    """An oplock of an open file or, R and RH, directory; enter it with `with` or `async with`.

    key: 16 bytes; opens with one key are one client's. parent_key: takes its place where the oplock is the directory's.
    patience: seconds for which a request that is refused is made again. NotGranted; NoOplocks; ValueError: no such
    level, or key.
    """
    number = level_number(level)
    for each in (key, parent_key):
        if len(each) not in (0, 16):
            raise ValueError(f"an oplock key has 16 bytes, not {len(each)}")

    def ask() -> None:
        _ioctl(fd, IOC_REQUEST, REQUEST.pack(number, 0, key, parent_key), {
            errno.ETXTBSY: (NotGranted, f"{level} is not granted: the file is open elsewhere, or an oplock is held"),
        })  # fmt: skip

    return Request(fd, level, ask, patience)


# ---- opening with share modes ----------------------------------------------------------------------------------------


class Created(NamedTuple):
    """A file that create() has opened."""

    fd: int
    level: str
    """What was granted."""
    result: str
    """"opened", "created" or "overwritten"."""
    break_in_progress: bool
    """With COMPLETE_IF_OPLOCKED: somebody's oplock is being broken."""

    def oplock(self) -> Request:
        """What was granted, for `with` or `async with`."""
        return Request(self.fd, self.level, None)


def reserve(
    directory: int,
    name: str | bytes,
    *,
    access: int = READ_DATA | WRITE_DATA,
    share: int = SHARE_READ | SHARE_WRITE | SHARE_DELETE,
    disposition: str = "open_if",
    options: int = 0,
    mode: int = 0o666,
    level: str = "",
    key: bytes = b"",
    parent_key: bytes = b"",
) -> tuple[bytes, str, str, bool]:
    """The first half of create(): (one-time name, granted level, result, break in progress). It is good for a few
    seconds, for this process alone."""
    if disposition not in DISPOSITIONS:
        raise ValueError(f"{disposition!r} is no disposition: {', '.join(DISPOSITIONS)}")
    answer = _ioctl(directory, IOC_CREATE, CREATE.pack(
        access, share, DISPOSITIONS[disposition], options, mode, level_number(level), key, parent_key, 0, 0,
        os.fsencode(name), b"",
    ), {
        errno.EBUSY: (SharingViolation, "somebody has the file open in a way that does not go with this"),
        errno.ETXTBSY: (NotGranted, "the oplock is not granted, or another would have to be broken"),
    })  # fmt: skip
    _, _, _, _, _, granted, _, _, result, flags, _, once = CREATE.unpack(answer)
    return once.split(b"\0")[0], NAMES[granted], RESULTS[result], bool(flags & 1)


def create(
    directory: int,
    name: str | bytes,
    flags: int = os.O_RDWR,
    *,
    access: int | None = None,
    share: int = SHARE_READ | SHARE_WRITE | SHARE_DELETE,
    disposition: str = "open_if",
    options: int = 0,
    mode: int = 0o666,
    level: str = "",
    key: bytes = b"",
    parent_key: bytes = b"",
) -> Created:
    """Open `name` in an open directory, with a share mode, and an oplock in the same step.

    flags: open(2)'s, for the descriptor. access: what it counts for, to others' share modes; left out: what the flags
    say. mode: of a new file; the umask is applied. It waits while somebody's oplock is broken, unless
    COMPLETE_IF_OPLOCKED is given. SharingViolation; NotGranted (with OPEN_REQUIRING_OPLOCK); other OplockErrors have
    open(2)'s errno.
    """
    if access is None:
        access = {os.O_RDONLY: READ_DATA, os.O_WRONLY: WRITE_DATA}.get(flags & os.O_ACCMODE, READ_DATA | WRITE_DATA)
    mask = os.umask(0)
    os.umask(mask)
    once, granted, result, breaks = reserve(
        directory, name, access=access, share=share, disposition=disposition, options=options, mode=mode & ~mask,
        level=level, key=key, parent_key=parent_key,
    )  # fmt: skip
    fd = os.open(once, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC) | os.O_CLOEXEC, dir_fd=directory)
    return Created(fd, granted, result, breaks)
