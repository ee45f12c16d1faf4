"""Filters' own I/O as Python sees it (docs/semantics.md, B4): FileObject, FilterFile, and callback data made by hand.

A FileObject is something that I/O below an instance can be done on: the file of the operation in hand (`data.file`, dead with its
callback), a directory (`data.directory`), or a FilterFile that the filter has opened. What fails raises an OSError of the usual
kind (FileNotFoundError, ...), with the NTSTATUS in its attribute `status`.

Under the GIL but for the work itself. A file that another thread still uses is closed when that is done (users, closing); one that
was left open when its instance was torn down is closed by then, and answers STATUS_FLT_DELETING_OBJECT.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from stackfs.cext.callback_data cimport (
    CallbackData, DACL_SECURITY_INFORMATION, FILE_OBJECT, FLT_CALLBACK_DATA, FLT_INSTANCE, FLT_RELATED_OBJECTS,
    FSCTL_DELETE_REPARSE_POINT, FSCTL_GET_REPARSE_POINT, FSCTL_SET_REPARSE_POINT, FSCTL_SET_ZERO_DATA,
    GROUP_SECURITY_INFORMATION, IRP_MJ_DIRECTORY_CONTROL, IRP_MJ_QUERY_INFORMATION, IRP_MJ_READ, IRP_MJ_WRITE, OWNER_SECURITY_INFORMATION,
    IO_STATUS_BLOCK, REQUESTOR, SECURITY_PARAMETERS, SET_FILE_PARAMETERS, FileAllInformation, FileAllocationInformation,
    FileBasicInformation, FileDispositionInformation, FileEndOfFileInformation, FileLinkInformation, FileRenameInformation,
    FileRenameInformationEx, statx_t, statx_timestamp, unpack_entries)
from stackfs.cext.filter_io cimport (
    FILE_ZERO_DATA_INFORMATION, FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, FltDeviceIoControlFile, FltFlushBuffers,
    FltFsControlFile, FltQueryDirectoryFile, FltQueryEaFile, FltQueryInformationFile, FltQueryVolumeInformation, FltReadFile, FltReadFileEx,
    FltSetEaFile, FltSetInformationFile, FltSetSecurityObject, FltSetVolumeInformation, FltWriteFile, FltWriteFileEx,
    filter_seek)
from stackfs.cext.filter_names cimport (
    FltClose, FltCreateFileEx, FltOpenFile, OBJECT_ATTRIBUTES, filter_delete, filter_file_t, filter_io_close_all, filter_link,
    filter_query, filter_read_link, filter_rename, filter_symlink, operation_directory)
from stackfs.cext.generated_io cimport (
    FltAllocateCallbackData, FltFreeCallbackData, FltPerformAsynchronousIo, FltPerformSynchronousIo, FltReuseCallbackData)
from stackfs.cext.inode_table cimport inode_table_t, node_id, node_put, node_type
from stackfs.cext.ntstatus cimport (
    NTSTATUS, NT_SUCCESS, STATUS_FLT_DELETING_OBJECT, STATUS_IO_REPARSE_TAG_INVALID, STATUS_NO_MORE_FILES,
    STATUS_NOT_A_REPARSE_POINT, STATUS_PENDING, nt_to_errno)
from stackfs.cext.reparse_point cimport LARGEST_REPARSE_POINT
from stackfs.cext.pending cimport PASSIVE_LEVEL, irql_require, irql_set
from stackfs.cext.stack cimport InstanceEntry
from stackfs.cext.threads cimport load_int, store_int
from stackfs.cext.verifier cimport verifier_on, verifier_watcher

import os
from collections import namedtuple


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <unistd.h>
    #include <sys/statvfs.h>
    #include <sys/sysmacros.h>
    """
    struct c_statvfs "statvfs":
        unsigned long f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_namemax
    uint64_t makedev(unsigned major, unsigned minor)
    int SEEK_DATA, SEEK_HOLE
    unsigned S_IFDIR, S_IFLNK, S_IFREG

cdef enum:
    SYMLINK_TAG = 0xA000000C             # IO_REPARSE_TAG_SYMLINK
    FATTR_ATIME = 16
    FATTR_MTIME = 32
    FALLOC_FL_KEEP_SIZE = 1
    LISTING = 32768                      # bytes of a listing asked for at once
    LONGEST = 0x7FFFF000                 # of one transfer, as for read(2)


FileInformation = namedtuple(
    "FileInformation", "mode inode nlink uid gid rdev size blocks blksize atime_ns mtime_ns ctime_ns btime_ns")
FileInformation.__doc__ = "What statx gives; size in bytes, blocks of 512 bytes, times in nanoseconds since 1970."


ReparsePoint = namedtuple("ReparsePoint", "tag data guid", defaults=(b"", None))
ReparsePoint.__doc__ = "A file's tag, its data (bytes), and the GUID of whose tag it is (bytes; None: bit 31 of the tag is set)."


cdef bytes pack_reparse_point(uint32_t tag, guid, bytes data):
    if (guid is None) != (tag >> 31 == 1) or (guid is not None and len(guid) != 16) or len(data) > 0xFFFF:
        raise error_of(<uint32_t>STATUS_IO_REPARSE_TAG_INVALID)
    return tag.to_bytes(4, "little") + len(data).to_bytes(4, "little") + (guid or b"") + data


