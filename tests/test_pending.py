"""Operations that a filter holds (docs/semantics.md A6.9, A6.14 to A6.18), driven without a mount and on a fake
/dev/fuse."""

from __future__ import annotations

import errno
import gc
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stack_driver import (
    CREATE,
    MKDIR,
    OPEN,
    READ,
    RELEASE,
    UNLINK,
    WRITE,
    Host,
    answering,
    entry_of,
    error_of,
    go_on,
    listed,
    lookup,
    opened,
    read,
)
from test_device import INTERRUPT, LOOKUP, READDIRPLUS, SECONDS, Wire, message, pair, readable, thread_count

from stackfs import api, fltkernel, verifier
from stackfs.api import (
    FLT_POSTOP_MORE_PROCESSING_REQUIRED,
    FLT_PREOP_COMPLETE,
    FLT_PREOP_DISALLOW_FASTIO,
    FLT_PREOP_DISALLOW_FSFILTER_IO,
    FLT_PREOP_PENDING,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE,
    IRP_MJ_CLEANUP,
    IRP_MJ_CLOSE,
    IRP_MJ_CREATE,
    IRP_MJ_DIRECTORY_CONTROL,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_QUERY_OPEN,
    IRP_MJ_READ,
    IRP_MJ_SET_INFORMATION,
    IRP_MJ_WRITE,
    STATUS_ACCESS_DENIED,
    STATUS_CANCELLED,
    STATUS_NOT_SUPPORTED,
    STATUS_SUCCESS,
)
from stackfs.cext import pending as levels
from stackfs.cext.device import Device
from stackfs.cext.python_requests import Request, Volume

FSYNC = 20
Data = Any


class Keeper:
    """Pre and post callbacks that keep what they get until the test takes it."""

    def __init__(self) -> None:
        self.kept: queue.Queue[Data] = queue.Queue()

    def pre(self, data: Data, objects: object) -> int:
        if data.is_fast_io:
            return FLT_PREOP_DISALLOW_FASTIO
        self.kept.put(data)
        return FLT_PREOP_PENDING

    def post(self, data: Data, objects: object, context: object, flags: int) -> int:
        self.kept.put(data)
        return FLT_POSTOP_MORE_PROCESSING_REQUIRED

    def take(self) -> Data:
        return self.kept.get(timeout=SECONDS)


