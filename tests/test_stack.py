"""The filter stack against a model of it (stack_model.py): Python and native instances mixed, without a mount."""

from __future__ import annotations

import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import stack_model as model
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from native_build import build
from stack_driver import CREATE, GETATTR, LOOKUP, MKDIR, OPEN, READ, RELEASE, RMDIR, Host, entry_of, lookup, opened
from stack_model import RAISES, Layer, Parameters, Post, Pre, Step

from stackfs import api
from stackfs.api import (
    FLT_PREOP_COMPLETE,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE,
    STATUS_ACCESS_DENIED,
)
from stackfs.cext.requests import Volume
from stackfs.cext.stack import InstanceEntry


class Context:
    """A completion context of a Python instance; every one must have been let go in the end."""

    alive: ClassVar[weakref.WeakSet[Context]] = weakref.WeakSet()

    def __init__(self, value: int) -> None:
        self.value = value
        self.alive.add(self)


class Played(Host):
    """Does on the real stack what a Layer of the model does, and writes down what it sees."""

    def __init__(self, layer: Layer, trace: list[tuple[Any, ...]], native: Any) -> None:
        super().__init__()
        # A copy: the model's own layer counts its own calls.
        self.layer = replace(layer, calls=[0, 0])
        self.trace = trace
        self.kept: list[bytes] = []
        self.moves = 1
        rows = [
            (major, 0, self.pre if pre else None, self.post if post else None)
            for major, (pre, post) in layer.registered.items()
        ]
        self.entry = InstanceEntry(
            self, layer.name, layer.altitude, layer.name, () if layer.native else rows,
            native.operations(layer.registered) if layer.native else None, layer.passes,
        )  # fmt: skip
        if layer.native:
            native.bind(self.entry, self)

    def see(self, data: Any) -> tuple[Parameters, tuple[int, int]]:
        assert not data.is_dirty, "a mark of somebody else's"
        reads = data.major == api.IRP_MJ_READ
        seen = Parameters(data.name, data.offset if reads else 0, data.length if reads else 0)
        return seen, (data.status, data.information)

    def pre(self, data: Any, objects: object) -> Any:
        assert objects is self
        assert not data.flags & api.FLTFL_CALLBACK_DATA_POST_OPERATION
        seen, io = self.see(data)
        self.trace.append((self.layer.name, "pre", data.major, seen, io))
        act = self.layer.next_pre()
        if act.io is not None:
            data.status, data.information = act.io
        if act.rename is not None:
            changed = seen.changed(act.rename, data.major)
            if seen.name:
                data.name = changed.name
            elif data.major == api.IRP_MJ_READ:
                data.offset, data.length = changed.offset, changed.length
        if act.dirty:
            data.set_dirty()
        if act.status == RAISES:
            raise KeyboardInterrupt("pre")
        return act.status if act.context is None else (act.status, Context(act.context))

    def post(self, data: Any, objects: object, context: Context | None, flags: int) -> Any:
        assert objects is self and flags == 0
        assert data.flags & api.FLTFL_CALLBACK_DATA_POST_OPERATION
        seen, io = self.see(data)
        self.trace.append((self.layer.name, "post", data.major, seen, io, None if context is None else context.value))
        act = self.layer.next_post()
        if act.io is not None:
            data.status, data.information = act.io
        if act.dirty:
            data.set_dirty()
        if act.status == RAISES:
            raise SystemExit("post")
        return act.status

    def native_pre(self, seen: tuple[Any, ...]) -> Pre:
        major, name, offset, length, status, information, dirty = seen
        assert not dirty
        self.trace.append((self.layer.name, "pre", major, Parameters(name, offset, length), (status, information)))
        self.moves = int(major == api.IRP_MJ_READ)
        return self.layer.next_pre()

    def native_post(self, seen: tuple[Any, ...], context: int | None, flags: int) -> Post:
        major, name, offset, length, status, information, dirty = seen
        assert not dirty and flags == 0
        here = Parameters(name, offset, length)
        self.trace.append((self.layer.name, "post", major, here, (status, information), context))
        return self.layer.next_post()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """native_probe.pyx, compiled against the .pxd files as a stranger's filter would be."""
    return build("native_probe", tmp_path_factory.mktemp("native"))


