"""Nothing for Python: see irp_link.pxd."""
