"""Many processes with oplocks on one drive, doing what comes to hand: nobody is forgotten, and nobody holds anything
beside one who holds it alone."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import STACKFS, Drive, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oplock_agent import Agent, Failed, eventually

FILES = ("a", "b")
LEVELS = ("R", "RH", "RW", "RWH", "1", "2", "batch", "filter")
ALONE = {"RW", "RWH", "1", "batch", "filter"}
KEYS = ("b''", "b''", "b'k' * 16")
DOES = ("open", "open", "O_TRUNC", "hold", "hold", "hold", "ack", "ack", "ack level", "told", "write", "read",
        "fsync", "close", "release", "truncate", "again", "interrupt", "kill", "create")  # fmt: skip


MAY_WAIT = ("open", "truncate", "again", "read", "write", "fsync")
"""What may be interrupted: whether a close(2) has been is not known then."""


BY_NAME = ("open", "O_TRUNC", "create", "again", "truncate")
"""What a holder with one thread does not do: the kernel might hold the directory's lock for whoever waits for him."""


class Player:
    """One process: what it has open, and whether it is in the middle of something."""

    def __init__(self, place: str) -> None:
        self.agent = Agent()
        self.place = place
        self.fds: dict[str, int] = {}
        self.asked: set[str] = set()
        """Files of which it has been granted an oplock: it does not write(2) to those, which might wait for itself."""
        self.doing: tuple[str, str] | None = None

    def settle(self, seconds: float = 0.0) -> bool:
        """Take in what has ended. False: it waits."""
        if self.doing is None:
            return True
        if not self.agent.has_answer(seconds):
            return False
        what, file = self.doing
        self.doing = None
        try:
            answer = self.agent.answer()
        except Failed as error:
            assert error.kind in (
                "Interrupted", "NotGranted", "NothingToAcknowledge", "TooMuch", "OSError", "SharingViolation",
                "FileNotFoundError", "OplockError", "FileExistsError",
            ), (what, error)  # fmt: skip
            return True
        if what == "open":
            self.fds[file] = answer
            self.asked.discard(file)
        elif what == "hold":
            self.asked.add(file)
        return True

    def does(self, what: str, file: str, number: int) -> None:
        """Begin something, if there is something to be done."""
        path, fd = f"{self.place}/{file}", self.fds.get(file)
        expression = ""
        kind = what
        if self.asked and what in BY_NAME:
            return
        if what in ("open", "O_TRUNC", "create") and fd is None:
            kind = "open"
            flags = "os.O_RDWR" if what == "open" else "os.O_WRONLY | os.O_TRUNC"
            expression = f"os.open({path!r}, {flags})"
            if what == "create":
                expression = (
                    f"create(os.open({self.place!r}, os.O_RDONLY), {file!r}, share={number % 8}, disposition='open').fd"
                )
        elif what == "again":
            expression = f"os.unlink({path!r}) or os.close(os.open({path!r}, os.O_CREAT | os.O_WRONLY))"
        elif what == "truncate":
            expression = f"os.truncate({path!r}, {number})"
        elif fd is not None:
            held = file in self.asked
            expression = {
                "hold": f"hold({fd}, {LEVELS[number % 8]!r}, {KEYS[number % 3]})",
                "ack": f"ack({fd})" if held else "",
                "ack level": f"ack({fd}, {LEVELS[number % 4]!r})" if held else "",
                "told": f"told({fd}, 0.0)" if held else "",
                "release": f"locks[{fd}].release()" if held else "",
                "write": f"flush({fd}, b'x', {number})" if held else f"os.pwrite({fd}, b'x', {number})",
                "read": f"os.pread({fd}, 3, {number})",
                "fsync": "" if held else f"os.fsync({fd})",
                "close": f"os.close({fd})",
            }.get(what, "")
            if what == "close":
                del self.fds[file]
                self.asked.discard(file)
        if expression:
            self.agent.begin(expression)
            self.doing = kind, file

    def levels(self) -> list[tuple[int, str]]:
        """(inode, level) of what it holds unbroken; only while it does nothing else."""
        held = []
        for file in self.asked & set(self.fds):
            level, breaking, *_ = self.agent.do(f"state({self.fds[file]})")
            if level and breaking is None:
                held.append((self.agent.do(f"os.fstat({self.fds[file]}).st_ino"), level))
        return held


