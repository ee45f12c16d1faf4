"""Open files: the handles the kernel holds (fh), each a FILE_OBJECT with its descriptor.

A handle's number is its slot and a generation, so that a number the kernel should not have any more is refused and
never leads to somebody else's file.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from stackfs.cext.contexts cimport contexts_any, contexts_gone


cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)


ctypedef handle_t *handle_pointer


cdef handle_table_t *handles_new() noexcept nogil:
    cdef handle_table_t *table = <handle_table_t *>calloc(1, cython.sizeof(handle_table_t))
    if table is not NULL:
        pthread_mutex_init(&table.mutex, NULL)
    return table


cdef void handles_free(handle_table_t *table) noexcept nogil:
    cdef uint32_t i
    for i in range(table.count):
        if contexts_any(&table.handles[i].file.Contexts):
            contexts_gone(&table.handles[i].file.Contexts)
        if table.handles[i].references and table.handles[i].file.fd >= 0:
            close(table.handles[i].file.fd)
        free(table.handles[i].ahead.entries)
        free(table.handles[i].file.Name)
        free(table.handles[i])
    free(table.handles)
    pthread_mutex_destroy(&table.mutex)
    free(table)


cdef handle_t *handle_new(handle_table_t *table) noexcept nogil:
    cdef handle_t *handle
    cdef handle_t **handles
    cdef uint32_t slot, generation, capacity
    pthread_mutex_lock(&table.mutex)
    handle = table.free
    if handle is not NULL:
        table.free = handle.next_free
    else:
        if table.count == table.capacity:
            capacity = table.capacity * 2 if table.capacity else 256
            handles = <handle_t **>realloc(table.handles, capacity * cython.sizeof(handle_pointer))
            if handles is NULL:
                pthread_mutex_unlock(&table.mutex)
                return NULL
            table.handles = handles
            table.capacity = capacity
        handle = <handle_t *>calloc(1, cython.sizeof(handle_t))
        if handle is NULL:
            pthread_mutex_unlock(&table.mutex)
            return NULL
        handle.slot = table.count
        table.handles[table.count] = handle
        table.count += 1
    slot = handle.slot
    generation = handle.generation + 1
    memset(handle, 0, cython.sizeof(handle_t))
    handle.slot = slot
    handle.generation = generation
    handle.references = 1
    handle.file.fd = -1
    handle.file.fh = (<uint64_t>generation << 32) | (slot + 1)
    pthread_mutex_unlock(&table.mutex)
    return handle


cdef handle_t *find_locked(handle_table_t *table, uint64_t fh) noexcept nogil:
    cdef handle_t *handle
    cdef uint32_t slot = <uint32_t>fh
    if slot < 1 or slot > table.count:
        return NULL
    handle = table.handles[slot - 1]
    return handle if handle.open and handle.file.fh == fh else NULL


cdef handle_t *handle_get(handle_table_t *table, uint64_t fh) noexcept nogil:
    cdef handle_t *handle
    pthread_mutex_lock(&table.mutex)
    handle = find_locked(table, fh)
    if handle is not NULL:
        handle.references += 1
    pthread_mutex_unlock(&table.mutex)
    return handle


cdef handle_t *handle_take(handle_table_t *table, uint64_t fh) noexcept nogil:
    cdef handle_t *handle
    pthread_mutex_lock(&table.mutex)
    handle = find_locked(table, fh)
    if handle is not NULL:
        handle.references += 1
        handle.open = 0
        table.open_count -= 1
    pthread_mutex_unlock(&table.mutex)
    return handle


cdef void handle_publish(handle_table_t *table, handle_t *handle) noexcept nogil:
    pthread_mutex_lock(&table.mutex)
    handle.open = 1
    table.open_count += 1
    pthread_mutex_unlock(&table.mutex)


cdef bint handle_put(handle_table_t *table, handle_t *handle) noexcept nogil:
    cdef bint last
    pthread_mutex_lock(&table.mutex)
    handle.references -= 1
    last = handle.references == 0
    pthread_mutex_unlock(&table.mutex)
    return last


cdef void handle_free(handle_table_t *table, handle_t *handle) noexcept nogil:
    free(handle.ahead.entries)
    free(handle.file.Name)
    pthread_mutex_lock(&table.mutex)
    handle.ahead.entries = NULL
    handle.file.Name = NULL
    handle.file.fh = 0
    handle.next_free = table.free
    table.free = handle
    pthread_mutex_unlock(&table.mutex)


cdef void ahead_take(handle_table_t *table, handle_t *handle, ahead_t *ahead) noexcept nogil:
    pthread_mutex_lock(&table.mutex)
    ahead[0] = handle.ahead
    memset(&handle.ahead, 0, cython.sizeof(ahead_t))
    pthread_mutex_unlock(&table.mutex)


cdef void ahead_give(handle_table_t *table, handle_t *handle, ahead_t *ahead) noexcept nogil:
    pthread_mutex_lock(&table.mutex)
    if handle.ahead.entries is NULL:
        handle.ahead = ahead[0]
        ahead.entries = NULL
    pthread_mutex_unlock(&table.mutex)
    free(ahead.entries)
