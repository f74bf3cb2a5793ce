"""Cron expressions: their reading and their moments, pure, with time and zone as arguments.

Owns the syntax, the rule for the two day fields and what a change of the clocks does. The search for
the next wall-clock time that matches is croniter's. Must not know tasks, and never asks what time it is.

croniter is corrected where it differs from Vixie cron as Debian ships it (tests/unit/tasks/test_cron.py
has a test for each): it is given lists of numbers only, so that its readings of `6-5`, `5-5`, `7/15`,
`?`, `H` and `W` never count; day of month and day of week are separate searches where they are OR-ed, so
that `#` and `L` take part in the rule; and it searches in wall-clock time without a zone, the changes
of the clocks being applied here.

Source: crontab(5) and cron(8) of Debian's cron 3.0pl1; PEP 495 for wall-clock times and `fold`.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.value import value
from ctrl_exec.tasks.clock.wall_clock import (
    EPOCH,
    SECOND,
    Place,
    offsets_at,
    seconds_of,
    turn_between,
    wall_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import tzinfo
    from typing import Any, NoReturn

WIRE_FIELD = "cronExpression"
LIMIT_CHARACTERS = 1000
# 29 February on a given weekday comes after 40 years at the latest, over the year 2100
_LONGEST_SEARCH_YEARS = 41
_EARLIEST_S = -2_208_988_800  # 1900-01-01
_LATEST_S = 32_503_680_000  # 3000-01-01
# cron(8): a change of the clocks of less than three hours is DST, a greater one a correction
_LARGEST_SHIFT_S = 3 * 3600

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@value
class _Field:
    """One field: what it is called, its range, the names its numbers have, what else it may hold."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    special: str = ""

    @property
    def expected(self) -> str:
        """What may stand in it."""
        named = f" or {self.names[0].upper()}-{self.names[-1].upper()}" if self.names else ""
        return f"{self.low}-{self.high}{named}, as *, 3, 1-5, lists by comma, */2 or 1-9/2{self.special}"


_SECOND_FIELD = _Field("second", 0, 59)
_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31, special=", or L for the last"),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS, special=", or FRI#2 for the second, L5 for the last Friday"),
)
_ELEMENT = re.compile(r"(?:(\*)|(\w{1,9})(?:-(\w{1,9}))?)(?:/(\d{1,9}))?", re.ASCII)
_NTH = re.compile(r"(\w{1,9})#([1-5])", re.ASCII)
_LAST = re.compile(r"[lL](\w{1,9})", re.ASCII)


def parse_cron(expression: str, *, allow_seconds: bool = False) -> Cron:
    """The expression, checked: five fields, or six with leading seconds where they are allowed.

    Raises: InvalidInputError that names the field and what was expected there.
    """
    if not isinstance(expression, str) or len(expression) > LIMIT_CHARACTERS:
        _refuse(f"expected at most {LIMIT_CHARACTERS} characters")
    return _parse(expression, allow_seconds)


@lru_cache(maxsize=4096)
def _parse(expression: str, allow_seconds: bool) -> Cron:
    text = expression.strip(" \t")
    if text.startswith("@"):
        if text.lower() not in _ALIASES:
            _refuse(f"{text[:40]!r} is not known, expected one of {', '.join(_ALIASES)}")
        text = _ALIASES[text.lower()]
    words = [word for word in re.split(r"[ \t]+", text) if word]
    if len(words) == 6 and not allow_seconds:
        _refuse("six fields, of which the first are seconds: here five are expected, minutes first")
    if len(words) not in (5, 6):
        leading = ", or six with leading seconds" if allow_seconds else ""
        _refuse(
            f"{len(words)} fields, expected five (minute, hour, day of month, month, day of week)" + leading
        )
    return Cron(expression, words[-5:], words[0] if len(words) == 6 else "")


def _refuse(detail: str) -> NoReturn:
    raise InvalidInputError(f"cron expression: {detail}", field=WIRE_FIELD)


