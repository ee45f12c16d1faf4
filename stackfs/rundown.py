"""Rundown protection: references that the end of a filter or an instance waits for (docs/semantics.md, A2.16).

Each reference is held under a name, so that an end that has to wait can say for what. Any thread may take and drop
references; one lock, held for a few instructions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import trio


class Rundown:
    """The references on one object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._ending = False
        self._waiting: list[Callable[[], None]] = []

    def acquire(self, holder: str) -> bool:
        """Take a reference; False once the object has begun to end. holder: what a message calls it."""
        with self._lock:
            if not self._ending:
                self._held[holder] = self._held.get(holder, 0) + 1
            return not self._ending

    def release(self, holder: str) -> None:
        """Drop a reference taken under that name. ValueError: there is none."""
        with self._lock:
            count = self._held.get(holder, 0)
            if count == 0:
                raise ValueError(f"no reference is held by {holder}")
            if count == 1:
                del self._held[holder]
            else:
                self._held[holder] = count - 1
            woken = [] if self._held else self._waiting
            if woken:
                self._waiting = []
        for wake in woken:
            wake()

    def release_one(self, kind: str) -> None:
        """Drop a reference taken under any name that begins with `kind`. ValueError: there is none."""
        with self._lock:
            holder = next((each for each in self._held if each.startswith(kind)), kind)
        self.release(holder)

    def run_down(self) -> None:
        """The object has begun to end: no further references."""
        with self._lock:
            self._ending = True

    @property
    def ending(self) -> bool:
        return self._ending

    @property
    def held(self) -> bool:
        return bool(self._held)

    def holders(self) -> list[str]:
        """What holds it, as a message shows it: "work item", "3 x communication port"."""
        with self._lock:
            return [name if count == 1 else f"{count} x {name}" for name, count in self._held.items()]

    async def wait(self) -> None:
        """Until nothing holds it. On trio's thread."""
        token, gone = trio.lowlevel.current_trio_token(), trio.Event()

        def wake() -> None:
            try:
                token.run_sync_soon(gone.set)
            except trio.RunFinishedError:
                pass

        with self._lock:
            if not self._held:
                return
            self._waiting.append(wake)
        await gone.wait()
