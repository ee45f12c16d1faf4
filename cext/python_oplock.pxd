# Oplocks for Python: what a Python filter keeps in its stream context, and opens without a file object (python_oplock.pyx; A9).

from stackfs.cext.callback_data cimport oplock_open_t
from stackfs.cext.ntstatus cimport NTSTATUS
from stackfs.cext.oplock cimport OPLOCK, oplock_record_t, oplock_t

cdef class OplockOpen:
    """An open that belongs to no file object, as whoever keeps its own opens has it."""
    cdef oplock_open_t open

cdef class OplockRequest:
    """One who holds an oplock, or waits, without callback data."""
    cdef oplock_record_t *record         # with a reference
    cdef readonly object opener
    cdef object on_done

cdef class Oplock:
    """The Python face of an OPLOCK (see python_oplock.pyi)."""
    cdef OPLOCK oplock
    cdef oplock_t *live(self) except NULL
    cdef OplockRequest new_request(self, opener, on_done)
    cdef tuple settled(self, OplockRequest request, NTSTATUS status)
