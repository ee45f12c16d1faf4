"""audit's callbacks, in C and without the GIL (_callbacks.pyx)."""

from stackfs.cext.requests import Volume
from stackfs.cext.stack import InstanceEntry, NativeOperations
from stackfs.filters.audit._trail import Trail

class Watch:
    """Ties one instance to its trail. Make it in instance_setup; release() it in instance_teardown_complete."""

    def __init__(self, entry: InstanceEntry, trail: Trail, mask: int) -> None: ...
    def release(self) -> None: ...

def operations() -> NativeOperations:
    """The registration table: every operation that a request may consist of."""

def time_reads(volume: Volume, handles: list[int], count: int) -> tuple[float, float]:
    """READs of no bytes through the whole stack, driven without a mount: `count` of each handle at offsets 0, 1, ...,
    by a thread for each handle, all at the same time. Nanoseconds a request: (elapsed, the threads' CPU time).
    OSError when a read fails."""
