"""FltGetRoutineAddress (docs/semantics.md, A2.18): a routine of the native interface by its name."""

def native_routine(name: str) -> int:
    """Its address; 0: this release has none of that name."""
