"""Nothing for Python: see readers.pxd."""
