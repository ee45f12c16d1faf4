"""Every name that the Filter Manager's documentation gives its reader, and that has a meaning here, can be imported.

The lists are by section of docs/semantics.md. Values stand where a filter compiled them in.
"""

from __future__ import annotations

import pytest

from stackfs import filterlib, fltkernel
from stackfs.cext.ntstatus import NtStatus

KERNEL = {
    "A1, A2: registration": """
        FLT_REGISTRATION FLT_OPERATION_REGISTRATION IRP_MJ_OPERATION_END=0x80 FltRegisterFilter FltStartFiltering
        FltUnregisterFilter FltLoadFilter FltUnloadFilter FltObjectReference FltObjectDereference
        FLTFL_REGISTRATION_DO_NOT_SUPPORT_SERVICE_STOP=1 FLTFL_REGISTRATION_SUPPORT_NPFS_MSFS=2
        FLTFL_REGISTRATION_SUPPORT_DAX_VOLUME=4 FLTFL_REGISTRATION_SUPPORT_WCOS=8 FLTFL_FILTER_UNLOAD_MANDATORY=1
        FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO=1 FLTFL_OPERATION_REGISTRATION_SKIP_CACHED_IO=2
        FLTFL_OPERATION_REGISTRATION_SKIP_NON_DASD_IO=4 FLTFL_OPERATION_REGISTRATION_SKIP_NON_CACHED_NON_PAGING_IO=8
        SERVICE_BOOT_START=0 SERVICE_SYSTEM_START=1 SERVICE_AUTO_START=2 SERVICE_DEMAND_START=3 SERVICE_DISABLED=4
        STATUS_IMAGE_ALREADY_LOADED STATUS_OBJECT_NAME_NOT_FOUND STATUS_FAILED_DRIVER_ENTRY
        STATUS_DRIVER_FAILED_PRIOR_UNLOAD STATUS_INVALID_IMAGE_FORMAT FILTER_ABI=1 FltGetRoutineAddress""",
    "A3: instances": """
        FltAttachVolume FltAttachVolumeAtAltitude FltDetachVolume FltGetVolumeInstanceFromName
        FLTFL_INSTANCE_SETUP_AUTOMATIC_ATTACHMENT=1 FLTFL_INSTANCE_SETUP_MANUAL_ATTACHMENT=2
        FLTFL_INSTANCE_SETUP_NEWLY_MOUNTED_VOLUME=4 FLTFL_INSTANCE_SETUP_DETACHED_VOLUME=8
        FLTFL_INSTANCE_SETUP_DEV_VOLUME=0x10 FLTFL_INSTANCE_SETUP_TRUSTED_VOLUME=0x20
        FLTFL_INSTANCE_TEARDOWN_MANUAL=1 FLTFL_INSTANCE_TEARDOWN_FILTER_UNLOAD=2
        FLTFL_INSTANCE_TEARDOWN_MANDATORY_FILTER_UNLOAD=4 FLTFL_INSTANCE_TEARDOWN_VOLUME_DISMOUNT=8
        FLTFL_INSTANCE_TEARDOWN_INTERNAL_ERROR=0x10 FLTFL_POST_OPERATION_DRAINING=1
        SUPPORTED_FS_FEATURES_BYPASS_IO=8 FltVetoBypassIo FSCTL_MANAGE_BYPASS_IO=0x90448 FS_BPIO_OP_ENABLE=1
        FS_BPIO_OP_DISABLE=2 FS_BPIO_OP_QUERY=3""",
    "A4: callback data": """
        FLT_CALLBACK_DATA FLT_IO_PARAMETER_BLOCK FLT_PARAMETERS FLT_RELATED_OBJECTS
        FLTFL_CALLBACK_DATA_IRP_OPERATION=1 FLTFL_CALLBACK_DATA_FAST_IO_OPERATION=2
        FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION=4 FLTFL_CALLBACK_DATA_SYSTEM_BUFFER=8
        FLTFL_CALLBACK_DATA_GENERATED_IO=0x10000 FLTFL_CALLBACK_DATA_REISSUED_IO=0x20000
        FLTFL_CALLBACK_DATA_DRAINING_IO=0x40000 FLTFL_CALLBACK_DATA_POST_OPERATION=0x80000
        FLTFL_CALLBACK_DATA_NEW_SYSTEM_BUFFER=0x100000 FLTFL_CALLBACK_DATA_DIRTY=0x80000000
        FLTFL_CALLBACK_DATA_REISSUE_MASK=0xFFFF IRP_NOCACHE=1 IRP_PAGING_IO=2 IRP_SYNCHRONOUS_API=4
        IRP_SYNCHRONOUS_PAGING_IO=0x40 FltSetCallbackDataDirty FltClearCallbackDataDirty FltIsCallbackDataDirty
        FltDecodeParameters FLT_IS_IRP_OPERATION FLT_IS_FASTIO_OPERATION FLT_IS_FS_FILTER_OPERATION FLT_IS_REISSUED_IO
        FLT_IS_SYSTEM_BUFFER IoReadAccess IoWriteAccess IoModifyAccess""",
    "A5: buffers": """
        FltLockUserBuffer FltGetSwappedBufferMdlAddress FltRetainSwappedBufferMdlAddress FltGetNewSystemBufferAddress
        MmGetSystemAddressForMdlSafe MmGetMdlByteCount IoAllocateMdl IoFreeMdl NormalPagePriority IRP_MN_MDL=2
        IRP_MN_NORMAL=0 IRP_MN_COMPLETE=4 IRP_MN_QUERY_DIRECTORY=1 IRP_MN_NOTIFY_CHANGE_DIRECTORY=2
        IRP_MN_USER_FS_REQUEST=0 IRP_MN_MOUNT_VOLUME=1 IRP_MN_VERIFY_VOLUME=2""",
    "A6: pre and post": """
        FLT_PREOP_SUCCESS_WITH_CALLBACK=0 FLT_PREOP_SUCCESS_NO_CALLBACK=1 FLT_PREOP_PENDING=2
        FLT_PREOP_DISALLOW_FASTIO=3 FLT_PREOP_COMPLETE=4 FLT_PREOP_SYNCHRONIZE=5 FLT_PREOP_DISALLOW_FSFILTER_IO=6
        FLT_POSTOP_FINISHED_PROCESSING=0 FLT_POSTOP_MORE_PROCESSING_REQUIRED=1 FLT_POSTOP_DISALLOW_FSFILTER_IO=2
        FltCompletePendedPreOperation FltCompletePendedPostOperation KeGetCurrentIrql PASSIVE_LEVEL=0 APC_LEVEL=1
        DISPATCH_LEVEL=2 FltRequestOperationStatusCallback FltIsOperationSynchronous""",
    "A7, A8: work items, queues": """
        FltDoCompletionProcessingWhenSafe FltAllocateDeferredIoWorkItem FltFreeDeferredIoWorkItem
        FltQueueDeferredIoWorkItem FltAllocateGenericWorkItem FltFreeGenericWorkItem FltQueueGenericWorkItem
        ExInitializeWorkItem ExQueueWorkItem CriticalWorkQueue DelayedWorkQueue FltCbdqInitialize FltCbdqInsertIo
        FltCbdqRemoveIo FltCbdqRemoveNextIo FltCbdqDisable FltCbdqEnable""",
    "B1: names": """
        FltGetFileNameInformation FltGetFileNameInformationUnsafe FltParseFileNameInformation FltParseFileName
        FltReferenceFileNameInformation FltReleaseFileNameInformation FltGetDestinationFileNameInformation
        FltGetTunneledName FltPurgeFileNameInformationCache FltCheckAndGrowNameControl FLT_FILE_NAME_NORMALIZED=1
        FLT_FILE_NAME_OPENED=2 FLT_FILE_NAME_SHORT=3 FLT_FILE_NAME_QUERY_DEFAULT=0x100
        FLT_FILE_NAME_QUERY_CACHE_ONLY=0x200 FLT_FILE_NAME_QUERY_FILESYSTEM_ONLY=0x300
        FLT_FILE_NAME_QUERY_ALWAYS_ALLOW_CACHE_LOOKUP=0x400 FLT_FILE_NAME_REQUEST_FROM_CURRENT_PROVIDER=0x1000000
        FLT_FILE_NAME_DO_NOT_CACHE=0x2000000 FLT_FILE_NAME_ALLOW_QUERY_ON_REPARSE=0x4000000
        SL_OPEN_TARGET_DIRECTORY=4""",
    "B2: contexts": """
        FLT_VOLUME_CONTEXT=1 FLT_INSTANCE_CONTEXT=2 FLT_FILE_CONTEXT=4 FLT_STREAM_CONTEXT=8
        FLT_STREAMHANDLE_CONTEXT=0x10 FLT_TRANSACTION_CONTEXT=0x20 FLT_SECTION_CONTEXT=0x40 FLT_CONTEXT_REGISTRATION
        FLT_CONTEXT_END FLT_VARIABLE_SIZED_CONTEXTS FLTFL_CONTEXT_REGISTRATION_NO_EXACT_SIZE_MATCH=1
        FLT_SET_CONTEXT_REPLACE_IF_EXISTS=0 FLT_SET_CONTEXT_KEEP_IF_EXISTS=1 FltAllocateContext FltReferenceContext
        FltReleaseContext FltDeleteContext FltGetContexts FltGetContextsEx FltReleaseContexts FltReleaseContextsEx
        FltSupportsFileContexts FltSupportsFileContextsEx FltSupportsStreamContexts FltSupportsStreamHandleContexts""",
    "B3: ports": """
        FltCreateCommunicationPort FltCloseCommunicationPort FltCloseClientPort FltSendMessage
        FltBuildDefaultSecurityDescriptor FltFreeSecurityDescriptor InitializeObjectAttributes OBJECT_ATTRIBUTES
        OBJ_KERNEL_HANDLE=0x200 OBJ_CASE_INSENSITIVE=0x40 FLT_PORT_ALL_ACCESS STATUS_PORT_DISCONNECTED
        STATUS_THREAD_IS_TERMINATING STATUS_TIMEOUT=0x102 STATUS_BUFFER_OVERFLOW STATUS_CONNECTION_COUNT_LIMIT""",
    "B4: a filter's own I/O": """
        FltCreateFile FltCreateFileEx FltCreateFileEx2 FltOpenVolume FltClose FltReadFile FltReadFileEx FltWriteFile
        FltWriteFileEx FltQueryInformationFile FltQueryInformationByName FltSetInformationFile FltQueryDirectoryFile
        FltQueryDirectoryFileEx FltQueryEaFile FltSetEaFile FltQuerySecurityObject FltSetSecurityObject FltFsControlFile
        FltDeviceIoControlFile FltFlushBuffers FltFlushBuffers2 FltPerformSynchronousIo FltPerformAsynchronousIo
        FltAllocateCallbackData FltAllocateCallbackDataEx FltReuseCallbackData FltFreeCallbackData FltGetUpperInstance
        FltGetLowerInstance FltGetTopInstance FltGetBottomInstance FltEnumerateFilters FltEnumerateVolumes
        FltEnumerateInstances FltEnumerateFilterInformation FltEnumerateInstanceInformationByFilter
        FltEnumerateInstanceInformationByVolume FltEnumerateInstanceInformationByVolumeName
        FltEnumerateVolumeInformation FltGetFilterInformation FltGetInstanceInformation FltGetVolumeInformation
        FltGetVolumeFromName FltGetVolumeFromInstance FltGetVolumeFromFileObject FltGetVolumeName FltGetVolumeGuidName
        FltGetVolumeProperties FLT_VOLUME_PROPERTIES FltIsVolumeWritable FltIsDirectory FltGetFileSystemType
        FLT_FILESYSTEM_TYPE FLT_FSTYPE_UNKNOWN=0 FLT_FSTYPE_NTFS=2 FLT_FSTYPE_REFS=28 FltQueryVolumeInformation
        FltQueryVolumeInformationFile FltSetVolumeInformation FileFsVolumeInformation=1 FileFsLabelInformation=2
        FileFsSizeInformation=3 FileFsDeviceInformation=4 FileFsAttributeInformation=5 FileFsFullSizeInformation=7
        IO_FORCE_ACCESS_CHECK=1""",
    "B5: reissue, reparse, cancel": """
        FltReissueSynchronousIo FltCancelFileOpen IoReplaceFileObjectName IO_REPARSE=0 STATUS_REPARSE=0x104
        FLT_MAX_DEVICE_REPARSE_ATTEMPTS=64 FltTagFile FltTagFileEx FltUntagFile IO_REPARSE_TAG_SYMLINK=0xA000000C
        FSCTL_SET_REPARSE_POINT=0x900A4 FSCTL_GET_REPARSE_POINT=0x900A8 FSCTL_DELETE_REPARSE_POINT=0x900AC FltCancelIo
        FltSetCancelCompletion FltClearCancelCompletion FltIsIoCanceled FltGetRequestorProcess FltGetRequestorProcessId
        FltGetRequestorProcessIdEx FltGetRequestorSessionId""",
    "B6: locks, notifications": """
        FltAllocateFileLock FltFreeFileLock FltInitializeFileLock FltUninitializeFileLock FltProcessFileLock
        FltCheckLockForReadAccess FltCheckLockForWriteAccess FltGetNextFileLock FILE_LOCK FILE_LOCK_INFO
        FltNotifyFilterChangeDirectory FsRtlNotifyFilterReportChange FILE_NOTIFY_CHANGE_FILE_NAME=1
        FILE_NOTIFY_CHANGE_DIR_NAME=2 FILE_NOTIFY_CHANGE_LAST_WRITE=0x10 FILE_ACTION_ADDED=1 FILE_ACTION_REMOVED=2
        FILE_ACTION_RENAMED_NEW_NAME=5 FltGetIrpName""",
}
USER = """
    FilterLoad FilterUnload FilterCreate FilterClose FilterInstanceCreate FilterInstanceClose FilterAttach
    FilterAttachAtAltitude FilterDetach FilterFindFirst FilterFindNext FilterFindClose FilterInstanceFindFirst
    FilterInstanceFindNext FilterInstanceFindClose FilterVolumeFindFirst FilterVolumeFindNext FilterVolumeFindClose
    FilterVolumeInstanceFindFirst FilterVolumeInstanceFindNext FilterVolumeInstanceFindClose FilterGetInformation
    FilterInstanceGetInformation FilterGetVolumeInformationFromName FilterGetDosName FilterConnectCommunicationPort
    FilterSendMessage FilterGetMessage FilterReplyMessage FLT_PORT_FLAG_SYNC_HANDLE=1 INSTANCE_NAME_MAX_CHARS=255
    FILTER_FULL_INFORMATION FILTER_AGGREGATE_BASIC_INFORMATION FILTER_AGGREGATE_STANDARD_INFORMATION
    INSTANCE_BASIC_INFORMATION INSTANCE_PARTIAL_INFORMATION INSTANCE_FULL_INFORMATION
    INSTANCE_AGGREGATE_STANDARD_INFORMATION FILTER_VOLUME_BASIC_INFORMATION FILTER_VOLUME_STANDARD_INFORMATION
    FILTER_INFORMATION_CLASS INSTANCE_INFORMATION_CLASS FILTER_VOLUME_INFORMATION_CLASS ERROR_NO_MORE_ITEMS=259
    ERROR_FLT_INSTANCE_ALTITUDE_COLLISION=0x801F0011 ERROR_FLT_INSTANCE_NAME_COLLISION=0x801F0012
    ERROR_FLT_NO_WAITER_FOR_REPLY=0x801F0020 ERROR_FLT_DO_NOT_ATTACH=0x801F000F ERROR_FLT_IO_COMPLETE=0x001F0001"""
