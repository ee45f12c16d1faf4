"""`make run`: a drive with an audit trail, mounted, worked on, watched, and taken away again.

Everything happens in a fresh directory under the temporary directory:

    source/     some hundred files to copy in: the project's own, and much of Python's library
    drive/      the mountpoint, where the work is done
    files/      the backing directory, where the files end up
    trail/      audit's segments; audit.key is the key that verifies them
    private/    an encrypted drive over vault/
    shared/     drive/, on which two programs share a cached file, over files/
    drive.toml  mountpoints/demo.toml, copied: its relative paths mean this directory

Each step prints the commands it runs, so that a reader can type them. Whatever touches the drive runs in a process of
its own with a time limit, so that a drive that hangs fails the demo instead of hanging it. The drive is unmounted in
the end, also after a failure or a signal; with KEEP=1 it stays, and the last lines say how to unmount it.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))       # when it is run as a file, not with -m

from benchmarks import mounts, tutorial
from stackfs.errors import ExitCode

ROOT = mounts.ROOT
LIMIT = 120.0                # seconds that one command may take
PROJECT = (
    "stackfs", "cext", "filters", "mountpoints", "benchmarks", "tests", "docs", "README.md", "setup.py", "Makefile",
)  # fmt: skip
LIBRARY = (
    "asyncio", "collections", "concurrent", "ctypes", "email", "encodings", "http", "importlib", "json", "logging",
    "multiprocessing", "sqlite3", "unittest", "urllib", "wsgiref", "xml", "xmlrpc", "zoneinfo",
)  # fmt: skip

COUNTER_C = """\
#define _GNU_SOURCE
#include <ftw.h>
#include <stdio.h>
#include "counter.h"

static struct totals totals;

static int visit(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info, (void)where;
    if (kind == FTW_F)
        count_file(path, &totals);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2 || nftw(argv[1], visit, 32, FTW_PHYS) != 0)
        return 1;
    printf("%ld files, %ld lines, %ld bytes\\n", totals.files, totals.lines, totals.bytes);
    return 0;
}
"""
COUNT_FILE_C = """\
#include <stdio.h>
#include "counter.h"

void count_file(const char *path, struct totals *totals)
{
    FILE *file = fopen(path, "rb");
    int c;
    if (file == NULL)
        return;
    totals->files++;
    while ((c = getc(file)) != EOF) {
        totals->bytes++;
        totals->lines += c == '\\n';
    }
    fclose(file);
}
"""
COUNTER_H = """\
struct totals { long files, lines, bytes; };
void count_file(const char *path, struct totals *totals);
"""
DATABASE = """\
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("create table reading (id integer primary key, place text, value real)")
for batch in range(20):
    with db:
        db.executemany("insert into reading (place, value) values (?, ?)",
                       ((f"place {n % 97}", n * 0.5) for n in range(batch * 500, batch * 500 + 500)))
db.execute("create index place on reading (place)")
with db:
    db.execute("delete from reading where id % 10 = 0")
