"""-o permissions=stack: every request reaches the stack, refused ones too, and the base acts with the caller's rights.

tests/test_posix.py compares its answers with the plain directory's. Here: what filters see of it, whose groups and
capabilities count, and that the daemon's own needs and the callbacks have the daemon's rights all the same.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import STACKFS, Drive, needs_root, run

from stackfs.cext import impersonation
from stackfs.cext.python_requests import Volume

pytestmark = needs_root

LOOKUP, SETATTR, UNLINK, OPEN, GETXATTR, ACCESS, READDIRPLUS, OPENDIR = 1, 4, 10, 14, 22, 34, 44, 27
FATTR_KILL_SUIDGID = 1 << 11


def as_user(uid: int, code: str, *arguments: object, groups: tuple[int, ...] = ()) -> str:
    """What Python code prints, run by a user whose group has the same number."""
    became = f"import os, sys; os.setgroups({list(groups)}); os.setresgid(*[{uid}] * 3); os.setresuid(*[{uid}] * 3)\n"
    return run("/usr/bin/python3", "-c", became + code, *arguments).stdout.strip()


TRY = """
def attempt(act, *arguments):
    try:
        return act(*arguments) and "ok" or "ok"
    except OSError as error:
        return os.strerror(error.errno)
"""


def record(made: Drive, top: Path) -> list[dict[str, Any]]:
    made.umount()
    lines = run(STACKFS, "audit", "show", top / "trail", "--json").stdout.splitlines()
    return [each for each in map(json.loads, lines) if each["kind"] == "request" and each["uid"] == 4000]


@pytest.mark.parametrize("permissions", ["stack", "kernel"])
def test_audit_sees_who_was_denied_what(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str, permissions: str
) -> None:
    audit = f"filter=audit,audit.directory={tmp_path}/trail,audit.key={tmp_path}/key,audit.operations=all"
    made = drive(audit, "allow_other", f"permissions={permissions}")
    (made.src / "private").write_text("x")
    os.chmod(made.src / "private", 0o600)
    (made.src / "closed").mkdir(mode=0o700)
    (made.src / "closed" / "f").write_text("x")
    code = TRY + """
top = sys.argv[1]
print([attempt(os.open, f"{top}/private", os.O_RDONLY), attempt(os.stat, f"{top}/closed/f"),
       attempt(os.listdir, f"{top}/closed"), attempt(os.chdir, f"{top}/closed"), attempt(os.mkdir, f"{top}/new"),
       attempt(os.unlink, f"{top}/private"), attempt(os.rename, f"{top}/private", f"{top}/mine"),
       attempt(os.truncate, f"{top}/private", 0), attempt(os.setxattr, f"{top}/private", "user.a", b"")])
"""
    assert as_user(4000, code, made.mnt) == str(["Permission denied"] * 9)
    denied = {(each["operation"], each["path"]) for each in record(made, tmp_path) if each["outcome"] == "EACCES"}
    expected = {("open", "/private"), ("lookup", "/closed/f"), ("opendir", "/closed"), ("access", "/closed"),
                ("mkdir", "/new"), ("unlink", "/private"), ("rename", "/private"), ("setattr", "/private"),
                ("setxattr", "/private")}  # fmt: skip
    assert denied == (expected if permissions == "stack" else set())


LOGS = """
MANIFEST = {"name": "sees", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Sees",
            "answers": "cacheable"}
import os
from stackfs.api import *

class Sees(Filter):
    operations = (Operation(IRP_MJ_CREATE, pre="pre", post="post"),)

    def note(self, words):
        with open(os.path.join(os.path.dirname(WHERE), f"note-{words}"), "w"):
            pass

    def pre(self, data, objects):
        if data.path == "/private":
            self.note(f"pre-{data.uid}")
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def post(self, data, objects, context, flags):
        if data.path == "/private":
            self.note(f"post-{data.uid}-{data.status & 0xFFFFFFFF:X}")
