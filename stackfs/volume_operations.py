"""Operations that no program asks for (docs/semantics.md, D18 and D20): a volume is mounted, dismounted, shut down; and
what its owner injects, so that a filter's registrations can be exercised.

Each is one operation through the volume's stack. Here it runs in a thread, since callbacks may wait; nothing of what a
filter does with it keeps a volume from ending.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import structlog
import trio

from stackfs import api
from stackfs.cext.callback_data import major_name
from stackfs.cext.python_requests import INJECTABLE, Request, VfsError
from stackfs.cext.stack import InstanceEntry
from stackfs.errors import ExitCode, FltError, StackfsError
from stackfs.filter_objects import FilterState, Told, rows

if TYPE_CHECKING:
    from stackfs.filter_objects import LoadedFilter, Volume

log = structlog.get_logger("stackfs.manager")

LOOKUP, INIT, DESTROY = 1, 26, 38
"""Requests, as FUSE numbers them. The kernel's own INIT and DESTROY are the device's: these two stand for them."""

ENDING_LIMIT = 5.0
"""Seconds that filters have for a dismount or a shutdown."""


class MountTarget(Told):
    """A filter on a volume that is being mounted: what callbacks of VOLUME_MOUNT get as `objects`.

    There are no instances yet: `Instance` is None. It can set the filter's context of the volume.
    """

    Instance = None

    def __init__(self, filter: LoadedFilter, volume: Volume, order: int) -> None:
        self.filter = self.Filter = filter
        self.volume = self.Volume = volume
        self.name = filter.name
        self.altitude = filter.manifest.altitude
        self.options = dict(filter.object.options)
        self.context: Any = None
        operations, native = filter.object.operations_for(self.options)
        asked = [each for each in operations if each.major == api.IRP_MJ_VOLUME_MOUNT]
        if native is not None and api.IRP_MJ_VOLUME_MOUNT not in native.registered():
            native = None
        self.entry = InstanceEntry(
            self, self.name, str(order), self.name, rows(filter.object, asked), native,
            filter.manifest.on_error == "pass", filter.contexts,
        )

    def error_limit_reached(self) -> None:
        """It is asked once."""


async def mount(volume: Volume, filters: Iterable[LoadedFilter]) -> None:
    """VOLUME_MOUNT, before any instance is set up: to filters, ordered by their default instances (A1.6).

    StackfsError: one refuses.
    """
    ordered = sorted((each for each in filters if each.state is FilterState.FILTERING), key=lambda each: each.order)
    targets = [MountTarget(each, volume, order) for order, each in enumerate(ordered, 1)]
    stack = volume.core.stack
    asked = [each.entry for each in targets if each.entry.registered]
    if not asked:
        return
    for entry in asked:
        stack.insert(entry)
    try:
        await _run(volume.core.request(INIT))
    except VfsError as error:
        raise StackfsError(
            f"the filters do not let volume {volume.name!r} be mounted: {error.strerror}", ExitCode.REFUSED
        ) from error
    finally:
        for entry in asked:
            stack.remove(entry)
        while not stack.drained():
            await trio.sleep(0.001)


async def dismount(volume: Volume) -> None:
    """VOLUME_DISMOUNT, to the instances there are, before they are torn down. What they say to it changes nothing."""
    if volume.core.stack.registered(api.IRP_MJ_VOLUME_DISMOUNT):
        await _tell(volume, volume.core.request(DESTROY), "dismount")


async def shut_down(volumes: Iterable[Volume]) -> None:
    """SHUTDOWN, which has no post: the process was told to end. What the filters say to it changes nothing."""
    for volume in volumes:
        if volume.core.stack.registered(api.IRP_MJ_SHUTDOWN):
            await _tell(volume, volume.core.inject(api.IRP_MJ_SHUTDOWN), "shutdown")


async def inject(
    volume: Volume,
    operation: str,
    minor: int = 0,
    code: int = 0,
    path: str = "",
    input: bytes = b"",
    output_size: int = 0,
) -> tuple[int, bytes]:
    """One operation that no program can bring about (D20): (NTSTATUS, unsigned; what came back).

    operation: "PNP" or "IRP_MJ_PNP". path: of the file that it is about, from the volume's root on; "": the volume.
    FltError: STATUS_INVALID_PARAMETER, it is none of these, or STATUS_OBJECT_NAME_NOT_FOUND.
    """
    major = getattr(api, "IRP_MJ_" + operation.upper().removeprefix("IRP_MJ_"), None)
    if major not in INJECTABLE:
        known = ", ".join(sorted(major_name(each).removeprefix("IRP_MJ_") for each in INJECTABLE))
        words = f"{operation!r} cannot be injected: these can: {known}"
        raise FltError(api.STATUS_INVALID_PARAMETER, words, ExitCode.USAGE)
    found: list[int] = []
    try:
        node = 1
        for part in path.split("/"):
            if part:
                name = part.encode("utf-8", "surrogateescape")
                node = (await _run(volume.core.request(LOOKUP, node, name=name))).nodeid
                found.append(node)
        request = volume.core.inject(major, node, minor=minor, code=code, input=input, output_size=output_size)
        try:
            await _run(request)
        except VfsError:
            return request.status or api.from_errno(request.error), b""
        return 0, request.result() if output_size else b""
    except VfsError as error:
        raise FltError(api.from_errno(error.errno or 0), f"{path!r}: {error.strerror}", ExitCode.NOT_FOUND) from None
    except (ValueError, OverflowError) as error:
        raise FltError(api.STATUS_INVALID_PARAMETER, str(error), ExitCode.USAGE) from None
    finally:
        for node in found:
            volume.core.forget(node, 1)


async def _run(request: Request) -> Request:
    return await trio.to_thread.run_sync(request.do, abandon_on_cancel=True)


async def _tell(volume: Volume, request: Request, what: str) -> None:
    with trio.move_on_after(ENDING_LIMIT) as limit:
        try:
            await _run(request)
        except VfsError as error:
            log.info(f"a filter objects to the {what}", volume=volume.name, reason=error.strerror)
    if limit.cancelled_caught:
        log.warning(f"filters are slow with the {what}", volume=volume.name)
