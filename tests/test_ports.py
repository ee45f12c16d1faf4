"""Communication ports (docs/semantics.md, B3), both ends in one process: messages, waits, connecting, and who may."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from conftest import needs_root
from port_pair import FOR_EVER, NAME, Pair, Worker, port_threads, refused, until

from stackfs import client_port, filterlib, port_wire, ports, runtime_directory, runtime_sockets
from stackfs.api import (
    STATUS_ACCESS_DENIED,
    STATUS_BUFFER_OVERFLOW,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_CONNECTION_COUNT_LIMIT,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_NO_HANDLER_DEFINED,
    STATUS_FLT_NO_WAITER_FOR_REPLY,
    STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_NAME_INVALID,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_PORT_DISCONNECTED,
    STATUS_POSSIBLE_DEADLOCK,
    STATUS_TIMEOUT,
    STATUS_UNSUCCESSFUL,
    STATUS_VIRUS_INFECTED,
    FltError,
    SecurityDescriptor,
)
from stackfs.errors import ExitCode, StackfsError
from stackfs.port_wire import Kind, pack, pack_connect

NOBODY = 65534


@pytest.fixture
def pair(port_directory: Path) -> Iterator[Pair]:
    made = Pair()
    yield made
    made.ports.close(10)
    assert port_threads() == []
    assert [each for each in port_directory.rglob("*") if each.is_socket()] == []


# ---- messages of the filter ------------------------------------------------------------------------------------------

def test_a_message_is_answered(pair: Pair) -> None:
    """B3.5"""
    with pair.connected() as (client, port):
        asking = Worker(client.send, b"may I?", reply_size=10, timeout=FOR_EVER)
        message = port.get()
        assert (message.data, message.reply_size) == (b"may I?", 10)
        assert message.reply(b"yes") is True
        assert asking.result() == b"yes"
        assert (client.pid, client.uid, client.gid) == (os.getpid(), os.geteuid(), os.getegid())


def test_a_message_without_a_reply_waits_until_it_is_taken(pair: Pair) -> None:
    """B3.5"""
    with pair.connected() as (client, port):
        telling = Worker(client.send, b"by the way", timeout=FOR_EVER)
        time.sleep(0.05)
        assert telling.is_alive()
        message = port.get()
        assert (message.data, message.reply_size) == (b"by the way", None)
        assert telling.result() == b""
        assert message.reply(b"?") is False


def test_messages_come_in_the_order_in_which_they_were_sent(pair: Pair) -> None:
    """B3.5: each only to a program that waits for one, so nothing is lost with a program that does not."""
    with pair.connected() as (client, port):
        for index in range(5):
            before = len(client._queue)
            Worker(client.send, b"%d" % index, timeout=FOR_EVER)
            until(lambda before=before: len(client._queue) > before)
        assert [port.get().data for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_nobody_takes_it_in_time(pair: Pair) -> None:
    """B3.6: it is taken back."""
    with pair.connected() as (client, port):
        with refused(STATUS_TIMEOUT):
            client.send(b"x", timeout=0.05)
        with pytest.raises(TimeoutError):
            port.get(timeout=0.05)
        with pytest.raises(ValueError, match="time-out"):
            client.send(b"x", timeout=0)


def test_nobody_answers_in_time(pair: Pair) -> None:
    """B3.6: whoever replies too late is told, and the connection goes on."""
    with pair.connected() as (client, port):
        asking = Worker(client.send, b"x", reply_size=1, timeout=0.2)
        message = port.get()
        with refused(STATUS_TIMEOUT):
            asking.result()
        with refused(STATUS_FLT_NO_WAITER_FOR_REPLY):
            port.reply(message.id, b"1")
        assert message.reply(b"1") is False
        asking = Worker(client.send, b"y", reply_size=1, timeout=FOR_EVER)
        port.get().reply(b"2")
        assert asking.result() == b"2"


def test_a_reply_that_is_too_long(pair: Pair) -> None:
    """B3.7: its beginning is there, the program is not told."""
    with pair.connected() as (client, port):
        asking = Worker(client.exchange, b"x", 2, FOR_EVER)
        assert port.get().reply(b"12345") is True
        assert asking.result() == (STATUS_BUFFER_OVERFLOW, b"12")
        asking = Worker(client.send, b"x", reply_size=2, timeout=FOR_EVER)
        port.get().reply(b"12345")
        with refused(STATUS_BUFFER_OVERFLOW):
            asking.result()


def test_a_reply_with_a_status(pair: Pair) -> None:
    """B3.7"""
    with pair.connected() as (client, port):
        asking = Worker(client.exchange, b"x", 10, FOR_EVER)
        port.get().reply(b"why", STATUS_VIRUS_INFECTED)
        assert asking.result() == (STATUS_VIRUS_INFECTED, b"why")
        asking = Worker(client.send, b"x", 10, FOR_EVER)
        port.get().reply(b"", STATUS_VIRUS_INFECTED)
        with refused(STATUS_VIRUS_INFECTED):
            asking.result()


def test_the_longest_message_and_a_longer_one(pair: Pair) -> None:
    """B3.15"""
    with pair.connected(message=lambda client, data, room: data) as (client, port):
        longest = os.urandom(port_wire.MAX_BODY)
        asking = Worker(client.send, longest, len(longest), FOR_EVER)
        message = port.get()
        assert message.data == longest
        message.reply(longest)
        assert asking.result() == longest
        assert port.send(longest) == longest
        for data, reply_size in ((longest + b"x", None), (b"", len(longest) + 1), (b"", -1)):
            with refused(STATUS_INSUFFICIENT_RESOURCES):
                client.send(data, reply_size, FOR_EVER)
        with pytest.raises(ValueError, match="more than a message carries"):
            port.send(longest + b"x")


def test_more_is_asked_for_than_the_socket_holds(pair: Pair) -> None:
    """Messages that find no room in the socket follow as the program takes them, without a further request of its."""
    with pair.connected() as (client, port):
        big = bytes(port_wire.MAX_BODY)
        for _ in range(16):
            port._socket.send(pack(Kind.GET))
            port._conversation._asked += 1
        until(lambda: client._gets == 16)
        senders = [Worker(client.send, big, timeout=FOR_EVER) for _ in range(16)]
        until(lambda: client._number == 16 and client._no_room)
        for _ in range(16):
            assert len(port._socket.recv(port_wire.MAX_FRAME)) == port_wire.MAX_FRAME
        for each in senders:
            each.result()


def test_many_threads_at_both_ends(pair: Pair) -> None:
    """Every reply comes to the message it answers."""
    with pair.connected() as (client, port):
        def answering() -> None:
            for message in port:
                message.reply(message.data[::-1])

        def asking(name: int) -> None:
            for index in range(100):
                data = b"%d:%d" % (name, index)
                assert client.send(data, 20, FOR_EVER) == data[::-1]

        answerers = [Worker(answering) for _ in range(3)]
        for each in [Worker(asking, name) for name in range(6)]:
            each.result(60)
        client.close()
        for each in answerers:
            each.result()


# ---- how a wait ends -------------------------------------------------------------------------------------------------

def test_the_program_leaves(pair: Pair) -> None:
    """B3.8, B3.10: whoever waits is told at once, and the callback once, behind everything else."""
    with pair.connected() as (client, port):
        taken = Worker(client.send, b"taken", 1, FOR_EVER)
        port.get()
        waiting = Worker(client.send, b"not taken", 1, FOR_EVER)
        until(lambda: client._queue)
        port.close()
        for each in (taken, waiting):
            with refused(STATUS_PORT_DISCONNECTED):
                each.result()
        until(lambda: len(pair.told) == 2)
        assert pair.told == [("connect", b""), ("disconnect", b"")]
        with refused(STATUS_PORT_DISCONNECTED):
            client.send(b"x")
        assert not client.connected and client.server.clients == ()
        with refused(STATUS_PORT_DISCONNECTED):
            client.server.send(b"x")


def test_the_program_is_killed(pair: Pair, port_directory: Path) -> None:
    """B3.8"""
    server = pair.open()
    code = (
        f"from stackfs import filterlib, runtime_directory; runtime_directory.ROOT = {runtime_directory.ROOT!r}\n"
        f"with filterlib.connect({NAME!r}, owner={os.geteuid()}) as port:\n"
        "    port.get(); print('asked', flush=True); port.get()"
    )
    if os.geteuid() != 0:
        code = code.replace("runtime_directory.ROOT =", "runtime_directory.path = lambda:")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        until(lambda: server.clients)
        asking = Worker(server.send, b"x", 1, FOR_EVER)
        assert program.stdout.readline() == b"asked\n"
        assert server.clients[0].pid == program.pid
        program.kill()
        with refused(STATUS_PORT_DISCONNECTED):
            asking.result()
    until(lambda: not server.clients)


def test_the_filter_closes_the_connection(pair: Pair) -> None:
    """B3.10: it is not told what it did itself."""
    with pair.connected() as (client, port):
        asking = Worker(client.send, b"x", 1, FOR_EVER)
        port.get()
        getting = Worker(port.get)
        client.close()
        for each in (asking, getting):
            with refused(STATUS_PORT_DISCONNECTED):
                each.result()
        assert list(port) == []
        until(lambda: not client.server.clients)
    until(lambda: not port_threads()[1:])
    assert pair.told == [("connect", b"")]


def test_a_closed_port_keeps_its_connections(pair: Pair) -> None:
    """B3.9"""
    with pair.connected() as (client, port):
        client.server.close()
        with refused(STATUS_OBJECT_NAME_NOT_FOUND):
            filterlib.connect(NAME)
        asking = Worker(client.send, b"x", 1, FOR_EVER)
        port.get().reply(b"1")
        assert asking.result() == b"1"
        with pair.connected() as (_, other):       # the name is free again
            assert other.name == NAME
            assert sorted(each.closed for each in pair.ports.ports) == [False, True]


def test_the_end_of_all_ports(pair: Pair) -> None:
    """B3.12: what waits goes on, callbacks under way are waited for, programs are shown out, and no port is opened."""
    begun, may_end = threading.Event(), threading.Event()

    def slow(client: Any, data: bytes, room: int) -> bytes:
        begun.set()
        assert may_end.wait(10)
        pair.told.append(("message", data))
        return b""

    with pair.connected(message=slow) as (client, port):
        asking = Worker(client.send, b"x", 1, FOR_EVER)
        port.get()
        sending = Worker(port.send, b"hello")
        assert begun.wait(10)
        closing = Worker(pair.ports.close)
        with refused(STATUS_PORT_DISCONNECTED):
            asking.result()
        time.sleep(0.05)
        assert closing.is_alive()
        may_end.set()
        closing.result()
        assert pair.told == [("connect", b""), ("message", b"hello"), ("disconnect", b"")]
        with refused(STATUS_PORT_DISCONNECTED):
            sending.result()
        with refused(STATUS_FLT_DELETING_OBJECT):
            pair.open()


def test_a_callback_that_does_not_return_is_left_behind_in_the_end(pair: Pair) -> None:
    """A process that ends waits only so long (B3.12)."""
    begun, may_end = threading.Event(), threading.Event()

    def stuck(client: Any, data: bytes, room: int) -> None:
        begun.set()
        may_end.wait(10)

    with pair.connected(message=stuck) as (_, port):
        sending = Worker(port.send)
        assert begun.wait(10)
        before = time.monotonic()
        pair.ports.close(0.1)
        assert time.monotonic() - before < 5
        may_end.set()
        with refused(STATUS_PORT_DISCONNECTED):
            sending.result()


# ---- messages of the program -----------------------------------------------------------------------------------------

def test_a_program_sends_a_message(pair: Pair) -> None:
    """B3.11"""
    def answer(client: Any, data: bytes, room: int) -> bytes | None:
        if data == b"fail":
            raise FltError(STATUS_VIRUS_INFECTED, "no")
        if data == b"bug":
            raise KeyError("x")
        return None if data == b"nothing" else data * 2

    with pair.connected(message=answer) as (_, port):
        assert port.send(b"abc") == b"abcabc"
        assert port.send(b"abc", room=6) == b"abcabc"
        assert port.send(b"nothing") == b""
        for data, room, status in (
            (b"abc", 5, STATUS_BUFFER_TOO_SMALL),
            (b"fail", 10, STATUS_VIRUS_INFECTED),
            (b"bug", 10, STATUS_UNSUCCESSFUL),
        ):
            with refused(status):
                port.send(data, room)
    with pair.connected("\\Deaf") as (_, port), refused(STATUS_FLT_NO_HANDLER_DEFINED):
        port.send(b"x")


def test_a_message_callback_may_ask_the_same_program(pair: Pair) -> None:
    """B3.11: while it waits somebody else reads. Every thread of the connection may do so at once."""
    def ask_back(client: Any, data: bytes, room: int) -> bytes:
        answer: bytes = client.send(data, 10, FOR_EVER)
        return answer

    with pair.connected(message=ask_back) as (_, port):
        sending = [Worker(port.send, b"%d" % index) for index in range(client_port.THREADS - 1)]
        for _ in sending:
            message = port.get()
            message.reply(b"to " + message.data)
        assert [each.result() for each in sending] == [b"to %d" % index for index in range(client_port.THREADS - 1)]


# ---- connecting ------------------------------------------------------------------------------------------------------

def test_the_connect_callback_decides(pair: Pair) -> None:
    """B3.4"""
    def decide(client: Any) -> int | None:
        pair.told.append(("connect", client.context))
        if client.context == b"bug":
            raise KeyError("x")
        if client.context == b"error":
            raise FltError(STATUS_VIRUS_INFECTED, "no")
        client.cookie = client.context
        return int(STATUS_ACCESS_DENIED) if client.context == b"no" else None

    server = pair.open(connect=decide)
    for context, status in (
        (b"no", STATUS_ACCESS_DENIED),
        (b"error", STATUS_VIRUS_INFECTED),
        (b"bug", STATUS_UNSUCCESSFUL),
    ):
        with refused(status):
            filterlib.connect(NAME, context)
    context = bytes(port_wire.MAX_CONTEXT)
    with filterlib.connect(NAME, context):
        assert server.clients[0].cookie == context
    until(lambda: not server.clients)
    assert [each for each, _ in pair.told] == ["connect"] * 4 + ["disconnect"]      # of those let in alone
    with refused(STATUS_INVALID_PARAMETER):
        filterlib.connect(NAME, context + b"x")


def test_no_more_connections_than_are_allowed(pair: Pair) -> None:
    """B3.4"""
    server = pair.open(max_connections=2, disconnect=lambda client: time.sleep(0.03))
    with filterlib.connect(NAME), filterlib.connect(NAME), refused(STATUS_CONNECTION_COUNT_LIMIT):
        filterlib.connect(NAME)
    for _ in range(3):                  # who has left does not stand in the way, though he is still being shown out
        filterlib.connect(NAME).close()
        with filterlib.connect(NAME), filterlib.connect(NAME):
            assert len(server.clients) == 2
    for number in (0, -1):
        with refused(STATUS_INVALID_PARAMETER):
            pair.open("\\None", max_connections=number)


def test_names(pair: Pair) -> None:
    """B3.1"""
    pair.open()
    with refused(STATUS_OBJECT_NAME_COLLISION):
        pair.open()
    with refused(STATUS_OBJECT_NAME_COLLISION):
        Pair().open()                   # of another filter of the process
    for name in ("Port", "\\", "", "\\" + "x" * 255, "\\a\nb"):
        with refused(STATUS_OBJECT_NAME_INVALID):
            pair.open(name)
    pair.open("\\" + "x" * 254)
    filterlib.connect("\\" + "x" * 254).close()
    for name in ("\\Other", "\\testport"):
        with refused(STATUS_OBJECT_NAME_NOT_FOUND) as caught:
            filterlib.connect(name)
        assert caught.value.exit_code is ExitCode.NOT_FOUND


def test_a_name_that_only_its_digest_has_in_common(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_sockets, "digest", lambda purpose: "12345678")
    pair.open()
    with refused(STATUS_OBJECT_NAME_NOT_FOUND):
        filterlib.connect("\\Other")


def test_which_volume_is_meant(pair: Pair, port_directory: Path) -> None:
    """B3.1: a volume's name, or its mountpoint."""
    pair.open()
    for volume in ("data", "/mnt/data", "more"):
        with filterlib.connect(NAME, volume=volume):
            pass
        until(lambda: not pair.ports.ports[0].clients)
    for volume in ("other", "/mnt/other"):
        with refused(STATUS_OBJECT_NAME_NOT_FOUND):
            filterlib.connect(NAME, volume=volume)
    twin = port_directory / "stackfs-ports" / runtime_sockets.socket_name(NAME, 1)
    os.link(port_directory / "stackfs-ports" / runtime_sockets.socket_name(NAME, os.getpid()), twin)
    with pytest.raises(StackfsError, match="several volumes have a port") as caught:
        filterlib.connect(NAME)
    assert caught.value.exit_code is ExitCode.USAGE
    filterlib.connect(NAME, volume="data").close()
    twin.unlink()


