"""Contexts (docs/semantics.md B2): registered, allocated, set, got and gone, exactly once, whatever happens."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from context_driver import (
    FORGETS,
    KINDS,
    RENAME,
    WITH_FILE,
    Layer,
    OfFile,
    OfHandle,
    OfInstance,
    OfStream,
    OfVolume,
    gone,
    in_read,
    record,
    released,
    row,
    status_of,
)
from context_driver import none_gone as none_gone  # a fixture of every test
from stack_driver import (
    CREATE,
    FSYNC,
    GETATTR,
    GETXATTR,
    LOOKUP,
    OPEN,
    READ,
    UNLINK,
    Host,
    error_of,
    lookup,
    opened,
    read,
)

from stackfs import api, fltkernel
from stackfs.api import (
    FLT_FILE_CONTEXT,
    FLT_INSTANCE_CONTEXT,
    FLT_PREOP_SUCCESS_NO_CALLBACK,
    FLT_SET_CONTEXT_KEEP_IF_EXISTS,
    FLT_SET_CONTEXT_REPLACE_IF_EXISTS,
    FLT_STREAM_CONTEXT,
    FLT_STREAMHANDLE_CONTEXT,
    FLT_TRANSACTION_CONTEXT,
    FLT_VARIABLE_SIZED_CONTEXTS,
    FLT_VOLUME_CONTEXT,
    FLTFL_CONTEXT_REGISTRATION_NO_EXACT_SIZE_MATCH,
    IRP_MJ_CLEANUP,
    IRP_MJ_CLOSE,
    IRP_MJ_CREATE,
    IRP_MJ_FLUSH_BUFFERS,
    IRP_MJ_NETWORK_QUERY_OPEN,
    IRP_MJ_QUERY_EA,
    IRP_MJ_QUERY_OPEN,
    IRP_MJ_READ,
    IRP_MJ_SET_INFORMATION,
    STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND,
    STATUS_FLT_CONTEXT_ALREADY_DEFINED,
    STATUS_FLT_CONTEXT_ALREADY_LINKED,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_MUST_BE_NONPAGED_POOL,
    STATUS_INVALID_BUFFER_SIZE,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_FOUND,
    STATUS_NOT_SUPPORTED,
    STATUS_SUCCESS,
    Context,
    FileContext,
    NonPagedPool,
    NtStatusError,
    PagedPool,
    StreamContext,
)
from stackfs.cext.python_contexts import FilterContexts
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.ddi.out import Out

# ---- registering (B2.2) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registrations", "words"),
    [
        ([row(0)], "not one of FLT_"),
        ([row(3)], "not one of FLT_"),
        ([row(0x80)], "not one of FLT_"),
        ([row(FLT_STREAM_CONTEXT, 8, 2)], "flags"),
        ([row(FLT_STREAM_CONTEXT, 0x10000)], "size"),
        ([row(FLT_STREAM_CONTEXT, -1)], "size"),
        ([row(FLT_STREAM_CONTEXT, 8), row(FLT_STREAM_CONTEXT, 8)], "registered twice"),
        ([row(FLT_STREAM_CONTEXT, size) for size in (1, 2, 3, 4)], "at most 3 fixed sizes"),
        ([row(FLT_STREAM_CONTEXT, FLT_VARIABLE_SIZED_CONTEXTS)] * 2, "registered twice"),
        ([row(FLT_STREAM_CONTEXT, 8, allocate=len)], "go together"),
        ([row(FLT_STREAM_CONTEXT, 8, free=len)], "go together"),
        ([row(FLT_STREAM_CONTEXT, 8), row(FLT_STREAM_CONTEXT, 9, allocate=len, free=len)], "only one of its type"),
        ([row(FLT_STREAM_CONTEXT, 9, allocate=len, free=len), row(FLT_STREAM_CONTEXT, 8)], "only one of its type"),
        ([OfStream, OfStream], "registered twice"),
        ([Context], "context_type"),
        ([int], "not a class of contexts"),
    ],
)
def test_a_registration_that_breaks_the_rules_is_refused(registrations: list[Any], words: str) -> None:
    """B2.2"""
    with pytest.raises(ValueError, match=words):
        FilterContexts(registrations)


def test_three_fixed_sizes_and_a_variable_one_of_every_type() -> None:
    """B2.2"""
    kinds = [1 << bit for bit in range(7)]
    sizes = (0, 8, 16, FLT_VARIABLE_SIZED_CONTEXTS)
    registered = FilterContexts([row(kind, size) for kind in kinds for size in sizes])
    assert registered.outstanding == {}


# ---- allocating (B2.3) ----------------------------------------------------------------------------------------------

LOOSE = FLTFL_CONTEXT_REGISTRATION_NO_EXACT_SIZE_MATCH
SIZES = FilterContexts(
    [
        row(FLT_STREAM_CONTEXT, 8),
        row(FLT_STREAM_CONTEXT, 32, LOOSE),
        row(FLT_STREAM_CONTEXT, 64, LOOSE),
        row(FLT_FILE_CONTEXT, 0),
        row(FLT_FILE_CONTEXT, 100),
        row(FLT_FILE_CONTEXT, FLT_VARIABLE_SIZED_CONTEXTS),
        row(FLT_VOLUME_CONTEXT, 8),
        row(FLT_TRANSACTION_CONTEXT, 8),
    ]
)


@pytest.mark.parametrize(
    ("kind", "size", "pool", "status"),
    [
        (FLT_STREAM_CONTEXT, 8, PagedPool, STATUS_SUCCESS),
        (FLT_STREAM_CONTEXT, 7, NonPagedPool, STATUS_SUCCESS),  # the 32 take it
        (FLT_STREAM_CONTEXT, 33, api.NonPagedPoolNx, STATUS_SUCCESS),
        (FLT_STREAM_CONTEXT, 65, NonPagedPool, STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND),
        (FLT_FILE_CONTEXT, 0, NonPagedPool, STATUS_SUCCESS),
        (FLT_FILE_CONTEXT, 99, NonPagedPool, STATUS_SUCCESS),  # the variable one
        (FLT_FILE_CONTEXT, 0xFFFF, NonPagedPool, STATUS_SUCCESS),
        (FLT_FILE_CONTEXT, 0x10000, NonPagedPool, STATUS_INVALID_BUFFER_SIZE),
        (FLT_FILE_CONTEXT, 1 << 40, NonPagedPool, STATUS_INVALID_BUFFER_SIZE),
        (FLT_VOLUME_CONTEXT, 8, NonPagedPool, STATUS_SUCCESS),
        (FLT_VOLUME_CONTEXT, 8, PagedPool, STATUS_FLT_MUST_BE_NONPAGED_POOL),
        (FLT_VOLUME_CONTEXT, 7, NonPagedPool, STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND),
        (FLT_INSTANCE_CONTEXT, 8, NonPagedPool, STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND),
        (FLT_TRANSACTION_CONTEXT, 8, NonPagedPool, STATUS_NOT_SUPPORTED),
        (FLT_STREAM_CONTEXT, 8, 7, STATUS_INVALID_PARAMETER),
        (FLT_STREAM_CONTEXT | FLT_FILE_CONTEXT, 8, NonPagedPool, STATUS_INVALID_PARAMETER),
        (FLT_STREAM_CONTEXT, -1, NonPagedPool, STATUS_INVALID_PARAMETER),
    ],
)
def test_which_sizes_can_be_allocated(kind: int, size: int, pool: int, status: int) -> None:
    """B2.3"""
    out: Out[Context] = Out()
    assert fltkernel.FltAllocateContext(SimpleNamespace(contexts=SIZES), kind, size, pool, out) == status
    if status == STATUS_SUCCESS:
        context = out.value
        assert context.references == 1 and context.context_type == kind
        assert isinstance(context.memory, bytearray) and context.memory == bytes(size)
        fltkernel.FltReleaseContext(context)
        assert context.references == 0 and context.memory is None
    assert SIZES.outstanding == {}


def test_the_filter_s_own_allocate_and_free() -> None:
    """B2.3: the allocate callback gives the memory, whatever the size; free gets it after the cleanup."""
    told: list[Any] = []

    def allocate(pool: int, size: int, kind: int) -> Any:
        told.append(("allocate", pool, size, kind))
        return {"size": size} if size < 100 else None

    def cleanup(context: Context, kind: int) -> None:
        told.append(("cleanup", dict(context.memory), kind))

    def free(memory: Any, kind: int) -> None:
        told.append(("free", memory, kind))

    registered = FilterContexts([row(FLT_FILE_CONTEXT, 5, 0, cleanup, allocate, free)])
    status, context = registered.allocate(FLT_FILE_CONTEXT, 42, PagedPool)
    assert status == STATUS_SUCCESS and context is not None and context.memory == {"size": 42}
    context.release()
    assert told == [
        ("allocate", PagedPool, 42, FLT_FILE_CONTEXT),
        ("cleanup", {"size": 42}, FLT_FILE_CONTEXT),
        ("free", {"size": 42}, FLT_FILE_CONTEXT),
    ]
    assert registered.allocate(FLT_FILE_CONTEXT, 100, 0) == (api.STATUS_INSUFFICIENT_RESOURCES, None)
    assert registered.outstanding == {}


def test_nothing_is_allocated_for_a_filter_that_goes() -> None:
    """B2.3, A2: STATUS_FLT_DELETING_OBJECT; close() says what is still referenced."""
    registered = FilterContexts([row(FLT_FILE_CONTEXT, 1)])
    _, context = registered.allocate(FLT_FILE_CONTEXT, 1, 0)
    assert registered.close() == 1 and registered.outstanding == {"file": 1}
    assert registered.allocate(FLT_FILE_CONTEXT, 1, 0) == (STATUS_FLT_DELETING_OBJECT, None)
    assert context is not None
    context.release()
    assert registered.close() == 0


def test_a_cleanup_that_raises_is_told_and_changes_nothing() -> None:
    """B2.6"""

    class Bad(FileContext):
        def cleanup(self) -> None:
            raise KeyboardInterrupt("no")

    told: list[Any] = []
    registered = FilterContexts([Bad], None, lambda kind, error: told.append((kind, type(error))))
    context = registered.allocate(FLT_FILE_CONTEXT, 0, 0)[1]
    assert isinstance(context, Bad)
    context.release()
    assert told == [("file", KeyboardInterrupt)] and registered.outstanding == {}


# ---- setting, getting, deleting, references (B2.4 to B2.6) ----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_references(core: Volume, place: Path, kind: type[Context]) -> None:
    """B2.4: allocating gives one, setting and getting add one, each release takes one; the last one cleans up, once."""

    def look(data: Any, layer: Layer) -> None:
        number = {OfVolume: 1, OfInstance: 2, OfFile: 4, OfStream: 8, OfHandle: 16}[kind]
        status, context = layer.contexts.allocate(number, 0, NonPagedPool)
        assert status == STATUS_SUCCESS and type(context) is kind and context.references == 1
        file = data.file
        if kind is OfVolume:
            setting: Any = lambda *args: layer.core.stack.flt_set_volume_context(*args)  # noqa: E731
            getting: Any = lambda: layer.core.stack.flt_get_volume_context(layer.contexts)  # noqa: E731
            deleting: Any = lambda old: layer.core.stack.flt_delete_volume_context(layer.contexts, old)  # noqa: E731
        else:
            setting = lambda *args: layer.entry.flt_set_context(number, file, *args)  # noqa: E731
            getting = lambda: layer.entry.flt_get_context(number, file)  # noqa: E731
            deleting = lambda old: layer.entry.flt_delete_context(number, file, old)  # noqa: E731
        assert getting() == (STATUS_NOT_FOUND, None)
        assert deleting(True) == (STATUS_NOT_FOUND, None)
        assert setting(FLT_SET_CONTEXT_KEEP_IF_EXISTS, context, True) == (STATUS_SUCCESS, None)
        assert context.references == 2 and context.is_set
        assert getting() == (STATUS_SUCCESS, context) and context.references == 3
        # the same again, and again where there is one
        assert setting(FLT_SET_CONTEXT_KEEP_IF_EXISTS, context, False) == (STATUS_FLT_CONTEXT_ALREADY_LINKED, None)
        second = layer.contexts.allocate(number, 0, NonPagedPool)[1]
        assert second is not None
        kept = setting(FLT_SET_CONTEXT_KEEP_IF_EXISTS, second, True)
        assert kept == (STATUS_FLT_CONTEXT_ALREADY_DEFINED, context)
        assert (context.references, second.references, second.is_set) == (4, 1, False)
        assert setting(FLT_SET_CONTEXT_KEEP_IF_EXISTS, second, False) == (STATUS_FLT_CONTEXT_ALREADY_DEFINED, None)
        assert (context.references, second.references) == (4, 1)
        assert setting(FLT_SET_CONTEXT_REPLACE_IF_EXISTS, second, True) == (STATUS_SUCCESS, context)
        assert (context.references, second.references, context.is_set) == (4, 2, False)  # the link's is ours
        for left in (3, 2, 1):
            context.release()
            assert context.references == left and gone == []
        context.release()
        assert gone == [context] and context.references == 0
        with pytest.raises(ReferenceError):
            context.release()
        with pytest.raises(ReferenceError):
            context.reference()
        # replaced without asking for the old one: the manager releases it
        third = layer.contexts.allocate(number, 0, NonPagedPool)[1]
        assert third is not None
        second.release()
        assert setting(FLT_SET_CONTEXT_REPLACE_IF_EXISTS, third, False) == (STATUS_SUCCESS, None)
        assert gone == [context, second]
        assert deleting(True) == (STATUS_SUCCESS, third) and third.references == 2 and not third.is_set
        assert setting(FLT_SET_CONTEXT_KEEP_IF_EXISTS, third, False)[0] == STATUS_SUCCESS  # it may be set again
        third.delete()
        assert third.references == 2 and getting() == (STATUS_NOT_FOUND, None)
        third.release()
        third.release()
        assert gone == [context, second, third]
        for bad in (2, -1):
            fourth = layer.contexts.allocate(number, 0, NonPagedPool)[1]
            assert fourth is not None
            assert setting(bad, fourth, False) == (STATUS_INVALID_PARAMETER, None)
            fourth.release()
        assert setting(FLT_SET_CONTEXT_KEEP_IF_EXISTS, None, True) == (STATUS_INVALID_PARAMETER, None)

    in_read(core, look).detach()
    assert len(gone) == 5


def test_what_is_not_the_instance_s_cannot_be_set(core: Volume, place: Path) -> None:
    """B2.5: another type, another filter's: STATUS_INVALID_PARAMETER."""
    other = FilterContexts(KINDS)

    def look(data: Any, layer: Layer) -> None:
        stranger = other.allocate(FLT_STREAM_CONTEXT, 0, 0)[1]
        mine = layer.contexts.allocate(FLT_STREAM_CONTEXT, 0, 0)[1]
        assert stranger is not None and mine is not None
        file = data.file
        assert layer.entry.flt_set_context(FLT_STREAM_CONTEXT, file, 0, stranger, False)[0] == STATUS_INVALID_PARAMETER
        assert layer.entry.flt_set_context(FLT_FILE_CONTEXT, file, 0, mine, False)[0] == STATUS_INVALID_PARAMETER
        assert layer.entry.flt_set_context(12, file, 0, mine, False)[0] == STATUS_INVALID_PARAMETER
        assert layer.entry.flt_set_context(FLT_STREAM_CONTEXT, None, 0, mine, False)[0] == STATUS_NOT_SUPPORTED
        stranger.release()
        mine.release()

    in_read(core, look)


