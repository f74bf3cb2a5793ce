"""A fan-out worker of the API daemon: takes jobs from carriers, keeps connections to agents.

Owns one loop for all jobs, the connections that outlive them, and the moment at which those must
go: another identity, another list of revoked keys, its daemon's end. It must not know what the calls
ask, and keeps nothing of a job whose carrier has gone.
"""

from __future__ import annotations

import errno
import functools
import gc
import os
import select
import signal
import socket
import time
from contextlib import suppress

from ctrl_exec.common import tls
from ctrl_exec.common.errors import CtrlExecError, MessageError
from ctrl_exec.common.value import value
from ctrl_exec.services import jobs
from ctrl_exec.services.fanout import MAX_HANDSHAKES, file_marks
from ctrl_exec.services.idle_pool import IdlePool, PoolLimits
from ctrl_exec.services.loop import LoopLimits
from ctrl_exec.services.transport import Part
from ctrl_exec.services.warm_loop import WarmLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrl_exec.services.exchange import Exchange
    from ctrl_exec.services.fanout import FanOutSettings
    from ctrl_exec.services.transport import Answer, Call

_MAX_CONNECTIONS = 32_768  # what is asked of the system; what it gives is the bound
_ACCEPTS_A_TURN = 32
_CHUNK_BYTES = 1 << 18
_CHECK_S = 2.0  # how long a revoked key's idle connection may outlive its revocation
_JOB_PATIENCE_S = 30.0  # a carrier that neither sends nor takes for so long has stopped
_BACKLOG_BYTES = 1 << 20  # …where that much waits for it
_PAUSE_S = 0.5
_STREAM_BACKLOG_BYTES = 1 << 18  # a carrier that leaves more waiting gets no more from its streams
_STREAM_RESUME_BYTES = 1 << 16


@value
class WarmSettings:
    """As a fresh fan-out, and: `idle_s` a connection is kept; `revoked_path` ends all when it changes.

    A worker that does not come back to its loop for `hang_s` is ended by the kernel. `agents` is how many
    there are at the start, for a word about descriptors.
    """

    fan_out: FanOutSettings
    idle_s: float
    revoked_path: str
    workers: int
    agents: int = 0
    hang_s: float = 60.0

    @property
    def watched(self) -> tuple[str, ...]:
        """The files whose change closes every connection."""
        settings = self.fan_out
        return (settings.identity, settings.key or settings.identity, settings.ca, self.revoked_path)


class _Job:
    """One carrier's calls."""

    def __init__(self, link: socket.socket, now: float) -> None:
        self.link = link
        self.fd = link.fileno()
        self.reader: jobs.JobReader | None = jobs.JobReader()
        self.marks = -1
        self.under_way: dict[int, Exchange] = {}
        self.outbox = bytearray()
        self.moved_at = now  # when the carrier last sent or took something
        self.is_ending = False
        self.is_paused = False  # its streams stand still, so what waits for it does not grow

    def is_stuck(self, now: float) -> bool:
        if now - self.moved_at < _JOB_PATIENCE_S or (self.is_paused and not self.is_ending):
            return False
        return self.reader is not None or self.is_ending or len(self.outbox) > _BACKLOG_BYTES

    def close(self) -> None:
        self.link.close()
        if self.marks >= 0:
            os.close(self.marks)
            self.marks = -1


