"""Where an operation takes place, as a layer has it: for logs, for audit's records, for `data.path`.

A name provider below the layer is asked, as for file name information (names.pyx), but also where a filter may not ask for that: the
path is for people. What a provider refuses to name goes by the base's path.
"""

from libc.errno cimport ENAMETOOLONG
from libc.string cimport memcpy

from stackfs.cext.callback_data cimport FILE_OBJECT
from stackfs.cext.inode_table cimport file_path, inode_table_t, node_path
from stackfs.cext.names cimport provided_node_path, provided_path
from stackfs.cext.stack cimport FLT_INSTANCE, FLT_VOLUME  # no-cython-lint: completes the struct

cdef extern from *:
    """
    #define DELETED " (deleted)"
    """
    const char *DELETED

cdef enum:
    DELETED_LENGTH = 10


cdef int path_in(inode_table_t *nodes, const node_t *directory, const char *name, size_t name_length, char *buffer,
                 size_t size) noexcept nogil:
    cdef int length = node_path(nodes, directory, buffer, size)
    if length < 0:
        return length
    if length == 1:
        length = 0                       # the root's "/" is the separator
    if <size_t>length + name_length + 2 > size:
        buffer[0] = 0
        return -ENAMETOOLONG
    buffer[length] = c'/'
    memcpy(buffer + length + 1, name, name_length)
    length += 1 + <int>name_length
    buffer[length] = 0
    return length


cdef inline int marked(const node_t *node, char *buffer, int length, size_t size) noexcept nogil:
    if node.deleted and length > 0 and length + DELETED_LENGTH < <int>size:
        memcpy(buffer + length, DELETED, DELETED_LENGTH + 1)
        length += DELETED_LENGTH
    return length


cdef int operation_path(const FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, char *buffer, size_t size) noexcept nogil:
    cdef const FILE_OBJECT *file = FltObjects.FileObject
    cdef inode_table_t *nodes = <inode_table_t *>FltObjects.Volume.nodes
    cdef bint by_name
    cdef int length
    buffer[0] = 0
    if file is NULL:
        return 0
    by_name = file.Directory is not NULL and Data.Iopb.FileName.Length != 0
    length = provided_path(Data, FltObjects, False, buffer, size)
    if by_name:
        return length if length else path_in(nodes, file.Directory, Data.Iopb.FileName.Buffer, Data.Iopb.FileName.Length, buffer, size)
    if file.Node is NULL:
        return 0
    return marked(file.Node, buffer, length, size) if length else file_path(nodes, file, buffer, size)


cdef int target_path(const FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, char *buffer, size_t size) noexcept nogil:
    cdef int length
    buffer[0] = 0
    if Data.Iopb.Parameters.SetFile.TargetDirectory is NULL:
        return 0
    length = provided_path(Data, FltObjects, True, buffer, size)
    if length:
        return length
    return path_in(<inode_table_t *>FltObjects.Volume.nodes, Data.Iopb.Parameters.SetFile.TargetDirectory,
                   Data.Iopb.Parameters.SetFile.TargetName.Buffer, Data.Iopb.Parameters.SetFile.TargetName.Length, buffer, size)


cdef int layer_path(FLT_INSTANCE *instance, node_t *node, char *buffer, size_t size) noexcept nogil:
    cdef int length = provided_node_path(instance, node, buffer, size)
    return marked(node, buffer, length, size) if length else node_path(<inode_table_t *>instance.Related.Volume.nodes, node, buffer, size)
