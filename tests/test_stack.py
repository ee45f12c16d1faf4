"""The compiled filter stack against a reference interpreter of it (stack_model.py), without a mount: random programs
(stack_player.py) of up to eight instances, Python and native ones mixed, with several operations under way at once that
are held, completed, cancelled and drained while instances come and go.

To see a disagreement again: paste the Program that the failure shows into a test of its own (the plain ones below are
such), or give the tape to `Tape(...).program()`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stack_model as model
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from native_build import build
from stack_driver import CREATE, Host, entry_of, lookup
from stack_model import COMPLETE, PENDING, Completion, Layer, Parameters, Post, Pre
from stack_player import Both, Compiled, Played, Program, Tape

from stackfs import api, verifier
from stackfs.api import FLT_PREOP_SUCCESS_NO_CALLBACK
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry

TAPES = st.binary(min_size=100, max_size=240)
EVERYTHING = dict.fromkeys(model.MAJORS, (True, True))
HERE = Completion()

Play = Callable[[Program], None]


def compared(play: Play, examples: int, number: int) -> None:
    """So many random programs; `number` makes them other ones."""

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(TAPES)
    def agree(tape: bytes) -> None:
        program = Tape(tape).program()
        note(repr(program))
        play(program)

    agree()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """native_probe.pyx, compiled against the .pxd files as a stranger's filter would be."""
    return build("native_probe", tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory, native: Any) -> Iterator[Play]:
    """play(program): on both, which must agree; what is to come from another thread comes from one."""
    top = tmp_path_factory.mktemp("backing")
    with ThreadPoolExecutor(1) as elsewhere:
        yield lambda program: Both(top, native, elsewhere).play(program)


@pytest.mark.verifier_errors("")
def test_the_stack_does_what_the_model_does(play: Play) -> None:
    compared(play, 2000, int(os.environ.get("STACK_SEED", "0")))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.verifier_errors("")
@pytest.mark.parametrize("number", range(1, 21))
def test_the_stack_does_what_the_model_does_100_000_times(play: Play, number: int) -> None:
    compared(play, 5000, number)


# ---- cases in which the two have once disagreed --------------------------------------------------------------------


def creates(name: str, altitude: str, pres: list[Pre], posts: list[Post], *more: int) -> Layer:
    """An instance on CREATE, and on `more`."""
    return Layer(name, altitude, dict.fromkeys((model.CREATE, *more), (True, True)), pres, posts)


DENIED = (api.STATUS_ACCESS_DENIED, 0)
# fmt: off
OPENS = [("start", "open", 0)]
ONCE = {
    "an open taken back and called a success is an I/O error for those above": Program(
        [creates("low", "1", [Pre()], [Post(cancel_open=True)]), creates("high", "2", [Pre()], [Post()])], OPENS
    ),
    "an open that a lower post has failed has not succeeded, and cannot be taken back": Program(
        [creates("low", "1", [Pre()], [Post(io=DENIED)]), creates("mid", "2", [Pre()], [Post()], model.CLEANUP),
         creates("high", "3", [Pre()], [Post(cancel_open=True)])], OPENS,
    ),
    "a post that reissues an open, and then fails it, does not see it closed": Program(
        [creates("low", "1", [Pre(COMPLETE, io=DENIED), Pre()], [Post()], model.CLEANUP),
         creates("high", "2", [Pre()], [Post("raises", reissue=True)], model.CLEANUP)], OPENS,
    ),
    "an open that a lower post fails when it is reissued is closed below that one": Program(
        [creates("low", "1", [Pre()], [Post(), Post(io=DENIED)], model.CLEANUP),
         creates("high", "2", [Pre()], [Post(cancel_open=True, reissue=True)], model.CLEANUP)], OPENS,
    ),
    "what was cancelled is cancelled when it is reissued": Program(
        [creates("low", "1", [Pre(PENDING, how="cancel")], [Post()]),
         creates("high", "2", [Pre()], [Post(reissue=True)])], [*OPENS, ("cancel", 0)],
    ),
    "what was cancelled is cancelled when it is drained": Program(
        [creates("low", "1", [Pre(PENDING)], [Post()]), creates("high", "2", [Pre()], [Post()])],
        [*OPENS, ("cancel", 0), ("detach", 0), ("drain", 0, True)],
    ),
    "a close with another name below the one who takes an open back": Program(
        [creates("low", "1", [Pre()], [Post()], model.CLEANUP), creates("mid", "2", [Pre()], [Post(cancel_open=True)]),
         creates("high", "3", [Pre(change=b"two", dirty=True)], [Post()])], [("start", "create", b"one")],
    ),
    "what is held longest is cancelled first, and what comes of it last": Program(
        [Layer("only", "1", EVERYTHING, [Pre(PENDING, how="cancel", then=HERE, polite=True)], [Post()])],
        [("start", "lookup", b"file"), ("start", "rmdir", b"folder"), ("start", "lookup", b"folder"),
         ("cancel held", 0)],
    ),
    "what was changed without a post to come is waited for": Program(
        [Layer("low", "1", EVERYTHING, [Pre(PENDING)], [Post()]),
         Layer("high", "2", EVERYTHING, [Pre(model.NO_CALLBACK, dirty=True, change=b"")], [Post()])],
        [("start", "read", (1, 5, False)), ("detach", 0), ("drain", 0, True), ("complete", 0, HERE, True)],
    ),
}
# fmt: on


