"""A reference interpreter of the filter stack in plain Python, written from docs/semantics.md (A1, A3, A4, A6, A8, D3):
what test_stack.py holds the compiled stack against. Nothing here is shared with the code it checks but the numbers of
the constants.

A request is a generator. It runs until a filter holds one of its operations (it yields a Hold, and is sent a
Completion) or until an operation stands before the base (it yields AT_BASE, and is sent None): that is all there is to
asynchrony. Whatever may happen to operations meanwhile (an instance comes, goes or fails, a cancel, a drain) is a
method of Model, called between two steps of generators.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from stackfs import api
from stackfs.cext.ntstatus import from_errno, is_success, to_errno

CREATE, CLOSE, READ, WRITE, CLEANUP, FLUSH = (
    api.IRP_MJ_CREATE, api.IRP_MJ_CLOSE, api.IRP_MJ_READ, api.IRP_MJ_WRITE, api.IRP_MJ_CLEANUP,
    api.IRP_MJ_FLUSH_BUFFERS)  # fmt: skip
QUERY_INFORMATION, SET_INFORMATION = api.IRP_MJ_QUERY_INFORMATION, api.IRP_MJ_SET_INFORMATION
QUERY_OPEN, NETWORK_QUERY_OPEN = api.IRP_MJ_QUERY_OPEN, api.IRP_MJ_NETWORK_QUERY_OPEN
MAJORS = (
    CREATE, CLOSE, READ, WRITE, CLEANUP, FLUSH, QUERY_INFORMATION, SET_INFORMATION, QUERY_OPEN, NETWORK_QUERY_OPEN,
)  # fmt: skip

MOVES_BYTES = (READ, WRITE)
NEVER_FAIL = (CLEANUP, CLOSE)
WITH_CALLBACK, NO_CALLBACK, PENDING, DISALLOW_FASTIO, COMPLETE, SYNCHRONIZE, DISALLOW_FSFILTER_IO = range(7)
FINISHED, MORE_PROCESSING, POST_DISALLOW_FSFILTER_IO = range(3)
GOES_ON = (WITH_CALLBACK, NO_CALLBACK, SYNCHRONIZE)
RAISES = "raises"
REPARSE = "reparse"  # a CREATE or QUERY_OPEN by another name goes on under this one: `change`
EIO = (api.STATUS_IO_DEVICE_ERROR, 0)
NOT_TO_BE_HELD = (api.STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST, 0)
DISALLOWED = (api.STATUS_FLT_DISALLOW_FAST_IO, 0)
NOT_FINAL = (api.STATUS_PENDING, api.STATUS_FLT_DISALLOW_FAST_IO)

Io = tuple[int, int]


@dataclass(frozen=True)
class Parameters:
    """What of the parameters these tests change. A layer's change makes them another value; the old one stays."""

    name: bytes = b""
    offset: int = 0
    length: int = 0

    def changed(self, name: bytes, major: int) -> Parameters:
        """With another name where there is one; what moves bytes begins one byte later, and is shorter by one."""
        if self.name:
            return Parameters(name, self.offset, self.length)
        if major in MOVES_BYTES:
            return Parameters(b"", self.offset + 1, max(self.length - 1, 0))
        return self


# ---- what filters do -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Completion:
    """What a filter does to an operation that it lets go of: one it has held, or (Pre) one it has just got."""

    status: int | str = WITH_CALLBACK
    change: bytes | None = None  # changes the parameters
    dirty: bool = False
    io: Io | None = None
    context: int | None = None


CANCELLED = Completion(COMPLETE, io=(api.STATUS_CANCELLED, 0))
FORGOTTEN = Completion(RAISES)


@dataclass(frozen=True)
class Pre(Completion):
    """`how` it holds what it holds: "bare", with a "cancel" completion, in a "queue", or completed before it returns,
    "now". `then`: how it completes it in the last case, and when it is cancelled. A `polite` one refuses first what
    cannot be held."""

    how: str = "bare"
    then: Completion = CANCELLED
    polite: bool = False


@dataclass(frozen=True)
class Post:
    status: int | str = FINISHED
    io: Io | None = None
    dirty: bool = False
    change: bytes | None = None
    now: bool = False  # what it holds it completes before it returns
    reissue: bool = False
    cancel_open: bool = False


