"""Events of a calendar: times that last, perhaps again and again.

Owns whether a moment lies within one. Must not know how they are written; zone and moment are arguments.
An event of whole days, or one without a zone, is meant in the zone of whoever asks.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta

from ctrl_exec.common.value import value
from ctrl_exec.tasks.clock.recurrence import Rule
from ctrl_exec.tasks.clock.wall_clock import moment_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo


@value
class When:
    """A date or time as it is written: `zone` None where it is that of the schedule."""

    wall: datetime
    is_day: bool = False
    zone: tzinfo | None = None


@value
class Event:
    """Something that lasts from a time on, perhaps again and again, but not on the days left out."""

    start: When
    length: timedelta
    rule: Rule | None = None
    until: When | None = None
    last_day: date = date.max
    without: frozenset[date] = frozenset()

    def covers(self, moment_s: int, zone: tzinfo) -> bool:
        """Whether the moment lies within it; `zone` is that of an event that has none."""
        own = self.start.zone or zone
        today = datetime.fromtimestamp(moment_s, own).date()
        if self.rule is None:
            days: Iterable[date] = (self.start.wall.date(),)
        else:
            days = (today - timedelta(days=ago) for ago in range(self.length.days + 2))
        return any(self._begins_on(day, own) and self._lasts(day, own, moment_s) for day in days)

    def _begins_on(self, day: date, own: tzinfo) -> bool:
        if day in self.without or day > self.last_day:
            return False
        return self.rule is None or (
            self.rule.begins_on(day, self.start.wall.date()) and not self._is_past(day, own)
        )

    def _is_past(self, day: date, own: tzinfo) -> bool:
        if self.until is None:
            return False
        if self.until.is_day:
            return day > self.until.wall.date()
        begins = moment_of(datetime.combine(day, self.start.wall.time()), own)
        return begins > moment_of(self.until.wall, self.until.zone or own)

    def _lasts(self, day: date, own: tzinfo, moment_s: int) -> bool:
        begins = datetime.combine(day, self.start.wall.time())
        return moment_of(begins, own) <= moment_s < moment_of(begins + self.length, own)
