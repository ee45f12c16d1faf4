"""Oplocks (docs/semantics.md A9): cext/oplock.pyx's tables against the independent statement of the rules, row by row.

A row is a situation (who holds what, what is breaking, who waits) and one more step; both sides take the same steps and
have to agree on the answer, on who is told what, on who goes on, and on the state. Then everybody acknowledges and
closes, and nobody may be left.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import oplock_rules as rules
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oplock_rules import RH, RW, RWH, S

from stackfs import api as levels
from stackfs.cext.ntstatus import status_name
from stackfs.cext.python_oplock import Oplock, OplockOpen, OplockRequest

R = S.READ
PENDING, CANCELLED = "STATUS_PENDING", "STATUS_CANCELLED"
KEY, OTHER = b"K" * 16, b"O" * 16
OPENS = {
    "a": (KEY, b""),
    "a2": (KEY, b""),
    "b": (OTHER, b""),
    "plain": (b"", b""),
    "plain2": (b"", b""),
    "child": (OTHER, KEY),
}
STATED_OPENS = {name: rules.Open(name, *keys) for name, keys in OPENS.items()}
REAL_OPENS = {name: OplockOpen(*keys) for name, keys in OPENS.items()}
BY_NUMBER = {each.number: name for name, each in REAL_OPENS.items()}
KINDS = {
    "OPEN_BREAK_H": levels.OPLOCK_OPEN_BREAK_H,
    "READ": levels.OPLOCK_READ,
    "FLUSH_DATA": levels.OPLOCK_FLUSH,
    "LOCK_CONTROL": levels.OPLOCK_LOCK,
    "WRITE": levels.OPLOCK_WRITE,
    "FileEndOfFileInformation": levels.OPLOCK_SET_SIZE,
    "FSCTL_SET_ZERO_DATA": levels.OPLOCK_ZERO_DATA,
    "FileRenameInformation": levels.OPLOCK_RENAME,
    "FileDispositionInformation": levels.OPLOCK_DELETE,
    "SET_SECURITY": levels.OPLOCK_SET_SECURITY,
    "BREAK_TO_NONE": levels.OPLOCK_BREAK_ALL,
}
ACKNOWLEDGEMENTS = {
    "two": levels.OPLOCK_ACKNOWLEDGE,
    "none": levels.OPLOCK_ACK_NO_2,
    "close pending": levels.OPLOCK_ACK_CLOSE_PENDING,
    "granular": levels.OPLOCK_ACK_GRANULAR,
    "granular close pending": levels.OPLOCK_ACK_GRANULAR_ON_CLOSE,
}
Step = tuple[Any, ...]
"""("request", who, level, circumstances), ("operate", who, kind, variant, mode),
("acknowledge", who, kind, level, deleted), ("close", who), ("notify", who), ("reserve", who), ("cancel", number)."""


class Both:
    """One stream's oplock twice: by the statement, and by the package."""

    def __init__(self) -> None:
        self.stated = rules.Oplock()
        self.real = Oplock()
        self.told: list[tuple[Any, ...]] = []
        self.waiting: list[tuple[rules.Operation, OplockRequest]] = []
        self.count = 0

    def step(self, step: Step, look: bool = True) -> None:
        """Both take it, and answer, tell and release the same. look: so is who holds it now, and who waits."""
        self.told.clear()
        self.stated.events.clear()
        stated, real = getattr(self, step[0])(*step[1:])
        assert real == stated, step
        assert self.told == [self.event(each) for each in self.stated.events], step
        if look:
            assert self.of_package() == self.of_statement(), step

    def event(self, stated: tuple[Any, ...]) -> tuple[Any, ...]:
        if stated[0] == "told":
            _, who, status, level, acknowledge = stated
            return ("told", who.name, status, int(level), acknowledge)
        return ("released", next(number for number, each in self.numbered if each is stated[1]))

    @property
    def numbered(self) -> list[tuple[int, rules.Operation]]:
        return [(each.number, each) for each, _ in self.waiting]  # type: ignore[attr-defined]

    def of_statement(self) -> tuple[Any, ...]:
        own = self.stated
        return (
            own.state | (levels.OPLOCK_RESERVED if own.reserved else 0),
            own.exclusive_open.name if own.exclusive_open else None,
            [each.name for each in own.level_two],
            [each.name for each in own.read],
            [each.name for each in own.read_handle],
            [(each.open.name, each.breaking_to_read) for each in own.break_queue],
            [each.open.name for each in own.wait_list],
        )

    def of_package(self) -> tuple[Any, ...]:
        held = [(BY_NUMBER[number], level, to) for number, level, to, _ in self.real.held()]
        exclusive = [name for name, level, _ in held if level not in (S.LEVEL_TWO, R, RH)]
        return (
            self.real.state,
            exclusive[0] if exclusive else None,
            [name for name, level, _ in held if level == S.LEVEL_TWO],
            [name for name, level, _ in held if level == R],
            [name for name, level, to in held if level == RH and to is None],
            [(name, bool(to)) for name, level, to in held if level == RH and to is not None],
            [BY_NUMBER[number] for number, _, _ in self.real.waiting()],
        )

    def heard(self, number: int, name: str) -> Callable[[OplockRequest], None]:
        def done(request: OplockRequest) -> None:
            status = status_name(request.status)
            if request.level:
                self.told.append(("told", name, status, request.new_level, request.acknowledge))
            elif status == "STATUS_SUCCESS":
                self.told.append(("released", number))

        return done

    def request(self, who: str, level: int, circumstances: dict[str, bool]) -> tuple[str, str]:
        stated = rules.request(self.stated, STATED_OPENS[who], int(level), **circumstances)
        status, _ = self.real.request(REAL_OPENS[who], int(level), self.heard(0, who), **circumstances)
        return stated.replace(rules.PENDED, PENDING), status_name(status)

    def operate(self, who: str, kind: str, variant: dict[str, Any], mode: str) -> tuple[str, str]:
        operation = rules.Operation(kind, STATED_OPENS[who], **variant)
        self.count += 1
        operation.number = self.count  # type: ignore[attr-defined]
        real: dict[str, Any] = {"ignore_keys": variant.get("ignore_keys", False)}
        if variant.get("parent_object"):
            code = levels.OPLOCK_PARENT
        elif kind == "OPEN":
            code = levels.OPLOCK_OPEN
            options = operation.disposition << 24 | (0x100000 if operation.reserve_opfilter else 0)
            real |= {"access": operation.access, "share": operation.share, "options": options}
        else:
            code = KINDS[kind]
        real |= {"if_oplocked": mode == "if oplocked", "requiring": mode == "requiring"}
        check = rules.check
        if mode:
            check = rules.check_if_oplocked if mode == "if oplocked" else rules.check_unless_it_breaks
        before = list(self.waiting)
        stated = check(self.stated, operation)
        if stated == rules.WAIT:
            self.waiting.append((operation, None))  # type: ignore[arg-type]
        heard = self.heard(self.count, who)
        status, waits = self.real.operate(REAL_OPENS[who], code, heard, **real)
        if stated == rules.WAIT:
            self.waiting = [*before, (operation, waits)]
        return {rules.WAIT: PENDING, rules.GO: "STATUS_SUCCESS"}.get(stated, stated), status_name(status)

    def acknowledge(self, who: str, kind: str, level: int, deleted: bool) -> tuple[str, str]:
        stated = rules.acknowledge(self.stated, STATED_OPENS[who], kind, int(level), deleted=deleted)
        status, request = self.real.acknowledge(
            REAL_OPENS[who], ACKNOWLEDGEMENTS[kind], int(level), self.heard(0, who), deleted=deleted)
        if self.stated.events and self.stated.events[-1][:2] == ("told", STATED_OPENS[who]):
            # What the specification indicates to the one that acknowledges is the answer to that very request.
            _, _, told, new_level, acknowledge = self.stated.events.pop()
            if told == rules.CANNOT_GRANT:
                assert (request.new_level, request.acknowledge) == (new_level, acknowledge)
        return stated.replace(rules.PENDED, PENDING), status_name(status)

    def close(self, who: str) -> tuple[str, str]:
        rules.close(self.stated, STATED_OPENS[who])
        self.real.close(REAL_OPENS[who])
        return "", ""

    def notify(self, who: str) -> tuple[str, str]:
        operation = rules.Operation("NOTIFY", STATED_OPENS[who])
        self.count += 1
        operation.number = self.count  # type: ignore[attr-defined]
        stated = rules.notify(self.stated, operation)
        status, waits = self.real.notify(REAL_OPENS[who], self.heard(self.count, who))
        if stated == rules.WAIT:
            self.waiting.append((operation, waits))
        return stated.replace(rules.WAIT, PENDING), status_name(status)

    def reserve(self, who: str) -> tuple[str, str]:
        stated = rules.reserve(self.stated, STATED_OPENS[who])
        return str(stated), str(self.real.reserve(REAL_OPENS[who]))

    def unreserve(self, who: str) -> tuple[str, str]:
        rules.unreserve(self.stated, STATED_OPENS[who])
        self.real.unreserve(REAL_OPENS[who])
        return "", ""

    def cancel(self, index: int) -> tuple[str, str]:
        """One of those that wait."""
        waiting = [each for each in self.waiting if each[0] in self.stated.wait_list]
        if waiting:
            operation, request = waiting[index % len(waiting)]
            rules.cancel_waiting(self.stated, operation)
            request.cancel()
            assert status_name(request.status) == CANCELLED and not request.pended
        return "", ""

    def end(self) -> None:
        """Everybody closes: nothing and nobody is left."""
        for name in OPENS:
            self.step(("close", name), look=False)
        assert self.of_package() == (0, None, [], [], [], [], [])
        assert not any(request.pended for _, request in self.waiting)


