# Whose rights a thread's system calls have: the daemon's own, or a caller's (-o permissions=stack; impersonation.pyx).
# Everything here concerns the calling thread alone and needs no lock. Without root, or a REQUESTOR that stands for root
# itself, impersonate() leaves the thread as it is: the daemon is the caller.

from stackfs.cext.callback_data cimport REQUESTOR

# From now on this thread's system calls are judged as the caller's: fsuid, fsgid, supplementary groups, and the
# capabilities that concern files. 0, or a negative errno: the thread then has its own rights, and must not go on.
cdef int impersonate(const REQUESTOR *who) noexcept nogil
# The daemon's rights again. Costs nothing when the thread has them.
cdef void revert_to_self() noexcept nogil
cdef bint impersonating() noexcept nogil
# Around what the daemon needs for itself: step_aside() says whether there is anything to step_back() to.
cdef bint step_aside() noexcept nogil
cdef void step_back() noexcept nogil
# The end of the base's part of an operation: reverts, unless this thread keeps a caller's rights until the next request
# is somebody else's. A thread that keeps them reverts before it runs a callback or starts a thread.
cdef void finish_impersonating() noexcept nogil
cdef void keep_impersonating() noexcept nogil
