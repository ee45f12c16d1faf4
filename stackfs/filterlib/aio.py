"""stackfs.filterlib for trio: the same names, to be awaited.

    async with aio.connect("\\\\ScannerPort") as port:
        async for message in port:
            await message.reply(b"\\1")

Several tasks may use one Port. Whichever waits first reads the socket for all; when it is cancelled another one goes
on. What speaks with the daemons' control sockets does so in worker threads. For the trio thread alone; no locks.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import trio

from stackfs import runtime_sockets
from stackfs.cext.ntstatus import NtStatus
from stackfs.control import FilterRow, InstanceRow, VolumeRow
from stackfs.errors import FltError, StackfsError
from stackfs.filterlib import management
from stackfs.filterlib.conversation import Conversation, Received
from stackfs.filterlib.management import Result
from stackfs.filterlib.port import NOBODY_WAITS, checked, disconnected, open_connection
from stackfs.port_wire import MAX_BODY, MAX_FRAME, Frame, Kind

T = TypeVar("T")


class Message:
    """What a filter sent; as stackfs.filterlib.Message, its reply awaited."""

    __slots__ = ("_port", "data", "id", "reply_size")

    def __init__(self, port: Port, received: Received) -> None:
        self._port = port
        self.id, self.reply_size, self.data = received

    async def reply(self, data: bytes = b"", status: int = 0) -> bool:
        try:
            await self._port.reply(self.id, data, status)
        except FltError as error:
            if error.status not in NOBODY_WAITS:
                raise
            return False
        return True


class Port:
    """A connection to a filter's port; made by connect(). Arguments and errors are those of stackfs.filterlib.Port."""

    def __init__(self, name: str, connection: trio.socket.SocketType) -> None:
        self.name = name
        self.pid, self.uid, _ = runtime_sockets.peer(connection)
        self._socket = connection
        self._conversation = Conversation()
        self._others = trio.lowlevel.ParkingLot()
        self._reading = False

    async def get(self) -> Message:
        """The next message. Cancelled, it leaves the message to the next one who asks."""
        frame = self._conversation.want()
        try:
            if frame is not None:
                await self._send(frame)
            return Message(self, await self._until(self._next_message))
        finally:
            self._conversation.unwant()

    async def send(self, data: bytes = b"", room: int = MAX_BODY) -> bytes:
        return (await self._ask(Kind.SEND, size=min(room, MAX_BODY), body=data)).body

    async def reply(self, message_id: int, data: bytes = b"", status: int = 0) -> None:
        await self._ask(Kind.REPLY, message=message_id, status=status, body=data)

    def close(self) -> None:
        self._conversation.ended = True
        self._socket.close()
        self._others.unpark_all()

    def __aiter__(self) -> Port:
        """Messages, until the filter or the connection has gone."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.get()
        except FltError as error:
            if error.status == NtStatus.STATUS_PORT_DISCONNECTED:
                raise StopAsyncIteration from None
            raise

    async def _ask(self, kind: Kind, *, message: int = 0, status: int = 0, size: int = 0, body: bytes) -> Frame:
        number, frame = self._conversation.ask(kind, message=message, status=status, size=size, body=body)
        try:
            await self._send(frame)
            answer = await self._until(lambda: self._conversation.answer(number))
        finally:
            self._conversation.forget(number)
        return checked(self.name, answer)

    def _next_message(self) -> Received | None:
        return self._conversation.messages.popleft() if self._conversation.messages else None

    async def _send(self, frame: bytes) -> None:
        try:
            await self._socket.send(frame)
        except (OSError, trio.ClosedResourceError):
            raise disconnected(self.name) from None

    async def _until(self, ready: Callable[[], T | None]) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        while (found := ready()) is None:
            if self._conversation.ended:
                raise disconnected(self.name)
            if self._reading:
                await self._others.park()
                continue
            self._reading = True
            try:
                data = await self._socket.recv(MAX_FRAME + 1)
            except (OSError, trio.ClosedResourceError):
                data = b""
            finally:
                self._reading = False
                self._others.unpark_all()
            self._conversation.received(data)
        return found


@contextlib.asynccontextmanager
async def connect(
    name: str, context: bytes = b"", *, volume: str | None = None, owner: int | None = None
) -> AsyncIterator[Port]:
    """As stackfs.filterlib.connect(); the connection lives as long as the block."""
    connection = await trio.to_thread.run_sync(open_connection, name, context, volume, owner)
    connection.settimeout(None)
    port = Port(name, trio.socket.from_stdlib_socket(connection))
    try:
        yield port
    finally:
        port.close()


async def load(name: str, volume: str | None = None) -> list[Result]:
    return await trio.to_thread.run_sync(management.load, name, volume)


async def unload(name: str, volume: str | None = None, mandatory: bool = False) -> list[Result]:
    return await trio.to_thread.run_sync(management.unload, name, volume, mandatory)


async def attach(
    name: str, volume: str, instance_name: str | None = None, altitude: str | None = None
) -> list[Result]:
    return await trio.to_thread.run_sync(management.attach, name, volume, instance_name, altitude)


async def detach(name: str, volume: str, instance_name: str | None = None) -> list[Result]:
    return await trio.to_thread.run_sync(management.detach, name, volume, instance_name)


async def filters(problems: list[StackfsError] | None = None) -> list[FilterRow]:
    return await trio.to_thread.run_sync(management.filters, problems)


async def instances(
    filter: str | None = None, volume: str | None = None, problems: list[StackfsError] | None = None
) -> list[InstanceRow]:
    return await trio.to_thread.run_sync(management.instances, filter, volume, problems)


async def volumes(problems: list[StackfsError] | None = None) -> list[VolumeRow]:
    return await trio.to_thread.run_sync(management.volumes, problems)
