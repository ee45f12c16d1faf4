"""Nothing for Python: see credentials.pxd."""
