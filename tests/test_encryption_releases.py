"""Volumes of every release that has been are read by this one: tests/data/encrypted-VERSION.tar.xz, made by
tests/make_volumes.py."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import STACKFS, Drive, run
from make_volumes import VOLUMES, described

ARCHIVES = sorted(Path(__file__).with_name("data").glob("encrypted-*.tar.xz"))


def unpacked(archive: Path, name: str, into: Path) -> dict[str, Any]:
    """The volume, at `into`; what is to be found in it."""
    with tarfile.open(archive) as opened:
        file = opened.extractfile("expected.json")
        assert file is not None
        told: dict[str, Any] = json.load(file)[name]
        for member in opened.getmembers():
            if member.name.startswith(name + "/"):
                member.name = member.name[len(name) + 1 :]
                if member.islnk():
                    os.link(into / member.linkname[len(name) + 1 :], into / member.name)
                else:
                    opened.extract(member, into, numeric_owner=True)
    for path, attributes in told["stored attributes"].items():
        for attribute, value in attributes.items():
            os.setxattr(into / path, attribute, bytes.fromhex(value))
    return told


def test_there_is_one_of_each_release() -> None:
    assert [path.name for path in ARCHIVES] == ["encrypted-0.1.0.tar.xz"]


@pytest.mark.parametrize("name", VOLUMES)
@pytest.mark.parametrize("archive", ARCHIVES, ids=[path.name for path in ARCHIVES])
def test_a_volume_of_a_release(drive: Callable[..., Drive], tmp_path: Path, archive: Path, name: str) -> None:
    """By each of its key slots; everything in it is as it was, and can be changed; fsck finds what it should."""
    made = drive(mount=False)
    told = unpacked(archive, name, made.src)
    phrase, keyfile, recovery = tmp_path / "phrase", tmp_path / "key", tmp_path / "recovery"
    phrase.write_text(told["passphrase"] + "\n")
    keyfile.write_bytes(bytes.fromhex(told["keyfile"]))
    recovery.write_text(told["recovery"] + "\n")
    before = run(STACKFS, "encryption", "fsck", made.src, "--recovery-file", recovery, check=False)
    assert before.returncode == (9 if told["killed"] else 0), before.stdout
    made.mount(f"filter=encryption,encryption.keyfile={keyfile}")
    assert described(made.mnt) == told["expected"]
    made.umount()
    made.wait_gone()
    made.mount(f"filter=encryption,encryption.passfile={phrase}")
    for where, _, files in os.walk(made.mnt):
        for each in files:
            path = Path(where, each)
            if not path.is_symlink():
                old = path.read_bytes()
                with path.open("ab") as file:
                    file.write(b"more")
                assert path.read_bytes() == old + b"more"
    (made.mnt / "directory" / "renamed").rename(made.mnt / "back")
    assert (made.mnt / "back" / "inside").read_bytes() == b"inside\nmore"
    (made.mnt / ("d" * 200) / ("n" * 255)).unlink()
    (made.mnt / ("d" * 200)).rmdir()
    made.umount()
    made.wait_gone()
    run(STACKFS, "encryption", "fsck", made.src, "--passfile", phrase)
