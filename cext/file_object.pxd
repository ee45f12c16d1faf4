# What Python holds of a FILE_OBJECT: what a routine that takes a file object is given.
#
# It owns nothing. Whoever makes one ends it (pointer = NULL) before the file object goes: afterwards it is dead, and using
# it raises. FileObject (filter_file.pxd) is one that I/O can be done on.

from stackfs.cext.callback_data cimport FILE_OBJECT

cdef class FileReference:
    cdef FILE_OBJECT *pointer            # NULL: gone
    cdef FILE_OBJECT *live(self) except NULL

cdef FileReference file_reference_new(FILE_OBJECT *pointer)
