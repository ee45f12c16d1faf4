"""Rundown protection: references that the end of a filter or an instance waits for (docs/semantics.md, A2.16).

Each reference is held under a name, so that an end that has to wait can say for what. Names that begin with one of
REFERENCES are references and nothing more: they keep the object from being freed. What is held under another name is
work that is under way, a work item for one: the object does not even leave before it has ended. Any thread may take and
drop references; one lock, held for a few instructions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import trio

from stackfs import verifier

REFERENCES: Final = ("Flt", "reference")


class Rundown:
    """The references on one object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._where: dict[str, tuple[str, str]] = {}
        """While the verifier is on: the filter that took a reference last under that name, and FILE:LINE."""
        self._ending = False
        self._waiting: list[Callable[[], None]] = []

    def acquire(self, holder: str) -> bool:
        """Take a reference; False once the object has begun to end. holder: what a message calls it."""
        where = verifier.holder_of() if verifier.is_on() and holder.startswith(REFERENCES) else None
        with self._lock:
            if not self._ending:
                self._held[holder] = self._held.get(holder, 0) + 1
                if where is not None:
                    self._where[holder] = where
            return not self._ending

    def release(self, holder: str) -> None:
        """Drop a reference taken under that name. ValueError: there is none."""
        with self._lock:
            count = self._held.get(holder, 0)
            if count == 0:
                raise ValueError(f"no reference is held by {holder}")
            if count == 1:
                del self._held[holder]
                self._where.pop(holder, None)
            else:
                self._held[holder] = count - 1
            woken, self._waiting = self._waiting, []
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

    def left(self, of: str | None = None) -> list[tuple[str, str, str]]:
        """Each name that references are held under, the filter that took one, and where; of: that filter's alone. Each
        is told once, and only where somebody has noted it, while the verifier was on."""
        with self._lock:
            found = [(name, *self._where[name]) for name in self._held if name in self._where]
            found = [each for each in found if of in (None, each[1])]
            for name, _, _ in found:
                del self._where[name]
            return found

    async def wait(self, *, work_alone: bool = False) -> None:
        """Until nothing holds it; with work_alone, until nothing but references does. On trio's thread."""
        token = trio.lowlevel.current_trio_token()
        while True:
            changed = trio.Event()

            def wake(changed: trio.Event = changed) -> None:
                try:
                    token.run_sync_soon(changed.set)
                except trio.RunFinishedError:
                    pass

            with self._lock:
                if all(work_alone and name.startswith(REFERENCES) for name in self._held):
                    return
                self._waiting.append(wake)
            await changed.wait()
