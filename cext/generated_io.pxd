# Operations that a filter starts itself: callback data made by hand, and what filter_io.pyx is built on (generated_io.pyx).
#
# Any operation on a file object: allocate, fill CallbackData.Iopb, perform, look at IoStatus, free. Not CREATE, CLEANUP and CLOSE,
# nor what is no IRP: STATUS_INVALID_PARAMETER. The file object must live meanwhile and be one of the instance's own volume.

from libc.stdint cimport uint8_t, uint32_t
from stackfs.cext.callback_data cimport FILE_OBJECT, FLT_CALLBACK_DATA, FLT_INSTANCE, REQUESTOR
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.requests cimport vfs_request_t
from stackfs.cext.stack cimport wait_function

# CallbackData: Iopb and IoStatus of what was done. Called once, by a thread of the manager.
ctypedef void (*PFLT_COMPLETED_ASYNC_IO_CALLBACK)(FLT_CALLBACK_DATA *CallbackData, void *Context) noexcept nogil

cdef NTSTATUS FltAllocateCallbackData(FLT_INSTANCE *Instance, FILE_OBJECT *FileObject,
                                      FLT_CALLBACK_DATA **RetNewCallbackData) noexcept nogil
cdef void FltPerformSynchronousIo(FLT_CALLBACK_DATA *CallbackData) noexcept nogil
# STATUS_PENDING: the callback will be called, or has been; it frees or reuses the data.
cdef NTSTATUS FltPerformAsynchronousIo(FLT_CALLBACK_DATA *CallbackData, PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine,
                                       void *CallbackContext) noexcept nogil
cdef void FltReuseCallbackData(FLT_CALLBACK_DATA *CallbackData) noexcept nogil
cdef void FltFreeCallbackData(FLT_CALLBACK_DATA *CallbackData) noexcept nogil

# Around everything that an instance starts. False: it starts no more (STATUS_FLT_DELETING_OBJECT).
cdef bint enter(FLT_INSTANCE *instance) noexcept nogil
cdef void leave(FLT_INSTANCE *instance) noexcept nogil
# A VFS request below the instance, as `who` (NULL: the daemon): fill it, run() it to its end, take what it found, request_free() it.
cdef vfs_request_t *new_request(FLT_INSTANCE *instance, uint32_t opcode, const REQUESTOR *who) noexcept nogil
cdef NTSTATUS run(vfs_request_t *request) noexcept nogil
# One operation: begin_io() enters, STATUS_SUCCESS: fill request.operation.current; then finish_io(), or start_io() with
# frees = True, or perform() and request_free() and leave().
cdef NTSTATUS begin_io(FLT_INSTANCE *instance, FILE_OBJECT *file, uint8_t major, vfs_request_t **request) noexcept nogil
cdef NTSTATUS perform(vfs_request_t *request, bint synchronous) noexcept nogil
cdef NTSTATUS finish_io(vfs_request_t *request, uint32_t *information) noexcept nogil
cdef NTSTATUS start_io(vfs_request_t *request, PFLT_COMPLETED_ASYNC_IO_CALLBACK callback, void *context, bint frees) noexcept nogil
# For a thread that serves requests: what its filters start is to be announced too, before it waits (stack.about_to_wait).
cdef void waits_are_announced(wait_function announce, void *reader) noexcept nogil
