"""Volume TOMLs: the schema, and that whatever is wrong is refused with its line and what to write instead."""

from __future__ import annotations

import os
import pathlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackfs.errors import ExitCode, TrustError, UsageError
from stackfs.volume_toml import Path, VolumeToml, line_numbers, parse, read

VOLUME = '[volume]\nname = "demo"\n'


def parsed(text: str) -> VolumeToml:
    return parse(text.encode(), "/volumes/demo.toml")


def refused(text: str, line: int, *parts: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(text)
    message = caught.value.message
    assert caught.value.exit_code is ExitCode.USAGE
    assert message.startswith(f"/volumes/demo.toml:{line}: "), message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_everything_a_volume_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    toml = parsed(
        """
[volume]
name = "demo"
source = "backing"
mountpoint = "~/drive"
filterdir = ["filters", "/srv/filters"]
options = ["cache=strict,ro", 'audit.note=a\\,b']

[[instance]]
filter = "audit"
name = "Audit Top"
altitude = "0385100.50"
attach = "manual"
options = { full = "refuse", limit = 5 }

[[instance]]
filter = "passthrough"
[instance.options]
loud = true
"""
    )
    assert (toml.name, toml.source, toml.mountpoint) == ("demo", "/volumes/backing", "/home/someone/drive")
    assert toml.filter_dirs == ("/volumes/filters", "/srv/filters")
    assert toml.options == (("cache=strict,ro", 7), ("audit.note=a\\,b", 7))
    audit, passthrough = toml.instances
    assert (audit.filter, audit.name, audit.altitude, audit.attach) == ("audit", "Audit Top", "385100.5", "manual")
    assert audit.options == {"full": "refuse", "limit": 5}
    assert audit.lines == {
        "": 9,
        "filter": 10,
        "name": 11,
        "altitude": 12,
        "attach": 13,
        "options": 14,
        "options.full": 14,
        "options.limit": 14,
    }
    assert (passthrough.name, passthrough.altitude, passthrough.attach) == (None, None, "automatic")
    assert passthrough.options == {"loud": True}
    assert passthrough.lines["options.loud"] == 19


def test_the_least(tmp_path: pathlib.Path) -> None:
    toml = parsed(VOLUME)
    assert (toml.source, toml.mountpoint, toml.filter_dirs, toml.options, toml.instances) == (None, None, (), (), ())


def test_options_as_a_table() -> None:
    toml = parsed(
        VOLUME + "[volume.options]\n"
        'cache = "strict"\nallow_other = true\nro = true\nexec = false\nverifier = false\nmax_write = 65536\n'
        'fsname = "a,b\\\\c"\naudit.full = "refuse"\naudit.loud = false\n"a.b".c = 1\n'
    )
    assert toml.options == (
        ("cache=strict", 4),
        ("allow_other", 5),
        ("ro", 6),
        ("noexec", 7),
        ("max_write=65536", 9),
        ("fsname=a\\,b\\\\c", 10),
        ("audit.full=refuse", 11),
        ("audit.loud=no", 11),
        ("a.b.c=1", 13),
    )


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("", 1, ["a [volume] table is needed"]),
        ("volume = 5\n", 1, ["a [volume] table is needed"]),
        ("\n[volume]\n", 2, ["name is needed", 'name = "..."']),
        (VOLUME + "\n[volmue]\n", 4, ["unknown key 'volmue'", "did you mean 'volume'"]),
        (VOLUME + 'sauce = "x"\n', 3, ["unknown key 'sauce'", "did you mean 'source'"]),
        (VOLUME + "quux = 1\n", 3, ["unknown key 'quux'", "remove it", "name, source, mountpoint"]),
        ("[volume]\nname = 5\n", 2, ["name must be a string, not an integer", 'name = "5"']),
        ('[volume]\nname = ""\n', 2, ["cannot be a volume's name"]),
        ('[volume]\nname = "a/b"\n', 2, ["cannot be a volume's name"]),
        ('[volume]\nname = "a\\nb"\n', 2, ["cannot be a volume's name"]),
        (VOLUME + 'source = ["x"]\n', 3, ["source must be a string, not an array"]),
        (VOLUME + "mountpoint = 1979-05-27\n", 3, ["mountpoint must be a string, not a date or time"]),
        (VOLUME + 'source = ""\n', 3, ["is not a path"]),
        (VOLUME + 'filterdir = "x"\n', 3, ["must be a list of strings, not a string", 'filterdir = ["..."]']),
        (VOLUME + 'filterdir = [\n  "a",\n  5,\n]\n', 5, ["must be a list of strings, not of an integer"]),
        (VOLUME + "options = 5\n", 3, ["a list of strings or a table, not an integer"]),
        (VOLUME + 'options = [\n# one\n"ro",\ntrue]\n', 6, ["not of a boolean", "cache=strict"]),
        (VOLUME + "[volume.options]\ncache = [1]\n", 4, ["option cache must be", "not an array"]),
        (VOLUME + "options.audit.full = [1]\n", 3, ["option audit.full must be", "not an array"]),
        (VOLUME + "[instance]\nfilter = 'x'\n", 3, ["[[instance]], with two brackets"]),
        ("instance = [1]\n" + VOLUME, 1, ["[[instance]], with two brackets"]),
        (VOLUME + "[[instance]]\n", 3, ["filter is needed"]),
        (VOLUME + "[[instance]]\nfilter = 'x'\n\n[[instance]]\nname = 'y'\n", 6, ["filter is needed"]),
        (VOLUME + "[[instance]]\nfilter = 'a b'\n", 4, ["not a filter's name"]),
        (VOLUME + "[[instance]]\nfilter = 'x'\naltitude = 385100\n", 5, ["must be a string", 'altitude = "385100"']),
        (VOLUME + "[[instance]]\nfilter = 'x'\naltitude = 385.5\n", 5, ["must be a string", 'altitude = "385.5"']),
        (VOLUME + "[[instance]]\nfilter = 'x'\naltitude = true\n", 5, ["must be a string, not a boolean"]),
        (VOLUME + "[[instance]]\nfilter = 'x'\naltitude = '1e5'\n", 5, ["is not an altitude"]),
        (VOLUME + "[[instance]]\nfilter = 'x'\nname = 'a/b'\n", 5, ["not an instance's name"]),
        (VOLUME + "[[instance]]\nfilter = 'x'\nattach = 'never'\n", 5, ['attach = "automatic" or attach = "manual"']),
        (VOLUME + "[[instance]]\nfilter = 'x'\noptions = 5\n", 5, ["options must be a table", "{key = value}"]),
        (VOLUME + "[[instance]]\nfilter = 'x'\nalitude = '1'\n", 5, ["did you mean 'altitude'"]),
        (
            VOLUME + "[[instance]]\nfilter = 'x'\nname = 'n'\n[[instance]]\nfilter = 'y'\nname = 'n'\n",
            8,
            ["name 'n' is taken in line 5", "give one of the two another"],
        ),
        (
            VOLUME + "[[instance]]\nfilter = 'x'\naltitude = '5.10'\n[[instance]]\nfilter = 'x'\naltitude = '05.1'\n",
            8,
            ["altitude 5.1 is taken in line 5", '"5.15"'],
        ),
    ],
)
def test_what_is_refused(text: str, line: int, parts: list[str]) -> None:
    refused(text, line, *parts)


