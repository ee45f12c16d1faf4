"""What the benchmark has to show, line by line: a ratio of two sides in one run, and the least (or most) it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .jobs import JOBS, Mode

Measure = Literal["rate", "cpu"]

PAIR_LIMIT = 60.0                      # nanoseconds for a native pre and post pair, the stack alone
PAIR_TITLE = "a native pre and post pair, the stack alone"
CIPHER_BOUND = 0.85                    # of what `openssl speed` does with blocks of this size
CIPHER_BLOCK = 4096
CIPHER_TITLE = "AES-256-GCM by itself, blocks of 4 KiB, MB/s"


@dataclass(frozen=True)
class Target:
    """ours / theirs of one job in one mode. rate: at least `bound`; cpu (seconds an operation): at most."""

    group: Literal["lanes", "drive", "encryption"]
    job: str
    ours: str
    theirs: str
    bound: float
    measure: Measure = "rate"
    mode: Mode = "direct"

    @property
    def title(self) -> str:
        job = JOBS[self.job].title
        return f"daemon's CPU, {job}" if self.measure == "cpu" else job

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.measure == "cpu" else ratio >= self.bound


def _lanes() -> list[Target]:
    kinds = ("read_4k", "write_4k", "read_1m", "write_1m")
    lines = [
        Target("lanes", f"{kind}_{jobs}", "bypass", "directory", bound)
        for kind in kinds
        for jobs, bound in ((1, 0.95), (4, 0.75))
    ]
    lines += [
        Target("lanes", "read_4k_1", "native", "passthrough_ll", 1.2),
        Target("lanes", "read_4k_4", "native", "passthrough_ll", 0.9),
        Target("lanes", "read_4k_1", "python", "plain", 3.0),
        Target("lanes", "read_4k_4", "python", "plain", 2.5),
    ]
    lines += [
        Target("lanes", f"{kind}_{jobs}", "native", "passthrough_ll", 1.0) for kind in kinds[1:] for jobs in (1, 4)
    ]
    lines += [
        Target("lanes", job, "native", "passthrough_ll", 1.0)
        for job in ("stat", "readdir", "create", "unlink", "unpack")
    ]
    lines += [
        Target("lanes", "read_4k_4", "irp_0", "plain", 0.6),
        Target("lanes", "read_4k_1", "irp_0", "plain", 0.4),
        Target("lanes", "read_4k_1", "native", "passthrough_ll", 1.0, "cpu"),
    ]
    return lines


def _encryption() -> list[Target]:
    lines: list[tuple[str, float, Measure]] = [
        ("read_1m_1", 1.5, "rate"), ("write_1m_1", 1.5, "rate"),
        ("read_4k_1", 1.3, "rate"), ("write_4k_1", 1.5, "rate"),
        *((job, 1.0, "rate") for job in ("create", "stat", "unlink", "unpack", "readdir")),
        ("read_1m_1", 0.8, "cpu"), ("write_1m_1", 0.8, "cpu"),
    ]  # fmt: skip
    return [
        Target("encryption", job, "encryption", "gocryptfs", bound, measure, "cached") for job, bound, measure in lines
    ]


TARGETS = (
    *_lanes(),
    Target("drive", "read_4k_4", "demo", "plain", 0.6),
    Target("drive", "read_4k_1", "demo", "plain", 0.4),
    Target("drive", "stat", "demo", "plain", 0.8),
    Target("drive", "create", "demo", "plain", 1.0),
    Target("drive", "unlink", "demo", "plain", 1.0),
    *_encryption(),
)

GROUPS = {
    "lanes": "three lanes: native speed where nothing filters, C speed where something does",
    "drive": "passthrough and audit attached, against plain pyfuse3",
    "encryption": "an encrypted drive, against gocryptfs, AES-256-GCM both",
}


def sides_needed(job: str, mode: Mode) -> list[str]:
    """The sides that some target compares on this job in this mode, each once, in the table's order."""
    lines = [line for line in TARGETS if (line.job, line.mode) == (job, mode)]
    return list(dict.fromkeys(name for line in lines for name in (line.ours, line.theirs)))
