"""The FUSE wire format: what the kernel's messages hold, checked; and INIT, both ways (other answers: answers.pyx).

Knows the layouts in fuse_wire.h. Everything here is a pure function over one message in memory:
any thread may call it, without the GIL; there is no state but the table, which is written once, at import.

The table says for each operation how long its fixed part is, how many names follow, and what becomes of it. A message
is trusted only as far as wire_check went: the fixed part is there, each name ends with a NUL inside the message, data
is as long as announced, extensions lie behind all that. The kernel sends nothing else; a device that is handed other
bytes answers EIO and goes on.
"""

from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, memmove, memset
from stackfs.cext.includes.fuse_wire cimport *
from stackfs.cext.requests cimport fuse_in_t, vfs_request_t, request_free, request_new

# The longest name the kernel can send: a symlink's target (PATH_MAX). Longer than 255 is the base's to refuse.
cdef enum:
    LONGEST_NAME = 4096

cdef wire_rule_t RULES[WIRE_OPCODES]


cdef void rule(uint32_t opcode, const char *name, size_t fixed, int names, int treatment,
               bint answerless=False, bint cleanup=False) noexcept:
    RULES[opcode] = wire_rule_t(name=name, fixed=<uint16_t>fixed, names=<uint8_t>names, treatment=<uint8_t>treatment,
                                answerless=answerless, cleanup=cleanup)


