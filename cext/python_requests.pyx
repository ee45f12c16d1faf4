"""The Python faces of a volume and of a request (requests.pyx): for the IRP lane, the daemon's own requests, and for driving
the stack without a mount.

Volume, Request and Done are used under the GIL, which is given up before anything that may wait. A request is run by one
thread at a time; who has parked it does not touch it until it is woken.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from stackfs.cext.backing cimport backing_free, backing_new, backing_perform, backing_refuse, backing_t
from stackfs.cext.bypass cimport bypass_t
from stackfs.cext.callback_data cimport (
    FSCTL_DISMOUNT_VOLUME, FSCTL_LOCK_VOLUME, FSCTL_UNLOCK_VOLUME, IRP_MJ_ACQUIRE_FOR_CC_FLUSH, IRP_MJ_ACQUIRE_FOR_MOD_WRITE,
    IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE, IRP_MJ_FILE_SYSTEM_CONTROL,
    IRP_MJ_INTERNAL_DEVICE_CONTROL, IRP_MJ_MDL_READ, IRP_MJ_MDL_READ_COMPLETE, IRP_MJ_MDL_WRITE_COMPLETE, IRP_MJ_PNP,
    IRP_MJ_PREPARE_MDL_WRITE, IRP_MJ_QUERY_QUOTA, IRP_MJ_RELEASE_FOR_CC_FLUSH, IRP_MJ_RELEASE_FOR_MOD_WRITE,
    IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_SET_QUOTA, IRP_MJ_SET_VOLUME_INFORMATION, IRP_MJ_SHUTDOWN,
    IRP_MJ_SYSTEM_CONTROL, IRP_MJ_VOLUME_DISMOUNT, IRP_MJ_VOLUME_MOUNT, FLT_INSTANCE, FLT_VOLUME,
    lock_range_t, node_t, statx_t, statx_timestamp)
from stackfs.cext.coherence cimport coherence_stop, coherence_t
from stackfs.cext.handles cimport handle_t
from stackfs.cext.includes.fuse_wire cimport FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FUSE_READ, FUSE_WRITE
from stackfs.cext.includes.pthread cimport (
    pthread_cond_broadcast, pthread_cond_wait, pthread_equal, pthread_mutex_lock, pthread_mutex_unlock, pthread_self)
from stackfs.cext.inode_table cimport inode_table_t, name_t, node_close, node_forget, node_open, ROOT_ID
from stackfs.cext.listing cimport listing_run, listing_t
from stackfs.cext.locks cimport lock_wait_t, locks_restart
from stackfs.cext.notices cimport volume_wake_poll
from stackfs.cext.pending cimport holds_cancel, holds_count, holds_leave, holds_settle, holds_t
from stackfs.cext.requests cimport (
    INJECTED, STEP_END, fuse_in_t, request_abandon, request_free, request_is_held, request_new, request_outermost, request_park,
    request_run, request_wait, step_t, vfs_request_t, volume_interrupt, volume_retry_locks)
from stackfs.cext.retarget cimport retarget_is_legal, retarget_run
from stackfs.cext.stack cimport InstanceEntry, Stack, resume_function
from stackfs.cext.threads cimport load_int, store_int

from stackfs.cext.callback_data import major_name


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/stat.h>
    #include <sys/statfs.h>
    #include <sys/statvfs.h>
    #include <sys/sysmacros.h>
    """
    unsigned S_IFDIR
    ctypedef struct c_fsid "fsid_t":
        pass
    struct c_statfs "statfs":
        long f_type, f_flags
        c_fsid f_fsid
    int fstatfs(int fd, c_statfs *result) nogil
    int ST_RDONLY
    struct c_statvfs "statvfs":
        unsigned long f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_namemax
    uint64_t makedev(unsigned major, unsigned minor) nogil


INJECTABLE = frozenset({
    IRP_MJ_SET_VOLUME_INFORMATION, IRP_MJ_FILE_SYSTEM_CONTROL, IRP_MJ_INTERNAL_DEVICE_CONTROL, IRP_MJ_SHUTDOWN,
    IRP_MJ_SYSTEM_CONTROL, IRP_MJ_QUERY_QUOTA, IRP_MJ_SET_QUOTA, IRP_MJ_PNP, IRP_MJ_VOLUME_DISMOUNT, IRP_MJ_VOLUME_MOUNT,
    IRP_MJ_MDL_WRITE_COMPLETE, IRP_MJ_PREPARE_MDL_WRITE, IRP_MJ_MDL_READ_COMPLETE, IRP_MJ_MDL_READ,
    IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE, IRP_MJ_RELEASE_FOR_CC_FLUSH, IRP_MJ_ACQUIRE_FOR_CC_FLUSH, IRP_MJ_RELEASE_FOR_MOD_WRITE,
    IRP_MJ_ACQUIRE_FOR_MOD_WRITE, IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION, IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION})
