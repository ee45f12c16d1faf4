"""`make run`: the demo does what it says and always unmounts; with KEEP=1 the drive stays and can be ended."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "benchmarks" / "demo.py"

pytestmark = [
    pytest.mark.skipif(not DEMO.exists(), reason="needs the source tree"),
    pytest.mark.skipif(os.geteuid() != 0 and not os.access("/dev/fuse", os.W_OK), reason="this user may not mount"),
    pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("git") is None, reason="gcc or git not installed"),
    pytest.mark.timeout(240),
]


def mounts_below(folder: Path) -> list[str]:
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return [line.split()[4] for line in table.splitlines() if line.split()[4].startswith(f"{folder}/")]


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """Where the demo makes its directory. What is still mounted there in the end fails the test and is taken away."""
    yield tmp_path
    left = mounts_below(tmp_path)
    for mountpoint in left:
        by_force = ["umount", "-f", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
        subprocess.run([*by_force, mountpoint], timeout=30, check=False)
    assert left == []


def demo(top: Path, **environment: str) -> tuple[int, str]:
    """Run the demo as `make run` does; its exit code and what it printed."""
    with (top / "output").open("w+b") as output:
        code = subprocess.run(
            [sys.executable, str(DEMO)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(top), "KEEP": "", **environment}, timeout=230, check=False,
        ).returncode  # fmt: skip
    return code, (top / "output").read_text()


def test_demo(top: Path) -> None:
    code, text = demo(top)
    assert code == 0, text
    assert "integrity_check: ok" in text
    assert re.search(r"^audit +\d+ +\d+", text, re.MULTILINE), "no table of filters"
    assert re.search(r"^readonly ", text, re.MULTILINE), "readonly is not in the table of instances"
    assert "Refused, as it should be" in text
    assert "Equal, byte for byte" in text
    assert "writer: RWH breaks to RH" in text and "reader: RH breaks to nothing" in text
    assert text.count("audit verify") == 2
    assert list(top.glob("stackfs-demo-*")) == [], "the demo left its directory behind"


def test_demo_kept(top: Path) -> None:
    """KEEP=1: exit 0, still mounted, usable; the command it prints unmounts it."""
    code, text = demo(top, KEEP="1")
    assert code == 0, text
    (drive,) = mounts_below(top)
    try:
        assert "readings.db" in subprocess.run(["ls", drive], capture_output=True, text=True, timeout=30).stdout
    finally:
        found = re.search(r"^to unmount it +(.+)$", text, re.MULTILINE)
        assert found, text
        subprocess.run(shlex.split(found[1]), check=True, timeout=60)
    assert mounts_below(top) == []
    assert (Path(drive).parent / "files" / "readings.db").exists()


def test_demo_that_fails(top: Path) -> None:
    """A step fails: one line says which, the exit code is 1, nothing stays mounted."""
    (top / "bin").mkdir()
    git = top / "bin" / "git"
    git.write_text("#!/bin/sh\necho 'this git does not work'\nexit 3\n")
    git.chmod(0o755)
    code, text = demo(top, PATH=f"{top / 'bin'}:{os.environ['PATH']}")
    assert code == 1, text
    assert "this git does not work" in text
    assert re.search(r"The demo failed: `git init .*` failed with exit code 3", text)
    assert mounts_below(top) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_demo_stopped(top: Path, number: signal.Signals) -> None:
    """A signal in the middle of the work: unmounted, exit code 1."""
    with (top / "output").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, str(DEMO)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(top), "KEEP": ""},
        )  # fmt: skip
        try:
            end = time.monotonic() + 60
            while not mounts_below(top) and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(1.5)
            process.send_signal(number)
            assert process.wait(100) == 1, (top / "output").read_text()
        finally:
            process.kill()
            process.wait()
    assert f"stopped by {number.name}" in (top / "output").read_text()


def test_demo_says_what_is_missing(top: Path) -> None:
    """No gcc: one line with the package, nothing mounted, nothing made."""
    (top / "bin").mkdir()
    code, text = demo(top, PATH=str(top / "bin"))
    assert code == 1
    assert text.splitlines() == ["make run: gcc is missing: apt-get install gcc"]
    assert list(top.glob("stackfs-demo-*")) == []
