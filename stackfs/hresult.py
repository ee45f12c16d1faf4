"""How a status looks to a program (filterlib) and to a user of fltmc: user mode has an HRESULT for an NTSTATUS.

STATUS_FLT_* 0xC01C00nn becomes ERROR_FLT_* 0x801F00nn, its one success FLT_IO_COMPLETE 0x001F0001; what has a Win32
error becomes 0x8007nnnn; any other NTSTATUS keeps its number with the bit that says so (FACILITY_NT_BIT). Pure.
"""

from __future__ import annotations

from typing import Final

from stackfs.cext.ntstatus import NtStatus
from stackfs.errors import ExitCode, FltError, StackfsError

_WIN32: Final = {
    0x00000102: 1460,  # TIMEOUT
    0x80000005: 234,  # BUFFER_OVERFLOW: ERROR_MORE_DATA
    0x8000001A: 259,  # NO_MORE_ENTRIES: ERROR_NO_MORE_ITEMS
    0xC0000001: 31,  # UNSUCCESSFUL: ERROR_GEN_FAILURE
    0xC0000002: 1,  # NOT_IMPLEMENTED: ERROR_INVALID_FUNCTION
    0xC0000008: 6,  # INVALID_HANDLE
    0xC000000D: 87,  # INVALID_PARAMETER
    0xC0000022: 5,  # ACCESS_DENIED
    0xC0000023: 122,  # BUFFER_TOO_SMALL: ERROR_INSUFFICIENT_BUFFER
    0xC0000033: 123,  # OBJECT_NAME_INVALID: ERROR_INVALID_NAME
    0xC0000034: 2,  # OBJECT_NAME_NOT_FOUND: ERROR_FILE_NOT_FOUND
    0xC0000035: 183,  # OBJECT_NAME_COLLISION: ERROR_ALREADY_EXISTS
    0xC0000037: 6,  # PORT_DISCONNECTED: ERROR_INVALID_HANDLE
    0xC000007B: 193,  # INVALID_IMAGE_FORMAT: ERROR_BAD_EXE_FORMAT
    0xC000009A: 1450,  # INSUFFICIENT_RESOURCES: ERROR_NO_SYSTEM_RESOURCES
    0xC00000BB: 50,  # NOT_SUPPORTED
    0xC000010E: 1056,  # IMAGE_ALREADY_LOADED: ERROR_SERVICE_ALREADY_RUNNING
    0xC0000246: 1238,  # CONNECTION_COUNT_LIMIT
    0xC0000365: 647,  # FAILED_DRIVER_ENTRY
    0xC000038E: 654,  # DRIVER_FAILED_PRIOR_UNLOAD
    0x80000011: 170,  # DEVICE_BUSY: ERROR_BUSY
}
_BY_EXIT_CODE: Final = {
    ExitCode.USAGE: 0x80070057,  # ERROR_INVALID_PARAMETER
    ExitCode.NOT_FOUND: 0x80070490,  # ERROR_NOT_FOUND
    ExitCode.PERMISSION: 0x80070005,  # ERROR_ACCESS_DENIED
    ExitCode.NOT_ANSWERING: 0x800705B4,  # ERROR_TIMEOUT
}


S_OK: Final = 0


def SUCCEEDED(hresult: int) -> bool:
    return not hresult & 0x80000000


def FAILED(hresult: int) -> bool:
    return bool(hresult & 0x80000000)


def from_win32(error: int) -> int:
    """HRESULT_FROM_WIN32."""
    return 0x80070000 | error if error else S_OK


def from_status(status: int) -> int:
    """The HRESULT of an NTSTATUS that is an error."""
    status &= 0xFFFFFFFF
    if status >> 16 in (0xC01C, 0x001C):
        return status & 0x80000000 | 0x001F0000 | status & 0xFFFF
    if status in _WIN32:
        return 0x80070000 | _WIN32[status]
    return status | 0x10000000


ERRORS: Final = {
    name.replace("STATUS_", "ERROR_"): 0x001F0001 if value == NtStatus.STATUS_FLT_IO_COMPLETE else from_status(value)
    for name, value in NtStatus.__members__.items()
    if name.startswith("STATUS_FLT_")
}
"""The ERROR_FLT_* of the user-mode library, by name."""


def from_error(error: StackfsError) -> int:
    if isinstance(error, FltError) and error.status:
        return from_status(error.status)
    return _BY_EXIT_CODE.get(error.exit_code, 0x80004005)  # E_FAIL
