# The audit trail's writing side: a ring in memory, one writer thread, segments on disk (docs/audit.md is the format).
#
# Any thread may reserve, cancel and commit, without the GIL; a reservation is a promise of `bound` bytes of ring, so that
# a commit never fails and never waits. Everything else in trail_t belongs to the writer thread while it runs.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef struct trail_t

cdef enum:
    TRAIL_RESERVED = 1                   # room is reserved: commit or cancel
    TRAIL_REFUSED = 0                    # full = refuse: fail the operation (counted)
    TRAIL_PASSED = -1                    # let it pass unrecorded (counted)
    TRAIL_FULL = -2                      # not without waiting

cdef enum:
    TEXT_ROOM = 4096                     # longest path
    REQUEST_FIXED = 120                  # sizeof(request_record_t): the texts follow
    BOUND_ONE = 120 + 4096 + 8           # most that a record with one path takes in the ring
    BOUND_TWO = 120 + 8192 + 8           # with two

# Flags of a request record
cdef enum:
    RECORD_PATH_PARTIAL = 1              # only the last component is known
    RECORD_PATH_DELETED = 2              # the file has no name any more
    RECORD_DRAINED = 4                   # the instance was detached while the request was under way: how it ended is unknown
    RECORD_KERNEL = 8                    # from a filter, not from a program
    RECORD_OTHER_PARTIAL = 16

ctypedef struct request_record_t:        # as on disk, little-endian
    uint32_t length                      # set by commit
    uint8_t kind                         # set by commit
    uint8_t format                       # set by commit
    uint16_t flags
    uint64_t sequence                    # set by the writer
    uint64_t time                        # ns since 1970, when the request came
    uint64_t duration                    # ns
    int64_t offset                       # -1: none
    uint64_t size
    uint64_t information
    uint64_t request
    int32_t status
    uint32_t opcode
    uint32_t pid
    uint32_t tid
    uint32_t uid
    uint32_t gid
    uint32_t argument
    uint32_t error
    uint16_t path_length
    uint16_t other_length
    uint16_t major
    uint16_t reserved
    char comm[16]

cdef int trail_reserve(trail_t *trail, uint32_t bound, bint must_pass, bint may_wait) noexcept nogil
cdef void trail_cancel(trail_t *trail, uint32_t bound) noexcept nogil
# `record` is followed by its texts, in memory of at least the record's size rounded up to 8.
cdef void trail_commit(trail_t *trail, request_record_t *record, uint32_t bound) noexcept nogil

cdef class Trail:
    """Writes one trail (see _trail.pyi)."""
    cdef trail_t *trail
    cdef object directory
    cdef bytes segment_text
    cdef object open_state(self, bint create)
    cdef void stop(self) noexcept nogil
