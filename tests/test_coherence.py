"""Changes made beside the mount are noticed (-o coherence=lease): with programs, a second mount, without a mount."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import STACKFS, Drive, filter_directory, needs_root, run

pytestmark = needs_root

WINDOW = 0.1
"""Seconds after which nobody sees what was before the change (docs/coherence.md)."""
LEASE = ("coherence=lease", "bypass=off")


def beside(drive: Callable[..., Drive], first: Drive, *options: str) -> Drive:
    """A second mount of the same directory."""
    second = drive(mount=False)
    second.src = first.src
    return second.mount(*options)


def status(made: Drive) -> dict[str, Any]:
    volume: dict[str, Any] = json.loads(run(STACKFS, "status", "--json", "-v", made.mnt).stdout)["volumes"][0]["status"]
    return volume


def requests(made: Drive, *operations: str) -> int:
    """How many of these operations came to the daemon."""
    counters = status(made)["requests"]
    return sum(sum(lane.get(name, 0) for lane in counters.values() if isinstance(lane, dict)) for name in operations)


def soon(true: Callable[[], bool], seconds: float = WINDOW) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def program(text: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A Python program beside this one, that has said "ready"; killed in the end."""
    command = [sys.executable, "-c", text, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        with process:
            pass


# --- data ---------------------------------------------------------------------------------------------------------

READERS = """
import mmap, os, sys, time
path, pipe = sys.argv[1], sys.stdin
fd = os.open(path, os.O_RDONLY)
view = mmap.mmap(fd, 8192, prot=mmap.PROT_READ) if sys.argv[2] == "map" else None
print("ready", flush=True)
for line in pipe:        # after the deadline nothing else is read; stay: it does not go back to what it was
    at, deadline, wanted, stay = line.split()
    at, wanted, late = int(at), wanted.encode(), False
    while not late:
        late = time.monotonic() > float(deadline)
        found = view[at:at + 8] if view else os.pread(fd, 8, at)
        if found == wanted and stay == "0":
            break
        time.sleep(0.0005)
    print("right" if found == wanted else f"old: {found} for {wanted}", flush=True)
"""


def rounds(first: Drive, second: Drive, number: int) -> None:
    """Readers of the first mount keep the file open, one of them mapped; others write on the second and beside both."""
    chance = random.Random(number)
    below = first.src / "shared"
    below.write_bytes(b"-" * 8192)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(program(READERS, first.mnt / "shared", how)) for how in ("read", "map", "read")]
        kept: dict[Path, int] = {}
        for n in range(number):
            path = chance.choice([second.mnt / "shared", below])
            if path not in kept:
                kept[path] = os.open(path, os.O_RDWR)
            at, value = chance.choice([0, 100, 4090, 8184]), b"%08d" % n
            os.pwrite(kept[path], value, at)
            deadline = time.monotonic() + WINDOW
            for reader in readers:
                assert reader.stdin is not None
                reader.stdin.write(f"{at} {deadline} {value.decode()} {int(n % 8 == 0)}\n")
                reader.stdin.flush()
            for reader in readers:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "right\n", n
            if chance.random() < 0.5:    # whoever writes comes and goes
                for fd in kept.values():
                    os.close(fd)
                kept.clear()
                time.sleep(chance.choice([0, 0.004, 0.02]))
        for fd in kept.values():
            os.close(fd)


def test_readers_see_what_others_write(drive: Callable[..., Drive], lanes: str) -> None:
    first = drive(*LEASE)
    second = beside(drive, first, *LEASE)
    rounds(first, second, 300)
    assert status(first)["coherence"]["breaks"] > 5


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_readers_see_what_others_write_ten_thousand_times(drive: Callable[..., Drive]) -> None:
    first = drive(*LEASE)
    second = beside(drive, first, *LEASE)
    rounds(first, second, 10_000)


