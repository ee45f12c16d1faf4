"""Ports of loaded filters (docs/semantics.md, B3): with the manager, under their DDI names, and on a mounted drive."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from conftest import STACKFS, Drive, needs_root, run
from port_pair import NAME, Worker, port_threads, refused, until
from stack_driver import OPEN, RELEASE, error_of, lookup, opened

from stackfs import filterlib, port_wire, runtime_directory
from stackfs.api import (
    STATUS_BUFFER_OVERFLOW,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_PORT_DISCONNECTED,
    STATUS_TIMEOUT,
)
from stackfs.cext.python_requests import VfsError
from stackfs.cext.python_requests import Volume as CoreVolume
from stackfs.manager import FilterManager, running

ROOT = Path(__file__).resolve().parent.parent


# ---- with the manager ------------------------------------------------------------------------------------------------

ASKING = r'''
MANIFEST = {"name": "asking", "altitude": "265200", "group": "FSFilter Content Screener", "filter": "Asking"}
from stackfs.api import *

class Asking(Filter):
    operations = (Operation(IRP_MJ_CREATE, pre="pre_create"),)

    def __init__(self, options):
        super().__init__(options)
        self.told = []
        self.port = self.open_port("\\TestPort", connect=self.connect, disconnect=self.told.append,
                                   message=lambda client, data: data[::-1])
        FAIL

    def connect(self, client):
        self.told.append(client)

    def pre_create(self, data, objects):
        try:
            self.port.send(data.path.encode(), reply_size=1)
        except FltError as error:
            return data.complete(error.status)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


class Managed:
    """A manager with a volume (no mount) on a loop in a thread of its own, and the filter above."""

    def __init__(self, top: Path) -> None:
        (top / "filters").mkdir()
        (top / "v").mkdir()
        (top / "v" / "file").write_bytes(b"x")
        self.file = top / "filters" / "asking.py"
        self.file.write_text(ASKING.replace("FAIL", ""))
        self.manager = FilterManager([str(top / "filters")])
        self.core = CoreVolume(os.open(top / "v", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self.manager.add_volume("v", "", str(top / "v"), self.core)
        self.ready = threading.Event()
        self.thread = Worker(trio.run, self.main)
        assert self.ready.wait(10)

    async def main(self) -> None:
        self.token, self.end = trio.lowlevel.current_trio_token(), trio.Event()
        async with running(self.manager):
            self.ready.set()
            await self.end.wait()

    def call(self, routine: Callable[..., Any], *arguments: Any) -> Any:
        return trio.from_thread.run(routine, *arguments, trio_token=self.token)

    def stop(self) -> None:
        self.token.run_sync_soon(self.end.set)
        self.thread.result()


@pytest.fixture
def managed(tmp_path: Path, port_directory: Path) -> Iterator[Managed]:
    made = Managed(tmp_path)
    yield made
    made.stop()
    for name in [name for name in sys.modules if name.startswith("stackfs_filter_")]:
        del sys.modules[name]
    assert port_threads() == []


def test_a_filter_opens_a_port_and_asks_in_a_callback(managed: Managed) -> None:
    managed.call(managed.manager.load, "asking")
    node = lookup(managed.core, b"file")
    with filterlib.connect(NAME, volume="v") as port:
        opening = Worker(opened, managed.core, node)
        message = port.get()
        assert message.data == b"/file"
        message.reply(b"1")
        managed.core.request(RELEASE, fh=opening.result()).do()
        assert port.send(b"abc") == b"cba"
        told = managed.manager.filter("asking").object.told     # type: ignore[attr-defined]
        assert [each.pid for each in told] == [os.getpid()]
    until(lambda: len(told) == 2)
    assert told[0] is told[1]


def test_unload_ends_what_waits_for_a_program(managed: Managed) -> None:
    """B3.12: ports first, then instances; otherwise each would wait for the other."""
    managed.call(managed.manager.load, "asking")
    node = lookup(managed.core, b"file")
    with filterlib.connect(NAME) as port:
        opening = Worker(error_of, managed.core, OPEN, node)
        port.get()
        unloading = Worker(managed.call, managed.manager.unload, "asking")
        unloading.result(20)
        assert opening.result() == 5            # STATUS_PORT_DISCONNECTED
        assert list(port) == []
    with refused(STATUS_OBJECT_NAME_NOT_FOUND):
        filterlib.connect(NAME)
    managed.call(managed.manager.load, "asking")
    filterlib.connect(NAME).close()


def test_a_wait_ends_with_the_program_that_is_asked_about(managed: Managed) -> None:
    """B3.8: with a signal that ends it, not with one that it survives. A stopped process keeps what it is sent."""
    managed.call(managed.manager.load, "asking")
    node = lookup(managed.core, b"file")
    with filterlib.connect(NAME) as port, subprocess.Popen(["sleep", "60"]) as asked:
        try:
            asked.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, asked.pid, os.WSTOPPED)
            request = managed.core.request(OPEN, node, tid=asked.pid)
            opening = Worker(request.do)
            message = port.get()
            managed.core.interrupt(request.number)
            opening.join(0.3)
            assert opening.is_alive()
            asked.terminate()
            with pytest.raises(VfsError) as caught:
                opening.result()
            assert caught.value.errno == errno.EINTR
            assert message.reply(b"1") is False, "nobody waits for it any more"
        finally:
            asked.kill()


def test_a_time_out_in_a_callback(managed: Managed) -> None:
    """B3.6"""
    managed.file.write_text(managed.file.read_text().replace("reply_size=1)", "reply_size=1, timeout=0.25)"))
    managed.call(managed.manager.load, "asking")
    node = lookup(managed.core, b"file")
    with filterlib.connect(NAME) as port:
        begun = time.monotonic()
        opening = Worker(error_of, managed.core, OPEN, node)
        message = port.get()
        assert opening.result() != 0 and time.monotonic() - begun >= 0.25
        assert message.reply(b"1") is False


def test_a_filter_that_cannot_be_made_leaves_no_port(managed: Managed) -> None:
    managed.file.write_text(ASKING.replace("FAIL", "raise KeyError('x')"))
    with refused(0xC0000365):
        managed.call(managed.manager.load, "asking")
    assert port_threads() == [] and os.listdir(runtime_directory.ports()) == []
    managed.file.write_text(ASKING.replace("FAIL", "self.open_port('\\\\TestPort')"))
    with refused(STATUS_OBJECT_NAME_COLLISION):
        managed.call(managed.manager.load, "asking")
    assert port_threads() == []


def test_a_filter_without_a_manager_opens_no_port() -> None:
    from stackfs.api import Filter

    with pytest.raises(RuntimeError, match="was not loaded by a Filter Manager"):
        Filter({}).open_port(NAME)


# ---- under their DDI names -------------------------------------------------------------------------------------------

DDI = r'''
MANIFEST = {"name": "asking", "altitude": "265200", "group": "FSFilter Content Screener", "filter": "Ported"}
from stackfs import api
from stackfs.fltkernel import *

class Ported(api.Filter):
    told, server, client = [], Out(), Out()

    def instance_setup(self, instance, flags):
        self.filter = instance.filter
        descriptor = Out()
        assert FltBuildDefaultSecurityDescriptor(descriptor, FLT_PORT_ALL_ACCESS) == 0
        assert (descriptor.value.users, descriptor.value.groups, descriptor.value.everyone) == ({0}, set(), False)
        attributes = OBJECT_ATTRIBUTES()
        InitializeObjectAttributes(attributes, "\\TestPort", OBJ_CASE_INSENSITIVE, None, descriptor.value)
        assert self.create(attributes) == api.STATUS_INVALID_PARAMETER
        InitializeObjectAttributes(attributes, "\\TestPort", OBJ_KERNEL_HANDLE, None, descriptor.value)
        assert self.create(attributes) == 0
        assert self.create(attributes) == api.STATUS_OBJECT_NAME_COLLISION
        attributes.SecurityDescriptor = "everyone"
        assert self.create(attributes) == api.STATUS_INVALID_PARAMETER
        FltFreeSecurityDescriptor(descriptor.value)
        assert not descriptor.value.allows(0, [])           # the port keeps what it said when it was opened
        return 0

    def create(self, attributes):
        return FltCreateCommunicationPort(
            self.filter, self.server, attributes, "server cookie", self.connect, self.disconnect, self.message, 1)

    def connect(self, ClientPort, ServerPortCookie, ConnectionContext, SizeOfContext, ConnectionPortCookie):
        self.told.append(("connect", ServerPortCookie, ConnectionContext, SizeOfContext))
        self.client.value = ClientPort
        ConnectionPortCookie.value = "connection cookie"
        return 0

    def disconnect(self, ConnectionCookie):
        self.told.append(("disconnect", ConnectionCookie))
        if ConnectionCookie == "connection cookie" and CLOSES:
            FltCloseClientPort(self.filter, self.client)

    def message(self, PortCookie, InputBuffer, InputBufferLength, OutputBuffer, OutputBufferLength,
                ReturnOutputBufferLength):
        self.told.append(("message", PortCookie, InputBuffer, InputBufferLength, OutputBufferLength))
        OutputBuffer[:2] = b"ok"
        ReturnOutputBufferLength.value = 2
        return 0 if InputBuffer == b"good" else api.STATUS_INVALID_PARAMETER
'''


@needs_root
def test_the_ddi_names(managed: Managed) -> None:
    """B3.1 to B3.11 as a filter that comes from Windows sees them."""
    from stackfs.fltkernel import FltCloseClientPort, FltCloseCommunicationPort, FltSendMessage, Out

    managed.file.write_text(DDI.replace("CLOSES", "True"))
    managed.call(managed.manager.load, "asking")
    loaded: Any = managed.manager.filter("asking")
    assert loaded.instances, "its set-up has come to its end"
    ported = loaded.object
    never: Out[Any] = Out()
    assert FltSendMessage(loaded, never, b"x", 1, None, None, None) == STATUS_PORT_DISCONNECTED
    with filterlib.connect(NAME, b"context") as port:
        assert port.send(b"good", 7) == b"ok"
        with refused(STATUS_INVALID_PARAMETER):
            port.send(b"bad")

        buffer, length = bytearray(4), Out[int]()
        length.value = 3
        answering = Worker(lambda: port.get().reply(b"abc"))
        second = 10_000_000
        since_1601 = int((time.time() + 11644473600) * second)
        assert FltSendMessage(loaded, ported.client, b"message and more", 7, buffer, length, -60 * second) == 0
        answering.result()
        assert (bytes(buffer), length.value) == (b"abc\0", 3)

        for timeout in (-second // 20, since_1601 + second // 10, since_1601 - second):
            assert FltSendMessage(loaded, ported.client, b"x", 1, buffer, length, timeout) == STATUS_TIMEOUT
            assert length.value == 0
        for timeout in (None, 0, since_1601 + 60 * second):
            length.value = 3
            answering = Worker(lambda: port.get().reply(b"1234"))
            assert FltSendMessage(loaded, ported.client, b"x", 1, buffer, length, timeout) == STATUS_BUFFER_OVERFLOW
            answering.result()
            assert (bytes(buffer), length.value) == (b"123\0", 3)
        answering = Worker(port.get)
        assert FltSendMessage(loaded, ported.client, b"taken", 5, None, None, None) == 0
        assert answering.result().data == b"taken"
        assert FltSendMessage(loaded, ported.client, b"x", 1, buffer, None, None) == STATUS_INVALID_PARAMETER
        FltCloseCommunicationPort(ported.server.value)
    until(lambda: ported.client.value is None)
    assert ported.told == [
        ("connect", "server cookie", b"context", 7),
        ("message", "connection cookie", b"good", 4, 7),
        ("message", "connection cookie", b"bad", 3, port_wire.MAX_BODY),
        ("disconnect", "connection cookie"),
    ]
    FltCloseClientPort(loaded, ported.client)       # twice is once


@needs_root
@pytest.mark.verifier_errors("^a client port of .* was not closed")
def test_a_client_port_that_the_filter_does_not_close(managed: Managed, capsys: pytest.CaptureFixture[str]) -> None:
    """B3.10: the unload says so, and does not hang."""
    managed.file.write_text(DDI.replace("CLOSES", "False"))
    managed.call(managed.manager.load, "asking")
    ported: Any = managed.manager.filter("asking").object
    filterlib.connect(NAME).close()
    until(lambda: ("disconnect", "connection cookie") in ported.told)
    Worker(managed.call, managed.manager.unload, "asking").result(20)
    assert "a filter did not close a client port" in capsys.readouterr().out


DRIVER = r'''
MANIFEST = {"name": "asking", "altitude": "265200", "group": "FSFilter Content Screener"}
from stackfs.api import *
from stackfs.fltkernel import *

told, filter, server, client = [], Out(), Out(), Out()

def DriverEntry(DriverObject, RegistryPath):
    registration = FLT_REGISTRATION(
        OperationRegistration=[FLT_OPERATION_REGISTRATION(IRP_MJ_CREATE, 0, PreCreate)], FilterUnloadCallback=Unload)
    status = FltRegisterFilter(DriverObject, registration, filter)
    if status == 0:
        attributes = OBJECT_ATTRIBUTES()
        InitializeObjectAttributes(attributes, "\\TestPort", OBJ_KERNEL_HANDLE)
        status = FltCreateCommunicationPort(filter.value, server, attributes, None, Connect, Disconnect, None, 1)
        if status == 0:
            status = FltStartFiltering(filter.value)
        if status != 0:
            FltUnregisterFilter(filter.value)
    return status

def Connect(ClientPort, ServerPortCookie, ConnectionContext, SizeOfContext, ConnectionPortCookie):
    client.value = ClientPort
    return 0

def Disconnect(ConnectionCookie):
    told.append("disconnect")
    FltCloseClientPort(filter.value, client)

def PreCreate(Data, FltObjects, CompletionContext):
    reply, length = bytearray(1), Out()
    length.value = 1
    status = FltSendMessage(FltObjects.Filter, client, Data.path.encode(), len(Data.path), reply, length, None)
    return FLT_PREOP_SUCCESS_NO_CALLBACK if status == 0 and reply == b"y" else Data.complete(STATUS_ACCESS_DENIED)

def Unload(Flags):
    told.append("unload")
    FltCloseCommunicationPort(server.value)
    FltUnregisterFilter(filter.value)
    told.append("unregistered")
    return 0
'''


def test_a_driver_with_a_port(managed: Managed) -> None:
    """B3.12 in the DDI's way: the unload callback closes the server port, FltUnregisterFilter waits for the other."""
    managed.file.write_text(DRIVER)
    managed.call(managed.manager.load, "asking")
    told = sys.modules["stackfs_filter_asking"].told
    node = lookup(managed.core, b"file")
    with filterlib.connect(NAME) as port:
        opening = Worker(opened, managed.core, node)
        message = port.get()
        assert message.data == b"/file"
        message.reply(b"y")
        managed.core.request(RELEASE, fh=opening.result()).do()
        opening = Worker(error_of, managed.core, OPEN, node)
        port.get()
        managed.call(managed.manager.unload, "asking")
        assert opening.result() == 13
        assert list(port) == []
    assert told == ["unload", "disconnect", "unregistered"]
    assert "asking" not in managed.manager.loaded


