"""The filter `oplock` on mounted drives: programs hold oplocks, are told, acknowledge, wait, are interrupted and die
(docs/oplocks.md)."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oplock_rules as rules
import pytest
from conftest import ROOT, STACKFS, Drive, filter_directory, run
from oplock_agent import Agent, Failed, eventually

from stackfs import oplock
from stackfs.oplock import DELETE, READ_DATA, SHARE_DELETE, SHARE_WRITE, WRITE_DATA

Make = Callable[[], Agent]
KEY = "b'k' * 16"


@pytest.fixture
def agents() -> Iterator[Callable[..., Agent]]:
    made: list[Agent] = []

    def make(**keywords: Any) -> Agent:
        made.append(Agent(**keywords))
        return made[-1]

    yield make
    for each in made:
        each.kill()
    for each in made:
        each.end()


class Place:
    """A drive with the filter, and a file on it."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self.file = drive.mnt / "file"
        (drive.src / "file").write_bytes(b"content")

    def again(self) -> None:
        """A new file, made through the mount, and nothing else."""
        for each in self.drive.mnt.iterdir():
            each.unlink()
        self.file.write_bytes(b"content")

    @property
    def open(self) -> str:
        return f"os.open({str(self.file)!r}, os.O_RDWR)"

    def opens(self, flags: str) -> str:
        return f"os.open({str(self.file)!r}, {flags})"

    def listed(self) -> list[dict[str, Any]]:
        shown = json.loads(run(STACKFS, "oplocks", "--json", self.drive.mnt).stdout)
        assert shown["more"] == 0
        files: list[dict[str, Any]] = shown["files"]
        return files


@pytest.fixture
def place(drive: Callable[..., Drive], lanes: str) -> Place:
    return Place(drive("filter=oplock"))


def holder_of(agent: Agent, place: Place, level: str, key: str = "b''") -> int:
    fd: int = agent.do(place.open)
    agent.do(f"hold({fd}, {level!r}, {key}, 1.0)")
    return fd


# ---- breaks ----------------------------------------------------------------------------------------------------------


def test_an_opener_waits_until_the_holder_has_written(place: Place, agents: Make) -> None:
    """poll tells of the break, what was kept back is written and then read, the holder keeps RH, and is listed."""
    holder, opener = agents(), agents()
    fd = holder_of(holder, place, "RWH")
    assert holder.do(f"told({fd}, 0.1)") is None
    ((holds,), waits) = place.listed()[0]["held"], place.listed()[0]["waiting"]
    assert (holds["pid"], holds["level"], waits) == (holder.pid, "RWH", []) and "breaking_to" not in holds
    opener.begin(f"os.read({place.open}, 100).decode()")
    assert holder.do(f"told({fd})") == ["RWH", "RH", True, False, False]
    assert opener.waits()
    (file,) = place.listed()
    assert file["path"] == "/file" and file["held"][0]["breaking_to"] == "RH"
    assert [(each["pid"], each["request"]) for each in file["waiting"]] == [(opener.pid, "open")]
    assert file["waiting"][0]["seconds"] > 0.1
    assert holder.do(f"state({fd})") == ["RWH", "RH", False, 1, 1]
    holder.do(f"flush({fd}, b'kept back')")
    assert opener.waits(0.05)
    assert holder.do(f"ack({fd})") == "RH"
    assert opener.answer() == "kept back"
    assert holder.do(f"state({fd})") == ["RH", None, False, 0, 1]
    assert holder.fails(f"ack({fd}, 'R')") == ("NothingToAcknowledge", errno.EPROTO)
    holder.do(f"locks[{fd}].release()")
    assert place.listed() == []


def test_older_levels(place: Place, agents: Make) -> None:
    """Batch breaks to level 2, level 2 to nothing by a write, without an acknowledgement; filter lets readers in."""
    holder, other = agents(), agents()
    for level in ("batch", "1"):
        fd = holder_of(holder, place, level)
        other.begin(place.open)
        assert holder.do(f"told({fd})") == [level, "2", True, False, False]
        assert holder.do(f"ack({fd})") == "2"
        writer = other.answer()
        other.do(f"os.pwrite({writer}, b'x', 0)")
        assert holder.do(f"told({fd})") == ["2", "", False, False, False]
        holder.do(f"os.close({fd})")
        other.do(f"os.close({writer})")
    fd = holder_of(holder, place, "filter")
    reader = other.do(place.opens("os.O_RDONLY"))
    assert holder.do(f"told({fd}, 0.1)") is None
    other.begin(place.opens("os.O_WRONLY"))
    assert holder.do(f"told({fd})") == ["filter", "", True, False, False]
    assert holder.do(f"ack({fd}, '')") == ""
    other.answer()
    other.do(f"os.close({reader})")


def test_readers_share_and_a_writer_tells_them(place: Place, agents: Make) -> None:
    """R and RH beside each other; a write breaks both and waits for neither; no write is missed."""
    one, two, writer = agents(), agents(), agents()
    first, second = holder_of(one, place, "R"), holder_of(two, place, "RH")
    fd = writer.do(place.open)
    writer.do(f"os.pwrite({fd}, b'new', 0)")
    assert one.do(f"told({first})") == ["R", "", False, False, False]
    assert two.do(f"told({second})") == ["RH", "", True, False, False]
    assert two.do(f"ack({second})") == ""
    assert one.do(f"os.pread({first}, 7, 0).decode()") == "newtent"


def test_keys(place: Place, agents: Make) -> None:
    """One client's opens do not break each other's; its oplock goes to the newer open."""
    one, two = agents(), agents()
    fd = holder_of(one, place, "RWH", KEY)
    again = one.begin(place.open)
    assert one.waits() and not again.has_answer(0)  # an open has no key before it asks
    one.interrupt()
    with pytest.raises(Failed):
        one.answer()
    one.do(f"os.close({fd})")
    plain, other = one.do(place.open), two.do(place.open)
    assert one.fails(f"hold({plain}, 'RWH', {KEY})") == ("NotGranted", errno.ETXTBSY)
    one.do(f"hold({plain}, 'RH', {KEY})")
    two.do(f"hold({other}, 'RH', {KEY})")  # the same client: it is switched
    assert one.do(f"told({plain})") == ["RH", "RH", False, True, False]
    assert two.do(f"state({other})") == ["RH", None, False, 0, 1]
    two.do(f"hold({other}, 'RWH', {KEY})")  # all opens there are have this key
    one.do(f"os.pwrite({plain}, b'x', 0)")
    assert two.do(f"told({other}, 0.1)") is None
    assert two.fails(f"hold({other}, 'RWH', b'x' * 16)") == ("OplockError", errno.EINVAL)


def test_what_is_refused(place: Place, agents: Make) -> None:
    agent = agents()
    fd, again = agent.do(place.open), agent.do(place.open)
    assert agent.fails(f"hold({fd}, 'RW')") == ("NotGranted", errno.ETXTBSY)
    assert agent.fails(f"hold({fd}, 'WH')")[0] == "ValueError"
    agent.do(f"os.close({again})")
    agent.do(f"hold({fd}, 'RWH', patience=1.0)")
    other = agents()
    other.begin(place.open)
    assert agent.do(f"told({fd})")[:2] == ["RWH", "RH"]
    assert agent.fails(f"ack({fd}, 'RWH')") == ("TooMuch", errno.EBUSY)
    assert agent.do(f"told({fd})") == ["RWH", "RH", True, False, False]
    assert agent.do(f"ack({fd}, 'R')") == "R"
    other.answer()
    assert agent.fails(f"flush({fd}, b'x')") == ("NothingToAcknowledge", errno.EPROTO)
    directory = agent.do(f"os.open({str(place.drive.mnt)!r}, os.O_RDONLY)")
    assert agent.fails(f"hold({directory}, 'RWH')") == ("OplockError", errno.EINVAL)
    elsewhere = agent.do(f"os.open({str(place.drive.src / 'file')!r}, os.O_RDONLY)")
    assert agent.fails(f"hold({elsewhere}, 'R')") == ("NoOplocks", errno.ENOTTY)


