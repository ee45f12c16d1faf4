"""What a program and a filter have said to each other on one connection, without the socket (docs/semantics.md, B3).

The synchronous port (port.py) and trio's (aio.py) share this: it makes the frames to send, takes in those received, and
knows which messages and answers are there and how many messages were asked for. No input, no output, no waiting;
guarded by whoever owns it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from stackfs.port_wire import FROM_FILTER, MAX_BODY, REPLY_HEADER, Frame, Kind, WireError, pack, unpack


class Received(NamedTuple):
    """A message of the filter's. reply_size: bytes that a reply may have; None: none is expected."""

    id: int
    reply_size: int | None
    data: bytes


class Conversation:
    """One connection's state, from the CONNECTED on."""

    def __init__(self) -> None:
        self.messages: deque[Received] = deque()
        self.ended = False
        self._answers: dict[int, Frame | None] = {}
        self._asked = 0
        self._waiting = 0
        self._number = 0

    # --- to send ----------------------------------------------------------------------------------------------------

    def want(self) -> bytes | None:
        """One more waits for a message: the frame to send, unless enough were asked for. Undone by unwant()."""
        self._waiting += 1
        if self._waiting <= len(self.messages) + self._asked:
            return None
        self._asked += 1
        return pack(Kind.GET)

    def unwant(self) -> None:
        """It waits no longer. What it asked for, if it has not come, is the next one's."""
        self._waiting -= 1

    def ask(self, kind: Kind, *, message: int = 0, status: int = 0, size: int = 0, body: bytes) -> tuple[int, bytes]:
        """A SEND or a REPLY: the number of the answer to wait for, and the frame. ValueError: too long."""
        if len(body) > MAX_BODY:
            raise ValueError(f"{len(body)} bytes are more than a message carries ({MAX_BODY})")
        self._number += 1
        self._answers[self._number] = None
        frame = pack(kind, number=self._number, message=message, status=status, size=size, body=bytes(body))
        return self._number, frame

    # --- received ---------------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """A packet; b"" is the end, and so is one that is none of the protocol's."""
        try:
            frame = unpack(data, FROM_FILTER) if data else None
        except WireError:
            frame = None
        if frame is None:
            self.ended = True
        elif frame.kind is Kind.MESSAGE:
            self._asked = max(0, self._asked - 1)
            size = frame.size - REPLY_HEADER if frame.size >= REPLY_HEADER else None
            self.messages.append(Received(frame.message, size, frame.body))
        elif frame.number in self._answers:
            self._answers[frame.number] = frame

    def answer(self, number: int) -> Frame | None:
        """The answer to what ask() numbered so; None: it has not come."""
        return self._answers.get(number)

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._answers.pop(number, None)
