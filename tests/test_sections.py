"""Sections for data scans (docs/semantics.md, B2.8), without a mount: created, read, told of conflicts, closed."""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filter_bench import Bench, on_trio
from native_build import build
from stack_driver import CREATE, OPEN, READ, RELEASE, WRITE, Host, go_on, lookup, opened

from stackfs import api, fltkernel
from stackfs.api import (
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_PREOP_SUCCESS_WITH_CALLBACK,
    Section,
    SectionContext,
    StreamContext,
)
from stackfs.cext import filter_file, sections
from stackfs.cext.python_contexts import FilterContexts
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.fltkernel import (
    FltCloseSectionForDataScan,
    FltCreateSectionForDataScan,
    FltGetSectionContext,
    FltRegisterForDataScan,
    MmMapViewInSystemSpace,
    MmUnmapViewInSystemSpace,
    Out,
)

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "writing-filters.md"
SETATTR, FALLOCATE, COPY = 4, 43, 47
SIZE, HANDLE = 8, 64
PUNCH, KEEP_SIZE = 2, 1
gone: list[Any] = []


class Scan(SectionContext):
    def cleanup(self) -> None:
        gone.append(self)


class Scanner:
    """An instance that scans, made by hand; `look(data)` is called in the pre of each of its operations."""

    def __init__(
        self,
        core: Volume,
        look: Callable[[Any], Any] = go_on,
        major: int = api.IRP_MJ_READ,
        at: str = "100",
        registers: bool = True,
    ) -> None:
        self.core, self.look = core, look
        self.conflicts: list[tuple[Any, str, int]] = []
        self.then: Callable[[Any, Any], Any] = lambda context, data: None
        self.host = Host()
        self.contexts = FilterContexts([Scan, StreamContext])
        self.entry = InstanceEntry(
            self.host,
            f"scanner {at}",
            at,
            "scanner",
            [(major, 0, self.pre, None)],
            contexts=self.contexts,
            section_conflict=self.conflict,
        )
        core.stack.introduce(self.entry)
        if registers:
            assert FltRegisterForDataScan(self) == 0
        core.stack.insert(self.entry)

    def pre(self, data: Any, _: object) -> int:
        self.look(data)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def conflict(self, objects: object, context: Any, data: Any) -> int:
        assert objects is self.host
        self.conflicts.append((context, api.major_name(data.major), data.information_class if data.major == 6 else 0))
        self.then(context, data)
        return 0

    def open(self, name: str = "file") -> Any:
        return filter_file.open_below(self.entry, name)

    def section(self, context: Any = None, name: str = "file") -> Section:
        with self.open(name) as file:
            status, made = sections.create_section(self.entry, file, context or Scan())
        assert status == 0 and made is not None
        return made

    def detach(self) -> None:
        self.core.stack.remove(self.entry)
        self.entry.close_contexts()
        assert self.core.stack.drained()
        filter_file.end_io(self.entry)
        sections.close_left_open(self.entry)
        filter_file.close_left_open(self.entry)
        while self.entry.delete_contexts(2):
            pass


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    gone.clear()
    yield
    gc.collect()
    gone.clear()


def truncate(core: Volume, node: int, size: int) -> None:
    core.request(SETATTR, node, valid=SIZE, size=size).do()


# --- the life of one ----------------------------------------------------------------------------------------------


