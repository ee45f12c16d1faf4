"""`stackfs bench`: which loads run on which sides, in turns, and what came out.

A scene is a kind of load (data or metadata) in one mode (direct or cached). All its sides are mounted together over one
backing directory; then the loads take turns: a job runs on one side, at once on the next, and the side that begins
changes from round to round. What counts is the median of the rounds, and the ratio of two sides' medians.

Data lies in a temporary directory on disk and is in the page cache; the metadata scene is on a tmpfs, so that the
disk's own filesystem is not what is measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from stackfs.errors import StackfsError, UsageError

from . import jobs
from .jobs import JOBS, Counts, Job, JobFailed, MetadataWorker, Mode, Outcome
from .mounts import MountFailed
from .report import Results, busy, machine
from .sides import SIDES, Mounted, missing, mounted
from .targets import CIPHER_BLOCK, sides_needed

BUSY = 0.1                             # of the processors used by others: more, and the figures say little
SHM = Path("/dev/shm")
SHM_FREE = 128 << 20                   # bytes that must be free there
KINDS: tuple[jobs.Scene, ...] = ("data", "metadata")
MODES: tuple[Mode, ...] = ("direct", "cached")
PAIRS = {"create": "unlink", "unpack": "remove"}       # what the first makes, the second takes away
COMPARED: dict[Mode, tuple[str, ...]] = {"direct": ("native", "passthrough_ll"), "cached": ()}
"""On metadata loads that have no target, too."""
BESIDE = {"gocryptfs": "securefs"}     # a peer that stands in the table, if it is there, wherever the first does
MANY_TIMES = 10                        # as many files in the directory of the cached metadata scene


@dataclass(frozen=True)
class Settings:
    """How much is measured. jobs, sides: patterns as of a shell; empty: what the targets need (full: everything)."""

    full: bool = False
    rounds: int = 3
    seconds: float = 1.5
    repeats: int = 4                   # of the metadata loads in a round
    counts: Counts = field(default_factory=Counts)
    expiry: float = jobs.TIMEOUT * 1.1
    limit: float | None = None         # seconds; metadata loads are repeated less rather than that this is exceeded
    jobs: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    directory: Path | None = None

    @classmethod
    def quick(cls, **given: object) -> Settings:
        """A run that takes seconds and shows that everything works; its figures say nothing."""
        quick: dict[str, object] = {
            "rounds": 1, "seconds": 0.2, "repeats": 1, "counts": Counts(many=100, new=50, tree=50), "expiry": 0.0
        }  # fmt: skip
        return cls(**{**quick, **given})  # type: ignore[arg-type]


@dataclass
class Scene:
    """Loads of one kind in one mode, and the sides of each."""

    kind: jobs.Scene
    mode: Mode
    cells: list[tuple[Job, list[str]]] = field(default_factory=list)

    @property
    def sides(self) -> list[str]:
        named = {name for _, sides in self.cells for name in sides}
        return [name for name in SIDES if name in named]

    def counts(self, settings: Settings) -> Counts:
        counts = settings.counts
        return counts if self.mode == "direct" else replace(counts, many=counts.many * MANY_TIMES)

    def repeats(self, settings: Settings) -> int:
        """How often each load is run in a round."""
        if self.kind == "data":
            return 1
        return settings.repeats if self.mode == "direct" else max(1, settings.repeats // 4)

    def size(self, settings: Settings) -> int:
        return settings.rounds * self.repeats(settings) * sum(len(sides) for _, sides in self.cells)


def plan(settings: Settings) -> list[Scene]:
    """The scenes that the settings ask for. UsageError: a pattern that means nothing."""
    chosen = {
        what: [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        for what, names, patterns in (("job", list(JOBS), settings.jobs), ("side", list(SIDES), settings.sides))
    }
    for what, patterns in (("job", settings.jobs), ("side", settings.sides)):
        if patterns and not chosen[what]:
            known = ", ".join(JOBS if what == "job" else SIDES)
            raise UsageError(f"no {what} is called {patterns[0]!r}; there are {known}")
    scenes = [Scene(kind, mode) for mode in MODES for kind in KINDS]
    for scene in scenes:
        names = [name for name, job in JOBS.items() if job.scene == scene.kind and name in (chosen["job"] or JOBS)]
        wanted = {name: _sides_of(name, scene.mode, settings, chosen["side"]) for name in names}
        for first, second in PAIRS.items():
            both = [name for name in SIDES if name in {*wanted.get(first, ()), *wanted.get(second, ())}]
            if both:
                wanted[first] = wanted[second] = both
        scene.cells = [(job, wanted[job.name]) for job in JOBS.values() if wanted.get(job.name)]
    return [scene for scene in scenes if scene.cells]


def _sides_of(job: str, mode: Mode, settings: Settings, chosen: list[str]) -> list[str]:
    """What is measured of a job in a mode. An encrypted drive is measured as it is used, with the kernel's cache."""
    needed = sides_needed(job, mode)
    if not needed and JOBS[job].scene == "metadata":
        needed = list(COMPARED[mode])
    needed += [BESIDE[name] for name in needed if name in BESIDE]
    possible = [name for name in SIDES if mode == "cached" or name != "encryption"]
    if mode == "cached" and not (settings.full and JOBS[job].scene == "data"):
        possible = needed
    if chosen:
        return [name for name in possible if name in chosen]
    return possible if settings.full else needed


