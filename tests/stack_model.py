"""The walk through the filter stack as docs/semantics.md has it (A1, A4, A6, D3), in plain Python: what test_stack.py
holds the real one against. Nothing here is shared with the code it checks but the numbers of the constants."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal

from stackfs import api
from stackfs.cext.ntstatus import from_errno, is_success, to_errno

CREATE, CLOSE, READ, CLEANUP = api.IRP_MJ_CREATE, api.IRP_MJ_CLOSE, api.IRP_MJ_READ, api.IRP_MJ_CLEANUP
QUERY_INFORMATION, SET_INFORMATION = api.IRP_MJ_QUERY_INFORMATION, api.IRP_MJ_SET_INFORMATION
QUERY_OPEN, NETWORK_QUERY_OPEN = api.IRP_MJ_QUERY_OPEN, api.IRP_MJ_NETWORK_QUERY_OPEN
MAJORS = (CREATE, CLOSE, READ, CLEANUP, QUERY_INFORMATION, SET_INFORMATION, QUERY_OPEN, NETWORK_QUERY_OPEN)

NEVER_FAIL = (CLEANUP, CLOSE)
GOES_ON = (api.FLT_PREOP_SUCCESS_WITH_CALLBACK, api.FLT_PREOP_SUCCESS_NO_CALLBACK, api.FLT_PREOP_SYNCHRONIZE)
RAISES = "raises"
EIO = (api.STATUS_IO_DEVICE_ERROR, 0)
DISALLOWED = (api.STATUS_FLT_DISALLOW_FAST_IO, 0)

Io = tuple[int, int]


@dataclass(frozen=True)
class Parameters:
    """What of the parameters these tests change. A layer's change makes them another value; the old one stays."""

    name: bytes = b""
    offset: int = 0
    length: int = 0

    def changed(self, name: bytes, major: int) -> Parameters:
        """With another name where there is one; a read begins one byte later, and is shorter by one."""
        if self.name:
            return Parameters(name, self.offset, self.length)
        if major == READ:
            return Parameters(b"", self.offset + 1, max(self.length - 1, 0))
        return self


@dataclass(frozen=True)
class Pre:
    status: int | str = api.FLT_PREOP_SUCCESS_WITH_CALLBACK
    rename: bytes | None = None  # changes the parameters
    dirty: bool = False
    io: Io | None = None
    context: int | None = None


@dataclass(frozen=True)
class Post:
    status: int | str = api.FLT_POSTOP_FINISHED_PROCESSING
    io: Io | None = None
    dirty: bool = False


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
    failed: bool = False
    errors: int = 0
    calls: list[int] = field(default_factory=lambda: [0, 0])

    def next_pre(self) -> Pre:
        self.calls[0] += 1
        return self.pres[(self.calls[0] - 1) % len(self.pres)]

    def next_post(self) -> Post:
        self.calls[1] += 1
        return self.posts[(self.calls[1] - 1) % len(self.posts)]


@dataclass(frozen=True)
class Step:
    major: int
    base: Callable[[Parameters], Io]
    principal: bool = False
    fast: bool = False  # offered as fast I/O; a QUERY_OPEN is an FS-filter operation
    attributes: bool = False  # a success without the base has none to give: an error for the program

    def refused_by(self, status: int | str) -> bool:
        """A6.7: is this pre status a legal refusal to do it the fast way?"""
        if status == api.FLT_PREOP_DISALLOW_FASTIO:
            return self.fast
        return status == api.FLT_PREOP_DISALLOW_FSFILTER_IO and self.major == QUERY_OPEN


@dataclass
class Answer:
    error: int
    length: int


