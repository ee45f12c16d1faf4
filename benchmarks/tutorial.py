"""The tutorial of docs/oplocks.md, as it is written there: its programs, and what its console shows.

`make run` shows it, and a test runs it.
"""

from __future__ import annotations

import queue
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

PAGE = Path(__file__).resolve().parent.parent / "docs" / "oplocks.md"
LIMIT = 20.0
"""Seconds in which each line has to come."""


def programs() -> dict[str, str]:
    """By name, as their first line says it."""
    blocks = re.findall(r"```python\n(# (\w+\.py)\n.*?)```", PAGE.read_text(), re.DOTALL)
    return {name: text for text, name in blocks}


def console() -> Iterator[tuple[str, list[str]]]:
    """The commands, and the lines that follow each."""
    (text,) = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    command, lines = "", list[str]()
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, lines
            command, lines = line[2:], []
        else:
            lines.append(line)
    yield command, lines


def play(directory: Path, show: Callable[[str], object], between: Callable[[str], object] = lambda _: None) -> None:
    """Run it in a directory with `drive` in it; show() gets each line as it comes, between() each command before it is
    run. AssertionError: something else was said than stands there."""
    for name, text in programs().items():
        (directory / name).write_text(text)
    heard: queue.Queue[str] = queue.Queue()
    running: list[subprocess.Popen[str]] = []
    listeners: list[threading.Thread] = []

    def listen(stream: IO[str]) -> None:
        with stream:
            for line in stream:
                heard.put(line.rstrip("\n"))

    try:
        for command, expected in console():
            between(command)
            show(f"$ {command}")
            words = shlex.split(command.removesuffix("&"))
            if words[0] == "python":
                words[0] = sys.executable
            line = shlex.join(words) if ">" not in command else command
            line = f"exec {line}" if command.endswith("&") else line
            process = subprocess.Popen(["sh", "-c", line], cwd=directory,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
            running.append(process)
            assert process.stdout is not None
            listeners.append(threading.Thread(target=listen, args=(process.stdout,), daemon=True))
            listeners[-1].start()
            if not command.endswith("&"):
                assert process.wait(LIMIT) == 0, command
            said: list[str] = []
            while len(said) < len(expected):
                try:
                    said.append(heard.get(timeout=LIMIT))
                except queue.Empty:
                    raise AssertionError(f"{command}: said {said}, not {expected}") from None
                show(said[-1])
            assert sorted(said) == sorted(expected), (command, said)
        for process in running:
            assert process.wait(LIMIT) == 0
        assert heard.empty(), heard.get()
    finally:
        for process in running:
            process.kill()
            process.wait()
        for listener in listeners:
            listener.join(LIMIT)
