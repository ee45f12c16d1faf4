"""The sides: what is measured, and how each is mounted over a backing directory.

All are given the same: time-outs of one second for names and attributes, the kernel's permission checks
(default_permissions), and one of two modes:

    direct   every read(2) and write(2) reaches the daemon: cache=strict, cache=never, direct I/O. A peer that has no
             such mount option gets the same from O_DIRECT on fio's descriptor, which it keeps to itself (o_direct)
    cached   the kernel's page cache is above the filesystem on every side
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import mounts
from .jobs import TIMEOUT, Mode

Lane = Literal["bypass", "device", "irp"]

FILTERS = Path(__file__).resolve().parent / "filters"      # found as a stranger's would be
EXAMPLE = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
BUILD = Path(__file__).resolve().parent.parent / "build"
DEVICE, IRP = ("lanes=auto", "bypass=off"), ("lanes=irp",)


@dataclass(frozen=True)
class Side:
    """One side. options, filters, counters: of a stackfs volume; lane: the one that it is about, if it is about one."""

    name: str
    title: str
    kind: Literal["directory", "stackfs", "passthrough_ll", "bindfs", "gocryptfs", "securefs", "plain"]
    lane: Lane | None = None
    options: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    counters: int = 0
    o_direct: bool = False

    @property
    def encrypts(self) -> bool:
        """What is below it is ciphertext of its own: the files that the loads need are copied in through the mount."""
        return self.kind in ("gocryptfs", "securefs") or "encryption" in self.filters


def _sides() -> tuple[Side, ...]:
    lanes: tuple[tuple[Lane, tuple[str, ...]], ...] = (("device", DEVICE), ("irp", IRP))
    sides = [
        Side("directory", "the backing directory", "directory"),
        Side("bypass", "stackfs, bypass lane", "stackfs", "bypass", ("lanes=auto", "bypass=auto")),
        Side("native", "stackfs, native stack", "stackfs", filters=("audit", "counter", "budget")),
        Side("python", "stackfs, one Python filter", "stackfs", filters=("onlooker",)),
        Side("demo", "stackfs, passthrough and audit", "stackfs", filters=("passthrough", "audit")),
        Side("encryption", "stackfs, encryption", "stackfs", filters=("encryption",)),
    ]
    for lane, options in lanes:
        for count in (0, 1, 3, 10):
            title = f"stackfs, {'IRP' if lane == 'irp' else lane} lane, {count} instance{'' if count == 1 else 's'}"
            sides.append(Side(f"{lane}_{count}", title, "stackfs", lane, options, counters=count))
    sides += [
        Side("passthrough_ll", "libfuse passthrough_ll", "passthrough_ll"),
        Side("bindfs", "bindfs", "bindfs", o_direct=True),
        Side("gocryptfs", "gocryptfs", "gocryptfs", o_direct=True),
        Side("securefs", "securefs", "securefs", o_direct=True),
        Side("plain", "plain pyfuse3", "plain"),
    ]
    return tuple(sides)


SIDES = {side.name: side for side in _sides()}


@dataclass(frozen=True)
class Mounted:
    """A side that is ready: where it is used, its daemon (None: there is none), and the lane its reads take."""

    side: Side
    path: Path
    pid: int | None = None
    lane: str | None = None


@contextmanager
def mounted(side: Side, source: Path, work: Path, mode: Mode) -> Iterator[Mounted]:
    """The side over `source`, while it is mounted; `work` is an empty directory of its own. MountFailed: one line."""
    if side.kind == "directory":
        yield Mounted(side, source)
        return
    mountpoint = work / f"bench-{os.getpid()}-{side.name}"
    mountpoint.mkdir()
    if side.encrypts:
        (work / "phrase").write_text("benchmark\n")
    if side.kind == "stackfs":
        below = _volume(source, work) if side.encrypts else source
        with mounts.stackfs(_toml(side, below, mountpoint, work, mode), mountpoint) as pid:
            if side.encrypts:
                _copy(source, mountpoint)
            yield Mounted(side, mountpoint, pid, _checked_lane(side, mountpoint))
        return
    with mounts.foreground(_PEERS[side.kind](source, mountpoint, work, mode), mountpoint) as pid:
        if side.encrypts:
            _copy(source, mountpoint)
        yield Mounted(side, mountpoint, pid)


def missing(side: Side) -> str | None:
    """Why a peer cannot be measured here, and what to install; None if it can."""
    if side.kind in ("bindfs", "gocryptfs") and shutil.which(side.kind) is None:
        return f"not installed: apt-get install {side.kind}"
    if side.kind == "securefs" and shutil.which(side.kind) is None:
        return "not installed (Debian has no package of it)"
    if side.kind == "passthrough_ll":
        try:
            passthrough_ll()
        except mounts.MountFailed as error:
            return str(error)
    return None


# ---- stackfs --------------------------------------------------------------------------------------------------------


def _toml(side: Side, source: Path, mountpoint: Path, work: Path, mode: Mode) -> Path:
    """A volume TOML: the side's filters, or so many counters one above the other."""

    def text(value: object) -> str:
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

    options = ", ".join(map(text, [f"cache={'strict' if mode == 'direct' else 'normal'}", *side.options]))
    lines = [
        "[volume]", f"name = {text(mountpoint.name)}", f"source = {text(source)}", f"mountpoint = {text(mountpoint)}",
        f"filterdir = [{text(FILTERS)}]", f"options = [{options}]",
    ]  # fmt: skip
    for name in side.filters:
        lines += ["[[instance]]", f"filter = {text(name)}"]
        if name == "encryption":
            lines += [f"options.passfile = {text(work / 'phrase')}"]
        if name == "audit":
            lines += [f"options.directory = {text(work / 'trail')}", f"options.key = {text(work / 'audit.key')}"]
    for number in range(side.counters):
        lines += ["[[instance]]", 'filter = "counter"', f'name = "counter {number + 1}"',
                  f'altitude = "385310.{number + 1:02}"']  # fmt: skip
    path = work / "volume.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