print(db.execute("select count(*), sum(value) from reading").fetchone())
print("integrity_check:", db.execute("pragma integrity_check").fetchone()[0])
db.close()
"""


class DemoFailed(Exception):
    """A step did not do what it had to; one line."""


class Demo:
    def __init__(self, work: Path) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.work = work
        self.drive = work / "drive"
        self.files = work / "files"
        self.source = work / "source"
        self.trail = work / "trail"
        self.vault = work / "vault"
        self.private = work / "private"
        self.shared = work / "shared" / "drive"
        self.key = work / "audit.key"
        self.toml = work / "drive.toml"
        self.step_number = 0
        self.environment = {
            **os.environ,
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_AUTHOR_NAME": "demo", "GIT_AUTHOR_EMAIL": "demo@localhost",
            "GIT_COMMITTER_NAME": "demo", "GIT_COMMITTER_EMAIL": "demo@localhost",
            "COLUMNS": "160",
        }  # fmt: skip

    # saying and doing

    def step(self, title: str) -> None:
        self.step_number += 1
        self.console.print()
        self.console.print(Rule(f"[bold]{self.step_number}. {title}[/]", align="left", style="dim"))

    def say(self, text: str) -> None:
        self.console.print(text)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        directory: Path | None = None,
        echo: bool = True,
        show: bool = True,
        last: int = 0,
        fails: bool = False,
        accept: Sequence[int] = (0,),
    ) -> str:
        """Run a command, show it (echo) and what it says (show; its `last` lines). `fails`: it has to fail.

        `accept`: exit codes that are no failure. Returns its output. DemoFailed when it ends otherwise than it has to.
        """
        words = [str(word) for word in command]
        name = words[0] if words[0].startswith("./") else Path(words[0]).name
        shown = words[2] if words[:2] == ["sh", "-c"] else shlex.join([name, *words[1:]])
        shown = shown.replace(f"{self.work}/", "").replace(f"{ROOT}/", "")
        where = f"[dim]{escape(str(directory.relative_to(self.work)))}[/] " if directory else ""
        if echo:
            self.console.print(f"{where}[bold cyan]$ {escape(shorten(shown))}[/]")
        with tempfile.TemporaryFile() as output:  # not a pipe: a daemon that the command leaves behind may hold it
            try:
                code = subprocess.run(
                    words, cwd=directory or self.work, env=self.environment, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, timeout=LIMIT,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                raise DemoFailed(f"`{shorten(shown)}` took more than {LIMIT:.0f} s") from None
            output.seek(0)
            text = output.read().decode(errors="replace").rstrip()
        wrong = code == 0 if fails else code not in accept
        if show or wrong:
            lines = text.splitlines()
            for line in lines[-last:] if last else lines:
                self.console.print(escape(line), style="dim" if show else "red", soft_wrap=True)
        if wrong:
            wanted = "had to fail" if fails else f"failed with exit code {code}"
            raise DemoFailed(f"`{shorten(shown)}` {wanted}")
        return text

    def stackfs(self, *arguments: str | Path, **how: object) -> str:
        return self.run([*mounts.stackfs_command(), *arguments], **how)  # type: ignore[arg-type]

    def fltmc(self, *arguments: str | Path, **how: object) -> str:
        return self.run([*mounts.stackfs_command("fltmc"), *arguments], **how)  # type: ignore[arg-type]

    # the steps

    def mount(self) -> None:
        self.step("A drive with two filters under it")
        self.say(f"[dim]in {self.work}[/]")
        for folder in (self.drive, self.files):
            folder.mkdir()
        shutil.copyfile(ROOT / "mountpoints" / "demo.toml", self.toml)
        self.stackfs("mount", self.toml)
        if shutil.which("findmnt"):
            self.run(["findmnt", "-no", "FSTYPE,SOURCE,OPTIONS", self.drive])
        self.fltmc("instances", "-v", self.drive)
        self.say("Highest altitude first: that is the order in which a request goes down; it comes back in reverse.")

    def gather(self) -> None:
        """A source tree of some hundred files that nobody changes meanwhile, of the project and of Python's library."""
        library = Path(sysconfig.get_paths()["stdlib"])
        for top, names, target in ((ROOT, PROJECT, "project"), (library, LIBRARY, "python")):
            (self.source / target).mkdir(parents=True)
            for name in names:
                if (top / name).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(top / name, self.source / target / name, symlinks=True, ignore=ignored)
                elif (top / name).exists():
                    shutil.copy2(top / name, self.source / target / name)

    def copy(self) -> None:
        self.step("Real files: a source tree, copied in")
        self.gather()
        self.run(["cp", "-a", "source", "drive/"])
        self.run(["diff", "-r", "--no-dereference", "source", "drive/source"])
        count = self.run(["find", "drive/source", "-type", "f", "-printf", "."], echo=False, show=False).count(".")
        size = self.run(["du", "-sh", "--apparent-size", "drive/source"], echo=False, show=False).split()[0]
        self.say(f"{count} files, {size}.")

    def compile(self) -> None:
        self.step("A program, compiled on the drive and run from it")
        folder = self.drive / "counter"
        self.run(["mkdir", folder])
        for name, text in (("counter.c", COUNTER_C), ("count_file.c", COUNT_FILE_C), ("counter.h", COUNTER_H)):
            self.write(folder / name, text)
        for name in ("counter", "count_file"):
            self.run(["gcc", "-O1", "-Wall", "-c", f"{name}.c"], directory=folder)
        self.run(["gcc", "-o", "counter", "counter.o", "count_file.o"], directory=folder)
        self.run(["./counter", self.drive / "source"], directory=folder)

    def write(self, path: Path, text: str) -> None:
        """Write a small file on the drive from a process of its own."""
        code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
        try:
            subprocess.run([sys.executable, "-c", code, str(path), text], check=True, timeout=LIMIT)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            raise DemoFailed(f"{path} could not be written") from None

    def repository(self) -> None:
        self.step("A git repository")
        folder = self.drive / "source"
        self.run(["git", "init", "-q", "-b", "main"], directory=folder)
        self.run(["git", "add", "-A", "-f", "."], directory=folder)
        self.run(["git", "commit", "-q", "-m", "everything"], directory=folder)
        self.run(["git", "gc", "-q"], directory=folder)
        self.run(["git", "fsck", "--strict", "--no-progress"], directory=folder)
        if self.run(["git", "status", "--porcelain"], directory=folder):
            raise DemoFailed("git sees changes that nobody made")
        self.run(["git", "count-objects", "-vH"], directory=folder, last=4)

    def database(self) -> None:
        self.step("An sqlite3 database: 10,000 rows in 20 transactions, an index, deletions")
        self.write(self.work / "database.py", DATABASE)
        text = self.run([sys.executable, self.work / "database.py", self.drive / "readings.db"])
        if "integrity_check: ok" not in text:
            raise DemoFailed("sqlite3 finds the database damaged")

    def drop_in(self) -> None:
        self.step("A filter dropped in while the drive is in use: readonly")
        self.fltmc("load", "readonly", "-v", self.drive)
        self.fltmc("instances", "-v", self.drive)
        refused = self.run(["sh", "-c", "echo 'is anybody there?' > drive/note.txt"], fails=True)
        self.say(f"Refused, as it should be: [bold]{escape(refused.rsplit(': ', 1)[-1])}[/]. Reading goes on:")
        self.run(["head", "-n", "1", self.drive / "counter" / "counter.c"])
        self.fltmc("unload", "readonly", "-v", self.drive)
        self.run(["sh", "-c", "echo 'somebody is' > drive/note.txt && cat drive/note.txt"])

    def tables(self) -> None:
        self.step("What the Filter Manager shows")
        others = (0, ExitCode.NOT_ANSWERING)      # somebody else's daemon may be dead: the tables show the others
        self.fltmc("filters", accept=others)
        self.fltmc("instances", "-v", self.drive)
        self.fltmc("volumes", accept=others)

    def audit(self) -> None:
        self.step("The audit trail: who did what, and that nobody changed it")
        self.stackfs("audit", "show", self.trail, "-n", "12")
        self.stackfs("audit", "verify", self.trail, "--key", self.key)

    def compare(self) -> None:
        self.step("The bytes, on the drive and below it, against the source")
        for place in ("drive/source", "files/source"):
            self.run(["diff", "-r", "--no-dereference", "-x", ".git", "source", place])
        self.say("Equal, byte for byte.")

    def encrypted(self) -> None:
        self.step("An encrypted drive: what is written, and what lies below it")
        for folder in (self.vault, self.private):
            folder.mkdir()
        phrase = self.work / "phrase"
        phrase.touch(mode=0o600)
        phrase.write_text("correct horse battery staple\n")
        self.stackfs("encryption", "init", self.vault, "--passfile", phrase, "--no-recovery-key", last=1)
        self.stackfs("mount", self.vault, self.private, "-o", f"filter=encryption,encryption.passfile={phrase}")
        self.run(["sh", "-c", "echo 'Meet me at noon, by the fountain.' > private/letter.txt; sync private/letter.txt"])
        self.run(["od", "-A", "d", "-t", "x1z", "private/letter.txt"])
        stored = [name for name in os.listdir(self.vault) if not name.startswith(".")]
        if len(stored) != 1:
            raise DemoFailed(f"{self.vault} has {len(stored)} files where one was written")
        below = (self.vault / stored[0]).read_bytes()
        if b"noon" in below or "letter" in stored[0]:
            raise DemoFailed("what lies below is not encrypted")
        self.run(["od", "-A", "d", "-t", "x1z", "-j", "1024", f"vault/{stored[0]}"])
        self.say("Behind a header of 1,024 bytes: generation, nonce, ciphertext and tag of the only block.")
        self.stackfs("umount", self.private)
        self.stackfs("encryption", "fsck", self.vault, "--passfile", phrase, last=1)

    def oplocks(self) -> None:
        self.step("Two programs that cache one file, and are told in time (docs/oplocks.md)")
        files = self.shared.parent / "files"
        for folder in (files, self.shared):
            folder.mkdir(parents=True)
        self.stackfs("mount", files, self.shared, "-o", "filter=oplock")

        def look(command: str) -> None:
            if command.startswith("echo"):
                self.stackfs("oplocks", self.shared)

        try:
            tutorial.play(self.shared.parent, lambda line: self.console.print(line, markup=False), look)
        except (AssertionError, subprocess.SubprocessError) as error:
            raise DemoFailed(str(error)) from error
        self.stackfs("umount", self.shared)

    def end(self) -> None:
        self.step("The end")
        self.stackfs("umount", self.drive)
        if mounts.is_mounted(self.drive):
            raise DemoFailed("the drive is still mounted")
        self.stackfs("audit", "verify", self.trail, "--key", self.key)

    def keep(self) -> None:
        self.step("KEEP=1: the drive stays mounted")
        stackfs, fltmc = (shlex.join(mounts.stackfs_command(name)) for name in ("stackfs", "fltmc"))
        self.say(f"the drive         {self.drive}")
        self.say(f"its files         {self.files}")
        self.say(f"its filters       {fltmc} instances")
        self.say(f"its audit trail   {stackfs} audit follow {self.trail}")
        self.say(f"to unmount it     [bold]{stackfs} umount {self.drive}[/]")
        self.say(f"and then          rm -r {self.work}")

    def clear_away(self) -> None:
        """Unmount by any means."""
        for drive in (self.shared, self.private, self.drive):
            if not mounts.is_mounted(drive):
                continue
            try:
                subprocess.run(
                    [*mounts.stackfs_command(), "umount", str(drive)],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30,
                )  # fmt: skip
            except (subprocess.TimeoutExpired, OSError):
                pass
            mounts.unmount(drive)


