"""audit's callbacks, in C and without the GIL (_callbacks.pyx)."""

from stackfs.cext.stack import InstanceEntry, NativeOperations
from stackfs.filters.audit._trail import Trail

class Watch:
    """Ties one instance to its trail. Make it in instance_setup; release() it in instance_teardown_complete."""

    def __init__(self, entry: InstanceEntry, trail: Trail, mask: int) -> None: ...
    def release(self) -> None: ...

def operations(majors: list[int]) -> NativeOperations:
    """A registration table of these IRP_MJ_* operations (records.watched_majors). ValueError: one that is none."""
