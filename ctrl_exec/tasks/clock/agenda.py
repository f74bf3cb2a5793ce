"""What is due next over all tasks that somebody may see, in order, page by page.

Owns the order over many timers and the cursor of a page: of those of which the scheduler has noted when
they are due next, no more are read than a page takes. Which moments a schedule has, and what a calendar
leaves out, is others'. The time is an argument.
"""

from __future__ import annotations

import heapq
import re

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.value import value
from ctrl_exec.tasks.clock.calendar import read_calendar
from ctrl_exec.tasks.clock.cron import parse_cron
from ctrl_exec.tasks.clock.timers import NEVER_S, timer_of_row
from ctrl_exec.tasks.clock.upcoming import NS, Upcoming, encode_upcoming
from ctrl_exec.tasks.clock.zones import zone_named
from ctrl_exec.tasks.definitions import load_task
from ctrl_exec.tasks.projects import visible_condition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import tzinfo
    from typing import Any

    from ctrl_exec.tasks.clock.calendar import Calendar
    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

    Due = tuple[int, str]
    _Moments = Iterator[tuple[int, Upcoming | None]]

# calendars may leave out nearly everything: a page ends after so many due times, about a second's work
MOST_LOOKED_AT = 10_000
_SLICE = 256
_CURSOR = re.compile(r"([0-9]{1,10})-([0-9A-Z]{26}:[0-9]{1,4})", re.ASCII)


@value
class Wanted:
    """Which starts are asked for: at `from_s` or later, before `until_s`, and behind `after`."""

    from_s: int
    until_s: int | None = None
    after: Due | None = None
    project_id: str | None = None
    having: str = ""

    @property
    def first_s(self) -> int:
        """The first second of which a start may be told."""
        return self.from_s if self.after is None else max(self.from_s, self.after[0])


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
    found: list[Entry] = []
    last: Due | None = None
    allows = _judge(store)
    for count, (start, row) in enumerate(_starts(_Timers(store, identity, wanted), wanted, local)):
        if len(found) == limit or count == most:
            return Page(tuple(found), last)
        last = start.due_s, row["timer_id"]
        if not row["has_calendar"] or allows(row["task_id"], start):
            found.append(Entry(row["timer_id"], row["task_id"], row["project_id"], row["name"], start))
    return Page(tuple(found), None)


class _Timers:
    """The timers that somebody may see and asks for, by whether it is known when they are due next."""

    def __init__(self, store: Store, identity: Identity, wanted: Wanted) -> None:
        self._store = store
        self._condition, values = visible_condition(identity)
        self._values = [*values]
        if wanted.project_id is not None:
            self._condition += " AND project_id = ?"
            self._values.append(wanted.project_id)
        self._values.append(wanted.having)
        self._from_s = wanted.first_s
        self._until_s = NEVER_S if wanted.until_s is None else wanted.until_s

    def unknown(self) -> list[Any]:
        """Those of which the scheduler has not said when they are due at that time or later."""
        return self._rows("next_s < ?", (self._from_s,))

    def known(self) -> Iterator[Any]:
        """The others in the order in which they are due, read as far as they are taken."""
        after: Due = (self._from_s, "")
        while True:
            condition = "(next_s, timer_id) > (?, ?) AND next_s < ?"
            rows = self._rows(condition, (*after, self._until_s), f"ORDER BY next_s, timer_id LIMIT {_SLICE}")
            yield from rows
            if len(rows) < _SLICE:
                return
            after = rows[-1]["next_s"], rows[-1]["timer_id"]

    def _rows(self, condition: str, values: tuple[Any, ...], ending: str = "") -> list[Any]:
        sql = f"""
        SELECT timers.*, project_id, name, json_extract(definition, '$.calendar') IS NOT NULL AS has_calendar
        FROM timers CROSS JOIN tasks USING (task_id)
        WHERE is_enabled AND {self._condition} AND instr(lower(name), lower(?)) > 0 AND {condition} {ending}
        """
        return self._store.rows(sql, (*self._values, *values))


def _starts(timers: _Timers, wanted: Wanted, local: tzinfo) -> Iterator[tuple[Upcoming, Any]]:
    """All starts in order, each with the row of its timer; no more is read and computed than is taken."""
    ahead: list[tuple[int, str, Upcoming | None, Any, _Moments]] = []
    read: set[str] = set()

    def put(row: Any, moments: _Moments) -> None:
        found = next(moments, None)
        if found is not None:
            heapq.heappush(ahead, (found[0], row["timer_id"], found[1], row, moments))

    for row in _once(timers.unknown(), read):
        put(row, _moments(row, local, wanted))
    rest = _once(timers.known(), read)
    following = next(rest, None)
    while ahead or following is not None:
        if following is not None and not (
            ahead and ahead[0][:2] < (following["next_s"], following["timer_id"])
        ):
            put(following, _moments(following, local, wanted))
            following = next(rest, None)
        else:
            _, _, start, row, moments = heapq.heappop(ahead)
            if start is not None:
                yield start, row
            put(row, moments)


def _once(rows: Iterable[Any], read: set[str]) -> Iterator[Any]:
    """The rows of timers that were not read before: the scheduler may have noted another moment between."""
    for row in rows:
        if row["timer_id"] not in read:
            read.add(row["timer_id"])
            yield row


def _moments(row: Any, local: tzinfo, wanted: Wanted) -> _Moments:
    """The starts of a timer with their seconds; None where the next is not yet computed, but not before."""
    timer = timer_of_row(row)
    schedule = timer.schedule
    try:
        zone = zone_named(schedule.timezone) if schedule.timezone else local
        cron = parse_cron(schedule.cron_expression, allow_seconds=True)
    except InvalidInputError:
        # a zone that this machine has lost: the scheduler says so, and the other tasks are still due
        return
    is_known = row["next_s"] >= wanted.first_s
    due_s = row["next_s"] if is_known else cron.next_after(wanted.first_s - 1, zone)
    while due_s is not None and (wanted.until_s is None or due_s < wanted.until_s):
        if wanted.after is None or (due_s, timer.timer_id) > wanted.after:
            yield due_s, Upcoming(due_s, zone, schedule)
        yield due_s + cron.least_gap_s, None
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
