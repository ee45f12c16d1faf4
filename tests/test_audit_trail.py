"""The audit trail itself, without a mount: nothing is lost, and no change of any file goes unnoticed or unnamed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import STACKFS, needs_root, run

from stackfs.filters.audit import records, trail
from stackfs.filters.audit import verify as verifying

FAST = trail.Settings(flush_interval=3600, sync=False)
UNCLEAN, TAMPERED = 9, 8


@dataclass
class Sample:
    """A trail, its key, and where its records lie: (segment, offset, length, sequence number)."""

    directory: Path
    key: records.KeyFile
    places: list[tuple[int, int, int, int]]
    sealed: int

    def at(self, segment: int, offset: int) -> int:
        """The record that holds this byte of the segment; the magic is its first record's."""
        return next(s for n, at, length, s in self.places if n == segment and max(offset, 8) < at + length)

    def first_after(self, segment: int, end: int) -> int:
        """The first record that does not lie whole before `end`."""
        return next(s for n, at, length, s in self.places if n == segment and at + length > end)


def write(directory: Path, settings: trail.Settings, count: int, end: str) -> None:
    opened = trail.open_trail(str(directory), f"{directory}.key", settings)
    for number in range(count):
        opened.trail.append(16, path=b"/file%d" % number, offset=number, size=1, pid=7, comm=b"program")
        if number % 3 == 2:
            opened.trail.flush()
    if end == "crash":
        time.sleep(0.1)  # the last record reaches the segment, unsealed
        os._exit(0)
    opened.close()


def make(directory: Path, settings: trail.Settings = FAST, count: int = 7, end: str = "close") -> Sample:
    child = multiprocessing.get_context("fork").Process(target=write, args=(directory, settings, count, end))
    child.start()
    child.join()
    places = []
    for number in records.segments(str(directory)):
        data, at = (directory / records.segment_name(number)).read_bytes(), 8
        while at < len(data):
            record = records.parse_record(data, at)
            places.append((number, at, record.length, record.sequence))
            at += record.length
    key = records.KeyFile.parse(Path(f"{directory}.key").read_text())
    return Sample(directory, key, places, records.Head.parse((directory / "head").read_bytes()).end)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    top = tmp_path_factory.mktemp("trails")
    return {
        "closed": make(top / "closed"),
        "crashed": make(top / "crashed", end="crash"),
        "segments": make(top / "segments", trail.Settings(flush_interval=3600, sync=False, segment_size=8192), 130),
    }


