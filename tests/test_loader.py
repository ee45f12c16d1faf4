"""Loading: the code that was checked is the code that runs, registrations are held against the rules, reload works."""

from __future__ import annotations

import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

import pytest

from stackfs import loader
from stackfs.api import Filter
from stackfs.discovery import Found, find
from stackfs.errors import FilterEntryError, FilterImageError, FltError

MANIFEST = (
    'MANIFEST = {"name": "sample", "altitude": "400000", "group": "FSFilter Top", "filter": "Sample"%s}\n'
    "from stackfs.api import *\n"
    "from stackfs import api\n"
)
SAMPLE = (
    "class Sample(api.Filter):\n"
    "    operations = (\n"
    '        api.Operation(api.IRP_MJ_CREATE, pre="before", post="after"),\n'
    '        api.Operation(api.IRP_MJ_READ, pre="before", flags=api.FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO),\n'
    "    )\n"
    "    def before(self, data, objects):\n        pass\n"
    "    def after(self, data, objects, context, flags):\n        pass\n"
)


@pytest.fixture
def mine(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A drop-in directory; whatever a test leaves imported from it is forgotten."""
    (tmp_path / "mine").mkdir()
    before = set(sys.modules)
    yield tmp_path / "mine"
    for name in set(sys.modules) - before:
        if name.startswith(("stackfs_filter_", "acme", "stackfs.filters.")):
            del sys.modules[name]
    for root in [root for root in loader._roots if root != "stackfs.filters"]:
        del loader._roots[root]
    assert not loader._sources


def modules_of(found: Found) -> list[str]:
    """What is imported of a drop-in (other tests may have left theirs)."""
    return [name for name in sys.modules if name == found.module or name.startswith(found.module + ".")]


def write(mine: pathlib.Path, body: str, *, fields: str = "", file: str = "sample.py") -> Found:
    path = mine / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MANIFEST % fields + body)
    return find("sample", [str(mine)])


def test_a_file(mine: pathlib.Path) -> None:
    found = write(mine, SAMPLE)
    cls = loader.load(found)
    assert issubclass(cls, Filter)
    assert cls.__module__ == "stackfs_filter_sample"
    module = sys.modules["stackfs_filter_sample"]
    assert module.__file__ == str(mine / "sample.py")
    assert not (mine / "__pycache__").exists()
    assert pickle.loads(pickle.dumps(cls)) is cls
    loader.unload(found)
    assert "stackfs_filter_sample" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        __import__("stackfs_filter_sample")


def test_the_source_that_was_checked_is_what_runs(mine: pathlib.Path) -> None:
    found = write(mine, SAMPLE + "marker = 1\n")
    (mine / "sample.py").write_text("raise SystemExit\n")
    assert sys.modules[loader.load(found).__module__].marker == 1


def test_reload_sees_a_changed_file(mine: pathlib.Path) -> None:
    found = write(mine, SAMPLE + "marker = 1\n")
    first = loader.load(found)
    loader.unload(found)
    again = write(mine, SAMPLE + "marker = 2\n")
    second = loader.load(again)
    assert second is not first
    assert sys.modules["stackfs_filter_sample"].marker == 2


def test_a_package_and_its_modules(mine: pathlib.Path) -> None:
    (mine / "kit").mkdir()
    (mine / "kit" / "tools.py").write_text("from .deep import inner\nvalue = inner.value\n")
    (mine / "kit" / "deep").mkdir()
    (mine / "kit" / "deep" / "inner.py").write_text("value = 1\n")
    (mine / "tools.py").write_text("value = 'of somebody else'\n")
    found = write(mine, SAMPLE + "from .tools import value\n", file="kit/__init__.py")
    cls = loader.load(found)
    assert sys.modules[cls.__module__].value == 1
    loader.unload(found)
    assert not modules_of(found)
    (mine / "kit" / "deep" / "inner.py").write_text("value = 2\n")
    assert sys.modules[loader.load(found).__module__].value == 2
    assert not list(mine.rglob("__pycache__"))


def test_a_module_that_is_missing_is_not_looked_for_elsewhere(
    mine: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = write(mine, SAMPLE + "from . import elsewhere\n", file="kit/__init__.py")
    with pytest.raises(FilterEntryError, match=rf"^{mine}/kit/__init__\.py:\d+: ImportError: cannot import name"):
        loader.load(found)
    found = write(mine, SAMPLE + "import stackfs_filter_sample.elsewhere\n", file="kit/__init__.py")
    with pytest.raises(FilterEntryError, match=r"No module named 'stackfs_filter_sample\.elsewhere'"):
        loader.load(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files away with chown")
def test_every_module_of_a_package_is_checked(mine: pathlib.Path) -> None:
    (mine / "kit").mkdir()
    (mine / "kit" / "tools.py").write_text("value = 1\n")
    found = write(mine, SAMPLE + "from .tools import value\n", file="kit/__init__.py")
    os.chown(mine / "kit" / "tools.py", 12345, 0)
    with pytest.raises(FilterEntryError, match=r"__init__\.py:\d+: ImportError: .*tools\.py is owned by 12345"):
        loader.load(found)
    assert not modules_of(found)


EXTENSION = r"""
#include <Python.h>
static PyObject *value(PyObject *self, PyObject *none) { return PyLong_FromLong(VALUE); }
static PyMethodDef methods[] = {{"value", value, METH_NOARGS, ""}, {0}};
static PyModuleDef_Slot slots[] = {{0, NULL}};
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "NAME", NULL, 0, methods, slots};
PyMODINIT_FUNC PyInit_NAME(void) { return PyModuleDef_Init(&def); }
"""


def build_extension(directory: pathlib.Path, name: str, value: int) -> pathlib.Path:
    source = directory / f"{name}.c"
    source.write_text(EXTENSION.replace("NAME", name).replace("VALUE", str(value)))
    target = directory / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    fresh = target.with_suffix(".new")
    include = sysconfig.get_paths()["include"]
    subprocess.run(["gcc", "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(fresh)], check=True)
    fresh.chmod(0o755)
    fresh.rename(target)
    return target


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_extension_modules(mine: pathlib.Path) -> None:
    (mine / "kit").mkdir()
    one, two = build_extension(mine / "kit", "_one", 1), build_extension(mine / "kit", "_two", 2)
    found = write(mine, SAMPLE + "from . import _one, _two\n", file="kit/__init__.py")
    module = sys.modules[loader.load(found).__module__]
    assert (module._one.value(), module._two.value()) == (1, 2)
    assert (module._one.__file__, module._two.__file__) == (str(one), str(two))
    loader.unload(found)
    module = sys.modules[loader.load(found).__module__]
    assert (module._one.value(), module._two.value()) == (1, 2)
    loader.unload(found)
    build_extension(mine / "kit", "_one", 3)
    module = sys.modules[loader.load(found).__module__]
    assert (module._one.value(), module._two.value()) == (3, 2)


def test_an_entry_point(mine: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    (site / "acme-1.dist-info").mkdir(parents=True)
    (site / "acme-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (site / "acme-1.dist-info" / "entry_points.txt").write_text("[stackfs.filters]\nsample = acme.inner\n")
    (site / "acme").mkdir()
    (site / "acme" / "__init__.py").write_text("common = 5\n")
    (site / "acme" / "inner.py").write_text(MANIFEST % "" + SAMPLE + "from acme import common\nfrom . import other\n")
    (site / "acme" / "other.py").write_text("")
    monkeypatch.syspath_prepend(str(site))
    found = find("sample")
    cls = loader.load(found)
    assert (cls.__module__, sys.modules["acme.inner"].common) == ("acme.inner", 5)
    assert not list(site.rglob("__pycache__"))
    loader.unload(found)
    assert "acme.inner" not in sys.modules


def in_a_fresh_python(script: str) -> None:
    """For the installation's own filters: other tests may hold their modules, which loading replaces."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr


