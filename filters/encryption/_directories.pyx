"""Names and directories: see _directories.pxd.

A directory's file lies in it, so that it is never empty below. One that is to go is first moved aside, under a name that
means nothing, loses its file there, and is removed; a crash in between leaves something that fsck removes.
"""

from libc.errno cimport EBADMSG, EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOMEM, ENOTEMPTY, EPERM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen, strncmp

from stackfs.cext.callback_data cimport (
    DACL_SECURITY_INFORMATION, FILE_OBJECT, GROUP_SECURITY_INFORMATION, OWNER_SECURITY_INFORMATION, SECURITY_PARAMETERS, statx_t)
from stackfs.cext.contexts cimport FltReleaseContext
from stackfs.cext.filter_io cimport (
    FltFlushBuffers, FltQueryDirectoryFile, FltQueryInformationFile, FltReadFile, FltSetSecurityObject, FltWriteFile)
from stackfs.cext.filter_names cimport FltClose, FltOpenFile, OBJECT_ATTRIBUTES, filter_delete, filter_query, filter_rename
from stackfs.cext.inode_table cimport LAST_NAME, inode_table_t, name_holder, name_of, node_hold, node_put, node_type
from stackfs.cext.includes.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from stackfs.cext.ntstatus cimport NT_SUCCESS, NTSTATUS, STATUS_NO_MORE_FILES
from stackfs.cext.stack cimport FLT_INSTANCE, FLT_VOLUME  # no-cython-lint: completes the struct
from stackfs.cext.threads cimport count_one
from stackfs.filters.encryption._cipher cimport (
    DIRECTORY_FILE, IV, LONG_NAME, directory_build, directory_check, name_decrypt, name_decrypt_long, name_encrypt,
    name_is_long, place_t, random_bytes)
