"""The standard mount flags: their names, opposites and bits, as mount(8) and mount(2) have them.

One table, read by the parser of ``-o`` (stackfs/options.py) and by whoever mounts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, NamedTuple


class MountFlag(NamedTuple):
    """A flag: the field of MountFlags that keeps it, and what it is called and does either way."""

    field: str
    on: str
    """The option that makes the field true."""
    off: str | None
    """The option that makes it false."""
    bit: int
    """mount(2)'s MS_ bit."""
    bit_when: bool = True
    """The value of the field that sets the bit."""


FLAGS: Final = (
    MountFlag("read_only", "ro", "rw", 1),
    MountFlag("suid", "suid", "nosuid", 2, False),
    MountFlag("dev", "dev", "nodev", 4, False),
    MountFlag("exec", "exec", "noexec", 8, False),
    MountFlag("sync", "sync", "async", 16),
    MountFlag("dirsync", "dirsync", None, 128),
    MountFlag("symfollow", "symfollow", "nosymfollow", 256, False),
    MountFlag("noatime", "noatime", "atime", 1024),
    MountFlag("nodiratime", "nodiratime", "diratime", 2048),
    MountFlag("relatime", "relatime", "norelatime", 1 << 21),
    MountFlag("strictatime", "strictatime", "nostrictatime", 1 << 24),
    MountFlag("lazytime", "lazytime", "nolazytime", 1 << 25),
)

BY_OPTION: Final[dict[str, tuple[MountFlag, bool]]] = {
    **{flag.on: (flag, True) for flag in FLAGS},
    **{flag.off: (flag, False) for flag in FLAGS if flag.off is not None},
}
"""Every option's flag, and the value it gives the flag's field."""


def opposite(option: str) -> str | None:
    """The option that undoes a flag's option: "noexec" for "exec"; None if it is no flag, or has no opposite."""
    if option not in BY_OPTION:
        return None
    flag, value = BY_OPTION[option]
    return flag.off if value else flag.on


@dataclasses.dataclass(slots=True)
class MountFlags:
    """The flags of one mount. nosuid and nodev unless the user's own option line asks for suid or dev."""

    read_only: bool = False
    suid: bool = False
    dev: bool = False
    exec: bool = True
    sync: bool = False
    dirsync: bool = False
    symfollow: bool = True
    noatime: bool = False
    nodiratime: bool = False
    relatime: bool = False
    strictatime: bool = False
    lazytime: bool = False

    def bits(self) -> int:
        """The flags as mount(2) takes them."""
        return sum(flag.bit for flag in FLAGS if getattr(self, flag.field) is flag.bit_when)

    def names(self) -> list[str]:
        """The flags whose bit is set, as options: what fusermount3 takes, and what /proc/mounts shows."""
        chosen: list[Any] = [flag.on if flag.bit_when else flag.off for flag in FLAGS if self.bits() & flag.bit]
        return chosen
