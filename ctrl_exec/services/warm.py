"""The transport over connections that are open already: the API daemon's fan-out workers.

Owns which worker carries which call, and what becomes of calls whose worker cannot be had or dies:
those of which nothing has left go over a fresh connection of this very process, the others are lost,
and never sent again. It must not know what the calls ask.
"""

from __future__ import annotations

import binascii
import os
import select
import socket
import time
from contextlib import suppress

from ctrl_exec.common.errors import MessageError
from ctrl_exec.services import jobs
from ctrl_exec.services.transport import Answer, Call, Failure, Interrupt, Part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ctrl_exec.services.fanout import FanOut
    from ctrl_exec.services.loop import Loop

_HELLO_S = 5.0
_SEND_S = 30.0
_FAREWELL_S = 3.0
_MAX_WAIT_S = 60.0
_CHUNK_BYTES = 1 << 18
_SPARE_DESCRIPTORS = 16


def worker_count() -> int:
    """How many workers a daemon has: one a core."""
    return len(os.sched_getaffinity(0))


class WarmTransport:
    """Hands calls to the workers that listen in `directory`; to `fresh` where there are none."""

    keeps_connections = True  # so the requests must ask agents for it

    def __init__(self, directory: str, workers: int, fresh: FanOut) -> None:
        self._directory = directory
        self._workers = workers
        self._fresh = fresh

    def send(self, calls: Sequence[Call], interrupt: Interrupt | None = None) -> Iterator[Answer | Part]:
        """The answers as they come, one a call; fewer only when the interrupt ended it early.

        Raises: CertificateError if our identity cannot be used.
        """
        if not calls:
            return
        errands, unplaced = self._place(calls)
        if not errands:
            yield from self._fresh.send(calls, interrupt)
            return
        journey = _Journey(self._fresh, errands, interrupt)
        try:
            journey.take_over(unplaced)
            yield from journey.answers()
        finally:
            journey.close()

    def new_loop(self, calls: Sequence[tuple[int, Call]] = (), *, room: int = 0) -> Loop:
        """A loop over fresh connections of this process. Raises: CertificateError."""
        return self._fresh.new_loop(calls, room=room)

    def _place(self, calls: Sequence[Call]) -> tuple[list[_Errand], list[tuple[int, Call]]]:
        """An errand to each worker with its share, begun; and the calls that no worker takes."""
        shares: dict[int, list[tuple[int, Call]]] = {}
        for number, call in enumerate(calls):
            shares.setdefault(self._worker_of(call), []).append((number, call))
        errands, unplaced = [], []
        for worker, share in shares.items():
            try:
                errands.append(_Errand(jobs.connect(self._directory, worker), share))
            except OSError:
                unplaced += share
        deadline = time.monotonic() + _HELLO_S
        begun = []
        for errand in errands:
            if errand.begin(deadline):
                begun.append(errand)
            else:
                unplaced += errand.owed.items()
                errand.close()
        return begun, unplaced

    def _worker_of(self, call: Call) -> int:
        return binascii.crc32(f"{call.host}:{call.port}".encode()) % self._workers


class _Errand:
    """A job at one worker, as its carrier sees it."""

    def __init__(self, link: socket.socket, share: list[tuple[int, Call]]) -> None:
        self.link = link
        self.owed = dict(share)
        self.unsent: list[int] = []
        self.is_refused = False
        self._marks = -1
        self._frames = jobs.FrameReader()
        self._first = share[0][0]
        # marks are by place in the share, numbers on the wire too: a file of one byte a call
        self._place = {number: place for place, (number, _) in enumerate(share)}
        self._numbers = [number for number, _ in share]

    def begin(self, deadline: float) -> bool:
        """Hand the job over once the worker has greeted; False if it has nothing of it."""
        try:
            job = jobs.encode_job((self._place[number], call) for number, call in self.owed.items())
            if not self._is_greeted(deadline):
                return False
            self._marks = jobs.new_marks(len(self._numbers))
            self.link.settimeout(_SEND_S)
            jobs.send_job(self.link, job, self._marks)
            self.link.setblocking(False)
        except (OSError, MessageError):  # half a job is none: no worker begins it
            return False
        return True

    def _is_greeted(self, deadline: float) -> bool:
        greeting = b""
        while len(greeting) < len(jobs.HELLO):
            if not _is_readable(self.link.fileno(), deadline - time.monotonic()):
                return False
            piece = self.link.recv(len(jobs.HELLO) - len(greeting))
            if not piece:
                return False
            greeting += piece
        return greeting == jobs.HELLO

    def receive(self) -> tuple[list[Answer | Part], bool]:
        """The answers and parts that are whole now, and whether the worker is still there."""
        try:
            chunk = self.link.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return [], True
        except OSError:
            chunk = b""
        try:
            return list(self._answers(chunk)), bool(chunk) and not self.is_refused
        except MessageError:
            return [], False

    def _answers(self, chunk: bytes) -> Iterator[Answer | Part]:
        for place, known, body in self._frames.feed(chunk):
            if place == jobs.UNSENT:
                self.unsent = [self._numbers[each] for each in known]
            elif place == jobs.REFUSED:
                self.is_refused = True
            elif place < len(self._numbers) and self._numbers[place] in self.owed:
                number = self._numbers[place]
                if known is None:
                    yield Part(self.owed[number].key, body)
                    continue
                answer = jobs.decode_answer(self.owed[number].key, known, body)
                del self.owed[number]
                yield answer

    def settle(self) -> tuple[list[Answer], list[tuple[int, Call]]]:
        """After the worker's end: the calls that may have left, as failures, and the others."""
        lost, untouched = [], []
        for number, call in self.owed.items():
            if jobs.is_marked(self._marks, self._place[number]):
                failure = Failure("lost", "the fan-out worker died", sent=True)
                lost.append(Answer(call.key, failure=failure))
            else:
                untouched.append((number, call))
        self.owed = {}
        return lost, untouched

    def unsent_keys(self) -> list[str]:
        """The keys of the calls of which nothing had left when the worker was told to stop."""
        return [self.owed[number].key for number in self.unsent if number in self.owed]

    def close(self) -> None:
        """Let go: the worker drops what is under way."""
        self.link.close()
        if self._marks >= 0:
            os.close(self._marks)
            self._marks = -1


