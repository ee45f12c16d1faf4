"""Real programs on an encrypted drive: fio that verifies, git, SQLite, and PostgreSQL as an unprivileged user.

After each of them the drive is unmounted and mounted again: what they wrote is still what they say, and `stackfs
encryption fsck` finds nothing. PostgreSQL's tests are skipped where its server is not installed; `make test-long`
installs it.
"""

from __future__ import annotations

import os
import pwd
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import STACKFS, run
from encryption_drive import Vault

GIT = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "HOME": "/nonexistent",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@localhost",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@localhost",
}


def healthy(it: Vault, *, crashed: bool = False) -> None:
    """Unmounts; fsck has nothing to say. `crashed`: but of files that were open then, which it seals."""
    it.umount()
    if crashed:
        assert it.fsck("--repair", check=False).returncode in (0, 13)
    it.fsck()


# --- fio --------------------------------------------------------------------------------------------


JOBS = {
    "mixed": "--rw=randrw --bsrange=512-64k --bs_unaligned --size=4m --fsync=64 --ioengine=psync",
    "direct": "--rw=randwrite --bs=4k --size=4m --direct=1 --ioengine=libaio --iodepth=8 --numjobs=2",
    "mmap": "--rw=write --bs=1m --size=16m --ioengine=mmap --fsync=4",
    "trim": "--rw=randwrite --bs=7k --bs_unaligned --size=3m --ioengine=psync --trim_percentage=20 --fsync=16",
}
QUICK = {("mixed", "cache=strict"), ("direct", "cache=normal"), ("mmap", "writeback"), ("trim", "lanes=irp")}


