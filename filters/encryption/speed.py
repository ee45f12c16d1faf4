"""How fast this machine encrypts: the core alone, from memory to memory, with keys that are thrown away."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stackfs.filters.encryption._cipher import Blocks, VolumeKeys
from stackfs.filters.encryption._secrets import Secret
from stackfs.filters.encryption.volume import SUITES

BATCH: Final = 1 << 20                 # bytes between two looks at the clock


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
            plain, slots = bytearray(os.urandom(4096 * count)), bytearray(4132 * count)
            encrypt, decrypt = (_rate(blocks, encrypts, plain, slots, seconds) for encrypts in (True, False))
            rows.append(Row(suite, count, encrypt, decrypt))
    return rows


def _rate(blocks: Blocks, encrypts: bool, plain: bytearray, slots: bytearray, seconds: float) -> float:
    calls = max(1, BATCH // len(plain))
    done = 0
    blocks.repeat(encrypts, plain, slots, calls)
    begun = time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        blocks.repeat(encrypts, plain, slots, calls)
        done += calls
    return done * len(plain) / taken