def situation(steps: tuple[Step, ...]) -> Both:
    both = Both()
    for step in steps:
        both.step(step, look=False)
    return both


# ---- rows ----------------------------------------------------------------------------------------------------------


def asks(who: str, level: int, **circumstances: bool) -> Step:
    return ("request", who, level, circumstances)


def does(who: str, kind: str, mode: str = "", **variant: Any) -> Step:
    return ("operate", who, kind, variant, mode)


ALONE: list[tuple[Step, ...]] = [(), *((asks("a", level),) for level in rules.LEVELS)]
SHARED: list[tuple[Step, ...]] = [
    (asks("a", S.LEVEL_TWO), asks("b", S.LEVEL_TWO)),
    (asks("a", S.LEVEL_TWO), asks("b", R)),
    (asks("a", R), asks("b", R)),
    (asks("a", R), asks("a2", S.LEVEL_TWO)),
    (asks("a", R), asks("b", RH)),
    (asks("a", RH), asks("b", R), asks("plain", R)),
    (asks("a", RH), asks("b", RH), asks("plain", RH)),
    (asks("plain", RH),),
    (asks("plain", RWH),),
    (asks("plain", S.BATCH),),
    (("reserve", "a"),),
    (asks("b", R), ("reserve", "a")),
    (asks("a", RH), asks("b", RH), ("reserve", "a")),
]
FIRST_BREAKS = [
    does("plain2", "OPEN"),
    does("plain2", "OPEN", disposition=rules.FILE_OVERWRITE),
    does("plain2", "OPEN_BREAK_H"),
    does("plain2", "READ"),
    does("plain2", "WRITE"),
    does("b", "OPEN_BREAK_H"),
    does("b", "WRITE"),
    does("plain2", "FileRenameInformation"),
    does("plain2", "BREAK_TO_NONE"),
    does("plain2", "READ", "if oplocked"),
    does("plain2", "BREAK_TO_NONE", "if oplocked"),
]


