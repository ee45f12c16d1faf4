"""Discovery: every place drop-ins come from, the order of them, and that nothing is imported to be found."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from stackfs import discovery
from stackfs.discovery import Found, find, list_all
from stackfs.errors import FilterImageError, FilterNotFoundError, FltError, StackfsError, TrustError
from stackfs.manifest import ManifestError

TEXT = 'MANIFEST = {{"name": "{name}", "altitude": "{altitude}", "group": "FSFilter Top", "filter": "F"}}\n1 / 0\n'


def drop_in(file: pathlib.Path, name: str, altitude: str = "400000") -> pathlib.Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(TEXT.format(name=name, altitude=altitude))
    file.chmod(0o644)
    return file


@pytest.fixture
def shipped(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An installation's filters/ directory of the test's own, and no entry points but the test's."""
    directory = tmp_path / "installation" / "filters"
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text("")
    monkeypatch.setattr(discovery, "installation_directory", lambda: str(directory))
    return directory


@pytest.fixture
def mine(tmp_path: pathlib.Path) -> pathlib.Path:
    """A drop-in directory."""
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def names(*directories: pathlib.Path) -> list[tuple[str, str]]:
    return [(each.name, each.origin) for each in list_all([str(each) for each in directories]).found]


def test_files_and_packages(shipped: pathlib.Path, mine: pathlib.Path) -> None:
    drop_in(mine / "single.py", "single")
    drop_in(mine / "whole" / "__init__.py", "whole")
    drop_in(shipped / "own.py", "own")
    drop_in(shipped / "kit" / "__init__.py", "kit")
    assert names(mine) == [
        ("single", "filterdir"),
        ("whole", "filterdir"),
        ("kit", "installation"),
        ("own", "installation"),
    ]
    single = find("single", [str(mine)])
    assert (single.path, single.module, single.is_package) == (str(mine / "single.py"), "stackfs_filter_single", False)
    assert single.root == ("stackfs_filter_single", str(mine / "single"))
    whole = find("whole", [str(mine)])
    assert (whole.path, whole.is_package) == (str(mine / "whole" / "__init__.py"), True)
    assert whole.root == ("stackfs_filter_whole", str(mine / "whole"))
    assert find("kit").module == "stackfs.filters.kit"
    assert find("own").root == ("stackfs.filters", str(shipped))
    assert single.source == (mine / "single.py").read_bytes()


def test_what_is_passed_over(shipped: pathlib.Path, mine: pathlib.Path) -> None:
    (mine / "helper.py").write_text("x = 1\n")
    (mine / "broken_helper.py").write_text("not python\n")
    (mine / "notes.txt").write_text("MANIFEST = {}")
    (mine / "plain").write_text("MANIFEST = {}")
    (mine / "data").mkdir()
    drop_in(mine / "_private.py", "private")
    drop_in(mine / ".hidden.py", "hidden")
    drop_in(mine / "__pycache__" / "__init__.py", "cache")
    drop_in(mine / "deep" / "inner.py", "inner")
    listing = list_all([str(mine)])
    assert listing.found == ()
    assert listing.problems == ()


def test_the_manifests_name_counts(shipped: pathlib.Path, mine: pathlib.Path) -> None:
    drop_in(mine / "anything.py", "a.b-c")
    found = find("a.b-c", [str(mine)])
    assert found.module == "stackfs_filter_a_2e_b_2d_c"
    with pytest.raises(FilterNotFoundError):
        find("anything", [str(mine)])


def test_the_first_wins_and_later_ones_are_reported(shipped: pathlib.Path, mine: pathlib.Path) -> None:
    second = mine.parent / "second"
    one = drop_in(mine / "one.py", "same", "400001")
    same_directory = drop_in(mine / "two.py", "same", "400002")
    other = drop_in(second / "x.py", "same", "400003")
    own = drop_in(shipped / "same.py", "same", "400004")
    listing = list_all([str(mine), str(second)])
    assert [each.path for each in listing.found] == [str(one)]
    assert [each.path for each in listing.problems] == [str(same_directory), str(other), str(own)]
    for problem in listing.problems:
        assert "already taken by" in problem.error.message and str(one) in problem.error.message
    assert find("same", [str(mine), str(second)]).path == str(one)
    assert find("same", [str(second), str(mine)]).path == str(other)
    assert find("same").path == str(own)


def test_one_directory_under_two_names(shipped: pathlib.Path, mine: pathlib.Path) -> None:
    drop_in(mine / "one.py", "one")
    (mine.parent / "link").symlink_to("mine")
    listing = list_all([str(mine), str(mine.parent / "link"), str(mine)])
    assert [each.name for each in listing.found] == ["one"]
    assert listing.problems == ()


def test_the_installation_given_as_a_directory(shipped: pathlib.Path) -> None:
    drop_in(shipped / "own.py", "own")
    (shipped.parent / "again").symlink_to("filters")
    assert names(shipped.parent / "again") == [("own", "installation")]
    assert find("own", [str(shipped.parent / "again")]).module == "stackfs.filters.own"


