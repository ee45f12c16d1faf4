"""Puts a filesystem under test on a directory, and takes it away again, whatever happens.

A mountpoint is never looked at (stat, listdir) from this process before it is known to answer, and every command that
touches one has a time limit: a filesystem under test may hang, the measurement must not.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT = 30.0     # seconds until a mount has to answer
END_LIMIT = 20.0       # seconds an unmount may take before it is forced


class MountFailed(Exception):
    """It could not be mounted; one line that says why."""


def stackfs_command(name: str = "stackfs") -> list[str]:
    """The installed command, the one beside this interpreter first."""
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return [str(beside)]
    return [sys.executable, "-m", f"stackfs.cli.{name}_main"]


def is_mounted(mountpoint: Path) -> bool:
    wanted = os.fsencode(mountpoint).replace(b" ", b"\\040")
    with open("/proc/self/mountinfo", "rb") as table:
        return any(line.split()[4] == wanted for line in table)


def wait_until_it_answers(mountpoint: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise MountFailed(f"the filesystem ended with exit code {process.returncode} before it was mounted")
        if is_mounted(mountpoint):
            try:
                subprocess.run(["stat", "-f", mountpoint], check=True, capture_output=True, timeout=START_LIMIT)
                return
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                pass
        time.sleep(0.02)
    raise MountFailed(f"{mountpoint} was not mounted within {START_LIMIT:.0f} s")


def unmount(mountpoint: Path) -> bool:
    """Unmount with what the user may use; forced after a while. True if it went without force."""
    root = os.geteuid() == 0
    polite = [*(["umount"] if root else ["fusermount3", "-u"]), "--", str(mountpoint)]
    forced = [*(["umount", "-f", "-l"] if root else ["fusermount3", "-uz"]), "--", str(mountpoint)]
    end = time.monotonic() + END_LIMIT
    while is_mounted(mountpoint) and time.monotonic() < end:
        try:
            if subprocess.run(polite, capture_output=True, timeout=END_LIMIT).returncode == 0:
                return True
        except subprocess.TimeoutExpired:
            break
        time.sleep(0.1)
    if not is_mounted(mountpoint):
        return True
    try:
        subprocess.run(forced, capture_output=True, timeout=END_LIMIT)
    except subprocess.TimeoutExpired:
        pass
    return False


@contextmanager
def foreground(command: Sequence[str | Path], mountpoint: Path) -> Iterator[int]:
    """A filesystem that stays in the foreground: its process id, while it is mounted."""
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [str(word) for word in command], cwd="/", stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        except OSError as error:
            raise MountFailed(f"{command[0]}: {error.strerror}") from None
        try:
            try:
                wait_until_it_answers(mountpoint, process)
            except MountFailed as error:
                said.seek(0)
                words = said.read().decode(errors="replace").strip().splitlines()
                raise MountFailed(f"{error}: {words[-1]}" if words else str(error)) from None
            yield process.pid
        finally:
            unmount(mountpoint)
            try:
                process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def stackfs(toml: Path, mountpoint: Path) -> Iterator[int]:
    """A stackfs volume, mounted and unmounted as a user does it: its daemon's process id, while it is mounted."""
    command = [*stackfs_command(), "mount", str(toml)]
    log = None
    try:
        with tempfile.TemporaryFile() as said:  # not a pipe: the daemon inherits it, and it would never end
            try:
                code = subprocess.run(command, cwd="/", stderr=said, timeout=START_LIMIT * 2).returncode
            except subprocess.TimeoutExpired:
                raise MountFailed(f"`{' '.join(command)}` took more than {START_LIMIT * 2:.0f} s") from None
            if code != 0:
                said.seek(0)
                words = said.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
                raise MountFailed(words[-1].removeprefix("stackfs: "))
        wait_until_it_answers(mountpoint)
        shown = stackfs_status(mountpoint)
        log = shown["status"].get("log")
        yield int(shown["pid"])
    finally:
        if is_mounted(mountpoint):
            try:
                subprocess.run([*stackfs_command(), "umount", str(mountpoint)], cwd="/", timeout=END_LIMIT)
            except subprocess.TimeoutExpired:
                pass
            unmount(mountpoint)
        if log and os.path.isabs(log):
            Path(log).unlink(missing_ok=True)


def stackfs_status(mountpoint: Path) -> dict[str, Any]:
    """What `stackfs status --json` says of one volume."""
    command = [*stackfs_command(), "status", "--json", "-v", str(mountpoint)]
    try:
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=START_LIMIT)
        volume: dict[str, Any] = json.loads(done.stdout)["volumes"][0]
    except (subprocess.TimeoutExpired, ValueError, LookupError):
        raise MountFailed(f"`{' '.join(command)}` does not answer") from None
    return volume
