"""The routines of the Filter Manager under their DDI names, gathered (docs/writing-filters.md)."""

from stackfs.ddi.cancel_safe_queues import *  # noqa: F403
from stackfs.ddi.out import Out as Out
from stackfs.ddi.pending import *  # noqa: F403
from stackfs.ddi.work_items import *  # noqa: F403
