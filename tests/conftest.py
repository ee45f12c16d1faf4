"""Fixtures: real mounts in temporary directories, cleaned up whatever happens.

`drive` makes mounted volumes through the command line, as a user would; when the test ends each one must unmount, its
daemon must end, and its log must hold no line at WARNING or above that the test did not announce (Drive.expected_log).
`core` is a volume without a mount: requests made by hand, through the same stack and base.

The verifier is on in every test, also without a mount. A report that the test has not announced fails it:
`@pytest.mark.verifier_errors("regular expression", ...)` for tests of filters that break the rules on purpose (and
Drive.expected_log where they are mounted).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from encryption_drive import Vault
    from filter_bench import Bench

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
STACKFS = str(BIN / "stackfs")
FLTMC = str(BIN / "fltmc")
CLONE_NEWNS = 0x20000

OF_A_MACHINE = ("/run/stackfs", "/var/log/stackfs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "verifier_errors(*patterns): reports of the verifier that match are expected")
    with_a_machine_of_its_own(config)


def with_a_machine_of_its_own(config: pytest.Config) -> None:
    """Of several processes that run tests beside each other each has mounts, sockets and logs of its own: a command
    that goes to every running volume goes to those of its own tests."""
    if not hasattr(config, "workerinput") or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "no mount namespace for the tests of this process")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for directory in OF_A_MACHINE:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "stackfs-tests", directory], check=True)


@pytest.fixture(autouse=True)
def verifier_reports(request: pytest.FixtureRequest) -> Iterator[None]:
    """The verifier is on, and may find nothing but what the test announces."""
    from stackfs import verifier

    verifier.enable(False)               # what an earlier test left is not this one's
    verifier.enable(True)
    verifier.take()
    yield
    expected = [pattern for mark in request.node.iter_markers("verifier_errors") for pattern in mark.args]
    found = [str(each) for each in verifier.take()]
    unexpected = [each for each in found if not any(re.search(pattern, each) for pattern in expected)]
    assert not unexpected, "FILTER VERIFIER ERROR: " + "\n".join(unexpected)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def filter_directory(top: Path, **drop_ins: str) -> Path:
    """A new filter directory in `top`, with these drop-ins: a text for each name."""
    made = top / "filters"
    made.mkdir()
    made.chmod(0o755)
    for name, text in drop_ins.items():
        (made / f"{name}.py").write_text(text)
    return made


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), of which Python has only the plain mode."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def run(
    *command: str | Path, timeout: float = 60, check: bool = True, **keywords: object
) -> subprocess.CompletedProcess[str]:
    """Run a program outside every mount; kill it when it hangs. Output as text."""
    keywords.setdefault("cwd", "/")
    done = subprocess.run(
        ["timeout", "-s", "KILL", str(timeout), *map(str, command)],
        capture_output=True, text=True, errors="surrogateescape", check=False, **keywords,
    )  # type: ignore[call-overload]  # fmt: skip
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def close_tells(path: Path) -> bool:
    """Whether close(2) asks the daemon: the filesystem that backs the drive may keep something back until then."""
    kind = run("stat", "-f", "-c", "%T", path).stdout.strip()
    return kind not in ("ext2/ext3", "xfs", "btrfs", "f2fs", "tmpfs")


def is_mounted(path: Path | str) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


class Drive:
    """One mounted volume: `mnt` is the mountpoint, `src` the backing directory."""

    def __init__(self, top: Path, number: int) -> None:
        self.name = f"t{os.getpid()}-{number}"
        self.src = top / f"src{number}"
        self.mnt = top / f"{self.name}"
        self.expected_log: list[str] = []
        """Regular expressions of log lines at WARNING or above that are expected."""
        self.verifier = True
        self.src.mkdir(exist_ok=True)
        self.mnt.mkdir()
        self.log = Path("/var/log/stackfs") / f"{self.name}.log"
        self.pid = 0

    def mount(self, *options: str, **keywords: object) -> Drive:
        if self.verifier:
            options = ("verifier", *options)
        joined = [part for option in options for part in ("-o", option)]
        run(STACKFS, "mount", self.src, self.mnt, *joined, **keywords)
        self.note_pid()
        return self

    def note_pid(self) -> None:
        """The daemon's, out of its log."""
        assert is_mounted(self.mnt)
        for line in reversed(self.log.read_text().splitlines()):
            if "event=mounted" in line:
                self.pid = int(re.search(r"pid=(\d+)", line).group(1))  # type: ignore[union-attr]
                break

    def umount(self) -> None:
        run(STACKFS, "umount", self.mnt)
        assert not is_mounted(self.mnt)

    def fltmc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(FLTMC, *arguments, check=check)

    def alive(self) -> bool:
        """Whether any thread of the daemon is there; one that has ended may still wait for its parent."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            ended = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            return not ended or len(os.listdir(f"/proc/{self.pid}/task")) > 1
        return False

    def wait_gone(self, seconds: float = 60) -> None:
        """Until the daemon has ended."""
        end = time.monotonic() + seconds
        while self.alive():
            assert time.monotonic() < end, f"the daemon of {self.mnt} has not ended"
            time.sleep(0.02)

    def troubles(self) -> list[str]:
        """Log lines at WARNING or above that nobody announced."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        bad = [line for line in lines if re.search(r"level=(warning|error|critical)", line)]
        return [line for line in bad if not any(re.search(pattern, line) for pattern in self.expected_log)]

    def clean_up(self) -> list[str]:
        """Everything back to how it was; what was wrong."""
        wrong = []
        if is_mounted(self.mnt):
            done = run(STACKFS, "umount", self.mnt, check=False, timeout=30)
            if is_mounted(self.mnt):
                wrong.append(f"{self.mnt} does not unmount: {done.stderr}")
                if self.pid and self.alive():
                    os.kill(self.pid, signal.SIGKILL)
                subprocess.run(["umount", "-f", "-l", str(self.mnt)], capture_output=True, check=False)
        if self.pid:
            try:
                self.wait_gone()
            except AssertionError as error:
                wrong.append(str(error))
                os.kill(self.pid, signal.SIGKILL)
        wrong += self.troubles()
        self.log.unlink(missing_ok=True)
        return wrong


