"""Locks of files: whose they are, who waits for them. Nothing for Python."""
