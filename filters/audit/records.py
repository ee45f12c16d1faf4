"""The audit trail on disk: its files, its records, and reading them.

docs/audit.md is the contract (byte tables, worked example); the offsets here and in `_trail.pxd` follow it. This module
only reads, takes no lock, and needs neither the compiled core nor the drive: a trail can be read on any machine.

A trail is a directory:

    00000001.audit, ...   segments: MAGIC, then records back to back, the first of them a SEGMENT record
    head                  the last sealed position and its digest, authenticated; replaced atomically at each flush
    state                 the key of the current epoch (mode 0600); two slots of which one is empty

All integers are little-endian. Every record ends with HMAC-SHA256(record key of its epoch, MAC before || record).
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, BinaryIO

MAGIC = b"SFAUDIT1"
HEAD_MAGIC = b"SFAHEAD1"
STATE_MAGIC = b"SFASTAT1"
KEY_FILE_TITLE = "stackfs audit key 1"
FORMAT = 1

MAC_SIZE = 32
FIRST_MAC = bytes(MAC_SIZE)
HEAD_SIZE = 152
SLOT_SIZE = 512
STATE_SIZE = 2 * SLOT_SIZE
MAX_TEXT = 4096
SEGMENT_NAME = re.compile(r"([0-9]{8,12})\.audit\Z")

LABEL_NEXT = b"stackfs audit 1 next epoch"
LABEL_RECORD = b"stackfs audit 1 record"
LABEL_HEAD = b"stackfs audit 1 head"

# Kinds of record
SEGMENT, REQUEST, SEAL, LOST, OPENED, RECOVERED = 1, 2, 3, 4, 5, 6
KINDS = {SEGMENT: "segment", REQUEST: "request", SEAL: "seal", LOST: "lost", OPENED: "opened", RECOVERED: "recovered"}

# Flags of a request record
PATH_PARTIAL, PATH_DELETED, DRAINED, KERNEL, OTHER_PARTIAL = 1, 2, 4, 8, 16
FLAG_NAMES = {
    PATH_PARTIAL: "path_partial",
    PATH_DELETED: "path_deleted",
    DRAINED: "drained",
    KERNEL: "kernel",
    OTHER_PARTIAL: "other_partial",
}

# Kinds of head
HEAD_SEALED, HEAD_CLOSED, HEAD_OPENED = 0, 1, 2

HEADER = struct.Struct("<IBBHQQ")  # length, kind, format, flags, sequence, time
REQUEST_BODY = struct.Struct("<QqQQQiIIIIIIIHHHH16s")  # after HEADER; paths follow
REQUEST_FIXED = HEADER.size + REQUEST_BODY.size
SEGMENT_BODY = struct.Struct("<QQ16s32sHHI")  # number, epoch, trail, MAC before, text length
SEAL_BODY = struct.Struct("<QQII")  # epoch, records since the last seal, closed
LOST_BODY = struct.Struct("<QQQ")  # let pass unrecorded, refused, time of the first
OPENED_BODY = struct.Struct("<IIHHI")  # process id, user id, text length
RECOVERED_BODY = struct.Struct("<QQQ")  # records found after the last seal, bytes dropped, last sealed
HEAD_BODY = struct.Struct("<8sII16sQQQQQ32s16s")  # magic, format, kind, trail, epoch, sequence, segment, end, time
SLOT_BODY = struct.Struct("<8sII16sQ32s")  # magic, format, 0, trail, epoch, key; SHA-256 of these follows

# The requests of the kernel, as FUSE numbers them.
OPERATIONS = {
    1: "lookup",
    2: "forget",
    3: "getattr",
    4: "setattr",
    5: "readlink",
    6: "symlink",
    8: "mknod",
    9: "mkdir",
    10: "unlink",
    11: "rmdir",
    12: "rename",
    13: "link",
    14: "open",
    15: "read",
    16: "write",
    17: "statfs",
    18: "release",
    20: "fsync",
    21: "setxattr",
    22: "getxattr",
    23: "listxattr",
    24: "removexattr",
    25: "flush",
    27: "opendir",
    28: "readdir",
    29: "releasedir",
    30: "fsyncdir",
    31: "getlk",
    32: "setlk",
    33: "setlkw",
    34: "access",
    35: "create",
    37: "bmap",
    39: "ioctl",
    40: "poll",
    43: "fallocate",
    44: "readdirplus",
    45: "rename2",
    46: "lseek",
    47: "copy_file_range",
    50: "syncfs",
    51: "tmpfile",
    52: "statx",
    53: "copy_file_range_64",
}
NAMES = {name: number for number, name in OPERATIONS.items()}
# Shown, and asked for, under one name.
SAME_NAME = {"rename2": "rename", "readdirplus": "readdir", "copy_file_range_64": "copy_file_range"}

_DATA = (
    "open",
    "create",
    "tmpfile",
    "read",
    "write",
    "release",
    "fsync",
    "fallocate",
    "copy_file_range",
    "lseek",
)
_CHANGES = (
    "create",
    "tmpfile",
    "write",
    "setattr",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "setxattr",
    "removexattr",
    "fallocate",
    "copy_file_range",
    "ioctl",
)
_NAMES = (
    "lookup",
    "create",
    "tmpfile",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "readlink",
    "opendir",
    "readdir",
    "releasedir",
)
# No filter sees these (semantics D); a poll changes nothing.
NO_OPERATION = frozenset({"forget", "flush", "poll", "bmap", "syncfs"})
# A lock may wait for hours, and would keep its record's room in the ring all the while.
NOT_RECORDED = frozenset({"getlk", "setlk", "setlkw"})
GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(name for name in NAMES if name not in NO_OPERATION | NOT_RECORDED),
    "data": _DATA,
    "changes": _CHANGES,  # and an open that truncates (WATCH_TRUNCATING)
    "names": _NAMES,
}
WATCH_TRUNCATING = 1 << 63  # in a watch mask: an open with O_TRUNC, though opens are not watched

MAJORS = {
    0x00: "CREATE",
    0x02: "CLOSE",
    0x03: "READ",
    0x04: "WRITE",
    0x05: "QUERY_INFORMATION",
    0x06: "SET_INFORMATION",
    0x07: "QUERY_EA",
    0x08: "SET_EA",
    0x09: "FLUSH_BUFFERS",
    0x0A: "QUERY_VOLUME_INFORMATION",
    0x0C: "DIRECTORY_CONTROL",
    0x0D: "FILE_SYSTEM_CONTROL",
    0x0E: "DEVICE_CONTROL",
    0x11: "LOCK_CONTROL",
    0x12: "CLEANUP",
    0x14: "QUERY_SECURITY",
    0x15: "SET_SECURITY",
    0xF2: "NETWORK_QUERY_OPEN",
    0xF9: "QUERY_OPEN",
}

# Which operations can write a request's record: the one that stands for it, in each form it may take (by path, by
# handle, refused as fast I/O, security instead of an extended attribute), and those before it that may end the request
# (semantics D). What no watched request needs is not registered.
_ATTRIBUTES = "CREATE QUERY_INFORMATION NETWORK_QUERY_OPEN"
RECORDED_BY = {
    "lookup": "CREATE QUERY_INFORMATION QUERY_OPEN",
    "access": "CREATE QUERY_INFORMATION QUERY_OPEN",
    "getattr": _ATTRIBUTES,
    "statx": _ATTRIBUTES,
    "setattr": "CREATE SET_SECURITY SET_INFORMATION QUERY_INFORMATION",
    "readlink": "CREATE FILE_SYSTEM_CONTROL",
    "symlink": "CREATE FILE_SYSTEM_CONTROL",
    "mknod": "CREATE",
    "mkdir": "CREATE",
    "unlink": "CREATE SET_INFORMATION",
    "rmdir": "CREATE SET_INFORMATION",
    "rename": "CREATE SET_INFORMATION",
    "link": "CREATE SET_INFORMATION",
    "open": "CREATE",
    "opendir": "CREATE",
    "create": "CREATE",
    "tmpfile": "CREATE",
    "read": "READ",
    "write": "WRITE",
    "statfs": "QUERY_VOLUME_INFORMATION",
    "release": "CLEANUP",
    "releasedir": "CLEANUP",
    "fsync": "FLUSH_BUFFERS",
    "fsyncdir": "FLUSH_BUFFERS",
    "getxattr": "CREATE QUERY_EA QUERY_SECURITY",
    "listxattr": "CREATE QUERY_EA QUERY_SECURITY",
    "setxattr": "CREATE SET_EA SET_SECURITY",
    "removexattr": "CREATE SET_EA SET_SECURITY",
    "readdir": "DIRECTORY_CONTROL",
    "lseek": "QUERY_INFORMATION",
    "fallocate": "SET_INFORMATION FILE_SYSTEM_CONTROL",
    "copy_file_range": "FILE_SYSTEM_CONTROL",
    "ioctl": "FILE_SYSTEM_CONTROL DEVICE_CONTROL",
}


class FormatError(ValueError):
    """Bytes that are no record, head, state or key file of a trail."""


class IncompleteError(FormatError):
    """The bytes end before the record does, and what is there could be the beginning of one."""


def operation_name(opcode: int) -> str:
    name = OPERATIONS.get(opcode, f"opcode{opcode}")
    return SAME_NAME.get(name, name)


def watch_mask(text: str) -> int:
    """The set of requests that `operations` names: groups and names, split by commas, blanks or '+'; '-name' takes off.

    Bit n stands for FUSE opcode n. Raises ValueError with a line for the user.
    """
    mask = 0
    for word in re.split(r"[\s,+]+", text.strip()):
        if not word:
            continue
        name = word.removeprefix("-")
        if name not in GROUPS and name not in NAMES:
            known = ", ".join([*GROUPS, *sorted(set(NAMES) - set(SAME_NAME) - NO_OPERATION - NOT_RECORDED)])
            raise ValueError(f"operations: {name!r} is neither a group nor a request ({known})")
        if name in NO_OPERATION:
            raise ValueError(f"operations: {name!r} is a request that no filter sees, so it cannot be watched")
        if name in NOT_RECORDED:
            raise ValueError(f"operations: {name!r} is not recorded: a lock may wait for as long as it likes")
        bits = 0
        for member in GROUPS.get(name, (name,)):
            bits |= 1 << NAMES[member]
            for other, same in SAME_NAME.items():
                if same == member:
                    bits |= 1 << NAMES[other]
        if name in ("changes", "open"):
            bits |= WATCH_TRUNCATING
        mask = mask & ~bits if word.startswith("-") else mask | bits
    if not mask & ~WATCH_TRUNCATING:
        raise ValueError(f"operations: {text!r} names no request to watch")
    return mask


def watched_majors(mask: int) -> list[int]:
    """The IRP_MJ_* operations to register so that each request in a watch mask gets its record."""
    wanted = {"CREATE"} if mask & WATCH_TRUNCATING else set()
    for number in OPERATIONS:
        if mask >> number & 1:
            wanted.update(RECORDED_BY[operation_name(number)].split())
    return [major for major, name in MAJORS.items() if name in wanted]


# Keys ----------------------------------------------------------------------------------------------------------------


def next_key(key: bytes) -> bytes:
    """The key of the epoch after `key`'s; there is no way back."""
    return hmac.digest(key, LABEL_NEXT, "sha256")


