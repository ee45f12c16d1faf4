"""File name information (docs/semantics.md B1): formats, query methods, parts, the cache, destinations, providers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from stack_driver import (
    CREATE,
    GETATTR,
    LOOKUP,
    MKDIR,
    OPEN,
    READ,
    RELEASE,
    RMDIR,
    UNLINK,
    Host,
    error_of,
    go_on,
    lookup,
    opened,
    read,
)

from stackfs import api, fltkernel
from stackfs.api import (
    FLT_FILE_NAME_ALLOW_QUERY_ON_REPARSE,
    FLT_FILE_NAME_DO_NOT_CACHE,
    FLT_FILE_NAME_NORMALIZED,
    FLT_FILE_NAME_OPENED,
    FLT_FILE_NAME_QUERY_ALWAYS_ALLOW_CACHE_LOOKUP,
    FLT_FILE_NAME_QUERY_CACHE_ONLY,
    FLT_FILE_NAME_QUERY_DEFAULT,
    FLT_FILE_NAME_QUERY_FILESYSTEM_ONLY,
    FLT_FILE_NAME_REQUEST_FROM_CURRENT_PROVIDER,
    FLT_FILE_NAME_SHORT,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    FLT_PREOP_SYNCHRONIZE,
    IRP_MJ_CLOSE,
    IRP_MJ_CREATE,
    IRP_MJ_NETWORK_QUERY_OPEN,
    IRP_MJ_QUERY_OPEN,
    IRP_MJ_READ,
    IRP_MJ_SET_INFORMATION,
    STATUS_FLT_INVALID_NAME_REQUEST,
    STATUS_FLT_NAME_CACHE_MISS,
    STATUS_INVALID_PARAMETER,
    STATUS_NO_SUCH_FILE,
    STATUS_OBJECT_NAME_INVALID,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_SUCCESS,
    STATUS_UNSUCCESSFUL,
    FileNameInformation,
    NtStatusError,
)
from stackfs.cext.python_names import NameProvider, parse_file_name
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.ddi.names import name_provider
from stackfs.ddi.out import Out
from stackfs.errors import FltError
from stackfs.manager import FilterManager, running

RENAME, LINK, RENAME2, TMPFILE = 12, 13, 45, 51
NAMES = FLT_FILE_NAME_NORMALIZED | FLT_FILE_NAME_QUERY_DEFAULT
OPENED = FLT_FILE_NAME_OPENED | FLT_FILE_NAME_QUERY_DEFAULT
SHORT = FLT_FILE_NAME_SHORT | FLT_FILE_NAME_QUERY_DEFAULT
ONLY_CACHED = FLT_FILE_NAME_NORMALIZED | FLT_FILE_NAME_QUERY_CACHE_ONLY
FRESH = FLT_FILE_NAME_NORMALIZED | FLT_FILE_NAME_QUERY_FILESYSTEM_ONLY
OWNER = 2
"""READ with a lock owner: a program's own, not the page cache's."""


class Layer:
    """An instance made by hand; `see(when, data)` is called in each of its callbacks, at PASSIVE_LEVEL."""

    def __init__(
        self, core: Volume, see: Callable[[str, Any], Any] = go_on, *majors: int,
        name: str = "f", at: str = "1", names: NameProvider | None = None,
    ) -> None:  # fmt: skip
        core.stack.name = b"vol"
        self.core = core
        self.see = see
        self.host = Host()
        rows = [(major, 0, self.pre, self.post) for major in majors]
        self.entry = InstanceEntry(self.host, name, at, name, rows, names=names)
        core.stack.introduce(self.entry)
        core.stack.insert(self.entry)

    def pre(self, data: Any, objects: Any) -> int:
        self.see("pre", data)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK if data.major == IRP_MJ_CREATE else FLT_PREOP_SYNCHRONIZE

    def post(self, data: Any, objects: Any, context: Any, flags: int) -> None:
        self.see("post", data)

    def fine(self) -> None:
        assert self.host.told == []


def name_or_status(data: Any, options: int = NAMES) -> Any:
    try:
        information: FileNameInformation = data.name_information(options)
    except NtStatusError as error:
        return error.status
    return information.name


def own_read(core: Volume, fh: int) -> None:
    """A READ that is no paging I/O."""
    core.request(READ, fh=fh, buffer=bytearray(4), size=4, open_flags=OWNER, lock_owner=1).do()


class Asks(Layer):
    """Asks for names in the pre of each READ: by `options`, or whatever `look(data)` does. What it found: `found`."""

    def __init__(
        self, core: Volume, options: int = NAMES, look: Callable[[Any], Any] | None = None, **keywords: Any
    ) -> None:
        self.options = options
        self.found: list[Any] = []
        self.look = look or (lambda data: name_or_status(data, self.options))
        super().__init__(core, self.ask, IRP_MJ_READ, **keywords)

    def ask(self, when: str, data: Any) -> None:
        if when == "pre":
            self.found.append(self.look(data))

    def of(self, fh: int) -> Any:
        """What it finds in a READ of this handle."""
        own_read(self.core, fh)
        self.fine()
        return self.found[-1]


def find(core: Volume, *names: bytes) -> int:
    node = 1
    for name in names:
        node = core.request(LOOKUP, node, name=name).do().nodeid
    return node


@pytest.fixture
def tree(place: Path) -> Path:
    (place / "folder" / "below").mkdir()
    (place / "folder" / "below" / "deep.tar.gz").write_bytes(b"0123456789")
    (place / "b\xff".encode("latin-1").decode("utf-8", "surrogateescape")).write_bytes(b"0123456789")
    return place


# ---- formats and parts (B1.1, B1.2, B1.3) ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [NAMES, OPENED, FRESH])
def test_a_name_and_its_parts(core: Volume, tree: Path, options: int) -> None:
    """B1.1, B1.3: the volume's name and the path, in parts that make it up; the same for NORMALIZED and OPENED."""
    layer = Asks(core, look=lambda data: data.name_information(options))
    information = layer.of(opened(core, find(core, b"folder", b"below", b"deep.tar.gz")))
    assert information.name == str(information) == "vol/folder/below/deep.tar.gz"
    assert information.path == "/folder/below/deep.tar.gz"
    assert (information.volume, information.share, information.stream) == ("vol", "", "")
    assert (information.parent_dir, information.final_component, information.extension) == (
        "/folder/below/", "deep.tar.gz", "gz",
    )  # fmt: skip
    assert information.volume + information.parent_dir + information.final_component == information.name
    assert information.format == options & 0xFF and information.names_parsed == (
        api.FLTFL_FILE_NAME_PARSED_FINAL_COMPONENT | api.FLTFL_FILE_NAME_PARSED_EXTENSION
        | api.FLTFL_FILE_NAME_PARSED_STREAM | api.FLTFL_FILE_NAME_PARSED_PARENT_DIR
    )  # fmt: skip


