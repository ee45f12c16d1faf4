"""Callback data: the Python face of one operation (docs/semantics.md, A4).

A callback gets a CallbackData that is alive until it returns, or, if the callback keeps the operation, until the filter
completes it: afterwards every attribute raises ReferenceError, and every memoryview taken from it raises ValueError,
views of views included. Nothing ever reads freed memory: whoever
still holds the raw buffer (a ctypes or NumPy array) keeps its owner alive until it lets go. Memory that no Python object
owns is never given out: a copy stands for it, and is written back when the callback returns.

Parameters may be changed by a pre callback; the change counts only when the callback also says `set_dirty()`, and only
the layers below see it. `status` and `information` need no `set_dirty()`.

Used under the GIL, by the thread that runs the callback, and afterwards by whichever thread the filter gives it to. Whoever
completes it first is the one who does: for the others it is dead.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyObject_GetBuffer, PyBuffer_FillInfo, PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memcpy

from stackfs.cext.bypass cimport bypass_veto
from stackfs.cext.holding cimport (
    holding_cancel, holding_complete, holding_forgotten, holding_has_post, holding_instance, holding_irql,
    holding_is_cancelled, holding_keep, holding_off_cancel, holding_on_cancel, holding_raised, holding_report)
from stackfs.cext.includes.fuse_wire cimport FUSE_POLL
from stackfs.cext.paths cimport operation_path
from stackfs.cext.ntstatus cimport (
    NTSTATUS, NT_SUCCESS, STATUS_CANCELLED, STATUS_INVALID_HANDLE, STATUS_NOT_SUPPORTED, STATUS_SUCCESS)
from stackfs.cext.process cimport COMM_LENGTH, requestor_comm, requestor_pid
from stackfs.cext.python_contexts cimport Context, context_delete, context_ensure, context_get, context_set
from stackfs.cext.verifier cimport verifier_dead, verifier_on, verifier_whose


from collections import namedtuple
from os import fsdecode, fsencode, getsid


cdef extern from *:
    """
    #include <Python.h>
    #include <string.h>
    static inline _PyManagedBufferObject *stackfs_managed(PyObject *v) { return ((PyMemoryViewObject *)v)->mbuf; }
    static inline void stackfs_forbid(_PyManagedBufferObject *m) { m->flags |= _Py_MANAGED_BUFFER_RELEASED; }
    """
    ctypedef struct _PyManagedBufferObject:
        Py_ssize_t ob_refcnt
        Py_ssize_t exports
        Py_buffer master
    size_t strnlen(const char *text, size_t most)
    _PyManagedBufferObject *stackfs_managed(PyObject *view)
    void stackfs_forbid(_PyManagedBufferObject *managed)


DirectoryEntry = namedtuple("DirectoryEntry", "name inode type offset")
DirectoryEntry.__doc__ = "One name of a listing: name (bytes), inode number, d_type (DT_*), d_off to go on behind it."

# FUSE's request numbers, by the names that logs and the audit trail use.
REQUEST_NAMES = {
    0: "internal", 1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod", 9: "mkdir",
    10: "unlink", 11: "rmdir", 12: "rename", 13: "link", 14: "open", 15: "read", 16: "write", 17: "statfs",
    18: "release", 20: "fsync", 21: "setxattr", 22: "getxattr", 23: "listxattr", 24: "removexattr", 25: "flush",
    26: "init", 27: "opendir", 28: "readdir", 29: "releasedir", 30: "fsyncdir", 31: "getlk", 32: "setlk", 33: "setlkw",
    34: "access", 35: "create", 36: "interrupt", 37: "bmap", 38: "destroy", 39: "ioctl", 40: "poll",
    42: "batch_forget", 43: "fallocate", 44: "readdirplus", 45: "rename2", 46: "lseek", 47: "copy_file_range",
    50: "syncfs", 51: "tmpfile", 52: "statx", 53: "copy_file_range_64",
}

cdef extern from "<fcntl.h>" nogil:
    int F_RDLCK, F_WRLCK, F_UNLCK

cdef enum:
    WRITE_ACCESS = 0x1 << 1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x10000 | 0x40000 | 0x80000


@cython.final
cdef class _Memory:
    """Exports the memory of a parameter; holds, and pins, what owns that memory."""
    cdef void *start
    cdef Py_ssize_t length
    cdef bint writable
    cdef object owner
    cdef Py_buffer pinned

    def __dealloc__(self):
        PyBuffer_Release(&self.pinned)

    cdef bint pin(self, object owner) except -1:
        """False: the memory is not, or not all, this object's."""
        PyObject_GetBuffer(owner, &self.pinned, PyBUF_SIMPLE)
        if <char *>self.start >= <char *>self.pinned.buf and \
                <char *>self.start + self.length <= <char *>self.pinned.buf + self.pinned.len:
            return True
        PyBuffer_Release(&self.pinned)
        return False

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, self.length, not self.writable, flags)


@cython.final
cdef class _Copy:
    """Stands for memory that no Python object owns."""
    cdef void *original
    cdef bytes content
    cdef bint writable

    cdef void write_back(self):
        if self.writable:
            memcpy(self.original, PyBytes_AS_STRING(self.content), len(self.content))


# Managed buffers that somebody still held when their callback had returned: kept until they are let go.
cdef list graveyard = []


cdef class _Grave:
    cdef _PyManagedBufferObject *managed

    cdef bint settled(self):
        if (<PyObject *>self.managed).ob_refcnt > 1:
            return False
        PyBuffer_Release(&self.managed.master)
        Py_DECREF(<object><PyObject *>self.managed)
        return True


cdef void bury(object view):
    cdef _PyManagedBufferObject *managed = stackfs_managed(<PyObject *>view)
    cdef _Grave grave
    try:
        if managed.exports == 1:
            view.release()
            return
    except BufferError:
        pass
    stackfs_forbid(managed)
    grave = _Grave.__new__(_Grave)
    Py_INCREF(<object><PyObject *>managed)
    grave.managed = managed
    graveyard.append(grave)


cdef void sweep():
    """Each grave is one sweeper's: letting a buffer go may run Python code, and so another thread's callback."""
    global graveyard
    cdef list mine = graveyard
    graveyard = []
    for grave in mine:
        if not (<_Grave>grave).settled():
            graveyard.append(grave)


cdef CallbackData callback_data_new(
        FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, object owner, list carried, bint writable):
    cdef CallbackData face = CallbackData.__new__(CallbackData)
    face.data = data
    face.objects = objects
    face.owner = owner
    face.carried = carried
    face.writable = writable
    return face


