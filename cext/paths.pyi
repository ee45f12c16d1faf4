"""Nothing for Python: see paths.pxd."""
