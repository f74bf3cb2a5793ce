"""Cron expressions: what is taken, what is refused and how, and where croniter is corrected."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

import pytest
from croniter import CroniterError, croniter

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.tasks.clock.cron import parse_cron, preview
from ctrl_exec.tasks.clock.zones import local_zone, zone_named

BERLIN = zone_named("Europe/Berlin")


def at(text: str, zone: tzinfo = UTC) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


def shown(moments: tuple[int, ...], zone: tzinfo = UTC) -> list[str]:
    return [datetime.fromtimestamp(each, zone).isoformat()[:19] for each in moments]


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("17 * * * *", "2026-01-15T12:00:00", ["2026-01-15T12:17:00", "2026-01-15T13:17:00"]),
        ("17 * * * *", "2026-01-15T12:17:00", ["2026-01-15T13:17:00"]),
        ("17 * * * *", "2026-01-15T12:16:59.999", ["2026-01-15T12:17:00"]),
        ("17 * * * *", "2026-01-15T12:17:00.5", ["2026-01-15T13:17:00"]),
        ("0 9 * * *", "2026-01-15T12:00:00", ["2026-01-16T09:00:00", "2026-01-17T09:00:00"]),
        ("*/20 9-10 * * *", "2026-01-15T09:30", ["2026-01-15T09:40:00", "2026-01-15T10:00:00"]),
        ("10-50/20 0 * * *", "2026-01-15T00:00", ["2026-01-15T00:10:00", "2026-01-15T00:30:00"]),
        ("0 0 29 2 *", "2026-01-15T12:00:00", ["2028-02-29T00:00:00", "2032-02-29T00:00:00"]),
        ("0 0 29 2 *", "2096-03-01T00:00:00", ["2104-02-29T00:00:00"]),
        ("*/5 9-17 * * 1-5", "2026-01-16T17:55:00", ["2026-01-19T09:00:00"]),
        ("0 0 * JAN,jul Mon", "2026-01-25T00:00:00", ["2026-01-26T00:00:00", "2026-07-06T00:00:00"]),
        ("0 0 * * 5-7", "2026-01-15T00:00:00", ["2026-01-16T00:00:00", "2026-01-17T00:00:00", "2026-01-18T00:00:00"]),
        ("0 0 * * sat-sun", "2026-01-15T00:00:00", ["2026-01-17T00:00:00", "2026-01-18T00:00:00", "2026-01-24T00:00:00"]),
        ("0 0 * * SUN-SUN", "2026-01-15T00:00:00", ["2026-01-18T00:00:00", "2026-01-25T00:00:00"]),
        ("0 0 * * 7", "2026-01-15T00:00:00", ["2026-01-18T00:00:00"]),
        ("0 0 L * *", "2028-01-31T00:00:00", ["2028-02-29T00:00:00", "2028-03-31T00:00:00"]),
        ("0 0 15,L * *", "2026-02-01T00:00:00", ["2026-02-15T00:00:00", "2026-02-28T00:00:00"]),
        ("0 0 * * FRI#3", "2026-01-01T00:00:00", ["2026-01-16T00:00:00", "2026-02-20T00:00:00"]),
        ("0 0 * * 1#5", "2026-01-01T00:00:00", ["2026-03-30T00:00:00", "2026-06-29T00:00:00"]),
        ("0 0 * * L5", "2026-01-01T00:00:00", ["2026-01-30T00:00:00", "2026-02-27T00:00:00"]),
        ("*/30 * * * * *", "2026-01-15T12:00:00", ["2026-01-15T12:00:30", "2026-01-15T12:01:00"]),
        ("5,7 59 23 31 12 *", "2026-01-15T12:00:00", ["2026-12-31T23:59:05", "2026-12-31T23:59:07", "2027-12-31T23:59:05"]),
        (" \t0\t9 * *  * ", "2026-01-15T12:00:00", ["2026-01-16T09:00:00"]),
        ("@hourly", "2026-01-15T12:00:00", ["2026-01-15T13:00:00"]),
        ("@daily", "2026-01-15T12:00:00", ["2026-01-16T00:00:00"]),
        ("@Midnight", "2026-01-15T12:00:00", ["2026-01-16T00:00:00"]),
        ("@weekly", "2026-01-15T12:00:00", ["2026-01-18T00:00:00"]),
        ("@monthly", "2026-01-15T12:00:00", ["2026-02-01T00:00:00"]),
        ("@yearly", "2026-01-15T12:00:00", ["2027-01-01T00:00:00"]),
        ("@annually", "2026-01-15T12:00:00", ["2027-01-01T00:00:00"]),
    ],
)  # fmt: skip
def test_next_moments(expression: str, after: str, expected: list[str]) -> None:
    """Strictly after the moment given, in order."""
    assert shown(preview(expression, UTC, at(after), len(expected))) == expected


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        # neither day field begins with *: either will do
        ("0 0 13 * 5", "2026-01-10T00:00", ["2026-01-13T00:00:00", "2026-01-16T00:00:00"]),
        ("0 0 1,* * 5", "2026-01-10T00:00", ["2026-01-11T00:00:00", "2026-01-12T00:00:00"]),
        ("0 0 30 2 1", "2026-02-15T00:00", ["2026-02-16T00:00:00", "2026-02-23T00:00:00"]),
        ("0 0 L * 5#1", "2026-01-10T00:00", ["2026-01-31T00:00:00", "2026-02-06T00:00:00"]),
        # one begins with *: both must match
        ("0 0 */2 * 5", "2026-01-10T00:00", ["2026-01-23T00:00:00", "2026-02-13T00:00:00"]),
        ("0 0 13 * */5", "2026-01-10T00:00", ["2026-02-13T00:00:00", "2026-03-13T00:00:00"]),
        ("0 0 *,1 * 5", "2026-01-10T00:00", ["2026-01-16T00:00:00", "2026-01-23T00:00:00"]),
    ],
)
def test_day_of_month_and_day_of_week(expression: str, after: str, expected: list[str]) -> None:
    """crontab(5): OR, unless one of the fields begins with an asterisk."""
    assert shown(preview(expression, UTC, at(after), len(expected))) == expected


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # 29 March: 02:00 to 03:00 is left out; 25 October: it comes twice
        ("30 2 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]),
        ("0,30 2 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"]),
        ("0 2,3 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"]),
        ("30 2 * * *", BERLIN, "2026-10-24T12:00", ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]),
        ("30 2 * * *", BERLIN, "2026-10-25T02:40:00+02:00", ["2026-10-26T02:30:00+01:00"]),
        ("0 3 * * *", BERLIN, "2026-10-25T02:10:00+01:00", ["2026-10-25T03:00:00+01:00"]),
        ("20,40 2 * * *", BERLIN, "2026-10-25T02:10:00+01:00", ["2026-10-26T02:20:00+01:00"]),
        ("30 * * * *", BERLIN, "2026-03-29T01:00", ["2026-03-29T01:30:00+01:00", "2026-03-29T03:30:00+02:00"]),
        ("*/30 2 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-30T02:00:00+02:00"]),
        ("* * * * * *", BERLIN, "2026-03-29T01:59:59+01:00", ["2026-03-29T03:00:00+02:00"]),
        ("30 * * * *", BERLIN, "2026-10-25T02:00:00+02:00",
         ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00", "2026-10-25T03:30:00+01:00"]),
        ("*/15 2 25 10 *", BERLIN, "2026-10-25T02:45:00+02:00", ["2026-10-25T02:00:00+01:00"]),
        # half an hour at Lord Howe: 02:00 to 02:30 is left out on 4 October
        ("15 2 * * *", zone_named("Australia/Lord_Howe"), "2026-10-03T12:00",
         ["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"]),
        # midnight is left out in Cairo on 24 April
        ("0 0 * * *", zone_named("Africa/Cairo"), "2026-04-23T12:00",
         ["2026-04-24T01:00:00+03:00", "2026-04-25T00:00:00+03:00"]),
        # a whole day is left out at Apia: no DST, nothing is made up for (cron(8): three hours and more)
        ("0 9 * * *", zone_named("Pacific/Apia"), "2011-12-29T08:00",
         ["2011-12-29T09:00:00-10:00", "2011-12-31T09:00:00+14:00"]),
    ],
)  # fmt: skip
def test_changes_of_the_clocks(expression: str, zone: tzinfo, after: str, expected: list[str]) -> None:
    """Fixed times once: right after what is left out, the first of two; intervals follow the wall clock."""
    found = preview(expression, zone, at(after, zone), len(expected))
    assert [datetime.fromtimestamp(each, zone).isoformat() for each in found] == expected


@pytest.mark.parametrize(
    ("expression", "field", "expected"),
    [
        ("60 * * * *", "minute", "0-59"),
        ("* 24 * * *", "hour", "0-23"),
        ("* * 0 * *", "day of month", "1-31"),
        ("* * * 13 *", "month", "1-12 or JAN-DEC"),
        ("* * * * sat-mon", "day of week", "'sat-mon' ends before"),
        ("* * * * 8", "day of week", "0-7 or SUN-SAT"),
        ("60 * * * * *", "second", "0-59"),
        ("* * * FOO *", "month", "'FOO'"),
        ("* * * january *", "month", "'january'"),
        ("mon * * * *", "minute", "'mon'"),
        ("1,,2 * * * *", "minute", "''"),
        ("-1 * * * *", "minute", "'-1'"),
        ("1- * * * *", "minute", "'1-'"),
        ("*-5 * * * *", "minute", "'*-5'"),
        ("*/0 * * * *", "minute", "step of 0"),
        ("*/x * * * *", "minute", "'*/x'"),
        ("1.5 * * * *", "minute", "'1.5'"),
        ("٣ * * * *", "minute", "0-59"),
        ("* * * * 5#0", "day of week", "FRI#2"),
        ("* * * * 5#6", "day of week", "FRI#2"),
        ("* * L-3 * *", "day of month", "L for the last"),
        ("* * * * L8", "day of week", "L5"),
        ("0\n9 * * *", "4 fields", "expected five"),
        ("* * * *", "4 fields", "expected five"),
        ("", "0 fields", "expected five"),
        ("* * * * * * *", "7 fields", "six with leading seconds"),
        ("@reboot", "'@reboot'", "@hourly"),
        ("@daily x", "'@daily x'", "@hourly"),
        ("0 " * 600, "1000", "characters"),
    ],
)
def test_what_is_refused(expression: str, field: str, expected: str) -> None:
    """The error names the field, what stood there and what was expected."""
    with pytest.raises(InvalidInputError) as caught:
        parse_cron(expression, allow_seconds=True)
    assert caught.value.field == "cronExpression"
    assert field in str(caught.value)
    assert expected in str(caught.value)


def test_seconds_only_where_they_are_allowed() -> None:
    with pytest.raises(InvalidInputError, match="seconds"):
        parse_cron("*/30 * * * * *")
    assert parse_cron("*/30 * * * * *", allow_seconds=True).has_seconds
    assert not parse_cron("30 * * * *", allow_seconds=True).has_seconds


def of_croniter(expression: str, after: str, zone: tzinfo, **options: bool) -> str | None:
    try:
        found = croniter(expression, datetime.fromisoformat(after).replace(tzinfo=zone), **options).get_next(
            datetime
        )
    except CroniterError:
        return None
    assert isinstance(found, datetime)
    return found.isoformat()[:19]


@pytest.mark.parametrize(
    ("expression", "after", "theirs", "ours"),
    [
        # an explicit range of one is that one, not the whole field
        ("5-5 0 * * *", "2026-01-15T00:00", "2026-01-15T00:01:00", "2026-01-15T00:05:00"),
        ("0 0 * 3-3 *", "2026-01-15T00:00", "2026-01-16T00:00:00", "2026-03-01T00:00:00"),
        # 1-7 are all days of the week also with a step
        ("0 0 * * 1-7/2", "2026-01-15T00:00", "2026-01-16T00:00:00", "2026-01-16T00:00:00"),
        # # and L of the week are days of the week like others: OR with the day of the month
        ("0 0 1 * 5#3", "2026-01-15T00:00", None, "2026-01-16T00:00:00"),
        ("0 0 1 * L5", "2026-01-15T00:00", None, "2026-01-30T00:00:00"),
        ("0 0 * * 1,5#3", "2026-01-15T00:00", None, "2026-01-16T00:00:00"),
    ],
)
def test_where_croniter_reads_otherwise(expression: str, after: str, theirs: str | None, ours: str) -> None:
    """Each of them is a schedule that crontab(5) reads as we do."""
    assert of_croniter(expression, after, UTC, implement_cron_bug=True) == theirs
    assert shown(preview(expression, UTC, at(after), 1)) == [ours]


@pytest.mark.parametrize(
    "expression",
    ["7/15 * * * *", "50-10 * * * *", "* 22-2 * * *", "* * * NOV-FEB *", "* * ? * *", "* * 15W * *", "R * * * *"],
)  # fmt: skip
def test_what_only_croniter_takes(expression: str) -> None:
    """Debian's cron refuses them, and so do we; where a step stands alone the error says what to write."""
    assert croniter.is_valid(expression)
    with pytest.raises(InvalidInputError):
        parse_cron(expression)


