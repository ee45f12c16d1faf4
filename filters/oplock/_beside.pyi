"""Nothing for Python: see _beside.pxd."""