def record_key(key: bytes) -> bytes:
    return hmac.digest(key, LABEL_RECORD, "sha256")


def head_key(key: bytes) -> bytes:
    return hmac.digest(key, LABEL_HEAD, "sha256")


@dataclass(frozen=True)
class KeyFile:
    """The first key, as it was written once when the trail was begun."""

    trail: bytes
    key: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> KeyFile:
        lines = text.split("\n")
        if not lines or lines[0] != KEY_FILE_TITLE:
            raise FormatError(f"no audit key file (its first line must be {KEY_FILE_TITLE!r})")
        values = dict(line.split(" ", 1) for line in lines[1:] if " " in line)
        try:
            result = cls(trail=bytes.fromhex(values["trail"]), key=bytes.fromhex(values["key"]))
        except (KeyError, ValueError) as error:
            raise FormatError(f"damaged audit key file ({error})") from error
        if len(result.trail) != 16 or len(result.key) != 32:
            raise FormatError("damaged audit key file (wrong length)")
        return result


# Records -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """One record. Times in ns; `path` and `other` as the base names them, any bytes."""

    kind: int
    flags: int
    sequence: int
    time: int
    length: int  # bytes on disk
    fields: dict[str, Any]
    mac: bytes = field(repr=False)

    @property
    def kind_name(self) -> str:
        return KINDS[self.kind]

    @property
    def operation(self) -> str:
        return operation_name(self.fields["opcode"]) if self.kind == REQUEST else KINDS[self.kind]

    @property
    def path(self) -> bytes:
        value: bytes = self.fields.get("path", b"")
        return value

    @property
    def status_name(self) -> str:
        """The errno's name, "" for success, the status itself where no errno stands for it."""
        number, status = self.fields.get("errno", 0), self.fields.get("status", 0)
        if number:
            return errno.errorcode.get(number, str(number))
        return "" if status >= 0 else f"0x{status & 0xFFFFFFFF:08X}"


