"""A program on a drive, and what it may find there after a crash.

Each method does one thing on the drive, and remembers it: what was there before, what is there now, and at which
position of the recording (tests/fault.py) it began and ended. After a power cut, or the daemon's death, at a position,

- each 4 KiB of a file are as they were at its last fsync, or at any moment since;
- so is its size, or it is between two of those, where it grew or shrank in several steps;
- so are its attributes, and each name, of which a directory's fsync is the last certain moment;
- a file that was never synced may be lost (tests/crash_states.py says how), but not its name's directory.

`allowed()` answers for one thing; `check()` compares a whole tree that a reader has found, as read_tree() gives it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stackfs.filters.encryption import volume as volumes
from stackfs.filters.encryption._cipher import VolumeKeys
from stackfs.filters.encryption._file import EncryptedFile

BLOCK = 4096
NEVER = 1 << 62
Key = tuple[Any, ...]


@dataclass(slots=True)
class Thing:
    """A file, directory or link of the program's; `parts`: of a file, its content now."""

    number: int
    kind: str
    target: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, Thing] = field(default_factory=dict)


@dataclass(slots=True)
class Event:
    begun: int
    ended: int
    values: dict[Key, Any]
    settled: tuple[Key, ...]
    """What is certain from its end on: these, and what begins with them. `ended` NEVER: it failed, or was cut off."""


def whole(done: int, data: bytes) -> None:
    if done != len(data):
        raise OSError(errno.ENOSPC, "written in part")


