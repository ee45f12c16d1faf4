"""Random programs for the filter stack, played on the compiled one and on the model (stack_model.py) side by side.

A Program is plain data: the instances there are at first, and what happens. It is read off a tape of bytes, which is
what hypothesis makes up, and shortens when the two disagree; its repr is Python that can stand in a test.
"""

from __future__ import annotations

import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import stack_driver
import stack_model as model
from stack_driver import GETATTR, LOOKUP, MKDIR, OPEN, RELEASE, RMDIR, Host, lookup, opened
from stack_model import (
    AT_BASE,
    CLEANUP,
    CLOSE,
    COMPLETE,
    CREATE,
    FINISHED,
    MORE_PROCESSING,
    NETWORK_QUERY_OPEN,
    NO_CALLBACK,
    PENDING,
    QUERY_INFORMATION,
    QUERY_OPEN,
    RAISES,
    SET_INFORMATION,
    SYNCHRONIZE,
    WITH_CALLBACK,
    Completion,
    Hold,
    Layer,
    Parameters,
    Post,
    Pre,
    Step,
    nothing,
)  # fmt: skip

from stackfs import api
from stackfs.cext.cancel_safe_queue import CancelSafeQueue, QueueContext
from stackfs.cext.python_requests import Request, Volume
from stackfs.cext.stack import InstanceEntry

Event = tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    layers: list[Layer]
    events: list[Event]


# ---- from a tape to a program --------------------------------------------------------------------------------------

NAMES = (b"file", b"folder", b"one", b"two", b"\xff")
ALTITUDES = (
    "370030", "1", "2", "10", "9", "9.5", "9.50000000000000000000000000000000000001", "09.4999999999999999999999",
    "100", "0.1", "370030.0000000000000001", "370029.9999999999999999", "3", "4", "5", "6",
)  # fmt: skip
IO_STATUSES = (
    0, api.STATUS_ACCESS_DENIED, api.STATUS_PENDING, api.STATUS_FLT_DISALLOW_FAST_IO, api.STATUS_NO_MORE_FILES,
)  # fmt: skip
PRE_STATUSES: tuple[int | str, ...] = (
    *[WITH_CALLBACK] * 10, *[SYNCHRONIZE] * 4, *[NO_CALLBACK] * 2, *[PENDING] * 9, COMPLETE,
    api.FLT_PREOP_DISALLOW_FASTIO, api.FLT_PREOP_DISALLOW_FSFILTER_IO, 7, -1, RAISES, model.REPARSE,
)  # fmt: skip
POST_STATUSES: tuple[int | str, ...] = (*[FINISHED] * 9, *[MORE_PROCESSING] * 3, 2, 99, -1, RAISES)
HOWS = ("bare", "bare", "bare", "cancel", "cancel", "queue", "queue", "now")
COMPLETIONS = (WITH_CALLBACK, WITH_CALLBACK, NO_CALLBACK, COMPLETE, WITH_CALLBACK, NO_CALLBACK, COMPLETE, SYNCHRONIZE)
KINDS = (
    "lookup", "mkdir", "rmdir", "create", "getattr", "query", "open", "read", "write", "fsync", "truncate", "release",
    "read", "write", "fsync", "open",
)  # fmt: skip

WHATS = (
    *["start"] * 12, *["complete"] * 5, *["drain"] * 3, *["detach"] * 3, *["attach"] * 2, "unload", "base", "interrupt",
    "cancel", "cancel held", "fail", "forget",
)  # fmt: skip

T = TypeVar("T")


