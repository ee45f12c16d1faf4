# What is changed beside the mount breaks oplocks as well (_beside.pyx): with `coherence=lease`; else nobody hears of it.

from stackfs.filters.oplock._oplocks cimport mounted_t

cdef void beside_begin(mounted_t *mounted) noexcept nogil
cdef void beside_end(mounted_t *mounted) noexcept nogil              # nothing is broken from there any more