from stackfs.filters.encryption._streams cimport LONG_NAMES, error_of, long_name_t, open_below, stands_for, stream_of, stream_t

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <linux/fs.h>
    #define FILE_OF_DIRECTORY ".stackfs-directory"
    #define RESERVED ".stackfs-"
    """
    const char *FILE_OF_DIRECTORY
    const char *RESERVED
    int O_RDONLY, O_RDWR, O_CREAT, O_TRUNC, O_DIRECTORY
    unsigned S_IFMT, S_IFDIR
    unsigned RENAME_NOREPLACE

cdef enum:
    RESERVED_LENGTH = 9
    RECORD_HEAD = 19                     # of a linux_dirent64: inode 8, offset 8, length 2, type 1
    LISTING = 32768
    DT_DIR = 4


cdef inline inode_table_t *nodes_of(const mounted_t *mounted) noexcept nogil:
    return <inode_table_t *>mounted.instance.Related.Volume.nodes


cdef inline bint reserved(const char *name, size_t length) noexcept nogil:
    return length >= RESERVED_LENGTH and memcmp(name, RESERVED, RESERVED_LENGTH) == 0


cdef bint means_nothing(const char *name, size_t length) noexcept nogil:
    """What was being written, or moved aside."""
    return reserved(name, length) and length > 4 and memcmp(name + length - 4, b".new", 4) == 0


# Small files ---------------------------------------------------------------------------------------------------------------

cdef void named(OBJECT_ATTRIBUTES *what, FILE_OBJECT *root, node_t *directory, const char *name, size_t length) noexcept nogil:
    stands_for(directory, root)
    memset(what, 0, sizeof(what[0]))
    what.RootDirectory = root
    what.ObjectName = name
    what.ObjectNameLength = length


cdef int read_small(mounted_t *mounted, node_t *directory, const char *name, size_t length, uint8_t *data, size_t room) noexcept nogil:
    """A file of at most room - 1 bytes; how many it has. -EBADMSG: more."""
    cdef FILE_OBJECT root
    cdef FILE_OBJECT *file = NULL
    cdef OBJECT_ATTRIBUTES what
    cdef int64_t at = 0
    cdef uint32_t got = 0
    cdef NTSTATUS status
    named(&what, &root, directory, name, length)
    status = FltOpenFile(mounted.instance, &file, &what, O_RDONLY, 0, NULL)
    if not NT_SUCCESS(status):
        return error_of(status)
    status = FltReadFile(mounted.instance, file, &at, <uint32_t>room, data, 0, &got, NULL, NULL)
    FltClose(mounted.instance, file)
    if not NT_SUCCESS(status):
        return error_of(status)
    return <int>got if got < room else -EBADMSG


cdef int sync_directory(mounted_t *mounted, node_t *directory) noexcept nogil:
    cdef FILE_OBJECT *file = NULL
    cdef int error = open_below(mounted, directory, O_RDONLY | O_DIRECTORY, &file)
    if error == 0:
        error = error_of(FltFlushBuffers(mounted.instance, file, False))
        FltClose(mounted.instance, file)
    return error


cdef int write_small(mounted_t *mounted, node_t *directory, const char *name, const void *data, uint32_t length) noexcept nogil:
    """A new file, on the disk when this returns; it belongs to whom the directory belongs to."""
    cdef FILE_OBJECT root
    cdef FILE_OBJECT *file = NULL
    cdef OBJECT_ATTRIBUTES what
    cdef SECURITY_PARAMETERS security
    cdef statx_t info
    cdef statx_t above
    cdef int64_t at = 0
    cdef uint32_t put = 0
    cdef int error
    named(&what, &root, directory, name, strlen(name))
    error = error_of(FltOpenFile(mounted.instance, &file, &what, O_RDWR | O_CREAT | O_TRUNC, 0o644, NULL))
    if error:
        return error
    error = error_of(FltWriteFile(mounted.instance, file, &at, length, data, 0, &put, NULL, NULL))
    if error == 0 and put != length:
        error = -EIO
    if error == 0 and NT_SUCCESS(FltQueryInformationFile(mounted.instance, file, &info)) and \
            NT_SUCCESS(FltQueryInformationFile(mounted.instance, &root, &above)) and info.stx_uid != above.stx_uid:
        memset(&security, 0, sizeof(security))
        security.SecurityInformation = OWNER_SECURITY_INFORMATION | GROUP_SECURITY_INFORMATION
        security.Uid, security.Gid = above.stx_uid, above.stx_gid
        FltSetSecurityObject(mounted.instance, file, &security)
    error = error or error_of(FltFlushBuffers(mounted.instance, file, False))
    FltClose(mounted.instance, file)
    return error


cdef int move(mounted_t *mounted, node_t *directory, const char *name, const char *to, uint32_t flags) noexcept nogil:
    cdef FILE_OBJECT root, other
    cdef OBJECT_ATTRIBUTES what, target
    named(&what, &root, directory, name, strlen(name))
    named(&target, &other, directory, to, strlen(to))
    return error_of(filter_rename(mounted.instance, &what, &target, flags))


cdef int remove(mounted_t *mounted, node_t *directory, const char *name, bint is_directory) noexcept nogil:
    cdef FILE_OBJECT root
    cdef OBJECT_ATTRIBUTES what
    named(&what, &root, directory, name, strlen(name))
    return error_of(filter_delete(mounted.instance, &what, is_directory))


cdef int replace_small(mounted_t *mounted, node_t *directory, const char *name, const void *data, uint32_t length) noexcept nogil:
    """In its place as a whole."""
    cdef char new[320]
    cdef int error
    snprintf(new, sizeof(new), b"%s.new", name)
    error = write_small(mounted, directory, new, data, length)
    return error or move(mounted, directory, new, name, 0)


# Directories' IVs -----------------------------------------------------------------------------------------------------------

cdef int read_iv(mounted_t *mounted, node_t *directory, uint8_t *iv) noexcept nogil:
    cdef uint8_t data[128]
    cdef char name[256]
    cdef uint8_t above[16]
    cdef place_t place
    cdef node_t *parent = NULL
    cdef int length, _tries
    cdef int error = -EBADMSG
    for _tries in range(2):                           # it may just be moving
        place.parent = mounted.keys.id
        place.stored, place.length = b"", 0
        if directory is not nodes_of(mounted).root:
            place.length = name_of(nodes_of(mounted), directory, 0, name, &parent)
            if parent == NULL:
                return -ENOENT
            error = directory_iv(mounted, parent, above)
            node_put(nodes_of(mounted), parent)
            if error:
                return error
            place.parent, place.stored = above, name
        length = read_small(mounted, directory, FILE_OF_DIRECTORY, strlen(FILE_OF_DIRECTORY), data, sizeof(data))
        if length == -ENOENT:                        # without one it is none of the volume's, or has lost it
            return -ENOENT if directory.deleted else -EBADMSG
        error = length if length < 0 else directory_check(mounted.keys, data, length, &place, iv)
        if error != -EBADMSG:
            break
    return error


cdef int directory_iv(mounted_t *mounted, node_t *directory, uint8_t *iv) noexcept nogil:
    cdef stream_t *stream
    cdef int error = 0
    if mounted.plain_names:
        memcpy(iv, mounted.keys.id, IV)
        return 0
    stream = stream_of(mounted, directory)
    if stream == NULL:
        return -ENOMEM
    pthread_mutex_lock(&stream.mutex)
    if stream.known_iv:
        memcpy(iv, stream.iv, IV)
        pthread_mutex_unlock(&stream.mutex)
        FltReleaseContext(stream)
        return 0
    pthread_mutex_unlock(&stream.mutex)
    error = read_iv(mounted, directory, iv)
    if error == 0:
        know_iv(stream, iv)
    FltReleaseContext(stream)
    return error


cdef void know_iv(stream_t *stream, const uint8_t *iv) noexcept nogil:
    pthread_mutex_lock(&stream.mutex)
    memcpy(stream.iv, iv, IV)
    stream.known_iv = True
    pthread_mutex_unlock(&stream.mutex)


# Names ----------------------------------------------------------------------------------------------------------------------

cdef int store_name(mounted_t *mounted, node_t *directory, const FILE_NAME *plain, stored_name_t *stored) noexcept nogil:
    cdef uint8_t iv[16]
    cdef size_t text_length = 0
    cdef int length
    stored.text_length = 0
    if plain.Length > 255:
        return -ENAMETOOLONG
    if mounted.plain_names:
        if reserved(plain.Buffer, plain.Length):
            return -EPERM
        memcpy(stored.name, plain.Buffer, plain.Length)
        stored.name[plain.Length] = 0
        stored.length = plain.Length
        return 0
    length = directory_iv(mounted, directory, iv)
    if length < 0:
        return length
    length = name_encrypt(mounted.keys, iv, plain.Buffer, plain.Length, stored.name, stored.text, &text_length)
    if length < 0:
        return length
    stored.length = <uint16_t>length
    stored.text_length = <uint16_t>text_length
    if text_length:
        remember(mounted, stored.name, length, plain.Buffer, plain.Length)
    return 0


cdef inline long_name_t *long_name_at(mounted_t *mounted, const char *stored, size_t length) noexcept nogil:
    cdef uint32_t hashed
    memcpy(&hashed, stored + length - sizeof(hashed), sizeof(hashed))
    return &mounted.long_names[(hashed ^ hashed >> 8 ^ hashed >> 16) % LONG_NAMES]


cdef void remember(mounted_t *mounted, const char *stored, size_t length, const char *plain, size_t plain_length) noexcept nogil:
    cdef long_name_t *one = long_name_at(mounted, stored, length)
    pthread_mutex_lock(&mounted.mutex)
    memcpy(one.stored, stored, length)
    one.stored[length] = 0
    memcpy(one.plain, plain, plain_length)
    one.plain[plain_length] = 0
    one.length = <uint16_t>plain_length
    pthread_mutex_unlock(&mounted.mutex)


cdef int remembered(mounted_t *mounted, const char *stored, size_t length, char *plain) noexcept nogil:
    """0: it is not."""
    cdef long_name_t *one = long_name_at(mounted, stored, length)
    cdef int got = 0
    pthread_mutex_lock(&mounted.mutex)
    if one.stored[length] == 0 and memcmp(one.stored, stored, length) == 0:
        memcpy(plain, one.plain, <size_t>one.length + 1)
        got = one.length
    pthread_mutex_unlock(&mounted.mutex)
    return got


cdef int name_file(const char *name, size_t length, char *file) noexcept nogil:
    return snprintf(file, 300, b"%.*s.name", <int>length, name)


cdef int show_name(mounted_t *mounted, node_t *directory, const char *stored, size_t length, bint known, char *plain) noexcept nogil:
    cdef uint8_t iv[16]
    cdef uint8_t text[512]
    cdef char file[300]
    cdef int got
    if mounted.plain_names:
        if length > 255 or reserved(stored, length):
            return -ENOENT
        memcpy(plain, stored, length)
        plain[length] = 0
        return <int>length
    got = directory_iv(mounted, directory, iv)
    if got < 0:
        return got
    if not name_is_long(stored, length):
        return name_decrypt(mounted.keys, iv, stored, length, plain)
    if known:
        got = remembered(mounted, stored, length, plain)
        if got:
            return got
    got = name_file(stored, length, file)
    got = read_small(mounted, directory, file, got, text, LONG_NAME + 1)
    if got >= 0:
        got = name_decrypt_long(mounted.keys, iv, stored, length, text, got, plain)
    if got > 0:
        remember(mounted, stored, length, plain, got)
    return got


cdef bint put_component(char *path, int *at, const char *name, int length) noexcept nogil:
    if at[0] < length + 1:
        return False
    at[0] -= length
    memcpy(path + at[0], name, length)
    at[0] -= 1
    path[at[0]] = c'/'
    return True


cdef int show_path(mounted_t *mounted, node_t *directory, const char *last, size_t last_length, char *path, int size) noexcept nogil:
    cdef inode_table_t *nodes = nodes_of(mounted)
    cdef node_t *parent = NULL
    cdef char stored[256]
    cdef char plain[256]
    cdef int at = size
    cdef int got
    cdef size_t length = last_length
    cdef bint fits = True
    memcpy(stored, last, last_length)
    node_hold(nodes, directory)
    while True:
        got = show_name(mounted, directory, stored, length, True, plain)
        if got > 0:
            fits = put_component(path, &at, plain, got)
        else:
            fits = put_component(path, &at, stored, <int>length)
        if not fits or directory is nodes.root:
            break
        length = name_of(nodes, directory, LAST_NAME, stored, &parent)
        node_put(nodes, directory)
        directory = parent
        if directory == NULL:
            break
    if directory != NULL:
        node_put(nodes, directory)
    return at if fits else -ENAMETOOLONG


cdef int long_name_begin(mounted_t *mounted, node_t *directory, const stored_name_t *stored, bint *made) noexcept nogil:
    cdef uint8_t there[512]
    cdef char file[300]
    cdef int got
    made[0] = False
    if stored.text_length == 0:
        return 0
    got = name_file(stored.name, stored.length, file)
    got = read_small(mounted, directory, file, got, there, sizeof(there))
    if got == stored.text_length and memcmp(there, stored.text, got) == 0:
        return 0
    made[0] = True
    got = replace_small(mounted, directory, file, stored.text, stored.text_length)
    return got or sync_directory(mounted, directory)     # a file system may bring the file that it names to the disk first


cdef void long_name_end(mounted_t *mounted, node_t *directory, const stored_name_t *stored) noexcept nogil:
    cdef char file[300]
    if stored.text_length:
        name_file(stored.name, stored.length, file)
        remove(mounted, directory, file, False)


cdef int show_listed(mounted_t *mounted, node_t *directory, const char *stored, size_t length, char *plain) noexcept nogil:
    """show_name() of what has just been listed. -ENOENT: it has gone since; -EBADMSG: it is none of the volume's.

    A long name's side file goes after the name: where that is there, it may only just have come back."""
    cdef FILE_OBJECT root
    cdef OBJECT_ATTRIBUTES what
    cdef statx_t info
    cdef int got, _tries
    for _tries in range(3):
        got = show_name(mounted, directory, stored, length, False, plain)
        if got > 0:
            return got
        if got != -ENOENT or mounted.plain_names:
            break
        named(&what, &root, directory, stored, length)
        if error_of(filter_query(mounted.instance, &what, &info)) == -ENOENT:
            return -ENOENT
    return -EBADMSG


