"""The same stream of random operations gives the same on every lane as on the backing filesystem itself.

A stream is done step by step on a plain directory and on mounts, each by a process of its own (lanes_worker.py), and
what a step gave is compared: its result or errno, the content, the attributes. Streams follow from their seed. One
that gives different answers is made as short as it can be before it is shown; the list that the failure prints can be
put into SHORT below, to be tried again.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, STACKFS, Drive, needs_root, run

pytestmark = needs_root

Step = list[Any]

STEP_LIMIT = 20.0           # seconds that one step may take: a lane that hangs is a failure, not a wait
SHRINK_LIMIT = 40.0         # seconds for making a stream that failed shorter

REFUSES = """
from stackfs.api import *

MANIFEST = {"name": "refuses", "altitude": "370700", "group": "FSFilter Activity Monitor", "filter": "Refuses",
            "answers": "cacheable"}

class Refuses(Filter):
    operations = tuple(Operation(major, pre="pre") for major in (
        IRP_MJ_READ, IRP_MJ_WRITE, IRP_MJ_QUERY_INFORMATION, IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_QUERY_OPEN,
        IRP_MJ_DEVICE_CONTROL, IRP_MJ_LOCK_CONTROL))

    def pre(self, data, objects):
        if data.major == IRP_MJ_QUERY_OPEN:
            return FLT_PREOP_DISALLOW_FSFILTER_IO
        return FLT_PREOP_DISALLOW_FASTIO if data.is_fast_io else FLT_PREOP_SUCCESS_NO_CALLBACK
