"""Instances and volumes under their DDI names: attaching, detaching, and who is where (docs/semantics.md, A1 and A3).

As in stackfs/ddi/filters.py. An object that a routine returns is referenced, and to be given back with
FltObjectDereference.
"""

from __future__ import annotations

from stackfs import api, manager
from stackfs.altitude import compare
from stackfs.ddi.filters import give, holder, status_of
from stackfs.ddi.out import Out
from stackfs.errors import FltError
from stackfs.filter_objects import Instance, LoadedFilter, Volume

__all__ = [
    "FltAttachVolume",
    "FltAttachVolumeAtAltitude",
    "FltCompareInstanceAltitudes",
    "FltDetachVolume",
    "FltEnumerateInstances",
    "FltEnumerateVolumes",
    "FltGetBottomInstance",
    "FltGetFilterFromInstance",
    "FltGetLowerInstance",
    "FltGetTopInstance",
    "FltGetUpperInstance",
    "FltGetVolumeFromInstance",
    "FltGetVolumeFromName",
    "FltGetVolumeInstanceFromName",
]


def FltAttachVolume(
    Filter: LoadedFilter,
    Volume: Volume,
    InstanceName: str | None = None,
    RetInstance: Out[Instance] | None = None,
) -> int:
    """A3.4. InstanceName None: the default instance. FLT_FILTER_NOT_READY, FLT_DELETING_OBJECT,
    FLT_INSTANCE_NAME_COLLISION, FLT_INSTANCE_ALTITUDE_COLLISION (F1), or what instance_setup answers."""
    name = holder("FltAttachVolume")
    return status_of(lambda: _attach(Filter, Volume, InstanceName, None, RetInstance, name))


def FltAttachVolumeAtAltitude(
    Filter: LoadedFilter,
    Volume: Volume,
    Altitude: str,
    InstanceName: str | None = None,
    RetInstance: Out[Instance] | None = None,
) -> int:
    """A3.7: without a name it is called FILTER - ALTITUDE. As FltAttachVolume; INVALID_PARAMETER: no altitude of it."""
    name = holder("FltAttachVolumeAtAltitude")
    return status_of(lambda: _attach(Filter, Volume, InstanceName, Altitude, RetInstance, name))


def _attach(
    filter: LoadedFilter,
    volume: Volume,
    instance_name: str | None,
    altitude: str | None,
    returned: Out[Instance] | None,
    name: str,
) -> None:
    instance = filter.manager.call(filter.manager.attach, filter, volume, instance_name, altitude)
    if returned is not None:
        instance.reference_as(name)
        returned.value = instance


def FltDetachVolume(Filter: LoadedFilter, Volume: Volume, InstanceName: str | None = None) -> int:
    """A3.6: the instance is asked. InstanceName None: the highest. FLT_INSTANCE_NOT_FOUND, FLT_DELETING_OBJECT,
    FLT_DO_NOT_DETACH, or what instance_query_teardown answers. Not from a callback of an operation: it waits for it."""
    return status_of(lambda: Filter.manager.call(Filter.manager.detach, Filter, Volume, InstanceName))


def FltGetVolumeFromName(Filter: LoadedFilter, VolumeName: str, RetVolume: Out[Volume]) -> int:
    """By name or mountpoint. FLT_VOLUME_NOT_FOUND, FLT_DELETING_OBJECT."""
    name = holder("FltGetVolumeFromName")

    def get() -> None:
        volume = Filter.manager.volume(VolumeName)
        volume.reference_as(name)
        RetVolume.value = volume

    return status_of(get)


def FltGetVolumeInstanceFromName(
    Filter: LoadedFilter | None, Volume: Volume, InstanceName: str | None, RetInstance: Out[Instance]
) -> int:
    """The highest instance on the volume that is the filter's (None: anybody's) and has the name (None: any).
    FLT_INSTANCE_NOT_FOUND, FLT_DELETING_OBJECT."""
    name = holder("FltGetVolumeInstanceFromName")

    def get() -> None:
        for each in list(Volume.instances):
            if (Filter is None or each.filter is Filter) and InstanceName in (None, each.name):
                each.reference_as(name)
                RetInstance.value = each
                return
        raise FltError(api.STATUS_FLT_INSTANCE_NOT_FOUND, f"{Volume} has no such instance")

    return status_of(get)


