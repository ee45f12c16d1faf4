# Awaiting a caller's next request awake (anticipation.pyx).

from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <poll.h>
    #include <sched.h>

    static inline int device_has_message(int device)
    {
        struct pollfd one = {device, POLLIN, 0};
        return poll(&one, 1, 0) != 0;    /* errors too: read(2) tells which */
    }

    static inline int processors(void)
    {
        cpu_set_t allowed;
        return sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
    }
    """
    bint device_has_message(int device) nogil
    int processors() nogil               # that this process may use

cdef struct anticipation_t:
    uint32_t caller                      # thread id of the last message served
    uint32_t in_a_row                    # messages of its, and of nobody else
    uint32_t enough                      # after so many its next one is awaited; UINT32_MAX: never

# Only by the thread whose it is.
cdef void anticipation_init(anticipation_t *anticipation) noexcept nogil
cdef void anticipation_served(anticipation_t *anticipation, uint32_t caller) noexcept nogil
cdef bint works_alone(const anticipation_t *anticipation) noexcept nogil      # the last caller, for a while now
# Returns when the device has a message, when it has waited long enough, or at once.
cdef void anticipate(anticipation_t *anticipation, int device) noexcept nogil