"""


def test_a_filter_sees_the_denied_open_and_acts_as_the_daemon(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir(mode=0o700)
    (notes / "sees.py").write_text(LOGS.replace("WHERE", repr(f"{notes}/x")))
    made = drive(f"filterdir={notes},filter=sees", "allow_other", "permissions=stack")
    (made.src / "private").write_text("x")
    os.chmod(made.src / "private", 0o600)
    code = TRY + "print(attempt(os.open, sys.argv[1], os.O_RDONLY))"
    assert as_user(4000, code, made.mnt / "private") == "Permission denied"
    found = {each.name: each.stat() for each in notes.glob("note-*")}
    assert sorted(found) == ["note-post-4000-C0000022", "note-pre-4000"]
    assert {(each.st_uid, each.st_gid) for each in found.values()} == {(0, 0)}, "a callback is the daemon's"


def test_groups_are_those_of_now(drive: Callable[..., Drive], lanes: str) -> None:
    """Also the last of 600, and gone when the thread has given them up."""
    made = drive("allow_other", "permissions=stack")
    (made.src / "f").write_text("x")
    os.chown(made.src / "f", 0, 7599)
    os.chmod(made.src / "f", 0o640)
    code = TRY + """
import time
os.setgroups(range(7000, 7600))
os.setresgid(2000, 2000, 2000)
def look():
    os.seteuid(2000)
    said = attempt(os.open, sys.argv[1], os.O_RDONLY)
    os.seteuid(0)
    return said
first = look()
os.setgroups([])
time.sleep(0.05)
print([first, look()])
"""
    assert run("/usr/bin/python3", "-c", "import os, sys\n" + code, made.mnt / "f").stdout.strip() == str(
        ["ok", "Permission denied"]
    )


def test_capabilities_are_the_callers(drive: Callable[..., Drive], lanes: str) -> None:
    """Root keeps root's powers; root without capabilities has none, nor has one who made himself a user namespace."""
    made = drive("allow_other", "permissions=stack")
    (made.src / "f").write_text("theirs")
    os.chown(made.src / "f", 1000, 1000)
    os.chmod(made.src / "f", 0o600)
    (made.src / "d").mkdir()
    os.chown(made.src / "d", 1000, 1000)
    os.chmod(made.src / "d", 0o700)
    for top in (made.src, made.mnt):
        def outcome(*command: str | Path) -> int:
            return run(*command, check=False).returncode

        weak = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner,-chown")
        assert outcome("cat", top / "f") == outcome("chown", "1000", top / "f") == outcome("ls", top / "d") == 0
        for prefix in (weak, ("unshare", "--user"), ("setpriv", "--reuid=4000", "--clear-groups", "unshare", "-Ur")):
            if outcome(*prefix, "true") != 0:
                continue  # user namespaces may be switched off
            for command in ("cat", "chmod 644", "chown 0"):
                assert outcome(*prefix, *command.split(), top / "f") != 0, (prefix, command, top)
            assert outcome(*prefix, "ls", top / "d") != 0
    assert (made.src / "f").stat().st_mode & 0o777 == 0o600


MIXED = TRY + """
import time
top, me, end = sys.argv[1], os.getuid(), time.monotonic() + 1.5
count = 0
while time.monotonic() < end:
    for other in range(5001, 5005):
        wanted = "ok" if other == me else "Permission denied"
        for act, arguments in ((os.stat, (f"{top}/{other}/f",)), (os.chmod, (f"{top}/open{other}", 0o644)),
                               (os.listdir, (f"{top}/{other}",)), (os.readlink, (f"{top}/{other}/l",))):
            said = attempt(act, *arguments)
            if act is os.chmod and other != me:
                wanted = "Operation not permitted"
            assert said == wanted, (me, other, act.__name__, said)
            wanted = "ok" if other == me else "Permission denied"
            count += 1
    with open(f"{top}/{me}/made", "w"):
        pass
    info = os.stat(f"{top}/{me}/made")
    assert (info.st_uid, info.st_gid) == (me, me), info
    os.unlink(f"{top}/{me}/made")
print(count)
"""