@cython.freelist(16)
cdef class CallbackData:
    """One operation, as a callback sees it. Sizes are bytes, times nanoseconds; see docs/semantics.md A4."""

    def __init__(self):
        raise TypeError("CallbackData is made by the stack")

    cdef FLT_CALLBACK_DATA *live(self) except NULL:
        if self.data is NULL:
            self.dead(False)
        return self.data

    cdef int dead(self, bint completing) except -1:
        """completing: whoever comes second to complete an operation finds its data dead, and may (A6.16)."""
        if verifier_on:
            verifier_dead(self.owner, completing)
        raise ReferenceError("callback data used after its callback has returned, or after it was completed")

    cdef void commit(self):
        cdef _Copy copy
        if self.copies is not None:
            for copy in self.copies:
                copy.write_back()
        if self.new_entries is not None:
            memcpy(self.data.Iopb.Parameters.Directory.Buffer, PyBytes_AS_STRING(self.new_entries), len(self.new_entries))

    cdef void undo(self):
        if self.size_changed:
            self.data.Iopb.Parameters.QueryFile.Info.stx_size = self.old_size

    cdef void hold(self, FLT_RELATED_OBJECTS *lasting):
        """The callback keeps the operation; what it was given lies on a stack that will be gone."""
        if self.data is not NULL:
            lasting[0] = self.objects[0]
            self.objects = lasting
            self.pended = True

    cdef FLT_CALLBACK_DATA *finish(self, bint post) except NULL:
        """The filter completes the operation: this is dead from here on. The data, for whoever tells the stack."""
        cdef FLT_CALLBACK_DATA *data = self.data
        if data is NULL:
            self.dead(True)
        if (data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION != 0) != post:
            raise ValueError("the operation is on its way " + ("down" if post else "up"))
        if not data.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION:
            raise ValueError("only an IRP can be held and completed")
        if self.queue is not None:
            raise ValueError("the operation is in a cancel-safe queue: it has to be removed first")
        self.commit()
        if data.Flags & <uint32_t>FLTFL_CALLBACK_DATA_DIRTY and self.kept is not None:
            holding_keep(data, self.kept)
        self.pended = True               # completed, which may be before its callback has returned
        self.end()
        return data

    def __dealloc__(self):
        cdef FLT_CALLBACK_DATA *data = self.data
        if data is NULL or not self.pended:
            return
        holding_forgotten(data)
        with nogil:
            holding_raised(data)

    cdef void end(self):
        cdef object whose = self.owner if self.data is NULL else None
        if self.cancellable:
            self.cancellable = False
            if holding_off_cancel(self.data):
                Py_DECREF(self)
            self.on_cancel = self.queue = None
        if verifier_on and self.data is not NULL:
            whose = verifier_whose(self.data, self.objects, self.pended)
        self.pended = False
        self.data = NULL
        self.objects = NULL
        if self.views is not None:
            for view in self.views:
                bury(view)
            self.views = None
        if graveyard:
            sweep()
        if self.borrowed is not None:
            give_back(self.borrowed)
            self.borrowed = None
        self.owner = whose
        self.carried = self.copies = None

    cdef object view(self, void *start, Py_ssize_t length, bint writable):
        cdef _Memory memory = _Memory.__new__(_Memory)
        cdef _Copy copy
        memory.start = start
        memory.length = length
        memory.writable = writable
        if not (self.owner is not None and memory.pin(self.owner)):
            for swapped in (self.carried or []) + (self.kept or []):
                if isinstance(swapped, _Swapped) and memory.pin(swapped):
                    break
            else:
                copy = self.stand_in(start, length, writable)
                memory.start = PyBytes_AS_STRING(copy.content)
                memory.owner = copy
        view = memoryview(memory)
        if self.views is None:
            self.views = []
        self.views.append(view)
        return view

    cdef object stand_in(self, void *start, Py_ssize_t length, bint writable):
        cdef _Copy copy
        if self.copies is None:
            self.copies = []
        for copy in self.copies:
            if copy.original == start and len(copy.content) >= length:
                return copy
        copy = _Copy.__new__(_Copy)
        copy.original = start
        copy.content = PyBytes_FromStringAndSize(NULL, length)     # nobody else has it: it may be written
        copy.writable = writable
        memcpy(PyBytes_AS_STRING(copy.content), start, length)
        self.copies.append(copy)
        return copy

    cdef object keep(self, object thing):
        if self.kept is None:
            self.kept = []
        self.kept.append(thing)
        return thing

    cdef object borrow(self, object context):
        if context is not None:
            if self.borrowed is None:
                self.borrowed = []
            self.borrowed.append(context)
        return context

    cdef int refuse(self, str what) except -1:
        raise AttributeError(f"{what} is not a parameter of {major_name(self.live().Iopb.MajorFunction)}")

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def major(self):
        """The operation: an IRP_MJ_* number."""
        return self.live().Iopb.MajorFunction

    @property
    def minor(self):
        return self.live().Iopb.MinorFunction

    @property
    def flags(self):
        """FLTFL_CALLBACK_DATA_* bits."""
        return self.live().Flags

    @property
    def irp_flags(self):
        """IRP_NOCACHE, IRP_PAGING_IO, ... bits."""
        return self.live().Iopb.IrpFlags

    @property
    def is_irp(self):
        return (self.live().Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION) != 0

    @property
    def is_fast_io(self):
        return (self.live().Flags & FLTFL_CALLBACK_DATA_FAST_IO_OPERATION) != 0

    @property
    def is_fs_filter(self):
        return (self.live().Flags & FLTFL_CALLBACK_DATA_FS_FILTER_OPERATION) != 0

    @property
    def is_synchronous(self):
        """FltIsOperationSynchronous: does whoever asked wait for the outcome? (semantics A6.23)"""
        cdef FLT_CALLBACK_DATA *data = self.live()
        if not data.Flags & FLTFL_CALLBACK_DATA_IRP_OPERATION:
            return True
        if data.Iopb.IrpFlags & IRP_PAGING_IO:
            return data.Iopb.IrpFlags & IRP_SYNCHRONOUS_PAGING_IO != 0
        return not data.Flags & FLTFL_CALLBACK_DATA_GENERATED_IO or data.Iopb.IrpFlags & IRP_SYNCHRONOUS_API != 0

    @property
    def request(self):
        """The VFS request this operation belongs to, by name ("unlink")."""
        return REQUEST_NAMES.get(self.live().RequestOpcode, str(self.data.RequestOpcode))

    @property
    def request_number(self):
        """One number for all operations of one VFS request."""
        return self.live().RequestNumber

    @property
    def principal(self):
        """True for the operation that its request asked for (the SET_INFORMATION of an unlink)."""
        return (self.live().RequestFlags & REQUEST_PRINCIPAL) != 0

    # --- who asks -----------------------------------------------------------------------------------------------

    @property
    def tid(self):
        """Thread id of the requestor; 0: the kernel itself."""
        return self.live().Thread.tid

    @property
    def pid(self):
        """Process id of the requestor (FltGetRequestorProcessId); 0: the kernel itself, or the process is gone."""
        return requestor_pid(self.live().Thread)

    @property
    def session_id(self):
        """The requestor's session (FltGetRequestorSessionId), as getsid(2) numbers it; None: the kernel itself, or gone."""
        cdef uint32_t pid = requestor_pid(self.live().Thread)
        try:
            return getsid(pid) if pid else None
        except ProcessLookupError:
            return None

    @property
    def uid(self):
        return self.live().Thread.uid

    @property
    def gid(self):
        return self.live().Thread.gid

    @property
    def comm(self):
        """Command name of the requesting thread."""
        cdef char name[COMM_LENGTH]
        requestor_comm(self.live().Thread, name)
        return fsdecode(<bytes>name)

    # --- on what ------------------------------------------------------------------------------------------------

    @property
    def path(self):
        """Path from the volume's root ("/a/b"); a deleted file's last name is followed by " (deleted)"."""
        cdef char buffer[4608]
        cdef int length = operation_path(self.live(), self.objects, buffer, sizeof(buffer))
        if length < 0:
            return ""
        return fsdecode(PyBytes_FromStringAndSize(buffer, length))

    @property
    def file(self):
        """The file that the operation is about, for I/O below this instance (B4), and for routines that take a file object: a FileObject,
        alive as long as this is; None: there is none."""
        from stackfs.cext.filter_file import file_of         # built upon this module
        return file_of(self)

    @property
    def directory(self):
        """The directory that the operation's name lies in (of an open file: the one it was opened in), as a FileObject that stays
        good after the callback; None: it has none, being the root."""
        from stackfs.cext.filter_file import directory_of
        return directory_of(self)

    @property
    def is_generated(self):
        """A filter above has started it (FLTFL_CALLBACK_DATA_GENERATED_IO)."""
        return (self.live().Flags & FLTFL_CALLBACK_DATA_GENERATED_IO) != 0

    @property
    def name(self):
        """The name looked up in its directory, as this layer has it (bytes); b"" when the operation goes by handle."""
        cdef FLT_CALLBACK_DATA *data = self.live()
        return PyBytes_FromStringAndSize(data.Iopb.FileName.Buffer, data.Iopb.FileName.Length)

    @name.setter
    def name(self, value):
        set_name(&self.live().Iopb.FileName, self.keep(component(value)))

    @property
    def target_name(self):
        """Rename and link: the new name (bytes)."""
        cdef FLT_CALLBACK_DATA *data = self.live()
        if not has_target(data):
            self.refuse("target_name")
        return PyBytes_FromStringAndSize(data.Iopb.Parameters.SetFile.TargetName.Buffer,
                                         data.Iopb.Parameters.SetFile.TargetName.Length)

    @target_name.setter
    def target_name(self, value):
        if not has_target(self.live()):
            self.refuse("target_name")
        set_name(&self.data.Iopb.Parameters.SetFile.TargetName, self.keep(component(value)))

    # --- create -------------------------------------------------------------------------------------------------

    @property
    def desired_access(self):
        """CREATE: FILE_READ_DATA, FILE_WRITE_DATA, DELETE, ... bits."""
        if not is_create(self.live().Iopb.MajorFunction):
            self.refuse("desired_access")
        return self.data.Iopb.Parameters.Create.DesiredAccess

    @property
    def create_options(self):
        """CREATE: FILE_DIRECTORY_FILE, ... bits. Those for oplocks may be changed: FILE_COMPLETE_IF_OPLOCKED, FILE_OPEN_REQUIRING_OPLOCK
        and FILE_RESERVE_OPFILTER."""
        if not is_create(self.live().Iopb.MajorFunction):
            self.refuse("create_options")
        return self.data.Iopb.Parameters.Create.Options & 0xFFFFFF

    @create_options.setter
    def create_options(self, uint32_t value):
        cdef uint32_t had = self.create_options
        if (had ^ value) & ~<uint32_t>(FILE_COMPLETE_IF_OPLOCKED | FILE_OPEN_REQUIRING_OPLOCK | FILE_RESERVE_OPFILTER):
            raise ValueError("only the options for oplocks may be changed")
        self.data.Iopb.Parameters.Create.Options ^= had ^ value

    @property
    def create_disposition(self):
        """CREATE: FILE_OPEN, FILE_CREATE, FILE_OPEN_IF, FILE_OVERWRITE or FILE_OVERWRITE_IF."""
        if not is_create(self.live().Iopb.MajorFunction):
            self.refuse("create_disposition")
        return self.data.Iopb.Parameters.Create.Options >> 24

    @property
    def open_flags(self):
        """CREATE: the caller's O_* flags."""
        if not is_create(self.live().Iopb.MajorFunction):
            self.refuse("open_flags")
        return self.data.Iopb.Parameters.Create.OpenFlags

    @property
    def wants_write(self):
        """CREATE: would this open change anything: write, append, truncate, create, delete, or change attributes?"""
        cdef FLT_CALLBACK_DATA *data = self.live()
        if not is_create(data.Iopb.MajorFunction):
            self.refuse("wants_write")
        return (data.Iopb.Parameters.Create.DesiredAccess & WRITE_ACCESS) != 0 or \
            data.Iopb.Parameters.Create.Options >> 24 != FILE_OPEN

    # --- read, write --------------------------------------------------------------------------------------------

    @property
    def offset(self):
        """READ, WRITE: byte offset in the file; DIRECTORY_CONTROL: position to go on from."""
        cdef FLT_CALLBACK_DATA *data = self.live()
        if data.Iopb.MajorFunction == IRP_MJ_READ or data.Iopb.MajorFunction == IRP_MJ_WRITE:
            return data.Iopb.Parameters.Read.ByteOffset
        if data.Iopb.MajorFunction == IRP_MJ_DIRECTORY_CONTROL:
            return data.Iopb.Parameters.Directory.Offset
        self.refuse("offset")

    @offset.setter
    def offset(self, int64_t value):
        if self.live().Iopb.MajorFunction != IRP_MJ_READ and self.data.Iopb.MajorFunction != IRP_MJ_WRITE:
            self.refuse("offset")
        self.data.Iopb.Parameters.Read.ByteOffset = value

    @property
    def key(self):
        """READ, WRITE: the key of byte-range locks that a filter gave with its own transfer (FltReadFileEx); else 0."""
        if self.live().Iopb.MajorFunction != IRP_MJ_READ and self.data.Iopb.MajorFunction != IRP_MJ_WRITE:
            self.refuse("key")
        return self.data.Iopb.Parameters.Read.Key

    @property
    def length(self):
        """READ, WRITE: bytes asked for; elsewhere: size of the buffer."""
        cdef Py_ssize_t length = 0
        buffer_of(self.live(), &length)
        return length

    @length.setter
    def length(self, uint32_t value):
        cdef FLT_CALLBACK_DATA *data = self.live()
        if data.Iopb.MajorFunction != IRP_MJ_READ and data.Iopb.MajorFunction != IRP_MJ_WRITE:
            self.refuse("length")
        if value > data.Iopb.Parameters.Read.Length:
            raise ValueError("a callback may shorten a transfer, not lengthen it; swap the buffer instead")
        data.Iopb.Parameters.Read.Length = value

    @property
    def buffer(self):
        """The operation's buffer as a memoryview; None when it has none. After a read: `information` bytes are data."""
        cdef Py_ssize_t length = 0
        cdef void *start = buffer_of(self.live(), &length)
        if start is NULL:
            return None
        return self.view(start, length, self.writable and gives_data(self.data))

    @buffer.setter
    def buffer(self, value):
        """Swap (pre callbacks; READ, WRITE, and the value of an extended attribute): bytes to write, or a writable buffer to read
        into. `set_dirty()` makes it count."""
        cdef FLT_CALLBACK_DATA *data = self.live()
        cdef uint8_t major = data.Iopb.MajorFunction
        cdef Py_buffer *held
        cdef bint attribute = has_attribute(data)
        if major != IRP_MJ_READ and major != IRP_MJ_WRITE and not attribute and not is_notify(data):
            self.refuse("buffer")
        if data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
            raise AttributeError("a buffer is swapped in the pre callback")
        swapped = self.keep(_Swapped(value, gives_data(data)))
        held = &(<_Swapped>swapped).held
        if attribute:
            data.Iopb.Parameters.Ea.Buffer = held.buf
            data.Iopb.Parameters.Ea.MdlAddress = NULL
            data.Iopb.Parameters.Ea.Length = <uint32_t>held.len
            return
        if is_notify(data):
            data.Iopb.Parameters.Directory.Buffer = held.buf
            data.Iopb.Parameters.Directory.Length = <uint32_t>held.len
            return
        data.Iopb.Parameters.Read.Buffer = held.buf
        data.Iopb.Parameters.Read.MdlAddress = NULL
        data.Iopb.Parameters.Read.Length = <uint32_t>held.len

    # --- information --------------------------------------------------------------------------------------------

    @property
    def information_class(self):
        """QUERY_INFORMATION, SET_INFORMATION: which information, as FILE_INFORMATION_CLASS numbers it."""
        cdef uint8_t major = self.live().Iopb.MajorFunction
        if major == IRP_MJ_SET_INFORMATION:
            return self.data.Iopb.Parameters.SetFile.FileInformationClass
        if is_query(major):
            return self.data.Iopb.Parameters.QueryFile.FileInformationClass
        self.refuse("information_class")

    @property
    def end_of_file(self):
        """SET_INFORMATION of FileEndOfFileInformation: the new size."""
        if self.live().Iopb.MajorFunction != IRP_MJ_SET_INFORMATION:
            self.refuse("end_of_file")
        return self.data.Iopb.Parameters.SetFile.EndOfFile

    @end_of_file.setter
    def end_of_file(self, int64_t value):
        if self.live().Iopb.MajorFunction != IRP_MJ_SET_INFORMATION:
            self.refuse("end_of_file")
        self.data.Iopb.Parameters.SetFile.EndOfFile = value

    @property
    def size(self):
        """After a query: the file's size as the layer below gives it. A post callback may set another."""
        if not is_query(self.live().Iopb.MajorFunction) or self.data.Iopb.Parameters.QueryFile.Info is NULL:
            self.refuse("size")
        return self.data.Iopb.Parameters.QueryFile.Info.stx_size

    @size.setter
    def size(self, uint64_t value):
        if not is_query(self.live().Iopb.MajorFunction) or self.data.Iopb.Parameters.QueryFile.Info is NULL:
            self.refuse("size")
        if not self.size_changed:
            self.size_changed = True
            self.old_size = self.data.Iopb.Parameters.QueryFile.Info.stx_size
        self.data.Iopb.Parameters.QueryFile.Info.stx_size = value

    @property
    def mode(self):
        """CREATE: st_mode of what is made; after a query: the file's st_mode; SET_SECURITY: the new mode."""
        cdef uint8_t major = self.live().Iopb.MajorFunction
        if is_create(major):
            return self.data.Iopb.Parameters.Create.Mode
        if is_query(major) and self.data.Iopb.Parameters.QueryFile.Info is not NULL:
            return self.data.Iopb.Parameters.QueryFile.Info.stx_mode
        if major == IRP_MJ_SET_SECURITY and not (self.data.Iopb.Parameters.Security.SecurityInformation & 0x10):
            return self.data.Iopb.Parameters.Security.Mode
        self.refuse("mode")

    @property
    def security_information(self):
        """QUERY_SECURITY, SET_SECURITY: OWNER_, GROUP_, DACL_, LABEL_SECURITY_INFORMATION bits."""
        cdef uint8_t major = self.live().Iopb.MajorFunction
        if major != IRP_MJ_QUERY_SECURITY and major != IRP_MJ_SET_SECURITY:
            self.refuse("security_information")
        return self.data.Iopb.Parameters.Security.SecurityInformation

    @property
    def entries(self):
        """DIRECTORY_CONTROL, post: the names listed, as a list of DirectoryEntry. A post callback may set another list
        (at most as long in bytes as the buffer; keep the offsets, they are how the listing goes on)."""
        cdef FLT_CALLBACK_DATA *data = self.live()
        if data.Iopb.MajorFunction != IRP_MJ_DIRECTORY_CONTROL:
            self.refuse("entries")
        if not data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION or not NT_SUCCESS(data.IoStatus.Status):
            return []
        if self.new_entries is not None:
            return unpack_entries(PyBytes_AS_STRING(self.new_entries), len(self.new_entries))
        return unpack_entries(<char *>data.Iopb.Parameters.Directory.Buffer,
                              min(data.IoStatus.Information, <uint64_t>data.Iopb.Parameters.Directory.Length))

    @entries.setter
    def entries(self, value):
        cdef FLT_CALLBACK_DATA *data = self.live()
        if data.Iopb.MajorFunction != IRP_MJ_DIRECTORY_CONTROL or not data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION:
            self.refuse("entries")
        packed = pack_entries(value)
        if len(packed) > data.Iopb.Parameters.Directory.Length:
            raise ValueError("the new entries are longer than the caller's buffer")
        self.new_entries = packed
        data.IoStatus.Information = len(packed)

    @property
    def ea_name(self):
        """QUERY_EA, SET_EA and the security operations of an xattr: its full name (bytes), None for a list."""
        cdef uint8_t major = self.live().Iopb.MajorFunction
        if major != IRP_MJ_QUERY_EA and major != IRP_MJ_SET_EA and not (
                (major == IRP_MJ_QUERY_SECURITY or major == IRP_MJ_SET_SECURITY)
                and self.data.Iopb.Parameters.Ea.SecurityInformation & LABEL_SECURITY_INFORMATION):
            self.refuse("ea_name")
        if self.data.Iopb.Parameters.Ea.EaName is NULL:
            return None
        return <bytes>self.data.Iopb.Parameters.Ea.EaName

    @property
    def data_only(self):
        """FLUSH_BUFFERS: fdatasync(2), not fsync(2)."""
        if self.live().Iopb.MajorFunction != IRP_MJ_FLUSH_BUFFERS:
            self.refuse("data_only")
        return self.data.Iopb.Parameters.Flush.DataOnly != 0

    @property
    def control_code(self):
        """FILE_SYSTEM_CONTROL, DEVICE_CONTROL, and what is injected with buffers (D20): its number."""
        if not is_control(self.live().Iopb.MajorFunction):
            self.refuse("control_code")
        return self.data.Iopb.Parameters.Control.ControlCode

    @property
    def poll_events(self):
        """FSCTL_STACKFS_POLL: the events asked for (select.POLLIN, ...)."""
        return self.live_poll().Iopb.Parameters.Control.Flags

    @property
    def poll_handle(self):
        """FSCTL_STACKFS_POLL: what Volume.wake_poll() takes."""
        return <uint64_t>self.live_poll().Iopb.Parameters.Control.FileOffset

    cdef FLT_CALLBACK_DATA *live_poll(self) except NULL:
        cdef FLT_CALLBACK_DATA *data = self.live()
        if data.Iopb.MajorFunction != IRP_MJ_FILE_SYSTEM_CONTROL or data.RequestOpcode != FUSE_POLL:
            self.refuse("what was polled for")
        return data

    @property
    def input(self):
        """The same operations, and SET_VOLUME_INFORMATION: what the caller passed in, copied (bytes)."""
        cdef FLT_CALLBACK_DATA *data = self.live()
        if data.Iopb.MajorFunction == IRP_MJ_SET_VOLUME_INFORMATION:
            return PyBytes_FromStringAndSize(<const char *>data.Iopb.Parameters.Volume.Buffer, data.Iopb.Parameters.Volume.Length)
        if not is_control(data.Iopb.MajorFunction):
            self.refuse("input")
        if data.Iopb.Parameters.Control.InputBuffer is NULL:
            return b""
        return PyBytes_FromStringAndSize(<const char *>data.Iopb.Parameters.Control.InputBuffer,
                                         data.Iopb.Parameters.Control.InputBufferLength)

    @property
    def fs_information_class(self):
        """QUERY_VOLUME_INFORMATION, SET_VOLUME_INFORMATION: which information, as FS_INFORMATION_CLASS numbers it."""
        cdef uint8_t major = self.live().Iopb.MajorFunction
        if major != IRP_MJ_QUERY_VOLUME_INFORMATION and major != IRP_MJ_SET_VOLUME_INFORMATION:
            self.refuse("fs_information_class")
        return self.data.Iopb.Parameters.Volume.FsInformationClass

    @property
    def completion_filter(self):
        """DIRECTORY_CONTROL, IRP_MN_NOTIFY_CHANGE_DIRECTORY: the changes wanted, FILE_NOTIFY_CHANGE_* bits."""
        if not is_notify(self.live()):
            self.refuse("completion_filter")
        return self.data.Iopb.Parameters.Directory.CompletionFilter

    @property
    def reparse_point(self):
        """TagData (semantics B5.3), of a file that is open or, in the post of a CREATE that succeeded, just opened: its
        ReparsePoint; None: it has none."""
        file = self.file
        try:
            return None if file is None else file.get_reparse_point()
        except OSError as error:
            if error.status != <uint32_t>STATUS_INVALID_HANDLE:
                raise
        with file.reopen() as opened:    # it has no descriptor
            return opened.get_reparse_point()

    # --- ranges and locks ---------------------------------------------------------------------------------------

    @property
    def range(self):
        """(offset, length) of what is locked (LOCK_CONTROL), reserved (FileAllocationInformation), zeroed
        (FSCTL_SET_ZERO_DATA), copied to (FSCTL_DUPLICATE_EXTENTS_TO_FILE) or asked about (FAST_IO_CHECK_IF_POSSIBLE). A pre
        callback may set another."""
        cdef int64_t *offset
        cdef uint64_t *length
        if not find_range(self.live(), &offset, &length):
            self.refuse("range")
        return offset[0], length[0]

    @range.setter
    def range(self, value):
        cdef int64_t *offset
        cdef uint64_t *length
        cdef int64_t new_offset
        cdef uint64_t new_length
        if not find_range(self.live(), &offset, &length):
            self.refuse("range")
        new_offset, new_length = value
        offset[0] = new_offset
        length[0] = new_length

    @property
    def source_offset(self):
        """FSCTL_DUPLICATE_EXTENTS_TO_FILE: where the copied bytes begin in the source."""
        cdef FLT_CALLBACK_DATA *data = self.live()
        if data.Iopb.MajorFunction != IRP_MJ_FILE_SYSTEM_CONTROL:
            self.refuse("source_offset")
        return data.Iopb.Parameters.Control.SourceFileOffset

    @property
    def exclusive(self):
        """LOCK_CONTROL: a write lock."""
        if self.live().Iopb.MajorFunction != IRP_MJ_LOCK_CONTROL:
            self.refuse("exclusive")
        return self.data.Iopb.Parameters.Lock.ExclusiveLock != 0

    @property
    def fail_immediately(self):
        """LOCK_CONTROL: the caller does not want to wait."""
        if self.live().Iopb.MajorFunction != IRP_MJ_LOCK_CONTROL:
            self.refuse("fail_immediately")
        return self.data.Iopb.Parameters.Lock.FailImmediately != 0

    @property
    def is_flock(self):
        """LOCK_CONTROL: of the open file as a whole (flock(2)), not of bytes."""
        if self.live().Iopb.MajorFunction != IRP_MJ_LOCK_CONTROL:
            self.refuse("is_flock")
        return self.data.Iopb.Parameters.Lock.Flock != 0

    @property
    def found_lock(self):
        """LOCK_CONTROL, IRP_MN_QUERY_LOCK: (offset, length, exclusive, process id) of a lock in the way, or None. Who completes the
        query, or sees it completed, may set it."""
        cdef lock_range_t *found = self.lock_query()
        if found.type == <uint32_t>F_UNLCK:
            return None
        return found.start, found.end - found.start + 1, found.type == <uint32_t>F_WRLCK, found.pid

    @found_lock.setter
    def found_lock(self, value):
        cdef lock_range_t *found = self.lock_query()
        cdef uint64_t offset, length
        if value is None:
            found.type = <uint32_t>F_UNLCK
            return
        offset, length, exclusive, pid = value
        if length == 0 or length - 1 > <uint64_t>0x7FFFFFFFFFFFFFFF - offset:
            raise ValueError("not a range of bytes")
        found.start = offset
        found.end = offset + (length - 1)
        found.type = <uint32_t>(F_WRLCK if exclusive else F_RDLCK)
        found.pid = pid

    cdef lock_range_t *lock_query(self) except NULL:
        cdef FLT_CALLBACK_DATA *data = self.live()
        if data.Iopb.MajorFunction != IRP_MJ_LOCK_CONTROL or data.Iopb.MinorFunction != IRP_MN_QUERY_LOCK or \
                data.Iopb.Parameters.Lock.Found is NULL:
            self.refuse("found_lock")
        return data.Iopb.Parameters.Lock.Found

    @property
    def lock_pid(self):
        """LOCK_CONTROL: the process id that F_GETLK shall show for it."""
        if self.live().Iopb.MajorFunction != IRP_MJ_LOCK_CONTROL:
            self.refuse("lock_pid")
        return self.data.Iopb.Parameters.Lock.ProcessId

    @property
    def lock_owner(self):
        """LOCK_CONTROL, READ, WRITE, FAST_IO_CHECK_IF_POSSIBLE: the owner of locks that the caller is, as a number; 0: none was named."""
        cdef uint8_t major = self.live().Iopb.MajorFunction
        if major == IRP_MJ_READ or major == IRP_MJ_WRITE:
            return self.data.Iopb.Parameters.Read.LockOwner
        if major == IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE:
            return self.data.Iopb.Parameters.FastIoCheckIfPossible.LockOwner
        if major != IRP_MJ_LOCK_CONTROL:
            self.refuse("lock_owner")
        return self.data.Iopb.Parameters.Lock.LockOwner

    # --- what stands beside a request's operations (D19) --------------------------------------------------------

    @property
    def check_for_read(self) -> bool:
        """FAST_IO_CHECK_IF_POSSIBLE: for a read, or a shared lock; `range` says of which bytes."""
        if self.live().Iopb.MajorFunction != IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE:
            self.refuse("check_for_read")
        return self.data.Iopb.Parameters.FastIoCheckIfPossible.CheckForReadOperation != 0

    @property
    def page_protection(self) -> int:
        """ACQUIRE_FOR_SECTION_SYNCHRONIZATION: what a mapping may be used for (PAGE_READONLY, ...)."""
        if self.live().Iopb.MajorFunction != IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION:
            self.refuse("page_protection")
        return self.data.Iopb.Parameters.AcquireForSectionSynchronization.PageProtection

    @property
    def ending_offset(self) -> int:
        """ACQUIRE_FOR_MOD_WRITE, RELEASE_FOR_MOD_WRITE: where the pages end that are written back, in bytes."""
        cdef uint8_t major = self.live().Iopb.MajorFunction
        if major != IRP_MJ_ACQUIRE_FOR_MOD_WRITE and major != IRP_MJ_RELEASE_FOR_MOD_WRITE:
            self.refuse("ending_offset")
        return self.data.Iopb.Parameters.AcquireForModifiedPageWriter.EndingOffset

    # --- names -------------------------------------------------------------------------------------------------

    def name_information(self, uint32_t options=0x101):
        """FltGetFileNameInformation: the file's name, with its parts, as it is called below this instance. By default
        FLT_FILE_NAME_NORMALIZED, FLT_FILE_NAME_QUERY_DEFAULT."""
        from stackfs.cext.python_names import _of_operation             # built upon this module
        return _of_operation(self, options)

    def destination_name_information(self, uint32_t options=0x101):
        """FltGetDestinationFileNameInformation: what a rename or link is about to call the file."""
        from stackfs.cext.python_names import _of_destination           # built upon this module
        if not has_target(self.live()):
            self.refuse("destination_name_information")
        return _of_destination(self, options)

    # --- contexts -----------------------------------------------------------------------------------------------

    def get_context(self, kind):
        """The instance's context of this class: of the open file, the stream, the file, the instance or the volume, as the class
        says; None: there is none. It has a reference until the callback returns; `context.reference()` to keep it longer."""
        self.live()
        return self.borrow(context_get(self.objects.Instance, self.objects.FileObject, kind))

    def ensure_context(self, kind):
        """The same; one is made, kind(), and set if there is none. When two do so at once, both get the one that came first."""
        self.live()
        return self.borrow(context_ensure(self.objects.Instance, self.objects.FileObject, kind))

    def set_context(self, Context context not None, *, bint replace=False):
        """Set it where its class says. If there is one already it stays, or with `replace` goes; returns the one that was there,
        or None. What was not set has gone when nobody else has a reference."""
        self.live()
        return self.borrow(context_set(self.objects.Instance, self.objects.FileObject, context, replace))

    def delete_context(self, kind):
        """Take the instance's context of this class off; it goes when nobody has a reference any more. False: there was none."""
        self.live()
        return context_delete(self.objects.Instance, self.objects.FileObject, kind)

    # --- outcome ------------------------------------------------------------------------------------------------

    @property
    def status(self):
        """IoStatus.Status as an unsigned NTSTATUS. A post callback may set it; so may a pre callback that completes."""
        return <uint32_t>self.live().IoStatus.Status

    @status.setter
    def status(self, uint32_t value):
        self.live().IoStatus.Status = <NTSTATUS>value

    @property
    def information(self):
        """IoStatus.Information: bytes moved, or what the operation defines."""
        return self.live().IoStatus.Information

    @information.setter
    def information(self, uint64_t value):
        self.live().IoStatus.Information = value

    def complete(self, uint32_t status, uint64_t information=0):
        """Set the outcome; `return data.complete(STATUS_ACCESS_DENIED)` ends the operation here (FLT_PREOP_COMPLETE)."""
        self.live().IoStatus.Status = <NTSTATUS>status
        self.data.IoStatus.Information = information
        return FLT_PREOP_COMPLETE

    # --- holding it (A6.14 to A6.18, A8) --------------------------------------------------------------------------

    def complete_pended_pre(self, int status, context=None):
        """FltCompletePendedPreOperation: an operation whose pre callback returned FLT_PREOP_PENDING, or is about to, goes on,
        in this thread, as if the callback had returned `status`: FLT_PREOP_SUCCESS_WITH_CALLBACK (with a completion
        context), ..._NO_CALLBACK, or FLT_PREOP_COMPLETE: `data.complete_pended_pre(data.complete(STATUS_CANCELLED))`.

        ReferenceError: somebody has completed it. ValueError: another status, or not the data of a pre callback's IRP.
        """
        cdef FLT_CALLBACK_DATA *data
        cdef void *given = NULL
        if self.data is NULL:
            self.dead(True)
        if status != FLT_PREOP_SUCCESS_WITH_CALLBACK and status != FLT_PREOP_SUCCESS_NO_CALLBACK and status != FLT_PREOP_COMPLETE:
            raise ValueError(f"a pended pre operation cannot be completed with {status}")
        if context is not None and status == FLT_PREOP_SUCCESS_WITH_CALLBACK and \
                holding_has_post(self.data, self.objects):
            given = <void *>context
        data = self.finish(False)
        if given is not NULL:
            Py_INCREF(context)
        with nogil:
            holding_complete(data, status, given)

    def complete_pended_post(self):
        """FltCompletePendedPostOperation: an operation whose post callback returned FLT_POSTOP_MORE_PROCESSING_REQUIRED, or
        is about to, goes on up, in this thread. ReferenceError: somebody has completed it."""
        cdef FLT_CALLBACK_DATA *data = self.finish(True)
        with nogil:
            holding_complete(data, FLT_POSTOP_FINISHED_PROCESSING, NULL)

    def end_async(self, answer, error=None):
        """What an `async def` callback returned, or the exception it raised: the operation goes on (see InstanceEntry)."""
        cdef FLT_CALLBACK_DATA *data = self.data
        cdef bint post
        cdef int status = FLT_POSTOP_FINISHED_PROCESSING
        if data is NULL:
            self.dead(True)
        post = data.Flags & FLTFL_CALLBACK_DATA_POST_OPERATION != 0
        context = None
        try:
            if error is not None:
                raise error
            if not post:
                status, context = answer if type(answer) is tuple else (answer, None)
                if status == FLT_PREOP_SYNCHRONIZE:
                    status = FLT_PREOP_SUCCESS_WITH_CALLBACK
                self.complete_pended_pre(status, context)
                return
            if answer is not None and answer != FLT_POSTOP_FINISHED_PROCESSING:
                raise ValueError(f"an async post callback cannot return {answer!r}")
        except BaseException as raised:
            if self.data is NULL:        # its own completion went through, and something else raised
                raise
            holding_report(data, self.objects, "post" if post else "pre", raised)
            complete_raised(self)
            return
        self.complete_pended_post()

    @property
    def instance(self):
        """The instance whose callback got it: what callbacks know as `objects`."""
        self.live()
        return holding_instance(self.objects)

    @property
    def irql(self):
        """The level here and now (A6.12): DISPATCH_LEVEL (2) in a post that may come in any thread, else PASSIVE_LEVEL (0)."""
        self.live()
        return holding_irql()

    @property
    def is_canceled(self):
        """FltIsIoCanceled: an INTERRUPT (a signal to the program), or cancel(), has come for it."""
        return holding_is_cancelled(self.live())

    def set_cancel_completion(self, routine not None):
        """FltSetCancelCompletion: `routine(data)` is called once when the operation is cancelled, in whatever thread; the
        operation is then the routine's to complete. To be called before the callback returns FLT_PREOP_PENDING.

        STATUS_SUCCESS; STATUS_CANCELLED: it has been cancelled already, and the routine will not be called;
        STATUS_NOT_SUPPORTED: it is no IRP. ValueError: something else cancels it already.
        """
        cdef NTSTATUS status
        if self.cancellable:
            raise ValueError("the operation has a cancel completion, or is in a cancel-safe queue")
        status = holding_on_cancel(self.live(), python_cancelled, <void *>self)
        if status == STATUS_SUCCESS:
            Py_INCREF(self)
            self.cancellable = True
            self.on_cancel = routine
        return <uint32_t>status

    def clear_cancel_completion(self):
        """FltClearCancelCompletion. STATUS_CANCELLED: the routine has been called, or is about to be: the operation is its."""
        if self.data is NULL or not self.cancellable or self.queue is not None or \
                not holding_off_cancel(self.data):
            return <uint32_t>STATUS_CANCELLED
        self.cancellable = False
        self.on_cancel = None
        Py_DECREF(self)
        return 0

    def cancel(self):
        """FltCancelIo: as the program's INTERRUPT. False: nobody has said how; it is only marked (is_canceled)."""
        cdef FLT_CALLBACK_DATA *data = self.live()
        cdef bint called
        with nogil:
            called = holding_cancel(data)
        return called

    def request_operation_status(self, routine not None, context=None):
        """FltRequestOperationStatusCallback, in a pre callback: routine(objects, iopb, status, context) is called once, when the
        operation has been below: with its status, or STATUS_PENDING where a filter there holds it. iopb: IoParameterBlock.

        STATUS_SUCCESS; STATUS_INVALID_PARAMETER: no pre callback, no IRP, or a CLOSE; STATUS_FLT_DELETING_OBJECT.
        """
        from stackfs.cext.operation_status import request_status
        return request_status(self, routine, context)

    def veto_bypass(self, str reason not None, uint32_t status=STATUS_NOT_SUPPORTED):
        """FltVetoBypassIo: `return data.veto_bypass("why")` in the pre callback of an FSCTL_MANAGE_BYPASS_IO. The open stands, its
        reads and writes come to the stack, and `stackfs status` shows the reason."""
        cdef FLT_CALLBACK_DATA *data = self.live()
        cdef bytes text = reason.encode("utf-8", "replace")
        if data.Iopb.MajorFunction != IRP_MJ_FILE_SYSTEM_CONTROL or \
                data.Iopb.Parameters.Control.ControlCode != FSCTL_MANAGE_BYPASS_IO:
            self.refuse("bypass to veto")
        bypass_veto(self.objects, text)
        return self.complete(status)

    def set_target(self, instance, file):
        """TargetInstance and TargetFileObject (A4.8), in the pre callback of an operation on an open file: it goes on on another volume,
        below this filter's instance there at the same altitude, on a FilterFile which that instance has opened. set_dirty() makes
        it count; another instance or file counts as a status that is not legal (A6.13)."""
        from stackfs.cext.retarget import set_target
        set_target(self, instance.entry, file)

    def reparse(self, path):
        """STATUS_REPARSE (A6.21): `return data.reparse("/a/b")` in the pre callback of a CREATE or QUERY_OPEN. The request begins
        again, at the top of the stack, about what that path leads to, from the volume's root on."""
        from stackfs.cext.reparse import reparse
        return reparse(self, path)

    def reissue(self) -> bool:
        """FltReissueSynchronousIo, in the post callback of a CREATE or of what the pre callback has synchronised: the layers below,
        and the base, do it again, with the parameters as they were, or as this callback has changed them and set_dirty().
        `status` and `information` are the new outcome. False: not legal here (A6.19), and nothing was done."""
        from stackfs.cext.reissue import reissue
        return reissue(self)

    def cancel_open(self) -> bool:
        """FltCancelFileOpen, in the post callback of a CREATE that succeeded: CLEANUP and CLOSE below. Then set `status` to the error
        that the program shall get; what was made stays. False: not legal here (A6.20), and nothing was done."""
        from stackfs.cext.reissue import cancel_open
        return cancel_open(self)

    def set_dirty(self):
        """FltSetCallbackDataDirty: the changes made to the parameters count."""
        FltSetCallbackDataDirty(self.live())

    def clear_dirty(self):
        """FltClearCallbackDataDirty: takes back this callback's own set_dirty()."""
        FltClearCallbackDataDirty(self.live())

    @property
    def is_dirty(self):
        return FltIsCallbackDataDirty(self.live())

    def __repr__(self):
        if self.data is NULL:
            return "<CallbackData, its callback has returned, or it was completed>"
        return f"<CallbackData {major_name(self.major)} {self.path!r} status={self.status:#x}>"


