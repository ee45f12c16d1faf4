"""The loads: what they are, and how one is run against a directory. Each runs in processes of its own.

A job ends within its limit or raises JobFailed; what hangs in a filesystem under test is left to the unmount.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

DATA_FILE = "data"                     # in the backing directory of the data scene
DATA_SIZE = 64 << 20
CACHED_SIZE = 512 << 20                # where each block counts once
MANY = "many"                          # a directory of files, in the backing directory of the metadata scene
TIMEOUT = 1.0                          # seconds the kernel may keep names and attributes, on every side
LIMIT = 60.0                           # seconds a job may take longer than it should
TREE_FOLDER = 25                       # files in each folder of the tree

Scene = Literal["data", "metadata"]
Mode = Literal["direct", "cached"]


class JobFailed(Exception):
    """One line that says what went wrong."""


@dataclass(frozen=True)
class Job:
    """One load. mode, block, jobs: fio's; for metadata, the name is the worker's word."""

    name: str
    title: str
    unit: str
    scene: Scene
    mode: str = ""
    block: str = ""
    jobs: int = 1


def _fio_jobs() -> tuple[Job, ...]:
    kinds = (
        ("read_4k", "4 KiB random read", "randread", "4k", "/s"),
        ("write_4k", "4 KiB random write", "randwrite", "4k", "/s"),
        ("mixed_4k", "4 KiB random, 70 % reads", "randrw", "4k", "/s"),
        ("read_1m", "1 MiB sequential read", "read", "1m", "MiB/s"),
        ("write_1m", "1 MiB sequential write", "write", "1m", "MiB/s"),
    )
    return tuple(
        Job(f"{name}_{jobs}", f"{title}, {jobs} job{'s' if jobs > 1 else ''}", unit, "data", mode, block, jobs)
        for name, title, mode, block, unit in kinds
        for jobs in (1, 4)
    )


# In this order: each pair on the same files has others between the two, so that what the kernel knows can expire.
METADATA_JOBS = (
    Job("stat", "stat", "/s", "metadata"),
    Job("create", "create", "/s", "metadata"),
    Job("unpack", "unpack a tree", "files/s", "metadata"),
    Job("open_read_close", "open, read, close", "/s", "metadata"),
    Job("unlink", "unlink", "/s", "metadata"),
    Job("remove", "remove a tree", "files/s", "metadata"),
    Job("readdir", "readdir", "names/s", "metadata"),
)
JOBS = {job.name: job for job in (*_fio_jobs(), *METADATA_JOBS)}

_SHARES = {"stat": MANY, "open_read_close": MANY, "readdir": MANY, "create": "new", "unlink": "new", "unpack": "tree",
           "remove": "tree"}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one run of a job gave: operations, seconds, and the processor seconds the daemon spent (None: no daemon)."""

    operations: float
    seconds: float
    cpu: float | None = None


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, all its threads, those that have ended too: its CPU clock (clock_getcpuclockid)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        raise JobFailed("its daemon is gone") from None


# ---- fio ------------------------------------------------------------------------------------------------------------


def size_of_data(mode: Mode) -> int:
    """Bytes of DATA_FILE."""
    return DATA_SIZE if mode == "direct" else CACHED_SIZE