def test_each_instance_has_its_own_and_a_filter_one_for_the_volume(core: Volume, place: Path) -> None:
    """B2.1"""
    shared = FilterContexts(KINDS)
    found: dict[str, list[Context]] = {}

    def seeing(name: str) -> Callable[[str, Any], None]:
        def see(when: str, data: Any) -> None:
            if when == "pre":
                found[name] = [data.ensure_context(kind) for kind in KINDS]

        return see

    high = Layer(core, seeing("high"), IRP_MJ_READ, name="high", at="2", contexts=shared)
    low = Layer(core, seeing("low"), IRP_MJ_READ, name="low", at="1", contexts=shared)
    other = Layer(core, seeing("other"), IRP_MJ_READ, name="other", at="3")
    read(core, opened(core, lookup(core, b"file")))
    assert found["high"][0] is found["low"][0] is not found["other"][0]
    for index in range(1, 5):
        assert len({id(each[index]) for each in found.values()}) == 3
    for layer in (high, low, other):
        layer.fine()
        layer.detach()
    assert len(gone) == 12 and shared.outstanding == {"volume": 1}
    assert shared.close() == 0 and gone[-1] is found["high"][0]


# ---- where contexts can be had (B2.1) -------------------------------------------------------------------------------


def test_before_a_create_has_succeeded_and_after_close_there_is_no_stream(core: Volume, place: Path) -> None:
    """B2.1: STATUS_NOT_SUPPORTED; FltSupports* say so too. Instance and volume contexts can be had always."""
    seen: dict[tuple[int, str], tuple[int, bool]] = {}

    def see(when: str, data: Any) -> None:
        data.ensure_context(OfVolume)
        data.ensure_context(OfInstance)
        supported = fltkernel.FltSupportsStreamContexts(data)
        assert supported == fltkernel.FltSupportsFileContexts(data) == fltkernel.FltSupportsStreamHandleContexts(data)
        assert supported == fltkernel.FltSupportsFileContextsEx(data, None)
        statuses = {status_of(data.ensure_context, kind) for kind in WITH_FILE}
        statuses |= {status_of(data.get_context, kind) for kind in WITH_FILE}
        (status,) = statuses
        seen[data.major, when] = (status, supported)

    layer = Layer(
        core, see, IRP_MJ_QUERY_OPEN, IRP_MJ_NETWORK_QUERY_OPEN, IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_CLEANUP,
        IRP_MJ_CLOSE,
    )  # fmt: skip
    node = lookup(core, b"file")
    core.request(GETATTR, node).do()
    fh = opened(core, node)
    read(core, fh)
    released(core, fh)
    layer.fine()
    no, yes = (STATUS_NOT_SUPPORTED, False), (STATUS_SUCCESS, True)
    assert seen == {
        (IRP_MJ_QUERY_OPEN, "pre"): no, (IRP_MJ_QUERY_OPEN, "post"): no,
        (IRP_MJ_NETWORK_QUERY_OPEN, "pre"): no, (IRP_MJ_NETWORK_QUERY_OPEN, "post"): no,
        (IRP_MJ_CREATE, "pre"): no, (IRP_MJ_CREATE, "post"): yes,
        (IRP_MJ_READ, "pre"): yes, (IRP_MJ_READ, "post"): yes,
        (IRP_MJ_CLEANUP, "pre"): yes, (IRP_MJ_CLEANUP, "post"): yes,
        (IRP_MJ_CLOSE, "pre"): yes, (IRP_MJ_CLOSE, "post"): no,
    }  # fmt: skip
    layer.detach()