def test_directories(place: Place, agents: Make) -> None:
    """Who caches a directory is told of names that come, go and change, and waits for nobody."""
    holder, mnt = agents(), place.drive.mnt
    fd = holder.do(f"os.open({str(mnt)!r}, os.O_RDONLY)")
    changes: list[Callable[[], object]] = [
        lambda: (mnt / "new").touch(), lambda: (mnt / "new").rename(mnt / "newer"),
        lambda: os.link(mnt / "newer", mnt / "two"),
        lambda: (mnt / "two").unlink(), (mnt / "folder").mkdir, (mnt / "folder").rmdir,
        lambda: (mnt / "s").symlink_to("x"),
    ]  # fmt: skip
    for change in changes:
        holder.do(f"hold({fd}, 'RH')")
        (mnt / "file").read_bytes()
        assert holder.do(f"told({fd}, 0.1)") is None
        change()
        assert holder.do(f"told({fd})") == ["RH", "", True, False, False]
        holder.do(f"ack({fd})")


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_a_holder_that_closes_or_dies_frees_who_waits(place: Place, agents: Make) -> None:
    for how in ("close", "kill", "release"):
        holder, opener = agents(), agents()
        fd = holder_of(holder, place, "RWH")
        opener.begin(place.open)
        assert holder.do(f"told({fd})")
        assert opener.waits()
        if how == "close":
            holder.do(f"os.close({fd})")
        elif how == "release":
            holder.do(f"locks[{fd}].release()")
        else:
            holder.kill()
        opener.answer()
        opener.kill()
        holder.kill()
    eventually(lambda: place.listed() == [])


def test_who_waits_can_be_interrupted_and_killed(place: Place, agents: Make) -> None:
    """The break stands; whoever else waits goes on when it is acknowledged."""
    holder, one, two, three = agents(), agents(), agents(), agents()
    fd = holder_of(holder, place, "RW")
    for each in (one, two, three):
        each.begin(place.open)
    assert holder.do(f"told({fd})")
    eventually(lambda: len(place.listed()[0]["waiting"]) == 3)
    one.interrupt()
    with pytest.raises(Failed, match="Interrupted"):
        one.answer()
    two.kill()
    eventually(lambda: len(place.listed()[0]["waiting"]) == 1)
    assert three.waits()
    holder.do(f"ack({fd})")
    three.answer()


def test_a_holder_that_does_not_answer(drive: Callable[..., Drive], agents: Make, lanes: str) -> None:
    """With break_timeout his oplock is taken, and he is told; what he acknowledges then is late."""
    place = Place(drive("filter=oplock", "oplock.break_timeout=0.6"))
    holder, opener = agents(), agents()
    fd = holder_of(holder, place, "RWH")
    time.sleep(1)  # it counts from the break
    assert holder.do(f"told({fd}, 0.0)") is None
    begun = time.monotonic()
    opener.begin(place.open)
    assert holder.do(f"told({fd})")[1] == "RH"
    opener.answer()
    assert 0.5 < time.monotonic() - begun < 3
    assert holder.do(f"told({fd})") == ["RWH", "", False, False, True]
    assert holder.fails(f"ack({fd})") == ("NothingToAcknowledge", errno.EPROTO)
    assert holder.fails(f"flush({fd}, b'late')") == ("NothingToAcknowledge", errno.EPROTO)


def test_the_filter_comes_and_goes(place: Place, agents: Make) -> None:
    """Detached while one waits: he goes on, and the holder is told. Attached again: what is open counts."""
    holder, opener = agents(), agents()
    fd = holder_of(holder, place, "RWH")
    opener.begin(place.open)
    assert holder.do(f"told({fd})")
    assert opener.waits()
    place.drive.fltmc("detach", "oplock", str(place.drive.mnt))
    opened = opener.answer()
    assert holder.fails(f"ack({fd})") == ("NoOplocks", errno.ENOTTY)
    place.drive.fltmc("attach", "oplock", str(place.drive.mnt))
    assert holder.fails(f"hold({fd}, 'RWH')") == ("NotGranted", errno.ETXTBSY)
    opener.do(f"os.close({opened})")
    holder.do(f"hold({fd}, 'RWH', patience=1.0)")


# ---- data that is kept back ------------------------------------------------------------------------------------------

CHANGES = {
    "truncate": "os.truncate({file}, 3)",
    "ftruncate": "os.ftruncate(os.open({file}, os.O_WRONLY), 3)",
    "O_TRUNC": "os.close(os.open({file}, os.O_WRONLY | os.O_TRUNC))",
    "unlink": "os.unlink({file})",
    "rename": "os.rename({file}, {file} + '2')",
    "replaced": "os.rename({file} + '1', {file})",
    "link": "os.link({file}, {file} + '3')",
    "chmod": "os.chmod({file}, 0o640)",
    "utime": "os.utime({file}, (1, 1))",
    "setxattr": "os.setxattr({file}, 'user.a', b'b')",
    "an ACL": "os.setxattr({file}, 'system.posix_acl_access', ACL)",
    "chown": "os.chown({file}, 1, 1)",
    "fallocate": "os.posix_fallocate(os.open({file}, os.O_WRONLY), 0, 12)",
    "copied into": "os.copy_file_range(os.open({file} + '1', os.O_RDONLY), os.open({file}, os.O_WRONLY), 5)",
    "copied from": "os.copy_file_range(os.open({file}, os.O_RDONLY), os.open({file} + '1', os.O_WRONLY), 5)",
    "written": "os.pwrite(os.open({file}, os.O_WRONLY), b'OTHER', 0)",
    "O_APPEND": "os.write(os.open({file}, os.O_WRONLY | os.O_APPEND), b'!')",
    "mapped": "store({file}, b'OTHER')",
    "exchanged": "exchange({file}, {file} + '1')",
}
LEFT = {
    "truncate": b"DIR", "ftruncate": b"DIR", "O_TRUNC": b"", "unlink": None, "rename": None, "replaced": b"other",
    "link": b"DIRTY DATA",
    "chmod": b"DIRTY DATA", "utime": b"DIRTY DATA", "setxattr": b"DIRTY DATA", "an ACL": b"DIRTY DATA",
    "chown": b"DIRTY DATA", "fallocate": b"DIRTY DATA\0\0", "copied into": b"other DATA", "copied from": b"DIRTY DATA",
    "written": b"OTHER DATA", "O_APPEND": b"DIRTY DATA!", "mapped": b"OTHER DATA", "exchanged": b"other",
}  # fmt: skip


