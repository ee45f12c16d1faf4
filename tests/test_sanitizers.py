"""`make sanitize`: the core's tests find nothing under gcc's sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}


def missing(library: str) -> bool:
    """gcc answers with the bare name when it has no such library."""
    asked = ["gcc", f"-print-file-name={library}"]
    return not os.path.isabs(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", LIBRARIES)
def test_the_core_under(kind: str) -> None:
    if missing(LIBRARIES[kind]):
        pytest.skip(f"gcc has no {LIBRARIES[kind]} here")
    if not (ROOT / "setup.sh").exists():
        pytest.skip("not a source tree")
    environment = os.environ | {"SANITIZE": kind}
    done = subprocess.run(
        ["./setup.sh", "sanitize"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"the {kind} sanitizer finds nothing" in done.stdout
