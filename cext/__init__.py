"""The compiled core: one module per concept, without the GIL wherever no Python callback runs.

ntstatus -> callback_data -> stack -> inode_table -> backing -> requests -> device, each resting on what stands to its
left (credentials and process are leaves). Nothing here names a filter.
"""

# First, in this order, whatever is asked for: their classes and those of other modules refer to each other.
from stackfs.cext import callback_data as _callback_data  # noqa: F401
from stackfs.cext import filter_file as _filter_file  # noqa: F401