def test_what_changes_a_file_waits_for_data_that_is_kept_back(place: Place, agents: Make) -> None:
    """While the kernel holds the file's lock, and the directory's, for what waits."""
    src = place.drive.src
    for name, change in CHANGES.items():
        place.again()
        (place.drive.mnt / "file1").write_bytes(b"other")
        holder, changer = agents(), agents()
        fd = holder_of(holder, place, "RWH")
        holder.do(f"os.stat({str(place.file)!r}).st_size")
        changer.begin(change.format(file=repr(str(place.file))))
        told = []
        if name != "utime":  # which opens for attributes alone
            while not changer.has_answer(0):
                broken = holder.do(f"told({fd}, 0.5)")
                if broken is not None:
                    if "W" in broken[0] and "W" not in broken[1]:
                        holder.do(f"flush({fd}, b'DIRTY ' + b'DATA')")
                    assert broken[2], (name, broken)
                    told.append(f"{broken[0]}-{broken[1]}")
                    try:
                        holder.do(f"ack({fd})")
                    except Failed as error:  # broken further, before the answer
                        assert error.kind == "TooMuch", (name, told)
        changer.answer()
        if name in ("replaced", "link"):  # nobody wants the data
            assert told == ["RWH-RW"], name
        if name in ("utime", "link"):
            holder.do(f"flush({fd}, b'DIRTY ' + b'DATA')")
        elif name == "replaced":
            pass
        else:
            assert told[0] in ("RWH-RH", "RWH-"), (name, told)
        holder.kill()
        left = LEFT[name]
        assert ((src / "file").read_bytes() if left is not None else None) == left, name
        for elsewhere, at in (("rename", "file2"), ("link", "file3"), ("exchanged", "file1")):
            if name == elsewhere:
                assert (src / at).read_bytes() == b"DIRTY DATA"
        if name == "copied from":
            assert (src / "file1").read_bytes() == b"DIRTY"
        if name == "unlink":
            assert not place.file.exists()
        assert place.file.exists() == (left is not None), name  # the kernel's view of it
        assert left is None or place.file.read_bytes() == left, name
        changer.kill()


@pytest.mark.parametrize("change", ["truncate", "unlink", "rename"])
def test_write_waits_where_the_write_ioctl_does_not(place: Place, agents: Make, change: str) -> None:
    """Trap: write(2) wants the lock that the kernel holds for whoever waits for this very holder."""
    holder, changer = agents(), agents()
    fd = holder_of(holder, place, "RWH")
    changer.begin(CHANGES[change].format(file=repr(str(place.file))))
    assert holder.do(f"told({fd})")
    child = holder.do(f"begin_write({fd}, b'by write(2)')")
    assert not holder.do(f"ended({child}, 0.4)"), (
        "the kernel holds no lock for this any more: the documents say it does"
    )
    holder.do(f"flush({fd}, b'DIRTY DATA')")
    assert changer.waits(0)
    while not changer.has_answer(0.1):
        holder.do(f"ack({fd})")
        holder.do(f"told({fd}, 0.2)")
    changer.answer()
    assert holder.do(f"ended({child}, 5)")


def test_many_bytes_are_flushed(place: Place, agents: Make) -> None:
    """In pieces, at offsets; and not by who may not write."""
    agent = agents()
    fd = holder_of(agent, place, "RW")
    agent.do(f"flush({fd}, bytes(range(256)) * 400, 5)")
    agent.do(f"os.close({fd})")
    assert (place.drive.src / "file").read_bytes() == b"conte" + bytes(range(256)) * 400
    fd = agent.do(place.opens("os.O_RDONLY"))
    agent.do(f"hold({fd}, 'RW', patience=1.0)")
    assert agent.fails(f"flush({fd}, b'x')") == ("OplockError", errno.EBADF)


HOLDS_READS = """
import os
import trio
from stackfs.api import *

MANIFEST = {"name": "slow", "altitude": "385900", "group": "FSFilter Activity Monitor", "filter": "Slow"}

class Slow(Filter):
    operations = (Operation(IRP_MJ_READ, pre="pre"),)

    async def pre(self, data, objects):
        while data.path == "/slow" and os.path.exists(%r):
            await trio.sleep(0.01)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
"""


@pytest.fixture
def held_reads(tmp_path: Path) -> Iterator[Path]:
    """While it is there, HOLDS_READS holds them."""
    held = tmp_path / "reads are held"
    held.touch()
    yield held
    held.unlink(missing_ok=True)


@pytest.mark.parametrize("option, flushed", [("cache=normal", "kept back by the holder"), ("exclusive", "FLUSHED")])
def test_what_was_flushed_is_what_the_opener_reads(
    drive: Callable[..., Drive], held_reads: Path, agents: Make, tmp_path: Path, lanes: str, option: str, flushed: str
) -> None:
    """Whatever the kernel has cached of the file, and also while it makes the daemon's notifications wait: here for a
    page of another file, which a read that a filter holds has locked. Nor are other holders told later for it."""
    filters = filter_directory(tmp_path, slow=HOLDS_READS % str(held_reads))
    place = Place(drive(f"filterdir={filters}", "filter=oplock", "filter=slow", option))
    (place.drive.src / "slow").write_bytes(b"slow")
    slow = agents()
    fd = slow.do(f"os.open({str(place.drive.mnt / 'slow')!r}, os.O_RDWR)")
    slow.do(f"hold({fd}, 'RWH', patience=1.0)")
    child = slow.do(f"begin_read({fd})")
    assert not slow.do(f"ended({child}, 0.2)")
    slow.do(f"flush({fd}, b'SLOW')")
    holder, opener = agents(), agents()
    read = f"os.read({place.open}, 100).decode()"
    opener.do(f"pathlib.Path({str(place.file)!r}).read_bytes()")
    kept = holder_of(holder, place, "RWH")
    opener.do(f"os.stat({str(place.file)!r})")
    opener.begin(read)
    assert holder.do(f"told({kept})") == ["RWH", "RH", True, False, False]
    holder.do(f"flush({kept}, {flushed.encode()!r})")
    holder.do(f"ack({kept})")
    assert opener.answer() == flushed
    assert not slow.do(f"ended({child}, 0.05)")
    held_reads.unlink()
    assert slow.do(f"ended({child}, 5)")
    assert slow.do(f"os.pread({fd}, 100, 0).decode()") == "SLOW"


# ---- directories above an open file ----------------------------------------------------------------------------------

BROKEN_BELOW = {"batch": "", "filter": "", "RH": "R", "RWH": "RW", "R": None, "RW": None, "1": None, "2": None}
"""What a level becomes when a directory above the file is renamed. None: it does not care."""


@pytest.fixture
def deep(place: Place) -> Callable[[str], str]:
    """deep("top/sub/file") makes the file, and is its path as a literal."""

    def make(name: str) -> str:
        (place.drive.mnt / name).parent.mkdir(parents=True, exist_ok=True)
        (place.drive.mnt / name).write_bytes(b"content")
        return repr(str(place.drive.mnt / name))

    return make


def held(agent: Agent, path: str, level: str, key: str = "b''") -> int:
    fd: int = agent.do(f"os.open({path}, os.O_RDWR)")
    agent.do(f"hold({fd}, {level!r}, {key}, 1.0)")
    return fd


def test_a_renamed_directory_breaks_what_keeps_files_open_below(
    place: Place, agents: Make, deep: Callable[[str], str]
) -> None:
    mnt = str(place.drive.mnt)
    for level, left in BROKEN_BELOW.items():
        holder, renamer = agents(), agents()
        fd = held(holder, deep("top/sub/file"), level)
        renamer.begin(f"os.rename({mnt!r} + '/top', {mnt!r} + '/other')")
        if left is None:
            renamer.answer()
            assert holder.do(f"state({fd})")[:2] == [level, None]
        else:
            assert holder.do(f"told({fd})")[:3] == [level, left, True]
            assert renamer.waits()
            holder.do(f"ack({fd})")
            renamer.answer()
        holder.do(f"os.close({fd})")
        assert (place.drive.mnt / "other/sub/file").exists()
        shutil.rmtree(place.drive.mnt / "other")