def shorten(command: str, width: int = 150) -> str:
    return command if len(command) <= width else command[: width - 40] + " ... " + command[-35:]


def obstacle() -> str | None:
    """Why the demo cannot run here, in one line with the remedy, or None."""
    for program, package in (("gcc", "gcc"), ("git", "git"), ("diff", "diffutils")):
        if shutil.which(program) is None:
            return f"{program} is missing: apt-get install {package}"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse: load the kernel module with `modprobe fuse`, or give the container the device"
    if os.geteuid() != 0:
        if shutil.which("fusermount3") is None:
            return "fusermount3 is missing: apt-get install fuse3"
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "this user may not open /dev/fuse: run `make run` as root, or let root `chmod 666 /dev/fuse`"
    return None


def stop(number: int, _frame: FrameType | None) -> None:
    raise DemoFailed(f"stopped by {signal.Signals(number).name}")


def main() -> int:
    if reason := obstacle():
        print(f"make run: {reason}", file=sys.stderr)
        return 1
    keep = os.environ.get("KEEP", "") not in ("", "0")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    work = Path(tempfile.mkdtemp(prefix="stackfs-demo-"))
    demo = Demo(work)
    begin = time.monotonic()
    kept = failed = False
    try:
        demo.mount()
        demo.copy()
        demo.compile()
        demo.repository()
        demo.database()
        demo.drop_in()
        demo.tables()
        demo.audit()
        demo.compare()
        demo.encrypted()
        demo.oplocks()
        if keep:
            demo.keep()
            kept = True
        else:
            demo.end()
            demo.console.print(f"\n[bold green]All of it worked[/], in {time.monotonic() - begin:.0f} s.")
    except (DemoFailed, OSError) as error:
        failed = True
        demo.console.print(f"\n[bold red]The demo failed[/]: {escape(str(error))}")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if not kept:
            demo.clear_away()
            if mounts.is_mounted(demo.drive):
                failed = True
                print(f"make run: {demo.drive} could not be unmounted", file=sys.stderr)
            elif failed:
                print(f"what it left behind: {work}", file=sys.stderr)
            else:
                shutil.rmtree(work, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
