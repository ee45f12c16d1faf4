"""The Filter Manager's routines under their DDI names: parameters in DDI order, out-parameters as Out, NTSTATUS back.

stackfs/api.py offers the same to a Python author in fewer lines; both call one implementation.
"""

from stackfs.api import *
from stackfs.ddi.buffers import *
from stackfs.ddi.callback_data import *
from stackfs.ddi.cancel_safe_queues import *
from stackfs.ddi.constants import *
from stackfs.ddi.contexts import *
from stackfs.ddi.directory_changes import *
from stackfs.ddi.file_locks import *
from stackfs.ddi.filter_io import *
from stackfs.ddi.filters import *
from stackfs.ddi.information import *
from stackfs.ddi.instances import *
from stackfs.ddi.names import *
from stackfs.ddi.object_attributes import *
from stackfs.ddi.oplocks import *
from stackfs.ddi.out import Out as Out
from stackfs.ddi.pending import *
from stackfs.ddi.ports import *
from stackfs.ddi.reparse_points import *
from stackfs.ddi.routines import *
from stackfs.ddi.sections import *
from stackfs.ddi.volumes import *
from stackfs.ddi.work_items import *
