"""The directories of our sockets: whose they are, where they are, and that nobody else can change what is in them.

/run/stackfs for root, $XDG_RUNTIME_DIR/stackfs (or /run/user/UID/stackfs) for everyone else, holds the control sockets:
mode 0700, the user's own, never where everybody can write. Beside it lies a second one, with -ports at the end of its
name, for the ports of filters: mode 0755, since a port may be meant for others (ports.py decides who). Both are checked
by descriptor and then used through that descriptor. No state, no locks.
"""

from __future__ import annotations

import os
import stat

from stackfs.errors import ExitCode, StackfsError

ROOT = "/run/stackfs"
USERS = "/run/user"
_WORLD_WRITABLE = ("/tmp", "/var/tmp", "/dev/shm")


def path() -> str:
    """The caller's own runtime directory. Whether it exists and is safe is opened()'s business."""
    uid = os.geteuid()
    if uid == 0:
        return ROOT
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base:
        real = os.path.realpath(base)
        if not os.path.isabs(base):
            raise StackfsError(f"XDG_RUNTIME_DIR is {base!r}: it must be an absolute path", exit_code=ExitCode.FAILURE)
        if any(real == top or real.startswith(top + "/") for top in _WORLD_WRITABLE):
            raise StackfsError(f"XDG_RUNTIME_DIR is {base}: the control socket must not lie where everybody can write; "
                               "set it to a directory of your own with mode 0700", exit_code=ExitCode.PERMISSION)
        return os.path.join(base, "stackfs")
    base = f"{USERS}/{uid}"
    try:
        if os.stat(base).st_uid == uid:
            return os.path.join(base, "stackfs")
    except OSError:
        pass
    raise StackfsError(f"no place for the control socket: XDG_RUNTIME_DIR is not set and {base} is not there; "
                       "set XDG_RUNTIME_DIR to a directory of your own with mode 0700", exit_code=ExitCode.FAILURE)


def ports(uid: int | None = None) -> str:
    """The directory of a user's ports; the caller's own without a uid."""
    if uid is None or uid == os.geteuid():
        return f"{path()}-ports"
    return f"{ROOT}-ports" if uid == 0 else f"{USERS}/{uid}/stackfs-ports"


def opened(
    directory: str | None = None, *, owner: int | None = None, create: bool = False, shared: bool = False
) -> int:
    """A descriptor of the runtime directory, checked: a real directory, the owner's, closed to everyone else.

    `shared`: a directory of ports, which others may search and list, but not write.
    FileNotFoundError if it is not there and not to be made; StackfsError if it is not safe.
    """
    mode = 0o755 if shared else 0o700
    where = path() if directory is None else directory
    owner = os.geteuid() if owner is None else owner
    base, last = os.path.split(where)
    try:
        parent = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.fstat(parent)
            if found.st_uid not in (0, owner) or found.st_mode & stat.S_IWOTH:
                raise StackfsError(f"{base} is not safe for a control socket: it must belong to you or root, "
                                   "and others must not be able to write there", exit_code=ExitCode.PERMISSION)
            if create:
                try:
                    os.mkdir(last, mode, dir_fd=parent)
                except FileExistsError:
                    pass
            descriptor = os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)
    except FileNotFoundError:
        if create:
            raise StackfsError(f"no place for the control socket: {base} does not exist") from None
        raise
    except OSError as error:
        raise StackfsError(f"cannot use {where} for the control socket: {error.strerror}",
                           exit_code=ExitCode.PERMISSION) from None
    found = os.fstat(descriptor)
    if found.st_uid != owner or found.st_mode & 0o777 & ~mode:
        os.close(descriptor)
        what = f"belongs to user {found.st_uid}" if found.st_uid != owner else f"has mode {found.st_mode & 0o777:04o}"
        raise StackfsError(f"{where} {what}: it must be {'yours' if owner == os.geteuid() else f'user {owner}s'} "
                           f"alone, mode {mode:04o} (or be removed)", exit_code=ExitCode.PERMISSION)
    if create and found.st_mode & 0o777 != mode:
        os.fchmod(descriptor, mode)     # whatever the umask was when it was made
    return descriptor
