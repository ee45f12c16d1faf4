"""The user-mode library under its own names: FilterLoad, FilterGetMessage, FilterVolumeInstanceFindFirst and the rest.

Parameters stand in the order of the C functions; what those return through a pointer is an Out. Every function returns
an HRESULT (stackfs/hresult.py) and raises nothing: S_OK, or what went wrong. Handles are objects; they hold no
reference on anything in a daemon, but for a port's, which is the connection.

A buffer of information (lpBuffer) is an Out of one of the structures of stackfs/information.py, a buffer of a message a
bytearray with a header in front, as in C (FILTER_MESSAGE_HEADER, FILTER_REPLY_HEADER). Everything is synchronous: the
form with an OVERLAPPED is stackfs.filterlib.aio.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec, TypeVar

from stackfs.cext.ntstatus import NtStatus
from stackfs.control import FilterRow, InstanceRow
from stackfs.ddi.out import Out
from stackfs.errors import ExitCode, FltError, StackfsError
from stackfs.filterlib import management
from stackfs.filterlib.port import Port, connect
from stackfs.hresult import S_OK, from_error, from_win32
from stackfs.information import Information, of_filter, of_instance, of_volume

FLT_PORT_FLAG_SYNC_HANDLE: Final = 0x1
INSTANCE_NAME_MAX_CHARS: Final = 255

ERROR_INSUFFICIENT_BUFFER: Final = 122
ERROR_NO_MORE_ITEMS: Final = 259
E_INVALIDARG: Final = 0x80070057
E_HANDLE: Final = 0x80070006

P = ParamSpec("P")
T = TypeVar("T")


FILTER_MESSAGE_HEADER: Final = struct.Struct("=I4xQ")
"""In front of a message: ReplyLength (bytes of the reply with its header; 0: none is expected), MessageId."""
FILTER_REPLY_HEADER: Final = struct.Struct("=I4xQ")
"""In front of a reply: Status, MessageId."""


class _Short(Exception):
    """The caller's buffer is too small."""


def _hresult(function: Callable[P, None]) -> Callable[P, int]:
    @functools.wraps(function)
    def returning(*arguments: P.args, **keywords: P.kwargs) -> int:
        try:
            function(*arguments, **keywords)
        except StackfsError as error:
            return from_error(error)
        except _Short:
            return from_win32(ERROR_INSUFFICIENT_BUFFER)
        except StopIteration:
            return from_win32(ERROR_NO_MORE_ITEMS)
        except (ValueError, struct.error):
            return E_INVALIDARG
        return S_OK

    return returning


# ---- loading and attaching -------------------------------------------------------------------------------------------

@_hresult
def FilterLoad(lpFilterName: str) -> None:
    management.load(lpFilterName)


@_hresult
def FilterUnload(lpFilterName: str) -> None:
    management.unload(lpFilterName)


@_hresult
def FilterAttach(
    lpFilterName: str,
    lpVolumeName: str,
    lpInstanceName: str | None = None,
    dwCreatedInstanceNameLength: int = INSTANCE_NAME_MAX_CHARS + 1,
    lpCreatedInstanceName: Out[str] | None = None,
) -> None:
    _attach(lpFilterName, lpVolumeName, lpInstanceName, None, dwCreatedInstanceNameLength, lpCreatedInstanceName)


@_hresult
def FilterAttachAtAltitude(
    lpFilterName: str,
    lpVolumeName: str,
    lpAltitude: str,
    lpInstanceName: str | None = None,
    dwCreatedInstanceNameLength: int = INSTANCE_NAME_MAX_CHARS + 1,
    lpCreatedInstanceName: Out[str] | None = None,
) -> None:
    _attach(lpFilterName, lpVolumeName, lpInstanceName, lpAltitude, dwCreatedInstanceNameLength, lpCreatedInstanceName)


def _attach(
    filter: str, volume: str, name: str | None, altitude: str | None, room: int, created: Out[str] | None
) -> None:
    result, = management.attach(filter, volume, name, altitude)
    if created is not None:
        created.value = str(result["result"]["name"])[: max(0, room - 1)]


@_hresult
def FilterDetach(lpFilterName: str, lpVolumeName: str, lpInstanceName: str | None = None) -> None:
    management.detach(lpFilterName, lpVolumeName, lpInstanceName)


# ---- handles of filters and instances --------------------------------------------------------------------------------

