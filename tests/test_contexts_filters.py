"""Contexts (docs/semantics.md B2) as filters use them: by their DDI names, through the manager, in C."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from context_driver import (
    FORGETS,
    Layer,
    OfStream,
    in_read,
    released,
    row,
)
from context_driver import none_gone as none_gone  # a fixture of every test
from stack_driver import (
    FSYNC,
    Host,
    lookup,
    opened,
    read,
)

from stackfs import fltkernel
from stackfs.api import (
    FLT_ALL_CONTEXTS,
    FLT_FILE_CONTEXT,
    FLT_SET_CONTEXT_KEEP_IF_EXISTS,
    FLT_SET_CONTEXT_REPLACE_IF_EXISTS,
    FLT_STREAM_CONTEXT,
    FLT_STREAMHANDLE_CONTEXT,
    FLT_VOLUME_CONTEXT,
    STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_FOUND,
    STATUS_NOT_SUPPORTED,
    STATUS_SUCCESS,
    Context,
    ContextRegistration,
    NonPagedPool,
)
from stackfs.cext.python_contexts import FilterContexts
from stackfs.cext.python_requests import Volume
from stackfs.cext.stack import InstanceEntry
from stackfs.ddi.contexts import registered_contexts
from stackfs.ddi.out import Out
from stackfs.errors import FltError
from stackfs.manager import FilterManager, running

HERE = Path(__file__).parent


# ---- the DDI's face -------------------------------------------------------------------------------------------------


def test_the_routines_under_their_names(core: Volume, place: Path) -> None:
    """B2.4 to B2.7 through fltkernel, with a filter that knows its contexts by their sizes."""
    told: list[Any] = []
    registered = FilterContexts(
        [row(1 << bit, 4, 0, lambda context, kind: told.append((kind, bytes(context.memory)))) for bit in range(5)]
    )
    flt = SimpleNamespace(contexts=registered)

    def look(data: Any, layer: Layer) -> None:
        instance, volume = SimpleNamespace(entry=layer.entry), SimpleNamespace(core=core)
        names = ("Instance", "File", "Stream", "StreamHandle")
        for kind, name in zip((2, 4, 8, 16), names, strict=True):
            target = [instance] if name == "Instance" else [instance, data]
            made: Out[Context] = Out()
            old: Out[Context | None] = Out()
            assert fltkernel.FltAllocateContext(flt, kind, 4, NonPagedPool, made) == STATUS_SUCCESS
            made.value.memory[:] = name[:4].encode()
            setter, getter, deleter = (
                getattr(fltkernel, f"Flt{verb}{name}Context") for verb in ("Set", "Get", "Delete")
            )
            assert getter(*target, old) == STATUS_NOT_FOUND and old.value is None
            assert setter(*target, FLT_SET_CONTEXT_KEEP_IF_EXISTS, made.value, old) == STATUS_SUCCESS
            assert setter(*target, FLT_SET_CONTEXT_KEEP_IF_EXISTS, None, None) == STATUS_INVALID_PARAMETER
            fltkernel.FltReleaseContext(made.value)
            assert getter(*target, old) == STATUS_SUCCESS and old.value is made.value
            fltkernel.FltReferenceContext(made.value)
            assert made.value.references == 3
            fltkernel.FltReleaseContext(made.value)
            assert deleter(*target, old) == STATUS_SUCCESS and old.value is made.value
            assert deleter(*target, None) == STATUS_NOT_FOUND
            assert setter(*target, FLT_SET_CONTEXT_REPLACE_IF_EXISTS, made.value, None) == STATUS_SUCCESS
            fltkernel.FltReleaseContext(made.value)
            fltkernel.FltReleaseContext(made.value)
            assert made.value.references == 1
        made = Out()
        assert fltkernel.FltAllocateContext(flt, FLT_VOLUME_CONTEXT, 4, NonPagedPool, made) == STATUS_SUCCESS
        assert fltkernel.FltSetVolumeContext(volume, FLT_SET_CONTEXT_KEEP_IF_EXISTS, made.value, None) == STATUS_SUCCESS
        fltkernel.FltReleaseContext(made.value)
        objects = SimpleNamespace(Filter=flt, Volume=volume, Instance=instance, FileObject=data)
        all_of = fltkernel.FLT_RELATED_CONTEXTS_EX()
        assert fltkernel.FltGetContextsEx(objects, FLT_ALL_CONTEXTS, 6, all_of) == STATUS_INVALID_PARAMETER
        assert fltkernel.FltGetContextsEx(objects, 0x80, 7, all_of) == STATUS_INVALID_PARAMETER
        assert fltkernel.FltGetContextsEx(objects, FLT_ALL_CONTEXTS, 7, all_of) == STATUS_SUCCESS
        found = [getattr(all_of, f"{name}Context") for name in ("Volume", *names)]
        assert [bytes(each.memory) for each in found] == [bytes(4), b"Inst", b"File", b"Stre", b"Stre"]
        assert all(each.references == 2 for each in found)
        assert all_of.TransactionContext is None and all_of.SectionContext is None
        fltkernel.FltReleaseContextsEx(7, all_of)
        assert all(each.references == 1 for each in found) and all_of.VolumeContext is None
        some = fltkernel.FLT_RELATED_CONTEXTS()
        fltkernel.FltGetContexts(objects, FLT_STREAM_CONTEXT | FLT_VOLUME_CONTEXT, some)
        assert some.StreamContext is found[3] and some.VolumeContext is found[0] and some.FileContext is None
        fltkernel.FltReleaseContexts(some)
        out: Out[Context | None] = Out()
        assert fltkernel.FltGetVolumeContext(flt, volume, out) == STATUS_SUCCESS and out.value is found[0]
        fltkernel.FltReleaseContext(found[0])
        fltkernel.FltDeleteContext(found[4])
        assert told == [(FLT_STREAMHANDLE_CONTEXT, b"Stre")]
        assert fltkernel.FltDeleteVolumeContext(flt, volume, None) == STATUS_SUCCESS
        assert fltkernel.FltGetVolumeContext(flt, volume, out) == STATUS_NOT_FOUND
        assert fltkernel.FltGetSectionContext(instance, data, out) == STATUS_NOT_FOUND
        assert fltkernel.FltSetTransactionContext(instance, None, 0, found[3], out) == STATUS_NOT_SUPPORTED
        assert fltkernel.FltGetTransactionContext(instance, None, out) == STATUS_NOT_FOUND
        assert fltkernel.FltDeleteTransactionContext(instance, None, out) == STATUS_NOT_FOUND
        nobody = SimpleNamespace(contexts=None)
        assert fltkernel.FltAllocateContext(nobody, 1, 0, 0, made) == STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND
        assert fltkernel.FltGetVolumeContext(nobody, volume, out) == STATUS_NOT_FOUND
        assert fltkernel.FltDeleteVolumeContext(nobody, volume, out) == STATUS_NOT_FOUND

    in_read(core, look, contexts=registered).detach()
    assert registered.outstanding == {} and len(told) == 5


def test_a_list_of_registrations_ends_where_it_says() -> None:
    """B2.2: FLT_CONTEXT_REGISTRATION, in the DDI's order of members, up to FLT_CONTEXT_END."""
    definition = fltkernel.FLT_CONTEXT_REGISTRATION
    definitions = [
        definition(FLT_STREAM_CONTEXT, 1, len, 8, b"xtS"),
        definition(FLT_FILE_CONTEXT, 0, None, 0, 0, max, min),
        definition(fltkernel.FLT_CONTEXT_END),
        definition(FLT_VOLUME_CONTEXT),
    ]
    assert registered_contexts(definitions) == (
        ContextRegistration(FLT_STREAM_CONTEXT, len, 8, 1),
        ContextRegistration(FLT_FILE_CONTEXT, None, 0, 0, max, min),
    )
    assert registered_contexts(None) == ()


