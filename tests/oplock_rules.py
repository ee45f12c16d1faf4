# ruff: noqa: SIM102, SIM114 (the steps are the specification's)
"""The rules of oplocks, stated once more: the specification's pseudocode in Python, step by step, in its own order.

What cext/oplock.pyx has as tables stands here as the algorithms that [MS-FSA] gives, by its section numbers. The two
share nothing; test_oplock.py holds one against the other. Where the specification is silent, or contradicts itself or
the driver kit's pages on oplocks, docs/semantics.md A9 has the decision; such a place is marked `A9.n` here.

Nothing is optimised, nothing is concurrent. An operation that would wait is noted in Oplock.wait_list and returns WAIT.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SUCCESS = "STATUS_SUCCESS"
NOT_GRANTED = "STATUS_OPLOCK_NOT_GRANTED"
INVALID_PARAMETER = "STATUS_INVALID_PARAMETER"
INVALID_PROTOCOL = "STATUS_INVALID_OPLOCK_PROTOCOL"
CANNOT_GRANT = "STATUS_CANNOT_GRANT_REQUESTED_OPLOCK"
SWITCHED = "STATUS_OPLOCK_SWITCHED_TO_NEW_HANDLE"
HANDLE_CLOSED = "STATUS_OPLOCK_HANDLE_CLOSED"
CANNOT_BREAK = "STATUS_CANNOT_BREAK_OPLOCK"
PENDED = "pended"
WAIT = "wait"
GO = "go"
IN_PROGRESS = "STATUS_OPLOCK_BREAK_IN_PROGRESS"


class S:
    """2.1.1.10: an oplock's state. FILTER_OPLOCK is not in the specification, but in the driver kit (A9.15)."""

    READ = 0x1
    HANDLE = 0x2
    WRITE = 0x4
    LEVEL_TWO = 0x10
    LEVEL_ONE = 0x20
    BATCH = 0x40
    FILTER = 0x80
    EXCLUSIVE = 0x100
    MIXED = 0x200
    TO_READ = 0x1000
    TO_HANDLE = 0x2000
    TO_WRITE = 0x4000
    TO_NO_CACHING = 0x8000
    TO_TWO = 0x10000
    TO_NONE = 0x20000
    TO_TWO_TO_NONE = 0x40000


NO_OPLOCK = 0
CACHING = S.READ | S.HANDLE | S.WRITE
BREAK_LEVEL_MASK = S.TO_READ | S.TO_HANDLE | S.TO_WRITE | S.TO_NO_CACHING
BREAKING = BREAK_LEVEL_MASK | S.TO_TWO | S.TO_NONE | S.TO_TWO_TO_NONE
R, RH, RW, RWH = S.READ, S.READ | S.HANDLE, S.READ | S.WRITE, S.READ | S.WRITE | S.HANDLE
LEVELS = (S.LEVEL_ONE, S.LEVEL_TWO, S.BATCH, S.FILTER, R, RH, RW, RWH)

FILE_READ_DATA, FILE_WRITE_DATA, FILE_READ_EA, FILE_EXECUTE = 0x1, 0x2, 0x8, 0x20
FILE_READ_ATTRIBUTES, FILE_WRITE_ATTRIBUTES, DELETE, READ_CONTROL, SYNCHRONIZE = 0x80, 0x100, 0x10000, 0x20000, 0x100000
FILE_SUPERSEDE, FILE_OPEN, FILE_OVERWRITE, FILE_OVERWRITE_IF = 0, 1, 4, 5
FILE_SHARE_READ = 1


@dataclass(eq=False)
class Open:
    """2.1.1.6, as much as matters here."""

    name: str
    target_key: bytes = b""
    parent_key: bytes = b""


@dataclass(eq=False)
class Context:
    """2.1.1.11: a (READ|HANDLE) oplock that is breaking."""

    open: Open
    breaking_to_read: bool


