"""counter's callbacks, in C and without the GIL (_callbacks.pyx)."""

from stackfs.cext.stack import InstanceEntry, NativeOperations

class Counts:
    """What one instance has counted. Make it in instance_setup; release() it in instance_teardown_complete."""

    def __init__(self, entry: InstanceEntry) -> None: ...
    def release(self) -> None: ...
    def seen(self, major: int) -> int:
        """Operations of this major function that came."""
    def ended(self) -> int:
        """Operations that succeeded."""
    def failed(self) -> int: ...

def operations() -> NativeOperations:
    """The registration table: every operation that a request may consist of, pre and post."""
