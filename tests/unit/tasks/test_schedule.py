"""What is due: late starts and their policies, calendars, clocks that are set, thousands of entries."""

from __future__ import annotations

import random
import time
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrl_exec.tasks.clock.calendar import read_calendar
from ctrl_exec.tasks.clock.cron import parse_cron
from ctrl_exec.tasks.clock.schedule import LIMIT_MISSED, Agenda, Due, Entry, Terms, is_of_another_time, judge
from ctrl_exec.tasks.clock.zones import zone_named

NOON = int(datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp())  # a Thursday
HOUR = 3600


def entry(expression: str, terms: Terms | None = None, *, key: str = "a", seen_s: int = NOON) -> Entry:
    return Entry(key, parse_cron(expression, allow_seconds=True), UTC, seen_s, terms or Terms())


def shown(found: tuple[Due, ...]) -> list[tuple[int, str]]:
    """Minutes after noon, and what was judged."""
    return [((due.due_s - NOON) // 60, due.reason or "START") for due in found]


def test_on_time() -> None:
    """Due once, at its time, and not again."""
    agenda = Agenda()
    agenda.put(entry("*/10 * * * *"))
    assert agenda.next_due() == NOON + 600
    assert agenda.take(NOON + 599.9, 10) == ()
    assert agenda.take(NOON + 600.0, 10) == (Due("a", NOON + 600),)
    assert agenda.take(NOON + 600.0, 10) == ()
    assert agenda.next_due() == NOON + 1200


@pytest.mark.parametrize(
    ("terms", "late_s", "expected"),
    [
        (Terms(), 0, "START"),
        (Terms(), 60, "START"),
        (Terms(), 61, "MISSED"),
        (Terms(start_deadline_s=5), 5, "START"),
        (Terms(start_deadline_s=5), 6, "MISSED"),
        (Terms(start_deadline_s=0), 0.9, "START"),
        (Terms(start_deadline_s=0), 1.9, "START"),
        (Terms(start_deadline_s=0), 2, "MISSED"),
        (Terms(start_deadline_s=HOUR), HOUR, "START"),
        (Terms(start_deadline_s=HOUR), HOUR + 1, "MISSED"),
        (Terms(missed_policy="RUN_ONCE"), 86000, "START"),
        (Terms(missed_policy="RUN_ONCE", start_deadline_s=HOUR), HOUR, "START"),
        (Terms(missed_policy="RUN_ONCE", start_deadline_s=HOUR), HOUR + 1, "MISSED"),
        (Terms(is_enabled=False), 0, "DISABLED"),
        (Terms(is_enabled=False, missed_policy="RUN_ONCE"), HOUR, "DISABLED"),
    ],
)
def test_a_late_start(terms: Terms, late_s: float, expected: str) -> None:
    """Made until the deadline: a minute, or for ever, where the task names none."""
    found = judge(entry("5 12 * * *", terms), NOON + 300 + late_s)
    assert shown(found) == [(5, expected)]


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (Terms(), [(10, "MISSED"), (20, "MISSED"), (30, "MISSED")]),
        (Terms(missed_policy="RUN_ONCE"), [(10, "MISSED"), (20, "MISSED"), (30, "START")]),
        (Terms(start_deadline_s=1500), [(10, "MISSED"), (20, "MISSED"), (30, "START")]),
    ],
)
def test_several_that_were_missed(terms: Terms, expected: list[tuple[int, str]]) -> None:
    """The latest at most is made up for, the others are recorded."""
    assert shown(judge(entry("*/10 * * * *", terms), NOON + 35 * 60)) == expected


def test_no_burst_of_what_is_a_little_late() -> None:
    """Three seconds late, a task of every second starts once."""
    found = judge(entry("* * * * * *"), NOON + 3.5)
    assert [due.reason for due in found] == ["MISSED", "MISSED", ""]


WORKDAYS = (
    "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:20260115T121500\nDTEND:20260115T122500\nEND:VEVENT\nEND:VCALENDAR"
)


