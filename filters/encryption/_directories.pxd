# Names and directories of a mounted volume: what a plain name is stored as, what a stored name means, the IVs of directories,
# and the steps by which directories are made, moved and removed (docs/encryption-format.md, "A directory", "A name").
#
# A directory's IV is kept in its stream (_streams.pxd), read when it is first needed. Everything else is done below the
# instance, in the callback's thread; the kernel keeps both directories of a change locked meanwhile. Functions answer 0 or
# a length, or a negative errno.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from stackfs.cext.callback_data cimport FILE_NAME, REQUESTOR, node_t
from stackfs.filters.encryption._streams cimport mounted_t

cdef struct stored_name_t:
    char name[256]
    uint16_t length
    uint16_t text_length                 # 0: the name is not long
    uint8_t text[272]                    # what its .name file has

cdef int directory_iv(mounted_t *mounted, node_t *directory, uint8_t *iv) noexcept nogil
# -EINVAL: no name that the volume can have; -ENAMETOOLONG: one of more than 255 bytes.
cdef int store_name(mounted_t *mounted, node_t *directory, const FILE_NAME *plain, stored_name_t *stored) noexcept nogil
# The plain name, NUL-terminated, in plain[256]; -ENOENT: it is not to be seen. known: what a long name was when it was last used will do;
# its file is not read again.
cdef int show_name(mounted_t *mounted, node_t *directory, const char *stored, size_t length, bint known, char *plain) noexcept nogil

# The plain path of what is stored as `last` in a directory, at the end of path[size]; where it begins, or -ENAMETOOLONG. What is none of
# the volume's stays as it is.
cdef int show_path(mounted_t *mounted, node_t *directory, const char *last, size_t last_length, char *path, int size) noexcept nogil

# A long name's file: written before what it names (`made`: it was not there), removed behind it.
cdef int long_name_begin(mounted_t *mounted, node_t *directory, const stored_name_t *stored, bint *made) noexcept nogil
cdef void long_name_end(mounted_t *mounted, node_t *directory, const stored_name_t *stored) noexcept nogil

# A name under which something is made, or removed, that nobody is to see.
cdef int passing_name(stored_name_t *stored) noexcept nogil
# Gives a new directory its IV, takes the mode bits `missing` from it, and gives it its name.
cdef int directory_made(mounted_t *mounted, node_t *parent, const stored_name_t *passing, const stored_name_t *stored,
                        node_t *directory, uint32_t missing) noexcept nogil
# Takes an empty directory out of the way, under the name `passing`, without its directory file; directory_put_back() undoes it.
# -ENOTEMPTY.
cdef int directory_leaves(mounted_t *mounted, node_t *parent, const stored_name_t *stored, node_t *directory,
                          const stored_name_t *passing) noexcept nogil
cdef void directory_put_back(mounted_t *mounted, node_t *parent, const stored_name_t *stored, node_t *directory,
                             const stored_name_t *passing) noexcept nogil
# Before a directory moves it is valid at both places, afterwards at one. (The root of the two is where it is found.)
cdef int directory_moves(mounted_t *mounted, node_t *directory, node_t *parent, const stored_name_t *stored, node_t *to_parent,
                         const stored_name_t *to) noexcept nogil
# `other`: the directory that it came from, or did not get to.
cdef int directory_moved(mounted_t *mounted, node_t *directory, node_t *parent, const stored_name_t *stored,
                         node_t *other) noexcept nogil
# The node that a stored name leads to, with a reference (node_put), or NULL; its type.
cdef node_t *node_called(mounted_t *mounted, node_t *directory, const stored_name_t *stored, uint16_t *type) noexcept nogil
# records: linux_dirent64, of `length` bytes with room for `room`: the plain names instead. The new length.
cdef int64_t show_entries(mounted_t *mounted, node_t *directory, char *records, int64_t length, uint32_t room) noexcept nogil
