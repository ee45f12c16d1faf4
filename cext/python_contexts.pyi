"""Contexts for Python: registering them, and how callback data and instances give them (semantics B2)."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

from stackfs.cext.file_object import FileReference

_Kind = TypeVar("_Kind", bound="Context")
_Row: TypeAlias = tuple[
    int, int, int, Callable[..., Any] | None, Callable[..., Any] | None, Callable[..., Any] | None
]

TYPE_NAMES: dict[int, str]
"""Context types in words."""

class NativeContexts:
    """A native filter's registration of contexts; its Cython code fills it with add()."""

class FilterContexts:
    """What one filter has registered (B2.2). `registrations`: classes of contexts (of StreamContext, say), or
    (context type, flags, size, cleanup, allocate, free), the last three callables or None. `native`: a NativeContexts.

    `report(kind, error)` is called when a cleanup or free callback raised. ValueError: what is wrong with them.
    """

    def __init__(
        self,
        registrations: Iterable[type[Context] | _Row] = (),
        native: NativeContexts | None = None,
        report: Callable[[str, BaseException], object] | None = None,
    ) -> None: ...
    def allocate(self, context_type: int, size: int, pool: int) -> tuple[int, Context | None]:
        """FltAllocateContext: (NTSTATUS, Context or None). The context has one reference, the caller's."""
    def close(self) -> int:
        """The filter is being unregistered: its volume contexts go, and none is made any more (A2). How many of all
        types are still referenced by somebody."""
    @property
    def identity(self) -> int:
        """A number that no other registration has, as long as one of its contexts is there."""
    @property
    def outstanding(self) -> dict[str, int]:
        """Contexts that have not gone, by kind ("stream"); those with none are left out."""

class Context:
    """Something a filter keeps with an object, for as long as the object lives (B2).

    A class of contexts derives from VolumeContext, InstanceContext, FileContext, StreamContext or StreamHandleContext
    and is named in the filter's `contexts`; what it has for attributes is its own affair. cleanup() is called once,
    when the last reference has gone, on whatever thread that happens. A context made by size has `memory`.
    """

    def cleanup(self) -> object:
        """Called when the context goes: give back what it holds. Here: nothing."""
    @property
    def memory(self) -> Any:
        """A bytearray of the size asked for, or what the allocate callback gave; None: neither."""
    @property
    def context_type(self) -> int:
        """FLT_STREAM_CONTEXT, ...; 0: not allocated yet, or gone."""
    @property
    def references(self) -> int:
        """How many there are, the one of being set included; 0: not allocated yet, or gone."""
    @property
    def is_set(self) -> bool:
        """It is linked to an object."""
    def reference(self) -> None:
        """FltReferenceContext: one reference more, to be given back with release(). ReferenceError: it has gone."""
    def release(self) -> None:
        """FltReleaseContext: one reference less; the last one makes the context go. ReferenceError: it has gone."""
    def delete(self) -> None:
        """FltDeleteContext: off its object; it goes when the last reference does. ReferenceError: it has gone."""

class VolumeContext(Context):
    """One for each filter and volume; goes when the volume ends, or the filter is unloaded."""

    @property
    def context_type(self) -> int: ...

class InstanceContext(Context):
    """One for each instance; goes at the end of its teardown."""

    @property
    def context_type(self) -> int: ...

class FileContext(Context):
    """One for each instance and file (inode, with all its names); goes when nobody knows the file any more."""

    @property
    def context_type(self) -> int: ...

class StreamContext(Context):
    """One for each instance and stream of bytes. A file has one stream here, so it lives as long as a FileContext."""

    @property
    def context_type(self) -> int: ...

class StreamHandleContext(Context):
    """One for each instance and open file; goes after its CLOSE."""

    @property
    def context_type(self) -> int: ...

class SectionContext(Context):
    """One for each instance and section for a data scan; set by what creates the section, it goes with that (B2.8)."""

    @property
    def context_type(self) -> int: ...

class InstanceContexts:
    """The contexts of an instance. get_context() and the three with it are for kinds that hang on the instance itself,
    or on its volume; callback data has the same for all kinds. What they return has no reference of the caller's: it is
    there as long as it is set. NtStatusError: STATUS_FLT_DELETING_OBJECT and so on, as CallbackData's.
    """

    def get_context(self, kind: type[_Kind]) -> _Kind | None:
        """The instance's, or its volume's, context of this class; None: there is none."""
    def ensure_context(self, kind: type[_Kind]) -> _Kind:
        """The same; one is made, kind(), and set if there is none."""
    def set_context(self, context: _Kind, *, replace: bool = False) -> _Kind | None:
        """Set it. If there is one it stays, or with `replace` goes; returns the one that was there, or None."""
    def delete_context(self, kind: type[Context]) -> bool:
        """Take it off. False: there was none."""
    def close_contexts(self) -> None:
        """Teardown has started: none can be set any more (STATUS_FLT_DELETING_OBJECT)."""
    def delete_contexts(self, most: int) -> int:
        """The end of the teardown: up to `most` contexts go, in the order of A3. How many it found: call it until 0."""
    def flt_set_context(
        self, context_type: int, file: FileReference | None, operation: int, context: Context | None, wants_old: bool
    ) -> tuple[int, Context | None]:
        """FltSetInstanceContext, FltSetFileContext, ...: (NTSTATUS, the context that is or was there)."""
    def flt_get_context(self, context_type: int, file: FileReference | None) -> tuple[int, Context | None]:
        """FltGetInstanceContext, ...: (NTSTATUS, context)."""
    def flt_delete_context(
        self, context_type: int, file: FileReference | None, wants_old: bool
    ) -> tuple[int, Context | None]:
        """FltDeleteInstanceContext, ...: (NTSTATUS, the context that was there)."""

class VolumeContexts:
    """The contexts of a volume, as the DDI has them. Each answers an unsigned NTSTATUS, and a context with one
    reference, the caller's, or None."""

    def flt_set_volume_context(
        self, operation: int, context: Context | None, wants_old: bool
    ) -> tuple[int, Context | None]:
        """FltSetVolumeContext: (NTSTATUS, the context that is or was there)."""
    def flt_get_volume_context(self, registration: FilterContexts) -> tuple[int, Context | None]:
        """FltGetVolumeContext: (NTSTATUS, context)."""
    def flt_delete_volume_context(
        self, registration: FilterContexts, wants_old: bool
    ) -> tuple[int, Context | None]:
        """FltDeleteVolumeContext: (NTSTATUS, the context that was there)."""
    def close_contexts(self) -> None:
        """The volume ends: its contexts go, and none can be set any more."""

def supports_contexts(file: FileReference) -> bool:
    """FltSupportsStreamContexts and the others: from a CREATE that succeeded to the CLOSE."""