Tell = Callable[[int, int, str], None]
"""Told how many runs are done, of how many, and what comes next."""


def run(settings: Settings, tell: Tell = lambda done, of, text: None) -> Results:
    """Everything that is asked for. StackfsError: it cannot even begin."""
    if shutil.which("fio") is None:
        raise StackfsError("fio is missing: apt-get install fio")
    scenes = plan(settings)
    total = sum(scene.size(settings) for scene in scenes)
    results = Results(machine(), settings.rounds, settings.seconds)
    begin = time.monotonic()
    if (load := busy()) > BUSY:
        results.notes.append(f"others used {load:.0%} of this machine's processors when this began")
    results.pair = native_pair()
    results.cipher = cipher(settings)
    done = 0
    for scene in scenes:
        with places(scene, settings, results) as (work, source):
            end = None if settings.limit is None else begin + settings.limit
            done = _Run(scene, settings, results, work, source, tell, done, total, end).measure()
    results.took = time.monotonic() - begin
    return results


def native_pair() -> list[float]:
    """Nanoseconds an operation takes through one native pre and post pair, without a mount; five runs."""
    from stackfs.cext import stack

    stack.time_native_pair(100_000)
    return [float(stack.time_native_pair(2_000_000)) for _ in range(5)]


def cipher(settings: Settings) -> list[tuple[float, float]]:
    """MB/s of AES-256-GCM with blocks of CIPHER_BLOCK bytes, ours and openssl's, a pair a round, in turns."""
    from stackfs.filters.encryption.speed import measure

    if shutil.which("openssl") is None:
        return []
    whole = str(max(1, round(settings.seconds)))
    words = ["openssl", "speed", "-mr", "-seconds", whole, "-bytes", str(CIPHER_BLOCK), "-aead", "-evp", "aes-256-gcm"]
    pairs = []
    for _ in range(settings.rounds):
        (row,) = measure(["aes-256-gcm"], settings.seconds, [1])
        said = subprocess.run(words, capture_output=True, text=True, cwd="/", check=False).stdout
        last = said.strip().rpartition(":")[2]
        if not last.replace(".", "", 1).isdigit():
            return []
        pairs.append((row.encrypt / 1e6, float(last) / 1e6))
    return pairs


@contextmanager
def places(scene: Scene, settings: Settings, results: Results) -> Iterator[tuple[Path, Path]]:
    """A directory to work in, and the backing directory, with what the loads need in it; both gone afterwards."""
    work = Path(tempfile.mkdtemp(prefix="stackfs-bench-", dir=settings.directory))
    top = work
    if scene.kind == "metadata":
        if _is_roomy_tmpfs(SHM):
            top = Path(tempfile.mkdtemp(prefix="stackfs-bench-", dir=SHM))
        else:
            results.notes.append(f"{SHM} is no tmpfs with {SHM_FREE >> 20} MiB free: metadata is measured on {work}")
    try:
        source = top / "source"
        source.mkdir()
        if scene.kind == "data":
            jobs.prepare_data(source, jobs.size_of_data(scene.mode))
        else:
            jobs.prepare_metadata(source, scene.counts(settings))
            jobs.make_archive(top / "tree.tar", settings.counts)
        yield work, source
    finally:
        if _nothing_mounted_below(work):
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(top, ignore_errors=True)


def _mount_table() -> list[list[str]]:
    return [line.split() for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()]