_PROBE = """
import os, sys
try:
    file = os.open(sys.argv[1], os.O_RDONLY)
    os.pread(file, 4096, 0)
except OSError as error:
    sys.exit(str(error))
print(flush=True)
sys.stdin.read()
"""


def _checked_lane(side: Side, mountpoint: Path) -> str | None:
    """The lane that a read of the mount really takes. MountFailed: another than the side is about."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _PROBE, str(_probed(mountpoint))],
        cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as probe:  # fmt: skip
        assert probe.stdin is not None and probe.stdout is not None
        probe.stdout.readline()
        try:
            lane = lane_of(mounts.stackfs_status(mountpoint)["status"])
        finally:
            probe.stdin.close()
    if side.lane is not None and lane != side.lane:
        raise mounts.MountFailed(f"the options are accepted, but reads take the {lane or 'unknown'} lane")
    return lane


def _probed(mountpoint: Path) -> Path:
    """A file of the mount, named after those of the backing directory so that the mount itself is not listed here."""
    for name in ("data", "many/f000000"):
        if subprocess.run(["test", "-e", str(mountpoint / name)], timeout=mounts.START_LIMIT).returncode == 0:
            return mountpoint / name
    raise mounts.MountFailed("the volume does not show the files of its backing directory")


def lane_of(status: dict[str, object]) -> str | None:
    """The lane on which a volume's status says that reads went while one file was open."""
    if status.get("bypassed_opens"):
        return "bypass"
    requests = status.get("requests")
    if not isinstance(requests, dict):
        return None
    reads = {lane: counts.get("READ", 0) for lane, counts in requests.items() if isinstance(counts, dict)}
    best = max(reads, key=lambda lane: reads[lane], default=None)
    return best if best is not None and reads[best] else None


def _volume(source: Path, work: Path) -> Path:
    words = [*mounts.stackfs_command(), "encryption", "init", "--passfile", str(work / "phrase")]
    return _ciphertext(source, "encryption", "stackfs encryption init", words)


