"""Storms on a mount, with the verifier on: instances and filters come and go, names and signals move, while fio writes
and checks.

Each storm asserts what has to hold whatever the order was: no program sees an error or a wrong byte, every post that
was owed was called, the daemon has nothing open and nothing under way in the end, and neither the log nor the verifier
has anything to say. A storm that hangs fails by its time limit. A few seconds each; a minute each in the long tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import STACKFS, Drive, run

from stackfs.control import Client, daemons

pytestmark = [
    pytest.mark.skipif(shutil.which("fio") is None, reason="not installed: fio"),
    pytest.mark.timeout(240),
]

SECONDS = 4.0
LONG_SECONDS = 60.0

STORM = '''
MANIFEST = {
    "name": "storm", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Storm",
    "options": {"hold": {"type": "bool", "default": True}},
}
import itertools

from stackfs.api import *
from stackfs.work_items import DeferredIoWorkItem


class OfStream(StreamContext):
    def __init__(self):
        self.opened = 0


class Storm(Filter):
    """Swaps what is written and read, keeps contexts, asks for names, holds some reads in other threads, and those of
    files called "slow" until somebody cancels them. Knows which posts it is owed."""

    operations = tuple(
        Operation(major, pre="pre", post="post")
        for major in (IRP_MJ_CREATE, IRP_MJ_CLEANUP, IRP_MJ_READ, IRP_MJ_WRITE, IRP_MJ_FLUSH_BUFFERS,
                      IRP_MJ_SET_INFORMATION)
    )
    contexts = (OfStream,)
    numbers = itertools.count()

    def instance_setup(self, instance, flags):
        instance.context = set()
        return STATUS_SUCCESS

    def instance_teardown_complete(self, instance, reason):
        assert not instance.context, f"{len(instance.context)} posts were not called"
        return STATUS_SUCCESS

    def filter_unload(self, flags):
        return STATUS_SUCCESS

    def owed(self, objects, kept=None):
        number = next(self.numbers)
        objects.context.add(number)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK, (number, kept)

    def pre(self, data, objects):
        number = next(self.numbers)
        if data.major in (IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION):
            assert data.name_information().volume == objects.volume.name
        elif data.major == IRP_MJ_WRITE:
            data.buffer = bytes(data.buffer)
            data.set_dirty()
        elif data.major == IRP_MJ_READ:
            if not data.irp_flags & IRP_PAGING_IO and data.path.endswith("slow"):
                return self.hold(data, objects)
            if number % 5 == 0:
                if data.is_fast_io:
                    return FLT_PREOP_DISALLOW_FASTIO
                if self.options["hold"] and DeferredIoWorkItem().queue(data, self.later) == STATUS_SUCCESS:
                    return FLT_PREOP_PENDING
            if number % 5 == 1:
                kept = bytearray(data.length)
                data.buffer = kept
                data.set_dirty()
                return self.owed(objects, kept)
        return self.owed(objects)

    def later(self, item, data, context):
        data.complete_pended_pre(*self.owed(data.instance))

    def hold(self, data, objects):
        if data.is_fast_io:
            return FLT_PREOP_DISALLOW_FASTIO
        if data.set_cancel_completion(self.cancelled) != STATUS_SUCCESS:
            return data.complete(STATUS_CANCELLED)
        return FLT_PREOP_PENDING

    def cancelled(self, data):
        data.complete_pended_pre(data.complete(STATUS_CANCELLED))

    def post(self, data, objects, context, flags):
        number, kept = context
        objects.context.remove(number)
        if flags & FLTFL_POST_OPERATION_DRAINING:
            return
        if kept is not None and is_success(data.status):
            data.buffer[: data.information] = kept[: data.information]
        if data.major == IRP_MJ_CREATE and is_success(data.status):
            try:
                data.ensure_context(OfStream).opened += 1
            except NtStatusError as error:
                if error.status != STATUS_FLT_DELETING_OBJECT:       # it is being torn down (B2.5)
                    raise
'''

DRIVER = '''
MANIFEST = {"name": "driver", "altitude": "370600", "group": "FSFilter Activity Monitor"}
from stackfs.api import *
from stackfs.fltkernel import *

gFilter = Out()


def Pre(Data, FltObjects, CompletionContext):
    Name = Out()
    if FltGetFileNameInformation(Data, FLT_FILE_NAME_OPENED | FLT_FILE_NAME_QUERY_DEFAULT, Name) == STATUS_SUCCESS:
        FltParseFileNameInformation(Name.value)
        CompletionContext.value = Name.value
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    return FLT_PREOP_SUCCESS_NO_CALLBACK


def Post(Data, FltObjects, CompletionContext, Flags):
    FltReleaseFileNameInformation(CompletionContext)
    return FLT_POSTOP_FINISHED_PROCESSING


def Unload(Flags):
    FltUnregisterFilter(gFilter.value)
    return STATUS_SUCCESS


def Query(FltObjects, Flags):
    return STATUS_SUCCESS


def DriverEntry(DriverObject, RegistryPath):
    Registration = FLT_REGISTRATION(
        OperationRegistration=[
            FLT_OPERATION_REGISTRATION(IRP_MJ_CREATE, 0, Pre, Post),
            FLT_OPERATION_REGISTRATION(IRP_MJ_CLEANUP, 0, Pre, Post),
        ],
        FilterUnloadCallback=Unload, InstanceQueryTeardownCallback=Query,
    )
    Status = FltRegisterFilter(DriverObject, Registration, gFilter)
    return Status if Status else FltStartFiltering(gFilter.value)
'''

RENAMES = """
import os, random, sys, time
top, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
choose = random.Random(int(sys.argv[3]))
os.makedirs(top + "/a/b/c")
where, number = "a/b/c", 0
for name in ("one", "two"):
    with open(f"{top}/{where}/{name}", "w") as file:
        file.write(name)
