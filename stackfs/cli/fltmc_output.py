"""How fltmc says what went wrong, and its --json option."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from stackfs.cli.run import debugging, print_json
from stackfs.cli.tables import escape
from stackfs.errors import FltError, StackfsError
from stackfs.hresult import from_error

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def wants_json(context: typer.Context, given: bool) -> bool:
    """--json may stand before the verb or after it."""
    return given or bool((context.obj or {}).get("json"))


def as_json(error: StackfsError) -> dict[str, Any]:
    status = error.status & 0xFFFFFFFF if isinstance(error, FltError) else 0
    return {
        "error": str(error),
        "hresult": f"0x{from_error(error):08x}",
        "status": f"0x{status:08x}",
        "exit_code": int(error.exit_code),
    }


@contextlib.contextmanager
def reporting(title: str, json: bool) -> Iterator[None]:
    """Turn a StackfsError into "<title> failed with error: 0x..." and its words, and the exit code."""
    try:
        yield
    except StackfsError as error:
        if debugging():
            raise
        if json:
            print_json({"ok": False, **as_json(error)})
        else:
            print_failure(title, error)
        raise typer.Exit(int(error.exit_code)) from None


def print_failure(title: str, error: StackfsError) -> None:
    print(f"{title} failed with error: 0x{from_error(error):08x}\n{escape(str(error))}", file=sys.stderr)