def test_names_that_are_no_utf_8(core: Volume, tree: Path) -> None:
    """F8: they come back as the same bytes."""
    layer = Asks(core)
    assert os.fsencode(layer.of(opened(core, find(core, b"b\xff")))) == b"vol/b\xff"


def test_the_root_has_no_final_component(core: Volume, tree: Path) -> None:
    """B1.3"""
    seen = []
    layer = Layer(core, lambda when, data: seen.append(data.name_information()), IRP_MJ_NETWORK_QUERY_OPEN)
    core.request(GETATTR, 1).do()
    layer.fine()
    root = seen[0]
    assert (root.name, root.parent_dir, root.final_component, root.extension) == ("vol/", "/", "", "")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("/a/b.txt", ("txt", "", "b.txt")),
        ("b", ("", "", "b")),
        ("/a.b/c", ("", "", "c")),
        (".profile", ("profile", "", ".profile")),
        ("a.", ("", "", "a.")),
        ("/", ("", "", "")),
        ("", ("", "", "")),
        ("a:b.c:d", ("c:d", "", "a:b.c:d")),
        (b"/x\xff.y\xfe", ("y\udcfe", "", "x\udcff.y\udcfe")),
    ],
)
def test_parsing(name: str, parts: tuple[str, str, str]) -> None:
    """B1.3: the extension is behind the last dot; a colon is a letter like any other."""
    assert parse_file_name(name) == parts
    outs: list[Out[str]] = [Out(), Out(), Out()]
    assert fltkernel.FltParseFileName(name, *outs) == STATUS_SUCCESS
    assert tuple(out.value for out in outs) == parts
    assert fltkernel.FltParseFileName(name, None, None, None) == STATUS_SUCCESS


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("file", "file"),
        ("README.TXT", "README.TXT"),
        ("a.b", "a.b"),
        ("12345678.123", "12345678.123"),
        ("123456789", None),
        ("a.1234", None),
        ("a.b.c", None),
        (".a", None),
        ("a.", None),
        ("a b", None),
        ("ä", None),
        ("x+y", None),
    ],
)
def test_short_names(core: Volume, place: Path, name: str, short: str | None) -> None:
    """B1.2: there are no 8.3 names on Linux; a name that is one is its own, the others have none."""
    (place / name).write_bytes(b"x")
    layer = Asks(core, look=lambda data: (name_or_status(data, SHORT), name_or_status(data, NAMES)))
    found = layer.of(opened(core, lookup(core, os.fsencode(name))))
    assert found == (STATUS_OBJECT_NAME_NOT_FOUND if short is None else short, f"vol/{name}")


def test_a_short_name_has_no_parts(core: Volume, place: Path) -> None:
    """B1.2: FltParseFileNameInformation refuses it."""

    def look(data: Any) -> Any:
        short = data.name_information(SHORT)
        assert fltkernel.FltParseFileNameInformation(short) == STATUS_INVALID_PARAMETER
        assert fltkernel.FltParseFileNameInformation(data.name_information()) == STATUS_SUCCESS
        return short.name, short.volume, short.parent_dir, short.final_component, short.names_parsed

    assert Asks(core, look=look).of(opened(core, lookup(core, b"file"))) == ("file", "", "", "", 0)


@pytest.mark.parametrize(
    "options",
    [0, 1, 0x100, 0x104, 0x401 + 0x100, 0x1F1, 0x181, 0x101 | 0x8000000, 0x101 | 0x10000, 0xFFFFFFFF, 0x501],
)
def test_options_that_make_no_sense(core: Volume, place: Path, options: int) -> None:
    """B1.2: one format, one query method, known flags."""
    assert Asks(core, options).of(opened(core, lookup(core, b"file"))) == STATUS_INVALID_PARAMETER


# ---- whose name, and when (B1.4) ------------------------------------------------------------------------------------


