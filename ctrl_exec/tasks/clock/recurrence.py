"""Recurrence rules of iCalendar, asked day by day: does an event that recurs begin on this day?

Owns RRULE with the frequencies of days and longer. A rule is never unrolled, so that none can cost more
than the days it is asked for: `FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30` would keep a library that looks for
its next occurrence busy until the year 9999.

Source: RFC 5545 §3.3.10.
"""

from __future__ import annotations

import re
from datetime import date, timedelta

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.value import value

_DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
_PARTS = ("FREQ", "INTERVAL", "COUNT", "UNTIL", "BYDAY", "BYMONTHDAY", "BYMONTH", "WKST")
_LIMIT = 10_000


@value
class Rule:
    """A rule without its end: UNTIL and COUNT are its owner's.

    `days` are (ordinal, weekday) with Monday 0 and ordinal 0 for every one; `month_days` may be
    negative, from the end of the month.
    """

    frequency: str
    interval: int = 1
    days: tuple[tuple[int, int], ...] = ()
    month_days: tuple[int, ...] = ()
    months: tuple[int, ...] = ()
    week_start: int = 0

    def begins_on(self, day: date, first: date) -> bool:
        """Whether an event whose first day is `first` begins on that day too."""
        if day < first or (self.months and day.month not in self.months):
            return False
        return self._has_period(day, first) and self._has_day(day, first)

    def _has_period(self, day: date, first: date) -> bool:
        if self.frequency == "DAILY":
            passed = (day - first).days
        elif self.frequency == "WEEKLY":
            passed = (self._week_of(day) - self._week_of(first)).days // 7
        elif self.frequency == "MONTHLY":
            passed = (day.year - first.year) * 12 + day.month - first.month
        else:
            passed = day.year - first.year
        return passed % self.interval == 0

    def _week_of(self, day: date) -> date:
        return day - timedelta(days=(day.weekday() - self.week_start) % 7)

    def _has_day(self, day: date, first: date) -> bool:
        if self.month_days and day.day not in self.month_days and _from_end(day) not in self.month_days:
            return False
        if self.days:
            return any(self._is_nth(day, *each) for each in self.days)
        if self.month_days or self.frequency == "DAILY":
            return True
        if self.frequency == "WEEKLY":
            return day.weekday() == first.weekday()
        return day.day == first.day and (
            self.frequency == "MONTHLY" or bool(self.months) or day.month == first.month
        )

    def _is_nth(self, day: date, ordinal: int, weekday: int) -> bool:
        if day.weekday() != weekday or not ordinal:
            return day.weekday() == weekday
        if self.frequency == "YEARLY" and not self.months:
            number, last = day.timetuple().tm_yday, date(day.year, 12, 31).timetuple().tm_yday
        else:
            number, last = day.day, day.day - _from_end(day) - 1
        place = (number - 1) // 7 + 1 if ordinal > 0 else -((last - number) // 7 + 1)
        return place == ordinal


def _from_end(day: date) -> int:
    """The day of the month from its end: -1 for the last."""
    following = date(day.year + day.month // 12, day.month % 12 + 1, 1) if day.year < 9999 else date.max
    return (day - following).days


def read_rule(text: str) -> tuple[Rule, int | None, str]:
    """The rule, its COUNT (None without), its UNTIL as it is written ("" without).

    Raises: InvalidInputError that names the part.
    """
    parts: dict[str, str] = {}
    for pair in text.upper().split(";"):
        name, _, content = pair.partition("=")
        if name not in _PARTS or not content or name in parts:
            raise InvalidInputError(
                f"RRULE part {pair[:40]!r}: expected {', '.join(_PARTS)}, once each, with a value"
            )
        parts[name] = content
    frequency = parts.get("FREQ", "")
    if frequency not in _FREQUENCIES:
        raise InvalidInputError(f"RRULE FREQ {frequency[:20]!r}: expected {', '.join(_FREQUENCIES)}")
    days = tuple(_read_day(each, frequency) for each in _items(parts.get("BYDAY")))
    month_days = tuple(
        _number("BYMONTHDAY", each, 31, is_signed=True) for each in _items(parts.get("BYMONTHDAY"))
    )
    if month_days and frequency == "WEEKLY":
        raise InvalidInputError("RRULE: BYMONTHDAY cannot be with FREQ=WEEKLY")
    start = parts.get("WKST", "MO")
    if start not in _DAYS:
        raise InvalidInputError(f"RRULE WKST {start[:20]!r}: expected {', '.join(_DAYS)}")
    rule = Rule(
        frequency,
        _number("INTERVAL", parts.get("INTERVAL", "1"), _LIMIT),
        days,
        month_days,
        tuple(_number("BYMONTH", each, 12) for each in _items(parts.get("BYMONTH"))),
        _DAYS.index(start),
    )
    count = _number("COUNT", parts["COUNT"], _LIMIT) if "COUNT" in parts else None
    return rule, count, parts.get("UNTIL", "")


def _items(text: str | None) -> list[str]:
    return text.split(",") if text else []


def _number(name: str, text: str, most: int, *, is_signed: bool = False) -> int:
    pattern = r"[+-]?[0-9]{1,5}" if is_signed else r"[0-9]{1,5}"
    if not re.fullmatch(pattern, text) or not 1 <= abs(int(text)) <= most:
        raise InvalidInputError(f"RRULE {name} {text[:20]!r}: expected 1 to {most}")
    return int(text)


def _read_day(text: str, frequency: str) -> tuple[int, int]:
    found = re.fullmatch(r"([+-]?[0-9]{1,2})?(MO|TU|WE|TH|FR|SA|SU)", text)
    if found is None or (
        found[1] and (frequency in ("DAILY", "WEEKLY") or not 1 <= abs(int(found[1])) <= 53)
    ):
        raise InvalidInputError(
            f"RRULE BYDAY {text[:20]!r}: expected MO, or 2MO or -1FR where months or years are counted"
        )
    return int(found[1] or 0), _DAYS.index(found[2])