"""

NATIVE = (f"filterdir={ROOT / 'benchmarks' / 'filters'}", "filter=counter")
PYTHON = ("filter=passthrough",)
LANES = {
    "bypass": (),
    "native strict": (*NATIVE, "cache=strict"),
    "python": PYTHON,
    "python strict": (*PYTHON, "cache=strict", "locks=stack"),
    "irp": (*PYTHON, "lanes=irp"),
    "irp strict": (*PYTHON, "lanes=irp", "cache=strict", "locks=stack"),
    "refused as fast": ("filter=refuses",),
}
"""What `make test` runs. The long test has these, and"""
MORE = {
    "bypass strict": ("cache=strict", "locks=stack"),
    "device, no filter": ("bypass=off",),
    "device, no filter, strict": ("bypass=off", "cache=strict"),
    "native": (*NATIVE, "locks=stack"),
    "irp, no filter": ("lanes=irp",),
    "refused as fast, strict": ("filter=refuses", "cache=strict", "locks=stack"),
    "exclusive": (*NATIVE, "exclusive"),
    "the stack checks": (*PYTHON, "permissions=stack"),
}


# ---- streams --------------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d", "x", "y", "x/a", "x/b", "x/y", "y/a", "y/b", "y/x", "x/y/a"]
FILES = ["a", "b", "c", "x/a", "y/a"]
FOLDERS = ["", "x", "y", "x/y"]
OFFSETS = [0, 0, 1, 100, 4095, 4096, 4097, 8192, 10_000, 65_536, 70_000, 131_071, 200_000]
LENGTHS = [0, 1, 10, 100, 512, 4096, 5000, 8192, 20_000, 70_000, 140_000]
TIMES = [0, 1, 999_999_999, 1_234_567_891, 10**15 + 7, 987_654_321_987_654_321]
MODES = [0o644, 0o600, 0o444, 0o755, 0o6755, 0o2744, 0o1777, 0]
ATTRIBUTES = ["user.a", "user.b", "user.long" + "g" * 200, "trusted.a", "other.a"]
TARGETS = ["a", "x", "nowhere", "../a", "x/../b", "t" * 300]
ACCESS = [os.O_RDONLY, os.O_WRONLY, *[os.O_RDWR] * 6]
EXTRA = {os.O_CREAT: 0.7, os.O_EXCL: 0.08, os.O_TRUNC: 0.15, os.O_APPEND: 0.2, os.O_NOFOLLOW: 0.1, os.O_DIRECTORY: 0.1,
         os.O_SYNC: 0.1, os.O_NOATIME: 0.1}  # fmt: skip
"""Flags of open(2), and how often."""
ALLOCATIONS = [0, 1, 3, 3, 0x10, 0x11, 2, 0x13]        # plain, keep-size, punch, zero; and what the kernel refuses
LOCKS = [0, 1, 2]                                      # F_RDLCK, F_WRLCK, F_UNLCK
FLOCKS = [1, 2, 8]                                     # LOCK_SH, LOCK_EX, LOCK_UN


class Stream(random.Random):
    """Makes steps. It does not look at what they give: names and open files are few enough that most find something."""

    def slot(self) -> int:
        return self.randrange(3)

    def name(self) -> str:
        return self.choice(FILES if self.random() < 0.75 else NAMES)

    def map(self) -> int:
        return self.randrange(2)

    def seed_of_data(self) -> int:
        return self.randrange(1000)

    def flags(self) -> int:
        flags: int = self.choice(ACCESS)
        for flag, chance in EXTRA.items():
            flags |= flag if self.random() < chance else 0
        if flags & os.O_CREAT:
            flags &= ~os.O_DIRECTORY                    # together they are refused by some kernels, taken by others
        return flags

    def at(self, *lists: Sequence[int]) -> list[int]:
        return [self.choice(each) for each in lists]

    def steps(self, count: int) -> list[Step]:
        made: list[Step] = [["mkdir", "x", 0o755], ["mkdir", "y", 0o777]]
        for slot, name in enumerate(("a", "x/a", "b")):
            made += [["open", slot, name, os.O_RDWR | os.O_CREAT, 0o644],
                     ["write", slot, self.seed_of_data(), self.choice(LENGTHS)]]  # fmt: skip
        kinds = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]
        made += [[kind := self.choice(kinds), *MAKE[kind](self)] for _ in range(count)]
        every = max(count // 3, 1)
        for place in range(len(made), 0, -every):
            made.insert(place, ["check"])
        return made


MAKE: dict[str, Callable[[Stream], list[Any]]] = {
    "open": lambda s: [s.slot(), s.name(), s.flags(), s.choice(MODES)],
    "tmpfile": lambda s: [s.slot(), s.choice(FOLDERS), s.choice([1, 2, 2, 2 | os.O_EXCL]), 0o640],
    "give_name": lambda s: [s.slot(), s.name()],
    "dup": lambda s: [s.slot(), s.slot()],
    "close": lambda s: [s.slot()],
    "append": lambda s: [s.slot(), s.random() < 0.5],
    "read": lambda s: [s.slot(), *s.at(LENGTHS)],
    "pread": lambda s: [s.slot(), *s.at(LENGTHS, OFFSETS)],
    "write": lambda s: [s.slot(), s.seed_of_data(), *s.at(LENGTHS)],
    "pwrite": lambda s: [s.slot(), s.seed_of_data(), *s.at(LENGTHS, OFFSETS)],
    "lseek": lambda s: [s.slot(), *s.at([*OFFSETS, -1, -100], [os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])],
    "holes": lambda s: [s.slot(), *s.at([*OFFSETS, -1], [os.SEEK_DATA, os.SEEK_HOLE])],
    "ftruncate": lambda s: [s.slot(), *s.at(OFFSETS)],
    "fallocate": lambda s: [s.slot(), *s.at(ALLOCATIONS, OFFSETS, LENGTHS)],
    "copy": lambda s: [s.slot(), *s.at(OFFSETS), s.slot(), *s.at(OFFSETS, LENGTHS)],
    "fsync": lambda s: [s.slot()],
    "fdatasync": lambda s: [s.slot()],
    "fstat": lambda s: [s.slot()],
    "fchmod": lambda s: [s.slot(), s.choice(MODES)],
    "futimens": lambda s: [s.slot(), *s.at(TIMES, TIMES)],
    "flistdir": lambda s: [s.slot()],
    "poll": lambda s: [s.slot()],
    "flock": lambda s: [s.slot(), s.choice(FLOCKS)],
    "lock": lambda s: [s.slot(), *s.at(LOCKS, OFFSETS, LENGTHS)],
    "who_locks": lambda s: [s.slot(), *s.at([0, 1], OFFSETS, LENGTHS)],
    "map": lambda s: [s.map(), s.slot(), s.random() < 0.15, s.random() < 0.7],
    "map_read": lambda s: [s.map(), *s.at(OFFSETS, LENGTHS)],
    "map_write": lambda s: [s.map(), s.seed_of_data(), *s.at(LENGTHS, OFFSETS)],
    "unmap": lambda s: [s.map()],
    "rename": lambda s: [s.name(), s.name(), s.choice([0, 0, 0, 1, 2, 3])],
    "link": lambda s: [s.name(), s.name()],
    "symlink": lambda s: [s.choice(TARGETS), s.name()],
    "readlink": lambda s: [s.name()],
    "unlink": lambda s: [s.name()],
    "mkdir": lambda s: [s.choice(["x", "y", "x/y", "d", "a"]), s.choice(MODES)],
    "rmdir": lambda s: [s.choice(["x", "y", "x/y", "d", "a"])],
    "mkfifo": lambda s: [s.choice(["d", "x/b"]), s.choice(MODES)],
    "listdir": lambda s: [s.choice([*FOLDERS, "a"])],
    "stat": lambda s: [s.name()],
    "lstat": lambda s: [s.name()],
    "truncate": lambda s: [s.name(), *s.at(OFFSETS)],
    "chmod": lambda s: [s.name(), s.choice(MODES)],
    "chown": lambda s: [s.name(), *s.at([-1, 0, 1000], [-1, 0, 2000])],
    "utimens": lambda s: [s.name(), *s.at(TIMES, TIMES)],
    "setxattr": lambda s: [s.name(), s.choice(ATTRIBUTES), s.seed_of_data(), *s.at([0, 5, 300, 3000], [0, 1, 2])],
    "getxattr": lambda s: [s.name(), s.choice(ATTRIBUTES)],
    "listxattr": lambda s: [s.name()],
    "removexattr": lambda s: [s.name(), s.choice(ATTRIBUTES)],
}
WEIGHTS = {**dict.fromkeys(MAKE, 2), "open": 12, "append": 3, "pwrite": 8, "pread": 8, "write": 6, "read": 6, "map": 6,
           "map_read": 6, "map_write": 6, "rename": 6, "fallocate": 4, "copy": 4, "holes": 4, "truncate": 3,
           "ftruncate": 3, "unlink": 3, "rmdir": 1, "mkfifo": 1, "dup": 1, "unmap": 1, "close": 1}  # fmt: skip


# ---- places ---------------------------------------------------------------------------------------------------------


class Place:
    """Where streams are done: a directory, its backing directory (or itself), and the process that does it."""

    def __init__(self, name: str, top: Path, below: Path) -> None:
        self.name, self.top, self.below = name, top, below
        self.rest = b""
        self.process = subprocess.Popen(
            [sys.executable, "-I", ROOT / "tests" / "lanes_worker.py"], cwd="/", stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def begin(self, folder: str, steps: list[Step]) -> None:
        (self.below / folder).mkdir()
        told = {"top": str(self.top / folder), "below": str(self.below / folder), "steps": steps}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, step: object) -> Any:
        """What the next step gave. Fails when nothing comes."""
        assert self.process.stdout is not None
        end = time.monotonic() + STEP_LIMIT
        while b"\n" not in self.rest:
            ready = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]
            more = os.read(self.process.stdout.fileno(), 1 << 20) if ready else b""
            if not more:
                self.process.kill()
                pytest.fail(f"{self.name}: {step} {'ended the process' if ready else 'hangs'}")
            self.rest += more
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Race:
    """All places, the plain directory first."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places
        self.number = itertools.count()

    def difference(self, steps: list[Step]) -> tuple[int, dict[str, Any]] | None:
        """The first step that did not give the same everywhere, and what it gave."""
        folder = f"stream{next(self.number)}"
        for place in self.places:
            place.begin(folder, steps)
        answers = {place.name: [place.answer(step) for step in [*steps, "the end"]] for place in self.places}
        wanted = answers[self.places[0].name]
        for number in range(len(steps)):
            if any(given[number] != wanted[number] for given in answers.values()):
                return number, {name: given[number] for name, given in answers.items()}
        return None

    def shrink(self, steps: list[Step]) -> list[Step]:
        """A shorter stream that gives different answers, too: what can be left out, is, while there is time."""
        end = time.monotonic() + SHRINK_LIMIT
        size = len(steps) // 2
        while size:
            at = 0
            while at < len(steps) and time.monotonic() < end:
                tried = [*steps[:at], *steps[at + size :]]
                found = self.difference(tried) if tried else None
                if found is None:
                    at += size
                else:
                    steps = tried[: found[0] + 1]
            size //= 2
        return steps

    def run(self, steps: list[Step], seed: object) -> None:
        found = self.difference(steps)
        if found is None:
            return
        shortest = self.shrink(steps[: found[0] + 1])
        number, answers = self.difference(shortest) or found
        listed = "\n".join(f"    {step!r}," for step in shortest)
        given = "\n".join(f"  {name:24} {json.dumps(answer)[:2000]}" for name, answer in answers.items())
        pytest.fail(f"stream {seed}: step {number} of\n[\n{listed}\n]\ngave\n{given}", pytrace=False)


