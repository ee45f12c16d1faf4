"""Nothing for Python: see anticipation.pxd."""
