"""The house: what is built, packed and installed, and that the modules, their .pyi and the documents agree.

Nothing here mounts anything. The tests that build work on a copy of the tree, so that they never disturb the one they
run from; they start from its build/ folder and compile only what is missing there.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cext", "filters", "benchmarks")
SOURCES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.pyx"))
MODULES = ["stackfs." + ".".join(source.with_suffix("").parts) for source in SOURCES]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

pytestmark = pytest.mark.skipif(not (ROOT / "setup.sh").exists(), reason="needs the source tree")


def run(
    *command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def tracked(*where: str) -> list[str]:
    """What is in the project: tracked by git, or new and not ignored."""
    listing = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *where)
    if listing.returncode != 0:
        pytest.skip(f"not a git work tree: {listing.stderr.strip()}")
    return sorted(name for name in listing.stdout.split("\0") if name and (ROOT / name).exists())


# ---- the tree -------------------------------------------------------------------------------------------------------


def test_top_level() -> None:
    folders = {name.split("/")[0] for name in tracked() if "/" in name}
    assert folders <= {"stackfs", "filters", "cext", "mountpoints", "tests", "docs", "benchmarks", ".ci"}


def test_one_module_imports_pyfuse3() -> None:
    importers = [path.name for path in (ROOT / "stackfs").rglob("*.py") if "pyfuse3" in imported(path)]
    assert importers in ([], ["irp_lane.py"])


@pytest.mark.parametrize("path", [name for folder in ("stackfs", "filters") for name in
                                  sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py"))])
def test_imports_point_one_way(path: str) -> None:
    """cli -> stackfs -> cext; filters -> stackfs.api, stackfs.cext and, for the commands they bring, anything."""
    if path.startswith(("stackfs/cli/", "stackfs/filters/", "stackfs/cext/")):
        return
    names = imported(ROOT / path)
    if path.startswith("stackfs/"):
        assert not {name for name in names if f"{name}.".startswith(("stackfs.cli.", "stackfs.filters.", "filters."))}
    else:
        assert not {name for name in names if name.startswith(("stackfs.manager", "stackfs.daemon", "pyfuse3"))}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{name.name}" for name in node.names)
    return found


# ---- every compiled module and its .pyi ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_every_compiled_module_has_a_stub(source: Path) -> None:
    assert (ROOT / source.with_suffix(".pyi")).exists()


@pytest.mark.parametrize(("source", "name"), list(zip(SOURCES, MODULES, strict=True)), ids=MODULES)
def test_stub_and_module_agree(source: Path, name: str) -> None:
    module = importlib.import_module(name)
    stub = Stub(ast.parse((ROOT / source.with_suffix(".pyi")).read_text()).body)
    assert stub.names() - set(vars(module)) == set(), "the .pyi has names that the module lacks"
    assert public(module) - stub.names() == set(), "the module has public names that the .pyi lacks"
    for function, node in stub.functions.items():
        same_parameters(function, node, getattr(module, function))
    for class_name, members in stub.classes.items():
        if class_name.startswith("_"):                    # what type checkers alone need
            continue
        python = getattr(module, class_name)
        if "__getattr__" in members.functions:            # an enumeration filled from a table
            continue
        for member in sorted(members.names()):
            assert hasattr(python, member), f"{class_name}.{member} is not in the module"
        own = {member for member in vars(python) if not member.startswith("_")}
        assert own - members.names() == set(), f"public members of {class_name} that the .pyi lacks"
        for function, node in members.functions.items():
            if not (function.startswith("__") or node.decorator_list):
                same_parameters(f"{class_name}.{function}", node, getattr(python, function))


class Stub:
    """What a .pyi, or a class in it, declares."""

    def __init__(self, body: list[ast.stmt]) -> None:
        self.functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self.classes: dict[str, Stub] = {}
        self.values: set[str] = set()
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = Stub(node.body)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self.values.add(node.target.id)
            elif isinstance(node, ast.Assign):
                self.values.update(target.id for target in node.targets if isinstance(target, ast.Name))

    def names(self) -> set[str]:
        """Public names; the aliases and type variables a .pyi makes for itself begin with an underscore."""
        return {name for name in {*self.functions, *self.classes, *self.values} if not name.startswith("_")}


def public(module: types.ModuleType) -> set[str]:
    """Names that a module brings, without those it only imported."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", module.__name__) == module.__name__
    }


