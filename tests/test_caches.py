"""What the kernel keeps: exclusive, writeback, and who notices changes made elsewhere."""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import STACKFS, Drive, filter_directory, needs_root, run

pytestmark = needs_root


def test_a_change_beside_the_mount_shows_after_a_second(drive: Callable[..., Drive]) -> None:
    made = drive("bypass=off")
    path, below = made.mnt / "f", made.src / "f"
    path.write_text("old")
    assert path.read_text() == "old"
    time.sleep(1.1)
    below.write_text("newer")
    time.sleep(1.1)
    assert path.read_text() == "newer" and path.stat().st_size == 5
    below.unlink()
    time.sleep(1.1)
    assert not path.exists()


def test_an_open_sees_what_was_changed_beside_the_mount(drive: Callable[..., Drive], lanes: str) -> None:
    """At once, and without a stat(2) that would tell of it; with `exclusive` it need not."""

    def content(path: Path) -> bytes:
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.pread(fd, 100, 0)
        finally:
            os.close(fd)

    for options, expected in ((("bypass=off",), b"after."), (("bypass=off", "exclusive"), b"before")):
        made = drive(*options)
        path, below = made.mnt / "f", made.src / "f"
        path.write_text("before")
        assert content(path) == b"before"
        with open(below, "r+b") as file:
            file.write(b"after.")
        assert content(path) == expected, options


def test_exclusive_trusts_what_it_knows(drive: Callable[..., Drive]) -> None:
    made = drive("exclusive", "bypass=off")
    path, below = made.mnt / "f", made.src / "f"
    path.write_bytes(b"x" * 100)
    assert path.stat().st_size == 100
    os.truncate(below, 7)
    time.sleep(1.2)
    assert path.stat().st_size == 100, "nobody asks: nothing else was to change it"
    path.write_bytes(b"y" * 50)
    assert path.stat().st_size == 50 == below.stat().st_size


