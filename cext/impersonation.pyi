"""Whose rights a thread's system calls have: the daemon's own, or a caller's (-o permissions=stack)."""

def unavailable() -> str:
    """Why this process cannot take its callers' rights, in words for the user; empty: it can, or need not (no root)."""

def time_switch(uid: int, rounds: int = ...) -> float:
    """Nanoseconds to take a user's rights (no groups) and come back, on this machine now."""
