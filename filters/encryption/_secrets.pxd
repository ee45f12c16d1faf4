# Memory for keys: locked, left out of core dumps, wiped when given back (header of _secrets.pyx). Any thread.

cdef enum:
    SECRET_CELL = 512                    # the largest secret, bytes

cdef void *secret_new() noexcept nogil           # SECRET_CELL bytes of zeros, or NULL: no memory
cdef void secret_free(void *secret) noexcept nogil       # wipes; NULL is allowed

cdef class Secret:
    """A secret that Python holds without seeing it (see _secrets.pyi)."""
    cdef unsigned char *data
    cdef readonly Py_ssize_t length
