# The device's link to the IRP lane: the socket pair, the header queue, and the way back (irp_link.pyx).

from libc.stdint cimport uint32_t, uint64_t
from stackfs.cext.connection cimport connection_t
from stackfs.cext.includes.pthread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from stackfs.cext.message_queue cimport queue_t
from stackfs.cext.requests cimport vfs_request_t

cdef enum:
    SOCKET_OVERHEAD = 32                 # of SO_SNDBUF, not usable by a message
    LANE_INIT_UNIQUE = 1                 # odd, as no request's: libfuse's answer to our INIT

cdef struct irp_link_t:
    connection_t *connection
    int lane                             # our end of the pair
    int peer                             # pyfuse3's end; -1: handed over
    uint32_t message_max                 # bytes in one message through the pair
    uint32_t answer_max                  # the largest answer that is carried on
    # to the lane (forward_lock; headers: header_lock)
    pthread_mutex_t forward_lock
    pthread_cond_t forward_changed       # something waits, or the forwarder shall end
    pthread_cond_t forward_room          # less waits, or nobody shall wait any more
    queue_t waiting
    int forward_stop
    int lane_gone                        # also read atomically
    int stop_event                       # eventfd of link_stop_forwarder()
    pthread_mutex_t header_lock
    vfs_request_t *head
    vfs_request_t *tail
    uint64_t headers
    uint64_t unanswered                  # atomic: forwarded, and not answered by libfuse
    uint64_t taken                       # atomic: of these, how many a handler has taken
    # from the lane
    pthread_mutex_t relay_lock
    pthread_cond_t relay_changed
    int relay_asleep, relay_stop         # atomic
    uint64_t relayed                     # atomic: how often the lane's loop carried its answers itself
    char *lane_buffer                    # the lane's loop's own, for that
    pthread_t forwarder
    pthread_t relay
    int has_forwarder, has_relay

cdef void link_init(irp_link_t *link, connection_t *connection) noexcept nogil
cdef int link_pair(irp_link_t *link) noexcept nogil                     # makes the pair; SO_SNDBUF in bytes, or -errno
cdef int link_start(irp_link_t *link) noexcept nogil                    # forwarder and relay; 0, or an errno
cdef void link_stop_forwarder(irp_link_t *link) noexcept nogil          # nobody forwards any more
cdef void link_close(irp_link_t *link) noexcept nogil                   # ends the relay, closes both ends
cdef void link_free(irp_link_t *link) noexcept nogil
cdef void link_let_go(irp_link_t *link) noexcept nogil                  # whoever waits for room looks at `refusing` again

# Queue the header and send the message, or a copy of it later. Owns the request. 0, or the errno to answer with.
cdef int link_forward(irp_link_t *link, vfs_request_t *request, const char *data, uint32_t length,
                      int answerless) noexcept nogil
# The header of the message the lane is handling now (device.pxd, Device.device_pop).
cdef vfs_request_t *link_pop(irp_link_t *link, uint32_t opcode, uint64_t nodeid, int answerless) noexcept nogil
# Carry to the kernel what the lane has answered. By the lane's loop; never waits.
cdef void link_relay_now(irp_link_t *link) noexcept nogil
