"""`stackfs encryption`: make encrypted volumes and look after them. Works on backing directories alone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackfs.cli.run import print_json
from stackfs.cli.tables import escape
from stackfs.errors import ExitCode
from stackfs.filters.encryption import volume as volumes
from stackfs.filters.encryption._secrets import Secret, no_core_dumps
from stackfs.filters.encryption.passphrase import Source
from stackfs.filters.encryption.volume import Argon2, Credential, Unlocked, VolumeError, VolumeFile

if TYPE_CHECKING:
    from stackfs.filters.encryption.findings import Report

app = typer.Typer(help="Make encrypted volumes and look after them.", no_args_is_help=True)

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The backing directory.", show_default=False)]
Passfile = Annotated[str | None, typer.Option("--passfile", metavar="FILE", help="Its first line is the passphrase.")]
Extpass = Annotated[
    str | None, typer.Option("--extpass", metavar="PROGRAM", help="What it prints first is the passphrase.")
]
Passfd = Annotated[
    int | None, typer.Option("--passfd", metavar="N", min=0, help="A descriptor that has the passphrase.")
]
Keyfile = Annotated[str | None, typer.Option("--keyfile", metavar="FILE", help="A key file instead of a passphrase.")]
NewPassfile = Annotated[
    str | None, typer.Option("--new-passfile", metavar="FILE", help="Its first line is the new passphrase.")
]
NewExtpass = Annotated[
    str | None, typer.Option("--new-extpass", metavar="PROGRAM", help="What it prints first is the new one.")
]
NewPassfd = Annotated[
    int | None, typer.Option("--new-passfd", metavar="N", min=0, help="A descriptor that has the new one.")
]
Memory = Annotated[
    int,
    typer.Option(
        "--argon2-memory", metavar="MIB", min=1, max=4096, help="What a guess at a passphrase costs: MiB of memory,"
    ),
]
Passes = Annotated[int, typer.Option("--argon2-passes", metavar="N", min=1, max=64, help="and passes over it.")]
Json = Annotated[bool, typer.Option("--json", help="JSON.")]


@app.command("init")
def init(
    directory: Directory,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="aes-256-gcm, chacha20-poly1305 or aes-256-siv. Without it: which of the first two is faster here.",
        ),
    ] = None,
    plain_names: Annotated[bool, typer.Option("--plain-names", help="Names of files are not encrypted.")] = False,
    no_recovery_key: Annotated[bool, typer.Option("--no-recovery-key", help="Make none.")] = False,
    passfile: Passfile = None,
    extpass: Extpass = None,
    passfd: Passfd = None,
    keyfile: Keyfile = None,
    argon2_memory: Memory = 256,
    argon2_passes: Passes = 3,
) -> None:
    """Make an encrypted volume of an empty (or new) directory. Prints a recovery key, once: write it down."""
    no_core_dumps()
    if suite is not None and suite not in volumes.SUITES:
        raise VolumeError(f"there is no suite {suite!r}: they are {', '.join(volumes.SUITES)}", ExitCode.USAGE)
    source = Source(passfile, extpass, passfd, keyfile)
    if not os.path.lexists(directory):
        try:
            os.mkdir(directory, 0o700)
        except OSError as error:
            raise VolumeError(f"{directory}: {error.strerror}", ExitCode.NOT_FOUND) from error
    with _locked(directory) as descriptor:
        credentials: list[tuple[Credential, str]] = [(source.credential("New passphrase", twice=True), "")]
        recovery = None
        if not no_recovery_key:
            recovery = Credential("recovery", Secret.random(32))
            credentials.append((recovery, ""))
        file = _written(
            directory,
            lambda: volumes.create(
                descriptor,
                directory,
                suite=suite or _faster(),
                names="plain" if plain_names else "encrypted",
                credentials=credentials,
                argon2=Argon2(argon2_memory * 1024, argon2_passes),
            ),
        )
    print(f"{escape(directory)} is an encrypted volume now ({file.suite}, names {file.names}).")
    print(f"Mount it with: stackfs mount {escape(directory)} MOUNTPOINT -o filter=encryption")
    if recovery is not None:
        _show_recovery(recovery, directory)


@app.command("passwd")
def passwd(
    directory: Directory,
    passfile: Passfile = None,
    extpass: Extpass = None,
    passfd: Passfd = None,
    keyfile: Keyfile = None,
    new_passfile: NewPassfile = None,
    new_extpass: NewExtpass = None,
    new_passfd: NewPassfd = None,
    argon2_memory: Memory = 256,
    argon2_passes: Passes = 3,
) -> None:
    """Change a passphrase: the key slot that the old one opens gets the new one."""
    no_core_dumps()
    source, new = Source(passfile, extpass, passfd, keyfile), Source(new_passfile, new_extpass, new_passfd)
    descriptor = volumes.open_directory(directory)
    unlocked = _unlock(descriptor, directory, source)
    if unlocked.slot.kind != "passphrase":
        raise VolumeError(
            f"a key file has no passphrase to change: stackfs encryption slots {directory} --add passphrase adds one",
            ExitCode.USAGE,
        )
    argon2 = _argon2(argon2_memory, argon2_passes)
    file = _without(unlocked.file, unlocked.slot.number)
    file = file.with_slot(unlocked.master, new.credential("New passphrase", twice=True), unlocked.slot.label, argon2)
    _written(directory, lambda: volumes.store(descriptor, file.signed(unlocked.keys)))
    print(
        f"The passphrase of key slot {unlocked.slot.number} is changed. Whoever has an old {volumes.VOLUME_FILE} "
        "can still use the old one with it."
    )


@app.command("slots")
def slots(
    directory: Directory,
    add: Annotated[str | None, typer.Option("--add", metavar="KIND", help="passphrase, keyfile or recovery.")] = None,
    remove: Annotated[int | None, typer.Option("--remove", metavar="NUMBER", help="The slot that goes.")] = None,
    label: Annotated[str, typer.Option("--label", help="What the new slot is called; not secret.")] = "",
    passfile: Passfile = None,
    extpass: Extpass = None,
    passfd: Passfd = None,
    keyfile: Keyfile = None,
    new_passfile: NewPassfile = None,
    new_extpass: NewExtpass = None,
    new_passfd: NewPassfd = None,
    new_keyfile: Annotated[
        str | None, typer.Option("--new-keyfile", metavar="FILE", help="With --add keyfile.")
    ] = None,
    argon2_memory: Memory = 256,
    argon2_passes: Passes = 3,
    json: Json = False,
) -> None:
    """Show the key slots, add one, remove one. Any slot unlocks the volume."""
    no_core_dumps()
    descriptor = volumes.open_directory(directory)
    if add is None and remove is None:
        _show_slots(volumes.load(descriptor, directory), json)
        return
    if add not in (None, "passphrase", "keyfile", "recovery"):
        raise VolumeError(f"a key slot is no {add!r}, but passphrase, keyfile or recovery", ExitCode.USAGE)
    new = Source(new_passfile, new_extpass, new_passfd, new_keyfile)
    if add is not None and add != "passphrase" and (new.keyfile is None) == (add == "keyfile"):
        raise VolumeError("--add keyfile takes --new-keyfile FILE, and --add recovery takes nothing", ExitCode.USAGE)
    unlocked = _unlock(descriptor, directory, Source(passfile, extpass, passfd, keyfile))
    file = unlocked.file if remove is None else unlocked.file.without_slot(remove)
    credential = None
    if add is not None:
        credential = (
            Credential("recovery", Secret.random(32))
            if add == "recovery"
            else new.credential("New passphrase", twice=True)
        )
        if credential.kind != add:
            raise VolumeError("--new-keyfile goes with --add keyfile", ExitCode.USAGE)
        file = file.with_slot(unlocked.master, credential, label, _argon2(argon2_memory, argon2_passes))
    _written(directory, lambda: volumes.store(descriptor, file.signed(unlocked.keys)))
    if credential is not None and credential.kind == "recovery":
        _show_recovery(credential, directory)
    _show_slots(file, json)


@app.command("info")
def info(
    directory: Directory,
    check: Annotated[
        bool, typer.Option("--check", help="Unlock it, so that what is shown is known to be authentic.")
    ] = False,
    passfile: Passfile = None,
    extpass: Extpass = None,
    passfd: Passfd = None,
    keyfile: Keyfile = None,
    json: Json = False,
) -> None:
    """Show what a volume is: suite, names, key slots."""
    no_core_dumps()
    descriptor = volumes.open_directory(directory)
    source = Source(passfile, extpass, passfd, keyfile)
    check = check or not source.asks
    file = _unlock(descriptor, directory, source).file if check else volumes.load(descriptor, directory)
    if json:
        shown: dict[str, Any] = {
            "authentic": check,
            "format": volumes.FORMAT,
            "version": volumes.VERSION,
            "features": [],
        }
        print_json(
            shown
            | {
                "id": file.id.hex(),
                "suite": file.suite,
                "names": file.names,
                "created": file.created,
                "slots": [each.bound() for each in file.slots],
            }
        )
        return
    print(f"format   {volumes.FORMAT}, version {volumes.VERSION}")
    print(f"id       {file.id.hex()}")
    print(f"suite    {file.suite}")
    print(f"names    {file.names}")
    print(f"created  {_when(file.created)}")
    print(
        "checked  yes: the volume file is authentic"
        if check
        else "checked  no: --check unlocks it and says whether this is authentic"
    )
    print()
    _show_slots(file, False)


@app.command("recover")
def recover(
    directory: Directory,
    recovery_file: Annotated[
        str | None,
        typer.Option("--recovery-file", metavar="FILE", help="A file with the recovery key; else it is asked for."),
    ] = None,
    new_passfile: NewPassfile = None,
    new_extpass: NewExtpass = None,
    new_passfd: NewPassfd = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the other passphrases; else they are removed.")] = False,
    argon2_memory: Memory = 256,
    argon2_passes: Passes = 3,
) -> None:
    """A passphrase is lost: unlock with the recovery key and give the volume a new one.

    A damaged or missing volume file is restored from its copy.
    """
    no_core_dumps()
    descriptor = volumes.open_directory(directory)
    new = Source(new_passfile, new_extpass, new_passfd)
    file = volumes.load(descriptor, directory)
    key = volumes.recovery_key(Source(passfile=recovery_file).line("Recovery key"))
    try:
        unlocked = volumes.unlock(file, key)
    except VolumeError as error:
        if error.exit_code != ExitCode.DAMAGED:
            raise
        unlocked = volumes.unlock(_copy(descriptor, error), key)
    file = unlocked.file
    argon2 = _argon2(argon2_memory, argon2_passes)
    if not keep:
        for slot in file.slots:
            if slot.kind == "passphrase":
                file = file.without_slot(slot.number)
    file = file.with_slot(unlocked.master, new.credential("New passphrase", twice=True), "", argon2)
    _written(directory, lambda: volumes.store(descriptor, file.signed(unlocked.keys)))
    print(f"{escape(directory)} has a new passphrase. The recovery key stays valid.")


@app.command("speed")
def speed(
    directory: Annotated[str | None, typer.Argument(metavar="[DIR]", help="Only with this volume's suite.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, max=60, help="For each number.")] = 0.5,
    json: Json = False,
) -> None:
    """How fast this machine encrypts and decrypts, on one processor and on all that help with large transfers."""
    from stackfs.filters.encryption.speed import measure

    chosen = None
    if directory is not None:
        chosen = volumes.load(volumes.open_directory(directory), directory).suite
    rows = measure([chosen] if chosen else list(volumes.SUITES), seconds)
    if json:
        print_json(
            [
                {"suite": each.suite, "blocks": each.blocks, "encrypt": each.encrypt, "decrypt": each.decrypt}
                for each in rows
            ]
        )
        return
    print(f"{'Suite':<18} {'Transfer':>9} {'Encrypt':>12} {'Decrypt':>12}")
    print(f"{'-' * 18} {'-' * 9} {'-' * 12} {'-' * 12}")
    for each in rows:
        print(
            f"{each.suite:<18} {each.blocks * 4:>5} KiB {each.encrypt / 1e6:>7.0f} MB/s {each.decrypt / 1e6:>7.0f} MB/s"
        )


@app.command("fsck")
def fsck(
    directory: Directory,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be put right without losing anything.")
    ] = False,
    new_names: Annotated[
        bool, typer.Option("--new-names", help="With --repair: files whose names are lost get new ones.")
    ] = False,
    rebuild_maps: Annotated[
        bool,
        typer.Option(
            "--rebuild-maps",
            help="With --repair: where a file's map is damaged its blocks are taken as they lie; nothing proves any "
            "more that they are the last ones.",
        ),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="From the beginning, also if a check was interrupted before.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, max=256, help="Files at a time; else one a processor."),
    ] = None,
    passfile: Passfile = None,
    extpass: Extpass = None,
    passfd: Passfd = None,
    keyfile: Keyfile = None,
    recovery_file: Annotated[
        str | None, typer.Option("--recovery-file", metavar="FILE", help="A file with the recovery key.")
    ] = None,
    json: Json = False,
) -> int:
    """Check everything in an unmounted volume: names, directories, every block of every file.

    Exit code 0: healthy. 13: all that was wrong is repaired. 9: a crash left something, and nothing is damaged.
    11: damage is left.
    """
    from stackfs.filters.encryption import fsck as checks
    from stackfs.filters.encryption.fsck_state import State

    no_core_dumps()
    if new_names and not repair:
        raise VolumeError("--new-names goes with --repair", ExitCode.USAGE)
    if rebuild_maps and not repair:
        raise VolumeError("--rebuild-maps goes with --repair", ExitCode.USAGE)
    source = Source(passfile, extpass, passfd, keyfile)
    if recovery_file is not None and not source.asks:
        raise VolumeError("a recovery key goes without a passphrase or key file", ExitCode.USAGE)

    def credential() -> Credential:
        if recovery_file is not None:
            return volumes.recovery_key(Source(passfile=recovery_file).line("Recovery key"))
        return source.credential(f"Passphrase of {escape(directory)}")

    with _locked(directory) as descriptor:
        opened = checks.open_volume(descriptor, directory, credential)
        state = State.opened(opened.unlocked.file.id, os.fstat(descriptor), restart=restart)
        if state.resumed:
            print(
                f"stackfs: goes on where the check of {_when(int(state.since))} was interrupted: {state.resumed} files "
                "were healthy then (--restart looks at them again)",
                file=sys.stderr,
            )
        finished = False
        try:
            with _progress(quiet=json) as progress:
                report = _written(
                    directory,
                    lambda: checks.Fsck(
                        descriptor,
                        opened,
                        state,
                        repair=repair,
                        new_names=new_names,
                        rebuild_maps=rebuild_maps,
                        threads=threads,
                        progress=progress,
                    ).run(),
                )
            finished = True
        except KeyboardInterrupt:
            if state.path is not None:
                print("stackfs: the same command goes on from here", file=sys.stderr)
            raise
        finally:
            state.close(finished=finished)
    if json:
        print_json(
            {
                "volume": opened.unlocked.file.id.hex(),
                "files": report.files,
                "directories": report.directories,
                "bytes": report.bytes,
                "resumed": report.resumed,
                "findings": [each.document() for each in report.findings],
                "left": len(report.left),
            }
        )
    else:
        for each in report.findings:
            print(f"{escape(os.fsdecode(each.path)) or '.'}: {escape(each.text())}")
        looked = f"{report.files} files and {report.directories} directories, {report.bytes / 1e6:.1f} MB"
        count, left = len(report.findings), len(report.left)
        if not count:
            print(f"{escape(directory)} is healthy: {looked}")
        elif not left:
            print(f"{escape(directory)}: {looked}; {count} findings, all repaired")
        else:
            hint = "" if repair else " (--repair repairs what can be repaired)"
            print(f"{escape(directory)}: {looked}; {count} findings, {left} of them left{hint}")
    return int(report.exit_code())


# --- parts ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[int]:
    descriptor = volumes.open_directory(directory)
    try:
        volumes.lock(descriptor, directory)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[Report, bytes], None]]:
    """On a terminal a line that says how far a check has got; elsewhere nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda report, path: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    ) as shown:
        task = shown.add_task("")
        seen = 0.0

        def progress(report: Report, path: bytes) -> None:
            nonlocal seen
            if time.monotonic() - seen < 0.1:
                return
            seen = time.monotonic()
            where = escape(os.fsdecode(path))
            shown.update(
                task,
                refresh=True,
                description=f"{report.files} files, {report.bytes / 1e6:.0f} MB, {len(report.findings)} findings  "
                f"{where if len(where) <= 40 else '...' + where[-37:]}",
            )

        yield progress


