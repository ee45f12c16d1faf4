"""oplock: programs on the drive use opportunistic locks (docs/oplocks.md).

They ask by ioctl(2); stackfs_oplock.h has the numbers and structures. _callbacks.pyx checks what passes and serves the
ioctls, _oplocks.pyx keeps who has what open and holds what; the rules are the core's (semantics A9). cli.py is
`stackfs oplocks`, listing.py what it shows.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from stackfs.api import STATUS_FLT_DO_NOT_ATTACH, STATUS_SUCCESS, Filter
from stackfs.errors import FltError

MANIFEST = {
    "name": "oplock",
    "description": "Gives oplocks to programs: they may cache what they are told of in time.",
    "altitude": "405000",
    "group": "FSFilter Top",
    "filter": "Oplock",
    "answers": "cacheable",
    "commands": "cli:app",
    "command": "oplocks",
    "options": {
        "break_timeout": {
            "type": "float",
            "default": 0.0,
            "min": 0.0,
            "max": 86400.0,
            "doc": "Seconds in which a break has to be acknowledged, else the oplock is taken; 0: others wait on.",
        },
        "open_timeout": {
            "type": "float",
            "default": 10.0,
            "min": 0.1,
            "max": 3600.0,
            "doc": "Seconds for which the one-time name of a file that was opened by ioctl is good.",
        },
    },
}

PORT = "\\OplockPort"
"""Whoever sends anything to it gets what there is, as JSON."""
ROOM = 1 << 17
"""Bytes of such an answer."""


class Oplock(Filter):
    """One set of oplocks for each volume. It stands above the others: what waits has been seen by nobody else."""

    def __init__(self, options: dict[str, Any]) -> None:
        from stackfs.filters.oplock import _callbacks, _oplocks

        super().__init__(options)
        self.native = _callbacks.operations()
        self.native_contexts = _oplocks.contexts()
        self.volumes: dict[str, Any] = {}
        """The mounted volumes' Mounted, by name."""
        self.port: Any = None

    def instance_setup(self, instance: Any, flags: int) -> int:
        from stackfs.filters.oplock._oplocks import Mounted

        volume = instance.volume
        if volume.name in self.volumes:
            raise FltError(
                STATUS_FLT_DO_NOT_ATTACH, "oplock: this volume has an instance already; one is all that it takes"
            )
        options = instance.options
        try:
            mounted = Mounted(instance.entry, options["break_timeout"], options["open_timeout"], volume.read_only)
        except ValueError as error:
            raise FltError(STATUS_FLT_DO_NOT_ATTACH, f"oplock: {error}") from error
        instance.context = mounted
        self.volumes[volume.name] = mounted
        if self.port is None:
            self.port = self.open_port(PORT, message=self.told, max_connections=16)
        threading.Thread(target=mounted.watch, name="oplock-watch", daemon=True).start()
        return STATUS_SUCCESS

    def instance_teardown_start(self, instance: Any, reason: int) -> None:
        instance.context.stop()

    def instance_teardown_complete(self, instance: Any, reason: int) -> None:
        self.volumes.pop(instance.volume.name, None)
        instance.context.end()

    def told(self, client: Any, data: bytes) -> bytes:
        """A message of the port: what is held, and who waits (listing.py); as many files of it as there is room for."""
        from stackfs.filters.oplock.listing import files_of

        files = [one for name, mounted in list(self.volumes.items()) for one in files_of(name, mounted.rows())]
        return fitting(files, ROOM)


def fitting(files: list[dict[str, Any]], room: int) -> bytes:
    text = json.dumps({"files": files, "more": 0}).encode()
    shown = len(files)
    while len(text) > room and shown:
        shown = shown * room // len(text) if shown > 1 else 0
        text = json.dumps({"files": files[:shown], "more": len(files) - shown}).encode()
    return text


def header() -> str:
    """Where the C header lies."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "stackfs_oplock.h")
