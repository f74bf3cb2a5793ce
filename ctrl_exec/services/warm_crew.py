"""The fan-out workers of the API daemon as the daemon sees them: started, replaced, let go.

Owns their processes and listening sockets. It never waits for one, and must not know what they do.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from ctrl_exec.common import process
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.files import make_dirs
from ctrl_exec.services import jobs, warm_worker
from ctrl_exec.services.descriptors import SPARE_FDS, most_connections

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from ctrl_exec.common.log import Log
    from ctrl_exec.services.warm_worker import WarmSettings

_BACKLOG = 1024
_YOUNG_S = 2.0
_DELAY_S = 1.0  # before a worker whose forerunner died young begins


class WarmCrew:
    """A worker a number, each with a socket that outlives it, so that no job finds the door closed."""

    def __init__(self, directory: str, log: Log) -> None:
        self._directory = directory
        self._log = log
        self._settings: WarmSettings | None = None
        self._listeners: list[socket.socket] = []
        self._workers: dict[int, tuple[int, float]] = {}  # by pid: number, moment of its start
        self._retired: set[int] = set()

    def start(self, settings: WarmSettings | None) -> None:
        """Have workers with these settings, in place of those there are; None for no workers.

        Where they cannot be had it is logged: calls then go over fresh connections.
        """
        self.retire()
        if settings is None or self._settings is None or settings.workers != self._settings.workers:
            self.leave()
        self._settings = settings
        if settings is None:
            return
        self._look_at_limits(settings)
        try:
            if not self._listeners:
                make_dirs(self._directory, 0o700)
                for number in range(settings.workers):
                    self._listeners.append(jobs.open_listener(self._directory, number, _BACKLOG))
            for number in range(settings.workers):
                self._fork(settings, number, 0.0)
        except (OSError, StorageError) as error:
            self._log.warning("fan-out", error=f"no warm connections to agents: {error}")
            self.retire()
            self.leave()

    def _look_at_limits(self, settings: WarmSettings) -> None:
        """Say so where the system does not allow as many connections as there are agents."""
        wanted = -(-settings.agents // settings.workers)
        allowed = most_connections()
        if wanted > allowed:
            self._log.warning(
                "fan-out",
                error="too few descriptors to stay connected to all agents",
                agents=settings.agents,
                kept=allowed * settings.workers,
                remedy=f"LimitNOFILE={wanted + SPARE_FDS} or more for the API's service",
            )

    def tend(self) -> None:
        """Take the statuses of workers that ended, and replace those that should not have."""
        for pid in [*self._workers, *self._retired]:
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else took its status
                found, status = pid, process.STOLEN_STATUS
            if found != pid:
                continue
            self._retired.discard(pid)
            if pid in self._workers:
                number, started_at = self._workers.pop(pid)
                self._replace(pid, number, status, time.monotonic() - started_at)

    def _replace(self, pid: int, number: int, status: int, age_s: float) -> None:
        self._log.warning(
            "fan-out", error="a worker died", worker=number, pid=pid, status=os.waitstatus_to_exitcode(status)
        )
        if self._settings is None or not self._listeners:
            return
        try:
            self._fork(self._settings, number, _DELAY_S if age_s < _YOUNG_S else 0.0)
        except OSError as error:
            self._log.error("fan-out", error=f"a worker cannot be replaced: {error.strerror}", worker=number)

    def _fork(self, settings: WarmSettings, number: int, delay_s: float) -> None:
        listener, daemon = self._listeners[number], os.getpid()
        pid = process.fork_child(lambda: warm_worker.work(settings, listener, daemon, delay_s))
        self._workers[pid] = (number, time.monotonic())

    def retire(self) -> tuple[int, ...]:
        """Tell the workers to take no more jobs; they end when those they have are over. Gives their pids."""
        pids = tuple(self._workers)
        for pid in pids:
            self._retired.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        self._workers = {}
        return pids

    def descriptors(self) -> tuple[int, ...]:
        """The listening sockets, which are no affair of the daemon's other children."""
        return tuple(listener.fileno() for listener in self._listeners)

    def leave(self) -> None:
        """Let go of the listening sockets."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []
