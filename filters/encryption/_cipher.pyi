"""Ciphers, keys and names of an encrypted volume (_cipher.pyx, docs/encryption-format.md). Any thread.

What is not authentic raises OSError with EBADMSG; what a later release has written, with ENOTSUP.
"""

from typing_extensions import Buffer

from stackfs.filters.encryption._secrets import Secret

class VolumeKeys:
    """All keys of a volume, derived from its master key, in secret memory."""

    id: bytes

    def __init__(self, master: Secret, volume_id: Buffer) -> None:
        """32 and 16 bytes. The master key is copied."""

    def authenticate(self, data: Buffer) -> bytes:
        """HMAC-SHA256 with the volume key, 32 bytes; `data` is not empty."""

    def encrypt_name(self, iv: Buffer, name: bytes) -> tuple[bytes, bytes]:
        """The stored name, and what its .name file has (empty: it needs none). OSError EINVAL: no name."""

    def decrypt_name(self, iv: Buffer, stored: bytes, text: bytes = b"") -> bytes:
        """The plain name; `text`: what the .name file of a long one has."""

    def build_directory(
        self, iv: Buffer, first: tuple[bytes, bytes], second: tuple[bytes, bytes] | None = None
    ) -> bytes:
        """A directory file, 96 bytes. Places are (parent's IV, stored name)."""

    def check_directory(self, file: bytes, place: tuple[bytes, bytes]) -> bytes:
        """The IV of a directory file that belongs to this place."""

    def encrypt_target(self, target: bytes) -> bytes:
        """What a symbolic link stores. OSError ENAMETOOLONG: more than 3,039 bytes."""

    def decrypt_target(self, stored: bytes) -> bytes:
        """The plain target."""

    def encrypt_value(self, owner: Buffer, name: bytes, value: bytes) -> bytes:
        """What an attribute stores; `owner` is a file's id or a directory's IV."""

    def decrypt_value(self, owner: Buffer, name: bytes, stored: bytes) -> bytes:
        """The plain value."""

class Blocks:
    """Encrypts and decrypts blocks of one file, many a call, without the GIL."""

    def __init__(self, volume: VolumeKeys, fixed: Buffer) -> None:
        """`fixed`: the first 64 bytes of the file's header."""

    def encrypt(self, first: int, generation: int, plain: Buffer, slots: Buffer) -> bytes:
        """Blocks from number `first` on, side by side, into `slots`; their tags, 16 bytes each."""

    def decrypt(self, first: int, last: int, slots: Buffer, plain: Buffer) -> list[tuple[int, int, int, bytes]]:
        """Blocks into `plain`, 4,096 bytes each. `last`: the number of the file's last block. For each block: state (0
        all zeros or absent, 1 authentic, 2 damaged), generation, length, tag; what is damaged is zeros in `plain`."""

    def repeat(self, encrypts: bool, plain: Buffer, slots: Buffer, calls: int) -> None:
        """Whole blocks from number 0 on, into `slots` or out of them, so many times: for measuring."""

def wrap(key: Secret, associated: list[bytes], secret: Secret) -> bytes:
    """AES-256-SIV of a secret; `key` has 64 bytes, `associated` one to four that are not empty."""

def unwrap(key: Secret, associated: list[bytes], sealed: bytes) -> Secret:
    """What wrap() has wrapped."""

def hkdf_sha256(key: Buffer, salt: bytes, info: bytes, length: int) -> Secret:
    """RFC 5869."""
