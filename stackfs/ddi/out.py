"""Out: where a routine of the DDI leaves what it returns beside its NTSTATUS."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Out(Generic[T]):
    """An out-parameter: the caller makes it, the routine sets `value`.

    `value` cannot be read before a routine has set it: AttributeError.
    """

    __slots__ = ("value",)

    value: T

    def __repr__(self) -> str:
        return f"Out({self.value!r})" if hasattr(self, "value") else "Out()"