def _is_roomy_tmpfs(path: Path) -> bool:
    if not any(line[4] == str(path) and line[line.index("-") + 1] == "tmpfs" for line in _mount_table()):
        return False
    room = os.statvfs(path)
    return os.access(path, os.W_OK) and room.f_bavail * room.f_frsize >= SHM_FREE


def _nothing_mounted_below(path: Path) -> bool:
    return not any(line[4].startswith(f"{path}/") for line in _mount_table())


class _Run:
    """One scene's measurement. A side that fails is dropped, with a note, and the others go on."""

    def __init__(
        self, scene: Scene, settings: Settings, results: Results, work: Path, source: Path, tell: Tell, done: int,
        total: int, end: float | None,
    ) -> None:  # fmt: skip
        self.scene = scene
        self.settings = settings
        self.results = results
        self.work = work
        self.source = source
        self.tell = tell
        self.done = done
        self.total = total
        self.end = end
        self.ready: dict[str, Mounted] = {}
        self.workers: dict[str, MetadataWorker] = {}

    def measure(self) -> int:
        """Mount, measure, unmount; how many runs are done now."""
        with ExitStack() as stack:
            for name in self.scene.sides:
                self.tell(self.done, self.total, f"mounting: {SIDES[name].title}")
                self._set_up(name, stack)
            begin = time.monotonic()
            for number in range(self.settings.rounds):
                share = (number + 1) / self.settings.rounds
                self._round(number, None if self.end is None else begin + (self.end - begin) * share)
            self.tell(self.done, self.total, "unmounting")
        return self.done

    def _set_up(self, name: str, stack: ExitStack) -> None:
        side = SIDES[name]
        folder = self.work / name
        folder.mkdir()
        try:
            if reason := missing(side):
                raise MountFailed(reason)
            ready = stack.enter_context(mounted(side, self.source, folder, self.scene.mode))
        except MountFailed as error:
            self._leave_out(name, str(error))
            return
        self.ready[name] = ready
        if ready.lane is not None:
            self.results.lanes[name] = ready.lane
        if self.scene.kind == "metadata":
            settings = self.settings
            archive = self.source.parent / "tree.tar"
            expiry = settings.expiry if ready.pid else 0.0
            worker = MetadataWorker(ready.path, name, archive, self.scene.counts(settings), expiry)
            self.workers[name] = stack.enter_context(worker)

    def _round(self, number: int, end: float | None) -> None:
        repeats = self.scene.repeats(self.settings)
        if self.scene.kind == "data":                  # the page cache below is warm, whatever else needed the memory
            subprocess.run(["cat", self.source / jobs.DATA_FILE], stdout=subprocess.DEVNULL, check=False)
        for repeat in range(repeats):
            if repeat and end is not None and time.monotonic() > end:
                self.done += sum(len(names) for _, names in self.scene.cells)
                continue
            for job, names in self.scene.cells:
                for name in _turn(names, number * repeats + repeat):
                    if name in self.ready:
                        title = SIDES[name].title
                        self.tell(
                            self.done, self.total, f"round {number + 1} of {self.settings.rounds}: {job.title}, {title}"
                        )
                        self._cell(job, name)
                    self.done += 1

    def _cell(self, job: Job, name: str) -> None:
        ready = self.ready[name]
        try:
            before = jobs.cpu_seconds(ready.pid) if ready.pid else None
            if self.scene.kind == "data":
                o_direct = ready.side.o_direct and self.scene.mode == "direct"
                outcome = jobs.fio(job, ready.path, self.settings.seconds, self.scene.mode, o_direct)
            else:
                outcome = self.workers[name].run(job)
            cpu = jobs.cpu_seconds(ready.pid) - before if ready.pid and before is not None else None
        except JobFailed as error:
            self._leave_out(name, str(error))
            return
        self.results.add(self.scene.mode, job.name, name, Outcome(outcome.operations, outcome.seconds, cpu))

    def _leave_out(self, name: str, reason: str) -> None:
        self.ready.pop(name, None)
        note = f"{SIDES[name].title} is left out: {reason}"
        if note not in self.results.notes:
            self.results.notes.append(note)


def _turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a turn: every side comes first, and last, equally often."""
    at = number % len(names)
    turned = [*names[at:], *names[:at]]
    return turned if number // len(names) % 2 == 0 else turned[::-1]
