"""Workflows under way: begun, moved on when a step has ended, ended; each move is one transaction.

Owns these moves. No process carries a workflow: whoever looks moves it on, and two that look at once do
nothing twice. Which step is next is `kinds.workflow`'s, who may approve `approvals`'.
"""

from __future__ import annotations

from ctrl_exec.common.errors import BusyError, NotFoundError, StorageError
from ctrl_exec.common.value import value
from ctrl_exec.tasks.definitions import load_task
from ctrl_exec.tasks.execution import carriage, lifecycle
from ctrl_exec.tasks.execution.executions import WORKFLOW_CLAIMER, claim, find_execution
from ctrl_exec.tasks.models import (
    ABORTED,
    ABORTING,
    FAILED,
    OPEN_STATUSES,
    PENDING,
    RUNNING,
    SKIPPED,
    TIMED_OUT,
    Execution,
    Workflow,
)
from ctrl_exec.tasks.projects import load_project
from ctrl_exec.tasks.workflow.nesting import ITSELF, MOST_DEPTH, TOO_DEEP, nesting_faults
from ctrl_exec.tasks.workflow.workflow_moves import Moves
from ctrl_exec.tasks.workflow.workflow_steps import add_begun, after, load_begun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ctrl_exec.common.log import Log
    from ctrl_exec.tasks.execution.carriage import ExecutionFiles
    from ctrl_exec.tasks.execution.lifecycle import Outcome
    from ctrl_exec.tasks.models import Task
    from ctrl_exec.tasks.store import Store

_MOST = 100
_MOST_ROUNDS = 3 * MOST_DEPTH
# from the few tasks that are workflows: thousands of others may wait
_WAITING = """
SELECT execution_id FROM tasks CROSS JOIN executions USING (task_id)
WHERE status = 'PENDING' AND claimer IS NULL AND task_type = 'WORKFLOW'
  AND (not_before_ns IS NULL OR not_before_ns <= ?)
  AND (policy = 'CONCURRENCY' OR NOT EXISTS (SELECT 1 FROM executions AS other
    WHERE other.task_id = executions.task_id AND other.claimer IS NOT NULL
      AND other.status IN ('PENDING', 'RUNNING', 'ABORTING')))
ORDER BY execution_id LIMIT ?
"""
# those of which something has come: an end of a step, a verdict, a moment, a wish to end
_DUE = """
SELECT flow.execution_id FROM executions AS own CROSS JOIN workflows AS flow USING (execution_id)
WHERE own.status IN ('RUNNING', 'ABORTING') AND (
  (flow.ending IS NULL AND (own.status = 'ABORTING' OR flow.until_ns <= ?1))
  OR EXISTS (SELECT 1 FROM workflow_steps AS step
    LEFT JOIN executions AS child ON child.execution_id = step.child_id
    WHERE step.execution_id = flow.execution_id AND step.status = 'RUNNING' AND (
      step.verdict IS NOT NULL
      OR (step.child_id IS NULL AND step.until_ns <= ?1)
      OR (step.child_id IS NOT NULL AND (child.status IS NULL
        OR child.status NOT IN ('PENDING', 'RUNNING', 'ABORTING'))))))
ORDER BY flow.execution_id LIMIT ?2
"""
_NEXT = """
SELECT MIN(at) AS at FROM (
  SELECT flow.until_ns AS at FROM executions AS own CROSS JOIN workflows AS flow USING (execution_id)
  WHERE own.status = 'RUNNING' AND flow.ending IS NULL
  UNION ALL
  SELECT step.until_ns FROM executions AS own CROSS JOIN workflow_steps AS step USING (execution_id)
  WHERE own.status = 'RUNNING' AND step.status = 'RUNNING' AND step.child_id IS NULL)
WHERE at > ?
"""


@value
class WorkflowParts:
    """What moving workflows on takes. `secrets` gives what is masked in the log of one."""

    store: Store
    files: ExecutionFiles
    log: Log
    secrets: Callable[[Execution], Iterable[str]]
    default_timeout_s: float | None = None


def move_on(parts: WorkflowParts) -> int:
    """Begin the workflows that wait, move on those of which something has come; gives how many moves.

    Raises: StorageError; BusyError. What was moved before stays.
    """
    count = 0
    for _ in range(_MOST_ROUNDS):  # a step that is a workflow begins in the next round
        moved = 0
        for act, execution_ids in ((_begin, _waiting(parts.store)), (_advance, _due(parts.store))):
            moved += sum(_moved(parts, act, each) for each in execution_ids)
        if not moved:
            break
        count += moved
    return count


def _waiting(store: Store) -> list[str]:
    return [row["execution_id"] for row in store.rows(_WAITING, (store.clock_ns(), _MOST))]


def _due(store: Store) -> list[str]:
    return [row["execution_id"] for row in store.rows(_DUE, (store.clock_ns(), _MOST))]


