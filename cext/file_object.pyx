"""File objects as Python sees them (docs/semantics.md, A4): an open file, or the open that a request by path implies.

Used under the GIL, by whoever runs the operation the file object belongs to.
"""

from libc.stdint cimport uintptr_t

from stackfs.cext.callback_data cimport FILE_OBJECT, FO_DIRECTORY, FO_SYNTHESISED
from stackfs.cext.threads cimport load_bits


cdef class FileReference:
    """A FILE_OBJECT, alive as long as what it was taken from (CallbackData: until the callback returns)."""

    def __init__(self):
        raise TypeError("a file object comes from callback data, or from opening a file")

    cdef FILE_OBJECT *live(self) except NULL:
        if self.pointer is NULL:
            raise ReferenceError("file object used after it has gone")
        return self.pointer

    @property
    def alive(self):
        """False: it has gone, and everything else here raises ReferenceError."""
        try:
            self.live()
        except ReferenceError:
            return False
        return True

    @property
    def identity(self):
        """A number for this open file, the same in each of its operations; another open file's once this has gone."""
        return <uintptr_t>self.live()

    @property
    def is_directory(self):
        return (load_bits(&self.live().Flags) & FO_DIRECTORY) != 0

    @property
    def is_synthesised(self):
        """The open around a request by path: no handle, no descriptor."""
        return (load_bits(&self.live().Flags) & FO_SYNTHESISED) != 0


cdef FileReference file_reference_new(FILE_OBJECT *pointer):
    cdef FileReference face = FileReference.__new__(FileReference)
    face.pointer = pointer
    return face
