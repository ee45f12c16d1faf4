"""STATUS_REPARSE: an operation that goes on under another name (docs/semantics.md, A6).

A filter completes a CREATE or QUERY_OPEN with STATUS_REPARSE and a path from the volume's root. Who runs the request then walks
that path from the top of the stack, by LOOKUPs of the same requestor, and begins the request again with what it leads to: a
request by name with the new directory and name, one by inode with the new inode. The kernel knows what it finds by the inode
found, whatever name it asked by. More than MAXIMUM_REPARSES of one request, those on the way included, are a loop.

The request belongs to one thread; nothing is held across the walk.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from stackfs.cext.backing cimport backing_t
from stackfs.cext.callback_data cimport (
    CallbackData, FLTFL_CALLBACK_DATA_POST_OPERATION, FLT_PREOP_COMPLETE, IRP_MJ_CREATE, IRP_MJ_QUERY_OPEN, node_t)
from stackfs.cext.inode_table cimport inode_table_t, node_forget, node_get, node_hold, node_id, node_put
from stackfs.cext.ntstatus cimport (
    NT_SUCCESS, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_PARAMETER, STATUS_NAME_TOO_LONG, STATUS_OBJECT_NAME_INVALID,
    STATUS_OBJECT_PATH_NOT_FOUND, STATUS_REPARSE, STATUS_REPARSE_POINT_NOT_RESOLVED, STATUS_SUCCESS, errno_to_nt)
from stackfs.cext.requests cimport request_free, request_new, request_run, request_wait
from stackfs.cext.stack cimport operation_t

from os import fsencode

cdef enum:
    LOOKUP = 1
    LONGEST_PATH = 4096


cdef NTSTATUS IoReplaceFileObjectName(FLT_CALLBACK_DATA *Data, const char *NewFileName, uint32_t FileNameLength) noexcept nogil:
    cdef vfs_request_t *request = <vfs_request_t *>(<operation_t *>Data).request
    cdef uint8_t major = Data.Iopb.MajorFunction
    cdef char *name
    if Data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION or request is NULL or not (
            major == IRP_MJ_CREATE or major == IRP_MJ_QUERY_OPEN):
        return STATUS_INVALID_PARAMETER
    if FileNameLength > LONGEST_PATH:
        return STATUS_NAME_TOO_LONG
    name = <char *>malloc(FileNameLength + 1)
    if name is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    memcpy(name, NewFileName, FileNameLength)
    free(request.reparse)
    request.reparse = name
    request.reparse_length = FileNameLength
    return STATUS_SUCCESS


cdef void reparse_free(vfs_request_t *request) noexcept nogil:
    free(request.reparse)
    free(request.reparsed)
    request.reparse = request.reparsed = NULL


cdef NTSTATUS look_up(vfs_request_t *request, node_t *directory, const char *name, uint16_t length, node_t **found) noexcept nogil:
    cdef inode_table_t *nodes = (<backing_t *>request.volume.backing).nodes
    cdef vfs_request_t *lookup = request_new(request.volume)
    cdef NTSTATUS status
    if lookup is NULL:
        return STATUS_INSUFFICIENT_RESOURCES
    lookup.opcode = LOOKUP
    lookup.nodeid = node_id(directory)
    lookup.name = name
    lookup.name_length = length
    lookup.who = request.who
    lookup.initiator = request.initiator
    lookup.reparses = request.reparses
    while request_run(lookup) == 0:
        request_wait(lookup)
    request.reparses = lookup.reparses
    status = lookup.failed if lookup.failed else errno_to_nt(lookup.error)
    if NT_SUCCESS(status):
        found[0] = node_get(nodes, lookup.out_nodeid)
        node_forget(nodes, lookup.out_nodeid, 1)
        if found[0] is NULL:
            status = STATUS_OBJECT_PATH_NOT_FOUND
    request_free(lookup)
    return status


cdef NTSTATUS request_reparse(vfs_request_t *request) noexcept nogil:
    cdef inode_table_t *nodes = (<backing_t *>request.volume.backing).nodes
    cdef bint by_name = request.directory is not NULL
    cdef const char *path = request.reparse
    cdef uint32_t length = request.reparse_length
    cdef uint32_t at = 0, end, rest
    cdef node_t *current
    cdef node_t *found = NULL
    cdef NTSTATUS status
    request.reparses += 1
    if request.reparses > MAXIMUM_REPARSES:
        return STATUS_REPARSE_POINT_NOT_RESOLVED
    if path is NULL:
        return STATUS_OBJECT_NAME_INVALID
    free(request.reparsed)
    request.reparsed = request.reparse           # the request's name will lie in it
    request.reparse = NULL
    current = nodes.root
    node_hold(nodes, current)
    while True:
        while at < length and path[at] == c'/':
            at += 1
        if at == length:
            if not by_name:
                break
            node_put(nodes, current)
            return STATUS_OBJECT_NAME_INVALID        # the root has no name
        end = at
        while end < length and path[end] != c'/':
            end += 1
        rest = end
        while rest < length and path[rest] == c'/':
            rest += 1
        if end - at > 255:
            node_put(nodes, current)
            return STATUS_NAME_TOO_LONG
        if rest == length and by_name:
            break
        status = look_up(request, current, path + at, <uint16_t>(end - at), &found)
        node_put(nodes, current)
        if not NT_SUCCESS(status):
            return status
        current = found
        at = end
    if request.found is not NULL:
        node_forget(nodes, node_id(request.found), 1)
        request.found = NULL
    request.info_known = 0
    if by_name:
        node_put(nodes, request.directory)
        request.directory = current
        request.file.Directory = current
        request.name = path + at
        request.name_length = <uint16_t>(end - at)
    else:
        if request.node is not NULL:
            node_put(nodes, request.node)
        request.node = current
        request.file.Node = current
    return STATUS_SUCCESS


def replace_name(CallbackData data not None, path) -> int:
    """IoReplaceFileObjectName: the status."""
    cdef bytes text = fsencode(path)
    return <uint32_t>IoReplaceFileObjectName(data.live(), text, <uint32_t>len(text))


def reparse(CallbackData data not None, path) -> int:
    """data.reparse()"""
    cdef bytes text = fsencode(path)
    cdef NTSTATUS status = IoReplaceFileObjectName(data.live(), text, <uint32_t>len(text))
    if status == STATUS_INVALID_PARAMETER:
        data.refuse("another name")
    data.data.IoStatus.Status = STATUS_REPARSE if status == STATUS_SUCCESS else status
    data.data.IoStatus.Information = 0           # IO_REPARSE
    return FLT_PREOP_COMPLETE
