"""The volume's mark: no mount without the filters it names, EIO while one is gone or failed, and nobody sees it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import STACKFS, Drive, run
from filter_bench import Bench, on_trio
from stack_driver import GETATTR, LOOKUP, RELEASE, lookup, opened

from stackfs import api, mark
from stackfs.errors import ExitCode, StackfsError
from stackfs.options import InstanceSpec

MARK = "stackfs volume 1\nneeds passthrough\n"


def refused(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def test_a_marked_volume_is_mounted_with_its_filter_or_raw(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive("filter=passthrough", mount=False)
    (made.src / mark.NAME).write_text(MARK)
    (made.src / "file").write_text("text")
    (made.src / "folder").mkdir()
    (made.src / "folder" / mark.NAME).write_text("only the root has a mark")
    none = run(STACKFS, "mount", made.src, made.mnt, check=False)
    assert none.returncode == ExitCode.REFUSED
    assert "-o filter=passthrough" in none.stderr and "filter=raw" in none.stderr and len(none.stderr.splitlines()) == 1
    made.mount("filter=passthrough")
    made.expected_log.append("not mounted")
    mnt, seen = made.mnt, made.mnt / mark.NAME
    assert sorted(os.listdir(mnt)) == ["file", "folder"]
    assert refused(lambda: os.stat(seen)) == errno.ENOENT == refused(lambda: os.open(seen, os.O_RDONLY))
    assert refused(lambda: os.unlink(seen)) == errno.ENOENT
    assert refused(lambda: seen.write_text("x")) == errno.EPERM == refused(lambda: os.mkdir(seen))
    assert refused(lambda: os.symlink("x", seen)) == errno.EPERM == refused(lambda: os.link(mnt / "file", seen))
    assert refused(lambda: os.rename(mnt / "file", seen)) == errno.EPERM
    assert refused(lambda: os.rename(seen, mnt / "other")) == errno.ENOENT
    assert (made.src / mark.NAME).read_text() == MARK
    assert (mnt / "folder" / mark.NAME).read_text() == "only the root has a mark"

    with open(mnt / "file") as held:
        made.fltmc("detach", "passthrough", str(mnt))
        assert refused(lambda: os.listdir(mnt)) == errno.EIO == refused(lambda: os.stat(mnt / "folder"))
        assert (
            refused(lambda: (mnt / "new").write_text("x"))
            == errno.EIO
            == refused(lambda: os.pread(held.fileno(), 4, 0))
        )
    made.fltmc("attach", "passthrough", str(mnt))
    assert (mnt / "file").read_text() == "text" and not (made.src / "new").exists()
    made.umount()

    made.mount("filter=raw")
    assert (mnt / "file").read_text() == "text" and sorted(os.listdir(mnt)) == ["file", "folder"]


def test_a_mark_in_a_large_directory_is_not_listed(drive: Callable[..., Drive]) -> None:
    made = drive("filter=raw", mount=False)
    for number in range(3000):
        (made.src / f"file{number}").touch()
    (made.src / mark.NAME).write_text(MARK)
    made.mount("filter=raw")
    assert sorted(os.listdir(made.mnt)) == sorted(f"file{number}" for number in range(3000))


FILTER = """
class Dropped(Filter):
    operations = (Operation(IRP_MJ_WRITE, pre="pre_write"),)

    def pre_write(self, data, objects):
        return FLT_PREOP_SUCCESS_NO_CALLBACK
"""


@on_trio
async def test_a_failed_instance_closes_the_volume(bench: Bench) -> None:
    bench.drop(FILTER)
    source = bench.top / "w"
    source.mkdir()
    (source / "file").write_bytes(b"0123456789")
    (source / mark.NAME).write_bytes(mark.text(frozenset({"f"})))
    with pytest.raises(StackfsError) as without:
        await bench.manager.open_volume("w", str(source), [])
    assert without.value.exit_code == ExitCode.REFUSED
    spec = InstanceSpec(filter="f", name="f Instance", altitude=None, options={})
    volume = await bench.manager.open_volume("w", str(source), [spec])
    core = volume.core
    nodeid = lookup(core, b"file")
    handle = opened(core, nodeid)
    volume.instances[0].mark_failed()
    for attempt in (lambda: core.request(LOOKUP, 1, name=b"file").do(), lambda: core.request(GETATTR, nodeid).do()):
        assert refused(attempt) == errno.EIO
    core.request(RELEASE, nodeid, fh=handle).do()
    assert volume.instances[0].failed and api.IRP_MJ_READ not in volume.instances[0].entry.registered


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", ExitCode.DAMAGED),
        ("hello\n", ExitCode.DAMAGED),
        ("stackfs volume 1\n", ExitCode.DAMAGED),
        ("stackfs volume 1\nneeds\n", ExitCode.DAMAGED),
        ("stackfs volume 1\nneeds a/b\n", ExitCode.DAMAGED),
        ("stackfs volume 2\nneeds x\n", ExitCode.UNSUPPORTED),
        ("stackfs volume 1\nwants x\n", ExitCode.UNSUPPORTED),
        ("stackfs volume 1\nneeds x\n" + "#" * 70000, ExitCode.DAMAGED),
    ],
)
def test_marks_that_say_nothing_sensible(tmp_path: Path, text: str, code: ExitCode) -> None:
    (tmp_path / mark.NAME).write_text(text)
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(StackfsError) as caught:
            mark.read(root, str(tmp_path))
    finally:
        os.close(root)
    assert caught.value.exit_code == code and str(tmp_path) in caught.value.message


def test_marks(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        assert mark.read(root, "") == frozenset()
        (tmp_path / mark.NAME).write_bytes(mark.text(frozenset({"b", "a"})))
        assert mark.read(root, "") == {"a", "b"}
        (tmp_path / mark.NAME).unlink()
        (tmp_path / mark.NAME).mkdir()
        with pytest.raises(StackfsError):
            mark.read(root, "")
    finally:
        os.close(root)
