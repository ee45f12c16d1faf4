"""The language of -o, as tables; and configurations put together from command line, TOML and manifests."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackfs.errors import ExitCode, FltError, StackfsError, TrustError, UsageError
from stackfs.mount_flags import FLAGS, MountFlags, opposite
from stackfs.option_line import IGNORED, MountOptions, parse_options, split, unescape
from stackfs.options import MountConfig, build_config
from stackfs.volume_toml import escape


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (",,", []),
        ("ro", ["ro"]),
        ("ro,,rw,", ["ro", "rw"]),
        (r"a.b=1\,2,ro", ["a.b=1,2", "ro"]),
        (r"a.b=1\\,ro", ["a.b=1\\", "ro"]),
        (r"a.b=1\\\,2", ["a.b=1\\,2"]),
        (r"a.b=C:\dir", [r"a.b=C:\dir"]),
        ("a.b=end\\", ["a.b=end\\"]),
        ("a.b=1=2,c.d=", ["a.b=1=2", "c.d="]),
    ],
)
def test_splitting(text: str, pieces: list[str]) -> None:
    assert [unescape(each) for each in split(text)] == pieces


@given(st.lists(st.text(",\\a=", min_size=1)))
def test_what_is_escaped_comes_back(values: list[str]) -> None:
    assert [unescape(each) for each in split(",".join(map(escape, values)))] == values


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("ro", "read_only", True),
        ("rw", "read_only", False),
        ("suid", "suid", True),
        ("nosuid", "suid", False),
        ("dev", "dev", True),
        ("nodev", "dev", False),
        ("exec", "exec", True),
        ("noexec", "exec", False),
        ("sync", "sync", True),
        ("async", "sync", False),
        ("dirsync", "dirsync", True),
        ("nosymfollow", "symfollow", False),
        ("noatime", "noatime", True),
        ("atime", "noatime", False),
        ("nodiratime", "nodiratime", True),
        ("relatime", "relatime", True),
        ("norelatime", "relatime", False),
        ("strictatime", "strictatime", True),
        ("lazytime", "lazytime", True),
        ("allow_other", "allow_other", True),
        ("verifier", "verifier", True),
        ("default_permissions", "default_permissions", True),
        ("fsname=a name", "fsname", "a name"),
        (r"fsname=a\,b", "fsname", "a,b"),
        ("subtype=drive", "subtype", "drive"),
        ("max_write=4096", "max_write", 4096),
        ("max_write=128K", "max_write", 131072),
        ("max_write=1M", "max_write", 1 << 20),
        ("cache=normal", "cache", "normal"),
        ("cache=strict", "cache", "strict"),
        ("bypass=auto", "bypass", "auto"),
        ("bypass=off", "bypass", "off"),
        ("lanes=auto", "lanes", "auto"),
        ("lanes=irp", "lanes", "irp"),
        ("permissions=kernel", "permissions", "kernel"),
        ("permissions=stack", "permissions", "stack"),
        ("locks=kernel", "locks", "kernel"),
        ("locks=stack", "locks", "stack"),
        ("coherence=none", "coherence", "none"),
        ("coherence=lease", "coherence", "lease"),
        ("filter=raw", "raw", True),
        ("filterdir=/a/../b", "filter_dirs", ["/b"]),
        ("source=/x", "source", "/x"),
    ],
)
def test_what_is_accepted(option: str, field: str, value: object) -> None:
    assert getattr(parse_options([option]), field) == value


@pytest.mark.parametrize(
    "option", [*sorted(IGNORED), "user=me", "x-systemd.automount", "x-gvfs-show", "X-mount.mkdir=0755", "comment=a,b=c"]
)
def test_what_is_ignored(option: str) -> None:
    if option == "comment=a,b=c":
        option = r"comment=a\,b=c"
    assert parse_options([option]) == MountOptions()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("cache=loose", "cache is normal or strict"),
        ("cache", "cache is normal or strict"),
        ("bypass=on", "bypass is auto or off"),
        ("lanes=device", "lanes is auto or irp"),
        ("locks=none", "locks is kernel or stack"),
        ("permissions=none", "permissions is kernel or stack"),
        ("exclusive=1", "takes no value"),
        ("verifier=1", "takes no value"),
        ("ro=1", "'ro' takes no value: write 'ro' alone"),
        ("allow_other=yes", "'allow_other' takes no value"),
        ("fsname", "'fsname' needs a value"),
        ("fsname=", "'fsname' needs a value"),
        ("filter=", "'filter' needs a value"),
        ("filter=a/b", "a filter's name is"),
        ("filterdir", "'filterdir' needs a value"),
        ("subtype=a/b", "1 to 64"),
        ("max_write=big", "not a size"),
        ("max_write=1000", "a multiple of 4K, from 4K to 1M"),
        ("max_write=2M", "from 4K to 1M"),
        ("max_write=0", "from 4K to 1M"),
        ("chache=strict", "not known: did you mean 'cache'"),
        ("allow_othr", "did you mean 'allow_other'"),
        ("flter=audit", "did you mean 'filter'"),
        ("noexc", "did you mean 'noexec'"),
        ("allow_root", "use allow_other"),
        ("remount", "cannot remount"),
        ("nonempty", "empty directory"),
        ("wholly unlike", "NAME.KEY=VALUE"),
        (".key=1", "written NAME.KEY=VALUE"),
        ("name.=1", "written NAME.KEY=VALUE"),
        ("a b.key=1", "written NAME.KEY=VALUE"),
        ("fsname=a\nb", "a newline or NUL"),
    ],
)
def test_what_is_refused(option: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options(["ro", option])
    assert caught.value.exit_code is ExitCode.USAGE
    assert reason in caught.value.message
    assert "\n" not in caught.value.message


def test_the_defaults_are_safe() -> None:
    options = parse_options([])
    assert options == MountOptions()
    assert options.names() == ["nosuid", "nodev"]
    assert options.permissions == "kernel"
    assert not options.allow_other


def test_only_one_checks_permissions() -> None:
    """default_permissions is permissions=kernel in other words, and excludes the other."""
    assert parse_options(["default_permissions,permissions=kernel"]).permissions == "kernel"
    for line in ("permissions=stack,default_permissions", "default_permissions,permissions=stack"):
        with pytest.raises(UsageError, match=r"^options 'permissions=stack' and 'default_permissions' exclude each"):
            parse_options([line])
    with pytest.raises(UsageError, match=r"^options 'permissions=stack' and 'dev' exclude each other"):
        parse_options(["dev", "permissions=stack"])
    assert parse_options(["permissions=stack,default_permissions,permissions=kernel"]).permissions == "kernel"


def test_the_last_one_holds() -> None:
    options = parse_options(["ro,cache=strict,fsname=a", "rw,fsname=b", "cache=normal,suid,nosuid"])
    assert (options.read_only, options.fsname, options.cache, options.suid) == (False, "b", "normal", False)


def test_filters_and_their_options() -> None:
    options = parse_options(
        ["filter=audit,filter=raw,filter=my.filter", r"audit.key=a\,b,my.filter.loud", "audit.key=c"]
    )
    assert (list(options.filters), options.raw) == (["audit", "my.filter"], True)
    assert {n: {k: v.text for k, v in s.items()} for n, s in options.filter_values.items()} == {
        "audit": {"key": "c"},
        "my.filter": {"loud": "yes"},
    }
    with pytest.raises(UsageError, match="'filter=audit' is given twice"):
        parse_options(["filter=audit", "filter=audit"])


def test_directories_are_made_absolute(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    options = parse_options(["filterdir=one,filterdir=~/two", "filterdir=/three"])
    assert options.filter_dirs == [f"{tmp_path}/one", "/home/someone/two", "/three"]


def test_mount_bits() -> None:
    """Against <linux/mount.h>."""
    assert MountFlags(suid=True, dev=True).bits() == 0
    table = {"ro": 1, "noexec": 8, "sync": 16, "dirsync": 128, "nosymfollow": 256, "noatime": 1024, "nodiratime": 2048}
    for name, bits in {**table, "relatime": 1 << 21, "strictatime": 1 << 24, "lazytime": 1 << 25}.items():
        options = parse_options([name, "suid,dev"])
        assert options.bits() == bits, name
        assert options.names() == [name]
    assert parse_options(["ro"]).bits() == 1 | 2 | 4


def test_every_flag_has_a_field_and_a_way_back() -> None:
    for flag in FLAGS:
        assert getattr(parse_options([flag.on]), flag.field) is True
        if flag.off is not None:
            assert getattr(parse_options([flag.on, flag.off]), flag.field) is False
            assert opposite(flag.on) == flag.off and opposite(flag.off) == flag.on
    assert opposite("dirsync") is None
    assert opposite("allow_other") is None


# --- configurations ---------------------------------------------------------------------------------------------------

MANIFESTS: dict[str, dict[str, Any]] = {
    "top": {
        "altitude": "400100",
        "group": "FSFilter Top",
        "default_instance": "Top",
        "instances": [{"name": "Top Higher", "altitude": "400200"}],
        "options": {
            "log": {"type": "path"},
            "limit": {"type": "size", "default": "1M", "max": "1G"},
            "full": {"type": "choice", "choices": ["refuse", "count"], "default": "refuse"},
        },
    },
    "bottom": {"altitude": "40500", "group": "FSFilter Bottom"},
    "same": {"altitude": "400100.0", "group": "FSFilter Top"},
    "keyed": {
        "altitude": "141000",
        "group": "FSFilter Encryption",
        "options": {"key": {"type": "str", "required": True}},
    },
    "off": {"altitude": "40501", "group": "FSFilter Bottom", "start": "disabled"},
}


class Places:
    """Directories to mount, and a drop-in directory with the manifests above."""

    def __init__(self, base: pathlib.Path) -> None:
        self.base = base
        for name in ("source", "mountpoint", "filters"):
            (base / name).mkdir()
        for name, fields in MANIFESTS.items():
            manifest = {"name": name, "filter": "F", **fields}
            (base / "filters" / f"{name}.py").write_text(f"MANIFEST = {manifest!r}\n1 / 0\n")
        self.source, self.mountpoint = str(base / "source"), str(base / "mountpoint")

    def mount(self, *options: str, **more: Any) -> MountConfig:
        return build_config(self.source, self.mountpoint, [f"filterdir={self.base}/filters", *options], **more)

    def toml(self, text: str, *options: str, mountpoint: str | None = None, head: str = "", **more: Any) -> MountConfig:
        file = self.base / "volume.toml"
        volume = (
            f'[volume]\nname = "vol"\nsource = "source"\nmountpoint = "mountpoint"\nfilterdir = ["filters"]\n{head}\n'
        )
        file.write_text(volume + text)
        return build_config(str(file), mountpoint, list(options), **more)


@pytest.fixture
def places(tmp_path: pathlib.Path) -> Places:
    return Places(tmp_path)


def refused(kind: type[StackfsError], code: ExitCode, *parts: str) -> Any:
    class Refused:
        def __enter__(self) -> None:
            pass

        def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
            assert isinstance(error, kind), repr(error)
            assert error.exit_code is code, error
            assert "\n" not in error.message
            for part in parts:
                assert part in error.message, error.message
            return True

    return Refused()


def test_a_directory(places: Places) -> None:
    config = places.mount("ro", foreground=True)
    assert (config.source, config.mountpoint, config.volume_name) == (places.source, places.mountpoint, "mountpoint")
    assert config.options.read_only
    assert config.foreground
    assert config.filter_dirs == [f"{places.base}/filters"]
    assert (config.instances, config.filter_options, config.toml_path) == ([], {}, None)


def test_instances_are_completed_from_their_manifests(places: Places) -> None:
    config = places.mount("filter=bottom,filter=top", "top.limit=64M,top.log=log.txt")
    assert [(each.filter, each.name, each.altitude) for each in config.instances] == [
        ("top", "Top", "400100"),
        ("bottom", "bottom", "40500"),
    ]
    assert config.instances[0].options == {"log": f"{os.getcwd()}/log.txt", "limit": 64 << 20, "full": "refuse"}
    assert config.filter_options == {"top": config.instances[0].options, "bottom": {}}


def test_filters_refused(places: Places) -> None:
    with refused(FltError, ExitCode.NOT_FOUND, "-o filter=tpo: ", "did you mean 'top'"):
        places.mount("filter=tpo")
    with refused(UsageError, ExitCode.USAGE, "'top.limit' is for filter 'top', which this mount does not attach",
                 "add -o filter=top"):  # fmt: skip
        places.mount("top.limit=1M")
    with refused(UsageError, ExitCode.USAGE, "top.limt: filter 'top' has no such option; did you mean 'limit'"):
        places.mount("filter=top,top.limt=1M")
    with refused(UsageError, ExitCode.USAGE, "top.limit: 2G is more than 1G"):
        places.mount("filter=top,top.limit=2G")
    with refused(UsageError, ExitCode.USAGE, "top.full: 'drop' is not one of refuse, count"):
        places.mount("filter=top,top.full=drop")
    with refused(UsageError, ExitCode.USAGE, "filter 'keyed' needs -o keyed.key=STR"):
        places.mount("filter=keyed")
    with refused(FltError, ExitCode.REFUSED, "filter 'off' is disabled"):
        places.mount("filter=off")
    with refused(UsageError, ExitCode.USAGE, "altitude 400100 is taken by instance 'Top' (-o filter=top)",
                 'altitude = "400100.5"'):  # fmt: skip
        places.mount("filter=top,filter=same")
    (places.base / "filters" / "wrong.py").write_text("MANIFEST = {'name': 'wrong'}\n")
    with refused(FltError, ExitCode.REFUSED, "-o filter=wrong: ", "wrong.py:1: group: is needed"):
        places.mount("filter=wrong")


def test_places_refused(places: Places) -> None:
    base = places.base
    (base / "file").write_text("")
    (base / "source" / "inner").mkdir()
    (base / "link").symlink_to("source")
    for source, mountpoint, reason in (
        ("none", "mountpoint", "does not exist: mkdir it first"),
        ("source", "none", "does not exist: mkdir it first"),
        ("source", "file", "is not a directory"),
        ("source", "source", "are the same directory"),
        ("link", "source", "are the same directory"),
        ("source/inner", "source", "which would hide it"),
        ("source/inner", "link", "which would hide it"),
        ("source", "source/inner", "the drive would contain itself"),
        ("source", "link/inner", "the drive would contain itself"),
    ):
        with refused(StackfsError, ExitCode.UNUSABLE, reason):
            build_config(str(base / source), str(base / mountpoint), [])
    (base / "source2").mkdir()
    assert build_config(str(base / "source"), str(base / "source2"), []).mountpoint == str(base / "source2")
    with refused(UsageError, ExitCode.USAGE, "no mountpoint"):
        build_config(places.source, None, [])
    with refused(UsageError, ExitCode.USAGE, "'source' stands in for a volume TOML's source"):
        build_config(places.source, places.mountpoint, ["source=/x"])


def test_volume_names(places: Places) -> None:
    assert places.mount(names_in_use=["other"]).volume_name == "mountpoint"
    assert places.mount(names_in_use=["mountpoint", "mountpoint-2"]).volume_name == "mountpoint-3"
    assert places.toml("").volume_name == "vol"
    with refused(UsageError, ExitCode.USAGE, "a volume named 'vol' is already mounted"):
        places.toml("", names_in_use=["vol"])
    odd = os.fsdecode(os.fsencode(places.base) + b"/a\xff\nb")
    os.mkdir(odd)
    assert build_config(places.source, odd, []).volume_name == "a__b"


def test_a_toml(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = places.toml(
        '[[instance]]\nfilter = "bottom"\n'
        '[[instance]]\nfilter = "top"\nname = "Top Higher"\n'
        '[[instance]]\nfilter = "top"\nname = "Odd"\naltitude = "0400300.50"\noptions = {log = "log", limit = 4096}\n'
        '[[instance]]\nfilter = "same"\naltitude = "400150"\nattach = "manual"\n',
        head='options = ["cache=strict,ro", "top.full=count"]',
    )
    assert (config.source, config.mountpoint) == (places.source, places.mountpoint)
    assert config.toml_path == f"{places.base}/volume.toml"
    assert [(each.name, each.altitude) for each in config.instances] == [
        ("Odd", "400300.5"),
        ("Top Higher", "400200"),
        ("bottom", "40500"),
    ]
    options = {"log": f"{places.base}/log", "limit": 4096, "full": "count"}
    assert config.instances[0].options == config.instances[1].options == options
    assert [(each.name, each.altitude) for each in config.manual_instances] == [("same", "400150")]
    assert set(config.filter_options) == {"top", "bottom", "same"}
    assert (config.options.cache, config.options.read_only) == ("strict", True)


def test_the_command_line_wins_over_the_toml(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("else", "there", "more"):
        (places.base / name).mkdir()
    monkeypatch.chdir(places.base)
    config = places.toml(
        '[[instance]]\nfilter = "top"\noptions = {log = "log", limit = 4096}\n',
        "rw,source=else,filter=bottom",
        "top.limit=8K,filterdir=more",
        mountpoint="there",
        head='options = ["cache=strict,ro", "top.log=other"]',
    )
    assert (config.source, config.mountpoint) == (f"{places.base}/else", f"{places.base}/there")
    assert (config.options.cache, config.options.read_only) == ("strict", False)
    assert [each.name for each in config.instances] == ["Top", "bottom"]
    assert config.instances[0].options == {"log": f"{places.base}/other", "limit": 8192, "full": "refuse"}
    assert config.filter_dirs == [f"{places.base}/more", f"{places.base}/filters"]


INSTANCE = '[[instance]]\nfilter = "top"\n'


@pytest.mark.parametrize(
    ("text", "head", "code", "parts"),
    [
        ("", 'options = ["chache=strict"]', ExitCode.USAGE, [".toml:6: option 'chache=strict' is not known"]),
        ("", 'options.coherence = "leases"', ExitCode.USAGE, [".toml:6: option 'coherence=leases': coherence is none or lease"]),
        ("", 'options = ["filter=nix"]', ExitCode.NOT_FOUND, [".toml:6: there is no filter 'nix'"]),
        ("", 'options = ["top.limit=1"]', ExitCode.USAGE, [".toml:6: option 'top.limit' is for filter 'top'"]),
        (INSTANCE, 'options = ["top.limit=x"]', ExitCode.USAGE, [".toml:6: top.limit: 'x' is not a size"]),
        ('[[instance]]\nfilter = "nix"\n', "", ExitCode.NOT_FOUND, [".toml:7: there is no filter 'nix'"]),
        (INSTANCE + "options.limit = true\n", "", ExitCode.USAGE, [".toml:9: top.limit: True is not a size"]),
        (INSTANCE + "[instance.options]\nlimt = 1\n", "", ExitCode.USAGE, [".toml:10: top.limt: ", "'limit'"]),
        (INSTANCE + 'name = "Else"\n', "", ExitCode.USAGE, [".toml:7: filter 'top' offers no instance 'Else'"]),
        (INSTANCE + 'altitude = "5"\n', "", ExitCode.USAGE, [".toml:7: altitude 5 is outside 400000-409999"]),
        (INSTANCE + INSTANCE, "", ExitCode.USAGE, [".toml:9: instance name 'Top' is taken by ", ".toml:7: give"]),
        (
            INSTANCE + '[[instance]]\nfilter = "same"\n',
            "",
            ExitCode.USAGE,
            [".toml:9: altitude 400100 is taken by instance 'Top'", 'altitude = "400100.5"'],
        ),
        (
            INSTANCE + "options.limit = 1\n" + INSTANCE + 'name = "Top Higher"\noptions.limit = 2\n',
            "",
            ExitCode.USAGE,
            [".toml:13: limit = 2 differs from 1 in ", ".toml:9: the instances of one filter share"],
        ),
        (INSTANCE, 'options = ["filter=top"]', ExitCode.USAGE, [".toml:6: instance name 'Top' is taken by "]),
    ],
)
def test_tomls_refused(places: Places, text: str, head: str, code: ExitCode, parts: list[str]) -> None:
    with refused(StackfsError, code, *parts):
        places.toml(text, head=head)


def test_a_toml_without_places(places: Places) -> None:
    file = places.base / "bare.toml"
    file.write_text('[volume]\nname = "bare"\n')
    with refused(UsageError, ExitCode.USAGE, "bare.toml: no source: "):
        build_config(str(file), places.mountpoint, [])
    with refused(UsageError, ExitCode.USAGE, "bare.toml: no mountpoint: "):
        build_config(str(file), None, [f"source={places.source}"])
    assert build_config(str(file), places.mountpoint, [f"source={places.source}"]).source == places.source
    with refused(StackfsError, ExitCode.NOT_FOUND, "no such file"):
        build_config(str(places.base / "none.toml"), None, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files away with chown")
def test_trust(places: Places) -> None:
    file = places.base / "filters" / "top.py"
    os.chown(file, 12345, 0)
    with refused(TrustError, ExitCode.PERMISSION, "top.py is owned by 12345"):
        places.mount("filter=top")
    os.chown(file, 0, 0)
    (places.base / "filters").chmod(0o777)
    with refused(TrustError, ExitCode.PERMISSION, "filters can be written by everybody"):
        places.mount("filter=top")


def test_a_drop_in_directory_must_be_usable_even_if_nothing_is_attached(places: Places) -> None:
    with refused(StackfsError, ExitCode.NOT_FOUND, "none: no such file or directory"):
        build_config(places.source, places.mountpoint, [f"filterdir={places.base}/none"])


def test_no_filter_is_imported(places: Places) -> None:
    """Every drop-in here divides by zero when it is run."""
    assert len(places.mount("filter=top,filter=bottom,filter=keyed,keyed.key=x").instances) == 3
