"""Checking a trail against its first key: what was changed, removed or cut off, and where first.

The walk goes through the segments in order, carrying the key of the epoch, the MAC before and the number expected next;
each step depends on all before it, so the first thing that does not fit is the first thing that is wrong. Then the
head and the state are held against what was found. docs/audit.md, "What verify promises", is the contract.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hmac
import os
from dataclasses import dataclass, field

from stackfs.filters.audit import records
from stackfs.filters.audit.records import FormatError, Head, IncompleteError, KeyFile, Record, State

MAX_AHEAD = 50_000_000  # epochs walked on beyond the trail's end to authenticate a head (about a minute)

CLEAN, TAMPERED, UNCLEAN, LIVE = "clean", "tampered", "unclean", "live"
EXIT_CODES = {CLEAN: 0, LIVE: 0, TAMPERED: 8, UNCLEAN: 9}


@dataclass
class Report:
    """What verify has to say. `sequence`: the first record that is wrong; the head where no record is."""

    outcome: str
    message: str
    sequence: int | None = None
    what: str = ""  # changed, removed, cut, added, head, state; "" when nothing is wrong
    segment: int | None = None
    offset: int | None = None
    records: int = 0  # authenticated, of every kind
    sealed: int = 0  # the last one that the head answers for
    digest: str = ""  # MAC of the last authenticated record
    epoch: int = 0
    lost: int = 0  # operations that `full` let pass unrecorded
    refused: int = 0
    recoveries: list[int] = field(default_factory=list)  # sequence numbers of `recovered` records
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


class _Tampered(Exception):
    def __init__(
        self,
        what: str,
        message: str,
        sequence: int | None = None,
        segment: int | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.what, self.sequence, self.segment, self.offset = what, sequence, segment, offset


@dataclass(slots=True)
class _Place:
    """A record that the walk has authenticated, as far as head and state refer to it."""

    digest: bytes
    epoch: int  # in force after the record
    sealed_epoch: int | None  # the epoch that it sealed, if it is a seal
    segment: int
    end: int
    keys: dict[int, bytes]  # of the epochs before and after it


class _Walk:
    """State of the walk: everything is authenticated up to `mac`, and `sequence` comes next."""

    def __init__(self, key_file: KeyFile, wanted: int | None) -> None:
        self.trail = key_file.trail
        self.key = key_file.key
        self.record_key = records.record_key(self.key)
        self.epoch = 0
        self.mac = records.FIRST_MAC
        self.sequence = 1
        self.segment = 0
        self.end = 0
        self.wanted = wanted  # the sequence that the head names
        self.found: _Place | None = None
        self.keys: dict[int, bytes] = {0: self.key}  # of the last few epochs
        self.lost = self.refused = 0
        self.recoveries: list[int] = []
        self.expected: dict[int, bytes] = {}  # digests noted elsewhere (--expect), checked as passed
        self.note(None)

    def note(self, sealed_epoch: int | None) -> None:
        if self.sequence - 1 == self.wanted:
            self.found = _Place(self.mac, self.epoch, sealed_epoch, self.segment, self.end, dict(self.keys))

    def ratchet(self) -> None:
        self.key = records.next_key(self.key)
        self.record_key = records.record_key(self.key)
        self.epoch += 1
        self.keys.pop(self.epoch - 4, None)
        self.keys[self.epoch] = self.key

    def accept_request(self, data: bytes, at: int) -> bool:
        """Goes past a request record that is authentic here; it need not be taken apart. False: look at it closely."""
        if len(data) - at < records.HEADER.size:
            return False
        length, kind, version, _, sequence, _ = records.HEADER.unpack_from(data, at)
        if kind != records.REQUEST or version != records.FORMAT or sequence != self.sequence:
            return False
        end = at + length
        if not records.REQUEST_FIXED + records.MAC_SIZE <= length <= len(data) - at:
            return False
        mac = hmac.digest(self.record_key, self.mac + data[at : end - records.MAC_SIZE], "sha256")
        if not hmac.compare_digest(mac, data[end - records.MAC_SIZE : end]):
            return False
        self.passed(sequence, mac, length)
        if sequence == self.wanted:
            self.note(None)
        return True

    def accept(self, record: Record) -> None:
        sealed_epoch = None
        self.passed(record.sequence, record.mac, record.length)
        if record.kind == records.SEAL:
            sealed_epoch = self.epoch
            self.ratchet()
        elif record.kind == records.LOST:
            self.lost += record.fields["lost"]
            self.refused += record.fields["refused"]
        elif record.kind == records.RECOVERED:
            self.recoveries.append(record.sequence)
        self.note(sealed_epoch)

    def passed(self, sequence: int, mac: bytes, length: int) -> None:
        self.mac = mac
        self.sequence += 1
        self.end += length
        expected = self.expected.get(sequence)
        if expected is not None and not hmac.compare_digest(expected, mac):
            raise _Tampered(
                "changed",
                f"record {sequence} is not the one with the digest you gave: an older trail, "
                "or another one, was put in its place",
                sequence,
                self.segment,
                self.end - length,
            )

    def check(self, data: bytes, at: int, record: Record) -> None:
        """Raises _Tampered unless `record`, at `at` in segment `self.segment`, is what must come here."""
        mac = records.chain(self.record_key, self.mac, memoryview(data)[at : at + record.length - records.MAC_SIZE])
        if hmac.compare_digest(mac, record.mac) and record.sequence == self.sequence:
            fields = record.fields
            if record.kind == records.SEAL and fields["epoch"] != self.epoch:
                raise self.changed(at, "its epoch is wrong")
            if record.kind == records.SEGMENT and (
                fields["number"] != self.segment
                or fields["trail"] != self.trail
                or fields["previous"] != self.mac
                or fields["epoch"] != self.epoch
            ):
                raise self.changed(at, "it is the head of another segment")
            return
        if record.sequence > self.sequence and self._goes_on_from(data, at, record):
            last = record.sequence - 1
            which = f"record {last} was" if last == self.sequence else f"records {self.sequence} to {last} were"
            raise _Tampered(
                "removed",
                f"{which} removed: record {record.sequence} follows record {self.sequence - 1}",
                self.sequence,
                self.segment,
                at,
            )
        raise self.changed(at, "its authentication code does not fit its content")

    def _goes_on_from(self, data: bytes, at: int, record: Record) -> bool:
        """Whether the numbers after `record` count on from its own (then it was not its number that was changed)."""
        after = at + record.length
        try:
            following = records.parse_record(data, after)
        except FormatError:
            # Nothing behind it to compare with: is it record `self.sequence` under another number?
            restored = bytearray(data[at : after - records.MAC_SIZE])
            restored[8:16] = self.sequence.to_bytes(8, "little")
            return not hmac.compare_digest(records.chain(self.record_key, self.mac, restored), record.mac)
        return following.sequence == record.sequence + 1

    def changed(self, at: int, reason: str) -> _Tampered:
        return _Tampered("changed", f"record {self.sequence} was changed: {reason}", self.sequence, self.segment, at)


def _is_locked(directory: int) -> bool:
    """Whether a daemon is writing this trail."""
    try:
        fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            return True
        raise
    fcntl.flock(directory, fcntl.LOCK_UN)
    return False


def _read_optional(directory: int, name: str) -> bytes | None:
    """What a file holds; None where there is none, and nothing where it is something else than a file."""
    try:
        return records.read_file(directory, name)
    except FileNotFoundError:
        return None
    except FormatError:
        return b""


def verify(path: str, key_file: KeyFile, *, copy: bool = False, expected: dict[int, bytes] | None = None) -> Report:
    """Checks the trail in directory `path`.

    copy: it is a copy made without the state file, whose absence is then no finding.
    expected: digests (32 bytes) by sequence number that were noted earlier, out of an attacker's reach.
    Raises OSError when the trail cannot be read, FormatError when there is none or the key is another trail's.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _Check(directory, key_file, copy, expected or {}).run()
    finally:
        os.close(directory)