@pytest.fixture
def race(drive: Callable[..., Drive], tmp_path: Path) -> Iterator[Callable[[dict[str, tuple[str, ...]]], Race]]:
    """race(lanes) mounts them. In the end each has served its requests where it should, and nothing is left open."""
    places: list[Place] = []
    mounted: dict[str, Drive] = {}

    def make(lanes: dict[str, tuple[str, ...]]) -> Race:
        (tmp_path / "plain").mkdir()
        (tmp_path / "refuses.py").write_text(REFUSES)
        places.append(Place("plain", tmp_path / "plain", tmp_path / "plain"))
        for name, options in lanes.items():
            made = drive(f"filterdir={tmp_path}", *options)
            mounted[name] = made
        shown = statuses()
        for name, made in mounted.items():
            if not name.startswith("bypass") or shown[str(made.mnt)]["lanes"]["bypass"] == "on":
                places.append(Place(name, made.mnt, made.src))  # else an old kernel, or a filesystem that stacks below
        return Race(places)

    yield make
    for place in places:
        place.end()
    end = time.monotonic() + 10                                 # releases are not waited for by close(2)
    while any((shown := statuses())[str(made.mnt)]["open_files"] for made in mounted.values()):
        assert time.monotonic() < end, "files are still open"
    used = {place.name for place in places}
    transfers = {name: transfers_of(name, shown[str(made.mnt)]) for name, made in mounted.items() if name in used}
    assert all(transfers[name] < transfers["native strict"] / 2 for name in transfers if name.startswith("bypass"))


