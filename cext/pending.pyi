"""Operations that a filter holds (docs/semantics.md A6.14 to A6.18, A8)."""

def current_irql() -> int:
    """KeGetCurrentIrql: the level of the calling thread. DISPATCH_LEVEL (2) in posts that may come at it, else 0."""

def interrupted_requestors() -> list[int] | None:
    """None: this thread runs no callback of the stack. Else the thread ids of the programs whose operations its
    callbacks are about, the one in hand and those around it, as far as an INTERRUPT, or a cancel, has come for them."""

def require_irql(level: int, routine: str) -> None:
    """Says that `routine` may be called at `level` at most. RuntimeError, while the verifier is on, when it is
    higher."""
