"""The device: reads /dev/fuse, serves requests, forwards to the IRP lane.

Start:    1. daemonise first (threads do not survive a fork), then mount: fd, see stackfs.mounting.
          2. device = Device(fd, volume, ...); pyfuse3.init(operations, f"/dev/fd/{device.detach_lane_fd()}", options)
             with options that hold neither allow_root nor fsname.
          3. device.start(); run pyfuse3.main(max_tasks=many) in a nursery; wait_readable(device.ready_fd): INIT was
             answered. Not before that may anything touch the mountpoint.
Running:  each pyfuse3 handler takes its header (take) before its first await; wait_readable(device.ended_fd) and
          wait_readable(device.deadlock_fd) each in a task of its own.
End:      4. unmount in a worker thread (it may wait for requests). ended_fd becomes readable once the kernel let go.
             If it does not within the grace time: device.abort(), and unmount lazily.
          5. pyfuse3.terminate() (after abort() with handlers that never end: cancel the nursery around main()).
          6. device.stop(); pyfuse3.close(unmount=False); device.close(), in this order, in a worker thread or after
             trio has ended. close() closes /dev/fuse; whatever is still unanswered then gets ECONNABORTED.
"""

from typing import Any

from stackfs.cext.python_requests import Request, Volume

class Device:
    """One FUSE connection. Owns the fd from the constructor on, and gives it back to nobody."""

    volume: Volume

    def __init__(
        self,
        fd: int,
        volume: Volume,
        *,
        lanes: str = "auto",
        max_write: int = 0,
        stack_checks: bool = False,
        cache_symlinks: bool = True,
        direct_io_allow_mmap: bool = True,
        passthrough: bool = False,
        stack_locks: bool = False,
        writeback: bool = False,
    ) -> None:
        """Make the socket pair to the IRP lane. Threads start with start(), not here.

        lanes: "auto": requests are served by the device's threads, and go to the IRP lane when a filter refuses them as
        fast I/O; "irp": every request that pyfuse3 has a handler for is forwarded to it.
        max_write: bytes, 0 for the largest that the socket pair and the kernel carry (1 MiB at most); a smaller
        number is rounded down to whole pages. The flags are what is asked for at INIT; what the kernel does not
        offer is done without (negotiated tells). stack_checks: permissions=stack, so nothing that makes the kernel
        check by itself, or look up what nobody asked for. stack_locks: file locks are requests; else the kernel keeps
        them itself. Raises OSError, also when net.core.wmem_max is too small to mount.
        """

    # The lane
    lane_fd: int
    """pyfuse3's end of the socket pair, or -1 once detached."""
    def detach_lane_fd(self) -> int:
        """Hand over pyfuse3's end: pyfuse3.close() closes it, and nobody else may. ValueError the second time."""
    def take(self, opcode: int, nodeid: int = 0) -> Request | None:
        """The header of the message that the calling pyfuse3 handler is for: the queue's first, taken off.

        None: the queue is empty or its first is another's, and the lane cannot be trusted any more (every later header
        would be another's too). nodeid 0: the handler does not know it. RENAME stands for RENAME2, FORGET for
        BATCH_FORGET. The request has no names and no data: the handler has them from pyfuse3.
        """
    def relay_now(self, timeout: float | None = None) -> None:
        """Carry pyfuse3's answers to the kernel. By the lane's loop, when it is about to wait (for `timeout`: it does
        not matter here); never waits itself."""
    def head(self) -> dict[str, Any] | None:
        """The first header in the queue, for a message about a mismatch: operation (name), opcode, nodeid, unique,
        tid, uid, gid, group, and arguments: those of fuse_in_t that are not 0."""
    def discard(self, opcode: int, nodeid: int = 0) -> bool:
        """As take, but the request is thrown away unused, and libfuse does not answer it; False: it is not this
        handler's."""

    # Life
    def start(self) -> None:
        """Start the threads. They block every signal. RuntimeError the second time, OSError when none can start."""
    def abort(self) -> None:
        """Answer every unanswered request, and each one to come, with ECONNABORTED. Late answers are dropped.

        Nothing is served any more, so ended_fd becomes readable, though files may still be open.
        """
    def stop(self) -> None:
        """abort(), then end and join the threads, all but the relay. May be called again. Releases the GIL."""
    def close(self) -> None:
        """stop(), end the relay, close every descriptor but a detached lane_fd. May be called again."""

    # What a task waits for: eventfds, readable from then on; never read them, except deadlock_fd
    ready_fd: int
    """INIT has been answered."""
    ended_fd: int
    """The connection is gone: unmounted or aborted (error 0), unusable (error: an errno), or abort() was called."""
    deadlock_fd: int
    """A request of this process was refused. Read 8 bytes, then log deadlocks and last_deadlock."""

    # Notifications: queued, written by a thread of their own, in order; what the kernel does not know is no error
    def invalidate_inode(self, nodeid: int, offset: int = 0, length: int = 0) -> None:
        """Drop attributes and, from offset on, length bytes of cached data (0: all; offset < 0: attributes only)."""
    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Drop a name from the kernel's cache. name: 1 to 255 bytes."""
    def invalidate_all_entries(self) -> bool:
        """Drop every name at once, without a lock in the kernel; False: it is older than 7.44.

        Better than many invalidate_entry: those wait for their directory's lock, which an unanswered request may hold.
        """
    def flush_notifications(self, timeout: float | None = None) -> bool:
        """Wait, without the GIL, until everything queued so far is written; False: seconds are over, or stopped.

        A notification waits in the kernel for locks that unanswered requests hold: call it in a worker thread,
        never from a callback or inside a request.
        """

    # What it is and what it did
    max_write: int
    """Bytes in one READ or WRITE."""
    message_max: int
    """Bytes in one message through the socket pair."""
    negotiated: int
    """INIT flags in force, bits 0 to 63; 0 before INIT."""
    kernel_minor: int
    """The kernel's FUSE 7.x, 0 before INIT."""
    error: int
    """Why it ended: 0, or the errno that made it unusable."""
    ended: bool
    lane_gone: bool
    """The lane's end was closed: what should be forwarded gets EIO."""
    in_flight: int
    """Requests that were read and not answered."""
    headers: int
    """Messages forwarded whose handler has not popped its header."""
    waiting: int
    """Messages that wait for room in the socket."""
    threads: int
    deadlocks: int
    """Requests refused with EDEADLK because they came from this process."""
    last_deadlock: tuple[str, int]
    """Operation and thread id of the last one; ("", 0): none."""
    malformed: int
    def counters(self) -> dict[str, dict[str, int]]:
        """Requests by lane ("irp", "device", "refused") and operation name, those that are not 0."""
