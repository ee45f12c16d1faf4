"""INF files: read as Windows reads them, printed as our manifest, and good enough beside a drop-in without one."""

from __future__ import annotations

import ast
import pathlib
import sys
from typing import Any

import pytest

from stackfs import loader
from stackfs.cli import stackfs_main
from stackfs.discovery import find, list_all
from stackfs.errors import ExitCode, FilterImageError
from stackfs.inf import manifest, manifest_text

NULL = r"""
;;;
;;; A filter that does nothing
;;;

[Version]
Signature   = "$Windows NT$"
Class       = "ActivityMonitor"                         ;This is determined by the work this filter driver does
ClassGuid   = {b86dff51-a31e-4bac-b3cf-e8cfe75c9fc2}
Provider    = %ProviderString%
DriverVer   = 06/16/2007,1.0.0.1
CatalogFile = quiet.cat
PnpLockdown = 1

[DestinationDirs]
DefaultDestDir     = 13
MiniFilter.DriverFiles = 13              ; the driver store

[DefaultInstall.NT$ARCH$]
OptionDesc = %ServiceDescription%
CopyFiles  = MiniFilter.DriverFiles

[DefaultInstall.NT$ARCH$.Services]
AddService = %ServiceName%,,MiniFilter.Service

[DefaultUninstall.NT$ARCH$.Services]
DelService = %ServiceName%,0x200      ; Ensure service is stopped before deleting

[MiniFilter.Service]
DisplayName      = %ServiceName%
Description      = %ServiceDescription%
ServiceBinary    = %13%\%DriverName%.sys        ; %windir%\system32\drivers\
Dependencies     = "FltMgr"
ServiceType      = 2                            ;SERVICE_FILE_SYSTEM_DRIVER
StartType        = 3                            ;SERVICE_DEMAND_START
ErrorControl     = 1                            ;SERVICE_ERROR_NORMAL
LoadOrderGroup   = "FSFilter Activity Monitor"
AddReg           = MiniFilter.AddRegistry

[MiniFilter.AddRegistry]
HKR,"Parameters","SupportedFeatures",0x00010001,0x3
HKR,"Instances","DefaultInstance",0x00000000,%DefaultInstance%
HKR,"Instances\"%Instance1.Name%,"Altitude",0x00000000,%Instance1.Altitude%
HKR,"Instances\"%Instance1.Name%,"Flags",0x00010001,%Instance1.Flags%

[MiniFilter.DriverFiles]
%DriverName%.sys

[SourceDisksFiles]
quiet.sys = 1,,

[SourceDisksNames]
1 = %DiskId1%,,,

[Strings]
ProviderString          = "Test"
ServiceDescription      = "Quiet Mini-Filter Driver"
ServiceName             = "quiet"
DriverName              = "quiet"
DiskId1                 = "Quiet Device Installation Disk"

;Instances specific information.
DefaultInstance         = "Quiet Instance"
Instance1.Name          = "Quiet Instance"
Instance1.Altitude      = "370020.5"
Instance1.Flags         = 0x1              ; Suppress automatic attachments
"""

THREE = r"""
[DefaultInstall.NTamd64.Services]
AddService          = %ServiceName%,,Watch.Service
[DefaultInstall.NTx86.Services]
AddService          = %ServiceName%,,Watch.Service

[Watch.Service]
DisplayName         = %ServiceName%
Description         = %ServiceDescription%
Dependencies        = FltMgr
ServiceType         = 2
StartType           = %SERVICE_DEMAND_START%
LoadOrderGroup      = "FSFilter Activity Monitor"
AddReg              = Watch.AddRegistry, Watch.More

[Watch.AddRegistry]
HKR,,"DebugFlags",0x00010001 ,0x0
HKR,"Parameters\Instances","DefaultInstance",0x00000000,%DefaultInstance%
HKR,"Parameters\Instances\"%Instance1.Name%,"Altitude",0x00000000,%Instance1.Altitude%
HKR,"Parameters\Instances\"%Instance1.Name%,"Flags",0x00010001,%Instance1.Flags%
HKR,"Parameters\Instances\"%Instance2.Name%,"Altitude",0x00000000,%Instance2.Altitude%
HKR,"Parameters\Instances\"%Instance2.Name%,"Flags",0x00010001,%Instance2.Flags%
[watch.more]
HKR,"Parameters\Instances\"%Instance3.Name%, \
    "Altitude",0x00000000, \
    %Instance3.Altitude%
HKR,"Instances\"%Instance3.Name%,"Flags",0x00010001,0x3 , ; neither
HKLM,"SOFTWARE\Else","Altitude",0,"no"

[Strings.0407]
ServiceDescription   = "Auf Deutsch"
SERVICE_DEMAND_START = 0x3
[strings]
ServiceDescription      = "Watches 100%;  ""all"" of it"
ServiceName             = "Watch"
DefaultInstance         = "Watch - Top Instance"
Instance1.Name          = "Watch - Middle Instance"
Instance1.Altitude      = "370000"
Instance1.Flags         = 0x1
Instance2.Name          = "Watch - Bottom Instance"
Instance2.Altitude      = "361000"
Instance2.Flags         = 0x2
Instance3.Name          = "Watch - Top Instance"
Instance3.Altitude      = "385100"
"""

