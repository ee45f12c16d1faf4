"""fltmc load, unload, attach and detach. On success nothing is printed, as Windows' fltmc does."""

from __future__ import annotations

from typing import Annotated

import typer

from stackfs.cli.fltmc_output import Json, reporting, wants_json

Name = Annotated[str, typer.Argument(metavar="NAME", help="The filter.")]
Volume = Annotated[str, typer.Argument(metavar="VOLUME", help="A mountpoint or a volume name.")]
OneVolume = Annotated[
    str | None,
    typer.Option("-v", "--volume", metavar="VOLUME", help="On this volume only; default: all volumes of yours."),
]


def add(app: typer.Typer) -> None:
    app.command("load", help="Load a filter, and attach the instances that its manifest attaches automatically.")(load)
    app.command("unload", help="Unload a filter; it may refuse.")(unload)
    app.command("attach", help="Attach an instance of a loaded filter to a volume.")(attach)
    app.command("detach", help="Detach an instance from a volume; the filter may refuse.")(detach)


def load(context: typer.Context, name: Name, volume: OneVolume = None, json: Json = False) -> None:
    from stackfs.filterlib import management

    with reporting("Load", wants_json(context, json)):
        _done(context, json, management.load(name, volume))


def unload(context: typer.Context, name: Name, volume: OneVolume = None, json: Json = False) -> None:
    from stackfs.filterlib import management

    with reporting("Unload", wants_json(context, json)):
        _done(context, json, management.unload(name, volume, mandatory=False))


def attach(
    context: typer.Context,
    name: Name,
    volume: Volume,
    instance: Annotated[
        str | None,
        typer.Option("-i", "--instance", metavar="INSTANCE", help="Its name; default: the default instance's."),
    ] = None,
    altitude: Annotated[
        str | None,
        typer.Option("-a", "--altitude", metavar="ALTITUDE", help="Its altitude; default: as the manifest has it."),
    ] = None,
    json: Json = False,
) -> None:
    from stackfs.filterlib import management

    with reporting("Attach", wants_json(context, json)):
        _done(context, json, management.attach(name, volume, instance, altitude))


def detach(
    context: typer.Context,
    name: Name,
    volume: Volume,
    instance: Annotated[
        str | None, typer.Argument(metavar="INSTANCE", help="Its name; default: the filter's highest.")
    ] = None,
    json: Json = False,
) -> None:
    from stackfs.filterlib import management

    with reporting("Detach", wants_json(context, json)):
        _done(context, json, management.detach(name, volume, instance))


def _done(context: typer.Context, json: bool, results: list[dict[str, object]]) -> None:
    from stackfs.cli.run import print_json

    if wants_json(context, json):
        print_json({"ok": True, "volumes": results})