# ---- who may connect -------------------------------------------------------------------------------------------------

def as_user(code: str, groups: tuple[int, ...] = ()) -> str:
    """Run code as nobody; what it prints. `port()` connects."""
    begin = (
        "from stackfs import filterlib, runtime_directory as r\n"
        f"r.ROOT, r.USERS = {runtime_directory.ROOT!r}, '/nowhere'\n"
        "from stackfs.errors import *\n"
        "def port():\n"
        f"    try: filterlib.connect({NAME!r}).close(); return 'in'\n"
        "    except FltError as error: return error.status_text\n"
        "    except StackfsError as error: return error.exit_code.name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + code], user=NOBODY, group=NOBODY, extra_groups=groups, cwd="/",
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_root
def test_who_may_connect(pair: Pair, port_directory: Path) -> None:
    """B3.3: as a rule nobody but the daemon's user and root; then whom the descriptor names."""
    directory = port_directory / "stackfs-ports"
    for allow, groups, outcome, mode in (
        (None, (), "PERMISSION", 0o600),
        (SecurityDescriptor(), (), "PERMISSION", 0o600),
        (SecurityDescriptor(users={0, NOBODY}), (), "in", 0o666),
        (SecurityDescriptor(users={0, 4242}), (), "0xC0000022", 0o666),
        (SecurityDescriptor(groups={NOBODY}), (), "in", 0o666),
        (SecurityDescriptor(groups={4242}), (), "0xC0000022", 0o666),
        (SecurityDescriptor(groups={4242}), (17, 4242), "in", 0o666),
        (SecurityDescriptor(everyone=True), (), "in", 0o666),
    ):
        server = pair.open(allow=allow)
        entry, = directory.iterdir()
        assert stat.S_IMODE(entry.stat().st_mode) == mode
        assert as_user("print(port())", groups) == outcome, allow
        until(lambda server=server: not server.clients)
        server.close()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


@needs_root
def test_root_is_no_exception(pair: Pair) -> None:
    pair.open(allow=SecurityDescriptor(users={NOBODY}))
    with refused(STATUS_ACCESS_DENIED):
        filterlib.connect(NAME)


@needs_root
def test_another_users_port_is_only_looked_for_by_his_name(pair: Pair, port_directory: Path) -> None:
    """B3.1: root is not led to a program that somebody else has put under a name he knows."""
    directory = Path(runtime_directory.ports(NOBODY))
    directory.mkdir(parents=True)
    for each in (directory.parent, directory):
        os.chown(each, NOBODY, NOBODY)
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        path = str(directory / runtime_sockets.socket_name(NAME, os.getpid()))
        listener.bind(path)
        os.chown(path, NOBODY, NOBODY)
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1000)
                connection.send(pack(Kind.CONNECTED))
                ended.wait(10)

        answering = Worker(answer)
        with refused(STATUS_OBJECT_NAME_NOT_FOUND):
            filterlib.connect(NAME)
        with filterlib.connect(NAME, owner=NOBODY):
            pass
        ended.set()
        answering.result()
    os.chown(directory, 0, 0)
    with pytest.raises(StackfsError, match="belongs to user 0"):
        filterlib.connect(NAME, owner=NOBODY)


