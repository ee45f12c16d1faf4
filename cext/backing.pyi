"""Nothing for Python: see backing.pxd."""
