"""The sockets in a runtime directory: their names, how one is published and reached, and who is at the other end.

A socket's name is ``<8 hex digits of sha256(what it is for)>-<pid>.sock``: short, since sun_path holds 108 bytes, and
telling whose it is. Directory and sockets are reached by descriptor (/proc/self/fd/N/...), so no path is walked twice
and none is too long.

A socket is bound under a temporary name and renamed once it listens: a published name that refuses a connection has
therefore nobody behind it, and is removed by whoever finds it so and may.

Control sockets (control.py) are streams, ports (ports.py) sequenced packets. No state, no locks.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import struct
from typing import Any, NamedTuple

from stackfs.errors import ExitCode, NotAnswering, StackfsError

_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59
_GROUPS_MAX = 256       # as many as getsockopt() of Python carries


class Peer(NamedTuple):
    """Who is at the other end of a connected socket, as the kernel says; for a client, who called listen()."""

    pid: int
    uid: int
    gid: int


def peer(connection: Any) -> Peer:
    return Peer(
        *_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    )


def peer_groups(connection: socket.socket) -> frozenset[int]:
    """The other end's supplementary groups; none for who has more of them than can be asked for."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))


# ---- names -----------------------------------------------------------------------------------------------------------

def socket_name(purpose: str, pid: int) -> str:
    """For a volume's name, or a port's."""
    return f"{digest(purpose)}-{pid}.sock"


def digest(purpose: str) -> str:
    """What the name of every socket for this purpose begins with."""
    return hashlib.sha256(os.fsencode(purpose)).hexdigest()[:8]


def pid_of(entry: str) -> int | None:
    """The pid in a socket's name; None for a name that is not one of ours."""
    stem, dot, suffix = entry.removeprefix(".").partition(".")
    digits, dash, pid = stem.partition("-")
    if not dash or not dot or len(digits) != 8 or suffix not in ("sock", "sock.new"):
        return None
    return int(pid) if pid.isascii() and pid.isdigit() and len(pid) <= 10 else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


# ---- the listening side ----------------------------------------------------------------------------------------------

def listen(directory: int, entry: str, kind: int, mode: int, backlog: int = 64) -> socket.socket:
    """A socket that listens under this name. FileExistsError is not raised: the name carries our own pid."""
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        fresh = f".{entry}.new"
        try:
            os.unlink(fresh, dir_fd=directory)
        except FileNotFoundError:
            pass
        listener.bind(f"/proc/self/fd/{directory}/{fresh}")
        os.chmod(fresh, mode, dir_fd=directory)
        listener.listen(backlog)
        os.rename(fresh, entry, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        listener.close()
        raise
    return listener


def remove_leftovers(directory: int, kind: int) -> None:
    """Sockets, published or half-made, whose process is gone and where nobody listens."""
    for entry in os.listdir(directory):
        pid = pid_of(entry)
        if pid is None or _alive(pid):
            continue
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
            if probe.connect_ex(f"/proc/self/fd/{directory}/{entry}") == errno.ECONNREFUSED:
                unlink(directory, entry)


def unlink(directory: int, entry: str, expected: os.stat_result | None = None) -> None:
    """Remove a socket, if it is still the expected one. Never fails: whoever may not, leaves it."""
    try:
        found = os.stat(entry, dir_fd=directory, follow_symlinks=False)
        if expected is None or os.path.samestat(found, expected):
            os.unlink(entry, dir_fd=directory)
    except OSError:
        pass


# ---- the connecting side ---------------------------------------------------------------------------------------------

def connect(directory: int, entry: str, owner: int, kind: int, limit: float) -> socket.socket | None:
    """A connection, and whoever listens is the directory's owner or root. None: nobody listens any more.

    NotAnswering: it is not to be trusted, or does not answer within `limit` seconds. StackfsError (PERMISSION): the
    caller may not connect.
    """
    try:
        node = os.open(entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    pid = pid_of(entry)
    connection = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        found = os.fstat(node)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != owner:
            raise NotAnswering(f"the socket of process {pid} is not user {owner}'s socket: not trusted")
        connection.settimeout(limit)
        try:
            connection.connect(f"/proc/self/fd/{node}")
        except (ConnectionRefusedError, FileNotFoundError):
            unlink(directory, entry, found)
            connection.close()
            return None
        except PermissionError:
            raise StackfsError(f"process {pid} does not let you connect", ExitCode.PERMISSION) from None
        except (TimeoutError, OSError) as error:
            raise NotAnswering(f"a daemon does not answer (process {pid}: {error.strerror or error})") from None
        listener = peer(connection)
        if listener.uid not in (owner, 0):
            raise NotAnswering(f"user {listener.uid} answers in user {owner}'s runtime directory: not trusted")
        return connection
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(node)
