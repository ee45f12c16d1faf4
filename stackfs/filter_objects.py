"""Filters, volumes and instances as objects: their states, and what holds them (docs/semantics.md, A1 to A3).

States change on the manager's trio thread alone, along the tables below; stackfs/manager.py is the only module that
changes them. References (FltObject.rundown) are taken and dropped by any thread. What is to be cleaned up when an
object ends, contexts for one, is handed over with at_end().
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from stackfs import api, contexts, names
from stackfs.altitude import AltitudeKey, sort_key
from stackfs.cext.callback_data import CallbackData
from stackfs.cext.ntstatus import NtStatus
from stackfs.cext.python_requests import Volume as CoreVolume
from stackfs.cext.stack import InstanceEntry
from stackfs.errors import FltError
from stackfs.filter_io import FilterIo
from stackfs.frames import Legacy
from stackfs.rundown import Rundown

if TYPE_CHECKING:
    from stackfs import filter_objects as _objects  # a class's own properties hide the names of classes in it
    from stackfs.cext.coherence import Coherence
    from stackfs.discovery import Found
    from stackfs.manager import FilterManager
    from stackfs.manifest import Manifest
    from stackfs.ports import FilterPorts

log = structlog.get_logger("stackfs.manager")


class FilterState(enum.Enum):
    REGISTERED = "Registered"
    """FltRegisterFilter has succeeded, FltStartFiltering has not been called: it has no instances, and gets none."""
    FILTERING = "Filtering"
    UNLOADING = "Unloading"
    GONE = "Gone"


class InstanceState(enum.Enum):
    SETTING_UP = "Setting up"
    """Its name and altitude are taken; instance_setup is asked."""
    ATTACHED = "Attached"
    TEARING_DOWN = "Detaching"
    GONE = "Gone"


FILTER_TRANSITIONS: Final = {
    FilterState.REGISTERED: {FilterState.FILTERING, FilterState.UNLOADING},
    FilterState.FILTERING: {FilterState.UNLOADING},
    FilterState.UNLOADING: {FilterState.GONE},
    FilterState.GONE: set[FilterState](),
}
INSTANCE_TRANSITIONS: Final = {
    InstanceState.SETTING_UP: {InstanceState.ATTACHED, InstanceState.GONE},
    InstanceState.ATTACHED: {InstanceState.TEARING_DOWN},
    InstanceState.TEARING_DOWN: {InstanceState.GONE},
    InstanceState.GONE: set[InstanceState](),
}


class FltObject:
    """What FltObjectReference takes: a filter, an instance or a volume."""

    kind = "object"

    def __init__(self) -> None:
        self.rundown = Rundown()
        self._ending: list[Callable[[], object]] = []
        self._ending_lock = threading.Lock()

    def reference(self, holder: str) -> None:
        """Keep the object from being freed. FltError: STATUS_FLT_DELETING_OBJECT, it is going. Any thread."""
        self.reference_as(f"reference: {holder}")

    def reference_as(self, name: str) -> None:
        """The same under a name as the rundown has it (stackfs/rundown.py)."""
        if not self.rundown.acquire(name):
            raise FltError(api.STATUS_FLT_DELETING_OBJECT, f"{self} is being torn down")

    def dereference(self, holder: str) -> None:
        """Undo a reference(). ValueError: there was none. Any thread."""
        self.rundown.release(f"reference: {holder}")

    def at_end(self, routine: Callable[[], object]) -> None:
        """Call this once when the object ends, behind teardown-complete; last given first. Any thread."""
        with self._ending_lock:
            self._ending.append(routine)

    @property
    def has_endings(self) -> bool:
        return bool(self._ending)

    def end(self) -> None:
        """Runs what at_end() was given. Whatever it raises is logged, and ends nothing."""
        while True:
            with self._ending_lock:
                if not self._ending:
                    return
                routine = self._ending.pop()
            try:
                routine()
            except BaseException as error:
                log.error("a clean-up raised", object=str(self), error=f"{type(error).__name__}: {error}")


class LoadedFilter(FltObject):
    """A filter that is registered: its callbacks, and its instances."""

    def __init__(
        self, manager: FilterManager, found: Found, filter_object: api.Filter, ports: FilterPorts
    ) -> None:
        super().__init__()
        self.manager = manager
        self.found = found
        self.object = filter_object
        self.ports = ports
        self.instances: list[Instance] = []
        """Every one that is not gone."""
        self.former: list[Instance] = []
        """Gone, but referenced: an unload waits for them."""
        self.state = FilterState.REGISTERED
        self.unload_flags: int | None = None
        """While its unload callback runs: the flags that it was called with."""
        self.gone = trio.Event()
        self.frame = 0
        """The number of the frame that its default instance's altitude lies in."""
        self.legacy: Legacy | None = None
        """A legacy filter's layer: it has no frame, and the Filter Manager does not manage it."""
        try:
            self.contexts = contexts.register(self.name, filter_object)
        except ValueError as error:
            raise FltError(
                api.STATUS_FLT_INVALID_CONTEXT_REGISTRATION, f"{found.path}: {self.manifest.filter}.contexts: {error}"
            ) from error

    def __str__(self) -> str:
        return f"filter {self.name!r}"

    @property
    def name(self) -> str:
        return self.found.manifest.name

    @property
    def manifest(self) -> Manifest:
        return self.found.manifest

    @property
    def order(self) -> AltitudeKey:
        """The default instance's altitude decides what is not any one instance's (A1.6); highest first."""
        return sort_key(self.manifest.altitude)

    def become(self, state: FilterState) -> None:
        assert state in FILTER_TRANSITIONS[self.state], f"{self}: from {self.state} to {state}"
        self.state = state

    def check_filtering(self) -> None:
        """FltError: it has not started filtering, or it is going."""
        if self.state is FilterState.REGISTERED:
            raise FltError(api.STATUS_FLT_FILTER_NOT_READY, f"{self} has not started filtering")
        if self.state is not FilterState.FILTERING:
            raise FltError(api.STATUS_FLT_DELETING_OBJECT, f"{self} is being unloaded")

    def held_by(self) -> list[str]:
        """What an unload of it waits for."""
        found = self.rundown.holders()
        for instance in (*self.instances, *self.former):
            found += [f"{each} (of {instance})" for each in instance.rundown.holders()]
        return found


