"""The scheduler's side of tasks that are due: when to look, and at what.

Owns the pace: what is due is started at its time, what has changed is read when somebody wakes us, and
each minute in case nobody did. Whatever the database says, the scheduler goes on; it is asked again.
"""

from __future__ import annotations

import os

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.tasks.clock.clockwork import Clockwork
from ctrl_exec.tasks.clock.wake import WakeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import tzinfo

    from ctrl_exec.common.log import Log
    from ctrl_exec.scheduler.executions import Executions
    from ctrl_exec.tasks.store import Store

LONGEST_REST_S = 60.0
# reading what has changed costs some milliseconds with thousands of timers: changes that come in a row
# are read together
SHORTEST_REST_S = 0.25
RETRY_S = 2.0


class TaskClock:
    """Starts of tasks that are due, in a loop that belongs to somebody else.

    Nothing is opened before there is a database: an instance without tasks has none. `executions` carries
    what waits; without it that is left to another scheduler.
    """

    def __init__(
        self,
        store: Store,
        wake_directory: str,
        zone: tzinfo,
        log: Log,
        executions: Executions | None = None,
    ) -> None:
        """Raises: StorageError."""
        self._store = store
        self._executions = executions
        self._waiting_at: float | None = None
        self._log = log
        self._clockwork = Clockwork(store, zone, log)
        self._wake = WakeSocket(wake_directory)
        self._read_at = 0.0  # on the clock that nobody sets, as the other two
        self._may_read_at = 0.0
        self._rests_until = 0.0
        self._fault = ""
        self._file = (0, 0)
        self.started = 0
        self.lag_s = 0.0

    def __len__(self) -> int:
        return len(self._clockwork)

    def fileno(self) -> int:
        """What becomes readable when somebody wakes us."""
        return self._wake.fileno()

    def close(self) -> None:
        """Let go of database and socket."""
        self._wake.close()
        if self._executions is not None:
            self._executions.news.close()
        self._store.close()

    def look(self, now_s: float) -> None:
        """Read what has changed and start what is due, as much as one round takes."""
        if self._wake.drain():
            self._read_at = min(self._read_at, self._may_read_at)
        if monotonic() < self._rests_until or not self._has_database():
            return
        try:
            if monotonic() >= self._read_at:
                self._read(now_s)
            due = self._clockwork.next_due()
            if due is not None and due <= now_s:
                self.started += len(self._clockwork.start_due(now_s))
                self.lag_s = now_s - due
            self._start_waiting()
        except CtrlExecError as error:
            self._try_again(str(error))
        except Exception as error:  # noqa: BLE001 - a tick: whatever a database may say, the scheduler goes on
            self._try_again(f"{type(error).__name__}: {error}")
        else:
            self._fault = ""

    def _start_waiting(self) -> None:
        if self._executions is not None:
            is_more = self._executions.start_waiting(self._is_pressed)
            self._executions.news.look()
            self._waiting_at = 0.0 if is_more else self._executions.next_moment_s()

    def _is_pressed(self) -> bool:
        """Whether something else has to be done in this second: what is due, or what has changed."""
        if self._wake.drain():
            self._read_at = min(self._read_at, self._may_read_at)
        due = self._clockwork.next_due()
        is_due = due is not None and due <= self._store.clock_ns() / 1e9
        return is_due or monotonic() >= self._read_at

    def _has_database(self) -> bool:
        """Whether there is one; another one than before is opened anew."""
        try:
            found = os.stat(self._store.path)
        except OSError:
            return False
        if self._file != (found.st_dev, found.st_ino):
            self._file = (found.st_dev, found.st_ino)
            self._store.close()
            self._read_at = 0.0
        return True

    def _try_again(self, fault: str) -> None:
        self._rests_until = monotonic() + RETRY_S
        self._read_at = 0.0
        self._store.close()
        if fault != self._fault:
            self._log.error("task-clock", error=fault)
        self._fault = fault

    def _read(self, now_s: float) -> None:
        is_more = self._clockwork.refresh(now_s)
        done = monotonic()
        self._may_read_at = done + (0.0 if is_more else SHORTEST_REST_S)
        self._read_at = done + (0.0 if is_more else LONGEST_REST_S)

    def rest_s(self, now_s: float) -> float:
        """How long there is nothing to look for, unless somebody wakes us."""
        now = monotonic()
        if now < self._rests_until:
            return self._rests_until - now
        if not self._has_database():
            return LONGEST_REST_S
        due = self._clockwork.next_due()
        until_due_s = LONGEST_REST_S if due is None else due - now_s
        until_start_s = LONGEST_REST_S if self._waiting_at is None else self._waiting_at - now_s
        return max(0.0, min(LONGEST_REST_S, until_due_s, until_start_s, self._read_at - now))
