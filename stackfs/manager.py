"""The Filter Manager: filters, volumes and instances, and what may happen to them (docs/semantics.md, A1 to A3).

A filter is loaded once per process; an instance is its attachment to one volume at one altitude. Everything here runs
on the trio thread. Loading, attaching, detaching and unloading are done one at a time, under one lock; they wait,
without holding up the drive, until operations that still walk a replaced callback list have let go.

An instance leaves in this order: query-teardown (manual detach only), out of the callback lists, teardown-start, wait
until no operation uses it, teardown-complete, forgotten. Nothing of that is left to the garbage collector.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
import trio

from stackfs import api, discovery, loader
from stackfs.altitude import AltitudeError, sort_key
from stackfs.cext.requests import Volume as CoreVolume
from stackfs.cext.stack import InstanceEntry
from stackfs.errors import ExitCode, FltError, StackfsError
from stackfs.manifest import Manifest
from stackfs.ports import FilterPorts

log = structlog.get_logger("stackfs.manager")

TOUCHES_CACHES = frozenset(
    {
        api.IRP_MJ_READ,
        api.IRP_MJ_WRITE,
        api.IRP_MJ_QUERY_OPEN,
        api.IRP_MJ_NETWORK_QUERY_OPEN,
        api.IRP_MJ_QUERY_INFORMATION,
        api.IRP_MJ_DIRECTORY_CONTROL,
    }
)
"""An instance that registers one of these may make what the kernel has cached wrong by coming or going."""

SUPPORTED_FS_FEATURES_BYPASS_IO = 0x8
"""In the column SprtFtrs of `fltmc instances`."""

DRAIN_POLL = 0.0005
"""Seconds between two looks at whether a replaced callback list is still in use."""

PORTS_LIMIT = 5.0
"""Seconds that callbacks of ports have to return when their process ends."""

STATUS_FAILED_DRIVER_ENTRY = 0xC0000365


class Instance:
    """One attachment of a filter to a volume. Callbacks get it as `objects`."""

    def __init__(self, filter: LoadedFilter, volume: Volume, name: str, altitude: str, options: dict[str, Any]) -> None:
        self.filter = filter
        self.volume = volume
        self.name = name
        self.altitude = altitude
        self.options = options
        self.context: Any = None
        """The filter's own."""
        self.entry = InstanceEntry(
            self,
            name,
            altitude,
            filter.name,
            [
                (
                    operation.major,
                    operation.flags,
                    getattr(filter.object, operation.pre) if operation.pre else None,
                    getattr(filter.object, operation.post) if operation.post else None,
                )
                for operation in filter.object.operations
            ],
            filter.object.native,
            filter.manifest.on_error == "pass",
        )

    @property
    def failed(self) -> bool:
        return self.entry.failed

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

    # Asked by the stack, on whatever thread the callback ran.

    def callback_raised(self, routine: str, major: int, path: str, error: BaseException) -> None:
        log.error(
            "a callback raised",
            filter=self.filter.name,
            instance=self.name,
            operation=api.major_name(major),
            routine=routine,
            path=path,
            error=f"{type(error).__name__}: {error}",
            outcome="passed by" if self.filter.manifest.on_error == "pass" else "EIO",
        )

    def callback_misused(self, routine: str, major: int, path: str, status: int) -> None:
        log.error(
            "a callback broke the rules",
            filter=self.filter.name,
            instance=self.name,
            operation=api.major_name(major),
            routine=routine,
            path=path,
            error=f"it returned {status}, which is not legal here; pending is not in this release",
            outcome="passed by" if self.filter.manifest.on_error == "pass" else "EIO",
        )

    def error_limit_reached(self) -> None:
        passes = self.filter.manifest.on_error == "pass"
        log.error(
            "an instance failed too often",
            filter=self.filter.name,
            instance=self.name,
            outcome="detached" if passes else "the operations it registers answer EIO; detach it, or load it again",
        )
        if passes:
            self.volume.manager.detach_soon(self)


