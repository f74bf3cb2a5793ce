"""Executions as rows: requested under the task's policy, claimed once, moved from state to state.

Owns the compare-and-swap steps: each is one statement or one transaction, and losing a race is a plain
False. Knows no processes; who carries an execution, and when it is over, is decided elsewhere.
"""

from __future__ import annotations

import json

from ctrl_exec.common.errors import ConflictError, NotFoundError
from ctrl_exec.common.value import fields, value
from ctrl_exec.tasks.models import (
    ABORTED,
    ABORTING,
    CONCURRENCY,
    OPEN_STATUSES,
    PENDING,
    REPLACEMENT,
    RUNNING,
    SKIPPED,
    SMART_CHAINING,
    Execution,
)
from ctrl_exec.tasks.store import packed
from ctrl_exec.tasks.ulid import first_ulid, new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from ctrl_exec.tasks.models import Timer
    from ctrl_exec.tasks.store import Store

_COLUMNS = tuple(each.name for each in fields(Execution))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM executions"
_AS_JSON = ("parameter_map", "runs")
_OPEN = "('PENDING', 'RUNNING', 'ABORTING')"
WORKFLOW_CLAIMER = "workflow"
"""Who has claimed a workflow that was begun: no process carries it, and it takes no place."""


class PolicyError(ConflictError):
    """The task's policy on several executions refuses this one."""


@value
class Start:
    """What is asked for when a task is to be executed.

    `sealed` holds values of SECRET parameters, encrypted; it is never part of an `Execution`. `made` are
    its id and the time of that, where they were needed before.
    """

    task_id: str
    trigger: str = "USER"
    user_id: str | None = None
    parameter_map: dict[str, Any] | None = None
    sealed: bytes | None = None
    parent_id: str | None = None
    retry_of: str | None = None
    attempt: int = 1
    not_before_ns: int | None = None
    rights: str | None = None
    made: tuple[str, int] | None = None


@value
class ExecutionFilter:
    """Which executions a list holds; `project_ids` None: of all projects."""

    project_ids: tuple[str, ...] | None = None
    task_id: str | None = None
    statuses: tuple[str, ...] = ()
    from_ns: int | None = None
    to_ns: int | None = None
    parent_id: str | None = None


_INDEXES = {
    ("task_id",): "executions_of_task",
    ("task_id", "status"): "executions_of_task_in_state",
    ("project_id",): "executions_of_project",
    ("project_id", "status"): "executions_of_project_in_state",
    ("status",): "executions_by_status",
}


def find_execution(store: Store, execution_id: str) -> Execution:
    """The execution. Raises: NotFoundError."""
    row = store.row(f"{_SELECT} WHERE execution_id = ?", (execution_id,))
    if row is None:
        raise NotFoundError(f"no execution {execution_id[:40]}")
    return _of_row(row)


def list_executions(
    store: Store, wanted: ExecutionFilter, *, limit: int = 50, before_id: str | None = None
) -> tuple[Execution, ...]:
    """At most `limit` of them, newest first, beginning after `before_id`."""
    spans = [(">=", wanted.from_ns), ("<", wanted.to_ns)]
    # ids carry their time: one index serves both the range and the order
    bounds = [(sign, first_ulid(at_ns)) for sign, at_ns in spans if at_ns is not None]
    if before_id is not None:
        bounds.append(("<", before_id))
    if wanted.parent_id is not None:
        sql, values = _of_parent(wanted, bounds)
    else:
        sql, values = _by_index(wanted, bounds, limit)
    found = store.rows(f"{sql} ORDER BY execution_id DESC LIMIT ?", (*values, limit))
    return tuple(_of_row(row) for row in found)


def _by_index(
    wanted: ExecutionFilter, bounds: list[tuple[str, str]], limit: int
) -> tuple[str, tuple[Any, ...]]:
    """The newest of each combination of owner and status that is wanted, each found at once by its index.

    As one condition they would be read through from the newest on, all of them where few are meant.
    """
    sets: dict[str, tuple[str, ...]] = {}
    if wanted.task_id is not None:
        sets["task_id"] = (wanted.task_id,)
    elif wanted.project_ids is not None:
        sets["project_id"] = tuple(dict.fromkeys(wanted.project_ids))
    if wanted.statuses:
        sets["status"] = tuple(dict.fromkeys(wanted.statuses))
    ranges = [f"each.execution_id {sign} ?" for sign, _ in bounds]
    ids = tuple(bound for _, bound in bounds)
    if not sets:
        where = f" WHERE {' AND '.join(ranges)}".replace("each.", "") if ranges else ""
        return _SELECT + where, ids
    tables = ", ".join(f"json_each(?) AS of_{name}" for name in sets)
    conditions = [f"each.{name} = of_{name}.value" for name in sets] + ranges
    others: tuple[str, ...] = ()
    if wanted.task_id is not None and wanted.project_ids is not None:
        conditions.append("each.project_id IN (SELECT value FROM json_each(?))")
        others = (packed(wanted.project_ids),)
    sql = f"""
    SELECT {", ".join(_COLUMNS)} FROM {tables}, executions WHERE execution_id IN (
      SELECT each.execution_id FROM executions AS each INDEXED BY {_INDEXES[tuple(sets)]}
      WHERE {" AND ".join(conditions)}
      ORDER BY each.execution_id DESC LIMIT ?)
    """
    return sql, (*(packed(several) for several in sets.values()), *ids, *others, limit)