def test_the_name_in_each_operation(core: Volume, tree: Path) -> None:
    """B1.4: by name in a directory, by node, by handle, of what is being made, and of what goes."""
    seen: dict[tuple[int, str], Any] = {}
    layer = Layer(
        core, lambda when, data: seen.setdefault((data.major, when), name_or_status(data)),
        IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_CLOSE, IRP_MJ_SET_INFORMATION, IRP_MJ_QUERY_OPEN,
    )  # fmt: skip
    folder = find(core, b"folder")
    assert seen[IRP_MJ_QUERY_OPEN, "pre"] == seen[IRP_MJ_QUERY_OPEN, "post"] == "vol/folder"
    made = core.request(CREATE, folder, name=b"new", flags=os.O_RDWR, mode=0o644).do()
    assert seen[IRP_MJ_CREATE, "pre"] == seen[IRP_MJ_CREATE, "post"] == "vol/folder/new"
    own_read(core, made.fh)
    core.request(RELEASE, fh=made.fh).do()
    assert seen[IRP_MJ_READ, "pre"] == seen[IRP_MJ_CLOSE, "pre"] == "vol/folder/new"
    assert seen[IRP_MJ_CLOSE, "post"] == STATUS_FLT_INVALID_NAME_REQUEST
    core.request(UNLINK, folder, name=b"new").do()
    assert seen[IRP_MJ_SET_INFORMATION, "pre"] == seen[IRP_MJ_SET_INFORMATION, "post"] == "vol/folder/new"
    layer.fine()


def test_a_hard_linked_file_goes_by_the_name_it_was_opened_by(core: Volume, tree: Path) -> None:
    """B1.4, D7"""
    os.link(tree / "file", tree / "folder" / "second")
    layer = Asks(core)
    first = opened(core, find(core, b"file"))
    second = opened(core, find(core, b"folder", b"second"))
    for _ in range(2):
        assert layer.of(first) == "vol/file" and layer.of(second) == "vol/folder/second"
    core.request(UNLINK, name=b"file").do()
    assert layer.of(first) == "vol/folder/second" and layer.of(second) == "vol/folder/second"


def test_a_file_without_a_name_goes_by_its_last_one(core: Volume, tree: Path) -> None:
    """B1.4: its path says that it is deleted, its name does not; O_TMPFILE's is a number until it is linked."""
    layer = Asks(core, look=lambda data: (data.path, name_or_status(data), name_or_status(data, SHORT)))
    fh = opened(core, find(core, b"folder", b"below", b"deep.tar.gz"))
    core.request(UNLINK, find(core, b"folder", b"below"), name=b"deep.tar.gz").do()
    path = "/folder/below/deep.tar.gz"
    assert layer.of(fh) == (path + " (deleted)", "vol" + path, STATUS_OBJECT_NAME_NOT_FOUND)
    made = core.request(TMPFILE, find(core, b"folder"), flags=os.O_RDWR, mode=0o600)
    made.run()
    if made.error:
        pytest.skip("this filesystem has no O_TMPFILE")
    assert layer.of(made.fh)[1].startswith("vol/folder/#")
    core.request(LINK, 1, name=b"", name2=b"linked", nodeid2=made.nodeid).do()
    assert layer.of(made.fh)[1] == "vol/linked"


def test_where_names_cannot_be_had(core: Volume, tree: Path) -> None:
    """B1.4: paging I/O, after CLOSE, a short name before CREATE, a reparse that was not asked for."""
    seen: list[Any] = []

    def see(when: str, data: Any) -> None:
        if data.major == IRP_MJ_CREATE:
            seen.append((when, name_or_status(data, SHORT)))
            if when == "post":
                data.status = api.STATUS_REPARSE
                seen.append(("reparse", name_or_status(data)))
                seen.append(("asked", name_or_status(data, NAMES | FLT_FILE_NAME_ALLOW_QUERY_ON_REPARSE)))
                data.status = STATUS_SUCCESS
        elif when == "pre":
            seen.append((data.irp_flags & api.IRP_PAGING_IO != 0, name_or_status(data)))

    layer = Layer(core, see, IRP_MJ_CREATE, IRP_MJ_READ)
    fh = opened(core, find(core, b"file"))
    read(core, fh)
    own_read(core, fh)
    layer.fine()
    refused = STATUS_FLT_INVALID_NAME_REQUEST
    assert seen == [
        ("pre", refused), ("post", "file"), ("reparse", refused), ("asked", "vol/file"),
        (True, refused), (False, "vol/file"),
    ]  # fmt: skip


# ---- the cache (B1.5) -----------------------------------------------------------------------------------------------


def test_query_methods(core: Volume, tree: Path) -> None:
    """B1.5: what each asks, and what each leaves in the cache."""
    layer = Asks(core)
    fh = opened(core, find(core, b"file"))

    def ask(options: int) -> Any:
        layer.options = options
        return layer.of(fh)

    assert ask(ONLY_CACHED) == STATUS_FLT_NAME_CACHE_MISS
    assert ask(NAMES | FLT_FILE_NAME_DO_NOT_CACHE) == "vol/file"
    assert ask(ONLY_CACHED) == STATUS_FLT_NAME_CACHE_MISS
    assert ask(NAMES) == "vol/file" and ask(ONLY_CACHED) == "vol/file"
    assert ask(FLT_FILE_NAME_OPENED | FLT_FILE_NAME_QUERY_CACHE_ONLY) == STATUS_FLT_NAME_CACHE_MISS  # another format
    layer.entry.flt_purge_names(None)
    assert ask(ONLY_CACHED) == STATUS_FLT_NAME_CACHE_MISS
    assert ask(FRESH) == "vol/file" and ask(ONLY_CACHED) == "vol/file"  # asked past the cache, into the cache
    always = FLT_FILE_NAME_NORMALIZED | FLT_FILE_NAME_QUERY_ALWAYS_ALLOW_CACHE_LOOKUP
    paging: list[Any] = []
    methods = (NAMES, always, ONLY_CACHED, FRESH)
    layer.look = lambda data: paging.append([name_or_status(data, each) for each in methods])
    read(core, fh)  # paging I/O: DEFAULT does nothing at all
    assert paging[-1] == [STATUS_FLT_INVALID_NAME_REQUEST, "vol/file", "vol/file", STATUS_FLT_INVALID_NAME_REQUEST]
    layer.entry.flt_purge_names(None)
    read(core, fh)
    refused = STATUS_FLT_INVALID_NAME_REQUEST
    assert paging[-1] == [refused, refused, STATUS_FLT_NAME_CACHE_MISS, refused]
    layer.fine()


