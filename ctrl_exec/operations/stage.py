"""The batches of one run under way: which is next, when, and whether there is to be one.

Owns the rule of `max_failures` and the pause between batches. A batch is on record before any of its
hosts is contacted, so that after a crash it is known who was.
"""

from __future__ import annotations

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import StorageError
from ctrl_exec.operations.rollout import most_failures

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.operations.keeper import Keeper
    from ctrl_exec.operations.rollout import Batch


class Stage:
    """Where a rollout stands; without a batch, nowhere."""

    def __init__(self, keeper: Keeper, batch: Batch | None) -> None:
        record = keeper.journal.record
        self._keeper = keeper
        self._batch = batch
        self._batches = record.batches
        self._begun = record.begun
        self._next_at: float | None = None

    @property
    def unbegun(self) -> set[str]:
        """The hosts of the batches that were not begun."""
        return {name for batch in self._batches[self._begun :] for name in batch}

    def stop(self) -> None:
        """Begin no more."""
        self._batches = self._batches[: self._begun]

    def next_batch(self, pause: Callable[[float], bool]) -> set[str]:
        """The hosts to be begun now; none while others are under way, at the end, or if it is stopped.

        Waits out the pause between batches; none if the wait was interrupted.
        """
        if self._batch is None or not self.unbegun or not self._is_batch_over():
            return set()
        if self._has_failed_too_often(self._batch):
            return set()
        if self._begun and self._next_at is None:
            self._next_at = monotonic() + self._batch.pause_s
        if self._next_at is not None and pause(max(0.0, self._next_at - monotonic())):
            return set()
        self._next_at = None
        return self._begin()

    def _is_batch_over(self) -> bool:
        pending = set(self._keeper.journal.pending)
        return not any(name in pending for batch in self._batches[: self._begun] for name in batch)

    def _has_failed_too_often(self, batch: Batch) -> bool:
        record = self._keeper.journal.record
        failures = sum(each.is_final and each.state != "ok" for each in record.results)
        most = most_failures(batch, len(record.hosts))
        if failures <= most:
            return False
        hosts = "host" if failures == 1 else "hosts"
        self._keeper.cancel(self.unbegun, f"not started: {failures} {hosts} failed, at most {most} may")
        self.stop()
        return True

    def _begin(self) -> set[str]:
        hosts = self._batches[self._begun]
        try:
            self._keeper.journal.note_batch(self._begun + 1, hosts)
        except StorageError as error:  # begun without a record, it would be denied after a crash
            self._keeper.complain(error)
            self._keeper.cancel(self.unbegun, f"not started: {error}")
            self.stop()
            return set()
        self._begun += 1
        return set(hosts)
