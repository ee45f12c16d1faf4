"""Extents of open files. Nothing for Python."""
