"""docs/semantics.md against the code: the tables of the document are the tables of the modules."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from stackfs.altitude import GROUPS
from stackfs.cext import callback_data, ntstatus

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "semantics.md"

pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="needs the source tree")


def section(letter: str) -> str:
    """A section's text, by what its heading begins with."""
    parts = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)
    (found,) = [part for part in parts if part.startswith(f"{letter} ")]
    return found


def rows(text: str) -> list[list[str]]:
    """The cells of every line of its tables."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_statuses_and_errnos() -> None:
    documented: dict[str, tuple[int, bool]] = {}
    text = section("A10")
    for name, statuses in [row for row in rows(text[text.index("| errno |") :]) if len(row) == 2][2:]:
        number = 0 if name == "none: success" else getattr(errno, name)
        for status in statuses.split(", "):
            documented["STATUS_" + status.strip("*")] = (number, status.startswith("**"))
    assert documented == {name: (number, back) for _, name, number, back in ntstatus.table()}


def test_filter_manager_statuses() -> None:
    documented = {}
    for row in rows(section("A10")):
        if len(row) == 4 and re.fullmatch("[0-9A-F]{2}", row[0]):
            for number, name in (row[:2], row[2:]):
                documented[name.strip("`")] = 0xC01C0000 | int(number, 16)
    prefix = "STATUS_FLT_"
    known = {
        name.removeprefix(prefix): value
        for value, name, _, _ in ntstatus.table()
        if name.startswith(prefix) and value >= 0x80000000
    }
    assert len(documented) == 30
    assert known.items() <= documented.items()


def test_load_order_groups() -> None:
    documented = {}
    for row in rows(section("B8"))[2:]:
        for name, low, high in (row[:3], row[3:]):
            documented[name] = (int(low), int(high))
    assert documented == {group.name: (group.low, group.high) for group in GROUPS.values()}


@pytest.mark.parametrize("letter, kind", [("A2", "OperationFlags"), ("A4", "DataFlags")])
def test_flags(letter: str, kind: str) -> None:
    documented = {row[0].strip("`"): int(row[1], 0) for row in rows(section(letter)) if row[0].startswith("`FLTFL_")}
    assert documented == {member.name: member.value for member in getattr(callback_data, kind)}


@pytest.mark.parametrize("prefix, kind", [("FLT_PREOP_", "PreopStatus"), ("FLT_POSTOP_", "PostopStatus")])
def test_callback_statuses(prefix: str, kind: str) -> None:
    text = section("A6")
    documented: dict[str, int] = {}
    for number, name, *_ in rows(text[text.index(f"`{prefix}`") :])[1:]:
        if number != str(len(documented)):
            break
        documented[prefix + name.strip("`")] = int(number)
    assert documented == {member.name: member.value for member in getattr(callback_data, kind)}


def test_rules_are_numbered_without_gaps() -> None:
    """Each section's rules count 1, 2, 3, ...: what a docstring cites exists."""
    for part in re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        numbers = [int(number) for number in re.findall(r"^(\d+)\. ", part, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1)), part.splitlines()[0]
