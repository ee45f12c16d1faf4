"""Byte-range locks that a filter keeps itself (docs/semantics.md, B6): who has which bytes of a file, and who waits.

A FileLock is one file's. A filter that decides about locks hands it each LOCK_CONTROL of the file in its pre callback,
and the base, and the filters below, see none of them; may_read() and may_write() say what a READ or WRITE may do::

    def pre_lock(self, data, objects):
        return data.ensure_context(Locks).process(data)      # class Locks(FileContext, FileLock)

Any thread. One mutex a FileLock guards its lists; operations are completed, and callbacks called, without it. An
operation that waits is the FileLock's until it is completed: by an unlock, by a cancel, or by close().
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stackfs.cext.callback_data import CallbackData, IrpFlags, LockMinorFunction, MajorFunction, PreopStatus
from stackfs.cext.ntstatus import NtStatus, is_success

END = 0x7FFFFFFFFFFFFFFF
"""The last byte that a file can have."""


@dataclass(frozen=True)
class LockedRange:
    """A lock that is held: the bytes from `start` to `end`, the last one included."""

    start: int
    end: int
    exclusive: bool
    owner: int
    """Whose it is (data.lock_owner)."""
    file: int
    """The open file that it came by (FileObject.identity)."""
    pid: int
    flock: bool

    @property
    def length(self) -> int:
        return self.end - self.start + 1

    def meets(self, start: int, end: int) -> bool:
        return self.start <= end and self.end >= start

    def hinders(self, other: LockedRange) -> bool:
        """Both cannot be held: another owner's, the same bytes, and one of them exclusive."""
        return (
            self.flock == other.flock
            and self.owner != other.owner
            and self.meets(other.start, other.end)
            and (self.exclusive or other.exclusive)
        )


Completion = Callable[[Any, CallbackData], int | None]
Unlocked = Callable[[Any, LockedRange], object]


