"""The commands: what fltmc and stackfs print, and how they end. No volume is mounted: tests/fake_daemon.py answers."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stackfs import control, discovery, hresult, runtime_directory
from stackfs.cli import fltmc_main, stackfs_main, tables, umount
from stackfs.control import FilterRow, InstanceRow, VolumeRow
from stackfs.errors import ExitCode, FltError, StackfsError
from stackfs.filterlib import management

FAKE_DAEMON = str(Path(__file__).with_name("fake_daemon.py"))
AUDIT = {"name": "audit", "instances": 1, "altitude": "385100", "frame": 0, "start": "demand", "on_error": "fail"}
READONLY = AUDIT | {"name": "readonly", "altitude": "265050"}


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run").mkdir(mode=0o755)
    (tmp_path / "run/stackfs").mkdir(mode=0o700)
    monkeypatch.setattr(runtime_directory, "ROOT", str(tmp_path / "run/stackfs"))
    monkeypatch.setattr(runtime_directory, "USERS", str(tmp_path / "user"))
    monkeypatch.setattr(runtime_directory, "path", lambda: str(tmp_path / "run/stackfs"))
    monkeypatch.delenv("STACKFS_DEBUG", raising=False)
    return tmp_path / "run/stackfs"


class Daemon:
    """A fake daemon and the requests it has had."""

    def __init__(self, directory: Path, name: str, answers: dict[str, Any]) -> None:
        self.log = directory.parent / f"{name}.log"
        code = [sys.executable, FAKE_DAEMON, str(directory), name, json.dumps(answers)]
        self.process = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"

    def asked(self) -> list[Any]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [each for each in map(json.loads, lines) if each[0] != "hello"]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Daemon]


@pytest.fixture
def daemon(run_directory: Path) -> Iterator[Start]:
    started: list[Daemon] = []

    def start(name: str, **answers: Any) -> Daemon:
        started.append(Daemon(run_directory, name, {key.replace("no_", "!"): each for key, each in answers.items()}))
        return started[-1]

    yield start
    for each in started:
        each.end()


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fltmc(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> tuple[int, str, str]:
        code = fltmc_main.main(words)
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def stackfs(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> tuple[int, str, str]:
        code = stackfs_main.main(words)
        return (code, *capsys.readouterr())

    return run


# ---- tables ----------------------------------------------------------------------------------------------------------

def test_filters_stand_in_fltmcs_columns() -> None:
    rows = [FilterRow("bindflt", 1, "409800"), FilterRow("AVLegacy", 0, "389998.99", "<Legacy>")]
    assert tables.filters(rows).splitlines() == [
        "Filter Name                     Num Instances    Altitude    Frame",
        "------------------------------  -------------  ------------  -----",
        "bindflt                                 1       409800         0",
        "AVLegacy                                        389998.99   <Legacy>",
    ]


def test_instances_stand_in_fltmcs_columns() -> None:
    rows = [InstanceRow("CldFlt", "C:", "180451", "CldFlt", 0, 15), InstanceRow("a", "C:", "1", "a", 0, 3, "Detached")]
    head, rule, line, detached = tables.instances(rows).splitlines()
    assert head == (
        "Filter                Volume Name                              Altitude        Instance Name       Frame"
        "   SprtFtrs  VlStatus"
    )
    assert rule == (
        "--------------------  -------------------------------------  ------------  ----------------------  -----"
        "   --------  --------"
    )
    assert line == (
        "CldFlt                C:                                        180451     CldFlt                    0  "
        "   0000000f"
    )
    assert detached.endswith("00000003  Detached")
    assert detached.index("Detached") == head.index("VlStatus")


def test_volumes_stand_in_fltmcs_columns() -> None:
    head, rule, mounted, bare = tables.volumes(
        [VolumeRow("/mnt/data", "data", "ext4", "Mounted"), VolumeRow("", "further")]
    ).splitlines()
    assert re.split("  +", head) == ["Dos Name", "Volume Name", "FileSystem", "Status"]
    assert set(rule) == {"-", " "}
    assert mounted.split() == ["/mnt/data", "data", "ext4", "Mounted"]
    assert bare == " " * 32 + "further"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name", "plain name"),
        ("\x1b[31m", "\\x1b[31m"),
        ("line\nfeed\ttab\r\0\x7f", "line\\x0afeed\\x09tab\\x0d\\x00\\x7f"),
        ("back\\slash", "back\\\\slash"),
        ("\\x0a", "\\\\x0a"),
        (os.fsdecode(b"\xff"), "\\xff"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\x9b31m", "\\u009b31m"),
        ("grün 日本", "grün 日本"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_shown(text: str, shown: str) -> None:
    assert tables.escape(text) == shown


def test_wide_and_combining_characters_keep_the_columns() -> None:
    assert [tables.width(each) for each in ("ab", "日本", "e\u0301")] == [2, 4, 1]
    lines = tables.columns(["name", "count"], [["日本", 7], ["abc", 12]]).splitlines()
    assert lines == ["name  count", "----  -----", "日本      7", "abc      12"]


def test_a_report_is_outlined_and_escaped() -> None:
    report = {"lanes": {"irp": 5, "ready": True}, "failed": [{"name": "a\nb", "why": None}], "none": [], "x": [[1], 2]}
    assert tables.outline(report) == [
        "lanes:", "  irp: 5", "  ready: yes", "failed:", "  - name=a\\x0ab  why=-", "none: -", "x:", "  -", "    - 1",
        "  - 2",
    ]  # fmt: skip


def test_what_is_no_altitude_is_sorted_last() -> None:
    given = ["20", "junk", "100.5", "100.49", "3"]
    assert sorted(given, key=management.by_altitude, reverse=True) == ["100.5", "100.49", "20", "3", "junk"]


@pytest.mark.parametrize(
    ("status", "shown"),
    [(0xC01C0013, 0x801F0013), (0xC0000022, 0x80070005), (0xC000010E, 0x80070420), (0xC0000194, 0xD0000194)],
)
def test_a_status_is_shown_as_windows_shows_it(status: int, shown: int) -> None:
    assert hresult.from_error(FltError(status, "words")) == shown


# ---- fltmc -----------------------------------------------------------------------------------------------------------

def test_without_volumes_the_tables_are_empty(fltmc: Command) -> None:
    assert fltmc() == (0, tables.FILTERS_HEAD + "\n", "")
    assert fltmc("instances") == (0, tables.INSTANCES_HEAD + "\n", "")
    assert fltmc("volumes") == (0, tables.VOLUMES_HEAD + "\n", "")
    assert json.loads(fltmc("--json")[1]) == {"ok": True, "filters": []}


def test_a_filter_of_two_daemons_is_listed_once(daemon: Start, fltmc: Command) -> None:
    daemon("a", filters=[READONLY, AUDIT])
    daemon("b", filters=[AUDIT | {"instances": 2}])
    bare: list[tuple[str, ...]] = [(), ("filters",)]
    for words in bare:
        code, out, err = fltmc(*words)
        assert (code, err) == (0, "")
        assert [line.split() for line in out.splitlines()[2:]] == [
            ["audit", "3", "385100", "0"], ["readonly", "1", "265050", "0"],
        ]  # fmt: skip
    spellings: list[tuple[str, ...]] = [("--json",), ("filters", "--json"), ("--json", "filters")]
    for words in spellings:
        listed = json.loads(fltmc(*words)[1])["filters"]
        rest = {"failed": False, "state": "", "held_by": []}
    assert listed == [AUDIT | {"instances": 3} | rest, READONLY | rest]


def test_instances_by_filter_and_by_volume(daemon: Start, fltmc: Command, tmp_path: Path) -> None:
    def rows(volume: str) -> list[dict[str, Any]]:
        return [
            {"filter": name, "volume": volume, "altitude": altitude, "name": name, "features": 3}
            for name, altitude in (("readonly", "265050"), ("audit", "385100"))
        ]

    daemon("b", instances=rows("b"))
    further = [{"filter": "null", "volume": "further", "altitude": "370000", "name": "null"}]
    volumes = [{"dos_name": "", "volume_name": "further"}]
    daemon("a", instances=[*rows("a"), *further], mountpoint=str(tmp_path), volumes=volumes)
    out = fltmc("instances")[1]
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [
        ["audit", "a"], ["readonly", "a"], ["audit", "b"], ["readonly", "b"], ["null", "further"],
    ]  # fmt: skip
    assert [each["volume"] for each in json.loads(fltmc("instances", "-f", "audit", "--json")[1])["instances"]] == [
        "a", "b",
    ]  # fmt: skip
    (tmp_path / "link").symlink_to(tmp_path)
    for volume in ("a", str(tmp_path), str(tmp_path / "link"), f"{tmp_path}/./"):
        assert len(fltmc("instances", "-v", volume)[1].splitlines()) == 4
    assert [line.split()[0] for line in fltmc("instances", "-v", "further")[1].splitlines()[2:]] == ["null"]
    assert fltmc("instances", "-v", "a", "-f", "audit")[0] == ExitCode.USAGE


def test_volumes_are_listed_by_mountpoint(daemon: Start, fltmc: Command) -> None:
    daemon("b", volumes=[{"dos_name": "/mnt/b", "volume_name": "b", "filesystem": "ext4", "status": "Mounted"}])
    daemon("a", volumes=[{"dos_name": "/mnt/a\x1b[2J", "volume_name": "a"}])
    assert [line.split()[0] for line in fltmc("volumes")[1].splitlines()[2:]] == ["/mnt/a\\x1b[2J", "/mnt/b"]


def test_load_and_unload_go_to_every_volume_or_to_one(daemon: Start, fltmc: Command) -> None:
    a, b = daemon("a"), daemon("b")
    assert fltmc("load", "audit") == (0, "", "")
    assert fltmc("unload", "audit", "-v", "b") == (0, "", "")
    assert a.asked() == [["load", {"name": "audit"}]]
    assert b.asked() == [["load", {"name": "audit"}], ["unload", {"name": "audit", "mandatory": False}]]
    done = json.loads(fltmc("load", "audit", "-v", "/mnt/a", "--json")[1])
    assert done == {"ok": True, "volumes": [{"volume": "a", "mountpoint": "/mnt/a", "result": None}]}


def test_attach_and_detach_name_a_volume(daemon: Start, fltmc: Command) -> None:
    a = daemon("a")
    assert fltmc("attach", "audit", "/mnt/a", "-i", "Audit Top", "-a", "389000.5") == (0, "", "")
    assert fltmc("detach", "audit", "a", "Audit Top") == (0, "", "")
    assert fltmc("detach", "audit", "a") == (0, "", "")
    detach = {"filter": "audit", "volume": "a", "instance_name": None}
    assert a.asked() == [
        ["attach", {"filter": "audit", "volume": "a", "instance_name": "Audit Top", "altitude": "389000.5"}],
        ["detach", detach | {"instance_name": "Audit Top"}],
        ["detach", detach],
    ]


def test_a_further_volume_of_a_daemon_can_be_named(daemon: Start, fltmc: Command) -> None:
    a = daemon("a", volumes=[{"dos_name": "", "volume_name": "shadow"}])
    assert fltmc("detach", "audit", "shadow")[0] == 0
    assert a.asked()[-1][1]["volume"] == "shadow"


def test_a_refusal_is_shown_as_fltmc_shows_it(daemon: Start, fltmc: Command) -> None:
    daemon("a", no_load={"error": "there is no filter 'x\x1b'", "status": 0xC01C0013, "exit_code": 3})
    assert fltmc("load", "x") == (
        ExitCode.NOT_FOUND, "", "Load failed with error: 0x801f0013\nthere is no filter 'x\\x1b'\n",
    )  # fmt: skip
    code, out, err = fltmc("load", "x", "--json")
    assert (code, err) == (3, "")
    assert json.loads(out) == {
        "ok": False, "error": "there is no filter 'x\x1b'", "hresult": "0x801f0013", "status": "0xc01c0013",
        "exit_code": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "words", [("load", "x"), ("unload", "x"), ("attach", "x", "v"), ("detach", "x", "v"), ("instances", "-v", "v")]
)
def test_without_the_volume_there_is_a_status_for_it(fltmc: Command, words: tuple[str, ...]) -> None:
    code, out, err = fltmc(*words)
    title = {"instances": "Instance listing"}.get(words[0], words[0].capitalize())
    assert (code, out) == (ExitCode.NOT_FOUND, "")
    assert err.startswith(f"{title} failed with error: 0x801f0014\n")
    assert len(err.splitlines()) == 2


def test_loaded_already_is_no_error_if_another_volume_loads_it(daemon: Start, fltmc: Command) -> None:
    daemon("a", no_load={"error": "audit is loaded", "status": 0xC000010E})
    assert fltmc("load", "audit")[0] == ExitCode.REFUSED
    b = daemon("b")
    assert fltmc("load", "audit") == (0, "", "")
    assert b.asked()
    daemon("c", no_load={"error": "no such filter", "status": 0xC0000034, "exit_code": 3})
    code, _, err = fltmc("load", "audit")
    assert code == ExitCode.NOT_FOUND
    assert err == "Load failed with error: 0x80070002\n/mnt/c: no such filter\n"


def test_a_silent_daemon_does_not_hide_the_others(
    daemon: Start, fltmc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CALL_LIMIT", 0.3)
    daemon("a", filters=[AUDIT])
    daemon("b", filters="...")
    code, out, err = fltmc()
    assert code == ExitCode.NOT_ANSWERING
    assert out.splitlines()[2].startswith("audit ")
    assert err.startswith("Filter listing failed with error: 0x800705b4\n/mnt/b does not answer (process ")
    report = json.loads(fltmc("--json")[1])
    assert (report["ok"], len(report["filters"]), len(report["errors"])) == (False, 1, 1)


def test_a_stopped_daemon_is_exit_code_7(daemon: Start, fltmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HELLO_LIMIT", 0.3)
    stopped = daemon("a")
    stopped.process.send_signal(signal.SIGSTOP)
    assert fltmc()[0] == ExitCode.NOT_ANSWERING
    code, _, err = fltmc("load", "audit", "-v", "a")
    assert code == ExitCode.NOT_ANSWERING
    assert f"a daemon does not answer (process {stopped.process.pid})" in err


def test_a_wrong_command_line_is_exit_code_2(fltmc: Command) -> None:
    for words in (("bogus",), ("load",), ("load", "a", "b"), ("attach", "a"), ("filters", "--nonsense")):
        code, out, err = fltmc(*words)
        assert (code, out) == (ExitCode.USAGE, "")
        assert err.startswith("fltmc: ") and "--help)" in err and len(err.splitlines()) == 1


def test_help_lists_every_verb(fltmc: Command) -> None:
    code, out, _ = fltmc("help")
    assert code == 0
    verbs = json.loads(fltmc("help", "--json")[1])["verbs"]
    assert [each["verb"] for each in verbs] == [
        "load", "unload", "filters", "instances", "volumes", "attach", "detach", "help",
    ]  # fmt: skip
    for each in verbs:
        assert each["verb"] in out
        assert fltmc(each["verb"], "--help")[0] == 0


# ---- stackfs ---------------------------------------------------------------------------------------------------------

def test_version_and_help(stackfs: Command) -> None:
    import stackfs as package

    assert stackfs("--version") == (0, f"stackfs {package.__version__}\n", "")
    out = stackfs("--help")[1]
    assert all(verb in out for verb in stackfs_main.VERBS)
    for verb in stackfs_main.VERBS:
        assert stackfs(verb, "--help")[0] == 0
    assert stackfs("help", "mount")[1] == stackfs("mount", "--help")[1]


def test_an_unknown_word_gets_a_hint(stackfs: Command) -> None:
    assert stackfs("unmount", "/mnt") == (
        ExitCode.USAGE, "", "stackfs: 'unmount' is neither a command nor a directory; did you mean 'umount'?\n",
    )  # fmt: skip


def test_the_first_word_decides(stackfs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mount.fuse3 calls `stackfs SOURCE MOUNTPOINT -o OPTS`."""
    seen: list[Any] = []

    def build_config(*given: Any, **_: Any) -> Any:
        seen.append(given)
        raise StackfsError("seen", ExitCode.UNUSABLE)

    monkeypatch.setattr("stackfs.options.build_config", build_config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for words in (
        ("mount", "/s", "/m", "-o", "ro,a\\,b", "-o", "rw"),
        ("/s", "/m", "-o", "ro,a\\,b", "-o", "rw"),
        ("-o", "ro,a\\,b", "/s", "/m", "-o", "rw"),
        ("-oro,a\\,b", "-o", "rw", "/s", "/m"),
    ):
        assert stackfs(*words) == (ExitCode.UNUSABLE, "", "stackfs: seen\n")
        assert seen.pop() == ("/s", "/m", ["ro,a\\,b", "rw"], False)
    stackfs("here", "/m")
    assert seen.pop() == ("here", "/m", [], False)
    stackfs("mount", "-f", "--", "-odd", "/m")
    assert seen.pop() == ("-odd", "/m", [], True)
    stackfs("mount", "volume.toml")
    assert seen.pop() == ("volume.toml", None, [], False)


def test_start_and_stop(daemon: Start, stackfs: Command) -> None:
    a = daemon("a")
    assert stackfs("start", "audit") == (0, "audit loaded: /mnt/a\n", "")
    assert stackfs("stop", "audit", "-q", "-v", "a") == (0, "", "")
    assert a.asked() == [["load", {"name": "audit"}], ["unload", {"name": "audit", "mandatory": True}]]
    a.end()
    assert stackfs("start", "audit") == (ExitCode.NOT_FOUND, "", "stackfs: no volume is mounted by you\n")


def test_status(daemon: Start, stackfs: Command) -> None:
    assert stackfs("status") == (0, "no volume is mounted\n", "")
    assert json.loads(stackfs("status", "--json")[1]) == {"ok": True, "volumes": [], "errors": []}
    a = daemon("a", status={"lanes": {"irp": 7}})
    daemon("b", no_status={"error": "broken", "exit_code": 1})
    code, out, err = stackfs("status")
    assert (code, err) == (1, "stackfs: broken\n")
    assert out.startswith("/mnt/a\n  volume_name: a\n")
    assert out.endswith("  lanes:\n    irp: 7\n")
    shown = json.loads(stackfs("status", "--json", "-v", "a")[1])
    assert shown["ok"]
    assert shown["volumes"][0]["pid"] == a.process.pid
    assert shown["volumes"][0]["status"] == {"lanes": {"irp": 7}}


def test_umount_is_done_when_the_daemon_is(daemon: Start, stackfs: Command, tmp_path: Path) -> None:
    a = daemon("a", mountpoint=str(tmp_path))
    assert stackfs("umount", str(tmp_path)) == (0, "", "")
    assert a.process.poll() is not None
    assert a.asked() == [["umount", {"lazy": False, "force": False}]]
    assert stackfs("umount", str(tmp_path)) == (ExitCode.NOT_FOUND, "", f"stackfs: {tmp_path} is not mounted\n")
    b = daemon("b", mountpoint=str(tmp_path))
    assert stackfs("umount", "b", "--lazy") == (0, "", "")
    assert b.asked() == [["umount", {"lazy": True, "force": False}]]


def test_umount_says_who_is_in_the_way(daemon: Start, stackfs: Command, tmp_path: Path) -> None:
    daemon("a", mountpoint=str(tmp_path), no_umount={"error": f"{tmp_path}: busy: a program ...", "exit_code": 5})
    sleeper = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    try:
        assert (sleeper.pid, "sleep", "its working directory") in list(umount.holders(str(tmp_path), [os.getpid()]))
        code, _, err = stackfs("umount", str(tmp_path))
    finally:
        sleeper.kill()
        sleeper.wait()
    assert code == ExitCode.UNUSABLE
    assert f"sleep (process {sleeper.pid}, its working directory)" in err
    assert err.endswith("; end that, or use --lazy\n")


def test_umount_touches_no_other_mount(stackfs: Command) -> None:
    code, _, err = stackfs("umount", "/proc")
    assert (code, "proc mount, not one of stackfs" in err) == (ExitCode.UNUSABLE, True)


# ---- the commands that filters bring ---------------------------------------------------------------------------------

DROP_IN = '''
raise_on_import = {fail}
if raise_on_import:
    raise RuntimeError("imported")
import typer
MANIFEST = {{"name": "{name}", "altitude": "265060", "group": "FSFilter Content Screener", "filter": "X",
            "description": "A stranger's.", "commands": ":{attribute}"}}
app = typer.Typer()
@app.command()
def show(word: str = "nothing"):
    print("shown", word)
@app.command()
def fail():
    from stackfs.errors import StackfsError
    raise StackfsError("not today", 9)
@app.command()
def bug():
    raise KeyError("oops")
'''


@pytest.fixture
def drop_ins(tmp_path: Path) -> Path:
    directory = tmp_path / "dropins"
    directory.mkdir(mode=0o755)
    for name, fail, attribute in (("stranger", False, "app"), ("broken", True, "app"), ("odd", False, "MANIFEST")):
        (directory / f"{name}.py").write_text(DROP_IN.format(name=name, fail=fail, attribute=attribute))
    return directory


def test_a_filters_commands(stackfs: Command, drop_ins: Path) -> None:
    assert stackfs("stranger", "--filterdir", str(drop_ins), "show", "--word", "x") == (0, "shown x\n", "")
    assert stackfs("stranger", f"--filterdir={drop_ins}", "fail") == (9, "", "stackfs: not today\n")
    code, _, err = stackfs("stranger", "--filterdir", str(drop_ins), "bug")
    assert (code, err) == (1, "stackfs: internal error: KeyError: 'oops' (STACKFS_DEBUG=1 shows where)\n")
    code, _, err = stackfs("stranger", "--filterdir", str(drop_ins), "nonsense")
    assert (code, "stackfs stranger" in err) == (ExitCode.USAGE, True)
    code, _, err = stackfs("broken", "--filterdir", str(drop_ins), "show")
    assert (code, "RuntimeError: imported" in err) == (ExitCode.REFUSED, True)
    code, _, err = stackfs("odd", "--filterdir", str(drop_ins), "show")
    assert (code, "is not a typer.Typer" in err) == (ExitCode.REFUSED, True)


def test_listing_commands_imports_no_filter(
    stackfs: Command, drop_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "installation_directory", lambda: str(drop_ins))
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = stackfs("--help")
    assert (code, err) == (0, "")
    assert re.search(r"broken +A stranger's\.", out)


def test_completion_offers_verbs_and_a_filters_commands(
    stackfs: Command, drop_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "installation_directory", lambda: str(drop_ins))
    monkeypatch.setenv("_STACKFS_COMPLETE", "complete_bash")
    for line, word, offered in (("stackfs um", "1", {"umount"}), ("stackfs stranger ", "2", {"show", "fail", "bug"})):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", word)
        assert set(stackfs()[1].split()) == offered


# ---- ends ------------------------------------------------------------------------------------------------------------

def test_no_traceback_reaches_a_user(
    fltmc: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ValueError("a\nb\x1b")

    monkeypatch.setattr(control, "daemons", broken)
    assert fltmc() == (1, "", "fltmc: internal error: ValueError: a\\x0ab\\x1b (STACKFS_DEBUG=1 shows where)\n")
    monkeypatch.setenv("STACKFS_DEBUG", "1")
    assert fltmc_main.main([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error_message() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "from stackfs.cli.fltmc_main import main; import sys; sys.exit(main(['help']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_listing_imports_little(run_directory: Path) -> None:
    code = (
        "import sys; from stackfs import runtime_directory;"
        f"runtime_directory.path = lambda: {str(run_directory)!r}; runtime_directory.USERS = '/nowhere';"
        "from stackfs.cli.fltmc_main import main; main(['filters']);"
        "sys.exit(' '.join({'trio', 'pyfuse3', 'rich', 'stackfs.options'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
