"""Two users and root get from a mount what they get from the plain directory: tests/posix_table.py, on both."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Drive, needs_root, run
from posix_table import CHANGES

pytestmark = needs_root

USERS = {"root": (0, 0), "owner": (1000, 1000), "member": (2000, 2000, 1000, 3000), "stranger": (4000, 4000),
         "crowd": (6000, 6000, *range(100, 2000), 3000)}


def prepare(top: Path, uid: int, gid: int) -> None:
    """The user's own directory, and one with files of others: modes, set-id bits, sticky, setgid, ACLs."""
    top.mkdir()
    os.chown(top, uid, gid)
    others = top / "others"
    others.mkdir()
    for name, mode, owner in (
        ("private", 0o600, (1000, 1000)), ("group", 0o664, (0, 1000)), ("world", 0o666, (0, 0)),
        ("suid", 0o4777, (1000, 1000)), ("sgid", 0o2777, (0, 3000)),
        ("both", 0o6777, (2000, 1000)), ("readable", 0o444, (2000, 2000)), ("script", 0o751, (0, 1000)),
    ):  # fmt: skip
        (others / name).write_text("theirs")
        os.chown(others / name, *owner)
        os.chmod(others / name, mode)
    for name, mode, owner in (
        ("d_open", 0o777, (0, 0)), ("d_sticky", 0o1777, (0, 0)), ("d_setgid", 0o2777, (0, 3000)),
        ("d_group", 0o770, (0, 1000)), ("d_setgid_group", 0o2775, (0, 3000)), ("d_closed", 0o700, (0, 0)),
    ):  # fmt: skip
        (others / name).mkdir()
        for theirs in ("theirs", "theirs2"):
            (others / name / theirs).write_text("x")
        if name == "d_sticky":
            (others / name / "theirs_d").mkdir()
            (others / name / "theirs3").write_text("x")
            (others / name / "open_theirs").write_text("x")
            os.chmod(others / name / "open_theirs", 0o666)
            os.setxattr(others / name, "user.theirs", b"1")
        os.chown(others / name, *owner)
        os.chmod(others / name, mode)
    (others / "d_mine_theirs").mkdir()               # the user's, with a group that is not
    os.chown(others / "d_mine_theirs", uid, 5000)
    os.chmod(others / "d_mine_theirs", 0o2775)
    (others / "attributed").write_text("x")
    os.symlink("attributed", others / "attributed_link")
    for space in ("user", "trusted", "security"):
        os.setxattr(others / "attributed", f"{space}.theirs", b"1")
        if space != "user":
            os.setxattr(others / "attributed_link", f"{space}.theirs", b"2", follow_symlinks=False)
    (others / "setid").mkdir()
    for mode in (0o6777, 0o2777, 0o2766, 0o6766, 0o4766):
        for owner, group in ((0, 3000), (uid, 3000), (uid, 5000), (1000, 1000)):
            for change in CHANGES:
                path = others / "setid" / f"{mode:o}-{owner}-{group}-{change}"
                path.write_text("content")
                os.chown(path, owner, group)
                os.chmod(path, mode)
    (others / "flagged").mkdir()
    os.chmod(others / "flagged", 0o777)
    for name, flag in (("append_only", "+a"), ("immutable", "+i")):
        (others / "flagged" / name).write_text("theirs")
        os.chmod(others / "flagged" / name, 0o666)
        run("chattr", flag, others / "flagged" / name)
    (others / "d_acl").mkdir()
    os.chmod(others / "d_acl", 0o700)
    run("setfacl", "-m", "u:1000:rwx,g:3000:rwx,d:u:4000:rw,d:g::rx,d:o::-", others / "d_acl")
    (others / "acl").write_text("theirs")
    os.chmod(others / "acl", 0o600)
    run("setfacl", "-m", "u:1000:r,g:1000:rw,m::rw", others / "acl")
    prepare_closed(top / "closed")


def prepare_closed(closed: Path) -> None:
    """Directories that may be listed but not searched, and so on; programs that may be executed but not read."""
    closed.mkdir()
    for name, mode, owner in (
        ("list", 0o744, (0, 0)), ("search", 0o711, (0, 0)), ("none", 0o700, (0, 0)), ("write", 0o733, (0, 0)),
        ("groups", 0o750, (0, 3000)), ("hole", 0o707, (0, 1000)), ("acl", 0o700, (0, 0)),
    ):  # fmt: skip
        directory = closed / name
        directory.mkdir()
        (directory / "f").write_text("theirs")
        os.chmod(directory / "f", 0o666)
        (directory / "d").mkdir()
        (directory / "l").symlink_to("f")
        os.setxattr(directory, "user.secret", b"1")
        os.chown(directory, *owner)
        os.chmod(directory, mode)
    run("setfacl", "-m", "u:1000:r,g:3000:rx,u:4000:wx", closed / "acl")
    for name, mode, owner in (("run", 0o711, (0, 0)), ("readable", 0o644, (0, 0)), ("run_group", 0o710, (0, 1000)),
                              ("run_owner", 0o700, (2000, 0)), ("run_acl", 0o700, (0, 0))):  # fmt: skip
        shutil.copy("/bin/true", closed / name)
        os.chown(closed / name, *owner)
        os.chmod(closed / name, mode)
    run("setfacl", "-m", "u:4000:x,g:3000:x", closed / "run_acl")