@needs_root
def test_a_users_own_port(pair: Pair, port_directory: Path) -> None:
    """B3.1, B3.3: it lies in his own directory; he reaches it by its name, root by his, and nobody else."""
    base = Path(runtime_directory.USERS) / str(NOBODY)
    base.mkdir(parents=True)
    base.chmod(0o700)
    os.chown(base, NOBODY, NOBODY)
    code = (
        "import os, sys\n"
        "from stackfs import filterlib, runtime_directory\n"
        "from stackfs.ports import FilterPorts\n"
        f"runtime_directory.USERS = {runtime_directory.USERS!r}\n"
        f"port = FilterPorts('f', tuple).open({NAME!r}, message=lambda client, data, room: str(client.uid).encode())\n"
        f"with filterlib.connect({NAME!r}) as own: uid = own.send().decode()\n"
        "print(uid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]},
    ) as daemon:  # fmt: skip
        assert daemon.stdin is not None and daemon.stdout is not None
        assert daemon.stdout.readline() == f"{NOBODY}\n"
        with refused(STATUS_OBJECT_NAME_NOT_FOUND):
            filterlib.connect(NAME)
        with filterlib.connect(NAME, owner=NOBODY) as port:
            assert (port.uid, port.send()) == (NOBODY, b"0")
        daemon.stdin.close()
    (base / "stackfs-ports" / runtime_sockets.socket_name(NAME, daemon.pid)).unlink()


