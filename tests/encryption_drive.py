"""An encrypted drive for tests: a volume with a cheap passphrase and its mount, and what a reader that has none of the
filter's code makes of the backing directory."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Sequence
from pathlib import Path

import encryption_reader as reader
from conftest import STACKFS, Drive, run

from stackfs.filters.encryption import volume as volumes

PHRASE = b"a phrase"
CHEAP = volumes.Argon2(memory=64, passes=1, lanes=1)


def make_volume(
    path: Path,
    *,
    names: str = "encrypted",
    suite: str = "aes-256-gcm",
    phrase: bytes = PHRASE,
    argon2: volumes.Argon2 = CHEAP,
) -> None:
    directory = volumes.open_directory(str(path))
    try:
        volumes.create(
            directory,
            str(path),
            suite=suite,
            names=names,  # type: ignore[arg-type]
            credentials=[(volumes.passphrase(bytearray(phrase)), "test")],
            argon2=argon2,
        )
    finally:
        os.close(directory)


def at_a_terminal(*words: str | Path, typed: Sequence[bytes]) -> tuple[int, bytes]:
    """Runs a command on a terminal, where this is typed, a line for each prompt: its exit code, and what it showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(words[0], [str(word) for word in words])
    shown = b""
    lines = list(typed)
    while True:
        try:
            got = os.read(terminal, 1000)
        except OSError:
            break
        if not got:
            break
        shown += got
        if lines and shown.endswith(b": "):
            os.write(terminal, lines.pop(0) + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown


class Vault:
    """An encrypted volume and its mount."""

    def __init__(self, made: Drive, passfile: Path) -> None:
        self.drive, self.src, self.mnt = made, made.src, made.mnt
        self.passfile = passfile
        self.options: tuple[str, ...] = ()

    def mount(self, *options: str) -> Vault:
        self.options = options or self.options
        self.drive.mount(f"filter=encryption,encryption.passfile={self.passfile}", *self.options)
        return self

    def umount(self) -> None:
        self.drive.umount()
        self.drive.wait_gone()

    def fsck(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(STACKFS, "encryption", "fsck", self.src, "--passfile", self.passfile, *words, check=check)

    def keys(self) -> reader.Keys:
        master, file = reader.unlock((self.src / volumes.VOLUME_FILE).read_bytes(), "passphrase", PHRASE)
        return reader.Keys(master, bytes.fromhex(file["id"]))


def decoded(
    keys: reader.Keys, top: Path, iv: bytes | None = None, stored: bytes = b"", parent: bytes = b""
) -> dict[bytes, object]:
    """What an independent reader makes of the backing directory: bytes of files, ("link", target), dictionaries."""
    iv = keys.directory((top / volumes.DIRECTORY_FILE).read_bytes(), parent or keys.id, stored)
    found: dict[bytes, object] = {}
    for entry in os.scandir(os.fsencode(top)):
        if entry.name.startswith(b".stackfs-") and not (
            entry.name.startswith(b".stackfs-long-") and not entry.name.endswith(b".name")
        ):
            continue
        text = b""
        if entry.name.startswith(b".stackfs-long-"):
            text = Path(os.fsdecode(entry.path + b".name")).read_bytes()
        name = keys.name(iv, entry.name, text)
        if entry.is_symlink():
            found[name] = ("link", keys.target(os.readlink(entry.path)))
        elif entry.is_dir():
            found[name] = decoded(keys, Path(os.fsdecode(entry.path)), None, entry.name, iv)
        elif entry.is_file():
            found[name] = reader.File(keys, Path(os.fsdecode(entry.path)).read_bytes()).read()
    return found


def shown(top: Path) -> dict[bytes, object]:
    """The same of a plain tree."""
    found: dict[bytes, object] = {}
    for entry in os.scandir(os.fsencode(top)):
        if entry.is_symlink():
            found[entry.name] = ("link", os.readlink(entry.path))
        elif entry.is_dir():
            found[entry.name] = shown(Path(os.fsdecode(entry.path)))
        else:
            found[entry.name] = Path(os.fsdecode(entry.path)).read_bytes()
    return found
