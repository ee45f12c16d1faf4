"""The audit trail's writing side (_trail.pyx); opened by `stackfs.filters.audit.trail.open_trail`."""

from typing import Literal

from typing_extensions import Buffer

class Trail:
    """Writes one trail. Setting up (generate or load_state, place, accept, advance, start) is one thread's business;
    append and flush may be called from any thread afterwards; close() ends it. Methods that wait release the GIL."""

    def __init__(
        self,
        directory: int,
        *,
        ring_size: int = ...,
        full: Literal["wait", "refuse", "count"] = "wait",
        segment_size: int = ...,
        flush_interval: float = 1.0,
        sync: bool = True,
        segment_text: bytes = b"",
        patience: float = 30.0,
    ) -> None:
        """directory: descriptor of the trail's directory, which must stay open until close(). Sizes in bytes,
        flush_interval in seconds. ring_size is rounded up to a power of two. patience: for so many seconds may the log
        be unwritable before a full ring refuses although full is "wait": a caller must not wait for ever."""

    def generate(self, key_file: int) -> None:
        """Makes the first key of a new trail and writes it to the descriptor key_file. OSError when it cannot."""

    def load_state(self) -> tuple[int, bytes]:
        """Takes the key from the state file: (epoch, id of the trail). ValueError when it holds none."""

    def advance(self) -> None:
        """On to the next epoch's key."""

    def place(self, sequence: int, digest: bytes, segment: int, end: int) -> None:
        """The trail goes on after record `sequence`, whose MAC is `digest`, at `end` of segment number `segment`."""

    def accept(self, record: Buffer, is_seal: bool) -> bool:
        """Whether `record` (with its MAC) is the next one of the chain; if so, goes past it."""

    def start(self, own_records: list[tuple[int, bytes]]) -> None:
        """Writes and seals these records (kind, body after the header) and starts the writer thread. OSError."""

    def append(
        self,
        opcode: int,
        *,
        path: bytes = b"",
        other: bytes = b"",
        status: int = 0,
        error: int = 0,
        offset: int = -1,
        size: int = 0,
        information: int = 0,
        pid: int = 0,
        tid: int = 0,
        uid: int = 0,
        gid: int = 0,
        comm: bytes = b"",
        major: int = 0,
        time: int = 0,
        duration: int = 0,
        flags: int = 0,
        request: int = 0,
        argument: int = 0,
        must_pass: bool = False,
    ) -> bool:
        """One request record, through the ring as from a callback. False: the ring is full and `full` let it pass or
        refused it. With full = "wait" this waits. time: ns since 1970, 0: now."""

    def flush(self) -> None:
        """Waits until everything appended before is on disk and sealed."""

    def drain(self) -> None:
        """The volume is letting go: whoever waits for room while the log cannot be written is let pass from now on."""

    def next_trouble(self) -> int | None:
        """Waits until `error` is another than the one told last, and tells it. None: the trail is closed."""

    def close(self) -> bool:
        """Drains, seals and closes the trail, ends the writer, wipes the keys. False: the log could not be written
        for two seconds, and records were given up."""

    @property
    def id(self) -> bytes: ...
    @property
    def sequence(self) -> int:
        """Number of the last record written."""
    @property
    def sealed(self) -> int:
        """Number of the last seal."""
    @property
    def epoch(self) -> int: ...
    @property
    def lost(self) -> int:
        """Requests let pass unrecorded since start()."""
    @property
    def refused(self) -> int: ...
    @property
    def waiting(self) -> int:
        """Threads that wait for room now."""
    @property
    def error(self) -> int:
        """The errno with which the log cannot be written now; 0: it can."""
    @property
    def gone(self) -> bool:
        """The trail's directory or segment was removed: what it would have to record is refused from now on."""
