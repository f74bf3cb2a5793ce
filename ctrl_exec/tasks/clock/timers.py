"""Timers: the schedules of tasks as the clock sees them.

Owns their rows. What is due when is the clock's; that a start is made once is `executions.claim_start`.
"""

from __future__ import annotations

import json

from ctrl_exec.tasks.models import Schedule, Timer
from ctrl_exec.tasks.store import packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3

    from ctrl_exec.tasks.models import Task
    from ctrl_exec.tasks.store import Store

_COLUMNS = "timer_id, task_id, cron_expression, timezone, parameter_map, since_ns, seen_ns, version"
_SELECT = f"SELECT {_COLUMNS} FROM timers"
NEVER_S = 1 << 53


def list_timers(store: Store, task_id: str | None = None) -> tuple[Timer, ...]:
    """All timers, or those of one task; also those of tasks that are off, whose starts are SKIPPED."""
    if task_id is None:
        rows = store.rows(f"{_SELECT} ORDER BY timer_id")
    else:
        rows = store.rows(f"{_SELECT} WHERE task_id = ? ORDER BY timer_id", (task_id,))
    return tuple(timer_of_row(row) for row in rows)


def set_timers(store: Store, task: Task) -> None:
    """Have a task's timers be those of its schedules; what did not change keeps what it has seen.

    Within the transaction that saves the task. The clock hears of it when that is committed.
    """
    wanted = {f"{task.task_id}:{place}": each for place, each in enumerate(schedules_of(task)) if each}
    known = {each.timer_id: each for each in list_timers(store, task.task_id)}
    for timer_id in known.keys() - wanted.keys():
        store.execute("DELETE FROM timers WHERE timer_id = ?", (timer_id,))
    for timer_id, schedule in wanted.items():
        _set(store, timer_id, task, schedule, known.get(timer_id))
    if wanted or known:
        store.touch()


def note_next(store: Store, timer: Timer, next_s: int | None) -> None:
    """Keep when the timer is due next (None for never): lists of what is to come need not compute it."""
    next_s = NEVER_S if next_s is None else next_s
    sql = "UPDATE timers SET next_s = ? WHERE timer_id = ? AND version = ? AND next_s != ?"
    store.execute(sql, (next_s, timer.timer_id, timer.version, next_s))


def schedules_of(task: Task) -> tuple[Schedule | None, ...]:
    """The task's own expression (None without one), then its further schedules; none unless scheduled."""
    if not task.is_scheduled:
        return ()
    own = Schedule(task.cron_expression, task.cron_timezone) if task.cron_expression else None
    return (own, *task.schedules)


def _set(store: Store, timer_id: str, task: Task, schedule: Schedule, known: Timer | None) -> None:
    if known is not None and known.schedule == schedule:
        return
    since_ns, seen_ns = task.updated_ns, None
    if known is not None and _when(known.schedule) == _when(schedule):
        since_ns, seen_ns = known.since_ns, known.seen_ns
    row = {
        "timer_id": timer_id,
        "task_id": task.task_id,
        "cron_expression": schedule.cron_expression,
        "timezone": schedule.timezone,
        "parameter_map": packed(schedule.parameter_map),
        "since_ns": since_ns,
        "seen_ns": seen_ns,
        "version": 1 if known is None else known.version + 1,
    }
    store.execute("DELETE FROM timers WHERE timer_id = ?", (timer_id,))
    store.insert("timers", row)


def _when(schedule: Schedule) -> tuple[str, str | None]:
    return schedule.cron_expression, schedule.timezone


def timer_of_row(row: sqlite3.Row) -> Timer:
    """The timer that a row of the table is."""
    schedule = Schedule(row["cron_expression"], row["timezone"], json.loads(row["parameter_map"]))
    return Timer(
        row["timer_id"], row["task_id"], schedule, row["since_ns"], row["seen_ns"], version=row["version"]
    )
