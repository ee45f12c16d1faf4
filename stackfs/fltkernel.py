"""The Filter Manager's routines under their DDI names: parameters in DDI order, out-parameters as Out, NTSTATUS back.

stackfs/api.py offers the same to a Python author in fewer lines; both call one implementation.
"""

from stackfs.api import *  # noqa: F403
from stackfs.ddi.contexts import *  # noqa: F403
from stackfs.ddi.names import *  # noqa: F403
from stackfs.ddi.out import Out  # noqa: F401
