"""What fltmc and FilterFindFirst list of a manager's filters, instances and volumes: a row each, as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stackfs import volume_properties
from stackfs.altitude import sort_key
from stackfs.filter_objects import FilterState, Instance, InstanceState

if TYPE_CHECKING:
    from stackfs.manager import FilterManager

SUPPORTED_FS_FEATURES_BYPASS_IO = 0x8
"""In the column SprtFtrs of `fltmc instances`."""


def filters(manager: FilterManager) -> list[dict[str, Any]]:
    """Rows of `fltmc filters`, highest altitude first."""
    ordered = sorted(manager.loaded.values(), key=lambda each: sort_key(each.manifest.altitude), reverse=True)
    return [
        {
            "name": each.name,
            "instances": len(each.instances),
            "altitude": each.manifest.altitude,
            "frame": each.frame if each.legacy is None else "<Legacy>",
            "start": each.manifest.start,
            "on_error": each.manifest.on_error,
            "failed": any(instance.failed for instance in each.instances),
            "state": each.state.value,
            "held_by": each.held_by() if each.state is FilterState.UNLOADING else [],
        }
        for each in ordered
    ]


def instances(manager: FilterManager) -> list[dict[str, Any]]:
    """Rows of `fltmc instances`, volume by volume, highest altitude first."""
    return [
        {
            "filter": instance.filter.name,
            "volume": volume.mountpoint or volume.name,
            "altitude": instance.altitude,
            "name": instance.name,
            "frame": instance.frame,
            "features": SUPPORTED_FS_FEATURES_BYPASS_IO if not instance.blocks_bypass else 0,
            "bypassed": volume.core.bypassed_opens if instance.sees_data else 0,
            "status": _status_of(instance),
            "filesystem_type": volume_properties.filesystem_type(volume),
        }
        for volume in manager.volumes
        for instance in sorted(
            (*volume.instances, *volume.unsettled), key=lambda each: sort_key(each.altitude), reverse=True
        )
        if instance.filter.legacy is None
    ]


def _status_of(instance: Instance) -> str:
    if instance.state is not InstanceState.ATTACHED:
        return str(instance.state.value)
    if instance.failed:
        return "Failed"
    return "Detached" if instance.volume.detached else ""


def volumes(manager: FilterManager) -> list[dict[str, Any]]:
    """Rows of `fltmc volumes`."""
    return [
        {
            "dos_name": each.mountpoint,
            "volume_name": each.name,
            "filesystem": "stackfs",
            "status": "Detached" if each.detached else "Attached" if each.mountpoint else "Not mounted",
            "filesystem_type": volume_properties.filesystem_type(each),
            "frame": max((instance.frame for instance in list(each.instances)), default=0),
            "guid_name": volume_properties.guid_name(each),
        }
        for each in manager.volumes
    ]