class LoadedFilter:
    """A filter that is loaded: its class's one object, and its instances."""

    def __init__(self, found: discovery.Found, filter_object: api.Filter, ports: FilterPorts) -> None:
        self.found = found
        self.object = filter_object
        self.instances: list[Instance] = []
        self.ports = ports

    @property
    def name(self) -> str:
        return self.found.manifest.name

    @property
    def manifest(self) -> Manifest:
        return self.found.manifest


class Volume:
    """A backing directory with a stack over it; mounted, or held without a mount (mountpoint "")."""

    def __init__(self, manager: FilterManager, name: str, mountpoint: str, source: str, core: CoreVolume) -> None:
        self.manager = manager
        self.name = name
        self.mountpoint = mountpoint
        self.source = source
        self.core = core
        self.instances: list[Instance] = []
        """Highest altitude first."""
        self.invalidate: Callable[[], Awaitable[None]] | None = None
        """Makes the kernel forget what it cached; set by whoever mounted the volume."""

    def settle_bypass(self) -> None:
        """Opens may be bypassed while no instance stands in the way."""
        self.core.allow_bypass(not any(instance.blocks_bypass for instance in self.instances))

    def settle_timeouts(self) -> None:
        """Zero while an instance sees lookups and its answers may change by themselves (DESIGN: Caches)."""
        self.core.stack.names_or_data_filtered = any(
            instance.filter.manifest.answers != "cacheable"
            and {api.IRP_MJ_QUERY_OPEN, api.IRP_MJ_NETWORK_QUERY_OPEN} & set(instance.entry.registered)
            for instance in self.instances
        )