def transfers_of(name: str, status: dict[str, Any]) -> int:
    """How many reads and writes came to the daemon; they came by the lane that the place has."""
    assert status["in_flight"] == 0 and status["failed_instances"] == []
    device, irp = (status["requests"].get(lane, {}) for lane in ("device", "irp"))
    if name.startswith("irp"):
        assert irp["READ"] > 10 and irp["WRITE"] > 10 and not {"READ", "WRITE", "LOOKUP"} & set(device), name
    elif name.startswith("refused"):
        assert irp["WRITE"] > 10 and device["OPEN"] > 10, name
    elif not name.startswith("bypass"):
        assert device["READ"] > 10 and device["WRITE"] > 10 and not irp, name
    return sum(lane.get(kind, 0) for lane in (device, irp) for kind in ("READ", "WRITE"))


def statuses() -> dict[str, dict[str, Any]]:
    """What `stackfs status` says, by mountpoint. (Somebody else's daemon on this machine may not answer.)"""
    volumes = json.loads(run(STACKFS, "status", "--json", check=False).stdout)["volumes"]
    return {volume["mountpoint"]: volume["status"] for volume in volumes}


# ---- tests ----------------------------------------------------------------------------------------------------------

TELLS = """
from stackfs.api import *

MANIFEST = {{"name": "tells", "altitude": "370710", "group": "FSFilter Activity Monitor", "filter": "Tells",
            "answers": "cacheable"}}

class Tells(Filter):
    operations = (Operation(IRP_MJ_READ, pre="pre"), Operation(IRP_MJ_WRITE, pre="pre"))

    def pre(self, data, objects):
        with open("{log}", "a") as log:
            print(major_name(data.major)[7:], data.irp_flags, "fast" if data.is_fast_io else "irp", data.offset,
                  data.length, data.uid, "pid" if data.pid else "nobody", data.name or data.path, file=log)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
"""
MOVES = """
import mmap, os, sys
top = sys.argv[1]
page = b"x" * 4096
fd = os.open(top + "/plain", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, page, 0)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
os.pread(fd, 100, 50)
direct = os.open(top + "/direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
aligned = mmap.mmap(-1, 4096)
os.pwritev(direct, [aligned], 0)
os.preadv(direct, [aligned], 0)
mapped = os.open(top + "/mapped", os.O_RDWR | os.O_CREAT)
os.ftruncate(mapped, 4096)
with mmap.mmap(mapped, 4096) as view:
    view[5]
    view[7] = 1
    view.flush()
"""


