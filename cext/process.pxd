# Who asks: process id and command name of a requesting thread, found only when somebody wants to know.
# Any thread may call these, without the GIL; answers are exact while the request is unanswered (the thread waits for it).

from libc.stdint cimport int64_t, uint32_t
from stackfs.cext.callback_data cimport REQUESTOR

cdef enum:
    COMM_LENGTH = 16                     # with its NUL, as the kernel has it
    COMM_AGE = 1_000_000                 # ns: how old a name requestor_recently() may give
    COMM_PAUSE = 100_000                 # ns without a question after which it reads the name anew: an exec takes longer

cdef uint32_t requestor_pid(const REQUESTOR *who) noexcept nogil                       # 0: the kernel, or gone
cdef uint32_t requestor_comm(const REQUESTOR *who, char *comm) noexcept nogil          # fills comm[16], "" if gone; the pid
cdef bint requestor_in_group(const REQUESTOR *who, uint32_t gid) noexcept nogil        # its own group, or a supplementary one
# The same from memory, where it may: the name that the thread had COMM_AGE ago or later. now: monotonic ns.
cdef uint32_t requestor_recently(const REQUESTOR *who, char *comm, int64_t now) noexcept nogil
