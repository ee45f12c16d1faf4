"""What a filter's DriverEntry is called with: the way in beside a class of stackfs/api.py (docs/semantics.md, A2.13).

A drop-in that has a function ``DriverEntry(DriverObject, RegistryPath)`` and no subclass of Filter registers itself,
with FltRegisterFilter and FltStartFiltering (stackfs/ddi/filters.py). DriverEntry runs in a thread of its own, and may
wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stackfs.discovery import Found
    from stackfs.filter_objects import LoadedFilter
    from stackfs.manager import FilterManager

DriverEntryRoutine = Callable[["DriverObject", str], int | None]


class DriverObject:
    """The driver that is being started. `options`: the values of its manifest's options: its key's Parameters."""

    def __init__(self, manager: FilterManager, found: Found, options: dict[str, Any]) -> None:
        self.manager = manager
        self.found = found
        self.options = options
        self.filter: LoadedFilter | None = None
        """What it registered."""
        self.refused = ""
        """Why a registration was refused, in words."""

    @property
    def registry_path(self) -> str:
        """The service key that a driver of Windows would be given."""
        return rf"\Registry\Machine\System\CurrentControlSet\Services\{self.found.name}"