@pytest.mark.verifier_errors("")
@pytest.mark.parametrize("program", ONCE.values(), ids=ONCE)
def test_once(play: Play, program: Program) -> None:
    play(program)


# ---- what only C can do --------------------------------------------------------------------------------------------


def test_a_native_callback_cannot_change_the_operation_or_its_target(
    tmp_path_factory: pytest.TempPathFactory, native: Any
) -> None:
    """A4.7: the function, and the file it is about, are put back; what else it changed counts when dirty."""
    compiled = Compiled(tmp_path_factory.mktemp("native"), native)
    layer = Layer("n", "1", EVERYTHING, [Pre(change=b"folder", dirty=True)], [Post()], native=True)
    played = Played(layer, compiled)
    folder = lookup(compiled.volume, b"folder")
    compiled.volume.stack.insert(played.entry)
    run = compiled.start(1, name=b"file")
    assert run.done and run.request.nodeid == folder
    reports = {(each.what, each.filter, each.operation, each.path, each.place) for each in verifier.take()}
    assert reports == {("it changed MajorFunction", "f", "IRP_MJ_QUERY_OPEN", "/file", "")}
    assert [(step[0], step[1], step[2], step[4]) for step in run.trace] == [
        ("n", "pre", api.IRP_MJ_QUERY_OPEN, Parameters(b"file")),
        ("n", "post", api.IRP_MJ_QUERY_OPEN, Parameters(b"file")),
    ]
    compiled.volume.forget(folder, 2)
    compiled.volume.stack.remove(played.entry)
    compiled.end()


class OpensTheDirectory(Host):
    """A native instance whose pre sets SL_OPEN_TARGET_DIRECTORY."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[bytes] = []

    def pre(self, data: Any, host: object) -> int:
        data.operation_flags = 4
        data.set_dirty()
        return FLT_PREOP_SUCCESS_NO_CALLBACK


def test_an_open_of_the_target_s_directory_is_named_by_the_directory(core: Volume, place: Path, native: Any) -> None:
    """B1.4: SL_OPEN_TARGET_DIRECTORY, which a filter above has set."""
    core.stack.name = b"vol"
    host = OpensTheDirectory()
    entry = InstanceEntry(host, "n", "2", "n", (), native.operations({api.IRP_MJ_CREATE: (True, False)}))
    native.bind(entry, host)
    names: list[str] = []

    def pre(data: Any, objects: object) -> int:
        names.append(data.name_information().name)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_CREATE, pre, None), name="above", at="3"))
    core.stack.insert(entry)
    core.stack.insert(entry_of((api.IRP_MJ_CREATE, pre, None), name="below", at="1"))
    folder = lookup(core, b"folder")
    core.request(CREATE, folder, name=b"new", mode=0o644, flags=os.O_RDWR).do()
    assert names == ["vol/folder/new", "vol/folder"]
