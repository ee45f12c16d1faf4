"""Nothing for Python: see bypass.pxd."""
