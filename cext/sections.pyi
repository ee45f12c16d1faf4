"""Sections for data scans (docs/semantics.md, B2.8): creating, reading and closing them."""

from enum import IntEnum
from types import TracebackType
from typing import Any

from stackfs.cext.python_contexts import Context
from stackfs.cext.stack import InstanceEntry

class SectionAccess(IntEnum):
    SECTION_QUERY = 1
    SECTION_MAP_WRITE = 2
    SECTION_MAP_READ = 4
    SECTION_MAP_EXECUTE = 8

class SectionAttributes(IntEnum):
    SEC_COMMIT = 0x8000000

class Section:
    """A section of a file, to scan its data (B2.8). Offsets and sizes are bytes. Close it: it is a context manager.

    Reads give what the layers below the instance give. OSError, with `status`: a filter below, or the disk, fails one.
    """

    context: Any
    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer where the section ends, or where the file ends by now."""
    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """The same as a memoryview, to the section's end where no length is given: a copy of the bytes as they are now,
        so that nothing which becomes of the file, or of the section, can hurt whoever looks at it."""
    @property
    def size(self) -> int:
        """As it was created."""
    @property
    def closed(self) -> bool:
        """Was it closed?"""
    def close(self) -> None:
        """FltCloseSectionForDataScan. Twice is no harm; reads under way end first."""
    def __enter__(self) -> Section: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

def register_for_data_scan(entry: InstanceEntry) -> int:
    """FltRegisterForDataScan: an unsigned NTSTATUS."""

def create_section(
    entry: InstanceEntry,
    file: Any,
    context: Context | None,
    access: int = 5,
    maximum_size: int = 0,
    protection: int = 2,
    attributes: int = 0x8000000,
    flags: int = 0,
) -> tuple[int, Section | None]:
    """FltCreateSectionForDataScan: (unsigned NTSTATUS, Section or None). `file`: callback data, a file that the filter
    has opened, or a file object. A context that was not allocated yet is, and its one reference is the section's."""

def close_section(context: Context | None) -> int:
    """FltCloseSectionForDataScan: an unsigned NTSTATUS."""

def open_sections(entry: InstanceEntry) -> list[Any]:
    """The contexts of the instance's sections that are open, newest first (a native filter's: None)."""

def close_left_open(entry: InstanceEntry) -> int:
    """When nothing of the instance is under way any more: closes the sections that its filter left open. How many."""