@dataclass
class Layer:
    """One instance: what it registers, and what it does, action after action, over and over."""

    name: str
    altitude: str
    registered: dict[int, tuple[bool, bool]]  # major: (pre, post)
    pres: list[Pre]
    posts: list[Post]
    passes: bool = False
    native: bool = False
    filter: str = "f"
    flags: int = 0

    def skips(self, step: Step) -> bool:
        """A2.7. All that these tests do is about files, and none of it with O_DIRECT."""
        moves = step.major in MOVES_BYTES
        cached = step.fast or (moves and not step.paging)
        return bool(
            (self.flags & api.FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO and moves and step.paging)
            or (self.flags & api.FLTFL_OPERATION_REGISTRATION_SKIP_CACHED_IO and cached)
            or self.flags & api.FLTFL_OPERATION_REGISTRATION_SKIP_NON_DASD_IO
        )

    def act(self, when: str, turns: dict[tuple[str, str], int]) -> Any:
        """What it does this time; each request counts for itself, so that it does not matter which one comes first."""
        actions = self.pres if when == "pre" else self.posts
        turn = turns[self.name, when] = turns.get((self.name, when), -1) + 1
        return actions[turn % len(actions)]


# ---- operations and requests ---------------------------------------------------------------------------------------


@dataclass
class Instance:
    """A Layer as it is attached."""

    layer: Layer
    failed: bool = False
    left: bool = False
    queue_disabled: bool = False
    errors: int = 0

    def errs(self) -> None:
        self.errors += 1
        self.failed = self.failed or self.errors >= 100  # A6.13


@dataclass(frozen=True)
class Step:
    major: int
    base: Callable[[Parameters], Io]
    principal: bool = False
    fast: bool = False  # offered as fast I/O; a QUERY_OPEN is an FS-filter operation
    attributes: bool = False  # a success without the base has none to give: an error for the program
    paging: bool = False

    @property
    def kind(self) -> int:
        if self.major == QUERY_OPEN:
            return int(api.FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION)
        return int(api.FLTFL_CALLBACK_DATA_FAST_IO_OPERATION if self.fast else api.FLTFL_CALLBACK_DATA_IRP_OPERATION)

    @property
    def irp(self) -> bool:
        return self.kind == api.FLTFL_CALLBACK_DATA_IRP_OPERATION

    def refused_by(self, status: int | str) -> bool:
        """A6.7: is this pre status a legal refusal to do it the fast way?"""
        if status == DISALLOW_FASTIO:
            return self.fast
        return status == DISALLOW_FSFILTER_IO and self.major == QUERY_OPEN


@dataclass
class Data:
    """What one callback has of its operation."""

    parameters: Parameters
    io: Io
    dirty: bool = False

    def does(self, act: Completion | Post, major: int) -> None:
        if act.change is not None:
            self.parameters = self.parameters.changed(act.change, major)
        self.io = act.io or self.io
        self.dirty = self.dirty or act.dirty


@dataclass
class Owed:
    """What is to be done for a layer on the way up: its parameters are put back, and its post is called."""

    instance: Instance
    received: Parameters
    context: int | None = None
    changed: bool = False
    synchronised: bool = False
    post: bool = True

    def level(self, op: Operation) -> int | None:
        """A6.12; a native callback is not asked."""
        if self.instance.layer.native:
            return None
        return 0 if self.synchronised or op.step.major == CREATE or not op.step.irp else 2


@dataclass
class Operation:
    flight: Flight
    step: Step
    owed: list[Owed] = field(default_factory=list)
    hold: Hold | None = None
    cancelled: bool = False
    stands_open: bool = False  # the base has done it; of a CREATE: and nobody has closed it since
    failed_by: Instance | None = None
    reissued: int = 0

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled or self.flight.interrupted


@dataclass(eq=False)
class Hold:
    operation: Operation
    instance: Instance
    when: str
    act: Pre | Post
    number: int = field(default_factory=itertools.count().__next__)  # in the order in which they began

    @property
    def how(self) -> str:
        return self.act.how if isinstance(self.act, Pre) else "bare"


AT_BASE = object()


