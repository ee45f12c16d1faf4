"""Which daemons a verb speaks to: all there are, the caller's, or the one that VOLUME names.

VOLUME is a mountpoint or a volume name; a mountpoint is compared without touching it, for its daemon may hang.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from stackfs import control
from stackfs.errors import ExitCode, FltError, StackfsError

VOLUME_NOT_FOUND = 0xC01C0014


class Found(NamedTuple):
    """The daemons that answered, and an error for each that did not."""

    clients: list[control.Client]
    problems: list[StackfsError]


@contextlib.contextmanager
def running() -> Iterator[Found]:
    """Every daemon the caller may speak to (root: every user's, its own first)."""
    problems: list[StackfsError] = []
    with contextlib.ExitStack() as stack:
        clients = control.daemons(problems)
        for client in clients:
            stack.enter_context(client)
        yield Found(clients, problems)


@contextlib.contextmanager
def chosen(volume: str | None) -> Iterator[Found]:
    """The daemon of VOLUME, or without one every daemon of the caller's own. FltError if there is none."""
    with running() as found:
        if volume is not None:
            client, _ = locate(found, volume)
            yield Found([client], [])
        else:
            clients = [client for client in found.clients if client.own]
            if not clients:
                raise _missing(found, "no volume is mounted by you")
            yield Found(clients, found.problems)


def locate(found: Found, volume: str) -> tuple[control.Client, str]:
    """The daemon and the volume name that VOLUME stands for. The caller's own volumes go before other users'."""
    for own in (True, False):
        clients = [client for client in found.clients if client.own is own]
        for match in (_by_mountpoint, _by_name, _by_listing):
            matches = match(clients, volume)
            if len(matches) > 1:
                raise StackfsError(f"several running volumes are called {volume!r}: name one by its mountpoint",
                                   exit_code=ExitCode.USAGE)
            if matches:
                return matches[0]
    raise _missing(found, f"no running volume has {volume!r} as its mountpoint or name")


def _by_mountpoint(clients: list[control.Client], volume: str) -> list[tuple[control.Client, str]]:
    from stackfs.mounting import resolve  # readlink alone: asks no daemon anything

    path = resolve(volume)
    return [(each, each.hello.volume_name) for each in clients if each.hello.mountpoint == path]


def _by_name(clients: list[control.Client], volume: str) -> list[tuple[control.Client, str]]:
    return [(each, volume) for each in clients if each.hello.volume_name == volume]


def _by_listing(clients: list[control.Client], volume: str) -> list[tuple[control.Client, str]]:
    """A daemon may hold further volumes, without a mount."""
    matches = []
    for client in clients:
        try:
            rows = client.rows("volumes", control.VolumeRow)
        except StackfsError:
            continue
        matches += [(client, row.volume_name) for row in rows if row.volume_name == volume]
    return matches


def _missing(found: Found, words: str) -> StackfsError:
    if found.problems:      # it may be the one that does not answer, or whose directory is not safe
        first = found.problems[0]
        return StackfsError(f"{words} ({first})", exit_code=first.exit_code)
    return FltError(VOLUME_NOT_FOUND, words, ExitCode.NOT_FOUND)
