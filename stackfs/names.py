"""Name providers, the managing side: what a filter that shows other names registers (semantics B1.8)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from stackfs.cext.python_names import NameProvider

if TYPE_CHECKING:
    from stackfs.api import Filter

CALLBACKS = ("generate_file_name", "normalize_name_component", "normalize_context_cleanup")


def check(cls: type[Filter] | Filter) -> None:
    """ValueError: what is wrong with a filter's callbacks as a name provider."""
    for name in CALLBACKS:
        callback = getattr(cls, name)
        if callback is not None and (not callable(callback) or inspect.iscoroutinefunction(callback)):
            raise ValueError(f"{name} must be a plain method, or None")
    if cls.generate_file_name is None and (cls.normalize_name_component or cls.normalize_context_cleanup):
        raise ValueError("what normalizes names has to generate them: generate_file_name is missing")


def provider(filter_object: Filter) -> NameProvider | None:
    """The filter as a name provider; None: names are the same above it as below. One that has `name_provider` (what
    stackfs.ddi.names.name_provider() makes of a FLT_REGISTRATION's callbacks) is that."""
    made: NameProvider | None = getattr(filter_object, "name_provider", None)
    if made is not None:
        return made
    if filter_object.generate_file_name is None:
        return None
    return NameProvider(*(getattr(filter_object, name) for name in CALLBACKS))
