"""News of executions: which events there are for whom, queued in the transaction that makes them.

Owns when a start, an end or a miss is worth a word, and the rows that wait to be sent. Sends nothing and
never fails an execution: a notifier that is gone or off gets no row.

    ON_START      it runs
    ON_END        it has ended, however
    ON_FAILURE    it failed for good: no further attempt follows, and nobody wanted it to end
    ON_RECOVERY   the first success after failures
    ON_MISSED     a start by the clock that was not made: MISSED, or refused by the policy
    ON_LONG       it takes far longer than it usually does
"""

from __future__ import annotations

import json

from ctrl_exec.common.value import field, value
from ctrl_exec.tasks.execution.executions import find_execution
from ctrl_exec.tasks.execution.lifecycle import NS
from ctrl_exec.tasks.models import ABORTED, ABORTING, FAILED, LOST, SUCCESS, TIMED_OUT
from ctrl_exec.tasks.store import packed
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.tasks.models import Execution
    from ctrl_exec.tasks.store import Store

MOST_WAITING = 1000
"""So much waits for one notifier; what is more is left out."""
MOST_ATTEMPTS = 10
FIRST_PAUSE_S = 10
LONGEST_PAUSE_S = 6 * 3600
MISSES = ("MISSED", "POLICY")
_FAILURES = (FAILED, TIMED_OUT, LOST)
_LONG_FACTOR = 2
_LONG_AT_LEAST_NS = 60 * NS
_KNOWN_LEAST, _KNOWN_MOST = 3, 20
_MARK_LONG = """
UPDATE executions SET is_long = 1 WHERE execution_id = ? AND status = 'RUNNING' AND is_long = 0
"""


@value
class Notice:
    """A word for one notifier, as it waits; `document` holds the facts of its moment."""

    notice_id: str
    notifier_id: str
    event: str
    document: dict[str, Any] = field(default_factory=dict)
    created_ns: int = 0
    attempts: int = 0


def note_start(store: Store, execution: Execution) -> None:
    """It has begun. Within the transaction that says so."""
    _tell(store, execution, {"ON_START": 1})


def note_missed(store: Store, execution: Execution) -> None:
    """A start by the clock was skipped. Within the transaction that says so."""
    if execution.reason in MISSES:
        _tell(store, execution, {"ON_MISSED": 1})


def note_end(store: Store, before: Execution, ended: Execution, *, is_last: bool) -> None:
    """It has ended; `is_last`: no further attempt follows. Within the transaction that says so."""
    if ended.status == ABORTED and ended.start_ns is None:
        return
    events = {"ON_END": 1}
    if is_last and before.status != ABORTING and ended.status in _FAILURES:
        events["ON_FAILURE"] = 1
    elif ended.status == SUCCESS:
        events["ON_RECOVERY"] = 1
    _tell(store, ended, events)


def note_long(store: Store) -> int:
    """Look for what takes too long, and tell it once; gives how many that were. Raises: StorageError."""
    sql = """
    SELECT executions.execution_id, executions.task_id, start_ns FROM executions JOIN tasks USING (task_id)
    WHERE status = 'RUNNING' AND is_long = 0 AND instr(definition, 'ON_LONG') > 0 AND start_ns <= ?
    """
    count = 0
    now_ns = store.clock_ns()
    for row in store.rows(sql, (now_ns - _LONG_AT_LEAST_NS,)):
        usual_ns = usual_length_ns(store, row["task_id"])
        if usual_ns is None or now_ns - row["start_ns"] < _LONG_FACTOR * usual_ns:
            continue
        with store.writing():
            if store.execute(_MARK_LONG, (row["execution_id"],)):
                _tell(store, find_execution(store, row["execution_id"]), {"ON_LONG": 1})
                count += 1
    return count