#    opcode                    name                  fixed part                     names  treatment
rule(FUSE_LOOKUP,              b"LOOKUP",            0,                             1,     WIRE_FORWARD)
rule(FUSE_FORGET,              b"FORGET",            sizeof(fuse_forget_in),        0,     WIRE_FORWARD, True, True)
rule(FUSE_GETATTR,             b"GETATTR",           sizeof(fuse_getattr_in),       0,     WIRE_FORWARD)
rule(FUSE_SETATTR,             b"SETATTR",           sizeof(fuse_setattr_in),       0,     WIRE_FORWARD)
rule(FUSE_READLINK,            b"READLINK",          0,                             0,     WIRE_FORWARD)
rule(FUSE_SYMLINK,             b"SYMLINK",           0,                             2,     WIRE_FORWARD)
rule(FUSE_MKNOD,               b"MKNOD",             sizeof(fuse_mknod_in),         1,     WIRE_FORWARD)
rule(FUSE_MKDIR,               b"MKDIR",             sizeof(fuse_mkdir_in),         1,     WIRE_FORWARD)
rule(FUSE_UNLINK,              b"UNLINK",            0,                             1,     WIRE_FORWARD)
rule(FUSE_RMDIR,               b"RMDIR",             0,                             1,     WIRE_FORWARD)
rule(FUSE_RENAME,              b"RENAME",            sizeof(fuse_rename_in),        2,     WIRE_FORWARD)
rule(FUSE_LINK,                b"LINK",              sizeof(fuse_link_in),          1,     WIRE_FORWARD)
rule(FUSE_OPEN,                b"OPEN",              sizeof(fuse_open_in),          0,     WIRE_FORWARD)
rule(FUSE_READ,                b"READ",              sizeof(fuse_read_in),          0,     WIRE_FORWARD)
rule(FUSE_WRITE,               b"WRITE",             sizeof(fuse_write_in),         0,     WIRE_FORWARD)
rule(FUSE_STATFS,              b"STATFS",            0,                             0,     WIRE_FORWARD)
rule(FUSE_RELEASE,             b"RELEASE",           sizeof(fuse_release_in),       0,     WIRE_FORWARD, False, True)
rule(FUSE_FSYNC,               b"FSYNC",             sizeof(fuse_fsync_in),         0,     WIRE_FORWARD)
rule(FUSE_SETXATTR,            b"SETXATTR",          FUSE_COMPAT_SETXATTR_IN_SIZE,  1,     WIRE_FORWARD)
rule(FUSE_GETXATTR,            b"GETXATTR",          sizeof(fuse_getxattr_in),      1,     WIRE_FORWARD)
rule(FUSE_LISTXATTR,           b"LISTXATTR",         sizeof(fuse_getxattr_in),      0,     WIRE_FORWARD)
rule(FUSE_REMOVEXATTR,         b"REMOVEXATTR",       0,                             1,     WIRE_FORWARD)
rule(FUSE_FLUSH,               b"FLUSH",             sizeof(fuse_flush_in),         0,     WIRE_FORWARD)
rule(FUSE_INIT,                b"INIT",              FUSE_COMPAT_INIT_IN_SIZE,      0,     WIRE_INIT, False, True)
rule(FUSE_OPENDIR,             b"OPENDIR",           sizeof(fuse_open_in),          0,     WIRE_FORWARD)
rule(FUSE_READDIR,             b"READDIR",           sizeof(fuse_read_in),          0,     WIRE_SERVE)
rule(FUSE_RELEASEDIR,          b"RELEASEDIR",        sizeof(fuse_release_in),       0,     WIRE_FORWARD, False, True)
rule(FUSE_FSYNCDIR,            b"FSYNCDIR",          sizeof(fuse_fsync_in),         0,     WIRE_FORWARD)
rule(FUSE_GETLK,               b"GETLK",             sizeof(fuse_lk_in),            0,     WIRE_SERVE)
rule(FUSE_SETLK,               b"SETLK",             sizeof(fuse_lk_in),            0,     WIRE_SERVE)
rule(FUSE_SETLKW,              b"SETLKW",            sizeof(fuse_lk_in),            0,     WIRE_SERVE)
rule(FUSE_ACCESS,              b"ACCESS",            sizeof(fuse_access_in),        0,     WIRE_FORWARD)
rule(FUSE_CREATE,              b"CREATE",            sizeof(fuse_create_in),        1,     WIRE_FORWARD)
rule(FUSE_INTERRUPT,           b"INTERRUPT",         sizeof(fuse_interrupt_in),     0,     WIRE_INTERRUPT, True, True)
rule(FUSE_BMAP,                b"BMAP",              0,                             0,     WIRE_REFUSE)
rule(FUSE_DESTROY,             b"DESTROY",           0,                             0,     WIRE_DESTROY, False, True)
rule(FUSE_IOCTL,               b"IOCTL",             sizeof(fuse_ioctl_in),         0,     WIRE_SERVE)
rule(FUSE_POLL,                b"POLL",              sizeof(fuse_poll_in),          0,     WIRE_FORWARD)
rule(FUSE_NOTIFY_REPLY,        b"NOTIFY_REPLY",      0,                             0,     WIRE_IGNORE, True, True)
rule(FUSE_BATCH_FORGET,        b"BATCH_FORGET",      sizeof(fuse_batch_forget_in),  0,     WIRE_FORWARD, True, True)
rule(FUSE_FALLOCATE,           b"FALLOCATE",         sizeof(fuse_fallocate_in),     0,     WIRE_SERVE)
rule(FUSE_READDIRPLUS,         b"READDIRPLUS",       sizeof(fuse_read_in),          0,     WIRE_FORWARD)
rule(FUSE_RENAME2,             b"RENAME2",           sizeof(fuse_rename2_in),       2,     WIRE_FORWARD)
rule(FUSE_LSEEK,               b"LSEEK",             sizeof(fuse_lseek_in),         0,     WIRE_SERVE)
rule(FUSE_COPY_FILE_RANGE,     b"COPY_FILE_RANGE",   sizeof(fuse_copy_file_range_in), 0,      WIRE_SERVE)
rule(FUSE_SETUPMAPPING,        b"SETUPMAPPING",      0,                             0,     WIRE_REFUSE)
rule(FUSE_REMOVEMAPPING,       b"REMOVEMAPPING",     0,                             0,     WIRE_REFUSE)
rule(FUSE_SYNCFS,              b"SYNCFS",            0,                             0,     WIRE_REFUSE)
rule(FUSE_TMPFILE,             b"TMPFILE",           sizeof(fuse_create_in),        1,     WIRE_SERVE)
rule(FUSE_STATX,               b"STATX",             sizeof(fuse_statx_in),         0,     WIRE_SERVE)
rule(FUSE_COPY_FILE_RANGE_64,  b"COPY_FILE_RANGE_64", sizeof(fuse_copy_file_range_in), 0,     WIRE_SERVE)


cdef const wire_rule_t *wire_rule(uint32_t opcode) noexcept nogil:
    if opcode >= WIRE_OPCODES or RULES[opcode].name == NULL:
        return NULL
    return &RULES[opcode]


