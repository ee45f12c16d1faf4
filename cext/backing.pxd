# The base of the stack: the backing directory (docs/semantics.md, D).

from libc.stdint cimport uint32_t, uint64_t
from stackfs.cext.bypass cimport bypass_t
from stackfs.cext.callback_data cimport node_t, statx_t
from stackfs.cext.handles cimport handle_table_t
from stackfs.cext.inode_table cimport inode_table_t
from stackfs.cext.locks cimport lock_table_t
from stackfs.cext.stack cimport operation_t

cdef enum:
    BACKING_CHECKS = 1
    BACKING_REFUSES = 2

cdef struct backing_t:
    inode_table_t *nodes
    handle_table_t *handles
    lock_table_t *locks
    int reflink                          # 0: the backing filesystem cannot share extents
    bypass_t *bypass
    uint32_t device                      # the root's: inode numbers of other devices are told apart
    int close_tells                      # 0: on the root's device close(2) has never an error to report
    int sync_all                         # -o sync
    int checks                           # permissions=stack: system calls are made with the caller's rights
    void *coherence                      # coherence_t* (coherence.pyx), owned; NULL: coherence=none
    int special                          # atomic: BACKING_* bits; REFUSES (semantics D21): all but filters' own I/O answers EIO

cdef backing_t *backing_new(int root_fd, uint32_t descriptor_limit, int checks) noexcept nogil     # owns root_fd; NULL with errno set
cdef void backing_free(backing_t *backing) noexcept nogil
# Carries an operation out (FLT_VOLUME.base): fills data.IoStatus and the request's results. With op.would_block == 1 it
# does not wait: it then sets op.would_block = 2 and has done nothing.
cdef void backing_perform(operation_t *op) noexcept nogil
cdef void backing_refuse(backing_t *backing, bint refuse) noexcept nogil
# Attributes of a node by whatever leads to it. A negative errno, or 0.
cdef int stat_node(backing_t *backing, node_t *node, statx_t *info) noexcept nogil