def test_a_renamed_directory_waits_for_all_below_and_for_nobody_else(
    place: Place, agents: Make, deep: Callable[[str], str]
) -> None:
    """Each is told at once, and has as long as it needs; a key and what lies beside the directory do not matter."""
    mnt = str(place.drive.mnt)
    below = [deep("top/one"), deep("top/sub/two"), deep("top/sub/three")]
    holders = [agents() for _ in below]
    fds = [held(holder, path, "RH", KEY) for holder, path in zip(holders, below, strict=True)]
    beside, renamer = agents(), agents()
    fd = held(beside, deep("top2/file"), "RWH")
    renamer.begin(f"os.rename({mnt!r} + '/top', {mnt!r} + '/top2/top')")
    for holder, each in zip(holders, fds, strict=True):
        assert holder.do(f"told({each})")[:2] == ["RH", "R"]
    for holder, each in zip(reversed(holders), reversed(fds), strict=True):
        assert renamer.waits()
        holder.do(f"ack({each})")
    renamer.answer()
    assert beside.do(f"state({fd})")[:2] == ["RWH", None]


def test_directories_that_change_places_break_below_both(
    place: Place, agents: Make, deep: Callable[[str], str]
) -> None:
    mnt = str(place.drive.mnt)
    first, second, renamer = agents(), agents(), agents()
    fds = held(first, deep("a/file"), "RH"), held(second, deep("b/sub/file"), "batch")
    renamer.begin(f"exchange({mnt!r} + '/a', {mnt!r} + '/b')")
    assert first.do(f"told({fds[0]})")[1] == "R" and second.do(f"told({fds[1]})")[1] == ""
    assert renamer.waits()
    first.do(f"ack({fds[0]})")
    assert renamer.waits()
    second.do(f"os.close({fds[1]})")
    renamer.answer()
    assert (place.drive.mnt / "b/file").exists() and (place.drive.mnt / "a/sub/file").exists()


def test_who_renames_a_directory_can_be_interrupted(place: Place, agents: Make, deep: Callable[[str], str]) -> None:
    """The break stands, the directory keeps its name, and the next rename waits for the same answer."""
    mnt = str(place.drive.mnt)
    holder, renamer = agents(), agents()
    fd = held(holder, deep("top/sub/file"), "RWH")
    rename = f"os.rename({mnt!r} + '/top', {mnt!r} + '/other')"
    renamer.begin(rename)
    assert holder.do(f"told({fd})")[:2] == ["RWH", "RW"]
    assert renamer.waits()
    renamer.interrupt()
    with pytest.raises(Failed) as failed:
        renamer.answer()
    assert failed.value.kind == "Interrupted"
    assert (place.drive.mnt / "top/sub/file").exists()
    renamer.begin(rename)
    assert renamer.waits()
    holder.kill()
    renamer.answer()
    assert (place.drive.mnt / "other/sub/file").exists()


def test_a_rename_that_only_looks_like_one_of_a_directory_breaks_nothing_below(
    place: Place, agents: Make, deep: Callable[[str], str]
) -> None:
    """A file's; one over a directory that is not empty, which fails; a hard link inside counts as below, though."""
    mnt = str(place.drive.mnt)
    holder, renamer = agents(), agents()
    fd = held(holder, deep("top/file"), "RH")
    deep("beside")
    (place.drive.mnt / "empty").mkdir()
    renamer.do(f"os.rename({mnt!r} + '/beside', {mnt!r} + '/beside2')")
    assert renamer.fails(f"os.rename({mnt!r} + '/empty', {mnt!r} + '/top')") == ("OSError", errno.ENOTEMPTY)
    assert holder.do(f"state({fd})")[:2] == ["RH", None]
    linked = agents()
    other = held(linked, deep("outside"), "RH")
    renamer.begin(f"os.link({mnt!r} + '/outside', {mnt!r} + '/top/link')")
    linked.do(f"told({other})")
    linked.do(f"ack({other})")
    renamer.answer()
    linked.do(f"os.close({other})")
    other = held(linked, repr(mnt + "/outside"), "RH")
    renamer.begin(f"os.rename({mnt!r} + '/top', {mnt!r} + '/top3')")
    for agent, each in ((holder, fd), (linked, other)):
        assert agent.do(f"told({each})")[:2] == ["RH", "R"]
        agent.do(f"ack({each})")
    renamer.answer()


def test_who_asks_while_a_directory_is_being_renamed_is_told_when_it_is_done(
    place: Place, agents: Make, deep: Callable[[str], str]
) -> None:
    mnt = str(place.drive.mnt)
    first, late, renamer = agents(), agents(), agents()
    one, two = deep("top/one"), deep("top/two")
    late_fd = late.do(f"os.open({two}, os.O_RDWR)")
    fd = held(first, one, "RH")
    renamer.begin(f"os.rename({mnt!r} + '/top', {mnt!r} + '/other')")
    assert first.do(f"told({fd})")
    late.do(f"hold({late_fd}, 'RH')")
    assert renamer.waits()
    first.do(f"ack({fd}, 'RH')")  # which is his right, and is not asked again
    renamer.answer()
    assert late.do(f"told({late_fd})")[:2] == ["RH", "R"]


# ---- share modes -----------------------------------------------------------------------------------------------------


def directory(agent: Agent, place: Place) -> int:
    fd: int = agent.do(f"os.open({str(place.drive.mnt)!r}, os.O_RDONLY | os.O_DIRECTORY)")
    return fd


def test_opening_with_a_share_mode(place: Place, agents: Make) -> None:
    """Others are refused what it does not share, also by plain open(2), unlink and rename; afterwards they are not."""
    one, two = agents(), agents()
    at, there = directory(one, place), directory(two, place)
    fd, level, result, _ = one.do(f"list(create({at}, 'file', share=SHARE_READ))")
    assert (level, result) == ("", "opened")
    assert one.do(f"os.pread({fd}, 9, 0).decode()") == "content"
    assert not [name for name in os.listdir(place.drive.mnt) if name.startswith(".stackfs")]
    assert two.fails(place.open) == ("OSError", errno.EBUSY)
    assert two.fails(f"os.unlink({str(place.file)!r})") == ("OSError", errno.EBUSY)
    assert two.fails(f"os.truncate({str(place.file)!r}, 0)") == ("OSError", errno.EBUSY)
    assert two.fails(f"create({there}, 'file', share=7)") == ("SharingViolation", errno.EBUSY)
    reader = two.do(place.opens("os.O_RDONLY"))
    assert two.do(f"os.stat({str(place.file)!r}).st_size") == 7
    one.do(f"os.close({fd})")
    eventually(lambda: os.close(os.open(place.file, os.O_RDWR)) is None)
    assert one.fails(f"create({at}, 'file', share={SHARE_WRITE | SHARE_DELETE})") == ("SharingViolation", errno.EBUSY)
    two.do(f"os.close({reader})")
    eventually(lambda: one.do(f"create({at}, 'file', share={SHARE_WRITE})") is not None)


