"""A filter's side of one connection to one of its ports: messages out, replies in, and messages of the program's own.

The connection's threads (docs/semantics.md, B3): one reads, and further ones, up to THREADS, are started while message
callbacks run: as with the device, nothing is served while nobody reads. A callback of the stack that sends a message
waits in its own thread, on a lock, without the GIL, until the message has been taken or answered, the time is up, or
the connection has ended; ten times a second it looks whether the program whose operation it is about is being killed
(requestor_is_terminating). It holds nothing that anybody needs to end it. The trio loop must never wait, so send() is
refused there (STATUS_POSSIBLE_DEADLOCK); send_async() is for it.

Who may touch what: the queue, the messages that wait for a reply, and sending on the socket, under `_lock`: the socket
does not block, so that the lock is held for one system call at most. `_reading` belongs to the thread that reads. No
lock is held while a callback runs.
"""

from __future__ import annotations

import errno
import functools
import operator
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog

from stackfs.cext.ntstatus import NtStatus, is_success, status_name
from stackfs.cext.pending import interrupted_requestors
from stackfs.errors import FltError
from stackfs.port_wire import FROM_PROGRAM, MAX_BODY, MAX_FRAME, REPLY_HEADER, Frame, Kind, WireError, pack, unpack

if TYPE_CHECKING:
    from stackfs.ports import ServerPort
    from stackfs.runtime_sockets import Peer

log = structlog.get_logger("stackfs.ports")

SUCCESS: Final = 0
TIMEOUT: Final = int(NtStatus.STATUS_TIMEOUT)
BUFFER_OVERFLOW: Final = int(NtStatus.STATUS_BUFFER_OVERFLOW)
DISCONNECTED: Final = int(NtStatus.STATUS_PORT_DISCONNECTED)
TERMINATING: Final = int(NtStatus.STATUS_THREAD_IS_TERMINATING)
NO_RESOURCES: Final = int(NtStatus.STATUS_INSUFFICIENT_RESOURCES)

SEND_LIMIT: Final = 10.0
"""Seconds in which a program must take the answer to what it asked."""
_HARMLESS = (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
             signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)  # fmt: skip
HARMLESS: Final = sum(1 << number - 1 for number in _HARMLESS)
"""Signals that end nobody, as /proc/TID/status writes them."""
LOOK_AFTER: Final = 0.1
"""Seconds between two looks at who is interrupted."""
THREADS: Final = 8
"""That serve one connection at once."""
MAX_GETS: Final = 4096
"""Messages that a program may have asked for and not yet got."""


class _Message:
    """One that was sent: queued, then with the program, then done. All but `body` under the ClientPort's lock."""

    __slots__ = ("body", "done", "number", "reply", "reply_size", "status", "tell")

    def __init__(self, number: int, body: bytes, reply_size: int | None, tell: Callable[[], object]) -> None:
        self.number = number
        self.body = body
        self.reply_size = reply_size
        self.tell = tell
        self.done = False
        self.status = SUCCESS
        self.reply = b""