# ---- through the manager --------------------------------------------------------------------------------------------

FILTER = '''
MANIFEST = {"name": "keeper", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Keeper"}

from stackfs.api import *

told = []

class PerVolume(VolumeContext):
    def cleanup(self):
        told.append("volume gone")

class PerInstance(InstanceContext):
    def cleanup(self):
        told.append("instance gone")

class PerStream(StreamContext):
    def cleanup(self):
        told.append("stream gone")

class Keeper(Filter):
    contexts = (PerVolume, PerInstance, PerStream)
    operations = (Operation(IRP_MJ_READ, pre="pre"),)
    told = told
    refuses = False
    leaks = None

    def instance_setup(self, instance, flags):
        instance.ensure_context(PerVolume)
        instance.set_context(PerInstance())
        assert instance.get_context(PerInstance) is not None
        return STATUS_FLT_DO_NOT_ATTACH if self.refuses else STATUS_SUCCESS

    def pre(self, data, objects):
        stream = data.ensure_context(PerStream)
        if self.leaks is None:
            stream.reference()
            Keeper.leaks = stream
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def instance_teardown_start(self, instance, reason):
        told.append("start")

    def instance_teardown_complete(self, instance, reason):
        told.append("complete")
        assert instance.get_context(PerInstance) is not None
'''


