"""Volumes, what is known of filters and instances, and reparse points, under the DDI's names (docs/semantics.md, B4.13,
B5.3, B7.5)."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from filter_bench import PLAIN, TRACES, Bench, on_trio
from stack_driver import LOOKUP, Host, answering, entry_of, go_on

from stackfs import api, information, volume_properties
from stackfs.api import (
    STATUS_BUFFER_OVERFLOW,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_VOLUME_NOT_FOUND,
    STATUS_INVALID_HANDLE,
    STATUS_INVALID_PARAMETER,
    STATUS_NO_MORE_ENTRIES,
    STATUS_SUCCESS,
)
from stackfs.cext.python_requests import Volume
from stackfs.ddi import filter_io, reparse_points
from stackfs.ddi import information as asking
from stackfs.ddi import volumes as ddi
from stackfs.ddi.filter_io import IO_STATUS_BLOCK
from stackfs.ddi.instances import FltGetVolumeFromName
from stackfs.ddi.object_attributes import OBJECT_ATTRIBUTES
from stackfs.ddi.out import Out
from stackfs.filter_io import FilterIo
from stackfs.information import FILTER_INFORMATION_CLASS, FILTER_VOLUME_INFORMATION_CLASS, INSTANCE_INFORMATION_CLASS

LEGACY = "class Dropped(LegacyFilter):\n    pass\n"


class Peer(Host, FilterIo):
    """An instance by hand."""


@pytest.fixture
def peer(core: Volume, place: Path) -> Any:
    peer = Peer()
    peer.entry = entry_of(host=peer, at="5", name="peer")
    core.stack.introduce(peer.entry)
    core.stack.insert(peer.entry)
    return peer


def out() -> Out[Any]:
    return Out()


# ---- volumes ---------------------------------------------------------------------------------------------------------

@on_trio
async def test_names_of_a_volume(bench: Bench) -> None:
    volume, other = bench.volume(), bench.volume("w")
    name, size = out(), out()
    assert ddi.FltGetVolumeName(volume, None, size) == STATUS_BUFFER_TOO_SMALL and size.value == 2
    assert ddi.FltGetVolumeName(volume, name) == STATUS_SUCCESS and name.value == "v"
    assert ddi.FltGetVolumeGuidName(volume, name, size) == STATUS_SUCCESS
    assert re.fullmatch(r"\\\?\?\\Volume\{[0-9a-f-]{36}\}", name.value) and size.value == 2 * len(name.value)
    guid = name.value
    assert ddi.FltGetVolumeGuidName(other, name) == STATUS_SUCCESS and name.value != guid
    await bench.manager.remove_volume(volume)
    again = bench.manager.add_volume("again", "", volume.source, Volume(os.open(volume.source, os.O_PATH)))
    assert ddi.FltGetVolumeGuidName(again, name) == STATUS_SUCCESS and name.value == guid, "the same directory"
    bench.drop(PLAIN % "pass")
    await bench.manager.load("f")
    assert FltGetVolumeFromName(bench.manager.filter("f"), guid, name) == STATUS_SUCCESS
    assert name.value is again
    again.rundown.release_one("Flt")
    missing = guid.replace(guid[12:16], "zzzz")
    assert FltGetVolumeFromName(bench.manager.filter("f"), missing, name) == STATUS_FLT_VOLUME_NOT_FOUND


@on_trio
async def test_what_a_volume_is(bench: Bench) -> None:
    volume = bench.volume()
    bench.drop(PLAIN % "pass")
    (instance,) = await bench.manager.load("f")
    kind, writable, found, size = out(), out(), out(), out()
    for thing in (volume, instance):
        assert ddi.FltGetFileSystemType(thing, kind) == STATUS_SUCCESS
        assert kind.value == volume_properties.FILESYSTEMS.get(volume.core.filesystem[0], ("", 0))[1]
        assert ddi.FltIsVolumeWritable(thing, writable) == STATUS_SUCCESS and writable.value is True
    loaded = bench.manager.filter("f")
    assert ddi.FltGetFileSystemType(loaded, kind) == STATUS_INVALID_PARAMETER
    assert ddi.FltIsVolumeWritable(loaded, writable) == STATUS_INVALID_PARAMETER
    volume.read_only = True
    assert ddi.FltIsVolumeWritable(instance, writable) == STATUS_SUCCESS and writable.value is False
    volume.read_only = False
    assert ddi.FltGetVolumeProperties(volume, found, 10, size) == STATUS_BUFFER_TOO_SMALL
    assert not hasattr(found, "value")
    assert ddi.FltGetVolumeProperties(volume, found, 100, size) == STATUS_BUFFER_OVERFLOW
    assert (found.value.RealDeviceName, found.value.SectorSize % 512) == ("", 0) and size.value > 100
    assert ddi.FltGetVolumeProperties(volume, found, size.value, size) == STATUS_SUCCESS
    assert (found.value.RealDeviceName, found.value.FileSystemDeviceName) == (volume.source, "v")
    assert found.value.DeviceType == 8 and found.value.FileSystemDriverName == volume_properties.filesystem_name(volume)
    file, got = instance.open("file"), out()
    assert ddi.FltGetVolumeFromFileObject(loaded, file, got) == STATUS_SUCCESS and got.value is volume
    volume.rundown.release_one("Flt")
    assert ddi.FltQueryVolumeInformationFile(instance, file, found, 0, ddi.FileFsVolumeInformation) == STATUS_SUCCESS
    assert found.value.VolumeLabel == "v"
    assert ddi.FltQueryVolumeInformation(instance, None, found, 0, ddi.FileFsDeviceInformation) == STATUS_SUCCESS
    assert found.value == ddi.FILE_FS_DEVICE_INFORMATION(8, volume_properties.FILE_VIRTUAL_VOLUME)
    assert ddi.FltQueryVolumeInformation(instance, None, found, 0, ddi.FileFsAttributeInformation) == STATUS_SUCCESS
    assert found.value.MaximumComponentNameLength == os.statvfs(volume.source).f_namemax
    file.close()
    assert ddi.FltQueryVolumeInformationFile(instance, file, found, 0, 1) == STATUS_INVALID_HANDLE
    volume.rundown.run_down()
    file = instance.open("file")
    assert ddi.FltGetVolumeFromFileObject(loaded, file, got) == STATUS_FLT_DELETING_OBJECT
    file.close()


def test_a_file_of_no_volume_of_a_manager(peer: Any) -> None:
    with peer.open("file") as file:
        nobody: Any = None
        assert ddi.FltGetVolumeFromFileObject(nobody, file, out()) == STATUS_FLT_VOLUME_NOT_FOUND
        status = ddi.FltQueryVolumeInformation(peer, None, out(), 0, ddi.FileFsVolumeInformation)
        assert status == STATUS_INVALID_PARAMETER


def test_volume_information(peer: Any, core: Volume, place: Path) -> None:
    found, block = out(), IO_STATUS_BLOCK(1, 1)
    assert ddi.FltQueryVolumeInformation(peer, block, found, 0, ddi.FileFsSizeInformation) == STATUS_SUCCESS
    stat = os.statvfs(place)
    assert found.value.TotalAllocationUnits == stat.f_blocks and block == IO_STATUS_BLOCK(0, 0)
    assert found.value.SectorsPerAllocationUnit * found.value.BytesPerSector == stat.f_frsize
    assert ddi.FltQueryVolumeInformation(peer, None, found, 0, ddi.FileFsFullSizeInformation) == STATUS_SUCCESS
    assert abs(found.value.ActualAvailableAllocationUnits - stat.f_bfree) < stat.f_blocks / 10 + 10
    assert ddi.FltQueryVolumeInformation(peer, block, found, 0, 77) == block.Status == api.STATUS_INVALID_INFO_CLASS


def test_setting_volume_information_reaches_the_filters_below(peer: Any, core: Volume) -> None:
    seen: list[Any] = []

    def pre(data: Any, _: Any) -> int:
        seen.append((data.fs_information_class, data.input))
        return int(data.complete(STATUS_SUCCESS)) if data.input == b"mine" else api.FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_SET_VOLUME_INFORMATION, pre, None), name="below", at="1"))
    block = IO_STATUS_BLOCK()
    label = ddi.FILE_FS_LABEL_INFORMATION
    assert ddi.FltSetVolumeInformation(peer, block, label("mine"), 4, ddi.FileFsLabelInformation) == STATUS_SUCCESS
    ddi.FltSetVolumeInformation(peer, block, label("other"), 5, ddi.FileFsLabelInformation)
    assert block.Status == api.STATUS_INVALID_DEVICE_REQUEST
    assert seen == [(2, b"mine"), (2, b"other")]
    for which, what in ((ddi.FileFsSizeInformation, label("x")), (ddi.FileFsLabelInformation, "x")):
        assert ddi.FltSetVolumeInformation(peer, block, what, 1, which) == api.STATUS_INVALID_INFO_CLASS


def test_what_fills_a_statfs_says_its_class(core: Volume, place: Path) -> None:
    seen: list[int] = []

    def pre(data: Any, _: Any) -> int:
        seen.append(data.fs_information_class)
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_QUERY_VOLUME_INFORMATION, pre, None)))
    core.request(17, buffer=bytearray(200)).do()
    assert seen == [ddi.FileFsFullSizeInformation]


def test_is_it_a_directory(peer: Any, core: Volume, place: Path) -> None:
    answer = out()
    for name, truth in (("file", False), ("folder", True)):
        with peer.open(name) as file:
            assert filter_io.FltIsDirectory(file, peer, answer) == STATUS_SUCCESS and answer.value is truth
    assert filter_io.FltIsDirectory(file, peer, answer) == STATUS_INVALID_HANDLE, "closed"
    early: list[Any] = []

    def pre(data: Any, objects: Any) -> int:
        early.append(filter_io.FltIsDirectory(data.file, objects, out()))
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_CREATE, pre, None), name="early", at="1"))
    peer.mkdir("made")
    assert early[0] == STATUS_INVALID_HANDLE, "not open yet"


# ---- files: the routines with one parameter more ---------------------------------------------------------------------

def test_the_routines_with_one_parameter_more(peer: Any, core: Volume, place: Path) -> None:
    from stackfs.ddi.buffers import IoAllocateMdl

    keys: list[int] = []

    def pre(data: Any, _: Any) -> int:
        keys.append(data.key)
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_READ, pre, None), (api.IRP_MJ_WRITE, pre, None), name="below", at="1"))
    handle, block, context = out(), IO_STATUS_BLOCK(), filter_io.IO_DRIVER_CREATE_CONTEXT()
    both = api.FILE_READ_DATA | api.FILE_WRITE_DATA
    name = OBJECT_ATTRIBUTES("file")
    opening: Any = (None, peer, handle, None, both, name, block, None, 0, 0, api.FILE_OPEN, 0, None, 0, 0)
    assert filter_io.FltCreateFileEx2(*opening, context) == STATUS_SUCCESS
    context.ExtraCreateParameter = object()
    assert filter_io.FltCreateFileEx2(*opening, context) == block.Status == api.STATUS_NOT_SUPPORTED
    file, moved, room = handle.value, out(), bytearray(4)
    assert filter_io.FltReadFileEx(peer, file, None, 4, room, 0, moved, Key=7) == STATUS_SUCCESS and room == b"0123"
    mdl = IoAllocateMdl(room, 4)
    assert filter_io.FltReadFileEx(peer, file, None, 4, None, 0, moved, Mdl=mdl) == STATUS_SUCCESS and room == b"4567"
    assert filter_io.FltReadFileEx(peer, file, 0, 5, None, Mdl=mdl) == STATUS_INVALID_PARAMETER
    assert filter_io.FltReadFileEx(peer, file, 0, 5, None) == STATUS_INVALID_PARAMETER
    assert filter_io.FltWriteFileEx(peer, file, 0, 2, b"AB", 0, moved, Key=9) == STATUS_SUCCESS and moved.value == 2
    assert filter_io.FltWriteFileEx(peer, file, 8, 2, None, Mdl=mdl) == STATUS_SUCCESS
    assert (place / "file").read_bytes() == b"AB23456745" and keys == [7, 0, 9, 0]
    filter_io.FltClose(file)
    with peer.open("", os.O_RDONLY | os.O_DIRECTORY) as directory:
        single = filter_io.SL_RETURN_SINGLE_ENTRY | filter_io.SL_RESTART_SCAN
        names = set()
        for flags in (single, 0):
            found = out()
            assert filter_io.FltQueryDirectoryFileEx(peer, directory, found, 4096, 1, flags) == STATUS_SUCCESS
            assert len(found.value) == 1 or not flags
            names |= {each.name for each in found.value}
        assert {b"file", b"folder"} <= names
        assert filter_io.FltQueryDirectoryFileEx(peer, directory, found, 4096, 1) == api.STATUS_NO_MORE_FILES
        indexed = filter_io.SL_INDEX_SPECIFIED
        assert filter_io.FltQueryDirectoryFileEx(peer, directory, found, 4096, 1, indexed) == STATUS_INVALID_PARAMETER


# ---- reparse points --------------------------------------------------------------------------------------------------

GUID, OTHER, TAG = uuid.UUID(int=5), uuid.UUID(int=6), 0x1234


@pytest.mark.parametrize("name", ["file", "folder"])
def test_b5_3_tags(peer: Any, core: Volume, place: Path, name: str) -> None:
    controls: list[int] = []

    def pre(data: Any, _: Any) -> int:
        controls.append(data.control_code)
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((api.IRP_MJ_FILE_SYSTEM_CONTROL, pre, None), name="below", at="1"))
    tag, untag = reparse_points.FltTagFile, reparse_points.FltUntagFile
    with peer.open(name) as file:
        assert untag(peer, file, TAG, GUID) == api.STATUS_NOT_A_REPARSE_POINT and file.get_reparse_point() is None
        assert tag(peer, file, TAG, GUID, b"the data", 8) == STATUS_SUCCESS
        assert file.get_reparse_point() == (TAG, b"the data", GUID.bytes_le)
        assert tag(peer, file, TAG, GUID, b"newer data", 5) == STATUS_SUCCESS
        assert file.get_reparse_point().data == b"newer"
        for other in ((TAG + 1, GUID), (TAG, OTHER), (reparse_points.IO_REPARSE_TAG_HSM, None)):
            assert tag(peer, file, *other, b"", 0) == api.STATUS_IO_REPARSE_TAG_MISMATCH
            assert untag(peer, file, *other) == api.STATUS_IO_REPARSE_TAG_MISMATCH
        for reserved in (0, 1, 2):
            assert tag(peer, file, reserved, GUID, b"", 0) == api.STATUS_IO_REPARSE_TAG_INVALID
        assert tag(peer, file, TAG, None, b"", 0) == api.STATUS_IO_REPARSE_TAG_INVALID, "whose?"
        assert tag(peer, file, TAG, GUID, b"x", 2) == STATUS_INVALID_PARAMETER
        assert tag(peer, file, TAG, GUID, bytes(16384), 16384) == api.STATUS_IO_REPARSE_DATA_INVALID
        assert untag(peer, file, TAG, GUID) == STATUS_SUCCESS and file.get_reparse_point() is None
        assert {api.FSCTL_SET_REPARSE_POINT, api.FSCTL_DELETE_REPARSE_POINT} <= set(controls), "filters below see it"


def test_b5_3_one_tag_in_place_of_another(peer: Any) -> None:
    exchange = reparse_points.FltTagFileEx
    hsm = reparse_points.IO_REPARSE_TAG_HSM
    with peer.open("file") as file:
        assert exchange(peer, file, TAG, GUID, b"a", 1, hsm, None) == api.STATUS_NOT_A_REPARSE_POINT
        assert exchange(peer, file, hsm, None, b"a", 1) == STATUS_SUCCESS
        assert exchange(peer, file, TAG, GUID, b"b", 1, hsm + 1, None) == api.STATUS_IO_REPARSE_TAG_MISMATCH
        assert exchange(peer, file, 0, GUID, b"b", 1, hsm, None) == api.STATUS_IO_REPARSE_TAG_INVALID
        assert file.get_reparse_point() == (hsm, b"a", None), "undone"
        assert exchange(peer, file, TAG, GUID, b"b", 1, hsm, None) == STATUS_SUCCESS
        assert file.get_reparse_point() == (TAG, b"b", GUID.bytes_le)
        assert exchange(peer, file, TAG, GUID, b"b", 1, 0, None, 1) == STATUS_INVALID_PARAMETER


def test_b5_3_what_an_open_says(peer: Any, core: Volume, place: Path) -> None:
    """TagData: in the post of a CREATE, and later."""
    seen: list[Any] = []

    def post(data: Any, *_: Any) -> None:
        seen.append(data.reparse_point)

    rows = [(major, go_on, post) for major in (api.IRP_MJ_CREATE,)]
    core.stack.insert(entry_of(*rows, name="looks", at="1"))
    with peer.open("file", os.O_RDWR) as file:
        file.set_reparse_point(TAG, b"d", guid=GUID.bytes_le)
        seen.clear()
        with peer.open("file") as again:
            again.read(0, 1)
    tagged = api.ReparsePoint(TAG, b"d", GUID.bytes_le)
    assert set(seen) == {tagged}
    os.symlink("file", place / "link")
    seen.clear()
    assert peer.readlink("link") == b"file"
    assert seen[-1] == (reparse_points.IO_REPARSE_TAG_SYMLINK, b"file", None), "Linux' own"
    os.mkfifo(place / "pipe")
    assert core.request(LOOKUP, name=b"pipe").do()
    slow = answering(api.FLT_PREOP_DISALLOW_FSFILTER_IO)
    core.stack.insert(entry_of((api.IRP_MJ_QUERY_OPEN, slow, None), name="slow", at="9"))
    seen.clear()
    assert core.request(LOOKUP, name=b"pipe").do() and seen[-1] is None


def test_b5_3_damaged_tags_are_refused(peer: Any, place: Path) -> None:
    for stored in (b"", b"\x34\x12", bytes(24), b"\x34\x12\0\0\x05\0\0\0" + bytes(16), b"\4\0\0\xC0\x01\0\0\0"):
        os.setxattr(place / "file", "user.stackfs.reparse", stored)
        with peer.open("file") as file, pytest.raises(OSError, match="Invalid argument") as caught:
            file.get_reparse_point()
        assert caught.value.status in (  # type: ignore[attr-defined]
            api.STATUS_IO_REPARSE_DATA_INVALID, api.STATUS_IO_REPARSE_TAG_INVALID)
        with peer.open("file") as file:
            assert reparse_points.FltUntagFile(peer, file, TAG, GUID) in (
                api.STATUS_IO_REPARSE_DATA_INVALID, api.STATUS_IO_REPARSE_TAG_MISMATCH)  # fmt: skip


# ---- what is known of filters and instances --------------------------------------------------------------------------

async def furnish(bench: Bench) -> None:
    bench.volume("v")
    bench.volume("w")
    bench.drop(TRACES, "high", "385000")
    bench.drop(TRACES, "low", "361000")
    for name in ("high", "low"):
        await bench.manager.load(name)
    bench.drop(LEGACY, "old", "370000")
    await bench.manager.load("old")


def everything(routine: Any, *arguments: Any) -> list[Any]:
    """All that an enumeration gives."""
    found, buffer, size = [], out(), out()
    while (status := routine(*arguments[:-1], len(found), arguments[-1], buffer, 4096, size)) == STATUS_SUCCESS:
        assert size.value == buffer.value.size
        found.append(buffer.value)
    assert status == STATUS_NO_MORE_ENTRIES
    return found


@on_trio
async def test_b7_5_filters(bench: Bench) -> None:
    await furnish(bench)
    full = everything(asking.FltEnumerateFilterInformation, FILTER_INFORMATION_CLASS.FilterFullInformation)
    assert full == [information.FILTER_FULL_INFORMATION(0, 2, "high"), information.FILTER_FULL_INFORMATION(0, 2, "low")]
    aggregate = FILTER_INFORMATION_CLASS.FilterAggregateStandardInformation
    standard = everything(asking.FltEnumerateFilterInformation, aggregate)
    assert standard[1] == information.FILTER_AGGREGATE_STANDARD_INFORMATION(2, 0, 0, 0, "old", "370000"), "a legacy one"
    assert standard[2] == information.FILTER_AGGREGATE_STANDARD_INFORMATION(1, 0, 0, 2, "low", "361000")
    low = bench.manager.filter("low")
    buffer, size = out(), out()
    get = asking.FltGetFilterInformation
    assert get(low, FILTER_INFORMATION_CLASS.FilterAggregateBasicInformation, buffer, 100, size) == STATUS_SUCCESS
    assert buffer.value == information.FILTER_AGGREGATE_BASIC_INFORMATION(1, 0, 2, "low", "361000")
    assert get(low, 0, None, 0, size) == get(low, 0, buffer, 19, size) == STATUS_BUFFER_TOO_SMALL and size.value == 20
    assert get(low, 9, buffer, 100, size) == STATUS_INVALID_PARAMETER
    await bench.manager.unload("low")
    assert get(low, 0, buffer, 100, size) == STATUS_FLT_DELETING_OBJECT


@on_trio
async def test_b7_5_instances_and_volumes(bench: Bench) -> None:
    await furnish(bench)
    basic = INSTANCE_INFORMATION_CLASS.InstanceBasicInformation
    partial = INSTANCE_INFORMATION_CLASS.InstancePartialInformation
    volume, low = bench.manager.volume("w"), bench.manager.filter("low")
    on_volume = everything(asking.FltEnumerateInstanceInformationByVolume, volume, partial)
    assert [each.Altitude for each in on_volume] == ["385000", "361000"]
    assert everything(asking.FltEnumerateInstanceInformationByVolumeName, "w", partial) == on_volume
    none = asking.FltEnumerateInstanceInformationByVolumeName("none", 0, partial, out(), 100, out())
    assert none == STATUS_FLT_VOLUME_NOT_FOUND
    full = INSTANCE_INFORMATION_CLASS.InstanceFullInformation
    by_filter = everything(asking.FltEnumerateInstanceInformationByFilter, low, full)
    assert [each.VolumeName for each in by_filter] == ["v", "w"] and {each.FilterName for each in by_filter} == {"low"}
    instance, buffer, size = volume.instances[1], out(), out()
    get = asking.FltGetInstanceInformation
    aggregate = INSTANCE_INFORMATION_CLASS.InstanceAggregateStandardInformation
    assert get(instance, aggregate, buffer, 200, size) == STATUS_SUCCESS
    assert buffer.value == information.INSTANCE_AGGREGATE_STANDARD_INFORMATION(
        1, 0, 0, volume_properties.filesystem_type(volume), "low", "361000", "w", "low", 8)
    assert get(instance, basic, buffer, 3, size) == STATUS_BUFFER_TOO_SMALL
    assert get(instance, 4, buffer, 300, size) == STATUS_INVALID_PARAMETER
    names = FILTER_VOLUME_INFORMATION_CLASS.FilterVolumeBasicInformation
    volumes = everything(asking.FltEnumerateVolumeInformation, low, names)
    assert [each.FilterVolumeName for each in volumes] == ["v", "w"]
    standard = FILTER_VOLUME_INFORMATION_CLASS.FilterVolumeStandardInformation
    assert asking.FltGetVolumeInformation(volume, standard, buffer, 100, size) == STATUS_SUCCESS
    kind = volume_properties.filesystem_type(volume)
    assert buffer.value == information.FILTER_VOLUME_STANDARD_INFORMATION(0, 0, kind, "w")
    await bench.manager.detach(low, volume, None)
    assert get(instance, basic, buffer, 100, size) == STATUS_FLT_DELETING_OBJECT
