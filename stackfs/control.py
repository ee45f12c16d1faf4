"""The control socket: how fltmc and stackfs speak to the daemon of a mounted volume.

Every daemon listens on one AF_UNIX stream socket in its user's runtime directory (runtime_directory.py); its name is
made of the volume's (runtime_sockets.py).

A message is a 4-byte big-endian length (at most 16 MiB) and that much JSON:

    request   {"verb": "attach", "arguments": {"filter": "audit", "volume": "data"}}
    answer    {"ok": true, "result": ...}
          or  {"ok": false, "error": "one line", "status": NTSTATUS or 0, "exit_code": n}

A connection carries any number of requests, one after the other. File names that are not UTF-8 travel as lone
surrogates (os.fsdecode's), which is why the JSON is read and written by the standard library; its shape is then checked
by msgspec.

Whom to trust: a daemon answers its owner and root (SO_PEERCRED) and nobody else. A client accepts an answer only from
the owner of the directory or from root, checks every type and length, and leaves escaping to whoever shows the text
(cli/tables.py): root may be speaking to a program that another user wrote. Nobody waits for ever: each side has time
limits, but a handler that has begun is never cancelled by its client's leaving, for half an unload is worse than a late
one.

The server runs on the daemon's trio thread and holds no lock. The client is synchronous, imports no trio (start-up
time), and a Client is for one thread.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from stackfs import runtime_directory, runtime_sockets
from stackfs.errors import ExitCode, FltError, NotAnswering, StackfsError
from stackfs.runtime_sockets import socket_name

if TYPE_CHECKING:
    import trio

MAX_MESSAGE = 16 << 20
MAX_SOCKETS = 1024      # that a client looks at in one directory: another user may have filled it

# Seconds. A client's limit covers the whole call; what may have to drain operations first has longer.
CONNECT_LIMIT = 2.0
HELLO_LIMIT = 3.0
CALL_LIMIT = 10.0
SLOW_CALL_LIMIT = 120.0
SLOW_VERBS = frozenset({"load", "unload", "attach", "detach", "umount", "inject"})
# The server's: between two requests, from a request's first byte to its last, and for an answer to be taken.
IDLE_LIMIT = 300.0
RECEIVE_LIMIT = 10.0
SEND_LIMIT = 10.0

_LENGTH = struct.Struct(">I")

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]
Name = Annotated[str, msgspec.Meta(max_length=1024)]
Path = Annotated[str, msgspec.Meta(max_length=4096)]
Line = Annotated[str, msgspec.Meta(max_length=8192)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
T = TypeVar("T")


# ---- the shapes of requests and answers ------------------------------------------------------------------------------

class Request(msgspec.Struct, forbid_unknown_fields=True):
    verb: Name
    arguments: dict[str, Any] = {}


class Answer(msgspec.Struct):
    ok: bool
    result: Any = None
    error: Line = ""
    status: Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 32) - 1)] = 0
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] = 1


class Hello(msgspec.Struct, frozen=True):
    """Which volume a daemon serves. pid and uid are the daemon's own words: the client goes by SO_PEERCRED instead."""

    pid: Count
    uid: Count
    volume_name: Name
    mountpoint: Path
    source: Path
    version: Name


class FilterRow(msgspec.Struct):
    """One line of `fltmc filters`. frame is a number, or "<Legacy>"."""

    name: Name
    instances: Count
    altitude: Name
    frame: Count | Name = 0
    start: Name = ""
    on_error: Name = ""
    failed: bool | Count = False
    state: Name = ""
    """"Registered" (not started), "Filtering" or "Unloading"."""
    held_by: list[Line] = []
    """What an unload under way waits for."""


class InstanceRow(msgspec.Struct):
    """One line of `fltmc instances`. features is the word of SUPPORTED_FS_FEATURES bits."""

    filter: Name
    volume: Path
    altitude: Name
    name: Name
    frame: Count | Name = 0
    features: Count | Name = 0
    status: Name = ""
    bypassed: Count = 0
    """Open files whose reads and writes it would see, were they not bypassed."""
    filesystem_type: Count = 0
    """FLT_FSTYPE_*, of its volume."""


class VolumeRow(msgspec.Struct):
    """One line of `fltmc volumes`. dos_name is the mountpoint, "" for a volume that is not mounted."""

    dos_name: Path
    volume_name: Name
    filesystem: Name = ""
    status: Name = ""
    filesystem_type: Count = 0
    """FLT_FSTYPE_*, of the backing filesystem."""
    frame: Count = 0
    """The highest that has an instance on it."""
    guid_name: Name = ""


class HungUp(NotAnswering):
    """The daemon closed the connection before it answered: what an unmounting daemon may do."""


def _frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(body)} bytes is more than the control socket carries ({MAX_MESSAGE})")
    return _LENGTH.pack(len(body)) + body


# ---- the server ------------------------------------------------------------------------------------------------------

