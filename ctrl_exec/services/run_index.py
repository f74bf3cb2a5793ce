"""Which runs there are, newest first: a cache over the names and heads of run records.

Owns `runs/index/`: the list of changed records (`change_list`), and databases that only help to
find records; what is shown is always read from the record itself. All of it may be deleted at any
moment: the next reader begins a new database, and whoever calls `rebuild` fills it.

    current           name of the database in use
    <16 hex>.db       SQLite in WAL mode, never synced; each with a name of its own, so that files
                      left of a deleted one can't be taken for those of its successor
    changes           ids of records that changed since the last reading
    scan.lock         held by the one process that looks at all names
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress

from ctrl_exec.common import files
from ctrl_exec.common.errors import BusyError, StorageError
from ctrl_exec.common.names import REQID
from ctrl_exec.common.value import value
from ctrl_exec.services.change_list import Position, change_list_of
from ctrl_exec.services.index_files import IndexFiles, is_passing, progress_of, writing
from ctrl_exec.services.record_heads import RunHead, read_head
from ctrl_exec.services.run_filter import RunFilter, find_keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from ctrl_exec.services.run_filter import Key

    T = TypeVar("T")

_DIRECTORY_MODE = 0o2770
_FILE_MODE = 0o660
_SLICE = 250
_ATTEMPTS = 4
_CUT_FROM_BYTES = 1 << 16
_PAGE_BYTES = 1 << 20
# records removed by hand since the last look at all names are passed over, but not for ever
_MOST_HEADS = 2500
_UNFINISHED = 1 << 40  # ranks before every moment of completion


@value
class RunPage:
    """Runs, newest first; `after` is where the next page begins, None at the end.

    `is_indexing` says that the index is being rebuilt or is behind: older runs may be missing.
    """

    runs: tuple[RunHead, ...]
    after: Key | None
    is_indexing: bool = False


class RunIndex:
    """The index of the run records below one directory."""

    def __init__(self, runs_dir: str) -> None:
        self._runs_dir = runs_dir
        self._changes = change_list_of(runs_dir)
        self._directory = os.path.dirname(self._changes.path)
        self._files = IndexFiles(self._directory)

    def note(self, reqids: Sequence[str]) -> None:
        """Have the index look at these records again; never fails, and costs a line each."""
        self._changes.note(reqids)

    def page(
        self, wanted: RunFilter, limit: int, after: Key | None = None, *, within_s: float = 0.1
    ) -> RunPage:
        """The next runs of the list; reads up on what changed first, as far as that is done in time.

        Raises: StorageError; BusyError.
        """

        def work(database: sqlite3.Connection) -> RunPage:
            is_current = self._catch_up(database, within_s)
            return self._page(database, wanted, limit, after, is_indexing=not is_current)

        return self._with_database(work)

    def is_current(self, within_s: float = 0.1) -> bool:
        """Whether every record is in the index, after reading up on what changed.

        Raises: StorageError; BusyError.
        """
        return self._with_database(lambda database: self._catch_up(database, within_s))

    def scanned_at(self) -> int:
        """When all names were last looked at (epoch), 0 for never. Raises: StorageError; BusyError."""
        return self._with_database(lambda database: progress_of(database)[1])

    def _with_database(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do the work, on a new database if this one was deleted or damaged: it is only a cache."""
        for attempt in range(_ATTEMPTS):
            is_last = attempt == _ATTEMPTS - 1
            try:
                with self._files.open() as database:
                    return work(database)
            except StorageError:  # the directory may be going at this moment
                if is_last:
                    raise
            except sqlite3.DatabaseError as error:
                if is_passing(error):
                    raise BusyError(f"the index of runs can't be read now: {error}") from error
                self._files.discard()
                if is_last:
                    raise StorageError(str(error), path=self._directory) from error
        raise AssertionError

    # -- reading up on changes --------------------------------------------------------------------

    def _catch_up(self, database: sqlite3.Connection, within_s: float) -> bool:
        """Whether all changes are in, and all names were looked at once."""
        deadline = time.monotonic() + within_s
        try:
            while True:
                position, scanned = progress_of(database)
                if self._changes.is_at(position):
                    if position.offset > _CUT_FROM_BYTES:
                        self._cut(database, position)
                    return scanned > 0
                has_more = self._fold(database)
                if has_more and time.monotonic() > deadline:
                    return False
        except StorageError:
            return False
        except sqlite3.DatabaseError as error:
            if is_passing(error):  # others are reading up, or the disk is full: what is known is shown
                return False
            raise

    def _fold(self, database: sqlite3.Connection) -> bool:
        """Take a slice of the changes in; whether there may be more."""
        with writing(database):
            position, scanned = progress_of(database)
            changes = self._changes.read(position, _SLICE)
            for reqid in changes.reqids:
                self._store(database, reqid)
            if not changes.is_continued:
                scanned = 0
            database.execute(
                "UPDATE progress SET list_id = ?, offset = ?, scanned = ?",
                (changes.position.list_id, changes.position.offset, scanned),
            )
        return changes.has_more

    def _cut(self, database: sqlite3.Connection, position: Position) -> None:
        with writing(database):
            if progress_of(database)[0] != position:
                return
            with self._changes.cutting(position) as fresh:
                if fresh is not None:
                    database.execute("UPDATE progress SET offset = ?", (fresh.offset,))

    def _store(self, database: sqlite3.Connection, reqid: str) -> None:
        """Have the index say of the run what its record says, or nothing if there is none."""
        try:
            head = read_head(self._runs_dir, reqid)
        except OSError:
            head = None
        known = database.execute("SELECT created, hosts FROM runs WHERE reqid = ?", (reqid,)).fetchone()
        if known is not None:
            database.executemany(
                "DELETE FROM hosts WHERE host = ? AND created = ? AND reqid = ?",
                ((host, known[0], reqid) for host in known[1].split("\n")),
            )
        if head is None:
            database.execute("DELETE FROM runs WHERE reqid = ?", (reqid,))
            return
        facts = (head.created, reqid, head.script, head.state, head.submitter)
        database.execute(
            "INSERT OR REPLACE INTO runs (created, reqid, script, state, user, hosts)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*facts, "\n".join(head.hosts)),
        )
        database.executemany(
            "INSERT OR IGNORE INTO hosts (host, created, reqid, script, state, user)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            ((host, *facts) for host in head.hosts),
        )

    # -- listing ----------------------------------------------------------------------------------

    def _page(
        self,
        database: sqlite3.Connection,
        wanted: RunFilter,
        limit: int,
        after: Key | None,
        *,
        is_indexing: bool,
    ) -> RunPage:
        runs: list[RunHead] = []
        outdated: list[str] = []
        size = tried = 0
        last = after
        for key in find_keys(database, wanted, after, limit + 1):
            if len(runs) == limit or size > _PAGE_BYTES or tried == _MOST_HEADS:
                break
            last, tried = key, tried + 1
            head = self._head(key[1])
            if head is None or not wanted.fits(head):
                outdated.append(key[1])
            else:
                runs.append(head)
                size += head.size
        else:
            last = None
        self.note(outdated)
        return RunPage(tuple(runs), last, is_indexing)

    def _head(self, reqid: str) -> RunHead | None:
        try:
            return read_head(self._runs_dir, reqid)
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self._runs_dir) from error

    # -- looking at all names ---------------------------------------------------------------------

    def rebuild(self) -> int | None:
        """Look at the names of all records and take in those that are missing; gives how many changed.

        Newest first, in slices between which others read and write. None if another process is at
        it. Raises: StorageError.
        """
        files.make_dirs(self._directory, _DIRECTORY_MODE)
        lock_fd = files.open_lock(os.path.join(self._directory, "scan.lock"), _FILE_MODE)
        try:
            if not files.try_lock(lock_fd):
                return None
            return self._with_database(self._scan)
        finally:
            os.close(lock_fd)

    def _scan(self, database: sqlite3.Connection) -> int:
        self._files.remove_strangers()
        in_use = self._files.current()
        # a change from here on is in the list, and what was there before is among the names
        while self._fold(database):
            pass
        started = int(time.time())
        self._note_names(database)
        count = 0
        while found := database.execute(
            "SELECT reqid FROM doubtful WHERE rowid > ? LIMIT ?", (count, _SLICE)
        ).fetchall():
            if self._files.current() != in_use:  # deleted meanwhile: for the next reader to begin again
                return count
            with writing(database):
                for (reqid,) in found:
                    self._store(database, reqid)
            count += len(found)
        with writing(database):
            database.execute("UPDATE progress SET scanned = ?", (started,))
        return count

    def _note_names(self, database: sqlite3.Connection) -> None:
        """Fill the table `doubtful`: the runs that are not in the index as they are on disk."""
        database.execute("PRAGMA temp_store = FILE")
        database.execute("CREATE TEMP TABLE names (reqid TEXT PRIMARY KEY, rank INTEGER) WITHOUT ROWID")
        database.execute("CREATE TEMP TABLE doubtful (reqid TEXT)")
        with writing(database):
            for suffix, rank in ((".json", 0), (".lock", _UNFINISHED)):
                database.executemany(
                    "INSERT INTO names VALUES (?, ?) ON CONFLICT DO UPDATE SET rank = excluded.rank",
                    ((reqid, rank) for reqid in _stems(self._runs_dir, suffix)),
                )
            database.executemany(
                "UPDATE names SET rank = ? WHERE reqid = ?", _completed(os.path.join(self._runs_dir, "done"))
            )
            database.execute(
                "INSERT INTO doubtful SELECT reqid FROM runs WHERE reqid NOT IN (SELECT reqid FROM names)"
                " OR state = 'running' AND reqid IN (SELECT reqid FROM names WHERE rank < ?)",
                (_UNFINISHED,),
            )
            database.execute(
                "INSERT INTO doubtful SELECT reqid FROM names"
                " WHERE reqid NOT IN (SELECT reqid FROM runs) ORDER BY rank DESC"
            )


def _stems(directory: str, suffix: str) -> Iterator[str]:
    for name in _names(directory):
        if name.endswith(suffix) and REQID.fullmatch(name.removesuffix(suffix)):
            yield name.removesuffix(suffix)


def _completed(directory: str) -> Iterator[tuple[int, str]]:
    """(completed, id) of the names in `done/`."""
    for name in _names(directory):
        completed, _, reqid = name.partition("-")
        with suppress(ValueError):
            yield int(completed[:8], 16), reqid


def _names(directory: str) -> Iterator[str]:
    """Raises: StorageError."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                yield entry.name
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=directory) from error
