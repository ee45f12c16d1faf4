"""Nothing for Python: see answers.pxd."""
