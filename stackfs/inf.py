"""A Windows minifilter's INF file, read as a manifest (docs/semantics.md, A3.13).

What an INF says of a minifilter it says in four steps: a ``...Services`` section adds a service; the service's section
has its start type, load order group and dependencies, and names AddReg sections; these write ``Instances`` below the
service's key, the default instance's name, and ``Instances\\NAME`` with an altitude and flags; and nearly every value
is a ``%token%`` of ``[Strings]``. Just that is read; files to copy, catalogs and the like are passed over.

As Windows reads it: section names, keys and tokens know no case; a section may be there in several parts; ``;`` begins
a comment and ``\\`` at a line's end goes on in the next one, both outside quotes; in quotes a doubled quote is one;
parts in quotes and without stand side by side in one value. The text is UTF-16 with a byte order mark, UTF-8, or else
ANSI (Windows-1252). Every error is a FilterImageError: file, line, reason. Everything here is pure.
"""

from __future__ import annotations

import codecs
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Final, NoReturn

from stackfs.altitude import GROUPS, AltitudeError, canonical, check_group
from stackfs.errors import FilterImageError
from stackfs.manifest import ATTACH_OF_FLAGS, START_TYPES, Manifest, ManifestError, parse_manifest

SUPPORTED_FS_FEATURES_BYPASS_IO: Final = 0x8
_MARKS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_TOKEN: Final = re.compile(r"%([^%]*)%")


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line of a section: where it stands, what is before the ``=`` (None: no ``=``), and the values behind it."""

    number: int
    key: str | None
    values: tuple[str, ...]


class Inf:
    """The sections of an INF, by their names in lower case, and its tokens."""

    def __init__(self, data: bytes, file: str) -> None:
        self.file = file
        self.sections: dict[str, list[Line]] = {}
        self._read(_decode(data, file))
        self.strings: dict[str, str] = {}
        for name in sorted(self.sections, key=lambda each: (each != "strings", each != "strings.0409", each)):
            if name == "strings" or name.startswith("strings."):
                for line in self.sections[name]:
                    if line.key is not None:
                        self.strings.setdefault(line.key.lower(), line.values[0])

    def refuse(self, line: int, reason: str) -> NoReturn:
        raise FilterImageError(f"{self.file}:{line}: {reason}")

    def section(self, name: str) -> list[Line] | None:
        """The lines of a section with their tokens replaced; None: there is none of that name."""
        lines = self.sections.get(name.lower())
        if lines is None:
            return None
        return [
            Line(
                each.number,
                None if each.key is None else self.expand(each.key, each.number),
                tuple(self.expand(value, each.number) for value in each.values),
            )
            for each in lines
        ]

    def expand(self, text: str, line: int) -> str:
        """The text with its %tokens% replaced; %% is a percent sign, %13% the number of a directory, which stays."""

        def value(match: re.Match[str]) -> str:
            if not match[1]:
                return "%"
            if match[1].isdigit():
                return match[0]
            if match[1].lower() not in self.strings:
                self.refuse(line, f"%{match[1]}% is not in [Strings]")
            return self.strings[match[1].lower()]

        return _TOKEN.sub(value, text)

    def _read(self, text: str) -> None:
        lines: list[Line] | None = None
        for number, logical in _logical_lines(text):
            if logical.startswith("["):
                end = logical.find("]")
                if end < 0:
                    self.refuse(number, "a section's name has no ']'")
                lines = self.sections.setdefault(logical[1:end].strip().lower(), [])
            elif lines is None:
                self.refuse(number, f"{logical[:40]!r} stands before the first [section]")
            else:
                key, rest = _split_key(logical)
                lines.append(Line(number, key, tuple(_values(rest))))


def _decode(data: bytes, file: str) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding)
            except UnicodeDecodeError as error:
                words = f"{file}: not {encoding.upper()}, as its first bytes say: {error.reason}"
                raise FilterImageError(words) from None
    if b"\0" in data:
        raise FilterImageError(f"{file}: not an INF: neither text nor UTF-16 with a byte order mark")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _quoted(text: str) -> Iterator[tuple[int, str, bool]]:
    """Each character with its place, and whether it stands in quotes (the quotes themselves do)."""
    inside = False
    for index, character in enumerate(text):
        if character == '"':
            inside = not inside
        yield index, character, inside or character == '"'


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that go on joined, with the number of the first; none is empty."""
    begun, first = "", 0
    for number, physical in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        first = first or number
        cut = next((index for index, each, inside in _quoted(begun + physical) if each == ";" and not inside), None)
        begun = (begun + physical)[:cut].strip()
        if begun.endswith("\\") and not list(_quoted(begun))[-1][2]:
            begun = begun[:-1]
            continue
        if begun:
            yield first, begun
        begun, first = "", 0
    if begun.strip():
        yield first, begun.strip()