def test_what_is_no_toml() -> None:
    with pytest.raises(UsageError, match=r"not valid TOML: .*line 2"):
        parsed("[volume]\nname = \n")
    with pytest.raises(UsageError, match=r"^/volumes/demo\.toml:3: not UTF-8"):
        parse(b"[volume]\n# x\nname = '\xff'\n", "/volumes/demo.toml")
    with pytest.raises(UsageError, match="not valid TOML"):
        parsed("a = " + "[" * 100000)


def test_lines_of_every_kind_of_value() -> None:
    text = (
        "# comment with [brackets] = and \"quotes'\r\n"
        "top = 1 # more\r\n"
        '"quoted key".\'other\' = """\r\n'
        '[not] = "a table" \\""" still\r\n'
        '""""\r\n'
        "multi = '''\r\n"
        "a ''\r\n"
        "'''''\r\n"
        "list = [ # comment ]\r\n"
        "  1,\r\n"
        "  [2, 3,\r\n"
        "   4],\r\n"
        '  {a = "}", b = [\r\n'
        "    5 ]},\r\n"
        "  1979-05-27 07:32:00, ]\r\n"
        '[ table . "dotted.key" ] # end\r\n'
        "x = {}\r\n"
        "a.b.c = 'd'\r\n"
        "[[array]]\r\n"
        "y = -inf\r\n"
        "[array.sub]\r\n"
        "z = 0x10\r\n"
        "[[array.inner]]\r\n"
        "[[array]]\r\n"
        "y = []\r\n"
        "[[array.inner]]\r\n"
        "w = ''"
    )
    tomllib.loads(text)
    lines = line_numbers(text)
    expected: dict[Path, int] = {
        ("top",): 2,
        ("quoted key",): 3,
        ("quoted key", "other"): 3,
        ("multi",): 6,
        ("list",): 9,
        ("list", 0): 10,
        ("list", 1): 11,
        ("list", 1, 0): 11,
        ("list", 1, 1): 11,
        ("list", 1, 2): 12,
        ("list", 2): 13,
        ("list", 2, "a"): 13,
        ("list", 2, "b"): 13,
        ("list", 2, "b", 0): 14,
        ("list", 3): 15,
        ("table", "dotted.key"): 16,
        ("table", "dotted.key", "x"): 17,
        ("table", "dotted.key", "a"): 18,
        ("table", "dotted.key", "a", "b"): 18,
        ("table", "dotted.key", "a", "b", "c"): 18,
        ("array",): 19,
        ("array", 0): 19,
        ("array", 0, "y"): 20,
        ("array", 0, "sub"): 21,
        ("array", 0, "sub", "z"): 22,
        ("array", 0, "inner"): 23,
        ("array", 0, "inner", 0): 23,
        ("array", 1): 24,
        ("array", 1, "y"): 25,
        ("array", 1, "inner"): 26,
        ("array", 1, "inner", 0): 26,
        ("array", 1, "inner", 0, "w"): 27,
    }
    assert lines == expected


