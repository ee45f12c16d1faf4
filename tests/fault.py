"""A filter for tests, below all others: writes down what changes the backing directory, and lets operations fail.

What is to be made durable is decided above; what this one sees is what the base is asked for. Each change is a record
in `log`, in the order in which the base made them: between a change's two callbacks there is no other change. Records
are tuples, pickled one behind the other; an inode is (number, birth time), so that a number that is used again is
another inode. The first records are the backing directory as it was when it was mounted.

    ("inode", inode, mode, uid, gid, target)      seen for the first time
    ("names", ((directory, name, inode or None), ...))      what the names are from now on, all of them at once
    ("write", inode, offset, data)  ("resize", inode, size)  ("punch", inode, offset, length)
    ("attribute", inode, name, value or None)  ("mode", inode, mode, uid, gid)
    ("sync", inode)  ("sync-volume",)
    ("failed", kind)                              this one was asked for, and answered with an error

`control`, if it is there, says which operations fail: a line "KIND ERRNO SKIP COUNT": of the operations of that kind
(write, resize, punch, names, attribute, mode, sync; any: all of them) SKIP pass, the COUNT next ones fail with that
errno, the others pass. ENOSPC of a write of more than one byte leaves the first half of it, as a disk that becomes full
does. Counting begins anew when the file is written.
"""

from __future__ import annotations

import errno
import os
import pickle
import threading
from typing import Any

from stackfs.api import (
    FILE_OPEN,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE,
    FSCTL_SET_REPARSE_POINT,
    FSCTL_SET_ZERO_DATA,
    IRP_MJ_CREATE,
    IRP_MJ_FILE_SYSTEM_CONTROL,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_SET_EA,
    IRP_MJ_SET_INFORMATION,
    IRP_MJ_SET_SECURITY,
    IRP_MJ_WRITE,
    STATUS_SUCCESS,
    FileDispositionInformation,
    FileEndOfFileInformation,
    FileLinkInformation,
    FileRenameInformation,
    FileRenameInformationEx,
    Filter,
    Operation,
    from_errno,
    is_success,
)

MANIFEST = {
    "name": "fault",
    "altitude": "45010",
    "group": "FSFilter Bottom",
    "filter": "Fault",
    "options": {
        "log": {"type": "path", "required": True, "doc": "Where records go."},
        "control": {"type": "path", "doc": "A file that says what fails."},
    },
}

RENAMES = (FileRenameInformation, FileRenameInformationEx)