def situations() -> Iterator[tuple[Step, ...]]:
    """Whatever one, two or three steps lead to, each situation once."""
    seen = set()
    for steps in (*ALONE, *SHARED):
        further = itertools.chain([()], ((each,) for each in FIRST_BREAKS), itertools.product(FIRST_BREAKS, repeat=2))
        for more in further:
            both = situation((*steps, *more))
            what = repr((both.of_statement(), [(each.kind, each.open.name) for each in both.stated.wait_list]))
            if what not in seen:
                seen.add(what)
                yield (*steps, *more)


def next_steps() -> Iterator[Step]:
    variants: list[dict[str, Any]] = [
        {"access": access, "disposition": disposition, "share": share}
        for access in (
            rules.FILE_READ_ATTRIBUTES | rules.SYNCHRONIZE,
            rules.FILE_READ_ATTRIBUTES | rules.READ_CONTROL,
            rules.FILE_READ_DATA | rules.FILE_READ_ATTRIBUTES,
            rules.FILE_WRITE_DATA,
            rules.DELETE,
        )
        for disposition in (rules.FILE_OPEN, rules.FILE_SUPERSEDE, rules.FILE_OVERWRITE, rules.FILE_OVERWRITE_IF)
        for share in (7, 6)
        if share == 7 or disposition == rules.FILE_OPEN
    ]
    variants.append({"access": rules.FILE_READ_ATTRIBUTES, "reserve_opfilter": True})
    for who in ("a", "a2", "b", "plain", "plain2"):
        for variant in variants if who in ("a2", "b", "plain2") else variants[::7]:
            yield does(who, "OPEN", **variant)
        for kind in KINDS:
            yield does(who, kind)
            if who in ("a2", "b"):
                for mode in ("if oplocked", "requiring"):
                    yield does(who, kind, mode)
                yield does(who, kind, ignore_keys=True)
    for who in ("a", "child", "plain2"):
        yield does(who, "WRITE", parent_object=True)
    for who in ("a", "a2", "b", "plain"):
        for level in (*rules.LEVELS, 0, S.HANDLE, S.WRITE | S.HANDLE):
            yield asks(who, level)
            if who not in ("a2", "b"):
                continue
            for circumstance in ("directory", "synchronous", "deleted", "others_open", "byte_range_locks"):
                yield asks(who, level, **{circumstance: True})
            yield asks(who, level, others_open=True, all_keys_match=True)
        for kind in ("two", "none", "close pending", "granular close pending"):
            yield ("acknowledge", who, kind, 0, False)
        for level in (0, R, RH, RW, RWH, S.WRITE):
            for deleted in (False, True):
                yield ("acknowledge", who, "granular", level, deleted)
        for what in ("close", "notify", "reserve", "unreserve"):
            yield (what, who)


