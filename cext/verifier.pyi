"""The verifier's part in the core (docs/semantics.md A11); stackfs/verifier.py is its owner."""

from collections.abc import Callable
from typing import Any, Protocol

class _Watcher(Protocol):
    """What the core tells. `routine` of complain(): the filter's method, None for a native callback."""

    def complain(
        self,
        what: str,
        filter: str,
        instance: str,
        routine: str,
        major: int,
        path: str,
        method: Callable[..., Any] | None,
    ) -> None: ...
    def complain_of_call(
        self, what: str, filter: str, instance: str, routine: str, major: int | None = None
    ) -> None: ...
    def acquired(
        self, thing: object, kind: str, routine: str, *, filter: str = "", owner: object = None, keep: bool = True
    ) -> None: ...
    def assigned(self, thing: object, filter: str, owner: object) -> None: ...
    def given_back(self, thing: object) -> None: ...

def set_watcher(new: _Watcher | None) -> None:
    """Who is told what is found, and what filters acquire; None: the verifier is off. Instances that are there stay
    as they are."""

def current_instance() -> tuple[str, Any] | None:
    """(filter, instance's object) of the callback that this thread is in; None: in none, or the verifier was off when
    the instance was made."""
