"""The process of one mounted volume: how it starts, what it answers on the control socket, how it ends.

Start: fork into the background (before any thread exists), load filters and attach instances, send one CREATE of the
root through the stack, mount, start the device and pyfuse3, wait until INIT was answered, open the control socket, and
only then report ready to the waiting parent. Whatever fails on the way is one line for the user, and leaves no mount.

End, by umount(8), `stackfs umount`, SIGINT or SIGTERM, or an aborted connection: unmount if that is still to be done;
once the kernel has let go, pyfuse3 ends, the device's threads are joined, the instances are torn down, the rest is
closed. With files open, SIGTERM and SIGINT serve on for GRACE seconds and then abort the connection.

The trio thread runs everything here; unmounting and joining wait in worker threads.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import structlog
import trio

from stackfs import __version__, api, control, mounting, ports, verifier, volume_operations
from stackfs.coherence import LONG_SECONDS, Watch
from stackfs.errors import ExitCode, FltError, StackfsError
from stackfs.options import MountConfig

if TYPE_CHECKING:
    from stackfs.cext.device import Device

log = structlog.get_logger("stackfs")

GRACE = 10.0
"""Seconds that SIGTERM leaves to programs with open files."""
HANDLERS_GRACE = 5.0
"""Seconds that requests under way have to answer once the kernel has let go."""
READY_LIMIT = 30.0
STUCK_AFTER = 30.0
"""Seconds after which who asked for an unload or a detach is told what it waits for."""
NOTIFICATIONS_LIMIT = 30.0
CACHE_SECONDS = 1.0
"""How long the kernel may trust names and attributes: something else may change the backing directory."""
EXCLUSIVE_SECONDS = 3600.0
"""The same with `exclusive`: nothing else does."""
RESERVED_DESCRIPTORS = 512


def run(config: MountConfig) -> int:
    """Mount a volume. In the background: returns 0 once it is usable; in the foreground: once it has ended.

    Raises StackfsError with the line that says why it could not be mounted.
    """
    mounting.clear_stale(config.mountpoint)
    config.source, config.mountpoint = mounting.check_mountpoint(config.source, config.mountpoint)
    _prepare_filters(config)
    if config.foreground:
        set_up_logging(config, sys.stderr.isatty())
        serve(config, lambda: None)
        return 0
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_background(config, writing)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    if not answer:
        raise StackfsError(f"the daemon of {config.mountpoint} died before it was ready; see {log_path(config)}")
    said = json.loads(answer)
    if "error" in said:
        raise StackfsError(said["error"], said["exit_code"])
    return 0


def _prepare_filters(config: MountConfig) -> None:
    """Filters that have something to ask (a passphrase) ask now: later there is no terminal."""
    from stackfs import discovery, loader

    for name in dict.fromkeys(spec.filter for spec in config.instances if spec.prepares and spec.volume is None):
        shared = config.filter_options[name]
        changed = loader.prepare(discovery.find(name, config.filter_dirs), config.source, shared)
        for options in (shared, *(spec.options for spec in config.instances if spec.filter == name)):
            options.update(changed)


def _in_background(config: MountConfig, pipe: int) -> NoReturn:
    """The child: a daemon of its own session. Never returns into the caller's program."""
    code = 1
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        set_up_logging(config, False)

        def ready() -> None:
            os.write(pipe, b"{}")
            os.close(pipe)

        try:
            serve(config, ready)
            code = 0
        except StackfsError as error:
            log.error("not mounted", reason=error.message)
            answer = {"error": error.message, "exit_code": int(error.exit_code)}
            os.write(pipe, json.dumps(answer).encode())
        except BaseException as error:
            log.exception("the daemon fails")
            words = f"internal error: {type(error).__name__}: {error}; see {log_path(config)}"
            answer = {"error": words, "exit_code": 1}
            try:
                os.write(pipe, json.dumps(answer).encode())
            except OSError:
                pass
    finally:
        logging.shutdown()
        os._exit(code)


# --- logging ------------------------------------------------------------------------------------------------------

def log_path(config: MountConfig) -> str:
    """Where a daemon in the background writes its log."""
    if os.geteuid() == 0:
        base = "/var/log/stackfs"
    else:
        state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
        base = os.path.join(state, "stackfs")
    return os.path.join(base, config.volume_name.replace("/", "_") + ".log")