@pytest.mark.parametrize("filters", ["", "filter=passthrough"])
def test_users_at_the_same_time_are_not_mixed_up(drive: Callable[..., Drive], lanes: str, filters: str) -> None:
    made = drive("allow_other", "permissions=stack", *([filters] if filters else []))
    for uid in range(5001, 5005):
        (made.src / str(uid)).mkdir(mode=0o700)
        (made.src / str(uid) / "f").write_text("x")
        (made.src / str(uid) / "l").symlink_to("f")
        (made.src / f"open{uid}").write_text("x")
        os.chown(made.src / str(uid), uid, uid)
        os.chown(made.src / f"open{uid}", uid, uid)
    became = "import os, sys; me = int(sys.argv[2]); os.setgroups([]); os.setresgid(*[me] * 3); os.setresuid(*[me] * 3)"
    running = [
        subprocess.Popen(["timeout", "-s", "KILL", "60", "/usr/bin/python3", "-c", f"{became}\n{MIXED}", str(made.mnt),
                          str(uid)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
        for uid in range(5001, 5005)
    ]  # fmt: skip
    said = [each.communicate() for each in running]
    assert [each.returncode for each in running] == [0] * 4, said
    assert all(int(out) > 50 for out, _ in said)


def test_a_program_may_be_executed_without_being_read(drive: Callable[..., Drive], lanes: str) -> None:
    """And read without being executed, whatever the other classes may do with it."""
    made = drive("allow_other", "permissions=stack")
    for name, mode in (("run", 0o711), ("read", 0o754)):
        (made.src / name).write_bytes(Path("/bin/true").read_bytes())
        os.chmod(made.src / name, mode)
    code = TRY + """
import subprocess
print([[attempt(lambda: subprocess.run([sys.argv[1] + name], check=True)), attempt(open, sys.argv[1] + name)]
       for name in ("/run", "/read")])
"""
    assert as_user(4000, code, made.mnt) == str([["ok", "Permission denied"], ["Permission denied", "ok"]])


def test_pipes_and_sockets_are_not_open_to_everybody(drive: Callable[..., Drive], lanes: str) -> None:
    """The kernel asks nobody when it opens a FIFO or connects to a socket: who may not do both cannot look it up."""
    made = drive("allow_other", "permissions=stack")
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{made.mnt}/s")
    server.listen(8)
    os.mkfifo(made.src / "p")
    code = TRY + """
import socket
def connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
top = sys.argv[1]
print([attempt(connect, f"{top}/s"), attempt(os.open, f"{top}/p", os.O_RDONLY | os.O_NONBLOCK),
       attempt(os.stat, f"{top}/s"), sorted(os.listdir(top))])
"""
    for mode, uid, outcome in ((0o600, 4000, "Permission denied"), (0o666, 4000, "ok"), (0o600, 1000, "ok")):
        for name in ("s", "p"):
            os.chown(made.src / name, 1000, 1000)
            os.chmod(made.src / name, mode)
        assert as_user(uid, code, made.mnt) == str([outcome] * 3 + [["p", "s"]]), oct(mode)
    server.close()


# --- the base alone -------------------------------------------------------------------------------------------------

@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Volume]:
    """A volume without a mount whose base has the callers' rights, and keeps next to no descriptor open."""
    volume = Volume(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY), descriptor_limit=1, check_permissions=True,
                    entry_timeout=0, attr_timeout=0)  # fmt: skip
    tmp_path.chmod(0o755)
    yield volume
    volume.close()
    assert own_rights() == RIGHTS


def own_rights() -> list[str]:
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Uid", "Gid", "Groups", "CapEff"))]


RIGHTS = own_rights()


