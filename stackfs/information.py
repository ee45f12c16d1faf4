"""What may be asked of filters, instances and volumes: the DDI's information structures, and how rows become them.

Each structure has the fields of its C counterpart but for the lengths and offsets that say where its strings lie: here
they are strings. `size` is what the C structure would take, in bytes, with its strings in UTF-16: callers that say how
much room they have are told when it is too little, as there. Plain values.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from stackfs.control import FilterRow, InstanceRow, VolumeRow

FLTFL_AGGREGATE_INFO_IS_MINIFILTER: Final = 0x1
FLTFL_AGGREGATE_INFO_IS_LEGACYFILTER: Final = 0x2
FLTFL_IAGGREGATE_INFO_IS_MINIFILTER: Final = 0x1
FLTFL_IAGGREGATE_INFO_IS_LEGACYFILTER: Final = 0x2
FLTFL_ASI_IS_MINIFILTER: Final = 0x1
FLTFL_ASI_IS_LEGACYFILTER: Final = 0x2
FLTFL_VSI_DETACHED_VOLUME: Final = 0x1
FLTFL_IASIM_DETACHED_VOLUME: Final = 0x1
FLTFL_IASIL_DETACHED_VOLUME: Final = 0x1


class FILTER_INFORMATION_CLASS(enum.IntEnum):
    FilterFullInformation = 0
    FilterAggregateBasicInformation = 1
    FilterAggregateStandardInformation = 2


class INSTANCE_INFORMATION_CLASS(enum.IntEnum):
    InstanceBasicInformation = 0
    InstancePartialInformation = 1
    InstanceFullInformation = 2
    InstanceAggregateStandardInformation = 3


class FILTER_VOLUME_INFORMATION_CLASS(enum.IntEnum):
    FilterVolumeBasicInformation = 0
    FilterVolumeStandardInformation = 1


@dataclass(frozen=True)
class Information:
    """Any of them."""

    FIXED: ClassVar[int]
    """Bytes of the C structure without its strings."""

    @property
    def size(self) -> int:
        values = [getattr(self, each.name) for each in fields(self)]
        texts = [each for each in values if isinstance(each, str)]
        return self.FIXED + sum(len(each.encode("utf-16-le", "surrogatepass")) for each in texts)


@dataclass(frozen=True)
class FILTER_FULL_INFORMATION(Information):
    FIXED = 14
    FrameID: int
    NumberOfInstances: int
    FilterName: str


@dataclass(frozen=True)
class FILTER_AGGREGATE_BASIC_INFORMATION(Information):
    """Of a legacy filter FrameID and NumberOfInstances are 0, and FilterAltitude is empty."""

    FIXED = 24
    Flags: int
    FrameID: int
    NumberOfInstances: int
    FilterName: str
    FilterAltitude: str


@dataclass(frozen=True)
class FILTER_AGGREGATE_STANDARD_INFORMATION(Information):
    """Of a legacy filter FrameID and NumberOfInstances are 0; its altitude is told. TypeFlags is
    Type.MiniFilter.Flags, or Type.LegacyFilter.Flags, which are reserved: 0."""

    FIXED = 28
    Flags: int
    TypeFlags: int
    FrameID: int
    NumberOfInstances: int
    FilterName: str
    FilterAltitude: str


@dataclass(frozen=True)
class INSTANCE_BASIC_INFORMATION(Information):
    FIXED = 8
    InstanceName: str


@dataclass(frozen=True)
class INSTANCE_PARTIAL_INFORMATION(Information):
    FIXED = 12
    InstanceName: str
    Altitude: str


@dataclass(frozen=True)
class INSTANCE_FULL_INFORMATION(Information):
    FIXED = 20
    InstanceName: str
    Altitude: str
    VolumeName: str
    FilterName: str


@dataclass(frozen=True)
class INSTANCE_AGGREGATE_STANDARD_INFORMATION(Information):
    """TypeFlags is Type.MiniFilter.Flags (FLTFL_IASIM_DETACHED_VOLUME), or Type.LegacyFilter.Flags."""

    FIXED = 40
    Flags: int
    TypeFlags: int
    FrameID: int
    VolumeFileSystemType: int
    InstanceName: str
    Altitude: str
    VolumeName: str
    FilterName: str
    SupportedFeatures: int


@dataclass(frozen=True)
class FILTER_VOLUME_BASIC_INFORMATION(Information):
    FIXED = 2
    FilterVolumeName: str


@dataclass(frozen=True)
class FILTER_VOLUME_STANDARD_INFORMATION(Information):
    FIXED = 18
    Flags: int
    FrameID: int
    FileSystemType: int
    FilterVolumeName: str


# ---- rows of the listings as structures; ValueError: no such information class ---------------------------------------

def of_filter(row: FilterRow, information_class: int) -> Information:
    legacy = isinstance(row.frame, str)
    frame = row.frame if isinstance(row.frame, int) else 0
    match FILTER_INFORMATION_CLASS(information_class):
        case FILTER_INFORMATION_CLASS.FilterFullInformation:
            return FILTER_FULL_INFORMATION(frame, row.instances, row.name)
        case FILTER_INFORMATION_CLASS.FilterAggregateBasicInformation:
            if legacy:
                flags = FLTFL_AGGREGATE_INFO_IS_LEGACYFILTER
                return FILTER_AGGREGATE_BASIC_INFORMATION(flags, 0, 0, row.name, "")
            flags = FLTFL_AGGREGATE_INFO_IS_MINIFILTER
            return FILTER_AGGREGATE_BASIC_INFORMATION(flags, frame, row.instances, row.name, row.altitude)
        case FILTER_INFORMATION_CLASS.FilterAggregateStandardInformation:
            if legacy:
                return FILTER_AGGREGATE_STANDARD_INFORMATION(FLTFL_ASI_IS_LEGACYFILTER, 0, 0, 0, row.name, row.altitude)
            flags = FLTFL_ASI_IS_MINIFILTER
            return FILTER_AGGREGATE_STANDARD_INFORMATION(flags, 0, frame, row.instances, row.name, row.altitude)


def of_instance(row: InstanceRow, information_class: int) -> Information:
    match INSTANCE_INFORMATION_CLASS(information_class):
        case INSTANCE_INFORMATION_CLASS.InstanceBasicInformation:
            return INSTANCE_BASIC_INFORMATION(row.name)
        case INSTANCE_INFORMATION_CLASS.InstancePartialInformation:
            return INSTANCE_PARTIAL_INFORMATION(row.name, row.altitude)
        case INSTANCE_INFORMATION_CLASS.InstanceFullInformation:
            return INSTANCE_FULL_INFORMATION(row.name, row.altitude, row.volume, row.filter)
        case INSTANCE_INFORMATION_CLASS.InstanceAggregateStandardInformation:
            legacy = isinstance(row.frame, str)
            return INSTANCE_AGGREGATE_STANDARD_INFORMATION(
                FLTFL_IAGGREGATE_INFO_IS_LEGACYFILTER if legacy else FLTFL_IAGGREGATE_INFO_IS_MINIFILTER,
                FLTFL_IASIM_DETACHED_VOLUME if row.status == "Detached" else 0,
                row.frame if isinstance(row.frame, int) else 0,
                row.filesystem_type,
                row.name,
                row.altitude,
                row.volume,
                row.filter,
                row.features if isinstance(row.features, int) else 0,
            )


def of_volume(row: VolumeRow, information_class: int) -> Information:
    match FILTER_VOLUME_INFORMATION_CLASS(information_class):
        case FILTER_VOLUME_INFORMATION_CLASS.FilterVolumeBasicInformation:
            return FILTER_VOLUME_BASIC_INFORMATION(row.volume_name)
        case FILTER_VOLUME_INFORMATION_CLASS.FilterVolumeStandardInformation:
            flags = FLTFL_VSI_DETACHED_VOLUME if row.status == "Detached" else 0
            return FILTER_VOLUME_STANDARD_INFORMATION(flags, row.frame, row.filesystem_type, row.volume_name)


__all__ = [
    "FILTER_AGGREGATE_BASIC_INFORMATION",
    "FILTER_AGGREGATE_STANDARD_INFORMATION",
    "FILTER_FULL_INFORMATION",
    "FILTER_INFORMATION_CLASS",
    "FILTER_VOLUME_BASIC_INFORMATION",
    "FILTER_VOLUME_INFORMATION_CLASS",
    "FILTER_VOLUME_STANDARD_INFORMATION",
    "FLTFL_AGGREGATE_INFO_IS_LEGACYFILTER",
    "FLTFL_AGGREGATE_INFO_IS_MINIFILTER",
    "FLTFL_ASI_IS_LEGACYFILTER",
    "FLTFL_ASI_IS_MINIFILTER",
    "FLTFL_IAGGREGATE_INFO_IS_LEGACYFILTER",
    "FLTFL_IAGGREGATE_INFO_IS_MINIFILTER",
    "FLTFL_IASIL_DETACHED_VOLUME",
    "FLTFL_IASIM_DETACHED_VOLUME",
    "FLTFL_VSI_DETACHED_VOLUME",
    "INSTANCE_AGGREGATE_STANDARD_INFORMATION",
    "INSTANCE_BASIC_INFORMATION",
    "INSTANCE_FULL_INFORMATION",
    "INSTANCE_INFORMATION_CLASS",
    "INSTANCE_PARTIAL_INFORMATION",
    "Information",
]
