"""What a filter does with files itself, for native filters (the .pxd); filter_file is the Python face."""

from enum import IntFlag

class IoFlags(IntFlag):
    FLTFL_IO_OPERATION_NON_CACHED = 1
    FLTFL_IO_OPERATION_PAGING = 2
    FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET = 4
    FLTFL_IO_OPERATION_SYNCHRONOUS_PAGING = 8
