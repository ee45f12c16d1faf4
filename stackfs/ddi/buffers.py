"""Buffers under the DDI's names (docs/semantics.md, A5): MDLs, FltDecodeParameters, and swapped buffers.

A buffer is a memoryview, and dies with the callback. MmGetSystemAddressForMdlSafe answers None where the DDI answers
NULL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from stackfs import api
from stackfs.cext import buffers
from stackfs.cext.buffers import LockOperation, Mdl
from stackfs.cext.callback_data import CallbackData
from stackfs.ddi.out import Out

__all__ = [
    "FltDecodeParameters",
    "FltGetNewSystemBufferAddress",
    "FltGetSwappedBufferMdlAddress",
    "FltLockUserBuffer",
    "FltRetainSwappedBufferMdlAddress",
    "HighPagePriority",
    "IoAllocateMdl",
    "IoFreeMdl",
    "IoModifyAccess",
    "IoReadAccess",
    "IoWriteAccess",
    "LowPagePriority",
    "MmGetMdlByteCount",
    "MmGetSystemAddressForMdlSafe",
    "NormalPagePriority",
]

IoReadAccess = int(LockOperation.IoReadAccess)
IoWriteAccess = int(LockOperation.IoWriteAccess)
IoModifyAccess = int(LockOperation.IoModifyAccess)
LowPagePriority, NormalPagePriority, HighPagePriority = 0, 16, 32

T = TypeVar("T")


class Field(Generic[T]):
    """What a pointer to a field of the parameters is in Python: `value` reads it, and setting it writes it."""

    __slots__ = ("_read", "_write")

    def __init__(self, read: Callable[[], T], write: Callable[[T], None]) -> None:
        self._read = read
        self._write = write

    @property
    def value(self) -> T:
        return self._read()

    @value.setter
    def value(self, new: T) -> None:
        self._write(new)


def IoAllocateMdl(VirtualAddress: Any, Length: int) -> Mdl:
    """An MDL for the first Length bytes of a buffer of the filter's own."""
    return Mdl(memoryview(VirtualAddress)[:Length])


def IoFreeMdl(Mdl: Mdl) -> None:
    """Of one that IoAllocateMdl or FltRetainSwappedBufferMdlAddress gave."""
    Mdl.free()


def MmGetSystemAddressForMdlSafe(Mdl: Mdl | None, Priority: int = NormalPagePriority) -> memoryview | None:
    """The memory. None, which a filter answers with STATUS_INSUFFICIENT_RESOURCES, of no MDL."""
    return None if Mdl is None else Mdl.address()


def MmGetMdlByteCount(Mdl: Mdl) -> int:
    """How many bytes it describes."""
    return Mdl.byte_count


def FltDecodeParameters(
    CallbackData: CallbackData,
    MdlAddressPointer: Out[Field[Mdl | None]] | None,
    Buffer: Out[Field[Any]] | None,
    Length: Out[Field[int]] | None,
    DesiredAccess: Out[int] | None,
) -> int:
    """Where the operation has its MDL, its buffer and the buffer's length (Fields), and what access to it it needs.

    STATUS_INVALID_PARAMETER: it has no buffer. A control has its output buffer here.
    """
    access = buffers.decode_parameters(CallbackData)
    if access is None:
        return int(api.STATUS_INVALID_PARAMETER)
    data = CallbackData
    if MdlAddressPointer is not None:
        MdlAddressPointer.value = Field(lambda: buffers.mdl_of(data), lambda mdl: buffers.set_mdl(data, mdl))
    if Buffer is not None:
        Buffer.value = Field(lambda: data.buffer, lambda buffer: setattr(data, "buffer", buffer))
    if Length is not None:
        Length.value = Field(lambda: data.length, lambda length: setattr(data, "length", length))
    if DesiredAccess is not None:
        DesiredAccess.value = access
    return int(api.STATUS_SUCCESS)


def FltLockUserBuffer(CallbackData: CallbackData) -> int:
    """Sees to it that there is an MDL; a pre callback's data is dirty then. STATUS_INVALID_PARAMETER: no buffer."""
    return buffers.lock_user_buffer(CallbackData)


def FltGetSwappedBufferMdlAddress(CallbackData: CallbackData) -> Mdl | None:
    """In the post of a filter that has swapped the buffer: the MDL of its new one, its own or one made below."""
    return buffers.swapped_mdl_of(CallbackData)


def FltRetainSwappedBufferMdlAddress(CallbackData: CallbackData) -> Mdl | None:
    """The same; and the filter has to IoFreeMdl it, the manager no longer does."""
    return buffers.swapped_mdl_of(CallbackData, True)


def FltGetNewSystemBufferAddress(CallbackData: CallbackData) -> memoryview | None:
    """In a post callback: the system buffer, where another one stands there than the manager's own
    (FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER: a filter above has swapped it); else None."""
    if not CallbackData.flags & api.FLTFL_CALLBACK_DATA_POST_OPERATION or not (
        CallbackData.flags & api.FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER
    ):
        return None
    buffer: memoryview | None = CallbackData.buffer
    return buffer
