"""Every way a mount can end while requests are under way: callers get an error at once, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import STACKFS, Drive, close_tells, is_mounted, run

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


def assert_told(running: list[subprocess.Popen[str]], since: float, *errors: int) -> None:
    """At once, and one of these errors."""
    for each in running:
        said = each.communicate(timeout=10)[0].split()
        assert int(said[0]) in (errors or (errno.ECONNABORTED, errno.ENOTCONN)), said
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


@pytest.mark.parametrize(
    ("lane", "how", "held"),
    [
        *(("auto", how, held) for how in ("abort", "umount -f", "SIGKILL") for held in (True, False)),
        ("irp", "abort", False),
        ("irp", "SIGKILL", True),
    ],
)
def test_callers_are_told_at_once(
    drive: Callable[..., Drive], tmp_path: Path, fusectl: Path, lane: str, how: str, held: bool
) -> None:
    """Whether a filter's callback holds everything up at that moment, or nothing does. Who is in flight gets
    ECONNABORTED, who comes later ENOTCONN."""
    where = tmp_path / "filters"
    where.mkdir(mode=0o755)
    (where / "holds.py").write_text(HOLDS)
    made = drive(f"filterdir={where}", "filter=holds", "cache=strict", f"lanes={lane}")
    made.expected_log = ["connection", "grace"]
    gate = made.src.parent / "go on"
    gate.unlink(missing_ok=True) if held else gate.write_text("")
    with callers(made) as running:
        time.sleep(0.2)                                     # into the callback, or into the loop
        begun = time.monotonic()
        end(made, how, fusectl)
        assert_told(running, begun, *([errno.ECONNABORTED] if held else []))
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


def test_force_on_the_command_line(drive: Callable[..., Drive], lanes: str) -> None:
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


# ---- a daemon killed under load -------------------------------------------------------------------------------------

LOAD = """
import errno, fcntl, itertools, mmap, os, sys, time
top, kind, acknowledged, stop = sys.argv[1:]
log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def record(number):
    return (b"%12d" % number) * 40

def write(flags=0):
    fd = os.open(f"{top}/{kind}", os.O_RDWR | os.O_CREAT | flags)
    for number in itertools.count():
        done = 0                                                # the end may come in the middle of one
        while done < 480:
            rest = record(number)[done:]
            done += os.write(fd, rest) if flags & os.O_APPEND else os.pwrite(fd, rest, number * 480 + done)
        os.write(log, b"%d\\n" % number)
        if number % 10 == 0 and os.path.exists(stop):
            os.close(fd)
            break

