"""`make bench`: stackfs with passthrough and audit attached against a plain pyfuse3 filesystem, and the stack alone.

Both sides are mounted at the same time over equal directories, with the page cache out of the way (direct I/O) and
with equal time-outs, so that every request measured reaches the daemon. The loads take turns: each figure is taken
on one side, then at once on the other, in rounds, and the side that begins changes from round to round. What is
printed is the median of the rounds; the ratio is median over median. docs/performance.md says what each figure means.

    python -m benchmarks [--json FILE] [--markdown] [--check] [--rounds N] [--seconds S] [--full]
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks import jobs, mounts
from benchmarks.report import Figure, Result, busy, machine, markdown, print_table

RATIOS = (
    Figure("read_4k_4_jobs", "4 KiB random read, 4 jobs", "/s", 0.6),
    Figure("read_4k_1_job", "4 KiB random read, 1 job", "/s", 0.4),
    Figure("stat", "stat", "/s", 0.8),
    Figure("create", "create", "/s", 1.0),
    Figure("unlink", "unlink", "/s", 1.0),
)
FULL_RATIOS = (
    Figure("write_4k_4_jobs", "4 KiB random write, 4 jobs", "/s"),
    Figure("write_4k_1_job", "4 KiB random write, 1 job", "/s"),
    Figure("read_128k_1_job", "128 KiB sequential read, 1 job", "/s"),
    Figure("write_128k_1_job", "128 KiB sequential write, 1 job", "/s"),
)
BUSY = 0.1      # of the processors: more and the figures say little, since stackfs uses more of them at a time
PAIR = Figure("native_pair", "the stack alone, a native pre and post pair", "ns", 60.0)

Load = Callable[[Path, float], dict[str, float]]


def read_4k_4(directory: Path, seconds: float) -> dict[str, float]:
    return {"read_4k_4_jobs": jobs.fio(directory, 4, seconds)}


def read_4k_1(directory: Path, seconds: float) -> dict[str, float]:
    return {"read_4k_1_job": jobs.fio(directory, 1, seconds)}


def stat(directory: Path, seconds: float) -> dict[str, float]:
    return jobs.metadata(directory, "stat", seconds)


def make(directory: Path, seconds: float) -> dict[str, float]:
    return jobs.metadata(directory, "make", seconds / 2)


def full(directory: Path, seconds: float) -> dict[str, float]:
    return {
        "write_4k_4_jobs": jobs.fio(directory, 4, seconds, "randwrite"),
        "write_4k_1_job": jobs.fio(directory, 1, seconds, "randwrite"),
        "read_128k_1_job": jobs.fio(directory, 1, seconds, "read", "128k"),
        "write_128k_1_job": jobs.fio(directory, 1, seconds, "write", "128k"),
    }


def native_pair() -> list[float]:
    """Nanoseconds an operation takes through one native pre and post pair, without a mount; five runs."""
    from stackfs.cext import stack

    stack.time_native_pair(100_000)
    return [float(stack.time_native_pair(2_000_000)) for _ in range(5)]


def compare(
    console: Console, work: Path, filters: list[str], loads: list[Load], rounds: int, seconds: float
) -> dict[str, Result]:
    """Both sides mounted, the loads in turns. Figure name -> result."""
    results = {figure.name: Result(figure) for figure in (*RATIOS, *FULL_RATIOS)}
    folders = {name: work / name for name in ("plain_source", "plain", "ours_source", "ours", "trail")}
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    for name in ("plain_source", "ours_source"):
        jobs.prepare(folders[name])
    options = ["cache=strict", *(f"filter={name}" for name in filters)]
    if "audit" in filters:
        options += [f"audit.directory={folders['trail']}", f"audit.key={work / 'audit.key'}"]
    timeouts = [f"--entry-timeout={jobs.TIMEOUT}", f"--attr-timeout={jobs.TIMEOUT}"]
    with (
        mounts.plain(folders["plain_source"], folders["plain"], "--direct-io", *timeouts) as plain,
        mounts.stackfs(folders["ours_source"], folders["ours"], options) as ours,
    ):
        for number in range(rounds):
            for load in loads:
                order = ("plain", "ours") if number % 2 == 0 else ("ours", "plain")
                for side in order:
                    for name, value in load(plain if side == "plain" else ours, seconds).items():
                        getattr(results[name], side).append(value)
            console.print(f"round {number + 1} of {rounds}: {summary(results)}", highlight=False, soft_wrap=True)
    return results


def summary(results: dict[str, Result]) -> str:
    return ", ".join(f"{name} {r.ours[-1] / r.plain[-1]:.2f}" for name, r in results.items() if r.ours and r.plain)


def missing(*programs: str) -> list[str]:
    return [program for program in programs if shutil.which(program) is None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="stackfs against plain pyfuse3")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round (- for standard output)")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/performance.md keeps it")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is not met")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each load on each side in each round")
    parser.add_argument("--filter", action="append", metavar="NAME", help="attach these (default: passthrough, audit)")
    parser.add_argument("--full", action="store_true", help="more loads and 15 rounds (as with FULL=1)")
    arguments = parser.parse_args()
    filters = arguments.filter or ["passthrough", "audit"]
    everything = arguments.full or os.environ.get("FULL", "") not in ("", "0")
    console = Console(stderr=arguments.json == "-")
    console.width = max(console.width, 120)
    if absent := missing("fio"):
        print(f"make bench: {', '.join(absent)} is missing: apt-get install {' '.join(absent)}", file=sys.stderr)
        return 1

    rounds = max(arguments.rounds, 15) if everything else arguments.rounds
    loads: list[Load] = [read_4k_4, read_4k_1, stat, make]
    if everything:
        loads.append(full)
    figures = [*RATIOS, *(FULL_RATIOS if everything else ())]
    begin = time.monotonic()
    about = machine()
    if (load := busy()) > BUSY:
        console.print(f"others use {load:.0%} of this machine: expect ratios that are too low", style="yellow")
    pair = Result(PAIR, ours=native_pair())
    console.print(f"the stack alone: {median(pair.ours):.1f} ns for a native pre and post pair", highlight=False)
    work = Path(tempfile.mkdtemp(prefix="stackfs-bench-"))
    try:
        results = compare(console, work, filters, loads, rounds, arguments.seconds)
    except mounts.MountFailed as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    finally:
        if not any(mounts.is_mounted(work / side) for side in ("plain", "ours")):
            shutil.rmtree(work, ignore_errors=True)
    lines = [*(results[figure.name] for figure in figures), pair]
    print_table(console, about, lines)
    console.print(f"{rounds} rounds, {time.monotonic() - begin:.0f} s", highlight=False)
    if arguments.markdown:
        print(markdown(about, lines))
    if arguments.json:
        text = json.dumps({"machine": about, "rounds": rounds, "results": [line.as_json() for line in lines]}, indent=2)
        if arguments.json == "-":
            print(text)
        else:
            Path(arguments.json).write_text(text + "\n")
    return 1 if arguments.check and any(line.met is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
