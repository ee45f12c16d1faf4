"""One TOML per volume: what is mounted where, with which instances at which altitudes.

The schema (mountpoints/README.md shows it to users):

    [volume]
    name = "demo"                    # shown by fltmc volumes. Needed
    source = "backing"               # the backing directory. Needed, unless -o source= gives it
    mountpoint = "~/drive"           # may be left out, and then comes from the command line
    filterdir = ["my-filters"]       # further drop-in directories
    options = ["cache=strict"]       # what -o takes, a list of strings or a table: options.cache = "strict"

    [[instance]]                     # one for each instance, in any order: altitudes decide
    filter = "audit"                 # Needed
    name = "audit"                   # default: the default instance of the filter's manifest
    altitude = "385100"              # a string; default: what the manifest gives the instance of that name
    attach = "automatic"             # manual: not attached at mount; its options are kept for a later load
    options = {full = "refuse"}      # the filter's own options, which all its instances share
    volume = "second"                # default: the one that is mounted

    [[further_volume]]               # held by the same process, without a mount: for filters that work on two volumes
    name = "second"                  # Needed
    source = "second-backing"        # its backing directory. Needed

Relative paths are relative to the TOML's directory; ``~`` is expanded. Every error says file, line and what to do.
The file is read through stackfs/trust.py. Everything else here is pure.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Sequence
from typing import Final, NoReturn

from stackfs.altitude import AltitudeError, canonical
from stackfs.errors import UsageError
from stackfs.manifest import INSTANCE_NAME, NAME
from stackfs.mount_flags import opposite
from stackfs.trust import read_trusted

Path = tuple[str | int, ...]

VOLUME_KEYS: Final = ("name", "source", "mountpoint", "filterdir", "options")
INSTANCE_KEYS: Final = ("filter", "name", "altitude", "attach", "options", "volume")
FURTHER_VOLUME_KEYS: Final = ("name", "source")
VOLUME_NAME_LENGTH: Final = 255


@dataclasses.dataclass(frozen=True, slots=True)
class TomlInstance:
    """An ``[[instance]]``. ``options`` are as written: the filter's manifest gives them their types."""

    filter: str
    name: str | None
    altitude: str | None
    attach: str
    options: dict[str, object]
    lines: dict[str, int]
    """The line of each key, of ``options.KEY`` for an option, and of the table itself under ""."""
    volume: str | None = None
    """The further volume that it is attached to; None: the one that is mounted."""


@dataclasses.dataclass(frozen=True, slots=True)
class FurtherVolume:
    """A ``[[further_volume]]``: held without a mount. ``source`` is absolute, ``line`` where it begins."""

    name: str
    source: str
    line: int


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeToml:
    """A volume TOML that fits the schema. Paths are absolute."""

    path: str
    name: str
    source: str | None
    mountpoint: str | None
    filter_dirs: tuple[str, ...]
    options: tuple[tuple[str, int], ...]
    """Option strings as after ``-o`` with one option each, and the line of each."""
    instances: tuple[TomlInstance, ...]
    further_volumes: tuple[FurtherVolume, ...] = ()

    @property
    def directory(self) -> str:
        return os.path.dirname(self.path)


def read(path: str | os.PathLike[str]) -> VolumeToml:
    """Read and validate a volume TOML. TrustError: others can write it. UsageError: file, line, and what to do."""
    name = os.path.abspath(path)
    return parse(read_trusted(name), name)