def error_of(uint32_t status, what=None):
    """The OSError for a status: errno by the table of A10.4, the status itself in its attribute `status`."""
    number = nt_to_errno(<NTSTATUS>status) or EIO
    error = OSError(number, os.strerror(number), what)
    error.status = status
    return error


cdef int check(NTSTATUS status, object what) except -1:
    if not NT_SUCCESS(status):
        raise error_of(<uint32_t>status, what)
    return 0


cdef object information_of(const statx_t *info):
    return FileInformation(
        info.stx_mode, info.stx_ino, info.stx_nlink, info.stx_uid, info.stx_gid,
        makedev(info.stx_rdev_major, info.stx_rdev_minor), info.stx_size, info.stx_blocks, info.stx_blksize,
        nanoseconds(&info.stx_atime), nanoseconds(&info.stx_mtime), nanoseconds(&info.stx_ctime), nanoseconds(&info.stx_btime))


cdef object nanoseconds(const statx_timestamp *when):
    return <int64_t>when.tv_sec * <int64_t>1000000000 + when.tv_nsec


@cython.no_gc_clear                       # what keeps the instance is needed to the end
cdef class FileObject(FileReference):
    """A file that I/O below this instance can be done on. Offsets and sizes are bytes. Raises OSError, with `status`."""

    def __init__(self):
        raise TypeError("a FileObject comes from data.file, data.directory or an instance's open()")

    def __dealloc__(self):
        if self.pointer is &self.own and self.own.Node is not NULL and self.instance.Related.Volume.nodes is not NULL:
            node_put(<inode_table_t *>self.instance.Related.Volume.nodes, self.own.Node)

    cdef int bind(self, FLT_INSTANCE *instance) except -1:
        self.instance = instance
        self.entry = <InstanceEntry><object>instance.Entry
        if instance.Related.Volume is not NULL:
            self.stack = <object>instance.Related.Volume.Object
        return 0

    cdef FILE_OBJECT *live(self) except NULL:
        if self.data is not None:
            self.data.live()
        return FileReference.live(self)

    cdef FILE_OBJECT *enter(self) except NULL:
        irql_require(PASSIVE_LEVEL, "I/O of a filter's own")
        if self.data is not None:
            self.data.live()
        if self.pointer is NULL or self.closing:
            raise ValueError("I/O on a file that is closed")
        if load_int(&self.instance.IoEnded) or self.instance.Related.Volume is NULL or \
                self.instance.Related.Volume.backing is NULL:
            raise error_of(<uint32_t>STATUS_FLT_DELETING_OBJECT)     # it has been closed behind its owner (B4.8)
        self.users += 1
        return self.pointer

    cdef int leave(self) except -1:
        self.users -= 1
        if self.users == 0 and self.closing:
            self.really_close()
        return 0

    cdef int really_close(self) except -1:
        return 0

    # Data

    def read(self, offset, Py_ssize_t size, *, uint32_t flags=FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, uint32_t key=0) -> bytes:
        """Up to `size` bytes at `offset` (None: the file's own position); fewer at its end. flags: FLTFL_IO_OPERATION_* bits. key: of
        byte-range locks that a filter below keeps."""
        cdef bytes buffer
        cdef uint32_t got
        if not 0 <= size <= LONGEST:
            raise ValueError("not a length of a transfer")
        buffer = PyBytes_FromStringAndSize(NULL, size)
        got = self.move(IRP_MJ_READ, offset, PyBytes_AS_STRING(buffer), <uint32_t>size, flags, key)
        return buffer if got == <uint32_t>size else buffer[:got]

    def read_into(self, offset, buffer, *, uint32_t flags=FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, uint32_t key=0) -> int:
        """The same, into a writable buffer. How many bytes."""
        return self.move_buffer(IRP_MJ_READ, offset, buffer, flags, key)

    def write(self, offset, data, *, uint32_t flags=FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET, uint32_t key=0) -> int:
        """Writes bytes at `offset` (None: the file's own position; -1: at the end). How many were written: fewer only where the
        disk is full, or a limit is met."""
        return self.move_buffer(IRP_MJ_WRITE, offset, data, flags, key)

    cdef object move_buffer(self, uint8_t major, object offset, object buffer, uint32_t flags, uint32_t key):
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE if major == IRP_MJ_READ else PyBUF_SIMPLE)
        try:
            if view.len > LONGEST:
                raise ValueError("not a length of a transfer")
            return self.move(major, offset, view.buf, <uint32_t>view.len, flags, key)
        finally:
            PyBuffer_Release(&view)

    cdef uint32_t move(self, uint8_t major, object offset, void *buffer, uint32_t length, uint32_t flags,
                       uint32_t key) except? 0xFFFFFFFF:
        cdef int64_t at = 0 if offset is None else offset
        cdef int64_t *where = NULL if offset is None else &at
        cdef uint32_t done = 0
        cdef NTSTATUS status
        if offset is None:
            flags &= ~<uint32_t>FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET
        self.enter()
        with nogil:
            if major == IRP_MJ_READ:
                status = FltReadFileEx(self.instance, self.pointer, where, length, buffer, flags, &done, NULL, NULL, &key, NULL)
            else:
                status = FltWriteFileEx(self.instance, self.pointer, where, length, buffer, flags, &done, NULL, NULL, &key, NULL)
        self.leave()
        check(status, None)
        return done

    def flush(self, *, bint data_only=False):
        """fsync(2), or fdatasync(2)."""
        cdef NTSTATUS status
        self.enter()
        with nogil:
            status = FltFlushBuffers(self.instance, self.pointer, data_only)
        self.leave()
        check(status, None)

    def seek_data(self, int64_t offset) -> int:
        """Where data begins, from `offset` on; OSError ENXIO: nowhere."""
        return self.seek(offset, SEEK_DATA)

    def seek_hole(self, int64_t offset) -> int:
        """Where a hole, or the end of the file, begins."""
        return self.seek(offset, SEEK_HOLE)

    cdef object seek(self, int64_t offset, uint32_t whence):
        cdef int64_t found = 0
        cdef NTSTATUS status
        self.enter()
        with nogil:
            status = filter_seek(self.instance, self.pointer, offset, whence, &found)
        self.leave()
        check(status, None)
        return found

    # Attributes

    def stat(self):
        """A FileInformation."""
        cdef statx_t info
        cdef NTSTATUS status
        self.enter()
        with nogil:
            status = FltQueryInformationFile(self.instance, self.pointer, &info)
        self.leave()
        check(status, None)
        return information_of(&info)

    cdef int set_information(self, const SET_FILE_PARAMETERS *p) except -1:
        cdef NTSTATUS status
        self.enter()
        with nogil:
            status = FltSetInformationFile(self.instance, self.pointer, p)
        self.leave()
        return check(status, None)

    def truncate(self, int64_t size):
        """Sets the size (FileEndOfFileInformation)."""
        cdef SET_FILE_PARAMETERS p
        memset(&p, 0, sizeof(p))
        p.FileInformationClass = FileEndOfFileInformation
        p.EndOfFile = size
        self.set_information(&p)

    def allocate(self, int64_t offset, int64_t length, *, bint keep_size=False):
        """Reserves space (FileAllocationInformation), as fallocate(2)."""
        cdef SET_FILE_PARAMETERS p
        memset(&p, 0, sizeof(p))
        p.FileInformationClass = FileAllocationInformation
        p.AllocationOffset = offset
        p.AllocationLength = length
        p.Flags = FALLOC_FL_KEEP_SIZE if keep_size else 0
        self.set_information(&p)

    def punch(self, int64_t offset, int64_t length):
        """Makes a hole (FSCTL_SET_ZERO_DATA); the size stays."""
        cdef FILE_ZERO_DATA_INFORMATION range
        cdef NTSTATUS status
        range.FileOffset = offset
        range.BeyondFinalZero = offset + length
        self.enter()
        with nogil:
            status = FltFsControlFile(self.instance, self.pointer, FSCTL_SET_ZERO_DATA, &range, sizeof(range), NULL, 0, NULL)
        self.leave()
        check(status, None)

    def set_times(self, *, atime_ns=None, mtime_ns=None):
        """Nanoseconds since 1970 (FileBasicInformation); None: as it is."""
        cdef SET_FILE_PARAMETERS p
        memset(&p, 0, sizeof(p))
        p.FileInformationClass = FileBasicInformation
        if atime_ns is not None:
            p.Flags |= FATTR_ATIME
            p.atime_sec, p.atime_nsec = divmod(atime_ns, 1000000000)
        if mtime_ns is not None:
            p.Flags |= FATTR_MTIME
            p.mtime_sec, p.mtime_nsec = divmod(mtime_ns, 1000000000)
        self.set_information(&p)

    def set_security(self, *, mode=None, uid=None, gid=None):
        """Permission bits, owner, group; None: as it is."""
        cdef SECURITY_PARAMETERS p
        cdef NTSTATUS status
        memset(&p, 0, sizeof(p))
        if mode is not None:
            p.SecurityInformation |= DACL_SECURITY_INFORMATION
            p.Mode = mode
        if uid is not None:
            p.SecurityInformation |= OWNER_SECURITY_INFORMATION
            p.Uid = uid
        if gid is not None:
            p.SecurityInformation |= GROUP_SECURITY_INFORMATION
            p.Gid = gid
        self.enter()
        with nogil:
            status = FltSetSecurityObject(self.instance, self.pointer, &p)
        self.leave()
        check(status, None)

    # Extended attributes

    cdef bytes query_ea(self, const char *name, object what):
        """Asked for its length first, and again where it grew meanwhile."""
        cdef bytes buffer = b""
        cdef uint32_t got = 0
        cdef uint32_t room
        cdef char *start
        cdef NTSTATUS status
        while True:
            self.enter()
            with nogil:
                status = FltQueryEaFile(self.instance, self.pointer, name, NULL, 0, &got)
            room = got
            if NT_SUCCESS(status) and room:
                buffer = PyBytes_FromStringAndSize(NULL, room)
                start = PyBytes_AS_STRING(buffer)
                with nogil:
                    status = FltQueryEaFile(self.instance, self.pointer, name, start, room, &got)
            self.leave()
            if nt_to_errno(status) == 34:            # ERANGE
                continue
            check(status, what)
            return buffer[:got]

    def get_ea(self, name) -> bytes:
        """An extended attribute's value, by its full name ("user.colour")."""
        cdef bytes text = attribute_name(name)
        return self.query_ea(text, name)

    def list_eas(self):
        """Their full names, as bytes."""
        return [name for name in self.query_ea(NULL, None).split(b"\0") if name]

    def set_ea(self, name, bytes value not None, *, uint32_t flags=0):
        """flags: os.XATTR_CREATE, os.XATTR_REPLACE."""
        self.change_ea(name, value, flags, False)

    def remove_ea(self, name):
        """Takes an extended attribute away."""
        self.change_ea(name, b"", 0, True)

    cdef int change_ea(self, object name, bytes value, uint32_t flags, bint remove) except -1:
        cdef bytes text = attribute_name(name)
        cdef const char *start = text
        cdef const char *bytes_of = value
        cdef uint32_t length = <uint32_t>len(value)
        cdef NTSTATUS status
        self.enter()
        with nogil:
            status = FltSetEaFile(self.instance, self.pointer, start, bytes_of, length, flags, remove)
        self.leave()
        return check(status, name)

    # Controls, listings, and opening

    def control(self, uint32_t code, bytes input not None=b"", Py_ssize_t output_size=0, *, bint device=False) -> bytes:
        """FltFsControlFile, with device=True FltDeviceIoControlFile: what came back."""
        cdef bytes output = PyBytes_FromStringAndSize(NULL, output_size)
        cdef const char *start = input
        cdef uint32_t length = <uint32_t>len(input)
        cdef void *room = PyBytes_AS_STRING(output) if output_size else NULL
        cdef uint32_t got = 0
        cdef NTSTATUS status
        self.enter()
        with nogil:
            if device:
                status = FltDeviceIoControlFile(self.instance, self.pointer, code, start, length, room, <uint32_t>output_size, &got)
            else:
                status = FltFsControlFile(self.instance, self.pointer, code, start, length, room, <uint32_t>output_size, &got)
        self.leave()
        check(status, None)
        return output[:got] if output_size else b""

    def get_reparse_point(self):
        """FSCTL_GET_REPARSE_POINT, of an open file or directory, or a symbolic link: its ReparsePoint; None: it has none."""
        cdef unsigned kind
        self.enter()
        kind = 0 if self.pointer.Node is NULL else node_type(self.pointer.Node)
        self.leave()
        if kind == S_IFLNK:
            return ReparsePoint(<uint32_t>SYMLINK_TAG, self.control(FSCTL_GET_REPARSE_POINT, output_size=4096))
        if kind != S_IFREG and kind != S_IFDIR:
            return None
        try:
            found = self.control(FSCTL_GET_REPARSE_POINT, output_size=LARGEST_REPARSE_POINT)
        except OSError as error:
            if error.status == <uint32_t>STATUS_NOT_A_REPARSE_POINT:
                return None
            raise
        tag = int.from_bytes(found[:4], "little")
        return ReparsePoint(tag, found[8:]) if tag >> 31 else ReparsePoint(tag, found[24:], found[8:24])

    def set_reparse_point(self, uint32_t tag, bytes data not None=b"", *, guid=None):
        """FltTagFile: FSCTL_SET_REPARSE_POINT. guid: 16 bytes, of whose tag it is; None for a tag with bit 31 set."""
        self.control(FSCTL_SET_REPARSE_POINT, pack_reparse_point(tag, guid, data))

    def remove_reparse_point(self, uint32_t tag, *, guid=None):
        """FltUntagFile: FSCTL_DELETE_REPARSE_POINT. It must be tagged so."""
        self.control(FSCTL_DELETE_REPARSE_POINT, pack_reparse_point(tag, guid, b""))

    def entries(self):
        """A directory's names, as the layer below shows them: a list of DirectoryEntry, without "." and ".."."""
        with self.reopen(os.O_RDONLY | os.O_DIRECTORY) as directory:
            return directory.entries()

    def reopen(self, int flags=0):
        """The same file, opened again for the filter (a FilterFile): with other rights than the program's, and for longer."""
        return self.open("", flags)

    def open(self, path, int flags=0, int mode=0o600, *, CallbackData requestor=None):
        """A FilterFile: a path from this directory on. See the instance's open()."""
        self.enter()
        try:
            return open_below(self.entry, path, flags, mode, directory=self, requestor=requestor)
        finally:
            self.leave()

    @property
    def is_directory(self) -> bool:
        """Is it a directory?"""
        self.enter()
        try:
            return self.pointer.Node is not NULL and node_type(self.pointer.Node) == S_IFDIR
        finally:
            self.leave()

    @property
    def owner(self):
        """The instance below which I/O on it goes: what callbacks know as `objects`."""
        return <object>self.instance.Object

    @property
    def nodeid(self) -> int:
        """A number for the inode, the same for every file object of it; 0: it is not open yet."""
        self.enter()
        try:
            return 0 if self.pointer.Node is NULL else node_id(self.pointer.Node)
        finally:
            self.leave()


