"""The next starts of a task by the clock, as far as calendar and schedules tell today.

Owns their order over several schedules, and their wire form. Pure: the time is an argument.
"""

from __future__ import annotations

import heapq
from itertools import islice

from ctrl_exec.common.value import value
from ctrl_exec.tasks.clock.calendar import read_calendar
from ctrl_exec.tasks.clock.cron import parse_cron
from ctrl_exec.tasks.clock.timers import schedules_of
from ctrl_exec.tasks.clock.zones import zone_named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo
    from typing import Any

    from ctrl_exec.tasks.models import Schedule, Task

NS = 1_000_000_000
USUAL_ITEMS = 5
MOST_ITEMS = 100
# a calendar may leave out nearly everything: so many due times are looked at, a tenth of a second's work
_MOST_LOOKED_AT = 1000


@value
class Upcoming:
    """A start to come: when, in which zone, by which schedule."""

    due_s: int
    zone: tzinfo
    schedule: Schedule


def upcoming(task: Task, local: tzinfo, now_s: float, count: int = USUAL_ITEMS) -> tuple[Upcoming, ...]:
    """At most `count` starts after now, in order; none of a task that is off or not scheduled.

    `local` is the zone of schedules that name none. Raises: InvalidInputError if one cannot be read.
    """
    if not task.is_enabled:
        return ()
    calendar = task.calendar
    terms = read_calendar(calendar.mode, calendar.dates, calendar.ical) if calendar else None
    schedules = [each for each in schedules_of(task) if each is not None]
    due = heapq.merge(*(_due(each, local, now_s) for each in schedules), key=lambda each: each.due_s)
    looked_at = islice(due, _MOST_LOOKED_AT)
    return tuple(
        islice((each for each in looked_at if terms is None or terms.allows(each.due_s, each.zone)), count)
    )


def _due(schedule: Schedule, local: tzinfo, now_s: float) -> Iterator[Upcoming]:
    zone = zone_named(schedule.timezone) if schedule.timezone else local
    cron = parse_cron(schedule.cron_expression, allow_seconds=True)
    found = cron.next_after(now_s, zone)
    while found is not None:
        yield Upcoming(found, zone, schedule)
        found = cron.next_after(found, zone)


def encode_upcoming(start: Upcoming) -> dict[str, Any]:
    """The start on the wire; `cronTimezone` is null where the schedule names none."""
    return {
        "scheduledTs": start.due_s * NS,
        "cronExpression": start.schedule.cron_expression,
        "cronTimezone": start.schedule.timezone,
        "parameterMap": start.schedule.parameter_map,
    }
