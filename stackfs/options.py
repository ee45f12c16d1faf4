"""The configuration of one mounted volume, put together from the command line and, where SOURCE is one, a volume TOML.

The command line wins over the TOML (stackfs/option_line.py has the options, stackfs/volume_toml.py the TOML's schema).
Instances are completed from the manifests of their filters: names, altitudes, options; what clashes is refused here,
before anything is mounted. No filter is imported, and paths are only looked at. Nothing here keeps state.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Collection, Sequence
from typing import Any

from stackfs import discovery, mounting, volume_toml
from stackfs.altitude import AltitudeError, AltitudeKey, canonical, sort_key
from stackfs.errors import ExitCode, FltError, StackfsError, UsageError
from stackfs.manifest import Manifest
from stackfs.option_line import MountOptions, add_options, parse_options
from stackfs.trust import trusted

__all__ = ["InstanceSpec", "MountConfig", "MountOptions", "OptionValues", "build_config", "parse_options"]

OptionValues = dict[str, Any]
"""A filter's options: validated, defaults filled in; the types are manifest.Value's."""


@dataclasses.dataclass(slots=True)
class InstanceSpec:
    """One instance to attach before the volume is usable. build_config fills in every field from the manifest."""

    filter: str
    name: str
    altitude: str | None
    options: OptionValues = dataclasses.field(default_factory=dict)
    in_toml: bool = False
    """The volume TOML names it, not the command line."""
    volume: str | None = None
    """A further volume's name; None: the one that is mounted."""
    prepares: bool = False
    """Its manifest names something to call before the daemon goes to the background."""


