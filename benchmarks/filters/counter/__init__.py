"""counter: a native filter that counts every operation, before and after. It is what an instance costs at the least."""

from __future__ import annotations

from typing import Any

from stackfs.api import STATUS_SUCCESS, Filter

MANIFEST = {
    "name": "counter",
    "description": "Counts operations, and those that fail.",
    "altitude": "385310",
    "group": "FSFilter Activity Monitor",
    "filter": "Counter",
    "answers": "cacheable",
}


class Counter(Filter):
    """Each instance counts for itself."""

    def __init__(self, options: dict[str, Any]) -> None:
        from ._callbacks import operations

        super().__init__(options)
        self.native = operations()

    def instance_setup(self, instance: Any, flags: int) -> int:
        from ._callbacks import Counts

        instance.context = Counts(instance.entry)
        return STATUS_SUCCESS

    def instance_teardown_complete(self, instance: Any, reason: int) -> None:
        instance.context.release()
