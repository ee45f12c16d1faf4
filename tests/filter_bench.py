"""A filter manager with drop-ins written by the test, and volumes without a mount (fixture `bench`)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from stackfs.cext.python_requests import Volume as CoreVolume
from stackfs.errors import FltError
from stackfs.manager import FilterManager, Volume, running

MANIFEST = (
    'MANIFEST = {"name": "%s", "altitude": "%s", "group": "FSFilter Activity Monitor", "filter": "Dropped", %s}\n'
    "from stackfs import api\nfrom stackfs.api import *\nfrom stackfs.errors import StackfsError\n"
)
DRIVER_HEAD = (
    'MANIFEST = {"name": "%s", "altitude": "%s", "group": "FSFilter Activity Monitor", %s}\n'
    "from stackfs.api import *\nfrom stackfs.fltkernel import *\n"
)
TRACES = '''
class Dropped(Filter):
    """Writes down what it is told, and sees every FLUSH_BUFFERS."""

    operations = (Operation(IRP_MJ_FLUSH_BUFFERS, pre="pre", post="post"),)

    def __init__(self, options):
        super().__init__(options)
        self.trace = []

    def tell(self, *what):
        self.trace.append(what)
        return STATUS_SUCCESS

    def filter_unload(self, flags):
        return self.tell("unload", flags)

    def instance_setup(self, instance, flags):
        instance.context = {"mine"}
        return self.tell("setup", instance.name, flags)

    def instance_query_teardown(self, instance, flags):
        return self.tell("query", instance.name)

    def instance_teardown_start(self, instance, reason):
        self.tell("start", instance.name, reason)

    def instance_teardown_complete(self, instance, reason):
        assert instance.context == {"mine"}
        self.tell("complete", instance.name, reason)

    def pre(self, data, objects):
        self.tell("pre", objects.name)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(self, data, objects, context, flags):
        self.tell("post", objects.name)
'''
PLAIN = "class Dropped(Filter):\n    %s\n"


class Bench:
    """A manager, its drop-ins, and volumes without a mount."""

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "filters").mkdir()
        self.manager = FilterManager([str(top / "filters")])

    def drop(self, body: str, name: str = "f", altitude: str = "370500", fields: str = "") -> None:
        (self.top / "filters" / f"{name}.py").write_text(MANIFEST % (name, altitude, fields) + body)

    def drop_driver(self, body: str, name: str = "f", altitude: str = "370500", fields: str = "") -> None:
        """A file without a class: it has a DriverEntry."""
        head = DRIVER_HEAD % (name, altitude, fields)
        (self.top / "filters" / f"{name}.py").write_text(head + body)

    def module(self, name: str = "f") -> Any:
        return sys.modules[f"stackfs_filter_{name}"]

    def volume(self, name: str = "v") -> Volume:
        source = self.top / name
        source.mkdir()
        (source / "file").write_bytes(b"0123456789")
        core = CoreVolume(os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return self.manager.add_volume(name, "", str(source), core)

    def trace(self, name: str = "f") -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self.manager.filter(name).object.trace  # type: ignore[attr-defined]
        return found


def on_trio(test: Callable[[Bench], Awaitable[None]]) -> Callable[[Bench], None]:
    """Runs a test with the manager's own task, and takes all volumes down in the end."""

    async def main(bench: Bench) -> None:
        with trio.fail_after(60):
            async with running(bench.manager):
                await test(bench)

    def wrapped(bench: Bench) -> None:
        trio.run(main, bench)

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__  # type: ignore[attr-defined]
    return wrapped


@contextlib.asynccontextmanager
async def refused(status: int, words: str = "") -> AsyncIterator[None]:
    with pytest.raises(FltError) as caught:
        yield
    assert caught.value.status == status, caught.value
    assert words in caught.value.message and "\n" not in caught.value.message
