# FltGetRoutineAddress for native filters (routines.pyx): a routine of cext's .pxd files by its name, or NULL.

cdef void *FltGetRoutineAddress(const char *FltMgrRoutineName) noexcept nogil
