"""The base without a mount: names, descriptors, and whoever changes the backing directory while requests run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import needs_root

from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry

LOOKUP, GETATTR, SETATTR, READLINK, SYMLINK, MKDIR, UNLINK, RMDIR, RENAME, LINK = 1, 3, 4, 5, 6, 9, 10, 11, 12, 13
OPEN, READ, WRITE, RELEASE, SETXATTR, GETXATTR, OPENDIR, CREATE, RENAME2 = 14, 15, 16, 18, 21, 22, 27, 35, 45
FATTR_MODE, FATTR_MTIME = 1, 32
FATTR_SIZE = 8
FUSE_WRITE_CACHE = 1
IRP_MJ_CREATE, IRP_MJ_QUERY_OPEN, IRP_MJ_SET_INFORMATION, IRP_MJ_FILE_SYSTEM_CONTROL = 0, 0xF1, 6, 13


def volume_of(directory: Path, **options: Any) -> Volume:
    return Volume(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), **options)


@pytest.fixture
def tight(tmp_path: Path) -> Iterator[Volume]:
    """A volume that keeps one descriptor: every step of a path is opened again for every request."""
    volume = volume_of(tmp_path, descriptor_limit=1)
    yield volume
    volume.close()


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(OSError) as error:
        act()
    return errno.errorcode[error.value.errno or 0]


def find(volume: Volume, *names: bytes, start: int = 1) -> int:
    for name in names:
        start = volume.request(LOOKUP, start, name=name).do().nodeid
    return start


def reopen(volume: Volume) -> None:
    """Whatever a tight volume has open, it is not what a test before this one opened."""
    for name in (b"two", b"three"):
        volume.request(SETATTR, find(volume, name), valid=FATTR_MODE, mode=0o755).do()


# ---- names ----

def test_names_are_any_bytes_up_to_255(core: Volume, tmp_path: Path) -> None:
    alphabet = bytes(set(range(1, 256)) - {ord("/")})
    names = [bytes([byte]) for byte in alphabet if byte != ord(".")]
    names += [alphabet[:254], b"x" * 255, b"...", b"..x", b".x"]
    for name in names:
        made = core.request(CREATE, 1, name=name, mode=0o644, flags=os.O_RDWR).do()
        core.request(RELEASE, 1, fh=made.fh).do()
        assert core.request(LOOKUP, 1, name=name).do().nodeid == made.nodeid
    assert sorted(os.listdir(os.fsencode(tmp_path))) == sorted(names)
    for name in names:
        core.request(UNLINK, 1, name=name).do()
    assert os.listdir(tmp_path) == []


WRONG_NAMES = [(b".", "EINVAL"), (b"..", "EINVAL"), (b"a/b", "EINVAL"), (b"../out", "EINVAL"),
               (b"/etc/passwd", "EINVAL"), (b"a\0b", "EINVAL"), (b"n" * 256, "ENAMETOOLONG")]  # fmt: skip


@pytest.mark.parametrize(("name", "code"), WRONG_NAMES)
def test_what_is_not_one_component_leads_nowhere(core: Volume, tmp_path: Path, name: bytes, code: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x")
    node = find(core, b"a", b"b")
    for request in (
        core.request(LOOKUP, 1, name=name), core.request(UNLINK, 1, name=name), core.request(RMDIR, 1, name=name),
        core.request(MKDIR, 1, name=name, mode=0o755), core.request(CREATE, 1, name=name, mode=0o644, flags=os.O_RDWR),
        core.request(SYMLINK, 1, name=name, name2=b"t"), core.request(RENAME, 1, name=name, name2=b"n", nodeid2=1),
        core.request(RENAME, 1, name=b"a", name2=name, nodeid2=1),
        core.request(LINK, 1, name=b"", name2=name, nodeid2=node),
    ):  # fmt: skip
        assert refused(request.do) == code
    assert sorted(os.listdir(tmp_path)) == ["a"] and os.listdir(tmp_path / "a") == ["b"]


class Host:
    def callback_raised(self, *what: object) -> None: ...
    def callback_misused(self, *what: object) -> None: ...
    def error_limit_reached(self) -> None: ...


@pytest.mark.parametrize("name", [b"..", b"../out", b"a/b", b"/etc"])
def test_a_filter_cannot_lead_outside_either(core: Volume, tmp_path: Path, name: bytes) -> None:
    """Names that a filter puts in place of the program's go through the same check."""
    outside = tmp_path.parent / f"{tmp_path.name}-out"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (tmp_path / "a").mkdir()

    def misleads(data: Any, objects: Any) -> int:
        if data.name:
            data.name = name
            data.set_dirty()
        return 1

    majors = (IRP_MJ_CREATE, IRP_MJ_QUERY_OPEN, IRP_MJ_SET_INFORMATION, IRP_MJ_FILE_SYSTEM_CONTROL)
    entry = InstanceEntry(Host(), "test", "1", "test", [(major, 0, misleads, None) for major in majors])
    core.stack.insert(entry)
    for request in (
        core.request(LOOKUP, 1, name=b"x"), core.request(UNLINK, 1, name=b"x"), core.request(RMDIR, 1, name=b"x"),
        core.request(MKDIR, 1, name=b"x", mode=0o755), core.request(CREATE, 1, name=b"x", mode=0o644, flags=os.O_RDWR),
        core.request(SYMLINK, 1, name=b"x", name2=b"t"), core.request(RENAME, 1, name=b"x", name2=b"n", nodeid2=1),
    ):  # fmt: skip
        with pytest.raises(OSError):
            request.do()
    core.stack.remove(entry)
    assert os.listdir(tmp_path) == ["a"] and os.listdir(outside) == ["kept"]