def set_up_logging(config: MountConfig, colours: bool) -> None:
    """structlog to stderr in the foreground, to log_path() (0600, rotated) in the background."""
    handler: logging.Handler
    if config.foreground:
        handler = logging.StreamHandler()
    else:
        path = log_path(config)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            handler = logging.handlers.RotatingFileHandler(path, maxBytes=4 << 20, backupCount=3)
        except OSError:
            handler = logging.NullHandler()
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    renderer: Any = structlog.dev.ConsoleRenderer(colors=True) if colours else structlog.processors.LogfmtRenderer(
        key_order=["timestamp", "level", "logger", "event"], drop_missing=True
    )  # fmt: skip
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _printable,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _printable(logger: Any, method: str, event: Any) -> Any:
    """File names are not to be trusted: control characters and lone surrogates are escaped, one record is one line."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event


# --- the mounted volume ---------------------------------------------------------------------------------------------

def serve(config: MountConfig, ready: Callable[[], None]) -> None:
    """Mount and serve until the volume is gone. ready() is called once it is usable."""
    from stackfs import irp_lane  # pyfuse3, and with it trio's loop, only in the process that serves

    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    mounted = Mounted(config, ready, hard)
    try:
        trio.run(mounted.main)
    finally:
        if mounted.device is not None:
            mounted.device.stop()
            if mounted.lane_started:
                irp_lane.close()
            mounted.device.close()


class Mounted:
    """One mounted volume, from its first descriptor to its last."""

    def __init__(self, config: MountConfig, ready: Callable[[], None], descriptors: int) -> None:
        from stackfs.cext import impersonation
        from stackfs.cext.requests import Volume as CoreVolume
        from stackfs.manager import FilterManager

        verifier.enable(config.options.verifier)
        self.config = config
        self.ready = ready
        self.started_at = time.time()
        self.device: Any = None
        self.operations: Any = None
        self.lane_started = False
        self.locks = "kernel"
        self.ended = trio.Event()
        self._stack_checks = config.options.permissions == "stack"
        reason = impersonation.unavailable() if self._stack_checks else ""
        if reason:
            raise StackfsError(f"option permissions=stack: {reason}", ExitCode.PERMISSION)
        seconds = EXCLUSIVE_SECONDS if config.options.exclusive else CACHE_SECONDS
        leases = config.options.coherence == "lease"
        if leases:
            seconds = LONG_SECONDS
        if self._stack_checks:
            seconds = 0.0  # who may search a directory is asked at every lookup
        self._root = os.open(config.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.core = CoreVolume(
            self._root,
            entry_timeout=seconds,
            attr_timeout=seconds,
            check_permissions=self._stack_checks,
            direct_io=config.options.cache == "strict",
            keep_cache=config.options.exclusive,
            writeback=config.options.writeback,
            descriptor_limit=max(64, min(65536, (descriptors - RESERVED_DESCRIPTORS) // (4 if leases else 2))),
        )
        self.coherence = Watch(self.core, config.source, seconds, descriptors) if leases else None
        self.manager = FilterManager(config.filter_dirs, config.filter_options, config.manual_instances)
        self.volume = self.manager.add_volume(config.volume_name, config.mountpoint, config.source, self.core)
        self.volume.read_only = config.options.read_only
        self.volume.coherence = None if self.coherence is None else self.coherence.core

    async def main(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(lambda task_status: self.manager.run(task_status=task_status))
                await self._attach()
                await self._mount(nursery)
                log.info("mounted", volume=self.config.volume_name, mountpoint=self.config.mountpoint,
                         source=self.config.source, pid=os.getpid(), version=__version__)  # fmt: skip
                self.ready()
                _notify_service_manager("READY=1")
                await self.ended.wait()
                _notify_service_manager("STOPPING=1")
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = _first(group)
            if isinstance(error, StackfsError):
                raise error from None
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.manager.close_ports)
                if self.device is not None:
                    await trio.to_thread.run_sync(self._let_go)
                for volume in reversed(self.manager.volumes[:]):
                    await self.manager.remove_volume(volume)
            log.info("ended", volume=self.config.volume_name, mountpoint=self.config.mountpoint)

    # --- start ------------------------------------------------------------------------------------------------------

    async def _attach(self) -> None:
        """The further volumes, the configured instances; then one open of the root: they have seen the volume."""
        flags = api.FLTFL_INSTANCE_SETUP_AUTOMATIC_ATTACHMENT | api.FLTFL_INSTANCE_SETUP_NEWLY_MOUNTED_VOLUME
        specs = self.config.instances
        raw = self.config.options.raw
        self.manager.check_needs(self.volume, {each.filter for each in specs if each.volume is None}, raw)
        await self.manager.load_configured(specs)
        for name, source in self.config.further_volumes:
            await self.manager.open_volume(name, source, [each for each in specs if each.volume == name], raw)
        await volume_operations.mount(self.volume, self.manager.loaded.values())
        await self.manager.attach_configured(self.volume, [each for each in specs if each.volume is None], flags)
        self.manager.settle_needs(self.volume)
        await self.manager.open_root(self.volume)

    async def _mount(self, nursery: trio.Nursery) -> None:
        from stackfs import irp_lane
        from stackfs.cext.device import Device

        options = self.config.options
        settings = mounting.MountSettings(
            source=options.fsname or self.config.source,
            flags=options,
            subtype=options.subtype,
            allow_other=options.allow_other,
            default_permissions=not self._stack_checks,
        )
        self.locks = self._locks()
        fd = await trio.to_thread.run_sync(mounting.mount, self.config.mountpoint, settings)
        try:
            self.device = Device(
                fd,
                self.core,
                lanes=options.lanes,
                max_write=options.max_write or 0,
                cache_symlinks=options.cache == "normal" and not self._stack_checks,
                stack_checks=self._stack_checks,
                passthrough=options.bypass == "auto" and os.geteuid() == 0,
                stack_locks=self.locks == "stack",
                writeback=options.writeback,
            )
            self.operations = irp_lane.start(self.device, self.core, self.manager.async_callbacks)
            self.operations.callbacks_wait = lambda: any(each.filter.ports.used for each in self.volume.instances)
            self.lane_started = True
            self.device.start()
            if self.coherence is not None:
                self.coherence.start()
                nursery.start_soon(self.coherence.run, self._invalidate)
            self.volume.invalidate = self._invalidate
            self.volume.write_back = self._write_back
            self.volume.is_mounted = self._is_mounted
            nursery.start_soon(self._serve_lane)
            nursery.start_soon(self._watch_end)
            nursery.start_soon(self._watch_deadlocks)
            nursery.start_soon(self._watch_lane)
            nursery.start_soon(self._watch_signals)
            with trio.move_on_after(READY_LIMIT) as limit:
                await trio.lowlevel.wait_readable(self.device.ready_fd)
            if limit.cancelled_caught:
                raise StackfsError(f"the kernel did not answer the mount of {self.config.mountpoint} in time")
            mounting.set_read_ahead(self.config.mountpoint)
            await nursery.start(lambda task_status: control.serve(
                self._control, self.config.volume_name, task_status=task_status))  # fmt: skip
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._unmount_for_good)
            raise

    def _locks(self) -> str:
        """Who keeps file locks, from the mount on: the kernel, or the stack and the base."""
        if self.config.options.locks is not None:
            return self.config.options.locks
        named = {spec.name for spec in self.config.instances if spec.in_toml}
        seen = any(instance.name in named and instance.sees_locks for instance in self.volume.instances)
        return "stack" if seen else "kernel"

    async def _invalidate(self) -> None:
        """The kernel forgets data, attributes and names."""
        opened, others, names = self.core.known()

        def forget(device: Device) -> None:
            for nodeid in opened:
                device.invalidate_inode(nodeid)
            for nodeid in others:
                device.invalidate_inode(nodeid, -1)  # its data goes at the next open anyway
            if not device.invalidate_all_entries():
                for parent, name in names:
                    device.invalidate_entry(parent, name)

        await self._notify(forget, len(opened) + len(others))

    async def _write_back(self) -> None:
        """The kernel writes its dirty pages: only files that are open, or mapped, have any. To drop a page means to
        write it first; nothing else that can be asked of the kernel waits for that without a request of our own."""
        opened, _, _ = self.core.known()

        def drop(device: Device) -> None:
            for nodeid in opened:
                device.invalidate_inode(nodeid)

        await self._notify(drop, len(opened))

    async def _notify(self, queue: Callable[[Device], None], inodes: int) -> None:
        """Queues notifications and waits for them, in a thread of its own: never inside a request."""
        device = self.device

        def send() -> None:
            queue(device)
            if not device.flush_notifications(NOTIFICATIONS_LIMIT):
                log.warning("the kernel is slow to give up its caches", inodes=inodes)

        if not device.ended:
            await trio.to_thread.run_sync(send)

    # --- end --------------------------------------------------------------------------------------------------------

    async def _serve_lane(self) -> None:
        from stackfs import irp_lane

        await irp_lane.run(self.device)
        self.ended.set()

    async def _watch_end(self) -> None:
        """Once the kernel has let go: end the lane, after what is under way."""
        from stackfs import irp_lane

        await trio.lowlevel.wait_readable(self.device.ended_fd)
        if self.device.error:
            log.error("the connection to the kernel is unusable", error=os.strerror(self.device.error))
        await trio.to_thread.run_sync(self.manager.close_ports)  # nobody waits for the answers any more
        irp_lane.terminate()
        with trio.move_on_after(HANDLERS_GRACE):
            await self.ended.wait()
        self.ended.set()

    def _let_go(self) -> None:
        """The device's threads end, and the mount goes, if it has not: an aborted connection leaves it behind.

        By now somebody else may have mounted the same directory here again. That mount answers.
        """
        if not self.device.ended:
            self._unmount_for_good()
        self.device.stop()
        if self.coherence is not None:
            self.coherence.stop()
        if mounting.mount_at(self.config.mountpoint) is not None and mounting.is_stale(self.config.mountpoint):
            self._unmount_for_good()

    def _is_mounted(self) -> bool:
        mount = mounting.mount_at(self.config.mountpoint)
        ours = self.config.options.fsname or self.config.source
        return mount is not None and mount.is_stackfs and mount.source == ours

    def _unmount_for_good(self) -> None:
        try:
            if self._is_mounted():
                mounting.unmount(self.config.mountpoint, lazy=True)
        except StackfsError as error:
            log.warning("the mount is left behind", mountpoint=self.config.mountpoint, reason=error.message)

    async def _watch_signals(self) -> None:
        """SIGINT, SIGTERM: end; a second one, or GRACE seconds later: at once. SIGUSR1: log the status."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1) as signals:
            await self._told_to_end(signals)
            log.info("told to end", mountpoint=self.config.mountpoint)
            await volume_operations.shut_down(self.manager.volumes)
            if await self._try_unmount():
                return
            with trio.move_on_after(GRACE):
                await self._told_to_end(signals)
            if await self._try_unmount():
                return
            log.warning("files are still open: the connection is aborted", mountpoint=self.config.mountpoint)
            await trio.to_thread.run_sync(self._unmount_for_good)
            self.device.abort()

    async def _told_to_end(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGUSR1:
                log.info("status", **{key: str(value) for key, value in self.status().items()})
            elif number != signal.SIGHUP:
                return

    async def _try_unmount(self) -> bool:
        try:
            await trio.to_thread.run_sync(mounting.unmount, self.config.mountpoint)
        except StackfsError:
            return mounting.mount_at(self.config.mountpoint) is None
        return True

    async def _watch_deadlocks(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.device.deadlock_fd)
            os.read(self.device.deadlock_fd, 8)
            operation, thread = self.device.last_deadlock
            log.error("refused with EDEADLK: a filter's callback touches the mount it filters",
                      operation=operation, thread=thread, refused=self.device.deadlocks)  # fmt: skip
            await trio.sleep(0.1)

    async def _watch_lane(self) -> None:
        await self.operations.on_broken.wait()
        await trio.to_thread.run_sync(self._unmount_for_good)
        self.device.abort()

    # --- the control socket -------------------------------------------------------------------------------------------

    async def _control(self, verb: str, arguments: dict[str, Any]) -> Any:
        answer = getattr(self, f"_verb_{verb}", None)
        if answer is None:
            raise StackfsError(f"this daemon ({__version__}) does not know the verb {verb!r}", ExitCode.USAGE)
        try:
            result = answer(**arguments)
        except TypeError as error:
            raise StackfsError(f"wrong arguments for {verb!r}: {error}", ExitCode.USAGE) from error
        return await result if hasattr(result, "__await__") else result

    def _verb_hello(self) -> control.Hello:
        config = self.config
        return control.Hello(
            os.getpid(), os.geteuid(), config.volume_name, config.mountpoint, config.source, __version__
        )

    def _verb_filters(self) -> list[dict[str, Any]]:
        return self.manager.filters()

    def _verb_instances(self) -> list[dict[str, Any]]:
        return self.manager.instances()

    def _verb_volumes(self) -> list[dict[str, Any]]:
        return self.manager.volume_list()

    def _verb_status(self) -> dict[str, Any]:
        return self.status()

    async def _verb_load(self, name: str) -> dict[str, Any]:
        declined: list[str] = []
        attached = await self.manager.load(name, declined)
        return {"instances": [instance.name for instance in attached], "declined": declined}

    async def _verb_unload(self, name: str, mandatory: bool = False) -> dict[str, Any]:
        with trio.move_on_after(STUCK_AFTER) as limit:
            await self.manager.unload(name, mandatory)
        if limit.cancelled_caught:
            held = ", ".join(self.manager.filter(name).held_by()) or "its own routines, or operations that run in them"
            words = f"filter {name!r} is not gone yet, and goes by itself when it can: it waits for {held}"
            raise FltError(api.STATUS_FLT_DELETING_OBJECT, words)
        return {}

    async def _verb_attach(self, filter: str, volume: str, instance_name: str | None = None,
                           altitude: str | None = None) -> dict[str, Any]:  # fmt: skip
        instance = await self.manager.attach(filter, self.manager.volume(volume), instance_name, altitude)
        return {"name": instance.name, "altitude": instance.altitude}

    async def _verb_detach(self, filter: str, volume: str, instance_name: str | None = None) -> dict[str, Any]:
        with trio.move_on_after(STUCK_AFTER):
            instance = await self.manager.detach(filter, self.manager.volume(volume), instance_name)
            return {"name": instance.name, "altitude": instance.altitude}
        words = f"the instance of filter {filter!r} is not gone yet, and goes by itself when it can"
        words += ": it waits for operations that it keeps, or has changed"
        raise FltError(api.STATUS_FLT_DELETING_OBJECT, words)

    async def _verb_inject(self, volume: str, operation: str, minor: int = 0, code: int = 0, path: str = "",
                           input: str = "", output_size: int = 0) -> dict[str, Any]:  # fmt: skip
        status, output = await volume_operations.inject(
            self.manager.volume(volume), operation, minor, code, path, bytes.fromhex(input), output_size
        )
        return {"status": status, "name": api.status_name(status), "output": output.hex()}

    async def _verb_umount(self, lazy: bool = False, force: bool = False) -> dict[str, Any]:
        await trio.to_thread.run_sync(
            lambda: mounting.unmount(self.config.mountpoint, lazy=bool(lazy), force=bool(force))
        )
        return {}

    def _bypass(self) -> str:
        """Whether opens are bypassed, or why not."""
        options, state = self.config.options, self.core.bypass_state()
        blocking = [instance.name for instance in self.volume.instances if instance.blocks_bypass]
        if options.bypass == "off":
            return "off: asked for (bypass=off)"
        if options.lanes == "irp":
            return "off: pyfuse3 cannot bypass (lanes=irp)"
        if options.writeback:
            return "off: it excludes write-back caching (writeback)"
        if os.geteuid() != 0:
            return "off: only root may"
        if not state["negotiated"]:
            return "off: the kernel does not offer it (Linux 6.9 does)"
        if state["refused"]:
            return f"off: the kernel refuses the backing files ({os.strerror(state['refused'])})"
        if blocking:
            return f"off: {', '.join(blocking)} sees reads or writes and does not support it"
        if state["vetoed"]:
            return f"on; {state['vetoed']} opens were vetoed, last by {state['veto']}"
        return "on"

    def status(self) -> dict[str, Any]:
        """What `stackfs status` shows."""
        device = self.device
        options = self.config.options
        return {
            "uptime_seconds": round(time.time() - self.started_at, 1),
            "log": "stderr" if self.config.foreground else log_path(self.config),
            "cache": options.cache,
            "permissions": options.permissions,
            "locks": self.locks,
            "coherence": "none" if self.coherence is None else self.coherence.status(),
            "lanes": {
                "mode": options.lanes,
                "bypass": self._bypass(),
                "device": "what answers at once" if options.lanes == "auto" else "what pyfuse3 has no handler for",
                "irp": "what a filter refuses as fast I/O" if options.lanes == "auto" else "everything else",
            },
            "requests": device.counters(),
            "in_flight": device.in_flight,
            "refused_deadlocks": device.deadlocks,
            "open_files": self.core.open_files,
            "bypassed_opens": self.core.bypassed_opens,
            "known_inodes": self.core.known_inodes,
            "cached_descriptors": self.core.cached_descriptors,
            "max_write": device.max_write,
            "further_volumes": [volume.name for volume in self.manager.volumes if volume is not self.volume],
            "instances": len(self.volume.instances),
            "ports": ports.listing(loaded.ports for loaded in self.manager.loaded.values()),
            "verifier": verifier.summary(),
            "failed_instances": [instance.name for instance in self.volume.instances if instance.failed],
            "unloading": {row["name"]: row["held_by"] for row in self.manager.filters() if row["state"] == "Unloading"},
        }


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _notify_service_manager(state: str) -> None:
    """systemd's Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        try:
            notifier.connect("\0" + address[1:] if address.startswith("@") else address)
            notifier.send(state.encode())
        except OSError as error:
            log.warning("the service manager cannot be told", state=state, error=error.strerror)
