"""`tasks.db`: one connection, its transactions, and the form of rows.

Owns the file, its mode, its pragmas and migrations. Knows no table: the modules of the nouns do. One
process has one; a child that was forked opens its own.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager

from ctrl_exec.common.errors import BusyError, StorageError
from ctrl_exec.common.files import held_lock
from ctrl_exec.tasks.migrations import MIGRATIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, Self

_BUSY_TIMEOUT_S = 10.0
_MIGRATION_TIMEOUT_S = 60.0


class Store:
    """The database, opened when it is first used. `clock_ns` gives nanoseconds since the epoch.

    The file is made, 0600, if it is missing, and brought to the newest schema. `on_change` is called
    after each transaction that said `touch()`: the scheduler sleeps until the next due time and has to
    hear of a changed task.
    """

    def __init__(
        self,
        path: str,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        on_change: Callable[[], object] | None = None,
    ) -> None:
        self.path = path
        self.clock_ns = clock_ns
        self._on_change = on_change
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        self._is_touched = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next use opens another one."""
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()
        self._connection = None

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this process. Raises: StorageError."""
        if self._connection is None or self._owner != os.getpid():
            # a connection must not cross a fork: https://www.sqlite.org/howtocorrupt.html §2.6
            self._connection = self._open()
            self._owner = os.getpid()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        # sqlite3 costs 4 ms: only those who come to the task layer pay for it
        import sqlite3

        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(str(error), path=self.path) from error
        try:
            connection.row_factory = sqlite3.Row
            for pragma in ("synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
                connection.execute(f"PRAGMA {pragma}")
            if _version(connection) != len(MIGRATIONS):
                # of processes that come at once one migrates; SQLite itself does not wait for WAL's start
                with held_lock(self.path + ".lock", 0o600, timeout_s=_MIGRATION_TIMEOUT_S):
                    _migrate(connection)
        except sqlite3.Error as error:
            connection.close()
            raise StorageError(str(error), path=self.path) from error
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that may write, begun at once so that what it reads stays true; nests.

        Raises: BusyError if others write for ten seconds on end; StorageError.
        """
        connection = self.connection
        if connection.in_transaction:
            yield connection
            return
        import sqlite3

        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise _translated(error, self.path) from error
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._is_touched = False
            if isinstance(error, sqlite3.OperationalError):
                raise _translated(error, self.path) from error
            raise
        if self._is_touched:
            self._is_touched = False
            if self._on_change is not None:
                self._on_change()

    def touch(self) -> None:
        """Have `on_change` called once this transaction is committed."""
        self._is_touched = True

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query. Raises: StorageError."""
        import sqlite3

        try:
            return self.connection.execute(sql, parameters).fetchall()
        except sqlite3.OperationalError as error:
            raise _translated(error, self.path) from error

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row of a query, None without one. Raises: StorageError."""
        found = self.rows(sql, parameters)
        return found[0] if found else None

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Change rows, in a transaction of its own unless one is open; gives how many were changed."""
        with self.writing() as connection:
            return connection.execute(sql, parameters).rowcount

    def insert(self, table: str, row: dict[str, Any]) -> None:
        """Add a row. `table` and the names come from code, never from input.

        Raises: sqlite3.IntegrityError where a uniqueness or a reference does not hold.
        """
        names = ", ".join(row)
        marks = ", ".join("?" * len(row))
        self.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))


def _translated(error: Exception, path: str) -> BusyError | StorageError:
    text = str(error)
    if "locked" in text or "busy" in text:
        return BusyError("the task layer's database is busy")
    return StorageError(text, path=path)


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema to the newest version, whole or not at all. Raises: StorageError."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = _version(connection)
        if found > len(MIGRATIONS):
            raise StorageError(f"tasks.db has schema {found}, this program knows {len(MIGRATIONS)}: too new")
        for step in MIGRATIONS[found:]:
            for statement in _statements(step):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit the transaction they belong to."""
    import sqlite3

    gathered = ""
    for line in script.splitlines(keepends=True):
        gathered += line
        if sqlite3.complete_statement(gathered):
            yield gathered
            gathered = ""


def packed(document: Any) -> str:
    """JSON as it is stored."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
