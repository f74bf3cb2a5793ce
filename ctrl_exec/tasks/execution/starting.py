"""Which waiting executions are to start now, and what became of those whose carrier died.

Owns the choice (limit, fairness between projects) and recovery. Starts no process itself: whoever
calls is given what to start. Two that call at once never get the same one.
"""

from __future__ import annotations

import time

from ctrl_exec.common import process
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.value import value
from ctrl_exec.tasks.definitions import load_task
from ctrl_exec.tasks.execution import carriage, lifecycle
from ctrl_exec.tasks.execution.executions import WORKFLOW_CLAIMER, claim
from ctrl_exec.tasks.models import ABORTED, ABORTING, LOCAL_COMMAND, LOST, PENDING
from ctrl_exec.tasks.workflow.workflow_steps import waits_for_approval

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.tasks.execution.carriage import ExecutionFiles
    from ctrl_exec.tasks.execution.lifecycle import Outcome
    from ctrl_exec.tasks.models import Execution
    from ctrl_exec.tasks.store import Store

CLAIM_GRACE_NS = 30 * lifecycle.NS
"""A carrier that was forked this long ago and holds no lock never came to life."""
_CANDIDATES = 200
_DYING_S = 2.0
_LOOK_EVERY_S = 0.02


@value
class Recovered:
    """What recovery did: ids of executions that ended so, and of those given back to be started again."""

    lost: tuple[str, ...] = ()
    given_back: tuple[str, ...] = ()


def claim_next(store: Store, claimer: str, *, max_running: int) -> str | None:
    """Claim the execution that is to start next; None if none may now.

    The oldest of the project with the fewest under way, while fewer than `max_running` are in all.
    """
    if not _waiting(store):  # most looks find nothing; only those that do keep others from writing
        return None
    with store.writing():
        counts = _under_way(store)
        if sum(counts.values()) >= max_running:
            return None
        waiting = _waiting(store)
        for _, execution_id in sorted(waiting, key=lambda each: (counts.get(each[0], 0), each[1])):
            if claim(store, execution_id, claimer):
                return execution_id
    return None


def _under_way(store: Store) -> dict[str, int]:
    sql = """
    SELECT project_id, COUNT(*) AS count FROM executions
    WHERE status IN ('PENDING', 'RUNNING', 'ABORTING') AND claimer IS NOT NULL AND claimer != ?
    GROUP BY project_id
    """
    # a workflow takes no place: its steps would wait for it, and it for them
    return {row["project_id"]: row["count"] for row in store.rows(sql, (WORKFLOW_CLAIMER,))}


def _waiting(store: Store) -> list[tuple[str, str]]:
    """(project, execution) of the oldest ones of each project that could start."""
    sql = """
    SELECT project_id, execution_id FROM (
      SELECT project_id, execution_id,
        ROW_NUMBER() OVER (PARTITION BY project_id ORDER BY execution_id) AS place
      FROM executions WHERE status = 'PENDING' AND claimer IS NULL
        AND (not_before_ns IS NULL OR not_before_ns <= ?)
        AND NOT EXISTS (SELECT 1 FROM tasks
          WHERE tasks.task_id = executions.task_id AND task_type = 'WORKFLOW'))
    WHERE place <= ?
    """
    return [tuple(row) for row in store.rows(sql, (store.clock_ns(), _CANDIDATES))]


def next_moment_ns(store: Store) -> int | None:
    """When the next one that waits for its time may start; None if none waits for that."""
    sql = "SELECT MIN(not_before_ns) AS at FROM executions WHERE status = 'PENDING' AND not_before_ns > ?"
    row = store.row(sql, (store.clock_ns(),))
    return None if row is None else row["at"]