def rows(
    filter: api.Filter, operations: Iterable[api.Operation]
) -> list[tuple[int, int, Callable[..., Any] | None, Callable[..., Any] | None]]:
    """Of a registration table, as an InstanceEntry takes them: (major, flags, pre, post)."""
    return [
        (
            each.major,
            each.flags,
            getattr(filter, each.pre) if each.pre else None,
            getattr(filter, each.post) if each.post else None,
        )
        for each in operations
    ]


class Told:
    """What the stack tells of a filter's callbacks, on whatever thread they ran."""

    filter: LoadedFilter
    volume: _objects.Volume
    name: str

    def callback_raised(self, routine: str, major: int, path: str, error: BaseException) -> None:
        self._went_wrong("a callback raised", routine, major, path, f"{type(error).__name__}: {error}")

    def callback_misused(self, routine: str, major: int, path: str, status: int) -> None:
        self._went_wrong(
            "a callback broke the rules", routine, major, path, f"it returned {status}, which is not legal here"
        )

    def _went_wrong(self, event: str, routine: str, major: int, path: str, error: str) -> None:
        log.error(
            event,
            filter=self.filter.name,
            instance=self.name,
            operation=api.major_name(major),
            routine=routine,
            path=path,
            error=error,
            outcome="passed by" if self.filter.manifest.on_error == "pass" else "EIO",
        )

    def run_async(self, coroutine: Coroutine[Any, Any, Any], data: CallbackData) -> None:
        self.volume.manager.async_callbacks.run(coroutine, data)