@pytest.mark.parametrize("cache", ["normal", "strict"])
def test_how_data_moves_is_told_alike_on_every_lane(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str, cache: str
) -> None:
    """D4 and D8: whose transfer it is, and whether it is the page cache's, comes from the wire."""
    log = tmp_path / "log"
    (tmp_path / "tells.py").write_text(TELLS.format(log=log))
    made = drive(f"filterdir={tmp_path}", "filter=tells", f"cache={cache}")
    run(sys.executable, "-I", "-c", MOVES, made.mnt)
    told = {tuple(line.split()) for line in log.read_text().splitlines()}
    own_read = ("READ", "0", "fast", "50", "100") if cache == "strict" else ("READ", "3", "irp", "0", "4096")
    assert told == {
        ("WRITE", "0", "fast", "0", "4096", "0", "pid", "/plain"),
        (*own_read, "0", "pid", "/plain"),
        ("WRITE", "1", "irp", "0", "4096", "0", "pid", "/direct"),
        ("READ", "1", "irp", "0", "4096", "0", "pid", "/direct"),
        ("READ", "3", "irp", "0", "4096", "0", "pid", "/mapped"),
        ("WRITE", "3", "irp", "0", "4096", "0", "nobody", "/mapped"),
    }


SEES = """
import json, os
from stackfs import api
from stackfs.api import *

MANIFEST = {{"name": "sees", "altitude": "370720", "group": "FSFilter Activity Monitor", "filter": "Sees",
            "answers": "cacheable"}}

MAJORS = [getattr(api, name) for name in dir(api) if name.startswith("IRP_MJ_")
          and name not in ("IRP_MJ_POWER", "IRP_MJ_DEVICE_CHANGE", "IRP_MJ_SHUTDOWN")]
FIELDS = ("request", "principal", "minor", "irp_flags", "is_irp", "is_fast_io", "is_fs_filter", "path", "name",
          "target_name", "desired_access", "create_options", "create_disposition", "open_flags", "offset", "length",
          "information_class", "end_of_file", "size", "mode", "security_information", "ea_name", "control_code",
          "input", "range", "source_offset", "exclusive", "fail_immediately", "uid", "gid")

class Sees(Filter):
    operations = tuple(Operation(major, pre="pre", post="post") for major in MAJORS)

    def shown(self, data, when, *more):
        line = [when, major_name(data.major)]
        for name in FIELDS:
            if name == "path" and data.irql:     # not to be had at this level
                continue
            try:
                value = getattr(data, name)
            except AttributeError:
                continue
            line.append((name, value.decode("latin-1") if isinstance(value, bytes) else value))
        with open("{log}", "a") as log:
            log.write(json.dumps([*line, bool(data.tid), bool(data.pid), *more]) + "\\n")

    def pre(self, data, objects):
        self.shown(data, "pre")
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, data.request_number

    def post(self, data, objects, context, flags):
        self.shown(data, "post", data.status, data.information, context == data.request_number)
"""