def parse(data: bytes, path: str) -> VolumeToml:
    """Validate the bytes of a volume TOML; ``path`` is the absolute path that relative paths and errors refer to."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8, which TOML must be: save it as UTF-8") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: not valid TOML: nested too deeply") from None
    return _Reader(path, document, line_numbers(text)).read()


class _Reader:
    """One document being validated, with the lines of its values."""

    def __init__(self, path: str, document: dict[str, object], lines: dict[Path, int]) -> None:
        self.path = path
        self.document = document
        self.lines = lines

    def line(self, path: Path) -> int:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def refuse(self, path: Path, reason: str) -> NoReturn:
        raise UsageError(f"{self.path}:{self.line(path)}: {reason}")

    def read(self) -> VolumeToml:
        self.known(self.document, (), ("volume", "instance", "further_volume"))
        volume = self.document.get("volume")
        if not isinstance(volume, dict):
            self.refuse(("volume",), "a [volume] table is needed, with name, source and mountpoint")
        self.known(volume, ("volume",), VOLUME_KEYS)
        name = self.volume_name(volume, ("volume",))
        further = self.further_volumes(name)
        instances = self.document.get("instance", [])
        if not isinstance(instances, list):
            self.refuse(("instance",), "write each instance as a table of a list: [[instance]], with two brackets")
        result = VolumeToml(
            path=self.path,
            name=name,
            source=self.file(volume, "source"),
            mountpoint=self.file(volume, "mountpoint"),
            filter_dirs=self.filter_dirs(volume),
            options=self.options(volume),
            instances=tuple(self.instance(each, index) for index, each in enumerate(instances)),
            further_volumes=further,
        )
        for index, instance in enumerate(result.instances):
            if instance.volume is not None and instance.volume not in (each.name for each in further):
                fix = "name a [[further_volume]], or leave it out for the one that is mounted"
                self.refuse(("instance", index, "volume"), f"there is no volume {instance.volume!r} here: {fix}")
        self.check_clashes(result.instances)
        return result

    def volume_name(self, table: dict[str, object], path: Path) -> str:
        name = self.string(table, path, "name")
        header = "[volume]" if path == ("volume",) else "this [[further_volume]]"
        if name is None:
            self.refuse(path, f'name is needed: add name = "..." to {header}')
        if not name or "/" in name or not name.isprintable() or len(name) > VOLUME_NAME_LENGTH or name in (".", ".."):
            self.refuse((*path, "name"), f"{name!r} cannot be a volume's name: printable characters other than '/'")
        return name

    def further_volumes(self, mounted: str) -> tuple[FurtherVolume, ...]:
        given = self.document.get("further_volume", [])
        if not isinstance(given, list):
            self.refuse(("further_volume",), "write each as a table of a list: [[further_volume]], with two brackets")
        found: list[FurtherVolume] = []
        for index, table in enumerate(given):
            path: Path = ("further_volume", index)
            if not isinstance(table, dict):
                self.refuse(path, "write each as a table of a list: [[further_volume]], with two brackets")
            self.known(table, path, FURTHER_VOLUME_KEYS)
            name = self.volume_name(table, path)
            if name in (mounted, *(each.name for each in found)):
                self.refuse((*path, "name"), f"a volume named {name!r} is here already: give it another name")
            source = self.string(table, path, "source")
            if source is None:
                self.refuse(path, 'source is needed: add source = "..." to this [[further_volume]]')
            found.append(FurtherVolume(name, self.absolute(source, (*path, "source")), self.line(path)))
        return tuple(found)

    def known(self, table: dict[str, object], path: Path, keys: Sequence[str]) -> None:
        for key in table:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, n=1)
                fix = f"did you mean {near[0]!r}?" if near else f"remove it (the keys here are {', '.join(keys)})"
                self.refuse((*path, key), f"unknown key {key!r}: {fix}")

    def string(self, table: dict[str, object], path: Path, key: str) -> str | None:
        value = table.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            fix = f'write {key} = "{value}"' if isinstance(value, (int, float)) else f'write {key} = "..."'
            self.refuse((*path, key), f"{key} must be a string, not {_type_name(value)}: {fix}")
        return value

    def file(self, volume: dict[str, object], key: str) -> str | None:
        value = self.string(volume, ("volume",), key)
        if value is None:
            return None
        return self.absolute(value, ("volume", key))

    def absolute(self, value: str, path: Path) -> str:
        if not value or "\0" in value:
            self.refuse(path, f"{value!r} is not a path")
        return os.path.normpath(os.path.join(os.path.dirname(self.path), os.path.expanduser(value)))

    def filter_dirs(self, volume: dict[str, object]) -> tuple[str, ...]:
        path: Path = ("volume", "filterdir")
        given = volume.get("filterdir", [])
        if not isinstance(given, list):
            fix = 'write filterdir = ["..."]'
            self.refuse(path, f"filterdir must be a list of strings, not {_type_name(given)}: {fix}")
        for index, each in enumerate(given):
            if not isinstance(each, str):
                self.refuse((*path, index), f"filterdir must be a list of strings, not of {_type_name(each)}")
        return tuple(self.absolute(each, (*path, index)) for index, each in enumerate(given))

    def options(self, volume: dict[str, object]) -> tuple[tuple[str, int], ...]:
        path: Path = ("volume", "options")
        given = volume.get("options", [])
        found = []
        if isinstance(given, list):
            for index, each in enumerate(given):
                if not isinstance(each, str):
                    fix = 'write each as it stands after -o, such as "cache=strict"'
                    self.refuse((*path, index), f"options must be a list of strings, not of {_type_name(each)}: {fix}")
                found.append((each, self.line((*path, index))))
        elif isinstance(given, dict):
            for key, value in given.items():
                line = self.line((*path, key))
                if isinstance(value, dict):
                    found += [(self.filter_option(key, inner, value[inner]), line) for inner in value]
                else:
                    found += [(text, line) for text in self.option(key, value)]
        else:
            self.refuse(path, f"options must be a list of strings or a table, not {_type_name(given)}")
        return tuple(found)

    def option(self, key: str, value: object) -> list[str]:
        """A line of the options table as an option string: true is the bare option, false its opposite or nothing."""
        if isinstance(value, bool):
            other = opposite(key)
            return [key] if value else [other] if other else []
        return [f"{key}={self.option_value(key, value)}"]

    def filter_option(self, name: str, key: str, value: object) -> str:
        text = ("yes" if value else "no") if isinstance(value, bool) else self.option_value(f"{name}.{key}", value, key)
        return f"{name}.{key}={text}"

    def option_value(self, key: str, value: object, *inner: str) -> str:
        if isinstance(value, (str, int, float)):
            return escape(str(value))
        path = ("volume", "options", key.removesuffix(f".{inner[0]}") if inner else key, *inner)
        self.refuse(path, f"option {key} must be a string, a number, true or false, not {_type_name(value)}")

    def instance(self, table: object, index: int) -> TomlInstance:
        path: Path = ("instance", index)
        if not isinstance(table, dict):
            self.refuse(path, "write each instance as a table of a list: [[instance]], with two brackets")
        self.known(table, path, INSTANCE_KEYS)
        filter_name = self.string(table, path, "filter")
        if filter_name is None:
            self.refuse(path, 'filter is needed: add filter = "..." to this [[instance]]')
        if not NAME.fullmatch(filter_name):
            self.refuse((*path, "filter"), f"{filter_name!r} is not a filter's name: 1 to 64 of A-Z a-z 0-9 _ . -")
        name = self.string(table, path, "name")
        if name is not None and not INSTANCE_NAME.fullmatch(name):
            self.refuse((*path, "name"), f"{name!r} is not an instance's name: up to 255 characters other than '/'")
        altitude = table.get("altitude")
        if isinstance(altitude, (int, float)) and not isinstance(altitude, bool):
            fix = f'write altitude = "{altitude}"'
            self.refuse((*path, "altitude"), f"altitude must be a string, since a number would lose digits: {fix}")
        altitude = self.string(table, path, "altitude")
        if altitude is not None:
            try:
                altitude = canonical(altitude)
            except AltitudeError as error:
                self.refuse((*path, "altitude"), str(error))
        attach = self.string(table, path, "attach") or "automatic"
        if attach not in ("automatic", "manual"):
            self.refuse((*path, "attach"), f'{attach!r}: write attach = "automatic" or attach = "manual"')
        options = table.get("options", {})
        if not isinstance(options, dict):
            self.refuse((*path, "options"), f"options must be a table, not {_type_name(options)}: {{key = value}}")
        lines = {"": self.line(path)}
        for key in table:
            lines[key] = self.line((*path, key))
        for key in options:
            lines[f"options.{key}"] = self.line((*path, "options", key))
        return TomlInstance(filter_name, name, altitude, attach, options, lines, self.string(table, path, "volume"))

    def check_clashes(self, instances: Sequence[TomlInstance]) -> None:
        """What clashes by the TOML alone; names and altitudes out of manifests are compared in stackfs/options.py."""
        for index, each in enumerate(instances):
            for other in instances[:index]:
                if each.volume != other.volume:
                    continue
                if each.name is not None and each.name == other.name:
                    fix = "instance names are unique on a volume, give one of the two another"
                    self.refuse(
                        ("instance", index, "name"), f"name {each.name!r} is taken in line {other.lines['name']}: {fix}"
                    )
                if each.altitude is not None and each.altitude == other.altitude:
                    fix = f'altitudes are unique on a volume, use another, such as "{neighbour(each.altitude)}"'
                    self.refuse(
                        ("instance", index, "altitude"),
                        f"altitude {each.altitude} is taken in line {other.lines['altitude']}: {fix}",
                    )


def neighbour(altitude: str) -> str:
    """An altitude just above: a fix to suggest where two clash."""
    return f"{altitude}5" if "." in altitude else f"{altitude}.5"


def escape(value: str) -> str:
    """A value as it is written after ``-o``: commas and backslashes escaped."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _type_name(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")


