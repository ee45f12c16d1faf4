"""The encrypted volume's format: docs/encryption-format.md's examples, and the core against an independent reader.

A File below is a stored file in memory; the core reaches it through the five calls that it makes of whatever is below.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import encryption_reader as reader
import pytest
from conftest import ROOT

from stackfs.filters.encryption import volume as volumes
from stackfs.filters.encryption._cipher import Blocks, VolumeKeys
from stackfs.filters.encryption._file import EncryptedFile, node_offset_of, plain_size_of, sizes, slot_offset_of
from stackfs.filters.encryption._secrets import Secret

MASTER, VOLUME_ID = bytes(range(32)), bytes(range(0x64, 0x74))
SUITES = (1, 2, 3)
DOCUMENT = (ROOT / "docs/encryption-format.md").read_text()


@pytest.fixture(scope="module")
def keys() -> VolumeKeys:
    return VolumeKeys(Secret.taken_from(bytearray(MASTER)), VOLUME_ID)


@pytest.fixture(scope="module")
def reading() -> reader.Keys:
    return reader.Keys(MASTER, VOLUME_ID)


class Stored:
    """A stored file in memory that counts its syncs."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.syncs = 0

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data

    def sync(self) -> None:
        self.syncs += 1

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def punch(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.data))
        self.data[offset:end] = bytes(max(end - offset, 0))


def made(keys: VolumeKeys, plain: bytes, suite: int = 1, clean: bool = True) -> Stored:
    """A stored file with this content, sealed."""
    stored = Stored()
    file = EncryptedFile(keys, stored, suite=suite)
    file.write(0, plain)
    file.seal(clean)
    return stored


def opened(keys: VolumeKeys, stored: Stored) -> EncryptedFile:
    return EncryptedFile(keys, stored, stored=len(stored.data))


