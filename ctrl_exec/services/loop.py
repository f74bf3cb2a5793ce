"""Many exchanges on one epoll loop, in one process and one thread.

Owns what they share: descriptors, timers, the bound on handshakes in flight, the memory that
answers take while they come in. It must not know what the calls ask, nor of other processes.
"""

from __future__ import annotations

import heapq
import itertools
import os
import resource
import select
import time
from collections import deque
from contextlib import suppress

from ctrl_exec.common.value import value
from ctrl_exec.services import exchange as states
from ctrl_exec.services.exchange import Exchange, NoRoomError
from ctrl_exec.services.resolver import Resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence

    from ctrl_exec.services.resolver import Addresses
    from ctrl_exec.services.transport import Answer, Call, Interrupt

_STALL_S = 0.5  # a handshake that waits for the peer this long costs us nothing: its slot is free
_STALLED_TIMES = 8  # …but so many times the slots is the end of it: peers that share a machine would drown
_SPARE_FDS = 32
_LARGE_BYTES = 256 * 1024  # answers below never have to wait for memory
_LARGE_AT_ONCE = 2
_MAX_WAIT_S = 60.0


@value
class LoopLimits:
    """`max_handshakes` in flight at once, and how much of all answers is held before large ones wait."""

    connect_timeout_s: float = 10.0
    max_handshakes: int = 64
    max_buffered_bytes: int = 64 << 20


