"""File name information under its DDI names (docs/semantics.md, B1).

`FileObject` is callback data (the file object that the operation is about) or a file object, `Instance` what callbacks
know as `objects`. What comes back through an Out has a reference, which the caller gives back with
FltReleaseFileNameInformation. NTSTATUS values are unsigned.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from stackfs import verifier
from stackfs.api import (
    FLT_FILE_NAME_SHORT,
    STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER,
    STATUS_SUCCESS,
    CallbackData,
    FileNameInformation,
    NtStatusError,
)
from stackfs.cext.python_names import NameProvider, parse_file_name
from stackfs.ddi.contexts import file_of
from stackfs.ddi.out import Out

if TYPE_CHECKING:
    from stackfs.cext.stack import InstanceEntry

__all__ = [
    "FLT_NAME_CONTROL",
    "FltCheckAndGrowNameControl",
    "FltGetDestinationFileNameInformation",
    "FltGetFileNameInformation",
    "FltGetFileNameInformationUnsafe",
    "FltGetTunneledName",
    "FltParseFileName",
    "FltParseFileNameInformation",
    "FltPurgeFileNameInformationCache",
    "FltReferenceFileNameInformation",
    "FltReleaseFileNameInformation",
]

Information = Out[FileNameInformation | None]


Routine = Callable[..., Any]


class AnInstance(Protocol):
    entry: InstanceEntry


class FLT_NAME_CONTROL:
    """A name that grows: `Name` is a bytearray of MaximumLength bytes, of which Length are the name."""

    def __init__(self, MaximumLength: int = 0) -> None:
        self.Name = bytearray(MaximumLength)
        self.Length = 0

    @property
    def MaximumLength(self) -> int:
        return len(self.Name)


def _given(information: FileNameInformation | None, instance: Any) -> FileNameInformation | None:
    """It has to be released: the verifier looks at the end of the instance."""
    if information is not None:
        verifier.acquired(
            information, f"the file name information {information.name!r}", "FltGetFileNameInformation", owner=instance
        )
    return information


def FltGetFileNameInformation(CallbackData: CallbackData, NameOptions: int, FileNameInformation: Information) -> int:
    """The file's name as it is called below the instance whose callback this is (B1.2 to B1.5).

    STATUS_FLT_INVALID_NAME_REQUEST, STATUS_FLT_NAME_CACHE_MISS, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER, STATUS_NAME_TOO_LONG, STATUS_OBJECT_NAME_NOT_FOUND (there is no short name), or what a
    name provider answers.
    """
    FileNameInformation.value = None
    try:
        FileNameInformation.value = _given(CallbackData.name_information(NameOptions), CallbackData.instance)
    except NtStatusError as error:
        return error.status
    return STATUS_SUCCESS


def FltGetFileNameInformationUnsafe(
    FileObject: Any, Instance: AnInstance | None, NameOptions: int, FileNameInformation: Information
) -> int:
    """The name of an open file (B1.6). Instance is needed: it has the volume. Errors: as FltGetFileNameInformation."""
    FileNameInformation.value = None
    file = file_of(FileObject)
    if Instance is None or file is None:
        return STATUS_INVALID_PARAMETER
    status, found = Instance.entry.flt_get_name(file, NameOptions)
    FileNameInformation.value = _given(found, Instance)
    return status


def FltGetDestinationFileNameInformation(
    Instance: AnInstance,
    FileObject: Any,
    RootDirectory: CallbackData | None,
    FileName: str | bytes,
    FileNameLength: int,
    NameOptions: int,
    RetFileNameInformation: Information,
) -> int:
    """What a rename or link is about to call the file (B1.7), in its pre callback.

    RootDirectory: the callback data, whose target directory it is; None: the directory that the file is in.
    FileNameLength: bytes of FileName, one component. STATUS_INVALID_PARAMETER, and as FltGetFileNameInformation.
    """
    RetFileNameInformation.value = None
    name = os.fsencode(FileName)[:FileNameLength]
    if RootDirectory is None:
        file = file_of(FileObject)
        if file is None:
            return STATUS_INVALID_PARAMETER
        status, found = Instance.entry.flt_get_destination_name(file, name, NameOptions)
        RetFileNameInformation.value = _given(found, Instance)
        return status
    try:
        if RootDirectory.target_name != name:
            return STATUS_INVALID_PARAMETER
        RetFileNameInformation.value = _given(RootDirectory.destination_name_information(NameOptions), Instance)
    except AttributeError:
        return STATUS_INVALID_PARAMETER
    except NtStatusError as error:
        return error.status
    return STATUS_SUCCESS


def FltGetTunneledName(
    CallbackData: CallbackData, FileNameInformation: FileNameInformation, RetTunneledFileNameInformation: Information
) -> int:
    """Nothing, and STATUS_SUCCESS: names are not tunneled here, the one asked for before is the right one (B1.9)."""
    RetTunneledFileNameInformation.value = None
    return STATUS_SUCCESS


def FltParseFileNameInformation(FileNameInformation: FileNameInformation) -> int:
    """Its parts are there from the beginning. STATUS_INVALID_PARAMETER: a short name has none."""
    return STATUS_INVALID_PARAMETER if FileNameInformation.format == FLT_FILE_NAME_SHORT else STATUS_SUCCESS


def FltParseFileName(
    FileName: str | bytes, Extension: Out[str] | None, Stream: Out[str] | None, FinalComponent: Out[str] | None
) -> int:
    """The parts of a name that is a path, or a component."""
    for out, part in zip((Extension, Stream, FinalComponent), parse_file_name(FileName), strict=True):
        if out is not None:
            out.value = part
    return STATUS_SUCCESS


def FltReferenceFileNameInformation(FileNameInformation: FileNameInformation) -> None:
    """One reference more."""
    FileNameInformation.reference()


def FltReleaseFileNameInformation(FileNameInformation: FileNameInformation) -> None:
    """One reference less; with the last one that was given it is dead."""
    FileNameInformation.release()
    if FileNameInformation.references == 0:
        verifier.given_back(FileNameInformation)


def FltPurgeFileNameInformationCache(Instance: AnInstance, FileObject: Any | None) -> int:
    """Forget the cached names of the file, or (None) of the whole volume (B1.5)."""
    return Instance.entry.flt_purge_names(file_of(FileObject))


def name_provider(
    GenerateFileName: Routine, NormalizeNameComponent: Routine | None, NormalizeContextCleanup: Routine | None
) -> NameProvider:
    """FLT_REGISTRATION's callbacks of a name provider (B1.8).

    GenerateFileName(Instance, FileObject, CallbackData, NameOptions, CacheFileNameInformation: Out, FileName:
    FLT_NAME_CONTROL) -> NTSTATUS: FileName gets the path from the volume's root; FltGetFileNameInformationUnsafe gives
    the name below. CallbackData is None. NormalizeNameComponent(Instance, ParentDirectory, VolumeNameLength, Component,
    ExpandComponentName: FLT_NAME_CONTROL, ExpandComponentNameLength, Flags, NormalizationContext: Out) -> NTSTATUS.
    """

    def generate(instance: Any, file: Any, options: int) -> tuple[int, bytes, bool]:
        cache: Out[bool] = Out()
        cache.value = True
        control = FLT_NAME_CONTROL()
        status = GenerateFileName(instance, file, None, options, cache, control)
        return status, bytes(control.Name[: control.Length]), cache.value

    def normalize(parent: str, component: str, flags: int, context: Any, instance: Any) -> tuple[bytes, Any]:
        volume = os.fsencode(instance.volume.name)
        control = FLT_NAME_CONTROL(255)
        kept: Out[Any] = Out()
        kept.value = context
        assert NormalizeNameComponent is not None
        status = NormalizeNameComponent(
            instance, os.fsdecode(volume) + parent, len(volume), component, control, control.MaximumLength, flags, kept
        )
        if status != STATUS_SUCCESS:
            raise NtStatusError(status, f"{component!r} has no name in {parent!r}")
        return bytes(control.Name[: control.Length]), kept.value

    def cleanup(context: Any) -> None:
        kept: Out[Any] = Out()
        kept.value = context
        if NormalizeContextCleanup is not None:
            NormalizeContextCleanup(kept)

    return NameProvider(generate, normalize if NormalizeNameComponent is not None else None, cleanup, raw=True)


def FltCheckAndGrowNameControl(NameCtrl: FLT_NAME_CONTROL, NewSize: int) -> int:
    """Make room for NewSize bytes, keeping what is there. STATUS_INSUFFICIENT_RESOURCES: more than 65,535."""
    if NewSize > 0xFFFF:
        return STATUS_INSUFFICIENT_RESOURCES
    if NewSize > NameCtrl.MaximumLength:
        NameCtrl.Name.extend(bytes(NewSize - NameCtrl.MaximumLength))
    return STATUS_SUCCESS