class Tape:
    """Choices, of as few bits as they need. Behind the tape's end every one is the first, which is the simplest."""

    def __init__(self, tape: bytes) -> None:
        self.bits = int.from_bytes(tape, "little")

    def below(self, limit: int) -> int:
        width = (limit - 1).bit_length()
        taken = self.bits & ((1 << width) - 1)
        self.bits >>= width
        return taken % limit

    def one_of(self, choices: tuple[T, ...]) -> T:
        return choices[self.below(len(choices))]

    def sometimes(self, one_in: int) -> bool:
        return self.below(one_in) == one_in - 1

    def io(self) -> model.Io | None:
        if not self.sometimes(4):
            return None
        return int(self.one_of(IO_STATUSES)), self.one_of((0, 3, 1 << 40))

    def name(self) -> bytes | None:
        return self.one_of(NAMES) if self.sometimes(3) else None

    def context(self, status: int | str) -> int | None:
        return 1 + self.below(99) if self.sometimes(3) else None

    def completion(self) -> Completion:
        if not self.sometimes(2):
            return Completion()
        status, io = self.one_of(COMPLETIONS), self.io()
        return Completion(status, self.name(), self.sometimes(2), io, self.context(status))

    def pre(self, native: bool) -> Pre:
        status = self.one_of(PRE_STATUSES)
        if status in (RAISES, model.REPARSE) and native:
            status = 7
        plain = Pre(status, self.name(), self.sometimes(3), self.io(), self.context(status))
        if status != PENDING:
            return plain
        how = self.one_of(HOWS)
        if native and how == "queue":
            how = "cancel"
        then = self.completion() if self.sometimes(3) or how == "now" else model.CANCELLED
        if then.status == SYNCHRONIZE:  # not legal: of what is completed from outside only
            then = model.CANCELLED
        return replace(plain, context=None, how=how, then=then, polite=not self.sometimes(4))

    def post(self, native: bool) -> Post:
        status = self.one_of(POST_STATUSES)
        if status == RAISES and native:
            status = 7
        return Post(status, self.io(), self.sometimes(3), self.name(), self.sometimes(4), self.sometimes(8),
                    self.sometimes(8))  # fmt: skip

    def layer(self, name: str = "") -> Layer:
        native = self.sometimes(3)
        all_majors = not self.sometimes(3)
        registered = {
            major: self.one_of(((True, True), (True, True), (True, True), (True, False), (False, True)))
            for major in model.MAJORS
            if all_majors or self.below(2)
        }
        pres = [self.pre(native) for _ in range(1 + self.below(4))]
        posts = [self.post(native) for _ in range(1 + self.below(3))]
        name, altitude = name or self.one_of(tuple("abcdefgh")), self.one_of(ALTITUDES)
        return Layer(name, altitude, registered, pres, posts, self.sometimes(3), native, self.one_of(("f", "g", "h")),
                     self.one_of((1, 2, 4, 8)) if self.sometimes(8) else 0)  # fmt: skip

    def event(self) -> Event:
        what = self.one_of(WHATS)
        if what == "start":
            kind = self.one_of(KINDS)
            if kind in ("lookup", "mkdir", "rmdir", "create"):
                return "start", kind, self.one_of(NAMES)
            if kind in ("read", "write"):
                return "start", kind, (self.below(13), self.below(13), not self.sometimes(2))
            return "start", kind, self.below(13)
        if what == "complete":
            return what, self.below(8), self.completion(), self.sometimes(2)
        if what == "attach":
            return what, self.layer()
        if what == "drain":
            return what, self.below(8), not self.sometimes(3)
        return what, self.below(8)

    def program(self) -> Program:
        layers = [self.layer(name) for name in "abcdefgh"[: 1 + self.below(8)]]
        return Program(layers, [self.event() for _ in range(3 + self.below(24))])


# ---- the compiled stack --------------------------------------------------------------------------------------------


class Raised(BaseException):
    """What callbacks raise."""


class Context:
    """A completion context of a Python instance; every one must have been let go in the end."""

    alive: ClassVar[weakref.WeakSet[Context]] = weakref.WeakSet()

    def __init__(self, value: int) -> None:
        self.value = value
        self.alive.add(self)


@dataclass(eq=False)
class Held:
    """The data of what a callback holds."""

    by: Played
    data: Any
    when: str
    how: str = "bare"
    place: QueueContext | None = None


@dataclass(eq=False)
class Run:
    """A request of the compiled stack, and what its callbacks saw."""

    request: Request
    trace: list[tuple[Any, ...]] = field(default_factory=list)
    turns: dict[tuple[str, str], int] = field(default_factory=dict)
    nested: int = 0
    held: Held | None = None
    done: bool = False
    at_base: bool = False
    woken: bool = False

    def wake(self) -> None:
        self.woken = True

    def go_on(self) -> None:
        """As far as it goes without waiting for the base or a filter."""
        self.woken = False
        while not self.at_base and not self.request.run():
            if not self.request.is_held:
                self.at_base = True
            elif self.request.park(self.wake):
                return
        self.done = not self.at_base


