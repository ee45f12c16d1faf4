"""Names around the encryption filter: who is above sees plain paths, who is below stored ones, in every operation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import STACKFS, filter_directory, run
from encryption_drive import Vault

LONG = "l" * 200
PLAIN = ("plaindir", "inner", "file", "renamed", "hard", "soft", LONG, LONG + "2", "moved", "gone", "made")

ABOVE = """\
from stackfs.api import *
MANIFEST = {"name": "above", "group": "FSFilter Content Screener", "altitude": "265000", "filter": "Above"}
seen = set()
class Above(Filter):
    operations = tuple(
        Operation(major, pre="before", post="look")
        for major in (IRP_MJ_CREATE, IRP_MJ_READ, IRP_MJ_CLOSE, IRP_MJ_SET_INFORMATION, IRP_MJ_QUERY_OPEN)
    )

    def before(self, data, objects):
        self.look(data, objects)
        return FLT_PREOP_SUCCESS_WITH_CALLBACK

    def look(self, data, objects, context=None, flags=0):
        seen.add(data.path)
        if data.irql <= 1:
            try:
                seen.add("info" + data.name_information().path)
            except NtStatusError:         # paging I/O
                pass
        return FLT_POSTOP_FINISHED_PROCESSING

    def instance_teardown_complete(self, instance, reason):
        with open("%s", "w") as told:
            told.write("\\n".join(sorted(seen)))
