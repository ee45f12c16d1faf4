"""Real programs and system calls on a mounted drive, for the operations that pyfuse3 has no handler for.

What a program sees is compared with the same on a plain directory of the same filesystem.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import STACKFS, Drive, needs_root, run

pytestmark = needs_root


@pytest.fixture
def mounted(drive: Callable[..., Drive], lanes: str) -> Drive:
    return drive("filter=passthrough")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return tmp_path


def both(mounted: Drive, plain: Path, act: Callable[[Path], Any]) -> Any:
    """act(directory) gives the same on the mount and on the plain directory; what it gives."""
    ours, theirs = act(mounted.mnt), act(plain)
    assert ours == theirs
    return ours


def shown(drive: Drive) -> dict[str, Any]:
    """What `stackfs status` says of it."""
    volumes = json.loads(run(STACKFS, "status", "--json", "-v", drive.mnt).stdout)["volumes"]
    return {**volumes[0]["status"], "pid": volumes[0]["pid"]}


def errno_of(act: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def python(code: str, *arguments: object, **keywords: Any) -> subprocess.Popen[str]:
    """A program of its own; its lines are read with said()."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", **keywords,
    )  # fmt: skip


def said(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


# ---- space and holes ------------------------------------------------------------------------------------------------


def test_fallocate_makes_keeps_punches_and_zeroes(mounted: Drive, plain: Path) -> None:
    content = os.urandom(1 << 20)

    def act(directory: Path) -> Any:
        path = directory / "file"
        path.write_bytes(content)
        sizes = []
        for arguments in (
            ["-l", "2MiB"],
            ["-n", "-o", "2MiB", "-l", "1MiB"],
            ["-p", "-o", "64KiB", "-l", "128KiB"],
            ["-z", "-o", "512KiB", "-l", "64KiB"],
        ):
            run("fallocate", *arguments, path)
            sizes.append((path.stat().st_size, path.stat().st_blocks))
        return sizes, path.read_bytes(), holes(path)

    _, data, found = both(mounted, plain, act)
    assert data[64 << 10 : 192 << 10] == bytes(128 << 10)
    assert (64 << 10, 192 << 10) in found


def holes(path: Path) -> list[tuple[int, int]]:
    """Where the holes are, as SEEK_HOLE and SEEK_DATA have it."""
    found, at = [], 0
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        while at < size and (start := os.lseek(fd, at, os.SEEK_HOLE)) < size:
            try:
                at = os.lseek(fd, start, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                at = size
            found.append((start, at))
    finally:
        os.close(fd)
    return found


def test_cp_keeps_holes(mounted: Drive, plain: Path) -> None:
    def act(directory: Path) -> Any:
        with (directory / "sparse").open("wb") as file:
            file.write(b"a" * 5000)
            file.seek(3 << 20)
            file.write(b"b" * 5000)
            file.truncate(8 << 20)
        run("cp", "--sparse=always", directory / "sparse", directory / "always")
        run("cp", "--sparse=auto", "--reflink=never", directory / "sparse", directory / "auto")
        assert (directory / "always").read_bytes() == (directory / "auto").read_bytes()
        # Blocks are compared loosely: the two copies need not lie equally on the disk.
        paths = [directory / name for name in ("sparse", "always", "auto")]
        return [(holes(path), path.stat().st_blocks < 200) for path in paths]

    assert all(small for _, small in both(mounted, plain, act))


def test_posix_fallocate_and_its_errors(mounted: Drive, plain: Path) -> None:
    def act(directory: Path) -> Any:
        with (directory / "file").open("w+b") as file:
            ranges = ((0, 100), (5, 0), (-1, 5), (0, 1 << 62))
            results = [errno_of(os.posix_fallocate, file.fileno(), *where) for where in ranges]
            results.append(os.fstat(file.fileno()).st_size)
        with (directory / "file").open("rb") as file:
            results.append(errno_of(os.posix_fallocate, file.fileno(), 0, 10))
        return results

    both(mounted, plain, act)


def test_fallocate_by_another_user_takes_set_id_bits(mounted: Drive, plain: Path, lanes: str) -> None:
    mounted.umount()
    mounted.mount(f"lanes={lanes}", "filter=passthrough", "allow_other")
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR)
        os.posix_fallocate(fd, 0, 100000)
        print(oct(os.fstat(fd).st_mode))
    """

    def act(directory: Path) -> str:
        path = directory / "file"
        path.write_bytes(b"x")
        path.chmod(0o6777)
        for parent in (directory, *directory.parents[:3]):
            if parent.name:
                parent.chmod(parent.stat().st_mode | 0o055)
        program = python(code, path, user=1000, group=1000, extra_groups=[])
        program.communicate()
        return oct(path.stat().st_mode)

    assert both(mounted, plain, act) == "0o100777"


# ---- copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["filter=null"], ["filter=passthrough"]])
def test_cp_copies_with_and_without_filters_of_data(
    drive: Callable[..., Drive], lanes: str, options: list[str]
) -> None:
    """What the kernel offers to copy inside (copy_file_range) or has to read and write: the copy is right."""
    made = drive(*options)
    content = os.urandom(3 << 20)
    (made.mnt / "from").write_bytes(content)
    run("cp", "--reflink=auto", made.mnt / "from", made.mnt / "to")
    assert (made.mnt / "to").read_bytes() == (made.src / "to").read_bytes() == content
    with (made.mnt / "from").open("rb") as source, (made.mnt / "to").open("r+b") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 100000, 5, 7) > 0
    assert (made.mnt / "to").read_bytes()[7:2007] == content[5:2005]


def test_a_reflink_is_refused_where_the_filesystem_has_none(mounted: Drive) -> None:
    """FICLONE never reaches a FUSE filesystem."""
    (mounted.mnt / "from").write_bytes(b"x" * 8192)
    done = run("cp", "--reflink=always", mounted.mnt / "from", mounted.mnt / "to", check=False)
    assert done.returncode != 0
    assert "Operation not supported" in done.stderr


# ---- O_TMPFILE ------------------------------------------------------------------------------------------------------


def give_name(fd: int, path: Path) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, which os.link uses only when it is given a directory's descriptor."""
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=0, follow_symlinks=True)