def test_a_directory_that_others_can_write_is_refused(port_directory: Path) -> None:
    (port_directory / "stackfs-ports").mkdir()
    (port_directory / "stackfs-ports").chmod(0o775)
    with pytest.raises(StackfsError, match="has mode 0775: it must be yours alone, mode 0755"):
        Pair().open()


def test_what_a_dead_process_left_is_removed(pair: Pair, port_directory: Path) -> None:
    directory = port_directory / "stackfs-ports"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    pair.open("\\First")
    left = directory / runtime_sockets.socket_name(NAME, process.pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(left))
    with refused(STATUS_OBJECT_NAME_NOT_FOUND):
        filterlib.connect(NAME)
    assert not left.exists()            # whoever may, and finds it so
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(left))
    pair.open()
    assert not left.exists()


def test_nothing_is_left_of_a_connection(pair: Pair) -> None:
    server = pair.open(message=lambda client, data, room: data)

    def once() -> None:
        with filterlib.connect(NAME) as port:
            port.send(b"x")
        until(lambda: not server._all)

    once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        once()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(port_threads()) <= 2         # who accepts, and one that is leaving


# ---- programs that break the protocol --------------------------------------------------------------------------------

def raw() -> socket.socket:
    path = f"{runtime_directory.ports()}/{runtime_sockets.socket_name(NAME, os.getpid())}"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(10)
    connection.connect(path)
    return connection


