"""Crash safety of the encrypted drive, through the mount: power cuts, a daemon that is killed, a disk that fails.

A scenario is a program on a drive with a filter below that writes down every change of the backing directory
(tests/fault.py). Of that, states are built that the order of the syncs allows (tests/crash_states.py), and each is held
against what the program may find (tests/crash_program.py): read by the core, looked at by fsck, repaired, read again; a
few of them are really mounted.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import STACKFS, Drive, fallocate, run
from crash_program import BLOCK, NEVER, Program, read_tree, shown_tree
from crash_states import Choice, Model, Recording
from encryption_drive import PHRASE, Vault

from stackfs import mark
from stackfs.errors import ExitCode
from stackfs.filters.encryption import fsck
from stackfs.filters.encryption import volume as volumes
from stackfs.filters.encryption._cipher import VolumeKeys
from stackfs.filters.encryption.findings import UNCLEAN, Kind, Report
from stackfs.filters.encryption.fsck_state import State

LONG = "l" * 200
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16


def hole(descriptor: int, offset: int, length: int) -> None:
    fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def zeros(descriptor: int, offset: int, length: int) -> None:
    fallocate(descriptor, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)


def until_sealed(it: Vault) -> None:
    """The drive's files are left alone until the filter has sealed them."""
    time.sleep(1.6)


class Recorded:
    """An encrypted drive with the fault filter below, and its log."""

    def __init__(self, it: Vault, top: Path) -> None:
        self.it, self.top = it, top
        top.chmod(0o755)
        (top / "filters").mkdir(mode=0o755)
        shutil.copy(Path(__file__).with_name("fault.py"), top / "filters")
        self.log, self.control = top / "log", top / "control"

    def mount(self, *options: str) -> Program:
        self.it.mount(
            f"filterdir={self.top / 'filters'}",
            f"filter=fault,fault.log={self.log},fault.control={self.control}",
            *options,
        )
        return Program(self.it.mnt, lambda: os.stat(self.log).st_size)

    def fails(self, kind: str, error: int, skip: int = 0, count: int = 1) -> None:
        """From now on; count 0: nothing fails."""
        self.control.write_text(f"{kind} {error} {skip} {count}")

    def keys(self) -> VolumeKeys:
        return unlocked(self.it.src).keys


def unlocked(source: Path) -> volumes.Unlocked:
    file = volumes.parse((source / volumes.VOLUME_FILE).read_bytes())
    return volumes.unlock(file, volumes.passphrase(bytearray(PHRASE)))


@pytest.fixture
def recorded(vault: Callable[..., Vault], tmp_path: Path) -> Callable[..., Recorded]:
    """recorded(names=..., suite=...): a volume that is not mounted yet."""

    def make(**settings: Any) -> Recorded:
        return Recorded(vault(mount=False, **settings), tmp_path)

    return make


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where states are built: in memory, where that keeps attributes."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="stackfs-crash-", dir=shared if shared.is_dir() else tmp_path) as made:
        try:
            os.setxattr(made, "user.test", b"1")
        except OSError:
            with tempfile.TemporaryDirectory(dir=tmp_path) as other:
                yield Path(other)
            return
        yield Path(made)


def checked(source: Path, opened: volumes.Unlocked, *, repair: bool) -> Report:
    """What fsck finds."""
    root = volumes.open_directory(str(source))
    state = State._new(None, sqlite3.connect(":memory:"))
    try:
        found = fsck.Opened(opened, opened.file, opened.file, {})
        return fsck.Fsck(root, found, state, repair=repair, threads=1).run()
    finally:
        state.close(finished=True)
        os.close(root)


# --- scenarios ------------------------------------------------------------------------------------------------------