def test_information_is_shared(core: Volume, tree: Path) -> None:
    """B1.1, B1.5: one for all who ask, counted; a purge does not take it from who has it."""
    kept: list[FileNameInformation] = []
    layer = Asks(core, look=lambda data: kept.append(data.name_information()))
    fh = opened(core, find(core, b"file"))
    for _ in range(3):
        layer.of(fh)
    assert [each.references for each in kept] == [4, 4, 4]  # and the cache's
    first = kept[0]
    first.reference()
    assert first.references == 5
    first.release()
    first.release()
    assert first.references == 0 and kept[1].references == 3
    with pytest.raises(ReferenceError):
        first.name  # noqa: B018
    with pytest.raises(ReferenceError):
        first.release()
    core.request(RENAME, name=b"file", name2=b"other", nodeid2=1).do()
    assert kept[1].references == 2 and kept[1].name == "vol/file"
    del kept[2]
    assert kept[1].references == 1


def test_renaming_a_directory_renames_all_below(core: Volume, tree: Path) -> None:
    """B1.5: the cache forgets whole subtrees, however deep, and nothing it knew of other files is wrong."""
    layer = Asks(core)
    deep, file = opened(core, find(core, b"folder", b"below", b"deep.tar.gz")), opened(core, find(core, b"file"))
    assert layer.of(deep) == "vol/folder/below/deep.tar.gz" and layer.of(file) == "vol/file"
    core.request(MKDIR, name=b"new", mode=0o755).do()
    layer.options = ONLY_CACHED
    assert layer.of(deep) == "vol/folder/below/deep.tar.gz"  # a new directory changes no path
    layer.options = NAMES
    core.request(RENAME, name=b"folder", name2=b"moved", nodeid2=find(core, b"new")).do()
    layer.options = ONLY_CACHED
    assert layer.of(deep) == STATUS_FLT_NAME_CACHE_MISS
    layer.options = NAMES
    assert layer.of(deep) == "vol/new/moved/below/deep.tar.gz" and layer.of(file) == "vol/file"
    core.request(RENAME2, find(core, b"new"), name=b"moved", name2=b"file", nodeid2=1, flags=2).do()  # exchange
    assert layer.of(deep) == "vol/file/below/deep.tar.gz" and layer.of(file) == "vol/new/moved"


@pytest.mark.parametrize("how", ["rename", "replace", "unlink", "beside"])
def test_the_cache_forgets_what_changed_its_name(core: Volume, tree: Path, how: str) -> None:
    """B1.5"""
    layer = Asks(core)
    os.link(tree / "file", tree / "link")
    fh = opened(core, find(core, b"file"))
    assert layer.of(fh) == "vol/file"
    if how == "rename":
        core.request(RENAME, name=b"file", name2=b"other", nodeid2=1).do()
        expected = "vol/other"
    elif how == "replace":
        (tree / "third").write_bytes(b"x")
        find(core, b"link")
        find(core, b"third")
        core.request(RENAME, name=b"third", name2=b"file", nodeid2=1).do()
        expected = "vol/link"
    elif how == "unlink":
        core.request(UNLINK, name=b"file").do()
        expected = "vol/file"
    else:  # renamed beside the mount, and found there
        os.rename(tree / "file", tree / "folder" / "elsewhere")
        find(core, b"folder", b"elsewhere")
        (tree / "file").write_bytes(b"another")
        find(core, b"file")
        expected = "vol/folder/elsewhere"
    layer.options = ONLY_CACHED
    assert layer.of(fh) == STATUS_FLT_NAME_CACHE_MISS
    layer.options = NAMES
    assert layer.of(fh) == expected


def test_purging_one_file(core: Volume, tree: Path) -> None:
    """B1.5: FltPurgeFileNameInformationCache, of a file object or of the volume."""
    layer = Asks(core)
    file, deep = opened(core, find(core, b"file")), opened(core, find(core, b"folder", b"below", b"deep.tar.gz"))
    instance = SimpleNamespace(entry=layer.entry)
    layer.of(file), layer.of(deep)
    layer.look = lambda data: fltkernel.FltPurgeFileNameInformationCache(instance, data)
    assert layer.of(file) == STATUS_SUCCESS
    layer.look = lambda data: name_or_status(data, ONLY_CACHED)
    assert layer.of(file) == STATUS_FLT_NAME_CACHE_MISS and layer.of(deep).endswith("deep.tar.gz")
    assert fltkernel.FltPurgeFileNameInformationCache(instance, None) == STATUS_SUCCESS
    assert layer.of(deep) == STATUS_FLT_NAME_CACHE_MISS


