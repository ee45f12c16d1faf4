"""How a command begins and ends: the one place where errors become lines and exit codes (stackfs/errors.py).

No traceback reaches a user: what nobody expected is one line too, and STACKFS_DEBUG=1 shows where it came from.
Main thread only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from stackfs.cli.tables import escape
from stackfs.errors import ExitCode, StackfsError, UsageError

HELP = {"help_option_names": ["-h", "--help"]}


def new_app(arguments: Sequence[str], help: str, **settings: Any) -> typer.Typer:
    """A typer application as ours are: rich (slow to import) only where help is asked for, no tracebacks of its own."""
    wants_help = not arguments or any(each in ("-h", "--help", "help") for each in arguments)
    return typer.Typer(
        help=help,
        context_settings=HELP,
        rich_markup_mode="rich" if wants_help else None,
        pretty_exceptions_enable=False,
        **settings,
    )


def invoke(app: typer.Typer, arguments: Sequence[str], program: str) -> object:
    """Run an application's command; its exit code. What is wrong with the line itself is a UsageError of one line."""
    try:
        return app(args=list(arguments), prog_name=program, standalone_mode=False)
    except Exception as error:
        # typer brings click's exceptions from click or from a copy of its own: known by what they can do.
        context = getattr(error, "ctx", None)
        if not hasattr(error, "format_message"):
            raise
        words = " ".join(error.format_message().split()).rstrip(".")
        if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
            print(context.get_help())
            return int(ExitCode.USAGE)
        where = context.command_path if context is not None else program
        raise UsageError(f"{words[:1].lower()}{words[1:]} (see {where} --help)") from None


def run(program: str, body: Callable[[], object]) -> int:
    """Run a command's body; its exit code. program begins every line that says what went wrong."""
    try:
        try:
            code = body()
        except SystemExit as end:       # how typer ends, --help and usage errors included
            code = end.code
        sys.stdout.flush()
        if code is None or isinstance(code, int):
            return code or 0
        print(f"{program}: {escape(str(code))}", file=sys.stderr)
        return int(ExitCode.FAILURE)
    except StackfsError as error:
        report(program, error)
        return int(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python's own flush at the end must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FAILURE)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debugging():
            import traceback

            traceback.print_exception(error)
        words = escape(f"{type(error).__name__}: {error}")
        print(f"{program}: internal error: {words} (STACKFS_DEBUG=1 shows where)", file=sys.stderr)
        return int(ExitCode.FAILURE)


def debugging() -> bool:
    return os.environ.get("STACKFS_DEBUG", "") not in ("", "0")


def report(program: str, error: StackfsError) -> None:
    """The line for an error that is no bug."""
    if debugging():
        import traceback

        traceback.print_exception(error)
    print(f"{program}: {escape(str(error))}", file=sys.stderr)


def print_json(value: object) -> None:
    """For scripts: sorted as given, ASCII (a name that is not UTF-8 has os.fsdecode's surrogates), one value."""
    print(json.dumps(value, indent=2, ensure_ascii=True))