def line_numbers(text: str) -> dict[Path, int]:
    """The line of every table, key and array element of a valid TOML document, by its path in the parsed document."""
    return _Scanner(text).scan()


class _Scanner:
    """Walks a document that tomllib has accepted, and notes where its values begin. It checks nothing itself."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.counted, self.count = 0, 1
        self.lines: dict[Path, int] = {}
        self.array_sizes: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self.skip_to_item():
            if self.text[self.at] == "[":
                is_array = self.text.startswith("[[", self.at)
                self.at += 2 if is_array else 1
                line = self.line()
                table = self.resolve(self.key())
                if is_array:
                    index = self.array_sizes.get(table, 0)
                    self.array_sizes[table] = index + 1
                    self.lines.setdefault(table, line)
                    table = (*table, index)
                self.lines.setdefault(table, line)
                self.at = self.text.index("]", self.at) + (2 if is_array else 1)
            else:
                self.pair(table)
        return self.lines

    def resolve(self, keys: Path) -> Path:
        """A header's keys as a path: a key that is an array of tables means its last element, except at the end."""
        path: Path = ()
        for index, key in enumerate(keys):
            path = (*path, key)
            if index < len(keys) - 1 and path in self.array_sizes:
                path = (*path, self.array_sizes[path] - 1)
        return path

    def line(self) -> int:
        self.count += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.count

    def skip(self, characters: str) -> None:
        while self.at < len(self.text) and self.text[self.at] in characters:
            self.at += 1

    def skip_to_item(self, separators: str = "") -> bool:
        """Past white space, newlines, comments and separators; False at the end of the text."""
        while True:
            self.skip(" \t\n" + separators)
            if not self.text.startswith("#", self.at):
                return self.at < len(self.text)
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end

    def pair(self, table: Path) -> None:
        """A key and its value, in a table or an inline table."""
        line = self.line()
        path = table
        for key in self.key():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.at = self.text.index("=", self.at) + 1
        self.skip(" \t")
        self.value(path)

    def key(self) -> Path:
        """A key, dotted or not, quoted or bare; leaves off at what follows it."""
        parts: list[str] = []
        while True:
            self.skip(" \t")
            if self.text[self.at] in "\"'":
                start = self.at
                self.string()
                parts.append(str(tomllib.loads(f"key = {self.text[start : self.at]}")["key"]))
            else:
                start = self.at
                while self.text[self.at] not in " \t.=]":
                    self.at += 1
                parts.append(self.text[start : self.at])
            self.skip(" \t")
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def value(self, path: Path) -> None:
        match self.text[self.at]:
            case '"' | "'":
                self.string()
            case "[":
                self.at += 1
                index = 0
                while self.skip_to_item(",") and self.text[self.at] != "]":
                    self.lines[(*path, index)] = self.line()
                    self.value((*path, index))
                    index += 1
                self.at += 1
            case "{":
                self.at += 1
                while self.skip_to_item(",") and self.text[self.at] != "}":
                    self.pair(path)
                self.at += 1
            case _:
                while self.at < len(self.text) and self.text[self.at] not in ",]}\n#":
                    self.at += 1

    def string(self) -> None:
        """Past a string of any of the four kinds."""
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            self.at += 3
            self.until(quote * 3, escapes=quote == '"')
            for _ in range(2):  # the string may itself end in one or two quotes
                if self.text.startswith(quote, self.at):
                    self.at += 1
        else:
            self.at += 1
            self.until(quote, escapes=quote == '"')

    def until(self, end: str, *, escapes: bool) -> None:
        while not self.text.startswith(end, self.at):
            self.at += 2 if escapes and self.text[self.at] == "\\" else 1
        self.at += len(end)
