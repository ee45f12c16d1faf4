"""Both ends of a communication port in one process: a filter's ports in a directory of the test's own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stackfs import filterlib
from stackfs.client_port import ClientPort
from stackfs.errors import FltError
from stackfs.ports import FilterPorts

NAME = "\\TestPort"
FOR_EVER = 60.0
"""Seconds that nothing here may take: a time-out that must not be what ends a wait."""


class Pair:
    """A filter with ports, and programs connected to them. What the filter's callbacks are told is in `told`."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.ports = FilterPorts("f", lambda: [("data", "/mnt/data"), ("more", "")])

    def open(self, name: str = NAME, **keywords: Any) -> Any:
        keywords.setdefault("connect", lambda client: self.told.append(("connect", client.context)))
        keywords.setdefault("disconnect", lambda client: self.told.append(("disconnect", client.context)))
        return self.ports.open(name, **keywords)

    @contextlib.contextmanager
    def connected(self, name: str = NAME, **keywords: Any) -> Iterator[tuple[ClientPort, filterlib.Port]]:
        """(the filter's end, the program's end)"""
        server = self.open(name, **keywords)
        with filterlib.connect(name) as port:
            client, = server.clients
            yield client, port


@contextlib.contextmanager
def refused(status: int) -> Iterator[pytest.ExceptionInfo[FltError]]:
    with pytest.raises(FltError) as caught:
        yield caught
    assert caught.value.status == status, caught.value
    assert "\n" not in caught.value.message


class Worker(threading.Thread):
    """Runs something in a thread; result() gives what it returned, or raises what it raised."""

    def __init__(self, routine: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        super().__init__(daemon=True)
        self.routine, self.arguments, self.keywords = routine, arguments, keywords
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self.routine(*self.arguments, **self.keywords)
        except BaseException as error:
            self.error = error

    def result(self, seconds: float = 10) -> Any:
        self.join(seconds)
        assert not self.is_alive(), "it still waits"
        if self.error is not None:
            raise self.error
        return self.value


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.001)


def port_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("stackfs-port")]