def prepare_data(directory: Path, size: int) -> None:
    """The file that fio works on: written, and so in the page cache."""
    block = bytes(range(256)) * 4096
    with open(directory / DATA_FILE, "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def fio(job: Job, directory: Path, seconds: float, mode: Mode, o_direct: bool) -> Outcome:
    """fio's psync engine on DATA_FILE: operations of all its processes, and what they took.

    cached: what the kernel has of the file is dropped first, no block is asked for twice, and what was written is
    synced: at random within the time that counts, in sequence after it, so that the disk is not what is measured.
    """
    in_mode = {
        "direct": ["--time_based", "--invalidate=0", "--norandommap"],
        "cached": ["--invalidate=0", f"--end_fsync={int(job.mode == 'randwrite')}"],
    }
    if mode == "cached":
        settle(directory / DATA_FILE)
    command = [
        "fio", f"--name={job.name}", f"--filename={directory / DATA_FILE}", f"--size={size_of_data(mode)}",
        f"--rw={job.mode}", f"--bs={job.block}", "--ioengine=psync", f"--numjobs={job.jobs}",
        f"--runtime={round(seconds * 1000)}ms", "--group_reporting", "--randrepeat=0", "--fallocate=none",
        f"--direct={int(o_direct)}", "--output-format=json", *in_mode[mode],
    ]  # fmt: skip
    if job.mode == "randrw":
        command.append("--rwmixread=70")
    process = subprocess.Popen(
        command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said, complaint = process.communicate(timeout=seconds + LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()                 # it may not die before the mount is gone: nobody waits for it here
        raise JobFailed(f"{job.title}: fio did not end within {seconds + LIMIT:.0f} s") from None
    except BaseException:
        process.kill()
        raise
    if mode == "cached":
        settle(directory / DATA_FILE)
    return read_fio(job, process.returncode, said, complaint)


def settle(file: Path) -> None:
    """What was written reaches the disk, and the kernel gives up what it has of the file, but for what lies below."""
    try:
        with open(file, "r+b") as written:
            os.fsync(written.fileno())
            os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise JobFailed(f"{file}: {error.strerror}") from None


def read_fio(job: Job, code: int, said: str, complaint: str) -> Outcome:
    """What fio's JSON says. JobFailed: it failed, or some of its requests did."""
    lines = complaint.strip().splitlines() or said.strip().splitlines()[:1]
    try:
        jobs = json.loads(said[said.index("{"):])["jobs"] if code == 0 else []
    except ValueError:
        jobs = []
    if not jobs or any(each.get("error") for each in jobs):
        raise JobFailed(f"{job.title}: fio failed: {lines[-1] if lines else f'exit code {code}'}")
    sides = [each[side] for each in jobs for side in ("read", "write") if each[side]["total_ios"]]
    if not sides:
        raise JobFailed(f"{job.title}: fio did nothing")
    operations = sum(side["total_ios"] for side in sides)
    rate = sum(side["iops"] for side in sides)
    return Outcome(operations, operations / rate)


# ---- metadata -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """How many files: those that are there for stat, open and readdir, those created, those of the tree."""

    many: int = 1000
    new: int = 500
    tree: int = 500


def prepare_metadata(directory: Path, counts: Counts) -> None:
    """The files that are there before anything is mounted."""
    (directory / MANY).mkdir()
    for number in range(counts.many):
        (directory / MANY / f"f{number:06}").write_bytes(b"x" * 1024)


def make_archive(path: Path, counts: Counts) -> None:
    """The tree, as a tar archive: files of 2 KiB, so many to a folder."""
    from io import BytesIO

    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(counts.tree):
            folder = f"d{number // TREE_FOLDER:03}"
            if number % TREE_FOLDER == 0:
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_000_000_000
                archive.addfile(entry)
            entry = tarfile.TarInfo(f"{folder}/file{number:05}.txt")
            entry.size, entry.mtime = 2048, 1_000_000_000
            archive.addfile(entry, BytesIO(b"stackfs\n" * 256))


class MetadataWorker:
    """A process that does metadata jobs in one directory, one after the other, when it is told to.

    Before a job whose files another has touched it waits until the kernel has forgotten what it knew of them, so that
    every request that counts reaches the daemon.
    """

    def __init__(self, directory: Path, side: str, archive: Path, counts: Counts, expiry: float) -> None:
        self.expiry = expiry
        self.touched: dict[str, float] = {}
        script = Path(__file__).with_name("metadata_job.py")
        numbers = (str(counts.many), str(counts.new))
        words = [sys.executable, "-I", str(script), str(directory), side, str(archive), *numbers]
        self.tree = counts.tree
        self.process = subprocess.Popen(words, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> MetadataWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()

    def run(self, job: Job) -> Outcome:
        share = _SHARES[job.name]
        if share in self.touched:
            time.sleep(max(0.0, self.touched[share] + self.expiry - time.monotonic()))
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{job.name}\n".encode())
            self.process.stdin.flush()
            answer = json.loads(self._line(self.process.stdout, job))
        except (OSError, ValueError):
            raise JobFailed(f"{job.title}: the worker has ended") from None
        self.touched[share] = time.monotonic()
        if "error" in answer:
            raise JobFailed(f"{job.title}: {answer['error']}")
        operations = self.tree if share == "tree" else answer["operations"]
        return Outcome(operations, max(answer["seconds"], 1e-9))

    @staticmethod
    def _line(pipe: IO[bytes], job: Job) -> bytes:
        ready, _, _ = select.select([pipe], [], [], LIMIT)
        if not ready:
            raise JobFailed(f"{job.title}: did not end within {LIMIT:.0f} s")
        return pipe.readline()