def test_without_coherence_a_reader_sees_old_bytes(drive: Callable[..., Drive]) -> None:
    """What the tests here would find: the same, without the option."""
    made = drive("bypass=off")
    (made.src / "f").write_bytes(b"old" * 100)
    with opened(made.mnt / "f") as fd:
        os.pread(fd, 300, 0)
        (made.src / "f").write_bytes(b"new" * 100)
        time.sleep(WINDOW)
        assert os.pread(fd, 3, 0) == b"old"


def test_what_nobody_writes_is_cached_for_long(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive(*LEASE)
    (made.src / "f").write_bytes(b"x" * 100_000)
    with opened(made.mnt / "f") as fd:
        assert len(os.read(fd, 200_000)) == 100_000
    time.sleep(1.1)                      # the directory was asked for before it was watched
    os.stat(made.mnt / "f")
    assert status(made)["coherence"]["leases"] == 1
    asked = []
    for _ in range(3):                   # an answer that took its time is believed for a second only
        before = requests(made, "READ", "GETATTR", "LOOKUP", "STATX")
        for _ in range(3):
            time.sleep(0.5)
            with opened(made.mnt / "f") as fd:
                assert len(os.pread(fd, 200_000, 0)) == 100_000
            assert os.stat(made.mnt / "f").st_size == 100_000
        asked.append(requests(made, "READ", "GETATTR", "LOOKUP", "STATX") - before)
        if asked[-1] == 0:
            break
    assert asked[-1] == 0, asked


def test_a_writer_who_was_there_first(drive: Callable[..., Drive], lanes: str) -> None:
    """Has the file open, or mapped, before anybody opens it on the mount: no lease, nothing is kept. A store through
    a mapping is announced by nothing at all."""
    made = drive(*LEASE)
    below = made.src / "f"
    below.write_bytes(bytes(8192))
    with opened(below, os.O_RDWR) as writing, mmap.mmap(writing, 8192) as stores, opened(made.mnt / "f") as fd, \
            mmap.mmap(fd, 8192, prot=mmap.PROT_READ) as seen:  # fmt: skip
        assert status(made)["coherence"]["leases"] == 0
        for n in range(50):
            stores[4096:4104] = b"%08d" % n
            assert soon(lambda n=n: os.pread(fd, 8, 4096) == b"%08d" % n), n  # type: ignore[misc]
            assert soon(lambda n=n: seen[4096:4104] == b"%08d" % n), n  # type: ignore[misc]
    with opened(made.mnt / "f") as fd:   # it has gone: a lease again
        assert soon(lambda: status(made)["coherence"]["leases"] == 1, 5)
        assert os.pread(fd, 8, 4096) == b"00000049"


def test_a_writer_on_the_mount_itself(drive: Callable[..., Drive], lanes: str) -> None:
    """Its own lease has to go first: that must not take the time of a lease that nobody answers for."""
    made = drive(*LEASE)
    path = made.mnt / "f"
    (made.src / "f").write_bytes(b"before")
    with opened(path) as reading:
        for n in range(30):
            assert os.pread(reading, 6, 0)
            begun = time.monotonic()
            with opened(path, os.O_WRONLY) as fd:
                os.write(fd, b"%06d" % n)
            assert os.pread(reading, 6, 0) == b"%06d" % n
            os.truncate(path, 6)
            assert time.monotonic() - begun < 2
            time.sleep(0.004)
        assert soon(lambda: status(made)["coherence"]["leases"] == 1, 5)
        with opened(path, os.O_RDONLY | os.O_TRUNC):
            assert os.fstat(reading).st_size == 0
    with opened(path, os.O_RDWR) as fd:
        os.write(fd, b"mine")
        with opened(made.src / "f", os.O_RDWR) as other:         # it has no lease while it writes itself
            os.pwrite(other, b"ours", 0)
            assert soon(lambda: os.pread(fd, 4, 0) == b"ours")


@pytest.mark.parametrize("how", ["truncate", "ftruncate", "open", "append"])
def test_sizes_changed_beside_the_mount(drive: Callable[..., Drive], lanes: str, how: str) -> None:
    made = drive(*LEASE)
    path, below = made.mnt / "f", made.src / "f"
    below.write_bytes(b"x" * 10_000)
    with opened(path) as fd:
        for size in (5000, 100, 9000, 0):
            below.write_bytes(b"y" * 10_000)
            assert soon(lambda: os.pread(fd, 20_000, 0) == b"y" * 10_000)
            time.sleep(0.01)
            expected = b"y" * min(size, 10_000)
            if how == "truncate":
                os.truncate(below, size)
            elif how == "ftruncate":
                with opened(below, os.O_WRONLY) as writing:
                    os.ftruncate(writing, size)
            elif how == "open":          # breaks no lease, and is an event
                with opened(below, os.O_RDONLY | os.O_TRUNC):
                    expected = b""
            else:
                with open(below, "ab") as appends:
                    appends.write(b"z" * size)
                expected = b"y" * 10_000 + b"z" * size
            assert soon(lambda: os.fstat(fd).st_size == len(expected))  # noqa: B023
            assert soon(lambda: os.pread(fd, 40_000, 0) == expected)  # noqa: B023


def test_two_mounts_whose_programs_open_and_write_at_once(drive: Callable[..., Drive], lanes: str) -> None:
    """Each has leases that the other's opens must wait for, many at a time: none of them for long."""
    first = drive(*LEASE)
    second = beside(drive, first, *LEASE)
    for n in range(8):
        (first.src / str(n)).write_bytes(b"0" * 100)
    wrong: list[str] = []
    slowest = [0.0]

    def work(mount: Path, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            path = mount / str(chance.randrange(8))
            begun = time.monotonic()
            with opened(path, chance.choice([os.O_RDONLY, os.O_RDONLY, os.O_RDWR])) as fd:
                slowest[0] = max(slowest[0], time.monotonic() - begun)
                if len(os.pread(fd, 100, 0)) != 100:
                    wrong.append(f"{path}: short")
                with contextlib.suppress(OSError):
                    os.pwrite(fd, b"1" * 100, 0)

    threads = [threading.Thread(target=work, args=(mount, n)) for n in range(12) for mount in (first.mnt, second.mnt)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not wrong
    assert slowest[0] < 5


HOLDER = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, lambda *_: None)
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
print("ready", flush=True)
sys.stdin.readline()
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
time.sleep(60)
"""
OPENER = "import os, sys\nprint('ready', flush=True)\nos.open(sys.argv[1], os.O_WRONLY)\nprint('open', flush=True)\n"


def test_opens_that_wait_for_a_strangers_lease(drive: Callable[..., Drive], lanes: str) -> None:
    """More of them than there are threads: the volume goes on, one that is killed ends, the others open in the end."""
    made = drive(*LEASE)
    below = made.src / "held"
    below.write_bytes(b"x")
    (made.src / "free").write_bytes(b"y")
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(program(HOLDER, below))
        openers = [stack.enter_context(program(OPENER, made.mnt / "held")) for _ in range(40)]
        time.sleep(0.3)
        begun = time.monotonic()
        for n in range(20):
            (made.mnt / "free").write_bytes(b"%d" % n)
            assert (made.mnt / "free").read_bytes() == b"%d" % n
        assert time.monotonic() - begun < 5
        openers[0].send_signal(signal.SIGINT)
        assert openers[0].wait(5) != 0
        assert all(opener.poll() is None for opener in openers[1:])
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()
        for opener in openers[1:]:
            assert opener.stdout is not None
            assert opener.stdout.readline() == "open\n"


def test_an_unmount_while_an_open_waits(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive(*LEASE)
    (made.src / "held").write_bytes(b"x")
    with program(HOLDER, made.src / "held"), program(OPENER, made.mnt / "held") as opener:
        time.sleep(0.2)
        made.expected_log.append("files are still open")
        for _ in range(2):               # to end; and now
            os.kill(made.pid, signal.SIGTERM)
            time.sleep(0.3)
        opener.wait(15)
        made.wait_gone(30)


def test_locks_need_a_descriptor_for_writing(drive: Callable[..., Drive]) -> None:
    """Which our own lease is in the way of, whoever reads."""
    made = drive(*LEASE, "locks=stack")
    (made.src / "f").write_bytes(b"x")
    with open(made.mnt / "f", "rb") as first, open(made.mnt / "f", "rb") as second:
        assert first.read() == b"x" and status(made)["coherence"]["leases"] == 1
        begun = time.monotonic()
        fcntl.lockf(first, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert time.monotonic() - begun < 2
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_other_users_with_permissions_stack(drive: Callable[..., Drive], lanes: str) -> None:
    """A lease is the daemon's to take, whoever opens; names and attributes are asked for every time."""
    made = drive(*LEASE, "permissions=stack", "allow_other")
    made.src.chmod(0o777)
    (made.src / "f").write_bytes(b"old")
    (made.src / "f").chmod(0o644)
    text = "import sys\nf = open(sys.argv[1], 'rb', 0)\nprint('ready', flush=True)\n"
    text += "sys.stdin.readline()\nprint(f.read())"
    command = [sys.executable, "-c", text, str(made.mnt / "f")]
    pipe = subprocess.PIPE
    user = {"user": 54321, "group": 54321, "extra_groups": []}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **user) as reader:  # type: ignore[call-overload]
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        assert status(made)["coherence"]["leases"] == 1
        (made.src / "f").write_bytes(b"newer")
        assert reader.communicate("\n", 10)[0] == "b'newer'\n"
    assert "not cached (permissions=stack)" in status(made)["coherence"]["names"]


def test_below_a_filter_that_sees_data(drive: Callable[..., Drive], lanes: str) -> None:
    first = drive("coherence=lease", "filter=passthrough")
    second = beside(drive, first, "coherence=lease", "filter=passthrough")
    rounds(first, second, 60)


def test_bypassed_files_need_no_lease(drive: Callable[..., Drive]) -> None:
    """The kernel reads the backing file itself: what others write is what is read."""
    made = drive("coherence=lease")
    (made.src / "f").write_bytes(b"old")
    with opened(made.mnt / "f") as fd:
        assert os.pread(fd, 3, 0) == b"old"
        if not status(made)["bypassed_opens"]:
            pytest.skip("nothing is bypassed here")
        with open(made.src / "f", "r+b") as writing:
            writing.write(b"new")
        assert os.pread(fd, 3, 0) == b"new"
        assert status(made)["coherence"]["leases"] == 0


# --- names and attributes -----------------------------------------------------------------------------------------

def test_names_changed_beside_the_mount(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive(*LEASE)
    top, below = made.mnt / "d", made.src / "d"
    below.mkdir()
    (below / "a").write_bytes(b"a")
    (below / "sub").mkdir()
    assert sorted(os.listdir(top)) == ["a", "sub"] and (top / "a").read_bytes() == b"a"
    os.stat(top / "sub")
    time.sleep(0.2)
    (below / "new").write_bytes(b"new")
    assert soon((top / "new").exists)
    os.rename(below / "a", below / "b")
    assert soon(lambda: not (top / "a").exists() and (top / "b").read_bytes() == b"a")
    os.rename(below / "new", below / "b")
    assert soon(lambda: (top / "b").read_bytes() == b"new" and not (top / "new").exists())
    os.link(below / "b", below / "c")
    assert soon(lambda: (top / "c").exists() and (top / "b").stat().st_nlink == 2)
    os.unlink(below / "b")
    assert soon(lambda: not (top / "b").exists() and (top / "c").stat().st_nlink == 1, 1.2)
    (below / "sub").rmdir()
    assert soon(lambda: not (top / "sub").exists())
    os.symlink("c", below / "link")
    assert soon(lambda: (top / "link").is_symlink() and os.readlink(top / "link") == "c")
    os.unlink(below / "link")
    os.symlink("other", below / "link")
    assert soon(lambda: os.readlink(top / "link") == "other")


def test_names_changed_on_another_mount(drive: Callable[..., Drive], lanes: str) -> None:
    first = drive(*LEASE)
    second = beside(drive, first, *LEASE)
    for n in range(30):
        (second.mnt / f"f{n}").write_bytes(b"%d" % n)
        assert soon(lambda n=n: (first.mnt / f"f{n}").exists()), n  # type: ignore[misc]
        os.rename(second.mnt / f"f{n}", second.mnt / "same")
        assert soon(lambda n=n: not (first.mnt / f"f{n}").exists()), n  # type: ignore[misc]
        assert soon(lambda n=n: (first.mnt / "same").read_bytes() == b"%d" % n), n  # type: ignore[misc]


def test_attributes_changed_beside_the_mount(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive(*LEASE)
    path, below = made.mnt / "f", made.src / "f"
    below.write_bytes(b"x" * 10)
    os.stat(path)
    time.sleep(0.2)
    os.chmod(below, 0o640)
    assert soon(lambda: path.stat().st_mode & 0o777 == 0o640)
    os.utime(below, (1000, 2000))
    assert soon(lambda: path.stat().st_mtime == 2000)
    os.chown(below, 12, 34)
    assert soon(lambda: (path.stat().st_uid, path.stat().st_gid) == (12, 34))
    os.setxattr(below, "user.a", b"1")
    assert soon(lambda: path.stat().st_ctime_ns == below.stat().st_ctime_ns)
    with open(below, "ab") as appends:   # a file that nobody has open on the mount
        appends.write(b"y")
        appends.flush()
        assert soon(lambda: path.stat().st_size == 11)
    with opened(path) as fd:             # renamed twice, and changed in between: found by whatever leads to it
        os.rename(below, made.src / "g")
        os.chmod(made.src / "g", 0o600)
        os.rename(made.src / "g", made.src / "h")
        assert soon(lambda: os.fstat(fd).st_mode & 0o777 == 0o600)
        (made.src / "elsewhere").mkdir()
        os.rename(made.src / "h", made.src / "elsewhere" / "h")
        time.sleep(0.2)
        os.chmod(made.src / "elsewhere" / "h", 0o644)
        assert soon(lambda: os.fstat(fd).st_mode & 0o777 == 0o644, 1.2), "nobody watches there: a second"


def shown(directory: Path) -> dict[int, int]:
    """The inode numbers that names lead to; 0: none."""
    paths = {n: directory / str(n) for n in range(20)}
    return {n: path.stat().st_ino if path.exists() else 0 for n, path in paths.items()}


def test_a_storm_of_names(drive: Callable[..., Drive]) -> None:
    """Names are looked up on the mount all the while they are changed beside it: in the end it shows what is there."""
    made = drive(*LEASE)
    chance = random.Random(3)
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for n in range(20):
                with contextlib.suppress(OSError):
                    os.stat(made.mnt / str(n))

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for each in lookers:
        each.start()
    try:
        for _ in range(3000):
            name, other = (made.src / str(chance.randrange(20)) for _ in range(2))
            with contextlib.suppress(OSError):
                chance.choice([name.touch, name.unlink, lambda: os.rename(name, other)])()  # noqa: B023
    finally:
        time.sleep(WINDOW)
        right = shown(made.src) == shown(made.mnt)
        stop.set()
        for each in lookers:
            each.join()
    assert right and shown(made.src) == shown(made.mnt)


# --- what it costs, and what there is of it -------------------------------------------------------------------------

def test_nothing_is_left_behind(drive: Callable[..., Drive]) -> None:
    made = drive(*LEASE)
    for n in range(50):
        (made.src / f"d{n}").mkdir()
        (made.src / f"d{n}" / "f").write_bytes(b"x")
    descriptors = Path(f"/proc/{made.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for n in range(50):
        assert (made.mnt / f"d{n}" / "f").read_bytes() == b"x"
    held = status(made)["coherence"]
    assert held["leases"] == held["files"] == 50 and held["watched_directories"] == 51
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert soon(lambda: status(made)["coherence"]["files"] == 0, 10)
    assert status(made)["coherence"]["watched_directories"] <= 1
    assert len(list(descriptors.iterdir())) <= before + 3
    shown = run(STACKFS, "status", "-v", made.mnt).stdout
    assert "cached under a lease" in shown and "watched, and believed for 60 s" in shown
    made.umount()
    made.wait_gone()
    with opened(made.src / "d0" / "f", os.O_RDWR | os.O_NONBLOCK):
        pass                             # nobody has a lease on it any more


def test_what_excludes_it(drive: Callable[..., Drive]) -> None:
    made = drive(mount=False)
    for other in ("exclusive", "writeback"):
        done = run(STACKFS, "mount", made.src, made.mnt, "-o", f"coherence=lease,{other}", check=False)
        assert done.returncode != 0 and f"'coherence=lease' and '{other}' exclude each other" in done.stderr


def test_a_filesystem_without_watches(drive: Callable[..., Drive]) -> None:
    """A mount of stackfs as the backing directory: FUSE has no leases, and who changes it may be anywhere."""
    inner = drive("bypass=off")
    outer = drive(mount=False)
    outer.src = inner.mnt
    outer.mount(*LEASE)
    try:
        (inner.mnt / "f").write_bytes(b"old")
        with opened(outer.mnt / "f") as fd:
            assert os.pread(fd, 3, 0) == b"old"
            with open(inner.mnt / "f", "r+b") as writing:
                writing.write(b"new")
            assert soon(lambda: os.pread(fd, 3, 0) == b"new")
        (inner.mnt / "f").rename(inner.mnt / "g")
        time.sleep(1.2)
        assert not (outer.mnt / "f").exists() and (outer.mnt / "g").exists()
        assert "1 s in directories that could not be watched" in status(outer)["coherence"]["names"]
    finally:
        outer.umount()
        outer.wait_gone()


# --- without a mount --------------------------------------------------------------------------------------------------

LOOKUP, OPEN, RELEASE = 1, 14, 18
FOREIGN_DATA, FOREIGN_WRITTEN, FOREIGN_ATTRIBUTES, FOREIGN_NAME = 1, 2, 3, 4


@pytest.fixture
def watching(core: Any) -> Iterator[Any]:
    from stackfs.cext.coherence import Coherence

    made = Coherence(core, long_timeout=60.0, short_timeout=1.0, lease_limit=4, watch_limit=2)
    made.start()
    time.sleep(0.05)
    yield made
    made.stop()


class Opened:
    """A file opened through the stack, without a kernel that asks for it."""

    def __init__(self, core: Any, name: bytes, flags: int = os.O_RDONLY) -> None:
        self.core = core
        self.nodeid = core.request(LOOKUP, 1, name=name).do().nodeid
        request = core.request(OPEN, self.nodeid, flags=flags).do()
        self.fh, self.keeps = request.fh, request.keep_cache

    def close(self) -> None:
        self.core.request(RELEASE, self.nodeid, fh=self.fh).do()


def test_leases_are_limited_and_the_oldest_goes(core: Any, tmp_path: Path, watching: Any) -> None:
    for n in range(8):
        (tmp_path / str(n)).write_bytes(b"x")
    files = [Opened(core, b"%d" % n) for n in range(4)]
    assert watching.counters()["leases"] == 4
    fifth = Opened(core, b"4")           # all four are open: it does without
    assert watching.counters()["leases"] == 4
    fifth.close()
    for each in files[:2]:
        each.close()
    again = Opened(core, b"1")
    assert again.keeps, "what the page cache has of it is right"
    assert not Opened(core, b"5").keeps
    counters = watching.counters()
    assert (counters["leases"], counters["files"], counters["evicted"]) == (4, 4, 1)
    with opened(tmp_path / "0", os.O_WRONLY | os.O_NONBLOCK):
        pass                             # it was the oldest that nobody had open
    with pytest.raises(BlockingIOError), opened(tmp_path / "1", os.O_WRONLY | os.O_NONBLOCK):
        pass


def test_who_opened_a_file_when_there_was_no_room_keeps_its_lease(core: Any, tmp_path: Path, watching: Any) -> None:
    """What he reads is in the page cache, too, and the lease that a later open has got keeps it right."""
    for n in range(6):
        (tmp_path / str(n)).write_bytes(b"x")
    files = [Opened(core, b"%d" % n) for n in range(4)]
    early = Opened(core, b"4")
    files[0].close()
    Opened(core, b"4").close()           # in the place of the first
    late = Opened(core, b"5")
    with pytest.raises(BlockingIOError), opened(tmp_path / "4", os.O_WRONLY | os.O_NONBLOCK):
        pass
    early.close()
    late.close()


def test_directories_are_watched_up_to_a_limit(core: Any, tmp_path: Path, watching: Any) -> None:
    nodes = []
    for n in range(4):
        (tmp_path / f"d{n}" / "inside").mkdir(parents=True)
        nodes.append(core.request(LOOKUP, 1, name=b"d%d" % n).do().nodeid)
        core.request(LOOKUP, nodes[-1], name=b"inside").do()
    counters = watching.counters()
    assert (counters["watched_directories"], counters["unwatched_directories"]) == (2, 3)


def test_listeners_hear_of_it_and_keep_the_writer_waiting(core: Any, tmp_path: Path, watching: Any) -> None:
    """The hook for filters that keep something about files: oplocks."""
    (tmp_path / "f").write_bytes(b"x")
    heard: list[tuple[int, int, bytes | None]] = []
    hold = [True]

    def listener(nodeid: int, what: int, name: bytes | None) -> bool:
        heard.append((nodeid, what, name))
        return hold[0]

    watching.on_change(listener)
    file = Opened(core, b"f")
    with program(OPENER, tmp_path / "f") as opener:
        assert soon(lambda: (file.nodeid, FOREIGN_DATA, None) in heard, 2)
        time.sleep(0.2)
        assert opener.poll() is None, "it waits"
        watching.settled(file.nodeid)
        assert opener.stdout is not None
        assert opener.stdout.readline() == "open\n"
    hold[0] = False
    run("sh", "-c", "echo y >> f; sleep 0.1; chmod 600 f; sleep 0.1; mv f g; rm g", cwd=tmp_path)
    assert soon(lambda: (1, FOREIGN_NAME, b"g") in heard, 2)
    assert {(file.nodeid, FOREIGN_WRITTEN, None), (file.nodeid, FOREIGN_ATTRIBUTES, None)} <= set(heard)


def test_listeners_hear_nothing_of_what_is_done_through_the_volume(core: Any, tmp_path: Path, watching: Any) -> None:
    (tmp_path / "f").write_bytes(b"x")
    heard: list[int] = []
    reading = Opened(core, b"f")
    watching.on_change(lambda nodeid, what, name: heard.append(what))
    writing = Opened(core, b"f", os.O_RDWR)      # its own lease is in the way, and goes
    writing.close()
    assert not heard
    watching.on_change(lambda *_: 1 / 0)         # one that fails is as if it were not there
    with opened(tmp_path / "f", os.O_RDWR):
        pass
    reading.close()
    (tmp_path / "g").touch()                     # this process is the daemon: its own events are not others'
    time.sleep(0.1)
    assert FOREIGN_NAME not in heard


def test_a_method_that_listens_can_be_taken_off(core: Any, tmp_path: Path, watching: Any) -> None:
    """Each look at a bound method is another object; and one that listens takes nobody off meanwhile."""
    (tmp_path / "f").write_bytes(b"x")

    class Listener:
        def __init__(self) -> None:
            self.heard: list[int] = []
            self.refused: list[str] = []

        def changed(self, nodeid: int, what: int, name: bytes | None) -> bool:
            self.heard.append(what)
            try:
                watching.off_change(self.changed)
            except RuntimeError as error:
                self.refused.append(str(error))
            return False

    listener = Listener()
    watching.on_change(listener.changed)
    file = Opened(core, b"f")

    def written(times: int) -> None:
        run("sh", "-c", "echo y >> f", cwd=tmp_path)
        assert soon(lambda: watching.counters()["breaks"] == times, 2)

    written(1)
    assert soon(lambda: FOREIGN_DATA in listener.heard, 2) and listener.refused
    watching.off_change(listener.changed)
    time.sleep(0.1)                      # what was noticed of the first
    told = len(listener.heard)
    assert soon(lambda: watching.counters()["leases"] == 1, 2)
    written(2)
    time.sleep(0.1)
    assert len(listener.heard) == told
    with pytest.raises(ValueError):
        watching.off_change(listener.changed)
    file.close()


def test_whoever_opens_it_for_writing_after_us_is_somebody_else(core: Any, tmp_path: Path, watching: Any) -> None:
    """An open of the volume's own, done or refused, does not stand for the next one made beside it."""
    (tmp_path / "f").write_bytes(b"x")
    heard: list[int] = []
    watching.on_change(lambda nodeid, what, name: heard.append(what))
    reading = Opened(core, b"f")
    Opened(core, b"f", os.O_RDWR).close()
    assert soon(lambda: watching.counters()["leases"] == 1, 2)
    assert FOREIGN_DATA not in heard
    with opened(tmp_path / "f", os.O_WRONLY):
        pass
    assert FOREIGN_DATA in heard
    reading.close()


HOLDS = """
import os, time, trio
from stackfs.api import *

MANIFEST = {"name": "holds", "altitude": "385900", "group": "FSFilter Activity Monitor", "filter": "Holds",
            "answers": "cacheable"}

class Holds(Filter):
    operations = (Operation(IRP_MJ_DIRECTORY_CONTROL, pre="listing"), Operation(IRP_MJ_CREATE, pre="create"))

    async def listing(self, data, objects):
        while data.path == "/slow" and os.path.exists(%(held)r):
            await trio.sleep(0.01)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def create(self, data, objects):
        if data.path == "/leased":
            time.sleep(0.5)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
"""


LISTS = "import os, sys; print('ready', flush=True); os.listdir(sys.argv[1])"


@pytest.fixture
def holds(drive: Callable[..., Drive], tmp_path: Path, lanes: str) -> Iterator[tuple[Drive, Path]]:
    """A drive with a filter that holds listings of /slow while a file is there, and opens of /leased for 0.5 s."""
    held = tmp_path / "held"
    held.touch()
    filters = filter_directory(tmp_path, holds=HOLDS % {"held": str(held)})
    yield drive(*LEASE, f"filterdir={filters}", "filter=holds"), held
    held.unlink(missing_ok=True)


def test_who_waits_in_one_directory_keeps_nobody_from_hearing_of_others(holds: tuple[Drive, Path]) -> None:
    """A listing that does not end has its directory's lock: who tells the kernel of a name there waits for it."""
    made, held = holds
    (made.src / "slow").mkdir()
    (made.src / "slow" / "known").touch()
    for n in range(6):
        (made.src / f"f{n}").write_bytes(b"old")
    os.stat(made.mnt / "slow" / "known")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(opened(made.mnt / f"f{n}")) for n in range(6)]
        assert all(os.pread(fd, 3, 0) == b"old" for fd in files)
        stack.enter_context(program(LISTS, made.mnt / "slow"))
        time.sleep(0.3)
        run("rm", made.src / "slow" / "known")
        time.sleep(0.1)
        for n, fd in enumerate(files):
            begun = time.monotonic()
            run("sh", "-c", f"printf new > {made.src}/f{n}")
            assert time.monotonic() - begun < 5, "the lease was not let go of"
            assert soon(lambda fd=fd: os.pread(fd, 3, 0) == b"new")  # type: ignore[misc]
        held.unlink()


def test_a_signal_that_comes_before_the_open_waits_for_a_lease(holds: tuple[Drive, Path]) -> None:
    """The kernel tells of it once."""
    made, _ = holds
    (made.src / "leased").write_bytes(b"x")
    with program(HOLDER, made.src / "leased"), program(OPENER, made.mnt / "leased") as opener:
        time.sleep(0.25)                 # the filter looks at it
        opener.send_signal(signal.SIGINT)
        assert opener.wait(5) != 0
