"""Statuses (docs/semantics.md A10): what a program and user mode see of each, also of those nothing here answers."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from stack_driver import CREATE, LOOKUP, entry_of, error_of

from stackfs import api
from stackfs.cext import ntstatus
from stackfs.cext.python_requests import Volume
from stackfs.hresult import SUCCEEDED, from_status

OWN = {name: int(value) for name, value in vars(api).items() if name.startswith("STATUS_FLT_")}


def test_every_status_of_the_filter_manager_comes_out_by_the_table(core: Volume, place: Path) -> None:
    """A filter that refuses with it: the program sees the errno of A10.4, the filter above the status itself."""
    errnos = {name: number for _, name, number, _ in ntstatus.table()}
    answer, above = [0], []

    def see(data: Any, *_: Any) -> None:
        above.append(data.status)

    major = api.IRP_MJ_QUERY_OPEN
    core.stack.insert(entry_of((major, lambda *_: 0, see), name="above", at="2"))
    core.stack.insert(entry_of((major, lambda data, _: data.complete(answer[0]), None), name="f", at="1"))
    for name, status in OWN.items():
        if name in ("STATUS_FLT_IO_COMPLETE", "STATUS_FLT_DISALLOW_FAST_IO"):
            continue                                            # no outcome (A6.5), and none of a QUERY_OPEN
        answer[0] = status
        assert error_of(core, LOOKUP, name=b"file") == errnos[name] != 0, name
        assert above.pop() == status, name
    assert len(OWN) >= 27


def test_user_mode_knows_each_by_an_hresult() -> None:
    """0xC01C00nn is 0x801F00nn, and the one success among them is one there too."""
    for name, status in OWN.items():
        expected = 0x801F0000 | status & 0xFFFF if name != "STATUS_FLT_IO_COMPLETE" else 0x001F0001
        assert from_status(status) == expected, name
        assert SUCCEEDED(from_status(status)) == api.is_success(status) == (name == "STATUS_FLT_IO_COMPLETE"), name
    assert api.to_errno(api.STATUS_FLT_IO_COMPLETE) == 0


def test_a_status_is_an_ntstatus_inside_and_an_errno_outside(core: Volume, place: Path) -> None:
    """A10.1: success and information are positive as signed numbers; what the base fails with is translated once."""
    for status, success in ((0, True), (0x103, True), (0x40000000, True), (0x80000005, False), (0xC0000001, False)):
        assert api.is_success(status) is success
    seen: list[int] = []

    def post(data: Any, *_: Any) -> None:
        seen.append(data.status)

    core.stack.insert(entry_of((api.IRP_MJ_QUERY_OPEN, None, post), (api.IRP_MJ_CREATE, None, post)))
    assert error_of(core, LOOKUP, name=b"absent") == errno.ENOENT
    assert error_of(core, CREATE, name=b"file", flags=os.O_RDWR | os.O_EXCL, mode=0o600) == errno.EEXIST
    assert error_of(core, LOOKUP, name=b"x" * 300) == errno.ENAMETOOLONG
    assert seen == [api.STATUS_OBJECT_NAME_NOT_FOUND, api.STATUS_OBJECT_NAME_COLLISION, api.STATUS_NAME_TOO_LONG]


def test_no_status_becomes_enosys(core: Volume, place: Path) -> None:
    """A10.3: neither one of the table, nor a carried errno, nor one without a row."""
    carried = [0xE0E00000 | number for number in range(1, 134)]
    for status in (*(status for status, *_ in ntstatus.table()), *carried, 0xC0000FFF, 0xD0000001):
        assert api.to_errno(status) != errno.ENOSYS, hex(status)
    assert api.from_errno(errno.ENOSYS) == api.STATUS_NOT_SUPPORTED
    refuses = (api.IRP_MJ_QUERY_OPEN, lambda data, _: data.complete(api.STATUS_NOT_IMPLEMENTED), None)
    core.stack.insert(entry_of(refuses))
    assert error_of(core, LOOKUP, name=b"file") == errno.EOPNOTSUPP


def test_an_errno_without_a_status_travels_as_it_is(core: Volume, place: Path) -> None:
    """A10.4: and a failure without a row is an I/O error."""
    for number in (errno.EPROTO, errno.ENOTCONN, errno.ESHUTDOWN):
        status = api.from_errno(number)
        assert status == 0xE0E00000 | number and api.to_errno(status) == number
    answer = [0xC0000FFF]
    core.stack.insert(entry_of((api.IRP_MJ_QUERY_OPEN, lambda data, _: data.complete(answer[0]), None)))
    assert error_of(core, LOOKUP, name=b"file") == errno.EIO
    answer[0] = api.from_errno(errno.EPROTO)
    assert error_of(core, LOOKUP, name=b"file") == errno.EPROTO


NO_MEMORY = """
import os, resource, sys
sys.path.insert(0, sys.argv[2])
from stack_driver import LOOKUP, entry_of, error_of, lookup
from stackfs import api
from stackfs.cext.python_requests import Volume

core = Volume(os.open(sys.argv[1], os.O_PATH | os.O_DIRECTORY))
called = []
rows = (api.IRP_MJ_QUERY_OPEN, lambda *_: called.append(1) or 1, None)
for at in range(1000):
    core.stack.insert(entry_of(rows, name=f"f{at}", at=str(at)))
core.stack.drained()
lookup(core, b"file")
assert len(called) == 1000
called.clear()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size, before[1]))
holes = []
try:
    while True:                     # what is free within the process
        holes.append(bytearray(4096))
except MemoryError:
    pass
try:
    failed = error_of(core, LOOKUP, name=b"file")
finally:
    resource.setrlimit(resource.RLIMIT_AS, before)
    holes.clear()
assert not called, "there was memory for it"
lookup(core, b"file")
print(failed, len(called))
"""


def test_an_operation_for_which_there_is_no_memory(tmp_path: Path) -> None:
    """STATUS_FLT_INTERNAL_ERROR: it fails before any filter sees it, and the next one goes on."""
    (tmp_path / "file").touch()
    command = [sys.executable, "-c", NO_MEMORY, str(tmp_path), str(Path(__file__).resolve().parents[1])]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TOP_PAD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(api.to_errno(api.STATUS_FLT_INTERNAL_ERROR)), "1000"]