class Instance(FltObject, Told, contexts.InstanceFace, FilterIo):
    """One attachment of a filter to a volume. Callbacks get it as `objects`."""

    def __init__(
        self, filter: LoadedFilter, volume: _objects.Volume, name: str, altitude: str, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.filter = filter
        self.volume = volume
        self.name = name
        self.altitude = altitude
        self.options = options
        self.context: Any = None
        """The filter's own."""
        self.state = InstanceState.SETTING_UP
        self.frame = filter.frame
        self.settled = trio.Event()
        """It has been set up, or not."""
        self.gone = trio.Event()
        operations, native = filter.object.operations_for(options)
        self.entry = InstanceEntry(
            self,
            name,
            altitude,
            filter.name,
            rows(filter.object, operations),
            native,
            filter.manifest.on_error == "pass",
            filter.contexts,
            names.provider(filter.object),
            filter.object.section_notification,
        )
        volume.core.stack.introduce(self.entry)

    def __str__(self) -> str:
        return f"instance {self.name!r} on volume {self.volume.name!r}"

    def become(self, state: InstanceState) -> None:
        assert state in INSTANCE_TRANSITIONS[self.state], f"{self}: from {self.state} to {state}"
        self.state = state
        if state is not InstanceState.SETTING_UP:
            self.settled.set()
        if state is InstanceState.GONE:
            self.gone.set()

    @property
    def Filter(self) -> LoadedFilter:
        """FLT_RELATED_OBJECTS' name for it."""
        return self.filter

    @property
    def Volume(self) -> _objects.Volume:
        """FLT_RELATED_OBJECTS' name for it."""
        return self.volume

    @property
    def Instance(self) -> _objects.Instance:
        """FLT_RELATED_OBJECTS' name for it."""
        return self

    @property
    def failed(self) -> bool:
        return self.entry.failed

    def mark_failed(self) -> None:
        """Its filter can no longer do its work here: the operations it registers answer EIO from now on, or are passed
        by (on_error). Any thread."""
        self.entry.mark_failed()
        self.volume.settle_needs()

    @property
    def sees_data(self) -> bool:
        return not {api.IRP_MJ_READ, api.IRP_MJ_WRITE}.isdisjoint(self.entry.registered)

    @property
    def sees_locks(self) -> bool:
        return api.IRP_MJ_LOCK_CONTROL in self.entry.registered

    @property
    def blocks_bypass(self) -> bool:
        """It wants to see reads or writes, and does not say that it can do without those of bypassed opens."""
        return self.sees_data and self.filter.manifest.bypass != "supported"

    def error_limit_reached(self) -> None:
        passes = self.filter.manifest.on_error == "pass"
        log.error(
            "an instance failed too often",
            filter=self.filter.name,
            instance=self.name,
            outcome="detached" if passes else "the operations it registers answer EIO; detach it, or load it again",
        )
        self.volume.settle_needs()
        if passes:
            self.volume.manager.detach_soon(self)


class Volume(FltObject):
    """A backing directory with a stack over it; mounted, or held without a mount (mountpoint "")."""

    def __init__(self, manager: FilterManager, name: str, mountpoint: str, source: str, core: CoreVolume) -> None:
        super().__init__()
        self.manager = manager
        self.name = name
        self.mountpoint = mountpoint
        self.source = source
        self.core = core
        core.stack.name = os.fsencode(name)
        self.instances: list[Instance] = []
        """Those attached, highest altitude first, but for legacy filters'."""
        self.legacies: list[Instance] = []
        """Those of legacy filters."""
        self.unsettled: list[Instance] = []
        """Those being set up or torn down: names and altitudes are taken."""
        self.invalidate: Callable[[], Awaitable[None]] | None = None
        """Makes the kernel forget what it cached; set by whoever mounted the volume."""
        self.write_back: Callable[[], Awaitable[None]] | None = None
        """Makes the kernel write the page cache's dirty pages; set by whoever mounted the volume."""
        self.needs: frozenset[str] = frozenset()
        """The filters that the volume's mark names: without an instance of each it answers EIO (semantics D21)."""
        self.needed: frozenset[str] = frozenset()
        """The same before they are attached."""
        self.read_only = False
        """The mount is; whether the backing filesystem is, is asked of it (stackfs/volume_properties.py)."""
        self.is_mounted: Callable[[], bool] | None = None
        """Is it still mounted? Set by whoever mounted it."""
        self.coherence: Coherence | None = None
        """What notices changes beside the mount; set by whoever mounts it with coherence=lease."""

    def __str__(self) -> str:
        return f"volume {self.name!r}"

    @property
    def detached(self) -> bool:
        """The mount is gone, files that are open keep the volume."""
        return self.is_mounted is not None and not self.is_mounted()

    def on_foreign_change(self, listener: Callable[[int, int, bytes | None], object]) -> None:
        """With coherence=lease: listener(nodeid, what, name) when the backing directory was changed beside the mount,
        or, of a file's data (FOREIGN_DATA), is about to be: True then keeps the writer waiting until
        foreign_settled(nodeid). By a thread that must not be kept. FltError STATUS_NOT_SUPPORTED: the volume notices
        nothing. docs/coherence.md has more."""
        if self.coherence is None:
            raise FltError(NtStatus.STATUS_NOT_SUPPORTED, f"{self} does not notice what is changed beside it")
        self.coherence.on_change(listener)

    def off_foreign_change(self, listener: Callable[[int, int, bytes | None], object]) -> None:
        """It is not called any more, and is not being called: before its filter's instance is gone. ValueError: it was
        not on. RuntimeError: called by a listener, which would wait for itself."""
        if self.coherence is not None:
            self.coherence.off_change(listener)

    def foreign_settled(self, nodeid: int) -> None:
        """What on_foreign_change()'s listener has answered True for may go on."""
        if self.coherence is not None:
            self.coherence.settled(nodeid)

    def wake_poll(self, handle: int) -> bool:
        """Whoever polls the file of that poll_handle (semantics D22) looks again. Any thread."""
        return self.core.wake_poll(handle)

    def attached(self, filter: LoadedFilter) -> list[Instance]:
        """The list that instances of this filter belong to while they are attached."""
        return self.instances if filter.legacy is None else self.legacies

    def settle_needs(self) -> bool:
        """Whether the filters that the volume needs are all there and at work; the base refuses everything while not.

        Any thread.
        """
        if not self.needs:
            return True
        attached = [each for each in list(self.instances) if each.state is InstanceState.ATTACHED]
        at_work = {each.filter.name for each in attached if not each.failed}
        complete = self.needs <= at_work
        self.core.refuse(not complete)
        return complete

    def settle_bypass(self) -> None:
        """Opens may be bypassed while no instance stands in the way."""
        self.core.allow_bypass(not any(instance.blocks_bypass for instance in (*self.instances, *self.legacies)))

    def settle_timeouts(self) -> None:
        """Zero while an instance sees lookups and its answers may change by themselves (D10)."""
        self.core.stack.names_or_data_filtered = any(
            instance.filter.manifest.answers != "cacheable"
            and {api.IRP_MJ_QUERY_OPEN, api.IRP_MJ_NETWORK_QUERY_OPEN} & set(instance.entry.registered)
            for instance in (*self.instances, *self.legacies)
        )
