"""fltmc help: the verbs, a line each; `fltmc VERB --help` tells more."""

from __future__ import annotations

import typer

from stackfs.cli.fltmc_output import Json, wants_json

VERBS = (
    ("load", "load NAME [-v VOLUME]", "Load a filter."),
    ("unload", "unload NAME [-v VOLUME]", "Unload a filter; it may refuse."),
    ("filters", "[filters]", "List the loaded filters."),
    ("instances", "instances [-f FILTER | -v VOLUME]", "List the instances, of one filter or on one volume."),
    ("volumes", "volumes", "List the volumes."),
    ("attach", "attach NAME VOLUME [-i INSTANCE] [-a ALTITUDE]", "Attach an instance of a filter to a volume."),
    ("detach", "detach NAME VOLUME [INSTANCE]", "Detach an instance from a volume; the filter may refuse."),
    ("help", "help", "Show this list."),
)


def add(app: typer.Typer) -> None:
    app.command("help", help="Show the verbs.")(show)


def show(context: typer.Context, json: Json = False) -> None:
    if wants_json(context, json):
        from stackfs.cli.run import print_json

        verbs = [{"verb": verb, "usage": f"fltmc {usage} [--json]", "help": words} for verb, usage, words in VERBS]
        print_json({"ok": True, "verbs": verbs})
        return
    print("Usage: fltmc VERB ... [--json]\n")
    for _, usage, words in VERBS:
        print(f"    {usage:<50}  {words}")
    print("\nVOLUME is a mountpoint or a volume name; load and unload without -v go to all running volumes of yours.")