@dataclass(eq=False)
class Operation:
    """What breaks oplocks, with what 2.1.4.12 looks at."""

    kind: str
    open: Open
    access: int = FILE_READ_DATA
    share: int = 7
    disposition: int = FILE_OPEN
    reserve_opfilter: bool = False
    parent_object: bool = False
    ignore_keys: bool = False


@dataclass(eq=False)
class Oplock:
    """2.1.1.10."""

    exclusive_open: Open | None = None
    level_two: list[Open] = field(default_factory=list)
    read: list[Open] = field(default_factory=list)
    read_handle: list[Open] = field(default_factory=list)
    break_queue: list[Context] = field(default_factory=list)
    wait_list: list[Operation] = field(default_factory=list)
    state: int = NO_OPLOCK
    reserved: Open | None = None
    """An open that has to ask for an oplock next (A9.25)."""
    behind_reservation: list[Operation] = field(default_factory=list)
    """Those of the wait list that wait for that."""
    close_pending: bool = False
    """FSCTL_OPBATCH_ACK_CLOSE_PENDING has come from the exclusive owner (A9.24)."""
    closing: set[Context] = field(default_factory=set)
    """The same of one on the break queue."""
    events: list[tuple[object, ...]] = field(default_factory=list)
    """What happened: ("told", open, status, new level, acknowledgement owed) and ("released", operation)."""

    def indicate_break(self, who: Open, level: int, acknowledge: bool, status: str = SUCCESS) -> None:
        """2.1.5.18.3."""
        self.events.append(("told", who, status, level, acknowledge))

    def release(self, waiting: Operation) -> None:
        """2.1.4.12.1."""
        self.wait_list.remove(waiting)
        self.events.append(("released", waiting))

    def release_all(self) -> None:
        for waiting in list(self.wait_list):
            if waiting not in self.behind_reservation:
                self.release(waiting)

    def somebody_waits(self) -> bool:
        """The wait list of 2.1.5.19: not those who only want to hear of it (FSCTL_OPLOCK_BREAK_NOTIFY)."""
        return any(each.kind != "NOTIFY" and each not in self.behind_reservation for each in self.wait_list)

    def release_behind_break_queue(self) -> None:
        """2.1.4.12 CLOSE and 2.1.5.19: one goes on if nothing of other keys is left on the queue."""
        for waiting in list(self.wait_list):
            if waiting in self.behind_reservation:
                continue
            if not self.break_queue or all(keys_equal(waiting, each.open) for each in self.break_queue):
                self.release(waiting)

    def recompute(self) -> None:
        """2.1.4.13."""
        if not self.level_two and not self.read and not self.read_handle and not self.break_queue:
            self.state = NO_OPLOCK
        elif self.read and (self.read_handle or self.break_queue):
            self.state = S.READ | S.HANDLE | S.MIXED
        elif not self.read and self.read_handle:
            self.state = S.READ | S.HANDLE
        elif self.read and self.level_two:
            self.state = S.READ | S.LEVEL_TWO
        elif self.read:
            self.state = S.READ
        elif self.level_two:
            self.state = S.LEVEL_TWO
        elif all(each.breaking_to_read for each in self.break_queue):
            self.state = S.READ | S.HANDLE | S.TO_READ
        elif not any(each.breaking_to_read for each in self.break_queue):
            self.state = S.READ | S.HANDLE | S.TO_NO_CACHING
        else:
            self.state = S.READ | S.HANDLE


def same_key(one: Open, other: Open) -> bool:
    """Two opens by their own keys: 2.1.4.12.2 without flags (A9.17)."""
    return one is other or bool(one.target_key and other.target_key and one.target_key == other.target_key)


def keys_equal(operation: Operation, owner: Open) -> bool:
    """2.1.4.12.2."""
    if operation.ignore_keys:  # OPLOCK_FLAG_IGNORE_OPLOCK_KEYS
        return False
    who = operation.open
    if who is owner:
        return True
    if not who.target_key and not who.parent_key:
        return False
    if not owner.target_key and not owner.parent_key:
        return False
    if not owner.target_key or (not operation.parent_object and not who.target_key):
        return False
    if operation.parent_object and not who.parent_key:
        return False
    if operation.parent_object:
        return who.parent_key == owner.target_key
    return who.target_key == owner.target_key


