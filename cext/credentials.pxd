# The calling thread's filesystem credentials: what is created for a caller belongs to that caller.
# Everything here concerns the calling thread alone and needs no lock.

from libc.stdint cimport int64_t, uint32_t
from stackfs.cext.callback_data cimport REQUESTOR

ctypedef struct credentials_t:
    int assumed                          # restore() has something to undo
    int own_umask
    uint32_t umask
    int without_fsetid
    int changed_groups                   # an fsgid or a supplementary group to be taken back

# Become the caller for one creating system call: fsuid, fsgid, the supplementary group the kernel named, umask.
# Permissions were checked above (default_permissions), so the right to override them is kept; the right to keep
# set-id bits (CAP_FSETID) is not, unless the caller is root. A thread that has the caller's rights already
# (impersonation.pxd) only takes the umask. Returns the mode bits that the system call must be given without: none, unless
# this thread could get no umask of its own.
cdef uint32_t assume(credentials_t *saved, const REQUESTOR *who, uint32_t umask) noexcept nogil
cdef void restore(credentials_t *saved) noexcept nogil
# Give up CAP_FSETID around one write, truncate or chown, so that the backing filesystem clears set-id bits as for the caller.
# group: the file's, when the caller is in it (a set-group-ID bit without group execution then stays), else -1.
cdef void drop_fsetid(credentials_t *saved, int64_t group) noexcept nogil
# After drop_fsetid(): the caller is in this group too.
cdef void add_group(credentials_t *saved, uint32_t group) noexcept nogil
cdef bint privileged() noexcept nogil    # may this process assume other users' credentials
