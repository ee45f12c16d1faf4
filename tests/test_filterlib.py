"""The user-mode library (docs/semantics.md, B3.13 and B3.14): HRESULTs, enumerations, raw buffers, trio.

Fake daemons and ports of our own answer; no volume is mounted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from port_pair import NAME, Pair, Worker, port_threads, until

from stackfs import filterlib, port_wire, runtime_directory
from stackfs.errors import FltError, StackfsError
from stackfs.filterlib import *
from stackfs.filterlib import aio, names
from stackfs.hresult import from_status, from_win32

FAKE_DAEMON = str(Path(__file__).with_name("fake_daemon.py"))
FILTERS = [
    {"name": "audit", "instances": 2, "altitude": "385200", "frame": 0},
    {"name": "old", "instances": 0, "altitude": "389998.99", "frame": "<Legacy>"},
]
INSTANCES = [
    {"filter": "audit", "volume": "/mnt/a", "altitude": "385200", "name": "audit", "features": 8},
    {"filter": "audit", "volume": "/mnt/a", "altitude": "385100.5", "name": "low"},
]
DETACHED = {"filter": "audit", "volume": "bare", "altitude": "385200", "name": "audit", "status": "Detached"}
VOLUMES = [
    {"dos_name": "/mnt/a", "volume_name": "a", "filesystem": "stackfs", "status": "Attached"},
    {"dos_name": "", "volume_name": "bare", "filesystem": "stackfs", "status": "Detached"},
]
NO_MORE_ITEMS = from_win32(259)
SMALL = from_win32(122)
CLOSED = from_win32(6)
FILTER_NOT_FOUND, VOLUME_NOT_FOUND, INSTANCE_NOT_FOUND = 0x801F0013, 0x801F0014, 0x801F0015


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run").mkdir(mode=0o755)
    (tmp_path / "run/stackfs").mkdir(mode=0o700)
    monkeypatch.setattr(runtime_directory, "ROOT", str(tmp_path / "run/stackfs"))
    monkeypatch.setattr(runtime_directory, "USERS", str(tmp_path / "user"))
    monkeypatch.setattr(runtime_directory, "path", lambda: str(tmp_path / "run/stackfs"))
    return tmp_path / "run/stackfs"


class Daemon:
    """A fake daemon and the requests it has had."""

    def __init__(self, directory: Path, name: str, answers: dict[str, Any]) -> None:
        self.log = directory.parent / f"{name}.log"
        code = [sys.executable, FAKE_DAEMON, str(directory), name, json.dumps(answers)]
        self.process = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"

    def asked(self) -> list[Any]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [each for each in map(json.loads, lines) if each[0] != "hello"]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def daemon(run_directory: Path) -> Iterator[Callable[..., Daemon]]:
    started: list[Daemon] = []

    def start(name: str = "a", **answers: Any) -> Daemon:
        answers = {"filters": FILTERS, "instances": INSTANCES, "volumes": VOLUMES} | answers
        started.append(Daemon(run_directory, name, {key.replace("no_", "!"): each for key, each in answers.items()}))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.ports.close(10)
    assert port_threads() == []


# ---- loading and attaching -------------------------------------------------------------------------------------------

def test_load_unload_attach_detach(daemon: Callable[..., Daemon]) -> None:
    asked = daemon(load={"instances": ["audit"], "declined": []}, unload={}, attach={"name": "audit", "altitude": "1"},
                   detach={"name": "audit", "altitude": "1"}).asked  # fmt: skip
    created: Out[str] = Out()
    assert FilterLoad("audit") == FilterUnload("audit") == S_OK
    assert FilterAttach("audit", "/mnt/a", None, 4, created) == S_OK
    assert created.value == "aud"                               # a NUL ends it
    assert FilterAttachAtAltitude("audit", "a", "385100.5", "low") == S_OK
    assert FilterDetach("audit", "/mnt/a", "low") == S_OK
    assert asked() == [
        ["load", {"name": "audit"}],
        ["unload", {"name": "audit", "mandatory": False}],
        ["attach", {"filter": "audit", "volume": "a", "instance_name": None, "altitude": None}],
        ["attach", {"filter": "audit", "volume": "a", "instance_name": "low", "altitude": "385100.5"}],
        ["detach", {"filter": "audit", "volume": "a", "instance_name": "low"}],
    ]
    assert filterlib.load("audit")[0]["result"] == {"instances": ["audit"], "declined": []}


@pytest.mark.parametrize(("status", "hresult"), [
    (0xC000010E, 0x80070420), (0xC01C0013, 0x801F0013),
])
def test_refusals_are_hresults(daemon: Callable[..., Daemon], status: int, hresult: int) -> None:
    """B3.14"""
    daemon(no_load={"error": "no", "status": status})
    assert FilterLoad("audit") == hresult
    assert FAILED(hresult) and not SUCCEEDED(hresult)
    with pytest.raises(FltError) as caught:
        filterlib.load("audit")
    assert hresult_of(caught.value) == hresult


def test_nobody_runs_or_nobody_answers(daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    assert FilterLoad("audit") == FilterAttach("audit", "/mnt/a") == VOLUME_NOT_FOUND
    found: Out[FIND] = Out()
    assert FilterFindFirst(0, Out(), 1000, Out(), found) == NO_MORE_ITEMS
    monkeypatch.setattr("stackfs.control.HELLO_LIMIT", 0.1)
    daemon(hello="...")
    assert FilterFindFirst(0, Out(), 1000, Out(), found) == 0x800705B4
    problems: list[StackfsError] = []
    assert (filterlib.filters(problems), len(problems)) == ([], 1)
    assert not hasattr(found, "value")


# ---- what is there ---------------------------------------------------------------------------------------------------

def all_of(
    first: Callable[..., int], following: Callable[..., int], close: Callable[..., int], *head: Any
) -> list[Any]:
    """An enumeration to its end; each structure with the size it was said to have."""
    buffer, size, find = Out[Any](), Out[int](), Out[FIND]()
    assert first(*head, buffer, 10_000, size, find) == S_OK
    found = [(buffer.value, size.value)]
    while (result := following(find.value, head[-1], buffer, 10_000, size)) == S_OK:
        found.append((buffer.value, size.value))
    assert result == NO_MORE_ITEMS
    assert close(find.value) == S_OK
    assert close(find.value) == following(find.value, head[-1], buffer, 10_000, size) == CLOSED
    return found


def test_enumerations(daemon: Callable[..., Daemon]) -> None:
    daemon()
    filters = FilterFindFirst, FilterFindNext, FilterFindClose
    assert all_of(*filters, FILTER_INFORMATION_CLASS.FilterFullInformation) == [
        (FILTER_FULL_INFORMATION(0, 0, "old"), 14 + 6), (FILTER_FULL_INFORMATION(0, 2, "audit"), 14 + 10)]
    assert all_of(*filters, FILTER_INFORMATION_CLASS.FilterAggregateBasicInformation) == [
        (FILTER_AGGREGATE_BASIC_INFORMATION(FLTFL_AGGREGATE_INFO_IS_LEGACYFILTER, 0, 0, "old", ""), 24 + 6),
        (FILTER_AGGREGATE_BASIC_INFORMATION(FLTFL_AGGREGATE_INFO_IS_MINIFILTER, 0, 2, "audit", "385200"), 24 + 22),
    ]
    assert [each for each, _ in all_of(*filters, FILTER_INFORMATION_CLASS.FilterAggregateStandardInformation)] == [
        FILTER_AGGREGATE_STANDARD_INFORMATION(FLTFL_ASI_IS_LEGACYFILTER, 0, 0, 0, "old", "389998.99"),
        FILTER_AGGREGATE_STANDARD_INFORMATION(FLTFL_ASI_IS_MINIFILTER, 0, 0, 2, "audit", "385200"),
    ]
    volumes = FilterVolumeFindFirst, FilterVolumeFindNext, FilterVolumeFindClose
    assert [each for each, _ in all_of(*volumes, FILTER_VOLUME_INFORMATION_CLASS.FilterVolumeBasicInformation)] == [
        FILTER_VOLUME_BASIC_INFORMATION("bare"), FILTER_VOLUME_BASIC_INFORMATION("a")]
    assert [each for each, _ in all_of(*volumes, FILTER_VOLUME_INFORMATION_CLASS.FilterVolumeStandardInformation)] == [
        FILTER_VOLUME_STANDARD_INFORMATION(FLTFL_VSI_DETACHED_VOLUME, 0, 0, "bare"),
        FILTER_VOLUME_STANDARD_INFORMATION(0, 0, 0, "a"),
    ]
    by_filter = FilterInstanceFindFirst, FilterInstanceFindNext, FilterInstanceFindClose
    assert all_of(*by_filter, "audit", INSTANCE_INFORMATION_CLASS.InstanceBasicInformation) == [
        (INSTANCE_BASIC_INFORMATION("audit"), 18), (INSTANCE_BASIC_INFORMATION("low"), 14)]
    assert [each for each, _ in all_of(*by_filter, "audit", INSTANCE_INFORMATION_CLASS.InstancePartialInformation)] == [
        INSTANCE_PARTIAL_INFORMATION("audit", "385200"), INSTANCE_PARTIAL_INFORMATION("low", "385100.5")]
    on_volume = FilterVolumeInstanceFindFirst, FilterVolumeInstanceFindNext, FilterVolumeInstanceFindClose
    assert [each for each, _ in all_of(*on_volume, "a", INSTANCE_INFORMATION_CLASS.InstanceFullInformation)] == [
        INSTANCE_FULL_INFORMATION("audit", "385200", "/mnt/a", "audit"),
        INSTANCE_FULL_INFORMATION("low", "385100.5", "/mnt/a", "audit"),
    ]
    aggregate = INSTANCE_INFORMATION_CLASS.InstanceAggregateStandardInformation
    assert all_of(*on_volume, "/mnt/a", aggregate)[0] == (
        INSTANCE_AGGREGATE_STANDARD_INFORMATION(
            FLTFL_IAGGREGATE_INFO_IS_MINIFILTER, 0, 0, 0, "audit", "385200", "/mnt/a", "audit", 8),
        40 + 10 + 12 + 12 + 10,
    )


def test_instances_of_a_volume_whose_mount_is_gone(daemon: Callable[..., Daemon]) -> None:
    daemon(instances=[*INSTANCES, DETACHED])
    aggregate = INSTANCE_INFORMATION_CLASS.InstanceAggregateStandardInformation
    by_filter = FilterInstanceFindFirst, FilterInstanceFindNext, FilterInstanceFindClose
    flags = [each.TypeFlags for each, _ in all_of(*by_filter, "audit", aggregate)]
    assert flags == [0, 0, FLTFL_IASIM_DETACHED_VOLUME]


def test_what_cannot_be_enumerated(daemon: Callable[..., Daemon]) -> None:
    daemon()
    buffer, size, find = Out[Any](), Out[int](), Out[FIND]()
    assert FilterInstanceFindFirst("none", 0, buffer, 1000, size, find) == FILTER_NOT_FOUND
    assert FilterInstanceFindFirst("old", 0, buffer, 1000, size, find) == NO_MORE_ITEMS
    assert FilterVolumeInstanceFindFirst("none", 0, buffer, 1000, size, find) == VOLUME_NOT_FOUND
    assert FilterFindFirst(7, buffer, 1000, size, find) == names.E_INVALIDARG
    assert FilterFindFirst(0, buffer, 19, size, find) == SMALL
    assert size.value == 20 and not hasattr(buffer, "value") and not hasattr(find, "value")
    assert FilterFindFirst(0, buffer, 20, size, find) == S_OK
    assert FilterFindNext(find.value, 0, buffer, 20, size) == SMALL     # and it is given again
    assert buffer.value.FilterName == "old"
    assert FilterFindNext(find.value, 0, buffer, 24, size) == S_OK
    assert buffer.value.FilterName == "audit"


def test_handles(daemon: Callable[..., Daemon]) -> None:
    daemon()
    buffer, size = Out[Any](), Out[int]()
    handle: Out[HFILTER] = Out()
    assert FilterCreate("none", handle) == FILTER_NOT_FOUND
    assert FilterCreate("audit", handle) == S_OK
    assert FilterGetInformation(handle.value, 0, buffer, 10, size) == SMALL
    assert FilterGetInformation(handle.value, 0, buffer, size.value, size) == S_OK
    assert buffer.value == FILTER_FULL_INFORMATION(0, 2, "audit")
    assert FilterClose(handle.value) == S_OK
    assert FilterClose(handle.value) == FilterGetInformation(handle.value, 0, buffer, 100, size) == CLOSED

    instance: Out[HFILTER_INSTANCE] = Out()
    assert FilterInstanceCreate("audit", "a", "none", instance) == INSTANCE_NOT_FOUND
    assert FilterInstanceCreate("audit", "none", None, instance) == VOLUME_NOT_FOUND
    assert FilterInstanceCreate("audit", "/mnt/a", None, instance) == S_OK
    assert FilterInstanceGetInformation(instance.value, 1, buffer, 100, size) == S_OK
    assert buffer.value == INSTANCE_PARTIAL_INFORMATION("audit", "385200")
    assert FilterInstanceClose(instance.value) == S_OK
    assert FilterInstanceClose(instance.value) == CLOSED
    assert FilterInstanceGetInformation(instance.value, 1, buffer, 100, size) == CLOSED


def test_names_of_volumes(daemon: Callable[..., Daemon]) -> None:
    daemon()
    name, buffer, size = Out[str](), Out[Any](), Out[int]()
    assert FilterGetDosName("a", name, 6) == SMALL
    assert FilterGetDosName("a", name, 7) == S_OK
    assert name.value == "/mnt/a"
    assert FilterGetDosName("bare", name, 100) == from_win32(2)
    assert FilterGetDosName("none", name, 100) == VOLUME_NOT_FOUND
    assert FilterGetVolumeInformationFromName("/mnt/a", 0, buffer, 100, size) == S_OK
    assert buffer.value == FILTER_VOLUME_BASIC_INFORMATION("a")
    assert FilterGetVolumeInformationFromName("none", 0, buffer, 100, size) == VOLUME_NOT_FOUND


# ---- ports -----------------------------------------------------------------------------------------------------------

def test_ports_with_raw_buffers(pair: Pair) -> None:
    """B3.13: a message that does not fit is the next call's."""
    server = pair.open(message=lambda client, data, room: data.upper())
    handle, returned = Out[Port](), Out[int]()
    assert FilterConnectCommunicationPort("\\None", 0, None, 0, None, handle) == from_win32(2)
    assert FilterConnectCommunicationPort(NAME, 2, None, 0, None, handle) == names.E_INVALIDARG
    assert FilterConnectCommunicationPort(NAME, 0, b"context", 4, None, handle) == S_OK
    assert pair.told == [("connect", b"cont")]
    assert FilterConnectCommunicationPort(NAME, 0, None, 0, None, Out()) == from_win32(1238)
    with handle.value as port:
        asking = Worker(server.send, b"12345678", 3, 60)
        buffer = bytearray(24)
        assert FilterGetMessage(port, buffer, 23, None) == SMALL
        assert FilterGetMessage(port, buffer, 24, None) == S_OK
        length, message_id = FILTER_MESSAGE_HEADER.unpack_from(buffer)
        assert (length, buffer[16:]) == (19, b"12345678")
        reply = FILTER_REPLY_HEADER.pack(0, message_id) + b"yes and padding"
        assert FilterReplyMessage(port, reply, 19) == S_OK
        assert asking.result() == b"yes"
        assert FilterReplyMessage(port, reply, 19) == from_status(0xC01C0020) == 0x801F0020
        assert FilterReplyMessage(port, reply, 15) == names.E_INVALIDARG
        assert FilterGetMessage(port, buffer, 24, object()) == names.E_INVALIDARG      # type: ignore[arg-type]

        output = bytearray(4)
        assert FilterSendMessage(port, b"abcdef", 3, output, 4, returned) == S_OK
        assert (output, returned.value) == (b"ABC\0", 3)
        assert FilterSendMessage(port, b"abcdef", 6, output, 4, returned) == SMALL
        assert FilterSendMessage(port, b"", 0, None, 0, returned) == S_OK
        telling = Worker(server.send, b"x", None, 60)
        assert FilterGetMessage(port, buffer, 24) == S_OK
        assert FILTER_MESSAGE_HEADER.unpack_from(buffer)[0] == 0
        telling.result()
    assert FilterGetMessage(port, buffer, 24) == FilterReplyMessage(port, reply, 19) == CLOSED
    assert FilterSendMessage(port, b"", 0, None, 0, returned) == CLOSED