class FilterManager:
    """All filters and volumes of this process. Its methods raise FltError with the status that FltMgr would give."""

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
        self._lock = trio.Lock()
        self._detach_send, self._detach_receive = trio.open_memory_channel[Instance](math.inf)
        self._token: trio.lowlevel.TrioToken | None = None

    # --- volumes ------------------------------------------------------------------------------------------------

    def add_volume(self, name: str, mountpoint: str, source: str, core: CoreVolume) -> Volume:
        if any(volume.name == name for volume in self.volumes):
            raise StackfsError(f"a volume named {name!r} is there already")
        volume = Volume(self, name, mountpoint, source, core)
        self.volumes.append(volume)
        return volume

    async def remove_volume(self, volume: Volume) -> None:
        """Dismount: every instance is torn down, the filters stay loaded, the core is closed."""
        async with self._lock:
            for instance in list(volume.instances):
                await self._tear_down(instance, api.FLTFL_INSTANCE_TEARDOWN_VOLUME_DISMOUNT)
            self.volumes.remove(volume)
            volume.core.close()

    def volume(self, name: str) -> Volume:
        """By name or mountpoint."""
        for volume in self.volumes:
            if name in (volume.name, volume.mountpoint):
                return volume
        raise FltError(api.STATUS_FLT_VOLUME_NOT_FOUND, f"no volume {name!r} here", ExitCode.NOT_FOUND)

    def volume_names(self) -> list[tuple[str, str]]:
        """Name and mountpoint of each; from any thread."""
        return [(volume.name, volume.mountpoint) for volume in list(self.volumes)]

    def close_ports(self) -> None:
        """The process ends: programs are shown out, and callbacks that wait for them go on. In a thread that may wait.

        Each callback has PORTS_LIMIT seconds to return.
        """
        for loaded in list(self.loaded.values()):
            loaded.ports.close(PORTS_LIMIT)

    # --- filters ------------------------------------------------------------------------------------------------

    def filter(self, name: str) -> LoadedFilter:
        try:
            return self.loaded[name]
        except KeyError:
            raise FltError(
                api.STATUS_FLT_FILTER_NOT_FOUND, f"filter {name!r} is not loaded", ExitCode.NOT_FOUND
            ) from None

    async def load(self, name: str, declined: list[str] | None = None) -> list[Instance]:
        """FltLoadFilter: import it, make its object, attach its automatic instances to every volume. Returns those.

        Errors: STATUS_IMAGE_ALREADY_LOADED, STATUS_OBJECT_NAME_NOT_FOUND, STATUS_INVALID_IMAGE_FORMAT,
        STATUS_FAILED_DRIVER_ENTRY. An instance that does not attach is no error; why it did not is added to
        `declined`.
        """
        async with self._lock:
            if name in self.loaded:
                raise FltError(api.STATUS_IMAGE_ALREADY_LOADED, f"filter {name!r} is loaded already")
            loaded = self._load(name)
            attached = []
            for volume in list(self.volumes):
                for definition in loaded.manifest.all_instances:
                    if definition.attach != "automatic":
                        continue
                    try:
                        attached.append(
                            await self._attach(
                                loaded, volume, definition.name, definition.altitude,
                                api.FLTFL_INSTANCE_SETUP_AUTOMATIC_ATTACHMENT,
                            )
                        )  # fmt: skip
                    except StackfsError as error:
                        log.info("not attached", filter=name, volume=volume.name, reason=error.message)
                        if declined is not None:
                            declined.append(error.message)
            return attached

    def _load(self, name: str) -> LoadedFilter:
        found = discovery.find(name, self.filter_dirs)
        cls = loader.load(found)
        options = self.filter_options.get(found.manifest.name)
        ports = FilterPorts(found.manifest.name, self.volume_names)
        try:
            if options is None:
                options = found.manifest.validate_options({})
            filter_object = cls.__new__(cls)
            filter_object._ports = ports  # before __init__, which may open some
            filter_object.__init__(dict(options))  # type: ignore[misc]
            loaded = LoadedFilter(found, filter_object, ports)
        except StackfsError:
            ports.close(PORTS_LIMIT)
            loader.unload(found)
            raise
        except BaseException as error:
            ports.close(PORTS_LIMIT)
            loader.unload(found)
            raise FltError(
                STATUS_FAILED_DRIVER_ENTRY, f"{found.path}: {type(error).__name__}: {error}"
            ) from error
        self.loaded[loaded.name] = loaded
        return loaded

    async def unload(self, name: str, mandatory: bool = False) -> None:
        """FltUnloadFilter, or with `mandatory` what stopping the service does: the filter is asked, not obeyed (A2)."""
        async with self._lock:
            loaded = self.filter(name)
            flags = api.FLTFL_FILTER_UNLOAD_MANDATORY if mandatory else 0
            callback: Callable[[int], int] | None = getattr(loaded.object, "filter_unload", None)
            if callback is None:
                raise FltError(api.STATUS_FLT_DO_NOT_DETACH, f"filter {name!r} has no unload callback: it stays loaded")
            if mandatory:
                self._tell(f"{name}: filter_unload", callback, flags)
                status = api.STATUS_SUCCESS
            else:
                status = self._ask(f"{name}: filter_unload", callback, flags)
            if not api.is_success(status):
                raise FltError(status, f"filter {name!r} refuses to be unloaded ({api.status_name(status)})")
            # First: what a callback waits for on a port must not hold up the instances that are torn down.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(loaded.ports.close)
            reason = (
                api.FLTFL_INSTANCE_TEARDOWN_MANDATORY_FILTER_UNLOAD
                if mandatory
                else api.FLTFL_INSTANCE_TEARDOWN_FILTER_UNLOAD
            )
            for instance in list(loaded.instances):
                await self._tear_down(instance, reason)
            del self.loaded[name]
            loader.unload(loaded.found)

    @staticmethod
    def _ask(what: str, callback: Callable[..., int | None] | None, *arguments: object) -> int:
        """A notification's answer as an unsigned NTSTATUS; an exception is STATUS_UNSUCCESSFUL, and logged.

        A StackfsError is a refusal in the filter's own words, and goes to whoever asked.
        """
        if callback is None:  # set to None by a filter that has nothing to do there
            return 0
        try:
            answer = callback(*arguments)
            return 0 if answer is None else int(answer) & 0xFFFFFFFF
        except StackfsError:
            raise
        except BaseException as error:
            log.error("a notification raised", routine=what, error=f"{type(error).__name__}: {error}")
            return int(api.STATUS_UNSUCCESSFUL)

    @classmethod
    def _tell(cls, what: str, callback: Callable[..., int | None] | None, *arguments: object) -> None:
        """A notification that cannot be refused: whatever it does, what it was told of goes on."""
        try:
            cls._ask(what, callback, *arguments)
        except StackfsError as error:
            log.error("a notification raised", routine=what, error=error.message)

    # --- instances ----------------------------------------------------------------------------------------------

    async def attach_configured(self, volume: Volume, specs: Sequence[Any], flags: int) -> None:
        """At mount: load the filters that the specs (options.InstanceSpec) name, and attach just these instances."""
        async with self._lock:
            for spec in specs:
                self.filter_options.setdefault(spec.filter, dict(spec.options))
                loaded = self.loaded.get(spec.filter) or self._load(spec.filter)
                altitude = spec.altitude or loaded.manifest.altitude
                await self._attach(loaded, volume, spec.name, altitude, flags, dict(spec.options))

    async def attach(
        self, filter_name: str, volume: Volume, instance_name: str | None = None, altitude: str | None = None
    ) -> Instance:
        """FltAttachVolume and FltAttachVolumeAtAltitude (A3).

        Errors: STATUS_FLT_FILTER_NOT_FOUND, STATUS_FLT_INSTANCE_NAME_COLLISION, STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
        or what instance_setup answers.
        """
        async with self._lock:
            loaded = self.filter(filter_name)
            manifest = loaded.manifest
            if instance_name is None and altitude is not None:
                name = f"{filter_name} - {altitude}"[:255]
            else:
                name = instance_name or manifest.default_instance
            definition = manifest.instance(name)
            manual = [spec for spec in self.manual_instances if spec.filter == filter_name and spec.name == name]
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
        for other in volume.instances:
            if other.name == name:
                raise FltError(
                    api.STATUS_FLT_INSTANCE_NAME_COLLISION, f"volume {volume.name!r} has an instance {name!r} already"
                )
            if sort_key(other.altitude) == sort_key(altitude):
                raise FltError(
                    api.STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
                    f"altitude {altitude} is taken on volume {volume.name!r} by {other.name!r}",
                )
        try:
            instance = Instance(
                loaded, volume, name, altitude, dict(loaded.object.options) if options is None else options
            )
        except Exception as error:  # a registration that was changed after it was checked
            what = f"filter {loaded.name!r} cannot be attached: {type(error).__name__}: {error}"
            raise FltError(api.STATUS_INVALID_PARAMETER, what) from error
        status = self._ask(f"{loaded.name}: instance_setup", loaded.object.instance_setup, instance, flags)
        if not api.is_success(status):
            raise FltError(
                status, f"filter {loaded.name!r} does not attach to volume {volume.name!r} ({api.status_name(status)})"
            )
        if instance.blocks_bypass:  # before it is published: what is decided from here on is not bypassed
            refuses = loaded.manifest.attach_with_bypassed == "refuse"
            bypassed = volume.core.allow_bypass(False, unless_bypassed=refuses)
            if bypassed and refuses:
                self._tell(f"{loaded.name}: instance_teardown_complete", loaded.object.instance_teardown_complete,
                           instance, api.FLTFL_INSTANCE_TEARDOWN_INTERNAL_ERROR)  # fmt: skip
                raise FltError(
                    api.STATUS_FLT_DO_NOT_ATTACH,
                    f"filter {loaded.name!r} does not attach to volume {volume.name!r}: {bypassed} open files are "
                    "bypassed, and it would not see their reads and writes; close them, or mount with bypass=off",
                )
        volume.core.stack.insert(instance.entry)
        volume.instances.append(instance)
        volume.instances.sort(key=lambda each: sort_key(each.altitude), reverse=True)
        loaded.instances.append(instance)
        volume.settle_timeouts()
        await self._drain(volume)
        await self._invalidate(instance)
        return instance

    async def detach(self, filter_name: str, volume: Volume, instance_name: str | None = None) -> Instance:
        """FltDetachVolume: the named instance, or the filter's highest one, if it agrees (A3)."""
        async with self._lock:
            loaded = self.filter(filter_name)
            for instance in volume.instances:
                if instance.filter is loaded and instance_name in (None, instance.name):
                    break
            else:
                raise FltError(
                    api.STATUS_FLT_INSTANCE_NOT_FOUND,
                    f"filter {filter_name!r} has no instance{f' {instance_name!r}' if instance_name else ''} "
                    f"on volume {volume.name!r}",
                    ExitCode.NOT_FOUND,
                )
            query: Callable[..., int] | None = getattr(loaded.object, "instance_query_teardown", None)
            status = api.STATUS_FLT_DO_NOT_DETACH
            if query is not None:
                status = self._ask(f"{filter_name}: instance_query_teardown", query, instance, 0)
            if not api.is_success(status):
                raise FltError(status, f"instance {instance.name!r} refuses to be detached ({api.status_name(status)})")
            await self._tear_down(instance, api.FLTFL_INSTANCE_TEARDOWN_MANUAL)
            return instance

    async def _tear_down(self, instance: Instance, reason: int) -> None:
        volume = instance.volume
        with trio.CancelScope(shield=True):
            filter_object = instance.filter.object
            volume.core.stack.remove(instance.entry)
            volume.instances.remove(instance)
            volume.settle_timeouts()
            volume.settle_bypass()
            self._tell(f"{instance.filter.name}: instance_teardown_start", filter_object.instance_teardown_start,
                       instance, reason)  # fmt: skip
            await self._drain(volume)
            if reason != api.FLTFL_INSTANCE_TEARDOWN_VOLUME_DISMOUNT:
                await self._invalidate(instance)
            self._tell(f"{instance.filter.name}: instance_teardown_complete", filter_object.instance_teardown_complete,
                       instance, reason)  # fmt: skip
            instance.filter.instances.remove(instance)
            instance.context = None

    @staticmethod
    async def _drain(volume: Volume) -> None:
        volume.core.restart_waiting_locks()
        while not volume.core.stack.drained():
            await trio.sleep(DRAIN_POLL)

    @staticmethod
    async def _invalidate(instance: Instance) -> None:
        if instance.volume.invalidate is not None and TOUCHES_CACHES & set(instance.entry.registered):
            await instance.volume.invalidate()

    # --- instances that failed ----------------------------------------------------------------------------------

    def detach_soon(self, instance: Instance) -> None:
        """From any thread: take an instance out that raised too often and may be passed by."""
        with contextlib.suppress(trio.RunFinishedError, trio.WouldBlock):
            if self._token is not None:
                self._token.run_sync_soon(self._detach_send.send_nowait, instance)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The manager's own task: tears down what detach_soon() was given, until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        task_status.started()
        async for instance in self._detach_receive:
            async with self._lock:
                if instance in instance.volume.instances:
                    await self._tear_down(instance, api.FLTFL_INSTANCE_TEARDOWN_INTERNAL_ERROR)

    # --- listings -----------------------------------------------------------------------------------------------

    def filters(self) -> list[dict[str, Any]]:
        """Rows of `fltmc filters`, highest altitude first."""
        ordered = sorted(self.loaded.values(), key=lambda each: sort_key(each.manifest.altitude), reverse=True)
        return [
            {
                "name": each.name,
                "instances": len(each.instances),
                "altitude": each.manifest.altitude,
                "frame": 0,
                "start": each.manifest.start,
                "on_error": each.manifest.on_error,
                "failed": any(instance.failed for instance in each.instances),
            }
            for each in ordered
        ]

    def instances(self) -> list[dict[str, Any]]:
        """Rows of `fltmc instances`, volume by volume, highest altitude first."""
        return [
            {
                "filter": instance.filter.name,
                "volume": volume.mountpoint or volume.name,
                "altitude": instance.altitude,
                "name": instance.name,
                "frame": 0,
                "features": SUPPORTED_FS_FEATURES_BYPASS_IO if not instance.blocks_bypass else 0,
                "bypassed": volume.core.bypassed_opens if instance.sees_data else 0,
                "status": "Failed" if instance.failed else "",
            }
            for volume in self.volumes
            for instance in volume.instances
        ]

    def volume_list(self) -> list[dict[str, Any]]:
        """Rows of `fltmc volumes`."""
        return [
            {"dos_name": each.mountpoint, "volume_name": each.name, "filesystem": "stackfs", "status": "Attached"}
            for each in self.volumes
        ]


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
