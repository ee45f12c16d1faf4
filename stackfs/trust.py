"""Whose files stackfs loads: paths are checked by descriptor, and what is loaded is read from that descriptor.

A filter is code, and a volume TOML names code. So for a drop-in directory, a filter's files, a TOML and a helper
program, every component of the path, from the root directory on and through every symbolic link, must be

- owned by root, or (where stackfs does not run as root) by the user it runs as, and
- not writable by group or others. A sticky directory such as /tmp is the exception: in it nobody can replace what is
  not his own, so what a trusted user owns there is safe, and the next component's own check decides.
  A user's private group (named as the user, nobody else in it) counts as the user, unless stackfs runs as root.

The walk opens each component below the descriptor of the one before it (O_PATH, O_NOFOLLOW) and looks at what it has
opened; symbolic links are read and walked here, never by the kernel. Nobody can put something else in place between
the check and the use, since the use is of the descriptor that was checked. An access ACL shows in the group bits of
the mode, which are its mask. Functions here keep no state and may be called on any thread.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, NoReturn

from stackfs.errors import ExitCode, StackfsError, TrustError

Kind = Literal["file", "directory"]

MAX_LINKS: Final = 40
"""Symbolic links followed in one path: as many as the kernel follows."""

MAX_FILE: Final = 16 << 20
"""Bytes of the largest source, TOML or extension module that is read whole."""

_O_COMPONENT: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _is_private_group(uid: int, gid: int) -> bool:
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}


def _objection(info: os.stat_result, shown: str, uid: int) -> str | None:
    """Why a component cannot be trusted, with the command that mends it; None if it can."""
    name = shlex.quote(shown)
    if info.st_uid not in (0, uid):
        owner = "root" if uid == 0 else f"root or {_user_name(uid)}"
        return (
            f"{shown} is owned by {_user_name(info.st_uid)}, not by {owner} "
            f"(chown {'-h ' if stat.S_ISLNK(info.st_mode) else ''}{_user_name(uid)} {name})"
        )
    if stat.S_ISLNK(info.st_mode):
        return None
    if stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX:
        return None
    if info.st_mode & stat.S_IWOTH:
        return f"{shown} can be written by everybody (chmod go-w {name})"
    if info.st_mode & stat.S_IWGRP and (uid == 0 or not _is_private_group(uid, info.st_gid)):
        return f"{shown} can be written by its group (chmod g-w {name})"
    return None


def _unusable(path: str, reason: str) -> NoReturn:
    raise StackfsError(f"{path}: {reason}", ExitCode.NOT_FOUND)


def _walk(path: str, uid: int) -> tuple[int, str]:
    """An O_PATH descriptor of what an absolute path leads to, every component checked, and its real path."""
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    here, shown, links = os.open("/", _O_COMPONENT | os.O_DIRECTORY), "/", 0
    try:
        objection = _objection(os.fstat(here), "/", uid)
        while objection is None and pending:
            part = pending.pop()
            try:
                there = os.open(part, _O_COMPONENT, dir_fd=here)
            except OSError as error:
                _unusable(path, (error.strerror or "cannot be opened").lower())
            try:
                info = os.fstat(there)
                name = os.path.dirname(shown) if part == ".." else os.path.join(shown, part)
                objection = _objection(info, name, uid)
                if objection is None and stat.S_ISLNK(info.st_mode):
                    links += 1
                    if links > MAX_LINKS:
                        _unusable(path, os.strerror(errno.ELOOP).lower())
                    target = os.readlink("", dir_fd=there)
                    pending += [step for step in reversed(target.split("/")) if step not in ("", ".")]
                    if target.startswith("/"):
                        root = os.open("/", _O_COMPONENT | os.O_DIRECTORY)
                        os.close(here)
                        here, shown = root, "/"
                else:
                    here, there, shown = there, here, name
            finally:
                os.close(there)
        if objection is not None:
            raise TrustError(f"{path} is not trusted: {objection}")
        return here, shown
    except BaseException:
        os.close(here)
        raise


def open_trusted(path: str | os.PathLike[str], kind: Kind = "file", *, uid: int | None = None) -> int:
    """A descriptor to read what ``path`` leads to, after every component on the way was checked. The caller closes it.

    uid: who is asking (default: the effective user). TrustError: a component that others own or can write; the message
    names it and the command that mends it. StackfsError (not found): missing, or not of that kind.
    """
    return open_resolved(path, kind, uid=uid)[0]


def open_resolved(path: str | os.PathLike[str], kind: Kind = "file", *, uid: int | None = None) -> tuple[int, str]:
    """As open_trusted; also the real path, without symbolic links, that was walked."""
    text = os.path.join(os.getcwd(), os.fspath(path))
    opened, shown = _walk(text, os.geteuid() if uid is None else uid)
    try:
        mode = os.fstat(opened).st_mode
        if kind == "directory":
            if not stat.S_ISDIR(mode):
                _unusable(text, "not a directory")
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=opened), shown
        if not stat.S_ISREG(mode):
            _unusable(text, "not a regular file")
        # The same file again, for reading: through the descriptor, not through its name.
        return os.open(f"/proc/self/fd/{opened}", os.O_RDONLY | os.O_CLOEXEC), shown
    except OSError as error:
        raise StackfsError(f"{text}: {(error.strerror or 'cannot be opened').lower()}", ExitCode.PERMISSION) from None
    finally:
        os.close(opened)


@contextmanager
def trusted(path: str | os.PathLike[str], kind: Kind = "file", *, uid: int | None = None) -> Iterator[int]:
    """open_trusted for the length of a ``with`` block."""
    descriptor = open_trusted(path, kind, uid=uid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_trusted(path: str | os.PathLike[str], *, uid: int | None = None) -> bytes:
    """All of a trusted file's bytes, read from the descriptor that was checked. Errors as open_trusted's."""
    with trusted(path, uid=uid) as descriptor, open(descriptor, "rb", closefd=False) as stream:
        try:
            data = stream.read(MAX_FILE + 1)
        except OSError as error:
            _unusable(os.fspath(path), (error.strerror or "cannot be read").lower())
    if len(data) > MAX_FILE:
        raise StackfsError(f"{os.fspath(path)}: larger than {MAX_FILE >> 20} MiB")
    return data


def list_trusted(path: str | os.PathLike[str], *, uid: int | None = None) -> list[str]:
    """The names in a trusted directory, sorted. Errors as open_trusted's."""
    with trusted(path, "directory", uid=uid) as descriptor:
        return sorted(os.listdir(descriptor))