HELLO = pack(Kind.CONNECT, number=port_wire.VERSION, body=pack_connect(NAME, "", b""))


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("frame", [
    b"x" * 31,
    pack(Kind.CONNECTED),
    pack(Kind.MESSAGE),
    b"\x02" + bytes(27) + b"\x01" + bytes(3),           # a reserved field
    HELLO,                                              # a second one
    pack(99),                                           # type: ignore[arg-type]
    bytes(port_wire.MAX_FRAME + 1),
])  # fmt: skip
def test_a_frame_that_is_none_ends_the_connection(pair: Pair, frame: bytes) -> None:
    pair.open()
    with raw() as connection:
        connection.send(HELLO)
        assert port_wire.unpack(connection.recv(1000), port_wire.FROM_FILTER).kind is Kind.CONNECTED
        connection.send(frame)
        assert ended(connection)
    until(lambda: len(pair.told) == 2)


@pytest.mark.parametrize("frame", [
    pack(Kind.GET),
    pack(Kind.CONNECT, number=port_wire.VERSION, body=b"\x01\0\0"),
    pack(Kind.CONNECT, number=port_wire.VERSION, body=b"\xff\xff\0\0\0\0\0\0abc"),
    pack(Kind.CONNECT, number=port_wire.VERSION, body=pack_connect(NAME, "", b"") + b"x"),
    pack(Kind.CONNECT, number=port_wire.VERSION, body=pack_connect("\\" + "x" * 300, "", b"")),
    b"",
])  # fmt: skip
def test_who_does_not_say_to_what_is_not_let_in(pair: Pair, frame: bytes) -> None:
    pair.open()
    with raw() as connection:
        connection.send(frame)
        assert ended(connection)
    assert pair.told == []
    filterlib.connect(NAME).close()


