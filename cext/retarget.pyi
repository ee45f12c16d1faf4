"""TargetInstance: an operation that goes on on another volume (docs/semantics.md, A4.8)."""

from stackfs.cext.callback_data import CallbackData
from stackfs.cext.filter_file import FilterFile
from stackfs.cext.stack import InstanceEntry

def set_target(data: CallbackData, entry: InstanceEntry, file: FilterFile) -> None:
    """data.set_target()"""
