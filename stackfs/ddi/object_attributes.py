"""OBJECT_ATTRIBUTES: the name, flags and security descriptor with which the DDI opens or makes an object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

OBJ_CASE_INSENSITIVE: Final = 0x40
"""Accepted; names are compared byte by byte (F7)."""
OBJ_KERNEL_HANDLE: Final = 0x200


@dataclass
class OBJECT_ATTRIBUTES:
    ObjectName: str | None = None
    Attributes: int = 0
    RootDirectory: Any = None
    SecurityDescriptor: Any = None


def InitializeObjectAttributes(
    p: OBJECT_ATTRIBUTES, n: str | None, a: int, r: Any = None, s: Any = None
) -> None:
    """n: the name; a: OBJ_* bits; r: the directory that the name is relative to; s: a security descriptor."""
    p.ObjectName, p.Attributes, p.RootDirectory, p.SecurityDescriptor = n, a, r, s


__all__ = ["OBJECT_ATTRIBUTES", "OBJ_CASE_INSENSITIVE", "OBJ_KERNEL_HANDLE", "InitializeObjectAttributes"]