@pytest.mark.parametrize(
    ("expression", "after", "theirs", "ours"),
    [
        # a fixed time that comes twice is due the first time only
        ("30 2 * * *", "2026-10-25T02:30:00", "2026-10-25T02:30:00", "2026-10-26T02:30:00"),
        # one that is left out is due right after, not as late as it would have been
        ("30 2 * * *", "2026-03-28T12:00:00", "2026-03-29T03:00:00", "2026-03-29T03:00:00"),
        # an interval within what is left out is not due on that day
        ("*/20 2 * * *", "2026-03-28T12:00:00", "2026-03-29T03:00:00", "2026-03-30T02:00:00"),
    ],
)
def test_where_croniter_differs_at_changes_of_the_clocks(
    expression: str, after: str, theirs: str, ours: str
) -> None:
    assert of_croniter(expression, after, BERLIN) == theirs
    assert shown(preview(expression, BERLIN, at(after, BERLIN), 1), BERLIN) == [ours]


@pytest.mark.parametrize(
    ("expression", "zone"),
    [
        ("0 0 30 2 *", UTC),
        ("0 0 31 2,4,6,9,11 *", UTC),
        ("59 59 23 31 11 *", UTC),
        ("0 0 */27 * 2#3", UTC),
        # the second Sunday of March from 02:00 to 03:00 is what New York leaves out, each year
        ("* 2 * 3 0#2", zone_named("America/New_York")),
    ],
)
def test_never(expression: str, zone: tzinfo) -> None:
    """A date that never comes is due never, and that is found out with bounded work."""
    assert preview(expression, zone, at("2026-01-15T12:00"), 3) == ()


