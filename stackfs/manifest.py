"""A filter's manifest: what is known of a drop-in before any of its code runs.

The manifest is the module-level assignment ``MANIFEST = {...}`` of a drop-in's file (of a package: of its
``__init__.py``), and a static literal: it is found by parsing the source and evaluated by ``ast.literal_eval``, never
by importing. It plays the part of a minifilter's INF file (docs/semantics.md, A3): name, altitude, group, instances,
start type, and the table of options.

    MANIFEST = {
        "name": "readonly",                       # [A-Za-z0-9_.-], 1 to 64 of them; unique. Needed
        "altitude": "265050",                     # the default instance's. Needed
        "group": "FSFilter Content Screener",     # a load order group. Needed
        "filter": "ReadOnly",                     # the class in this module; default: its only subclass of api.Filter
        "description": "Refuses every change.",
        "altitude_reason": "...",                 # needed when an altitude lies outside the group's range
        "default_instance": "ReadOnly",           # its name; default: the filter's name
        "instances": [{"name": "X Top", "altitude": "...", "attach": "automatic"}],   # further ones
        "attach": "automatic",                    # automatic: loading attaches it to the volumes; manual: a command
                                                  # does; automatic-only: no command may; never: neither (A3.13)
        "start": "demand",                        # boot, system, auto, demand, or disabled (then a load is refused)
        "on_error": "fail",                       # what an exception in a callback does to the operation: fail or pass
        "answers": "volatile",                    # cacheable: its answers follow from the backing file alone
        "bypass": "blocked",                      # supported: opens may be bypassed though it registers READ or WRITE
        "attach_with_bypassed": "allow",          # refuse: it does not attach while opens are bypassed, unseen
        "options": {"key": {"type": "size", "default": "64M", "min": "1M", "doc": "What it is."}},
        "commands": "module:attribute",           # a command group, imported only when it is used
        "command": "NAME",                        # what the group is called; default: the filter's name
        "prepare": "module:attribute",            # called by whoever mounts, at his terminal, before the daemon begins
        "abi": 1,
    }

Every error is a ManifestError: file, line, field, reason. Everything here is pure.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn, TypeVar

from stackfs.altitude import AltitudeError, canonical, check_group
from stackfs.errors import FilterImageError, UsageError

FILTER_ABI: Final = 1
"""The interface of stackfs/api.py, counted up when a filter written for the old one would no longer work."""

NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
OPTION_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
INSTANCE_NAME: Final = re.compile(r"[^\x00-\x1f\x7f/]{1,255}")
_CLASS: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_PLACE: Final = re.compile(r"(?:[A-Za-z_][\w.]*)?:[A-Za-z_]\w*", re.ASCII)
_SIZE: Final = re.compile(r"([0-9]+)\s*(?:([KMGTP])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)

START_TYPES: Final = ("boot", "system", "auto", "demand", "disabled")
OPTION_TYPES: Final = ("str", "int", "bool", "float", "path", "choice", "size")
_TRUE: Final = ("1", "yes", "true", "on")
_FALSE: Final = ("0", "no", "false", "off")
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "start": START_TYPES,
    "on_error": ("fail", "pass"),
    "answers": ("cacheable", "volatile"),
    "bypass": ("supported", "blocked"),
    "attach_with_bypassed": ("allow", "refuse"),
    "attach": ("automatic", "manual", "automatic-only", "never"),
}

FLTFL_INSTANCE_SUPPRESS_AUTOMATIC: Final = 0x1
FLTFL_INSTANCE_SUPPRESS_MANUAL: Final = 0x2
ATTACH_OF_FLAGS: Final = dict(enumerate(_CHOICES["attach"]))
"""A manifest's words for what an INF says by the Flags of an instance: the two bits above."""

Number = TypeVar("Number", int, float)

Value = str | int | float | bool | None
"""An option's value, validated: bytes for a size, an absolute path for a path; None: not given, and no default."""