def data(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def create_and_write(it: Vault, p: Program) -> None:
    for number, size in enumerate((0, 1, 5000, 120_000)):
        p.create(f"synced{number}", data(size, number), sync=True)
    p.sync("")
    p.create("new", data(9000, 10))
    p.append("new", data(9000, 11))
    p.create("empty")
    p.write("synced2", 4000, data(5000, 12))
    p.sync("synced2")
    p.create("later", data(110_000, 13), sync=True)
    p.sync("")


def overwrite(it: Vault, p: Program) -> None:
    p.create("file", data(160_000, 1), sync=True)
    p.sync("")
    for number in range(12):
        p.write("file", (number * 7919 * 13) % 150_000, data((1, 4096, 8192, 6000)[number % 4], 20 + number))
        if number % 5 == 4:
            p.sync("file")
        if number == 6:
            until_sealed(it)
    until_sealed(it)
    p.write("file", 8192, data(4096, 40))


def append(it: Vault, p: Program) -> None:
    p.create("log", b"", sync=True)
    p.sync("")
    for number in range(14):
        p.append("log", data((100, 4000, 9000, 30_000)[number % 4], number))
        if number % 4 == 3:
            p.sync("log")
        if number == 9:
            until_sealed(it)


def truncate(it: Vault, p: Program) -> None:
    p.create("file", data(150_000, 1), sync=True)
    p.create("small", data(9000, 2), sync=True)
    p.sync("")
    p.truncate("small", 5000)
    p.truncate("file", 110_001)
    p.append("file", data(5000, 3))
    p.truncate("file", 20_000)
    p.truncate("small", 12_000)
    p.sync("file")
    p.truncate("file", 130_000)
    p.write("small", 0, data(100, 4))
    until_sealed(it)
    p.truncate("small", 0)
    p.append("small", data(6000, 5))
    p.truncate("file", 0)
    p.sync("file")
    p.sync("small")
    until_sealed(it)
    p.append("file", data(70_000, 6))
    p.truncate("small", 4096)


def rename_over(it: Vault, p: Program) -> None:
    p.mkdir("folder")
    p.create("folder/config", data(6000, 1), sync=True)
    p.sync("folder")
    p.sync("")
    for number in range(3):
        p.create("folder/config.tmp", data(5000 + number * 4000, 2 + number), sync=number != 1)
        p.rename("folder/config.tmp", "folder/config")
        if number != 1:
            p.sync("folder")
    p.create("folder/" + LONG, data(3000, 9), sync=True)
    p.rename("folder/" + LONG, "folder/config")
    p.sync("folder")
    p.rename("folder/config", "folder/" + LONG[:190])
    p.rename("folder/" + LONG[:190], "moved")
    p.sync("folder")
    p.sync("")


def directories(it: Vault, p: Program) -> None:
    p.mkdir("a")
    p.mkdir("a/b")
    p.create("a/b/file", data(5000, 1), sync=True)
    for each in ("a/b", "a", ""):
        p.sync(each)
    p.mkdir("c")
    p.create("c/new", data(100, 2), sync=True)
    p.sync("c")
    p.sync("")
    p.mkdir("c/" + LONG)
    p.mkdir("c/" + LONG + "/inner")
    p.sync("c")
    p.create("c/" + LONG + "/inner/x", b"x" * 5000, sync=True)
    p.sync("c/" + LONG + "/inner")
    p.sync("c/" + LONG)


def rename_directories(it: Vault, p: Program) -> None:
    for each in ("one", "two", "one/sub", "empty"):
        p.mkdir(each)
    p.create("one/sub/file", data(5000, 1), sync=True)
    p.create("one/other", data(50, 2), sync=True)
    for each in ("one/sub", "one", "two", "empty", ""):
        p.sync(each)
    p.rename("one/sub", "one/renamed")
    p.rename("one/renamed", "two/moved")
    p.sync("one")
    p.sync("two")
    p.rename("two/moved", LONG)
    p.create(LONG + "/more", data(10, 3), sync=True)
    p.sync(LONG)
    p.rename("one", "empty")
    p.sync("two")
    p.sync("")
    p.rename("empty", "one")
    p.rename(LONG, "one/" + LONG[:170])


def removals(it: Vault, p: Program) -> None:
    for each in ("a", "a/b", LONG):
        p.mkdir(each)
    for number, each in enumerate(("a/b/file", "a/" + LONG, LONG + "/" + LONG[:180], "x")):
        p.create(each, data(4000, number), sync=True)
    for each in ("a/b", "a", LONG, ""):
        p.sync(each)
    p.remove("a/b/file")
    p.remove("a/b")
    p.remove("a/" + LONG)
    p.sync("a")
    p.remove(LONG + "/" + LONG[:180])
    p.remove(LONG)
    p.remove("x")
    p.create("x", data(100, 9), sync=True)
    p.remove("a")
    p.sync("")
    p.mkdir("a")
    p.create("a/y", data(1, 3), sync=True)


def links(it: Vault, p: Program) -> None:
    p.mkdir("d")
    p.create("d/file", data(6000, 1), sync=True)
    p.sync("d")
    p.sync("")
    p.symlink(b"d/file", "soft")
    p.symlink(b"x" * 300, "d/" + LONG)
    p.link("d/file", "hard")
    p.link("d/file", "d/" + LONG[:199])
    p.sync("d")
    p.sync("")
    p.write("hard", 100, data(5000, 2))
    p.remove("d/file")
    p.sync("hard")
    p.remove("soft")
    p.rename("hard", "harder")
    p.sync("d")
    p.sync("")


def holes(it: Vault, p: Program) -> None:
    p.create("file", data(200_000, 1), sync=True)
    p.create("sparse", b"")
    p.write("sparse", 300_000, data(5000, 2))
    p.sync("sparse")
    p.sync("")
    p.punch("file", 5000, 60_000, hole)
    p.write("file", 8192, data(4096, 3))
    p.sync("file")
    p.punch("file", 100_000, 100_000, zeros)
    p.write("sparse", 100_000, data(9000, 4))
    p.punch("sparse", 0, 302_000, hole)
    until_sealed(it)
    p.punch("file", 0, 200_000, hole)
    p.write("file", 30_000, data(20_000, 5))
    p.sync("file")


def attributes(it: Vault, p: Program) -> None:
    p.mkdir("d")
    p.create("file", data(100, 1), sync=True)
    p.sync("d")
    p.sync("")
    p.attribute("file", "user.a", b"1" * 20)
    p.attribute("d", "user.b", b"2")
    p.sync("file")
    p.sync("d")
    p.attribute("file", "user.a", b"3" * 200)
    p.attribute("file", "user.c", b"")
    p.attribute("d", "user.b", None)
    p.create("new", data(5000, 2))
    p.attribute("new", "user.d", b"4" * 50)
    p.write("file", 10, data(5000, 3))
    p.attribute("file", "user.a", None)
    p.sync("d")


def random_walk(it: Vault, p: Program) -> None:
    rng = random.Random(77)
    p.create("0", data(100_000, 0), sync=True)
    p.sync("")
    for number in range(60):
        names = [name for name, each in p.root.names.items() if each.kind == "file"]
        one = rng.choice(names)
        size = len(p.at(one).content)
        kind = rng.randrange(10)
        if kind < 4:
            p.write(one, rng.randrange(150_000), rng.randbytes(rng.choice((1, 4096, 5000, 20_000))))
        elif kind == 4:
            p.append(one, rng.randbytes(rng.choice((10, 5000))))
        elif kind == 5:
            p.truncate(one, rng.randrange(size + 5000))
        elif kind == 6 and size:
            p.punch(one, rng.randrange(size), rng.randrange(1, 60_000), hole)
        elif kind == 7:
            p.create(str(number), rng.randbytes(rng.randrange(30_000)), sync=rng.random() < 0.5)
        elif kind == 8 and len(names) > 2:
            p.rename(one, rng.choice([each for each in names if each != one]))
        else:
            p.sync(rng.choice((one, "")))


SCENARIOS = (
    create_and_write,
    overwrite,
    append,
    truncate,
    rename_over,
    directories,
    rename_directories,
    removals,
    links,
    holes,
    attributes,
    random_walk,
)


# --- power cuts -----------------------------------------------------------------------------------------------------


def crashes(
    recording: Recording,
    program: Program,
    opened: volumes.Unlocked,
    mark_of: Path,
    place: Path,
    states: int,
    *,
    plain: bool,
) -> list[Choice]:
    """Looks at so many states; returns some of them, to be mounted."""
    rng = random.Random(states)
    models: tuple[Model, ...] = ("journal", "log")
    streams = [
        recording.choices(rng, model, recording.begin, torn=torn) for model in models for torn in (False, True)
    ]
    weights = (0, 0, 2, 2, 1, 3)
    seen: set[Choice] = set()
    for number in range(states):
        choice = next(streams[weights[number % len(weights)]])
        if choice in seen:
            continue
        seen.add(choice)
        source = place / str(number)
        source.mkdir()
        try:
            built(recording, choice, source, mark_of)
            survives(recording, program, opened, source, choice, plain=plain)
        except BaseException as error:
            tail = "\n".join(
                f"{n}{'' if n in choice.kept else ' lost'} {str(recording.records[n])[:150]}"
                for n in range(max(recording.begin, choice.end - 40), choice.end)
                if recording.records[n][0] != "inode"
            )
            raise AssertionError(f"state {number}: {error!r}\n{choice.torn}\n{tail}") from error
        shutil.rmtree(source)
    return rng.sample(sorted(seen, key=lambda each: each.end), min(len(seen), 3))


def built(recording: Recording, choice: Choice, place: Path, mark_of: Path) -> None:
    """The volume's mark is nothing that a filter sees."""
    recording.build(choice, place)
    shutil.copy(mark_of / mark.NAME, place)


def survives(
    recording: Recording, program: Program, opened: volumes.Unlocked, source: Path, choice: Choice, *, plain: bool
) -> None:
    position = recording.positions[choice.end]
    torn = bool(choice.torn)
    before = read_tree(opened.keys, source, plain_names=plain)
    program.check(before, position, torn=torn)
    found = checked(source, opened, repair=False)
    kinds = {each.kind for each in found.findings}
    lost = {Kind.HEADER} if files_lost(before) else set()
    assert kinds <= UNCLEAN | lost | ({Kind.BLOCK} if torn else set()), [each.document() for each in found.findings]
    repaired = checked(source, opened, repair=True)
    left = {each.kind for each in repaired.left}
    assert left <= ({Kind.BLOCK} if torn else set()), [each.document() for each in repaired.left]
    again = checked(source, opened, repair=False)
    assert {each.kind for each in again.findings} == left, [each.document() for each in again.findings]
    after = read_tree(opened.keys, source, plain_names=plain)
    program.check(without_lost(after, before), position, torn=torn)
    same_content(before, after)


def files_lost(tree: Any) -> bool:
    return any(
        each[1] is None if each[0] == "file" else each[0] == "directory" and files_lost(each)
        for each in tree[1].values()
    )


def without_lost(after: Any, before: Any) -> Any:
    """A file that was never synced, and that fsck has made empty or moved aside, is one that is lost, as before."""
    names = dict(after[1])
    for name, each in before[1].items():
        if each[0] == "file" and each[1] is None:
            names[name] = each
        elif each[0] == "directory" and name in names:
            names[name] = without_lost(names[name], each)
    return (after[0], names, *after[2:])


def same_content(before: Any, after: Any) -> None:
    """A repair changes nothing that could be read before."""
    for name, each in before[1].items():
        if each[0] == "directory":
            same_content(each, after[1][name])
        elif each[0] == "link" or each[1] is not None:
            assert after[1][name] == each, name


def played(
    recorded: Callable[..., Recorded], scenario: Callable[..., None], **settings: Any
) -> tuple[Recorded, Program]:
    it = recorded(**settings)
    program = it.mount()
    scenario(it.it, program)
    it.it.umount()
    return it, program


def power_cuts(
    recorded: Callable[..., Recorded],
    drive: Callable[..., Drive],
    place: Path,
    scenario: Callable[..., None],
    states: int,
    mounts: int,
    **settings: Any,
) -> None:
    it, program = played(recorded, scenario, **settings)
    recording = Recording(it.log)
    opened = unlocked(it.it.src)
    plain = settings.get("names") == "plain"
    some = crashes(recording, program, opened, it.it.src, place, states, plain=plain)
    for choice in some[:mounts]:
        made = drive(mount=False)
        built(recording, choice, made.src, it.it.src)
        made.expected_log.append("damaged or was changed")
        made.mount(f"filter=encryption,encryption.passfile={it.it.passfile}")
        program.check(shown_tree(made.mnt), recording.positions[choice.end], torn=bool(choice.torn))
        made.umount()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut(
    recorded: Callable[..., Recorded], drive: Callable[..., Drive], place: Path, scenario: Callable[..., None]
) -> None:
    power_cuts(recorded, drive, place, scenario, 100, 1)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("settings", [{}, {"names": "plain"}, {"suite": "aes-256-siv"}], ids=["gcm", "plain", "siv"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_2000_power_cuts(
    recorded: Callable[..., Recorded],
    drive: Callable[..., Drive],
    place: Path,
    scenario: Callable[..., None],
    settings: dict[str, str],
) -> None:
    power_cuts(recorded, drive, place, scenario, 2000, 3, **settings)


def test_the_scenarios_would_notice(
    recorded: Callable[..., Recorded], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they rely on is looked at: were no sync there, states come up that the program may not find."""
    it, program = played(recorded, overwrite)
    recording = Recording(it.log)
    opened = unlocked(it.it.src)
    lazy = Recording(it.log)
    monkeypatch.setattr(lazy, "durable", lambda end, model: (set(), recording.begin))
    with pytest.raises(AssertionError):
        crashes(lazy, program, opened, it.it.src, place, 300, plain=False)


# --- the daemon is killed --------------------------------------------------------------------------------------------


class Worker(threading.Thread):
    """A program of its own in a folder, until the drive goes. Positions are numbers that go up with each step."""

    def __init__(self, top: Path, seed: int) -> None:
        super().__init__()
        self.clock = 0
        self.top, self.rng = top / f"worker{seed}", random.Random(seed)
        self.top.mkdir()
        self.program = Program(self.top, lambda: self.clock)
        self.synced = 0

    def run(self) -> None:
        try:
            while True:
                self.step()
                self.clock += 1
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT):
                raise

    def step(self) -> None:
        rng, p = self.rng, self.program
        files = [name for name, each in p.root.names.items() if each.kind == "file"]
        kind = rng.randrange(12) if files else 0
        if kind == 0 and len(files) < 12:
            p.create(rng.choice(("", "l" * 170)) + str(self.clock), rng.randbytes(rng.randrange(60_000)))
        elif kind < 5 and files:
            p.write(rng.choice(files), rng.randrange(200_000), rng.randbytes(rng.choice((1, 4096, 50_000))))
        elif kind == 5:
            p.append(rng.choice(files), rng.randbytes(3000))
        elif kind == 6:
            p.truncate(rng.choice(files), rng.randrange(150_000))
        elif kind == 7:
            p.punch(rng.choice(files), rng.randrange(100_000), rng.randrange(1, 50_000), hole)
        elif kind == 8 and len(files) > 3:
            p.rename(*rng.sample(files, 2))
        elif kind == 9 and len(files) > 3:
            p.remove(rng.choice(files))
        elif files:
            p.sync(rng.choice((*files, "")))
            self.synced += 1


def killed_under_load(it: Vault, rounds: int, seed: int) -> None:
    """Everything that was done before the kill is there, whether it was synced or not: the kernel below has it (with
    `writeback`, what was synced). What was under way is there as a whole, in part by blocks, or not; of a block that
    was under way the kernel may have taken one page and not the other: it is unreadable."""
    rng = random.Random(seed)
    it.drive.expected_log.append("damaged or was changed")
    for number in range(rounds):
        workers = [Worker(it.mnt, number * 10 + each) for each in range(3)]
        for worker in workers:
            worker.start()
        time.sleep(rng.uniform(0.05, 1.5))
        os.kill(it.drive.pid, 9)
        it.drive.wait_gone()
        for worker in workers:
            worker.join(30)
            assert not worker.is_alive()
        run(STACKFS, "umount", it.mnt)
        if number % 2:
            left_by_a_kill(it.fsck("--json", check=False))
            left_by_a_kill(it.fsck("--json", "--repair", check=False))
            assert all(each["kind"] == "block" for each in left_by_a_kill(it.fsck("--json", check=False)))
        it.mount()
        for worker in workers:
            p = worker.program
            position = worker.clock
            found = shown_tree(worker.top)
            if "writeback" not in it.options:
                kept(p)
            p.check(found, position, torn=True)
            carried_on(worker.top, found[1])
    it.umount()


def left_by_a_kill(said: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What fsck has found and left: nothing but what is not sealed, and blocks."""
    assert said.returncode in (ExitCode.OK, ExitCode.UNCLEAN, ExitCode.DAMAGED, ExitCode.REPAIRED), said.stderr
    left = [each for each in json.loads(said.stdout)["findings"] if not each["repaired"]]
    assert {each["kind"] for each in left} <= {"block", *UNCLEAN}, said.stdout
    return left


def kept(p: Program) -> None:
    """What has ended is certain: as if it had been synced."""
    for event in p.events:
        if event.ended != NEVER:
            event.settled = (*event.settled, *event.values)


def carried_on(top: Path, found: dict[str, Any]) -> None:
    """And the drive goes on from there: files are written to, unless they have no header or their last block is torn,
    and removed."""
    for path in list(top.iterdir()):
        content = found[path.name][1]
        try:
            with path.open("ab") as file:
                file.write(b"goes on")
            with path.open("rb") as file:
                file.seek(-7, os.SEEK_END)
                assert file.read() == b"goes on"
        except OSError as error:
            assert error.errno == errno.EIO and (not content or content[-1] is None)
        path.unlink()
    top.rmdir()


@pytest.mark.parametrize("options", ["cache=strict", "lanes=irp"])
def test_a_killed_daemon_under_load(vault: Callable[..., Vault], options: str) -> None:
    killed_under_load(vault(options), 3, 5)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", ["cache=strict", "lanes=irp", "cache=normal", "writeback"])
def test_a_killed_daemon_under_load_often(vault: Callable[..., Vault], options: str) -> None:
    killed_under_load(vault(options), 60, 6)


# --- a disk that fails ----------------------------------------------------------------------------------------------


def adopt(p: Program) -> None:
    """After a failure: what is there now, which has to be something that may be, is what there is. A block of which the
    disk has taken a part is unreadable, until it is written anew."""
    found = shown_tree(p.top)
    p.check(found, p.position(), torn=True)
    for name, (_, content, _) in found[1].items():
        for block in [number for number, each in enumerate(content) if each is None]:
            with open(p.top / name, "r+b", buffering=0) as file:
                new = bytes([block % 256]) * min(BLOCK, os.fstat(file.fileno()).st_size - block * BLOCK)
                assert os.pwrite(file.fileno(), new, block * BLOCK) == len(new)
            content[block] = new
    assert shown_tree(p.top) == found
    for name, (kind, content, *_) in found[1].items():
        numbers = p.allowed(("name", p.root.number, name), p.position())
        (file,) = [p.things[each] for each in numbers if each is not None][-1:]
        assert kind == "file" and content is not None
        file.content[:] = b"".join(content)
        with p.step(
            {("name", p.root.number, name): file.number, **p.changed(file)},
            (("name", p.root.number, name), ("block", file.number), ("size", file.number)),
        ):
            p.root.names[name] = file
    for name in set(p.root.names) - set(found[1]):
        del p.root.names[name]
        with p.step({("name", p.root.number, name): None}, (("name", p.root.number, name),)):
            pass


def failing(it: Recorded, seed: int, rounds: int) -> int:
    """Random operations, one of the operations below each fails. How many of the program's own failed."""
    rng = random.Random(seed)
    p = it.mount("cache=strict")
    p.position = itertools.count().__next__
    it.it.drive.expected_log.append("damaged or was changed")
    for number in range(4):
        p.create(str(number), rng.randbytes(number * 40_000), sync=True)
    failures, story = 0, []
    for number in range(rounds):
        one = rng.choice(sorted(p.root.names))
        size = len(p.at(one).content)
        steps: list[Callable[[], None]] = [
            lambda one=one: p.write(one, rng.randrange(200_000), rng.randbytes(rng.choice((1, 4096, 50_000, 300_000)))),
            lambda one=one: p.append(one, rng.randbytes(rng.choice((10, 9000)))),
            lambda one=one, size=size: p.truncate(one, rng.randrange(size + 1)),
            lambda one=one, size=size: p.truncate(one, size + rng.randrange(50_000)),
            lambda one=one: p.truncate(one, 0),
            lambda one=one: p.punch(one, rng.randrange(100_000), rng.randrange(1, 100_000), hole),
            lambda number=number: p.create(f"c{number}" + "l" * rng.choice((0, 170)), rng.randbytes(5000)),
            lambda one=one, number=number: p.rename(one, f"r{number}" + "l" * rng.choice((0, 170))),
            lambda one=one: p.sync(one),
            lambda one=one: p.remove(one) if len(p.root.names) > 3 else None,
        ]
        kind = rng.choice(("write", "write", "write", "any", "sync", "resize", "punch", "names"))
        fault = (kind, rng.choice((errno.EIO, errno.ENOSPC)), rng.choice((0, 0, 1, 2, 5)), rng.choice((1, 1, 5)))
        it.fails(*fault)
        which = rng.randrange(len(steps))
        went = "done"
        try:
            steps[which]()
        except OSError as error:
            assert error.errno in (errno.EIO, errno.ENOSPC), error
            failures += 1
            went = "failed"
        story.append(f"{number}: step {which} of {one[:6]}, {size} bytes, {fault}, {went}")
        it.fails("any", 0, 0, 0)
        try:
            if went == "failed" and one in p.root.names and (p.top / one).exists():
                p.sync(one)              # until the next one succeeds, what failed may be done or not
            adopt(p)
        except AssertionError as error:
            raise AssertionError("\n".join((*story[-60:], str(error)))) from error
        if number % 10 == 9:
            p.sync(rng.choice(sorted(p.root.names)))
        if number % 40 == 39:
            it.it.umount()
            checked_now = it.it.fsck(check=False)
            assert checked_now.returncode in (0, 9), checked_now.stdout
            it.mount("cache=strict")
            p.check(shown_tree(p.top), NEVER - 1)
    it.it.umount()
    return failures


def test_a_disk_that_fails(recorded: Callable[..., Recorded]) -> None:
    """EIO and ENOSPC in the middle of whatever the filter does below: every block is old or new, the drive goes on, and
    fsck finds at most what a crash may leave."""
    assert failing(recorded(), 1, 80) > 10


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10, 16))
def test_a_disk_that_fails_for_long(recorded: Callable[..., Recorded], seed: int) -> None:
    assert failing(recorded(), seed, 600) > 100


def test_a_disk_that_syncs_nothing_any_more_does_not_hold_up_the_end(recorded: Callable[..., Recorded]) -> None:
    it = recorded()
    p = it.mount()
    it.it.drive.expected_log.append("damaged or was changed")
    p.create("file", data(50_000, 1), sync=True)
    it.fails("sync", errno.EIO, 0, 1 << 30)
    p.write("file", 0, b"not sealed")
    it.it.umount()
    it.fails("any", 0, 0, 0)
    it.mount()
    p.check(shown_tree(p.top), NEVER - 1)
    it.it.umount()


@pytest.mark.parametrize("kind", ["mode", "names", "sync", "write"])
def test_a_directory_that_cannot_be_made_leaves_nothing(recorded: Callable[..., Recorded], kind: str) -> None:
    it = recorded()
    p = it.mount()
    made = []
    for skip in range(6):
        it.fails(kind, errno.EIO, skip, 1)
        name = f"{skip}" + "l" * 180
        try:
            os.mkdir(p.top / name, 0o500)
        except OSError as error:
            assert error.errno == errno.EIO
        else:
            made.append(name)
        it.fails("any", 0, 0, 0)
        assert sorted(os.listdir(p.top)) == made
    assert len(made) < 6 and all((p.top / name).stat().st_mode & 0o777 == 0o500 for name in made)
    it.it.umount()
    done = it.it.fsck(check=False)
    assert done.returncode in (0, 9), done.stdout
