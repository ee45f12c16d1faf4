"""File objects as Python sees them (docs/semantics.md, A4): an open file, or the open that a path implies."""

class FileReference:
    """A FILE_OBJECT, alive as long as what it was taken from (CallbackData: until the callback returns)."""

    @property
    def alive(self) -> bool:
        """False: it has gone, and everything else here raises ReferenceError."""
    @property
    def identity(self) -> int:
        """A number for this open file, the same in each of its operations; another open file's once this has gone."""
    @property
    def is_directory(self) -> bool: ...
    @property
    def is_synthesised(self) -> bool:
        """The open around a request by path: no handle, no descriptor."""
