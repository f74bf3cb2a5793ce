"""Guessing passwords: many at once get no further than one by one, nor from one network's addresses."""

from __future__ import annotations

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ctrl_exec.common.errors import BusyError, ThrottledError
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.tasks.models import User
from ctrl_exec.tasks.people import sign_in as sign_in_module
from ctrl_exec.tasks.people.identity import local_identity
from ctrl_exec.tasks.people.passwords import hash_password
from ctrl_exec.tasks.people.sign_in import AT_ONCE, OF_ADDRESS, place, sign_in
from ctrl_exec.tasks.people.users import add_user
from ctrl_exec.tasks.store import Store
from tests.unit.tasks.conftest import NOW_NS

MORE = 4


def guess(path: str, number: int) -> str:
    """What becomes of one more wrong password, each from another address of one network."""
    with Store(path, clock_ns=lambda: NOW_NS) as store:
        while True:
            try:
                return str(sign_in(store, "nobody", "wrong password", f"2001:db8::{number:x}"))
            except ThrottledError:
                return "throttled"
            except BusyError:  # a slow machine: it did not count
                continue


def test_many_guesses_at_once_are_as_few_as_one_by_one(tmp_path: Path) -> None:
    """All of them begin before the first has been judged."""
    path = str(tmp_path / "tasks.db")
    with Store(path) as store:
        assert store.rows("SELECT * FROM failures") == []
    with ThreadPoolExecutor(OF_ADDRESS + MORE) as pool:
        found = list(pool.map(lambda number: guess(path, number), range(OF_ADDRESS + MORE)))
    assert sorted(found) == ["None"] * OF_ADDRESS + ["throttled"] * MORE


def test_who_signs_in_is_not_counted(store: Store) -> None:
    """Nor is another network, where one has failed too often."""
    root = local_identity(store, "root")
    user = add_user(store, root, User("", "alice", password=hash_password("correct horse")))
    for _ in range(2):
        found = sign_in(store, "alice", "correct horse", "192.0.2.1")
        assert found is not None
        assert found.user_id == user.user_id
    assert {row["count"] for row in store.rows("SELECT * FROM failures")} == {0}
    minute = store.clock_ns() // 60_000_000_000
    store.execute(
        "INSERT INTO failures VALUES ('address 2001:db8::/64', ?, ?), ('address 2001:db8::/64', ?, ?)",
        (minute, OF_ADDRESS, minute + 1, OF_ADDRESS),
    )
    with pytest.raises(ThrottledError):
        sign_in(store, "alice", "correct horse", "2001:db8::7")
    assert sign_in(store, "alice", "correct horse", "2001:db8:0:1::7") is not None


def test_as_many_passwords_are_judged_at_once_as_there_is_memory_for(tmp_path: Path) -> None:
    """Each takes 64 MiB: the others wait for a place, and one that was left by a process that died is free."""
    path = str(tmp_path / "tasks.db")
    with contextlib.ExitStack() as held:
        for _ in range(AT_ONCE):
            held.enter_context(place(path, patience_s=0))
        with pytest.raises(BusyError), place(path, patience_s=0.1):
            pass
    with place(path, patience_s=0):
        pass
    pid = fork_child(lambda: _die_in_a_place(path))
    assert wait_status(pid) == (-1, signal.SIGKILL)
    with contextlib.ExitStack() as held:
        for _ in range(AT_ONCE):
            held.enter_context(place(path, patience_s=0))


def _die_in_a_place(path: str) -> None:
    with place(path, patience_s=0):
        os.kill(os.getpid(), signal.SIGKILL)


def test_who_found_no_place_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt does not count: neither the address nor the account did anything wrong."""
    path = str(tmp_path / "tasks.db")
    monkeypatch.setattr(sign_in_module, "PATIENCE_S", 0.05)
    with contextlib.ExitStack() as held, Store(path) as store:
        for _ in range(AT_ONCE):
            held.enter_context(place(path, patience_s=0))
        with pytest.raises(BusyError):
            sign_in(store, "nobody", "wrong password", "198.51.100.1")
        assert {row["count"] for row in store.rows("SELECT count FROM failures")} == {0}