ASKS = """
import errno, fcntl, mmap, os, sys
os.umask(0o027)
os.chdir(sys.argv[1])
def attempt(act, *arguments, **keywords):
    try:
        return act(*arguments, **keywords)
    except OSError:
        return None
os.mkdir("d", 0o750)
fd = os.open("d/f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
os.write(fd, b"x" * 5000)
os.pread(fd, 100, 4950)
os.ftruncate(fd, 6000)
os.fchmod(fd, 0o4711)
os.fchown(fd, 1000, 1000)
os.utime(fd, ns=(5, 6))
os.fsync(fd)
os.fdatasync(fd)
os.posix_fallocate(fd, 0, 9000)
os.lseek(fd, 0, os.SEEK_HOLE)
os.fstat(fd)
attempt(fcntl.ioctl, fd, 0x80086601, bytes(8))
attempt(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
attempt(fcntl.lockf, fd, fcntl.LOCK_UN, 10, 5)
attempt(fcntl.flock, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
attempt(fcntl.flock, fd, fcntl.LOCK_UN)
append = os.open("d/f", os.O_WRONLY | os.O_APPEND)
os.write(append, b"appended")
attempt(os.copy_file_range, fd, append, 10)
os.truncate("d/f", 10)
os.chmod("d/f", 0o640)
os.chown("d/f", 0, 0)
os.utime("d/f")
os.utime("d/f", ns=(7, 8))
for name in ("user.a", "trusted.a", "system.posix_acl_access"):
    attempt(os.setxattr, "d/f", name, b"value", os.XATTR_CREATE)
    attempt(os.setxattr, "d/f", name, b"other", os.XATTR_REPLACE)
    attempt(os.getxattr, "d/f", name)
    attempt(os.removexattr, "d/f", name)
os.listxattr("d/f")
attempt(os.getxattr, "d/f", "user.none")
os.symlink("f", "d/l")
os.readlink("d/l")
os.link("d/f", "d/h")
os.mkfifo("d/p", 0o600)
os.rename("d/p", "d/q")
os.rename("d/h", "d/f")
attempt(os.rename, "d", "d/q")
attempt(os.open, "d/none", os.O_RDONLY)
attempt(os.open, "d/f", os.O_RDWR | os.O_CREAT | os.O_EXCL)
attempt(os.rmdir, "d")
os.close(os.open("d/f", os.O_WRONLY | os.O_TRUNC))
os.close(os.open("d", os.O_TMPFILE | os.O_RDWR, 0o600))
os.close(os.open("d/f", os.O_RDONLY | os.O_DIRECT))
os.statvfs("d")
here = os.open("d", os.O_RDONLY)
os.fsync(here)
os.listdir(here)
for name in ("f", "l", "q", "h"):
    attempt(os.unlink, name, dir_fd=here)
attempt(os.mkdir, "d", 0o700)
os.close(fd)
os.close(append)
os.close(here)
os.rmdir("d")
"""

# RELEASE is asynchronous; and which of the two lists a directory, the kernel chooses with `lanes=auto` only.
ELSEWHERE = ("release", "releasedir", "readdir", "readdirplus")