# ---- data ----

def test_a_write_appends_as_its_descriptor_says_now(core: Volume, tmp_path: Path) -> None:
    """The flags that count are those of the write; pages of a mapping never append; what a filter moved goes there."""
    made = core.request(CREATE, 1, name=b"f", mode=0o644, flags=os.O_RDWR | os.O_APPEND).do()

    def write(data: bytes, offset: int, **arguments: int) -> None:
        done = core.request(WRITE, 1, fh=made.fh, offset=offset, size=len(data), buffer=data, **arguments).do()
        assert done.length == len(data)

    write(b"0123456789", 0, flags=os.O_APPEND)
    write(b"a", 0, flags=os.O_APPEND)
    write(b"b", 1)
    write(b"c", 2, open_flags=FUSE_WRITE_CACHE, flags=os.O_APPEND)
    with (tmp_path / "f").open("ab") as beside:
        beside.write(b"beside")
    write(b"d", 11, flags=os.O_APPEND)
    assert (tmp_path / "f").read_bytes() == b"0bc3456789abesided"

    def moves(data: Any, objects: Any) -> int:
        data.offset += 3
        data.set_dirty()
        return 1

    core.stack.insert(InstanceEntry(Host(), "test", "1", "test", [(4, 0, moves, None)]))
    write(b"e", 0, flags=os.O_APPEND)
    assert (tmp_path / "f").read_bytes() == b"0bce456789abesided"


# ---- finding inodes again ----

