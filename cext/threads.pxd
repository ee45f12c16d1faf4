# What every thread of the core needs: starting one, conditions on the monotonic clock, atomic fields.

from posix.signal cimport sigset_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from libc.stdint cimport int64_t, uint32_t, uint64_t

from stackfs.cext.includes.pthread cimport *

cdef extern from *:
    """
    #define load_int(at)            __atomic_load_n(at, __ATOMIC_ACQUIRE)
    #define store_int(at, value)    __atomic_store_n(at, value, __ATOMIC_SEQ_CST)
    #define add_int(at, by)         __atomic_add_fetch(at, by, __ATOMIC_ACQ_REL)
    #define exchange_int(at, value) __atomic_exchange_n(at, value, __ATOMIC_ACQ_REL)
    #define load_bits(at)           __atomic_load_n(at, __ATOMIC_RELAXED)
    #define set_bits(at, bits)      ((void)__atomic_fetch_or(at, bits, __ATOMIC_RELAXED))
    #define load_count(at)          __atomic_load_n(at, __ATOMIC_RELAXED)
    #define store_count(at, value)  __atomic_store_n(at, value, __ATOMIC_RELAXED)
    #define count_one(at)           ((void)__atomic_fetch_add(at, 1, __ATOMIC_RELAXED))

    /* For a few instructions, never across a call. */
    #if !defined(__x86_64__) && !defined(__i386__)
    #define __builtin_ia32_pause() ((void)0)
    #endif
    static inline void stackfs_spin_lock(int *lock) {
        while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE)) __builtin_ia32_pause();
    }
    static inline void stackfs_spin_unlock(int *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }

    /* `with gil` in a thread that Python did not start makes a new thread state every time: threading.local and
     * contextvars of a callback would not live from one request to the next. So a thread of the core takes one before it
     * first runs the stack, and keeps it, without the GIL, until it ends. */
    __attribute__((unused)) static __thread PyThreadState *kept_thread_state;
    __attribute__((unused)) static __thread PyGILState_STATE kept_gil_state;

    static inline void python_attach(void)
    {
        if (kept_thread_state == NULL) {
            kept_gil_state = PyGILState_Ensure();
            kept_thread_state = PyEval_SaveThread();
        }
    }

    static inline void python_detach(void)
    {
        if (kept_thread_state != NULL) {
            PyEval_RestoreThread(kept_thread_state);
            kept_thread_state = NULL;
            PyGILState_Release(kept_gil_state);
        }
    }
    """
    int load_int(int *at) nogil
    uint32_t load_bits(const uint32_t *at) nogil
    void set_bits(uint32_t *at, uint32_t bits) nogil
    void store_int(int *at, int value) nogil
    int add_int(int *at, int by) nogil
    int exchange_int(int *at, int value) nogil
    uint32_t load_uint "load_int"(uint32_t *at) nogil
    uint64_t load_long "load_int"(uint64_t *at) nogil
    void store_uint "store_int"(uint32_t *at, uint32_t value) nogil
    void store_long "store_int"(uint64_t *at, uint64_t value) nogil
    uint64_t load_count(uint64_t *at) nogil
    void store_count(uint64_t *at, uint64_t value) nogil
    void count_one(uint64_t *at) nogil
    void stackfs_spin_lock(int *lock) nogil
    void stackfs_spin_unlock(int *lock) nogil
    void python_attach() nogil
    void python_detach() nogil

cdef inline int start_thread(pthread_t *thread, void *(*main)(void *) noexcept nogil, void *argument) noexcept nogil:
    """A thread that blocks every signal: signals are the main thread's. 0, or an errno."""
    cdef sigset_t all_signals, before
    cdef int error
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &before)
    error = pthread_create(thread, NULL, main, argument)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return error

cdef inline int64_t monotonic_time() noexcept nogil:
    """In nanoseconds."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec

cdef inline void monotonic_deadline(timespec *when, int64_t nanoseconds) noexcept nogil:
    """So many nanoseconds, less than a second, from now: for conditions that init_condition() has made."""
    clock_gettime(CLOCK_MONOTONIC, when)
    when.tv_nsec += nanoseconds
    if when.tv_nsec >= 1000000000:
        when.tv_nsec -= 1000000000
        when.tv_sec += 1

cdef inline int init_condition(pthread_cond_t *condition) noexcept nogil:
    cdef pthread_condattr_t attributes
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(condition, &attributes)
    return pthread_condattr_destroy(&attributes)