def check(oplock: Oplock, operation: Operation) -> str:
    """2.1.4.12: GO, or WAIT (and it is on the wait list)."""
    if oplock.reserved is not None and not operation.parent_object and not keys_equal(operation, oplock.reserved):
        stat = FILE_READ_ATTRIBUTES | FILE_WRITE_ATTRIBUTES | SYNCHRONIZE
        if not oplock.state & (S.LEVEL_ONE | S.LEVEL_TWO | S.BATCH | S.FILTER):
            stat |= READ_CONTROL
        if operation.kind != "OPEN" or operation.access & ~stat or operation.reserve_opfilter:
            oplock.wait_list.append(operation)
            oplock.behind_reservation.append(operation)
            return WAIT
    if oplock.state == NO_OPLOCK:
        return GO
    to_two = to_none = wait = False
    lost = 0
    if operation.parent_object:
        lost = S.READ | S.WRITE
    elif operation.kind == "OPEN":
        legacy_stat = FILE_READ_ATTRIBUTES | FILE_WRITE_ATTRIBUTES | SYNCHRONIZE
        # A9.13: the wider mask while nothing but granular oplocks is held.
        granular = not oplock.state & (S.LEVEL_ONE | S.LEVEL_TWO | S.BATCH | S.FILTER)
        stat = legacy_stat | READ_CONTROL if granular else legacy_stat
        if not operation.access & ~stat and not operation.reserve_opfilter:  # A9.16
            return GO
        if operation.reserve_opfilter or operation.disposition in (FILE_SUPERSEDE, FILE_OVERWRITE, FILE_OVERWRITE_IF):
            to_none = True
            lost = S.READ | S.WRITE
        else:
            to_two = True
            lost = S.WRITE
    elif operation.kind == "OPEN_BREAK_H":
        lost = S.HANDLE
    elif operation.kind in ("READ", "FLUSH_DATA"):  # A9.14
        to_two = True
        lost = S.WRITE
    elif operation.kind in ("LOCK_CONTROL", "WRITE"):
        to_none = True
        lost = S.READ | S.WRITE
    elif operation.kind in ("FileEndOfFileInformation", "FileAllocationInformation", "FileValidDataLengthInformation"):
        to_none = True
        lost = S.READ | S.WRITE
    elif operation.kind in ("FileRenameInformation", "FileLinkInformation", "FileShortNameInformation"):
        lost = S.HANDLE
        if oplock.state & (S.BATCH | S.FILTER):
            to_none = True
    elif operation.kind == "FileDispositionInformation":
        lost = S.HANDLE
    elif operation.kind == "FSCTL_SET_ZERO_DATA":
        to_none = True
        lost = S.READ | S.WRITE
    elif operation.kind == "SET_SECURITY":  # A9.14
        lost = S.HANDLE
    elif operation.kind == "BREAK_TO_NONE":  # FltOplockBreakToNone
        to_none = True
        lost = S.READ | S.WRITE | S.HANDLE
    else:
        raise AssertionError(operation.kind)

    if oplock.state & S.FILTER:  # A9.15
        if operation.kind in ("READ", "FLUSH_DATA", "LOCK_CONTROL"):
            return GO
        if operation.kind == "OPEN" and to_two:
            reads = FILE_READ_ATTRIBUTES | FILE_WRITE_ATTRIBUTES | FILE_READ_DATA | FILE_READ_EA | FILE_EXECUTE
            reads |= SYNCHRONIZE | READ_CONTROL
            if not operation.access & ~reads and operation.share & FILE_SHARE_READ:
                return GO
            to_two, to_none = False, True

    if to_two:
        if oplock.state != S.LEVEL_TWO and (
            oplock.exclusive_open is None or not keys_equal(operation, oplock.exclusive_open)
        ):
            if oplock.state & S.EXCLUSIVE and not oplock.state & CACHING:
                if not oplock.state & BREAKING:
                    oplock.state |= S.TO_TWO
                    assert oplock.exclusive_open
                    oplock.indicate_break(oplock.exclusive_open, S.LEVEL_TWO, True)
                oplock.wait_list.append(operation)
                return WAIT
    elif to_none:
        if (
            oplock.state == S.LEVEL_TWO
            or oplock.exclusive_open is None
            or not keys_equal(operation, oplock.exclusive_open)
        ):
            if oplock.state != NO_OPLOCK and not oplock.state & (S.WRITE | S.HANDLE):
                leave = False
                if not oplock.state & (BREAKING | S.LEVEL_TWO):
                    if oplock.state & S.READ:
                        leave = True
                    else:
                        oplock.state |= S.TO_NONE
                        assert oplock.exclusive_open
                        oplock.indicate_break(oplock.exclusive_open, 0, True)
                elif oplock.state in (S.LEVEL_TWO, S.LEVEL_TWO | S.READ):
                    for each in oplock.level_two:
                        oplock.indicate_break(each, 0, False)
                    oplock.level_two.clear()
                    oplock.state = S.READ if oplock.state & S.READ else NO_OPLOCK
                    leave = True
                elif oplock.state & S.TO_TWO:
                    oplock.state = (oplock.state & ~S.TO_TWO) | S.TO_TWO_TO_NONE
                if not leave:
                    oplock.wait_list.append(operation)
                    return WAIT

    if not lost or not oplock.state & lost:
        return GO
    if oplock.exclusive_open is not None and keys_equal(operation, oplock.exclusive_open):
        return GO
    if not oplock.state & S.EXCLUSIVE:
        return lose_shared(oplock, operation, lost)

    # The granular exclusive states, one case each.
    owner = oplock.exclusive_open
    assert owner
    state = oplock.state
    both = S.READ | S.WRITE
    rw, rwh = RW | S.EXCLUSIVE, RWH | S.EXCLUSIVE
    if state == rw:
        if lost & both == both:
            oplock.indicate_break(owner, 0, True)
            oplock.state = rw | S.TO_NO_CACHING
            wait = True
        elif lost & S.WRITE:
            oplock.indicate_break(owner, R, True)
            oplock.state = rw | S.TO_READ
            wait = True
    elif state == rwh:
        if lost == S.WRITE:
            oplock.indicate_break(owner, RH, True)
            oplock.state = rwh | S.TO_READ | S.TO_HANDLE
            wait = True
        elif lost == S.HANDLE:
            oplock.indicate_break(owner, RW, True)
            oplock.state = rwh | S.TO_READ | S.TO_WRITE
            wait = True
        elif lost & both == both:
            oplock.indicate_break(owner, 0, True)
            oplock.state = rwh | S.TO_NO_CACHING
            wait = True
    elif state == rw | S.TO_READ:
        if lost & S.READ:
            oplock.state = rw | S.TO_NO_CACHING
        if lost & both:
            wait = True
    elif state == rw | S.TO_NO_CACHING:
        if lost & both:
            wait = True
    elif state == rwh | S.TO_READ | S.TO_WRITE:
        if lost == S.WRITE:
            oplock.state = rwh | S.TO_READ
        elif lost & both == both:
            oplock.state = rwh | S.TO_NO_CACHING
        wait = True
    elif state == rwh | S.TO_READ | S.TO_HANDLE:
        if lost == S.HANDLE:
            oplock.state = rwh | S.TO_READ
        elif lost & S.READ:
            oplock.state = rwh | S.TO_NO_CACHING
        wait = True
    elif state == rwh | S.TO_READ:
        if lost & S.READ:
            oplock.state = rwh | S.TO_NO_CACHING
        wait = True
    elif state == rwh | S.TO_NO_CACHING:
        wait = True
    if wait:
        oplock.wait_list.append(operation)
        return WAIT
    return GO


