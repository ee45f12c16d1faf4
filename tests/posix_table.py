"""A table of file operations, run in a directory by one user; prints what each gave as JSON.

    python posix_table.py DIRECTORY UID GID [GROUP...]

The caller compares a mount's answers with those of a plain directory. Nothing here depends on time or inode numbers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any

TABLE: list[tuple[str, Callable[[], Any]]] = []
_libc = ctypes.CDLL(None, use_errno=True)


def row(check: Callable[[], Any]) -> Callable[[], Any]:
    TABLE.append((check.__name__, check))
    return check


def attempt(act: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """The result, or the errno's name."""
    try:
        return act(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def look(path: str) -> Any:
    """Type, mode, owner, group, links and size; what a user would compare."""

    def seen() -> Any:
        info = os.lstat(path)
        size = info.st_size if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode) else None
        return oct(info.st_mode), info.st_uid, info.st_gid, info.st_nlink, size

    return attempt(seen)


def put(path: str, content: bytes = b"content", mode: int = 0o644) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)


def take(path: str) -> Any:
    def read() -> str:
        with open(path, "rb") as file:
            return file.read().decode("latin-1")

    return attempt(read)


def rename2(old: str, new: str, flags: int) -> Any:
    done = _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return done if done == 0 else errno.errorcode[ctypes.get_errno()]


@row
def create_and_open() -> Any:
    put("a")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    return [attempt(os.open, "a", flags), take("a"), attempt(os.open, "missing", os.O_RDONLY), look("a"),
            attempt(os.open, "a/b", os.O_RDONLY), attempt(os.mkdir, "a")]  # fmt: skip


@row
def modes_and_umask() -> Any:
    seen = []
    for mask, mode in ((0o022, 0o777), (0o077, 0o666), (0, 0o4755), (0, 0o2755), (0o027, 0o1777)):
        os.umask(mask)
        put(f"u{mask}{mode}", mode=mode)
        os.mkdir(f"ud{mask}{mode}", mode)
        seen += [look(f"u{mask}{mode}"), look(f"ud{mask}{mode}")]
    os.umask(0o022)
    return seen


@row
def appending() -> Any:
    put("ap", b"12")
    for piece in (b"3", b"4"):
        fd = os.open("ap", os.O_WRONLY | os.O_APPEND)
        os.write(fd, piece)
        os.close(fd)
    return take("ap")


@row
def appending_is_the_descriptors_and_may_change() -> Any:
    put("aps", b"0123456789")
    fd = os.open("aps", os.O_RDWR | os.O_APPEND)
    os.pwrite(fd, b"a", 0)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"b", 1)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"c")
    os.close(fd)
    return take("aps")


@row
def a_mapping_of_a_file_open_for_appending() -> Any:
    put("apm", b"\0" * 8192)
    fd = os.open("apm", os.O_RDWR | os.O_APPEND)
    with mmap.mmap(fd, 8192) as view:
        view[4096:4100] = b"mmap"
        view.flush()
    os.write(fd, b"end")
    os.fsync(fd)
    seen = [os.fstat(fd).st_size, os.pread(fd, 4, 4096).decode(), os.pread(fd, 9, 8192).decode()]
    os.close(fd)
    return seen


@row
def truncating() -> Any:
    put("tr", b"0123456789")
    os.truncate("tr", 4)
    first = take("tr")
    os.truncate("tr", 8)
    os.close(os.open("tr", os.O_WRONLY | os.O_TRUNC)) if first == "x" else None
    second = take("tr")
    os.close(os.open("tr", os.O_WRONLY | os.O_TRUNC))
    return [first, second, look("tr"), attempt(os.truncate, "missing", 0)]


@row
def sparse() -> Any:
    fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 1 << 30)
    middle = os.pread(fd, 4, 1 << 20)
    small = os.fstat(fd).st_blocks < 1000
    os.close(fd)
    return [middle == b"\0" * 4, small, look("sparse")]


