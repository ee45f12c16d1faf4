"""Sections for data scans under their DDI names (docs/semantics.md, B2.8).

`Instance` is what callbacks know as `objects`, `FileObject` callback data, `data.file` or a file that the filter has
opened. The section's handle and object are both a stackfs.api.Section. A view of it is a copy: see Section.view().
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from stackfs.api import STATUS_INVALID_PARAMETER, STATUS_SUCCESS, Context, Section
from stackfs.cext import sections
from stackfs.ddi.out import Out

if TYPE_CHECKING:
    from stackfs.cext.stack import InstanceEntry

__all__ = [
    "FltCloseSectionForDataScan",
    "FltCreateSectionForDataScan",
    "FltRegisterForDataScan",
    "MmMapViewInSystemSpace",
    "MmUnmapViewInSystemSpace",
]


class AnInstance(Protocol):
    entry: InstanceEntry


def FltRegisterForDataScan(Instance: AnInstance) -> int:
    """The instance is going to create sections (B2.8). STATUS_FLT_DELETING_OBJECT."""
    return sections.register_for_data_scan(Instance.entry)


def FltCreateSectionForDataScan(
    Instance: AnInstance,
    FileObject: Any,
    SectionContext: Context | None,
    DesiredAccess: int,
    ObjectAttributes: Any,
    MaximumSize: int | None,
    SectionPageProtection: int,
    AllocationAttributes: int,
    Flags: int,
    SectionHandle: Out[Section],
    SectionObject: Out[Section],
    SectionFileSize: Out[int] | None,
) -> int:
    """A section of an open file, with a context of its own (B2.8). MaximumSize, SectionFileSize: bytes.
    ObjectAttributes mean nothing here.

    STATUS_END_OF_FILE (the file is empty), STATUS_FLT_CONTEXT_ALREADY_DEFINED (the instance has a section of it),
    STATUS_FLT_CONTEXT_ALREADY_LINKED, STATUS_FLT_DELETING_OBJECT, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_FILE_FOR_SECTION, STATUS_INVALID_PARAMETER, STATUS_NOT_SUPPORTED (no CREATE has succeeded, or CLOSE),
    STATUS_SECTION_PROTECTION (other access than reading), STATUS_SECTION_TOO_BIG; or why the file cannot be read.
    """
    status, section = sections.create_section(
        Instance.entry, FileObject, SectionContext, DesiredAccess, MaximumSize or 0, SectionPageProtection,
        AllocationAttributes, Flags,
    )  # fmt: skip
    if section is not None:
        SectionHandle.value = SectionObject.value = section
        if SectionFileSize is not None:
            SectionFileSize.value = section.size
    return status


def FltCloseSectionForDataScan(SectionContext: Context | None) -> int:
    """Close it: nobody is told of conflicts any more (B2.8). The caller's references on the context stay his.

    STATUS_INVALID_PARAMETER: no section was created with that context. STATUS_NOT_FOUND: it is closed already.
    """
    return sections.close_section(SectionContext)


def MmMapViewInSystemSpace(Section: Section, MappedBase: Out[memoryview], ViewSize: Out[int] | None) -> int:
    """A view of the whole section, or of its first ViewSize bytes: a copy. STATUS_INVALID_PARAMETER: it is closed."""
    wanted = getattr(ViewSize, "value", None) or None
    try:
        view = Section.view(0, wanted)
    except ValueError:
        return STATUS_INVALID_PARAMETER
    except OSError as error:
        return int(getattr(error, "status", STATUS_INVALID_PARAMETER))
    MappedBase.value = view
    if ViewSize is not None:
        ViewSize.value = len(view)
    return STATUS_SUCCESS


def MmUnmapViewInSystemSpace(MappedBase: memoryview) -> int:
    """Gives a view's memory back."""
    MappedBase.release()
    return STATUS_SUCCESS
