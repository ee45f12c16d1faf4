"""`stackfs encryption fsck`: looks at everything in an unmounted volume (docs/encryption-recovery.md).

In this order: the volume file, its copy and the mark; the tree from the root down, with files on several threads; then
what needs to know the whole tree: directories whose IV is not theirs, names of other directories, blocks that lie in
another place. Findings are made where something is wrong, and repaired, if that was asked for, where it is known that
nothing is lost by it.

The main thread walks and decides; a worker has one file at a time, by a descriptor of its own. Nothing is changed
without `repair`, and nobody else changes the volume: the caller holds its lock. Stored names are bytes; a directory is
reached through its parent's descriptor, so that no path becomes too long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from stackfs import mark
from stackfs.errors import ExitCode, StackfsError
from stackfs.filters.encryption import volume as volumes
from stackfs.filters.encryption._cipher import Blocks, VolumeKeys
from stackfs.filters.encryption._file import slot_offset_of
from stackfs.filters.encryption.findings import Finding, Kind, Report
from stackfs.filters.encryption.fsck_file import DAMAGED, FIXED, HEADER, Checked, StoredFile, belongs, slot_of
from stackfs.filters.encryption.fsck_state import State
from stackfs.filters.encryption.volume import (
    COPY,
    DIRECTORY_FILE,
    RESERVED,
    SUITES,
    VOLUME_FILE,
    Credential,
    Unlocked,
    VolumeError,
    VolumeFile,
)

LOST = ".stackfs-lost"
"""In the root: what a repair has moved aside, and a list of where it was."""

PENDING = ".stackfs-fsck.new"
"""What is being written."""

LONG = b".stackfs-long-"
RESERVED_BYTES, DIRECTORY_NAME = RESERVED.encode(), DIRECTORY_FILE.encode()
IN_ROOT = frozenset(each.encode() for each in (VOLUME_FILE, COPY, mark.NAME, LOST))
OUTSTANDING = 64
TRIES = 200_000
"""Places that a block which is nowhere at home is tried in: about a second."""
HOMES_TRIED = 2_000_000
"""Directories in which foreign names are tried, all of them together."""

Progress = Callable[[Report, bytes], None]


class Handle:
    """An open directory, until nobody needs it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


@dataclasses.dataclass(slots=True, eq=False)
class Directory:
    """A directory on the way: where it is, and what its names are decrypted with (`iv` None: plain, or not known)."""

    parts: tuple[bytes, ...]
    path: bytes
    parent_iv: bytes | None
    parent: Handle | None
    iv: bytes | None = None
    file: bytes | None = None
    handle: Handle | None = None

    @property
    def stored(self) -> bytes:
        return self.parts[-1] if self.parts else b""

    @property
    def place(self) -> tuple[bytes, bytes] | None:
        return None if self.parent_iv is None else (self.parent_iv, self.stored)

    @property
    def descriptor(self) -> int:
        assert self.handle is not None
        return self.handle.descriptor

    def child(self, stored: bytes, plain: bytes) -> Directory:
        return Directory((*self.parts, stored), below(self.path, plain), self.iv, self.handle)


@dataclasses.dataclass(slots=True, eq=False)
class DamagedFile:
    """A file with blocks that cannot be read."""

    directory: tuple[bytes, ...]
    name: bytes
    path: bytes
    checked: Checked

    @property
    def stored(self) -> bytes:
        return b"/".join((*self.directory, self.name))


# The volume file ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Opened:
    """An unlocked volume, and what of its volume file and copy is not as it should be."""

    unlocked: Unlocked
    main: VolumeFile | None
    copy: VolumeFile | None
    problems: dict[str, str]


def open_volume(root: int, where: str, credential: Callable[[], Credential]) -> Opened:
    """Unlocks a volume with whatever is left of its volume file: itself, its copy, or what a crash left of writing one.

    NOT_FOUND, WRONG_KEY, DAMAGED, UNSUPPORTED.
    """
    found: dict[str, VolumeFile] = {}
    problems: dict[str, str] = {}
    for name in (VOLUME_FILE, COPY, VOLUME_FILE + ".new", COPY + ".new"):
        try:
            found[name] = volumes.parse(volumes.read_file(root, name))
        except FileNotFoundError:
            problems[name] = "is missing"
        except OSError as error:
            problems[name] = f"cannot be read: {error.strerror}"
        except VolumeError as error:
            if error.exit_code == ExitCode.UNSUPPORTED and name == VOLUME_FILE:
                raise
            problems[name] = error.message.replace("the volume file is", "is", 1)
    if not found:
        volumes.load(root, where)
    given = credential()
    problem: VolumeError | None = None
    tried: list[VolumeFile] = []
    try:
        for file in found.values():
            if file in tried:
                continue
            tried.append(file)
            try:
                unlocked = volumes.unlock(file, given)
            except VolumeError as error:
                problem = problem or error
                continue
            good = {
                name: each
                for name, each in found.items()
                if each.id == file.id and unlocked.keys.authenticate(volumes.canonical(each.document())) == each.mac
            }
            problems |= {name: "was changed since stackfs wrote it" for name in found if name not in good}
            return Opened(unlocked, good.get(VOLUME_FILE), good.get(COPY), problems)
    finally:
        given.wipe()
    assert problem is not None
    raise problem


