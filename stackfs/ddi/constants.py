"""Constants of the DDI that no routine of another module is about, and its names for the structures that Python has as
classes (docs/semantics.md, A4).

FLT_CALLBACK_DATA is CallbackData, whose attributes are the parameters as well: FLT_PARAMETERS is the same class.
FLT_RELATED_OBJECTS is the Instance that callbacks get, with .Filter, .Volume, .Instance.
"""

from __future__ import annotations

from typing import Final

from stackfs.cext.callback_data import CallbackData
from stackfs.cext.operation_status import IoParameterBlock
from stackfs.filter_objects import Instance, LoadedFilter, Volume

FLT_CALLBACK_DATA = FLT_PARAMETERS = CallbackData
FLT_IO_PARAMETER_BLOCK = IoParameterBlock
FLT_RELATED_OBJECTS = PFLT_INSTANCE = Instance
PFLT_FILTER = LoadedFilter
PFLT_VOLUME = Volume

SERVICE_BOOT_START: Final = 0
SERVICE_SYSTEM_START: Final = 1
SERVICE_AUTO_START: Final = 2
SERVICE_DEMAND_START: Final = 3
SERVICE_DISABLED: Final = 4

FLTFL_CALLBACK_DATA_REISSUE_MASK: Final = 0xFFFF
FLTFL_INSTANCE_SETUP_DEV_VOLUME: Final = 0x10
"""Never set: a volume here is a directory."""
FLTFL_INSTANCE_SETUP_TRUSTED_VOLUME: Final = 0x20
"""Never set: Linux tells no volume from another that way."""
FLT_MAX_DEVICE_REPARSE_ATTEMPTS: Final = 64
"""How often one request may begin again under another name (A6.21)."""

SL_OPEN_TARGET_DIRECTORY: Final = 0x4
SL_WATCH_TREE: Final = 0x1
SL_FORCE_ACCESS_CHECK: Final = 0x1
SL_OPEN_PAGING_FILE: Final = 0x2
SL_CASE_SENSITIVE: Final = 0x80
SL_KEY_SPECIFIED: Final = 0x1
SL_OVERRIDE_VERIFY_VOLUME: Final = 0x2
SL_WRITE_THROUGH: Final = 0x4
SL_FAIL_IMMEDIATELY: Final = 0x1
SL_EXCLUSIVE_LOCK: Final = 0x2
IRP_MN_NORMAL: Final = 0x0
IRP_MN_DPC: Final = 0x1
IRP_MN_MDL: Final = 0x2
IRP_MN_COMPLETE: Final = 0x4
IRP_MN_COMPRESSED: Final = 0x8
IRP_MN_USER_FS_REQUEST: Final = 0x0
IRP_MN_MOUNT_VOLUME: Final = 0x1
IRP_MN_VERIFY_VOLUME: Final = 0x2
IRP_MN_LOAD_FILE_SYSTEM: Final = 0x3
IRP_MN_KERNEL_CALL: Final = 0x4

__all__ = [name for name in globals() if name.startswith(("FLT", "SL_", "IRP_MN_", "SERVICE_", "PFLT_"))]