def content(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def whole(file: EncryptedFile) -> bytes:
    return file.read(0, file.size)


# --- the document ---------------------------------------------------------------------------------------------------


def examples() -> Iterator[tuple[int, bytes]]:
    """Each example's plain size and stored bytes."""
    for plain, stored, text in re.findall(
        r", ([\d,]+) bytes, stored in ([\d,]+) bytes:\n\n```text\n(.*?)```", DOCUMENT, re.DOTALL
    ):
        data = bytearray(int(stored.replace(",", "")))
        for line in text.splitlines():
            offset, digits = line.split(": ")
            row = bytes.fromhex(digits)
            data[int(offset, 16) : int(offset, 16) + len(row)] = row
        yield int(plain.replace(",", "")), bytes(data)


def test_the_documents_files_decode(keys: VolumeKeys, reading: reader.Keys) -> None:
    found = dict(examples())
    assert list(found) == [0, 1, 4096, 5000]
    for size, stored in found.items():
        plain = bytes(i % 251 for i in range(size))
        assert reader.File(reading, stored).read() == plain
        assert whole(opened(keys, Stored(stored))) == plain
        assert len(stored) == reader.stored_size(size) == sizes(size)[0]


def test_the_documents_volume_file_decodes(keys: VolumeKeys, reading: reader.Keys) -> None:
    text = re.search(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)[1].encode()  # type: ignore[index]
    recovery = re.search(r"`((?:[0-9A-Z]{7}-){7}[0-9A-Z]{7})`", DOCUMENT)[1]  # type: ignore[index]
    assert reader.unlock(text, "passphrase", b"correct horse battery staple")[0] == MASTER
    assert reader.unlock(text, "recovery", reader.recovery_key(recovery))[0] == MASTER
    file = volumes.parse(text)
    assert file.text() == text
    for credential in (
        volumes.passphrase(bytearray(b"correct horse battery staple")),
        volumes.recovery_key(bytearray(recovery.lower().replace("-", " ").encode())),
    ):
        assert bytes(volumes.unlock(file, credential).master) == MASTER


def test_the_documents_names_decode(keys: VolumeKeys, reading: reader.Keys) -> None:
    said = dict(
        re.findall(r"^(directory|name Grüße.txt|long name|its \.name|target|value): (\S+)$", DOCUMENT, re.MULTILINE)
    )
    directory, value = bytes.fromhex(said["directory"]), bytes.fromhex(said["value"])
    iv = keys.check_directory(directory, (VOLUME_ID, b""))
    assert iv == reading.directory(directory, VOLUME_ID, b"")
    short, long, text = said["name Grüße.txt"].encode(), said["long name"].encode(), bytes.fromhex(said["its .name"])
    target = said["target"].encode()
    for each in (keys.decrypt_name, reading.name):
        assert each(iv, short) == "Grüße.txt".encode() and each(iv, long, text) == b"long" * 50
    assert keys.encrypt_name(iv, b"long" * 50) == (long, text)
    assert keys.decrypt_target(target) == reading.target(target) == b"../somewhere"
    assert keys.decrypt_value(iv, b"user.colour", value) == reading.value(iv, b"user.colour", value) == b"blue"


# --- where what lies ------------------------------------------------------------------------------------------------


def test_the_layout_is_the_documents() -> None:
    blocks = [
        *range(3000),
        *(24 * 256**k + i for k in range(5) for i in (-2, -1, 0, 1)),
        *(256**k * j + i for k in (1, 2, 3, 4) for j in (1, 24, 25) for i in (-1, 0, 1)),
        2**44,
    ]
    assert [slot_offset_of(each) for each in blocks] == [reader.slot_offset(each) for each in blocks]
    nodes = [
        (1, 0),
        (1, 1),
        (1, 24),
        (1, 255),
        (1, 256),
        (2, 0),
        (2, 1),
        (2, 24),
        (2, 256),
        (3, 0),
        (3, 1),
        (1, 6144),
        (4, 0),
    ]
    assert [node_offset_of(*each) for each in nodes] == [reader.node_offset(*each) for each in nodes]


def test_nothing_overlaps() -> None:
    """The first 24 MiB and more: header, slots and nodes lie one behind the other, without a gap."""
    places = [(0, 1024)] + [(slot_offset_of(each), 4132) for each in range(7000)]
    places += [(node_offset_of(1, each), 12288) for each in range(28)] + [(node_offset_of(2, 0), 12288)]
    end = 0
    for offset, length in sorted(places):
        assert offset == end
        end += length


@pytest.mark.parametrize(
    "size",
    [0, 1, 4095, 4096, 4097, 24 * 4096, 24 * 4096 + 1, 256 * 4096, 256 * 4096 + 1, 6144 * 4096 + 1, 2**40 + 17, 2**62],
)
def test_the_plain_size_follows_from_the_stored_one(size: int) -> None:
    assert sizes(size) == (reader.stored_size(size), size)


def test_sizes_that_no_file_has() -> None:
    assert plain_size_of(1023) == -1
    for cut in (1024, 1030, 1060):
        assert plain_size_of(cut) == 0
    assert plain_size_of(1061) == 1
    for cut in range(
        slot_offset_of(24) - 12288, slot_offset_of(24) + 36, 97
    ):  # in a node, in what a slot has before its text
        assert plain_size_of(cut) == 24 * 4096


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 24 * 4096 + 5, 2_000_000])
def test_the_reader_reads_what_the_core_writes(keys: VolumeKeys, reading: reader.Keys, suite: int, size: int) -> None:
    plain = content(size)
    for clean in (False, True):
        stored = made(keys, plain, suite, clean)
        assert reader.File(reading, bytes(stored.data)).read() == plain
        assert whole(opened(keys, stored)) == plain


class Random:
    """Random operations on a file and on bytes beside it."""

    def __init__(self, keys: VolumeKeys, seed: int, suite: int, limit: int) -> None:
        self.keys, self.random, self.limit = keys, random.Random(seed), limit
        self.stored = Stored()
        self.file = EncryptedFile(keys, self.stored, suite=suite)
        self.plain = bytearray()

    def place(self) -> int:
        offset = self.random.randrange(self.limit)
        return offset if self.random.random() < 0.5 else offset // 4096 * 4096

    def step(self) -> None:
        kind, model = self.random.random(), self.plain
        if kind < 0.5:
            offset = self.place() if kind < 0.4 else len(model)
            data = self.random.randbytes(self.random.choice([1, 10, 4096, 8192, 5000, 60000]))
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + len(data)] = data
            if kind < 0.4:
                assert self.file.write(offset, data) == len(data)
            else:
                assert self.file.append(data) == offset
        elif kind < 0.62:
            size = self.place() if self.random.random() < 0.9 else 0
            del model[size:]
            model.extend(bytes(size - len(model)))
            self.file.resize(size)
        elif kind < 0.72:
            offset, length = self.place(), self.random.randrange(100_000)
            end = min(len(model), offset + length)
            model[offset:end] = bytes(max(0, end - offset))
            self.file.punch(offset, length)
        elif kind < 0.85:
            self.file.seal(self.random.random() < 0.5)
        else:
            if self.random.random() < 0.5:
                self.file.seal(True)
            self.reopen()

    def reopen(self) -> None:
        """Without a seal: what a kill of the daemon leaves."""
        self.file = opened(self.keys, self.stored)

    def check(self) -> None:
        assert self.file.size == len(self.plain) and self.file.stored_size == len(self.stored.data)
        offset, length = self.place(), self.random.randrange(50_000)
        assert self.file.read(offset, length) == self.plain[offset : offset + length]