class FileLock:
    """The locks of one file.

    completed(context, data): called when a lock, an unlock or a query is about to be completed, `data` having its
    status; a failure that it returns takes the status' place, and a lock that was granted is then given up.
    unlocked(context, range): called for each range that an unlock has given up.
    """

    def __init__(self, completed: Completion | None = None, unlocked: Unlocked | None = None) -> None:
        self.completed = completed
        self.unlocked = unlocked
        self._mutex = threading.Lock()
        self._held: list[LockedRange] = []
        self._waiting: list[tuple[CallbackData, LockedRange, Any]] = []
        self._next = 0

    # ---- what a pre callback asks ------------------------------------------------------------------------------------

    def process(self, data: CallbackData, context: Any = None) -> int:
        """Carries out a LOCK_CONTROL, and answers what its pre callback is to return: FLT_PREOP_COMPLETE, or
        FLT_PREOP_PENDING while it waits. STATUS_INVALID_DEVICE_REQUEST: it is none."""
        if data.major != MajorFunction.IRP_MJ_LOCK_CONTROL:
            return data.complete(NtStatus.STATUS_INVALID_DEVICE_REQUEST)
        minor = data.minor
        if minor == LockMinorFunction.IRP_MN_UNLOCK_ALL:
            identity = _identity(data)
            return self._give_up(data, context, lambda each: each.file == identity)
        if minor == LockMinorFunction.IRP_MN_UNLOCK_ALL_BY_KEY:
            owner = data.lock_owner
            return self._give_up(data, context, lambda each: each.owner == owner and not each.flock)
        start, length = data.range
        if start < 0 or not 0 < length <= END - start + 1:
            return self._complete(data, context, NtStatus.STATUS_INVALID_LOCK_RANGE)
        wanted = LockedRange(
            start, start + length - 1, data.exclusive, data.lock_owner, _identity(data), data.lock_pid, data.is_flock
        )
        if minor == LockMinorFunction.IRP_MN_LOCK:
            return self._lock(data, wanted, context)
        if minor == LockMinorFunction.IRP_MN_UNLOCK_SINGLE:
            return self._unlock(data, wanted, context)
        if minor == LockMinorFunction.IRP_MN_QUERY_LOCK:
            with self._mutex:
                found = min((each for each in self._held if each.hinders(wanted)), key=lambda e: e.start, default=None)
            data.found_lock = None if found is None else (found.start, found.length, found.exclusive, found.pid)
            return self._complete(data, context, NtStatus.STATUS_SUCCESS)
        return data.complete(NtStatus.STATUS_INVALID_DEVICE_REQUEST)

    def may_read(self, data: CallbackData) -> bool:
        """A READ: false, another owner has some of its bytes exclusively. Paging I/O is nobody's, and may always."""
        return self._may(data, lambda each, owner: each.exclusive and each.owner != owner)

    def may_write(self, data: CallbackData) -> bool:
        """A WRITE: false, another owner has some of its bytes, or anybody, its own owner included, shares them."""
        return self._may(data, lambda each, owner: each.owner != owner or not each.exclusive)

    def _may(self, data: CallbackData, forbids: Callable[[LockedRange, int], bool]) -> bool:
        if not self._held or data.irp_flags & IrpFlags.IRP_PAGING_IO:
            return True
        start, length, owner = data.offset, data.length, data.lock_owner or data.key
        if length == 0:
            return True
        end = END if start < 0 else start + length - 1  # at the end, wherever that is
        with self._mutex:
            held = list(self._held)
        return not any(
            not each.flock and each.meets(max(start, 0), end) and forbids(each, owner) for each in held
        )

    # ---- looking -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[LockedRange]:
        """The ranges that are held, by where they begin."""
        with self._mutex:
            return iter(sorted(self._held, key=lambda each: (each.start, each.end, each.owner)))

    @property
    def waiting(self) -> int:
        """How many operations wait for a lock."""
        with self._mutex:
            return len(self._waiting)

    def next_range(self, restart: bool) -> LockedRange | None:
        """One held range after the other; None at the end. restart: from the first."""
        ranges = list(self)
        self._next = 0 if restart else self._next
        if self._next >= len(ranges):
            return None
        self._next += 1
        return ranges[self._next - 1]

    def close(self) -> None:
        """Nobody has, and nobody waits for, a lock any more: who waited gets STATUS_RANGE_NOT_LOCKED."""
        with self._mutex:
            self._held.clear()
            ended = [each for each in self._waiting if each[0].clear_cancel_completion() == NtStatus.STATUS_SUCCESS]
            self._waiting = [each for each in self._waiting if each not in ended]
        for data, _wanted, context in ended:
            data.complete_pended_pre(self._complete(data, context, NtStatus.STATUS_RANGE_NOT_LOCKED))

    # ---- how ---------------------------------------------------------------------------------------------------------

    def _lock(self, data: CallbackData, wanted: LockedRange, context: Any) -> int:
        with self._mutex:
            if any(each.hinders(wanted) for each in self._held):
                if data.fail_immediately:
                    status = NtStatus.STATUS_LOCK_NOT_GRANTED
                elif not data.is_irp:
                    return PreopStatus.FLT_PREOP_DISALLOW_FASTIO
                else:
                    status = NtStatus(data.set_cancel_completion(self._cancelled))
                    if status == NtStatus.STATUS_SUCCESS:
                        self._waiting.append((data, wanted, context))
                        return PreopStatus.FLT_PREOP_PENDING
            else:
                self._take(wanted)
                status = NtStatus.STATUS_SUCCESS
        answer = self._complete(data, context, status, wanted)
        self._go_on()  # a range that was exclusive before may be shared now
        return answer

    def _take(self, wanted: LockedRange) -> list[LockedRange]:
        """The owner has these bytes as said, and no longer as before: a lock of its own hinders nobody's. What it
        had."""
        before = [
            each for each in self._held
            if each.owner == wanted.owner and each.flock == wanted.flock and each.meets(wanted.start, wanted.end)
        ]  # fmt: skip
        self._cut(before, wanted)
        self._held.append(wanted)
        return before

    def _cut(self, ranges: list[LockedRange], out: LockedRange) -> None:
        """Takes these bytes out of the ranges; what lies before and behind stays."""
        for each in ranges:
            self._held.remove(each)
            for start, end in ((each.start, out.start - 1), (out.end + 1, each.end)):
                if start <= end:
                    self._held.append(
                        LockedRange(start, end, each.exclusive, each.owner, each.file, each.pid, each.flock)
                    )

    def _unlock(self, data: CallbackData, what: LockedRange, context: Any) -> int:
        with self._mutex:
            mine = [
                each for each in self._held
                if each.owner == what.owner and each.flock == what.flock and each.meets(what.start, what.end)
            ]  # fmt: skip
            self._cut(mine, what)
        self._tell(mine, context)
        answer = self._complete(data, context, NtStatus.STATUS_SUCCESS)
        self._go_on()
        return answer

    def _give_up(self, data: CallbackData, context: Any, which: Callable[[LockedRange], bool]) -> int:
        with self._mutex:
            gone = [each for each in self._held if which(each)]
            self._held = [each for each in self._held if not which(each)]
        self._tell(gone, context)
        answer = self._complete(data, context, NtStatus.STATUS_SUCCESS)
        self._go_on()
        return answer

    def _tell(self, gone: list[LockedRange], context: Any) -> None:
        if self.unlocked is not None:
            for each in gone:
                self.unlocked(context, each)

    def _complete(self, data: CallbackData, context: Any, status: int, taken: LockedRange | None = None) -> int:
        """The operation's outcome, which the filter's own routine may turn into a failure."""
        answer = data.complete(status)
        if self.completed is not None:
            own = self.completed(context, data)
            if own is not None and not is_success(own):
                answer = data.complete(own)
                if taken is not None and is_success(status):
                    with self._mutex:
                        if taken in self._held:
                            self._held.remove(taken)
        return answer

    def _go_on(self) -> None:
        """Whoever waited longest, and can now have what he waits for, gets it."""
        while True:
            with self._mutex:
                for entry in self._waiting:
                    data, wanted, context = entry
                    if any(each.hinders(wanted) for each in self._held):
                        continue
                    if data.clear_cancel_completion() != NtStatus.STATUS_SUCCESS:
                        continue  # cancelled: _cancelled() is about to take it out
                    self._waiting.remove(entry)
                    self._take(wanted)
                    break
                else:
                    return
            data.complete_pended_pre(self._complete(data, context, NtStatus.STATUS_SUCCESS, wanted))

    def _cancelled(self, data: CallbackData) -> None:
        with self._mutex:
            context = next((entry[2] for entry in self._waiting if entry[0] is data), None)
            self._waiting = [entry for entry in self._waiting if entry[0] is not data]
        data.complete_pended_pre(self._complete(data, context, NtStatus.STATUS_CANCELLED))


def _identity(data: CallbackData) -> int:
    file = data.file
    return 0 if file is None else file.identity