"""


def toml(it: Vault, top: Path, *options: str) -> Path:
    """The volume with audit above encryption, and below it."""
    made = top / "volume.toml"
    made.write_text(f"""
        [volume]
        name = "{it.drive.name}"
        source = "{it.src}"
        mountpoint = "{it.mnt}"
        options = {json.dumps(["verifier", *options])}
        [[instance]]
        filter = "audit"
        options = {{directory = "{top}/trail", key = "{top}/key"}}
        [[instance]]
        filter = "audit"
        name = "below"
        altitude = "130000"
        [[instance]]
        filter = "encryption"
        options = {{passfile = "{it.passfile}"}}
    """)
    return made


def shown(trail: Path) -> list[dict[str, str]]:
    lines = run(STACKFS, "audit", "show", trail, "--json").stdout.splitlines()
    return [each for each in map(json.loads, lines) if each["kind"] == "request"]


def at_work(mnt: Path) -> None:
    """One of everything that has a name, deep down, with long names, links, and what has lost its name."""
    (mnt / "plaindir/inner").mkdir(parents=True)
    inner = mnt / "plaindir/inner"
    (inner / "file").write_bytes(b"x" * 9000)
    (inner / LONG).write_bytes(b"y" * 100)
    os.mkdir(mnt / "plaindir" / (LONG + "2"))
    (mnt / "plaindir" / (LONG + "2") / "file").write_bytes(b"")
    os.link(inner / "file", mnt / "hard")
    os.symlink("plaindir/inner", mnt / "soft")
    assert os.readlink(mnt / "soft") == "plaindir/inner"
    os.rename(inner / "file", inner / "renamed")
    os.chmod(inner / "renamed", 0o600)
    os.utime(inner / LONG, (1, 2))
    os.truncate(inner / "renamed", 5000)
    os.setxattr(inner / LONG, "user.a", b"1")
    assert os.listdir(mnt / "plaindir") and os.listdir(inner)
    os.rename(mnt / "plaindir/inner", mnt / "moved")
    with open(mnt / "moved/renamed", "r+b") as file:
        os.rename(mnt / "moved", mnt / "plaindir/moved")
        file.seek(4096)
        assert file.read() == b"x" * 904
        file.write(b"z")
        file.flush()
        os.fsync(file.fileno())
    with open(mnt / "gone", "wb") as file:
        os.unlink(mnt / "gone")
        file.write(b"without a name")
    os.rmdir(mnt / "plaindir" / (LONG + "2")) if not os.path.exists(mnt / "plaindir" / (LONG + "2") / "file") else None
    os.unlink(mnt / "plaindir" / (LONG + "2") / "file")
    os.rmdir(mnt / "plaindir" / (LONG + "2"))
    with open(mnt / "hard", "rb") as file:
        assert file.read(5000)
    os.mkfifo(mnt / "made")
    os.unlink(mnt / "made")


def remounted(mnt: Path) -> None:
    """What the daemon has never seen by name is opened, listed and read."""
    for top, _, files in os.walk(mnt):
        for name in files:
            if not os.path.islink(os.path.join(top, name)):
                with open(os.path.join(top, name), "rb") as file:
                    file.read()


def is_plain(path: str) -> bool:
    return all(part in PLAIN for part in path.removesuffix(" (deleted)").split("/") if part)


def test_audit_above_sees_plain_paths_and_audit_below_stored_ones(
    vault: Callable[..., Vault], lanes: str, tmp_path: Path
) -> None:
    it = vault(mount=False)
    volume = toml(it, tmp_path, f"lanes={lanes}")
    for work in (at_work, remounted):
        run(STACKFS, "mount", volume)
        it.drive.note_pid()
        work(it.mnt)
        it.umount()
    above = shown(tmp_path / "trail")
    wrong = [each for each in above for path in (each["path"], each.get("other", "")) if not is_plain(path)]
    assert not wrong, [(each["operation"], each["path"]) for each in wrong[:5]]
    pairs = {(each["operation"], each["path"], each.get("other", "")) for each in above}
    assert pairs >= {
        ("mkdir", "/plaindir/inner", ""),
        ("create", f"/plaindir/inner/{LONG}", ""),
        ("link", "/plaindir/inner/file", "/hard"),
        ("symlink", "/soft", ""),
        ("readlink", "/soft", ""),
        ("rename", "/plaindir/inner/file", "/plaindir/inner/renamed"),
        ("rename", "/plaindir/inner", "/moved"),
        ("rename", "/moved", "/plaindir/moved"),
        ("unlink", "/gone", ""),
        ("write", "/plaindir/moved/renamed", ""),
        ("read", "/plaindir/moved/renamed", ""),
        ("read", f"/plaindir/moved/{LONG}", ""),
        ("release", f"/plaindir/moved/{LONG}", ""),
        ("read", "/hard", ""),
        ("write", "/gone", ""),
        ("rmdir", f"/plaindir/{LONG}2", ""),
    }
    below = {path for each in shown(tmp_path / "trail.below") for path in (each["path"], each.get("other", "")) if path}
    parts = {part for path in below for part in path.split("/") if part}
    assert parts and not parts & set(PLAIN)
    stored = {entry for _, directories, files in os.walk(it.src) for entry in (*directories, *files)}
    assert {name for name in stored if not name.startswith(".stackfs-")} <= parts
    for trail, key in (("trail", "key"), ("trail.below", "key.below")):
        assert run(STACKFS, "audit", "verify", tmp_path / trail, "--key", tmp_path / key).returncode == 0


def test_a_python_filter_above_sees_plain_paths(vault: Callable[..., Vault], lanes: str, tmp_path: Path) -> None:
    it = vault(mount=False)
    told = tmp_path / "told"
    directory = filter_directory(tmp_path, above=ABOVE % told)
    for work, place in ((at_work, "inner"), (remounted, "moved")):
        it.mount(f"filterdir={directory}", "filter=above", f"lanes={lanes}")
        work(it.mnt)
        it.umount()
        paths = told.read_text().split("\n")
        wrong = [path for path in paths if not is_plain(path.removeprefix("info"))]
        assert not wrong, wrong[:5]
        for each in ("/hard", f"/plaindir/{place}/{LONG}"):
            assert each in paths and "info" + each in paths
        told.unlink()


def test_what_is_none_of_the_volumes_goes_by_its_stored_name(vault: Callable[..., Vault], tmp_path: Path) -> None:
    """It cannot be opened; who asks for it is told apart by what he asked for."""
    it = vault(mount=False)
    run(STACKFS, "mount", toml(it, tmp_path))
    it.drive.note_pid()
    (it.src / "foreign").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        os.stat(it.mnt / "foreign")
    it.umount()
    assert {each["path"] for each in shown(tmp_path / "trail")} >= {"/foreign"}