@pytest.mark.parametrize(
    ("seed", "suite", "limit"), [(1, 1, 200_000), (2, 2, 200_000), (3, 3, 60_000), (4, 1, 4_000_000)]
)
def test_random_operations_with_kills(
    keys: VolumeKeys, reading: reader.Keys, seed: int, suite: int, limit: int
) -> None:
    run = Random(keys, seed, suite, limit)
    for step in range(150):
        run.step()
        run.check()
        if step % 50 == 49:
            assert reader.File(reading, bytes(run.stored.data)).read() == run.plain
    run.file.seal(True)
    assert reader.File(reading, bytes(run.stored.data)).read() == run.plain == whole(opened(keys, run.stored))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(100, 130))
def test_many_random_operations_with_kills(keys: VolumeKeys, reading: reader.Keys, seed: int) -> None:
    run = Random(keys, seed, 1 + seed % 3, 300_000 if seed % 2 else 30_000_000)
    for _ in range(1000):
        run.step()
        run.check()
    run.file.seal(True)
    assert reader.File(reading, bytes(run.stored.data)).read() == run.plain


def test_a_file_too_large_for_its_nodes_in_memory(keys: VolumeKeys, tmp_path: Path) -> None:
    """Blocks a gigabyte and more apart: nodes are given back and read again, of three levels."""
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        file = EncryptedFile(keys, descriptor, suite=1)
        places = [each * 1_048_576 + 4096 * (each % 7) for each in range(1500)] + [7 << 30, 3 << 40]
        for number, offset in enumerate(places):
            file.write(offset, b"%08d" % number)
            if number % 500 == 499:
                file.seal()
        file.seal(True)
        again = EncryptedFile(keys, descriptor)
        assert [again.read(offset, 8) for offset in places] == [b"%08d" % number for number in range(len(places))]
        assert again.size == (3 << 40) + 8 + 4096 * 0
        assert again.read(5 << 30, 100) == bytes(100)
        assert again.seek(6 << 30, False) == 7 << 30 and again.seek((7 << 30) + 4096, False) == 3 << 40
        assert os.stat(tmp_path / "file").st_blocks * 512 < 64 << 20
        again.resize(5)
        assert again.read(0, 10) == b"00000" and again.seek(0, True) == 5
    finally:
        os.close(descriptor)