def _ciphertext(source: Path, name: str, what: str, words: list[str]) -> Path:
    """A directory of its own beside the source, which these words, with its path behind them, have initialised once."""
    cipher = source.parent / f"{source.name}-{name}"
    if cipher.exists():
        return cipher
    cipher.mkdir()
    words = [*words, str(cipher)]
    done = subprocess.run(words, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise mounts.MountFailed(f"{what} failed: {reason}")
    return cipher


# ---- peers ----------------------------------------------------------------------------------------------------------


def passthrough_ll() -> Path:
    """libfuse's passthrough_ll, built from Debian's source of it (libfuse3-dev's examples) into build/."""
    folder = BUILD / "peers" if os.access(BUILD, os.W_OK) else _cache() / "peers"
    binary = folder / "passthrough_ll"
    source = EXAMPLE if EXAMPLE.exists() else folder / EXAMPLE.name
    if binary.exists() and source.exists() and binary.stat().st_mtime >= source.stat().st_mtime:
        return binary
    folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        _unpack_example(folder)
    try:
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True
        ).stdout.split()
        subprocess.run(
            ["gcc", "-O2", "-o", str(binary) + ".new", str(source), *flags], check=True, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise mounts.MountFailed(f"cannot be built: {error.filename} is missing") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or ["no reason given"]
        raise mounts.MountFailed(f"cannot be built: {lines[0]}") from None
    os.replace(str(binary) + ".new", binary)
    return binary


def _unpack_example(folder: Path) -> None:
    """Where dpkg leaves /usr/share/doc out (slim images), the package's examples come from the package itself."""
    try:
        subprocess.run(["apt-get", "download", "-qq", "libfuse3-dev"], cwd=folder, check=True, capture_output=True)
        (package,) = sorted(folder.glob("libfuse3-dev_*.deb"))[-1:]
        subprocess.run(["dpkg-deb", "-x", package, folder / "package"], check=True, capture_output=True)
        for path in (folder / "package" / EXAMPLE.parent.relative_to("/")).glob("passthrough*"):
            shutil.copy2(path, folder)
    except (OSError, ValueError, subprocess.CalledProcessError):
        raise mounts.MountFailed(f"no source: {EXAMPLE} is missing (apt-get install libfuse3-dev)") from None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stackfs"


def _passthrough_ll(source: Path, mountpoint: Path, work: Path, mode: Mode) -> list[str]:
    cache = "never" if mode == "direct" else "auto"
    options = f"source={_comma(source)},cache={cache},timeout={TIMEOUT},default_permissions"
    return [str(passthrough_ll()), "-f", "-o", options, str(mountpoint)]


def _bindfs(source: Path, mountpoint: Path, work: Path, mode: Mode) -> list[str]:
    timeouts = f"entry_timeout={TIMEOUT},attr_timeout={TIMEOUT}"
    return ["bindfs", "-f", "--no-allow-other", "-o", timeouts, str(source), str(mountpoint)]


def _gocryptfs(source: Path, mountpoint: Path, work: Path, mode: Mode) -> list[str]:
    phrase = str(work / "phrase")
    words = ["gocryptfs", "-init", "-q", "-scryptn", "10", "-passfile", phrase]
    cipher = _ciphertext(source, "gocryptfs", "gocryptfs -init", words)
    return ["gocryptfs", "-fg", "-q", "-nosyslog", "-passfile", phrase, str(cipher), str(mountpoint)]


def _securefs(source: Path, mountpoint: Path, work: Path, mode: Mode) -> list[str]:
    """Its lite format, one file below for each file, as with the others."""
    phrase = (work / "phrase").read_text().strip()
    version = subprocess.run(["securefs", "version"], capture_output=True, text=True, timeout=60, check=False).stdout
    lite = "4" if version.startswith("securefs 0.") else "lite"          # before 1.0 by number
    words = ["securefs", "create", "--format", lite, "--rounds", "1", "--pass", phrase]
    cipher = _ciphertext(source, "securefs", "securefs create", words)
    return ["securefs", "mount", "--pass", phrase, str(cipher), str(mountpoint)]


def _copy(source: Path, mountpoint: Path) -> None:
    """What the loads need, through the mount (once: what is there already stays)."""
    words = ["cp", "-r", "-n", "--", f"{source}/.", str(mountpoint)]
    try:
        subprocess.run(words, check=True, cwd="/", capture_output=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise mounts.MountFailed("the files that the loads need could not be copied in") from None


def _plain(source: Path, mountpoint: Path, work: Path, mode: Mode) -> list[str]:
    script = Path(__file__).with_name("plain_pyfuse3.py")
    timeouts = [f"--entry-timeout={TIMEOUT}", f"--attr-timeout={TIMEOUT}"]
    direct = ["--direct-io"] if mode == "direct" else []
    return [sys.executable, "-I", str(script), *direct, *timeouts, str(source), str(mountpoint)]


def _comma(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace(",", "\\,")


_PEERS: dict[str, Callable[[Path, Path, Path, Mode], list[str]]] = {
    "passthrough_ll": _passthrough_ll,
    "bindfs": _bindfs,
    "gocryptfs": _gocryptfs,
    "securefs": _securefs,
    "plain": _plain,
}
