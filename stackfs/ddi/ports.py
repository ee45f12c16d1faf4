"""Communication ports under their DDI names (docs/semantics.md, B3). The implementation is stackfs/ports.py.

Parameters stand in the DDI's order and under its names, out-parameters are Out objects, what the DDI returns as
NTSTATUS is returned as its unsigned number. A PFLT_FILTER is the manager's LoadedFilter, a PFLT_PORT a ServerPort or a
ClientPort, a security descriptor a SecurityDescriptor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from stackfs import security_descriptor
from stackfs.cext.ntstatus import NtStatus, is_success
from stackfs.client_port import ClientPort
from stackfs.ddi.object_attributes import OBJ_KERNEL_HANDLE, OBJECT_ATTRIBUTES
from stackfs.ddi.out import Out
from stackfs.errors import FltError, StackfsError
from stackfs.ports import ServerPort
from stackfs.security_descriptor import SecurityDescriptor

if TYPE_CHECKING:
    from stackfs.manager import LoadedFilter

FLT_PORT_CONNECT: Final = 0x0001
FLT_PORT_ALL_ACCESS: Final = 0x1F0001

ConnectNotify = Callable[[ClientPort, Any, bytes, int, Out[Any]], int]
DisconnectNotify = Callable[[Any], None]
MessageNotify = Callable[[Any, bytes, int, bytearray, int, Out[int]], int]

_EPOCH_1601: Final = 116444736000000000
"""1970 in units of 100 ns since 1601."""


def FltBuildDefaultSecurityDescriptor(SecurityDescriptor: Out[SecurityDescriptor], DesiredAccess: int) -> int:
    """B3.3: the daemon's user and root. DesiredAccess: FLT_PORT_CONNECT, FLT_PORT_ALL_ACCESS; here the same."""
    if DesiredAccess & ~FLT_PORT_ALL_ACCESS or not DesiredAccess & FLT_PORT_CONNECT:
        return int(NtStatus.STATUS_INVALID_PARAMETER)
    SecurityDescriptor.value = security_descriptor.SecurityDescriptor()
    return 0


def FltFreeSecurityDescriptor(SecurityDescriptor: SecurityDescriptor) -> None:
    """It allows nobody from now on. Ports that were made with it keep what it said then."""
    SecurityDescriptor.users, SecurityDescriptor.groups, SecurityDescriptor.everyone = set(), set(), False


def FltCreateCommunicationPort(
    Filter: LoadedFilter,
    ServerPort: Out[ServerPort],
    ObjectAttributes: OBJECT_ATTRIBUTES,
    ServerPortCookie: Any,
    ConnectNotifyCallback: ConnectNotify,
    DisconnectNotifyCallback: DisconnectNotify,
    MessageNotifyCallback: MessageNotify | None,
    MaxConnections: int,
) -> int:
    """B3.1 to B3.4. ObjectAttributes: a name such as \\ScannerPort, OBJ_KERNEL_HANDLE, a security descriptor or None.

    ConnectNotifyCallback(ClientPort, ServerPortCookie, ConnectionContext, SizeOfContext, ConnectionPortCookie: Out);
    DisconnectNotifyCallback(ConnectionCookie), which has to call FltCloseClientPort (B3.10);
    MessageNotifyCallback(PortCookie, InputBuffer, InputBufferLength, OutputBuffer, OutputBufferLength,
    ReturnOutputBufferLength: Out).
    INVALID_PARAMETER, OBJECT_NAME_INVALID, OBJECT_NAME_COLLISION, FLT_DELETING_OBJECT, ACCESS_DENIED (the directory of
    ports cannot be used).
    """
    if not ObjectAttributes.Attributes & OBJ_KERNEL_HANDLE or ObjectAttributes.ObjectName is None:
        return int(NtStatus.STATUS_INVALID_PARAMETER)
    descriptor = ObjectAttributes.SecurityDescriptor
    if not (descriptor is None or isinstance(descriptor, security_descriptor.SecurityDescriptor)):
        return int(NtStatus.STATUS_INVALID_PARAMETER)

    def connect(client: ClientPort) -> int:
        cookie: Out[Any] = Out()
        status = ConnectNotifyCallback(client, ServerPortCookie, client.context, len(client.context), cookie)
        client.cookie = getattr(cookie, "value", None)
        return status

    def message(client: ClientPort, data: bytes, room: int) -> tuple[int, bytes]:
        assert MessageNotifyCallback is not None
        output, returned = bytearray(room), Out[int]()
        status = MessageNotifyCallback(client.cookie, data, len(data), output, room, returned)
        length = min(getattr(returned, "value", 0), room)
        return status, bytes(output[:length]) if is_success(status & 0xFFFFFFFF) else b""

    try:
        ServerPort.value = Filter.ports.open(
            ObjectAttributes.ObjectName,
            connect=connect,
            disconnect=lambda client: DisconnectNotifyCallback(client.cookie),
            message=None if MessageNotifyCallback is None else message,
            max_connections=MaxConnections,
            allow=descriptor,
            closes_clients=False,
        )
    except FltError as error:
        return error.status
    except StackfsError:
        return int(NtStatus.STATUS_ACCESS_DENIED)
    return 0


