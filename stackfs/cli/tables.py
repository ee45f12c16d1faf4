"""What a terminal shows: fltmc's tables, and the escaping of every name and message that somebody else chose.

Pure functions from values to text. The columns are those of Windows' fltmc.exe: headings, rules and the places where
the values stand. A value too long for its column moves the rest of its line to the right, as there.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from stackfs.control import FilterRow, InstanceRow, VolumeRow

FILTERS_HEAD = (
    "Filter Name                     Num Instances    Altitude    Frame\n"
    "------------------------------  -------------  ------------  -----"
)
INSTANCES_HEAD = (
    "Filter                Volume Name                              Altitude        Instance Name       Frame  "
    " SprtFtrs  VlStatus\n"
    "--------------------  -------------------------------------  ------------  ----------------------  -----  "
    " --------  --------"
)
VOLUMES_HEAD = (
    "Dos Name                        Volume Name                              FileSystem    Status\n"
    "------------------------------  ---------------------------------------  ----------  --------"
)


def escape(text: str) -> str:
    """The text with nothing in it that a terminal obeys or a line ends at.

    A backslash is doubled; what is not printable becomes \\xNN, \\uNNNN or \\UNNNNNNNN, and so does a byte that was not
    UTF-8 (os.fsdecode's lone surrogates): different names never look the same.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escape_one, text))


def _escape_one(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """The number of cells that a terminal gives the escaped text."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def pad(text: str, cells: int) -> str:
    return text + " " * (cells - width(text))


def filters(rows: Iterable[FilterRow]) -> str:
    lines = [FILTERS_HEAD]
    for row in rows:
        name, altitude, legacy = escape(row.name), escape(row.altitude), isinstance(row.frame, str)
        if legacy:
            lines.append(f"{pad(name, 30)}  {'':9}       {pad(altitude, 10)}  {escape(str(row.frame))}")
        else:
            lines.append(f"{pad(name, 30)}  {row.instances:9}       {pad(altitude, 10)}     {row.frame}")
    return "\n".join(lines)


def instances(rows: Iterable[InstanceRow]) -> str:
    lines = [INSTANCES_HEAD]
    for row in rows:
        features = f"{row.features:08x}" if isinstance(row.features, int) else escape(row.features)
        unseen = f"{row.bypassed} bypassed" if row.bypassed else ""
        status = ", ".join(filter(None, (row.status, unseen)))
        line = (
            f"{pad(escape(row.filter), 20)}  {pad(escape(row.volume), 40)}  {pad(escape(row.altitude), 9)}"
            f"  {pad(escape(row.name), 24)}  {escape(str(row.frame)):<4}  {features:<8}  {escape(status)}"
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


def volumes(rows: Iterable[VolumeRow]) -> str:
    lines = [VOLUMES_HEAD]
    for row in rows:
        line = (
            f"{pad(escape(row.dos_name), 30)}  {pad(escape(row.volume_name), 39)}  {pad(escape(row.filesystem), 10)}"
            f"  {escape(row.status)}"
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


def columns(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain table in fltmc's manner, as wide as its longest values. Numbers stand to the right."""
    texts = [[escape(str(value)) for value in row] for row in rows]
    cells = [max([width(title), *(width(row[index]) for row in texts)]) for index, title in enumerate(head)]
    lines = ["  ".join(map(pad, head, cells)).rstrip(), "  ".join("-" * count for count in cells)]
    for row, text in zip(rows, texts, strict=True):
        parts = []
        for value, shown, count in zip(row, text, cells, strict=True):
            gap = " " * (count - width(shown))
            parts.append(gap + shown if isinstance(value, int | float) else shown + gap)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def outline(value: object, indent: int = 0) -> list[str]:
    """Nested dicts and lists as indented ``key: value`` lines: for reports that have no table."""
    space = " " * indent
    lines: list[str] = []
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, dict | list) and each:
                lines.append(f"{space}{escape(str(key))}:")
                lines += outline(each, indent + 2)
            else:
                lines.append(f"{space}{escape(str(key))}: {_scalar(each)}")
    elif isinstance(value, list):
        for each in value:
            if isinstance(each, dict) and not any(isinstance(part, dict | list) for part in each.values()):
                pairs = (f"{escape(str(key))}={_scalar(part)}" for key, part in each.items())
                lines.append(f"{space}- {'  '.join(pairs)}")
            elif isinstance(each, dict | list):
                lines += [f"{space}-", *outline(each, indent + 2)]
            else:
                lines.append(f"{space}- {_scalar(each)}")
    else:
        lines.append(space + _scalar(value))
    return lines


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", [], {}):
        return "-"
    return escape(str(value))
