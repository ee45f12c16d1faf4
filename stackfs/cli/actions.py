"""load, unload, attach and detach, as fltmc and stackfs start|stop share them.

Without a volume, load and unload go to every running volume of the caller, one after the other. A filter that is
already loaded in some of them (for an unload: that is not loaded) is no error as long as another one took the command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stackfs import control
from stackfs.cli.volumes import Found, chosen, locate, running
from stackfs.errors import ExitCode, FltError, StackfsError

IMAGE_ALREADY_LOADED = 0xC000010E
FILTER_NOT_FOUND = 0xC01C0013

Result = dict[str, Any]


def load(name: str, volume: str | None) -> list[Result]:
    """What was done, a dict for each volume."""
    with chosen(volume) as found:
        return _everywhere(found, lambda client: client.call("load", name=name), {IMAGE_ALREADY_LOADED})


def unload(name: str, volume: str | None, mandatory: bool) -> list[Result]:
    with chosen(volume) as found:
        return _everywhere(
            found, lambda client: client.call("unload", name=name, mandatory=mandatory), {FILTER_NOT_FOUND}
        )


def attach(name: str, volume: str, instance_name: str | None, altitude: str | None) -> list[Result]:
    with running() as found:
        client, volume_name = locate(found, volume)
        result = client.call(
            "attach", filter=name, volume=volume_name, instance_name=instance_name, altitude=altitude
        )
        return [_result(client, volume_name, result)]


def detach(name: str, volume: str, instance_name: str | None) -> list[Result]:
    with running() as found:
        client, volume_name = locate(found, volume)
        result = client.call("detach", filter=name, volume=volume_name, instance_name=instance_name)
        return [_result(client, volume_name, result)]


def _everywhere(found: Found, action: Callable[[control.Client], Any], harmless: set[int]) -> list[Result]:
    results: list[Result] = []
    failures: list[tuple[str, StackfsError]] = []
    for client in found.clients:
        try:
            result = action(client)
        except StackfsError as error:
            failures.append((client.label, error))
        else:
            results.append(_result(client, client.hello.volume_name, result))
    if results:
        failures = [(label, error) for label, error in failures if not _has_status(error, harmless)]
    if failures:
        raise _together(failures, one=len(found.clients) == 1)
    if found.problems:
        raise StackfsError("; ".join(map(str, found.problems)), exit_code=ExitCode.NOT_ANSWERING)
    return results


def _result(client: control.Client, volume_name: str, result: Any) -> Result:
    return {"volume": volume_name, "mountpoint": client.hello.mountpoint, "result": result}


def _has_status(error: StackfsError, statuses: set[int]) -> bool:
    return isinstance(error, FltError) and error.status & 0xFFFFFFFF in statuses


def _together(failures: list[tuple[str, StackfsError]], one: bool) -> StackfsError:
    """One error for all: the first one's status and exit code, every volume's words."""
    first = failures[0][1]
    if one:
        return first
    words = "; ".join(f"{label}: {error}" for label, error in failures)
    if isinstance(first, FltError):
        return FltError(first.status, words, first.exit_code)
    return StackfsError(words, first.exit_code)
