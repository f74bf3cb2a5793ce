"""The scheduler's hand that sends news of executions: a process for each receiver that has some waiting.

Owns the processes and their time. A receiver that does not answer holds up nobody but itself.
"""

from __future__ import annotations

import os

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.common.process import end_group, fork_child, wait_status
from ctrl_exec.tasks.notification import news

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.tasks.store import Store

MOST_AT_ONCE = 16
LONGEST_S = 90.0
FAREWELL_S = 2.0
LOOK_S = 0.5


class News:
    """Sends what waits."""

    def __init__(self, dispatcher: Dispatcher, store: Store) -> None:
        self._dispatcher = dispatcher
        self._store = store
        self._children: dict[str, tuple[int, float]] = {}  # notifier: pid, deadline

    def look(self) -> None:
        """Start a process for each receiver that has something due. Raises: StorageError."""
        self._reap()
        for notifier_id in news.due_notifiers(self._store):
            if len(self._children) >= MOST_AT_ONCE:
                break
            if notifier_id not in self._children:
                self._start(notifier_id)

    def _start(self, notifier_id: str) -> None:
        self._dispatcher.log.close()  # as a number without its socket it would be of no use to the child
        self._store.close()
        try:
            pid = fork_child(lambda: self._send(notifier_id))
        except OSError as error:
            self._dispatcher.log.error("task-news", error=error.strerror or str(error))
            return
        self._children[notifier_id] = (pid, monotonic() + LONGEST_S)

    def _send(self, notifier_id: str) -> int:
        from ctrl_exec.tasks.notification.news_sender import send_waiting
        from ctrl_exec.tasks.notification.posting import posting_of
        from ctrl_exec.tasks.sealing import Sealer

        os.setpgid(0, 0)
        config, log = self._dispatcher.config, self._dispatcher.log
        try:
            sealer = Sealer(config.secrets_key_path)
            send_waiting(self._store, sealer, posting_of(config), notifier_id, log)
        except CtrlExecError as error:
            log.error("task-news", notifier=notifier_id, error=str(error))
            return 1
        return 0

    def _reap(self) -> None:
        for notifier_id, (pid, deadline) in tuple(self._children.items()):
            if monotonic() > deadline:
                self._dispatcher.log.error(
                    "task-news", notifier=notifier_id, error="killed: it took too long"
                )
                end_group(pid)
            if wait_status(pid, timeout_s=0) is not None:
                del self._children[notifier_id]

    def next_moment_s(self) -> float | None:
        """When there is something to do, in seconds since the epoch; None if there is not."""
        due_ns = news.next_due_ns(self._store)
        due_s = None if due_ns is None else due_ns / 1e9
        if not self._children:
            return due_s
        soon_s = self._store.clock_ns() / 1e9 + LOOK_S
        return soon_s if due_s is None else min(due_s, soon_s)

    def close(self) -> None:
        """Give what is being sent a moment; what is cut off is sent again."""
        deadline = monotonic() + FAREWELL_S
        for pid, _ in self._children.values():
            if wait_status(pid, timeout_s=max(0.0, deadline - monotonic())) is None:
                end_group(pid)
                wait_status(pid)
        self._children.clear()
