"""Verbs that the contract names and this release does not have: each says so."""

from __future__ import annotations

import typer

from stackfs.errors import UsageError

_ANYTHING = {"ignore_unknown_options": True, "allow_extra_args": True}


def add(app: typer.Typer) -> None:
    app.command("inf", help="Not in this release: write a volume TOML.", context_settings=_ANYTHING)(inf)


def inf() -> None:
    raise UsageError("inf is not in this release; write a volume TOML (see mountpoints/) instead")