SCREENER = (
    NULL.replace("Quiet Instance", "Screener Instance").replace("quiet", "screener")
    .replace('"FSFilter Activity Monitor"', '"FSFilter Content Screener"').replace("370020.5", "265000")
    .replace("0x1  ", "0x0  ").replace("StartType        = 3", "StartType = 1")
    .replace("0x00010001,0x3", "0x00010001,0xB")
)  # fmt: skip


def literal(text: str) -> dict[str, Any]:
    (assignment,) = ast.parse(manifest_text(text.encode(), "f.inf")).body
    assert isinstance(assignment, ast.Assign)
    value: dict[str, Any] = ast.literal_eval(assignment.value)
    return value


def refused(text: str, data: bytes | None = None) -> str:
    with pytest.raises(FilterImageError) as caught:
        manifest(text.encode() if data is None else data, "f.inf")
    assert "\n" not in caught.value.message and caught.value.message.startswith("f.inf:")
    return caught.value.message


def test_one_instance() -> None:
    assert literal(NULL) == {
        "name": "quiet",
        "altitude": "370020.5",
        "group": "FSFilter Activity Monitor",
        "description": "Quiet Mini-Filter Driver",
        "default_instance": "Quiet Instance",
        "attach": "manual",
        "start": "demand",
    }


def test_several_instances() -> None:
    """Flags: bit 0 suppresses automatic, bit 1 manual attachment; the default instance comes first."""
    assert literal(THREE) == {
        "name": "Watch",
        "altitude": "385100",
        "group": "FSFilter Activity Monitor",
        "description": 'Watches 100%; "all" of it',
        "default_instance": "Watch - Top Instance",
        "attach": "never",
        "instances": [
            {"name": "Watch - Middle Instance", "altitude": "370000", "attach": "manual"},
            {"name": "Watch - Bottom Instance", "altitude": "361000", "attach": "automatic-only"},
        ],
        "start": "demand",
    }


def test_what_else_an_inf_says() -> None:
    found = manifest(SCREENER.encode(), "f.inf")
    assert (found.start, found.attach, found.bypass, found.filter) == ("system", "automatic", "supported", "")
    outside = manifest(SCREENER.replace("265000", "370000").encode(), "f.inf")
    assert outside.altitude == "370000" and outside.altitude_reason == "its INF gives it"


@pytest.mark.parametrize(("number", "start"), [*enumerate(("boot", "system", "auto", "demand", "disabled"))])
def test_start_types(number: int, start: str) -> None:
    """A2.2: SERVICE_BOOT_START 0 to SERVICE_DISABLED 4."""
    text = NULL.replace("StartType        = 3", f"StartType        = {number}")
    assert manifest(text.encode(), "f.inf").start == start


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig", "utf-8", "cp1252"])
def test_encodings(encoding: str) -> None:
    text = NULL.replace("Quiet Mini", "Größe Mini").replace("\n", "\r\n")
    data = ("\ufeff" * (encoding == "utf-16-be") + text).encode(encoding)
    assert manifest(data, "f.inf").description == "Größe Mini-Filter Driver"