@pytest.mark.parametrize(
    ("mode", "policy", "minutes", "expected"),
    [
        ("EXCLUDE", "SKIP", 10, [(10, "START")]),
        ("EXCLUDE", "SKIP", 20, [(10, "MISSED"), (20, "CALENDAR")]),
        ("EXCLUDE", "SKIP", 30, [(10, "MISSED"), (20, "CALENDAR"), (30, "START")]),
        # of what was missed the latest allowed one is made up for, not while the calendar leaves out now
        ("EXCLUDE", "RUN_ONCE", 22, [(10, "CALENDAR"), (20, "CALENDAR")]),
        ("EXCLUDE", "RUN_ONCE", 26, [(10, "START"), (20, "CALENDAR")]),
        ("RESTRICT", "SKIP", 20, [(10, "CALENDAR"), (20, "START")]),
        ("RESTRICT", "SKIP", 30, [(10, "CALENDAR"), (20, "MISSED"), (30, "CALENDAR")]),
    ],
)
def test_calendars(mode: str, policy: str, minutes: int, expected: list[tuple[int, str]]) -> None:
    """What a calendar leaves out is recorded as such."""
    terms = Terms(missed_policy=policy, calendar=read_calendar(mode, (), WORKDAYS))
    assert shown(judge(entry("*/10 * * * *", terms), NOON + minutes * 60)) == expected


def test_a_calendar_in_the_zone_of_the_schedule() -> None:
    """A day of Tokyo ends when it does there."""
    tokyo = zone_named("Asia/Tokyo")
    terms = Terms(calendar=read_calendar("RESTRICT", ("2026-01-16",)))
    seen_s = int(datetime(2026, 1, 15, 14, 59, tzinfo=UTC).timestamp())
    [first, second] = judge(Entry("a", parse_cron("*/5 * * * *"), tokyo, seen_s, terms), seen_s + 6 * 60)
    assert (first.reason, second.reason) == ("MISSED", "")


def test_too_many_to_be_judged_one_by_one() -> None:
    """After months without a scheduler: a bounded record that says what it leaves out, and the last one."""
    months = 100 * 86400
    found = judge(entry("* * * * * *", Terms(missed_policy="RUN_ONCE")), NOON + months + 0.5)
    assert len(found) == LIMIT_MISSED + 1
    assert found[-1] == Due("a", NOON + months, "", passed_over_s=months - LIMIT_MISSED)
    assert {due.reason for due in found[:-1]} == {"MISSED"}
    assert found[-2].due_s == NOON + LIMIT_MISSED
    sparse = judge(entry("* * * 16 1 *"), NOON + 300 * 86400)
    assert sparse[-1].due_s == int(datetime(2026, 1, 16, 23, 59, 59, tzinfo=UTC).timestamp())
    exactly = judge(entry("* * * * * *"), NOON + LIMIT_MISSED)
    assert len(exactly) == LIMIT_MISSED
    assert not any(due.passed_over_s for due in exactly)


