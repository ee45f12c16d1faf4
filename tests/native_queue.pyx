# A native filter for tests that holds every FLUSH_BUFFERS: in a cancel-safe queue, or with a cancel completion.
# Its callbacks, and the threads that remove what is queued, never take the GIL.

from libc.stdint cimport uint32_t, uint64_t

from stackfs.cext.callback_data cimport (
    FLT_CALLBACK_DATA, FLT_POSTOP_MORE_PROCESSING_REQUIRED, FLT_PREOP_COMPLETE, FLT_PREOP_PENDING,
    FLT_PREOP_SUCCESS_WITH_CALLBACK, FLT_RELATED_OBJECTS, IRP_MJ_FLUSH_BUFFERS)
from stackfs.cext.cancel_safe_queue cimport (
    FLT_CALLBACK_DATA_QUEUE, FltCbdqInitialize, FltCbdqInsertIo, FltCbdqRemoveNextIo)
from stackfs.cext.includes.pthread cimport pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
from stackfs.cext.ntstatus cimport NTSTATUS, STATUS_CANCELLED, STATUS_SUCCESS
from stackfs.cext.pending cimport (
    FltClearCancelCompletion, FltCompletePendedPostOperation, FltCompletePendedPreOperation, FltSetCancelCompletion)
from stackfs.cext.stack cimport NativeOperations
from stackfs.cext.threads cimport count_one, load_count, load_int, store_int

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    ROOM = 4096

cdef FLT_CALLBACK_DATA_QUEUE queue
cdef pthread_mutex_t lock
cdef FLT_CALLBACK_DATA *items[ROOM]
cdef int count = 0
cdef int stop = 0
cdef uint64_t removed = 0
cdef uint64_t cancelled = 0
pthread_mutex_init(&lock, NULL)


cdef NTSTATUS insert(FLT_CALLBACK_DATA_QUEUE *cbdq, FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    global count
    items[count] = data
    count += 1
    return STATUS_SUCCESS


cdef void remove(FLT_CALLBACK_DATA_QUEUE *cbdq, FLT_CALLBACK_DATA *data) noexcept nogil:
    global count
    cdef int at = 0
    while items[at] is not data:
        at += 1
    count -= 1
    while at < count:
        items[at] = items[at + 1]
        at += 1


cdef FLT_CALLBACK_DATA *peek(FLT_CALLBACK_DATA_QUEUE *cbdq, FLT_CALLBACK_DATA *data, void *context) noexcept nogil:
    cdef int at = 0
    if data is not NULL:
        while items[at] is not data:
            at += 1
        at += 1
    return items[at] if at < count else NULL


cdef void acquire(FLT_CALLBACK_DATA_QUEUE *cbdq) noexcept nogil:
    pthread_mutex_lock(&lock)


cdef void release(FLT_CALLBACK_DATA_QUEUE *cbdq) noexcept nogil:
    pthread_mutex_unlock(&lock)


cdef void complete_cancelled(FLT_CALLBACK_DATA *data) noexcept nogil:
    count_one(&cancelled)
    data.IoStatus.Status = STATUS_CANCELLED
    FltCompletePendedPreOperation(data, FLT_PREOP_COMPLETE, NULL)


cdef void cancel_queued(FLT_CALLBACK_DATA_QUEUE *cbdq, FLT_CALLBACK_DATA *data) noexcept nogil:
    complete_cancelled(data)


FltCbdqInitialize(NULL, &queue, insert, remove, peek, acquire, release, cancel_queued)


cdef int queue_pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    if FltCbdqInsertIo(&queue, data, NULL, NULL) != STATUS_SUCCESS:
        return FLT_PREOP_COMPLETE
    return FLT_PREOP_PENDING


cdef int keep_post(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void *context, uint32_t flags) noexcept nogil:
    FltCompletePendedPostOperation(data)
    return FLT_POSTOP_MORE_PROCESSING_REQUIRED


cdef FLT_CALLBACK_DATA *single = NULL

cdef int single_pre(FLT_CALLBACK_DATA *data, const FLT_RELATED_OBJECTS *objects, void **context) noexcept nogil:
    global single
    single = data
    if FltSetCancelCompletion(data, complete_cancelled) != STATUS_SUCCESS:
        complete_cancelled(data)
    return FLT_PREOP_PENDING


def operations(bint queued):
    cdef NativeOperations table = NativeOperations()
    table.set(IRP_MJ_FLUSH_BUFFERS, queue_pre if queued else single_pre, keep_post, 0)
    return table


def release_single(int status):
    """Completes what single_pre holds, unless its cancel completion has it; whether it did."""
    cdef bint mine
    with nogil:
        mine = FltClearCancelCompletion(single) == STATUS_SUCCESS
        if mine:
            FltCompletePendedPreOperation(single, status, NULL)
    return mine


def serve():
    """Removes and completes what is queued, until finish()."""
    cdef FLT_CALLBACK_DATA *data
    with nogil:
        while True:
            data = FltCbdqRemoveNextIo(&queue, NULL)
            if data is not NULL:
                count_one(&removed)
                FltCompletePendedPreOperation(data, FLT_PREOP_SUCCESS_WITH_CALLBACK, NULL)
            elif load_int(&stop):
                break
            else:
                sched_yield()


def counts():
    """(removed, cancelled, still queued) so far."""
    return load_count(&removed), load_count(&cancelled), count


def finish():
    """serve() returns when the queue is empty."""
    store_int(&stop, 1)
