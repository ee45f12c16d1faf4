"""Arithmetic and presentation: rounds of figures to medians, ratios, the tables, JSON, Markdown."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from .jobs import JOBS, Job, Mode, Outcome
from .sides import SIDES
from .targets import CIPHER_BOUND, CIPHER_TITLE, PAIR_LIMIT, PAIR_TITLE, TARGETS, Target

SCHEMA = 1
Key = tuple[Mode, str, str]            # mode, job, side


@dataclass
class Figure:
    """One job on one side: a value for each round. rates: operations a second; cpu: daemon's seconds an operation."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.rates.append(outcome.operations / outcome.seconds)
        if outcome.cpu is not None:
            self.cpu.append(outcome.cpu / outcome.operations)

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def cpu_us(self) -> float | None:
        return median(self.cpu) * 1e6 if self.cpu else None


@dataclass(frozen=True)
class Verdict:
    """A target held against the figures. ratio and met: None where one of the two sides has no figure."""

    target: Target
    ours: Figure | None
    theirs: Figure | None
    ratio: float | None
    met: bool | None


@dataclass
class Results:
    """Everything one run of the benchmark found."""

    machine: dict[str, str]
    rounds: int
    seconds: float
    figures: dict[Key, Figure] = field(default_factory=dict)
    lanes: dict[str, str] = field(default_factory=dict)
    """The lane that a side's reads took, where it is stackfs."""
    notes: list[str] = field(default_factory=list)
    """What was left out or went wrong, a line each."""
    pair: list[float] = field(default_factory=list)
    cipher: list[tuple[float, float]] = field(default_factory=list)
    """MB/s that the encryption filter's core and `openssl speed` do, a pair a round; empty: there is no openssl."""
    took: float = 0.0

    def figure(self, mode: Mode, job: str, side: str) -> Figure | None:
        found = self.figures.get((mode, job, side))
        return found if found is not None and found.rates else None

    def add(self, mode: Mode, job: str, side: str, outcome: Outcome) -> None:
        self.figures.setdefault((mode, job, side), Figure()).add(outcome)

    # the targets

    def verdicts(self) -> list[Verdict]:
        return [self.verdict(target) for target in TARGETS]

    def verdict(self, target: Target) -> Verdict:
        ours, theirs = (self.figure(target.mode, target.job, side) for side in (target.ours, target.theirs))
        ratio = None
        if ours is not None and theirs is not None:
            if target.measure == "rate":
                ratio = ours.rate / theirs.rate
            elif ours.cpu and theirs.cpu and median(theirs.cpu) > 0:
                ratio = median(ours.cpu) / median(theirs.cpu)
        return Verdict(target, ours, theirs, ratio, None if ratio is None else target.met(ratio))

    @property
    def pair_met(self) -> bool | None:
        return median(self.pair) < PAIR_LIMIT if self.pair else None

    @property
    def cipher_ratio(self) -> float | None:
        return median(ours / theirs for ours, theirs in self.cipher) if self.cipher else None

    @property
    def cipher_met(self) -> bool | None:
        return None if self.cipher_ratio is None else self.cipher_ratio >= CIPHER_BOUND

    def all_met(self) -> bool:
        """Every target measured and met. What could not be measured is not met."""
        return all(verdict.met for verdict in self.verdicts()) and bool(self.pair_met) and bool(self.cipher_met)

    # the measured part of the table of all sides

    def modes(self) -> list[Mode]:
        modes: tuple[Mode, ...] = ("direct", "cached")
        return [mode for mode in modes if any(key[0] == mode for key in self.figures)]

    def jobs(self, mode: Mode) -> list[str]:
        return [job for job in JOBS if any(key[:2] == (mode, job) for key in self.figures)]

    def sides(self, mode: Mode, jobs: list[str]) -> list[str]:
        return [side for side in SIDES if any(self.figure(mode, job, side) for job in jobs)]

    # for machines

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "took": round(self.took, 1),
            "notes": self.notes,
            "sides": {
                name: {"title": SIDES[name].title, "lane": self.lanes.get(name)}
                for name in dict.fromkeys(side for _, _, side in self.figures)
            },
            "figures": [
                {
                    "mode": mode, "job": job, "side": side, "unit": JOBS[job].unit, "rates": figure.rates,
                    "rate": figure.rate, "cpu": figure.cpu, "cpu_us": figure.cpu_us,
                }
                for (mode, job, side), figure in self.figures.items() if figure.rates
            ],
            "targets": [
                {
                    "group": each.target.group, "title": each.target.title, "job": each.target.job,
                    "ours": each.target.ours, "theirs": each.target.theirs, "measure": each.target.measure,
                    "bound": each.target.bound, "ratio": each.ratio, "met": each.met,
                }
                for each in self.verdicts()
            ],
            "native_pair": {"ns": self.pair, "bound": PAIR_LIMIT, "met": self.pair_met},
            "cipher": {
                "mb_s": list(map(list, self.cipher)), "bound": CIPHER_BOUND, "ratio": self.cipher_ratio,
                "met": self.cipher_met,
            },
            "all_met": self.all_met(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Results:
        """What as_json gave. ValueError: it is something else."""
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']!r}, not {SCHEMA}")
            results = cls(value["machine"], value["rounds"], value["seconds"], notes=value["notes"], took=value["took"])
            results.pair = value["native_pair"]["ns"]
            results.cipher = [(ours, theirs) for ours, theirs in value["cipher"]["mb_s"]]
            results.lanes = {name: side["lane"] for name, side in value["sides"].items() if side["lane"]}
            for each in value["figures"]:
                if each["job"] in JOBS and each["side"] in SIDES:
                    results.figures[each["mode"], each["job"], each["side"]] = Figure(each["rates"], each["cpu"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a result of stackfs bench ({error!r})") from None
        return results


# ---- tables ---------------------------------------------------------------------------------------------------------

TARGET_HEADINGS = (
    "work", "stackfs", "against", "ours", "theirs", "CPU µs, ours", "CPU µs, theirs", "ratio", "target", "met",
)  # fmt: skip


_MET = {True: "met", False: "NOT met", None: "not measured"}


def shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def side_title(results: Results, name: str) -> str:
    """A side's title without the name of the project, with the lane where it is not the one that was meant."""
    side = SIDES[name]
    title = side.title.removeprefix("stackfs, ")
    lane = results.lanes.get(name)
    return f"{title} ({lane} lane)" if side.lane is None and lane is not None else title


def target_rows(results: Results, group: str) -> Iterator[tuple[list[str], bool | None]]:
    for verdict in results.verdicts():
        target = verdict.target
        if target.group != group:
            continue
        ours, theirs = verdict.ours, verdict.theirs
        yield [
            f"{target.title}, {JOBS[target.job].unit}" if target.measure == "rate" else target.title,
            side_title(results, target.ours),
            side_title(results, target.theirs),
            shown(ours.rate if ours else None),
            shown(theirs.rate if theirs else None),
            shown(ours.cpu_us if ours else None),
            shown(theirs.cpu_us if theirs else None),
            "" if verdict.ratio is None else f"{verdict.ratio:.2f}",
            f"{'≤' if target.measure == 'cpu' else '≥'} {target.bound:g}",
            _MET[verdict.met],
        ], verdict.met
    if group == "drive":
        value = median(results.pair) if results.pair else None
        yield [
            f"{PAIR_TITLE}, ns", "", "", shown(value), "", "", "", "", f"< {PAIR_LIMIT:g}", _MET[results.pair_met],
        ], results.pair_met  # fmt: skip
    if group == "encryption":
        ours, theirs = (median(each) for each in zip(*results.cipher, strict=True)) if results.cipher else (None, None)
        ratio = results.cipher_ratio
        yield [
            CIPHER_TITLE, "encryption", "openssl speed", shown(ours), shown(theirs), "", "",
            "" if ratio is None else f"{ratio:.2f}", f"≥ {CIPHER_BOUND:g}", _MET[results.cipher_met],
        ], results.cipher_met  # fmt: skip


def matrices(results: Results) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """A table for each mode and kind of load: title, headings, rows (a side, its rate and CPU on each job)."""
    for mode in results.modes():
        for title, wanted in (("4 KiB, operations/s", "4k"), ("1 MiB, MiB/s", "1m"), ("metadata, operations/s", "")):
            jobs = [
                job for job in results.jobs(mode)
                if (JOBS[job].block == wanted if wanted else JOBS[job].scene == "metadata")
            ]  # fmt: skip
            if not jobs:
                continue
            strip = title.split(",")[0] + " "
            headings = ["side", *(_heading(JOBS[job], strip) for job in jobs)]
            rows = []
            for side in results.sides(mode, jobs):
                figures = [results.figure(mode, job, side) for job in jobs]
                rows.append([side_title(results, side), *(_cell(figure) for figure in figures)])
            yield f"{title} · daemon's CPU in µs an operation ({mode})", headings, rows


def _heading(job: Job, strip: str) -> str:
    """A job's title, without what the table's says, and with the unit where that is another than the table's."""
    title = job.title.removeprefix(strip)
    return title if job.unit in ("/s", "MiB/s") else f"{title}, {job.unit}"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    cpu = figure.cpu_us
    return shown(figure.rate) if cpu is None else f"{shown(figure.rate)} · {shown(cpu)}"


def markdown(results: Results, picture: str | None = None) -> str:
    """The result as docs/performance.md keeps it: a heading, the machine, the table of targets, all sides."""
    from .targets import GROUPS

    about = results.machine
    missed = [each for each in results.verdicts() if not each.met]
    lines = [f"### {about['date']}, {about['commit'] or about['stackfs']}", "", machine_line(results), ""]
    for group in GROUPS:
        lines += _markdown_table(list(TARGET_HEADINGS), [row for row, _ in target_rows(results, group)], left=3)
    if picture:
        lines += [f"![ratios and rates]({picture})", ""]
    for title, headings, rows in matrices(results):
        lines += [f"{title}:", "", *_markdown_table(headings, rows, left=1)]
    lines += [f"- {note}" for note in results.notes]
    lines += [""] if results.notes else []
    lines.append(f"{len(TARGETS) - len(missed)} of {len(TARGETS)} ratios met." if missed else "Every ratio met.")
    return "\n".join(lines) + "\n"


def _markdown_table(headings: list[str], rows: list[list[str]], left: int) -> list[str]:
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return ["| " + " | ".join(row) + " |" for row in (headings, rule, *rows)] + [""]


MARKER = "## Kept results"


def keep(text: str, entry: str) -> str:
    """A document with `entry` as the newest under its heading "Kept results". ValueError: it has none."""
    head, found, rest = text.partition(f"{MARKER}\n")
    if not found:
        raise ValueError(f"has no heading {MARKER!r}")
    before, _, older = rest.partition("\n### ")
    older = f"\n### {older}" if older else ""
    return f"{head}{found}{before.rstrip()}\n\n{entry}{older}" if before.strip() else f"{head}{found}\n{entry}{older}"


# ---- the machine ----------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What the figures are taken on, and when."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.machine()
    versions = {}
    for package in ("stackfs", "pyfuse3", "trio"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "?"
    root, commit = Path(__file__).resolve().parent.parent, ""
    if (root / ".git").exists():
        try:
            words = ["git", "rev-parse", "--short", "HEAD"]
            commit = subprocess.run(words, cwd=root, capture_output=True, text=True).stdout.strip()
        except OSError:
            pass
    return {
        "date": date.today().isoformat(),
        "cpu": f"{os.cpu_count()} x {processor}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit,
        **versions,
    }


def busy(seconds: float = 1.0) -> float:
    """How much of the machine's processors others use, 0 to 1."""

    def times() -> tuple[int, int]:
        numbers = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]

    total, idle = times()
    time.sleep(seconds)
    total_after, idle_after = times()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def machine_line(results: Results) -> str:
    about = results.machine
    return (
        f"{about['date']} · stackfs {about['stackfs']} {about['commit']} · {about['cpu']} · Linux {about['kernel']} · "
        f"Python {about['python']} · pyfuse3 {about['pyfuse3']} · {results.rounds} rounds of {results.seconds:g} s"
    )
