"""The filter's callbacks (_callbacks.pyx)."""

from stackfs.cext.stack import NativeOperations

def operations() -> NativeOperations:
    """What an instance registers."""