def test_holes_stay_holes(keys: VolumeKeys, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        file = EncryptedFile(keys, descriptor, suite=1)
        file.write(50 << 20, b"x")
        assert file.seek(0, False) == 50 << 20 and file.seek(0, True) == 0
        file.write(0, content(1 << 20))
        assert file.seek(0, True) == 1 << 20 and file.seek(1 << 20, False) == 50 << 20
        before = os.fstat(descriptor).st_blocks
        file.punch(4000, (1 << 20) - 8000)
        assert os.fstat(descriptor).st_blocks < before // 4
        assert file.seek(0, True) == 4096 and file.seek(4096, False) == (1 << 20) - 4096
        assert file.read(3990, 20) == content(1 << 20)[3990:4000] + bytes(10)
        with pytest.raises(OSError, match="No such device"):
            file.seek((50 << 20) + 1, False)
    finally:
        os.close(descriptor)


def test_syncs(keys: VolumeKeys) -> None:
    """What is promised costs as many syncs as the document says, and a write costs none."""
    stored = made(keys, content(50_000))
    before = stored.syncs
    file = opened(keys, stored)
    file.write(0, b"first")  # the seal has to be open on the disk
    assert stored.syncs == before + 1
    for _ in range(10):
        file.write(30_000, b"more")
    assert stored.syncs == before + 1
    file.seal()
    file.seal()
    assert stored.syncs == before + 2
    file.resize(0)
    assert stored.syncs == before + 3


# --- tampering ------------------------------------------------------------------------------------------------------


def damaged(keys: VolumeKeys, data: bytes, plain: bytes) -> bool:
    """Whether reading what was tampered with gives an error somewhere. Wrong data never come."""
    try:
        file = opened(keys, Stored(data))
    except OSError as error:
        assert error.errno in (errno.EBADMSG, errno.EOPNOTSUPP)
        return True
    wrong = file.size != len(plain)
    for offset in range(0, max(file.size, len(plain)), 4096):
        try:
            got = file.read(offset, 4096)
        except OSError as error:
            assert error.errno == errno.EBADMSG
            return True
        assert not wrong or got == plain[offset : offset + 4096], "wrong data"
        assert got == plain[offset : offset + 4096], "wrong data"
    assert not wrong, "a wrong size, and no error"
    return False


@pytest.fixture(scope="module", params=SUITES)
def victim(request: pytest.FixtureRequest, keys: VolumeKeys) -> tuple[bytes, bytes]:
    """A clean file with a hole, a short block and a node: plain and stored."""
    stored = Stored()
    file = EncryptedFile(keys, stored, suite=request.param)
    plain = bytearray(content(30 * 4096 + 77))
    file.write(0, plain)
    file.punch(8192, 8192)
    plain[8192:16384] = bytes(8192)
    file.seal(True)
    return bytes(plain), bytes(stored.data)


def test_any_changed_byte_is_noticed(keys: VolumeKeys, victim: tuple[bytes, bytes]) -> None:
    """Each byte of the header; of slots and nodes a sample, and every byte of their heads and ends."""
    plain, stored = victim
    sample = random.Random(7)
    places = {*range(1024), *range(slot_offset_of(0), slot_offset_of(0) + 24), *range(len(stored) - 20, len(stored))}
    places |= {sample.randrange(1024, len(stored)) for _ in range(300)}
    unused = [
        range(node_offset_of(1, 0) + 4096 * place, node_offset_of(1, 0) + 4096 * (place + 1)) for place in range(3)
    ]
    valid = next(
        place
        for place in unused
        if any(stored[place.start : place.stop])
        and damaged(keys, stored[: place.start] + bytes(4096) + stored[place.stop :], plain)
    )
    for place in places:
        changed = bytearray(stored)
        changed[place] ^= 1 << sample.randrange(8)
        means_nothing = any(place in each for each in unused) and place not in valid
        assert damaged(keys, bytes(changed), plain) != means_nothing, place


def test_cut_or_longer_at_any_byte(keys: VolumeKeys, victim: tuple[bytes, bytes]) -> None:
    plain, stored = victim
    edges = [slot_offset_of(block) for block in range(31)]
    cuts = {0, 1, 63, 64, 1023, 1024, *edges, *(each + 36 for each in edges), *range(len(stored) - 150, len(stored))}
    for cut in cuts - {len(stored)}:
        assert damaged(keys, stored[:cut], plain), cut
    for more in (b"\0", b"x", bytes(4132), stored[1024 : 1024 + 4132]):
        assert damaged(keys, stored + more, plain)


def test_blocks_moved_zeroed_and_holes_filled(keys: VolumeKeys, victim: tuple[bytes, bytes]) -> None:
    plain, stored = victim

    def slot(block: int) -> slice:
        return slice(slot_offset_of(block), slot_offset_of(block) + 4132)

    for one, other in [(0, 1), (5, 25), (26, 2), (2, 26), (0, 29)]:  # 2 is the hole
        changed = bytearray(stored)
        changed[slot(one)], changed[slot(other)] = stored[slot(other)], stored[slot(one)]
        assert damaged(keys, bytes(changed), plain)
        changed = bytearray(stored)
        changed[slot(one)] = stored[slot(other)]
        assert damaged(keys, bytes(changed), plain)
    for block in (0, 7, 24, 29):
        changed = bytearray(stored)
        changed[slot(block)] = bytes(4132)
        assert damaged(keys, bytes(changed), plain)


@pytest.mark.parametrize("suite", SUITES)
def test_parts_of_other_files_and_earlier_versions(keys: VolumeKeys, suite: int) -> None:
    """Headers, seals, blocks and nodes of another file, and of the same file as it was before."""
    before_plain = content(30 * 4096, 1)
    stored = made(keys, before_plain, suite)
    before = bytes(stored.data)
    file = opened(keys, stored)
    file.write(0, content(30 * 4096, 2))
    file.seal(True)
    plain, now = content(30 * 4096, 2), bytes(stored.data)
    other = bytes(made(keys, content(30 * 4096, 3), suite).data)
    empty = bytes(made(keys, b"", suite).data)
    assert damaged(keys, empty[:1024] + now[1024:], plain)
    node, ends = node_offset_of(1, 0), slot_offset_of(24)
    for source in (before, other):
        pieces = [(0, 1024), (0, 32), (32, 64), (64, 512), (512, 960), (64, 960), (node, ends)]
        pieces += [(slot_offset_of(block), slot_offset_of(block) + 4132) for block in (0, 10, 24, 29)]
        for begin, end in pieces:
            if source[begin:end] != now[begin:end]:
                noticed = damaged(keys, now[:begin] + source[begin:end] + now[end:], plain)
                # One of the two seals alone as it was before: the data are read as they are now, or not at all.
                assert noticed or (source is before and (begin, end) in [(64, 512), (512, 960)]), (begin, end)
    assert whole(opened(keys, Stored(before))) == before_plain  # a whole older version is what the threat model says


def test_what_an_open_file_may_look_like_after_a_crash(keys: VolumeKeys) -> None:
    """Any mixture of blocks written since the last seal is read; one of before it is not. Recovery ends that."""
    plain = content(30 * 4096, 1)
    stored = made(keys, plain, clean=False)
    older = bytes(stored.data)
    file = opened(keys, stored)
    file.write(0, content(30 * 4096, 2))
    file.seal()
    sealed = bytes(stored.data)
    file.write(0, content(10 * 4096, 3))
    file.append(b"and more")
    crashed = bytearray(stored.data)
    crashed[slot_offset_of(3) : slot_offset_of(4)] = sealed[slot_offset_of(3) : slot_offset_of(4)]
    expected = bytearray(content(10 * 4096, 3) + content(30 * 4096, 2)[10 * 4096 :] + b"and more")
    expected[3 * 4096 : 4 * 4096] = content(30 * 4096, 2)[3 * 4096 : 4 * 4096]
    assert whole(opened(keys, Stored(crashed))) == expected
    mixed = bytearray(crashed)
    mixed[slot_offset_of(5) : slot_offset_of(6)] = older[slot_offset_of(5) : slot_offset_of(6)]
    with pytest.raises(OSError):
        whole(opened(keys, Stored(mixed)))
    recovered = Stored(crashed)
    file = opened(keys, recovered)
    file.seal(True)
    assert whole(opened(keys, recovered)) == expected
    again = bytearray(recovered.data)
    again[slot_offset_of(3) : slot_offset_of(4)] = stored.data[slot_offset_of(3) : slot_offset_of(4)]
    assert damaged(keys, bytes(again), bytes(expected))


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_random_tampering(keys: VolumeKeys, victim: tuple[bytes, bytes], count: int) -> None:
    plain, stored = victim
    chance = random.Random(count)
    noticed = 0
    for _ in range(count):
        changed = bytearray(stored)
        begin = chance.randrange(len(stored))
        length = min(chance.choice([1, 16, 512, 4096, 4132]), len(stored) - begin)
        kind = chance.randrange(4)
        if kind == 0:
            changed[begin : begin + length] = bytes(length)
        elif kind == 1:
            changed[begin : begin + length] = chance.randbytes(length)
        elif kind == 2:
            there = chance.randrange(len(stored) - length + 1)
            changed[begin : begin + length] = stored[there : there + length]
        else:
            del changed[begin:]
        noticed += damaged(keys, bytes(changed), plain)
    assert noticed > count * 0.6


# --- crashes --------------------------------------------------------------------------------------------------------


class Recorded(Stored):
    """Remembers each change since the last sync: a crash may leave any of them undone."""

    def __init__(self) -> None:
        super().__init__()
        self.durable = bytearray()
        self.pending: list[tuple[str, int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        super().write(offset, data)
        self.pending.append(("write", offset, data))

    def resize(self, size: int) -> None:
        super().resize(size)
        self.pending.append(("resize", size, b""))

    def punch(self, offset: int, length: int) -> None:
        super().punch(offset, length)
        self.pending.append(("punch", offset, bytes(length)))

    def sync(self) -> None:
        super().sync()
        self.durable, self.pending = bytearray(self.data), []

    def crashed(self, chance: random.Random) -> Stored:
        """What a power cut may leave: of what is not synced anything, in the order in which it came."""
        left = Stored(self.durable)
        keep = chance.random()
        for what, offset, data in self.pending:
            if chance.random() < keep:
                if what == "write":
                    left.write(offset, data)
                elif what == "resize":
                    left.resize(offset)
                else:
                    left.punch(offset, len(data))
        return left


@pytest.mark.parametrize(
    ("seed", "states"),
    [
        (1, 60),
        (2, 60),
        (3, 60),
        *(pytest.param(seed, 2000, marks=[pytest.mark.long, pytest.mark.timeout(900)]) for seed in (11, 12, 13)),
    ],
)
def test_every_block_is_old_or_new_after_a_power_cut(
    keys: VolumeKeys, reading: reader.Keys, seed: int, states: int
) -> None:
    """Writes, syncs, seals, truncations, punches, reopenings: after each a state that a power cut may leave. Each block
    is one of the versions that it had since what was synced last, and writing goes on from there."""
    chance = random.Random(seed)
    blocks = 40
    recorded = Recorded()
    file = EncryptedFile(keys, recorded, suite=1)
    file.seal()
    recorded.sync()
    versions: list[set[bytes]] = [
        set() for _ in range(blocks)
    ]  # what each may be: zeros are in it where it may be a hole
    lengths = {0}
    plain = bytearray()

    def now(block: int) -> bytes:
        return bytes(plain[block * 4096 : block * 4096 + 4096]).ljust(4096, b"\0")

    def settle() -> None:
        lengths.clear()
        assert file.size == len(plain)
        lengths.add(len(plain))
        for each in range(blocks):
            versions[each] = {now(each)}

    settle()
    for number in range(states):
        kind = chance.random()
        if kind < 0.6:
            first = chance.randrange(blocks - 4)
            data = b"".join(chance.randbytes(16) * 256 for _ in range(chance.choice([1, 1, 1, 4])))
            plain.extend(bytes(max(0, first * 4096 + len(data) - len(plain))))
            plain[first * 4096 : first * 4096 + len(data)] = data
            file.write(first * 4096, data)
        elif kind < 0.7:
            file.seal(chance.random() < 0.3)
            settle()
        elif kind < 0.8:
            size = chance.randrange(blocks * 4096) if chance.random() < 0.5 else chance.randrange(blocks) * 4096
            del plain[size:]
            plain.extend(bytes(size - len(plain)))
            file.resize(size)
        elif kind < 0.9:
            first, count = chance.randrange(blocks), chance.randrange(8)
            end = min(len(plain), (first + count) * 4096)
            plain[first * 4096 : end] = bytes(max(0, end - first * 4096))
            file.punch(first * 4096, count * 4096)
        else:
            file = opened(keys, recorded)
        assert file.size == len(plain)
        lengths.add(len(plain))
        for each in range(blocks):
            versions[each].add(now(each))
        left = recorded.crashed(chance)
        after = opened(keys, left)
        assert min(lengths) <= after.size <= max(lengths), (number, after.size, lengths)
        assert after.size % 4096 == 0 or after.size in lengths, (number, after.size, lengths)
        got = whole(after)
        assert reader.File(reading, bytes(left.data)).read() == got
        for each in range(blocks):
            assert got[each * 4096 : each * 4096 + 4096].ljust(4096, b"\0") in versions[each] | {bytes(4096)}, (
                number,
                each,
            )
        if chance.random() < 0.3:  # goes on, and what was there stays
            after.append(b"x" * 4096)
            after.seal(chance.random() < 0.5)
            assert whole(opened(keys, left)) == got + b"x" * 4096


def test_failing_writes(keys: VolumeKeys) -> None:
    """The disk is full, or fails, in the middle: what was written before is there, and the file goes on."""

    class Failing(Stored):
        left = 1 << 40

        def write(self, offset: int, data: bytes) -> None:
            if len(data) > self.left:
                super().write(offset, data[: self.left])
                self.left = 0
                raise OSError(errno.ENOSPC, "full")
            self.left -= len(data)
            super().write(offset, data)

    for room in (0, 10, 4131, 4132, 5000, 20_000):
        stored = Failing()
        file = EncryptedFile(keys, stored, suite=1)
        file.write(0, content(10_000))
        file.seal()
        stored.left = room
        with pytest.raises(OSError, match="No space"):
            file.write(12_288, content(60_000, 2))
        stored.left = 1 << 40
        size = file.size
        done = max(0, size - 12_288)
        assert size == 10_000 or done % 4096 == 0
        assert whole(file) == (content(10_000).ljust(12_288, b"\0")[:size] + content(60_000, 2)[:done])
        stored.left = 10
        with pytest.raises(OSError, match="No space"):
            file.write(300_000, b"x" * 5000)  # where a node would have been needed
        assert file.size == size
        stored.left = 1 << 40
        file.append(b"goes on")
        file.seal(True)
        assert whole(opened(keys, stored)) == whole(file) and whole(file).endswith(b"goes on")


def test_a_part_of_a_block_that_does_not_fit_leaves_the_rest_of_it(keys: VolumeKeys) -> None:
    """The disk is full in the middle of the last block's new bytes: what it was before is there."""

    class Full(Stored):
        room = 1 << 40

        def write(self, offset: int, data: bytes) -> None:
            if offset + len(data) > self.room:
                super().write(offset, data[: max(0, self.room - offset)])
                raise OSError(errno.ENOSPC, "full")
            super().write(offset, data)

    for size in (500, 4000, 9000):
        stored = Full()
        file = EncryptedFile(keys, stored, suite=1)
        file.write(0, content(size))
        file.seal(True)
        file = opened(keys, stored)
        stored.room = len(stored.data) + 50
        with pytest.raises(OSError, match="No space"):
            file.append(content(3000, 2))
        with pytest.raises(OSError, match="No space"):
            file.resize(size + 3000)
        assert whole(file) == content(size) and len(stored.data) == file.stored_size
        file.seal(True)
        assert whole(opened(keys, stored)) == content(size)


@pytest.mark.parametrize("torn", [1, 20, 60])
@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write(100, b"new" * 10),
        lambda file: file.write(12_290, b"new" * 10),
        lambda file: file.append(b"new" * 30),
        lambda file: file.punch(100, 50),
        lambda file: file.resize(13_000),
        lambda file: file.resize(12_300),
        lambda file: file.resize(3000),
        lambda file: file.resize(200),
    ],
    ids=["write", "write in the last block", "append", "punch", "grow", "shrink", "shrink to a short block", "cut a block"],
)
def test_a_block_that_is_torn_once_is_the_old_one_or_the_new_one(
    keys: VolumeKeys, reading: reader.Keys, change: Callable[[EncryptedFile], object], torn: int
) -> None:
    """Whatever writes a block, of which something stays: when that breaks off, all of the file can be read."""

    class Breaking(Stored):
        breaks = False

        def write(self, offset: int, data: bytes) -> None:
            if self.breaks and offset >= 1024 and len(data) > torn:
                self.breaks = False
                super().write(offset, data[:torn])
                raise OSError(errno.EIO, "broken off")
            super().write(offset, data)

    def filled(stored: Stored) -> EncryptedFile:
        file = EncryptedFile(keys, stored, suite=1)
        file.write(0, content(500))                  # its block stays short when the file grows
        file.write(12_288, content(100, 2))
        file.seal(True)
        return opened(keys, stored)

    done = filled(Stored())
    before = whole(done)
    change(done)
    stored = Breaking()
    file = filled(stored)
    stored.breaks = True
    with pytest.raises(OSError, match="Input/output error|broken off"):
        change(file)
    assert not stored.breaks and whole(file) in (before, whole(done))
    file.seal(True)
    assert whole(opened(keys, stored)) == whole(file) == reader.File(reading, bytes(stored.data)).read()


@pytest.mark.parametrize("fails", ["sync", "resize", "write", "punch"])
def test_what_failed_is_done_before_the_next_change(keys: VolumeKeys, reading: reader.Keys, fails: str) -> None:
    """A truncation or a punch that fails in the middle: the file can be read, is never sealed as what it is not, and
    the next change, or fsync, brings it to its end."""

    class Failing(Stored):
        kind, skip = "", 0

        def _maybe(self, kind: str) -> None:
            if kind == self.kind:
                self.skip -= 1
                if self.skip < 0:
                    raise OSError(errno.EIO, "fails")

        def write(self, offset: int, data: bytes) -> None:
            self._maybe("write")
            super().write(offset, data)

        def sync(self) -> None:
            self._maybe("sync")
            super().sync()

        def resize(self, size: int) -> None:
            self._maybe("resize")
            super().resize(size)

        def punch(self, offset: int, length: int) -> None:
            self._maybe("punch")
            super().punch(offset, length)

    for skip in range(3):
        for size in (100_001, 0, None):
            stored = Failing()
            file = EncryptedFile(keys, stored, suite=1)
            file.write(0, content(150_000))
            file.seal(True)
            file = opened(keys, stored)
            expected = bytearray(content(150_000))
            stored.kind, stored.skip = fails, skip
            failed = False
            try:
                if size is None:
                    file.punch(5000, 60_000)
                else:
                    file.resize(size)
            except OSError:
                failed = True
            done = bytearray(expected)
            if size is None:
                done[5000:65_000] = bytes(60_000)
            else:
                del done[size:]
            for _ in range(2):                       # and that nothing can be sealed meanwhile changes nothing
                now = whole(file)
                for block in range(0, len(now), 4096):
                    old, new = bytes(expected[block : block + 4096]), bytes(done[block : block + 4096])
                    assert now[block : block + 4096] in (old, new, old[: len(done) - block])
                with contextlib.suppress(OSError):
                    file.seal(True)
            stored.kind = ""
            if failed and size is None:
                file.punch(5000, 60_000)
            elif failed:
                file.resize(size or 0)
            file.append(b"goes on")
            file.seal(True)
            done += b"goes on"
            assert whole(file) == done == whole(opened(keys, stored))
            assert reader.File(reading, bytes(stored.data)).read() == done


# --- keys and names -------------------------------------------------------------------------------------------------


def test_an_empty_file_gets_a_new_salt(keys: VolumeKeys) -> None:
    """Another empty file's header put into it does not make two files share keys."""
    one, other = made(keys, b""), made(keys, b"")
    other.data[:1024] = one.data[:1024]
    for stored, text in ((one, b"one"), (other, b"other")):
        file = opened(keys, stored)
        file.write(0, text)
        file.seal(True)
    assert one.data[32:64] != other.data[32:64] and one.data[16:32] == other.data[16:32]
    assert damaged(keys, bytes(one.data[:1024] + other.data[1024:]), b"one")


def test_nonces_do_not_repeat(keys: VolumeKeys) -> None:
    """Not within a batch, not between batches, not on two sides of a fork."""
    blocks = Blocks(keys, b"SFENCRF1\x01\x01" + bytes(54))
    slots = bytearray(300 * 4132)

    def nonces() -> list[bytes]:
        blocks.encrypt(0, 3, bytes(300 * 4096), slots)
        return [bytes(slots[at + 8 : at + 20]) for at in range(0, len(slots), 4132)]

    found = nonces()[:10]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"".join(nonces()))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    found += [data[at : at + 12] for at in range(0, len(data), 12)] + nonces()
    assert len(found) == len(set(found)) == 610


