"""STATUS_REPARSE: an operation that goes on under another name (docs/semantics.md, A6)."""

import os
from typing import Any

from stackfs.cext.callback_data import CallbackData

def replace_name(data: CallbackData, path: str | bytes | os.PathLike[Any]) -> int:
    """IoReplaceFileObjectName: the status."""

def reparse(data: CallbackData, path: str | bytes | os.PathLike[Any]) -> int:
    """data.reparse()"""
