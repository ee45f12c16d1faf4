"""The audit filter's callbacks: one record for each request that is watched.

A request may be several operations of the stack (docs/semantics.md, D): an unlink is CREATE, SET_INFORMATION, CLEANUP,
CLOSE. Its record is made in the post-operation of the principal one, or of one before it that failed and so ended the
request: a CREATE, or an earlier part of a SETATTR. Every other operation passes without a post-operation.

The pre-operation reserves room for the record (_trail.pxd), which may wait where the ring is full, and hands the time it
ran at to the post-operation as its completion context. Neither touches Python or allocates memory.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from stackfs.cext.callback_data cimport (
    DACL_SECURITY_INFORMATION, FILE_NAME, FLTFL_POST_OPERATION_DRAINING, FLT_CALLBACK_DATA, FLT_POSTOP_FINISHED_PROCESSING,
    FLT_PREOP_COMPLETE, FLT_PREOP_SUCCESS_NO_CALLBACK, FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_PARAMETERS, FLT_RELATED_OBJECTS,
    FSCTL_SET_REPARSE_POINT, FileBasicInformation, FileEndOfFileInformation, FileLinkInformation, FileRenameInformation,
    FileRenameInformationEx, IRP_MJ_CLEANUP, IRP_MJ_CLOSE, IRP_MJ_CREATE, IRP_MJ_CREATE_NAMED_PIPE, IRP_MJ_DEVICE_CONTROL,
    IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_FLUSH_BUFFERS, IRP_MJ_LOCK_CONTROL,
    IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_INFORMATION, IRP_MJ_QUERY_OPEN, IRP_MJ_QUERY_SECURITY,
    IRP_MJ_QUERY_VOLUME_INFORMATION, IRP_MJ_READ, IRP_MJ_SET_EA, IRP_MJ_SET_INFORMATION, IRP_MJ_SET_SECURITY, IRP_MJ_WRITE,
    GROUP_SECURITY_INFORMATION, OWNER_SECURITY_INFORMATION, REQUEST_PRINCIPAL, node_t)
from stackfs.cext.inode_table cimport inode_table_t, node_path, operation_path
from stackfs.cext.ntstatus cimport (
    NTSTATUS, NT_SUCCESS, STATUS_DISK_FULL, STATUS_FLT_DISALLOW_FAST_IO, nt_to_errno)
from stackfs.cext.process cimport requestor_comm
from stackfs.cext.stack cimport NativeOperations, instance_pointer
from stackfs.filters.audit._trail cimport (
    BOUND_ONE, BOUND_TWO, RECORD_DRAINED, RECORD_KERNEL, RECORD_OTHER_PARTIAL, RECORD_PATH_DELETED,
    RECORD_PATH_PARTIAL, REQUEST_FIXED, TEXT_ROOM, TRAIL_REFUSED, TRAIL_RESERVED, Trail, request_record_t, trail_cancel,
    trail_commit, trail_reserve)


cdef extern from "<errno.h>" nogil:
    int ENAMETOOLONG, ENOENT

cdef extern from "<fcntl.h>" nogil:
    int O_TRUNC

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *text, size_t size)

cdef enum:                               # FUSE opcodes
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    RENAME = 12
    LINK = 13
    OPEN = 14
    SETXATTR = 21
    GETXATTR = 22
    REMOVEXATTR = 24
    RENAME2 = 45
    LAST_OPCODE = 62

cdef uint64_t TRUNCATING = <uint64_t>1 << 63
# Requests whose record has a second text.
cdef uint64_t TWO_TEXTS = (
    <uint64_t>1 << SETATTR | <uint64_t>1 << SYMLINK | <uint64_t>1 << RENAME | <uint64_t>1 << LINK | <uint64_t>1 << SETXATTR |
    <uint64_t>1 << GETXATTR | <uint64_t>1 << REMOVEXATTR | <uint64_t>1 << RENAME2)

cdef enum place_t:
    IGNORED                              # never recorded
    DECIDES                              # recorded, whatever comes of it
    MAY_FAIL                             # comes before the one that decides: recorded if it fails

cdef union record_room:                  # one record being made, on the stack
    request_record_t record
    uint8_t bytes[120 + 8192 + 8]


cdef inline int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef inline uint32_t bound_of(uint32_t opcode) noexcept nogil:
    return BOUND_TWO if TWO_TEXTS >> opcode & 1 else BOUND_ONE


cdef inline place_t place_of(const FLT_CALLBACK_DATA *Data) noexcept nogil:
    """What an operation is to the record of its request."""
    cdef uint8_t major = Data.Iopb.MajorFunction
    if Data.RequestFlags & REQUEST_PRINCIPAL:
        return DECIDES
    if major == IRP_MJ_CREATE or major == IRP_MJ_SET_INFORMATION or major == IRP_MJ_SET_SECURITY:
        return MAY_FAIL
    return IGNORED


# What a record says ----------------------------------------------------------------------------------------------------

cdef void set_path(request_record_t *record, char *text, const FLT_CALLBACK_DATA *Data,
                   const FLT_RELATED_OBJECTS *FltObjects) noexcept nogil:
    cdef int length = operation_path(Data, FltObjects, text, TEXT_ROOM)
    if length < 0:
        record.flags |= RECORD_PATH_DELETED if length == -ENOENT else RECORD_PATH_PARTIAL
        length = 0
        if record.flags & RECORD_PATH_DELETED:
            length = <int>strnlen(text, TEXT_ROOM)
        elif Data.Iopb.FileName.Length:
            length = Data.Iopb.FileName.Length
            memcpy(text, Data.Iopb.FileName.Buffer, length)
    record.path_length = <uint16_t>length


cdef void set_target(request_record_t *record, char *text, const FLT_RELATED_OBJECTS *FltObjects, const node_t *directory,
                     const FILE_NAME *name) noexcept nogil:
    """The new path of a rename or a link."""
    cdef int length = -ENOENT
    if directory != NULL:
        length = node_path(<inode_table_t *>FltObjects.Volume.nodes, directory, text, TEXT_ROOM)
    if length == 1:
        length = 0                       # the root's "/" is the separator
    if length < 0 or length + 1 + name.Length >= TEXT_ROOM:
        record.flags |= RECORD_OTHER_PARTIAL
        length = 0
    else:
        text[length] = c"/"
        length += 1
    memcpy(text + length, name.Buffer, name.Length)
    record.other_length = <uint16_t>(length + name.Length)


cdef void set_text(request_record_t *record, char *text, const char *source, size_t size) noexcept nogil:
    if size > TEXT_ROOM:
        record.flags |= RECORD_OTHER_PARTIAL
        size = TEXT_ROOM
    memcpy(text, source, size)
    record.other_length = <uint16_t>size


cdef void set_arguments(request_record_t *record, char *other, const FLT_CALLBACK_DATA *Data,
                        const FLT_RELATED_OBJECTS *FltObjects) noexcept nogil:
    """offset, size, argument and the second text, by what the operation is (docs/audit.md, "Arguments")."""
    cdef const FLT_PARAMETERS *p = &Data.Iopb.Parameters
    cdef uint8_t major = Data.Iopb.MajorFunction
    cdef uint32_t information_class
    if major == IRP_MJ_READ or major == IRP_MJ_WRITE:
        record.offset = p.Read.ByteOffset
        record.size = p.Read.Length
    elif major == IRP_MJ_CREATE:
        if record.opcode == MKDIR or record.opcode == MKNOD:
            record.argument = p.Create.Mode
        else:
            record.argument = p.Create.OpenFlags
    elif major == IRP_MJ_DIRECTORY_CONTROL:
        record.offset = p.Directory.Offset
        record.size = p.Directory.Length
    elif major == IRP_MJ_SET_INFORMATION:
        information_class = p.SetFile.FileInformationClass
        record.argument = p.SetFile.Flags
        if information_class == FileEndOfFileInformation:
            record.size = <uint64_t>p.SetFile.EndOfFile
        elif (information_class == FileRenameInformation or information_class == FileRenameInformationEx
                or information_class == FileLinkInformation):
            set_target(record, other, FltObjects, p.SetFile.TargetDirectory, &p.SetFile.TargetName)
    elif record.opcode == SETXATTR or record.opcode == GETXATTR or record.opcode == REMOVEXATTR:
        if major != IRP_MJ_CREATE and p.Ea.EaName != NULL:
            set_text(record, other, p.Ea.EaName, strnlen(p.Ea.EaName, TEXT_ROOM))
            record.size = p.Ea.Length
            record.argument = p.Ea.Flags
    elif major == IRP_MJ_SET_SECURITY:
        record.argument = p.Security.Mode if p.Security.SecurityInformation & DACL_SECURITY_INFORMATION else 0
        if p.Security.SecurityInformation & (OWNER_SECURITY_INFORMATION | GROUP_SECURITY_INFORMATION):
            set_owner(record, other, p)
    elif major == IRP_MJ_FILE_SYSTEM_CONTROL:
        record.argument = p.Control.ControlCode
        if p.Control.ControlCode == FSCTL_SET_REPARSE_POINT and p.Control.InputBuffer != NULL:
            set_text(record, other, <const char *>p.Control.InputBuffer, p.Control.InputBufferLength)
    elif major == IRP_MJ_DEVICE_CONTROL:
        record.argument = p.Control.ControlCode
    elif major == IRP_MJ_FLUSH_BUFFERS:
        record.argument = p.Flush.DataOnly


cdef void set_owner(request_record_t *record, char *other, const FLT_PARAMETERS *p) noexcept nogil:
    """"user:group", either side empty when it is not changed, as chown(1) writes it."""
    cdef char user[16]
    cdef char group[16]
    user[0] = 0
    group[0] = 0
    if p.Security.SecurityInformation & OWNER_SECURITY_INFORMATION:
        snprintf(user, sizeof(user), b"%u", p.Security.Uid)
    if p.Security.SecurityInformation & GROUP_SECURITY_INFORMATION:
        snprintf(group, sizeof(group), b"%u", p.Security.Gid)
    record.other_length = <uint16_t>snprintf(other, 40, b"%s:%s", user, group)


# The callbacks ---------------------------------------------------------------------------------------------------------

cdef int audit_pre(FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, void **CompletionContext) noexcept nogil:
    cdef const audit_t *audit = <const audit_t *>FltObjects.Instance.Context
    cdef uint32_t opcode = Data.RequestOpcode
    cdef uint8_t major = Data.Iopb.MajorFunction
    cdef int reserved
    if audit == NULL or opcode > LAST_OPCODE:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    if not audit.watch >> opcode & 1:
        if opcode != OPEN or not audit.watch & TRUNCATING or not Data.Iopb.Parameters.Create.OpenFlags & O_TRUNC:
            return FLT_PREOP_SUCCESS_NO_CALLBACK
    if place_of(Data) == IGNORED:
        return FLT_PREOP_SUCCESS_NO_CALLBACK
    CompletionContext[0] = <void *>clock_ns(CLOCK_MONOTONIC)
    reserved = trail_reserve(audit.trail, bound_of(opcode), major == IRP_MJ_CLEANUP or major == IRP_MJ_CLOSE)
    if reserved == TRAIL_RESERVED:
        return FLT_PREOP_SUCCESS_WITH_CALLBACK
    CompletionContext[0] = NULL
    if reserved == TRAIL_REFUSED:
        Data.IoStatus.Status = STATUS_DISK_FULL
        Data.IoStatus.Information = 0
        return FLT_PREOP_COMPLETE
    return FLT_PREOP_SUCCESS_NO_CALLBACK


cdef int audit_post(FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects, void *CompletionContext,
                    uint32_t Flags) noexcept nogil:
    cdef const audit_t *audit = <const audit_t *>FltObjects.Instance.Context
    cdef uint32_t bound = bound_of(Data.RequestOpcode)
    cdef bint drained = Flags & FLTFL_POST_OPERATION_DRAINING
    cdef NTSTATUS status = Data.IoStatus.Status
    cdef place_t place = place_of(Data)
    cdef record_room room
    cdef request_record_t *record = &room.record
    cdef char *path = <char *>room.bytes + REQUEST_FIXED
    cdef int64_t ended
    if not drained and (status == STATUS_FLT_DISALLOW_FAST_IO or place != DECIDES and NT_SUCCESS(status)):
        trail_cancel(audit.trail, bound)
        return FLT_POSTOP_FINISHED_PROCESSING
    ended = clock_ns(CLOCK_MONOTONIC)
    memset(record, 0, REQUEST_FIXED)
    record.duration = <uint64_t>(ended - <int64_t>CompletionContext)
    record.time = <uint64_t>clock_ns(CLOCK_REALTIME) - record.duration
    record.offset = -1
    record.request = Data.RequestNumber
    record.opcode = Data.RequestOpcode
    record.major = Data.Iopb.MajorFunction
    if drained:
        record.flags |= RECORD_DRAINED
    else:
        record.status = status
        record.information = Data.IoStatus.Information
        if not NT_SUCCESS(status):
            record.error = <uint32_t>nt_to_errno(status)
    if Data.RequestorMode == 0:
        record.flags |= RECORD_KERNEL
    if Data.Thread != NULL:
        record.tid = Data.Thread.tid
        record.uid = Data.Thread.uid
        record.gid = Data.Thread.gid
        record.pid = requestor_comm(Data.Thread, record.comm)
    set_path(record, path, Data, FltObjects)
    set_arguments(record, path + record.path_length, Data, FltObjects)
    trail_commit(audit.trail, record, bound)
    return FLT_POSTOP_FINISHED_PROCESSING


# Registration ----------------------------------------------------------------------------------------------------------

# The operations that the requests consist of, as far as a record may be made at them (docs/semantics.md, D).
cdef dict OPERATIONS_OF = {
    1: (IRP_MJ_QUERY_OPEN, IRP_MJ_CREATE, IRP_MJ_QUERY_INFORMATION),                         # lookup
    3: (IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_CREATE, IRP_MJ_QUERY_INFORMATION),                 # getattr
    4: (IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION, IRP_MJ_SET_SECURITY),                         # setattr
    5: (IRP_MJ_CREATE, IRP_MJ_FILE_SYSTEM_CONTROL),                                          # readlink
    6: (IRP_MJ_CREATE, IRP_MJ_FILE_SYSTEM_CONTROL),                                          # symlink
    8: (IRP_MJ_CREATE, IRP_MJ_CREATE_NAMED_PIPE),                                            # mknod
    9: (IRP_MJ_CREATE,),                                                                     # mkdir
    10: (IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION),                                             # unlink
    11: (IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION),                                             # rmdir
    12: (IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION),                                             # rename
    13: (IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION),                                             # link
    14: (IRP_MJ_CREATE,),                                                                    # open
    15: (IRP_MJ_READ,),                                                                      # read
    16: (IRP_MJ_WRITE,),                                                                     # write
    17: (IRP_MJ_QUERY_VOLUME_INFORMATION,),                                                  # statfs
    18: (IRP_MJ_CLEANUP,),                                                                   # release
    20: (IRP_MJ_FLUSH_BUFFERS,),                                                             # fsync
    21: (IRP_MJ_CREATE, IRP_MJ_SET_EA, IRP_MJ_SET_SECURITY),                                 # setxattr
    22: (IRP_MJ_CREATE, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_SECURITY),                             # getxattr
    23: (IRP_MJ_CREATE, IRP_MJ_QUERY_EA, IRP_MJ_QUERY_SECURITY),                             # listxattr
    24: (IRP_MJ_CREATE, IRP_MJ_SET_EA, IRP_MJ_SET_SECURITY),                                 # removexattr
    27: (IRP_MJ_CREATE,),                                                                    # opendir
    28: (IRP_MJ_DIRECTORY_CONTROL,),                                                         # readdir
    29: (IRP_MJ_CLEANUP,),                                                                   # releasedir
    30: (IRP_MJ_FLUSH_BUFFERS,),                                                             # fsyncdir
    31: (IRP_MJ_LOCK_CONTROL,),                                                              # getlk
    32: (IRP_MJ_LOCK_CONTROL,),                                                              # setlk
    33: (IRP_MJ_LOCK_CONTROL,),                                                              # setlkw
    34: (IRP_MJ_QUERY_OPEN, IRP_MJ_CREATE, IRP_MJ_QUERY_SECURITY),                           # access
    35: (IRP_MJ_CREATE,),                                                                    # create
    39: (IRP_MJ_DEVICE_CONTROL, IRP_MJ_FILE_SYSTEM_CONTROL),                                 # ioctl
    43: (IRP_MJ_SET_INFORMATION, IRP_MJ_FILE_SYSTEM_CONTROL),                                # fallocate
    44: (IRP_MJ_DIRECTORY_CONTROL,),                                                         # readdirplus
    45: (IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION),                                             # rename2
    46: (IRP_MJ_QUERY_INFORMATION,),                                                         # lseek
    47: (IRP_MJ_FILE_SYSTEM_CONTROL,),                                                       # copy_file_range
    50: (IRP_MJ_FLUSH_BUFFERS,),                                                             # syncfs
    51: (IRP_MJ_CREATE,),                                                                    # tmpfile
    52: (IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_CREATE, IRP_MJ_QUERY_INFORMATION),                # statx
}


def operations(uint64_t watch):
    """See _audit.pyi."""
    cdef NativeOperations native = NativeOperations()
    cdef int opcode
    majors = set()
    for opcode, of_it in OPERATIONS_OF.items():
        if watch >> opcode & 1:
            majors.update(of_it)
    if watch & TRUNCATING:
        majors.add(IRP_MJ_CREATE)
    for major in majors:
        native.set(major, audit_pre, audit_post, 0)
    return native


cdef class Watcher:
    """See _audit.pyi."""

    def __init__(self, entry not None, Trail trail not None, uint64_t watch):
        self.instance = instance_pointer(entry)
        self.entry = entry
        self.trail = trail
        self.audit.watch = watch
        self.audit.trail = trail.trail
        self.instance.Context = &self.audit

    def detach(self):
        self.instance.Context = NULL
