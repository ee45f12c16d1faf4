"""Unlocking a volume when it is mounted, and what belongs to it until the end of the mount."""

from __future__ import annotations

import os
import threading
from typing import Any, Final

import structlog

from stackfs.api import STATUS_FLT_DO_NOT_ATTACH
from stackfs.errors import ExitCode, FltError
from stackfs.filters.encryption import volume
from stackfs.filters.encryption._secrets import Secret, no_core_dumps
from stackfs.filters.encryption._streams import Mounted
from stackfs.filters.encryption.passphrase import Source, somebody_is_there, tell

SECONDS: Final = 2.0
TRIES: Final = 3
HANDED: Final = "handed over"
"""Beside the options that users give: the descriptor from which begin() reads what prepare() has found out."""
SOURCES: Final = "give encryption.passfile, encryption.extpass, encryption.passfd or encryption.keyfile"


class MountedVolume:
    """An unlocked volume, locked for this process, and its instance's C part."""

    def __init__(self, directory: int, mounted: Mounted, path: str) -> None:
        self.directory = directory
        self.mounted = mounted
        self.path = path
        self.ended = threading.Event()
        mounted.start()
        threading.Thread(target=self._report, name="encryption-report", daemon=True).start()

    def end(self) -> None:
        """Everything is sealed, and others may use the volume."""
        self.ended.set()
        self.mounted.end()
        os.close(self.directory)

    def _report(self) -> None:
        """Tells the log what callbacks have met."""
        log = structlog.get_logger("stackfs.encryption")
        foreign = damaged = 0
        more = True
        while more:
            more = not self.ended.wait(SECONDS)
            if self.mounted.foreign and not foreign:
                log.warning(
                    "names in the backing directory that are none of the volume's are not shown", volume=self.path
                )
            if self.mounted.damaged > damaged:
                log.error(
                    "what is stored is damaged or was changed, and was refused: stackfs encryption fsck finds it",
                    volume=self.path,
                    times=self.mounted.damaged - damaged,
                )
            foreign, damaged = self.mounted.foreign, self.mounted.damaged


def source_of(options: dict[str, Any]) -> Source:
    return Source(options["passfile"], options["extpass"], options["passfd"], options["keyfile"])


def prepare(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """Asks who mounts for the passphrase, if no option says where it is to come from. What Argon2id has made of it, the
    key of the slot that it opens, goes into a pipe for begin(): the passphrase itself stays here.

    A wrong one may be mended twice. VolumeError: as begin()'s.
    """
    source = source_of(options)
    if not source.asks:
        return {}
    no_core_dumps()
    if not somebody_is_there():
        raise volume.VolumeError(f"there is no terminal to ask for the passphrase: {SOURCES}", ExitCode.USAGE)
    directory = volume.open_directory(path)
    try:
        file = volume.load(directory, path)
    finally:
        os.close(directory)
    left = TRIES
    while True:
        left -= 1
        try:
            with volume.passphrase(source.line(f"Passphrase of {path}")) as typed:
                return {HANDED: _slot_key(file, typed)}
        except volume.VolumeError as error:
            if not left or error.exit_code != ExitCode.WRONG_KEY:
                raise
            tell(f"{error.message}: try again")


def _slot_key(file: volume.VolumeFile, typed: volume.Credential) -> int:
    """A pipe with the key of the slot that a passphrase opens. VolumeError.

    A child process derives it: OpenSSL's Argon2id leaves the passphrase in memory that it has freed, and the daemon is
    going to be a copy of this process.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        code = int(ExitCode.FAILURE)
        try:
            with volume.derived(file, typed) as key:
                os.write(writing, key.secret)
            code = 0
        except volume.VolumeError as error:
            os.write(writing, error.message.encode())
            code = int(error.exit_code)
        finally:
            os._exit(code)
    os.close(writing)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        with open(reading, "rb") as pipe:
            message = pipe.read().decode() or "the key could not be derived from the passphrase"
        raise volume.VolumeError(message, ExitCode(max(code, ExitCode.FAILURE)))
    return reading


def _credential(path: str, options: dict[str, Any]) -> volume.Credential:
    """As the options say, or what prepare() has handed over. USAGE: neither, as when it is attached without a mount."""
    source = source_of(options)
    if not source.asks:
        return source.credential(f"Passphrase of {path}")
    key = Secret(volume.SLOT_KEY)
    if HANDED not in options or os.readv(options[HANDED], [key]) != len(key):
        raise volume.VolumeError(f"nobody can be asked for the passphrase here: {SOURCES}", ExitCode.USAGE)
    return volume.Credential("passphrase", key, derived=True)


def begin(instance: Any) -> MountedVolume:
    """Unlocks the instance's volume. FltError: one line that says why it cannot be."""
    path = instance.volume.source
    options = instance.options
    try:
        directory = volume.open_directory(path)
        try:
            volume.lock(directory, path)
            file = volume.load(directory, path)
            no_core_dumps()
            with _credential(path, options) as credential:
                unlocked = volume.unlock(file, credential)
            mounted = Mounted(
                instance.entry,
                unlocked.keys,
                suite=volume.SUITES[unlocked.file.suite],
                plain_names=unlocked.file.names == "plain",
            )
            unlocked.master.wipe()
            return MountedVolume(directory, mounted, path)
        except BaseException:
            os.close(directory)
            raise
    except volume.VolumeError as error:
        raise FltError(STATUS_FLT_DO_NOT_ATTACH, f"encryption: {error.message}", error.exit_code) from error
