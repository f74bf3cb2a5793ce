"""What is due when: cron, missed moments, clocks that jump."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from ctrl_exec.common.errors import ConfigError
from ctrl_exec.scheduler.timetable import Duty, Timetable, cron, every


def at(text: str, zone: object = UTC) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("17 * * * *", "2026-01-15T12:00:00", "2026-01-15T12:17:00"),
        ("17 * * * *", "2026-01-15T12:17:00", "2026-01-15T13:17:00"),
        ("17 * * * *", "2026-01-15T12:16:59", "2026-01-15T12:17:00"),
        ("43 3 * * *", "2026-01-15T12:00:00", "2026-01-16T03:43:00"),
        ("0 0 29 2 *", "2026-01-15T12:00:00", "2028-02-29T00:00:00"),
        ("*/5 9-17 * * 1-5", "2026-01-16T17:55:00", "2026-01-19T09:00:00"),
        ("0 0 1 1 0", "2026-01-15T12:00:00", "2026-01-18T00:00:00"),
    ],
)
def test_cron(expression: str, after: str, expected: str) -> None:
    """The next moment, never the same one; day of month and of week are either-or, as crontab(5) says."""
    assert cron(expression, UTC)(at(after)) == at(expected)


def test_cron_in_a_time_zone() -> None:
    """A time that a change of the clocks leaves out comes late, not never, and never twice at once."""
    zone = ZoneInfo("Europe/Berlin")
    daily = cron("30 2 * * *", zone)
    first = daily(at("2026-03-28T12:00:00", zone))
    assert first is not None
    assert at("2026-03-29T01:59:59", zone) < first <= at("2026-03-29T03:30:00", zone)
    following = daily(first)
    assert following == at("2026-03-30T02:30:00", zone)


def test_never() -> None:
    """An empty expression, and a date that never comes, are never due."""
    assert cron("", UTC)(0) is None
    assert cron("0 0 30 2 *", UTC)(at("2026-01-15T12:00:00")) is None
    assert Timetable([Duty("x", cron("", UTC), int)], 0).next_due() is None


@pytest.mark.parametrize(
    "expression",
    ["x", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "@reboot", "*\n* * * *  *"],
)
def test_bad_expressions_are_named(expression: str) -> None:
    """Five fields within their ranges, or a ConfigError that shows what was given."""
    with pytest.raises(ConfigError, match="cron"):
        cron(expression, UTC)


def table(now: float, **periods: float) -> Timetable:
    return Timetable([Duty(name, every(period), int) for name, period in periods.items()], now)


def due(found: Timetable, now: float) -> list[tuple[str, float]]:
    return [(duty.name, late_s) for duty, late_s in found.take_due(now)]


def test_due_once_and_then_again() -> None:
    """Each is due at its moments, once."""
    found = table(1000, a=60, b=300)
    assert found.next_due() == 1020
    assert due(found, 1019.9) == []
    assert due(found, 1020) == [("a", 0)]
    assert due(found, 1020) == []
    assert found.next_due() == 1080
    assert due(found, 1203) == [("a", 123), ("b", 3)]
    assert due(found, 1203) == []


def test_missed_moments_are_made_up_for_once() -> None:
    """After a long sleep or a clock set forward a duty is due once, not for each moment missed."""
    found = table(1000, a=60)
    assert due(found, 1_000_000) == [("a", 998_980)]
    assert due(found, 1_000_000) == []
    assert found.next_due() == 1_000_020


def test_a_clock_set_back_does_not_silence_it() -> None:
    """An hour back: the next moment is a minute away, not an hour and a minute."""
    found = table(10_000, a=60)
    assert due(found, 10_020) == [("a", 0)]
    assert due(found, 6_420) == []
    assert found.next_due() == 6_480
    assert due(found, 6_480) == [("a", 0)]


def test_at_once() -> None:
    """What must not wait for its first moment is due at the start."""
    found = Timetable([Duty("a", every(60), int), Duty("b", every(60), int)], 1000, at_once=("b",))
    assert due(found, 1000) == [("b", 0)]
