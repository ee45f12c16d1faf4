"""File objects as Python sees them (docs/semantics.md, A4): an open file, or the open that a request by path implies.

Used under the GIL, by whoever runs the operation the file object belongs to.
"""

cimport cython

from stackfs.cext.callback_data cimport FILE_OBJECT, FO_DIRECTORY, FO_SYNTHESISED


@cython.freelist(16)
cdef class FileObject:
    """A FILE_OBJECT, alive as long as what it was taken from (CallbackData: until the callback returns)."""

    def __init__(self):
        raise TypeError("a FileObject comes from callback data, or from opening a file")

    cdef FILE_OBJECT *live(self) except NULL:
        if self.pointer is NULL:
            raise ReferenceError("file object used after it has gone")
        return self.pointer

    @property
    def alive(self):
        """False: it has gone, and everything else here raises ReferenceError."""
        return self.pointer is not NULL

    @property
    def is_directory(self):
        return (self.live().Flags & FO_DIRECTORY) != 0

    @property
    def is_synthesised(self):
        """The open around a request by path: no handle, no descriptor."""
        return (self.live().Flags & FO_SYNTHESISED) != 0


cdef FileObject file_object_new(FILE_OBJECT *pointer):
    cdef FileObject face = FileObject.__new__(FileObject)
    face.pointer = pointer
    return face
