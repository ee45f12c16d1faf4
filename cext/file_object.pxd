# The Python face of a FILE_OBJECT: what a routine that takes a file object is given.
#
# It owns nothing. Whoever makes one ends it (pointer = NULL) before the file object goes: afterwards it is dead, and using
# it raises.

from stackfs.cext.callback_data cimport FILE_OBJECT

cdef class FileObject:
    cdef FILE_OBJECT *pointer            # NULL: gone
    cdef FILE_OBJECT *live(self) except NULL

cdef FileObject file_object_new(FILE_OBJECT *pointer)
