"""Connections to agents that wait for their next call, and TLS sessions of those that are closed.

Owns how long and how many are kept, and closes what its agent has closed. It must not know what was
asked on them, nor when its owner polls.
"""

from __future__ import annotations

from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.tls import SSLWantReadError
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _ssl import SSLSession
    from collections.abc import Callable

    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec.common.tls import TlsSocket

    Place = tuple[str, int]  # (host as it was called, port)

_CLOSES_A_TURN = 64  # a close costs as much as a call: a thousand at once would stop the loop


@value
class PoolLimits:
    """`idle_s` without a call, `age_s` in all (a name may lead elsewhere by then), `per_place` at once."""

    idle_s: float
    age_s: float = 3600.0
    per_place: int = 2
    max_sessions: int = 1024


class Kept:
    """One open connection, its handshake done and its peer's certificate checked."""

    __slots__ = ("born", "certificate", "fd", "idle_since", "place", "sock")

    def __init__(self, place: Place, sock: TlsSocket, certificate: Certificate, born: float) -> None:
        self.place = place
        self.sock = sock
        self.fd = sock.fileno()
        self.certificate = certificate
        self.born = born
        self.idle_since = born

    def is_expired(self, epoch_s: float) -> bool:
        """Whether the agent's certificate is no longer valid."""
        return self.certificate.not_after.timestamp() <= epoch_s


class IdlePool:
    """`watch(fd)` is called for each connection put in, `unwatch(fd)` before it goes out or closes."""

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        self._kept: dict[int, Kept] = {}  # longest idle first
        self._at: dict[Place, list[Kept]] = {}
        self._sessions: dict[Place, tuple[SSLSession, float]] = {}  # and the end of its certificate
        self.watch: Callable[[int], None] = _nothing
        self.unwatch: Callable[[int], None] = _nothing

    def __len__(self) -> int:
        return len(self._kept)

    def owns(self, fd: int) -> bool:
        """Whether the descriptor is one of an idle connection."""
        return fd in self._kept

    def put(self, kept: Kept, now: float) -> None:
        """Keep the connection, or close it where there are enough or it is too old."""
        there = self._at.get(kept.place, ())
        if len(there) >= self._limits.per_place or now - kept.born >= self._limits.age_s:
            self._close(kept)
            return
        kept.idle_since = now
        self._at.setdefault(kept.place, []).append(kept)
        self._kept[kept.fd] = kept
        self.watch(kept.fd)

    def take(self, place: Place) -> Kept | None:
        """The connection to the place that was used last, no longer ours."""
        there = self._at.get(place)
        if not there:
            return None
        kept = there[-1]
        self._remove(kept)
        return kept

    def session(self, place: Place, epoch_s: float) -> SSLSession | None:
        """A session to resume, which is then used up. Source: RFC 8446 appendix C.4.

        None where the certificate has ended meanwhile, for at a resumption nobody looks at it.
        """
        session, ends_at = self._sessions.pop(place, (None, 0.0))
        return session if ends_at > epoch_s else None

    def heard(self, fd: int) -> None:
        """The agent has said something nobody asked for, or closed: in both cases it is over."""
        kept = self._kept[fd]
        try:
            kept.sock.recv(1)
        except SSLWantReadError:  # a session ticket
            return
        except (OSError, ValueError):
            pass
        self._remove(kept)
        self._remember(kept)
        self._close(kept)

    def expire(self, now: float) -> None:
        """Close those whose time is over; some at a time."""
        for kept in self._first(_CLOSES_A_TURN):
            if kept.idle_since + self._limits.idle_s > now:
                return
            self._remove(kept)
            self._remember(kept)
            self._close(kept)

    def next_deadline(self) -> float | None:
        """When `expire` is due."""
        return next((kept.idle_since + self._limits.idle_s for kept in self._kept.values()), None)

    def make_room(self) -> bool:
        """Close the one that was idle longest; False if there is none."""
        for kept in self._first(1):
            self._remove(kept)
            self._close(kept)
            return True
        return False

    def clear(self) -> None:
        """Close all, and forget what could be resumed."""
        self._sessions.clear()
        while self.make_room():
            pass

    def _first(self, count: int) -> list[Kept]:
        return [kept for kept, _ in zip(self._kept.values(), range(count), strict=False)]

    def _remove(self, kept: Kept) -> None:
        self.unwatch(kept.fd)
        del self._kept[kept.fd]
        there = self._at[kept.place]
        there.remove(kept)
        if not there:
            del self._at[kept.place]

    def _remember(self, kept: Kept) -> None:
        with suppress(OSError, ValueError):
            session = kept.sock.session
            if session is not None and session.has_ticket:
                while len(self._sessions) >= self._limits.max_sessions:
                    del self._sessions[next(iter(self._sessions))]
                self._sessions[kept.place] = (session, kept.certificate.not_after.timestamp())

    def discard(self, kept: Kept) -> None:
        """Close one that was taken and is of no use."""
        self._close(kept)

    @staticmethod
    def _close(kept: Kept) -> None:
        with suppress(OSError, ValueError):
            kept.sock.unwrap()  # one try: a close_notify, nobody waits for the other
        kept.sock.close()


def _nothing(_fd: int) -> None:
    """What is called where nobody watches."""
