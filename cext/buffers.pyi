"""Buffers of operations: MDLs, and what a filter may know of those it swapped (docs/semantics.md, A5)."""

from enum import IntFlag
from typing import Any

from stackfs.cext.callback_data import CallbackData

class LockOperation(IntFlag):
    IoReadAccess = 0
    IoWriteAccess = 1
    IoModifyAccess = 2

class Mdl:
    """Describes memory: a buffer of the filter's own (IoAllocateMdl), or an operation's while its callback runs."""

    def __init__(self, buffer: Any) -> None: ...
    @property
    def byte_count(self) -> int:
        """MmGetMdlByteCount."""
    def address(self) -> memoryview:
        """MmGetSystemAddressForMdlSafe: the memory, as a memoryview."""
    def free(self) -> None:
        """IoFreeMdl: of one's own, or one that was retained."""

def decode_parameters(data: CallbackData) -> int | None:
    """FltDecodeParameters: the access the operation needs to its buffer (LockOperation), or None: it has no buffer."""

def mdl_of(data: CallbackData) -> Mdl | None:
    """The MDL in the operation's parameters, or None."""

def set_mdl(data: CallbackData, mdl: Mdl | None) -> None:
    """Puts an MDL beside a swapped buffer, in a pre callback; it is the manager's from then on."""

def lock_user_buffer(data: CallbackData) -> int:
    """FltLockUserBuffer: the status."""

def swapped_mdl_of(data: CallbackData, retain: bool = False) -> Mdl | None:
    """FltGetSwappedBufferMdlAddress, FltRetainSwappedBufferMdlAddress: in the swapper's own post, else None."""
