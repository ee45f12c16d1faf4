"""The user-mode library: what a program says to the filters of running volumes, and hears from them.

The short form raises (stackfs.errors.FltError has the NTSTATUS; stackfs.hresult.from_error() gives the HRESULT)::

    from stackfs import filterlib

    filterlib.load("scanner")
    with filterlib.connect("\\\\ScannerPort") as port:
        for message in port:
            message.reply(b"\\1" if harmless(message.data) else b"\\0")

The long form has the names of Windows' fltuser.h, returns HRESULTs and raises nothing (names.py)::

    port = Out()
    FilterConnectCommunicationPort("\\\\ScannerPort", 0, None, 0, None, port)

stackfs.filterlib.aio has the short form for trio. Nothing here imports trio. docs/ports.md is the guide.
"""

from __future__ import annotations

from stackfs import information
from stackfs.ddi.out import Out
from stackfs.errors import FltError, StackfsError
from stackfs.filterlib import names
from stackfs.filterlib.management import attach, detach, filters, instances, load, unload, volumes
from stackfs.filterlib.names import *  # noqa: F403
from stackfs.filterlib.port import Message, Port, connect
from stackfs.hresult import ERRORS, FAILED, S_OK, SUCCEEDED
from stackfs.hresult import from_error as hresult_of
from stackfs.information import *  # noqa: F403

__all__ = [
    "FAILED",
    "SUCCEEDED",
    "S_OK",
    "FltError",
    "Message",
    "Out",
    "Port",
    "StackfsError",
    "attach",
    "connect",
    "detach",
    "filters",
    "hresult_of",
    "instances",
    "load",
    "unload",
    "volumes",
    *ERRORS,
    *information.__all__,
    *names.__all__,
]

globals().update(ERRORS)
