"""STATUS_REPARSE (docs/semantics.md A6.21): operations that go on under another name, without a mount and on one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Drive, needs_root
from stack_driver import CREATE, GETATTR, MKDIR, OPEN, UNLINK, entry_of, error_of, go_on, lookup, opened, read

from stackfs import api
from stackfs.api import FLT_PREOP_SUCCESS_NO_CALLBACK, IRP_MJ_CREATE, IRP_MJ_QUERY_OPEN, IRP_MJ_READ
from stackfs.cext.python_requests import Volume
from stackfs.ddi import callback_data as ddi

LOOKUP = 1


BOTH = (IRP_MJ_CREATE, IRP_MJ_QUERY_OPEN)


def redirect(core: Volume, table: dict[str, str], at: str = "1", majors: tuple[int, ...] = BOTH) -> Any:
    """Whatever is called by a key, or lies below it, is what the value leads to."""

    def pre(data: Any, objects: object) -> Any:
        for old, new in table.items():
            if data.path == old or data.path.startswith(old + "/"):
                return data.reparse(new + data.path[len(old) :])
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    entry = entry_of(*[(major, pre, None) for major in majors], name=f"r{at}", at=at)
    core.stack.insert(entry)
    return entry


def test_a6_21_lookups_and_opens_go_elsewhere(core: Volume, place: Path) -> None:
    (place / "folder/real").write_bytes(b"real")
    redirect(core, {"/alias": "/folder/real", "/x": "/folder"})
    node = lookup(core, b"alias")
    assert node == core.request(LOOKUP, lookup(core, b"folder"), name=b"real").do().nodeid
    assert core.request(GETATTR, node).do().stat[6] == 4
    assert read(core, opened(core, node)) == b"real"
    assert lookup(core, b"x") == lookup(core, b"folder"), "a directory too"
    core.request(CREATE, name=b"alias2", flags=os.O_RDWR, mode=0o600).do()
    assert (place / "alias2").exists(), "another name is left alone"


def test_a6_21_what_is_made_or_deleted_is_elsewhere(core: Volume, place: Path) -> None:
    redirect(core, {"/new": "/folder/made", "/old": "/folder/gone"})
    (place / "folder/gone").touch()
    core.request(CREATE, name=b"new", flags=os.O_RDWR | os.O_EXCL, mode=0o600).do()
    assert (place / "folder/made").exists() and not (place / "new").exists()
    assert error_of(core, MKDIR, name=b"new", mode=0o700) == errno.EEXIST
    assert error_of(core, UNLINK, name=b"old") == 0
    assert not (place / "folder/gone").exists()


def test_a6_21_one_after_the_other_and_a_loop(core: Volume, place: Path) -> None:
    (place / "folder/end").write_bytes(b"end")
    steps = {f"/n{number}": f"/n{number + 1}" for number in range(20)}
    redirect(core, steps | {"/n20": "/folder/end", "/round": "/round"})
    assert read(core, opened(core, lookup(core, b"n0"))) == b"end"
    assert error_of(core, LOOKUP, name=b"round") == errno.ELOOP
    assert error_of(core, CREATE, name=b"round", flags=os.O_RDWR, mode=0o600) == errno.ELOOP
    assert core.open_files == 1


@pytest.mark.parametrize(("path", "error"), [
    ("/../outside", errno.EINVAL), ("/folder/../file", errno.EINVAL), ("/none/at/all", errno.ENOENT),
    ("/", errno.EINVAL),
    ("/file/below", errno.ENOTDIR), ("/" + "x" * 256, errno.ENAMETOOLONG), ("/" + "x" * 5000, errno.ENAMETOOLONG),
    ("/way/outside", errno.ENOTDIR),
])  # fmt: skip
def test_a6_21_it_never_leads_outside(core: Volume, place: Path, path: str, error: int) -> None:
    (place.parent / "outside").write_bytes(b"secret")
    (place / "way").symlink_to(place.parent)
    redirect(core, {"/alias": path})
    known = core.known_inodes
    assert error_of(core, LOOKUP, name=b"alias") == error
    assert core.known_inodes == known


def test_a6_21_filters_above_see_it_and_then_the_new_name(core: Volume, place: Path) -> None:
    seen: list[Any] = []

    def post(data: Any, objects: object, context: Any, flags: int) -> None:
        seen.append((data.path, data.status))

    redirect(core, {"/alias": "/folder/real"})
    core.stack.insert(entry_of((IRP_MJ_QUERY_OPEN, go_on, post), name="above", at="5"))
    (place / "folder/real").touch()
    lookup(core, b"alias")
    assert seen == [("/alias", api.STATUS_REPARSE), ("/folder", 0), ("/folder/real", 0)]


def test_a6_21_the_slow_path_will_do(core: Volume, place: Path) -> None:
    """A filter that refuses QUERY_OPEN and sends the CREATE elsewhere, as simrep does."""
    (place / "folder/real").write_bytes(b"real")
    redirect(core, {"/alias": "/folder/real"}, majors=(IRP_MJ_CREATE,))
    core.stack.insert(entry_of(
        (IRP_MJ_QUERY_OPEN, lambda *_: api.FLT_PREOP_DISALLOW_FSFILTER_IO, None), name="slow", at="7"))  # fmt: skip
    assert read(core, opened(core, lookup(core, b"alias"))) == b"real"


def test_a6_21_under_the_ddis_names_and_where_it_is_not_legal(core: Volume, place: Path) -> None:
    answers: list[int] = []

    def pre(data: Any, objects: object) -> Any:
        answers.append(ddi.IoReplaceFileObjectName(data.file, "/file/and more", 5))
        if data.major == IRP_MJ_QUERY_OPEN and data.name == b"alias":
            return data.complete(api.STATUS_REPARSE, ddi.IO_REPARSE)
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    core.stack.insert(entry_of((IRP_MJ_QUERY_OPEN, pre, None), (IRP_MJ_READ, pre, None), name="f", at="1"))
    node = lookup(core, b"alias")
    assert node == lookup(core, b"file")
    read(core, opened(core, node))
    assert answers == [0, 0, 0, api.STATUS_INVALID_PARAMETER]


def test_a6_21_without_a_name_it_is_an_error(core: Volume, place: Path) -> None:
    core.stack.insert(entry_of((IRP_MJ_CREATE, lambda data, *_: data.complete(api.STATUS_REPARSE), None)))
    assert error_of(core, OPEN, lookup(core, b"file"), flags=os.O_RDONLY) == errno.EINVAL


ELSEWHERE = '''MANIFEST = {"name": "elsewhere", "altitude": "371100", "group": "FSFilter Activity Monitor",
            "filter": "Elsewhere"}
from stackfs.api import *

class Elsewhere(Filter):
    """What is called today.txt lies in 2026."""

    operations = (Operation(IRP_MJ_CREATE, pre="pre"), Operation(IRP_MJ_QUERY_OPEN, pre="pre"))

    def pre(self, data, objects):
        if data.path == "/today.txt":
            return data.reparse("/2026/today.txt")
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


@needs_root
def test_a6_21_on_each_lane(drive: Callable[..., Drive], lanes: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    made = drive(f"filterdir={tmp_path},filter=elsewhere")
    (made.mnt / "2026").mkdir()
    (made.mnt / "today.txt").write_bytes(b"written by its other name")
    assert os.listdir(made.src) == ["2026"]
    assert (made.src / "2026/today.txt").read_bytes() == b"written by its other name"
    assert (made.mnt / "today.txt").read_bytes() == b"written by its other name"
    assert (made.mnt / "today.txt").stat().st_ino == (made.mnt / "2026/today.txt").stat().st_ino
    (made.mnt / "today.txt").unlink()
    assert os.listdir(made.src / "2026") == []
    assert not (made.mnt / "today.txt").exists()
