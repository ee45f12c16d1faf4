"""Contexts under their DDI names (docs/semantics.md, B2): allocating, setting, getting, releasing, deleting.

A context is a stackfs.api.Context; `memory` is the filter's part of it. `Filter`, `Instance` and `Volume` are what
callbacks know as `objects.filter`, `objects` and `objects.volume`; `FileObject` is callback data (the file object that
the operation is about) or a file object. An `Out` may be None where the DDI allows NULL. What comes back through one
has a reference, which the caller gives back with FltReleaseContext. NTSTATUS values are unsigned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, Protocol

from stackfs.api import (
    FLT_FILE_CONTEXT,
    FLT_INSTANCE_CONTEXT,
    FLT_SECTION_CONTEXT,
    FLT_STREAM_CONTEXT,
    FLT_STREAMHANDLE_CONTEXT,
    FLT_TRANSACTION_CONTEXT,
    FLT_VOLUME_CONTEXT,
    STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_FOUND,
    STATUS_NOT_SUPPORTED,
    STATUS_SUCCESS,
    Context,
    ContextRegistration,
)
from stackfs.cext.callback_data import CallbackData
from stackfs.cext.file_object import FileReference
from stackfs.cext.python_contexts import supports_contexts
from stackfs.ddi.out import Out

if TYPE_CHECKING:
    from stackfs.cext.python_contexts import FilterContexts
    from stackfs.cext.stack import InstanceEntry, Stack

__all__ = [
    "FLT_CONTEXT_END",
    "FLT_CONTEXT_REGISTRATION",
    "FLT_RELATED_CONTEXTS",
    "FLT_RELATED_CONTEXTS_EX",
    "FltAllocateContext",
    "FltDeleteContext",
    "FltDeleteFileContext",
    "FltDeleteInstanceContext",
    "FltDeleteStreamContext",
    "FltDeleteStreamHandleContext",
    "FltDeleteTransactionContext",
    "FltDeleteVolumeContext",
    "FltGetContexts",
    "FltGetContextsEx",
    "FltGetFileContext",
    "FltGetInstanceContext",
    "FltGetSectionContext",
    "FltGetStreamContext",
    "FltGetStreamHandleContext",
    "FltGetTransactionContext",
    "FltGetVolumeContext",
    "FltReferenceContext",
    "FltReleaseContext",
    "FltReleaseContexts",
    "FltReleaseContextsEx",
    "FltSetFileContext",
    "FltSetInstanceContext",
    "FltSetStreamContext",
    "FltSetStreamHandleContext",
    "FltSetTransactionContext",
    "FltSetVolumeContext",
    "FltSupportsFileContexts",
    "FltSupportsFileContextsEx",
    "FltSupportsStreamContexts",
    "FltSupportsStreamHandleContexts",
]

OldContext = Out[Context | None] | None


class AFilter(Protocol):
    contexts: FilterContexts | None


class AnInstance(Protocol):
    entry: InstanceEntry


class ACore(Protocol):
    @property
    def stack(self) -> Stack: ...


class AVolume(Protocol):
    @property
    def core(self) -> ACore: ...


class RelatedObjects(Protocol):
    """FLT_RELATED_OBJECTS."""

    Filter: Any
    Volume: Any
    Instance: Any
    FileObject: Any


FLT_CONTEXT_END: Final = 0xFFFF
"""ContextType of what may end a list of registrations."""


@dataclass
class FLT_CONTEXT_REGISTRATION:
    """One definition (B2.2): ContextCleanupCallback(Context, ContextType), ContextAllocateCallback(PoolType, Size,
    ContextType) -> memory, ContextFreeCallback(memory, ContextType). Size: bytes, or FLT_VARIABLE_SIZED_CONTEXTS."""

    ContextType: int
    Flags: int = 0
    ContextCleanupCallback: Callable[..., Any] | None = None
    Size: int = 0
    PoolTag: int | bytes = 0
    ContextAllocateCallback: Callable[..., Any] | None = None
    ContextFreeCallback: Callable[..., Any] | None = None
    Reserved1: None = None


def registered_contexts(definitions: Iterable[FLT_CONTEXT_REGISTRATION] | None) -> tuple[ContextRegistration, ...]:
    """FLT_REGISTRATION's ContextRegistration as a filter's `contexts`."""
    return tuple(
        ContextRegistration(
            each.ContextType,
            each.ContextCleanupCallback,
            each.Size,
            each.Flags,
            each.ContextAllocateCallback,
            each.ContextFreeCallback,
        )
        for each in takewhile(lambda one: one.ContextType != FLT_CONTEXT_END, definitions or ())
    )


class FLT_RELATED_CONTEXTS:
    """What FltGetContexts found: a context with a reference, or None."""

    def __init__(self) -> None:
        self.VolumeContext: Context | None = None
        self.InstanceContext: Context | None = None
        self.FileContext: Context | None = None
        self.StreamContext: Context | None = None
        self.StreamHandleContext: Context | None = None
        self.TransactionContext: Context | None = None


class FLT_RELATED_CONTEXTS_EX(FLT_RELATED_CONTEXTS):
    """The same, with the section's."""

    def __init__(self) -> None:
        super().__init__()
        self.SectionContext: Context | None = None