cdef int64_t show_entries(mounted_t *mounted, node_t *directory, char *records, int64_t length, uint32_t room) noexcept nogil:
    """In place. Where plain names are longer than stored ones, as those of long names are, what does not fit is listed next time."""
    cdef char plain[256]
    cdef char *source = <char *>malloc(length)
    cdef const char *record
    cdef const char *name
    cdef uint16_t size, needed
    cdef int64_t at = 0, put = 0, shown
    cdef uint8_t iv[16]
    cdef int got = -ENOMEM if source == NULL else directory_iv(mounted, directory, iv)
    if got < 0:
        free(source)
        return got
    memcpy(source, records, length)
    while at + RECORD_HEAD < length:
        record = source + at
        memcpy(&size, record + 16, 2)
        if size <= RECORD_HEAD or at + size > length:
            break
        at += size
        name = record + RECORD_HEAD
        shown = <int64_t>strlen(name)
        if name[0] == c'.' and (shown == 1 or (shown == 2 and name[1] == c'.')):
            memcpy(plain, name, shown + 1)
            got = <int>shown
        elif (reserved(name, shown) and not name_is_long(name, shown)):
            continue
        else:
            got = show_listed(mounted, directory, name, shown, plain)
            if got == -EBADMSG:
                count_one(&mounted.foreign)
            if got < 0:
                continue
        needed = <uint16_t>((RECORD_HEAD + got + 1 + 7) & ~7)
        if put + needed > room:
            if put == 0:
                put = -EINVAL
            break
        memset(records + put + needed - 8, 0, 8)
        memcpy(records + put, record, RECORD_HEAD)
        memcpy(records + put + 16, &needed, 2)
        memcpy(records + put + RECORD_HEAD, plain, got + 1)
        put += needed
    free(source)
    return put