def _split_key(text: str) -> tuple[str | None, str]:
    for index, character, inside in _quoted(text):
        if character == "=" and not inside:
            return "".join(_values(text[:index])[:1]), text[index + 1 :]
    return None, text


def _values(text: str) -> list[str]:
    """Values between commas: what is in quotes as it is, what is not without spaces around it."""
    values: list[str] = []
    parts = [""]
    for _, character, inside in _quoted(text):
        if character == "," and not inside:
            values.append(_unquoted("".join(parts)))
            parts = []
        else:
            parts.append(character)
    return [*values, _unquoted("".join(parts))]


def _unquoted(text: str) -> str:
    """`"Instances\\"%Name%` is one value; a doubled quote in quotes is a quote."""
    pieces = re.findall(r'"((?:[^"]|"")*)"?|([^"]+)', text.strip())
    return "".join(quoted.replace('""', '"') if not bare else bare.strip() for quoted, bare in pieces)


# --- what a minifilter's INF says ------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Instance:
    name: str
    line: int
    altitude: tuple[str, int] | None = None
    flags: int = 0


@dataclasses.dataclass(slots=True)
class _Service:
    """A service that the INF adds, with its key's values that matter here, each with its line."""

    name: str
    line: int
    values: dict[str, tuple[str, int]]
    default_instance: tuple[str, int] | None = None
    features: int = 0
    instances: dict[str, _Instance] = dataclasses.field(default_factory=dict)


def manifest_text(data: bytes, file: str) -> str:
    """The INF as our manifest, a Python literal: ``MANIFEST = {...}``. FilterImageError: what is wrong or missing."""
    return _literal(_service(Inf(data, file)), file)[0]


def manifest(data: bytes, file: str) -> Manifest:
    """The INF as a manifest. FilterImageError: what is wrong or missing in it, with file and line."""
    text, lines = _literal(_service(Inf(data, file)), file)
    try:
        found = parse_manifest(text.encode(), file)
    except ManifestError as error:
        raise FilterImageError(f"{file}:{lines.get(error.field, 1)}: {error.reason}") from None
    assert found is not None
    return found


def _service(inf: Inf) -> _Service:
    """The one service that is a minifilter."""
    services: dict[str, _Service] = {}
    for name in sorted(inf.sections, key=lambda each: ("amd64" not in each, each)):
        if not name.endswith(".services") or "uninstall" in name:
            continue
        for line in inf.section(name) or ():
            if line.key is not None and line.key.lower() == "addservice" and len(line.values) > 2:
                services.setdefault(line.values[0].lower(), _read_service(inf, line))
    if not services:
        inf.refuse(1, "no section [....Services] adds a service (AddService = NAME, FLAGS, SECTION)")
    filters = [each for each in services.values() if each.instances or each.default_instance]
    if len(filters) > 1:
        names = ", ".join(each.name for each in filters)
        inf.refuse(filters[1].line, f"it installs several minifilters ({names}); one is read from one file")
    chosen = filters[0] if filters else next(iter(services.values()))
    _check(inf, chosen)
    return chosen


def _read_service(inf: Inf, line: Line) -> _Service:
    name, section = line.values[0], line.values[2]
    lines = inf.section(section)
    if lines is None:
        inf.refuse(line.number, f"there is no section [{section}] for the service {name}")
    service = _Service(name, line.number, {})
    for each in lines:
        key = (each.key or "").lower()
        if key == "addreg":
            for part in filter(None, each.values):
                registry = inf.section(part)
                if registry is None:
                    inf.refuse(each.number, f"there is no section [{part}]")
                for entry in registry:
                    _read_registry(inf, service, entry)
        elif key:
            service.values[key] = (",".join(each.values), each.number)
    return service


def _read_registry(inf: Inf, service: _Service, line: Line) -> None:
    """One AddReg line: root, subkey, value's name, type, value."""
    root, subkey, name, _, value, *_ = (*line.values, "", "", "", "", "")
    if root.upper() != "HKR" or line.key is not None:
        return
    path = [each for each in subkey.split("\\") if each]
    if path and path[0].lower() == "parameters":        # Windows 11 24H2 keeps them there
        path = path[1:]
    key, name = [each.lower() for each in path], name.lower()
    if not key and name == "supportedfeatures":
        service.features = _number(inf, value, line.number)
    elif not key and name == "dependonservice":
        service.values["dependencies"] = (",".join(line.values[4:]), line.number)
    elif key == ["instances"] and name == "defaultinstance":
        service.default_instance = (value, line.number)
    elif len(key) == 2 and key[0] == "instances" and name in ("altitude", "flags"):
        instance = service.instances.setdefault(key[1], _Instance(path[1], line.number))
        if name == "altitude":
            instance.altitude = (value, line.number)
        else:
            instance.flags = _number(inf, value, line.number)