_MEMBERS = {
    FLT_VOLUME_CONTEXT: "VolumeContext",
    FLT_INSTANCE_CONTEXT: "InstanceContext",
    FLT_FILE_CONTEXT: "FileContext",
    FLT_STREAM_CONTEXT: "StreamContext",
    FLT_STREAMHANDLE_CONTEXT: "StreamHandleContext",
    FLT_TRANSACTION_CONTEXT: "TransactionContext",
    FLT_SECTION_CONTEXT: "SectionContext",
}


def file_of(thing: Any) -> FileReference | None:
    """The file object of callback data, or what is one."""
    found: FileReference | None = thing.file if isinstance(thing, CallbackData) else thing
    return found


def _give(status: int, context: Context | None, out: OldContext) -> int:
    if out is not None:
        out.value = context
    return status


def FltAllocateContext(
    Filter: AFilter, ContextType: int, ContextSize: int, PoolType: int, ReturnedContext: Out[Context]
) -> int:
    """A context with one reference (B2.3). PoolType is checked and means nothing here. ContextSize: bytes.

    STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND, STATUS_FLT_DELETING_OBJECT, STATUS_FLT_MUST_BE_NONPAGED_POOL,
    STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_BUFFER_SIZE, STATUS_INVALID_PARAMETER, STATUS_NOT_SUPPORTED.
    """
    if Filter.contexts is None:
        return STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND
    status, context = Filter.contexts.allocate(ContextType, ContextSize, PoolType)
    if context is not None:
        ReturnedContext.value = context
    return status


def FltSetVolumeContext(Volume: AVolume, Operation: int, NewContext: Context | None, OldContext: OldContext) -> int:
    """Link a context to the volume, one for each filter (B2.5). Errors: as FltSetStreamContext, but NOT_SUPPORTED."""
    return _give(*Volume.core.stack.flt_set_volume_context(Operation, NewContext, OldContext is not None), OldContext)


def _set(kind: int, instance: AnInstance, file: Any, operation: int, new: Context | None, old: OldContext) -> int:
    if new is None:
        return _give(STATUS_INVALID_PARAMETER, None, old)
    return _give(*instance.entry.flt_set_context(kind, file_of(file), operation, new, old is not None), old)


def FltSetInstanceContext(
    Instance: AnInstance, Operation: int, NewContext: Context | None, OldContext: OldContext
) -> int:
    """Link a context to the instance (B2.5). Errors: as FltSetStreamContext, but NOT_SUPPORTED."""
    return _set(FLT_INSTANCE_CONTEXT, Instance, None, Operation, NewContext, OldContext)


def FltSetFileContext(
    Instance: AnInstance, FileObject: Any, Operation: int, NewContext: Context | None, OldContext: OldContext
) -> int:
    """Link a context to the file, one for each instance (B2.5). Errors: as FltSetStreamContext."""
    return _set(FLT_FILE_CONTEXT, Instance, FileObject, Operation, NewContext, OldContext)


def FltSetStreamContext(
    Instance: AnInstance, FileObject: Any, Operation: int, NewContext: Context | None, OldContext: OldContext
) -> int:
    """Link a context to the stream, one for each instance (B2.5). Operation: FLT_SET_CONTEXT_*.

    STATUS_FLT_CONTEXT_ALREADY_DEFINED (OldContext is the one that is there), STATUS_FLT_CONTEXT_ALREADY_LINKED,
    STATUS_FLT_DELETING_OBJECT, STATUS_INVALID_PARAMETER, STATUS_NOT_SUPPORTED (no CREATE has succeeded, or CLOSE).
    """
    return _set(FLT_STREAM_CONTEXT, Instance, FileObject, Operation, NewContext, OldContext)


