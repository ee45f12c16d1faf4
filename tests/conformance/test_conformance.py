"""The table of conformance against the documents, the tests and the code.

What a row says is shown by the tests it names; here is only that the table is whole, that those tests exist and run in
`make test`, and that docs/conformance.md is what the table makes.
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib

import pytest
import table
from table import FIELDS, HERE, LANES, ROOT, SECTIONS, STATES, Part, Row

from stackfs import api, filterlib, fltkernel
from stackfs.hresult import from_status

SEMANTICS = ROOT / "docs" / "semantics.md"
NAMES: dict[str, dict[str, list[str]]] = tomllib.loads((HERE / "names.toml").read_text())

pytestmark = pytest.mark.skipif(not SEMANTICS.exists(), reason="needs the source tree")

each_part = pytest.mark.parametrize("part", table.parts(), ids=lambda part: part.path.stem)


@functools.cache
def runs(file: str) -> dict[str, bool]:
    """The tests that a file has, and whether each runs in `make test`."""
    tree = ast.parse((ROOT / file).read_text(), file)
    everywhere = any("mark.long" in ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign))
    return {
        node.name: not everywhere and not any("mark.long" in ast.unparse(mark) for mark in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def wrong_with(row: Row) -> str:
    """What is wrong with a row; "" if nothing is."""
    if not re.fullmatch(r"[AB]\d+\.\d+", row.rule):
        return "the rule is a number like A3.6"
    if not row.what or row.what.endswith(".") or "\n" in row.what:
        return "what: one line, no full stop at its end"
    if row.state not in STATES:
        return f"state is one of {', '.join(STATES)}"
    if bool(row.why) != (row.state != "done"):
        return "why belongs to differs and impossible, and to them only"
    if not row.lanes or not set(row.lanes) <= LANES:
        return f"lanes are of {', '.join(sorted(LANES))}"
    if not row.tests:
        return "needs a test"
    for test in row.tests:
        file, _, name = test.partition("::")
        if not (ROOT / file).is_file():
            return f"{file} is not there"
        name = name.partition("[")[0]
        if name not in runs(file):
            return f"{test} is not there"
        if not runs(file)[name]:
            return f"{test} does not run in make test"
    return ""


@each_part
def test_every_row_is_well_formed_and_its_tests_exist(part: Part) -> None:
    wrong = [f"{row.rule} ({row.what}): {words}" for row in part.rows if (words := wrong_with(row))]
    assert not wrong, "\n".join(wrong)
    with part.path.open("rb") as file:
        data = tomllib.load(file)
    assert set(data) == {"title", "row"}
    assert all(set(row) <= FIELDS for row in data["row"])
    whats = [row.what for row in part.rows]
    assert len(set(whats)) == len(whats), "two rows say the same"


def rules() -> dict[str, list[str]]:
    """The numbers of the rules of docs/semantics.md, by section."""
    found = {}
    for part in re.split(r"^## ", SEMANTICS.read_text(), flags=re.MULTILINE)[1:]:
        section = part.split(" ", 1)[0]
        found[section] = [f"{section}.{number}" for number in re.findall(r"^(\d+)\. ", part, re.MULTILINE)]
    return found


@each_part
def test_rows_are_of_rules_that_exist(part: Part) -> None:
    there = {rule for numbers in rules().values() for rule in numbers}
    assert [row.rule for row in part.rows if row.rule not in there] == []
    section = part.path.stem.upper()
    if section in SECTIONS:
        numbers = [row.number for row in part.rows]
        assert numbers == sorted(numbers), "rows stand in the order of their rules"
    if section in rules():
        also = {"A6", "A8"} if section == "B5" else set()
        assert {row.rule.partition(".")[0] for row in part.rows} <= {section} | also


def whole() -> list[str]:
    """The sections that have to be whole."""
    return [section for section in SECTIONS if section not in NAMES["open"]["sections"]]


def test_every_rule_has_a_row() -> None:
    covered = {row.rule for part in table.parts() for row in part.rows}
    assert [rule for section in whole() for rule in rules().get(section, []) if rule not in covered] == []


def test_every_name_has_a_row() -> None:
    """Each routine, status, flag and structure that the documentation of the Filter Manager has for these rules."""
    covered = {name for part in table.parts() for row in part.rows for name in row.names}
    listed = {name for section in whole() for names in NAMES[section].values() for name in names}
    assert sorted(listed - covered - set(NAMES["open"]["names"])) == []
    assert [name for name in NAMES["open"]["names"] if name in covered] == [], "has a row, and is listed as open"


@each_part
def test_every_name_can_be_imported(part: Part) -> None:
    """A name of the DDI that a row covers is one of fltkernel's or filterlib's."""
    there = {*vars(fltkernel), *vars(filterlib), *vars(api)}
    listed = {name for section in SECTIONS for names in NAMES[section].values() for name in names}
    fields = {name for section in SECTIONS for name in NAMES[section].get("fields", [])}
    missing = [name for row in part.rows for name in row.names if name not in there and name not in fields]
    assert missing == []
    assert [name for row in part.rows for name in row.names if name not in listed] == [], "names that no section lists"


@each_part
def test_values_of_statuses(part: Part) -> None:
    for row in part.rows:
        if row.value is not None:
            (name,) = row.names
            assert getattr(fltkernel, name) & 0xFFFFFFFF == row.value, name
            if row.hresult is not None:
                assert from_status(getattr(fltkernel, name)) & 0xFFFFFFFF == row.hresult, name


def test_the_document_is_what_the_table_makes() -> None:
    there = table.DOCUMENT.read_text() if table.DOCUMENT.exists() else ""
    assert there == table.document(), "python tests/conformance/table.py writes it"