def _align(size: int) -> int:
    return (size + 7) & ~7


def parse_record(data: bytes | memoryview, at: int = 0) -> Record:
    """The record at `at`. Its form is checked, its MAC is not.

    Every length is held against every other one, so that a changed length is never taken for a record that a crash cut
    short: IncompleteError means that all that is there is consistent.
    """
    available = len(data) - at
    if available < HEADER.size:
        raise IncompleteError("the record's header is cut short")
    length, kind, version, flags, sequence, time = HEADER.unpack_from(data, at)
    if version != FORMAT or kind not in KINDS:
        raise FormatError(f"kind {kind}, format {version}: no record")
    body = {
        SEGMENT: SEGMENT_BODY,
        REQUEST: REQUEST_BODY,
        SEAL: SEAL_BODY,
        LOST: LOST_BODY,
        OPENED: OPENED_BODY,
        RECOVERED: RECOVERED_BODY,
    }[kind]
    fixed = HEADER.size + body.size
    if available < fixed:
        if not fixed + MAC_SIZE <= length <= fixed + 2 * MAX_TEXT + MAC_SIZE:
            raise FormatError(f"length {length} cannot be")
        raise IncompleteError("the record is cut short")
    values = body.unpack_from(data, at + HEADER.size)
    texts: tuple[int, ...] = ()
    fields: dict[str, Any]
    if kind == REQUEST:
        (
            duration,
            offset,
            size,
            information,
            request,
            status,
            opcode,
            pid,
            tid,
            uid,
            gid,
            argument,
            number,
            path_length,
            other_length,
            major,
            _,
            comm,
        ) = values
        fields = {
            "duration": duration,
            "offset": offset,
            "length": size,
            "information": information,
            "request": request,
            "status": status,
            "opcode": opcode,
            "pid": pid,
            "tid": tid,
            "uid": uid,
            "gid": gid,
            "argument": argument,
            "errno": number,
            "major": major,
            "comm": comm.split(b"\0", 1)[0],
        }
        texts = (path_length, other_length)
    elif kind == SEGMENT:
        fields = dict(zip(("number", "epoch", "trail", "previous"), values[:4], strict=True))
        texts = (values[4],)
    elif kind == SEAL:
        fields = {"epoch": values[0], "records": values[1], "closed": bool(values[2])}
    elif kind == LOST:
        fields = dict(zip(("lost", "refused", "since"), values, strict=True))
    elif kind == OPENED:
        fields = {"pid": values[0], "uid": values[1]}
        texts = (values[2],)
    else:
        fields = dict(zip(("records", "dropped", "sealed"), values, strict=True))
    if any(text > MAX_TEXT for text in texts) or length != _align(fixed + sum(texts)) + MAC_SIZE:
        raise FormatError(f"length {length} does not fit the record's parts")
    if available < length:
        raise IncompleteError("the record is cut short")
    position = at + fixed
    for name, text in zip(("path", "other") if kind == REQUEST else ("text",), texts, strict=False):
        fields[name] = bytes(data[position : position + text])
        position += text
    end = at + length
    return Record(kind, flags, sequence, time, length, fields, bytes(data[end - MAC_SIZE : end]))


