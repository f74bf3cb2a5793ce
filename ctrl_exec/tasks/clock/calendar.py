"""Calendars of a task: days and hours at which it is not started by the clock, or the only ones.

Owns the two modes and the reading of dates. Must not know tasks nor schedules; zone and moment are
arguments.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from functools import lru_cache

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.value import value
from ctrl_exec.tasks.clock.events import Event
from ctrl_exec.tasks.clock.icalendar import read_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import tzinfo

WIRE_FIELD = "calendar"
EXCLUDE, RESTRICT = "EXCLUDE", "RESTRICT"
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


@value
class Calendar:
    """What was read of a task's calendar. `read_calendar` makes it; it may be shared."""

    mode: str
    dates: frozenset[date] = frozenset()
    events: tuple[Event, ...] = ()

    def allows(self, moment_s: int, zone: tzinfo) -> bool:
        """Whether the task may be started by the clock at that moment."""
        today = datetime.fromtimestamp(moment_s, zone).date()
        is_within = today in self.dates or any(event.covers(moment_s, zone) for event in self.events)
        return is_within == (self.mode == RESTRICT)


@lru_cache(maxsize=256)
def read_calendar(mode: str, dates: tuple[str, ...] = (), ical: str | None = None) -> Calendar:
    """The calendar, checked.

    Raises: InvalidInputError; for the iCalendar text it names the line.
    """
    if mode not in (EXCLUDE, RESTRICT):
        raise InvalidInputError(
            f"calendar mode: expected {EXCLUDE} or {RESTRICT}", field=f"{WIRE_FIELD}.mode"
        )
    days = []
    for place, text in enumerate(dates):
        try:
            if not _DATE.fullmatch(text):
                raise ValueError(text)
            days.append(date.fromisoformat(text))
        except ValueError as error:
            raise InvalidInputError(
                f"{text[:40]!r} is no date, expected YYYY-MM-DD", field=f"{WIRE_FIELD}.dates[{place}]"
            ) from error
    try:
        return Calendar(mode, frozenset(days), read_events(ical) if ical else ())
    except InvalidInputError as error:
        raise InvalidInputError(f"iCalendar: {error}", field=f"{WIRE_FIELD}.ical") from error
