"""The filter stack of one volume: callback lists by operation, and the walk down and up (semantics A1, A4, A6)."""

from collections.abc import Callable, Iterable
from typing import Any

from stackfs.cext.python_contexts import FilterContexts, VolumeContexts
from stackfs.cext.python_names import InstanceNames, NameProvider

ERROR_LIMIT: int
"""How often callbacks may raise before their instance is marked failed (on_error = fail) or detached (pass)."""

class NativeOperations:
    """A native filter's registration table; its Cython code fills it with set()."""

    def registered(self) -> list[int]:
        """The IRP_MJ_* numbers registered."""

class InstanceEntry(InstanceNames):
    """One instance as the stack has it: names, error mode and callbacks.

    `object` is asked for callback_raised(routine, major, path, error), callback_misused(routine, major, path, status)
    and error_limit_reached(); with `async def` callbacks also for run_async(coroutine, data), which sees to it that the
    coroutine runs, on whatever thread, and tells data.end_async() its end. It is also what callbacks get as `objects`.
    `callbacks`: (major, flags, pre, post) with Python callables or None, and/or a NativeOperations. ValueError: an
    operation that cannot be registered, or twice, or whose callback cannot be async.
    `section_conflict(objects, context, data)`: told of what conflicts with its sections (stackfs.cext.sections).
    """

    object: Any
    name: bytes
    altitude: bytes
    filter_name: bytes
    def __init__(
        self,
        instance: object,
        name: str,
        altitude: str,
        filter_name: str,
        callbacks: Iterable[tuple[int, int, Callable[..., Any] | None, Callable[..., Any] | None]] = (),
        native: NativeOperations | None = None,
        pass_on_error: bool = False,
        contexts: FilterContexts | None = None,
        names: NameProvider | None = None,
        section_conflict: Callable[..., object] | None = None,
    ) -> None: ...
    @property
    def registered(self) -> list[int]:
        """The IRP_MJ_* numbers this instance registers, ascending."""
    @property
    def failed(self) -> bool:
        """True once its callbacks have raised too often: the operations it registers answer EIO (or pass it by)."""
    @property
    def errors(self) -> int:
        """How often its callbacks raised or returned what is not legal."""
    def mark_failed(self) -> None:
        """Treat the instance as failed from now on."""

class Stack(VolumeContexts):
    """The stack of one volume (requests.Volume.stack)."""

    @property
    def entries(self) -> list[InstanceEntry]:
        """Highest altitude first."""
    def introduce(self, entry: InstanceEntry) -> None:
        """The instance is to be of this volume: what its set-up does goes there. It sees no operation yet."""
    def insert(self, entry: InstanceEntry) -> None:
        """Publish an instance: operations that begin from now on see it. ValueError: name or altitude is taken."""
    def remove(self, entry: InstanceEntry) -> None:
        """Take an instance out: operations that begin from now on do not see it, nor do those that have not come to it.
        Others still use it: wait until drain() says that none does."""
    def drain(self, leaving: InstanceEntry, early: bool = False) -> int:
        """How many operations still use an instance that has been removed. early: what it is owed the post of, and what
        it has not changed, is given to its post callback now, as drained (A3.10), and not counted. Any thread."""
    def drained(self) -> bool:
        """True when no operation walks a replaced list any more, but for operations that filters hold."""
    @property
    def settled(self) -> bool:
        """True when no replaced list is left at all, whoever holds its operations."""
    def registered(self, major: int) -> bool:
        """Does any instance register this operation?"""
    def list_identity(self, major: int) -> int:
        """A number that changes when the operation's callback list is replaced; 0: nobody registered."""
    name: bytes
    """The volume's name, as it stands in front of every path in file name information. Set it before operations run."""
    names_or_data_filtered: bool
    """True: entry and attribute time-outs are zero, because an instance's answers are not cacheable."""

def may_be_irp(major: int) -> bool:
    """Can the operation be an IRP, which a callback may hold (A6.9)? The others have codes below zero on Windows."""

def time_native_pair(operations: int = 1_000_000, pairs: int = 1) -> float:
    """Nanoseconds for one operation through `pairs` native pre and post pairs, without base and mount."""