@dataclasses.dataclass(slots=True)
class MountConfig:
    """What the daemon is given: one volume to mount, checked as far as it can be without mounting."""

    source: str
    """The backing directory's real path."""
    mountpoint: str
    """Its real path."""
    volume_name: str
    instances: list[InstanceSpec] = dataclasses.field(default_factory=list)
    """To attach, highest altitude first."""
    options: MountOptions = dataclasses.field(default_factory=MountOptions)
    foreground: bool = False
    filter_dirs: list[str] = dataclasses.field(default_factory=list)
    """Drop-in directories beside the installation's, in the order of the search; absolute."""
    toml_path: str | None = None
    filter_options: dict[str, OptionValues] = dataclasses.field(default_factory=dict)
    """Validated options by filter: those of ``instances``, and those of TOML instances that are attached manually."""
    manual_instances: list[InstanceSpec] = dataclasses.field(default_factory=list)
    """A TOML's instances with attach = "manual": for a later load or attach."""
    further_volumes: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Held without a mount: name, and real path of the backing directory."""


def build_config(
    source: str,
    mountpoint: str | None,
    option_strings: Sequence[str],
    foreground: bool = False,
    *,
    names_in_use: Collection[str] = (),
) -> MountConfig:
    """The configuration of one mount, out of ``stackfs mount SOURCE [MOUNTPOINT] -o ...``.

    source: a directory, or a volume TOML. names_in_use: volume names of daemons that are running. What is wrong raises
    a StackfsError of one line: UsageError for options and the TOML, "unusable" for source and mountpoint, FltError for
    filters, TrustError for what others can write.
    """
    toml = None
    options = MountOptions()
    if source.endswith(".toml") or os.path.isfile(source):
        toml = _read_toml(source)
        for string, line in toml.options:
            add_options(options, string, toml.directory, f"{toml.path}:{line}")
    from_toml = len(options.filter_dirs)
    for string in option_strings:
        add_options(options, string)
    options.filter_dirs = options.filter_dirs[from_toml:] + options.filter_dirs[:from_toml]
    if options.writeback and options.cache == "strict":
        raise UsageError("options 'writeback' and 'cache=strict' exclude each other: strict has no cache to write back")
    if options.coherence == "lease" and (options.writeback or options.exclusive):
        other = "writeback" if options.writeback else "exclusive"
        words = f"{other} is for what only this mount changes"
        raise UsageError(f"options 'coherence=lease' and {other!r} exclude each other: {words}")
    if toml is None and options.source is not None:
        raise UsageError(f"option 'source' stands in for a volume TOML's source, but {source!r} is no .toml")
    backing, where = _places(toml, source, mountpoint, options)
    filter_dirs = [*options.filter_dirs, *(toml.filter_dirs if toml else ())]
    for directory in filter_dirs:
        with trusted(directory, "directory"):
            pass  # refused now, even if no filter is looked for in it yet
    instances, manual, values = _Assembly(toml, options, filter_dirs).assemble()
    return MountConfig(
        source=backing,
        mountpoint=where,
        volume_name=_volume_name(toml, where, names_in_use),
        instances=instances,
        options=options,
        foreground=foreground,
        filter_dirs=filter_dirs,
        toml_path=toml.path if toml else None,
        filter_options=values,
        manual_instances=manual,
        further_volumes=_further_volumes(toml, where),
    )


def _read_toml(source: str) -> volume_toml.VolumeToml:
    try:
        return volume_toml.read(source)
    except UsageError as error:
        if source.endswith(".toml"):
            raise
        words = f"source {source} is a file and no directory, so it is read as a volume TOML: {error}"
        raise UsageError(words) from None


def _places(
    toml: volume_toml.VolumeToml | None, source: str, mountpoint: str | None, options: MountOptions
) -> tuple[str, str]:
    """Real paths of the backing directory and the mountpoint, which must be directories, neither inside the other."""
    if toml is not None:
        wanted = options.source or toml.source
        if wanted is None:
            raise UsageError(f'{toml.path}: no source: add source = "..." to [volume], or give -o source=DIR')
        mountpoint = mountpoint or toml.mountpoint
        if mountpoint is None:
            fix = 'add mountpoint = "..." to [volume], or name it after the TOML'
            raise UsageError(f"{toml.path}: no mountpoint: {fix}")
        source = wanted
    elif mountpoint is None:
        raise UsageError("no mountpoint: stackfs mount SOURCE MOUNTPOINT (only a volume TOML may name its own)")
    for what, given in (("source", source), ("mountpoint", mountpoint)):
        if not given or "\0" in given:
            raise UsageError(f"the {what} is {'empty' if not given else 'no path'}: name a directory")
    backing, where = os.path.realpath(source), mounting.resolve(mountpoint)
    _check_directory("source", source, backing)
    if mounting.mount_at(where) is None:            # else clear_stale looks, with a time limit: its daemon may hang
        _check_directory("mountpoint", mountpoint, where)
    if backing == where:
        raise StackfsError(f"source and mountpoint are the same directory, {backing}", ExitCode.UNUSABLE)
    if _inside(backing, where):
        raise StackfsError(
            f"the source {backing} lies inside the mountpoint {where}, which would hide it: mount somewhere else",
            ExitCode.UNUSABLE,
        )
    if _inside(where, backing):
        raise StackfsError(
            f"the mountpoint {where} lies inside the source {backing}: the drive would contain itself; "
            "mount somewhere else",
            ExitCode.UNUSABLE,
        )
    return backing, where


def _further_volumes(toml: volume_toml.VolumeToml | None, mountpoint: str) -> list[tuple[str, str]]:
    found = []
    for each in toml.further_volumes if toml is not None else ():
        assert toml is not None
        where = f"{toml.path}:{each.line}: "
        backing = os.path.realpath(each.source)
        _check_directory(f"{where}source", each.source, backing)
        if _inside(backing, mountpoint):
            raise StackfsError(
                f"{where}source {backing} lies inside the mountpoint {mountpoint}, which would hide it: take another",
                ExitCode.UNUSABLE,
            )
        found.append((each.name, backing))
    return found


def _inside(path: str, directory: str) -> bool:
    return os.path.commonpath((path, directory)) == directory


def _check_directory(what: str, given: str, real: str) -> None:
    try:
        mode = os.stat(real).st_mode
    except FileNotFoundError:
        raise StackfsError(f"{what} {given} does not exist: mkdir it first", ExitCode.UNUSABLE) from None
    except PermissionError:
        raise StackfsError(f"{what} {given}: permission denied", ExitCode.PERMISSION) from None
    except OSError as error:
        raise StackfsError(f"{what} {given}: {error.strerror}", ExitCode.UNUSABLE) from None
    if not stat.S_ISDIR(mode):
        raise StackfsError(f"{what} {given} is not a directory", ExitCode.UNUSABLE)


def _volume_name(toml: volume_toml.VolumeToml | None, mountpoint: str, in_use: Collection[str]) -> str:
    """The TOML's name, or one made of the mountpoint's last component, unlike those in use."""
    if toml is not None:
        if toml.name in in_use:
            raise UsageError(f"{toml.path}: a volume named {toml.name!r} is already mounted: unmount it, or rename one")
        return toml.name
    plain = "".join(each if each.isprintable() else "_" for each in os.path.basename(mountpoint)) or "volume"
    name, number = plain, 1
    while name in in_use:
        number += 1
        name = f"{plain}-{number}"
    return name


@dataclasses.dataclass(slots=True)
class _Wanted:
    """An instance asked for, and who asked: "FILE:LINE" of a TOML, or the option."""

    filter: str
    name: str | None
    altitude: str | None
    where: str
    manual: bool = False
    in_toml: bool = False
    volume: str | None = None


class _Assembly:
    """The instances of one mount, with their manifests: names, altitudes and options filled in and compared."""

    def __init__(self, toml: volume_toml.VolumeToml | None, options: MountOptions, filter_dirs: Sequence[str]) -> None:
        self.toml = toml
        self.options = options
        self.filter_dirs = filter_dirs
        self.manifests: dict[str, Manifest] = {}

    def assemble(self) -> tuple[list[InstanceSpec], list[InstanceSpec], dict[str, OptionValues]]:
        """The instances to attach, those to keep for later, and every filter's options."""
        wanted = self.wanted()
        for each in wanted:
            self.manifests[each.filter] = self.manifest(each)
        for name, settings in self.options.filter_values.items():
            if name not in self.manifests:
                key, (_, (_, where)) = next(iter(settings.items()))
                raise UsageError(
                    f"{where and where + ': '}option '{name}.{key}' is for filter {name!r}, which this mount does not "
                    f"attach: add -o filter={name}"
                )
        values = {name: self.validated(manifest) for name, manifest in self.manifests.items()}
        specs: list[tuple[_Wanted, InstanceSpec]] = []
        for each in wanted:
            spec = self.spec(each, values[each.filter])
            self.check_clash(each, spec, specs)
            specs.append((each, spec))
        chosen = sorted(specs, key=lambda pair: volume_order(pair[1]), reverse=True)
        attached = [spec for each, spec in chosen if not each.manual]
        return attached, [spec for each, spec in chosen if each.manual], values

    def wanted(self) -> list[_Wanted]:
        found = []
        if self.toml is not None:
            for each in self.toml.instances:
                where = f"{self.toml.path}:{each.lines['']}: "
                manual = each.attach == "manual"
                found.append(_Wanted(each.filter, each.name, each.altitude, where, manual, True, each.volume))
        found += [_Wanted(name, None, None, f"{where}: ") for name, where in self.options.filters.items()]
        return found

    def manifest(self, wanted: _Wanted) -> Manifest:
        if wanted.filter in self.manifests:
            return self.manifests[wanted.filter]
        try:
            manifest = discovery.find(wanted.filter, self.filter_dirs).manifest
        except FltError as error:
            raise FltError(error.status, wanted.where + error.message, error.exit_code) from None
        if manifest.start == "disabled":
            raise FltError(0xC0000001, f"{wanted.where}filter {wanted.filter!r} is disabled: {manifest.file}: start")
        return manifest

    def validated(self, manifest: Manifest) -> OptionValues:
        """A filter's options: those its TOML instances give (they share them), and those of -o over them."""
        values: OptionValues = {}
        written: dict[str, tuple[object, str]] = {}
        for each in self.toml.instances if self.toml is not None else ():
            for key, value in each.options.items() if each.filter == manifest.name else ():
                assert self.toml is not None
                where = f"{self.toml.path}:{each.lines[f'options.{key}']}"
                first, place = written.setdefault(key, (value, where))
                if first != value or type(first) is not type(value):
                    raise UsageError(
                        f"{where}: {key} = {value!r} differs from {first!r} in {place}: the instances of one filter "
                        "share their options, give each of them once"
                    )
                values[key] = self.typed(manifest, key, value, self.toml.directory, where)
        for key, (text, origin) in self.options.filter_values.get(manifest.name, {}).items():
            values[key] = self.typed(manifest, key, text, origin.base, origin.where)
        return dict(manifest.validate_options(values))

    @staticmethod
    def typed(manifest: Manifest, key: str, value: object, base: str, where: str) -> object:
        try:
            return manifest.validate_option(key, value, base)
        except UsageError as error:
            raise UsageError(f"{where and where + ': '}{error}") from None

    def spec(self, wanted: _Wanted, values: OptionValues) -> InstanceSpec:
        manifest = self.manifests[wanted.filter]
        name = wanted.name or manifest.default_instance
        offered = manifest.instance(name)
        altitude = wanted.altitude or (offered.altitude if offered else None)
        if altitude is None:
            names = ", ".join(repr(each.name) for each in manifest.all_instances)
            raise UsageError(
                f"{wanted.where}filter {wanted.filter!r} offers no instance {name!r}: name one of {names}, "
                "or give it an altitude"
            )
        try:
            chosen = manifest.check_altitude(altitude)
        except AltitudeError as error:
            raise UsageError(f"{wanted.where}{error}") from None
        prepares = manifest.prepare is not None
        return InstanceSpec(wanted.filter, name, chosen, dict(values), wanted.in_toml, wanted.volume, prepares)

    @staticmethod
    def check_clash(wanted: _Wanted, spec: InstanceSpec, others: Sequence[tuple[_Wanted, InstanceSpec]]) -> None:
        """Names and altitudes are unique on a volume."""
        for where, other in ((each.where.removesuffix(": "), other) for each, other in others):
            if spec.volume != other.volume:
                continue
            if spec.name == other.name:
                raise UsageError(
                    f"{wanted.where}instance name {spec.name!r} is taken by {where}: give one of the two another name"
                )
            if spec.altitude is not None and spec.altitude == other.altitude:
                raise UsageError(
                    f"{wanted.where}altitude {canonical(spec.altitude)} is taken by instance {other.name!r} ({where}): "
                    f'give one of the two another, such as altitude = "{volume_toml.neighbour(spec.altitude)}"'
                )


def volume_order(spec: InstanceSpec) -> AltitudeKey:
    """The key that orders instances as the stack does; the highest altitude is called first."""
    return sort_key(spec.altitude or "0")
