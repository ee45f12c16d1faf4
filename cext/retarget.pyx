"""TargetInstance: an operation that goes on on another volume (docs/semantics.md, A4.8).

A pre callback may give an operation on an open file another target: its own filter's instance at the same altitude on another volume,
and a file object that this instance has opened there. The rest of the way is an operation of its own, below that instance, on the other
volume's callback list, in the same thread, waiting in place; its outcome is taken for the base's. Meanwhile the target counts it as
I/O of its own, so that its teardown waits.
"""

cimport cython
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport strcmp

from stackfs.cext.callback_data cimport (
    CallbackData, FILE_OBJECT, FLT_CALLBACK_DATA, FLTFL_CALLBACK_DATA_POST_OPERATION, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_QUERY_EA,
    IRP_MJ_QUERY_INFORMATION, IRP_MJ_READ, IRP_MJ_SET_EA, IRP_MJ_SET_INFORMATION, IRP_MJ_WRITE, FileAllocationInformation,
    FileBasicInformation, FileEndOfFileInformation)
from stackfs.cext.filter_file cimport FilterFile
from stackfs.cext.filter_names cimport filter_file_t
from stackfs.cext.generated_io cimport enter, leave
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.ntstatus cimport STATUS_FLT_DELETING_OBJECT, STATUS_INSUFFICIENT_RESOURCES
from stackfs.cext.stack cimport (
    InstanceEntry, compare_altitudes, operation_begin, operation_end, operation_only_below, operation_run)


cdef bint retarget_is_legal(const operation_t *op, const FLT_INSTANCE *instance) noexcept nogil:
    cdef const FLT_INSTANCE *target = op.shown.TargetInstance
    cdef const FILE_OBJECT *file = op.shown.TargetFileObject
    cdef uint8_t major = op.current.MajorFunction
    cdef unsigned which = op.shown.Parameters.SetFile.FileInformationClass
    if target is NULL or file is NULL or file.FilterFile is NULL:
        return False
    if major == IRP_MJ_SET_INFORMATION:
        if which != FileEndOfFileInformation and which != FileBasicInformation and which != FileAllocationInformation:
            return False                     # names are of the volume
    elif major != IRP_MJ_READ and major != IRP_MJ_WRITE and major != IRP_MJ_QUERY_INFORMATION and major != IRP_MJ_FLUSH_BUFFERS and \
            major != IRP_MJ_QUERY_EA and major != IRP_MJ_SET_EA:
        return False
    return target.Related.Volume is not NULL and target.Related.Volume is not instance.Related.Volume and \
        strcmp(target.Related.Filter.Name, instance.Related.Filter.Name) == 0 and \
        compare_altitudes(target.Altitude, instance.Altitude) == 0 and \
        (<const filter_file_t *>file.FilterFile).instance is target


cdef void retarget_run(operation_t *op) noexcept nogil:
    cdef operation_t *rest
    op.data.IoStatus.Information = 0
    op.data.IoStatus.Status = STATUS_FLT_DELETING_OBJECT
    if not enter(op.retargeted):
        return
    rest = <operation_t *>malloc(cython.sizeof(operation_t))
    if rest is NULL:
        op.data.IoStatus.Status = STATUS_INSUFFICIENT_RESOURCES
        leave(op.retargeted)
        return
    operation_begin(rest, op.retargeted.Related.Volume, op.current.MajorFunction)
    rest.current = op.current
    rest.data.Flags = op.data.Flags
    rest.data.RequestFlags = op.data.RequestFlags
    rest.data.Thread = op.data.Thread
    rest.data.RequestNumber = op.data.RequestNumber
    rest.data.RequestOpcode = op.data.RequestOpcode
    rest.data.RequestorMode = op.data.RequestorMode
    rest.request = op.request
    rest.announce_wait = op.announce_wait
    rest.buffer_owner = op.buffer_owner
    rest.buffer_read_only = op.buffer_read_only
    operation_only_below(rest, op.retargeted)
    operation_run(rest)
    op.data.IoStatus = rest.data.IoStatus
    op.base_done = rest.base_done
    operation_end(rest)
    revert_to_self()
    free(rest)
    leave(op.retargeted)


def set_target(CallbackData data not None, InstanceEntry entry not None, FilterFile file not None):
    """data.set_target()"""
    cdef FLT_CALLBACK_DATA *pointer = data.live()
    if pointer.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
        raise AttributeError("a target is changed in the pre callback")
    pointer.Iopb.TargetFileObject = file.enter()
    file.leave()
    pointer.Iopb.TargetInstance = &entry.instance
    data.keep(file)