class Storm:
    def __init__(self, drive: Drive, players: int) -> None:
        self.drive = drive
        for file in FILES:
            (drive.mnt / file).write_bytes(b"content")
        self.players = [Player(str(drive.mnt)) for _ in range(players)]
        self.dead: list[Agent] = []

    def step(self, who: int, what: str, file: str, number: int) -> None:
        index = who % len(self.players)
        player = self.players[index]
        if what == "kill":
            player.agent.process.kill()
            self.dead.append(player.agent)
            self.players[index] = Player(player.place)
            return
        if not player.settle():
            if what == "interrupt" and player.doing is not None and player.doing[0] in MAY_WAIT:
                player.agent.interrupt()
            return
        if what != "interrupt":
            player.does(what, file, number)
            player.settle(0.02)
        self.check()

    def check(self) -> None:
        """Nobody holds anything beside one who holds it alone; asked again, as the one asked first may lose his level
        while the next is asked."""
        eventually(lambda: not self.conflicts(), 1.0)

    def conflicts(self) -> dict[int, list[str]]:
        """Levels held of one inode that exclude each other."""
        held: dict[int, list[str]] = {}
        for player in self.players:
            if player.settle():
                for inode, level in player.levels():
                    held.setdefault(inode, []).append(level)
        return {inode: levels for inode, levels in held.items() if len(levels) > 1 and ALONE & set(levels)}

    def end(self, seed: int) -> None:
        """Who is free closes, or dies; whoever waited then goes on, until nobody waits and nothing is held."""
        choice = random.Random(seed)
        until = time.monotonic() + 15
        while any(player.fds or player.doing for player in self.players):
            assert time.monotonic() < until, ("forgotten", [player.doing for player in self.players], self.listed())
            for index, player in enumerate(self.players):
                if not player.settle(0.02):
                    continue
                if player.fds and choice.random() < 0.3:
                    player.agent.process.kill()
                    self.dead.append(player.agent)
                    self.players[index] = Player(player.place)
                else:
                    for file in list(player.fds):
                        player.agent.do(f"os.close({player.fds.pop(file)})")
                    player.asked.clear()
        self.stop()
        eventually(lambda: self.listed() == [])

    def stop(self) -> None:
        for each in (*self.dead, *(player.agent for player in self.players)):
            each.process.kill()
        for each in (*self.dead, *(player.agent for player in self.players)):
            each.end()

    def listed(self) -> list[Any]:
        files: list[Any] = json.loads(run(STACKFS, "oplocks", "--json", self.drive.mnt).stdout)["files"]
        return files


STEPS = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from(DOES), st.sampled_from(FILES), st.integers(0, 23)),
    min_size=10,
    max_size=80,
)


@pytest.fixture
def storms(drive: Callable[..., Drive]) -> Iterator[Callable[[int], Storm]]:
    mounted = drive("filter=oplock", "cache=strict", "oplock.open_timeout=0.5")
    made: list[Storm] = []

    def make(players: int) -> Storm:
        for before in made:
            before.stop()
        made.append(Storm(mounted, players))
        return made[-1]

    yield make
    for storm in made:
        storm.stop()


def hold_it(storms: Callable[[int], Storm], players: int, steps: list[tuple[int, str, str, int]]) -> None:
    storm = storms(players)
    for step in steps:
        storm.step(*step)
    storm.end(len(steps))


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(steps=STEPS)
def test_nobody_is_forgotten(storms: Callable[[int], Storm], steps: list[tuple[int, str, str, int]]) -> None:
    hold_it(storms, 4, steps)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(steps=STEPS)
def test_nobody_is_forgotten_for_long(storms: Callable[[int], Storm], steps: list[tuple[int, str, str, int]]) -> None:
    hold_it(storms, 8, steps)


@pytest.mark.timeout(200)
def test_a_storm(storms: Callable[[int], Storm], lanes: str) -> None:
    """The same at random, longer than what is shrunk."""
    choice = random.Random(7)
    storm = storms(5)
    for _ in range(300):
        storm.step(choice.randrange(5), choice.choice(DOES), choice.choice(FILES), choice.randrange(24))
    storm.end(1)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(100, 106))
def test_long_storms(storms: Callable[[int], Storm], lanes: str, seed: int) -> None:
    """And longer, of more processes, on both lanes."""
    choice = random.Random(seed)
    storm = storms(8)
    for _ in range(4000):
        storm.step(choice.randrange(8), choice.choice(DOES), choice.choice(FILES), choice.randrange(24))
    storm.end(seed)
