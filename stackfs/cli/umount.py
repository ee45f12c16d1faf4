"""stackfs umount: through the volume's daemon, which writes out what it holds; or past one that is dead or silent.

Nothing here touches the mounted directory itself: its daemon may hang. Whether it is gone is read in mountinfo.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from stackfs.errors import ExitCode, StackfsError

if TYPE_CHECKING:
    from stackfs.control import Client

GONE_LIMIT: Final = 30.0
"""Seconds that a daemon has for ending once it has said that the volume is unmounted."""


def add(app: typer.Typer) -> None:
    app.command("umount")(umount)


def umount(
    mountpoint: Annotated[str, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted (or its volume name).")],
    lazy: Annotated[
        bool, typer.Option("--lazy", "-l", help="Take it out of the tree now; it ends when its last file is closed.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Abort the connection: requests under way fail.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Accepted; success is silent anyway.")] = False,
) -> None:
    """Unmount a volume; done when it is gone and everything is written.

    A volume whose daemon was killed or does not answer is unmounted too.
    """
    from stackfs.filterlib.daemons import running
    from stackfs.mounting import is_stale, mount_at, resolve

    where = resolve(mountpoint)
    with running() as found:
        client = next((each for each in found.clients if each.hello.mountpoint == where), None)
        mount = mount_at(where)
        if client is None and mount is None:
            client = next((each for each in found.clients if each.own and each.hello.volume_name == mountpoint), None)
        if client is not None:
            _by_daemon(client, lazy, force)
        elif mount is not None and mount.is_stackfs:
            left_behind = is_stale(where)       # its daemon was killed: nothing is lost by force
            _by_kernel(where, lazy or left_behind, force or left_behind)
        elif mount is not None:
            raise StackfsError(f"{where} is a {mount.type} mount, not one of stackfs: use umount", ExitCode.UNUSABLE)
        elif os.path.lexists(mountpoint):
            raise StackfsError(f"{mountpoint} is not mounted", ExitCode.NOT_FOUND)
        else:
            raise StackfsError(f"no volume is mounted at {mountpoint} or has that name", ExitCode.NOT_FOUND)


def _by_daemon(client: Client, lazy: bool, force: bool) -> None:
    """Wait until the mount is gone and, unless that was lazy, until the daemon has ended and its filters with it."""
    from stackfs.errors import NotAnswering

    where = client.hello.mountpoint
    before = _mounts(where)
    try:
        client.call("umount", lazy=lazy, force=force)
    except NotAnswering:
        if before and _mounts(where) >= before:
            _by_kernel(where, lazy, force)
    except StackfsError as error:
        if not force:
            raise busy(error, where, {client.pid}) from None
        _by_kernel(where, lazy, force)
    end = time.monotonic() + GONE_LIMIT
    if not lazy and not client.wait_until_gone(GONE_LIMIT):
        raise StackfsError(
            f"{where}: the daemon (process {client.pid}) has not ended after {GONE_LIMIT:.0f} seconds",
            ExitCode.NOT_ANSWERING,
        )
    while before and _mounts(where) >= before:
        if time.monotonic() > end:
            raise StackfsError(f"{where} is still mounted; --lazy or --force may help")
        time.sleep(0.01)


def _by_kernel(where: str, lazy: bool, force: bool) -> None:
    from stackfs.mounting import unmount

    try:
        unmount(where, lazy=lazy, force=force)
    except StackfsError as error:
        raise busy(error, where, set()) from None


def _mounts(path: str) -> int:
    """How many mounts lie exactly there, one over the other."""
    from stackfs.mounting import mounts

    return sum(mount.mountpoint == path for mount in mounts())


def busy(error: StackfsError, where: str, not_these: set[int]) -> StackfsError:
    """The error, with those who hold the mount, if that is what it is about."""
    if "busy" not in str(error).lower():
        return error
    held = [f"{comm} (process {pid}, {how})" for pid, comm, how in holders(where, not_these)]
    if not held:
        return error
    shown = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
    return StackfsError(f"{where} is in use by {shown}; end that, or use --lazy", exit_code=error.exit_code)


def holders(where: str, not_these: Iterable[int] = ()) -> Iterator[tuple[int, str, str]]:
    """(process, command, how) of the processes of which we may see that they hold something below the mountpoint."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid in not_these:
            continue
        how = _held(pid, where)
        if how:
            try:
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="surrogateescape") as comm:
                    yield pid, comm.read().rstrip("\n"), how
            except OSError:
                continue


def _held(pid: int, where: str) -> str | None:
    """Only the names that /proc's links show are compared: following them would ask the daemon."""
    places = [("cwd", "its working directory"), ("root", "its root directory"), ("exe", "its program")]
    try:
        places += [(f"fd/{number}", "an open file") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        pass
    for place, how in places:
        try:
            target = os.readlink(f"/proc/{pid}/{place}")
        except OSError:
            continue
        if target == where or target.startswith(where.rstrip("/") + "/"):
            return how
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            if b" " + os.fsencode(where.rstrip("/")) + b"/" in maps.read():
                return "a mapped file"
    except OSError:
        pass
    return None
