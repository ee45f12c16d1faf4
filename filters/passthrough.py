"""passthrough: registers every operation, pre and post, and lets everything pass. What a filter costs, made visible."""

from stackfs import api
from stackfs.api import (
    FLT_POSTOP_FINISHED_PROCESSING,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    Filter,
    Operation,
)

MANIFEST = {
    "name": "passthrough",
    "description": "Sees every operation, before and after, and changes nothing.",
    "altitude": "370030",
    "group": "FSFilter Activity Monitor",
    "filter": "PassThrough",
    "answers": "cacheable",
}

OPERATIONS = (
    "CREATE CREATE_NAMED_PIPE CREATE_MAILSLOT CLOSE READ WRITE QUERY_INFORMATION SET_INFORMATION QUERY_EA SET_EA "
    "FLUSH_BUFFERS QUERY_VOLUME_INFORMATION SET_VOLUME_INFORMATION DIRECTORY_CONTROL FILE_SYSTEM_CONTROL "
    "DEVICE_CONTROL INTERNAL_DEVICE_CONTROL LOCK_CONTROL CLEANUP QUERY_SECURITY SET_SECURITY QUERY_QUOTA "
    "SET_QUOTA PNP SYSTEM_CONTROL NETWORK_QUERY_OPEN QUERY_OPEN FAST_IO_CHECK_IF_POSSIBLE MDL_READ "
    "MDL_READ_COMPLETE PREPARE_MDL_WRITE MDL_WRITE_COMPLETE ACQUIRE_FOR_SECTION_SYNCHRONIZATION "
    "RELEASE_FOR_SECTION_SYNCHRONIZATION ACQUIRE_FOR_MOD_WRITE RELEASE_FOR_MOD_WRITE ACQUIRE_FOR_CC_FLUSH "
    "RELEASE_FOR_CC_FLUSH VOLUME_MOUNT VOLUME_DISMOUNT"
).split()


class PassThrough(Filter):
    """Sees everything, keeps nothing."""

    operations = (
        *(Operation(getattr(api, f"IRP_MJ_{name}"), pre="pre", post="post") for name in OPERATIONS),
        Operation(api.IRP_MJ_SHUTDOWN, pre="shutdown"),
    )

    def pre(self, data, objects):
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def shutdown(self, data, objects):
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def post(self, data, objects, context, flags):
        return FLT_POSTOP_FINISHED_PROCESSING