cdef void python_cancelled(void *context) noexcept nogil:
    with gil:
        call_cancel_routine(<PyObject *>context)


cdef void call_cancel_routine(PyObject *context) noexcept:
    cdef CallbackData face = <CallbackData>context       # with a reference; what cancels it gives up its own
    routine = face.on_cancel
    face.cancellable = False
    face.on_cancel = None
    Py_DECREF(face)
    if face.data is NULL:                # completed by somebody who should have called clear_cancel_completion() first
        return
    try:
        routine(face)
    except BaseException as error:
        if face.data is NULL:            # it was completed; there is nothing to undo
            return
        holding_report(face.data, face.objects, "cancel", error)
        complete_raised(face)


cdef void complete_raised(CallbackData face) noexcept:
    cdef FLT_CALLBACK_DATA *data = face.data
    face.undo()
    face.end()
    with nogil:
        holding_raised(data)


cdef class _Swapped:
    """Holds a filter's own buffer while it stands in the parameters."""
    cdef Py_buffer held

    def __cinit__(self, value, bint writable):
        PyObject_GetBuffer(value, &self.held, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)

    def __dealloc__(self):
        PyBuffer_Release(&self.held)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.held.buf, self.held.len, self.held.readonly, flags)


cdef void give_back(list borrowed):
    cdef Context context
    for context in borrowed:
        if context.native is not NULL:   # nobody has released more than was his
            context.release()


