"""fltmc filters, instances and volumes: what all running volumes report, as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from stackfs.cli.fltmc_output import Json, as_json, print_failure, reporting, wants_json

if TYPE_CHECKING:
    from stackfs.errors import StackfsError

T = TypeVar("T")


def add(app: typer.Typer) -> None:
    app.command("filters", help="List the loaded filters, highest altitude first (the default).")(filters)
    app.command("instances", help="List the instances, of one filter or on one volume.")(instances)
    app.command("volumes", help="List the volumes.")(volumes)


def filters(context: typer.Context, json: Json = False) -> None:
    show_filters(wants_json(context, json))


def show_filters(json: bool) -> None:
    from stackfs.cli import tables
    from stackfs.filterlib import management

    _show("Filter listing", "filters", management.filters, tables.filters, json)


def instances(
    context: typer.Context,
    filter: Annotated[str | None, typer.Option("-f", "--filter", metavar="FILTER", help="Of this filter only.")] = None,
    volume: Annotated[
        str | None, typer.Option("-v", "--volume", metavar="VOLUME", help="On this volume only (mountpoint or name).")
    ] = None,
    json: Json = False,
) -> None:
    from stackfs.cli import tables
    from stackfs.filterlib import management

    if filter is not None and volume is not None:
        raise typer.BadParameter("give -f or -v, not both")
    _show(
        "Instance listing", "instances", lambda problems: management.instances(filter, volume, problems),
        tables.instances, wants_json(context, json),
    )  # fmt: skip


def volumes(context: typer.Context, json: Json = False) -> None:
    from stackfs.cli import tables
    from stackfs.filterlib import management

    _show("Volume listing", "volumes", management.volumes, tables.volumes, wants_json(context, json))


def _show(
    title: str,
    verb: str,
    rows_of: Callable[[list[StackfsError]], list[T]],
    table: Callable[[Iterable[T]], str],
    json: bool,
) -> None:
    from msgspec import to_builtins

    from stackfs.cli.run import print_json

    with reporting(title, json):
        problems: list[StackfsError] = []
        rows = rows_of(problems)
        if json:
            report = {"ok": not problems, verb: to_builtins(rows)}
            print_json(report | ({"errors": list(map(as_json, problems))} if problems else {}))
        else:
            print(table(rows))
            for problem in problems:
                print_failure(title, problem)
        if problems:
            raise typer.Exit(int(problems[0].exit_code))