cdef int wire_same_handler(uint32_t opcode, uint32_t asked) noexcept nogil:
    """pyfuse3 has one handler for both renames and one for both forgets."""
    return (opcode == asked or opcode == FUSE_RENAME2 and asked == FUSE_RENAME
            or opcode == FUSE_BATCH_FORGET and asked == FUSE_FORGET)


# ---- checking ----

cdef const char *take_name(const char **at, const char *end, uint16_t *length) noexcept nogil:
    """The name at `at`, which is moved behind its NUL; NULL: it does not end before `end`, or is empty or too long."""
    cdef const char *name = at[0]
    cdef const char *nul
    if name >= end:
        return NULL
    nul = <const char *>memchr(name, 0, end - name)
    if nul == NULL or nul == name or nul - name > LONGEST_NAME:
        return NULL
    length[0] = <uint16_t>(nul - name)
    at[0] = nul + 1
    return name


cdef int64_t group_in(const char *at, const char *end) noexcept nogil:
    """The one group id of a SUPP_GROUP extension between `at` and `end`, -1 without one, -2 when malformed."""
    cdef fuse_ext_header extension
    cdef uint32_t count, group
    while end - at >= <ptrdiff_t>sizeof(extension):
        memcpy(&extension, at, sizeof(extension))       # extensions are not aligned
        if extension.size < sizeof(extension) or extension.size > end - at:
            return -2
        if extension.type == FUSE_EXT_GROUPS and extension.size >= sizeof(extension) + 8:
            memcpy(&count, at + sizeof(extension), 4)
            if count >= 1:
                memcpy(&group, at + sizeof(extension) + 4, 4)
                return group
        at += (extension.size + 7) & ~<uint32_t>7
    return -1


cdef int wire_check(char *buffer, size_t length, const wire_limits_t *limits, wire_message_t *message) noexcept nogil:
    cdef fuse_in_header *header = <fuse_in_header *>buffer
    cdef const wire_rule_t *rule
    cdef const char *at
    cdef const char *end
    cdef size_t fixed, extensions
    cdef uint32_t opcode
    memset(message, 0, sizeof(message[0]))
    message.header = header
    message.group = -1
    if length < sizeof(fuse_in_header):
        return EIO
    message.length = <uint32_t>length
    if header.len != length or header.unique == 0:      # no request has the number 0: its answer would be a notification
        return EIO
    opcode = header.opcode
    rule = wire_rule(opcode)
    message.rule = rule
    if rule == NULL:
        return 0                                        # refused, whatever it holds
    message.body = buffer + sizeof(fuse_in_header)
    fixed = rule.fixed
    if opcode == FUSE_SETXATTR and limits.setxattr_ext:
        fixed = sizeof(fuse_setxattr_in)
    extensions = <size_t>header.total_extlen * 8
    if sizeof(fuse_in_header) + fixed + extensions > length:
        return EIO
    at = message.body + fixed
    end = buffer + length - extensions
    if rule.names >= 1:
        message.name = take_name(&at, end, &message.name_length)
        if message.name == NULL:
            return EIO
    if rule.names >= 2:
        message.name2 = take_name(&at, end, &message.name2_length)
        if message.name2 == NULL:
            return EIO
    if extensions:
        message.group = group_in(end, buffer + length)
        if message.group == -2:
            message.group = -1
            return EIO
    return check_sizes(message, limits, end - at)


cdef int check_sizes(const wire_message_t *message, const wire_limits_t *limits, size_t rest) noexcept nogil:
    """What the fixed part announces, against the `rest` bytes behind it and what an answer may carry."""
    cdef uint32_t opcode = message.header.opcode
    cdef const char *body = message.body
    if opcode == FUSE_WRITE:
        if (<fuse_write_in *>body).size > rest or (<fuse_write_in *>body).size > limits.max_write:
            return EIO
    elif opcode == FUSE_SETXATTR:
        if (<fuse_setxattr_in *>body).size > rest:
            return EIO
    elif opcode == FUSE_BATCH_FORGET:
        if <uint64_t>(<fuse_batch_forget_in *>body).count * sizeof(fuse_forget_one) > rest:
            return EIO
    elif opcode == FUSE_READ or opcode == FUSE_READDIR or opcode == FUSE_READDIRPLUS:
        if (<fuse_read_in *>body).size > limits.max_write:
            return EIO
    elif opcode == FUSE_GETXATTR or opcode == FUSE_LISTXATTR:
        if (<fuse_getxattr_in *>body).size > limits.max_write:
            return EIO
    elif opcode == FUSE_IOCTL:
        if (<fuse_ioctl_in *>body).in_size > rest or (<fuse_ioctl_in *>body).out_size > limits.max_write:
            return EIO
    return 0