def test_the_installations_filters_have_their_real_names() -> None:
    in_a_fresh_python(
        "import pickle, sys\n"
        "from stackfs import discovery, loader\n"
        "found = discovery.find('readonly')\n"
        "cls = loader.load(found)\n"
        "assert cls.__module__ == 'stackfs.filters.readonly', cls.__module__\n"
        "assert pickle.loads(pickle.dumps(cls)) is cls\n"
        "loader.unload(found)\n"
        "assert 'stackfs.filters.readonly' not in sys.modules\n"
        "assert not hasattr(sys.modules['stackfs.filters'], 'readonly')\n"
    )


def test_every_shipped_filter_loads_and_loads_again() -> None:
    in_a_fresh_python(
        "from stackfs import api, discovery, loader\n"
        "for found in discovery.list_all().found * 2:\n"
        "    assert issubclass(loader.load(found), api.Filter)\n"
        "    if found.manifest.commands:\n"
        "        loader.load_commands(found)\n"
        "    loader.unload(found)\n"
    )


def test_a_disabled_filter(mine: pathlib.Path) -> None:
    with pytest.raises(FltError, match="disabled"):
        loader.load(write(mine, SAMPLE, fields=', "start": "disabled"'))


@pytest.mark.parametrize(
    ("body", "kind", "where", "reason"),
    [
        ("def f(:\n", FilterImageError, "4", ""),
        ("1 / 0\n", FilterEntryError, "4", "ZeroDivisionError: division by zero"),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", FilterEntryError, "5", "ValueError: a b"),
        ("import nothing_such\n", FilterEntryError, "4", "ModuleNotFoundError: No module named 'nothing_such'"),
        ("import sys\nsys.exit(3)\n", FilterEntryError, "5", "SystemExit: 3"),
        ("raise RuntimeError\n", FilterEntryError, "4", "RuntimeError: no reason given"),
        ("import json\njson.loads('{')\n", FilterEntryError, "5", "JSONDecodeError"),
    ],
)
def test_import_errors_are_one_line(
    mine: pathlib.Path, body: str, kind: type[FltError], where: str, reason: str
) -> None:
    (mine / "sample.py").write_text(MANIFEST % "")
    found = find("sample", [str(mine)])
    found = Found(found.manifest, found.path, (MANIFEST % "" + body).encode(), found.module, found.root, found.origin)
    with pytest.raises(kind) as caught:
        loader.load(found)
    assert caught.value.message.startswith(f"{mine}/sample.py:{where}: {reason}")
    assert "\n" not in caught.value.message
    assert "stackfs_filter_sample" not in sys.modules


