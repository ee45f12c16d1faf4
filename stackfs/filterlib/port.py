"""A program's end of a communication port: find it, connect to it, get messages, reply to them, send some.

Which port: a name such as \\ScannerPort lies in the ports' directory of the user whose daemon has it
(runtime_directory.ports). A caller's own daemons are looked at first, then root's; whoever wants another user's says
`owner`. The daemon's word is trusted as far as its user is: lengths and kinds are checked, what a message says is the
caller's to judge.

A Port may be used by several threads at once. Whoever waits first reads the socket for all, under `_reading`; what it
has received, and all else of the conversation, is looked at under the lock of `_changed`. Sending takes no lock: a
frame is one packet.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from stackfs import runtime_directory, runtime_sockets
from stackfs.cext.ntstatus import NtStatus, is_success, status_name
from stackfs.errors import ExitCode, FltError, NotAnswering, StackfsError
from stackfs.filterlib.conversation import Conversation, Received
from stackfs.port_wire import (
    FROM_FILTER,
    MAX_BODY,
    MAX_CONTEXT,
    MAX_FRAME,
    VERSION,
    Frame,
    Kind,
    WireError,
    pack,
    pack_connect,
    unpack,
)

T = TypeVar("T")

CONNECT_LIMIT: Final = 2.0
"""Seconds in which a daemon must take a connection."""
ADMIT_LIMIT: Final = 60.0
"""Seconds in which a filter's connect callback must decide."""
_DISCONNECTED: Final = NtStatus.STATUS_PORT_DISCONNECTED
NOBODY_WAITS: Final = (NtStatus.STATUS_FLT_NO_WAITER_FOR_REPLY, NtStatus.STATUS_PORT_DISCONNECTED)


class Message:
    """What a filter sent. `data` is the caller's to judge; `reply_size` None: no reply is expected."""

    __slots__ = ("_port", "data", "id", "reply_size")

    def __init__(self, port: Port, received: Received) -> None:
        self._port = port
        self.id, self.reply_size, self.data = received

    def __repr__(self) -> str:
        return f"<Message {self.id}: {self.data[:32]!r}{'...' if len(self.data) > 32 else ''}>"

    def reply(self, data: bytes = b"", status: int = 0) -> bool:
        """FilterReplyMessage. False: its sender waits no longer (it has a time-out, or has gone), or never did."""
        try:
            self._port.reply(self.id, data, status)
        except FltError as error:
            if error.status not in NOBODY_WAITS:
                raise
            return False
        return True


