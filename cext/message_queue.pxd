# A queue of messages that wait to be written, oldest first. No lock of its own: whoever owns the queue guards it.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cdef struct queued_t:                    # a message that waits; its bytes follow
    queued_t *next
    uint64_t unique
    uint32_t length
    int answerless

cdef struct queue_t:
    queued_t *first
    queued_t *last
    uint64_t count
    uint64_t bytes

cdef inline queued_t *queued_new(const char *data, uint32_t length) noexcept nogil:
    cdef queued_t *entry = <queued_t *>malloc(sizeof(queued_t) + length)
    if entry == NULL:
        return NULL
    memset(entry, 0, sizeof(queued_t))
    entry.length = length
    memcpy(entry + 1, data, length)
    return entry

cdef inline void queue_append(queue_t *queue, queued_t *entry) noexcept nogil:
    if queue.last == NULL:
        queue.first = entry
    else:
        queue.last.next = entry
    queue.last = entry
    queue.count += 1
    queue.bytes += entry.length

cdef inline queued_t *queue_take(queue_t *queue) noexcept nogil:
    cdef queued_t *entry = queue.first
    if entry == NULL:
        return NULL
    queue.first = entry.next
    if queue.first == NULL:
        queue.last = NULL
    queue.count -= 1
    queue.bytes -= entry.length
    return entry

cdef inline void queue_clear(queue_t *queue) noexcept nogil:
    cdef queued_t *entry = queue_take(queue)
    while entry != NULL:
        free(entry)
        entry = queue_take(queue)
