"""Changes of the backing directory made beside the mount: leases and fanotify (coherence.pyx)."""

from collections.abc import Callable

from stackfs.cext.python_requests import Volume

class Coherence:
    """One volume's. Made before it is mounted; start() once its device has started, stop() before that is closed.

    Time-outs are seconds: how long the kernel may believe what will be noticed when it changes, and what will not.
    names: watch names and attributes. lease_limit: files that have a descriptor for a lease; watch_limit: directories
    that are watched, each of which keeps its descriptor open.
    """

    def __init__(
        self,
        volume: Volume,
        *,
        long_timeout: float,
        short_timeout: float,
        names: bool = True,
        lease_limit: int = 4096,
        watch_limit: int = 16384,
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None:
        """No lease is held, and nothing noticed, any more."""

    @property
    def overflow_fd(self) -> int:
        """An eventfd, readable when more has happened than could be kept: the kernel has to forget everything."""

    @property
    def names_watched(self) -> bool: ...
    def counters(self) -> dict[str, int]:
        """leases, files (open or cached, with a lease or waiting for one), breaks, evicted; refused: leases that only
        the file's owner or root gets; unsupported: that the backing filesystem has none of; watched_directories,
        unwatched_directories, watch_error (the last errno of those), events, overflows."""

    def on_change(self, listener: Callable[[int, int, bytes | None], object]) -> None:
        """listener(nodeid, what, name), by our thread, as foreign_function in coherence.pxd; what: FOREIGN_*"""

    def off_change(self, listener: Callable[[int, int, bytes | None], object]) -> None:
        """It is not called any more, nor being called. ValueError: it was not on. RuntimeError: by a listener."""

    def settled(self, nodeid: int) -> None:
        """A listener that has answered FOREIGN_DATA with True is done with it."""
