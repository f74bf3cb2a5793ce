"""Asking agents again what became of a run, live, each with its own patience.

Owns when an agent is asked again and from which place of its output on: at once when its connection
broke, then less and less often. It can be turned beside calls that are still under way (`beside`), so
that a broken connection is taken up again while all others go on. Must not know what is kept of it all.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time

from ctrl_exec.services import agent_answers as answers
from ctrl_exec.services.streams import HOLD_S, Reading
from ctrl_exec.services.transport import Interrupt, Part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Protocol, Self

    from ctrl_exec.common.messages import HostResult
    from ctrl_exec.services.loop import Loop
    from ctrl_exec.services.progress import Received
    from ctrl_exec.services.streams import OutputPart
    from ctrl_exec.services.targets import Target
    from ctrl_exec.services.transport import Answer, Call
else:
    Protocol = object

LOOK_S = 0.1  # so often is looked at what no descriptor tells of
LONGEST_PAUSE_S = 60.0
_MOST_DOUBLINGS = 7
_SHORT_LIFE_S = 1.0
_SHORT_PAUSE_S = 0.2


class Listener(Protocol):
    """Who is told what agents say."""

    def hear_output(self, part: OutputPart) -> None:
        """Take a piece of output."""
        ...  # noqa: PIE790 - as in `transport`

    def hear_result(self, result: HostResult) -> bool:
        """Take what an agent that was asked again said; whether it need not be asked any more."""
        ...  # noqa: PIE790 - as in `transport`

    def known(self, host: str, stream: str) -> Received:
        """How much of a host's output is on record."""
        ...  # noqa: PIE790 - as in `transport`


class _Chase:
    """One host that is asked again."""

    def __init__(self, target: Target, reading: Reading) -> None:
        self.target = target
        self.reading = reading
        self.failures = 0
        self.asked = 0.0


