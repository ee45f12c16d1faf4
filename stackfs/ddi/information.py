"""What may be asked of filters, instances and volumes, under the DDI's names (docs/semantics.md, B7.5).

The structures are those of stackfs/information.py, the same that the user-mode library gives. Each routine answers
STATUS_INVALID_PARAMETER to another information class, and STATUS_BUFFER_TOO_SMALL where BufferSize is less than
BytesReturned then says; the enumerations STATUS_NO_MORE_ENTRIES behind the last Index. Legacy filters are listed by
FltEnumerateFilterInformation alone, in its aggregate classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from stackfs import api, information, listings, manager
from stackfs.cext.pending import require_irql
from stackfs.control import FilterRow, InstanceRow, VolumeRow
from stackfs.ddi.out import Out
from stackfs.errors import FltError
from stackfs.filter_objects import Instance, LoadedFilter, Volume
from stackfs.information import *  # noqa: F403
from stackfs.information import FILTER_INFORMATION_CLASS, Information

__all__ = [  # noqa: PLE0604
    *information.__all__,
    "FltEnumerateFilterInformation",
    "FltEnumerateInstanceInformationByFilter",
    "FltEnumerateInstanceInformationByVolume",
    "FltEnumerateInstanceInformationByVolumeName",
    "FltEnumerateVolumeInformation",
    "FltGetFilterInformation",
    "FltGetInstanceInformation",
    "FltGetVolumeInformation",
]

APC_LEVEL = 1
Row = TypeVar("Row")
Buffer = Out[Information]


def _give(
    rows: Sequence[Row],
    index: int,
    make: Callable[[Row, int], Information],
    information_class: int,
    buffer: Buffer | None,
    size: int,
    returned: Out[int],
) -> int:
    """The row at the index, as the structure that the class says."""
    if not 0 <= index < len(rows):
        return int(api.STATUS_NO_MORE_ENTRIES)
    try:
        found = make(rows[index], information_class)
    except ValueError:
        return int(api.STATUS_INVALID_PARAMETER)
    returned.value = found.size
    if buffer is None or size < found.size:
        return int(api.STATUS_BUFFER_TOO_SMALL)
    buffer.value = found
    return int(api.STATUS_SUCCESS)


def _filters() -> list[FilterRow]:
    return [FilterRow(**row) for row in listings.filters(manager.current())]


def _instances(running: manager.FilterManager, *, filter: str | None = None, volume: Volume | None = None,
               name: str | None = None) -> list[InstanceRow]:  # fmt: skip
    rows = [InstanceRow(**row) for row in listings.instances(running)]
    where = None if volume is None else volume.mountpoint or volume.name
    return [
        row for row in rows
        if filter in (None, row.filter) and where in (None, row.volume) and name in (None, row.name)
    ]  # fmt: skip


def _volumes(running: manager.FilterManager) -> list[VolumeRow]:
    return [VolumeRow(**row) for row in listings.volumes(running)]


def FltGetFilterInformation(
    Filter: LoadedFilter, InformationClass: int, Buffer: Buffer | None, BufferSize: int, BytesReturned: Out[int]
) -> int:
    require_irql(APC_LEVEL, "FltGetFilterInformation")
    rows = [FilterRow(**row) for row in listings.filters(Filter.manager) if row["name"] == Filter.name]
    status = _give(rows, 0, information.of_filter, InformationClass, Buffer, BufferSize, BytesReturned)
    return int(api.STATUS_FLT_DELETING_OBJECT) if status == api.STATUS_NO_MORE_ENTRIES else status


def FltGetInstanceInformation(
    Instance: Instance, InformationClass: int, Buffer: Buffer | None, BufferSize: int, BytesReturned: Out[int]
) -> int:
    require_irql(APC_LEVEL, "FltGetInstanceInformation")
    rows = _instances(Instance.volume.manager, volume=Instance.volume, name=Instance.name)
    status = _give(rows, 0, information.of_instance, InformationClass, Buffer, BufferSize, BytesReturned)
    return int(api.STATUS_FLT_DELETING_OBJECT) if status == api.STATUS_NO_MORE_ENTRIES else status


def FltGetVolumeInformation(
    Volume: Volume, InformationClass: int, Buffer: Buffer | None, BufferSize: int, BytesReturned: Out[int]
) -> int:
    require_irql(APC_LEVEL, "FltGetVolumeInformation")
    rows = [row for row in _volumes(Volume.manager) if row.volume_name == Volume.name]
    status = _give(rows, 0, information.of_volume, InformationClass, Buffer, BufferSize, BytesReturned)
    return int(api.STATUS_FLT_DELETING_OBJECT) if status == api.STATUS_NO_MORE_ENTRIES else status


def FltEnumerateFilterInformation(
    Index: int, InformationClass: int, Buffer: Buffer | None, BufferSize: int, BytesReturned: Out[int]
) -> int:
    """Highest altitude first."""
    require_irql(APC_LEVEL, "FltEnumerateFilterInformation")
    rows = _filters()
    if InformationClass == FILTER_INFORMATION_CLASS.FilterFullInformation:
        rows = [row for row in rows if isinstance(row.frame, int)]
    return _give(rows, Index, information.of_filter, InformationClass, Buffer, BufferSize, BytesReturned)


def FltEnumerateInstanceInformationByFilter(
    Filter: LoadedFilter, Index: int, InformationClass: int, Buffer: Buffer | None, BufferSize: int,
    BytesReturned: Out[int],
) -> int:  # fmt: skip
    """Volume by volume, highest altitude first."""
    require_irql(APC_LEVEL, "FltEnumerateInstanceInformationByFilter")
    rows = _instances(Filter.manager, filter=Filter.name)
    return _give(rows, Index, information.of_instance, InformationClass, Buffer, BufferSize, BytesReturned)


def FltEnumerateInstanceInformationByVolume(
    Volume: Volume, Index: int, InformationClass: int, Buffer: Buffer | None, BufferSize: int, BytesReturned: Out[int]
) -> int:
    """Highest altitude first."""
    require_irql(APC_LEVEL, "FltEnumerateInstanceInformationByVolume")
    rows = _instances(Volume.manager, volume=Volume)
    return _give(rows, Index, information.of_instance, InformationClass, Buffer, BufferSize, BytesReturned)


def FltEnumerateInstanceInformationByVolumeName(
    VolumeName: str, Index: int, InformationClass: int, Buffer: Buffer | None, BufferSize: int, BytesReturned: Out[int]
) -> int:
    """VolumeName: name, mountpoint or GUID name. STATUS_FLT_VOLUME_NOT_FOUND."""
    try:
        volume = manager.current().volume(VolumeName)
    except FltError as error:
        return error.status
    return FltEnumerateInstanceInformationByVolume(
        volume, Index, InformationClass, Buffer, BufferSize, BytesReturned
    )


def FltEnumerateVolumeInformation(
    Filter: LoadedFilter, Index: int, InformationClass: int, Buffer: Buffer | None, BufferSize: int,
    BytesReturned: Out[int],
) -> int:  # fmt: skip
    """Every volume of the process."""
    require_irql(APC_LEVEL, "FltEnumerateVolumeInformation")
    return _give(
        _volumes(Filter.manager), Index, information.of_volume, InformationClass, Buffer, BufferSize, BytesReturned
    )
