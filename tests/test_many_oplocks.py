"""100,000 oplocks held at once on one drive: what each costs the daemon, and that none costs more for the others."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import STACKFS, Drive, needs_root, run
from oplock_agent import eventually
from test_million import resident

pytestmark = [needs_root, pytest.mark.long, pytest.mark.timeout(900)]

COUNT = 100_000
EACH = 12_500                # in one process
BYTES_EACH = 500
STANDS_IN = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/types.h>
enum { FIRST = 0x20000000 };
static atomic_int next = FIRST;
static int stand_in(const char *path, int flags) {
    if ((flags & O_ACCMODE) != O_RDWR || flags & (O_PATH | O_DIRECTORY) || strncmp(path, "/proc/self/fd/", 14) != 0)
        return -1;
    return atomic_fetch_add(&next, 1);
}
#define OPEN(name) int name(const char *path, int flags, ...) { \\
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \\
    int fd = stand_in(path, flags); \\
    return fd >= 0 ? fd : ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, mode); }
OPEN(open)
OPEN(open64)
int close(int fd) { return fd >= FIRST ? 0 : ((int (*)(int))dlsym(RTLD_NEXT, "close"))(fd); }
"""
"""Numbers in place of the backing files' descriptors, which nobody reads or writes here: for a machine whose limit of
them is below COUNT."""

HOLDER = """
import os, sys, time
from stackfs import oplock
paths, keyed, level = sys.stdin.readline().split(), *sys.argv[1:]
number = oplock.LEVELS[level]

def step(routine):
    sys.stdin.readline()
    begun = time.monotonic()
    result = routine()
    print(time.monotonic() - begun, result, flush=True)

def ask():
    for at, fd in enumerate(fds):
        key = f"{os.getpid():08x}{at:08x}".encode() if keyed == "keyed" else b""
        oplock._ioctl(fd, oplock.IOC_REQUEST, oplock.REQUEST.pack(number, 0, key, b""), {})

def acknowledge():
    told = 0
    for fd in fds:
        broken = oplock.read_break(fd)
        told += broken is not None
        if broken is not None and broken.acknowledge:
            answer = oplock.ACKNOWLEDGE.pack(3, oplock.LEVELS[broken.new_level], 0, 0)
            oplock._ioctl(fd, oplock.IOC_ACKNOWLEDGE, answer, {})
    return told

fds = [os.open(path, os.O_RDWR) for path in paths]
print(flush=True)
step(ask)
step(acknowledge)
step(lambda: [os.close(fd) for fd in fds] and 0)
"""


class Holders:
    def __init__(self, paths: list[Path], level: str, keyed: bool) -> None:
        self.processes = []
        for first in range(0, len(paths), EACH):
            process = subprocess.Popen(
                [sys.executable, "-c", HOLDER, "keyed" if keyed else "", level], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True, cwd="/")  # fmt: skip
            self.processes.append(process)
            self.tell(process, " ".join(map(str, paths[first : first + EACH])))
        for process in self.processes:
            self.heard(process)

    def tell(self, process: subprocess.Popen[str], line: str = "") -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    def heard(self, process: subprocess.Popen[str]) -> list[str]:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "a holder has ended"
        return line.split()

    def step(self) -> tuple[list[float], int]:
        """One process after the other: the seconds of each, and what they have counted."""
        seconds, count = [], 0
        for process in self.processes:
            self.tell(process)
            took, counted = self.heard(process)
            seconds.append(float(took))
            count += int(counted) if counted != "None" else 0
        return seconds, count

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def big_drive(drive: Callable[..., Drive], tmp_path: Path) -> Drive:
    """One whose daemon may have COUNT files open."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    made = drive(mount=False)
    made.verifier = False
    environment = dict(os.environ)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < COUNT + 1000:
        (tmp_path / "in.c").write_text(STANDS_IN)
        run("gcc", "-O2", "-shared", "-fPIC", "-o", tmp_path / "in.so", tmp_path / "in.c", "-ldl")
        environment["LD_PRELOAD"] = str(tmp_path / "in.so")
    return made.mount("filter=oplock", "exclusive", "bypass=off", env=environment)


@pytest.fixture
def holders() -> Iterator[Callable[..., Holders]]:
    made: list[Holders] = []

    def make(paths: list[Path], level: str, keyed: bool = False) -> Holders:
        made.append(Holders(paths, level, keyed))
        return made[-1]

    yield make
    for each in made:
        each.end()


def said(what: str, seconds: list[float]) -> None:
    """As much for the last ones as for the first: what one does goes through no list of the others."""
    print(f"{what}: {1e6 * sum(seconds) / COUNT:.0f} us each, {1e6 * seconds[0] / EACH:.0f} us at first, "
          f"{1e6 * seconds[-1] / EACH:.0f} us at last")  # fmt: skip
    assert seconds[-1] < 3 * seconds[0] and seconds[0] < 3 * seconds[-1], (what, seconds)


def ask_all(drive: Drive, holders: Holders) -> None:
    """Nobody may cost the daemon more than BYTES_EACH."""
    time.sleep(1)
    before = resident(drive.pid)
    seconds, _ = holders.step()
    time.sleep(1)
    cost = (resident(drive.pid) - before) / COUNT
    print(f"{COUNT} oplocks, {cost:.0f} bytes each")
    assert 100 < cost < BYTES_EACH
    said("request", seconds)


def test_each_on_a_file_of_its_own(big_drive: Drive, holders: Callable[..., Holders]) -> None:
    for number in range(COUNT):
        os.close(os.open(big_drive.src / f"f{number}", os.O_CREAT | os.O_WRONLY))
    made = holders([big_drive.mnt / f"f{number}" for number in range(COUNT)], "RWH")
    ask_all(big_drive, made)
    assert made.step()[1] == 0
    said("close", made.step()[0])


@pytest.mark.parametrize(("level", "keyed"), [("R", False), ("RH", True), ("2", False)])
@pytest.mark.parametrize("ends", ["broken", "closed", "detached"])
def test_all_on_one_file(
    big_drive: Drive, holders: Callable[..., Holders], level: str, keyed: bool, ends: str
) -> None:
    """Another opens it as fast as ever; a write tells all of them at once; they acknowledge, and close."""
    file = big_drive.mnt / "file"
    file.write_bytes(b"content")
    made = holders([file] * COUNT, level, keyed)
    ask_all(big_drive, made)
    begun = time.monotonic()
    for _ in range(1000):
        os.close(os.open(file, os.O_RDONLY))
    assert time.monotonic() - begun < 2
    if ends == "broken":
        begun = time.monotonic()
        os.truncate(file, 3)
        print(f"a truncate that breaks them: {1000 * (time.monotonic() - begun):.0f} ms")
        assert time.monotonic() - begun < 2
    if ends == "detached":
        begun = time.monotonic()
        big_drive.fltmc("detach", "oplock", str(big_drive.mnt))
        print(f"detach: {time.monotonic() - begun:.1f} s")
        assert time.monotonic() - begun < 20
        return
    seconds, told = made.step()
    assert told == (COUNT if ends == "broken" else 0)
    said("acknowledgement", seconds)
    said("close", made.step()[0])
    eventually(lambda: run(STACKFS, "oplocks", big_drive.mnt).stdout == "no oplock is held\n")
