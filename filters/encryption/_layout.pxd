# Where what lies in a stored file, and the numbers of the format (docs/encryption-format.md). Arithmetic alone: any thread.

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    BLOCK = 4096                         # plain bytes of a block
    BLOCK_HEAD = 20                      # generation, length, nonce
    TAG = 16
    OVERHEAD = 36                        # BLOCK_HEAD + TAG
    SLOT = 4132                          # BLOCK + OVERHEAD
    HEADER = 1024
    FIXED = 64                           # the part of the header before the seals
    SEAL = 448
    TOP = 24                             # entries of the map in a seal
    FANOUT = 256                         # entries of a node
    NODE = 4096
    PLACES = 3                           # of a node
    NODE_PLACES = 12288                  # NODE * PLACES
    LEVELS = 6                           # of nodes, at most: 2^63 bytes

cdef inline uint64_t blocks_of(uint64_t size) noexcept nogil:
    """How many blocks a plain file of `size` bytes has."""
    return (size >> 12) + ((size & 4095) != 0)

cdef inline uint64_t first_with_level(int level) noexcept nogil:
    """The first block that needs nodes of `level` (1 ...)."""
    return <uint64_t>TOP << 8 * (level - 1)

cdef inline int levels_for(uint64_t blocks) noexcept nogil:
    """The level of the map's top: how many levels of nodes lie below it."""
    cdef int level = 0
    while level < LEVELS and blocks > first_with_level(level + 1):
        level += 1
    return level

cdef inline uint64_t slot_offset(uint64_t block) noexcept nogil:
    """Where a block's slot begins."""
    cdef uint64_t nodes = 0
    cdef int level = 1
    while level <= LEVELS and block >= first_with_level(level):
        nodes += 1 + (block >> 8 * level)
        level += 1
    return HEADER + block * SLOT + nodes * NODE_PLACES

cdef inline uint64_t run_of(uint64_t block) noexcept nogil:
    """How many slots lie side by side from `block` on: until the next node."""
    if block < TOP:
        return TOP - block
    return FANOUT - block % FANOUT

cdef inline uint64_t node_offset(int level, uint64_t index) noexcept nogil:
    """Where the places of a node begin."""
    cdef uint64_t block = index << 8 * level if index else first_with_level(level)
    cdef uint64_t before = 0
    cdef int k
    for k in range(1, level + 1):
        before += block == first_with_level(k) or (block > first_with_level(k) and block & ((<uint64_t>1 << 8 * k) - 1) == 0)
    return slot_offset(block) - before * NODE_PLACES

cdef inline uint64_t stored_size(uint64_t size) noexcept nogil:
    """How long the stored file of a plain one of `size` bytes is."""
    cdef uint64_t last
    if size == 0:
        return HEADER
    last = blocks_of(size) - 1
    return slot_offset(last) + OVERHEAD + (size - last * BLOCK)

cdef inline int64_t plain_size(uint64_t stored) noexcept nogil:
    """The size of the plain file, from the stored one's; -1: shorter than a header.

    A length that no file of the format has (cut within a node or a slot's overhead) gives the size of the whole blocks before.
    """
    cdef uint64_t low = 0, high, middle, begin
    if stored < HEADER:
        return -1
    high = (stored - HEADER) // SLOT + 1             # blocks: the first slot that begins behind it, at the latest
    while low < high:                                # the number of blocks whose slot has at least one byte of text
        middle = (low + high) // 2
        if slot_offset(middle) + OVERHEAD < stored:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return 0
    begin = slot_offset(low - 1) + OVERHEAD
    return <int64_t>((low - 1) * BLOCK + (stored - begin if stored - begin < BLOCK else BLOCK))