def usual_length_ns(store: Store, task_id: str) -> int | None:
    """The median of a task's last successes; None while there are too few to know."""
    sql = """
    SELECT end_ns - start_ns AS length FROM executions
    WHERE task_id = ? AND status = 'SUCCESS' AND start_ns IS NOT NULL ORDER BY execution_id DESC LIMIT ?
    """
    lengths = sorted(row["length"] for row in store.rows(sql, (task_id, _KNOWN_MOST)))
    return lengths[len(lengths) // 2] if len(lengths) >= _KNOWN_LEAST else None


def _tell(store: Store, execution: Execution, events: dict[str, int]) -> None:
    sql = "SELECT name, json_extract(definition, '$.taskNotifierMap') AS map FROM tasks WHERE task_id = ?"
    task = store.row(sql, (execution.task_id,))
    wanted: dict[str, Any] = json.loads(task["map"]) if task is not None and task["map"] else {}
    for notifier_id, subscription in wanted.items():
        for event in events:
            if event not in subscription.get("events", ()):
                continue
            failures = 0
            if event in ("ON_FAILURE", "ON_RECOVERY"):
                failures = _count_for(store, execution, event, subscription.get("afterFailures"))
                if not failures:
                    continue
            _queue(store, execution, notifier_id, event, task["name"], failures)  # type: ignore[index]


def _count_for(store: Store, execution: Execution, event: str, after: int | None) -> int:
    """How many failures in a row this tells of; 0 if it is not to be told.

    With `afterFailures` the failure that makes it so many is told, and a recovery only after that.
    """
    streak = failures_before(store, execution, (after or 1) + 1)
    if event == "ON_RECOVERY":
        return streak if streak >= (after or 1) else 0
    if after is not None and streak + 1 != after:
        return 0
    return streak + 1


def failures_before(store: Store, execution: Execution, most: int) -> int:
    """How many executions before it failed in a row, counted up to `most`.

    One that was tried again counts by what came of that; aborted and skipped ones do not count.
    """
    sql = """
    SELECT status FROM executions AS each WHERE task_id = ? AND execution_id < ?
      AND status IN ('SUCCESS', 'FAILED', 'TIMED_OUT', 'LOST')
      AND NOT EXISTS (SELECT 1 FROM executions AS again
        WHERE again.retry_of = each.execution_id AND again.attempt = each.attempt + 1)
    ORDER BY execution_id DESC LIMIT ?
    """
    count = 0
    for row in store.rows(sql, (execution.task_id, execution.execution_id, most)):
        if row["status"] == SUCCESS:
            break
        count += 1
    return count


def _queue(
    store: Store, execution: Execution, notifier_id: str, event: str, task_name: str, failures: int
) -> None:
    now_ns = store.clock_ns()
    document = document_of(execution, event, task_name) | ({"failures": failures} if failures else {})
    sql = """
    INSERT INTO notices (notice_id, notifier_id, event, document, created_ns, due_ns)
    SELECT ?, notifier_id, ?, ?, ?, ? FROM notifiers WHERE notifier_id = ? AND project_id = ? AND is_enabled
      AND (SELECT COUNT(*) FROM notices WHERE notifier_id = ?) < ?
    """
    row = (new_ulid(now_ns), event, packed(document), now_ns, now_ns)
    if store.execute(sql, (*row, notifier_id, execution.project_id, notifier_id, MOST_WAITING)):
        store.touch()


def document_of(execution: Execution, event: str, task_name: str) -> dict[str, Any]:
    """The facts that a notice carries; no parameters, which may be nobody's business."""
    return {
        "event": event,
        "executionId": execution.execution_id,
        "taskId": execution.task_id,
        "taskName": task_name,
        "projectId": execution.project_id,
        "status": execution.status,
        "trigger": execution.trigger,
        "attempt": execution.attempt,
        "scheduledTs": execution.scheduled_ns,
        "startTs": execution.start_ns,
        "endTs": execution.end_ns,
        "exitCode": execution.exit_code,
        "reason": execution.reason,
    }


def due_notifiers(store: Store) -> tuple[str, ...]:
    """Who has something to be sent now. Raises: StorageError."""
    sql = "SELECT DISTINCT notifier_id FROM notices WHERE due_ns <= ?"
    return tuple(row["notifier_id"] for row in store.rows(sql, (store.clock_ns(),)))


def next_due_ns(store: Store) -> int | None:
    """When something that waits is due. Raises: StorageError."""
    row = store.row("SELECT MIN(due_ns) AS at FROM notices WHERE due_ns > ?", (store.clock_ns(),))
    return None if row is None else row["at"]


def take_next(store: Store, notifier_id: str) -> Notice | None:
    """The oldest notice that is due; it is due again after a pause, in case its sender dies."""
    with store.writing():
        now_ns = store.clock_ns()
        sql = "SELECT * FROM notices WHERE notifier_id = ? AND due_ns <= ? ORDER BY rowid LIMIT 1"
        row = store.row(sql, (notifier_id, now_ns))
        if row is None:
            return None
        attempts = row["attempts"] + 1
        later = "UPDATE notices SET attempts = ?, due_ns = ? WHERE notice_id = ?"
        store.execute(later, (attempts, now_ns + pause_s(attempts) * NS, row["notice_id"]))
    document = json.loads(row["document"])
    return Notice(row["notice_id"], notifier_id, row["event"], document, row["created_ns"], attempts)


def pause_s(attempts: int) -> int:
    """How long after so many attempts the next one is made."""
    return int(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 3 ** min(attempts - 1, 20)))


def drop(store: Store, notice_id: str) -> None:
    """Forget a notice: it was sent, or given up."""
    store.execute("DELETE FROM notices WHERE notice_id = ?", (notice_id,))


def drop_all(store: Store, notifier_id: str) -> int:
    """Forget all that waits for a notifier."""
    return store.execute("DELETE FROM notices WHERE notifier_id = ?", (notifier_id,))


def postpone(store: Store, notifier_id: str, attempts: int) -> None:
    """Have all that waits for a notifier wait as long as the notice that could not be sent."""
    until_ns = store.clock_ns() + pause_s(attempts) * NS
    sql = "UPDATE notices SET due_ns = ? WHERE notifier_id = ? AND due_ns < ?"
    store.execute(sql, (until_ns, notifier_id, until_ns))
