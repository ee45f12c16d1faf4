"""The Python faces of a volume and of a request."""

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from stackfs.cext.stack import InstanceEntry, Stack

_Entry = TypeVar("_Entry")

INJECTABLE: frozenset[int]
"""What Volume.inject() makes: what no VFS request brings, or not as something that it asks for."""

class VfsError(OSError):
    """A request that failed: errno is what a program would see."""

class Done(Generic[_Entry]):
    """An awaitable that has its value already: `await Done(value)` never gives the loop back."""

    def __init__(self, value: _Entry) -> None: ...
    def __await__(self) -> Generator[Any, None, _Entry]: ...

class Volume:
    """A backing directory with a filter stack over it, mounted or not.

    root_fd: an O_PATH descriptor of the backing directory, owned from here on. Time-outs are seconds, and count while
    every instance's answers are cacheable (Stack.names_or_data_filtered). direct_io: no page cache above the stack.
    keep_cache: nothing else changes the backing directory, so an open leaves the page cache as it is. writeback: writes
    stay in it until it writes them back.
    check_permissions (as root): the base acts with each caller's rights; time-outs have to be 0 then.
    """

    @property
    def stack(self) -> Stack: ...
    def __init__(
        self,
        root_fd: int,
        *,
        entry_timeout: float = 1.0,
        attr_timeout: float = 1.0,
        direct_io: bool = False,
        keep_cache: bool = False,
        writeback: bool = False,
        descriptor_limit: int = 4096,
        check_permissions: bool = False,
    ) -> None: ...
    def close(self) -> None:
        """Close every descriptor. No operation may be under way, none may be held, and none may begin."""
    @property
    def open_files(self) -> int:
        """Handles the kernel holds."""
    @property
    def filesystem(self) -> tuple[int, bytes, bool, int]:
        """The backing filesystem: (type as statfs(2) numbers it, its id, read only?, inode of the backing
        directory)."""
    @property
    def known_inodes(self) -> int:
        """Inodes the kernel knows, the root included."""
    @property
    def cached_descriptors(self) -> int:
        """O_PATH descriptors kept for reuse."""
    @property
    def awaits(self) -> bool:
        """Is some callback of an attached instance `async def`?"""
    @property
    def bypassed_opens(self) -> int:
        """Open files whose reads and writes no filter sees."""
    def refuse(self, refuse: bool) -> None:
        """Whether the base answers EIO to all but closing and filters' own I/O: a filter that the volume needs is gone,
        or failed."""
    def allow_bypass(self, allowed: bool, *, unless_bypassed: bool = False) -> int:
        """May opens that begin now be bypassed? Returns how many are. unless_bypassed: if some are, change nothing."""
    def bypass_state(self) -> dict[str, Any]:
        """The bypass lane: negotiated, allowed, refused (the kernel's errno), bypassed, granted, vetoed, veto."""
    def forget(self, nodeid: int, lookups: int) -> None:
        """The kernel gives back that many lookups of a node."""
    def wake_poll(self, handle: int) -> bool:
        """Whoever polls the file of that poll_handle (CallbackData) looks again. False: the volume is not mounted, or
        out of memory."""
    def interrupt(self, number: int) -> bool:
        """INTERRUPT of the request with that number. True: it may wait for a lock, and its next try ends it with
        EINTR; or a filter holds it, and has been told. One made by hand is remembered as interrupted until it is
        done."""
    def retry_locks(self) -> int:
        """Those who wait for locks held beside the mount try again; how many wait. To be called every 0.1 s."""
    def restart_waiting_locks(self) -> None:
        """Those who wait for locks take the callback lists there are now, and let go of older ones: before a drain."""
    def cancel_held(self, entry: InstanceEntry | None = None) -> int:
        """Cancels what an instance holds (None: what any of them does), as by an INTERRUPT of each. How many it holds
        then."""
    def held(self, entry: InstanceEntry | None = None) -> int:
        """How many operations an instance holds, or is about to (None: any of them)."""
    @property
    def resuming(self) -> int:
        """How many requests filters hold, or threads that have completed them still carry to their end."""
    def known(self) -> tuple[list[int], list[int], list[tuple[int, bytes]]]:
        """What the kernel may have cached: (nodeids with open files, other nodeids, [(parent nodeid, name), ...])."""
    def inject(
        self,
        major: int,
        nodeid: int = 1,
        *,
        fh: int = 0,
        minor: int = 0,
        code: int = 0,
        input: bytes = b"",
        output_size: int = 0,
    ) -> Request:
        """A Request of one operation that no VFS request brings by itself (D20), about an open file, a node, or, with
        the root's nodeid, the volume. minor: its minor function. code, input, output_size: for what has buffers.
        ValueError: another one."""
    def request(
        self,
        opcode: int,
        nodeid: int = 1,
        *,
        name: bytes | None = None,
        name2: bytes | None = None,
        buffer: Any = None,
        input: bytes | None = None,
        uid: int = 0,
        gid: int = 0,
        tid: int = 0,
        nowait: bool = False,
        **arguments: int,
    ) -> Request:
        """A request made by hand (tests, and the daemon's own): see Request for what it answers.

        arguments: fields of fuse_in_t (fh, offset, size, flags, mode, umask, rdev, valid, nodeid2, ...).
        """