@pytest.mark.parametrize("locks", ["kernel", "stack"])
def test_filters_see_the_same_on_every_lane(drive: Callable[..., Drive], tmp_path: Path, locks: str) -> None:
    """Each operation, with its kind, flags, parameters and outcome, in the same order, by whatever lane it comes."""
    seen: dict[str, list[str]] = {}
    for lane in ("auto", "irp"):
        log = tmp_path / f"log {lane}"
        (tmp_path / lane).mkdir()
        (tmp_path / lane / "sees.py").write_text(SEES.format(log=log))
        made = drive(f"filterdir={tmp_path / lane}", "filter=sees", "cache=strict", f"lanes={lane}", f"locks={locks}")
        run(sys.executable, "-I", "-c", ASKS, made.mnt)
        made.umount()
        seen[lane] = log.read_text().splitlines()
        assert len(seen[lane]) > 300

    def of_requests(lane: str, *, kept_apart: bool) -> list[Any]:
        lines = [json.loads(re.sub(r"#\d+ ", "# ", line)) for line in seen[lane]]      # a file without a name
        return [line for line in lines if (line[2][1] in ELSEWHERE) == kept_apart]

    one, other = (of_requests(lane, kept_apart=False) for lane in ("auto", "irp"))
    for number, (device, irp) in enumerate(zip(one, other, strict=False)):
        assert device == irp, f"operation {number}, behind {one[number - 3 : number]}"
    assert len(one) == len(other)
    ends = [
        sorted(json.dumps(line).replace(" (deleted)", "")       # by then, or not yet
               for line in of_requests(lane, kept_apart=True) if line[2][1].startswith("release"))
        for lane in ("auto", "irp")
    ]  # fmt: skip
    assert ends[0] == ends[1]


def test_an_attribute_is_asked_for_as_long_on_the_irp_lane(drive: Callable[..., Drive], tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "sees.py").write_text(SEES.format(log=log))
    made = drive(f"filterdir={tmp_path}", "filter=sees", "lanes=irp")
    run("setfattr", "-n", "user.a", "-v", "value", made.src)
    run(sys.executable, "-I", "-c", "import os, sys; os.getxattr(sys.argv[1], 'user.a')", made.mnt)
    asked = [dict(field for field in json.loads(line) if isinstance(field, list))
             for line in log.read_text().splitlines()]
    lengths = {each["length"] for each in asked if each.get("ea_name") == "user.a"}
    assert lengths and max(lengths) < 1000


SHORT: list[list[Step]] = [
    # F_GETLK: ranges of one owner that meet are one
    [["open", 1, "a", os.O_RDWR | os.O_CREAT, 0o644], ["open", 2, "a", os.O_RDWR, 0],
     ["lock", 1, 0, 65536, 0], ["lock", 1, 0, 4095, 70_000], ["who_locks", 2, 1, 70_000, 20_000]],
    [["open", 1, "a", os.O_RDWR | os.O_CREAT, 0o644], ["open", 2, "a", os.O_RDWR, 0],
     ["lock", 1, 0, 4096, 10], ["lock", 1, 0, 0, 4096], ["lock", 1, 1, 4100, 2], ["who_locks", 2, 1, 1, 20_000],
     ["lock", 1, 2, 0, 1], ["who_locks", 2, 1, 0, 0]],
]  # fmt: skip
"""Streams that once gave different answers."""


def test_random_operations_give_the_same_on_every_lane(race: Callable[..., Race]) -> None:
    everywhere = race(LANES)
    for steps in SHORT:
        everywhere.run(steps, "SHORT")
    for seed in range(4):
        everywhere.run(Stream(seed).steps(250), seed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_random_operations_for_minutes(race: Callable[..., Race]) -> None:
    """Other streams each time, for STACKFS_STREAM_SECONDS; STACKFS_STREAM tries a given one."""
    everywhere = race(LANES | MORE)
    if given := os.environ.get("STACKFS_STREAM"):
        everywhere.run(Stream(int(given)).steps(400), given)
        return
    end = time.monotonic() + float(os.environ.get("STACKFS_STREAM_SECONDS", "300"))
    for steps in SHORT:
        everywhere.run(steps, "SHORT")
    while time.monotonic() < end:
        seed = random.SystemRandom().randrange(10**9)
        everywhere.run(Stream(seed).steps(400), seed)
