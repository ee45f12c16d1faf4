"""What comes of an operation below, for who asked in its pre callback (docs/semantics.md, A6.22)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from stackfs.cext.callback_data import CallbackData

class IoParameterBlock(NamedTuple):
    """IopbSnapshot: the operation's parameters as they were, as far as they say which operation it is."""

    IrpFlags: int
    MajorFunction: int
    MinorFunction: int
    OperationFlags: int
    ControlCode: int
    """FILE_SYSTEM_CONTROL and DEVICE_CONTROL; else 0."""

def request_status(data: CallbackData, routine: Callable[..., Any], context: Any = None) -> int:
    """data.request_operation_status()"""
