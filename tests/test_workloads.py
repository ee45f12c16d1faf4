"""Real programs on a real mount: what people do with a drive, with passthrough and audit attached.

One volume for each cache mode, and for the other lanes, mounted and unmounted with the commands a user types; every
test works in a folder of its own on it. In the end everything is removed through the drive, the trail has to verify,
nothing may be left in the backing directory, and the daemon's log may hold no warning. What touches the mount runs in
other processes with a time limit: a filesystem that hangs fails the test and is unmounted by force.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LIMIT = 110.0           # seconds for one command
FILES = 5000            # in the tree that is copied in

# No test below may depend on, or change, the user's git.
GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@localhost",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@localhost",
}


def needs(*programs: str) -> pytest.MarkDecorator:
    absent = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def run(*command: str | Path, cwd: Path | None = None, ok: Sequence[int] = (0,), limit: float = LIMIT) -> str:
    """Run a command, give what it printed (both outputs). Any exit code but `ok` fails the test."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words, cwd=cwd or "/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **GIT}, timeout=limit, check=False,
    )  # fmt: skip
    text = result.stdout.decode(errors="replace")
    assert result.returncode in ok, f"{' '.join(words)}: exit code {result.returncode}\n{text[-4000:]}"
    return text


def python(code: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    return run(sys.executable, "-I", "-c", code, *arguments, cwd=cwd)


# ---- the volume -----------------------------------------------------------------------------------------------------


@dataclass
class Volume:
    drive: Path
    source: Path
    trail: Path
    key: Path


def command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def is_mounted(mountpoint: Path) -> bool:
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return any(line.split()[4] == str(mountpoint) for line in table.splitlines())


def mount(top: Path, *options: str) -> Volume:
    """`stackfs mount`, as a user types it. Its outputs go to a file: the daemon it leaves behind keeps them open."""
    drive = top / f"{top.name}-{os.getpid()}"       # the last part names the volume and its log
    volume = Volume(drive, top / "source", top / "trail", top / "audit.key")
    volume.drive.mkdir()
    volume.source.mkdir()
    words = [command("stackfs"), "mount", str(volume.source), str(volume.drive), "-o", "verifier"]
    for option in (*options, f"audit.directory={volume.trail}", f"audit.key={volume.key}"):
        words += ["-o", option]
    said = top / "said"
    with said.open("wb") as output:
        code = subprocess.run(
            words, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=60, check=False
        ).returncode
    if code != 0 and os.geteuid() != 0:
        pytest.skip(f"this user cannot mount: {said.read_text().strip()}")
    assert code == 0, said.read_text()
    assert is_mounted(volume.drive)
    return volume


def status_of(volume: Volume) -> dict[str, Any]:
    """What its daemon says. (7: somebody else's daemon on this machine does not answer.)"""
    answer = json.loads(run(command("stackfs"), "status", "--json", ok=(0, 7)))
    (status,) = [each["status"] for each in answer["volumes"] if each["mountpoint"] == str(volume.drive)]
    return dict(status)


def unmount(volume: Volume) -> None:
    """`stackfs umount`; by force when that fails, which fails the test."""
    try:
        run(command("stackfs"), "umount", volume.drive, limit=60)
        assert not is_mounted(volume.drive)
    finally:
        if is_mounted(volume.drive):
            by_force = ["umount", "-f", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
            subprocess.run([*by_force, str(volume.drive)], timeout=30, check=False)


VOLUMES = {
    "normal": ("filter=passthrough", "filter=audit", "cache=normal"),
    "strict": ("filter=passthrough", "filter=audit", "cache=strict"),
    "irp": ("filter=passthrough", "filter=audit", "cache=strict", "lanes=irp"),
    "bypass": ("filter=audit", "audit.operations=all -read -write"),
}
ON_SOME = {
    "irp": ("test_fio_verify", "test_compile", "test_mmap", "test_appenders"),
    "bypass": ("test_sqlite", "test_fio_verify", "test_mmap", "test_appenders"),
}
"""The other lanes have what is quick there, and what is about data."""
LONG = {("test_tree_of_5000_files", "strict")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "volume" in metafunc.fixturenames:
        test = metafunc.function.__name__
        names = [name for name in VOLUMES if test in ON_SOME.get(name, (test,))]
        marked = [pytest.param(name, marks=pytest.mark.long) if (test, name) in LONG else name for name in names]
        metafunc.parametrize("volume", marked, indirect=True, scope="module")


@pytest.fixture(scope="module")
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    mounted = mount(tmp_path_factory.mktemp(f"workload-{request.param}"), *VOLUMES[request.param])
    try:
        status = status_of(mounted)
        log = Path(status["log"])
        if request.param == "bypass" and status["lanes"]["bypass"] != "on":
            pytest.skip(f"bypass is {status['lanes']['bypass']}")
        yield mounted
        assert os.listdir(mounted.source) == [], "the drive was emptied, its backing directory was not"
    finally:
        unmount(mounted)
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    assert [line for line in lines if re.search(r"level=(warning|error|critical)", line)] == []
    run(command("stackfs"), "audit", "verify", mounted.trail, "--key", mounted.key)


@pytest.fixture
def folder(request: pytest.FixtureRequest, volume: Volume) -> Iterator[Path]:
    """A folder on the drive, removed through the drive."""
    place = volume.drive / request.node.originalname
    run("mkdir", place)
    try:
        yield place
    finally:
        run("rm", "-r", place)


def below(volume: Volume, path: Path) -> Path:
    """The same file in the backing directory."""
    return volume.source / path.relative_to(volume.drive)


# ---- trees ----------------------------------------------------------------------------------------------------------


def make_tree(top: Path, files: int) -> None:
    """A tree with everything that cp -a keeps: odd names, sizes, modes, times, links, holes, attributes, ACLs."""
    choose = random.Random(385)
    top.mkdir()
    folders = [top]
    for number in range(files // 40):
        parent = choose.choice(folders[-30:])
        name = choose.choice([f"folder {number}", f"ö{number}", f"d{number}", f".hidden{number}"])
        folder = parent / name
        folder.mkdir()
        folders.append(folder)
    odd = ["a b", "tab\there", "new\nline", "quote'\"", "-rf", "*", "ünï", "é" * 127, "x" * 255, "\\", "end ", "%s"]
    modes = [0o600, 0o755, 0o444, 0o640, 0o4755, 0o2755, 0o1644] + [0o000] * (os.geteuid() == 0)
    for number in range(files):
        folder = folders[number % len(folders)]
        name = f"{odd[number // 41]}" if number % 41 == 0 and number // 41 < len(odd) else f"file{number}.txt"
        path = folder / name
        size = choose.choice([0, 1, 100, 100, 2000, 2000, 4095, 4096, 4097, 9000, 70000])
        path.write_bytes(choose.randbytes(size))
        if number % 70 == 0:
            os.setxattr(path, "user.colour", choose.randbytes(choose.choice([0, 5, 800])))
        if number % 7 == 0:
            path.chmod(choose.choice(modes))
        if number % 5 == 0:
            os.utime(path, ns=(choose.randrange(10**18), choose.randrange(2 * 10**18)))
        if number % 50 == 0:
            (folder / f"link{number}").symlink_to(choose.choice([name, "/nowhere/at all", "../x" * 40]))
        if number % 60 == 0:
            os.link(path, folders[(number * 7) % len(folders)] / f"hard{number}")
    with (top / os.fsdecode(b"not utf-8 \xff\xfe")).open("wb") as file:
        file.write(b"bytes")
    with (top / "holes").open("wb") as file:
        for offset in (1 << 20, 12 << 20):
            file.seek(offset)
            file.write(b"data")
        file.truncate(16 << 20)
    (top / "empty").mkdir(mode=0o2770)
    if shutil.which("setfacl"):
        subprocess.run(["setfacl", "-m", "u:12345:r--,g:23456:rw-", str(top / "holes")], check=True)
        subprocess.run(["setfacl", "-d", "-m", "u:12345:r-x", str(top / "empty")], check=True)
    for number, folder in enumerate(reversed(folders)):
        os.utime(folder, ns=(10**18 + number, 1_234_567_890_123_456_789 + number))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tree") / "tree"
    make_tree(top, FILES)
    return top


def assert_equal_trees(one: Path, other: Path) -> None:
    assert run("diff", "-r", "--no-dereference", one, other) == ""
    if shutil.which("rsync"):
        assert run("rsync", "-n", "--checksum", "-aHAX", "--delete", "-i", f"{one}/", f"{other}/") == ""


def test_tree_of_5000_files(tree: Path, folder: Path, volume: Volume, tmp_path: Path) -> None:
    """cp -a in, diff -r and rsync find nothing; the backing directory has the same; cp -a out again is the same."""
    copy = folder / "tree"
    run("cp", "-a", tree, copy)
    assert_equal_trees(tree, copy)
    assert_equal_trees(tree, below(volume, copy))
    assert below(volume, copy / "holes").stat().st_blocks < 1000, "the holes were filled"
    run("cp", "-a", copy, tmp_path / "out")
    assert_equal_trees(tree, tmp_path / "out")


def test_tree_moved_and_copied_on_the_drive(folder: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "small", 400)
    run("cp", "-a", tmp_path / "small", folder / "one")
    run("cp", "-a", folder / "one", folder / "two")
    run("mv", folder / "one", folder / "three")
    assert_equal_trees(tmp_path / "small", folder / "two")
    assert_equal_trees(tmp_path / "small", folder / "three")


@needs("rsync")
def test_rsync_in_and_again(folder: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "small", 400)
    os.mkfifo(tmp_path / "small" / "pipe")
    run("rsync", "-aHAX", f"{tmp_path}/small/", f"{folder}/copy/")
    assert run("rsync", "-aHAX", "-i", f"{tmp_path}/small/", f"{folder}/copy/") == ""
    assert run("rsync", "-n", "--checksum", "-aHAX", "--delete", "-i", f"{tmp_path}/small/", f"{folder}/copy/") == ""
    (tmp_path / "small" / "file9.txt").unlink(missing_ok=True)
    next(iter((tmp_path / "small").rglob("file22.txt"))).write_bytes(b"changed")
    run("rsync", "-aHAX", "--delete", f"{tmp_path}/small/", f"{folder}/copy/")
    assert run("rsync", "-n", "--checksum", "-aHAX", "--delete", "-i", f"{tmp_path}/small/", f"{folder}/copy/") == ""


@needs("tar")
def test_tar(folder: Path, tmp_path: Path) -> None:
    """A tree packed on the drive, unpacked on the drive, and compared by tar itself and by diff."""
    make_tree(tmp_path / "small", 400)
    run("tar", "-C", tmp_path, "--xattrs", "--acls", "-cSf", folder / "small.tar", "small")
    run("tar", "-C", folder, "--xattrs", "--acls", "-xpSf", folder / "small.tar")
    assert run("tar", "-C", folder, "--compare", "-f", folder / "small.tar") == ""
    assert_equal_trees(tmp_path / "small", folder / "small")


# ---- programs -------------------------------------------------------------------------------------------------------


@needs("git")
def test_git(folder: Path) -> None:
    """A repository over a real source tree: add, commit, branch, merge, gc, clone; fsck finds nothing anywhere."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [library / name for name in ("json", "email", "asyncio", "importlib") if (library / name).is_dir()]
    repository = folder / "repository"
    run("mkdir", repository)
    run("cp", "-a", *sources, repository)
    for words in (
        ["init", "-q", "-b", "main"], ["add", "-A", "-f", "."], ["commit", "-q", "-m", "one"],
        ["switch", "-q", "-c", "side"], ["mv", "json", "jayson"], ["commit", "-q", "-m", "two"],
        ["switch", "-q", "main"], ["rm", "-q", "-r", "email"], ["commit", "-q", "-m", "three"],
        ["merge", "-q", "-m", "four", "side"], ["gc", "-q", "--prune=now"],
    ):  # fmt: skip
        run("git", *words, cwd=repository)
    assert run("git", "status", "--porcelain", cwd=repository) == ""
    run("git", "clone", "-q", "--no-hardlinks", repository, folder / "clone")
    for place in (repository, folder / "clone"):
        report = run("git", "fsck", "--full", "--strict", "--no-progress", cwd=place)
        assert "error" not in report and "missing" not in report and "corrupt" not in report, report
    run("diff", "-r", "-x", ".git", repository, folder / "clone")


WRITER = """
import sqlite3, sys
path, mode, name, rows = sys.argv[1:]
db = sqlite3.connect(path, timeout=60, isolation_level=None)
assert db.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode
db.execute("create table if not exists line (who text, number integer, text text)")
for number in range(int(rows)):
    db.execute("begin immediate")
    db.execute("insert into line values (?, ?, ?)", (name, number, name * (number % 50)))
    db.execute("commit")
db.close()
"""
CHECK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("pragma integrity_check").fetchone()[0], db.execute("select count(*) from line").fetchone()[0])
"""


@pytest.mark.parametrize("mode", ["delete", "truncate", "wal"])
def test_sqlite(folder: Path, mode: str) -> None:
    """Two processes write one database at the same time; no row is lost and the database is sound."""
    path = folder / "lines.db"
    python(WRITER, path, mode, "first", "1")
    writers = [
        subprocess.Popen([sys.executable, "-I", "-c", WRITER, str(path), mode, name, "100"], cwd="/")
        for name in ("one", "two")
    ]
    try:
        assert [writer.wait(LIMIT) for writer in writers] == [0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert python(CHECK, path).split() == ["ok", "201"]
    if shutil.which("sqlite3"):
        assert run("sqlite3", path, "pragma integrity_check").strip() == "ok"


@needs("fio")
@pytest.mark.parametrize(
    "name, extra",
    [
        ("random", ["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--size=8m", "--numjobs=4"]),
        ("odd", ["--rw=randwrite", "--bsrange=1k-64k", "--bs_unaligned", "--ioengine=psync", "--size=8m"]),
        ("sequential", ["--rw=write", "--bs=1m", "--ioengine=psync", "--size=32m", "--fsync=8"]),
        ("o_direct", ["--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=16", "--direct=1", "--size=8m"]),
        ("mmap", ["--rw=randwrite", "--bs=4k", "--ioengine=mmap", "--size=8m"]),
        ("mixed", ["--rw=randrw", "--bs=4k", "--ioengine=psync", "--size=8m", "--verify_backlog=64"]),
    ],
)
def test_fio_verify(folder: Path, name: str, extra: list[str]) -> None:
    """What was written is read back with its checksum."""
    report = run(
        "fio", f"--name={name}", f"--directory={folder}", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
        "--output-format=json", *extra, cwd=folder,
    )  # fmt: skip
    jobs = json.loads(report[report.index("{") :])["jobs"]
    assert all(job["error"] == 0 for job in jobs)
    assert all(job["read"]["io_bytes"] >= job["write"]["io_bytes"] > 0 for job in jobs)


MAKEFILE = """
CFLAGS = -O1 -Wall -Werror
program: main.o one.o two.o three.o
\tgcc -o $@ $^
%.o: %.c all.h
\tgcc $(CFLAGS) -c -o $@ $<
"""


@needs("gcc", "make")
def test_compile(folder: Path) -> None:
    """A C project built by make with four jobs, run from the drive, touched, and built again in part."""
    files = {"Makefile": MAKEFILE, "all.h": "int one(void), two(void), three(void);\n"}
    for number, name in enumerate(("one", "two", "three"), 1):
        files[f"{name}.c"] = f'#include "all.h"\nint {name}(void) {{ return {number}; }}\n'
    files["main.c"] = (
        '#include <stdio.h>\n#include "all.h"\nint main(void)\n{\n    printf("%d\\n", one() + two() + three());\n}\n'
    )
    for name, text in files.items():
        python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", folder / name, text)
    run("make", "-j4", cwd=folder)
    assert run(folder / "program") == "6\n"
    assert "up to date" in run("make", cwd=folder)
    python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", folder / "two.c",
           '#include "all.h"\nint two(void) { return 20; }\n')  # fmt: skip
    again = run("make", cwd=folder)
    assert "two.c" in again and "one.c" not in again
    assert run(folder / "program") == "24\n"


def test_python_package(folder: Path) -> None:
    """A package copied in, compiled and imported from the drive; its bytecode is written there and found again."""
    library = Path(sysconfig.get_paths()["stdlib"])
    run("cp", "-a", library / "json", folder / "jayson")
    run("find", folder, "-name", "__pycache__", "-prune", "-exec", "rm", "-r", "{}", "+")
    run(sys.executable, "-I", "-m", "compileall", "-q", folder)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import jayson; print(jayson.dumps([1]), jayson.__cached__)"
    answer, cached = python(code, folder).split(" ", 1)
    assert answer == "[1]"
    assert run("stat", "-c", "%s", cached.strip()) != "0"


MAPPED = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
size = 5 * mmap.PAGESIZE + 100
os.ftruncate(fd, size)
with mmap.mmap(fd, size) as shared:
    for page in range(6):
        shared[page * mmap.PAGESIZE : page * mmap.PAGESIZE + 4] = b"pg%02d" % page
    shared.flush()
    assert os.pread(fd, 4, 3 * mmap.PAGESIZE) == b"pg03"
    os.pwrite(fd, b"WROTE", 4 * mmap.PAGESIZE)
    assert shared[4 * mmap.PAGESIZE : 4 * mmap.PAGESIZE + 5] == b"WROTE"
    shared[size - 3 : size] = b"end"
with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as private:
    private[0:4] = b"mine"
    assert os.pread(fd, 4, 0) == b"pg00"
os.fsync(fd)
os.close(fd)
"""


def test_mmap(folder: Path, volume: Volume) -> None:
    """Shared mappings and read(2), write(2) see each other; private ones keep their changes; all reaches the base."""
    run_in = folder / "mapped"
    python(MAPPED, run_in)
    data = below(volume, run_in).read_bytes()
    page = os.sysconf("SC_PAGESIZE")
    assert len(data) == 5 * page + 100
    assert [data[n * page : n * page + 4] for n in (0, 1, 2, 3, 5)] == [b"pg00", b"pg01", b"pg02", b"pg03", b"pg05"]
    assert data[4 * page : 4 * page + 5] == b"WROTE" and data.endswith(b"end")


APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
for number in range(500):
    os.write(fd, f"{sys.argv[2]} {number}\\n".encode())
os.close(fd)
"""


def test_appenders(folder: Path) -> None:
    """Four processes append lines to one log with O_APPEND; every line is there, whole, and in its writer's order."""
    log = folder / "log"
    writers = [
        subprocess.Popen([sys.executable, "-I", "-c", APPEND, str(log), str(name)], cwd="/") for name in range(4)
    ]
    try:
        assert [writer.wait(LIMIT) for writer in writers] == [0] * 4
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    lines = run("cat", log).splitlines()
    assert len(lines) == 2000
    for name in range(4):
        assert [line for line in lines if line.startswith(f"{name} ")] == [f"{name} {n}" for n in range(500)]


CHURN = """
import hashlib, os, random, sys
top, seed = sys.argv[1], int(sys.argv[2])
choose, known = random.Random(seed), {}
for number in range(1500):
    act = choose.random()
    if act < 0.45 or not known:
        name, data = f"{seed}-{choose.randrange(200)}", choose.randbytes(choose.randrange(6000))
        with open(f"{top}/{name}.new", "wb") as file:
            file.write(data)
        os.rename(f"{top}/{name}.new", f"{top}/{name}")
        known[name] = data
    elif act < 0.75:
        name = choose.choice(sorted(known))
        assert open(f"{top}/{name}", "rb").read() == known[name], name
    elif act < 0.9:
        name, target = choose.choice(sorted(known)), f"{seed}-{choose.randrange(200)}"
        os.rename(f"{top}/{name}", f"{top}/{target}")
        data = known.pop(name)
        known[target] = data
    else:
        name = choose.choice(sorted(known))
        os.unlink(f"{top}/{name}")
        del known[name]
for name in sorted(known):
    print(name, hashlib.sha256(known[name]).hexdigest())
"""


def test_churn(folder: Path, volume: Volume) -> None:
    """Three processes create, replace, read, rename and remove in one directory; each finds what it left."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-I", "-c", CHURN, str(folder), str(seed)], cwd="/", stdout=subprocess.PIPE, text=True
        )
        for seed in range(3)
    ]
    expected: dict[str, str] = {}
    try:
        for worker in workers:
            output, _ = worker.communicate(timeout=LIMIT)
            assert worker.returncode == 0
            expected.update((line.split()[0], line.split()[1]) for line in output.splitlines())
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert set(run("ls", folder).split()) == set(expected)
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in below(volume, folder).iterdir()}
    assert found == expected