def map():
    fd = os.open(f"{top}/{kind}", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 480 * 10000)
    view = mmap.mmap(fd, 480 * 10000)
    assert not view[:].strip(b"\\0")          # every page is there now: a fault that fails would be a SIGBUS
    for number in itertools.count():
        at = number % 9000 * 480
        view[at : at + 480] = record(number)
        view.flush(at // 4096 * 4096, 8192)
        os.write(log, b"%d\\n" % number)
        if number % 10 == 0 and os.path.exists(stop):
            os.close(fd)
            break

def names():
    for number in itertools.count():
        fd = os.open(f"{top}/made{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, record(number))
        os.close(fd)
        os.write(log, b"made %d\\n" % number)
        os.rename(f"{top}/made{number}", f"{top}/moved{number}")
        os.write(log, b"moved %d\\n" % number)
        os.mkdir(f"{top}/folder{number}")
        os.write(log, b"folder %d\\n" % number)
        if number % 3 == 0:
            os.unlink(f"{top}/moved{number}")
            os.write(log, b"gone %d\\n" % number)

def read():
    fd = os.open(f"{top}/read", os.O_RDONLY)
    while not os.path.exists(stop):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)      # the page cache would go on without a daemon
        os.pread(fd, 4096, 0)
    os.close(fd)
    os.mkdir(f"{top}/unread")

def wait():
    fd = os.open(f"{top}/locked", os.O_RDWR)
    os.write(log, b"0\\n")
    fcntl.lockf(fd, fcntl.LOCK_EX)

acts = {"write": write, "append": lambda: write(os.O_APPEND), "map": map, "names": names, "read": read, "wait": wait}
print("ready", flush=True)
try:
    acts[kind]()
    print(0, time.monotonic(), flush=True)
except OSError as error:
    print(error.errno, time.monotonic(), flush=True)
for act in (os.listdir, os.statvfs, lambda path: os.stat(path + "/later"), lambda path: os.mkdir(path + "/later"),
            lambda path: os.open(path + "/later", os.O_CREAT)):
    begun = time.monotonic()
    try:
        act(top)
        print(0, 0, flush=True)
    except OSError as error:
        print(error.errno, time.monotonic() - begun, flush=True)
"""

LOADED = {
    "bypass": [],
    "device": ["bypass=off", "cache=strict", "locks=stack"],
    "device, cached": ["filter=passthrough"],
    "irp": ["filter=passthrough", "lanes=irp", "cache=strict", "locks=stack"],
    "irp, cached": ["lanes=irp"],
}


def record(number: int) -> bytes:
    return (b"%12d" % number) * 40


def assert_kept(source: Path, kind: str, lines: list[str]) -> None:
    """What was acknowledged is in the backing directory."""
    assert len(lines) > 5, f"{kind}: the load had hardly begun"
    if kind != "names":
        data = (source / kind).read_bytes()
        for number in map(int, lines):
            at = number % 9000 * 480 if kind == "map" else number * 480
            if kind != "map" or number + 9000 >= len(lines):         # not written over
                assert data[at : at + 480] == record(number), (kind, number)
        return
    states = [("made", {"made"}), ("moved", {"moved"}), ("folder", {"moved", "folder"}), ("gone", {"folder"})]
    done = {int(number): what for what, number in (line.split() for line in lines)}
    for number, what in done.items():
        state = [name for name, _ in states].index(what)
        allowed = [names for _, names in states[state : state + 1 + (number == max(done))]]   # the next was under way
        present = {name for name in ("made", "moved", "folder") if (source / f"{name}{number}").exists()}
        assert present in allowed, (number, what, present)
        for name in {"made", "moved"} & present:
            assert (source / f"{name}{number}").read_bytes() == record(number)


@pytest.mark.parametrize("lane", LOADED)
def test_a_daemon_killed_under_load_loses_nothing_that_it_acknowledged(
    drive: Callable[..., Drive], tmp_path: Path, lane: str
) -> None:
    """Callers in flight get ECONNABORTED, later ones ENOTCONN, all of them at once; and descriptors that the kernel
    reads and writes by itself (none that appends) go on until they are closed."""
    made = drive(*LOADED[lane])
    (made.src / "read").write_bytes(b"x" * 4096)
    (made.src / "locked").write_bytes(b"x")
    stop = tmp_path / "stop"
    locks = any("locks=stack" in option for option in LOADED[lane])
    kinds = ["write", "append", "map", "names", "read", *(["wait"] if locks else [])]
    bypassed = {"write", "map", "read"} if lane == "bypass" and is_bypassed(made) else set()

    def acknowledged(kind: str) -> list[str]:
        return (tmp_path / kind).read_text().splitlines()

    running: dict[str, subprocess.Popen[str]] = {}
    with contextlib.ExitStack() as stack:
        fcntl.lockf(stack.enter_context(open(made.src / "locked", "r+b")), fcntl.LOCK_EX)
        for kind in kinds:
            command = [sys.executable, "-I", "-c", LOAD, str(made.mnt), kind, str(tmp_path / kind), str(stop)]
            running[kind] = subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True)
            stack.callback(running[kind].communicate)
            stack.callback(running[kind].kill)
        for each in running.values():
            assert each.stdout is not None and each.stdout.readline() == "ready\n"
        end = time.monotonic() + 20
        while any(len(acknowledged(kind)) < 30 for kind in ("write", "append", "map", "names")):
            assert time.monotonic() < end
            time.sleep(0.02)
        while locks and not (acknowledged("wait") and sleeps(running["wait"].pid)):
            assert time.monotonic() < end
            time.sleep(0.02)
        begun = time.monotonic()
        os.kill(made.pid, signal.SIGKILL)
        for kind in sorted(bypassed - {"read"}):
            before = len(acknowledged(kind))
            while len(acknowledged(kind)) < before + 20:
                assert time.monotonic() < end, f"{kind} stopped"
                time.sleep(0.01)
        for kind in set(running) - bypassed:
            assert running[kind].wait(timeout=10) == 0
        stop.write_text("")
        for kind, each in running.items():
            said = [line.split() for line in each.communicate(timeout=10)[0].splitlines()]
            errors = [int(words[0]) for words in said]
            first = {"wait": {errno.ECONNABORTED}, "map": {errno.ECONNABORTED, errno.ENOTCONN, errno.EIO}}
            if kind in bypassed - {"read"} and not close_tells(made.src):
                first[kind] = {0}
            assert errors[0] in first.get(kind, {errno.ECONNABORTED, errno.ENOTCONN}), (kind, said)
            assert errors[1:] == [errno.ENOTCONN] * 5, (kind, said)
            if kind not in bypassed:
                assert float(said[0][1]) - begun < AT_ONCE, (kind, "waited")
            assert all(float(took) < AT_ONCE for _, took in said[1:]), (kind, said)
    made.wait_gone()
    for kind in ("write", "append", "map", "names"):
        assert_kept(made.src, kind, acknowledged(kind))
    made.umount()


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "SD"


def is_bypassed(made: Drive) -> bool:
    (volume,) = json.loads(run(STACKFS, "status", "--json", "-v", made.mnt).stdout)["volumes"]
    return bool(volume["status"]["lanes"]["bypass"] == "on")
