"""Every way a mount can end while requests are under way: callers get an error at once, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import STACKFS, Drive, is_mounted, run

CALLERS = 4
AT_ONCE = 2.0               # seconds, on a busy machine

HOLDS = """
import os, time
from stackfs.api import *

MANIFEST = {"name": "holds", "altitude": "370600", "group": "FSFilter Activity Monitor", "filter": "Holds"}

class Holds(Filter):
    operations = (Operation(IRP_MJ_READ, pre="pre"),)

    def pre(self, data, objects):
        end = time.monotonic() + 4
        while not os.path.exists(objects.volume.source + "/../go on") and time.monotonic() < end:
            time.sleep(0.01)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
"""

CALLER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
print("open", flush=True)
try:
    while True:
        os.pread(fd, 10, 0)
except OSError as error:
    print(error.errno, time.monotonic(), flush=True)
"""


@contextlib.contextmanager
def callers(made: Drive) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that read all the time."""
    (made.src / "f").write_text("content")
    command = [sys.executable, "-I", "-c", CALLER, str(made.mnt / "f")]
    running = [subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True) for _ in range(CALLERS)]
    try:
        for each in running:
            assert each.stdout is not None and each.stdout.readline() == "open\n"
        yield running
    finally:
        for each in running:
            each.kill()
            each.communicate()


def assert_told(running: list[subprocess.Popen[str]], since: float) -> None:
    for each in running:
        said = each.communicate(timeout=10)[0].split()
        assert int(said[0]) in (errno.ECONNABORTED, errno.ENOTCONN, errno.EIO), said
        assert float(said[1]) - since < AT_ONCE, "the caller waited"


def connection(mountpoint: Path) -> str:
    """fusectl's number of a mount: its device's minor."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == str(mountpoint):
            return line.split()[2].split(":")[1]
    raise AssertionError("not mounted")


@pytest.fixture
def fusectl(tmp_path: Path) -> Iterator[Path]:
    standard = Path("/sys/fs/fuse/connections")
    if os.path.ismount(standard):
        yield standard
        return
    place = tmp_path / "fusectl"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "fusectl", "none", str(place)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"fusectl cannot be mounted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def end(made: Drive, how: str, fusectl: Path) -> None:
    if how == "abort":
        (fusectl / connection(made.mnt) / "abort").write_text("1")
    elif how == "umount -f":
        run("umount", "-f", made.mnt, check=False)          # EBUSY, as files are open; aborted all the same
    else:
        os.kill(made.pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["abort", "umount -f", "SIGKILL"])
@pytest.mark.parametrize("held", [True, False], ids=["held", "running"])
def test_callers_are_told_at_once(
    drive: Callable[..., Drive], tmp_path: Path, fusectl: Path, how: str, held: bool
) -> None:
    """Whether a filter's callback holds everything up at that moment, or nothing does."""
    where = tmp_path / "filters"
    where.mkdir(mode=0o755)
    (where / "holds.py").write_text(HOLDS)
    made = drive(f"filterdir={where}", "filter=holds", "cache=strict")
    made.expected_log = ["connection", "grace"]
    gate = made.src.parent / "go on"
    gate.unlink(missing_ok=True) if held else gate.write_text("")
    with callers(made) as running:
        time.sleep(0.2)                                     # into the callback, or into the loop
        begun = time.monotonic()
        end(made, how, fusectl)
        assert_told(running, begun)
    gate.write_text("")
    made.wait_gone()
    if how == "SIGKILL":
        assert is_mounted(made.mnt)
        assert "not connected" in run("ls", made.mnt, check=False, timeout=5).stderr
        made.umount()
        made.mount()                                        # and once more, for the mount command to clear
        os.kill(made.pid, signal.SIGKILL)
        made.wait_gone()
        assert is_mounted(made.mnt)
        made.mount()
        assert run("cat", made.mnt / "f").stdout == "content"
        made.umount()
    assert not is_mounted(made.mnt)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_with_requests_under_way(drive: Callable[..., Drive], number: int) -> None:
    """The first signal lets open files go on, the second one ends them."""
    made = drive("filter=passthrough", "cache=strict")
    made.expected_log = ["files are still open"]
    with callers(made) as running:
        os.kill(made.pid, number)
        time.sleep(0.4)
        assert all(each.poll() is None for each in running) and is_mounted(made.mnt)
        begun = time.monotonic()
        os.kill(made.pid, number)
        assert_told(running, begun)
    made.wait_gone()
    assert not is_mounted(made.mnt)


def test_force_on_the_command_line(drive: Callable[..., Drive]) -> None:
    made = drive("cache=strict", "bypass=off")  # what the kernel reads by itself goes on until it is closed
    made.expected_log = ["connection"]
    with callers(made) as running:
        run(STACKFS, "umount", "--force", made.mnt)
        assert_told(running, time.monotonic())
    made.wait_gone()
    assert not is_mounted(made.mnt)


def test_a_lazy_unmount_serves_whoever_is_there(drive: Callable[..., Drive]) -> None:
    made = drive("cache=strict")
    with callers(made) as running:
        run("umount", "-l", made.mnt)
        assert not is_mounted(made.mnt)
        time.sleep(0.4)
        assert made.alive() and all(each.poll() is None for each in running)
    made.wait_gone()


def test_an_ordinary_unmount_refuses_while_files_are_open(drive: Callable[..., Drive]) -> None:
    made = drive()
    with callers(made) as running:
        done = run(STACKFS, "umount", made.mnt, check=False)
        assert done.returncode == 5 and "in use by python" in done.stderr and len(done.stderr.splitlines()) == 1
        assert all(each.poll() is None for each in running) and is_mounted(made.mnt)
    made.umount()