def FltCloseCommunicationPort(ServerPort: ServerPort) -> None:
    """B3.9: no further connections; those there are stay."""
    ServerPort.close()


def FltCloseClientPort(Filter: LoadedFilter, ClientPort: Out[ClientPort]) -> None:
    """B3.10: ends the connection if it is still there, and sets the variable to None. With None it does nothing."""
    client = getattr(ClientPort, "value", None)
    ClientPort.value = None     # type: ignore[assignment]
    if client is not None:
        client.close()


def FltSendMessage(
    Filter: LoadedFilter,
    ClientPort: Out[ClientPort],
    SenderBuffer: bytes,
    SenderBufferLength: int,
    ReplyBuffer: bytearray | None,
    ReplyLength: Out[int] | None,
    Timeout: int | None,
) -> int:
    """B3.5 to B3.8. ReplyLength: in, the bytes that ReplyBuffer takes; out, those that the reply has.

    Timeout, in units of 100 ns: negative, from now; positive, a point in time since 1601; None and 0: for ever (F17).
    STATUS_TIMEOUT (a success code), PORT_DISCONNECTED, THREAD_IS_TERMINATING (in a callback: the requestor is being
    killed), BUFFER_OVERFLOW, INSUFFICIENT_RESOURCES, POSSIBLE_DEADLOCK, or what the program replied with.
    """
    if ReplyBuffer is not None and ReplyLength is None:
        return int(NtStatus.STATUS_INVALID_PARAMETER)
    client = getattr(ClientPort, "value", None)
    if client is None:
        return int(NtStatus.STATUS_PORT_DISCONNECTED)
    room = None
    if ReplyBuffer is not None and ReplyLength is not None:
        room = min(len(ReplyBuffer), ReplyLength.value)
    timeout = _seconds(Timeout)
    if timeout is not None and timeout <= 0:
        return int(NtStatus.STATUS_TIMEOUT)
    status, reply = client.exchange(bytes(SenderBuffer[:SenderBufferLength]), room, timeout)
    if ReplyBuffer is not None and ReplyLength is not None:
        ReplyBuffer[: len(reply)] = reply
        ReplyLength.value = len(reply)
    return int(status)


def _seconds(timeout: int | None) -> float | None:
    if not timeout:
        return None
    if timeout < 0:
        return -timeout / 1e7
    return (timeout - _EPOCH_1601) / 1e7 - time.time()


__all__ = [
    "FLT_PORT_ALL_ACCESS",
    "FLT_PORT_CONNECT",
    "FltBuildDefaultSecurityDescriptor",
    "FltCloseClientPort",
    "FltCloseCommunicationPort",
    "FltCreateCommunicationPort",
    "FltFreeSecurityDescriptor",
    "FltSendMessage",
]
