"""The bypass lane: which opens the kernel reads and writes by itself, on the backing file (FUSE passthrough).

The kernel's rules, each of which costs open(2) an EIO when it is broken (docs/device.md): all opens of an inode that
live at the same time and use passthrough name the same backing id; beside a passthrough open no open without one may
live, and the other way round. So an inode counts its open files by mode, and the mode of an open is decided and counted
in one step, under one lock, from its answer to its RELEASE:

    on the inode live        an open that may be bypassed      another one
    nothing                  PASSTHROUGH, a new id             plain
    plain opens              plain                             plain
    bypassed opens           PASSTHROUGH, their id             PASSTHROUGH|DIRECT_IO, their id

The last is what an open gets when an instance that sees data has attached while others were bypassed: its reads and
writes come to us, its mappings do not, and what has been bypassed stays so until it is closed. The id is given back when
the last of its opens is released.

An open with O_APPEND that may be bypassed gets it, too: the kernel opens the backing file with the caller's flags, and
would append for ever, also when fcntl(2) has taken O_APPEND away; it tells us of that with each write. It counts as
bypassed, for its mappings are.

Whether anything may be bypassed is `allowed`, which the Filter Manager sets under the same lock before it publishes an
instance: an open that was decided before counts among those that `attach_with_bypassed = refuse` looks at, and one that
is decided after it is not bypassed.

Any thread, without the GIL. The mutex is a leaf; an id is made before it is taken and thrown away if another thread was
faster.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from stackfs.cext.backing cimport backing_t
from stackfs.cext.callback_data cimport FLT_RELATED_OBJECTS, FO_BYPASSED, FO_COUNTED, FO_ON_BACKING_ID, node_t
from stackfs.cext.includes.fuse_wire cimport (
    FOPEN_DIRECT_IO, FOPEN_PASSTHROUGH, FUSE_DEV_IOC_BACKING_CLOSE, FUSE_DEV_IOC_BACKING_OPEN, fuse_backing_map)
from stackfs.cext.impersonation cimport revert_to_self
from stackfs.cext.inode_table cimport node_t
from stackfs.cext.includes.pthread cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock)
from stackfs.cext.stack cimport FLT_INSTANCE, FLT_VOLUME
from stackfs.cext.threads cimport load_int, store_int

cdef extern from "<fcntl.h>" nogil:
    int O_APPEND

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)


cdef bypass_t *bypass_new() noexcept nogil:
    cdef bypass_t *bypass = <bypass_t *>calloc(1, sizeof(bypass_t))
    if bypass is not NULL:
        pthread_mutex_init(&bypass.mutex, NULL)
        bypass.device = -1
        bypass.allowed = 1
    return bypass


cdef void bypass_free(bypass_t *bypass) noexcept nogil:
    pthread_mutex_destroy(&bypass.mutex)
    free(bypass)


cdef bint bypass_possible(const bypass_t *bypass) noexcept nogil:
    return load_int(<int *>&bypass.device) >= 0 and load_int(<int *>&bypass.allowed) and not load_int(<int *>&bypass.refused)


cdef int32_t backing_open(bypass_t *bypass, int device, int fd) noexcept nogil:
    """A backing id, or 0: the kernel refuses, and nothing is tried from then on."""
    cdef fuse_backing_map map
    cdef int id
    revert_to_self()                     # the kernel keeps the rights of the one that asks, for all who share the id
    memset(&map, 0, sizeof(map))
    map.fd = fd
    id = ioctl(device, FUSE_DEV_IOC_BACKING_OPEN, &map)
    if id > 0:
        return id
    store_int(&bypass.refused, errno)
    return 0


cdef void backing_close(int device, int32_t id) noexcept nogil:
    cdef uint32_t number = <uint32_t>id
    while ioctl(device, FUSE_DEV_IOC_BACKING_CLOSE, &number) < 0 and errno == EINTR:
        pass


cdef void bypass_open(bypass_t *bypass, FILE_OBJECT *file, bint wanted, bypass_answer_t *answer) noexcept nogil:
    cdef node_t *node = file.Node
    cdef int device = load_int(&bypass.device)
    cdef int32_t made = 0
    cdef bint first = False
    answer.open_flags = 0
    answer.backing_id = 0
    if wanted and bypass_possible(bypass):
        pthread_mutex_lock(&bypass.mutex)
        first = node.backing_id == 0 and node.plain_opens == 0      # a guess: it may not stay so
        pthread_mutex_unlock(&bypass.mutex)
        if first:
            made = backing_open(bypass, device, file.fd)
    pthread_mutex_lock(&bypass.mutex)
    if node.backing_id == 0 and node.plain_opens == 0 and made and bypass.allowed:
        node.backing_id = made
        made = 0
    if node.backing_id:
        node.backed_opens += 1
        file.Flags |= FO_COUNTED | FO_ON_BACKING_ID
        answer.backing_id = node.backing_id
        answer.open_flags = FOPEN_PASSTHROUGH
        if wanted and bypass.allowed:
            file.Flags |= FO_BYPASSED
            bypass.bypassed += 1
            bypass.granted += 1
        if not file.Flags & FO_BYPASSED or file.OpenFlags & <uint32_t>O_APPEND:
            answer.open_flags |= FOPEN_DIRECT_IO
    else:
        node.plain_opens += 1
        file.Flags |= FO_COUNTED
    pthread_mutex_unlock(&bypass.mutex)
    if made:
        backing_close(device, made)


cdef void bypass_release(bypass_t *bypass, FILE_OBJECT *file) noexcept nogil:
    cdef node_t *node = file.Node
    cdef int32_t last = 0
    if not file.Flags & FO_COUNTED:
        return
    pthread_mutex_lock(&bypass.mutex)
    if file.Flags & FO_ON_BACKING_ID:
        node.backed_opens -= 1
        if node.backed_opens == 0:
            last = node.backing_id
            node.backing_id = 0
        if file.Flags & FO_BYPASSED:
            bypass.bypassed -= 1
    else:
        node.plain_opens -= 1
    file.Flags &= ~<uint32_t>(FO_COUNTED | FO_ON_BACKING_ID | FO_BYPASSED)
    pthread_mutex_unlock(&bypass.mutex)
    if last and load_int(&bypass.device) >= 0:
        backing_close(bypass.device, last)


cdef void bypass_veto(const FLT_RELATED_OBJECTS *objects, const char *reason) noexcept nogil:
    cdef FLT_VOLUME *volume = objects.Volume
    cdef const FLT_INSTANCE *instance = objects.Instance
    cdef bypass_t *bypass = (<backing_t *>volume.backing).bypass
    pthread_mutex_lock(&bypass.mutex)
    bypass.vetoed += 1
    snprintf(bypass.veto, VETO_LENGTH, b"%s: %s", instance.Name, reason)
    pthread_mutex_unlock(&bypass.mutex)