NAMES = (b"file", b"folder", b"one", b"two", b"\xff")
REFUSALS = (api.FLT_PREOP_DISALLOW_FASTIO, api.FLT_PREOP_DISALLOW_FSFILTER_IO)  # legal for some operations
OTHERS = (*REFUSALS, 7, -1, -0x5AFE, 1 << 30)               # holding an operation: test_pending.py
IOS = st.none() | st.tuples(
    st.sampled_from(
        [0, STATUS_ACCESS_DENIED, api.STATUS_PENDING, api.STATUS_FLT_DISALLOW_FAST_IO, api.STATUS_NO_MORE_FILES]
    ),
    st.sampled_from([0, 3, 1 << 40]),
)
WITH_CONTEXT = st.builds(
    Pre, st.sampled_from([FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_PREOP_SYNCHRONIZE]),
    st.none() | st.sampled_from(NAMES), st.booleans(), IOS, st.none() | st.integers(1, 99),
)  # fmt: skip
WITHOUT = st.builds(
    Pre, st.sampled_from([FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_PREOP_COMPLETE, *OTHERS, RAISES]),
    st.none() | st.sampled_from(NAMES), st.booleans(), IOS, st.none() | st.integers(1, 99),
)  # fmt: skip
PRES = st.lists(WITH_CONTEXT | WITH_CONTEXT | WITHOUT, min_size=1, max_size=4)
POSTS = st.lists(
    st.just(Post()) | st.builds(Post, st.sampled_from([0, 0, 2, 99, -1, RAISES]), IOS, st.booleans()),
    min_size=1, max_size=3,
)  # fmt: skip
ALTITUDES = st.sampled_from(
    ["1", "2", "10", "9", "9.5", "9.50000000000000000000000000000000000001", "09.4999999999999999999999", "100", "0.1",
     "370030", "370030.0000000000000001", "370029.9999999999999999"]
)  # fmt: skip


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    is_native = draw(st.booleans())
    chosen = draw(st.sets(st.sampled_from(model.MAJORS), min_size=1)) if draw(st.booleans()) else set(model.MAJORS)
    kinds = st.sampled_from([(True, True), (True, True), (True, False), (False, True)])
    registered = {major: draw(kinds) for major in sorted(chosen)}
    pres, posts = draw(PRES), draw(POSTS)
    if is_native:  # cannot raise
        pres = [Pre(7, *list(vars(each).values())[1:]) if each.status == RAISES else each for each in pres]
        posts = [Post(7, each.io, each.dirty) if each.status == RAISES else each for each in posts]
    name = draw(st.sampled_from(["a", "b", "c", "d", "e", "f"]))
    return Layer(name, draw(ALTITUDES), registered, pres, posts, draw(st.booleans()), is_native)


EVENTS = st.one_of(
    st.tuples(st.just("insert"), layers()),
    st.tuples(st.just("insert"), layers()),
    st.tuples(st.just("remove"), st.integers(0, 5)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.sampled_from(["lookup", "mkdir", "rmdir", "create"]), st.sampled_from(NAMES)),
    st.tuples(st.just("getattr"), st.none()),
    st.tuples(st.just("open"), st.none()),
    st.tuples(st.just("read"), st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans())),
    st.tuples(st.just("release"), st.integers(0, 5)),
)