class Model:
    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.trace: list[tuple[object, ...]] = []

    def insert(self, layer: Layer) -> bool:
        if any(each.name == layer.name or Decimal(each.altitude) == Decimal(layer.altitude) for each in self.layers):
            return False
        self.layers.append(layer)
        self.layers.sort(key=lambda each: Decimal(each.altitude), reverse=True)
        return True

    def listed(self, major: int) -> list[Layer]:
        return [layer for layer in self.layers if major in layer.registered]

    def walk(
        self, step: Step, parameters: Parameters, above: Layer | None = None
    ) -> tuple[Io, bool, Layer | None, bool]:
        """The outcome, whether the base did it, whose post failed it afterwards, and whether it has to start again."""
        major, never_fails = step.major, step.major in NEVER_FAIL
        owed: list[tuple[Layer, Parameters, int | None]] = []
        io: Io = (0, 0)
        reaches_base, refused = True, False
        current = parameters

        def nothing_made_up(io: Io, base_done: bool) -> Io:
            return EIO if is_success(io[0]) and not base_done and major in (CREATE, QUERY_OPEN) else io

        for layer in self.listed(major):
            if above is not None and Decimal(layer.altitude) >= Decimal(above.altitude):
                continue
            if layer.failed:
                if layer.passes or never_fails:
                    continue
                io, reaches_base = EIO, False
                break
            has_pre, has_post = layer.registered[major]
            if not has_pre:
                owed.append((layer, current, None))
                continue
            act = layer.next_pre()
            self.trace.append((layer.name, "pre", major, current, io))
            before, io = io, act.io or io
            if act.status in GOES_ON:
                if has_post and act.status != api.FLT_PREOP_SUCCESS_NO_CALLBACK:
                    owed.append((layer, current, act.context))
                if act.dirty and act.rename is not None:
                    current = current.changed(act.rename, major)
                continue
            if step.refused_by(act.status):
                io, reaches_base, refused = DISALLOWED, False, True
                break
            if act.status == api.FLT_PREOP_COMPLETE:
                if never_fails:
                    io = (0, io[1])
                    break
                if io[0] not in (api.STATUS_PENDING, api.STATUS_FLT_DISALLOW_FAST_IO):
                    io, reaches_base = nothing_made_up(io, False), False
                    break
            layer.errors += 1
            if layer.passes or never_fails:
                io = before
                continue
            io, reaches_base = EIO, False
            break
        base_done = False
        if reaches_base:
            io = step.base(current)
            base_done = is_success(io[0])
        failed_by = None
        for layer, received, context in reversed(owed):
            done = layer.next_post()
            self.trace.append((layer.name, "post", major, received, io, context))
            before, io = io, done.io or io
            if done.status == api.FLT_POSTOP_DISALLOW_FSFILTER_IO and major == QUERY_OPEN:
                io, refused = DISALLOWED, True
            elif done.status != api.FLT_POSTOP_FINISHED_PROCESSING:
                layer.errors += 1
                io = before if layer.passes else EIO
            if never_fails:
                io = (0, io[1])
            elif is_success(before[0]) and base_done and not is_success(io[0]):
                failed_by = layer
            else:
                io = nothing_made_up(io, base_done)
        return io, base_done, failed_by, refused

    def request(
        self, steps: list[Step], parameters: Parameters, *, by_path: bool, room: int = 0, makes: bool = False
    ) -> Answer:
        """A VFS request. `makes`: its CREATE makes something, so that the base sees it even if no filter does."""
        failed = length = 0
        opened = False
        failed_by: Layer | None = None
        closing = [Step(CLEANUP, nothing), Step(CLOSE, nothing)]
        left: list[Step | None] = [*steps, None]
        while left:
            step = left.pop(0)
            if failed and opened and (failed_by is not None or not by_path):
                for each in closing:
                    self.walk(each, parameters, failed_by)
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
            io, base_done, by, refused = self.walk(step, parameters)
            if refused and step.major == READ:
                left.insert(0, replace(step, fast=False))
                continue
            if refused:  # A6.8: the long way; a LOOKUP's CREATE is what finds the name
                makes = step.major == QUERY_OPEN
                inform = Step(QUERY_INFORMATION, nothing, True, attributes=not makes)
                left = [Step(CREATE, step.base if makes else nothing), inform, *closing, None]
                continue
            if step.major == CREATE:
                opened = base_done
                failed_by = by if not is_success(io[0]) else None
            if not is_success(io[0]):
                failed = failed or io[0]
            elif (step.attributes and not base_done) or (step.major == READ and io[1] > room):
                failed = EIO[0]
            elif step.principal:
                length = io[1]
        return Answer((to_errno(failed) or to_errno(EIO[0])) if failed else 0, length)


class Directory:
    """The base: one directory with names in it, and one file of ten bytes."""

    SIZE = 10

    def __init__(self) -> None:
        self.kinds = {b"file": "f", b"folder": "d"}

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
        return (0, max(0, min(p.length, self.SIZE - p.offset)))


def nothing(_: Parameters) -> Io:
    return (0, 0)