def check_unless_it_breaks(oplock: Oplock, operation: Operation) -> str:
    """FILE_OPEN_REQUIRING_OPLOCK: GO, or STATUS_CANNOT_BREAK_OPLOCK and nothing has happened."""
    before = vars(oplock) | {name: list(value) for name, value in vars(oplock).items() if isinstance(value, list)}
    queue = [(each, each.breaking_to_read) for each in oplock.break_queue]
    answer = check(oplock, operation)
    if answer == GO and oplock.events == before["events"] and oplock.state == before["state"]:
        if all(each.breaking_to_read == was for each, was in queue):
            return GO
    for each, was in queue:
        each.breaking_to_read = was
    vars(oplock).update(before)
    return CANNOT_BREAK


def check_if_oplocked(oplock: Oplock, operation: Operation) -> str:
    """FILE_COMPLETE_IF_OPLOCKED: what would wait goes on."""
    answer = check(oplock, operation)
    if answer == WAIT:
        oplock.wait_list.remove(operation)
        if operation in oplock.behind_reservation:
            oplock.behind_reservation.remove(operation)
        return IN_PROGRESS
    return answer


def notify(oplock: Oplock, operation: Operation) -> str:
    """FSCTL_OPLOCK_BREAK_NOTIFY."""
    assert operation.kind == "NOTIFY"
    if oplock.state & BREAKING or oplock.break_queue:
        oplock.wait_list.append(operation)
        return WAIT
    return SUCCESS


