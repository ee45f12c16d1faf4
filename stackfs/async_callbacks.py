"""`async def` callbacks: coroutines of the trio loop; meanwhile the stack holds their operation (semantics A6.18).

    the callback is called ── in the task of its own request ── its first step, right there ── ended: nothing has waited
              │                                                        └── waits: the task goes on with it, in rest()
              └── on any other thread, or in another task ── a task of its own

The operation goes on in the loop's thread when the coroutine has returned, as if the callback had returned that. Each
has a cancel scope of its own, so that cancelling an operation (a signal to the program, the teardown of the instance)
ends this callback with trio.Cancelled, and no other.

run() may be called by any thread; everything else belongs to the loop's.
"""

from __future__ import annotations

import contextlib
import threading
import types
from typing import TYPE_CHECKING, Any

import structlog
import trio

from stackfs.cext.ntstatus import NtStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    from stackfs.cext.callback_data import CallbackData

log = structlog.get_logger("stackfs.async")

_POST_OPERATION = 0x80000  # FLTFL_CALLBACK_DATA_POST_OPERATION


class AsyncCallbacks:
    """Carries coroutines on the loop that bind() was called in."""

    def __init__(self) -> None:
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = 0
        self._walked = 0  # the request whose own task walks the stack at this moment
        self._waiting: dict[int, _Callback] = {}  # by request: what its task has begun, and must go on with

    def bind(self) -> None:
        """On the loop's thread, before the first callback."""
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()

    def run(self, coroutine: Coroutine[Any, Any, Any], data: CallbackData) -> None:
        """Start it. RuntimeError: there is no loop, or it has ended."""
        if self._token is None:
            raise RuntimeError("there is no loop to run an async callback in")
        callback = _Callback(self._on_loop, coroutine, data)
        if threading.get_ident() != self._thread:
            self._token.run_sync_soon(callback.start)
        elif data.request_number == self._walked and self._walked not in self._waiting:
            if not callback.first_step():
                self._waiting[self._walked] = callback
        else:
            callback.start()

    def walk(self, request_number: int, run: Callable[[], bool]) -> bool:
        """run(), which walks the stack for a request, by the request's own task. When it says False, ask rest()."""
        before, self._walked = self._walked, request_number
        try:
            return run()
        finally:
            self._walked = before

    def rest(self, request_number: int) -> Awaitable[None] | None:
        """What the request's task has to go on with, now: an async callback that waits; None: nothing."""
        callback = self._waiting.pop(request_number, None)
        return None if callback is None else callback.rest()

    def _on_loop(self, do: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            do()
        elif self._token is not None:
            self._token.run_sync_soon(do)


class _Callback:
    """One coroutine, its operation, and the scope in which it can be cancelled."""

    def __init__(
        self, on_loop: Callable[[Callable[[], None]], None], coroutine: Coroutine[Any, Any, Any], data: CallbackData
    ) -> None:
        self.on_loop = on_loop
        self.coroutine = coroutine
        self.data = data
        self.scope = trio.CancelScope()
        self.trap: Any = None  # what the coroutine's first step has left for the loop

    def start(self) -> None:
        """In a task of its own."""
        trio.lowlevel.spawn_system_task(self._in_a_task, name=self.coroutine)

    async def _in_a_task(self) -> None:
        with self.scope:
            self._cancellable()
            await self._carry(self.coroutine)

    def first_step(self) -> bool:
        """In the current task: up to where it first waits. True: it has ended, and the operation goes on."""
        self.scope.__enter__()
        self._cancellable()
        try:
            self.trap = self.coroutine.send(None)
        except BaseException as ended:
            if isinstance(ended, trio.Cancelled):
                _end(_cancelled, self.data)
            elif isinstance(ended, StopIteration):
                _end(self.data.end_async, ended.value, None)
            else:
                _end(self.data.end_async, None, ended)
            with contextlib.suppress(trio.Cancelled):
                self.scope.__exit__(type(ended), ended, ended.__traceback__)
            return True
        return False

    async def rest(self) -> None:
        """In the task of first_step()."""
        with contextlib.ExitStack() as entered:
            entered.push(self.scope)
            await self._carry(_going_on(self.coroutine, self.trap))

    def _cancellable(self) -> None:
        if self.data.set_cancel_completion(lambda _: self.on_loop(self.scope.cancel)) != 0:
            self.scope.cancel()

    async def _carry(self, coroutine: Awaitable[Any]) -> None:
        """Nothing but trio.Cancelled may leave: it would end the loop."""
        answer: Any = None
        error: BaseException | None = None
        try:
            answer = await coroutine
        except trio.Cancelled:
            _end(_cancelled, self.data)
            raise
        except BaseException as raised:
            error = raised
        _end(self.data.end_async, answer, error)


@types.coroutine
def _going_on(coroutine: Coroutine[Any, Any, Any], trap: Any) -> Generator[Any, Any, Any]:
    """The rest of a coroutine that has left `trap` for the loop; what it returns."""
    while True:
        thrown: BaseException | None = None
        sent: Any = None
        try:
            sent = yield trap
        except BaseException as error:
            thrown = error
        try:
            trap = coroutine.send(sent) if thrown is None else coroutine.throw(thrown)
        except StopIteration as ended:
            return ended.value


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
