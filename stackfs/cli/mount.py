"""stackfs mount: one volume, mounted by a daemon of its own."""

from __future__ import annotations

from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    app.command("mount")(mount)


def mount(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A directory, or a volume TOML.")],
    mountpoint: Annotated[
        str | None, typer.Argument(metavar="MOUNTPOINT", help="An empty directory; a volume TOML may name it.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("-o", "--options", metavar="OPT[,OPT...]", help="Mount options; may be repeated."),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("-f", "--foreground", help="Stay in the foreground; ^C unmounts.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Accepted; success is silent anyway.")] = False,
) -> None:
    """Mount a directory, or the volume that a TOML describes.

    Returns when the volume is usable, or with the one line that says why it is not.

    Options, separated by commas (a comma in a VALUE is written \\,):

    filter=NAME - attach the default instance of a filter; may be repeated
    filter=raw - mount a marked volume without the filters it needs
    NAME.KEY=VALUE - an option of filter NAME
    filterdir=DIR - one more directory with filters
    cache=normal|strict, bypass=auto|off, lanes=auto|irp, permissions=kernel|stack
    coherence=none|lease - lease: what is changed beside the mount is noticed
    ro, allow_other, fsname=, subtype=, max_write=, suid, dev, exec and their opposites
    """
    from stackfs.filterlib.daemons import running
    from stackfs.options import build_config

    with running() as found:
        in_use = {client.hello.volume_name for client in found.clients if client.own}
    config = build_config(source, mountpoint, options or [], foreground, names_in_use=in_use)
    from stackfs.daemon import run  # late: it is slow to import, and most errors are known before

    raise typer.Exit(run(config))
