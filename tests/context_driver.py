"""Instances with contexts, made by hand, and what has become of the contexts (test_contexts*.py)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stack_driver import (
    RELEASE,
    Host,
    go_on,
    lookup,
    opened,
    read,
)

from stackfs.api import (
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE,
    IRP_MJ_CREATE,
    IRP_MJ_READ,
    STATUS_SUCCESS,
    Context,
    FileContext,
    InstanceContext,
    NtStatusError,
    StreamContext,
    StreamHandleContext,
    VolumeContext,
)
from stackfs.cext.python_contexts import FilterContexts
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry

RENAME, LINK, FORGETS = 12, 13, 1 << 20
gone: list[Context] = []
"""Contexts whose cleanup has run, in order."""


def record(context: Context) -> None:
    gone.append(context)


class OfVolume(VolumeContext):
    cleanup = record


class OfInstance(InstanceContext):
    cleanup = record


class OfFile(FileContext):
    cleanup = record


class OfStream(StreamContext):
    cleanup = record


class OfHandle(StreamHandleContext):
    cleanup = record


KINDS = (OfVolume, OfInstance, OfFile, OfStream, OfHandle)
WITH_FILE = (OfFile, OfStream, OfHandle)


@pytest.fixture(autouse=True)
def none_gone() -> Iterator[None]:
    gc.collect()  # instances of other tests, dropped with what they kept
    gone.clear()
    yield
    gone.clear()


class Layer:
    """An instance made by hand; `see(when, data)` is called in each of its callbacks, at PASSIVE_LEVEL: its posts may
    ask for contexts and names."""

    def __init__(
        self, core: Volume, see: Callable[[str, Any], Any] = go_on, *majors: int,
        name: str = "f", at: str = "1", contexts: FilterContexts | None = None,
    ) -> None:  # fmt: skip
        self.core = core
        self.see = see
        self.contexts = contexts or FilterContexts(KINDS)
        self.host = Host()
        rows = [(major, 0, self.pre, self.post) for major in majors]
        self.entry = InstanceEntry(self.host, name, at, name, rows, contexts=self.contexts)
        core.stack.introduce(self.entry)
        core.stack.insert(self.entry)

    def pre(self, data: Any, objects: Any) -> int:
        self.see("pre", data)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK if data.major == IRP_MJ_CREATE else FLT_PREOP_SYNCHRONIZE

    def post(self, data: Any, objects: Any, context: Any, flags: int) -> None:
        self.see("post", data)

    def detach(self) -> None:
        """As the manager does (A3.9)."""
        self.core.stack.remove(self.entry)
        self.entry.close_contexts()
        assert self.core.stack.drained()
        while self.entry.delete_contexts(2):
            pass

    def fine(self) -> None:
        assert self.host.told == []


def released(core: Volume, fh: int) -> None:
    core.request(RELEASE, fh=fh).do()


def status_of(routine: Callable[..., Any], *arguments: Any) -> int:
    try:
        routine(*arguments)
    except NtStatusError as error:
        return error.status
    return STATUS_SUCCESS


def row(kind: int, size: int = 0, flags: int = 0, cleanup: Any = None, allocate: Any = None, free: Any = None) -> Any:
    return (kind, flags, size, cleanup, allocate, free)


def in_read(core: Volume, look: Callable[[Any, Layer], Any], **keywords: Any) -> Layer:
    """Runs look(data, layer) once, in the pre of a READ."""
    done: list[int] = []

    def see(when: str, data: Any) -> None:
        if when == "pre" and not done:
            done.append(1)
            look(data, layer)

    layer = Layer(core, see, IRP_MJ_READ, **keywords)
    read(core, opened(core, lookup(core, b"file")))
    layer.fine()
    assert done
    return layer
