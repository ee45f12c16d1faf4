"""Filters under their DDI names: registration, start, load, unload, rundown references (docs/semantics.md, A2).

Parameters stand in the DDI's order and under its names, out-parameters are Out objects, what the DDI returns as
NTSTATUS is returned as its unsigned number. A PFLT_FILTER is a stackfs.filter_objects.LoadedFilter, a PFLT_VOLUME a
Volume, a PFLT_INSTANCE an Instance; FltObjects of a callback is the Instance, which has .Filter, .Volume and .Instance.
Any thread may call these; those that wait (load, unload, unregister) must not be called by a pre or post callback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from stackfs import api, contexts, loader, manager
from stackfs.cext.python_names import NameProvider
from stackfs.ddi.contexts import registered_contexts
from stackfs.ddi.names import name_provider
from stackfs.ddi.out import Out
from stackfs.driver_object import DriverObject
from stackfs.errors import FilterImageError, FltError
from stackfs.filter_objects import FilterState, FltObject, LoadedFilter

__all__ = [
    "FLT_OPERATION_REGISTRATION",
    "FLT_REGISTRATION",
    "FLT_REGISTRATION_VERSION",
    "IRP_MJ_OPERATION_END",
    "FltEnumerateFilters",
    "FltGetFilterFromName",
    "FltLoadFilter",
    "FltObjectDereference",
    "FltObjectReference",
    "FltRegisterFilter",
    "FltStartFiltering",
    "FltUnloadFilter",
    "FltUnregisterFilter",
]

FLT_REGISTRATION_VERSION: Final = 0x0203
IRP_MJ_OPERATION_END: Final = 0x80
FILE_DEVICE_DISK_FILE_SYSTEM: Final = 0x8
FLT_FSTYPE_UNKNOWN: Final = 0

Routine = Callable[..., Any]


@dataclass
class FLT_OPERATION_REGISTRATION:
    """One operation: PreOperation(Data, FltObjects, CompletionContext: Out), PostOperation(Data, FltObjects,
    CompletionContext, Flags). FLT_OPERATION_REGISTRATION(IRP_MJ_OPERATION_END) may end the list."""

    MajorFunction: int
    Flags: int = 0
    PreOperation: Routine | None = None
    PostOperation: Routine | None = None
    Reserved1: None = None


@dataclass
class FLT_REGISTRATION:
    """What FltRegisterFilter takes. Callbacks that are None are not called (A2.8, A3.2, A3.6 say what that means)."""

    Size: int = 0
    Version: int = FLT_REGISTRATION_VERSION
    Flags: int = 0
    ContextRegistration: Sequence[Any] | None = None
    OperationRegistration: Sequence[FLT_OPERATION_REGISTRATION] = field(default_factory=tuple)
    FilterUnloadCallback: Routine | None = None
    InstanceSetupCallback: Routine | None = None
    InstanceQueryTeardownCallback: Routine | None = None
    InstanceTeardownStartCallback: Routine | None = None
    InstanceTeardownCompleteCallback: Routine | None = None
    GenerateFileNameCallback: Routine | None = None
    NormalizeNameComponentCallback: Routine | None = None
    NormalizeContextCleanupCallback: Routine | None = None
    TransactionNotificationCallback: Routine | None = None
    NormalizeNameComponentExCallback: Routine | None = None
    SectionNotificationCallback: Routine | None = None


class RegisteredFilter(api.Filter):
    """A FLT_REGISTRATION as the manager calls it."""

    def __init__(self, options: dict[str, Any], registration: FLT_REGISTRATION) -> None:
        super().__init__(options)
        self.registration = registration
        self.flags = registration.Flags
        callbacks: dict[str, Routine | None] = {
            "filter_unload": registration.FilterUnloadCallback,
            "instance_setup": _setup(registration.InstanceSetupCallback),
            "instance_query_teardown": registration.InstanceQueryTeardownCallback,
            "instance_teardown_start": registration.InstanceTeardownStartCallback,
            "instance_teardown_complete": registration.InstanceTeardownCompleteCallback,
            "section_notification": registration.SectionNotificationCallback,
        }
        operations = []
        for index, each in enumerate(registration.OperationRegistration):
            if each.MajorFunction == IRP_MJ_OPERATION_END:
                break
            pre, post = each.PreOperation, each.PostOperation
            callbacks |= {f"pre_{index}": _pre(pre), f"post_{index}": post}
            names = (f"pre_{index}" if pre is not None else None, f"post_{index}" if post is not None else None)
            operations.append(api.Operation(each.MajorFunction, *names, each.Flags))
        self.operations = tuple(operations)
        self.contexts = registered_contexts(registration.ContextRegistration)
        self.name_provider = _name_provider(registration)
        vars(self).update(callbacks)


def _name_provider(registration: FLT_REGISTRATION) -> NameProvider | None:
    generate, extended = registration.GenerateFileNameCallback, registration.NormalizeNameComponentExCallback
    if generate is None:
        return None
    normalize = registration.NormalizeNameComponentCallback
    if extended is not None:  # the one with a file object, which nobody has opened here, takes precedence
        asked = extended
        normalize = lambda instance, *rest: asked(instance, None, *rest)  # noqa: E731
    return name_provider(generate, normalize, registration.NormalizeContextCleanupCallback)


def _pre(routine: Routine | None) -> Routine | None:
    """The DDI's completion context is an out-parameter, ours a second value."""
    if routine is None:
        return None
    asked = routine

    def pre(data: api.CallbackData, objects: Any) -> Any:
        context: Out[Any] = Out()
        status = asked(data, objects, context)
        value = getattr(context, "value", None)
        return status if value is None else (status, value)

    return pre


