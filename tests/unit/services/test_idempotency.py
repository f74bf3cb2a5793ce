"""Keys: claimed by one, joined by the others, given back, spent, purged; never begun twice."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.errors import BusyError, ConflictError, InvalidInputError, SpentKeyError, StorageError
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.common.value import replace
from ctrl_exec.services.idempotency import LIFE_S, Claim, IdempotencyKeys, KeyUse, check_key
from tests.support.polling import eventually

USE = KeyUse("key-1", "alice", "token", "POST", "/run", b"{}")


class Bench:
    """Keys with a clock that is set by hand, and what is on record."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "keys"
        self.now = 1_000_000
        self.begun: set[str] = set()
        self.keys = IdempotencyKeys(str(self.directory), lambda: self.now)

    def claim(
        self, identity: str, use: KeyUse = USE, wait: Callable[[float], bool] = lambda _: True
    ) -> Claim:
        return self.keys.claim(use, identity, exists=self.begun.__contains__, wait=wait)

    def begin(self, identity: str, use: KeyUse = USE) -> None:
        """Claim, begin and settle."""
        claim = self.claim(identity, use)
        assert claim.is_ours
        self.begun.add(identity)
        claim.settle()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_second_use_joins_the_first(bench: Bench) -> None:
    bench.begin("a" * 16)
    again = bench.claim("b" * 16)
    assert (again.is_ours, again.identity) == (False, "a" * 16)


@pytest.mark.parametrize(
    "other",
    [
        {"username": "bob"},
        {"token": "other"},
        {"method": "PUT"},
        {"path": "/api/v1/executions"},
        {"key": "key-2"},
    ],
    ids=str,
)
def test_a_key_is_its_callers_own_for_one_method_and_path(bench: Bench, other: dict[str, str]) -> None:
    bench.begin("a" * 16)
    assert bench.claim("b" * 16, replace(USE, **other)).is_ours


def test_parts_of_a_use_do_not_run_into_one_another(bench: Bench) -> None:
    bench.begin("a" * 16, replace(USE, username="ab", token="c"))
    assert bench.claim("b" * 16, replace(USE, username="a", token="bc")).is_ours


def test_another_body_is_a_conflict(bench: Bench) -> None:
    """Also while the first one is only about to begin: there is nothing to wait for."""
    claim = bench.claim("a" * 16)
    with pytest.raises(ConflictError):
        bench.claim("b" * 16, replace(USE, body=b"{1}"))
    bench.begun.add("a" * 16)
    claim.settle()
    with pytest.raises(ConflictError):
        bench.claim("b" * 16, replace(USE, body=b"{1}"))


def test_who_comes_while_it_is_about_to_begin_waits(bench: Bench) -> None:
    """Until it has begun, or for as long as there is time."""
    claim = bench.claim("a" * 16)
    with pytest.raises(BusyError):
        bench.claim("b" * 16)

    def wait(_seconds: float) -> bool:
        bench.begun.add("a" * 16)
        claim.settle()
        return False

    assert bench.claim("b" * 16, wait=wait).identity == "a" * 16


def test_a_refused_request_gives_its_key_back(bench: Bench) -> None:
    """To one that waits for it too, and for another body."""
    claim = bench.claim("a" * 16)

    def wait(_seconds: float) -> bool:
        claim.withdraw()
        return False

    taken = bench.claim("b" * 16, wait=wait)
    assert (taken.is_ours, taken.identity) == (True, "b" * 16)
    taken.withdraw()
    assert bench.claim("c" * 16, replace(USE, body=b"other")).is_ours


def test_what_was_purged_is_not_begun_again(bench: Bench) -> None:
    bench.begin("a" * 16)
    bench.begun.clear()
    with pytest.raises(SpentKeyError) as caught:
        bench.claim("b" * 16)
    assert caught.value.reqid == "a" * 16


def test_a_key_lives_for_a_day(bench: Bench) -> None:
    """Then it may begin something new, with another body too; and is removed by the purge."""
    bench.begin("a" * 16)
    bench.begin("f" * 16, replace(USE, key="key-2"))
    bench.now += LIFE_S - 1
    assert bench.claim("b" * 16).identity == "a" * 16
    assert bench.keys.purge() == 0
    bench.now += 1
    other = replace(USE, body=b"other")
    bench.begin("b" * 16, other)
    assert bench.claim("c" * 16, other).identity == "b" * 16
    assert bench.keys.purge() == 1
    assert len(list(bench.directory.iterdir())) == 2  # the secret, and the key that began anew
    bench.now -= 10 * LIFE_S
    assert bench.claim("c" * 16, other).identity == "b" * 16, "a clock that was set back changes nothing"


