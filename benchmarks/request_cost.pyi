"""What a request costs without a mount: C threads that drive a volume's stack (request_cost.pyx)."""

from stackfs.cext.python_requests import Volume

def time_reads(volume: Volume, handles: list[int], count: int) -> tuple[float, float]:
    """READs of no bytes through stack and base: `count` of each handle at offsets 0, 1, ..., by a thread for each
    handle, all at the same time. Nanoseconds a request: (elapsed, the threads' CPU time). ValueError: fewer than one
    handle, or more than 64. OSError when a read fails."""