def _number(inf: Inf, text: str, line: int) -> int:
    try:
        return int(text, 0)
    except ValueError:
        inf.refuse(line, f"{text!r} is not a number")


def _check(inf: Inf, service: _Service) -> None:
    """What FltRegisterFilter, or the loading of a service, would find missing."""
    values, where = service.values, service.line
    if "loadordergroup" not in values:
        inf.refuse(where, f"service {service.name} has no LoadOrderGroup: a minifilter needs one")
    group, line = values["loadordergroup"]
    if group not in GROUPS:
        inf.refuse(line, f"{group!r} is not a load order group of minifilters; those are {', '.join(GROUPS)}")
    dependencies, line = values.get("dependencies", ("", where))
    if "fltmgr" not in re.split(r"[\s,]+", dependencies.lower()):
        inf.refuse(line, f"service {service.name} does not depend on FltMgr (Dependencies = FltMgr): no minifilter")
    start, line = values.get("starttype", ("", where))
    if not start or not 0 <= _number(inf, start, line) < len(START_TYPES):
        inf.refuse(line, f"service {service.name} has no StartType from 0 (boot) to 4 (disabled)")
    if not service.instances:
        inf.refuse(where, f"service {service.name} has no Instances key: a minifilter needs at least one instance")
    for each in service.instances.values():
        if each.altitude is None:
            inf.refuse(each.line, f"instance {each.name!r} has no Altitude")
        if each.flags not in ATTACH_OF_FLAGS:
            inf.refuse(each.line, f"instance {each.name!r} has Flags {each.flags:#x}; bits 0 and 1 have a meaning")
    if service.default_instance is None:
        inf.refuse(where, f"service {service.name} has no DefaultInstance in its Instances key")
    name, line = service.default_instance
    if name.lower() not in service.instances:
        names = ", ".join(repr(each.name) for each in service.instances.values())
        inf.refuse(line, f"the default instance {name!r} is none of its instances ({names})")


def _literal(service: _Service, file: str) -> tuple[str, Mapping[str, int]]:
    """The manifest's text, and for each of its fields the line of the INF that it comes from."""
    assert service.default_instance is not None
    default = service.instances[service.default_instance[0].lower()]
    others = [each for each in service.instances.values() if each is not default]
    group, group_line = service.values["loadordergroup"]
    description = " ".join(service.values.get("description", ("", 0))[0].split())
    fields: dict[str, object] = {"name": service.name}
    lines = {"name": service.line, "group": group_line, "default_instance": default.line}
    fields["altitude"], lines["altitude"] = _altitude(default)
    fields["group"] = group
    if any(_outside(_altitude(each)[0], group) for each in service.instances.values()):
        fields["altitude_reason"] = "its INF gives it"
    if description:
        fields["description"] = description
    fields["default_instance"] = default.name
    if default.flags:
        fields["attach"] = ATTACH_OF_FLAGS[default.flags]
    instances = []
    for index, each in enumerate(others):
        altitude, lines[f"instances[{index}].altitude"] = _altitude(each)
        lines[f"instances[{index}].name"] = each.line
        instances.append({"name": each.name, "altitude": altitude} | (
            {"attach": ATTACH_OF_FLAGS[each.flags]} if each.flags else {}))  # fmt: skip
    if instances:
        fields["instances"] = instances
    fields["start"] = START_TYPES[int(service.values["starttype"][0], 0)]
    if service.features & SUPPORTED_FS_FEATURES_BYPASS_IO:
        fields["bypass"] = "supported"
    text = "MANIFEST = {\n"
    for key, value in fields.items():
        if isinstance(value, list):
            rows = "".join(f"        {_source(each)},\n" for each in value)
            text += f'    "{key}": [\n{rows}    ],\n'
        else:
            text += f'    "{key}": {_source(value)},\n'
    return text + "}\n", lines


def _source(value: object) -> str:
    """A Python literal with double quotes, as the rest of the house writes them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_source(key)}: {_source(each)}" for key, each in value.items()) + "}"
    text = str(value)
    plain = repr(text)
    return f'"{plain[1:-1]}"' if plain.startswith("'") and '"' not in text else plain


def _altitude(instance: _Instance) -> tuple[str, int]:
    assert instance.altitude is not None
    try:
        return canonical(instance.altitude[0]), instance.altitude[1]
    except AltitudeError:
        return instance.altitude        # refused as a manifest's would be


def _outside(altitude: str, group: str) -> bool:
    try:
        check_group(altitude, group)
    except AltitudeError:
        return True
    return False