@dataclass
class Flight:
    """A request under way: what its callbacks saw, where it stands, and in the end its answer."""

    number: int
    trace: list[tuple[Any, ...]] = field(default_factory=list)
    turns: dict[tuple[str, str], int] = field(default_factory=dict)
    interrupted: bool = False
    reparsed_to: bytes = b""
    reparses: int = 0
    stop: Any = None  # a Hold, AT_BASE, or None: it is done
    error: int = 0
    length: int = 0
    run: Any = None


Walk = Generator[Any, Any, Any]


class Model:
    """`at_base(number)`: has that request stopped before the base? Which ones do is no matter of the rules."""

    def __init__(self, at_base: Callable[[int], bool]) -> None:
        self.at_base = at_base
        self.instances: list[Instance] = []  # highest first
        self.leaving: list[Instance] = []
        self.flights: list[Flight] = []
        self.active: list[Operation] = []

    # -- instances --

    def attach(self, layer: Layer) -> Instance | None:
        """None: the name or the altitude is taken (A1.2)."""
        altitude = Decimal(layer.altitude)
        if any(each.layer.name == layer.name or Decimal(each.layer.altitude) == altitude for each in self.instances):
            return None
        instance = Instance(layer)
        self.instances.append(instance)
        self.instances.sort(key=lambda each: Decimal(each.layer.altitude), reverse=True)
        return instance

    def leave(self, instance: Instance) -> None:
        """New lists without it are published, and it has been told to start (A3.9)."""
        self.instances.remove(instance)
        self.leaving.append(instance)
        instance.left = instance.queue_disabled = True

    def listed(self, major: int) -> list[Instance]:
        return [instance for instance in self.instances if major in instance.layer.registered]

    def drain(self, instance: Instance, early: bool) -> int:
        """How many operations still use one that leaves. early: after those that can be drained have been (A3.10)."""
        using = 0
        for operation in list(self.active):
            if operation.hold is not None and operation.hold.instance is instance:
                using += 1
            for owed in [each for each in operation.owed if each.instance is instance]:
                if early and not owed.changed:
                    operation.owed.remove(owed)
                    self.drained_post(operation, owed)
                else:
                    using += 1
        if not using:
            self.leaving.remove(instance)
        return using

    def drained_post(self, operation: Operation, owed: Owed) -> None:
        """On a copy: nothing that it does reaches the operation."""
        flags = api.FLTFL_CALLBACK_DATA_POST_OPERATION | api.FLTFL_CALLBACK_DATA_DRAINING_IO
        io = (api.STATUS_FLT_POST_OPERATION_CLEANUP, 0)
        level = None if owed.instance.layer.native else 0
        act = self.sees(operation, owed.instance, "post", owed.received, io, flags, owed.context, level)
        if act.status != FINISHED and not (act.status == 2 and operation.step.major == QUERY_OPEN):
            owed.instance.errs()

    # -- what happens to operations that are held --

    def holds(self, instance: Instance | None = None) -> list[Hold]:
        stops = [flight.stop for flight in self.flights]
        return [each for each in stops if isinstance(each, Hold) and instance in (None, each.instance)]

    def resume(self, flight: Flight, sent: Completion | None = None) -> None:
        try:
            flight.stop = flight.run.send(sent)
            while flight.stop is AT_BASE and not self.at_base(flight.number):
                flight.stop = flight.run.send(None)
        except StopIteration as done:
            flight.stop = None
            flight.error, flight.length = done.value

    def cancel(self, hold: Hold) -> bool:
        """A8: its cancel completion, or its queue's, completes it. False: there is none, and it is only marked."""
        if hold.how not in ("cancel", "queue"):
            return False
        self.canceled(hold.operation, hold.instance)
        assert isinstance(hold.act, Pre)
        self.resume(hold.operation.flight, hold.act.then)
        return True

    def interrupt(self, flight: Flight) -> None:
        """The request is cancelled, also for what it comes to do later (A8.2)."""
        flight.interrupted = True
        if isinstance(flight.stop, Hold):
            self.cancel(flight.stop)

    def cancel_io(self, hold: Hold) -> bool:
        hold.operation.cancelled = True
        return self.cancel(hold)

    def cancel_held(self, instance: Instance) -> int:
        """What it has held longest first, and at last what it comes to hold when that goes on (A8.1)."""
        while holds := [each for each in self.holds(instance) if not each.operation.cancelled]:
            self.cancel_io(min(holds, key=lambda hold: hold.number))
        return len(self.holds(instance))

    def canceled(self, operation: Operation, instance: Instance) -> None:
        operation.flight.trace.append((instance.layer.name, "canceled", operation.step.major))

    # -- the walk --

    def sees(self, op: Operation, instance: Instance, when: str, received: Parameters, io: Io, flags: int = 0,
             context: int | None = None, level: int | None = None) -> Any:  # fmt: skip
        flags |= op.step.kind | (api.FLTFL_CALLBACK_DATA_REISSUED_IO if op.reissued else 0)
        op.flight.trace.append(
            (instance.layer.name, when, op.step.major, flags, received, io, context, level, op.is_cancelled)
        )
        return instance.layer.act(when, op.flight.turns)

    def pre(self, op: Operation, instance: Instance, data: Data, nested: bool) -> Walk:
        """What an instance's pre callback makes of its data, and the Completion that it comes to in the end."""
        act: Pre = self.sees(op, instance, "pre", data.parameters, data.io)
        if act.status == REPARSE:
            return self.reparse(op, act, data)
        data.does(act, op.step.major)
        if act.status != PENDING:
            return act
        if not op.step.irp:
            refusal = DISALLOW_FSFILTER_IO if op.step.major == QUERY_OPEN else DISALLOW_FASTIO
            return Completion(refusal if act.polite else PENDING)
        done = act.then
        if nested or act.how == "now":
            pass
        elif act.how == "queue" and instance.queue_disabled:
            return Completion(NO_CALLBACK)
        elif act.how in ("cancel", "queue") and op.is_cancelled:
            if act.how == "queue":
                self.canceled(op, instance)
        else:
            op.hold = Hold(op, instance, "pre", act)
            done = yield op.hold
            op.hold = None
            if done.status == SYNCHRONIZE:
                done = replace(done, status=RAISES)  # A6.15: not how a held one can be completed
        data.does(done, op.step.major)
        return done

    def reparse(self, op: Operation, act: Pre, data: Data) -> Completion:
        """A6.21: completed with STATUS_REPARSE, of which posts above may make something else."""
        there = act.change or b"one"
        if data.parameters.name in (b"", there) or op.step.major not in (CREATE, QUERY_OPEN) or op.reissued:
            return Completion()
        op.flight.reparsed_to = there
        data.io = (api.STATUS_REPARSE, 0)
        return Completion(COMPLETE)

    def down(self, op: Operation, path: list[Instance], current: Parameters, owed: list[Owed], nested: bool) -> Walk:
        """The outcome as the lowest post to come sees it, and whether somebody refused to do it the fast way."""
        step, never_fails = op.step, op.step.major in NEVER_FAIL
        io: Io = (0, 0)
        for instance in path:
            if instance.left or instance.layer.skips(step):
                continue  # A3.12: it has not come to it
            if instance.failed:
                if instance.layer.passes or never_fails:
                    continue
                return EIO, False
            has_pre, has_post = instance.layer.registered[step.major]
            if not has_pre:
                owed.append(Owed(instance, current))
                continue
            data = Data(current, io)
            done = yield from self.pre(op, instance, data, nested)
            if done.status in GOES_ON:
                io = data.io
                post = has_post and done.status != NO_CALLBACK
                if post or data.dirty:
                    owed.append(Owed(instance, current, done.context, data.dirty, done.status == SYNCHRONIZE, post))
                if data.dirty:
                    current = data.parameters
                continue
            if step.refused_by(done.status):
                return DISALLOWED, True
            if done.status == COMPLETE and never_fails:
                io = (0, data.io[1])
                break  # F2: hidden from those below, done all the same
            if done.status == COMPLETE and data.io[0] not in NOT_FINAL:
                return self.nothing_made_up(op, data.io), False
            instance.errs()
            if not (instance.layer.passes or never_fails):
                return NOT_TO_BE_HELD if done.status == PENDING else EIO, False
        if not nested:
            yield AT_BASE
        io = step.base(current)
        op.stands_open = is_success(io[0])
        return io, False

    def nothing_made_up(self, op: Operation, io: Io) -> Io:
        """A6.5: nobody but the base makes an inode or an open file."""
        made_up = is_success(io[0]) and io[0] != api.STATUS_REPARSE and not op.stands_open
        return EIO if made_up and op.step.major in (CREATE, QUERY_OPEN) else io

    def there_and_back(
        self, op: Operation, path: list[Instance], parameters: Parameters, nested: bool = False
    ) -> Walk:
        """Down, through the base, and up. The outcome, and whether it has to start again."""
        owed: list[Owed] = []
        if not nested:
            op.owed = owed  # what a drain finds
        io, refused = yield from self.down(op, path, parameters, owed, nested)
        while owed:
            here = owed.pop()
            if not here.post:
                continue
            instance, layer = here.instance, here.instance.layer
            flags = api.FLTFL_CALLBACK_DATA_POST_OPERATION
            act: Post = self.sees(op, instance, "post", here.received, io, flags, here.context, here.level(op))
            before = io
            data = Data(here.received, io)
            if act.cancel_open:
                yield from self.cancel_open(op, here, io)
            data.does(replace(act, io=None), op.step.major)
            if act.reissue:
                yield from self.reissue(op, path[path.index(instance) + 1 :], here, data)
            succeeded = is_success(data.io[0])
            data.io = act.io or data.io
            status = act.status
            if status == MORE_PROCESSING and op.step.irp:
                if not (nested or act.now):
                    op.hold = Hold(op, instance, "post", act)
                    done = yield op.hold
                    op.hold = None
                    data.does(done, op.step.major)
                    status = RAISES if done is FORGOTTEN else FINISHED
                else:
                    status = FINISHED
            if status == FINISHED:
                io = data.io
            elif status == POST_DISALLOW_FSFILTER_IO and op.step.major == QUERY_OPEN:
                io, refused = DISALLOWED, True
            else:
                instance.errs()
                failure = NOT_TO_BE_HELD if status == MORE_PROCESSING else EIO
                io = before if layer.passes else failure
            if op.step.major in NEVER_FAIL:
                io = (0, io[1])
            elif succeeded and op.stands_open and not is_success(io[0]):
                op.failed_by = instance
            else:
                io = self.nothing_made_up(op, io)
        return io, refused

    def cancel_open(self, op: Operation, here: Owed, io: Io) -> Walk:
        """FltCancelFileOpen (A6.20): those below see CLEANUP and CLOSE, of the name that its layer has."""
        legal = op.step.major == CREATE and is_success(io[0]) and op.stands_open
        if legal:
            for step in (Step(CLEANUP, nothing), Step(CLOSE, nothing)):
                yield from self.walk(op.flight, step, here.received, here.instance, nested=True)
            op.stands_open = False
        op.flight.trace.append((here.instance.layer.name, "took the open back", legal))

    def reissue(self, op: Operation, below: list[Instance], here: Owed, data: Data) -> Walk:
        """FltReissueSynchronousIo (A6.19): once more below, in place."""
        major = op.step.major
        legal = op.step.irp and (major == CREATE or here.synchronised) and major not in NEVER_FAIL
        if legal and not (major == CREATE and (op.stands_open or data.io[0] == api.STATUS_REPARSE)):
            op.reissued += 1
            changed = data.parameters if data.dirty else here.received
            data.io, _ = yield from self.there_and_back(op, below, changed, nested=True)
            op.reissued -= 1
            op.flight.trace.append((here.instance.layer.name, "reissued", data.io))

    def walk(
        self, flight: Flight, step: Step, parameters: Parameters, above: Instance | None = None, nested: bool = False
    ) -> Walk:
        """One operation: the outcome, whether it has to start again, and the operation."""
        op = Operation(flight, step)
        path = self.listed(step.major)
        if above is not None:
            path = [each for each in path if Decimal(each.layer.altitude) < Decimal(above.layer.altitude)]
        self.active.append(op)
        io, refused = yield from self.there_and_back(op, path, parameters, nested)
        self.active.remove(op)
        return io, refused, op

    # -- requests --

    def request(
        self, flight: Flight, steps: list[Step], parameters: Parameters, *, by_path: bool, room: int | None = None,
        makes: bool = False,
    ) -> Walk:  # fmt: skip
        """A VFS request: its error and length. `makes`: its CREATE makes something, so that the base sees it even if no
        filter does."""
        failed = length = 0
        opened = False
        failed_by: Instance | None = None
        closing = [Step(CLEANUP, nothing), Step(CLOSE, nothing)]
        left: list[Step | None] = [*steps, None]
        makes_something = makes
        while left:
            step = left.pop(0)
            if failed and opened and (failed_by is not None or not by_path):
                for each in closing:
                    yield from self.walk(flight, each, parameters, failed_by)
                opened = False
            if step is None:
                break
            if step.major in NEVER_FAIL and steps[0].major not in NEVER_FAIL:
                if not opened or not self.listed(step.major):
                    continue
            elif failed and step.major not in NEVER_FAIL:
                continue
            if step.major == CREATE and by_path and not makes and not self.listed(CREATE):
                opened = True
                continue
            io, refused, op = yield from self.walk(flight, step, parameters)
            if refused and step.major not in (QUERY_OPEN, NETWORK_QUERY_OPEN):
                left.insert(0, replace(step, fast=False))
                continue
            if refused:  # A6.8: the long way; a LOOKUP's CREATE is what finds the name
                makes = step.major == QUERY_OPEN
                inform = Step(QUERY_INFORMATION, nothing, True, attributes=not makes)
                steps = [Step(CREATE, step.base if makes else nothing), inform, *closing]
                makes_something, left = makes, [*steps, None]
                continue
            if io[0] == api.STATUS_REPARSE:
                flight.reparses += 1
                if flight.reparses <= 64:
                    parameters, makes = Parameters(flight.reparsed_to), makes_something
                    left = [*steps, None]
                    continue
                io = (api.STATUS_REPARSE_POINT_NOT_RESOLVED, 0)
            if step.major == CREATE:
                opened = op.stands_open
                failed_by = op.failed_by if not is_success(io[0]) else None
            if not is_success(io[0]):
                failed = failed or io[0]
            elif (step.attributes and not op.stands_open) or (
                room is not None and step.major in MOVES_BYTES and io[1] > room
            ):
                failed = EIO[0]
            elif step.principal:
                length = io[1]
        return (to_errno(failed) or to_errno(EIO[0])) if failed else 0, length

    def start(self, steps: list[Step], parameters: Parameters, **how: Any) -> Flight:
        """Begins a request, up to where it stops first."""
        flight = Flight(len(self.flights))
        self.flights.append(flight)
        flight.run = self.request(flight, steps, parameters, **how)
        self.resume(flight)
        return flight