def test_a_get_that_waits_is_ended_by_a_close(pair: Pair) -> None:
    with pair.connected() as (client, port):
        waiting = [Worker(port.get) for _ in range(4)]
        until(lambda: client._gets == 4)
        port.close()
        port.close()
        for each in waiting:
            with pytest.raises(FltError, match="is disconnected"):
                each.result()
        assert list(port) == []


def test_a_reply_when_the_filter_has_gone(pair: Pair) -> None:
    """A program's loop ends by itself; only who calls the port by hand is told."""
    with pair.connected() as (client, port):
        asking = Worker(client.exchange, b"x", 1, 60)
        message = port.get()
        client.close()
        assert message.reply(b"y") is False
        with pytest.raises(FltError, match="is disconnected"):
            port.reply(message.id)
        assert list(port) == []
        asking.result()


def test_what_a_get_asked_for_is_the_next_ones(pair: Pair) -> None:
    with pair.connected() as (client, port):
        for _ in range(3):
            with pytest.raises(TimeoutError):
                port.get(timeout=0.02)
        assert client._gets == 1
        telling = Worker(client.send, b"x", None, 60)
        assert port.get(timeout=10).data == b"x"
        telling.result()


def test_a_synchronous_handle_does_one_thing_at_a_time(pair: Pair) -> None:
    """B3.14"""
    begun, may_end = threading.Event(), threading.Event()

    def slow(client: Any, data: bytes, room: int) -> None:
        if data == b"slow":
            begun.set()
            may_end.wait(10)

    server = pair.open(message=slow, max_connections=2)
    with filterlib.connect(NAME, synchronous=True) as one, filterlib.connect(NAME) as several:
        for port, held in ((one, True), (several, False)):
            begun.clear()
            may_end.clear()
            first = Worker(port.send, b"slow")
            assert begun.wait(10)
            second = Worker(port.send, b"quick")
            second.join(0.1)
            assert second.is_alive() is held
            may_end.set()
            first.result()
            second.result()
    until(lambda: not server.clients)


