"""Reads an encrypted volume, from docs/encryption-format.md alone: none of the filter's code, only `cryptography`.

What is not as the format has it raises Damaged.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HEADER, SEAL, BLOCK, SLOT, TOP = 1024, 448, 4096, 4132, 24
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Damaged(Exception):
    pass


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, info).derive(key)


def mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


def siv_open(key: bytes, sealed: bytes, *associated: bytes) -> bytes:
    try:
        return AESSIV(key).decrypt(sealed, list(associated))
    except InvalidTag:
        raise Damaged("not authentic") from None


def unbase64(text: bytes) -> bytes:
    data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != text:
        raise Damaged("not the one Base64 of what it is")
    return data


# --- the volume -----------------------------------------------------------------------------------------------------


def canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def recovery_key(text: str) -> bytes:
    """The 32 bytes that a written recovery key stands for."""
    digits = text.upper().replace("I", "1").replace("L", "1").replace("O", "0")
    number = 0
    kept = [ALPHABET.index(each) for each in digits if each in ALPHABET]
    for digit in kept:
        number = number << 5 | digit
    data = number.to_bytes(35, "big")
    if len(kept) != 56 or hashlib.sha256(b"stackfs recovery" + data[:32]).digest()[:3] != data[32:]:
        raise Damaged("mistyped")
    return data[:32]


def unlock(volume_file: bytes, kind: str, secret: bytes) -> tuple[bytes, dict[str, Any]]:
    """The master key, and the volume file."""
    volume = json.loads(volume_file)
    assert volume["format"] == "stackfs encryption" and volume["version"] == 1 and volume["features"] == []
    for slot in volume["slots"]:
        if slot["kind"] != kind:
            continue
        salt = bytes.fromhex(slot["salt"])
        if kind == "passphrase":
            key = Argon2id(
                salt=salt, length=64, iterations=slot["passes"], lanes=slot["lanes"], memory_cost=slot["memory"]
            ).derive(secret)
        else:
            key = hkdf(secret, salt, f"stackfs encryption 1 {kind}".encode(), 64)
        bound = canonical({name: value for name, value in slot.items() if name != "wrapped"})
        try:
            master = siv_open(
                key, bytes.fromhex(slot["wrapped"]), b"stackfs encryption 1 slot", bytes.fromhex(volume["id"]), bound
            )
        except Damaged:
            continue
        keys = Keys(master, bytes.fromhex(volume["id"]))
        whole = {name: value for name, value in volume.items() if name != "mac"}
        if mac(keys.volume, canonical(whole)).hex() != volume["mac"]:
            raise Damaged("the volume file was changed")
        return master, volume
    raise Damaged("no slot opens")


class Keys:
    def __init__(self, master: bytes, volume_id: bytes) -> None:
        self.master, self.id = master, volume_id
        self.volume, self.names, self.values, self.directories = (
            hkdf(master, volume_id, b"stackfs encryption 1 " + label, length)
            for label, length in [(b"volume", 32), (b"names", 64), (b"values", 64), (b"directories", 32)]
        )

    def name(self, iv: bytes, stored: bytes, text: bytes = b"") -> bytes:
        """A plain name; `text` is what a long one's .name file has."""
        is_long = stored.startswith(b".stackfs-long-")
        if is_long:
            digest = hashlib.sha256(b"long" + text).digest()[:24]
            if stored != b".stackfs-long-" + base64.urlsafe_b64encode(digest):
                raise Damaged("another name's file")
        padded = siv_open(self.names, text if is_long else unbase64(stored), iv)
        name = padded.rstrip(b"\0")
        if len(padded) != -(-len(name) // 16) * 16 or (len(name) > 160) != is_long or not 1 <= len(name) <= 255:
            raise Damaged("not padded as it should be")
        if b"/" in name or b"\0" in name or name in (b".", b".."):
            raise Damaged("no name")
        return name

    def directory(self, file: bytes, parent: bytes, stored: bytes) -> bytes:
        """The IV of a directory file that lies in this place."""
        if len(file) != 96 or file[:16] != b"SFENCRD1\x01" + bytes(7):
            raise Damaged("no directory file")
        if mac(self.directories, file[:32], parent, stored) not in (file[32:64], file[64:96]):
            raise Damaged("from elsewhere")
        return file[16:32]

    def target(self, stored: bytes) -> bytes:
        data = unbase64(stored)
        return siv_open(self.values, data[16:], b"link", data[:16])

    def value(self, owner: bytes, name: bytes, stored: bytes) -> bytes:
        plain = siv_open(self.values, stored[16:], b"attribute", name, owner, stored[:16])
        assert plain[:1] == b"\1"
        return plain[1:]


# --- a file ---------------------------------------------------------------------------------------------------------


def blocks_of(size: int) -> int:
    return -(-size // BLOCK)


def slot_offset(block: int) -> int:
    nodes = 0
    for k in range(1, 8):
        if block >= TOP * 256 ** (k - 1):
            nodes += 1 + block // 256**k
    return HEADER + SLOT * block + 12288 * nodes


def node_offset(level: int, index: int) -> int:
    def first(k: int, j: int) -> int:
        return j * 256**k if j else TOP * 256 ** (k - 1)

    block = first(level, index)
    here = sum(first(k, block // 256**k) == block for k in range(1, level + 1))
    return slot_offset(block) - 12288 * here


def stored_size(size: int) -> int:
    last = blocks_of(size) - 1
    return HEADER if size == 0 else slot_offset(last) + 36 + size - BLOCK * last


class File:
    """A stored file: `stored` is all of it."""

    def __init__(self, keys: Keys, stored: bytes) -> None:
        self.stored = stored
        header = stored[:HEADER]
        if len(header) < HEADER or header[:9] != b"SFENCRF1\x01" or any(header[10:16]) or any(header[960:]):
            raise Damaged("no header")
        self.id = header[16:32]
        derived = hkdf(keys.master, header[32:64], b"stackfs encryption 1 file" + header[:32], 96)
        self.map_key = derived[64:]
        ciphers: dict[int, Callable[[], Any]] = {
            1: lambda: AESGCM(derived[:32]),
            2: lambda: ChaCha20Poly1305(derived[:32]),
            3: lambda: AESSIV(derived[:64]),
        }
        self.suite = header[9]
        self.cipher = ciphers[self.suite]()
        seals = [self.seal(header, place) for place in (0, 1)]
        self.generation, self.size, self.open, self.top = max(seals)
        self.sealed_size = self.size
        blocks = blocks_of(self.size)
        self.levels = next(level for level in range(8) if blocks <= TOP * 256**level)
        if len(stored) < stored_size(self.size) or (not self.open and len(stored) != stored_size(self.size)):
            raise Damaged("not as long as its seal says")
        if self.open:
            self.size = self.size_found()

    def seal(self, header: bytes, place: int) -> tuple[int, int, bool, bytes]:
        seal = header[64 + SEAL * place :][:SEAL]
        generation, size, is_open = struct.unpack_from("<QQB", seal)
        if mac(self.map_key, b"seal", header[:64], seal[:416]) != seal[416:] or generation % 2 != place:
            raise Damaged("a seal")
        assert not any(seal[17:32]) and is_open in (0, 1)
        return generation, size, bool(is_open), seal[32:416]

    def size_found(self) -> int:
        last = max(
            (b for b in range(len(self.stored) // SLOT + 1) if slot_offset(b) + 36 < len(self.stored)), default=-1
        )
        for block in range(last, max(blocks_of(self.sealed_size) - 1, 0) - 1, -1):
            slot = self.slot(block)
            if not any(slot):
                continue
            try:
                generation, plain, _ = self.decrypt(block, slot, last=True)
            except Damaged:
                return max(self.sealed_size, block * BLOCK + len(slot) - 36)
            if generation > self.generation:
                return max(self.sealed_size, block * BLOCK + len(plain))
        return self.sealed_size

    def slot(self, block: int) -> bytes:
        return self.stored[slot_offset(block) :][:SLOT]

    def decrypt(self, block: int, slot: bytes, last: bool) -> tuple[int, bytes, bytes]:
        """Generation, plain text, tag."""
        generation, length = int.from_bytes(slot[:6], "little"), int.from_bytes(slot[6:8], "little")
        if not 1 <= length <= BLOCK or len(slot) < length + 36 or (not last and any(slot[length + 36 :])):
            raise Damaged("a slot")
        nonce, text, tag = slot[8:20], slot[20 : 20 + length], slot[20 + length : 36 + length]
        bound = block.to_bytes(8, "little") + slot[:8]
        try:
            if self.suite == 3:
                plain = self.cipher.decrypt(tag + text, [bound, nonce])
            else:
                plain = self.cipher.decrypt(nonce, text + tag, bound)
        except InvalidTag:
            raise Damaged(f"block {block}") from None
        return generation, plain, tag

    def entry(self, level: int, index: int) -> bytes:
        """The map's entry of a node, or at level 0 of a block."""
        if index >= TOP * 256 ** (self.levels - level):
            return bytes(16)
        entries = self.top if level == self.levels else self.node(level + 1, index // 256)
        return entries[index % 256 * 16 :][:16] if level < self.levels else entries[index * 16 :][:16]

    def node(self, level: int, index: int) -> bytes:
        wanted = self.entry(level, index)
        if not any(wanted):
            return bytes(BLOCK)
        for place in range(3):
            node = self.stored[node_offset(level, index) + BLOCK * place :][:BLOCK].ljust(BLOCK, b"\0")
            bound = b"node" + bytes([level, 0, 0, 0]) + index.to_bytes(8, "little")
            if mac(self.map_key, bound, node)[:16] == wanted:
                return node
        raise Damaged(f"node {level}, {index}")

    def block(self, block: int) -> bytes:
        entry, slot = self.entry(0, block), self.slot(block)
        last = block == blocks_of(self.size) - 1
        wanted = self.size - block * BLOCK if last else BLOCK
        if not any(slot):
            if any(entry) or (last and not self.open):
                raise Damaged(f"block {block} is gone")
            return bytes(wanted)
        generation, plain, tag = self.decrypt(block, slot, last)
        if tag != entry:
            if not self.open or generation > self.generation + 2 or (generation <= self.generation and any(entry)):
                raise Damaged(f"block {block} is another version")
            if generation <= self.generation:
                return bytes(wanted)
        if last and (len(plain) < wanted or (len(plain) > wanted and not self.open)):
            raise Damaged(f"block {block} has another length")
        return plain[:wanted].ljust(wanted, b"\0")

    def read(self) -> bytes:
        return b"".join(self.block(each) for each in range(blocks_of(self.size)))