def test_names_under_threads_are_those_of_some_moment(core: Volume, tree: Path) -> None:
    """B1.5: asked for by threads while the directory above is renamed to and fro, a name is the one before or after."""
    layer = Asks(core)
    fh = opened(core, find(core, b"folder", b"below", b"deep.tar.gz"))
    end = threading.Event()
    stale: list[str] = []

    def rename() -> None:
        for number in range(300):
            old, new = (b"folder", b"other") if number % 2 == 0 else (b"other", b"folder")
            core.request(RENAME, name=old, name2=new, nodeid2=1).do()
            name = f"vol/{new.decode()}/below/deep.tar.gz"
            own_read(core, fh)
            with_it = [each for each in layer.found[-6:] if each == name]
            if not with_it:
                stale.append(name)
        end.set()

    def ask() -> None:
        while not end.is_set():
            own_read(core, fh)

    threads = [threading.Thread(target=ask), threading.Thread(target=ask), threading.Thread(target=rename)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    layer.fine()
    assert set(layer.found) == {"vol/folder/below/deep.tar.gz", "vol/other/below/deep.tar.gz"} and not stale


# ---- destinations (B1.7) --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [RENAME, RENAME2, LINK])
def test_the_name_that_a_rename_or_link_will_give(core: Volume, tree: Path, opcode: int) -> None:
    """B1.7"""
    seen: list[Any] = []

    def see(when: str, data: Any) -> None:
        if when == "pre":
            seen.append((data.name_information().name, data.destination_name_information().name))
            seen.append(data.destination_name_information(OPENED).extension)
            with pytest.raises(NtStatusError):
                data.destination_name_information(SHORT)

    layer = Layer(core, see, IRP_MJ_SET_INFORMATION)
    below, file = find(core, b"folder", b"below"), find(core, b"file")
    if opcode == LINK:
        core.request(LINK, below, name=b"", name2=b"new.x", nodeid2=file).do()
    else:
        core.request(opcode, name=b"file", name2=b"new.x", nodeid2=below).do()
    layer.fine()
    assert seen[:2] == [("vol/file", "vol/folder/below/new.x"), "x"]


def test_a_destination_where_there_is_none(core: Volume, tree: Path) -> None:
    """B1.7: only a rename or link has one."""

    def look(data: Any) -> Any:
        with pytest.raises(AttributeError):
            data.destination_name_information()
        return 1

    assert Asks(core, look=look).of(opened(core, find(core, b"file"))) == 1


def test_tunneling_and_name_controls(core: Volume, tree: Path) -> None:
    """B1.9"""

    def look(data: Any) -> Any:
        tunneled: Out[FileNameInformation | None] = Out()
        return fltkernel.FltGetTunneledName(data, data.name_information(), tunneled), tunneled.value

    assert Asks(core, look=look).of(opened(core, find(core, b"file"))) == (STATUS_SUCCESS, None)
    control = fltkernel.FLT_NAME_CONTROL(2)
    control.Name[:] = b"ab"
    assert fltkernel.FltCheckAndGrowNameControl(control, 1) == STATUS_SUCCESS and control.MaximumLength == 2
    assert fltkernel.FltCheckAndGrowNameControl(control, 10) == STATUS_SUCCESS
    assert control.MaximumLength == 10 and control.Name[:2] == b"ab"
    assert fltkernel.FltCheckAndGrowNameControl(control, 0x10000) == api.STATUS_INSUFFICIENT_RESOURCES


def test_the_routines_under_their_names(core: Volume, tree: Path) -> None:
    """B1 through fltkernel."""

    def look(data: Any) -> Any:
        instance = SimpleNamespace(entry=layer.entry)
        out: Out[FileNameInformation | None] = Out()
        assert fltkernel.FltGetFileNameInformation(data, 5, out) == STATUS_INVALID_PARAMETER and out.value is None
        assert fltkernel.FltGetFileNameInformation(data, NAMES, out) == STATUS_SUCCESS and out.value is not None
        first = out.value
        assert first.name == "vol/file"
        fltkernel.FltReferenceFileNameInformation(first)
        fltkernel.FltReleaseFileNameInformation(first)
        assert fltkernel.FltGetFileNameInformationUnsafe(data, instance, OPENED, out) == STATUS_SUCCESS
        assert out.value is not None and out.value.name == "vol/file"
        assert fltkernel.FltGetFileNameInformationUnsafe(data, None, OPENED, out) == STATUS_INVALID_PARAMETER
        destination = fltkernel.FltGetDestinationFileNameInformation
        assert destination(instance, data, None, "new", 3, NAMES, out) == STATUS_SUCCESS
        assert out.value is not None and out.value.name == "vol/new"
        assert destination(instance, data, None, "new", 2, NAMES, out) == STATUS_SUCCESS
        assert out.value is not None and out.value.name == "vol/ne"
        assert destination(instance, data, None, "a/b", 3, NAMES, out) == STATUS_INVALID_PARAMETER
        assert destination(instance, data, data, "new", 3, NAMES, out) == STATUS_INVALID_PARAMETER  # a READ has none
        fltkernel.FltReleaseFileNameInformation(first)
        return first.references

    layer = Asks(core, look=look)
    assert layer.of(opened(core, find(core, b"file"))) == 0


def test_a_file_that_is_not_open_has_no_name_by_itself(core: Volume, tree: Path) -> None:
    """B1.6: FltGetFileNameInformationUnsafe asks for an open file object."""
    seen: list[int] = []

    def see(when: str, data: Any) -> None:
        out: Out[FileNameInformation | None] = Out()
        seen.append(fltkernel.FltGetFileNameInformationUnsafe(data, SimpleNamespace(entry=layer.entry), NAMES, out))

    layer = Layer(core, see, IRP_MJ_CREATE)
    assert error_of(core, OPEN, find(core, b"file")) == 0
    layer.fine()
    assert seen == [STATUS_FLT_INVALID_NAME_REQUEST, STATUS_SUCCESS]


# ---- name providers (B1.8) ------------------------------------------------------------------------------------------


def shows(old: str, new: str, asked: list[str] | None = None) -> NameProvider:
    """A provider that shows the directory `old` as `new`."""

    def generate(information: FileNameInformation, instance: Any) -> str | None:
        if asked is not None:
            asked.append(information.name)
        path = information.path
        return new + path[len(old):] if path == old or path.startswith(old + "/") else None

    return NameProvider(generate)


def test_who_is_above_a_provider_sees_its_names(core: Volume, tree: Path) -> None:
    """B1.8: each layer's names come from the provider nearest below; a provider sees those from below itself."""
    asked: list[str] = []
    layers = {
        name: Asks(core, name=name, at=at, names=names)
        for name, at, names in (
            ("top", "5", None),
            ("upper", "4", shows("/middle", "/upper", asked)),
            ("between", "3.5", None),
            ("lower", "3", shows("/folder", "/middle")),
            ("bottom", "1", None),
        )
    }
    own_read(core, opened(core, find(core, b"folder", b"below", b"deep.tar.gz")))
    found = {name: layer.found[-1] for name, layer in layers.items()}
    assert found == {
        "top": "vol/upper/below/deep.tar.gz",
        "upper": "vol/middle/below/deep.tar.gz",
        "between": "vol/middle/below/deep.tar.gz",
        "lower": "vol/folder/below/deep.tar.gz",
        "bottom": "vol/folder/below/deep.tar.gz",
    }
    assert asked == ["vol/middle/below/deep.tar.gz"]
    for layer in layers.values():
        layer.fine()


def test_a_provider_may_ask_for_its_own_names(core: Volume, tree: Path) -> None:
    """B1.8: FLT_FILE_NAME_REQUEST_FROM_CURRENT_PROVIDER; who is no provider gets what he always gets."""
    own = NAMES | FLT_FILE_NAME_REQUEST_FROM_CURRENT_PROVIDER
    provider = Asks(core, own, name="p", at="2", names=shows("/folder", "/x"))
    plain = Asks(core, own, name="n", at="1")
    own_read(core, opened(core, find(core, b"folder", b"below", b"deep.tar.gz")))
    assert provider.found == ["vol/x/below/deep.tar.gz"] and plain.found == ["vol/folder/below/deep.tar.gz"]


def test_what_is_named_in_a_directory_goes_by_the_directory_s_name(core: Volume, tree: Path) -> None:
    """B1.8, B1.4: of what is looked up, made or renamed the provider is asked for the directory alone."""
    asked: list[str] = []
    seen: list[Any] = []

    def see(when: str, data: Any) -> None:
        if when == "pre":
            seen.append(data.name_information().name)
            if data.major == IRP_MJ_SET_INFORMATION:
                seen.append(data.destination_name_information().name)

    Layer(core, name="p", at="1", names=shows("/folder", "/x", asked))
    layer = Layer(core, see, IRP_MJ_CREATE, IRP_MJ_SET_INFORMATION, name="n", at="2")
    folder = find(core, b"folder")
    core.request(CREATE, folder, name=b"new", flags=os.O_RDWR, mode=0o644).do()
    core.request(RENAME, folder, name=b"new", name2=b"newer", nodeid2=folder).do()
    layer.fine()
    assert seen == ["vol/x/new", "vol/x/new", "vol/x/new", "vol/x/newer"]
    assert asked == ["vol/folder"]  # the directory's name was cached


def test_what_providers_make_is_cached_until_it_is_wrong(core: Volume, tree: Path) -> None:
    """B1.5, B1.8: asked once; again after a rename, and when a provider comes or goes."""
    asked: list[str] = []
    top = Asks(core, name="top", at="9")
    fh = opened(core, find(core, b"folder", b"below", b"deep.tar.gz"))
    assert top.of(fh) == "vol/folder/below/deep.tar.gz"
    provider = Layer(core, name="p", at="5", names=shows("/folder", "/x", asked))
    assert top.of(fh) == top.of(fh) == "vol/x/below/deep.tar.gz" and len(asked) == 1
    core.request(RENAME, find(core, b"folder"), name=b"below", name2=b"under", nodeid2=find(core, b"folder")).do()
    assert top.of(fh) == "vol/x/under/deep.tar.gz" and len(asked) == 2
    lower = Layer(core, name="q", at="4", names=shows("/folder/under", "/folder/y"))
    assert top.of(fh) == "vol/x/y/deep.tar.gz" and len(asked) == 3
    core.stack.remove(lower.entry)
    assert top.of(fh) == "vol/x/under/deep.tar.gz"
    core.stack.remove(provider.entry)
    assert top.of(fh) == "vol/folder/under/deep.tar.gz"
    assert core.stack.drained()


def test_a_provider_may_forbid_caching(core: Volume, tree: Path) -> None:
    """B1.8"""
    count = iter(range(10))
    Layer(core, name="p", at="1", names=NameProvider(lambda information, _: (f"/{next(count)}", False)))
    top = Asks(core, name="n", at="2")
    fh = opened(core, find(core, b"file"))
    assert [top.of(fh) for _ in range(3)] == ["vol/0", "vol/1", "vol/2"]


@pytest.mark.parametrize(
    ("generate", "status", "told"),
    [
        (lambda *_: "no slash", STATUS_OBJECT_NAME_INVALID, False),
        (lambda *_: "", STATUS_OBJECT_NAME_INVALID, False),
        (lambda *_: "/a\0b", STATUS_OBJECT_NAME_INVALID, False),
        (lambda *_: "/" + "x" * 5000, api.STATUS_NAME_TOO_LONG, False),
        (lambda *_: "/" + "x" * 70000, api.STATUS_NAME_TOO_LONG, False),
        (lambda *_: 5, STATUS_UNSUCCESSFUL, True),
        (lambda *_: {}["x"], STATUS_UNSUCCESSFUL, True),
    ],
)
def test_a_provider_that_answers_nonsense(
    core: Volume, tree: Path, generate: Callable[..., Any], status: int, told: bool
) -> None:
    """B1.8: the query fails, and the filter is told of; the operation is not concerned."""
    provider = Layer(core, name="p", at="1", names=NameProvider(generate))
    top = Asks(core, name="n", at="2")
    assert top.of(opened(core, find(core, b"file"))) == status
    assert [each[:2] for each in provider.host.told] == ([("raised", "generate_file_name")] if told else [])


def test_a_provider_s_status_is_the_answer(core: Volume, tree: Path) -> None:
    """B1.8"""

    def refuses(information: FileNameInformation, instance: Any) -> str:
        raise NtStatusError(api.STATUS_ACCESS_DENIED, "no")

    provider = Layer(core, name="p", at="1", names=NameProvider(refuses))
    assert Asks(core, name="n", at="2").of(opened(core, find(core, b"file"))) == api.STATUS_ACCESS_DENIED
    provider.fine()


def test_normalizing_component_by_component(core: Volume, tree: Path) -> None:
    """B1.8: from left to right, each in its real directory, one context for the whole name, which is cleaned up."""
    calls: list[Any] = []

    def normalize(parent: str, component: str, flags: int, context: Any, instance: Any) -> Any:
        calls.append((parent, component, flags, context))
        return {"folder": "FOLDER-LONG", "below": "Below"}.get(component), (context or 0) + 1

    names = NameProvider(lambda *_: None, normalize, lambda context: calls.append(("cleanup", context)))
    Layer(core, name="p", at="1", names=names)
    top = Asks(core, name="n", at="2")
    fh = opened(core, find(core, b"folder", b"below", b"deep.tar.gz"))
    assert top.of(fh) == "vol/FOLDER-LONG/Below/deep.tar.gz"
    assert calls == [
        ("/", "folder", 1, None), ("/FOLDER-LONG/", "below", 1, 1), ("/FOLDER-LONG/Below/", "deep.tar.gz", 1, 2),
        ("cleanup", 3),
    ]  # fmt: skip
    calls.clear()
    top.options = OPENED
    assert top.of(fh) == "vol/folder/below/deep.tar.gz" and calls == []


def test_a_destination_is_normalized_as_one(core: Volume, tree: Path) -> None:
    """B1.8: FLTFL_NORMALIZE_NAME_DESTINATION_FILE_NAME says which name it is about; case always matters."""
    calls: list[tuple[str, int]] = []

    def normalize(parent: str, component: str, flags: int, context: Any, instance: Any) -> Any:
        calls.append((component, flags))

    def see(when: str, data: Any) -> None:
        if when == "pre":
            calls.clear()
            data.name_information()
            data.destination_name_information()

    Layer(core, name="p", at="1", names=NameProvider(lambda *_: None, normalize))
    layer = Layer(core, see, IRP_MJ_SET_INFORMATION, name="n", at="2")
    core.request(RENAME, name=b"file", name2=b"new", nodeid2=find(core, b"folder")).do()
    layer.fine()
    sensitive, destination = api.FLTFL_NORMALIZE_NAME_CASE_SENSITIVE, api.FLTFL_NORMALIZE_NAME_DESTINATION_FILE_NAME
    assert (sensitive, destination) == (1, 2)
    assert ("file", sensitive) in calls and ("new", sensitive | destination) in calls
    assert not [component for component, flags in calls if flags & destination and component == "file"]


@pytest.mark.parametrize(("missing", "expected"), [("new", "vol/folder/new"), ("folder", STATUS_NO_SUCH_FILE)])
def test_a_component_that_is_not_there_yet(core: Volume, tree: Path, missing: str, expected: Any) -> None:
    """B1.8: STATUS_NO_SUCH_FILE is no error for the name in a directory, which may be about to be made."""

    def normalize(parent: str, component: str, flags: int, context: Any, instance: Any) -> Any:
        if component == missing:
            raise NtStatusError(STATUS_NO_SUCH_FILE, "not there")

    Layer(core, name="p", at="1", names=NameProvider(lambda *_: None, normalize))
    seen: list[Any] = []
    layer = Layer(core, lambda when, data: seen.append(name_or_status(data)), IRP_MJ_CREATE, name="n", at="2")
    core.request(CREATE, find(core, b"folder"), name=b"new", flags=os.O_RDWR, mode=0o644).do()
    layer.fine()
    assert seen[0] == expected


def test_a_provider_in_the_ddi_s_form(core: Volume, tree: Path) -> None:
    """B1.8: GenerateFileName and NormalizeNameComponent with their parameters; also of what nobody has open."""
    told: list[Any] = []

    def generate(instance: Any, file: Any, data: Any, options: int, cache: Out[bool], control: Any) -> int:
        out: Out[FileNameInformation | None] = Out()
        status = fltkernel.FltGetFileNameInformationUnsafe(file, SimpleNamespace(entry=provider.entry), OPENED, out)
        if status != STATUS_SUCCESS or out.value is None:
            return status
        name = b"/x" + os.fsencode(out.value.path)
        fltkernel.FltReleaseFileNameInformation(out.value)
        assert fltkernel.FltCheckAndGrowNameControl(control, len(name)) == STATUS_SUCCESS
        control.Name[: len(name)] = name
        control.Length = len(name)
        told.append(file)
        return STATUS_SUCCESS

    def normalize(
        instance: Any, parent: str, volume: int, component: str, control: Any, size: int, flags: int, context: Out[Any]
    ) -> int:
        if component == "refused":
            return api.STATUS_ACCESS_DENIED
        context.value = (context.value or 0) + 1
        assert parent[:volume] == "vol" and size >= 255
        control.Name[: len(component)] = component.upper().encode()
        control.Length = len(component)
        return STATUS_SUCCESS

    cleaned: list[Any] = []
    names = name_provider(generate, normalize, lambda context: cleaned.append(context.value))
    provider = Layer(core, name="p", at="1", names=names)
    provider.host.volume = SimpleNamespace(name="vol")  # type: ignore[attr-defined]
    top = Asks(core, name="n", at="2")
    seen: list[Any] = []
    opens = Layer(core, lambda when, data: seen.append(name_or_status(data)), IRP_MJ_CREATE, name="o", at="3")
    assert top.of(opened(core, find(core, b"folder", b"below", b"deep.tar.gz"))) == "vol/X/FOLDER/BELOW/DEEP.TAR.GZ"
    assert seen == ["vol/X/FOLDER/BELOW/DEEP.TAR.GZ"] * 2 and cleaned == [4] * (len(cleaned) or 1)
    core.request(CREATE, find(core, b"folder"), name=b"new", flags=os.O_RDWR, mode=0o644).do()
    assert seen[2:] == ["vol/X/FOLDER/NEW"] * 2
    assert error_of(core, CREATE, find(core, b"folder"), name=b"refused", flags=os.O_RDWR, mode=0o644) == 0
    assert seen[4:] == [api.STATUS_ACCESS_DENIED] * 2
    provider.fine()
    opens.fine()
    assert told and not any(file.alive for file in told)  # dead once the callback has returned


def test_half_a_provider_is_refused() -> None:
    """B1.8"""
    with pytest.raises(ValueError, match="generate"):
        NameProvider(None, go_on)


PROVIDER = '''
MANIFEST = {"name": "shower", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Shower"}

from stackfs.api import *

class Shower(Filter):
    def generate_file_name(self, information, objects):
        assert objects.filter.object is self
        return "/shown" + information.path
'''
ASKER = '''
MANIFEST = {"name": "asker", "altitude": "370600", "group": "FSFilter Activity Monitor", "filter": "Asker"}

from stackfs.api import *

names = []

class Asker(Filter):
    operations = (Operation(IRP_MJ_CREATE, pre="pre"),)
    names = names

    def pre(self, data, objects):
        names.append(data.name_information().name)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


def managed(tmp_path: Path, filters: dict[str, str], test: Callable[[FilterManager, Any], Any]) -> None:
    (tmp_path / "filters").mkdir()
    for name, body in filters.items():
        (tmp_path / "filters" / f"{name}.py").write_text(body)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"0123456789")

    async def main() -> None:
        with trio.fail_after(60):
            manager = FilterManager([str(tmp_path / "filters")])
            async with running(manager):
                core = Volume(os.open(tmp_path / "source", os.O_PATH | os.O_DIRECTORY))
                volume = manager.add_volume("data", "", str(tmp_path / "source"), core)
                await test(manager, volume)

    trio.run(main)


def test_filters_ask_and_provide(tmp_path: Path) -> None:
    """B1.1, B1.8 through the manager: names begin with the volume's; a provider is one by its method."""

    async def test(manager: FilterManager, volume: Any) -> None:
        await manager.load("asker")
        names = manager.filter("asker").object.names  # type: ignore[attr-defined]
        node = lookup(volume.core, b"file")
        opened(volume.core, node)
        await manager.load("shower")
        assert volume.instances[1].entry.registered == []
        opened(volume.core, node)
        await manager.unload("shower")
        opened(volume.core, node)
        assert names == ["data/file", "data/shown/file", "data/file"]

    managed(tmp_path, {"asker": ASKER, "shower": PROVIDER}, test)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("generate_file_name = None\n    normalize_name_component = print", "generate_file_name is missing"),
        ("generate_file_name = 5", "must be a plain method"),
    ],
)
def test_a_filter_that_is_half_a_provider_is_not_loaded(tmp_path: Path, body: str, words: str) -> None:
    """A2.3, B1.8"""

    async def test(manager: FilterManager, volume: Any) -> None:
        with pytest.raises(FltError, match=words):
            await manager.load("shower")

    managed(tmp_path, {"shower": PROVIDER[: PROVIDER.index("    def")] + f"    {body}\n"}, test)


def test_removed_directories_and_their_names(core: Volume, tree: Path) -> None:
    """B1.4, B1.5: a directory that is gone goes by its last name."""
    seen: list[Any] = []
    (tree / "empty").mkdir()
    layer = Layer(core, lambda when, data: seen.append(name_or_status(data)), IRP_MJ_NETWORK_QUERY_OPEN)
    node = find(core, b"empty")
    core.request(RMDIR, name=b"empty").do()
    error_of(core, GETATTR, node)
    layer.fine()
    assert seen[0] == "vol/empty"
