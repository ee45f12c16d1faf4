"""stackfs: a FUSE filesystem with the Windows Filter Manager inside.

This package is the Filter Manager: volumes, filters, instances, the control socket and the command line. It knows no
particular filter. ``stackfs.cext`` is the compiled core, ``stackfs.filters`` the drop-in filters, ``stackfs.api`` the
one file a filter's author reads. Importing ``stackfs`` imports nothing else.
"""

__version__ = "0.1.0"
