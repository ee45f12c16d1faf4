"""Nothing for Python: see listing.pxd."""