def same_parameters(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, function: object) -> None:
    """The parameters' names, in order, and which of them have a default."""
    declared = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
    count = len(node.args.defaults)
    optional = set(declared[len(declared) - count:]) if count else set()
    keyword_only = [one.arg for one in node.args.kwonlyargs]
    try:
        found = list(inspect.signature(function).parameters.values())  # type: ignore[arg-type]
    except ValueError:                          # a method of a cdef class: Cython writes it into the docstring
        match = re.match(r"(?:[\w.]+\.)?\w+\((.*)\)", getattr(function, "__doc__", None) or "")
        assert match, f"{name} has no signature"
        words = [word.strip() for word in re.split(r",(?![^\[(]*[\])])", match[1])]
        words = [word for word in words if word not in ("", "/", "*")]
        parsed = [(re.split(r"[:=]", word)[0].split()[-1], "=" in word) for word in words]
        assert [one for one, _ in parsed] == [*declared, *keyword_only], f"{name}: other parameters than in the module"
        assert {one for one, default in parsed if default} >= optional, f"{name}: other defaults than in the module"
        return
    positional = [one for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    assert [one.name for one in positional] == declared, f"{name}: other parameters than in the module"
    assert {one.name for one in positional if one.default is not one.empty} == optional, f"{name}: other defaults"
    assert [one.name for one in found if one.kind == one.KEYWORD_ONLY] == keyword_only, f"{name}: other keywords"


# ---- the wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files, and what was compiled already, in a folder of its own."""
    place = tmp_path_factory.mktemp("tree")
    for name in tracked():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)
    for folder in (ROOT / "build").glob("*"):
        if folder.name == "c" or folder.name.startswith(("lib.", "temp.")):
            shutil.copytree(folder, place / "build" / folder.name, copy_function=shutil.copy2)
    return place


