"""The filter stack against a reference interpreter of it (stack_model.py), without a mount: Python and native instances
mixed, several operations under way at once, instances that come and go meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from native_build import build
from stack_player import Both, Played, Program, Tape

EXAMPLES = 2000
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
TAPES = st.binary(min_size=160, max_size=400)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """native_probe.pyx, compiled against the .pxd files as a stranger's filter would be."""
    return build("native_probe", tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """Another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backing")


def test_the_stack_does_what_the_model_does(top: Path, native: Any, elsewhere: ThreadPoolExecutor) -> None:
    @SETTINGS
    @given(TAPES)
    def examples(tape: bytes) -> None:
        program = Tape(tape).program()
        note(repr(program))
        Both(top, native, elsewhere).play(program)

    examples()