def test_a_create_that_failed_has_no_stream(core: Volume, place: Path) -> None:
    """B2.1"""
    statuses = []

    def see(when: str, data: Any) -> None:
        if when == "post":
            statuses.append((data.status != 0, status_of(data.ensure_context, OfHandle)))

    layer = Layer(core, see, IRP_MJ_CREATE)
    assert error_of(core, OPEN, lookup(core, b"folder"), flags=os.O_WRONLY) != 0
    assert statuses == [(True, STATUS_NOT_SUPPORTED)]
    layer.fine()
    layer.detach()


@pytest.mark.parametrize("with_create", [True, False])
@pytest.mark.parametrize("request_of", ["unlink", "rename", "getxattr", "create"])
def test_the_opens_that_requests_by_path_imply_have_contexts(
    core: Volume, place: Path, request_of: str, with_create: bool
) -> None:
    """B2.1, D1: the stream of what is deleted or renamed is the one that is open; its handle's contexts go at once."""
    mine: list[Context] = []

    def see(when: str, data: Any) -> None:
        if data.major in (IRP_MJ_SET_INFORMATION, IRP_MJ_QUERY_EA, IRP_MJ_READ) and when == "pre":
            mine.append(data.ensure_context(OfStream))
            data.ensure_context(OfHandle)
        if data.major == IRP_MJ_CREATE and when == "post":
            data.ensure_context(OfHandle)

    majors = [IRP_MJ_SET_INFORMATION, IRP_MJ_QUERY_EA, IRP_MJ_READ]
    layer = Layer(core, see, *majors, *([IRP_MJ_CREATE] if with_create else []))
    node = lookup(core, b"file")
    fh = opened(core, node)
    read(core, fh)
    gone.clear()
    if request_of == "unlink":
        core.request(UNLINK, name=b"file").do()
    elif request_of == "rename":
        core.request(RENAME, name=b"file", name2=b"other", nodeid2=1).do()
    elif request_of == "getxattr":
        error_of(core, GETXATTR, node, name=b"user.x")
    else:
        core.request(CREATE, name=b"new", flags=os.O_RDWR, mode=0o644).do()
    layer.fine()
    if request_of != "create":
        assert len(mine) == 2 and mine[0] is mine[1]
        assert [type(each) for each in gone] == [OfHandle]
    layer.detach()


