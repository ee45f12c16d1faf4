"""The files of a mounted volume (_streams.pyx): opened when they are needed, sealed when they have been left alone."""

from stackfs.cext.python_contexts import NativeContexts
from stackfs.filters.encryption._cipher import VolumeKeys

class Mounted:
    """What an instance works with; the instance's own, from start() to end()."""

    keys: VolumeKeys

    def __init__(self, entry: object, keys: VolumeKeys, *, suite: int, plain_names: bool) -> None:
        """`entry`: the instance's; `suite`: of new files."""

    def start(self) -> None:
        """From here on callbacks may come. Starts the thread that seals files."""

    def end(self) -> None:
        """No callback comes any more: everything is sealed and closed. Waits for the disk."""

    @property
    def foreign(self) -> int:
        """Names that were hidden in listings, because they are none of the volume's."""

    @property
    def damaged(self) -> int:
        """How often something was refused because what is stored is damaged or was changed."""

def contexts() -> NativeContexts:
    """What the filter keeps with files and directories."""
