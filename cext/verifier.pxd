# The verifier's part in the core (docs/semantics.md, A11): what holds a filter to the rules while it runs.
#
# While it is on, an instance that is made gets its callbacks enclosed: the walk calls verified_pre() and verified_post(), which
# call what the filter has registered and look at what came of it. Off, nothing here is called, and verifier_on is tested
# only where something has gone wrong already, or costs a system call or the interpreter's lock anyway.
#
# callback_data.pyx is among those who use this: nothing here is made of stack.pxd's structs. `data` is always an operation's.
#
# verifier_on changes under the GIL, before filters are loaded; whoever reads it needs no order. What is found is told to
# the watcher, an object of stackfs/verifier.py, under the GIL.

from libc.stdint cimport uint32_t
from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_INSTANCE, FLT_RELATED_OBJECTS

cdef int verifier_on

cdef int verified_pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void **context) noexcept nogil
cdef int verified_post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, void *context, uint32_t flags) noexcept nogil
# operations: callback_t[256], the instance's. False: no memory. What it allocates is instance.Verified, the caller's to free.
cdef bint verifier_encloses(FLT_INSTANCE *instance, void *operations) noexcept
# What FltCompletePendedPreOperation has said: held to what the callback might have returned.
cdef void verify_completed_pre(FLT_CALLBACK_DATA *data, int status, void *context) noexcept nogil
cdef void verifier_complains(FLT_CALLBACK_DATA *data, const FLT_INSTANCE *instance, const char *routine, const char *what) noexcept nogil
# A native routine that may be called at `level` at most has been called. Python's go by pending.irql_require().
cdef void verifier_level(int level, const char *routine) noexcept nogil
cdef int verifier_too_high(int level, int most, str routine) except -1

# For what Python filters get: whose callback data it is, and what is said of data that is used once it is dead.
cdef tuple verifier_whose(const FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *related, bint completed)
cdef int verifier_dead(object whose, bint completing) except -1
cdef object verifier_watcher()           # acquired(), assigned(), given_back(); only while verifier_on