def test_dispositions(place: Place, agents: Make) -> None:
    agent = agents()
    at = directory(agent, place)

    def made(name: str, disposition: str, **more: Any) -> str:
        how = "".join(f", {key}={value!r}" for key, value in more.items())
        fd, _, result, _ = agent.do(f"list(create({at}, {name!r}, disposition={disposition!r}{how}))")
        agent.do(f"os.close({fd})")
        return str(result)

    assert made("file", "open") == "opened"
    assert agent.fails(f"create({at}, 'none', disposition='open')") == ("OplockError", errno.ENOENT)
    assert agent.fails(f"create({at}, 'file', disposition='create')") == ("OplockError", errno.EEXIST)
    assert made("new", "create", mode=0o640) == "created"
    assert (place.drive.src / "new").stat().st_mode & 0o777 == 0o640
    assert made("new2", "open_if") == "created" and made("new2", "open_if") == "opened"
    assert place.file.read_bytes() == b"content"
    assert made("file", "overwrite") == "overwritten"
    assert place.file.read_bytes() == b"" == (place.drive.src / "file").read_bytes()
    assert made("file", "supersede") == "overwritten" and made("new3", "overwrite_if") == "created"
    for name in ("..", "a/b", "", "."):
        assert agent.fails(f"create({at}, {name!r})") == ("OplockError", errno.EINVAL)
    (place.drive.mnt / "folder").mkdir()
    assert agent.fails(f"create({at}, 'folder')") == ("OplockError", errno.EISDIR)


def test_opening_with_an_oplock_in_one_step(place: Place, agents: Make) -> None:
    """The open that takes over has it; others break it before and after."""
    one, two = agents(), agents()
    at, there = directory(one, place), directory(two, place)
    once, level, _, _ = one.do(
        f"[x.decode() if isinstance(x, bytes) else x for x in reserve({at}, 'file', level='RWH')]"
    )
    assert level == "RWH"
    assert place.listed()[0]["held"][0]["not_taken_over"] is True
    two.begin(place.open)
    assert two.waits()
    fd = one.do(f"os.open({once!r}, os.O_RDWR, dir_fd={at})")
    one.do(f"locks.update({{{fd}: oplock.Oplock({fd}, 'RWH')}})")
    assert one.do(f"told({fd})") == ["RWH", "RH", True, False, False]
    assert one.do(f"ack({fd})") == "RH"
    other = two.answer()
    assert two.do(f"create({there}, 'file', level='RWH')[1]") == ""  # not granted, and opened all the same
    assert two.fails(f"create({there}, 'file', level='RWH', options={oplock.OPEN_REQUIRING_OPLOCK})") == (
        "NotGranted", errno.ETXTBSY)  # fmt: skip
    two.do(f"os.close({other})")


def test_completing_while_an_oplock_is_broken(place: Place, agents: Make) -> None:
    holder, other = agents(), agents()
    fd, at = holder_of(holder, place, "RWH"), directory(other, place)
    opened = other.do(f"list(create({at}, 'file', options={oplock.COMPLETE_IF_OPLOCKED}))")
    assert opened[2:] == ["opened", True]
    assert holder.do(f"told({fd})") == ["RWH", "RH", True, False, False]
    assert other.fails(f"create({at}, 'file', options={oplock.OPEN_REQUIRING_OPLOCK})") == ("NotGranted", errno.ETXTBSY)


def test_a_sharing_violation_breaks_handles(place: Place, agents: Make) -> None:
    """Who keeps a handle for nobody closes it, and the other opens after all."""
    holder, other = agents(), agents()
    at, there = directory(holder, place), directory(other, place)
    fd = holder.do(f"create({at}, 'file', share=0, level='RWH')[0]")
    holder.do(f"locks.update({{{fd}: oplock.Oplock({fd}, 'RWH')}})")
    other.begin(f"create({there}, 'file')[2]")
    assert holder.do(f"told({fd})") == ["RWH", "RW", True, False, False]
    assert other.waits()
    holder.do(f"os.close({fd})")
    assert other.answer() == "opened"


def test_one_time_names(drive: Callable[..., Drive], agents: Make, lanes: str) -> None:
    """Good once, for a while, for the process that asked, which has to live."""
    place = Place(drive("filter=oplock", "oplock.open_timeout=1"))
    one, two = agents(), agents()
    at, there = directory(one, place), directory(two, place)
    asked = "reserve({}, 'file', share=0, access={})[0].decode()"
    once = one.do(asked.format(at, READ_DATA))
    assert two.fails(f"os.open({once!r}, os.O_RDONLY, dir_fd={there})") == ("FileNotFoundError", errno.ENOENT)
    assert one.fails(f"os.open({once!r}, os.O_RDWR, dir_fd={at})") == ("PermissionError", errno.EACCES)
    fd = one.do(f"os.open({once!r}, os.O_RDONLY, dir_fd={at})")
    one.do(f"os.close({fd})")
    time.sleep(1.2)  # an alias of the kernel's may last a second
    assert one.fails(f"os.open({once!r}, os.O_RDONLY, dir_fd={at})") == ("FileNotFoundError", errno.ENOENT)
    begun = time.monotonic()
    once = one.do(asked.format(at, READ_DATA | WRITE_DATA | DELETE))
    assert two.fails(place.open) == ("OSError", errno.EBUSY)
    eventually(lambda: os.close(os.open(place.file, os.O_RDWR)) is None if time.monotonic() - begun > 1.2 else False)
    assert one.fails(f"os.open({once!r}, os.O_RDONLY, dir_fd={at})") == ("FileNotFoundError", errno.ENOENT)
    one.do(asked.format(at, READ_DATA))
    one.kill()
    begun = time.monotonic()
    eventually(
        lambda: two.do(f"create({there}, 'file')[2]") == "opened" if time.monotonic() - begun > 0.3 else False, 0.9
    )


def test_creating_is_for_who_may(drive: Callable[..., Drive], agents: Callable[..., Agent]) -> None:
    """The kernel checks nothing of an ioctl: the filter does, as whoever asks."""
    place = Place(drive("filter=oplock", "allow_other"))
    (place.drive.src / "file").chmod(0o644)
    (place.drive.src / "secret").write_bytes(b"s")
    (place.drive.src / "secret").chmod(0o600)
    open_to_all = place.drive.mnt / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    agent = agents(user=65534, group=65534, extra_groups=[])
    at = directory(agent, place)
    assert agent.do(f"create({at}, 'file', os.O_RDONLY)[2]") == "opened"
    for what in (f"create({at}, 'file')", f"create({at}, 'secret', os.O_RDONLY)", f"create({at}, 'new')",
                 f"create({at}, 'file', os.O_RDONLY, access={DELETE})"):  # fmt: skip
        assert agent.fails(what) == ("OplockError", errno.EACCES), what
    below = agent.do(f"os.open({str(open_to_all)!r}, os.O_RDONLY)")
    assert agent.do(f"create({below}, 'mine')[2]") == "created"
    assert (place.drive.src / "open/mine").stat().st_uid == 65534


# ---- the rules, on the mount -----------------------------------------------------------------------------------------

