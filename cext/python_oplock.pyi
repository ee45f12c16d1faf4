"""Oplocks for Python (docs/semantics.md A9).

A filter keeps one Oplock for each stream, in a stream context, and checks it in the pre callbacks of what may break
it::

    def pre_read(self, data, objects):
        return data.ensure_context(Stream).oplock.check(data, Oplock.go_on)
"""

from collections.abc import Callable
from typing import Any

from stackfs.cext.callback_data import CallbackData
from stackfs.cext.file_object import FileReference

_Routine = Callable[[CallbackData, Any], object]

class OplockOpen:
    """An open that belongs to no file object, with its keys (see set_oplock_keys)."""

    def __init__(self, target: bytes = b"", parent: bytes = b"") -> None: ...
    @property
    def number(self) -> int:
        """What Oplock.held() and waiting() call it."""

_Opener = OplockOpen | CallbackData | FileReference

class OplockRequest:
    """Somebody who holds an oplock, or waits: `done(request)` is called once, in the thread that ends it; `status`,
    `new_level` and `acknowledge` then say how. Made by Oplock's methods."""

    opener: _Opener
    @property
    def pended(self) -> bool:
        """It holds an oplock that is not broken, or waits."""
    @property
    def status(self) -> int:
        """An unsigned NTSTATUS; 0 also while it is pended."""
    @property
    def level(self) -> int:
        """OPLOCK_LEVEL_* bits of what it held; 0: it waited."""
    @property
    def new_level(self) -> int:
        """What it was broken to, or switched to."""
    @property
    def acknowledge(self) -> bool:
        """The break has to be acknowledged."""
    def cancel(self) -> None:
        """It gives up what it holds, or waits no more: `done`, with STATUS_CANCELLED. Nothing, once it was told
        something else."""