@row
def unlinked_but_open() -> Any:
    fd = os.open("gone", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before")
    os.unlink("gone")
    os.pwrite(fd, b"after", 6)
    os.ftruncate(fd, 10)
    os.fchmod(fd, 0o600)
    seen = [os.pread(fd, 20, 0).decode(), os.fstat(fd).st_nlink, os.fstat(fd).st_size, look("gone")]
    os.close(fd)
    return seen


@row
def rename_over_an_open_file() -> Any:
    put("over", b"old")
    put("under", b"new")
    fd = os.open("over", os.O_RDONLY)
    os.rename("under", "over")
    seen = [os.pread(fd, 10, 0).decode(), os.fstat(fd).st_nlink, take("over"), look("under")]
    os.close(fd)
    return seen


@row
def renames() -> Any:
    os.mkdir("r1")
    os.mkdir("r2")
    put("r1/f", b"1")
    put("r2/f", b"2")
    seen = [rename2("r1/f", "r2/f", 1), rename2("r1/f", "r2/f", 2), take("r1/f"), take("r2/f")]
    seen += [attempt(os.rename, "r1", "r1/inside"), attempt(os.rename, "r1", "r2"), attempt(os.rename, "r1/f", "r2"),
             attempt(os.rename, "r1", "r2/f"), attempt(os.rename, "missing", "x"), rename2("r1", "r3", 1)]  # fmt: skip
    return [*seen, sorted(os.listdir("r3"))]


@row
def renames_of_odd_kinds() -> Any:
    os.makedirs("o1/in")
    os.mkdir("o2")
    put("of", b"file")
    os.symlink("of", "ol")
    os.link("of", "oh")
    seen: list[Any] = [
        rename2("of", "o1", 2), take("o1"), look("of"),             # a file and a directory change places
        rename2("of", "of/in", 2), rename2("of/in", "of", 2), rename2("of", "missing", 2),
        rename2("ol", "o2", 2), look("o2"), rename2("o2", "ol", 2),
        rename2("o1", "oh", 0), look("o1"), look("oh"),             # two names of one inode: nothing happens
        rename2("o1", "o1", 0), rename2("o1", "o1", 1), rename2("o1", "oh", 3), rename2("o1", "oh", 8),
        attempt(os.rename, "of", "o2"), attempt(os.rename, "o2/in", "o2/in/x"), sorted(os.listdir("o2")),
        attempt(os.link, "o2", "o3"), attempt(os.link, "ol", "ol2", follow_symlinks=False), look("ol2"),
    ]  # fmt: skip
    seen += [rename2("oh", "ow", 4), look("ow"), look("oh"), os.lstat("oh").st_rdev]
    return seen


@row
def a_directory_that_is_gone() -> Any:
    os.mkdir("dead")
    inside = os.open("dead", os.O_RDONLY)
    os.rmdir("dead")
    seen = [attempt(os.mkdir, "x", dir_fd=inside), attempt(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=inside),
            attempt(os.listdir, inside), os.fstat(inside).st_nlink, attempt(os.symlink, "x", "y", dir_fd=inside),
            attempt(os.fchmod, inside, 0o700), oct(os.fstat(inside).st_mode)]  # fmt: skip
    os.close(inside)
    return seen


@row
def opens_of_odd_kinds() -> Any:
    os.mkdir("dir")
    put("reg")
    os.symlink("reg", "sym")
    os.symlink("made through", "through")
    os.mkfifo("pipe")
    kinds = [("dir", os.O_WRONLY), ("dir", os.O_RDONLY | os.O_CREAT), ("dir", os.O_RDWR | os.O_TRUNC),
             ("sym", os.O_NOFOLLOW), ("reg", os.O_DIRECTORY), ("sym", os.O_DIRECTORY),
             ("pipe", os.O_WRONLY | os.O_NONBLOCK),
             ("through", os.O_CREAT | os.O_EXCL | os.O_WRONLY), ("reg/", os.O_RDONLY),
             ("new/", os.O_CREAT | os.O_WRONLY),
             ("reg", os.O_CREAT | os.O_EXCL), ("sym", os.O_CREAT | os.O_EXCL)]  # fmt: skip
    seen = []
    for name, flags in kinds:
        fd = attempt(os.open, name, flags)
        seen.append([name, fd if isinstance(fd, str) else "opened"])
        if isinstance(fd, int):
            os.close(fd)
    put("through", b"1")
    return [*seen, take("made through"), attempt(os.symlink, "", "empty"), attempt(os.symlink, "t" * 4095, "long"),
            attempt(os.symlink, "t" * 4096, "longer"), len(os.readlink("long")), attempt(os.truncate, "dir", 0),
            attempt(os.truncate, "pipe", 0), attempt(os.truncate, "reg", 1 << 62)]  # fmt: skip


@row
def paths_through_renamed_parents() -> Any:
    os.makedirs("p/q/r")
    put("p/q/r/f", b"deep")
    fd = os.open("p/q/r/f", os.O_RDWR)
    inside = os.open("p/q/r", os.O_RDONLY)
    os.rename("p/q", "moved")
    os.write(fd, b"DEEP")
    put_there = os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=inside)
    for each in (fd, inside, put_there):
        os.close(each)
    return [take("moved/r/f"), sorted(os.listdir("moved/r")), look("p/q")]


