"""What an interrupted check has found healthy, so that the next one goes on there.

A SQLite file for each volume (its id, and which directory it lies in) under $XDG_STATE_HOME/stackfs: never in the
volume, so that a check of one that is mounted read-only, or kept as evidence, changes nothing. It has inode numbers,
times, ids of files and stored names: nothing that the backing directory does not show. A file counts as looked at while
its inode, size and time of change are what they were. The state is not synced: one that a crash has damaged is made
anew. Main thread only; gone when a check came to its end.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

COMMIT_SECONDS = 2.0
FORGOTTEN_SECONDS = 7 * 86400
VERSION = 1


class State:
    """`path` None: kept in memory alone (where no file can be written)."""

    def __init__(self, path: Path | None, database: sqlite3.Connection, resumed: int, since: float) -> None:
        self.path, self._database, self.resumed, self.since = path, database, resumed, since
        self._committed = time.monotonic()

    @classmethod
    def opened(cls, volume_id: bytes, root: os.stat_result, *, restart: bool = False) -> State:
        """The state of this volume's check: of an interrupted one, if it is younger than a week, or a new one."""
        base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        path = Path(base) / "stackfs" / f"fsck-{volume_id.hex()}-{root.st_dev:x}-{root.st_ino:x}.sqlite"
        with contextlib.suppress(OSError, sqlite3.Error):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if restart:
                path.unlink(missing_ok=True)
            with contextlib.suppress(sqlite3.DatabaseError):
                return cls._connected(path)
            path.unlink()
            return cls._connected(path)
        return cls._new(None, sqlite3.connect(":memory:"))

    @classmethod
    def _connected(cls, path: Path) -> State:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(path)
        try:
            quick = database.execute("PRAGMA quick_check").fetchone()[0]
            database.execute("PRAGMA synchronous = OFF")
            if quick == "ok" and database.execute("PRAGMA user_version").fetchone()[0] == VERSION:
                (since,) = database.execute("SELECT begun FROM begun").fetchone()
                (count,) = database.execute("SELECT count(*) FROM healthy").fetchone()
                if 0 <= time.time() - since < FORGOTTEN_SECONDS:
                    return cls(path, database, count, since)
            database.close()
            path.unlink()
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            return cls._new(path, sqlite3.connect(path))
        except BaseException:
            database.close()
            raise

    @classmethod
    def _new(cls, path: Path | None, database: sqlite3.Connection) -> State:
        database.executescript(
            "PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY; BEGIN;"
            "CREATE TABLE healthy (inode INTEGER PRIMARY KEY, changed INTEGER, size INTEGER) WITHOUT ROWID;"
            "CREATE TABLE ids (id BLOB PRIMARY KEY, inode INTEGER, stored BLOB) WITHOUT ROWID;"
            "CREATE TABLE begun (begun REAL);"
            f"PRAGMA user_version = {VERSION}; COMMIT;"
        )
        now = time.time()
        database.execute("INSERT INTO begun VALUES (?)", (now,))
        database.commit()
        return cls(path, database, 0, now)

    def is_healthy(self, found: os.stat_result) -> bool:
        row = self._database.execute(
            "SELECT changed, size FROM healthy WHERE inode = ?", (_signed(found.st_ino),)
        ).fetchone()
        return row is not None and row == (found.st_ctime_ns, found.st_size)

    def healthy(self, found: os.stat_result) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO healthy VALUES (?, ?, ?)",
            (_signed(found.st_ino), found.st_ctime_ns, found.st_size),
        )
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def other_with(self, file_id: bytes, inode: int, stored: bytes) -> bytes | None:
        """The stored path of another file that has this id; else remembers this one."""
        row = self._database.execute("SELECT inode, stored FROM ids WHERE id = ?", (file_id,)).fetchone()
        if row is not None and row[0] != _signed(inode):
            return bytes(row[1])
        if row is None:
            self._database.execute("INSERT INTO ids VALUES (?, ?, ?)", (file_id, _signed(inode), stored))
        return None

    def commit(self) -> None:
        self._database.commit()
        self._committed = time.monotonic()

    def close(self, *, finished: bool) -> None:
        """`finished`: nothing is left to go on with."""
        if not finished:
            self.commit()
        self._database.close()
        if finished and self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()


def _signed(number: int) -> int:
    """SQLite's integers have a sign."""
    return number - (1 << 64) if number >= 1 << 63 else number
