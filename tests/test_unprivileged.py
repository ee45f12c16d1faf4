"""A user who is not root mounts a drive of his own: through fusermount3, with what he may do himself."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BIN, STACKFS, is_mounted, needs_root

pytestmark = needs_root

USER, OTHER = 65534, 54322            # "nobody": fusermount3 asks for a name
FUSE_CONF = Path("/etc/fuse.conf")
RUNTIME = Path(f"/run/user/{USER}")      # as a login makes it


def as_user(user: int, *command: str | Path, home: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """As that user, who has no groups and no rights of root's; killed when it hangs."""
    words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "XDG_RUNTIME_DIR": str(RUNTIME), "LC_ALL": "C.UTF-8"}
    words = ["timeout", "-s", "KILL", "60", *words, *map(str, command)]
    done = subprocess.run(words, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """What the user has; /dev/fuse for everybody and user_allow_other, both put back."""
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    tmp_path.parent.parent.chmod(0o755)
    home = tmp_path / "home"
    for directory in (home, home / "source", home / "drive", RUNTIME):
        directory.mkdir(parents=True, exist_ok=True)
        os.chown(directory, USER, USER)
    RUNTIME.chmod(0o700)
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    conf = FUSE_CONF.read_bytes() if FUSE_CONF.exists() else None
    try:
        if as_user(USER, STACKFS, "--version", home=home, check=False).returncode != 0:
            pytest.skip(f"a user cannot run {STACKFS}: some directory above it is closed to others")
        try:
            os.chmod("/dev/fuse", 0o666)
            FUSE_CONF.write_bytes((conf or b"") + b"\nuser_allow_other\n")
        except OSError as error:
            pytest.skip(f"/dev/fuse or {FUSE_CONF} cannot be changed: {error}")
        yield home
    finally:
        if is_mounted(home / "drive"):
            subprocess.run(["umount", "-f", "-l", home / "drive"], check=False)
        os.chmod("/dev/fuse", mode)
        shutil.rmtree(RUNTIME)
        if conf is not None:
            FUSE_CONF.write_bytes(conf)
        else:
            FUSE_CONF.unlink(missing_ok=True)


def test_a_user_mounts_uses_and_unmounts(home: Path) -> None:
    drive = home / "drive"
    as_user(USER, STACKFS, "mount", home / "source", drive, "-o", "filter=passthrough", home=home)
    assert is_mounted(drive)
    work = f"cd {drive} && mkdir d && echo hello > d/f && mv d/f d/g && ln d/g h && cat h"
    assert as_user(USER, "sh", "-c", work, home=home).stdout == "hello\n"
    made = home / "source" / "d" / "g"
    assert made.read_text() == "hello\n" and (made.stat().st_uid, made.stat().st_nlink) == (USER, 2)
    assert as_user(USER, "chown", "0", drive / "h", home=home, check=False).returncode != 0
    # Nobody else gets in, root included: the kernel's rule for a mount without allow_other.
    assert as_user(OTHER, "ls", drive, home=home, check=False).returncode != 0
    shown = as_user(USER, BIN / "fltmc", "instances", "-v", drive, home=home).stdout
    assert "passthrough" in shown
    assert str(drive) in as_user(USER, STACKFS, "status", home=home).stdout
    as_user(USER, STACKFS, "umount", drive, home=home)
    assert not is_mounted(drive)


def test_a_users_drive_for_others_too(home: Path) -> None:
    """allow_other: permissions are checked against each caller; what is made belongs to the daemon's user alone."""
    drive = home / "drive"
    (home / "source" / "closed").write_text("secret")
    (home / "source" / "open").write_text("public")
    os.chown(home / "source" / "closed", USER, USER)
    (home / "source" / "closed").chmod(0o600)
    as_user(USER, STACKFS, "mount", home / "source", drive, "-o", "allow_other", home=home)
    assert as_user(OTHER, "cat", drive / "open", home=home).stdout == "public"
    assert as_user(OTHER, "cat", drive / "closed", home=home, check=False).returncode != 0
    assert as_user(OTHER, "touch", drive / "new", home=home, check=False).returncode != 0
    assert not (home / "source" / "new").exists()
    as_user(USER, STACKFS, "umount", drive, home=home)
    assert not is_mounted(drive)


def test_what_a_user_may_not_do_is_one_line(home: Path) -> None:
    os.chmod("/dev/fuse", 0o600)
    done = as_user(USER, STACKFS, "mount", home / "source", home / "drive", home=home, check=False)
    assert done.returncode != 0 and len(done.stderr.strip().splitlines()) == 1 and "/dev/fuse" in done.stderr
    assert not is_mounted(home / "drive")


CHANGES = """
import os, sys, time
drive, source = sys.argv[1:]
mine, theirs = (os.open(f"{drive}/{name}", os.O_RDONLY) for name in ("mine", "theirs"))
print(os.pread(mine, 9, 0).decode(), os.pread(theirs, 9, 0).decode(), flush=True)
sys.stdin.readline()
print(os.pread(mine, 9, 0).decode(), os.pread(theirs, 9, 0).decode(), os.path.exists(f"{drive}/new"), flush=True)
"""


def test_a_user_notices_what_is_changed_beside_his_drive(home: Path) -> None:
    """Leases are for his own files; others' are not cached. fanotify tells him, too."""
    drive, source = home / "drive", home / "source"
    (source / "mine").write_text("old")
    (source / "theirs").write_text("old")
    os.chown(source / "mine", USER, USER)
    (source / "theirs").chmod(0o644)
    as_user(USER, STACKFS, "mount", source, drive, "-o", "coherence=lease", home=home)
    program = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", sys.executable, "-c", CHANGES]
    pipe = subprocess.PIPE
    with subprocess.Popen([*program, drive, source], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "old old\n"
        shown = as_user(USER, STACKFS, "status", home=home).stdout
        assert "leases: 1\n" in shown and "refused: 1\n" in shown
        (source / "mine").write_text("newer")
        (source / "theirs").write_text("newer")
        (source / "new").touch()
        time.sleep(0.1)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "newer newer True\n"
    as_user(USER, STACKFS, "umount", drive, home=home)
