"""Nothing for Python: see notices.pxd."""