def test_a_clock_set_forward() -> None:
    """By an hour: what lies between is missed, by the policy of each."""
    agenda = Agenda()
    agenda.put(entry("30 12 * * *", key="skip"))
    agenda.put(entry("30 12 * * *", Terms(missed_policy="RUN_ONCE"), key="once"))
    agenda.put(entry("*/20 * * * *", key="often"))
    found = agenda.take(NOON + HOUR, 100)
    assert {(due.key, (due.due_s - NOON) // 60): due.reason or "START" for due in found} == {
        ("skip", 30): "MISSED",
        ("once", 30): "START",
        ("often", 20): "MISSED",
        ("often", 40): "MISSED",
        ("often", 60): "START",
    }


def test_a_clock_set_back() -> None:
    """By an hour: nothing is due twice; it goes on where it was."""
    agenda = Agenda()
    agenda.put(entry("*/20 * * * *"))
    assert len(agenda.take(NOON + HOUR, 100)) == 3
    for minutes in range(0, 80, 5):
        assert agenda.take(NOON + minutes * 60, 100) == ()
    assert shown(agenda.take(NOON + 80 * 60, 100)) == [(80, "START")]


def test_a_clock_that_was_wrong() -> None:
    """Set back by more than three hours it was wrong before, as cron(8) has it."""
    assert not is_of_another_time(NOON + 3 * HOUR, NOON)
    assert is_of_another_time(NOON + 3 * HOUR + 1, NOON)
    assert not is_of_another_time(NOON - 5 * HOUR, NOON)


def test_changes_of_entries() -> None:
    """What is put replaces what was there; what is removed is never due."""
    agenda = Agenda()
    agenda.put(entry("10 * * * *"))
    agenda.put(entry("20 * * * *"))
    assert agenda.next_due() == NOON + 1200
    agenda.put(entry("0 0 30 2 *"))
    assert agenda.next_due() is None
    assert len(agenda) == 1
    assert [each.key for each in agenda] == ["a"]
    agenda.remove("a")
    agenda.remove("a")
    assert len(agenda) == 0
    assert agenda.take(NOON + 86400, 10) == ()
    for minute in range(2000):
        agenda.put(entry(f"{minute % 60} 0 1 1 *"))
    assert len(agenda._heap) < 200


def test_the_earliest_first_and_some_at_once() -> None:
    agenda = Agenda()
    for minute in (30, 10, 20):
        agenda.put(entry(f"{minute} 12 * * *", Terms(missed_policy="RUN_ONCE"), key=str(minute)))
    later = NOON + HOUR
    assert [due.key for due in agenda.take(later, 2)] == ["10", "20"]
    assert [due.key for due in agenda.take(later, 2)] == ["30"]
    assert agenda.take(later, 2) == ()


def test_thousands_of_entries() -> None:
    """A look costs nothing while nothing is due, a change what that one entry costs."""
    agenda = Agenda()
    generator = random.Random(7)
    for number in range(3000):
        agenda.put(entry(f"{generator.randrange(60)} {generator.randrange(24)} * * *", key=str(number)))
    begun = time.process_time()
    for _ in range(1000):
        assert agenda.next_due() is not None
        assert agenda.take(NOON + 1, 100) == ()
        agenda.put(entry("59 11 * * *", key="5"))
    spent = time.process_time() - begun
    begun = time.process_time()
    for _ in range(1000):
        entry("59 11 * * *", key="5").next_due()
    alone = time.process_time() - begun
    assert spent < 20 * alone
    assert len(agenda.take(NOON + 86400, 100_000)) == 3000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "13 * * * *", "0,20 12-14 * * *", "*/15 * * * * *", "0 14 * * *"]),
    st.builds(
        Terms,
        is_enabled=st.sampled_from([True, True, False]),
        missed_policy=st.sampled_from(["SKIP", "RUN_ONCE"]),
        start_deadline_s=st.sampled_from([None, 5, 600]),
        calendar=st.sampled_from([None, read_calendar("EXCLUDE", (), WORKDAYS)]),
    ),
    st.lists(st.one_of(st.integers(0, 90), st.integers(0, 900), st.integers(-HOUR, HOUR)), max_size=30),
)  # fmt: skip
def test_never_twice_and_every_miss_recorded(expression: str, terms: Terms, steps: list[int]) -> None:
    """Whatever the clock does: each due time up to the latest moment seen has exactly one judgement."""
    agenda = Agenda()
    agenda.put(entry(expression, terms))
    now, latest = float(NOON), float(NOON)
    judged: list[Due] = []
    for step in steps:
        now += step + 0.25
        latest = max(latest, now)
        found = agenda.take(now, 10_000)
        assert len([due for due in found if not due.reason]) <= 1
        for due in found:
            assert due.due_s <= now
            if not due.reason:
                assert terms.is_enabled
                assert (
                    terms.missed_policy == "RUN_ONCE"
                    or now - due.due_s <= 61
                    or terms.start_deadline_s == 600
                )
        judged += found
    counts = Counter(due.due_s for due in judged)
    wanted = list(parse_cron(expression, allow_seconds=True).moments(NOON, latest, UTC))
    assert sorted(counts) == wanted
    assert set(counts.values()) <= {1}
    assert [due.due_s for due in judged] == wanted