def next_moment_ns(store: Store) -> int | None:
    """When the time of a workflow or an approval is over; None if no one's will be. Raises: StorageError."""
    row = store.row(_NEXT, (store.clock_ns(),))
    return None if row is None else row["at"]


def _moved(parts: WorkflowParts, act: Callable[[WorkflowParts, str], bool], execution_id: str) -> bool:
    """One move, whole or not at all; one that goes wrong fails its workflow and holds up no other."""
    try:
        with parts.store.writing():
            return act(parts, execution_id)
    except (StorageError, BusyError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever goes wrong, it must not stay RUNNING
        parts.log.error("task-end", execution=execution_id, error=f"{type(error).__name__}: {error}")
        _give_up(parts.store, execution_id, f"error in ctrl-exec: {type(error).__name__}")
        return True


def _begin(parts: WorkflowParts, execution_id: str) -> bool:
    store = parts.store
    own = (store, execution_id, WORKFLOW_CLAIMER)
    if not claim(*own) or not carriage.begin(*own):
        return False  # another one has begun it, or it was aborted
    execution = find_execution(store, execution_id)
    task = load_task(store, execution.task_id)
    if task is None or not isinstance(task.kind, Workflow):
        raise NotFoundError("its task is gone, or no workflow any more")
    facts = {"execution": execution_id, "task": task.task_id, "trigger": execution.trigger}
    parts.log.info("task-start", attempt=execution.attempt, user=execution.user_id, **facts)
    timeout_s = lifecycle.timeout_s(task, load_project(store, task.project_id), parts.default_timeout_s)
    until_ns = None if timeout_s is None else after(store.clock_ns(), int(timeout_s))
    add_begun(store, execution_id, task.kind, until_ns)
    fault = _nesting_fault(store, execution, task)
    if fault:
        begun = load_begun(store, execution_id)
        assert begun is not None
        moves = Moves(store, execution, begun)
        outcome = moves.refuse(fault)
        moves.save(parts.files, parts.secrets, parts.log)
        _end(parts, task, execution, outcome)
        return True
    return _advance(parts, execution_id)


def _nesting_fault(store: Store, execution: Execution, task: Task) -> str:
    """What its tasks have become since they were saved may lead too far."""
    above = [execution.task_id]
    parent_id = execution.parent_id
    while parent_id is not None and len(above) <= MOST_DEPTH:
        sql = "SELECT task_id, parent_id FROM executions WHERE execution_id = ?"
        row = store.row(sql, (parent_id,))
        if row is None:
            break
        if row["task_id"] == execution.task_id:
            return ITSELF
        above.append(row["task_id"])
        parent_id = row["parent_id"]
    if len(above) > MOST_DEPTH:
        return TOO_DEEP
    return next((fault for _, fault in nesting_faults(task, lambda each: load_task(store, each))), "")


def _advance(parts: WorkflowParts, execution_id: str) -> bool:
    store = parts.store
    execution = find_execution(store, execution_id)
    begun = load_begun(store, execution_id)
    if begun is None or execution.status not in (RUNNING, ABORTING):
        return False
    moves = Moves(store, execution, begun)
    moves.hear()
    outcome = moves.outcome()
    if outcome is None:
        ending = begun.ending or _ending(store, execution, begun.until_ns)
        if ending is None:
            moves.begin_next()
        else:
            moves.end_rest(ending)
        outcome = moves.outcome()
    moves.save(parts.files, parts.secrets, parts.log)
    if outcome is not None:
        _end(parts, load_task(store, execution.task_id), execution, outcome)
    return True


def _ending(store: Store, execution: Execution, until_ns: int | None) -> str | None:
    if execution.status == ABORTING:
        return ABORTED
    return TIMED_OUT if until_ns is not None and store.clock_ns() >= until_ns else None


def _end(parts: WorkflowParts, task: Task | None, execution: Execution, outcome: Outcome) -> None:
    carriage.end(parts.store, task, execution.execution_id, outcome)
    facts = {"execution": execution.execution_id, "task": execution.task_id, "trigger": execution.trigger}
    parts.log.info("task-end", status=outcome.status, exit=outcome.exit_code, reason=outcome.reason, **facts)


def _give_up(store: Store, execution_id: str, reason: str) -> None:
    with store.writing():
        children = "SELECT execution_id, status FROM executions WHERE parent_id = ?"
        for row in store.rows(children, (execution_id,)):
            if row["status"] in OPEN_STATUSES:
                carriage.abort(store, row["execution_id"])
        sql = "UPDATE workflow_steps SET status = ? WHERE execution_id = ? AND status = ?"
        store.execute(sql, (ABORTED, execution_id, RUNNING))
        store.execute(sql, (SKIPPED, execution_id, PENDING))
        carriage.end(store, None, execution_id, lifecycle.Outcome(FAILED, None, reason))
