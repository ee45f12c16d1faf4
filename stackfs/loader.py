"""Loading a filter's code: from the descriptors that were checked, and under a name of its own.

The source that discovery read is compiled as it is; it is not read again. What else a package brings (further modules,
packages and extension modules) is found by the import hook below: each file is opened through stackfs/trust.py, a
source is read from that descriptor, and an extension module is given to the dynamic linker as ``/proc/self/fd/N``. A
module below a drop-in is never looked for anywhere else.

A filter of the installation is imported by its real name, ``stackfs.filters.NAME`` (for pickling, and for cimport); one
from an entry point too; one from a drop-in directory as ``stackfs_filter_NAME``. Bytecode is neither read nor written.

After the import the registration is held against the rules (docs/semantics.md, A2): what is wrong is refused with file,
field and reason, and leaves nothing behind. unload() forgets a filter's modules, so that the next load sees a changed
file; a compiled module is replaced only by a new file, since the dynamic linker knows files by their inode.

Loading and unloading are done by one thread at a time (``_loading``), and may be asked for on any; a filter's module
runs on the caller's. The hook takes no lock: it only looks up and sets single entries of the dictionaries below, since
it runs under the import system's own locks, in whatever order those were taken.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, cast

from stackfs.discovery import Found, installation_directory
from stackfs.errors import ExitCode, FilterEntryError, FilterImageError, FltError, StackfsError
from stackfs.trust import open_trusted, read_trusted

if TYPE_CHECKING:
    from stackfs.api import Filter
    from stackfs.driver_object import DriverEntryRoutine

_loading = threading.RLock()
_roots: dict[str, str] = {}
"""Modules that are imported through the hook, with all below them: name, and path without suffix."""
_sources: dict[str, tuple[str, bytes]] = {}
"""Modules whose source discovery has read already: name, and file and bytes; only while they are imported."""
_extensions: dict[tuple[int, int], int] = {}
"""Descriptors of extension modules by device and inode. They stay open: the dynamic linker also compares names, so the
name /proc/self/fd/N must never come to mean another file."""

_UNREGISTRABLE: Final = ("IRP_MJ_POWER", "IRP_MJ_DEVICE_CHANGE")
_NOTIFICATIONS: Final = (
    "filter_unload",
    "instance_setup",
    "instance_query_teardown",
    "instance_teardown_start",
    "instance_teardown_complete",
    "section_notification",
)


class _SourceLoader(importlib.abc.InspectLoader):
    """Runs a source that was read from a checked descriptor."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path = path
        self.source = source

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.source)

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        return os.path.basename(self.path) == "__init__.py"


class _ExtensionLoader(importlib.machinery.ExtensionFileLoader):
    """Loads an extension module through its checked descriptor; the module itself shows its real path."""

    def __init__(self, fullname: str, path: str, descriptor: int) -> None:
        super().__init__(fullname, path)
        self.descriptor = descriptor

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        shown, spec.origin = spec.origin, f"/proc/self/fd/{self.descriptor}"
        try:
            module = super().create_module(spec)
        finally:
            spec.origin = shown
        module.__file__ = shown
        return module


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what lies below a root, and refuses to let anybody else find it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        known = _sources.get(fullname)
        if known is not None:
            return self._source_spec(fullname, *known)
        for name in _enclosing(fullname):
            base = _roots.get(name)
            if base is not None:
                return self._locate(fullname, base + fullname.removeprefix(name).replace(".", "/"))
        return None

    def _locate(self, fullname: str, base: str) -> importlib.machinery.ModuleSpec:
        source = _read(f"{base}/__init__.py")
        if source is not None:
            return self._source_spec(fullname, f"{base}/__init__.py", source)
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            descriptor = _open_extension(base + suffix)
            if descriptor is not None:
                loader = _ExtensionLoader(fullname, base + suffix, descriptor)
                spec = importlib.machinery.ModuleSpec(fullname, loader, origin=base + suffix)
                spec.has_location = True
                return spec
        source = _read(f"{base}.py")
        if source is not None:
            return self._source_spec(fullname, f"{base}.py", source)
        if os.path.isdir(base):
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [base]
            return spec
        raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

    @staticmethod
    def _source_spec(fullname: str, path: str, source: bytes) -> importlib.machinery.ModuleSpec:
        loader = _SourceLoader(path, source)
        spec = importlib.machinery.ModuleSpec(fullname, loader, origin=path, is_package=loader.is_package(fullname))
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(os.path.dirname(path))
        return spec


def _enclosing(fullname: str) -> Iterator[str]:
    """The module's own name and those of the packages around it, innermost first."""
    while fullname:
        yield fullname
        fullname = fullname.rpartition(".")[0]