class Pursuit:
    """The hosts of one run that are listened to; `close` it in the end.

    `open_loop` gives a loop for so many calls at once, `make_call` the question to a host, `learn` is
    told of answers with a certificate.
    """

    def __init__(
        self,
        listener: Listener,
        about: tuple[str, str, str | None],
        open_loop: Callable[[int], Loop],
        make_call: Callable[[Target, dict[str, int]], Call | None],
        learn: Callable[[Target, Answer], None],
    ) -> None:
        self.listener = listener
        self._reqid, self._script, self._encoding = about
        self._open_loop = open_loop
        self._make_call = make_call
        self._learn = learn
        self._loop: Loop | None = None
        self._room = 0
        self._junction = select.epoll()
        self._chased: dict[str, _Chase] = {}
        self._due: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._holding: dict[str, Reading] = {}

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those that are still asked."""
        return tuple(self._chased)

    # beside other calls

    def new_reading(self, host: str) -> Reading:
        """The reading of a host's output from what is on record on."""
        return Reading(host, self._encoding, self.listener.known)

    def feed(self, reading: Reading, chunk: bytes) -> None:
        """Take bytes of a streamed answer."""
        for part in reading.feed(chunk):
            self.listener.hear_output(part)
        if reading.is_holding:
            self._holding[reading.host] = reading

    def finish(self, reading: Reading, answer: Answer) -> answers.Reply:
        """The reply of an answer that is over, after what was held back of its output is told."""
        rest, reply = reading.finish(answer)
        self._holding.pop(reading.host, None)
        for part in rest:
            self.listener.hear_output(part)
        return reply

    def beside(self, interrupt: Interrupt | None, is_over: Callable[[], bool]) -> Interrupt:
        """An interrupt that also turns this pursuit, and comes as well when it `is_over`."""
        fds = (self._junction.fileno(), *(interrupt.fds if interrupt is not None else ()))

        def is_set() -> bool:
            self.turn(0)
            return is_over() or (interrupt is not None and interrupt.is_set())

        return Interrupt(fds, is_set, interrupt.on_unsent if interrupt is not None else None, LOOK_S)

    # hosts

    def add(self, target: Target, reading: Reading | None = None, *, room: int = 0) -> None:
        """Ask this one again, from now on until it need not be."""
        self._chased[target.name] = _Chase(target, reading or self.new_reading(target.name))
        self._room = max(self._room, room, len(self._chased))
        self._call_at(time.monotonic(), target.name)

    def drop(self, name: str) -> None:
        """Ask this one no more."""
        self._chased.pop(name, None)

    def _call_at(self, moment: float, name: str) -> None:
        heapq.heappush(self._due, (moment, next(self._order), name))

    # turning

    def turn(self, wait_s: float = LOOK_S) -> None:
        """Ask who is to be asked, hear what is to be heard, for about so long. Raises: CertificateError."""
        if not (self._chased or self._holding):
            if wait_s > 0:
                self._junction.poll(wait_s)
            return
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            self._ask(heapq.heappop(self._due)[2])
        wait_s = min([wait_s, *(max(0.0, moment - now) for moment, _, _ in self._due[:1])])
        if self._holding:
            wait_s = min(wait_s, HOLD_S)
        if self._loop is not None and self._loop.left:
            for _, said in self._loop.turn(wait_s):
                self._hear(said)
        elif wait_s > 0:
            self._junction.poll(wait_s)
        self._release(time.monotonic())

    def _release(self, now: float) -> None:
        for reading in list(self._holding.values()):
            for part in reading.overdue(now):
                self.listener.hear_output(part)
            if not reading.is_holding:
                del self._holding[reading.host]

    def _ask(self, name: str) -> None:
        chase = self._chased.get(name)
        if chase is None:
            return
        chase.reading.begin()
        chase.asked = time.monotonic()
        call = self._make_call(chase.target, chase.reading.offsets)
        if call is None:
            self._tell(chase, answers.Reply(name, "refused", error="certificate revoked"))
            return
        self._ready_loop().add(next(self._order), call)

    def _ready_loop(self) -> Loop:
        """A loop with room for all; another one where it has to grow and nothing is under way."""
        if self._loop is not None and not self._loop.left:
            self._close_loop()  # our identity may be another one by now
        if self._loop is None:
            self._loop = self._open_loop(self._room)
            self._junction.register(self._loop.fileno(), select.EPOLLIN)
        return self._loop

    def _hear(self, said: Answer | Part) -> None:
        chase = self._chased.get(said.key)
        if chase is None:
            return
        if isinstance(said, Part):
            chase.failures = 0
            self.feed(chase.reading, said.chunk)
            return
        self._learn(chase.target, said)
        self._tell(chase, self.finish(chase.reading, said))

    def _tell(self, chase: _Chase, reply: answers.Reply) -> None:
        name = chase.target.name
        result = answers.polled_result(reply, self._script, self._reqid, self._encoding)
        result = chase.reading.remainder(result, reply.document)
        if self.listener.hear_result(result):
            self.drop(name)
            return
        # one that was silent, or broke after it had spoken, is asked again at once
        is_well = chase.reading.has_come or (reply.state == "timeout" and reply.sent)
        chase.failures = 0 if is_well else min(chase.failures + 1, _MOST_DOUBLINGS)
        now = time.monotonic()
        pause_s = min(LONGEST_PAUSE_S, 2.0 ** (chase.failures - 1)) if chase.failures else 0.0
        if not pause_s and now - chase.asked < _SHORT_LIFE_S:  # one that breaks each connection at once
            pause_s = _SHORT_PAUSE_S
        jitter = 0.5 + os.urandom(1)[0] / 510  # `random` would cost its import for this one number
        self._call_at(now + pause_s * jitter, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything; what is held back is told."""
        for reading in self._holding.values():
            for part in reading.overdue(float("inf")):
                self.listener.hear_output(part)
        self._holding.clear()
        self._chased.clear()
        self._close_loop()
        if not self._junction.closed:
            self._junction.close()

    def _close_loop(self) -> None:
        if self._loop is not None:
            self._junction.unregister(self._loop.fileno())
            self._loop.close()
            self._loop = None