TELLS_LENGTHS = '''
from stackfs.api import FLT_PREOP_SUCCESS_NO_CALLBACK, IRP_MJ_READ, Filter, Operation

MANIFEST = {
    "name": "lengths", "altitude": "365100", "group": "FSFilter Activity Monitor",
    "options": {"log": {"type": "path", "required": True, "doc": "Where to."}},
}

class Lengths(Filter):
    operations = (Operation(IRP_MJ_READ, pre="pre_read"),)

    def pre_read(self, data, objects):
        with open(self.options["log"], "a") as log:
            print(data.length, file=log)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


def test_the_kernel_reads_ahead_in_large_requests(drive: Callable[..., Drive], lanes: str, tmp_path: Path) -> None:
    """They cost a filter less, and the next is filtered while the program still has the last."""
    filters = filter_directory(tmp_path, lengths=TELLS_LENGTHS)
    log = tmp_path / "log"
    made = drive(f"filterdir={filters}", "filter=lengths", f"lengths.log={log}")
    (made.src / "f").write_bytes(bytes(8 << 20))
    with open(made.mnt / "f", "rb", buffering=0) as file:
        while file.read(1 << 16):
            pass
    lengths = [int(line) for line in log.read_text().split()]
    assert max(lengths) == 1 << 20 and len(lengths) < 16, lengths


def test_writeback_keeps_sizes_and_appends_right(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive("writeback")
    path, below = made.mnt / "f", made.src / "f"
    chance, model = random.Random(7), bytearray()
    first = os.open(path, os.O_WRONLY | os.O_CREAT)
    appends = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(300):
            data = chance.randbytes(chance.randrange(1, 6000))
            what = chance.randrange(4)
            if what == 0:
                os.write(appends, data)
                model += data
            elif what == 1:
                size = chance.randrange(0, len(model) + 5000)
                os.ftruncate(first, size)
                model = model[:size] + bytes(max(0, size - len(model)))
            else:
                at = chance.randrange(0, len(model) + 3000)
                os.pwrite(first, data, at)
                model += bytes(max(0, at - len(model)))
                model[at : at + len(data)] = data
            assert os.fstat(first).st_size == len(model)
        assert path.read_bytes() == model
        os.fsync(first)
        assert below.read_bytes() == model
    finally:
        os.close(first)
        os.close(appends)
    assert path.stat().st_size == below.stat().st_size == len(model)
    assert path.stat().st_mtime_ns == below.stat().st_mtime_ns


def test_writeback_of_a_file_that_may_not_be_read(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive("writeback", "allow_other")
    path = made.mnt / "log"
    path.write_bytes(b"0123456789")
    path.chmod(0o622)
    program = "import os, sys\nfd = os.open(sys.argv[1], os.O_WRONLY)\nos.pwrite(fd, b'xy', 3)\nos.close(fd)\n"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, user=12345, group=12345, extra_groups=[])
    assert (made.src / "log").read_bytes() == b"012xy56789"


def test_writeback_several_appenders_lose_nothing(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive("writeback")
    program = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for n in range(500): os.write(fd, f'{sys.argv[2]} {n}\\n'.encode())\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(made.mnt / "log"), str(w)]) for w in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    lines = (made.mnt / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{w} {n}" for w in range(4) for n in range(500))
    for w in range(4):
        assert [line for line in lines if line.startswith(f"{w} ")] == [f"{w} {n}" for n in range(500)]


def test_writeback_maps_and_does_not_bypass(drive: Callable[..., Drive]) -> None:
    made = drive("writeback")
    path = made.mnt / "f"
    path.write_bytes(bytes(8192))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        shared[4096:4100] = b"page"
        assert os.pread(file.fileno(), 4, 4096) == b"page"
        shared.flush()
    assert (made.src / "f").read_bytes()[4096:4100] == b"page"
    assert "off: it excludes write-back caching" in run(STACKFS, "status").stdout


def test_writeback_on_a_full_disk_is_told(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive(mount=False)
    run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", made.src)
    try:
        made.mount("writeback", f"lanes={lanes}")
        with pytest.raises(OSError) as full, open(made.mnt / "f", "wb") as file:
            file.write(b"x" * 1_000_000)
            file.flush()
            os.fsync(file.fileno())
        assert full.value.errno == errno.ENOSPC
        made.umount()
        made.wait_gone()
    finally:
        run("umount", "-l", made.src)


def test_writeback_excludes_strict(drive: Callable[..., Drive]) -> None:
    made = drive(mount=False)
    done = run(STACKFS, "mount", made.src, made.mnt, "-o", "writeback,cache=strict", check=False)
    assert done.returncode == 2 and "exclude each other" in done.stderr


SEES = """
from stackfs.api import *

MANIFEST = {{"name": "sees", "altitude": "370800", "group": "FSFilter Activity Monitor", "filter": "Sees"}}

class Sees(Filter):
    operations = (Operation(IRP_MJ_WRITE, pre="pre"),)

    def pre(self, data, objects):
        with open("{log}", "ab") as log:
            log.write(bytes(data.buffer).strip(b"\\0") + b";")
        return FLT_PREOP_SUCCESS_NO_CALLBACK
"""


@pytest.mark.parametrize("how", ["writeback", "mapped"])
def test_dirty_pages_take_the_way_that_they_were_written_for(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str, how: str
) -> None:
    """D9: not through an instance that came later, and not past one that was there."""
    log = tmp_path / "log"
    (tmp_path / "sees.py").write_text(SEES.format(log=log))
    made = drive(f"filterdir={tmp_path}", "writeback" if how == "writeback" else "bypass=off")
    path, below = made.mnt / "f", made.src / "f"
    path.write_bytes(bytes(8192))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        def write(at: int, text: bytes) -> None:
            if how == "mapped":
                shared[at : at + len(text)] = text
            else:
                os.pwrite(file.fileno(), text, at)
            assert text not in below.read_bytes(), "it is still in the page cache"

        write(0, b"before")
        made.fltmc("load", "sees", "-v", str(made.mnt))
        assert below.read_bytes().startswith(b"before")
        assert not log.exists(), "what was written before it came"
        write(4096, b"while")
        made.fltmc("detach", "sees", str(made.mnt))
        assert below.read_bytes()[4096:].startswith(b"while")
        assert log.read_bytes() == b"while;"
        write(4096, b"after")
        file.flush()
        os.fsync(file.fileno())
        assert below.read_bytes()[4096:].startswith(b"after")
        assert log.read_bytes() == b"while;"
