"""One stored file, as fsck looks at it: opened as far as it can be, each block examined by the core (_file.pyx), and
what can be put right without guessing. Any thread, one at a time for one file.

Nothing here takes a decision that the format leaves to the map: a block that is authentic but not the version which the
map has stays an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator

from stackfs.filters.encryption._cipher import Blocks, VolumeKeys
from stackfs.filters.encryption._file import EncryptedFile, plain_size_of, sizes, slot_offset_of
from stackfs.filters.encryption.findings import Finding, Kind

BLOCK, SLOT, OVERHEAD, HEADER, SEAL, FIXED = 4096, 4132, 36, 1024, 448, 64
GOOD, HOLE, NO_MAP, GONE, DAMAGED, OTHER, LENGTH = range(7)
MAGIC = b"SFENCRF1"
SAYS = {
    NO_MAP: (Kind.MAP, "the part of the map that vouches for {} is damaged"),
    GONE: (Kind.BLOCK, "{} replaced by zeros or a hole, or never reached the disk"),
    DAMAGED: (Kind.BLOCK, "{} damaged"),
    OTHER: (Kind.BLOCK, "{} replaced by another version of the same block, or a hole was filled with it"),
    LENGTH: (Kind.BLOCK, "{} not as long as the file's size says"),
}


@dataclasses.dataclass(slots=True)
class Checked:
    """What became of a file. `bad`: verdicts of blocks that cannot be read."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    id: bytes = b""
    bytes: int = 0
    blocks: int = 0
    bad: dict[int, int] = dataclasses.field(default_factory=dict)
    wiped: Finding | None = None
    """It has no header at all, but zeros in its place."""


