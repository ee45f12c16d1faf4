"""Nothing for Python: see notifiers.pxd."""
