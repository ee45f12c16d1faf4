"""load, unload, attach, detach, and the three listings: what fltmc, stackfs start|stop and programs share.

Without a volume, load and unload go to every running volume of the caller, one after the other. A filter that is
already loaded in some of them (for an unload: that is not loaded) is no error as long as another one took the command.
A listing is of all running volumes that the caller may speak to. Synchronous, no state, no locks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from stackfs import control
from stackfs.altitude import AltitudeError, sort_key
from stackfs.control import FilterRow, InstanceRow, VolumeRow
from stackfs.errors import ExitCode, FltError, StackfsError
from stackfs.filterlib.daemons import Found, chosen, locate, running

IMAGE_ALREADY_LOADED = 0xC000010E
FILTER_NOT_FOUND = 0xC01C0013

Result = dict[str, Any]
T = TypeVar("T")


def load(name: str, volume: str | None = None) -> list[Result]:
    """FilterLoad: what was done, a dict for each volume. StackfsError, FltError: as the daemon says."""
    with chosen(volume) as found:
        return _everywhere(found, lambda client: client.call("load", name=name), {IMAGE_ALREADY_LOADED})


def unload(name: str, volume: str | None = None, mandatory: bool = False) -> list[Result]:
    """FilterUnload; mandatory: as a service is stopped, without asking the filter."""
    with chosen(volume) as found:
        return _everywhere(
            found, lambda client: client.call("unload", name=name, mandatory=mandatory), {FILTER_NOT_FOUND}
        )


def attach(
    name: str, volume: str, instance_name: str | None = None, altitude: str | None = None
) -> list[Result]:
    """FilterAttach, FilterAttachAtAltitude; the result's "name" is the instance's."""
    with running() as found:
        client, volume_name = locate(found, volume)
        result = client.call(
            "attach", filter=name, volume=volume_name, instance_name=instance_name, altitude=altitude
        )
        return [_result(client, volume_name, result)]


def detach(name: str, volume: str, instance_name: str | None = None) -> list[Result]:
    """FilterDetach; without a name, the filter's highest instance on the volume."""
    with running() as found:
        client, volume_name = locate(found, volume)
        result = client.call("detach", filter=name, volume=volume_name, instance_name=instance_name)
        return [_result(client, volume_name, result)]


def filters(problems: list[StackfsError] | None = None) -> list[FilterRow]:
    """The loaded filters, highest altitude first; one that several daemons have loaded is listed once.

    What did not answer goes to `problems`, an error each (here and below); without it nobody is told.
    """
    counted: dict[tuple[Any, ...], FilterRow] = {}
    for row in rows("filters", FilterRow, None, problems):
        key = (row.name, row.altitude, row.frame)
        if key in counted:
            counted[key].instances += row.instances
            counted[key].failed = counted[key].failed or row.failed
            counted[key].held_by += row.held_by
            if row.held_by:
                counted[key].state = row.state
        else:
            counted[key] = row
    by_name = sorted(counted.values(), key=lambda row: row.name)
    return sorted(by_name, key=lambda row: by_altitude(row.altitude), reverse=True)


def instances(
    filter: str | None = None, volume: str | None = None, problems: list[StackfsError] | None = None
) -> list[InstanceRow]:
    """The instances, of one filter or on one volume, by volume and highest altitude first."""
    found = [row for row in rows("instances", InstanceRow, volume, problems) if filter in (None, row.filter)]
    found.sort(key=lambda row: by_altitude(row.altitude), reverse=True)
    return sorted(found, key=lambda row: row.volume)


def volumes(problems: list[StackfsError] | None = None) -> list[VolumeRow]:
    found = rows("volumes", VolumeRow, None, problems)
    return sorted(found, key=lambda row: (row.dos_name, row.volume_name))


def rows(verb: str, kind: type[T], volume: str | None, problems: list[StackfsError] | None) -> list[T]:
    """A listing verb's rows from every daemon; with a volume, those that name it, from its daemon alone."""
    problems = [] if problems is None else problems
    found: list[T] = []
    with running() as daemons:
        clients, silent = daemons
        names: set[str] = set()
        if volume is not None:
            client, name = locate(daemons, volume)
            clients, silent = [client], []
            names = {name, client.hello.mountpoint} if name == client.hello.volume_name else {name}
        problems += silent
        for client in clients:
            try:
                found += client.rows(verb, kind)
            except StackfsError as error:
                problems.append(error)
    return [row for row in found if not names or getattr(row, "volume", None) in names]


def by_altitude(altitude: str) -> tuple[int, str, str]:
    """A sort key that takes whatever a daemon sent; what is no altitude is the lowest."""
    try:
        return sort_key(altitude)
    except AltitudeError:
        return (-1, altitude, "")


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
