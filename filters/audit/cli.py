"""`stackfs audit`: read a trail, follow it, prove it (docs/audit.md). Reads files only; speaks to no daemon."""

from __future__ import annotations

import fnmatch
import json as json_module
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated, Any

import typer

from stackfs.cli.tables import escape
from stackfs.errors import ExitCode, StackfsError
from stackfs.filters.audit import records
from stackfs.filters.audit import verify as verifying
from stackfs.filters.audit.records import Record

app = typer.Typer(help="Read, follow and verify an audit trail.", no_args_is_help=True)

POLL = 0.2
"""Seconds between two looks of `follow`."""

Directory = Annotated[str, typer.Argument(metavar="DIRECTORY", help="The trail's directory.")]
Path = Annotated[
    str | None, typer.Option("--path", metavar="GLOB", help="Only paths that match (either of a rename's).")
]
Process = Annotated[str | None, typer.Option("--process", metavar="NAME|PID", help="Only this command or process.")]
Operation = Annotated[
    list[str] | None, typer.Option("--operation", metavar="NAME", help="Only these requests: open, write, unlink, ...")
]
Status = Annotated[str | None, typer.Option("--status", metavar="ERRNO", help="Only this outcome: EACCES, ok, failed.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines.")]


@app.command("show")
def show(
    directory: Directory,
    path: Path = None,
    process: Process = None,
    operation: Operation = None,
    status: Status = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="ISO time, or 10m, 2h, 3d ago.")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="ISO time, or 10m, 2h, 3d ago.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=0, help="Only the last N.")] = None,
    json: Json = False,
) -> None:
    """Show the records of a trail, oldest first."""
    wanted = _chosen(path, process, operation, status, _moment(since), _moment(until))
    found: Iterator[Record] | deque[Record] = (record for record in _read(directory) if wanted(record))
    if limit is not None:
        found = deque(found, maxlen=limit)
    _print(iter(found), json)


@app.command("follow")
def follow(
    directory: Directory,
    path: Path = None,
    process: Process = None,
    operation: Operation = None,
    status: Status = None,
    json: Json = False,
) -> None:
    """Show records as they are written, until interrupted. Goes on across segments."""
    wanted = _chosen(path, process, operation, status, None, None)
    cursor = records.Cursor()
    for _ in _read_on(directory, cursor):
        pass
    first = True
    while True:
        found = [record for record in _read_on(directory, cursor) if wanted(record)]
        if found or first:
            _print(iter(found), json, heading=first)
            sys.stdout.flush()
        first = False
        time.sleep(POLL)


@app.command("verify")
def verify(
    directory: Directory,
    key: Annotated[str, typer.Option("--key", metavar="FILE", help="The first key, written when the trail was made.")],
    copy: Annotated[bool, typer.Option("--copy", help="A copy that was made without the state file.")] = False,
    expect: Annotated[
        list[str] | None,
        typer.Option("--expect", metavar="NUMBER:DIGEST", help="A record's digest, as an earlier verify printed it."),
    ] = None,
    json: Json = False,
) -> None:
    """Prove a trail: exit code 0 when it is whole, 8 when anything was changed, removed or cut off, 9 after a crash."""
    expected = dict(_expected(each) for each in expect or ())
    try:
        with open(key, encoding="ascii", errors="replace") as file:
            key_file = records.KeyFile.parse(file.read(4096))
        report = verifying.verify(directory, key_file, copy=copy, expected=expected)
    except records.FormatError as error:
        raise StackfsError(f"{directory}: {error}", ExitCode.USAGE) from error
    except OSError as error:
        raise StackfsError(f"{error.filename or directory}: {error.strerror}", ExitCode.NOT_FOUND) from error
    if json:
        shown = {name: getattr(report, name) for name in (
            "outcome", "message", "sequence", "what", "segment", "offset", "records", "sealed", "digest", "epoch",
            "lost", "refused", "recoveries", "notes")}  # fmt: skip
        print(json_module.dumps(shown, default=str))
    else:
        print(f"{report.outcome}: {escape(report.message)}")
        if report.records and report.outcome != verifying.TAMPERED:
            print(f"  its end: {report.records}:{report.digest}")
        for note in report.notes:
            print(f"  {escape(note)}")
    raise typer.Exit(report.exit_code)


def _expected(text: str) -> tuple[int, bytes]:
    number, _, digest = text.partition(":")
    try:
        value = bytes.fromhex(digest)
        if len(value) == records.MAC_SIZE:
            return int(number), value
    except ValueError:
        pass
    raise StackfsError(f"--expect {text!r}: write NUMBER:DIGEST as verify prints it", ExitCode.USAGE)


# --- choosing -----------------------------------------------------------------------------------------------------