def answers(directory: Path, who: tuple[int, ...]) -> dict[str, object]:
    done = run("/usr/bin/python3", ROOT / "tests" / "posix_table.py", directory, *map(str, who), timeout=60)
    return dict(json.loads(done.stdout))


@contextlib.contextmanager
def prepared(top: Path, user: str) -> Iterator[None]:
    """Both directories, as long as they are needed: what chattr(1) has made immutable nobody could remove."""
    try:
        for name in ("mounted", "plain"):
            prepare(top / name, *USERS[user][:2])
        yield
    finally:
        flagged = [*top.glob("*/others/flagged/*")]
        if flagged:
            run("chattr", "-ia", *flagged)


LANES = {"bypass": (), "device": ("filter=passthrough",), "irp": ("filter=passthrough", "lanes=irp")}


@pytest.mark.parametrize(
    ("lane", "cache", "user"),
    [
        *(("device", cache, user) for cache in ("normal", "strict") for user in USERS if user != "crowd"),
        ("device", "strict", "crowd"),
        *(("irp", "normal", user) for user in ("root", "stranger")),
        ("irp", "strict", "owner"),
        *(("bypass", "normal", user) for user in ("root", "member")),
    ],
)
def test_answers_are_those_of_the_plain_directory(
    drive: Callable[..., Drive], lane: str, cache: str, user: str
) -> None:
    made = drive(*LANES[lane], "allow_other", "dev,suid", f"cache={cache}")
    with prepared(made.src, user):
        expected = answers(made.src / "plain", USERS[user])
        found = answers(made.mnt / "mounted", USERS[user])
    assert set(found) == set(expected)
    wrong = {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]}
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize("user", USERS)
def test_answers_are_the_same_when_the_stack_checks(drive: Callable[..., Drive], lanes: str, user: str) -> None:
    made = drive("filter=passthrough", "allow_other", "suid", "permissions=stack")
    with prepared(made.src, user):
        expected = answers(made.src / "plain", USERS[user])
        found = answers(made.mnt / "mounted", USERS[user])
    assert set(found) == set(expected)
    # O_NOATIME is the one thing that the kernel refuses to all but the owner before it asks: EPERM, readable or not.
    times = expected["times_of_others"]
    assert isinstance(times, list)
    expected["times_of_others"] = ["EPERM" if each == "EACCES" else each for each in times]
    wrong = {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]}
    assert not wrong, json.dumps(wrong, indent=1)


def test_a_directory_of_100_000_names_is_listed_once_each(drive: Callable[..., Drive]) -> None:
    made = drive()
    (made.src / "many").mkdir()
    for number in range(100_000):
        os.close(os.open(made.src / "many" / f"n{number}", os.O_CREAT | os.O_WRONLY))
    code = (
        "import os, sys\nfound = os.listdir(sys.argv[1])\nassert len(found) == len(set(found)) == 100000, len(found)\n"
        "assert '.' not in found\n"
    )
    assert run(sys.executable, "-c", code, made.mnt / "many", timeout=100).returncode == 0


def test_inode_numbers_and_birth_times_are_the_backing_files(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive()
    run("sh", "-c", f"cd {made.mnt} && touch a && mkdir d && ln a b && mkfifo f")
    for name in ("a", "b", "d", "f", "."):
        shown = [subprocess.run(["timeout", "9", "stat", "-c", "%i %W", str(top / name)], capture_output=True, cwd="/",
                                check=True).stdout for top in (made.src, made.mnt)]  # fmt: skip
        assert shown[0] == shown[1], name
    assert ".\n..\n" in run("ls", "-a1", made.mnt).stdout


@pytest.mark.long
def test_trees_survive_cp_diff_rsync_and_tar(drive: Callable[..., Drive]) -> None:
    made = drive("filter=passthrough")
    run("cp", "-a", "/usr/include", made.mnt / "tree", timeout=100)
    run("diff", "-r", "/usr/include", made.mnt / "tree")
    assert run("rsync", "-n", "--checksum", "-aHAXi", "/usr/include/", f"{made.mnt}/tree/").stdout == ""