cdef bytes component(object value):
    """A file name as bytes; refuses what would leave its directory."""
    cdef bytes name = fsencode(value)
    if not 1 <= len(name) <= 255 or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise ValueError(f"not a file name: {value!r}")
    return name


cdef void set_name(FILE_NAME *target, bytes name):
    target.Buffer = PyBytes_AS_STRING(name)
    target.Length = <uint16_t>len(name)


cdef bint is_notify(const FLT_CALLBACK_DATA *data) noexcept:
    return data.Iopb.MajorFunction == IRP_MJ_DIRECTORY_CONTROL and data.Iopb.MinorFunction == IRP_MN_NOTIFY_CHANGE_DIRECTORY


cdef bint has_target(const FLT_CALLBACK_DATA *data) noexcept:
    cdef uint32_t which = data.Iopb.Parameters.SetFile.FileInformationClass
    return data.Iopb.MajorFunction == IRP_MJ_SET_INFORMATION and (
        which == FileRenameInformation or which == FileRenameInformationEx or which == FileLinkInformation)


cdef bint find_range(FLT_CALLBACK_DATA *data, int64_t **offset, uint64_t **length) noexcept:
    cdef FLT_PARAMETERS *p = &data.Iopb.Parameters
    if data.Iopb.MajorFunction == IRP_MJ_LOCK_CONTROL:
        offset[0] = &p.Lock.ByteOffset
        length[0] = &p.Lock.Length
        return True
    if data.Iopb.MajorFunction == IRP_MJ_SET_INFORMATION and p.SetFile.FileInformationClass == FileAllocationInformation:
        offset[0] = &p.SetFile.AllocationOffset
        length[0] = <uint64_t *>&p.SetFile.AllocationLength
        return True
    if data.Iopb.MajorFunction == IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE:
        offset[0] = &p.FastIoCheckIfPossible.FileOffset
        length[0] = &p.FastIoCheckIfPossible.Length
        return True
    if data.Iopb.MajorFunction == IRP_MJ_FILE_SYSTEM_CONTROL and (
            p.Control.ControlCode == <uint32_t>FSCTL_SET_ZERO_DATA or p.Control.ControlCode == <uint32_t>FSCTL_DUPLICATE_EXTENTS_TO_FILE):
        offset[0] = &p.Control.FileOffset
        length[0] = <uint64_t *>&p.Control.ByteCount
        return True
    return False