@pytest.fixture
def copy(samples: dict[str, Sample], tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "copy"


def check(directory: Path, sample: Sample) -> verifying.Report:
    return verifying.verify(str(directory), sample.key)


def test_untouched(samples: dict[str, Sample]) -> None:
    assert {name: check(each.directory, each).exit_code for name, each in samples.items()} == {
        "closed": 0, "crashed": UNCLEAN, "segments": 0}  # fmt: skip
    assert len(records.segments(str(samples["segments"].directory))) >= 3


def bits(name: str, size: int, every: bool) -> Iterator[int]:
    if every:
        yield from range(size * 8)
    else:  # one bit of each third byte (of each 29th, where there are many)
        yield from (byte * 8 + byte % 8 for byte in range(0, size, 29 if name == "segments" else 3))


def flip(name: str, samples: dict[str, Sample], copy: Path, every: bool) -> None:
    sample = samples[name]
    shutil.copytree(sample.directory, copy)
    for file in sorted(os.listdir(copy)):
        data = (copy / file).read_bytes()
        for bit in bits(name, len(data), every):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            (copy / file).write_bytes(changed)
            report = check(copy, sample)
            assert report.exit_code == TAMPERED, (file, bit, report)
            if file.endswith(".audit"):
                assert report.sequence == sample.at(int(file[:8]), bit // 8), (file, bit, report)
            else:
                assert report.what == file, (file, bit, report)
        (copy / file).write_bytes(data)


@pytest.mark.parametrize("name", ["closed", "crashed", "segments"])
def test_a_flipped_bit_is_found_and_named(name: str, samples: dict[str, Sample], copy: Path) -> None:
    flip(name, samples, copy, every=False)


@pytest.mark.long
@pytest.mark.parametrize("name", ["closed", "crashed"])
def test_every_flipped_bit_is_found_and_named(name: str, samples: dict[str, Sample], copy: Path) -> None:
    flip(name, samples, copy, every=True)


@pytest.mark.parametrize("name", ["closed", "crashed", "segments"])
def test_a_cut_is_found_and_named(name: str, samples: dict[str, Sample], copy: Path) -> None:
    """Any file cut at any length. What was written after the last seal of a crashed trail may end anywhere."""
    sample = samples[name]
    shutil.copytree(sample.directory, copy)
    for file in sorted(os.listdir(copy)):
        data = (copy / file).read_bytes()
        for end in range(0, len(data), 61 if name == "segments" else 3):
            (copy / file).write_bytes(data[:end])
            report = check(copy, sample)
            if name == "crashed" and file.endswith(".audit") and end >= sample.sealed:
                assert report.exit_code == UNCLEAN, (file, end, report)
                continue
            assert report.exit_code == TAMPERED, (file, end, report)
            if file.endswith(".audit"):
                assert report.sequence == sample.first_after(int(file[:8]), end), (file, end, report)
        (copy / file).write_bytes(data)


@pytest.mark.parametrize("name", ["closed", "crashed", "segments"])
def test_removed_doubled_and_swapped_records_are_named(name: str, samples: dict[str, Sample], copy: Path) -> None:
    sample = samples[name]
    shutil.copytree(sample.directory, copy)
    step = 5 if name == "segments" else 1
    for (number, at, length, sequence), following in zip(
        sample.places[::step], [*sample.places[1:], None][::step], strict=True
    ):
        file = copy / records.segment_name(number)
        data = file.read_bytes()
        before, record, after = data[:at], data[at : at + length], data[at + length :]
        file.write_bytes(before + after)
        report = check(copy, sample)
        if name == "crashed" and following is None:  # the last one, which no seal answers for
            assert report.exit_code == UNCLEAN
        else:
            assert (report.exit_code, report.sequence) == (TAMPERED, sequence), report
        file.write_bytes(before + record + record + after)
        assert (report := check(copy, sample)).exit_code == TAMPERED and report.sequence == sequence + 1, report
        if following is not None and following[0] == number:
            file.write_bytes(before + after[: following[2]] + record + after[following[2] :])
            assert (report := check(copy, sample)).exit_code == TAMPERED and report.sequence == sequence, report
        file.write_bytes(data)


def test_removed_renumbered_and_swapped_segments_are_named(samples: dict[str, Sample], copy: Path) -> None:
    sample = samples["segments"]
    numbers = records.segments(str(sample.directory))
    first = {number: next(s for n, _, _, s in sample.places if n == number) for number in numbers}
    for number in numbers:
        for renumber in (False, True):
            shutil.copytree(sample.directory, copy)
            (copy / records.segment_name(number)).unlink()
            for later in numbers[number:] if renumber else []:
                (copy / records.segment_name(later)).rename(copy / records.segment_name(later - 1))
            report = check(copy, sample)
            assert (report.exit_code, report.sequence) == (TAMPERED, first[number]), (number, renumber, report)
            shutil.rmtree(copy)
    for number in numbers[1:]:
        shutil.copytree(sample.directory, copy)
        one, two = copy / records.segment_name(number - 1), copy / records.segment_name(number)
        data = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(data)
        report = check(copy, sample)
        assert (report.exit_code, report.sequence) == (TAMPERED, first[number - 1]), report
        shutil.rmtree(copy)


def test_two_trails_mixed(samples: dict[str, Sample], tmp_path: Path) -> None:
    sample, other = samples["closed"], make(tmp_path / "other")
    files = ["head", "state", "00000001.audit"]
    for chosen in [{a, b} for a in files for b in files]:
        where = tmp_path / "mixed"
        shutil.copytree(sample.directory, where)
        for name in chosen:
            shutil.copy(other.directory / name, where / name)
        assert check(where, sample).exit_code == TAMPERED, chosen
        shutil.rmtree(where)
    with pytest.raises(records.FormatError, match="belongs to trail"):
        check(other.directory, sample)


def test_older_head_and_state(tmp_path: Path) -> None:
    """Put back as they were at an earlier seal, alone or together, with the end of the trail or without it."""
    where = tmp_path / "trail"
    opened = trail.open_trail(str(where), f"{where}.key", FAST)
    for number in range(4):
        opened.trail.append(16, path=b"/%d" % number)
        opened.trail.flush()
        shutil.copytree(where, tmp_path / f"then{number}")
    opened.close()
    key = records.KeyFile.parse(Path(f"{where}.key").read_text())
    newest = verifying.verify(str(where), key)
    for number in range(4):
        then = tmp_path / f"then{number}"
        for chosen in (["head"], ["state"], ["head", "state"], ["head", "00000001.audit"], ["00000001.audit"]):
            now = tmp_path / "now"
            shutil.copytree(where, now)
            for name in chosen:
                shutil.copy(then / name, now / name)
            report = verifying.verify(str(now), key)
            # Of the last seal before the end: just what a crash in the middle of the closing seal leaves.
            as_after_a_crash = chosen in (["head", "state"], ["state"]) and number == 3
            assert report.exit_code == (UNCLEAN if as_after_a_crash else TAMPERED), (number, chosen, report)
            shutil.rmtree(now)
        # All of it: genuine in itself. Only a digest noted elsewhere tells.
        noted = {newest.records: bytes.fromhex(newest.digest)}
        assert verifying.verify(str(then), key).exit_code == UNCLEAN
        assert verifying.verify(str(then), key, expected=noted).exit_code == TAMPERED
    assert verifying.verify(str(where), key, expected=noted).exit_code == 0


def strange(place: Path) -> None:
    place.unlink()
    place.mkdir()


@pytest.mark.parametrize("name", ["closed", "crashed"])
def test_whatever_lies_there_no_traceback(name: str, samples: dict[str, Sample], copy: Path) -> None:
    sample = samples[name]
    for file in sorted(os.listdir(sample.directory)):
        for change in (
            Path.unlink,
            lambda place: place.write_bytes(b""),
            lambda place: place.write_bytes(os.urandom(5000)),
            lambda place: place.write_bytes(bytes(place.stat().st_size)),
            lambda place: (place.unlink(), place.symlink_to("/etc/hostname")),
            lambda place: (place.unlink(), os.mkfifo(place)),
            strange,
        ):
            shutil.copytree(sample.directory, copy)
            change(copy / file)
            assert check(copy, sample).exit_code == TAMPERED, file
            list(records.read_trail(str(copy)))
            with pytest.raises(trail.TrailError):  # it is not gone on with either
                trail.open_trail(str(copy), None, FAST)
            shutil.rmtree(copy)


def test_zeros_behind_the_end_are_a_power_failure(samples: dict[str, Sample], copy: Path) -> None:
    for name, code in (("crashed", UNCLEAN), ("closed", TAMPERED)):
        shutil.copytree(samples[name].directory, copy)
        with open(copy / "00000001.audit", "ab") as file:
            file.write(bytes(300))
        assert check(copy, samples[name]).exit_code == code
        shutil.rmtree(copy)


def test_a_crashed_trail_goes_on_and_is_whole_again(samples: dict[str, Sample], copy: Path) -> None:
    sample = samples["crashed"]
    data = (sample.directory / "00000001.audit").read_bytes()
    for end in range(sample.sealed, len(data) + 1, 7):
        shutil.copytree(sample.directory, copy)
        (copy / "00000001.audit").write_bytes(data[:end])
        opened = trail.open_trail(str(copy), None, FAST)
        assert opened.recovered
        opened.trail.append(16, path=b"/again")
        assert opened.close()
        report = check(copy, sample)
        assert report.exit_code == 0 and len(report.recoveries) == 1, report
        assert [each.path for each in records.read_trail(str(copy))][-2] == b"/again"
        shutil.rmtree(copy)


# --- writing -----------------------------------------------------------------------------------------------------


def requests(directory: Path) -> list[records.Record]:
    return [each for each in records.read_trail(str(directory)) if each.kind == records.REQUEST]


def test_many_threads_through_a_tiny_ring_lose_nothing(tmp_path: Path) -> None:
    settings = trail.Settings(ring_size=32768, sync=False, segment_size=65536, flush_interval=0.02)
    opened = trail.open_trail(str(tmp_path / "trail"), str(tmp_path / "key"), settings)

    def fill(number: int) -> None:
        for count in range(500):
            assert opened.trail.append(16, path=b"/" + b"x" * (number * 97 % 3000), tid=number, offset=count)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert opened.close()
    found = requests(tmp_path / "trail")
    for number in range(16):
        assert [each.fields["offset"] for each in found if each.fields["tid"] == number] == list(range(500))
    key = records.KeyFile.parse((tmp_path / "key").read_text())
    assert verifying.verify(str(tmp_path / "trail"), key).exit_code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 300 KiB for the log."""
    place = tmp_path / "disk"
    place.mkdir()
    done = run("mount", "-t", "tmpfs", "-o", "size=300k,mode=700", "none", place, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr}")
    yield place
    run("umount", "-l", place)


def fill_up(opened: trail.OpenTrail, refused: list[int], first: int = 0, count: int = 4000) -> None:
    for number in range(first, first + count):
        if not opened.trail.append(16, path=b"/f", offset=number):
            refused.append(number)


@needs_root
def test_a_full_disk_holds_requests_up_and_loses_none(tmp_path: Path, small_disk: Path) -> None:
    settings = trail.Settings(ring_size=32768, sync=False, flush_interval=0.05)
    opened = trail.open_trail(str(small_disk / "trail"), str(tmp_path / "key"), settings)
    refused: list[int] = []
    writer = threading.Thread(target=fill_up, args=(opened, refused))
    writer.start()
    end = time.monotonic() + 20
    while not (opened.trail.waiting and opened.trail.error) and time.monotonic() < end:
        time.sleep(0.01)
    assert (opened.trail.waiting, opened.trail.error) == (1, errno.ENOSPC)
    assert opened.trail.next_trouble() == errno.ENOSPC
    run("mount", "-o", "remount,size=8m", small_disk)
    writer.join(20)
    assert opened.trail.next_trouble() == 0
    assert opened.close() and not refused
    assert [each.fields["offset"] for each in requests(small_disk / "trail")] == list(range(4000))
    key = records.KeyFile.parse((tmp_path / "key").read_text())
    assert verifying.verify(str(small_disk / "trail"), key).exit_code == 0


@needs_root
@pytest.mark.parametrize("full", ["refuse", "count", "wait"])
def test_what_a_full_ring_does(tmp_path: Path, small_disk: Path, full: str) -> None:
    """wait: after its patience with the disk it refuses, so that the drive can still be unmounted."""
    from stackfs.filters.audit._trail import Trail

    directory = os.open(small_disk, os.O_RDONLY)
    key = os.open(tmp_path / "key", os.O_CREAT | os.O_WRONLY)
    writer = Trail(directory, ring_size=32768, full=full, sync=False, flush_interval=0.05, patience=0.3)  # type: ignore[arg-type]
    writer.generate(key)
    writer.start([])
    opened = trail.OpenTrail(writer, str(small_disk), True, False, directory)
    refused: list[int] = []
    total = 0
    end = time.monotonic() + 20
    while (writer.error != errno.ENOSPC or len(refused) < 100) and time.monotonic() < end:
        fill_up(opened, refused, total, 200)
        total += 200
    assert writer.error == errno.ENOSPC and len(refused) >= 100
    counts = (writer.lost, writer.refused)
    assert counts == ((len(refused), 0) if full == "count" else (0, len(refused)))
    if full != "count":  # a release is never refused: it takes what is kept back, or is counted
        assert writer.append(18, must_pass=True) == (full == "refuse")
        assert writer.refused == len(refused)
    run("mount", "-o", "remount,size=8m", small_disk)
    assert opened.close()
    found = requests(small_disk)
    assert [each.fields["offset"] for each in found if each.operation == "write"] == [
        number for number in range(total) if number not in set(refused)
    ]
    told = [each.fields for each in records.read_trail(str(small_disk)) if each.kind == records.LOST]
    assert sum(each["lost"] for each in told) == writer.lost
    assert sum(each["refused"] for each in told) == writer.refused
    assert all(each["since"] for each in told)
    os.close(key)


def test_a_removed_trail_refuses(tmp_path: Path) -> None:
    settings = trail.Settings(sync=False, flush_interval=0.02)
    opened = trail.open_trail(str(tmp_path / "trail"), str(tmp_path / "key"), settings)
    shutil.rmtree(tmp_path / "trail")
    assert opened.trail.append(16)
    assert opened.trail.next_trouble() == errno.ENOENT
    assert opened.trail.gone and not opened.trail.append(16) and opened.trail.refused == 1
    assert not opened.close()
    assert opened.trail.next_trouble() is None


def test_private_and_the_key_never_overwritten(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make(tmp_path / "trail", count=3)
    finally:
        os.umask(old)
    where = tmp_path / "trail"
    assert stat.S_IMODE(where.stat().st_mode) == 0o700
    for each in [Path(f"{where}.key"), *where.iterdir()]:
        assert (stat.S_IMODE(each.stat().st_mode), each.stat().st_uid) == (0o600, os.geteuid()), each
    before = Path(f"{where}.key").read_bytes()
    with pytest.raises(trail.TrailError, match="never overwritten"):
        trail.open_trail(str(tmp_path / "second"), f"{where}.key", FAST)
    assert Path(f"{where}.key").read_bytes() == before
    trail.open_trail(str(where), f"{where}.key", FAST).close()  # a trail that is there needs none
    assert Path(f"{where}.key").read_bytes() == before
    where.chmod(0o750)
    with pytest.raises(trail.TrailError, match="open to others"):
        trail.open_trail(str(where), None, FAST)


def test_one_writer(tmp_path: Path) -> None:
    opened = trail.open_trail(str(tmp_path / "trail"), str(tmp_path / "key"), FAST)
    with pytest.raises(trail.TrailError, match="another instance"):
        trail.open_trail(str(tmp_path / "trail"), str(tmp_path / "key2"), FAST)
    assert opened.close() and not (tmp_path / "key2").exists()


WRITER = """
import sys
from stackfs.filters.audit import trail
opened = trail.open_trail(sys.argv[1], sys.argv[2], trail.Settings(sync=False))
opened.trail.append(16, path=b"/x")
opened.trail.flush()
print("flushed", flush=True)
sys.stdin.read()
"""


def memory_of(pid: int) -> Iterator[bytes]:
    with open(f"/proc/{pid}/mem", "rb", 0) as memory, open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            begin, end = (int(each, 16) for each in line.split()[0].split("-"))
            if "r" in line.split()[1] and "[v" not in line:
                memory.seek(begin)
                yield memory.read(end - begin)


@needs_root
def test_the_first_key_is_not_kept(tmp_path: Path) -> None:
    """It is nowhere in the memory of the process that writes the trail; the present key lies only in memory that is
    locked and that core dumps leave out."""
    arguments = [sys.executable, "-c", WRITER, str(tmp_path / "trail"), str(tmp_path / "key")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"flushed\n"
        text = (tmp_path / "key").read_bytes().split(b"\nkey ")[1].strip()
        first = bytes.fromhex(text.decode())
        current = records.State.parse((tmp_path / "trail/state").read_bytes()).key
        found = {"first": 0, "in hex": 0, "current": 0}
        for data in memory_of(writer.pid):
            for name, key in (("first", first), ("in hex", text), ("current", current)):
                found[name] += data.count(key)
        areas = Path(f"/proc/{writer.pid}/smaps").read_text().splitlines()
        flags = [line.split() for line in areas if line.startswith("VmFlags")]
        writer.communicate()
    assert found == {"first": 0, "in hex": 0, "current": 1}
    assert any({"dd", "lo"} <= set(each) for each in flags)


# --- the commands --------------------------------------------------------------------------------------------------


def audit(*arguments: str | Path, **keywords: object) -> subprocess.CompletedProcess[str]:
    return run(STACKFS, "audit", *arguments, check=False, **keywords)


def test_commands_say_it_in_a_line(samples: dict[str, Sample], tmp_path: Path) -> None:
    sample = samples["closed"]
    key = f"{sample.directory}.key"
    for arguments in (
        ("verify", tmp_path / "none", "--key", key),
        ("verify", sample.directory, "--key", tmp_path / "none"),
        ("verify", sample.directory, "--key", sample.directory / "00000001.audit"),
        ("verify", sample.directory, "--key", "/dev/null"),
        ("verify", sample.directory, "--key", key, "--expect", "nothing"),
        ("verify", tmp_path, "--key", key),
        ("verify", key, "--key", key),
        ("show", tmp_path),
        ("show", sample.directory, "--since", "infd"),
        ("show", sample.directory, "--since", ""),
        ("show", sample.directory, "--operation", "dance"),
        ("follow", tmp_path),
    ):
        done = audit(*arguments)
        assert done.returncode not in (0, 8, 9) and len(done.stderr.splitlines()) == 1, (arguments, done.stderr)
        assert "internal error" not in done.stderr, done.stderr


def test_verify_prints_the_end_to_be_noted(samples: dict[str, Sample]) -> None:
    sample = samples["closed"]
    key = f"{sample.directory}.key"
    done = audit("verify", sample.directory, "--key", key)
    (noted,) = re.findall(r"its end: (\d+:[0-9a-f]{64})", done.stdout)
    assert audit("verify", sample.directory, "--key", key, "--expect", noted).returncode == 0
    other = noted[:-1] + ("0" if noted[-1] != "0" else "1")
    assert audit("verify", sample.directory, "--key", key, "--expect", other).returncode == TAMPERED


def test_show_escapes_chooses_and_ends_quietly(tmp_path: Path) -> None:
    opened = trail.open_trail(str(tmp_path / "trail"), str(tmp_path / "key"), FAST)
    opened.trail.append(16, path=b"/evil\x1b[2J\n\xff", comm=b"a\x1bb", pid=1, time=1_000_000_000)
    opened.trail.append(15, path=b"/deleted", flags=records.PATH_DELETED, pid=12, time=3_000_000_000)
    for number in range(3000):
        opened.trail.append(14, path=b"/plain%d" % number, status=-0x3FFFFFDE, error=errno.EACCES)
    opened.close()
    table = audit("show", tmp_path / "trail").stdout
    assert "\x1b" not in table and len(table.splitlines()) == 3004 and "/deleted  (deleted)" in table
    shown = audit("show", tmp_path / "trail", "--json", "--until", "1970-01-01T00:00:02+00:00").stdout
    assert "\\u001b[2J\\n\\udcff" in shown and shown.count("\n") == 1

    def count(*arguments: str) -> int:
        return audit("show", tmp_path / "trail", "--json", *arguments).stdout.count("\n")

    found = [count("--process", "12"), count("--path", "/plain29?"), count("--operation", "open", "-n", "5"),
             count("--status", "EACCES"), count("--status", "ok"), count("--since", "1h")]  # fmt: skip
    assert found == [1, 10, 5, 3000, 2, 3000]
    ends = run("bash", "-c", f"{STACKFS} audit show {tmp_path}/trail | head -1; echo ${{PIPESTATUS[0]}}")
    assert ends.stderr == "" and "Traceback" not in ends.stdout


def test_follow_goes_on_across_segments(tmp_path: Path) -> None:
    settings = trail.Settings(sync=False, segment_size=16384, flush_interval=0.05)
    opened = trail.open_trail(str(tmp_path / "trail"), str(tmp_path / "key"), settings)
    follower = subprocess.Popen(
        [STACKFS, "audit", "follow", str(tmp_path / "trail"), "--operation", "write"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert follower.stdout is not None
        follower.stdout.readline(), follower.stdout.readline()  # the heading: it looks from now on
        for number in range(600):
            opened.trail.append(16, path=b"/f", offset=number, size=1)
        seen = [re.search(r"\[(\d+)\+1\]", follower.stdout.readline()) for _ in range(600)]
        assert [int(each.group(1)) for each in seen if each] == list(range(600))
    finally:
        follower.terminate()
        follower.wait(10)
        follower.stdout.close()  # type: ignore[union-attr]
    assert opened.close()
    assert len(records.segments(str(tmp_path / "trail"))) > 3


@pytest.mark.long
def test_a_million_records(tmp_path: Path) -> None:
    opened = trail.open_trail(str(tmp_path / "trail"), str(tmp_path / "key"), trail.Settings(sync=False))
    for number in range(1_000_000):
        opened.trail.append(16, path=b"/some/where/file", offset=number, size=1)
    assert opened.close()
    begun = time.monotonic()
    done = audit("verify", tmp_path / "trail", "--key", tmp_path / "key", timeout=300)
    assert done.returncode == 0, done.stdout
    verified = time.monotonic() - begun
    assert audit("show", tmp_path / "trail", "--path", "/none", timeout=300).returncode == 0
    print(f"verify {verified:.0f} s, show {time.monotonic() - begun - verified:.0f} s")
    assert time.monotonic() - begun < 240
