"""Cron against a slow oracle: the loop of cron itself, stepped through every minute (or second).

The oracle keeps cron's virtual clock: it compares, at every tick, the wall clock with what it has dealt
with, and so finds out by itself when the clocks were changed. It knows no croniter and no time zone
rules but the offset of a moment.
"""

from __future__ import annotations

import calendar
from bisect import bisect
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrl_exec.tasks.clock.cron import parse_cron
from ctrl_exec.tasks.clock.zones import zone_named

ZONES = (
    "UTC", "Europe/Berlin", "Europe/Dublin", "America/New_York", "America/St_Johns", "America/Sao_Paulo",
    "America/Caracas", "Africa/Cairo", "Africa/Casablanca", "Asia/Beirut", "Asia/Pyongyang", "Asia/Kathmandu",
    "Australia/Lord_Howe", "Antarctica/Troll", "Antarctica/Casey", "Pacific/Apia",
)  # fmt: skip
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat", "7"]
EPOCH = datetime(1970, 1, 1)
LARGEST_SHIFT_S = 3 * 3600
# a slow machine is no finding
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
Fits = Callable[[datetime], bool]
Expression = tuple[str, bool, Fits]


def numbers(
    low: int, high: int, names: list[str] | None = None
) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """One element of a field, as it is written and as the numbers it stands for."""

    def written(number: int, by_name: bool) -> str:
        if names is None or not by_name:
            return str(number)
        return names[number - low].upper() if number % 2 else names[number - low]

    one = st.builds(
        lambda number, by_name: (written(number, by_name), frozenset([number])),
        st.integers(low, high), st.booleans(),
    )  # fmt: skip
    span = st.builds(
        lambda ends, step, by_name: (
            f"{written(min(ends), by_name)}-{written(max(ends), by_name)}" + (f"/{step}" if step else ""),
            frozenset(range(min(ends), max(ends) + 1, step or 1)),
        ),
        st.tuples(st.integers(low, high), st.integers(low, high)), st.integers(0, high), st.booleans(),
    )  # fmt: skip
    star = st.integers(0, high).map(
        lambda step: ("*" + (f"/{step}" if step else ""), frozenset(range(low, high + 1, step or 1)))
    )
    return st.one_of(one, one, span, star)


def field(
    low: int, high: int, names: list[str] | None = None
) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    return st.lists(numbers(low, high, names), min_size=1, max_size=3).map(
        lambda parts: (",".join(text for text, _ in parts), frozenset().union(*(them for _, them in parts)))
    )


def is_nth(day: date, weekday: int, count: int) -> bool:
    return day.isoweekday() % 7 == weekday % 7 and (day.day - 1) // 7 + 1 == count


def is_last_weekday(day: date, weekday: int) -> bool:
    return day.isoweekday() % 7 == weekday % 7 and day.day + 7 > calendar.monthrange(day.year, day.month)[1]


def is_last(day: date) -> bool:
    return day.day == calendar.monthrange(day.year, day.month)[1]


