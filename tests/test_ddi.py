"""docs/ddi.toml against the code: what it says is there can be imported, from where it says, and nothing else can.

Run as a program, this file writes the lines that are plain: a routine that has come is `done`, with its file.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from stackfs import filterlib, fltkernel

LIST = Path(__file__).resolve().parent.parent / "docs" / "ddi.toml"
MODULES: dict[str, Any] = {"fltkernel": fltkernel, "beside": fltkernel, "filterlib": filterlib}
KERNEL = re.compile(r"(Flt|FLT_IS_|Cc|Ex|FsRtl|Initialize|Io|Ke|Mm|Ob|Ps|Rtl|Zw)[A-Z0-9]\w*")
USER = re.compile(r"Filter[A-Z]\w*")

pytestmark = pytest.mark.skipif(not LIST.exists(), reason="needs the source tree")


def listed() -> dict[str, dict[str, dict[str, str]]]:
    return tomllib.loads(LIST.read_text())


def file_of(routine: Any) -> str:
    """The source file that has it, as the list writes it."""
    name = str(getattr(routine, "__module__", "") or "")
    if name.startswith("stackfs.cext."):
        return name.removeprefix("stackfs.").replace(".", "/") + ".pyx"
    return name.replace(".", "/") + ".py"


def routines(module: Any, pattern: re.Pattern[str]) -> dict[str, Any]:
    """The routines that can be imported from a module: not its structures, constants and types."""
    return {
        name: value
        for name, value in vars(module).items()
        if pattern.fullmatch(name) and callable(value) and not isinstance(value, type)
    }


def wrong_line(section: str, name: str, row: dict[str, str]) -> str:
    """What is wrong with a line of the list; "" if nothing is."""
    found = vars(MODULES[section]).get(name)
    status, where, why = row.get("status"), row.get("where"), row.get("why")
    if set(row) - {"status", "level", "where", "why"} or "level" not in row:
        return "has the fields status, level, where and why, and needs the first two"
    if status in ("done", "part"):
        if found is None:
            return f"says {status}, and cannot be imported from stackfs.{MODULES[section].__name__.split('.')[-1]}"
        if where != file_of(found):
            return f'needs where = "{file_of(found)}"'
        return "says part, and needs why" if status == "part" and not why else ""
    if status not in ("open", "none"):
        return "needs a status of done, part, open or none"
    if found is not None and status == "open":
        return f'says open, and can be imported: status = "done" (or part, and why), where = "{file_of(found)}"'
    if found is not None and where != file_of(found):
        return f'can be imported, and needs where = "{file_of(found)}"'
    if found is None and where is not None:
        return "has a where, and cannot be imported"
    return "says none, and needs why" if status == "none" and not why else ""


def test_every_line_is_true() -> None:
    lines = LIST.read_text().splitlines()
    wrong = []
    for section, rows in listed().items():
        for name, row in rows.items():
            words = wrong_line(section, name, row)
            if words:
                number = next(at for at, line in enumerate(lines, 1) if line.startswith(f"{name} = "))
                wrong.append(f"docs/ddi.toml:{number}: {name} {words}")
    assert not wrong, "\n".join([*wrong, "(python tests/test_ddi.py writes those that have come)"])


def test_nothing_is_missing() -> None:
    rows = listed()
    known = {*rows["fltkernel"], *rows["beside"], *rows["filterlib"]}
    there = routines(fltkernel, KERNEL) | routines(filterlib, USER)
    missing = [f"{name} ({file_of(there[name])}) has no line in docs/ddi.toml" for name in sorted(set(there) - known)]
    assert not missing, "\n".join(missing)


def test_every_routine_of_the_ddi_is_accounted_for() -> None:
    rows = listed()
    assert len(rows["fltkernel"]) == 267
    assert len(rows["filterlib"]) == 29
    for section in rows.values():
        assert list(section) == sorted(section)
    assert {row["level"] for row in rows["fltkernel"].values()} == {
        "PASSIVE_LEVEL", "<= APC_LEVEL", "<= DISPATCH_LEVEL", "any", "depends", "-"}


def main() -> None:
    """Writes status and where into the lines of routines that are `open` and can be imported."""
    lines = LIST.read_text().splitlines()
    there = routines(fltkernel, KERNEL) | routines(filterlib, USER)
    for at, line in enumerate(lines):
        name = line.split(" = ", 1)[0]
        match = re.fullmatch(r'(\w+) = \{ status = "open", level = ("[^"]*")(, why = "[^"]*")? \}', line)
        if match and name in there:
            lines[at] = f'{name} = {{ status = "done", level = {match[2]}, where = "{file_of(there[name])}" }}'
            print(f"docs/ddi.toml:{at + 1}: {name} is done")
    LIST.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