@row
def hard_links() -> Any:
    put("h1", b"linked")
    os.link("h1", "h2")
    same = os.stat("h1").st_ino == os.stat("h2").st_ino
    os.unlink("h1")
    return [same, look("h2"), take("h2"), attempt(os.link, "missing", "h3"), attempt(os.link, "h2", "h2")]


@row
def symbolic_links() -> Any:
    os.symlink("nowhere", "dangling")
    os.symlink("h2", "good")
    os.symlink("loop", "loop")
    return [os.readlink("dangling"), attempt(os.stat, "dangling"), take("good"), attempt(os.stat, "loop"),
            look("dangling"), attempt(os.readlink, "h2"), attempt(os.symlink, "x", "good")]  # fmt: skip


@row
def times() -> Any:
    put("t")
    os.mkdir("td")
    os.symlink("t", "tl")
    seen = []
    for name in ("t", "td", "tl"):
        os.utime(name, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321), follow_symlinks=False)
        info = os.lstat(name)
        seen.append((info.st_atime_ns, info.st_mtime_ns))
    return seen


@row
def names() -> Any:
    odd = [b"x" * 255, b"new\nline", b"\xff\xfe", b"back\\slash", b" ", b"...", "ä".encode()]
    os.mkdir("names")
    for name in odd:
        put(os.fsdecode(b"names/" + name))
    found = sorted(os.listdir(b"names"))
    return [found == sorted(odd), attempt(put, "names/" + "y" * 256), attempt(os.mkdir, "names/" + "z" * 256)]


@row
def directories() -> Any:
    os.makedirs("d1/d2")
    put("d1/d2/f")
    return [attempt(os.rmdir, "d1"), attempt(os.unlink, "d1"), attempt(os.rmdir, "d1/d2/f"), look("d1"),
            attempt(os.listdir, "d1/d2/f"), attempt(os.rmdir, "missing")]  # fmt: skip


@row
def extended_attributes() -> Any:
    put("x")
    os.mkdir("xd")
    seen: list[Any] = []
    for name in ("x", "xd"):
        os.setxattr(name, "user.one", b"1")
        os.setxattr(name, "user.big", b"v" * 2000)
        seen += [sorted(each for each in os.listxattr(name) if each.startswith("user.")),
                 os.getxattr(name, "user.one").decode(), len(os.getxattr(name, "user.big")),
                 attempt(os.setxattr, name, "user.one", b"2", os.XATTR_CREATE),
                 attempt(os.setxattr, name, "user.two", b"2", os.XATTR_REPLACE),
                 attempt(os.getxattr, name, "user.none"), attempt(os.removexattr, name, "user.none"),
                 attempt(os.setxattr, name, "wrong.space", b"")]  # fmt: skip
        os.setxattr(name, "user.one", b"3", os.XATTR_REPLACE)
        os.removexattr(name, "user.big")
        seen.append(os.getxattr(name, "user.one").decode())
    return seen


