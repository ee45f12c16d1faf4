"""Asking and telling a filter: its own routines run in threads, since they may wait, and the loop waits for nobody.

Called on trio's thread, with no lock held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import structlog
import trio

from stackfs import api
from stackfs.errors import StackfsError
from stackfs.filter_objects import FltObject

log = structlog.get_logger("stackfs.manager")

T = TypeVar("T")

_AGREES = frozenset(
    {
        api.Filter.filter_unload,
        api.Filter.instance_setup,
        api.Filter.instance_query_teardown,
        api.Filter.instance_teardown_start,
        api.Filter.instance_teardown_complete,
    }
)
"""What a filter inherits: it need not be asked."""

_threads = trio.CapacityLimiter(1000)


async def in_thread(routine: Callable[..., T], *arguments: Any) -> T:
    """Runs a filter's own routine, which may wait; one that waits for ever does not keep the process from ending."""
    return await trio.to_thread.run_sync(routine, *arguments, limiter=_threads, abandon_on_cancel=True)


async def ask(what: str, callback: Callable[..., int | None] | None, *arguments: object) -> int:
    """A notification's answer as an unsigned NTSTATUS; an exception is STATUS_UNSUCCESSFUL, and logged.

    A StackfsError is a refusal in the filter's own words, and goes to whoever asked.
    """
    if callback is None or getattr(callback, "__func__", None) in _AGREES:
        return 0
    asked = callback

    def answer() -> int:
        try:
            given = asked(*arguments)
            return 0 if given is None else int(given) & 0xFFFFFFFF
        except StackfsError:
            raise
        except BaseException as error:
            log.error("a notification raised", routine=what, error=f"{type(error).__name__}: {error}")
            return int(api.STATUS_UNSUCCESSFUL)

    return await in_thread(answer)


async def tell(what: str, callback: Callable[..., int | None] | None, *arguments: object) -> None:
    """A notification that cannot be refused: whatever it does, what it was told of goes on."""
    try:
        await ask(what, callback, *arguments)
    except StackfsError as error:
        log.error("a notification raised", routine=what, error=error.message)


async def end(ending: FltObject) -> None:
    """What is to be done when an object is gone: contexts, for one."""
    if ending.has_endings:
        await in_thread(ending.end)
