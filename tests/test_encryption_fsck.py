"""`stackfs encryption fsck`: names every planted fault, is quiet on healthy volumes, and leaves nothing behind that it
says it has repaired. Volumes are made with the core, faults by moving and changing stored bytes."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pty
import random
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import encryption_reader as reader
import pytest
from conftest import STACKFS

from stackfs import mark
from stackfs.cli import stackfs_main
from stackfs.errors import ExitCode
from stackfs.filters.encryption import cli, fsck
from stackfs.filters.encryption import volume as volumes
from stackfs.filters.encryption._cipher import VolumeKeys
from stackfs.filters.encryption._file import EncryptedFile
from stackfs.filters.encryption._secrets import Secret
from stackfs.filters.encryption.fsck_state import State

LONG_NAME = b"long" * 50
MIB = 1 << 20


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command forbids core dumps for its process, which is the tests'; its state lies in the home directory."""
    monkeypatch.setattr(cli, "no_core_dumps", lambda: None)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class Volume:
    """A volume, written as the filter does it; paths are plain."""

    def __init__(self, place: Path, names: str = "encrypted") -> None:
        self.root, self.passfile = place / "volume", place / "pass"
        self.passfile.write_text("one phrase\n")
        words = ["init", str(self.root), "--passfile", str(self.passfile), "--argon2-memory", "1"]
        words += [
            "--argon2-passes",
            "1",
            "--no-recovery-key",
            "--suite",
            "aes-256-gcm",
            *(["--plain-names"] if names == "plain" else []),
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            assert stackfs_main.main(["encryption", *words]) == 0
        master, file = reader.unlock((self.root / volumes.VOLUME_FILE).read_bytes(), "passphrase", b"one phrase")
        self.reading = reader.Keys(master, bytes.fromhex(file["id"]))
        self.keys = VolumeKeys(Secret.taken_from(bytearray(master)), self.reading.id)
        self.plain = names == "plain"

    def iv(self, directory: Path) -> bytes:
        return (directory / volumes.DIRECTORY_FILE).read_bytes()[16:32]

    def at(self, *names: str | bytes, make: bool = False) -> Path:
        """Where something lies."""
        place = self.root
        for each in names:
            name = os.fsencode(each)
            if not self.plain:
                stored, text = self.keys.encrypt_name(self.iv(place), name)
                if text and make:
                    (place / (os.fsdecode(stored) + ".name")).write_bytes(text)
                name = stored
            place = place / os.fsdecode(name)
        return place

    def mkdir(self, *names: str | bytes) -> Path:
        place = self.at(*names, make=True)
        place.mkdir()
        if not self.plain:
            file = self.keys.build_directory(os.urandom(16), (self.iv(place.parent), os.fsencode(place.name)))
            (place / volumes.DIRECTORY_FILE).write_bytes(file)
        return place

    def write(self, *names: str | bytes, data: bytes = b"", clean: bool = True) -> Path:
        place = self.at(*names, make=True)
        with open(place, "x+b") as file:
            stored = EncryptedFile(self.keys, file.fileno(), suite=1)
            stored.write(0, data)
            stored.seal(clean)
        return place

    def change(self, place: Path, change: Callable[[EncryptedFile], object], clean: bool | None = True) -> None:
        """`clean` None: the daemon is killed before anything is sealed."""
        with open(place, "r+b") as file:
            opened = EncryptedFile(self.keys, file.fileno())
            change(opened)
            if clean is not None:
                opened.seal(clean)

    def read(self, place: Path) -> bytes:
        return reader.File(self.reading, place.read_bytes()).read()

    def fsck(self, *words: str, code: int = 0, bare: bool = False) -> list[tuple[str, str]]:
        """Kind and path of what it finds. `bare`: it says nothing but why it does not begin."""
        if bare:
            line = ["encryption", "fsck", str(self.root), "--passfile", str(self.passfile), *words]
            with contextlib.redirect_stderr(io.StringIO()):
                assert stackfs_main.main(line) == code
            return []
        return [(each["kind"], each["path"]) for each in self.document(*words, code=code)["findings"]]

    def document(self, *words: str, code: int = 0) -> dict[str, object]:
        shown, told = io.StringIO(), io.StringIO()
        line = ["encryption", "fsck", str(self.root), "--passfile", str(self.passfile), "--json", *words]
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
            got = stackfs_main.main(line)
        assert got == code, told.getvalue() + shown.getvalue()
        document: dict[str, object] = json.loads(shown.getvalue())
        return document

    def repaired(self, *kinds: str, words: tuple[str, ...] = ()) -> None:
        """Repair says that it has repaired everything, and then nothing is found."""
        found = self.document("--repair", *words, code=ExitCode.REPAIRED)["findings"]
        assert {each["kind"] for each in found} >= set(kinds)
        assert self.fsck() == []


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Two directories, files of all sizes in them."""
    volume = Volume(tmp_path_factory.mktemp("template"))
    volume.mkdir("a")
    volume.mkdir("b")
    volume.mkdir("b", "below")
    for name in ("one", "two"):
        volume.write("a", name, data=os.urandom(50_000))
    volume.write("b", "below", "deep", data=b"deep")
    return volume


@pytest.fixture
def volume(tmp_path: Path, template: Volume) -> Volume:
    """A copy of it."""
    volume = copy.copy(template)
    volume.root, volume.passfile = tmp_path / "volume", tmp_path / "pass"
    shutil.copytree(template.root, volume.root)
    shutil.copyfile(template.passfile, volume.passfile)
    return volume


def flip(place: Path, offset: int) -> None:
    with open(place, "r+b") as file:
        byte = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), offset)


def over(place: Path, offset: int, data: bytes) -> None:
    with open(place, "r+b") as file:
        file.seek(offset)
        file.write(data)


def slot(place: Path, block: int, data: bytes | None = None) -> bytes:
    """A block's slot; `data`: what it is from now on."""
    with open(place, "r+b") as file:
        before = os.pread(file.fileno(), 4132, reader.slot_offset(block))
        if data is not None:
            os.pwrite(file.fileno(), data, reader.slot_offset(block))
    return before


@pytest.mark.parametrize("names", ["encrypted", "plain"])
def test_quiet_on_a_healthy_volume(tmp_path: Path, names: str) -> None:
    volume = Volume(tmp_path, names)
    assert volume.fsck() == []
    volume.mkdir("directory")
    volume.mkdir("directory", LONG_NAME)
    volume.write("directory", LONG_NAME, b"x" * 255, data=b"in a long place")
    volume.write("empty")
    for size in (1, 4096, 5000, 24 * 4096 + 1, 3 * MIB):
        volume.write("directory", str(size), data=os.urandom(size))
    sparse = volume.write("sparse", data=b"begin")
    volume.change(
        sparse, lambda file: (file.write(70 << 20, b"x"), file.write(1 << 40, b"far"), file.punch(70 << 20, 9))
    )
    hollow = volume.write("hollow", data=os.urandom(MIB))
    volume.change(hollow, lambda file: file.punch(5000, 900_000))
    shorter = volume.write("shorter", data=os.urandom(MIB))
    volume.change(shorter, lambda file: file.resize(300_001))
    os.link(hollow, volume.at("directory", "link", make=True))
    os.symlink(volume.keys.encrypt_target(b"../somewhere"), os.fsencode(volume.at("symlink", make=True)))
    os.mkfifo(volume.at("fifo", make=True))
    if names == "encrypted":
        (volume.root / "lost+found").mkdir()
    owner = hollow.read_bytes()[16:32]
    try:
        os.setxattr(hollow, "user.colour", volume.keys.encrypt_value(owner, b"user.colour", b"blue"))
    except OSError:
        pass
    before = sorted(volume.root.rglob("*"))
    found = volume.document()
    assert (found["findings"], found["left"]) == ([], 0)
    assert found["files"] == 12 and found["directories"] == 3 if names == "encrypted" else True
    assert volume.fsck("--repair") == [] and sorted(volume.root.rglob("*")) == before
    assert volume.read(hollow)[:5000] != bytes(5000)


# --- files ----------------------------------------------------------------------------------------------------------

FILE_FAULTS: dict[str, tuple[Callable[[Volume, Path], object], str, tuple[int, int] | None]] = {
    "a byte of a block": (lambda v, p: flip(p, reader.slot_offset(3) + 2000), "block", (3, 3)),
    "a byte of a nonce": (lambda v, p: flip(p, reader.slot_offset(3) + 9), "block", (3, 3)),
    "the last byte": (lambda v, p: flip(p, p.stat().st_size - 1), "block", (12, 12)),
    "a block of zeros": (lambda v, p: slot(p, 5, bytes(4132)), "block", (5, 5)),
    "three blocks": (lambda v, p: [flip(p, reader.slot_offset(each) + 99) for each in (6, 7, 8)], "block", (6, 8)),
    "its header's first part": (lambda v, p: flip(p, 40), "header", None),
    "both seals": (lambda v, p: (flip(p, 70), flip(p, 520)), "header", None),
    "its magic": (lambda v, p: flip(p, 0), "foreign-file", None),
    "cut in the header": (lambda v, p: os.truncate(p, 500), "cut", None),
    "cut in a block": (lambda v, p: os.truncate(p, 40_000), "cut", None),
    "cut at a block's edge": (lambda v, p: os.truncate(p, reader.slot_offset(5)), "cut", None),
    "longer": (lambda v, p: over(p, p.stat().st_size, b"more"), "longer", None),
    "a later version": (lambda v, p: over(p, 8, b"\x02"), "unsupported", None),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_names_what_is_damaged_in_a_file(volume: Volume, fault: str) -> None:
    plant, kind, blocks = FILE_FAULTS[fault]
    place = volume.at("a", "one")
    plant(volume, place)
    before = place.read_bytes()
    found = volume.document(code=ExitCode.DAMAGED)["findings"]
    assert [(each["kind"], each["path"]) for each in found if each["kind"] != "block" or blocks] == [(kind, "a/one")]
    if blocks:
        assert found[0]["blocks"] == list(blocks)
    assert place.read_bytes() == before
    volume.document("--repair", code=ExitCode.DAMAGED)
    assert place.read_bytes()[: len(before)] == before


def test_names_an_older_version_of_a_block(volume: Volume) -> None:
    place = volume.at("a", "one")
    older = slot(place, 4)
    volume.change(place, lambda file: file.write(4 * 4096, b"newer"))
    slot(place, 4, older)
    (found,) = volume.document(code=ExitCode.DAMAGED)["findings"]
    assert found["blocks"] == [4, 4] and "another version" in found["detail"]


def test_names_a_hole_that_is_filled_and_a_block_that_is_none(volume: Volume) -> None:
    place = volume.write("a", "hollow", data=os.urandom(40_000))
    block = slot(place, 3)
    volume.change(place, lambda file: file.punch(0, 5 * 4096))
    slot(place, 3, block)
    assert volume.fsck(code=ExitCode.DAMAGED) == [("block", "a/hollow")]
    slot(place, 3, os.urandom(4132))
    assert volume.fsck(code=ExitCode.DAMAGED) == [("block", "a/hollow")]
    slot(place, 3, bytes(4132))
    assert volume.fsck() == []


def test_a_file_whose_header_never_came_becomes_empty(volume: Volume) -> None:
    """As a power cut leaves one that was never synced: later bytes are there, and zeros before them. They are kept."""
    place = volume.write("new", data=os.urandom(10_000))
    os.setxattr(place, "user.a", b"1")
    stored = bytes(1024) + place.read_bytes()[1024:]
    place.write_bytes(stored)
    assert volume.fsck(code=ExitCode.DAMAGED) == [("header", "new")]
    volume.document("--repair", code=ExitCode.REPAIRED)
    assert volume.fsck() == [] and volume.read(place) == b""
    assert (volume.root / fsck.LOST / "000000").read_bytes() == stored


def test_names_a_damaged_part_of_the_map(volume: Volume) -> None:
    place = volume.write("large", data=os.urandom(2 * MIB))
    for each in range(3):
        flip(place, reader.node_offset(1, 1) + 4096 * each)
    (found,) = volume.document(code=ExitCode.DAMAGED)["findings"]
    assert (found["kind"], found["path"], found["blocks"]) == ("map", "large", [256, 511])


@pytest.mark.parametrize("clean", [True, False])
def test_a_damaged_map_is_made_anew_where_that_is_asked_for(volume: Volume, clean: bool) -> None:
    """Blocks as they lie, holes where zeros are; a block that is damaged too stays an error. Not without being told."""
    plain = bytearray(os.urandom(3 * MIB))
    place = volume.write("large", data=bytes(plain), clean=True)
    volume.change(place, lambda file: file.punch(300 * 4096, 20 * 4096))
    if not clean:
        volume.change(place, lambda file: file.write(270 * 4096, b"late"), clean=False)
        plain[270 * 4096 : 270 * 4096 + 4] = b"late"
    plain[300 * 4096 : 320 * 4096] = bytes(20 * 4096)
    for each in range(3):
        flip(place, reader.node_offset(1, 1) + 4096 * each)
    flip(place, reader.slot_offset(400) + 100)
    damaged = place.read_bytes()
    volume.document("--repair", code=ExitCode.DAMAGED)
    if clean:
        assert place.read_bytes() == damaged
    found = volume.document("--repair", "--rebuild-maps", code=ExitCode.DAMAGED)["findings"]
    assert [(each["kind"], each["blocks"]) for each in found if not each["repaired"]] == [("block", [400, 400])]
    (told,) = [each for each in found if each["kind"] == "map"]
    assert told["blocks"] == [256, 511] and "nothing proves" in told["repaired"]
    with open(place, "rb") as file:
        opened = EncryptedFile(volume.keys, file.fileno())
        assert opened.read(0, 400 * 4096) == plain[: 400 * 4096]
        assert opened.read(401 * 4096, 3 * MIB) == plain[401 * 4096 :]
        assert opened.seek(290 * 4096, True) == 300 * 4096 and not opened.unsealed
        with pytest.raises(OSError, match="Bad message"):
            opened.read(400 * 4096, 1)
    assert volume.fsck(code=ExitCode.DAMAGED) == [("block", "large")]
    assert volume.fsck("--rebuild-maps", code=ExitCode.USAGE, bare=True) == []


def test_a_damaged_node_of_a_higher_level_is_made_anew(volume: Volume) -> None:
    place = volume.write("huge")
    volume.change(place, lambda file: [file.write(at * MIB, b"%d" % at * 5000) for at in (0, 5, 30, 31)])
    for each in range(3):
        flip(place, reader.node_offset(2, 0) + 4096 * each)
    assert {kind for kind, _ in volume.fsck(code=ExitCode.DAMAGED)} == {"map"}
    volume.document("--repair", "--rebuild-maps", code=ExitCode.REPAIRED)
    assert volume.fsck() == []
    with open(place, "rb") as file:
        opened = EncryptedFile(volume.keys, file.fileno())
        for at in (0, 5, 30, 31):
            assert opened.read(at * MIB, len(b"%d" % at * 5000)) == b"%d" % at * 5000
        assert opened.seek(10 * MIB, False) == 30 * MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_what_a_user_may_not_read_is_not_called_damaged_by_the_disk(volume: Volume, tmp_path: Path) -> None:
    for each in (volume.root, *volume.root.rglob("*")):
        os.chown(each, 65534, 65534)
    for above in (*list(volume.root.parents)[:-2], volume.passfile):
        above.chmod(0o755)
    volume.at("a", "one").chmod(0)
    words = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", STACKFS, "encryption", "fsck")
    done = subprocess.run(
        [*words, volume.root, "--passfile", volume.passfile],
        capture_output=True, text=True, check=False, cwd="/", env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )  # fmt: skip
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("a/one")]
    assert "its mode is 0000" in line and "as root" in line


def test_what_is_left_of_a_cut_file_can_be_read_after_a_repair(volume: Volume) -> None:
    place = volume.at("a", "one")
    plain = volume.read(place)
    os.truncate(place, reader.slot_offset(5) + 100)
    volume.document("--repair", code=ExitCode.DAMAGED)
    with open(place, "rb") as file:
        opened = EncryptedFile(volume.keys, file.fileno())
        assert opened.read(0, 5 * 4096) == plain[: 5 * 4096] and opened.size == len(plain)
        with pytest.raises(OSError, match="Bad message"):
            opened.read(5 * 4096, 10)


def test_zeros_behind_a_file_are_cut_off(volume: Volume) -> None:
    place = volume.at("a", "one")
    os.truncate(place, place.stat().st_size + 5000)
    volume.repaired("longer")


@pytest.mark.parametrize("seal", [0, 1])
@pytest.mark.parametrize("clean", [True, False])
def test_one_damaged_seal_is_written_anew(volume: Volume, seal: int, clean: bool) -> None:
    place = volume.write("file", data=os.urandom(500_000), clean=clean)
    plain = volume.read(place)
    flip(place, 64 + 448 * seal + 100)
    assert ("seal", "file") in volume.fsck(code=ExitCode.DAMAGED)
    volume.repaired("seal")
    assert volume.read(place) == plain


@pytest.mark.parametrize("other", ["one", "two"])
def test_exchanged_blocks_are_put_back(volume: Volume, other: str) -> None:
    place, there = volume.at("a", "one"), volume.at("a", other)
    plain = volume.read(place), volume.read(there)
    first, second = slot(place, 2), slot(there, 7)
    slot(place, 2, second)
    slot(there, 7, first)
    found = volume.document(code=ExitCode.DAMAGED)["findings"]
    details = [each["detail"] for each in found if each["kind"] == "moved-block"]
    whose = "this file" if other == "one" else "a/two"
    assert f"in place of block 2 lies block 7 of {whose}" in details and len(details) == 2
    volume.repaired("moved-block", "block")
    assert (volume.read(place), volume.read(there)) == plain


def test_names_where_a_duplicated_block_is_from(volume: Volume) -> None:
    place = volume.at("a", "one")
    slot(place, 2, slot(volume.at("a", "two"), 7))
    slot(place, 3, slot(place, 9))
    found = volume.document("--repair", code=ExitCode.DAMAGED)["findings"]
    details = {each["detail"] for each in found if each["kind"] == "moved-block"}
    assert details == {"in place of block 2 lies block 7 of a/two", "in place of block 3 lies block 9 of this file"}


def test_exchanged_headers_are_put_back(volume: Volume) -> None:
    places = volume.at("a", "one"), volume.at("a", "two")
    plain = [volume.read(each) for each in places]
    headers = [each.read_bytes()[:1024] for each in places]
    for place, header in zip(places, reversed(headers), strict=True):
        with open(place, "r+b") as file:
            file.write(header)
    assert set(volume.fsck(code=ExitCode.DAMAGED)) == {("header", "a/one"), ("header", "a/two")}
    volume.repaired("header")
    assert [volume.read(each) for each in places] == plain


def test_names_a_header_that_is_there_twice(volume: Volume) -> None:
    one, two = volume.at("a", "one"), volume.at("a", "two")
    with open(two, "r+b") as file:
        file.write(one.read_bytes()[:1024])
    assert {each[0] for each in volume.fsck(code=ExitCode.DAMAGED)} == {"duplicate", "block", "moved-block"} - {
        "moved-block"
    }
    shutil.copyfile(one, two)
    (found,) = volume.document(code=ExitCode.DAMAGED)["findings"]
    assert found["kind"] == "duplicate" and {found["path"], found["detail"].split(" ")[4].rstrip(":")} == {
        "a/one",
        "a/two",
    }


def test_what_a_kill_left_open_is_sealed(volume: Volume) -> None:
    place = volume.write("file", data=os.urandom(300_000))
    volume.change(place, lambda file: (file.write(5000, b"new"), file.append(b"more")), clean=None)
    plain = volume.read(place)
    before = place.stat()
    assert volume.fsck(code=ExitCode.UNCLEAN) == [("unsealed", "file")]
    assert place.stat().st_mtime_ns == before.st_mtime_ns
    volume.repaired("unsealed")
    assert volume.read(place) == plain and place.stat().st_mtime_ns == before.st_mtime_ns
    # With a torn block in it, the rest is sealed all the same; the torn one is left.
    volume.change(place, lambda file: file.write(5000, b"newer"), clean=None)
    flip(place, reader.slot_offset(1) + 60)
    found = volume.document("--repair", code=ExitCode.DAMAGED)["findings"]
    assert {(each["kind"], bool(each["repaired"])) for each in found} == {("unsealed", True), ("block", False)}
    assert volume.fsck(code=ExitCode.DAMAGED) == [("block", "file")]


def test_a_file_that_was_never_synced_is_an_empty_one(volume: Volume) -> None:
    place = volume.at("b", "new", make=True)
    place.touch()
    assert volume.fsck(code=ExitCode.UNCLEAN) == [("empty-file", "b/new")]
    volume.repaired("empty-file")
    assert volume.read(place) == b""


def test_links_and_attributes(volume: Volume) -> None:
    place = volume.at("a", "one")
    other = volume.at("a", "two").read_bytes()[16:32]
    value = volume.keys.encrypt_value(other, b"user.colour", b"blue")
    try:
        os.setxattr(place, "user.colour", value)
        os.setxattr(volume.at("a"), "user.colour", value)
        attributes = {("attribute", "a/one"), ("attribute", "a")}
    except OSError:
        attributes = set()
    target = bytearray(volume.keys.encrypt_target(b"somewhere"))
    target[20] ^= 1
    os.symlink(bytes(target), os.fsencode(volume.at("link", make=True)))
    assert set(volume.fsck(code=ExitCode.DAMAGED)) == {("link-target", "link"), *attributes}


def test_any_changed_byte_is_found(volume: Volume) -> None:
    """Wherever it is: in a header, a block, a directory's file, a link, a long name's file."""
    volume.write("b", LONG_NAME, data=os.urandom(9000))
    root = volumes.open_directory(str(volume.root))
    credential = volumes.passphrase(bytearray(b"one phrase"))
    opened = fsck.open_volume(root, "", lambda: credential)
    dice = random.Random(5)

    def found() -> list[fsck.Finding]:
        state = State.opened(volume.keys.id, os.fstat(root), restart=True)
        report = fsck.Fsck(root, opened, state, threads=1).run()
        state.close(finished=True)
        return report.findings

    own = (volumes.VOLUME_FILE, volumes.COPY, mark.NAME)
    files = [each for each in sorted(volume.root.rglob("*")) if each.is_file() and each.name not in own]
    assert found() == [] and len(files) == 9
    for each in [*files, *(dice.choice(files) for _ in range(20))]:
        offset = dice.randrange(each.stat().st_size)
        flip(each, offset)
        assert found() != [], (each.name, offset)
        flip(each, offset)
    assert found() == []
    os.close(root)


def test_a_file_that_nobody_may_write_is_repaired(volume: Volume) -> None:
    """git's objects are like that. (As root it is like any other.)"""
    place = volume.write("file", data=b"x" * 5000, clean=False)
    place.chmod(0o444)
    volume.repaired("unsealed")
    assert stat.S_IMODE(place.stat().st_mode) == 0o444


# --- names and directories ------------------------------------------------------------------------------------------


def test_strangers_are_moved_aside(volume: Volume) -> None:
    (volume.at("a") / "stranger").write_text("kept")
    (volume.root / "directory").mkdir()
    (volume.root / "directory" / "file").write_text("kept too")
    assert set(volume.fsck(code=ExitCode.DAMAGED)) == {("foreign-name", "a/stranger"), ("foreign-name", "directory")}
    volume.repaired("foreign-name")
    kept = {each.read_text() for each in (volume.root / fsck.LOST).rglob("*") if each.is_file() and each.name != "list"}
    assert kept == {"kept", "kept too"}
    assert "stranger" in (volume.root / fsck.LOST / "list").read_text()


def test_a_name_from_another_directory_goes_back(volume: Volume) -> None:
    long = volume.write("b", LONG_NAME, data=b"long")
    place, plain = volume.at("a", "one"), volume.read(volume.at("a", "one"))
    os.rename(place, volume.at("b") / place.name)
    os.rename(volume.at("b", "below"), volume.at("a") / volume.at("b", "below").name)
    for each in (long.name, long.name + ".name"):
        os.rename(long.parent / each, volume.at("a") / each)
    found = volume.document(code=ExitCode.DAMAGED)["findings"]
    assert {each["kind"] for each in found} == {"foreign-name"} and len(found) == 3
    assert any("another directory, b, where it is below" in each["detail"] for each in found)
    volume.repaired("foreign-name")
    assert volume.read(place) == plain and volume.read(long) == b"long"
    assert volume.read(volume.at("b", "below", "deep")) == b"deep"


def test_long_names(volume: Volume) -> None:
    one, two = volume.write("b", LONG_NAME, data=b"1"), volume.write("b", b"y" * 200, data=b"2")
    sides = [Path(str(each) + ".name") for each in (one, two)]
    texts = [each.read_bytes() for each in sides]
    for side, text in zip(sides, reversed(texts), strict=True):
        side.write_bytes(text)
    assert {each[0] for each in volume.fsck(code=ExitCode.DAMAGED)} == {"long-name"}
    volume.repaired("long-name")
    assert [each.read_bytes() for each in sides] == texts
    sides[0].unlink()
    two.unlink()
    assert {each[0] for each in volume.fsck(code=ExitCode.DAMAGED)} == {"long-name", "leftover"}
    found = volume.document("--repair", code=ExitCode.DAMAGED)["findings"]
    assert {each["kind"]: bool(each["repaired"]) for each in found} == {"long-name": False, "leftover": True}
    volume.repaired("long-name", words=("--new-names",))
    assert volume.read(volume.at("b", b"lost." + os.fsencode(one.name))) == b"1"


def test_leftovers_are_removed(volume: Volume) -> None:
    (volume.root / (volumes.VOLUME_FILE + ".new")).write_text("half")
    (volume.at("a") / (volumes.DIRECTORY_FILE + ".new")).touch()
    half = volume.root / ".stackfs-0123456789abcdef.new"
    half.mkdir()
    (half / volumes.DIRECTORY_FILE).write_bytes(b"half")
    assert [each[0] for each in volume.fsck(code=ExitCode.UNCLEAN)] == ["leftover"] * 3
    volume.repaired("leftover")
    assert not half.exists()


def test_a_rename_that_a_crash_stopped(volume: Volume) -> None:
    place = volume.at("b", "below")
    there = volume.at("b", "renamed")
    parent = volume.iv(volume.at("b"))
    file = volume.keys.build_directory(
        volume.iv(place), (parent, os.fsencode(place.name)), (parent, os.fsencode(there.name))
    )
    (place / volumes.DIRECTORY_FILE).write_bytes(file)
    os.rename(place, there)
    assert volume.fsck(code=ExitCode.UNCLEAN) == [("unfinished-rename", "b/renamed")]
    volume.repaired("unfinished-rename")


def test_exchanged_directory_files_are_put_back(volume: Volume) -> None:
    one, two = (volume.at(each) / volumes.DIRECTORY_FILE for each in "ab")
    plain, below = volume.read(volume.at("a", "one")), volume.at("b", "below")
    texts = one.read_bytes(), two.read_bytes()
    one.write_bytes(texts[1])
    two.write_bytes(texts[0])
    assert set(volume.fsck(code=ExitCode.DAMAGED)) == {("directory-iv", "a"), ("directory-iv", "b")}
    volume.repaired("directory-iv")
    assert (one.read_bytes()[:64], two.read_bytes()[:64]) == (texts[0][:64], texts[1][:64])
    assert volume.read(volume.at("a", "one")) == plain and below.exists()


def test_exchanged_directories_are_exchanged_back(volume: Volume) -> None:
    one, two, between = volume.at("a"), volume.at("b"), volume.root / "between"
    plain = volume.read(volume.at("a", "one"))
    os.rename(one, between)
    os.rename(two, one)
    os.rename(between, two)
    found = volume.document(code=ExitCode.DAMAGED)["findings"]
    assert [each["kind"] for each in found] == ["moved-directory"] and "exchanged" in found[0]["detail"]
    volume.repaired("moved-directory")
    assert volume.read(volume.at("a", "one")) == plain


def test_a_directory_whose_place_is_damaged(volume: Volume) -> None:
    flip(volume.at("b") / volumes.DIRECTORY_FILE, 40)
    flip(volume.root / volumes.DIRECTORY_FILE, 40)
    assert {each[0] for each in volume.fsck(code=ExitCode.DAMAGED)} == {"moved-directory"}
    volume.repaired("moved-directory")
    assert volume.read(volume.at("b", "below", "deep")) == b"deep"


def test_an_iv_that_is_nowhere(volume: Volume) -> None:
    directory = volume.at("b")
    (directory / volumes.DIRECTORY_FILE).unlink()
    deep = volume.at("a", "one")
    os.rename(deep, directory / "x")
    os.rename(directory / "x", deep)
    flip(volume.at("a", "two"), reader.slot_offset(3) + 100)
    found = set(volume.fsck(code=ExitCode.DAMAGED))
    assert found == {("directory-iv", "b"), ("block", "a/two")}
    flip(volume.at("a", "two"), reader.slot_offset(3) + 100)
    stored = next(each.name for each in directory.iterdir())
    volume.document("--repair", code=ExitCode.DAMAGED)
    assert not (directory / volumes.DIRECTORY_FILE).exists()
    volume.repaired("directory-iv", words=("--new-names",))
    assert volume.read(volume.at("b", f"lost.{stored}", "deep")) == b"deep"


def test_an_empty_directory_gets_a_new_iv(volume: Volume) -> None:
    place = volume.mkdir("empty")
    shutil.copyfile(volume.at("a") / volumes.DIRECTORY_FILE, place / volumes.DIRECTORY_FILE)
    (found,) = volume.document(code=ExitCode.DAMAGED)["findings"]
    assert (found["kind"], found["path"]) == ("directory-iv", "empty") and "that of a" in found["detail"]
    volume.repaired("directory-iv")
    assert volume.iv(place) != volume.iv(volume.at("a"))


# --- the volume's own files -----------------------------------------------------------------------------------------


def test_the_volume_file_and_its_copy(volume: Volume) -> None:
    main, other = volume.root / volumes.VOLUME_FILE, volume.root / volumes.COPY
    text = main.read_bytes()
    for broken, kind in ((main, "volume-file"), (other, "volume-copy")):
        for damage in (
            None,
            b"{",
            text.replace(b'"names": "encrypted"', b'"names": "plain"'),
            text.replace(b'"wrapped": "', b'"wrapped": "00'),
        ):
            broken.unlink() if damage is None else broken.write_bytes(damage)
            assert volume.fsck(code=ExitCode.DAMAGED) == [(kind, broken.name)]
            volume.repaired(kind)
            assert main.read_bytes() == other.read_bytes() == text
    for each in (main, other):  # all that is left is what a crash left of writing one
        os.rename(each, str(each) + ".new")
        (other if each == main else main).unlink()
        volume.repaired("volume-file", "volume-copy")
        assert main.read_bytes() == other.read_bytes() == text


def test_a_changed_passphrase_that_a_crash_stopped(volume: Volume, tmp_path: Path) -> None:
    older = (volume.root / volumes.COPY).read_bytes()
    (tmp_path / "other").write_text("another\n")
    words = ["passwd", str(volume.root), "--passfile", str(volume.passfile), "--new-passfile", str(tmp_path / "other")]
    with contextlib.redirect_stdout(io.StringIO()):
        assert stackfs_main.main(["encryption", *words, "--argon2-memory", "1", "--argon2-passes", "1"]) == 0
    (volume.root / volumes.COPY).write_bytes(older)
    (found,) = volume.document("--repair", code=ExitCode.DAMAGED)["findings"]  # the old passphrase: left alone
    assert found["kind"] == "volume-copy" and (volume.root / volumes.COPY).read_bytes() == older
    volume.passfile.write_text("another\n")
    volume.repaired("volume-copy")


def test_the_mark(volume: Volume) -> None:
    for damage in (None, b"nonsense\n", b"stackfs volume 1\nneeds other\n"):
        place = volume.root / mark.NAME
        place.unlink() if damage is None else place.write_bytes(damage)
        assert volume.fsck(code=ExitCode.DAMAGED) == [("mark", mark.NAME)]
        volume.repaired("mark")
    assert place.read_text() == "stackfs volume 1\nneeds encryption\nneeds other\n"


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_volume_in_use_is_refused_and_nothing_is_said_with_a_wrong_key(volume: Volume) -> None:
    descriptor = volumes.open_directory(str(volume.root))
    volumes.lock(descriptor, "")
    line = ["encryption", "fsck", str(volume.root), "--passfile", str(volume.passfile)]
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        assert stackfs_main.main(line) == ExitCode.REFUSED
        os.close(descriptor)
        volume.passfile.write_text("wrong\n")
        assert stackfs_main.main(line) == ExitCode.WRONG_KEY
        assert stackfs_main.main([*line, "--new-names"]) == ExitCode.USAGE
    assert "in use" in told.getvalue() and len(told.getvalue().splitlines()) == 3


def test_lines_for_people(volume: Volume) -> None:
    place = volume.write("\x1b[31m", data=b"x" * 5000)
    flip(place, reader.slot_offset(1) + 30)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert stackfs_main.main(["encryption", "fsck", str(volume.root), "--passfile", str(volume.passfile)]) == 11
    first, last = shown.getvalue().splitlines()
    assert first == "\\x1b[31m: block 1 is damaged" and last.endswith(
        "4 files and 4 directories, 0.1 MB; 1 findings, 1 of them left (--repair repairs what can be repaired)"
    )


def test_on_a_terminal_it_shows_how_far_it_is_and_can_be_interrupted(volume: Volume) -> None:
    """Ctrl-C ends it with the exit code of that; the same command then goes on."""
    for each in range(300):
        volume.write("a", f"{each:03}", data=b"x" * 100)
    ours, theirs = pty.openpty()
    line = [STACKFS, "encryption", "fsck", str(volume.root), "--passfile", str(volume.passfile), "--threads", "1"]
    stopped = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: it has ended
        while more := os.read(ours, 4096):
            if b" files, " in more and b" files, " not in seen:
                stopped.send_signal(signal.SIGINT)
            seen += more
    os.close(ours)
    assert stopped.stdout is not None
    shown = stopped.stdout.read()
    stopped.stdout.close()
    assert stopped.wait(20) in (0, 130) and b" files, " in seen
    if stopped.returncode == 130:
        assert b"goes on from here" in seen and shown == b""
    found = volume.document()
    assert found["findings"] == [] and found["files"] == 303


def test_an_interrupted_check_goes_on(volume: Volume) -> None:
    for each in range(200):
        volume.write("a", f"{each:03}", data=b"x" * 100)
    credential = volumes.passphrase(bytearray(b"one phrase"))
    root = volumes.open_directory(str(volume.root))
    opened = fsck.open_volume(root, "", lambda: credential)

    def interrupted(report: fsck.Report, path: bytes) -> None:
        if report.files > 100:
            raise KeyboardInterrupt

    state = State.opened(volume.keys.id, os.fstat(root))
    with pytest.raises(KeyboardInterrupt):
        fsck.Fsck(root, opened, state, progress=interrupted).run()
    state.close(finished=False)
    os.close(root)
    flip(volume.at("b", "below", "deep"), 1050)
    damaged = [volume.at("a", f"{each:03}") for each in range(200)]
    for each in damaged:
        flip(each, 1100)  # also what was looked at: its time of change says so
    found = volume.document(code=ExitCode.DAMAGED)
    assert found["resumed"] <= 2 and len(found["findings"]) == 201  # a/one and a/two are as they were
    for each in damaged[:190]:
        flip(each, 1100)
    state = State.opened(volume.keys.id, volume.root.stat())
    for each in damaged[:50]:
        state.healthy(each.stat())
    state.close(finished=False)
    found = volume.document(code=ExitCode.DAMAGED)
    assert found["resumed"] == 50 and len(found["findings"]) == 11 and found["files"] == 203
    assert volume.document(code=ExitCode.DAMAGED)["resumed"] == 0  # that one came to its end
    state = State.opened(volume.keys.id, volume.root.stat())
    state.healthy(damaged[0].stat())
    state.close(finished=False)
    assert volume.document("--restart", code=ExitCode.DAMAGED)["resumed"] == 0