def reserve(oplock: Oplock, who: Open) -> bool:
    """A9.25."""
    if oplock.reserved is None:
        oplock.reserved = who
        return True
    return False


def unreserve(oplock: Oplock, who: Open) -> None:
    """A9.25: those who waited for it are looked at again, in their order."""
    if oplock.reserved is not who:
        return
    oplock.reserved = None
    again, oplock.behind_reservation = oplock.behind_reservation, []
    for waiting in again:
        oplock.wait_list.remove(waiting)
        if check(oplock, waiting) == GO:
            oplock.events.append(("released", waiting))


def cancel_waiting(oplock: Oplock, waiting: Operation) -> None:
    """2.1.5.20, of one that waits."""
    oplock.wait_list.remove(waiting)
    if waiting in oplock.behind_reservation:
        oplock.behind_reservation.remove(waiting)


def cancel_held(oplock: Oplock, who: Open, level: int) -> None:
    """2.1.5.20, of a request that was granted and has not been broken: what it held is held no more (A9.23)."""
    if level in (S.LEVEL_TWO, R, RH):
        {S.LEVEL_TWO: oplock.level_two, R: oplock.read, RH: oplock.read_handle}[level].remove(who)
        oplock.recompute()
    else:
        oplock.exclusive_open = None
        oplock.state = NO_OPLOCK


def lose_shared(oplock: Oplock, operation: Operation, lost: int) -> str:
    """2.1.4.12, the cases of shared oplocks."""
    wait = False
    if oplock.state in (RH | S.MIXED, R, S.LEVEL_TWO | R):
        if lost & S.READ:
            for each in list(oplock.read):
                if not keys_equal(operation, each):
                    oplock.read.remove(each)
                    oplock.indicate_break(each, 0, False)
        if oplock.state != RH | S.MIXED:
            oplock.recompute()
            return GO
    if oplock.state in (RH | S.MIXED, RH):
        if lost == S.HANDLE:
            for each in list(oplock.read_handle):
                if not keys_equal(operation, each):
                    oplock.read_handle.remove(each)
                    oplock.indicate_break(each, R, True)
                    oplock.break_queue.append(Context(each, True))
                    wait = True
        elif lost & S.READ and lost & S.WRITE:
            for context in oplock.break_queue:
                if not keys_equal(operation, context.open):
                    context.breaking_to_read = False
                    if lost & S.HANDLE:
                        wait = True
            for each in list(oplock.read_handle):
                if not keys_equal(operation, each):
                    oplock.read_handle.remove(each)
                    oplock.indicate_break(each, 0, True)
                    oplock.break_queue.append(Context(each, False))
                    if lost & S.HANDLE:
                        wait = True
        if not wait and lost & S.HANDLE:
            wait = any(not keys_equal(operation, context.open) for context in oplock.break_queue)
        oplock.recompute()
    elif oplock.state == RH | S.TO_READ:
        if lost & S.READ:
            for context in oplock.break_queue:
                if not keys_equal(operation, context.open):
                    context.breaking_to_read = False
            oplock.recompute()
        if lost & S.HANDLE:
            wait = any(not keys_equal(operation, context.open) for context in oplock.break_queue)
    elif oplock.state == RH | S.TO_NO_CACHING:
        if lost & S.HANDLE:
            wait = any(not keys_equal(operation, context.open) for context in oplock.break_queue)
    if wait:
        oplock.wait_list.append(operation)
        return WAIT
    return GO


