"""VFS requests as operations (docs/semantics.md D): for each request the exact sequence that a filter sees."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stack_driver import Entry, entry_of, listed, lookup, opened

from stackfs import api
from stackfs.api import (
    DACL_SECURITY_INFORMATION,
    DELETE,
    FILE_APPEND_DATA,
    FILE_CREATE,
    FILE_DIRECTORY_FILE,
    FILE_NO_INTERMEDIATE_BUFFERING,
    FILE_NON_DIRECTORY_FILE,
    FILE_OPEN,
    FILE_OPEN_IF,
    FILE_OPEN_REPARSE_POINT,
    FILE_OVERWRITE,
    FILE_OVERWRITE_IF,
    FILE_READ_ATTRIBUTES,
    FILE_READ_DATA,
    FILE_READ_EA,
    FILE_WRITE_ATTRIBUTES,
    FILE_WRITE_DATA,
    FILE_WRITE_EA,
    FILE_WRITE_THROUGH,
    FSCTL_GET_REPARSE_POINT,
    FSCTL_SET_REPARSE_POINT,
    GROUP_SECURITY_INFORMATION,
    IRP_NOCACHE,
    IRP_PAGING_IO,
    LABEL_SECURITY_INFORMATION,
    OWNER_SECURITY_INFORMATION,
    READ_CONTROL,
    WRITE_DAC,
    WRITE_OWNER,
    FileAllInformation,
    FileBasicInformation,
    FileDispositionInformation,
    FileEndOfFileInformation,
    FileLinkInformation,
    FileNetworkOpenInformation,
    FileRenameInformation,
    FileRenameInformationEx,
)
from stackfs.cext.python_requests import Volume

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "semantics.md"

# What FUSE calls them.
OPCODES = {
    "LOOKUP": 1, "GETATTR": 3, "SETATTR": 4, "READLINK": 5, "SYMLINK": 6, "MKNOD": 8, "MKDIR": 9,
    "UNLINK": 10, "RMDIR": 11, "RENAME": 12, "LINK": 13, "OPEN": 14, "READ": 15, "WRITE": 16,
    "STATFS": 17, "RELEASE": 18, "FSYNC": 20, "SETXATTR": 21, "GETXATTR": 22, "LISTXATTR": 23, "REMOVEXATTR": 24,
    "OPENDIR": 27, "RELEASEDIR": 29, "FSYNCDIR": 30, "ACCESS": 34, "CREATE": 35, "READDIRPLUS": 44, "RENAME2": 45,
    "STATX": 52,
}  # fmt: skip
FH = 1  # GETATTR's and STATX's flag: it goes by a handle
MODE, UID, GID, SIZE, ATIME, MTIME, HANDLE, ATIME_NOW, MTIME_NOW = 1, 2, 4, 8, 16, 32, 64, 128, 256
OWN, WRITE_BACK = 2, 1
EXCHANGE = 2
RW = FILE_READ_DATA | FILE_WRITE_DATA | FILE_APPEND_DATA | FILE_READ_ATTRIBUTES


@dataclass
class Op:
    """One expected operation: its name, its kind, and the parameters that matter."""

    major: str
    kind: str
    parameters: dict[str, Any]
    principal: bool = False


def op(major: str, kind: str = "irp", **parameters: Any) -> Op:
    return Op(major, kind, parameters)


def main(major: str, kind: str = "irp", **parameters: Any) -> Op:
    return Op(major, kind, parameters, True)


CLOSING = [op("CLEANUP"), op("CLOSE")]
INFORMS = op("QUERY_INFORMATION", information_class=FileAllInformation)


def around(access: int, *inner: Op, options: int = 0, name: bytes = b"") -> list[Op]:
    """The synthesised open, cleanup and close of a request by path."""
    create = op("CREATE", desired_access=access, create_disposition=FILE_OPEN, create_options=options, name=name)
    return [create, *inner, *CLOSING]


def made(*inner: Op, options: int, mode: int, name: bytes = b"new", principal: bool = True) -> list[Op]:
    access = FILE_READ_ATTRIBUTES | FILE_WRITE_ATTRIBUTES
    create = Op("CREATE", "irp", about(desired_access=access, create_disposition=FILE_CREATE, create_options=options,
                                      mode=mode, name=name), principal)  # fmt: skip
    return [create, *inner, INFORMS, *CLOSING]


def open_op(disposition: int, access: int, options: int = FILE_NON_DIRECTORY_FILE, **more: Any) -> Op:
    return main("CREATE", desired_access=access, create_disposition=disposition, create_options=options, **more)


def setattr_ops(*sets: Op, access: int) -> list[Op]:
    """The last one that sets is the principal one."""
    last = Op(sets[-1].major, "irp", sets[-1].parameters, True)
    return around(access, *sets[:-1], last, INFORMS)


class Scene:
    """What the requests are about."""

    def __init__(self, core: Volume, place: Path) -> None:
        os.setxattr(place / "file", "user.a", b"value")
        (place / "link").symlink_to("target")
        (place / "folder" / "inner").touch()
        self.core = core
        self.file, self.folder, self.link = (lookup(core, name) for name in (b"file", b"folder", b"link"))
        self.fh = opened(core, self.file, os.O_RDWR)
        self.direct = opened(core, self.file, os.O_RDWR | os.O_DIRECT)
        self.listing = core.request(OPCODES["OPENDIR"], self.folder).do().fh


def about(**parameters: Any) -> dict[str, Any]:
    return parameters


LABEL = LABEL_SECURITY_INFORMATION
MODE_OP = op("SET_SECURITY", security_information=DACL_SECURITY_INFORMATION, mode=0o600)
OWNER_OP = op("SET_SECURITY", security_information=OWNER_SECURITY_INFORMATION | GROUP_SECURITY_INFORMATION)
ALL_OP = op("SET_SECURITY", security_information=OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION, mode=0o600)
SIZE_OP = op("SET_INFORMATION", information_class=FileEndOfFileInformation, end_of_file=4)
TIMES_OP = op("SET_INFORMATION", information_class=FileBasicInformation)

# name of the case: (the request, its node and arguments from the scene, what a filter sees)
Case = tuple[str, Callable[[Scene], dict[str, Any]], list[Op]]
CASES: dict[str, Case] = {
    "lookup": ("LOOKUP", lambda s: about(name=b"file"), [main("QUERY_OPEN", "fs", name=b"file")]),
    "access": ("ACCESS", lambda s: about(nodeid=s.file, mode=4), [main("QUERY_OPEN", "fs", name=b"")]),
    "getattr": ("GETATTR", lambda s: about(nodeid=s.file),
                [main("NETWORK_QUERY_OPEN", "fast", information_class=FileNetworkOpenInformation)]),
    "statx": ("STATX", lambda s: about(nodeid=s.file, valid=0xFFF), [main("NETWORK_QUERY_OPEN", "fast")]),
    "fstat": ("GETATTR", lambda s: about(nodeid=s.file, fh=s.fh, flags=FH), [main("QUERY_INFORMATION", "fast")]),
    "fstatx": ("STATX", lambda s: about(nodeid=s.file, fh=s.fh, flags=FH), [main("QUERY_INFORMATION", "fast")]),
    "open r": ("OPEN", lambda s: about(nodeid=s.file, flags=os.O_RDONLY),
               [open_op(FILE_OPEN, FILE_READ_DATA | FILE_READ_ATTRIBUTES, open_flags=os.O_RDONLY)]),
    "open w": ("OPEN", lambda s: about(nodeid=s.file, flags=os.O_WRONLY | os.O_TRUNC),
               [open_op(FILE_OVERWRITE, FILE_WRITE_DATA | FILE_APPEND_DATA | FILE_READ_ATTRIBUTES)]),
    "open a": ("OPEN", lambda s: about(nodeid=s.file, flags=os.O_WRONLY | os.O_APPEND),
               [open_op(FILE_OPEN, FILE_APPEND_DATA | FILE_READ_ATTRIBUTES)]),
    "open direct": ("OPEN", lambda s: about(nodeid=s.file, flags=os.O_RDWR | os.O_DIRECT | os.O_SYNC),
                    [open_op(FILE_OPEN, RW, FILE_NON_DIRECTORY_FILE | FILE_NO_INTERMEDIATE_BUFFERING
                             | FILE_WRITE_THROUGH)]),
    "opendir": ("OPENDIR", lambda s: about(nodeid=s.folder),
                [open_op(FILE_OPEN, FILE_READ_DATA | FILE_READ_ATTRIBUTES, FILE_DIRECTORY_FILE)]),
    "create": ("CREATE", lambda s: about(name=b"new", mode=0o640, flags=os.O_RDWR),
               [open_op(FILE_OPEN_IF, RW, mode=stat.S_IFREG | 0o640, name=b"new"), INFORMS]),
    "create excl": ("CREATE", lambda s: about(name=b"new", mode=0o640, flags=os.O_RDWR | os.O_EXCL | os.O_TRUNC),
                    [open_op(FILE_CREATE, RW), INFORMS]),
    "create trunc": ("CREATE", lambda s: about(name=b"new", mode=0o640, flags=os.O_RDWR | os.O_TRUNC),
                     [open_op(FILE_OVERWRITE_IF, RW), INFORMS]),
    "mkdir": ("MKDIR", lambda s: about(name=b"new", mode=0o750),
              made(options=FILE_DIRECTORY_FILE, mode=stat.S_IFDIR | 0o750)),
    "mknod": ("MKNOD", lambda s: about(name=b"new", mode=stat.S_IFREG | 0o600),
              made(options=FILE_NON_DIRECTORY_FILE, mode=stat.S_IFREG | 0o600)),
    "mkfifo": ("MKNOD", lambda s: about(name=b"new", mode=stat.S_IFIFO | 0o600),
               [op("CREATE_NAMED_PIPE", name=b"new", mode=stat.S_IFIFO | 0o600),
                *made(options=FILE_NON_DIRECTORY_FILE, mode=stat.S_IFIFO | 0o600)]),
    "bind": ("MKNOD", lambda s: about(name=b"new", mode=stat.S_IFSOCK | 0o600),
             [op("CREATE_MAILSLOT", name=b"new", mode=stat.S_IFSOCK | 0o600),
              *made(options=FILE_NON_DIRECTORY_FILE, mode=stat.S_IFSOCK | 0o600)]),
    "symlink": ("SYMLINK", lambda s: about(name=b"new", name2=b"target"),
                made(main("FILE_SYSTEM_CONTROL", control_code=FSCTL_SET_REPARSE_POINT, content=b"target"),
                     options=FILE_NON_DIRECTORY_FILE | FILE_OPEN_REPARSE_POINT, mode=stat.S_IFLNK | 0o777,
                     principal=False)),
    "readlink": ("READLINK", lambda s: about(nodeid=s.link, buffer=bytearray(100)),
                 around(FILE_READ_ATTRIBUTES, main("FILE_SYSTEM_CONTROL", control_code=FSCTL_GET_REPARSE_POINT),
                        options=FILE_OPEN_REPARSE_POINT)),
    "unlink": ("UNLINK", lambda s: about(name=b"file"),
               around(DELETE, main("SET_INFORMATION", information_class=FileDispositionInformation, name=b"file"),
                      options=FILE_NON_DIRECTORY_FILE | FILE_OPEN_REPARSE_POINT, name=b"file")),
    "rmdir": ("RMDIR", lambda s: about(name=b"empty"),
              around(DELETE, main("SET_INFORMATION", information_class=FileDispositionInformation, name=b"empty"),
                     options=FILE_DIRECTORY_FILE, name=b"empty")),
    "rename": ("RENAME", lambda s: about(name=b"file", nodeid2=s.folder, name2=b"moved"),
               around(DELETE, main("SET_INFORMATION", information_class=FileRenameInformation, name=b"file",
                                   target_name=b"moved"), name=b"file")),
    "exchange": ("RENAME2", lambda s: about(name=b"file", nodeid2=1, name2=b"link", flags=EXCHANGE),
                 around(DELETE, main("SET_INFORMATION", information_class=FileRenameInformationEx, name=b"file",
                                     target_name=b"link"), name=b"file")),
    "link": ("LINK", lambda s: about(nodeid2=s.file, name=b"second", name2=b"second"),
             around(FILE_WRITE_ATTRIBUTES, main("SET_INFORMATION", information_class=FileLinkInformation,
                                                target_name=b"second"), INFORMS)),
    "chmod": ("SETATTR", lambda s: about(nodeid=s.file, valid=MODE, mode=0o600),
              setattr_ops(MODE_OP, access=WRITE_DAC)),
    "chown": ("SETATTR", lambda s: about(nodeid=s.file, valid=UID | GID), setattr_ops(OWNER_OP, access=WRITE_OWNER)),
    "truncate": ("SETATTR", lambda s: about(nodeid=s.file, valid=SIZE, size=4),
                 setattr_ops(SIZE_OP, access=FILE_WRITE_DATA)),
    "utimens": ("SETATTR", lambda s: about(nodeid=s.file, valid=ATIME | MTIME_NOW, atime=10**9),
                setattr_ops(TIMES_OP, access=FILE_WRITE_ATTRIBUTES)),
    "all attributes": ("SETATTR",
                       lambda s: about(nodeid=s.file, valid=MODE | UID | SIZE | ATIME, mode=0o600, size=4),
                       setattr_ops(ALL_OP, SIZE_OP, TIMES_OP,
                                   access=WRITE_DAC | WRITE_OWNER | FILE_WRITE_DATA | FILE_WRITE_ATTRIBUTES)),
    "no attribute": ("SETATTR", lambda s: about(nodeid=s.file, valid=0),
                     around(0, main("QUERY_INFORMATION", information_class=FileAllInformation))),
    "ftruncate": ("SETATTR", lambda s: about(nodeid=s.file, fh=s.fh, valid=SIZE | HANDLE, size=4),
                  [main("SET_INFORMATION", information_class=FileEndOfFileInformation, end_of_file=4), INFORMS]),
    "getxattr": ("GETXATTR", lambda s: about(nodeid=s.file, name=b"user.a", buffer=bytearray(100)),
                 around(FILE_READ_EA, main("QUERY_EA", ea_name=b"user.a", length=100))),
    "getxattr size": ("GETXATTR", lambda s: about(nodeid=s.file, name=b"user.a"),
                      around(FILE_READ_EA, main("QUERY_EA", ea_name=b"user.a", length=0))),
    "get acl": ("GETXATTR", lambda s: about(nodeid=s.file, name=b"security.a"),
                around(READ_CONTROL, main("QUERY_SECURITY", ea_name=b"security.a", security_information=LABEL))),
    "listxattr": ("LISTXATTR", lambda s: about(nodeid=s.file, buffer=bytearray(100)),
                  around(FILE_READ_EA, main("QUERY_EA", ea_name=None))),
    "setxattr": ("SETXATTR", lambda s: about(nodeid=s.file, name=b"user.b", buffer=b"value"),
                 around(FILE_WRITE_EA, main("SET_EA", ea_name=b"user.b", content=b"value"))),
    "set trusted": ("SETXATTR", lambda s: about(nodeid=s.file, name=b"trusted.b", buffer=b"value"),
                    around(WRITE_DAC, main("SET_SECURITY", ea_name=b"trusted.b", security_information=LABEL))),
    "removexattr": ("REMOVEXATTR", lambda s: about(nodeid=s.file, name=b"user.a"),
                    around(FILE_WRITE_EA, main("SET_EA", ea_name=b"user.a", length=0))),
    "read": ("READ", lambda s: about(fh=s.fh, size=4, offset=2, buffer=bytearray(4), open_flags=OWN, lock_owner=7),
             [op("FAST_IO_CHECK_IF_POSSIBLE", "fast", range=(2, 4), check_for_read=True, lock_owner=7),
              main("READ", "fast", irp_flags=0, offset=2, length=4)]),
    "page fill": ("READ", lambda s: about(fh=s.fh, size=4, buffer=bytearray(4)),
                  [op("ACQUIRE_FOR_SECTION_SYNCHRONIZATION", "fs", page_protection=api.PAGE_READWRITE),
                   op("RELEASE_FOR_SECTION_SYNCHRONIZATION", "fs"),
                   main("READ", irp_flags=IRP_PAGING_IO | IRP_NOCACHE)]),
    "direct read": ("READ", lambda s: about(fh=s.direct, size=4, buffer=bytearray(4), open_flags=OWN),
                    [main("READ", irp_flags=IRP_NOCACHE)]),
    "write": ("WRITE", lambda s: about(fh=s.fh, size=3, offset=8, buffer=b"abc"),
              [op("FAST_IO_CHECK_IF_POSSIBLE", "fast", range=(8, 3), check_for_read=False, lock_owner=0),
               main("WRITE", "fast", irp_flags=0, offset=8, length=3, content=b"abc")]),
    "write-back": ("WRITE", lambda s: about(fh=s.fh, size=3, offset=5, buffer=b"abc", open_flags=WRITE_BACK),
                   [op("ACQUIRE_FOR_MOD_WRITE", "fs", ending_offset=8),
                    main("WRITE", irp_flags=IRP_PAGING_IO | IRP_NOCACHE),
                    op("RELEASE_FOR_MOD_WRITE", "fs", ending_offset=8)]),
    "direct write": ("WRITE", lambda s: about(fh=s.direct, size=3, buffer=b"abc"),
                     [main("WRITE", irp_flags=IRP_NOCACHE)]),
    "fsync": ("FSYNC", lambda s: about(fh=s.fh),
              [op("ACQUIRE_FOR_CC_FLUSH", "fs"), main("FLUSH_BUFFERS"), op("RELEASE_FOR_CC_FLUSH", "fs")]),
    "fsyncdir": ("FSYNCDIR", lambda s: about(fh=s.listing), [main("FLUSH_BUFFERS")]),
    "statfs": ("STATFS", lambda s: about(), [main("QUERY_VOLUME_INFORMATION")]),
    "release": ("RELEASE", lambda s: about(fh=s.fh), [main("CLEANUP"), op("CLOSE")]),
    "releasedir": ("RELEASEDIR", lambda s: about(fh=s.listing), [main("CLEANUP"), op("CLOSE")]),
}  # fmt: skip
# What stands beside a request's own operations, in a table of its own (D19).
NOTICES = {
    "FAST_IO_CHECK_IF_POSSIBLE", "CREATE_NAMED_PIPE", "CREATE_MAILSLOT",
    *(f"{what}_FOR_{kind}" for what in ("ACQUIRE", "RELEASE")
      for kind in ("SECTION_SYNCHRONIZATION", "MOD_WRITE", "CC_FLUSH")),
}  # fmt: skip
EVERY = [value for name, value in vars(api).items() if name.startswith("IRP_MJ_")]
REGISTERED = sorted({int(each) for each in EVERY} - {int(api.IRP_MJ_POWER), int(api.IRP_MJ_DEVICE_CHANGE)})


@pytest.fixture
def scene(core: Volume, place: Path) -> Scene:
    (place / "empty").mkdir()
    return Scene(core, place)


def record(core: Volume, keys: list[set[str]] | None = None) -> list[dict[str, Any]]:
    """Attaches a filter on top that sees everything; what it has seen."""
    seen: list[dict[str, Any]] = []

    def pre(data: Any, objects: object) -> int:
        one: dict[str, Any] = {
            "major": api.major_name(data.major).removeprefix("IRP_MJ_"),
            "kind": "".join(kind for kind, is_it in (("irp", data.is_irp), ("fast", data.is_fast_io),
                                                     ("fs", data.is_fs_filter)) if is_it),
            "principal": data.principal, "number": data.request_number, "request": data.request, "tid": data.tid,
            "uid": data.uid,
        }  # fmt: skip
        wanted = keys[len(seen)] if keys is not None and len(seen) < len(keys) else set()
        for key in wanted - {"content"}:
            one[key] = getattr(data, key)
        if "content" in wanted:
            one["content"] = bytes(data.buffer)
        seen.append(one)
        return api.FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(data: Any, objects: object, context: object, flags: int) -> None:
        seen[-1]["status"] = data.status

    core.stack.insert(entry_of(*[(major, pre, post) for major in REGISTERED], name="records", at="2"))
    return seen


def ask(scene: Scene, case: str) -> Any:
    opcode, arguments, _ = CASES[case]
    request = scene.core.request(OPCODES[opcode], **arguments(scene), uid=0, tid=4242)
    if opcode == "STATFS":
        request.for_statistics()
    while not request.run():
        request.wait()
    return request


@pytest.mark.parametrize("case", CASES)
def test_the_operations_of_a_request(scene: Scene, case: str) -> None:
    expected = CASES[case][2]
    seen = record(scene.core, [set(each.parameters) for each in expected])
    request = ask(scene, case)
    assert request.error in ((0,) if case != "get acl" else (errno.ENODATA,))
    assert [(one["major"], one["kind"], one["principal"]) for one in seen] == [
        (each.major, each.kind, each.principal) for each in expected
    ]
    for one, each in zip(seen, expected, strict=True):
        assert {key: one[key] for key in each.parameters} == each.parameters, each.major
    name = CASES[case][0].lower()
    assert {(one["number"], one["request"], one["tid"]) for one in seen} == {(request.number, name, 4242)}
    assert sum(one["principal"] for one in seen) == 1


@pytest.mark.parametrize("case", CASES)
def test_what_follows_when_an_operation_fails(scene: Scene, case: str, tmp_path: Path) -> None:
    """D3: nothing after it, but CLEANUP and CLOSE where a CREATE had succeeded, and the RELEASE_FOR_* of what was
    acquired; the first failure is the answer. What D19 names as not to be refused is another test's."""
    expected = [each.major for each in CASES[case][2]]
    seen = record(scene.core)
    failing: list[int] = []

    def refuse(data: Any, objects: object) -> int:
        if len(seen) - 1 == failing[-1]:
            return int(data.complete(api.STATUS_ACCESS_DENIED))
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    scene.core.stack.insert(entry_of(*[(major, refuse, None) for major in REGISTERED], name="refuses", at="1"))
    files, inodes = scene.core.open_files, scene.core.known_inodes
    for number, major in enumerate(expected):
        if major in ("CLEANUP", "CLOSE", "FAST_IO_CHECK_IF_POSSIBLE") or major.startswith("RELEASE_FOR_"):
            continue
        acquired = {each.replace("ACQUIRE", "RELEASE") for each in expected[:number] if each.startswith("ACQUIRE_FOR_")}
        owed = [each for each in expected[number:] if each in acquired]
        seen.clear()
        failing.append(number)
        request = ask(scene, case)
        assert request.error == errno.EACCES
        if "CREATE" in expected[:number]:
            owed += ["CLEANUP", "CLOSE"]
        assert [one["major"] for one in seen] == expected[: number + 1] + owed
        assert (scene.core.open_files, scene.core.known_inodes) == (files, inodes)
        if (tmp_path / "new").is_dir():
            (tmp_path / "new").rmdir()
        (tmp_path / "new").unlink(missing_ok=True)


