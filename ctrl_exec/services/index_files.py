"""The files of the index of runs: which database is in use, and how one takes its place.

Owns the names below `runs/index/` and the schema. Every database has a name of its own, so that
what is left of a deleted one (its write-ahead log above all) can't be taken for its successor's.
Must not know what is put into it.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from contextlib import contextmanager, suppress

from ctrl_exec.common import files
from ctrl_exec.common.errors import StorageError
from ctrl_exec.services.change_list import Position

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY_MODE = 0o2770
_FILE_MODE = 0o660
_NAME = re.compile(r"[0-9a-f]{16}\.db", re.ASCII)
_NAME_LENGTH = 19
_BUSY_S = 1.0
_STALE_AFTER_S = 3600

_SCHEMA = """
CREATE TABLE runs (
    reqid TEXT NOT NULL UNIQUE, created INTEGER NOT NULL, script TEXT NOT NULL, state TEXT NOT NULL,
    user TEXT NOT NULL, hosts TEXT NOT NULL);
CREATE INDEX by_time ON runs (created, reqid);
CREATE INDEX by_script ON runs (script, created, reqid, state, user);
CREATE INDEX by_state ON runs (state, created, reqid, script, user);
CREATE INDEX by_user ON runs (user, created, reqid, script, state);
CREATE TABLE hosts (
    host TEXT NOT NULL, created INTEGER NOT NULL, reqid TEXT NOT NULL, script TEXT NOT NULL,
    state TEXT NOT NULL, user TEXT NOT NULL, PRIMARY KEY (host, created, reqid)) WITHOUT ROWID;
CREATE TABLE progress (list_id TEXT NOT NULL, offset INTEGER NOT NULL, scanned INTEGER NOT NULL);
INSERT INTO progress VALUES ('', 0, 0);
"""
# `progress.scanned`: the epoch second at which all names were last looked at, 0 for never


class IndexFiles:
    """The databases below one directory, of which one is in use."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """The database in use, or a new one. Raises: StorageError, sqlite3.DatabaseError."""
        name = self.current() or self._begin()
        database = _connect(os.path.join(self._directory, name))
        try:
            yield database
        finally:
            database.close()

    def current(self) -> str:
        """The name of the database in use, empty if there is none."""
        with suppress(FileNotFoundError):
            named = files.read_bounded(os.path.join(self._directory, "current"), 64)
            name = named.decode("ascii", "replace").strip()
            if _NAME.fullmatch(name) and os.path.exists(os.path.join(self._directory, name)):
                return name
            self.discard()
        return ""

    def _begin(self) -> str:
        """A new, empty database; the one that another process began at the same moment, if it did."""
        files.make_dirs(self._directory, _DIRECTORY_MODE)
        name = os.urandom(8).hex() + ".db"
        path = os.path.join(self._directory, name)
        try:
            os.close(files.open_lock(path, _FILE_MODE))
            database = _connect(path)
            try:
                database.execute("PRAGMA journal_mode = WAL")
                database.executescript("BEGIN;" + _SCHEMA + "COMMIT;")
            finally:
                database.close()
            current = os.path.join(self._directory, "current")
            files.write_atomic(current, name.encode("ascii"), _FILE_MODE, exclusive=True, durable=False)
        except FileExistsError:
            _remove(path)
            return self.current() or self._begin()
        except BaseException:
            _remove(path)
            raise
        return name

    def remove_strangers(self) -> None:
        """Remove the databases that are in use no more, when nobody has written to them for long."""
        current = self.current()
        moment = time.time() - _STALE_AFTER_S
        # all of them may be removed at any time, also at this very moment
        with suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                name = entry.name[:_NAME_LENGTH]
                is_old = name != current and _NAME.fullmatch(name) is not None
                with suppress(OSError):
                    if (is_old or files.is_temporary(entry.name)) and entry.stat().st_mtime < moment:
                        os.unlink(entry.path)

    def discard(self) -> None:
        """Use the database no more; its files go with the next look at all names."""
        with suppress(StorageError):
            files.remove(os.path.join(self._directory, "current"))


def _connect(path: str) -> sqlite3.Connection:
    uri = f"file:{path.replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode=rw"
    database = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S)
    try:
        database.execute("PRAGMA synchronous = OFF")
    except BaseException:
        database.close()
        raise
    return database


def _remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):
            os.unlink(path + suffix)


@contextmanager
def writing(database: sqlite3.Connection) -> Iterator[None]:
    """One transaction that no other writer is in."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def progress_of(database: sqlite3.Connection) -> tuple[Position, int]:
    """How far the list of changes was read, and when all names were last looked at.

    Raises: sqlite3.DatabaseError.
    """
    row = database.execute("SELECT list_id, offset, scanned FROM progress").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("no progress is noted")
    return Position(row[0], row[1]), row[2]


def is_passing(error: sqlite3.DatabaseError) -> bool:
    """Whether the error says nothing against the database: it is in use, or the disk is full."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)