def _read(directory: str) -> Iterator[Record]:
    return _read_on(directory, records.Cursor())


def _read_on(directory: str, cursor: records.Cursor) -> Iterator[Record]:
    try:
        if not records.segments(directory):
            raise StackfsError(f"{directory}: no audit trail is there", ExitCode.NOT_FOUND)
        yield from records.read_on(directory, cursor)
    except OSError as error:
        raise StackfsError(f"{error.filename or directory}: {error.strerror}", ExitCode.NOT_FOUND) from error


def _moment(text: str | None) -> int | None:
    """Nanoseconds since 1970."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        if text[-1:] in units:
            return time.time_ns() - int(float(text[:-1]) * units[text[-1]] * 1e9)
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except (ValueError, OverflowError):
        raise StackfsError(f"{text!r} is no time: write 2026-11-21T10:00, or 10m for ten minutes ago",
                           ExitCode.USAGE) from None  # fmt: skip


def _chosen(
    path: str | None,
    process: str | None,
    operations: list[str] | None,
    status: str | None,
    since: int | None,
    until: int | None,
) -> Callable[[Record], bool]:
    known = {records.operation_name(number) for number in records.OPERATIONS}
    for each in operations or ():
        if each not in known:
            raise StackfsError(f"{each!r} is no request; they are {', '.join(sorted(known))}", ExitCode.USAGE)
    pattern = None if path is None else os.fsencode(path)

    def wanted(record: Record) -> bool:
        if (since is not None and record.time < since) or (until is not None and record.time > until):
            return False
        if record.kind != records.REQUEST:
            return not (path or process or operations or status) and record.kind in (records.LOST, records.RECOVERED)
        fields = record.fields
        if pattern is not None and not any(fnmatch.fnmatchcase(each, pattern) for each in _paths(record)):
            return False
        if process is not None and process not in (str(fields["pid"]), _comm(record)):
            return False
        if operations and record.operation not in operations:
            return False
        if status is not None:
            outcome = record.status_name
            return {"ok": not outcome, "failed": bool(outcome)}.get(status, outcome == status)
        return True

    return wanted


def _paths(record: Record) -> list[bytes]:
    return [each for each in (record.path, record.fields.get("other", b"")) if each]


def _comm(record: Record) -> str:
    raw: bytes = record.fields.get("comm", b"")
    return os.fsdecode(raw.split(b"\0", 1)[0])


# --- showing ------------------------------------------------------------------------------------------------------


def _print(found: Iterator[Record], as_json: bool, heading: bool = True) -> None:
    if as_json:
        for record in found:
            print(json_module.dumps(_as_dict(record)))
        return
    if heading:
        print(f"{'Number':>8}  {'Time':<26}  {'Operation':<11} {'Process':<22} {'Uid':>6}  {'Outcome':<12} "
              f"{'Took':>10}  Path")  # fmt: skip
        print(f"{'-' * 8}  {'-' * 26}  {'-' * 11} {'-' * 22} {'-' * 6}  {'-' * 12} {'-' * 10}  {'-' * 20}")
    for record in found:
        print(_line(record))


def _line(record: Record) -> str:
    fields = record.fields
    when = datetime.fromtimestamp(record.time / 1e9).isoformat(timespec="microseconds")
    if record.kind != records.REQUEST:
        return f"{record.sequence:>8}  {when:<26}  {record.kind_name}: {escape(str(fields))}"
    who = f"{escape(_comm(record))}[{fields['pid']}]"
    where = " -> ".join(escape(os.fsdecode(each)) for each in _paths(record))
    if record.flags & records.PATH_DELETED:
        where += "  (deleted)"
    if fields["offset"] >= 0:
        where += f"  [{fields['offset']}+{fields['length']}]"
    return (f"{record.sequence:>8}  {when:<26}  {record.operation:<11} {who:<22} {fields['uid']:>6}  "
            f"{record.status_name or 'ok':<12} {fields['duration'] / 1000:>7.0f} µs  {where}")  # fmt: skip


def _as_dict(record: Record) -> dict[str, Any]:
    shown: dict[str, Any] = {"sequence": record.sequence, "time": record.time, "kind": record.kind_name}
    if record.kind == records.REQUEST:
        shown["operation"] = record.operation
        shown["outcome"] = record.status_name or "ok"
        shown["flags"] = [name for bit, name in records.FLAG_NAMES.items() if record.flags & bit]
    for name, value in record.fields.items():
        if isinstance(value, bytes):
            if name == "comm":
                value = value.split(b"\0", 1)[0]
            value = os.fsdecode(value) if name in ("path", "other", "comm", "text") else value.hex()
        shown[name] = value
    return shown
