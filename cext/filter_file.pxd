# Filters' own I/O as Python sees it (filter_file.pyx); native filters use filter_names.pxd, filter_io.pxd and generated_io.pxd.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from stackfs.cext.callback_data cimport CallbackData, FILE_OBJECT, FLT_INSTANCE, SET_FILE_PARAMETERS
from stackfs.cext.file_object cimport FileReference
from stackfs.cext.stack cimport InstanceEntry

cdef class FileObject(FileReference):
    cdef FLT_INSTANCE *instance
    cdef FILE_OBJECT own                 # a directory's; pointer points here
    cdef InstanceEntry entry             # keeps the instance
    cdef object stack                    # keeps the volume
    cdef readonly CallbackData data      # the operation whose file it is; None: it does not die with a callback
    cdef int users
    cdef bint closing
    cdef int bind(self, FLT_INSTANCE *instance) except -1
    cdef FILE_OBJECT *enter(self) except NULL                     # it is not closed until leave()
    cdef int leave(self) except -1
    cdef int really_close(self) except -1
    cdef object move_buffer(self, uint8_t major, object offset, object buffer, uint32_t flags, uint32_t key)
    cdef uint32_t move(self, uint8_t major, object offset, void *buffer, uint32_t length, uint32_t flags, uint32_t key) except? 0xFFFFFFFF
    cdef object seek(self, int64_t offset, uint32_t whence)
    cdef int set_information(self, const SET_FILE_PARAMETERS *p) except -1
    cdef bytes query_ea(self, const char *name, object what)
    cdef int change_ea(self, object name, bytes value, uint32_t flags, bint remove) except -1

cdef class FilterFile(FileObject):
    cdef readonly object path
    cdef readonly uint64_t information
    cdef int change_name(self, uint32_t which, uint32_t flags, object name, FileObject directory) except -1
    cdef int start(self, uint8_t major, int64_t offset, object buffer, object done, uint32_t flags) except -1
