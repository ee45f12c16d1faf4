"""File objects as Python sees them (docs/semantics.md, A4): an open file, or the open that a path implies."""

class FileObject:
    """A FILE_OBJECT, alive as long as what it was taken from (CallbackData: until the callback returns)."""

    @property
    def alive(self) -> bool:
        """False: it has gone, and everything else here raises ReferenceError."""
    @property
    def is_directory(self) -> bool: ...
    @property
    def is_synthesised(self) -> bool:
        """The open around a request by path: no handle, no descriptor."""
