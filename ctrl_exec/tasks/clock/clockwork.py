"""The clock's work on the database: which timers there are, and the starts that have become due.

Owns the way between rows and the agenda. A start is made by `executions.claim_start`, once whoever tries
and however many schedulers there are; what was judged is on record before anybody acts on it. Must not
know processes: who wakes it, and who carries what it starts, is the scheduler's.
"""

from __future__ import annotations

import time

from ctrl_exec.common.errors import CtrlExecError, InvalidFieldsError, InvalidInputError
from ctrl_exec.common.value import value
from ctrl_exec.tasks.clock.calendar import read_calendar
from ctrl_exec.tasks.clock.cron import parse_cron
from ctrl_exec.tasks.clock.schedule import Agenda, Entry, Terms, is_of_another_time
from ctrl_exec.tasks.clock.timers import list_timers, note_next
from ctrl_exec.tasks.clock.zones import zone_named
from ctrl_exec.tasks.definitions import load_task
from ctrl_exec.tasks.execution.executions import claim_start
from ctrl_exec.tasks.models import PENDING
from ctrl_exec.tasks.notification.news import note_missed
from ctrl_exec.tasks.parameters import complete

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo
    from typing import Any

    from ctrl_exec.common.log import Log
    from ctrl_exec.tasks.clock.schedule import Due
    from ctrl_exec.tasks.models import Execution, Parameter, Task, Timer
    from ctrl_exec.tasks.store import Store

NS = 1_000_000_000
# one transaction: many enough to share its fsync, few enough not to keep others waiting
MOST_AT_ONCE = 200
_LONGEST_READING_S = 0.25


@value
class _Known:
    """What is kept of a timer on the agenda; `mark` is what a row must say that has not changed."""

    timer: Timer
    parameters: tuple[Parameter, ...]
    mark: tuple[int, int, int]