def close(oplock: Oplock, who: Open) -> None:
    """2.1.4.12, the case CLOSE: the owner's handle goes."""
    unreserve(oplock, who)
    if oplock.state == NO_OPLOCK:
        return
    for owners, status in (
        (oplock.level_two, SUCCESS),
        (oplock.read, HANDLE_CLOSED),
        (oplock.read_handle, HANDLE_CLOSED),
    ):
        if owners:
            for each in list(owners):
                if each is who:
                    owners.remove(each)
                    oplock.indicate_break(each, 0, False, status)
            oplock.recompute()
    if oplock.break_queue:
        oplock.break_queue = [each for each in oplock.break_queue if each.open is not who]
        oplock.recompute()
        oplock.release_behind_break_queue()
    if oplock.exclusive_open is who:
        if not oplock.state & BREAKING:
            oplock.indicate_break(who, 0, False, HANDLE_CLOSED if oplock.state & CACHING else SUCCESS)
        oplock.exclusive_open = None
        oplock.state = NO_OPLOCK
        oplock.close_pending = False
        oplock.release_all()


def request(oplock: Oplock, who: Open, level: int, **circumstances: bool) -> str:
    """2.1.5.18, and the end of the reservation of the one that asks."""
    if oplock.reserved is not None and oplock.reserved is not who:
        directory = circumstances.get("directory", False)
        if level not in LEVELS or (directory and level not in (R, RH)):
            return INVALID_PARAMETER if level else SUCCESS
        return NOT_GRANTED
    answer = request_unreserved(oplock, who, level, **circumstances)
    unreserve(oplock, who)
    return answer


def request_unreserved(
    oplock: Oplock,
    who: Open,
    level: int,
    *,
    directory: bool = False,
    synchronous: bool = False,
    deleted: bool = False,
    others_open: bool = False,
    all_keys_match: bool = False,
    byte_range_locks: bool = False,
) -> str:
    """2.1.5.18: PENDED (granted), or the status that it ends with at once."""
    if directory and level not in (0, R, RH):
        return INVALID_PARAMETER
    if level & (S.LEVEL_ONE | S.BATCH | S.FILTER):
        if others_open or synchronous:
            return NOT_GRANTED
        return request_exclusive(oplock, who, level, deleted, others_open, all_keys_match)
    if level == S.LEVEL_TWO or level in (R, RH):
        if byte_range_locks or synchronous:
            return NOT_GRANTED
        return request_shared(oplock, who, level, deleted, False)
    if level in (RW, RWH):
        if synchronous:
            return NOT_GRANTED
        return request_exclusive(oplock, who, level, deleted, others_open, all_keys_match)
    if not level:
        return SUCCESS
    return INVALID_PARAMETER