@pytest.mark.verifier_errors("^[gs]etting a context was called at level 2, and may be at 1 at most")
def test_at_dispatch_level_a_context_may_be_released_and_nothing_else(core: Volume, place: Path) -> None:
    """A6.12, A11.5"""
    held: list[Context] = []

    def see(when: str, data: Any) -> None:
        if when == "pre":
            held.append(data.ensure_context(OfStream))
            held[0].reference()
            return
        assert data.irql == 2
        for routine in (data.get_context, data.ensure_context):
            with pytest.raises(RuntimeError, match="at level 2"):
                routine(OfStream)
        with pytest.raises(RuntimeError, match="at level 2"):
            data.set_context(held[0])
        assert held[0].references == 2
        held[0].release()

    class NotSynchronised(Layer):
        def pre(self, data: Any, objects: Any) -> int:
            super().pre(data, objects)
            return int(api.FLT_PREOP_SUCCESS_WITH_CALLBACK)

    layer = NotSynchronised(core, see, IRP_MJ_FLUSH_BUFFERS)
    core.request(FSYNC, fh=opened(core, lookup(core, b"file"))).do()
    layer.fine()
    assert held[0].references == 1
    layer.detach()
    assert gone == held


# ---- how long they live (B2.6) --------------------------------------------------------------------------------------


