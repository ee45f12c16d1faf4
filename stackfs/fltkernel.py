"""The Filter Manager's routines under their DDI names: parameters in DDI order, out-parameters as Out, NTSTATUS
returned.

stackfs/api.py offers the same to a Python author in fewer lines; both call one implementation.
"""

from stackfs.api import *  # noqa: F403
from stackfs.ddi.buffers import *  # noqa: F403
from stackfs.ddi.callback_data import *  # noqa: F403
from stackfs.ddi.cancel_safe_queues import *  # noqa: F403
from stackfs.ddi.filter_io import *  # noqa: F403
from stackfs.ddi.object_attributes import *  # noqa: F403
from stackfs.ddi.out import Out as Out
from stackfs.ddi.pending import *  # noqa: F403
from stackfs.ddi.work_items import *  # noqa: F403
