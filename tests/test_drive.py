"""The drive as its user meets it: filters that misbehave, filters that come and go under load, daemons that die."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FLTMC, STACKFS, Drive, is_mounted, run

from stackfs.benchmarks import mounts

MANIFEST = """
MANIFEST = {{"name": "{name}", "altitude": "{altitude}", "group": "FSFilter Activity Monitor", "filter": "Dropped",
             "on_error": "{on_error}", "answers": "cacheable"}}
"""

RAISES = """
from stackfs import api
from stackfs.api import *

class Dropped(Filter):
    operations = tuple(Operation(getattr(api, "IRP_MJ_" + name), pre="pre", post="post")
                       for name in ("READ", "CLEANUP", "CLOSE"))

    def pre(self, data, objects):
        raise {error}("pre")

    def post(self, data, objects, context, flags):
        raise {error}("post")
"""


def drop_in(directory: Path, name: str, body: str, *, altitude: str = "370500", on_error: str = "fail") -> str:
    """A drop-in filter; the -o option that finds it."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    manifest = MANIFEST.format(name=name, altitude=altitude, on_error=on_error)
    (directory / f"{name}.py").write_text(manifest + body)
    return f"filterdir={directory}"


def in_drive(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: a broken drive hangs that one, not the tests."""
    return run(sys.executable, "-c", code, *map(str, arguments), check=False, timeout=30)


@pytest.mark.parametrize("error", ["RuntimeError", "KeyboardInterrupt", "SystemExit"])
def test_a_filter_that_raises_fails_its_operations_and_no_other(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str, error: str
) -> None:
    where = drop_in(tmp_path / "f", "raises", RAISES.format(error=error))
    made = drive(where, "filter=raises", "cache=strict")
    made.expected_log = ["a callback raised", "failed too often"]
    (made.src / "a").write_text("content")
    read = "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); os.read(fd, 10)"
    assert "Input/output error" in in_drive(read, made.mnt / "a").stderr
    run("sh", "-c", f"cd {made.mnt} && mkdir d && echo new > d/b && ls -l && mv a c")
    assert (made.src / "c").read_text() == "content"
    loop = (
        "import os, sys\nfor _ in range(120):\n try:\n  os.read(os.open(sys.argv[1], os.O_RDONLY), 1)\n"
        " except OSError: pass"
    )
    in_drive(loop, made.mnt / "c")
    rows = json.loads(made.fltmc("instances", "-v", str(made.mnt), "--json").stdout)["instances"]
    assert [row["status"] for row in rows if row["filter"] == "raises"] == ["Failed"]
    volumes = json.loads(run(STACKFS, "status", "--json", check=False).stdout)["volumes"]
    mine = next(each for each in volumes if each["mountpoint"] == str(made.mnt))
    assert mine["status"]["failed_instances"] == ["raises"]
    assert mine["status"]["open_files"] == 0  # CLEANUP and CLOSE reached the base all the same


def test_on_error_pass_lets_operations_by_and_then_detaches(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str
) -> None:
    where = drop_in(tmp_path / "f", "raises", RAISES.format(error="ValueError"), on_error="pass")
    made = drive(where, "filter=raises", "cache=strict")
    made.expected_log = ["a callback raised", "failed too often"]
    (made.src / "a").write_text("content")
    assert run("cat", made.mnt / "a").stdout == "content"
    loop = (
        "import os, sys\nfor _ in range(120):\n"
        " assert os.pread(os.open(sys.argv[1], os.O_RDONLY), 7, 0) == b'content'"
    )
    assert in_drive(loop, made.mnt / "a").returncode == 0
    end = time.monotonic() + 10
    while "raises" in made.fltmc("instances", "-v", str(made.mnt)).stdout:
        assert time.monotonic() < end
        time.sleep(0.05)


RAISES_EVERYWHERE = """
from stackfs import api
from stackfs.api import *

NAMES = sorted(name for name in dir(api) if name.startswith("IRP_MJ_")
               and name not in ("IRP_MJ_POWER", "IRP_MJ_DEVICE_CHANGE", "IRP_MJ_SHUTDOWN"))

class Dropped(Filter):
    operations = tuple(Operation(getattr(api, name), pre="pre", post="post") for name in NAMES)

    def pre(self, data, objects):
        data.set_dirty()
        raise KeyboardInterrupt("pre")

    def post(self, data, objects, context, flags):
        raise SystemExit("post")

    def instance_teardown_start(self, instance, reason):
        raise SystemExit("start")

    def instance_teardown_complete(self, instance, reason):
        raise KeyboardInterrupt("complete")
"""
WORK = (
    "import os, shutil, sys\nos.chdir(sys.argv[1])\nfor n in range(30):\n"
    " os.mkdir('d'); open('d/f', 'w').write('content'); os.rename('d/f', 'd/g'); os.link('d/g', 'd/h')\n"
    " os.symlink('g', 'd/s'); assert open('d/s').read() == 'content'; os.chmod('d/g', 0o600)\n"
    " assert sorted(os.listdir('d')) == ['g', 'h', 's']; os.truncate('d/g', 3); shutil.rmtree('d')\n"
)


@pytest.mark.parametrize("on_error", ["fail", "pass"])
def test_a_filter_that_raises_in_every_callback_of_every_operation(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str, on_error: str
) -> None:
    """`fail` refuses all of it and stays; `pass` is as if it were not there, and goes. The drive outlives both, nothing
    stays open or undone, and without it everything is as before."""
    made = drive(drop_in(tmp_path / "f", "raises", RAISES_EVERYWHERE, on_error=on_error), "filter=passthrough")
    made.expected_log = ["a callback raised", "failed too often", "a notification raised"]
    (made.src / "a").write_text("content")
    hold = "import os, sys\nf = os.open(sys.argv[1], os.O_RDWR)\nprint(flush=True)\ninput()\nos.close(f)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(made.mnt / "a")], cwd="/", stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline()
    made.fltmc("load", "raises", "-v", str(made.mnt))
    if on_error == "fail":
        for command in ("ls", "cat a", "echo x > b", "mkdir d", "rm a", "mv a b", "ln a b", "ln -s a b", "chmod 600 a",
                        "truncate -s 3 a", "touch a", "stat a", "df ."):  # fmt: skip
            done = run("sh", "-c", f"cd {made.src}; cd {made.mnt} && {command}", check=False)
            assert "Input/output error" in done.stderr, (command, done.stderr)
        assert sorted(os.listdir(made.src)) == ["a"] and (made.src / "a").read_text() == "content"
        holder.communicate(b"\n", timeout=20)
        ask = "import os, sys\nfor _ in range(120):\n try: os.stat(sys.argv[1])\n except OSError: pass"
        in_drive(ask, made.mnt / "a")
        rows = json.loads(made.fltmc("instances", "-v", str(made.mnt), "--json").stdout)["instances"]
        assert [row["status"] for row in rows] == ["Failed", ""]
        made.fltmc("detach", "raises", str(made.mnt))
    else:
        assert (worked := in_drive(WORK, made.mnt)).returncode == 0, worked.stderr
        holder.communicate(b"\n", timeout=20)
        end = time.monotonic() + 10
        while "raises" in made.fltmc("instances", "-v", str(made.mnt)).stdout:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert (worked := in_drive(WORK, made.mnt)).returncode == 0, worked.stderr
    volumes = json.loads(run(STACKFS, "status", "--json", check=False).stdout)["volumes"]
    (mine,) = [each["status"] for each in volumes if each["mountpoint"] == str(made.mnt)]
    assert mine["open_files"] == 0 and mine["failed_instances"] == []


def test_a_callback_that_touches_its_own_mount_gets_edeadlk(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str
) -> None:
    body = """
import os
from stackfs.api import *

class Dropped(Filter):
    operations = (Operation(IRP_MJ_READ, pre="pre"),)

    def pre(self, data, objects):
        try:
            os.open(objects.volume.mountpoint + "/other", os.O_RDONLY)
        except OSError as error:
            open(objects.volume.source + "/../result", "w").write(str(error.errno))
        return FLT_PREOP_SUCCESS_NO_CALLBACK
"""
    where = drop_in(tmp_path / "f", "touches", body)
    made = drive(where, "filter=touches")
    made.expected_log = ["EDEADLK"]
    (made.src / "trigger").write_text("content")
    assert run("cat", made.mnt / "trigger", timeout=20).stdout == "content"
    assert (made.src / ".." / "result").read_text() == str(errno.EDEADLK)
    run("sh", "-c", f"echo on > {made.mnt}/goes && cat {made.mnt}/goes")
    end = time.monotonic() + 5
    while "EDEADLK" not in made.log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_attaching_and_detaching_a_thousand_times_under_fio(drive: Callable[..., Drive]) -> None:
    made = drive("cache=strict")
    made.fltmc("load", "passthrough", "-v", str(made.mnt))
    job = subprocess.Popen(
        ["timeout", "-s", "KILL", "100", "fio", "--name=v", f"--directory={made.mnt}", "--rw=randwrite", "--bs=4k",
         "--size=16m", "--verify=crc32c", "--ioengine=psync", "--loops=4000", "--do_verify=1", "--verify_fatal=1"],
        cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    storm = f"""
import sys
from stackfs import control
client = next(each for each in control.daemons() if each.hello.mountpoint == {str(made.mnt)!r})
name = client.hello.volume_name
for turn in range(1000):
    client.call("detach", filter="passthrough", volume=name, instance_name=None)
    client.call("attach", filter="passthrough", volume=name, instance_name=None, altitude=None)
"""
    try:
        run(sys.executable, "-c", storm, timeout=90)
        assert job.poll() is None, f"fio ended before the storm did: {job.communicate()[0]}"
    finally:
        job.terminate()
        output = job.communicate()[0]
    assert "verify" not in output.lower() or "bad" not in output.lower(), output
    assert "err= 0" in output or "terminating on signal" in output, output
    assert "passthrough" in made.fltmc("instances", "-v", str(made.mnt)).stdout


def test_sigkill_gives_callers_an_error_and_the_next_mount_clears(drive: Callable[..., Drive]) -> None:
    made = drive()
    reader = subprocess.Popen(
        [sys.executable, "-c", "import os,sys\nwhile True: "
         "open(sys.argv[1] + '/f', 'a').close()", str(made.mnt)], cwd="/", stderr=subprocess.PIPE)  # fmt: skip
    time.sleep(0.5)
    os.kill(made.pid, signal.SIGKILL)
    _, said = reader.communicate(timeout=10)
    assert b"abort" in said or b"not connected" in said
    assert is_mounted(made.mnt)
    made.mount()
    run("touch", made.mnt / "again")
    os.kill(made.pid, signal.SIGKILL)
    made.wait_gone()
    made.umount()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_unmount(drive: Callable[..., Drive], number: int) -> None:
    made = drive("filter=passthrough")
    run("touch", made.mnt / "a")
    os.kill(made.pid, number)
    made.wait_gone()
    assert not is_mounted(made.mnt)


def test_a_second_signal_ends_a_drive_with_open_files(drive: Callable[..., Drive]) -> None:
    made = drive()
    made.expected_log = ["files are still open"]
    holder = subprocess.Popen([sys.executable, "-c", "import sys,time; f=open(sys.argv[1],'w'); print('x',flush=True); "
                               "time.sleep(60)", str(made.mnt / "held")], cwd="/", stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        os.kill(made.pid, signal.SIGTERM)
        time.sleep(0.5)
        assert is_mounted(made.mnt)
        os.kill(made.pid, signal.SIGTERM)
        made.wait_gone()
        assert not is_mounted(made.mnt)
    finally:
        holder.kill()
        holder.communicate()


def test_lazy_unmount_serves_open_files_to_their_end(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive()
    code = ("import os,sys\nfd=os.open(sys.argv[1],os.O_RDWR|os.O_CREAT)\nprint('x',flush=True)\nsys.stdin.readline()\n"
            "assert os.write(fd,b'late')==4; os.fsync(fd); os.close(fd)")  # fmt: skip
    holder = subprocess.Popen([sys.executable, "-c", code, str(made.mnt / "held")], cwd="/",
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline()
    run(STACKFS, "umount", "--lazy", made.mnt)
    assert not is_mounted(made.mnt)
    assert holder.communicate(b"\n", timeout=20) is not None and holder.returncode == 0
    made.wait_gone()
    assert (made.src / "held").read_text() == "late"


def test_readonly_refuses_and_leaves(drive: Callable[..., Drive], lanes: str) -> None:
    made = drive("filter=passthrough")
    run("sh", "-c", f"echo 1 > {made.mnt}/a")
    made.fltmc("load", "readonly", "-v", str(made.mnt))
    for command in (f"echo 2 > {made.mnt}/b", f"echo 2 >> {made.mnt}/a", f"rm {made.mnt}/a", f"mkdir {made.mnt}/d",
                    f"chmod 600 {made.mnt}/a", f"mv {made.mnt}/a {made.mnt}/c", f"ln -s x {made.mnt}/l"):  # fmt: skip
        assert "Read-only file system" in run("sh", "-c", command, check=False).stderr, command
    assert run("cat", made.mnt / "a").stdout == "1\n"
    made.fltmc("unload", "readonly", "-v", str(made.mnt))
    run("sh", "-c", f"echo 2 > {made.mnt}/b")


def test_mount_refuses_what_it_must(drive: Callable[..., Drive], tmp_path: Path) -> None:
    made = drive(mount=False)
    (made.mnt / "x").write_text("")
    table = [
        ((made.src, made.mnt), "not empty"),
        ((made.src / "nothing", tmp_path), "does not exist"),
        ((made.src, made.src), "same directory"),
    ]
    for (source, mountpoint), words in table:
        done = run(STACKFS, "mount", source, mountpoint, check=False)
        assert done.returncode == 5 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    done = run(STACKFS, "mount", made.src, tmp_path, "-o", "filter=nosuch", check=False)
    assert done.returncode == 3 and "nosuch" in done.stderr
    assert run(FLTMC, "load", "nosuch", check=False).returncode != 0


REFUSES = """
from stackfs.api import *
class Dropped(Filter):
    operations = (Operation(IRP_MJ_CREATE, pre="pre"),)

    def instance_setup(self, instance, flags):
        return {setup}

    def pre(self, data, objects):
        return {create}
"""


@pytest.mark.parametrize(
    ("setup", "create", "words"),
    [
        ("STATUS_FLT_DO_NOT_ATTACH", "FLT_PREOP_SUCCESS_NO_CALLBACK", "'f' does not attach"),
        ("STATUS_SUCCESS", "data.complete(STATUS_DISK_FULL)", "do not let the root of"),
    ],
)
def test_a_mount_waits_for_its_instances(
    drive: Callable[..., Drive], tmp_path: Path, setup: str, create: str, words: str
) -> None:
    """A3.3: where an instance that is named does not set up, or a CREATE of the root fails, the mount fails."""
    made = drive(mount=False)
    option = drop_in(tmp_path / "filters", "f", REFUSES.format(setup=setup, create=create))
    done = run(STACKFS, "mount", made.src, made.mnt, "-o", option, "-o", "filter=f", check=False)
    assert done.returncode != 0 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not is_mounted(made.mnt)
    made.expected_log.append(words)


REFUSES_CLOSE = """
import errno, sys
from stackfs.benchmarks import plain_pyfuse3

class Full(plain_pyfuse3.PlainFilesystem):
    async def flush(self, fh):
        raise plain_pyfuse3.FUSEError(errno.EDQUOT)

plain_pyfuse3.PlainFilesystem = Full
plain_pyfuse3.main()
"""


def test_what_the_backing_filesystem_says_at_close_is_what_close_says(
    drive: Callable[..., Drive], tmp_path: Path, lanes: str
) -> None:
    """As one that is on the network does when a quota is used up: only the writer's close(2) can say so."""
    made = drive(mount=False)
    (tmp_path / "source").mkdir()
    with mounts.foreground([sys.executable, "-c", REFUSES_CLOSE, tmp_path / "source", made.src], made.src):
        made.mount(f"lanes={lanes}")
        fd = os.open(made.mnt / "file", os.O_CREAT | os.O_WRONLY)
        assert os.write(fd, b"data") == 4
        with pytest.raises(OSError) as refused:
            os.close(fd)
        assert refused.value.errno == errno.EDQUOT
        made.umount()