BY_PATH = {
    "stat": ("os.stat({file}).st_size", []),
    "open to read": ("os.close(os.open({file}, os.O_RDONLY))", [("OPEN", {"access": 0x81})]),
    "open to write": ("os.close(os.open({file}, os.O_WRONLY))", [("OPEN", {"access": 0x86})]),
    "O_TRUNC": ("os.close(os.open({file}, os.O_WRONLY | os.O_TRUNC))",
                [("OPEN", {"access": 0x86, "disposition": rules.FILE_OVERWRITE})]),
    "truncate": ("os.truncate({file}, 3)", [("OPEN", {"access": 2}), ("FileEndOfFileInformation", {})]),
    "unlink": ("os.unlink({file})", [("OPEN", {"access": DELETE}), ("FileDispositionInformation", {})]),
    "rename": ("os.rename({file}, {file} + '2')", [("OPEN", {"access": DELETE}), ("FileRenameInformation", {})]),
    "chmod": ("os.chmod({file}, 0o600)", [("OPEN", {"access": 0x40000}), ("SET_SECURITY", {})]),
}  # fmt: skip
BY_FILE = {
    "read": ("len(os.pread({fd}, 3, 0))", "READ"),
    "write": ("os.pwrite({fd}, b'x', 0)", "WRITE"),
    "fsync": ("os.fsync({fd})", "FLUSH_DATA"),
    "ftruncate": ("os.ftruncate({fd}, 2)", "FileEndOfFileInformation"),
    "punch a hole": ("os.posix_fallocate({fd}, 0, 100)", "FileEndOfFileInformation"),
}
HELD = {"2": rules.S.LEVEL_TWO, "1": rules.S.LEVEL_ONE, "batch": rules.S.BATCH, "filter": rules.S.FILTER,
        "R": rules.R, "RH": rules.RH, "RW": rules.RW, "RWH": rules.RWH}  # fmt: skip


def expected_breaks(level: str, operations: list[tuple[str, dict[str, Any]]]) -> tuple[list[tuple[int, bool]], bool]:
    """By the independent statement: (new level, is an acknowledgement owed) of each break; does the other wait?"""
    stated, holder, other = rules.Oplock(), rules.Open("holder"), rules.Open("other")
    assert rules.request(stated, holder, HELD[level]) == rules.PENDED
    told, waits = [], False
    for kind, variant in operations:
        verdict = rules.check(stated, rules.Operation(kind, other, **variant))
        waits = waits or verdict == rules.WAIT
        for event in stated.events:
            if event[0] == "told":
                told.append((event[3], event[4]))
                if event[4]:
                    granular = HELD[level] & rules.CACHING
                    rules.acknowledge(stated, holder, "granular" if granular else "two", event[3] if granular else 0)
        stated.events.clear()
    return told, waits


def test_rows_of_the_rules(drive: Callable[..., Drive], agents: Make, lanes: str) -> None:
    """What the specification says of each level and operation is what a holder is told, and others wait for."""
    place = Place(drive("filter=oplock", "cache=strict"))
    holder, other = agents(), agents()
    count = 0
    for level in HELD:
        rows = [(name, *row, True) for name, row in BY_PATH.items()]
        if level in ("2", "R", "RH"):
            rows += [(name, call, [(kind, {})], False) for name, (call, kind) in BY_FILE.items()]
        for name, call, operations, by_path in rows:
            expected, waits = expected_breaks(level, operations)
            place.again()
            theirs = None if by_path else other.do(place.open)
            fd = holder_of(holder, place, level)
            other.begin(call.format(file=repr(str(place.file)), fd=theirs))
            told = []
            for new_level, owed in expected:
                broken = holder.do(f"told({fd}, 3)")
                assert broken, (level, name, "was not told")
                told.append((oplock.LEVELS[broken[1]], broken[2]))
                if owed:
                    if waits and new_level == expected[-1][0]:
                        assert other.waits(0.03) or broken[0] == "RH" or len(expected) > 1, (level, name)
                    holder.do(f"ack({fd})")
            other.answer()
            assert told == expected, (level, name)
            assert holder.do(f"told({fd}, 0.02)") is None, (level, name)
            holder.do(f"os.close({fd})")
            if theirs is not None:
                other.do(f"os.close({theirs})")
            count += 1
    assert count > 70


def test_rows_of_the_rules_for_one_client(drive: Callable[..., Drive], agents: Make, lanes: str) -> None:
    """Of two opens with one key: none breaks the other's oplock, but for level 2; what the first holds goes over."""
    place = Place(drive("filter=oplock", "cache=strict"))
    holder, other = agents(), agents()
    key = b"k" * 16
    count = 0
    for level in ("2", "R", "RH", "RW", "RWH"):
        for name, (call, kind) in BY_FILE.items():
            stated, first, second = rules.Oplock(), rules.Open("holder", key), rules.Open("other", key)
            shared = rules.request(stated, first, HELD[level], others_open=True, all_keys_match=True)
            assert shared == rules.PENDED
            place.again()
            fd, theirs = holder.do(place.open), other.do(place.open)
            other.do(f"hold({theirs}, '', {KEY})")  # from here on it has the key
            holder.do(f"hold({fd}, {level!r}, {KEY}, 1.0)")
            verdict = rules.check(stated, rules.Operation(kind, second))
            expected = [event[3:] for event in stated.events if event[0] == "told"]
            changes = name not in ("read", "fsync")
            assert verdict == rules.GO and bool(expected) == (level == "2" and changes), (level, name)
            other.do(call.format(fd=theirs))
            for new_level, owed in expected:
                broken = holder.do(f"told({fd}, 3)")
                assert broken and (oplock.LEVELS[broken[1]], broken[2]) == (new_level, owed), (level, name)
            assert holder.do(f"told({fd}, 0.02)") is None, (level, name)
            if not expected and level in ("R", "RH"):
                stated.events.clear()
                rules.request(stated, second, rules.RH)
                ((_, who, status, _, _),) = stated.events
                assert who is first and status == rules.SWITCHED
                other.do(f"hold({theirs}, 'RH', {KEY})")
                assert holder.do(f"told({fd})")[3] is True, (level, name)
            holder.do(f"os.close({fd})")
            other.do(f"os.close({theirs})")
            count += 1
    assert count == 25


BROKEN_BY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "open to read": ("os.close(os.open({file}, os.O_RDONLY))", "OPEN", {"access": 0x81}),
    "O_TRUNC": ("os.close(os.open({file}, os.O_WRONLY | os.O_TRUNC))", "OPEN",
                {"access": 0x86, "disposition": rules.FILE_OVERWRITE}),
    "link": ("os.link({file}, {file} + '2')", "FileLinkInformation", {}),
}  # fmt: skip
ANSWERS = {
    rules.INVALID_PROTOCOL: "NothingToAcknowledge", rules.CANNOT_GRANT: "TooMuch", rules.NOT_GRANTED: "NotGranted",
}  # fmt: skip


def acknowledgements(level: str) -> dict[str, tuple[str, str, int]]:
    """ack()'s arguments: what that is to the rules, and the level that is asked for."""
    if HELD[level] & rules.CACHING:
        asked = {f", {name!r}": ("granular", "granular", HELD.get(name, 0)) for name in ("", "R", "RH", "RW", "RWH")}
        return asked | {", close_pending=True": ("granular", "granular close pending", 0)}
    asked = {"": ("older", "two", 0), ", ''": ("older", "none", 0)}
    return asked | {", close_pending=True": ("older", "close pending", 0)}