class _Check:
    def __init__(self, directory: int, key_file: KeyFile, copy: bool, expected: dict[int, bytes]) -> None:
        self.directory = directory
        self.copy = copy
        # A trail may be written while it is read: state first, then head, then segments: each is at least as new
        # as what it is held against.
        self.live = _is_locked(directory)
        self.state_data = _read_optional(directory, "state")
        self.head_data = _read_optional(directory, "head")
        self.head: Head | None = None
        self.head_error = ""
        if self.head_data is None:
            self.head_error = "the head file is missing"
        else:
            try:
                self.head = Head.parse(self.head_data)
            except FormatError as error:
                self.head_error = f"the head file was changed: {error}"
        self.walk = _Walk(key_file, self.head.sequence if self.head else None)
        self.walk.expected = expected
        self.behind = False  # the state is that of before the seal which closed the trail
        self.torn = 0  # bytes at the end that are no whole record

    def check_key(self) -> None:
        """Raises FormatError for the key of another trail, which would make everything look changed."""
        trail = self.walk.trail
        if self.head_data is None and self.state_data is None and not records.segments(self.directory):
            raise FormatError("no audit trail in this directory")
        seen = [self.head.trail] if self.head else []
        with contextlib.suppress(FormatError):
            seen.append(State.parse(self.state_data or b"").trail)
        for number in records.segments(self.directory)[:1]:
            with contextlib.suppress(FormatError):
                first = records.parse_record(
                    records.read_file(self.directory, records.segment_name(number)), len(records.MAGIC)
                )
                seen.append(first.fields.get("trail", b""))
        if seen and trail not in seen and len(set(seen)) == 1:
            raise FormatError(f"the key file belongs to trail {trail.hex()}, and this is trail {seen[0].hex()}")

    def run(self) -> Report:
        self.check_key()
        try:
            self.read_segments()
            self.check_head()
            self.check_state()
            self.check_expected()
        except _Tampered as error:
            return self.report(
                TAMPERED,
                str(error),
                what=error.what,
                sequence=error.sequence,
                segment=error.segment,
                offset=error.offset,
            )
        walk, head = self.walk, self.head
        assert head is not None
        after = walk.sequence - 1 - head.sequence
        if self.live:
            report = self.report(
                LIVE, f"{walk.sequence - 1} records are as they were written; the trail is being written"
            )
        elif self.behind:
            report = self.report(
                UNCLEAN,
                f"unclean end: {walk.sequence - 1} records are as they were written and the trail was closed, but the "
                "state file is older than its last seal: a crash in that moment, or somebody put it back",
            )
        elif head.kind == records.HEAD_CLOSED and not after:
            report = self.report(CLEAN, f"{walk.sequence - 1} records are as they were written; the trail was closed")
        else:
            parts = [f"unclean end: the trail was not closed after record {walk.sequence - 1}"]
            if after:
                parts.append(f"records {head.sequence + 1} to {walk.sequence - 1} are authentic but were not sealed")
            if self.torn:
                parts.append(f"{self.torn} bytes of a record that was being written follow")
            report = self.report(UNCLEAN, "; ".join(parts))
        return report

    def report(
        self,
        outcome: str,
        message: str,
        *,
        what: str = "",
        sequence: int | None = None,
        segment: int | None = None,
        offset: int | None = None,
    ) -> Report:
        walk = self.walk
        notes = []
        if self.copy and self.state_data is None:
            notes.append(
                "without the state file, an older head and an older end of the trail, put back together, look genuine"
            )
        if walk.recoveries:
            notes.append(
                "the trail went on after an unclean end at " + ", ".join(f"record {n}" for n in walk.recoveries)
            )
        if walk.lost or walk.refused:
            notes.append(
                f"while the ring was full {walk.lost} requests passed unrecorded and {walk.refused} were refused"
            )
        return Report(
            outcome,
            message,
            sequence,
            what,
            segment,
            offset,
            records=walk.sequence - 1,
            sealed=self.head.sequence if self.head else 0,
            digest=walk.mac.hex(),
            epoch=walk.epoch,
            lost=walk.lost,
            refused=walk.refused,
            recoveries=walk.recoveries,
            notes=notes,
        )

    # The walk ---------------------------------------------------------------------------------------------------------

    def read_segments(self) -> None:
        walk = self.walk
        numbers = records.segments(self.directory)
        for position, number in enumerate(numbers):
            last = position == len(numbers) - 1
            walk.segment += 1
            if number != walk.segment:
                raise _Tampered(
                    "removed",
                    f"record {walk.sequence} and those after it were removed: "
                    f"{records.segment_name(walk.segment)} is missing",
                    walk.sequence,
                    walk.segment,
                    0,
                )
            try:
                data = records.read_file(self.directory, records.segment_name(number))
            except FormatError as error:
                raise walk.changed(0, f"its segment is {error}") from None
            self.read_segment(data, last)

    def read_segment(self, data: bytes, last: bool) -> None:
        walk = self.walk
        magic = data[: len(records.MAGIC)]
        walk.end = len(magic)
        if magic != records.MAGIC:
            if last and records.MAGIC.startswith(magic):
                return self.end_short(data, 0)
            raise walk.changed(0, "its segment does not begin as one")
        first = True
        while walk.end < len(data):
            at = walk.end
            if not first and walk.accept_request(data, at):
                continue
            try:
                record = records.parse_record(data, at)
            except IncompleteError:
                if last:
                    return self.end_short(data, at)
                raise _Tampered(
                    "cut",
                    f"record {walk.sequence} was cut: its segment ends within it",
                    walk.sequence,
                    walk.segment,
                    at,
                ) from None
            except FormatError as error:
                if last and not any(memoryview(data)[at:]):  # a power failure can leave zeros where data was to come
                    return self.end_short(data, at)
                raise walk.changed(at, str(error)) from None
            walk.check(data, at, record)
            if first != (record.kind == records.SEGMENT):
                raise walk.changed(at, "a segment begins with its segment record, and has no other")
            first = False
            walk.accept(record)
        if first:
            if not last:
                raise _Tampered(
                    "cut",
                    f"record {walk.sequence} was cut: its segment ends before it",
                    walk.sequence,
                    walk.segment,
                    walk.end,
                )
            self.end_short(data, len(data))
        return None

    def end_short(self, data: bytes, at: int) -> None:
        """The last segment ends in a record, or before its first: what a crash leaves, if the head was no further."""
        self.torn = len(data) - at
        head, walk = self.head, self.walk
        closed = head is not None and head.kind == records.HEAD_CLOSED
        if closed and head is not None and walk.sequence > head.sequence and not self.live:
            raise _Tampered(
                "added",
                f"{self.torn} bytes were added after record {walk.sequence - 1}, which closed the trail",
                walk.sequence,
                walk.segment,
                at,
            )

    # Head and state ---------------------------------------------------------------------------------------------------

    def check_head(self) -> None:
        walk, head = self.walk, self.head
        if head is None:
            raise _Tampered("head", self.head_error)
        if head.trail != walk.trail:
            raise _Tampered("head", "the head file was changed: it belongs to another trail, or the key does")
        found = walk.found
        if found is None:
            if head.sequence >= walk.sequence and self.authentic_beyond(head):
                raise _Tampered(
                    "cut",
                    f"records {walk.sequence} to {head.sequence} were cut off: the trail ends after record "
                    f"{walk.sequence - 1}, and record {head.sequence} had been sealed",
                    walk.sequence,
                    walk.segment,
                    walk.end,
                )
            raise _Tampered("head", "the head file was changed: its authentication code does not fit its content")
        key = found.keys.get(head.epoch)
        if key is None or not head.is_authentic(key):
            raise _Tampered("head", "the head file was changed: its authentication code does not fit its content")
        epoch = found.epoch if head.kind == records.HEAD_OPENED else found.sealed_epoch
        if (head.epoch, head.segment, head.end, head.digest) != (epoch, found.segment, found.end, found.digest):
            raise _Tampered("head", f"the head file does not fit record {head.sequence}")
        if head.kind == records.HEAD_CLOSED and walk.sequence - 1 > head.sequence and not self.live:
            raise _Tampered(
                "added", f"records were added after record {head.sequence}, which closed the trail", head.sequence + 1
            )

    def authentic_beyond(self, head: Head) -> bool:
        """Whether a head that is further than the trail is genuine; its epoch is walked to, within reason."""
        walk = self.walk
        if head.epoch in walk.keys:
            return head.is_authentic(walk.keys[head.epoch])
        if not walk.epoch < head.epoch <= walk.epoch + min(MAX_AHEAD, head.sequence):
            return False
        key = walk.key
        for _ in range(head.epoch - walk.epoch):
            key = records.next_key(key)
        return head.is_authentic(key)

    def check_state(self) -> None:
        if self.state_data is None:
            if self.copy:
                return
            raise _Tampered("state", "the state file is missing (a copy made without it is checked with --copy)")
        try:
            state = State.parse(self.state_data)
        except FormatError as error:
            if self.live:
                return
            raise _Tampered("state", f"the state file was changed: {error}") from None
        walk, head = self.walk, self.head
        assert head is not None
        if self.live:
            return
        if state.epoch not in self.epochs(head) or state.trail != walk.trail:
            raise _Tampered(
                "state",
                f"the state file belongs to epoch {state.epoch} and the head to epoch {head.epoch}: one of "
                "them was replaced by an older one, or changed",
            )
        key = walk.keys.get(state.epoch)
        if key is None or not hmac.compare_digest(key, state.key):
            raise _Tampered("state", "the state file was changed: its key is not the trail's")
        if walk.epoch > state.epoch + 1:
            raise _Tampered("state", "the head and the state file were replaced by older ones")
        self.behind = head.kind == records.HEAD_CLOSED and state.epoch == head.epoch
        if not state.clean and head.kind == records.HEAD_CLOSED:
            raise _Tampered("state", "the state file was changed: it holds a second key")

    @staticmethod
    def epochs(head: Head) -> tuple[int, ...]:
        """The epochs that the state may be in beside this head: a flush writes the head before the state."""
        return (head.epoch,) if head.kind == records.HEAD_OPENED else (head.epoch, head.epoch + 1)

    def check_expected(self) -> None:
        for sequence in sorted(self.walk.expected):
            if sequence >= self.walk.sequence:
                raise _Tampered(
                    "cut",
                    f"record {sequence}, whose digest you gave, is not there: the trail ends after record "
                    f"{self.walk.sequence - 1}",
                    self.walk.sequence,
                )
