"""budget's callbacks, in C and without the GIL (_callbacks.pyx)."""

from stackfs.cext.stack import InstanceEntry, NativeOperations

class Account:
    """One instance's budget. Make it in instance_setup; release() it in instance_teardown_complete."""

    def __init__(self, entry: InstanceEntry, limit: int) -> None: ...
    def release(self) -> None: ...
    def spent(self) -> int:
        """Bytes read and written so far."""

def operations() -> NativeOperations:
    """The registration table: READ and WRITE, pre and post."""
