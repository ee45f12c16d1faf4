# Answers as the kernel takes them: results of a request, encoded (answers.pyx). Any thread, no GIL, no lock.

from libc.stdint cimport uint32_t, uint64_t
from stackfs.cext.requests cimport vfs_request_t

cdef enum:
    ANSWER_SCRATCH = 8192                # bytes an answer buffer has beyond the largest READ

# Before the request runs: its results go straight into the answer. buffer holds max_write + ANSWER_SCRATCH bytes.
cdef void answer_prepare(vfs_request_t *request, char *buffer) noexcept nogil
# After it: the length of the answer in buffer, header included.
cdef size_t answer_encode(const vfs_request_t *request, char *buffer) noexcept nogil
# READDIR and READDIRPLUS, which run the request many times: run and encode. 0: it stopped, as request_run() does: call it
# again then, with the same buffer. 1: done, length bytes.
cdef int answer_listing(vfs_request_t *request, char *buffer, size_t *length) noexcept nogil
