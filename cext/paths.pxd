# Paths from the volume's root, "/a/b", NUL-terminated, as the layer of FltObjects.Instance (NULL: the base) has them: of any operation, and
# at any level (paths.pyx). The length, or -ENAMETOOLONG (the buffer then holds "").

from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_INSTANCE, FLT_RELATED_OBJECTS, node_t

# What the operation is about: FileName in its directory, or the open file's name, or the node's. A file without a name has the last one
# that it had, followed by " (deleted)". 0: it is about none.
cdef int operation_path(const FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, char *buffer, size_t size) noexcept nogil
# The new name of a rename or link.
cdef int target_path(const FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, char *buffer, size_t size) noexcept nogil
# A node, as the layer of an instance has it.
cdef int layer_path(FLT_INSTANCE *instance, node_t *node, char *buffer, size_t size) noexcept nogil