def managed(tmp_path: Path, body: str, test: Callable[[FilterManager, Any], Any]) -> None:
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters" / "keeper.py").write_text(body)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"0123456789")

    async def main() -> None:
        with trio.fail_after(60):
            manager = FilterManager([str(tmp_path / "filters")])
            async with running(manager):
                core = Volume(os.open(tmp_path / "source", os.O_PATH | os.O_DIRECTORY))
                volume = manager.add_volume("v", "", str(tmp_path / "source"), core)
                await test(manager, volume)

    trio.run(main)


@pytest.mark.verifier_errors("^a stream context was not given back before the end of its instance")
def test_detach_unload_and_what_somebody_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A3.9, A2.11, F15: an instance's contexts after teardown-complete, the volume's at the unload, which does not wait
    for ever for a reference that was never released."""
    monkeypatch.setattr("stackfs.contexts.UNREGISTER_WAIT", 0.1)

    async def test(manager: FilterManager, volume: Any) -> None:
        await manager.load("keeper")
        keeper: Any = manager.filter("keeper").object
        read(volume.core, opened(volume.core, lookup(volume.core, b"file")))
        registered = manager.filter("keeper").contexts
        assert registered is not None
        assert registered.outstanding == {"volume": 1, "instance": 1, "stream": 1}
        await manager.detach("keeper", volume)
        assert keeper.told == ["start", "complete", "instance gone"]
        assert registered.outstanding == {"volume": 1, "stream": 1}
        await manager.attach("keeper", volume)
        del keeper.told[:]
        await manager.unload("keeper")
        assert keeper.told == ["start", "complete", "instance gone", "volume gone"]
        keeper.leaks.release()
        assert keeper.told[-1] == "stream gone" and registered.outstanding == {}

    managed(tmp_path, FILTER, test)
    logged = capfd.readouterr()
    assert "contexts were not released" in logged.out + logged.err


def test_an_instance_that_is_refused_leaves_no_context(tmp_path: Path) -> None:
    """A3.2"""

    async def test(manager: FilterManager, volume: Any) -> None:
        declined: list[str] = []
        await manager.load("keeper", declined)
        keeper = manager.filter("keeper")
        assert declined and keeper.object.told == ["instance gone"]  # type: ignore[attr-defined]
        assert keeper.contexts is not None and keeper.contexts.outstanding == {"volume": 1}

    managed(tmp_path, FILTER.replace("refuses = False", "refuses = True"), test)


@pytest.mark.parametrize(
    ("registered", "words"),
    [
        ("contexts = (PerStream, PerStream)", "registered twice"),
        ("contexts = (ContextRegistration(FLT_STREAM_CONTEXT, cleanup='nothing'),)", "no method 'nothing'"),
        ("contexts = (ContextRegistration(3),)", "not one of FLT_"),
        ("contexts = 5", "must be a tuple"),
        ("contexts = (5,)", "neither a class of contexts"),
    ],
)
def test_a_filter_with_a_bad_registration_is_not_loaded(tmp_path: Path, registered: str, words: str) -> None:
    """A2.3, B2.2"""

    async def test(manager: FilterManager, volume: Any) -> None:
        with pytest.raises(FltError, match=words) as caught:
            await manager.load("keeper")
        assert "Keeper.contexts" in caught.value.message and "keeper" not in manager.loaded

    managed(tmp_path, FILTER.replace("contexts = (PerVolume, PerInstance, PerStream)", registered), test)


def test_a_registration_by_size_names_methods(tmp_path: Path) -> None:
    """B2.2: ContextRegistration, with the filter's own methods."""
    body = FILTER.replace(
        "contexts = (PerVolume, PerInstance, PerStream)",
        "contexts = (PerVolume, PerInstance, PerStream, ContextRegistration(FLT_FILE_CONTEXT, 'bye', size=8))\n"
        "    def bye(self, context, kind):\n        self.told.append((bytes(context.memory), kind))",
    )

    async def test(manager: FilterManager, volume: Any) -> None:
        await manager.load("keeper")
        keeper = manager.filter("keeper")
        made: Out[Context] = Out()
        assert fltkernel.FltAllocateContext(keeper, FLT_FILE_CONTEXT, 8, NonPagedPool, made) == STATUS_SUCCESS
        fltkernel.FltReleaseContext(made.value)
        assert keeper.object.told[-1] == (bytes(8), FLT_FILE_CONTEXT)  # type: ignore[attr-defined]

    managed(tmp_path, body, test)