def request_exclusive(
    oplock: Oplock, who: Open, level: int, deleted: bool, others_open: bool, all_keys_match: bool
) -> str:
    """2.1.5.18.1."""
    if others_open and not all_keys_match:  # A9.18: in every state
        return NOT_GRANTED
    if oplock.state in (NO_OPLOCK, S.LEVEL_TWO):  # A9.20: not (LEVEL_TWO|READ)
        if oplock.state & S.LEVEL_TWO and level & CACHING:
            return NOT_GRANTED
        if deleted and level & S.HANDLE:
            return NOT_GRANTED
        if oplock.state == S.LEVEL_TWO:  # A9.20: all of them are the one open's
            for each in oplock.level_two:
                oplock.indicate_break(each, 0, False)
            oplock.level_two.clear()
    elif oplock.state & CACHING and not oplock.state & BREAKING and not oplock.break_queue:
        if not level & CACHING:
            return NOT_GRANTED
        if deleted and level & S.HANDLE:
            return NOT_GRANTED
        if oplock.state == R:
            if not all(same_key(each, who) for each in oplock.read):
                return NOT_GRANTED
            for each in oplock.read:
                oplock.indicate_break(each, level, False, SWITCHED)
            oplock.read.clear()
        elif oplock.state == RH:
            if level != RWH:
                return NOT_GRANTED
            if not all(same_key(each, who) for each in oplock.read_handle):
                return NOT_GRANTED
            for each in oplock.read_handle:
                oplock.indicate_break(each, level, False, SWITCHED)
            oplock.read_handle.clear()
        elif oplock.state in (RWH | S.EXCLUSIVE, RW | S.EXCLUSIVE):
            if oplock.state == RWH | S.EXCLUSIVE and level != RWH:
                return NOT_GRANTED
            assert oplock.exclusive_open
            if not same_key(oplock.exclusive_open, who):
                return NOT_GRANTED
            oplock.indicate_break(oplock.exclusive_open, level, False, SWITCHED)
            oplock.exclusive_open = None
        else:
            return NOT_GRANTED
    else:
        return NOT_GRANTED
    oplock.exclusive_open = who
    oplock.state = level | S.EXCLUSIVE
    return PENDED


def request_shared(oplock: Oplock, who: Open, level: int, deleted: bool, granting_in_ack: bool) -> str:
    """2.1.5.18.2."""
    # The breaking states of RH are shared, and are listed below; the others hold an exclusive oplock.
    if not granting_in_ack and oplock.state & S.EXCLUSIVE:
        return NOT_GRANTED
    plain = (NO_OPLOCK, S.LEVEL_TWO, R, S.LEVEL_TWO | R)
    handles = (RH, RH | S.MIXED, RH | S.TO_READ, RH | S.TO_NO_CACHING)
    if level in (S.LEVEL_TWO, R):
        if level == S.LEVEL_TWO and oplock.state not in plain:
            return NOT_GRANTED
        if not granting_in_ack and oplock.state not in plain + handles:
            return NOT_GRANTED
        if not granting_in_ack:
            if any(same_key(each, who) for each in oplock.read_handle):
                return NOT_GRANTED
            if any(same_key(each.open, who) for each in oplock.break_queue):
                return NOT_GRANTED
            for each in list(oplock.read):
                if same_key(each, who):
                    oplock.read.remove(each)
                    oplock.indicate_break(each, R, False, SWITCHED)
        (oplock.level_two if level == S.LEVEL_TWO else oplock.read).append(who)
    else:
        assert level == RH
        if not granting_in_ack and oplock.state not in (NO_OPLOCK, R, *handles):
            return NOT_GRANTED
        if deleted:
            oplock.recompute()  # in an acknowledgement what was broken is gone all the same
            return NOT_GRANTED
        if not granting_in_ack:
            for owners in (oplock.read, oplock.read_handle):
                for each in list(owners):
                    if same_key(each, who):
                        owners.remove(each)
                        oplock.indicate_break(each, RH, False, SWITCHED)
        oplock.read_handle.append(who)
    oplock.recompute()
    return PENDED