async def serve(handler: Handler, name: str, *, task_status: trio.TaskStatus[str]) -> None:
    """Answer requests for the volume `name` until cancelled; the value given to task_status is the socket's path.

    ``await handler(verb, arguments)`` gives the result: anything msgspec turns into JSON. It says no by raising
    StackfsError (FltError where an NTSTATUS tells more); any other exception is logged and answered as an internal
    error.
    """
    import trio

    directory = runtime_directory.opened(create=True)
    try:
        runtime_sockets.remove_leftovers(directory, socket.SOCK_STREAM)
        entry = socket_name(name, os.getpid())
        listener = runtime_sockets.listen(directory, entry, socket.SOCK_STREAM, 0o600)
        mine = os.stat(entry, dir_fd=directory, follow_symlinks=False)
        try:
            async def connection(stream: trio.SocketStream) -> None:
                await _serve_connection(handler, stream, os.geteuid())

            task_status.started(os.path.join(runtime_directory.path(), entry))
            await trio.serve_listeners(connection, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])
        finally:
            listener.close()
            runtime_sockets.unlink(directory, entry, mine)
    finally:
        os.close(directory)


async def _serve_connection(handler: Handler, stream: trio.SocketStream, owner: int) -> None:
    import trio

    async with stream:
        try:
            if runtime_sockets.peer(stream.socket).uid not in (owner, 0):
                answer = Answer(ok=False, error="only the owner of the volume and root may ask",
                                status=_ACCESS_DENIED, exit_code=ExitCode.PERMISSION)
                await _send(stream, answer)
                return
            while True:
                with trio.move_on_after(IDLE_LIMIT) as idle:
                    first = await stream.receive_some(_LENGTH.size)
                if idle.cancelled_caught or not first:
                    return
                with trio.fail_after(RECEIVE_LIMIT):
                    head = first + await _receive(stream, _LENGTH.size - len(first))
                    length, = _LENGTH.unpack(head)
                    if length > MAX_MESSAGE:
                        await _send(stream, Answer(ok=False, error="the request is too long", exit_code=ExitCode.USAGE))
                        return
                    body = await _receive(stream, length)
                await _send(stream, await _answer(handler, bytes(body)))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError, EOFError):
            return      # a client that went away or stalled has lost only its own answer


