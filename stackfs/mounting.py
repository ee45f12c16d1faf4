"""Mounting and unmounting: /dev/fuse and mount(2) for root, fusermount3 for everybody else, and what is mounted where.

Facts about mounts come from /proc/self/mountinfo. A mount whose daemon hangs must not hang us: nothing here looks into
a mount except `probe`, which does it in a process of its own with a time limit, and `resolve` follows links without
asking the filesystems it passes for attributes.

Everything here blocks (mount(2) and umount(2) may wait for requests to the mount itself): a daemon calls it in a worker
thread. There is no state; any thread may call anything. Errors are StackfsError: one line, with the fix.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stackfs.errors import ExitCode, StackfsError
from stackfs.mount_flags import MountFlags

SUBTYPE = "stackfs"
FILESYSTEM = f"fuse.{SUBTYPE}"
FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"
FUSERMOUNT_SECONDS = 30.0
PROBE_SECONDS = 3.0
READ_AHEAD = 1 << 20
"""Bytes that the kernel reads ahead of a sequential reader (its own default for FUSE is 128 KiB): as much as fits into
one request, so that the next is filtered while the program still copies the one before."""
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a FUSE mount without its daemon answers."""

MNT_FORCE = 0x1
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

_libc = ctypes.CDLL(None, use_errno=True)          # CDLL, not PyDLL: the GIL is free while a call waits
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class MountSettings:
    """How to mount: what mount(2) or fusermount3 is told."""

    source: str
    """What mount tables show as the source (fsname)."""
    flags: MountFlags = field(default_factory=MountFlags)
    subtype: str = SUBTYPE
    allow_other: bool = False
    default_permissions: bool = True
    """The kernel checks mode bits and ACLs. Without it nobody does, unless the daemon does."""
    max_read: int = 0
    """Bytes in one READ; 0: as many as INIT settles."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo. Paths are as os.fsdecode gives them."""

    mount_id: int
    device: str
    """major:minor; the minor of a FUSE mount is its number under /sys/fs/fuse/connections."""
    mountpoint: str
    type: str
    source: str
    options: tuple[str, ...]
    super_options: tuple[str, ...]

    @property
    def is_stackfs(self) -> bool:
        return self.type == FILESYSTEM


def _unusable(message: str) -> StackfsError:
    return StackfsError(message, ExitCode.UNUSABLE)


# ---- what is mounted ----

def _unescape(field: bytes) -> str:
    """Space, tab, newline, backslash and # are written \\ooo in mount tables."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8) & 0xFF,)), field))


def parse_mountinfo(table: bytes) -> list[Mount]:
    """The lines of a mountinfo file, in its order: of two mounts on one place the later covers the earlier."""
    mounts = []
    for line in table.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        mounts.append(
            Mount(
                mount_id=int(fields[0]),
                device=fields[2].decode(),
                mountpoint=_unescape(fields[4]),
                type=_unescape(rest[0]),
                source=_unescape(rest[1]),
                options=tuple(_unescape(fields[5]).split(",")),
                super_options=tuple(_unescape(rest[2]).split(",")),
            )
        )
    return mounts


def mounts() -> list[Mount]:
    """Every mount this process sees."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def mount_at(path: str) -> Mount | None:
    """The uppermost mount exactly on `path`, a resolved path."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == path), None)


def set_read_ahead(path: str) -> None:
    """Raise what the kernel reads ahead on the mount at `path` to READ_AHEAD, once INIT is answered, whose answer can
    only lower it. Root alone may; for others, and where sysfs is read-only, the kernel's default stays."""
    mount = mount_at(path)
    if mount is not None and mount.is_stackfs:
        with contextlib.suppress(OSError):
            Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").write_text(str(READ_AHEAD >> 10))


def find_mount(path: str) -> Mount | None:
    """The uppermost mount whose mountpoint is `path`, links followed; None: `path` is no mountpoint."""
    return mount_at(resolve(path))


def resolve(path: str) -> str:
    """The absolute path without links, "." and "..". What does not exist stays as it is named.

    As os.path.realpath, but by readlink alone: that asks no filesystem anything about a directory that is already
    known, so a mountpoint whose daemon is gone or hangs does no harm.
    """
    left = os.path.join(os.getcwd(), path).split("/")[::-1]
    done = "/"
    links = 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = os.path.dirname(done)
            continue
        candidate = os.path.join(done, part)
        try:
            target = os.readlink(candidate)
        except OSError:
            done = candidate
            continue
        links += 1
        if links > 40:
            raise _unusable(f"{path}: too many levels of symbolic links")
        left.extend(target.split("/")[::-1])
        if target.startswith("/"):
            done = "/"
    return done