cdef bytes attribute_name(object name):
    cdef bytes text = os.fsencode(name)
    if b"\0" in text:
        raise ValueError("not the name of an attribute")
    return text


cdef FileObject new_object(type kind, FLT_INSTANCE *instance):
    cdef FileObject made = kind.__new__(kind)
    made.bind(instance)
    return made


def file_of(CallbackData data not None):
    """data.file"""
    cdef FileObject made
    data.live()
    made = new_object(FileObject, data.objects.Instance)
    made.data = data
    made.pointer = data.objects.FileObject
    if made.pointer is NULL:
        return None
    return made


def directory_of(CallbackData data not None):
    """data.directory"""
    cdef FileObject made
    data.live()
    made = new_object(FileObject, data.objects.Instance)
    operation_directory(data.data, data.objects, &made.own)
    made.pointer = &made.own
    return made if made.own.Node is not NULL else None


@cython.no_gc_clear
cdef class FilterFile(FileObject):
    """A file that a filter has opened below itself. Close it: `with objects.open(...) as file`."""

    def __dealloc__(self):
        cdef FLT_INSTANCE *instance = self.instance
        cdef FILE_OBJECT *file = self.pointer
        cdef int level
        if verifier_on:
            closed(<PyObject *>self)
        if file is not NULL:
            self.pointer = NULL
            level = irql_set(PASSIVE_LEVEL)      # nobody has asked for it here and now
            with nogil:
                FltClose(instance, file)
            irql_set(level)

    cdef int really_close(self) except -1:
        cdef FILE_OBJECT *file = self.pointer
        if verifier_on:
            closed(<PyObject *>self)
        if file is not NULL:
            self.pointer = NULL
            with nogil:
                FltClose(self.instance, file)
        return 0

    def close(self):
        """CLEANUP and CLOSE below. Twice is no harm; I/O under way ends first."""
        self.closing = True
        if self.users == 0:
            self.really_close()

    @property
    def closed(self) -> bool:
        """Was it closed?"""
        return self.closing

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()

    def __repr__(self):
        return f"<FilterFile {self.path!r}{' closed' if self.closing else ''}>"

    def entries(self):
        """A directory's names, as the layer below shows them: a list of DirectoryEntry, without "." and ".."."""
        entries = more = self.next_entries(restart=True)
        while more:
            more = self.next_entries()
            entries = entries + more
        return [entry for entry in entries if entry.name not in (b".", b"..")]

    def next_entries(self, *, bint restart=False, bint single=False, Py_ssize_t size=LISTING):
        """FltQueryDirectoryFile: the directory's next entries, "." and ".." among them; [] at its end. size: bytes of room for
        their records (a name takes at most 280). single: one alone."""
        cdef bytes buffer = PyBytes_FromStringAndSize(NULL, size)
        cdef char *start = PyBytes_AS_STRING(buffer)
        cdef uint32_t got = 0
        cdef NTSTATUS status
        cdef list entries
        self.enter()
        with nogil:
            status = FltQueryDirectoryFile(self.instance, self.pointer, start, <uint32_t>size, restart, &got)
        try:
            if status == STATUS_NO_MORE_FILES:
                return []
            check(status, self.path)
            entries = unpack_entries(PyBytes_AS_STRING(buffer), got)
            if single and len(entries) > 1:
                del entries[1:]
                (<filter_file_t *>self.pointer.FilterFile).listed_to = entries[0].offset
            return entries
        finally:
            self.leave()

    cdef int change_name(self, uint32_t which, uint32_t flags, object name, FileObject directory) except -1:
        cdef SET_FILE_PARAMETERS p
        cdef bytes text = os.fsencode(name)
        memset(&p, 0, sizeof(p))
        p.FileInformationClass = which
        p.Flags = flags
        p.TargetName.Buffer = text
        p.TargetName.Length = min(len(text), 65535)
        if directory is not None:
            same_volume(self.instance, directory)
            p.TargetDirectory = directory.enter().Node
        try:
            self.set_information(&p)
        finally:
            if directory is not None:
                directory.leave()
        return 0

    def rename(self, name, *, FileObject directory=None, uint32_t flags=0):
        """Gives it another name in its directory, or in another one. flags: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2."""
        self.change_name(FileRenameInformationEx if flags else FileRenameInformation, flags, name, directory)

    def link(self, name, *, FileObject directory=None):
        """One more name (FileLinkInformation). A file opened with O_TMPFILE gets its first by this, in `directory`."""
        self.change_name(FileLinkInformation, 0, name, directory)

    def delete(self):
        """Takes the name away that it was opened by (FileDispositionInformation), if that still leads to it."""
        cdef SET_FILE_PARAMETERS p
        memset(&p, 0, sizeof(p))
        p.FileInformationClass = FileDispositionInformation
        self.set_information(&p)

    def delete_on_close(self):
        """The same when it is closed (FILE_DELETE_ON_CLOSE)."""
        (<filter_file_t *>self.enter().FilterFile).delete_on_close = 1
        self.leave()

    def start_read(self, int64_t offset, Py_ssize_t size, done, *, uint32_t flags=0):
        """Reads in another thread, which then calls done(status, bytes)."""
        if not 0 <= size <= LONGEST:
            raise ValueError("not a length of a transfer")
        self.start(IRP_MJ_READ, offset, PyBytes_FromStringAndSize(NULL, size), done, flags)

    def start_write(self, int64_t offset, data, done, *, uint32_t flags=0):
        """Writes in another thread, which then calls done(status, bytes written). `data` must not change until then."""
        self.start(IRP_MJ_WRITE, offset, data, done, flags)

    cdef int start(self, uint8_t major, int64_t offset, object buffer, object done, uint32_t flags) except -1:
        cdef _Started started = _Started.__new__(_Started)
        cdef NTSTATUS status
        cdef void *context = <void *>started
        PyObject_GetBuffer(buffer, &started.view, PyBUF_SIMPLE)
        started.file = self
        started.buffer = buffer
        started.done = done
        started.major = major
        if started.view.len > LONGEST:
            raise ValueError("not a length of a transfer")
        self.enter()
        Py_INCREF(started)               # completed() has it
        flags |= FLTFL_IO_OPERATION_DO_NOT_UPDATE_BYTE_OFFSET
        with nogil:
            if major == IRP_MJ_READ:
                status = FltReadFile(self.instance, self.pointer, &offset, <uint32_t>started.view.len, started.view.buf, flags, NULL,
                                     completed, context)
            else:
                status = FltWriteFile(self.instance, self.pointer, &offset, <uint32_t>started.view.len, started.view.buf, flags, NULL,
                                      completed, context)
        if status != STATUS_PENDING:
            Py_DECREF(started)
            self.leave()
            check(status, self.path)
        return 0