class Queue(CancelSafeQueue):
    def __init__(self, by: Played) -> None:
        super().__init__()
        self.by = by

    def complete_canceled_io(self, data: Any) -> None:
        self.by.canceled(data)


class Played(Host):
    """Does on the compiled stack what a Layer does, and writes down what it sees."""

    def __init__(self, layer: Layer, compiled: Compiled) -> None:
        super().__init__()
        self.layer = layer
        self.compiled = compiled
        self.queue = Queue(self)
        self.gone = False
        self.kept: list[bytes] = []
        self.holding: dict[int, Pre] = {}
        rows = [
            (major, layer.flags, self.pre if pre else None, self.post if post else None)
            for major, (pre, post) in layer.registered.items()
        ]
        native = compiled.native
        self.entry = InstanceEntry(
            self, layer.name, layer.altitude, layer.filter, () if layer.native else rows,
            native.operations(layer.registered, layer.flags) if layer.native else None, layer.passes,
        )  # fmt: skip
        if layer.native:
            native.bind(self.entry, self)

    def broken(self, error: BaseException) -> None:
        """A callback must not fail of itself: the stack would take it for the filter's mistake."""
        if not isinstance(error, Raised):
            self.compiled.broken.append(error)

    def pre(self, data: Any, objects: object) -> Any:
        try:
            return self.play_pre(data, objects)
        except BaseException as error:
            self.broken(error)
            raise

    def post(self, data: Any, objects: object, context: Any, flags: int) -> Any:
        try:
            return self.play_post(data, objects, context, flags)
        except BaseException as error:
            self.broken(error)
            raise

    def canceled(self, data: Any) -> None:
        try:
            self.play_canceled(data)
        except BaseException as error:
            self.broken(error)
            raise

    def see(self, when: str, data: Any, context: int | None = None) -> tuple[Run, Any]:
        assert not self.gone, "a callback of an instance that is gone"
        assert not data.is_dirty, "a mark of somebody else's"
        run = self.compiled.run_of(data.request_number)
        seen, io = self.parameters(data), (data.status, data.information)
        level = data.irql if when == "post" and not self.layer.native else None
        run.trace.append((self.layer.name, when, data.major, data.flags, seen, io, context, level, data.is_canceled))
        return run, self.layer.act(when, run.turns)

    @staticmethod
    def parameters(data: Any) -> Parameters:
        moves = data.major in model.MOVES_BYTES
        return Parameters(data.name, data.offset if moves else 0, data.length if moves else 0)

    def do(self, data: Any, act: Completion | Post) -> None:
        if act.io is not None:
            data.status, data.information = act.io
        if act.change is not None:
            seen = self.parameters(data)
            changed = seen.changed(act.change, data.major)
            if seen.name:
                data.name = changed.name
            elif data.major in model.MOVES_BYTES:
                data.offset, data.length = changed.offset, changed.length
        if act.dirty:
            data.set_dirty()

    def context_of(self, value: int | None) -> Any:
        return value if self.layer.native or value is None else Context(value)

    def play_pre(self, data: Any, objects: object) -> Any:
        assert objects is self
        run, act = self.see("pre", data)
        irp = bool(data.flags & api.FLTFL_CALLBACK_DATA_IRP_OPERATION)
        fast = bool(data.flags & api.FLTFL_CALLBACK_DATA_FAST_IO_OPERATION)
        if act.status == model.REPARSE:
            there = act.change or b"one"
            if data.name in (b"", there) or data.major not in (CREATE, QUERY_OPEN) or run.nested:
                return WITH_CALLBACK
            return data.reparse(b"/" + there)
        self.do(data, act)
        status = act.status
        if status == RAISES:
            raise Raised
        if status == PENDING and irp:
            status = self.hold(run, data, act)
        elif status == PENDING and act.polite:
            status = api.FLT_PREOP_DISALLOW_FASTIO if fast else api.FLT_PREOP_DISALLOW_FSFILTER_IO
        if self.layer.native and act.change is not None and act.status != PENDING:
            data.spoil()
        return status if act.context is None else (status, self.context_of(act.context))

    def hold(self, run: Run, data: Any, act: Pre) -> int:
        number = data.request_number
        if run.nested or act.how == "now" or self.compiled.giving_up:
            self.complete(data, act.then)
            return PENDING
        run.held = Held(self, data, "pre", act.how)
        self.holding[number] = act
        if act.how == "cancel" and data.set_cancel_completion(self.canceled) == api.STATUS_CANCELLED:
            run.held = None
            self.complete(data, act.then)
        elif act.how == "queue":
            run.held.place = QueueContext()
            status = self.queue.insert(data, run.held.place)
            if status != api.STATUS_SUCCESS:
                assert status == api.STATUS_FLT_CBDQ_DISABLED
                run.held = None
                return NO_CALLBACK
        return PENDING

    def play_canceled(self, data: Any) -> None:
        number = data.request_number
        run = self.compiled.run_of(number)
        run.trace.append((self.layer.name, "canceled", data.major))
        run.held = None
        self.complete(data, self.holding.pop(number).then)

    def complete(self, data: Any, done: Completion) -> None:
        """A pre; whoever completes a second time is told so."""
        self.do(data, done)
        data.complete_pended_pre(done.status, self.context_of(done.context))
        if not self.layer.native:
            with pytest.raises(ReferenceError):
                data.complete_pended_pre(done.status)

    def play_post(self, data: Any, objects: object, context: Any, flags: int) -> Any:
        assert objects is self
        value = context.value if isinstance(context, Context) else context
        drained = bool(flags & api.FLTFL_POST_OPERATION_DRAINING)
        assert drained == bool(data.flags & api.FLTFL_CALLBACK_DATA_DRAINING_IO)
        run, act = self.see("post", data, value)
        irp = bool(data.flags & api.FLTFL_CALLBACK_DATA_IRP_OPERATION)
        if drained and (act.reissue or act.cancel_open):
            assert not data.reissue() and not data.cancel_open(), "on a copy"
        run.nested += 1
        if act.cancel_open and not drained:
            run.trace.append((self.layer.name, "took the open back", data.cancel_open()))
        self.do(data, replace(act, io=None))
        if act.reissue and not drained and data.reissue():
            run.trace.append((self.layer.name, "reissued", (data.status, data.information)))
        run.nested -= 1
        self.do(data, Post(io=act.io))
        if act.status == RAISES:
            raise Raised
        if act.status == MORE_PROCESSING and irp and not drained:
            if run.nested or act.now or self.compiled.giving_up:
                data.complete_pended_post()
            else:
                run.held = Held(self, data, "post")
        return act.status


