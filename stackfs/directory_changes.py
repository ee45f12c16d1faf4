"""Who waits for changes in directories, and what has changed (docs/semantics.md, B6): a filter's own package.

A filter that wants to tell programs, or filters above, of changes (because it shows other names than lie below, say)
keeps a DirectoryChanges for each instance, hands it the operations that wait, and reports what changes in its post
callbacks::

    def pre_control(self, data, objects):                 # an ioctl of the filter's own, on an open directory
        return self.changes.wait(data, data.file.identity, data.path, wanted=FILE_NOTIFY_CHANGE_FILE_NAME)

    def post_rename(self, data, objects, context, flags):
        self.changes.report("/a/new name", FILE_ACTION_RENAMED_NEW_NAME, FILE_NOTIFY_CHANGE_FILE_NAME)

Any thread. One mutex guards what there is; operations are completed, and callbacks called, without it.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

from stackfs.cext.callback_data import CallbackData, PreopStatus
from stackfs.cext.ntstatus import NtStatus

FILE_NOTIFY_CHANGE_FILE_NAME: Final = 0x1
FILE_NOTIFY_CHANGE_DIR_NAME: Final = 0x2
FILE_NOTIFY_CHANGE_NAME: Final = 0x3
FILE_NOTIFY_CHANGE_ATTRIBUTES: Final = 0x4
FILE_NOTIFY_CHANGE_SIZE: Final = 0x8
FILE_NOTIFY_CHANGE_LAST_WRITE: Final = 0x10
FILE_NOTIFY_CHANGE_LAST_ACCESS: Final = 0x20
FILE_NOTIFY_CHANGE_CREATION: Final = 0x40
FILE_NOTIFY_CHANGE_EA: Final = 0x80
FILE_NOTIFY_CHANGE_SECURITY: Final = 0x100
FILE_NOTIFY_VALID_MASK: Final = 0xFFF
FILE_ACTION_ADDED: Final = 1
FILE_ACTION_REMOVED: Final = 2
FILE_ACTION_MODIFIED: Final = 3
FILE_ACTION_RENAMED_OLD_NAME: Final = 4
FILE_ACTION_RENAMED_NEW_NAME: Final = 5
FILE_NOTIFY_INFORMATION: Final = struct.Struct("=III")
"""In front of a name: NextEntryOffset (bytes to the next record, 0: it is the last), Action, FileNameLength (bytes).
The name is the bytes that it has, from the watched directory on; each record begins at a multiple of 4."""
MOST: Final = 65536
"""Bytes that are kept for a watch while nobody waits; what is more becomes STATUS_NOTIFY_ENUM_DIR."""

Traverse = Callable[[Any, Any, Any], bool]
Chosen = Callable[[Any, Any], bool]


class Watch:
    """What one context watches, and the changes that nobody has been told of yet."""

    def __init__(
        self, context: Any, path: bytes, tree: bool, wanted: int, told_by_name: bool, traverse: Traverse | None,
        subject: Any, chosen: Chosen | None,
    ) -> None:  # fmt: skip
        self.context = context
        self.path = path.rstrip(b"/")
        self.tree = tree
        self.wanted = wanted
        self.told_by_name = told_by_name
        self.traverse = traverse
        self.subject = subject
        self.chosen = chosen
        self.waiting: list[CallbackData] = []
        self.changes: list[tuple[int, bytes]] = []
        self.size = 0
        self.missed = False

    def name_of(self, path: bytes) -> bytes | None:
        """How the watched directory calls it; None: it does not lie there."""
        if not path.startswith(self.path + b"/"):
            return None
        name = path[len(self.path) + 1 :]
        return name if name and (self.tree or b"/" not in name) else None

    def note(self, action: int, name: bytes) -> None:
        size = _padded(FILE_NOTIFY_INFORMATION.size + len(name))
        if self.missed or not self.told_by_name or self.size + size > MOST:
            self.forget()
            self.missed = True
            return
        self.changes.append((action, name))
        self.size += size

    def forget(self) -> None:
        self.changes = []
        self.size = 0
        self.missed = False

    @property
    def has_something(self) -> bool:
        return self.missed or bool(self.changes)

    def take(self, room: int) -> bytes | None:
        """All that is to be told, packed; None: it does not fit, or was too much: whoever waits has to look himself."""
        packed = b"" if self.missed else pack(self.changes)
        self.forget()
        return packed if 0 < len(packed) <= room else None


def _padded(size: int) -> int:
    return (size + 3) & ~3


def pack(changes: list[tuple[int, bytes]]) -> bytes:
    """FILE_NOTIFY_INFORMATION records."""
    out = bytearray()
    for index, (action, name) in enumerate(changes):
        size = FILE_NOTIFY_INFORMATION.size + len(name)
        last = index == len(changes) - 1
        out += FILE_NOTIFY_INFORMATION.pack(0 if last else _padded(size), action, len(name)) + name
        if not last:
            out += bytes(_padded(size) - size)
    return bytes(out)


def unpack(records: bytes) -> list[tuple[int, bytes]]:
    """(action, name) of each record. ValueError: they are none."""
    found = []
    at = 0
    while True:
        if at + FILE_NOTIFY_INFORMATION.size > len(records):
            raise ValueError("a record of a change is cut short")
        following, action, length = FILE_NOTIFY_INFORMATION.unpack_from(records, at)
        begin = at + FILE_NOTIFY_INFORMATION.size
        if begin + length > len(records) or (following and following < FILE_NOTIFY_INFORMATION.size):
            raise ValueError("a record of a change is longer than what there is")
        found.append((action, records[begin : begin + length]))
        if not following:
            return found
        at += following


class DirectoryChanges:
    """The watches of one instance."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._watches: list[Watch] = []

    def wait(
        self,
        data: CallbackData,
        context: Any,
        path: str | bytes,
        *,
        tree: bool = False,
        told_by_name: bool = True,
        wanted: int = FILE_NOTIFY_VALID_MASK,
        traverse: Traverse | None = None,
        subject: Any = None,
        chosen: Chosen | None = None,
    ) -> int:
        """The operation waits for a change below `path` (in the directory itself, or with `tree` anywhere below it).
        Always FLT_PREOP_PENDING, which its pre callback is to return: it may have been completed by then.

        It is any IRP with a buffer to fill: IRP_MN_NOTIFY_CHANGE_DIRECTORY of a filter above, or an ioctl on an open
        directory. It ends with STATUS_SUCCESS and FILE_NOTIFY_INFORMATION records; with STATUS_NOTIFY_ENUM_DIR and
        nothing, where there was more than fits, or told_by_name is false; with STATUS_NOTIFY_CLEANUP by cleanup(), with
        STATUS_DELETE_PENDING by deleted(), with STATUS_CANCELLED. What changes between one wait and the next of a
        context is kept. path, tree, wanted and what follows count at a context's first wait only.

        traverse(context, target, subject): may whoever waits see into the directory that a change lies in (only with
        `tree`)? chosen(context, filter_context): does he want to hear of it? ValueError: no IRP.
        """
        if not data.is_irp:
            raise ValueError("only an IRP can wait for a change")
        with self._mutex:
            watch = next((each for each in self._watches if each.context is context or each.context == context), None)
            if watch is None:
                watch = Watch(
                    context, os.fsencode(path), tree, wanted & FILE_NOTIFY_VALID_MASK, told_by_name, traverse, subject,
                    chosen,
                )  # fmt: skip
                self._watches.append(watch)
            if not watch.has_something:
                status = data.set_cancel_completion(self._cancelled)
                if status == NtStatus.STATUS_SUCCESS:
                    watch.waiting.append(data)
                    return PreopStatus.FLT_PREOP_PENDING
                answer: tuple[int, bytes] = (status, b"")
            else:
                answer = _answer(watch, data)
        _complete(data, *answer)
        return PreopStatus.FLT_PREOP_PENDING

    def report(
        self, path: str | bytes, action: int, changes: int, *, target: Any = None, filter_context: Any = None
    ) -> None:
        """Something has changed: `action` is FILE_ACTION_*, `changes` FILE_NOTIFY_CHANGE_* bits."""
        where = os.fsencode(path)
        with self._mutex:
            concerned = [
                each for each in self._watches if each.wanted & changes and each.name_of(where) is not None
            ]
        concerned = [
            each for each in concerned
            if (each.chosen is None or each.chosen(each.context, filter_context))
            and (not each.tree or each.traverse is None or each.traverse(each.context, target, each.subject))
        ]  # fmt: skip
        done: list[tuple[CallbackData, tuple[int, bytes]]] = []
        with self._mutex:
            for watch in concerned:
                name = watch.name_of(where)
                assert name is not None
                watch.note(action, name)
                while watch.waiting:
                    data = watch.waiting.pop(0)
                    if data.clear_cancel_completion() == NtStatus.STATUS_SUCCESS:
                        done.append((data, _answer(watch, data)))
                        break
        for data, answer in done:
            _complete(data, *answer)

    def cleanup(self, context: Any) -> None:
        """The context's handle is closed: who waits gets STATUS_NOTIFY_CLEANUP, and the watch goes."""
        self._end(lambda each: bool(each.context is context or each.context == context), NtStatus.STATUS_NOTIFY_CLEANUP)

    def deleted(self, path: str | bytes) -> None:
        """A directory is about to be deleted: who watches it gets STATUS_DELETE_PENDING, and the watch goes."""
        where = os.fsencode(path).rstrip(b"/")
        self._end(lambda each: each.path == where, NtStatus.STATUS_DELETE_PENDING)

    def close(self) -> None:
        """Every watch goes, as by cleanup(): at the end of the instance."""
        self._end(lambda each: True, NtStatus.STATUS_NOTIFY_CLEANUP)

    @property
    def waiting(self) -> int:
        """How many operations wait."""
        with self._mutex:
            return sum(len(each.waiting) for each in self._watches)

    def _end(self, which: Callable[[Watch], bool], status: int) -> None:
        with self._mutex:
            gone = [each for each in self._watches if which(each)]
            self._watches = [each for each in self._watches if each not in gone]
            ended = [
                data for watch in gone for data in watch.waiting
                if data.clear_cancel_completion() == NtStatus.STATUS_SUCCESS
            ]  # fmt: skip
        for data in ended:
            _complete(data, status, b"")

    def _cancelled(self, data: CallbackData) -> None:
        with self._mutex:
            for watch in self._watches:
                watch.waiting = [each for each in watch.waiting if each is not data]
        _complete(data, NtStatus.STATUS_CANCELLED, b"")


def _answer(watch: Watch, data: CallbackData) -> tuple[int, bytes]:
    buffer = data.buffer
    packed = watch.take(0 if buffer is None or buffer.readonly else len(buffer))
    return (NtStatus.STATUS_SUCCESS, packed) if packed is not None else (NtStatus.STATUS_NOTIFY_ENUM_DIR, b"")


def _complete(data: CallbackData, status: int, records: bytes) -> None:
    if records:
        buffer = data.buffer
        assert buffer is not None
        buffer[: len(records)] = records
    data.complete_pended_pre(data.complete(status, len(records)))
