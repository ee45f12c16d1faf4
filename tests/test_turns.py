"""Who reads the device while a request waits: as few threads as will do, and always one that can."""

from __future__ import annotations

import concurrent.futures
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Drive, needs_root, run

pytestmark = needs_root

LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, lambda *_: None)      # told to give it up: it does not
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""

SLOW = '''
import time
from stackfs.api import *

MANIFEST = {"name": "slow", "altitude": "265300", "group": "FSFilter Content Screener", "filter": "Slow"}

class Slow(Filter):
    operations = (Operation(IRP_MJ_CREATE, pre="pre_create"),)

    def pre_create(self, data, objects):
        if data.request == "OPEN":
            time.sleep(0.05)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


@contextlib.contextmanager
def lease_on(path: Path) -> Iterator[None]:
    """Another program holds a write lease: an open(2) of the file waits in the kernel until it gives the lease up."""
    with subprocess.Popen(
        [sys.executable, "-c", LEASE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None and holder.stdout.readline()
        yield
        holder.stdin.close()


def timed(*command: str | Path) -> float:
    begun = time.monotonic()
    run(*command, timeout=20)
    return time.monotonic() - begun


def readers(made: Drive) -> int:
    names = [path.read_text() for path in Path(f"/proc/{made.pid}/task").glob("*/comm")]
    return sum(name.startswith("stackfs-read") for name in names)


@pytest.mark.parametrize("idle", [0, 0.3], ids=["busy before", "idle before"])
def test_a_system_call_that_unexpectedly_waits_holds_up_itself_alone(drive: Callable[..., Drive], idle: float) -> None:
    made = drive("bypass=off")
    for name in ("leased", "other"):
        (made.src / name).write_text(name)
    run("cat", made.mnt / "other")
    time.sleep(idle)
    with lease_on(made.src / "leased"):
        command = ["timeout", "-s", "KILL", "60", "cat", made.mnt / "leased"]
        waits = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/")
        time.sleep(0.05)
        for _ in range(3):
            assert timed("cat", made.mnt / "other") < 1
        assert waits.poll() is None
    assert waits.communicate(timeout=60)[0] == b"leased"


def test_many_such_calls_at_once(drive: Callable[..., Drive]) -> None:
    """More than there were threads: each that waits has one more take its place."""
    made = drive("bypass=off")
    (made.src / "other").write_text("other")
    with contextlib.ExitStack() as stack:
        waiting = []
        for number in range(6):
            path = made.src / f"leased{number}"
            path.write_text(str(number))
            stack.enter_context(lease_on(path))
            command = ["timeout", "-s", "KILL", "60", "cat", made.mnt / path.name]
            waiting.append(subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/"))
        time.sleep(0.1)
        assert timed("cat", made.mnt / "other") < 1
        assert all(each.poll() is None for each in waiting)
    assert [each.communicate(timeout=60)[0] for each in waiting] == [str(number).encode() for number in range(6)]


def test_slow_callbacks_of_several_programs_run_side_by_side(drive: Callable[..., Drive], tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "slow.py").write_text(SLOW)
    made = drive(f"filterdir={tmp_path}", "filter=slow")
    for number in range(8):
        (made.src / str(number)).write_text("x")
    code = "import os, sys\nfor _ in range(10): os.close(os.open(sys.argv[1], os.O_RDONLY))"
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: run(sys.executable, "-c", code, made.mnt / str(number)), range(8)))
    assert time.monotonic() - begun < 8 * 10 * 0.05 * 0.6          # one after the other they would take 4 seconds


def test_a_program_alone_is_served_by_few_threads(drive: Callable[..., Drive]) -> None:
    made = drive("filter=passthrough")
    (made.src / "file").write_bytes(bytes(1 << 16))
    code = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
for _ in range(20000):
    os.pread(file, 512, 0)
    os.stat(sys.argv[2])
"""
    run(sys.executable, "-c", code, made.mnt / "file", made.mnt)
    assert readers(made) <= 3


def test_the_lone_caller_that_sleeps_is_not_awaited_awake(drive: Callable[..., Drive]) -> None:
    """A program that does a request every few milliseconds costs little processor time."""
    made = drive("filter=passthrough", "cache=strict")
    (made.src / "file").write_bytes(bytes(4096))
    code = """
import os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
end = time.monotonic() + 2
while time.monotonic() < end:
    os.pread(file, 512, 0)
    time.sleep(0.002)
"""
    before = cpu(made)
    run(sys.executable, "-c", code, made.mnt / "file")
    assert cpu(made) - before < 0.6


def cpu(made: Drive) -> float:
    return time.clock_gettime((~made.pid << 3) | 2)