def test_what_is_broken_harms_no_other(shipped: pathlib.Path, mine: pathlib.Path) -> None:
    drop_in(mine / "good.py", "good")
    (mine / "bad.py").write_text("MANIFEST = {'name': 'bad'}\n")
    (mine / "worse.py").write_text("MANIFEST = {\n")
    listing = list_all([str(mine), str(mine / "none")])
    assert [each.name for each in listing.found] == ["good"]
    assert [(each.path, each.stem) for each in listing.problems] == [
        (str(mine / "bad.py"), "bad"),
        (str(mine / "worse.py"), "worse"),
        (str(mine / "none"), None),
    ]
    assert find("good", [str(mine)]).name == "good"


def test_a_broken_one_is_never_passed_over_for_another(shipped: pathlib.Path, mine: pathlib.Path) -> None:
    drop_in(shipped / "guard.py", "guard")
    (mine / "guard.py").write_text("MANIFEST = {'name': 'guard'}\n")
    with pytest.raises(ManifestError, match=rf"^{mine}/guard\.py:1: "):
        find("guard", [str(mine)])
    (mine / "guard.py").write_text("MANIFEST = {\n")
    with pytest.raises(FilterImageError, match=rf"^{mine}/guard\.py:"):
        find("guard", [str(mine)])
    with pytest.raises(StackfsError, match="no such file or directory"):
        find("guard", [str(mine / "none")])


def test_not_found_says_what_there_is(shipped: pathlib.Path, mine: pathlib.Path) -> None:
    with pytest.raises(FilterNotFoundError, match=r"there is no filter 'audit' \(there are: none\)"):
        find("audit")
    drop_in(mine / "audit.py", "audit")
    (mine / "bad.py").write_text("MANIFEST = {}\n")
    with pytest.raises(FilterNotFoundError, match=r"did you mean 'audit'\?; not usable: .*bad\.py:1") as caught:
        find("audti", [str(mine)])
    assert (caught.value.status, caught.value.status_text) == (0xC0000034, "0xC0000034")
    assert FltError(-1073741772, "as C has it").status == 0xC0000034


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files away with chown")
def test_what_is_not_trusted(shipped: pathlib.Path, mine: pathlib.Path) -> None:
    drop_in(shipped / "guard.py", "guard")
    os.chown(drop_in(mine / "guard.py", "guard"), 12345, 0)
    drop_in(mine / "good.py", "good")
    listing = list_all([str(mine)])
    assert [each.name for each in listing.found] == ["good", "guard"]
    assert isinstance(listing.problems[0].error, TrustError)
    with pytest.raises(TrustError, match=r"guard\.py is owned by 12345"):
        find("guard", [str(mine)])
    mine.chmod(0o777)
    listing = list_all([str(mine)])
    assert names(mine) == [("guard", "installation")]
    assert listing.problems[0].stem is None
    with pytest.raises(TrustError, match="can be written by everybody"):
        find("good", [str(mine)])
    mine.chmod(0o1777)
    assert find("good", [str(mine)]).name == "good"


def distribution(site: pathlib.Path, lines: str) -> None:
    info = site / "acme-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[stackfs.filters]\n{lines}")


def test_entry_points(
    shipped: pathlib.Path, mine: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    distribution(
        site,
        "alone = acme_alone\nwhole = acme\ndeep = acme.filters.deep:Filter\ngone = acme.gone\nnever = nothing_such\n"
        "plain = acme.plain\n",
    )
    drop_in(site / "acme_alone.py", "alone")
    drop_in(site / "acme" / "__init__.py", "whole")
    drop_in(site / "acme" / "filters" / "deep" / "__init__.py", "deep")
    (site / "acme" / "plain.py").write_text("x = 1\n")
    drop_in(shipped / "alone.py", "alone")
    monkeypatch.syspath_prepend(str(site))
    listing = list_all([str(mine)])
    assert [(each.name, each.origin, each.module) for each in listing.found] == [
        ("alone", "entry point", "acme_alone"),
        ("deep", "entry point", "acme.filters.deep"),
        ("whole", "entry point", "acme"),
    ]
    assert [each.root for each in listing.found] == [
        ("acme_alone", str(site / "acme_alone")),
        ("acme", str(site / "acme")),
        ("acme", str(site / "acme")),
    ]
    assert [each.stem for each in listing.problems] == ["gone", "never", "plain", "alone"]
    assert not [name for name in sys.modules if name.startswith("acme")]
    drop_in(mine / "deep.py", "deep")
    assert find("deep", [str(mine)]).origin == "filterdir"


def test_the_real_installation_imports_nothing() -> None:
    """In a fresh Python: listing what is shipped imports no filter and no package of filters."""
    script = (
        "import sys\n"
        "from stackfs.discovery import list_all\n"
        "listing = list_all()\n"
        "forbidden = ('stackfs.filters', 'stackfs.api', 'stackfs.cext')\n"
        "assert not [name for name in sys.modules if name.startswith(forbidden)]\n"
        "assert not listing.problems, listing.problems\n"
        "print(*(each.name for each in listing.found))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) >= {"audit", "null", "passthrough", "readonly"}


def test_shipped_manifests_are_complete() -> None:
    for each in list_all().found:
        assert isinstance(each, Found)
        assert each.manifest.description, f"{each.path}: no description"
        for option in each.manifest.options.values():
            assert option.doc, f"{each.path}: option {option.name} has no doc"
