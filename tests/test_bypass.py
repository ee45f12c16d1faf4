"""The bypass lane: opens that the kernel reads and writes by itself, and what ends that."""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FLTMC, STACKFS, Drive, close_tells, needs_root, run

pytestmark = needs_root

WATCHER = '''
from stackfs.api import *

MANIFEST = {{"name": "{name}", "altitude": "38510{number}", "group": "FSFilter Activity Monitor",
             "filter": "Watcher"{more}}}


class Watcher(Filter):
    """Counts reads and writes into a file of its own."""

    operations = (
        Operation(IRP_MJ_READ, pre="pre"),
        Operation(IRP_MJ_WRITE, pre="pre"),
        Operation(IRP_MJ_FILE_SYSTEM_CONTROL, pre="pre_control"),
    )

    def pre(self, data, objects):
        with open("{log}", "a") as log:
            print(major_name(data.major), data.length, file=log)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def pre_control(self, data, objects):
        if data.control_code == FSCTL_MANAGE_BYPASS_IO and {veto} and data.path.endswith("secret"):
            return data.veto_bypass("secrets are watched")
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


@pytest.fixture
def bypassing(drive: Callable[..., Drive]) -> Drive:
    """A drive whose opens are bypassed; skips where the kernel cannot."""
    made = drive(mount=False)
    state = lane(made.mount())["bypass"]
    if state != "on":
        pytest.skip(f"bypass is {state}")
    return made


def status(drive: Drive) -> dict[str, object]:
    shown = json.loads(run(STACKFS, "status", "--json").stdout)
    found: dict[str, object] = next(
        volume["status"] | volume for volume in shown["volumes"] if volume["mountpoint"] == str(drive.mnt)
    )
    return found


def lane(drive: Drive) -> dict[str, str]:
    lanes = status(drive)["lanes"]
    assert isinstance(lanes, dict)
    return lanes


def served(drive: Drive, operation: str) -> int:
    requests = status(drive)["requests"]
    assert isinstance(requests, dict)
    return sum(counts.get(operation, 0) for counts in requests.values())


def unseen(drive: Drive, name: str) -> int:
    rows = json.loads(run(FLTMC, "instances", "-v", drive.mnt, "--json").stdout)["instances"]
    return next(int(row["bypassed"]) for row in rows if row["name"] == name)


def watcher(tmp_path: Path, number: int, *, veto: bool = False, **manifest: str) -> tuple[str, Path, Path]:
    """A drop-in that logs reads and writes: its name, its directory, its log."""
    folder = tmp_path / "drop-ins"
    folder.mkdir(exist_ok=True)
    name, log = f"watch{os.getpid()}x{number}", tmp_path / f"log{number}"
    more = "".join(f', "{key}": "{value}"' for key, value in manifest.items())
    (folder / f"{name}.py").write_text(WATCHER.format(name=name, number=number, log=log, more=more, veto=veto))
    return name, folder, log


def test_reads_and_writes_of_a_bypassed_file_do_not_come_to_us(bypassing: Drive) -> None:
    path = bypassing.mnt / "f"
    path.write_bytes(b"x" * 100_000)
    with open(path, "r+b") as file:
        assert file.read() == b"x" * 100_000
        file.seek(50_000)
        file.write(b"middle")
        file.flush()
        assert os.fstat(file.fileno()).st_size == 100_000
    assert (bypassing.src / "f").read_bytes()[50_000:50_006] == b"middle"
    assert served(bypassing, "READ") == served(bypassing, "WRITE") == 0
    assert status(bypassing)["bypassed_opens"] == 0, "closed"


def test_a_bypassed_open_is_checked_as_its_caller(drive: Callable[..., Drive]) -> None:
    """One backing id serves all opens of an inode, whoever made it: nothing but the open itself can refuse."""
    made = drive("permissions=stack", "allow_other")
    if lane(made)["bypass"] != "on":
        pytest.skip(f"bypass is {lane(made)['bypass']}")
    (made.src / "f").write_bytes(b"x" * 4096)
    os.chmod(made.src / "f", 0o644)
    code = """
import os, sys
os.setgroups([]); os.setresgid(4000, 4000, 4000); os.setresuid(4000, 4000, 4000)
for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
    try:
        fd = os.open(sys.argv[1], flags)
        print(len(os.pread(fd, 8192, 0)))
    except OSError as error:
        print(os.strerror(error.errno))
"""
    def stranger() -> list[str]:
        return run("/usr/bin/python3", "-c", code, made.mnt / "f").stdout.splitlines()

    assert stranger() == ["4096", "Permission denied", "Permission denied"]
    with open(made.mnt / "f", "r+b", buffering=0) as file:         # root's own, bypassed for writing meanwhile
        file.write(b"new")
        assert stranger() == ["4096", "Permission denied", "Permission denied"]
        os.chmod(made.src / "f", 0o600)
        assert stranger() == ["Permission denied"] * 3
        assert file.write(b"still") == 5
    os.chmod(made.src / "f", 0o646)
    assert stranger() == ["4096", "Bad file descriptor", "4096"]
    assert served(made, "READ") == served(made, "WRITE") == 0


def test_a_stranger_who_opens_first_leaves_the_backing_id_to_all(drive: Callable[..., Drive]) -> None:
    """The kernel keeps the rights of the thread that asked for an id: they are the daemon's, not the first caller's."""
    made = drive("permissions=stack", "allow_other")
    if lane(made)["bypass"] != "on":
        pytest.skip(f"bypass is {lane(made)['bypass']}")
    (made.src / "f").write_bytes(b"x" * 4096)
    os.chmod(made.src / "f", 0o644)
    code = """
import os, sys
os.setgroups([]); os.setresgid(4000, 4000, 4000); os.setresuid(4000, 4000, 4000)
fd = os.open(sys.argv[1], os.O_RDONLY)
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(["timeout", "-s", "KILL", "30", "/usr/bin/python3", "-c", code, made.mnt / "f"], cwd="/",
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:  # fmt: skip
        assert first.stdout is not None and first.stdout.readline() == "open\n"
        with open(made.mnt / "f", "r+b", buffering=0) as file:
            assert file.write(b"new") == 3
        assert (made.src / "f").read_bytes()[:4] == b"newx"
        first.communicate()
    assert served(made, "WRITE") == 0


def test_size_times_and_mappings_are_right(bypassing: Drive) -> None:
    path, below = bypassing.mnt / "f", bypassing.src / "f"
    path.write_bytes(b"")
    first = os.open(path, os.O_RDWR)
    second = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        for turn in range(1, 20):
            os.pwrite(first, b"a" * 10, (turn - 1) * 20)
            os.write(second, b"b" * 10)
            for fd in (first, second):
                seen, real = os.fstat(fd), below.stat()
                assert seen.st_size == real.st_size == turn * 20
                assert seen.st_mtime_ns == real.st_mtime_ns and seen.st_ctime_ns == real.st_ctime_ns
        with mmap.mmap(first, 0) as shared:
            shared[:4] = b"MMAP"
            assert os.pread(second, 4, 0) == b"MMAP" and below.read_bytes()[:4] == b"MMAP"
            for letter in b"xyz":                                   # each store after a flush is a change of its own
                time.sleep(0.02)
                shared[0] = letter
                seen, real = path.stat(), below.stat()
                assert seen.st_mtime_ns == real.st_mtime_ns and seen.st_ctime_ns == real.st_ctime_ns
                shared.flush()
            os.pwrite(second, b"PWRI", 0)
        os.ftruncate(first, 7)
        assert os.fstat(second).st_size == 7 == below.stat().st_size
    finally:
        os.close(first)
        os.close(second)
    with open(path, "wb"):
        pass
    assert below.stat().st_size == 0


def test_a_program_runs_from_a_bypassed_file(bypassing: Drive) -> None:
    path = bypassing.mnt / "echo"
    path.write_bytes(Path("/bin/echo").read_bytes())
    path.chmod(0o755)
    assert run(path, "hello").stdout == "hello\n"


def test_an_instance_that_attaches_sees_every_later_open(bypassing: Drive, tmp_path: Path) -> None:
    name, _, log = watcher(tmp_path, 1)
    made = bypassing
    made.umount()
    made.mount(f"filterdir={tmp_path / 'drop-ins'}")
    path = made.mnt / "f"
    path.write_bytes(b"0123456789")
    early = os.open(path, os.O_RDWR)
    try:
        run(FLTMC, "load", name, "-v", made.mnt)
        assert unseen(made, name) == 1
        assert "does not support it" in lane(made)["bypass"]
        assert os.pread(early, 4, 0) == b"0123", "the bypassed one goes on, unseen"
        assert not log.exists()
        late = os.open(path, os.O_RDWR)
        assert os.pread(late, 4, 2) == b"2345"
        assert os.pwrite(late, b"LATE", 0) == 4
        assert log.read_text().splitlines() == ["IRP_MJ_READ 4", "IRP_MJ_WRITE 4"]
        assert os.pread(early, 4, 0) == b"LATE"
        os.close(late)
    finally:
        os.close(early)
    run("sleep", "0.2")  # a release is not waited for by close(2)
    assert unseen(made, name) == 0
    run(FLTMC, "unload", name, "-v", made.mnt)
    assert lane(made)["bypass"] == "on"


def test_attach_with_bypassed_refuse(bypassing: Drive, tmp_path: Path) -> None:
    name, folder, _ = watcher(tmp_path, 2, attach_with_bypassed="refuse", attach="manual")
    bypassing.umount()
    bypassing.mount(f"filterdir={folder}")
    run(FLTMC, "load", name, "-v", bypassing.mnt)
    path = bypassing.mnt / "f"
    path.write_bytes(b"x")
    with open(path, "rb"):
        refused = run(FLTMC, "attach", name, bypassing.mnt, check=False)
        assert refused.returncode != 0 and "1 open files are bypassed" in refused.stdout + refused.stderr
        assert lane(bypassing)["bypass"] == "on", "nothing has changed"
    run("sleep", "0.2")
    run(FLTMC, "attach", name, bypassing.mnt)


def test_supporting_bypass_and_vetoing_it_for_one_file(bypassing: Drive, tmp_path: Path) -> None:
    name, folder, log = watcher(tmp_path, 3, veto=True, bypass="supported")
    bypassing.umount()
    bypassing.mount(f"filterdir={folder}", f"filter={name}")
    for file in ("plain", "secret"):
        (bypassing.src / file).write_bytes(b"0123456789")
        assert (bypassing.mnt / file).read_bytes() == b"0123456789"
    assert {line.split()[0] for line in log.read_text().splitlines()} == {"IRP_MJ_READ"}
    assert served(bypassing, "READ") >= 1
    assert lane(bypassing)["bypass"] == f"on; 1 opens were vetoed, last by {name}: secrets are watched"
    rows = json.loads(run(FLTMC, "instances", "-v", bypassing.mnt, "--json").stdout)["instances"]
    assert rows[0]["features"] == 8


def test_a_trail_without_reads_and_writes_leaves_files_bypassed(bypassing: Drive, tmp_path: Path) -> None:
    """audit registers what it watches: opens have their records, data goes past it. Watching writes, too, ends that."""
    audit = f"filter=audit,audit.directory={tmp_path}/trail,audit.key={tmp_path}/key"
    bypassing.umount()
    bypassing.mount(audit, "audit.operations=create open unlink")
    assert lane(bypassing)["bypass"] == "on"
    path = bypassing.mnt / "f"
    path.write_bytes(b"x" * 5000)
    assert path.read_bytes() == b"x" * 5000
    path.unlink()
    assert served(bypassing, "READ") == served(bypassing, "WRITE") == 0
    bypassing.umount()
    shown = run(STACKFS, "audit", "show", tmp_path / "trail", "--json", "--path", "/f").stdout.splitlines()
    assert [json.loads(each)["operation"] for each in shown] == ["create", "open", "unlink"]
    bypassing.mount(f"{audit},audit.operations=create write")
    assert lane(bypassing)["bypass"] == "off: audit sees reads or writes and does not support it"
    path.write_bytes(b"x")
    assert served(bypassing, "WRITE") == 1


def test_opening_and_closing_from_many_threads_never_fails(bypassing: Drive) -> None:
    """Every wrong combination of modes on one inode would be an EIO of open(2)."""
    path = bypassing.mnt / "f"
    path.write_bytes(b"x" * 4096)
    program = (
        "import os, sys, threading\n"
        "def work():\n"
        "    for _ in range(400):\n"
        f"        fd = os.open({str(path)!r}, os.O_RDWR)\n"
        "        assert os.pread(fd, 1, 0) == b'x'\n"
        "        os.close(fd)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(2)]
    for _ in range(5):
        run(FLTMC, "load", "passthrough", "-v", bypassing.mnt)
        run(FLTMC, "unload", "passthrough", "-v", bypassing.mnt)
    said = [worker.communicate(timeout=60) for worker in workers]
    for worker, (_, wrong) in zip(workers, said, strict=True):
        assert worker.returncode == 0 and not wrong, wrong.decode()


@pytest.mark.parametrize("options", [(), ("bypass=off",), ("bypass=off", "cache=strict"), ("lanes=irp",),
                                     ("lanes=irp", "cache=strict")], ids="/".join)
def test_a_write_by_another_user_takes_set_id_bits_away(drive: Callable[..., Drive], options: tuple[str, ...]) -> None:
    made = drive(*options, "allow_other")
    program = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY)\n"
        "print('open', flush=True); sys.stdin.readline()\n"
        "os.write(fd, b'mine')\n"
    )
    for name, chmod_later in (("before", False), ("after", True)):
        path = made.mnt / name
        path.write_bytes(b"theirs")
        path.chmod(0o777 if chmod_later else 0o6777)
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            user=12345, group=12345, extra_groups=[], text=True,
        )  # fmt: skip
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        if chmod_later:
            path.chmod(0o6777)
        writer.stdin.write("\n")
        writer.communicate(timeout=20)
        assert writer.returncode == 0
        assert stat.S_IMODE((made.src / name).stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o777


def test_bypass_off_is_off(drive: Callable[..., Drive]) -> None:
    made = drive("bypass=off", "cache=strict")
    (made.mnt / "f").write_bytes(b"x")
    assert (made.mnt / "f").read_bytes() == b"x"
    assert served(made, "READ") >= 1 and lane(made)["bypass"] == "off: asked for (bypass=off)"


def test_a_killed_daemon_leaves_bypassed_descriptors_in_use(bypassing: Drive) -> None:
    path = bypassing.mnt / "f"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDWR)
    try:
        os.kill(bypassing.pid, signal.SIGKILL)
        bypassing.wait_gone()
        assert os.pread(fd, 4, 0) == b"0123"
        with pytest.raises(OSError) as gone:
            os.stat(path)
        assert gone.value.errno in (errno.ENOTCONN, errno.ECONNABORTED), "the second: it was just going"
    finally:
        if close_tells(bypassing.src):
            with pytest.raises(OSError) as gone:
                os.close(fd)
            assert gone.value.errno == errno.ENOTCONN
        else:
            os.close(fd)
    run(STACKFS, "umount", bypassing.mnt)


def test_threads_that_open_while_one_detaches_see_no_error(bypassing: Drive) -> None:
    """Opens of one inode by a bypassed and an unbypassed way at once."""
    path = bypassing.mnt / "f"
    path.write_bytes(b"x")
    failed: list[OSError] = []

    def work() -> None:
        for _ in range(100):
            try:
                with open(path, "rb") as one, open(path, "rb") as two:
                    assert one.read() == two.read() == b"x"
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
