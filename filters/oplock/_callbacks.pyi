"""The filter's callbacks, in C (_callbacks.pyx)."""

from stackfs.cext.stack import NativeOperations

def operations() -> NativeOperations:
    """The filter's registration."""