class Request:
    """One VFS request on the IRP lane, or made by hand. run() until it says True, then read the answer.

    The names and buffers given must not change until it is done. Sizes are bytes, times nanoseconds.
    """

    def named(self, name: bytes, name2: bytes | None = None) -> Request:
        """The name (and the second one: a rename's or link's new name, a symlink's target). Returns self."""
    def sending(self, buffer: Any) -> Request:
        """The data of a write or setxattr. Returns self."""
    def receiving_as_asked(self) -> Request:
        """Make room for as much as the request asks for: an attribute's value, or the names of all. Returns self."""
    def receiving(self, size: int) -> Request:
        """Make room for what a read, readlink, getxattr or listxattr gives. Returns self."""
    def for_statistics(self) -> Request:
        """Make room for statistics(). Returns self."""
    def run(self) -> bool:
        """True: done. False: it has to wait, for the base, a lock or a filter: call wait() in a thread that may, then
        run() again; or, where it needs no thread, park()."""
    def wait(self) -> None:
        """The waiting part, without the GIL. Only after run() said False. What a filter holds is waited for as long
        as it takes; whoever completes it has then carried it on as far as that went."""
    def do(self) -> Request:
        """Run to the end, waiting in place; raise VfsError when it failed. Returns self."""
    @property
    def waits_for_lock(self) -> bool:
        """run() said False because somebody else has the lock: park(), which needs no thread, will do."""
    @property
    def is_held(self) -> bool:
        """run() said False because a filter holds it: park() serves as well as wait()."""
    def park(self, woken: Callable[[], object]) -> bool:
        """True: woken() will be called once, by any thread, when it is worth while to run() again; whoever completes
        what a filter holds has then carried it on as far as that went without waiting. False: run() again now."""
    @property
    def lock(self) -> tuple[int, int, int, int]:
        """GETLK: (type, first byte, last byte, process id) of a lock in the way; type F_UNLCK: none."""
    @property
    def error(self) -> int:
        """A positive errno; 0: it succeeded."""
    @property
    def status(self) -> int:
        """The NTSTATUS (unsigned) of the operation that failed; 0: none has."""
    @property
    def opcode(self) -> int: ...
    @property
    def number(self) -> int:
        """The request's number, as callbacks see it."""
    @property
    def nodeid(self) -> int:
        """An entry's nodeid; one lookup of it is now the kernel's (or the caller's: Volume.forget)."""
    @property
    def unique(self) -> int:
        """The request's number, as its filters see it."""
    @property
    def fh(self) -> int:
        """An open's handle number."""
    @property
    def keep_cache(self) -> bool: ...
    @property
    def direct_io(self) -> bool: ...
    @property
    def length(self) -> int:
        """Bytes read, written, or needed."""
    def result(self) -> bytes:
        """What was read into the buffer that receiving() made."""
    @property
    def stat(self) -> tuple[int, ...]:
        """mode, ino, nlink, uid, gid, rdev, size, blocks, blksize, atime_ns, mtime_ns, ctime_ns, btime_ns."""
    def fill_attributes(self, entry: _Entry) -> _Entry:
        """Sets the attributes of a pyfuse3.EntryAttributes. Returns it."""
    def fill_entry(self, entry: _Entry) -> _Entry:
        """The same, with what makes it a directory entry. Returns it."""
    def list_directory(self, emit: Callable[[bytes, Any, int], bool], make_entry: Callable[[], Any]) -> bool:
        """READDIRPLUS: calls emit(name, entry, next offset) until it says False or the directory ends.

        Entries come through the stack: the names by DIRECTORY_CONTROL, the attributes by QUERY_OPEN. Names are read
        ahead and kept with the handle. make_entry() gives an EntryAttributes to fill. Answers as run(), which goes on
        with it.
        """
    def statistics(self) -> tuple[int, ...]:
        """STATFS: bsize, frsize, blocks, bfree, bavail, files, ffree, favail, namemax."""