def FltGetFilterFromInstance(Instance: Instance, RetFilter: Out[LoadedFilter]) -> int:
    """FLT_DELETING_OBJECT: the filter is being unloaded."""
    name = holder("FltGetFilterFromInstance")

    def get() -> None:
        Instance.filter.reference_as(name)
        RetFilter.value = Instance.filter

    return status_of(get)


def FltGetVolumeFromInstance(Instance: Instance, RetVolume: Out[Volume]) -> int:
    """FLT_DELETING_OBJECT: the volume is being dismounted."""
    name = holder("FltGetVolumeFromInstance")

    def get() -> None:
        Instance.volume.reference_as(name)
        RetVolume.value = Instance.volume

    return status_of(get)


def FltGetTopInstance(Volume: Volume, Instance: Out[Instance]) -> int:
    """The highest instance on the volume. NO_MORE_ENTRIES: it has none."""
    return _neighbour(Volume, None, -1, Instance, holder("FltGetTopInstance"))


def FltGetBottomInstance(Volume: Volume, Instance: Out[Instance]) -> int:
    """The lowest instance on the volume. NO_MORE_ENTRIES: it has none."""
    return _neighbour(Volume, None, 1, Instance, holder("FltGetBottomInstance"))


def FltGetUpperInstance(CurrentInstance: Instance, UpperInstance: Out[Instance]) -> int:
    """The next instance above, whoever's. NO_MORE_ENTRIES: there is none."""
    return _neighbour(CurrentInstance.volume, CurrentInstance, 1, UpperInstance, holder("FltGetUpperInstance"))


def FltGetLowerInstance(CurrentInstance: Instance, LowerInstance: Out[Instance]) -> int:
    """The next instance below, whoever's. NO_MORE_ENTRIES: there is none."""
    return _neighbour(CurrentInstance.volume, CurrentInstance, -1, LowerInstance, holder("FltGetLowerInstance"))


def _neighbour(volume: Volume, start: Instance | None, step: int, returned: Out[Instance], name: str) -> int:
    """The first one from the start, or from the far end, in that direction (1: up) that can be referenced."""
    upwards = list(reversed(volume.instances))
    ordered = upwards if step > 0 else upwards[::-1]
    for each in ordered:
        beyond = start is None or compare(each.altitude, start.altitude) == step
        if beyond and each.rundown.acquire(name):
            returned.value = each
            return api.STATUS_SUCCESS
    return int(api.STATUS_NO_MORE_ENTRIES)


def FltEnumerateVolumes(
    Filter: LoadedFilter, VolumeList: list[Volume] | None, VolumeListSize: int, NumberVolumesReturned: Out[int]
) -> int:
    """Appends every volume to VolumeList. BUFFER_TOO_SMALL: VolumeListSize is less than NumberVolumesReturned says."""
    name = holder("FltEnumerateVolumes")
    volumes = list(Filter.manager.volumes)
    return status_of(lambda: give(volumes, VolumeList, VolumeListSize, NumberVolumesReturned, name))


def FltEnumerateInstances(
    Volume: Volume | None,
    Filter: LoadedFilter | None,
    InstanceList: list[Instance] | None,
    InstanceListSize: int,
    NumberInstancesReturned: Out[int],
) -> int:
    """Appends the instances on the volume (None: on any) that are the filter's (None: anybody's), highest first.
    BUFFER_TOO_SMALL: InstanceListSize is less than NumberInstancesReturned then says."""
    name = holder("FltEnumerateInstances")

    def enumerate_all() -> None:
        volumes = [Volume] if Volume is not None else list(manager.current().volumes)
        found = [each for volume in volumes for each in list(volume.instances) if Filter in (None, each.filter)]
        give(found, InstanceList, InstanceListSize, NumberInstancesReturned, name)

    return status_of(enumerate_all)


def FltCompareInstanceAltitudes(Instance1: Instance, Instance2: Instance) -> int:
    """1: the first one is higher, -1: lower, 0: both are equally high (on different volumes)."""
    return compare(Instance1.altitude, Instance2.altitude)