# ---- on a mounted drive ----------------------------------------------------------------------------------------------

def documented(first_line: str) -> str:
    """The program of docs/writing-filters.md whose first line this is."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/writing-filters.md").read_text(), re.DOTALL)
    found, = [each for each in blocks if each.startswith(f'"""{first_line}')]
    return str(found)


@pytest.fixture
def gatekeeper(drive: Callable[..., Drive], tmp_path: Path) -> Drive:
    """A drive with the filter of docs/writing-filters.md."""
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters/gatekeeper.py").write_text(documented("No file is opened"))
    made = drive(f"filterdir={tmp_path}/filters", "filter=gatekeeper", "gatekeeper.timeout=60")
    (made.src / "plain.txt").write_text("plain")
    (made.src / "x.secret").write_text("secret")
    return made


@contextlib.contextmanager
def program(code: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "watching\n"
            yield process
        finally:
            process.kill()


SILENT = r'''
from stackfs import filterlib
with filterlib.connect("\\GatekeeperPort") as port:
    print("watching", flush=True)
    print(port.get().data.decode(), flush=True)
    port.get()
'''


def reading(path: Path) -> subprocess.Popen[str]:
    """cat, outside the mount and not for ever."""
    return subprocess.Popen(["timeout", "-s", "KILL", "50", "cat", str(path)], cwd="/", text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the source tree")
@pytest.mark.usefixtures("lanes")
def test_a_program_is_asked_before_a_file_is_opened(gatekeeper: Drive) -> None:
    """The example of docs/writing-filters.md: with its program, without it, and with one that is killed while asked."""
    watch = documented("Lets everything be opened")

    def outcome(name: str) -> str:
        out, error = reading(gatekeeper.mnt / name).communicate(timeout=60)
        return out or error.rsplit(": ", 1)[-1].strip()

    assert outcome("plain.txt") == "Permission denied"      # nobody says yes
    with program(watch) as asked:
        assert (outcome("plain.txt"), outcome("x.secret")) == ("plain", "Permission denied")
        volume, = json.loads(run(STACKFS, "status", "--json", "-v", gatekeeper.mnt).stdout)["volumes"]
        assert volume["status"]["ports"] == [
            {"name": "\\GatekeeperPort", "filter": "gatekeeper", "connections": 1, "max": 1}]
        asked.kill()
    begun = time.monotonic()
    with program(SILENT) as silent:
        waiting = reading(gatekeeper.mnt / "plain.txt")
        assert silent.stdout is not None and silent.stdout.readline() == "/plain.txt\n"
        time.sleep(0.2)
        assert waiting.poll() is None
        silent.kill()                                       # in the middle
        assert "Permission denied" in waiting.communicate(timeout=60)[1]
    with program(watch) as asked:                           # and the next one is heard
        assert outcome("plain.txt") == "plain"
        gatekeeper.umount()
        assert asked.wait(30) == 0                          # its loop has ended
    assert time.monotonic() - begun < 40


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the source tree")
def test_unload_and_unmount_while_a_program_is_asked(gatekeeper: Drive, tmp_path: Path) -> None:
    begun = time.monotonic()
    with program(SILENT) as silent:
        waiting = reading(gatekeeper.mnt / "plain.txt")
        assert silent.stdout is not None and silent.stdout.readline() == "/plain.txt\n"
        gatekeeper.fltmc("unload", "gatekeeper", "-v", str(gatekeeper.mnt))
        assert "Permission denied" in waiting.communicate(timeout=60)[1]
        assert silent.wait(30) == 1                         # its get() was told STATUS_PORT_DISCONNECTED
    assert (gatekeeper.mnt / "plain.txt").read_text() == "plain"
    gatekeeper.fltmc("load", "gatekeeper", "-v", str(gatekeeper.mnt))
    with program(SILENT) as silent:
        waiting = reading(gatekeeper.mnt / "plain.txt")
        assert silent.stdout is not None and silent.stdout.readline() == "/plain.txt\n"
        subprocess.run(["umount", "-f", "-l", str(gatekeeper.mnt)], check=True)
        waiting.communicate(timeout=60)
        assert waiting.returncode == 1
        assert silent.wait(30) == 1
    gatekeeper.wait_gone()
    assert time.monotonic() - begun < 40


SURVIVES = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
open(sys.argv[1]).read()
"""


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the source tree")
@pytest.mark.usefixtures("lanes")
def test_a_program_is_killed_while_a_program_is_asked_about_it(gatekeeper: Drive) -> None:
    """B3.8: it does not wait for the answer; one that only gets a signal does."""
    with program(SILENT) as silent:
        command = [sys.executable, "-c", SURVIVES, str(gatekeeper.mnt / "plain.txt")]
        with subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL) as opens:
            assert silent.stdout is not None and silent.stdout.readline() == "/plain.txt\n"
            opens.send_signal(signal.SIGUSR1)
            time.sleep(0.4)
            assert opens.poll() is None
            begun = time.monotonic()
            opens.kill()
            assert opens.wait(60) == -signal.SIGKILL and time.monotonic() - begun < 20


OPENING = """
import os, sys, time
opened = refused = 0
while time.time() < float(sys.argv[2]):
    try:
        os.close(os.open(sys.argv[1], os.O_RDONLY))
        opened += 1
    except PermissionError:
        refused += 1
print(opened, refused)
"""


@pytest.mark.long
@pytest.mark.usefixtures("lanes")
@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the source tree")
def test_opens_while_programs_die_and_the_filter_comes_and_goes(gatekeeper: Drive) -> None:
    """B3.8, B3.12: nobody waits for what is gone; an open is let in or refused, and nothing else."""
    watch, end = documented("Lets everything be opened"), time.time() + 15

    def programs() -> None:
        while time.time() < end:
            with contextlib.suppress(AssertionError), program(watch) as running:    # refused while it is reloaded
                time.sleep(0.3)
                if int(time.time() * 10) % 2:
                    running.send_signal(signal.SIGSTOP)     # there, and silent
                    time.sleep(0.3)

    def reloads() -> None:
        while time.time() < end:
            time.sleep(1.5)
            for verb in ("unload", "load"):
                gatekeeper.fltmc(verb, "gatekeeper", "-v", str(gatekeeper.mnt))

    where = str(gatekeeper.mnt / "plain.txt")
    command = ["timeout", "-s", "KILL", "60", sys.executable, "-c", OPENING, where, str(end)]
    openers = [subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for each in [Worker(programs), Worker(reloads)]:
        each.result(60)
    for opener in openers:
        opened, refused = map(int, opener.communicate(timeout=60)[0].split())
        assert opener.returncode == 0 and opened > 0 and refused > 0