"""What Volume.inject() makes: what no VFS request brings, or not as something that it asks for."""
cdef object VOLUME_CONTROLS = (FSCTL_LOCK_VOLUME, FSCTL_UNLOCK_VOLUME, FSCTL_DISMOUNT_VOLUME)


class VfsError(OSError):
    """A request that failed: errno is what a program would see."""


cdef class Volume:
    """A backing directory with a filter stack over it, mounted or not.

    root_fd: an O_PATH descriptor of the backing directory, owned from here on. Time-outs are seconds, and count while
    every instance's answers are cacheable (Stack.names_or_data_filtered). direct_io: no page cache above the stack.
    keep_cache: nothing else changes the backing directory, so an open leaves the page cache as it is. writeback: writes
    stay in it until it writes them back.
    check_permissions (as root): the base acts with each caller's rights; time-outs have to be 0 then.
    """

    def __init__(self, int root_fd, *, double entry_timeout=1.0, double attr_timeout=1.0, bint direct_io=False,
                 bint keep_cache=False, bint writeback=False, unsigned descriptor_limit=4096,
                 bint check_permissions=False):
        cdef backing_t *backing
        self.stack = Stack()
        with nogil:
            backing = backing_new(root_fd, descriptor_limit, check_permissions)
        if backing is NULL:
            raise OSError(errno, "cannot use the backing directory")
        self.stack.volume.backing = backing
        self.stack.volume.nodes = backing.nodes
        self.stack.volume.base = backing_perform
        self.stack.volume.other_base = retarget_run
        self.stack.volume.target_is_legal = retarget_is_legal
        self.stack.volume.entry_timeout = entry_timeout
        self.stack.volume.attr_timeout = attr_timeout
        self.stack.volume.direct_io = direct_io
        self.stack.volume.keep_cache = keep_cache
        self.stack.volume.writeback = writeback

    def close(self):
        """Close every descriptor. No operation may be under way, none may be held, and none may begin."""
        cdef backing_t *backing = <backing_t *>self.stack.volume.backing
        if backing is not NULL:
            if self.stack.volume.holds.count:
                raise RuntimeError("filters hold operations of this volume")
            if backing.coherence is not NULL:
                with nogil:
                    coherence_stop(<coherence_t *>backing.coherence)
            if self.stack.volume.close_sections is not NULL:
                with nogil:
                    self.stack.volume.close_sections(&self.stack.volume)
            if self.stack.volume.close_files is not NULL:
                with nogil:
                    self.stack.volume.close_files(&self.stack.volume)
            with nogil:
                holds_settle(self.stack.volume.holds)
            self.stack.volume.backing = NULL
            self.stack.volume.nodes = NULL
            self.stack.close_contexts()
            with nogil:
                backing_free(backing)

    def __dealloc__(self):
        if self.stack is not None:
            self.close()

    cdef backing_t *open_backing(self) except NULL:
        if self.stack.volume.backing is NULL:
            raise ValueError("the volume is closed")
        return <backing_t *>self.stack.volume.backing

    @property
    def open_files(self):
        """Handles the kernel holds."""
        return self.open_backing().handles.open_count

    @property
    def filesystem(self):
        """The backing filesystem: (type as statfs(2) numbers it, its id, read only?, inode of the backing directory)."""
        cdef backing_t *backing = self.open_backing()
        cdef c_statfs result
        cdef int fd = node_open(backing.nodes, backing.nodes.root)
        cdef int failed = fd
        if fd >= 0:
            failed = -errno if fstatfs(fd, &result) != 0 else 0
            node_close(backing.nodes, backing.nodes.root)
        if failed:
            raise OSError(-failed, "cannot look at the backing directory")
        return (result.f_type & 0xFFFFFFFF, (<char *>&result.f_fsid)[:8], result.f_flags & ST_RDONLY != 0,
                backing.nodes.root.inode)

    @property
    def known_inodes(self):
        """Inodes the kernel knows, the root included."""
        return self.open_backing().nodes.node_count

    @property
    def cached_descriptors(self):
        """O_PATH descriptors kept for reuse."""
        return self.open_backing().nodes.descriptors

    @property
    def awaits(self):
        """Is some callback of an attached instance `async def`?"""
        return load_int(&self.stack.volume.awaits) != 0

    @property
    def bypassed_opens(self):
        """Open files whose reads and writes no filter sees."""
        return self.open_backing().bypass.bypassed

    def allow_bypass(self, bint allowed, *, bint unless_bypassed=False):
        """May opens that begin now be bypassed? Returns how many are; with unless_bypassed, and some are, nothing is changed."""
        cdef bypass_t *bypass = self.open_backing().bypass
        cdef uint64_t bypassed
        pthread_mutex_lock(&bypass.mutex)
        bypassed = bypass.bypassed
        if not (unless_bypassed and bypassed):
            store_int(&bypass.allowed, allowed)
        pthread_mutex_unlock(&bypass.mutex)
        return bypassed

    def refuse(self, bint refuse):
        """Whether the base answers EIO to all but closing and filters' own I/O: a filter that the volume needs is gone, or failed."""
        backing_refuse(self.open_backing(), refuse)

    def bypass_state(self):
        """The bypass lane: negotiated, allowed, refused (the errno with which the kernel did), bypassed, granted, vetoed, veto."""
        cdef bypass_t *bypass = self.open_backing().bypass
        cdef bypass_t copy
        pthread_mutex_lock(&bypass.mutex)
        copy = bypass[0]
        pthread_mutex_unlock(&bypass.mutex)
        return {"negotiated": copy.device >= 0, "allowed": bool(copy.allowed), "refused": copy.refused,
                "bypassed": copy.bypassed, "granted": copy.granted, "vetoed": copy.vetoed,
                "veto": (<bytes>copy.veto).decode("utf-8", "replace")}

    def forget(self, uint64_t nodeid, uint64_t lookups):
        """The kernel gives back that many lookups of a node."""
        cdef inode_table_t *nodes = self.open_backing().nodes
        with nogil:
            node_forget(nodes, nodeid, lookups)

    def wake_poll(self, uint64_t handle):
        """Whoever polls the file of that poll_handle looks again. False: the volume is not mounted, or out of memory."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        cdef int error
        with nogil:
            error = volume_wake_poll(volume, handle)
        return error == 0

    def interrupt(self, uint64_t number) -> bool:
        """INTERRUPT of the request with that number. True: it may wait for a lock, and its next try ends it with EINTR; or a
        filter holds it, and has been told. One made by hand is remembered as interrupted until it is done."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        cdef int found
        with nogil:
            found = volume_interrupt(volume, number)
        return found != 0

    def retry_locks(self) -> int:
        """Those who wait for locks that are held beside the mount try again. How many still wait. Call it every 0.1 s."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        cdef uint32_t count
        with nogil:
            count = volume_retry_locks(volume)
        return count

    def restart_waiting_locks(self):
        """Those who wait for locks take the callback lists that there are now, and let go of older ones."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        with nogil:
            locks_restart((<backing_t *>volume.backing).locks)

    def cancel_held(self, InstanceEntry entry=None) -> int:
        """Cancels what an instance holds (None: what any of them does), as by an INTERRUPT of each. How many it holds then."""
        cdef FLT_VOLUME *volume = &self.stack.volume
        cdef FLT_INSTANCE *instance = NULL if entry is None else &entry.instance
        cdef uint32_t count
        with nogil:
            holds_cancel(volume.holds, 0, instance)
            count = holds_count(volume.holds, instance)
        return count

    def held(self, InstanceEntry entry=None) -> int:
        """How many operations an instance holds, or is about to (None: any of them)."""
        return holds_count(self.stack.volume.holds, NULL if entry is None else &entry.instance)

    @property
    def resuming(self):
        """How many requests filters hold, or threads that have completed them still carry to their end."""
        return self.stack.volume.holds.stopped

    def known(self):
        """What the kernel may have cached: (nodeids with open files, other nodeids, [(parent nodeid, name), ...])."""
        cdef backing_t *backing = self.open_backing()
        cdef snapshot_t taken
        cdef set opened = set()
        cdef list others = []
        cdef list names = []
        cdef uint64_t number
        cdef uint16_t length
        cdef size_t at = 0
        memset(&taken, 0, sizeof(taken))
        with nogil:
            take_snapshot(backing, &taken)
        try:
            if taken.failed:
                raise MemoryError()
            while at < taken.size:       # 'h' nodeid | 'n' nodeid | 'p' parent's nodeid, length, name
                memcpy(&number, taken.bytes + at + 1, 8)
                if taken.bytes[at] == c'h':
                    opened.add(number)
                elif taken.bytes[at] == c'n':
                    if number not in opened:
                        others.append(number)
                else:
                    memcpy(&length, taken.bytes + at + 9, 2)
                    names.append((number, PyBytes_FromStringAndSize(taken.bytes + at + 11, length)))
                    at += <size_t>2 + length
                at += 9
        finally:
            free(taken.bytes)
        return list(opened), others, names

    def inject(self, int major, uint64_t nodeid=ROOT_ID, *, uint64_t fh=0, uint8_t minor=0, uint32_t code=0, bytes input=b"",
               Py_ssize_t output_size=0):
        """A Request of one operation that no VFS request brings by itself (D20), about an open file, a node, or, with the root's
        nodeid, the volume. minor: its minor function. code, input, output_size: for what has buffers. ValueError: another one."""
        cdef Request request
        if major not in INJECTABLE:
            raise ValueError(f"{major_name(major)} comes with a request of a program: make that")
        if major == IRP_MJ_FILE_SYSTEM_CONTROL and code not in VOLUME_CONTROLS:
            raise ValueError(f"control code {code:#x} is not one of the volume's")
        request = self.request(INJECTED, nodeid, input=input, fh=fh, flags=minor, command=code)
        request.pointer.injected[0] = step_t(<uint8_t>major, 1, 0)
        request.pointer.injected[1] = step_t(0, 0, STEP_END)
        if output_size:
            request.allocate(output_size)
        return request

    def request(self, uint32_t opcode, uint64_t nodeid=ROOT_ID, *, bytes name=None, bytes name2=None, buffer=None, bytes input=None,
                uint32_t uid=0, uint32_t gid=0, uint32_t tid=0, bint nowait=False, **arguments):
        """A request made by hand (tests, and the daemon's own): see Request for what it answers.

        arguments: fields of fuse_in_t (fh, offset, size, flags, mode, umask, rdev, valid, nodeid2, ...).
        """
        self.open_backing()
        cdef vfs_request_t *pointer = request_new(&self.stack.volume)
        if pointer is NULL:
            raise MemoryError()
        pointer.nodeid = nodeid
        pointer.opcode = opcode
        pointer.who.uid = uid
        pointer.who.gid = gid
        pointer.who.tid = tid
        pointer.nowait = nowait
        cdef Request request = Request.__new__(Request)
        request.pointer = pointer
        request.volume = self
        if name is not None:
            request.set_name(name)
        if name2 is not None:
            request.set_name2(name2)
        if buffer is not None:
            request.set_buffer(buffer, not isinstance(buffer, bytes))
        if input is not None:
            request.input = input
            pointer.input = PyBytes_AS_STRING(input)
            pointer.input_length = <uint32_t>len(input)
        for key, value in arguments.items():
            set_argument(&pointer.arguments, key, value)
        return request