def acknowledge(oplock: Oplock, who: Open, kind: str, level: int = NO_OPLOCK, *, deleted: bool = False) -> str:
    """2.1.5.19. kind: "two" (FSCTL_OPLOCK_BREAK_ACKNOWLEDGE), "none" (..._ACK_NO_2), "close pending", "granular", and
    "granular close pending" (COMPLETE_ACK_ON_CLOSE): PENDED, or the status that it ends with."""
    if kind in ("two", "none", "close pending"):
        if oplock.exclusive_open is not who or oplock.close_pending:
            return INVALID_PROTOCOL
        state = oplock.state
        granted = to_none = False
        if not state & (S.TO_TWO | S.TO_NONE | S.TO_TWO_TO_NONE):
            return INVALID_PROTOCOL
        if kind == "close pending":  # A9.24
            if state & (S.BATCH | S.FILTER):
                oplock.close_pending = True
                return SUCCESS
            oplock.state = NO_OPLOCK
        elif kind == "two" and state & S.TO_TWO:
            oplock.state = S.LEVEL_TWO
            oplock.level_two.append(who)
            granted = True
        elif state & (S.TO_TWO | S.TO_NONE):
            oplock.state = NO_OPLOCK
        else:
            oplock.state = NO_OPLOCK
            to_none = True
        oplock.release_all()
        oplock.exclusive_open = None
        if granted:
            return PENDED
        if to_none:
            oplock.indicate_break(who, 0, False)
        return SUCCESS

    later = kind == "granular close pending"
    if level not in (0, R, RH, RW, RWH):
        return INVALID_PARAMETER
    if not oplock.state & BREAK_LEVEL_MASK and (
        oplock.state not in (RH | S.MIXED, RH) or not oplock.break_queue
    ):
        return INVALID_PROTOCOL
    if not oplock.state & S.EXCLUSIVE:
        for context in oplock.break_queue:
            if context.open is who and context not in oplock.closing:
                break
        else:
            return INVALID_PROTOCOL
        if later:
            oplock.closing.add(context)
            return SUCCESS
        broken = R if context.breaking_to_read else 0
        if not context.breaking_to_read:
            if level and oplock.somebody_waits():
                oplock.indicate_break(who, broken, True, CANNOT_GRANT)
                return CANNOT_GRANT
        elif oplock.somebody_waits() and level & S.WRITE:
            oplock.indicate_break(who, broken, True, CANNOT_GRANT)
            return CANNOT_GRANT
        if level & S.WRITE:  # A9.19
            alone = not oplock.read and not oplock.read_handle and oplock.break_queue == [context]
            if not alone or (deleted and level & S.HANDLE):
                oplock.indicate_break(who, broken, True, CANNOT_GRANT)
                return CANNOT_GRANT
        oplock.break_queue.remove(context)
        oplock.release_behind_break_queue()
        if not level:
            oplock.recompute()
            return SUCCESS
        if not level & S.WRITE:
            return request_shared(oplock, who, level, deleted, True)
        oplock.exclusive_open = who
        oplock.state = level | S.EXCLUSIVE
        return PENDED

    if oplock.exclusive_open is not who or oplock.close_pending:
        return INVALID_PROTOCOL
    if later:
        oplock.close_pending = True
        return SUCCESS
    broken = 0
    for flag, cached in ((S.TO_READ, S.READ), (S.TO_HANDLE, S.HANDLE), (S.TO_WRITE, S.WRITE)):
        if oplock.state & flag:
            broken |= cached
    if oplock.somebody_waits() and level & ~broken:  # A9.19
        oplock.indicate_break(who, broken, True, CANNOT_GRANT)
        return CANNOT_GRANT
    if deleted and level & S.HANDLE:
        oplock.indicate_break(who, level & ~S.HANDLE, True, CANNOT_GRANT)
        return CANNOT_GRANT
    oplock.release_all()
    if not level & S.WRITE:
        oplock.exclusive_open = None
    if not level:
        oplock.state = NO_OPLOCK
        return SUCCESS
    if not level & S.WRITE:
        return request_shared(oplock, who, level, deleted, True)
    oplock.state = level | S.EXCLUSIVE
    return PENDED