def test_a_section_has_the_file_and_its_context_is_set_for_as_long(core: Volume, place: Path) -> None:
    scanner = Scanner(core)
    scan = Scan()
    with scanner.section(scan) as section:
        assert (section.size, section.closed, section.context) == (10, False, scan)
        assert bytes(section.view()) == b"0123456789" and bytes(section.view(8, 100)) == b"89"
        assert section.read(3, 4) == b"3456" and section.read(10, 5) == b"" and section.view().readonly
        assert scan.is_set and not gone and sections.open_sections(scanner.entry) == [scan]
        with scanner.open() as file:
            assert sections.create_section(scanner.entry, file, Scan())[0] == api.STATUS_FLT_CONTEXT_ALREADY_DEFINED
    assert section.closed and gone[-1] is scan and gone.count(scan) == 1 and sections.open_sections(scanner.entry) == []
    section.close()
    with pytest.raises(ValueError, match="closed"):
        section.read(0, 1)
    assert scanner.section().size == 10  # the next one may come
    assert len(sections.open_sections(scanner.entry)) == 1  # dropping it closes nothing: whoever created it closes it
    scanner.detach()
    assert len(gone) == 3 and scanner.contexts.outstanding == {} and core.open_files == 0


def test_in_the_operation_whose_file_it_is(core: Volume, place: Path) -> None:
    """Also of a file that the program has open for writing only; FltGetSectionContext finds the context."""
    seen: list[Any] = []

    def look(data: Any) -> None:
        status, section = sections.create_section(scanner.entry, data, Scan())
        seen.append((status, section and bytes(section.view())))
        found: Out[Any] = Out()
        assert FltGetSectionContext(scanner, data, found) == 0 and found.value is section.context
        found.value.release()
        with pytest.raises(api.NtStatusError):
            data.set_context(Scan())
        section.close()
        assert FltGetSectionContext(scanner, data, found) == api.STATUS_NOT_FOUND

    scanner = Scanner(core, look, api.IRP_MJ_WRITE)
    fh = opened(core, lookup(core, b"file"), os.O_WRONLY)
    core.request(WRITE, fh=fh, buffer=b"ab", size=2).do()
    assert seen == [(0, b"0123456789")] and scanner.host.told == []
    core.request(RELEASE, fh=fh).do()


def test_what_lies_below_is_what_is_scanned(core: Volume, place: Path) -> None:
    """A filter below that decodes is seen through; it sees paging I/O that a filter has started, and the section."""
    seen: list[tuple[str, bool, bool, int]] = []

    def pre(data: Any, _: object) -> int:
        seen.append(
            (api.major_name(data.major)[7:], data.is_generated, data.is_fs_filter, data.irp_flags & api.IRP_PAGING_IO)
        )
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(data: Any, _: object, __: object, ___: int) -> None:
        if data.major == api.IRP_MJ_READ:
            data.buffer[: data.information] = bytes(each ^ 1 for each in data.buffer[: data.information])

    majors = (
        api.IRP_MJ_READ,
        api.IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION,
        api.IRP_MJ_RELEASE_FOR_SECTION_SYNCHRONIZATION,
    )
    host = Host()
    core.stack.insert(InstanceEntry(host, "below", "10", "below", [(major, 0, pre, post) for major in majors]))
    above: list[Any] = []
    scanner = Scanner(core, above.append)
    with scanner.section() as section:
        assert bytes(section.view()) == bytes(each ^ 1 for each in b"0123456789")
    assert seen == [
        ("ACQUIRE_FOR_SECTION_SYNCHRONIZATION", True, True, 0),
        ("RELEASE_FOR_SECTION_SYNCHRONIZATION", True, True, 0),
        ("READ", True, False, 2),
    ]
    assert above == [] and host.told == []


def test_a_filter_below_may_refuse_the_section(core: Volume, place: Path) -> None:
    refuses = InstanceEntry(
        Host(),
        "below",
        "10",
        "below",
        [
            (
                api.IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION,
                0,
                lambda data, _: data.complete(api.STATUS_ACCESS_DENIED),
                None,
            )
        ],
    )
    core.stack.insert(refuses)
    scanner = Scanner(core)
    scan = Scan()
    with scanner.open() as file:
        assert sections.create_section(scanner.entry, file, scan) == (api.STATUS_ACCESS_DENIED, None)
    assert gone == [scan] and core.open_files == 0