# The check ----------------------------------------------------------------------------------------------------------


class Fsck:
    """One check of one volume; run() does it all. `progress` is called on the main thread, often."""

    def __init__(
        self,
        root: int,
        opened: Opened,
        state: State,
        *,
        repair: bool = False,
        new_names: bool = False,
        rebuild_maps: bool = False,
        threads: int | None = None,
        progress: Progress = lambda report, path: None,
    ) -> None:
        self.root, self.opened, self.state = Handle(os.dup(root)), opened, state
        self.repair, self.new_names, self.progress = repair, new_names, progress
        self.rebuild_maps = rebuild_maps
        self.threads = threads or max(1, len(os.sched_getaffinity(0)))
        file = opened.unlocked.file
        self.keys: VolumeKeys = opened.unlocked.keys
        self.id, self.plain, self.suite = file.id, file.names == "plain", SUITES[file.suite]
        self.report = Report()
        self.device = os.fstat(root).st_dev
        self.known: list[tuple[bytes, tuple[bytes, ...], bytes]] = []
        """Directories whose IV is right: IV, stored path, plain path."""
        self.unknown: list[Directory] = []
        self.foreign: list[tuple[Directory, bytes, bool]] = []
        self.damaged: list[DamagedFile] = []
        self.homes_tried = 0
        self.links: set[int] = set()
        self.waiting: deque[tuple[Future[Checked], Directory, bytes, bytes, os.stat_result]] = deque()

    def run(self) -> Report:
        self._volume_files()
        with ThreadPoolExecutor(self.threads, "fsck") as self.pool:
            try:
                self._walk(Directory((), b"", self.id, None))
                if not self.plain:
                    self._directories()
                self._names()
            except BaseException:
                for each in self.waiting:
                    each[0].cancel()
                raise
        self._blocks()
        return self.report

    def _found(self, kind: Kind, stored: bytes, path: bytes, detail: str) -> Finding:
        finding = Finding(kind, stored, path, detail)
        self.report.findings.append(finding)
        return finding

    # --- the volume's own files

    def _volume_files(self) -> None:
        opened, source = self.opened, self.opened.unlocked.file
        name = VOLUME_FILE.encode()
        if opened.main is None:
            finding = self._found(Kind.VOLUME_FILE, name, name, opened.problems[VOLUME_FILE])
            if self.repair:
                with contextlib.suppress(FileNotFoundError):
                    self._aside((), name)
                self._put(self.root.descriptor, VOLUME_FILE, source.text(), 0o600)
                finding.repaired = "restored from its copy"
        main = opened.main or source
        if opened.copy != main:
            detail = opened.problems.get(
                COPY, "is not the same as the volume file: changing it did not come to its end"
            )
            finding = self._found(Kind.VOLUME_COPY, COPY.encode(), COPY.encode(), detail)
            if opened.copy is not None and source != main:
                finding.detail += ". What you unlocked the volume with is in the copy alone: neither is changed"
            elif self.repair:
                if opened.copy is None:
                    with contextlib.suppress(FileNotFoundError):
                        self._aside((), COPY.encode())
                self._put(self.root.descriptor, COPY, main.text(), 0o600)
                finding.repaired = "restored from the volume file"
        try:
            needed = mark.read(self.root.descriptor, "")
            if "encryption" in needed:
                return
            detail = "does not say that the volume needs the filter: without it, it could be mounted by mistake"
        except StackfsError as error:
            if error.exit_code == ExitCode.UNSUPPORTED:
                self._found(Kind.UNSUPPORTED, mark.NAME.encode(), mark.NAME.encode(), "a later release wrote it")
                return
            needed, detail = frozenset(), "is damaged"
        finding = self._found(Kind.MARK, mark.NAME.encode(), mark.NAME.encode(), detail)
        if self.repair:
            self._put(self.root.descriptor, mark.NAME, mark.text(needed | {"encryption"}), 0o644)
            finding.repaired = "written anew"

    def _put(self, directory: int, name: str, data: bytes, mode: int) -> None:
        """A file of the volume's own, as the one before or the directory is owned.

        Under a name of its own until it is there: what another one ending in .new has may be all that is left.
        """
        try:
            before = os.stat(name, dir_fd=directory, follow_symlinks=False)
            mode = stat.S_IMODE(before.st_mode) if stat.S_ISREG(before.st_mode) else mode
        except FileNotFoundError:
            before = os.fstat(directory)
        volumes.write_file(directory, PENDING, data, mode)
        if os.geteuid() == 0:
            os.chown(PENDING, before.st_uid, before.st_gid, dir_fd=directory, follow_symlinks=False)
        os.rename(PENDING, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)

    # --- the tree

    def _walk(self, top: Directory) -> None:
        stack = [top]
        while stack:
            directory = stack.pop()
            if directory.handle is None and not self._enter(directory):
                continue
            self.report.directories += 1
            self.progress(self.report, directory.path)
            if directory.iv is not None or self.plain:
                owner = self.id if directory.iv is None else directory.iv
                stored = b"/".join(directory.parts)
                self.report.findings.extend(self._values(directory.descriptor, owner, stored, directory.path))
            stack.extend(self._list(directory))
        while self.waiting:
            self._result()

    def _enter(self, directory: Directory) -> bool:
        """Opens a directory and takes its IV. False: it is not known yet, or the disk does not let us in."""
        stored = b"/".join(directory.parts)
        try:
            parent = directory.parent or self.root
            directory.handle = Handle(
                os.open(
                    directory.stored or b".",
                    os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                    dir_fd=parent.descriptor,
                )
            )
            if os.fstat(directory.descriptor).st_dev != self.device:
                return False
            if self.plain:
                self.known.append((self.id, directory.parts, directory.path))
                return True
            with contextlib.suppress(FileNotFoundError, VolumeError):
                directory.file = volumes.read_file(directory.descriptor, DIRECTORY_FILE, 4096)
        except OSError as error:
            above = Directory((), b"", None, None, handle=directory.parent or self.root)
            self._found(
                Kind.UNREADABLE, stored, directory.path, unreadable(error, above, directory.stored or b".")
            )
            return False
        if directory.place is not None:
            try:
                directory.iv = self.keys.check_directory(directory.file or b"", directory.place)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    self._found(Kind.UNSUPPORTED, stored, directory.path, "a later release of stackfs wrote it")
                    return False
        if directory.iv is None:
            self.unknown.append(directory)
            return False
        self.known.append((directory.iv, directory.parts, directory.path))
        if any((directory.file or b"")[64:]):
            finding = self._found(
                Kind.UNFINISHED_RENAME, stored, directory.path, "a crash came while it was renamed: it has two places"
            )
            if self.repair:
                self._settle(directory)
                finding.repaired = "it has this one alone"
        return True

    def _settle(self, directory: Directory) -> None:
        """Writes a directory's file for the place that it is in."""
        assert directory.iv is not None and directory.place is not None
        file = self.keys.build_directory(directory.iv, directory.place)
        self._put(directory.descriptor, DIRECTORY_FILE, file, 0o644)

    def _list(self, directory: Directory) -> Iterator[Directory]:
        """Looks at what is in a directory; yields the directories among it."""
        stored = b"/".join(directory.parts)
        try:
            names = sorted(map(os.fsencode, os.listdir(directory.descriptor)))
        except OSError as error:
            self._found(Kind.UNREADABLE, stored, directory.path, f"cannot be read: {error.strerror}")
            return
        present = set(names)
        for name in names:
            try:
                status = os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue  # what a repair has just removed
            except OSError as error:
                self._found(
                    Kind.UNREADABLE,
                    below(stored, name),
                    below(directory.path, name),
                    f"cannot be read: {error.strerror}",
                )
                continue
            is_directory = stat.S_ISDIR(status.st_mode)
            if self._own(directory, name, is_directory, present):
                continue
            plain = self._plain(directory, name, present)
            if plain is None:
                self.foreign.append((directory, name, is_directory))
            elif is_directory:
                yield directory.child(name, plain)
            else:
                self._entry(directory, name, below(directory.path, plain), status)

    def _own(self, directory: Directory, name: bytes, is_directory: bool, present: set[bytes]) -> bool:
        """Whether it is one of the format's own files, or what a crash left of one."""
        if not directory.parts and (name in IN_ROOT or (name == b"lost+found" and is_directory)):
            return True
        if not name.startswith(RESERVED_BYTES):
            return False
        if name == DIRECTORY_NAME and not self.plain:
            return True
        if name.endswith(b".new"):
            detail = "is what a crash left of something that was being written"
        elif not self.plain and name.startswith(LONG) and name.endswith(b".name"):
            if name[: -len(b".name")] in present:
                return True
            detail = "has a long name that nothing here bears"
        else:
            return False
        finding = self._found(
            Kind.LEFTOVER, below(b"/".join(directory.parts), name), below(directory.path, name), detail
        )
        if self.repair:
            self._remove(directory, name, is_directory, finding)
        return True

    def _remove(self, directory: Directory, name: bytes, is_directory: bool, finding: Finding) -> None:
        """A leftover; of a directory only one that has nothing but its own file in it."""
        if is_directory:
            path = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.descriptor
            )
            handle = Handle(path)
            if any(not each.startswith(DIRECTORY_FILE) for each in os.listdir(handle.descriptor)):
                finding.repaired = f"it is not empty, so it was moved to {self._aside(directory.parts, name)}"
                return
            for each in os.listdir(handle.descriptor):
                os.unlink(each, dir_fd=handle.descriptor)
            os.rmdir(name, dir_fd=directory.descriptor)
        else:
            os.unlink(name, dir_fd=directory.descriptor)
        finding.repaired = "removed"

    def _plain(self, directory: Directory, name: bytes, present: set[bytes]) -> bytes | None:
        """The plain name; of a directory whose IV is not known the stored one. None: it is none of this directory's."""
        if directory.iv is None and not self.plain:
            return name
        if self.plain:
            return None if name.startswith(RESERVED_BYTES) else name
        assert directory.iv is not None
        with contextlib.suppress(OSError):
            return self.keys.decrypt_name(directory.iv, name, self._text(directory.descriptor, name))
        if not name.startswith(LONG):
            return None
        # Its .name is missing or not its own: perhaps another one here is.
        for other in sorted(present):
            if other.startswith(LONG) and other.endswith(b".name"):
                text = self._text(directory.descriptor, other[: -len(b".name")])
                with contextlib.suppress(OSError):
                    plain = self.keys.decrypt_name(directory.iv, name, text)
                    finding = self._found(
                        Kind.LONG_NAME,
                        below(b"/".join(directory.parts), name),
                        below(directory.path, plain),
                        f"its .name file is not its own, which lies in {other.decode('ascii', 'replace')}",
                    )
                    if self.repair:
                        swapped = self._text(directory.descriptor, name)
                        self._put(directory.descriptor, os.fsdecode(name) + ".name", text, 0o600)
                        if swapped and other[: -len(b".name")] in present:
                            self._put(directory.descriptor, os.fsdecode(other), swapped, 0o600)
                        finding.repaired = "put back"
                    return plain
        return None

    def _text(self, directory: int, name: bytes) -> bytes:
        """What a long name's .name file has."""
        if not name.startswith(LONG):
            return b""
        try:
            return volumes.read_file(directory, os.fsdecode(name) + ".name", 4096)
        except (OSError, VolumeError):
            return b""

    # --- files

    def _entry(self, directory: Directory, name: bytes, path: bytes, status: os.stat_result) -> None:
        stored = below(b"/".join(directory.parts), name)
        if stat.S_ISLNK(status.st_mode):
            self.report.files += 1
            try:
                self.keys.decrypt_target(os.readlink(name, dir_fd=directory.descriptor))
            except OSError as error:
                if error.errno == errno.EBADMSG:
                    self._found(Kind.LINK_TARGET, stored, path, "its target is damaged, or is that of no link")
                else:
                    self._found(Kind.UNREADABLE, stored, path, f"cannot be read: {error.strerror}")
        elif stat.S_ISREG(status.st_mode):
            if status.st_nlink > 1:
                if status.st_ino in self.links:
                    return
                self.links.add(status.st_ino)
            self.report.files += 1
            if self.state.is_healthy(status):
                self.report.resumed += 1
                return
            while len(self.waiting) >= OUTSTANDING:
                self._result()
            self.waiting.append(
                (self.pool.submit(self._check, directory, name, stored, path), directory, name, path, status)
            )
        else:
            self.report.files += 1

    def _check(self, directory: Directory, name: bytes, stored: bytes, path: bytes) -> Checked:
        """On a worker. Nothing is opened for writing that needs no repair."""
        try:
            handle = Handle(opened(directory.descriptor, name, writable=False))
            checked = StoredFile(self.keys, handle.descriptor, stored, path, self.suite).check()
            if self.repair and checked.findings:
                handle = Handle(opened(directory.descriptor, name, writable=True))
                checked = StoredFile(self.keys, handle.descriptor, stored, path, self.suite).check(
                    repair=True, rebuild=self.rebuild_maps
                )
        except OSError as error:
            return Checked([Finding(Kind.UNREADABLE, stored, path, unreadable(error, directory, name))])
        if checked.id:
            checked.findings.extend(self._values(handle.descriptor, checked.id, stored, path))
        return checked

    def _result(self) -> None:
        future, directory, name, path, status = self.waiting.popleft()
        checked = future.result()
        stored = below(b"/".join(directory.parts), name)
        self.report.bytes += checked.bytes
        if checked.wiped is not None and self.repair:
            self._empty(directory, name, checked.wiped)
        self.report.findings.extend(checked.findings)
        if checked.id and (other := self.state.other_with(checked.id, status.st_ino, stored)) is not None:
            self._found(
                Kind.DUPLICATE,
                stored,
                path,
                f"has the header of {os.fsdecode(self._shown(other))}: one of the two was copied beside the mount, "
                "as a whole or its header",
            )
        elif not checked.findings:
            self.state.healthy(status)
        if checked.bad:
            self.damaged.append(DamagedFile(directory.parts, name, path, checked))
        self.progress(self.report, path)

    def _empty(self, directory: Directory, name: bytes, finding: Finding) -> None:
        """A file without a header becomes an empty one; what it has is kept."""
        try:
            handle = Handle(opened(directory.descriptor, name, writable=True))
            lost = self._lost_directory()
            number = self._listed(lost, directory.parts, name)
            kept = Handle(
                os.open(number, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=lost.descriptor)
            )
            while os.sendfile(kept.descriptor, handle.descriptor, None, 1 << 24):
                pass
            os.fsync(kept.descriptor)
            os.fsync(lost.descriptor)
            StoredFile(self.keys, handle.descriptor, finding.stored, finding.path, self.suite).make_empty()
        except OSError as error:
            finding.detail += f"; it could not be put aside: {error.strerror}"
            return
        finding.repaired = f"it is an empty file now; what was stored is in {LOST}/{number}"

    def _values(self, descriptor: int, owner: bytes, stored: bytes, path: bytes) -> Iterator[Finding]:
        try:
            names = [each for each in os.listxattr(descriptor) if each.startswith("user.")]
        except OSError:
            return
        for name in names:
            try:
                self.keys.decrypt_value(owner, os.fsencode(name), os.getxattr(descriptor, name))
            except OSError:
                yield Finding(
                    Kind.ATTRIBUTE, stored, path, f"the value of its attribute {name} is damaged, or another object's"
                )

    def _shown(self, stored: bytes) -> bytes:
        """The plain path of a stored one, as far as it is known."""
        parts = tuple(stored.split(b"/"))
        for iv, known, path in self.known:
            if known == parts[:-1]:
                if self.plain:
                    return stored
                with contextlib.suppress(OSError):
                    handle = self._open(known)
                    return below(path, self.keys.decrypt_name(iv, parts[-1], self._text(handle.descriptor, parts[-1])))
        return stored

    def _open(self, parts: tuple[bytes, ...]) -> Handle:
        """A directory by its stored path, however long that is."""
        handle = self.root
        for part in parts:
            handle = Handle(
                os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle.descriptor)
            )
        return handle

    # --- directories whose IV is not theirs

    def _directories(self) -> None:
        """Finds the IV of directories that have not got it: from where it lies, or by the names that it decrypts."""
        tried: list[Directory] = []
        while self.unknown:
            strays = [*tried, *self.unknown]
            identified = False
            for directory in list(self.unknown):
                if directory in self.unknown and self._identify(directory, strays):
                    tried.append(directory)
                    identified = True
            if identified:
                continue
            lost, self.unknown = self.unknown, []
            for directory in lost:
                self._lost(directory)

    def _identify(self, directory: Directory, strays: list[Directory]) -> bool:
        stored, place = b"/".join(directory.parts), directory.place
        own = self._own_iv(directory)
        if own is not None:
            other = next((each for each in strays if each is not directory and self._fits(directory, each)), None)
            directory.iv = own
            if place is None:
                self.unknown.remove(directory)  # below one whose own IV is lost: its names alone vouch for it
                self._walk(directory)
                return True
            origin = f", from {os.fsdecode(other.path)}" if other is not None else ""
            finding = self._found(
                Kind.MOVED_DIRECTORY, stored, directory.path, f"was moved or renamed beside the mount{origin}"
            )
            if other is not None and other in self.unknown and self._fits(other, directory):
                return self._exchanged(directory, other, finding)
            if self.repair:
                self._settle(directory)
                finding.repaired = "it belongs here now"
        else:
            other = next((each for each in strays if self._fits(each, directory)), None)
            if other is None or place is None or other.file is None:
                return False
            directory.iv = self.keys.check_directory(other.file, place)
            finding = self._found(
                Kind.DIRECTORY_IV,
                stored,
                directory.path,
                f"its {DIRECTORY_FILE} is that of another directory; its own lies in {os.fsdecode(other.path) or '.'}",
            )
            if self.repair:
                self._settle(directory)
                finding.repaired = "put back"
        self.unknown.remove(directory)
        self.known.append((directory.iv, directory.parts, directory.path))
        self._walk(directory)
        return True

    def _fits(self, owner: Directory, place: Directory) -> bool:
        """Whether the directory file that one has is made for another's place."""
        if owner.file is None or place.place is None:
            return False
        try:
            self.keys.check_directory(owner.file, place.place)
        except OSError:
            return False
        return True

    def _own_iv(self, directory: Directory) -> bytes | None:
        """The IV in a directory's file, if names in the directory are encrypted with it."""
        if directory.file is None or len(directory.file) < 32:
            return None
        iv = directory.file[16:32]
        for name in os.listdir(directory.descriptor):
            stored = os.fsencode(name)
            with contextlib.suppress(OSError):
                self.keys.decrypt_name(iv, stored, self._text(directory.descriptor, stored))
                return iv
        return None

    def _exchanged(self, one: Directory, other: Directory, finding: Finding) -> bool:
        """Two directories that lie in each other's place."""
        for each in (one, other):
            self.unknown.remove(each)
        finding.detail = f"was exchanged with {os.fsdecode(other.path)} beside the mount"
        if self.repair:
            first, second = one.parent or self.root, other.parent or self.root
            between = f"{RESERVED}{os.urandom(8).hex()}.new".encode()
            os.rename(one.stored, between, src_dir_fd=first.descriptor, dst_dir_fd=first.descriptor)
            os.rename(other.stored, one.stored, src_dir_fd=second.descriptor, dst_dir_fd=first.descriptor)
            os.rename(between, other.stored, src_dir_fd=first.descriptor, dst_dir_fd=second.descriptor)
            os.fsync(first.descriptor)
            os.fsync(second.descriptor)
            finding.repaired = "exchanged back"
            for each in (one, other):
                self._walk(Directory(each.parts, each.path, each.parent_iv, each.parent))
        else:
            other.iv = self._own_iv(other)
            for each in (one, other):
                self._walk(each)
        return True

    def _lost(self, directory: Directory) -> None:
        """A directory whose IV is nowhere."""
        detail = f"its {DIRECTORY_FILE} is missing" if directory.file is None else f"its {DIRECTORY_FILE} is damaged"
        for iv, _, path in self.known:
            if directory.file is not None and directory.file[16:32] == iv:
                detail = f"its {DIRECTORY_FILE} is that of {os.fsdecode(path) or '.'}"
        empty = all(os.fsencode(each).startswith(RESERVED_BYTES) for each in os.listdir(directory.descriptor))
        if directory.place is None and len(directory.file or b"") == 96 and empty:
            return  # below one whose own IV is lost: nothing vouches for it, and nothing speaks against it
        if not empty:
            detail += ": the names in it cannot be read, what the files have in them can"
        finding = self._found(Kind.DIRECTORY_IV, b"/".join(directory.parts), directory.path, detail)
        if self.repair and directory.place is not None and (empty or self.new_names):
            directory.iv = os.urandom(16)
            if directory.file is not None:
                self._keep(directory.parts, DIRECTORY_NAME, directory.file)
            self._settle(directory)
            self.known.append((directory.iv, directory.parts, directory.path))
            finding.repaired = (
                "it was empty, and has a new IV" if empty else "it has a new IV, and what is in it new names"
            )
        if directory.iv is not None or not empty:
            self._walk(directory)

    # --- names that are none of their directory's

    def _names(self) -> None:
        while self.foreign:
            found, self.foreign = self.foreign, []
            for directory, name, is_directory in found:
                self._foreign(directory, name, is_directory)
                self.progress(self.report, directory.path)
            while self.waiting:
                self._result()
            if not self.plain:
                self._directories()

    def _foreign(self, directory: Directory, name: bytes, is_directory: bool) -> None:
        stored = below(b"/".join(directory.parts), name)
        text = self._text(directory.descriptor, name)
        home, plain = self._home(name, text)
        kind, detail = Kind.FOREIGN_NAME, "is no name of this directory: it is not seen through the mount"
        if name.startswith(LONG) and not self.plain and home is None:
            kind, detail = Kind.LONG_NAME, "its .name file is missing or damaged: its name cannot be read"
        if home is not None:
            detail = f"is a name of another directory, {os.fsdecode(home[2]) or '.'}, where it is {os.fsdecode(plain)}"
        finding = self._found(kind, stored, below(directory.path, name), detail)
        if not self.repair:
            return
        if home is not None:
            there = self._open(home[1])
            if not exists(there.descriptor, name):
                if text:
                    self._put(there.descriptor, os.fsdecode(name) + ".name", text, 0o600)
                os.rename(name, name, src_dir_fd=directory.descriptor, dst_dir_fd=there.descriptor)
                if text:
                    os.unlink(name + b".name", dir_fd=directory.descriptor)
                os.fsync(there.descriptor)
                os.fsync(directory.descriptor)
                finding.repaired = "moved back there"
                self._adopt(Directory(home[1], home[2], None, None, home[0], None, there), name, plain)
                return
        if self._ours(directory, name, is_directory):
            if self.new_names and not self.plain and directory.iv is not None:
                self._rename(directory, name, is_directory, finding)
            else:
                finding.detail += "; it is encrypted with this volume's keys: --new-names gives it a new name"
        else:
            finding.repaired = f"moved to {self._aside(directory.parts, name)}"

    def _home(self, name: bytes, text: bytes) -> tuple[tuple[bytes, tuple[bytes, ...], bytes] | None, bytes]:
        """The directory whose IV a name was encrypted with, and the plain name."""
        for known in () if self.plain else self.known:
            self.homes_tried += 1
            if self.homes_tried > HOMES_TRIED:
                break
            with contextlib.suppress(OSError):
                return known, self.keys.decrypt_name(known[0], name, text)
        return None, b""

    def _adopt(self, directory: Directory, name: bytes, plain: bytes) -> None:
        """Looks at what has just got into its place."""
        status = os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            self._walk(directory.child(name, plain))
        else:
            self._entry(directory, name, below(directory.path, plain), status)

    def _ours(self, directory: Directory, name: bytes, is_directory: bool) -> bool:
        """Whether something with a foreign name was made with this volume's keys."""
        if is_directory:
            inside = Directory((*directory.parts, name), b"", None, directory.handle)
            inside.handle = self._open(inside.parts)
            with contextlib.suppress(OSError, VolumeError):
                inside.file = volumes.read_file(inside.descriptor, DIRECTORY_FILE, 4096)
                if self._own_iv(inside) is not None:
                    return True
            return False
        try:
            status = os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                self.keys.decrypt_target(os.readlink(name, dir_fd=directory.descriptor))
                return True
            if not stat.S_ISREG(status.st_mode):
                return False
            descriptor = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.descriptor
            )
        except OSError:
            return False
        handle = Handle(descriptor)
        return bool(StoredFile(self.keys, handle.descriptor, name, name, self.suite).check().id)

    def _rename(self, directory: Directory, name: bytes, is_directory: bool, finding: Finding) -> None:
        """A new name for what has lost its own; the old stored one is in it, in case the old IV turns up."""
        assert directory.iv is not None
        plain = b"lost." + name
        stored, text = self.keys.encrypt_name(directory.iv, plain)
        if text:
            self._put(directory.descriptor, os.fsdecode(stored) + ".name", text, 0o600)
        if is_directory:
            inside = Directory((*directory.parts, stored), b"", directory.iv, directory.handle)
            inside.handle = self._open((*directory.parts, name))
            inside.file = volumes.read_file(inside.descriptor, DIRECTORY_FILE, 4096)
            inside.iv = self._own_iv(inside)
            self._settle(inside)
        os.rename(name, stored, src_dir_fd=directory.descriptor, dst_dir_fd=directory.descriptor)
        if old := self._text(directory.descriptor, name):
            self._keep(directory.parts, name + b".name", old)
            os.unlink(name + b".name", dir_fd=directory.descriptor)
        os.fsync(directory.descriptor)
        finding.repaired = f"its name is {os.fsdecode(plain)} now"
        self._adopt(directory, stored, plain)

    def _lost_directory(self) -> Handle:
        with contextlib.suppress(FileExistsError):
            os.mkdir(LOST, 0o700, dir_fd=self.root.descriptor)
            if os.geteuid() == 0:
                owner = os.fstat(self.root.descriptor)
                os.chown(LOST, owner.st_uid, owner.st_gid, dir_fd=self.root.descriptor, follow_symlinks=False)
        return self._open((LOST.encode(),))

    def _listed(self, lost: Handle, parts: tuple[bytes, ...], name: bytes) -> str:
        """A free name among what was moved aside, which the list has the old place of."""
        number = len(os.listdir(lost.descriptor))
        while exists(lost.descriptor, b"%06d" % number):
            number += 1
        line = f"{number:06d} {os.fsdecode(b'/'.join((*parts, name)))!a}\n"
        descriptor = os.open(
            "list", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600, dir_fd=lost.descriptor
        )
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return f"{number:06d}"

    def _aside(self, parts: tuple[bytes, ...], name: bytes) -> str:
        """Moves something out of the way, as it is."""
        lost, directory = self._lost_directory(), self._open(parts)
        os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
        number = self._listed(lost, parts, name)
        os.rename(name, number, src_dir_fd=directory.descriptor, dst_dir_fd=lost.descriptor)
        os.fsync(lost.descriptor)
        os.fsync(directory.descriptor)
        return f"{LOST}/{number}"

    def _keep(self, parts: tuple[bytes, ...], name: bytes, data: bytes) -> None:
        """Keeps a copy of what is about to be replaced."""
        lost = self._lost_directory()
        volumes.write_file(lost.descriptor, self._listed(lost, parts, name), data)

    # --- blocks that lie in another place

    def _blocks(self) -> None:
        if not self.damaged:
            return
        search = Search(self, self.damaged)
        search.among_the_damaged()
        search.in_the_tree()
        if self.repair:
            search.put_back()

    def checked_again(self, damaged: DamagedFile, *, repair: bool) -> Checked:
        """The file once more, after something was put back."""
        handle = Handle(self.opened_file(damaged.directory, damaged.name))
        return StoredFile(self.keys, handle.descriptor, damaged.stored, damaged.path, self.suite).check(
            repair=repair, seal_damaged=True, rebuild=self.rebuild_maps
        )

    def opened_file(self, parts: tuple[bytes, ...], name: bytes) -> int:
        directory = self._open(parts)
        return opened(directory.descriptor, name, writable=self.repair)