# ---- decoding ----

cdef void wire_decode(const wire_message_t *message, int setxattr_ext, vfs_request_t *request) noexcept nogil:
    """Fill a zeroed request from a checked message. Its names point into the message.

    Where an operation has two words of flags, `flags` is what the caller gave (open flags) and `open_flags` what the
    kernel adds (read_flags, write_flags, release_flags, FUSE_OPEN_*, setxattr_flags). STATX has its getattr_flags in
    `flags`, as GETATTR, and its sx_flags in `open_flags`.
    FORGET: size is the number of lookups; BATCH_FORGET: the number of nodes. POLL: offset is the poll handle.
    IOCTL: size is the room for the answer's data. Where data comes with it, request.input points into the message.
    """
    cdef const fuse_in_header *header = message.header
    cdef const char *body = message.body
    cdef fuse_in_t *to = &request.arguments
    cdef uint32_t opcode = header.opcode
    request.unique = header.unique
    request.nodeid = header.nodeid
    request.opcode = opcode
    request.who.tid = header.pid
    request.who.uid = header.uid
    request.who.gid = header.gid
    request.who.group = message.group
    request.name = message.name
    request.name2 = message.name2
    request.name_length = message.name_length
    request.name2_length = message.name2_length
    if opcode == FUSE_READ or opcode == FUSE_READDIR or opcode == FUSE_READDIRPLUS:
        to.fh = (<fuse_read_in *>body).fh
        to.offset = (<fuse_read_in *>body).offset
        to.size = (<fuse_read_in *>body).size
        to.lock_owner = (<fuse_read_in *>body).lock_owner
        to.flags = (<fuse_read_in *>body).flags
        to.open_flags = (<fuse_read_in *>body).read_flags
    elif opcode == FUSE_WRITE:
        to.fh = (<fuse_write_in *>body).fh
        to.offset = (<fuse_write_in *>body).offset
        to.size = (<fuse_write_in *>body).size
        to.lock_owner = (<fuse_write_in *>body).lock_owner
        to.flags = (<fuse_write_in *>body).flags
        to.open_flags = (<fuse_write_in *>body).write_flags
    elif opcode == FUSE_GETATTR:
        to.fh = (<fuse_getattr_in *>body).fh
        to.flags = (<fuse_getattr_in *>body).getattr_flags
    elif opcode == FUSE_STATX:
        to.fh = (<fuse_statx_in *>body).fh
        to.flags = (<fuse_statx_in *>body).getattr_flags
        to.open_flags = (<fuse_statx_in *>body).sx_flags
        to.valid = (<fuse_statx_in *>body).sx_mask
    elif opcode == FUSE_SETATTR:
        decode_setattr(<fuse_setattr_in *>body, to)
    elif opcode == FUSE_OPEN or opcode == FUSE_OPENDIR:
        to.flags = (<fuse_open_in *>body).flags
        to.open_flags = (<fuse_open_in *>body).open_flags
    elif opcode == FUSE_CREATE:
        to.flags = (<fuse_create_in *>body).flags
        to.mode = (<fuse_create_in *>body).mode
        to.umask = (<fuse_create_in *>body).umask
        to.open_flags = (<fuse_create_in *>body).open_flags
    elif opcode == FUSE_RELEASE or opcode == FUSE_RELEASEDIR:
        to.fh = (<fuse_release_in *>body).fh
        to.flags = (<fuse_release_in *>body).flags
        to.open_flags = (<fuse_release_in *>body).release_flags
        to.lock_owner = (<fuse_release_in *>body).lock_owner
    elif opcode == FUSE_FLUSH:
        to.fh = (<fuse_flush_in *>body).fh
        to.lock_owner = (<fuse_flush_in *>body).lock_owner
    elif opcode == FUSE_FSYNC or opcode == FUSE_FSYNCDIR:
        to.fh = (<fuse_fsync_in *>body).fh
        to.flags = (<fuse_fsync_in *>body).fsync_flags
    elif opcode == FUSE_FORGET:
        to.size = (<fuse_forget_in *>body).nlookup
    elif opcode == FUSE_BATCH_FORGET:
        to.size = (<fuse_batch_forget_in *>body).count
    elif opcode == FUSE_MKNOD:
        to.mode = (<fuse_mknod_in *>body).mode
        to.rdev = (<fuse_mknod_in *>body).rdev
        to.umask = (<fuse_mknod_in *>body).umask
    elif opcode == FUSE_MKDIR:
        to.mode = (<fuse_mkdir_in *>body).mode
        to.umask = (<fuse_mkdir_in *>body).umask
    elif opcode == FUSE_RENAME:
        to.nodeid2 = (<fuse_rename_in *>body).newdir
    elif opcode == FUSE_RENAME2:
        to.nodeid2 = (<fuse_rename2_in *>body).newdir
        to.flags = (<fuse_rename2_in *>body).flags
    elif opcode == FUSE_LINK:
        to.nodeid2 = (<fuse_link_in *>body).oldnodeid
        request.name2 = message.name                    # the new name, as a rename's
        request.name2_length = message.name_length
        request.name = NULL
        request.name_length = 0
    elif opcode == FUSE_SETXATTR:
        to.size = (<fuse_setxattr_in *>body).size
        to.flags = (<fuse_setxattr_in *>body).flags
        if setxattr_ext:
            to.open_flags = (<fuse_setxattr_in *>body).setxattr_flags
    elif opcode == FUSE_GETXATTR or opcode == FUSE_LISTXATTR:
        to.size = (<fuse_getxattr_in *>body).size
    elif opcode == FUSE_ACCESS:
        to.mode = (<fuse_access_in *>body).mask
    elif opcode == FUSE_POLL:
        to.fh = (<fuse_poll_in *>body).fh
        to.offset = (<fuse_poll_in *>body).kh
        to.flags = (<fuse_poll_in *>body).flags
        to.events = (<fuse_poll_in *>body).events
    else:
        decode_more(message, request)