SITUATIONS = list(situations())
NEXT = list(next_steps())


def rows_hold(which: list[tuple[Step, ...]], every: int = 1) -> int:
    """How many there were. After some of them all close: whoever waited goes on."""
    count = 0
    for steps in which:
        for step in NEXT[count % every :: every]:
            both = situation(steps)
            both.step(step)
            count += 1
            if count % 16 == 0:
                both.end()
    return count


def test_every_row_of_what_is_held_and_of_a_first_break() -> None:
    assert rows_hold([steps for steps in SITUATIONS if breaks_in(steps) < 2], 2) > 20_000


def test_rows_of_a_break_overtaken_by_another() -> None:
    assert rows_hold([steps for steps in SITUATIONS if breaks_in(steps) == 2], 25) > 5_000


@pytest.mark.long
def test_every_row() -> None:
    assert rows_hold(SITUATIONS) > 200_000


def breaks_in(steps: tuple[Step, ...]) -> int:
    return sum(step[0] == "operate" for step in steps)


# ---- any order of steps -------------------------------------------------------------------------------------------

WHO = st.sampled_from(sorted(OPENS))
LEVEL = st.sampled_from([0, R, RH, RW, RWH])
STEPS = st.one_of(
    st.sampled_from(NEXT),
    st.sampled_from(FIRST_BREAKS),
    st.builds(asks, WHO, st.sampled_from(rules.LEVELS)),
    st.builds(lambda who: ("reserve", who), WHO),
    st.builds(lambda who: ("unreserve", who), WHO),
    st.builds(lambda index: ("cancel", index), st.integers(0, 20)),
    st.builds(lambda who, level: ("acknowledge", who, "granular", level, False), WHO, LEVEL),
    st.builds(lambda who: ("acknowledge", who, "two", 0, False), WHO),
    st.builds(lambda who: ("close", who), WHO),
)


def conflicts(both: Both) -> list[str]:
    """Two that may not hold at once, and those who wait for nothing."""
    state, exclusive, two, read, handle, breaking, waiting = both.of_package()
    found = []
    if exclusive and (two or read or handle or breaking):
        found.append("exclusive beside shared")
    if two and (handle or breaking):
        found.append("level 2 beside RH")
    if waiting and not state & (levels.OPLOCK_RESERVED | rules.BREAKING) and not breaking:
        found.append("somebody waits for nothing")
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_any_steps(steps: list[Step]) -> None:
    both = Both()
    for step in steps:
        both.step(step)
        assert conflicts(both) == []
    both.end()


# ---- many threads -------------------------------------------------------------------------------------------------


