"""The loop of a process that lives on: calls come and go, connections stay.

Owns the meeting of exchanges and the pool of idle connections, and the other descriptors its owner
wants polled. It must not know whose calls they are.
"""

from __future__ import annotations

import _socket
import select
import time

from ctrl_exec.services import exchange as states
from ctrl_exec.services.idle_pool import Kept
from ctrl_exec.services.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.common.tls import Context
    from ctrl_exec.services.exchange import Exchange
    from ctrl_exec.services.idle_pool import IdlePool
    from ctrl_exec.services.loop import LoopLimits
    from ctrl_exec.services.resolver import Addresses
    from ctrl_exec.services.transport import Call

_PROBE_AFTER_S = 30
_PROBE_EVERY_S = 10


class WarmLoop(Loop):
    """A loop without an end. The calls must ask in their requests for connections that stay open."""

    def __init__(
        self,
        context: Context,
        limits: LoopLimits,
        pool: IdlePool,
        resolve: Callable[[str], bytes] | None = None,
    ) -> None:
        super().__init__((), context, limits, resolve=resolve)
        self._pool = pool
        self._others: dict[int, Callable[[], None]] = {}
        pool.watch, pool.unwatch = self._watch, self._unwatch

    def add(self, index: int, call: Call, on_leaving: Callable[[], object] | None = None) -> Exchange:
        """One more call, on a kept connection at once where there is one."""
        each = super().add(index, call, on_leaving)
        each.keeps = True
        return each

    def drop(self, each: Exchange) -> None:
        """Have nothing more to do with the call: what had begun is cut off, no answer comes."""
        if each.phase == states.DONE:
            return
        self._forget(self._fd_of(each))
        each.abandon()
        self._settle(each)
        self._left -= 1
        self._release(each)

    def pause(self, each: Exchange) -> None:
        """Read no more of a stream for now."""
        if each.is_streaming and not each.is_paused:
            self._unwatch(self._fd_of(each))
            each.pause()

    def unpause(self, each: Exchange) -> None:
        """Go on with a stream."""
        if each.is_streaming and each.is_paused:
            self._go_on(each, time.monotonic())

    def renew(self, context: Context) -> None:
        """Go on with another identity: nothing that was made with the old one is used again."""
        self.context = context
        self._pool.clear()
        for each in self._open.values():
            each.session = None
            each.keeps = False

    def hold(self, change_bytes: int) -> None:
        """Count memory that the owner holds (or, negative, no longer holds) of answers it has taken."""
        self._buffered += change_bytes
        if change_bytes < 0 and self._paused:
            self._resume(time.monotonic())

    def watch(self, fd: int, on_ready: Callable[[], None], mask: int = select.EPOLLIN) -> None:
        """Have a descriptor of the owner's polled too, or for something else than so far."""
        if fd in self._others:
            self._epoll.modify(fd, mask)
        else:
            self._watch(fd, mask)
        self._others[fd] = on_ready

    def unwatch(self, fd: int) -> None:
        """Poll it no longer; before it closes."""
        if self._others.pop(fd, None) is not None:
            self._unwatch(fd)

    def rest(self) -> None:
        """Give back what only calls under way need, where there are none."""
        if not self._left and not self._finished:
            self._resolver.rest()
            self._timers.clear()

    def wait_s(self, now: float) -> float:
        """How long a turn would wait if nothing came."""
        idle_until = self._pool.next_deadline()
        wait_s = super().wait_s(now)
        return wait_s if idle_until is None else max(0.0, min(wait_s, idle_until - now))

    def _has_descriptor(self) -> bool:
        while len(self._open) + len(self._pool) >= self._max_open and self._pool.make_room():
            pass
        return super()._has_descriptor()

    def _begin_early(self, each: Exchange, now: float) -> bool:
        """Begin on a kept connection: it need not wait behind the handshakes of others."""
        call = each.call
        if call.deadline is not None and call.deadline <= now:
            return False
        while (kept := self._pool.take((call.host, call.port))) is not None:
            if kept.is_expired(time.time()) or each.objects_to(kept.certificate):
                self._pool.discard(kept)
                continue
            each.keeps = True
            each.reuse(kept, now)
            self._adopt_socket(each)
            self._schedule(each, each.deadline)
            self._step(each, now)
            return True
        return False

    def _open_one(self, each: Exchange, found: tuple[Addresses, str], now: float) -> None:
        each.session = self._pool.session((each.call.host, each.call.port), time.time())
        super()._open_one(each, found, now)

    def _keep(self, each: Exchange, now: float) -> None:
        if each.released is not None and each.certificate is not None:
            if not each.is_reused:
                self._watch_line(each.released)
            place = (each.call.host, each.call.port)
            self._pool.put(Kept(place, each.released, each.certificate, each.born), now)
            each.released = None

    def _watch_line(self, sock: _socket.socket) -> None:
        """Have the kernel find out that a host has gone, before a call does or soon after it was sent."""
        patience_ms = max(1, int(self._limits.connect_timeout_s * 1000))
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
        for option, wanted in (
            (_socket.TCP_KEEPIDLE, _PROBE_AFTER_S),
            (_socket.TCP_KEEPINTVL, _PROBE_EVERY_S),
            (_socket.TCP_USER_TIMEOUT, patience_ms),
        ):
            sock.setsockopt(_socket.IPPROTO_TCP, option, wanted)

    def _expire(self, now: float) -> None:
        super()._expire(now)
        self._pool.expire(now)

    def _notice(self, fds: list[int]) -> None:
        for fd in fds:
            if self._pool.owns(fd):
                self._pool.heard(fd)
        # last, for they open descriptors, and an event is of the descriptor of before
        for fd in fds:
            if fd in self._others:
                self._others[fd]()