class StoredFile:
    """A stored file by its descriptor, which stays the caller's (writable if it is to be repaired)."""

    def __init__(self, keys: VolumeKeys, descriptor: int, stored: bytes, path: bytes, suite: int) -> None:
        self.keys, self.descriptor, self.stored, self.path, self.suite = keys, descriptor, stored, path, suite
        self.checked = Checked()

    def check(self, *, repair: bool = False, seal_damaged: bool = False, rebuild: bool = False) -> Checked:
        """Examines all of it. `repair`: also puts right what can be; a file that is left open and has damaged blocks is
        sealed only with `seal_damaged`, since sealing is the end of what could still be put back in its place.
        `rebuild`: what is damaged of its map is made anew from its blocks, which then nothing else vouches for."""
        before = os.fstat(self.descriptor)
        try:
            self._check(before.st_size, repair, seal_damaged, repair and rebuild)
        except OSError as error:
            self._find(Kind.UNREADABLE, f"cannot be read: {error.strerror}")
        if repair and os.fstat(self.descriptor).st_mtime_ns != before.st_mtime_ns:
            with contextlib.suppress(OSError):
                os.utime(self.descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
        return self.checked

    def _find(self, kind: Kind, detail: str, blocks: tuple[int, int] | None = None) -> Finding:
        finding = Finding(kind, self.stored, self.path, detail, blocks)
        self.checked.findings.append(finding)
        return finding

    def _check(self, stored: int, repair: bool, seal_damaged: bool, rebuild: bool) -> None:
        if stored == 0:
            empty = self._find(Kind.EMPTY_FILE, "has no bytes at all, as a crash leaves a file that was never synced")
            if repair:
                self.make_empty()
                empty.repaired = "it is an empty file now"
            return
        header = os.pread(self.descriptor, HEADER, 0)
        if not any(header):
            self.checked.wiped = self._find(
                Kind.HEADER,
                "its header never reached the disk, as a crash leaves a file that was never synced, or was wiped: "
                "nothing of it can be read",
            )
            return
        file, length, one_seal = self._opened(header, stored)
        if file is None:
            return
        self.checked.id = file.id
        self.checked.bytes = file.size
        blocks = self.checked.blocks = -(-file.size // BLOCK)
        self.checked.bad = bad = self._bad(file, blocks)
        self._tell(bad)
        unsealed = file.unsealed
        if rebuild and NO_MAP in bad.values() and length is None and not one_seal:
            bad = self._rebuild(blocks)
            repair = False               # that was all that can be done
        some_good = blocks == 0 or len(bad) < blocks
        if length is not None:
            self._length(stored, length, some_good, not bad, repair)
        if one_seal:
            finding = self._find(Kind.SEAL, "one of the two seals in its header is damaged")
            if repair and not bad and length is None:
                EncryptedFile(self.keys, self.descriptor, one_seal=True).seal_again()
                finding.repaired = "all blocks are as the other seal says: both are written anew"
        elif unsealed and not one_seal:
            finding = self._find(Kind.UNSEALED, "was open when the daemon ended, and is not sealed")
            if not EncryptedFile(self.keys, self.descriptor, stored=length).unsealed:
                finding.repaired = "sealed, with what had been written"
            if repair and (not bad or seal_damaged) and (length is None or stored >= length):
                EncryptedFile(self.keys, self.descriptor).seal(True)
                finding.repaired = "sealed, with what had been written"

    def _bad(self, file: EncryptedFile, blocks: int) -> dict[int, int]:
        """The verdicts of blocks that are not as they should be."""
        return {block: verdict for block, verdict in self._verdicts(file, blocks) if verdict not in (GOOD, HOLE)}

    def _tell(self, bad: dict[int, int]) -> None:
        """A finding for each run of them."""
        for verdict, first, last in runs(bad):
            kind, words = SAYS[verdict]
            what = f"block {first} is" if first == last else f"blocks {first} to {last} are"
            if verdict == NO_MAP:
                what = what.rsplit(" ", 1)[0]
            self._find(kind, words.format(what), (first, last))

    def _rebuild(self, blocks: int) -> dict[int, int]:
        """The map from the blocks; those that are still bad, and findings of what was behind the damaged map."""
        EncryptedFile(self.keys, self.descriptor).rebuild_map()
        before = self.checked.bad
        file = EncryptedFile(self.keys, self.descriptor)
        bad = self._bad(file, blocks)
        for finding in self.checked.findings:
            if finding.kind == Kind.MAP:
                finding.repaired = (
                    "made anew from the blocks as they lie: nothing proves any more that each is the last version of "
                    "itself, and that what is zeros is a hole"
                )
        self._tell({block: bad[block] for block in bad if before.get(block) == NO_MAP})
        self.checked.bad = bad
        return bad

    def make_empty(self) -> None:
        """An empty file, with a new id. The values of its attributes were encrypted with the one that it has lost."""
        os.truncate(self.descriptor, 0)
        for name in os.listxattr(self.descriptor):
            if name.startswith("user."):
                os.removexattr(self.descriptor, name)
        EncryptedFile(self.keys, self.descriptor, suite=self.suite).seal(True)
        os.fsync(self.descriptor)

    def _opened(self, header: bytes, stored: int) -> tuple[EncryptedFile | None, int | None, bool]:
        """The file; the length that its seal says, if that is not the one it has; whether one seal is damaged."""
        problem: OSError | None = None
        for one_seal in (False, True):
            for length in (None, *sealed_lengths(header)):
                try:
                    file = EncryptedFile(self.keys, self.descriptor, stored=length, one_seal=one_seal)
                except OSError as error:
                    if error.errno not in (errno.EBADMSG, errno.EOPNOTSUPP):
                        raise
                    problem = problem or error
                    continue
                return file, length, one_seal
        if problem is not None and problem.errno == errno.EOPNOTSUPP:
            self._find(Kind.UNSUPPORTED, "a later release of stackfs wrote it: check it with that one")
        elif stored < HEADER:
            self._find(Kind.CUT, f"was cut to {stored} bytes, within its header: nothing of it can be read")
        elif not header.startswith(MAGIC):
            self._find(Kind.FOREIGN_FILE, "is no encrypted file: somebody put it here, or its header is damaged")
        else:
            self._find(Kind.HEADER, "its header is damaged: nothing of the file can be read")
        return None, None, False

    def _verdicts(self, file: EncryptedFile, blocks: int) -> Iterator[tuple[int, int]]:
        block = 0
        while block < blocks:
            verdicts = file.examine(block, min(256, blocks - block))
            yield from zip(range(block, block + len(verdicts)), verdicts, strict=True)
            block += len(verdicts)
            if len(verdicts) > 1 and verdicts.count(HOLE) == len(verdicts) and block < blocks:
                block = max(block, self._next_that_matters(file, block))

    def _next_that_matters(self, file: EncryptedFile, block: int) -> int:
        """Where after a hole the map or the stored file has something."""
        try:
            mapped = file.seek(block * BLOCK, False) // BLOCK
            stored = os.lseek(self.descriptor, slot_offset_of(block), os.SEEK_DATA)
        except OSError:
            return block
        return min(mapped, max(plain_size_of(stored), 0) // BLOCK)

    def _length(self, stored: int, length: int, some_good: bool, all_good: bool, repair: bool) -> None:
        if stored < length:
            finding = self._find(
                Kind.CUT, f"was cut: {length - stored} of its {length} stored bytes are missing, and it is not opened"
            )
            if repair and some_good:
                os.truncate(self.descriptor, length)
                os.fsync(self.descriptor)
                finding.repaired = "what is left of it can be read again; what is missing is an error when it is read"
            return
        finding = self._find(Kind.LONGER, f"has {stored - length} bytes behind its end, and is not opened")
        if repair and all_good and zeros(self.descriptor, length, stored):
            os.truncate(self.descriptor, length)
            os.fsync(self.descriptor)
            finding.repaired = "they were zeros, and are cut off"


def sealed_lengths(header: bytes) -> list[int]:
    """How long the stored file is by the header's seals, the younger one's first. They are not checked."""
    if len(header) < HEADER:
        return []
    seals = [header[FIXED + SEAL * place :][:16] for place in (0, 1)]
    numbers = [(int.from_bytes(each[:8], "little"), int.from_bytes(each[8:], "little")) for each in seals]
    return [sizes(size)[0] for _, size in sorted(numbers, reverse=True) if size <= 1 << 62]


def runs(bad: dict[int, int]) -> Iterator[tuple[int, int, int]]:
    """Verdict, first and last block, for blocks side by side with one verdict."""
    first = last = verdict = -1
    for block in sorted(bad):
        if block != last + 1 or bad[block] != verdict:
            if first >= 0:
                yield verdict, first, last
            first, verdict = block, bad[block]
        last = block
    if first >= 0:
        yield verdict, first, last


def zeros(descriptor: int, begin: int, end: int) -> bool:
    while begin < end:
        data = os.pread(descriptor, min(1 << 20, end - begin), begin)
        if not data or any(data):
            return not data
        begin += len(data)
    return True


def slot_of(descriptor: int, block: int) -> bytes:
    """A block's slot, without the zeros behind a short one. Empty: there is nothing that could be a block."""
    slot = os.pread(descriptor, SLOT, slot_offset_of(block))
    length = int.from_bytes(slot[6:8], "little") + OVERHEAD
    return slot[:length] if OVERHEAD < length <= min(SLOT, len(slot)) else b""


def belongs(blocks: Blocks, number: int, slot: bytes) -> bool:
    """Whether a slot's bytes are authentic as this block of the file that `blocks` has the keys of."""
    return blocks.decrypt(number, number, slot, bytearray(BLOCK))[0][0] == 1