@pytest.mark.skipif(
    not os.access("/dev/shm", os.W_OK), reason="needs /dev/shm: so many directories take minutes on a disk"
)
def test_a_tree_deeper_than_any_stack() -> None:
    """Twenty thousand directories, one in the other: reopening one far down is no recursion."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        volume = volume_of(Path(top), descriptor_limit=16)
        nodes = [1]
        for _ in range(20_000):
            nodes.append(volume.request(MKDIR, nodes[-1], name=b"d", mode=0o755).do().nodeid)
        for depth in (50, 19_990, 50, 20_000):              # each closes what the one before had open
            assert volume.request(GETATTR, nodes[depth]).do().stat[1] == nodes[depth]
            assert volume.cached_descriptors <= 16
        volume.close()
        subprocess.run(["rm", "-rf", f"{top}/d"], check=True)


def test_any_name_that_still_leads_to_an_inode_will_do(tight: Volume, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "f").write_text("x")
    os.link(tmp_path / "one" / "f", tmp_path / "two" / "g")
    os.link(tmp_path / "one" / "f", tmp_path / "two" / "h")
    os.link(tmp_path / "one" / "f", tmp_path / "three" / "i")
    node = find(tight, b"one", b"f")
    for directory, name in ((b"two", b"g"), (b"two", b"h"), (b"three", b"i")):
        assert find(tight, directory, name) == node
    os.unlink(tmp_path / "three" / "i")                     # beside the mount: the table still has all four names
    os.unlink(tmp_path / "two" / "h")
    os.symlink("/etc/passwd", tmp_path / "two" / "h")
    os.rename(tmp_path / "one", tmp_path / "moved")
    reopen(tight)
    assert tight.request(SETATTR, node, valid=FATTR_MTIME, mtime=5).do().stat[10] == 5
    os.unlink(tmp_path / "two" / "g")
    reopen(tight)
    assert refused(tight.request(SETATTR, node, valid=FATTR_MTIME, mtime=6).do) == "ESTALE"
    assert find(tight, b"moved", b"f") == node
    assert tight.request(SETATTR, node, valid=FATTR_MTIME, mtime=7).do().stat[10] == 7


def test_names_that_lead_in_a_circle_are_stale(tight: Volume, tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    a, b, c = find(tight, b"a"), find(tight, b"a", b"b"), find(tight, b"a", b"b", b"c")
    os.rename(tmp_path / "a" / "b", tmp_path / "b")
    os.rename(tmp_path / "a", tmp_path / "b" / "a")
    assert find(tight, b"b", b"a") == a
    os.rename(tmp_path / "b" / "a", tmp_path / "a")
    os.rename(tmp_path / "b", tmp_path / "a" / "b")
    opened = tight.request(OPENDIR, a).do() if tight.cached_descriptors else None
    assert find(tight, b"b", start=a) == b                  # b is now known in a, a in b
    if opened is not None:
        tight.request(RELEASE, 1, fh=opened.fh).do()
    (tmp_path / "other").mkdir()
    find(tight, b"other")
    for node in (a, b, c):
        try:
            tight.request(SETATTR, node, valid=FATTR_MODE, mode=0o700).do()
        except OSError as error:
            assert error.errno == errno.ESTALE
    assert find(tight, b"a", b"b", b"c") == c
    tight.request(SETATTR, c, valid=FATTR_MODE, mode=0o711).do()
    assert (tmp_path / "a" / "b" / "c").stat().st_mode & 0o777 == 0o711


EXHAUSTED = """
import errno, os, resource, sys
from stackfs.cext.python_requests import Volume
top = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
volume = Volume(os.open(top, os.O_PATH | os.O_DIRECTORY), descriptor_limit=100000)
nodes = []
for number in range(500):
    directory = volume.request(9, 1, name=b"d%d" % number, mode=0o755).do().nodeid
    made = volume.request(35, directory, name=b"f", mode=0o644, flags=os.O_RDWR).do()
    volume.request(18, 1, fh=made.fh).do()
    nodes.append(made.nodeid)
opened = []
try:
    for node in nodes:
        opened.append(volume.request(14, node, flags=os.O_RDWR).do().fh)
except OSError as error:
    assert error.errno == errno.EMFILE, error
assert 150 < len(opened) < 200, len(opened)
for fh in opened:
    volume.request(18, 1, fh=fh).do()
for node in nodes:
    volume.request(18, 1, fh=volume.request(14, node, flags=os.O_RDWR).do().fh).do()
volume.close()
"""


def test_descriptors_kept_for_reuse_give_way_to_open_files(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EXHAUSTED, str(tmp_path)], capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


# ---- somebody changes the backing directory meanwhile ----

SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
top = os.open(sys.argv[1], os.O_PATH)
a = os.open("a", os.O_PATH, dir_fd=top)
b = os.open("b", os.O_PATH, dir_fd=a)
print("on", flush=True)
while os.getppid() != 1:
    for _ in range(200):
        libc.renameat2(top, b"a", top, b"l1", 2)
        libc.renameat2(a, b"b", a, b"l2", 2)
        libc.renameat2(b, b"f", b, b"l3", 2)
"""


