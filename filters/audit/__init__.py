"""audit: one authenticated record for each request that it is told to watch (docs/audit.md).

The callbacks are native (_callbacks.pyx); records go through a ring to a writer thread of audit's own (_trail.pyx),
which needs neither the GIL nor the drive. trail.py opens a trail, records.py knows its format, verify.py proves it,
cli.py is `stackfs audit`.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from stackfs.api import STATUS_FLT_DO_NOT_ATTACH, STATUS_INVALID_PARAMETER, STATUS_SUCCESS, Filter, Operation
from stackfs.errors import FltError

if TYPE_CHECKING:
    from stackfs.cext.stack import NativeOperations
    from stackfs.filters.audit.trail import OpenTrail

MANIFEST = {
    "name": "audit",
    "description": "Records who did what: an append-only, authenticated trail.",
    "altitude": "385200",
    "group": "FSFilter Activity Monitor",
    "altitude_reason": "an instance may watch what reaches any layer, below encryption too",
    "filter": "Audit",
    "answers": "cacheable",
    "commands": "cli:app",
    "options": {
        "directory": {
            "type": "path",
            "doc": "Where the trail lies, outside the backing directory and the mount; made with mode 0700. "
            "Without it: /var/log/stackfs/VOLUME.audit as root, ~/.local/state/stackfs/VOLUME.audit else. "
            "An instance with a name of its own has DIRECTORY.NAME.",
        },
        "key": {
            "type": "path",
            "doc": "Where a new trail's first key is written, once; the file must not exist. "
            "`stackfs audit verify` asks for it. An instance with a name of its own has KEY.NAME.",
        },
        "operations": {
            "type": "str",
            "default": "all",
            "doc": "What is watched: all, data, changes, names, or requests by name; -NAME takes away. "
            "Separated by blanks or +.",
        },
        "full": {
            "type": "choice",
            "choices": ["wait", "refuse", "count"],
            "default": "wait",
            "doc": "When the ring is full: requests wait for the writer, are refused with ENOSPC, or pass, counted.",
        },
        "ring_size": {"type": "size", "default": 4194304, "min": 65536, "max": 1073741824, "doc": "Bytes of the ring."},
        "segment_size": {
            "type": "size",
            "default": 67108864,
            "min": 65536,
            "max": 1099511627776,
            "doc": "A segment of the trail that has grown this large is followed by the next.",
        },
        "flush_interval": {
            "type": "float",
            "default": 1.0,
            "min": 0.01,
            "max": 3600.0,
            "doc": "Seconds between two seals: what a crash may lose, and what the key's ratchet does not yet cover.",
        },
        "sync": {"type": "bool", "default": True, "doc": "Whether a seal waits until the disk has what it seals."},
    },
}


class Audit(Filter):
    """One trail for each instance, which registers only what its option `operations` watches."""

    def operations_for(self, options: dict[str, Any]) -> tuple[tuple[Operation, ...], NativeOperations]:
        from stackfs.filters.audit import _callbacks, records

        return (), _callbacks.operations(records.watched_majors(watch_mask(options)))

    def instance_setup(self, instance: Any, flags: int) -> int:
        from stackfs.filters.audit import trail
        from stackfs.filters.audit._callbacks import Watch

        options = instance.options
        mask = watch_mask(options)
        settings = trail.Settings(
            ring_size=options["ring_size"],
            full=options["full"],
            segment_size=options["segment_size"],
            flush_interval=options["flush_interval"],
            sync=options["sync"],
        )
        volume = instance.volume
        directory, key = options["directory"] or default_directory(volume.name), options["key"]
        if instance.name != MANIFEST["name"]:
            suffix = "." + instance.name.replace("/", "_")
            directory, key = directory + suffix, key and key + suffix
        try:
            opened = trail.open_trail(
                directory,
                key,
                settings,
                about={"volume": volume.name, "instance": instance.name},
                forbidden=[place for place in (volume.source, volume.mountpoint) if place],
            )
        except trail.TrailError as error:
            raise FltError(STATUS_FLT_DO_NOT_ATTACH, f"audit: {error}") from error
        instance.context = (opened, Watch(instance.entry, opened.trail, mask))
        threading.Thread(target=_report, args=(opened,), name="audit-report", daemon=True).start()
        return STATUS_SUCCESS

    def instance_teardown_start(self, instance: Any, reason: int) -> None:
        opened, _ = instance.context
        opened.trail.drain()

    def instance_teardown_complete(self, instance: Any, reason: int) -> None:
        opened, watch = instance.context
        watch.release()
        if not opened.close():
            import structlog

            structlog.get_logger("stackfs.audit").error(
                "the trail could not be written to its end: records are missing", trail=opened.path
            )


def watch_mask(options: dict[str, Any]) -> int:
    """What an instance with these options watches (records.watch_mask). FltError: the option says nothing sensible."""
    from stackfs.filters.audit import records

    try:
        return records.watch_mask(options["operations"])
    except ValueError as error:
        raise FltError(STATUS_INVALID_PARAMETER, f"audit: {error}") from error


def _report(opened: OpenTrail) -> None:
    """Tells the log when the trail cannot be written, and when it can again; until it is closed. A thread of its own:
    the volume's may be waiting for room just then."""
    import structlog

    log = structlog.get_logger("stackfs.audit")
    while (error := opened.trail.next_trouble()) is not None:
        if opened.trail.gone:
            log.error("the trail was removed while it was written: requests are refused until audit is detached",
                      trail=opened.path)  # fmt: skip
        elif error:
            log.error("the trail cannot be written, trying again", trail=opened.path, error=os.strerror(error))
        else:
            log.warning("the trail can be written again", trail=opened.path)


def default_directory(volume: str) -> str:
    """Where a trail lies when nobody says."""
    if os.geteuid() == 0:
        base = "/var/log/stackfs"
    else:
        state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
        base = os.path.join(state, "stackfs")
    os.makedirs(base, mode=0o700, exist_ok=True)
    return os.path.join(base, volume.replace("/", "_") + ".audit")