cdef class _Started:
    """I/O under way in another thread."""
    cdef FileObject file
    cdef object buffer
    cdef object done
    cdef Py_buffer view
    cdef uint8_t major
    cdef GeneratedData made

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef void completed(FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    with gil:
        tell(data, context)


cdef void tell(FLT_CALLBACK_DATA *data, void *context) noexcept:
    cdef _Started started = <_Started>context
    cdef uint32_t status = <uint32_t>data.IoStatus.Status
    cdef uint64_t moved = data.IoStatus.Information
    cdef uint8_t major = data.Iopb.MajorFunction         # the data may be freed by whom it is told
    cdef bint done_well = NT_SUCCESS(data.IoStatus.Status)
    cdef FLT_INSTANCE *instance
    Py_DECREF(started)
    try:
        if started.made is not None:
            started.made.busy = False
            started.done(started.made)
        elif started.major == IRP_MJ_READ:
            started.done(status, (<bytes>started.buffer)[:moved] if done_well else b"")
        else:
            started.done(status, moved)
    except BaseException as error:
        try:
            instance = started.made.instance if started.made is not None else started.file.instance
            (<object>instance.Object).callback_raised("completion", major, "", error)
        except BaseException:
            pass
    try:
        if started.file is not None:
            started.file.leave()
    except BaseException:
        pass


# --- by path -----------------------------------------------------------------------------------------------------------

cdef int same_volume(const FLT_INSTANCE *instance, FileObject directory) except -1:
    if directory.instance.Related.Volume is not instance.Related.Volume:
        raise ValueError("the directory is another volume's")
    return 0


cdef int opened(FilterFile made) except -1:
    """The verifier looks at the end of the instance whether it has been closed; it does not keep the file open."""
    if verifier_on:
        verifier_watcher().acquired(
            <uintptr_t><PyObject *>made, f"the file {made.path!r}", "FltCreateFile", owner=made.entry.object,
            filter=made.entry.filter_name.decode("utf-8", "surrogateescape"))
    return 0


cdef void closed(PyObject *file) noexcept:
    try:
        verifier_watcher().given_back(<uintptr_t>file)
    except BaseException:
        pass


@cython.no_gc
cdef class _Path:
    """OBJECT_ATTRIBUTES, and what they point to, for as long as this is there."""
    cdef OBJECT_ATTRIBUTES attributes
    cdef REQUESTOR who
    cdef bytes text
    cdef FileObject directory

    def __cinit__(self, InstanceEntry entry not None, path, FileObject directory, CallbackData requestor):
        irql_require(PASSIVE_LEVEL, "I/O of a filter's own")
        self.text = os.fsencode(path)
        self.attributes.ObjectName = self.text
        self.attributes.ObjectNameLength = len(self.text)
        if requestor is not None:
            self.who = requestor.live().Thread[0]
            self.attributes.Requestor = &self.who
        if directory is not None:
            same_volume(&entry.instance, directory)
            self.attributes.RootDirectory = directory.enter()
            self.directory = directory

    def __dealloc__(self):
        if self.directory is not None:
            self.directory.leave()


def open_below(InstanceEntry entry not None, path, int flags=0, int mode=0o600, *, FileObject directory=None,
               CallbackData requestor=None):
    """Instance.open()"""
    cdef _Path where = _Path(entry, path, directory, requestor)
    cdef FILE_OBJECT *file = NULL
    cdef FLT_INSTANCE *instance = &entry.instance
    cdef FilterFile made
    cdef NTSTATUS status
    cdef IO_STATUS_BLOCK io
    made = new_object(FilterFile, instance)
    made.path = path
    with nogil:
        status = FltOpenFile(instance, &file, &where.attributes, <uint32_t>flags, <uint32_t>mode, &io)
    made.pointer = file
    made.information = io.Information
    check(status, path)
    opened(made)
    return made


def create_below(InstanceEntry entry not None, path, uint32_t desired_access, uint32_t disposition, uint32_t options=0,
                 int mode=0o600, *, FileObject directory=None, CallbackData requestor=None):
    """The same by desired access, create disposition and create options (FltCreateFileEx)."""
    cdef _Path where = _Path(entry, path, directory, requestor)
    cdef FILE_OBJECT *file = NULL
    cdef FLT_INSTANCE *instance = &entry.instance
    cdef FilterFile made
    cdef IO_STATUS_BLOCK io
    cdef NTSTATUS status
    made = new_object(FilterFile, instance)
    made.path = path
    with nogil:
        status = FltCreateFileEx(instance, &file, desired_access, &where.attributes, &io, <uint32_t>mode, disposition, options)
    made.pointer = file
    made.information = io.Information
    check(status, path)
    opened(made)
    return made


def rename_below(InstanceEntry entry not None, old, new, uint32_t flags=0, *, FileObject directory=None,
                 FileObject new_directory=None, CallbackData requestor=None):
    """Instance.rename()"""
    cdef _Path what = _Path(entry, old, directory, requestor)
    cdef _Path to = _Path(entry, new, directory if new_directory is None else new_directory, requestor)
    cdef NTSTATUS status
    with nogil:
        status = filter_rename(&entry.instance, &what.attributes, &to.attributes, flags)
    check(status, old)


def link_below(InstanceEntry entry not None, old, new, *, FileObject directory=None, FileObject new_directory=None,
               CallbackData requestor=None):
    """Instance.link()"""
    cdef _Path what = _Path(entry, old, directory, requestor)
    cdef _Path to = _Path(entry, new, directory if new_directory is None else new_directory, requestor)
    cdef NTSTATUS status
    with nogil:
        status = filter_link(&entry.instance, &what.attributes, &to.attributes)
    check(status, old)


def delete_below(InstanceEntry entry not None, path, bint is_directory=False, *, FileObject directory=None,
                 CallbackData requestor=None):
    """Instance.unlink(), Instance.rmdir()"""
    cdef _Path what = _Path(entry, path, directory, requestor)
    cdef NTSTATUS status
    with nogil:
        status = filter_delete(&entry.instance, &what.attributes, is_directory)
    check(status, path)


def symlink_below(InstanceEntry entry not None, target, path, *, FileObject directory=None, CallbackData requestor=None):
    """Instance.symlink()"""
    cdef _Path what = _Path(entry, path, directory, requestor)
    cdef bytes text = os.fsencode(target)
    cdef const char *start = text
    cdef uint32_t length = <uint32_t>len(text)
    cdef NTSTATUS status
    with nogil:
        status = filter_symlink(&entry.instance, &what.attributes, start, length)
    check(status, path)


def readlink_below(InstanceEntry entry not None, path, *, FileObject directory=None, CallbackData requestor=None) -> bytes:
    """Instance.readlink()"""
    cdef _Path what = _Path(entry, path, directory, requestor)
    cdef char target[4096]
    cdef uint32_t length = 0
    cdef NTSTATUS status
    with nogil:
        status = filter_read_link(&entry.instance, &what.attributes, target, sizeof(target), &length)
    check(status, path)
    return PyBytes_FromStringAndSize(target, length)


def stat_below(InstanceEntry entry not None, path, *, FileObject directory=None, CallbackData requestor=None):
    """Instance.stat()"""
    cdef _Path what = _Path(entry, path, directory, requestor)
    cdef statx_t info
    cdef NTSTATUS status
    with nogil:
        status = filter_query(&entry.instance, &what.attributes, &info)
    check(status, path)
    return information_of(&info)


def statvfs_below(InstanceEntry entry not None):
    """Instance.statvfs()"""
    cdef c_statvfs result
    cdef NTSTATUS status
    with nogil:
        status = FltQueryVolumeInformation(&entry.instance, &result, sizeof(result))
    check(status, None)
    return (result.f_bsize, result.f_frsize, result.f_blocks, result.f_bfree, result.f_bavail,
            result.f_files, result.f_ffree, result.f_favail, result.f_namemax)


def set_volume_information_below(InstanceEntry entry not None, uint32_t which, bytes information not None):
    """FltSetVolumeInformation: SET_VOLUME_INFORMATION below; the base knows none."""
    cdef const char *start = information
    cdef uint32_t length = <uint32_t>len(information)
    cdef NTSTATUS status
    with nogil:
        status = FltSetVolumeInformation(&entry.instance, start, length, which)
    check(status, None)


# --- callback data made by hand -----------------------------------------------------------------------------------------

@cython.no_gc_clear
cdef class GeneratedData(CallbackData):
    """An operation that a filter makes by hand (FltAllocateCallbackData): set `major` and its parameters, perform() it.

    READ, WRITE (`buffer`, `offset`, `irp_flags`), FLUSH_BUFFERS, QUERY_INFORMATION (then `size`, `mode`), SET_INFORMATION
    (`information_class`, `end_of_file`, `range`), DIRECTORY_CONTROL with IRP_MN_NOTIFY_CHANGE_DIRECTORY (`minor`,
    `completion_filter`, `buffer`). After perform(): `status` and `information`.
    """
    cdef FLT_INSTANCE *instance
    cdef InstanceEntry entry
    cdef FileObject target
    cdef FLT_RELATED_OBJECTS related
    cdef statx_t info
    cdef bint busy

    def __dealloc__(self):
        if self.data is not NULL:
            FltFreeCallbackData(self.data)

    cdef FLT_CALLBACK_DATA *idle(self) except NULL:
        self.live()
        if self.busy:
            raise RuntimeError("the operation is under way")
        return self.data

    @property
    def major(self):
        """The operation: an IRP_MJ_* number. Set it first: it clears the parameters."""
        return self.live().Iopb.MajorFunction

    @major.setter
    def major(self, uint8_t value):
        cdef FLT_CALLBACK_DATA *data = self.idle()
        FltReuseCallbackData(data)
        self.kept = None
        data.Iopb.MajorFunction = value
        if value == IRP_MJ_QUERY_INFORMATION:
            data.Iopb.Parameters.QueryFile.FileInformationClass = FileAllInformation
            data.Iopb.Parameters.QueryFile.Length = sizeof(statx_t)
            data.Iopb.Parameters.QueryFile.Info = &self.info

    @property
    def minor(self):
        """DIRECTORY_CONTROL: IRP_MN_QUERY_DIRECTORY or IRP_MN_NOTIFY_CHANGE_DIRECTORY."""
        return self.live().Iopb.MinorFunction

    @minor.setter
    def minor(self, uint8_t value):
        if self.idle().Iopb.MajorFunction != IRP_MJ_DIRECTORY_CONTROL:
            self.refuse("minor")
        self.data.Iopb.MinorFunction = value

    @property
    def key(self):
        """READ, WRITE: the key of byte-range locks."""
        return CallbackData.key.__get__(self)

    @key.setter
    def key(self, uint32_t value):
        if self.idle().Iopb.MajorFunction != IRP_MJ_READ and self.data.Iopb.MajorFunction != IRP_MJ_WRITE:
            self.refuse("key")
        self.data.Iopb.Parameters.Read.Key = value

    @property
    def completion_filter(self):
        """IRP_MN_NOTIFY_CHANGE_DIRECTORY: the changes wanted, FILE_NOTIFY_CHANGE_* bits."""
        return CallbackData.completion_filter.__get__(self)

    @completion_filter.setter
    def completion_filter(self, uint32_t value):
        CallbackData.completion_filter.__get__(self)
        self.idle().Iopb.Parameters.Directory.CompletionFilter = value

    @property
    def irp_flags(self):
        """IRP_NOCACHE, IRP_PAGING_IO, ... bits."""
        return self.live().Iopb.IrpFlags

    @irp_flags.setter
    def irp_flags(self, uint32_t value):
        self.idle().Iopb.IrpFlags = value

    @property
    def information_class(self):
        """QUERY_INFORMATION, SET_INFORMATION: which information. To be set for SET_INFORMATION."""
        return CallbackData.information_class.__get__(self)

    @information_class.setter
    def information_class(self, uint32_t value):
        if self.idle().Iopb.MajorFunction != 6:
            self.refuse("information_class")
        self.data.Iopb.Parameters.SetFile.FileInformationClass = value

    def perform(self) -> int:
        """FltPerformSynchronousIo: the status, as an unsigned NTSTATUS; nothing is raised."""
        cdef FLT_CALLBACK_DATA *data = self.idle()
        self.target.enter()
        self.busy = True
        with nogil:
            FltPerformSynchronousIo(data)
        self.busy = False
        self.target.leave()
        return <uint32_t>data.IoStatus.Status

    def start(self, done) -> int:
        """FltPerformAsynchronousIo: STATUS_PENDING, and a thread of the manager calls done(self) when it is over."""
        cdef FLT_CALLBACK_DATA *data = self.idle()
        cdef _Started started = _Started.__new__(_Started)
        cdef void *context = <void *>started
        cdef NTSTATUS status
        if not isinstance(self.target, FilterFile):
            raise ValueError("the file would not live long enough: reopen() it")
        started.done = done
        started.made = self
        started.file = self.target
        self.target.enter()
        Py_INCREF(started)
        self.busy = True
        with nogil:
            status = FltPerformAsynchronousIo(data, completed, context)
        if status != STATUS_PENDING:
            self.busy = False
            Py_DECREF(started)
            self.target.leave()
        return <uint32_t>status

    def reuse(self):
        """FltReuseCallbackData: as it was when it was allocated."""
        FltReuseCallbackData(self.idle())
        self.kept = None

    def free(self):
        """FltFreeCallbackData. What it holds is let go; using it after that raises ReferenceError."""
        cdef FLT_CALLBACK_DATA *data = self.idle()
        if verifier_on:
            verifier_watcher().given_back(self)
        self.end()
        self.kept = None
        FltFreeCallbackData(data)


def allocate_below(InstanceEntry entry not None, FileObject file not None):
    """FltAllocateCallbackData"""
    cdef GeneratedData made = GeneratedData.__new__(GeneratedData)
    cdef FLT_CALLBACK_DATA *data = NULL
    same_volume(&entry.instance, file)
    file.enter()
    file.leave()
    check(FltAllocateCallbackData(&entry.instance, file.pointer, &data), None)
    made.data = data
    made.writable = True
    made.instance = &entry.instance
    made.entry = entry
    made.target = file
    made.related = entry.instance.Related
    made.related.FileObject = file.pointer
    made.objects = &made.related
    if verifier_on:
        verifier_watcher().acquired(
            made, "callback data", "FltAllocateCallbackData", owner=entry.object,
            filter=entry.filter_name.decode("utf-8", "surrogateescape"))
    return made


# --- the end of an instance ----------------------------------------------------------------------------------------------

def io_pending(InstanceEntry entry not None) -> bool:
    """Is I/O under way that the instance has started?"""
    return load_int(&entry.instance.IoPending) != 0


def end_io(InstanceEntry entry not None):
    """The instance starts nothing more: everything answers STATUS_FLT_DELETING_OBJECT from now on."""
    store_int(&entry.instance.IoEnded, 1)


def close_left_open(InstanceEntry entry not None) -> int:
    """After end_io(), when nothing is pending: closes what the filter left open. How many files."""
    cdef uint32_t count
    if entry.instance.Related.Volume is NULL or entry.instance.Related.Volume.backing is NULL:
        return 0
    with nogil:
        count = filter_io_close_all(&entry.instance)
    return count
