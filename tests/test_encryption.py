"""The encrypted drive, mounted: it behaves as a directory does, what lies below is what the format says, what is
changed there is never shown, and it is there with its key or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import random
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import encryption_reader as reader
import pytest
from conftest import STACKFS, Drive, is_mounted, run
from encryption_drive import PHRASE, Vault, at_a_terminal, decoded, shown

from stackfs.errors import ExitCode
from stackfs.filters.encryption import volume as volumes


@pytest.mark.parametrize("cache", ["normal", "strict"])
def test_names_and_files(vault: Callable[..., Vault], lanes: str, cache: str) -> None:
    it = vault(f"cache={cache}")
    top = it.mnt
    long = "l" * 255
    (top / "file").write_bytes(b"hello")
    assert (top / "file").stat().st_size == 5
    (top / "dir").mkdir(mode=0o555)
    assert (top / "dir").stat().st_mode & 0o777 == 0o555
    (top / "dir" / long).write_text("long")
    (top / "dir" / "sub").mkdir()
    (top / "link").symlink_to("dir/" + "x" * 300)
    assert os.readlink(top / "link") == "dir/" + "x" * 300
    assert (top / "link").lstat().st_size == 304
    os.link(top / "file", top / "dir" / "second")
    assert sorted(os.listdir(top / "dir")) == [long, "second", "sub"]
    assert (top / "dir" / "second").stat().st_nlink == 2
    with pytest.raises(OSError) as refused:
        (top / "dir").rmdir()
    assert refused.value.errno == errno.ENOTEMPTY
    os.rename(top / "dir" / long, top / "dir" / ("m" * 200))
    assert os.listdir(it.src) and not any(
        "file" in name or "dir" in name for name in os.listdir(it.src) if name[0] != "."
    )
    os.rename(top / "dir", top / "moved")
    (top / "empty").mkdir()
    os.rename(top / "moved", top / "empty")
    assert (top / "empty" / ("m" * 200)).read_text() == "long"
    assert shown(top) == decoded_after(it)
    (top / "empty" / ("m" * 200)).unlink()
    (top / "empty" / "second").unlink()
    (top / "empty" / "sub").rmdir()
    (top / "empty").rmdir()
    with pytest.raises(OSError) as refused:
        (top / ("n" * 256)).touch()
    assert refused.value.errno == errno.ENAMETOOLONG
    (top / "link").unlink()
    assert os.listdir(top) == ["file"]
    for name in ("x/../file", ".stackfs-directory", ".stackfs-encryption"):
        assert not (top / name).exists()
    (top / ".stackfs-directory").write_text("a name as any other")
    assert (top / ".stackfs-directory").read_text() == "a name as any other"
    for path, value in ((top / "file", b"v" * 300), (top, b"")):
        os.setxattr(path, "user.key", value)
        assert os.getxattr(path, "user.key") == value and os.listxattr(path) == ["user.key"]
        os.removexattr(path, "user.key")
    left = [name for name in os.listdir(it.src) if name.startswith(".stackfs-") and name.endswith(".new")]
    assert left == []


def decoded_after(it: Vault) -> dict[bytes, object]:
    """What the reader finds when the drive has been unmounted; it is mounted again."""
    it.umount()
    found = decoded(it.keys(), it.src)
    it.mount()
    return found


@pytest.mark.parametrize("cache", ["normal", "strict"])
def test_data(vault: Callable[..., Vault], lanes: str, cache: str) -> None:
    it = vault(f"cache={cache}")
    path = it.mnt / "file"
    rng = random.Random(1)
    plain = bytearray(rng.randbytes(300_000))
    path.write_bytes(plain)
    assert path.read_bytes() == plain
    file = os.open(path, os.O_RDWR)
    for _ in range(60):
        offset, length = rng.randrange(400_000), rng.choice((1, 100, 4096, 5000, 70_000))
        data = rng.randbytes(length)
        os.pwrite(file, data, offset)
        if len(plain) < offset:
            plain.extend(bytes(offset - len(plain)))
        plain[offset : offset + length] = data
        assert os.pread(file, length + 3, offset) == bytes(plain[offset : offset + length + 3])
        if rng.random() < 0.2:
            size = rng.randrange(400_000)
            os.ftruncate(file, size)
            plain = plain[:size] + bytes(max(0, size - len(plain)))
        if rng.random() < 0.1:
            os.fsync(file)
        assert os.fstat(file).st_size == len(plain)
    os.fdatasync(file)
    with mmap.mmap(file, len(plain)) as mapped:
        assert mapped[:] == plain
        mapped[5:10] = plain[5:10] = b"mmap!"
        mapped.flush()
    os.close(file)
    assert path.read_bytes() == plain
    with path.open("ab") as appending:
        appending.write(b"end")
    plain += b"end"
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    room = mmap.mmap(-1, 4096)
    assert os.preadv(direct, [room], 4096) == 4096 and room[:] == plain[4096:8192]
    os.close(direct)
    os.utime(path, (1, 2))
    assert decoded_after(it) == {b"file": bytes(plain)}
    assert path.stat().st_mtime == 2 and path.read_bytes() == plain
    path.write_bytes(b"")
    assert path.stat().st_size == 0


def test_holes(vault: Callable[..., Vault], lanes: str) -> None:
    it = vault()
    path = it.mnt / "file"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(file, b"end", 50 << 20)
    assert os.fstat(file).st_blocks < 1000
    assert os.lseek(file, 0, os.SEEK_DATA) == 50 << 20 and os.lseek(file, 0, os.SEEK_HOLE) == 0
    with pytest.raises(OSError) as nothing:
        os.lseek(file, (50 << 20) + 3, os.SEEK_DATA)
    assert nothing.value.errno == errno.ENXIO
    os.pwrite(file, b"x" * 100_000, 0)
    assert os.lseek(file, 0, os.SEEK_HOLE) == 102_400
    run("fallocate", "-p", "-o", "5000", "-l", "20000", path)
    assert os.pread(file, 30_000, 0) == b"x" * 5000 + bytes(20_000) + b"x" * 5000
    assert os.lseek(file, 4096, os.SEEK_HOLE) == 8192 and os.lseek(file, 8192, os.SEEK_DATA) == 24_576
    os.posix_fallocate(file, 0, (50 << 20) + 1000)
    assert os.fstat(file).st_size == (50 << 20) + 1000
    run("fallocate", "-n", "-l", "1000000", path)
    assert os.fstat(file).st_size == (50 << 20) + 1000
    run("fallocate", "-z", "-o", "0", "-l", "4096", path)
    assert os.pread(file, 5000, 0) == bytes(4096) + b"x" * 904
    os.close(file)
    copy = it.mnt / "copy"
    run("cp", "--reflink=auto", "--sparse=always", path, copy)
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()


def test_several_writers(vault: Callable[..., Vault], lanes: str) -> None:
    it = vault()
    path = it.mnt / "log"
    path.touch()
    each = 200

    def append(number: int) -> None:
        with open(path, "ab", buffering=0) as file:
            for i in range(each):
                file.write(b"%d %d\n" % (number, i))

    def overwrite(number: int) -> None:
        with open(it.mnt / "block", "r+b", buffering=0) as file:
            for i in range(each):
                file.seek(number * 1000)
                file.write(b"%c" % (65 + number) * 1000)
                if i % 20 == 0:
                    os.fsync(file.fileno())

    (it.mnt / "block").write_bytes(bytes(4096))
    threads = [threading.Thread(target=append, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=overwrite, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d %d" % (n, i) for n in range(4) for i in range(each))
    assert (it.mnt / "block").read_bytes()[:4000] == b"A" * 1000 + b"B" * 1000 + b"C" * 1000 + b"D" * 1000


# --- random operations -----------------------------------------------------------------------------


class Walk:
    """The same random operations on the drive and on a plain directory."""

    def __init__(self, seed: int, drive: Path, model: Path) -> None:
        self.rng = random.Random(seed)
        self.tops = (drive, model)

    def names(self) -> list[str]:
        return sorted(
            os.path.relpath(os.path.join(where, name), self.tops[1])
            for where, folders, files in os.walk(self.tops[1])
            for name in folders + files
        )

    def place(self) -> str:
        folders = [""] + [
            name for name in self.names() if (self.tops[1] / name).is_dir() and not (self.tops[1] / name).is_symlink()
        ]
        name = self.rng.choice("abcdef") * self.rng.choice((1, 1, 1, 161, 255))
        return os.path.join(self.rng.choice(folders), name)

    def both(self, what: Callable[[Path], object]) -> None:
        outcomes = []
        for top in self.tops:
            try:
                outcomes.append(what(top))
            except OSError as error:
                outcomes.append(error.errno)
        assert outcomes[0] == outcomes[1]

    def step(self) -> None:
        rng = self.rng
        known = self.names() or ["a"]
        one, other, new = rng.choice(known), rng.choice(known), self.place()
        kind = rng.randrange(15)
        data = rng.randbytes(rng.choice((0, 1, 4096, 5000, 120_000)))
        offset, size = rng.randrange(200_000), rng.choice((0, 1, 4096, 4097, 100_000))
        if kind < 3:
            self.both(lambda top: (top / new).write_bytes(data))
        elif kind < 6:

            def write(top: Path) -> None:
                file = os.open(top / one, os.O_RDWR)
                try:
                    os.pwrite(file, data, offset)
                finally:
                    os.close(file)

            self.both(write)
        elif kind == 6:
            self.both(lambda top: os.truncate(top / one, size))
        elif kind == 7:
            self.both(lambda top: os.mkdir(top / new))
        elif kind == 8:
            self.both(lambda top: os.unlink(top / one))
        elif kind == 9:
            self.both(lambda top: os.rmdir(top / one))
        elif kind == 10:
            self.both(lambda top: os.rename(top / one, top / new))
        elif kind == 11:
            self.both(lambda top: os.rename(top / one, top / other))
        elif kind == 12:
            self.both(lambda top: os.link(top / one, top / new, follow_symlinks=False))
        elif kind == 13:
            self.both(lambda top: os.symlink(one[-3039:], top / new))     # as long as a target may be
        else:
            self.both(lambda top: (top / one).lstat().st_size if not (top / one).is_dir() else None)

    def compare(self) -> None:
        assert shown(self.tops[0]) == shown(self.tops[1])


@pytest.mark.parametrize("options", ["lanes=auto", "cache=strict", "writeback", "lanes=irp"])
def test_random_operations(vault: Callable[..., Vault], tmp_path: Path, options: str) -> None:
    it = vault(options)
    (tmp_path / "model").mkdir()
    walk = Walk(len(options), it.mnt, tmp_path / "model")
    for _ in range(2):
        for _ in range(100):
            walk.step()
        walk.compare()
        it.umount()
        assert decoded(it.keys(), it.src) == shown(tmp_path / "model")
        it.mount()
        walk.compare()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_random_operations_at_length(vault: Callable[..., Vault], tmp_path: Path) -> None:
    it = vault()
    (tmp_path / "model").mkdir()
    walk = Walk(9, it.mnt, tmp_path / "model")
    for _ in range(40):
        for _ in range(250):
            walk.step()
        walk.compare()
        it.umount()
        it.mount()
        walk.compare()


# --- tampering -------------------------------------------------------------------------------------


def tamper(rng: random.Random, path: Path, others: list[Path]) -> None:
    """One change to a stored file, of a random kind."""
    data = bytearray(path.read_bytes())
    kind = rng.randrange(7)
    if kind == 0:
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        blocks = max(1, (len(data) - 1024) // 4132)
        at, to = (1024 + 4132 * rng.randrange(blocks) for _ in range(2))
        data[to : to + 4132] = data[at : at + 4132]
    elif kind == 3:
        at = 1024 + 4132 * rng.randrange(max(1, (len(data) - 1024) // 4132))
        data[at : at + 4132] = bytes(len(data[at : at + 4132]))
    elif kind == 4:
        other = rng.choice(others).read_bytes()
        data[:1024] = other[:1024]
    elif kind == 5:
        other = rng.choice(others).read_bytes()
        at = 1024 + 4132 * rng.randrange(max(1, (len(data) - 1024) // 4132))
        data[at : at + 4132] = other[at : at + 4132]
    else:
        data += rng.randbytes(rng.choice((1, 36, 4132)))
    path.write_bytes(data)


def tampering(it: Vault, rng: random.Random, times: int) -> int:
    """How many of the tamperings were refused. None of them may show wrong data."""
    sizes = (0, 1, 4096, 5000, 90_000, 300_000)
    plain = {f"file{i}": rng.randbytes(size) for i, size in enumerate(sizes)}
    it.mount("cache=strict")
    for name, data in plain.items():
        (it.mnt / name).write_bytes(data)
    it.umount()
    keys, iv = it.keys(), None
    iv = keys.directory((it.src / volumes.DIRECTORY_FILE).read_bytes(), keys.id, b"")
    stored = {keys.name(iv, os.fsencode(p.name)).decode(): p for p in it.src.iterdir() if p.name[0] != "."}
    it.mount("cache=strict")
    it.drive.expected_log.append("damaged or was changed")
    refused = 0
    for _ in range(times):
        name = rng.choice(list(plain))
        original = stored[name].read_bytes()
        tamper(rng, stored[name], list(stored.values()))
        if stored[name].read_bytes() == original:
            continue
        pieces = (
            [(0, len(plain[name]) + 5000)]
            if rng.random() < 0.5
            else [(at, 4096) for at in range(0, len(plain[name]) + 1, 4096)]
        )
        try:
            file = os.open(it.mnt / name, os.O_RDONLY)
            try:
                for at, length in pieces:
                    try:
                        got = os.pread(file, length, at)
                    except OSError as error:
                        assert error.errno == errno.EIO
                        refused += 1
                    else:
                        assert got == plain[name][at : at + length], (name, at)
            finally:
                os.close(file)
        finally:
            stored[name].write_bytes(original)
    for name, data in plain.items():
        assert (it.mnt / name).read_bytes() == data
    return refused


def test_tampering(vault: Callable[..., Vault]) -> None:
    assert tampering(vault(mount=False), random.Random(5), 500) > 300


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", ["aes-256-gcm", "chacha20-poly1305", "aes-256-siv"])
def test_tampering_at_length(vault: Callable[..., Vault], suite: str) -> None:
    assert tampering(vault(mount=False, suite=suite), random.Random(6), 10_000) > 5000


def test_names_that_were_moved(vault: Callable[..., Vault]) -> None:
    """Names, IVs, attributes and targets from elsewhere are not shown; foreign files are hidden, and reported."""
    it = vault()
    for folder in ("one", "two"):
        (it.mnt / folder).mkdir()
        (it.mnt / folder / "file").write_text(folder)
    (it.mnt / "link").symlink_to("target")
    os.setxattr(it.mnt / "one" / "file", "user.a", b"1")
    it.umount()
    found = {p.name: p for p in it.src.iterdir() if p.name[0] != "."}
    one, two = (p for p in found.values() if p.is_dir())
    link = next(p for p in found.values() if p.is_symlink())
    for folder in (one, two):
        file = next(p for p in folder.iterdir() if p.name[0] != ".")
        with contextlib.suppress(OSError):
            os.setxattr(file, "user.b", os.getxattr(file, "user.a"))
            marked = file
    (it.src / "foreign").write_text("not of the volume")
    (one / next(p for p in two.iterdir() if p.name[0] != ".").name).write_text("from another directory")
    target = os.readlink(link)
    link.unlink()
    link.symlink_to(target[:-1] + ("A" if target[-1] != "A" else "B"))
    it.drive.expected_log += ["none of the volume's", "damaged or was changed"]
    it.mount()
    assert sorted(os.listdir(it.mnt)) == ["link", "one", "two"]
    assert os.listdir(it.mnt / "one") == ["file"] and os.listdir(it.mnt / "two") == ["file"]
    with pytest.raises(OSError):
        os.readlink(it.mnt / "link")
    for folder in ("one", "two"):
        with contextlib.suppress(OSError):
            if os.getxattr(it.mnt / folder / "file", "user.a"):
                break
    with pytest.raises(OSError) as moved:
        os.getxattr(it.mnt / folder / "file", "user.b")
    assert moved.value.errno == errno.EIO and marked
    it.umount()
    one.rename(it.src / "aside")
    two.rename(one)
    (it.src / "aside").rename(two)
    it.mount()
    for folder in ("one", "two"):
        with pytest.raises(OSError) as exchanged:
            os.listdir(it.mnt / folder)
        assert exchanged.value.errno == errno.EIO


# --- the gate --------------------------------------------------------------------------------------


def refused(it: Vault, *options: str) -> str:
    joined = [part for option in options for part in ("-o", option)]
    done = run(STACKFS, "mount", it.src, it.mnt, *joined, check=False)
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1, done.stderr
    it.drive.expected_log.append("not mounted")
    return done.stderr


def test_no_mount_without_the_key(vault: Callable[..., Vault], drive: Callable[..., Drive], tmp_path: Path) -> None:
    it = vault(mount=False)
    (tmp_path / "wrong").write_text("another\n")
    assert "passphrase is wrong" in refused(it, f"filter=encryption,encryption.passfile={tmp_path}/wrong")
    assert "passfile" in refused(it, "filter=encryption")
    assert "No such file" in refused(it, f"filter=encryption,encryption.passfile={tmp_path}/none")
    assert "filter=encryption" in refused(it)
    plain = Vault(drive(mount=False), it.passfile)
    assert "stackfs encryption init" in refused(plain, f"filter=encryption,encryption.passfile={it.passfile}")


def test_the_gate_never_opens(vault: Callable[..., Vault], drive: Callable[..., Drive]) -> None:
    it = vault()
    (it.mnt / "file").write_text("secret")
    name = str(it.mnt)
    assert it.drive.fltmc("detach", "encryption", name, check=False).returncode != 0
    assert it.drive.fltmc("unload", "encryption", check=False).returncode != 0
    again = it.drive.fltmc("attach", "encryption", name, "-a", "141001", check=False)
    assert again.returncode != 0 and "when a volume is mounted" in again.stderr
    assert (it.mnt / "file").read_text() == "secret"
    run(STACKFS, "stop", "encryption", "-v", name)
    for what in (lambda: os.listdir(it.mnt), lambda: (it.mnt / "other").write_text("plain")):
        with pytest.raises(OSError) as gone:
            what()
        assert gone.value.errno == errno.EIO
    assert sorted(p.name[0] for p in it.src.iterdir()).count(".") == len(list(it.src.iterdir())) - 1
    it.drive.expected_log += ["encryption", "needs"]
    it.umount()
    it.mount()
    assert (it.mnt / "file").read_text() == "secret"


def test_two_mounts_of_a_volume(vault: Callable[..., Vault], drive: Callable[..., Drive]) -> None:
    it = vault()
    second = drive(mount=False)
    done = run(
        STACKFS, "mount", it.src, second.mnt, "-o", f"filter=encryption,encryption.passfile={it.passfile}", check=False
    )
    assert done.returncode != 0 and "in use" in done.stderr
    second.expected_log.append("not mounted")


# --- others ----------------------------------------------------------------------------------------


def test_plain_names(vault: Callable[..., Vault], lanes: str) -> None:
    it = vault(names="plain")
    (it.mnt / "dir").mkdir()
    (it.mnt / "dir" / "file").write_text("content")
    (it.mnt / "dir").rename(it.mnt / "moved")
    os.setxattr(it.mnt / "moved", "user.a", b"b")
    assert (it.src / "moved" / "file").stat().st_size == 1024 + 36 + 7
    assert os.listdir(it.mnt) == ["moved"]
    with pytest.raises(PermissionError):
        (it.mnt / ".stackfs-x").touch()
    it.umount()
    it.mount()
    assert (it.mnt / "moved" / "file").read_text() == "content" and os.getxattr(it.mnt / "moved", "user.a") == b"b"
    (it.mnt / "moved" / "file").unlink()
    (it.mnt / "moved").rmdir()


def test_programs(vault: Callable[..., Vault]) -> None:
    it = vault()
    top = it.mnt
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent"}
    git = ["git", "-C", str(top / "repository"), "-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.fsync=none"]
    run("git", "init", "-q", top / "repository", env=environment)
    for i in range(30):
        (top / "repository" / f"file{i}").write_text(f"{i}\n" * i)
    run(*git, "add", ".", env=environment)
    run(*git, "commit", "-qm", "one", env=environment)
    run(*git, "gc", "-q", env=environment)
    run(*git, "fsck", "--strict", env=environment)
    assert run(*git, "status", "--porcelain", env=environment).stdout == ""
    with sqlite3.connect(top / "base.sqlite") as base:
        base.execute("pragma journal_mode=wal")
        base.execute("create table t (n integer, v blob)")
        base.executemany("insert into t values (?, ?)", [(i, os.urandom(100)) for i in range(500)])
        base.commit()
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()
    run(
        "fio",
        "--name=v",
        f"--directory={top}",
        "--rw=randrw",
        "--bs=512-16k",
        "--bs_unaligned",
        "--size=2m",
        "--verify=crc32c",
        "--do_verify=1",
        "--fsync=50",
        "--ioengine=psync",
    )
    it.umount()
    it.mount()
    run(*git, "fsck", "--strict", env=environment)
    with sqlite3.connect(top / "base.sqlite") as base:
        assert base.execute("select count(*) from t").fetchone() == (500,)
    base.close()


ABOVE_AND_BELOW = '''
"""Writes down what passes."""

from stackfs.api import *

MANIFEST = {{"name": "{name}", "altitude": "{altitude}", "group": "{group}", "filter": "Watch"}}


class Watch(Filter):
    watched = (IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_WRITE, IRP_MJ_DIRECTORY_CONTROL)
    operations = tuple(Operation(which, post="post") for which in watched)

    def post(self, data, objects, context, flags):
        text = bytes(data.buffer[:data.information]) if data.major != IRP_MJ_CREATE and is_success(data.status) else b""
        with open("{log}", "ab") as log:
            log.write(b"%d " % data.major + data.name + b" " + text + b"\\n")
            if data.major == IRP_MJ_WRITE and data.is_fast_io:
                log.write(b"path " + data.name_information().path.encode("utf-8", "surrogateescape") + b"\\n")
'''


def test_what_others_see(vault: Callable[..., Vault], tmp_path: Path, lanes: str) -> None:
    """Filters above see plain names and data, those below stored ones."""
    tmp_path.chmod(0o755)
    for name, altitude, group in (
        ("above", "385300", "FSFilter Activity Monitor"),
        ("below", "60010", "FSFilter Copy Protection"),
    ):
        (tmp_path / f"{name}.py").write_text(
            ABOVE_AND_BELOW.format(name=name, altitude=altitude, group=group, log=tmp_path / f"{name}.log")
        )
    it = vault(f"filterdir={tmp_path}", "filter=above", "filter=below", "cache=strict")
    (it.mnt / "folder").mkdir()
    (it.mnt / "folder" / "plainname").write_bytes(b"plain content")
    assert (it.mnt / "folder" / "plainname").read_bytes() == b"plain content"
    os.listdir(it.mnt / "folder")
    above, below = ((tmp_path / f"{name}.log").read_bytes() for name in ("above", "below"))
    assert b"plainname" in above and b"plain content" in above and b"path /folder/plainname" in above
    for plain in (b"plainname", b"folder", b"plain content"):
        assert plain not in below
    assert b"SFENCRF1" in below and re.search(rb"[A-Za-z0-9_-]{22}", below)


def test_locks_and_temporary_files(vault: Callable[..., Vault]) -> None:
    it = vault()
    unnamed = os.open(it.mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(unnamed, b"unnamed")
    root = os.open("/", os.O_PATH)  # with a descriptor it is linkat(2), which follows
    os.link(f"/proc/self/fd/{unnamed}", it.mnt / "named", src_dir_fd=root, follow_symlinks=True)
    os.close(root)
    os.close(unnamed)
    assert (it.mnt / "named").read_bytes() == b"unnamed"
    with open(it.mnt / "named", "r+b") as one, open(it.mnt / "named", "r+b") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(it.mnt / "named", "rb") as open_file:
        (it.mnt / "named").unlink()
        assert open_file.read() == b"unnamed" and os.listdir(it.mnt) == []


def test_a_killed_daemon_loses_nothing(vault: Callable[..., Vault]) -> None:
    it = vault()
    data = random.Random(3).randbytes(200_000)
    (it.mnt / "done").write_bytes(data)
    file = os.open(it.mnt / "open", os.O_RDWR | os.O_CREAT)
    os.write(file, data)
    os.fsync(file)
    os.pwrite(file, b"again", 1000)
    os.kill(it.drive.pid, 9)
    it.drive.wait_gone()
    with contextlib.suppress(OSError):
        os.close(file)
    run(STACKFS, "umount", it.mnt)
    it.mount()
    assert (it.mnt / "done").read_bytes() == data
    assert (it.mnt / "open").read_bytes() == data[:1000] + b"again" + data[1005:]
    with open(it.mnt / "open", "r+b") as again:
        again.write(b"more")
    assert (it.mnt / "open").read_bytes() == b"more" + data[4:1000] + b"again" + data[1005:]


def test_set_user_id_goes_with_a_write(vault: Callable[..., Vault]) -> None:
    it = vault("allow_other")
    path = it.mnt / "file"
    path.write_bytes(b"x")
    path.chmod(0o4777)
    for above in list(it.mnt.parents)[:-2]:  # below /tmp
        above.chmod(0o755)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", f"echo y >> {path}"],
        check=False,
        capture_output=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o7777 == 0o777 and path.read_bytes() == b"xy\n"


def test_files_are_sealed_when_they_are_left_alone(vault: Callable[..., Vault]) -> None:
    it = vault()
    (it.mnt / "file").write_bytes(b"x" * 5000)
    keys = it.keys()
    end = time.monotonic() + 20
    stored = next(p for p in it.src.iterdir() if p.name[0] != ".")
    while reader.File(keys, stored.read_bytes()).open:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert reader.File(keys, stored.read_bytes()).read() == b"x" * 5000


LISTS = '''
"""Lists the volume's root again and again, whatever else goes on there."""