def test_each_context_goes_with_its_object(core: Volume, place: Path) -> None:
    """B2.6: an open file's after its CLOSE, the stream's and then the file's when the node is forgotten and closed."""
    order: list[Any] = []

    def see(when: str, data: Any) -> None:
        if data.major == IRP_MJ_READ and when == "pre":
            for kind in WITH_FILE:
                data.ensure_context(kind)
        if data.major == IRP_MJ_CLOSE:
            order.append((when, [type(each) for each in gone]))

    layer = Layer(core, see, IRP_MJ_READ, IRP_MJ_CLOSE)
    node = lookup(core, b"file")
    first, second = opened(core, node), opened(core, node)
    read(core, first)
    read(core, second)
    released(core, first)
    assert order == [("pre", []), ("post", [])] and [type(each) for each in gone] == [OfHandle]
    core.forget(node, FORGETS)
    assert [type(each) for each in gone] == [OfHandle]  # the other handle holds it
    released(core, second)
    assert [type(each) for each in gone] == [OfHandle, OfHandle, OfStream, OfFile]
    assert layer.contexts.outstanding == {}
    layer.fine()
    layer.detach()


def test_a_file_with_two_names_has_one_context(core: Volume, place: Path) -> None:
    """B2.1: file contexts are the inode's, by whatever name it was opened; renaming changes nothing."""
    os.link(place / "file", place / "folder" / "second")
    found: list[Context] = []

    def see(when: str, data: Any) -> None:
        if when == "pre":
            found.append(data.ensure_context(OfFile))

    layer = Layer(core, see, IRP_MJ_READ)
    folder = lookup(core, b"folder")
    read(core, opened(core, lookup(core, b"file")))
    read(core, opened(core, core.request(LOOKUP, folder, name=b"second").do().nodeid))
    core.request(RENAME, name=b"file", name2=b"third", nodeid2=folder).do()
    read(core, opened(core, core.request(LOOKUP, folder, name=b"third").do().nodeid))
    assert len(found) == 3 and len(set(map(id, found))) == 1
    layer.fine()
    layer.detach()
    assert gone == found[:1]


