"""budget: a native filter that watches how many bytes are read and written, and refuses more than its budget."""

from __future__ import annotations

from typing import Any

from stackfs.api import STATUS_SUCCESS, Filter

MANIFEST = {
    "name": "budget",
    "description": "Counts the bytes read and written; refuses (EDQUOT) what comes when the budget is spent.",
    "altitude": "245110",
    "group": "FSFilter Quota Management",
    "filter": "Budget",
    "answers": "cacheable",
    "options": {
        "limit": {"type": "size", "default": 0, "min": 0, "doc": "The budget in bytes; 0: only watched."},
    },
}


class Budget(Filter):
    """Each instance has a budget of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        from ._callbacks import operations

        super().__init__(options)
        self.native = operations()

    def instance_setup(self, instance: Any, flags: int) -> int:
        from ._callbacks import Account

        instance.context = Account(instance.entry, instance.options["limit"])
        return STATUS_SUCCESS

    def instance_teardown_complete(self, instance: Any, reason: int) -> None:
        instance.context.release()
