"""What the filter keeps of a volume and of its open files, in C (_oplocks.pyx)."""

from stackfs.cext.python_contexts import NativeContexts
from stackfs.cext.stack import InstanceEntry

_Row = tuple[bool, int, int, int, int, int, int, int, bool]
"""It waits; level; what it breaks to; pid; tid; request; nanoseconds, of which broken; not taken over yet."""

class Mounted:
    """The filter on one volume. Make it in instance_setup; stop() it in instance_teardown_start, end() it in
    ..._complete.

    break_timeout: seconds in which a break has to be acknowledged, 0: for ever; lapse: seconds for which a one-time
    name is good. ValueError: why the volume can have none.
    """

    def __init__(self, entry: InstanceEntry, break_timeout: float, lapse: float, read_only: bool) -> None: ...
    def watch(self) -> None:
        """Ends what time ends, until stop(). For a thread of its own."""

    def stop(self) -> None:
        """Nothing is granted any more; what is held is taken, and whoever waits goes on. watch() returns."""

    def end(self) -> None:
        """No callback runs any more: what is left of open files is let go."""

    def rows(self) -> list[tuple[bytes, list[_Row]]]:
        """What is held and who waits, by path; holders first, then those that wait, in their order."""

    @property
    def active(self) -> int:
        """How many files have an oplock, or an open that waits to be taken over."""

def contexts() -> NativeContexts:
    """The filter's registration of contexts."""