cdef bint is_create(uint8_t major) noexcept:
    return major == IRP_MJ_CREATE or major == IRP_MJ_CREATE_NAMED_PIPE or major == IRP_MJ_CREATE_MAILSLOT


cdef bint is_control(uint8_t major) noexcept:
    """It has a control's parameters: controls, and what is injected with buffers (D20)."""
    return major == IRP_MJ_FILE_SYSTEM_CONTROL or major == IRP_MJ_DEVICE_CONTROL or major == IRP_MJ_INTERNAL_DEVICE_CONTROL or \
        major == IRP_MJ_SET_VOLUME_INFORMATION or major == IRP_MJ_SYSTEM_CONTROL or major == IRP_MJ_QUERY_QUOTA or \
        major == IRP_MJ_SET_QUOTA or major == IRP_MJ_PNP


cdef bint has_attribute(const FLT_CALLBACK_DATA *data) noexcept:
    """An extended attribute's value stands in the buffer."""
    cdef uint8_t major = data.Iopb.MajorFunction
    return major == IRP_MJ_QUERY_EA or major == IRP_MJ_SET_EA or (
        (major == IRP_MJ_QUERY_SECURITY or major == IRP_MJ_SET_SECURITY)
        and data.Iopb.Parameters.Ea.SecurityInformation & LABEL_SECURITY_INFORMATION)