def _setup(routine: Routine | None) -> Routine | None:
    if routine is None:
        return None
    asked = routine
    return lambda objects, flags: asked(objects, flags, FILE_DEVICE_DISK_FILE_SYSTEM, FLT_FSTYPE_UNKNOWN)


def status_of(routine: Callable[[], object]) -> int:
    """STATUS_SUCCESS, or the status of the FltError that it raised."""
    try:
        routine()
    except FltError as error:
        return error.status
    return api.STATUS_SUCCESS


def holder(routine: str) -> str:
    """The name under which the caller of a routine of ours holds a reference: routine, file and line."""
    frame = sys._getframe(2)
    return f"{routine} in {frame.f_code.co_filename}:{frame.f_lineno}"


def FltRegisterFilter(Driver: DriverObject, Registration: FLT_REGISTRATION, RetFilter: Out[LoadedFilter]) -> int:
    """A2.13. INVALID_PARAMETER: another version than 0x02xx, half a name provider, or operations that cannot be
    registered; FLT_DUPLICATE_ENTRY: one operation twice; FLT_INVALID_CONTEXT_REGISTRATION: contexts that cannot be
    (B2.2); FLT_INSTANCE_ALTITUDE_COLLISION: the second time; FLT_NOT_INITIALIZED: no manager runs."""
    names = Registration
    normalizes = names.NormalizeNameComponentCallback is not None or names.NormalizeNameComponentExCallback is not None
    if names.Version & 0xFF00 != 0x0200:
        Driver.refused = f"Version is {names.Version:#06x}, not 0x02xx"
    elif (names.GenerateFileNameCallback is not None) != normalizes:
        Driver.refused = "a name provider needs GenerateFileNameCallback and a NormalizeNameComponent callback"
    else:
        filter_object = RegisteredFilter(Driver.options, Registration)
        try:
            contexts.check(filter_object)
        except ValueError as error:
            Driver.refused = f"ContextRegistration: {error}"
            return api.STATUS_FLT_INVALID_CONTEXT_REGISTRATION
        majors = [each.major for each in filter_object.operations]
        if len(set(majors)) < len(majors):
            Driver.refused = "an operation is registered twice"
            return api.STATUS_FLT_DUPLICATE_ENTRY
        try:
            loader.check_registration(Driver.found, "FLT_REGISTRATION", filter_object)
        except FilterImageError as error:
            Driver.refused = error.message
        else:
            return status_of(lambda: _register(Driver, filter_object, RetFilter))
    return api.STATUS_INVALID_PARAMETER