class HFILTER:
    """A loaded filter, by name."""

    def __init__(self, name: str) -> None:
        self.name: str | None = name


class HFILTER_INSTANCE:
    """An instance, by filter, volume and name."""

    def __init__(self, row: InstanceRow) -> None:
        self.row: InstanceRow | None = row


@_hresult
def FilterCreate(lpFilterName: str, hFilter: Out[HFILTER]) -> None:
    hFilter.value = HFILTER(_filter(lpFilterName).name)


@_hresult
def FilterClose(hFilter: HFILTER) -> None:
    if hFilter.name is None:
        raise _closed()
    hFilter.name = None


@_hresult
def FilterGetInformation(
    hFilter: HFILTER,
    dwInformationClass: int,
    lpBuffer: Out[Information],
    dwBufferSize: int,
    lpBytesReturned: Out[int],
) -> None:
    if hFilter.name is None:
        raise _closed()
    _give(of_filter(_filter(hFilter.name), dwInformationClass), lpBuffer, dwBufferSize, lpBytesReturned)


@_hresult
def FilterInstanceCreate(
    lpFilterName: str, lpVolumeName: str, lpInstanceName: str | None, hInstance: Out[HFILTER_INSTANCE]
) -> None:
    hInstance.value = HFILTER_INSTANCE(_instance(lpFilterName, lpVolumeName, lpInstanceName))


@_hresult
def FilterInstanceClose(hInstance: HFILTER_INSTANCE) -> None:
    if hInstance.row is None:
        raise _closed()
    hInstance.row = None


@_hresult
def FilterInstanceGetInformation(
    hInstance: HFILTER_INSTANCE,
    dwInformationClass: int,
    lpBuffer: Out[Information],
    dwBufferSize: int,
    lpBytesReturned: Out[int],
) -> None:
    if hInstance.row is None:
        raise _closed()
    row = _instance(hInstance.row.filter, hInstance.row.volume, hInstance.row.name)
    _give(of_instance(row, dwInformationClass), lpBuffer, dwBufferSize, lpBytesReturned)


@_hresult
def FilterGetDosName(lpVolumeName: str, lpDosName: Out[str], dwDosNameBufferSize: int) -> None:
    """The mountpoint. dwDosNameBufferSize: in characters, the terminating NUL included."""
    for row in _listed(management.volumes):
        if lpVolumeName in (row.volume_name, row.dos_name):
            if not row.dos_name:
                raise FltError(NtStatus.STATUS_OBJECT_NAME_NOT_FOUND, f"volume {lpVolumeName!r} is not mounted")
            if len(row.dos_name) >= dwDosNameBufferSize:
                raise _Short
            lpDosName.value = row.dos_name
            return
    raise FltError(NtStatus.STATUS_FLT_VOLUME_NOT_FOUND, f"no volume {lpVolumeName!r}", ExitCode.NOT_FOUND)


@_hresult
def FilterGetVolumeInformationFromName(
    lpVolumeName: str,
    dwInformationClass: int,
    lpBuffer: Out[Information],
    dwBufferSize: int,
    lpBytesReturned: Out[int],
) -> None:
    for row in _listed(management.volumes):
        if lpVolumeName in (row.volume_name, row.dos_name):
            _give(of_volume(row, dwInformationClass), lpBuffer, dwBufferSize, lpBytesReturned)
            return
    raise FltError(NtStatus.STATUS_FLT_VOLUME_NOT_FOUND, f"no volume {lpVolumeName!r}", ExitCode.NOT_FOUND)


def _filter(name: str) -> FilterRow:
    for row in _listed(management.filters):
        if row.name == name:
            return row
    raise FltError(NtStatus.STATUS_FLT_FILTER_NOT_FOUND, f"filter {name!r} is not loaded", ExitCode.NOT_FOUND)


def _instance(filter: str, volume: str, name: str | None) -> InstanceRow:
    _filter(filter)
    for row in management.instances(filter, volume):
        if row.filter == filter and name in (None, row.name):
            return row
    words = f"filter {filter!r} has no such instance on volume {volume!r}"
    raise FltError(NtStatus.STATUS_FLT_INSTANCE_NOT_FOUND, words, ExitCode.NOT_FOUND)


def _listed(listing: Callable[[list[StackfsError]], list[T]]) -> list[T]:
    """A listing; when nobody has answered and somebody ought to, that is the error."""
    problems: list[StackfsError] = []
    found = listing(problems)
    if problems and not found:
        raise problems[0]
    return found


