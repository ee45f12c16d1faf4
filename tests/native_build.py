"""Native instances for tests: a .pyx beside this file, compiled against the .pxd files as a stranger's filter would
be."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


def build(name: str, where: Path) -> Any:
    """The module of tests/NAME.pyx, built in `where`."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    shutil.copy(HERE / f"{name}.pyx", where)
    script = (
        "import os, sys, stackfs\nfrom setuptools import Extension, setup\nfrom Cython.Build import cythonize\n"
        "site = os.path.dirname(os.path.dirname(stackfs.__file__))\n"
        f"module = Extension('{name}', ['{name}.pyx'], extra_compile_args=['-O0'],\n"
        "                   include_dirs=[os.path.join(site, 'stackfs/cext/includes')])\n"
        "setup(name='probe', script_args=['-q', 'build_ext', '--inplace'],\n"
        "      ext_modules=cythonize([module], include_path=[site], language_level=3, quiet=True))\n"
    )
    built = subprocess.run([sys.executable, "-c", script], cwd=where, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-3000:]
    (path,) = where.glob(f"{name}*.so")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
