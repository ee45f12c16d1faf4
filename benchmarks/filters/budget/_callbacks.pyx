"""budget's callbacks: the pre looks whether anything is left, the post books what was moved. Any thread; no GIL.

Requests under way together may overdraw the budget by what they move.
"""

from libc.stdint cimport uint32_t, uint64_t

from stackfs.cext.callback_data cimport (
    FLT_CALLBACK_DATA, FLT_POSTOP_FINISHED_PROCESSING, FLT_PREOP_COMPLETE, FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_RELATED_OBJECTS, IRP_MJ_READ, IRP_MJ_WRITE)
from stackfs.cext.ntstatus cimport NT_SUCCESS, STATUS_QUOTA_EXCEEDED
from stackfs.cext.stack cimport NativeOperations, instance_pointer

cdef extern from *:
    """
    #define book(at, bytes) ((void)__atomic_fetch_add(at, bytes, __ATOMIC_RELAXED))
    #define booked(at)      __atomic_load_n(at, __ATOMIC_RELAXED)
    """
    void book(uint64_t *at, uint64_t bytes) noexcept nogil
    uint64_t booked(const uint64_t *at) noexcept nogil

cdef struct account_t:
    uint64_t limit                       # 0: none
    uint64_t spent


cdef int pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    cdef account_t *account = <account_t *>objects.Instance.Context
    if account.limit and booked(&account.spent) >= account.limit:
        data.IoStatus.Status = STATUS_QUOTA_EXCEEDED
        data.IoStatus.Information = 0
        return FLT_PREOP_COMPLETE
    return FLT_PREOP_SUCCESS_WITH_CALLBACK


cdef int post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    cdef account_t *account = <account_t *>objects.Instance.Context
    if NT_SUCCESS(data.IoStatus.Status):
        book(&account.spent, data.IoStatus.Information)
    return FLT_POSTOP_FINISHED_PROCESSING


cdef class Account:
    """One instance's budget."""
    cdef account_t account
    cdef object entry                    # the instance that points here

    def __init__(self, entry not None, uint64_t limit):
        self.entry = entry
        self.account.limit = limit
        instance_pointer(entry).Context = &self.account

    def release(self):
        instance_pointer(self.entry).Context = NULL

    def spent(self):
        return booked(&self.account.spent)


def operations():
    cdef NativeOperations table = NativeOperations()
    table.set(IRP_MJ_READ, pre, post, 0)
    table.set(IRP_MJ_WRITE, pre, post, 0)
    return table
