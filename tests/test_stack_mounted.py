"""A sample of test_stack.py through a real mount, on each lane: a stack of drop-ins that do what layers of the model
do, under the programs of a few system calls; each operation that came is then given to the model.

The highest and the lowest instance only look: the first one says which operations there were, the last one what the
base made of them.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stack_model as model
from conftest import Drive, needs_root
from stack_model import Flight, Instance, Layer, Model, Parameters, Post, Pre, Step
from stack_player import Tape

from stackfs import api

HERE = Path(__file__).resolve().parent
ROUNDS, BETWEEN = 6, 5
EVERYTHING = dict.fromkeys(model.MAJORS, (True, True))

PLAYS = '''
MANIFEST = {{"name": "plays", "altitude": "370900", "group": "FSFilter Activity Monitor", "default_instance": "top",
            "instances": {instances!r}}}
import os, sys, threading
sys.path.insert(0, {tests!r})
import stack_model as model
from stack_model import Completion, Layer, Post, Pre
from stackfs.api import *

ROUNDS = {rounds!r}
LOG = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


class Plays(Filter):
    operations = tuple(Operation(major, pre="pre", post="post") for major in model.MAJORS)

    def __init__(self, options):
        super().__init__(options)
        self.layers = None
        self.of = {{}}       # by request: the layers as they were when it came, and its turns

    def see(self, when, data, name, context=None):
        number = data.request_number
        if name == "top" and number not in self.of:
            if data.name.startswith(b"round "):
                self.layers = ROUNDS[int(data.name[6:])]
            self.of[number] = self.layers, {{}}
        layers, turns = self.of.get(number, (None, None))
        if layers is None:
            return Pre() if when == "pre" else Post()
        moves = data.major in model.MOVES_BYTES
        line = (number, name, when, data.major, data.flags, data.name, data.offset if moves else 0,
                data.length if moves else 0, data.status, data.information, context,
                data.irql if when == "post" else None)
        os.write(LOG, repr(line).encode() + b"\\n")
        return layers[name].act(when, turns)

    def do(self, data, act):
        if act.io is not None:
            data.status, data.information = act.io
        if act.dirty:
            data.set_dirty()

    def complete(self, data, then):
        self.do(data, then)
        data.complete_pended_pre(then.status, then.context)

    def pre(self, data, objects):
        act = self.see("pre", data, objects.name)
        self.do(data, act)
        if act.status == "raises":
            raise KeyboardInterrupt
        if act.status != FLT_PREOP_PENDING:
            return act.status if act.context is None else (act.status, act.context)
        if not data.is_irp:
            refusal = FLT_PREOP_DISALLOW_FASTIO if data.is_fast_io else FLT_PREOP_DISALLOW_FSFILTER_IO
            return refusal if act.polite else FLT_PREOP_PENDING
        if act.how == "now":
            self.complete(data, act.then)
        else:
            threading.Thread(target=self.complete, args=(data, act.then)).start()
        return FLT_PREOP_PENDING

    def post(self, data, objects, context, flags):
        act = self.see("post", data, objects.name, context)
        self.do(data, act)
        if act.status == "raises":
            raise SystemExit
        if act.status == 1 and data.is_irp:
            if act.now:
                data.complete_pended_post()
            else:
                threading.Thread(target=data.complete_pended_post).start()
        return act.status
'''


def layer(tape: Tape, name: str) -> Layer:
    """One that changes no names and sends nobody to another, which the kernel would remember, and fails no open behind
    its CREATE: what is closed below it the highest instance does not see."""
    made = tape.layer()
    mild = [post for post in made.posts if post.status in (0, 1) and post.io is None] or [Post()]
    pres = [Pre(model.COMPLETE if each.status == model.REPARSE else each.status,
                None, each.dirty, each.io, each.context, each.how,
                model.replace(each.then, change=None), each.polite) for each in made.pres]  # fmt: skip
    posts = [Post(each.status, None, each.dirty, now=each.now) for each in mild]
    return Layer(name, made.altitude, EVERYTHING, pres, posts)


def work(top: Path) -> None:
    """Whatever a filter makes of it."""
    steps: list[Callable[[], object]] = [
        lambda: (top / "file").write_bytes(b"0123456789" * 10),
        lambda: (top / "file").read_bytes(),
        lambda: os.truncate(top / "file", 50),
        lambda: (top / "one").mkdir(),
        lambda: os.stat(top / "one"),
        lambda: (top / "one").rmdir(),
        lambda: os.listdir(top),
    ]

    def open_file() -> None:
        with open(top / "file", "r+b", buffering=0) as file:
            for step in (lambda: file.read(20), lambda: file.write(b"abc"), lambda: os.fsync(file), file.read,
                         lambda: os.fstat(file.fileno())):  # fmt: skip
                with contextlib.suppress(OSError):
                    step()

    for step in (*steps, open_file, open_file):
        with contextlib.suppress(OSError):
            step()


def agrees(lines: list[tuple[Any, ...]], layers: list[Layer]) -> int:
    """One request's lines, operation by operation; how many there were."""
    walker = Model(lambda _: False)
    for each in layers:
        walker.instances.append(Instance(each))
    flight = Flight(0)
    count = 0
    while lines:
        (ends,) = [at for at, line in enumerate(lines) if line[1:3] == ("top", "post")][:1] or [len(lines)]
        one, lines = lines[: ends + 1], lines[ends + 1 :]
        first = one[0]
        assert first[1:3] == ("top", "pre")
        major, flags = first[3], first[4]
        based = [(line[8], line[9]) for line in one if line[1:3] == ("bottom", "post")]
        outcome = based[0] if based else (0, 0)
        fast = flags & api.FLTFL_CALLBACK_DATA_FAST_IO_OPERATION != 0
        step = Step(major, functools.partial(lambda made, _: made, outcome), fast=fast)
        flight.trace.clear()
        walk = walker.walk(flight, step, Parameters(*first[5:8]))
        sent = None
        with contextlib.suppress(StopIteration):
            while True:
                stop = walk.send(sent)
                sent = None
                if isinstance(stop, model.Hold):
                    sent = stop.act.then if isinstance(stop.act, Pre) else model.Completion()
        seen = [(*line[1:5], Parameters(*line[5:8]), (line[8], line[9]), line[10], line[11], False) for line in one]
        assert seen == flight.trace
        count += 1
    return count


