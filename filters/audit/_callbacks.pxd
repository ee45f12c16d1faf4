# audit's callbacks: what an instance watches, and how a request becomes a record.

from libc.stdint cimport uint64_t
from stackfs.filters.audit._trail cimport Trail, trail_t

cdef struct watch_t:
    trail_t *trail
    uint64_t mask                        # bit n: requests of FUSE opcode n; bit 63: opens that truncate

cdef class Watch:
    cdef watch_t watch
    cdef Trail trail                     # keeps the trail while callbacks may run
    cdef object entry
