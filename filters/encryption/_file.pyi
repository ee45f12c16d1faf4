"""One encrypted file (_file.pyx, docs/encryption-format.md). Any thread.

OSError: EBADMSG what is stored is damaged or was changed, EOPNOTSUPP a later release wrote it, EFBIG, ENXIO, or what
the file below answered.
"""

from typing import Any

from typing_extensions import Buffer

from stackfs.filters.encryption._cipher import VolumeKeys

class EncryptedFile:
    """Plain bytes above, stored bytes below."""

    size: int
    """Of the plain file."""
    stored_size: int
    id: bytes
    unsealed: bool
    """Changes are not sealed, or the seal is open."""
    generation: int
    """Of the last seal."""

    def __init__(
        self, volume: VolumeKeys, below: Any, *, suite: int = 0, stored: int | None = None, one_seal: bool = False
    ) -> None:
        """`below`: a descriptor, which stays the caller's, or an object with read(offset, length), write(offset, data),
        sync(), resize(size) and punch(offset, length). `suite`: makes the file, which is empty; else it is opened, with
        `stored` the stored file's size (of a descriptor it is known). `one_seal`: one of the header's two seals may be
        damaged (fsck)."""

    def read(self, offset: int, length: int) -> bytes:
        """Fewer bytes at the end of the file only."""

    def write(self, offset: int, data: Buffer) -> int:
        """Bytes written."""

    def append(self, data: Buffer) -> int:
        """Where they were written."""

    def resize(self, size: int) -> None:
        """Shorter, or longer by zeros."""

    def punch(self, offset: int, length: int) -> None:
        """Zeros; whole blocks become holes."""

    def seek(self, offset: int, hole: bool) -> int:
        """SEEK_HOLE or SEEK_DATA."""

    def seal(self, clean: bool = False) -> None:
        """fsync; `clean`: nobody has it open for writing any more."""

    def examine(self, first: int, count: int) -> bytes:
        """What each block is, for as many as one transfer takes (at most 256), a byte for each: 0 good, 1 a hole, 2 its
        part of the map is damaged, 3 zeros where a block was, 4 not authentic in this place, 5 another version than the
        map has, 6 not as long as the size says."""

    def rebuild_map(self) -> None:
        """Parts of the map that are damaged are made anew from the blocks themselves; sealed, clean. Nothing proves any
        more that those blocks are the last versions of themselves, and that what is zeros is a hole (fsck)."""

    def seal_again(self) -> None:
        """Both seals anew, clean."""

def sizes(plain: int) -> tuple[int, int]:
    """The stored size of a plain one, and the plain size of that."""

def plain_size_of(stored: int) -> int:
    """The plain size of a stored one; -1: shorter than a header."""

def slot_offset_of(block: int) -> int:
    """Where a block's slot begins."""

def node_offset_of(level: int, index: int) -> int:
    """Where the places of a node of the map begin."""
