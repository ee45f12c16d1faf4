"""Nothing for Python: see handles.pxd."""
