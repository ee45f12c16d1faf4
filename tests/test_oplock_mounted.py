"""Oplocks on mounted drives (docs/semantics.md A9): programs hold one, break one, wait, are interrupted, and die."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from conftest import Drive, filter_directory, run

FILTER = '''
MANIFEST = {"name": "locker", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Locker"}

import threading
from stackfs.api import *

lock = threading.Lock()
CHECKED = (IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_WRITE, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_LOCK_CONTROL, IRP_MJ_SET_INFORMATION,
           IRP_MJ_SET_SECURITY, IRP_MJ_CLEANUP)

class Locker(Filter):
    oplocks = {}    # by path: a CREATE has no stream context before it has succeeded
    operations = (*(Operation(major, pre="pre", post="post") for major in CHECKED),
                  Operation(IRP_MJ_FILE_SYSTEM_CONTROL, pre="control"))

    def pre(self, data, objects):
        oplock = self.oplocks.get(data.path)
        return FLT_PREOP_SUCCESS_NO_CALLBACK if oplock is None else oplock.check(data, Oplock.go_on)

    def post(self, data, objects, context, flags):
        """What check() lets go on is owed one."""

    def control(self, data, objects):
        with lock:
            oplock = self.oplocks.setdefault(data.path, Oplock())
        return oplock.fsctl(data, 1)
'''

PROGRAM = """
import fcntl, os, signal, subprocess, sys, threading, time
LEVEL_1, LEVEL_2, BATCH, ACKNOWLEDGE = 0x90000, 0x90004, 0x90008, 0x9000C
path = sys.argv[1]
lines = []

def begun(routine, *arguments):
    thread = threading.Thread(target=routine, args=arguments)
    thread.start()
    time.sleep(0.15)
    return thread

def control(fd, code, said):
    fcntl.ioctl(fd, code)
    lines.append(said)

def other(said):
    fd = os.open(path, os.O_RDWR)
    lines.append(said)
    os.close(fd)
"""


def test_programs_with_oplocks(drive: Callable[..., Drive], tmp_path: Path, lanes: str) -> None:
    filters = filter_directory(tmp_path, locker=FILTER)
    made = drive(f"filterdir={filters}", "filter=locker", "cache=strict")
    (made.src / "file").write_text("content")
    file = made.mnt / "file"
    an_open_waits_for_the_acknowledgement(file)
    the_holder_closes_or_dies(file)
    a_signal_ends_waiting(file)


def said(file: Path, program: str) -> list[str]:
    return run(sys.executable, "-c", PROGRAM + program, file, timeout=20).stdout.split()


def an_open_waits_for_the_acknowledgement(file: Path) -> None:
    """Then the holder has level 2, which a write takes from him."""
    program = """
fd = os.open(path, os.O_RDWR)
held = begun(control, fd, BATCH, "broken")
opening = begun(other, "opened")
held.join(5)
lines.append("opening" if opening.is_alive() else "opened-early")
two = begun(control, fd, ACKNOWLEDGE, "no-longer-2")
opening.join(5)
lines.append("level-2" if two.is_alive() else "nothing")
writer = os.open(path, os.O_WRONLY)
os.pwrite(writer, b"new", 0)
two.join(5)
print(*lines)
"""
    assert said(file, program) == ["broken", "opening", "opened", "level-2", "no-longer-2"]
    assert file.read_text() == "newtent"


def the_holder_closes_or_dies(file: Path) -> None:
    program = """
for how in ("closes", "dies"):
    code = f'''
import fcntl, os, sys, threading, time
fd = os.open({path!r}, os.O_RDWR)
def hold():
    fcntl.ioctl(fd, 0x90000)
    time.sleep(0.3)
    os._exit(0)
threading.Thread(target=hold).start()
print(flush=True)
time.sleep(20)
'''
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    holder.stdout.readline()
    time.sleep(0.2)
    opening = begun(other, how)
    lines.append("waits" if opening.is_alive() else "does-not-wait")
    if how == "dies":
        holder.kill()
    opening.join(5)
    holder.wait()
print(*lines)
"""
    assert said(file, program) == ["waits", "closes", "waits", "dies"]


def a_signal_ends_waiting(file: Path) -> None:
    program = """
class Alarm(Exception): pass
def alarm(*_): raise Alarm
signal.signal(signal.SIGALRM, alarm)
fd = os.open(path, os.O_RDWR)
held = begun(control, fd, LEVEL_1, "broken")
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    other("opened")
except Alarm:
    lines.append("interrupted")
held.join(5)
two = begun(control, fd, ACKNOWLEDGE, "end")
other("opened")
os.close(fd)
print(*lines, flush=True)
os._exit(0)
"""
    assert said(file, program) == ["broken", "interrupted", "opened"]
