"""What a filter author reads: this file, and nothing else is needed.

A filter is one Python file with a MANIFEST (a literal: docs/writing-filters.md has its fields) and a subclass of
Filter. Its registration table says which operations it wants to see; every other operation passes it by at no cost::

    from stackfs.api import *

    MANIFEST = {"name": "nodelete", "altitude": "265200", "group": "FSFilter Content Screener", "filter": "NoDelete"}

    class NoDelete(Filter):
        operations = (Operation(IRP_MJ_CREATE, pre="pre_create"),)

        def pre_create(self, data, objects):
            if data.desired_access & DELETE:
                return data.complete(STATUS_ACCESS_DENIED)
            return FLT_PREOP_SUCCESS_NO_CALLBACK

A pre callback is called on the way down, from the highest altitude to the lowest; a post callback on the way up, in
exactly reverse order. Both get `data` (stackfs.cext.callback_data.CallbackData: the operation, alive until the callback
returns) and `objects` (the Instance: `.filter`, `.volume`, `.name`, `.altitude`, and `.context`, yours to use).

A pre callback returns one of (semantics A6)

    FLT_PREOP_SUCCESS_WITH_CALLBACK   go on; call my post callback
    FLT_PREOP_SUCCESS_NO_CALLBACK     go on; do not
    FLT_PREOP_SYNCHRONIZE             go on; call my post callback in this same thread
    data.complete(status)             (FLT_PREOP_COMPLETE) end it here: nobody below sees it, my post is not called
    FLT_PREOP_PENDING                 I keep it, and `data`, until I call data.complete_pended_pre(status, context)

or the first or third with a completion context: `return FLT_PREOP_SUCCESS_WITH_CALLBACK, anything`. A post callback is
called as `post(data, objects, context, flags)`; it may set `data.status` and `data.information`, and returns
FLT_POSTOP_FINISHED_PROCESSING or nothing, or FLT_POSTOP_MORE_PROCESSING_REQUIRED to keep the operation until it calls
data.complete_pended_post(). A pre callback may refuse fast I/O (`data.is_fast_io`), which cannot be kept, with
FLT_PREOP_DISALLOW_FASTIO: the operation comes again, as an IRP.

A callback that has to wait is written as `async def`: it runs on the daemon's trio loop while its operation is kept,
and returns what a plain one would; a signal to the program is trio.Cancelled in it. CancelSafeQueue and
stackfs.work_items are for filters with threads of their own (docs/writing-filters.md, "Holding an operation").

What a callback changes in the parameters (a name, a buffer, an offset) counts only if it also calls
`data.set_dirty()`, and only the layers below see it; its own post callback sees what it saw itself.

What a filter keeps with an open file, a stream, a file, an instance or the volume is a context: a class of its own,
named in `contexts`, and asked for where it is needed (semantics B2)::

    class Written(StreamContext):
        total = 0
        def cleanup(self): ...                      # once, when the stream goes

    class Counter(Filter):
        contexts = (Written,)
        operations = (Operation(IRP_MJ_WRITE, post="post_write"),)

        def post_write(self, data, objects, context, flags):
            data.ensure_context(Written).total += data.information

A filter that scans data creates a section of the file and looks at views of it (B2.8)::

    with objects.create_section(data, Scan()) as section:   # Scan: a SectionContext, named in `contexts`
        infected = b"EICAR" in bytes(section.view())        # or piece by piece: section.read(offset, size)

A filter speaks with programs through ports (semantics B3), three lines in all::

    self.port = self.open_port("\\ScannerPort")                            # in __init__
    verdict = self.port.send(data.path.encode(), reply_size=1, timeout=5)   # in a callback: ask, and wait for the reply

    for message in filterlib.connect("\\ScannerPort"): message.reply(b"\\1")  # in the program (stackfs.filterlib)

A filter does I/O of its own below itself, by the backing directory and never by the mount: on the file in hand,
`data.file.read(offset, size)`, on one beside it, `objects.open(".side", os.O_RDWR, directory=data.directory)`, or by
path, `objects.rename("/a", "/b")` (B4; stackfs/filter_io.py and FileObject in cext/filter_file.pyi have it all).

Plain callbacks run in the device's threads, several at once: guard what they share. One that waits holds up its own
operation and one of 32 threads, so wait for a program with a time-out, and for nothing else. Never touch the mount you
filter (that is refused with EDEADLK). An exception out of a callback fails the operation with EIO, or lets it pass, as
the manifest's on_error says; it never ends the mount.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stackfs.cext import callback_data as _constants
from stackfs.cext import contexts as _contexts
from stackfs.cext import names as _names
from stackfs.cext import oplock as _oplock
from stackfs.cext.callback_data import CallbackData, DirectoryEntry, major_name
from stackfs.cext.cancel_safe_queue import CancelSafeQueue, QueueContext
from stackfs.cext.filter_file import FileInformation, FileObject, FilterFile, GeneratedData, ReparsePoint
from stackfs.cext.filter_io import IoFlags
from stackfs.cext.ntstatus import NtStatus, NtStatusError, from_errno, is_success, status_name, to_errno
from stackfs.cext.python_contexts import (
    Context,
    FileContext,
    InstanceContext,
    SectionContext,
    StreamContext,
    StreamHandleContext,
    VolumeContext,
)
from stackfs.cext.python_names import FileNameInformation
from stackfs.cext.python_oplock import Oplock, OplockOpen, OplockRequest, oplock_keys, set_oplock_keys
from stackfs.cext.sections import Section, SectionAccess, SectionAttributes
from stackfs.directory_changes import DirectoryChanges
from stackfs.errors import FltError
from stackfs.file_locks import FileLock, LockedRange
from stackfs.manifest import FILTER_ABI
from stackfs.security_descriptor import SecurityDescriptor

if TYPE_CHECKING:
    from collections.abc import Callable

    from stackfs.cext.python_contexts import NativeContexts
    from stackfs.cext.stack import NativeOperations
    from stackfs.client_port import ClientPort
    from stackfs.manager import Instance
    from stackfs.ports import FilterPorts, ServerPort



def status_of(error: OSError) -> int:
    """The NTSTATUS of what I/O of a filter's own raised, for `data.complete(status_of(error))`; of another OSError, its
    errno's by the table of A10.4."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else from_errno(error.errno or 0)


