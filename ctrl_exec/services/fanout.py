"""Calls to many agents at once: in this process when they are few, over one worker a core above that.

Owns the workers: it forks them, takes their answers as they come, and ends them. A worker is
transport only: it holds nothing but its own end of a socket pair, and dies with its caller because
that end is then closed. It must not know what the calls ask.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed knows `signal` only
import _socket
import os
import select
import struct
import time

from ctrl_exec.common import process, tls
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import replace, value
from ctrl_exec.services.loop import Loop, LoopLimits
from ctrl_exec.services.transport import Answer, Call, Failure, Interrupt, Part, Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.context import ForkProcess
    from typing import NoReturn

    from ctrl_exec.common.tls import Context

__all__ = ["Answer", "Call", "Failure", "FanOut", "FanOutSettings", "Interrupt", "Part", "Transport"]

WORKERS_FROM = 16  # below, forking a worker costs more than it gains
MAX_HANDSHAKES = 64  # in flight, of one process
_FRAME = struct.Struct("!III")  # number of the call, bytes of what is known of it (0: a part), of the body
_UNSENT = 0xFFFFFFFF  # in place of a number: the keys of the calls of which nothing had left
_CHUNK_BYTES = 1 << 18
_FAREWELL_S = 1.0
_LATER_CONNECTIONS = 256
_MAX_WAIT_S = 60.0


@value
class FanOutSettings:
    """Our identity and roots as PEM files (`key` is `identity` when both are in one), and bounds.

    `workers` 0 means one for each core.
    """

    identity: str
    ca: str
    key: str = ""
    connect_timeout_s: float = 10.0
    max_parallel: int = 256
    workers: int = 0


class FanOut:
    """The transport that opens a fresh connection for each call."""

    def __init__(self, settings: FanOutSettings) -> None:
        self._settings = settings
        self._context: Context | None = None
        self._context_of: tuple[tuple[int, int], ...] = ()

    def send(self, calls: Sequence[Call], interrupt: Interrupt | None = None) -> Iterator[Answer | Part]:
        """The answers as they come, one a call; fewer only when the interrupt ended it early.

        Raises: CertificateError if our identity cannot be used.
        """
        if not calls:
            return
        context = self._current_context()
        if len(calls) < WORKERS_FROM:
            limits = self._limits(1)
            for _, answer in Loop(list(enumerate(calls)), context, limits, interrupt).run():
                yield answer
            return
        count = min(self._settings.workers or len(os.sched_getaffinity(0)), len(calls))
        limits = self._limits(count)
        crew = _Crew(calls, count, lambda share, end: _work(share, context, limits, end))
        try:
            yield from crew.answers(interrupt)
        finally:
            crew.close()

    def new_loop(self, calls: Sequence[tuple[int, Call]] = (), *, room: int = 0) -> Loop:
        """A loop in this process for the owner to turn and close, with room for that many calls at once.

        Raises: CertificateError.
        """
        limits = replace(self._limits(1), max_open=max(len(calls), room) + _LATER_CONNECTIONS)
        return Loop(calls, self._current_context(), limits)

    def _limits(self, processes: int) -> LoopLimits:
        each = max(1, min(MAX_HANDSHAKES, self._settings.max_parallel // processes))
        return LoopLimits(connect_timeout_s=self._settings.connect_timeout_s, max_handshakes=each)

    def _current_context(self) -> Context:
        """The TLS context, made anew when one of its files has been replaced."""
        settings = self._settings
        current = file_marks((settings.identity, settings.key or settings.identity, settings.ca))
        if self._context is None or current != self._context_of:
            self._context = tls.client_context(
                settings.identity, settings.key or settings.identity, ca=settings.ca
            )
            self._context_of = current
        return self._context


def file_marks(paths: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """What tells whether one of the files has been replaced."""
    return tuple(_mark(path) for path in paths)


def _mark(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_ino, found.st_mtime_ns)


class _Worker:
    """One worker process as its caller sees it: a socket, what it still owes, half a frame."""

    def __init__(
        self,
        share: list[tuple[int, Call]],
        work: Callable[[list[tuple[int, Call]], _socket.socket], NoReturn],
    ) -> None:
        import multiprocessing

        self.owed = dict(share)
        self.unsent: tuple[str, ...] = ()
        self._buffer = bytearray()
        ours, theirs = _socket.socketpair()
        self.socket = ours
        # "fork", named: the share, the TLS context and the code are there already, and no default
        # that differs between Python versions decides
        context = multiprocessing.get_context("fork")
        self.process: ForkProcess = context.Process(target=work, args=(share, theirs), daemon=True)
        try:
            self.process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)

    def receive(self) -> tuple[list[Answer | Part], bool]:
        """The answers and parts that are whole now, and whether the worker is still there."""
        try:
            chunk = self.socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return [], True
        except OSError:
            chunk = b""
        self._buffer += chunk
        return list(self._frames()), bool(chunk)

    def _frames(self) -> Iterator[Answer | Part]:
        import pickle

        buffer = self._buffer
        while len(buffer) >= _FRAME.size:
            number, known_bytes, body_bytes = _FRAME.unpack_from(buffer)
            body_at = _FRAME.size + known_bytes
            end = body_at + body_bytes
            if len(buffer) < end:
                return
            body = bytes(memoryview(buffer)[body_at:end])
            if not known_bytes:
                del buffer[:end]
                yield Part(self.owed[number].key, body)
                continue
            # our own worker wrote it: what came from an agent is only the bytes of the body
            known = pickle.loads(buffer[_FRAME.size : body_at])  # noqa: S301
            del buffer[:end]
            if number == _UNSENT:
                self.unsent = known
                continue
            status, rtt_s, certificate, failure = known
            call = self.owed.pop(number)
            yield Answer(call.key, status, body, rtt_s, certificate, failure)

    def give_up(self) -> list[Answer]:
        """What it never answered, as failures; whether those requests left it cannot be known."""
        lost = [
            Answer(call.key, failure=Failure("lost", "the fan-out worker died", sent=True))
            for call in self.owed.values()
        ]
        self.owed = {}
        return lost

    def close(self) -> None:
        """End it: its closed socket is its order to go; one that does not obey is killed."""
        self.socket.close()
        if not self._has_ended(_FAREWELL_S):
            self.process.kill()
        self.process.join()
        with suppress(ValueError):
            self.process.close()

    def _has_ended(self, timeout_s: float) -> bool:
        # join(timeout) would import a third of the standard library
        try:
            watched = os.pidfd_open(self.process.pid or 0)
        except OSError:
            return True
        try:
            return _poll_for(watched, timeout_s)
        finally:
            os.close(watched)


def _poll_for(fd: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(int(timeout_s * 1000)))


class _Crew:
    """The workers of one set of calls."""

    def __init__(
        self,
        calls: Sequence[Call],
        count: int,
        work: Callable[[list[tuple[int, Call]], _socket.socket], NoReturn],
    ) -> None:
        self._workers: dict[int, _Worker] = {}
        self._stranded: list[Answer] = []
        numbered = list(enumerate(calls))
        for first in range(count):
            share = numbered[first::count]
            try:
                worker = _Worker(share, work)
            except OSError as error:  # no room for a process: those before it go on
                reason = f"no fan-out worker: {(error.strerror or str(error)).lower()}"
                failure = Failure("unreachable", reason)
                self._stranded += [Answer(call.key, failure=failure) for _, call in share]
            else:
                self._workers[worker.socket.fileno()] = worker

    def answers(self, interrupt: Interrupt | None) -> Iterator[Answer | Part]:
        """Answers and parts as the workers send them."""
        wait_s = interrupt.wait_s(_MAX_WAIT_S) if interrupt is not None else _MAX_WAIT_S
        stranded, self._stranded = self._stranded, []
        yield from stranded
        poller = select.epoll()
        try:
            for fd in self._workers:
                poller.register(fd, select.EPOLLIN)
            for fd in set(interrupt.fds) if interrupt else ():
                with suppress(OSError):
                    poller.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
            while any(worker.owed for worker in self._workers.values()):
                if interrupt is not None and interrupt.is_set():
                    yield from self._halt(interrupt)
                    return
                for fd, _ in poller.poll(wait_s):
                    if fd in self._workers:
                        yield from self._take(fd, poller)
        finally:
            poller.close()

    def _take(self, fd: int, poller: select.epoll) -> Iterator[Answer | Part]:
        worker = self._workers[fd]
        answers, is_there = worker.receive()
        yield from answers
        if not is_there:
            poller.unregister(fd)
            yield from worker.give_up()

    def _halt(self, interrupt: Interrupt) -> Iterator[Answer | Part]:
        """Have the workers stop; their last answers, and to the interrupt what never left."""
        for worker in self._workers.values():
            with suppress(OSError):
                worker.socket.shutdown(_socket.SHUT_WR)
        deadline = time.monotonic() + _FAREWELL_S
        for fd, worker in self._workers.items():
            is_there = True
            while is_there and _poll_for(fd, max(0.0, deadline - time.monotonic())):
                answers, is_there = worker.receive()
                yield from answers
        if interrupt.on_unsent is not None:
            interrupt.on_unsent(tuple(key for worker in self._workers.values() for key in worker.unsent))

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.socket.close()  # all get their order before the first is waited for
        for worker in self._workers.values():
            worker.close()
        self._workers = {}


def _work(
    share: list[tuple[int, Call]], context: Context, limits: LoopLimits, channel: _socket.socket
) -> NoReturn:
    """The worker: drives its share, writes answers to the channel, ends when that is closed."""
    code = 0
    try:
        process.reset_child_signals()
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # Ctrl-C is for the caller to answer
        own = channel.fileno()
        # locks, listening sockets and the other workers' ends are not ours to keep alive
        os.closerange(3, own)
        os.closerange(own + 1, 1 << 20)
        caller_left = Interrupt(
            (own,), lambda: _is_closed(channel), lambda unsent: _write_unsent(channel, unsent)
        )
        for number, answer in Loop(share, context, limits, caller_left).run():
            _write(channel, number, answer)
    except (BrokenPipeError, ConnectionResetError):
        pass
    except BaseException:  # noqa: BLE001 - the border of a process; what it owes becomes `lost`
        code = 70
    finally:
        os._exit(code)


def _is_closed(channel: _socket.socket) -> bool:
    try:
        return not channel.recv(1, _socket.MSG_DONTWAIT | _socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _write_unsent(channel: _socket.socket, unsent: tuple[str, ...]) -> None:
    import pickle

    known = pickle.dumps(unsent)
    channel.sendall(_FRAME.pack(_UNSENT, len(known), 0) + known)


def _write(channel: _socket.socket, number: int, answer: Answer | Part) -> None:
    if isinstance(answer, Part):
        channel.sendall(_FRAME.pack(number, 0, len(answer.chunk)) + answer.chunk)
        return
    import pickle

    known = pickle.dumps((answer.status, answer.rtt_s, answer.certificate, answer.failure))
    # blocks while the caller is busy: a worker never holds more than the caller can take
    channel.sendall(_FRAME.pack(number, len(known), len(answer.body)) + known)
    if answer.body:
        channel.sendall(answer.body)