# Making, moving, removing directories ------------------------------------------------------------------------------------------

cdef int passing_name(stored_name_t *stored) noexcept nogil:
    cdef uint8_t number[8]
    cdef uint64_t value
    cdef int error = random_bytes(number, sizeof(number))
    memcpy(&value, number, sizeof(value))
    stored.text_length = 0
    stored.length = <uint16_t>snprintf(stored.name, sizeof(stored.name), b".stackfs-%016llx.new", <unsigned long long>value)
    return error


cdef int place_of(mounted_t *mounted, node_t *parent, const stored_name_t *stored, uint8_t *iv, place_t *place) noexcept nogil:
    place.parent, place.stored, place.length = iv, stored.name, stored.length
    return directory_iv(mounted, parent, iv)


cdef int write_places(mounted_t *mounted, node_t *directory, const uint8_t *iv, const place_t *first, const place_t *second) noexcept nogil:
    cdef uint8_t data[96]
    cdef int error = directory_build(mounted.keys, iv, first, second, data)
    error = error or replace_small(mounted, directory, FILE_OF_DIRECTORY, data, DIRECTORY_FILE)
    return error or sync_directory(mounted, directory)


cdef int without_bits(mounted_t *mounted, node_t *directory, uint32_t bits) noexcept nogil:
    cdef FILE_OBJECT itself
    cdef SECURITY_PARAMETERS security
    cdef statx_t info
    cdef int error
    if bits == 0:
        return 0
    stands_for(directory, &itself)
    error = error_of(FltQueryInformationFile(mounted.instance, &itself, &info))
    memset(&security, 0, sizeof(security))
    security.SecurityInformation = DACL_SECURITY_INFORMATION
    security.Mode = info.stx_mode & 0o7777 & ~bits
    return error or error_of(FltSetSecurityObject(mounted.instance, &itself, &security))


