"""The inode table: what the kernel knows of the backing directory's inodes. Nothing for Python."""
