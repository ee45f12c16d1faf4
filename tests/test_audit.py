"""audit on a mounted drive: what programs do is in the trail, whatever becomes of the daemon or the log's disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import STACKFS, Drive, run


def options(top: Path, *more: str) -> str:
    return ",".join(["filter=audit", f"audit.directory={top}/trail", f"audit.key={top}/key", *more])


def shown(top: Path, *arguments: str) -> list[dict[str, object]]:
    lines = run(STACKFS, "audit", "show", top / "trail", "--json", *arguments).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_each_request_has_one_right_record(drive: Callable[..., Drive], tmp_path: Path, lanes: str) -> None:
    made = drive(options(tmp_path))
    run("sh", "-c", f"cd {made.mnt} && mkdir d && echo 0123456789 > d/a && mv d/a d/b && chmod 600 d/b && ln d/b c "
        "&& ln -s x l && readlink l && cat d/b && ls d && rm c && rm d/b && rmdir d; cat nothing; true")  # fmt: skip
    made.umount()
    found = [each for each in shown(tmp_path) if each["kind"] == "request" and each["comm"] != ""]
    counted = {
        (name, path): sum(each["operation"] == name and each["path"] == path for each in found)
        for name, path in [("mkdir", "/d"), ("create", "/d/a"), ("write", "/d/a"), ("rename", "/d/a"), ("unlink", "/c"),
                           ("setattr", "/d/b"), ("symlink", "/l"), ("readlink", "/l"), ("unlink", "/d/b"),
                           ("rmdir", "/d")]
    }  # fmt: skip
    assert set(counted.values()) == {1}, counted
    write = next(each for each in found if each["operation"] == "write")
    assert (write["offset"], write["length"], write["information"], write["outcome"]) == (0, 11, 11, "ok")
    assert write["comm"] == "sh" and write["uid"] == 0 and write["pid"] == write["tid"] != 0
    rename = next(each for each in found if each["operation"] == "rename")
    assert (rename["comm"], rename["other"]) == ("mv", "/d/b")
    link = next(each for each in found if each["operation"] == "link")
    assert (link["path"], link["other"]) == ("/d/b", "/c")
    missing = next(each for each in found if each["path"] == "/nothing")
    assert missing["outcome"] == "ENOENT" and missing["comm"] == "cat"
    numbers = [each["request"] for each in found if each["operation"] != "lookup"]
    assert len(numbers) == len(set(numbers))
    assert [each["operation"] for each in shown(tmp_path, "--operation", "rename")] == ["rename"]
    assert {each["comm"] for each in shown(tmp_path, "--process", "mv")} == {"mv"}
    assert shown(tmp_path, "--path", "/no*", "--status", "ENOENT") == [missing]
    assert run(STACKFS, "audit", "verify", tmp_path / "trail", "--key", tmp_path / "key").returncode == 0


def test_ten_thousand_requests_lose_nothing(drive: Callable[..., Drive], tmp_path: Path) -> None:
    made = drive(options(tmp_path, "audit.operations=write", "audit.ring_size=64K"), "cache=strict")
    code = "import os,sys; fd=os.open(sys.argv[1],os.O_CREAT|os.O_WRONLY); [os.pwrite(fd,b'x',n) for n in range(10000)]"
    run("python3", "-c", code, made.mnt / "f")
    made.umount()
    found = [each for each in shown(tmp_path) if each["kind"] == "request"]
    assert sorted(each["offset"] for each in found) == list(range(10000))  # type: ignore[type-var]


def test_a_killed_daemon_leaves_an_unclean_end_and_the_next_goes_on(
    drive: Callable[..., Drive], tmp_path: Path
) -> None:
    made = drive(options(tmp_path, "audit.flush_interval=0.05"))
    run("sh", "-c", f"for i in 1 2 3 4 5; do echo $i > {made.mnt}/$i; done")
    time.sleep(0.4)
    os.kill(made.pid, signal.SIGKILL)
    made.wait_gone()
    command = (STACKFS, "audit", "verify", tmp_path / "trail", "--key", tmp_path / "key")
    assert run(*command, check=False).returncode == 9
    made.mount(options(tmp_path))
    run("touch", made.mnt / "again")
    made.umount()
    done = run(*command, check=False)
    assert done.returncode == 0, done.stdout
    assert any(each["path"] == "/again" for each in shown(tmp_path) if each["kind"] == "request")


def test_what_cannot_be_written_is_refused_at_mount(drive: Callable[..., Drive], tmp_path: Path) -> None:
    made = drive(mount=False)
    made.expected_log = ["not mounted"]
    for option, words in (
        (f"audit.directory={made.src}/trail,audit.key={tmp_path}/k", "lies inside"),
        (f"audit.directory={tmp_path}/trail", "key"),
        (f"audit.directory={tmp_path}/trail,audit.key={tmp_path}/k,audit.operations=everything", "everything"),
        (f"audit.directory={tmp_path}/trail,audit.key={tmp_path}/k,audit.full=maybe", "maybe"),
    ):
        done = run(STACKFS, "mount", made.src, made.mnt, "-o", f"filter=audit,{option}", check=False)
        assert done.returncode != 0 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_two_volumes_do_not_share_a_trail(drive: Callable[..., Drive], tmp_path: Path) -> None:
    made = drive(options(tmp_path))
    other = drive(mount=False)
    other.expected_log = ["not mounted"]
    done = run(STACKFS, "mount", other.src, other.mnt, "-o", options(tmp_path), check=False)
    assert done.returncode != 0 and "another instance" in done.stderr and len(done.stderr.splitlines()) == 1
    made.umount()
    for each in [tmp_path / "trail", *(tmp_path / "trail").iterdir(), tmp_path / "key"]:
        info = each.stat()
        wanted = 0o700 if each.is_dir() else 0o600
        assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (wanted, os.geteuid(), os.getegid()), each
    key = (tmp_path / "key").read_text().split()[-1]
    assert len(key) == 64 and not any(key in log.read_text() for log in Path("/var/log/stackfs").glob("*.log"))


def test_an_exec_changes_the_name_at_once(drive: Callable[..., Drive], tmp_path: Path) -> None:
    """The shell opens, the program that it becomes writes, in the same thread, as fast as it can."""
    made = drive(options(tmp_path), "cache=strict")
    run("sh", "-c", f"for i in $(seq 60); do cat /proc/version >{made.mnt}/$i; done")
    made.umount()
    found = Counter((each["operation"], each["comm"]) for each in shown(tmp_path))
    assert (found["create", "sh"], found["write", "cat"]) == (60, 60), found
    assert found["write", "sh"] == found["create", "cat"] == 0


def test_a_directory_listed_is_one_record(drive: Callable[..., Drive], tmp_path: Path) -> None:
    made = drive(options(tmp_path, "audit.operations=readdir+lookup"), mount=False)
    for number in range(50):
        (made.src / f"f{number}").touch()
    made.mount(options(tmp_path, "audit.operations=readdir+lookup"))
    run("python3", "-c", "import os,sys; assert len(os.listdir(sys.argv[1])) == 50", made.mnt)
    made.umount()
    assert Counter(each["operation"] for each in shown(tmp_path, "--process", "python3"))["lookup"] == 0
    assert all(each["path"] == "/" for each in shown(tmp_path, "--process", "python3"))
    assert 1 <= len(shown(tmp_path, "--process", "python3")) <= 2    # the second one finds the end


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 300 KiB for the log, mounted beside the drive."""
    place = tmp_path / "disk"
    place.mkdir()
    if run("mount", "-t", "tmpfs", "-o", "size=300k,mode=700", "none", place, check=False).returncode != 0:
        pytest.skip("cannot mount a tmpfs")
    yield place
    run("umount", "-l", place)