def _written(directory: str, write: Any) -> Any:
    try:
        return write()
    except OSError as error:
        raise VolumeError(f"{directory}: {error.strerror}", ExitCode.UNUSABLE) from error


def _argon2(mebibytes: int, passes: int) -> Argon2:
    settings = Argon2(mebibytes * 1024, passes)
    settings.check()
    return settings


def _unlock(descriptor: int, directory: str, source: Source) -> Unlocked:
    file = volumes.load(descriptor, directory)
    with source.credential(f"Passphrase of {escape(directory)}") as credential:
        return volumes.unlock(file, credential)


def _copy(descriptor: int, error: VolumeError) -> VolumeFile:
    try:
        return volumes.parse(volumes.read_file(descriptor, volumes.COPY))
    except OSError:
        raise error from None


def _without(file: VolumeFile, number: int) -> VolumeFile:
    """`file` without a slot that is about to be written anew."""
    return dataclasses.replace(file, slots=tuple(each for each in file.slots if each.number != number))


def _faster() -> str:
    from stackfs.filters.encryption.speed import measure

    rows = measure(["aes-256-gcm", "chacha20-poly1305"], 0.02, transfers=(16,))
    return max(rows, key=lambda each: each.encrypt * (1.2 if each.suite == "aes-256-gcm" else 1)).suite


def _show_recovery(credential: Credential, directory: str) -> None:
    text = volumes.recovery_text(credential.secret)
    print("\nRecovery key, shown this once. Write it down, and keep it where the volume is not:\n")
    print(f"    {text}\n")
    print(f"With it `stackfs encryption recover {escape(directory)}` gives the volume a new passphrase.")
    sys.stdout.flush()


def _show_slots(file: VolumeFile, json: bool) -> None:
    if json:
        print_json([each.bound() for each in file.slots])
        return
    print(f"{'Slot':>4}  {'Kind':<10}  {'Made':<19}  {'Argon2id':<22}  Label")
    print(f"{'-' * 4}  {'-' * 10}  {'-' * 19}  {'-' * 22}  {'-' * 20}")
    for each in file.slots:
        cost = f"{each.argon2.memory // 1024} MiB, {each.argon2.passes} passes" if each.argon2 else ""
        print(
            f"{each.number:>4}  {each.kind:<10}  {_when(each.created):<19}  {cost:<22}  {escape(each.label)}".rstrip()
        )


def _when(moment: int) -> str:
    try:
        return datetime.fromtimestamp(moment).isoformat(sep=" ", timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return str(moment)