def chain(key: bytes, previous: bytes, record: bytes | bytearray | memoryview) -> bytes:
    """The MAC that a record (without its own) has after `previous` under the record key `key`."""
    return hmac.digest(key, previous + bytes(record), "sha256")


@dataclass(frozen=True, slots=True)
class Head:
    """What the trail had come to when it was last sealed."""

    kind: int
    trail: bytes
    epoch: int
    sequence: int
    segment: int
    end: int  # length of that segment up to and including the record
    time: int
    digest: bytes  # the record's MAC
    mac: bytes = field(repr=False)
    body: bytes = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> Head:
        if len(data) != HEAD_SIZE:
            raise FormatError(f"{len(data)} bytes instead of {HEAD_SIZE}")
        magic, version, kind, trail, epoch, sequence, segment, end, time, digest, _ = HEAD_BODY.unpack_from(data)
        if magic != HEAD_MAGIC or version != FORMAT or kind not in (HEAD_SEALED, HEAD_CLOSED, HEAD_OPENED):
            raise FormatError("no head")
        size = HEAD_SIZE - MAC_SIZE
        return cls(kind, trail, epoch, sequence, segment, end, time, digest, data[size:], data[:size])

    def is_authentic(self, key: bytes) -> bool:
        """Whether this head was made with `key`, the key of its epoch."""
        return hmac.compare_digest(hmac.digest(head_key(key), self.body, "sha256"), self.mac)