def FltSetStreamHandleContext(
    Instance: AnInstance, FileObject: Any, Operation: int, NewContext: Context | None, OldContext: OldContext
) -> int:
    """Link a context to the open file, one for each instance (B2.5). Errors: as FltSetStreamContext."""
    return _set(FLT_STREAMHANDLE_CONTEXT, Instance, FileObject, Operation, NewContext, OldContext)


def FltSetTransactionContext(
    Instance: AnInstance, Transaction: Any, Operation: int, NewContext: Context | None, OldContext: OldContext
) -> int:
    """There are no transactions on Linux: STATUS_NOT_SUPPORTED (B2.9)."""
    return _give(STATUS_NOT_SUPPORTED, None, OldContext)


def _get(kind: int, instance: AnInstance, file: Any, out: Out[Context | None]) -> int:
    return _give(*instance.entry.flt_get_context(kind, file_of(file)), out)


def FltGetVolumeContext(Filter: AFilter, Volume: AVolume, Context: Out[Context | None]) -> int:
    """The filter's context of the volume (B2.4). STATUS_NOT_FOUND."""
    if Filter.contexts is None:
        return _give(STATUS_NOT_FOUND, None, Context)
    return _give(*Volume.core.stack.flt_get_volume_context(Filter.contexts), Context)


def FltGetInstanceContext(Instance: AnInstance, Context: Out[Context | None]) -> int:
    """The instance's context (B2.4). STATUS_NOT_FOUND."""
    return _get(FLT_INSTANCE_CONTEXT, Instance, None, Context)


def FltGetFileContext(Instance: AnInstance, FileObject: Any, Context: Out[Context | None]) -> int:
    """The instance's context of the file (B2.4). STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED."""
    return _get(FLT_FILE_CONTEXT, Instance, FileObject, Context)


def FltGetStreamContext(Instance: AnInstance, FileObject: Any, Context: Out[Context | None]) -> int:
    """The instance's context of the stream (B2.4). STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED."""
    return _get(FLT_STREAM_CONTEXT, Instance, FileObject, Context)


def FltGetStreamHandleContext(Instance: AnInstance, FileObject: Any, Context: Out[Context | None]) -> int:
    """The instance's context of the open file (B2.4). STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED."""
    return _get(FLT_STREAMHANDLE_CONTEXT, Instance, FileObject, Context)


def FltGetSectionContext(Instance: AnInstance, FileObject: Any, Context: Out[Context | None]) -> int:
    """The instance's context of the stream's section for a data scan (B2.8). STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED."""
    return _get(FLT_SECTION_CONTEXT, Instance, FileObject, Context)


def FltGetTransactionContext(Instance: AnInstance, Transaction: Any, Context: Out[Context | None]) -> int:
    """There are no transactions on Linux: STATUS_NOT_FOUND (B2.9)."""
    return _give(STATUS_NOT_FOUND, None, Context)


def _delete(kind: int, instance: AnInstance, file: Any, old: OldContext) -> int:
    return _give(*instance.entry.flt_delete_context(kind, file_of(file), old is not None), old)


def FltDeleteVolumeContext(Filter: AFilter, Volume: AVolume, OldContext: OldContext) -> int:
    """Take the filter's context off the volume (B2.6). STATUS_NOT_FOUND."""
    if Filter.contexts is None:
        return _give(STATUS_NOT_FOUND, None, OldContext)
    return _give(*Volume.core.stack.flt_delete_volume_context(Filter.contexts, OldContext is not None), OldContext)


def FltDeleteInstanceContext(Instance: AnInstance, OldContext: OldContext) -> int:
    """Take the context off the instance (B2.6). STATUS_NOT_FOUND."""
    return _delete(FLT_INSTANCE_CONTEXT, Instance, None, OldContext)


def FltDeleteFileContext(Instance: AnInstance, FileObject: Any, OldContext: OldContext) -> int:
    """Take the instance's context off the file (B2.6). STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED."""
    return _delete(FLT_FILE_CONTEXT, Instance, FileObject, OldContext)


