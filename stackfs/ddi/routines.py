"""Routines by name, and names of operations (docs/semantics.md, A2.18)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stackfs.cext.callback_data import major_name

__all__ = ["FltGetIrpName", "FltGetRoutineAddress"]


def FltGetRoutineAddress(FltMgrRoutineName: str) -> Callable[..., Any] | None:
    """The routine of that name, which begins with Flt; None: this release has none. A filter that has to run on several
    releases asks before it uses what came later. (Native filters: routines.pxd.)"""
    from stackfs import fltkernel  # which is made of this module, among others

    found = vars(fltkernel).get(FltMgrRoutineName) if FltMgrRoutineName.startswith("Flt") else None
    return found if callable(found) and not isinstance(found, type) else None


def FltGetIrpName(IrpMajorCode: int) -> str:
    """ "IRP_MJ_READ" for 3; of what is no operation, its number."""
    return major_name(IrpMajorCode & 0xFF)
