"""Nothing for Python: see requests.pxd."""
