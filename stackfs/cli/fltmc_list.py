"""fltmc filters, instances and volumes: what all running volumes report, as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import typer

from stackfs.cli.fltmc_output import Json, as_json, print_failure, reporting, wants_json

T = TypeVar("T")


def add(app: typer.Typer) -> None:
    app.command("filters", help="List the loaded filters, highest altitude first (the default).")(filters)
    app.command("instances", help="List the instances, of one filter or on one volume.")(instances)
    app.command("volumes", help="List the volumes.")(volumes)


def filters(context: typer.Context, json: Json = False) -> None:
    show_filters(wants_json(context, json))


def show_filters(json: bool) -> None:
    from stackfs.cli import tables
    from stackfs.control import FilterRow

    _show("Filter listing", "filters", FilterRow, _count, tables.filters, json)


def instances(
    context: typer.Context,
    filter: Annotated[str | None, typer.Option("-f", "--filter", metavar="FILTER", help="Of this filter only.")] = None,
    volume: Annotated[
        str | None, typer.Option("-v", "--volume", metavar="VOLUME", help="On this volume only (mountpoint or name).")
    ] = None,
    json: Json = False,
) -> None:
    from stackfs.cli import tables
    from stackfs.control import InstanceRow

    def wanted(rows: list[InstanceRow]) -> list[InstanceRow]:
        rows = [row for row in rows if filter is None or row.filter == filter]
        rows.sort(key=lambda row: tables.by_altitude(row.altitude), reverse=True)
        return sorted(rows, key=lambda row: row.volume)

    if filter is not None and volume is not None:
        raise typer.BadParameter("give -f or -v, not both")
    _show("Instance listing", "instances", InstanceRow, wanted, tables.instances, wants_json(context, json), volume)


def volumes(context: typer.Context, json: Json = False) -> None:
    from stackfs.cli import tables
    from stackfs.control import VolumeRow

    def ordered(rows: list[VolumeRow]) -> list[VolumeRow]:
        return sorted(rows, key=lambda row: (row.dos_name, row.volume_name))

    _show("Volume listing", "volumes", VolumeRow, ordered, tables.volumes, wants_json(context, json))


def _show(
    title: str,
    verb: str,
    kind: type[T],
    arrange: Callable[[list[T]], list[T]],
    table: Callable[[Iterable[T]], str],
    json: bool,
    volume: str | None = None,
) -> None:
    from msgspec import to_builtins

    from stackfs.cli.run import print_json
    from stackfs.cli.volumes import locate, running
    from stackfs.errors import StackfsError

    with reporting(title, json):
        rows: list[T] = []
        with running() as found:
            clients, problems = found
            names: set[str] = set()
            if volume is not None:
                client, name = locate(found, volume)
                clients, problems = [client], []
                names = {name, client.hello.mountpoint} if name == client.hello.volume_name else {name}
            for client in clients:
                try:
                    rows += client.rows(verb, kind)
                except StackfsError as error:
                    problems.append(error)
        rows = arrange([row for row in rows if not names or getattr(row, "volume", None) in names])
        if json:
            report = {"ok": not problems, verb: to_builtins(rows)}
            print_json(report | ({"errors": list(map(as_json, problems))} if problems else {}))
        else:
            print(table(rows))
            for problem in problems:
                print_failure(title, problem)
        if problems:
            raise typer.Exit(int(problems[0].exit_code))


def _count(rows: list[Any]) -> list[Any]:
    """A filter that several daemons have loaded is listed once, with the sum of its instances."""
    from stackfs.cli.tables import by_altitude

    counted: dict[tuple[Any, ...], Any] = {}
    for row in rows:
        key = (row.name, row.altitude, row.frame)
        if key in counted:
            counted[key].instances += row.instances
            counted[key].failed = counted[key].failed or row.failed
            counted[key].held_by += row.held_by
            if row.held_by:
                counted[key].state = row.state
        else:
            counted[key] = row
    by_name = sorted(counted.values(), key=lambda row: row.name)
    return sorted(by_name, key=lambda row: by_altitude(row.altitude), reverse=True)