def waits_for(store: Store, execution: Execution, *, max_running: int) -> str | None:
    """In words, what a PENDING execution waits for, or a begun workflow; None for one that does not."""
    if execution.status != PENDING or execution.claimer is not None:
        return waits_for_approval(store, execution)
    now_ns = store.clock_ns()
    if execution.not_before_ns is not None and execution.not_before_ns > now_ns:
        return f"its time, in {(execution.not_before_ns - now_ns) // lifecycle.NS + 1}s"
    sql = """
    SELECT execution_id FROM executions WHERE task_id = ? AND claimer IS NOT NULL
      AND status IN ('PENDING', 'RUNNING', 'ABORTING') ORDER BY execution_id LIMIT 1
    """
    other = store.row(sql, (execution.task_id,))
    if other is not None:
        return f"execution {other['execution_id']} of the same task"
    if sum(_under_way(store).values()) >= max_running and not _is_workflow(store, execution):
        return f"a place: {max_running} executions are under way"
    return "the scheduler"


def _is_workflow(store: Store, execution: Execution) -> bool:
    sql = "SELECT 1 FROM tasks WHERE task_id = ? AND task_type = 'WORKFLOW'"
    return store.row(sql, (execution.task_id,)) is not None


def recover(
    store: Store,
    files: ExecutionFiles,
    *,
    end_group: Callable[[int, int], bool],
    outcome_of: Callable[[Execution], Outcome | None] = lambda _: None,
) -> Recovered:
    """Deal with every execution that nobody carries any more.

    What was claimed and never begun is given back. Of what was cut off the group is ended first: only
    when `end_group(pid, started)` (of a local command) says that it is gone, the end is written: what
    `outcome_of` knows of the runs it owned, else LOST.
    """
    lost, given_back = [], []
    for known in carriage.carried(store):
        if known.status == PENDING and _is_fresh(store, known):
            continue
        held = files.hold(known.execution_id)
        if held is None:
            continue
        try:
            # it may have begun, and died, since we looked: only now does nobody but us change it
            execution = carriage.find_carried(store, known.execution_id)
            if execution is None:
                continue
            if execution.status == PENDING:
                if carriage.give_back(store, execution.execution_id, execution.claimer or ""):
                    given_back.append(execution.execution_id)
            elif _end_cut_off(store, execution, end_group, outcome_of):
                lost.append(execution.execution_id)
        finally:
            files.release(known.execution_id, held)
    return Recovered(tuple(lost), tuple(given_back))


def _is_fresh(store: Store, execution: Execution) -> bool:
    """Whether a carrier may still come to life. A claim of the future is of a clock that was wrong."""
    age_ns = store.clock_ns() - (execution.claimed_ns or 0)
    return 0 <= age_ns < CLAIM_GRACE_NS and not carriage.is_gone(execution.claimer or "")


def _end_cut_off(
    store: Store,
    execution: Execution,
    end_group: Callable[[int, int], bool],
    outcome_of: Callable[[Execution], Outcome | None],
) -> bool:
    task = load_task(store, execution.task_id)
    if task is not None and task.task_type != LOCAL_COMMAND:
        end_group = end_group_here  # its process is ours; who executes local commands may be away
    if execution.group_pid and not end_group(execution.group_pid, execution.group_started or 0):
        return False
    outcome = outcome_of(execution) if execution.runs else None
    if execution.runs and outcome is None:
        return False  # its runs go on; they are asked again
    if outcome is None:
        word = (ABORTED, "aborted") if execution.status == ABORTING else (LOST, lifecycle.CUT_OFF)
        outcome = lifecycle.Outcome(word[0], None, word[1])
    carriage.end(store, task, execution.execution_id, outcome)
    return True


def end_group_here(pid: int, started: int) -> bool:
    """End a process group of this machine that a dead carrier left; True once nothing of it lives.

    `started` is when its first process did: a number may be another's by now, which is then left alone.
    """
    found = carriage.started_at(pid)
    if found not in (0, started):
        return True  # the leader is gone and its number is somebody else's: so is the group's
    if process.is_group_alive(pid):
        process.end_group(pid)
    deadline = monotonic() + _DYING_S
    while process.is_group_alive(pid):
        if monotonic() >= deadline:
            return False  # not even KILL ends what sleeps in the kernel; the next round looks again
        time.sleep(_LOOK_EVERY_S)
    return True
