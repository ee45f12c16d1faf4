"""Mounting: mount tables, the checks before a mount, stale mounts, and fusermount3's complaints in our words."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stackfs import mounting
from stackfs.errors import ExitCode, StackfsError
from stackfs.mount_flags import MountFlags

NOBODY = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="mounting needs root and /dev/fuse"
)


def refused(call: Callable[[], object], exit_code: ExitCode = ExitCode.UNUSABLE) -> str:
    with pytest.raises(StackfsError) as error:
        call()
    assert error.value.exit_code == exit_code
    assert "\n" not in error.value.message
    return error.value.message


# ---- mount tables ----

def test_mountinfo_with_escapes_and_optional_fields() -> None:
    table = (
        b"36 35 98:0 / /mnt\\040with\\011odd\\134names\\012 rw,noatime shared:1 master:2 - ext4 /dev/root rw,errors=x\n"
        b"42 36 0:39 / /drive rw,nosuid,nodev - fuse.stackfs a,b\\040c rw,user_id=0,group_id=0\n"
        b"malformed\n"
    )
    first, second = mounting.parse_mountinfo(table)
    assert first.mountpoint == "/mnt with\todd\\names\n"
    assert (first.type, first.source, first.options) == ("ext4", "/dev/root", ("rw", "noatime"))
    assert second.is_stackfs and second.source == "a,b c" and second.device == "0:39"
    assert "user_id=0" in second.super_options
    assert not first.is_stackfs


def test_names_that_are_no_text_survive() -> None:
    (mount,) = mounting.parse_mountinfo(b"42 36 0:39 / /m\xff\\040x rw - tmpfs none rw")
    assert os.fsencode(mount.mountpoint) == b"/m\xff x"


def test_find_mount_knows_this_machine(tmp_path: Path) -> None:
    found = mounting.find_mount("/proc/self/..")
    assert found is not None and found.type == "proc"
    assert mounting.find_mount(str(tmp_path)) is None
    assert not mounting.is_stale(str(tmp_path)) and not mounting.is_stale("/proc")


def test_resolve_is_realpath(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    (tmp_path / "absolute").symlink_to(tmp_path / "link")
    for name in ("a/./b/..", "link", "link/..", "absolute/../x", "missing/deeper", "absolute//", "."):
        path = f"{tmp_path}/{name}"
        assert mounting.resolve(path) == os.path.realpath(path)
    assert mounting.resolve("x") == f"{os.getcwd()}/x"
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refused(lambda: mounting.resolve(f"{tmp_path}/loop/x"))


# ---- checks ----

@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    source, mountpoint = tmp_path / "source", tmp_path / "mountpoint"
    source.mkdir()
    mountpoint.mkdir()
    return source, mountpoint


def test_a_good_pair(places: tuple[Path, Path]) -> None:
    source, mountpoint = map(str, places)
    assert mounting.check_mountpoint(f"{source}/.", f"{mountpoint}/../mountpoint") == (source, mountpoint)


def test_what_cannot_be_a_pair(places: tuple[Path, Path]) -> None:
    source, mountpoint = places
    inner = source / "inner"
    inner.mkdir()
    file = source / "file"
    file.touch()

    def check(backing: Path, place: Path) -> str:
        return refused(lambda: mounting.check_mountpoint(str(backing), str(place)))

    assert "does not exist" in check(source / "none", mountpoint)
    assert "mkdir -p" in check(source, mountpoint / "none")
    assert "not a directory" in check(file, mountpoint)
    assert "not a directory" in check(source, file)
    assert "inside the backing directory" in check(source, inner)
    assert "inside the mountpoint" in check(inner, source)
    assert "itself" in check(source, source)
    (mountpoint / "x").touch()
    assert "not empty" in check(source, mountpoint)


@needs_root
def test_a_bind_mount_hides_no_recursion(places: tuple[Path, Path]) -> None:
    source, mountpoint = places
    (source / "deep" / "er").mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(source / "deep"), str(mountpoint)], check=True)
    try:
        assert "inside" in refused(lambda: mounting.check_mountpoint(str(source / "deep"), f"{mountpoint}/er"))
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)


# ---- mounts, with nobody behind them ----

@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "mount point,\\x"
    path.mkdir()
    yield str(path)
    while mounting.mount_at(str(path)) is not None:
        mounting.unmount(str(path), force=True)


SETTINGS = mounting.MountSettings(source="/the source,\\x")


@needs_root
def test_mount_and_unmount(mountpoint: str) -> None:
    flags = MountFlags(read_only=True, exec=False, noatime=True)
    device = mounting.mount(mountpoint, mounting.MountSettings("/the source,\\x", flags, allow_other=True))
    assert stat.S_ISCHR(os.fstat(device).st_mode) and not os.get_inheritable(device)
    mount = mounting.find_mount(mountpoint)
    assert mount is not None and mount.is_stackfs and mount.source == "/the source,\\x"
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(mount.options)
    assert {"default_permissions", "allow_other", "user_id=0"} <= set(mount.super_options)
    mounting.unmount(mountpoint)
    assert mounting.find_mount(mountpoint) is None
    os.close(device)
    assert "nothing is mounted" in refused(lambda: mounting.unmount(mountpoint), ExitCode.NOT_FOUND)


@needs_root
def test_the_kernel_checks_nothing_where_the_stack_does(mountpoint: str) -> None:
    device = mounting.mount(mountpoint, mounting.MountSettings("x", allow_other=True, default_permissions=False))
    mount = mounting.find_mount(mountpoint)
    assert mount is not None and "allow_other" in mount.super_options
    assert "default_permissions" not in mount.super_options
    os.close(device)


def test_a_user_lends_nobody_his_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "fuse.conf"
    conf.write_text("user_allow_other\n")
    monkeypatch.setattr(mounting, "FUSE_CONF", str(conf))
    settings = mounting.MountSettings("x", allow_other=True, default_permissions=False)
    assert "your own rights" in refused(lambda: mounting.mount_unprivileged("/nowhere", settings), ExitCode.PERMISSION)


@needs_root
def test_suid_and_dev_only_when_asked(mountpoint: str) -> None:
    device = mounting.mount(mountpoint, mounting.MountSettings("x", MountFlags(suid=True, dev=True), max_read=65536))
    mount = mounting.find_mount(mountpoint)
    assert mount is not None and not {"nosuid", "nodev", "ro", "noexec"} & set(mount.options)
    assert "max_read=65536" in mount.super_options
    os.close(device)


@needs_root
def test_a_stale_mount_is_seen_and_cleared(mountpoint: str) -> None:
    for _ in range(2):
        os.close(mounting.mount(mountpoint, SETTINGS))      # two, one on the other
    assert mounting.probe(mountpoint) == errno.ENOTCONN
    assert mounting.is_stale(mountpoint)
    mounting.clear_stale(mountpoint)
    assert mounting.find_mount(mountpoint) is None
    mounting.clear_stale(mountpoint)


@needs_root
def test_a_mount_that_hangs_is_not_looked_into(mountpoint: str) -> None:
    device = mounting.mount(mountpoint, SETTINGS)           # open, and nobody reads it
    begun = time.monotonic()
    assert mounting.probe(mountpoint, 0.3) is None
    assert not mounting.is_stale(mountpoint, 0.3)
    assert mounting.resolve(f"{mountpoint}/../mount point,\\x") == mountpoint
    assert "does not answer" in refused(lambda: mounting.clear_stale(mountpoint))
    assert time.monotonic() - begun < 10
    mounting.unmount(mountpoint, force=True)
    os.close(device)


@needs_root
def test_another_filesystems_stale_mount_is_explained(mountpoint: str) -> None:
    os.close(mounting.mount(mountpoint, mounting.MountSettings("host:", subtype="sshfs")))
    assert "fuse.sshfs" in refused(lambda: mounting.clear_stale(mountpoint))
    assert mounting.find_mount(mountpoint) is not None


@needs_root
def test_a_living_mount_of_another_kind_is_a_directory_like_any(mountpoint: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", mountpoint], check=True)
    mounting.clear_stale(mountpoint)
    assert mounting.find_mount(mountpoint) is not None


def test_a_missing_mountpoint_is_an_error_of_one_line(tmp_path: Path) -> None:
    assert "cannot be opened" in refused(lambda: mounting.mount_privileged(f"{tmp_path}/none", SETTINGS))


# ---- users ----

@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("fusermount3: failed to open /dev/fuse: Permission denied\n", "chmod 0666 /dev/fuse"),
        ("fusermount3: fuse device not found, try 'modprobe fuse' first\n", "modprobe fuse"),
        ("fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n",
         "echo user_allow_other >> /etc/fuse.conf"),
        ("fusermount3: user has no write access to mountpoint /m\n", "writable"),
        ("fusermount3: too many FUSE filesystems mounted; mount_max=N can be set in /etc/fuse.conf\n", "mount_max"),
        ("fusermount3: mount failed: Operation not permitted\n", "chmod u+s"),
        ("fusermount3: something new\n", "/m: something new"),
        ("", "without a word"),
    ],
)
def test_fusermounts_complaints(said: str, words: str) -> None:
    message = mounting._fusermount_error("/m", said).message
    assert words in message and "\n" not in message


def test_users_get_neither_suid_nor_dev() -> None:
    settings = mounting.MountSettings("x", MountFlags(dev=True))
    assert "root" in refused(lambda: mounting.mount_unprivileged("/none", settings), ExitCode.PERMISSION)


def test_allow_other_is_checked_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(mounting, "FUSE_CONF", str(conf))
    settings = mounting.MountSettings("x", allow_other=True)
    conf.write_text("#user_allow_other\n")
    assert "user_allow_other" in refused(lambda: mounting.mount_unprivileged("/none", settings), ExitCode.PERMISSION)
    assert not mounting.allow_other_permitted()
    conf.write_text("mount_max = 10\n user_allow_other \n")
    assert mounting.allow_other_permitted()


def as_nobody(work: Callable[[], None]) -> str:
    """Run in a child as a user without rights; "" or what went wrong there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        report = "never ran"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            report = ""
        except BaseException:
            report = traceback.format_exc()
        finally:
            os.write(writing, report.encode()[-4000:])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        report = pipe.read()
    os.waitpid(child, 0)
    return report


