"""stackfs: mount, unmount and look after volumes, and run the command groups that filters bring.

What the first word is decides, in this order: one of our verbs; a path (it has a slash), and then the line is that of
``stackfs mount``, as mount.fuse3 calls it; the name of a filter that brings commands; a path without a slash. Filters
are looked for by their manifests and imported only when one of their commands is used.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from stackfs.cli import bench, inf, mount, service, status, umount
from stackfs.cli.run import invoke, new_app, run
from stackfs.errors import UsageError

VERBS = ("mount", "umount", "status", "start", "stop", "bench", "inf")
_MOUNT_OPTIONS = ("-o", "-f", "-q", "--options", "--foreground", "--quiet")
_COMPLETION = "_STACKFS_COMPLETE"


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application with our own verbs."""
    app = new_app(
        arguments,
        "A FUSE filesystem with the Windows Filter Manager inside.",
        no_args_is_help=True,
        epilog="stackfs SOURCE MOUNTPOINT -o OPTS is the same as stackfs mount. fltmc lists and changes filters.",
    )

    @app.callback()
    def every_verb(
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
        ] = False,
    ) -> None:
        pass

    for module in (mount, umount, status, service, bench, inf):
        module.add(app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run("stackfs", lambda: dispatch(words))


def dispatch(words: Sequence[str]) -> object:
    """Run the line; its exit code, or whatever typer ends with."""
    if _COMPLETION in os.environ:
        return _complete()
    first = words[0] if words else "--help"
    if first.startswith(_MOUNT_OPTIONS):
        words = ["mount", *words]
    elif first == "help":
        words = [*words[1:2], "--help"]
    elif not first.startswith("-") and first not in VERBS:
        found = None if "/" in first else _filter_commands(first, words)
        if found is not None:
            return found()
        if "/" not in first and not os.path.lexists(first):
            raise _unknown(first)
        words = ["mount", *words]
    app = build(words)
    if words and words[0] in ("-h", "--help"):
        _list_filter_commands(app)
    return invoke(app, words, "stackfs")


def _filter_commands(name: str, words: Sequence[str]) -> Callable[[], object] | None:
    from stackfs.cli import filter_commands

    return filter_commands.find(name, words[1:])


def _list_filter_commands(app: typer.Typer) -> None:
    from stackfs.cli import filter_commands

    filter_commands.add_all(app)


def _complete() -> object:
    from stackfs.cli import filter_commands

    app = build(())
    filter_commands.add_all(app, used=os.environ.get("COMP_WORDS", "").split()[1:2])
    return app(args=[], prog_name="stackfs")


def _unknown(word: str) -> UsageError:
    from stackfs.cli import filter_commands

    near = difflib.get_close_matches(word, [*VERBS, *filter_commands.names()], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "stackfs --help lists the commands"
    return UsageError(f"{word!r} is neither a command nor a directory; {hint}")


def _show_version(wanted: bool) -> None:
    if wanted:
        from stackfs import __version__

        print(f"stackfs {__version__}")
        raise typer.Exit


if __name__ == "__main__":
    sys.exit(main())
