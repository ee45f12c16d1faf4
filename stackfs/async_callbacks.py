"""`async def` callbacks: each runs as a task of the trio loop while the stack holds its operation (docs/semantics.md
A6.18).

The operation pends when the callback is called, on whatever thread, and goes on in the loop's thread when the coroutine
has returned, as if the callback had returned that. A task has a cancel scope of its own, so that cancelling an
operation (a signal to the program, the teardown of the instance) ends this callback with trio.Cancelled, and no
other.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import structlog
import trio

from stackfs.cext.ntstatus import NtStatus

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from stackfs.cext.callback_data import CallbackData

log = structlog.get_logger("stackfs.async")

_POST_OPERATION = 0x80000  # FLTFL_CALLBACK_DATA_POST_OPERATION


class AsyncCallbacks:
    """Carries coroutines on the loop that bind() was called in. run() from any thread."""

    def __init__(self) -> None:
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = 0

    def bind(self) -> None:
        """On the loop's thread, before the first callback."""
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()

    def run(self, coroutine: Coroutine[Any, Any, Any], data: CallbackData) -> None:
        """Start it. RuntimeError: there is no loop, or it has ended."""
        if self._token is None:
            raise RuntimeError("there is no loop to run an async callback in")
        if threading.get_ident() == self._thread:
            self._start(coroutine, data)
        else:
            self._token.run_sync_soon(self._start, coroutine, data)

    def _start(self, coroutine: Coroutine[Any, Any, Any], data: CallbackData) -> None:
        trio.lowlevel.spawn_system_task(self._carry, coroutine, data, name=coroutine)

    async def _carry(self, coroutine: Coroutine[Any, Any, Any], data: CallbackData) -> None:
        """Nothing but trio.Cancelled may leave: it would end the loop."""
        answer: Any = None
        error: BaseException | None = None
        with trio.CancelScope() as scope:
            try:
                if data.set_cancel_completion(functools.partial(self._cancel, scope)) != 0:
                    scope.cancel()
                answer = await coroutine
            except trio.Cancelled:
                _end(_cancelled, data)
                raise
            except BaseException as raised:
                error = raised
        if not scope.cancelled_caught:
            _end(data.end_async, answer, error)

    def _cancel(self, scope: trio.CancelScope, data: CallbackData) -> None:
        """By whatever thread cancels the operation; the task then completes it."""
        if threading.get_ident() == self._thread:
            scope.cancel()
        elif self._token is not None:
            self._token.run_sync_soon(scope.cancel)


def _cancelled(data: CallbackData) -> None:
    """What was to be done has not been done: also on its way up the operation must not pass for a success."""
    data.status = int(NtStatus.STATUS_CANCELLED)
    data.information = 0
    if data.flags & _POST_OPERATION:
        data.complete_pended_post()
    else:
        data.complete_pended_pre(data.complete(int(NtStatus.STATUS_CANCELLED)))


def _end(how: Any, *arguments: Any) -> None:
    try:
        how(*arguments)
    except Exception as error:  # the callback has completed the operation itself
        log.error("an async callback broke the rules", error=f"{type(error).__name__}: {error}")