def test_rows_of_the_rules_for_acknowledgements(drive: Callable[..., Drive], agents: Make, lanes: str) -> None:
    """Each level, broken by each of three operations or not at all, acknowledged in each way: what is held then, and
    whether the other goes on."""
    place = Place(drive("filter=oplock", "cache=strict"))
    holder, other = agents(), agents()
    names = {number: name for name, number in HELD.items()} | {0: ""}
    count = 0
    for level in HELD:
        for by in ("", *BROKEN_BY):
            for arguments, (_, kind, asked) in acknowledgements(level).items():
                row = (level, by, arguments)
                stated, first, second = rules.Oplock(), rules.Open("holder"), rules.Open("other")
                rules.request(stated, first, HELD[level])
                waits, broken_to = False, -1
                place.again()
                fd = holder_of(holder, place, level)
                if by:
                    call, what, variant = BROKEN_BY[by]
                    waits = rules.check(stated, rules.Operation(what, second, **variant)) == rules.WAIT
                    other.begin(call.format(file=repr(str(place.file))))
                    for event in stated.events:
                        broken_to, owed = event[3], event[4]
                        told = holder.do(f"told({fd}, 3)")
                        assert told and (oplock.LEVELS[told[1]], told[2]) == (broken_to, owed), row
                    assert other.waits(0.03) if waits else other.answer() is None, row
                stated.events.clear()
                wanted = rules.acknowledge(stated, first, kind, asked)
                released = any(event[0] == "released" for event in stated.events)
                if wanted in ANSWERS:
                    assert holder.fails(f"ack({fd}{arguments})")[0] == ANSWERS[wanted], row
                    if wanted == rules.CANNOT_GRANT:
                        assert oplock.LEVELS[holder.do(f"told({fd}, 3)")[1]] == broken_to, row
                else:
                    held = holder.do(f"ack({fd}{arguments})")
                    assert held == (names[asked or rules.S.LEVEL_TWO] if wanted == rules.PENDED else ""), row
                    if kind not in ("close pending", "granular close pending"):
                        assert holder.do(f"state({fd})")[:2] == [held, None], row
                if waits and not released:
                    assert other.waits(0.03), row
                holder.do(f"os.close({fd})")
                if waits:
                    other.answer()
                count += 1
    assert count > 130


# ---- the interface ---------------------------------------------------------------------------------------------------


def test_the_header_and_the_library_agree(tmp_path: Path) -> None:
    """Numbers and sizes of the C header, as a C program has them."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    from stackfs.filters.oplock import header

    names = ("REQUEST", "READ_BREAK", "ACKNOWLEDGE", "STATE", "WRITE", "RELEASE", "CREATE")
    prints = "".join(f'printf("%u ", (unsigned)STACKFS_IOC_OPLOCK_{name});' for name in names)
    (tmp_path / "p.c").write_text(
        f'#include <stdio.h>\n#include "{header()}"\nint main(void) {{ {prints} return 0; }}\n'
    )
    run("gcc", "-Wall", "-Werror", "-pedantic", "-std=c99", "-o", tmp_path / "p", tmp_path / "p.c")
    numbers = [int(word) for word in run(tmp_path / "p").stdout.split()]
    assert numbers == [getattr(oplock, f"IOC_{name}") for name in names]


def test_lengths_are_checked(tmp_path: Path) -> None:
    """A filter above may send what it likes: nothing is read or written past what it gives."""
    from stack_driver import Host, lookup

    from stackfs.cext.python_contexts import FilterContexts
    from stackfs.cext.python_requests import VfsError, Volume
    from stackfs.cext.stack import InstanceEntry
    from stackfs.filters.oplock import _callbacks, _oplocks

    (tmp_path / "file").write_bytes(b"content")
    core = Volume(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    contexts = FilterContexts((), _oplocks.contexts(), lambda *_: None)
    entry = InstanceEntry(Host(), "oplock", "405000", "oplock", native=_callbacks.operations(), contexts=contexts)
    core.stack.introduce(entry)
    mounted = _oplocks.Mounted(entry, 0.0, 10.0, False)
    core.stack.insert(entry)
    nodeid = lookup(core, b"file")
    fh = core.request(14, nodeid, flags=os.O_RDWR).do().fh
    for name in ("REQUEST", "READ_BREAK", "ACKNOWLEDGE", "STATE", "WRITE", "CREATE"):
        number = getattr(oplock, f"IOC_{name}")
        size = number >> 16 & 0x3FFF
        for given in (0, 1, size - 1):
            request = core.request(39, nodeid, fh=fh, command=number, input=bytes(given), buffer=bytearray(given))
            with pytest.raises(VfsError) as error:
                request.do()
            assert error.value.errno in (errno.EINVAL, errno.ENOBUFS, errno.ERANGE, errno.EMSGSIZE, errno.EOVERFLOW), (
                name
            )
    core.request(18, nodeid, fh=fh).do()
    assert mounted.active == 0
    core.stack.remove(entry)
    mounted.stop()
    core.stack.drained()
    mounted.end()
    core.close()


def test_reads_and_lookups_do_not_come_to_a_filter_that_sleeps(place: Place, agents: Make) -> None:
    """While nobody holds anything: the daemon counts the callbacks that it does not make."""
    agent = agents()
    fd = holder_of(agent, place, "R")
    agent.do(f"locks[{fd}].release()")
    assert agent.do(f"os.pread({fd}, 3, 0).decode()") == "con"
    agent.do(f"hold({fd}, 'RWH', patience=1.0)")
    other = agents()
    other.begin(f"os.pread({place.open}, 3, 0).decode()")
    assert agent.do(f"told({fd})")
    agent.do(f"ack({fd})")
    assert other.answer() == "con"


def test_trio(place: Place, agents: Make) -> None:
    """async with: the break is awaited, cancelled and awaited again; leaving gives the oplock up."""
    import trio

    opener = agents()

    async def holds() -> None:
        fd = os.open(place.file, os.O_RDWR)
        async with oplock.request_oplock(fd, "RWH", key=b"a" * 16) as lock:
            with trio.move_on_after(0.1):
                await lock.wait_break()
            opener.begin(f"os.read({place.open}, 20).decode()")
            with trio.fail_after(5):
                broken = await lock.wait_break()
            assert broken == oplock.Break("RWH", "RH", True)
            await lock.write(b"ASYNC", 0)
            assert lock.acknowledge() == "RH"
        assert oplock.state(fd).level == ""
        os.close(fd)

    trio.run(holds)
    assert opener.answer() == "ASYNCnt"


def test_the_tutorial_runs_as_it_is_written(drive: Callable[..., Drive], lanes: str) -> None:
    from stackfs.benchmarks import tutorial

    made = drive("filter=oplock", mount=False)
    made.mnt.rmdir()
    made.mnt = made.mnt.parent / "drive"  # as the document calls it
    made.mnt.mkdir()
    made.name = "drive"
    made.log = made.log.with_name("drive.log")
    made.mount(f"lanes={lanes}", "filter=oplock")
    said: list[str] = []
    tutorial.play(made.mnt.parent, said.append)
    assert "writer: RWH breaks to RH" in said and set(tutorial.programs()) == {"writer.py", "reader.py"}


def test_the_command(place: Place, agents: Make) -> None:
    assert run(STACKFS, "oplocks", place.drive.mnt).stdout == "no oplock is held\n"
    holder, other = agents(), agents()
    fd = holder_of(holder, place, "RWH")
    other.begin(place.open)
    assert holder.do(f"told({fd})")
    text = run(STACKFS, "oplocks", place.drive.mnt).stdout
    assert "breaks to RH" in text and str(holder.pid) in text and str(other.pid) in text and "waits" in text
    refused = run(STACKFS, "oplock", check=False)
    assert refused.returncode == 2 and "stackfs oplocks" in refused.stderr
    assert run(STACKFS, "oplocks", "nowhere", check=False).returncode != 0


def test_a_volume_that_keeps_writes_back_has_no_oplocks(drive: Callable[..., Drive]) -> None:
    made = drive("writeback")
    made.expected_log.append("oplock")
    made.fltmc("load", "oplock", check=False)
    refused = made.fltmc("attach", "oplock", str(made.mnt), check=False)
    assert "writeback" in refused.stderr + refused.stdout, refused


# ---- measured --------------------------------------------------------------------------------------------------------

CHECKS = """
import os, select, sys, time
from stackfs import oplock
path, rounds = sys.argv[1], int(sys.argv[2])
r, w = os.pipe()
back, forth = os.pipe()
child = os.fork()
if child == 0:
    for _ in range(rounds):
        os.read(r, 1)
        begun = time.monotonic_ns()
        fd = os.open(path, os.O_RDONLY)
        os.write(forth, begun.to_bytes(8, "little") + time.monotonic_ns().to_bytes(8, "little"))
        os.close(fd)
    os._exit(0)
