"""`stackfs bench`: its arithmetic, its table of targets, its documents, and a run of seconds on real mounts."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, STACKFS, Drive, is_mounted, needs_root

from stackfs.benchmarks import bench, jobs, report, sides, targets
from stackfs.benchmarks.jobs import JOBS, Outcome
from stackfs.benchmarks.report import Results
from stackfs.benchmarks.sides import FILTERS, SIDES
from stackfs.errors import UsageError

ABOUT = {"date": "2026-01-02", "cpu": "2 x CPU", "kernel": "6.1", "python": "3.11", "commit": "abc1234",
         "stackfs": "0.1.0", "pyfuse3": "3.4", "trio": "0.27"}  # fmt: skip


def results(ours: float = 2.0) -> Results:
    """Every target measured: our side `ours` times as fast as the other, for half of its CPU time."""
    found = Results(dict(ABOUT), 3, 1.5, pair=[50.0, 40.0, 45.0], cipher=[(900.0, 1000.0)])
    for target in targets.TARGETS:
        for side, rate, cpu in ((target.ours, 1000.0 * ours, 10e-6), (target.theirs, 1000.0, 20e-6)):
            if found.figure(target.mode, target.job, side) is None:
                for factor in (0.5, 1.0, 3.0):             # the median is the middle one
                    seconds = 1 / (rate * factor)
                    found.add(target.mode, target.job, side, Outcome(1, seconds, None if side == "directory" else cpu))
    return found


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def test_a_figure_is_the_median_of_its_rounds() -> None:
    figure = report.Figure()
    for operations, seconds, cpu in ((1000, 1.0, 0.010), (9000, 1.0, 0.180), (4000, 2.0, 0.060)):
        figure.add(Outcome(operations, seconds, cpu))
    assert figure.rate == 2000
    assert figure.cpu_us == pytest.approx(15)
    alone = report.Figure()
    alone.add(Outcome(10, 2.0))
    assert (alone.rate, alone.cpu_us) == (5.0, None)


def verdict(found: Results, job: str, ours: str, measure: str = "rate") -> report.Verdict:
    (one,) = [each for each in found.verdicts()
              if (each.target.job, each.target.ours, each.target.measure) == (job, ours, measure)]  # fmt: skip
    return one


def test_a_ratio_is_held_against_its_target() -> None:
    found = results()
    assert verdict(found, "read_4k_1", "native").ratio == pytest.approx(2.0)
    assert verdict(found, "read_4k_1", "native").met is True
    assert verdict(found, "read_4k_1", "python").met is False            # 3 is wanted
    assert not found.all_met()
    assert results(3.5).all_met()


def test_of_cpu_time_less_is_better() -> None:
    found = results()
    half = verdict(found, "read_4k_1", "native", "cpu")
    assert (half.ratio, half.met) == (pytest.approx(0.5), True)
    found.figures["direct", "read_4k_1", "native"].cpu = [21e-6]
    assert verdict(found, "read_4k_1", "native", "cpu").met is False


def test_what_was_not_measured_is_not_met() -> None:
    found = results(3.5)
    del found.figures["direct", "stat", "passthrough_ll"]
    one = verdict(found, "stat", "native")
    assert (one.ratio, one.met) == (None, None)
    assert not found.all_met()
    row = next(row for row, _ in report.target_rows(found, "lanes") if row[0].startswith("stat"))
    assert row[-1] == "not measured"


@pytest.mark.parametrize(("pair", "met"), [([50.0], True), ([60.0], False), ([], None)])
def test_the_stack_alone_has_a_limit(pair: list[float], met: bool | None) -> None:
    found = results(3.5)
    found.pair = pair
    assert found.pair_met is met
    assert found.all_met() is bool(met)


@pytest.mark.parametrize(("cipher", "met"), [
    ([(900.0, 1000.0)], True), ([(800.0, 1000.0), (900.0, 1000.0), (820.0, 1000.0)], False), ([], None)])  # fmt: skip
def test_the_cipher_is_held_against_openssl(cipher: list[tuple[float, float]], met: bool | None) -> None:
    found = results(3.5)
    found.cipher = cipher
    assert found.cipher_met is met
    assert found.all_met() is bool(met)


def test_json_holds_everything() -> None:
    found = results()
    found.notes.append("a note")
    found.lanes["native"] = "irp"
    value = json.loads(json.dumps(found.as_json()))
    again = Results.from_json(value)
    assert again.as_json() == value
    assert again == found
    assert {each["met"] for each in value["targets"]} == {True, False}
    with pytest.raises(ValueError, match="schema"):
        Results.from_json({**value, "schema": 99})
    with pytest.raises(ValueError, match="not a result of stackfs bench"):
        Results.from_json({"schema": report.SCHEMA})


@pytest.mark.parametrize(("said", "code", "wrong"), [
    ('noise {"jobs": [{"error": 0, "read": {"total_ios": 600, "iops": 300.0}, "write": {"total_ios": 0, "iops": 0}},'
     '{"error": 0, "read": {"total_ios": 200, "iops": 100.0}, "write": {"total_ios": 400, "iops": 200.0}}]}', 0, None),
    ('{"jobs": [{"error": 5, "read": {"total_ios": 1, "iops": 1}, "write": {"total_ios": 0}}]}', 0, "failed"),
    ('{"jobs": [{"error": 0, "read": {"total_ios": 0}, "write": {"total_ios": 0}}]}', 0, "nothing"),
    ("", 1, "fio: no such file"),
    ("no JSON", 0, "failed"),
])  # fmt: skip
def test_fio_is_read(said: str, code: int, wrong: str | None) -> None:
    job = JOBS["mixed_4k_4"]
    if wrong is None:
        assert jobs.read_fio(job, code, said, "") == Outcome(1200, 2.0)
    else:
        with pytest.raises(jobs.JobFailed, match=wrong):
            jobs.read_fio(job, code, said, "fio: no such file\n")


def test_cpu_time_of_another_process() -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        assert 0.2 <= jobs.cpu_seconds(process.pid) < 1
        process.stdin.close()
    with pytest.raises(jobs.JobFailed):
        jobs.cpu_seconds(process.pid)


# ---- the targets, and what is planned for them ----------------------------------------------------------------------


def test_the_table_of_targets() -> None:
    """What must be reached, written out: ours / theirs, job, bound."""
    written = {
        ("bypass", "directory", "rate"): {
            **{f"{kind}_1": 0.95 for kind in ("read_4k", "write_4k", "read_1m", "write_1m")},
            **{f"{kind}_4": 0.75 for kind in ("read_4k", "write_4k", "read_1m", "write_1m")},
        },
        ("native", "passthrough_ll", "rate"): {
            "read_4k_1": 1.2, "read_4k_4": 0.9,
            **{f"{kind}_{n}": 1.0 for kind in ("write_4k", "read_1m", "write_1m") for n in (1, 4)},
            **dict.fromkeys(("stat", "readdir", "create", "unlink", "unpack"), 1.0),
        },
        ("native", "passthrough_ll", "cpu"): {"read_4k_1": 1.0},
        ("python", "plain", "rate"): {"read_4k_1": 3.0, "read_4k_4": 2.5},
        ("irp_0", "plain", "rate"): {"read_4k_4": 0.6, "read_4k_1": 0.4},
        ("demo", "plain", "rate"): {"read_4k_4": 0.6, "read_4k_1": 0.4, "stat": 0.8, "create": 1.0, "unlink": 1.0},
        ("encryption", "gocryptfs", "rate"): {
            "read_1m_1": 1.5, "write_1m_1": 1.5, "read_4k_1": 1.3, "write_4k_1": 1.5,
            **dict.fromkeys(("create", "stat", "unlink", "unpack", "readdir"), 1.0),
        },
        ("encryption", "gocryptfs", "cpu"): {"read_1m_1": 0.8, "write_1m_1": 0.8},
    }  # fmt: skip
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for each in targets.TARGETS:
        found.setdefault((each.ours, each.theirs, each.measure), {})[each.job] = each.bound
        assert each.job in JOBS and each.ours in SIDES and each.theirs in SIDES
        assert each.mode == ("cached" if each.ours == "encryption" else "direct")
    assert found == written
    assert SIDES["native"].filters == ("audit", "counter", "budget")
    assert SIDES["demo"].filters == ("passthrough", "audit")
    assert targets.PAIR_LIMIT == 60


def test_the_document_explains_every_job_and_side() -> None:
    if not (ROOT / "docs/performance.md").exists():
        pytest.skip("needs the source tree")
    text = (ROOT / "docs/performance.md").read_text()
    for job in JOBS.values():
        assert f"`{re.sub('_[14]$', '', job.name)}`" in text, job.name
    for side in SIDES.values():
        assert f"`{re.sub('_[0-9]+$', '', side.name)}`" in text, side.name


def test_the_plan_has_what_the_targets_need() -> None:
    scenes = bench.plan(bench.Settings())
    assert [(scene.kind, scene.mode) for scene in scenes] == [
        ("data", "direct"), ("metadata", "direct"), ("data", "cached"), ("metadata", "cached")]  # fmt: skip
    cells = {(scene.mode, job.name, side) for scene in scenes for job, names in scene.cells for side in names}
    assert cells >= {(each.mode, each.job, side) for each in targets.TARGETS for side in (each.ours, each.theirs)}
    assert {("direct", "remove", "native"), ("direct", "open_read_close", "passthrough_ll")} <= cells
    assert ("cached", "read_1m_1", "securefs") in cells
    assert not {side for mode, _, side in cells if mode == "direct"} & {"bindfs", "gocryptfs", "encryption", "device_3"}
    assert {side for mode, _, side in cells if mode == "cached"} == {"encryption", "gocryptfs", "securefs"}


def test_the_full_plan_has_everything() -> None:
    scenes = bench.plan(bench.Settings(full=True))
    sides = {(scene.kind, scene.mode): names for scene in scenes for _, names in scene.cells}
    assert sides["data", "cached"] == list(SIDES)
    assert sides["data", "direct"] == sides["metadata", "direct"] == [side for side in SIDES if side != "encryption"]
    assert sides["metadata", "cached"] == ["encryption", "gocryptfs", "securefs"]
    assert {job.name for scene in scenes for job, _ in scene.cells} == set(JOBS)
    assert {f"{lane}_{count}" for lane in ("device", "irp") for count in (0, 1, 3, 10)} <= set(SIDES)


def test_what_one_load_makes_another_takes_away() -> None:
    (scene,) = bench.plan(bench.Settings(jobs=("create",), sides=("nat*",)))
    assert [(job.name, names) for job, names in scene.cells] == [("create", ["native"]), ("unlink", ["native"])]
    with pytest.raises(UsageError, match="no side is called 'nothing'"):
        bench.plan(bench.Settings(sides=("nothing",)))


def test_every_side_begins_and_ends_equally_often() -> None:
    turns = [bench._turn(["a", "b", "c"], number) for number in range(6)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert sorted(turn[0] for turn in turns) == ["a", "a", "b", "b", "c", "c"]
    assert sorted(turn[-1] for turn in turns) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize(("status", "lane"), [
    ({"bypassed_opens": 1, "requests": {"device": {"READ": 9}}}, "bypass"),
    ({"bypassed_opens": 0, "requests": {"irp": {"LOOKUP": 5}, "device": {"READ": 1}, "refused": {}}}, "device"),
    ({"bypassed_opens": 0, "requests": {"irp": {"READ": 5}, "device": {}}}, "irp"),
    ({"bypassed_opens": 0, "requests": {"irp": {"OPEN": 1}}}, None),
    ({}, None),
])  # fmt: skip
def test_the_lane_is_read_from_the_status(status: dict[str, object], lane: str | None) -> None:
    assert sides.lane_of(status) == lane


# ---- documents ------------------------------------------------------------------------------------------------------


def test_the_newest_result_stands_first() -> None:
    text = "# Title\n\n## Kept results\n\n<!-- Newest first. -->\n"
    once = report.keep(text, "### one\n\ntext\n")
    twice = report.keep(once, "### two\n\ntext\n")
    assert once.startswith(text) and twice.startswith(text)
    assert re.findall("^### (.*)", twice, re.MULTILINE) == ["two", "one"]
    with pytest.raises(ValueError):
        report.keep("# Title\n", "### one\n")


def run_bench(*words: str | Path, timeout: float = 100, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["timeout", "-s", "INT", "-k", "20", str(timeout), STACKFS, "bench", *map(str, words)],
        cwd="/", env={**os.environ, **more}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("ours", "code"), [(2.0, 1), (3.5, 0)])
def test_check_fails_when_a_target_is_missed(ours: float, code: int, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(results(ours).as_json()))
    done = run_bench("--from", tmp_path / "bench.json", "--check")
    assert (done.returncode, done.stderr) == (code, "")
    assert ("NOT met" in done.stdout) == bool(code)
    assert run_bench("--from", tmp_path / "bench.json").returncode == 0


def test_a_result_is_kept_in_a_document(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(results().as_json()))
    (tmp_path / "kept.md").write_text("# Figures\n\n## Kept results\n\n### 2020-01-01, older\n\nolder\n")
    done = run_bench("--from", tmp_path / "bench.json", "--record", tmp_path / "kept.md")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "kept.md").read_text()
    assert re.findall("^### (.*)", text, re.MULTILINE) == ["2026-01-02, abc1234", "2020-01-01, older"]
    assert re.search(r"\| 4 KiB random read, 1 job, /s \| one Python filter \| plain pyfuse3 .*\| NOT met \|", text)


@pytest.mark.parametrize(("words", "message"), [
    (["--from", "/nonexistent.json"], "No such file"),
    (["--record", "/etc/hostname", "--from", "x"], "has no heading '## Kept results'"),
    (["--job", "nothing"], "no job is called 'nothing'"),
    (["--directory", "/nonexistent"], "no such directory"),
])  # fmt: skip
def test_bad_input_gets_one_line(words: list[str], message: str) -> None:
    done = run_bench(*words)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1 and done.stdout == ""


def test_the_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "bench.json").write_text(json.dumps(results().as_json()))
    done = run_bench("--from", tmp_path / "bench.json", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bench.json", "bench.md", "bench.png", "bench.svg"]  # fmt: skip
    assert (tmp_path / "out/bench.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "out/bench.svg").read_text()
    assert "bench.svg" in (tmp_path / "out/bench.md").read_text()


# ---- the real thing -------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.timeout(200)
def test_a_short_run(tmp_path: Path) -> None:
    """Real mounts, out comes JSON; a peer that does not work is left out with its reason, and the rest goes on."""
    broken = tmp_path / "bin" / "gocryptfs"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'out of order' >&2\nexit 1\n")
    broken.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    chosen = ["directory", "native", "irp_3", "passthrough_ll", "plain", "gocryptfs"]
    words = ["--job", "read_4k_1", "--job", "write_1m_4", "--job", "create", "--job", "unpack", "--job", "readdir"]
    done = run_bench(
        "--json", "--quick", "--seconds", "0.1", "--directory", tmp_path / "tmp", *words,
        *(word for side in chosen for word in ("--side", side)), timeout=160,
        PATH=f"{broken.parent}:{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    assert Results.from_json(value).as_json() == value
    figures = {(each["job"], each["side"]): each for each in value["figures"]}
    working = [side for side in chosen if side != "gocryptfs"]
    ran = ("read_4k_1", "write_1m_4", "create", "unlink", "unpack", "remove", "readdir")
    assert set(figures) == {(job, side) for job in ran for side in working}, value["notes"]
    for (_, side), figure in figures.items():
        assert figure["rate"] > 0 and len(figure["rates"]) == 1
        assert (figure["cpu_us"] is None) == (side == "directory")
    assert value["sides"]["irp_3"]["lane"] == "irp"
    assert value["native_pair"]["ns"]
    assert any("gocryptfs is left out" in note and "out of order" in note for note in value["notes"])
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tmp_path) in line]


@needs_root
@pytest.mark.long
def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    done = run_bench(
        "--job", "read_4k_1", "--side", "irp_0", "--seconds", "60", "--directory", tmp_path, timeout=12
    )  # fmt: skip
    assert done.returncode == 124, done.stderr              # timeout's: it had to interrupt, and not to kill
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


# ---- the benchmark's own filters, dropped in as a stranger's --------------------------------------------------------


@needs_root
def test_the_budget_is_watched_and_kept(drive: Callable[..., Drive]) -> None:
    made = drive(f"filterdir={FILTERS},filter=counter,filter=budget,budget.limit=64K,filter=onlooker,cache=strict")
    assert is_mounted(made.mnt)
    (made.src / "file").write_bytes(bytes(100_000))
    file = os.open(made.mnt / "file", os.O_RDWR)
    try:
        assert len(os.pread(file, 65536, 0)) == 65536
        for spend in (lambda: os.pread(file, 1, 0), lambda: os.pwrite(file, b"x", 0)):
            with pytest.raises(OSError) as refused:
                spend()
            assert refused.value.errno == errno.EDQUOT
    finally:
        os.close(file)
    assert (made.src / "file").read_bytes() == bytes(100_000)


def test_the_native_filters_register_what_they_say() -> None:
    from stackfs.api import IRP_MJ_READ, IRP_MJ_WRITE
    from stackfs.benchmarks.filters.budget import _callbacks as budget
    from stackfs.benchmarks.filters.counter import _callbacks as counter

    assert set(budget.operations().registered()) == {IRP_MJ_READ, IRP_MJ_WRITE}
    assert {IRP_MJ_READ, IRP_MJ_WRITE} < set(counter.operations().registered())
    assert len(counter.operations().registered()) == 17
