"""Contexts: what a filter keeps with a volume, an instance, a file, a stream or an open file (semantics B2)."""

from enum import IntEnum

class ContextType(IntEnum):
    FLT_VOLUME_CONTEXT = 0x1
    FLT_INSTANCE_CONTEXT = 0x2
    FLT_FILE_CONTEXT = 0x4
    FLT_STREAM_CONTEXT = 0x8
    FLT_STREAMHANDLE_CONTEXT = 0x10
    FLT_TRANSACTION_CONTEXT = 0x20
    FLT_SECTION_CONTEXT = 0x40
    FLT_ALL_CONTEXTS = 0x7F

class ContextRegistrationFlags(IntEnum):
    FLTFL_CONTEXT_REGISTRATION_NO_EXACT_SIZE_MATCH = 1

class ContextSize(IntEnum):
    FLT_VARIABLE_SIZED_CONTEXTS = 0xFFFF

class SetContextOperation(IntEnum):
    FLT_SET_CONTEXT_REPLACE_IF_EXISTS = 0
    FLT_SET_CONTEXT_KEEP_IF_EXISTS = 1

class PoolType(IntEnum):
    NonPagedPool = 0
    PagedPool = 1
    NonPagedPoolNx = 512