@needs_root
def test_a_user_mounts_and_unmounts() -> None:
    try:
        mounting._fusermount()
    except StackfsError as error:
        pytest.skip(error.message)
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    base = Path(f"/tmp/stackfs-user-{os.getpid()}")         # pytest's own directories are closed to others
    base.mkdir()
    place = base / "a b,c\\d"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)

    def closed() -> None:
        assert "chmod 0666" in refused(lambda: mounting.mount(str(place), SETTINGS), ExitCode.PERMISSION)

    def work() -> None:
        device = mounting.mount(str(place), SETTINGS)
        assert not os.get_inheritable(device)
        mount = mounting.find_mount(str(place))
        assert mount is not None and mount.is_stackfs and mount.source == SETTINGS.source
        assert {"nosuid", "nodev"} <= set(mount.options) and f"user_id={NOBODY}" in mount.super_options
        mounting.unmount(str(place))
        assert mounting.find_mount(str(place)) is None
        os.close(device)
        os.close(mounting.mount(str(place), SETTINGS))      # killed, so to speak

    def foreign() -> None:
        assert "writable" in refused(lambda: mounting.mount("/usr", SETTINGS), ExitCode.PERMISSION)

    try:
        os.chmod("/dev/fuse", 0o600)
        assert as_nobody(closed) == ""
        os.chmod("/dev/fuse", 0o666)
        assert as_nobody(work) == ""
        assert as_nobody(foreign) == ""
        assert mounting.is_stale(str(place)), "root sees it too, though it may not look into a user's mount"
        assert as_nobody(lambda: mounting.clear_stale(str(place))) == ""
        assert mounting.find_mount(str(place)) is None
    finally:
        os.chmod("/dev/fuse", mode)
        while mounting.mount_at(str(place)) is not None:
            mounting.unmount(str(place), force=True)
        place.rmdir()
        base.rmdir()
