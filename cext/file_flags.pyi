"""Inode flags and project ids: the FS_IOC_* controls of files. Nothing for Python."""
