"""Builds the compiled core and lays out the one import name, `stackfs`.

The sources live in top-level folders, stackfs/, cext/, filters/ and benchmarks/, and are imported as stackfs,
stackfs.cext, stackfs.filters and stackfs.benchmarks. Cython finds `from stackfs.cext.stack cimport ...` by walking
folders, so a package_dir mapping is not enough for it: before anything else this file makes the links stackfs/cext,
stackfs/filters and so on (ignored by git). With them one tree serves cimport, the wheel and an editable install alike.

Every .pyx under cext/, filters/ and benchmarks/ becomes an extension module; nothing has to be listed here. Generated C
goes to build/c/. Only what changed is compiled again: Cython follows cimports and extern headers, and a change of this
file's settings rebuilds everything.

STACKFS_COMPILE=0 leaves the extensions out (the Makefile's editable install, which compiles in its own step).
STACKFS_SANITIZE=address or thread compiles with that sanitizer (`make sanitize`).
"""

import os
import platform
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
LINKED = ("cext", "filters", "mountpoints", "benchmarks")
JOBS = min(os.cpu_count() or 1, 8)

COMPILE_ARGUMENTS = ["-O2", "-g0", "-fno-strict-aliasing", "-pthread", "-Wall", "-Wno-unused-function"]
if platform.machine() == "x86_64" and "gcc" in (os.environ.get("CC") or str(sysconfig.get_config_var("CC"))):
    # An operation is a few hundred bytes to be zeroed, and `rep stos` takes as long for them as a callback.
    COMPILE_ARGUMENTS.append("-mmemset-strategy=vector_loop:2048:noalign,libcall:-1:noalign")
LINK_ARGUMENTS = ["-pthread"]
GENERATED = "build/c"

SANITIZERS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}
if sanitizer := os.environ.get("STACKFS_SANITIZE"):
    GENERATED = f"build/{sanitizer}/c"
    COMPILE_ARGUMENTS += ["-O1", "-g1", "-fno-omit-frame-pointer", "-Wno-maybe-uninitialized", SANITIZERS[sanitizer]]
    LINK_ARGUMENTS.append(SANITIZERS[sanitizer])

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "embedsignature": True,
}


def link_folders() -> None:
    """Make stackfs/<folder> -> ../<folder>. An unpacked tree that has real folders there is left as it is."""
    for folder in LINKED:
        link = ROOT / "stackfs" / folder
        if not link.is_symlink() and not link.exists():
            link.symlink_to(Path("..") / folder)


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.pyx"))


def needs_openssl(source: Path) -> bool:
    """libcrypto is linked only into a module that names OpenSSL's headers, itself or in its .pxd."""
    texts = [path.read_text() for path in (source, source.with_suffix(".pxd")) if path.exists()]
    return any(re.search(r"openssl", text) for text in texts)


class Module(Extension):
    """An extension by identity: cythonize(exclude_failures=True) puts them into a set."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def extension(source: Path) -> Extension:
    inside = Path("stackfs") / source.relative_to(ROOT)
    return Module(
        ".".join(inside.with_suffix("").parts),
        [str(inside)],
        include_dirs=["cext/includes", str(source.parent.relative_to(ROOT))],
        define_macros=[("_GNU_SOURCE", None), ("_FILE_OFFSET_BITS", "64")],
        extra_compile_args=COMPILE_ARGUMENTS,
        extra_link_args=LINK_ARGUMENTS,
        libraries=["crypto"] if needs_openssl(source) else [],
    )


def packages() -> list[str]:
    """stackfs and every folder under it, links followed, with or without an __init__.py."""
    folders = [Path(folder) for folder, _, _ in os.walk(ROOT / "stackfs", followlinks=True)]
    return sorted(".".join(path.relative_to(ROOT).parts) for path in folders if path.name != "__pycache__")


class CompileExtensions(build_ext):
    """Compiles in parallel, everything that can be compiled, and then fails if something could not be."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or JOBS
        stamp = ROOT / GENERATED / ".settings"
        settings = f"{sys.version}\n{COMPILE_ARGUMENTS}\n{DIRECTIVES}\n"
        if not stamp.exists() or stamp.read_text() != settings:
            self.force = True
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(settings)

    def run(self) -> None:
        from Cython.Build import cythonize

        ours = {one.name: one for one in self.extensions}
        translated = cythonize(
            list(ours.values()),
            build_dir=GENERATED,
            compiler_directives=DIRECTIVES,
            nthreads=JOBS,
            force=bool(self.force),
            exclude_failures=True,
            quiet=True,
        )
        for one in translated:
            vars(ours[one.name]).update(vars(one))      # keeps what setuptools has noted on the objects it knows
        self.extensions[:] = [ours[one.name] for one in translated]
        self.failed = set(ours) - {one.name for one in translated}
        super().run()
        if self.failed:
            raise SystemExit(f"stackfs: did not compile, see above: {', '.join(sorted(self.failed))}")

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except CompileError:
            self.failed.add(ext.name)
            ext.optional = True             # nothing to copy into the tree


class CopyModules(build_py):
    """Leaves behind what an earlier build put there and the sources no longer have."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        wanted = {Path(path).resolve() for path in self.get_outputs(include_bytecode=False)}
        for path in Path(self.build_lib, "stackfs").rglob("*"):
            if path.is_file() and path.suffix != ".so" and path.resolve() not in wanted:
                path.unlink()


os.chdir(ROOT)
link_folders()
compiled = []
if os.environ.get("STACKFS_COMPILE") != "0":
    compiled = [source for folder in ("cext", "filters", "benchmarks") for source in sources(folder)]
setup(
    packages=packages(),
    package_data={"": ["*.pyx", "*.pxd", "*.pyi", "*.h", "py.typed"], "stackfs.mountpoints": ["*.toml", "*.md"]},
    ext_modules=[extension(source) for source in compiled],
    cmdclass={"build_ext": CompileExtensions, "build_py": CopyModules},
    zip_safe=False,
)
