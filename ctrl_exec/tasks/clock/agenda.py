"""What is due next over all tasks that somebody may see, in order, page by page.

Owns the order over many timers and the cursor of a page. Which moments a schedule has, and what a calendar
leaves out, is others'. The time is an argument.
"""

from __future__ import annotations

import heapq
import re

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.value import value
from ctrl_exec.tasks.clock.calendar import read_calendar
from ctrl_exec.tasks.clock.cron import parse_cron
from ctrl_exec.tasks.clock.timers import timer_of_row
from ctrl_exec.tasks.clock.upcoming import NS, Upcoming, encode_upcoming
from ctrl_exec.tasks.clock.zones import zone_named
from ctrl_exec.tasks.definitions import load_task
from ctrl_exec.tasks.projects import visible_condition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import tzinfo
    from typing import Any

    from ctrl_exec.tasks.clock.calendar import Calendar
    from ctrl_exec.tasks.models import Timer
    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

    Due = tuple[int, str]

# calendars may leave out nearly everything: a page ends after so many due times, about a second's work
MOST_LOOKED_AT = 10_000
_CURSOR = re.compile(r"([0-9]{1,10})-([0-9A-Z]{26}:[0-9]{1,4})", re.ASCII)


@value
class Wanted:
    """Which starts are asked for: at `from_s` or later, before `until_s`, and behind `after`."""

    from_s: int
    until_s: int | None = None
    after: Due | None = None
    project_id: str | None = None
    having: str = ""


@value
class Entry:
    """A start to come, and of which task."""

    timer_id: str
    task_id: str
    project_id: str
    name: str
    start: Upcoming

    @property
    def due(self) -> Due:
        """Its place in the order of all."""
        return self.start.due_s, self.timer_id


@value
class Page:
    """Some entries in order; `after` is where the next page goes on, None where there is nothing more."""

    entries: tuple[Entry, ...]
    after: Due | None


def agenda(
    store: Store, identity: Identity, wanted: Wanted, local: tzinfo, limit: int, *, most: int = MOST_LOOKED_AT
) -> Page:
    """At most `limit` starts to come; `local` is the zone of schedules that name none.

    Raises: NotFoundError without a role in the project that is asked for.
    """
    if wanted.project_id is not None:
        identity.require_role(wanted.project_id)
    known: dict[str, Any] = {}
    streams = []
    for row in _rows(store, identity, wanted):
        timer = timer_of_row(row)
        known[timer.timer_id] = row
        streams.append(_moments(timer, local, wanted))
    found: list[Entry] = []
    last: Due | None = None
    allows = _judge(store)
    for count, (due_s, timer_id, start) in enumerate(heapq.merge(*streams)):
        if len(found) == limit or count == most:
            return Page(tuple(found), last)
        last = due_s, timer_id
        row = known[timer_id]
        if not row["has_calendar"] or allows(row["task_id"], start):
            found.append(Entry(timer_id, row["task_id"], row["project_id"], row["name"], start))
    return Page(tuple(found), None)


def _rows(store: Store, identity: Identity, wanted: Wanted) -> list[Any]:
    condition, values = visible_condition(identity)
    parameters = [*values]
    if wanted.project_id is not None:
        condition += " AND project_id = ?"
        parameters.append(wanted.project_id)
    sql = f"""
    SELECT timers.*, project_id, name, json_extract(definition, '$.calendar') IS NOT NULL AS has_calendar
    FROM timers JOIN tasks USING (task_id)
    WHERE is_enabled AND {condition} AND instr(lower(name), lower(?)) > 0
    """
    return store.rows(sql, (*parameters, wanted.having))


def _moments(timer: Timer, local: tzinfo, wanted: Wanted) -> Iterator[tuple[int, str, Upcoming]]:
    schedule = timer.schedule
    try:
        zone = zone_named(schedule.timezone) if schedule.timezone else local
        cron = parse_cron(schedule.cron_expression, allow_seconds=True)
    except InvalidInputError:
        # a zone that this machine has lost: the scheduler says so, and the other tasks are still due
        return
    first_s = wanted.from_s if wanted.after is None else max(wanted.from_s, wanted.after[0])
    due_s = cron.next_after(first_s - 1, zone)
    while due_s is not None and (wanted.until_s is None or due_s < wanted.until_s):
        if wanted.after is None or (due_s, timer.timer_id) > wanted.after:
            yield due_s, timer.timer_id, Upcoming(due_s, zone, schedule)
        due_s = cron.next_after(due_s, zone)


def _judge(store: Store) -> Callable[[str, Upcoming], bool]:
    """What says whether a task's calendar allows a start; each is read once."""
    terms: dict[str, Calendar | None] = {}

    def allows(task_id: str, start: Upcoming) -> bool:
        if task_id not in terms:
            task = load_task(store, task_id)
            calendar = None if task is None else task.calendar
            terms[task_id] = read_calendar(calendar.mode, calendar.dates, calendar.ical) if calendar else None
        found = terms[task_id]
        return found is None or found.allows(start.due_s, start.zone)

    return allows


def encode_entry(entry: Entry) -> dict[str, Any]:
    """The start on the wire."""
    own = {"taskId": entry.task_id, "projectId": entry.project_id, "name": entry.name}
    return own | encode_upcoming(entry.start)


def encode_cursor(after: Due | None) -> str | None:
    """Where the next page goes on, as clients hand it back."""
    return None if after is None else f"{after[0]}-{after[1]}"


def decode_cursor(cursor: str) -> Due | None:
    """Where a page goes on; None for an empty cursor. Raises: InvalidInputError."""
    if not cursor:
        return None
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidInputError("cursor: expected a nextCursor of this list", field="cursor")
    return int(match[1]), match[2]


def span_of(from_ns: int | None, to_ns: int | None, now_ns: int) -> tuple[int, int | None]:
    """First second and end of the time that is asked for: what is past does not come.

    A start at `from_ns` belongs to it, one at `to_ns` does not.
    """
    first_s = now_ns // NS + 1
    if from_ns is not None:
        first_s = max(first_s, -(-from_ns // NS))
    return first_s, None if to_ns is None else -(-to_ns // NS)