def test_what_is_no_section(core: Volume, place: Path) -> None:
    (place / "empty").touch()
    scanner = Scanner(core)
    create = sections.create_section

    def status(name: str, *rest: Any, context: Any = None) -> int:
        with scanner.open(name) as file:
            found, section = create(scanner.entry, file, context or Scan(), *rest)
            assert section is None
        return found

    assert status("empty") == api.STATUS_END_OF_FILE
    assert status("folder") == api.STATUS_INVALID_FILE_FOR_SECTION
    assert status("file", api.SECTION_MAP_WRITE) == api.STATUS_SECTION_PROTECTION
    assert status("file", 4, 0, api.PAGE_READWRITE) == api.STATUS_SECTION_PROTECTION
    assert status("file", 4, 11) == api.STATUS_SECTION_TOO_BIG
    assert status("file", 4, 0, api.PAGE_READONLY, 0x1000000) == api.STATUS_INVALID_PARAMETER
    assert status("file", 4, 0, api.PAGE_READONLY, 0, 1) == api.STATUS_INVALID_PARAMETER
    assert len(gone) == 7 and scanner.contexts.outstanding == {}
    with scanner.open() as file:
        assert create(scanner.entry, file, None)[0] == api.STATUS_INVALID_PARAMETER
        found, section = create(scanner.entry, file, Scan(), 4, 6)
        assert found == 0 and section is not None and bytes(section.view()) == b"012345"
        section.close()
        other = Scanner(core, at="50", registers=False)
        assert create(other.entry, file, Scan())[0] == api.STATUS_INVALID_PARAMETER
    pre: list[int] = []
    look = Scanner(core, lambda data: pre.append(create(look.entry, data, Scan())[0]), api.IRP_MJ_CREATE, "200")
    core.request(RELEASE, fh=core.request(OPEN, lookup(core, b"file")).do().fh).do()
    assert pre[-1:] == [api.STATUS_NOT_SUPPORTED]  # no CREATE has succeeded yet


def test_names_of_the_ddi(core: Volume, place: Path) -> None:
    scanner = Scanner(core)
    scan: Out[Any] = Out()
    handle, section, size = Out[Section](), Out[Section](), Out[int]()

    class AFilter:
        contexts = scanner.contexts

    contexts = FilterContexts(
        [(api.FLT_SECTION_CONTEXT, 0, 16, lambda context, kind: gone.append(context), None, None)]
    )
    AFilter.contexts = contexts
    entry = InstanceEntry(Host(), "ddi", "70", "ddi", [], contexts=contexts)
    core.stack.introduce(entry)
    core.stack.insert(entry)
    scanner.entry = entry
    assert FltRegisterForDataScan(scanner) == 0
    assert fltkernel.FltAllocateContext(AFilter, api.FLT_SECTION_CONTEXT, 16, api.PagedPool, scan) == 0
    assert FltCloseSectionForDataScan(scan.value) == api.STATUS_INVALID_PARAMETER
    with scanner.open() as file:
        arguments = (scanner, file, scan.value, api.SECTION_MAP_READ, None, None, api.PAGE_READONLY, api.SEC_COMMIT, 0)
        assert FltCreateSectionForDataScan(*arguments, handle, section, size) == 0
        assert FltCreateSectionForDataScan(*arguments, handle, section, size) == api.STATUS_FLT_CONTEXT_ALREADY_LINKED
    assert size.value == 10 and handle.value is section.value
    base, room = Out[memoryview](), Out[int]()
    room.value = 4
    assert MmMapViewInSystemSpace(section.value, base, room) == 0
    assert (bytes(base.value), room.value) == (b"0123", 4) and MmUnmapViewInSystemSpace(base.value) == 0
    assert scan.value.references == 3
    assert FltCloseSectionForDataScan(scan.value) == 0 and scan.value.references == 1
    assert FltCloseSectionForDataScan(scan.value) == api.STATUS_NOT_FOUND
    assert MmMapViewInSystemSpace(section.value, base, None) == api.STATUS_INVALID_PARAMETER
    fltkernel.FltReleaseContext(scan.value)
    assert gone == [scan.value]


