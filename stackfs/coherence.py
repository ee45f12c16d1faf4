"""Changes made beside the mount are noticed (-o coherence=lease): what is covered here, and what is said of it.

The work is cext/coherence.pyx's: leases for data, fanotify(7) for names and attributes. This decides how many
descriptors it may have, tells at the mount and in `stackfs status` what this kernel, this user or this filesystem does
not allow, and has everything forgotten when more has happened than the kernel kept for us.

What is not covered is not believed: a file without a lease keeps nothing in the page cache, and names and attributes in
a directory that is not watched count for SHORT_SECONDS (docs/coherence.md).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from stackfs.cext.coherence import Coherence

if TYPE_CHECKING:
    from stackfs.cext.python_requests import Volume

log = structlog.get_logger("stackfs.coherence")

LONG_SECONDS: Final = 60.0
"""How long the kernel believes names and attributes whose changes will be noticed."""
SHORT_SECONDS: Final = 1.0
"""The same of others."""
MOST_LEASES: Final = 16384
MOST_WATCHES: Final = 16384
SHARE: Final = 8
"""Of the daemon's descriptors, leases have one in so many, and watched directories as many."""
LEASES_ENABLED: Final = Path("/proc/sys/fs/leases-enable")


class Watch:
    """Of one mounted volume. `believed`: seconds, as the volume's time-outs; 0: names and attributes are not cached."""

    def __init__(self, volume: Volume, source: str, believed: float, descriptors: int) -> None:
        share = max(64, descriptors // SHARE)
        self.source = source
        self.core = Coherence(
            volume,
            long_timeout=believed,
            short_timeout=min(believed, SHORT_SECONDS),
            names=believed > 0,
            lease_limit=min(MOST_LEASES, share),
            watch_limit=min(MOST_WATCHES, share),
        )
        self._believed = believed

    def start(self) -> None:
        """Once the device has started."""
        self.core.start()
        for reason in (self._no_leases(), self._no_names()):
            if reason:
                log.warning("coherence=lease covers less here", source=self.source, reason=reason)

    def stop(self) -> None:
        self.core.stop()

    async def run(self, forget_everything: Callable[[], Awaitable[None]]) -> None:
        """More has happened than the kernel kept for us: it may all be so."""
        while True:
            await trio.lowlevel.wait_readable(self.core.overflow_fd)
            os.read(self.core.overflow_fd, 8)
            await forget_everything()

    def _no_leases(self) -> str:
        try:
            enabled = LEASES_ENABLED.read_text().strip() != "0"
        except OSError:
            enabled = False
        return "" if enabled else "the kernel gives no leases (fs.leases-enable): file data is not cached"

    def _no_names(self) -> str:
        if self._believed == 0 or self.core.names_watched:
            return ""
        why = os.strerror(self.core.counters()["watch_error"])
        return f"fanotify is not to be had ({why}): names and attributes are believed for {SHORT_SECONDS:g} s"

    def status(self) -> dict[str, Any]:
        """What `stackfs status` shows."""
        counters = self.core.counters()
        error = counters.pop("watch_error")
        data = self._no_leases() or "cached under a lease"
        if not self._no_leases() and counters["unsupported"]:
            data = "cached under a lease; not cached where the filesystem has none"
        names = self._no_names() or f"watched, and believed for {LONG_SECONDS:g} s"
        if self._believed == 0:
            names = "not cached (permissions=stack)"
        elif self.core.names_watched and counters["unwatched_directories"]:
            names += f"; {SHORT_SECONDS:g} s in directories that could not be watched ({os.strerror(error)})"
        return {"mode": "lease", "data": data, "names": names, **counters}