cdef int set_argument(fuse_in_t *arguments, str key, value) except -1:
    if key == "fh":
        arguments.fh = value
    elif key == "lock_owner":
        arguments.lock_owner = value
    elif key == "offset":
        arguments.offset = value
    elif key == "nodeid2":
        arguments.nodeid2 = value
    elif key == "size":
        arguments.size = value
    elif key == "flags":
        arguments.flags = value
    elif key == "open_flags":
        arguments.open_flags = value
    elif key == "mode":
        arguments.mode = value
    elif key == "umask":
        arguments.umask = value
    elif key == "rdev":
        arguments.rdev = value
    elif key == "fh2":
        arguments.fh2 = value
    elif key == "offset2":
        arguments.offset2 = value
    elif key == "end":
        arguments.end = value
    elif key == "lock_type":
        arguments.lock_type = value
    elif key == "lock_pid":
        arguments.lock_pid = value
    elif key == "events":
        arguments.events = value
    elif key == "command":
        arguments.command = value
    elif key == "valid":
        arguments.valid = value
    elif key == "uid":
        arguments.uid = value
    elif key == "gid":
        arguments.gid = value
    elif key == "atime":
        arguments.atime = value // 1000000000
        arguments.atimensec = value % 1000000000
    elif key == "mtime":
        arguments.mtime = value // 1000000000
        arguments.mtimensec = value % 1000000000
    else:
        raise TypeError(f"a request has no argument {key!r}")
    return 0