def test_a_reused_inode_number_is_another_file(place: Path) -> None:
    """B2.6: what was kept with the old inode goes when another takes its number, though the kernel never forgot."""
    core = Volume(os.open(place, os.O_PATH | os.O_DIRECTORY), descriptor_limit=1)
    layer = Layer(core, lambda when, data: data.ensure_context(OfStream) if when == "pre" else None, IRP_MJ_READ)
    node = lookup(core, b"file")
    fh = opened(core, node)
    read(core, fh)
    released(core, fh)
    core.request(GETATTR, lookup(core, b"folder")).do()  # the one cached descriptor is another's
    (place / "file").unlink()
    for number in range(100):
        (place / f"new{number}").write_bytes(b"x")
        if (place / f"new{number}").stat().st_ino == node:
            break
    else:
        pytest.skip("this filesystem does not use inode numbers again at once")
    assert gone == []
    assert lookup(core, f"new{number}".encode()) == node
    assert [type(each) for each in gone] == [OfStream] and layer.contexts.outstanding == {}
    fh = opened(core, node)
    read(core, fh)
    assert len(gone) == 1 and layer.contexts.outstanding == {"stream": 1}
    layer.fine()
    layer.detach()
    core.close()


def test_an_instance_s_contexts_go_in_order_at_its_teardown(core: Volume, place: Path) -> None:
    """A3.9, B2.6: stream handle, stream, file, instance; what somebody still holds goes when he lets go."""
    held: list[Context] = []

    def see(when: str, data: Any) -> None:
        if when == "pre":
            made = [data.ensure_context(kind) for kind in (OfInstance, OfFile, OfStream, OfHandle)]
            if data.offset == 5:
                made[2].reference()
                held.append(made[2])

    layer = Layer(core, see, IRP_MJ_READ)
    (place / "second").write_bytes(b"0123456789")
    read(core, opened(core, lookup(core, b"file")))
    fh = opened(core, lookup(core, b"second"))
    read(core, fh, offset=5)
    layer.fine()
    layer.detach()
    assert [type(each) for each in gone] == [OfHandle, OfHandle, OfStream, OfFile, OfFile, OfInstance]
    assert layer.contexts.outstanding == {"stream": 1} and not held[0].is_set
    released(core, fh)  # after the detach: there is nothing left to go
    held[0].release()
    assert gone[-1] is held[0] and layer.contexts.outstanding == {}