def restore(top: Path) -> None:
    """The backing directory as the model's Directory begins. What is so already costs nothing."""
    file = top / "file"
    kinds = {entry.name: entry.is_dir() for entry in os.scandir(top)}
    for name, is_directory in kinds.items():
        if (name, is_directory) not in (("file", False), ("folder", True)):
            (top / name).rmdir() if is_directory else (top / name).unlink()
    if not kinds.get("folder"):
        (top / "folder").mkdir()
    if "file" not in kinds:
        file.write_bytes(model.Directory.CONTENT)
    elif file.stat().st_size != len(model.Directory.CONTENT):
        os.truncate(file, len(model.Directory.CONTENT))


class Compiled:
    """A volume over `top`, without a mount."""

    def __init__(self, top: Path, native: Any) -> None:
        restore(top)
        self.volume = Volume(os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self.native = native
        self.by_number: dict[int, Run] = {}
        self.beginning: Run
        self.runs: list[Run] = []
        self.broken: list[BaseException] = []
        self.giving_up = False
        self.node = lookup(self.volume, b"file")
        self.file = opened(self.volume, self.node, os.O_RDWR)
        self.before = self.volume.open_files, self.volume.known_inodes

    def start(self, opcode: int, nodeid: int = 1, **arguments: Any) -> Run:
        run = self.beginning = Run(self.volume.request(opcode, nodeid, **arguments))
        self.runs.append(run)
        run.go_on()
        return run

    def run_of(self, number: int) -> Run:
        """By the request's number, which it gets when it begins."""
        run = self.by_number.setdefault(number, self.beginning)
        assert run.request.number == number
        return run

    def settle(self) -> None:
        """Until nothing moves by itself any more: a worker may be carrying something on."""
        for run in self.runs:
            end = time.monotonic() + 10
            while not run.done:
                if run.woken:
                    run.go_on()
                elif run.held is not None or run.at_base:
                    break
                else:
                    assert time.monotonic() < end, "a request that nobody holds does not go on"
                    time.sleep(0.0002)

    def end(self) -> None:
        assert (self.volume.open_files, self.volume.known_inodes) == self.before
        assert self.volume.stack.drained() and self.volume.stack.settled
        assert self.volume.held() == self.volume.resuming == 0
        self.close()
        assert not list(Context.alive)

    def close(self) -> None:
        for run in self.runs:
            run.held = None
        self.volume.close()


# ---- side by side --------------------------------------------------------------------------------------------------


class Both:
    """The model and the compiled stack, given the same events; after each of them they must agree."""

    def __init__(self, top: Path, native: Any, elsewhere: ThreadPoolExecutor) -> None:
        self.compiled = Compiled(top, native)
        self.model = model.Model(lambda number: self.compiled.runs[number].at_base)
        self.directory = model.Directory()
        self.elsewhere = elsewhere
        self.played: dict[int, Played] = {}  # by id() of the model's Instance
        self.compared: list[int] = []
        self.handles: list[int] = []
        self.given_back: set[int] = set()

    def play(self, program: Program) -> None:
        try:
            for layer in program.layers:
                self.do("attach", layer)
            for what, *arguments in program.events:
                self.do(what, *arguments)
            self.finish()
        except BaseException:
            self.give_up()
            raise
        self.compiled.end()

    def do(self, what: str, *arguments: Any) -> None:
        getattr(self, what.replace(" ", "_"))(*arguments)
        self.agree()

    # -- events; an index chooses among what there is --

    def start(self, kind: str, argument: Any) -> None:
        directory = self.directory
        closing = [Step(CLEANUP, nothing), Step(CLOSE, nothing)]
        named = Parameters(argument) if isinstance(argument, bytes) else Parameters()
        inform = Step(QUERY_INFORMATION, nothing)
        node, fh = self.compiled.node, self.compiled.file
        if kind == "lookup":
            self.ask(LOOKUP, [Step(QUERY_OPEN, directory.lookup, True)], named)
        elif kind == "mkdir":
            steps = [Step(CREATE, directory.make("d"), True), inform, *closing]
            self.ask(MKDIR, steps, named, makes=True, mode=0o755)
        elif kind == "rmdir":
            self.ask(RMDIR, [Step(CREATE, nothing), Step(SET_INFORMATION, directory.remove, True), *closing], named)
        elif kind == "create":
            steps = [Step(CREATE, directory.make("f"), True), inform]
            self.ask(stack_driver.CREATE, steps, named, by_path=False, mode=0o644, flags=os.O_RDWR | os.O_EXCL)
        elif kind == "getattr":
            self.ask(GETATTR, [Step(NETWORK_QUERY_OPEN, nothing, True, fast=True, attributes=True)])
        elif kind == "query":
            step = Step(QUERY_INFORMATION, nothing, True, fast=True, attributes=True)
            self.ask(GETATTR, [step], nodeid=node, by_path=False, fh=fh, flags=1)
        elif kind == "open":
            self.ask(OPEN, [Step(CREATE, nothing, True)], nodeid=node, by_path=False)
        elif kind == "truncate":
            steps = [Step(CREATE, nothing), Step(SET_INFORMATION, directory.truncate(argument), True),
                     replace(inform, attributes=True), *closing]  # fmt: skip
            self.ask(stack_driver.SETATTR, steps, nodeid=node, valid=stack_driver.FATTR_SIZE, size=argument)
        elif kind == "fsync":
            self.ask(stack_driver.FSYNC, [Step(model.FLUSH, nothing, True)], by_path=False, fh=fh)
        elif kind in ("read", "write"):
            offset, size, own = argument  # a program's own is fast I/O, the page cache's is not
            reads = kind == "read"
            major, base = (model.READ, directory.read) if reads else (model.WRITE, directory.write)
            step = Step(major, base, True, own, paging=not own)
            cached = 0 if reads else 1  # FUSE_WRITE_CACHE
            self.ask(stack_driver.READ if reads else stack_driver.WRITE, [step], Parameters(b"", offset, size),
                     by_path=False, room=size, fh=fh, offset=offset, size=size,
                     buffer=bytearray(size) if reads else bytes(size),
                     open_flags=2 if own else cached)  # FUSE_READ_LOCKOWNER, FUSE_WRITE_LOCKOWNER  # fmt: skip
        elif kind == "release" and self.handles:
            handle = self.handles.pop(argument % len(self.handles))
            closing[0] = replace(closing[0], principal=True)
            self.ask(RELEASE, closing, by_path=False, fh=handle)

    def ask(self, opcode: int, steps: list[Step], parameters: Parameters = Parameters(), *, nodeid: int = 1,  # noqa: B008
            by_path: bool = True, makes: bool = False, room: int | None = None, **arguments: Any) -> None:  # fmt: skip
        if parameters.name:
            arguments["name"] = parameters.name
        self.compiled.start(opcode, nodeid, **arguments)
        self.compiled.settle()
        self.model.start(steps, parameters, by_path=by_path, makes=makes, room=room)
        self.compared.append(0)

    def held(self, index: int) -> Hold | None:
        holds = self.model.holds()
        return holds[index % len(holds)] if holds else None

    def complete(self, index: int, done: Completion, elsewhere: bool = False) -> None:
        hold = self.held(index)
        if hold is None:
            return
        number = hold.operation.flight.number
        if done.status == SYNCHRONIZE and hold.when == "pre" and not hold.instance.layer.native:
            run = self.compiled.runs[number]
            assert run.held is not None
            with pytest.raises(ValueError, match="cannot be completed with"):
                run.held.data.complete_pended_pre(done.status)
            return
        (self.elsewhere.submit(self.let_go, number, done).result() if elsewhere else self.let_go(number, done))
        self.compiled.settle()
        self.model.resume(hold.operation.flight, done)

    def let_go(self, number: int, done: Completion) -> None:
        run = self.compiled.runs[number]
        held, run.held = run.held, None
        assert held is not None
        by, data = held.by, held.data
        if held.when == "post":
            by.do(data, Post(io=done.io))
            data.complete_pended_post()
            return
        by.holding.pop(data.request_number)
        if held.place is not None:
            first = by.queue.items[0] is data
            assert (by.queue.remove_next() if first else by.queue.remove(held.place)) is data
            assert by.queue.remove(held.place) is None
        elif held.how == "cancel":
            assert data.clear_cancel_completion() == api.STATUS_SUCCESS
        by.complete(data, done)

    def forget(self, index: int) -> None:
        """A Python filter lets go of the data of what it holds: it has failed the operation (A6.16)."""
        hold = self.held(index)
        if hold is None or hold.how != "bare" or hold.instance.layer.native:
            return
        run = self.compiled.runs[hold.operation.flight.number]
        assert run.held is not None
        run.held.by.holding.pop(run.held.data.request_number, None)
        run.held = None
        self.compiled.settle()
        self.model.resume(hold.operation.flight, model.FORGOTTEN)

    def base(self, index: int) -> None:
        """The base has done what it was slow with."""
        numbers = [number for number, run in enumerate(self.compiled.runs) if run.at_base]
        if numbers:
            number = numbers[index % len(numbers)]
            run = self.compiled.runs[number]
            run.request.wait()
            run.at_base = False
            run.go_on()
            self.compiled.settle()
            self.model.resume(self.model.flights[number])

    def interrupt(self, index: int) -> None:
        flights = [flight for flight in self.model.flights if flight.stop is not None]
        if flights:
            flight = flights[index % len(flights)]
            self.compiled.volume.interrupt(self.compiled.runs[flight.number].request.number)
            self.compiled.settle()
            self.model.interrupt(flight)

    def cancel(self, index: int) -> None:
        hold = self.held(index)
        if hold is not None:
            run = self.compiled.runs[hold.operation.flight.number]
            assert run.held is not None
            somebody_did = run.held.data.cancel()
            self.compiled.settle()
            assert somebody_did == self.model.cancel_io(hold)

    def cancel_held(self, index: int) -> None:
        instances = [*self.model.instances, *self.model.leaving]
        if instances:
            instance = instances[index % len(instances)]
            counted = self.compiled.volume.cancel_held(self.played[id(instance)].entry)
            self.compiled.settle()
            assert counted == self.model.cancel_held(instance)

    def attach(self, layer: Layer) -> None:
        stack = self.compiled.volume.stack
        before = self.identities()
        played = Played(layer, self.compiled)
        instance = self.model.attach(layer)
        if instance is None:
            with pytest.raises(ValueError, match="taken"):
                stack.insert(played.entry)
            assert self.identities() == before
            return
        stack.insert(played.entry)
        self.played[id(instance)] = played
        self.replaced(before, layer)

    def detach(self, index: int) -> None:
        if self.model.instances:
            self.take_out([self.model.instances[index % len(self.model.instances)]])

    def unload(self, index: int) -> None:
        """All instances of a filter: each is told to start before any is waited for (A3.9)."""
        filters = sorted({each.layer.filter for each in self.model.instances})
        if filters:
            name = filters[index % len(filters)]
            self.take_out([each for each in self.model.instances if each.layer.filter == name])

    def take_out(self, instances: list[model.Instance]) -> None:
        for instance in instances:
            before = self.identities()
            played = self.played[id(instance)]
            self.compiled.volume.stack.remove(played.entry)
            played.queue.disable()
            self.model.leave(instance)
            self.replaced(before, instance.layer)

    def drain(self, index: int, early: bool) -> None:
        leaving = self.model.leaving
        if leaving:
            instance = leaving[index % len(leaving)]
            played = self.played[id(instance)]
            using = self.compiled.volume.stack.drain(played.entry, early)
            assert using == self.model.drain(instance, early)
            played.gone = not using

    def fail(self, index: int) -> None:
        if self.model.instances:
            instance = self.model.instances[index % len(self.model.instances)]
            instance.failed = True
            self.played[id(instance)].entry.mark_failed()

    # -- comparing --

    def identities(self) -> list[int]:
        return [self.compiled.volume.stack.list_identity(major) for major in model.MAJORS]

    def replaced(self, before: list[int], layer: Layer) -> None:
        """Only the lists of what the instance registers are replaced (A1.9)."""
        for major, old, new in zip(model.MAJORS, before, self.identities(), strict=True):
            assert (old == new) == (major not in layer.registered)
            assert bool(new) == bool(self.model.listed(major))

    def agree(self) -> None:
        if self.compiled.broken:
            raise self.compiled.broken[0]
        for flight, run in zip(self.model.flights, self.compiled.runs, strict=True):
            seen = self.compared[flight.number]
            if len(flight.trace) == seen == len(run.trace) and (flight.number in self.given_back):
                continue
            assert run.trace[seen:] == flight.trace[seen:]
            self.compared[flight.number] = len(flight.trace)
            assert run.done == (flight.stop is None)
            assert run.at_base == (flight.stop is AT_BASE)
            assert (run.held is not None) == isinstance(flight.stop, Hold)
            if run.done and flight.number not in self.given_back:
                self.given_back.add(flight.number)
                self.answered(flight, run.request)
        for instance in (*self.model.instances, *self.model.leaving):
            entry = self.played[id(instance)].entry
            assert (entry.failed, entry.errors) == (instance.failed, instance.errors)
            assert self.compiled.volume.held(entry) == len(self.model.holds(instance))

    def answered(self, flight: model.Flight, request: Request) -> None:
        assert request.error == flight.error
        if request.error:
            return
        assert request.length == flight.length
        if request.opcode in (LOOKUP, MKDIR, stack_driver.CREATE):
            self.compiled.volume.forget(request.nodeid, 1)
        if request.opcode in (OPEN, stack_driver.CREATE):
            self.handles.append(request.fh)

    def finish(self) -> None:
        """Everything ends: what is held, open, attached or leaving."""
        while any(flight.stop is not None for flight in self.model.flights) or self.handles:
            if self.model.holds():
                self.do("complete", 0, Completion())
            elif any(run.at_base for run in self.compiled.runs):
                self.do("base", 0)
            else:
                self.do("start", "release", 0)
        self.take_out(list(self.model.instances))
        while self.model.leaving:
            left = len(self.model.leaving)
            self.do("drain", 0, False)
            assert len(self.model.leaving) < left, "used by nobody, and not free"
        assert [each.name for each in self.compiled.volume.stack.entries] == []

    def give_up(self) -> None:
        """So that what follows a failure is not a crash: whatever is held goes on."""
        self.compiled.giving_up = True
        for number, run in enumerate(self.compiled.runs):
            if run.held is not None:
                self.let_go(number, Completion(NO_CALLBACK))
        while not all(run.done for run in self.compiled.runs):
            self.compiled.settle()
            for run in self.compiled.runs:
                if run.at_base:
                    run.request.wait()
                    run.at_base = False
                    run.go_on()
        for played in self.played.values():
            if played.entry in self.compiled.volume.stack.entries:
                self.compiled.volume.stack.remove(played.entry)
        self.compiled.close()
