"""encryption: what is written through the mount lies encrypted and authenticated in the backing directory.

docs/encryption-format.md is the format, docs/threat-model.md what it is good for. _cipher.pyx has the ciphers, keys and
names, _file.pyx a file's header, map and blocks, _secrets.pyx the memory that keys are in; volume.py is the volume file
with its key slots, passphrase.py where passphrases come from, cli.py `stackfs encryption`.
"""

from __future__ import annotations

from typing import Any

from stackfs.api import STATUS_FLT_DO_NOT_ATTACH, Filter
from stackfs.errors import FltError

MANIFEST = {
    "name": "encryption",
    "description": "Encrypts and authenticates files and names: an encrypted drive.",
    "altitude": "141000",
    "group": "FSFilter Encryption",
    "filter": "Encryption",
    "answers": "cacheable",
    "commands": "cli:app",
    "options": {
        "passfile": {"type": "path", "doc": "A file whose first line is the passphrase."},
        "extpass": {"type": "str", "doc": "A program that prints the passphrase."},
        "passfd": {"type": "int", "min": 0, "doc": "A descriptor that has the passphrase."},
        "keyfile": {"type": "path", "doc": "A key file, instead of a passphrase."},
    },
}


class Encryption(Filter):
    """Refuses to attach: this release makes volumes and looks after them, and mounts none yet."""

    def instance_setup(self, instance: Any, flags: int) -> int:
        raise FltError(STATUS_FLT_DO_NOT_ATTACH, "encryption: volumes cannot be mounted yet with this release")