def FltDeleteStreamContext(Instance: AnInstance, FileObject: Any, OldContext: OldContext) -> int:
    """Take the instance's context off the stream (B2.6). STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED."""
    return _delete(FLT_STREAM_CONTEXT, Instance, FileObject, OldContext)


def FltDeleteStreamHandleContext(Instance: AnInstance, FileObject: Any, OldContext: OldContext) -> int:
    """Take the instance's context off the open file (B2.6). STATUS_NOT_FOUND, STATUS_NOT_SUPPORTED."""
    return _delete(FLT_STREAMHANDLE_CONTEXT, Instance, FileObject, OldContext)


def FltDeleteTransactionContext(Instance: AnInstance, Transaction: Any, OldContext: OldContext) -> int:
    """There are no transactions on Linux: STATUS_NOT_FOUND (B2.9)."""
    return _give(STATUS_NOT_FOUND, None, OldContext)


def FltDeleteContext(Context: Context) -> None:
    """Take the context off whatever it is linked to (B2.6); the caller's reference stays his."""
    Context.delete()


def FltReferenceContext(Context: Context) -> None:
    """One reference more."""
    Context.reference()


def FltReleaseContext(Context: Context) -> None:
    """One reference less; the last one runs the cleanup callback."""
    Context.release()


def _get_all(objects: RelatedObjects, desired: int, contexts: FLT_RELATED_CONTEXTS) -> None:
    for kind, member in _MEMBERS.items():
        if not hasattr(contexts, member):
            continue
        found: Out[Context | None] = Out()
        found.value = None
        if desired & kind and kind != FLT_TRANSACTION_CONTEXT:
            if kind == FLT_VOLUME_CONTEXT:
                FltGetVolumeContext(objects.Filter, objects.Volume, found)
            elif objects.Instance is not None:
                _get(kind, objects.Instance, objects.FileObject, found)
        setattr(contexts, member, found.value)


def FltGetContexts(FltObjects: RelatedObjects, DesiredContexts: int, Contexts: FLT_RELATED_CONTEXTS) -> None:
    """Those of the types in DesiredContexts (FLT_ALL_CONTEXTS: all) that there are; None for the others (B2.7)."""
    _get_all(FltObjects, DesiredContexts, Contexts)


def FltGetContextsEx(
    FltObjects: RelatedObjects, DesiredContexts: int, ContextsSize: int, Contexts: FLT_RELATED_CONTEXTS_EX
) -> int:
    """The same, with the section's (B2.7). ContextsSize: in C sizeof(*Contexts), here the number of its members, 7.

    STATUS_INVALID_PARAMETER: another size, or a type that there is not.
    """
    if ContextsSize != len(_MEMBERS) or DesiredContexts & ~sum(_MEMBERS):
        return STATUS_INVALID_PARAMETER
    _get_all(FltObjects, DesiredContexts, Contexts)
    return STATUS_SUCCESS


def FltReleaseContexts(Contexts: FLT_RELATED_CONTEXTS) -> None:
    """Release all that FltGetContexts found, and empty the members."""
    for member in _MEMBERS.values():
        context: Context | None = getattr(Contexts, member, None)
        if context is not None:
            setattr(Contexts, member, None)
            context.release()


def FltReleaseContextsEx(ContextsSize: int, Contexts: FLT_RELATED_CONTEXTS_EX) -> None:
    """The same for FltGetContextsEx."""
    FltReleaseContexts(Contexts)


def FltSupportsFileContexts(FileObject: Any) -> bool:
    """From a CREATE that succeeded to the CLOSE (B2.1)."""
    file = file_of(FileObject)
    return file is not None and supports_contexts(file)


def FltSupportsFileContextsEx(FileObject: Any, Instance: AnInstance | None) -> bool:
    """The same: the manager keeps file contexts itself, for every instance (B2.1)."""
    return FltSupportsFileContexts(FileObject)


def FltSupportsStreamContexts(FileObject: Any) -> bool:
    """The same (B2.1)."""
    return FltSupportsFileContexts(FileObject)


def FltSupportsStreamHandleContexts(FileObject: Any) -> bool:
    """The same (B2.1)."""
    return FltSupportsFileContexts(FileObject)