def test_another_version_is_told_so(pair: Pair) -> None:
    pair.open()
    with raw() as connection:
        connection.send(pack(Kind.CONNECT, number=77, body=pack_connect(NAME, "", b"")))
        assert port_wire.unpack(connection.recv(1000), port_wire.FROM_FILTER).status == 0xC00000BB


def test_who_says_nothing_is_dropped(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "CONNECT_LIMIT", 0.05)
    pair.open()
    with raw() as connection:
        assert ended(connection)


def test_so_many_may_stand_at_the_door(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "HALF_OPEN", 3)
    server = pair.open()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(raw())
        until(lambda: len(server._all) == 3)
        with raw() as connection:
            assert ended(connection)
    until(lambda: not server._all)
    filterlib.connect(NAME).close()


def test_too_many_requests_for_messages(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_port, "MAX_GETS", 10)
    pair.open()
    with raw() as connection:
        connection.send(HELLO)
        connection.recv(1000)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(12):
                connection.send(pack(Kind.GET))
        assert ended(connection)


def test_answers_that_are_not_taken(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that asks and does not read harms itself alone."""
    monkeypatch.setattr(client_port, "SEND_LIMIT", 0.1)
    server = pair.open(message=lambda client, data, room: bytes(room), max_connections=2)
    with raw() as connection, filterlib.connect(NAME) as port:
        connection.send(HELLO)
        connection.recv(1000)
        until(lambda: len(server.clients) == 2)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(20):
                connection.send(pack(Kind.SEND, size=port_wire.MAX_BODY))
        until(lambda: len(server.clients) == 1)
        assert port.send(b"") == bytes(port_wire.MAX_BODY)


# ---- on the trio loop ------------------------------------------------------------------------------------------------

def test_the_loop_does_not_wait(pair: Pair) -> None:
    """B3.8: send() is refused there, send_async() lets other tasks go on."""
    with pair.connected() as (client, port):
        async def main() -> None:
            with refused(STATUS_POSSIBLE_DEADLOCK):
                client.send(b"x", timeout=1)
            answer: list[bytes] = []
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    async def ask() -> None:
                        answer.append(await client.send_async(b"x", 5, FOR_EVER))

                    nursery.start_soon(ask)
                    message = await trio.to_thread.run_sync(port.get)
                    assert answer == []
                    await trio.to_thread.run_sync(message.reply, b"yes")
            assert answer == [b"yes"]

        trio.run(main)


def test_a_cancelled_message_is_taken_back(pair: Pair) -> None:
    with pair.connected() as (client, port):
        async def main() -> None:
            with trio.move_on_after(0.05) as scope:
                await client.send_async(b"cancelled", 5)
            assert scope.cancelled_caught
            with refused(STATUS_TIMEOUT):
                await client.server.send_async(b"too late", 5, timeout=0.05)
            assert await client.exchange_async(bytes(port_wire.MAX_BODY + 1), 1, None) == (
                STATUS_INSUFFICIENT_RESOURCES, b"")
            with trio.move_on_after(FOR_EVER):
                telling = Worker(client.send, b"this one", timeout=FOR_EVER)
                assert (await trio.to_thread.run_sync(port.get)).data == b"this one"
                telling.result()

        trio.run(main)