@pytest.mark.parametrize(
    ("job", "options"),
    [
        pytest.param(job, options, marks=[] if (job, options) in QUICK else pytest.mark.long)
        for job in JOBS
        for options in ("cache=normal", "cache=strict", "writeback", "lanes=irp")
    ],
)
def test_fio_verifies(vault: Callable[..., Vault], job: str, options: str) -> None:
    it = vault(options)
    words = ["fio", "--name=v", f"--directory={it.mnt}", "--verify=crc32c", "--verify_fatal=1", *JOBS[job].split()]
    run(*words, "--do_verify=1")
    it.umount()
    it.mount()
    run(*words, "--verify_only=1")
    healthy(it)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fio_verifies_much(vault: Callable[..., Vault]) -> None:
    """More than a node's worth of blocks, on several files at once, with all of it verified while it is written."""
    it = vault()
    run(
        *("fio", "--name=v", f"--directory={it.mnt}", "--numjobs=4", "--size=256m", "--rw=randrw", "--bsrange=1k-256k"),
        *("--bs_unaligned", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=500", "--fsync=200"),
        timeout=800,
    )
    healthy(it)


# --- git --------------------------------------------------------------------------------------------


def test_git_clones_and_collects(vault: Callable[..., Vault], tmp_path: Path) -> None:
    """A repository cloned onto the drive, within it, changed, repacked and checked; with git's own fsyncs."""
    it = vault()
    origin = tmp_path / "origin"
    run("git", "init", "-q", origin, env=GIT)
    for number in range(60):
        (origin / f"file{number}").write_bytes(os.urandom(20 * number) + b"\n" * number)
        if number % 20 == 19:
            run("git", "-C", origin, "add", ".", env=GIT)
            run("git", "-C", origin, "commit", "-qm", str(number), env=GIT)
    first, second = it.mnt / "first", it.mnt / "second"
    durable = ("-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync")
    run("git", *durable, "clone", "-q", f"file://{origin}", first, env=GIT)
    run("git", *durable, "clone", "-q", first, second, env=GIT)
    git = ("git", *durable, "-C", second)
    (second / "file3").write_text("changed\n")
    run(*git, "checkout", "-qb", "branch", env=GIT)
    run(*git, "commit", "-qam", "change", env=GIT)
    run(*git, "checkout", "-q", "-", env=GIT)
    run(*git, "mv", "file4", "moved", env=GIT)
    run(*git, "commit", "-qm", "move", env=GIT)
    run(*git, "merge", "-q", "branch", "-m", "merge", env=GIT)
    run(*git, "gc", "-q", "--aggressive", "--prune=now", env=GIT)
    it.umount()
    it.mount()
    for repository in (first, second):
        run("git", "-C", repository, "fsck", "--strict", "--full", env=GIT)
        assert run("git", "-C", repository, "status", "--porcelain", env=GIT).stdout == ""
    assert run(*git, "show", "HEAD:file3", env=GIT).stdout == "changed\n"
    healthy(it)


# --- SQLite -----------------------------------------------------------------------------------------

WRITER = """
import os, sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
number = 0
while True:
    base.execute("begin immediate")
    base.execute("insert into t values (?, ?)", (number, os.urandom(3000)))
    base.execute("update total set n = n + 1")
    base.execute("commit")
    number += 1
    print(number, flush=True)
"""


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate"])
def test_sqlite_keeps_what_it_committed(vault: Callable[..., Vault], mode: str) -> None:
    """Several threads; then a program that is killed, and the daemon under another one: everything that was committed
    is there, and the file is sound."""
    it = vault()
    path = it.mnt / "base.sqlite"
    base = sqlite3.connect(path, timeout=60)
    assert base.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
    base.execute("create table t (n integer, v blob)")
    base.execute("create table total (n integer)")
    base.execute("insert into total values (0)")
    base.commit()

    def writes(number: int) -> None:
        mine = sqlite3.connect(path, timeout=60, isolation_level=None)
        mine.execute("pragma synchronous=full")
        for i in range(20):
            mine.execute("begin immediate")
            mine.execute("insert into t values (?, ?)", (number * 1000 + i, os.urandom(5000)))
            mine.execute("update total set n = n + 1")
            mine.execute("commit")
        mine.close()

    threads = [threading.Thread(target=writes, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def sound(least: int) -> int:
        mine = sqlite3.connect(path, timeout=60)
        assert mine.execute("pragma integrity_check").fetchone() == ("ok",)
        (count,) = mine.execute("select count(*) from t").fetchone()
        assert mine.execute("select n from total").fetchone() == (count,)
        mine.close()
        assert count >= least
        return int(count)

    assert sound(60) == 60
    base.close()

    def writer() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True, cwd="/")

    def until(program: subprocess.Popen[str], count: int) -> int:
        assert program.stdout is not None
        for line in program.stdout:
            if int(line) >= count:
                return int(line)
        raise AssertionError("it ended")

    program = writer()
    done = 60 + until(program, 15)
    program.kill()
    program.communicate()
    done = sound(done)
    program = writer()
    done += until(program, 15)
    os.kill(it.drive.pid, 9)
    program.kill()
    program.communicate()
    it.drive.wait_gone()
    run(STACKFS, "umount", it.mnt)
    it.mount()
    sound(done)
    healthy(it, crashed=True)


# --- PostgreSQL -------------------------------------------------------------------------------------


class Postgres:
    """A server with its data on the drive, as somebody who is not root and not the daemon's user."""

    def __init__(self, it: Vault, sockets: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if not found:
            pytest.skip("PostgreSQL's server is not installed: apt-get install -y --no-install-recommends postgresql")
        try:
            self.user = pwd.getpwnam("postgres")
        except KeyError:
            self.user = pwd.getpwnam("nobody")
        self.bin, self.it, self.sockets = found[-1].parent, it, sockets
        self.data = it.mnt / "cluster"
        self.data.mkdir(mode=0o700)
        os.chown(self.data, self.user.pw_uid, self.user.pw_gid)
        sockets.mkdir()
        os.chown(sockets, self.user.pw_uid, self.user.pw_gid)

    def run(self, program: str, *words: str | Path, timeout: float = 110) -> str:
        become = ("setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups")
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PGHOST": str(self.sockets), "PGDATABASE": "postgres"}
        return run(*become, self.bin / program, *words, env=environment, timeout=timeout).stdout

    def initdb(self) -> None:
        """With checksums, so that PostgreSQL itself notices a page that is not what it wrote."""
        self.run("initdb", "-D", self.data, "-U", self.user.pw_name, "--auth=trust", "--data-checksums")

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.sockets} -c max_wal_size=64MB"
        log = self.sockets / "log"
        try:
            self.run("pg_ctl", "start", "-w", "-t", "60", "-D", self.data, "-l", log, "-o", options)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from None

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "stop", "-w", "-t", "60", "-D", self.data, "-m", mode)

    def sql(self, text: str) -> str:
        return self.run("psql", "-U", self.user.pw_name, "-AtX", "-v", "ON_ERROR_STOP=1", "-c", text).strip()

    def sound(self) -> None:
        """Every page's checksum, and TPC-B's own invariant."""
        sums = self.sql(
            "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches), "
            "(select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)"
        )
        assert sums == "t|t", sums

    def pgbench(self, seconds: int, clients: int) -> None:
        words = ("-U", self.user.pw_name, "-n", "-T", str(seconds), "-c", str(clients), "-j", "2")
        said = self.run("pgbench", *words, timeout=seconds + 60)
        assert "number of failed transactions: 0" in said, said


@pytest.fixture
def postgres(vault: Callable[..., Vault], tmp_path: Path) -> Iterator[Callable[..., Postgres]]:
    """postgres("cache=strict", ...): a cluster on a new encrypted drive; what is running at the end is stopped."""
    made: list[Postgres] = []

    def make(*options: str) -> Postgres:
        for above in list(tmp_path.parents)[:-2]:
            above.chmod(0o755)
        tmp_path.chmod(0o755)
        it = vault("allow_other", *options)
        server = Postgres(it, tmp_path / "sockets")
        made.append(server)
        server.initdb()
        return server

    yield make
    for server in made:
        pid = Path(server.data / "postmaster.pid")
        if os.path.exists(pid):
            server.stop("immediate")


def bench(server: Postgres, scale: int, seconds: int, clients: int) -> None:
    """initdb, pgbench, a crash of the server in the middle, the daemon's death, and a remount."""
    it = server.it
    server.start()
    server.run("pgbench", "-U", server.user.pw_name, "-i", "-q", "-s", str(scale), timeout=300)
    server.pgbench(seconds, clients)
    server.sound()
    before = int(server.sql("select count(*) from pgbench_history"))
    server.stop("immediate")
    server.start()
    server.sound()
    assert int(server.sql("select count(*) from pgbench_history")) == before
    server.stop()
    server.run("pg_checksums", "--check", "-D", server.data)
    it.umount()
    it.mount()
    server.run("pg_checksums", "--check", "-D", server.data)
    server.start()
    server.sound()
    server.pgbench(max(1, seconds // 2), clients)
    server.stop()
    healthy(it)


def test_postgresql(postgres: Callable[..., Postgres]) -> None:
    bench(postgres(), 1, 2, 4)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", ["cache=normal", "cache=strict", "writeback", "lanes=irp"])
def test_postgresql_for_long(postgres: Callable[..., Postgres], options: str) -> None:
    bench(postgres(options), 10, 60, 8)


def test_postgresql_survives_the_daemon(postgres: Callable[..., Postgres]) -> None:
    """The daemon is killed under a server that writes: what had been committed is there after the next mount."""
    server = postgres()
    it = server.it
    server.start()
    server.run("pgbench", "-U", server.user.pw_name, "-i", "-q", "-s", "1")
    server.sql("create table seen (n integer)")
    stop, committed = threading.Event(), 0

    def commits() -> None:
        nonlocal committed
        while not stop.is_set():
            try:
                server.sql(f"insert into seen values ({committed + 1})")
            except AssertionError:
                return
            committed += 1

    thread = threading.Thread(target=commits)
    thread.start()
    server.pgbench(2, 3)
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    os.kill(it.drive.pid, 9)
    it.drive.wait_gone()
    stop.set()
    thread.join()
    os.kill(postmaster, 9)
    run(STACKFS, "umount", it.mnt)
    it.mount()
    for lock in (server.data / "postmaster.pid", server.sockets / ".s.PGSQL.5432.lock"):
        lock.unlink(missing_ok=True)             # a dead process that nobody has waited for still has its number
    server.start()
    server.sound()
    assert committed > 3 and int(server.sql("select max(n) from seen")) >= committed
    server.stop()
    server.run("pg_checksums", "--check", "-D", server.data)
    healthy(it, crashed=True)