WRITES = "import os,sys; fd=os.open(sys.argv[1],os.O_CREAT|os.O_WRONLY); [os.pwrite(fd,b'x',n) for n in range(3000)]"


def test_a_full_disk_holds_the_drive_up_until_there_is_room(
    drive: Callable[..., Drive], tmp_path: Path, small_disk: Path
) -> None:
    made = drive(mount=False)
    made.expected_log = ["the trail can"]
    made.mount(f"filter=audit,audit.directory={small_disk}/trail,audit.key={tmp_path}/key,audit.ring_size=64K,"
               "audit.operations=write,audit.flush_interval=0.1", "cache=strict")  # fmt: skip
    script = f"timeout -s KILL 60 python3 -c \"{WRITES}\" {made.mnt}/f & sleep 3; mount -o remount,size=8m {small_disk}"
    run("bash", "-c", f"{script}; wait %1")
    assert "No space left" in made.log.read_text()
    made.umount()
    lines = run(STACKFS, "audit", "show", small_disk / "trail", "--json", "--operation", "write").stdout.splitlines()
    assert [json.loads(each)["offset"] for each in lines] == list(range(3000))
    assert run(STACKFS, "audit", "verify", small_disk / "trail", "--key", tmp_path / "key").returncode == 0


def test_a_trail_taken_away_refuses_and_the_drive_still_unmounts(drive: Callable[..., Drive], tmp_path: Path) -> None:
    made = drive(options(tmp_path, "audit.flush_interval=0.05"))
    made.expected_log = ["the trail was removed", "records are missing"]
    shutil.rmtree(tmp_path / "trail")
    run("touch", made.mnt / "a", check=False)
    end = time.monotonic() + 20
    while "the trail was removed" not in made.log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    done = run("touch", made.mnt / "b", check=False)
    assert done.returncode != 0 and "No space left" in done.stderr and not (made.src / "b").exists()
    made.umount()
