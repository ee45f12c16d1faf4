"""What a post callback may do to its operation besides changing IoStatus (docs/semantics.md, A6): send it down again
(FltReissueSynchronousIo), or take an open back (FltCancelFileOpen).

Both walk an operation of their own through the layers below the one whose post callback runs, on the callback list that the
operation has, in the callback's thread, and waiting in place. The operation is the thread's that runs the callback.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

from stackfs.cext.backing cimport backing_t
from stackfs.cext.callback_data cimport (
    CallbackData, FILE_OBJECT, FLTFL_CALLBACK_DATA_DIRTY, FLTFL_CALLBACK_DATA_DRAINING_IO, FLTFL_CALLBACK_DATA_IRP_OPERATION,
    FLTFL_CALLBACK_DATA_POST_OPERATION, FLTFL_CALLBACK_DATA_REISSUED_IO, FO_FILE_OPEN_CANCELLED, FO_SYNTHESISED,
    IRP_MJ_CLEANUP, IRP_MJ_CLOSE, IRP_MJ_CREATE)
from stackfs.cext.generated_io cimport run_in_place
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.inode_table cimport node_forget, node_id
from stackfs.cext.ntstatus cimport NT_SUCCESS, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_PARAMETER, STATUS_REPARSE, STATUS_SUCCESS
from stackfs.cext.pending cimport FltIsIoCanceled, HOLD_CANCELLED
from stackfs.cext.requests cimport vfs_request_t
from stackfs.cext.stack cimport (
    INLINE_LAYERS, POST_REISSUED, POST_SYNCHRONISED, layer_t, operation_begin, operation_end, operation_join_list,
    operation_only_below, operation_t)
from stackfs.cext.threads cimport load_bits

cdef extern from "<unistd.h>" nogil:
    int close(int fd)


cdef bint in_post_of(const operation_t *op, const FLT_INSTANCE *instance) noexcept nogil:
    cdef uint32_t where = op.data.Flags & (FLTFL_CALLBACK_DATA_POST_OPERATION | FLTFL_CALLBACK_DATA_DRAINING_IO)
    return where == FLTFL_CALLBACK_DATA_POST_OPERATION and op.list is not NULL and \
        op.list.callbacks[op.bottom].instance is instance


cdef NTSTATUS FltReissueSynchronousIo(FLT_INSTANCE *InitiatingInstance, FLT_CALLBACK_DATA *Data) noexcept nogil:
    cdef operation_t *op = <operation_t *>Data
    cdef operation_t *again
    cdef uint8_t major = op.current.MajorFunction
    if not in_post_of(op, InitiatingInstance) or not op.data.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION:
        return STATUS_INVALID_PARAMETER
    if major == IRP_MJ_CLEANUP or major == IRP_MJ_CLOSE or (
            major != IRP_MJ_CREATE and op.layers[op.bottom].post_owed < POST_SYNCHRONISED):
        return STATUS_INVALID_PARAMETER
    if major == IRP_MJ_CREATE and (op.base_done or op.data.IoStatus.Status == STATUS_REPARSE):
        return STATUS_INVALID_PARAMETER      # it is open, so FltCancelFileOpen comes first; or it begins again elsewhere
    again = <operation_t *>calloc(1, cython.sizeof(operation_t))
    if again is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    again.layers = again.inline_layers
    if op.list.count > INLINE_LAYERS:
        again.layers = <layer_t *>calloc(op.list.count, cython.sizeof(layer_t))
        if again.layers is NULL:
            free(again)
            return STATUS_INSUFFICIENT_RESOURCES
    again.data = op.data
    again.data.Iopb = &again.shown
    again.data.Flags = (op.data.Flags & ~<uint32_t>(FLTFL_CALLBACK_DATA_POST_OPERATION | <uint32_t>FLTFL_CALLBACK_DATA_DIRTY)) | \
        FLTFL_CALLBACK_DATA_REISSUED_IO
    again.data.IoStatus.Status = STATUS_SUCCESS
    again.data.IoStatus.Information = 0
    again.volume = op.volume
    again.current = op.current
    if op.data.Flags & <uint32_t>FLTFL_CALLBACK_DATA_DIRTY:
        again.current = op.shown
        again.current.MajorFunction = major
        again.current.TargetFileObject = op.current.TargetFileObject
    again.request = op.request
    again.buffer_owner = op.buffer_owner
    again.buffer_read_only = op.buffer_read_only
    again.announce_wait = op.announce_wait
    if FltIsIoCanceled(&op.data):
        again.held = HOLD_CANCELLED
    again.index = op.bottom + 1
    operation_join_list(again, op.list)
    revert_to_self()
    run_in_place(again)
    revert_to_self()
    op.data.IoStatus = again.data.IoStatus
    op.data.Flags &= ~<uint32_t>FLTFL_CALLBACK_DATA_DIRTY
    op.base_done = again.base_done
    op.layers[op.bottom].post_owed = POST_REISSUED
    op.failed_by = again.failed_by
    if again.base_done and NT_SUCCESS(again.data.IoStatus.Status):
        op.failed_by = InitiatingInstance    # if it fails it after all, and nobody above does
    op.begins_again = again.begins_again     # a wait for a lock that has to begin anew
    if again.base_done and major == IRP_MJ_CREATE:
        op.current.TargetFileObject.Flags &= ~<uint32_t>FO_FILE_OPEN_CANCELLED
    operation_end(again)
    free(again)
    return STATUS_SUCCESS


cdef NTSTATUS FltCancelFileOpen(FLT_INSTANCE *Instance, FLT_CALLBACK_DATA *Data) noexcept nogil:
    cdef operation_t *op = <operation_t *>Data
    cdef operation_t *closing
    cdef FILE_OBJECT *file = op.current.TargetFileObject
    cdef vfs_request_t *request = <vfs_request_t *>op.request
    cdef uint8_t major
    cdef int i
    if not in_post_of(op, Instance) or op.current.MajorFunction != IRP_MJ_CREATE or not op.base_done or \
            not NT_SUCCESS(op.data.IoStatus.Status):
        return STATUS_INVALID_PARAMETER
    closing = <operation_t *>malloc(cython.sizeof(operation_t))
    if closing is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    file.Flags |= FO_FILE_OPEN_CANCELLED
    op.base_done = 0                         # a success would be made up, for the posts above as well (A6.5)
    revert_to_self()
    for i in range(2):
        major = IRP_MJ_CLEANUP if i == 0 else IRP_MJ_CLOSE
        operation_begin(closing, op.volume, major)
        closing.current.TargetFileObject = file
        closing.current.FileName = op.current.FileName
        closing.data.Thread = op.data.Thread
        closing.data.RequestNumber = op.data.RequestNumber
        closing.data.RequestOpcode = op.data.RequestOpcode
        closing.data.RequestorMode = op.data.RequestorMode
        closing.request = op.request
        closing.announce_wait = op.announce_wait
        operation_only_below(closing, Instance)
        run_in_place(closing)
        operation_end(closing)
    revert_to_self()
    free(closing)
    if not load_bits(&file.Flags) & FO_SYNTHESISED and file.fd >= 0:
        close(file.fd)
        file.fd = -1
    if request.found is not NULL:
        node_forget((<backing_t *>op.volume.backing).nodes, node_id(request.found), 1)
        request.found = NULL
        if file.Directory is not NULL:
            file.Node = NULL
    request.info_known = 0
    return STATUS_SUCCESS


def reissue(CallbackData data not None) -> bool:
    """data.reissue()"""
    cdef FLT_CALLBACK_DATA *pointer = data.live()
    cdef FLT_INSTANCE *instance = data.objects.Instance
    cdef NTSTATUS status
    with nogil:
        status = FltReissueSynchronousIo(instance, pointer)
    return status == STATUS_SUCCESS


def cancel_open(CallbackData data not None) -> bool:
    """data.cancel_open()"""
    cdef FLT_CALLBACK_DATA *pointer = data.live()
    cdef FLT_INSTANCE *instance = data.objects.Instance
    cdef NTSTATUS status
    with nogil:
        status = FltCancelFileOpen(instance, pointer)
    return status == STATUS_SUCCESS
