"""What comes of an operation below (docs/semantics.md, A6.22), who waits for it (A6.23), whose it is (B5.4), and what
may be done again: locks (A6.19)."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Drive, needs_root
from native_build import build
from stack_driver import (
    MKDIR,
    OPEN,
    READ,
    RELEASE,
    WRITE,
    Host,
    entry_of,
    error_of,
    go_on,
    lookup,
    opened,
    raising,
    read,
)

from stackfs import api, fltkernel
from stackfs.api import (
    FLT_PREOP_DISALLOW_FASTIO,
    FLT_PREOP_PENDING,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE,
    IRP_MJ_CLEANUP,
    IRP_MJ_CLOSE,
    IRP_MJ_CREATE,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_LOCK_CONTROL,
    IRP_MJ_READ,
    STATUS_ACCESS_DENIED,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_INVALID_PARAMETER,
    STATUS_PENDING,
    STATUS_SUCCESS,
)
from stackfs.cext.python_requests import VfsError, Volume
from stackfs.ddi import callback_data as ddi
from stackfs.ddi.out import Out

FLUSH, FSYNC, GETLK, SETLK, SETLKW = 25, 20, 31, 32, 33


def asking(told: list[Any], context: Any = "context", then: int = FLT_PREOP_SUCCESS_NO_CALLBACK) -> Callable[..., int]:
    """A pre callback that asks what comes of the operation."""

    def routine(objects: Any, iopb: Any, status: int, given: Any) -> None:
        told.append((objects, iopb.MajorFunction, status, given))

    def pre(data: Any, objects: Any) -> int:
        assert ddi.FltRequestOperationStatusCallback(data, routine, context) == STATUS_SUCCESS
        return then

    return pre


def test_a6_22_the_status_from_below_before_the_posts(core: Volume, place: Path) -> None:
    told: list[Any] = []
    host = Host()

    def post(data: Any, *_: Any) -> None:
        told.append("post")
        data.status = STATUS_ACCESS_DENIED

    core.stack.insert(entry_of((IRP_MJ_CREATE, asking(told, then=FLT_PREOP_SUCCESS_WITH_CALLBACK), post), host=host))
    assert error_of(core, OPEN, lookup(core, b"file"), flags=os.O_RDONLY) == errno.EACCES
    assert error_of(core, MKDIR, name=b"file", mode=0o700) == errno.EACCES
    assert told == [(host, IRP_MJ_CREATE, STATUS_SUCCESS, "context"), "post",
                    (host, IRP_MJ_CREATE, api.STATUS_OBJECT_NAME_COLLISION, "context"), "post"]  # fmt: skip


def test_a6_22_what_a_lower_filter_answers(core: Volume, place: Path) -> None:
    told: list[Any] = []
    core.stack.insert(entry_of((IRP_MJ_CREATE, asking(told), None), name="asks", at="2"))
    refuses = (IRP_MJ_CREATE, lambda data, _: data.complete(STATUS_ACCESS_DENIED), None)
    core.stack.insert(entry_of(refuses, name="refuses", at="1"))
    assert error_of(core, OPEN, lookup(core, b"file"), flags=os.O_RDONLY) == errno.EACCES
    assert [each[2] for each in told] == [STATUS_ACCESS_DENIED]


def test_a6_22_pending_where_a_lower_filter_holds_it(core: Volume, place: Path) -> None:
    """As with an oplock that was granted: that is what it is for."""
    told: list[Any] = []
    held: list[Any] = []

    def hold(data: Any, _: Any) -> int:
        held.append(data)
        return FLT_PREOP_PENDING

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, asking(told), None), name="asks", at="2"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, hold, None), name="holds", at="1"))
    fh = opened(core, lookup(core, b"file"))
    request = core.request(FSYNC, fh=fh)
    assert request.run() is False
    assert [each[2] for each in told] == [STATUS_PENDING]
    held.pop().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    request.do()
    assert len(told) == 1, "once"


def test_a6_22_who_holds_it_itself_is_told_when_it_has_been_below(core: Volume, place: Path) -> None:
    told: list[Any] = []
    held: list[Any] = []
    pre = asking(told, then=FLT_PREOP_PENDING)

    def ask_and_hold(data: Any, objects: Any) -> int:
        held.append(data)
        return pre(data, objects)

    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, asking(told, "above"), None), name="above", at="3"))
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, ask_and_hold, None), name="holds", at="2"))
    fh = opened(core, lookup(core, b"file"))
    request = core.request(FSYNC, fh=fh)
    assert request.run() is False
    assert [each[2:] for each in told] == [(STATUS_PENDING, "above")]
    held.pop().complete_pended_pre(FLT_PREOP_SUCCESS_NO_CALLBACK)
    request.do()
    assert [each[2:] for each in told] == [(STATUS_PENDING, "above"), (STATUS_SUCCESS, "context")]


def test_a6_22_who_completes_it_is_not_told(core: Volume, place: Path) -> None:
    told: list[Any] = []
    core.stack.insert(entry_of((IRP_MJ_CREATE, lambda data, objects: (
        asking(told)(data, objects), data.complete(STATUS_ACCESS_DENIED))[1], None)))  # fmt: skip
    assert error_of(core, OPEN, lookup(core, b"file"), flags=os.O_RDONLY) == errno.EACCES
    assert told == []


def test_a6_22_only_in_the_pre_callback_of_an_irp_that_is_no_close(core: Volume, place: Path) -> None:
    answers: dict[Any, int] = {}

    def ask(data: Any, *_: Any) -> int:
        up = bool(data.flags & api.FLTFL_CALLBACK_DATA_POST_OPERATION)
        answers[data.major, up, data.is_irp] = ddi.FltRequestOperationStatusCallback(data, lambda *_: None)
        assert ddi.FltRequestOperationStatusCallback(data, None) == STATUS_INVALID_PARAMETER
        return FLT_PREOP_SUCCESS_WITH_CALLBACK if data.major == IRP_MJ_CREATE and not up else 1 - up

    majors = IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_CLEANUP, IRP_MJ_CLOSE
    core.stack.insert(entry_of(*[(major, ask, ask if major == IRP_MJ_CREATE else None) for major in majors]))
    fh = opened(core, lookup(core, b"file"))
    assert read(core, fh) == b"0123456789"
    core.request(READ, fh=fh, buffer=bytearray(4), size=4, open_flags=2).do()
    core.request(RELEASE, fh=fh).do()
    legal = {(IRP_MJ_CREATE, False, True), (IRP_MJ_CLEANUP, False, True), (IRP_MJ_READ, False, True)}
    assert {key for key, status in answers.items() if status == STATUS_SUCCESS} == legal
    assert (IRP_MJ_READ, False, False) in answers, "fast I/O"
    assert set(answers.values()) == {STATUS_SUCCESS, STATUS_INVALID_PARAMETER}


def test_a6_22_an_operation_with_a_request_is_waited_for_not_drained(core: Volume, place: Path) -> None:
    told: list[Any] = []
    held: list[Any] = []
    entered, go = threading.Event(), threading.Event()

    def slow(data: Any, _: Any) -> int:
        entered.set()
        assert go.wait(10)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def post(data: Any, objects: Any, context: Any, flags: int) -> None:
        held.append(flags)

    pre = asking(told, then=FLT_PREOP_SUCCESS_WITH_CALLBACK)
    asks = entry_of((IRP_MJ_FLUSH_BUFFERS, pre, post), name="asks", at="2")
    core.stack.insert(asks)
    core.stack.insert(entry_of((IRP_MJ_FLUSH_BUFFERS, slow, None), name="slow", at="1"))
    fh = opened(core, lookup(core, b"file"))
    program = threading.Thread(target=lambda: core.request(FSYNC, fh=fh).do())
    program.start()
    assert entered.wait(10)
    core.stack.remove(asks)
    assert core.stack.drain(asks, True) == 1, "its routine is still to be called"
    go.set()
    program.join(10)
    assert core.stack.drain(asks, True) == 0 and [each[2] for each in told] == [STATUS_SUCCESS] and held == [0]


def test_a6_22_an_instance_that_leaves_asks_no_more(core: Volume, place: Path) -> None:
    answers: list[int] = []

    def pre(data: Any, _: Any) -> int:
        core.stack.remove(entry)
        answers.append(ddi.FltRequestOperationStatusCallback(data, lambda *_: answers.append(-1)))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    entry = entry_of((IRP_MJ_CREATE, pre, None))
    core.stack.insert(entry)
    opened(core, lookup(core, b"file"))
    assert answers == [STATUS_FLT_DELETING_OBJECT]


def test_a6_22_a_routine_that_raises_harms_nobody(core: Volume, place: Path) -> None:
    host = Host()

    def pre(data: Any, _: Any) -> int:
        data.request_operation_status(raising(RuntimeError))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_CREATE, pre, None), host=host))
    opened(core, lookup(core, b"file"))
    assert host.told == [("raised", "operation status", IRP_MJ_CREATE, "/file", RuntimeError)]


# ---- who waits, and whose it is --------------------------------------------------------------------------------------

def test_a6_23_who_waits_for_the_outcome(core: Volume, place: Path) -> None:
    seen: list[Any] = []

    def pre(data: Any, _: Any) -> int:
        seen.append((data.is_irp, data.irp_flags & api.IRP_PAGING_IO != 0, ddi.FltIsOperationSynchronous(data)))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    from stackfs.cext import filter_file

    above = entry_of(name="above", at="2")
    core.stack.introduce(above)
    core.stack.insert(above)
    core.stack.insert(entry_of((IRP_MJ_READ, pre, None), name="below", at="1"))
    fh = opened(core, lookup(core, b"file"))
    core.request(READ, fh=fh, buffer=bytearray(4), size=4, open_flags=2).do()
    read(core, fh)
    assert seen == [(False, False, True), (True, True, False)], "a program's own; pages"
    seen.clear()
    with filter_file.open_below(above, "file") as file:
        file.read(0, 1)
        done = threading.Event()
        file.start_read(0, 1, lambda *_: done.set())
        assert done.wait(10)
        file.read(0, 1, flags=api.FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING)
    assert [each[2] for each in seen] == [True, False, True]


def test_b5_4_who_asks(core: Volume, place: Path) -> None:
    seen: list[Any] = []

    def pre(data: Any, _: Any) -> int:
        session = Out[int]()
        status = ddi.FltGetRequestorSessionId(data, session)
        process = ddi.FltGetRequestorProcess(data)
        assert ddi.FltGetRequestorProcessId(data) == ddi.FltGetRequestorProcessIdEx(data) == data.pid
        assert process is None or ddi.PsGetProcessId(process) == data.pid
        seen.append((status, session.value, process and process.pid))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_CREATE, pre, None)))
    node = lookup(core, b"file")
    core.request(OPEN, node, flags=os.O_RDONLY, tid=os.getpid()).do()
    core.request(OPEN, node, flags=os.O_RDONLY).do()
    assert seen == [(STATUS_SUCCESS, os.getsid(0), os.getpid()), (api.STATUS_UNSUCCESSFUL, 0xFFFFFFFF, None)]


WHO = '''MANIFEST = {"name": "who", "altitude": "370100", "group": "FSFilter Activity Monitor", "filter": "Who"}
from stackfs.fltkernel import *

class Who(Filter):
    """A file called "who" says who reads it: process, session, and whether he waits."""

    operations = (Operation(IRP_MJ_READ, post="post"),)

    def post(self, data, objects, context, flags):
        session = Out()
        FltGetRequestorSessionId(data, session)
        text = f"{FltGetRequestorProcessId(data)} {session.value} {FltIsOperationSynchronous(data)}\\n".encode()
        if data.information == 100:
            data.buffer[:len(text)] = text
'''


@needs_root
def test_b5_4_on_each_lane(drive: Callable[..., Drive], lanes: str, tmp_path: Path) -> None:
    (tmp_path / "who.py").write_text(WHO)
    made = drive(f"filterdir={tmp_path},filter=who,cache=strict")
    (made.mnt / "f").write_bytes(b"x" * 100)
    with (made.mnt / "f").open("rb", buffering=0) as file:
        assert file.read(100).startswith(f"{os.getpid()} {os.getsid(0)} True\n".encode())


# ---- bypass ----------------------------------------------------------------------------------------------------------

def test_a_veto_is_for_the_question_alone(core: Volume, place: Path) -> None:
    answers: list[int] = []

    def pre(data: Any, objects: Any) -> int:
        answers.append(ddi.FltVetoBypassIo(data, objects, api.STATUS_NOT_SUPPORTED, "why"))
        answers.append(ddi.FltVetoBypassIo(data, objects, STATUS_SUCCESS, "why"))
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_CREATE, pre, None)))
    opened(core, lookup(core, b"file"))
    assert answers == [STATUS_INVALID_PARAMETER] * 2
    assert core.bypass_state()["vetoed"] == 0


def test_the_question_may_be_vetoed(core: Volume, place: Path) -> None:
    """Made by hand: opens ask it where the kernel can bypass (tests/test_bypass.py)."""
    from stackfs.cext import filter_file

    seen: list[Any] = []

    def pre(data: Any, objects: Any) -> int:
        seen.append(ddi.FltVetoBypassIo(data, objects, STATUS_SUCCESS, "no"))
        seen.append(ddi.FltVetoBypassIo(data, objects, api.STATUS_ACCESS_DENIED, "it is watched"))
        return api.FLT_PREOP_COMPLETE

    above = entry_of(name="above", at="2")
    core.stack.introduce(above)
    core.stack.insert(above)
    core.stack.insert(entry_of((api.IRP_MJ_FILE_SYSTEM_CONTROL, pre, None), name="watcher", at="1"))
    with filter_file.open_below(above, "file") as file, pytest.raises(PermissionError):
        file.control(fltkernel.FSCTL_MANAGE_BYPASS_IO)
    assert seen == [STATUS_INVALID_PARAMETER, STATUS_SUCCESS]
    state = core.bypass_state()
    assert (state["vetoed"], state["veto"]) == (1, "watcher: it is watched")


# ---- a lock is tried again -------------------------------------------------------------------------------------------

def lock(core: Volume, opcode: int, node: int, fh: int, owner: int, kind: int) -> Any:
    return core.request(opcode, node, fh=fh, lock_owner=owner, lock_type=kind, offset=0, end=9, lock_pid=owner)


def test_a6_19_a_lock_is_tried_again_below(core: Volume, place: Path) -> None:
    tries: list[Any] = []
    node = lookup(core, b"file")
    one, two = (core.request(OPEN, node, flags=os.O_RDWR).do().fh for _ in range(2))

    def pre(data: Any, _: Any) -> int:
        return FLT_PREOP_DISALLOW_FASTIO if data.is_fast_io else FLT_PREOP_SYNCHRONIZE

    def post(data: Any, *_: Any) -> None:
        if data.minor == api.IRP_MN_LOCK and data.status == api.STATUS_FILE_LOCK_CONFLICT:
            lock(core, SETLK, node, one, 1, fcntl.F_UNLCK).do()
            tries.append((data.reissue(), data.status))

    core.stack.insert(entry_of((IRP_MJ_LOCK_CONTROL, pre, post), name="again", at="2"))
    core.stack.insert(entry_of(
        (IRP_MJ_LOCK_CONTROL, lambda data, _: tries.append(data.flags & api.FLTFL_CALLBACK_DATA_REISSUED_IO) or 1,
        None), name="below", at="1"))  # fmt: skip
    lock(core, SETLK, node, one, 1, fcntl.F_WRLCK).do()
    tries.clear()
    lock(core, SETLK, node, two, 2, fcntl.F_WRLCK).do()
    assert tries == [0, 0, api.FLTFL_CALLBACK_DATA_REISSUED_IO, (True, STATUS_SUCCESS)]
    with pytest.raises(VfsError):
        lock(core, SETLK, node, one, 1, fcntl.F_WRLCK).do()


@pytest.mark.verifier_errors("FLT_PREOP_SYNCHRONIZE of a lock")
def test_a6_19_a_lock_that_waits_is_tried_again(core: Volume, place: Path) -> None:
    """It waits in place, and ends with whoever lets go, or with a signal."""
    node = lookup(core, b"file")
    one, two = (core.request(OPEN, node, flags=os.O_RDWR).do().fh for _ in range(2))
    waits = threading.Event()

    def post(data: Any, *_: Any) -> None:
        if data.minor == api.IRP_MN_LOCK and data.lock_owner == 2:
            lock(core, SETLK, node, one, 1, fcntl.F_WRLCK).do()
            waits.set()
            assert data.reissue()

    def fail_first(data: Any, *_: Any) -> int:
        first = data.minor == api.IRP_MN_LOCK and data.lock_owner == 2 and not (
            data.flags & api.FLTFL_CALLBACK_DATA_REISSUED_IO)
        return data.complete(STATUS_ACCESS_DENIED) if first else FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_LOCK_CONTROL, lambda *_: FLT_PREOP_SYNCHRONIZE, post), name="again", at="2"))
    core.stack.insert(entry_of((IRP_MJ_LOCK_CONTROL, fail_first, None), name="below", at="1"))
    for interrupted in (False, True):
        waits.clear()
        request = lock(core, SETLKW, node, two, 2, fcntl.F_WRLCK)
        ended: list[int] = []

        def run(request: Any = request, ended: list[int] = ended) -> None:
            try:
                request.do()
                ended.append(0)
            except VfsError as error:
                ended.append(error.errno or 0)

        program = threading.Thread(target=run)
        program.start()
        assert waits.wait(10)
        time.sleep(0.05)
        assert program.is_alive()
        if interrupted:
            assert core.interrupt(request.number)
        else:
            lock(core, SETLK, node, one, 1, fcntl.F_UNLCK).do()
        program.join(10)
        assert ended == [errno.EINTR if interrupted else 0]
        lock(core, SETLK, node, two, 2, fcntl.F_UNLCK).do()


# ---- operations of another release, and routines by name -------------------------------------------------------------

@pytest.mark.parametrize("major", [0x1C, 0x40, 0x77, 0x80, 0xEB, 0xF4])
def test_a2_18_an_operation_of_another_release_is_never_called(core: Volume, place: Path, major: int) -> None:
    called: list[int] = []

    def callback(data: Any, *_: Any) -> int:
        called.append(data.major)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    entry = entry_of((major, callback, callback), (IRP_MJ_CREATE, callback, None))
    core.stack.insert(entry)
    assert entry.registered == [IRP_MJ_CREATE]
    fh = opened(core, lookup(core, b"file"))
    assert read(core, fh) == b"0123456789"
    core.request(WRITE, fh=core.request(OPEN, lookup(core, b"file"), flags=os.O_RDWR).do().fh, buffer=b"x", size=1).do()
    core.request(RELEASE, fh=fh).do()
    assert set(called) == {IRP_MJ_CREATE}
    core.stack.remove(entry)
    assert core.stack.drained()


def test_a2_18_what_is_an_operation() -> None:
    from stackfs.cext.callback_data import MajorFunction

    for major in range(256):
        known = major in set(map(int, MajorFunction))
        if major in (api.IRP_MJ_POWER, api.IRP_MJ_DEVICE_CHANGE):
            with pytest.raises(ValueError, match="cannot be registered"):
                entry_of((major, go_on, None))
        else:
            assert entry_of((major, go_on, None)).registered == ([major] if known else [])


def test_a2_18_routines_by_name() -> None:
    assert fltkernel.FltGetRoutineAddress("FltCreateFileEx2") is fltkernel.FltCreateFileEx2
    for name in ("FltFutureRoutine", "FLT_REGISTRATION", "os", "IoAllocateMdl", ""):
        assert fltkernel.FltGetRoutineAddress(name) is None
    assert fltkernel.FltGetIrpName(3) == "IRP_MJ_READ"
    assert fltkernel.FltGetIrpName(-7) == "IRP_MJ_QUERY_OPEN"
    assert fltkernel.FltGetIrpName(0x77) == "IRP_MJ_0x77"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build("native_status", tmp_path_factory.mktemp("native_status"))


def test_native_filters(core: Volume, place: Path, native: Any) -> None:
    """What a native filter was compiled for is looked at; it finds routines by name, and asks for a status."""
    from stackfs.cext.routines import native_routine
    from stackfs.cext.stack import InstanceEntry
    from stackfs.manifest import FILTER_ABI

    assert native.abi() == FILTER_ABI == api.FILTER_ABI
    with pytest.raises(ValueError, match="version 99 of the interface, and this release has 1: build the filter again"):
        InstanceEntry(Host(), "n", "2", "n", native=native.operations(99))
    assert native.address("FltReadFile") == native_routine("FltReadFile") != 0
    assert native.address("FltReadFile") != native.address("FltWriteFile")
    assert native.address("FltFutureRoutine") == native.address("operation_run") == native_routine("no") == 0
    core.stack.insert(InstanceEntry(Host(), "n", "2", "n", native=native.operations(0)))
    opened(core, lookup(core, b"file"))
    assert error_of(core, MKDIR, name=b"file", mode=0o700) == errno.EEXIST
    assert native.told() == [(IRP_MJ_CREATE, STATUS_SUCCESS), (IRP_MJ_CREATE, api.STATUS_OBJECT_NAME_COLLISION)]