@pytest.fixture(params=["auto", "irp"])
def lanes(request: pytest.FixtureRequest) -> str:
    """Runs a test once on each lane: what it mounts gets this `-o lanes=`."""
    lane: str = request.param
    return lane


@pytest.fixture
def drive(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Drive]]:
    """drive("filter=audit", ...) mounts a fresh volume with these options and returns a Drive. As root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    top = tmp_path_factory.mktemp("drive")
    top.chmod(0o755)
    for above in top.parents:                       # for tests that become other users
        if above == Path(tempfile.gettempdir()):
            break
        above.chmod(0o755)
    drives: list[Drive] = []
    lane = [f"lanes={request.getfixturevalue('lanes')}"] if "lanes" in request.fixturenames else []

    def make(*options: str, mount: bool = True, **keywords: object) -> Drive:
        made = Drive(top, len(drives))
        drives.append(made)
        options = (*lane, *options)
        return made.mount(*options, **keywords) if mount else made

    yield make
    wrong = [line for made in drives for line in made.clean_up()]
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def vault(drive: Callable[..., Drive], tmp_path: Path) -> Iterator[Callable[..., Vault]]:
    """vault("cache=strict", ...) makes an encrypted volume (make_volume) and mounts it; mount=False: does not."""
    from encryption_drive import PHRASE, Vault, make_volume

    passfile = tmp_path / "phrase"
    passfile.write_bytes(PHRASE + b"\n")

    def make(*options: str, mount: bool = True, **settings: Any) -> Vault:
        made = drive(mount=False)
        make_volume(made.src, **settings)
        it = Vault(made, passfile)
        it.options = options
        return it.mount() if mount else it

    yield make


@pytest.fixture
def core(tmp_path: Path) -> Iterator[object]:
    """A volume over tmp_path without a mount (stackfs.cext.python_requests.Volume)."""
    from stackfs.cext.python_requests import Volume

    volume = Volume(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    yield volume
    volume.close()


@pytest.fixture
def port_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the runtime directories of root and of all users are made, for tests of ports: others can reach it."""
    from stackfs import runtime_directory

    with tempfile.TemporaryDirectory(prefix="stackfs-test-") as top:
        os.chmod(top, 0o755)
        (Path(top) / "run").mkdir(mode=0o755)
        monkeypatch.setattr(runtime_directory, "ROOT", f"{top}/run/stackfs")
        monkeypatch.setattr(runtime_directory, "USERS", f"{top}/user")
        if os.geteuid() != 0:
            monkeypatch.setattr(runtime_directory, "path", lambda: f"{top}/run/stackfs")
        yield Path(top) / "run"


@pytest.fixture
def often_switched() -> Iterator[None]:
    """Python's threads take turns every few microseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The backing directory of `core`."""
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.fixture(scope="session", autouse=True)
def no_leftovers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A mount of stackfs that this run left behind below its temporary directory fails it."""
    yield
    below = f"{tmp_path_factory.getbasetemp()}/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    left = [line.split()[4] for line in lines if " - fuse.stackfs " in line and line.split()[4].startswith(below)]
    for path in left:
        subprocess.run(["umount", "-l", path], capture_output=True, check=False)
    assert not left, f"left mounted: {left}"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A filter manager without a mount; what it imported is forgotten afterwards."""
    from filter_bench import Bench

    before = set(sys.modules)
    yield Bench(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("stackfs_filter_"):
            del sys.modules[name]