@pytest.mark.parametrize("case", CASES)
def test_what_nobody_registered_is_not_there(scene: Scene, case: str) -> None:
    """An instance that wants one operation of a request sees that one, and the request does all the same."""
    expected = [each.major for each in CASES[case][2]]
    seen: list[str] = []

    def pre(data: Any, objects: object) -> int:
        seen.append(api.major_name(data.major).removeprefix("IRP_MJ_"))
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    wanted = expected[len(expected) // 2]
    scene.core.stack.insert(entry_of((getattr(api, f"IRP_MJ_{wanted}"), pre, None)))
    assert ask(scene, case).error in (0, errno.ENODATA)
    assert seen == [each for each in expected if each == wanted]


@pytest.mark.parametrize("way", ["refused", "raised"])
@pytest.mark.parametrize("case", ["page fill", "write-back", "fsync"])
def test_what_gives_back_cannot_be_refused(scene: Scene, case: str, way: str) -> None:
    """D19: whatever a filter does with a RELEASE_FOR_*, the request is done; where it raised, those below see it."""
    lower = record(scene.core)
    release = next(each.major for each in CASES[case][2] if each.major.startswith("RELEASE_FOR_"))

    def pre(data: Any, _: object) -> int:
        if way == "raised":
            raise RuntimeError("no")
        return int(data.complete(api.STATUS_ACCESS_DENIED))

    entry = entry_of((getattr(api, f"IRP_MJ_{release}"), pre, None), name="refuses", at="3")
    scene.core.stack.insert(entry)
    assert ask(scene, case).error == 0
    assert ([one["major"] for one in lower] == [each.major for each in CASES[case][2]]) == (way == "raised")
    assert entry.errors == (way == "raised")


@pytest.mark.parametrize("case", ["read", "write"])
def test_fast_io_that_a_filter_says_is_not_possible_becomes_an_irp(scene: Scene, case: str) -> None:
    """D19: any failure of FAST_IO_CHECK_IF_POSSIBLE says so; nobody counts an error, and nobody is refused."""
    seen = record(scene.core)
    answer = lambda data, _: data.complete(api.STATUS_ACCESS_DENIED)  # noqa: E731
    scene.core.stack.insert(entry_of((api.IRP_MJ_FAST_IO_CHECK_IF_POSSIBLE, answer, None)))
    assert ask(scene, case).error == 0
    assert [(one["major"], one["kind"]) for one in seen] == [
        ("FAST_IO_CHECK_IF_POSSIBLE", "fast"), (case.upper(), "irp")]  # fmt: skip


def test_pages_are_filled_under_one_section(scene: Scene) -> None:
    """D19: filters hear of an open file's section once, before its first page; again only where one refused it."""
    seen = record(scene.core)
    answers = [api.STATUS_ACCESS_DENIED, 0, 0]
    entry = entry_of((api.IRP_MJ_ACQUIRE_FOR_SECTION_SYNCHRONIZATION, lambda data, _: (
        data.complete(status) if (status := answers.pop(0)) else api.FLT_PREOP_SUCCESS_NO_CALLBACK), None))  # fmt: skip
    scene.core.stack.insert(entry)
    acquire, release = "ACQUIRE_FOR_SECTION_SYNCHRONIZATION", "RELEASE_FOR_SECTION_SYNCHRONIZATION"
    assert [ask(scene, "page fill").error for _ in range(3)] == [errno.EACCES, 0, 0]
    assert [one["major"] for one in seen] == [acquire, acquire, release, "READ", "READ"]


SLOW = ["CREATE", "QUERY_INFORMATION", "CLEANUP", "CLOSE"]


@pytest.mark.parametrize(
    ("case", "where", "answer", "again"),
    [
        ("lookup", "pre", api.FLT_PREOP_DISALLOW_FSFILTER_IO, SLOW),
        ("lookup", "post", api.FLT_POSTOP_DISALLOW_FSFILTER_IO, SLOW),
        ("access", "pre", api.FLT_PREOP_DISALLOW_FSFILTER_IO, SLOW),
        ("getattr", "pre", api.FLT_PREOP_DISALLOW_FASTIO, SLOW),
        ("statx", "pre", api.FLT_PREOP_DISALLOW_FASTIO, SLOW),
        ("fstat", "pre", api.FLT_PREOP_DISALLOW_FASTIO, ["QUERY_INFORMATION"]),
        ("read", "pre", api.FLT_PREOP_DISALLOW_FASTIO, ["READ"]),
        ("write", "pre", api.FLT_PREOP_DISALLOW_FASTIO, ["WRITE"]),
    ],
)
def test_a_refusal_of_the_fast_way(scene: Scene, case: str, where: str, answer: int, again: list[str]) -> None:
    """A6.7, A6.8: the layers above see STATUS_FLT_DISALLOW_FAST_IO; then it starts again at the top, as IRPs, under the
    same number. Nobody counts an error, and the answer is what it would have been."""
    without = ask(scene, case)
    seen = record(scene.core)
    refusals: list[int] = []

    def refuse(data: Any, *_: Any) -> int:
        if data.is_irp:
            return api.FLT_PREOP_SUCCESS_NO_CALLBACK if where == "pre" else api.FLT_POSTOP_FINISHED_PROCESSING
        refusals.append(data.major)
        return answer

    def agree(data: Any, *_: Any) -> int:
        return api.FLT_PREOP_SUCCESS_WITH_CALLBACK

    callbacks = (refuse, None) if where == "pre" else (agree, refuse)
    entry = entry_of(*[(major, *callbacks) for major in REGISTERED], name="refuses", at="1")
    scene.core.stack.insert(entry)
    known = scene.core.known_inodes
    request = ask(scene, case)
    assert (request.error, request.nodeid, request.length) == (0, without.nodeid, without.length)
    assert request.stat[:2] == without.stat[:2]
    assert [one["major"] for one in seen] == [CASES[case][2][0].major, *again]
    assert seen[0]["status"] == api.STATUS_FLT_DISALLOW_FAST_IO
    assert [one["kind"] for one in seen[1:]] == ["irp"] * len(again) and {one["status"] for one in seen[1:]} == {0}
    assert len({one["number"] for one in seen}) == 1 and len(refusals) == 1 and entry.errors == 0
    assert [one["major"] for one in seen[1:] if one["principal"]] == [again[0] if len(again) == 1 else again[1]]
    assert scene.core.known_inodes == known


@pytest.mark.parametrize("answer", [api.FLT_PREOP_DISALLOW_FASTIO, api.FLT_PREOP_DISALLOW_FSFILTER_IO])
@pytest.mark.parametrize("case", ["open r", "page fill", "direct read", "fsync", "statfs", "release", "unlink"])
@pytest.mark.verifier_errors(
    "FLT_PREOP_DISALLOW_FASTIO of what was not offered as fast I/O",
    "FLT_PREOP_DISALLOW_FSFILTER_IO of what is no QUERY_OPEN",
)
def test_what_is_no_fast_io_cannot_be_refused_as_such(scene: Scene, case: str, answer: int) -> None:
    entry = entry_of((getattr(api, f"IRP_MJ_{CASES[case][2][0].major}"), lambda *_: answer, None))
    scene.core.stack.insert(entry)
    assert ask(scene, case).error == (0 if case == "release" else errno.EIO)
    assert entry.errors == 1


def test_a_listing(scene: Scene, place: Path) -> None:
    """D: one DIRECTORY_CONTROL, a QUERY_OPEN for each name but the two dots, and, under the same number, what it reads
    on. The one that began is the principal one."""
    (place / "folder" / "other").mkdir()
    seen = record(scene.core)
    request = scene.core.request(OPCODES["READDIRPLUS"], fh=scene.listing)
    names: list[bytes] = []
    request.list_directory(lambda name, entry, following: names.append(name) or True, Entry)
    assert sorted(names) == [b".", b"..", b"inner", b"other"]
    assert [(one["major"], one["kind"], one["principal"]) for one in seen] == [
        ("DIRECTORY_CONTROL", "irp", True), ("QUERY_OPEN", "fs", False), ("QUERY_OPEN", "fs", False),
        ("DIRECTORY_CONTROL", "irp", False),
    ]  # fmt: skip
    assert {(one["number"], one["request"]) for one in seen} == {(request.number, "readdirplus")}
    before = request.number
    seen.clear()
    listed(scene.core, scene.listing)
    assert before not in {one["number"] for one in seen}


def test_each_request_has_a_number_of_its_own(scene: Scene) -> None:
    numbers = [scene.core.request(OPCODES["GETATTR"], scene.file).do().number for _ in range(100)]
    assert len(set(numbers)) == 100


def test_flush_is_no_operation(scene: Scene) -> None:
    seen = record(scene.core)
    scene.core.request(25, scene.file, fh=scene.fh).run()
    scene.core.forget(scene.link, 1)
    assert seen == []


def test_the_name_of_an_open_file_is_the_one_it_was_opened_by(core: Volume, place: Path) -> None:
    """D7: of a file with two names each handle keeps its own; what goes by inode has one of them."""
    os.link(place / "file", place / "folder" / "second")
    paths: list[str] = []

    def pre(data: Any, objects: object) -> int:
        paths.append(data.path)
        return api.FLT_PREOP_SUCCESS_NO_CALLBACK

    folder = lookup(core, b"folder")
    first = core.request(OPCODES["LOOKUP"], name=b"file").do().nodeid
    one = opened(core, first)
    assert core.request(OPCODES["LOOKUP"], folder, name=b"second").do().nodeid == first
    two = opened(core, first)
    core.stack.insert(entry_of((api.IRP_MJ_READ, pre, None), (api.IRP_MJ_NETWORK_QUERY_OPEN, pre, None)))
    for fh in (one, two):
        core.request(OPCODES["READ"], fh=fh, size=1, buffer=bytearray(1)).do()
    core.request(OPCODES["GETATTR"], first).do()
    assert paths[:2] == ["/file", "/folder/second"] and paths[2] in paths[:2]


def documented() -> dict[str, list[tuple[str, bool]]]:
    """The table of docs/semantics.md D4: request, and its operations with the principal one marked."""
    text = DOCUMENT.read_text()
    text = text[text.index("## D VFS") : text.index("## F ")]
    found = {}
    for requests, operations in re.findall(r"^   \| ([A-Z].*?) \| (.*?) \|", text, re.MULTILINE):
        names = re.findall(r"(\*\*)?\b([A-Z_]{4,})\b(?:\*\*)?", re.sub(r"\(.*?\)", "", operations))
        plain, _, handle = requests.partition(" with")
        for request in plain.split(", "):
            found[request + (f" with{handle}" if handle else "")] = [(name, bool(mark)) for mark, name in names]
    return found


TOLD_IN_WORDS = ("SETATTR", "GETXATTR", "LISTXATTR", "SETXATTR", "REMOVEXATTR")


@pytest.mark.skipif(not DOCUMENT.exists(), reason="needs the source tree")
@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] not in TOLD_IN_WORDS])
def test_the_document_says_the_same(case: str) -> None:
    opcode, _, expected = CASES[case]
    name = opcode.removesuffix("2")
    if opcode in ("GETATTR", "STATX"):
        name += " with a handle" if case.startswith("f") else " without a handle"
    assert documented()[name] == [(each.major, each.principal) for each in expected if each.major not in NOTICES]
