"""onlooker: a plain Python pre and post callback on READ, and nothing else. What one step into Python costs."""

from stackfs.api import FLT_POSTOP_FINISHED_PROCESSING, FLT_PREOP_SUCCESS_WITH_CALLBACK, IRP_MJ_READ, Filter, Operation

MANIFEST = {
    "name": "onlooker",
    "description": "Sees every read, before and after, in Python.",
    "altitude": "370120",
    "group": "FSFilter Activity Monitor",
    "filter": "Onlooker",
    "answers": "cacheable",
}


class Onlooker(Filter):
    operations = (Operation(IRP_MJ_READ, pre="pre_read", post="post_read"),)

    def pre_read(self, data, objects):
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post_read(self, data, objects, context, flags):
        return FLT_POSTOP_FINISHED_PROCESSING
