"""The loads: each runs in processes of its own against a directory and returns operations per second."""

import json
import subprocess
import sys
from pathlib import Path

READ_FILE = "data"                      # prepared in the backing directory
READ_FILE_SIZE = 64 << 20
STAT_DIRECTORY = "many"
STAT_FILES = 10_000                    # each asked for once a round: what the kernel knew of it has expired
TIMEOUT = 1.0                           # seconds the kernel may keep names and attributes, on both sides


def prepare(source: Path) -> None:
    """What the loads need, made in a backing directory (not through a mount), and in the page cache."""
    block = bytes(range(256)) * 4096
    with open(source / READ_FILE, "wb") as file:
        for _ in range(READ_FILE_SIZE // len(block)):
            file.write(block)
    (source / STAT_DIRECTORY).mkdir()
    for number in range(STAT_FILES):
        (source / STAT_DIRECTORY / f"f{number:06}").write_bytes(b"x" * 100)
    (source / "new").mkdir()


def fio(directory: Path, jobs: int, seconds: float, mode: str = "randread", block: str = "4k") -> float:
    """Operations per second of fio's psync engine on READ_FILE, over all jobs."""
    result = subprocess.run(
        [
            "fio", "--name=job", f"--filename={directory / READ_FILE}", f"--size={READ_FILE_SIZE}", f"--rw={mode}",
            f"--bs={block}", "--ioengine=psync", f"--numjobs={jobs}", f"--runtime={seconds}", "--time_based",
            "--group_reporting", "--invalidate=0", "--randrepeat=0", "--norandommap", "--output-format=json",
        ],
        check=True, capture_output=True, text=True, timeout=seconds * 3 + 30, cwd="/",
    )  # fmt: skip
    side = "write" if "write" in mode else "read"
    return float(sum(job[side]["iops"] for job in json.loads(result.stdout)["jobs"]))


def metadata(directory: Path, kind: str, seconds: float) -> dict[str, float]:
    """Operations per second by name: stat, or create and unlink."""
    script = Path(__file__).with_name("metadata_job.py")
    if kind == "stat":
        arguments = ["stat", str(directory / STAT_DIRECTORY), str(STAT_FILES)]
    else:
        arguments = ["make", str(directory / "new"), str(seconds), str(TIMEOUT * 1.1)]
    result = subprocess.run(
        [sys.executable, "-I", str(script), *arguments],
        check=True, capture_output=True, text=True, timeout=seconds * 10 + 60, cwd="/",
    )  # fmt: skip
    return {name: operations / took for name, (operations, took) in json.loads(result.stdout).items()}
