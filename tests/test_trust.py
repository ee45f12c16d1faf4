"""Trust: real owners and modes on every component of a path, links included; and use of the checked descriptor."""

from __future__ import annotations

import grp
import os
import pathlib
import pwd
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable

import pytest

from stackfs.errors import ExitCode, StackfsError, TrustError
from stackfs.trust import MAX_FILE, list_trusted, open_resolved, open_trusted, read_trusted, trusted

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files away with chown")
OTHER = 12345


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """top/middle/file, all trusted."""
    (tmp_path / "top" / "middle").mkdir(parents=True)
    for directory in (tmp_path / "top", tmp_path / "top" / "middle"):
        directory.chmod(0o755)
    (tmp_path / "top" / "middle" / "file").write_bytes(b"trusted")
    (tmp_path / "top" / "middle" / "file").chmod(0o644)
    return tmp_path


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused(path: pathlib.Path | str, *parts: str) -> None:
    before = descriptors()
    with pytest.raises(TrustError) as caught:
        read_trusted(path)
    assert descriptors() == before
    assert caught.value.exit_code is ExitCode.PERMISSION
    assert "\n" not in caught.value.message
    for part in parts:
        assert part in caught.value.message


def test_a_trusted_file(tree: pathlib.Path) -> None:
    before = descriptors()
    assert read_trusted(tree / "top" / "middle" / "file") == b"trusted"
    assert list_trusted(tree / "top") == ["middle"]
    assert descriptors() == before


@pytest.mark.parametrize("place", ["top", "top/middle", "top/middle/file"])
@pytest.mark.parametrize(("bits", "who"), [(0o020, "its group (chmod g-w"), (0o002, "everybody (chmod go-w")])
@root_only
def test_writable_by_others(tree: pathlib.Path, place: str, bits: int, who: str) -> None:
    target = tree / place
    target.chmod(target.stat().st_mode | bits)
    refused(tree / "top/middle/file", f"{target} can be written by {who} {target})")
    target.chmod(target.stat().st_mode & ~bits)
    assert read_trusted(tree / "top/middle/file") == b"trusted"


@pytest.mark.parametrize("place", ["top", "top/middle", "top/middle/file"])
@root_only
def test_owned_by_others(tree: pathlib.Path, place: str) -> None:
    os.chown(tree / place, OTHER, 0)
    refused(tree / "top/middle/file", f"{tree / place} is owned by {OTHER}, not by root (chown root {tree / place})")


@root_only
def test_the_commands_it_names_mend_it(tree: pathlib.Path) -> None:
    os.chown(tree / "top", OTHER, 0)
    (tree / "top/middle").chmod(0o777)
    (tree / "top/middle/file").chmod(0o664)
    for _ in range(3):
        with pytest.raises(TrustError) as caught:
            read_trusted(tree / "top/middle/file")
        command = caught.value.message.rpartition("(")[2].removesuffix(")")
        subprocess.run(command, shell=True, check=True)
    assert read_trusted(tree / "top/middle/file") == b"trusted"


@root_only
def test_what_is_roots_in_a_sticky_directory_is_safe(tree: pathlib.Path) -> None:
    (tree / "top").chmod(0o1777)
    assert read_trusted(tree / "top/middle/file") == b"trusted"
    assert list_trusted(tree / "top") == ["middle"]
    os.chown(tree / "top/middle", OTHER, 0)
    refused(tree / "top/middle/file", f"{tree}/top/middle is owned by")


@root_only
def test_a_sticky_directory_of_somebody_else_is_not(tree: pathlib.Path) -> None:
    (tree / "top").chmod(0o1777)
    os.chown(tree / "top", OTHER, 0)
    refused(tree / "top/middle/file", f"{tree}/top is owned by")


@root_only
def test_sticky_saves_no_file(tree: pathlib.Path) -> None:
    (tree / "top/middle/file").chmod(0o1666)
    refused(tree / "top/middle/file", "can be written by everybody")


@pytest.mark.parametrize("target", ["{tree}/top/middle/file", "top/middle/file", "./top/../top//middle/file"])
def test_links_are_followed(tree: pathlib.Path, target: str) -> None:
    (tree / "link").symlink_to(target.format(tree=tree))
    assert read_trusted(tree / "link") == b"trusted"
    descriptor, real = open_resolved(tree / "link")
    os.close(descriptor)
    assert real == os.path.realpath(tree / "link")


def test_a_link_to_a_directory(tree: pathlib.Path) -> None:
    (tree / "up").symlink_to("top/middle/..")
    assert read_trusted(tree / "up" / "middle" / "file") == b"trusted"
    assert list_trusted(tree / "up/") == ["middle"]


@root_only
def test_what_a_link_leads_through_is_checked(tree: pathlib.Path) -> None:
    (tree / "hidden").mkdir(mode=0o755)
    (tree / "hidden" / "step").symlink_to(tree / "top/middle/file")
    (tree / "link").symlink_to("hidden/step")
    assert read_trusted(tree / "link") == b"trusted"
    (tree / "hidden").chmod(0o777)
    refused(tree / "link", f"{tree}/hidden can be written")
    (tree / "hidden").chmod(0o755)
    (tree / "top").chmod(0o777)
    refused(tree / "link", f"{tree}/top can be written")