def _read(path: str) -> bytes | None:
    try:
        return read_trusted(path)
    except StackfsError as error:
        if error.exit_code is ExitCode.NOT_FOUND:
            return None
        raise ImportError(error.message) from error


def _open_extension(path: str) -> int | None:
    try:
        descriptor = open_trusted(path)
    except StackfsError as error:
        if error.exit_code is ExitCode.NOT_FOUND:
            return None
        raise ImportError(error.message) from error
    info = os.fstat(descriptor)
    kept = _extensions.setdefault((info.st_dev, info.st_ino), descriptor)
    if kept != descriptor:
        os.close(descriptor)
    return kept


_finder: Final = _Finder()


def install() -> None:
    """Put the import hook in place (load does). Importing the installation's filters then goes through it as well."""
    with _loading:
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
        directory = installation_directory()
        if directory is not None:
            _roots.setdefault("stackfs.filters", directory)


def load(found: Found) -> type[Filter] | DriverEntryRoutine:
    """The filter's class, or its DriverEntry; its module is imported, a class's registration checked.

    FltError (FilterImageError, FilterEntryError): one line: file, field or line, reason; nothing is left behind.
    """
    if found.manifest.start == "disabled":
        raise FltError(0xC0000001, f"{found.path}: start: filter {found.name!r} is disabled by its manifest")
    with _loading:
        unload(found)
        install()
        _roots.setdefault(*found.root)
        if found.origin == "filterdir":
            _roots[found.root[0]] = found.root[1]
        _sources[found.module] = (found.path, found.source)
        try:
            module = _import(found, found.module)
            return _entry(found, module)
        except BaseException:
            unload(found)
            raise
        finally:
            _sources.pop(found.module, None)


def unload(found: Found) -> None:
    """Forget the filter's modules, so that the next load sees changed files. Objects in use live on."""
    with _loading:
        for name in [name for name in sys.modules if found.module in _enclosing(name)]:
            del sys.modules[name]
        parent, _, child = found.module.rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(child, None)
        if found.origin == "filterdir":
            _roots.pop(found.module, None)


def load_commands(found: Found) -> Any:
    """What the manifest's "commands" names, a typer.Typer."""
    return _load_attribute(found, "commands")