class Program:
    def __init__(self, top: Path, position: Callable[[], int]) -> None:
        self.top, self.position = top, position
        self.events: list[Event] = []
        self.things: list[Thing] = []
        self.root = self.thing("directory")
        self.history: dict[Key, list[tuple[int, Any]]] = {}
        """By key, event numbers and values, in order."""

    def thing(self, kind: str, target: bytes = b"") -> Thing:
        made = Thing(len(self.things), kind, target)
        self.things.append(made)
        return made

    def at(self, path: str) -> Thing:
        found = self.root
        for part in Path(path).parts:
            found = found.names[part]
        return found

    def above(self, path: str) -> tuple[Thing, str]:
        return self.at(os.path.dirname(path)), os.path.basename(path)

    @contextlib.contextmanager
    def step(self, values: dict[Key, Any], settled: tuple[Key, ...] = ()) -> Iterator[None]:
        """What is done in it makes these values. If it raises, it may have been done, in part, or not."""
        for key, value in values.items():
            self.history.setdefault(key, []).append((len(self.events), value))
        event = Event(self.position(), NEVER, values, settled)
        self.events.append(event)
        yield
        event.ended = self.position()

    def changed(self, file: Thing) -> dict[Key, Any]:
        """What is new about a file's content."""
        values: dict[Key, Any] = {("size", file.number): len(file.content)}
        known = max((key[2] for key in self.keys("block", file.number)), default=-1)
        for block in range(max(known + 1, -(-len(file.content) // BLOCK))):
            now = bytes(file.content[block * BLOCK : (block + 1) * BLOCK]).ljust(BLOCK, b"\0")
            before = self.history.get(("block", file.number, block), [(0, bytes(BLOCK))])[-1][1]
            if now != before:
                values["block", file.number, block] = now
        return values

    # --- what it does

    def create(self, path: str, data: bytes = b"", sync: bool = False) -> None:
        directory, name = self.above(path)
        directory.names[name] = file = self.thing("file")
        with self.step({("name", directory.number, name): file.number, ("size", file.number): 0}):
            opened = os.open(self.top / path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            if data:
                file.content += data
                with self.step(self.changed(file)):
                    whole(os.write(opened, data), data)
            if sync:
                self.sync(path, opened)
        finally:
            os.close(opened)

    def change(
        self, path: str, new: Callable[[bytearray], None], what: Callable[[int], None], flags: int = os.O_RDWR
    ) -> None:
        """new(content) is what what(descriptor) does."""
        file = self.at(path)
        new(file.content)
        with self.step(self.changed(file)):
            opened = os.open(self.top / path, flags)
            try:
                what(opened)
            finally:
                os.close(opened)

    def write(self, path: str, offset: int, data: bytes) -> None:
        def new(content: bytearray) -> None:
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data

        self.change(path, new, lambda opened: whole(os.pwrite(opened, data, offset), data))

    def append(self, path: str, data: bytes) -> None:
        self.change(
            path,
            lambda content: content.extend(data),
            lambda opened: whole(os.write(opened, data), data),
            os.O_WRONLY | os.O_APPEND,
        )

    def truncate(self, path: str, size: int) -> None:
        def new(content: bytearray) -> None:
            del content[size:]
            content.extend(bytes(size - len(content)))

        self.change(path, new, lambda opened: os.ftruncate(opened, size))

    def punch(self, path: str, offset: int, length: int, zero: Callable[[int, int, int], None]) -> None:
        """zero(descriptor, offset, length): fallocate(2)."""

        def new(content: bytearray) -> None:
            end = min(len(content), offset + length)
            content[offset:end] = bytes(max(0, end - offset))

        self.change(path, new, lambda opened: zero(opened, offset, length))

    def sync(self, path: str, opened: int | None = None) -> None:
        thing = self.at(path)
        number = thing.number
        settled: tuple[Key, ...] = (("block", number), ("size", number), ("attribute", number))
        if thing.kind == "directory":
            settled = (("name", number), ("attribute", number))
        with self.step({}, settled):
            descriptor = os.open(self.top / path, os.O_RDONLY) if opened is None else opened
            try:
                os.fsync(descriptor)
            finally:
                if opened is None:
                    os.close(descriptor)

    def mkdir(self, path: str) -> None:
        directory, name = self.above(path)
        directory.names[name] = made = self.thing("directory")
        with self.step({("name", directory.number, name): made.number}):
            os.mkdir(self.top / path)

    def symlink(self, target: bytes, path: str) -> None:
        directory, name = self.above(path)
        directory.names[name] = made = self.thing("link", target)
        with self.step({("name", directory.number, name): made.number}):
            os.symlink(target, os.fsencode(self.top / path))

    def link(self, path: str, to: str) -> None:
        thing = self.at(path)
        directory, name = self.above(to)
        directory.names[name] = thing
        with self.step({("name", directory.number, name): thing.number}):
            os.link(self.top / path, self.top / to, follow_symlinks=False)

    def remove(self, path: str) -> None:
        directory, name = self.above(path)
        thing = directory.names.pop(name)
        with self.step({("name", directory.number, name): None}):
            (os.rmdir if thing.kind == "directory" else os.unlink)(self.top / path)

    def rename(self, path: str, to: str) -> None:
        directory, name = self.above(path)
        other, other_name = self.above(to)
        thing = directory.names.pop(name)
        if thing.kind == "directory" and other_name in other.names:
            with self.step({("name", other.number, other_name): None}):
                pass                                 # it is moved aside before
        other.names[other_name] = thing
        with self.step({("name", directory.number, name): None, ("name", other.number, other_name): thing.number}):
            os.rename(self.top / path, self.top / to)

    def attribute(self, path: str, name: str, value: bytes | None) -> None:
        with self.step({("attribute", self.at(path).number, name): value}):
            if value is None:
                os.removexattr(self.top / path, name)
            else:
                os.setxattr(self.top / path, name, value)

    # --- what may be left of it

    def settled(self, key: Key, position: int) -> int:
        """The last event that made it certain before `position`; -1: none."""
        for number in reversed(range(len(self.events))):
            event = self.events[number]
            if event.ended <= position and any(key[: len(each)] == each for each in event.settled):
                return number
        return -1

    def allowed(self, key: Key, position: int, nothing: Any = None) -> list[Any]:
        since = self.settled(key, position)
        values = [nothing]
        for number, value in self.history.get(key, []):
            if self.events[number].begun > position:
                break
            if number <= since and self.events[number].ended != NEVER:
                values = [value]
            else:
                values.append(value)
        return values

    def keys(self, kind: str, number: int) -> Iterator[Key]:
        return (key for key in list(self.history) if key[:2] == (kind, number))

    def check(self, found: Any, position: int, *, torn: bool = False) -> None:
        """AssertionError: it is not what it may be. `torn`: blocks that were changed since may be unreadable."""
        problems = self.differs(found, self.root, position, torn, "")
        assert problems is None, problems

    def differs(self, found: Any, thing: Thing, position: int, torn: bool, path: str) -> str | None:
        """Why what was found is not this; None: it is."""
        kind = found[0]
        if thing.kind != kind:
            return f"{path} is a {kind}, not a {thing.kind}"
        if kind == "link":
            return None if found[1] == thing.target else f"the target of {path} is {found[1]!r}"
        for key in self.keys("attribute", thing.number):
            if kind == "file" and found[1] is None:
                continue
            if found[2].get(key[2]) not in self.allowed(key, position):
                return f"attribute {key[2]} of {path} is {found[2].get(key[2])!r}"
        if kind == "file":
            return self.file_differs(found[1], thing.number, position, torn, path)
        names = {key[2] for key in self.keys("name", thing.number)}
        for name in found[1]:
            if name not in names:
                return f"{path} has a {name!r}"
        for name in names:
            allowed = self.allowed(("name", thing.number, name), position)
            if name not in found[1]:
                if None not in allowed:
                    return f"{path}/{name[:20]} is missing"
                continue
            whys = [
                self.differs(found[1][name], self.things[number], position, torn, f"{path}/{name[:20]}")
                for number in allowed
                if number is not None
            ]
            if None not in whys:
                return whys[-1] if whys else f"{path}/{name[:20]} should not be there"
        return None

    def file_differs(
        self, content: list[bytes | None] | None, number: int, position: int, torn: bool, path: str
    ) -> str | None:
        size_key = ("size", number)
        sizes = self.allowed(size_key, position, 0)
        if content is None:
            lost = self.settled(size_key, position) < 0
            return None if lost else f"{path} was synced, and is lost"
        if content and not any(content) and self.settled(size_key, position) < 0:
            return None                  # without a header nothing can be read
        size = sum(BLOCK if each is None else len(each) for each in content)
        if content and content[-1] is None:
            size = -(-size // BLOCK) * BLOCK
            if not any(-(-each // BLOCK) == len(content) for each in range(min(sizes), max(sizes) + BLOCK, 512)):
                return f"{path} has {len(content)} blocks"
        elif not min(sizes) <= size <= max(sizes) or (size not in sizes and size % BLOCK):
            return f"{path} has {size} bytes, not {sizes}"
        for block, data in enumerate(content):
            allowed = self.allowed(("block", number, block), position, bytes(BLOCK))
            if data is None:
                if not torn or (len(allowed) < 2 and block < min(sizes) // BLOCK):
                    return f"block {block} of {path} is unreadable"
            elif data.ljust(BLOCK, b"\0") not in allowed:
                first = [next((i for i in range(len(data)) if data[i] != each[i]), len(data)) for each in allowed]
                return f"block {block} of {path} is neither old nor new: it differs from {first} on"
        return None


# --- what is found --------------------------------------------------------------------------------------------------


def read_tree(keys: VolumeKeys, top: Path, *, plain_names: bool = False) -> Any:
    """What the backing directory holds: ("directory", {name: ...}, attributes), ("link", target), ("file", blocks,
    attributes); blocks are bytes, None for one that is damaged; instead of blocks None for a file without a header.

    OSError: what a mount would answer, for a directory, a name, a target or an attribute.
    """
    return _read_directory(keys, os.fsencode(top), keys_id(keys), b"", plain_names)


def keys_id(keys: VolumeKeys) -> bytes:
    return bytes(keys.id)


def _read_directory(keys: VolumeKeys, path: bytes, parent: bytes, stored: bytes, plain_names: bool) -> Any:
    iv = keys_id(keys)
    if not plain_names:
        file = path + b"/" + os.fsencode(volumes.DIRECTORY_FILE)
        with open(file, "rb") as opened:
            iv = keys.check_directory(opened.read(), (parent, stored))
    names: dict[str, Any] = {}
    with os.scandir(path) as listing:
        entries = list(listing)
    for entry in entries:
        text = b""
        if entry.name.startswith(b".stackfs-"):
            if not entry.name.startswith(b".stackfs-long-") or entry.name.endswith((b".name", b".new")):
                continue
            with open(entry.path + b".name", "rb") as opened:
                text = opened.read()
        name = entry.name if plain_names else keys.decrypt_name(iv, entry.name, text)
        if entry.is_symlink():
            found: Any = ("link", keys.decrypt_target(os.readlink(entry.path)))
        elif entry.is_dir():
            found = _read_directory(keys, entry.path, iv, entry.name, plain_names)
        else:
            found = _read_file(keys, entry.path)
        names[os.fsdecode(name)] = found
    return "directory", names, _attributes(keys, path, iv)


def _read_file(keys: VolumeKeys, path: bytes) -> Any:
    with open(path, "rb") as opened:
        header = opened.read(1024)
        if not any(header):
            return "file", None, {}
        file = EncryptedFile(keys, opened.fileno())
        return "file", blocks_of(lambda offset: file.read(offset, BLOCK), file.size), _attributes(keys, path, file.id)


def blocks_of(read: Callable[[int], bytes], size: int) -> list[bytes | None]:
    blocks: list[bytes | None] = []
    for offset in range(0, size, BLOCK):
        try:
            blocks.append(read(offset))
        except OSError as error:
            assert error.errno in (errno.EBADMSG, errno.EIO)
            blocks.append(None)
    return blocks


def _attributes(keys: VolumeKeys, path: bytes, owner: bytes) -> dict[str, bytes]:
    return {
        name: keys.decrypt_value(owner, os.fsencode(name), os.getxattr(path, name))
        for name in os.listxattr(path)
        if name.startswith("user.")
    }


def shown_tree(path: Path) -> Any:
    """The same, of a drive that is mounted."""
    names: dict[str, Any] = {}
    with os.scandir(path) as listing:
        entries = list(listing)
    for entry in entries:
        if entry.is_symlink():
            names[entry.name] = ("link", os.fsencode(os.readlink(entry.path)))
        elif entry.is_dir():
            names[entry.name] = shown_tree(Path(entry.path))
        else:
            try:
                opened = os.open(entry.path, os.O_RDONLY)
            except OSError as error:
                assert error.errno == errno.EIO
                names[entry.name] = ("file", None, {})
                continue
            try:
                size = os.fstat(opened).st_size
                blocks = blocks_of(lambda offset, opened=opened: os.pread(opened, BLOCK, offset), size)  # type: ignore[misc]
                try:
                    names[entry.name] = ("file", blocks, _shown_attributes(entry.path))
                except OSError as error:
                    assert error.errno == errno.EIO and not any(blocks)      # nor can its attributes without a header
                    names[entry.name] = ("file", None, {})
            finally:
                os.close(opened)
    return "directory", names, _shown_attributes(os.fspath(path))


def _shown_attributes(path: str) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}
