"""The filters that come with stackfs. Each is found, read and loaded exactly as a stranger's drop-in would be.

Nothing in stackfs or cext names a filter; a filter imports stackfs.api, and a native one cext's .pxd files.
"""
