"""The audit trail: one right record for each request, and no change that goes unnoticed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import STACKFS, Drive, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackfs.filters.audit import records, trail
from stackfs.filters.audit import verify as verifying


def written(directory: Path, count: int = 40) -> tuple[Path, records.KeyFile]:
    """A closed trail of that many requests, sealed several times, and its key."""
    key = directory / "key"
    opened = trail.open_trail(str(directory / "trail"), str(key), trail.Settings(flush_interval=60, sync=False))
    for number in range(count):
        opened.trail.append(16, path=b"/file%d" % number, offset=number, size=1, pid=7, comm=b"program")
        if number % 10 == 9:
            opened.trail.flush()
    assert opened.close()
    return directory / "trail", records.KeyFile.parse(key.read_text())


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, records.KeyFile]:
    return written(tmp_path_factory.mktemp("trail"))


def check(directory: Path, key: records.KeyFile) -> verifying.Report:
    return verifying.verify(str(directory), key)


def test_an_untouched_trail_is_clean(sample: tuple[Path, records.KeyFile]) -> None:
    report = check(*sample)
    assert (report.outcome, report.exit_code) == ("clean", 0)
    assert sum(record.kind == records.REQUEST for record in records.read_trail(str(sample[0]))) == 40


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found(
    sample: tuple[Path, records.KeyFile], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    where = tmp_path_factory.mktemp("flipped") / "trail"
    shutil.copytree(sample[0], where)
    name = data.draw(st.sampled_from(sorted(each.name for each in where.iterdir() if each.suffix == ".audit")))
    content = bytearray((where / name).read_bytes())
    at = data.draw(st.integers(0, len(content) * 8 - 1))
    content[at // 8] ^= 1 << at % 8
    (where / name).write_bytes(content)
    report = check(where, sample[1])
    assert report.exit_code == 8, (name, at, report)
    before = list(records.read_trail(str(sample[0])))
    position = 8
    for record in before:
        if position <= at // 8 < position + record.length:
            assert report.sequence == record.sequence, (at, report)
        position += record.length
    shutil.rmtree(where.parent)


@pytest.mark.parametrize("file", ["head"])
def test_a_flipped_bit_of_the_head_is_found(sample: tuple[Path, records.KeyFile], tmp_path: Path, file: str) -> None:
    size = (sample[0] / file).stat().st_size
    for at in range(0, size * 8, 37):
        where = tmp_path / str(at)
        shutil.copytree(sample[0], where)
        content = bytearray((where / file).read_bytes())
        content[at // 8] ^= 1 << at % 8
        (where / file).write_bytes(content)
        assert check(where, sample[1]).exit_code == 8, at
        shutil.rmtree(where)


def test_a_removed_record_and_a_cut_tail_are_found(sample: tuple[Path, records.KeyFile], tmp_path: Path) -> None:
    segment = sample[0] / "00000001.audit"
    content, position = segment.read_bytes(), 8
    for record in records.read_trail(str(sample[0])):
        end = position + record.length
        for name, changed in (("removed", content[:position] + content[end:]), ("cut", content[:position])):
            where = tmp_path / f"{name}{record.sequence}"
            shutil.copytree(sample[0], where)
            (where / segment.name).write_bytes(changed)
            report = check(where, sample[1])
            assert report.exit_code == 8, (name, record.sequence, report)
            if name == "removed" and end < len(content):
                assert report.sequence in (record.sequence, record.sequence + 1), report
            shutil.rmtree(where)
        position = end


def test_the_key_file_is_written_once_and_private(tmp_path: Path) -> None:
    directory, _ = written(tmp_path)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    with pytest.raises(trail.TrailError):
        trail.open_trail(str(tmp_path / "second"), str(tmp_path / "key"), trail.Settings())


def options(top: Path, *more: str) -> str:
    return ",".join(["filter=audit", f"audit.directory={top}/trail", f"audit.key={top}/key", *more])


def shown(top: Path, *arguments: str) -> list[dict[str, object]]:
    lines = run(STACKFS, "audit", "show", top / "trail", "--json", *arguments).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_each_request_has_one_right_record(drive: Callable[..., Drive], tmp_path: Path) -> None:
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