def _of_parent(wanted: ExecutionFilter, bounds: list[tuple[str, str]]) -> tuple[str, tuple[Any, ...]]:
    """Those of one workflow, which are few."""
    conditions, values = ["parent_id = ?"], [wanted.parent_id]
    if wanted.task_id is not None:
        conditions.append("+task_id = ?")
        values.append(wanted.task_id)
    for name, several in (("project_id", wanted.project_ids), ("status", wanted.statuses or None)):
        if several is not None:
            conditions.append(f"+{name} IN (SELECT value FROM json_each(?))")
            values.append(packed(several))
    conditions += [f"+execution_id {sign} ?" for sign, _ in bounds]
    return f"{_SELECT} WHERE {' AND '.join(conditions)}", (*values, *(bound for _, bound in bounds))


def create_execution(store: Store, execution: Execution, *, sealed: bytes | None = None) -> None:
    """Add a row as it is. Raises: sqlite3.IntegrityError if the clock has made this start already."""
    row = {name: getattr(execution, name) for name in _COLUMNS}
    row |= {name: packed(row[name]) for name in _AS_JSON}
    store.insert("executions", row | {"sealed": sealed})


def request_execution(store: Store, start: Start) -> Execution:
    """Have a task executed as soon as its policy lets it: a PENDING execution.

    Under REPLACEMENT what runs becomes ABORTING, what waits ABORTED. The parameters were checked and
    completed by whoever asks.

    Raises: NotFoundError without the task; PolicyError where the policy refuses.
    """
    now_ns = store.clock_ns()
    with store.writing():
        task = _task_row(store, start.task_id)
        _apply_policy(store, task, now_ns)
        execution_id, created_ns = start.made or (new_ulid(now_ns), now_ns)
        execution = Execution(
            execution_id=execution_id,
            task_id=start.task_id,
            project_id=task["project_id"],
            trigger=start.trigger,
            user_id=start.user_id,
            created_ns=created_ns,
            updated_ns=now_ns,
            parameter_map=start.parameter_map or {},
            attempt=start.attempt,
            parent_id=start.parent_id,
            retry_of=start.retry_of,
            not_before_ns=start.not_before_ns,
            rights=start.rights,
        )
        create_execution(store, execution, sealed=start.sealed)
        store.touch()
    return execution


def claim_start(
    store: Store, timer: Timer, due_ns: int, *, skip_reason: str | None = None, parameter_map: dict[str, Any]
) -> Execution | None:
    """Make the start of a timer that is due at `due_ns`, once whoever tries: a PENDING execution.

    With a `skip_reason`, and where the task's policy refuses or the task is off, a SKIPPED one that says
    why. The timer has been seen up to `due_ns` then. None where it was made already, or the timer is no
    longer this one.
    """
    now_ns = store.clock_ns()
    with store.writing():
        seen = store.execute(
            "UPDATE timers SET seen_ns = ?"
            " WHERE timer_id = ? AND version = ? AND (seen_ns IS NULL OR seen_ns < ?)",
            (due_ns, timer.timer_id, timer.version, due_ns),
        )
        known = "SELECT 1 FROM executions WHERE timer_id = ? AND scheduled_ns = ?"
        if not seen or store.row(known, (timer.timer_id, due_ns)) is not None:
            return None
        task = _task_row(store, timer.task_id)
        reason = skip_reason or _reason_to_skip(store, task, now_ns)
        execution = Execution(
            execution_id=new_ulid(now_ns),
            task_id=timer.task_id,
            project_id=task["project_id"],
            trigger="SCHEDULE",
            status=SKIPPED if reason else PENDING,
            reason=reason,
            user_id=task["user_id"],
            created_ns=now_ns,
            updated_ns=now_ns,
            end_ns=now_ns if reason else None,
            parameter_map=parameter_map,
            timer_id=timer.timer_id,
            scheduled_ns=due_ns,
            rights=task["rights"],
        )
        create_execution(store, execution)
    return execution


