"""encryption: what is written through the mount lies encrypted and authenticated in the backing directory.

docs/encryption-format.md is the format, docs/threat-model.md what it is good for. _cipher.pyx has the ciphers, keys and
names, _file.pyx a file's header, map and blocks, _secrets.pyx the memory that keys are in; volume.py is the volume file
with its key slots, passphrase.py where passphrases come from, cli.py `stackfs encryption`.
"""

from __future__ import annotations

from typing import Any

from stackfs.api import (
    FLTFL_INSTANCE_SETUP_NEWLY_MOUNTED_VOLUME,
    STATUS_FLT_DO_NOT_ATTACH,
    STATUS_FLT_DO_NOT_DETACH,
    STATUS_SUCCESS,
    Filter,
)
from stackfs.errors import FltError

MANIFEST = {
    "name": "encryption",
    "description": "Encrypts and authenticates files and names: an encrypted drive.",
    "altitude": "141000",
    "group": "FSFilter Encryption",
    "filter": "Encryption",
    "answers": "cacheable",
    "commands": "cli:app",
    "prepare": "mounting:prepare",
    "options": {
        "passfile": {"type": "path", "doc": "A file whose first line is the passphrase; else you are asked."},
        "extpass": {"type": "str", "doc": "A program that prints the passphrase."},
        "passfd": {"type": "int", "min": 0, "doc": "A descriptor that has the passphrase."},
        "keyfile": {"type": "path", "doc": "A key file, instead of a passphrase."},
    },
}


class Encryption(Filter):
    """One encrypted volume. It is there from the mount to the end of it, or nothing is."""

    instance_query_teardown = None  # type: ignore[assignment]  # it cannot be detached by hand

    def __init__(self, options: dict[str, Any]) -> None:
        from stackfs.filters.encryption import _callbacks, _streams

        super().__init__(options)
        self.native = _callbacks.operations()
        self.native_contexts = _streams.contexts()
        self.sources: set[str] = set()

    def filter_unload(self, flags: int) -> int:
        """Not while a volume is mounted; `stackfs stop` does not ask, and the volume answers EIO from then on."""
        return STATUS_FLT_DO_NOT_DETACH

    def instance_setup(self, instance: Any, flags: int) -> int:
        from stackfs.filters.encryption import mounting

        if not flags & FLTFL_INSTANCE_SETUP_NEWLY_MOUNTED_VOLUME:
            raise FltError(
                STATUS_FLT_DO_NOT_ATTACH, "encryption attaches when a volume is mounted, and at no other time"
            )
        if instance.volume.source in self.sources:
            raise FltError(
                STATUS_FLT_DO_NOT_ATTACH, "encryption: this volume has an instance already; one is all that it takes"
            )
        instance.context = mounting.begin(instance)
        self.sources.add(instance.volume.source)
        return STATUS_SUCCESS

    def instance_teardown_complete(self, instance: Any, reason: int) -> None:
        self.sources.discard(instance.volume.source)
        instance.context.end()
