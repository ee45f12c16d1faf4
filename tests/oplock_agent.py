"""Processes that use oplocks for tests: each does one thing at a time, as it is told, and says what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

SECONDS = 10.0

PROGRAM = """
import ctypes, errno, fcntl, json, mmap, os, pathlib, signal, struct, sys, time
from stackfs import oplock
from stackfs.oplock import *

class Interrupted(Exception):
    pass

doing = False

def interrupted(*_):
    global doing
    if doing:
        doing = False
        raise Interrupted

signal.signal(signal.SIGUSR1, interrupted)
locks = {}

def hold(fd, level, key=b"", patience=0.0):
    locks[fd] = request_oplock(fd, level, key=key, patience=patience).__enter__()
    return level

def told(fd, seconds=5.0):
    broken = locks[fd].wait_break(seconds)
    return broken and list(broken)

def ack(fd, level=None, **how):
    return locks[fd].acknowledge(level, **how)

def flush(fd, data, offset=0):
    locks[fd].write(data, offset)

def state(fd):
    return list(oplock.state(fd))

ACL = struct.pack("<I" + "HHI" * 3, 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF)

def store(path, data):
    '''By a mapping, and written back.'''
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, len(data)) as pages:
        pages[:] = data
        pages.flush()
    os.close(fd)

def exchange(one, two):
    '''renameat2(2) with RENAME_EXCHANGE.'''
    if ctypes.CDLL(None, use_errno=True).renameat2(-100, one.encode(), -100, two.encode(), 2):
        raise OSError(ctypes.get_errno(), "renameat2")

def in_a_child(call, *arguments):
    '''Its process, which has what is open here, too.'''
    child = os.fork()
    if child == 0:
        call(*arguments)
        os._exit(0)
    return child

def begin_write(fd, data):
    '''write(2) in a child.'''
    return in_a_child(os.pwrite, fd, data, 0)

def begin_read(fd):
    '''read(2) in a child.'''
    return in_a_child(os.pread, fd, 100, 0)

def ended(child, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    return False

print(flush=True)
for line in sys.stdin:
    try:
        try:
            doing = True
            answer = ["", eval(json.loads(line))]
            doing = False
        except BaseException as error:
            doing = False
            answer = [type(error).__name__, getattr(error, "errno", None) or str(error)]
    except Interrupted:                     # while it was about to say what had gone wrong
        answer = ["Interrupted", 0]
    print(json.dumps(answer, default=repr), flush=True)
"""


class Failed(Exception):
    """What an agent did has failed there."""

    def __init__(self, kind: str, code: Any) -> None:
        super().__init__(kind, code)
        self.kind = kind
        self.code = code


class Agent:
    def __init__(self, **keywords: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", **keywords
        )
        assert self.process.stdout is not None and self.process.stdin is not None
        self.process.stdout.readline()
        self.busy = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self, expression: str) -> Agent:
        assert not self.busy and self.process.stdin is not None
        self.process.stdin.write(json.dumps(expression).encode() + b"\n")
        self.process.stdin.flush()
        self.busy = True
        return self

    def has_answer(self, seconds: float) -> bool:
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def waits(self, seconds: float = 0.15) -> bool:
        """What it was told to do has not ended, and does not for a moment."""
        return self.busy and not self.has_answer(seconds)

    def answer(self, seconds: float = SECONDS) -> Any:
        assert self.busy and self.process.stdout is not None
        assert self.has_answer(seconds), "it has not ended"
        self.busy = False
        kind, value = json.loads(self.process.stdout.readline())
        if kind:
            raise Failed(kind, value)
        return value

    def do(self, expression: str, seconds: float = SECONDS) -> Any:
        return self.begin(expression).answer(seconds)

    def fails(self, expression: str) -> tuple[str, Any]:
        try:
            value = self.do(expression)
        except Failed as error:
            return error.kind, error.code
        raise AssertionError(f"{expression} is {value!r}, and was to fail")

    def interrupt(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.kill()


def eventually(condition: Any, seconds: float = SECONDS) -> None:
    """Until it is true. What fails is tried again: a close(2) ends an open a moment after it has returned."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, Failed):
            if condition():
                return
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)