@needs_root
def test_what_filters_see_through_a_mount_is_what_the_model_sees(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str
) -> None:
    names = [f"layer {number}" for number in range(BETWEEN)]
    choices = random.Random(4)
    rounds = []
    for _ in range(ROUNDS):
        between = {name: layer(Tape(choices.randbytes(200)), name) for name in names}
        rounds.append({"top": Layer("top", "9", EVERYTHING, [Pre()], [Post()]), **between,
                       "bottom": Layer("bottom", "1", EVERYTHING, [Pre()], [Post()])})  # fmt: skip
    below = [*names, "bottom"]
    instances = [{"name": name, "altitude": str(370800 - at), "attach": "automatic"} for at, name in enumerate(below)]
    log = tmp_path / "log"
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters" / "plays.py").write_text(
        PLAYS.format(instances=instances, tests=str(HERE), rounds=rounds, log=str(log))
    )
    made = drive(f"filterdir={tmp_path / 'filters'}", "cache=strict")
    made.expected_log.append("plays|layer")
    made.fltmc("load", "plays", "-v", str(made.mnt))
    (made.src / "file").write_bytes(b"0123456789")
    for number in range(ROUNDS):
        with contextlib.suppress(OSError):
            os.stat(made.mnt / f"round {number}")
        work(made.mnt)
    made.umount()
    made.wait_gone()
    requests: dict[int, list[tuple[Any, ...]]] = {}
    which: dict[int, int] = {}
    at = 0
    for text in log.read_text().splitlines():
        line = ast.literal_eval(text)
        if line[5].startswith(b"round "):
            at = int(line[5][6:])
        requests.setdefault(line[0], []).append(line)
        which.setdefault(line[0], at)
    count = sum(agrees(lines, list(rounds[which[number]].values())) for number, lines in requests.items())
    assert count > 40