cdef void decode_more(const wire_message_t *message, vfs_request_t *request) noexcept nogil:
    """What pyfuse3 has no handler for. After each: what is answered behind the header (offsets from there), on success."""
    cdef const char *body = message.body
    cdef fuse_in_t *to = &request.arguments
    cdef uint32_t opcode = message.header.opcode
    if opcode == FUSE_LSEEK:             # fuse_lseek_out: u64 offset 0 = request.length
        to.fh = (<fuse_lseek_in *>body).fh
        to.offset = (<fuse_lseek_in *>body).offset
        to.flags = (<fuse_lseek_in *>body).whence
    elif opcode == FUSE_FALLOCATE:       # nothing
        to.fh = (<fuse_fallocate_in *>body).fh
        to.offset = (<fuse_fallocate_in *>body).offset
        to.size = (<fuse_fallocate_in *>body).length
        to.mode = (<fuse_fallocate_in *>body).mode
    elif opcode == FUSE_COPY_FILE_RANGE or opcode == FUSE_COPY_FILE_RANGE_64:
        # 47: fuse_write_out: u32 size 0 = request.length, u32 padding 4. 64-bit form (53): u64 bytes_copied 0.
        to.fh = (<fuse_copy_file_range_in *>body).fh_in
        to.offset = (<fuse_copy_file_range_in *>body).off_in
        to.nodeid2 = (<fuse_copy_file_range_in *>body).nodeid_out
        to.fh2 = (<fuse_copy_file_range_in *>body).fh_out
        to.offset2 = (<fuse_copy_file_range_in *>body).off_out
        to.size = (<fuse_copy_file_range_in *>body).len
        to.flags = <uint32_t>(<fuse_copy_file_range_in *>body).flags
    elif opcode == FUSE_GETLK or opcode == FUSE_SETLK or opcode == FUSE_SETLKW:
        # GETLK: fuse_lk_out, 24 bytes = request.lock (u64 start 0, u64 end 8, u32 type 16, u32 pid 20). Others: nothing.
        to.fh = (<fuse_lk_in *>body).fh
        to.lock_owner = (<fuse_lk_in *>body).owner
        to.offset = (<fuse_lk_in *>body).lk.start
        to.end = (<fuse_lk_in *>body).lk.end
        to.lock_type = (<fuse_lk_in *>body).lk.type
        to.lock_pid = (<fuse_lk_in *>body).lk.pid
        to.flags = (<fuse_lk_in *>body).lk_flags
    elif opcode == FUSE_IOCTL:
        # fuse_ioctl_out, 16 bytes: i32 result 0 = 0, u32 flags 4 = 0, two zeros; at 16 request.length bytes of request.buffer,
        # for which `size` bytes are to be made room there before it runs.
        to.fh = (<fuse_ioctl_in *>body).fh
        to.flags = (<fuse_ioctl_in *>body).flags
        to.command = (<fuse_ioctl_in *>body).cmd
        to.size = (<fuse_ioctl_in *>body).out_size
        request.input = body + sizeof(fuse_ioctl_in)
        request.input_length = (<fuse_ioctl_in *>body).in_size
    elif opcode == FUSE_TMPFILE:         # as CREATE: fuse_entry_out 0, fuse_open_out 128. The name is "/" and means nothing
        to.flags = (<fuse_create_in *>body).flags
        to.mode = (<fuse_create_in *>body).mode
        to.umask = (<fuse_create_in *>body).umask
        to.open_flags = (<fuse_create_in *>body).open_flags


