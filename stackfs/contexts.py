"""Contexts, the managing side: what a filter registers, and when an instance's and a filter's go (semantics B2).

The contexts themselves are cext/contexts.pyx. Everything here runs on the trio thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import trio

from stackfs.cext.python_contexts import Context, FilterContexts

if TYPE_CHECKING:
    from stackfs.api import Filter
    from stackfs.cext.stack import InstanceEntry

log = structlog.get_logger("stackfs.contexts")

Kind = TypeVar("Kind", bound=Context)

AT_ONCE = 1000
"""Contexts deleted between two looks at the loop."""

UNREGISTER_WAIT = 5.0
"""Seconds that an unload waits for references which somebody still holds (F15)."""

Callback = Callable[..., Any]


def rows(owner: Any) -> Iterator[Any]:
    """The registrations of a filter's class or object as FilterContexts takes them. ValueError: what is wrong."""
    from stackfs import api

    for each in owner.contexts:
        if isinstance(each, type):
            yield each
            continue
        if not isinstance(each, api.ContextRegistration):
            raise ValueError(f"{each!r} is neither a class of contexts nor a ContextRegistration")
        yield (
            each.context_type,
            each.flags,
            each.size,
            _callback(owner, each.cleanup),
            _callback(owner, each.allocate),
            _callback(owner, each.free),
        )


def _callback(owner: Any, named: str | Callback | None) -> Callback | None:
    if named is None:
        return None
    found = getattr(owner, named, None) if isinstance(named, str) else named
    if not callable(found):
        raise ValueError(f"there is no method {named!r}")
    result: Callback = found
    return result


def check(cls: type[Filter] | Filter) -> None:
    """A filter's registration of contexts held against the rules (B2.2). ValueError: what is wrong."""
    if not isinstance(cls.contexts, (tuple, list)):
        raise ValueError("must be a tuple of classes of contexts or ContextRegistrations")
    FilterContexts(rows(cls))


def register(name: str, filter_object: Filter) -> FilterContexts | None:
    """What the filter has registered; None: no contexts. ValueError: what is wrong."""
    if not filter_object.contexts and filter_object.native_contexts is None:
        return None

    def report(kind: str, error: BaseException) -> None:
        log.error("a context's cleanup raised", filter=name, context=kind, error=f"{type(error).__name__}: {error}")

    return FilterContexts(rows(filter_object), filter_object.native_contexts, report)


async def delete_all(entry: InstanceEntry) -> None:
    """The end of an instance's teardown: its contexts go, in the order of A3."""
    while entry.delete_contexts(AT_ONCE):
        await trio.lowlevel.checkpoint()


async def unregister(name: str, registration: FilterContexts | None) -> None:
    """FltUnregisterFilter's part: volume contexts go; then wait, but not for ever, for references still held (F15)."""
    if registration is None or not registration.close():
        return
    with trio.move_on_after(UNREGISTER_WAIT):
        while registration.outstanding:
            await trio.sleep(0.001)
    if registration.outstanding:
        log.error(
            "contexts were not released",
            filter=name,
            contexts=", ".join(f"{kind}: {count}" for kind, count in registration.outstanding.items()),
            outcome="unloaded all the same; they go when they are released",
        )


class InstanceFace:
    """What an Instance offers of its contexts: those of itself and of its volume (callback data has all)."""

    entry: InstanceEntry

    def get_context(self, kind: type[Kind]) -> Kind | None:
        """The instance's, or its volume's, context of this class; None: there is none (B2.4)."""
        return self.entry.get_context(kind)

    def ensure_context(self, kind: type[Kind]) -> Kind:
        """The same; one is made, kind(), and set if there is none. NtStatusError: STATUS_FLT_DELETING_OBJECT."""
        return self.entry.ensure_context(kind)

    def set_context(self, context: Kind, *, replace: bool = False) -> Kind | None:
        """Set it. If there is one it stays, or with `replace` goes; returns the one that was there, or None (B2.5)."""
        return self.entry.set_context(context, replace=replace)

    def delete_context(self, kind: type[Context]) -> bool:
        """Take it off. False: there was none."""
        return self.entry.delete_context(kind)