def test_a_file_without_a_name_gets_one(mounted: Drive, plain: Path) -> None:
    def act(directory: Path) -> Any:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o640)
        os.write(fd, b"hello")
        before = (os.fstat(fd).st_nlink, os.listdir(directory))
        give_name(fd, directory / "named")
        os.write(fd, b", world")
        after = os.fstat(fd)
        os.close(fd)
        return before, after.st_nlink, after.st_mode, after.st_size, (directory / "named").read_bytes()

    assert both(mounted, plain, act)[4] == b"hello, world"
    assert (mounted.src / "named").read_bytes() == b"hello, world"


def test_a_file_without_a_name_leaves_nothing(mounted: Drive, plain: Path) -> None:
    def act(directory: Path) -> Any:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
        os.write(fd, b"x" * 100000)
        os.lseek(fd, 0, 0)
        content = os.read(fd, 200000)
        linked = errno_of(give_name, fd, directory / "named")
        os.close(fd)
        return content, linked, os.listdir(directory)

    assert both(mounted, plain, act)[2] == []


def test_a_file_without_a_name_is_bypassed(drive: Callable[..., Drive]) -> None:
    """As one that is created with a name: the kernel reads and writes it, before and after it gets a name."""
    made = drive()
    if shown(made)["lanes"]["bypass"] != "on":
        pytest.skip("bypass is off")
    fd = os.open(made.mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert shown(made)["bypassed_opens"] == 1
    os.write(fd, b"hello")
    give_name(fd, made.mnt / "named")
    with (made.mnt / "named").open("r+b") as again:
        assert again.read() == b"hello"
        again.write(b", world")
    assert os.pread(fd, 20, 0) == b"hello, world"
    os.close(fd)
    assert (made.src / "named").read_bytes() == b"hello, world"
    requests = shown(made)["requests"]["device"]
    assert requests["TMPFILE"] == 1 and "READ" not in requests and "WRITE" not in requests


def test_a_file_without_a_name_only_for_writing_in_the_cache(drive: Callable[..., Drive], lanes: str) -> None:
    """Writing a part of a page back may read the rest of it."""
    made = drive("writeback")
    fd = os.open(made.mnt, os.O_TMPFILE | os.O_WRONLY, 0o600)
    os.pwrite(fd, b"x" * 9000, 0)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.pwrite(fd, b"yy", 5000)
    give_name(fd, made.mnt / "named")
    os.close(fd)
    assert (made.mnt / "named").read_bytes() == b"x" * 5000 + b"yy" + b"x" * 3998


# ---- flags of inodes ------------------------------------------------------------------------------------------------


def test_chattr_and_lsattr(mounted: Drive, plain: Path) -> None:
    def act(directory: Path) -> Any:
        path, below = directory / "file", directory / "below"
        path.write_bytes(b"x")
        below.mkdir()
        shown = []
        run("chattr", "+dA", path, below)
        shown.append(run("lsattr", "-d", path, below).stdout.replace(str(directory), ""))
        run("chattr", "+i", path)
        try:
            refused = [errno_of(path.write_bytes, b"y"), errno_of(path.unlink)]
        finally:
            run("chattr", "-i", "-dA", path)
        shown.append(run("lsattr", "-d", path).stdout.replace(str(directory), ""))
        path.write_bytes(b"y")
        return shown, refused

    both(mounted, plain, act)


def test_a_file_is_no_terminal(mounted: Drive) -> None:
    (mounted.mnt / "file").write_bytes(b"x")
    with (mounted.mnt / "file").open("rb") as file:
        assert not os.isatty(file.fileno())
        assert errno_of(fcntl.ioctl, file, 0x80087601, bytes(8)) == "ENOTTY"
        assert errno_of(fcntl.ioctl, file, 0xC008F501, bytes(8)) == "ENOTTY"


# ---- locks ----------------------------------------------------------------------------------------------------------

LOCKER = """
    import errno, fcntl, os, signal, struct, sys
    signal.signal(signal.SIGUSR1, lambda *_: (_ for _ in ()).throw(InterruptedError(4, "signal")))
    fd = os.open(sys.argv[1], os.O_RDWR)
    print("ready")
    for line in sys.stdin:
        try:
            print(eval(line))
        except OSError as error:
            print(errno.errorcode[error.errno])
"""


class Locker:
    """A program that does what it is told with one open file, and says what came of it."""

    def __init__(self, path: Path) -> None:
        self.program = python(LOCKER, path)
        assert said(self.program) == "ready"

    def tell(self, what: str) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(what + "\n")
        self.program.stdin.flush()

    def ask(self, what: str) -> str:
        self.tell(what)
        return said(self.program)


@pytest.fixture
def lockers() -> Iterator[Callable[[Path], Locker]]:
    made: list[Locker] = []

    def make(path: Path) -> Locker:
        made.append(Locker(path))
        return made[-1]

    yield make
    for locker in made:
        locker.program.kill()
        locker.program.communicate()


@pytest.fixture
def locking(drive: Callable[..., Drive], lanes: str) -> Drive:
    made = drive("filter=passthrough", "locks=stack")
    (made.mnt / "file").write_bytes(b"x" * 100)
    return made


TRY = "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, {}, {})"
WAIT = "fcntl.lockf(fd, fcntl.LOCK_EX, {}, {})"
GIVE_UP = "fcntl.lockf(fd, fcntl.LOCK_UN, {}, {})"
WHO = "struct.unpack('hhqqi', fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack('hhqqi', fcntl.F_WRLCK, 0, {}, {}, 0))[:28])"


def test_two_programs_lock_ranges(locking: Drive, lockers: Any) -> None:
    one, two = lockers(locking.mnt / "file"), lockers(locking.mnt / "file")
    beside = lockers(locking.src / "file")
    assert one.ask(TRY.format(10, 0)) == "None"
    assert two.ask(TRY.format(10, 5)) == "EAGAIN"
    assert two.ask(TRY.format(10, 10)) == "None"
    assert beside.ask(TRY.format(1, 5)) == "EAGAIN"              # the backing file itself is locked
    assert two.ask(WHO.format(0, 5)) == str((fcntl.F_WRLCK, 0, 0, 10, one.program.pid))
    assert one.ask("os.close(os.dup(fd))") == "None"             # any close of the file ends a process' locks
    assert two.ask(TRY.format(10, 0)) == "None"


def test_a_lock_that_waits_gets_it_or_is_interrupted(locking: Drive, lockers: Any) -> None:
    one, two = lockers(locking.mnt / "file"), lockers(locking.mnt / "file")
    assert one.ask(TRY.format(0, 0)) == "None"
    two.tell(WAIT.format(0, 0))
    time.sleep(0.2)
    two.program.send_signal(signal.SIGUSR1)
    assert said(two.program) == "EINTR"
    two.tell(WAIT.format(0, 0))
    time.sleep(0.2)
    assert one.ask(GIVE_UP.format(0, 0)) == "None"
    assert said(two.program) == "None"
    assert one.ask(TRY.format(0, 0)) == "EAGAIN"
    two.program.kill()                                           # its end releases what it had
    two.program.wait()
    end = time.monotonic() + 10
    while one.ask(TRY.format(0, 0)) != "None":
        assert time.monotonic() < end


def test_a_killed_waiter_is_gone_at_once(locking: Drive, lockers: Any) -> None:
    one, two = lockers(locking.mnt / "file"), lockers(locking.mnt / "file")
    assert one.ask(TRY.format(0, 0)) == "None"
    two.tell(WAIT.format(0, 0))
    time.sleep(0.2)
    two.program.kill()
    two.program.wait(timeout=5)
    assert one.ask(GIVE_UP.format(0, 0)) == "None"
    third = lockers(locking.mnt / "file")
    assert third.ask(TRY.format(0, 0)) == "None"


def test_a_lock_beside_the_mount_is_waited_for(locking: Drive, lockers: Any) -> None:
    one, beside = lockers(locking.mnt / "file"), lockers(locking.src / "file")
    assert beside.ask(TRY.format(0, 0)) == "None"
    one.tell(WAIT.format(0, 0))
    time.sleep(0.2)
    assert beside.ask(GIVE_UP.format(0, 0)) == "None"
    assert said(one.program) == "None"


def test_flock_and_open_file_description_locks(locking: Drive, lockers: Any) -> None:
    one, two = lockers(locking.mnt / "file"), lockers(locking.mnt / "file")
    assert one.ask("fcntl.flock(fd, fcntl.LOCK_EX)") == "None"
    assert two.ask("fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)") == "EAGAIN"
    two.tell("fcntl.flock(fd, fcntl.LOCK_SH)")
    time.sleep(0.1)
    assert one.ask("fcntl.flock(fd, fcntl.LOCK_UN)") == "None"
    assert said(two.program) == "None"
    ofd = "len(fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 10, 0)))"     # F_OFD_SETLK
    assert one.ask(ofd) == "32"
    assert two.ask(ofd) == "EAGAIN"
    assert one.ask("os.close(os.dup(fd))") == "None"             # not a process': it stays
    assert two.ask(ofd) == "EAGAIN"
    assert one.ask("os.close(fd)") == "None"
    end = time.monotonic() + 10                                  # RELEASE is asynchronous
    while two.ask(ofd) != "32":
        assert time.monotonic() < end


def test_a_detach_does_not_wait_for_a_lock_that_waits(locking: Drive, lockers: Any) -> None:
    one, two = lockers(locking.mnt / "file"), lockers(locking.mnt / "file")
    assert one.ask(TRY.format(0, 0)) == "None"
    two.tell(WAIT.format(0, 0))
    time.sleep(0.2)
    locking.fltmc("detach", "passthrough", str(locking.mnt))
    locking.fltmc("attach", "passthrough", str(locking.mnt))
    assert one.ask(GIVE_UP.format(0, 0)) == "None"
    assert said(two.program) == "None"


@pytest.mark.parametrize(
    ("toml", "options", "locks"),
    [
        ("passthrough", [], "stack"),
        ("passthrough", ["locks=kernel"], "kernel"),
        ("null", ["filter=passthrough"], "kernel"),
        ("null", ["locks=stack"], "stack"),
    ],
)
def test_who_keeps_locks(
    drive: Callable[..., Drive], tmp_path: Path, lockers: Any, toml: str, options: list[str], locks: str
) -> None:
    """The stack where the TOML names an instance that wants to see them; the option wins."""
    made = drive(mount=False)
    description = tmp_path / "volume.toml"
    description.write_text(f'[volume]\nname = "{made.name}"\nsource = "{made.src}"\n[[instance]]\nfilter = "{toml}"\n')
    joined = [part for option in options for part in ("-o", option)]
    run(STACKFS, "mount", description, made.mnt, *joined)
    made.pid = shown(made)["pid"]
    assert shown(made)["locks"] == locks
    (made.mnt / "file").write_bytes(b"x")
    one, beside = lockers(made.mnt / "file"), lockers(made.src / "file")
    assert one.ask(TRY.format(0, 0)) == "None"
    assert beside.ask(TRY.format(0, 0)) == ("EAGAIN" if locks == "stack" else "None")


def test_sqlite_with_locks_of_the_stack(locking: Drive) -> None:
    """Two programs count up in one database; no increment is lost."""
    code = """
        import sqlite3, sys
        base = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
        for _ in range(50):
            base.execute("begin immediate")
            base.execute("update counter set value = value + 1")
            base.execute("commit")
    """
    import sqlite3

    path = locking.mnt / "base"
    base = sqlite3.connect(path)
    base.execute("create table counter(value)")
    base.execute("insert into counter values (0)")
    base.commit()
    base.close()
    programs = [python(code, path) for _ in range(2)]
    assert [program.communicate() and program.returncode for program in programs] == [0, 0]
    base = sqlite3.connect(path)
    assert base.execute("select value from counter").fetchone() == (100,)
    base.close()
