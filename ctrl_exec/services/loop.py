"""Many exchanges on one epoll loop, in one process and one thread.

Owns what they share: descriptors, timers, the bound on handshakes in flight, the memory that
answers take while they come in. `run` drives one set of calls; a process that lives longer adds
calls as they come and turns the loop itself (see `warm_loop`). It must not know what the calls ask,
nor of other processes.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time

from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.services import exchange as states
from ctrl_exec.services.descriptors import room_for
from ctrl_exec.services.exchange import Exchange, NoRoomError
from ctrl_exec.services.resolver import Resolver
from ctrl_exec.services.transport import Part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator, Sequence

    from ctrl_exec.common.tls import Context
    from ctrl_exec.services.resolver import Addresses
    from ctrl_exec.services.transport import Answer, Call, Interrupt
else:
    from _collections import deque  # `collections` costs a command 2 ms

_STALL_S = 0.5  # a handshake that waits for the peer this long costs us nothing: its slot is free
_CROWD_TIMES = 2  # so many times the slots, as long as any get through
_STALLED_TIMES = 8  # …but so many times the slots is the end of it: peers that share a machine would drown
_LARGE_BYTES = 256 * 1024  # answers below never have to wait for memory
_LARGE_AT_ONCE = 2
_MAX_WAIT_S = 60.0
_STALE_TIMERS = 1024
_PARTS_A_TURN_BYTES = 1 << 20  # what streams may hold between two turns


@value
class LoopLimits:
    """`max_handshakes` in flight at once, and how much of all answers is held before large ones wait.

    `max_open` connections, 0 for as many as there are calls to begin with.
    """

    connect_timeout_s: float = 10.0
    max_handshakes: int = 64
    max_buffered_bytes: int = 64 << 20
    max_open: int = 0


class Loop:
    """Drives calls to their ends; `run` gives the answers with their numbers, as they come.

    `resolve` replaces the system's resolver, see `Resolver`. `context` may be replaced at any time.
    """

    def __init__(
        self,
        calls: Sequence[tuple[int, Call]],
        context: Context,
        limits: LoopLimits,
        interrupt: Interrupt | None = None,
        resolve: Callable[[str], bytes] | None = None,
    ) -> None:
        self.context = context
        self._limits = limits
        self._interrupt = interrupt
        self._queue: deque[Exchange] = deque()
        self._unresolved: dict[str, list[Exchange]] = {}
        self._open: dict[int, Exchange] = {}
        self._registered: dict[int, int] = {}
        self._timers: list[tuple[float, int, Exchange]] = []
        self._order = itertools.count()  # of timers set for the same moment
        self._slots = 0  # held by handshakes that keep us busy
        self._unsettled = 0  # all that are not yet through theirs
        self._late = 0  # handshakes begun long ago, without a slot
        self._settled_at = 0.0  # when the last of them got through
        self._again: list[Exchange] = []
        self._paused: deque[Exchange] = deque()
        self._streams: deque[Exchange] = deque()  # that have something to read
        self._parts: list[tuple[int, Part]] = []
        self._buffered = 0
        self._finished: list[Exchange] = []
        self._max_open = room_for(limits.max_open or len(calls))
        self._left = 0
        self._epoll = select.epoll()
        self._resolver = Resolver(limits.connect_timeout_s, self._watch, self._unwatch, resolve)
        for number, call in calls:
            self.add(number, call)

    def run(self) -> Iterator[tuple[int, Answer | Part]]:
        """Answers, and before them their parts, until all are there or the interrupt is set."""
        wait_s = self._interrupt.wait_s(_MAX_WAIT_S) if self._interrupt is not None else _MAX_WAIT_S
        try:
            self._watch_interrupt()
            while self._left:
                if self._is_interrupted():
                    self._tell_unsent()
                    return
                yield from self.turn(wait_s)
        finally:
            self.close()

    # for a process that lives longer than one set of calls

    @property
    def left(self) -> int:
        """How many calls are without an answer."""
        return self._left

    def fileno(self) -> int:
        """A descriptor that is readable when a turn has something to do, but for its timers."""
        return self._epoll.fileno()

    def add(self, index: int, call: Call, on_leaving: Callable[[], object] | None = None) -> Exchange:
        """One more call; `on_leaving` is told right before its first byte may leave."""
        each = Exchange(index, call, self._limits.connect_timeout_s)
        each.on_leaving = on_leaving
        self._left += 1
        if not self._begin_early(each, time.monotonic()):
            self._queue.append(each)
        return each

    def turn(self, wait_s: float = _MAX_WAIT_S) -> Iterator[tuple[int, Answer | Part]]:
        """Wait for something to happen, have it happen, and give what came of it."""
        self._turn(wait_s)
        parts, self._parts = self._parts, []
        yield from parts
        finished, self._finished = self._finished, []
        for each in finished:
            if each.answer is not None:
                yield each.index, each.answer
                each.answer = None
            self._release(each)

    def close(self) -> None:
        """Close everything that is still open."""
        for each in self._open.values():
            each.abandon()
        self._open.clear()
        self._resolver.close()
        self._epoll.close()

    # one turn

    def _turn(self, wait_s: float) -> None:
        now = time.monotonic()
        self._start(now)
        if self._finished:
            return
        ready = self._epoll.poll(min(wait_s, self.wait_s(now)), max(64, len(self._registered) + 1))
        now = time.monotonic()
        again, self._again = self._again, []
        others = []
        for fd, _ in ready:
            if fd in self._open:
                self._move(self._open[fd], now)
            elif self._resolver.owns(fd):
                self._resolved(self._resolver.receive(fd, now), now)
            else:
                others.append(fd)
        for each in again:
            if each.has_more and not each.is_paused:
                self._move(each, now)
        self._read_streams(now)
        # after the events: what arrived while we were busy elsewhere was not silence
        self._expire(now)
        self._notice(others)

    def wait_s(self, now: float) -> float:
        """How long a turn would wait if nothing came."""
        if self._again or self._finished or self._streams:
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
        while self._queue and self._has_room(now):
            each = self._queue.popleft()
            if each.phase == states.DONE or self._begin_early(each, now):
                continue
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

    def _has_room(self, now: float) -> bool:
        most = self._limits.max_handshakes
        if self._slots >= most or self._unsettled >= most * _STALLED_TIMES:
            return False
        # peers that are late while others get through are busy with ours, not dead: more of them would
        # only be late too, and in the end all time out together
        if self._slots + self._late >= most * _CROWD_TIMES and now - self._settled_at < _STALL_S:
            return False
        return self._has_descriptor()

    def _has_descriptor(self) -> bool:
        return len(self._open) < self._max_open

    # what a loop with connections of its own does otherwise

    def _begin_early(self, _each: Exchange, _now: float) -> bool:
        """Whether the call has begun without a new connection."""
        return False

    def _keep(self, _each: Exchange, _now: float) -> None:
        """Take over the connection of an exchange that ended well."""

    def _notice(self, _fds: list[int]) -> None:
        """The descriptors that were ready and are nobody's in this class."""

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

    def _move(self, each: Exchange, now: float) -> None:
        if not (each.call.streams and each.phase == states.READING):
            self._step(each, now)
        elif not each.is_in_line:
            each.is_in_line = True
            self._streams.append(each)

    def _read_streams(self, now: float) -> None:
        """Have those that wait read in turn; what there is no room for waits for the next turn."""
        taken = 0
        while self._streams and taken < _PARTS_A_TURN_BYTES:
            each = self._streams.popleft()
            each.is_in_line = False
            if each.phase == states.READING and not each.is_paused:
                before = each.received
                self._step(each, now)
                taken += each.received - before

    def _step(self, each: Exchange, now: float) -> None:
        fd, phase, held, attempts = self._fd_of(each), each.phase, each.held_bytes, each.attempts
        each.step(self.context, now)
        if chunk := each.take_part():
            self._parts.append((each.index, Part(each.call.key, chunk)))
        self._buffered += each.held_bytes - held
        if each.phase != phase:
            self._note_progress(each, phase, now)
        if each.phase == states.DONE:
            self._forget(fd)
            self._keep(each, now)
            self._finish(each)
            return
        if each.phase == states.IDLE:  # the kept connection was dead: another one
            self._forget(fd)
            self._queue.appendleft(each)
            return
        if each.attempts != attempts:  # the next address of the same name, perhaps the same descriptor
            self._forget(fd)
            self._adopt_socket(each)
        self._want(each)

    def _note_progress(self, each: Exchange, before: int, now: float) -> None:
        if each.phase == states.HANDSHAKE:
            each.stalls_at = now + _STALL_S
            if not each.holds_slot:
                self._note_late(each)
        elif before <= states.HANDSHAKE:
            self._settle(each)
            if each.phase != states.DONE:
                self._settled_at = now

    def _note_late(self, each: Exchange) -> None:
        each.is_late = True
        self._late += 1

    def _want(self, each: Exchange) -> None:
        fd = self._fd_of(each)
        if each.held_bytes > _LARGE_BYTES and self._is_full():
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
            each for each in self._open.values() if each.held_bytes > _LARGE_BYTES and not each.is_paused
        ]
        return len(reading) > _LARGE_AT_ONCE

    def _release(self, each: Exchange) -> None:
        """Its answer has been taken, and its memory is free."""
        self._buffered -= each.held_bytes
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
            self._go_on(each, now)
            if self._buffered > self._limits.max_buffered_bytes:
                return

    def _go_on(self, each: Exchange, now: float) -> None:
        each.resume(now)
        self._watch(self._fd_of(each), each.wants)
        self._again.append(each)
        each.has_more = True
        self._schedule(each, each.deadline)

    # time

    def _schedule(self, each: Exchange, moment: float) -> None:
        each.due = moment
        if len(self._timers) > _STALE_TIMERS + 4 * self._left:  # each holds a call and its request
            self._timers = [entry for entry in self._timers if entry[2].phase != states.DONE]
            heapq.heapify(self._timers)
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
        if each.is_in_line:  # what waits to be read is no silence
            each.resume(now)
        if each.deadline <= now:
            self._out_of_time(each, now)
            return
        if each.holds_slot and each.stalls_at <= now:
            self._free_slot(each)
            if each.phase == states.HANDSHAKE:
                self._note_late(each)
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
        if each.is_late:
            each.is_late = False
            self._late -= 1
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
        if self._interrupt is not None and self._interrupt.on_unsent is not None:
            self._interrupt.on_unsent(self.unsent())

    def unsent(self) -> tuple[str, ...]:
        """The keys of the calls of which nothing has left."""
        waiting = itertools.chain(self._queue, *self._unresolved.values(), self._open.values())
        return tuple(each.call.key for each in waiting if each.phase != states.DONE and not each.has_left)