@pytest.mark.parametrize("frame", [b"", b"x", bytes(32), port_wire.pack(port_wire.Kind.GET)])
def test_a_daemon_that_breaks_the_protocol_is_left(pair: Pair, frame: bytes) -> None:
    with pair.connected() as (client, port):
        getting = Worker(port.get)
        until(lambda: client._gets)
        client._socket.send(frame)
        with pytest.raises(FltError, match="is disconnected"):
            getting.result()


def test_an_answer_nobody_asked_for_is_not_heard(pair: Pair) -> None:
    with pair.connected() as (client, port):
        client._socket.send(port_wire.pack(port_wire.Kind.SENT, number=99))
        telling = Worker(client.send, b"x", None, 60)
        assert port.get(10).data == b"x"
        telling.result()


# ---- trio ------------------------------------------------------------------------------------------------------------

def test_a_port_on_the_loop(pair: Pair) -> None:
    server = pair.open(message=lambda client, data, room: data * 2)

    async def main() -> None:
        heard: list[bytes] = []
        with trio.fail_after(20):
            async with aio.connect(NAME, b"context") as port, trio.open_nursery() as nursery:
                assert port.pid == os.getpid()

                async def watch() -> None:
                    async for message in port:
                        heard.append(message.data)
                        assert await message.reply(message.data[::-1]) is True

                nursery.start_soon(watch)
                nursery.start_soon(watch)
                for index in range(20):
                    answer = await trio.to_thread.run_sync(server.send, b"%02d" % index, 2, 60)
                    assert answer == (b"%02d" % index)[::-1]
                assert await port.send(b"abc") == b"abcabc"
                with pytest.raises(FltError) as caught:
                    await port.reply(999, b"")
                assert caught.value.status == 0xC01C0020
                await trio.to_thread.run_sync(server.clients[0].close)
        assert heard == [b"%02d" % index for index in range(20)]

    trio.run(main)


