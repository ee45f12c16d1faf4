"""Opening a trail for writing: a new one, one that was closed, or one that a crash left (docs/audit.md, "Recovery").

One writer holds a trail, by flock on its directory. What a crash left is read and authenticated before the trail goes
on, with the key that the state file has; what was being written is cut away, and a `recovered` record says so. A trail
that does not fit its own head and state is never gone on with: that would bury what verify could still show.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stackfs.filters.audit import records
from stackfs.filters.audit._trail import Trail
from stackfs.filters.audit.records import FormatError, Head, IncompleteError

MAX_LINKS = 40


class TrailError(Exception):
    """Why the trail cannot be written: one line for the user."""


@dataclass(frozen=True)
class Settings:
    """How the trail is written; sizes in bytes, times in seconds (docs/audit.md, "Options")."""

    ring_size: int = 4 << 20
    full: Literal["wait", "refuse", "count"] = "wait"
    segment_size: int = 64 << 20
    flush_interval: float = 1.0
    sync: bool = True


@dataclass(frozen=True)
class OpenTrail:
    """A trail being written, with what has to stay open for it."""

    trail: Trail
    path: str
    created: bool
    recovered: bool
    directory: int

    def close(self) -> bool:
        """Seals, closes; False if the log could not be written and records were given up. Waits without the GIL."""
        try:
            return self.trail.close()
        finally:
            os.close(self.directory)


# Where it may lie ----------------------------------------------------------------------------------------------------


def resolve_outside(path: str, forbidden: Sequence[str]) -> str:
    """`path` without symbolic links, if no part of it lies in one of the `forbidden` directories (absolute, resolved).

    Nothing inside a forbidden directory is touched on the way: one of them is the drive itself, which could not answer.
    Raises TrailError.
    """
    links = 0
    done = "/"
    rest = [part for part in os.path.abspath(path).split("/") if part]
    while rest:
        part = rest.pop(0)
        here = os.path.normpath(os.path.join(done, part))
        for directory in forbidden:
            if os.path.commonpath([here, directory]) == directory:
                raise TrailError(f"{path} lies inside {directory}, which it audits: choose a place outside")
        try:
            target = os.readlink(here)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise TrailError(f"{here}: {error.strerror}") from error
            done = here
            continue
        links += 1
        if links > MAX_LINKS:
            raise TrailError(f"{path}: too many symbolic links")
        if target.startswith("/"):
            done = "/"
        rest = [each for each in target.split("/") if each and each != "."] + rest
    return done


def _open_directory(path: str, forbidden: Sequence[str]) -> int:
    """The log directory, made if it is not there (0700; parents as umask has it), checked by descriptor."""
    resolved = resolve_outside(path, forbidden)
    try:
        os.makedirs(resolved, mode=0o700, exist_ok=True)
        directory = os.open(resolved, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise TrailError(f"log directory {resolved}: {error.strerror}") from error
    try:
        _check_directory(directory, resolved, forbidden)
    except BaseException:
        os.close(directory)
        raise
    return directory


def _check_directory(directory: int, path: str, forbidden: Sequence[str]) -> None:
    found = os.fstat(directory)
    if found.st_uid != os.geteuid():
        raise TrailError(
            f"log directory {path} belongs to user {found.st_uid}, not to user {os.geteuid()} who writes it"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise TrailError(f"log directory {path} is open to others: chmod 700 {path}")
    places = {}
    for each in forbidden[:1]:  # the backing directory; under another name it may still be the same one
        with contextlib.suppress(OSError):
            info = os.stat(each)
            places[info.st_dev, info.st_ino] = each
    above = os.dup(directory)
    try:
        while True:
            info = os.fstat(above)
            if (info.st_dev, info.st_ino) in places:
                raise TrailError(
                    f"log directory {path} lies inside {places[info.st_dev, info.st_ino]}, which it audits"
                )
            parent = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
            os.close(above)
            above = parent
            upper = os.fstat(above)
            if (upper.st_dev, upper.st_ino) == (info.st_dev, info.st_ino):
                return
    finally:
        os.close(above)


def _lock(directory: int, path: str) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise TrailError(
                f"the trail in {path} is being written by another instance: give this one a log of its own"
            ) from None
        raise TrailError(f"{path}: {error.strerror}") from error


# Opening -------------------------------------------------------------------------------------------------------------


def open_trail(
    path: str,
    key: str | None,
    settings: Settings,
    *,
    about: Mapping[str, str] | None = None,
    forbidden: Sequence[str] = (),
) -> OpenTrail:
    """Opens the trail in directory `path`, or begins one; its writer thread then runs until close().

    key: where the first key of a new trail is written; not looked at when there is a trail. about: what segments say
    of themselves (volume, instance). forbidden: the backing directory, then the mountpoint, absolute and resolved.
    Raises TrailError.
    """
    about = dict(about or {})
    directory = _open_directory(path, forbidden)
    trail: Trail | None = None
    made_key: str | None = None
    try:
        _lock(directory, path)
        trail = Trail(
            directory,
            ring_size=settings.ring_size,
            full=settings.full,
            segment_size=settings.segment_size,
            flush_interval=settings.flush_interval,
            sync=settings.sync,
            segment_text=_text(about),
        )
        exists = _exists(directory, path)
        own: list[tuple[int, bytes]] = []
        recovered = False
        if exists:
            recovered = _resume(trail, directory, path, own)
        else:
            made_key = _create(trail, key, path, forbidden)
        text = _text(about)
        own.append((records.OPENED, records.OPENED_BODY.pack(os.getpid(), os.getuid(), len(text), 0, 0) + text))
        trail.start(own)
        return OpenTrail(trail, path, not exists, recovered, directory)
    except BaseException as error:
        if trail is not None:
            trail.close()
        if made_key is not None and not _has(directory, "head"):  # there is no trail that it could be the key of
            os.unlink(made_key)
        os.close(directory)
        if isinstance(error, OSError):
            raise TrailError(f"trail in {path}: {error.strerror or error}") from error
        raise


def _text(about: Mapping[str, str]) -> bytes:
    """What segments and `opened` records say, cut down until it fits."""
    text = json.dumps(dict(about), ensure_ascii=True).encode()
    if len(text) > 2048:
        text = json.dumps({name: value[:100] for name, value in about.items()}).encode()[:2048]
    return text


def _exists(directory: int, path: str) -> bool:
    """Whether there is a trail. Raises TrailError when there is only a part of one."""
    present = {name for name in ("head", "state") if _has(directory, name)}
    if len(present) == 2:
        return True
    if records.segments(directory) or "head" in present:
        missing = " and ".join(sorted({"head", "state"} - present))
        raise TrailError(
            f"the trail in {path} has lost its {missing} file and cannot go on: see stackfs audit verify, and name "
            "another log directory"
        )
    if present:  # a crash between a new trail's state and its head: nothing was recorded
        os.unlink("state", dir_fd=directory)
    return False


def _has(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _create(trail: Trail, key: str | None, path: str, forbidden: Sequence[str]) -> str:
    """Makes the first key and its file; the file's resolved path."""
    if not key:
        raise TrailError(
            f"there is no trail in {path} yet, and a new one needs audit.key=FILE: the first key is written there, "
            "once, and verify asks for it"
        )
    resolved = resolve_outside(key, [*forbidden, resolve_outside(path, forbidden)])
    try:
        descriptor = os.open(resolved, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise TrailError(
            f"key file {key} is there already and is never overwritten; the new trail in {path} needs another name "
            "for its key"
        ) from None
    except OSError as error:
        raise TrailError(f"key file {key}: {error.strerror}") from error
    try:
        os.fchmod(descriptor, 0o600)
        trail.generate(descriptor)
        parent = os.open(os.path.dirname(resolved), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except BaseException:
        os.unlink(resolved)
        raise
    finally:
        os.close(descriptor)
    return resolved


def _resume(trail: Trail, directory: int, path: str, own: list[tuple[int, bytes]]) -> bool:
    """Puts `trail` to where the one on disk ends. True: its end was unclean (a `recovered` record is in `own` then)."""

    def refuse(reason: str) -> TrailError:
        return TrailError(
            f"the trail in {path} cannot go on: {reason}; see stackfs audit verify, keep it, and name another log "
            "directory"
        )

    try:
        head = Head.parse(records.read_file(directory, "head"))
    except FormatError as error:
        raise refuse(f"its head file was changed ({error})") from None
    try:
        epoch, trail_id = trail.load_state()
    except ValueError as error:
        raise refuse(str(error)) from None
    sealed = head.epoch + (head.kind != records.HEAD_OPENED)  # the epoch in force after the head
    if trail_id != head.trail or epoch not in (sealed, sealed - 1 if head.kind != records.HEAD_OPENED else sealed):
        raise refuse("its head and its state do not belong together")
    if epoch == sealed - 1:  # a crash between the two
        trail.advance()
    trail.place(head.sequence, head.digest, head.segment, head.end)
    replay = _Replay(trail, directory, head, refuse)
    replay.run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink("head.new", dir_fd=directory)
    if head.kind == records.HEAD_CLOSED:
        if replay.count or replay.torn:
            raise refuse("something was added after it was closed")
        return False
    own.append((records.RECOVERED, records.RECOVERED_BODY.pack(replay.count, replay.torn, head.sequence)))
    return True


class _Replay:
    """Goes over what was written after the head, and cuts away what is not whole."""

    def __init__(self, trail: Trail, directory: int, head: Head, refuse: Callable[[str], TrailError]) -> None:
        self.trail, self.directory, self.head, self.refuse = trail, directory, head, refuse
        self.count = 0
        self.torn = 0
        self.sequence = head.sequence

    def run(self) -> None:
        numbers = records.segments(self.directory)
        wanted = list(range(1, max(numbers, default=0) + 1))
        first = max(self.head.segment, 1)
        if [n for n in numbers if n >= first] != [n for n in wanted if n >= first] or (numbers or [0])[
            -1
        ] < self.head.segment:
            raise self.refuse("a segment is missing")
        segment, end = self.head.segment, self.head.end
        for number in [n for n in numbers if n >= first]:
            last = number == numbers[-1]
            descriptor = os.open(
                records.segment_name(number), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory
            )
            with open(descriptor, "r+b", buffering=0) as file:
                start = self.head.end if number == self.head.segment else 0
                size = os.fstat(descriptor).st_size
                if size < start:
                    raise self.refuse("its end was cut off")
                if number == self.head.segment and start >= records.MAC_SIZE:
                    file.seek(start - records.MAC_SIZE)
                    if file.read(records.MAC_SIZE) != self.head.digest:
                        raise self.refuse(f"record {self.head.sequence}, which its head names, is not there")
                file.seek(start)
                data = file.read(size - start)
                good = self.segment(data, fresh=start == 0, last=last)
                self.torn += len(data) - good
                if good < len(data):
                    os.ftruncate(descriptor, start + good)
                    os.fsync(descriptor)
            if start == 0 and good <= len(records.MAGIC):  # not even its first record: it is begun again
                os.unlink(records.segment_name(number), dir_fd=self.directory)
            else:
                segment, end = number, start + good
        if self.count:
            self.trail.place(self.sequence, self.digest, segment, end)

    def segment(self, data: bytes, *, fresh: bool, last: bool) -> int:
        """How many bytes of what a segment has are good."""
        at = 0
        if fresh:
            if not data.startswith(records.MAGIC):
                if last and (records.MAGIC.startswith(data) or not any(data)):
                    return 0
                raise self.refuse("a segment was changed")
            at = len(records.MAGIC)
        while at < len(data):
            try:
                record = records.parse_record(data, at)
            except IncompleteError:
                if last:
                    return at
                raise self.refuse("a segment was cut off") from None
            except FormatError:
                if last and not any(memoryview(data)[at:]):
                    return at
                raise self.refuse(f"record {self.sequence + 1} was changed") from None
            if record.sequence != self.sequence + 1 or not self.trail.accept(
                memoryview(data)[at : at + record.length], record.kind == records.SEAL
            ):
                raise self.refuse(f"record {self.sequence + 1} was changed")
            self.sequence += 1
            self.count += 1
            self.digest = record.mac
            at += record.length
        return at