class _Journey:
    """The errands of one set of calls, and a loop of our own for what no worker carries."""

    def __init__(self, fresh: FanOut, errands: list[_Errand], interrupt: Interrupt | None) -> None:
        self._fresh = fresh
        self._errands = {errand.link.fileno(): errand for errand in errands}
        self._interrupt = interrupt
        self._loop: Loop | None = None
        self._poller = select.epoll()

    def take_over(self, calls: list[tuple[int, Call]]) -> None:
        """Carry the calls over fresh connections. Raises: CertificateError."""
        if not calls:
            return
        if self._loop is None:
            self._loop = self._fresh.new_loop(calls)
            self._poller.register(self._loop.fileno(), select.EPOLLIN)
            return
        for number, call in calls:
            self._loop.add(number, call)

    def answers(self) -> Iterator[Answer | Part]:
        """Answers and parts from all sides until there are none to come."""
        self._watch()
        while self._is_waiting():
            if self._interrupt is not None and self._interrupt.is_set():
                yield from self._halt(self._interrupt)
                return
            for fd, _ in self._poller.poll(self._wait_s()):
                if fd in self._errands:
                    yield from self._take(fd)
            if self._loop is not None:
                for _, answer in self._loop.turn(0):
                    yield answer

    def _is_waiting(self) -> bool:
        if self._loop is not None and self._loop.left:
            return True
        return any(errand.owed for errand in self._errands.values())

    def _wait_s(self) -> float:
        wait_s = _MAX_WAIT_S if self._loop is None else self._loop.wait_s(time.monotonic())
        return wait_s if self._interrupt is None else self._interrupt.wait_s(wait_s)

    def _watch(self) -> None:
        for fd in self._errands:
            self._poller.register(fd, select.EPOLLIN)
        for fd in set(self._interrupt.fds) if self._interrupt else ():
            with suppress(OSError):  # a regular file is always readable and never news
                self._poller.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)

    def _take(self, fd: int) -> Iterator[Answer | Part]:
        errand = self._errands[fd]
        answers, is_there = errand.receive()
        yield from answers
        if not is_there:
            self._poller.unregister(fd)
            del self._errands[fd]
            lost, untouched = errand.settle()
            errand.close()
            yield from lost
            self.take_over(untouched)

    def _halt(self, interrupt: Interrupt) -> Iterator[Answer | Part]:
        """Have all stop; their last answers, and to the interrupt what never left."""
        for errand in self._errands.values():
            with suppress(OSError):
                errand.link.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _FAREWELL_S
        unsent = list(self._loop.unsent()) if self._loop is not None else []
        for fd, errand in self._errands.items():
            is_there = True
            while is_there and _is_readable(fd, deadline - time.monotonic()):
                answers, is_there = errand.receive()
                yield from answers
            unsent += errand.unsent_keys()
        if interrupt.on_unsent is not None:
            interrupt.on_unsent(tuple(unsent))

    def close(self) -> None:
        """Let go of everything that is under way."""
        for errand in self._errands.values():
            errand.close()
        if self._loop is not None:
            self._loop.close()
        self._poller.close()


def _is_readable(fd: int, within_s: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0, int(within_s * 1000))))
