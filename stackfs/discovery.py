"""Where filters come from: drop-ins are found here, and none is imported to be found.

A drop-in is one file, ``NAME.py``, or a package, ``NAME/__init__.py``, with a MANIFEST in it (stackfs/manifest.py), or
without one and with a Windows INF, ``NAME.inf``, beside it (stackfs/inf.py). It is looked for, in this order, in

1. the directories given by ``-o filterdir=`` (and a volume TOML's ``filterdir``), in the order given,
2. the entry points of the group ``stackfs.filters``: each names a module of an installed distribution, which is located
   on the import path without importing it or a package around it,
3. the installation's own ``filters/`` directory: what is shipped is found exactly as a stranger's is.

A filter goes by its manifest's name; the file's name does not matter. The first of a name wins, a later one is
reported. A Python file with neither is not a drop-in. Names that begin with ``_`` or ``.`` are passed over.

Every file is opened through stackfs/trust.py, and its source is kept in what is found: the code that is later run is
the text that was checked and whose manifest was read. Nothing is cached: a file dropped in is found by the next look.
Any thread may call these.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

from stackfs import inf
from stackfs.errors import ExitCode, FilterImageError, FilterNotFoundError, StackfsError
from stackfs.manifest import Manifest, parse_manifest
from stackfs.trust import open_resolved, read_trusted

ENTRY_POINT_GROUP: Final = "stackfs.filters"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A drop-in: its manifest, and what is needed to load it (stackfs/loader.py)."""

    manifest: Manifest
    path: str
    """The drop-in's file. The manifest is in it, or in an INF beside it (manifest.file says which)."""
    source: bytes = dataclasses.field(repr=False)
    """That file's bytes, read from the descriptor that was checked."""
    module: str
    """The name it is imported under."""
    root: tuple[str, str]
    """The outermost module that is loaded through stackfs, and where: its path without ``.py`` or ``/__init__.py``."""
    origin: str
    """"filterdir", "entry point" or "installation"."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def is_package(self) -> bool:
        return os.path.basename(self.path) == "__init__.py"


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A directory or file that could not be used. The error names it; it may stand for the filter ``stem``."""

    path: str
    stem: str | None
    error: StackfsError


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """Every filter there is, in the order of the search, and what could not be used."""

    found: tuple[Found, ...]
    problems: tuple[Problem, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Candidate:
    stem: str
    base: str
    """The path without ``.py`` or ``/__init__.py``."""
    package: bool
    origin: str
    module: str | None = None
    """Entry points: the module's own name. Others: follows from origin and manifest."""
    root: tuple[str, str] | None = None

    @property
    def path(self) -> str:
        return f"{self.base}/__init__.py" if self.package else f"{self.base}.py"


def installation_directory() -> str | None:
    """The ``filters/`` directory that came with stackfs; None if this installation has none."""
    spec = importlib.util.find_spec("stackfs")
    for location in (spec.submodule_search_locations if spec else None) or ():
        directory = os.path.join(os.path.abspath(location), "filters")
        if os.path.isdir(directory):
            return directory
    return None


def find(name: str, filter_dirs: Sequence[str] = ()) -> Found:
    """The filter of that name.

    FilterNotFoundError: there is none. Otherwise the error of what stands in its place: a file of that name that is
    broken or not trusted is never passed over for another one further on, and a given directory must be usable.
    """
    known: list[str] = []
    broken: list[Problem] = []
    for each in _search(filter_dirs):
        if isinstance(each, Problem):
            if each.stem is None or each.stem == name:
                raise each.error
            broken.append(each)
        elif each.name == name:
            return each
        else:
            known.append(each.name)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f" (there are: {', '.join(sorted(set(known))) or 'none'})"
    unusable = f"; not usable: {broken[0].error}" if broken else ""
    raise FilterNotFoundError(f"there is no filter {name!r}{hint}{unusable}")


def list_all(filter_dirs: Sequence[str] = ()) -> Listing:
    """Every filter that can be found. Whatever is broken, not trusted or there twice is reported and harms no other."""
    found: dict[str, Found] = {}
    problems: list[Problem] = []
    for each in _search(filter_dirs):
        if isinstance(each, Problem):
            problems.append(each)
        elif each.name in found:
            first = found[each.name].path
            error = FilterImageError(f"{each.path}: not used: the name {each.name!r} is already taken by {first}")
            problems.append(Problem(each.path, each.name, error))
        else:
            found[each.name] = each
    return Listing(tuple(found.values()), tuple(problems))


def _search(filter_dirs: Sequence[str]) -> Iterator[Found | Problem]:
    for each in _candidates(filter_dirs):
        if isinstance(each, Problem):
            yield each
            continue
        try:
            source = read_trusted(each.path)
            manifest = parse_manifest(source, each.path) or _manifest_of_inf(f"{each.base}.inf")
        except StackfsError as error:
            if not (each.package and error.exit_code is ExitCode.NOT_FOUND):  # a directory that is no package
                yield Problem(each.path, each.stem, error)
            continue
        if manifest is not None:
            yield _found(each, manifest, source)
        elif each.origin == "entry point":
            yield Problem(each.path, each.stem, FilterImageError(f"{each.path}: an entry point without a MANIFEST"))


def _manifest_of_inf(path: str) -> Manifest | None:
    """The manifest that an INF beside a drop-in gives; None: there is none."""
    try:
        data = read_trusted(path)
    except StackfsError as error:
        if error.exit_code is ExitCode.NOT_FOUND:
            return None
        raise
    return inf.manifest(data, path)


def _found(candidate: _Candidate, manifest: Manifest, source: bytes) -> Found:
    if candidate.module is not None:
        module = candidate.module
    elif candidate.origin == "installation":
        module = f"stackfs.filters.{candidate.stem}"
    else:
        module = "stackfs_filter_" + re.sub(r"[.-]", lambda match: f"_{ord(match[0]):02x}_", manifest.name)
    root = candidate.root or (module, candidate.base)
    return Found(manifest, candidate.path, source, module, root, candidate.origin)


def _candidates(filter_dirs: Sequence[str]) -> Iterator[_Candidate | Problem]:
    installation = installation_directory()
    shipped = os.path.realpath(installation) if installation else None
    seen: set[str] = set()
    for directory in filter_dirs:
        origin = "installation" if os.path.realpath(directory) == shipped else "filterdir"
        yield from _directory(os.path.abspath(directory), origin, seen)
    yield from _entry_points()
    if installation:
        yield from _directory(installation, "installation", seen)


def _directory(directory: str, origin: str, seen: set[str]) -> Iterator[_Candidate | Problem]:
    try:
        descriptor, real = open_resolved(directory, "directory")
    except StackfsError as error:
        yield Problem(directory, None, error)
        return
    try:
        entries = sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)
    if real in seen:
        return
    seen.add(real)
    root = ("stackfs.filters", directory) if origin == "installation" else None
    for entry in entries:
        if entry.startswith(("_", ".")):
            continue
        stem = entry.removesuffix(".py")
        if stem != entry or "." not in entry:
            yield _Candidate(stem, os.path.join(directory, stem), stem == entry, origin, root=root)


def _entry_points() -> Iterator[_Candidate | Problem]:
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    for point in sorted(points, key=lambda each: (each.name, each.value)):
        candidate = _locate(point.name, point.module)
        message = f"entry point {point.name} = {point.value!r}: there is no such Python module"
        yield candidate or Problem(point.value, point.name, FilterImageError(message))


def _locate(stem: str, module: str) -> _Candidate | None:
    """Where an installed module's file is. Only the outermost package is asked for, so nothing is imported."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        if inner or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        base = spec.origin.removesuffix(".py")
        return _Candidate(stem, base, False, "entry point", module, (top, base))
    for location in spec.submodule_search_locations:
        base = os.path.join(location, *inner)
        for package in (True, False):
            if os.path.exists(f"{base}/__init__.py" if package else f"{base}.py"):
                return _Candidate(stem, base, package, "entry point", module, (top, location))
    return None
