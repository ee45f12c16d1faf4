"""Oplocks and whoever changes the backing directory beside the mount, as far as it is noticed (cext/coherence.pxd).

Somebody who opens a file for writing, or truncates it, waits in his open(2) for the lease that the volume has on it: that long
its oplocks are broken to nothing, and whoever holds one with writes kept back flushes them first. What was noticed afterwards, a
write that no lease announced, a name, breaks the same way, and nobody waits. The break is the package's own (FltOplockBreakToNone,
and the parent's operation of a directory), by an open that is nobody's: no key is equal to its.

Threads: changed() runs in the coherence thread, which must not be kept; what has to wait is told later, in the thread of whoever
acknowledges, closes, or takes the oplock.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from stackfs.cext.callback_data cimport FLT_VOLUME, node_t, oplock_open_t
from stackfs.cext.coherence cimport (
    FOREIGN_ALL, FOREIGN_ATTRIBUTES, FOREIGN_DATA, FOREIGN_NAME, coherence_off_change, coherence_on_change, coherence_settled)
from stackfs.cext.inode_table cimport inode_table_t, node_hold, node_put
from stackfs.cext.ntstatus cimport STATUS_PENDING
from stackfs.cext.oplock cimport (
    OPLOCK_BREAK_ALL, OPLOCK_PARENT, oplock_break_t, oplock_check, oplock_record_drop, oplock_record_new, oplock_record_t, oplock_state)
from stackfs.cext.threads cimport load_int
from stackfs.filters.oplock._oplocks cimport mounted_t, next_active, stream_get, stream_put, stream_settle, stream_t

cdef struct waiting_t:                   # somebody beside the mount, who waits
    FLT_VOLUME *volume
    node_t *node                         # with a reference

cdef oplock_open_t NOBODY
memset(&NOBODY, 0, sizeof(NOBODY))


cdef void settled(oplock_record_t *record) noexcept nogil:
    cdef waiting_t *waiting = <waiting_t *>record.context
    coherence_settled(waiting.volume, waiting.node)
    node_put(<inode_table_t *>waiting.volume.nodes, waiting.node)
    free(waiting)


cdef bint break_stream(stream_t *stream, int operation, FLT_VOLUME *volume, bint waits) noexcept nogil:
    """True: settled() will be called. Without memory nobody waits."""
    cdef oplock_break_t what
    cdef oplock_record_t *record = NULL
    cdef waiting_t *waiting = NULL
    cdef bint pends
    if oplock_state(stream.oplock) == 0:
        return False
    memset(&what, 0, sizeof(what))
    what.open = &NOBODY
    what.operation = <uint8_t>operation
    what.if_oplocked = not waits
    if waits:
        waiting = <waiting_t *>malloc(sizeof(waiting_t))
        if waiting != NULL:
            waiting.volume, waiting.node = volume, stream.node
            record = oplock_record_new(stream.oplock, &NOBODY, settled, NULL, waiting)
        if record == NULL:
            free(waiting)
            what.if_oplocked = True
        else:
            node_hold(<inode_table_t *>volume.nodes, stream.node)
    pends = oplock_check(stream.oplock, &what, record) == STATUS_PENDING and record != NULL
    if record != NULL and not pends:
        oplock_record_drop(record)
        node_put(<inode_table_t *>volume.nodes, stream.node)
        free(waiting)
    stream_settle(stream)
    return pends


cdef bint changed(void *context, FLT_VOLUME *volume, node_t *node, int what, const char *name, uint32_t length) noexcept nogil:
    cdef mounted_t *mounted = <mounted_t *>context
    cdef stream_t *stream
    cdef bint pends
    if load_int(&mounted.active) == 0 or what == FOREIGN_ATTRIBUTES:
        return False
    if what == FOREIGN_ALL:
        stream = next_active(mounted, NULL, False)
        while stream != NULL:
            break_stream(stream, OPLOCK_BREAK_ALL, volume, False)
            stream = next_active(mounted, stream, False)
        return False
    stream = stream_get(mounted, node, False)
    if stream == NULL:
        return False
    pends = break_stream(stream, OPLOCK_PARENT if what == FOREIGN_NAME else OPLOCK_BREAK_ALL, volume, what == FOREIGN_DATA)
    stream_put(stream)
    return pends


cdef void beside_begin(mounted_t *mounted) noexcept nogil:
    coherence_on_change(mounted.instance.Related.Volume, changed, mounted)


cdef void beside_end(mounted_t *mounted) noexcept nogil:
    coherence_off_change(mounted.instance.Related.Volume, changed, mounted)
