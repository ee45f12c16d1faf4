"""Unlocking a volume when it is mounted, and what belongs to it until the end of the mount."""

from __future__ import annotations

import os
import threading
from typing import Any, Final

import structlog

from stackfs.api import STATUS_FLT_DO_NOT_ATTACH
from stackfs.errors import FltError
from stackfs.filters.encryption import volume
from stackfs.filters.encryption._callbacks import shown_path
from stackfs.filters.encryption._secrets import no_core_dumps
from stackfs.filters.encryption._streams import Mounted
from stackfs.filters.encryption.passphrase import Source

SECONDS: Final = 2.0


class MountedVolume:
    """An unlocked volume, locked for this process, and its instance's C part."""

    def __init__(self, directory: int, mounted: Mounted, path: str) -> None:
        self.directory = directory
        self.mounted = mounted
        self.path = path
        self.ended = threading.Event()
        mounted.start()
        threading.Thread(target=self._report, name="encryption-report", daemon=True).start()

    def shown(self, path: bytes) -> bytes:
        return shown_path(self.mounted, path)

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


def begin(instance: Any) -> MountedVolume:
    """Unlocks the instance's volume. FltError: one line that says why it cannot be."""
    path = instance.volume.source
    options = instance.options
    try:
        directory = volume.open_directory(path)
        try:
            volume.lock(directory, path)
            file = volume.load(directory, path)
            source = Source(options["passfile"], options["extpass"], options["passfd"], options["keyfile"])
            if source.asks:
                raise volume.VolumeError(
                    "give encryption.passfile, encryption.extpass, encryption.passfd or encryption.keyfile: a mount "
                    "asks nobody"
                )
            credential = source.credential(f"Passphrase of {path}")
            no_core_dumps()
            try:
                unlocked = volume.unlock(file, credential)
            finally:
                credential.wipe()
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
        raise FltError(STATUS_FLT_DO_NOT_ATTACH, f"encryption: {error.message}") from error