class ClientPort:
    """A program's connection, as the filter has it. pid, uid and gid are whose; context: what the program handed over.

    `cookie` is the filter's own.
    """

    def __init__(self, server: ServerPort, connection: socket.socket, peer: Peer) -> None:
        self.server = server
        self.pid, self.uid, self.gid = peer
        self.context = b""
        self.cookie: Any = None
        self._socket = connection
        self._socket.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._queue: deque[_Message] = deque()
        self._waiting: dict[int, _Message] = {}
        self._gets = 0
        self._number = 0
        self._no_room = False
        self._ended = False
        self._closed = False
        self._reading = threading.Lock()
        self._buffer = bytearray(MAX_FRAME + 1)
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._left = 0
        self._over = threading.Event()
        """No callback of this connection runs any more, or ever will."""

    def __repr__(self) -> str:
        return f"<ClientPort of process {self.pid} at {self.server.name}>"

    @property
    def connected(self) -> bool:
        return not self._ended

    @property
    def leaving(self) -> bool:
        """The program has closed its end, or died, or the connection has ended otherwise."""
        with self._lock:
            if self._ended:
                return True
            waiting = select.poll()
            waiting.register(self._socket, 0)
            return bool(waiting.poll(0))

    # --- sending ----------------------------------------------------------------------------------------------------

    def send(self, data: bytes, reply_size: int | None = None, timeout: float | None = None) -> bytes:
        """FltSendMessage: the program's reply, of at most `reply_size` bytes; b"" where none is wanted (None).

        Without a reply it returns when the program has taken the message. `timeout`: seconds, for both together; None:
        for ever. FltError with STATUS_TIMEOUT, STATUS_PORT_DISCONNECTED, STATUS_BUFFER_OVERFLOW (the reply is too
        long), STATUS_INSUFFICIENT_RESOURCES (the message is too long), STATUS_POSSIBLE_DEADLOCK (on the trio thread),
        STATUS_THREAD_IS_TERMINATING (in a callback, whose requestor is being killed), or the failure that the program
        replied with (B3.5 to B3.8).
        """
        return _checked(self, *self.exchange(data, reply_size, timeout))

    async def send_async(self, data: bytes, reply_size: int | None = None, timeout: float | None = None) -> bytes:
        """send() for the trio loop: other tasks go on meanwhile. Cancelling it takes the message back."""
        return _checked(self, *await self.exchange_async(data, reply_size, timeout))

    def exchange(self, data: bytes, reply_size: int | None, timeout: float | None) -> tuple[int, bytes]:
        """send(), with the status as a value: (NTSTATUS, reply)."""
        _check_timeout(timeout)
        if _on_trio():
            return int(NtStatus.STATUS_POSSIBLE_DEADLOCK), b""
        told = threading.Lock()
        told.acquire()
        message = self._post(data, reply_size, told.release)
        end = None if timeout is None else time.monotonic() + timeout
        looks = interrupted_requestors() is not None
        while not told.acquire(timeout=_until(end, looks)):
            if looks and requestor_is_terminating():
                self._withdraw(message, TERMINATING)
            elif end is not None and time.monotonic() >= end:
                self._withdraw(message)
        return message.status, message.reply

    async def exchange_async(self, data: bytes, reply_size: int | None, timeout: float | None) -> tuple[int, bytes]:
        import trio

        _check_timeout(timeout)
        event, token = trio.Event(), trio.lowlevel.current_trio_token()

        def tell() -> None:
            try:
                token.run_sync_soon(event.set)
            except trio.RunFinishedError:
                pass

        message = self._post(data, reply_size, tell)
        try:
            with trio.move_on_after(float("inf") if timeout is None else timeout):
                await event.wait()
        finally:
            self._withdraw(message)
        return message.status, message.reply

    def _post(self, data: bytes, reply_size: int | None, tell: Callable[[], object]) -> _Message:
        with self._lock:
            self._number += 1
            message = _Message(self._number, bytes(data), reply_size, tell)
            if len(message.body) > MAX_BODY or not 0 <= (reply_size or 0) <= MAX_BODY:
                self._finish(message, NO_RESOURCES)
            elif self._ended:
                self._finish(message, DISCONNECTED)
            else:
                self._queue.append(message)
                self._deliver()
        return message

    def _withdraw(self, message: _Message, status: int = TIMEOUT) -> None:
        """Its sender waits no longer: that is its status, unless it has been answered meanwhile."""
        with self._lock:
            if message.done:
                return
            self._finish(message, status)
            if self._waiting.pop(message.number, None) is None:
                self._queue.remove(message)

    def _deliver(self) -> None:
        """Under the lock: hand on what is queued, as far as the program waits for it."""
        while self._queue and self._gets:
            message = self._queue[0]
            size = 0 if message.reply_size is None else REPLY_HEADER + message.reply_size
            frame = pack(Kind.MESSAGE, message=message.number, size=size, body=message.body)
            try:
                self._socket.send(frame, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._no_room = True
                os.eventfd_write(self._wake, 1)
                return
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET):
                    return              # the reading thread finds out, and ends what waits
                self._queue.popleft()
                self._finish(message, NO_RESOURCES)
                continue
            self._queue.popleft()
            self._gets -= 1
            if message.reply_size is None:
                self._finish(message, SUCCESS)
            else:
                self._waiting[message.number] = message

    @staticmethod
    def _finish(message: _Message, status: int, reply: bytes = b"") -> None:
        if not message.done:
            message.done, message.status, message.reply = True, status, reply
            message.tell()                  # its sender looks at the others when it has been told, or under the lock

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """FltCloseClientPort: the connection ends, and with it whatever waits on it. From any thread; it does not wait.

        Of a connection that was still there the disconnect callback is not told: who closes, knows (B3.10).
        """
        with self._lock:
            self._closed = True
        self._cut()

    def _cut(self) -> None:
        with self._lock:
            self._ended = True
            messages = [*self._queue, *self._waiting.values()]
            self._queue.clear()
            self._waiting.clear()
            for message in messages:
                self._finish(message, DISCONNECTED)
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    # --- serving ----------------------------------------------------------------------------------------------------

    def _start_thread(self, target: Callable[[], None]) -> bool:
        thread = threading.Thread(target=target, name="stackfs-port", daemon=True)
        with self._lock:
            self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError:            # no more threads are to be had: those there are go on
            with self._lock:
                self._threads.remove(thread)
            return False
        return True

    def _begin(self) -> None:
        """The connection's first thread: lets the program in, or sends it away."""
        status = self.server._admit(self)
        if status is None or not is_success(status):
            if status is not None:
                self._answer(pack(Kind.CONNECTED, status=status))
            self._cut()
            self._close_socket()
            self._over.set()
            return
        self._answer(pack(Kind.CONNECTED))
        self._serve()

    def _serve(self) -> None:
        """Each of the connection's threads; the last shows the program out."""
        while True:
            with self._reading:
                frame = self._next()
                more = frame is not None and frame.kind is Kind.SEND and self._needs_reader()
            if frame is None:
                break
            if more:
                self._start_thread(self._serve)
            self._handle(frame)
        with self._lock:
            self._left += 1
            last = self._left == len(self._threads)
        if last:
            self._close_socket()
            self.server._gone(self)
            self._over.set()

    def _needs_reader(self) -> bool:
        """A message callback is about to run: does nobody else read then?"""
        with self._lock:
            self._busy += 1
            return self._busy == len(self._threads) < THREADS

    def _close_socket(self) -> None:
        with self._lock:                # nobody sends on a number that is somebody else's by now
            self._ended = True
            self._socket.close()
            os.close(self._wake)

    def _next(self) -> Frame | None:
        """The next frame; None: the connection has ended, or sent what is none."""
        while not self._ended:
            data = self._receive(None)
            if data:
                try:
                    return unpack(data, FROM_PROGRAM)
                except WireError as error:
                    log.info("a program broke a port's protocol", port=self.server.name, pid=self.pid, error=str(error))
            self._cut()
        return None

    def _receive(self, deadline: float | None) -> bytes:
        """One packet; b"": the end. TimeoutError: not before the deadline."""
        waiting = select.poll()
        while True:
            waiting.register(self._socket, select.POLLIN | (select.POLLOUT if self._no_room else 0))
            waiting.register(self._wake, select.POLLIN)
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            events = dict(waiting.poll(left))
            if not events:
                raise TimeoutError
            if self._wake in events:
                os.eventfd_read(self._wake)
            if events.get(self._socket.fileno(), 0) & select.POLLOUT:
                with self._lock:
                    self._no_room = False
                    self._deliver()
            if events.get(self._socket.fileno(), 0) & ~select.POLLOUT:
                try:
                    return bytes(memoryview(self._buffer)[: self._socket.recv_into(self._buffer)])
                except BlockingIOError:
                    continue
                except OSError:
                    return b""

    def _answer(self, frame: bytes) -> None:
        """Send what was asked for. It is taken in time, or the connection ends."""
        deadline = time.monotonic() + SEND_LIMIT
        while True:
            with self._lock:
                if self._ended:
                    return
                try:
                    self._socket.send(frame, socket.MSG_NOSIGNAL)
                    return
                except BlockingIOError:
                    pass
                except OSError:
                    break
            waiting = select.poll()
            waiting.register(self._socket, select.POLLOUT)
            if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
                log.info("a program does not take its answers", port=self.server.name, pid=self.pid)
                break
        self._cut()

    def _handle(self, frame: Frame) -> None:
        if frame.kind is Kind.GET:
            with self._lock:
                self._gets += 1
                self._deliver()
            if self._gets > MAX_GETS:
                self._cut()
        elif frame.kind is Kind.REPLY:
            status = self._reply(frame)
            self._answer(pack(Kind.REPLIED, number=frame.number, status=status))
        elif frame.kind is Kind.SEND:
            status, output = self.server._message(self, frame.body, frame.size)
            self._answer(pack(Kind.SENT, number=frame.number, status=status, body=output))
            with self._lock:
                self._busy -= 1
        else:                           # a second CONNECT
            self._cut()

    def _reply(self, frame: Frame) -> int:
        """The status that the program is told: its reply was taken, or nobody waits for it any more."""
        with self._lock:
            message = self._waiting.pop(frame.message, None)
            if message is None:
                return int(NtStatus.STATUS_FLT_NO_WAITER_FOR_REPLY)
            size = message.reply_size or 0
            if len(frame.body) > size:
                self._finish(message, BUFFER_OVERFLOW, frame.body[:size])
            else:
                self._finish(message, frame.status, frame.body)
        return SUCCESS


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout > 0:
        raise ValueError(f"a time-out of {timeout!r} seconds; None waits for ever")