class Clockwork:
    """The timers of a store, kept in step with it. `zone` is meant where a schedule names none."""

    def __init__(self, store: Store, zone: tzinfo, log: Log) -> None:
        self._store = store
        self._zone = zone
        self._log = log
        self._agenda = Agenda()
        self._known: dict[str, _Known] = {}
        self._broken: dict[str, tuple[int, int, int]] = {}

    def __len__(self) -> int:
        return len(self._agenda)

    def next_due(self) -> int | None:
        """When something is due, in seconds since the epoch; None for never."""
        return self._agenda.next_due()

    def refresh(self, now_s: float) -> bool:
        """Read what has changed since the last time; True if there is more to read than was read at once.

        Raises: StorageError, BusyError.
        """
        marks = self._marks(now_s)
        for timer_id in self._known.keys() - marks.keys():
            self._forget((timer_id,))
        self._broken = {timer_id: mark for timer_id, mark in self._broken.items() if timer_id in marks}
        changed = [
            timer_id
            for timer_id, mark in marks.items()
            if (timer_id not in self._known or self._known[timer_id].mark != mark)
            and self._broken.get(timer_id) != mark
        ]
        end = time.monotonic() + _LONGEST_READING_S
        count = 0
        for timer_id in changed:
            self._read(timer_id, marks[timer_id])
            count += 1
            if time.monotonic() > end:
                break
        if count:
            self._note_next(changed[:count])
        return count < len(changed)

    def _note_next(self, timer_ids: Iterable[str]) -> None:
        with self._store.writing():
            for timer_id in timer_ids:
                if timer_id in self._known:
                    note_next(self._store, self._known[timer_id].timer, self._agenda.due_of(timer_id))

    def _forget(self, timer_ids: Any) -> None:
        for timer_id in tuple(timer_ids):
            self._known.pop(timer_id, None)
            self._agenda.remove(timer_id)

    def _marks(self, now_s: float) -> dict[str, tuple[int, int, int]]:
        sql = """SELECT timer_id, timers.version AS own, since_ns, tasks.version AS task,
                 coalesce(seen_ns, since_ns) AS seen_ns FROM timers JOIN tasks USING (task_id)"""
        rows = self._store.rows(sql)
        ahead = [row["timer_id"] for row in rows if is_of_another_time(row["seen_ns"] / NS, now_s)]
        if ahead:
            self._begin_again(ahead, now_s)
        return {row["timer_id"]: (row["own"], row["since_ns"], row["task"]) for row in rows}

    def _begin_again(self, timer_ids: list[str], now_s: float) -> None:
        """Have timers that were seen hours ahead of now begin from now: the machine's clock was wrong."""
        with self._store.writing():
            for timer_id in timer_ids:
                sql = "UPDATE timers SET seen_ns = ? WHERE timer_id = ?"
                self._store.execute(sql, (int(now_s) * NS, timer_id))
        self._forget(timer_ids)
        self._log.warning("task-schedule", timers=len(timer_ids), error="the clock was set back by hours")

    def _read(self, timer_id: str, mark: tuple[int, int, int]) -> None:
        """Put one timer on the agenda. One that cannot be read is said once, and left out."""
        task_id = timer_id.partition(":")[0]
        timers = {each.timer_id: each for each in list_timers(self._store, task_id)}
        task = load_task(self._store, task_id)
        if timer_id not in timers or task is None:  # removed since
            self._forget((timer_id,))
            return
        timer = timers[timer_id]
        try:
            entry = self._entry(timer, task)
        except InvalidInputError as error:
            self._forget((timer_id,))
            self._broken[timer_id] = mark
            self._log.error("task-schedule", timer=timer_id, error=str(error))
            return
        self._known[timer_id] = _Known(timer, task.parameters, mark)
        self._broken.pop(timer_id, None)
        self._agenda.put(entry)

    def _entry(self, timer: Timer, task: Task) -> Entry:
        calendar = task.calendar
        terms = Terms(
            task.is_enabled,
            task.missed_policy,
            task.start_deadline_s,
            read_calendar(calendar.mode, calendar.dates, calendar.ical) if calendar else None,
        )
        named = timer.schedule.timezone
        zone = zone_named(named) if named else self._zone
        cron = parse_cron(timer.schedule.cron_expression, allow_seconds=True)
        seen_ns = timer.since_ns if timer.seen_ns is None else timer.seen_ns
        return Entry(timer.timer_id, cron, zone, seen_ns // NS, terms)

    def start_due(self, now_s: float) -> tuple[Execution, ...]:
        """Make the starts that are due, and record those that are not made; gives what waits for a carrier.

        About MOST_AT_ONCE of them: `next_due` says whether there are more. Raises: StorageError, BusyError;
        nothing is lost then, `refresh` and try again.
        """
        judged = self._agenda.take(now_s, MOST_AT_ONCE)
        if not judged:
            return ()
        try:
            with self._store.writing():
                made = [self._claim(due) for due in judged]
                self._note_next({due.key for due in judged})
        except CtrlExecError:
            self._forget({due.key for due in judged})
            raise
        for due, execution in zip(judged, made, strict=True):
            if execution is not None:
                self._tell(due, execution, now_s)
        return tuple(each for each in made if each is not None and each.status == PENDING)

    def _claim(self, due: Due) -> Execution | None:
        known = self._known[due.key]
        overrides = known.timer.schedule.parameter_map
        try:
            parameters = complete(known.parameters, overrides)
        except InvalidFieldsError:  # the execution will say what is missing
            parameters = dict(overrides)
        execution = claim_start(
            self._store,
            known.timer,
            due.due_s * NS,
            skip_reason=due.reason or None,
            parameter_map=parameters,
        )
        if execution is not None:
            note_missed(self._store, execution)
        return execution

    def _tell(self, due: Due, execution: Execution, now_s: float) -> None:
        facts: dict[str, Any] = {"task": execution.task_id, "execution": execution.execution_id}
        if due.passed_over_s:
            facts["passed_over_s"] = due.passed_over_s
        if execution.reason:
            self._log.warning("task-skipped", reason=execution.reason, due=due.due_s, **facts)
        else:
            self._log.info("task-due", due=due.due_s, lag_s=round(max(0.0, now_s - due.due_s), 3), **facts)
