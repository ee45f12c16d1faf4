"""What `stackfs encryption fsck` finds: kinds, what they mean for the volume, and what becomes of them. Values."""

from __future__ import annotations

import dataclasses
import enum
import os
from typing import Any

from stackfs.errors import ExitCode


class Kind(enum.StrEnum):
    """What is wrong. The words are part of --json: one is never renamed."""

    VOLUME_FILE = "volume-file"
    VOLUME_COPY = "volume-copy"
    MARK = "mark"
    LEFTOVER = "leftover"
    """What a crash left under a name that ends in .new, or a long name's file without what it names."""
    DIRECTORY_IV = "directory-iv"
    MOVED_DIRECTORY = "moved-directory"
    UNFINISHED_RENAME = "unfinished-rename"
    FOREIGN_NAME = "foreign-name"
    LONG_NAME = "long-name"
    LINK_TARGET = "link-target"
    ATTRIBUTE = "attribute"
    FOREIGN_FILE = "foreign-file"
    EMPTY_FILE = "empty-file"
    HEADER = "header"
    SEAL = "seal"
    DUPLICATE = "duplicate"
    CUT = "cut"
    LONGER = "longer"
    MAP = "map"
    BLOCK = "block"
    MOVED_BLOCK = "moved-block"
    UNSEALED = "unsealed"
    UNSUPPORTED = "unsupported"
    UNREADABLE = "unreadable"


UNCLEAN = frozenset({Kind.LEFTOVER, Kind.UNFINISHED_RENAME, Kind.UNSEALED, Kind.EMPTY_FILE})
"""What a crash leaves of a volume that nobody has tampered with; nothing that was synced is lost."""


@dataclasses.dataclass(slots=True)
class Finding:
    """One thing that is wrong. `stored`: where, as the backing directory has it; `path`: as the mount would show it."""

    kind: Kind
    stored: bytes
    path: bytes
    detail: str
    blocks: tuple[int, int] | None = None
    """The first and the last block of the file that it is about."""
    repaired: str = ""
    """What was done about it; empty: nothing, it is as it was."""

    def document(self) -> dict[str, Any]:
        return {
            "kind": str(self.kind),
            "path": os.fsdecode(self.path),
            "stored": os.fsdecode(self.stored),
            "blocks": list(self.blocks) if self.blocks else None,
            "detail": self.detail,
            "grade": "unclean" if self.kind in UNCLEAN else "damage",
            "repaired": self.repaired or None,
        }

    def text(self) -> str:
        """For people; the path is not in it."""
        return self.detail + (f" -- repaired: {self.repaired}" if self.repaired else "")


@dataclasses.dataclass(slots=True)
class Report:
    """What a check found, and how much it looked at."""

    files: int = 0
    directories: int = 0
    bytes: int = 0
    resumed: int = 0
    """Files that an interrupted check before this one has found healthy."""
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def left(self) -> list[Finding]:
        return [each for each in self.findings if not each.repaired]

    def exit_code(self) -> ExitCode:
        """OK; REPAIRED: nothing is left; UNCLEAN: only what a crash leaves is; DAMAGED."""
        if not self.findings:
            return ExitCode.OK
        if not self.left:
            return ExitCode.REPAIRED
        if all(each.kind in UNCLEAN for each in self.left):
            return ExitCode.UNCLEAN
        return ExitCode.DAMAGED
