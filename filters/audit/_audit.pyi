"""The audit filter's callbacks (_audit.pyx)."""

from stackfs.cext.stack import InstanceEntry, NativeOperations
from stackfs.filters.audit._trail import Trail

def operations(watch: int) -> NativeOperations:
    """The registration table for the requests in `watch` (records.watch_mask): only the operations that they need."""

class Watcher:
    """Binds a trail to an instance: from now on the callbacks of `entry` write to it. Must outlive the callbacks."""

    def __init__(self, entry: InstanceEntry, trail: Trail, watch: int) -> None: ...
    def detach(self) -> None:
        """No callback runs any more: the trail may be closed."""