@dataclass(frozen=True)
class Operation:
    """One row of a registration table: the operation, and the names of the methods that see it (semantics A2).

    flags: FLTFL_OPERATION_REGISTRATION_SKIP_* bits.
    """

    major: int
    pre: str | None = None
    post: str | None = None
    flags: int = 0


@dataclass(frozen=True)
class ContextRegistration:
    """One way in which FltAllocateContext makes contexts of a type, by size (semantics B2.2).

    A filter in Python rarely needs it: it names its classes of contexts instead. `size`: bytes, or
    FLT_VARIABLE_SIZED_CONTEXTS. The callbacks are names of methods, or callables: cleanup(context, context_type),
    allocate(pool_type, size, context_type) -> memory, free(memory, context_type).
    """

    context_type: int
    cleanup: str | Callable[..., Any] | None = None
    size: int = 0
    flags: int = 0
    allocate: str | Callable[..., Any] | None = None
    free: str | Callable[..., Any] | None = None


class Filter:
    """A filter: one object for all its instances, made when it is loaded.

    The methods below are called in threads of their own, never in the one that serves requests: they may wait.

    `options` holds the values of the manifest's options for the instance that caused the load; each Instance has its
    own in `instance.options`.
    """

    operations: tuple[Operation, ...] = ()
    flags: int = 0
    """FLTFL_REGISTRATION_* bits: DO_NOT_SUPPORT_SERVICE_STOP makes `stackfs stop` refuse (A2.9)."""
    native: NativeOperations | None = None
    """Native filters: callbacks in C, called without the GIL."""
    contexts: tuple[type[Context] | ContextRegistration, ...] = ()
    """The classes of contexts it uses (semantics B2)."""
    native_contexts: NativeContexts | None = None
    """Native filters: contexts that are C structures."""
    _ports: FilterPorts | None = None

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def operations_for(self, options: dict[str, Any]) -> tuple[tuple[Operation, ...], NativeOperations | None]:
        """What an instance with these options registers, asked once before it is set up (A2.6): the tables above,
        unless the filter says less for it. What no instance registers costs nothing, and blocks no bypass."""
        return self.operations, self.native

    def filter_unload(self, flags: int) -> int:
        """Asked before the filter is unloaded (A2). flags: FLTFL_FILTER_UNLOAD_MANDATORY when the answer is ignored.

        STATUS_FLT_DO_NOT_DETACH refuses. A filter that sets this to None can never be unloaded.
        """
        return STATUS_SUCCESS

    def instance_setup(self, instance: Instance, flags: int) -> int:
        """Asked before the filter is attached to a volume (A3). flags: FLTFL_INSTANCE_SETUP_* bits.

        From here on `instance.at_end(routine)` gives what is to be called when the instance is gone.

        Anything but success, STATUS_FLT_DO_NOT_ATTACH for one, refuses.
        """
        return STATUS_SUCCESS

    def instance_query_teardown(self, instance: Instance, flags: int) -> int:
        """Asked before a manual detach (A3). STATUS_FLT_DO_NOT_DETACH refuses; None instead of a method always does."""
        return STATUS_SUCCESS

    def instance_teardown_start(self, instance: Instance, reason: int) -> None:
        """New operations no longer reach the instance; those under way still do. reason: FLTFL_INSTANCE_TEARDOWN_*."""

    generate_file_name: Callable[..., Any] | None = None
    """A filter that shows other names above itself than lie below has this method: generate_file_name(information,
    objects) gets the name below (FileNameInformation) and returns the path above, from the volume's root; None: the
    same; (path, False): do not cache it (semantics B1.8)."""
    normalize_name_component: Callable[..., Any] | None = None
    """normalize_name_component(parent, component, flags, context, objects): the component's real name in that directory
    (None: the same), or (name, context) for the next component. NtStatusError(STATUS_NO_SUCH_FILE, ...): none there."""
    normalize_context_cleanup: Callable[..., Any] | None = None
    """normalize_context_cleanup(context), after a name's last component."""

    def instance_teardown_complete(self, instance: Instance, reason: int) -> None:
        """No callback of the instance runs, or ever will. Free what it holds."""

    section_notification: Callable[..., Any] | None = None
    """section_notification(objects, context, data): an operation is about to take bytes of a file away that the
    instance has a section of (B2.8); it goes on when this returns, so close the section, or stop reading. Called in the
    operation's thread; `data` is the operation, and cannot be changed or kept."""

    def open_port(
        self,
        name: str,
        *,
        connect: Callable[[ClientPort], int | None] | None = None,
        disconnect: Callable[[ClientPort], object] | None = None,
        message: Callable[[ClientPort, bytes], bytes | None] | None = None,
        max_connections: int = 1,
        allow: SecurityDescriptor | None = None,
    ) -> ServerPort:
        """Open a communication port (B3): from __init__ on, until the filter is unloaded; never the mount's to close.

        name: begins with a backslash. allow: who may connect; as a rule the daemon's user and root.
        connect(client): asked for each connection; any failure refuses it. `client.context` is what the program sent,
        `client.pid` and `client.uid` whose it is. disconnect(client): it has gone. message(client, data): what a
        program sent with Port.send(); the answer are bytes, or nothing. They run in threads of the port; FltError out
        of one is the program's answer.
        FltError: STATUS_OBJECT_NAME_COLLISION, STATUS_OBJECT_NAME_INVALID, STATUS_INVALID_PARAMETER.
        """
        if self._ports is None:
            raise RuntimeError(f"{type(self).__name__} was not loaded by a Filter Manager: it can open no port")
        asked = None if message is None else lambda client, data, room: message(client, data)
        return self._ports.open(
            name, connect=connect, disconnect=disconnect, message=asked, max_connections=max_connections, allow=allow
        )