def paths(value: object, path: Path = ()) -> set[Path]:
    """Every path of a parsed document."""
    found = {path} if path else set()
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        found |= paths(inner, (*path, step))
    return found


KEYS = st.text("ab.'\"\\#[] =\n\u00e9", max_size=4)
VALUES = st.recursive(
    st.integers() | st.booleans() | st.text("a\"'\\\n#[]{},=", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES), max_size=3))
def test_every_value_of_any_document_has_its_line(
    document: dict[str, object], tables: dict[str, dict[str, object]]
) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    def written(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return quoted(value)
        if isinstance(value, list):
            return "[\n" + "".join(f"{written(each)},\n" for each in value) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{quoted(key)} = {written(each)}" for key, each in value.items()) + "}"
        return str(value)

    text, starts = "", {}
    for key, value in document.items():
        starts[key] = text.count("\n") + 1
        text += f"{quoted(key)} = {written(value)}\n"
    for name, table in tables.items():
        if name not in document:
            text += f"[{quoted(name)}]\n" + "".join(f"{quoted(key)}={written(each)}\n" for key, each in table.items())
    lines = line_numbers(text)
    assert set(lines) == paths(tomllib.loads(text))
    assert {key: lines[(key,)] for key in starts} == starts


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files away with chown")
def test_a_toml_that_others_can_write(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text(VOLUME)
    file.chmod(0o644)
    assert read(file).path == str(file)
    file.chmod(0o666)
    with pytest.raises(TrustError, match=r"demo\.toml can be written by everybody"):
        read(file)


@pytest.mark.parametrize(
    "file", sorted((pathlib.Path(__file__).parent.parent / "mountpoints").glob("*.toml")), ids=lambda file: file.name
)
def test_shipped_volumes(file: pathlib.Path) -> None:
    assert parse(file.read_bytes(), str(file)).name == file.stem


def test_the_readmes_example_is_valid() -> None:
    readme = (pathlib.Path(__file__).parent.parent / "mountpoints" / "README.md").read_text()
    example = readme.split("```toml\n")[1].split("```")[0]
    toml = parsed(example)
    assert [each.filter for each in toml.instances] == ["audit", "passthrough", "readonly"]


def test_further_volumes() -> None:
    toml = parsed(
        VOLUME + '[[further_volume]]\nname = "two"\nsource = "second"\n'
        '[[further_volume]]\nname = "three"\nsource = "/srv/third"\n'
        '[[instance]]\nfilter = "a"\naltitude = "1"\n'
        '[[instance]]\nfilter = "a"\naltitude = "1"\nvolume = "two"\n'
    )
    assert [(each.name, each.source) for each in toml.further_volumes] == [
        ("two", "/volumes/second"), ("three", "/srv/third")]  # fmt: skip
    assert [each.volume for each in toml.instances] == [None, "two"]


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ('[further_volume]\nname = "two"\n', 3, ["two brackets"]),
        ("[[further_volume]]\n", 3, ["name is needed", "[[further_volume]]"]),
        ('[[further_volume]]\nname = "two"\n', 3, ["source is needed"]),
        ('[[further_volume]]\nname = "demo"\nsource = "x"\n', 4, ["'demo' is here already"]),
        ('[[further_volume]]\nname = "a/b"\nsource = "x"\n', 4, ["cannot be a volume's name"]),
        ('[[further_volume]]\nname = "two"\nsource = "x"\nmountpoint = "y"\n', 6, ["unknown key 'mountpoint'"]),
        ('[[instance]]\nfilter = "a"\nvolume = "two"\n', 5, ["no volume 'two' here"]),
        ('[[instance]]\nfilter = "a"\nvolume = 2\n', 5, ["volume must be a string"]),
    ],
)
def test_further_volumes_that_are_wrong(text: str, line: int, parts: list[str]) -> None:
    refused(VOLUME + text, line, *parts)