def in_thread(routine: Callable[..., Any], *arguments: Any) -> None:
    """Runs it in another thread, to its end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            routine(*arguments)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def stopped(request: Request) -> Request:
    assert not request.run()
    assert request.is_held
    return request


def held_mkdir(core: Volume, name: bytes = b"new") -> Request:
    return stopped(core.request(MKDIR, name=name, mode=0o755))


def parked(request: Request) -> threading.Event:
    woken = threading.Event()
    assert request.park(woken.set)
    return woken


# ---- in pre ---------------------------------------------------------------------------------------------------------


def test_the_thread_that_completes_carries_the_operation_to_its_end(core: Volume, place: Path) -> None:
    keeper, trace = Keeper(), []

    def see(which: str) -> Callable[..., int]:
        def callback(*_: Any) -> int:
            trace.append((which, threading.get_ident()))
            return 0

        return callback

    core.stack.insert(entry_of((IRP_MJ_CREATE, see("a pre"), see("a post")), name="a", at="3"))
    core.stack.insert(entry_of((IRP_MJ_CREATE, keeper.pre, see("b post")), name="b", at="2"))
    core.stack.insert(entry_of((IRP_MJ_CREATE, see("c pre"), see("c post")), name="c", at="1"))
    request = held_mkdir(core)
    woken = parked(request)
    here = threading.get_ident()
    assert trace == [("a pre", here)] and not (place / "new").exists() and core.resuming == core.held() == 1
    data = keeper.take()
    assert data.path == "/new" and data.request == "mkdir"
    there: list[int] = []

    def complete() -> None:
        there.append(threading.get_ident())
        data.complete_pended_pre(FLT_PREOP_SUCCESS_WITH_CALLBACK)

    in_thread(complete)
    assert woken.is_set() and request.run() and request.error == 0 and (place / "new").is_dir()
    assert [which for which, _ in trace] == ["a pre", "c pre", "c post", "b post", "a post"]
    assert {thread for which, thread in trace[1:]} == set(there)
    assert core.resuming == core.held() == 0


@pytest.mark.parametrize("before_it_returns", [True, False])
@pytest.mark.parametrize("how", ["with callback", "no callback", "complete"])
def test_each_way_to_complete(core: Volume, place: Path, how: str, before_it_returns: bool) -> None:
    status = {"with callback": FLT_PREOP_SUCCESS_WITH_CALLBACK, "no callback": FLT_PREOP_SUCCESS_NO_CALLBACK,
              "complete": FLT_PREOP_COMPLETE}[how]  # fmt: skip
    contexts: list[object] = []
    kept: list[Data] = []

    def complete(data: Data) -> None:
        if how == "complete":
            data.complete(STATUS_ACCESS_DENIED)
        data.complete_pended_pre(status, "context" if how == "with callback" else None)

    def pre(data: Data, objects: object) -> int:
        kept.append(data)
        if before_it_returns:
            complete(data)
        return FLT_PREOP_PENDING

    def post(data: Data, objects: object, context: object, flags: int) -> None:
        contexts.append(context)

    core.stack.insert(entry_of((IRP_MJ_CREATE, pre, post), at="2"))
    request = core.request(MKDIR, name=b"new", mode=0o755)
    if before_it_returns:
        assert request.run()
    else:
        woken = parked(stopped(request))
        complete(kept[0])
        assert woken.is_set() and request.run()
    assert request.error == (errno.EACCES if how == "complete" else 0)
    assert (place / "new").exists() == (how != "complete")
    assert contexts == (["context"] if how == "with callback" else [])


def test_waiting_in_place(core: Volume, place: Path) -> None:
    keeper = Keeper()
    core.stack.insert(entry_of((IRP_MJ_SET_INFORMATION, keeper.pre, None)))
    worker = threading.Thread(target=lambda: keeper.take().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK))
    worker.start()
    core.request(UNLINK, name=b"file").do()
    worker.join()
    assert not (place / "file").exists()


def test_what_is_changed_while_it_is_held_reaches_the_layers_below(core: Volume, place: Path) -> None:
    keeper, seen = Keeper(), []

    def below(data: Data, objects: object) -> int:
        seen.append(data.name)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def post(data: Data, objects: object, context: object, flags: int) -> None:
        seen.append(data.name)

    core.stack.insert(entry_of((IRP_MJ_CREATE, keeper.pre, post), name="a", at="2"))
    core.stack.insert(entry_of((IRP_MJ_CREATE, below, None), name="b", at="1"))
    request = held_mkdir(core, b"new")
    woken = parked(request)
    data = keeper.take()
    data.name = b"other"
    data.set_dirty()
    data.complete_pended_pre(FLT_PREOP_SUCCESS_WITH_CALLBACK)
    assert woken.is_set() and request.run() and request.error == 0
    assert seen == [b"other", b"new"] and (place / "other").is_dir() and not (place / "new").exists()


def test_a_read_is_refused_as_fast_io_and_held_as_an_irp(core: Volume, place: Path) -> None:
    keeper = Keeper()
    core.stack.insert(entry_of((IRP_MJ_READ, keeper.pre, None)))
    fh = opened(core, lookup(core, b"file"))
    buffer = bytearray(10)
    request = stopped(core.request(READ, fh=fh, buffer=buffer, size=10, open_flags=2))
    woken = parked(request)
    data = keeper.take()
    view = data.buffer
    view[:4] = b"held"
    data.complete(STATUS_SUCCESS, 4)
    data.complete_pended_pre(FLT_PREOP_COMPLETE)
    assert woken.is_set() and request.run() and request.length == 4 and buffer[:4] == b"held"
    with pytest.raises(ValueError, match="released"):
        bytes(view)


@pytest.mark.parametrize("passes", [False, True])
@pytest.mark.verifier_errors("FLT_PREOP_PENDING of what is no IRP")
def test_pending_what_is_no_irp_is_a_mistake(core: Volume, place: Path, passes: bool) -> None:
    """A6.9: with on_error = fail the operation is STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST."""
    host, statuses = Host(), []
    fh = opened(core, lookup(core, b"file"))

    def above(data: Data, objects: object, context: object, flags: int) -> None:
        statuses.append(data.status)

    core.stack.insert(entry_of((IRP_MJ_READ, go_on, above), (IRP_MJ_QUERY_OPEN, go_on, above), name="a", at="2"))
    core.stack.insert(entry_of((IRP_MJ_READ, answering(FLT_PREOP_PENDING), None),
                               (IRP_MJ_QUERY_OPEN, answering(FLT_PREOP_PENDING), None), host=host, passes=passes))
    for opcode, arguments in ((READ, {"fh": fh, "buffer": bytearray(4), "size": 4, "open_flags": 2}),
                              (LOOKUP, {"name": b"file"})):
        assert error_of(core, opcode, **arguments) == (0 if passes else errno.EIO)  # type: ignore[arg-type]
    assert [each[:2] for each in host.told] == [("misused", "pre")] * 2
    assert statuses == [STATUS_SUCCESS if passes else api.STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST] * 2


@pytest.mark.verifier_errors("it failed a CLEANUP or CLOSE")
def test_cleanup_can_be_held_and_goes_on_whatever_is_said(core: Volume, place: Path) -> None:
    keeper = Keeper()
    core.stack.insert(entry_of((IRP_MJ_CLEANUP, keeper.pre, None)))
    fh = opened(core, lookup(core, b"file"))
    request = stopped(core.request(RELEASE, fh=fh))
    woken = parked(request)
    data = keeper.take()
    data.complete_pended_pre(data.complete(STATUS_ACCESS_DENIED))
    assert woken.is_set() and request.run() and request.error == 0 and core.open_files == 0


def test_every_operation_of_a_request_may_be_held_in_turn(core: Volume, place: Path) -> None:
    keeper = Keeper()
    majors = (IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION, IRP_MJ_CLEANUP, IRP_MJ_CLOSE)
    core.stack.insert(entry_of(*((major, keeper.pre, keeper.post) for major in majors)))
    request = stopped(core.request(UNLINK, name=b"file"))
    woken = parked(request)
    seen = []
    for _ in range(2 * len(majors)):
        data = keeper.take()
        seen.append(data.major)
        if data.flags & api.FLTFL_CALLBACK_DATA_POST_OPERATION:
            data.complete_pended_post()
        else:
            data.complete_pended_pre(FLT_PREOP_SUCCESS_WITH_CALLBACK)
    assert woken.is_set() and request.run() and request.error == 0
    assert seen == [major for major in majors for _ in range(2)] and not (place / "file").exists()


# ---- in post --------------------------------------------------------------------------------------------------------


def test_a_post_keeps_the_operation_from_those_above(core: Volume, place: Path) -> None:
    keeper, trace = Keeper(), []

    def above(data: Data, objects: object, context: object, flags: int) -> None:
        trace.append((threading.get_ident(), data.status))

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, go_on, above), name="a", at="2"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, go_on, keeper.post), name="b", at="1"))
    fh = opened(core, lookup(core, b"file"))
    request = stopped(core.request(FSYNC, fh=fh))
    woken = parked(request)
    data = keeper.take()
    assert data.status == STATUS_SUCCESS and trace == []
    data.status = STATUS_ACCESS_DENIED
    threads: list[int] = []

    def complete() -> None:
        threads.append(threading.get_ident())
        data.complete_pended_post()

    in_thread(complete)
    assert woken.is_set() and request.run() and request.error == errno.EACCES
    assert trace == [(threads[0], STATUS_ACCESS_DENIED)]


def test_a_held_post_that_fails_an_open_has_it_closed_below(core: Volume, place: Path) -> None:
    """A6.10; and what is owed to those below may be held as well."""
    keeper, below = Keeper(), Keeper()
    core.stack.insert(entry_of((IRP_MJ_CREATE, go_on, keeper.post), (IRP_MJ_CLEANUP, answering(99), None),
                               name="a", at="2"))  # fmt: skip
    core.stack.insert(entry_of((IRP_MJ_CLEANUP, below.pre, None), name="b", at="1"))
    request = stopped(core.request(CREATE, name=b"made", flags=os.O_RDWR, mode=0o644))
    woken = parked(request)
    data = keeper.take()
    data.status = STATUS_ACCESS_DENIED
    data.complete_pended_post()
    assert not woken.is_set()
    cleanup = below.take()
    assert cleanup.major == IRP_MJ_CLEANUP and cleanup.path == "/made"
    cleanup.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    assert woken.is_set() and request.run() and request.error == errno.EACCES
    assert core.open_files == 0 and (place / "made").exists()


@pytest.mark.verifier_errors("FLT_POSTOP_MORE_PROCESSING_REQUIRED of what is no IRP")
def test_more_processing_of_what_is_no_irp_is_a_mistake(core: Volume, place: Path) -> None:
    host = Host()
    core.stack.insert(entry_of((IRP_MJ_QUERY_OPEN, go_on, answering(FLT_POSTOP_MORE_PROCESSING_REQUIRED)), host=host))
    assert error_of(core, LOOKUP, name=b"file") == errno.EIO
    assert [each[:2] for each in host.told] == [("misused", "post")]


# ---- the data of what is held ---------------------------------------------------------------------------------------


@pytest.mark.verifier_errors("callback data was used after")
def test_completed_data_is_dead_and_nobody_completes_twice(core: Volume, place: Path) -> None:
    keeper = Keeper()
    core.stack.insert(entry_of((IRP_MJ_CREATE, keeper.pre, None)))
    woken = parked(held_mkdir(core))
    data = keeper.take()
    for wrong in (FLT_PREOP_PENDING, FLT_PREOP_SYNCHRONIZE, FLT_PREOP_DISALLOW_FASTIO, 99):
        with pytest.raises(ValueError, match="cannot be completed"):
            data.complete_pended_pre(wrong)
    with pytest.raises(ValueError, match="on its way down"):
        data.complete_pended_post()
    assert data.path == "/new" and not woken.is_set()
    data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    for use in (lambda: data.path, lambda: data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)):
        with pytest.raises(ReferenceError):
            use()
    assert woken.is_set()


@pytest.mark.parametrize("passes", [False, True])
@pytest.mark.verifier_errors("let go of its data")
def test_data_that_is_forgotten_fails_or_passes_its_operation(core: Volume, place: Path, passes: bool) -> None:
    host, keeper = Host(), Keeper()
    core.stack.insert(entry_of((IRP_MJ_CREATE, keeper.pre, None), host=host, passes=passes))
    request = held_mkdir(core)
    woken = parked(request)
    keeper.take()
    gc.collect()
    assert woken.is_set() and request.run() and request.error == (0 if passes else errno.EIO)
    assert host.told == [("raised", "pre", IRP_MJ_CREATE, "/new", RuntimeError)]


@pytest.mark.verifier_errors("no status of a pre callback")
def test_a_callback_that_completes_and_does_not_pend_is_told_so(core: Volume, place: Path) -> None:
    host, seen = Host(), []

    def pre(data: Data, objects: object) -> int:
        data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def below(data: Data, objects: object) -> int:
        seen.append(data.path)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_CREATE, pre, None), name="a", at="2", host=host))
    core.stack.insert(entry_of((IRP_MJ_CREATE, below, None), name="b", at="1"))
    assert error_of(core, MKDIR, name=b"new", mode=0o755) == errno.EIO
    assert [each[:2] for each in host.told] == [("misused", "pre")] and seen == []


def test_a_request_that_nobody_waits_for_any_more_ends_all_the_same(core: Volume, place: Path) -> None:
    keeper = Keeper()
    core.stack.insert(entry_of((IRP_MJ_WRITE, keeper.pre, keeper.post)))
    fh = opened(core, lookup(core, b"file"), os.O_RDWR)
    buffer = bytearray(b"written!")
    request = stopped(core.request(WRITE, fh=fh, buffer=buffer, size=8, open_flags=2))
    del request
    assert core.held() == 1
    with pytest.raises(RuntimeError, match="hold"):
        core.close()
    data = keeper.take()
    assert bytes(data.buffer) == b"written!"
    data.complete_pended_pre(FLT_PREOP_SUCCESS_WITH_CALLBACK)
    keeper.take().complete_pended_post()
    assert (place / "file").read_bytes() == b"written!89" and core.held() == core.resuming == 0
    buffer.append(0)  # nothing exports it any more


# ---- listings -------------------------------------------------------------------------------------------------------


class Entry:
    """What pyfuse3.EntryAttributes would be."""


def test_a_listing_and_each_lookup_in_it_may_be_held(core: Volume, place: Path) -> None:
    keeper = Keeper()
    core.stack.insert(entry_of((IRP_MJ_DIRECTORY_CONTROL, keeper.pre, keeper.post),
                               (IRP_MJ_QUERY_OPEN, answering(FLT_PREOP_DISALLOW_FSFILTER_IO), None),
                               (IRP_MJ_CREATE, keeper.pre, lambda *_: None)))  # fmt: skip
    done = threading.Event()
    majors = []

    def complete(data: Data) -> None:
        majors.append(data.major)
        if data.flags & api.FLTFL_CALLBACK_DATA_POST_OPERATION:
            data.complete_pended_post()
        else:
            data.complete_pended_pre(FLT_PREOP_SUCCESS_WITH_CALLBACK)

    def serve() -> None:
        while not done.is_set():
            try:
                complete(keeper.kept.get(timeout=0.05))
            except queue.Empty:
                continue

    worker = threading.Thread(target=serve)
    worker.start()
    try:
        fh = core.request(27, 1).do().fh
        names: list[bytes] = []
        request = core.request(READDIRPLUS, fh=fh)
        request.list_directory(lambda name, entry, following: names.append(name) or True, Entry)
        request.do()
    finally:
        done.set()
        worker.join()
    assert set(names) == {b".", b"..", b"file", b"folder"}
    assert majors.count(IRP_MJ_CREATE) == 3 and IRP_MJ_DIRECTORY_CONTROL in majors       # the directory's, and two
    dropped = core.request(READDIRPLUS, fh=fh)
    assert not dropped.list_directory(lambda *_: True, Entry) and dropped.is_held
    del dropped
    while core.held():
        complete(keeper.take())
    assert core.resuming == 0
    core.stack.remove(core.stack.entries[0])
    core.request(29, 1, fh=fh).do()
    assert core.open_files == 0


# ---- races ----------------------------------------------------------------------------------------------------------


def test_completion_and_return_race_and_every_request_ends_once(core: Volume, place: Path) -> None:
    """Workers complete as fast as they can, before, while and after the callback returns and the request is parked."""
    keeper = Keeper()
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, keeper.pre, keeper.post)))
    fh = opened(core, lookup(core, b"file"))
    stop = threading.Event()

    def complete() -> None:
        while not stop.is_set():
            try:
                data = keeper.kept.get(timeout=0.05)
            except queue.Empty:
                continue
            if data.flags & api.FLTFL_CALLBACK_DATA_POST_OPERATION:
                data.complete_pended_post()
            else:
                data.complete_pended_pre(FLT_PREOP_SUCCESS_WITH_CALLBACK)

    wrong: list[object] = []

    def ask() -> None:
        for turn in range(300):
            request = core.request(FSYNC, fh=fh)
            if turn % 2:
                request.do()
            while not request.run():
                woken: queue.Queue[None] = queue.Queue()
                if request.park(lambda woken=woken: woken.put(None)):  # type: ignore[misc]
                    woken.get(timeout=SECONDS)
                    if not woken.empty():
                        wrong.append("woken twice")
            if request.error:
                wrong.append(request.error)

    workers = [threading.Thread(target=complete) for _ in range(2)]
    askers = [threading.Thread(target=ask) for _ in range(3)]
    for thread in workers + askers:
        thread.start()
    for thread in askers:
        thread.join()
    stop.set()
    for thread in workers:
        thread.join()
    assert wrong == [] and keeper.kept.empty() and core.held() == core.resuming == 0
    for entry in list(core.stack.entries):
        core.stack.remove(entry)
    assert core.stack.drained() and core.stack.settled


def test_one_completes_many_and_the_chain_does_not_grow(core: Volume, place: Path) -> None:
    """A post that completes another held operation, again and again."""
    keeper = Keeper()

    def post(data: Data, objects: object, context: object, flags: int) -> None:
        if not keeper.kept.empty():
            keeper.take().complete_pended_pre(FLT_PREOP_SUCCESS_WITH_CALLBACK)

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, keeper.pre, post)))
    fh = opened(core, lookup(core, b"file"))
    requests = [stopped(core.request(FSYNC, fh=fh)) for _ in range(50)]
    woken = [parked(request) for request in requests]
    keeper.take().complete_pended_pre(FLT_PREOP_SUCCESS_WITH_CALLBACK)
    assert all(each.is_set() for each in woken) and all(request.run() for request in requests)


# ---- lists ----------------------------------------------------------------------------------------------------------


def test_what_is_held_keeps_its_instances_but_holds_up_no_attach(core: Volume, place: Path) -> None:
    keeper, trace = Keeper(), []
    holder = entry_of((IRP_MJ_CREATE, keeper.pre, None), name="holder", at="2")
    core.stack.insert(holder)
    request = held_mkdir(core)
    woken = parked(request)
    other = entry_of((IRP_MJ_CREATE, lambda *_: trace.append("other") or 1, None), name="other", at="1")
    core.stack.insert(other)
    assert core.stack.drained() and not core.stack.settled
    core.stack.remove(holder)
    assert core.stack.drain(holder) and core.held(holder) == 1 and core.held(other) == 0
    keeper.take().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    assert woken.is_set() and request.run() and request.error == 0
    assert trace == [] and not core.stack.drain(holder) and core.stack.settled


# ---- cancelling -----------------------------------------------------------------------------------------------------


def cancelling(keeper: Keeper, calls: list[Data]) -> Callable[..., int]:
    def routine(data: Data) -> None:
        calls.append(data)
        data.complete_pended_pre(data.complete(STATUS_CANCELLED))

    def pre(data: Data, objects: object) -> int:
        if data.set_cancel_completion(routine) != STATUS_SUCCESS:
            return int(data.complete(STATUS_CANCELLED))
        keeper.kept.put(data)
        return FLT_PREOP_PENDING

    return pre


def test_an_interrupt_calls_the_cancel_completion_once(core: Volume, place: Path) -> None:
    keeper, calls = Keeper(), []
    core.stack.insert(entry_of((IRP_MJ_CREATE, cancelling(keeper, calls), None)))
    first, second = held_mkdir(core, b"one"), held_mkdir(core, b"two")
    woken = [parked(first), parked(second)]
    assert core.interrupt(second.number) and not woken[0].is_set()
    assert woken[1].is_set() and second.run() and second.error == errno.EINTR and not (place / "two").exists()
    assert not core.interrupt(second.number) and len(calls) == 1
    keeper.take().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    assert woken[0].is_set() and first.run() and first.error == 0 and (place / "one").is_dir()


def test_an_interrupt_may_come_before_there_is_anything_to_cancel(core: Volume, place: Path) -> None:
    keeper, calls, seen = Keeper(), [], []
    pends = cancelling(keeper, calls)

    def pre(data: Data, objects: object) -> int:
        seen.append(data.is_canceled)
        core.interrupt(data.request_number)
        seen.append(data.is_canceled)
        return pends(data, objects)

    core.stack.insert(entry_of((IRP_MJ_CREATE, pre, None)))
    request = core.request(MKDIR, name=b"new", mode=0o755)
    assert request.run() and request.error == errno.EINTR
    assert seen == [False, True] and calls == [] and keeper.kept.empty()  # the routine was refused: STATUS_CANCELLED


def test_an_interrupt_between_setting_the_routine_and_pending(core: Volume, place: Path) -> None:
    keeper, calls = Keeper(), []
    pends = cancelling(keeper, calls)

    def pre(data: Data, objects: object) -> int:
        number = data.request_number
        status = pends(data, objects)
        core.interrupt(number)
        return status

    core.stack.insert(entry_of((IRP_MJ_CREATE, pre, None)))
    request = core.request(MKDIR, name=b"new", mode=0o755)
    assert request.run() and request.error == errno.EINTR and len(calls) == 1


def test_clearing_the_cancel_completion_decides_who_completes(core: Volume, place: Path) -> None:
    keeper, calls = Keeper(), []
    core.stack.insert(entry_of((IRP_MJ_CREATE, cancelling(keeper, calls), None)))
    request = held_mkdir(core)
    woken = parked(request)
    data = keeper.take()
    with pytest.raises(ValueError, match="has a cancel completion"):
        data.set_cancel_completion(print)
    assert data.clear_cancel_completion() == STATUS_SUCCESS
    assert data.clear_cancel_completion() == STATUS_CANCELLED
    assert core.interrupt(request.number) and data.is_canceled and calls == [] and not woken.is_set()
    assert data.set_cancel_completion(print) == STATUS_CANCELLED
    assert not data.cancel()
    data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    assert woken.is_set() and request.run() and request.error == 0


def test_a_filter_can_cancel_what_it_or_another_holds(core: Volume, place: Path) -> None:
    keeper, calls = Keeper(), []
    core.stack.insert(entry_of((IRP_MJ_CREATE, cancelling(keeper, calls), None)))
    request = held_mkdir(core)
    woken = parked(request)
    assert keeper.take().cancel() and woken.is_set() and request.run() and request.error == errno.EINTR


def test_only_an_irp_has_a_cancel_completion(core: Volume, place: Path) -> None:
    seen = []

    def pre(data: Data, objects: object) -> int:
        seen.append(data.set_cancel_completion(print))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_QUERY_OPEN, pre, None), (IRP_MJ_CREATE, pre, None)))
    lookup(core, b"file")
    core.request(MKDIR, name=b"new", mode=0o755).do()      # set, and not pended: forgotten with the callback
    assert seen == [STATUS_NOT_SUPPORTED, STATUS_SUCCESS] and core.held() == 0


def test_a_cancel_completion_that_raises_fails_its_operation(core: Volume, place: Path) -> None:
    host, keeper = Host(), Keeper()

    def pre(data: Data, objects: object) -> int:
        data.set_cancel_completion(lambda _: 1 // 0)
        return keeper.pre(data, objects)

    core.stack.insert(entry_of((IRP_MJ_CREATE, pre, None), host=host))
    request = held_mkdir(core)
    woken = parked(request)
    core.interrupt(request.number)
    assert woken.is_set() and request.run() and request.error == errno.EIO
    assert host.told == [("raised", "cancel", IRP_MJ_CREATE, "/new", ZeroDivisionError)]


def test_what_an_instance_holds_is_cancelled_together(core: Volume, place: Path) -> None:
    keeper, calls, others = Keeper(), [], Keeper()
    fh = opened(core, lookup(core, b"file"))
    mine = entry_of((IRP_MJ_CREATE, cancelling(keeper, calls), None), name="mine", at="2")
    core.stack.insert(mine)
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, others.pre, None), name="other", at="1"))
    requests = [held_mkdir(core, b"%d" % i) for i in range(20)]
    flush = stopped(core.request(FSYNC, fh=fh))
    woken = [parked(request) for request in requests]
    waiting = parked(flush)
    assert core.cancel_held(mine) == 0 and len(calls) == 20 and all(each.is_set() for each in woken)
    assert {request.error for request in requests if request.run()} == {errno.EINTR} and not waiting.is_set()
    others.take().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    assert waiting.is_set()


def test_cancelling_under_the_names_of_the_ddi(core: Volume, place: Path) -> None:
    keeper, calls = Keeper(), []

    def routine(data: Data) -> None:
        calls.append(data.name)
        fltkernel.FltCompletePendedPreOperation(data, data.complete(STATUS_CANCELLED), None)

    def pre(data: Data, objects: object) -> int:
        assert fltkernel.FltSetCancelCompletion(data, routine) == STATUS_SUCCESS
        keeper.kept.put(data)
        return FLT_PREOP_PENDING

    core.stack.insert(entry_of((IRP_MJ_CREATE, pre, None)))
    first, second = held_mkdir(core, b"one"), held_mkdir(core, b"two")
    woken = [parked(first), parked(second)]
    one, two = keeper.take(), keeper.take()
    assert not fltkernel.FltIsIoCanceled(one)
    assert fltkernel.FltClearCancelCompletion(one) == STATUS_SUCCESS
    assert fltkernel.FltClearCancelCompletion(one) == STATUS_CANCELLED
    assert not fltkernel.FltCancelIo(one) and fltkernel.FltIsIoCanceled(one), "nobody has said how: it is marked"
    assert fltkernel.FltCancelIo(two) and calls == [b"two"] and woken[1].is_set() and not woken[0].is_set()
    fltkernel.FltCompletePendedPreOperation(one, FLT_PREOP_SUCCESS_NO_CALLBACK, None)
    assert woken[0].is_set() and [each.error for each in (first, second) if each.run()] == [0, errno.EINTR]


def test_cancel_and_completion_race_and_one_of_them_wins(core: Volume, place: Path) -> None:
    keeper, calls = Keeper(), []
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, cancelling(keeper, calls), None)))
    fh = opened(core, lookup(core, b"file"))
    numbers: queue.Queue[int | None] = queue.Queue()
    completed = []

    def interrupt() -> None:
        while (number := numbers.get()) is not None:
            core.interrupt(number)

    def complete() -> None:
        while (data := keeper.take()) is not None:
            if data.clear_cancel_completion() == STATUS_SUCCESS:
                completed.append(1)
                data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)

    threads = [threading.Thread(target=interrupt), threading.Thread(target=complete)]
    for thread in threads:
        thread.start()
    errors = []
    for _ in range(500):
        request = core.request(FSYNC, fh=fh)
        if not request.run():
            woken = threading.Event()
            numbers.put(request.number)
            if request.park(woken.set):
                assert woken.wait(SECONDS)
            assert request.run()
        errors.append(request.error)
    numbers.put(None)
    keeper.kept.put(None)
    for thread in threads:
        thread.join()
    assert set(errors) <= {0, errno.EINTR}
    assert errors.count(0) == len(completed) and errors.count(errno.EINTR) == len(calls)


# ---- levels ---------------------------------------------------------------------------------------------------------


def test_posts_know_the_level_they_run_at(core: Volume, place: Path) -> None:
    seen: dict[str, int] = {}

    def pre(status: int) -> Callable[..., int]:
        def callback(data: Data, objects: object) -> int:
            assert data.irql == levels.current_irql() == 0
            return status

        return callback

    def post(data: Data, objects: object, context: object, flags: int) -> None:
        assert data.irql == levels.current_irql()
        seen[f"{api.major_name(data.major)} {'fast' if data.is_fast_io else ''}{objects.name}"] = data.irql  # type: ignore

    class Named(Host):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre(FLT_PREOP_SYNCHRONIZE), post), host=Named("synchronised"),
                               name="a", at="2"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, pre(0), post), (IRP_MJ_CREATE, pre(0), post),
                               (IRP_MJ_READ, pre(0), post), (IRP_MJ_QUERY_OPEN, pre(0), post), host=Named(""), at="1"))
    fh = opened(core, lookup(core, b"file"))
    core.request(FSYNC, fh=fh).do()
    core.request(READ, fh=fh, buffer=bytearray(4), size=4, open_flags=2).do()
    assert seen == {"IRP_MJ_QUERY_OPEN ": 0, "IRP_MJ_CREATE ": 0, "IRP_MJ_FLUSH_BUFFERS synchronised": 0,
                    "IRP_MJ_FLUSH_BUFFERS ": 2, "IRP_MJ_READ fast": 0}  # fmt: skip
    assert levels.current_irql() == 0


@pytest.mark.verifier_errors("was called at level 2, and may be at 1 at most")
def test_the_verifier_refuses_what_is_called_at_too_high_a_level(core: Volume, place: Path) -> None:
    host, paths = Host(), []

    def post(data: Data, objects: object, context: object, flags: int) -> None:
        paths.append(data.name_information().name)

    verifier.enable(False)
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, go_on, post), host=host))
    fh = opened(core, lookup(core, b"file"))
    core.request(FSYNC, fh=fh).do()
    verifier.enable(True)
    assert error_of(core, FSYNC, fh=fh) == errno.EIO
    assert len(paths) == 1 and [each[:3] for each in host.told] == [("raised", "post", IRP_MJ_FLUSH_BUFFERS)]


# ---- on the device lane ---------------------------------------------------------------------------------------------


class Held:
    """A started device whose volume has an instance that holds."""

    def __init__(self, directory: Path, *rows: Any) -> None:
        (directory / "file").write_bytes(b"0123456789")
        self.core = Volume(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self.node = self.core.request(LOOKUP, name=b"file").do().nodeid
        self.fh = self.core.request(OPEN, self.node, flags=os.O_RDWR).do().fh
        self.core.stack.insert(entry_of(*rows))
        kernel, ours = pair()
        device = Device(ours.detach(), self.core, lanes="auto")
        lane = socket.socket(fileno=device.detach_lane_fd())
        device.start()
        self.wire = Wire(device, kernel, lane)
        self.wire.handshake()
        self.unique = 100

    def send(self, opcode: int, body: bytes, node: int = 0) -> int:
        self.unique += 2
        self.wire.send(message(opcode, self.unique, node or self.node, body))
        return self.unique

    def write(self, content: bytes) -> int:
        """As the page cache writes back: an IRP. (What a program writes is fast I/O, which is refused to the other
        lane.)"""
        return self.send(WRITE, struct.pack("<QQIIQII", self.fh, 0, len(content), 1, 0, os.O_RDWR, 0) + content)

    def interrupt(self, unique: int) -> None:
        self.wire.send(message(INTERRUPT, unique | 1, 0, struct.pack("<Q", unique)))

    def until_held(self, count: int) -> None:
        """The last of them has been given to the test, and its callback may not have returned yet."""
        end = time.monotonic() + SECONDS
        while self.core.held() != count:
            assert time.monotonic() < end
            time.sleep(0.001)

    def end(self) -> None:
        self.wire.device.stop()
        self.wire.lane.close()
        self.wire.device.close()
        self.wire.kernel.close()


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Callable[..., Held]]:
    made: list[Held] = []
    before = thread_count()

    def make(*rows: Any) -> Held:
        made.append(Held(tmp_path, *rows))
        return made[0]

    yield make
    for each in made:
        each.end()
    assert thread_count() == before


def test_what_is_held_keeps_no_device_thread_and_its_data_stay(holding: Callable[..., Held], tmp_path: Path) -> None:
    """More than there are device threads are held at once; each is answered by whoever completes it."""
    keeper = Keeper()
    held = holding((IRP_MJ_WRITE, keeper.pre, None), (IRP_MJ_READ, keeper.pre, None))
    sent = {held.write(b"%04d" % i): b"%04d" % i for i in range(60)}
    kept = [keeper.take() for _ in sent]
    held.until_held(60)
    error, body = held.wire.ask(message(3, 9000, held.node, bytes(16)))      # GETATTR: served meanwhile
    assert error == 0 and len(body) == 104
    for data in kept:
        assert bytes(data.buffer) == sent[data.request_number]
        data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
        unique, error, body = held.wire.answered()
        assert error == 0 and struct.unpack("<II", body)[0] == 4
        assert (tmp_path / "file").read_bytes()[:4] == sent[unique]
    unique = held.send(READ, struct.pack("<QQIIQII", held.fh, 2, 5, 0, 0, os.O_RDWR, 0))
    keeper.take().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    last = (tmp_path / "file").read_bytes()
    assert held.wire.answered() == (unique, 0, last[2:7])
    assert held.core.held() == 0 and held.wire.device.in_flight == 0


def test_names_and_listings_stay_while_they_are_held(holding: Callable[..., Held], tmp_path: Path) -> None:
    keeper = Keeper()
    held = holding((IRP_MJ_CREATE, keeper.pre, None), (IRP_MJ_DIRECTORY_CONTROL, keeper.pre, None))
    unique = held.send(MKDIR, struct.pack("<II", 0o755, 0) + b"a-new-directory\0", node=1)
    opening = held.send(27, struct.pack("<II", os.O_RDONLY | os.O_DIRECTORY, 0), node=1)
    first, second = keeper.take(), keeper.take()
    mkdir, opendir = (first, second) if first.request == "mkdir" else (second, first)
    opendir.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    number, error, body = held.wire.answered()
    assert (number, error) == (opening, 0)
    fh = struct.unpack_from("<Q", body)[0]
    listing = held.send(READDIRPLUS, struct.pack("<QQIIQII", fh, 0, 8192, 0, 0, 0, 0), node=1)
    while not readable(held.wire.kernel, 0.2):        # a directory is read until it ends
        in_thread(keeper.take().complete_pended_pre, FLT_PREOP_SUCCESS_NO_CALLBACK)
    number, error, body = held.wire.answered()
    assert (number, error) == (listing, 0) and b"file" in body
    assert mkdir.name == b"a-new-directory"
    in_thread(mkdir.complete_pended_pre, FLT_PREOP_SUCCESS_NO_CALLBACK)
    assert held.wire.answered()[:2] == (unique, 0) and (tmp_path / "a-new-directory").is_dir()


def test_interrupt_on_the_device_lane(holding: Callable[..., Held]) -> None:
    keeper, calls = Keeper(), []
    started, go = threading.Event(), threading.Event()
    pends = cancelling(keeper, calls)

    def pre(data: Data, objects: object) -> int:
        if data.is_fast_io:
            return FLT_PREOP_DISALLOW_FASTIO
        if data.length == 5:
            started.set()
            assert go.wait(SECONDS)
        return pends(data, objects)

    held = holding((IRP_MJ_WRITE, pre, None))
    unique = held.write(b"held")
    keeper.take()
    held.interrupt(unique)
    assert held.wire.answered() == (unique, -errno.EINTR, b"") and len(calls) == 1
    early = held.write(b"early")
    assert started.wait(SECONDS)
    held.interrupt(early)
    time.sleep(0.05)
    go.set()
    assert held.wire.answered() == (early, -errno.EINTR, b"") and len(calls) == 1
    held.interrupt(4)
    assert held.wire.answered() == (5, -errno.EAGAIN, b"")


def test_the_device_stops_while_operations_are_held(holding: Callable[..., Held]) -> None:
    """What can be cancelled is; what cannot is completed later, and its answer goes nowhere."""
    keeper, calls = Keeper(), []
    held = holding((IRP_MJ_WRITE, keeper.pre, None), (IRP_MJ_FLUSH_BUFFERS, cancelling(Keeper(), calls), None))
    unique = held.write(b"held")
    flush = held.send(FSYNC, struct.pack("<QII", held.fh, 0, 0))
    data = keeper.take()
    held.until_held(2)
    held.wire.device.stop()
    assert {held.wire.answered()[:2] for _ in range(2)} == {(unique, -errno.ECONNABORTED), (flush, -errno.ECONNABORTED)}
    assert len(calls) == 1 and held.core.held() == 1
    data.complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    assert held.core.held() == held.core.resuming == 0


def test_listing_names_without_holding_is_as_before(core: Volume, place: Path) -> None:
    fh = core.request(27, 1).do().fh
    assert set(listed(core, fh)) == {b".", b"..", b"file", b"folder"}
    assert read(core, opened(core, lookup(core, b"file"))) == b"0123456789"
