"""Nothing for Python: see turns.pxd."""