def _reason_to_skip(store: Store, task: sqlite3.Row, now_ns: int) -> str | None:
    if not task["is_enabled"]:
        return "DISABLED"
    try:
        _apply_policy(store, task, now_ns)
    except PolicyError:
        return "POLICY"
    return None


def _task_row(store: Store, task_id: str) -> sqlite3.Row:
    columns = "task_id, project_id, user_id, is_enabled, policy, max_concurrency, rights"
    found = store.row(f"SELECT {columns} FROM tasks WHERE task_id = ?", (task_id,))
    if found is None:
        raise NotFoundError(f"no task {task_id[:40]}")
    return found


def _apply_policy(store: Store, task: sqlite3.Row, now_ns: int) -> None:
    """Raises: PolicyError. Within the transaction that adds the execution."""
    sql = f"SELECT execution_id, status, claimer FROM executions WHERE task_id = ? AND status IN {_OPEN}"
    current = store.rows(sql, (task["task_id"],))
    policy = task["policy"]
    if policy == REPLACEMENT:
        _replace(store, current, now_ns)
    elif policy == SMART_CHAINING:
        if any(row["status"] == PENDING for row in current):
            raise PolicyError("SMART_CHAINING: an execution of this task is pending already")
    elif policy == CONCURRENCY:
        most = task["max_concurrency"]
        if most is not None and len(current) >= most:
            raise PolicyError(
                f"CONCURRENCY: {len(current)} executions of this task are under way, {most} may be"
            )
    elif current:
        raise PolicyError(f"REJECT: execution {current[0]['execution_id']} of this task is under way")


def _replace(store: Store, current: list[sqlite3.Row], now_ns: int) -> None:
    for row in current:
        if row["status"] == PENDING and row["claimer"] is None:
            change = {"reason": "POLICY", "end_ns": now_ns}
            transition(store, row["execution_id"], (PENDING,), ABORTED, change)
        elif row["status"] != ABORTING:
            transition(store, row["execution_id"], (PENDING, RUNNING), ABORTING, {"reason": "POLICY"})


def claim(store: Store, execution_id: str, claimer: str) -> bool:
    """Take a PENDING execution; True for one claimer only.

    Not before its time, and not while the task's policy has it wait for another one that is claimed.
    It is still PENDING then: `transition` to RUNNING follows when its carrier starts.
    """
    now_ns = store.clock_ns()
    sql = f"""
    UPDATE executions SET claimer = ?, claimed_ns = ?, updated_ns = ?
    WHERE execution_id = ? AND status = 'PENDING' AND claimer IS NULL
      AND (not_before_ns IS NULL OR not_before_ns <= ?)
      AND ((SELECT policy FROM tasks WHERE tasks.task_id = executions.task_id) = 'CONCURRENCY'
        OR NOT EXISTS (SELECT 1 FROM executions AS other WHERE other.task_id = executions.task_id
          AND other.status IN {_OPEN} AND other.claimer IS NOT NULL))
    """
    return store.execute(sql, (claimer, now_ns, now_ns, execution_id, now_ns)) == 1


def transition(
    store: Store,
    execution_id: str,
    expected: tuple[str, ...],
    status: str,
    facts: dict[str, Any] | None = None,
) -> bool:
    """Move an execution on if it is in one of the expected states; False if it is not.

    `facts` are columns to set with it: `start_ns`, `end_ns`, `exit_code`, `runs`, `reason`, `claimer`,
    `group_pid`, `group_started`. Sealed parameters are forgotten with the end.
    """
    changes = {"status": status, "updated_ns": store.clock_ns()} | (facts or {})
    if not set(changes) <= set(_COLUMNS):
        raise ValueError(f"no column of executions: {sorted(set(changes) - set(_COLUMNS))}")
    changes |= {name: packed(changes[name]) for name in _AS_JSON if name in changes}
    if status not in OPEN_STATUSES:
        changes["sealed"] = None
    sets = ", ".join(f"{name} = ?" for name in changes)
    marks = ", ".join("?" * len(expected))
    sql = f"UPDATE executions SET {sets} WHERE execution_id = ? AND status IN ({marks})"
    return store.execute(sql, (*changes.values(), execution_id, *expected)) == 1


def sealed_parameters(store: Store, execution_id: str) -> bytes | None:
    """The encrypted SECRET parameters of an execution that is not over."""
    row = store.row("SELECT sealed FROM executions WHERE execution_id = ?", (execution_id,))
    return None if row is None else row["sealed"]


def _of_row(row: sqlite3.Row) -> Execution:
    content = dict(row)
    content |= {
        "parameter_map": json.loads(content["parameter_map"]),
        "runs": tuple(json.loads(content["runs"])),
    }
    return Execution(**content)