@value
class _Days:
    """A field that was read: its numbers, and for the day fields `l`, and days as croniter writes them."""

    numbers: frozenset[int]
    is_last: bool = False
    nth: tuple[str, ...] = ()


def _read_field(kind: _Field, text: str) -> _Days:
    numbers: set[int] = set()
    is_last, nth = False, []
    for element in text.split(","):
        if kind.low == 1 and kind.high == 31 and element in ("L", "l"):
            is_last = True
        elif kind.names is _DAYS and _NTH.fullmatch(element):
            day, count = element.split("#")
            nth.append(f"{_number(kind, day, element) % 7}#{count}")
        elif kind.names is _DAYS and _LAST.fullmatch(element):
            nth.append(f"l{_number(kind, element[1:], element) % 7}")
        else:
            numbers.update(_read_range(kind, element))
    if kind.names is _DAYS:
        numbers = {number % 7 for number in numbers}
    return _Days(frozenset(numbers), is_last, tuple(nth))


def _read_range(kind: _Field, element: str) -> range:
    found = _ELEMENT.fullmatch(element)
    if found is None:
        _refuse(f"{kind.name}: {element[:40]!r} is not understood, expected {kind.expected}")
    star, first, last, step = found.groups()
    if star:
        low, high = kind.low, kind.high
    else:
        low = _number(kind, first, element)
        high = low if last is None else _number(kind, last, element)
        if low and str(last).lower() == "sun":  # Debian's cron refuses it; there is one thing it can mean
            high = 7
    if step is not None and not star and last is None:
        _refuse(f"{kind.name}: a step needs * or a range, expected {element.replace('/', f'-{kind.high}/')}")
    if step is not None and not int(step):
        _refuse(f"{kind.name}: {element!r} has a step of 0, expected at least 1")
    if low > high:
        _refuse(f"{kind.name}: {element!r} ends before it begins, expected the smaller number first")
    return range(low, high + 1, int(step or 1))


def _number(kind: _Field, text: str, element: str) -> int:
    if text.lower() in kind.names:
        return kind.names.index(text.lower()) + (kind.low if kind.names is _MONTHS else 0)
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not kind.low <= int(text) <= kind.high:
        _refuse(f"{kind.name}: {element[:40]!r} is not understood, expected {kind.expected}")
    return int(text)