@pytest.fixture(scope="module")
def wheel(copy: Path) -> Path:
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", ".", cwd=copy)
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    (found,) = (copy / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with nothing of ours in it but the wheel; the packages it needs are lent by this one."""
    place = tmp_path_factory.mktemp("fresh") / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", place).returncode == 0
    (site,) = place.glob("lib/python*/site-packages")
    installed = run(sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--no-deps", "--quiet",
                    "--disable-pip-version-check", "--no-index", wheel)
    assert installed.returncode == 0, installed.stderr
    (site / "lent.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
    yield place


@pytest.mark.timeout(600)
def test_wheel_content(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"stackfs", f"stackfs-{PYPROJECT['project']['version']}.dist-info"}
    for source in SOURCES:
        stem = "stackfs/" + str(source.with_suffix(""))
        assert any(name.startswith(stem + ".cpython") for name in names), f"{stem} is not in the wheel"
        assert f"{stem}.pyi" in names
    wanted = {"stackfs/py.typed"}
    wanted |= {name for name in tracked("stackfs") if name.endswith((".py", ".pyi"))}
    wanted |= {"stackfs/" + name for name in tracked(*FOLDERS) if name.endswith((".py", ".pyi", ".pxd", ".h"))}
    wanted |= {"stackfs/" + name for name in tracked("mountpoints") if name.endswith(".toml")}
    assert wanted - names == set()
    extra = {name for name in names if name.startswith("stackfs/") and not name.endswith(".so")} - wanted
    assert {name for name in extra if not name.endswith((".pyx", ".md"))} == set()


@pytest.mark.timeout(600)
def test_installed_into_a_fresh_environment(fresh: Path, tmp_path: Path) -> None:
    imports = "; ".join(f"import {module}" for module in ["stackfs", *MODULES])
    told = f"{imports}; print(stackfs.__file__, stackfs.__version__)"
    shown = run(fresh / "bin/python", "-I", "-c", told, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == [str(next(fresh.glob("lib/python*/site-packages/stackfs/__init__.py"))),
                                    PYPROJECT["project"]["version"]]
    for command in ("stackfs", "fltmc"):
        helped = run(fresh / "bin" / command, "--help", cwd=tmp_path)
        assert helped.returncode == 0 and "sage" in helped.stdout, helped.stderr


NATIVE_FILTER = """
from stackfs.cext.callback_data cimport FLT_CALLBACK_DATA, FLT_RELATED_OBJECTS
from stackfs.cext.callback_data cimport FLT_PREOP_SUCCESS_NO_CALLBACK, IRP_MJ_READ
from stackfs.cext.buffers cimport FltLockUserBuffer
from stackfs.cext.filter_io cimport FltReadFile
from stackfs.cext.filter_names cimport FltClose, FltCreateFileEx
from stackfs.cext.generated_io cimport FltAllocateCallbackData
from stackfs.cext.paths cimport operation_path
from stackfs.cext.process cimport requestor_pid
from stackfs.cext.stack cimport NativeOperations

cdef int pre_read(FLT_CALLBACK_DATA *Data, const FLT_RELATED_OBJECTS *FltObjects,
                  void **CompletionContext) noexcept nogil:
    cdef char path[4096]
    operation_path(Data, FltObjects, path, sizeof(path))
    FltReadFile(FltObjects.Instance, FltObjects.FileObject, &Data.Iopb.Parameters.Read.ByteOffset, 1, path, 0,
                NULL, NULL, NULL)
    requestor_pid(Data.Thread)
    return FLT_PREOP_SUCCESS_NO_CALLBACK

def operations():
    cdef NativeOperations table = NativeOperations()
    table.set(IRP_MJ_READ, pre_read, NULL, 0)
    return table
"""


@pytest.mark.timeout(600)
def test_a_native_filter_compiles_against_the_wheel(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "stranger.pyx").write_text(NATIVE_FILTER)
    (tmp_path / "setup.py").write_text(
        "from setuptools import Extension, setup\n"
        "from Cython.Build import cythonize\n"
        "import os, stackfs\n"
        "site = os.path.dirname(os.path.dirname(stackfs.__file__))\n"
        "headers = [os.path.join(site, 'stackfs/cext/includes')]\n"
        "modules = [Extension('stranger', ['stranger.pyx'], include_dirs=headers)]\n"
        "setup(name='stranger', ext_modules=cythonize(modules, include_path=[site], language_level=3))\n"
    )
    built = run(fresh / "bin/python", "-I", "setup.py", "--quiet", "build_ext", "--inplace", cwd=tmp_path)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    used = run(fresh / "bin/python", "-I", "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n"
               "import stranger; print(type(stranger.operations()).__name__)", cwd=tmp_path)
    assert used.stdout.strip() == "NativeOperations", used.stderr


# ---- make -----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_make_build_is_quick_when_there_is_nothing_to_do() -> None:
    first = run("make", "build")
    assert first.returncode == 0, first.stderr
    begun = time.monotonic()
    second = run("make", "build")
    assert second.returncode == 0 and len(second.stdout.splitlines()) == 1, second.stdout
    assert time.monotonic() - begun < 2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_only_what_changed_is_compiled_again(copy: Path) -> None:
    """The C files and modules are younger than the change for exactly those that see the changed .pxd."""
    (copy / ".venv").symlink_to(Path(sys.executable).parent.parent)
    assert run("./setup.sh", "core", cwd=copy).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in copy.glob("*ext/*.so")}
    os.utime(copy / "cext/ntstatus.pyx")
    assert run("./setup.sh", "core", cwd=copy).returncode == 0
    changed = {path.name.split(".")[0] for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {"ntstatus"}


@pytest.mark.timeout(600)
def test_a_module_that_does_not_compile_fails_with_one_clear_line(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy, tmp_path / "tree", symlinks=True)
    place = tmp_path / "tree"
    (place / "cext/broken.pyx").write_text("def broken(:\n")
    if not (place / ".venv").exists():
        (place / ".venv").symlink_to(Path(sys.executable).parent.parent)
    failed = run("./setup.sh", "core", cwd=place)
    assert failed.returncode == 1
    assert "broken.pyx:1" in failed.stderr and "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1] == "stackfs: the core did not compile"


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n" + script)
    (folder / name).chmod(0o755)


def faked(folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}


def test_a_user_without_a_package_is_told_the_one_command(tmp_path: Path) -> None:
    shutil.copy2(ROOT / "setup.sh", tmp_path)
    fake(tmp_path / "bin", "id", "echo 1000\n")
    fake(tmp_path / "bin", "dpkg-query", 'case $4 in libfuse3-dev|fio) exit 1;; esac\nprintf installed\n')
    asked = run("./setup.sh", "packages", cwd=tmp_path, env=faked(tmp_path))
    assert asked.returncode == 1
    assert asked.stderr.splitlines() == [
        "stackfs: packages are missing; as root: apt-get install -y --no-install-recommends libfuse3-dev fio"]
    assert not (tmp_path / "build/.packages").exists()


def test_root_installs_only_what_is_missing(tmp_path: Path) -> None:
    shutil.copy2(ROOT / "setup.sh", tmp_path)
    fake(tmp_path / "bin", "id", "echo 0\n")
    fake(tmp_path / "bin", "dpkg-query", '[ "$4" = attr ] && exit 1\nprintf installed\n')
    fake(tmp_path / "bin", "apt-get", f'echo "$@" >>{tmp_path}/asked\n')
    done = run("./setup.sh", "packages", cwd=tmp_path, env=faked(tmp_path))
    assert (done.returncode, done.stdout) == (0, "stackfs: installing Debian packages: attr\n")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["update -qq", "install -y -qq --no-install-recommends attr"]
    assert (tmp_path / "build/.packages").exists()


def test_a_python_that_will_not_do_is_refused_with_one_line(tmp_path: Path) -> None:
    shutil.copy2(ROOT / "setup.sh", tmp_path)
    done = run("./setup.sh", "venv", cwd=tmp_path, env={**os.environ, "PYTHON": "/bin/false"})
    assert done.returncode == 1
    assert done.stderr == "stackfs: PYTHON=/bin/false is not a Python 3.11 or later with its headers and venv\n"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_make_install_and_uninstall(copy: Path, tmp_path: Path) -> None:
    if not (copy / ".venv").exists():
        (copy / ".venv").symlink_to(Path(sys.executable).parent.parent)
    settings = {**os.environ, "DESTDIR": str(tmp_path / "image"), "PREFIX": "/opt/here", "PYTHON": ""}
    done = run("./setup.sh", "install", cwd=copy, env=settings)
    assert done.returncode == 0, done.stderr
    image = tmp_path / "image"
    for command in ("stackfs", "fltmc"):
        assert os.readlink(image / "opt/here/bin" / command) == f"/opt/here/lib/stackfs/bin/{command}"
        assert (image / "opt/here/lib/stackfs/bin" / command).read_text().splitlines()[0].startswith("#!/opt/here/lib/")
    helper = image / "sbin/mount.fuse.stackfs"
    assert stat.S_IMODE(helper.stat().st_mode) == 0o755 and "exec /opt/here/bin/stackfs mount" in helper.read_text()
    assert not [path for path in image.rglob("*") if path.suffix in (".cfg", "") and path.is_file()
                and str(image).encode() in path.read_bytes()]
    assert run("./setup.sh", "uninstall", cwd=copy, env=settings).returncode == 0
    assert [path for path in image.rglob("*") if not path.is_dir()] == []


# ---- mount.fuse.stackfs and the documents -----------------------------------------------------------------------


@pytest.mark.parametrize(("words", "command"), [
    (["/a b", "/mnt/x", "-o", "rw,noauto"], ["mount", "-o", "rw,noauto", "--", "/a b", "/mnt/x"]),
    (["-dash", "/mnt/x", "-n", "-s", "-v"], ["mount", "--", "-dash", "/mnt/x"]),
    (["/a", "/m", "-o", "ro", "-t", "fuse.stackfs", "-o", "filter=audit,audit.key=/k y"],
     ["mount", "-o", "ro,filter=audit,audit.key=/k y", "--", "/a", "/m"]),
    (["/a", "/m", "-f", "-o", "ro"], []),
])
def test_mount_helper(words: list[str], command: list[str], tmp_path: Path) -> None:
    fake(tmp_path, "stackfs", 'for word; do printf "%s\\n" "$word"; done\n')
    script = (ROOT / "docs/mount.fuse.stackfs").read_text().replace("/usr/local/bin/stackfs", f"{tmp_path}/stackfs")
    (tmp_path / "helper").write_text(script)
    done = run("sh", tmp_path / "helper", *words)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, command, "")


def test_mount_helper_is_written_out_in_the_documentation() -> None:
    assert (ROOT / "docs/mount.fuse.stackfs").read_text() in (ROOT / "docs/mounting.md").read_text()


def test_versions_agree() -> None:
    import stackfs

    assert stackfs.__version__ == PYPROJECT["project"]["version"]
    assert re.search(rf"^## {re.escape(stackfs.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_ci_runs_what_the_readme_names() -> None:
    commands = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")]
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert commands == ["make build", "make lint", "make test", "make run"]
    for command in commands:
        assert command in readme and command.split()[1] in targets


@pytest.mark.parametrize("document", sorted(str(path.relative_to(ROOT)) for path in
                                            [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]))
def test_links_between_documents(document: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / document).parent / target).exists(), f"{document} points to {target}"


def test_the_readme_filter_is_the_shipped_one() -> None:
    """The README's first filter is filters/readonly.py's code, word for word."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block and block[1].strip() in (ROOT / "filters/readonly.py").read_text()
