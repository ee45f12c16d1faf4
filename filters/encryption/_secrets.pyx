"""Memory for keys: cells of 512 bytes in regions that are locked, left out of core dumps, and wiped cell by cell.

A list of free cells under one mutex, which is held for a few instructions, or while a new region is made. Regions are
kept until the process ends. Where the limit on locked memory (RLIMIT_MEMLOCK) does not allow a region to be locked, it
is used all the same, and `unlocked_bytes` counts it: swap may be encrypted, or absent. Locks are not inherited by a
child process: it locks the regions again before anything else.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from stackfs.cext.includes.pthread cimport pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
from stackfs.filters.encryption._openssl cimport OPENSSL_cleanse, RAND_bytes

cdef extern from *:
    """
    #include <sys/mman.h>
    #include <sys/resource.h>
    #include <sys/prctl.h>
    #include <pthread.h>
    static pthread_mutex_t secrets_mutex = PTHREAD_MUTEX_INITIALIZER;
    """
    pthread_mutex_t secrets_mutex
    void *mmap(void *address, size_t length, int prot, int flags, int fd, long offset) nogil
    int mlock(const void *address, size_t length) nogil
    int madvise(void *address, size_t length, int advice) nogil
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_DONTDUMP
    void *MAP_FAILED
    struct rlimit:
        unsigned long rlim_cur, rlim_max
    int setrlimit(int resource, const rlimit *limit) nogil
    int RLIMIT_CORE
    int prctl(int option, ...) nogil
    int PR_SET_DUMPABLE
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil) nogil

cdef enum:
    REGION = 65536

cdef struct cell_t:
    cell_t *next

cdef struct region_t:                # its first cell
    region_t *next

cdef region_t *regions = NULL
cdef cell_t *free_cells = NULL
cdef uint64_t not_locked = 0


cdef void lock(region_t *region) noexcept nogil:
    global not_locked
    if mlock(region, REGION) != 0:
        not_locked += REGION


cdef bint more_cells() noexcept nogil:
    global free_cells, regions
    cdef void *region = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    cdef int at = SECRET_CELL
    cdef cell_t *cell
    if region == MAP_FAILED:
        return False
    lock(<region_t *>region)
    madvise(region, REGION, MADV_DONTDUMP)
    (<region_t *>region).next = regions
    regions = <region_t *>region
    while at < REGION:
        cell = <cell_t *>(<uint8_t *>region + at)
        cell.next = free_cells
        free_cells = cell
        at += SECRET_CELL
    return True


cdef void forked() noexcept nogil:
    """In the child."""
    global not_locked
    cdef region_t *region = regions
    not_locked = 0
    while region != NULL:
        lock(region)
        region = region.next


pthread_atfork(NULL, NULL, forked)


cdef void *secret_new() noexcept nogil:
    global free_cells
    cdef cell_t *cell
    pthread_mutex_lock(&secrets_mutex)
    cell = free_cells
    if cell == NULL and more_cells():
        cell = free_cells
    if cell != NULL:
        free_cells = cell.next
    pthread_mutex_unlock(&secrets_mutex)
    if cell != NULL:
        memset(cell, 0, sizeof(cell_t))
    return cell


cdef void secret_free(void *secret) noexcept nogil:
    global free_cells
    if secret == NULL:
        return
    OPENSSL_cleanse(secret, SECRET_CELL)
    pthread_mutex_lock(&secrets_mutex)
    (<cell_t *>secret).next = free_cells
    free_cells = <cell_t *>secret
    pthread_mutex_unlock(&secrets_mutex)


cdef class Secret:
    def __cinit__(self, Py_ssize_t length):
        if not 0 <= length <= SECRET_CELL:
            raise ValueError(f"a secret has at most {SECRET_CELL} bytes")
        self.data = <uint8_t *>secret_new()
        if self.data == NULL:
            raise MemoryError
        self.length = length

    @staticmethod
    def random(Py_ssize_t length):
        cdef Secret secret = Secret(length)
        if RAND_bytes(secret.data, <int>length) != 1:
            raise OSError("the system's random numbers are not available")
        return secret

    @staticmethod
    def taken_from(source):
        cdef Py_buffer view
        cdef Secret secret
        PyObject_GetBuffer(source, &view, 0)
        try:
            secret = Secret(view.len)
            memcpy(secret.data, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        wipe(source)
        return secret

    def wipe(self):
        """From now on it has no bytes; views of it see zeros."""
        OPENSSL_cleanse(self.data, SECRET_CELL)
        self.length = 0

    def __len__(self):
        return self.length

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.wipe()

    def __repr__(self):
        return "<Secret>"

    def __reduce__(self):
        raise TypeError("a secret is not copied")

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.length, 0, flags)

    def __dealloc__(self):
        secret_free(self.data)


def wipe(data):
    """Overwrites bytes, a bytearray or a writable view with zeros, in place. bytes must be the caller's alone."""
    cdef Py_buffer view
    if isinstance(data, bytes):
        if PyBytes_GET_SIZE(data) > 1:               # shorter ones are shared by the whole interpreter
            OPENSSL_cleanse(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        return
    PyObject_GetBuffer(data, &view, PyBUF_WRITABLE)
    OPENSSL_cleanse(view.buf, view.len)
    PyBuffer_Release(&view)


def no_core_dumps():
    """This process writes no core dump from now on, and no other one of its user may read its memory."""
    cdef rlimit none
    none.rlim_cur = none.rlim_max = 0
    setrlimit(RLIMIT_CORE, &none)
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def unlocked_bytes():
    """Bytes of secret memory that could not be locked."""
    return not_locked
