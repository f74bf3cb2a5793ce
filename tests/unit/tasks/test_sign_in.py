"""Guessing passwords: many at once get no further than one by one, nor from one network's addresses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ctrl_exec.common.errors import ThrottledError
from ctrl_exec.tasks.identity import local_identity
from ctrl_exec.tasks.models import User
from ctrl_exec.tasks.passwords import hash_password
from ctrl_exec.tasks.sign_in import OF_ADDRESS, sign_in
from ctrl_exec.tasks.store import Store
from ctrl_exec.tasks.users import add_user
from tests.unit.tasks.conftest import NOW_NS

MORE = 4


def guess(path: str, number: int) -> str:
    """What becomes of one more wrong password, each from another address of one network."""
    with Store(path, clock_ns=lambda: NOW_NS) as store:
        try:
            return str(sign_in(store, "nobody", "wrong password", f"2001:db8::{number:x}"))
        except ThrottledError:
            return "throttled"


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