@st.composite
def day_fields(draw: st.DrawFn) -> tuple[str, str, str, Callable[[date], bool]]:
    """Day of month, month and day of week, and whether a day fits them."""
    day, days = draw(st.one_of(st.just(("*", frozenset(range(1, 32)))), field(1, 31)))
    month, months = draw(st.one_of(st.just(("*", frozenset(range(1, 13)))), field(1, 12, MONTHS)))
    weekday, weekdays = draw(st.one_of(st.just(("*", frozenset(range(8)))), field(0, 7, DAYS)))
    last = draw(st.booleans()) and draw(st.booleans())
    day += ",L" if last else ""
    more: list[Callable[[date], bool]] = []
    for _ in range(draw(st.integers(0, 3)) // 2):
        which = draw(st.integers(0, 7))
        count = draw(st.integers(0, 5))
        weekday += f",{which}#{count}" if count else f",L{DAYS[which]}"
        more.append(
            (lambda d, w=which, c=count: is_nth(d, w, c))
            if count
            else (lambda d, w=which: is_last_weekday(d, w))
        )

    def fits(found: date) -> bool:
        one = found.day in days or (last and is_last(found))
        here = found.isoweekday() % 7
        other = here in weekdays or (here == 0 and 7 in weekdays) or any(each(found) for each in more)
        both = day.startswith("*") or weekday.startswith("*")
        return found.month in months and ((one and other) if both else (one or other))

    return day, month, weekday, fits


@st.composite
def expressions(draw: st.DrawFn, *, near: date, with_seconds: bool) -> Expression:
    """An expression, whether it follows the wall clock, and what fits it; dates around `near` are likely."""
    minute, minutes = draw(field(0, 59))
    # clocks are changed at night
    early = st.integers(0, 4).map(lambda number: (str(number), frozenset([number])))
    hour, hours = draw(st.one_of(field(0, 23), st.just(("*", frozenset(range(24)))), early))
    second, seconds = draw(field(0, 59)) if with_seconds else ("", frozenset([0]))
    if draw(st.booleans()):
        day, month, weekday = "*", "*", "*"
        fits_day: Callable[[date], bool] = bool
    elif draw(st.booleans()):
        day, month, weekday, fits_day = draw(day_fields())
    else:
        chosen = near + timedelta(days=draw(st.integers(-1, 1)))
        day, month, weekday = str(chosen.day), str(chosen.month), "*"
        fits_day = lambda found, c=chosen: (found.day, found.month) == (c.day, c.month)  # noqa: E731

    def fits(wall: datetime) -> bool:
        return (
            wall.minute in minutes and wall.hour in hours and wall.second in seconds and fits_day(wall.date())
        )

    text = f"{second} {minute} {hour} {day} {month} {weekday}".strip()
    return text, minute.startswith("*") or hour.startswith("*"), fits


def oracle(expression: Expression, zone: tzinfo, span: tuple[int, int], step_s: int) -> list[int]:
    """When cron would run it within the span, found by trying each tick.

    Source: the main loop that cron(8) describes: jobs of a fixed time run for each tick of the virtual
    clock, the others for each tick of the wall clock, and a change of three hours or more resets both.
    """
    _, is_interval, fits = expression
    found = []
    virtual: int | None = None
    # the virtual clock may lag behind at the start of the span: begin before that
    for moment in range((span[0] - 4 * 3600) // step_s * step_s, span[1] + 1, step_s):
        local = datetime.fromtimestamp(moment, zone).replace(tzinfo=None)
        clock = (local - EPOCH) // timedelta(seconds=step_s)
        ahead = 1 if virtual is None else clock - virtual
        most = LARGEST_SHIFT_S // step_s
        if 1 < ahead <= most:
            assert virtual is not None
            missed = (EPOCH + timedelta(seconds=each * step_s) for each in range(virtual + 1, clock + 1))
            runs = fits(local) if is_interval else any(fits(each) for each in missed)
        elif -most < ahead <= 0:
            runs = is_interval and fits(local)
        else:
            runs = fits(local)
        if not -most < ahead <= 0:
            virtual = clock
        if runs and span[0] < moment:
            found.append(moment)
    return found


@lru_cache
def turns(name: str) -> tuple[int, ...]:
    """The moments from 2000 to 2037 at which a zone's clocks were or will be changed."""
    zone = zone_named(name)

    def offset(moment: int) -> timedelta | None:
        return datetime.fromtimestamp(moment, zone).utcoffset()

    days = range(946684800, 2114380800, 86400)
    found = []
    for day in days:
        before, after = day, day + 86400
        if offset(before) == offset(after):
            continue
        while after - before > 1:
            middle = (before + after) // 2
            before, after = (middle, after) if offset(middle) == offset(before) else (before, middle)
        found.append(after)
    return tuple(found) or (1000000000,)


def check(data: st.DataObject, *, step_s: int, reach_s: int) -> None:
    name = data.draw(st.sampled_from(ZONES))
    zone = zone_named(name)
    turn = data.draw(st.sampled_from(turns(name)))
    start = turn + data.draw(st.integers(-reach_s, reach_s // 3))
    near = datetime.fromtimestamp(turn, zone).date()
    expression = data.draw(expressions(near=near, with_seconds=step_s == 1))
    span = (start, turn + reach_s)
    ours = list(parse_cron(expression[0], allow_seconds=True).moments(*span, zone))
    assert ours == oracle(expression, zone, span, step_s)
    if ours:
        # from anywhere in between the next one is the same
        anywhere = data.draw(st.integers(span[0], ours[-1] - 1))
        later = parse_cron(expression[0], allow_seconds=True).next_after(anywhere, zone)
        assert later == ours[bisect(ours, anywhere)]


@settings(QUIET, max_examples=60)
@given(st.data())
def test_each_minute_around_changes_of_the_clocks(data: st.DataObject) -> None:
    """No difference to cron's own loop, in any zone, from any moment."""
    check(data, step_s=60, reach_s=16 * 3600)


@settings(QUIET, max_examples=25)
@given(st.data())
def test_each_second_around_changes_of_the_clocks(data: st.DataObject) -> None:
    """The same with seconds."""
    check(data, step_s=1, reach_s=4000)


@pytest.mark.long
@settings(QUIET, max_examples=1200)
@given(st.data())
def test_each_minute_of_days_around_changes_of_the_clocks(data: st.DataObject) -> None:
    check(data, step_s=60, reach_s=60 * 3600)


@pytest.mark.long
@settings(QUIET, max_examples=250)
@given(st.data())
def test_each_second_of_hours_around_changes_of_the_clocks(data: st.DataObject) -> None:
    check(data, step_s=1, reach_s=5 * 3600)


def check_days(fields: tuple[str, str, str, Callable[[date], bool]], start: date, days: int) -> None:
    day, month, weekday, fits = fields
    first = datetime(start.year, start.month, start.day, tzinfo=UTC)
    wanted = []
    for ahead in range(1, days):
        found = first + timedelta(days=ahead)
        if fits(found.date()):
            wanted.append(int(found.timestamp()))
    until = (first + timedelta(days=days - 1)).timestamp()
    expression = f"0 0 {day} {month} {weekday}"
    some = wanted[:20]
    ours = parse_cron(expression).moments(first.timestamp(), some[-1] if some else until, UTC)
    assert list(ours) == some


@settings(QUIET, max_examples=60)
@given(day_fields(), st.dates(date(1999, 1, 1), date(2099, 1, 1)))
def test_each_day_of_years(fields: tuple[str, str, str, Callable[[date], bool]], start: date) -> None:
    """The day fields with all that they may hold, against every day of four years."""
    check_days(fields, start, 4 * 366)


@pytest.mark.long
@settings(QUIET, max_examples=600)
@given(day_fields(), st.dates(date(1950, 1, 1), date(2199, 1, 1)))
def test_each_day_of_decades(fields: tuple[str, str, str, Callable[[date], bool]], start: date) -> None:
    check_days(fields, start, 20 * 366)


@settings(QUIET, max_examples=40)
@given(st.text(alphabet="0123456789*/-,#@LWH?jan fri\t", max_size=40))
def test_whatever_is_written_is_read_or_refused_by_name(text: str) -> None:
    """Nothing but an InvalidInputError, and what is taken has moments or never, within bounded work."""
    from ctrl_exec.common.errors import InvalidInputError

    try:
        cron = parse_cron(text, allow_seconds=True)
    except InvalidInputError as error:
        assert error.field == "cronExpression"
    else:
        found = cron.next_after(0, UTC)
        assert found is None or found > 0