class Loop:
    """Drives calls to their ends; `run` gives the answers with their numbers, as they come.

    `resolve` replaces the system's resolver, see `Resolver`.
    """

    def __init__(
        self,
        calls: Sequence[tuple[int, Call]],
        context: ssl.SSLContext,
        limits: LoopLimits,
        interrupt: Interrupt | None = None,
        resolve: Callable[[str], bytes] | None = None,
    ) -> None:
        self._context = context
        self._limits = limits
        self._interrupt = interrupt
        self._queue = deque(Exchange(number, call, limits.connect_timeout_s) for number, call in calls)
        self._unresolved: dict[str, list[Exchange]] = {}
        self._open: dict[int, Exchange] = {}
        self._registered: dict[int, int] = {}
        self._timers: list[tuple[float, int, Exchange]] = []
        self._order = itertools.count()  # of timers set for the same moment
        self._slots = 0  # held by handshakes that keep us busy
        self._unsettled = 0  # all that are not yet through theirs
        self._again: list[Exchange] = []
        self._paused: deque[Exchange] = deque()
        self._buffered = 0
        self._finished: list[Exchange] = []
        self._max_open = room_for(len(self._queue))
        self._left = len(self._queue)
        self._epoll = select.epoll()
        self._resolver = Resolver(limits.connect_timeout_s, self._watch, self._unwatch, resolve)

    def run(self) -> Iterator[tuple[int, Answer]]:
        """Answers until all are there or the interrupt is set."""
        try:
            self._watch_interrupt()
            while self._left:
                if self._is_interrupted():
                    self._tell_unsent()
                    return
                self._turn()
                finished, self._finished = self._finished, []
                for each in finished:
                    if each.answer is not None:
                        yield each.index, each.answer
                        each.answer = None
                    self._release(each)
        finally:
            self.close()

    def close(self) -> None:
        """Close everything that is still open."""
        for each in self._open.values():
            each.abandon()
        self._open.clear()
        self._resolver.close()
        self._epoll.close()

    # one turn

    def _turn(self) -> None:
        now = time.monotonic()
        self._start(now)
        if self._finished:
            return
        ready = self._epoll.poll(self._wait_s(now), max(64, len(self._registered) + 1))
        now = time.monotonic()
        again, self._again = self._again, []
        for fd, _ in ready:
            if fd in self._open:
                self._step(self._open[fd], now)
            elif self._resolver.owns(fd):
                self._resolved(self._resolver.receive(fd, now), now)
        for each in again:
            if each.has_more and not each.is_paused:
                self._step(each, now)
        # after the events: what arrived while we were busy elsewhere was not silence
        self._expire(now)

    def _wait_s(self, now: float) -> float:
        if self._again:
            return 0.0
        moments = [now + _MAX_WAIT_S]
        if self._timers:
            moments.append(self._timers[0][0])
        resolver_deadline = self._resolver.next_deadline()
        if resolver_deadline is not None:
            moments.append(resolver_deadline)
        return max(0.0, min(moments) - now)

    # beginning

    def _start(self, now: float) -> None:
        while self._queue and self._has_room():
            each = self._queue.popleft()
            deadline = each.call.deadline
            if deadline is not None and deadline <= now:
                each.fail("timeout", "its time was over before its turn came", now)
                self._finish(each)
                continue
            found = self._resolver.lookup(each.call.host, now)
            if found is None:
                self._unresolved.setdefault(each.call.host, []).append(each)
                if deadline is not None:
                    self._schedule(each, deadline)
            else:
                self._open_one(each, found, now)

    def _has_room(self) -> bool:
        most = self._limits.max_handshakes
        return (
            self._slots < most
            and self._unsettled < most * _STALLED_TIMES
            and len(self._open) < self._max_open
        )

    def _open_one(self, each: Exchange, found: tuple[Addresses, str], now: float) -> None:
        addresses, reason = found
        if not addresses:
            each.fail("unreachable", reason or "the name has no address", now)
            self._finish(each)
            return
        try:
            each.open(addresses, now)
        except NoRoomError as error:
            self._no_room(each, error, now)
            return
        if each.phase == states.DONE:
            self._finish(each)
            return
        each.holds_slot = each.is_unsettled = True
        self._slots += 1
        self._unsettled += 1
        each.stalls_at = now + _STALL_S
        self._adopt_socket(each)
        self._schedule(each, min(each.deadline, each.stalls_at))

    def _no_room(self, each: Exchange, error: NoRoomError, now: float) -> None:
        if self._open:  # one of ours will end and make room
            self._max_open = len(self._open)
            self._queue.appendleft(each)
        else:
            each.fail("unreachable", (error.strerror or "no room for a connection").lower(), now)
            self._finish(each)

    def _resolved(self, outcomes: Iterator[tuple[str, Addresses, str]], _now: float) -> None:
        for name, _, _ in outcomes:
            # back to the queue's head: the answer is known now, the bounds hold for them too
            waiting = self._unresolved.pop(name, [])
            self._queue.extendleft(each for each in reversed(waiting) if each.phase != states.DONE)

    # moving on

    def _step(self, each: Exchange, now: float) -> None:
        fd, phase, received, attempts = self._fd_of(each), each.phase, each.received, each.attempts
        each.step(self._context, now)
        self._buffered += each.received - received
        if each.phase != phase:
            self._note_progress(each, phase, now)
        if each.phase == states.DONE:
            self._forget(fd)
            self._finish(each)
            return
        if each.attempts != attempts:  # the next address of the same name, perhaps the same descriptor
            self._forget(fd)
            self._adopt_socket(each)
        self._want(each)

    def _note_progress(self, each: Exchange, before: int, now: float) -> None:
        if each.phase == states.HANDSHAKE:
            each.stalls_at = now + _STALL_S
        elif before <= states.HANDSHAKE:
            self._settle(each)

    def _want(self, each: Exchange) -> None:
        fd = self._fd_of(each)
        if each.received > _LARGE_BYTES and self._is_full():
            self._pause(each, fd)
            return
        if each.has_more:
            self._again.append(each)
        if self._registered.get(fd) != each.wants:
            self._epoll.modify(fd, each.wants)
            self._registered[fd] = each.wants
        if each.deadline < each.due:
            self._schedule(each, each.deadline)

    # memory

    def _is_full(self) -> bool:
        if self._buffered <= self._limits.max_buffered_bytes:
            return False
        reading = [
            each for each in self._open.values() if each.received > _LARGE_BYTES and not each.is_paused
        ]
        return len(reading) > _LARGE_AT_ONCE

    def _release(self, each: Exchange) -> None:
        """Its answer has been taken, and its memory is free."""
        self._buffered -= each.received
        if self._paused:
            self._resume(time.monotonic())

    def _pause(self, each: Exchange, fd: int) -> None:
        each.pause()
        self._unwatch(fd)
        self._paused.append(each)

    def _resume(self, now: float) -> None:
        while self._paused and not self._is_full():
            each = self._paused.popleft()
            if each.phase == states.DONE:
                continue
            each.resume(now)
            self._watch(self._fd_of(each), each.wants)
            self._again.append(each)
            each.has_more = True
            self._schedule(each, each.deadline)
            if self._buffered > self._limits.max_buffered_bytes:
                return

    # time

    def _schedule(self, each: Exchange, moment: float) -> None:
        each.due = moment
        heapq.heappush(self._timers, (moment, next(self._order), each))

    def _expire(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            moment, _, each = heapq.heappop(self._timers)
            if each.phase != states.DONE and moment == each.due:  # else an earlier one was set since
                self._look_at_clock(each, now)
        self._resolved(self._resolver.expire(now), now)

    def _look_at_clock(self, each: Exchange, now: float) -> None:
        if each.phase == states.IDLE:  # still waiting for its name
            if each.call.deadline is not None and each.call.deadline <= now:
                each.fail("timeout", "its time was over before its name was resolved", now)
                self._finish(each)
            return
        if each.deadline <= now:
            self._out_of_time(each, now)
            return
        if each.holds_slot and each.stalls_at <= now:
            self._free_slot(each)
        moment = min(each.deadline, each.stalls_at) if each.holds_slot else each.deadline
        if moment < float("inf"):
            self._schedule(each, moment)

    def _out_of_time(self, each: Exchange, now: float) -> None:
        fd = self._fd_of(each)
        each.expire(now)
        self._forget(fd)
        if each.phase == states.DONE:
            self._finish(each)
        else:
            self._adopt_socket(each)
            self._schedule(each, each.deadline)

    # descriptors

    def _adopt_socket(self, each: Exchange) -> None:
        fd = self._fd_of(each)
        self._open[fd] = each
        self._watch(fd, each.wants)

    def _forget(self, fd: int) -> None:
        self._open.pop(fd, None)
        self._unwatch(fd)

    def _watch(self, fd: int, mask: int = select.EPOLLIN) -> None:
        self._epoll.register(fd, mask)
        self._registered[fd] = mask

    def _unwatch(self, fd: int) -> None:
        if self._registered.pop(fd, None) is not None:
            with suppress(OSError):  # closed already, and so out of the set
                self._epoll.unregister(fd)

    def _fd_of(self, each: Exchange) -> int:
        return each.sock.fileno() if each.sock is not None else -1

    def _free_slot(self, each: Exchange) -> None:
        if each.holds_slot:
            each.holds_slot = False
            self._slots -= 1

    def _settle(self, each: Exchange) -> None:
        self._free_slot(each)
        if each.is_unsettled:
            each.is_unsettled = False
            self._unsettled -= 1

    def _finish(self, each: Exchange) -> None:
        self._settle(each)
        self._left -= 1
        self._finished.append(each)

    # the wish to stop

    def _watch_interrupt(self) -> None:
        for fd in set(self._interrupt.fds) if self._interrupt else ():
            with suppress(OSError):  # a regular file is always readable and never news
                # edge-triggered: what the owner leaves unread must not spin this loop
                self._watch(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)

    def _is_interrupted(self) -> bool:
        return self._interrupt is not None and self._interrupt.is_set()

    def _tell_unsent(self) -> None:
        if self._interrupt is None or self._interrupt.on_unsent is None:
            return
        waiting = itertools.chain(self._queue, *self._unresolved.values(), self._open.values())
        unsent = (each.call.key for each in waiting if each.phase != states.DONE and not each.has_left)
        self._interrupt.on_unsent(tuple(unsent))


def room_for(connections: int) -> int:
    """How many connections this process may hold; raises its soft limit of descriptors if need be."""
    used = len(os.listdir("/proc/self/fd")) + _SPARE_FDS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < used + connections:
        wanted = used + connections if hard == resource.RLIM_INFINITY else min(hard, used + connections)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(1, connections if soft == resource.RLIM_INFINITY else min(connections, soft - used))