def prepare(found: Found, source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Calls what the manifest's "prepare" names: options that are to be others.

    It is called as ``prepare(source, options)``, `source` being the backing directory, in the process that mounts,
    before the daemon goes to the background: it has the user's terminal, and the daemon inherits its descriptors. It
    may raise a StackfsError, and nothing is mounted.
    """
    changed: dict[str, Any] = _load_attribute(found, "prepare")(source, dict(options))
    return changed


def _load_attribute(found: Found, field: Literal["commands", "prepare"]) -> Any:
    """What a field of the manifest names: the object ``attribute`` of a module of the filter's own.

    ``module`` is a module of the package ("cli:app" or "audit.cli:app"), or nothing for the drop-in itself (":app").
    It is imported now, through the same checks as load's; the filter's class is not looked at. FltError: as load's.
    """
    place: str | None = getattr(found.manifest, field)
    if place is None:
        raise FilterImageError(f"{found.path}: {field}: filter {found.name!r} brings none")
    module_name, _, attribute = place.partition(":")
    if found.module not in _enclosing(module_name):
        stem = os.path.basename(os.path.dirname(found.path) if found.is_package else found.path.removesuffix(".py"))
        inner = [part for part in module_name.split(".") if part]
        module_name = ".".join([found.module, *(inner[1:] if inner[:1] == [stem] else inner)])
    with _loading:
        install()
        _roots.setdefault(*found.root)
        if found.module not in sys.modules:
            _sources[found.module] = (found.path, found.source)
        try:
            module = _import(found, module_name)
        finally:
            _sources.pop(found.module, None)
    if not hasattr(module, attribute):
        raise FilterImageError(f"{found.path}: {field}: module {module_name} has no {attribute!r}")
    return getattr(module, attribute)


def _import(found: Found, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except FltError:
        raise
    except SyntaxError as error:
        where = f"{error.filename or found.path}:{error.lineno or 1}"
        raise FilterImageError(f"{where}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise FilterEntryError(f"{_where(found, error)}: {type(error).__name__}: {reason}") from error


def _where(found: Found, error: BaseException) -> str:
    """File and line, in the drop-in's own code, at which an exception came out of it."""
    own = os.path.dirname(found.path) + "/" if found.is_package else found.path
    place, step = found.path, error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if file == own or (found.is_package and file.startswith(own)):
            place = f"{file}:{step.tb_lineno}"
        step = step.tb_next
    return place


def _own_filters(found: Found, module: ModuleType) -> list[str]:
    """Names of the subclasses of Filter that a drop-in's module defines, or takes from its own package."""
    from stackfs import api

    names: dict[type, str] = {}
    for name, each in vars(module).items():
        if isinstance(each, type) and issubclass(each, api.Filter) and found.module in _enclosing(each.__module__):
            names.setdefault(each, name)
    return list(names.values())


def _entry(found: Found, module: ModuleType) -> type[Filter] | DriverEntryRoutine:
    """The class that the manifest names, or the only one there is, or else DriverEntry (A2.13)."""
    from stackfs import api

    wanted = found.manifest.filter
    if not wanted:
        names = _own_filters(found, module)
        entry = vars(module).get("DriverEntry")
        if not names and callable(entry):
            if inspect.iscoroutinefunction(entry):
                refuse(found, "DriverEntry", "is async; it must be a plain function")
            return cast("DriverEntryRoutine", entry)
        if len(names) > 1:
            refuse(found, "filter", f"name one of {', '.join(names)} in the manifest")
        if not names:
            refuse(found, "filter", "the module has no subclass of Filter, and no DriverEntry")
        wanted = names[0]
    cls = vars(module).get(wanted)
    if cls is None:
        refuse(found, "filter", f"the module has no class {wanted!r}")
    if not (isinstance(cls, type) and issubclass(cls, api.Filter)):
        refuse(found, "filter", f"{wanted!r} is not a subclass of stackfs.api.Filter")
    check_registration(found, wanted, cls)
    return cls


def refuse(found: Found, field: str, reason: str) -> NoReturn:
    raise FilterImageError(f"{found.path}: {field}: {reason}")


def check_registration(found: Found, wanted: str, cls: type[Filter] | Filter) -> None:
    """Holds a filter's registration against the rules. wanted: what to call it. FilterImageError: what is wrong."""
    from stackfs import api, contexts, names
    from stackfs.cext.stack import may_be_irp

    if isinstance(cls.flags, bool) or not isinstance(cls.flags, int) or not 0 <= cls.flags <= 0xF:
        refuse(found, f"{wanted}.flags", f"{cls.flags!r} has bits that are no FLTFL_REGISTRATION_ flag")
    for name in _NOTIFICATIONS:
        callback = getattr(cls, name, None)
        if not (callback is None or callable(callback)):
            refuse(found, f"{wanted}.{name}", "must be a method, or None")
        if inspect.iscoroutinefunction(callback):
            refuse(found, f"{wanted}.{name}", "is async; it must be a plain method")
    try:
        contexts.check(cls)
    except ValueError as error:
        refuse(found, f"{wanted}.contexts", str(error))
    try:
        names.check(cls)
    except ValueError as error:
        refuse(found, wanted, str(error))
    if not isinstance(cls.operations, (tuple, list)):
        refuse(found, f"{wanted}.operations", "must be a tuple of Operation")
    majors = {int(value): name for name, value in vars(api).items() if name.startswith("IRP_MJ_")}
    flags = 0
    for name, value in vars(api).items():
        if name.startswith("FLTFL_OPERATION_REGISTRATION_"):
            flags |= int(value)
    seen: set[int] = set()
    for index, each in enumerate(cls.operations):
        field = f"{wanted}.operations[{index}]"
        if not isinstance(each, api.Operation):
            refuse(found, field, f"{each!r} is not an Operation")
        if isinstance(each.major, bool) or not isinstance(each.major, int) or not 0 <= each.major <= 0xFF:
            refuse(found, f"{field}.major", f"{each.major!r} is not an IRP_MJ_ operation")
        operation = majors.get(int(each.major), api.major_name(int(each.major)))    # an unknown one never comes (A2.6)
        if operation in _UNREGISTRABLE:
            refuse(found, f"{field}.major", f"{operation} cannot be registered")
        if each.major in seen:
            refuse(found, f"{field}.major", f"{operation} is registered twice")
        seen.add(int(each.major))
        if isinstance(each.flags, bool) or not isinstance(each.flags, int) or each.flags & ~flags:
            reason = f"{each.flags!r} has bits that are no registration flag (they are {flags:#x})"
            refuse(found, f"{field}.flags", reason)
        if operation == "IRP_MJ_SHUTDOWN" and each.post is not None:
            refuse(found, f"{field}.post", "IRP_MJ_SHUTDOWN has no post-operation callback")
        for kind, method in (("pre", each.pre), ("post", each.post)):
            if method is None:
                continue
            if not isinstance(method, str):
                refuse(found, f"{field}.{kind}", f"must be a method's name or None, not {method!r}")
            callback = getattr(cls, method, None)
            if not callable(callback):
                refuse(found, f"{field}.{kind}", f"{wanted} has no method {method!r}")
            if inspect.iscoroutinefunction(callback) and not may_be_irp(int(each.major)):
                refuse(found, f"{field}.{kind}", f"{method!r} is async, and {operation} cannot be held (A6.9)")