def _register(driver: DriverObject, filter_object: RegisteredFilter, returned: Out[LoadedFilter]) -> None:
    driver.filter = driver.manager.call_sync(driver.manager.register, driver.found, filter_object)
    returned.value = driver.filter


def FltStartFiltering(Filter: LoadedFilter) -> int:
    """A2.14. INVALID_PARAMETER: it has been called before. Callbacks may come before DriverEntry has returned only
    where the filter attaches itself; the automatic instances are set up when it has."""
    return status_of(lambda: Filter.manager.call_sync(Filter.manager.start_filtering, Filter))


def FltUnregisterFilter(Filter: LoadedFilter) -> None:
    """A2.15. Returns when the last instance is gone and nothing holds the filter: close its ports first."""
    Filter.manager.call(Filter.manager.unregister, Filter)


def FltLoadFilter(FilterName: str) -> int:
    """A2.3. IMAGE_ALREADY_LOADED, OBJECT_NAME_NOT_FOUND, INVALID_IMAGE_FORMAT, FAILED_DRIVER_ENTRY,
    DRIVER_FAILED_PRIOR_UNLOAD."""

    def load() -> None:
        running = manager.current()
        running.call(running.load, FilterName)

    return status_of(load)


def FltUnloadFilter(FilterName: str) -> int:
    """A2.8: the filter is asked. FLT_FILTER_NOT_FOUND, FLT_DELETING_OBJECT, FLT_DO_NOT_DETACH, or what it answers. A
    filter does not unload itself."""

    def unload() -> None:
        running = manager.current()
        running.call(running.unload, FilterName)

    return status_of(unload)


def FltObjectReference(FltObject: FltObject) -> int:
    """A2.16. FLT_DELETING_OBJECT: its teardown has begun. Each is to be undone by FltObjectDereference."""
    name = holder("FltObjectReference")
    return status_of(lambda: FltObject.reference_as(name))


def FltObjectDereference(FltObject: FltObject) -> None:
    """Drops a reference that FltObjectReference, or a routine that returns an object, has taken. ValueError: there is
    none."""
    FltObject.rundown.release_one("Flt")


def FltGetFilterFromName(FilterName: str, RetFilter: Out[LoadedFilter]) -> int:
    """The filter, referenced. FLT_FILTER_NOT_FOUND, FLT_DELETING_OBJECT."""
    name = holder("FltGetFilterFromName")

    def get() -> None:
        found = manager.current().filter(FilterName)
        found.reference_as(name)
        RetFilter.value = found

    return status_of(get)


def FltEnumerateFilters(
    FilterList: list[LoadedFilter] | None, FilterListSize: int, NumberFiltersReturned: Out[int]
) -> int:
    """Appends every filter to FilterList, referenced, highest altitude first. BUFFER_TOO_SMALL: FilterListSize is less
    than NumberFiltersReturned then says; FilterList is left as it was."""
    name = holder("FltEnumerateFilters")

    def enumerate_all() -> None:
        everything = list(manager.current().loaded.values())
        loaded = [each for each in everything if each.state is FilterState.FILTERING and each.legacy is None]
        give(sorted(loaded, key=lambda each: each.order, reverse=True), FilterList, FilterListSize,
             NumberFiltersReturned, name)  # fmt: skip

    return status_of(enumerate_all)


def give(found: Sequence[Any], room: list[Any] | None, size: int, count: Out[int], name: str) -> None:
    """How the Enumerate routines answer: every object that can be referenced, or STATUS_BUFFER_TOO_SMALL."""
    count.value = len(found)
    if room is None or size < len(found):
        raise FltError(api.STATUS_BUFFER_TOO_SMALL, f"there are {len(found)}")
    held = [each for each in found if each.rundown.acquire(name)]
    count.value = len(held)
    room += held