def test_names_are_bound_to_their_directory(keys: VolumeKeys, reading: reader.Keys) -> None:
    iv, other = os.urandom(16), os.urandom(16)
    for name in (
        b"a",
        b"x" * 16,
        b"x" * 160,
        b"y" * 161,
        b"z" * 255,
        "ü".encode(),
        bytes(range(1, 47)) + bytes(range(48, 256)),
    ):
        stored, text = keys.encrypt_name(iv, name)
        assert len(stored) <= 255 and (b".stackfs-long-" in stored) == (len(name) > 160) == bool(text)
        assert keys.decrypt_name(iv, stored, text) == reading.name(iv, stored, text) == name
        assert keys.encrypt_name(iv, name) == (stored, text) and keys.encrypt_name(other, name)[0] != stored
        with pytest.raises(OSError):
            keys.decrypt_name(other, stored, text)
        for wrong in (stored[:-1], stored + b"A", stored[:-1] + b"~", stored.swapcase(), b"", b"A" * 400):
            with pytest.raises(OSError):
                keys.decrypt_name(iv, wrong, text)
        if text:
            with pytest.raises(OSError):
                keys.decrypt_name(iv, stored, text[:-1] + b"\0")
    for bad in (b"", b".", b"..", b"a/b", b"a\0", b"x" * 256):
        with pytest.raises(OSError, match="Invalid"):
            keys.encrypt_name(iv, bad)


