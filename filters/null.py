"""null: registers nothing. The smallest filter there is; loading it shows that what nobody registered costs nothing."""

from stackfs.api import Filter

MANIFEST = {
    "name": "null",
    "description": "Registers no operation.",
    "altitude": "370020",
    "group": "FSFilter Activity Monitor",
    "filter": "Null",
    "answers": "cacheable",
    "attach": "manual",
}


class Null(Filter):
    """Sees nothing."""
