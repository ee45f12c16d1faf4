"""POLL on mounted drives (docs/semantics.md D22): a filter says what a file is ready for, and wakes who polls it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Drive, filter_directory, run

from stackfs import api
from stackfs.cext.python_requests import Volume

POLL = 40

FILTER = '''
MANIFEST = {"name": "ready", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Ready"}

import select
from stackfs.api import *

class Ready(Filter):
    """A file is ready for what has been written to it, and for nothing else."""
    events = {}
    handles = {}
    operations = (Operation(IRP_MJ_FILE_SYSTEM_CONTROL, pre="control"), Operation(IRP_MJ_WRITE, pre="write"))

    def control(self, data, objects):
        if data.control_code != FSCTL_STACKFS_POLL or data.request != "poll" or data.path not in self.events:
            return FLT_PREOP_SUCCESS_NO_CALLBACK
        self.handles[data.path] = data.poll_handle
        data.status, data.information = STATUS_SUCCESS, self.events[data.path] & (data.poll_events | select.POLLPRI)
        return FLT_PREOP_COMPLETE

    def write(self, data, objects):
        self.events[data.path] = data.offset
        if data.path in self.handles:
            objects.volume.wake_poll(self.handles[data.path])
        return data.complete(STATUS_SUCCESS, data.length)
'''

PROGRAM = """
import os, select, sys, threading, time
fd = os.open(sys.argv[1], os.O_RDWR)
other = os.open(sys.argv[1], os.O_WRONLY)

def ready_for(events):
    os.pwrite(other, b"x", events)

def later(events):
    thread = threading.Thread(target=lambda: (time.sleep(0.2), ready_for(events)))
    thread.start()
    return time.monotonic()

def said(name, answer, since):
    took = time.monotonic() - since
    print(name, answer, "woken" if 0.15 < took < 2 else f"after {took}")
"""


def test_files_are_ready_until_a_filter_says_otherwise(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive()
    (made.src / "file").write_text("content")
    program = """
poll = select.poll()
poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
print(poll.poll(5000)[0][1], select.select([fd], [fd], [fd], 0.1) == ([fd], [fd], []))
"""
    assert said(made.mnt / "file", program) == f"{0x5} True\n"


def test_a_filter_says_what_a_file_is_ready_for(drive: Callable[..., Drive], tmp_path: Path, lanes: str) -> None:
    """poll(2), select(2), and epoll(7) on both edges are woken by it, and shown no other events than it names."""
    filters = filter_directory(tmp_path, ready=FILTER)
    made = drive(f"filterdir={filters}", "filter=ready", "cache=strict")
    (made.src / "file").write_text("content")
    program = """
ready_for(0)
poll = select.poll()
poll.register(fd, select.POLLIN | select.POLLPRI)
print("nothing", poll.poll(50))
since = later(select.POLLPRI)
said("poll", poll.poll(5000)[0][1], since)
print("still", poll.poll(5000)[0][1])
ready_for(0)
since = later(select.POLLPRI)
said("select", select.select([fd], [], [fd], 5) == ([], [], [fd]), since)
ready_for(0)
epoll = select.epoll()
epoll.register(fd, select.EPOLLPRI | select.EPOLLET)
print("nothing", epoll.poll(0.05))
for _ in range(2):
    since = later(select.POLLPRI)
    said("epoll", epoll.poll(5)[0][1], since)
print("edge", epoll.poll(0.05))
ready_for(0)
since = later(select.POLLIN)
said("in", poll.poll(5000)[0][1], since)
"""
    assert said(made.mnt / "file", program).splitlines() == [
        "nothing []",
        "poll 2 woken",
        "still 2",
        "select True woken",
        "nothing []",
        "epoll 2 woken",
        "epoll 2 woken",
        "edge []",
        "in 1 woken",
    ]


def said(file: Path, program: str) -> str:
    return run(sys.executable, "-c", PROGRAM + program, file, timeout=20).stdout


def test_what_a_filter_is_shown_of_a_poll(core: Volume, place: Path) -> None:
    """The events asked for, and the kernel's handle; what it answers stands; without it a file is always ready."""
    from stack_driver import entry_of, lookup

    nodeid = lookup(core, b"file")
    fh = core.request(14, nodeid, flags=2).do().fh
    assert core.request(POLL, nodeid, fh=fh, events=1).do().length == 0x145
    seen: list[tuple[int, int, int]] = []

    def pre(data: api.CallbackData, objects: object) -> int:
        if data.control_code != api.FSCTL_STACKFS_POLL:
            with pytest.raises(ValueError):
                _ = data.poll_handle
            return api.FLT_PREOP_SUCCESS_NO_CALLBACK
        seen.append((data.control_code, data.poll_events, data.poll_handle))
        data.status, data.information = api.STATUS_SUCCESS, 2
        return api.FLT_PREOP_COMPLETE if len(seen) == 1 else api.FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_FILE_SYSTEM_CONTROL, pre, None)))
    assert core.request(POLL, nodeid, fh=fh, events=3, offset=77).do().length == 2
    assert core.request(POLL, nodeid, fh=fh, events=3, offset=77).do().length == 0x145
    assert seen == [(api.FSCTL_STACKFS_POLL, 3, 77)] * 2
    assert not core.wake_poll(77)  # not mounted
    core.request(18, nodeid, fh=fh).do()


def test_an_ioctl_is_no_poll(core: Volume, place: Path) -> None:
    from stack_driver import lookup

    nodeid = lookup(core, b"file")
    fh = core.request(14, nodeid, flags=2).do().fh
    request = core.request(39, nodeid, fh=fh, command=api.FSCTL_STACKFS_POLL)
    request.run()
    assert request.error
    core.request(18, nodeid, fh=fh).do()
