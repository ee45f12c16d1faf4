"""Files and names for filters' own I/O, for native filters (the .pxd); filter_file is the Python face."""

from enum import IntFlag

class CreateResult(IntFlag):
    FILE_SUPERSEDED = 0
    FILE_OPENED = 1
    FILE_CREATED = 2
    FILE_OVERWRITTEN = 3