class Fault(Filter):
    operations = tuple(
        Operation(major, pre="pre", post="post")
        for major in (
            IRP_MJ_CREATE,
            IRP_MJ_WRITE,
            IRP_MJ_FLUSH_BUFFERS,
            IRP_MJ_SET_INFORMATION,
            IRP_MJ_FILE_SYSTEM_CONTROL,
            IRP_MJ_SET_EA,
            IRP_MJ_SET_SECURITY,
        )
    )

    def instance_setup(self, instance: Any, flags: int) -> int:
        self.log = os.open(instance.options["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.control = instance.options["control"]
        self.written, self.rule, self.counted = 0, None, 0
        self.known: set[tuple[int, int]] = set()
        self.lock = threading.RLock()
        self.snapshot(instance, "/")
        self.record("sync-volume")
        return STATUS_SUCCESS

    def instance_teardown_complete(self, instance: Any, reason: int) -> None:
        os.close(self.log)

    def record(self, *record: Any) -> None:
        os.write(self.log, pickle.dumps(record))

    # --- inodes

    def seen(self, found: Any, target: bytes | None = None) -> tuple[int, int]:
        inode = (found.inode, found.btime_ns)
        if inode not in self.known:
            self.known.add(inode)
            self.record("inode", inode, found.mode, found.uid, found.gid, target)
        return inode

    def called(self, objects: Any, directory: Any, name: Any) -> tuple[int, int] | None:
        """What a name leads to."""
        try:
            found = objects.stat(name, directory=directory)
        except FileNotFoundError:
            return None
        link = found.mode & 0o170000 == 0o120000
        return self.seen(found, objects.readlink(name, directory=directory) if link else None)

    def snapshot(self, instance: Any, path: str) -> None:
        top = self.seen(instance.stat(path))
        for entry in instance.listdir(path):
            name = os.fsencode(entry if isinstance(entry, (str, bytes)) else entry.name)
            below = os.path.join(path, os.fsdecode(name))
            inode = self.called(instance, None, below)
            self.record("names", ((top, name, inode),))
            mode = instance.stat(below).mode & 0o170000
            if mode == 0o040000:
                self.snapshot(instance, below)
            elif mode == 0o100000:
                with instance.open(below, os.O_RDONLY) as file:
                    self.record("write", inode, 0, file.read(0, 1 << 24))
                    for each in file.list_eas():
                        self.record("attribute", inode, each, file.get_ea(each))

    # --- callbacks

    def kind(self, data: Any) -> str | None:
        major = data.major
        if major == IRP_MJ_CREATE:
            return "names" if data.create_disposition != FILE_OPEN or data.open_flags & os.O_TRUNC else None
        if major == IRP_MJ_FILE_SYSTEM_CONTROL:
            return {FSCTL_SET_ZERO_DATA: "punch", FSCTL_SET_REPARSE_POINT: "names"}.get(data.control_code)
        if major == IRP_MJ_SET_INFORMATION:
            which = data.information_class
            if which == FileEndOfFileInformation:
                return "resize"
            names = (FileLinkInformation, FileDispositionInformation, *RENAMES)
            return "names" if which in names else None
        kinds = {IRP_MJ_WRITE: "write", IRP_MJ_FLUSH_BUFFERS: "sync", IRP_MJ_SET_EA: "attribute"}
        return kinds.get(major, "mode")

    def pre(self, data: Any, objects: Any) -> Any:
        kind = self.kind(data)
        if kind is None:
            return FLT_PREOP_SUCCESS_NO_CALLBACK
        self.lock.acquire()
        try:
            error = self.fails(kind)
            if error == errno.ENOSPC and kind == "write" and data.length > 1:
                data.length //= 2
                data.set_dirty()
            elif error:
                self.record("failed", kind)
                self.lock.release()
                return data.complete(from_errno(error))
            where = None
            if kind == "names":
                where = self.where(data, objects)
            status = FLT_PREOP_SUCCESS_WITH_CALLBACK if data.major == IRP_MJ_CREATE else FLT_PREOP_SYNCHRONIZE
            return status, (kind, where)
        except BaseException:
            self.lock.release()
            raise

    def fails(self, kind: str) -> int:
        """The errno that this operation is to fail with, or 0."""
        try:
            changed = os.stat(self.control).st_mtime_ns if self.control else 0
        except FileNotFoundError:
            changed = 0
        if changed != self.written:
            with open(self.control, encoding="ascii") as file:
                words = file.read().split()
            self.written, self.counted = changed, 0
            self.rule = (words[0], *map(int, words[1:])) if words else None
        if self.rule is None or self.rule[0] not in (kind, "any"):
            return 0
        self.counted += 1
        _, error, skip, count = self.rule
        return error if skip < self.counted <= skip + count else 0

    def where(self, data: Any, objects: Any) -> list[tuple[Any, bytes]]:
        """The names that are about to change, each with its directory's file object or path."""
        found: list[tuple[Any, bytes]] = []
        if data.name:
            found.append((data.directory, data.name))
        if data.major == IRP_MJ_SET_INFORMATION and data.information_class in (FileLinkInformation, *RENAMES):
            to = data.destination_name_information()
            found.append((to.parent_dir or "/", data.target_name))
        return found

    def post(self, data: Any, objects: Any, context: Any, flags: int) -> None:
        kind, where = context
        try:
            if flags or not is_success(data.status):
                self.record("failed", kind)
            else:
                self.done(data, objects, kind, where)
        finally:
            self.lock.release()

    def done(self, data: Any, objects: Any, kind: str, where: Any) -> None:
        if kind == "names":
            names = []
            for directory, name in where:
                if isinstance(directory, str):
                    top = self.seen(objects.stat(directory))
                    inode = self.called(objects, None, os.path.join(os.fsencode(directory), name))
                else:
                    top = self.seen(directory.stat())
                    inode = self.called(objects, directory, name)
                names.append((top, name, inode))
            if names:
                self.record("names", tuple(names))
            if data.major == IRP_MJ_CREATE and data.open_flags & os.O_TRUNC:
                self.record("resize", self.seen(data.file.stat()), 0)
            return
        if kind == "sync" and data.file.is_synthesised:
            self.record("sync-volume")
            return
        found = data.file.stat()
        inode = self.seen(found)
        if kind == "write":
            offset = data.offset if data.offset >= 0 else found.size - data.information
            self.record("write", inode, offset, bytes(data.buffer[: data.information]))
        elif kind == "resize":
            self.record("resize", inode, data.end_of_file)
        elif kind == "punch":
            self.record("punch", inode, *data.range)
        elif kind == "sync":
            self.record("sync", inode)
        elif kind == "attribute":
            value = None if data.request == "removexattr" else bytes(data.buffer)
            self.record("attribute", inode, data.ea_name, value)
        else:
            self.record("mode", inode, found.mode, found.uid, found.gid)