cdef int directory_made(mounted_t *mounted, node_t *parent, const stored_name_t *passing, const stored_name_t *stored,
                        node_t *directory, uint32_t missing) noexcept nogil:
    cdef uint8_t iv[16]
    cdef uint8_t above[16]
    cdef uint8_t data[96]
    cdef place_t place
    cdef stream_t *stream
    cdef int error = place_of(mounted, parent, stored, above, &place)
    error = error or random_bytes(iv, IV)
    error = error or directory_build(mounted.keys, iv, &place, NULL, data)
    error = error or write_small(mounted, directory, FILE_OF_DIRECTORY, data, DIRECTORY_FILE)
    error = error or sync_directory(mounted, directory)
    error = error or without_bits(mounted, directory, missing)
    error = error or move(mounted, parent, passing.name, stored.name, RENAME_NOREPLACE)
    if error:
        remove(mounted, directory, FILE_OF_DIRECTORY, False)
        remove(mounted, parent, passing.name, True)
        return error
    stream = stream_of(mounted, directory)
    if stream != NULL:
        know_iv(stream, iv)
        FltReleaseContext(stream)
    return 0


cdef int look_through(mounted_t *mounted, node_t *directory, bint removes) noexcept nogil:
    """Is it empty, but for what the volume keeps there? `removes`: it is; takes away what means nothing any more."""
    cdef FILE_OBJECT *file = NULL
    cdef char *records
    cdef const char *name
    cdef uint32_t length = 0, at
    cdef uint16_t size
    cdef bint restart = True
    cdef NTSTATUS status
    cdef size_t name_length
    cdef int error = open_below(mounted, directory, O_RDONLY | O_DIRECTORY, &file)
    if error:
        return error
    records = <char *>malloc(LISTING)
    if records == NULL:
        error = -ENOMEM
    while error == 0:
        status = FltQueryDirectoryFile(mounted.instance, file, records, LISTING, restart, &length)
        restart = False
        if status == STATUS_NO_MORE_FILES:
            break
        error = error_of(status)
        at = 0
        while error == 0 and at + RECORD_HEAD < length:
            memcpy(&size, records + at + 16, 2)
            if size <= RECORD_HEAD or at + size > length:
                error = -EIO
                break
            name = records + at + RECORD_HEAD
            name_length = strlen(name)
            at += size
            if means_nothing(name, name_length) or (
                    name_length > 5 and name_is_long(name, name_length - 5) and memcmp(name + name_length - 5, b".name", 5) == 0):
                if records[at - size + 18] == DT_DIR:            # fsck knows better
                    error = -ENOTEMPTY
                elif removes:
                    remove(mounted, directory, name, False)
            elif not (name[0] == c'.' and (name_length == 1 or (name_length == 2 and name[1] == c'.'))) and \
                    strncmp(name, FILE_OF_DIRECTORY, 256) != 0:
                error = -ENOTEMPTY
    free(records)
    FltClose(mounted.instance, file)
    return error


