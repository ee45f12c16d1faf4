"""The command groups that filters bring (a manifest's "commands"): found by manifest, imported only when used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from stackfs import discovery
from stackfs.cli.run import invoke, new_app
from stackfs.errors import FilterImageError, StackfsError, UsageError

PANEL = "Commands that filters bring"


def find(name: str, arguments: Sequence[str]) -> Callable[[], object] | None:
    """What runs `stackfs NAME arguments...`; None if no filter of that name is installed.

    An error if the filter is there and broken, or brings no commands.
    """
    arguments = list(arguments)
    filter_dirs: list[str] = []
    while arguments and arguments[0].startswith("--filterdir"):
        option, _, value = arguments.pop(0).partition("=")
        if option != "--filterdir" or not (value or arguments):
            raise UsageError("--filterdir needs a directory")
        filter_dirs.append(value or arguments.pop(0))
    listing = discovery.list_all(filter_dirs)
    found = next((each for each in listing.found if name in (each.name, each.manifest.command)), None)
    if found is None:
        for problem in listing.problems:
            if problem.stem == name or problem.path in filter_dirs:
                raise problem.error
        return None
    if found.manifest.commands is None:
        raise UsageError(f"filter {name!r} brings no commands of its own; fltmc load {name} loads it")
    if found.manifest.command != name:
        raise UsageError(f"the command of filter {name!r} is stackfs {found.manifest.command}")
    app = new_app(arguments, "", add_completion=False)
    _add(app, found)
    return lambda: invoke(app, [name, *arguments], "stackfs")


def names() -> list[str]:
    """What filters' commands are called."""
    return [each.manifest.command for each in discovery.list_all().found if each.manifest.commands is not None]


def add_all(app: typer.Typer, used: Sequence[str] = ()) -> None:
    """Show every group in the application's help and completion; those in `used` with their own commands."""
    for found in discovery.list_all().found:
        if found.manifest.commands is None:
            continue
        if found.manifest.command in used:
            try:
                _add(app, found)
                continue
            except StackfsError:
                pass
        app.command(found.manifest.command, help=found.manifest.description, rich_help_panel=PANEL)(_listed_only)


def _add(app: typer.Typer, found: discovery.Found) -> None:
    """A group; or, where its only command has the group's name, that command."""
    group = _application(found)
    name = found.manifest.command
    alone = group.registered_commands[0] if len(group.registered_commands) == 1 else None
    if alone is not None and alone.name == name and alone.callback is not None and group.registered_callback is None:
        app.callback()(_listed_only)         # else an application with one command has no names
        app.command(name, help=alone.help)(alone.callback)
    else:
        app.add_typer(group, name=name)


def _listed_only() -> None:
    """Never called: dispatch() runs a filter's command before this application is asked."""


def _application(found: discovery.Found) -> typer.Typer:
    from stackfs.loader import load_commands

    app = load_commands(found)
    if not isinstance(app, typer.Typer):
        raise FilterImageError(f"{found.path}: commands: {found.manifest.commands!r} is not a typer.Typer")
    return app