cdef void decode_setattr(const fuse_setattr_in *body, fuse_in_t *to) noexcept nogil:
    """A SETATTR that sets nothing is what remains of the kernel's own removal of set-id bits, before a write to a bypassed
    file, once it has taken out what HANDLE_KILLPRIV_V2 leaves to us; and of a chown(-1, -1), which clears them as well."""
    to.valid = body.valid if body.valid else FATTR_KILL_SUIDGID
    to.fh = body.fh
    to.size = body.size
    to.lock_owner = body.lock_owner
    to.mode = body.mode
    to.uid = body.uid
    to.gid = body.gid
    to.atime = <int64_t>body.atime
    to.mtime = <int64_t>body.mtime
    to.ctime = <int64_t>body.ctime
    to.atimensec = body.atimensec
    to.mtimensec = body.mtimensec
    to.ctimensec = body.ctimensec


cdef const char *wire_data(const wire_message_t *message, int setxattr_ext) noexcept nogil:
    if message.header.opcode == FUSE_WRITE:
        return message.body + sizeof(fuse_write_in)
    return message.name + message.name_length + 1


cdef char *wire_for_libfuse(const wire_message_t *message, int setxattr_ext, uint32_t *length) noexcept nogil:
    """The message as libfuse shall see it; only SETXATTR changes, and its request must have been decoded before.

    libfuse knows only the short fuse_setxattr_in, and pyfuse3 answers XATTR_CREATE and XATTR_REPLACE by a getxattr of
    its own first, which has no header: without flags it makes one call.
    """
    cdef char *start = <char *>message.header
    cdef size_t gone = sizeof(fuse_setxattr_in) - FUSE_COMPAT_SETXATTR_IN_SIZE
    length[0] = message.length
    if message.header.opcode != FUSE_SETXATTR:
        return start
    (<fuse_setxattr_in *>message.body).flags = 0
    if not setxattr_ext:
        return start
    message.header.len -= <uint32_t>gone
    length[0] -= <uint32_t>gone
    memmove(start + gone, start, sizeof(fuse_in_header) + FUSE_COMPAT_SETXATTR_IN_SIZE)
    return start + gone


# ---- INIT ----

