"""Altitudes and load order groups (docs/semantics.md, A1 and B8).

An altitude is a decimal number written as a string, of any precision: digits and at most one point. Altitudes are
compared as numbers, and never become a float: two altitudes that differ in their thirtieth digit are two altitudes.
The higher one is farther from the backing directory. Zeros that change nothing are not looked at: "03333.100" is
"3333.1".

A load order group is a name for a range of altitudes. The official ranges are closed and have integers for bounds
(360000-389999); drop-ins take fractions between them (389998.99). Here a range reaches up to, and does not include, the
integer after its end, so 389999.99 lies in 360000-389999: otherwise the numbers between one group's last integer and
the next one's first would belong to nobody. Where Microsoft's two pages disagree about an end by one, the wider is
taken. Everything here is pure.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

AltitudeKey = tuple[int, str, str]

_ALTITUDE = re.compile(r"(?=\.?[0-9])([0-9]*)(?:\.([0-9]*))?")


class AltitudeError(ValueError):
    """Not an altitude, or one outside its group: one line that says why and what to do."""


def _split(text: str) -> tuple[str, str]:
    match = _ALTITUDE.fullmatch(text)
    if match is None:
        raise AltitudeError(f"{text!r} is not an altitude: digits and at most one '.', as in 385100 or 385100.5")
    return match[1].lstrip("0") or "0", (match[2] or "").rstrip("0")


def canonical(text: str) -> str:
    """The one spelling of an altitude: no zeros that change nothing, no bare point. AltitudeError if it is none."""
    whole, fraction = _split(text)
    return f"{whole}.{fraction}" if fraction else whole


def sort_key(text: str) -> AltitudeKey:
    """A key that orders altitudes as numbers, and is equal exactly for equal ones."""
    whole, fraction = _split(text)
    return len(whole), whole, fraction


def compare(one: str, other: str) -> int:
    """-1, 0 or 1: ``one`` is lower than, the same as, or higher than ``other``."""
    first, second = sort_key(one), sort_key(other)
    return (first > second) - (first < second)


class LoadOrderGroup(NamedTuple):
    """A group: its altitudes are those whose whole part lies in low..high, both included."""

    name: str
    low: int
    high: int

    def contains(self, altitude: str) -> bool:
        lowest, highest = str(self.low), str(self.high)
        size, whole, _ = sort_key(altitude)
        return (len(lowest), lowest) <= (size, whole) <= (len(highest), highest)


GROUPS: Final[dict[str, LoadOrderGroup]] = {
    group.name: group
    for group in (
        LoadOrderGroup("Filter", 420000, 429999),
        LoadOrderGroup("FSFilter Top", 400000, 409999),
        LoadOrderGroup("FSFilter Security Monitor", 392000, 394999),
        LoadOrderGroup("FSFilter Activity Monitor", 360000, 389999),
        LoadOrderGroup("FSFilter Undelete", 340000, 349999),
        LoadOrderGroup("FSFilter Anti-Virus", 320000, 329999),
        LoadOrderGroup("FSFilter Replication", 300000, 309999),
        LoadOrderGroup("FSFilter Continuous Backup", 280000, 289999),
        LoadOrderGroup("FSFilter Security Content Screener", 272000, 274999),
        LoadOrderGroup("FSFilter Content Screener", 260000, 269999),
        LoadOrderGroup("FSFilter Quota Management", 240000, 249999),
        LoadOrderGroup("FSFilter System Recovery", 220000, 229999),
        LoadOrderGroup("FSFilter Cluster File System", 200000, 209999),
        LoadOrderGroup("FSFilter HSM", 180000, 189999),
        LoadOrderGroup("FSFilter Imaging", 170000, 175000),
        LoadOrderGroup("FSFilter Compression", 160000, 169999),
        LoadOrderGroup("FSFilter Encryption", 140000, 149999),
        LoadOrderGroup("FSFilter Virtualization", 130000, 139999),
        LoadOrderGroup("FSFilter Physical Quota Management", 120000, 129999),
        LoadOrderGroup("FSFilter Open File", 100000, 109999),
        LoadOrderGroup("FSFilter Security Enhancer", 80000, 89999),
        LoadOrderGroup("FSFilter Copy Protection", 60000, 69999),
        LoadOrderGroup("FSFilter Security Bottom", 52000, 54999),
        LoadOrderGroup("FSFilter Bottom", 40000, 49999),
        LoadOrderGroup("FSFilter System", 20000, 29999),
        LoadOrderGroup("FSFilter Infrastructure", 0, 19999),
    )
}
"""Every official group by name, highest first."""


def check_group(altitude: str, group: str, reason: str | None = None) -> None:
    """Refuse an altitude outside its group's range, unless the manifest gives a reason for it.

    AltitudeError: no such group, or outside it without a reason. The text names the range.
    """
    found = GROUPS.get(group)
    if found is None:
        raise AltitudeError(f"{group!r} is not a load order group; the groups are {', '.join(GROUPS)}")
    if not found.contains(altitude) and not (reason and reason.strip()):
        raise AltitudeError(
            f"altitude {canonical(altitude)} is outside {found.low}-{found.high}, the range of {found.name!r}: "
            'choose one inside it, or say in the manifest why not ("altitude_reason")'
        )