@dataclass(frozen=True, slots=True)
class State:
    """The state file without its key's secrecy: only verify, which has the first key anyway, looks at the key."""

    trail: bytes
    epoch: int
    key: bytes = field(repr=False)
    clean: bool  # the other slot is empty, as it is except during a flush

    @classmethod
    def parse(cls, data: bytes) -> State:
        if len(data) != STATE_SIZE:
            raise FormatError(f"{len(data)} bytes instead of {STATE_SIZE}")
        slots = [data[:SLOT_SIZE], data[SLOT_SIZE:]]
        found = []
        for index, slot in enumerate(slots):
            if not any(slot):
                continue
            magic, version, reserved, trail, epoch, key = SLOT_BODY.unpack_from(slot)
            check = slot[SLOT_BODY.size : SLOT_BODY.size + 32]
            if (
                magic != STATE_MAGIC
                or version != FORMAT
                or reserved
                or epoch % 2 != index
                or sha256(slot[: SLOT_BODY.size]).digest() != check
                or any(slot[SLOT_BODY.size + 32 :])
            ):
                raise FormatError(f"slot {index} is damaged")
            found.append((epoch, trail, key))
        if not found:
            raise FormatError("no key in it")
        epoch, trail, key = max(found)
        if len(found) == 2 and (found[0][1] != found[1][1] or abs(found[0][0] - found[1][0]) != 1):
            raise FormatError("its two slots do not belong together")
        return cls(trail, epoch, key, len(found) == 1)


# Reading a trail -----------------------------------------------------------------------------------------------------


def segment_name(number: int) -> str:
    return f"{number:08d}.audit"


def segments(directory: str | int) -> list[int]:
    """Numbers of the segments that are there, in order."""
    found = []
    for name in os.listdir(directory):
        match = SEGMENT_NAME.match(name)
        if match and name == segment_name(int(match[1])):
            found.append(int(match[1]))
    return sorted(found)


def open_file(directory: str | int, name: str) -> BinaryIO:
    """A file of the trail, for reading, never through a link. `directory`: a path or a descriptor.

    Whatever lies there under the name: FormatError when it is no regular file.
    """
    if isinstance(directory, str):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_file(descriptor, name)
        finally:
            os.close(descriptor)
    try:
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            raise FormatError("no regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise FormatError("no regular file")
    return open(found, "rb")


def read_file(directory: str | int, name: str) -> bytes:
    """The whole of it."""
    with open_file(directory, name) as file:
        return file.read()


@dataclass
class Cursor:
    """A place in a trail to read on from; `follow` keeps one across rotations."""

    segment: int = 0
    offset: int = 0


def read_on(directory: str, cursor: Cursor) -> Iterator[Record]:
    """Records from `cursor` to where the trail ends now, moving the cursor; a damaged place ends its segment.

    For showing: nothing is authenticated here.
    """
    for number in segments(directory):
        if number < cursor.segment:
            continue
        if number > cursor.segment:
            cursor.segment, cursor.offset = number, 0
        with contextlib.suppress(FileNotFoundError, FormatError), open_file(directory, segment_name(number)) as file:
            file.seek(cursor.offset)
            pending = b""
            while block := file.read(1 << 20):
                pending += block
                at = 0
                if cursor.offset == 0:
                    if len(pending) < len(MAGIC):
                        continue
                    at = len(MAGIC)
                    cursor.offset = at
                while True:
                    try:
                        record = parse_record(pending, at)
                    except IncompleteError:
                        break
                    except FormatError:
                        cursor.offset = file.seek(0, os.SEEK_END)
                        pending, at = b"", 0
                        break
                    at += record.length
                    cursor.offset += record.length
                    yield record
                pending = pending[at:]


def read_trail(directory: str) -> Iterator[Record]:
    """All records of a trail as they are, oldest first."""
    return read_on(directory, Cursor())
