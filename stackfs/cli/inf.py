"""stackfs inf: a Windows minifilter's INF, printed as the manifest of a filter."""

from __future__ import annotations

from typing import Annotated

import typer

_LONGEST = 4 << 20
"""Bytes: what is longer is no INF."""


def add(app: typer.Typer) -> None:
    app.command("inf", help="Print a Windows minifilter's INF as a filter's MANIFEST.")(inf)


def inf(file: Annotated[str, typer.Argument(metavar="FILE", help="The INF.")]) -> None:
    from stackfs.errors import ExitCode, StackfsError
    from stackfs.inf import manifest, manifest_text

    try:
        with open(file, "rb") as opened:
            data = opened.read(_LONGEST + 1)
    except FileNotFoundError:
        raise StackfsError(f"{file}: there is no such file", ExitCode.NOT_FOUND) from None
    except OSError as error:
        raise StackfsError(f"{file}: {error.strerror}") from None
    if len(data) > _LONGEST:
        raise StackfsError(f"{file}: longer than {_LONGEST} bytes: not an INF")
    text = manifest_text(data, file)
    manifest(data, file)        # what is printed can be used
    print(text, end="")

