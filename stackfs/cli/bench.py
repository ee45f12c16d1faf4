"""stackfs bench: how fast the lanes are, beside the backing directory and other filesystems (docs/performance.md)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackfs.errors import StackfsError, UsageError

LIMIT = 420.0
"""Seconds that a run as it comes may take; a minute of `make bench` is left for its set-up."""

if TYPE_CHECKING:
    from stackfs.benchmarks.bench import Tell
    from stackfs.benchmarks.report import Results


def add(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Every load on every side; cached too.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, not minutes; the figures say nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 unless every target is met.")] = False,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, max=1000, help="Default: 3.")] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.1, max=3600, help="Of each fio run. Default: 1.5.")
    ] = None,
    job: Annotated[
        list[str] | None, typer.Option("--job", metavar="PATTERN", help="Only these loads; may be repeated.")
    ] = None,
    side: Annotated[
        list[str] | None, typer.Option("--side", metavar="PATTERN", help="Only these sides; may be repeated.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="Where data lies. Default: as TMPDIR says.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Write bench.json, bench.md and the charts there.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Put the result on top of FILE's kept results.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Measure nothing: show what bench.json holds.")
    ] = None,
) -> None:
    """Measure stackfs in each lane, the backing directory and the filesystems that are installed beside it.

    Prints the table of targets. Needs a quiet machine: close to nothing else should run.
    """
    from dataclasses import replace

    try:
        from stackfs.benchmarks import bench as benchmark
    except ModuleNotFoundError as error:
        raise StackfsError(f"the benchmarks are not installed ({error})") from None

    if directory is not None and not directory.is_dir():
        raise UsageError(f"--directory {directory}: no such directory")
    if record is not None:
        _kept(record, "")                  # whether it can be: known before minutes are spent
    if source is not None:
        results = _read(source)
    else:
        settings = (benchmark.Settings.quick if quick else benchmark.Settings)(
            full=full, jobs=tuple(job or ()), sides=tuple(side or ()), directory=directory
        )
        settings = replace(
            settings,
            rounds=rounds or settings.rounds,
            seconds=seconds or settings.seconds,
            limit=None if full or rounds or seconds else LIMIT,
        )
        with _ended_by_sigterm(), _progress() as tell:
            results = benchmark.run(settings, tell)
    if json:
        from stackfs.cli.run import print_json

        print_json(results.as_json())
    else:
        _show(results)
    for path in _write(results, output, record):
        if not json:
            print(f"written: {path}")
    if check and not results.all_met():
        raise typer.Exit(1)
    if not results.figures:
        raise StackfsError(f"nothing could be measured: {results.notes[-1] if results.notes else 'no side is left'}")


def _read(path: Path) -> Results:
    import json

    from stackfs.benchmarks.report import Results

    try:
        return Results.from_json(json.loads(path.read_text()))
    except OSError as error:
        raise UsageError(f"--from {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--from {path}: {error}") from None


def _kept(path: Path, entry: str) -> str:
    """The text of a document with the entry among its kept results."""
    from stackfs.benchmarks.report import keep

    try:
        return keep(path.read_text(), entry)
    except OSError as error:
        raise UsageError(f"--record {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--record {path}: it {error}") from None


def _write(results: Results, output: Path | None, record: Path | None) -> Iterator[Path]:
    """The files that are asked for; each path as it is written."""
    import json

    from stackfs.benchmarks import chart
    from stackfs.benchmarks.report import markdown

    charts = chart.available() and bool(results.figures)
    if output and not charts:
        print("stackfs: no chart: pip install 'stackfs[bench]' brings matplotlib", file=sys.stderr)
    try:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / "bench.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
            yield output / "bench.json"
            (output / "bench.md").write_text(markdown(results, "bench.svg" if charts else None))
            yield output / "bench.md"
            if charts:
                pictures = [output / "bench.svg", output / "bench.png"]
                chart.draw(results, pictures)
                yield from pictures
        if record is not None:
            record.write_text(_kept(record, markdown(results)))
            yield record
    except OSError as error:
        raise StackfsError(f"{error.filename}: {error.strerror}") from None


def _show(results: Results) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from stackfs.benchmarks import report
    from stackfs.benchmarks.targets import GROUPS

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200

    def table(title: str, headings: list[str], rows: list[tuple[list[str], bool | None]], left: int) -> None:
        shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
        for index, heading in enumerate(headings):
            shown.add_column(heading, justify="left" if index < left else "right")
        for row, met in rows:
            shown.add_row(*row, style="bold red" if met is False else None)
        console.print(shown)

    for title, headings, cells in report.matrices(results):
        table(title, headings, [(row, True) for row in cells], 1)
    for group, title in GROUPS.items():
        table(title, list(report.TARGET_HEADINGS), list(report.target_rows(results, group)), 3)
    for note in results.notes:
        console.print(f"[yellow]note:[/] {note}", markup=True, soft_wrap=True)
    console.print(f"{report.machine_line(results)}, {results.took:.0f} s in all", style="dim", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on a terminal; elsewhere a line whenever a tenth is done."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        tenth = -1

        def line(done: int, of: int, text: str) -> None:
            nonlocal tenth
            if of and done * 10 // of > tenth:
                tenth = done * 10 // of
                print(f"stackfs: {done} of {of} runs, {text}", file=sys.stderr, flush=True)

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("beginning", total=None)
        yield lambda done, of, text: progress.update(task, completed=done, total=of, description=text)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the run as ^C does: everything is unmounted first."""

    def interrupt(number: int, frame: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