def registration(operations: str, methods: str = "    def pre(self, data, objects): pass\n") -> str:
    return f"class Sample(api.Filter):\n    operations = {operations}\n{methods}"


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ("class Other(api.Filter): pass\n", "filter", "no class 'Sample'"),
        ("class Sample: pass\n", "filter", "not a subclass"),
        ("Sample = 5\n", "filter", "not a subclass"),
        (registration("5"), "Sample.operations", "must be a tuple"),
        (registration("(5,)"), "Sample.operations[0]", "not an Operation"),
        (registration("(api.Operation(0x100),)"), "Sample.operations[0].major", "not an IRP_MJ_"),
        (registration("(api.Operation('read'),)"), "Sample.operations[0].major", "not an IRP_MJ_"),
        (registration("(api.Operation(0x16),)"), "Sample.operations[0].major", "IRP_MJ_POWER cannot be registered"),
        (registration("(api.Operation(0x18),)"), "Sample.operations[0].major", "DEVICE_CHANGE cannot be registered"),
        (
            registration("(api.Operation(api.IRP_MJ_READ, pre='pre'), api.Operation(api.IRP_MJ_READ))"),
            "Sample.operations[1].major",
            "IRP_MJ_READ is registered twice",
        ),
        (registration("(api.Operation(api.IRP_MJ_READ, flags=16),)"), "Sample.operations[0].flags", "no registration"),
        (registration("(api.Operation(api.IRP_MJ_READ, flags=-1),)"), "Sample.operations[0].flags", "no registration"),
        (registration("(api.Operation(api.IRP_MJ_READ, pre='x'),)"), "Sample.operations[0].pre", "no method 'x'"),
        (
            registration("(api.Operation(api.IRP_MJ_READ, post='post'),)", "    post = 5\n"),
            "Sample.operations[0].post",
            "no method 'post'",
        ),
        (
            registration(
                "(api.Operation(api.IRP_MJ_QUERY_OPEN, pre='pre'),)", "    async def pre(self, data, objects): pass\n"
            ),
            "Sample.operations[0].pre",
            "async",
        ),
        (
            registration("(api.Operation(api.IRP_MJ_SHUTDOWN, pre='pre', post='pre'),)"),
            "Sample.operations[0].post",
            "no post-operation callback",
        ),
        ("class Sample(api.Filter):\n    filter_unload = 5\n", "Sample.filter_unload", "must be a method, or None"),
        (
            "class Sample(api.Filter):\n    async def instance_setup(self, i, f): pass\n",
            "Sample.instance_setup",
            "async",
        ),
    ],
)
def test_registrations_refused(mine: pathlib.Path, body: str, field: str, reason: str) -> None:
    with pytest.raises(FilterImageError) as caught:
        loader.load(write(mine, body))
    assert caught.value.message.startswith(f"{mine}/sample.py: {field}: ")
    assert reason in caught.value.message
    assert "stackfs_filter_sample" not in sys.modules


def test_callbacks_set_to_none_are_allowed(mine: pathlib.Path) -> None:
    body = "class Sample(api.Filter):\n    filter_unload = None\n    instance_query_teardown = None\n"
    assert loader.load(write(mine, body)).filter_unload is None


def test_commands(mine: pathlib.Path) -> None:
    fields = ', "commands": "%s"'
    body = SAMPLE + "app = 'here'\n"
    for commands in (":app", "sample:app"):
        assert loader.load_commands(write(mine, body, fields=fields % commands)) == "here"
    (mine / "sample.py").unlink()
    (mine / "kit").mkdir()
    (mine / "kit" / "cli.py").write_text("from . import app as other\napp = 'there'\n")
    for commands, result in ((":app", "here"), ("cli:app", "there"), ("kit.cli:app", "there"), ("cli:other", "here")):
        found = write(mine, body, fields=fields % commands, file="kit/__init__.py")
        assert loader.load_commands(found) == result
        loader.unload(found)
    with pytest.raises(FilterImageError, match=r"commands: module stackfs_filter_sample\.cli has no 'none'"):
        loader.load_commands(write(mine, body, fields=fields % "cli:none", file="kit/__init__.py"))
    with pytest.raises(FilterEntryError, match="No module named"):
        loader.load_commands(write(mine, body, fields=fields % "gone:app", file="kit/__init__.py"))
    with pytest.raises(FilterImageError, match="brings none"):
        loader.load_commands(write(mine, body, file="kit/__init__.py"))
