# A set of request numbers (FUSE uniques): open addressing, linear probing, no tombstones.
# No lock of its own: whoever owns the set guards it. 0 is not a member, it marks a free slot.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

ctypedef struct unique_set_t:
    uint64_t *slots
    uint32_t capacity                    # a power of two, at least twice count
    uint32_t count

cdef inline uint32_t unique_slot(const unique_set_t *uniques, uint64_t unique) noexcept nogil:
    return <uint32_t>((unique * <uint64_t>0x9E3779B97F4A7C15) >> 40) & (uniques.capacity - 1)

cdef inline int unique_grow(unique_set_t *uniques) noexcept nogil:
    cdef unique_set_t larger
    cdef uint32_t i
    larger.capacity = uniques.capacity * 2 if uniques.capacity else 256
    larger.count = 0
    larger.slots = <uint64_t *>calloc(larger.capacity, sizeof(uint64_t))
    if larger.slots == NULL:
        return -1
    for i in range(uniques.capacity):
        if uniques.slots[i]:
            unique_place(&larger, uniques.slots[i])
    free(uniques.slots)
    uniques[0] = larger
    return 0

cdef inline void unique_place(unique_set_t *uniques, uint64_t unique) noexcept nogil:
    cdef uint32_t at = unique_slot(uniques, unique)
    while uniques.slots[at]:
        if uniques.slots[at] == unique:
            return
        at = (at + 1) & (uniques.capacity - 1)
    uniques.slots[at] = unique
    uniques.count += 1

cdef inline int unique_add(unique_set_t *uniques, uint64_t unique) noexcept nogil:
    """0, or -1: no memory."""
    if uniques.count * 2 >= uniques.capacity and unique_grow(uniques) < 0:
        return -1
    unique_place(uniques, unique)
    return 0

cdef inline int unique_find(const unique_set_t *uniques, uint64_t unique) noexcept nogil:
    """1: it is a member."""
    cdef uint32_t at
    if uniques.count == 0:
        return 0
    at = unique_slot(uniques, unique)
    while uniques.slots[at] and uniques.slots[at] != unique:
        at = (at + 1) & (uniques.capacity - 1)
    return uniques.slots[at] == unique

cdef inline int unique_remove(unique_set_t *uniques, uint64_t unique) noexcept nogil:
    """1: it was a member. Later entries of the same run move up, so that a free slot still ends every search."""
    cdef uint32_t at, hole, home, mask
    if uniques.count == 0:
        return 0
    mask = uniques.capacity - 1
    hole = unique_slot(uniques, unique)
    while uniques.slots[hole] != unique:
        if not uniques.slots[hole]:
            return 0
        hole = (hole + 1) & mask
    at = hole
    while True:
        at = (at + 1) & mask
        if not uniques.slots[at]:
            break
        home = unique_slot(uniques, uniques.slots[at])
        if ((at - home) & mask) >= ((at - hole) & mask):
            uniques.slots[hole] = uniques.slots[at]
            hole = at
    uniques.slots[hole] = 0
    uniques.count -= 1
    return 1