# --- conflicts ----------------------------------------------------------------------------------------------------


def test_who_takes_bytes_away_is_told_of_first(core: Volume, place: Path) -> None:
    (place / "other").write_bytes(b"x" * 20)
    scanner = Scanner(core, major=api.IRP_MJ_FLUSH_BUFFERS)
    section = scanner.section()
    size_then: list[int] = []
    scanner.then = lambda context, data: size_then.append((place / "file").stat().st_size)
    file, other = lookup(core, b"file"), lookup(core, b"other")
    fh = opened(core, file, os.O_RDWR)
    source = opened(core, other, os.O_RDWR)
    truncate(core, file, 20)
    truncate(core, other, 1)
    core.request(FALLOCATE, fh=fh, mode=KEEP_SIZE, offset=0, size=5).do()
    core.request(WRITE, fh=fh, buffer=b"ab", size=2, offset=1).do()
    assert scanner.conflicts == []  # longer, another file, more space, other bytes: nothing is taken away
    core.request(FALLOCATE, fh=fh, mode=PUNCH | KEEP_SIZE, offset=2, size=3).do()
    core.request(COPY, fh=source, fh2=fh, offset=0, offset2=0, size=1).do()
    truncate(core, file, 9)
    core.request(SETATTR, file, fh=fh, valid=SIZE | HANDLE, size=4).do()
    core.request(RELEASE, fh=opened(core, file, os.O_WRONLY | os.O_TRUNC)).do()
    kinds = [(name[7:], which) for _, name, which in scanner.conflicts]
    assert kinds == [
        ("FILE_SYSTEM_CONTROL", 0),
        ("FILE_SYSTEM_CONTROL", 0),
        ("SET_INFORMATION", 20),
        ("SET_INFORMATION", 20),
        ("CREATE", 0),
    ]
    assert size_then == [20, 20, 20, 9, 4] and {context for context, _, _ in scanner.conflicts} == {section.context}
    assert bytes(section.view()) == b"" and section.size == 10  # nobody is hurt by what is gone
    section.close()
    truncate(core, file, 0)
    assert len(scanner.conflicts) == 5 and scanner.host.told == []


def test_the_callback_may_close_the_section(core: Volume, place: Path) -> None:
    scanner, second = Scanner(core), Scanner(core, at="50")
    mine, other = scanner.section(), second.section()
    scanner.then = lambda context, data: mine.close()
    file = lookup(core, b"file")
    truncate(core, file, 5)
    truncate(core, file, 4)
    assert (len(scanner.conflicts), len(second.conflicts)) == (1, 2)
    assert mine.closed and len(gone) == 1 and bytes(other.view()) == b"0123"
    other.close()


@pytest.mark.verifier_errors("callback data was used after its callback had returned")
def test_one_that_raises_holds_nothing_up(core: Volume, place: Path) -> None:
    scanner = Scanner(core)
    with scanner.section():
        scanner.then = lambda context, data: 1 // 0
        truncate(core, lookup(core, b"file"), 5)
        with pytest.raises(ReferenceError):
            kept: list[Any] = []
            scanner.then = lambda context, data: kept.append(data)
            truncate(core, lookup(core, b"file"), 4)
            assert kept[0].major
    assert scanner.host.told == [("raised", "section notification", 6, "/file", ZeroDivisionError)]
    assert (place / "file").read_bytes() == b"0123"


