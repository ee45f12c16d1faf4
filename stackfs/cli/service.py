"""stackfs start and stop: load a filter as a service is started, and the mandatory unload that it cannot refuse."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="The filter.")]
Volume = Annotated[
    str | None,
    typer.Option("-v", "--volume", metavar="VOLUME", help="A mountpoint or volume name; default: all of yours."),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on success.")]


def add(app: typer.Typer) -> None:
    app.command("start", help="Load a filter (as sc start does).")(start)
    app.command("stop", help="Unload a filter whether it likes it or not (as sc stop does).")(stop)


def start(name: Name, volume: Volume = None, quiet: Quiet = False) -> None:
    from stackfs.filterlib import management

    _say(f"{name} loaded", management.load(name, volume), quiet)


def stop(name: Name, volume: Volume = None, quiet: Quiet = False) -> None:
    from stackfs.filterlib import management

    _say(f"{name} unloaded", management.unload(name, volume, mandatory=True), quiet)


def _say(what: str, results: list[dict[str, Any]], quiet: bool) -> None:
    from stackfs.cli.tables import escape

    if quiet:
        return
    for each in results:
        print(escape(f"{what}: {each['mountpoint'] or each['volume']}"))
        for reason in (each["result"] or {}).get("declined", ()):
            print(escape(f"  not attached: {reason}"))