def _closed() -> FltError:
    return FltError(NtStatus.STATUS_INVALID_HANDLE, "the handle is closed")


def _give(information: Information, buffer: Out[Information], room: int, returned: Out[int]) -> None:
    returned.value = information.size
    if information.size > room:
        raise _Short
    buffer.value = information


# ---- enumerations ----------------------------------------------------------------------------------------------------

class FIND:
    """Where an enumeration stands: of what there was when it began."""

    def __init__(self, rows: Iterable[Any], structure: Callable[[Any, int], Information]) -> None:
        self.rows: list[Any] | None = list(rows)
        self.structure = structure

    def give(self, information_class: int, buffer: Out[Information], room: int, returned: Out[int]) -> None:
        """What does not fit is given again."""
        if self.rows is None:
            raise _closed()
        if not self.rows:
            raise StopIteration
        _give(self.structure(self.rows[0], information_class), buffer, room, returned)
        del self.rows[0]

    def close(self) -> None:
        if self.rows is None:
            raise _closed()
        self.rows = None


def _first(
    find: FIND,
    information_class: int,
    buffer: Out[Information],
    room: int,
    returned: Out[int],
    handle: Out[FIND],
) -> None:
    find.give(information_class, buffer, room, returned)
    handle.value = find


def _next_of(name: str) -> Callable[[FIND, int, Out[Information], int, Out[int]], int]:
    def following(
        hFind: FIND, dwInformationClass: int, lpBuffer: Out[Information], dwBufferSize: int, lpBytesReturned: Out[int]
    ) -> None:
        hFind.give(dwInformationClass, lpBuffer, dwBufferSize, lpBytesReturned)

    following.__name__ = following.__qualname__ = name
    return _hresult(following)


def _close_of(name: str) -> Callable[[FIND], int]:
    def closing(hFind: FIND) -> None:
        hFind.close()

    closing.__name__ = closing.__qualname__ = name
    return _hresult(closing)


@_hresult
def FilterFindFirst(
    dwInformationClass: int,
    lpBuffer: Out[Information],
    dwBufferSize: int,
    lpBytesReturned: Out[int],
    lpFilterFind: Out[FIND],
) -> None:
    find = FIND(_listed(management.filters), of_filter)
    _first(find, dwInformationClass, lpBuffer, dwBufferSize, lpBytesReturned, lpFilterFind)


@_hresult
def FilterVolumeFindFirst(
    dwInformationClass: int,
    lpBuffer: Out[Information],
    dwBufferSize: int,
    lpBytesReturned: Out[int],
    lpVolumeFind: Out[FIND],
) -> None:
    find = FIND(_listed(management.volumes), of_volume)
    _first(find, dwInformationClass, lpBuffer, dwBufferSize, lpBytesReturned, lpVolumeFind)


@_hresult
def FilterInstanceFindFirst(
    lpFilterName: str,
    dwInformationClass: int,
    lpBuffer: Out[Information],
    dwBufferSize: int,
    lpBytesReturned: Out[int],
    lpFilterInstanceFind: Out[FIND],
) -> None:
    """The instances of one filter, on all volumes."""
    _filter(lpFilterName)
    find = FIND(management.instances(lpFilterName), of_instance)
    _first(find, dwInformationClass, lpBuffer, dwBufferSize, lpBytesReturned, lpFilterInstanceFind)


@_hresult
def FilterVolumeInstanceFindFirst(
    lpVolumeName: str,
    dwInformationClass: int,
    lpBuffer: Out[Information],
    dwBufferSize: int,
    lpBytesReturned: Out[int],
    lpVolumeInstanceFind: Out[FIND],
) -> None:
    """The instances on one volume, of all filters."""
    find = FIND(management.instances(volume=lpVolumeName), of_instance)
    _first(find, dwInformationClass, lpBuffer, dwBufferSize, lpBytesReturned, lpVolumeInstanceFind)


FilterFindNext = _next_of("FilterFindNext")
FilterFindClose = _close_of("FilterFindClose")
FilterVolumeFindNext = _next_of("FilterVolumeFindNext")
FilterVolumeFindClose = _close_of("FilterVolumeFindClose")
FilterInstanceFindNext = _next_of("FilterInstanceFindNext")
FilterInstanceFindClose = _close_of("FilterInstanceFindClose")
FilterVolumeInstanceFindNext = _next_of("FilterVolumeInstanceFindNext")
FilterVolumeInstanceFindClose = _close_of("FilterVolumeInstanceFindClose")