cdef bint is_query(uint8_t major) noexcept:
    return major == IRP_MJ_QUERY_INFORMATION or major == IRP_MJ_QUERY_OPEN or major == IRP_MJ_NETWORK_QUERY_OPEN


cdef bint gives_data(const FLT_CALLBACK_DATA *data) noexcept:
    """The operation fills its buffer. (The directory's is filled through `entries`, which keeps its records whole.)"""
    cdef uint8_t major = data.Iopb.MajorFunction
    if is_control(major):
        return data.Iopb.Parameters.Control.OutputBuffer is not NULL
    return major == IRP_MJ_READ or major == IRP_MJ_QUERY_EA or major == IRP_MJ_QUERY_SECURITY or is_notify(data)


cdef void *buffer_of(const FLT_CALLBACK_DATA *data, Py_ssize_t *length) noexcept:
    """What FltDecodeParameters would give: the buffer and its length, or NULL."""
    cdef uint8_t major = data.Iopb.MajorFunction
    cdef const FLT_PARAMETERS *p = <const FLT_PARAMETERS *>&data.Iopb.Parameters
    if major == IRP_MJ_READ or major == IRP_MJ_WRITE:
        length[0] = p.Read.Length
        return p.Read.Buffer
    if major == IRP_MJ_DIRECTORY_CONTROL:
        length[0] = p.Directory.Length
        return p.Directory.Buffer
    if has_attribute(data):
        length[0] = p.Ea.Length
        return p.Ea.Buffer
    if is_control(major):
        if p.Control.OutputBuffer is not NULL:
            length[0] = p.Control.OutputBufferLength
            return p.Control.OutputBuffer
        length[0] = p.Control.InputBufferLength
        return <void *>p.Control.InputBuffer
    return NULL