class Search:
    """Where blocks come from that are not authentic in their place: another place of their file, or another file."""

    def __init__(self, fsck: Fsck, files: list[DamagedFile]) -> None:
        self.fsck, self.files = fsck, files
        self.handles = [Handle(fsck.opened_file(each.directory, each.name)) for each in files]
        self.headers = [os.pread(each.descriptor, HEADER, 0) for each in self.handles]
        self.keys = [Blocks(fsck.keys, each[:FIXED]) for each in self.headers]
        self.tries = TRIES
        self.homes: dict[tuple[int, int], tuple[int, int]] = {}
        """Of (file, block) the file and block that its slot belongs to."""
        self.exchanged: list[tuple[int, int]] = []
        self.strays: dict[tuple[int, int], bytes] = {}
        """Slots that are nobody's yet."""
        for number, file in enumerate(files):
            for block, verdict in file.checked.bad.items():
                if verdict == DAMAGED and len(self.strays) < TRIES // 10:
                    slot = slot_of(self.handles[number].descriptor, block)
                    if slot:
                        self.strays[number, block] = slot

    def among_the_damaged(self) -> None:
        """The same place in other files with such blocks; their and its own other ones; any block of its own file."""
        everyone = range(len(self.files))
        bad = [list(each.checked.bad) for each in self.files]
        stages: list[Callable[[int, int], list[tuple[int, list[int] | range]]]] = [
            lambda number, block: [(other, [block]) for other in everyone if block in self.files[other].checked.bad],
            lambda number, block: [(other, bad[other]) for other in (number, *everyone)],
            lambda number, block: [(number, range(self.files[number].checked.blocks))],
        ]
        for stage in stages:
            for place, slot in list(self.strays.items()):
                any(self._try(place, slot, other, blocks) for other, blocks in stage(*place))
        self.exchanged = list(self._exchanged_headers())

    def _try(self, place: tuple[int, int], slot: bytes, other: int, blocks: list[int] | range) -> bool:
        for block in blocks:
            if self.tries <= 0:
                return False
            self.tries -= 1
            if (other, block) != place and belongs(self.keys[other], block, slot):
                self.homes[place] = (other, block)
                del self.strays[place]
                self._say(place, block, self.files[other].path)
                return True
        return False

    def _say(self, place: tuple[int, int], block: int, path: bytes) -> None:
        file = self.files[place[0]]
        whose = "this file" if path == file.path else os.fsdecode(path)
        self.fsck.report.findings.append(
            Finding(
                Kind.MOVED_BLOCK,
                file.stored,
                file.path,
                f"in place of block {place[1]} lies block {block} of {whose}",
                (place[1], place[1]),
            )
        )

    def in_the_tree(self) -> None:
        """Blocks of files that are healthy themselves, by their tags: reads the whole tree once more, tags alone."""
        if not self.strays:
            return
        wanted = {slot[-16:]: place for place, slot in self.strays.items() if any(slot[-16:])}
        damaged = {os.fstat(each.descriptor).st_ino for each in self.handles}
        for iv, parts, path in list(self.fsck.known):
            try:
                directory = self.fsck._open(parts)
                names = sorted(map(os.fsencode, os.listdir(directory.descriptor)))
            except OSError:
                continue
            for name in names:
                if not wanted:
                    return
                status = os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
                if name.startswith(RESERVED_BYTES) and not name.startswith(LONG):
                    continue
                if not stat.S_ISREG(status.st_mode) or status.st_ino in damaged:
                    continue
                self.fsck.progress(self.fsck.report, path)
                for block, tag in tags(directory.descriptor, name, status.st_size):
                    if tag in wanted:
                        plain = name
                        if not self.fsck.plain:
                            text = self.fsck._text(directory.descriptor, name)
                            with contextlib.suppress(OSError):
                                plain = self.fsck.keys.decrypt_name(iv, name, text)
                        place = wanted.pop(tag)
                        del self.strays[place]
                        self._say(place, block, below(path, plain))

    def put_back(self) -> None:
        """Blocks that are in each other's place, and headers that are; then all these files are looked at again."""
        for one, other in self.exchanged:
            os.pwrite(self.handles[one].descriptor, self.headers[other], 0)
            os.pwrite(self.handles[other].descriptor, self.headers[one], 0)
        moved = [
            (place, home, slot_of(self.handles[place[0]].descriptor, place[1]))
            for place, home in self.homes.items()
            if home[1] in self.files[home[0]].checked.bad
        ]
        for _, (number, block), slot in moved:
            last = block == self.files[number].checked.blocks - 1
            os.pwrite(self.handles[number].descriptor, slot if last else slot.ljust(4132, b"\0"), slot_offset_of(block))
        for number, file in enumerate(self.files):
            os.fsync(self.handles[number].descriptor)
            again = self.fsck.checked_again(file, repair=True)
            still = {(each.kind, each.blocks) for each in again.findings if not each.repaired}
            for finding in self.fsck.report.findings:
                if finding.stored != file.stored or finding.repaired:
                    continue
                if finding.kind == Kind.MOVED_BLOCK and finding.blocks is not None:
                    left = finding.blocks[0] in again.bad
                elif finding.blocks is not None:
                    left = any(each in again.bad for each in range(finding.blocks[0], finding.blocks[1] + 1))
                else:
                    left = (finding.kind, None) in still
                if not left:
                    finding.repaired = "put back" if finding.kind != Kind.UNSEALED else "sealed"

    def _exchanged_headers(self) -> Iterator[tuple[int, int]]:
        """Pairs of files all of whose blocks are the other one's, at the same places."""
        for one in range(len(self.files)):
            for other in range(one + 1, len(self.files)):
                pairs = [
                    [place for place, home in self.homes.items() if place[0] == a and home == (b, place[1])]
                    for a, b in ((one, other), (other, one))
                ]
                if all(
                    pairs[i]
                    and len(pairs[i]) == len(self.files[number].checked.bad)
                    and len(pairs[i]) == self.files[number].checked.blocks
                    for i, number in enumerate((one, other))
                ):
                    for place in [*pairs[0], *pairs[1]]:
                        del self.homes[place]
                    for number, partner in ((one, other), (other, one)):
                        file, whose = self.files[number], os.fsdecode(self.files[partner].path)
                        self.fsck.report.findings = [
                            each
                            for each in self.fsck.report.findings
                            if each.stored != file.stored or each.kind not in (Kind.MOVED_BLOCK, Kind.BLOCK)
                        ]
                        self.fsck._found(Kind.HEADER, file.stored, file.path, f"has the header of {whose}")
                    yield one, other