import threading

from stackfs.api import *

MANIFEST = {{"name": "lists", "altitude": "385300", "group": "FSFilter Activity Monitor", "filter": "Lists"}}


class Lists(Filter):
    def instance_setup(self, instance, flags):
        self.ends = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(instance,), daemon=True)
        self.thread.start()
        return STATUS_SUCCESS

    def run(self, instance):
        with open("{log}", "w") as log:
            while not self.ends.wait(0.001):
                log.write(f"{{sum(each.startswith(b'k') for each in instance.listdir('/'))}}\\n")

    def instance_teardown_start(self, instance, reason):
        self.ends.set()
        self.thread.join()
'''


def test_a_long_name_that_goes_while_a_filter_lists_is_not_foreign(vault: Callable[..., Vault], tmp_path: Path) -> None:
    """The kernel keeps its own listings and removals apart, but not a filter's. A long name whose side file is missing
    although it stays is foreign."""
    tmp_path.chmod(0o755)
    (tmp_path / "lists.py").write_text(LISTS.format(log=tmp_path / "log"))
    it = vault(f"filterdir={tmp_path}", "filter=lists")
    kept = [it.mnt / ("k" * 200 + str(number)) for number in range(20)]
    for path in kept:
        path.touch()
    names = [it.mnt / ("g" * 200 + str(number)) for number in range(20)]
    other = it.mnt / ("o" * 220)
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        for path in names:
            path.mkdir() if path.name.endswith("7") else path.touch()
        names[0].rename(other)
        other.rename(names[0])
        for path in names:
            path.rmdir() if path.name.endswith("7") else path.unlink()
    it.umount()
    assert "none of the volume's" not in it.drive.log.read_text()
    listed = (tmp_path / "log").read_text().split()
    listed = listed[listed.index(str(len(kept))) :]  # from when all were there
    assert len(listed) > 100 and set(listed) == {str(len(kept))}
    next(it.src.glob(".stackfs-long-*.name")).unlink()
    it.drive.expected_log.append("none of the volume's")
    it.mount("cache=strict")
    assert len(os.listdir(it.mnt)) == len(kept) - 1
    it.umount()
    assert "none of the volume's" in it.drive.log.read_text()


# ---- who mounts is asked -------------------------------------------------------------------------------------------


def mount_at_a_terminal(drive: Drive, *typed: bytes) -> tuple[int, bytes]:
    return at_a_terminal(STACKFS, "mount", drive.src, drive.mnt, "-o", "filter=encryption", typed=typed)


def test_who_mounts_is_asked_for_the_passphrase(vault: Callable[..., Vault]) -> None:
    """Without echo, before the daemon goes to the background, and again when it was wrong."""
    it = vault()
    (it.mnt / "file").write_text("plain")
    it.umount()
    code, shown = mount_at_a_terminal(it.drive, b"another phrase", PHRASE)
    assert code == 0, shown
    it.drive.note_pid()
    assert (it.mnt / "file").read_text() == "plain"
    assert shown.count(b"Passphrase of") == 2 and b"is wrong" in shown and b"try again" in shown
    assert b"phrase" not in shown.replace(b"Passphrase", b"").replace(b"the passphrase", b"")
    command = Path(f"/proc/{it.drive.pid}/cmdline").read_bytes() + Path(f"/proc/{it.drive.pid}/environ").read_bytes()
    assert PHRASE not in command


def test_the_daemon_gets_a_key_and_not_the_passphrase(vault: Callable[..., Vault]) -> None:
    """Argon2id is computed once, where the passphrase was typed; the daemon, which need not pay for it again, never has
    the passphrase."""
    memory = 300 << 10
    typed = b"neither this nor a part of it"
    it = vault(mount=False, phrase=typed, argon2=volumes.Argon2(memory=memory, passes=1))
    code, shown = mount_at_a_terminal(it.drive, typed)
    assert code == 0, shown
    it.drive.note_pid()
    (it.mnt / "file").write_text("plain")
    assert most_memory(it.drive.pid) < memory // 2
    assert not any(typed in part for part in memory_of(it.drive.pid))
    it.umount()
    it.passfile.write_bytes(typed + b"\n")
    it.mount()
    assert (it.mnt / "file").read_text() == "plain"
    assert most_memory(it.drive.pid) > memory


def most_memory(pid: int) -> int:
    """KiB that a process has had at most."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def memory_of(pid: int) -> Iterator[bytes]:
    """What a process can write to."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            begin, end, rights = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()  # type: ignore[union-attr]
            if rights.startswith("rw") and "/dev/" not in line:
                memory.seek(int(begin, 16))
                yield memory.read(int(end, 16) - int(begin, 16))


def test_after_three_wrong_passphrases_nothing_is_mounted(vault: Callable[..., Vault]) -> None:
    it = vault()
    it.umount()
    code, shown = mount_at_a_terminal(it.drive, b"one", b"two", b"three", PHRASE)
    assert code == ExitCode.WRONG_KEY
    assert shown.count(b"try again") == 2 and b"stackfs: the passphrase is wrong" in shown
    assert not is_mounted(it.mnt)


def test_where_nobody_can_be_asked_the_mount_says_what_to_give(vault: Callable[..., Vault]) -> None:
    it = vault()
    it.umount()
    done = run("setsid", "-w", STACKFS, "mount", it.src, it.mnt, "-o", "filter=encryption", check=False)
    assert done.returncode == ExitCode.USAGE and not is_mounted(it.mnt)
    assert re.fullmatch(r"stackfs: there is no terminal .*: give encryption\.passfile, .*\n", done.stderr)
    it.passfile.write_text("another phrase\n")
    wrong = f"filter=encryption,encryption.passfile={it.passfile}"
    done = run(STACKFS, "mount", it.src, it.mnt, "-o", wrong, check=False)
    assert done.returncode == ExitCode.WRONG_KEY and not is_mounted(it.mnt)
    it.drive.expected_log.append("the passphrase is wrong")
