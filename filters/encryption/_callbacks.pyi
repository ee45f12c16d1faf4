"""The filter's callbacks (_callbacks.pyx)."""

from stackfs.cext.stack import NativeOperations
from stackfs.filters.encryption._streams import Mounted

def operations() -> NativeOperations:
    """What an instance registers."""

def shown_path(mounted: Mounted, path: bytes) -> bytes:
    """The plain path of a stored one, from the volume's root; what is none of the volume's stays as it is."""