def test_what_is_printed_is_a_manifest(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (NULL, THREE, SCREENER):
        (tmp_path / "f.inf").write_text(text, encoding="utf-16")
        assert stackfs_main.main(["inf", str(tmp_path / "f.inf")]) == ExitCode.OK
        printed = capsys.readouterr().out
        (tmp_path / "f.py").write_text(f"from stackfs.api import Filter\n{printed}class F(Filter): pass\n")
        assert find(manifest(text.encode(), "").name, [str(tmp_path)]).manifest.instances == \
            manifest(text.encode(), "").instances  # fmt: skip


def test_errors_of_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stackfs_main.main(["inf", str(tmp_path / "no.inf")]) == ExitCode.NOT_FOUND
    assert stackfs_main.main(["inf", str(tmp_path)]) == ExitCode.FAILURE
    (tmp_path / "bad.inf").write_text(NULL.replace('"370020.5"', '"high"'))
    assert stackfs_main.main(["inf", str(tmp_path / "bad.inf")]) == ExitCode.REFUSED
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 3
    assert "bad.inf:43: 'high' is not an altitude" in said.err


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("%ServiceName%,,MiniFilter.Service", "%Nobody%,,MiniFilter.Service", 24, "%Nobody% is not in [Strings]"),
        ("[MiniFilter.Service]", "[MiniFilter.Serving]", 24, "no section [MiniFilter.Service]"),
        ("[MiniFilter.AddRegistry]", "[Else]", 38, "no section [MiniFilter.AddRegistry]"),
        ("AddService =", "AddNothing =", 1, "adds a service"),
        ('"FltMgr"', '"RpcSs"', 33, "does not depend on FltMgr"),
        ("StartType        = 3", "StartType = 5", 35, "StartType"),
        ("StartType        = 3", "StartType = soon", 35, "'soon' is not a number"),
        ('"FSFilter Activity Monitor"', '"Boot Bus Extender"', 37, "not a load order group"),
        ("LoadOrderGroup ", "LoadGroup ", 24, "no LoadOrderGroup"),
        ('DefaultInstance         = "Quiet Instance"', 'DefaultInstance = "Else"', 42, "none of its instances"),
        ('HKR,"Instances","DefaultInstance"', 'HKR,"Instances","Default"', 24, "no DefaultInstance"),
        (r'HKR,"Instances\"%Instance1.Name%,"Altitude"', 'HKR,"Else","A"', 44, "has no Altitude"),
        ("0x1              ;", "0x5 ;", 43, "Flags 0x5"),
        ('= "quiet"\nDriverName', '= "qui et"\nDriverName', 24, "not a filter's name"),
        ("[Version]", "Version", 6, "before the first [section]"),
        ("[Version]", "[Version", 6, "no ']'"),
    ],
)
def test_what_is_wrong_names_its_line(old: str, new: str, line: int, words: str) -> None:
    assert old in NULL
    said = refused(NULL.replace(old, new))
    assert said.startswith(f"f.inf:{line}: ") and words in said, said


def test_no_instances_at_all() -> None:
    kept = [line for line in NULL.splitlines() if not line.startswith('HKR,"Instances')]
    assert "has no Instances key" in refused("\n".join(kept))


def test_two_minifilters_in_one_file() -> None:
    assert "several minifilters (Watch, quiet)" in refused(NULL + THREE.replace("%ServiceName%", "Watch"))


def test_what_is_no_text() -> None:
    assert "neither text nor UTF-16" in refused("", b"MZ\0\0")
    assert "not UTF-16-LE" in refused("", b"\xff\xfeA")


# ---- beside a drop-in ---------------------------------------------------------------------------------------------


def test_an_inf_stands_in_for_the_manifest(tmp_path: pathlib.Path) -> None:
    """NAME.inf beside NAME.py, or beside the package NAME; the module's one Filter is the filter."""
    body = "from stackfs.api import Filter\nclass Quiet(Filter): pass\n"
    (tmp_path / "any.py").write_text(body)
    assert list_all([str(tmp_path)]).found[0].origin != "filterdir"
    (tmp_path / "any.inf").write_text(NULL, encoding="utf-16")
    found = find("quiet", [str(tmp_path)])
    assert (found.path, found.manifest.file) == (str(tmp_path / "any.py"), str(tmp_path / "any.inf"))
    assert loader.load(found).__name__ == "Quiet"
    loader.unload(found)
    (tmp_path / "any.py").unlink()
    (tmp_path / "any").mkdir()
    (tmp_path / "any" / "__init__.py").write_text("from .inner import Quiet\n")
    (tmp_path / "any" / "inner.py").write_text(body)
    found = find("quiet", [str(tmp_path)])
    assert loader.load(found).__name__ == "Quiet"
    loader.unload(found)
    assert not [name for name in sys.modules if name.startswith("stackfs_filter_quiet")]


def test_a_manifest_goes_before_an_inf(tmp_path: pathlib.Path) -> None:
    (tmp_path / "any.py").write_text('MANIFEST = {"name": "own", "altitude": "400000", "group": "FSFilter Top"}\n')
    (tmp_path / "any.inf").write_text("no INF at all")
    assert find("own", [str(tmp_path)]).manifest.altitude == "400000"


def test_a_broken_inf_is_reported(tmp_path: pathlib.Path) -> None:
    (tmp_path / "any.py").write_text("")
    (tmp_path / "any.inf").write_text("no INF at all")
    with pytest.raises(FilterImageError, match=r"any\.inf:1: "):
        find("any", [str(tmp_path)])


def test_which_class_is_the_filter(tmp_path: pathlib.Path) -> None:
    (tmp_path / "f.inf").write_text(NULL)
    head = "from stackfs.api import Filter\nfrom stackfs.filters.null import Null\n"
    for body, words in (("", "no subclass of Filter"),
                        ("class A(Filter): pass\nclass B(A): pass\n", "name one of A, B in the manifest")):  # fmt: skip
        (tmp_path / "f.py").write_text(head + body)
        with pytest.raises(FilterImageError, match=words):
            loader.load(find("quiet", [str(tmp_path)]))