def tags(directory: int, name: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """The tags in a stored file, block by block. None of them is checked."""
    try:
        handle = Handle(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory))
    except OSError:
        return
    block = 0
    while (offset := slot_offset_of(block)) < size:
        length = int.from_bytes(os.pread(handle.descriptor, 2, offset + 6), "little")
        if 1 <= length <= 4096:
            yield block, os.pread(handle.descriptor, 16, offset + 20 + length)
        block += 1


def opened(directory: int, name: bytes, *, writable: bool) -> int:
    """A stored file's descriptor; `writable` also of a file that its owner may not write."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if not writable:
        return os.open(name, flags | os.O_RDONLY, dir_fd=directory)
    try:
        return os.open(name, flags | os.O_RDWR, dir_fd=directory)
    except PermissionError:
        handle = Handle(os.open(name, flags | os.O_RDONLY, dir_fd=directory))
        mode = stat.S_IMODE(os.fstat(handle.descriptor).st_mode)
        os.fchmod(handle.descriptor, mode | stat.S_IWUSR)
        try:
            return os.open(name, flags | os.O_RDWR, dir_fd=directory)
        finally:
            os.fchmod(handle.descriptor, mode)


def unreadable(error: OSError, directory: Directory, name: bytes) -> str:
    """Why something cannot be looked at: its mode, which says nothing about its content, or the disk."""
    if error.errno in (errno.EACCES, errno.EPERM):
        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
            mode = stat.S_IMODE(status.st_mode)
            return (
                f"was not looked at: its mode is {mode:04o} and its owner user {status.st_uid}, which does not let "
                "this user read it. Check the volume as root"
            )
    return f"cannot be read: {error.strerror}"


def below(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def exists(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
