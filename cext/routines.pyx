"""FltGetRoutineAddress (docs/semantics.md, A2.18): a routine of the native interface by its name.

Every C function that a .pxd of cext declares stands in its module's __pyx_capi__, a capsule under its name: that is the table. Only
the Filter Manager's own names count. Under the GIL, and remembered.
"""

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.stdint cimport uintptr_t

import importlib
import pkgutil

cdef dict known = None


cdef dict find_all():
    import stackfs.cext
    found = {}
    for module in pkgutil.iter_modules(stackfs.cext.__path__):
        table = getattr(importlib.import_module(f"stackfs.cext.{module.name}"), "__pyx_capi__", {})
        for name, capsule in table.items():
            if name.startswith("Flt"):
                found[name] = <uintptr_t>PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))
    return found


def native_routine(str name not None) -> int:
    """Its address; 0: this release has none of that name."""
    global known
    if known is None:
        known = find_all()
    return known.get(name, 0)


cdef void *FltGetRoutineAddress(const char *FltMgrRoutineName) noexcept nogil:
    with gil:
        return look_up(FltMgrRoutineName)


cdef void *look_up(const char *name) noexcept:
    try:
        return <void *><uintptr_t>native_routine(name.decode("ascii", "replace"))
    except BaseException:                # a module that cannot be imported: nothing of it can be had
        return NULL
