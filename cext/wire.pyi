"""The FUSE wire format: what the kernel's messages hold, checked, and what it is told."""

def operation_name(opcode: int) -> str:
    """The operation's name as in the FUSE protocol without FUSE_, or "OPCODE_n"."""

def is_refused(opcode: int) -> bool:
    """True: the device answers this operation with an error without showing it to the stack."""

def decode(message: bytes, setxattr_ext: bool = True, max_write: int = 1 << 20) -> dict[str, object]:
    """A message's header and arguments, those that are not 0, by the names of vfs_request_t; ValueError: malformed."""
