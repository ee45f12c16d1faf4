# TargetInstance: an operation that goes on on another volume (retarget.pyx).

from stackfs.cext.callback_data cimport FLT_INSTANCE
from stackfs.cext.stack cimport operation_t

# May the operation go on as op.shown says, where the callback of `instance` has set another TargetInstance?
cdef bint retarget_is_legal(const operation_t *op, const FLT_INSTANCE *instance) noexcept nogil
# In place of the base: the rest of the way, below op.retargeted on its volume.
cdef void retarget_run(operation_t *op) noexcept nogil