# ---- ports -----------------------------------------------------------------------------------------------------------

@_hresult
def FilterConnectCommunicationPort(
    lpPortName: str,
    dwOptions: int,
    lpContext: bytes | None,
    wSizeOfContext: int,
    lpSecurityAttributes: None,
    hPort: Out[Port],
) -> None:
    """dwOptions: 0 or FLT_PORT_FLAG_SYNC_HANDLE. Port.close() is CloseHandle()."""
    if dwOptions & ~FLT_PORT_FLAG_SYNC_HANDLE or lpSecurityAttributes is not None:
        raise ValueError(dwOptions)
    context = (lpContext or b"")[:wSizeOfContext]
    hPort.value = connect(lpPortName, context, synchronous=bool(dwOptions & FLT_PORT_FLAG_SYNC_HANDLE))


@_hresult
def FilterSendMessage(
    hPort: Port,
    lpInBuffer: bytes | None,
    dwInBufferSize: int,
    lpOutBuffer: bytearray | None,
    dwOutBufferSize: int,
    lpBytesReturned: Out[int],
) -> None:
    """The output is at the beginning of lpOutBuffer."""
    room = 0 if lpOutBuffer is None else min(dwOutBufferSize, len(lpOutBuffer))
    output = hPort.send((lpInBuffer or b"")[:dwInBufferSize], room)
    if lpOutBuffer is not None:
        lpOutBuffer[: len(output)] = output
    lpBytesReturned.value = len(output)


@_hresult
def FilterGetMessage(
    hPort: Port, lpMessageBuffer: bytearray, dwMessageBufferSize: int, lpOverlapped: None = None
) -> None:
    """Waits. A message that does not fit is kept for the next call."""
    if lpOverlapped is not None:
        raise ValueError("an OVERLAPPED")
    room = min(dwMessageBufferSize, len(lpMessageBuffer))
    message = hPort.get()
    length = 0 if message.reply_size is None else FILTER_REPLY_HEADER.size + message.reply_size
    whole = FILTER_MESSAGE_HEADER.pack(length, message.id) + message.data
    if len(whole) > room:
        hPort.put_back(message)
        raise _Short
    lpMessageBuffer[: len(whole)] = whole


@_hresult
def FilterReplyMessage(hPort: Port, lpReplyBuffer: bytes, dwReplyBufferSize: int) -> None:
    """lpReplyBuffer: FILTER_REPLY_HEADER.pack(Status, MessageId) and the reply."""
    reply = bytes(lpReplyBuffer[:dwReplyBufferSize])
    status, message_id = FILTER_REPLY_HEADER.unpack_from(reply)
    hPort.reply(message_id, reply[FILTER_REPLY_HEADER.size :], status)


__all__ = [
    "ERROR_INSUFFICIENT_BUFFER",
    "ERROR_NO_MORE_ITEMS",
    "FILTER_MESSAGE_HEADER",
    "FILTER_REPLY_HEADER",
    "FIND",
    "FLT_PORT_FLAG_SYNC_HANDLE",
    "HFILTER",
    "HFILTER_INSTANCE",
    "INSTANCE_NAME_MAX_CHARS",
    "FilterAttach",
    "FilterAttachAtAltitude",
    "FilterClose",
    "FilterConnectCommunicationPort",
    "FilterCreate",
    "FilterDetach",
    "FilterFindClose",
    "FilterFindFirst",
    "FilterFindNext",
    "FilterGetDosName",
    "FilterGetInformation",
    "FilterGetMessage",
    "FilterGetVolumeInformationFromName",
    "FilterInstanceClose",
    "FilterInstanceCreate",
    "FilterInstanceFindClose",
    "FilterInstanceFindFirst",
    "FilterInstanceFindNext",
    "FilterInstanceGetInformation",
    "FilterLoad",
    "FilterReplyMessage",
    "FilterSendMessage",
    "FilterUnload",
    "FilterVolumeFindClose",
    "FilterVolumeFindFirst",
    "FilterVolumeFindNext",
    "FilterVolumeInstanceFindClose",
    "FilterVolumeInstanceFindFirst",
    "FilterVolumeInstanceFindNext",
]
