"""The Filter Manager: what happens to filters, volumes and instances, in which order (docs/semantics.md, A1 to A3).

A filter is loaded once per process; an instance is its attachment to one volume at one altitude. Everything here runs
on the trio thread, but for the filters' own routines: DriverEntry, the unload callback and the instances' notifications
run in threads, since they may wait, and the loop waits for nobody. No lock is held meanwhile. What is decided between
two awaits is decided at once, and what takes longer is a state of the object (stackfs/filter_objects.py): a name that
is being loaded, an instance that is being set up or torn down, a filter that is being unloaded, each of which others
meet with the status that FltMgr would give.

An instance leaves as stackfs/teardown.py says, after query-teardown (manual detach only). A filter leaves when its
instances have, and when nothing holds a reference on it or them. Nothing of that is left to the garbage collector.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import structlog
import trio

from stackfs import (
    api,
    contexts,
    discovery,
    filter_calls,
    loader,
    mark,
    teardown,
    verifier,
    volume_operations,
    volume_properties,
)
from stackfs.altitude import AltitudeError, sort_key
from stackfs.async_callbacks import AsyncCallbacks
from stackfs.cext.python_requests import Volume as CoreVolume
from stackfs.driver_object import DriverObject
from stackfs.errors import ExitCode, FltError, StackfsError
from stackfs.filter_objects import FilterState, Instance, InstanceState, LoadedFilter, Volume
from stackfs.frames import BetweenLegacyFilters, DeviceStack
from stackfs.manifest import START_TYPES
from stackfs.ports import FilterPorts

__all__ = ["FilterManager", "Instance", "LoadedFilter", "Volume", "current", "running"]

log = structlog.get_logger("stackfs.manager")

PORTS_LIMIT = 5.0
"""Seconds that callbacks of ports have to return when their process ends."""

OPENDIR, RELEASEDIR = 27, 29
"""Requests, as FUSE numbers them."""

T = TypeVar("T")

_current: FilterManager | None = None


def current() -> FilterManager:
    """The manager that runs in this process. FltError: STATUS_FLT_NOT_INITIALIZED, there is none. Any thread."""
    if _current is None:
        raise FltError(api.STATUS_FLT_NOT_INITIALIZED, "no filter manager runs in this process")
    return _current


class FilterManager:
    """All filters and volumes of this process. Its methods raise FltError with the status that FltMgr would give.

    They are called on trio's thread, but for call(), call_sync(), filter() and volume(): any thread.
    """

    def __init__(
        self,
        filter_dirs: Sequence[str] = (),
        filter_options: Mapping[str, Mapping[str, Any]] | None = None,
        manual_instances: Sequence[Any] = (),
    ) -> None:
        self.filter_dirs = list(filter_dirs)
        self.filter_options = {name: dict(values) for name, values in (filter_options or {}).items()}
        self.manual_instances = list(manual_instances)
        self.loaded: dict[str, LoadedFilter] = {}
        self.volumes: list[Volume] = []
        self.frames = DeviceStack()
        self.async_callbacks = AsyncCallbacks()
        self._loading: set[str] = set()
        self._jobs_send, self._jobs_receive = trio.open_memory_channel[Callable[[], Awaitable[object]]](math.inf)
        self._token: trio.lowlevel.TrioToken | None = None

    # --- from other threads --------------------------------------------------------------------------------------

    def call(self, routine: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Have one of the manager's coroutines run, and wait for it: for the routines of the DDI.

        FltError: what it raises; STATUS_FLT_NOT_INITIALIZED: the manager does not run (any more);
        STATUS_POSSIBLE_DEADLOCK: this is the manager's own thread.
        """
        token = self._running_token()
        if self._is_here(token):
            raise FltError(api.STATUS_POSSIBLE_DEADLOCK, "the manager's own thread cannot wait for itself")
        try:
            return trio.from_thread.run(routine, *arguments, trio_token=token)
        except trio.RunFinishedError:
            raise FltError(api.STATUS_FLT_NOT_INITIALIZED, "the filter manager has ended") from None

    def call_sync(self, routine: Callable[..., T], *arguments: Any) -> T:
        """The same for what does not wait; on the manager's own thread too."""
        token = self._running_token()
        if self._is_here(token):
            return routine(*arguments)
        try:
            return trio.from_thread.run_sync(routine, *arguments, trio_token=token)
        except trio.RunFinishedError:
            raise FltError(api.STATUS_FLT_NOT_INITIALIZED, "the filter manager has ended") from None

    def _running_token(self) -> trio.lowlevel.TrioToken:
        if self._token is None:
            raise FltError(api.STATUS_FLT_NOT_INITIALIZED, "the filter manager does not run yet")
        return self._token

    @staticmethod
    def _is_here(token: trio.lowlevel.TrioToken) -> bool:
        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is token

    # --- volumes ------------------------------------------------------------------------------------------------

    def add_volume(self, name: str, mountpoint: str, source: str, core: CoreVolume) -> Volume:
        if any(volume.name == name for volume in self.volumes):
            raise StackfsError(f"a volume named {name!r} is there already")
        volume = Volume(self, name, mountpoint, source, core)
        self.volumes.append(volume)
        return volume

    @staticmethod
    def check_needs(volume: Volume, filters: set[str] | None, raw: bool) -> None:
        """Reads the volume's mark (stackfs/mark.py), before anything is attached. `filters`: those that will be; None:
        not known yet. StackfsError: one that the volume needs is not among them, or the mark is damaged."""
        if raw:
            return
        root = os.open(volume.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            needs = mark.read(root, volume.source)
        finally:
            os.close(root)
        if filters is not None and (missing := sorted(needs - filters)):
            options = ",".join(f"filter={name}" for name in missing)
            raise StackfsError(
                f"{volume.source} is mounted only with {', '.join(missing)}, which it needs: add -o {options} (or look "
                "at what is stored with -o filter=raw)",
                ExitCode.REFUSED,
            )
        volume.needed = needs

    @staticmethod
    def settle_needs(volume: Volume) -> None:
        """Once what is configured has been attached. StackfsError: what the volume needs is not all there."""
        volume.needs = volume.needed
        if not volume.settle_needs():
            missing = volume.needs - {each.filter.name for each in volume.instances}
            names = ", ".join(sorted(missing or volume.needs))
            raise StackfsError(f"{volume.source} needs {names}, which is not attached to it", ExitCode.REFUSED)

    async def open_volume(
        self, name: str, source: str, specs: Sequence[Any] | None = None, raw: bool = False
    ) -> Volume:
        """Hold a further volume, without a mount: a stack over a backing directory (A3.15).

        Its instances are those of the specs (options.InstanceSpec), or else the automatic ones of every filter that is
        loaded; then its root is opened once. StackfsError: it cannot be used, or a filter refuses; nothing is left.
        """
        try:
            root = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StackfsError(f"volume {name!r}: {source}: {error.strerror}", ExitCode.UNUSABLE) from None
        volume = self.add_volume(name, "", source, CoreVolume(root))
        try:
            self.check_needs(volume, None if specs is None else {each.filter for each in specs}, raw)
            await volume_operations.mount(volume, self.loaded.values())
            if specs is None:
                for loaded in sorted(self.loaded.values(), key=lambda each: each.order, reverse=True):
                    if loaded.state is FilterState.FILTERING:
                        await self._attach_automatic(loaded, newly_mounted=volume)
            else:
                flags = api.FLTFL_INSTANCE_SETUP_AUTOMATIC_ATTACHMENT | api.FLTFL_INSTANCE_SETUP_NEWLY_MOUNTED_VOLUME
                await self.attach_configured(volume, specs, flags)
            self.settle_needs(volume)
            await self.open_root(volume)
        except BaseException:
            await self.remove_volume(volume)
            raise
        return volume

    @staticmethod
    async def open_root(volume: Volume) -> None:
        """The first operation on a volume: one CREATE of its root, through the stack (A3.3). StackfsError: a filter
        refuses it."""

        def opened() -> None:
            handle = volume.core.request(OPENDIR, 1).do().fh
            volume.core.request(RELEASEDIR, 1, fh=handle).do()

        try:
            await filter_calls.in_thread(opened)
        except OSError as error:
            raise StackfsError(
                f"the filters do not let the root of {volume.source} be opened: {error.strerror}", ExitCode.REFUSED
            ) from error

    async def remove_volume(self, volume: Volume) -> None:
        """Dismount: every instance is told, then torn down, the filters stay loaded, the core is closed."""
        volume.rundown.run_down()
        with trio.CancelScope(shield=True):
            await volume_operations.dismount(volume)
        with trio.CancelScope(shield=True):
            while volume.instances or volume.legacies or volume.unsettled:
                instances = self._in_order([*volume.instances, *volume.legacies, *volume.unsettled])
                await teardown.tear_down(instances, api.FLTFL_INSTANCE_TEARDOWN_VOLUME_DISMOUNT)
            # What was drained or let go of is still on its way to its end.
            while not volume.core.stack.settled or volume.core.held() or volume.core.resuming:
                await trio.sleep(teardown.DRAIN_POLL)
            await filter_calls.end(volume)
            verifier.volume_ends(volume)
            self.volumes.remove(volume)
        volume.core.close()

    def volume_names(self) -> list[tuple[str, str]]:
        """Name and mountpoint of each; from any thread."""
        return [(volume.name, volume.mountpoint) for volume in list(self.volumes)]

    def close_ports(self) -> None:
        """The process ends: programs are shown out, and callbacks that wait for them go on. In a thread that may wait.

        Each callback has PORTS_LIMIT seconds to return.
        """
        for loaded in list(self.loaded.values()):
            loaded.ports.close(PORTS_LIMIT)

    def volume(self, name: str) -> Volume:
        """By name, mountpoint or GUID name."""
        for volume in list(self.volumes):
            if name in (volume.name, volume.mountpoint):
                return volume
        if name.startswith("\\??\\Volume{"):
            for volume in list(self.volumes):
                if name == volume_properties.guid_name(volume):
                    return volume
        raise FltError(api.STATUS_FLT_VOLUME_NOT_FOUND, f"no volume {name!r} here", ExitCode.NOT_FOUND)

    @staticmethod
    def _in_order(instances: Iterable[Instance]) -> list[Instance]:
        """As instances are set up and torn down: by their filters' default instances, then by their own altitudes."""
        return sorted(instances, key=lambda each: (each.filter.order, sort_key(each.altitude)), reverse=True)

    # --- filters ------------------------------------------------------------------------------------------------

    def filter(self, name: str) -> LoadedFilter:
        found = self.loaded.get(name)
        if found is not None and found.legacy is None:
            return found
        words = f"filter {name!r} is not loaded"
        if found is not None:
            words = f"{name!r} is a legacy filter, and none of the Filter Manager's: it stays where it is"
        raise FltError(api.STATUS_FLT_FILTER_NOT_FOUND, words, ExitCode.NOT_FOUND)

    async def load(self, name: str, declined: list[str] | None = None) -> list[Instance]:
        """FltLoadFilter: import it, start it, attach its automatic instances to every volume. Returns those.

        Errors: STATUS_IMAGE_ALREADY_LOADED, STATUS_OBJECT_NAME_NOT_FOUND, STATUS_INVALID_IMAGE_FORMAT,
        STATUS_FAILED_DRIVER_ENTRY, STATUS_DRIVER_FAILED_PRIOR_UNLOAD (A2.3, A2.5). An instance that does not attach is
        no error; why it did not is added to `declined`.
        """
        loaded = await self._load(name)
        if loaded.state is not FilterState.FILTERING:
            return []
        return await self._attach_automatic(loaded, declined)

    async def _load(self, name: str) -> LoadedFilter:
        self._check_not_loaded(name)
        self._loading.add(name)
        try:
            found = discovery.find(name, self.filter_dirs)
            entry = await filter_calls.in_thread(loader.load, found)
            try:
                options = self.filter_options.get(name)
                if options is None:
                    options = found.manifest.validate_options({})
                if isinstance(entry, type):
                    loaded = await self._make(found, entry, dict(options))
                    loaded.become(FilterState.FILTERING)
                else:
                    loaded = await self._run_driver_entry(found, entry, dict(options))
            except BaseException:
                with trio.CancelScope(shield=True):
                    await filter_calls.in_thread(loader.unload, found)
                raise
        finally:
            self._loading.discard(name)
        return loaded

    def _check_not_loaded(self, name: str) -> None:
        if name in self.loaded and self.loaded[name].state is FilterState.UNLOADING:
            held = self.loaded[name].held_by()
            raise FltError(
                api.STATUS_DRIVER_FAILED_PRIOR_UNLOAD,
                f"filter {name!r} is still being unloaded" + (f": it waits for {', '.join(held)}" if held else ""),
            )
        if name in self.loaded or name in self._loading:
            raise FltError(api.STATUS_IMAGE_ALREADY_LOADED, f"filter {name!r} is loaded already")

    async def _make(self, found: discovery.Found, cls: type[api.Filter], options: dict[str, Any]) -> LoadedFilter:
        """A filter's object, registered. Where that fails, the ports are closed that it has opened."""
        filter_object = cls.__new__(cls)
        ports = filter_object._ports = FilterPorts(found.name, self.volume_names)

        def make() -> None:
            try:
                filter_object.__init__(options)  # type: ignore[misc]
            except StackfsError:
                raise
            except BaseException as error:
                raise FltError(
                    api.STATUS_FAILED_DRIVER_ENTRY, f"{found.path}: {type(error).__name__}: {error}"
                ) from error

        try:
            await filter_calls.in_thread(make)
            return self.register(found, filter_object)
        except BaseException:
            with trio.CancelScope(shield=True):
                await filter_calls.in_thread(ports.close, PORTS_LIMIT)
            raise

    async def _run_driver_entry(
        self, found: discovery.Found, entry: Callable[[DriverObject, str], int | None], options: dict[str, Any]
    ) -> LoadedFilter:
        """DriverEntry; where it fails, what it has done is undone, and the unload callback is not called (A2.13)."""
        driver = DriverObject(self, found, options)

        def start() -> str:
            try:
                status = int(entry(driver, driver.registry_path) or 0) & 0xFFFFFFFF
            except BaseException as error:
                return f"{type(error).__name__}: {error}"
            return "" if api.is_success(status) else f"it returned {api.status_name(status)}"

        reason = await filter_calls.in_thread(start)
        loaded = driver.filter
        if reason and driver.refused:
            reason += f" ({driver.refused})"
        if not reason and (loaded is None or loaded.state in (FilterState.UNLOADING, FilterState.GONE)):
            reason = "it returned without having registered a filter (FltRegisterFilter)"
        if reason:
            if loaded is not None:
                if loaded.state is not FilterState.GONE:
                    log.warning("DriverEntry failed, and left its filter registered", filter=found.name)
                await self.unregister(loaded)
            raise FltError(api.STATUS_FAILED_DRIVER_ENTRY, f"{found.path}: DriverEntry: {reason}")
        assert loaded is not None
        return loaded

    def register(self, found: discovery.Found, filter_object: api.Filter) -> LoadedFilter:
        """FltRegisterFilter. FltError: STATUS_FLT_INSTANCE_ALTITUDE_COLLISION, it is registered already."""
        if found.name in self.loaded:
            raise FltError(api.STATUS_FLT_INSTANCE_ALTITUDE_COLLISION, f"filter {found.name!r} is registered already")
        if filter_object._ports is None:
            filter_object._ports = FilterPorts(found.name, self.volume_names)
        loaded = LoadedFilter(self, found, filter_object, filter_object._ports)
        altitude = found.manifest.altitude
        if isinstance(filter_object, api.LegacyFilter):
            loaded.legacy = self.frames.add_legacy(found.name, altitude, self._highest())
        else:
            loaded.frame = self._frame_of(altitude)
        self.loaded[loaded.name] = loaded
        return loaded

    def _highest(self) -> str | None:
        """The highest altitude that a minifilter has, or will have by default."""
        minifilters = [each for each in self.loaded.values() if each.legacy is None]
        own = [each.altitude for loaded in minifilters for each in loaded.instances]
        return max([*own, *(each.manifest.altitude for each in minifilters)], key=sort_key, default=None)

    def _frame_of(self, altitude: str) -> int:
        """The number of a minifilter's frame. FltError: STATUS_INVALID_PARAMETER, nothing can attach there (A1.11)."""
        try:
            return self.frames.frame_of(altitude).number
        except BetweenLegacyFilters as error:
            raise FltError(api.STATUS_INVALID_PARAMETER, str(error)) from None

    def start_filtering(self, loaded: LoadedFilter) -> None:
        """FltStartFiltering: instances may come from now on; the automatic ones when DriverEntry has returned.

        FltError: STATUS_INVALID_PARAMETER, it was called before (A2.14).
        """
        if loaded.state is not FilterState.REGISTERED:
            raise FltError(api.STATUS_INVALID_PARAMETER, f"{loaded} has started filtering already")
        loaded.become(FilterState.FILTERING)
        if loaded.name not in self._loading:
            self.soon(lambda: self._attach_automatic(loaded))

    async def unload(self, name: str, mandatory: bool = False) -> None:
        """FltUnloadFilter, or with `mandatory` what stopping the service does: the filter is told, not asked (A2.8).

        Errors: STATUS_FLT_FILTER_NOT_FOUND, STATUS_FLT_DELETING_OBJECT (it is being unloaded, by itself perhaps),
        STATUS_FLT_FILTER_NOT_READY (its DriverEntry has not returned), STATUS_FLT_DO_NOT_DETACH, STATUS_NOT_SUPPORTED
        (it does not support being stopped), or what its callback answers.
        """
        loaded = self.filter(name)
        if name in self._loading:
            raise FltError(api.STATUS_FLT_FILTER_NOT_READY, f"filter {name!r} is still being loaded")
        if loaded.state is FilterState.UNLOADING or loaded.unload_flags is not None:
            held = loaded.held_by()
            raise FltError(
                api.STATUS_FLT_DELETING_OBJECT,
                f"filter {name!r} is being unloaded already" + (f": it waits for {', '.join(held)}" if held else ""),
            )
        callback: Callable[[int], int] | None = getattr(loaded.object, "filter_unload", None)
        if callback is None:
            raise FltError(api.STATUS_FLT_DO_NOT_DETACH, f"filter {name!r} has no unload callback: it stays loaded")
        if mandatory and loaded.object.flags & api.FLTFL_REGISTRATION_DO_NOT_SUPPORT_SERVICE_STOP:
            words = f"filter {name!r} does not support being stopped: fltmc unload asks it"
            raise FltError(api.STATUS_NOT_SUPPORTED, words)
        flags = api.FLTFL_FILTER_UNLOAD_MANDATORY if mandatory else 0
        loaded.unload_flags = flags
        await self._whatever_happens(lambda: self._unload(loaded, callback, flags))

    async def _unload(self, loaded: LoadedFilter, callback: Callable[[int], int], flags: int) -> None:
        name = loaded.name
        try:
            if flags & api.FLTFL_FILTER_UNLOAD_MANDATORY:
                await filter_calls.tell(f"{name}: filter_unload", callback, flags)
            else:
                status = await filter_calls.ask(f"{name}: filter_unload", callback, flags)
                if not api.is_success(status) and loaded.state not in (FilterState.UNLOADING, FilterState.GONE):
                    raise FltError(status, f"filter {name!r} refuses to be unloaded ({api.status_name(status)})")
            await self.unregister(loaded)
        finally:
            loaded.unload_flags = None

    async def unregister(self, loaded: LoadedFilter) -> None:
        """FltUnregisterFilter: its instances are torn down, references are waited for, then it is gone (A2.15)."""
        if loaded.state in (FilterState.UNLOADING, FilterState.GONE):
            await loaded.gone.wait()
            return
        loaded.become(FilterState.UNLOADING)
        loaded.rundown.run_down()
        reason = (
            api.FLTFL_INSTANCE_TEARDOWN_MANDATORY_FILTER_UNLOAD
            if loaded.unload_flags == api.FLTFL_FILTER_UNLOAD_MANDATORY
            else api.FLTFL_INSTANCE_TEARDOWN_FILTER_UNLOAD
        )
        with trio.CancelScope(shield=True):
            # First: what a callback waits for on a port must not hold up the instances that are torn down.
            await filter_calls.in_thread(loaded.ports.close)
            while loaded.instances:
                await teardown.tear_down(self._in_order(loaded.instances), reason)
        with trio.move_on_after(teardown.PATIENCE) as patience:
            await self._unreferenced(loaded)
        if patience.cancelled_caught:
            log.warning("an unload waits for what holds the filter", filter=loaded.name, held_by=loaded.held_by())
            verifier.keep_alive([loaded, *loaded.instances, *loaded.former])
            await self._unreferenced(loaded)
        with trio.CancelScope(shield=True):
            await contexts.unregister(loaded.name, loaded.contexts)
            await filter_calls.end(loaded)
            others = [each for each in self.loaded.values() if each is not loaded]
            attached = [instance for each in others for instance in (*each.instances, *each.former)]
            verifier.filter_ends(loaded.name, loaded.contexts, [*self.volumes, *others, *attached])
            await filter_calls.in_thread(loader.unload, loaded.found)
        del self.loaded[loaded.name]
        loaded.become(FilterState.GONE)
        loaded.gone.set()

    @staticmethod
    async def _unreferenced(loaded: LoadedFilter) -> None:
        await loaded.rundown.wait()
        for instance in loaded.former:
            await instance.rundown.wait()

    # --- instances ----------------------------------------------------------------------------------------------

    async def attach_configured(self, volume: Volume, specs: Sequence[Any], flags: int) -> None:
        """At mount: load the filters that the specs (options.InstanceSpec) name, and attach just these instances.

        They are set up in the order of their filters' default instances (A1.6).
        """
        await self.load_configured(specs)
        ordered = sorted(
            specs,
            key=lambda each: (self.loaded[each.filter].order, sort_key(each.altitude or "0")),
            reverse=True,
        )
        for spec in ordered:
            loaded = self.loaded[spec.filter]
            altitude = spec.altitude or loaded.manifest.altitude
            await self._attach(loaded, volume, spec.name, altitude, flags, dict(spec.options))

    async def load_configured(self, specs: Sequence[Any]) -> None:
        """Load the filters that the specs name and that are not loaded yet, by start type (A2.2)."""
        for spec in specs:
            self.filter_options.setdefault(spec.filter, dict(spec.options))
        wanted = {
            name: discovery.find(name, self.filter_dirs).manifest
            for name in {spec.filter: None for spec in specs}
            if name not in self.loaded
        }
        for name in sorted(wanted, key=lambda each: START_TYPES.index(wanted[each].start)):
            await self._load(name)

    async def _attach_automatic(
        self, loaded: LoadedFilter, declined: list[str] | None = None, newly_mounted: Volume | None = None
    ) -> list[Instance]:
        """The filter's automatic instances, on every volume, or on one that has just been mounted."""
        flags = api.FLTFL_INSTANCE_SETUP_AUTOMATIC_ATTACHMENT
        if newly_mounted is not None:
            flags |= api.FLTFL_INSTANCE_SETUP_NEWLY_MOUNTED_VOLUME
        attached = []
        for volume in [newly_mounted] if newly_mounted is not None else list(self.volumes):
            for definition in loaded.manifest.all_instances:
                if not definition.is_automatic:
                    continue
                try:
                    attached.append(await self._attach(loaded, volume, definition.name, definition.altitude, flags))
                except StackfsError as error:
                    log.info("not attached", filter=loaded.name, volume=volume.name, reason=error.message)
                    if declined is not None:
                        declined.append(error.message)
        return attached

    async def attach(
        self,
        filter: str | LoadedFilter,
        volume: Volume,
        instance_name: str | None = None,
        altitude: str | None = None,
    ) -> Instance:
        """FltAttachVolume and FltAttachVolumeAtAltitude (A3).

        Errors: STATUS_FLT_FILTER_NOT_FOUND, STATUS_FLT_FILTER_NOT_READY, STATUS_FLT_DELETING_OBJECT,
        STATUS_FLT_INSTANCE_NAME_COLLISION, STATUS_FLT_INSTANCE_ALTITUDE_COLLISION, STATUS_INVALID_PARAMETER (no such
        altitude for this filter), STATUS_FLT_DO_NOT_ATTACH (A3.13), or what instance_setup answers.
        """
        loaded = filter if isinstance(filter, LoadedFilter) else self.filter(filter)
        loaded.check_filtering()
        manifest = loaded.manifest
        if instance_name is None and altitude is not None:
            name = f"{loaded.name} - {altitude}"[:255]
        else:
            name = instance_name or manifest.default_instance
        definition = manifest.instance(name)
        if definition is not None and not definition.is_manual:
            raise FltError(
                api.STATUS_FLT_DO_NOT_ATTACH,
                f"instance {name!r} of filter {loaded.name!r} cannot be attached by a command: its manifest says "
                f'attach = "{definition.attach}"',
            )
        held = None if volume.mountpoint else volume.name
        manual = [
            spec
            for spec in self.manual_instances
            if (spec.filter, spec.name) == (loaded.name, name) and spec.volume in (None, held)
        ]
        if altitude is None and manual:
            altitude = manual[0].altitude
        try:
            chosen = manifest.check_altitude(altitude or (definition.altitude if definition else manifest.altitude))
        except AltitudeError as error:
            raise FltError(api.STATUS_INVALID_PARAMETER, str(error)) from error
        return await self._attach(loaded, volume, name, chosen, api.FLTFL_INSTANCE_SETUP_MANUAL_ATTACHMENT)

    async def _attach(
        self,
        loaded: LoadedFilter,
        volume: Volume,
        name: str,
        altitude: str,
        flags: int,
        options: dict[str, Any] | None = None,
    ) -> Instance:
        instance = self._reserve(loaded, volume, name, altitude, options)
        if volume.detached:
            flags |= api.FLTFL_INSTANCE_SETUP_DETACHED_VOLUME
        try:
            setup = loaded.object.instance_setup
            status = await filter_calls.ask(f"{loaded.name}: instance_setup", setup, instance, flags)
            if not api.is_success(status):
                raise FltError(
                    status,
                    f"filter {loaded.name!r} does not attach to volume {volume.name!r} ({api.status_name(status)})",
                )
            await teardown.write_back(instance)
            try:
                self._check_alive(loaded, volume)  # it may have begun to go meanwhile
                self._yield_bypass(instance)
            except FltError:
                gone = loaded.object.instance_teardown_complete
                reason = api.FLTFL_INSTANCE_TEARDOWN_INTERNAL_ERROR
                await filter_calls.tell(f"{loaded.name}: instance_teardown_complete", gone, instance, reason)
                raise
            volume.core.stack.insert(instance.entry)
        except BaseException:
            volume.unsettled.remove(instance)
            loaded.instances.remove(instance)
            instance.rundown.run_down()
            instance.become(InstanceState.GONE)
            with trio.CancelScope(shield=True):
                left_open = await teardown.end_io(instance)
                await contexts.delete_all(instance.entry)
                await filter_calls.end(instance)
                verifier.instance_ends(instance, left_open)
            raise
        volume.unsettled.remove(instance)
        attached = volume.attached(loaded)
        attached.append(instance)
        attached.sort(key=lambda each: sort_key(each.altitude), reverse=True)
        instance.become(InstanceState.ATTACHED)
        volume.settle_needs()
        volume.settle_timeouts()
        await teardown.replaced(volume)
        await teardown.invalidate(instance)
        self._invalidate_later(instance)
        return instance

    def _reserve(
        self, loaded: LoadedFilter, volume: Volume, name: str, altitude: str, options: dict[str, Any] | None
    ) -> Instance:
        """The new instance, its name and altitude taken from now on. FltError: why there cannot be one."""
        self._check_alive(loaded, volume)
        if loaded.legacy is not None:
            altitude = loaded.legacy.place
        for other in (*volume.instances, *volume.legacies, *volume.unsettled):
            going = ", which is still being torn down" if other.state is InstanceState.TEARING_DOWN else ""
            if other.name == name:
                raise FltError(
                    api.STATUS_FLT_INSTANCE_NAME_COLLISION,
                    f"volume {volume.name!r} has an instance {name!r} already{going}",
                )
            if sort_key(other.altitude) == sort_key(altitude):
                raise FltError(
                    api.STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
                    f"altitude {altitude} is taken on volume {volume.name!r} by {other.name!r}{going}",
                )
        try:
            instance = Instance(
                loaded, volume, name, altitude, dict(loaded.object.options) if options is None else options
            )
        except StackfsError:  # options that the filter cannot register by
            raise
        except BaseException as error:  # out of operations_for(), or a registration that was changed after the check
            what = f"filter {loaded.name!r} cannot be attached: {type(error).__name__}: {error}"
            raise FltError(api.STATUS_INVALID_PARAMETER, what) from error
        if loaded.legacy is None:
            instance.frame = self._frame_of(altitude)
        volume.unsettled.append(instance)
        loaded.instances.append(instance)
        return instance

    @staticmethod
    def _check_alive(loaded: LoadedFilter, volume: Volume) -> None:
        loaded.check_filtering()
        if volume.rundown.ending:
            raise FltError(api.STATUS_FLT_DELETING_OBJECT, f"{volume} is being dismounted")

    @staticmethod
    def _yield_bypass(instance: Instance) -> None:
        """Before an instance is published that wants to see data: what is decided from here on is not bypassed."""
        if not instance.blocks_bypass:
            return
        refuses = instance.filter.manifest.attach_with_bypassed == "refuse"
        bypassed = instance.volume.core.allow_bypass(False, unless_bypassed=refuses)
        if bypassed and refuses:
            raise FltError(
                api.STATUS_FLT_DO_NOT_ATTACH,
                f"filter {instance.filter.name!r} does not attach to volume {instance.volume.name!r}: {bypassed} open "
                "files are bypassed, and it would not see their reads and writes; close them, or mount with bypass=off",
            )

    async def detach(
        self, filter: str | LoadedFilter, volume: Volume, instance_name: str | None = None
    ) -> Instance:
        """FltDetachVolume: the named instance, or the filter's highest one, if it agrees (A3).

        Errors: STATUS_FLT_FILTER_NOT_FOUND, STATUS_FLT_INSTANCE_NOT_FOUND, STATUS_FLT_DELETING_OBJECT,
        STATUS_FLT_DO_NOT_DETACH, or what instance_query_teardown answers.
        """
        loaded = filter if isinstance(filter, LoadedFilter) else self.filter(filter)
        for instance in (*volume.instances, *volume.unsettled):
            if instance.filter is loaded and instance_name in (None, instance.name):
                break
        else:
            raise FltError(
                api.STATUS_FLT_INSTANCE_NOT_FOUND,
                f"filter {loaded.name!r} has no instance{f' {instance_name!r}' if instance_name else ''} "
                f"on volume {volume.name!r}",
                ExitCode.NOT_FOUND,
            )
        await instance.settled.wait()
        status: int = api.STATUS_FLT_DO_NOT_DETACH
        if instance.state is InstanceState.ATTACHED:
            query: Callable[..., int] | None = getattr(loaded.object, "instance_query_teardown", None)
            if query is not None:
                status = await filter_calls.ask(f"{loaded.name}: instance_query_teardown", query, instance, 0)
        if instance.state is not InstanceState.ATTACHED:
            raise FltError(api.STATUS_FLT_DELETING_OBJECT, f"{instance} is being torn down already")
        if not api.is_success(status):
            raise FltError(status, f"instance {instance.name!r} refuses to be detached ({api.status_name(status)})")
        await self._whatever_happens(lambda: teardown.tear_down([instance], api.FLTFL_INSTANCE_TEARDOWN_MANUAL))
        return instance

    def _invalidate_later(self, instance: Instance) -> None:
        """What filters held when the instance came still ends on lists without it, and may leave in the kernel's
        caches what it would have changed."""
        volume = instance.volume

        async def wait() -> None:
            while not volume.core.stack.settled:
                await trio.sleep(teardown.CANCEL_EVERY)
            if instance in volume.instances:
                await teardown.invalidate(instance)

        if not volume.core.stack.settled:
            self.soon(wait)

    # --- the manager's own task ------------------------------------------------------------------------------------

    def soon(self, job: Callable[[], Awaitable[object]]) -> None:
        """Have a coroutine run by the manager's own task. Any thread. Nothing happens once the manager has ended."""
        with contextlib.suppress(trio.RunFinishedError):
            if self._token is not None:
                self._token.run_sync_soon(self._jobs_send.send_nowait, job)

    async def _whatever_happens(self, job: Callable[[], Awaitable[None]]) -> None:
        """Wait for a coroutine that is run by the manager's own task: it goes on though whoever waits gives up."""
        if self._token is None:
            await job()
            return
        ended = trio.Event()
        refused: list[StackfsError] = []

        async def run() -> None:
            try:
                await job()
            except StackfsError as error:
                refused.append(error)
            ended.set()

        self._jobs_send.send_nowait(run)
        await ended.wait()
        if refused:
            raise refused[0]

    def detach_soon(self, instance: Instance) -> None:
        """From any thread: take an instance out that raised too often and may be passed by."""
        self.soon(lambda: teardown.tear_down([instance], api.FLTFL_INSTANCE_TEARDOWN_INTERNAL_ERROR))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Does what soon() and detach_soon() were given, until cancelled. While it runs, current() is this manager."""
        global _current
        self._token = trio.lowlevel.current_trio_token()
        _current = self
        self.async_callbacks.bind()
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for job in self._jobs_receive:
                    nursery.start_soon(self._do, job)
                    del job  # and what it holds
        finally:
            if _current is self:
                _current = None

    @staticmethod
    async def _do(job: Callable[[], Awaitable[object]]) -> None:
        try:
            await job()
        except StackfsError as error:
            log.error("what was to be done later failed", reason=error.message)

@contextlib.asynccontextmanager
async def running(manager: FilterManager) -> AsyncIterator[FilterManager]:
    """A manager with its task running, for as long as the block: tests and programs that need no mount."""
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: manager.run(task_status=task_status))
        try:
            yield manager
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(manager.close_ports)
                for volume in list(manager.volumes):
                    await manager.remove_volume(volume)
            nursery.cancel_scope.cancel()