cdef int wire_init_answer(const wire_message_t *message, wire_settings_t *settings,
                          wire_init_answer_t *answer) noexcept nogil:
    """Our own answer to the kernel's INIT: what we want of what it offers.

    0: the kernel is older than 7.31 (Linux 5.2) or lacks READDIRPLUS, without which pyfuse3 does not run. A newer
    major version is answered with ours alone; the kernel then sends a second INIT in it (negotiated stays 0).
    """
    cdef const fuse_init_in *offer = <const fuse_init_in *>message.body
    cdef fuse_init_out *out = &answer.body
    cdef uint64_t offered = offer.flags
    memset(answer, 0, sizeof(answer[0]))
    answer.header.unique = message.header.unique
    answer.header.len = sizeof(answer[0])
    out.major = FUSE_KERNEL_VERSION
    out.minor = FUSE_KERNEL_MINOR_VERSION
    if offer.major > FUSE_KERNEL_VERSION:
        return 1
    if offer.major < FUSE_KERNEL_VERSION or offer.minor < 31 or not offered & FUSE_DO_READDIRPLUS:
        return 0
    if offered & FUSE_INIT_EXT and message.length >= sizeof(fuse_in_header) + sizeof(fuse_init_in):
        offered |= <uint64_t>offer.flags2 << 32
    settings.negotiated = offered & settings.wanted
    settings.kernel_minor = offer.minor
    out.minor = min(offer.minor, FUSE_KERNEL_MINOR_VERSION)
    out.flags = <uint32_t>settings.negotiated
    out.flags2 = <uint32_t>(settings.negotiated >> 32)
    out.max_readahead = offer.max_readahead
    out.max_background = 64
    out.congestion_threshold = 48
    out.time_gran = 1
    if settings.negotiated & FUSE_PASSTHROUGH:
        out.max_stack_depth = 1                         # a backing file on a stacking filesystem is refused: ELOOP
    out.max_write = settings.max_write
    out.max_pages = <uint16_t>(settings.max_write // settings.page_size)
    return 1


cdef void wire_init_for_libfuse(const wire_message_t *message, uint64_t unique,
                                wire_init_request_t *request) noexcept nogil:
    """The INIT that opens libfuse's session: protocol 7.13, before which it had no splice, and what pyfuse3 needs."""
    memset(request, 0, sizeof(request[0]))
    request.header.len = sizeof(request[0])
    request.header.opcode = FUSE_INIT
    request.header.unique = unique
    request.body.major = FUSE_KERNEL_VERSION
    request.body.minor = 13
    request.body.max_readahead = (<const fuse_init_in *>message.body).max_readahead
    request.body.flags = <uint32_t>(FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS
                                    | FUSE_MAX_PAGES)


# ---- for Python ----

def operation_name(opcode: int) -> str:
    """The operation's name as in the FUSE protocol without FUSE_, or "OPCODE_n"."""
    cdef const wire_rule_t *row = wire_rule(opcode) if 0 <= opcode < WIRE_OPCODES else NULL
    return f"OPCODE_{opcode}" if row == NULL else row.name.decode()


def is_refused(opcode: int) -> bool:
    """True: the device answers this operation with an error without showing it to the stack."""
    cdef const wire_rule_t *row = wire_rule(opcode) if 0 <= opcode < WIRE_OPCODES else NULL
    return row == NULL or row.treatment == WIRE_REFUSE


def decode(message: bytes, setxattr_ext: bool = True, max_write: int = 1 << 20) -> dict[str, object]:
    """A message's header and arguments, those that are not 0, by the names of vfs_request_t; ValueError: malformed."""
    cdef wire_message_t checked
    cdef wire_limits_t limits
    cdef vfs_request_t *request
    copy = bytearray(message)
    cdef char *buffer = copy
    limits.max_write = max_write
    limits.setxattr_ext = setxattr_ext
    if wire_check(buffer, len(copy), &limits, &checked):
        raise ValueError("malformed FUSE message")
    if checked.rule == NULL:
        return {"operation": operation_name(checked.header.opcode)}
    request = request_new(NULL)
    if request == NULL:
        raise MemoryError()
    wire_decode(&checked, setxattr_ext, request)
    fields: dict[str, object] = dict(request.arguments)
    fields |= {"unique": request.unique, "nodeid": request.nodeid, "tid": request.who.tid, "uid": request.who.uid}
    fields |= {"gid": request.who.gid}
    fields = {name: value for name, value in fields.items() if value}
    fields |= {"operation": operation_name(request.opcode), "group": request.who.group}
    if request.name != NULL:
        fields["name"] = request.name[:request.name_length]
    if request.name2 != NULL:
        fields["name2"] = request.name2[:request.name2_length]
    request_free(request)
    return fields
