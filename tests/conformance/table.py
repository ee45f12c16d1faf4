"""The table of conformance: for each rule of docs/semantics.md, and each name of the DDI that it concerns, the tests
that show it. docs/conformance.md is made from it: `python tests/conformance/table.py` writes it anew.

One file for each section, a1.toml to b5.toml, and advantages.toml for what the Filter Manager is there for:

    title = "Attaching and detaching an instance"
    [[row]]
    rule = "A3.6"                                         # its number in docs/semantics.md; it may have several rows
    what = "A detach asks instance_query_teardown; anything but success refuses it"
    names = ["FltDetachVolume", "STATUS_FLT_DO_NOT_DETACH"]   # the names of the DDI that it covers; may be left out
    tests = ["tests/test_lifecycle.py::test_x"]           # each fails when the feature does nothing
    lanes = ["device", "irp"]                             # or "stack": without a mount; "process": no request at all
    state = "done"                                        # done | differs | impossible
    why = "..."                                           # for the last two: what is different on Linux, and why

A row of a status has `value` and, where user mode knows it by another number, `hresult`.
names.toml lists the names that the rows have to cover, by the section that brings them.
"""

from __future__ import annotations

import functools
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
DOCUMENT = ROOT / "docs" / "conformance.md"

SECTIONS = ("A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8", "A10", "B1", "B2", "B3", "B4", "B5")
"""In the document's order. B5 has its rules among those of A6 and A8."""
LANES = {"device", "irp", "stack", "process"}
STATES = {"done": "done", "differs": "differs", "impossible": "cannot be"}
FIELDS = {"rule", "what", "names", "tests", "lanes", "state", "why", "value", "hresult"}

INTRODUCTION = """\
# What is done, and what shows it

Made from `tests/conformance/*.toml` by `python tests/conformance/table.py`; do not edit.

One line for each rule of [semantics.md](semantics.md) that the Filter Manager has too, and for each routine, status and
flag that it concerns, with the tests that show it. Each of these tests fails when the feature is made to do nothing.
*Lanes*: `device` and `irp`, through a mount on that lane; `stack`, requests that are put into the stack without a
mount, which is the same on every lane; `process`, what is no request.
"""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    rule: str
    what: str
    tests: list[str]
    lanes: list[str]
    state: str
    names: list[str]
    why: str = ""
    value: int | None = None
    hresult: int | None = None

    @property
    def number(self) -> tuple[str, int]:
        section, _, rule = self.rule.partition(".")
        return section, int(rule)


@dataclass(frozen=True)
class Part:
    """One file."""

    path: Path
    title: str
    rows: list[Row]


def files() -> list[Path]:
    """Those that are there, in the document's order."""
    names = [*(f"{section.lower()}.toml" for section in SECTIONS), "advantages.toml"]
    return [HERE / name for name in names if (HERE / name).exists()]


@functools.cache
def parts() -> list[Part]:
    found = []
    for path in files():
        with path.open("rb") as file:
            data = tomllib.load(file)
        rows = [Row(**{"names": [], **row}) for row in data["row"]]
        found.append(Part(path, data["title"], rows))
    return found


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def code(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def lines_of(part: Part) -> list[str]:
    section = part.path.stem.upper()
    heading = f"{section} {part.title}" if section in SECTIONS else part.title
    lines = [f"## {heading}", ""]
    statuses = [row for row in part.rows if row.value is not None]
    others = [row for row in part.rows if row.value is None]
    if others:
        lines += ["| rule | what | names | state | lanes | shown by |", "|---|---|---|---|---|---|"]
        for row in others:
            what = row.what + (f" **On Linux:** {row.why}" if row.why else "")
            shown = code([test.removeprefix("tests/") for test in row.tests])
            cells = (row.rule, cell(what), code(row.names), STATES[row.state], ", ".join(row.lanes), shown)
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    if statuses:
        lines += ["| status | value | HRESULT | what | state | lanes | shown by |", "|---|---|---|---|---|---|---|"]
        for row in statuses:
            what = row.what + (f" **On Linux:** {row.why}" if row.why else "")
            shown = code([test.removeprefix("tests/") for test in row.tests])
            hresult = "" if row.hresult is None else f"0x{row.hresult:08X}"
            cells = (code(row.names), f"0x{row.value:08X}", hresult, cell(what), STATES[row.state],
                     ", ".join(row.lanes), shown)  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def document() -> str:
    """docs/conformance.md, as it has to be."""
    rows = [row for part in parts() for row in part.rows]
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    tests = {test.partition("[")[0] for row in rows for test in row.tests}
    lines = [
        INTRODUCTION,
        f"{len(rows)} rows: {counts['done']} done, {counts['differs']} that differ on Linux, "
        f"{counts['impossible']} that cannot be there; {len(tests)} tests.",
        "",
    ]
    if counts["differs"] or counts["impossible"]:
        lines += ["## What is different on Linux", ""]
        for row in rows:
            if row.why:
                names = f" ({code(row.names)})" if row.names else ""
                lines.append(f"- {row.rule}{names}: {row.what}. {row.why}")
        lines.append("")
    for part in parts():
        lines += lines_of(part)
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> int:
    DOCUMENT.write_text(document())
    print(f"{DOCUMENT.relative_to(ROOT)}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
