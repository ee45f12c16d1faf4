"""The pictures: each ratio beside its target, and for each load the rates of all sides. SVG and PNG, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stackfs.errors import StackfsError

from .jobs import JOBS, Mode
from .report import Results, machine_line, shown, side_title
from .sides import SIDES

COLUMNS = 3
OURS, THEIRS, MISSED, LINE = "#3b7dd8", "#a8adb5", "#d1495b", "#222222"


def available() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw(results: Results, paths: list[Path]) -> None:
    """One picture, written to each path in the format of its suffix. StackfsError: it could not be."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 8, "svg.hashsalt": "stackfs", "svg.fonttype": "none",
                            "axes.spines.top": False, "axes.spines.right": False})  # fmt: skip
    verdicts = [each for each in results.verdicts() if each.ratio is not None]
    panels: list[tuple[Mode, str, list[str]]] = [
        (mode, job, results.sides(mode, [job])) for mode in results.modes() for job in results.jobs(mode)
    ]
    rows = -(-len(panels) // COLUMNS)
    tallest = max((len(sides) for _, _, sides in panels), default=0)
    heights = [0.2 * len(verdicts) + 1.0, (0.2 * tallest + 0.7) * rows]
    figure = pyplot.figure(figsize=(13, sum(heights) + 0.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    _ratios(above.add_subplot(), results, verdicts)
    below.suptitle("rates, logarithmic", fontsize=8, fontweight="bold")
    grid = below.add_gridspec(rows, COLUMNS)
    for index, (mode, job, sides) in enumerate(panels):
        _rates(below.add_subplot(grid[index // COLUMNS, index % COLUMNS]), results, mode, job, sides)
    figure.suptitle(machine_line(results), fontsize=8)
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise StackfsError(f"{error.filename}: {error.strerror}") from None
    finally:
        pyplot.close(figure)


def _ratios(axes: Any, results: Results, verdicts: list[Any]) -> None:
    """Ours over theirs; the black mark is the target. Of the CPU time less is better, and its mark is the most."""
    labels = [
        f"{each.target.title}: {side_title(results, each.target.ours)} / {side_title(results, each.target.theirs)}"
        for each in verdicts
    ]
    places = range(len(verdicts))
    axes.barh(places, [each.ratio for each in verdicts], color=[OURS if each.met else MISSED for each in verdicts])
    for place, each in zip(places, verdicts, strict=True):
        axes.plot([each.target.bound] * 2, [place - 0.45, place + 0.45], color=LINE, linewidth=2)
        axes.annotate(f" {each.ratio:.2f}", (each.ratio, place), va="center")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_title("ratio (black: the target; red: missed)", loc="left", fontweight="bold")
    axes.margins(x=0.08)


def _rates(axes: Any, results: Results, mode: Mode, job: str, sides: list[str]) -> None:
    """A bar for each side, logarithmic: the backing directory is a hundred times as fast as some."""
    places = range(len(sides))
    rates = [figure.rate if (figure := results.figure(mode, job, side)) else 0.0 for side in sides]
    ours = [SIDES[side].kind == "stackfs" for side in sides]
    axes.barh(places, rates, color=[OURS if one else THEIRS for one in ours])
    for place, rate in zip(places, rates, strict=True):
        axes.annotate(f" {shown(rate)}", (rate, place), va="center")
    axes.set_yticks(places, [side_title(results, side) for side in sides])
    axes.invert_yaxis()
    axes.set_title(f"{JOBS[job].title}, {JOBS[job].unit}" + (" (cached)" if mode == "cached" else ""), loc="left")
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 3, max(rates) * 6)
    axes.xaxis.set_visible(False)
