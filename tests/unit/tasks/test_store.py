"""The database: its mode, its migration by many at once, its transactions and who hears of them."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.errors import StorageError
from ctrl_exec.tasks.migrations import MIGRATIONS
from ctrl_exec.tasks.store import Store
from ctrl_exec.tasks.ulid import ULID, first_ulid, new_ulid


def test_nobody_else_may_read_it(store: Store) -> None:
    store.rows("SELECT 1")
    directory = Path(store.path).parent
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in directory.iterdir()}
    assert set(modes.values()) == {0o600}
    assert "tasks.db" in modes


def open_and_count(path: str, out: Any) -> None:
    with Store(path) as store:
        row = store.row("SELECT count(*) FROM users")
        assert row is not None
        out.put(row[0])


def test_many_may_open_a_new_one_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    path = str(tmp_path / "tasks.db")
    crowd = [context.Process(target=open_and_count, args=(path, out)) for _ in range(6)]
    for each in crowd:
        each.start()
    assert [out.get() for _ in crowd] == [0] * 6
    for each in crowd:
        each.join(60)


def test_a_newer_schema_is_left_alone(store: Store) -> None:
    store.connection.execute("PRAGMA user_version = 999")
    store.close()
    with pytest.raises(StorageError, match="too new"):
        store.rows("SELECT 1")


def test_an_older_schema_is_brought_on_with_what_it_holds(tmp_path: Path) -> None:
    path = str(tmp_path / "tasks.db")
    with closing(sqlite3.connect(path)) as old:
        old.executescript(MIGRATIONS[0])
        old.execute("PRAGMA user_version = 1")
        old.execute("INSERT INTO projects VALUES ('p', 'P', '', NULL, NULL, NULL, 1, 1)")
        old.commit()
    with Store(path) as store:
        assert [row["name"] for row in store.rows("SELECT name FROM projects")] == ["P"]
        assert store.rows("SELECT is_long FROM executions") == []
        assert store.rows("SELECT * FROM notices") == []
        version = store.row("PRAGMA user_version")
        assert version is not None
        assert version[0] == len(MIGRATIONS)


@pytest.mark.parametrize("kind", ["text", "link", "missing"])
def test_what_is_no_database_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tasks.db"
    if kind == "text":
        path.write_text("this is no database, and long enough to be looked at by those who read it\n" * 20)
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path = tmp_path / "nowhere" / "tasks.db"
    with Store(str(path)) as store, pytest.raises(StorageError):
        store.rows("SELECT 1")


def test_a_transaction_is_whole_or_absent_and_nests(store: Store) -> None:
    def add(name: str) -> None:
        store.insert("users", {"user_id": name, "name": name, "created_ns": 1, "updated_ns": 1})

    def add_twice() -> None:
        with store.writing():
            add("a")
            with store.writing():
                add("A")

    with pytest.raises(sqlite3.IntegrityError):
        add_twice()
    assert store.rows("SELECT * FROM users") == []
    with store.writing():
        add("a")
        add("b")
    assert len(store.rows("SELECT * FROM users")) == 2


def test_changes_are_told_after_their_commit(tmp_path: Path) -> None:
    told = []

    def fail() -> None:
        with store.writing():
            store.touch()
            raise KeyError

    with Store(str(tmp_path / "tasks.db"), on_change=lambda: told.append(1)) as store:
        with store.writing():
            store.touch()
            assert not told
        assert told == [1]
        with store.writing():
            pass
        with pytest.raises(KeyError):
            fail()
        store.execute("DELETE FROM users")
        assert told == [1]


def test_a_forked_child_has_a_connection_of_its_own(store: Store) -> None:
    mine = store.connection
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"own" if store.connection is not mine else b"not")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 3) == b"own"
    os.close(reading)
    os.close(writing)
    assert store.connection is mine


def test_the_audit_log_only_grows(store: Store) -> None:
    """For ninety days."""
    row = {
        "audit_id": "a", "at_ns": time.time_ns() - 89 * 86_400 * 10**9, "action": "create", "object_type": "task", "object_id": "t",
        "username": "u", "source_ip": "", "via": "cli",
    }  # fmt: skip
    store.insert("audit", row)
    for change in ("DELETE FROM audit", "UPDATE audit SET action = 'x'"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            store.execute(change)
    store.insert("audit", row | {"audit_id": "b", "at_ns": 1})
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        store.execute("UPDATE audit SET action = 'x' WHERE audit_id = 'b'")
    assert store.execute("DELETE FROM audit WHERE audit_id = 'b'") == 1


def test_ids_sort_by_their_time() -> None:
    made = [new_ulid(at_ns) for at_ns in (1, 2_000_000, 1_727_647_374_373_505_276)]
    assert made == sorted(made)
    assert all(ULID.fullmatch(each) for each in made)
    assert first_ulid(2_000_000) < made[1]
    assert made[2].startswith("01J8")
    assert len({new_ulid(1) for _ in range(100)}) == 100