@root_only
def test_a_link_of_somebody_else(tree: pathlib.Path) -> None:
    (tree / "top").chmod(0o1777)
    (tree / "top" / "link").symlink_to(tree / "top/middle/file")
    os.lchown(tree / "top" / "link", OTHER, 0)
    refused(tree / "top" / "link", f"{tree}/top/link is owned by", f"chown -h root {tree}/top/link")


def test_links_that_never_end(tree: pathlib.Path) -> None:
    (tree / "one").symlink_to("two")
    (tree / "two").symlink_to("one")
    before = descriptors()
    with pytest.raises(StackfsError, match="too many levels"):
        read_trusted(tree / "one")
    assert descriptors() == before


def test_dots_that_leave_the_root(tree: pathlib.Path) -> None:
    up = "/".join([".."] * 30)
    assert read_trusted(f"{tree}/{up}/{tree}/top/middle/file") == b"trusted"


def test_relative_paths(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "top")
    assert read_trusted("middle/file") == b"trusted"
    assert read_trusted("../top/middle/file") == b"trusted"


def _fifo(path: pathlib.Path) -> None:
    os.mkfifo(path)


def _socket(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)
        listener.bind(path.name)
    path.chmod(0o755)


@pytest.mark.parametrize("make", [_fifo, _socket, pathlib.Path.mkdir])
def test_only_regular_files_are_opened(
    tree: pathlib.Path, make: Callable[[pathlib.Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    make(tree / "odd")
    (tree / "odd").chmod(0o755)
    with pytest.raises(StackfsError, match="not a regular file"):
        read_trusted(tree / "odd")


def test_what_is_missing(tree: pathlib.Path) -> None:
    for path, kind, reason in (
        (tree / "top/none", "file", "no such file"),
        (tree / "none/none", "file", "no such file"),
        (tree / "top/middle/file/more", "file", "not a directory"),
        (tree / "top/middle/file", "directory", "not a directory"),
    ):
        with pytest.raises(StackfsError, match=reason) as caught:
            open_trusted(path, kind)  # type: ignore[arg-type]
        assert caught.value.exit_code is ExitCode.NOT_FOUND


def test_a_file_that_is_too_large(tree: pathlib.Path) -> None:
    os.truncate(tree / "top/middle/file", MAX_FILE + 1)
    with pytest.raises(StackfsError, match="larger than 16 MiB"):
        read_trusted(tree / "top/middle/file")


def test_what_was_checked_is_what_is_read(tree: pathlib.Path) -> None:
    with trusted(tree / "top/middle/file") as descriptor:
        (tree / "top/middle/new").write_bytes(b"another")
        (tree / "top/middle/new").rename(tree / "top/middle/file")
        assert os.read(descriptor, 100) == b"trusted"
    assert read_trusted(tree / "top/middle/file") == b"another"


@root_only
def test_a_user_trusts_himself_and_root(tree: pathlib.Path) -> None:
    file = tree / "top/middle/file"
    os.chown(file, OTHER, 0)
    os.close(open_trusted(file, uid=OTHER))
    with pytest.raises(TrustError, match=r"not by root or 12346"):
        open_trusted(file, uid=OTHER + 1)
    file.chmod(0o664)
    with pytest.raises(TrustError, match=r"by its group"):
        open_trusted(file, uid=OTHER)


@root_only
def test_a_private_group_counts_as_its_user(tree: pathlib.Path) -> None:
    private = next(
        (
            user
            for user in pwd.getpwall()
            if user.pw_uid != 0
            and any(g.gr_gid == user.pw_gid and g.gr_name == user.pw_name and not g.gr_mem for g in grp.getgrall())
        ),
        None,
    )
    if private is None:
        pytest.skip("this machine has no user with a private group")
    file = tree / "top/middle/file"
    os.chown(file, private.pw_uid, private.pw_gid)
    file.chmod(0o664)
    os.close(open_trusted(file, uid=private.pw_uid))
    with pytest.raises(TrustError):
        open_trusted(file, uid=0)


@root_only
def test_as_a_real_user() -> None:
    """The same answers where the kernel enforces the modes as well."""
    script = "import sys; from stackfs.trust import read_trusted; sys.stdout.buffer.write(read_trusted(sys.argv[1]))"

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, user=OTHER, group=OTHER, extra_groups=[], capture_output=True, env=environment, cwd="/"
        )

    if run("-c", "import stackfs.trust").returncode != 0:
        pytest.skip("this Python cannot be run by another user")
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories cannot be entered by others
        file = pathlib.Path(name, "file")
        file.write_bytes(b"trusted")
        file.chmod(0o600)
        pathlib.Path(name).chmod(0o755)
        assert b"permission denied" in run("-c", script, str(file)).stderr
        os.chown(file, OTHER, OTHER)
        done = run("-c", script, str(file))
        assert done.stdout == b"trusted", done.stderr.decode()
        os.chown(name, OTHER + 1, 0)
        assert b"is owned by 12346, not by root or 12345 (chown 12345" in run("-c", script, str(file)).stderr