@row
def namespaces_of_attributes() -> Any:
    """Which attributes a user may have, see and set, on what kind of file; and what nobody but root may."""
    put("ns")
    os.symlink("ns", "nsl")
    os.mkfifo("nsf")
    os.mkdir("nsd")
    os.chmod("nsd", 0o1777)
    seen: list[Any] = []
    for name in ("ns", "nsl", "nsf", "nsd"):
        for attribute in ("user.a", "trusted.a", "security.a", "system.a", "a", "user.", "user." + "n" * 250):
            seen.append([name, attribute[:12], attempt(os.setxattr, name, attribute, b"1", follow_symlinks=False),
                         str(attempt(os.getxattr, name, attribute, follow_symlinks=False)),
                         attempt(os.removexattr, name, attribute, follow_symlinks=False)])  # fmt: skip
    theirs = [f"others/{name}" for name in ("attributed", "d_sticky", "attributed_link")]
    for name in theirs:
        seen.append([name, str(attempt(os.listxattr, name, follow_symlinks=False)),
                     *(str(attempt(os.getxattr, name, f"{space}.theirs", follow_symlinks=False))
                       for space in ("user", "trusted", "security")),
                     *(attempt(os.setxattr, name, f"{space}.mine", b"", follow_symlinks=False)
                       for space in ("user", "trusted", "security"))])  # fmt: skip
    return [*seen, attempt(os.setxattr, "ns", "user.large", b"v" * 65537), attempt(os.getxattr, "ns", "user.none")]


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the attribute holds it: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER, NOBODY = 1, 2, 4, 8, 16, 32, 0xFFFFFFFF
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def look_acl(path: str) -> Any:
    return [look(path), *(attempt(lambda name=name: os.getxattr(path, name).hex()) for name in (ACCESS, DEFAULT))]


@row
def access_control_lists() -> Any:
    """Set, read, followed by chmod, inherited from a directory with named users and groups, under several umasks."""
    full = acl((USER_OBJ, 7, NOBODY), (USER, 5, 1000), (GROUP_OBJ, 5, NOBODY), (GROUP, 7, 3000), (MASK, 7, NOBODY),
               (OTHER, 4, NOBODY))  # fmt: skip
    small = acl((USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY))
    put("acl")
    os.mkdir("acld")
    seen: list[Any] = []
    for value in (full, small, full):
        seen += [attempt(os.setxattr, "acl", ACCESS, value), look_acl("acl")]
    for mode in (0o640, 0o2755, 0o4711):
        os.chmod("acl", mode)
        seen.append(look_acl("acl"))
    seen += [attempt(os.setxattr, "acl", DEFAULT, full), attempt(os.setxattr, "acl", ACCESS, full[:-3]),
             attempt(os.setxattr, "acl", ACCESS, acl((USER_OBJ, 7, NOBODY))), attempt(os.removexattr, "acl", ACCESS),
             look_acl("acl"), attempt(os.setxattr, "acld", DEFAULT, full), look_acl("acld")]  # fmt: skip
    for mask in (0, 0o022, 0o077):
        os.umask(mask)
        for mode in (0o777, 0o640, 0o2770):
            name = f"acld/{mask:o}-{mode:o}"
            put(name, mode=mode)
            os.mkdir(f"{name}d", mode)
            os.mkfifo(f"{name}p", mode)
            os.symlink("x", f"{name}l")
            seen += [look_acl(name), look_acl(f"{name}d"), look_acl(f"{name}p"), look(f"{name}l")]
    os.umask(0o022)
    return [*seen, attempt(os.removexattr, "acld", DEFAULT), look_acl("acld"), attempt(os.removexattr, "acld", DEFAULT)]


@row
def special_files() -> Any:
    os.mkfifo("fifo", 0o640)
    return [look("fifo"), attempt(os.mknod, "device", stat.S_IFCHR | 0o600, os.makedev(1, 3)), look("device")]


@row
def mapped() -> Any:
    put("m", b"\0" * 8192)
    with open("m", "r+b") as file, mmap.mmap(file.fileno(), 8192) as view:
        view[4096:4100] = b"mmap"
        view.flush()
        return os.pread(file.fileno(), 4, 4096).decode()


