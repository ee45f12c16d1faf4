# The FUSE wire format: checking and decoding what the kernel sends, and INIT (wire.pyx).
# Pure functions over a message in memory; any thread, no GIL, no lock.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from stackfs.cext.includes.fuse_wire cimport (
    fuse_in_header, fuse_init_in, fuse_init_out, fuse_out_header)
from stackfs.cext.requests cimport vfs_request_t

cdef enum:
    WIRE_OPCODES = 64                    # numbers below this have a row in the table and a counter

cdef enum wire_treatment_t:              # what becomes of an operation
    WIRE_REFUSE = 0                      # EOPNOTSUPP (ENOTTY for ioctl), never ENOSYS: the kernel would not ask again
    WIRE_FORWARD                         # to the IRP lane: pyfuse3 has a handler
    WIRE_SERVE                           # run by a device thread
    WIRE_IGNORE                          # nothing to do and nothing to answer
    WIRE_INIT
    WIRE_DESTROY

ctypedef struct wire_rule_t:
    const char *name
    uint16_t fixed                       # bytes of the fixed part
    uint8_t names                        # NUL-terminated names behind it
    uint8_t treatment                    # wire_treatment_t
    uint8_t answerless                   # the kernel waits for no answer
    uint8_t cleanup                      # ends what an earlier request began: never refused for whom it comes from

ctypedef struct wire_limits_t:           # what INIT settled
    uint32_t max_write
    int setxattr_ext                     # fuse_setxattr_in has its long form

ctypedef struct wire_message_t:          # a message that was checked: every pointer and length lies inside it
    fuse_in_header *header
    const wire_rule_t *rule
    char *body                           # the fixed part
    const char *name
    const char *name2
    uint16_t name_length
    uint16_t name2_length
    uint32_t length                      # header to the end
    int64_t group                        # the SUPP_GROUP extension's, or -1

ctypedef struct wire_settings_t:         # what the device wants and what it got
    uint64_t wanted                      # INIT flags
    uint64_t negotiated
    uint32_t kernel_minor
    uint32_t max_write
    uint32_t page_size

ctypedef struct wire_init_answer_t:
    fuse_out_header header
    fuse_init_out body

ctypedef struct wire_init_request_t:
    fuse_in_header header
    fuse_init_in body

cdef const wire_rule_t *wire_rule(uint32_t opcode) noexcept nogil                    # NULL: not in the table
# 0, or the errno to answer with: EIO (malformed; header->unique can be answered when length >= sizeof(header)).
cdef int wire_check(char *buffer, size_t length, const wire_limits_t *limits, wire_message_t *message) noexcept nogil
cdef void wire_decode(const wire_message_t *message, int setxattr_ext, vfs_request_t *request) noexcept nogil
# WRITE and SETXATTR: the data, as many bytes as the fixed part announces.
cdef const char *wire_data(const wire_message_t *message, int setxattr_ext) noexcept nogil
# The form libfuse understands, in place: SETXATTR in its short form and without flags (they stay in the request).
cdef char *wire_for_libfuse(const wire_message_t *message, int setxattr_ext, uint32_t *length) noexcept nogil
# INIT: fills the answer, settings.negotiated and .kernel_minor; 0: the kernel is too old.
cdef int wire_init_answer(const wire_message_t *message, wire_settings_t *settings,
                          wire_init_answer_t *answer) noexcept nogil
# The INIT that libfuse gets instead of the kernel's.
cdef void wire_init_for_libfuse(const wire_message_t *message, uint64_t unique,
                                wire_init_request_t *request) noexcept nogil
cdef int wire_same_handler(uint32_t opcode, uint32_t asked) noexcept nogil