async def _receive(stream: trio.SocketStream, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        part = await stream.receive_some(min(count - len(data), 1 << 16))
        if not part:
            raise EOFError
        data += part
    return data


async def _answer(handler: Handler, body: bytes) -> Answer:
    import logging

    try:
        request = msgspec.convert(json.loads(body), Request)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        return Answer(ok=False, error=f"not a request: {error}"[:512], exit_code=ExitCode.USAGE)
    try:
        result = await handler(request.verb, request.arguments)
        return Answer(ok=True, result=msgspec.to_builtins(result, str_keys=True))
    except StackfsError as error:
        status = int(getattr(error, "status", 0)) & 0xFFFFFFFF
        return Answer(ok=False, error=str(error)[:8192], status=status, exit_code=int(error.exit_code))
    except Exception as error:
        logging.getLogger("stackfs.control").exception("the control verb %s failed", request.verb)
        return Answer(ok=False, error=f"internal error in the daemon: {type(error).__name__}: {error}"[:8192],
                      exit_code=ExitCode.FAILURE)


async def _send(stream: trio.SocketStream, answer: Answer) -> None:
    """Also when the daemon is being shut down: the answer to the `umount` that caused it is still sent."""
    import trio

    try:
        data = _frame(msgspec.to_builtins(answer))
    except (ValueError, TypeError, RecursionError) as error:
        data = _frame({"ok": False, "error": f"the answer cannot be sent: {error}"[:512], "exit_code": 1})
    with trio.CancelScope(deadline=trio.current_time() + SEND_LIMIT, shield=True) as limit:
        await stream.send_all(data)
    if limit.cancelled_caught:
        raise trio.TooSlowError


# ---- the client ------------------------------------------------------------------------------------------------------

class Client:
    """A connection to one daemon. Made by daemons(); a context manager; for one thread.

    pid and uid are the kernel's word for who listens; own says whether that is the caller's own daemon.
    """

    hello: Hello

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid, self.uid, _ = runtime_sockets.peer(connection)

    @property
    def own(self) -> bool:
        return self.uid == os.geteuid()

    @property
    def label(self) -> str:
        """What a message calls this daemon; to be escaped like everything a daemon says."""
        return self.hello.mountpoint or self.hello.volume_name if hasattr(self, "hello") else "a daemon"

    def call(self, verb: str, **arguments: Any) -> Any:
        """The result of the daemon's handler. StackfsError (FltError with a status): no; NotAnswering: silence."""
        limit = SLOW_CALL_LIMIT if verb in SLOW_VERBS else CALL_LIMIT
        deadline = time.monotonic() + limit
        self._send(verb, arguments, deadline)
        return self._receive(deadline)

    def rows(self, verb: str, kind: type[T], **arguments: Any) -> list[T]:
        """The result of a listing verb, each row checked."""
        try:
            return msgspec.convert(self.call(verb, **arguments), list[kind])    # type: ignore[valid-type]
        except (msgspec.ValidationError, RecursionError) as error:
            raise NotAnswering(f"{self.label} gave a wrong answer to {verb}: {error}") from None

    def wait_until_gone(self, limit: float) -> bool:
        """Wait for the daemon's process to end; False if it is still there after `limit` seconds."""
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([process], [], [], limit)[0])
        finally:
            os.close(process)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._connection.close()

    def _send(self, verb: str, arguments: dict[str, Any], deadline: float) -> None:
        try:
            self._connection.settimeout(_left(deadline))
            self._connection.sendall(_frame({"verb": verb, "arguments": arguments}))
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            raise HungUp(f"{self.label} has hung up (did it end?)") from None

    def _receive(self, deadline: float) -> Any:
        length, = _LENGTH.unpack(self._receive_exactly(_LENGTH.size, deadline))
        if length > MAX_MESSAGE:
            raise NotAnswering(f"{self.label} announced an answer of {length} bytes; {MAX_MESSAGE} are accepted")
        body = self._receive_exactly(length, deadline)
        try:
            answer = msgspec.convert(json.loads(bytes(body)), Answer)
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise NotAnswering(f"{self.label} gave a wrong answer: {str(error)[:200]}") from None
        if answer.ok:
            return answer.result
        status = answer.status & 0xFFFFFFFF
        if status:
            failure: StackfsError = FltError(status, answer.error)
        else:
            failure = StackfsError(answer.error)
        failure.exit_code = ExitCode(answer.exit_code) if answer.exit_code in _EXIT_CODES else ExitCode.FAILURE
        raise failure

    def _receive_exactly(self, count: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < count:
            try:
                self._connection.settimeout(_left(deadline))
                part = self._connection.recv(min(count - len(data), 1 << 20))
            except TimeoutError:
                raise self._silent() from None
            except OSError:
                part = b""
            if not part:
                raise HungUp(f"{self.label} has hung up (did it end?)")
            data += part
        return data

    def _extended(self, deadline: float) -> float:
        """The deadline; or, if another daemon has used it up, a moment from now where something has arrived."""
        if time.monotonic() < deadline:
            return deadline
        waiting = select.poll()
        waiting.register(self._connection, select.POLLIN)
        return time.monotonic() + 0.1 if waiting.poll(0) else deadline

    def _silent(self) -> NotAnswering:
        return NotAnswering(f"{self.label} does not answer (process {self.pid})")


def daemons(problems: list[StackfsError] | None = None) -> list[Client]:
    """A connection to every daemon the caller may speak to that says hello, ordered by mountpoint.

    To be closed after use. Root is shown every user's, its own first. What did not answer, or is not to be trusted,
    goes to ``problems``, an error each.
    """
    problems = [] if problems is None else problems
    asked: list[Client] = []
    for path, owner in _directories():
        try:
            directory = runtime_directory.opened(path, owner=owner)
        except FileNotFoundError:
            continue
        except StackfsError as error:
            problems.append(error)
            continue
        try:
            for entry in sorted(os.listdir(directory))[:MAX_SOCKETS]:
                if not entry.startswith(".") and runtime_sockets.pid_of(entry) is not None:
                    try:
                        connection = runtime_sockets.connect(directory, entry, owner, socket.SOCK_STREAM, CONNECT_LIMIT)
                    except StackfsError as error:
                        problems.append(error)
                    else:
                        asked += [Client(connection)] if connection else []
        finally:
            os.close(directory)

    deadline = time.monotonic() + HELLO_LIMIT       # one for all: they are asked first and heard afterwards
    greeted = []
    for client in asked:
        try:
            client._send("hello", {}, deadline)
            greeted.append(client)
        except StackfsError as error:
            problems += [] if isinstance(error, HungUp) else [error]
            client.close()
    answered = []
    for client in greeted:
        try:
            client.hello = msgspec.convert(client._receive(client._extended(deadline)), Hello)
            answered.append(client)
        except HungUp:
            client.close()      # it ended between our connect and its answer
        except (StackfsError, msgspec.ValidationError, RecursionError) as error:
            problems.append(error if isinstance(error, StackfsError)
                            else NotAnswering(f"{client.label} gave a wrong answer to hello: {error}"))
            client.close()
    return sorted(answered, key=lambda client: (not client.own, client.hello.mountpoint, client.hello.volume_name))


def _directories() -> Iterator[tuple[str, int]]:
    uid = os.geteuid()
    yield runtime_directory.path(), uid
    if uid == 0:
        try:
            users = sorted(os.listdir(runtime_directory.USERS))
        except OSError:
            return
        for user in users:
            if user.isascii() and user.isdigit() and user != "0":
                yield f"{runtime_directory.USERS}/{user}/stackfs", int(user)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


_ACCESS_DENIED = 0xC0000022
_EXIT_CODES = frozenset(int(code) for code in ExitCode)
