"""The volume's mark: a file in the root of a backing directory that names the filters which the volume needs.

Whoever makes such a volume (a filter's own command) writes it; the core honours it without knowing the filters. A
marked volume is mounted only with an instance of each filter that the mark names, or with filter=raw. When one of them
is gone or marked failed, the base answers EIO to everything (docs/semantics.md, D21). The mark itself is never seen
through the mount: its name does not exist there, and cannot be made (cext/backing.pyx).

    stackfs volume 1
    needs NAME              a line for each filter

Nothing here is secret or authentic: the mark keeps people from mistakes, not attackers from mounting.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from stackfs.errors import ExitCode, StackfsError
from stackfs.manifest import NAME as FILTER_NAME

NAME: Final = ".stackfs-filters"
HEAD: Final = "stackfs volume 1"
LARGEST: Final = 65536


def read(root: int, path: str) -> frozenset[str]:
    """The filters that the volume under a descriptor of its root needs; none: it has no mark.

    StackfsError, DAMAGED: a mark that says nothing sensible; UNSUPPORTED: of a later release. `path` is for messages.
    """
    where = os.path.join(path, NAME)
    try:
        descriptor = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise StackfsError(
            f"{where}: {error.strerror}: whether the volume needs filters cannot be told", ExitCode.DAMAGED
        ) from error
    try:
        data = os.read(descriptor, LARGEST + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
    return parse(data, where)


def parse(data: bytes, where: str) -> frozenset[str]:
    """The filters that a mark names. StackfsError as for read()."""
    lines = data.decode("ascii", "replace").splitlines()
    if not lines or not lines[0].startswith("stackfs volume ") or len(data) > LARGEST:
        raise StackfsError(f"{where}: this is no volume's mark: put the file back as it was", ExitCode.DAMAGED)
    words = [line.split() for line in lines[1:] if line.strip() and not line.startswith("#")]
    if lines[0] != HEAD or any(each[0] != "needs" for each in words):
        raise StackfsError(
            f"{where}: made by a later release of stackfs, which is needed to mount the volume", ExitCode.UNSUPPORTED
        )
    if not words or any(len(each) != 2 or not FILTER_NAME.fullmatch(each[1]) for each in words):
        raise StackfsError(
            f"{where}: a line of the mark does not name a filter: put the file back as it was", ExitCode.DAMAGED
        )
    return frozenset(each[1] for each in words)


def text(filters: frozenset[str]) -> bytes:
    """The mark that names these filters."""
    return "".join([f"{HEAD}\n", *(f"needs {name}\n" for name in sorted(filters))]).encode()
