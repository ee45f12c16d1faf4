"""Nothing for Python: see connection.pxd."""