def in_child(work: Callable[[], object]) -> None:
    """Do the work in a process that is killed with -9 when it is done."""
    reading, writing = os.pipe()

    def child() -> None:
        work()
        os.write(writing, b"1")
        signal.pause()

    pid = fork_child(child)
    os.close(writing)
    assert os.read(reading, 1) == b"1"
    os.close(reading)
    os.kill(pid, signal.SIGKILL)
    wait_status(pid)


def test_a_claimant_that_died_before_it_began_is_followed_by_another(bench: Bench) -> None:
    in_child(lambda: bench.claim("a" * 16) and None)
    claim = bench.claim("b" * 16)
    assert (claim.is_ours, claim.identity) == (True, "b" * 16)
    claim.close()  # as if it had died too
    assert bench.claim("c" * 16).is_ours


def test_a_claimant_that_died_when_it_had_begun_is_joined(bench: Bench) -> None:
    """And what it began is remembered when its record is purged, whoever comes first: a use or the purge."""
    second = replace(USE, key="key-2")
    in_child(lambda: bench.claim("a" * 16) and bench.claim("b" * 16, second) and None)
    bench.begun |= {"a" * 16, "b" * 16}
    assert bench.claim("c" * 16).identity == "a" * 16
    bench.keys.settle_all(bench.begun.__contains__)
    bench.begun.clear()
    for use in (USE, second):
        with pytest.raises(SpentKeyError):
            bench.claim("d" * 16, use)


def test_of_many_at_once_one_begins(bench: Bench) -> None:
    """Fifty processes, of which the first claimants are killed before they begin: one identity in the end."""
    records = bench.directory.parent / "records"
    records.mkdir()
    keys = IdempotencyKeys(str(bench.directory), lambda: bench.now)

    def work(number: int) -> int:
        def wait(seconds: float) -> bool:
            import select

            select.select([], [], [], seconds)
            return False

        claim = keys.claim(USE, f"{number:016x}", exists=lambda known: (records / known).exists(), wait=wait)
        if claim.is_ours:
            if len(list(records.parent.glob("died-*"))) < 3:
                (records.parent / f"died-{number}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            (records / claim.identity).touch()
            if number % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            claim.settle()
        (records.parent / f"joined-{number}").write_text(claim.identity)
        return 0

    pids = [fork_child(lambda number=number: work(number)) for number in range(50)]  # type: ignore[misc]
    for pid in pids:
        eventually(lambda pid=pid: wait_status(pid, timeout_s=0) is not None, timeout_s=60)  # type: ignore[misc]
    (begun,) = [path.name for path in records.iterdir()]
    assert len(list(records.parent.glob("died-*"))) == 3
    assert {path.read_text() for path in records.parent.glob("joined-*")} == {begun}


def test_neither_key_nor_token_can_be_read_from_the_disk(bench: Bench) -> None:
    bench.begin("a" * 16, replace(USE, key="the-secret-key", token="the-token"))
    shown = b"".join(path.name.encode() + path.read_bytes() for path in bench.directory.iterdir())
    assert b"the-" not in shown
    assert stat.S_IMODE((bench.directory / "secret").stat().st_mode) == 0o600
    assert "token" not in repr(USE)


def test_a_damaged_entry_begins_nothing(bench: Bench) -> None:
    """What the key stood for is not known any more: an error, not a second run."""
    bench.begin("a" * 16)
    (path,) = [each for each in bench.directory.iterdir() if each.name != "secret"]
    path.write_bytes(b"")
    with pytest.raises(StorageError):
        bench.claim("b" * 16)
    bench.keys.settle_all(bench.begun.__contains__)
    assert bench.keys.purge() == 0


def test_an_unwritable_directory_is_an_error_of_storage(bench: Bench) -> None:
    bench.directory.write_text("no directory")
    with pytest.raises(StorageError):
        bench.claim("a" * 16)


@pytest.mark.parametrize("key", ["", " ", " a", "a ", "a\tb", "ü", "a\x7f", "x" * 256])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(InvalidInputError):
        check_key(key)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255))
def test_what_is_a_key(key: str) -> None:
    assert check_key(key) == key
