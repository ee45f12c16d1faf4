"""What `stackfs oplocks` shows, made in the daemon: who holds what, what breaks, who waits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stackfs.cext.callback_data import REQUEST_NAMES

Row = tuple[bool, int, int, int, int, int, int, int, bool]
"""Mounted.rows()"""
LEVELS = {0x10: "level 2", 0x20: "level 1", 0x40: "batch", 0x80: "filter"}


def level_name(level: int) -> str:
    """R, RH, RW, RWH, one of the older four, or none."""
    caching = "".join(letter for bit, letter in ((1, "R"), (4, "W"), (2, "H")) if level & bit)
    return LEVELS.get(level, caching or "none")


def files_of(volume: str, found: list[tuple[bytes, list[Row]]]) -> list[dict[str, Any]]:
    return [
        {
            "volume": volume,
            "path": os.fsdecode(path),
            "held": [_holder(row) for row in rows if not row[0]],
            "waiting": [_waiter(row) for row in rows if row[0]],
        }
        for path, rows in found
    ]


def _holder(row: Row) -> dict[str, Any]:
    _, level, new_level, pid, _, _, since, broken, created = row
    holder: dict[str, Any] = {
        "pid": pid, "name": _name(pid), "level": level_name(level), "seconds": round(since / 1e9, 3),
    }  # fmt: skip
    if broken:
        holder["breaking_to"] = level_name(new_level)
        holder["breaking_seconds"] = round(broken / 1e9, 3)
    if created:
        holder["not_taken_over"] = True
    return holder


def _waiter(row: Row) -> dict[str, Any]:
    _, _, _, _, tid, opcode, since, _, _ = row
    pid = _process(tid)
    return {
        "pid": pid,
        "name": _name(pid),
        "request": REQUEST_NAMES.get(opcode, str(opcode)) if opcode else "open beside the mount",
        "seconds": round(since / 1e9, 3),
    }


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n").decode("utf-8", "replace") if pid else ""
    except OSError:
        return ""


def _process(tid: int) -> int:
    """The process that a thread belongs to; 0: it is gone, or the kernel's."""
    try:
        for line in Path(f"/proc/{tid}/status").read_text(errors="replace").splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