class Cron:
    """An expression that was read. `parse_cron` makes it; it may be shared."""

    __slots__ = ("_alternatives", "_searches", "has_seconds", "is_interval", "least_gap_s", "text")

    def __init__(self, text: str, words: list[str], seconds: str) -> None:
        self.text = text
        self.has_seconds = bool(seconds)
        # cron(8): jobs whose hour or minute begins with * follow the wall clock, the others have fixed times
        self.is_interval = words[0].startswith("*") or words[1].startswith("*")
        # what has one time a day comes twice at the earliest where a correction of the clocks repeats it
        is_daily = all(word.isdigit() for word in (*words[:2], seconds or "0"))
        self.least_gap_s = _LARGEST_SHIFT_S if is_daily else 1
        self._alternatives = _compile(words, seconds)
        self._searches: tuple[Callable[[datetime], datetime], ...] = ()

    def next_after(self, moment_s: float, zone: tzinfo) -> int | None:
        """The first moment after the one given, in seconds since the epoch; None for never."""
        start = int(moment_s // 1)
        if not _EARLIEST_S <= start <= _LATEST_S:
            return None
        place = Place.of(start, zone)
        wall, repeated = place.wall, None
        if place.turn is not None and self._runs_twice(place.shift):
            # still the first of two passes: the second one's moments come before later wall-clock times
            again = None if place.is_second else self._next_wall(place.again - SECOND)
            if again is not None and again < place.over:
                repeated = place.turn + (again - place.again) // SECOND
        elif place.turn is not None and place.is_second:
            wall = place.over - SECOND  # all that is fixed within the repeated time has had its first pass
        found = self._first_instant(wall, start, zone)
        return repeated if found is None else found if repeated is None else min(found, repeated)

    def _runs_twice(self, shift_s: int) -> bool:
        return self.is_interval or shift_s > _LARGEST_SHIFT_S

    def _first_instant(self, wall: datetime, start: int, zone: tzinfo) -> int | None:
        """The first moment after `start` of the wall-clock times after `wall`."""
        searched = self._next_wall(wall)
        # what matches only where the clocks leave a time out never comes
        while searched is not None and searched.year - wall.year <= _LONGEST_SEARCH_YEARS:
            early, late = offsets_at(searched, zone)
            base = seconds_of(searched)
            if early < late:  # the clocks leave this time out
                turn = turn_between(zone, base - late, base - early)
                if not self.is_interval and late - early < _LARGEST_SHIFT_S:
                    instants = [turn]
                else:
                    instants = []
                    searched = wall_of(turn + late) - SECOND
            else:
                instants = [base - early] + ([base - late] if self._runs_twice(early - late) else [])
            later = [instant for instant in instants if instant > start]
            if later:
                return min(later)
            searched = self._next_wall(searched)
        return None

    def _next_wall(self, wall: datetime) -> datetime | None:
        """The next wall-clock time that matches, by croniter."""
        # croniter costs 35 ms: only those who compute moments pay for it
        from croniter import CroniterError

        if not self._searches:
            self._searches = tuple(_search(each) for each in self._alternatives)
        found = []
        for search in self._searches:
            try:
                found.append(search(wall))
            except (CroniterError, OverflowError):  # a date that never comes, such as 30 February
                continue
        return min(found, default=None)

    def moments(self, after_s: float, until_s: float, zone: tzinfo) -> Iterator[int]:
        """The moments after the one up to and with the other."""
        found = self.next_after(after_s, zone)
        while found is not None and found <= until_s:
            yield found
            found = self.next_after(found, zone)


def _compile(words: list[str], seconds: str) -> tuple[str, ...]:
    """The expressions for croniter of which the earliest result counts."""
    minute, hour, day, month, weekday = (
        _read_field(kind, word) for kind, word in zip(_FIELDS, words, strict=True)
    )
    second = _list(_read_field(_SECOND_FIELD, seconds).numbers, 60) if seconds else ""
    days = _list(day.numbers, 31, *(["l"] if day.is_last else []))
    # croniter cannot mix plain days of the week with # and L
    weekdays = [_list(weekday.numbers, 7)] if weekday.numbers else []
    weekdays += [",".join(weekday.nth)] if weekday.nth else []
    # crontab(5): either day field will do, unless one of them begins with *
    if words[2].startswith("*") or words[4].startswith("*"):
        pairs = [(days, each) for each in weekdays]
    else:
        pairs = [(days, "*"), *(("*", each) for each in weekdays)]
    head = f"{_list(minute.numbers, 60)} {_list(hour.numbers, 24)}"
    months = _list(month.numbers, 12)
    return tuple(f"{head} {one} {months} {other} {second}".strip() for one, other in pairs)


def _list(numbers: frozenset[int], whole: int, *more: str) -> str:
    if len(numbers) == whole:
        return "*"
    return ",".join([*(str(number) for number in sorted(numbers)), *more])


def _search(expression: str) -> Callable[[datetime], datetime]:
    from croniter import croniter

    machine: Any = croniter(
        expression,
        EPOCH,
        ret_type=datetime,
        day_or=False,  # both day fields must match: the rule was applied by whoever wrote the expression
        max_years_between_matches=_LONGEST_SEARCH_YEARS,
    )

    def search(wall: datetime) -> datetime:
        found: datetime = machine.get_next(start_time=wall)
        return found

    return search


def preview(
    expression: str, zone: tzinfo, start_s: float, count: int, *, allow_seconds: bool = True
) -> tuple[int, ...]:
    """The next moments strictly after `start_s`, at most `count`; fewer where there are no more.

    Raises: InvalidInputError for a bad expression.
    """
    found: list[int] = []
    cron = parse_cron(expression, allow_seconds=allow_seconds)
    while len(found) < count:
        moment = cron.next_after(found[-1] if found else start_s, zone)
        if moment is None:
            break
        found.append(moment)
    return tuple(found)
