"""What the Filter Manager is there for, as far as no other test shows it: stack use, one callback for every way in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stack_driver import GETATTR, READ, entry_of, go_on, lookup, opened, read

from stackfs import api
from stackfs.api import FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_PREOP_SYNCHRONIZE
from stackfs.cext.python_requests import Volume

SYSCALL = Path("/proc/thread-self/syscall")


def stack_pointer() -> int:
    """Where the calling thread's C stack ends."""
    return int(SYSCALL.read_text().split()[-2], 16)


@pytest.mark.skipif(not SYSCALL.exists(), reason="the kernel does not say where a thread's stack ends")
def test_layers_take_no_stack(core: Volume, place: Path) -> None:
    """However many filters an operation passes, each callback has as much stack left as if its filter were alone."""
    seen: list[int] = []

    def look(*_: Any) -> int:
        seen.append(stack_pointer())
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    fh = opened(core, lookup(core, b"file"))
    core.stack.insert(entry_of((api.IRP_MJ_READ, look, look), name="lowest", at="1"))
    assert read(core, fh) == b"0123456789"
    for at in range(2, 200):
        pre = go_on if at % 2 else lambda *_: FLT_PREOP_SYNCHRONIZE
        core.stack.insert(entry_of((api.IRP_MJ_READ, pre, lambda *_: 0), name=f"f{at}", at=str(at)))
    core.stack.insert(entry_of((api.IRP_MJ_READ, look, look), name="highest", at="1000"))
    assert read(core, fh) == b"0123456789"
    assert len(seen) == 6 and max(seen) - min(seen) < 256, [hex(each) for each in seen]


def test_one_callback_for_every_way_in(core: Volume, place: Path) -> None:
    """A program's read comes as fast I/O, the page cache's as an IRP: one callback, the same fields."""
    seen: list[tuple[Any, ...]] = []

    def callback(data: Any, *_: Any) -> int:
        seen.append((data.is_fast_io, data.is_irp, data.major, data.offset, data.length, data.path, len(data.buffer)))
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def pre(*arguments: Any) -> int:
        callback(*arguments)
        return FLT_PREOP_SYNCHRONIZE             # its post may ask for the path

    fh = opened(core, lookup(core, b"file"))
    core.stack.insert(entry_of((api.IRP_MJ_READ, pre, callback)))
    for own in (2, 0):
        request = core.request(READ, fh=fh, buffer=bytearray(4), size=4, offset=3, open_flags=own).do()
        assert request.length == 4
    what = (api.IRP_MJ_READ, 3, 4, "/file", 4)
    assert seen == [(True, False, *what)] * 2 + [(False, True, *what)] * 2


def test_a_filter_sees_nothing_it_did_not_register_for(core: Volume, place: Path) -> None:
    """Not an operation of the same request, nor of another."""
    seen: list[int] = []

    def callback(data: Any, *_: Any) -> int:
        seen.append(data.major)
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_NETWORK_QUERY_OPEN, callback, None)))
    node = lookup(core, b"file")
    assert read(core, opened(core, node)) == b"0123456789"
    assert seen == []
    core.request(GETATTR, node).do()
    assert seen == [api.IRP_MJ_NETWORK_QUERY_OPEN]
