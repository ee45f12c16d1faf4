"""Manifests: read as literals without running anything, and every wrong one refused with file, line and field."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from stackfs.errors import ExitCode, FilterImageError, UsageError
from stackfs.manifest import (
    InstanceDefinition,
    Manifest,
    ManifestError,
    OptionSpec,
    format_size,
    parse_manifest,
    parse_size,
)

GOOD: dict[str, Any] = {
    "name": "sample",
    "altitude": "0265050.0",
    "group": "FSFilter Content Screener",
    "filter": "Sample",
}


def parse(text: str) -> Manifest | None:
    return parse_manifest(text.encode(), "/filters/sample.py")


def make(**fields: object) -> Manifest:
    found = parse(f"MANIFEST = {GOOD | fields!r}\n")
    assert found is not None
    return found


def refused(**fields: object) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        make(**fields)
    assert caught.value.message.startswith(f"/filters/sample.py:{caught.value.line}: {caught.value.field}: ")
    assert "\n" not in caught.value.message
    return caught.value


def with_option(**row: object) -> OptionSpec:
    return make(options={"key": row}).options["key"]


def test_the_least_a_manifest_needs() -> None:
    manifest = make()
    assert parse(f"MANIFEST = { {k: v for k, v in GOOD.items() if k != 'filter'}!r}\n").filter == ""  # type: ignore[union-attr]
    assert manifest.altitude == "265050"
    assert (manifest.start, manifest.on_error, manifest.answers, manifest.attach) == (
        "demand",
        "fail",
        "volatile",
        "automatic",
    )
    assert manifest.all_instances == (InstanceDefinition("sample", "265050", "automatic"),)
    assert manifest.options == {}
    assert manifest.commands is None and manifest.prepare is None


def test_everything_a_manifest_can_say() -> None:
    manifest = make(
        description="What it does.",
        default_instance="Sample Bottom",
        instances=[{"name": "Sample Top", "altitude": "265050.5", "attach": "manual"}],
        attach="manual",
        start="auto",
        on_error="pass",
        answers="cacheable",
        commands="cli:app",
        abi=1,
        options={"limit": {"type": "size", "default": "64M", "min": "1M", "max": "1G", "doc": "Bytes\n   kept."}},
    )
    assert manifest.instance("Sample Top") == InstanceDefinition("Sample Top", "265050.5", "manual")
    assert manifest.instance("Sample Bottom") == InstanceDefinition("Sample Bottom", "265050", "manual")
    assert manifest.instance("sample") is None
    limit = manifest.options["limit"]
    assert (limit.default, limit.minimum, limit.maximum, limit.doc) == (64 << 20, 1 << 20, 1 << 30, "Bytes kept.")


def test_nothing_is_run(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "trace"
    assert parse(f"open({str(trace)!r}, 'w')\nMANIFEST = {GOOD!r}\n1 / 0\n") is not None
    with pytest.raises(ManifestError):
        parse(f"MANIFEST = {{'name': open({str(trace)!r}, 'w').name}}\n")
    assert not trace.exists()


def test_annotated_assignment_and_no_assignment() -> None:
    assert parse(f"MANIFEST: dict[str, object] = {GOOD!r}\n") is not None
    assert parse("x = 1\n") is None
    assert parse("# no MANIFEST here\n") is None
    assert parse("def f():\n    MANIFEST = {}\n") is None
    assert parse("this is not Python, and no drop-in either\n") is None


def test_a_file_that_cannot_be_parsed() -> None:
    with pytest.raises(FilterImageError, match=r"^/filters/sample\.py:2: ") as caught:
        parse("MANIFEST = {}\ndef f(:\n")
    assert caught.value.exit_code is ExitCode.REFUSED
    with pytest.raises(FilterImageError, match=r"cannot be parsed|null byte"):
        parse("MANIFEST = '\0'\n")


def test_the_line_is_the_lines() -> None:
    text = 'import os\nMANIFEST = {\n  "name": "a",\n  "altitude": "1",\n  "group": "FSFilter Top",\n  "filter": "F"}\n'
    with pytest.raises(ManifestError, match="outside 400000-409999") as caught:
        parse(text)
    assert (caught.value.line, caught.value.field) == (4, "altitude")
    with pytest.raises(ManifestError, match="static literal") as caught:
        parse('MANIFEST = {\n  "name": "a",\n  "altitude": str(1),\n}\n')
    assert (caught.value.line, caught.value.field) == (3, "MANIFEST")
    with pytest.raises(ManifestError, match=r"assigned again \(first in line 1\)") as caught:
        parse(f"MANIFEST = {GOOD!r}\nMANIFEST = {GOOD!r}\n")
    assert caught.value.line == 2


@pytest.mark.parametrize("key", sorted(set(GOOD) - {"filter"}))
def test_the_needed_fields(key: str) -> None:
    with pytest.raises(ManifestError, match="is needed") as caught:
        parse(f"MANIFEST = { {k: v for k, v in GOOD.items() if k != key}!r}\n")
    assert caught.value.field == key


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"nmae": "x"}, "nmae", "unknown field; did you mean 'name'"),
        ({"quux": "x"}, "quux", "unknown field; the fields are name, "),
        ({"name": 5}, "name", "must be a string"),
        ({"name": ""}, "name", "not a filter's name"),
        ({"name": "a/b"}, "name", "not a filter's name"),
        ({"name": "a" * 65}, "name", "not a filter's name"),
        ({"name": "raw"}, "name", "another meaning"),
        ({"name": "x-y"}, "name", "another meaning"),
        ({"altitude": 265050}, "altitude", 'must be a string: "265050"'),
        ({"altitude": 265050.5}, "altitude", 'must be a string: "265050.5"'),
        ({"altitude": "26505o"}, "altitude", "is not an altitude"),
        ({"altitude": "300"}, "altitude", "outside 260000-269999"),
        ({"altitude": "300", "altitude_reason": " "}, "altitude", "outside 260000-269999"),
        ({"group": "Content Screener"}, "group", "not a load order group"),
        ({"filter": "a.b"}, "filter", "the name of a class"),
        ({"start": "never"}, "start", "not one of boot, system, auto, demand, disabled"),
        ({"on_error": "ignore"}, "on_error", "not one of fail, pass"),
        ({"answers": True}, "answers", "must be a string"),
        ({"attach": "yes"}, "attach", "not one of automatic, manual"),
        ({"default_instance": "a/b"}, "default_instance", "not an instance's name"),
        ({"description": "two\nlines"}, "description", "one line"),
        ({"commands": "cli"}, "commands", "module:attribute"),
        ({"prepare": "ask"}, "prepare", "module:attribute"),
        ({"abi": 2}, "abi", "not the interface of this release"),
        ({"abi": True}, "abi", "not the interface of this release"),
        ({"instances": {}}, "instances", "list of dicts"),
        ({"instances": ["x"]}, "instances[0]", "must be a dict"),
        ({"instances": [{"altitude": "265051"}]}, "instances[0].name", "is needed"),
        ({"instances": [{"name": "x"}]}, "instances[0].altitude", "is needed"),
        ({"instances": [{"name": "x", "altitude": "1"}]}, "instances[0].altitude", "outside"),
        ({"instances": [{"name": "x", "altitude": "265051", "flags": 1}]}, "instances[0].flags", "unknown field"),
        ({"instances": [{"name": "sample", "altitude": "265051"}]}, "instances[0].name", "is there already"),
        ({"instances": [{"name": "x", "altitude": "265050.00"}]}, "instances[0].altitude", "already instance 'sample'"),
        ({"options": []}, "options", "dict of dicts"),
        ({"options": {"a.b": {"type": "int"}}}, "options.a.b", "an option's name"),
        ({"options": {"a": 5}}, "options.a", "must be a dict"),
        ({"options": {"a": {}}}, "options.a.type", "is needed"),
        ({"options": {"a": {"type": "list"}}}, "options.a.type", "not one of str, int"),
        ({"options": {"a": {"type": "int", "defualt": 1}}}, "options.a.defualt", "did you mean 'default'"),
        ({"options": {"a": {"type": "int", "default": "x"}}}, "options.a.default", "not a whole number"),
        ({"options": {"a": {"type": "int", "default": True}}}, "options.a.default", "not a whole number"),
        ({"options": {"a": {"type": "int", "default": 1, "min": 2}}}, "options.a.default", "less than 2"),
        ({"options": {"a": {"type": "int", "min": 3, "max": 2}}}, "options.a.max", "less than min"),
        ({"options": {"a": {"type": "int", "min": "x"}}}, "options.a.min", "not a whole number"),
        ({"options": {"a": {"type": "str", "max": 2}}}, "options.a.max", "has no bounds"),
        ({"options": {"a": {"type": "str", "choices": ["a"]}}}, "options.a.choices", "has none"),
        ({"options": {"a": {"type": "choice"}}}, "options.a.choices", "not empty"),
        ({"options": {"a": {"type": "choice", "choices": ["x"], "default": "y"}}}, "options.a.default", "not one of x"),
        ({"options": {"a": {"type": "str", "required": 1}}}, "options.a.required", "True or False"),
        ({"options": {"a": {"type": "str", "required": True, "default": ""}}}, "options.a.default", "no use"),
        ({"options": {"a": {"type": "path", "default": "log"}}}, "options.a.default", "not an absolute path"),
        ({"options": {"a": {"type": "str", "doc": 1}}}, "options.a.doc", "must be a string"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], field: str, reason: str) -> None:
    error = refused(**fields)
    assert error.field == field
    assert reason in error.reason


def test_not_a_dict() -> None:
    with pytest.raises(ManifestError, match="MANIFEST: must be a dict"):
        parse("MANIFEST = ['name']\n")


def test_an_altitude_outside_with_a_reason() -> None:
    assert make(altitude="300", altitude_reason="must see what all others did").altitude == "300"
    assert make(altitude="300", altitude_reason="so").check_altitude("0400.50") == "400.5"


@pytest.mark.parametrize(
    ("row", "given", "value"),
    [
        ({"type": "str"}, "", ""),
        ({"type": "int"}, "-12", -12),
        ({"type": "int"}, 12, 12),
        ({"type": "int", "min": 0, "max": 9}, "9", 9),
        ({"type": "float"}, "1e-3", 0.001),
        ({"type": "float"}, 2, 2.0),
        ({"type": "bool"}, "Yes", True),
        ({"type": "bool"}, "off", False),
        ({"type": "bool"}, True, True),
        ({"type": "size"}, "64M", 64 << 20),
        ({"type": "size"}, "64 KiB", 64 << 10),
        ({"type": "size"}, "2gb", 2 << 30),
        ({"type": "size"}, "512B", 512),
        ({"type": "size"}, 4096, 4096),
        ({"type": "choice", "choices": ["refuse", "count"]}, "count", "count"),
        ({"type": "path"}, "/a/../b", "/b"),
        ({"type": "path"}, "log", "/base/log"),
    ],
)
def test_values(row: dict[str, Any], given: object, value: object) -> None:
    typed = with_option(**row).validate(given, "/base")
    assert typed == value
    assert type(typed) is type(value)


@pytest.mark.parametrize(
    ("row", "given", "reason"),
    [
        ({"type": "int"}, "1.5", "not a whole number"),
        ({"type": "int"}, True, "not a whole number"),
        ({"type": "int"}, "9" * 5000, "."),
        ({"type": "int", "max": 9}, "10", "10 is more than 9"),
        ({"type": "float"}, "nan", "not a number"),
        ({"type": "float"}, "inf", "not a number"),
        ({"type": "bool"}, "maybe", "neither yes nor no"),
        ({"type": "bool"}, 1, "neither yes nor no"),
        ({"type": "size"}, "-1", "not a size"),
        ({"type": "size"}, -1, "not a size"),
        ({"type": "size"}, "1.5M", "not a size"),
        ({"type": "size", "min": "1M"}, "64K", "64K is less than 1M"),
        ({"type": "choice", "choices": ["a", "b"]}, "c", "not one of a, b"),
        ({"type": "str"}, 5, "not a string"),
        ({"type": "path"}, "", "not a path"),
    ],
)
def test_values_refused(row: dict[str, Any], given: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        with_option(**row).validate(given)


def test_options_are_filled_in_and_checked() -> None:
    manifest = make(
        options={
            "keyfile": {"type": "path", "required": True, "doc": "Where the first key goes."},
            "limit": {"type": "size", "default": "1M"},
            "note": {"type": "str"},
        }
    )
    assert manifest.validate_options({"keyfile": "k"}, "/b") == {"keyfile": "/b/k", "limit": 1 << 20, "note": None}
    with pytest.raises(UsageError, match=r"^filter 'sample' needs -o sample\.keyfile=PATH: Where the first key goes$"):
        manifest.validate_options({})
    with pytest.raises(UsageError, match=r"sample\.limt: .* did you mean 'limit'"):
        manifest.validate_options({"limt": "2M", "keyfile": "k"})
    with pytest.raises(UsageError, match=r"sample\.limit: '2X' is not a size"):
        manifest.validate_options({"limit": "2X", "keyfile": "k"})


def test_a_path_may_be_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert with_option(type="path", default="~/log").default == "/home/someone/log"


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 64 << 20, 3 << 50])
def test_sizes_are_shown_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size