class Oplock:
    """The oplock of one stream (A9), initialised. Any thread may use it; `done`, wait routines and what goes on after
    them run in the thread that breaks, acknowledges or closes: hold no lock around these calls that they need.

    ReferenceError out of the methods for opens, once it has been uninitialised.
    """

    def initialize(self) -> None:
        """FltInitializeOplock: a new one is as this makes it."""
    def uninitialize(self) -> None:
        """FltUninitializeOplock: all that hold it, or wait, end with STATUS_CANCELLED; nothing is granted then."""
    def fsctl(self, data: CallbackData, open_count: int = 0, flags: int = 0) -> int:
        """FltOplockFsctrlEx, in the pre callback of an FSCTL_*OPLOCK* or a CREATE: `return oplock.fsctl(data, count)`.

        open_count: of an exclusive request, how many opens the file has; of a shared one, not 0: it has byte-range
        locks. flags: OPLOCK_FSCTRL_FLAG_ALL_KEYS_MATCH. FLT_PREOP_PENDING: granted, the FSCTL ends when it is
        broken; or FLT_PREOP_COMPLETE, and `data.status` says why. ValueError: something else cancels the operation
        already.
        """
    def check(
        self, data: CallbackData, routine: _Routine | None = None, context: Any = None, prepost: _Routine | None = None,
        flags: int = 0,
    ) -> int:  # fmt: skip
        """FltCheckOplockEx, in a pre callback.

        FLT_PREOP_SUCCESS_WITH_CALLBACK: go on (`data.status` may be STATUS_OPLOCK_BREAK_IN_PROGRESS);
        FLT_PREOP_PENDING: it waits, and then `routine(data, context)` is called, once, `data.status` being
        STATUS_SUCCESS or STATUS_CANCELLED: it completes the operation (`Oplock.go_on` is one that does);
        FLT_PREOP_COMPLETE: `data.status` says why; FLT_PREOP_DISALLOW_FASTIO: it would have to wait, and comes again
        as an IRP. Without a routine the thread waits here, but on the trio loop, where it is as with Oplock.go_on.
        prepost(data, context) is called before it waits with a routine.
        """
    def break_handle(
        self, data: CallbackData, routine: _Routine | None = None, context: Any = None, prepost: _Routine | None = None,
        flags: int = 0,
    ) -> int:  # fmt: skip
        """FltOplockBreakH, after a sharing violation; then the sharing is checked once more. Otherwise as check()."""
    def break_to_none(
        self, data: CallbackData, routine: _Routine | None = None, context: Any = None, prepost: _Routine | None = None,
        flags: int = 0,
    ) -> int:  # fmt: skip
        """FltOplockBreakToNoneEx: whatever keys there are. Otherwise as check()."""
    def check_as(
        self, data: CallbackData, operation: int, routine: _Routine | None, context: Any, prepost: _Routine | None,
        flags: int,
    ) -> int:  # fmt: skip
        """As OPLOCK_OPEN_BREAK_H or OPLOCK_BREAK_ALL; -1: as what the operation is."""
    @staticmethod
    def go_on(data: CallbackData, context: Any = None) -> None:
        """A wait routine: the operation goes on, or ends with STATUS_CANCELLED."""
    def request(
        self, opener: _Opener, level: int, done: Callable[[OplockRequest], object] | None = None, *,
        directory: bool = False, synchronous: bool = False, deleted: bool = False, others_open: bool = False,
        all_keys_match: bool = False, byte_range_locks: bool = False,
    ) -> tuple[int, OplockRequest]:  # fmt: skip
        """An unsigned NTSTATUS, and whom it is about. STATUS_PENDING: it is held, until `done`."""
    def acknowledge(
        self, opener: _Opener, how: int, level: int = 0, done: Callable[[OplockRequest], object] | None = None, *,
        deleted: bool = False,
    ) -> tuple[int, OplockRequest]:  # fmt: skip
        """how: OPLOCK_ACK*. STATUS_PENDING: an oplock is held again. STATUS_CANNOT_GRANT_REQUESTED_OPLOCK: `new_level`
        is what there is, to be acknowledged once more. STATUS_INVALID_OPLOCK_PROTOCOL: nothing was to be
        acknowledged."""
    def operate(
        self, opener: _Opener, operation: int, done: Callable[[OplockRequest], object] | None = None, *,
        access: int = 1, share: int = 7, options: int = 0x1000000, if_oplocked: bool = False, ignore_keys: bool = False,
        requiring: bool = False,
    ) -> tuple[int, OplockRequest]:  # fmt: skip
        """operation: an OplockOperation; OPLOCK_OPEN takes access, share and options into account. STATUS_SUCCESS: go
        on; STATUS_PENDING: wait for `done`; STATUS_OPLOCK_BREAK_IN_PROGRESS; STATUS_CANNOT_BREAK_OPLOCK."""
    def notify(
        self, opener: _Opener, done: Callable[[OplockRequest], object] | None = None
    ) -> tuple[int, OplockRequest]:
        """FSCTL_OPLOCK_BREAK_NOTIFY: STATUS_SUCCESS, or STATUS_PENDING while a break is not settled."""
    def close(self, opener: _Opener) -> None:
        """The open's handle is closed: what it holds ends, what it was to acknowledge is acknowledged."""
    def reserve(self, opener: _Opener) -> bool:
        """For the open that will ask for an oplock next (A9.25). False: it is reserved already."""
    def unreserve(self, opener: _Opener) -> None:
        """It will not ask."""
    @property
    def state(self) -> int:
        """OplockLevel and OplockState bits; 0: nobody holds it."""
    @property
    def is_current(self) -> bool:
        """FltCurrentOplock."""
    @property
    def is_current_h(self) -> bool:
        """FltCurrentOplockH."""
    @property
    def is_current_batch(self) -> bool:
        """FltCurrentBatchOplock: a batch or a filter oplock."""
    @property
    def fast_io_possible(self) -> bool:
        """FltOplockIsFastIoPossible."""
    def held(self) -> list[tuple[int, int, int | None, float]]:
        """Who holds it: (open, level, breaking to or None, seconds since the grant or the break) for each; `open` is a
        number, the open's as long as it lives."""
    def waiting(self) -> list[tuple[int, str, float]]:
        """Who waits: (open, the operation's name, seconds) for each, the first to go on first."""

def set_oplock_keys(what: _Opener, target: bytes = b"", parent: bytes = b"") -> None:
    """The oplock keys of an open (callback data: of what it is about): 16 bytes each, or b"" for none.

    Opens with equal target keys are one client's. The parent key stands for the target key where the oplock is the
    directory's (OPLOCK_FLAG_PARENT_OBJECT). To be set before the open is granted anything. ValueError: another length.
    """

def oplock_keys(what: _Opener) -> tuple[bytes, bytes]:
    """The two oplock keys of an open; b"" where it has none."""

def oplock_keys_equal(one: _Opener, other: _Opener) -> bool:
    """FltOplockKeysEqual: one open, or two with one key."""

def is_shared_request(data: CallbackData) -> bool:
    """FltOplockIsSharedRequest: an FSCTL that asks for level 2, R or RH."""
