"""Volumes under the DDI's names (docs/semantics.md, B4.13): names, filesystem, properties, volume information."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from stackfs import api, volume_properties
from stackfs.cext import filter_file
from stackfs.cext.filter_file import FileObject
from stackfs.cext.pending import require_irql
from stackfs.ddi.filter_io import IO_STATUS_BLOCK, ended, run
from stackfs.ddi.filters import holder, status_of
from stackfs.ddi.out import Out
from stackfs.errors import FltError
from stackfs.filter_objects import FltObject, Instance, LoadedFilter, Volume
from stackfs.volume_properties import FLT_FILESYSTEM_TYPE, FLT_VOLUME_PROPERTIES

_FILESYSTEMS = {name: int(value) for name, value in FLT_FILESYSTEM_TYPE.__members__.items()}
globals().update(_FILESYSTEMS)

__all__ = [  # noqa: PLE0604
    "FILE_FS_ATTRIBUTE_INFORMATION",
    "FILE_FS_DEVICE_INFORMATION",
    "FILE_FS_FULL_SIZE_INFORMATION",
    "FILE_FS_LABEL_INFORMATION",
    "FILE_FS_SIZE_INFORMATION",
    "FILE_FS_VOLUME_INFORMATION",
    "FLT_FILESYSTEM_TYPE",
    "FLT_VOLUME_PROPERTIES",
    "FileFsAttributeInformation",
    "FileFsControlInformation",
    "FileFsDeviceInformation",
    "FileFsFullSizeInformation",
    "FileFsLabelInformation",
    "FileFsObjectIdInformation",
    "FileFsSizeInformation",
    "FileFsVolumeInformation",
    "FltGetFileSystemType",
    "FltGetVolumeFromFileObject",
    "FltGetVolumeGuidName",
    "FltGetVolumeName",
    "FltGetVolumeProperties",
    "FltIsVolumeWritable",
    "FltQueryVolumeInformation",
    "FltQueryVolumeInformationFile",
    "FltSetVolumeInformation",
    *_FILESYSTEMS,
]

PASSIVE_LEVEL = 0
APC_LEVEL = 1
NTSTATUS = int
FileFsVolumeInformation = 1
FileFsLabelInformation = 2
FileFsSizeInformation = 3
FileFsDeviceInformation = 4
FileFsAttributeInformation = 5
FileFsControlInformation = 6
FileFsFullSizeInformation = 7
FileFsObjectIdInformation = 8
FILE_CASE_SENSITIVE_SEARCH = 0x1
FILE_CASE_PRESERVED_NAMES = 0x2
FILE_PERSISTENT_ACLS = 0x8
FILE_READ_ONLY_VOLUME = 0x80000
FILE_SUPPORTS_HARD_LINKS = 0x400000
FILE_SUPPORTS_EXTENDED_ATTRIBUTES = 0x800000


@dataclass
class FILE_FS_VOLUME_INFORMATION:
    """VolumeSerialNumber: of the backing filesystem's id. VolumeLabel: the volume's name."""

    VolumeCreationTime: int
    VolumeSerialNumber: int
    SupportsObjects: bool
    VolumeLabel: str


@dataclass
class FILE_FS_LABEL_INFORMATION:
    VolumeLabel: str


@dataclass
class FILE_FS_SIZE_INFORMATION:
    """Sizes in allocation units, of SectorsPerAllocationUnit times BytesPerSector bytes."""

    TotalAllocationUnits: int
    AvailableAllocationUnits: int
    SectorsPerAllocationUnit: int
    BytesPerSector: int


@dataclass
class FILE_FS_FULL_SIZE_INFORMATION:
    """The same; what an ordinary caller may have, and what there is."""

    TotalAllocationUnits: int
    CallerAvailableAllocationUnits: int
    ActualAvailableAllocationUnits: int
    SectorsPerAllocationUnit: int
    BytesPerSector: int


@dataclass
class FILE_FS_DEVICE_INFORMATION:
    DeviceType: int
    Characteristics: int


@dataclass
class FILE_FS_ATTRIBUTE_INFORMATION:
    FileSystemAttributes: int
    MaximumComponentNameLength: int
    FileSystemName: str


def _volume_of(thing: FltObject) -> Volume | None:
    if isinstance(thing, Instance):
        return thing.volume
    return thing if isinstance(thing, Volume) else None


# ---- what a volume is ------------------------------------------------------------------------------------------------

def FltGetFileSystemType(FltObject: FltObject, FileSystemType: Out[int]) -> NTSTATUS:
    """Of a volume, or an instance's: FLT_FSTYPE_*; most filesystems of Linux are FLT_FSTYPE_UNKNOWN.
    STATUS_INVALID_PARAMETER: neither."""
    require_irql(APC_LEVEL, "FltGetFileSystemType")
    volume = _volume_of(FltObject)
    if volume is None:
        return int(api.STATUS_INVALID_PARAMETER)
    FileSystemType.value = volume_properties.filesystem_type(volume)
    return int(api.STATUS_SUCCESS)


def FltIsVolumeWritable(FltObject: FltObject, IsWritable: Out[bool]) -> NTSTATUS:
    """Of a volume, or an instance's: neither the mount nor the backing filesystem is read-only.
    STATUS_INVALID_PARAMETER: neither."""
    require_irql(PASSIVE_LEVEL, "FltIsVolumeWritable")
    volume = _volume_of(FltObject)
    if volume is None:
        return int(api.STATUS_INVALID_PARAMETER)
    IsWritable.value = volume_properties.is_writable(volume)
    return int(api.STATUS_SUCCESS)


def FltGetVolumeFromFileObject(Filter: LoadedFilter, FileObject: FileObject, RetVolume: Out[Volume]) -> NTSTATUS:
    """The volume that the file is on, referenced. STATUS_FLT_VOLUME_NOT_FOUND: none of this process;
    STATUS_FLT_DELETING_OBJECT."""
    require_irql(APC_LEVEL, "FltGetVolumeFromFileObject")
    name = holder("FltGetVolumeFromFileObject")

    def get() -> None:
        volume = getattr(FileObject.owner, "volume", None)
        if not isinstance(volume, Volume):
            raise FltError(api.STATUS_FLT_VOLUME_NOT_FOUND, "the file is on no volume of this process")
        volume.reference_as(name)
        RetVolume.value = volume

    return status_of(get)


def _text(text: str, out: Out[str] | None, needed: Out[int] | None) -> NTSTATUS:
    if needed is not None:
        needed.value = len(text.encode("utf-16-le", "surrogatepass"))
    if out is None:
        return int(api.STATUS_BUFFER_TOO_SMALL)
    out.value = text
    return int(api.STATUS_SUCCESS)


def FltGetVolumeName(
    Volume: Volume, VolumeName: Out[str] | None = None, BufferSizeNeeded: Out[int] | None = None
) -> NTSTATUS:
    """Its name, as it stands in front of every path (B1.1). Without VolumeName STATUS_BUFFER_TOO_SMALL, and how many
    bytes it would take."""
    require_irql(APC_LEVEL, "FltGetVolumeName")
    return _text(Volume.name, VolumeName, BufferSizeNeeded)


def FltGetVolumeGuidName(
    Volume: Volume, VolumeGuidName: Out[str] | None = None, BufferSizeNeeded: Out[int] | None = None
) -> NTSTATUS:
    r"""\??\Volume{...}: the same at each mount of the same directory, and good wherever a volume's name is. As
    FltGetVolumeName for the rest."""
    require_irql(PASSIVE_LEVEL, "FltGetVolumeGuidName")
    return _text(volume_properties.guid_name(Volume), VolumeGuidName, BufferSizeNeeded)


def FltGetVolumeProperties(
    Volume: Volume,
    VolumeProperties: Out[FLT_VOLUME_PROPERTIES] | None,
    VolumePropertiesLength: int,
    LengthReturned: Out[int],
) -> NTSTATUS:
    """STATUS_BUFFER_OVERFLOW, a warning: there is no room for the names, which are empty; STATUS_BUFFER_TOO_SMALL: nor
    for the rest. LengthReturned: bytes that all of it takes."""
    require_irql(APC_LEVEL, "FltGetVolumeProperties")
    found = volume_properties.properties(Volume)
    LengthReturned.value = found.size
    if VolumeProperties is None or VolumePropertiesLength < found.FIXED:
        return int(api.STATUS_BUFFER_TOO_SMALL)
    if VolumePropertiesLength < found.size:
        VolumeProperties.value = replace(found, FileSystemDriverName="", FileSystemDeviceName="", RealDeviceName="")
        return int(api.STATUS_BUFFER_OVERFLOW)
    VolumeProperties.value = found
    return int(api.STATUS_SUCCESS)


# ---- asking it -------------------------------------------------------------------------------------------------------

def _size(statvfs: tuple[int, ...], volume: Volume | None) -> FILE_FS_SIZE_INFORMATION:
    _bsize, frsize, blocks, _bfree, bavail, *_ = statvfs
    sector = _sector(volume, frsize)
    return FILE_FS_SIZE_INFORMATION(blocks, bavail, frsize // sector, sector)


def _full_size(statvfs: tuple[int, ...], volume: Volume | None) -> FILE_FS_FULL_SIZE_INFORMATION:
    _bsize, frsize, blocks, bfree, bavail, *_ = statvfs
    sector = _sector(volume, frsize)
    return FILE_FS_FULL_SIZE_INFORMATION(blocks, bavail, bfree, frsize // sector, sector)


def _sector(volume: Volume | None, unit: int) -> int:
    sector = volume_properties.SECTOR if volume is None else volume_properties.sector_size(volume)
    return sector if unit % sector == 0 else unit


def _known(volume: Volume | None) -> Volume:
    if volume is None:
        raise FltError(api.STATUS_INVALID_PARAMETER, "the instance is on no volume of a Filter Manager")
    return volume


def _volume(statvfs: tuple[int, ...], volume: Volume | None) -> FILE_FS_VOLUME_INFORMATION:
    identity = _known(volume).core.filesystem[1]
    return FILE_FS_VOLUME_INFORMATION(0, int.from_bytes(identity[:4], "little"), False, _known(volume).name)


def _device(statvfs: tuple[int, ...], volume: Volume | None) -> FILE_FS_DEVICE_INFORMATION:
    found = volume_properties.properties(_known(volume))
    return FILE_FS_DEVICE_INFORMATION(found.DeviceType, found.DeviceCharacteristics)


def _attributes(statvfs: tuple[int, ...], volume: Volume | None) -> FILE_FS_ATTRIBUTE_INFORMATION:
    flags = FILE_CASE_SENSITIVE_SEARCH | FILE_CASE_PRESERVED_NAMES | FILE_PERSISTENT_ACLS
    flags |= FILE_SUPPORTS_HARD_LINKS | FILE_SUPPORTS_EXTENDED_ATTRIBUTES
    if not volume_properties.is_writable(_known(volume)):
        flags |= FILE_READ_ONLY_VOLUME
    return FILE_FS_ATTRIBUTE_INFORMATION(flags, statvfs[8], volume_properties.filesystem_name(_known(volume)))


CLASSES: dict[int, Callable[[tuple[int, ...], Volume | None], Any]] = {
    FileFsVolumeInformation: _volume,
    FileFsSizeInformation: _size,
    FileFsDeviceInformation: _device,
    FileFsAttributeInformation: _attributes,
    FileFsFullSizeInformation: _full_size,
}


def FltQueryVolumeInformation(
    Instance: Instance, Iosb: IO_STATUS_BLOCK | None, FsInformation: Out[Any], Length: int, FsInformationClass: int
) -> NTSTATUS:
    """The structure that FsInformationClass names: volume, size, device, attribute, full size. The sizes are what the
    layers below, and then statvfs(3), say. STATUS_INVALID_INFO_CLASS: another one. Length means nothing here."""
    make = CLASSES.get(FsInformationClass)
    if make is None:
        return ended(Iosb, int(api.STATUS_INVALID_INFO_CLASS))

    def query() -> None:
        FsInformation.value = make(Instance.statvfs(), getattr(Instance, "volume", None))

    try:
        return ended(Iosb, run(query))
    except FltError as error:
        return ended(Iosb, error.status)


def FltQueryVolumeInformationFile(
    Instance: Instance,
    FileObject: FileObject,
    FsInformation: Out[Any],
    Length: int,
    FsInformationClass: int,
    LengthReturned: Out[int] | None = None,
) -> NTSTATUS:
    """The same of the volume that the file is on. STATUS_INVALID_HANDLE: the file is closed."""
    if not FileObject.alive:
        return int(api.STATUS_INVALID_HANDLE)
    status = FltQueryVolumeInformation(FileObject.owner, None, FsInformation, Length, FsInformationClass)
    if LengthReturned is not None:
        LengthReturned.value = Length if api.is_success(status) else 0
    return status


def FltSetVolumeInformation(
    Instance: Instance, Iosb: IO_STATUS_BLOCK | None, FsInformation: Any, Length: int, FsInformationClass: int
) -> NTSTATUS:
    """SET_VOLUME_INFORMATION below. A FILE_FS_LABEL_INFORMATION is the only one there is; it is
    STATUS_INVALID_DEVICE_REQUEST
    unless a filter below completes it: the label of the backing filesystem is not changed while it is mounted."""
    if FsInformationClass != FileFsLabelInformation or not isinstance(FsInformation, FILE_FS_LABEL_INFORMATION):
        return ended(Iosb, int(api.STATUS_INVALID_INFO_CLASS))
    label = FsInformation.VolumeLabel.encode("utf-8", "surrogateescape")
    return ended(Iosb, run(lambda: filter_file.set_volume_information_below(Instance.entry, FsInformationClass, label)))