class Both:
    """The model and the real stack, side by side."""

    def __init__(self, top: Path, native: Any) -> None:
        (top / "file").write_bytes(b"0123456789")
        (top / "folder").mkdir()
        self.core = Volume(os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self.native = native
        self.model = model.Model()
        self.directory = model.Directory()
        self.trace: list[tuple[Any, ...]] = []
        self.played: dict[str, Played] = {}
        self.numbers: set[int] = set()
        self.node = lookup(self.core, b"file")
        self.reader = opened(self.core, self.node)
        self.before = self.core.open_files, self.core.known_inodes
        self.handles: list[int] = []

    def ask(self, opcode: int, steps: list[Step], parameters: Parameters = Parameters(), nodeid: int = 1,  # noqa: B008
            *, by_path: bool = True, makes: bool = False, room: int = 0, **arguments: Any) -> Any:  # fmt: skip
        self.trace.clear()
        self.model.trace.clear()
        expected = self.model.request(steps, parameters, by_path=by_path, room=room, makes=makes)
        if parameters.name:
            arguments["name"] = parameters.name
        request = self.core.request(opcode, nodeid, **arguments)
        while not request.run():
            request.wait()
        assert self.trace == self.model.trace
        assert (request.error, 0 if request.error else request.length) == (
            expected.error, 0 if expected.error else expected.length)  # fmt: skip
        assert request.number not in self.numbers
        self.numbers.add(request.number)
        return request

    def entries(self) -> None:
        assert [each.name.decode() for each in self.core.stack.entries] == [each.name for each in self.model.layers]
        for layer in self.model.layers:
            entry = self.played[layer.name].entry
            assert (entry.failed, entry.errors) == (layer.failed, layer.errors)

    def identities(self) -> dict[int, int]:
        return {major: self.core.stack.list_identity(major) for major in range(256)}

    def do(self, what: str, argument: Any) -> None:
        last = [Step(model.CLEANUP, model.nothing), Step(model.CLOSE, model.nothing)]
        informs = Step(model.QUERY_INFORMATION, model.nothing)
        if what in ("insert", "remove"):
            self.change(what, argument)
        elif what == "fail" and self.model.layers:
            layer = self.model.layers[argument % len(self.model.layers)]
            layer.failed = True
            self.played[layer.name].entry.mark_failed()
        elif what == "lookup":
            done = self.ask(LOOKUP, [Step(model.QUERY_OPEN, self.directory.lookup, True)], Parameters(argument))
            self.give_back(done)
        elif what == "mkdir":
            steps = [Step(model.CREATE, self.directory.make("d"), True), informs, *last]
            self.give_back(self.ask(MKDIR, steps, Parameters(argument), makes=True, mode=0o755))
        elif what == "rmdir":
            steps = [Step(model.CREATE, model.nothing), Step(model.SET_INFORMATION, self.directory.remove, True), *last]
            self.ask(RMDIR, steps, Parameters(argument))
        elif what == "create":
            steps = [Step(model.CREATE, self.directory.make("f"), True), informs]
            done = self.ask(CREATE, steps, Parameters(argument), by_path=False, mode=0o644, flags=os.O_RDWR | os.O_EXCL)
            self.give_back(done)
            if not done.error:
                self.handles.append(done.fh)
        elif what == "getattr":
            self.ask(GETATTR, [Step(model.NETWORK_QUERY_OPEN, model.nothing, True, fast=True, attributes=True)])
        elif what == "open":
            done = self.ask(OPEN, [Step(model.CREATE, model.nothing, True)], Parameters(), self.node, by_path=False)
            if not done.error:
                self.handles.append(done.fh)
        elif what == "read":
            offset, size, own = argument  # a program's own read is fast I/O, the page cache's is not
            step = Step(model.READ, self.directory.read, True, fast=own)
            given = Parameters(b"", offset, size)
            self.ask(READ, [step], given, by_path=False, room=size, fh=self.reader, offset=offset, size=size,
                     buffer=bytearray(size), open_flags=2 if own else 0)  # fmt: skip
        elif what == "release" and self.handles:
            fh = self.handles.pop(argument % len(self.handles))
            done = self.ask(RELEASE, [Step(model.CLEANUP, model.nothing, True), last[1]], by_path=False, fh=fh)
            assert done.error == 0

    def give_back(self, request: Any) -> None:
        if not request.error:
            self.core.forget(request.nodeid, 1)

    def change(self, what: str, argument: Any) -> None:
        before = self.identities()
        if what == "insert":
            layer = replace(argument, calls=[0, 0])
            played = Played(layer, self.trace, self.native)
            if not self.model.insert(layer):
                with pytest.raises(ValueError, match="taken"):
                    self.core.stack.insert(played.entry)
                assert self.identities() == before
                return
            self.played[layer.name] = played
            self.core.stack.insert(played.entry)
        else:
            if not self.model.layers:
                return
            layer = self.model.layers.pop(argument % len(self.model.layers))
            self.core.stack.remove(self.played.pop(layer.name).entry)
        after = self.identities()
        for major in range(256):
            if major not in layer.registered:
                assert before[major] == after[major]
            assert (after[major] != 0) == bool(self.model.listed(major))
        assert self.core.stack.drained()

    def end(self) -> None:
        while self.handles:
            self.do("release", 0)
        assert (self.core.open_files, self.core.known_inodes) == self.before
        for played in self.played.values():
            self.core.stack.remove(played.entry)
        assert self.core.stack.drained()
        self.core.close()
        assert not list(Context.alive)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take longer than a test may
)  # fmt: skip
@given(events=st.lists(EVENTS, min_size=3, max_size=25))
def test_the_stack_does_what_the_model_does(
    tmp_path_factory: pytest.TempPathFactory, native: Any, events: list[tuple[str, Any]]
) -> None:
    top = tmp_path_factory.mktemp("core", numbered=True)
    both = Both(top, native)
    try:
        for what, argument in events:
            both.do(what, argument)
            both.entries()
    except BaseException:
        both.core.close()
        raise
    both.end()
    shutil.rmtree(top)


