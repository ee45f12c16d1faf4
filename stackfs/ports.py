"""Communication ports: how a filter and a program of the user speak with each other (docs/semantics.md, B3).

A filter opens a ServerPort under a name. A program connects to it (stackfs/filterlib); the filter then holds a
ClientPort (client_port.py) for each connection. A port's socket lies in the shared directory beside the control
sockets' (runtime_directory.ports). Who may connect is decided by the kernel's word on the peer (SO_PEERCRED,
SO_PEERGROUPS) and the port's SecurityDescriptor, before a byte is read.

Threads, not the trio loop, since a filter's callbacks may take their time: a ServerPort has one that accepts, a
connection those that serve it.

Who may touch what: `_names`, by name all ports of this process, under `_names_lock`; a FilterPorts' list of ports and a
ServerPort's list of connections under their own `_lock`. Locks are taken in the order FilterPorts, `_names_lock`,
ServerPort, ClientPort, and none is held while a callback runs.
"""

from __future__ import annotations

import copy
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog

from stackfs import runtime_directory, runtime_sockets, verifier
from stackfs.cext.ntstatus import NtStatus, is_success
from stackfs.client_port import DISCONNECTED, SUCCESS, ClientPort
from stackfs.errors import FltError
from stackfs.port_wire import MAX_BODY, MAX_CONTEXT, MAX_NAME, VERSION, Kind, WireError, pack, unpack, unpack_connect
from stackfs.security_descriptor import SecurityDescriptor

log = structlog.get_logger("stackfs.ports")

CONNECT_LIMIT: Final = 5.0
"""Seconds in which who has connected must say to what."""
LEAVE_LIMIT: Final = 5.0
"""Seconds in which a disconnect callback must return, or its connection counts on."""
HALF_OPEN: Final = 32
"""Connections that may be about to say to what."""
_BUFFER: Final = 4 * MAX_BODY

ConnectCallback = Callable[[ClientPort], int | None]
DisconnectCallback = Callable[[ClientPort], object]
MessageCallback = Callable[[ClientPort, bytes, int], Any]
"""Gets what the program sent and how many bytes it takes; gives bytes, or (status, bytes), or nothing."""

_names: dict[str, ServerPort] = {}
_names_lock = threading.Lock()


# ---- a port ----------------------------------------------------------------------------------------------------------

