"""Driving the filter stack without a mount: instances made by hand, requests made by hand (fixture `core`)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stackfs.api import FLT_PREOP_SUCCESS_WITH_CALLBACK
from stackfs.cext.python_requests import VfsError, Volume
from stackfs.cext.stack import InstanceEntry

# FUSE's numbers of the requests used here.
LOOKUP, GETATTR, SETATTR, MKDIR, UNLINK, RMDIR, OPEN, READ, WRITE, RELEASE = 1, 3, 4, 9, 10, 11, 14, 15, 16, 18
FSYNC, SETXATTR, GETXATTR, OPENDIR, RELEASEDIR, CREATE, READDIRPLUS, SYMLINK = 20, 21, 22, 27, 29, 35, 44, 6
FATTR_SIZE = 8


class Host:
    """The owner of an instance: keeps what the stack tells it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def callback_raised(self, routine: str, major: int, path: str, error: BaseException) -> None:
        self.told.append(("raised", routine, major, path, type(error)))

    def callback_misused(self, routine: str, major: int, path: str, status: int) -> None:
        self.told.append(("misused", routine, major, path, status))

    def error_limit_reached(self) -> None:
        self.told.append(("limit",))


def entry_of(
    *callbacks: tuple[int, Callable[..., Any] | None, Callable[..., Any] | None],
    name: str = "f", at: str = "1", passes: bool = False, host: Host | None = None, flags: int = 0,
) -> InstanceEntry:  # fmt: skip
    rows = [(major, flags, pre, post) for major, pre, post in callbacks]
    return InstanceEntry(host or Host(), name, at, name, rows, pass_on_error=passes)


def go_on(*_: Any) -> int:
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


def lookup(core: Volume, name: bytes) -> int:
    return core.request(LOOKUP, name=name).do().nodeid


def opened(core: Volume, nodeid: int, flags: int = os.O_RDONLY) -> int:
    return core.request(OPEN, nodeid, flags=flags).do().fh


def read(core: Volume, fh: int, size: int = 10, offset: int = 0) -> bytes:
    buffer = bytearray(size)
    done = core.request(READ, fh=fh, buffer=buffer, size=size, offset=offset).do()
    return bytes(buffer[: done.length])


def error_of(core: Volume, opcode: int, nodeid: int = 1, **arguments: Any) -> int:
    try:
        core.request(opcode, nodeid, **arguments).do()
    except VfsError as error:
        return int(error.errno or 0)
    return 0


class Bare(BaseException):
    pass


def raising(kind: type[BaseException]) -> Callable[..., Any]:
    def callback(*_: Any) -> Any:
        raise kind("no")

    return callback


def answering(answer: Any) -> Callable[..., Any]:
    return lambda *_: answer


def names_of(core: Volume, fh: int) -> set[bytes]:
    return set(listed(core, fh))


class Entry:
    """What pyfuse3.EntryAttributes would be."""


def listed(core: Volume, fh: int, at_once: int = 1 << 30) -> list[bytes]:
    """All names of a directory, asked for `at_once` at a time."""
    names: list[bytes] = []
    offset = 0
    while True:
        got: list[tuple[bytes, int]] = []

        def emit(name: bytes, entry: Any, following: int, got: list[tuple[bytes, int]] = got) -> bool:
            if len(got) == at_once:
                return False
            got.append((name, following))
            return True

        request = core.request(READDIRPLUS, fh=fh, offset=offset)
        request.list_directory(emit, Entry)
        assert request.error == 0
        if not got:
            return names
        names += [name for name, _ in got]
        offset = got[-1][1]


def descriptors(below: Path) -> int:
    """How many of this process' descriptors are open regular files below a place, O_PATH ones not counted."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{number}"
        try:
            if os.readlink(path).startswith(f"{below}/") and stat.S_ISREG(os.stat(path).st_mode):
                flags = Path(f"/proc/self/fdinfo/{number}").read_text().split("flags:")[1].split()[0]
                count += not int(flags, 8) & os.O_PATH
        except OSError:
            continue
    return count