class ManifestError(FilterImageError):
    """A drop-in whose manifest is wrong: file, line, field, reason."""

    def __init__(self, file: str, line: int, field: str, reason: str) -> None:
        super().__init__(f"{file}:{line}: {field}: {reason}")
        self.file = file
        self.line = line
        self.field = field
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class OptionSpec:
    """One row of a filter's option table."""

    name: str
    type: str
    default: Value = None
    minimum: int | float | None = None
    maximum: int | float | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    doc: str = ""

    def validate(self, value: object, base: str | None = None) -> Value:
        """The typed value of what a command line (a string) or a TOML (a string or of its type) gives.

        base: the directory that a relative path is relative to (default: the current one). ValueError: why not.
        """
        match self.type:
            case "str":
                if not isinstance(value, str):
                    raise ValueError(f"{value!r} is not a string")
                return value
            case "choice":
                if value not in self.choices:
                    raise ValueError(f"{value!r} is not one of {', '.join(self.choices)}")
                return str(value)
            case "path":
                if not isinstance(value, str) or not value or "\0" in value:
                    raise ValueError(f"{value!r} is not a path")
                return os.path.normpath(os.path.join(base or os.getcwd(), os.path.expanduser(value)))
            case "bool":
                return _boolean(value)
            case "int":
                return self._bounded(_integer(value), str)
            case "float":
                return self._bounded(_float(value), str)
            case _:
                return self._bounded(parse_size(value), format_size)

    def _bounded(self, number: Number, shown: Callable[[int | float], str]) -> Number:
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"{shown(number)} is less than {shown(self.minimum)}, the least allowed")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"{shown(number)} is more than {shown(self.maximum)}, the most allowed")
        return number


@dataclasses.dataclass(frozen=True, slots=True)
class InstanceDefinition:
    """An instance that the manifest offers. attach: as in the manifest."""

    name: str
    altitude: str
    attach: str = "automatic"

    @property
    def is_automatic(self) -> bool:
        """Loading the filter, or mounting a volume, attaches it."""
        return self.attach in ("automatic", "automatic-only")

    @property
    def is_manual(self) -> bool:
        """A command may attach it."""
        return self.attach in ("automatic", "manual")


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """A validated manifest. Altitudes are canonical; ``file`` is where it was read from."""

    name: str
    altitude: str
    group: str
    filter: str
    """The class's name; "": the only one of its module."""
    file: str
    description: str = ""
    altitude_reason: str | None = None
    default_instance: str = ""
    instances: tuple[InstanceDefinition, ...] = ()
    attach: str = "automatic"
    start: str = "demand"
    on_error: str = "fail"
    answers: str = "volatile"
    bypass: str = "blocked"
    attach_with_bypassed: str = "allow"
    options: Mapping[str, OptionSpec] = dataclasses.field(default_factory=dict)
    commands: str | None = None
    command: str = ""
    """What `stackfs` calls the group of `commands`."""
    prepare: str | None = None
    abi: int = FILTER_ABI

    @property
    def all_instances(self) -> tuple[InstanceDefinition, ...]:
        """Every instance the manifest offers, the default one first."""
        return (InstanceDefinition(self.default_instance, self.altitude, self.attach), *self.instances)

    def instance(self, name: str) -> InstanceDefinition | None:
        """The offered instance of that name."""
        return next((each for each in self.all_instances if each.name == name), None)

    def check_altitude(self, altitude: str) -> str:
        """The canonical form of an altitude asked for one of this filter's instances. AltitudeError: why not."""
        check_group(altitude, self.group, self.altitude_reason)
        return canonical(altitude)

    def validate_options(self, given: Mapping[str, object], base: str | None = None) -> dict[str, Value]:
        """Typed values for every option of the table: those given, checked, and the defaults.

        base: what a relative path is relative to. UsageError: unknown, out of bounds, of a wrong type, or missing.
        """
        values: dict[str, Value] = {key: self.validate_option(key, value, base) for key, value in given.items()}
        for key, spec in self.options.items():
            if key in values:
                continue
            if spec.required:
                about = f": {spec.doc.rstrip('.')}" if spec.doc else ""
                raise UsageError(f"filter {self.name!r} needs -o {self.name}.{key}={spec.type.upper()}{about}")
            values[key] = spec.default
        return values

    def validate_option(self, key: str, value: object, base: str | None = None) -> Value:
        """The typed value of one option. UsageError: as validate_options."""
        if key not in self.options:
            raise UsageError(f"{self.name}.{key}: filter {self.name!r} has no such option{self._hint(key)}")
        try:
            return self.options[key].validate(value, base)
        except ValueError as error:
            raise UsageError(f"{self.name}.{key}: {error}") from None

    def _hint(self, key: str) -> str:
        near = difflib.get_close_matches(key, self.options, n=1)
        if near:
            return f"; did you mean {near[0]!r}?"
        return f"; it has {', '.join(self.options)}" if self.options else ""