# ---- the base ------------------------------------------------------------------------------------------------------


class Directory:
    """One directory with names in it, and one file of ten bytes."""

    CONTENT = b"0123456789"

    def __init__(self) -> None:
        self.kinds = {b"file": "f", b"folder": "d"}
        self.size = len(self.CONTENT)

    def lookup(self, p: Parameters) -> Io:
        return (0, 0) if p.name in self.kinds else (api.STATUS_OBJECT_NAME_NOT_FOUND, 0)

    def make(self, kind: str) -> Callable[[Parameters], Io]:
        def base(p: Parameters) -> Io:
            if p.name in self.kinds:
                return (api.STATUS_OBJECT_NAME_COLLISION, 0)
            self.kinds[p.name] = kind
            return (0, 0)

        return base

    def remove(self, p: Parameters) -> Io:
        kind = self.kinds.get(p.name)
        if kind is None:
            return (api.STATUS_OBJECT_NAME_NOT_FOUND, 0)
        if kind == "f":
            return (from_errno(errno.ENOTDIR), 0)
        del self.kinds[p.name]
        return (0, 0)

    def read(self, p: Parameters) -> Io:
        return (0, max(0, min(p.length, self.size - p.offset)))

    def write(self, p: Parameters) -> Io:
        if p.length:
            self.size = max(self.size, p.offset + p.length)
        return (0, p.length)

    def truncate(self, size: int) -> Callable[[Parameters], Io]:
        def base(_: Parameters) -> Io:
            self.size = size
            return (0, 0)

        return base


def nothing(_: Parameters) -> Io:
    return (0, 0)
