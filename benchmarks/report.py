"""Arithmetic and presentation: rounds of figures to medians, ratios, a table, JSON, Markdown."""

import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One line of the table. `target`: a ratio ours/plain to reach; for a figure without a plain side, a limit."""

    name: str
    title: str
    unit: str
    target: float | None = None


@dataclass
class Result:
    figure: Figure
    ours: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Median of ours over median of the other side's."""
        return median(self.ours) / median(self.plain) if self.ours and self.plain else None

    @property
    def met(self) -> bool | None:
        """None: nothing to meet, or nothing measured."""
        if self.figure.target is None or not self.ours:
            return None
        if self.ratio is None:
            return median(self.ours) < self.figure.target
        return self.ratio >= self.figure.target

    def row(self) -> list[str]:
        def shown(values: list[float]) -> str:
            if not values:
                return ""
            return f"{median(values):,.0f}" if median(values) >= 1000 else f"{median(values):.1f}"

        target = self.figure.target
        return [
            f"{self.figure.title}, {self.figure.unit}",
            shown(self.plain),
            shown(self.ours),
            "" if self.ratio is None else f"{self.ratio:.2f}",
            "" if target is None else f"{target:g}" if self.figure.unit.endswith("/s") else f"< {target:g}",
            "" if self.met is None else "yes" if self.met else "NO",
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.figure.name,
            "title": self.figure.title,
            "unit": self.figure.unit,
            "ours": self.ours,
            "plain": self.plain,
            "ours_median": median(self.ours) if self.ours else None,
            "plain_median": median(self.plain) if self.plain else None,
            "ratio": self.ratio,
            "target": self.figure.target,
            "met": self.met,
        }


HEADINGS = ["figure", "plain pyfuse3", "stackfs", "ratio", "target", "met"]


def machine() -> dict[str, str]:
    """What the figures were taken on, and when."""
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
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
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


def machine_line(about: dict[str, str]) -> str:
    return (
        f"{about['date']} · stackfs {about['stackfs']} {about['commit']} · {about['cpu']} · Linux {about['kernel']} · "
        f"Python {about['python']} · pyfuse3 {about['pyfuse3']}"
    )


def print_table(console: Console, about: dict[str, str], results: list[Result]) -> None:
    table = Table(box=box.SIMPLE_HEAD, caption=machine_line(about), caption_justify="left")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    for result in results:
        row = result.row()
        table.add_row(*row, style="bold red" if result.met is False else None)
    console.print(table)


def markdown(about: dict[str, str], results: list[Result]) -> str:
    """The table as docs/performance.md keeps it."""
    rows = [HEADINGS, ["---"] + ["---:"] * (len(HEADINGS) - 1)] + [result.row() for result in results]
    return machine_line(about) + "\n\n" + "".join("| " + " | ".join(row) + " |\n" for row in rows)