def test_directory_files_are_bound_to_their_place(keys: VolumeKeys, reading: reader.Keys) -> None:
    iv, parent = os.urandom(16), os.urandom(16)
    here, there = (parent, b"here"), (os.urandom(16), b"there")
    file = keys.build_directory(iv, here)
    assert keys.check_directory(file, here) == reading.directory(file, *here) == iv
    for wrong in (there, (parent, b"there"), (there[0], b"here"), (parent, b"")):
        with pytest.raises(OSError):
            keys.check_directory(file, wrong)
    moving = keys.build_directory(iv, here, there)
    assert {keys.check_directory(moving, place) for place in (here, there)} == {iv}
    for place in range(64):
        changed = bytearray(file)
        changed[place] ^= 1
        with pytest.raises(OSError):
            keys.check_directory(bytes(changed), here)
    with pytest.raises(OSError):
        keys.check_directory(file[:95], here)


def test_targets_and_values(keys: VolumeKeys, reading: reader.Keys) -> None:
    for target in (b"x", b"/a/b" * 700, b"t" * 3039):
        stored = keys.encrypt_target(target)
        assert keys.decrypt_target(stored) == reading.target(stored) == target and len(stored) <= 4095
        with pytest.raises(OSError):
            keys.decrypt_target(stored[:-2] + (b"AA" if stored[-2:] != b"AA" else b"BB"))
    with pytest.raises(OSError, match="too long"):
        keys.encrypt_target(b"t" * 3040)
    owner = os.urandom(16)
    for value in (b"", b"v", os.urandom(60_000)):
        stored = keys.encrypt_value(owner, b"user.a", value)
        assert keys.decrypt_value(owner, b"user.a", stored) == reading.value(owner, b"user.a", stored) == value
        for wrong in [(os.urandom(16), b"user.a", stored), (owner, b"user.b", stored), (owner, b"user.a", stored[:-1])]:
            with pytest.raises(OSError):
                keys.decrypt_value(*wrong)
    assert keys.encrypt_target(b"same") != keys.encrypt_target(b"same")
