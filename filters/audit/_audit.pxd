# The audit filter's callbacks (see _audit.pyx).

from libc.stdint cimport uint64_t
from stackfs.cext.stack cimport FLT_INSTANCE
from stackfs.filters.audit._trail cimport Trail, trail_t

ctypedef struct audit_t:                 # FLT_INSTANCE.Context
    uint64_t watch                       # bit n: FUSE opcode n; bit 63: opens that truncate
    trail_t *trail

cdef class Watcher:
    """Binds a trail to an instance (see _audit.pyi)."""
    cdef audit_t audit
    cdef FLT_INSTANCE *instance
    cdef object entry
    cdef Trail trail