STATUSES = {
    0x01: "NO_HANDLER_DEFINED", 0x02: "CONTEXT_ALREADY_DEFINED", 0x03: "INVALID_ASYNCHRONOUS_REQUEST",
    0x04: "DISALLOW_FAST_IO", 0x05: "INVALID_NAME_REQUEST", 0x06: "NOT_SAFE_TO_POST_OPERATION", 0x07: "NOT_INITIALIZED",
    0x08: "FILTER_NOT_READY", 0x09: "POST_OPERATION_CLEANUP", 0x0A: "INTERNAL_ERROR", 0x0B: "DELETING_OBJECT",
    0x0C: "MUST_BE_NONPAGED_POOL", 0x0D: "DUPLICATE_ENTRY", 0x0E: "CBDQ_DISABLED", 0x0F: "DO_NOT_ATTACH",
    0x10: "DO_NOT_DETACH", 0x11: "INSTANCE_ALTITUDE_COLLISION", 0x12: "INSTANCE_NAME_COLLISION",
    0x13: "FILTER_NOT_FOUND", 0x14: "VOLUME_NOT_FOUND", 0x15: "INSTANCE_NOT_FOUND", 0x16:
    "CONTEXT_ALLOCATION_NOT_FOUND", 0x17: "INVALID_CONTEXT_REGISTRATION", 0x18: "NAME_CACHE_MISS", 0x19:
    "NO_DEVICE_OBJECT", 0x1A: "VOLUME_ALREADY_MOUNTED", 0x1B: "ALREADY_ENLISTED", 0x1C: "CONTEXT_ALREADY_LINKED", 0x20:
    "NO_WAITER_FOR_REPLY", 0x23: "REGISTRATION_BUSY",
}  # fmt: skip


def wrong(module: object, names: str) -> list[str]:
    found = []
    for each in names.split():
        name, _, value = each.partition("=")
        if not hasattr(module, name):
            found.append(f"{name} cannot be imported")
        elif value and getattr(module, name) != int(value, 0):
            found.append(f"{name} is {getattr(module, name)!r}, not {value}")
        elif name not in getattr(module, "__all__", [name]):
            found.append(f"{name} is not in __all__")
    return found


@pytest.mark.parametrize("section", KERNEL)
def test_names_of_fltkernel(section: str) -> None:
    assert not wrong(fltkernel, KERNEL[section])


def test_names_of_filterlib() -> None:
    assert not wrong(filterlib, USER)


def test_a10_every_status_of_the_filter_manager() -> None:
    for number, name in STATUSES.items():
        assert getattr(fltkernel, f"STATUS_FLT_{name}") == 0xC01C0000 | number
        assert getattr(filterlib, f"ERROR_FLT_{name}") == 0x801F0000 | number
    assert {value & 0xFFFF for value in NtStatus if value >> 16 == 0xC01C} == set(STATUSES)
    assert fltkernel.STATUS_FLT_IO_COMPLETE == 0x001C0001
