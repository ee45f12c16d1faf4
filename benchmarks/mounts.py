"""Puts either side of a measurement on a temporary directory, and takes it away again, whatever happens.

A mountpoint is never looked at (stat, listdir) from this process before it is known to answer, and every command that
touches one has a time limit: a filesystem under test may hang, the measurement must not.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT = 30.0     # seconds until a mount has to answer
END_LIMIT = 20.0       # seconds an unmount may take before it is forced


class MountFailed(Exception):
    """The side could not be mounted; one line that says why."""


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
def plain(source: Path, mountpoint: Path, *options: str) -> Iterator[Path]:
    """The plain pyfuse3 filesystem, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.plain_pyfuse3", *options, str(source), str(mountpoint)], cwd=ROOT
    )
    try:
        wait_until_it_answers(mountpoint, process)
        yield mountpoint
    finally:
        unmount(mountpoint)
        try:
            process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def stackfs(source: Path, mountpoint: Path, options: Sequence[str]) -> Iterator[Path]:
    """A stackfs volume, mounted and unmounted as a user does it."""
    command = [*stackfs_command(), "mount", str(source), str(mountpoint)]
    for option in options:
        command += ["-o", option]
    try:
        # its daemon inherits the outputs: a pipe here would never end
        result = subprocess.run(command, cwd=ROOT, timeout=START_LIMIT * 2)
        if result.returncode != 0:
            raise MountFailed(f"`{' '.join(command)}` ended with exit code {result.returncode}")
        wait_until_it_answers(mountpoint)
        yield mountpoint
    finally:
        if is_mounted(mountpoint):
            try:
                subprocess.run([*stackfs_command(), "umount", str(mountpoint)], cwd=ROOT, timeout=END_LIMIT)
            except subprocess.TimeoutExpired:
                pass
            unmount(mountpoint)