def test_what_the_daemon_needs_itself_is_not_asked_of_the_caller(checked: Volume, tmp_path: Path) -> None:
    """A node's descriptor is opened again below directories that the caller may not search; that grants nothing."""
    (tmp_path / "d").mkdir()
    for name, mode in (("readable", 0o644), ("private", 0o600), ("other", 0o644)):
        (tmp_path / "d" / name).write_text("x")
        (tmp_path / "d" / name).chmod(mode)
    above = checked.request(LOOKUP, name=b"d").do().nodeid
    node = {name: checked.request(LOOKUP, above, name=name.encode()).do().nodeid
            for name in ("readable", "private", "other")}  # fmt: skip
    (tmp_path / "d").chmod(0o700)
    assert checked.request(OPEN, node["other"]).do().fh  # takes the one place for a descriptor
    assert checked.request(OPEN, node["readable"], uid=1000, gid=1000).do().fh
    for opcode, arguments in ((OPEN, {}), (SETATTR, {"valid": 1, "mode": 0o666}), (ACCESS, {"mode": 4})):
        request = checked.request(opcode, node["private"], uid=1000, gid=1000, **arguments)
        assert request.run()
        assert request.error == (errno.EPERM if opcode == SETATTR else errno.EACCES)
        assert own_rights() == RIGHTS
    refused = checked.request(LOOKUP, above, name=b"readable", uid=1000, gid=1000)
    assert refused.run() and refused.error == errno.EACCES


def test_set_id_bits_go_though_the_writer_may_not_chmod(checked: Volume, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    os.chmod(tmp_path / "f", 0o6777)
    node = checked.request(LOOKUP, name=b"f").do().nodeid
    checked.request(SETATTR, node, valid=FATTR_KILL_SUIDGID, uid=1000, gid=1000).do()
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o777


def test_a_directory_that_may_be_listed_shows_all_its_names(checked: Volume, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a", "b"):
        (tmp_path / "d" / name).write_text("x")
    (tmp_path / "d").chmod(0o744)
    node = checked.request(LOOKUP, name=b"d").do().nodeid
    fh = checked.request(OPENDIR, node, uid=1000, gid=1000).do().fh
    names: list[bytes] = []

    class Entry:
        pass

    listing = checked.request(READDIRPLUS, node, fh=fh, size=4096, uid=1000, gid=1000)
    listing.list_directory(lambda name, entry, following: names.append(name) or True, Entry)
    assert sorted(names) == [b".", b"..", b"a", b"b"]


def test_the_group_that_the_kernel_named_counts(checked: Volume, tmp_path: Path) -> None:
    """Even when /proc says nothing, for the thread is gone."""
    (tmp_path / "f").write_text("x")
    os.chown(tmp_path / "f", 0, 3000)
    os.chmod(tmp_path / "f", 0o640)
    node = checked.request(LOOKUP, name=b"f").do().nodeid
    assert checked.request(OPEN, node, uid=1000, gid=3000, tid=2**22 + 1).do().fh
    gone = checked.request(OPEN, node, uid=1000, gid=1000, tid=2**22 + 1)
    assert gone.run() and gone.error == errno.EACCES


def test_a_thread_gives_the_rights_back(checked: Volume, tmp_path: Path) -> None:
    """In every thread, after success and failure, so that what comes next is the daemon's."""
    (tmp_path / "f").write_text("x")
    (tmp_path / "f").chmod(0o600)
    node = checked.request(LOOKUP, name=b"f").do().nodeid
    seen: list[list[str]] = []

    def work() -> None:
        for uid in (1000, 0, 2000, 2000, 0):
            checked.request(OPEN, node, uid=uid, gid=uid, tid=threading.get_native_id()).run()
            checked.request(LOOKUP, name=b"f", uid=uid, gid=uid).do()
            seen.append(own_rights())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [RIGHTS] * 5


def test_rights_cannot_be_taken_without_the_capabilities_for_it(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "m").mkdir()
    code = "from stackfs.cext import impersonation; print(impersonation.unavailable())"
    weak = ("setpriv", "--bounding-set", "-setuid")
    assert "CAP_SETUID" in run(*weak, sys.executable, "-c", code).stdout
    done = run(*weak, STACKFS, "mount", tmp_path / "s", tmp_path / "m", "-o", "permissions=stack", check=False)
    assert done.returncode == 6 and "CAP_SETUID" in done.stderr and len(done.stderr.splitlines()) == 1, done
    assert impersonation.unavailable() == ""
    assert impersonation.time_switch(1000, 10) > 0