def test_a_cancelled_get_leaves_the_message_to_the_next(pair: Pair) -> None:
    server = pair.open()

    async def main() -> None:
        with trio.fail_after(20):
            async with aio.connect(NAME) as port:
                with trio.move_on_after(0.05):
                    await port.get()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.to_thread.run_sync, server.send, b"x", None, 60)
                    assert (await port.get()).data == b"x"
                got: list[bytes] = []

                async def get() -> None:
                    got.append((await port.get()).data)

                async with trio.open_nursery() as nursery:
                    async with trio.open_nursery() as first:
                        first.start_soon(get)                       # reads for both
                        await trio.testing.wait_all_tasks_blocked()
                        nursery.start_soon(get)
                        await trio.testing.wait_all_tasks_blocked()
                        first.cancel_scope.cancel()
                    nursery.start_soon(trio.to_thread.run_sync, server.send, b"y", None, 60)
                assert got == [b"y"]

    trio.run(main)


def test_managing_on_the_loop(daemon: Callable[..., Daemon]) -> None:
    asked = daemon(load={}, unload={}, attach={"name": "i", "altitude": "1"}, detach={}).asked

    async def main() -> None:
        await aio.load("audit")
        assert (await aio.attach("audit", "a", altitude="1"))[0]["result"]["name"] == "i"
        await aio.detach("audit", "a")
        await aio.unload("audit", mandatory=True)
        assert [row.name for row in await aio.filters()] == ["old", "audit"]
        assert [row.name for row in await aio.instances("audit")] == ["audit", "low"]
        assert [row.volume_name for row in await aio.volumes()] == ["bare", "a"]

    trio.run(main)
    assert [verb for verb, _ in asked()] == ["load", "attach", "detach", "unload", "filters", "instances", "volumes"]


def test_the_library_imports_no_trio(run_directory: Path) -> None:
    code = (
        "import sys; from stackfs import filterlib, runtime_directory;"
        f"runtime_directory.path = lambda: {str(run_directory)!r}; runtime_directory.USERS = '/nowhere';"
        "filterlib.filters(); sys.exit('trio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