class LegacyFilter(Filter):
    """A filter as they were before the Filter Manager, to try the company of one (A1.11).

    It is loaded and never unloaded, lies on top of what is there when it comes, sees every operation, and passes each
    on: what its methods return is not looked at.
    """

    def dispatch(self, data: CallbackData, instance: Instance) -> None:
        """An operation on its way down."""

    def completed(self, data: CallbackData, instance: Instance) -> None:
        """The same on its way up."""

    def dispatch_and_pass_on(self, data: CallbackData, instance: Instance) -> int:
        self.dispatch(data, instance)
        return _constants.PreopStatus.FLT_PREOP_SUCCESS_WITH_CALLBACK

    def complete_and_pass_on(self, data: CallbackData, instance: Instance, context: object, flags: int) -> int:
        self.completed(data, instance)
        return _constants.PostopStatus.FLT_POSTOP_FINISHED_PROCESSING


FLTFL_REGISTRATION_DO_NOT_SUPPORT_SERVICE_STOP = 0x1
FLTFL_REGISTRATION_SUPPORT_NPFS_MSFS = 0x2
FLTFL_REGISTRATION_SUPPORT_DAX_VOLUME = 0x4
FLTFL_REGISTRATION_SUPPORT_WCOS = 0x8
FLTFL_FILTER_UNLOAD_MANDATORY = 0x1
FLTFL_INSTANCE_SETUP_AUTOMATIC_ATTACHMENT = 0x1
FLTFL_INSTANCE_SETUP_MANUAL_ATTACHMENT = 0x2
FLTFL_INSTANCE_SETUP_NEWLY_MOUNTED_VOLUME = 0x4
FLTFL_INSTANCE_SETUP_DETACHED_VOLUME = 0x8
FLTFL_INSTANCE_SETUP_DEV_VOLUME = 0x10
FLTFL_INSTANCE_SETUP_TRUSTED_VOLUME = 0x20
FLTFL_INSTANCE_TEARDOWN_MANUAL = 0x1
FLTFL_INSTANCE_TEARDOWN_FILTER_UNLOAD = 0x2
FLTFL_INSTANCE_TEARDOWN_MANDATORY_FILTER_UNLOAD = 0x4
FLTFL_INSTANCE_TEARDOWN_VOLUME_DISMOUNT = 0x8
FLTFL_INSTANCE_TEARDOWN_INTERNAL_ERROR = 0x10

