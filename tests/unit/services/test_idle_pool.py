"""Which idle connections are kept, for how long, and which one is given out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from ctrl_exec.common.certificate import Certificate
from ctrl_exec.common.tls import SSLWantReadError
from ctrl_exec.services.idle_pool import IdlePool, Kept, PoolLimits

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CERTIFICATE = Certificate(3, "a", NOW, NOW + timedelta(days=1), "0" * 64, "a", (), (), None)
PLACE = ("host-a", 7443)


class Socket:
    """As much of a TLS socket as the pool touches."""

    def __init__(self, fd: int, said: bytes | None = None) -> None:
        self.fd = fd
        self.said = said
        self.is_closed = False
        self.session = SimpleNamespace(has_ticket=True)

    def fileno(self) -> int:
        return self.fd

    def recv(self, _count: int) -> bytes:
        if self.said is None:
            raise SSLWantReadError
        return self.said

    def unwrap(self) -> None:
        raise OSError

    def close(self) -> None:
        self.is_closed = True


class Watched:
    """A pool and the descriptors it has polled."""

    def __init__(self, **limits: Any) -> None:
        self.fds: set[int] = set()
        self.pool = IdlePool(PoolLimits(**({"idle_s": 10.0} | limits)))
        self.pool.watch, self.pool.unwatch = self.fds.add, self.fds.remove

    def put(self, fd: int, now: float = 0.0, place: tuple[str, int] = PLACE, **more: Any) -> Socket:
        made: Any = Socket(fd, **more)
        self.pool.put(Kept(place, made, CERTIFICATE, 0.0), now)
        return made


def test_the_one_used_last_is_given_out_first() -> None:
    watched = Watched()
    watched.put(3)
    watched.put(4)
    found = [watched.pool.take(PLACE) for _ in range(3)]
    assert [kept.fd if kept else None for kept in found] == [4, 3, None]
    assert watched.fds == set()
    assert watched.pool.take(("host-a", 1)) is None


def test_more_than_enough_and_what_is_too_old_is_closed() -> None:
    watched = Watched(age_s=100.0)
    sockets = [watched.put(fd) for fd in (3, 4, 5)]
    assert [each.is_closed for each in sockets] == [False, False, True]
    assert watched.put(6, 100.0, ("host-b", 1)).is_closed
    assert len(watched.pool) == 2


def test_those_whose_time_is_over_are_closed_and_their_sessions_remembered_once() -> None:
    watched = Watched()
    early, late = watched.put(3, 0.0), watched.put(4, 5.0)
    assert watched.pool.next_deadline() == 10.0
    watched.pool.expire(10.0)
    assert (early.is_closed, late.is_closed) == (True, False)
    assert watched.pool.next_deadline() == 15.0
    assert watched.pool.session(PLACE, NOW.timestamp()) is early.session
    assert watched.pool.session(PLACE, NOW.timestamp()) is None


def test_a_session_ends_with_its_certificate() -> None:
    watched = Watched()
    watched.put(3)
    watched.pool.expire(10.0)
    assert watched.pool.session(PLACE, CERTIFICATE.not_after.timestamp()) is None


def test_what_says_something_is_closed_unless_it_was_a_ticket() -> None:
    watched = Watched()
    quiet, ended, talks = (
        watched.put(3),
        watched.put(4, place=("b", 1), said=b""),
        watched.put(5, place=("c", 1), said=b"x"),
    )
    for fd in (3, 4, 5):
        assert watched.pool.owns(fd)
        watched.pool.heard(fd)
    assert [each.is_closed for each in (quiet, ended, talks)] == [False, True, True]
    assert watched.fds == {3}


def test_room_is_made_by_the_one_idle_longest() -> None:
    watched = Watched()
    first, second = watched.put(3), watched.put(4, place=("b", 1))
    assert watched.pool.make_room()
    assert (first.is_closed, second.is_closed) == (True, False)
    watched.pool.clear()
    assert second.is_closed
    assert not watched.pool.make_room()
    assert watched.pool.next_deadline() is None


def test_sessions_are_bounded() -> None:
    watched = Watched(max_sessions=2)
    for number in range(4):
        watched.put(3 + number, place=("host", number))
    watched.pool.expire(10.0)
    found = [watched.pool.session(("host", number), NOW.timestamp()) for number in range(4)]
    assert [each is None for each in found] == [True, True, False, False]