class Client(threading.Thread):
    """Asks, breaks, waits, acknowledges (late, wrongly, or not at all), cancels, closes, at random."""

    def __init__(self, oplock: Oplock, seed: int) -> None:
        super().__init__()
        self.oplock = oplock
        self.random = random.Random(seed)
        self.open = OplockOpen(bytes([seed % 3]) * 16)
        self.ended: list[OplockRequest] = []
        self.begun = 0
        self.failed: BaseException | None = None

    def done(self, request: OplockRequest) -> None:
        self.ended.append(request)

    def keep(self, answer: tuple[int, OplockRequest]) -> OplockRequest | None:
        status, request = answer
        if status == levels.STATUS_PENDING:
            self.begun += 1
            return request
        return None

    def run(self) -> None:
        try:
            for _ in range(1000):
                self.one_round()
        except BaseException as error:
            self.failed = error
        finally:
            self.oplock.close(self.open)

    def one_round(self) -> None:
        what = self.random.randrange(8)
        if what < 2:
            self.keep(self.oplock.request(self.open, int(self.random.choice(rules.LEVELS)), self.done))
        elif what < 5:
            waits = self.keep(self.oplock.operate(self.open, self.random.randrange(15), self.done))
            if waits is not None and self.random.random() < 0.5:
                waits.cancel()
        elif what == 5:
            self.oplock.close(self.open)
        else:
            level = int(self.random.choice([0, 0, R, RH, RW, RWH]))
            how = self.random.randrange(5)
            self.keep(self.oplock.acknowledge(self.open, how, level, self.done))


def test_many_threads(often_switched: None) -> None:
    """Each that held or waited is told once; when all have closed nothing is left."""
    for seed in range(4):
        oplock = Oplock()
        clients = [Client(oplock, seed * 10 + number) for number in range(6)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(30)
            assert not client.is_alive() and client.failed is None
        for client in clients:
            oplock.close(client.open)
        assert oplock.state == 0 and oplock.held() == [] and oplock.waiting() == []
        for client in clients:
            assert len(client.ended) == client.begun == len(set(map(id, client.ended)))


def test_the_end_cancels_all() -> None:
    oplock = Oplock()
    opens = [OplockOpen() for _ in range(4)]
    ended: list[OplockRequest] = []
    for each in opens[:3]:
        assert oplock.request(each, int(RH), ended.append)[0] == levels.STATUS_PENDING
    status, waits = oplock.operate(opens[3], levels.OPLOCK_OPEN_BREAK_H, ended.append)
    assert status == levels.STATUS_PENDING and len(ended) == 3
    oplock.uninitialize()
    assert ended[3] is waits and waits.status == levels.STATUS_CANCELLED
    oplock.initialize()
    assert oplock.request(opens[0], int(RWH), ended.append)[0] == levels.STATUS_PENDING
    del oplock
    assert len(ended) == 5 and ended[4].status == levels.STATUS_CANCELLED


def test_a_cancelled_holder_gives_it_up() -> None:
    for level in rules.LEVELS:
        oplock, own, other = Oplock(), OplockOpen(), OplockOpen()
        _, request = oplock.request(own, int(level))
        request.cancel()
        assert request.status == levels.STATUS_CANCELLED and oplock.state == 0
        assert oplock.request(other, int(RWH))[0] == levels.STATUS_PENDING
        request.cancel()  # once is enough
        assert oplock.state


def test_keys() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        OplockOpen(b"short")
    own = OplockOpen(KEY, OTHER)
    assert levels.oplock_keys(own) == (KEY, OTHER) and levels.oplock_keys(OplockOpen()) == (b"", b"")
    levels.set_oplock_keys(own, b"", KEY)
    assert levels.oplock_keys(own) == (b"", KEY)


def test_very_many_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by open and by key among hundreds: granted, switched, broken, acknowledged and closed in any order."""
    choice = random.Random(3)
    names = [f"m{number}" for number in range(300)]
    for name in names:
        keys = (choice.choice([b"", b"k%015d" % choice.randrange(100)]), b"")
        monkeypatch.setitem(OPENS, name, keys)
        monkeypatch.setitem(STATED_OPENS, name, rules.Open(name, *keys))
        monkeypatch.setitem(REAL_OPENS, name, OplockOpen(*keys))
        monkeypatch.setitem(BY_NUMBER, REAL_OPENS[name].number, name)
    for levels_there in ((R, RH), (R, S.LEVEL_TWO), (RH,)):
        both = Both()
        for name in names:
            both.step(asks(name, choice.choice(levels_there)))
        for kind in ("FileRenameInformation", "WRITE"):
            both.step(does("plain2", kind))
            for name in choice.sample(names, 200):
                both.step(choice.choice([
                    ("acknowledge", name, "granular", choice.choice([0, R, RH]), False), ("close", name),
                    asks(name, choice.choice(levels_there)), does(name, "FileRenameInformation"),
                ]))  # fmt: skip
        both.end()