# The constants of the DDI, under their names: every IRP_MJ_*, FLT_*, FLTFL_*, FILE_* and so on of callback_data, and
# every STATUS_* of the status table (unsigned numbers).
_named: dict[str, int] = {}
for _enum in (
    _constants.MajorFunction,
    _constants.DataFlags,
    _constants.IrpFlags,
    _constants.PreopStatus,
    _constants.PostopStatus,
    _constants.PostFlags,
    _constants.OperationFlags,
    _constants.AccessMask,
    _constants.CreateDisposition,
    _constants.CreateOptions,
    _constants.FileInformationClass,
    _constants.FsControlCode,
    _constants.DirectoryMinorFunction,
    _constants.LockMinorFunction,
    _constants.PageProtection,
    _constants.PnpMinorFunction,
    _constants.SectionSyncType,
    _constants.SecurityInformation,
    _contexts.ContextType,
    _contexts.ContextRegistrationFlags,
    _contexts.ContextSize,
    _contexts.SetContextOperation,
    _contexts.PoolType,
    _names.FileNameOptions,
    _names.NamesParsed,
    _names.NormalizeFlags,
    _oplock.OplockLevel,
    _oplock.OplockState,
    _oplock.OplockOperation,
    _oplock.OplockAcknowledgement,
    _oplock.OplockFlags,
    _oplock.OplockFsctrlFlags,
    _oplock.OplockInputFlags,
    _oplock.OplockOutput,
    IoFlags,
    NtStatus,
    SectionAccess,
    SectionAttributes,
):
    _named.update({name: int(member) for name, member in _enum.__members__.items()})
globals().update(_named)
STATUS_SUCCESS = 0

LegacyFilter.operations = tuple(
    Operation(value, "dispatch_and_pass_on", "complete_and_pass_on" if name != "IRP_MJ_SHUTDOWN" else None)
    for name, value in _named.items()
    if name.startswith("IRP_MJ_") and name not in ("IRP_MJ_POWER", "IRP_MJ_DEVICE_CHANGE")
)

__all__ = [
    "FILTER_ABI",
    "CallbackData",
    "CancelSafeQueue",
    "Context",
    "ContextRegistration",
    "DirectoryChanges",
    "DirectoryEntry",
    "FileContext",
    "FileInformation",
    "FileLock",
    "FileNameInformation",
    "FileObject",
    "Filter",
    "FilterFile",
    "FltError",
    "GeneratedData",
    "InstanceContext",
    "LegacyFilter",
    "LockedRange",
    "NtStatusError",
    "Operation",
    "Oplock",
    "OplockOpen",
    "OplockRequest",
    "QueueContext",
    "ReparsePoint",
    "Section",
    "SectionContext",
    "SecurityDescriptor",
    "StreamContext",
    "StreamHandleContext",
    "VolumeContext",
    "from_errno",
    "is_success",
    "major_name",
    "oplock_keys",
    "set_oplock_keys",
    "status_name",
    "status_of",
    "to_errno",
    *(name for name in globals() if name.startswith("FLTFL_")),
    *(name for name in _named if not name.startswith("FLTFL_")),
]

if TYPE_CHECKING:

    def __getattr__(name: str) -> int: ...
