"""Memory for keys (_secrets.pyx): locked, left out of core dumps, wiped. Any thread."""

from typing_extensions import Buffer

class Secret(Buffer):
    """Up to 512 secret bytes. A writable buffer; wiped at the end of a `with`, by wipe() and when it is gone."""

    length: int

    def __init__(self, length: int) -> None:
        """`length` zeros. ValueError: more than 512. MemoryError."""

    @staticmethod
    def random(length: int) -> Secret:
        """Random bytes. OSError: the system has none."""

    @staticmethod
    def taken_from(source: Buffer) -> Secret:
        """The bytes of `source`, which is wiped (see wipe)."""

    def wipe(self) -> None:
        """From now on it has no bytes; views of it see zeros."""

    def __len__(self) -> int: ...
    def __enter__(self) -> Secret: ...
    def __exit__(self, *error: object) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def wipe(data: Buffer) -> None:
    """Overwrites bytes, a bytearray or a writable view with zeros, in place. bytes must be the caller's alone."""

def no_core_dumps() -> None:
    """This process writes no core dump from now on, and no other one of its user may read its memory."""

def unlocked_bytes() -> int:
    """Bytes of secret memory that could not be locked."""