# ---- native filters -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """contexts_probe.pyx, compiled against the .pxd files as a stranger's filter would be."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    where = tmp_path_factory.mktemp("native")
    shutil.copy(HERE / "contexts_probe.pyx", where)
    script = (
        "import os, stackfs\nfrom setuptools import Extension, setup\nfrom Cython.Build import cythonize\n"
        "site = os.path.dirname(os.path.dirname(stackfs.__file__))\n"
        "module = Extension('contexts_probe', ['contexts_probe.pyx'], extra_compile_args=['-O0'],\n"
        "                   include_dirs=[os.path.join(site, 'stackfs/cext/includes')])\n"
        "setup(name='probe', script_args=['-q', 'build_ext', '--inplace'],\n"
        "      ext_modules=cythonize([module], include_path=[site], language_level=3, quiet=True))\n"
    )
    built = subprocess.run([sys.executable, "-c", script], cwd=where, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-3000:]
    (path,) = where.glob("contexts_probe*.so")
    spec = importlib.util.spec_from_file_location("contexts_probe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_native_filter_keeps_contexts_without_the_interpreter(core: Volume, place: Path, probe: Any) -> None:
    """B2: the same in C, under threads: each context cleaned up exactly once, all memory given back."""
    registered = FilterContexts((), probe.contexts())
    entry = InstanceEntry(Host(), "native", "1", "native", (), probe.operations(), contexts=registered)
    core.stack.introduce(entry)
    core.stack.insert(entry)
    node = lookup(core, b"file")

    def work() -> None:
        for _ in range(200):
            fh = opened(core, node)
            read(core, fh)
            core.request(FSYNC, fh=fh).do()
            released(core, fh)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = probe.counts()
    assert counts["failed"] == 0
    assert counts["handles made"] == counts["handles gone"] == 800
    assert registered.outstanding == {"volume": 1, "stream": 1, "file": 1}
    core.forget(node, FORGETS)
    assert registered.outstanding == {"volume": 1}
    core.stack.remove(entry)
    assert core.stack.drained()
    while entry.delete_contexts(100):
        pass
    assert registered.close() == 0
    counts = probe.counts()
    assert counts["reads"] == 800  # counted in one stream context
    assert counts["pools"] == 0 and counts["related"] == 800


def test_a_type_is_registered_for_c_or_for_python(probe: Any) -> None:
    """B2.2"""
    with pytest.raises(ValueError, match="for C and for Python"):
        FilterContexts([OfStream], probe.contexts())