wakes, returns = [], []
for _ in range(rounds):
    fd = os.open(path, os.O_RDWR)
    with oplock.request_oplock(fd, "RWH", patience=1.0) as lock:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        os.write(w, b"x")
        poll.poll(5000)
        woken = time.monotonic_ns()
        lock.wait_break(5)
        acknowledged = time.monotonic_ns()
        lock.acknowledge()
        told = os.read(back, 16)
        wakes.append(woken - int.from_bytes(told[:8], "little"))
        returns.append(int.from_bytes(told[8:], "little") - acknowledged)
    os.close(fd)
print(sorted(wakes)[rounds // 2] / 1000, sorted(returns)[rounds // 2] / 1000)
"""


@pytest.mark.long
def test_breaks_are_told_soon(drive: Callable[..., Drive]) -> None:
    """Medians: from the conflicting open to the holder's wake-up, from the acknowledgement to the opener's return."""
    place = Place(drive("filter=oplock"))
    woken, returned = map(float, run(sys.executable, "-c", CHECKS, place.file, 500, timeout=100).stdout.split())
    print(f"break to wake-up {woken:.0f} us, acknowledgement to return {returned:.0f} us")
    assert woken < 500 and returned < 500


COUNTED = """
import os, sys, tempfile
sys.path.insert(0, sys.argv[1])
from stack_driver import Host, lookup
from stackfs.benchmarks.request_cost import time_reads
from stackfs.cext.python_contexts import FilterContexts
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.filters.oplock import _callbacks, _oplocks
place = tempfile.mkdtemp()
with open(place + "/file", "wb") as file:
    file.write(bytes(4096))
volume = Volume(os.open(place, os.O_PATH | os.O_DIRECTORY))
if sys.argv[2] == "with":
    contexts = FilterContexts((), _oplocks.contexts(), print)
    entry = InstanceEntry(Host(), "oplock", "405000", "oplock", native=_callbacks.operations(), contexts=contexts)
    volume.stack.introduce(entry)
    mounted = _oplocks.Mounted(entry, 0.0, 10.0, False)
    volume.stack.insert(entry)
node = lookup(volume, b"file")
fh = volume.request(14, node, flags=2).do().fh
if sys.argv[3] == "read":
    time_reads(volume, [fh], int(sys.argv[4]))
else:
    for _ in range(int(sys.argv[4])):
        volume.request(3, node).do()
"""


@pytest.mark.long
@pytest.mark.parametrize("what", ["read", "stat"])
def test_nobody_holding_costs_nothing(what: str, tmp_path: Path) -> None:
    """Instructions of a 4 KiB read, and of a stat, with the filter and without it, and how many locks they take."""
    if shutil.which("valgrind") is None:
        pytest.skip("needs valgrind")
    counts = tmp_path / "counts"

    def locks() -> int:
        """pthread_mutex_lock() calls in callgrind's file."""
        names: dict[str, str] = {}
        called, count = "", 0
        for line in counts.read_text().splitlines():
            if match := re.match(r"c?fn=(\(\d+\))(?: (.*))?", line):
                if match[2]:
                    names[match[1]] = match[2]
                called = match[1]
            elif line.startswith("calls=") and "mutex_lock" in names[called]:
                count += int(line[6:].split()[0])
        return count

    def measured(which: str, count: int) -> tuple[int, int]:
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={counts}", sys.executable, "-c", COUNTED,
             str(ROOT / "tests"), which, what, str(count)],
            capture_output=True, text=True, timeout=300, check=True, env={**os.environ, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        return int(done.stderr.split("Collected :")[1].split()[0]), locks()

    def each(which: str) -> tuple[float, float]:
        many, few = measured(which, 101_000), measured(which, 1_000)
        return (many[0] - few[0]) / 100_000, (many[1] - few[1]) / 100_000

    (without, locks_without), (cost, locks_with) = each("without"), each("with")
    print(f"{what}: {without:.0f} instructions and {locks_without:.2f} locks without the filter")
    print(f"{what}: {cost:.0f} instructions and {locks_with:.2f} locks with it")
    assert cost < without * 1.05
    assert locks_without > 0.9 and abs(locks_with - locks_without) < 0.001


# ---- beside the mount ------------------------------------------------------------------------------------------------


@pytest.fixture
def coherent(drive: Callable[..., Drive], lanes: str) -> Place:
    return Place(drive("coherence=lease", "bypass=off", "filter=oplock"))


def test_a_writer_beside_the_mount_waits_until_the_holder_has_written(coherent: Place, agents: Make) -> None:
    """He opens the backing file; what the holder kept back is in it when his open(2) returns."""
    holder, foreign = agents(), agents()
    below = coherent.drive.src / "file"
    below.write_bytes(b"content")
    fd = holder.do(coherent.opens("os.O_RDONLY"))
    holder.do(f"hold({fd}, 'RH', b'', 1.0)")
    foreign.begin(f"os.open({str(below)!r}, os.O_RDWR)")
    assert holder.do(f"told({fd})") == ["RH", "", True, False, False]
    assert foreign.waits()
    (file,) = coherent.listed()
    assert [each["request"] for each in file["waiting"]] == ["open beside the mount"]
    assert holder.do(f"ack({fd}, '')") == ""
    written = foreign.answer()
    foreign.do(f"os.pwrite({written}, b'changed', 0)")
    eventually(lambda: holder.do(f"os.pread({fd}, 7, 0).decode()") == "changed")


def test_a_write_beside_the_mount_that_nobody_announced_breaks_oplocks(coherent: Place, agents: Make) -> None:
    """The mount has the file open for writing, so there is no lease to break: the write is noticed when it is done."""
    holder, foreign = agents(), agents()
    fd = holder_of(holder, coherent, "R")
    foreign.do(f"pathlib.Path({str(coherent.drive.src / 'file')!r}).write_bytes(b'changed')")
    assert holder.do(f"told({fd})") == ["R", "", False, False, False]


def test_a_holder_that_goes_away_frees_a_writer_beside_the_mount(coherent: Place, agents: Make) -> None:
    holder, foreign = agents(), agents()
    below = coherent.drive.src / "file"
    below.write_bytes(b"content")
    fd = holder.do(coherent.opens("os.O_RDONLY"))
    holder.do(f"hold({fd}, 'RH', b'', 1.0)")
    foreign.begin(f"os.open({str(below)!r}, os.O_WRONLY | os.O_TRUNC)")
    assert holder.do(f"told({fd})") is not None
    holder.kill()
    foreign.answer()