def test_after_teardown_has_begun_nothing_can_be_set(core: Volume, place: Path) -> None:
    """B2.5: STATUS_FLT_DELETING_OBJECT; what is there can still be got."""

    def look(data: Any, layer: Layer) -> None:
        there = data.ensure_context(OfStream)
        layer.entry.close_contexts()
        assert data.get_context(OfStream) is there and data.ensure_context(OfStream) is there
        for kind in (OfInstance, OfFile, OfHandle):
            assert status_of(data.ensure_context, kind) == STATUS_FLT_DELETING_OBJECT
        assert len(gone) == 3  # those that were made in vain

    in_read(core, look).detach()
    assert len(gone) == 4


def test_an_instance_that_is_dropped_leaves_nothing_behind(core: Volume, place: Path) -> None:
    """B2.6: not even one that nobody tore down."""
    layer = in_read(core, lambda data, _: [data.ensure_context(kind) for kind in KINDS[1:]])
    contexts = layer.contexts
    core.stack.remove(layer.entry)
    assert core.stack.drained()
    del layer
    gc.collect()
    assert len(gone) == 4 and contexts.outstanding == {}


def test_a_volume_that_ends_takes_all_with_it(tmp_path: Path) -> None:
    """B2.6: volume contexts at the end of the volume; with open files and known inodes, the others too."""
    (tmp_path / "file").write_bytes(b"0123456789")
    core = Volume(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    layer = in_read(core, lambda data, _: [data.ensure_context(kind) for kind in KINDS])
    core.close()
    assert sorted(type(each).__name__ for each in gone) == ["OfFile", "OfHandle", "OfStream", "OfVolume"]
    assert layer.contexts.outstanding == {"instance": 1}
    assert status_of(layer.entry.set_context, OfVolume()) == STATUS_FLT_DELETING_OBJECT


# ---- the Pythonic face ----------------------------------------------------------------------------------------------


def test_what_callback_data_gives_is_borrowed(core: Volume, place: Path) -> None:
    """B2.7: a reference until the callback returns; deleting meanwhile does not take it away."""
    seen: list[Any] = []

    def see(when: str, data: Any) -> None:
        if when == "pre":
            context = data.ensure_context(OfStream)
            assert context.references == 2 and data.get_context(OfStream) is context and context.references == 3
            seen.append(context)
        else:
            context = data.get_context(OfStream)
            assert context.references == 2
            assert data.delete_context(OfStream) and not data.delete_context(OfStream)
            assert data.get_context(OfStream) is None
            assert gone == [] and context.references == 1

    layer = Layer(core, see, IRP_MJ_READ)
    read(core, opened(core, lookup(core, b"file")))
    layer.fine()
    assert gone == seen and seen[0].references == 0
    layer.detach()


def test_setting_in_python(core: Volume, place: Path) -> None:
    """B2.7"""

    def look(data: Any, layer: Layer) -> None:
        first, second = OfStream(), OfStream()
        assert data.set_context(first) is None and first.references == 1
        assert data.set_context(second) is first and gone == [second]
        third = OfStream()
        assert data.set_context(third, replace=True) is first and data.get_context(OfStream) is third
        assert status_of(data.set_context, third) == STATUS_FLT_CONTEXT_ALREADY_LINKED
        with pytest.raises(TypeError):
            data.ensure_context(FileContext)  # not registered
        with pytest.raises(TypeError):
            data.ensure_context(int)
        entry = layer.entry
        assert entry.get_context(OfInstance) is None
        mine = entry.ensure_context(OfInstance)
        assert entry.get_context(OfInstance) is mine is entry.ensure_context(OfInstance) and mine.references == 1
        assert entry.set_context(OfInstance(), replace=True) is mine and mine in gone
        assert entry.delete_context(OfInstance) and not entry.delete_context(OfInstance)
        assert entry.ensure_context(OfVolume) is data.get_context(OfVolume)
        assert status_of(entry.ensure_context, OfStream) == STATUS_NOT_SUPPORTED

    in_read(core, look).detach()


def test_a_filter_without_contexts_has_none(core: Volume, place: Path) -> None:
    """B2.2"""
    told: list[Any] = []

    def pre(data: Any, objects: Any) -> int:
        told.append(data.get_context(OfStream))
        with pytest.raises(TypeError, match="registered no contexts"):
            data.ensure_context(OfStream)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    host = Host()
    entry = InstanceEntry(host, "n", "1", "n", [(IRP_MJ_READ, 0, pre, None)])
    core.stack.insert(entry)
    read(core, opened(core, lookup(core, b"file")))
    assert told == [None] and [each[0] for each in host.told if each[0] == "raised"] == []


def test_a_context_is_the_manager_s_to_keep_not_the_garbage_collector_s(core: Volume, place: Path) -> None:
    """B2.4: it lives without a reference of Python's, and is Python's again when it has gone."""
    layer = in_read(core, lambda data, _: data.ensure_context(OfStream))
    gc.collect()
    assert gone == []
    layer.detach()
    (context,) = gone
    dead = weakref.ref(context)
    gone.clear()
    del context
    gc.collect()
    assert dead() is None


def test_a_reference_too_few_never_reaches_freed_memory(core: Volume, place: Path) -> None:
    """A filter that releases what is not its to release loses the context, and nothing worse happens."""

    def look(data: Any, layer: Layer) -> None:
        context = data.ensure_context(OfStream)
        context.release()
        context.release()  # the link's
        assert gone == [context] and data.get_context(OfStream) is None
        assert data.ensure_context(OfStream) is not context

    in_read(core, look).detach()
    assert len(gone) == 2


# ---- under threads --------------------------------------------------------------------------------------------------


def test_one_wins_when_many_make_it_at_once(core: Volume, place: Path) -> None:
    """B2.5: KEEP_IF_EXISTS; the others' contexts go, each exactly once."""
    start = threading.Barrier(8)
    made: list[Context] = []

    class Slow(StreamContext):
        cleanup = record

        def __init__(self) -> None:
            made.append(self)
            start.wait(10)  # all have looked before one has set

    won: list[Context] = []

    def see(when: str, data: Any) -> None:
        if when == "pre":
            won.append(data.ensure_context(Slow))

    layer = Layer(core, see, IRP_MJ_READ, contexts=FilterContexts([Slow]))
    fh = opened(core, lookup(core, b"file"))
    threads = [threading.Thread(target=read, args=(core, fh)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    layer.fine()
    assert len(won) == 8 and len(set(map(id, won))) == 1
    assert len(made) == 8 and {id(each) for each in gone} == {id(each) for each in made} - {id(won[0])}
    assert len(gone) == 7
    layer.detach()
    assert len(gone) == 8


def test_every_context_goes_exactly_once_under_threads(core: Volume, place: Path) -> None:
    """Threads open, read, set, replace, delete, close and forget while an instance comes and goes."""
    counts = {"made": 0, "gone": 0}
    twice: list[Any] = []
    lock = threading.Lock()
    end = threading.Event()

    class Counted(Context):
        def __init__(self) -> None:
            self.cleaned = False
            with lock:
                counts["made"] += 1

        def cleanup(self) -> None:
            with lock:
                counts["gone"] += 1
                if self.cleaned:
                    twice.append(self)
                self.cleaned = True

    stream = type("Stream", (Counted,), {"context_type": FLT_STREAM_CONTEXT})
    handle = type("Handle", (Counted,), {"context_type": FLT_STREAMHANDLE_CONTEXT})
    file = type("File", (Counted,), {"context_type": FLT_FILE_CONTEXT})
    kinds = (stream, handle, file)
    registered = FilterContexts(kinds)
    odd = []

    def see(when: str, data: Any) -> None:
        kind = kinds[data.request_number % 3]
        try:
            if data.request_number % 5 == 0:
                data.set_context(kind(), replace=True)
            elif data.request_number % 7 == 0:
                data.delete_context(kind)
            else:
                data.ensure_context(kind)
        except NtStatusError as error:
            if error.status != STATUS_FLT_DELETING_OBJECT:
                odd.append(error)

    for number in range(8):
        (place / f"{number}").write_bytes(b"x" * 20)

    def work(number: int) -> None:
        while not end.is_set():
            node = lookup(core, b"%d" % (number % 8))
            fh = opened(core, node)
            read(core, fh)
            core.request(READ, fh=fh, buffer=bytearray(5), size=5).do()
            released(core, fh)
            core.forget(node, 1)
            number += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 4, 4)]
    for thread in threads:
        thread.start()
    stop = threading.Timer(1.5, end.set)
    stop.start()
    while not end.is_set():
        layer = Layer(core, see, IRP_MJ_READ, IRP_MJ_CLEANUP, contexts=registered)
        end.wait(0.01)
        core.stack.remove(layer.entry)
        layer.entry.close_contexts()
        while not core.stack.drained():
            end.wait(0.0005)
        while layer.entry.delete_contexts(10):
            pass
        layer.fine()
    for thread in threads:
        thread.join()
    assert not odd and not twice
    assert counts["made"] == counts["gone"] > 100 and registered.outstanding == {}