def probe(path: str, seconds: float = PROBE_SECONDS) -> int | None:
    """Ask the filesystem at the resolved `path` for statfs, which no cache answers.

    0, an errno, or None: no answer within `seconds`. In a process of its own: a request that was read but is not
    answered keeps its caller, killed or not. Root asks as the user whose FUSE mount it is: without allow_other the
    kernel itself answers everybody else. (stat(1), since that user may be unable to run our interpreter.)
    """
    mount = mount_at(path)
    options = dict(option.split("=", 1) for option in mount.super_options if "=" in option) if mount else {}
    identity: dict[str, Any] = {}
    if os.geteuid() == 0 and options.get("user_id", "0") != "0":
        identity = {"user": int(options["user_id"]), "group": int(options.get("group_id", "0")), "extra_groups": []}
    child = subprocess.Popen(
        ["stat", "--file-system", "--format=", "--", path], env={"PATH": os.defpath, "LC_ALL": "C"}, cwd="/",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **identity,
    )
    try:
        _, said = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
        if child.stderr is not None:
            child.stderr.close()
        return None
    if child.returncode == 0:
        return 0
    return next((number for number in errno.errorcode if os.strerror(number).encode() in said), errno.EIO)


def is_stale(path: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a FUSE mount lies on `path` whose daemon is gone. False as well when it does not answer in time."""
    mount = find_mount(path)
    return mount is not None and mount.type.startswith("fuse") and probe(mount.mountpoint, seconds) in DEAD


# ---- checks before mounting ----

def clear_stale(mountpoint: str) -> None:
    """Take away what a killed stackfs left on `mountpoint`; refuse, with the reason, what else is in the way."""
    path = resolve(mountpoint)
    while (mount := mount_at(path)) is not None:
        answer = probe(path)
        if mount.is_stackfs:
            if answer in DEAD:
                unmount(path, lazy=True)
                continue
            if answer is None:
                raise _unusable(
                    f"{path}: stackfs is mounted here and does not answer; end its daemon, then: stackfs umount {path}",
                )
            raise _unusable(
                f"{path}: {mount.source} is mounted here already; unmount it first: stackfs umount {path}",
            )
        if answer in DEAD:
            raise _unusable(
                f"{path}: a {mount.type} mount of {mount.source} lies here whose daemon is gone, and it is not ours "
                f"to clear; unmount it first: fusermount3 -u {path} (as root: umount {path})",
            )
        if answer is None:
            raise _unusable(
                f"{path}: a {mount.type} mount of {mount.source} lies here and does not answer; unmount it first",
            )
        return                                      # alive and not ours: an ordinary directory to mount on


def _directory(path: str, what: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise _unusable(f"{path}: {what} does not exist; make it first: mkdir -p {path}") from None
    except OSError as error:
        raise _unusable(f"{path}: {what} cannot be used: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise _unusable(f"{path}: {what} is not a directory")
    return found


def _parents(path: str) -> Iterator[os.stat_result]:
    """`path` and every directory above it."""
    while True:
        with contextlib.suppress(OSError):
            yield os.stat(path)
        if path == "/":
            return
        path = os.path.dirname(path)


def check_mountpoint(source: str, mountpoint: str) -> tuple[str, str]:
    """Both as resolved paths, or why they cannot be used. Call clear_stale first: this looks into the mountpoint."""
    source, mountpoint = resolve(source), resolve(mountpoint)
    backing = _directory(source, "the backing directory")
    place = _directory(mountpoint, "the mountpoint")
    if os.path.samestat(backing, place):
        raise _unusable(f"{mountpoint}: is the backing directory itself; choose another")
    # By identity, not by name: bind mounts give one directory several names.
    if any(os.path.samestat(place, above) for above in _parents(source)):
        raise _unusable(
            f"{source}: the backing directory lies inside the mountpoint {mountpoint}, which would hide it",
        )
    if any(os.path.samestat(backing, above) for above in _parents(mountpoint)):
        raise _unusable(
            f"{mountpoint}: the mountpoint lies inside the backing directory {source}, and would appear in itself",
        )
    try:
        with os.scandir(mountpoint) as entries:
            if next(entries, None) is not None:
                raise _unusable(
                    f"{mountpoint}: the mountpoint is not empty; choose an empty directory"
                )
    except OSError as error:
        raise _unusable(f"{mountpoint}: the mountpoint cannot be listed: {error.strerror}") from None
    return source, mountpoint


# ---- mounting ----

def mount(mountpoint: str, settings: MountSettings) -> int:
    """Mount on `mountpoint` (a checked, resolved path): an open /dev/fuse that belongs to the caller."""
    if os.geteuid() == 0:
        return mount_privileged(mountpoint, settings)
    return mount_unprivileged(mountpoint, settings)


def _open_device() -> int:
    try:
        return os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StackfsError(f"{FUSE_DEVICE} does not exist; load the module first: modprobe fuse") from None
    except OSError as error:
        raise StackfsError(f"{FUSE_DEVICE} cannot be opened: {error.strerror}", ExitCode.PERMISSION) from None


def mount_privileged(mountpoint: str, settings: MountSettings) -> int:
    """mount(2), through a descriptor of the mountpoint: nobody can put a link in its place meanwhile."""
    try:
        place = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(f"{mountpoint}: the mountpoint cannot be opened: {error.strerror}") from None
    try:
        device = _open_device()
        data = [f"fd={device}", f"rootmode={stat.S_IFDIR:o}", f"user_id={os.geteuid()}", f"group_id={os.getegid()}"]
        data += ["default_permissions"] if settings.default_permissions else []
        data += ["allow_other"] if settings.allow_other else []
        data += [f"max_read={settings.max_read}"] if settings.max_read else []
        done = _libc.mount(
            os.fsencode(settings.source), f"/proc/self/fd/{place}".encode(), f"fuse.{settings.subtype}".encode(),
            settings.flags.bits(), ",".join(data).encode(),
        )
        if done != 0:
            error_number = ctypes.get_errno()
            os.close(device)
            raise _mount_error(mountpoint, error_number)
        return device
    finally:
        os.close(place)


def _mount_error(mountpoint: str, error: int) -> StackfsError:
    if error == errno.EPERM:
        return StackfsError(
            f"{mountpoint}: mounting is not permitted; root needs CAP_SYS_ADMIN here (in a container: --cap-add "
            f"SYS_ADMIN --device {FUSE_DEVICE})",
            ExitCode.PERMISSION,
        )
    if error == errno.ENODEV:
        return StackfsError(f"{mountpoint}: this kernel has no FUSE; load the module first: modprobe fuse")
    return _unusable(f"{mountpoint}: mount(2) failed: {os.strerror(error)}")


def _fusermount() -> str:
    program = shutil.which("fusermount3")
    if program is None:
        raise StackfsError("fusermount3 is not installed; as root: apt install fuse3")
    return program


def _fusermount_value(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def allow_other_permitted() -> bool:
    """Whether users who are not root may mount with allow_other: user_allow_other stands in /etc/fuse.conf."""
    try:
        lines = Path(FUSE_CONF).read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def mount_unprivileged(mountpoint: str, settings: MountSettings) -> int:
    """fusermount3, which is setuid root, mounts and sends back the descriptor over the socket _FUSE_COMMFD names."""
    if settings.flags.suid or settings.flags.dev:
        raise StackfsError("options suid and dev are root's alone; leave them out", ExitCode.PERMISSION)
    if settings.allow_other and not allow_other_permitted():
        raise StackfsError(
            f"option allow_other is not allowed for users; as root: echo user_allow_other >> {FUSE_CONF}",
            ExitCode.PERMISSION,
        )
    if settings.allow_other and not settings.default_permissions:
        raise StackfsError(
            "option permissions=stack goes with allow_other only as root: other users would get your own rights",
            ExitCode.PERMISSION,
        )
    options = [f"fsname={_fusermount_value(settings.source)}", f"subtype={_fusermount_value(settings.subtype)}"]
    options += settings.flags.names()
    options += ["default_permissions"] if settings.default_permissions else []
    options += ["allow_other"] if settings.allow_other else []
    options += [f"max_read={settings.max_read}"] if settings.max_read else []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.settimeout(FUSERMOUNT_SECONDS)
        child = subprocess.Popen(
            [_fusermount(), "-o", ",".join(options), "--", mountpoint],
            env={**os.environ, "LC_ALL": "C", "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        theirs.close()                              # so that its exit without a descriptor ends the wait
        descriptors: list[int] = []
        try:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            _, said = child.communicate(timeout=FUSERMOUNT_SECONDS)
        except (TimeoutError, subprocess.TimeoutExpired):
            child.kill()
            _, said = child.communicate()
            said += b"fusermount3: no answer\n"
    if child.returncode == 0 and descriptors:
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]
    for descriptor in descriptors:
        os.close(descriptor)
    raise _fusermount_error(mountpoint, os.fsdecode(said))


def _fusermount_error(mountpoint: str, said: str) -> StackfsError:
    """fusermount3's complaint in our words, with the fix."""
    lines = [line.removeprefix("fusermount3: ") for line in said.splitlines() if line.strip()]
    reason = lines[-1] if lines else "fusermount3 failed without a word"
    if f"failed to open {FUSE_DEVICE}" in said and "Permission denied" in said:
        return StackfsError(f"{FUSE_DEVICE} is closed to users; as root: chmod 0666 {FUSE_DEVICE}", ExitCode.PERMISSION)
    if "device not found" in said or f"failed to open {FUSE_DEVICE}" in said:
        return StackfsError(f"{FUSE_DEVICE} cannot be opened; as root: modprobe fuse")
    if "user_allow_other" in said:
        return StackfsError(
            f"option allow_other is not allowed for users; as root: echo user_allow_other >> {FUSE_CONF}",
            ExitCode.PERMISSION,
        )
    if "no write access" in said or "not owner" in said or "not owned" in said:
        return StackfsError(f"{mountpoint}: the mountpoint must be yours and writable for you", ExitCode.PERMISSION)
    if "too many FUSE" in said:
        return StackfsError(f"{mountpoint}: {reason.split(';')[0]}; as root: set mount_max in {FUSE_CONF}")
    if "Operation not permitted" in said:
        return StackfsError(
            f"{mountpoint}: fusermount3 may not mount; as root: chmod u+s {shutil.which('fusermount3')}",
            ExitCode.PERMISSION,
        )
    return _unusable(f"{mountpoint}: {reason}")


# ---- unmounting ----

def unmount(mountpoint: str, *, lazy: bool = False, force: bool = False) -> None:
    """Unmount the uppermost mount on `mountpoint`.

    lazy: out of sight at once, gone when the last file is closed. force: the connection is aborted, callers get
    ECONNABORTED, and what is still open keeps nothing alive; users who are not root get lazy instead.
    """
    path = resolve(mountpoint)
    if mount_at(path) is None:
        raise StackfsError(f"{path}: nothing is mounted here", ExitCode.NOT_FOUND)
    if os.geteuid() == 0:
        _unmount_privileged(path, lazy, force)
    else:
        _unmount_unprivileged(path, lazy or force)


def _unmount_privileged(path: str, lazy: bool, force: bool) -> None:
    target = os.fsencode(path)
    if force and _libc.umount2(target, MNT_FORCE | UMOUNT_NOFOLLOW) == 0:
        return                                      # else: aborted, but files are open, and the mount stays
    if _libc.umount2(target, (MNT_DETACH if lazy or force else 0) | UMOUNT_NOFOLLOW) == 0:
        return
    error = ctypes.get_errno()
    if error == errno.EBUSY:
        raise _busy(path)
    raise _unusable(f"{path}: cannot be unmounted: {os.strerror(error)}")


def _unmount_unprivileged(path: str, lazy: bool) -> None:
    done = subprocess.run(
        [_fusermount(), "-uz" if lazy else "-u", "--", path],
        env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )
    if done.returncode == 0:
        return
    said = os.fsdecode(done.stderr).strip()
    if "busy" in said:
        raise _busy(path)
    if "not permitted" in said or "not found in" in said or "not owner" in said:
        raise StackfsError(f"{path}: is not your mount; as root: umount {path}", ExitCode.PERMISSION)
    reason = said.splitlines()[-1].removeprefix("fusermount3: ") if said else "fusermount3 failed without a word"
    raise _unusable(f"{path}: cannot be unmounted: {reason}")


def _busy(path: str) -> StackfsError:
    return StackfsError(
        f"{path}: busy: a program has a file open or its working directory there (fuser -vm {path} lists them)",
        ExitCode.UNUSABLE,
    )