def _until(end: float | None, looks: bool) -> float:
    """Seconds to wait at a time; -1: for ever."""
    if end is None:
        return LOOK_AFTER if looks else -1
    left = min(max(0.0, end - time.monotonic()), threading.TIMEOUT_MAX)
    return min(left, LOOK_AFTER) if looks else left


def requestor_is_terminating() -> bool:
    """Called in a callback: has a signal come that ends the program whose operation it is about? Not any signal:
    a program must not be able to shake off who is asked about it, and live on (B3.8)."""
    return any(_is_terminating(tid) for tid in interrupted_requestors() or ())


def _is_terminating(tid: int) -> bool:
    """A signal waits for the thread that it neither blocks, ignores nor handles, and that ends whoever does not."""
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            lines = dict(line.partition(b":")[::2] for line in file)
        pending, not_fatal = (
            functools.reduce(operator.or_, (int(lines[name], 16) for name in names))
            for names in ((b"SigPnd", b"ShdPnd"), (b"SigBlk", b"SigIgn", b"SigCgt"))
        )
    except (OSError, KeyError, ValueError):         # of another process name space, say
        return False
    return bool(pending & ~not_fatal & ~HARMLESS)


def _on_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


def _checked(port: ClientPort, status: int, reply: bytes) -> bytes:
    if status == TIMEOUT:
        raise FltError(status, f"process {port.pid} did not answer in time at port {port.server.name}")
    if not is_success(status):
        words = f"port {port.server.name}, process {port.pid}: {status_name(status)}"
        raise FltError(status, words)
    return reply
