"""Every operation that can be registered is seen: one drive a lane, with a filter on it that registers all of them.

A program on the drive does what brings most of them about; what no program can (docs/semantics.md, D20) is injected by
the drive's owner over the control socket; the rest come with its mount and its end.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from conftest import Drive, needs_root, run
from filter_bench import Bench, on_trio, refused
from stack_driver import Host, lookup, opened

from stackfs import api, control, volume_operations
from stackfs.cext.callback_data import MajorFunction
from stackfs.cext.python_requests import INJECTABLE, VfsError, Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.errors import FltError, StackfsError

UNREGISTRABLE = {"IRP_MJ_POWER", "IRP_MJ_DEVICE_CHANGE"}
EVERY = sorted(name.removeprefix("IRP_MJ_") for name in MajorFunction.__members__ if name not in UNREGISTRABLE)

# Which lane brings what, where it is not the one that was asked for. "served": pyfuse3 has no handler for the requests
# that it comes with, so the device serves them. The rest come with no request of a program.
SERVED = {"LOCK_CONTROL", "DEVICE_CONTROL"}
BESIDE = {"VOLUME_MOUNT", "VOLUME_DISMOUNT", "SHUTDOWN"}
INJECTED = {
    "SET_VOLUME_INFORMATION",
    "INTERNAL_DEVICE_CONTROL",
    "SYSTEM_CONTROL",
    "QUERY_QUOTA",
    "SET_QUOTA",
    "PNP",
    "MDL_READ",
    "MDL_READ_COMPLETE",
    "PREPARE_MDL_WRITE",
    "MDL_WRITE_COMPLETE",
}

FILTER = """
import os, threading
from stackfs import api
from stackfs.api import *
MANIFEST = {"name": "everything", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Everything"}
LOG = os.open(%r, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def note(data, when):
    lane = "irp" if threading.current_thread() is threading.main_thread() else "device"
    kind = "irp" if data.is_irp else "fast" if data.is_fast_io else "fs"
    os.write(LOG, f"{api.major_name(data.major)[7:]} {kind} {when} {lane}\\n".encode())

class Everything(Filter):
    operations = tuple(
        Operation(getattr(api, name), pre="pre", post=None if name == "IRP_MJ_SHUTDOWN" else "post")
        for name in dir(api) if name.startswith("IRP_MJ_") and name not in ("IRP_MJ_POWER", "IRP_MJ_DEVICE_CHANGE"))

    def pre(self, data, objects):
        note(data, "pre")
        return FLT_PREOP_SUCCESS_WITH_CALLBACK if data.major != IRP_MJ_SHUTDOWN else FLT_PREOP_SUCCESS_NO_CALLBACK

    def post(self, data, objects, context, flags):
        note(data, "post")
"""
PROGRAM = """
import fcntl, mmap, os, socket, sys
top = sys.argv[1]
os.chdir(top)
with open("file", "wb") as file:
    file.write(bytes(8192))
fd = os.open("file", os.O_RDWR)
os.fstat(fd)
os.pread(fd, 10, 0)
with mmap.mmap(fd, 8192) as pages:
    pages[0] = 1
    pages.flush()
os.fsync(fd)
os.ftruncate(fd, 4096)
fcntl.lockf(fd, fcntl.LOCK_EX)
try:
    fcntl.ioctl(fd, 0x5401, bytes(64))
except OSError:
    pass
os.close(fd)
os.setxattr("file", "user.a", b"x")
os.getxattr("file", "user.a")
os.setxattr("file", "trusted.a", b"x")
os.getxattr("file", "trusted.a")
os.symlink("file", "link")
os.mkfifo("pipe")
socket.socket(socket.AF_UNIX).bind("socket")
os.listdir(".")
os.stat("file")
os.statvfs(".")
os.chmod("file", 0o600)
"""


def injected(drive: Drive, operation: str, **arguments: Any) -> Any:
    clients = control.daemons()
    try:
        (client,) = (each for each in clients if each.hello.mountpoint == str(drive.mnt))
        return client.call("inject", volume=str(drive.mnt), operation=operation, **arguments)
    finally:
        for each in clients:
            each.close()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], set[tuple[str, str, str, str]]]]:
    """everything("auto"): (operation, kind, "pre" or "post", lane), as noted on a drive with these lanes."""
    made: dict[str, set[tuple[str, str, str, str]]] = {}

    def seen(lanes: str) -> set[tuple[str, str, str, str]]:
        if lanes not in made:
            top = tmp_path_factory.mktemp("every")
            for each in (top, top.parent, top.parent.parent):
                each.chmod(0o755)
            (top / "filters").mkdir()
            (top / "filters" / "everything.py").write_text(FILTER % str(top / "log"))
            drive = Drive(top, len(made))
            try:
                drive.mount(
                    f"lanes={lanes}", f"filterdir={top / 'filters'}", "filter=everything", "cache=strict", "locks=stack"
                )
                run("timeout", "-s", "KILL", "20", "python3", "-c", PROGRAM, drive.mnt)
                for operation in INJECTED:
                    injected(drive, operation)
                os.kill(drive.pid, signal.SIGTERM)
                drive.wait_gone()
            finally:
                assert drive.clean_up() == []
            made[lanes] = {tuple(line.split()) for line in (top / "log").read_text().splitlines()}  # type: ignore[misc]
        return made[lanes]

    yield seen


@needs_root
@pytest.mark.parametrize("lanes", ["auto", "irp"])
@pytest.mark.parametrize("operation", EVERY)
def test_every_operation_that_can_be_registered_is_seen(everything: Any, operation: str, lanes: str) -> None:
    lane = "irp" if lanes == "irp" and operation not in SERVED | BESIDE | INJECTED else "device"
    found = {(when, where) for name, _, when, where in everything(lanes) if name == operation}
    assert ("pre", lane) in found
    assert (("post", lane) in found) == (operation != "SHUTDOWN")


@needs_root
@pytest.mark.parametrize("lanes", ["auto", "irp"])
def test_their_kinds(everything: Any, lanes: str) -> None:
    """A4.2 and D19: whatever brings them."""
    kinds: dict[str, set[str]] = {}
    for name, kind, _, _ in everything(lanes):
        kinds.setdefault(name, set()).add(kind)
    notified = {name for name in EVERY if name.startswith(("ACQUIRE_FOR", "RELEASE_FOR"))} | {"QUERY_OPEN"}
    fast = {name for name in EVERY if "MDL" in name} | {"FAST_IO_CHECK_IF_POSSIBLE", "NETWORK_QUERY_OPEN"}
    both = {"READ", "WRITE", "QUERY_INFORMATION", "LOCK_CONTROL", "DEVICE_CONTROL"}
    assert {name for name in kinds if kinds[name] == {"fs"}} == notified
    assert {name for name in kinds if kinds[name] == {"fast"}} - both == fast
    assert {name for name in kinds if kinds[name] == {"irp"}} - both == set(EVERY) - notified - fast - both


# --- what a filter says to them: without a mount ------------------------------------------------------------------


@pytest.mark.parametrize("major", sorted(INJECTABLE))
def test_what_is_injected_reaches_the_base_and_comes_back(core: Volume, place: Path, major: int) -> None:
    """About the volume, a file by its inode, and an open one."""
    seen: list[tuple[str, int, int, str]] = []
    code = api.FSCTL_LOCK_VOLUME if major == api.IRP_MJ_FILE_SYSTEM_CONTROL else 0

    def pre(data: Any, _: object) -> int:
        seen.append(("pre", data.major, data.minor, data.path))
        return api.FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(data: Any, *_: object) -> None:
        seen.append(("post", data.major, data.status, ""))

    core.stack.insert(InstanceEntry(Host(), "f", "1", "f", [(major, 0, pre, post)]))
    node = lookup(core, b"file")
    fh = opened(core, node)
    for target in ({}, {"nodeid": node}, {"fh": fh}):
        if code and target:
            continue
        request = core.inject(major, minor=3, code=code, **target)
        while not request.run():
            request.wait()
        status = request.status
        path = "/file" if target else "/"
        assert seen == [("pre", major, 3, path), ("post", major, status, "")]
        seen.clear()
        unknown = (
            major
            in (
                api.IRP_MJ_SET_VOLUME_INFORMATION,
                api.IRP_MJ_INTERNAL_DEVICE_CONTROL,
                api.IRP_MJ_SYSTEM_CONTROL,
                api.IRP_MJ_QUERY_QUOTA,
                api.IRP_MJ_SET_QUOTA,
            )
            or 0xEE <= major <= 0xF1
        )
        expected = api.STATUS_INVALID_DEVICE_REQUEST if unknown else api.STATUS_ACCESS_DENIED if code else 0
        assert status == expected


def test_a_filter_answers_what_is_injected(core: Volume) -> None:
    def pre(data: Any, _: object) -> int:
        assert (data.control_code, data.input) == (7, b"who?")
        data.buffer[:2] = b"me"
        return int(data.complete(0, 2))

    core.stack.insert(InstanceEntry(Host(), "f", "1", "f", [(api.IRP_MJ_QUERY_QUOTA, 0, pre, None)]))
    assert core.inject(api.IRP_MJ_QUERY_QUOTA, code=7, input=b"who?", output_size=10).do().result() == b"me"


def test_refused_as_fast_io_it_has_no_other_way(core: Volume) -> None:
    entry = InstanceEntry(
        Host(), "f", "1", "f", [(api.IRP_MJ_MDL_READ, 0, lambda *_: api.FLT_PREOP_DISALLOW_FASTIO, None)]
    )
    core.stack.insert(entry)
    with pytest.raises(VfsError):
        core.inject(api.IRP_MJ_MDL_READ).do()
    assert entry.errors == 0


@pytest.mark.parametrize(
    ("major", "code"),
    [
        (api.IRP_MJ_READ, 0),
        (api.IRP_MJ_CREATE, 0),
        (api.IRP_MJ_FILE_SYSTEM_CONTROL, 0),
        (api.IRP_MJ_FILE_SYSTEM_CONTROL, api.FSCTL_SET_REPARSE_POINT),
    ],
)
def test_what_a_program_can_do_is_not_injected(core: Volume, major: int, code: int) -> None:
    with pytest.raises(ValueError):
        core.inject(major, code=code)


def test_an_async_callback_of_it_is_refused(core: Volume) -> None:
    async def pre(data: Any, _: object) -> int:
        return 0

    for major in (api.IRP_MJ_VOLUME_MOUNT, api.IRP_MJ_ACQUIRE_FOR_CC_FLUSH, api.IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE):
        with pytest.raises(ValueError, match="cannot be held"):
            InstanceEntry(Host(), "f", "1", "f", [(major, 0, pre, None)])


def test_skip_flags_keep_them_away(core: Volume, place: Path) -> None:
    """SKIP_CACHED_IO all that is fast I/O; SKIP_NON_DASD_IO what is not about the volume itself (A2.7)."""
    seen: list[str] = []
    see = lambda data, _: (seen.append(api.major_name(data.major)), 1)[1]  # noqa: E731
    rows = [(api.IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE, 2, see, None), (api.IRP_MJ_PNP, 4, see, None)]
    core.stack.insert(InstanceEntry(Host(), "f", "1", "f", rows))
    core.inject(api.IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE).do()
    core.inject(api.IRP_MJ_PNP, lookup(core, b"file")).do()
    assert seen == []
    core.inject(api.IRP_MJ_PNP).do()
    assert seen == ["IRP_MJ_PNP"]


# --- mount, dismount, shutdown ------------------------------------------------------------------------------------

MOUNTS = """
class Kept(VolumeContext):
    pass

class Dropped(Filter):
    contexts = (Kept,)
    operations = (Operation(IRP_MJ_VOLUME_MOUNT, pre="pre", post="post"), Operation(IRP_MJ_VOLUME_DISMOUNT, pre="pre"),
                  Operation(IRP_MJ_SHUTDOWN, pre="pre"), Operation(IRP_MJ_CREATE, pre="pre"))
    trace = []
    status = 0
    made = []

    def pre(self, data, objects):
        self.trace.append((self.name, api.major_name(data.major)[7:], objects.Instance is None, objects.Volume.name))
        if data.major == IRP_MJ_VOLUME_MOUNT:
            data.set_context(Kept())
            if self.status:
                return data.complete(self.status)
        elif data.major == IRP_MJ_VOLUME_DISMOUNT:
            assert data.get_context(Kept) is not None
            return data.complete(STATUS_ACCESS_DENIED)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK if data.major == IRP_MJ_VOLUME_MOUNT else FLT_PREOP_SUCCESS_NO_CALLBACK

    def post(self, data, objects, context, flags):
        self.trace.append((self.name, "mounted", data.status))

    def instance_setup(self, instance, flags):
        self.trace.append((self.name, "setup"))

    def instance_teardown_start(self, instance, reason):
        self.trace.append((self.name, "teardown"))
"""


@on_trio
async def test_mount_dismount_and_shutdown(bench: Bench) -> None:
    """D18: filters see the mount before any instance is set up, by their default instances; instances the dismount,
    before they are torn down, whatever they say to it; and the shutdown, before both."""
    trace: list[Any] = []
    for name, altitude in (("low", "370100"), ("high", "370900")):
        bench.drop(MOUNTS + f"    name = {name!r}\n", name, altitude)
        await bench.manager.load(name)
        bench.module(name).Dropped.trace = trace
    (bench.top / "v").mkdir()
    volume = await bench.manager.open_volume("v", str(bench.top / "v"))
    assert trace == [
        ("high", "VOLUME_MOUNT", True, "v"),
        ("low", "VOLUME_MOUNT", True, "v"),
        ("low", "mounted", 0),
        ("high", "mounted", 0),
        ("high", "setup"),
        ("low", "setup"),
        ("high", "CREATE", False, "v"),
        ("low", "CREATE", False, "v"),
    ]
    trace.clear()
    await volume_operations.shut_down(bench.manager.volumes)
    await bench.manager.remove_volume(volume)
    assert trace == [
        ("high", "SHUTDOWN", False, "v"),
        ("low", "SHUTDOWN", False, "v"),
        ("high", "VOLUME_DISMOUNT", False, "v"),
        ("high", "teardown"),
        ("low", "teardown"),
    ]


@on_trio
async def test_a_filter_may_refuse_a_mount(bench: Bench) -> None:
    bench.drop(MOUNTS + "    name = 'f'\n")
    await bench.manager.load("f")
    bench.module().Dropped.status = api.STATUS_ACCESS_DENIED
    (bench.top / "v").mkdir()
    with pytest.raises(StackfsError, match="do not let volume 'v' be mounted"):
        await bench.manager.open_volume("v", str(bench.top / "v"))
    assert bench.manager.volumes == [] and ("f", "setup") not in bench.module().Dropped.trace


@on_trio
async def test_what_a_filter_does_to_a_shutdown_ends_in_time(bench: Bench) -> None:
    bench.drop(
        'class Dropped(Filter):\n    operations = (Operation(IRP_MJ_SHUTDOWN, pre="pre"),)\n'
        "    def pre(self, data, objects):\n        self.data = data\n        return FLT_PREOP_PENDING\n"
        "    def instance_teardown_start(self, instance, reason):\n        self.data.complete_pended_pre(1)\n"
    )
    volume = bench.volume()
    await bench.manager.load("f")
    limit, volume_operations.ENDING_LIMIT = volume_operations.ENDING_LIMIT, 0.2
    try:
        with trio.fail_after(5):
            await volume_operations.shut_down([volume])
    finally:
        volume_operations.ENDING_LIMIT = limit


@on_trio
async def test_injecting_by_name(bench: Bench) -> None:
    volume = bench.volume()
    assert await volume_operations.inject(volume, "pnp", 3) == (0, b"")
    assert await volume_operations.inject(volume, "IRP_MJ_SYSTEM_CONTROL", path="file") == (
        api.STATUS_INVALID_DEVICE_REQUEST,
        b"",
    )
    lock = await volume_operations.inject(volume, "FILE_SYSTEM_CONTROL", code=api.FSCTL_LOCK_VOLUME)
    assert lock == (0, b"") and volume.core.known_inodes == 1
    fh = opened(volume.core, lookup(volume.core, b"file"))
    lock = await volume_operations.inject(volume, "FILE_SYSTEM_CONTROL", code=api.FSCTL_LOCK_VOLUME)
    assert lock == (api.STATUS_ACCESS_DENIED, b"")
    volume.core.request(18, fh=fh).do()
    async with refused(api.STATUS_OBJECT_NAME_NOT_FOUND, "nothing"):
        await volume_operations.inject(volume, "PNP", path="nothing")
    for operation in ("READ", "POWER", "no such"):
        async with refused(api.STATUS_INVALID_PARAMETER, "cannot be injected"):
            await volume_operations.inject(volume, operation)
    with pytest.raises(FltError):
        await volume_operations.inject(volume, "FILE_SYSTEM_CONTROL", code=1)