def test_a_file_that_is_cut_short_while_it_is_scanned(core: Volume, place: Path) -> None:
    """Reads and truncations at once: every view is a prefix of what there was, and nobody faults."""
    content = bytes(range(256)) * 4096
    (place / "file").write_bytes(content)
    scanner = Scanner(core)
    file, stop = lookup(core, b"file"), threading.Event()

    def cut() -> None:
        while not stop.is_set():
            truncate(core, file, 4096)
            (place / "file").write_bytes(content)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        for _ in range(50):
            status, section = 0, None
            with scanner.open() as opened_file:
                status, section = sections.create_section(scanner.entry, opened_file, Scan())
            if section is None:
                assert status == api.STATUS_END_OF_FILE
                continue
            with section:
                view = bytes(section.view())
                assert (len(view) <= len(content) and len(view) == section.size) or content.startswith(view)
    finally:
        stop.set()
        thread.join()
    assert scanner.host.told == [] and sections.open_sections(scanner.entry) == []


# --- by the manager -----------------------------------------------------------------------------------------------

SCANNER = """
class Scan(SectionContext):
    def cleanup(self):
        Dropped.cleaned += 1

class Dropped(Filter):
    contexts = (Scan,)
    operations = (Operation(IRP_MJ_READ, pre="pre"),)
    cleaned = 0
    conflicts = 0

    def instance_setup(self, instance, flags):
        instance.register_for_data_scan()
        return STATUS_SUCCESS

    def pre(self, data, objects):
        if data.offset == 0:
            with objects.create_section(data, Scan()) as section:
                if b"EICAR" in bytes(section.view()):
                    return data.complete(STATUS_VIRUS_INFECTED)
        else:
            self.left = objects.create_section(data, Scan())
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def section_notification(self, objects, context, data):
        self.conflicts += 1
        if context in objects.open_sections:
            self.left.close()
"""


@on_trio
async def test_a_scanner(bench: Bench) -> None:
    bench.drop(SCANNER)
    volume = bench.volume()
    await bench.manager.load("f")
    core, source = volume.core, Path(volume.source)
    (source / "bad").write_bytes(b"----EICAR----")
    (source / "empty").touch()
    good, bad = opened(core, lookup(core, b"file")), opened(core, lookup(core, b"bad"))

    def read(fh: int, offset: int = 0) -> int:
        request = core.request(READ, fh=fh, buffer=bytearray(4), size=4, offset=offset)
        while not request.run():
            request.wait()
        return request.error

    assert [read(good), read(bad)] == [0, errno.EACCES]
    scanner = bench.manager.filter("f").object
    assert scanner.cleaned == 2 and volume.instances[0].open_sections == []  # type: ignore[attr-defined]
    assert read(good, 4) == 0 and len(volume.instances[0].open_sections) == 1
    truncate(core, lookup(core, b"file"), 3)
    assert scanner.conflicts == 1 and scanner.cleaned == 3  # type: ignore[attr-defined]
    for fh in (good, bad):
        core.request(RELEASE, fh=fh).do()


SCANNING_DRIVER = """
gFilter, told = Out(), []

def Setup(FltObjects, Flags, VolumeDeviceType, VolumeFilesystemType):
    return FltRegisterForDataScan(FltObjects.Instance)

def PreRead(Data, FltObjects, CompletionContext):
    context, handle, section = Out(), Out(), Out()
    status = FltAllocateContext(gFilter.value, FLT_SECTION_CONTEXT, 16, PagedPool, context)
    if status == STATUS_SUCCESS:
        status = FltCreateSectionForDataScan(
            FltObjects.Instance, Data.file, context.value, SECTION_MAP_READ, None, None, PAGE_READONLY, SEC_COMMIT, 0,
            handle, section, Out())
        FltReleaseContext(context.value)
    told.append(("created", status))
    return FLT_PREOP_SUCCESS_NO_CALLBACK

def Conflict(Instance, SectionContext, Data):
    told.append(("conflict", Instance.name, major_name(Data.major), FltCloseSectionForDataScan(SectionContext)))
    return STATUS_SUCCESS

def DriverEntry(DriverObject, RegistryPath):
    registration = FLT_REGISTRATION(
        OperationRegistration=[FLT_OPERATION_REGISTRATION(IRP_MJ_READ, 0, PreRead)],
        ContextRegistration=[FLT_CONTEXT_REGISTRATION(FLT_SECTION_CONTEXT, 0, None, 16)],
        InstanceSetupCallback=Setup, SectionNotificationCallback=Conflict)
    status = FltRegisterFilter(DriverObject, registration, gFilter)
    return FltStartFiltering(gFilter.value) if status == STATUS_SUCCESS else status
"""