# What known() answers, copied under the tables' mutexes: no Python object is made under a mutex, since making one may run
# Python code, which may wait for the same mutex.
cdef struct snapshot_t:
    char *bytes
    size_t size
    size_t room
    int failed


cdef void note(snapshot_t *taken, char kind, uint64_t number, const char *name, uint16_t length) noexcept nogil:
    cdef char *larger
    cdef size_t wanted = taken.size + 11 + length
    if wanted > taken.room:
        larger = <char *>realloc(taken.bytes, wanted * 2 + 4096)
        if larger is NULL:
            taken.failed = 1
            return
        taken.bytes = larger
        taken.room = wanted * 2 + 4096
    taken.bytes[taken.size] = kind
    memcpy(taken.bytes + taken.size + 1, &number, 8)
    taken.size += 9
    if name is not NULL:
        memcpy(taken.bytes + taken.size, &length, 2)
        memcpy(taken.bytes + taken.size + 2, name, length)
        taken.size += 2 + length


cdef void take_snapshot(backing_t *backing, snapshot_t *taken) noexcept nogil:
    cdef inode_table_t *nodes = backing.nodes
    cdef handle_t *handle
    cdef node_t *node
    cdef name_t *name
    cdef uint32_t i
    pthread_mutex_lock(&backing.handles.mutex)
    for i in range(backing.handles.count):
        handle = backing.handles.handles[i]
        if handle.open:
            note(taken, c'h', handle.file.Node.id, NULL, 0)
    pthread_mutex_unlock(&backing.handles.mutex)
    pthread_mutex_lock(&nodes.mutex)
    for i in range(nodes.slots):
        node = &nodes.slabs[i // 1024][i % 1024]
        if not node.live or node.lookups == 0:
            continue
        note(taken, c'n', node.id, NULL, 0)
        name = NULL if node.deleted else node.names
        while name is not NULL:
            note(taken, c'p', name.parent.id, name.bytes, name.length)
            name = name.next
    pthread_mutex_unlock(&nodes.mutex)


@cython.freelist(64)
@cython.no_gc_clear
cdef class Request:
    """One VFS request on the IRP lane, or made by hand. run() until it says True, then read the answer.

    The names and buffers given must not change until it is done. Sizes are bytes, times nanoseconds.
    """

    def __init__(self):
        raise TypeError("a Request comes from the device or from Volume.request()")

    def __dealloc__(self):
        if self.pointer is not NULL:
            if self.volume is not None and self.volume.stack.volume.backing is not NULL:
                if request_is_held(self.pointer) and leave_to_filter(self):
                    return
                if self.pointer.resumable:
                    with nogil:          # given up while it waited for the base
                        request_abandon(self.pointer)
            if self.pointer.listing is not NULL:
                forget_listing(<python_listing_t *>self.pointer.listing)
            request_free(self.pointer)
        if self.held:
            PyBuffer_Release(&self.view)

    cdef int set_name(self, bytes name) except -1:
        if len(name) > 65535:
            raise ValueError("a name is at most 65,535 bytes")
        self.name = name
        self.pointer.name = PyBytes_AS_STRING(name)
        self.pointer.name_length = <uint16_t>len(name)
        return 0

    cdef int set_name2(self, bytes name) except -1:
        if len(name) > 65535:
            raise ValueError("a name is at most 65,535 bytes")
        self.name2 = name
        self.pointer.name2 = PyBytes_AS_STRING(name)
        self.pointer.name2_length = <uint16_t>len(name)
        return 0

    cdef int set_buffer(self, object buffer, bint writable) except -1:
        if self.held:
            self.held = False
            PyBuffer_Release(&self.view)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.held = True
        self.buffer = buffer
        self.pointer.buffer = self.view.buf
        self.pointer.buffer_length = <uint32_t>self.view.len
        self.pointer.operation.buffer_owner = <PyObject *>buffer
        self.pointer.operation.buffer_read_only = not writable
        return 0

    cdef bytes allocate(self, Py_ssize_t size):
        """A bytes object of this length that the request fills; result() cuts it to what was filled."""
        cdef bytes buffer = PyBytes_FromStringAndSize(NULL, size)
        self.buffer = buffer
        self.pointer.buffer = PyBytes_AS_STRING(buffer)
        self.pointer.buffer_length = <uint32_t>size
        self.pointer.operation.buffer_owner = <PyObject *>buffer
        self.pointer.operation.buffer_read_only = False
        return buffer

    # Setting up, for handlers: what pyfuse3 passes and the header does not hold.

    def named(self, bytes name not None, bytes name2=None):
        """The name (and the second one: a rename's or link's new name, a symlink's target). Returns self."""
        self.set_name(name)
        if name2 is not None:
            self.set_name2(name2)
        return self

    def sending(self, buffer):
        """The data of a write or setxattr. Returns self."""
        self.set_buffer(buffer, False)
        return self

    def receiving(self, Py_ssize_t size):
        """Make room for what a read, readlink, getxattr or listxattr gives. Returns self."""
        self.allocate(size)
        return self

    def receiving_as_asked(self):
        """Make room for as much as the request asks for: an attribute's value, or the names of all. Returns self."""
        self.allocate(<Py_ssize_t>self.pointer.arguments.size)
        return self

    # Running

    cdef int enter(self) except -1:
        """Before the GIL is given back; the other end of it is `busy = False`."""
        self.volume.open_backing()
        if self.busy or self.parked:
            raise RuntimeError("a request is run by one thread at a time")
        self.busy = True
        return 0

    cdef int outcome(self) except -1:
        """Raises what a listing's callback raised."""
        cdef python_listing_t *listing = <python_listing_t *>self.pointer.listing
        if self.finished and listing is not NULL and listing.raised is not NULL:
            raised = <object>listing.raised
            forget_listing(listing)
            if raised:
                raise raised[0]
        return 0

    def run(self) -> bool:
        """True: done. False: it has to wait, for the base, a lock or a filter: call wait() in a thread that may, then run()
        again; or, where it needs no thread, park()."""
        cdef int done
        cdef vfs_request_t *pointer = self.pointer
        if self.finished:
            self.outcome()
            return True
        if (pointer.opcode == FUSE_READ or pointer.opcode == FUSE_WRITE) and pointer.arguments.size > pointer.buffer_length:
            raise ValueError("the buffer is shorter than the transfer")
        self.enter()
        with nogil:
            done = run_on(pointer)
        self.busy = False
        self.finished = done != 0
        self.outcome()
        return self.finished

    def wait(self):
        """The waiting part, without the GIL. Only after run() said False. What a filter holds is waited for as long as it
        takes; whoever completes it has then carried it on as far as that went."""
        cdef vfs_request_t *pointer = self.pointer
        cdef holds_t *holds = self.volume.stack.volume.holds
        if self.finished or not (pointer.resumable or pointer.inner is not NULL):
            raise RuntimeError("the request does not wait")
        self.enter()
        if request_is_held(pointer):
            pointer.resumed = 0
            with nogil:
                if request_park(pointer, resumed_in_place):
                    pthread_mutex_lock(&holds.lock)
                    while not pointer.resumed:
                        pthread_cond_wait(&holds.changed, &holds.lock)
                    pthread_mutex_unlock(&holds.lock)
            self.finished = pointer.resumed == 2
        else:
            with nogil:
                request_wait(pointer)
        self.busy = False

    def do(self):
        """Run to the end, waiting in place; raise VfsError when it failed. Returns self."""
        while not self.run():
            self.wait()
        if self.pointer.error:
            import os
            raise VfsError(self.pointer.error, os.strerror(self.pointer.error))
        return self

    @property
    def waits_for_lock(self) -> bool:
        """run() said False because somebody else has the lock: park(), which needs no thread, serves as well as wait()."""
        return self.pointer.waiting.wanted != 0

    @property
    def is_held(self) -> bool:
        """run() said False because a filter holds it: park() serves as well as wait()."""
        return not self.finished and request_is_held(self.pointer)

    def park(self, woken) -> bool:
        """True: woken() will be called once, by any thread, when it is worth while to run() again; whoever completes what a
        filter holds has then carried it on as far as that went without waiting. False: run() again now."""
        cdef vfs_request_t *pointer = self.pointer
        cdef int parked
        self.enter()
        self.busy = False
        pointer.waiting.woken = call_python
        pointer.waiting.context = <PyObject *>self
        self.woken = woken
        pointer.loop = pthread_self()
        self.parked = True
        Py_INCREF(self)                  # whoever wakes it gives it back
        with nogil:
            parked = request_park(pointer, resumed_parked)
        if not parked:
            self.parked = False
            self.woken = None
            Py_DECREF(self)
        return parked != 0

    # Answers

    @property
    def lock(self):
        """GETLK: (type, first byte, last byte, process id) of a lock in the way; type F_UNLCK: none."""
        cdef lock_range_t *lock = &self.pointer.lock
        return lock.type, lock.start, lock.end, lock.pid

    @property
    def error(self):
        """A positive errno; 0: it succeeded."""
        return self.pointer.error

    @property
    def status(self):
        """The NTSTATUS (unsigned) of the operation that failed; 0: none has."""
        return <uint32_t>self.pointer.failed

    @property
    def opcode(self):
        return self.pointer.opcode

    @property
    def number(self):
        """The request's number, as callbacks see it."""
        return self.pointer.unique

    @property
    def nodeid(self):
        """An entry's nodeid; one lookup of it is now the kernel's (or the caller's: Volume.forget)."""
        return self.pointer.out_nodeid

    @property
    def unique(self):
        """The request's number, as its filters see it."""
        return self.pointer.unique

    @property
    def fh(self):
        """An open's handle number."""
        return self.pointer.out_fh

    @property
    def keep_cache(self):
        return (self.pointer.out_open_flags & FOPEN_KEEP_CACHE) != 0

    @property
    def direct_io(self):
        return (self.pointer.out_open_flags & FOPEN_DIRECT_IO) != 0

    @property
    def length(self):
        """Bytes read, written, or needed."""
        return self.pointer.length

    def result(self) -> bytes:
        """What was read into the buffer that receiving() made."""
        cdef bytes buffer = self.buffer
        if <uint64_t>len(buffer) == self.pointer.length:
            return buffer
        return PyBytes_FromStringAndSize(<char *>self.pointer.buffer, <Py_ssize_t>min(self.pointer.length,
                                                                                      <uint64_t>len(buffer)))

    @property
    def stat(self):
        """The attributes as an os.stat_result-like tuple: mode, ino, nlink, uid, gid, rdev, size, blocks, blksize,
        atime_ns, mtime_ns, ctime_ns, btime_ns."""
        cdef statx_t *info = &self.pointer.info
        return (info.stx_mode, info.stx_ino, info.stx_nlink, info.stx_uid, info.stx_gid, device_of(info), info.stx_size,
                info.stx_blocks, info.stx_blksize, nanoseconds(&info.stx_atime), nanoseconds(&info.stx_mtime),
                nanoseconds(&info.stx_ctime), nanoseconds(&info.stx_btime))

    def fill_attributes(self, entry):
        """Sets the attributes of a pyfuse3.EntryAttributes. Returns it."""
        fill(&self.pointer.info, self.pointer.attr_timeout, entry)
        return entry

    def fill_entry(self, entry):
        """The same, with what makes it a directory entry. Returns it."""
        fill(&self.pointer.info, self.pointer.attr_timeout, entry)
        entry.st_ino = self.pointer.out_nodeid
        entry.generation = self.pointer.out_generation
        entry.entry_timeout = self.pointer.entry_timeout
        return entry

    def list_directory(self, emit, make_entry):
        """READDIRPLUS: calls emit(name, entry, next offset) until it says False or the directory ends.

        make_entry() gives an EntryAttributes to fill. Answers as run(), which goes on with it.
        """
        cdef python_listing_t *listing
        self.enter()
        self.busy = False
        if self.pointer.listing is not NULL:
            raise RuntimeError("a request lists once")
        listing = <python_listing_t *>calloc(1, sizeof(python_listing_t))
        if listing is NULL:
            raise MemoryError()
        self.pointer.listing = listing
        listing.listing.has_room = python_has_room
        listing.listing.add = python_add
        listing.listing.plus = True
        for thing in (emit, make_entry, []):
            Py_INCREF(thing)
            if listing.emit is NULL:
                listing.emit = <PyObject *>thing
            elif listing.make_entry is NULL:
                listing.make_entry = <PyObject *>thing
            else:
                listing.raised = <PyObject *>thing
        return self.run()

    def statistics(self):
        """STATFS: bsize, frsize, blocks, bfree, bavail, files, ffree, favail, namemax."""
        cdef c_statvfs *result = <c_statvfs *>self.pointer.buffer
        if self.pointer.buffer_length < sizeof(c_statvfs):
            raise ValueError("call for_statistics() first")
        return (result.f_bsize, result.f_frsize, result.f_blocks, result.f_bfree, result.f_bavail,
                result.f_files, result.f_ffree, result.f_favail, result.f_namemax)

    def for_statistics(self):
        """Make room for statistics(). Returns self."""
        self.allocate(sizeof(c_statvfs))
        return self


cdef void call_python(lock_wait_t *waiting) noexcept nogil:
    with gil:
        wake_python(<PyObject *>waiting.context)


cdef void wake_python(PyObject *context) noexcept:
    cdef Request request = <Request>context
    woken = request.woken
    request.woken = None
    request.parked = False
    Py_DECREF(request)
    try:
        woken()
    except BaseException:
        pass                             # the loop it would have told is gone


cdef int run_on(vfs_request_t *pointer) noexcept nogil:
    """request_run(), or the listing it is."""
    if pointer.listing is not NULL:
        return listing_run(pointer, <listing_t *>pointer.listing)
    return request_run(pointer)


cdef int carry_on(vfs_request_t *pointer, resume_function resumed) noexcept nogil:
    """In the thread that completed it: 1: done. 0: it waits, for the base or a lock. -1: a filter holds it again, and it is
    not to be touched any more."""
    while run_on(pointer) == 0:
        if not request_is_held(pointer):
            return 0
        if request_park(pointer, resumed):
            return -1
    return 1


cdef void resumed_parked(void *at) noexcept nogil:
    """A loop that must not wait for the base waits only where its own thread completed it."""
    cdef vfs_request_t *pointer = request_outermost(at)
    cdef holds_t *holds = pointer.volume.holds
    cdef PyObject *request = <PyObject *>pointer.waiting.context
    cdef int nowait = pointer.nowait
    cdef int done
    pointer.nowait = nowait and pthread_equal(pointer.loop, pthread_self())
    done = carry_on(pointer, resumed_parked)
    if done < 0:
        holds_leave(holds)
        return
    pointer.nowait = nowait
    with gil:
        (<Request>request).finished = done
        holds_leave(holds)
        wake_python(request)


cdef void resumed_in_place(void *at) noexcept nogil:
    cdef vfs_request_t *pointer = request_outermost(at)
    cdef holds_t *holds = pointer.volume.holds
    cdef int done = carry_on(pointer, resumed_in_place)
    pthread_mutex_lock(&holds.lock)
    holds.stopped -= 1
    if done >= 0:
        pointer.resumed = 1 + done
    pthread_cond_broadcast(&holds.changed)
    pthread_mutex_unlock(&holds.lock)


cdef bint leave_to_filter(Request request):
    """Nobody is left that waits for it, but a filter still holds it: the memory it works on lives until it is done.
    False: it has just been completed."""
    cdef list kept = [request.volume, request.name, request.name2, request.buffer, request.input]
    if request.held:
        kept.append(memoryview(request.buffer))          # a bytearray's memory stays where it is
    if request.pointer.listing is not NULL:              # nobody to give entries to
        (<listing_t *>request.pointer.listing).has_room = no_room
    request.pointer.waiting.context = <PyObject *>kept
    Py_INCREF(kept)
    if not request_park(request.pointer, resumed_alone):
        Py_DECREF(kept)
        return False
    if request.held:
        PyBuffer_Release(&request.view)
    return True


cdef void resumed_alone(void *at) noexcept nogil:
    cdef vfs_request_t *pointer = request_outermost(at)
    cdef holds_t *holds = pointer.volume.holds
    cdef PyObject *kept = <PyObject *>pointer.waiting.context
    cdef int done
    pointer.nowait = 0
    done = carry_on(pointer, resumed_alone)
    if done < 0:
        holds_leave(holds)
        return
    if not done:
        request_abandon(pointer)         # it waits for a lock that nobody wants any more
    with gil:
        if pointer.listing is not NULL:
            forget_listing(<python_listing_t *>pointer.listing)
        request_free(pointer)
        holds_leave(holds)
        Py_DECREF(<object>kept)


cdef bint no_room(listing_t *listing, size_t name_length) noexcept nogil:
    return False


cdef void forget_listing(python_listing_t *listing) noexcept:
    Py_XDECREF(listing.emit)
    Py_XDECREF(listing.make_entry)
    Py_XDECREF(listing.raised)
    listing.emit = listing.make_entry = listing.raised = NULL


@cython.freelist(16)
cdef class Done:
    """An awaitable that has its value already: `await Done(value)` never gives the loop back."""
    cdef object value

    def __init__(self, value):
        self.value = value

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration(self.value)


cdef struct python_listing_t:
    listing_t listing                    # first: the listing is the Python one
    PyObject *emit
    PyObject *make_entry
    PyObject *raised                     # a list: what emit or make_entry raised


cdef bint python_has_room(listing_t *listing, size_t name_length) noexcept nogil:
    return True


cdef bint python_add(listing_t *listing, const char *name, size_t length, uint64_t inode, uint8_t type, int64_t following,
                     const vfs_request_t *found) noexcept nogil:
    with gil:
        return emit_entry(<python_listing_t *>listing, name, length, inode, following, found)


cdef bint emit_entry(python_listing_t *listing, const char *name, size_t length, uint64_t inode, int64_t following,
                     const vfs_request_t *found) noexcept:
    try:
        entry = (<object>listing.make_entry)()
        if found is NULL:
            entry.st_ino = inode             # shown only: the kernel counts no lookup of "." and ".."
            entry.st_mode = S_IFDIR
        else:
            fill(&found.info, found.attr_timeout, entry)
            entry.st_ino = found.out_nodeid
            entry.generation = found.out_generation
            entry.entry_timeout = found.entry_timeout
        return (<object>listing.emit)(PyBytes_FromStringAndSize(name, <Py_ssize_t>length), entry, following)
    except BaseException as error:
        (<list>listing.raised).append(error)
        return False


cdef inline object nanoseconds(const statx_timestamp *when):
    return <int64_t>when.tv_sec * <int64_t>1000000000 + when.tv_nsec


cdef inline uint64_t device_of(const statx_t *info) noexcept:
    return makedev(info.stx_rdev_major, info.stx_rdev_minor)


cdef int fill(const statx_t *info, double attr_timeout, entry) except -1:
    entry.st_ino = info.stx_ino
    entry.attr_timeout = attr_timeout
    entry.st_mode = info.stx_mode
    entry.st_nlink = info.stx_nlink
    entry.st_uid = info.stx_uid
    entry.st_gid = info.stx_gid
    entry.st_rdev = device_of(info)
    entry.st_size = info.stx_size
    entry.st_blksize = info.stx_blksize
    entry.st_blocks = info.stx_blocks
    entry.st_atime_ns = nanoseconds(&info.stx_atime)
    entry.st_mtime_ns = nanoseconds(&info.stx_mtime)
    entry.st_ctime_ns = nanoseconds(&info.stx_ctime)
    return 0


cdef Request request_adopt(vfs_request_t *pointer, Volume volume):
    cdef Request request = Request.__new__(Request)
    request.pointer = pointer
    request.volume = volume
    return request
