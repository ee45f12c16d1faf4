"""The compiled core: one module per concept, without the GIL wherever no Python callback runs.

ntstatus -> callback_data -> stack -> inode_table -> backing -> requests -> device, each importing only what
stands to its left (credentials and process are leaves). Nothing here names a filter.
"""
