# The bypass lane: which opens the kernel reads and writes by itself (bypass.pyx).

from libc.stdint cimport int32_t, uint32_t, uint64_t
from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_RELATED_OBJECTS
from stackfs.cext.includes.pthread cimport pthread_mutex_t

cdef enum:
    VETO_LENGTH = 160

cdef struct bypass_t:                    # one volume's; guarded by its mutex, which is never held across a system call
    pthread_mutex_t mutex
    int device                           # /dev/fuse, once passthrough was negotiated; -1: there is none
    int allowed                          # no attached instance stands in the way
    int refused                          # the errno with which the kernel refused; nothing is tried after that. Atomic
    uint64_t bypassed                    # open files that nobody sees the reads and writes of
    uint64_t granted                     # ever
    uint64_t vetoed                      # ever
    char veto[VETO_LENGTH]               # the last veto: "instance: reason", NUL-terminated

# What an open of a regular file is answered: FOPEN_* bits besides those it has, and the backing id.
ctypedef struct bypass_answer_t:
    uint32_t open_flags
    int32_t backing_id

cdef bypass_t *bypass_new() noexcept nogil                                # NULL: no memory
cdef void bypass_free(bypass_t *bypass) noexcept nogil
# Could an open that begins now be bypassed? Without a lock: the answer is final only in bypass_open().
cdef bint bypass_possible(const bypass_t *bypass) noexcept nogil
# An open of a regular file has succeeded (file.fd, file.Node): decides its mode and counts it. wanted: nothing that is
# known of this very open speaks against it.
cdef void bypass_open(bypass_t *bypass, FILE_OBJECT *file, bint wanted, bypass_answer_t *answer) noexcept nogil
# Its RELEASE.
cdef void bypass_release(bypass_t *bypass, FILE_OBJECT *file) noexcept nogil
# FltVetoBypassIo's record: a filter, in the pre callback of an FSCTL_MANAGE_BYPASS_IO that it completes with an error.
cdef void bypass_veto(const FLT_RELATED_OBJECTS *objects, const char *reason) noexcept nogil
