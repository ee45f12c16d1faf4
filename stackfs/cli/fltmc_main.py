"""fltmc: the Filter Manager's control program, with the verbs, columns and error lines of Windows' fltmc.exe.

    fltmc [filters] | instances [-f FILTER | -v VOLUME] | volumes | load NAME | unload NAME
        | attach NAME VOLUME [-i INSTANCE] [-a ALTITUDE] | detach NAME VOLUME [INSTANCE] | help       [--json]

A failure is two lines on stderr, "Load failed with error: 0x801f0013" and the reason in words; with --json it is an
object on stdout. The exit code is that of stackfs/errors.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from stackfs.cli import fltmc_actions, fltmc_help, fltmc_list
from stackfs.cli.run import invoke, new_app, run


def build(arguments: Sequence[str]) -> typer.Typer:
    app = new_app(
        arguments,
        "Show and change the filters of running stackfs volumes. Without a verb: list the filters.",
        invoke_without_command=True,
    )

    @app.callback()
    def every_verb(
        context: typer.Context,
        json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    ) -> None:
        context.obj = {"json": json}
        if context.invoked_subcommand is None:
            fltmc_list.show_filters(json)

    fltmc_list.add(app)
    fltmc_actions.add(app)
    fltmc_help.add(app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run("fltmc", lambda: invoke(build(words), words, "fltmc"))


if __name__ == "__main__":
    sys.exit(main())
