"""What goes wrong, as the user is told: one line that says why and what to do, and a stable exit code.

Every error that is the user's, the configuration's or a filter's is a StackfsError; the command line prints its message
and leaves with its exit code. Anything else that gets that far is a bug of stackfs and shows its traceback.
Errors are plain values: they may be raised, kept and read on any thread.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of ``stackfs`` and ``fltmc``: scripts rely on them, a number never changes its meaning."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    """The command line, an option or a volume TOML is wrong."""
    NOT_FOUND = 3
    """No such volume, filter or instance."""
    REFUSED = 4
    """A filter or a rule of the Filter Manager says no."""
    UNUSABLE = 5
    """The mountpoint or the source cannot be used."""
    PERMISSION = 6
    """Not allowed, or a path that cannot be trusted (docs/semantics.md, Trust)."""
    NOT_ANSWERING = 7
    """The volume's daemon does not answer."""
    TAMPERED = 8
    """Verification found a change that stackfs did not make (``audit verify``)."""
    UNCLEAN = 9
    """Verification found an unclean end, and nothing worse (``audit verify``)."""
    WRONG_KEY = 10
    """A passphrase, key file or recovery key does not open what it was given for."""
    DAMAGED = 11
    """What is stored is damaged, or was changed by somebody else."""
    UNSUPPORTED = 12
    """What is stored has a version or a feature that this release does not know."""


class StackfsError(Exception):
    """An error for the user: a message of one line, without a full stop, and an exit code."""

    def __init__(self, message: str, exit_code: int = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = ExitCode(exit_code)


class NotAnswering(StackfsError):
    """A daemon that does not answer in time, hangs up, or answers with something that is no answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.NOT_ANSWERING)


class UsageError(StackfsError):
    """The command line, an option or a volume TOML is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.USAGE)


class TrustError(StackfsError):
    """A path that somebody else could have written, or can write: nothing is loaded from it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.PERMISSION)


class FltError(StackfsError):
    """An answer of the Filter Manager: an NTSTATUS with the line that explains it.

    ``status`` is the unsigned 32-bit number, as in stackfs.cext.ntstatus.NtStatus; it may be given as C's signed one.
    The message is shown alone; ``status_text`` is the number as the documentation writes it.
    """

    def __init__(self, status: int, message: str, exit_code: int = ExitCode.REFUSED) -> None:
        super().__init__(message, exit_code)
        self.status = int(status) & 0xFFFFFFFF

    @property
    def status_text(self) -> str:
        return f"0x{self.status:08X}"


class FilterNotFoundError(FltError):
    """No drop-in of that name (STATUS_OBJECT_NAME_NOT_FOUND: what FltLoadFilter answers without a service key)."""

    def __init__(self, message: str) -> None:
        super().__init__(0xC0000034, message, ExitCode.NOT_FOUND)


class FilterImageError(FltError):
    """A drop-in that is not a filter: bad manifest, bad syntax, bad registration (STATUS_INVALID_IMAGE_FORMAT)."""

    def __init__(self, message: str) -> None:
        super().__init__(0xC000007B, message, ExitCode.REFUSED)


class FilterEntryError(FltError):
    """A drop-in whose module raised while it was imported (STATUS_FAILED_DRIVER_ENTRY)."""

    def __init__(self, message: str) -> None:
        super().__init__(0xC0000365, message, ExitCode.REFUSED)
