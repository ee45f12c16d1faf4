"""Does file operations in a directory, as test_lanes.py tells it, and says what each gave; in a process of its own.

A line of JSON comes in: {"top": directory, "below": its backing directory, or the same one, "steps": [[operation,
argument...], ...]}. For each step a line of JSON goes out: what it gave, or the errno's name. Nothing in it depends on
the clock, on inode numbers, or on how the directory's filesystem is made; where that is so for a plain directory only
(times, the holes of a file), the mount's answer is held against the backing directory's here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import random
import select
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
OLD = 10**18                # times that a step sets lie before it (2001), all others after
F_OFD_GETLK, F_OFD_SETLK = 36, 37
PUNCH, KEEP = 2, 1


def times_set(target: Any, accessed: int, modified: int, look: Callable[[Any], os.stat_result], **how: bool) -> Any:
    """The times that a file shows when they have been set. What the kernel reads ahead of its own accord may end just
    then, and is an access: that is over soon."""
    for _ in range(10):
        os.utime(target, ns=(accessed, modified), **how)
        info = look(target)
        if info.st_atime_ns == accessed:
            break
    return [info.st_atime_ns, info.st_mtime_ns]


class NoSlotError(Exception):
    """The step needs an open file, or a mapping, that is not there."""


def data_of(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def digest(data: bytes) -> Any:
    return data.decode("latin-1") if len(data) <= 20 else [len(data), hashlib.blake2b(data, digest_size=8).hexdigest()]


def age(time_ns: int) -> Any:
    return time_ns if time_ns < OLD else "now"


def attributes(info: os.stat_result) -> list[Any]:
    """What has to be the same everywhere. A directory's size is its filesystem's business."""
    size = info.st_size if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode) else None
    return [oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, size, age(info.st_mtime_ns)]


def checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def lock(kind: int, start: int, length: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


class Worker:
    def __init__(self, top: str, below: str) -> None:
        self.top, self.below = top, below
        self.files: dict[int, int] = {}
        self.maps: dict[int, mmap.mmap] = {}

    def path(self, name: str) -> str:
        return os.path.join(self.top, name) if name else self.top

    def fd(self, slot: int) -> int:
        if slot not in self.files:
            raise NoSlotError
        return self.files[slot]

    def file(self, slot: int) -> int:
        """Where one stands in a directory is its filesystem's business."""
        fd = self.fd(slot)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise NoSlotError
        return fd

    def map(self, slot: int) -> mmap.mmap:
        if slot not in self.maps:
            raise NoSlotError
        return self.maps[slot]

    # --- open files -----------------------------------------------------------------------------------------------

    def keep(self, slot: int, fd: int) -> str:
        with contextlib.suppress(NoSlotError):
            self.do_close(slot)
        self.files[slot] = fd
        return "open"

    def do_open(self, slot: int, name: str, flags: int, mode: int) -> Any:
        fd = os.open(self.path(name), flags | os.O_NONBLOCK, mode)
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)            # what goes through a FIFO, and its times, are the kernel's alone
            return "fifo"
        return self.keep(slot, fd)

    def do_tmpfile(self, slot: int, name: str, flags: int, mode: int) -> Any:
        return self.keep(slot, os.open(self.path(name), flags | os.O_TMPFILE, mode))

    def do_give_name(self, slot: int, name: str) -> Any:
        return os.link(f"/proc/self/fd/{self.fd(slot)}", self.path(name), src_dir_fd=0, follow_symlinks=True)

    def do_dup(self, slot: int, other: int) -> Any:
        return self.keep(other, os.dup(self.fd(slot)))

    def do_close(self, slot: int) -> Any:
        """Its locks go first, by hand: nobody waits for a mount's RELEASE, which is what ends them."""
        fd = self.fd(slot)
        fcntl.flock(fd, fcntl.LOCK_UN)
        fcntl.fcntl(fd, F_OFD_SETLK, lock(fcntl.F_UNLCK, 0, 0))
        del self.files[slot]
        return os.close(fd)

    def do_append(self, slot: int, on: bool) -> Any:
        return fcntl.fcntl(self.fd(slot), fcntl.F_SETFL, os.O_APPEND if on else 0)

    def do_read(self, slot: int, length: int) -> Any:
        return digest(os.read(self.fd(slot), length))

    def do_pread(self, slot: int, length: int, offset: int) -> Any:
        return digest(os.pread(self.fd(slot), length, offset))

    def do_write(self, slot: int, seed: int, length: int) -> Any:
        return os.write(self.fd(slot), data_of(seed, length))

    def do_pwrite(self, slot: int, seed: int, length: int, offset: int) -> Any:
        return os.pwrite(self.fd(slot), data_of(seed, length), offset)

    def do_lseek(self, slot: int, offset: int, whence: int) -> Any:
        return os.lseek(self.file(slot), offset, whence)

    def do_holes(self, slot: int, offset: int, whence: int) -> Any:
        """SEEK_DATA or SEEK_HOLE: as the backing file has it at this moment; where the file stands stays as it is."""
        fd = self.file(slot)
        before = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            ours = attempt(os.lseek, fd, offset, whence)
        finally:
            os.lseek(fd, before, os.SEEK_SET)
        name = os.readlink(f"/proc/self/fd/{fd}").removeprefix(self.top)
        try:
            theirs_fd = os.open(self.below + name, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return "as it is below"  # it has no name any more
        try:
            if os.fstat(theirs_fd).st_ino == os.fstat(fd).st_ino:
                theirs = attempt(os.lseek, theirs_fd, offset, whence)
                return "as it is below" if ours == theirs else ["differs", ours, theirs]
        finally:
            os.close(theirs_fd)
        return "as it is below"

    def do_ftruncate(self, slot: int, size: int) -> Any:
        return os.ftruncate(self.fd(slot), size)

    def do_fallocate(self, slot: int, mode: int, offset: int, length: int) -> Any:
        return checked(libc.fallocate(self.fd(slot), mode, ctypes.c_long(offset), ctypes.c_long(length)))

    def do_copy(self, source: int, offset: int, target: int, at: int, length: int) -> Any:
        """copy_file_range(2), again and again while it is short; once where it runs after its own end, byte by byte."""
        copied = 0
        chases = offset < at < offset + length and os.path.sameopenfile(self.fd(source), self.fd(target))
        while copied < length:
            try:
                fds = self.fd(source), self.fd(target)
                count = os.copy_file_range(*fds, length - copied, offset + copied, at + copied)
            except OSError as error:
                if copied == 0:
                    raise
                return [copied, errno.errorcode[error.errno or 0]]
            copied += count
            if count == 0 or chases:
                break
        return copied

    def do_fsync(self, slot: int) -> Any:
        return os.fsync(self.fd(slot))

    def do_fdatasync(self, slot: int) -> Any:
        return os.fdatasync(self.fd(slot))

    def do_fstat(self, slot: int) -> Any:
        return attributes(os.fstat(self.fd(slot)))

    def do_fchmod(self, slot: int, mode: int) -> Any:
        return os.fchmod(self.fd(slot), mode)

    def do_futimens(self, slot: int, accessed: int, modified: int) -> Any:
        return times_set(self.fd(slot), accessed, modified, os.fstat)

    def do_poll(self, slot: int) -> Any:
        watch = select.poll()
        watch.register(self.fd(slot), select.POLLIN | select.POLLOUT)
        return [events for _, events in watch.poll(0)]

    def do_flistdir(self, slot: int) -> Any:
        return sorted(os.listdir(self.fd(slot)))

    def do_flock(self, slot: int, kind: int) -> Any:
        return fcntl.flock(self.fd(slot), kind | fcntl.LOCK_NB)

    def do_lock(self, slot: int, kind: int, start: int, length: int) -> Any:
        return len(fcntl.fcntl(self.fd(slot), F_OFD_SETLK, lock(kind, start, length)))

    def do_who_locks(self, slot: int, kind: int, start: int, length: int) -> Any:
        answer = fcntl.fcntl(self.fd(slot), F_OFD_GETLK, lock(kind, start, length))
        found = struct.unpack("hhqqi4x", answer)
        return "nobody" if found[0] == fcntl.F_UNLCK else found[:4]

    # --- mappings -------------------------------------------------------------------------------------------------

    def do_map(self, slot: int, file: int, private: bool, writable: bool) -> Any:
        """The whole file, as long as it is now."""
        size = os.fstat(self.fd(file)).st_size
        if size == 0:
            return "empty"
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        made = mmap.mmap(self.fd(file), size, flags, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        with contextlib.suppress(NoSlotError):
            self.do_unmap(slot)
        self.maps[slot] = made
        return size

    def within(self, slot: int, offset: int, length: int) -> tuple[mmap.mmap, slice]:
        """What of it is mapped and lies inside the file: a page beyond would be a SIGBUS."""
        view = self.map(slot)
        end = min(len(view), view.size())
        return view, slice(min(offset, end), min(offset + length, end))

    def do_map_read(self, slot: int, offset: int, length: int) -> Any:
        view, part = self.within(slot, offset, length)
        return digest(view[part])

    def do_map_write(self, slot: int, seed: int, length: int, offset: int) -> Any:
        """And msync(2): until then the file's time may be the old one or the new one."""
        view, part = self.within(slot, offset, length)
        if part.start == part.stop:
            return 0
        view[part] = data_of(seed, part.stop - part.start)
        view.flush()
        return part.stop - part.start

    def do_unmap(self, slot: int) -> Any:
        self.map(slot).close()
        del self.maps[slot]

    # --- names ----------------------------------------------------------------------------------------------------

    def do_rename(self, name: str, to: str, flags: int) -> Any:
        old, new = os.fsencode(self.path(name)), os.fsencode(self.path(to))
        return checked(libc.renameat2(-100, old, -100, new, flags))

    def do_link(self, name: str, to: str) -> Any:
        return os.link(self.path(name), self.path(to), follow_symlinks=False)

    def do_symlink(self, target: str, name: str) -> Any:
        return os.symlink(target, self.path(name))

    def do_readlink(self, name: str) -> Any:
        return os.readlink(self.path(name))

    def do_unlink(self, name: str) -> Any:
        return os.unlink(self.path(name))

    def do_mkdir(self, name: str, mode: int) -> Any:
        return os.mkdir(self.path(name), mode)

    def do_rmdir(self, name: str) -> Any:
        return os.rmdir(self.path(name))

    def do_listdir(self, name: str) -> Any:
        return sorted(os.listdir(self.path(name)))

    def do_mkfifo(self, name: str, mode: int) -> Any:
        return os.mkfifo(self.path(name), mode)

    def do_stat(self, name: str) -> Any:
        return attributes(os.stat(self.path(name)))

    def do_lstat(self, name: str) -> Any:
        return attributes(os.lstat(self.path(name)))

    def do_truncate(self, name: str, size: int) -> Any:
        return os.truncate(self.path(name), size)

    def do_chmod(self, name: str, mode: int) -> Any:
        return os.chmod(self.path(name), mode)

    def do_chown(self, name: str, uid: int, gid: int) -> Any:
        return os.chown(self.path(name), uid, gid, follow_symlinks=False)

    def do_utimens(self, name: str, accessed: int, modified: int) -> Any:
        return times_set(self.path(name), accessed, modified, os.lstat, follow_symlinks=False)

    def do_setxattr(self, name: str, attribute: str, seed: int, length: int, flags: int) -> Any:
        return os.setxattr(self.path(name), attribute, data_of(seed, length), flags, follow_symlinks=False)

    def do_getxattr(self, name: str, attribute: str) -> Any:
        return digest(os.getxattr(self.path(name), attribute, follow_symlinks=False))

    def do_listxattr(self, name: str) -> Any:
        return sorted(os.listxattr(self.path(name), follow_symlinks=False))

    def do_removexattr(self, name: str, attribute: str) -> Any:
        return os.removexattr(self.path(name), attribute, follow_symlinks=False)

    # --- everything -----------------------------------------------------------------------------------------------

    def do_check(self) -> Any:
        """All names with attributes, content and extended attributes; and that the backing directory has the same,
        to the nanosecond."""
        seen = self.snapshot(self.top)
        theirs = self.snapshot(self.below)
        if seen != theirs:
            return ["differs from below", [pair for pair in zip(seen, theirs, strict=False) if pair[0] != pair[1]],
                    len(seen), len(theirs)]  # fmt: skip
        numbers: dict[int, int] = {}
        return [[name, numbers.setdefault(inode, len(numbers)), *rest] for name, inode, _, *rest in seen]

    def snapshot(self, top: str) -> list[Any]:
        found: list[Any] = []
        for folder, folders, files in os.walk(top):
            for name in [*folders, *files]:
                path = os.path.join(folder, name)
                info = os.lstat(path)
                content: Any = None
                if stat.S_ISREG(info.st_mode):
                    with open(path, "rb") as file:
                        content = digest(file.read())
                elif stat.S_ISLNK(info.st_mode):
                    content = os.readlink(path)
                marks = [[each, digest(os.getxattr(path, each, follow_symlinks=False))]
                         for each in sorted(os.listxattr(path, follow_symlinks=False))]  # fmt: skip
                times = [info.st_mtime_ns, info.st_ctime_ns]
                found.append([os.path.relpath(path, top), info.st_ino, times, attributes(info), content, marks])
        return sorted(found)

    def end(self) -> None:
        for slot in list(self.maps):
            self.do_unmap(slot)
        for slot in list(self.files):
            self.do_close(slot)


def attempt(act: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except (NoSlotError, TypeError, ValueError) as error:      # a mapping for reading is not written
        return type(error).__name__


def main() -> None:
    os.umask(0o022)
    for line in sys.stdin:
        told = json.loads(line)
        worker = Worker(told["top"], told["below"])
        for operation, *arguments in told["steps"]:
            print(json.dumps(attempt(getattr(worker, f"do_{operation}"), *arguments)), flush=True)
        worker.end()
        print(json.dumps("ended"), flush=True)


if __name__ == "__main__":
    main()