@pytest.mark.parametrize("moment", [-1e12, 1e12, 253402300799])
def test_moments_out_of_this_world(moment: float) -> None:
    assert preview("* * * * *", UTC, moment, 3) == ()


def test_moments_of_a_span() -> None:
    """After the one, up to and with the other."""
    found = parse_cron("*/10 * * * *").moments(at("2026-01-15T12:00"), at("2026-01-15T12:30"), UTC)
    assert shown(tuple(found)) == ["2026-01-15T12:10:00", "2026-01-15T12:20:00", "2026-01-15T12:30:00"]


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "America", "right/UTC",
                                  "tzdata.zi", "Europe/Berlin\0", "x" * 300, "localtime/.."])  # fmt: skip
def test_no_time_zone(name: str) -> None:
    with pytest.raises(InvalidInputError, match="time zone") as caught:
        zone_named(name)
    assert caught.value.field == "cronTimezone"


@pytest.mark.parametrize(
    "name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "EST5EDT"]
)
def test_time_zones(name: str) -> None:
    assert str(zone_named(name)) == name


def test_the_local_zone() -> None:
    """TZ's, and where that is none the machine's."""
    assert str(local_zone({"TZ": ":Asia/Tokyo"})) == "Asia/Tokyo"
    for environment in ({}, {"TZ": "no such zone"}):
        assert datetime.now(local_zone(environment)).utcoffset() is not None