class ServerPort:
    """A name that programs connect to. Opened by FilterPorts.open(), that is by Filter.open_port()."""

    def __init__(
        self,
        owner: FilterPorts,
        name: str,
        connect: ConnectCallback | None,
        disconnect: DisconnectCallback | None,
        message: MessageCallback | None,
        max_connections: int,
        descriptor: SecurityDescriptor,
        closes_clients: bool,
    ) -> None:
        self.name = name
        self.max_connections = max_connections
        self.security_descriptor = descriptor
        self.closed = False
        self._owner = owner
        self._connect = connect
        self._disconnect = disconnect
        self._message_callback = message
        self._closes_clients = closes_clients
        self._lock = threading.Lock()
        self._clients: list[ClientPort] = []
        self._all: list[ClientPort] = []
        """Also those that are about to say to what they connect, and those that are leaving."""
        self._directory = runtime_directory.opened(runtime_directory.ports(), create=True, shared=True)
        try:
            runtime_sockets.remove_leftovers(self._directory, socket.SOCK_SEQPACKET)
            self._entry = runtime_sockets.socket_name(name, os.getpid())
            mode = 0o600 if descriptor.private else 0o666
            self._listener = runtime_sockets.listen(self._directory, self._entry, socket.SOCK_SEQPACKET, mode)
            self._socket_file = os.stat(self._entry, dir_fd=self._directory, follow_symlinks=False)
        except BaseException:
            os.close(self._directory)
            raise
        self._acceptor = threading.Thread(target=self._accept, name="stackfs-port-accept", daemon=True)
        self._acceptor.start()

    def __repr__(self) -> str:
        return f"<ServerPort {self.name}{' (closed)' if self.closed else ''}>"

    @property
    def clients(self) -> tuple[ClientPort, ...]:
        """The connections there are, in the order in which they were made."""
        with self._lock:
            return tuple(self._clients)

    def send(self, data: bytes, reply_size: int | None = None, timeout: float | None = None) -> bytes:
        """ClientPort.send() to the first connection there is; STATUS_PORT_DISCONNECTED where there is none."""
        return self._first().send(data, reply_size, timeout)

    async def send_async(self, data: bytes, reply_size: int | None = None, timeout: float | None = None) -> bytes:
        return await self._first().send_async(data, reply_size, timeout)

    def _first(self) -> ClientPort:
        with self._lock:
            if self._clients:
                return self._clients[0]
        raise FltError(DISCONNECTED, f"nobody is connected to port {self.name}")

    def close(self) -> None:
        """FltCloseCommunicationPort: no further connection is taken. Those there are stay (B3.9)."""
        with _names_lock:
            if self.closed:
                return
            self.closed = True
            if _names.get(self.name) is self:
                del _names[self.name]
            runtime_sockets.unlink(self._directory, self._entry, self._socket_file)
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if threading.current_thread() is not self._acceptor:
            self._acceptor.join()
        self._listener.close()
        os.close(self._directory)

    # --- taking connections -----------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self.closed:
                    return
                log.warning("a connection cannot be taken", port=self.name, error=error.strerror)
                time.sleep(0.1)         # no descriptors, for one: nobody is helped by trying faster
                continue
            try:
                self._take(connection)
            except OSError as error:
                log.warning("a connection cannot be taken", port=self.name, error=error.strerror)
                connection.close()

    def _take(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        peer = runtime_sockets.peer(connection)
        groups = runtime_sockets.peer_groups(connection) | {peer.gid}
        if not self.security_descriptor.allows(peer.uid, groups):
            log.info("a connection is refused", port=self.name, pid=peer.pid, uid=peer.uid)
            _refuse(connection, int(NtStatus.STATUS_ACCESS_DENIED))
            return
        client = ClientPort(self, connection, peer)
        with self._lock:
            full = self.closed or len(self._all) - len(self._clients) >= HALF_OPEN
            if not full:
                self._all.append(client)
        if full or not client._start_thread(client._begin):
            client._close_socket()
            client._over.set()
            self._forget(client)

    def _admit(self, client: ClientPort) -> int | None:
        """Hears to what a program connects. The status it is told; None: it said nothing that makes sense."""
        status: int | None = None
        try:
            frame = unpack(client._receive(time.monotonic() + CONNECT_LIMIT), frozenset({Kind.CONNECT}))
            wanted = unpack_connect(frame.body)
        except (WireError, TimeoutError):
            self._forget(client)
            return None
        client.context = wanted.context
        if frame.number != VERSION:
            status = int(NtStatus.STATUS_NOT_SUPPORTED)
        elif wanted.name != self.name or not self._owner.serves(wanted.volume):
            status = int(NtStatus.STATUS_OBJECT_NAME_NOT_FOUND)
        elif len(wanted.context) > MAX_CONTEXT:
            status = int(NtStatus.STATUS_INVALID_PARAMETER)
        else:
            status = self._count_in(client)
        if status is None:
            status = SUCCESS
            if self._connect is not None:
                status = _call(self.name, "connect", self._connect, client)[0]
        if not is_success(status):
            self._forget(client)
        return status

    def _count_in(self, client: ClientPort) -> int | None:
        """None: it may be let in, and counts. Who has left already does not stand in the way of who comes (B3.4)."""
        deadline = time.monotonic() + LEAVE_LIMIT
        while True:
            with self._lock:
                if self.closed:
                    return int(NtStatus.STATUS_OBJECT_NAME_NOT_FOUND)
                if len(self._clients) < self.max_connections:
                    self._clients.append(client)
                    return None
                leaving = [each for each in self._clients if each.leaving]
            left = deadline - time.monotonic()
            if not leaving or left <= 0 or not leaving[0]._over.wait(left):
                return int(NtStatus.STATUS_CONNECTION_COUNT_LIMIT)

    def _message(self, client: ClientPort, data: bytes, room: int) -> tuple[int, bytes]:
        """FilterSendMessage: what the message callback makes of it."""
        if self._message_callback is None:
            return int(NtStatus.STATUS_FLT_NO_HANDLER_DEFINED), b""
        room = min(room, MAX_BODY)
        status, output = _call(self.name, "message", self._message_callback, client, data, room)
        if len(output) > room:
            return int(NtStatus.STATUS_BUFFER_TOO_SMALL), b""
        return status, output

    def _gone(self, client: ClientPort) -> None:
        """The program has left, and no callback of its runs any more. On the connection's last thread."""
        if not client._closed and self._disconnect is not None:
            _call(self.name, "disconnect", self._disconnect, client)
        if self._closes_clients:
            client._closed = True
        if not client._closed:
            self._owner._left_open(client)
        self._forget(client)

    def _forget(self, client: ClientPort) -> None:
        with self._lock:
            for clients in (self._clients, self._all):
                if client in clients:
                    clients.remove(client)


def _call(port: str, routine: str, callback: Callable[..., Any], *arguments: Any) -> tuple[int, bytes]:
    """A callback's answer: a status, or what a message callback says; an exception is a failure, and logged."""
    try:
        answer = callback(*arguments)
        if isinstance(answer, tuple):
            return int(answer[0]) & 0xFFFFFFFF, bytes(answer[1])
        if isinstance(answer, bytes | bytearray | memoryview):
            return SUCCESS, bytes(answer)
        return SUCCESS if answer is None else int(answer) & 0xFFFFFFFF, b""
    except FltError as error:
        return error.status, b""
    except BaseException as error:
        log.error("a callback of a port raised", port=port, routine=routine, error=f"{type(error).__name__}: {error}")
        return int(NtStatus.STATUS_UNSUCCESSFUL), b""


def _refuse(connection: socket.socket, status: int) -> None:
    connection.setblocking(False)
    try:
        connection.send(pack(Kind.CONNECTED, status=status), socket.MSG_NOSIGNAL)
    except OSError:
        pass
    connection.close()


# ---- the ports of a filter -------------------------------------------------------------------------------------------

class FilterPorts:
    """All ports of one filter. The manager makes it, and closes it when the filter is unloaded or its volume ends."""

    def __init__(self, filter_name: str, volumes: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """volumes: the name and mountpoint of each volume that the filter's process holds."""
        self.filter_name = filter_name
        self.used = False
        """It has opened one: its callbacks may wait for a program."""
        self.closing = False
        self._volumes = volumes
        self._lock = threading.Lock()
        self._ports: list[ServerPort] = []
        self._open_clients: set[ClientPort] = set()
        """Connections that have ended and that the filter itself has to close, and has not."""

    def open(
        self,
        name: str,
        *,
        connect: ConnectCallback | None = None,
        disconnect: DisconnectCallback | None = None,
        message: MessageCallback | None = None,
        max_connections: int = 1,
        allow: SecurityDescriptor | None = None,
        closes_clients: bool = True,
    ) -> ServerPort:
        """FltCreateCommunicationPort. closes_clients=False: the filter calls ClientPort.close() itself (B3.10).

        FltError: STATUS_OBJECT_NAME_INVALID, STATUS_OBJECT_NAME_COLLISION, STATUS_INVALID_PARAMETER,
        STATUS_FLT_DELETING_OBJECT; StackfsError: the directory of ports cannot be used.
        """
        if not (isinstance(name, str) and name.startswith("\\") and 1 < len(os.fsencode(name)) <= MAX_NAME
                and name.isprintable()):  # fmt: skip
            raise FltError(NtStatus.STATUS_OBJECT_NAME_INVALID, f"{name!r} is no name of a port: \\Name, printable")
        if not isinstance(max_connections, int) or max_connections < 1:
            raise FltError(NtStatus.STATUS_INVALID_PARAMETER, f"port {name}: at least one connection must be allowed")
        with self._lock:
            if self.closing:
                raise FltError(NtStatus.STATUS_FLT_DELETING_OBJECT, f"filter {self.filter_name!r} is being unloaded")
            with _names_lock:
                if name in _names:
                    raise FltError(NtStatus.STATUS_OBJECT_NAME_COLLISION, f"there is a port {name} already")
                port = ServerPort(
                    self, name, connect, disconnect, message, max_connections,
                    copy.deepcopy(allow) if allow is not None else SecurityDescriptor(), closes_clients,
                )  # fmt: skip
                _names[name] = port
            self.used = True
            self._ports = [each for each in self._ports if not each.closed or each._all]
            self._ports.append(port)
        return port

    def serves(self, volume: str) -> bool:
        """Is this the name or mountpoint of one of the process' volumes? "" is whichever there is."""
        return not volume or any(volume in each for each in self._volumes())

    @property
    def ports(self) -> tuple[ServerPort, ...]:
        with self._lock:
            return tuple(port for port in self._ports if not port.closed or port.clients)

    def close(self, limit: float | None = None) -> None:
        """Every port closed, every connection ended, each disconnect callback called; returns when none runs any more.

        The filter can open no further one. `limit`: seconds to wait; what is still running then is logged and left.
        """
        with self._lock:
            self.closing = True
            ports = list(self._ports)
        for port in ports:
            port.close()
        clients = []
        for port in ports:
            with port._lock:
                clients += port._all
        deadline = None if limit is None else time.monotonic() + limit
        for client in clients:
            client._cut()
        for client in clients:
            if threading.current_thread() in client._threads:       # one of its callbacks asks for this
                continue
            if not client._over.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                log.error("a callback of a port does not return", filter=self.filter_name, port=client.server.name)
        with self._lock:
            forgotten = [client for client in self._open_clients if not client._closed]
            self._open_clients.clear()
        for client in forgotten:
            log.error("a filter did not close a client port", filter=self.filter_name, port=client.server.name)
            if verifier.is_on():
                verifier.report(f"a client port of {client.server.name} was not closed before the end of its filter",
                                filter=self.filter_name, routine="FltCloseClientPort")  # fmt: skip
            client.close()

    def _left_open(self, client: ClientPort) -> None:
        with self._lock:
            self._open_clients = {each for each in self._open_clients if not each._closed} | {client}


def listing(owners: Iterable[FilterPorts]) -> list[dict[str, Any]]:
    """A row for each port: name, filter, connections and how many there may be."""
    return [
        {"name": port.name, "filter": each.filter_name, "connections": len(port.clients), "max": port.max_connections}
        for each in owners
        for port in each.ports
    ]