@on_trio
async def test_the_notification_of_a_registration(bench: Bench) -> None:
    """A2.13, B2.13: SectionNotificationCallback is told of the instance, the section's context and the operation."""
    bench.drop_driver(SCANNING_DRIVER)
    volume = bench.volume()
    await bench.manager.load("f")
    core, told = volume.core, bench.module().told
    fh = opened(core, lookup(core, b"file"))
    request = core.request(READ, fh=fh, buffer=bytearray(4), size=4)
    while not request.run():
        request.wait()
    assert told == [("created", 0)]
    truncate(core, lookup(core, b"file"), 3)
    assert told[1:] == [("conflict", "f", "IRP_MJ_SET_INFORMATION", 0)]
    truncate(core, lookup(core, b"file"), 2)
    assert len(told) == 2
    core.request(RELEASE, fh=fh).do()


@pytest.mark.skipif(not GUIDE.exists(), reason="needs the source tree")
@on_trio
async def test_the_scanner_of_the_guide(bench: Bench) -> None:
    """docs/writing-filters.md: an infected file is not opened, whatever for; all others are."""
    text = GUIDE.read_text()
    code = text[text.index("class Scan(SectionContext)") :]
    bench.drop(code[: code.index("```")].replace("class Scanner(", "class Dropped("))
    volume = bench.volume()
    await bench.manager.load("f")
    core, source = volume.core, Path(volume.source)
    (source / "bad").write_bytes(bytes(2 << 20) + b"----EICAR----")
    (source / "empty").touch()
    for flags in (os.O_RDONLY, os.O_WRONLY):
        request = core.request(OPEN, lookup(core, b"bad"), flags=flags)
        while not request.run():
            request.wait()
        assert request.error == errno.EACCES
        for name in (b"file", b"empty"):
            core.request(RELEASE, fh=opened(core, lookup(core, name), flags)).do()
    made = core.request(CREATE, name=b"new", mode=0o600, flags=os.O_RDWR).do()
    core.request(RELEASE, fh=made.fh).do()
    assert volume.instances[0].open_sections == [] and core.open_files == 0


@on_trio
async def test_what_is_left_open_is_closed_at_the_teardown(bench: Bench) -> None:
    bench.drop(SCANNER)
    volume = bench.volume()
    await bench.manager.load("f")
    core = volume.core
    fh = opened(core, lookup(core, b"file"))
    core.request(READ, fh=fh, buffer=bytearray(4), size=4, offset=4).do()
    core.request(RELEASE, fh=fh).do()
    module = bench.module()
    await bench.manager.unload("f")
    assert module.Dropped.cleaned == 1
    truncate(core, lookup(core, b"file"), 3)


# --- native -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build("sections_probe", tmp_path_factory.mktemp("native"))


def test_a_native_filter(probe: Any, core: Volume, place: Path) -> None:
    """The same by the .pxd files, without the GIL."""
    entry = probe.instance()
    core.stack.introduce(entry)
    assert probe.register(entry) == 0
    core.stack.insert(entry)
    file = lookup(core, b"file")
    fh = opened(core, file)
    core.request(READ, fh=fh, buffer=bytearray(4), size=4).do()
    assert probe.numbers() == (0, 10, sum(b"0123456789"), 0) and sections.open_sections(entry) == [None]
    truncate(core, file, 5)
    assert probe.numbers() == (0, 10, sum(b"0123456789"), 1) and sections.open_sections(entry) == []
    core.request(RELEASE, fh=fh).do()
    core.request(RELEASE, fh=core.request(CREATE, name=b"new", mode=0o600, flags=os.O_RDWR).do().fh).do()
