# What CallbackData needs of the walk and of what holds operations (holding.pyx). Apart from stack.pxd and pending.pxd, whose
# structs are made of callback_data.pxd's: here is nothing but functions that take pointers.

from libc.stdint cimport uint32_t
from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_RELATED_OBJECTS

cdef void holding_complete(FLT_CALLBACK_DATA *data, int status, void *context) noexcept nogil     # status as its callback would return it
cdef void holding_raised(FLT_CALLBACK_DATA *data) noexcept nogil               # completed: the callback raised, and was reported
cdef int holding_on_cancel(FLT_CALLBACK_DATA *data, void (*cancelled)(void *context) noexcept nogil, void *context) noexcept nogil
cdef bint holding_off_cancel(FLT_CALLBACK_DATA *data) noexcept nogil           # it is in no queue any more either
cdef bint holding_is_cancelled(FLT_CALLBACK_DATA *data) noexcept nogil
cdef bint holding_cancel(FLT_CALLBACK_DATA *data) noexcept nogil
cdef int holding_irql() noexcept nogil
cdef bint holding_has_post(const FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects) noexcept    # a Python one
cdef object holding_instance(const FLT_RELATED_OBJECTS *objects)
cdef void holding_keep(FLT_CALLBACK_DATA *data, list things)                   # alive until the operation ends
cdef void holding_forgotten(FLT_CALLBACK_DATA *data)                           # reports: the data went away before it was completed
cdef void holding_report(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, str routine, error)
