"""readonly: refuses every change. The README's example, as short as a useful filter can be."""

from stackfs.api import (
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    IRP_MJ_CREATE,
    IRP_MJ_SET_INFORMATION,
    IRP_MJ_SET_SECURITY,
    IRP_MJ_WRITE,
    STATUS_MEDIA_WRITE_PROTECTED,
    Filter,
    Operation,
)

MANIFEST = {
    "name": "readonly",
    "description": "Refuses every change with EROFS.",
    "altitude": "265050",
    "group": "FSFilter Content Screener",
    "filter": "ReadOnly",
    "answers": "cacheable",
}


class ReadOnly(Filter):
    """Opens that would change something are refused; so are changes through handles opened before it attached."""

    operations = (
        Operation(IRP_MJ_CREATE, pre="pre_create"),
        Operation(IRP_MJ_WRITE, pre="pre_change"),
        Operation(IRP_MJ_SET_INFORMATION, pre="pre_change"),
        Operation(IRP_MJ_SET_SECURITY, pre="pre_change"),
    )

    def pre_create(self, data, objects):
        return data.complete(STATUS_MEDIA_WRITE_PROTECTED) if data.wants_write else FLT_PREOP_SUCCESS_NO_CALLBACK

    def pre_change(self, data, objects):
        return data.complete(STATUS_MEDIA_WRITE_PROTECTED)
