"""What travels between the two ends of a communication port (docs/semantics.md, B3; docs/ports.md has the protocol).

A frame is one packet of an AF_UNIX SOCK_SEQPACKET connection: a header of 32 bytes in the machine's byte order, and a
body. It is taken whole or not at all. Each side checks the length and kind of each frame that it is sent, and ends the
connection over the first that is not one.

    program to filter                                 filter to program
    CONNECT  body: pack_connect()                     CONNECTED  status
    GET      one more message is wanted               MESSAGE    message, size: reply length or 0, body
    REPLY    number, message, status, body            REPLIED    number, status
    SEND     number, size: room for output, body      SENT       number, status, body

A message is sent only in answer to a GET: what nobody waits for stays with the filter. `number` is the program's, and
comes back with the answer; `message` is the filter's. Pure: no sockets, no state.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

VERSION: Final = 1
"""Of this protocol; a CONNECT carries it in `number`."""
MAX_BODY: Final = 128 << 10
"""Bytes of a message, a reply, an input or an output at most."""
MAX_CONTEXT: Final = 0xFFFF
"""Bytes of a connection context at most, as on Windows."""
MAX_NAME: Final = 255
MAX_VOLUME: Final = 4096
REPLY_HEADER: Final = 16
"""Bytes of a FILTER_REPLY_HEADER: a message's reply length counts them, so that 0 says that no reply is expected."""

_HEADER: Final = struct.Struct("=IIQQII")
_CONNECT: Final = struct.Struct("=HHHH")
MAX_FRAME: Final = _HEADER.size + MAX_BODY


class Kind(enum.IntEnum):
    CONNECT = 1
    GET = 2
    REPLY = 3
    SEND = 4
    CONNECTED = 0x81
    MESSAGE = 0x82
    REPLIED = 0x83
    SENT = 0x84


FROM_PROGRAM: Final = frozenset({Kind.CONNECT, Kind.GET, Kind.REPLY, Kind.SEND})
FROM_FILTER: Final = frozenset(Kind) - FROM_PROGRAM


class WireError(Exception):
    """A frame that is none: the connection ends."""


class Frame(NamedTuple):
    kind: Kind
    status: int
    number: int
    message: int
    size: int
    body: bytes


class Connect(NamedTuple):
    """The body of a CONNECT. volume: a volume's name or mountpoint, "" for whichever there is."""

    name: str
    volume: str
    context: bytes


def pack(kind: Kind, *, status: int = 0, number: int = 0, message: int = 0, size: int = 0, body: bytes = b"") -> bytes:
    return _HEADER.pack(kind, status & 0xFFFFFFFF, number, message, size, 0) + body


def unpack(data: bytes, allowed: frozenset[Kind]) -> Frame:
    """WireError: too short, too long, or not of an allowed kind."""
    if not _HEADER.size <= len(data) <= MAX_FRAME:
        raise WireError(f"a frame of {len(data)} bytes")
    kind, status, number, message, size, reserved = _HEADER.unpack_from(data)
    if kind not in allowed or reserved:
        raise WireError(f"a frame of kind {kind:#x}")
    return Frame(Kind(kind), status, number, message, size, data[_HEADER.size :])


def pack_connect(name: str, volume: str, context: bytes) -> bytes:
    named, on = (text.encode("utf-8", "surrogateescape") for text in (name, volume))
    return _CONNECT.pack(len(named), len(on), len(context), 0) + named + on + context


def unpack_connect(body: bytes) -> Connect:
    """WireError: the lengths do not add up."""
    if len(body) < _CONNECT.size:
        raise WireError("a short CONNECT")
    name, volume, context, reserved = _CONNECT.unpack_from(body)
    if reserved or len(body) != _CONNECT.size + name + volume + context or name > MAX_NAME or volume > MAX_VOLUME:
        raise WireError("a CONNECT whose lengths do not add up")
    named, on, rest = body[8 : 8 + name], body[8 + name : 8 + name + volume], body[8 + name + volume :]
    return Connect(named.decode("utf-8", "surrogateescape"), on.decode("utf-8", "surrogateescape"), rest)