class Port:
    """A connection to a filter's port; made by connect(). A context manager, and an iterator over its messages.

    pid and uid: the daemon's, as the kernel says. synchronous: one call after the other, as a handle with
    FLT_PORT_FLAG_SYNC_HANDLE has it.
    """

    def __init__(self, name: str, connection: socket.socket, synchronous: bool = False) -> None:
        self.name = name
        self.pid, self.uid, _ = runtime_sockets.peer(connection)
        self._socket = connection
        self._socket.settimeout(None)
        self._conversation = Conversation()
        self._changed = threading.Condition()
        self._reading = False
        self._using = 0
        """Threads that are in a system call on the socket, without the lock."""
        self._closed = False
        self._one_at_a_time: contextlib.AbstractContextManager[object] = (
            threading.Lock() if synchronous else contextlib.nullcontext()
        )

    def __repr__(self) -> str:
        return f"<Port {self.name} of process {self.pid}{' (closed)' if self._closed else ''}>"

    def get(self, timeout: float | None = None) -> Message:
        """FilterGetMessage: the next message. `timeout`: seconds; then TimeoutError, and the message is the next get's.

        FltError with STATUS_PORT_DISCONNECTED: the filter, its volume or the connection has gone.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._one_at_a_time, self._changed:
            frame = self._conversation.want()
            try:
                if frame is not None:
                    self._send(frame)
                return Message(self, self._until(self._next_message, deadline))
            finally:
                self._conversation.unwant()

    def send(self, data: bytes = b"", room: int = MAX_BODY) -> bytes:
        """FilterSendMessage: hand `data` to the filter's message callback; its output, `room` bytes at most.

        FltError: what the callback answered, STATUS_FLT_NO_HANDLER_DEFINED where there is none, or
        STATUS_PORT_DISCONNECTED.
        """
        return self._ask(Kind.SEND, size=min(room, MAX_BODY), body=data).body

    def reply(self, message_id: int, data: bytes = b"", status: int = 0) -> None:
        """FilterReplyMessage. FltError with STATUS_FLT_NO_WAITER_FOR_REPLY: its sender waits no longer."""
        self._ask(Kind.REPLY, message=message_id, status=status, body=data)

    def put_back(self, message: Message) -> None:
        """Undo a get(): the message is the next one's."""
        with self._changed:
            self._conversation.messages.appendleft(Received(message.id, message.reply_size, message.data))
            self._changed.notify_all()

    def close(self) -> None:
        """End the connection: who waits in another thread gets STATUS_PORT_DISCONNECTED. Twice is once."""
        with self._changed:
            if self._closed:
                return
            self._closed = self._conversation.ended = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            while self._using:          # the number may be another file's as soon as it is closed
                self._changed.wait()
            self._socket.close()
            self._changed.notify_all()

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Port:
        """Messages, until the filter or the connection has gone."""
        return self

    def __next__(self) -> Message:
        try:
            return self.get()
        except FltError as error:
            if error.status == _DISCONNECTED:
                raise StopIteration from None
            raise

    # --- how ----------------------------------------------------------------------------------------------------------

    def _ask(self, kind: Kind, *, message: int = 0, status: int = 0, size: int = 0, body: bytes) -> Frame:
        with self._one_at_a_time, self._changed:
            number, frame = self._conversation.ask(kind, message=message, status=status, size=size, body=body)
            try:
                self._send(frame)
                answer = self._until(lambda: self._conversation.answer(number), None)
            finally:
                self._conversation.forget(number)
        return checked(self.name, answer)

    def _next_message(self) -> Received | None:
        return self._conversation.messages.popleft() if self._conversation.messages else None

    def _send(self, frame: bytes) -> None:
        """Under the lock, which it gives up while it sends."""
        if self._conversation.ended:
            raise disconnected(self.name)
        with self._without_the_lock():
            try:
                self._socket.send(frame, socket.MSG_NOSIGNAL)
            except OSError:
                raise disconnected(self.name) from None

    def _until(self, ready: Callable[[], T | None], deadline: float | None) -> T:
        """Under the lock: wait until something is ready, reading the socket if nobody else does."""
        while (found := ready()) is None:
            if self._conversation.ended:
                raise disconnected(self.name)
            if self._reading:
                if not self._changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no message at port {self.name} in time")
                continue
            self._reading = True
            try:
                with self._without_the_lock():
                    data = self._receive(deadline)
            finally:
                self._reading = False
            self._conversation.received(data)
        return found

    @contextlib.contextmanager
    def _without_the_lock(self) -> Iterator[None]:
        """Around a system call on the socket; then everybody looks again."""
        self._using += 1
        self._changed.release()
        try:
            yield
        finally:
            self._changed.acquire()
            self._using -= 1
            self._changed.notify_all()

    def _receive(self, deadline: float | None) -> bytes:
        """One packet; b"": the end. TimeoutError: none before the deadline."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        while True:
            if not waiting.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(f"no message at port {self.name} in time")
            try:
                return self._socket.recv(MAX_FRAME + 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:
                return b""


def connect(
    name: str,
    context: bytes = b"",
    *,
    volume: str | None = None,
    owner: int | None = None,
    synchronous: bool = False,
) -> Port:
    """FilterConnectCommunicationPort: a connection to the port `name`, such as "\\\\ScannerPort".

    context: at most 65535 bytes for the filter's connect callback. volume: a mountpoint or a volume's name, needed only
    where several volumes have such a port. owner: the uid whose daemon it is; as a rule the caller's, else root's.
    FltError: STATUS_OBJECT_NAME_NOT_FOUND, STATUS_CONNECTION_COUNT_LIMIT, STATUS_ACCESS_DENIED, or what the filter's
    connect callback answered; StackfsError: several ports of that name, or one that may not be connected to.
    """
    return Port(name, open_connection(name, context, volume, owner), synchronous)


def open_connection(name: str, context: bytes, volume: str | None, owner: int | None) -> socket.socket:
    """A socket that the filter has let in."""
    if len(context) > MAX_CONTEXT:
        raise FltError(NtStatus.STATUS_INVALID_PARAMETER, f"a context of {len(context)} bytes; {MAX_CONTEXT} are taken")
    on = _volume(volume)
    refused: StackfsError | None = None
    for uid in [owner] if owner is not None else dict.fromkeys((os.geteuid(), 0)):
        problems: list[StackfsError] = []
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(each) for each in _listeners(name, uid, problems)]
            if len(found) > 1 and not on:
                raise StackfsError(f"several volumes have a port {name}: say which one is meant", ExitCode.USAGE)
            for connection in found:
                status = _introduce(connection, name, on, context)
                if is_success(status):
                    stack.pop_all()
                    for other in found:
                        if other is not connection:
                            other.close()
                    return connection
                if status != NtStatus.STATUS_OBJECT_NAME_NOT_FOUND:
                    raise FltError(status, f"port {name} refuses the connection ({status_name(status)})")
        refused = refused or (problems[0] if problems else None)
    if refused is not None:
        raise refused
    where = f" on volume {volume!r}" if volume else ""
    raise FltError(NtStatus.STATUS_OBJECT_NAME_NOT_FOUND, f"there is no port {name}{where}", ExitCode.NOT_FOUND)


def _volume(volume: str | None) -> str:
    if volume and "/" in volume:
        from stackfs.mounting import resolve  # readlink alone: asks no daemon anything

        return resolve(volume)
    return volume or ""


def _listeners(name: str, uid: int, problems: list[StackfsError]) -> list[socket.socket]:
    """A connection to each daemon of the user's that may have such a port; what cannot be used goes to `problems`."""
    try:
        where = runtime_directory.ports(uid)
    except StackfsError:        # no place for sockets, so none of a daemon either
        return []
    try:
        directory = runtime_directory.opened(where, owner=uid, shared=True)
    except FileNotFoundError:
        return []
    except StackfsError as error:
        problems.append(error)
        return []
    connections = []
    try:
        for entry in sorted(os.listdir(directory)):
            if entry.startswith(runtime_sockets.digest(name)) and runtime_sockets.pid_of(entry) is not None:
                try:
                    connection = runtime_sockets.connect(directory, entry, uid, socket.SOCK_SEQPACKET, CONNECT_LIMIT)
                except StackfsError as error:
                    problems.append(error)
                else:
                    connections += [connection] if connection else []
    finally:
        os.close(directory)
    return connections


def _introduce(connection: socket.socket, name: str, volume: str, context: bytes) -> int:
    """Say to what we connect: the status that the filter's side answers."""
    silent = NotAnswering(f"port {name} does not answer (process {runtime_sockets.peer(connection).pid})")
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_BODY)
        connection.settimeout(ADMIT_LIMIT)
        body = pack_connect(name, volume, context)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):        # it may have refused us already
            connection.send(pack(Kind.CONNECT, number=VERSION, body=body), socket.MSG_NOSIGNAL)
        try:
            answer = connection.recv(MAX_FRAME + 1)
        except ConnectionResetError:    # it has not read what we said; what it said itself comes behind the error
            answer = connection.recv(MAX_FRAME + 1)
        frame = unpack(answer, FROM_FILTER)
    except (OSError, WireError):
        raise silent from None
    if frame.kind is not Kind.CONNECTED:
        raise silent
    return frame.status


def checked(name: str, answer: Frame) -> Frame:
    """The answer, if it says success; else FltError."""
    if not is_success(answer.status):
        raise FltError(answer.status, f"port {name}: {status_name(answer.status)}")
    return answer


def disconnected(name: str) -> FltError:
    return FltError(_DISCONNECTED, f"port {name} is disconnected")