# linux_dirent64: d_ino u64, d_off i64, d_reclen u16, d_type u8, d_name NUL-terminated; records 8-byte aligned.
cdef list unpack_entries(const char *buffer, uint64_t length):
    cdef uint64_t at = 0
    cdef uint64_t inode
    cdef int64_t offset
    cdef uint16_t record
    entries = []
    while at + 19 < length:
        memcpy(&inode, buffer + at, 8)
        memcpy(&offset, buffer + at + 8, 8)
        memcpy(&record, buffer + at + 16, 2)
        if record < 20 or at + record > length:
            break
        name = PyBytes_FromStringAndSize(buffer + at + 19, <Py_ssize_t>strnlen(buffer + at + 19, record - 19))
        entries.append(DirectoryEntry(name, inode, <uint8_t>buffer[at + 18], offset))
        at += record
    return entries


cdef bytes pack_entries(object entries):
    cdef bytearray out = bytearray()
    for entry in entries:
        name = fsencode(entry.name)
        if name not in (b".", b".."):
            component(name)
        record = (19 + len(name) + 1 + 7) & ~7
        out += (entry.inode.to_bytes(8, "little") + entry.offset.to_bytes(8, "little", signed=True)
                + record.to_bytes(2, "little") + bytes([entry.type]) + name).ljust(record, b"\0")
    return bytes(out)


MAJOR_NAMES = {value: name for name, value in MajorFunction.__members__.items()}


def major_name(int major) -> str:
    """ "IRP_MJ_READ" for 3; the number for what is none."""
    return MAJOR_NAMES.get(major, f"IRP_MJ_{major:#x}")