class WarmWorker:
    """Serves jobs from `listener` until it is told to retire and its last job is over."""

    def __init__(self, settings: WarmSettings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener: socket.socket | None = listener
        self._pool = IdlePool(PoolLimits(settings.idle_s))
        limits = LoopLimits(
            connect_timeout_s=settings.fan_out.connect_timeout_s,
            max_handshakes=max(1, min(MAX_HANDSHAKES, settings.fan_out.max_parallel // settings.workers)),
            max_open=_MAX_CONNECTIONS,
        )
        self._generation: tuple[tuple[int, int], ...] = ()
        # this context trusts nobody; the first job brings the real one
        self._loop = WarmLoop(tls.blind_context(), limits, self._pool)
        self._jobs: dict[int, _Job] = {}
        self._owners: dict[int, tuple[_Job, int]] = {}  # by the loop's number: whose, and which of theirs
        self._next_number = 0
        self._touched: dict[int, _Job] = {}
        self._checked_at = 0.0
        self._rests_at = float("inf")
        self._accepts_at = 0.0
        self._is_retiring = False

    def serve(self) -> None:
        """Work until retired."""
        self._watch_signals()
        assert self._listener is not None
        self._loop.watch(self._listener.fileno(), self._accept)
        while self._listener is not None or self._jobs:
            wait_s = self._wait_s()
            # its default action ends us, whatever we hang in; the daemon then makes another worker
            signal.setitimer(signal.ITIMER_REAL, wait_s + self._settings.hang_s)
            for number, answer in self._loop.turn(wait_s):
                self._answered(number, answer)
            self._flush_touched()
            if self._is_retiring:
                self._retire()
            self._keep_time(time.monotonic())

    # its daemon

    def _watch_signals(self) -> None:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the daemon's to heed
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, self._be_retired)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

        def wake() -> None:
            with suppress(BlockingIOError):
                os.read(reading, 4096)

        self._loop.watch(reading, wake)

    def watch_daemon(self, pid: int) -> None:
        """Retire when the process of that pid ends, which must be our parent."""
        daemon = os.pidfd_open(pid)
        if os.getppid() != pid:
            self._is_retiring = True

        def gone() -> None:
            self._loop.unwatch(daemon)
            self._is_retiring = True

        self._loop.watch(daemon, gone)

    def _be_retired(self, _number: int, _frame: object) -> None:
        self._is_retiring = True

    def _retire(self) -> None:
        """Take no more jobs and keep no more connections; those under way are carried to their end."""
        self._pool.clear()
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None

    # time

    def _wait_s(self) -> float:
        if self._is_retiring and self._listener is not None:
            return 0.0
        return _CHECK_S if self._pool or self._jobs or self._rests_at < float("inf") else 60.0

    def _keep_time(self, now: float) -> None:
        if self._accepts_at and self._accepts_at <= now and self._listener is not None:
            self._accepts_at = 0.0
            self._loop.watch(self._listener.fileno(), self._accept)
        if self._loop.left:
            self._rests_at = now + _CHECK_S
        elif self._rests_at <= now:
            self._rests_at = float("inf")
            self._loop.rest()
            gc.collect()
        if now - self._checked_at < _CHECK_S:
            return
        with suppress(CtrlExecError):  # said to the next job
            self._check_generation(now)
        for job in [each for each in self._jobs.values() if each.is_stuck(now)]:
            self._drop(job)

    def _check_generation(self, now: float) -> None:
        """Begin anew when our identity, the CA or the list of revoked keys is another.

        Raises: CertificateError.
        """
        self._checked_at = now
        current = file_marks(self._settings.watched)
        if current == self._generation:
            return
        self._pool.clear()
        self._generation = ()
        settings = self._settings.fan_out
        context = tls.client_context(settings.identity, settings.key or settings.identity, ca=settings.ca)
        self._loop.renew(context)
        self._generation = current

    # jobs

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            if self._listener is None:
                return
            try:
                link, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and not self._pool.make_room():
                    self._loop.unwatch(self._listener.fileno())
                    self._accepts_at = time.monotonic() + _PAUSE_S
                return
            self._greet(link)

    def _greet(self, link: socket.socket) -> None:
        link.setblocking(False)
        try:
            if not jobs.is_own(link):
                link.close()
                return
            link.send(jobs.HELLO)
        except OSError:
            link.close()
            return
        job = _Job(link, time.monotonic())
        self._jobs[job.fd] = job
        self._loop.watch(job.fd, functools.partial(self._heard, job))

    def _heard(self, job: _Job) -> None:
        """The carrier has sent something, has said that it goes, or takes answers again."""
        if job.outbox and self._jobs.get(job.fd) is job:
            self._flush(job)
        if not job.is_ending and self._jobs.get(job.fd) is job:
            self._receive(job)

    def _receive(self, job: _Job) -> None:
        try:
            chunk, fds = jobs.receive_job(job.link, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop(job)
            return
        for fd in fds:
            if job.marks >= 0:
                os.close(job.marks)
            job.marks = fd
        if chunk:
            self._take(job, chunk)
        else:
            self._halt(job)

    def _take(self, job: _Job, chunk: bytes) -> None:
        now = time.monotonic()
        job.moved_at = now
        try:
            if job.reader is None:
                raise MessageError("job: bytes after its end", field="job")
            calls = job.reader.feed(chunk)
            if calls is None:
                return
            if job.marks < 0:
                raise MessageError("job: no marks", field="job")
        except MessageError:
            self._drop(job)
            return
        job.reader = None
        try:
            self._check_generation(now)
        except CtrlExecError as error:
            self._put(job, jobs.encode_refusal(str(error)))
            return
        self._begin(job, calls)

    def _begin(self, job: _Job, calls: Iterable[tuple[int, Call]]) -> None:
        for number, call in calls:
            self._next_number += 1
            self._owners[self._next_number] = (job, number)
            on_leaving = functools.partial(jobs.set_mark, job.marks, number)
            job.under_way[self._next_number] = self._loop.add(self._next_number, call, on_leaving)

    def _answered(self, number: int, answer: Answer | Part) -> None:
        owner = self._owners.get(number)
        if owner is None:  # its job was dropped in this very turn
            return
        job, theirs = owner
        if isinstance(answer, Part):
            self._put(job, jobs.encode_part(theirs, answer))
            self._slow_down(job, job.under_way[number])
            return
        del self._owners[number], job.under_way[number]
        self._put(job, jobs.encode_answer(theirs, answer))

    def _slow_down(self, job: _Job, latest: Exchange) -> None:
        """Read no more of the job's streams than its carrier takes."""
        if job.is_paused:
            self._loop.pause(latest)  # it began to stream after the others had been paused
        elif len(job.outbox) > _STREAM_BACKLOG_BYTES:
            job.is_paused = True
            for each in job.under_way.values():
                self._loop.pause(each)

    def _speed_up(self, job: _Job) -> None:
        if job.is_paused and len(job.outbox) <= _STREAM_RESUME_BYTES:
            job.is_paused = False
            for each in job.under_way.values():
                self._loop.unpause(each)

    def _put(self, job: _Job, frame: bytes) -> None:
        if not job.outbox:
            job.moved_at = time.monotonic()
        job.outbox += frame
        self._loop.hold(len(frame))
        self._touched[job.fd] = job

    def _flush_touched(self) -> None:
        touched, self._touched = self._touched, {}
        for fd, job in touched.items():
            if self._jobs.get(fd) is job:
                self._flush(job)

    def _flush(self, job: _Job) -> None:
        try:
            sent = job.link.send(job.outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(job)
            return
        if sent:
            job.moved_at = time.monotonic()
            del job.outbox[:sent]
            self._loop.hold(-sent)
            self._speed_up(job)
        if job.outbox:
            # one that has said goodbye stays readable for ever
            mask = select.EPOLLOUT if job.is_ending else select.EPOLLIN | select.EPOLLOUT
            self._loop.watch(job.fd, functools.partial(self._heard, job), mask)
            return
        self._loop.watch(job.fd, functools.partial(self._heard, job))
        if job.is_ending:
            self._drop(job)

    def _halt(self, job: _Job) -> None:
        """The carrier sends no more: what it has begun is dropped, and it is told what never left."""
        unsent = [self._owners[number][1] for number, each in job.under_way.items() if not each.has_left]
        self._drop_calls(job)
        job.is_ending = True
        self._put(job, jobs.encode_unsent(unsent))

    def _drop_calls(self, job: _Job) -> None:
        for number, each in job.under_way.items():
            self._owners.pop(number, None)
            self._loop.drop(each)
        job.under_way = {}

    def _drop(self, job: _Job) -> None:
        self._drop_calls(job)
        self._loop.hold(-len(job.outbox))
        self._loop.unwatch(job.fd)
        del self._jobs[job.fd]
        job.close()
        self._rests_at = min(self._rests_at, time.monotonic() + _CHECK_S)


def work(settings: WarmSettings, listener: socket.socket, daemon_pid: int, delay_s: float) -> None:
    """Be a worker: the whole life of a process that was just forked.

    `delay_s` is waited first, where the one before died young.
    """
    own = listener.fileno()
    # locks, listening sockets and clients of the daemon are not ours to keep alive
    os.closerange(3, own)
    os.closerange(own + 1, 1 << 20)
    gc.freeze()
    gc.enable()
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("ctrl-exec-fan")  # what `ps` and `top` show
    if delay_s:
        select.poll().poll(int(delay_s * 1000))
    worker = WarmWorker(settings, listener)
    worker.watch_daemon(daemon_pid)
    worker.serve()
