"""What a request costs without a mount: C threads that drive a volume's stack, none of which takes the GIL.

For the figures of docs/audit.md, and for tests that want native callbacks on many threads at once. Each thread has a
request and an open file of its own; the volume must not be closed meanwhile.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from stackfs.cext.python_requests cimport Volume
from stackfs.cext.requests cimport request_free, request_new, request_run, vfs_request_t

import os

cdef extern from *:
    """
    #include <pthread.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    """
    ctypedef struct pthread_t:
        pass
    int pthread_create(pthread_t *t, void *attributes, void *(*start)(void *) noexcept nogil, void *argument) nogil
    int pthread_join(pthread_t t, void **result) nogil
    long syscall(long number, ...) nogil
    long SYS_gettid

cdef enum:
    MOST_THREADS = 64
    OPCODE_READ = 15

cdef struct reader_t:
    pthread_t thread
    vfs_request_t *request
    uint64_t fh
    long count
    uint64_t cpu
    int error


cdef inline uint64_t now(int clock) noexcept nogil:
    cdef timespec time
    clock_gettime(clock, &time)
    return <uint64_t>time.tv_sec * <uint64_t>1000000000 + <uint64_t>time.tv_nsec


cdef void *read_often(void *argument) noexcept nogil:
    cdef reader_t *reader = <reader_t *>argument
    cdef vfs_request_t *request = reader.request
    cdef long i
    cdef char room[1]
    for i in range(reader.count):
        request.plan = NULL
        request.step = request.started = request.error = request.failed = 0
        request.unique = 0
        request.opcode = OPCODE_READ
        request.arguments.fh = reader.fh
        request.arguments.offset = <uint64_t>i
        request.buffer = room
        request.who.tid = <uint32_t>syscall(SYS_gettid)
        request_run(request)
        if request.error:
            reader.error = request.error
    reader.cpu = now(CLOCK_THREAD_CPUTIME_ID)
    return NULL


def time_reads(Volume volume not None, list handles not None, long count):
    """See request_cost.pyi."""
    cdef reader_t readers[MOST_THREADS]
    cdef int threads = <int>len(handles)
    cdef int started = 0
    cdef int i
    cdef uint64_t begun, taken
    cdef uint64_t cpu = 0
    cdef int error = 0
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError("one to 64 threads")
    memset(readers, 0, sizeof(readers))
    for i in range(threads):
        readers[i].fh = handles[i]
        readers[i].count = count
    for i in range(threads):
        readers[i].request = request_new(&volume.stack.volume)
        if readers[i].request is NULL:
            error = ENOMEM
    with nogil:
        begun = now(CLOCK_MONOTONIC)
        while started < threads and error == 0:
            error = pthread_create(&readers[started].thread, NULL, read_often, &readers[started])
            started += error == 0
        for i in range(started):
            pthread_join(readers[i].thread, NULL)
        taken = now(CLOCK_MONOTONIC) - begun
    for i in range(threads):
        if readers[i].request is not NULL:
            request_free(readers[i].request)
        cpu += readers[i].cpu
        error = error or readers[i].error
    if error:
        raise OSError(error, os.strerror(error))
    return <double>taken / (count * threads), <double>cpu / (count * threads)
