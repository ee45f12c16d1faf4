# Volume and Request, the Python faces of requests.pyx.

from stackfs.cext.backing cimport backing_t
from stackfs.cext.requests cimport vfs_request_t
from stackfs.cext.stack cimport Stack

cdef class Volume:
    cdef readonly Stack stack
    cdef backing_t *open_backing(self) except NULL

cdef class Request:
    cdef vfs_request_t *pointer
    cdef Volume volume
    cdef object name
    cdef object name2
    cdef object buffer
    cdef Py_buffer view
    cdef bint held
    cdef object input
    cdef object woken
    cdef bint busy
    cdef bint parked                     # somebody else's until woken
    cdef bint finished
    cdef int enter(self) except -1
    cdef int set_name(self, bytes name) except -1
    cdef int set_name2(self, bytes name) except -1
    cdef int set_buffer(self, object buffer, bint writable) except -1
    cdef bytes allocate(self, Py_ssize_t size)
    cdef int outcome(self) except -1

cdef Request request_adopt(vfs_request_t *pointer, Volume volume)         # owns the request from now on
