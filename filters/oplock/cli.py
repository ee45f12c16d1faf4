"""`stackfs oplocks`: what is held on the volumes that are mounted, what breaks, and who waits for what."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any

import typer

from stackfs.cli import tables
from stackfs.cli.run import print_json
from stackfs.errors import ExitCode, StackfsError
from stackfs.filters.oplock import PORT, ROOM

app = typer.Typer(help="Show oplocks: what is held, what breaks, who waits.")

HEADINGS = ["VOLUME", "PATH", "LEVEL", "PID", "PROCESS", "FOR", ""]


@app.command("oplocks")
def oplocks(
    volume: Annotated[
        str | None, typer.Argument(metavar="VOLUME", help="This volume only (mountpoint or name).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show who holds an oplock, what it breaks to, and who waits for that and for how long."""
    found, more = collect(volume)
    if json:
        print_json({"files": found, "more": more})
        return
    if not found:
        print("no oplock is held")
        return
    print(tables.columns(HEADINGS, [row for each in found for row in _rows(each)]))
    if more:
        print(f"and {more} files more")


def collect(volume: str | None = None) -> tuple[list[dict[str, Any]], int]:
    """What every volume with the filter tells, and how many files more there are. StackfsError: the one named has
    none."""
    from stackfs import filterlib
    from stackfs.filterlib.daemons import chosen

    files: list[dict[str, Any]] = []
    more = 0
    with chosen(volume) as found:
        names = [client.hello.volume_name for client in found.clients]
    for name in names:
        try:
            with filterlib.connect(PORT, volume=name) as port:
                answer = json_module.loads(port.send(b"list", ROOM))
        except StackfsError as error:
            if volume is not None:
                raise StackfsError(f"{volume}: the filter oplock is not there: {error}", ExitCode.NOT_FOUND) from error
            continue
        files += answer["files"]
        more += answer["more"]
    return files, more


def _rows(file: dict[str, Any]) -> list[list[str]]:
    path = tables.escape(file["path"])
    volume = tables.escape(file["volume"])
    rows = []
    for holder in file["held"]:
        note = ""
        if "breaking_to" in holder:
            note = f"breaks to {holder['breaking_to']}, for {holder['breaking_seconds']:.1f} s"
        elif holder.get("not_taken_over"):
            note = "opened by ioctl, not taken over yet"
        rows.append([volume, path, holder["level"], str(holder["pid"]), tables.escape(holder["name"]),
                     f"{holder['seconds']:.1f} s", note])  # fmt: skip
    for waiter in file["waiting"]:
        rows.append([volume, path, "waits", str(waiter["pid"]), tables.escape(waiter["name"]),
                     f"{waiter['seconds']:.1f} s", waiter["request"]])  # fmt: skip
    return rows