cdef int directory_leaves(mounted_t *mounted, node_t *parent, const stored_name_t *stored, node_t *directory,
                          const stored_name_t *passing) noexcept nogil:
    cdef uint8_t iv[16]
    cdef int error
    if mounted.plain_names:
        return move(mounted, parent, stored.name, passing.name, 0)
    error = directory_iv(mounted, directory, iv)     # it may have to be put back
    error = error or look_through(mounted, directory, False)
    error = error or look_through(mounted, directory, True)
    error = error or move(mounted, parent, stored.name, passing.name, 0)
    if error:
        return error
    error = remove(mounted, directory, FILE_OF_DIRECTORY, False)
    if error:
        directory_put_back(mounted, parent, stored, directory, passing)
    return error


cdef void directory_put_back(mounted_t *mounted, node_t *parent, const stored_name_t *stored, node_t *directory,
                             const stored_name_t *passing) noexcept nogil:
    cdef uint8_t iv[16]
    cdef uint8_t above[16]
    cdef place_t place
    cdef int error = 0
    if not mounted.plain_names:
        error = directory_iv(mounted, directory, iv)
        error = error or place_of(mounted, parent, stored, above, &place)
        error = error or write_places(mounted, directory, iv, &place, NULL)
    if error or move(mounted, parent, passing.name, stored.name, RENAME_NOREPLACE):
        count_one(&mounted.damaged)


cdef int directory_moves(mounted_t *mounted, node_t *directory, node_t *parent, const stored_name_t *stored, node_t *to_parent,
                         const stored_name_t *to) noexcept nogil:
    cdef uint8_t iv[16]
    cdef uint8_t above[16]
    cdef uint8_t to_above[16]
    cdef place_t first, second
    cdef int error
    if mounted.plain_names:
        return 0
    error = directory_iv(mounted, directory, iv)
    error = error or place_of(mounted, parent, stored, above, &first)
    error = error or place_of(mounted, to_parent, to, to_above, &second)
    return error or write_places(mounted, directory, iv, &first, &second)


cdef int directory_moved(mounted_t *mounted, node_t *directory, node_t *parent, const stored_name_t *stored,
                         node_t *other) noexcept nogil:
    cdef uint8_t iv[16]
    cdef uint8_t above[16]
    cdef place_t place
    cdef int error
    if mounted.plain_names:
        return 0
    error = directory_iv(mounted, directory, iv)
    error = error or place_of(mounted, parent, stored, above, &place)
    error = error or sync_directory(mounted, parent)     # the place it was in is not forgotten before the disk has it here
    if other is not parent:
        error = error or sync_directory(mounted, other)
    return error or write_places(mounted, directory, iv, &place, NULL)


cdef node_t *node_called(mounted_t *mounted, node_t *directory, const stored_name_t *stored, uint16_t *type) noexcept nogil:
    """The kernel has looked up what it is about to change; what it does not know nobody has been shown."""
    cdef node_t *node = name_holder(nodes_of(mounted), directory, stored.name, stored.length)
    type[0] = 0 if node == NULL else node_type(node)
    return node