@row
def direct_io() -> Any:
    put("dio", b"z" * 8192)
    fd = os.open("dio", os.O_RDONLY | os.O_DIRECT)
    view = mmap.mmap(-1, 4096)
    count = os.preadv(fd, [view], 4096)
    os.close(fd)
    return [count, view[:4].decode()]


@row
def syncing() -> Any:
    fd = os.open("x", os.O_RDWR)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    fd = os.open(".", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return "done"


@row
def what_others_left() -> Any:
    """Files that root prepared: who may do what."""
    seen: list[Any] = []
    for name in sorted(set(os.listdir("others")) - {"setid", "flagged"}):
        path = f"others/{name}"
        before = look(path)
        if before[0].startswith("0o4"):
            seen.append([name, attempt(os.listdir, path) != "EACCES",
                         attempt(put, f"{path}/made"), look(f"{path}/made"),
                         attempt(os.mkdir, f"{path}/sub", 0o777), look(f"{path}/sub"),
                         attempt(os.unlink, f"{path}/theirs"), attempt(os.rename, f"{path}/theirs2", f"{path}/took"),
                         look(path)])  # fmt: skip
            continue
        fd = attempt(os.open, path, os.O_WRONLY)
        wrote = attempt(os.write, fd, b"w") if isinstance(fd, int) else fd
        if isinstance(fd, int):
            os.close(fd)
        seen.append([name, take(path), wrote, look(path), attempt(os.truncate, path, 3), look(path),
                     attempt(os.chmod, path, 0o6777), look(path), attempt(os.chown, path, -1, os.getgid()), look(path),
                     attempt(os.chown, path, 12345, -1), look(path), attempt(os.utime, path),
                     attempt(os.utime, path, (1, 1)), attempt(os.setxattr, path, "user.t", b"1"),
                     attempt(os.access, path, os.R_OK), attempt(os.access, path, os.W_OK),
                     attempt(os.access, path, os.X_OK)])  # fmt: skip
    return seen


CHANGES: dict[str, Callable[[str], Any]] = {
    "write": lambda path: _with(path, os.O_WRONLY, lambda fd: os.pwrite(fd, b"new", 1)),
    "truncate": lambda path: os.truncate(path, 2),
    "ftruncate": lambda path: _with(path, os.O_WRONLY, lambda fd: os.ftruncate(fd, 2)),
    "o_trunc": lambda path: _with(path, os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    "chgrp": lambda path: os.chown(path, -1, os.getgid()),
    "chgrp3000": lambda path: os.chown(path, -1, 3000),
    "chown_same": lambda path: os.chown(path, os.getuid(), -1),
    "chmod": lambda path: os.chmod(path, 0o6775),
    "acl": lambda path: os.setxattr(path, ACCESS, acl(
        (USER_OBJ, 7, NOBODY), (GROUP_OBJ, 7, NOBODY), (GROUP, 7, 1000), (MASK, 7, NOBODY), (OTHER, 6, NOBODY))),
    "utime": lambda path: os.utime(path),
}


def _with(path: str, flags: int, act: Callable[[int], Any]) -> Any:
    fd = os.open(path, flags)
    try:
        return act(fd)
    finally:
        os.close(fd)


@row
def what_changes_set_id_bits() -> Any:
    """One change for each file that root prepared: MODE-OWNER-GROUP-CHANGE. Members and owners are not strangers."""
    seen: list[Any] = []
    for name in sorted(os.listdir("others/setid")):
        path = f"others/setid/{name}"
        done = attempt(CHANGES[name.rsplit("-", 1)[1]], path)
        seen.append([name, done if isinstance(done, str) else "done", look(path)])
    return seen


@row
def setgid_directories_and_their_children() -> Any:
    seen: list[Any] = []
    for name in ("d_setgid", "d_open", "d_mine_theirs"):
        top = f"others/{name}"
        for mode in (0o666, 0o2755, 0o2745, 0o4755):
            fd = attempt(os.open, f"{top}/c{mode:o}", os.O_CREAT | os.O_WRONLY, mode)
            attempt(os.mknod, f"{top}/n{mode:o}", stat.S_IFREG | mode)
            attempt(os.mkdir, f"{top}/d{mode:o}", mode)
            seen += [fd if isinstance(fd, str) else "made", *(look(f"{top}/{kind}{mode:o}") for kind in "cnd")]
        attempt(os.symlink, "x", f"{top}/link")
        attempt(os.mkfifo, f"{top}/fifo", 0o2640)
        seen += [look(f"{top}/link"), look(f"{top}/fifo"), attempt(os.chmod, top, 0o2775), look(top)]
    return seen


@row
def sticky_directories() -> Any:
    """Whose names may go, or be taken, where everybody may write."""
    top = "others/d_sticky"
    put(f"{top}/own")
    os.mkdir(f"{top}/own_d")
    return [attempt(os.rename, f"{top}/own", f"{top}/theirs3"), attempt(os.rename, f"{top}/theirs3", f"{top}/own"),
            rename2(f"{top}/own", f"{top}/theirs3", 2), attempt(os.link, f"{top}/theirs3", f"{top}/l1"),
            attempt(os.link, "others/world", f"{top}/l2"), attempt(os.link, "others/readable", f"{top}/l3"),
            attempt(os.link, "others/suid", f"{top}/l4"), attempt(os.link, f"{top}/own", f"{top}/l5"),
            look(f"{top}/l5"),
            attempt(os.rmdir, f"{top}/theirs_d"), attempt(os.rename, f"{top}/theirs_d", f"{top}/own_d"),
            attempt(os.rename, f"{top}/theirs_d", "took_d"), attempt(os.unlink, f"{top}/l5"),
            attempt(os.rmdir, f"{top}/own_d"),
            str(attempt(os.open, f"{top}/open_theirs", os.O_CREAT | os.O_WRONLY)).isdigit(),
            attempt(os.unlink, f"{top}/open_theirs")]  # fmt: skip


@row
def times_of_others() -> Any:
    """Now is for whoever may write, a given time for the owner; O_NOATIME is the owner's."""
    now, omit = (1 << 30) - 1, (1 << 30) - 2
    seen = []
    for name in ("private", "group", "world", "readable", "acl"):
        path = os.fsencode(f"others/{name}")
        for pair in (None, ((0, now), (0, now)), ((0, omit), (0, now)), ((0, now), (0, omit)), ((0, omit), (0, omit)),
                     ((5, 0), (0, omit)), ((5, 0), (0, now))):  # fmt: skip
            packed = None if pair is None else struct.pack("4q", *pair[0], *pair[1])
            done = _libc.utimensat(-100, path, packed, 0)
            seen.append([name, pair, done if done == 0 else errno.errorcode[ctypes.get_errno()]])
        fd = attempt(os.open, path, os.O_RDONLY | os.O_NOATIME)
        seen.append(fd if isinstance(fd, str) else "opened")
    return seen


@row
def files_that_may_not_change() -> Any:
    """chattr +a and +i."""
    seen: list[Any] = []
    for name in ("append_only", "immutable"):
        path = f"others/flagged/{name}"
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND,
                      os.O_WRONLY | os.O_TRUNC):  # fmt: skip
            fd = attempt(os.open, path, flags)
            wrote = attempt(os.write, fd, b"more") if isinstance(fd, int) and flags else None
            seen.append([name, flags, fd if isinstance(fd, str) else "opened", wrote])
        seen += [attempt(os.truncate, path, 0), attempt(os.unlink, path), attempt(os.rename, path, f"{path}2"),
                 attempt(os.link, path, f"{path}3"), attempt(os.utime, path), attempt(os.setxattr, path, "user.x", b""),
                 attempt(os.chmod, path, 0o600), take(path), look(path)]  # fmt: skip
    return seen


def main() -> None:
    directory, uid, gid, *groups = sys.argv[1], *map(int, sys.argv[2:])
    if uid:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    os.chdir(directory)
    os.umask(0o022)
    print(json.dumps({name: attempt(check) for name, check in TABLE}))


if __name__ == "__main__":
    main()
