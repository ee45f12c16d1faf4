"""How fast this machine encrypts: the core alone, from memory to memory, with keys that are thrown away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stackfs.filters.encryption._cipher import Blocks, VolumeKeys
from stackfs.filters.encryption._secrets import Secret
from stackfs.filters.encryption.volume import SUITES


@dataclass(frozen=True, slots=True)
class Row:
    """`blocks` of 4 KiB at a time; encrypt and decrypt in bytes a second of plain data."""

    suite: str
    blocks: int
    encrypt: float
    decrypt: float


def measure(suites: Sequence[str], seconds: float, transfers: Sequence[int] = (1, 32, 256)) -> list[Row]:
    """`seconds` for each number. Transfers of 1 and 32 blocks are done by the caller's thread alone."""
    rows = []
    volume = VolumeKeys(Secret.random(32), os.urandom(16))
    for suite in suites:
        blocks = Blocks(volume, b"SFENCRF1\x01" + bytes([SUITES[suite]]) + bytes(6) + os.urandom(48))
        for count in transfers:
            plain, slots, opened = bytearray(os.urandom(4096 * count)), bytearray(4132 * count), bytearray(4096 * count)
            encrypt = _rate(blocks.encrypt, (0, 3, plain, slots), seconds, len(plain))
            decrypt = _rate(blocks.decrypt, (0, count, slots, opened), seconds, len(plain))
            rows.append(Row(suite, count, encrypt, decrypt))
    return rows


def _rate(call: Callable[..., object], arguments: tuple[object, ...], seconds: float, size: int) -> float:
    call(*arguments)
    begun = time.perf_counter()
    calls = 0
    while (taken := time.perf_counter() - begun) < seconds:
        for _ in range(8):
            call(*arguments)
        calls += 8
    return calls * size / taken
