"""A kernel that knows very many inodes: what each costs the daemon, and that descriptors do not run out."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import STACKFS, Drive, needs_root, run

pytestmark = needs_root

BYTES_EACH = 300
FILES_EACH = 2000           # in one directory
DESCRIPTORS = 600           # what the daemon may open: far fewer than there are directories

POPULATE = """
import os, sys
top, first, last, each = sys.argv[1], *map(int, sys.argv[2:])
for number in range(first, last):
    if number % each == 0:
        os.mkdir(f"{top}/{number // each:016d}")
        os.chdir(f"{top}/{number // each:016d}")
    os.close(os.open(f"{number:016d}", os.O_CREAT | os.O_WRONLY))
"""

READ_SOME = """
import os, random, sys
top, count, each = sys.argv[1], *map(int, sys.argv[2:])
choose = random.Random(7)
for _ in range(4000):
    number = choose.randrange(count)
    path = f"{top}/{number // each:016d}/{number:016d}"
    assert os.stat(path).st_size == 0, path
    with open(path, "r+b") as file:
        assert file.read() == b"", path
    os.utime(path, (number, number))
    assert os.stat(path).st_mtime == number, path
"""


def status(drive: Drive) -> dict[str, int]:
    volumes = json.loads(run(STACKFS, "status", "--json", check=False).stdout)["volumes"]
    return dict(next(each["status"] for each in volumes if each["mountpoint"] == str(drive.mnt)))


def resident(pid: int) -> int:
    """Bytes."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_inodes_the_kernel_knows(drive: Callable[..., Drive], count: int, record_property: Callable[..., None]) -> None:
    made = drive(mount=False)
    each = min(FILES_EACH, count // 500)        # as many directories as the daemon has descriptors, and more
    (made.src / "warm").mkdir()
    (made.src / "many").mkdir()
    python = (sys.executable, "-I", "-c")
    run(*python, POPULATE, made.src / "warm", "0", "5000", "1000", timeout=100)
    run(*python, POPULATE, made.src / "many", "0", str(count), str(each), timeout=900)
    made.mount(preexec_fn=limited)
    run("find", made.mnt / "warm", "-size", "+1", timeout=100)
    known, before = status(made)["known_inodes"], resident(made.pid)
    command = ["find", made.mnt / "many", "-type", "f", "-size", "-1"]
    with subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE) as find:
        assert find.stdout is not None
        names = sum(1 for _ in find.stdout)
    assert find.returncode == 0 and names == count
    seen = status(made)
    gained = seen["known_inodes"] - known
    assert gained >= count, "the kernel has dropped some: no measurement"
    cost = (resident(made.pid) - before) / gained
    record_property("bytes_each", cost)
    print(f"{gained:,} inodes, {cost:.0f} bytes of resident memory each")
    assert cost <= BYTES_EACH
    assert seen["cached_descriptors"] <= DESCRIPTORS // 2
    assert len(os.listdir(f"/proc/{made.pid}/fd")) < DESCRIPTORS
    run(*python, READ_SOME, made.mnt / "many", str(count), str(each), timeout=100)
    assert len(os.listdir(f"/proc/{made.pid}/fd")) < DESCRIPTORS
