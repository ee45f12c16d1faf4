"""Where a passphrase comes from: the terminal, a file, a program, a descriptor. It is bytes, in a bytearray which who
takes it wipes; it never is an argument, part of the environment, or a str.

Of a file, a program's output and a descriptor the first line counts, without its line end.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import termios
from collections.abc import Iterator
from dataclasses import dataclass

from stackfs.errors import ExitCode
from stackfs.filters.encryption._secrets import wipe
from stackfs.filters.encryption.volume import PASSPHRASE_MOST, Credential, VolumeError, keyfile, passphrase

PROGRAM_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Source:
    """Where a credential is to come from; at most one of these. None of them: the terminal."""

    passfile: str | None = None
    extpass: str | None = None
    passfd: int | None = None
    keyfile: str | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.passfile, self.extpass, self.passfd, self.keyfile)) > 1:
            raise VolumeError("passfile, extpass, passfd and keyfile exclude each other: give one", ExitCode.USAGE)

    @property
    def asks(self) -> bool:
        """Whether a person is asked."""
        return all(each is None for each in (self.passfile, self.extpass, self.passfd, self.keyfile))

    def credential(self, prompt: str, *, twice: bool = False) -> Credential:
        """The credential; `twice`: a person is to type it a second time. USAGE, NOT_FOUND."""
        if self.keyfile is not None:
            return keyfile(self.keyfile)
        return passphrase(self.line(prompt, twice=twice))

    def line(self, prompt: str, *, twice: bool = False) -> bytearray:
        """The first line of what the source has."""
        if self.passfile is not None:
            return _from_file(self.passfile)
        if self.passfd is not None:
            return _from_descriptor(self.passfd)
        if self.extpass is not None:
            return _from_program(self.extpass)
        return _asked(prompt, twice)


def _line(descriptor: int, where: str) -> bytearray:
    """Reads up to the end of the line, and no further."""
    data = bytearray(PASSPHRASE_MOST + 1)
    view = memoryview(data)
    length = 0
    while length < len(data) and os.readv(descriptor, [view[length : length + 1]]):
        if data[length] == 0x0A:
            break
        length += 1
    view.release()
    if 0 < length < len(data) and data[length] == 0x0A and data[length - 1] == 0x0D:
        length -= 1
    line = data[:length]
    wipe(data)
    if length > PASSPHRASE_MOST:
        wipe(line)
        raise VolumeError(f"{where}: its first line is longer than {PASSPHRASE_MOST} bytes", ExitCode.USAGE)
    return line


def _from_file(path: str) -> bytearray:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _line(descriptor, path)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise VolumeError(f"passphrase file {path}: {error.strerror}", ExitCode.NOT_FOUND) from error


def _from_descriptor(descriptor: int) -> bytearray:
    try:
        return _line(descriptor, f"descriptor {descriptor}")
    except OSError as error:
        raise VolumeError(f"passphrase from descriptor {descriptor}: {error.strerror}", ExitCode.USAGE) from error


def _from_program(command: str) -> bytearray:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise VolumeError(f"extpass {command!r}: {str(error).lower()}", ExitCode.USAGE) from None
    if not words:
        raise VolumeError("extpass names no program", ExitCode.USAGE)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            program = subprocess.Popen(words, stdout=writing)
        except OSError as error:
            raise VolumeError(f"extpass {words[0]}: {error.strerror}", ExitCode.NOT_FOUND) from error
        finally:
            os.close(writing)
        line = _line(reading, f"extpass {words[0]}")
    finally:
        os.close(reading)
    try:
        code = program.wait(PROGRAM_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
        code = -1
    if code:
        wipe(line)
        raise VolumeError(f"extpass {words[0]} failed{f' with exit code {code}' if code > 0 else ''}", ExitCode.FAILURE)
    return line


def _terminal() -> int:
    return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def somebody_is_there() -> bool:
    """Whether this process has a terminal."""
    try:
        os.close(_terminal())
    except OSError:
        return False
    return True


def tell(text: str) -> None:
    """A line on the terminal, for who has just been asked."""
    with open("/dev/tty", "w") as terminal:
        terminal.write(f"{text}\n")


def _asked(prompt: str, twice: bool) -> bytearray:
    try:
        terminal = _terminal()
    except OSError:
        raise VolumeError(
            "there is no terminal to ask for the passphrase: give passfile, extpass or passfd", ExitCode.USAGE
        ) from None
    try:
        with _without_echo(terminal):
            line = _typed(terminal, f"{prompt}: ")
            if twice:
                again = _typed(terminal, f"{prompt}, once more: ")
                equal = line == again
                wipe(again)
                if not equal:
                    wipe(line)
                    raise VolumeError("the two are not the same: nothing was changed", ExitCode.USAGE)
            return line
    finally:
        os.close(terminal)


def _typed(terminal: int, prompt: str) -> bytearray:
    os.write(terminal, prompt.encode())
    line = _line(terminal, "the terminal")
    os.write(terminal, b"\n")
    return line


@contextlib.contextmanager
def _without_echo(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    silent = termios.tcgetattr(terminal)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
