"""Names for Python: providers whose callbacks are Python's, and file name information as objects (semantics B1)."""

import os
from collections.abc import Callable
from typing import Any

from stackfs.cext.file_object import FileReference
from stackfs.cext.python_contexts import InstanceContexts

class NameProvider:
    """An instance's callbacks as a name provider (B1.8).

    generate(information, instance): FileNameInformation of the file as it is named below; the path from the volume's
    root as it is shown above (str or bytes; None: the same), or (path, False) for one that is not to be cached.
    normalize(parent, component, flags, context, instance): a component's real name in that directory, or
    (name, context), which the next component of the same name is given; cleanup(context): after the last one.
    raw: generate(instance, file object, options) asks for the name below itself; it answers (NTSTATUS, path in bytes,
    cache it?).
    """

    def __init__(
        self,
        generate: Callable[..., Any] | None = None,
        normalize: Callable[..., Any] | None = None,
        cleanup: Callable[..., Any] | None = None,
        *,
        raw: bool = False,
    ) -> None: ...

class FileNameInformation:
    """The name of a file, as one layer of the stack sees it (B1). Immutable; bytes that are no UTF-8 become surrogate
    escapes. It may be kept as long as one likes. Routines under their DDI names count references; when the last one is
    released it is dead, and using it raises ReferenceError.
    """

    @property
    def name(self) -> str:
        """All of it, "drive/a/b.txt"; with FLT_FILE_NAME_SHORT the final component alone."""
    @property
    def volume(self) -> str:
        """The volume's name, "drive": what stands in front of the path."""
    @property
    def path(self) -> str:
        """The path from the volume's root, "/a/b.txt"."""
    @property
    def share(self) -> str:
        """Always empty: volumes are not remote."""
    @property
    def parent_dir(self) -> str:
        """ "/a/": from the first to the last slash of the path."""
    @property
    def final_component(self) -> str:
        """ "b.txt"; empty for the root."""
    @property
    def extension(self) -> str:
        """ "txt": behind the last dot of the final component."""
    @property
    def stream(self) -> str:
        """Always empty: a file has one stream here."""
    @property
    def format(self) -> int:
        """FLT_FILE_NAME_NORMALIZED, FLT_FILE_NAME_OPENED or FLT_FILE_NAME_SHORT."""
    @property
    def names_parsed(self) -> int:
        """FLTFL_FILE_NAME_PARSED_* bits: which parts there are."""
    @property
    def references(self) -> int:
        """Those of the manager's cache and of all who asked; 0: released."""
    def reference(self) -> None:
        """FltReferenceFileNameInformation."""
    def release(self) -> None:
        """FltReleaseFileNameInformation: with the last reference that was given, it is dead."""

class InstanceNames(InstanceContexts):
    """Names asked for by an instance. Each routine answers an unsigned NTSTATUS, and information or None."""

    def flt_get_name(self, file: FileReference, options: int) -> tuple[int, FileNameInformation | None]:
        """FltGetFileNameInformationUnsafe: (NTSTATUS, FileNameInformation)."""
    def flt_get_destination_name(
        self, file: FileReference, name: bytes, options: int
    ) -> tuple[int, FileNameInformation | None]:
        """FltGetDestinationFileNameInformation, in the directory that the file is in: (NTSTATUS, information)."""
    def flt_purge_names(self, file: FileReference | None) -> int:
        """FltPurgeFileNameInformationCache: of the file, or (None) of the whole volume. NTSTATUS."""

def parse_file_name(name: str | bytes | os.PathLike[str]) -> tuple[str, str, str]:
    """FltParseFileName: (extension, stream, final component) of a path or a component, as str."""