@needs_root
@pytest.mark.parametrize("limit", [1, 4096])
def test_links_swapped_in_at_every_component_lead_nowhere(tmp_path: Path, limit: int) -> None:
    """Names under the backing directory change places with links to the outside while requests walk through them."""
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    for top in (outside, inside):
        (top / "a" / "b").mkdir(parents=True)
        (top / "a" / "b" / "f").write_text("secret" if top is outside else "public")
        (top / "a" / "b" / "sub").mkdir()
    before = {path: (os.lstat(path), path.read_bytes() if path.is_file() else None) for path in outside.rglob("*")}
    os.symlink(outside / "a", inside / "l1")
    os.symlink(outside / "a" / "b", inside / "a" / "l2")
    os.symlink(outside / "a" / "b" / "f", inside / "a" / "b" / "l3")
    volume = volume_of(inside, descriptor_limit=limit)
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, str(inside)], stdout=subprocess.PIPE)
    done = dict.fromkeys(("read", "listed", "made", "changed", "failed"), 0)

    def attempt(what: str, act: Callable[[], Any]) -> Any:
        try:
            result = act()
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.EPERM,
                                   errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR, errno.ENOTEMPTY), error  # fmt: skip
            done["failed"] += 1
            return None
        done[what] += 1
        return result

    try:
        assert swapper.stdout is not None and swapper.stdout.readline()
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            a = attempt("listed", lambda: find(volume, b"a"))
            b = a and attempt("listed", lambda: find(volume, b"b", start=a))
            f = b and attempt("listed", lambda: find(volume, b"f", start=b))
            if b:
                made = [attempt("made", lambda: volume.request(MKDIR, b, name=b"new", mode=0o777).do()),
                        attempt("made", lambda: volume.request(SYMLINK, b, name=b"newl", name2=b"x").do())]  # fmt: skip
                attempt("changed", lambda: volume.request(RMDIR, b, name=b"new").do())
                attempt("changed", lambda: volume.request(UNLINK, b, name=b"newl").do())
                attempt("changed", lambda: volume.request(RENAME, b, name=b"sub", name2=b"sub2", nodeid2=b).do())
                attempt("changed", lambda: volume.request(RENAME, b, name=b"sub2", name2=b"sub", nodeid2=b).do())
                opened = attempt("made", lambda: volume.request(CREATE, b, name=b"c", mode=0o666, flags=os.O_RDWR).do())
                if opened:
                    volume.request(RELEASE, 1, fh=opened.fh).do()
                attempt("changed", lambda: volume.request(UNLINK, b, name=b"c").do())
                for entry in filter(None, [*made, opened]):
                    volume.forget(entry.nodeid, 1)      # what has no name any more holds a descriptor until then
            if f:
                opened = attempt("listed", lambda: volume.request(OPEN, f, flags=os.O_RDWR).do())
                if opened:
                    read = volume.request(READ, f, fh=opened.fh, size=100).receiving(100).do().result()
                    assert b"secret" not in read
                    done["read"] += read == b"public"
                    volume.request(RELEASE, 1, fh=opened.fh).do()
                attempt("changed", lambda: volume.request(SETATTR, f, valid=FATTR_MODE, mode=0o600).do())
                attempt("changed", lambda: volume.request(SETATTR, f, valid=FATTR_SIZE, size=6).do())
                attempt("changed", lambda: volume.request(SETXATTR, f, name=b"trusted.t", size=1, buffer=b"1").do())
                attempt("changed", lambda: volume.request(LINK, b, name2=b"hard", nodeid2=f).do())
                attempt("changed", lambda: volume.request(UNLINK, b, name=b"hard").do())
    finally:
        swapper.kill()
        swapper.communicate()
        volume.close()
    assert all(done.values()), done
    for path, (info, content) in before.items():
        now = os.lstat(path)
        assert (now.st_ino, now.st_mode) == (info.st_ino, info.st_mode)
        assert (now.st_nlink, now.st_size) == (info.st_nlink, info.st_size)
        assert content is None or path.read_bytes() == content
        assert os.listxattr(path, follow_symlinks=False) == []
    assert set(outside.rglob("*")) == set(before)


def test_a_link_has_attributes_of_its_own(core: Volume, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "target").write_text("x")
    os.symlink("target", tmp_path / "link")
    node = find(core, b"link")
    core.request(SETXATTR, node, name=b"trusted.s", size=1, buffer=b"1").do()
    os.rename(tmp_path / "link", tmp_path / "elsewhere")    # another link gets its name
    os.symlink("target", tmp_path / "link")
    core.request(SETXATTR, node, name=b"trusted.t", size=1, buffer=b"1").do()
    assert os.getxattr(tmp_path / "elsewhere", "trusted.t", follow_symlinks=False) == b"1"
    assert os.listxattr(tmp_path / "target") == os.listxattr(tmp_path / "link", follow_symlinks=False) == []
    assert core.request(GETXATTR, node, name=b"trusted.t").receiving(10).do().result() == b"1"


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_read_that_cannot_wait_goes_on_at_once(kind: str, tmp_path: Path) -> None:
    """On the IRP lane's loop: from the page cache, and from a filesystem in memory, where nothing can be asked."""
    shared = Path("/dev/shm")
    if kind == "memory" and not shared.is_dir():
        pytest.skip("needs /dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if kind == "memory" else tmp_path) as top:
        (Path(top) / "file").write_bytes(b"content")
        volume = volume_of(Path(top))
        try:
            nodeid = find(volume, b"file")
            fh = volume.request(OPEN, nodeid).do().fh
            read = volume.request(READ, nodeid, fh=fh, size=100, nowait=True).receiving(100)
            assert read.run() and read.result() == b"content"
            volume.request(RELEASE, nodeid, fh=fh).do()
        finally:
            volume.close()