# ---- what only C can do ---------------------------------------------------------------------------------------------


def test_a_native_callback_cannot_change_the_operation_or_its_target(core: Volume, place: Path, native: Any) -> None:
    """A4.7: the function, and the file it is about, are put back; what else it changed counts when dirty."""
    everything = dict.fromkeys(model.MAJORS, (True, True))
    layer = Layer("n", "1", everything, [Pre(rename=b"folder", dirty=True)], [Post()], native=True)
    played = Played(layer, [], native)
    folder = lookup(core, b"folder")
    core.stack.insert(played.entry)
    assert lookup(core, b"file") == folder
    assert [step[:4] for step in played.trace] == [
        ("n", "pre", api.IRP_MJ_QUERY_OPEN, Parameters(b"file")),
        ("n", "post", api.IRP_MJ_QUERY_OPEN, Parameters(b"file")),
    ]


def test_an_open_of_the_target_s_directory_is_named_by_the_directory(core: Volume, place: Path, native: Any) -> None:
    """B1.4: SL_OPEN_TARGET_DIRECTORY, which a filter above has set."""

    class Opens(Pre):
        operation_flags = 4

    core.stack.name = b"vol"
    layer = Layer("n", "2", {api.IRP_MJ_CREATE: (True, False)}, [Opens(dirty=True)], [Post()], native=True)
    played = Played(layer, [], native)
    names: list[str] = []

    def pre(data: Any, objects: object) -> int:
        names.append(data.name_information().name)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_CREATE, pre, None), name="above", at="3"))
    core.stack.insert(played.entry)
    core.stack.insert(entry_of((api.IRP_MJ_CREATE, pre, None), name="below", at="1"))
    folder = lookup(core, b"folder")
    core.request(CREATE, folder, name=b"new", mode=0o644, flags=os.O_RDWR).do()
    assert names == ["vol/folder/new", "vol/folder"]