def parse_size(value: object) -> int:
    """Bytes of an integer or of a string such as "64M" (K, M, G, T, P: powers of 1024). ValueError: not a size."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"{value} is not a size")
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size, such as 4096, 64K or 2G")
    return int(match[1]) << (10 * (" KMGTP".index(match[2].upper()) if match[2] else 0))


def format_size(size: int | float) -> str:
    """The shortest exact spelling of a size: 67108864 is "64M"."""
    number, unit = int(size), 0
    while number and number % 1024 == 0 and unit < 5:
        number, unit = number // 1024, unit + 1
    return f"{number}{' KMGTP'[unit].strip()}"


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError(f"{value!r} is neither yes nor no")


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value, re.ASCII):
        return int(value)
    raise ValueError(f"{value!r} is not a whole number")


def _float(value: object) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            pass
        else:
            if math.isfinite(number):
                return number
    raise ValueError(f"{value!r} is not a number")


def parse_manifest(source: bytes, file: str) -> Manifest | None:
    """The manifest in a drop-in's source; None if it has no MANIFEST. Nothing is executed.

    FilterImageError: the file names a MANIFEST and cannot be parsed. ManifestError: the manifest is wrong.
    """
    if b"MANIFEST" not in source:
        return None
    try:
        module = ast.parse(source, filename=file)
    except SyntaxError as error:
        raise FilterImageError(f"{file}:{error.lineno or 1}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise FilterImageError(f"{file}: cannot be parsed: {error}") from None
    found: list[tuple[int, ast.expr]] = []
    for node in module.body:
        match node:
            case ast.Assign(targets=targets, value=value) if any(_is_manifest(target) for target in targets):
                found.append((node.lineno, value))
            case ast.AnnAssign(target=target, value=ast.expr() as value) if _is_manifest(target):
                found.append((node.lineno, value))
    if not found:
        return None
    if len(found) > 1:
        raise ManifestError(file, found[1][0], "MANIFEST", f"assigned again (first in line {found[0][0]})")
    return _Reader(file, found[0][1]).read()


def _is_manifest(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == "MANIFEST"


def _is_literal(node: ast.expr) -> bool:
    return isinstance(node, (ast.Constant, ast.Dict, ast.List, ast.Tuple, ast.Set, ast.UnaryOp))


class _Reader:
    """One manifest being read: the literal's values, and its syntax tree for the lines."""

    def __init__(self, file: str, tree: ast.expr) -> None:
        self.file = file
        self.tree = tree
        try:
            self.data: object = ast.literal_eval(tree)
        except (ValueError, TypeError, RecursionError, MemoryError):
            culprits = (node for node in ast.walk(tree) if isinstance(node, ast.expr) and not _is_literal(node))
            line = next((node.lineno for node in culprits), tree.lineno)
            raise ManifestError(
                file, line, "MANIFEST", "must be a static literal: strings, numbers, True, False, None, lists, dicts"
            ) from None

    def refuse(self, path: Sequence[str | int], reason: str) -> NoReturn:
        """A ManifestError for the value that ``path`` leads to, with its line, or its dict's if it is missing."""
        node, shown = self.tree, "MANIFEST" if not path else ""
        for step in path:
            shown += f"[{step}]" if isinstance(step, int) else f".{step}" if shown else step
            if isinstance(node, ast.Dict):
                keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
                node = node.values[keys.index(step)] if step in keys else node
            elif isinstance(node, (ast.List, ast.Tuple)) and isinstance(step, int):
                node = node.elts[step]
        raise ManifestError(self.file, node.lineno, shown, reason)

    def table(self, value: object, path: Sequence[str | int], keys: Sequence[str]) -> dict[str, object]:
        if not isinstance(value, dict):
            self.refuse(path, "must be a dict")
        for key in value:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(keys)}"
                self.refuse((*path, str(key)), f"unknown field; {hint}")
        return value

    def string(self, table: dict[str, object], key: str, default: str | None, path: Sequence[str | int] = ()) -> str:
        value = table.get(key, default)
        if value is None:
            self.refuse((*path, key), "is needed")
        if not isinstance(value, str) or not value.isprintable():
            self.refuse((*path, key), f"must be a string of one line, not {value!r}")
        if key in _CHOICES and value not in _CHOICES[key]:
            self.refuse((*path, key), f"{value!r} is not one of {', '.join(_CHOICES[key])}")
        return value

    def matching(
        self,
        table: dict[str, object],
        key: str,
        pattern: re.Pattern[str],
        what: str,
        default: str | None = None,
        path: Sequence[str | int] = (),
    ) -> str:
        value = self.string(table, key, default, path)
        if not pattern.fullmatch(value):
            self.refuse((*path, key), f"{value!r} is not {what}")
        return value

    def altitude(self, table: dict[str, object], group: str, reason: str | None, path: Sequence[str | int] = ()) -> str:
        value = table.get("altitude")
        if isinstance(value, (int, float)):
            self.refuse((*path, "altitude"), f'must be a string: "{value}"')
        text = self.string(table, "altitude", None, path)
        try:
            check_group(text, group, reason)
            return canonical(text)
        except AltitudeError as error:
            self.refuse((*path, "altitude"), str(error))

    def read(self) -> Manifest:
        fields = [field.name for field in dataclasses.fields(Manifest) if field.name != "file"]
        data = self.table(self.data, (), fields)
        name = self.matching(data, "name", NAME, "a filter's name: 1 to 64 of A-Z a-z 0-9 _ . -")
        if name == "raw" or name.startswith(("x-", "X-", ".", "-")):
            self.refuse(("name",), f"{name!r} cannot be a filter's name: -o gives it another meaning")
        group = self.string(data, "group", None)
        reason = self.string(data, "altitude_reason", "") or None
        try:
            check_group("0", group, "only the name is checked here")
        except AltitudeError as error:
            self.refuse(("group",), str(error))
        abi = data.get("abi", FILTER_ABI)
        if abi != FILTER_ABI or isinstance(abi, bool):
            self.refuse(("abi",), f"{abi!r} is not the interface of this release, {FILTER_ABI}")
        places = {
            key: self.matching(data, key, _PLACE, 'of the form "module:attribute"')
            for key in ("commands", "prepare")
            if data.get(key) is not None
        }
        manifest = Manifest(
            name=name,
            altitude=self.altitude(data, group, reason),
            group=group,
            filter=self.matching(data, "filter", _CLASS, "the name of a class") if "filter" in data else "",
            file=self.file,
            description=self.string(data, "description", ""),
            altitude_reason=reason,
            default_instance=self.matching(data, "default_instance", INSTANCE_NAME, "an instance's name", name),
            instances=self.instances(data, group, reason),
            attach=self.string(data, "attach", "automatic"),
            start=self.string(data, "start", "demand"),
            on_error=self.string(data, "on_error", "fail"),
            answers=self.string(data, "answers", "volatile"),
            bypass=self.string(data, "bypass", "blocked"),
            attach_with_bypassed=self.string(data, "attach_with_bypassed", "allow"),
            options=self.options(data),
            commands=places.get("commands"),
            command=self.matching(data, "command", NAME, "a command's name: 1 to 64 of A-Z a-z 0-9 _ . -", name),
            prepare=places.get("prepare"),
        )
        self.check_unique(manifest)
        return manifest

    def instances(self, data: dict[str, object], group: str, reason: str | None) -> tuple[InstanceDefinition, ...]:
        given = data.get("instances", [])
        if not isinstance(given, (list, tuple)):
            self.refuse(("instances",), "must be a list of dicts")
        found = []
        for index, each in enumerate(given):
            path = ("instances", index)
            table = self.table(each, path, ("name", "altitude", "attach"))
            found.append(
                InstanceDefinition(
                    self.matching(table, "name", INSTANCE_NAME, "an instance's name", path=path),
                    self.altitude(table, group, reason, path),
                    self.string(table, "attach", "automatic", path),
                )
            )
        return tuple(found)

    def check_unique(self, manifest: Manifest) -> None:
        seen: list[InstanceDefinition] = []
        for index, each in enumerate(manifest.all_instances):
            path: tuple[str | int, ...] = ("instances", index - 1)
            for other in seen:
                if each.name == other.name:
                    self.refuse((*path, "name"), f"instance {each.name!r} is there already")
                if each.altitude == other.altitude:
                    self.refuse((*path, "altitude"), f"{each.altitude} is already instance {other.name!r}'s altitude")
            seen.append(each)

    def options(self, data: dict[str, object]) -> dict[str, OptionSpec]:
        given = data.get("options", {})
        if not isinstance(given, dict):
            self.refuse(("options",), "must be a dict of dicts")
        found: dict[str, OptionSpec] = {}
        for key, each in given.items():
            if not isinstance(key, str) or not OPTION_KEY.fullmatch(key):
                self.refuse(("options", str(key)), "an option's name is a letter, then letters, digits, _ and -")
            found[key] = self.option(key, each)
        return found

    def option(self, key: str, given: object) -> OptionSpec:
        path = ("options", key)
        table = self.table(given, path, ("type", "default", "min", "max", "choices", "required", "doc"))
        kind = self.string(table, "type", None, path)
        if kind not in OPTION_TYPES:
            self.refuse((*path, "type"), f"{kind!r} is not one of {', '.join(OPTION_TYPES)}")
        doc = table.get("doc", "")
        if not isinstance(doc, str):
            self.refuse((*path, "doc"), "must be a string")
        required = table.get("required", False)
        if not isinstance(required, bool):
            self.refuse((*path, "required"), "must be True or False")
        choices, doc = self.choices(table, kind, path), " ".join(doc.split())
        bare = OptionSpec(key, kind, choices=choices, required=required, doc=doc)
        spec = dataclasses.replace(bare, minimum=self.bound(table, "min", bare), maximum=self.bound(table, "max", bare))
        if spec.minimum is not None and spec.maximum is not None and spec.minimum > spec.maximum:
            self.refuse((*path, "max"), "is less than min")
        default = table.get("default")
        if default is None:
            return spec
        if required:
            self.refuse((*path, "default"), "an option that is required has no use for a default")
        if kind == "path" and not (isinstance(default, str) and default.startswith(("/", "~"))):
            self.refuse((*path, "default"), f"{default!r} is not an absolute path (it may begin with ~)")
        try:
            return dataclasses.replace(spec, default=spec.validate(default))
        except ValueError as error:
            self.refuse((*path, "default"), str(error))

    def choices(self, table: dict[str, object], kind: str, path: Sequence[str | int]) -> tuple[str, ...]:
        given = table.get("choices", ())
        if kind != "choice":
            if "choices" in table:
                self.refuse((*path, "choices"), f"an option of type {kind!r} has none")
            return ()
        if not isinstance(given, (list, tuple)) or not given or not all(isinstance(each, str) for each in given):
            self.refuse((*path, "choices"), "must be a list of strings, and not empty")
        return tuple(given)

    def bound(self, table: dict[str, object], key: str, spec: OptionSpec) -> int | float | None:
        value = table.get(key)
        if value is None:
            return None
        path = ("options", spec.name, key)
        if spec.type not in ("int", "float", "size"):
            self.refuse(path, f"an option of type {spec.type!r} has no bounds")
        try:
            bound = spec.validate(value)
        except ValueError as error:
            self.refuse(path, str(error))
        assert isinstance(bound, (int, float))
        return bound
