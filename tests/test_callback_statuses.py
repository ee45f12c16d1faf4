"""What pre and post callbacks return, one status after the other (docs/semantics.md A6.1 to A6.5, A6.10 to A6.12),
driven without a mount."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from stack_driver import FSYNC, LOOKUP, READ, WRITE, Host, answering, entry_of, error_of, go_on, lookup, opened

from stackfs import api
from stackfs.api import (
    FLT_POSTOP_DISALLOW_FSFILTER_IO,
    FLT_POSTOP_FINISHED_PROCESSING,
    FLT_PREOP_COMPLETE,
    FLT_PREOP_DISALLOW_FASTIO,
    FLT_PREOP_DISALLOW_FSFILTER_IO,
    FLT_PREOP_PENDING,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_LOCK_CONTROL,
    IRP_MJ_QUERY_OPEN,
    IRP_MJ_READ,
    IRP_MJ_WRITE,
    STATUS_ACCESS_DENIED,
    STATUS_SUCCESS,
)
from stackfs.cext.python_requests import Volume

OWN = 2
"""A READ of a program's own: fast I/O. Without it, the page cache's: an IRP."""


class Context:
    pass


class Trace(list[Any]):
    """An instance between two others; who was called, and what the posts saw."""

    def __init__(self, core: Volume, major: int, pre: Any, post: Any = None) -> None:
        self.host = Host()
        core.stack.insert(entry_of(self.row(major, "above"), name="above", at="3"))
        core.stack.insert(entry_of((major, pre, post), name="middle", at="2", host=self.host))
        core.stack.insert(entry_of(self.row(major, "below"), name="below", at="1"))

    def row(self, major: int, who: str) -> tuple[int, Any, Any]:
        def pre(data: Any, objects: object) -> Any:
            self.append(f"{who} pre")
            return FLT_PREOP_SUCCESS_WITH_CALLBACK, who

        def post(data: Any, objects: object, context: Any, flags: int) -> None:
            assert context == who
            self.append((f"{who} post", data.status, data.information))

        return major, pre, post


def test_complete_ends_it_there(core: Volume, place: Path) -> None:
    """A6.5: no lower pre, no base, no lower post, not its own post; the posts above it, and the program, see what it
    says."""

    def pre(data: Any, objects: object) -> Any:
        data.buffer[:3] = b"all"
        return data.complete(STATUS_SUCCESS, 3)

    fh = opened(core, lookup(core, b"file"))
    trace = Trace(core, IRP_MJ_READ, pre, lambda *_: trace.append("its own"))
    buffer = bytearray(10)
    request = core.request(READ, fh=fh, buffer=buffer, size=10, open_flags=OWN).do()
    assert trace == ["above pre", ("above post", STATUS_SUCCESS, 3)]
    assert request.length == 3 and buffer == b"all" + bytes(7)


def test_no_callback_goes_on_without_its_post(core: Volume, place: Path) -> None:
    """A6.1"""
    fh = opened(core, lookup(core, b"file"))
    answer = answering(FLT_PREOP_SUCCESS_NO_CALLBACK)
    trace = Trace(core, IRP_MJ_FLUSH_BUFFERS, answer, lambda *_: trace.append("its own"))
    core.request(FSYNC, fh=fh).do()
    assert trace == ["above pre", "below pre", ("below post", 0, 0), ("above post", 0, 0)]


@pytest.mark.parametrize("status", [FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_PREOP_SYNCHRONIZE])
def test_a_context_comes_with_the_post_that_is_owed(core: Volume, place: Path, status: int) -> None:
    """A6.1, A6.3"""
    got: list[Any] = []
    mine = Context()
    fh = opened(core, lookup(core, b"file"))
    trace = Trace(core, IRP_MJ_FLUSH_BUFFERS, answering((status, mine)), lambda *which: got.append(which[2]))
    core.request(FSYNC, fh=fh).do()
    assert got == [mine] and len(trace) == 4 and trace.host.told == []


@pytest.mark.verifier_errors("completion context goes with", "of what is no QUERY_OPEN", "no status of a pre callback")
@pytest.mark.parametrize(
    ("status", "open_flags", "posts"),
    [
        (FLT_PREOP_SUCCESS_NO_CALLBACK, 0, 0),
        (FLT_PREOP_COMPLETE, 0, 0),
        (FLT_PREOP_DISALLOW_FASTIO, OWN, 1),
        (FLT_PREOP_DISALLOW_FSFILTER_IO, 0, 0),
        (99, 0, 0),
    ],
)
def test_any_other_context_is_forgotten(core: Volume, place: Path, status: int, open_flags: int, posts: int) -> None:
    """A6.3: it is not kept, and no post gets it."""
    contexts: list[Any] = []
    given: list[weakref.ref[Context]] = []

    def pre(data: Any, objects: object) -> Any:
        if given:                                # again, as an IRP
            return FLT_PREOP_SUCCESS_WITH_CALLBACK
        context = Context()
        given.append(weakref.ref(context))
        return status, context

    core.stack.insert(entry_of((IRP_MJ_READ, pre, lambda *which: contexts.append(which[2]))))
    fh = opened(core, lookup(core, b"file"))
    core.request(READ, fh=fh, buffer=bytearray(4), size=4, open_flags=open_flags).run()
    assert contexts == [None] * posts and given[0]() is None


@pytest.mark.verifier_errors("it completed the operation with STATUS_")
@pytest.mark.parametrize("outcome", [api.STATUS_PENDING, api.STATUS_FLT_DISALLOW_FAST_IO])
def test_what_is_no_outcome_completes_nothing(core: Volume, place: Path, outcome: int) -> None:
    """A6.5: COMPLETE with a status that is none is a mistake of the filter; the program gets an error, not silence."""
    fh = opened(core, lookup(core, b"file"))
    trace = Trace(core, IRP_MJ_READ, lambda data, _: data.complete(outcome))
    assert error_of(core, READ, fh=fh, buffer=bytearray(4), size=4, open_flags=OWN) == errno.EIO
    assert trace == ["above pre", ("above post", api.STATUS_IO_DEVICE_ERROR, 0)]
    assert [each[:2] for each in trace.host.told] == [("misused", "pre")]


@pytest.mark.verifier_errors("and has registered none")
@pytest.mark.parametrize("status", [FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_PREOP_SYNCHRONIZE])
def test_a_callback_that_is_owed_and_not_there(core: Volume, place: Path, status: int) -> None:
    """A6.4, F6: it goes on as SUCCESS_NO_CALLBACK, and its context is forgotten."""
    context = Context()
    kept = weakref.ref(context)
    answers = [(status, context)]
    del context
    fh = opened(core, lookup(core, b"file"))
    trace = Trace(core, IRP_MJ_FLUSH_BUFFERS, lambda *_: answers.pop())
    core.request(FSYNC, fh=fh).do()
    assert trace == ["above pre", "below pre", ("below post", 0, 0), ("above post", 0, 0)] and kept() is None


# ---- SYNCHRONIZE ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("open_flags", [0, OWN], ids=["irp", "fast"])
def test_a_synchronised_post_runs_in_the_thread_of_its_pre(core: Volume, place: Path, open_flags: int) -> None:
    """A6.12: at PASSIVE_LEVEL; for fast I/O, where that is always so, SYNCHRONIZE is SUCCESS_WITH_CALLBACK."""
    seen: list[tuple[int, int]] = []

    def pre(data: Any, objects: object) -> int:
        seen.append((threading.get_ident(), data.irql))
        return FLT_PREOP_SYNCHRONIZE

    def post(data: Any, objects: object, context: object, flags: int) -> None:
        seen.append((threading.get_ident(), data.irql))

    fh = opened(core, lookup(core, b"file"))
    trace = Trace(core, IRP_MJ_READ, pre, post)
    core.request(READ, fh=fh, buffer=bytearray(4), size=4, open_flags=open_flags).do()
    assert seen == [(threading.get_ident(), 0)] * 2 and trace.host.told == []


def test_a_synchronised_post_above_one_that_is_held(core: Volume, place: Path) -> None:
    """A6.12: nobody waits for whoever holds it; the post comes in the thread that completes it, at PASSIVE_LEVEL."""
    held: list[Any] = []
    seen: list[tuple[int, int]] = []

    def hold(data: Any, objects: object) -> int:
        held.append(data)
        return FLT_PREOP_PENDING

    def post(data: Any, objects: object, context: object, flags: int) -> None:
        seen.append((threading.get_ident(), data.irql))

    fh = opened(core, lookup(core, b"file"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, answering(FLT_PREOP_SYNCHRONIZE), post), name="a", at="2"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, hold, None), name="b", at="1"))
    request = core.request(FSYNC, fh=fh)
    assert not request.run() and request.is_held, "the caller's thread is free meanwhile"
    woken = threading.Event()
    assert request.park(woken.set) and seen == []
    worker = threading.Thread(target=lambda: held.pop().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK))
    worker.start()
    worker.join()
    assert woken.is_set() and request.run() and request.error == 0
    assert seen == [(worker.ident, 0)]


@pytest.mark.verifier_errors("FLT_PREOP_SYNCHRONIZE of a lock that may have to wait")
def test_a_synchronised_lock_that_waits_holds_no_thread(core: Volume, place: Path) -> None:
    """A6.12, D17: what would be a deadlock on Windows ends as any other lock."""
    SETLK, SETLKW, WRITE_LOCK, UNLOCK = 32, 33, 1, 2
    seen: list[int] = []
    core.stack.insert(entry_of((IRP_MJ_LOCK_CONTROL, answering(FLT_PREOP_SYNCHRONIZE),
                                lambda data, *_: seen.append(data.status))))  # fmt: skip
    node = lookup(core, b"file")
    first, second = opened(core, node, os.O_RDWR), opened(core, node, os.O_RDWR)
    whole: dict[str, Any] = {"offset": 0, "end": (1 << 63) - 1, "lock_pid": 1}
    core.request(SETLK, node, fh=first, lock_type=WRITE_LOCK, lock_owner=1, **whole).do()
    waiting = core.request(SETLKW, node, fh=second, lock_type=WRITE_LOCK, lock_owner=2, **whole)
    assert not waiting.run() and not waiting.is_held
    core.request(SETLK, node, fh=first, lock_type=UNLOCK, lock_owner=1, **whole).do()
    while not waiting.run():
        waiting.wait()
    assert waiting.error == 0 and seen == [0, 0, 0]


# ---- posts ----------------------------------------------------------------------------------------------------------


def test_a_post_is_called_for_a_failure_and_may_call_it_a_success(core: Volume, place: Path) -> None:
    """A6.11: each sees the status as the layer below has left it."""
    seen: list[int] = []

    def mends(data: Any, objects: object, context: object, flags: int) -> int:
        seen.append(data.status)
        data.status = STATUS_SUCCESS
        return FLT_POSTOP_FINISHED_PROCESSING

    fh = opened(core, lookup(core, b"file"), os.O_RDONLY)
    trace = Trace(core, IRP_MJ_WRITE, go_on, mends)
    assert error_of(core, WRITE, fh=fh, buffer=b"x", size=1) == 0
    below, above = trace[2:]
    assert below[1] != STATUS_SUCCESS and seen == [below[1]] and above[1] == STATUS_SUCCESS


def test_what_a_post_fails_stays_done(core: Volume, place: Path) -> None:
    """A6.10: success into failure; undoing it is the filter's task."""

    def fails(data: Any, objects: object, context: object, flags: int) -> None:
        data.status, data.information = STATUS_ACCESS_DENIED, 0

    fh = opened(core, lookup(core, b"file"), os.O_RDWR)
    trace = Trace(core, IRP_MJ_WRITE, go_on, fails)
    assert error_of(core, WRITE, fh=fh, buffer=b"xy", size=2) == errno.EACCES
    assert trace[2:] == [("below post", 0, 2), ("above post", STATUS_ACCESS_DENIED, 0)]
    assert (place / "file").read_bytes() == b"xy23456789"


@pytest.mark.verifier_errors("FLT_POSTOP_DISALLOW_FSFILTER_IO of what is no QUERY_OPEN")
def test_a_post_that_refuses_a_query_open(core: Volume, place: Path) -> None:
    """A6.2: DISALLOW_FSFILTER_IO, for a QUERY_OPEN alone."""
    host = Host()
    answer = answering(FLT_POSTOP_DISALLOW_FSFILTER_IO)
    core.stack.insert(entry_of((IRP_MJ_QUERY_OPEN, go_on, answer), (IRP_MJ_READ, go_on, answer), host=host))
    fh = opened(core, lookup(core, b"file"))
    assert host.told == []
    assert error_of(core, LOOKUP, name=b"absent") == errno.ENOENT and host.told == []
    assert error_of(core, READ, fh=fh, buffer=bytearray(4), size=4, open_flags=OWN) == errno.EIO
    assert [each[:2] for each in host.told] == [("misused", "post")]