while time.monotonic() < end:
    number += 1
    parts = where.split("/")
    at = choose.randrange(3)
    old = "/".join(parts[: at + 1])
    parts[at] = f"n{number}"
    os.rename(f"{top}/{old}", f"{top}/{'/'.join(parts[: at + 1])}")
    where = "/".join(parts)
    for name in ("one", "two"):
        with open(f"{top}/{where}/{name}") as file:
            assert file.read() == name
    assert not os.path.exists(f"{top}/{old}")
print(number)
"""

READS = """
import mmap, os, signal, sys
class Told(Exception): pass
def tell(*_): raise Told
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
room = mmap.mmap(-1, 4096)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signal.signal(signal.SIGUSR1, tell)
told = 0
print("ready", flush=True)
while told < int(sys.argv[2]):
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        while True:
            os.preadv(fd, [room], 0)      # comes back where nobody holds it
    except Told:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        told += 1
        print(told, flush=True)
"""


class Storm:
    """A mounted drive under load, until `end`."""

    def __init__(self, drive: Callable[..., Drive], top: Path, seconds: float, *options: str) -> None:
        self.filters = top / "filters"
        self.filters.mkdir()
        (self.filters / "storm.py").write_text(STORM)
        (self.filters / "driver.py").write_text(DRIVER)
        self.drive = drive(f"filterdir={self.filters}", *options)
        self.seconds = seconds
        self.end = time.monotonic() + seconds
        self.failures: list[BaseException] = []
        self.jobs = 0
        self.threads: list[threading.Thread] = []
        self.random = random.Random(20)

    @property
    def on(self) -> bool:
        return time.monotonic() < self.end and not self.failures

    def start(self, routine: Callable[..., None], *arguments: Any) -> None:
        """In a thread of its own; what it raises fails the storm."""

        def guarded() -> None:
            try:
                routine(*arguments)
            except BaseException as error:
                self.failures.append(error)

        self.threads.append(threading.Thread(target=guarded))
        self.threads[-1].start()

    def fio(self, name: str, *extra: str) -> None:
        """Verify jobs, one after the other."""
        while self.on:
            done = run(
                "fio", f"--name={name}", f"--directory={self.drive.mnt}", "--verify=crc32c", "--do_verify=1",
                "--verify_fatal=1", "--output-format=json", "--size=1m", *extra, timeout=100, cwd=self.filters,
            )  # fmt: skip
            jobs = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
            assert all(job["error"] == 0 for job in jobs)
            self.jobs += len(jobs)

    def program(self, code: str, *arguments: object) -> None:
        run(sys.executable, "-I", "-c", code, *map(str, arguments), timeout=self.seconds + 100)

    @contextlib.contextmanager
    def control(self) -> Iterator[Client]:
        """A connection to the daemon."""
        found = daemons()
        try:
            (mine,) = [each for each in found if each.hello.mountpoint == str(self.drive.mnt)]
            yield mine
        finally:
            for each in found:
                each.close()

    def over(self) -> None:
        """What has to hold when it has passed."""
        for thread in self.threads:
            thread.join()
        if self.failures:
            raise self.failures[0]
        assert self.jobs > 0
        limit = time.monotonic() + 5
        while (status := self.status()) and (status["open_files"] or status["in_flight"]):  # RELEASE comes late
            assert time.monotonic() < limit, status
            time.sleep(0.05)
        assert status["verifier"] == {"on": True, "errors": 0, "last": []}
        assert status["failed_instances"] == [] and status["unloading"] == {} and status["refused_deadlocks"] == 0

    def status(self) -> dict[str, Any]:
        volumes = json.loads(run(STACKFS, "status", "--json", check=False).stdout)["volumes"]
        (status,) = [each["status"] for each in volumes if each["mountpoint"] == str(self.drive.mnt)]
        return dict(status)


RANDOM = ("--rw=randrw", "--bs=4k", "--ioengine=psync", "--verify_backlog=32", "--numjobs=2")
MAPPED = ("--rw=randwrite", "--bs=4k", "--ioengine=mmap")
DIRECT = ("--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=8", "--direct=1")


def every_lane_when_long(quick: str) -> Any:
    """One lane in the short tests, all in the long ones."""
    lanes = ["lanes=auto,cache=normal", "lanes=auto,cache=strict", "lanes=irp,cache=strict"]
    rows = [(SECONDS, quick)] + [pytest.param(LONG_SECONDS, lane, marks=pytest.mark.long) for lane in lanes]
    return pytest.mark.parametrize(("seconds", "options"), rows)


@every_lane_when_long("lanes=auto,cache=strict")
def test_instances_come_and_go(drive: Callable[..., Drive], tmp_path: Path, seconds: float, options: str) -> None:
    storm = Storm(drive, tmp_path, seconds, options, "filter=passthrough", "filter=storm")
    storm.start(storm.fio, "random", *RANDOM)
    storm.start(storm.fio, "direct", *DIRECT)
    mountpoint = str(storm.drive.mnt)
    there: set[int] = set()
    changes = 0
    with storm.control() as daemon:
        while storm.on:
            number = storm.random.randrange(4)
            if number in there:
                daemon.call("detach", filter="storm", volume=mountpoint, instance_name=f"i{number}")
                there.remove(number)
            else:
                daemon.call("attach", filter="storm", volume=mountpoint, instance_name=f"i{number}",
                            altitude=f"370{storm.random.randrange(100, 999)}.5{number}")  # fmt: skip
                there.add(number)
            changes += 1
        for number in there:
            daemon.call("detach", filter="storm", volume=mountpoint, instance_name=f"i{number}")
    storm.over()
    assert changes > seconds


@every_lane_when_long("lanes=auto,cache=normal")
def test_filters_are_unloaded_and_loaded(
    drive: Callable[..., Drive], tmp_path: Path, seconds: float, options: str
) -> None:
    storm = Storm(drive, tmp_path, seconds, options)
    storm.start(storm.fio, "random", *RANDOM)
    storm.start(storm.fio, "mapped", *MAPPED)
    loaded: list[str] = []
    changes = 0
    with storm.control() as daemon:
        while storm.on:
            name = storm.random.choice(["storm", "driver", "passthrough"])
            if name in loaded:
                daemon.call("unload", name=name, mandatory=storm.random.random() < 0.3)
                loaded.remove(name)
            else:
                assert daemon.call("load", name=name)["declined"] == []
                loaded.append(name)
            changes += 1
        for name in loaded:
            daemon.call("unload", name=name)
    storm.over()
    assert changes > seconds


@every_lane_when_long("lanes=irp,cache=strict")
def test_renames_and_signals(drive: Callable[..., Drive], tmp_path: Path, seconds: float, options: str) -> None:
    """Reads that are held are ended by signals, by death, and by a detach; trees change their names meanwhile."""
    storm = Storm(drive, tmp_path, seconds, options, "filter=driver", "filter=storm")
    mountpoint = storm.drive.mnt
    run("sh", "-c", f"echo 0123456789 >{mountpoint}/slow; mkdir {mountpoint}/r0 {mountpoint}/r1")
    storm.start(storm.fio, "random", *RANDOM)
    for number in range(2):
        storm.start(storm.program, RENAMES, mountpoint / f"r{number}", seconds, number)
    storm.start(tell_readers, storm)
    with storm.control() as daemon:
        while storm.on:
            time.sleep(0.3)
            daemon.call("detach", filter="storm", volume=str(mountpoint))
            daemon.call("attach", filter="storm", volume=str(mountpoint))
    storm.over()


def tell_readers(storm: Storm) -> None:
    """Signals to three readers; now and then one is killed, and another takes its place."""
    readers = [reader(storm) for _ in range(3)]
    told = killed = 0
    try:
        while storm.on:
            at = storm.random.randrange(3)
            if storm.random.random() < 0.1:
                assert end(readers[at]) == -signal.SIGKILL
                readers[at] = reader(storm)
                killed += 1
                continue
            time.sleep(storm.random.random() * 0.02)
            os.kill(readers[at].pid, signal.SIGUSR1)
            assert readers[at].stdout is not None and readers[at].stdout.readline().strip().isdigit()
            told += 1
    finally:
        for each in readers:
            end(each)
    assert told > storm.seconds and killed


def end(program: subprocess.Popen[str]) -> int:
    """Kills it: a read that is held does not keep it."""
    program.kill()
    assert program.stdout is not None
    program.stdout.close()
    return program.wait(20)


def reader(storm: Storm) -> subprocess.Popen[str]:
    """A program that reads what is held, whenever a signal has ended the read before."""
    words = [sys.executable, "-I", "-c", READS, str(storm.drive.mnt / "slow"), "1000000"]
    made = subprocess.Popen(words, cwd="/", stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None and made.stdout.readline() == "ready\n"
    return made
