"""Awaiting a caller's next request awake.

A program that works alone sends its next request a few microseconds after it has had our answer. A reader that sleeps
meanwhile has to be woken, on a processor that has gone idle meanwhile, which costs the program more than all that we do
for it. So after FEW requests of one thread, and of nobody else, the reader looks for the next one for WHILE nanoseconds
before it sleeps. Each time that was in vain it takes twice as many requests in a row until it is tried again.

Where several threads call, there is nearly always a message waiting, or one of them needs the processor more: then, and
where there is only one processor, nothing of this happens.
"""

from libc.stdint cimport int64_t, uint32_t

from stackfs.cext.threads cimport monotonic_time

cdef enum:
    FEW = 16
    MANY = 4096
    WHILE = 50000                        # nanoseconds


cdef void anticipation_init(anticipation_t *anticipation) noexcept nogil:
    anticipation.caller = anticipation.in_a_row = 0
    anticipation.enough = <uint32_t>0xFFFFFFFF if processors() == 1 else <uint32_t>FEW


cdef void anticipation_served(anticipation_t *anticipation, uint32_t caller) noexcept nogil:
    if caller == 0:                      # the kernel's own: RELEASE, writing back
        return
    if caller != anticipation.caller:
        anticipation.caller = caller
        anticipation.in_a_row = 0
    if anticipation.in_a_row < MANY:
        anticipation.in_a_row += 1


cdef bint works_alone(const anticipation_t *anticipation) noexcept nogil:
    return anticipation.in_a_row >= FEW


cdef void anticipate(anticipation_t *anticipation, int device) noexcept nogil:
    cdef int64_t end
    if anticipation.in_a_row < anticipation.enough:
        return
    end = monotonic_time() + WHILE
    while not device_has_message(device):
        if monotonic_time() >= end:
            anticipation.in_a_row = 0
            anticipation.enough = min(anticipation.enough * 2, <uint32_t>MANY)
            return
    anticipation.enough = FEW
