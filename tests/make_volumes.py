"""Makes the test data by which later releases prove that they read what this one wrote.

    .venv/bin/python tests/make_volumes.py [VERSION]      as root, once for a release, and never again for the same one

It is tests/data/encrypted-VERSION.tar.xz. In it, for each volume: its backing directory as the filter wrote it, through
a mount; and expected.json, what a reader has to find. Four volumes: one of each suite with encrypted names, and one
with plain names. The first was left by a daemon that was killed, with files open. Passphrases, recovery keys and key
files are in expected.json too, and so are the extended attributes of the stored files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import stat
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import STACKFS, Drive, fallocate, run

HERE = Path(__file__).resolve().parent
PHRASE = "a phrase of this release"
VOLUMES = {
    "gcm-killed": ("--suite", "aes-256-gcm"),
    "chacha": ("--suite", "chacha20-poly1305"),
    "siv": ("--suite", "aes-256-siv"),
    "plain-names": ("--suite", "aes-256-gcm", "--plain-names"),
}
SIZES = (0, 1, 4096, 5000, 24 * 4096 + 1)


def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def fill(top: Path) -> None:
    """What is in each volume."""
    for number, size in enumerate(SIZES):
        (top / f"file of {size}").write_bytes(content(size, number))
    (top / "directory").mkdir(mode=0o750)
    (top / "directory" / "Grüße").mkdir()
    (top / "directory" / "Grüße" / "deep").write_bytes(b"deep\n")
    (top / ("d" * 200)).mkdir()
    (top / ("d" * 200) / ("n" * 255)).write_bytes(b"a long name's\n")
    (top / ("x" * 161)).symlink_to("directory/Grüße/deep")
    (top / "long link").symlink_to("t" * 3000)
    os.link(top / "file of 5000", top / "directory" / "second name")
    with (top / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(2_000_000)
        file.write(b"end")
    with (top / "punched").open("wb") as file:
        file.write(content(60_000, 9))
        file.flush()
        fallocate(file.fileno(), 3, 10_000, 30_000)
    with (top / "rewritten").open("wb") as file:
        file.write(content(30_000, 10))
    time.sleep(2)                        # sealed; then changed again
    with (top / "rewritten").open("r+b") as file:
        file.seek(5000)
        file.write(b"again")
    os.truncate(top / "rewritten", 12_345)
    os.setxattr(top / "file of 1", "user.colour", b"blue")
    os.setxattr(top / "directory", "user.empty", b"")
    (top / "moved").mkdir()
    (top / "moved" / "inside").write_bytes(b"inside\n")
    (top / "moved").rename(top / "directory" / "renamed")
    for where, folders, files in os.walk(top):
        for name in folders + files:
            os.utime(Path(where, name), (1_700_000_000, 1_700_000_000), follow_symlinks=False)


def described(top: Path) -> dict[str, Any]:
    """Each path, and what is to be found there."""
    found: dict[str, Any] = {}
    for where, folders, files in os.walk(top):
        for name in folders + files:
            path = Path(where, name)
            status = path.lstat()
            entry: dict[str, Any] = {"mode": status.st_mode, "mtime": status.st_mtime_ns, "links": status.st_nlink}
            if stat.S_ISLNK(status.st_mode):
                entry["target"] = os.readlink(path)
            else:
                entry["attributes"] = {each: os.getxattr(path, each).hex() for each in os.listxattr(path)}
            if stat.S_ISREG(status.st_mode):
                entry |= {"size": status.st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                entry["data"] = data_of(path)
            if not stat.S_ISREG(status.st_mode):
                del entry["mtime"], entry["links"]
            found[str(path.relative_to(top))] = entry
    return found


def data_of(path: Path) -> list[list[int]]:
    """Where it has data, as SEEK_DATA and SEEK_HOLE say."""
    ranges, at = [], 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            ranges.append([begin, at])
    return ranges


def make(top: Path, number: int, name: str, options: tuple[str, ...]) -> dict[str, Any]:
    phrase, keyfile = top / "phrase", top / "key"
    phrase.write_text(PHRASE + "\n")
    keyfile.write_bytes(content(64, 99))
    drive = Drive(top, number)
    drive.src.rmdir()
    cheap = ("--argon2-memory", "1", "--argon2-passes", "1")
    said = run(STACKFS, "encryption", "init", drive.src, *options, *cheap, "--passfile", phrase)
    recovery = re.search(r"(?:[0-9A-Z]{7}-){7}[0-9A-Z]{7}", said.stdout + said.stderr)
    assert recovery is not None, said
    slots = ("encryption", "slots", drive.src, "--passfile", phrase)
    run(STACKFS, *slots, "--add", "keyfile", "--new-keyfile", keyfile)
    drive.mount(f"filter=encryption,encryption.passfile={phrase}")
    fill(drive.mnt)
    killed = name.endswith("killed")
    if killed:
        opened = os.open(drive.mnt / "open", os.O_RDWR | os.O_CREAT)
        os.write(opened, content(20_000, 11))
        os.fsync(opened)
        os.pwrite(opened, content(9000, 12), 3000)
        os.utime(drive.mnt / "open", (1_700_000_000, 1_700_000_000))
        expected = described(drive.mnt)
        os.kill(drive.pid, signal.SIGKILL)
        drive.wait_gone()
        with contextlib.suppress(OSError):
            os.close(opened)
    else:
        expected = described(drive.mnt)
    run(STACKFS, "umount", drive.mnt)
    drive.wait_gone()
    drive.src.rename(top / name)
    return {
        "passphrase": PHRASE,
        "recovery": recovery.group(),
        "keyfile": keyfile.read_bytes().hex(),
        "killed": killed,
        "expected": expected,
        "stored attributes": dict(stored_attributes(top / name)),
    }


def stored_attributes(top: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for where, folders, files in os.walk(top):
        for path in sorted(Path(where, each) for each in folders + files):
            if not path.is_symlink():
                found = {each: os.getxattr(path, each).hex() for each in os.listxattr(path) if each.startswith("user.")}
                if found:
                    yield str(path.relative_to(top)), found


def add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    member = archive.gettarinfo(path, name)
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    if member.isreg():
        with path.open("rb") as file:
            archive.addfile(member, file)
    else:
        archive.addfile(member)
    if member.isdir():
        for below in sorted(path.iterdir()):
            add(archive, below, f"{name}/{below.name}")


def main() -> None:
    version = sys.argv[1] if len(sys.argv) > 1 else "0.1.0"
    into = HERE / "data" / f"encrypted-{version}.tar.xz"
    with tempfile.TemporaryDirectory() as made:
        top = Path(made)
        told = {name: make(top, number, name, options) for number, (name, options) in enumerate(VOLUMES.items())}
        (top / "expected.json").write_text(json.dumps(told, indent=1, sort_keys=True))
        with tarfile.open(into, "w:xz", format=tarfile.PAX_FORMAT, preset=9) as archive:
            for name in ("expected.json", *VOLUMES):
                add(archive, top / name, name)
    print(into, into.stat().st_size)


if __name__ == "__main__":
    main()
